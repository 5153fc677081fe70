"""Where the cost falls: class by class, and the rows that cost most."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.predictions import Predictions
from crossent.record import Table

COSTLIEST = 20


def per_class(predictions: Predictions, rows_cost: NDArray[np.float64]) -> Table:
    """Give one line per class, in the order of the columns.

    ``rows`` and ``share`` of the labels; ``cross_entropy`` in nats over the rows of that class;
    ``mean_probability`` that the class was given over all rows, to be held beside ``share``; ``recall``, the
    share of its rows that were predicted as it, and ``precision``, the share of rows predicted as it that
    were. A cell that would be 0/0 is None.

    >>> p = Predictions.from_arrays([0.9, 0.2, 0.6], [1, 0, 0])
    >>> per_class(p, np.array([0.1, 0.2, 0.9]))["recall"]
    [0.5, 1.0]
    """
    k, y = len(predictions.classes), predictions.labels
    chosen = np.argmax(predictions.probabilities, axis=1)
    rows, predicted = np.bincount(y, minlength=k), np.bincount(chosen, minlength=k)
    right = np.bincount(y[chosen == y], minlength=k)
    cost = np.bincount(y, rows_cost, minlength=k)
    return {
        "class": list(predictions.classes),
        "rows": rows.tolist(),
        "share": (rows / y.size).tolist(),
        "cross_entropy": _ratios(cost, rows),
        "mean_probability": predictions.probabilities.mean(axis=0).tolist(),
        "recall": _ratios(right, rows),
        "precision": _ratios(right, predicted),
    }


def _ratios(over: NDArray[Any], under: NDArray[np.int64]) -> list[float | None]:
    return [float(a / b) if b else None for a, b in zip(over, under, strict=True)]


def costliest(predictions: Predictions, rows_cost: NDArray[np.float64]) -> Table:
    """Give the 20 rows that cost most, the costliest first; equal ones in the order they came.

    ``predicted`` is the most probable class and ``probability`` what the label was given; for a range
    ``label`` and ``predicted`` are in the target's own unit and there is no ``probability``. Costs are in
    nats.
    """
    top = np.argsort(-rows_cost, kind="stable")[:COSTLIEST]
    p, y = predictions.probabilities[top], predictions.labels[top]
    table: Table = {"row": predictions.rows[top].tolist()}
    if predictions.task == "range":
        low, high = predictions.low or 0.0, predictions.high if predictions.high is not None else 1.0
        table["label"] = (low + y * (high - low)).tolist()
        table["predicted"] = (low + p[:, 1] * (high - low)).tolist()
    else:
        table["label"] = [predictions.classes[c] for c in y]
        table["predicted"] = [predictions.classes[c] for c in np.argmax(p, axis=1)]
        table["probability"] = p[np.arange(y.size), y].tolist()
    table["cross_entropy"] = rows_cost[top].tolist()
    assert not any(math.isnan(cost) for cost in table["cross_entropy"])
    return table
