"""The mean of rows that come in clusters: its error, its interval, its p-value.

Two models measured on the same rows give one difference of costs per row, d_i. Rows hard for one are mostly hard for
the other, so that the differences scatter far less than the costs, and all that is said about which model is better
comes from them. Neither rows nor differences need be independent: forecasts of one game, photographs of one patient,
tokens of one document stand and fall together, and only clusters of them are independent. With weights w_i,
W = Σ w_i and D = Σ w_i d_i / W, cluster g (without clusters every row is one) moves the mean by

    u_g = Σ_{i in g} w_i (d_i − D) / W,         h_g = Σ_{i in g} w_i / W,

h_g its leverage. What is expected of u_g² depends on τ_g², the variance of the mean of a cluster's rows about the
truth, and on how much of D a cluster is itself. If clusters share nothing but the truth, then with V = Σ h_g² τ_g²,

    E u_g² = h_g² (τ_g² (1 − 2 h_g) + V),        E (D − truth)² = V,

so that  error² = Σ_g v_g²,  v_g = u_g r_g,  r_g² = τ_g² / (τ_g² (1 − 2 h_g) + V)  is unbiased: the estimator CR2 of
Bell & McCaffrey (2002), *Survey Methodology* 28, 169–181, for a mean. The degrees of freedom that match its first two
moments are, with f_g = r_g² h_g² and x_g = h_g τ_g²,

    ν = V² / ( Σ_{g≠k} f_g f_k (V − x_g − x_k)²  +  Σ_g f_g² (τ_g² − 2 x_g + V)² ),

sums of single sums once it is multiplied out. Only ratios of the τ_g² matter. Single rows have τ² ∝ 1/w. In clusters
τ_g² = σ_b² + σ_e² / m_g, m_g the rows (their weight, 1 on average), with σ_b², what a cluster's rows have in common,
and σ_e² from the analysis of variance, as Imbens & Kolesár (2016) advise, *Rev. Econ. Stat.* 98, 701–712.

G equal clusters give ν = G − 1 and the textbook's t test on their means; n single rows of equal weight give the paired
t test; one cluster that holds half of the rows leaves little more than ν = 1, however many others there are, which
G − 1 does not see. Single rows of unequal weight give a little less than (Σ w)² / Σ w², the effective number of rows.

Differences are skewed, in the direction of the model that is surer of itself. So D / error is made symmetric by Hall's
cubic (1992), as in ``interval``, with the skewness of the clusters' pulls,

    a = Σ v_g³ / (3 (Σ v_g²)^{3/2}),        g(T) = ((1 + a T)³ − 1) / (3a) + a / 2,

and g(T) is held against Student's t with ν degrees of freedom. The interval is all μ that this test does not reject,
and the p-value is that of μ = 0, so that the two never contradict one another. For a = 0 both are those of the t test.
Beyond the 95 % points of g, where the cubic would make a p-value of 10⁻⁹ out of seven clusters, g is not let grow
faster than T; it may grow more slowly.

a is itself estimated, and goes along with T: where pulls have long tails to both sides, one that is far out moves D and
a to its side, and the cubic makes shorter just that end which the truth is beyond. With γ the skewness of the pulls and
κ their excess kurtosis, a is (κ − γ²) T / 3G on average where nothing is skewed. So where a makes an end shorter, it is
brought nearer to 0 by that much, T being t (``chance``); of unequal clusters 2/ν stands for the 2/G of normal pulls:

    (Σ v⁴ / S² − 1/G − (Σ v³)² / S³ − 2/ν) / 3,        S = Σ v²,  not below 0.

Of a sure model, whose kurtosis comes with its skewness, nothing is taken. How often such intervals hold:
docs/guides/compare.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

_POWER = 0.8
ROUNDING = 8 * float(np.finfo(float).eps)
"""Numbers that differ by less than this share of the largest that went into them are equal."""


@dataclass(frozen=True)
class ClusterMean:
    """A mean, ``value``, and what is known of its error.

    ``error`` is the standard error, None where the rows cannot tell it: fewer than two clusters, or rows that all
    agree. ``freedom`` are the degrees of freedom ν, ``lean`` is a, ``rows`` and ``clusters`` are counted without those
    of weight 0. ``beside`` is the same mean with what is known of its error from elsewhere: a truth is rejected where
    both reject it, so that each end of the interval is the further of two, and the p-value the larger. ``chance`` is
    what a would be at T = 1 if nothing were skewed.
    """

    value: float
    error: float | None
    freedom: float
    lean: float
    rows: int
    clusters: int
    beside: ClusterMean | None = None
    chance: float = 0.0

    def interval(self, miss: float = 0.05) -> tuple[float | None, float | None]:
        """Give the ends of the interval that misses the truth with probability ``miss``, (None, None) without an
        error.

        Several intervals are to hold together: give each ``miss`` divided by their number (Bonferroni).
        """
        if self.error is None:
            return None, None
        t = float(stdtrit(self.freedom, 1 - miss / 2))
        low, high = self.value - self.error * self._quantile(t), self.value - self.error * self._quantile(-t)
        other = (None, None) if self.beside is None else self.beside.interval(miss)
        return low if other[0] is None else min(low, other[0]), high if other[1] is None else max(high, other[1])

    @property
    def freedom_of_tails(self) -> float:
        """What is left of ν where squares of the pulls scatter more than those of normal ones, 2/ν, and not along with
        the pulls, which is what the cubic is for."""
        return 1 / (1 / self.freedom + 1.5 * self.chance)

    @property
    def p_value(self) -> float | None:
        """The probability, were the true mean 0, of a T as far out as this one, on either side."""
        if self.error is None:
            return None
        x = self.value / self.error
        usual = float(stdtrit(self.freedom, 0.975))
        lean = self._lean(x, usual)
        g = abs(_transformed(x, lean))
        edge = _untransformed(math.copysign(usual, x), lean)
        if abs(x) > abs(edge):
            g = min(g, usual + abs(x) - abs(edge))
        own = float(min(1.0, 2 * stdtr(self.freedom, -g)))
        return own if self.beside is None else max(own, self.beside.p_value or 0.0)

    def _quantile(self, t: float) -> float:
        """The T that the test holds against ``t``: the inverse of g, which beyond 95 % is never steeper than 1."""
        usual = float(stdtrit(self.freedom, 0.975))
        lean = self._lean(t, usual)
        x = _untransformed(t, lean)
        if abs(t) <= usual:
            return x
        edge = _untransformed(math.copysign(usual, t), lean)
        return math.copysign(max(abs(x), abs(edge) + abs(t) - usual), t)

    def _lean(self, t: float, usual: float) -> float:
        """a for the side of ``t``: where it makes the interval shorter, without what it would be by chance."""
        if self.lean * t <= 0:
            return self.lean
        return math.copysign(max(abs(self.lean) - self.chance * usual, 0.0), self.lean)

    @property
    def rows_needed(self) -> float | None:
        """Roughly how many rows like these would show a difference of this size, 4 times out of 5.

        n (z₀.₉₇₅ + z₀.₈)² error² / value², the clusters growing in number and not in size. It takes the difference for
        as large as it looks, which nobody knows; infinite where it is 0, None without an error.
        """
        if self.error is None:
            return None
        if self.value == 0:
            return math.inf
        error = max(self.error, (self.beside and self.beside.error) or 0.0)
        return self.rows * (float(ndtri(0.975) + ndtri(_POWER)) * error / self.value) ** 2


def cluster_mean(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    clusters: NDArray[np.int64] | None = None,
    scale: float | None = None,
    further: float = 0.0,
) -> ClusterMean:
    """Estimate the mean that ``rows`` (n,) were drawn from: costs, or differences of costs.

    ``weights`` (n,), 0 or more, are what a row counts, not how often it was seen; their scale does not matter.
    ``clusters`` (n,) are whole numbers from 0. Rows agree if they differ by no more than rounding of ``scale``: the
    largest of them, or, where they are differences, the largest number that was subtracted. ``further`` is a standard
    deviation of the value from elsewhere, independent of the rows' own; its square is added to that of the error. Cost
    O(n): three columns.

    >>> found = cluster_mean(np.array([0.1, 0.3, 0.2, 0.6]))
    >>> round(found.value, 3), round(found.error, 3), round(found.freedom), round(found.p_value, 3)
    (0.3, 0.108, 3, 0.038)
    >>> in_pairs = cluster_mean(np.array([0.1, 0.3, 0.2, 0.6]), clusters=np.array([0, 0, 1, 1]))
    >>> round(in_pairs.error, 3), round(in_pairs.freedom)
    (0.1, 1)
    """
    d = np.asarray(rows, dtype=np.float64)
    w = np.ones_like(d) if weights is None else weights
    n = int(np.count_nonzero(w))
    if not n or not np.isfinite(d[w > 0]).all():
        raise ValueError("a mean needs a row that counts, and rows that are finite.")
    h = w / np.sum(w)
    value = float(np.sum(h * d))
    pull = h * (d - value)
    size = float(np.max(np.abs(d))) if scale is None else scale
    agree = bool(np.max(np.abs(d[w > 0] - value)) <= ROUNDING * size)
    counts = w > 0
    if clusters is None:
        h, pull = h[counts], pull[counts]
        variance = 1 / (h * h.size)
    else:
        clusters = np.unique(clusters[counts], return_inverse=True)[1]
        variance = _variances(d[counts], w[counts] / np.mean(w[counts]), clusters)
        h, pull = (np.bincount(clusters, cells[counts]).astype(np.float64) for cells in (h, pull))
    if h.size < 2 or (agree and not further):
        return ClusterMean(value, None, 0.0, 0.0, n, int(h.size))
    r2, freedom = leverages(h, variance)
    v = pull * np.sqrt(r2)
    second = float(np.sum(v * v))
    # Clusters whose pulls are all zero to rounding know nothing of their scatter, however their rows differ.
    if second <= (ROUNDING * size) ** 2 / h.size and not further:
        return ClusterMean(value, None, 0.0, 0.0, n, int(h.size))
    error = math.sqrt(second + further * further)
    v = v / error  # powers of very small pulls would be 0
    square, third, fourth = (float(np.sum(v**power)) for power in (2, 3, 4))
    by_chance = fourth - square**2 / h.size - (third**2 / square if square else 0.0) - 2 * square**2 / freedom
    return ClusterMean(value, error, freedom, third / 3, n, int(h.size), chance=max(by_chance, 0.0) / 3)


def leverages(h: NDArray[np.float64], variance: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Give r_g² (clusters,) and ν from the leverages h_g, which add up to 1, and the τ_g², of which ratios count.

    >>> r2, freedom = leverages(np.full(5, 0.2), np.ones(5))
    >>> r2.round(3).tolist(), round(freedom, 3)  # 5/4 and 4, the textbook's
    ([1.25, 1.25, 1.25, 1.25, 1.25], 4.0)
    """
    variance = variance / np.max(variance)  # its square, of costs of 1e-80, would be 0
    whole = float(np.sum(h * h * variance))
    r2 = variance / (variance * (1 - 2 * h) + whole)
    f, x = r2 * h * h, h * variance
    pairs = whole**2 * np.sum(f) ** 2 + 2 * np.sum(f * x * x) * np.sum(f) - 4 * whole * np.sum(f * x) * np.sum(f)
    pairs += 2 * np.sum(f * x) ** 2 - np.sum((f * (whole - 2 * x)) ** 2)
    return r2, whole**2 / float(pairs + np.sum((f * (variance - 2 * x + whole)) ** 2))


def _variances(d: NDArray[np.float64], w: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """The variance of each cluster's mean, up to a factor: σ_b² + σ_e² / m_g, σ_b² and σ_e² by analysis of variance.

    Σ_i w_i (d_i − mean_g)² / (n − G) estimates σ_e², and Σ_g m_g (mean_g − D)² / (G − 1) that plus n₀ σ_b², with
    n₀ = (n − Σ m_g² / n) / (G − 1); a σ_b² that comes out below 0 is 0.
    """
    m = np.bincount(clusters, w)
    n, count = d.size, m.size
    if count < 2:
        return np.ones(count)
    mean = np.bincount(clusters, w * d) / m
    own = float(np.sum(w * (d - mean[clusters]) ** 2)) / (n - count) if n > count else 0.0
    between = float(np.sum(m * (mean - np.average(mean, weights=m)) ** 2)) / (count - 1)
    shared = max(between - own, 0.0) / ((n - float(np.sum(m * m)) / n) / (count - 1))
    return shared + own / m if own + shared and n > count else 1 / m


def holm(p_values: list[float | None]) -> list[float | None]:
    """Adjust p-values for their number: Holm (1979), *Scand. J. Statist.* 6, 65–70. None stays None and counts not.

    The k-th smallest of m is multiplied by m − k + 1, none falls below a smaller one, none exceeds 1. To call
    differences real where the adjusted p is below 5 % is wrong about any of them one time in twenty at most, whatever
    the tests have to do with one another.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        adjusted[i] = least
    return adjusted


def _transformed(x: float, a: float) -> float:
    """g(x), multiplied out: without skewness it is x."""
    return x + a * x * x + a * a * x**3 / 3 + a / 2


def _untransformed(x: float, a: float) -> float:
    """g⁻¹(x); without skewness, where the formula is 0/0, its limit x."""
    return x if abs(a) < 1e-9 else (float(np.cbrt(1 + 3 * a * (x - a / 2))) - 1) / a
