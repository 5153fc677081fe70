"""Rows that belong together: one game's minute-by-minute forecasts, one document's tokens, one patient's visits.

Such rows are not independent, and a variance has to be one of groups: with r_g the sum of a group's residuals, that of
a sum is Σ r_g² (Liang & Zeger 1986, *Biometrika* 73, 13–22). For every quantity here the residual is linear in sums
that are known by group, so that the groups' sums are all that is kept. While there are few groups each has its own
line. Beyond ``most`` they go, by a hash, into that many buckets: a bucket of independent groups is one more independent
group, so the variance stays right and only its own scatter grows, to √(2 / most) of itself: 4 % for 1,024.

For the parts of the decomposition, whose residual hangs on the curve found at the end, a coarse histogram is kept for
each of 64 folds of groups, of the cells that have rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.intervals.interval import holders
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.cells import COARSE, Cells
from crossent.measure.sums.compensated import Column, Compensated, summed, summed_each
from crossent.measure.sums.counted import how_many, smallest
from crossent.measure.sums.hashing import hashed
from crossent.measure.sums.histograms import Histograms
from crossent.measure.sums.likelihood import Rows, distributions

FOLDS = 64
EXTRA = ("weight", "cost", "floored", "squared", "hit", "absolute", "bytes", "truth", "divergence")
"""What is summed for each group beside the label's weight by class."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Sums by group: ``keys`` uint64 (groups,), rising; ``sums`` (groups, classes + len(EXTRA)).

    ``folded`` says that the lines are buckets of groups, whose smallest hashes are then ``came``; ``folds`` are coarse
    histograms, a line for each fold, for two classes.
    """

    most: int
    keys: NDArray[np.uint64]
    sums: Compensated
    folded: bool = False
    folds: Histograms | None = None
    came: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return self.keys.size

    def by_fold(self) -> Cells | None:
        """Give the histograms of the folds, (folds, len(COARSE)); None where there are none."""
        return None if self.folds is None else self.folds.dense(len(COARSE))

    def how_many(self) -> tuple[int, bool]:
        """Give how many groups there were, and whether that was counted or, of more than 4,096, estimated."""
        return how_many(self.keys if self.came is None else self.came)

    def column(self, name: str) -> NDArray[np.float64]:
        """One of EXTRA, by group."""
        return self.sums.value[:, EXTRA.index(name) - len(EXTRA)]

    def labels(self) -> NDArray[np.float64]:
        """The weight of the labels, (groups, classes)."""
        return self.sums.value[:, : -len(EXTRA)]

    def held(self) -> NDArray[np.float64]:
        """How many groups hold each class (classes,), as ``holders`` counts them."""
        return holders(self.labels())

    def carriers(self, cost: str) -> int:
        """How few of the groups make 80 % of Σ r², r a group's residuals of the ``cost``, added up."""
        total, size = self.column(cost), self.column("weight")
        squares = np.sort((total - total.sum() / size.sum() * size) ** 2)[::-1].cumsum()
        return int(np.searchsorted(squares, 0.8 * squares[-1])) + 1

    def __add__(self, other: Groups) -> Groups:
        one, two = (self, other) if self.folded == other.folded else (self.fold(), other.fold())
        keys = np.union1d(one.keys, two.keys)
        total = one._on(keys) + two._on(keys)
        folds = None if one.folds is None or two.folds is None else one.folds + two.folds
        came = None if one.came is None or two.came is None else smallest(one.came, two.came)
        joined = Groups(self.most, keys, total, one.folded, folds, came)
        return joined.fold() if keys.size > self.most else joined

    def _on(self, keys: NDArray[np.uint64]) -> Compensated:
        """The sums on the lines of ``keys``, which hold all of these."""
        return self.sums.placed(np.searchsorted(keys, self.keys), keys.size)

    def fold(self) -> Groups:
        """Put the groups into buckets."""
        if self.folded:
            return self
        bucket = self.keys % np.uint64(self.most)
        keys, place = np.unique(bucket, return_inverse=True)
        total = self.sums.turned().gathered(place, keys.size).turned()
        return replace(self, keys=keys, sums=total, folded=True, came=smallest(self.keys))

    @classmethod
    def of(cls, batch: Predictions, rows: Rows) -> Groups:
        """Add up a batch by group."""
        assert batch.groups is not None
        k, w = batch.probabilities.shape[1], batch.weights
        number = hashed(batch.groups)
        keys, code = np.unique(number, return_inverse=True)
        most = most_groups(k)
        sums = group_sums(batch, rows, code, keys.size)
        folds = fold_histograms(batch.probabilities, batch.labels, w, number) if k == 2 else None
        found = cls(most, keys, sums, False, folds)
        return found.fold() if keys.size > found.most else found


def most_groups(classes: int) -> int:
    """How many groups are kept apart: 1,024, fewer where there are many classes."""
    return 1 << max(6, min(10, (65536 // (classes + len(EXTRA))).bit_length() - 1))


def fold_histograms(
    p: NDArray[np.float64],
    labels: NDArray[Any],
    w: NDArray[np.float64] | None,
    number: NDArray[np.uint64],
    code: NDArray[np.int64] | None = None,
    lines: int = 1,
    folds: int = FOLDS,
) -> Histograms:
    """Count rows of two classes, p (n, 2), into a coarse histogram for each fold of groups, by their ``number``; of
    several ``lines``, by ``code`` (n,), those of one line after those of the one before.
    """
    fold = (number % np.uint64(folds)).astype(np.int64)
    came = labels if labels.ndim == 1 else labels[:, 1]
    came = came if came.dtype.kind == "f" else came == 1
    line = fold if code is None else code * folds + fold
    return Histograms.of(line, COARSE.place(p[:, 1], p[:, 0]), lines * folds, None, came, w, most=None)


def group_sums(batch: Predictions, rows: Rows, code: NDArray[np.int64], size: int) -> Compensated:
    """Sums over rows with the same ``code``, from 0 to ``size`` − 1: the label's weight by class, then EXTRA."""
    k, w = batch.probabilities.shape[1], batch.weights
    if batch.labels.dtype.kind == "f":
        shares = distributions(batch.labels, k).T
        labels = summed_each(code, list(shares if w is None else shares * w), size)
    else:
        both = summed(code * k + batch.labels, batch.weights, size * k).reshape(size, k)
        labels = [both[:, c] for c in range(k)]
    return Compensated.stack([*labels, *summed_each(code, weighed(w, row_extra(batch, rows)), size)], axis=1)


def weighed(w: NDArray[np.float64] | None, extra: list[NDArray[np.float64]]) -> list[Column]:
    """What ``row_extra`` gives times the weights; without them rows are counted."""
    return [None, *extra[1:]] if w is None else [w * x for x in extra]


def row_extra(batch: Predictions, rows: Rows) -> list[NDArray[np.float64]]:
    """What each row adds to EXTRA, (n,) each."""
    n = len(batch)
    finite, nothing = np.where(np.isfinite(rows.cost), rows.cost, 0.0), np.zeros(n)
    return [
        np.ones(n),
        finite,
        rows.floored,
        rows.squared,
        rows.hit,
        nothing if rows.absolute is None else rows.absolute,
        nothing if batch.bytes is None else batch.bytes.astype(np.float64),
        nothing if rows.truth is None else rows.truth,
        nothing if rows.truth is None else finite - rows.truth,
    ]
