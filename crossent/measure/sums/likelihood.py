"""Row by row: what n labels cost under the probabilities they were given, and what else a row has to say.

The cost of a row is the surprise at its label, −log p(label), in nats; its mean is the cross-entropy, or log
loss. A label may also be a distribution y over the classes, and then costs

    cost_i = −Σ_c y_ic log p_ic ,        with 0 · log 0 = 0,

which is linear in the label; a class is a y with a 1 in its column, and a number in a range is (1 − y, y), y its
fraction of the range: in expectation what a coin with that fraction would cost.

**Exact zeros.** A label that had probability 0 costs infinity, and so does the mean: the model said never,
and it came. The infinity is reported as it is, with how many rows caused it, and beside it the cross-entropy
with every probability raised to a floor that is stated. Nothing else is ever clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from crossent.measure.predictions.predictions import Predictions

FLOOR = 1e-6
"""The floor of ``cross_entropy_floored``: one in a million, 13.8 nats for a row that was called impossible.

It has to be chosen, and the choice decides the figure: at the 2e-16 of common libraries 1 row in 100 adds
0.36 nats and drowns the rest; at 1e-6 it adds 0.14. The floor adds at most a millionth per class to a row's
sum, so that it does not flatter, and few test sets could show that an event is rarer than that."""


def floor_said(floor: float) -> str:
    """Write a floor as the report does.

    >>> floor_said(1e-6), floor_said(2.5e-9), floor_said(0.001)
    ('1 × 10⁻⁶', '2.5 × 10⁻⁹', '0.001')
    """
    mantissa, small, exponent = f"{floor:g}".partition("e")
    power = str(int(exponent or 0)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{power}" if small else mantissa


TOPS = (3, 5)
"""Top-k is counted for these k, where there are more classes than that."""


def costs(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cost of each row in nats, shape (n,), infinite where a label had probability 0.

    ``probabilities`` (n, classes); ``labels`` int64 (n,) columns; or float64 (n,), shares of the second of two
    columns; or float64 (n, classes).

    >>> costs(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1, 1])).round(3).tolist()
    [0.693, inf]
    >>> costs(np.array([[0.75, 0.25], [1.0, 0.0]]), np.array([0.25, 0.0])).round(3).tolist()
    [0.562, 0.0]
    """
    if labels.dtype.kind != "f":
        probabilities = _of_label(probabilities, labels)
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    return -logs + 0.0 if logs.ndim == 1 else costs_of_logs(logs, labels)


def costs_of_logs(logs: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cost of each row from its log-probabilities (n, classes), which do not underflow."""
    if labels.dtype.kind != "f":
        return -_of_label(logs, labels) + 0.0  # + 0.0: no minus zero
    shares = distributions(labels, logs.shape[1])
    return -np.sum(np.multiply(shares, logs, out=np.zeros_like(logs), where=shares > 0), axis=1) + 0.0


def distributions(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Write labels of any kind as distributions, float64 (n, classes)."""
    if labels.ndim == 2:
        return labels
    if labels.dtype.kind == "f":
        return np.stack([1 - labels, labels], axis=1)
    return np.eye(classes)[labels]


def _of_label(values: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    if values.shape[1] == 2:
        return np.where(labels == 1, values[:, 1], values[:, 0])
    return values[np.arange(labels.size), labels]


@dataclass(frozen=True, eq=False)
class Rows:
    """What each of n rows adds to the sums; arrays (n,) unless said, float64 unless said.

    ``cost`` in nats, infinite for an impossible row; ``floored``, the cost with every probability raised to the floor;
    ``label`` int64, the class that came (of a distribution, its most probable one); ``predicted`` int64, the most
    probable class, the first of equal ones; ``hit``, how much of the label lay on it; ``squared``, the squared
    distance of prediction and label, for two classes of the second only; ``absolute``, its root, for a range;
    ``tied``, how many rows have several most probable classes; ``top`` (n, len(TOPS)), whether the label was among
    the k most probable classes; ``truth``, the entropy of the label in nats.
    """

    cost: NDArray[np.float64]
    floored: NDArray[np.float64]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    hit: NDArray[np.float64]
    squared: NDArray[np.float64]
    tied: int
    absolute: NDArray[np.float64] | None = None
    top: NDArray[np.bool_] | None = None
    truth: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, batch: Predictions, floor: float = FLOOR) -> Rows:
        """Measure each row. Cost: O(n · classes), some ten passes; no array of (n, classes) for hard labels of two."""
        p, y, logs = batch.probabilities, batch.labels, batch.log_probabilities
        soft, classes = y.dtype.kind == "f", p.shape[1]
        cost = costs(p, y) if logs is None else costs_of_logs(logs, y)
        least = -math.log(floor)
        shares = distributions(y, classes) if soft else None
        if shares is None:
            floored = np.minimum(cost, least)
        elif logs is None:
            floored = costs(np.maximum(p, floor), shares) if p.min() < floor else cost
        else:
            floored = costs_of_logs(np.maximum(logs, -least), shares) if logs.min() < -least else cost
        if batch.weights is not None:  # a row that counts for nothing is not impossible either
            cost = np.where(np.isinf(cost) & (batch.weights == 0), floored, cost)
        peak: NDArray[np.float64] | None = None
        if classes == 2:
            first = p[:, 1] <= p[:, 0]
            predicted = (~first).astype(np.int64)
            tied = int(np.count_nonzero(p[:, 1] == p[:, 0]))
        else:
            predicted = np.argmax(p, axis=1)
            peak = p[np.arange(predicted.size), predicted]
            tied = int(np.count_nonzero(np.count_nonzero(p == peak[:, None], axis=1) > 1))
        label = y if shares is None else np.argmax(shares, axis=1)
        if shares is None:
            hit = (predicted == y).astype(np.float64)
        else:
            hit = shares[np.arange(len(label)), predicted]
        absolute = top = truth = None
        if classes == 2:
            second = y if shares is None else shares[:, 1]
            off = p[:, 1] - second
            squared = off * off
            if batch.task == "range":
                width = float(batch.high or 0.0) - float(batch.low or 0.0)
                absolute, squared = np.abs(off) * width, squared * width**2
        elif shares is None:
            of_label = p[np.arange(y.size), y]
            squared = np.maximum(np.einsum("ij,ij->i", p, p) + 1 - 2 * of_label, 0.0)
            top = _among_first(p, of_label, label) if classes > TOPS[0] else None
        else:
            squared = np.sum((p - shares) ** 2, axis=1)
            top = _among_first(p, p[np.arange(label.size), label], label) if classes > TOPS[0] else None
        if shares is not None:
            truth = np.sum(entr(shares), axis=1)
        return cls(cost, floored, label, predicted, hit, squared, tied, absolute, top, truth)


def _among_first(p: NDArray[np.float64], of_label: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether fewer than k classes come before the label's; of equally probable ones the first comes first."""
    before = np.count_nonzero(p > of_label[:, None], axis=1)
    equal = np.count_nonzero(p == of_label[:, None], axis=1)
    if (shared := np.flatnonzero(equal > 1)).size:
        earlier = np.arange(p.shape[1]) < label[shared, None]
        before[shared] += np.count_nonzero((p[shared] == of_label[shared, None]) & earlier, axis=1)
    return np.stack([before < k for k in TOPS], axis=1)
