"""Intervals that hold 95 % of the time: for a mean of skewed rows, and for a share of rows.

**A mean.** The rows of a log loss are skewed to the right: many cheap ones, a few that cost ten times as
much. The plain t interval, symmetric about the mean, then misses the truth far more often than 1 time in 20,
nearly always by lying too low. With T = √n (mean − μ) / s and γ the skewness of the rows, Edgeworth's
expansion is

    P(T ≤ x) = Φ(x) + γ (2x² + 1) φ(x) / (6 √n) + O(1/n),

so that with a = γ / (3 √n)

    g(T) = T + a T² + a² T³ / 3 + a / 2 = ((1 + a T)³ − 1) / (3a) + a / 2

is normal to O(1/n), and the cubic term, of that order itself, makes g rise everywhere, so it has an inverse

    g⁻¹(x) = ((1 + 3a (x − a/2))^{1/3} − 1) / a .

The interval is (mean − s/√n · g⁻¹(t), mean − s/√n · g⁻¹(−t)) with t the 0.975 point of Student's t with n − 1
degrees of freedom: Hall (1992), *On the removal of skewness by transformation*, J. R. Statist. Soc. B 54,
221–228. For γ = 0 it is the t interval. Everything comes from three sums, of the rows and of their centred
second and third powers, in float64.

With fewer than 20 degrees of freedom γ is anybody's guess, its sign too, and may make the interval longer but not
shorter: each end is then the further one of Hall's and of the t interval's.

**A share.** Wilson (1927): all shares that a score test at 5 % does not reject. It never leaves [0, 1] and
has positive width at 0 and at 1. The entropy of two classes is a function of one share that rises up to 1/2 and falls
beyond, so that its interval is what the share's interval is mapped to.

Both take rows for independent of one another. Where they are not (many forecasts of one season, many crops of
one photograph), the intervals are too narrow, and no formula can tell from the rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chndtr, digamma, entr, hyp2f1, hyperu, ndtri, stdtrit

Interval = tuple[float, float] | None
"""The ends, low first; None where the rows cannot tell (fewer than two, all equal, or infinite)."""

_TAIL = 0.975
_LEAST = 0.25
"""With fewer degrees of freedom t's point is above 10⁵ and soon above 10¹⁰⁰: one row of great weight says nothing."""
_FAR = 3000  # so many roundings of an entropy, 1/(2n), from even classes its estimate is normal
FEW = 20
"""With fewer degrees of freedom than this skewness may make an interval longer, but not shorter."""
FEW_HOLD = 8.0
"""Fewer groups than this, with the rarer of two classes, may not have seen what it costs."""
TAME = 0.7
"""They have not, if they scatter less than this share of what single rows would whose labels came as the model claims;
at 1, ten groups of a sure model held 99 % (docs/measure.md)."""
LEAST_FREEDOM = 4.0
"""Degrees of freedom that are themselves an estimate from few groups are no fewer."""


def of_mean(rows: NDArray[np.float64], skewness_corrected: bool = True, scale: float | None = None) -> Interval:
    """Give the 95 % interval of the mean that ``rows`` (n,) were drawn from, after Hall (1992).

    Rows that all agree say nothing about how rows differ, so their interval is None, not of width zero. They
    agree if they differ by no more than rounding of ``scale``: the largest row, or, where rows are
    differences, the largest number that was subtracted. Cost: three passes, O(n).

    >>> low, high = of_mean(np.array([0.1, 0.1, 0.2, 0.3, 2.0]))
    >>> round(low, 2), round(high, 2)  # further above the mean, 0.54, than below it
    (-0.48, 3.84)
    >>> of_mean(np.array([0.3, 0.3, 0.3])) is None
    True
    """
    n = rows.size
    if n < 2 or not np.isfinite(rows).all():
        return None
    mean = float(np.mean(rows))
    centred = rows - mean
    second = float(np.mean(centred * centred))
    size = float(np.max(np.abs(rows))) if scale is None else scale
    if second <= (8 * np.finfo(float).eps * size) ** 2:
        return None
    third = float(np.mean(centred**3)) if skewness_corrected else 0.0
    return of_sums(mean, n * second, n * third, n, n - 1)


def of_sums(mean: float, second: float, third: float, total: float, freedom: float) -> Interval:
    """Give the same interval from sums: what ``of_mean`` does with rows, for weighted rows and for groups of rows.

    With r_i the independent residuals, w_i (x_i − mean) or the sum of that over a group: ``second`` Σ r², ``third``
    Σ r³ (0: no correction for skewness), ``total`` Σ w, and ``freedom`` the independent terms less one, which for
    weights is (Σ w)² / Σ w² − 1.

    >>> of_sums(2.0, 2.0, 0.0, 3, 2) == of_mean(np.array([1.0, 2.0, 3.0]))
    True
    """
    if freedom < _LEAST or second <= 0 or not math.isfinite(second):
        return None
    error = math.sqrt(second * (1 + 1 / freedom)) / total
    t = float(stdtrit(freedom, _TAIL))
    a = third / cubed / 3 if (cubed := second**1.5) else 0.0  # squares of 1e-120 have no cubes
    below, above = _untransformed(t, a), -_untransformed(-t, a)
    if freedom < FEW:
        below, above = max(below, t), max(above, t)
    return mean - error * below, mean + error * above


def _untransformed(x: float, a: float) -> float:
    """g⁻¹(x); without skewness, where the formula is 0/0, its limit x."""
    if abs(a) < 1e-9:
        return x
    return (math.copysign(abs(inner := 1 + 3 * a * (x - a / 2)) ** (1 / 3), inner) - 1) / a


def of_share(hits: NDArray[np.float64], n: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give Wilson's 95 % interval for ``hits`` out of ``n`` (arrays of one shape, n ≥ 1).

    >>> low, high = of_share(np.array([0.0, 5.0]), np.array([10.0, 10.0]))
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([0.0, 0.237], [0.278, 0.763])
    """
    z2 = float(ndtri(_TAIL)) ** 2
    share = hits / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At no hits and at nothing but hits the formula gives 0 and 1 but for rounding.
    low = np.where(hits <= 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(hits >= n, 1.0, np.minimum(centre + half, 1.0))
    return low, high


def of_two_classes(share: float, independent: float) -> tuple[float, float]:
    """Give the 95 % interval of the entropy of two classes, nats, one of which has this ``share`` of so many
    ``independent`` rows: all entropies of shares inside Wilson's interval.

    >>> [round(end, 4) for end in of_two_classes(0.5, 100)]  # the most it can be, which is then inside
    [0.6745, 0.6931]
    """
    ends = [float(end) for end in of_share(np.array(share * independent), np.array(independent))]
    low, high = (float(entr(end) + entr(1 - end)) for end in ends)
    return min(low, high), math.log(2) if ends[0] <= 0.5 <= ends[1] else max(low, high)


def with_more_of(entropy: float, share: float, independent: float, among: int = 1) -> float:
    """Give the most that an ``entropy`` may be, nats, if a class of this ``share``, or so many ``among`` which it is
    even, had all that Wilson's interval leaves it in so many ``independent`` groups. With H₀ the entropy of the others
    among themselves and h that of two classes,

        (1 − π) H₀ + π log among + h(π) ,  π the upper end, but no more than where that is largest.

    >>> round(with_more_of(math.log(2), 0.0, 30), 3), with_more_of(0.0, 0.0, 1) == math.log(2)
    (0.968, True)
    """

    def two(x: float) -> float:
        return float(entr(x) + entr(1 - x))

    others = max((entropy - two(share)) / (1 - share), 0.0)
    high = float(of_share(np.array(share * independent), np.array(independent))[1])
    most = min(high, among / (among + math.exp(others)))
    return entropy if most < share else (1 - most) * others + most * math.log(among) + two(most)


def holders(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give how many groups hold each class, of what (groups, classes) they have of it: (Σ y)² / Σ y², so that a group
    with most of a class tells no more than one.

    >>> holders(np.array([[4.0, 9.0], [4.0, 0.1], [4.0, 0.0]])).round(1).tolist()
    [3.0, 1.0]
    """
    squares = np.maximum(np.sum(labels**2, axis=0), np.finfo(float).tiny)
    return np.asarray(labels.sum(axis=0) ** 2 / squares)


def freedom_of_squares(pulls: NDArray[np.float64]) -> float:
    """Give the most degrees of freedom of S = Σ v² from the scatter of its terms, as ``values/spread.py`` derives it:
    2 S² / (Σ v⁴ − S² / G), but ``LEAST_FREEDOM`` at least; infinitely many where the terms are alike."""
    scatter = float(np.sum(pulls**2))
    variance = float(np.sum(pulls**4)) - scatter**2 / pulls.size
    return max(2 * scatter**2 / variance, LEAST_FREEDOM) if variance > 0 else math.inf


def as_wilson(rows: float, freedom: float) -> float:
    """Give the number of rows with which Wilson's interval, made for the normal, is one by Student's t.

    It depends on z²/n alone, so that t²/n is had by fewer rows.
    """
    return rows * (float(ndtri(_TAIL)) / float(stdtrit(freedom, _TAIL))) ** 2


def of_unseen(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Estimate an entropy from ``counts`` (classes,), each 1 or more, of classes of which some came once: nats, and the
    standard error.

    Chao, Wang & Jost (2013), *Methods Ecol. Evol.* 4, 1091–1100, eq. 5: with X_c the counts, n their sum, f₁ and f₂ how
    many are 1 and 2, and A = 2 f₂ / ((n − 1) f₁ + 2 f₂), which estimates how often a class that came once comes,

        Σ_c X_c/n (ψ(n) − ψ(X_c))  +  f₁/n Σ_{j ≥ 1} (1 − A)^j / (n − 1 + j) .

    What came once tells how much there is that did not come at all. Without an f₂, A = 2 / ((n − 1) (f₁ − 1) + 2). The
    error is the jackknife's: each row left out in turn.

    >>> [round(x, 3) for x in of_unseen(np.array([5.0, 2.0, 1.0, 1.0, 1.0]))]  # what came has 1.359 of itself
    [1.809, 0.623]
    """
    n = float(counts.sum())
    values, times = np.unique(counts, return_counts=True)

    def estimate(n: float, summed: Any, once: Any, twice: Any) -> Any:
        """The same from n, Σ X ψ(X), f₁ and f₂."""
        known = np.where(twice > 0, 2.0 * twice, 2.0)
        rare = known / ((n - 1) * np.where(twice > 0, once, np.maximum(once - 1, 0)) + known)
        return digamma(n) - summed / n + once / n * _tail(n, rare)

    def often(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(x > 0, x * digamma(np.maximum(x, 1.0)), 0.0)

    summed = np.sum(times * often(values))
    f1, f2 = (np.sum(times[values == k]) for k in (1, 2))
    whole = float(estimate(n, summed, f1, f2))
    without = estimate(
        n - 1,
        summed - often(values) + often(values - 1),
        f1 - (values == 1) + (values == 2),
        f2 - (values == 2) + (values == 3),
    )
    rows = values * times
    mean = float(np.sum(rows * without)) / n
    return whole, math.sqrt((n - 1) / n * float(np.sum(rows * (without - mean) ** 2)))


def _tail(n: float, rare: Any) -> Any:
    """Σ_{j ≥ 1} (1 − A)^j / (n − 1 + j), A = ``rare``, to four digits: a hypergeometric series, which overflows for
    small A; there the integral in place of the sum, and the first term of what they differ by (Euler & Maclaurin)."""
    large = np.maximum(rare, 0.1)
    series = (1 - large) / n * hyp2f1(1.0, n, n + 1, 1 - large)
    step, begin = -np.log1p(-np.minimum(rare, 0.1)), n - 0.5
    root = np.exp(-step / 2)
    integral = root * (hyperu(1.0, 1.0, begin * step) - (step + 1 / begin) / (24 * begin))
    return np.where(rare > 0.1, series, integral)


def of_entropy(
    entropy: float, error: float, bias: float, came: int, classes: int, unseen: float = 0.0
) -> tuple[float, float]:
    """Give the 95 % interval of an entropy of more than two ``classes``, of which so many ``came``, estimated from
    frequencies (the plug-in estimate), nats.

    The estimate falls short of log k by X = log k − estimate, and the truth by D = log k − H. Near even classes 2nX is
    noncentral χ² with k − 1 degrees of freedom about 2nD (Wilks 1938), of the mean 2nD + k − 1, which is where the
    ``bias``, (k − 1)/(2n), comes from. Farther off it is normal, with the standard ``error`` of the mean of −log f.
    Both are had by a noncentral χ² whose distance from its mean is stretched so that its variance is

        bias² · 2 / (k − 1) + error² · D / X ,

    the second, that of the linear part, being 0 where classes are even. The interval is all D under which X is neither
    among the 2.5 % smallest nor among the 2.5 % largest, and holds the estimate itself. A class that never came may
    come: the upper end reckons with the bias of all classes, the lower one with that of those that came. Where that is
    known to be more (``of_unseen``), ``unseen`` says by how much the estimate falls short, and both reckon with it.

    >>> low, high = of_entropy(math.log(3) - 0.01, 0.014, 0.01, came=3, classes=3)  # 100 rows
    >>> round(low, 3), high == math.log(3)
    (1.051, True)
    """
    most = math.log(classes)
    x, unit = most - entropy, bias / (came - 1)
    few = max(bias, min(unseen, x)) / unit  # degrees of freedom
    many = max(classes - 1.0, few)
    if x > _FAR * unit:
        half = float(ndtri(_TAIL)) * math.hypot(error, bias * math.sqrt(2 / (came - 1)))
        middle = entropy + few * unit
        return min(max(middle - half, 0.0), entropy), max(min(middle + half, most), entropy)

    def below(d: float, freedom: float) -> float:
        """The probability of an X no larger than that which came, were it d."""
        mean, second = d + unit * freedom, 2 * unit**2 * freedom
        stretch = math.sqrt((second + 4 * unit * d) / (second + error**2 * d / x)) if x > 0 else 1.0
        at = mean + (x - mean) * stretch
        return float(chndtr(at / unit, freedom, d / unit)) if at > 0 else 0.0

    def last(holds: Callable[[float], bool], end: float) -> float:
        """The last d up to ``end`` for which it holds."""
        begin = 0.0
        for _ in range(50):
            middle = (begin + end) / 2
            begin, end = (middle, end) if holds(middle) else (begin, middle)
        return end

    least = 0.0 if below(0.0, many) < _TAIL else last(lambda d: below(d, many) > _TAIL, x)
    greatest = last(lambda d: below(d, few) > 1 - _TAIL, most)
    return max(most - max(greatest, x), 0.0), most - min(least, x)
