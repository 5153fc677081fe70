"""How much terms scatter, and with how many degrees of freedom: all that an interval needs to know of them.

From whichever sums were kept: moments, histograms of predictions, groups. Independent residuals have Σ r² and Σ r³; the
degrees of freedom say how well the first of them is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossent.measure.intervals import interval
from crossent.measure.intervals.cluster import leverages
from crossent.measure.sums.cells import Cells
from crossent.measure.sums.groups import Groups

_Float = NDArray[np.float64]
AGREE = 64 * float(np.finfo(float).eps)
"""A variance below this share of the mean square is rounding."""


@dataclass(frozen=True)
class Spread:
    """Σ r² and Σ r³ of independent residuals, the weight they are of, and their number less one (interval.of_sums)."""

    second: float
    third: float
    total: float
    freedom: float

    def interval(self, value: float) -> interval.Interval:
        """The 95 % interval about ``value``."""
        return interval.of_sums(value, self.second, self.third, self.total, self.freedom)

    def as_skewed(self, second: float, third: float) -> Spread:
        """The same, with the mean of its own skewness and of that which rows with these Σ r² and Σ r³ claim, where that
        is the further one to their side.

        A few groups seldom have the dear mistakes which skewness is made of, and are skewed too little. A model that is
        too sure claims too few mistakes, but claims their skewness, which has no scale.
        """
        if second <= 0:
            return self
        half = (self.third + third * (self.second / second) ** 1.5) / 2
        return replace(self, third=max(self.third, half) if third > 0 else min(self.third, half))


def of_moments(m: _Float, mean: float, weight: float, freedom: float) -> Spread | None:
    """Give the spread of a quantity with the moments ``m`` (powers,) about its mean."""
    second = m[4] - 2 * mean * m[3] + mean**2 * m[2]
    third = m[8] - 3 * mean * m[7] + 3 * mean**2 * m[6] - mean**3 * m[5]
    return Spread(float(second), float(third), weight, freedom) if second > AGREE * m[4] else None


def of_cells(cells: Cells, a: _Float, b: _Float, mean: float) -> tuple[float, float, float]:
    """Σ w² t², Σ w³ t³ for t = a + b y − mean over the rows of all cells, and Σ w² (a + b y)².

    The second is exact for rows that count the same within a cell and labels that are 0 or 1, or alone in their cell.
    """
    two, y, yy = cells.squares
    here = two > 0
    two, y, yy, a, b = two[here], y[here], yy[here], a[here], b[here]
    share = y / two
    scatter = np.maximum(yy / two - share * share, 0.0)
    d = a - mean + b * share
    second = two * (d * d + b * b * scatter)
    cubes = two * two / cells.weight[here]
    third = cubes * (d**3 + 3 * d * b * b * scatter + b**3 * scatter * (1 - 2 * share))
    return float(second.sum()), float(third.sum()), float(np.sum(a * a * two + 2 * a * b * y + b * b * yy))


def costs_of_cells(cells: Cells) -> tuple[_Float, _Float]:
    """What a label of 0, and of 1, costs under the mean prediction of each cell; 0 for cells without rows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(cells.weight > 0, cells.prediction / cells.weight, 0.5)
        zero, one = -np.log1p(-np.minimum(p, 1.0)), -np.log(p)
    # An infinite cost that nobody paid counts nothing; one that was paid is not asked for here.
    return np.where(np.isfinite(zero), zero, 0.0), np.where(np.isfinite(one), one, 0.0)


def as_claimed(cells: Cells, zero: _Float, one: _Float, curve: _Float | None = None) -> tuple[float, float]:
    """How much terms, ``zero`` (cells,) or ``one`` by the label of two, would scatter if labels came as claimed, by the
    model or by a ``curve`` (cells,).

    Over the rows of weight w with claims p: Σ w² Σ_y p_y (t_y − T)² and Σ w³ Σ_y p_y (t_y − T)³, T the mean claim.
    """
    here = cells.weight > 0  # a cell may hold rows of weight 0 alone
    weight, two, zero, one = cells.weight[here], cells.squares[0][here], zero[here], one[here]
    p = np.clip(cells.prediction[here] / weight, 0.0, 1.0) if curve is None else curve[here]
    mean = float(np.sum(weight * (p * one + (1 - p) * zero)) / np.sum(weight))
    second = two * (p * (one - mean) ** 2 + (1 - p) * (zero - mean) ** 2)
    third = two * two / weight * (p * (one - mean) ** 3 + (1 - p) * (zero - mean) ** 3)
    return float(second.sum()), float(third.sum())


def spread_on(cells: Cells, a: _Float, b: _Float, freedom: float) -> Spread | None:
    """Give the spread over single rows of terms that are ``a`` (cells,) for a label of 0 and ``b`` for one of 1; None
    where they agree. Of labels that are classes the degrees of freedom are those of the classes, where they are
    fewer (``freedom_by_class``).
    """
    total = float(cells.weight.sum())
    mean = float(np.sum(a * (cells.weight - cells.label) + b * cells.label)) / total
    second, third, size = of_cells(cells, a, b - a, mean)
    if second <= AGREE * size:
        return None
    if cells.hard:
        two, y, _ = cells.squares
        r, squares = np.stack([a, b]) - mean, np.stack([two - y, y])
        weight = np.stack([cells.weight - cells.label, cells.label])
        sums = (np.sum(x, axis=1) for x in (weight, squares, squares * r, squares * r * r))
        freedom = min(freedom, freedom_by_class(*sums))
    return Spread(second, third, total, freedom)


def of_groups(sums: _Float, groups: Groups, mean: float, differences: bool = False) -> Spread | None:
    """Give the spread of a quantity whose weighted sums by group are ``sums``: the estimator CR2 (``cluster``)."""
    weight = groups.column("weight")
    return clustered(sums - mean * weight, weight, float(np.sum(sums**2)), differences)


def clustered(residual: _Float, weight: _Float, size: float, differences: bool = False) -> Spread | None:
    """Give the spread of independent groups with these residuals and weights; ``size`` is what rounding is held to.

    What rows of a group have in common is not known here, and is taken for all they have: means of groups then scatter
    alike, however many rows they have (``cluster`` with τ_g² = 1). Of all ways in which rows may go together that
    leaves the fewest degrees of freedom. Of ``differences`` between what labels that are classes cost, the few groups
    with a rare class may make most of the scatter: with pulls v_g, S = Σ v² has the variance Σ v⁴ − S² / G of a sum of
    G independent terms, and the degrees of freedom are at most ν = 2 S² / Var S (Satterthwaite 1946, as in
    ``freedom_by_class``), for normal pulls G; but not fewer than 4 for that, as ν is itself an estimate, and one group
    far out would make it 2.
    """
    total = float(weight.sum())
    here = weight > 0
    h, residual = weight[here] / total, residual[here]
    if h.size < 2 or float(np.sum(residual**2)) <= AGREE * size:
        return None
    correction, freedom = leverages(h, np.ones(h.size))
    pulls = residual * np.sqrt(correction)
    scatter = float(np.sum(pulls**2))
    freedom = min(freedom, interval.freedom_of_squares(pulls)) if differences else freedom
    # of_sums widens by one degree of freedom, which the leverages have done already.
    second = scatter / (1 + 1 / freedom)
    third = float(np.sum(pulls**3)) / (1 + 1 / freedom) ** 1.5
    return Spread(second, third, total, freedom)


def freedom_by_class(weight: _Float, squares: _Float, first: _Float, second: _Float) -> float:
    """Give the degrees of freedom of Σ w² r² where classes differ: few, where a rare class makes most of it.

    By class: ``weight`` Σ w, ``squares`` Σ w², ``first`` Σ w² r, ``second`` Σ w² r². Of a class with n_c = (Σ w)²/Σ w²
    rows the sum consists of what scatters inside, W_c, and of what its mean residual makes, B_c = first²/squares. With
    residuals normal inside classes, and numbers of rows that are a multinomial's, S = Σ_c (W_c + B_c) has

        Var S = Σ_c (2 W_c² / (n_c − 1) + 4 W_c B_c / n_c + (W_c + B_c)² / n_c) − S² / n ,

    and ν = 2 S² / Var S is the χ² with the same two moments (Satterthwaite 1946, *Biometrics Bulletin* 2, 110–114).

    >>> rows, first, second = np.array([96.0, 4.0]), np.array([-12.0, 12.0]), np.array([6.0, 40.0])
    >>> round(freedom_by_class(rows, rows, first, second), 1)
    7.9
    """
    here = squares > 0
    weight, squares, first, second = (x[here] for x in (weight, squares, first, second))
    if not weight.size:  # every label had probability 0, and nothing finite is left
        return math.inf
    n = weight**2 / squares
    between = first**2 / squares
    within = np.maximum(second - between, 0.0)
    inside = 2 * within**2 / np.maximum(n - 1, 1.0) + 4 * within * between / n
    variance = float(np.sum(inside + second**2 / n)) - float(np.sum(second)) ** 2 / float(np.sum(n))
    return 2 * float(np.sum(second)) ** 2 / variance if variance > 0 else math.inf
