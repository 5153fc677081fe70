"""Sums that do not drift, and do not depend on the order of their terms: float64, and its rounding error beside it.

The rounding error of a floating-point addition is itself a floating-point number, and six additions find it (Knuth,
*The Art of Computer Programming* II, 4.2.2, Theorem B). Carried along, it makes the order in which sums are added to
one another matter in the 31st digit instead of the 16th. The terms of a batch are taken apart before they are added:
with σ a power of two above the sum of their sizes, q = (x + σ) − σ is x rounded to 53 digits below σ, so that any sum
of q is exact, and x − q, exact too, is all that is left to round (Rump, Ogita & Oishi 2008, *SIAM J. Sci. Comput.* 31,
189–224, Algorithm 3.2).

What is read of such a sum is the nearest float64, and so the same to the last bit however a stream was split, but for
one sum in some 10⁸ that lies halfway between two. That is why: what is made of sums at the end, curves that are fitted
and labels that are drawn, enlarges a last bit as it likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Float = NDArray[np.float64]
_Codes = NDArray[np.int64]
_FEW = 16  # codes whose rows are picked out
_BLOCK = 1 << 15
_DIGITS = 53
Column = NDArray[Any] | None
"""Numbers float64 (n,), truth values, which are counted, or None for a 1 in each row."""


@dataclass(frozen=True, eq=False)
class Compensated:
    """An array of running sums, of any shape: ``high``, rounded to float64, and ``low``, what rounding took.

    ``+`` is commutative to the bit and associative to the rounding of ``low``.

    >>> small = Compensated(np.array([1e-17]), np.zeros(1))
    >>> total = Compensated(np.array([1.0]), np.zeros(1))
    >>> for _ in range(1000):
    ...     total = total + small
    >>> float((total.value - 1.0)[0]) == float(np.float64(1 + 1e-14) - 1.0)  # plain float64 would have stayed at 1
    True
    """

    high: NDArray[np.float64]
    low: NDArray[np.float64]

    @classmethod
    def zeros(cls, *shape: int) -> Compensated:
        """Give sums of nothing."""
        return cls(np.zeros(shape), np.zeros(shape))

    @classmethod
    def exact(cls, sums: NDArray[np.float64]) -> Compensated:
        """Give sums that no rounding has touched: of whole numbers, say."""
        return cls(sums, np.zeros_like(sums))

    @classmethod
    def stack(cls, sums: Sequence[Compensated], axis: int = 0) -> Compensated:
        """Put sums of one shape side by side."""
        return cls(np.stack([one.high for one in sums], axis), np.stack([one.low for one in sums], axis))

    @classmethod
    def join(cls, sums: Sequence[Compensated]) -> Compensated:
        """Put sums behind one another along their first axis."""
        return cls(np.concatenate([one.high for one in sums]), np.concatenate([one.low for one in sums]))

    @property
    def value(self) -> NDArray[np.float64]:
        """The sums, rounded once."""
        return self.high

    def __add__(self, other: Compensated) -> Compensated:
        high, low = _added(self.high, other.high)
        return Compensated(*_added(high, low + (self.low + other.low)))

    def __getitem__(self, where: Any) -> Compensated:
        return Compensated(self.high[where], self.low[where])

    def put(self, where: Any, sums: Compensated) -> None:
        """Write sums into their places, while these are being made."""
        self.high[where], self.low[where] = sums.high, sums.low

    def reshape(self, *shape: int) -> Compensated:
        """The same sums as arrays of this shape."""
        return Compensated(self.high.reshape(shape), self.low.reshape(shape))

    def turned(self) -> Compensated:
        """The same sums with their axes in the other order."""
        return Compensated(self.high.T, self.low.T)

    def placed(self, at: Any, size: int, axis: int = 0) -> Compensated:
        """The same sums at these places, all different, of an axis that is ``size`` long, and nothing elsewhere."""

        def wide(x: _Float) -> _Float:
            found = np.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]))
            found[(slice(None),) * axis + (at,)] = x
            return found

        return Compensated(wide(self.high), wide(self.low))

    def gathered(self, code: NDArray[np.int64], size: int) -> Compensated:
        """Sums over the last axis by a code from 0 to ``size`` − 1."""
        lines = math.prod(self.high.shape[:-1]), code.size
        found = zip(summed_each(code, list(self.high.reshape(lines)), size), self.low.reshape(lines), strict=True)
        total = [Compensated(*_added(x.high, x.low + _count(code, low, size))) for x, low in found]
        return Compensated.stack(total).reshape(*self.high.shape[:-1], size)


def summed(code: _Codes, x: Column, size: int) -> Compensated:
    """Add up ``x`` (n,) by a code from 0 to ``size`` − 1; what is finite, what is true, or, of None, each row.

    >>> x = np.array([1.0, 1e-20, 3.0, -1e-20, -3.0])
    >>> one, turned = (summed(np.zeros(5, int), x[::step], 1) for step in (1, -1))
    >>> one.high.tolist() == turned.high.tolist() == [1.0]
    True
    """
    return summed_each(code, [x], size)[0]


def summed_each(code: _Codes, columns: Sequence[Column], size: int) -> list[Compensated]:
    """Do so for several columns."""
    return Split(code, size).summed(columns)


class Split:
    """Rows (n,) and the ``code`` of each, 0 to ``size`` − 1, by which columns are added up.

    Of few codes each one's rows are picked out and added up by themselves, a block that stays in the cache at a time:
    1 ns a row to pick, and as much for each sum, half of it for what is made of the picked. Of many they are counted:
    three counts and as many passes over each column.
    """

    def __init__(self, code: _Codes, size: int) -> None:
        self.code, self.size = code, size

    @cached_property
    def _here(self) -> list[NDArray[np.bool_]]:
        """Whether a row has the code, for each of few codes."""
        narrow = self.code.astype(np.uint8)
        return [narrow == c for c in range(self.size)]

    @cached_property
    def _rows(self) -> list[_Codes | slice]:
        """The rows of each of few codes."""
        return [slice(None)] if self.size == 1 else [np.flatnonzero(here) for here in self._here]

    def counts(self, x: NDArray[np.bool_] | None = None) -> Compensated:
        """How many rows have each code, or how many of those where ``x`` is true."""
        if self.size <= _FEW:
            found = np.array([np.count_nonzero(here if x is None else here & x) for here in self._here])
        else:
            found = np.bincount(self.code if x is None else self.code[np.flatnonzero(x)], minlength=self.size)
        return Compensated.exact(found.astype(np.float64))

    def summed(self, columns: Sequence[Column]) -> list[Compensated]:
        """Add up each of several columns."""
        return [
            self.counts(x) if x is None or x.dtype.kind != "f" else self.terms([x], lambda x: [x])[0] for x in columns
        ]

    def terms(self, columns: Sequence[_Float], terms: Callable[..., Sequence[_Float]]) -> list[Compensated]:
        """Add up the ``terms`` that are made of columns row by row: powers of one, say.

        >>> found = Split(np.array([0, 1, 1]), 2).terms([np.array([1.0, 2.0, 3.0])], lambda x: [x, x * x])
        >>> [sums.high.tolist() for sums in found]
        [[1.0, 5.0], [1.0, 13.0]]
        """
        if not 0 < self.size <= _FEW:
            return [_counted(self.code, x, self.size) for x in terms(*columns)]
        by_code = [_in_blocks([x[rows] for x in columns], terms) for rows in self._rows]
        return [Compensated(*sums) for sums in np.array(by_code).transpose(1, 2, 0)]


def _in_blocks(columns: list[_Float], terms: Callable[..., Sequence[_Float]]) -> list[tuple[float, float]]:
    """The sums of each of the terms of all rows, and what rounding took of them."""
    blocks = range(0, max(columns[0].size, 1), _BLOCK)
    of_blocks = [[_sum(x) for x in terms(*(x[begin : begin + _BLOCK] for x in columns))] for begin in blocks]
    totals = of_blocks[0]
    for sums in of_blocks[1:]:
        for i, (high, low) in enumerate(sums):
            total, rest = _added(totals[i][0], high)
            totals[i] = total, rest + (totals[i][1] + low)
    return [_added(*total) for total in totals]


def _sum(x: _Float) -> tuple[float, float]:
    """The sum of the numbers as they are above the last digits of the largest, and that of what is left of each."""
    sigma = math.ldexp(1.0, math.frexp(max(x.max(initial=0.0), -x.min(initial=0.0)) * x.size)[1] + 1)
    near = x + sigma
    near -= sigma
    high = near.sum()
    return float(high), float(np.subtract(x, near, out=near).sum())


def _counted(code: _Codes, x: _Float, size: int) -> Compensated:
    """Sums of many codes."""
    if not x.any():
        return Compensated.zeros(size)
    sigma = _above(_count(code, x if x.min(initial=0.0) >= 0 else np.abs(x), size))[code]
    near = x + sigma
    near -= sigma
    return _both(code, near, x, size)


def _both(code: _Codes, near: _Float, x: _Float, size: int) -> Compensated:
    """Sums of what is near to x, which are exact, and of what is left of x, if anything is."""
    high = _count(code, near, size)
    far = np.subtract(x, near, out=near)
    return Compensated(*_added(high, _count(code, far, size))) if far.any() else Compensated.exact(high)


def of_alike(code: _Codes, x: _Float, size: int, lines: int = 1) -> Compensated:
    """Add up ``x`` (n,), none below 0, by a code, where numbers of one code are 0 or have one exponent, or two
    neighbouring ones; but the first code of each of ``lines`` may have any.

    Of each number the first digits, so many that their sum is exact, and the others, whose sum is exact too, so that
    nothing has to be known of the sums beforehand: two counts at most, and one of numbers that came from float32.

    >>> x = np.array([1e-300, 1 / 3, 1.1e-30, 0.7, 1e-30, 0.0, 0.1])
    >>> found, usual = (add(np.array([0, 1, 2, 1, 2, 2, 0]), x, 3) for add in (of_alike, summed))
    >>> found.high.tolist() == usual.high.tolist(), found.low.tolist() == usual.low.tolist()
    (True, True)
    """
    bits = x.size.bit_length() + 1  # by what a sum of so many numbers of two exponents is longer than each
    if 2 * bits > _DIGITS:
        return summed(code, x, size)
    of_first = None
    here = (code == 0) if lines == 1 else code % (size // lines) == 0
    if here.any():
        first = x * here
        if first.any():
            of_first = summed(np.zeros(0, np.int64) if lines == 1 else code // (size // lines), first, lines)
            x = x - first
    near = (np.ascontiguousarray(x).view(np.int64) & -(1 << bits)).view(np.float64)
    found = _both(code, near, x, size)
    return found if of_first is None else found + of_first.placed(slice(None, None, size // lines), size)


def of_columns(x: NDArray[np.float64]) -> Compensated:
    """Add up the rows of ``x`` (n, columns), finite; a block that stays in the cache at a time."""
    total = Compensated.zeros(x.shape[1])
    rows = max(1 << 8, 4 * _BLOCK // x.shape[1])
    for begin in range(0, len(x), rows):
        block = x[begin : begin + rows]
        sigma = _above(np.maximum(block.max(axis=0), -block.min(axis=0)) * len(block))
        near = block + sigma
        near -= sigma
        high = near.sum(axis=0)
        total += Compensated(*_added(high, np.subtract(block, near, out=near).sum(axis=0)))
    return total


def _above(size: Any) -> Any:
    """A power of two above sums of this size: σ."""
    return np.exp2(np.frexp(size)[1] + 1.0)


def _count(code: _Codes, x: _Float, size: int) -> _Float:
    return np.bincount(code, x, size).astype(np.float64, copy=False)  # of no rows it is whole numbers


def _added(x: Any, y: Any) -> tuple[Any, Any]:
    """x + y, rounded to the nearest, and its rounding error."""
    high = x + y
    part = high - x
    return high, (x - (high - part)) + (y - part)
