"""One model of a comparison, boiled down to three columns: what its rows cost, floored, and once calibrated.

Where a model stands, cross-entropy = uncertainty − discrimination + miscalibration (``decomposition``), and of two
models on the same rows the uncertainty is the same. So their difference of cross-entropy is

    ΔC = −Δdiscrimination + Δmiscalibration,      Δdiscrimination = −ΔC*,     Δmiscalibration = ΔC − ΔC*,

C* the cross-entropy of the calibrated model: each is a mean of differences row by row. C* is the one of ``evaluate``,
by the same code on the same rows: the isotonic curve of two classes, temperature and bias of more, with what such a fit
claims given back. To first order the rows' own scatter about the calibrated model is all there is, for at the minimum
of a loss its derivative by what was fitted is zero. The second order, of the size 1/n, is all that is left where two
models differ in calibration alone: their discrimination is then the same on every row. It is the ``doubt``:

* of a curve, the standard deviation of the drawn claims. A claim is a quadratic form x′Px of the rows' residuals, P
  the mean over each step of the curve, so that those of two models on the same rows go together: their correlation ρ is
  tr PQ / √(tr P tr Q), tr PQ = Σ n_ij² / (n_i n_j), n_ij the weight that step i of one shares with step j of the other.
  Models that order the rows alike have the same steps, and should claim the same; of these what claims were found to
  differ by, which estimates of how groups scatter make, is added, ρ times its square, and for each the variance of a
  mean of ``DRAWS`` claims (``doubt_between``);
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
from crossent.measure.values.decomposition import Best, Calibrated, best_of, design_of, joint_self, said_of
from crossent.measure.values.isotonic import DRAWS

_Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rival:
    """What the joint rows cost one model, in nats (n,): ``costs`` exactly, ``floored`` and ``calibrated``.

    ``floored`` are the costs with every probability raised to the floor, and the same array as ``costs`` where no model
    has an impossible row; ``calibrated`` are those under the calibrated model, whose mean is C*. ``doubt`` is the
    standard deviation that the fit adds to that mean; ``calibrated_with`` says what was fitted. Documents have no
    classes to calibrate: there ``calibrated`` is None. Of two classes ``came`` (n,) is whether the label was the
    second, ``steps`` (n,) the step of the isotonic curve that the row is on, from 0, and ``claimed`` what the curve
    claimed and was given back.
    """

    name: str
    costs: NDArray[np.float64]
    floored: NDArray[np.float64]
    calibrated: NDArray[np.float64] | None
    doubt: float
    calibrated_with: str
    came: NDArray[np.bool_] | None = None
    steps: NDArray[np.int64] | None = None
    claimed: float = 0.0


def doubt_between(one: Rival, other: Rival, share: _Float) -> float:
    """Give the standard deviation that the fits add to the difference of two calibrated costs; ``share`` (n,) is what
    rows count, adding up to 1. Cost: a sort.

    >>> costs, share = np.ones(4), np.full(4, 0.25)
    >>> low, flat = (Rival("", costs, costs, costs, 0.1, "", None, np.array(x)) for x in ([0, 0, 1, 1], [0, 0, 0, 0]))
    >>> round(doubt_between(low, low, share), 3), round(doubt_between(low, flat, share), 3)
    (0.01, 0.077)
    """
    squares, alike = one.doubt**2 + other.doubt**2, _alike(one.steps, other.steps, share)
    apart = squares * (1 + 1 / DRAWS) - 2 * alike * one.doubt * other.doubt + alike * (one.claimed - other.claimed) ** 2
    return math.sqrt(max(apart, 0.0))


def _alike(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None, share: _Float) -> float:
    """ρ, the correlation of what two curves claim on the same rows; 0 where there are none."""
    if a is None or b is None:
        return 0.0
    size_a, size_b = np.bincount(a, share), np.bincount(b, share)
    pairs, at = np.unique(a * size_b.size + b, return_inverse=True)
    shared = np.bincount(at, share)
    trace = float(np.sum(shared**2 / (size_a[pairs // size_b.size] * size_b[pairs % size_b.size])))
    return trace / math.sqrt(size_a.size * size_b.size)


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
    calibrated, steps, best, said = _isotonic(predictions)
    return Rival(name, costs, floored, calibrated, math.sqrt(best.variance), said, came, steps, best.claimed)


def _isotonic(predictions: Predictions) -> tuple[_Float, NDArray[np.int64], Best, str]:
    """What rows of two classes cost under the calibrated curve of their cells, its steps, and what it is."""
    p, y, w = predictions.probabilities, predictions.labels, predictions.weights
    if y.ndim == 2:
        y = y[:, 1]
    cells = Distinct.none().of(p[:, 1], p[:, 0], y if y.dtype.kind == "f" else y == 1, w)
    groups = predictions.groups
    folds = None if groups is None else fold_histograms(p, y, w, hashed(groups)).dense(len(COARSE))
    calibrated = Calibrated.of(cells.cells, design_of(folds), draws=0)
    best = best_of(calibrated)
    zero, one = (np.empty(cells.keys.size) for _ in range(2))
    steps = np.empty(cells.keys.size, np.int64)
    order = cells.cells.order()
    zero[order], one[order] = best.costs()
    steps[order] = np.cumsum(np.diff(calibrated.curve, prepend=calibrated.curve[0]) != 0)
    at = np.searchsorted(cells.keys, code(p[:, 1], p[:, 0], cells.drop))
    found = zero[at] + (one - zero)[at] * y
    # The curve that rows scatter about is not the one whose cost is given back: all are moved by one amount.
    found += best.cost - float(np.average(found, weights=w))
    return found, steps[at], best, said_of(order.size, best)


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
