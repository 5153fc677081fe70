"""The way through: data → task → split → preparation → problem → learning → calibration → one test → a record."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossent.errors import DataError, some
from crossent.measure import Calibrator, Predictions, evaluate
from crossent.measure.calibration import choose as choose_calibrator
from crossent.measure.likelihood import costs_of_logs
from crossent.minimise import data, split, task
from crossent.minimise.learn import Factory, learn
from crossent.minimise.preparation import Preparation
from crossent.minimise.problem import Problem
from crossent.minimise.recipe import Recipe
from crossent.minimise.run import Predicted, Run
from crossent.minimise.train import History, Progress
from crossent.record import Curve, Number, Record, Table

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
        x: features, a pandas table, array or tensor (n, d); or the name of an embedded set or a file, as on the
            command line.
        y: labels (n,), of two classes, of several, or numbers in a range; None if x names a file that has them.
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
    began = time.monotonic()
    own, other = _data(x, y, target, weight, test)
    found = task.look(own.y, own.source, own.target, kind, limits, own.names)
    said(found.found)
    rest, judge = _parts(found, own, other, seed)
    preparation, features = Preparation.fit(rest.x, own.source)
    problem = Problem(found, features, found.target(rest.encoded), rest.tensor_of_weights)
    recipe = (recipe or Recipe.usual(features)).parsed(settings)
    all_of = "" if other is None else f" (all of {other.source})"
    said(f"{len(rest):,} rows to learn from, {recipe.says_of_folds}; {len(judge):,} to test once{all_of}.")
    learned = learn(
        problem,
        recipe,
        seed,
        factory=model,
        fabric=fabric,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
        deadline=math.inf if budget is None else began + budget,
    )
    known = ~learned.held_out[:, 0].isnan().numpy()
    plain = [
        learned.held_out.numpy()[known],
        learned.log_probabilities(preparation(judge.x, judge.data.source)).numpy(),
    ]
    calibrator = Calibrator()
    if recipe.calibration == "guarded":
        calibrator = choose_calibrator(
            plain[0],
            rest.encoded[known],
            weights=None if rest.weight is None else rest.weight[known],
            seed=seed,
            classes=found.classes,
        )
        for sentence in [calibrator.choice.sentence, *calibrator.choice.absent] if calibrator.choice else []:
            said(sentence)
    log_p = [calibrator.of_logits(rows) for rows in plain]
    parts = (rest.take(known), judge)
    predicted = Predicted(
        rows=np.concatenate([part.rows for part in parts]),
        splits=np.repeat(["held out", "test"], [len(part) for part in parts]),
        labels=np.concatenate([_labels(found, part.data.y[part.rows]) for part in parts]),
        probabilities=np.exp(np.concatenate(log_p)),
    )
    measured = _test(found, own, judge, predicted)
    record = _record(
        measured,
        learned.history,
        calibrator.choice.table if calibrator.choice else None,
        numbers={
            "validation_cross_entropy": _mean(log_p[0], parts[0]),
            "uncalibrated_cross_entropy": _mean(plain[1], judge),
        },
        facts={
            "source": own.source,
            "target": own.target,
            "found": found.found,
            "splits": {"learn": len(rest), "test": len(judge)},
            "features": preparation.features,
            "calibration": calibrator.kind,
            "seed": seed,
            "recipe": recipe.to_dict(),
            "command": command,
            "versions": versions(),
            "notes": [
                *measured.facts.get("notes", []), *preparation.notes, *learned.history.trouble, *_rare(found, parts)
            ],
        },
    )  # fmt: skip
    return Run(
        found, recipe, preparation, learned.network, learned.objective, calibrator, record, problem.counts(), predicted
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of one part of the split: where they stand, and what is to be predicted of them."""

    data: data.Data
    rows: np.ndarray
    encoded: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: np.ndarray) -> _Part:
        """Some of them."""
        return _Part(self.data, self.rows[which], self.encoded[which])

    @property
    def weight(self) -> np.ndarray | None:
        """Their weights (n,), or None where all rows count alike."""
        return None if self.data.weight is None else self.data.weight[self.rows]

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


def _test(found: task.Task, own: data.Data, judge: _Part, predicted: Predicted) -> Record:
    """What the model is worth on the rows that nothing before has looked at."""
    tested = predicted.splits == "test"
    p = predicted.probabilities[tested]
    return evaluate(
        Predictions.from_arrays(
            p[:, 1] if found.kind == "range" else p,
            predicted.labels[tested],
            classes=list(found.classes) or None,
            rows=judge.rows,
            weights=judge.weight,
            task=found.kind,
            low=found.low,
            high=found.high,
            source=judge.data.source,
            split="test",
        ),
        title=f"{Path(own.source).stem}: what a network knows of {own.target}",
    )


def versions() -> dict[str, str]:
    """The versions of what a figure may depend on."""
    found = {"python": platform.python_version()}
    for name in ("crossent", "torch", "numpy", "scipy", "scikit-learn", "skrub"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _labels(found: task.Task, y: np.ndarray) -> np.ndarray:
    """Labels as they are written down: numbers of a range, or the names of classes."""
    if found.kind == "range":
        return np.asarray(y, dtype=np.float64)
    if y.ndim == 2:
        return y
    return np.array([task.class_name(value) for value in y])


def _mean(log_p: np.ndarray, part: _Part) -> Number:
    return Number(float(np.average(costs_of_logs(log_p, part.encoded), weights=part.weight)), "nats", n=len(part))


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


def _record(
    measured: Record, history: History, candidates: Table | None, numbers: dict[str, Number], facts: dict[str, Any]
) -> Record:
    """The evaluation of the test rows, with the training beside it."""
    epochs = [float(epoch) for epoch in range(1, len(history.train) + 1)]
    curves = {
        name: Curve(epochs, list(values), "epoch", "cross-entropy in nats")
        for name, values in (("training", history.train), ("validation", history.validation))
    }
    return Record(
        kind="fit",
        title=measured.title,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        numbers={**measured.numbers, **numbers},
        tables={**measured.tables, **({"calibrators": candidates} if candidates else {})},
        curves={**measured.curves, **curves},
        facts={
            **measured.facts,
            **facts,
            "epochs": len(history.train),
            "best_epoch": history.best_epoch,
            "stopped": history.stopped,
            "seconds": round(history.seconds, 1),
            "threads": torch.get_num_threads(),
        },
    )
