"""Many histograms of predictions at once, a line for each: those of slices, and of folds of groups.

Only cells that have rows are kept, in one array for all lines. A line holds up to ``most`` of them; when it has more,
the last bit of its predictions is dropped, and once more, until they fit, as in ``distinct``: how many bits a line has
to lose depends on all of its predictions and not on the order in which they came, so that any split of the rows ends
with the same cells.

There is room for few, so that they lie where they tell most. What a cell of width w costs the curve is w² / (24 p (1 −
p)) nats, which is the same everywhere for cells of one width in √p, and beyond 1/2 in √(1 − p): with 256 cells over all
of [0, 1] some 5 · 10⁻⁶. The root is rounded correctly on every machine, which puts a row into the same cell.

    a cell      32 bytes, 56 where rows have weights or labels are shares: 8 or 14 kB for a line that is full
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.cells import Cells

MOST_OF_A_LINE = 256
BITS = 31
"""A key is the line, and behind it a code of so many bits."""

_ONE = 1 << (BITS - 1)
_HALF = int(math.sqrt(0.5) * _ONE)
_MASK = (1 << BITS) - 1

_Codes = NDArray[np.int64]


def narrow_code(p: NDArray[np.float64], rest: NDArray[np.float64]) -> _Codes:
    """Give whole numbers of ``BITS`` bits that rise with p: the root of the smaller of p and ``rest``, which is 1 − p
    and given apart because that difference loses digits near 1.

    >>> p = np.array([0.0, 0.25, 0.25 + 1e-10, 0.26, 0.5, 0.75, 1.0])
    >>> found = narrow_code(p, 1 - p)
    >>> np.diff(found).astype(bool).tolist(), bool(found.max() < 2**BITS)
    ([True, False, True, True, True, True], True)
    """
    upper = p > 0.5
    near = (np.sqrt(np.minimum(p, np.minimum(rest, 0.5))) * _ONE).astype(np.int64)
    return np.where(upper, 2 * _HALF + 1 - near, near)


@dataclass(frozen=True, eq=False)
class Histograms:
    """``cells``, one for each of ``keys`` int64, which rise: the line, and in the last ``BITS`` bits the code.

    ``drop`` int64 (lines,) is how many bits of its codes a line has lost, which are then 0; ``most`` cells to a line,
    None for codes that stay as they are.
    """

    keys: _Codes
    cells: Cells
    drop: _Codes
    most: int | None = MOST_OF_A_LINE

    @classmethod
    def of(
        cls,
        line: _Codes,
        codes: _Codes,
        lines: int,
        p: NDArray[np.float64] | None,
        y: NDArray[np.float64] | NDArray[np.bool_],
        w: NDArray[np.float64] | None,
        most: int | None = MOST_OF_A_LINE,
    ) -> Histograms:
        """Count rows (n,) by their line, 0 to ``lines`` − 1, and their code; ``p`` as in ``Cells``. Cost: a sort."""
        keys, at = np.unique((line << BITS) | codes, return_inverse=True)
        return cls(keys, Cells.of(at, keys.size, p, y, w), np.zeros(lines, np.int64), most)._fitting()

    def __len__(self) -> int:
        return self.drop.size

    def __add__(self, other: Histograms) -> Histograms:
        drop = np.maximum(self.drop, other.drop)
        one, two = self._dropping(drop), other._dropping(drop)
        if one.keys.size < two.keys.size:
            one, two = two, one
        keys, at = one.keys, np.searchsorted(one.keys, two.keys)
        if two.keys.size and (at[-1] == keys.size or not np.array_equal(keys[at], two.keys)):
            keys = np.union1d(keys, two.keys)
            at = np.searchsorted(keys, two.keys)
            one = Histograms(keys, one.cells.spread(np.searchsorted(keys, one.keys), keys.size), drop, self.most)
        return Histograms(keys, one.cells + two.cells.spread(at, keys.size), drop, self.most)._fitting()

    def on(self, place: list[int], lines: int) -> Histograms:
        """The same cells on these of ``lines`` lines; the places rise."""
        at, drop = np.array(place, np.int64), np.zeros(lines, np.int64)
        drop[at] = self.drop
        return Histograms((at[self.keys >> BITS] << BITS) | (self.keys & _MASK), self.cells, drop, self.most)

    def line(self, which: int) -> Cells:
        """The cells of one line, in rising order."""
        begin, end = np.searchsorted(self.keys, [which << BITS, (which + 1) << BITS])
        return self.cells.take(np.arange(begin, end))

    def lines(self, first: int, count: int) -> Histograms:
        """Some lines, from the ``first`` on."""
        begin, end = np.searchsorted(self.keys, [first << BITS, (first + count) << BITS])
        cells = self.cells.take(np.arange(begin, end))
        return Histograms(self.keys[begin:end] - (first << BITS), cells, self.drop[first : first + count], self.most)

    def dense(self, size: int) -> Cells:
        """The same as arrays (lines, size), where all codes are below ``size``."""
        at = (self.keys >> BITS) * size + (self.keys & _MASK)
        return self.cells.spread(at, len(self) * size).reshape(len(self), size)

    def _dropping(self, drop: _Codes) -> Histograms:
        if np.array_equal(drop, self.drop):
            return self
        line, codes = self.keys >> BITS, self.keys & _MASK
        upper, bits = codes > _HALF, drop[line]
        near = np.where(upper, 2 * _HALF + 1 - codes, codes) >> bits << bits
        keys = (line << BITS) | np.where(upper, 2 * _HALF + 1 - near, near)  # they rise still
        new = np.append(True, keys[1:] != keys[:-1])[: keys.size]
        return Histograms(keys[new], self.cells.gathered(np.cumsum(new) - 1, int(new.sum())), drop, self.most)

    def _fitting(self) -> Histograms:
        """The finest cells that there is room for; neighbours fall together once the highest bit in which they differ
        is dropped, those on either side of 1/2 never do (``distinct``)."""
        if self.most is None or self.keys.size <= self.most:
            return self
        line, codes = self.keys >> BITS, self.keys & _MASK
        if np.bincount(line).max() <= self.most:
            return self
        upper = codes > _HALF
        near = np.where(upper, 2 * _HALF + 1 - codes, codes)
        bits = np.frexp(np.bitwise_xor(near[1:], near[:-1]).astype(np.float64))[1].astype(np.int64)
        bits[upper[1:] != upper[:-1]] = BITS
        inside = line[1:] == line[:-1]
        apart = np.bincount(line[1:][inside] * (BITS + 1) + bits[inside], minlength=len(self) * (BITS + 1))
        above = apart.reshape(-1, BITS + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]
        # Cells that are left once so many bits are gone: one, and one for each neighbour that differs in a higher bit.
        left = 1 + np.append(above[:, 1:], np.zeros((len(self), 1), np.int64), axis=1)
        return self._dropping(np.maximum(self.drop, np.argmax(left <= self.most, axis=1)))
