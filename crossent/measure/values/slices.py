"""Where the cost falls: slice by slice, on how few rows, and the rows that cost most."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.cells import calibration_bins
from crossent.measure.sums.compensated import Compensated
from crossent.measure.sums.folds import Folds
from crossent.measure.sums.groups import fold_histograms
from crossent.measure.sums.hashing import hashed
from crossent.measure.sums.histograms import Histograms, narrow_code
from crossent.measure.sums.likelihood import FLOOR, Rows
from crossent.measure.sums.sample import Sample
from crossent.measure.sums.sums import Layout, Sums
from crossent.measure.values.by_class import columns
from crossent.measure.values.by_slice import MOST_PARTS, calibration_errors, parts_of_slice, rows_of_slice
from crossent.measure.values.means import NOT_OF_TEXTS, Evidence, errors, likelihood, truth
from crossent.measure.values.per_byte import bits_per_byte
from crossent.record import Curve, Number, Table

COSTLIEST = 20
MOST_SLICES = 1000
"""Beyond so many values a column is an id, not a slice."""

CURVE_FOLDS = 32
"""Folds of groups that the curve of a slice of two classes is judged by."""

_Float = NDArray[np.float64]
Claims = tuple[_Float, _Float, NDArray[Any]]
Costly = tuple[float, bool, Any, int, int, float, float, float, float]
"""−cost, whether the id is text, the id, label and predicted class, probability of the label, both in the range, and
the probability of the predicted class."""


def costliest_of(batch: Predictions, rows: Rows, dearer_than: float = -math.inf) -> tuple[Costly, ...]:
    """Give the 20 rows of a batch that cost most, the costliest first; equal ones by their ids. Of weight 0 none.

    Rows that cost less than ``dearer_than`` are known to be of no use.
    """
    cost = rows.cost
    here = np.flatnonzero(cost >= dearer_than if batch.weights is None else (cost >= dearer_than) & (batch.weights > 0))
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
    ``label`` and ``predicted`` are in the target's own unit and there is no ``probability``. A document has none of
    the three. Costs are in nats.

    With ``usual`` (classes,), the mean probability that each class was given over the rows labelled with it,
    ``suspect`` says whether the label may be mistaken: another class is the most probable, and was given as much as it
    usually gets where it is the label (Northcutt, Jiang and Chuang 2021, *Confident learning*, eq. 1 and 2, with the
    most probable class alone as candidate). A class that no row is labelled with makes no row suspect.
    """
    table: Table = {"row": [row[2] for row in kept]}
    if task == "range":
        table["label"] = [low + row[6] * (high - low) for row in kept]
        table["predicted"] = [low + row[7] * (high - low) for row in kept]
    elif task != "text":
        table["label"] = [classes[row[3]] for row in kept]
        table["predicted"] = [classes[row[4]] for row in kept]
        table["probability"] = [row[5] for row in kept]
    table["cross_entropy"] = [-row[0] + 0.0 for row in kept]
    if usual is not None:
        table["suspect"] = [row[4] != row[3] and bool(row[8] >= usual[row[4]]) for row in kept]
    return table


@dataclass(frozen=True, eq=False)
class Slices:
    """The sums of each value of one column: ``values``, in order; ``sums``, a line for each, and so the others.

    ``bins`` (values, 3, 15) and ``predicted`` are what was claimed beside what came, of documents None; ``folds``
    where rows come in groups or labels are distributions over more than two classes; ``curves``, of two classes in
    groups, coarse histograms, CURVE_FOLDS lines for each value.
    """

    values: tuple[str, ...]
    sums: Sums
    bins: Compensated | None = None
    predicted: Histograms | None = None
    folds: Folds | None = None
    curves: Histograms | None = None

    @classmethod
    def of(cls, name: str, layout: Layout, batch: Predictions, rows: Rows, claimed: Claims | None) -> Slices:
        """Add up a batch by the values of a column; ``claimed`` of each row, 1 less that, and what came of it."""
        values, code = np.unique(batch.slices[name].astype(str), return_inverse=True)
        _bounded(name, values.size)
        sums = Sums.of(replace(layout, by_class=False), batch, rows, code, values.size)
        two, grouped, w = layout.classes == 2, batch.groups is not None, batch.weights
        folds = Folds.of_slices(batch, rows, code, values.size) if grouped or (layout.soft and not two) else None
        found = cls(tuple(values.tolist()), sums, folds=folds)
        if claimed is None:
            return found
        p, rest, came = claimed
        curves = None
        if batch.groups is not None and two:
            numbers = hashed(batch.groups)
            curves = fold_histograms(
                batch.probabilities, batch.labels, w, numbers, code, values.size, folds=CURVE_FOLDS
            )
        return replace(
            found,
            bins=calibration_bins(p, came, w, code, values.size),
            predicted=Histograms.of(code, narrow_code(p, rest), values.size, p, came, w),
            curves=curves,
        )

    def merge(self, name: str, other: Slices) -> Slices:
        """Add the sums of the same values; values that only one has stay as they are."""
        values = tuple(sorted({*self.values, *other.values}))
        _bounded(name, len(values))
        place = {value: at for at, value in enumerate(values)}
        mine, theirs = ([place[value] for value in one.values] for one in (self, other))
        sums = _wide(self.sums, mine, len(values)) + _wide(other.sums, theirs, len(values))

        def both(one: Any, two: Any) -> Any:
            return None if one is None or two is None else one.on(mine, len(values)) + two.on(theirs, len(values))

        bins = curves = None
        if self.bins is not None and other.bins is not None:
            bins = self.bins.placed(mine, len(values)) + other.bins.placed(theirs, len(values))
        if self.curves is not None and other.curves is not None:
            size = len(values) * CURVE_FOLDS
            curves = self.curves.on(_folds_of(mine), size) + other.curves.on(_folds_of(theirs), size)
        predicted, folds = both(self.predicted, other.predicted), both(self.folds, other.folds)
        return Slices(values, sums, bins, predicted, folds, curves)

    def evidence(self, floor: float | None, grouped: bool) -> list[Evidence]:
        """What the rows of each value leave behind, of those that have any weight."""
        found = []
        for line in range(len(self.values)):
            if self.sums.count("rows", line) == 0:
                continue
            folds = None if self.folds is None else self.folds.groups(line)
            if folds is not None and self.curves is not None:
                folds = replace(folds, folds=self.curves.lines(line * CURVE_FOLDS, CURVE_FOLDS))
            groups, rows = (folds, None) if grouped else (None, folds)
            two = self.sums.layout.classes == 2 and self.predicted is not None
            cells = self.predicted.line(line) if two and self.predicted is not None else None
            of = Evidence(self.sums, line, cells, groups=groups, floor=floor, folds=rows)
            found += [of] if of.weight > 0 else []
        return found

    def errors(self, of: Evidence) -> dict[str, Number]:
        """The calibration errors of one line; none of documents."""
        if self.bins is None or self.predicted is None:
            return {}
        return calibration_errors(of, self.bins.value[of.which], self.predicted.line(of.which))


def _bounded(name: str, count: int) -> None:
    if count > MOST_SLICES:
        raise DataError(
            f"the column {name!r} has more than {MOST_SLICES:,} values, and each would be a slice. Name a column with "
            "fewer in by= (--by), or one for groups in group= (--group)."
        )


def _folds_of(place: list[int]) -> list[int]:
    """The lines of the folds of these lines."""
    return [at * CURVE_FOLDS + fold for at in place for fold in range(CURVE_FOLDS)]


def _wide(sums: Sums, place: list[int], size: int) -> Sums:
    counts = np.zeros((size, sums.counts.shape[1]), np.int64)
    counts[place] = sums.counts
    return Sums(sums.layout, sums.floats.placed(place, size), counts)


def slices(
    found: dict[str, Slices], floor: float | None, task: str, grouped: bool = False, sample: Sample | None = None
) -> Table:
    """Give one line per slice, the one with the largest share of the loss first.

    ``column`` and ``slice``; ``rows`` and their ``share`` (of the weight); ``share_of_loss``; ``cross_entropy`` in nats
    with ``low`` and ``high``. Then every number that the record has of all rows: ``label_entropy`` and
    ``information_gained`` in bits, ``skill``, ``perplexity``, ``uncertainty``, ``discrimination`` and
    ``miscalibration`` (of the MOST_PARTS slices of most weight), ``truth_entropy`` and ``kl_divergence``, ``accuracy``,
    ``top_3_accuracy``, ``brier``, or ``mae`` and ``rmse``, ``ece`` and ``smooth_ece``, ``bits_per_byte``, and
    ``impossible_rows``; ``…_low`` and ``…_high`` are the ends of their intervals. Yardsticks are the slice's own
    frequencies. Of rows in groups (``grouped``) intervals are those of 64 folds of them, of the parts of two classes
    32. With a ``floor``, for sets with impossible rows, there is ``cross_entropy_floored``, and ``share_of_loss`` and
    the parts are of that. ``sample`` has the rows that more classes are recalibrated on.
    """
    lines: list[dict[str, Any]] = []
    numbers: list[dict[str, Number]] = []
    evidence = {column: part.evidence(floor, grouped) for column, part in found.items()}
    by_weight = sorted((-of.weight, column, of.which) for column, each in evidence.items() for of in each)
    with_parts = {(column, which) for _, column, which in by_weight[:MOST_PARTS]}
    for column, part in found.items():
        each = evidence[column]
        whole = sum(of.weight for of in each)
        loss = sum(of.cross_entropy * of.weight for of in each)
        for of in each:
            share_of_loss = of.cross_entropy * of.weight / loss if loss > 0 else None
            line = {"column": column, "slice": part.values[of.which], "rows": of.n, "share": of.weight / whole}
            lines.append(line | {"share_of_loss": share_of_loss})
            mine = of
            if sample is not None:
                mine = replace(of, sample=rows_of_slice(sample, sorted(found).index(column), part.values[of.which]))
            wanted = task != "text" and (column, of.which) in with_parts
            parts = parts_of_slice(mine, task) if wanted else {}
            numbers.append(_numbers(of, floor, task, parts) | part.errors(of))
    order = sorted(
        range(len(lines)),
        key=lambda i: (lines[i]["column"], -(lines[i]["share_of_loss"] or 0.0), lines[i]["slice"]),
    )
    if not order:
        return {}
    table: Table = {name: [lines[i][name] for i in order] for name in lines[0]}
    names = tuple(dict.fromkeys(name for line in numbers for name in line))
    cells = columns([numbers[i] for i in order], names)
    nothing = [None] * len(order)
    table |= {
        "cross_entropy": cells.pop("cross_entropy"),
        "low": cells.pop("cross_entropy_low", nothing),
        "high": cells.pop("cross_entropy_high", nothing),
    }
    impossible = [int(count) for count in cells.pop("impossible_rows")]
    return table | cells | {"impossible_rows": impossible}


def _numbers(of: Evidence, floor: float | None, task: str, parts: dict[str, Number]) -> dict[str, Number]:
    exact = replace(of, floor=None)
    found = likelihood(exact, replace(of, floor=FLOOR if floor is None else floor)) | bits_per_byte(exact)
    found.pop("cross_entropy_bits")  # the same once more
    if floor is not None:
        found.setdefault("cross_entropy_floored", found["cross_entropy"])
    if task == "text":
        return {name: number for name, number in found.items() if name not in NOT_OF_TEXTS}
    return found | parts | truth(exact) | errors(exact, task)


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
