"""The way through: data → task → split → preparation → training → calibration → one test → a record."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossent.errors import DataError, some
from crossent.measure import Calibrator, Predictions, evaluate
from crossent.measure.likelihood import costs_of_logs
from crossent.minimise import calibrate, data, split, task
from crossent.minimise.preparation import Preparation
from crossent.minimise.recipe import Recipe
from crossent.minimise.run import Predicted, Run
from crossent.minimise.train import History, Progress, log_probabilities, train
from crossent.record import Curve, Number, Record, Table

FEW_ROWS = 10


def fit(
    x: Any,
    y: Any = None,
    *,
    target: str | None = None,
    test: Any = None,
    kind: str | None = None,
    limits: tuple[float, float] | None = None,
    recipe: Recipe | None = None,
    calibrated: bool = True,
    seed: int = 0,
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
        target: the file's column of labels.
        test: rows to test on instead of a drawn fifth: a file, or a pair (x, y).
        kind: "classes" or "range", to overrule what the labels look like.
        limits: (low, high) of a range; by default the smallest and largest label.
        recipe: the settings of the training.
        calibrated: whether to calibrate on the validation rows if that helps there.
        seed: of the split, the start and the batches; the same seed gives the same bits on one machine.
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
    recipe = recipe or Recipe()
    if not 0 <= seed < 2**63:
        raise DataError(f"the seed must be a whole number from 0 to 2⁶³ - 1, and is {seed}.")
    if y is not None and isinstance(x, (str, os.PathLike)):
        raise DataError(
            f"{os.fspath(x)!r} brings its own labels; leave out y, or pass the features as a table or array."
        )
    own = data.read(x, target) if isinstance(x, (str, os.PathLike)) else data.from_arrays(x, y)
    if own.y is None:
        raise DataError("fit needs labels: pass y, or a file that has them.")
    other = None
    if test is not None:
        other = (
            data.read(test, own.target)
            if isinstance(test, (str, os.PathLike))
            else data.from_arrays(test[0], test[1], "test")
        )
        if other.y is None:
            raise DataError("the test needs labels: pass a file that has them, or a pair (x, y).")
        task.refuse_missing(other.y, other.source, other.target)
    found = task.look(own.y, own.source, own.target, kind, limits)
    said(found.found)

    encoded = found.encode(own.y, np.arange(len(own)), own.source)
    parts = split.draw(encoded, seed, with_test=other is None)
    tested, test_rows = (own, parts.test) if other is None else (other, np.arange(len(other)))
    test_encoded = encoded[parts.test] if other is None else found.encode(other.y, test_rows, other.source)
    if len(own) < FEW_ROWS or not (len(parts.train) > 1 and len(parts.validation) and len(test_rows)):
        raise DataError(
            f"{own.source}: {len(own):,} rows are too few to train on some, choose by others and test on the rest; "
            f"it takes at least {FEW_ROWS}."
        )
    said(
        f"{len(parts.train):,} rows to train, {len(parts.validation):,} to choose by, {len(test_rows):,} to test once"
        + (f" (all of {other.source})." if other is not None else ".")
    )

    preparation, features = Preparation.fit(_take(own.x, parts.train), own.source)
    validation = preparation(_take(own.x, parts.validation), own.source)
    test_features = preparation(_take(tested.x, test_rows), tested.source)
    network, history = train(
        features,
        found.target(encoded[parts.train]),
        validation,
        found.target(encoded[parts.validation]),
        found.columns,
        recipe,
        seed,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        progress=progress,
    )
    log_p = [log_probabilities(network, rows).numpy() for rows in (features, validation, test_features)]
    calibrator, candidates = Calibrator(), None
    if calibrated:
        calibrator, candidates = calibrate.choose(log_p[1], encoded[parts.validation], seed)
    p = [np.exp(calibrator.of_logits(rows)) for rows in log_p]

    labels = [
        _labels(found, own.y[parts.train]),
        _labels(found, own.y[parts.validation]),
        _labels(found, tested.y[test_rows]),
    ]
    measured = evaluate(
        Predictions.from_arrays(
            p[2][:, 1] if found.kind == "range" else p[2],
            labels[2],
            classes=list(found.classes) or None,
            rows=test_rows,
            task=found.kind,
            low=found.low,
            high=found.high,
            source=tested.source,
            split="test",
        ),
        title=f"{Path(own.source).stem}: what a network knows of {own.target}",
    )
    record = _record(
        measured,
        history,
        candidates,
        numbers={
            "validation_cross_entropy": _mean(calibrator.of_logits(log_p[1]), encoded[parts.validation]),
            "uncalibrated_cross_entropy": _mean(log_p[2], test_encoded),
        },
        facts={
            "source": own.source,
            "target": own.target,
            "found": found.found,
            "splits": {"train": len(parts.train), "validation": len(parts.validation), "test": len(test_rows)},
            "features": preparation.features,
            "calibration": calibrator.kind,
            "seed": seed,
            "recipe": recipe.to_dict(),
            "command": command,
            "versions": versions(),
            "notes": [*measured.facts.get("notes", []), *preparation.notes, *_rare(found, encoded)],
        },
    )
    predicted = Predicted(
        rows=np.concatenate([parts.train, parts.validation, test_rows]),
        splits=np.repeat(["train", "validation", "test"], [len(rows) for rows in p]),
        labels=np.concatenate(labels),
        probabilities=np.concatenate(p),
    )
    return Run(found, recipe, preparation, network, calibrator, record, predicted)


def versions() -> dict[str, str]:
    """The versions of what a figure may depend on."""
    found = {"python": platform.python_version()}
    for name in ("crossent", "torch", "numpy", "scipy", "scikit-learn", "skrub"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _take(x: Any, rows: np.ndarray) -> Any:
    """Some rows; a table's keep their numbers as its index, so that trouble with one can be said to be in that row."""
    return x.iloc[rows] if hasattr(x, "iloc") else x[rows]


def _labels(found: task.Task, y: np.ndarray) -> np.ndarray:
    """Labels as they are written down: numbers of a range, or the names of classes."""
    if found.kind == "range":
        return np.asarray(y, dtype=np.float64)
    return np.array([task.class_name(value) for value in y])


def _mean(log_p: np.ndarray, encoded: np.ndarray) -> Number:
    return Number(float(costs_of_logs(log_p, encoded).mean()), "nats", n=len(encoded))


def _rare(found: task.Task, encoded: np.ndarray) -> list[str]:
    if found.kind == "range":
        return []
    counts = np.bincount(encoded, minlength=len(found.classes))
    rare = [f"{name} ({count})" for name, count in zip(found.classes, counts.tolist(), strict=True) if count < 5]
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
