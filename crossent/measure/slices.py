"""Where the cost falls: class by class, slice by slice, on how few rows, and the rows that cost most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.cells import Cells
from crossent.measure.compensated import summed
from crossent.measure.decomposition import one_class
from crossent.measure.groups import FOLDS
from crossent.measure.hashing import hashed
from crossent.measure.likelihood import Rows
from crossent.measure.means import Evidence, clustered, likelihood
from crossent.measure.predictions import Predictions
from crossent.measure.sums import Layout, Sums
from crossent.record import Curve, Table

COSTLIEST = 20
MOST_SLICES = 1000
"""Beyond so many values a column is an id, not a slice."""

_Float = NDArray[np.float64]
Costly = tuple[float, bool, Any, int, int, float, float, float, float]
"""−cost, whether the id is text, the id, label and predicted class, probability of the label, both in the range, and
the probability of the predicted class."""


def per_class(of: Evidence, classes: tuple[str, ...], cells: Cells | None = None, floor: float | None = None) -> Table:
    """Give one line per class, in the order of the columns.

    ``rows`` (of weights: their sum) and ``share`` of the labels; ``cross_entropy`` in nats over the rows of that class;
    ``mean_probability`` that the class was given over all rows, to be held beside ``share``; ``recall``, the
    share of its rows that were predicted as it, and ``precision``, the share of rows predicted as it that
    were; and, of more than two classes, by class against the rest, ``discrimination`` and ``miscalibration`` with its
    interval. A cell that would be 0/0 is None.
    """
    rows, right, predicted = (of.sums.total(name, of.which) for name in ("label", "right", "predicted"))
    counted = of.sums.count("weighted", of.which) == 0 and not of.sums.layout.soft
    table: Table = {
        "class": list(classes),
        "rows": [int(x) for x in rows] if counted else rows.tolist(),
        "share": of.frequencies.tolist(),
    }
    if not of.sums.layout.soft:
        kept = of.sums.total("cost", of.which)
        cost = (kept[0] + kept[1])[:, 1]
        exact = np.where(impossible_by_class(of) > 0, np.inf, cost)
        table["cross_entropy"] = _ratios(exact, rows)
    table["mean_probability"] = (of.sums.total("probability", of.which) / of.weight).tolist()
    table["recall"] = _ratios(right, rows) if not of.sums.layout.soft else [None] * len(classes)
    table["precision"] = _ratios(right, predicted)
    if cells is not None:
        parts = [one_class(cells[c], floor, of.groups is not None) for c in range(len(classes))]
        for name in ("discrimination", "miscalibration", "miscalibration_low", "miscalibration_high"):
            table[name] = [None if part is None else part[name] for part in parts]
    return table


def impossible_by_class(of: Evidence) -> _Float:
    """The weight of impossible rows by class: rows below the floor less those whose cost is finite."""
    kept = of.sums.total("cost", of.which)
    lost = kept[2][:, 0] - kept[1][:, 0]
    return np.where(lost > 1e-9 * np.maximum(kept[2][:, 0], 1e-300), lost, 0.0)


def _ratios(over: NDArray[Any], under: NDArray[Any]) -> list[float | None]:
    return [float(a / b) if b else None for a, b in zip(over, under, strict=True)]


def costliest_of(batch: Predictions, rows: Rows, dearer_than: float = -math.inf) -> tuple[Costly, ...]:
    """Give the 20 rows of a batch that cost most, the costliest first; equal ones by their ids.

    Rows that cost less than ``dearer_than`` are known to be of no use.
    """
    cost = rows.cost
    here = np.flatnonzero(cost >= dearer_than)
    if here.size > COSTLIEST:
        here = here[cost[here] >= np.partition(cost[here], -COSTLIEST)[-COSTLIEST]]
    ids = batch.rows
    if here.size > 4 * COSTLIEST:  # very many equal ones: their ids decide
        order = np.lexsort((ids[here].astype(str) if ids.dtype == object else ids[here], -cost[here]))
        here = here[order[: 4 * COSTLIEST]]
    p, y, soft = batch.probabilities[here], rows.label[here], batch.labels.dtype.kind == "f"
    truth = batch.labels[here] if batch.labels.ndim == 1 else y
    given, greatest = p[np.arange(here.size), y], p[np.arange(here.size), rows.predicted[here]]
    return tuple(
        sorted(
            (-c, isinstance(i, str), i, int(label), int(best), float(chance), float(t) if soft else 0.0, mean, most)
            for c, i, label, best, chance, t, mean, most in zip(
                cost[here].tolist(),
                ids[here].tolist(),
                y,
                rows.predicted[here],
                given,
                truth,
                p[:, -1].tolist(),
                greatest.tolist(),
                strict=True,
            )
        )[:COSTLIEST]
    )


def costliest(
    kept: tuple[Costly, ...], task: str, classes: tuple[str, ...], low: float, high: float, usual: _Float | None = None
) -> Table:
    """Give the 20 rows that cost most as a table.

    ``predicted`` is the most probable class and ``probability`` what the label was given; for a range
    ``label`` and ``predicted`` are in the target's own unit and there is no ``probability``. Costs are in
    nats.

    With ``usual`` (classes,), the mean probability that each class was given over the rows labelled with it,
    ``suspect`` says whether the label may be mistaken: another class is the most probable, and was given as much as it
    usually gets where it is the label (Northcutt, Jiang and Chuang 2021, *Confident learning*, eq. 1 and 2, with the
    most probable class alone as candidate). A class that no row is labelled with makes no row suspect.
    """
    table: Table = {"row": [row[2] for row in kept]}
    if task == "range":
        table["label"] = [low + row[6] * (high - low) for row in kept]
        table["predicted"] = [low + row[7] * (high - low) for row in kept]
    else:
        table["label"] = [classes[row[3]] for row in kept]
        table["predicted"] = [classes[row[4]] for row in kept]
        table["probability"] = [row[5] for row in kept]
    table["cross_entropy"] = [-row[0] + 0.0 for row in kept]
    if usual is not None:
        table["suspect"] = [row[4] != row[3] and bool(row[8] >= usual[row[4]]) for row in kept]
    return table


@dataclass(frozen=True, eq=False)
class Slices:
    """The sums of each value of one column: ``values``, in order; ``sums``, a line for each; and where rows come in
    groups ``folds`` (values, FOLDS, 3), the weight, cost (where it is finite) and floored cost of each fold of groups.
    """

    values: tuple[str, ...]
    sums: Sums
    folds: _Float | None = None

    @classmethod
    def of(cls, name: str, layout: Layout, batch: Predictions, rows: Rows) -> Slices:
        """Add up a batch by the values of a column."""
        values, code = np.unique(batch.slices[name].astype(str), return_inverse=True)
        _bounded(name, values.size)
        sums = Sums.of(layout, batch, rows, code, values.size)
        folds = None
        if batch.groups is not None:
            both = code * FOLDS + (hashed(batch.groups) % np.uint64(FOLDS)).astype(np.int64)
            w = np.ones(len(batch)) if batch.weights is None else batch.weights
            finite = np.where(np.isfinite(rows.cost), rows.cost, 0.0)
            lines = [summed(both, x, values.size * FOLDS) for x in (w, w * finite, w * rows.floored)]
            folds = np.stack(lines, axis=1).reshape(values.size, FOLDS, 3)
        return cls(tuple(values.tolist()), sums, folds)

    def merge(self, name: str, other: Slices) -> Slices:
        """Add the sums of the same values; values that only one has stay as they are."""
        values = tuple(sorted({*self.values, *other.values}))
        _bounded(name, len(values))
        place = {value: at for at, value in enumerate(values)}
        mine, theirs = ([place[value] for value in one.values] for one in (self, other))
        sums = _wide(self.sums, mine, len(values)) + _wide(other.sums, theirs, len(values))
        folds = None
        if self.folds is not None and other.folds is not None:
            folds = np.zeros((len(values), FOLDS, 3))
            folds[mine] += self.folds
            folds[theirs] += other.folds
        return Slices(values, sums, folds)


def _bounded(name: str, count: int) -> None:
    if count > MOST_SLICES:
        raise DataError(
            f"the column {name!r} has more than {MOST_SLICES:,} values, and each would be a slice. Name a column with "
            "fewer in by= (--by), or one for groups in group= (--group)."
        )


def _wide(sums: Sums, place: list[int], size: int) -> Sums:
    wide = Sums.zeros(sums.layout, size)
    wide.floats.high[place] = sums.floats.high
    np.asarray(wide.floats.low)[place] = sums.floats.low
    wide.counts[place] = sums.counts
    return wide


def slices(found: dict[str, Slices], floor: float | None, task: str) -> Table:
    """Give one line per slice, the one with the largest share of the loss first.

    ``column`` and ``slice``; ``rows`` and their ``share`` (of the weight); ``share_of_loss``; ``cross_entropy`` in nats
    with ``low`` and ``high``; ``label_entropy``, ``information_gained`` in bits, ``skill``; ``accuracy`` and ``brier``,
    or ``rmse``; ``impossible_rows``. Yardsticks are the slice's own frequencies. With groups the interval is that of 64
    folds of them. With a ``floor``, for sets with impossible rows, all but ``cross_entropy`` is of the floored costs.
    """
    lines: list[dict[str, Any]] = []
    for column, part in found.items():
        floored = [Evidence(part.sums, v, floor=floor) for v in range(len(part.values)) if part.sums.count("rows", v)]
        whole = sum(of.weight for of in floored)
        loss = sum(of.cross_entropy * of.weight for of in floored)
        lines += [_line(column, part, of, whole, loss, task) for of in floored if of.weight > 0]
    lines.sort(key=lambda line: (line["column"], -(line["share_of_loss"] or 0.0), line["slice"]))
    return {name: [line[name] for line in lines] for name in lines[0]} if lines else {}


def _line(column: str, part: Slices, of: Evidence, whole: float, loss: float, task: str) -> dict[str, Any]:
    numbers = likelihood(replace(of, floor=None), of)
    number = numbers["cross_entropy"]
    low, high = number.low, number.high
    if part.folds is not None:
        weight, cost = part.folds[of.which, :, 0], part.folds[of.which, :, 1 if of.floor is None else 2]
        spread = clustered(cost - of.cross_entropy * weight, weight, float(np.sum(cost**2)))
        low, high = (spread and spread.interval(number.value)) or (None, None)
    known = math.isfinite(number.value)
    skill = numbers.get("skill")
    hit, squared = part.sums.total("hit", of.which), part.sums.total("squared", of.which)
    line = {
        "column": column,
        "slice": part.values[of.which],
        "rows": of.n,
        "share": of.weight / whole,
        "share_of_loss": of.cross_entropy * of.weight / loss if loss > 0 else None,
        "cross_entropy": number.value,
        "low": low if known else None,
        "high": high if known else None,
        "label_entropy": numbers["label_entropy"].value,
        "information_gained": numbers["information_gained"].value,
        "skill": None if skill is None else skill.value,
    }
    if task == "range":
        line["rmse"] = math.sqrt(squared[1] / of.weight)
    elif task != "text":
        line |= {"accuracy": float(hit[0]) / of.weight, "brier": float(squared[1]) / of.weight}
    return line | {"impossible_rows": of.impossible}


def concentration(by_cost: _Float, impossible: float, floor: float) -> Curve:
    """Give share of the rows, costliest first → share of the loss they carry, from Σ w and Σ w cost by cell.

    Within a cell, whose costs differ by 6 % at most, the curve is straight. If rows are ``impossible`` (their weight)
    no row counts for more than the floor allows.
    """
    weight, cost = by_cost[:, ::-1].copy()
    weight[-1] -= impossible  # they stand in the last cell, with a cost of 0
    if impossible > 0:
        cost = np.minimum(cost, -math.log(floor) * weight)
        weight, cost = np.append(impossible, weight), np.append(-math.log(floor) * impossible, cost)
    here = weight > 0
    x, y = np.cumsum(weight[here]), np.cumsum(cost[here])
    x = np.concatenate([[0.0], x / x[-1]])
    y = np.concatenate([[0.0], y / y[-1]]) if y[-1] > 0 else x
    return Curve(x.tolist(), y.tolist(), "share of rows, the costliest first", "share of the loss")
