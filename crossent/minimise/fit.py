"""The way through: data → task → split → preparation → problem → learning → calibration → one test → a record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crossent.errors import DataError, some
from crossent.minimise import data, own, split, task
from crossent.minimise.finish import Judged, finish
from crossent.minimise.leak import leaks
from crossent.minimise.learn import Factory, learn, learn_from_loader
from crossent.minimise.left import with_left
from crossent.minimise.preparation import Preparation
from crossent.minimise.problem import Problem
from crossent.minimise.recipe import Recipe
from crossent.minimise.run import Run
from crossent.minimise.tokens import WORD, Tokens
from crossent.minimise.train import Progress

FEW_ROWS = 10


def fit(
    x: Any,
    y: Any = None,
    *,
    target: str | None = None,
    weight: Any = None,
    test: Any = None,
    kind: str | None = None,
    limits: tuple[float, float] | None = None,
    recipe: Recipe | None = None,
    settings: Sequence[str] = (),
    model: Factory | None = None,
    budget: float | None = None,
    seed: int = 0,
    fabric: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    said: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Run:
    """Train a network on a table or an array by minimising cross-entropy, calibrate it, and test it once.

    Args:
        x: features, a pandas table, array or tensor (n, d), NaN where a number is missing; images (n, h, w), (n, c,
            h, w) or (n, h, w, c); or the name of an embedded set or a file, as on the command line; or a network of
            your own, an ``nn.Module`` from x to logits, with loaders as ``y``.
        y: labels (n,), of two classes, of several, or numbers in a range, or (n, classes) shares or counts; None if x
            names a file that has them. For a network of your own three loaders of batches (x, y) or (x, y, weight): to
            learn from, to choose the epoch and the calibrator by, and to test once.
        target: the file's column of labels, or a pattern of several, one for each class: ``votes_*``.
        weight: of the rows: the file's column, or (n,) numbers from 0 on.
        test: rows to test on instead of a drawn fifth: a file, or a pair (x, y).
        kind: "classes" or "range", to overrule what the labels look like.
        limits: (low, high) of a range; by default the smallest and largest label.
        recipe: the settings of the training; by default ``Recipe.usual``, by what the rows are.
        settings: changes to the recipe as on the command line: ``["epochs=50", "loss=focal(2)"]``.
        model: makes a network of your own, ``model(shape_of_a_row, logits) -> torch.nn.Module``.
        budget: seconds after which no epoch begins.
        seed: of the split, the start and the batches; the same seed gives the same bits on one machine.
        fabric: a launched Lightning Fabric; by default one process on the CPU, or those that torchrun started.
        checkpoint: a folder to write the state of the training to, and to go on from.
        progress: called after each epoch, and twice a second within long ones.
        said: called with sentences about what was found.
        command: what a reader could type to repeat this; it goes into the record.

    Returns:
        A ``Run``: ``predict_proba``, ``predict``, ``save``, and ``record`` with the test's figures.

    Raises:
        DataError: a sentence, if the data cannot be used.

    >>> run = fit("iris")
    >>> run.record["cross_entropy"].value < 0.3
    True
    """
    if not 0 <= seed < 2**63:
        raise DataError(f"the seed must be a whole number from 0 to 2⁶³ - 1, and is {seed}.")
    if y is not None and isinstance(x, (str, os.PathLike)):
        raise DataError(
            f"{os.fspath(x)!r} brings its own labels; leave out y, or pass the features as a table or array."
        )
    deadline = math.inf if budget is None else time.monotonic() + budget
    folder = None if checkpoint is None else Path(checkpoint)
    if isinstance(x, nn.Module):
        chosen = (recipe or Recipe(folds=1, members=1)).parsed(settings)
        return _fit_own(x, y, limits, chosen, seed, fabric, folder, progress, said, deadline, command)
    mine, other = _data(x, y, target, weight, test)
    found = task.look(mine.y, mine.source, mine.target, kind, limits, mine.names)
    said(found.found)
    rest, judge = _parts(found, mine, other, seed)
    leaking = leaks(rest.x, rest.encoded)
    for sentence in leaking:
        said(sentence)
    preparation: Preparation | Tokens
    if (named := _model(recipe, settings)).startswith(WORD):
        preparation = Tokens.of(named, rest.x, mine.source, found)
        features, model, usual = preparation(rest.x, mine.source), preparation.copy, Recipe.texts()
    else:
        preparation, features = Preparation.fit(rest.x, mine.source)
        usual = Recipe.usual(features)
    test_x = preparation(judge.x, judge.data.source)  # what is wrong with it is said before the training, not after
    problem = Problem(found, features, found.target(rest.encoded), rest.tensor_of_weights)
    recipe = (recipe or usual).parsed(settings)
    all_of = "" if other is None else f" (all of {other.source})"
    said(f"{len(rest):,} rows to learn from, {recipe.says_of_folds}; {len(judge):,} to test once{all_of}.")
    learned = learn(
        problem,
        recipe,
        seed,
        factory=model,
        fabric=fabric,
        checkpoint=folder,
        progress=progress,
        deadline=deadline,
    )
    known = ~learned.held_out[:, 0].isnan().numpy()
    run = finish(
        learned,
        recipe,
        preparation,
        rest.judged(found, learned.held_out).take(known),
        judge.judged(found, learned.log_probabilities(test_x)),
        problem.counts(),
        seed,
        said,
        facts={
            "source": mine.source,
            "tested": judge.data.source,
            "target": mine.target,
            "splits": {"learn": len(rest), "test": len(judge)},
            "features": preparation.features,
            "command": command,
            "notes": [*preparation.notes, *leaking, *_rare(found, (rest, judge))],
        },
    )
    return with_left(run, problem, test_x.numpy(), judge.encoded)


def _model(recipe: Recipe | None, settings: Sequence[str]) -> str:
    """The model that was asked for, or nothing."""
    asked = [setting.partition("=")[2] for setting in settings if setting.startswith("model=")]
    return asked[-1] if asked else recipe.model if recipe else ""


def _fit_own(
    network: nn.Module,
    loaders: Any,
    limits: tuple[float, float] | None,
    recipe: Recipe,
    seed: int,
    fabric: Any,
    checkpoint: Path | None,
    progress: Callable[[Progress], None],
    said: Callable[[str], None],
    deadline: float,
    command: str,
) -> Run:
    """The same way for a network and loaders of the user's own."""
    loader, problem, judge = own.look(loaders, network, limits, recipe)
    said(problem.task.found)
    said(f"{len(loader):,} batches to learn from, {len(problem):,} rows to choose by, {len(judge):,} to test once.")
    learned = learn_from_loader(
        network, own.scaled(loader, problem.task), problem, recipe, seed, fabric, checkpoint, progress, deadline
    )
    return finish(
        learned,
        recipe,
        Preparation((), problem.x.shape[1] if problem.x.dim() > 1 else 0),
        own.judged(problem, learned.held_out),
        own.judged(judge, learned.log_probabilities(judge.x)),
        problem.counts(),
        seed,
        said,
        facts={
            "source": type(network).__name__,
            "tested": "the test loader",
            "target": "y",
            "splits": {"learn_batches": len(loader), "validation": len(problem), "test": len(judge)},
            "features": problem.x[0].numel(),
            "command": command,
            "notes": [],
        },
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of one part of the split: where they stand, and what is to be predicted of them."""

    data: data.Data
    rows: np.ndarray
    encoded: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def weight(self) -> np.ndarray | None:
        """Their weights (n,), or None where all rows count alike."""
        return None if self.data.weight is None else self.data.weight[self.rows]

    def judged(self, found: task.Task, log_p: torch.Tensor) -> Judged:
        """Them with what was said of them; labels as they are written: numbers of a range, names, or shares."""
        y = self.data.y[self.rows]
        if found.kind == "range":
            y = np.asarray(y, dtype=np.float64)
        elif y.ndim == 1:
            y = np.array([task.class_name(value) for value in y])
        return Judged(self.rows, y, self.encoded, self.weight, log_p.numpy())

    @property
    def tensor_of_weights(self) -> torch.Tensor | None:
        """Their weights as a network wants them: 1 on average."""
        return None if self.weight is None else torch.from_numpy(self.weight / self.weight.mean()).float()

    @property
    def x(self) -> Any:
        """Their features; a table's keep their numbers as its index, so that trouble can be said to be in that row."""
        x = self.data.x
        return x.iloc[self.rows] if hasattr(x, "iloc") else x[self.rows]


def _data(x: Any, y: Any, target: str | None, weight: Any, test: Any) -> tuple[data.Data, data.Data | None]:
    """The data, and the test's own if it has any; both labelled."""
    own = data.read(x, target, weight) if isinstance(x, (str, os.PathLike)) else data.from_arrays(x, y, weight=weight)
    if own.y is None:
        raise DataError("fit needs labels: pass y, or a file that has them.")
    if test is None:
        return own, None
    from_file = isinstance(test, (str, os.PathLike))
    named = weight if isinstance(weight, str) else None
    other = data.read(test, own.target, named) if from_file else data.from_arrays(test[0], test[1], "test", *test[2:])
    if other.y is None:
        raise DataError("the test needs labels: pass a file that has them, or a pair (x, y).")
    if other.y.ndim == 1:
        task.refuse_missing(other.y, other.source, other.target)
    return own, other


def _parts(found: task.Task, own: data.Data, other: data.Data | None, seed: int) -> tuple[_Part, _Part]:
    """Rows to learn from, and rows to judge by."""
    rows = np.arange(len(own))
    encoded = found.encode(own.y, rows, own.source)
    if other is None:
        rest, tested = split.draw(encoded, seed)
        judge = _Part(own, tested, encoded[tested])
    else:
        rest, tested = rows, np.arange(len(other))
        judge = _Part(other, tested, found.encode(other.y, tested, other.source))
    learn = _Part(own, rest, encoded[rest])
    if len(own) < FEW_ROWS or not (len(learn) > 1 and len(judge)):
        raise DataError(
            f"{own.source}: {len(own):,} rows are too few to learn from most, choose by some in turn and test on the "
            f"rest; it takes at least {FEW_ROWS}."
        )
    return learn, judge


def _rare(found: task.Task, parts: tuple[_Part, ...]) -> list[str]:
    if found.kind == "range":
        return []
    own = [part.encoded for part in parts if part.data is parts[0].data]  # not a test file's: they teach nothing
    columns = np.arange(len(found.classes))
    counts = sum((part if part.ndim == 2 else part[:, None] == columns).sum(0) for part in own)
    rare = [
        f"{name} ({count:.3g})"
        for name, count in zip(found.classes, np.asarray(counts).tolist(), strict=True)
        if count < 5
    ]
    return [f"Classes with fewer than five rows in all can hardly be learned or tested: {some(rare)}."] if rare else []
