"""Rows for the one test: drawn by class, so that it has its share of every one."""

from __future__ import annotations

import numpy as np

TEST = 0.2


def draw(encoded: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw 80 % of the rows to learn from and 20 % for the test: sorted row numbers, no row in both.

    ``encoded`` are class indices, shares of classes, or fractions, which are drawn by their tenths. A class of one row
    goes to learning, for a class that was never seen cannot be predicted.
    """
    generator = np.random.default_rng([seed, 1])
    strata = encoded if encoded.ndim == 1 else encoded.argmax(1)
    if strata.dtype.kind == "f":
        order = np.argsort(encoded, kind="stable")
        strata = np.empty(len(encoded), dtype=np.int64)
        strata[order] = np.arange(len(encoded)) * 10 // len(encoded)
    tested = np.zeros(len(strata), dtype=bool)
    owed = 0.0
    for stratum in np.unique(strata):
        rows = generator.permutation(np.flatnonzero(strata == stratum))
        # What rounding kept from the test in one class is owed to it in the next, so that the whole adds up.
        owed += TEST * len(rows)
        count = min(max(0, round(owed)), len(rows) - 1)
        owed -= count
        tested[rows[:count]] = True
    return np.flatnonzero(~tested), np.flatnonzero(tested)
