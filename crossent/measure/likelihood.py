"""Cross-entropy and its relatives: what n labels cost under the probabilities they were given.

The cost of a row is the surprise at its label, −log p(label), in nats; its mean is the cross-entropy, or log
loss. A number in a range is a label y in [0, 1] (its fraction of the range) under an expected fraction p, and
costs −y log p − (1 − y) log(1 − p): in expectation what a coin with that fraction would cost. One sum serves
both,

    cost_i = −Σ_c y_ic log p_ic ,        with 0 · log 0 = 0,

with y_i a 1 in the column of the label, or the pair (1 − y, y).

**Exact zeros.** A label that had probability 0 costs infinity, and so does the mean: the model said never,
and it came. The infinity is reported as it is, with how many rows caused it, and beside it the cross-entropy
with every probability raised to a floor that is stated. Nothing else is ever clipped.

**The yardstick.** Someone who knows only the frequencies f_c of the labels in these rows pays the label
entropy, H = −Σ_c f_c log f_c, which is the mean of the rows' costs under f. So information gained, H −
cross-entropy, is a mean of differences row by row, and its interval comes from those differences: the hard
rows, hard for both, cancel. The derivative of H by f, through which sampling moves H, gives exactly the same
rows (delta method).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure import interval
from crossent.measure.predictions import Predictions
from crossent.record import Number

FLOOR = 1e-6
"""The floor of ``cross_entropy_floored``: one in a million, 13.8 nats for a row that was called impossible.

It has to be chosen, and the choice decides the figure: at the 2e-16 of common libraries 1 row in 100 adds
0.36 nats and drowns the rest; at 1e-6 it adds 0.14. The floor adds at most a millionth per class to a row's
sum, so that it
does not flatter, and few test sets could show that an event is rarer than that."""


def costs(probabilities: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cost of each row in nats, shape (n,), infinite where a label had probability 0.

    ``probabilities`` (n, classes); ``labels`` int64 (n,) columns, or float64 (n,) fractions, with two
    columns.

    >>> costs(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1, 1])).round(3).tolist()
    [0.693, inf]
    >>> costs(np.array([[0.75, 0.25], [1.0, 0.0]]), np.array([0.25, 0.0])).round(3).tolist()
    [0.562, 0.0]
    """
    if labels.dtype.kind != "f":
        probabilities = probabilities[np.arange(labels.size), labels]
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    return -logs + 0.0 if logs.ndim == 1 else costs_of_logs(logs, labels)


def costs_of_logs(logs: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cost of each row from its log-probabilities (n, classes), which do not underflow."""
    if labels.dtype.kind != "f":
        return -logs[np.arange(labels.size), labels] + 0.0  # + 0.0: no minus zero
    shares = np.stack([1 - labels, labels], axis=1)
    return -np.sum(np.multiply(shares, logs, out=np.zeros_like(logs), where=shares > 0), axis=1) + 0.0


def frequencies(predictions: Predictions) -> NDArray[np.float64]:
    """Give how often each class came, shape (classes,); for a range (1 − mean, mean) of the fractions."""
    if predictions.task == "range":
        mean = float(np.mean(predictions.labels))
        return np.array([1 - mean, mean])
    return np.bincount(predictions.labels, minlength=predictions.probabilities.shape[1]) / len(predictions)


def costs_of_frequencies(predictions: Predictions) -> NDArray[np.float64]:
    """Give each row's cost under the frequencies, shape (n,), in nats; its mean is the label entropy."""
    shares = frequencies(predictions)
    if predictions.task == "range":
        return costs(np.broadcast_to(shares, predictions.probabilities.shape), predictions.labels)
    present = np.where(shares > 0, shares, 1.0)  # a class that never came is never looked up
    return -np.log(present)[predictions.labels] + 0.0


def label_entropy(predictions: Predictions) -> Number:
    """Estimate the entropy of the labels, in nats: that of their own frequencies, the plug-in estimate.

    It is low by (k − 1)/(2n) nats in expectation, with k the classes that came (Miller 1955), because
    frequencies fit the rows they were counted on; the interval allows for that, the value is left as it is,
    so that information gained is the difference of two figures that stand in the record. Cost O(n).
    """
    n, shares, rows = len(predictions), frequencies(predictions), costs_of_frequencies(predictions)
    if predictions.task == "range":
        room = float(shares[0] * shares[1])
        freedom = float(np.var(predictions.labels)) / room if room > 0 else 0.0  # 1 if all labels are 0 or 1
        bias, spread = freedom / (2 * n), freedom / (math.sqrt(2) * n)
    else:
        freedom = float(np.count_nonzero(shares) - 1)
        bias, spread = freedom / (2 * n), math.sqrt(freedom / 2) / n
    value = max(float(np.mean(rows)), 0.0)
    if n < 2 or freedom == 0:
        return Number(value, "nats", n=n)
    low, high = interval.of_entropy(value, rows, bias, spread, most=math.log(shares.size))
    return Number(value, "nats", low, high, n)


def mean_cost(rows: NDArray[np.float64], unit: str = "nats") -> Number:
    """Give the mean of costs that cannot be negative, with its interval."""
    ends = interval.of_mean(rows)
    low, high = (None, None) if ends is None else (max(ends[0], 0.0), ends[1])
    return Number(float(np.mean(rows)), unit, low, high, rows.size)


def mean_difference(more: NDArray[np.float64], less: NDArray[np.float64], value: float) -> Number:
    """Give ``value``, the mean of ``more`` − ``less`` in nats, with the interval of the row-by-row differences."""
    ends = interval.of_mean(more - less, scale=float(np.max(more))) if np.isfinite(less).all() else None
    low, high = ends or (None, None)
    return Number(value, "nats", low, high, more.size)


def likelihood(predictions: Predictions, floor: float = FLOOR) -> dict[str, Number]:
    """Measure cross-entropy, what it is worth beside the label entropy, and how many rows were called
    impossible.

    Skill is 1 − C/H, C the cross-entropy and H the label entropy of the same rows; its interval is that of
    the mean of −c_i/H + C h_i/H², the derivative of the ratio by the two means (delta method). Without skill
    where H is 0.

    >>> found = likelihood(Predictions.from_arrays([0.9, 0.2, 0.6, 0.3], [1, 0, 1, 0]))
    >>> print(found["cross_entropy"], "|", found["information_gained"], "|", found["skill"])
    0.299 nats (0.041 to 0.603) | 0.569 bits (0.131 to 0.941) | 0.569 share (0.131 to 0.941)
    """
    n = len(predictions)
    rows, own = costs(predictions.probabilities, predictions.labels), costs_of_frequencies(predictions)
    impossible = int(np.count_nonzero(np.isinf(rows)))
    loss, entropy = mean_cost(rows), label_entropy(predictions)
    found = {"cross_entropy": loss, "cross_entropy_bits": loss.to("bits")}
    if impossible:
        found["cross_entropy_floored"] = mean_cost(
            costs(np.maximum(predictions.probabilities, floor), predictions.labels)
        )
    found["impossible_rows"] = Number(impossible, "rows", n=n)
    found["label_entropy"] = entropy.to("bits")
    gained = mean_difference(own, rows, entropy.value - loss.value)
    found["information_gained"] = gained.to("bits")
    if entropy.value > 0:
        value = 1 - loss.value / entropy.value
        ends = None
        if not impossible:
            by_means = own * (loss.value / entropy.value**2) - rows / entropy.value
            ends = interval.of_mean(by_means, scale=float(np.max(rows)) / entropy.value)
        low, high = (None, None) if ends is None else (value + ends[0], value + ends[1])
        found["skill"] = Number(value, "share", low, high, n)
    return found


def errors(predictions: Predictions) -> dict[str, Number]:
    """Measure how far off predictions are, in the units people ask for beside the log loss.

    Classes: accuracy, the share of rows whose most probable class came (of equal ones, the first), with
    Wilson's interval; and the Brier score (1950), the mean of Σ_c (p_c − y_c)², or (p − y)² for two classes,
    which is half that sum and what scikit-learn calls Brier too. A range: mean absolute and root mean squared
    error of the predicted mean, in the target's own unit; the interval of the latter is the root of the
    square's.
    """
    n, p, y = len(predictions), predictions.probabilities, predictions.labels
    if predictions.task == "range":
        assert predictions.low is not None
        assert predictions.high is not None
        off = np.abs(p[:, 1] - y) * (predictions.high - predictions.low)
        absolute, squared = mean_cost(off, "target"), mean_cost(off * off, "target")
        root = [None if end is None else math.sqrt(end) for end in (squared.low, squared.high)]
        return {"mae": absolute, "rmse": Number(math.sqrt(squared.value), "target", root[0], root[1], n)}
    hits = int(np.count_nonzero(np.argmax(p, axis=1) == y))
    low, high = interval.of_share(np.array(float(hits)), np.array(float(n)))
    if predictions.task == "binary":
        apart = (p[:, 1] - y) ** 2
    else:
        apart = np.sum(p * p, axis=1) + 1 - 2 * p[np.arange(n), y]
    return {
        "accuracy": Number(hits / n, "share", float(low), float(high), n),
        "brier": mean_cost(np.maximum(apart, 0.0), "1"),
    }
