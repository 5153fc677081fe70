"""One pass over any number of rows, and all that is said of them: a value of fixed size that adds up.

A ``Tally`` of no rows, one for each batch, ``merge``: in any order, in any grouping, in several processes, the numbers
are the same to the last bit (``sums.compensated``). Whatever is not a sum was made into one. Moments of cost and weight
by class give every mean and its interval (``sums``, ``means``); a histogram of predictions gives the calibrated curve
and with it the decomposition (``cells``, ``isotonic``); a histogram of costs gives the concentration; the costliest
rows and a sample of rows drawn by a hash are the largest, and the smallest, of a union (``slices``, ``sample``); rows
in groups are summed by group (``groups``), those of a slice or a class by few folds of groups (``folds``).

    pickled (``packing``)       two classes      ten classes     grows with
    sums, cells                       90 kB            70 kB     classes
    sample                                -           190 kB     its capacity
    groups, if given                 110 kB           120 kB     classes
    a slice                            3 kB             5 kB     classes, values of the column (1,000 at most)
      of rows in groups               11 kB             9 kB

    with weights, or labels that are shares, two to three times as much, as sums are no counts then; in memory 2 to 3 MB
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.cells import BINS, COST_GRID, Cells, bins_by_class, calibration_bins, costs_by_size, grid_for
from crossent.measure.sums.compensated import Compensated
from crossent.measure.sums.distinct import MOST, Distinct
from crossent.measure.sums.folds import Folds
from crossent.measure.sums.groups import Groups
from crossent.measure.sums.likelihood import FLOOR, Rows, distributions, floor_said
from crossent.measure.sums.sample import Sample
from crossent.measure.sums.sums import Layout, Sums
from crossent.measure.values.decomposition import Calibrated, design_of, isotonic_parts, joint_parts
from crossent.measure.values.means import NOT_OF_TEXTS, Evidence, errors, likelihood, truth
from crossent.measure.values.per_byte import bits_per_byte
from crossent.measure.values.reliability import expected_calibration_error, smooth_calibration_error
from crossent.measure.values.slices import COSTLIEST, Costly, Slices, costliest_of
from crossent.record import Number

CHUNK = 1 << 16
"""Rows that are worked on at a time, so that what is made of them stays in the cache."""

MOST_BY_CLASS = 1000
_SAMPLE_FLOATS = 3 << 13


@dataclass(frozen=True, eq=False)
class Tally:
    """All that is kept of the rows so far. ``Tally(task, classes)`` is that of none, the identity of ``merge``.

    ``task`` is "binary", "multi-class", "range" or "text", as in ``Predictions``; ``classes`` their names (none for a
    range); ``soft`` says that labels are shares of the classes and not one of them; ``low`` and ``high`` are the range;
    ``floor`` is that of the floored costs; ``capacity`` how many rows the sample may hold, where one is kept.

    >>> whole = Predictions.from_arrays([0.9, 0.2, 0.6, 0.3], [1, 0, 1, 0])
    >>> tally = Tally.like(whole).add(whole)
    >>> print(tally.value()["cross_entropy"])
    0.299 nats (0.021 to 0.603)
    >>> part = Predictions.from_arrays([0.9, 0.2], [1, 0]), Predictions.from_arrays([0.6, 0.3], [1, 0])
    >>> other = Tally.like(whole).add(part[0]).merge(Tally.like(whole).add(part[1]))
    >>> bool(abs(other.value()["cross_entropy"].value - tally.value()["cross_entropy"].value) < 1e-15)
    True
    """

    task: str
    classes: tuple[str, ...] = ()
    soft: bool = False
    low: float | None = None
    high: float | None = None
    floor: float = FLOOR
    capacity: int | None = None
    sums: Sums = field(default=None)  # type: ignore[assignment]
    predicted: Distinct | None = None
    by_class: Cells | None = None
    class_bins: Compensated | None = None
    bins: Compensated = field(default_factory=lambda: Compensated.zeros(3, BINS))
    by_cost: Compensated = field(default_factory=lambda: Compensated.zeros(2, math.prod(COST_GRID)))
    costliest: tuple[Costly, ...] = ()
    sample: Sample | None = None
    groups: Groups | None = None
    class_folds: Folds | None = None
    slices: dict[str, Slices] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.sums is not None:
            return
        columns = len(self.classes) if self.task == "multi-class" else 2

        def start(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        start("sums", Sums.zeros(Layout(columns, self.soft, self.task in ("binary", "multi-class"))))
        if self.task in ("binary", "range"):
            start("predicted", Distinct.none())
        elif self.task == "multi-class":
            start("predicted", Distinct.none(MOST // 2))
            if columns <= MOST_BY_CLASS:
                start("by_class", Cells.zeros(columns, len(grid_for(columns))))
                start("class_bins", Compensated.zeros(columns, BINS))
            room = self.capacity or max(64, _SAMPLE_FLOATS // (columns + 4))
            start("sample", Sample.none(room, columns, self.soft))

    @classmethod
    def like(cls, batch: Predictions, floor: float = FLOOR, capacity: int | None = None) -> Tally:
        """Give the tally of no rows for batches such as this one."""
        soft = batch.labels.dtype.kind == "f"
        return cls(batch.task, tuple(batch.classes), soft, batch.low, batch.high, floor, capacity)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle holds the bytes of ``packing``, some tenth of what the arrays take."""
        from crossent.measure.tally.packing import packed, unpacked  # which knows this module

        return unpacked, (packed(self),)

    @property
    def _has_classes(self) -> bool:
        """Whether there are classes, few enough to keep more of each than its sums."""
        return self.task in ("binary", "multi-class") and len(self.classes) <= MOST_BY_CLASS

    @property
    def rows(self) -> int:
        """How many rows were added."""
        return self.sums.count("rows")

    def add(self, batch: Predictions) -> Tally:
        """Give the tally of these rows too. Cost: some 100 ns for a row of two classes, 500 ns for one of ten.

        Rows of weight 0 are as if they were not there: no number, no table and no count knows of them.
        """
        self._fits(batch.task, tuple(batch.classes), (batch.low, batch.high), batch.labels.dtype.kind == "f")
        if batch.weights is not None and not batch.weights.all():
            batch = _part(batch, np.flatnonzero(batch.weights))
        found = self
        for begin in range(0, len(batch), CHUNK):
            found = found.merge(found._of(_part(batch, slice(begin, begin + CHUNK))))
        return found

    def _of(self, batch: Predictions) -> Tally:
        """The tally of one chunk alone, without rows that could not stay beside those that are here already."""
        rows, w, p = Rows.of(batch, self.floor), batch.weights, batch.probabilities
        labels = batch.labels
        if self.soft:
            labels = distributions(labels, p.shape[1])
            labels = labels[:, 1] if p.shape[1] == 2 else labels
        sums = Sums.of(self.sums.layout, batch, rows, None)
        predicted, by_class, class_bins, sample, bins = None, None, None, None, Compensated.zeros(1, 3, BINS)
        claimed = claims(batch, rows, labels)
        if claimed is not None:
            assert self.predicted is not None
            predicted = self.predicted.of(*claimed, w)
            bins = calibration_bins(claimed[0], claimed[2], w)
        if self.task == "multi-class":
            if self.by_class is not None:
                grid = grid_for(p.shape[1])
                each = []
                for c in range(p.shape[1]):
                    column = np.ascontiguousarray(p[:, c])
                    came = labels[:, c] if self.soft else labels == c
                    each.append(Cells.of(grid.place(column, 1 - column), len(grid), column, came, w, alike=True))
                by_class = Cells.stack(each)
                class_bins = bins_by_class(p, labels, w)
            assert self.sample is not None
            kept = batch if not self.soft else replace(batch, labels=labels)
            sample = Sample.of(self.sample.capacity, kept, rows.cost, rows.floored, self.sample.highest)
        finite = rows.cost if not sums.count("impossible") else np.where(np.isfinite(rows.cost), rows.cost, 0.0)
        by_cost = costs_by_size(finite, w)
        least = -self.costliest[-1][0] if len(self.costliest) == COSTLIEST else -math.inf
        return replace(
            self,
            sums=sums,
            predicted=predicted,
            by_class=by_class,
            class_bins=class_bins,
            bins=bins[0],
            by_cost=by_cost,
            costliest=costliest_of(batch, rows, least),
            sample=sample,
            groups=None if batch.groups is None else Groups.of(batch, rows),
            class_folds=Folds.of_classes(batch, rows) if batch.groups is not None and self._has_classes else None,
            slices={name: Slices.of(name, self.sums.layout, batch, rows, claimed) for name in batch.slices},
        )

    def merge(self, other: Tally) -> Tally:
        """Give the tally of the rows of both."""
        self._fits(other.task, other.classes, (other.low, other.high), other.soft)
        if self.floor != other.floor:
            raise DataError(
                f"one tally has the floor {floor_said(self.floor)} and the other {floor_said(other.floor)}: choose one."
            )
        if not other.rows or not self.rows:
            return self if self.rows else other
        for what, mine, theirs in (
            ("groups", self.groups is not None, other.groups is not None),
            ("slices " + ", ".join(self.slices), sorted(self.slices), sorted(other.slices)),
        ):
            if mine != theirs:
                raise DataError(f"some rows came with {what} and some without: give them for all rows or for none.")
        return replace(
            self,
            sums=self.sums + other.sums,
            predicted=_both(self.predicted, other.predicted),
            by_class=_both(self.by_class, other.by_class),
            class_bins=_both(self.class_bins, other.class_bins),
            bins=self.bins + other.bins,
            by_cost=self.by_cost + other.by_cost,
            costliest=tuple(sorted(self.costliest + other.costliest))[:COSTLIEST],
            sample=_both(self.sample, other.sample),
            groups=_both(self.groups, other.groups),
            class_folds=_both(self.class_folds, other.class_folds),
            slices={name: part.merge(name, other.slices[name]) for name, part in self.slices.items()},
        )

    def _fits(self, task: str, classes: tuple[str, ...], ends: tuple[float | None, float | None], soft: bool) -> None:
        if (task, classes, ends) != (self.task, self.classes, (self.low, self.high)):
            raise DataError(
                f"a tally of the task {self.task!r} with classes {list(self.classes)} and range "
                f"{(self.low, self.high)} cannot take rows of the task {task!r} with classes {list(classes)} and range "
                f"{ends}."
            )
        if soft and not self.soft:
            raise DataError("some labels are distributions and some are classes: give distributions for all rows.")

    def evidence(self, floored: bool = False) -> Evidence:
        """Everything that means and their intervals are made from."""
        cells = self.predicted.cells if self.predicted is not None and self.task != "multi-class" else None
        return Evidence(self.sums, 0, cells, self.sample, self.groups, self.floor if floored else None)

    def parts(self) -> tuple[dict[str, Number], str, Calibrated | None]:
        """Give the decomposition, a sentence on the calibrated model, and that model on its cells.

        If a label had probability 0 the parts are those of the floored probabilities, as ``cross_entropy_floored`` is.
        """
        of = self.evidence(floored=self.sums.count("impossible") > 0)
        assert self.predicted is not None
        if self.task == "multi-class":
            return *joint_parts(of), Calibrated.of(self.predicted.cells, keep=True)
        calibrated = Calibrated.of(
            self.predicted.cells, design_of(None if self.groups is None else self.groups.by_fold()), keep=True
        )
        return *isotonic_parts(of, calibrated), calibrated

    def impossible(self) -> float:
        """The weight of the rows whose label had probability 0."""
        rare, floored = self.sums.total("cost")[1:, :, 0].sum(axis=1)
        return float(floored - rare) if self.sums.count("impossible") else 0.0

    def value(self) -> dict[str, Number]:
        """Give every number by name. Cost: that of the recalibration, a second or so; nothing that grows with rows."""
        return self.numbers(self.parts()[0] if self.task != "text" else {})

    def numbers(self, parts: dict[str, Number]) -> dict[str, Number]:
        """Give every number by name, the parts of the decomposition among them."""
        of = self.evidence()
        found = likelihood(of, self.evidence(floored=True)) | bits_per_byte(of)
        if self.task == "text":
            return {name: number for name, number in found.items() if name not in NOT_OF_TEXTS}
        found |= truth(of) | parts | errors(of, self.task)
        assert self.predicted is not None
        found["ece"] = Number(expected_calibration_error(self.bins.value), "1", n=of.n)
        found["smooth_ece"] = Number(smooth_calibration_error(self.predicted.cells), "1", n=of.n)
        return found


def _both(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one + other


def claims(
    batch: Predictions, rows: Rows, labels: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]] | None:
    """What was claimed of each row, 1 less that, and what came of it: the second of two classes, the predicted one of
    more; None for documents.
    """
    if batch.task == "text":
        return None
    p, soft = batch.probabilities, labels.dtype.kind == "f"
    if batch.task in ("binary", "range"):
        return p[:, 1], p[:, 0], labels if soft else labels == 1
    peak = p[np.arange(len(batch)), rows.predicted]
    return peak, 1 - peak, rows.hit if soft else rows.hit > 0


def _part(batch: Predictions, which: slice | NDArray[np.int64]) -> Predictions:
    """Some of the rows; a slice of them without a copy."""
    if isinstance(which, slice) and which.start == 0 and which.stop >= len(batch):
        return batch

    def cut(x: Any) -> Any:
        return None if x is None else x[which]

    return replace(
        batch,
        probabilities=batch.probabilities[which],
        labels=batch.labels[which],
        rows=batch.rows[which],
        log_probabilities=cut(batch.log_probabilities),
        weights=cut(batch.weights),
        groups=cut(batch.groups),
        slices={name: cells[which] for name, cells in batch.slices.items()},
        bytes=cut(batch.bytes),
    )
