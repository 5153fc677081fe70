"""What is left to win: where the nats of a finished run are, and which of them can be had.

    calibration      miscalibration on the test rows: repairable now, without learning anything
    overfitting      what the networks lose between rows they learnt from and rows they did not
    a baseline       whether trees or a linear model, asked in passing, tell rows apart that the network does not
    noise            what nobody can win: labels of equal rows that differ, or the entropy of soft labels
    the worst class  where most of the loss is made, for its number of rows
    slices           values of columns whose rows cost surely more than the others, above what their labels always cost

The parts are not a sum: each is one way of looking at the same loss.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import entr
from torch import Tensor

from crossent.errors import require
from crossent.measure.intervals.cluster import cluster_mean
from crossent.measure.sums.likelihood import costs_of_logs
from crossent.minimise.data.parts import Part
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
BINS_OF_WEIGHTS = 63
"""Where rows count differently: scikit-learn then sorts a column anew for every edge of a bin."""
MOST_COLUMNS, MOST_VALUES, LEAST_OF_A_SLICE = 300, 50, 30
"""Columns that slices are looked for in, values of one that are slices, and rows that make one."""
SLICES_SAID = 3


Line = tuple[str, float, float | None, float | None, str]
"""A part, its nats and their interval, if there is one, and what it means."""


def with_left(run: Run, problem: Problem, test_x: Tensor, judge: Part) -> Run:
    """The same run with the table ``left`` in its record: part, nats, low, high, meaning.

    ``problem`` are the rows learnt from, ``test_x`` (n, …) the test rows as the network reads them, and ``judge`` what
    they were before. Weights count in all of it.
    """
    parts = [_calibration(run.record), _overfitting(run.record)]
    own = _costs(run, judge)
    if own is not None and test_x.ndim == 2 and test_x.is_floating_point():
        parts += _baselines(run, problem, test_x, judge, own)
    parts += [*_noise(problem, run), *_worst_class(run.record)]
    if own is not None and hasattr(judge.x, "columns"):
        parts += _slices(judge.x, judge.weight, own, _least(judge.encoded))
    return _with(run, parts)


def with_left_of_ones_own(run: Run, judged_by: Problem) -> Run:
    """The same for a network and loaders of the user's own, of which nobody knows what rows of theirs were learnt.

    ``judged_by`` are the rows that the epoch was chosen by.
    """
    return _with(run, [_calibration(run.record), *_noise(judged_by, run), *_worst_class(run.record)])


def _with(run: Run, parts: list[Line | None]) -> Run:
    rows = [part for part in parts if part is not None]
    table: Table = {
        name: [row[place] for row in rows] for place, name in enumerate(("part", "nats", "low", "high", "meaning"))
    }
    return replace(run, record=replace(run.record, tables={**run.record.tables, "left": table}))


def _costs(run: Run, judge: Part) -> NDArray[np.float64] | None:
    """What each test row cost, if none of them was infinite."""
    if run.predicted is None:
        return None
    with np.errstate(divide="ignore"):
        own = costs_of_logs(np.log(run.predicted.probabilities[run.predicted.splits == "test"]), judge.encoded)
    return own if np.isfinite(own).all() else None


def _calibration(record: Record) -> Line | None:
    found = record.numbers.get("miscalibration")
    if found is None:
        return None
    repairable = found.low is not None and found.low > 0
    word = "Repairable now: crossent calibrate." if repairable else "Nothing to repair that these rows show."
    return "calibration", found.value, found.low, found.high, f"Miscalibration of the test rows. {word}"


def _overfitting(record: Record) -> Line:
    gap = record["validation_cross_entropy"].value - record["training_cross_entropy"].value
    sentence = "Rows held out cost more than rows learnt: more rows, augmentation or a stronger penalty win part of it."
    return "overfitting", gap, None, None, sentence if gap > 0 else "Rows held out cost no more than rows learnt."


def _baselines(run: Run, problem: Problem, test_x: Tensor, judge: Part, own: NDArray[np.float64]) -> list[Line]:
    """What two models that learn in seconds make of the test rows, held against the run row by row.

    Soft labels, and the shares of a range, are rows that come once for each class, with the share as their weight.
    """
    ensemble = require("sklearn.ensemble", "cli", "a baseline")
    linear = require("sklearn.linear_model", "cli", "a baseline")
    pipeline = require("sklearn.pipeline", "cli", "a baseline")
    preprocessing = require("sklearn.preprocessing", "cli", "a baseline")
    impute = require("sklearn.impute", "cli", "a baseline")
    of_each = run.task.columns if problem.target.is_floating_point() else 1
    n = min(len(problem), MOST_ROWS, max(100, MOST_NUMBERS // max(1, problem.x.shape[1] * of_each)))
    some = problem.take(torch.linspace(0, len(problem) - 1, n, dtype=torch.float64).long())
    row, y, count = (part.numpy() for part in some.labels())
    classes, rows_of = np.unique(y, return_counts=True)
    if not 2 <= len(classes) <= MOST_CLASSES:
        return []
    x, alike = some.x.numpy()[row], bool((count == count[0]).all())
    weight = None if alike else count
    models = {
        "a linear model": pipeline.make_pipeline(
            impute.SimpleImputer(keep_empty_features=True),
            preprocessing.StandardScaler(),
            linear.LogisticRegression(max_iter=200),
        ),
        "boosted trees": ensemble.HistGradientBoostingClassifier(
            max_iter=100,
            max_bins=255 if alike else BINS_OF_WEIGHTS,
            early_stopping=bool(rows_of.min() > 1 and n >= 200),
            random_state=0,
        ),
    }
    found: list[Line] = []
    for name, model in models.items():
        counted = "logisticregression__sample_weight" if name == "a linear model" else "sample_weight"
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # one that has not converged is a baseline too
            model.fit(x, y, **{counted: weight})
            said = model.predict_proba(test_x.numpy())
        p = np.full((len(said), run.task.columns), 1e-6)
        p[:, model.classes_] = np.maximum(said, 1e-6)  # an impossible label would make the baseline infinitely bad
        difference = cluster_mean(own - costs_of_logs(np.log(p / p.sum(1, keepdims=True)), judge.encoded), judge.weight)
        low, high = difference.interval()
        word = "These rows cannot tell which is ahead."
        if low is not None and high is not None and not low <= 0 <= high:
            word = "The run is ahead." if high < 0 else "It knows something that the run does not."
        rows = f" (on {n:,} of the rows)" if n < len(problem) else ""
        sentence = f"Test cross-entropy less that of {name}{rows}. {word}"
        found.append((f"against {name}", difference.value, low, high, sentence))
    return found


def _noise(problem: Problem, run: Run) -> list[Line]:
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
            f"Equal rows have different labels: on the {_percent(twins.mean())} with a twin nobody gets below it.",
        )
    ]  # fmt: skip


def _worst_class(record: Record) -> list[Line]:
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
            f"class {names[worst]}", float(loss[worst]), None, None,
            f"The worst class: {_percent(rows[worst] / sum(rows))} of the rows and {_percent(share)} of the loss.",
        )
    ]  # fmt: skip


def _least(encoded: NDArray[Any]) -> NDArray[np.float64]:
    """What rows cost (n,) whoever predicts them: the entropy of soft labels, or of a share; nothing of a label."""
    if encoded.dtype.kind != "f":
        return np.zeros(len(encoded))
    shares = encoded if encoded.ndim == 2 else np.stack((1 - encoded, encoded), 1)
    return entr(shares).sum(1)


def _slices(
    table: Any, weight: NDArray[np.float64] | None, own: NDArray[np.float64], least: NDArray[np.float64]
) -> list[Line]:
    """Slices of the test rows that surely cost more than all do; one of a column, and first what costs most on them.

    Of ``own``, what rows cost (n,), counts what is above ``least``, which they cost whoever predicts them. The
    intervals of all slices that were looked at hold together.
    """
    if table.shape[1] > MOST_COLUMNS:
        return []
    weight = np.ones(len(table)) if weight is None else weight
    what = "the loss above the labels' own entropy" if least.any() else "the loss"
    own = own - least
    mean = float(np.average(own, weights=weight))
    looked_at = [
        (column, name, rows)
        for column in table.columns
        for name, rows in _cut(table[column])
        if LEAST_OF_A_SLICE <= np.count_nonzero(weight[rows]) < np.count_nonzero(weight)
    ]
    costly = []
    for column, name, rows in looked_at:
        found = cluster_mean(own[rows], weight[rows])
        low, high = found.interval(0.05 / len(looked_at))
        if low is not None and low > mean:
            share = float(weight[rows].sum() / weight.sum())
            costly.append((share * (found.value - mean), column, name, share, found.value, low, high))
    worst: dict[str, Any] = {}
    for each in sorted(costly, key=lambda each: -each[0]):
        worst.setdefault(each[1], each)
    return [
        (
            name, value, low, high,
            f"A costly slice: {_percent(share)} of the rows and {_percent(share * value / mean)} of {what}. "
            f"{len(looked_at):,} were looked at.",
        )
        for _, _, name, share, value, low, high in [*worst.values()][:SLICES_SAID]
    ]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(column: Any) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The slices of a column: each of its values where there are few, and else the quarters of its numbers."""
    pandas = require("pandas", "cli", "a table's columns")
    try:
        codes, values = pandas.factorize(column)
    except TypeError:  # cells that are lists, say
        return
    number = pandas.api.types.is_numeric_dtype(column) and not pandas.api.types.is_bool_dtype(column)
    yield f"{column.name} missing", codes < 0
    if len(values) <= (4 if number else MOST_VALUES):
        for code, value in enumerate(values):
            yield f"{column.name} = {value}", codes == code
    elif number:
        cells = column.to_numpy(dtype=np.float64, na_value=np.nan)
        inner = np.unique(np.nanquantile(cells, (0.25, 0.5, 0.75)))
        for low, high in pairwise([-np.inf, *inner.tolist(), np.inf]):
            said = [f"{low:g} <"] * (low > -np.inf) + [str(column.name)] + [f"≤ {high:g}"] * (high < np.inf)
            yield " ".join(said), (cells > low) & (cells <= high)
