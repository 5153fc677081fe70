"""What is left to win: where the nats of a finished run are, and which of them can be had.

    calibration      miscalibration on the test rows: repairable now, without learning anything
    overfitting      what the networks lose between rows they learnt from and rows they did not
    a baseline       whether trees or a linear model, asked in passing, tell classes apart that the network does not
    noise            what nobody can win: labels of equal rows that differ, or the entropy of soft labels
    the worst class  where most of the loss is made, for its number of rows

The parts are not a sum: each is one way of looking at the same loss.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import require
from crossent.measure.sums.likelihood import costs_of_logs
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.repeats import hashes
from crossent.minimise.run import Run
from crossent.record import Record, Table

MOST_ROWS = 10_000
"""Rows that baselines learn from at most: they are asked in passing."""
MOST_NUMBERS = 2_000_000
"""Features of these rows together, at most; wider tables give fewer rows."""
MOST_CLASSES = 100
"""Beyond which no baseline is asked: trees grow one for each class in every round."""
LEAST_REPEATED = 0.02
"""The share of rows that have a twin, below which twins say nothing of the noise."""


def with_left(run: Run, problem: Problem, test_x: NDArray[np.float32], test_y: NDArray[Any]) -> Run:
    """The same run with the table ``left`` in its record: part, nats, low, high, meaning.

    ``problem`` are the rows learnt from, ``test_x`` (n, d) the prepared test rows, ``test_y`` their encoded labels.
    """
    parts = [_calibration(run.record), _overfitting(run.record)]
    if run.task.kind != "range" and test_x.ndim == 2 and test_x.dtype.kind == "f":
        parts += _baselines(run, problem, test_x, test_y)
    parts += [*_noise(problem, run), *_worst_class(run.record)]
    rows = [part for part in parts if part is not None]
    table: Table = {
        name: [row[place] for row in rows] for place, name in enumerate(("part", "nats", "low", "high", "meaning"))
    }
    return replace(run, record=replace(run.record, tables={**run.record.tables, "left": table}))


Part = tuple[str, float, float | None, float | None, str]


def _calibration(record: Record) -> Part | None:
    found = record.numbers.get("miscalibration")
    if found is None:
        return None
    word = "Repairable now: crossent calibrate." if found.low is not None and found.low > 0 else "Nothing to repair."
    return "calibration", found.value, found.low, found.high, f"Miscalibration of the test rows. {word}"


def _overfitting(record: Record) -> Part:
    gap = record["validation_cross_entropy"].value - record["training_cross_entropy"].value
    return (
        "overfitting", gap, None, None,
        "Rows held out cost more than rows learnt: more rows, augmentation or a stronger penalty win part of it.",
    )  # fmt: skip


def _baselines(run: Run, problem: Problem, test_x: NDArray[np.float32], test_y: NDArray[Any]) -> list[Part]:
    """What two models that learn in seconds make of the test rows, held against the run row by row."""
    ensemble = require("sklearn.ensemble", "cli", "a baseline")
    linear = require("sklearn.linear_model", "cli", "a baseline")
    pipeline = require("sklearn.pipeline", "cli", "a baseline")
    preprocessing = require("sklearn.preprocessing", "cli", "a baseline")
    impute = require("sklearn.impute", "cli", "a baseline")
    n = min(len(problem), MOST_ROWS, max(100, MOST_NUMBERS // max(1, problem.x.shape[1])))
    some = np.linspace(0, len(problem) - 1, n).astype(int)
    target = problem.target.numpy()[some]
    y = target.argmax(1) if target.ndim == 2 else target
    if not 2 <= len(np.unique(y)) <= MOST_CLASSES or run.predicted is None:
        return []
    models = {
        "a linear model": pipeline.make_pipeline(
            impute.SimpleImputer(keep_empty_features=True),
            preprocessing.StandardScaler(),
            linear.LogisticRegression(max_iter=200),
        ),
        "boosted trees": ensemble.HistGradientBoostingClassifier(
            max_iter=100, early_stopping=bool(np.bincount(y)[np.unique(y)].min() > 1 and n >= 200), random_state=0
        ),
    }
    with np.errstate(divide="ignore"):
        own = costs_of_logs(np.log(run.predicted.probabilities[run.predicted.splits == "test"]), test_y)
    found: list[Part] = []
    for name, model in models.items():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # one that has not converged is a baseline too
            model.fit(problem.x.numpy()[some], y)
            said = model.predict_proba(test_x)
        p = np.full((len(said), run.task.columns), 1e-6)
        p[:, model.classes_] = np.maximum(said, 1e-6)  # an impossible label would make the baseline infinitely bad
        difference = own - costs_of_logs(np.log(p / p.sum(1, keepdims=True)), test_y)
        mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(own)))
        if not np.isfinite(mean):
            continue
        low, high = mean - 1.96 * error, mean + 1.96 * error
        word = "It knows something that the network does not." if low > 0 else "The network knows what it knows."
        rows = f" (on {n:,} of the rows)" if n < len(problem) else ""
        found.append((f"against {name}", mean, low, high, f"Test cross-entropy less that of {name}{rows}. {word}"))
    return found


def _noise(problem: Problem, run: Run) -> list[Part]:
    """What labels of equal rows differ by, or the entropy of soft labels: nobody gets below it."""
    if run.task.kind != "range" and problem.target.is_floating_point():
        q = problem.distribution.numpy()
        entropy = -np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1)), 0), axis=1)
        weight = None if problem.weight is None else problem.weight.numpy()
        value = float(np.average(entropy, weights=weight))
        return [("noise", value, None, None, "The entropy of the soft labels themselves: nobody gets below it.")]
    if run.task.kind == "range" or problem.x.dim() > 2 or problem.x.numel() > 50_000_000:
        return []
    keys = np.unique(hashes(problem.x.numpy()), return_inverse=True)[1]
    size = np.bincount(keys)
    twins = size[keys] > 1
    if twins.mean() < LEAST_REPEATED:
        return []
    place = np.cumsum(size > 1) - 1  # of those that have twins: a row for each, of a number for each class
    counts = np.zeros((int(place[-1]) + 1, run.task.columns))
    np.add.at(counts, (place[keys[twins]], problem.target.numpy()[twins]), 1)
    total = counts.sum(1, keepdims=True)
    p = counts / total
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=1)
    entropy += ((counts > 0).sum(1) - 1) / (2 * total[:, 0])  # Miller 1955: what few rows hide
    value = float(np.average(entropy, weights=total[:, 0]))
    return [
        (
            "noise", value, None, None,
            f"Equal rows have different labels: on the {twins.mean():.0%} of rows with a twin nobody gets below it.",
        )
    ]  # fmt: skip


def _worst_class(record: Record) -> list[Part]:
    """The class with the largest part of the loss for its rows."""
    table = record.tables.get("per_class", {})
    loss, rows, names = table.get("cross_entropy"), table.get("rows"), table.get("class")
    if not (loss and rows and names) or len(names) < 2:
        return []
    total = sum(a * b for a, b in zip(loss, rows, strict=True) if a is not None and np.isfinite(a))
    known = [place for place in range(len(names)) if loss[place] is not None and np.isfinite(loss[place])]
    if not known or total <= 0:
        return []
    worst = max(known, key=lambda place: loss[place])
    share = loss[worst] * rows[worst] / total
    return [
        (
            "the worst class", float(loss[worst]), None, None,
            f"{names[worst]}: {rows[worst] / sum(rows):.0%} of the rows and {share:.0%} of the loss.",
        )
    ]  # fmt: skip
