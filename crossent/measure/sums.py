"""What the rows of a set add up to: everything about them but the shape of the predictions.

A mean and its interval need the sums of the first three powers of a row's cost and of its weight: w, wc, w², w²c, …,
w³c³ (``POWERS``). Kept apart by class they also give those of any difference c − v(class) with v found only at the end,
such as information gained, where v is −log of the class's frequency. So one pass is enough, and two sets of sums are
merged by adding them.

Costs are kept in three: ``USUAL``, rows that the floor does not touch; ``RARE``, rows below the floor whose cost is
finite, as they are; ``FLOORED``, all rows below the floor, with the floor. Usual + rare is the exact sum, usual +
floored that of the floored probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.measure.compensated import Compensated, summed
from crossent.measure.likelihood import TOPS, Rows, distributions
from crossent.measure.predictions import Predictions

POWERS = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3))
"""Powers of the weight and of the quantity that are summed."""

USUAL, RARE, FLOORED = range(3)
_Float = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Where each sum stands: ``classes`` columns of probability, labels that are classes or, ``soft``, shares."""

    classes: int
    soft: bool

    @property
    def kept_apart(self) -> int:
        """How many classes the moments of costs are kept apart by; a distribution belongs to no class."""
        return 1 if self.soft else self.classes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The sums by name."""
        k, powers = self.classes, len(POWERS)
        return {
            "cost": (3, self.kept_apart, powers),
            "label": (k,),
            "probability": (k,),
            "predicted": (k,),
            "right": (k,),
            "own": (k,),  # Σ w p(label) by label, of labels that are classes
            "squared": (powers,),
            "absolute": (powers,),
            "hit": (3,),  # Σ wh, Σ w²h, Σ w²h²
            "top": (len(TOPS),),
            "truth": (powers,),  # entropy of labels that are distributions
            "divergence": (powers,),  # finite cost − that entropy
            "bytes": (3,),  # Σ wb, Σ w²b², Σ w²bc
        }

    def places(self) -> dict[str, slice]:
        """Which entries of the one long vector they are."""
        sizes = [math.prod(shape) for shape in self.shapes().values()]
        ends = np.cumsum(sizes).tolist()
        return {name: slice(end - size, end) for name, size, end in zip(self.shapes(), sizes, ends, strict=True)}

    @property
    def width(self) -> int:
        """How many sums there are."""
        return sum(math.prod(shape) for shape in self.shapes().values())


COUNTS = ("rows", "impossible", "tied", "weighted", "measured in bytes")


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of one or of several sets of rows (the slices of a column, say), one line each.

    ``floats`` compensated float64 (sets, layout.width); ``counts`` int64 (sets, len(COUNTS)).
    """

    layout: Layout
    floats: Compensated
    counts: NDArray[np.int64]

    @classmethod
    def zeros(cls, layout: Layout, sets: int = 1) -> Sums:
        """Give the sums of no rows."""
        return cls(layout, Compensated.zeros(sets, layout.width), np.zeros((sets, len(COUNTS)), np.int64))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.layout, self.floats + other.floats, self.counts + other.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, which: NDArray[np.int64] | list[int]) -> Sums:
        return Sums(self.layout, self.floats[which], self.counts[which])

    def total(self, name: str, which: int = 0) -> _Float:
        """One of the sums of one set, in its own shape."""
        there = self.layout.places()[name]
        return self.floats[which].value[there].reshape(self.layout.shapes()[name])

    def count(self, name: str, which: int = 0) -> int:
        """One of the counts of one set."""
        return int(self.counts[which, COUNTS.index(name)])

    @classmethod
    def of(cls, layout: Layout, batch: Predictions, rows: Rows, code: NDArray[np.int64] | None, sets: int = 1) -> Sums:
        """Add up a batch; ``code`` (n,) says which set each row is in, None that there is one.

        Cost: some thirty passes over n and a few over (n, classes).
        """
        n, k, w = len(batch), layout.classes, batch.weights
        floats = np.zeros((sets, layout.width))
        counts = np.zeros((sets, len(COUNTS)), np.int64)
        places = layout.places()

        def put(name: str, values: _Float) -> None:
            floats[:, places[name]] = values.reshape(sets, -1)

        def over(x: _Float) -> _Float:
            if code is None:
                return np.sum(x, axis=0, keepdims=True)
            if x.ndim == 1:
                return summed(code, x, sets)
            return np.stack([summed(code, column, sets) for column in x.T], axis=1)

        def by(which: NDArray[np.int64], size: int, x: _Float | None) -> _Float:
            """Sums by set and by another code."""
            both = which if code is None else code * size + which
            return summed(both, x, sets * size).reshape(sets, size)

        def weighted(x: _Float) -> _Float:
            return x if w is None else (x.T * w).T

        apart = layout.kept_apart
        own = np.zeros(n, np.int64) if apart == 1 else rows.label
        both = own if code is None else code * apart + own
        touched = rows.floored != rows.cost
        cost = np.zeros((sets, 3, apart, len(POWERS)))

        def moments(of: _Float, here: NDArray[np.int64]) -> _Float:
            found = _moments(of[here], None if w is None else w[here], both[here], sets * apart)
            return found.reshape(sets, apart, -1)

        if touched.any():
            few = np.flatnonzero(touched)
            finite = np.isfinite(rows.cost[few])
            cost[:, USUAL] = moments(rows.cost, np.flatnonzero(~touched))
            cost[:, RARE] = moments(rows.cost, few[finite])
            cost[:, FLOORED] = moments(rows.floored, few)
            impossible = few[~finite]
            counts[:, 1] = impossible.size if code is None else np.bincount(code[impossible], minlength=sets)
        else:
            cost[:, USUAL] = _moments(rows.cost, w, both, sets * apart).reshape(sets, apart, -1)
        put("cost", cost)

        if layout.soft:
            shares = distributions(batch.labels, k)
            put("label", over(weighted(shares)))
            right = shares[np.arange(n), rows.predicted]
            put("right", by(rows.predicted, k, weighted(right)))
        else:
            put("label", by(rows.label, k, w))
            put("right", by(rows.label, k, weighted(rows.hit)))
            put("own", by(rows.label, k, weighted(batch.probabilities[np.arange(n), rows.label])))
        put("predicted", by(rows.predicted, k, w))
        plain = w is None and code is None
        put("probability", _columns(batch.probabilities) if plain else over(weighted(batch.probabilities)))
        zero = np.zeros(n, np.int64) if code is None else code
        put("squared", _moments(rows.squared, w, zero, sets))
        if rows.absolute is not None:
            put("absolute", _moments(rows.absolute, w, zero, sets))
        if rows.truth is not None:
            put("truth", _moments(rows.truth, w, zero, sets))
            put("divergence", _moments(np.where(np.isfinite(rows.cost), rows.cost, 0.0) - rows.truth, w, zero, sets))
        hit = rows.hit
        first = over(weighted(hit))
        second = first if w is None else over(w * w * hit)
        put("hit", np.stack([first, second, over(weighted(weighted(hit * hit))) if layout.soft else second], axis=1))
        if rows.top is not None:
            put("top", over(weighted(rows.top.astype(np.float64))))
        if batch.bytes is not None:
            b = batch.bytes.astype(np.float64)
            c = np.where(np.isfinite(rows.cost), rows.cost, 0.0)
            sums = [over(weighted(b)), over(weighted(weighted(b * b))), over(weighted(weighted(b * c)))]
            put("bytes", np.stack(sums, axis=1))
        counts[:, 0] = n if code is None else np.bincount(code, minlength=sets)
        counts[:, 2] = rows.tied if code is None else 0
        counts[:, 3] = 0 if w is None else counts[:, 0]
        counts[:, 4] = 0 if batch.bytes is None else counts[:, 0]
        return cls(layout, Compensated(floats, np.zeros_like(floats)), counts)


def _columns(p: _Float) -> _Float:
    """Sums of the columns; of two, each by itself, which does not stride."""
    return np.array([[np.sum(p[:, 0]), np.sum(p[:, 1])]]) if p.shape[1] == 2 else np.sum(p, axis=0, keepdims=True)


def _moments(x: _Float, w: _Float | None, code: NDArray[np.int64], sets: int) -> _Float:
    """Σ w^j x^i by set, (sets, len(POWERS))."""
    if w is None:
        square = x * x
        powers = [summed(code, part, sets) for part in (None, x, square, square * x)]
        return np.stack([powers[i] for _, i in POWERS], axis=1)
    return np.stack([summed(code, w**j * x**i, sets) for j, i in POWERS], axis=1)
