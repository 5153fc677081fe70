"""One model of a comparison, boiled down to three columns: what its rows cost, floored, and once calibrated.

Where a model stands, cross-entropy = uncertainty − discrimination + miscalibration (``decomposition``), and of two
models on the same rows the uncertainty is the same. So their difference of cross-entropy is

    ΔC = −Δdiscrimination + Δmiscalibration,      Δdiscrimination = −ΔC*,     Δmiscalibration = ΔC − ΔC*,

C* the cross-entropy of the calibrated model: each is a mean of differences row by row. C* comes from calibrators that
were fitted, but at the minimum of a loss its derivative by what was fitted is zero, so that to first order the rows'
own scatter is all there is (the influence function of a fitted minimum is that of the rows). The second order, of the
size 1/n, is all that is left where two models differ in calibration alone: their discrimination is then the same on
every row. It is estimated by

    doubt = (C* cross-fitted − C* fitted on the same rows) / √2,

because the first lies above the truth, and the second below it, by half of the same quadratic form of the fit's error;
the form has k degrees of freedom, hence a standard deviation of its mean times √(2/k), and k is taken for 1. The
difference knows about clusters without being told: folds are drawn by cluster, and what a fit learns by heart about
a cluster does not help it with another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.calibration.rows import Rows
from crossent.measure.calibration.scaling import KINDS, fit_scaling
from crossent.measure.predictions import Predictions

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Rival:
    """What the joint rows cost one model, in nats (n,): ``costs`` exactly, ``floored`` and ``calibrated``.

    ``floored`` are the costs with every probability raised to the floor, and the same array as ``costs`` where no model
    has an impossible row; ``calibrated`` are those of the cross-fitted calibrator on the floored probabilities.
    ``doubt`` is the standard deviation that the fit adds to the mean of ``calibrated``; ``calibrated_with`` says what
    was fitted. Documents have no classes to calibrate: there ``calibrated`` is None.
    """

    name: str
    costs: NDArray[np.float64]
    floored: NDArray[np.float64]
    calibrated: NDArray[np.float64] | None
    doubt: float
    calibrated_with: str


def row_costs(predictions: Predictions) -> NDArray[np.float64]:
    """Give what each row costs in nats, (n,), infinite where a label had probability 0; labels of any kind."""
    logs, y = predictions.log_probabilities, _labels(predictions)
    if logs is None and y.ndim == 1:  # one logarithm a row is enough
        return -_log(predictions.probabilities[np.arange(y.size), y]) + 0.0
    logs = _log(predictions.probabilities) if logs is None else logs
    return Rows(logs, y).costs(logs)


def rival(
    name: str,
    predictions: Predictions,
    weights: NDArray[np.float64] | None,
    clusters: NDArray[np.int64] | None,
    floor: float | None,
    seed: int = 0,
) -> Rival:
    """Measure one model on the joint rows; ``floor`` is None where no model has an impossible row.

    Of the two families (a temperature; a temperature and a bias per class) the one is taken that is cheaper when
    cross-fitted, as ``decomposition`` does. Cost: twelve fits, tens of passes over the probabilities each, and three
    arrays of their size, which are let go.
    """
    costs = row_costs(predictions)
    if predictions.task == "text":
        if floor is not None:
            raise DataError(
                f"a document had probability exactly 0 (in {name}, or a model beside it), and no floor makes sense of "
                "a whole document. Leave such documents out, or mend the log-likelihoods where they are made."
            )
        return Rival(name, costs, costs, None, 0.0, "")
    logs = (
        predictions.log_probabilities if predictions.log_probabilities is not None else _log(predictions.probabilities)
    )
    if floor is not None:
        logs = np.maximum(logs, math.log(floor))
    rows = Rows(logs, _labels(predictions), None if weights is None else weights / weights.mean())
    floored = costs if floor is None else rows.costs(logs)
    fold = _folds(len(rows), clusters, seed)
    least, best, doubt, said = math.inf, floored, 0.0, ""
    for family in KINDS[1:]:
        whole = fit_scaling(rows, family)
        fitted = rows.costs(whole.of_logits(logs))
        out = floored.copy()
        for held_out in range(int(fold.max()) + 1 if fold.max() else 0):
            here = fold == held_out
            there = rows.take(here)
            out[here] = there.costs(fit_scaling(rows.take(~here), family, start=whole).of_logits(there.z))
        if (mean := float(np.average(out, weights=weights))) < least:
            least, best = mean, out
            doubt = max(mean - float(np.average(fitted, weights=weights)), 0.0) / math.sqrt(2)
            said = f"{family} (temperature {whole.temperature:.3g} when fitted on all rows)"
    return Rival(name, costs, floored, best, doubt, said)


def _labels(predictions: Predictions) -> NDArray[np.float64] | NDArray[np.int64]:
    y = predictions.labels
    return np.stack([1 - y, y], axis=1) if y.dtype.kind == "f" and y.ndim == 1 else y


def _folds(n: int, clusters: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """Draw each row's fold, by cluster where there are clusters; the same for the same seed and number of them."""
    count = n if clusters is None else int(clusters.max()) + 1
    fold = np.random.default_rng(seed).permutation(count) % min(FOLDS, count)
    return fold if clusters is None else fold[clusters]


def _log(p: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(p)
