"""The way through: data → task → split → preparation → problem → learning → calibration → one test → a record."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from crossent.errors import DataError
from crossent.minimise import own
from crossent.minimise.data import task
from crossent.minimise.data.leak import leaks
from crossent.minimise.data.parts import both, parted, prepared, rare
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.problem import Problem
from crossent.minimise.finish import finish
from crossent.minimise.left import with_left, with_left_of_ones_own
from crossent.minimise.recipe import Recipe, model_asked
from crossent.minimise.run import Run
from crossent.minimise.training.judge import blas_alone
from crossent.minimise.training.learn import Factory, learn, learn_from_loader
from crossent.minimise.training.outlook import check_budget
from crossent.minimise.training.train import Progress

AFTERWARDS = 2.5
"""Seconds of an idle processor that calibrator, test and page take after the training (satimage 2.2, adult 3)."""


@blas_alone()
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
        budget: seconds that it may take, of which the training leaves a few for the test; its first epoch is never cut.
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
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise DataError(f"the seed must be a whole number from 0 to 2⁶³ - 1, and is {seed!r}.")
    if model is not None and not callable(model):
        raise DataError(f"model= takes a function that makes a network; settings=['model={model}'] takes a name.")
    if y is not None and isinstance(x, (str, os.PathLike)):
        raise DataError(
            f"{os.fspath(x)!r} brings its own labels; leave out y, or pass the features as a table or array."
        )
    check_budget(budget)
    deadline = math.inf if budget is None else time.monotonic() + budget - min(AFTERWARDS, budget / 5)
    folder = None if checkpoint is None else Path(checkpoint)
    if isinstance(x, nn.Module):
        chosen = (recipe or Recipe(folds=1, members=1)).parsed(settings)
        return _fit_own(x, y, limits, chosen, seed, fabric, folder, progress, said, deadline, command)
    mine, other = both(x, y, target, weight, test)
    found = task.look(mine.y, mine.source, mine.target, kind, limits, mine.names)
    said(found.found)
    rest, judge = parted(found, mine, other, seed)
    leaking = leaks(rest.x, rest.encoded)
    for sentence in leaking:
        said(sentence)
    preparation, features, model = prepared(model_asked(recipe, settings), rest.x, mine.source, found, model)
    test_x = preparation(judge.x, judge.data.source)  # what is wrong with it is said before the training, not after
    problem = Problem(found, features, found.target(rest.encoded), rest.tensor_of_weights)
    recipe = (recipe or Recipe.usual(problem)).parsed(settings)
    all_of = "" if other is None else f" (all of {other.source})"
    said(f"{len(rest):,} rows to learn from, {recipe.says_of_folds(len(rest))}; {len(judge):,} to test once{all_of}.")
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
        test_x,
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
            "notes": [*preparation.notes, *leaking, *rare(found, (rest, judge))],
        },
    )
    return with_left(run, problem, test_x, judge)


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
    run = finish(
        learned,
        recipe,
        Preparation((), problem.x.shape[1] if problem.x.dim() > 1 else 0),
        own.judged(problem, learned.held_out),
        own.judged(judge, learned.log_probabilities(judge.x)),
        judge.x,
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
    return with_left_of_ones_own(run, problem)
