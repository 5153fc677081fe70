"""What few labels cannot tell of a difference, and the models claim.

Ten clusters whose rows come or fail together are ten labels. Dear mistakes that one sample in two has none of make the
difference of two models, and no formula knows their scatter from a sample without them. The models have claimed it:
with p the mean of what both say, a row's difference is a with probability p and b otherwise, and of a cluster whose
rows share one draw u, the label of each being u < p, the sum is a step function of u with as many steps as rows. So

    V = Σ_g ρ E S_g²(u) + (1 − ρ) (Σ_i h_i² p_i (1 − p_i) (a_i − b_i)² + (E S_g)²),        S_g = Σ_i h_i (d_i − D),

h_i a row's share of the weight, D the claimed mean, ρ how much labels of a cluster go together: the mean of r_i r_j
over its pairs beside that of r², r = (y − p) / √(p (1 − p)) (the moments' estimate of the correlation within
clusters). It is asked for where the rows are worth fewer than ``FEW_LABELS`` independent ones, n / (1 + (m − 1) ρ) with
m the rows of a cluster that a row is in, on average. The clusters' own error then has ``CLAIMED_FREEDOM`` more degrees
of freedom, and where this one is larger each end of the interval is the further one of two, by either error: Student's
tails are there for errors that come out too small, and where the larger of two counts that happens less often. Beside
this error there is no skewness: Hall's cubic is there because a mean and an error from the same rows go together, and
this error does not come from their labels.

More clusters than that are believed by and by: what is claimed counts as ``CLAIMED_FREEDOM`` more squares beside their
own, where it is more (``steadied``).

A rare class in thirty clusters or a hundred, or in a hundred single rows, is held by few of them, whatever the rows are
worth. Where these are fewer than ``FEW_HOLD`` (``intervals/interval.py``) and clusters scatter less than ``TAME`` of
what single rows would, or none holds it, V is that of labels that come as claimed, rows of a cluster being one draw;
else the degrees of freedom are at most those of the clusters' own squares (``values/spread.py``). How often that holds:
docs/guides/compare.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossent.measure.intervals.interval import FEW_HOLD, TAME, freedom_of_squares, holders

FEW_LABELS = 40
CLAIMED_FREEDOM = 6
"""Degrees of freedom beyond those of the clusters, of an error that claims hold up."""
_Float = NDArray[np.float64]


def claimed_error(
    one: _Float,
    other: _Float,
    came: NDArray[np.bool_],
    share: _Float,
    clusters: NDArray[np.int64],
    enough: float = FEW_LABELS,
) -> float | None:
    """Give √V of the mean difference ``other`` − ``one`` of costs (n,), finite, of two classes; ``came`` whether the
    label was the second; None where there are labels ``enough``. Cost: a sort.

    >>> cost, came = np.full(40, np.log(2)), np.arange(40) < 20
    >>> surer = np.where(came, -np.log(0.7), -np.log(0.3))
    >>> claimed_error(cost, surer, came, np.full(40, 1 / 40), np.arange(40)) is None
    True
    >>> round(claimed_error(cost, surer, came, np.full(40, 1 / 40), np.arange(40) // 10), 3)
    0.208
    """
    p, a, b = _claims(one, other, came)
    rows = np.bincount(clusters)
    residual = (came - p) / np.sqrt(np.maximum(p * (1 - p), 1e-3))
    square = float(np.sum(residual**2))
    pairs = float(np.sum(rows**2)) - came.size
    together = 0.0
    if pairs and square:
        alike = (float(np.sum(np.bincount(clusters, residual) ** 2)) - square) / pairs
        together = min(max(alike / (square / came.size), 0.0), 1.0)
    if came.size / (1 + pairs / came.size * together) >= enough:
        return None
    mean = float(np.sum(share * (p * a + (1 - p) * b)))
    order = np.lexsort((p, clusters))
    cluster = clusters[order]
    p, h, a, b = (x[order] for x in (p, share, a, b))
    step, base = h * (a - b), np.bincount(cluster, h * (b - mean)).astype(np.float64)
    last = np.cumsum(rows) - 1
    begin = np.concatenate([[0], last[:-1] + 1])
    whole = base + np.bincount(cluster, step)
    before = np.cumsum(step) - step
    steps = whole[cluster] - (before - before[begin][cluster])  # of u from p_(k−1) to p_k: labels from k on have come
    least = np.concatenate([[0.0], p[:-1]])
    least[begin] = 0.0
    common = float(np.sum((p - least) * steps**2) + np.sum((1 - p[last]) * base**2))
    alone = float(np.sum(p * (1 - p) * step**2) + np.sum((base + np.bincount(cluster, p * step)) ** 2))
    return math.sqrt(together * common + (1 - together) * alone)


def steadied(
    one: _Float, other: _Float, came: NDArray[np.bool_], share: _Float, clusters: NDArray[np.int64], error: float
) -> float:
    """Give the ``error`` of clusters, held up by what is claimed if that is more.

    Squares of the clusters' pulls have the degrees of freedom that their own scatter says (``freedom_of_squares``), and
    claims count as ``CLAIMED_FREEDOM`` more: the error's square is the mean of both, weighed by these. Cost: a sort.

    >>> cost, came = np.full(40, np.log(2)), np.arange(40) < 8
    >>> surer = np.where(came, -np.log(0.7), -np.log(0.3))
    >>> round(steadied(cost, surer, came, np.full(40, 1 / 40), np.arange(40), 0.05), 4)  # 0.066 is claimed
    0.0525
    """
    claimed = claimed_error(one, other, came, share, clusters, math.inf)
    if claimed is None or claimed <= error:
        return error
    weight = CLAIMED_FREEDOM / (CLAIMED_FREEDOM + freedom_of_squares(_pulls(one, other, share, clusters)))
    return math.sqrt((1 - weight) * error**2 + weight * claimed**2)


def of_rare(
    one: _Float, other: _Float, came: NDArray[np.bool_], share: _Float, clusters: NDArray[np.int64], error: float
) -> tuple[float | None, float]:
    """Give √V, or None where the clusters' own ``error`` is to be believed, and the most degrees of freedom of that.

    It is (None, inf) where the rarer label is held by clusters enough: ``FEW_HOLD``, or half of what all are worth,
    counted as (Σ y)² / Σ y² with y what a cluster has of it. Cost: O(n).

    >>> cost, came = np.full(300, 0.02), np.zeros(300, bool)  # nobody has it, and one model claims twice as much of it
    >>> found, freedom = of_rare(cost, 2 * cost, came, np.full(300, 1 / 300), np.arange(300) // 10, 1e-9)
    >>> round(found, 4), freedom
    (0.0217, 29.0)
    """
    held = np.stack([np.bincount(clusters, share * here) for here in (came, ~came)], axis=1).astype(np.float64)
    size = held.sum(axis=1)
    if holders(held).min() >= min(FEW_HOLD, 1 / (2 * np.sum(size**2))):
        return None, math.inf
    p, a, b = _claims(one, other, came)
    mean = float(np.sum(share * (p * a + (1 - p) * b)))
    alone = float(np.sum(share**2 * (p * (a - mean) ** 2 + (1 - p) * (b - mean) ** 2)))
    if error**2 < TAME * alone or not held.sum(axis=0).all():
        unseen = math.sqrt(alone * float(np.sum(size**2) / np.sum(share**2)))
        return max(error, unseen), size.size - 1.0
    return None, freedom_of_squares(_pulls(one, other, share, clusters))


def _pulls(one: _Float, other: _Float, share: _Float, clusters: NDArray[np.int64]) -> _Float:
    """By how much each cluster moves the mean difference."""
    pull = share * (other - one - float(np.sum(share * (other - one))))
    return np.bincount(clusters, pull).astype(np.float64)


def _claims(one: _Float, other: _Float, came: NDArray[np.bool_]) -> tuple[_Float, _Float, _Float]:
    """What both models claim of the second label, on average, and the difference of their costs for it and without."""
    (it, without), (its, withouts) = (_logs(cost, came) for cost in (one, other))
    with np.errstate(invalid="ignore"):  # where both are certain that it never comes, or always does
        a, b = it - its, without - withouts
    a, b = (np.where(np.isfinite(x), x, 0.0) for x in (a, b))
    return (np.exp(it) + np.exp(its)) / 2, a, b


def _logs(cost: _Float, came: NDArray[np.bool_]) -> tuple[_Float, _Float]:
    """Log-probabilities that the second label comes and that it does not, by what the one that came has cost."""
    with np.errstate(divide="ignore"):
        other = np.log(-np.expm1(-cost))
    return np.where(came, -cost, other), np.where(came, other, -cost)
