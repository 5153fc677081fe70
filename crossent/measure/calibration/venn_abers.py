"""Venn–Abers: isotonic regression with the new row in it, once as a 1 and once as a 0, for every score at once.

An inductive Venn–Abers predictor (Vovk, Petej & Fedorova 2015) adds a new row of score s to the n it knows, with label
1, fits isotonic regression, and reads off p₁(s); and the same with label 0 gives p₀(s). One of the two is the value of
a calibrated predictor, whatever the scores are worth, and neither is ever certain: p₁ ≥ 1/(n + 1), p₀ ≤ 1 − 1/(n + 1).

Let equal scores be one block, with w rows of which y are ones, blocks 1 … m in the order of their scores, and P_j =
(Σ_{i≤j} w_i, Σ_{i≤j} y_i) with P_0 = (0, 0). Isotonic regression is the slope of the greatest convex minorant of these
points (Barlow et al. 1972, theorem 1.1). A 1 that stands before block i is a segment (1, 1) between P_{i−1} and P_i,
all points from P_i on moved by it; p₁ is the slope of the minorant over that segment, and the same for all s in
(s_{i−1}, s_i], because a 1 is never pooled with what comes before it alone. Start with the segment in front of all
blocks and let it change places with one block after the other: only one point moves, and the corners of the minorant
that lie to its right are kept on a stack. Every point is pushed and popped at most twice: O(m) after sorting
(algorithms 1 and 2 there). p₀ needs no algorithm of its own: turned around, with ones for zeros, it is 1 − p₁.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.measure.calibration.rows import Floats, Rows
from crossent.measure.calibration.steps import Curve, VennAbers, numbers, pairs


def fit_venn_abers(rows: Rows) -> VennAbers:
    """Find the staircases of each pair of classes, from the rows of either class; O(n log n) for each pair."""
    curves = []
    for i, j in pairs(rows.classes):
        here = (rows.y == i) | (rows.y == j)
        with np.errstate(invalid="ignore"):
            odds = rows.z[here, j] - rows.z[here, i]
        curves.append(fit_curve(np.where(np.isnan(odds), 0.0, odds), rows.y[here] == j))
    return VennAbers(tuple(curves))


def fit_curve(scores: Floats, labels: NDArray[np.bool_]) -> Curve:
    """Find both staircases of scores (n,), which may be infinite, and labels (n,) true or false.

    >>> curve = fit_curve(np.array([-1.0, 0.0, 1.0]), np.array([False, True, True]))
    >>> curve.high  # of a 1 at or below −1, above that
    (0.5, 1.0)
    >>> [round(value, 3) for value in curve.low]  # of a 0 below 0, from there on, from 1 on
    [0.0, 0.5, 0.667]
    """
    edges, block = np.unique(scores, return_inverse=True)
    count = np.bincount(block, minlength=edges.size).astype(np.float64)
    ones = np.bincount(block, labels.astype(np.float64), minlength=edges.size).astype(np.float64)
    high = np.append(_ones_before(count, ones), 1.0)
    low = 1 - np.append(_ones_before(count[::-1], (count - ones)[::-1]), 1.0)[::-1]
    up, down = np.flatnonzero(np.diff(high)), np.flatnonzero(np.diff(low))  # edges at which nothing changes are none
    return Curve(
        numbers(edges[up]),
        numbers(high[np.append(up, edges.size)]),
        numbers(edges[down]),
        numbers(low[np.append(0, down + 1)]),
    )


def _ones_before(count: Floats, ones: Floats) -> Floats:
    """Give for each block the value of isotonic regression at a single 1 that stands before it."""
    m = count.size
    x = [-1.0, 0.0, *np.cumsum(count).tolist()]  # P_{−1} is where the segment starts, in front of all blocks
    y = [-1.0, 0.0, *np.cumsum(ones).tolist()]

    def above(i: int, j: int, k: int) -> bool:
        """Whether the middle one of three points, from left to right, is no corner of a convex minorant."""
        return (y[j] - y[i]) * (x[k] - x[j]) >= (y[k] - y[j]) * (x[j] - x[i])

    corners: list[int] = []
    for j in range(m + 1, -1, -1):  # from right to left, so that the leftmost corner ends on top
        while len(corners) > 1 and above(j, corners[-1], corners[-2]):
            corners.pop()
        corners.append(j)
    found = np.empty(m)
    for i in range(m):
        left, right = corners[-1], corners[-2]
        found[i] = (y[right] - y[left]) / (x[right] - x[left])
        # The segment and block i change places: the point between them is now where the segment starts.
        x[i + 1], y[i + 1] = x[i] + x[i + 2] - x[i + 1], y[i] + y[i + 2] - y[i + 1]
        if (y[i + 1] - y[left]) * (x[right] - x[left]) >= (y[right] - y[left]) * (x[i + 1] - x[left]):
            continue
        corners.pop()
        while len(corners) > 1 and above(i + 1, corners[-1], corners[-2]):
            corners.pop()
        corners.append(i + 1)
    return found
