"""Groups once more, for every slice and every class: few folds of them, so that many lines take little room.

The groups of a line go, by a hash, into one of ``folds`` buckets. A bucket of independent groups is one more
independent group (``groups``), so that intervals are as right as those of the groups themselves; their own scatter is
that of so many degrees of freedom, which Student's t allows for. Rows that are a group each serve where moments do not
tell how a cost and a label that is a distribution vary together.

    a slice, or a class     folds × (classes + 9) sums, a class's own being 1 + 9: 11 kB of two classes, 19 kB of ten
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.compensated import Compensated, summed_each
from crossent.measure.sums.groups import EXTRA, FOLDS, Groups, group_sums, row_extra, weighed
from crossent.measure.sums.hashing import hashed
from crossent.measure.sums.likelihood import Rows, distributions

_LEAST = 16


def folds_for(width: int) -> int:
    """How many folds lines of so many sums, or so many lines, leave room for: 64, of hundreds 16."""
    return max(_LEAST, min(FOLDS, 4096 // width))


@dataclass(frozen=True, eq=False)
class Folds:
    """``sums`` (lines, folds, classes + len(EXTRA)), as in ``Groups``."""

    sums: Compensated

    @classmethod
    def of_slices(cls, batch: Predictions, rows: Rows, code: NDArray[np.int64], lines: int) -> Folds:
        """Add up a batch by slice, ``code`` (n,), and by fold of its groups; rows without are a group each."""
        folds = folds_for(batch.probabilities.shape[1])
        found = group_sums(batch, rows, code * folds + _fold(batch, folds), lines * folds)
        return cls(found.reshape(lines, folds, -1))

    @classmethod
    def of_classes(cls, batch: Predictions, rows: Rows) -> Folds:
        """Add up a batch by class and by fold of its groups, over the rows that belong to the class (``sums``)."""
        classes, w = batch.probabilities.shape[1], batch.weights
        folds = folds_for(classes)
        fold, extra = _fold(batch, folds), row_extra(batch, rows)
        if batch.labels.dtype.kind != "f":
            code, size = batch.labels * folds + fold, classes * folds
            sums = summed_each(code, weighed(w, extra), size)
            lines = [sums[0], *sums]  # a class's weight is its label's
            return cls(Compensated.stack(lines, axis=1).reshape(classes, folds, -1))
        found = []
        with np.errstate(divide="ignore"):
            logs = np.log(batch.probabilities) if batch.log_probabilities is None else batch.log_probabilities
        for c, share in enumerate(distributions(batch.labels, classes).T):
            mass = share if w is None else w * share
            own = dict(zip(EXTRA, extra, strict=True)) | {"hit": (rows.predicted == c).astype(np.float64)}
            own["cost"] = np.where(np.isfinite(logs[:, c]), -logs[:, c], 0.0)
            lines = summed_each(fold, [mass * x for x in (own["weight"], *own.values())], folds)
            found.append(Compensated.stack(lines, axis=1))
        return cls(Compensated.stack(found))

    def __add__(self, other: Folds) -> Folds:
        return Folds(self.sums + other.sums)

    def groups(self, line: int) -> Groups:
        """One line as groups; folds without a row are none."""
        sums = self.sums[line]
        here = np.flatnonzero(sums.value[:, EXTRA.index("weight") - len(EXTRA)] > 0)
        return Groups(here.size, here.astype(np.uint64), sums[here], folded=True)

    def on(self, place: list[int], lines: int) -> Folds:
        """The same sums on these of ``lines`` lines."""
        return Folds(self.sums.placed(place, lines))


def _fold(batch: Predictions, folds: int) -> NDArray[np.int64]:
    who = batch.rows if batch.groups is None else batch.groups
    return (hashed(who) % np.uint64(folds)).astype(np.int64)
