"""Predictions, told apart as finely as there is room for.

While no more than ``most`` different predictions have come, each is kept by itself, and all that is made of them is
exact. When there are more, the last bit of every one is dropped, so that neighbours fall together, and once more, until
they fit. How many bits have to go depends on all predictions and not on the order in which they came, so that any split
of the rows ends with the same cells. Cells are narrow where the predictions are: those of a model that says 0.010 to
0.013 are as many as those of one that says anything from 0 to 1.

The bits are those of the smaller of p and 1 − p, as a float64: a sign, an exponent and a mantissa, which read as a
whole number rise with their value. So a cell is an interval nearly in log-odds, no logarithm is taken, and every
machine puts a row into the same cell. Below 2⁻⁶⁶ nothing is told apart.

What coarseness costs: an isotonic curve on fewer cells flatters itself less, and once that is given back
(``isotonic``), at a million rows 4,000 cells give the parts within 4 · 10⁻⁶ nats of those of the rows
(docs/measure.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.cells import Cells

MOST = 8192
_HALF = int(np.float64(0.5).view(np.int64))
_LEAST = 2.0**-66
_MANTISSA = 52
_DENSE = 1 << 18  # codes in a range up to this are counted in an array of its length

_Codes = NDArray[np.int64]


def code(p: NDArray[np.float64], rest: NDArray[np.float64], drop: int = 0) -> _Codes:
    """Give whole numbers that rise with p and are equal where p agrees but for its last ``drop`` bits.

    ``rest`` is 1 − p, given apart because that difference loses digits near 1.

    >>> p = np.array([0.0, 1e-20, 0.25, 0.26, 0.5, 0.75, 1.0])
    >>> found = code(p, 1 - p, drop=51)  # two cells for each halving
    >>> (found - found[0]).tolist()
    [0, 0, 128, 128, 130, 133, 261]
    """
    near = np.minimum(p, np.minimum(rest, 0.5))
    np.maximum(near, _LEAST, out=near)
    found = near.view(np.int64)
    found >>= drop
    upper = p > 0.5
    found *= 1 - 2 * upper
    found += upper * (2 * (_HALF >> drop) + 1)
    return found


def _coarser(codes: _Codes, drop: int, to: int) -> _Codes:
    upper = codes > (_HALF >> drop)
    near = np.where(upper, 2 * (_HALF >> drop) + 1 - codes, codes) >> (to - drop)
    return np.where(upper, 2 * (_HALF >> to) + 1 - near, near)


def _length(numbers: _Codes) -> _Codes:
    """How many bits each number has; a float64 alone would round the longest up."""
    high = numbers >> 10
    return np.where(high > 0, np.frexp(high.astype(np.float64))[1] + 10, np.frexp(numbers.astype(np.float64))[1])


@dataclass(frozen=True, eq=False)
class Distinct:
    """``cells``, one for each of ``keys`` int64, which rise; ``drop`` bits have gone; ``most`` is 2 or more."""

    keys: _Codes
    cells: Cells
    drop: int = 0
    most: int = MOST

    @classmethod
    def none(cls, most: int = MOST) -> Distinct:
        """Give the cells of no rows."""
        return cls(np.zeros(0, np.int64), Cells.zeros(0), 0, most)

    def of(
        self,
        p: NDArray[np.float64],
        rest: NDArray[np.float64],
        y: NDArray[np.float64] | NDArray[np.bool_],
        w: NDArray[np.float64] | None,
    ) -> Distinct:
        """Give the cells of rows (n,), no finer than these. Cost: a few passes; a sort, where codes are far apart."""
        codes = code(p, rest, self.drop)
        lowest = int(codes.min())
        width = int(codes.max()) - lowest + 1
        alike = self.drop <= _MANTISSA  # those of one key have the same exponent, but for the smallest
        if width <= _DENSE:
            codes -= lowest
            came = np.bincount(codes, minlength=width) > 0
            keys, at = np.flatnonzero(came) + lowest, (np.cumsum(came) - 1)[codes]
            return Distinct(keys, Cells.of(at, keys.size, p, y, w, alike), self.drop, self.most)._fitting()
        at = np.minimum(np.searchsorted(self.keys, codes), max(len(self.keys) - 1, 0))
        if len(self.keys) and np.array_equal(self.keys[at], codes):  # nothing new, as where forecasts are round numbers
            keys = self.keys
        else:
            keys, at = np.unique(codes, return_inverse=True)
        return Distinct(keys, Cells.of(at, keys.size, p, y, w, alike), self.drop, self.most)._fitting()

    def __add__(self, other: Distinct) -> Distinct:
        drop = max(self.drop, other.drop)
        one, two = self._dropping(drop), other._dropping(drop)
        if len(one.keys) < len(two.keys):
            one, two = two, one
        at = np.searchsorted(one.keys, two.keys)
        if two.keys.size and (at[-1] == one.keys.size or not np.array_equal(one.keys[at], two.keys)):
            keys = np.sort(np.concatenate([one.keys, two.keys]), kind="stable")  # two runs, which are merged
            keys = keys[np.append(True, keys[1:] != keys[:-1])]
            one, at = one._on(keys), np.searchsorted(keys, two.keys)
        wide = two.cells.spread(at, one.keys.size)
        return Distinct(one.keys, one.cells + wide, drop, self.most)._fitting()

    def _on(self, keys: _Codes) -> Distinct:
        return Distinct(keys, self.cells.spread(np.searchsorted(keys, self.keys), keys.size), self.drop, self.most)

    def _dropping(self, drop: int) -> Distinct:
        if drop == self.drop:
            return self
        codes = _coarser(self.keys, self.drop, drop)
        new = np.append(True, codes[1:] != codes[:-1])[: codes.size]  # they rise still
        return Distinct(codes[new], self.cells.gathered(np.cumsum(new) - 1, int(new.sum())), drop, self.most)

    def _fitting(self) -> Distinct:
        """The finest of these cells that there is room for.

        Neighbours fall together once as many bits are dropped as it takes to reach the highest in which they differ;
        those on either side of 1/2 never do.
        """
        if self.keys.size <= self.most:
            return self
        upper = self.keys > (_HALF >> self.drop)
        near = np.where(upper, 2 * (_HALF >> self.drop) + 1 - self.keys, self.keys)
        bits = _length(np.bitwise_xor(near[1:], near[:-1]))
        bits[upper[1:] != upper[:-1]] = 64
        left = 1 + np.array([np.count_nonzero(bits > more) for more in range(64)])
        return self._dropping(self.drop + int(np.argmax(left <= self.most)))
