"""Rows for training, for choosing, and for the one test: drawn by class, so that each has its share of every one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEST, VALIDATION = 0.2, 0.16


@dataclass(frozen=True, eq=False)
class Split:
    """Sorted row numbers of the three parts; together they are all rows, and no row is in two."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def draw(encoded: np.ndarray, seed: int, *, with_test: bool) -> Split:
    """Draw 64 % for training, 16 % for validation and 20 % for the test; 80 and 20 % if the test is a file of its own.

    ``encoded`` are class indices, or fractions, which are drawn by their tenths. A class of one row goes to training,
    for a class that was never seen cannot be predicted; the second of two goes where most rows are owed, mostly to the
    test.
    """
    generator = np.random.default_rng([seed, 1])
    strata = encoded
    if encoded.dtype.kind == "f":
        order = np.argsort(encoded, kind="stable")
        strata = np.empty(len(encoded), dtype=np.int64)
        strata[order] = np.arange(len(encoded)) * 10 // len(encoded)
    where = np.empty(len(strata), dtype=np.int64)  # 0 train, 1 validation, 2 test
    shares = [1 - TEST - VALIDATION, VALIDATION, TEST] if with_test else [1 - TEST, TEST, 0.0]
    owed = np.zeros(3)
    for stratum in np.unique(strata):
        rows = generator.permutation(np.flatnonzero(strata == stratum))
        # What rounding kept from a part in one class is owed to it in the next, so that the whole adds up.
        owed += np.array(shares) * len(rows)
        counts = np.zeros(3, dtype=np.int64)
        for _ in rows:
            part = 0 if counts[0] == 0 else int(np.argmax(owed - counts))
            counts[part] += 1
        owed -= counts
        where[rows] = np.repeat(np.arange(3), counts)
    return Split(*(np.flatnonzero(where == part) for part in range(3)))
