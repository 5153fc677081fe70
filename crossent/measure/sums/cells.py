"""Histograms of predictions: how many rows, labels and how much probability in each narrow cell.

``Cells`` are the sums; where a cell begins and ends is a matter of ``distinct``, which is as fine as the data ask for,
or of a ``Grid``, which is fixed: below 1/2 the exponent and the leading bits of the mantissa of p, above 1/2 those of 1
− p, so that its cells are about equally wide in log-odds, 1/``steps`` at most, down to 2^−``octaves``.

Sums over cells are the same to the last bit, whatever the order of the rows (``compensated``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.compensated import Compensated, of_alike, summed, summed_each

_MANTISSA = 52


@dataclass(frozen=True)
class Grid:
    """How fine the cells are: ``steps`` (a power of 2) for each halving of p or of 1 − p, ``octaves`` halvings."""

    steps: int
    octaves: int

    @property
    def half(self) -> int:
        """The cell of exactly 1/2, in the middle."""
        return self.steps * self.octaves

    def __len__(self) -> int:
        return 2 * self.half + 2

    def place(self, p: NDArray[np.float64], rest: NDArray[np.float64]) -> NDArray[np.int64]:
        """The cell of each prediction; ``rest`` is 1 − p, given apart because that difference loses digits near 1.

        >>> grid = Grid(steps=2, octaves=3)
        >>> p = np.array([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0])
        >>> grid.place(p, 1 - p).tolist()
        [0, 1, 4, 4, 6, 9, 12, 13]
        """
        near = np.minimum(p, np.minimum(rest, 0.5))
        shift = _MANTISSA - (self.steps.bit_length() - 1)
        lowest = int(np.float64(2.0 ** -(self.octaves + 1)).view(np.int64)) >> shift
        code = near.view(np.int64)
        code >>= shift
        code -= lowest
        np.maximum(code, 0, out=code)
        upper = p > 0.5
        # 2 upper − 1 is the direction, and upper · (cells − 1) the end from which it counts.
        sign = np.int64(1) - 2 * upper
        code *= sign
        code += upper * np.int64(len(self) - 1)
        return code


COARSE = Grid(steps=4, octaves=32)


def grid_for(classes: int) -> Grid:
    """Give the cells of one class against the rest among many: coarser, so that all classes take some 300 kB."""
    return Grid(steps=max(1, 1 << max(0, (256 // classes).bit_length() - 1)), octaves=32)


@dataclass(frozen=True, eq=False)
class Cells:
    """Sums over the rows of each cell: ``sums`` (2, 3 or 6, …), whose last axis is the cell.

    They are ``weight`` Σ w, ``label`` Σ w y and ``prediction`` Σ w p, which is left out where nobody asks for it, and
    ``square``, Σ w², Σ w² y, Σ w² y², which is None while every weight is 1 and every label 0 or 1: then it is weight,
    label, label.
    """

    sums: Compensated

    @classmethod
    def zeros(cls, *shape: int) -> Cells:
        """Give cells without rows."""
        return cls(Compensated.zeros(3, *shape))

    @classmethod
    def of(
        cls,
        place: NDArray[np.int64],
        size: int,
        p: NDArray[np.float64] | None,
        y: NDArray[np.float64] | NDArray[np.bool_],
        w: NDArray[np.float64] | None,
        alike: bool = False,
    ) -> Cells:
        """Count rows (n,) into ``size`` cells; ``y`` are truth values, or float64 shares. Without ``p`` nothing is kept
        but weight and label. ``alike`` says that ``p`` within a cell are, but for the first (``of_alike``).
        """
        if y.dtype.kind != "f" and w is None:
            counted = np.bincount(2 * place + y, minlength=2 * size).reshape(size, 2)
            found = [Compensated.exact(count.astype(np.float64)) for count in (counted.sum(axis=1), counted[:, 1])]
            if p is not None:
                found.append((of_alike if alike else summed)(place, p, size))
            return cls(Compensated.stack(found))
        one = np.ones(place.size) if w is None else w
        came = one * y
        if p is None:
            return cls(Compensated.stack(summed_each(place, (w, came), size)))
        two = None if w is None else w * w
        return cls(Compensated.stack(summed_each(place, (w, came, one * p, two, one * came, came * came), size)))

    @property
    def weight(self) -> NDArray[np.float64]:
        """Σ w."""
        return self.sums.value[0]

    @property
    def label(self) -> NDArray[np.float64]:
        """Σ w y."""
        return self.sums.value[1]

    @property
    def prediction(self) -> NDArray[np.float64]:
        """Σ w p."""
        return self.sums.value[2]

    @property
    def square(self) -> NDArray[np.float64] | None:
        """Σ w², Σ w² y, Σ w² y², where they had to be kept."""
        return self.sums.value[3:] if len(self.sums.value) > 3 else None

    @property
    def squares(self) -> NDArray[np.float64]:
        """The same, whether or not they had to be kept."""
        return self.sums.value[_SQUARES] if self.square is None else self.sums.value[3:]

    def __add__(self, other: Cells) -> Cells:
        columns = max(len(self.sums.value), len(other.sums.value))
        return Cells(self._of(columns) + other._of(columns))

    def _of(self, columns: int) -> Compensated:
        return self.sums if len(self.sums.value) == columns else self.sums[[*range(3), *_SQUARES]]

    def __getitem__(self, which: int) -> Cells:
        return Cells(self.sums[:, which])

    @staticmethod
    def stack(cells: list[Cells]) -> Cells:
        """Put histograms of one shape side by side."""
        columns = max(len(one.sums.value) for one in cells)
        return Cells(Compensated.stack([one._of(columns) for one in cells], axis=1))

    def take(self, which: NDArray[np.int64]) -> Cells:
        """Some cells of one histogram."""
        return Cells(self.sums[:, which])

    def spread(self, at: NDArray[np.int64], size: int) -> Cells:
        """The same cells of one histogram at these places, all different, among ``size``."""
        return Cells(self.sums.placed(at, size, axis=1))

    def reshape(self, *shape: int) -> Cells:
        """The same cells as arrays of this shape."""
        return Cells(self.sums.reshape(len(self.sums.value), *shape))

    def gathered(self, at: NDArray[np.int64], size: int) -> Cells:
        """Cells added up by a code from 0 to ``size`` − 1."""
        return Cells(self.sums.gathered(at, size))

    @property
    def hard(self) -> bool:
        """Whether every label is 0 or 1."""
        return self.square is None or bool(np.array_equal(self.square[1], self.square[2]))

    def order(self) -> NDArray[np.int64]:
        """Which cells of one histogram have rows, in rising order of their mean prediction."""
        here = np.flatnonzero(self.weight > 0)
        mean = self.prediction[here] / self.weight[here]
        return here[np.argsort(mean, kind="stable")]  # rows that add up to 1 only nearly may be a cell off

    def occupied(self) -> Cells:
        """These cells."""
        return self.take(self.order())


_SQUARES = [0, 1, 1]


BINS = 15
"""Bins of equal width that the calibration error (ECE) is counted in."""


def calibration_bins(
    p: NDArray[np.float64],
    y: NDArray[Any],
    w: NDArray[np.float64] | None,
    code: NDArray[np.int64] | None = None,
    lines: int = 1,
) -> Compensated:
    """Σ w, Σ w y and Σ w p in 15 bins of equal width, ((j − 1)/15, j/15], by lines: (lines, 3, BINS)."""
    place = np.clip(np.ceil(p * BINS).astype(np.int64) - 1, 0, BINS - 1)
    if code is not None:
        place += code * BINS
    cells = Cells.of(place, lines * BINS, None, y, w).sums
    # In every bin but the first exponents differ by one at most.
    predicted = of_alike(place, p, lines * BINS, lines) if w is None else summed(place, w * p, lines * BINS)
    return Compensated.stack([sums.reshape(lines, BINS) for sums in (cells[0], cells[1], predicted)], axis=1)


def bins_by_class(p: NDArray[np.float64], labels: NDArray[Any], w: NDArray[np.float64] | None) -> Compensated:
    """Σ w (p − y) of each class, one against the rest, in the same bins: (classes, BINS)."""
    n, classes = p.shape
    at_once = max(1, (1 << 16) // max(n, 1))  # some columns, which stay in the cache
    return Compensated.join([_bins_of(p, labels, w, c, min(c + at_once, classes)) for c in range(0, classes, at_once)])


def _bins_of(
    p: NDArray[np.float64], labels: NDArray[Any], w: NDArray[np.float64] | None, begin: int, end: int
) -> Compensated:
    """The same of the classes from ``begin`` to ``end``."""
    lines, size = end - begin, (end - begin) * BINS
    p = p[:, begin:end]
    place = np.ceil(p * BINS)
    np.clip(place, 1, BINS, out=place)
    place += np.arange(lines) * BINS - 1
    codes = place.astype(np.int64)
    order: Any = "F" if p.flags.f_contiguous else "C"  # what is computed from p need not lie in memory as p does
    if labels.dtype.kind == "f" or w is not None:
        off = p - (labels[:, begin:end] if labels.dtype.kind == "f" else labels[:, None] == np.arange(begin, end))
        off = off if w is None else off * w[:, None]
        found = summed(codes.ravel(order=order), off.ravel(order=order), size)
    else:
        here = np.flatnonzero((labels >= begin) & (labels < end))
        came = np.bincount(codes[here, labels[here] - begin], minlength=size)
        found = of_alike(codes.ravel(order=order), p.ravel(order=order), size, lines) + Compensated.exact(
            -came.astype(np.float64)
        )
    return found.reshape(lines, BINS)


COST_GRID = (16, 64)
"""Cells of a row's cost: 16 for each doubling, from 2⁻⁴⁸ to 2¹⁶ nats."""


def place_of_cost(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cell of each finite cost; those below 2⁻⁴⁸ nats, 0 among them, are in the first."""
    steps, octaves = COST_GRID
    shift = _MANTISSA - (steps.bit_length() - 1)
    lowest = int(np.float64(2.0**-48).view(np.int64)) >> shift
    return np.clip((cost.view(np.int64) >> shift) - lowest, 0, steps * octaves - 1)


def costs_by_size(cost: NDArray[np.float64], w: NDArray[np.float64] | None) -> Compensated:
    """Σ w and Σ w cost in the cells of costs, which are finite: (2, cells)."""
    place, size = place_of_cost(cost), math.prod(COST_GRID)
    if w is not None:
        return Compensated.stack(summed_each(place, (w, w * cost), size))
    counted = np.bincount(place, minlength=size)
    # Costs in the last cell, from 2¹⁶ nats on, may have many exponents, as those in the first.
    of_cost = (summed if counted[-1] else of_alike)(place, cost, size)
    return Compensated.stack([Compensated.exact(counted.astype(np.float64)), of_cost])
