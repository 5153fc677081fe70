"""Rows of X and what stands beside them, y and weights, as scikit-learn hands them over: paired by place."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, require

_PURPOSE = "an estimator for scikit-learn"
validation = require("sklearn.utils.validation", "cli", _PURPOSE)
pandas = require("pandas", "cli", _PURPOSE)


def warn_of_another_order(X: Any, **beside: Any) -> None:
    """Say that rows are paired by place, as everywhere in scikit-learn, where their names would pair them otherwise.

    A refusal would go too far: a step of a pipeline may number its rows anew.
    """
    for name, given in beside.items():
        if not all(isinstance(frame, (pandas.DataFrame, pandas.Series)) for frame in (X, given)):
            continue
        if len(X) == len(given) and not X.index.equals(given.index) and X.index.symmetric_difference(given.index).empty:
            warnings.warn(
                f"{name} has the rows of X in another order, and rows are paired by place, as scikit-learn does: "
                f"pass {name}.loc[X.index] if their names are to pair them.",
                UserWarning,
                stacklevel=3,
            )


def take(rows: Any, places: NDArray[Any]) -> Any:
    """Some rows, by their places, of an array or a frame."""
    return rows.iloc[places] if hasattr(rows, "iloc") else rows[places]


def counted(
    estimator: Any, rows: Any, labels: NDArray[Any], sample_weight: Any
) -> tuple[Any, Any, NDArray[np.float64]]:
    """Rows and labels that count, with their weights: one for each row, and those of weight 0 left out."""
    validation.check_consistent_length(rows, labels, sample_weight)
    if sample_weight is None:
        return rows, labels, np.ones(len(labels))
    weight = validation.check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weight.ndim != 1 or (weight < 0).any():
        raise DataError(
            f"sample_weight should be (n,), 0 or more; it has shape {weight.shape} and its least is {weight.min():g}."
        )
    counts = np.flatnonzero(weight)
    if not len(counts):
        raise DataError(f"sample_weight is zero in all {len(weight):,} rows: there is nothing to learn from.")
    return take(rows, counts), labels[counts], weight[counts]
