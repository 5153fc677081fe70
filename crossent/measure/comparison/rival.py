"""One model of a comparison, boiled down to three columns: what its rows cost, floored, and once calibrated.

Where a model stands, cross-entropy = uncertainty − discrimination + miscalibration (``decomposition``), and of two
models on the same rows the uncertainty is the same. So their difference of cross-entropy is

    ΔC = −Δdiscrimination + Δmiscalibration,      Δdiscrimination = −ΔC*,     Δmiscalibration = ΔC − ΔC*,

C* the cross-entropy of the calibrated model: each is a mean of differences row by row. C* is the one of ``evaluate``,
by the same code on the same rows: the isotonic curve of two classes, temperature and bias of more, with what such a fit
claims given back. To first order the rows' own scatter about the calibrated model is all there is, for at the minimum
of a loss its derivative by what was fitted is zero. The second order, of the size 1/n, is all that is left where two
models differ in calibration alone: their discrimination is then the same on every row. It is the ``doubt``:

* of a curve, the standard deviation of the drawn claims;
* of temperature and bias, (C* cross-fitted − C* fitted on the same rows) / √2. The first lies above the truth, and the
  second below it, by half of the same quadratic form of the fit's error; the form has k degrees of freedom, hence a
  standard deviation of its mean times √(2/k), and k is taken for 1. Folds are drawn by cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.calibration.rows import Rows
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.cells import COARSE
from crossent.measure.sums.distinct import Distinct, code
from crossent.measure.sums.groups import fold_histograms
from crossent.measure.sums.hashing import hashed
from crossent.measure.sums.likelihood import costs_of_logs
from crossent.measure.sums.sample import Sample, capacity_for, none_beside, row_keys
from crossent.measure.values.decomposition import Calibrated, best_of, design_of, joint_self, said_of

_Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rival:
    """What the joint rows cost one model, in nats (n,): ``costs`` exactly, ``floored`` and ``calibrated``.

    ``floored`` are the costs with every probability raised to the floor, and the same array as ``costs`` where no model
    has an impossible row; ``calibrated`` are those under the calibrated model, whose mean is C*. ``doubt`` is the
    standard deviation that the fit adds to that mean; ``calibrated_with`` says what was fitted. Documents have no
    classes to calibrate: there ``calibrated`` is None. ``came`` (n,), of two classes, is whether the label was the
    second.
    """

    name: str
    costs: NDArray[np.float64]
    floored: NDArray[np.float64]
    calibrated: NDArray[np.float64] | None
    doubt: float
    calibrated_with: str
    came: NDArray[np.bool_] | None = None


def row_costs(predictions: Predictions) -> NDArray[np.float64]:
    """Give what each row costs in nats, (n,), infinite where a label had probability 0; labels of any kind."""
    logs, y = predictions.log_probabilities, _labels(predictions)
    if logs is None and y.ndim == 1:  # one logarithm a row is enough
        return -_log(predictions.probabilities[np.arange(y.size), y]) + 0.0
    logs = _log(predictions.probabilities) if logs is None else logs
    return Rows(logs, y).costs(logs)


def rival(name: str, predictions: Predictions, floor: float | None) -> Rival:
    """Measure one model on the joint rows, with their weights and groups; ``floor`` is None where no model has an
    impossible row.

    Cost: of two classes some 300 ns a row and 200 regressions over 8,192 cells at most; of more, twelve fits to 50,000
    rows at most, and three arrays of the probabilities' size, which are let go.
    """
    costs = row_costs(predictions)
    if predictions.task == "text":
        if floor is not None:
            raise DataError(
                f"a document had probability exactly 0 (in {name}, or a model beside it), and no floor makes sense of "
                "a whole document. Leave such documents out, or mend the log-likelihoods where they are made."
            )
        return Rival(name, costs, costs, None, 0.0, "")
    if predictions.task == "multi-class":
        return _joint(name, predictions, costs, floor)
    floored = costs
    if floor is not None:
        logs = predictions.log_probabilities
        logs = _log(predictions.probabilities) if logs is None else logs
        floored = Rows(logs, _labels(predictions)).costs(np.maximum(logs, math.log(floor)))
    came = predictions.labels == 1 if predictions.labels.dtype.kind != "f" else None
    return Rival(name, costs, floored, *_isotonic(predictions), came)


def _isotonic(predictions: Predictions) -> tuple[_Float, float, str]:
    """What rows of two classes cost under the calibrated curve of their cells, its doubt, and what it is."""
    p, y, w = predictions.probabilities, predictions.labels, predictions.weights
    if y.ndim == 2:
        y = y[:, 1]
    cells = Distinct.none().of(p[:, 1], p[:, 0], y if y.dtype.kind == "f" else y == 1, w)
    groups = predictions.groups
    folds = None if groups is None else fold_histograms(p, y, w, hashed(groups)).dense(len(COARSE))
    best = best_of(Calibrated.of(cells.cells, design_of(folds), draws=0))
    zero, one = (np.empty(cells.keys.size) for _ in range(2))
    order = cells.cells.order()
    zero[order], one[order] = best.costs()
    at = np.searchsorted(cells.keys, code(p[:, 1], p[:, 0], cells.drop))
    found = zero[at] + (one - zero)[at] * y
    # The curve that rows scatter about is not the one whose cost is given back: all are moved by one amount.
    found += best.cost - float(np.average(found, weights=w))
    return found, math.sqrt(best.variance), said_of(order.size, best)


def _joint(name: str, predictions: Predictions, costs: _Float, floor: float | None) -> Rival:
    """More classes: fits to a sample, which is all rows where they are few."""
    logs, y, n = predictions.log_probabilities, predictions.labels, len(predictions)
    z = _log(predictions.probabilities) if logs is None else logs
    if floor is not None:
        z = np.maximum(z, math.log(floor))
    floored = costs if floor is None else costs_of_logs(z, y)
    capacity = capacity_for(z.shape[1])
    ids = hashed(predictions.rows)
    keys = row_keys(ids, costs)
    drawn = np.argsort(keys, kind="stable")[:capacity]
    weights = np.ones(n) if predictions.weights is None else predictions.weights
    groups = np.zeros(n, np.uint64) if predictions.groups is None else hashed(predictions.groups)
    sample = Sample(capacity, keys, ids, z, y, weights, floored, groups, none_beside(n)).take(drawn)
    found = joint_self(sample, sample.logs)
    if drawn.size < n:
        calibrated = costs_of_logs(found.whole.of_logits(z), y) - found.flattery
        calibrated[drawn] = found.costs
    else:
        calibrated = np.empty(n)
        calibrated[drawn] = found.costs
    return Rival(name, costs, floored, calibrated, found.apart / math.sqrt(2), found.sentence(n))


def _labels(predictions: Predictions) -> NDArray[np.float64] | NDArray[np.int64]:
    y = predictions.labels
    return np.stack([1 - y, y], axis=1) if y.dtype.kind == "f" and y.ndim == 1 else y


def _log(p: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(p)
