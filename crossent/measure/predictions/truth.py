"""What came, row by row: a class, a one-hot row, a distribution, or the counts of what annotators said.

    class            one cell per row, the name of the class that came (or its column's number)
    one-hot          one column per class, a single 1 in each row: a class as well
    soft             the share of the second of two classes, or one column per class that add up to 1
    counts           one column per class, how many annotators chose it; a row becomes their shares and counts once
    weighted counts  the same, and a row weighs as much as it has annotators

The first of these are told apart by themselves; shares of one class in a single column have to be named, because such
numbers may as well be a target in a range. What is found on the first rows holds for all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.predictions.form import SUM_TOLERANCE, Place, in_all
from crossent.measure.predictions.naming import class_text

TRUTHS = ("class", "one-hot", "soft", "counts", "weighted counts")

SHARES = (
    "Labels are shares of the classes; cross-entropy is that of the shares, and cannot fall below their own entropy."
)
COUNTED = (
    "Labels are annotators' counts and were turned into shares; every row counts once, however many annotators it had "
    "(truth='weighted counts' weighs it by their number)."
)
WEIGHED = "Labels are annotators' counts and were turned into shares; every row weighs as much as it has annotators."


@dataclass(frozen=True)
class Coded:
    """A column of few distinct texts: ``values``, and for each row the place of its own, −1 where it is missing."""

    values: list[Any]
    codes: NDArray[Any]

    def __len__(self) -> int:
        return int(self.codes.size)


def coded(
    y: NDArray[Any] | Coded, place: Place
) -> tuple[list[str], NDArray[np.int64], NDArray[Any], Callable[[str], int]]:
    """Give the distinct labels as text, and which of them each row has, in two steps: ``table[codes]``; and where each
    comes first.

    ``y`` (n,) of any kind. Whole numbers close together are counted, not sorted: a few passes. The table is left to the
    caller, who has one of his own to look up and can join them, so that the rows are gone through once.

    >>> texts, table, codes, first = coded(np.array([3, 5, 3]), str)
    >>> texts, table[codes].tolist(), first("5")
    (['3', '5'], [0, 1, 0], 1)
    """
    if isinstance(y, Coded):
        values, codes = y.values, y.codes
        gone = np.array([*map(_missing, values), True])[codes]  # −1 is the last one
    else:
        values, codes, gone = _distinct(y, place)
    if gone is not None and gone.any():
        raise DataError(
            f"{place(int(np.argmax(gone)))} has no label ({in_all(gone.sum())}). Leave such rows out: what "
            "did not come cannot be measured."
        )
    here = np.bincount(codes, minlength=len(values)) > 0
    kept = [class_text(value) for value, came in zip(values, here, strict=True) if came]
    texts = sorted(set(kept))  # two values may read the same: 1 and "1"
    to = {text: number for number, text in enumerate(texts)}
    table = np.zeros(len(values), np.int64)
    table[here] = [to[text] for text in kept]
    return texts, table, codes, lambda text: int(np.argmax(table[codes] == to[text]))


def _distinct(y: NDArray[Any], place: Place) -> tuple[list[Any], NDArray[Any], NDArray[np.bool_] | None]:
    """The distinct values of a column, which of them each row has, and which rows have none, if any may."""
    gone = None
    if y.dtype == object:
        gone = np.fromiter((_missing(value) for value in y), bool, y.size)
        place_of: dict[Any, int] = {}
        codes = np.fromiter((place_of.setdefault(class_text(value), len(place_of)) for value in y), np.int64, y.size)
        return list(place_of), codes, gone
    if y.dtype.kind == "f":
        if (gone := np.isnan(y)).any():
            return [0], np.zeros(y.size, np.int64), gone
        if (bad := y != np.round(y)).any():
            i = int(np.argmax(bad))
            raise DataError(
                f"a label should be a class, and {place(i)} has {y[i]:g}. For a number in a range say so: "
                "task='range', with low= and high= (--range LOW HIGH); for the share of the second of two classes: "
                "truth='soft' (--truth soft)."
            )
        y = y.astype(np.int64) if np.abs(y).max() < 2**62 else y
    if y.dtype.kind == "b":
        return [False, True], y.view(np.int8), gone
    if y.dtype.kind in "iu" and int(y.max()) < 2**62:
        least, most = int(y.min()), int(y.max())
        if most - least < 65_536:
            return list(range(least, most + 1)), y if least == 0 else y.astype(np.int64) - least, gone
    kept, codes = np.unique(y, return_inverse=True)
    return kept.tolist(), codes.astype(np.int64), gone


def _missing(value: Any) -> bool:
    return value is None or value != value or str(value) in ("", "<NA>", "NaT")


def infer(y: NDArray[Any]) -> str:
    """Say what rows of one column per class are, one of TRUTHS; broken ones are "soft", which then says so."""
    if (y == np.round(y)).all() and y.min() >= 0:
        return "counts" if (y.sum(axis=1) > 1).any() else "one-hot"
    return "soft"


def shares(
    y: NDArray[Any], truth: str, place: Place, columns: Sequence[str]
) -> tuple[NDArray[Any], NDArray[np.float64] | None, str | None]:
    """Check labels that are no classes; give them as ``Predictions`` holds them, a weight per row if asked, a note.

    ``y`` float64 (n,), shares of the second class; or (n, classes), of a kind in TRUTHS. One-hot rows become int64.
    """
    grid = y if y.ndim == 2 else y[:, None]
    for bad, rule in ((np.isnan(grid), "should be a number"), (grid < 0, "cannot be negative")):
        if bad.any():
            i, j = map(int, np.unravel_index(int(np.argmax(bad)), bad.shape))
            column = f", column {columns[j]!r}" if j < len(columns) else ""
            raise DataError(f"a label {rule}, and {place(i)}{column} has {grid[i, j]:g}.")
    if y.ndim == 1:
        if (bad := y > 1).any():
            i = int(np.argmax(bad))
            raise DataError(f"a share lies between 0 and 1, and the label of {place(i)} is {y[i]:g}.")
        return y, None, SHARES
    total: NDArray[np.float64] = y.sum(axis=1)
    if truth == "one-hot":
        if (bad := (y.max(axis=1) != 1) | (total != 1)).any():
            i = int(np.argmax(bad))
            raise DataError(
                f"a one-hot label has a single 1, and that of {place(i)} adds up to {total[i]:g}. If labels are shares "
                "or counts say so: truth='soft' or 'counts' (--truth)."
            )
        return y.argmax(axis=1).astype(np.int64), None, None
    if (bad := total == 0).any():
        i = int(np.argmax(bad))
        raise DataError(
            f"{place(i)} has no label: all of its columns are 0 ({in_all(bad.sum())}). Leave such rows out."
        )
    if truth == "soft":
        off = np.abs(total - 1)
        if (bad := off > SUM_TOLERANCE).any():
            i = int(np.argmax(bad))
            raise DataError(
                f"the shares of a label should add up to 1 (within {SUM_TOLERANCE:g}), and those of {place(i)} add up "
                f"to {total[i]:.6g} ({in_all(bad.sum())}). If they are counts say so: truth='counts' "
                "(--truth counts)."
            )
        return y / total[:, None], None, SHARES
    if (bad := y != np.round(y)).any():
        i, j = map(int, np.unravel_index(int(np.argmax(bad)), bad.shape))
        raise DataError(f"counts are whole numbers, and {place(i)} has {y[i, j]:g}. Shares are truth='soft'.")
    weigh = truth == "weighted counts"
    return y / total[:, None], total if weigh else None, WEIGHED if weigh else COUNTED
