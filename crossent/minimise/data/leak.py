"""Columns that know too much: one that all but gives the label away has probably learnt it from the label.

A date of discharge in data about who survives, an account number given to defaulters: such a column makes a model that
is useless and looks perfect. Each column is asked alone, by the frequencies of the classes within its values, or within
the leaves of a small tree on its numbers, counted on one half of the rows and judged on the other, both ways.

A tree and not quantiles: a number that parts the classes at one point parts them at a quantile by luck alone, and the
quantile that is parted costs more than is allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import require

MOST_ROWS, MOST_CELLS = 20_000, 2_000_000
"""Rows that are asked at most, and cells: thousands of columns are asked on fewer rows."""
LEAST_ROWS = 50
LEAVES, MOST_VALUES = 32, 200
SUSPICIOUS = 0.02
"""A share of the labels' entropy below which one column's cross-entropy is too good to be true."""


def leaks(x: object, encoded: NDArray[np.generic]) -> list[str]:
    """Say which columns of a table, or of an array (n, d), give the label away.

    ``encoded`` are (n,) classes, (n, classes) shares, which count as their most probable class, or fractions of a
    range, which count as their tenths. Fewer than 50 rows are not asked, nor are images.
    """
    pandas = require("pandas", "cli", "a table's columns")
    if getattr(x, "ndim", 0) != 2 or len(encoded) < LEAST_ROWS:
        return []
    table = x if isinstance(x, pandas.DataFrame) else pandas.DataFrame(x)
    y = encoded.argmax(1) if encoded.ndim == 2 else encoded
    if y.dtype.kind == "f":
        y = np.searchsorted(np.quantile(y, np.linspace(0.1, 0.9, 9)), y)
    most = min(len(table), MOST_ROWS, max(1_000, MOST_CELLS // max(1, table.shape[1])))
    some = np.linspace(0, len(table) - 1, most).astype(int)
    some = np.random.default_rng(0).permutation(some)  # a sorted table would have other rows in either half
    y = np.unique(y[some], return_inverse=True)[1]
    share = np.bincount(y) / len(y)
    entropy = -float(np.sum(share * np.log(share)))
    half = np.arange(len(y)) % 2 == 0
    said = []
    for name in table.columns:
        column = table[name].iloc[some]
        costs = _costs(column, y, share, half, pandas)
        if costs.mean() > 10 * SUSPICIOUS * entropy:  # most columns: the other half would not say otherwise
            continue
        nats = float(np.concatenate((costs, _costs(column, y, share, ~half, pandas))).mean())
        if nats < SUSPICIOUS * entropy:
            said.append(
                f"Column {name!r} alone gives {nats:.3g} nats, where the labels' entropy is {entropy:.3g}: it all but "
                "says the label. If it would not be known when a prediction is made, leave it out."
            )
    return said


def _costs(
    column: Any, y: NDArray[np.int64], share: NDArray[np.float64], counted: NDArray[np.bool_], pandas: Any
) -> NDArray[np.float64]:
    """What labels cost given their cells: by the frequencies in the rows ``counted``, and a row of the whole's."""
    api = pandas.api.types
    if api.is_numeric_dtype(column) and not api.is_bool_dtype(column):
        cells = _leaves(column.to_numpy(dtype=np.float64, na_value=np.nan), y, counted)
    else:
        cells, values = pandas.factorize(column, use_na_sentinel=False)
        if len(values) > MOST_VALUES:
            return np.array([np.inf])
    counts = np.zeros((int(cells.max()) + 1, len(share)))
    np.add.at(counts, (cells[counted], y[counted]), 1)
    p = (counts + share) / (counts.sum(1, keepdims=True) + 1)
    return -np.log(p[cells[~counted], y[~counted]])


def _leaves(numbers: NDArray[np.float64], y: NDArray[np.int64], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The leaf (n,) that each number falls into, of a tree grown on the rows ``counted``."""
    tree = require("sklearn.tree", "cli", "a table's columns").DecisionTreeClassifier
    known = np.isfinite(numbers)
    # By rank, as the tree is of float32, which large numbers are too close for; and what lies between two numbers that
    # are counted is as far between their ranks, so that a gap between classes is parted in its middle.
    place = np.full((len(numbers), 1), -1.0)
    kept = np.unique(numbers[known & counted])
    if kept.size:
        place[known, 0] = np.interp(numbers[known], kept, np.arange(kept.size))
    grown = tree(max_leaf_nodes=LEAVES, min_samples_leaf=5, random_state=0).fit(place[counted], y[counted])
    return grown.apply(place)
