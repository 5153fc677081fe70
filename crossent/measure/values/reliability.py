"""The curve of reliability: among rows predicted 0.7, did 7 in 10 come? And single figures that sum it up.

Cells are ordered by their prediction and cut into groups of equal count, rows of equal prediction staying together;
each group is a point (mean predicted, share that came). Points of a calibrated model lie on the diagonal, within bands
that miss it 1 time in 20 each, so that among fifteen points one outside is no surprise. The isotonic curve needs no
groups, and the null band says how far from the diagonal it strays, point by point, for rows like these and a model that
is calibrated.

**Secondary figures.** ECE depends on its bins and is positive for every model; smooth ECE (Błasiok & Nakkiran 2024) has
no bins: the residuals y − p are smoothed by a Gaussian reflected at 0 and 1, and their mean absolute value is taken at
the width σ at which it equals σ. Neither is a part of the log loss; ``miscalibration`` is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from crossent.measure.intervals import interval
from crossent.measure.sums.cells import Cells
from crossent.measure.values.decomposition import Calibrated
from crossent.measure.values.isotonic import stated
from crossent.record import Curve

MOST_GROUPS = 15
ROWS_PER_GROUP = 25  # below, a band spans some 0.4 and a point says next to nothing
_POINTS = 200
_GRID = 2001
_X_NAME, _Y_NAME = "predicted", "observed"


def axis_names(task: str, classes: tuple[str, ...]) -> tuple[str, str]:
    """Say what is predicted and what is observed."""
    if task == "multi-class":
        return "probability of the predicted class", "share of rows that were of it"
    if task == "binary":
        return f"predicted probability of {classes[1]}", "observed frequency"
    return "predicted mean, as a fraction of the range", "observed mean, as a fraction of the range"


def reliability(calibrated: Calibrated, names: tuple[str, str], shares: bool) -> Curve:
    """Give mean predicted → observed frequency, by at most 15 groups of similar prediction.

    Two classes: the probability of the second one; more: that of the predicted class, against how often it
    was right; a range: the expected fraction. Bands are Wilson's; for labels that are ``shares`` the t
    interval of the mean, or Wilson's, which is the wider, in a group whose labels are all equal. Weights and groups of
    rows count by how many independent rows they are worth, which is also what ``n`` says.
    """
    cells, scatter = calibrated.cells, calibrated.scatter
    rows = cells.weight**2 / cells.squares[0]
    count = float(cells.weight.sum() ** 2 / cells.squares[0].sum())
    wanted = int(np.clip(count // ROWS_PER_GROUP, 1, MOST_GROUPS))
    middle = np.cumsum(rows) - rows / 2  # rows that share a value go by their mean rank, together
    group = np.unique((middle * wanted / rows.sum()).astype(np.int64), return_inverse=True)[1]

    def total(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(group, x, minlength=int(group[-1]) + 1).astype(np.float64)

    weight, label, squares = total(cells.weight), total(cells.label), total(cells.squares[0])
    n, observed = weight**2 / squares, np.minimum(label / weight, 1.0)
    independent = n / (1.0 if shares else scatter)
    low, high = interval.of_share(observed * independent, independent)
    if shares:
        _, y, yy = (total(part) for part in cells.squares)
        spread = np.maximum(yy - 2 * observed * y + observed**2 * squares, 0.0)
        for k in range(n.size):
            if (ends := interval.of_sums(observed[k], spread[k], 0.0, weight[k], n[k] - 1)) is not None:
                low[k], high[k] = max(ends[0], 0.0), min(ends[1], 1.0)
    return Curve(
        x=(total(cells.prediction) / weight).tolist(),
        y=observed.tolist(),
        x_name=names[0],
        y_name=names[1],
        low=low.tolist(),
        high=high.tolist(),
        n=np.round(n).astype(int).tolist(),
    )


def curves(calibrated: Calibrated, names: tuple[str, str]) -> dict[str, Curve]:
    """Give the isotonic curve, and the band that a calibrated model's would stay in 95 % of the time at each point."""
    p = stated(calibrated.cells)
    rank = np.cumsum(calibrated.cells.weight)
    inside = np.searchsorted(rank, np.linspace(0, rank[-1], _POINTS), side="right")
    at = np.unique(np.concatenate([[0, p.size - 1], np.minimum(inside, p.size - 1)]))
    found = {"recalibrated": Curve(p[at].tolist(), calibrated.curve[at].tolist(), *names)}
    if calibrated.null.curves is not None:
        low, high = np.quantile(calibrated.null.curves[:, at], [0.025, 0.975], axis=0)
        found["reliability_null"] = Curve(p[at].tolist(), p[at].tolist(), *names, low=low.tolist(), high=high.tolist())
    return found


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """Give ECE from Σ w, Σ w y and Σ w p (3, bins) of bins of equal width: Σ |Σ w y − Σ w p| / Σ w."""
    return float(np.abs(bins[1] - bins[2]).sum() / bins[0].sum())


def smooth_calibration_error(cells: Cells) -> float:
    """Give smooth ECE, on a grid of 2,001 points over [0, 1].

    >>> p, y = np.full(1000, 0.3), np.arange(1000) % 2 == 0  # predicted 0.3, and half of them came
    >>> round(smooth_calibration_error(Cells.of(np.zeros(1000, int), 1, p, y, None)), 3)
    0.2
    """
    here = cells.weight > 0
    p = np.clip(cells.prediction[here] / cells.weight[here], 0.0, 1.0) * (_GRID - 1)
    residual = (cells.label[here] - cells.prediction[here]) / cells.weight.sum()
    left = np.minimum(p.astype(np.int64), _GRID - 2)
    share = p - left  # each residual goes to its two neighbours on the grid
    grid = np.bincount(left, residual * (1 - share), minlength=_GRID)
    grid += np.bincount(left + 1, residual * share, minlength=_GRID)

    # A Gaussian reflected at both ends is a product in the cosine transform, that of the heat equation.
    waves = dct(grid)
    slowness = 0.5 * (np.pi * np.arange(_GRID) / _GRID * (_GRID - 1)) ** 2

    def at(sigma: float) -> float:
        return float(np.abs(idct(waves * np.exp(-slowness * sigma**2))).sum())

    low, high = 1e-3, 1.0
    if at(low) <= low:
        return at(low)
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > middle else (low, middle)
    return high
