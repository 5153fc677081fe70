"""A sample of rows that is the same however the stream was split.

Every row gets a number by a hash of its id and its cost, and the ``capacity`` rows with the smallest
numbers are kept (bottom-k sampling, Cohen & Kaplan 2007). The smallest of a union are the smallest of the smallest, so
two samples merge into that of all rows. It is what a recalibration of many classes is fitted on: of data up to the
capacity it holds every row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.hashing import hashed, mixed

_Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Sample:
    """The rows drawn, in rising order of their numbers ``keys`` uint64; ``ids`` uint64 stand for the rows' own.

    ``logs`` (rows, classes) log-probabilities; ``labels`` int64 (rows,) or float64 (rows, classes); ``weights``;
    ``floored``, the cost under the floor; ``groups`` uint64, 0 where there are none; ``slices`` uint64 (rows, columns),
    what stands for the value of each column of slices, by the columns' names in order.
    """

    capacity: int
    keys: NDArray[np.uint64]
    ids: NDArray[np.uint64]
    logs: _Float
    labels: NDArray[np.int64] | _Float
    weights: _Float
    floored: _Float
    groups: NDArray[np.uint64]
    slices: NDArray[np.uint64]

    @classmethod
    def none(cls, capacity: int, classes: int, soft: bool) -> Sample:
        """Give the sample of no rows."""
        labels = np.zeros((0, classes)) if soft else np.zeros(0, np.int64)
        whole, logs, floats = np.zeros(0, np.uint64), np.zeros((0, classes)), np.zeros(0)
        return cls(capacity, whole, whole, logs, labels, floats, floats, whole, none_beside(0))

    def __len__(self) -> int:
        return self.keys.size

    @classmethod
    def of(
        cls, capacity: int, batch: Predictions, cost: _Float, floored: _Float, below: np.uint64 | None = None
    ) -> Sample:
        """Draw from a batch; rows whose number is not ``below`` are known to be of no use."""
        ids = hashed(batch.rows)
        keys = row_keys(ids, cost)
        here = np.arange(keys.size) if below is None else np.flatnonzero(keys < below)
        if here.size > capacity:
            here = here[np.argpartition(keys[here], capacity - 1)[:capacity]]
        with np.errstate(divide="ignore"):
            logs = (
                np.log(batch.probabilities[here]) if batch.log_probabilities is None else batch.log_probabilities[here]
            )
        weights = np.ones(here.size) if batch.weights is None else batch.weights[here]
        groups = np.zeros(here.size, np.uint64) if batch.groups is None else hashed(batch.groups[here])
        columns = [hashed(batch.slices[name][here].astype(str)) for name in sorted(batch.slices)]
        slices = np.stack(columns, axis=1) if columns else none_beside(here.size)
        found = cls(capacity, keys[here], ids[here], logs, batch.labels[here], weights, floored[here], groups, slices)
        return found.take(found._order())

    def __add__(self, other: Sample) -> Sample:
        if not len(self) or not len(other):
            return other if not len(self) else self
        joined = {
            field.name: np.concatenate([getattr(self, field.name), getattr(other, field.name)])
            for field in fields(self)
            if field.name != "capacity"
        }
        found = Sample(self.capacity, **joined)
        return found.take(found._order())

    def _order(self) -> NDArray[np.int64]:
        """Where the smallest numbers are; of equal ones, nearly always those of equal rows, by what they hold."""
        order = np.argsort(self.keys, kind="stable")
        keys = self.keys[order]
        if keys.size and np.any(keys[1:] == keys[:-1]):
            held = np.column_stack([self.logs, self.labels, self.weights, self.groups, self.slices])
            order = np.lexsort((*held.T, self.keys))
        return order[: self.capacity]

    def take(self, which: NDArray[np.int64]) -> Sample:
        """Some of the rows."""
        arrays = {field.name: getattr(self, field.name)[which] for field in fields(self) if field.name != "capacity"}
        return Sample(self.capacity, **arrays)

    @property
    def highest(self) -> np.uint64 | None:
        """The number that a row must be below to enter; None while there is room."""
        return self.keys[-1] if len(self) == self.capacity else None


def none_beside(rows: int) -> NDArray[np.uint64]:
    """Give the columns of slices of rows that are not cut into any."""
    return np.zeros((rows, 0), np.uint64)


def row_keys(ids: NDArray[np.uint64], cost: _Float) -> NDArray[np.uint64]:
    """Give each row its number, from the number of its id and its cost: batches may count their rows from 0 each."""
    return mixed(ids ^ hashed(cost))


def capacity_for(classes: int) -> int:
    """Rows of the sample that many classes are recalibrated on: all, up to 50,000, or what 80 MB hold."""
    return min(50_000, max(10_000, 10_000_000 // classes))
