"""Histograms of predictions: how many rows, labels and how much probability in each narrow cell.

``Cells`` are the sums; where a cell begins and ends is a matter of ``distinct``, which is as fine as the data ask for,
or of a ``Grid``, which is fixed: below 1/2 the exponent and the leading bits of the mantissa of p, above 1/2 those of 1
− p, so that its cells are about equally wide in log-odds, 1/``steps`` at most, down to 2^−``octaves``.

Sums over cells are exact for rows that count 1 and labels that are 0 or 1, whatever the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.compensated import summed

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
    """Sums over the rows of each cell, arrays of one shape whose last axis is the cell.

    ``weight`` Σ w, ``label`` Σ w y and ``prediction`` Σ w p; ``square`` is Σ w², Σ w² y, Σ w² y², one more axis in
    front, and None while every weight is 1 and every label 0 or 1: then it is weight, label, label.
    """

    weight: NDArray[np.float64]
    label: NDArray[np.float64]
    prediction: NDArray[np.float64]
    square: NDArray[np.float64] | None = None

    @classmethod
    def zeros(cls, *shape: int) -> Cells:
        """Give cells without rows."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    @classmethod
    def of(
        cls,
        place: NDArray[np.int64],
        size: int,
        p: NDArray[np.float64],
        y: NDArray[np.float64] | NDArray[np.bool_],
        w: NDArray[np.float64] | None,
    ) -> Cells:
        """Count rows (n,) into ``size`` cells; ``y`` are truth values, or float64 shares."""
        hard = y.dtype.kind != "f"
        if hard and w is None:
            weight = np.bincount(place, minlength=size).astype(np.float64)
            label = np.bincount(place[np.flatnonzero(y)], minlength=size).astype(np.float64)
            return cls(weight, label, summed(place, p, size))
        one = np.ones(place.size) if w is None else w

        def total(x: NDArray[np.float64]) -> NDArray[np.float64]:
            return summed(place, x, size)

        two = one * one
        square = np.stack([total(two), total(two * y), total(two * y * y)])
        return cls(total(one), total(one * y), total(one * p), square)

    @property
    def squares(self) -> NDArray[np.float64]:
        """Σ w², Σ w² y, Σ w² y², whether or not they had to be kept."""
        return np.stack([self.weight, self.label, self.label]) if self.square is None else self.square

    def __add__(self, other: Cells) -> Cells:
        kept = self.square is not None or other.square is not None
        return Cells(
            self.weight + other.weight,
            self.label + other.label,
            self.prediction + other.prediction,
            self.squares + other.squares if kept else None,
        )

    def __getitem__(self, which: int) -> Cells:
        square = None if self.square is None else self.square[:, which]
        return Cells(self.weight[which], self.label[which], self.prediction[which], square)

    @staticmethod
    def stack(cells: list[Cells]) -> Cells:
        """Put histograms of one shape side by side."""
        kept = any(one.square is not None for one in cells)
        return Cells(
            np.stack([one.weight for one in cells]),
            np.stack([one.label for one in cells]),
            np.stack([one.prediction for one in cells]),
            np.stack([one.squares for one in cells], axis=1) if kept else None,
        )

    def take(self, which: NDArray[np.int64]) -> Cells:
        """Some cells of one histogram."""
        square = None if self.square is None else self.square[:, which]
        return Cells(self.weight[which], self.label[which], self.prediction[which], square)

    def spread(self, at: NDArray[np.int64], size: int) -> Cells:
        """The same cells at these places, all different, among ``size``."""

        def wide(x: NDArray[np.float64]) -> NDArray[np.float64]:
            found = np.zeros((*x.shape[:-1], size))
            found[..., at] = x
            return found

        square = None if self.square is None else wide(self.square)
        return Cells(wide(self.weight), wide(self.label), wide(self.prediction), square)

    def reshape(self, *shape: int) -> Cells:
        """The same cells as arrays of this shape."""
        square = None if self.square is None else self.square.reshape(3, *shape)
        return Cells(self.weight.reshape(shape), self.label.reshape(shape), self.prediction.reshape(shape), square)

    def gathered(self, at: NDArray[np.int64], size: int) -> Cells:
        """Cells added up by a code from 0 to ``size`` − 1."""
        square = None if self.square is None else np.stack([summed(at, x, size) for x in self.square])
        weight, label, prediction = (summed(at, x, size) for x in (self.weight, self.label, self.prediction))
        return Cells(weight, label, prediction, square)

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


BINS = 15
"""Bins of equal width that the calibration error (ECE) is counted in."""


def calibration_bins(
    p: NDArray[np.float64],
    y: NDArray[Any],
    w: NDArray[np.float64] | None,
    code: NDArray[np.int64] | None = None,
    lines: int = 1,
) -> NDArray[np.float64]:
    """Σ w, Σ w y and Σ w p in 15 bins of equal width, ((j − 1)/15, j/15], by lines: (lines, 3, BINS)."""
    place = np.clip(np.ceil(p * BINS).astype(np.int64) - 1, 0, BINS - 1)
    if code is not None:
        place += code * BINS
    came, predicted = (y, p) if w is None else (w * y, w * p)
    found = np.stack([np.bincount(place, x, minlength=lines * BINS) for x in (w, came, predicted)])
    return np.swapaxes(found.astype(np.float64).reshape(3, lines, BINS), 0, 1)


def bins_by_class(p: NDArray[np.float64], labels: NDArray[Any], w: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Σ w (p − y) of each class, one against the rest, in the same bins: (classes, BINS)."""
    classes = p.shape[1]
    place = np.ceil(p * BINS)
    np.clip(place, 1, BINS, out=place)
    place += np.arange(classes) * BINS - 1
    codes = place.astype(np.int64)
    mass = p if w is None else p * w[:, None]
    found = np.bincount(codes.ravel(), mass.ravel(), minlength=classes * BINS).astype(np.float64, copy=False)
    if labels.dtype.kind == "f":
        came = labels if w is None else labels * w[:, None]
        found -= np.bincount(codes.ravel(), came.ravel(), minlength=classes * BINS)
    else:
        found -= np.bincount(codes[np.arange(labels.size), labels], w, minlength=classes * BINS)
    return found.reshape(classes, BINS)


COST_GRID = (16, 64)
"""Cells of a row's cost: 16 for each doubling, from 2⁻⁴⁸ to 2¹⁶ nats."""


def place_of_cost(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The cell of each finite cost; those below 2⁻⁴⁸ nats, 0 among them, are in the first."""
    steps, octaves = COST_GRID
    shift = _MANTISSA - (steps.bit_length() - 1)
    lowest = int(np.float64(2.0**-48).view(np.int64)) >> shift
    return np.clip((cost.view(np.int64) >> shift) - lowest, 0, steps * octaves - 1)
