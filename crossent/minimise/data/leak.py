"""Columns that know too much: one that all but gives the label away has probably learnt it from the label.

A date of discharge in data about who survives, an account number given to defaulters: such a column makes a model that
is useless and looks perfect. Each column is asked alone, by the frequencies of the classes within its values, or within
32 quantiles of its numbers, counted on one half of the rows and judged on the other, both ways.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.errors import require

MOST_ROWS = 20_000
BINS, MOST_VALUES = 32, 200
SUSPICIOUS = 0.02
"""A share of the labels' entropy below which one column's cross-entropy is too good to be true."""


def leaks(table: object, encoded: NDArray[np.generic]) -> list[str]:
    """Say which columns of a pandas table give the label away; ``encoded`` (n,) classes, or fractions of a range.

    Soft labels count as their most probable class, a range as its tenths. Tables of fewer than 50 rows are not asked.
    """
    pandas = require("pandas", "cli", "a table's columns")
    if not isinstance(table, pandas.DataFrame) or len(table) < 50:
        return []
    y = encoded.argmax(1) if encoded.ndim == 2 else encoded
    if y.dtype.kind == "f":
        y = np.searchsorted(np.quantile(y, np.linspace(0.1, 0.9, 9)), y)
    some = np.linspace(0, len(table) - 1, min(len(table), MOST_ROWS)).astype(int)
    some = np.random.default_rng(0).permutation(some)  # a sorted table would have other rows in either half
    y = np.unique(y[some], return_inverse=True)[1]
    share = np.bincount(y) / len(y)
    entropy = -float(np.sum(share * np.log(share)))
    said = []
    for name in table.columns:
        cells = _cells(table[name].iloc[some], pandas)
        if cells is None:
            continue
        nats = _alone(cells, y, share)
        if nats < SUSPICIOUS * entropy:
            said.append(
                f"Column {name!r} alone gives {nats:.3g} nats, where the labels' entropy is {entropy:.3g}: it all but "
                "says the label. If it would not be known when a prediction is made, leave it out."
            )
    return said


def _cells(column: object, pandas: object) -> NDArray[np.int64] | None:
    """A column's values by number: quantiles of numbers, values of others; None where there are too many to count."""
    api = pandas.api.types  # type: ignore[attr-defined]
    if api.is_numeric_dtype(column) and not api.is_bool_dtype(column):
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)  # type: ignore[attr-defined]
        known = numbers[np.isfinite(numbers)]
        if not len(known):
            return None
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)))
        return np.where(np.isfinite(numbers), np.searchsorted(edges, numbers), len(edges) + 1)
    codes, values = pandas.factorize(column, use_na_sentinel=False)  # type: ignore[attr-defined]
    return codes if len(values) <= MOST_VALUES else None


def _alone(cells: NDArray[np.int64], y: NDArray[np.int64], share: NDArray[np.float64]) -> float:
    """Cross-entropy of the labels given the cells: frequencies of one half, and a row of the whole's, on the other."""
    half = np.arange(len(y)) % 2 == 0
    costs = []
    for here in (half, ~half):
        counts = np.zeros((int(cells.max()) + 1, len(share)))
        np.add.at(counts, (cells[here], y[here]), 1)
        p = (counts + share) / (counts.sum(1, keepdims=True) + 1)
        costs.append(-np.log(p[cells[~here], y[~here]]))
    return float(np.concatenate(costs).mean())
