"""Columns beside the probabilities: row ids, values of a range, weights, groups, slices and bytes.

Each is checked as it comes in, by one function, which says in a sentence what is wrong and in which row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.predictions.form import Place, as_numbers, in_all
from crossent.measure.predictions.naming import PREFIX, class_text
from crossent.measure.predictions.truth import Coded

MISSING = "(missing)"
"""The slice of rows that have no value there."""

MOST_WEIGHT = 1e60
"""The largest weight; all of them together are no less than one over it, as sums hold their third powers."""


def as_array(values: Any) -> NDArray[Any]:
    """Turn a tensor, a frame or series of pandas, Polars or Arrow, a sparse matrix or a list into an array.

    16-bit floats of a tensor become float32. Raises DataError for what has no entries.
    """
    if hasattr(values, "detach"):  # a tensor: NumPy has no bfloat16
        if values.is_meta:
            raise DataError("a tensor on the device 'meta' has a shape and no entries: give one with numbers in it.")
        values = values.detach().cpu()
        values = values if str(values.layout) == "torch.strided" else values.to_dense()
        values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
        return np.asarray(values.numpy())
    if type(values).__module__.startswith("pyarrow"):
        if hasattr(values, "itercolumns"):
            return np.stack([as_array(cells) for cells in values.itercolumns()], axis=1)
        return np.asarray(values.to_numpy(zero_copy_only=False))
    if type(values).__module__.startswith("scipy.sparse"):  # what is not kept is 0
        return np.asarray(values.toarray())
    if type(values).__name__ == "LazyFrame":
        raise DataError("a lazy frame has no rows yet: give what its collect() gives.")
    if isinstance(values, Mapping):
        raise DataError(
            f"one entry for each row was expected, and a mapping of {some(list(values))} came: make a frame of it, as "
            "with pandas.DataFrame(…), or give its values."
        )
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    if isinstance(values, np.ma.MaskedArray):  # what is masked is missing
        numbers = values.dtype.kind in "biuf"
        cells = np.asarray(values.data).astype(np.float64 if numbers else object)
        cells[np.ma.getmaskarray(values)] = np.nan if numbers else None
        return cells
    if isinstance(values, np.ndarray):
        return values
    try:
        values = list(values)
    except TypeError:
        raise DataError(
            f"one entry for each row was expected, in an array, tensor, frame or list, and {values!r} came."
        ) from None
    if any(value is None or isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    return np.asarray(values)


def column_names(values: Any) -> list[str] | None:
    """What the columns of a frame are called; None for anything without names.

    Numbers that pandas counts columns by are no names, nor is a single number: it calls the only column of an array 0,
    which says nothing of a class. A series has a name only where it is p_<class>.

    >>> column_names([[0.5, 0.5]])
    """
    if isinstance(name := getattr(values, "name", None), str):
        return [name] if name.startswith(PREFIX) else None
    names = getattr(values, "column_names" if hasattr(values, "itercolumns") else "columns", None)
    if names is None or type(names).__name__ == "RangeIndex" or (len(names) == 1 and not isinstance(names[0], str)):
        return None
    return [str(name) for name in names]


def column(values: Any, n: int, name: str) -> NDArray[Any]:
    """Turn what came into an array of one cell per row."""
    if isinstance(values, str):
        raise DataError(
            f"{name} are {values!r}, the name of a column, and the probabilities are in no file: give the values "
            "themselves, one per row."
        )
    cells = as_array(values)
    if cells.shape != (n,):
        raise DataError(f"there are {n:,} rows and {name} of shape {cells.shape}: give one per row.")
    return cells


def row_ids(rows: Any, n: int) -> NDArray[Any]:
    """Check the row ids, or number the rows from 0."""
    if rows is None:
        return np.arange(n)
    ids = as_array(rows)
    if ids.shape != (n,):
        raise DataError(f"there are {n:,} rows and {ids.size:,} row ids: give one id per row.")
    refuse_missing_ids(ids, np.arange(n))
    refuse_copies(ids)
    return ids


def refuse_missing_ids(ids: NDArray[Any], where: NDArray[np.int64]) -> None:
    """Refuse rows without an id; ``where`` are their places."""
    if ids.dtype.kind not in "Of":
        return
    gone = np.isnan(ids) if ids.dtype.kind == "f" else np.array([x is None or x == "" or x != x for x in ids.tolist()])
    if gone.any():
        raise DataError(
            f"row {where[int(np.argmax(gone))]}, counted from 0, has no row id ({in_all(gone.sum())}). Give every row "
            "an id of its own."
        )


def refuse_copies(ids: NDArray[Any]) -> None:
    """Refuse row ids that come several times."""
    kept, times = np.unique(ids.astype(str) if ids.dtype == object else ids, return_counts=True)
    if kept.size < ids.size:
        raise DataError(
            "row ids should name each row once, and these come several times: "
            f"{some(kept[times > 1].tolist())}. Remove the copies: a row counted twice makes every interval "
            "too narrow."
        )


def fractions(y: NDArray[Any] | Coded, place: Place, low: float, high: float) -> NDArray[np.float64]:
    """Turn the values of a range into fractions of it."""
    if isinstance(y, Coded) or y.ndim != 1:
        raise DataError("the labels of a range should be numbers, one per row.")
    value = as_numbers(y, "the labels of a range")
    if (bad := np.isnan(value)).any():
        raise DataError(f"{place(int(np.argmax(bad)))} has no label ({in_all(bad.sum())}). Leave such rows out.")
    if (bad := (value < low) | (value > high)).any():
        i = int(np.argmax(bad))
        raise DataError(
            f"labels should lie in the range {low:g} to {high:g}, and {place(i)} has {value[i]:g} "
            f"({in_all(bad.sum())}). Give the range with low= and high=, or leave the row out."
        )
    return np.clip((value - low) / (high - low), 0.0, 1.0)  # the clip takes away a rounding, never a value


def row_weights(values: Any, place: Place) -> NDArray[np.float64] | None:
    """Check weights: how many rows a row stands for; 0 leaves it out, below 0 has no meaning."""
    if values is None:
        return None
    w = as_numbers(values, "weights")
    if not (w.size == 0 or (float(w.min()) >= 0 and float(w.max()) < math.inf)):
        bad = ~((w >= 0) & (w < math.inf))
        i = int(np.argmax(bad))
        raise DataError(
            f"a weight is a number, 0 or more, and {place(i)} has {w[i]:g} ({in_all(bad.sum())}). A row "
            "that should not count has weight 0, or is left out."
        )
    if w.size and float(w.max()) > MOST_WEIGHT:
        i = int(np.argmax(w))
        raise DataError(
            f"{place(i)} has the weight {w[i]:g}, and above {MOST_WEIGHT:g} its third power is no number any more. "
            "Divide all weights by one number: only their proportions matter."
        )
    # Not even the square of such a weight is a number; beside one that counts it is 0 in all its digits.
    return np.where(w < MOST_WEIGHT**-2, 0.0, w) if w.size and w.min() < MOST_WEIGHT**-2 else w


def row_bytes(values: Any, place: Place) -> NDArray[np.int64]:
    """Check lengths in bytes, or take those of texts."""
    if values.dtype.kind in "OU" and all(isinstance(text, str) for text in values.tolist()):
        return np.array([len(text.encode()) for text in values.tolist()], np.int64)
    b = as_numbers(values, "bytes")
    if (bad := ~((b >= 0) & (b == np.round(b)) & (b < 2**53))).any():
        i = int(np.argmax(bad))
        raise DataError(f"bytes are whole numbers, 0 or more, and {place(i)} has {b[i]:g}. Give the length in bytes.")
    return b.astype(np.int64)


def row_groups(values: Any, place: Place) -> NDArray[Any]:
    """Check groups: whole numbers as they are, all else as text; a row without one belongs nowhere and is refused."""
    if not isinstance(values, Coded) and values.dtype.kind in "iu":
        return np.asarray(values)
    words = texts(values)
    if (gone := words == MISSING).any():
        raise DataError(
            f"{place(int(np.argmax(gone)))} has no group ({in_all(gone.sum())}). Give every row the group "
            "it belongs to; a row on its own is a group of its own."
        )
    return words


def texts(values: NDArray[Any] | Coded) -> NDArray[Any]:
    """Write a column as text, (n,) of objects, one object for each distinct value; "(missing)" where there is none."""
    if isinstance(values, Coded):
        return np.array([*map(_text, values.values), MISSING], dtype=object)[values.codes]
    if values.dtype == object:
        known: dict[Any, str] = {}
        return np.array([known.setdefault(value, _text(value)) for value in values] + [None], dtype=object)[:-1]
    kept, codes = np.unique(values, return_inverse=True)
    return np.array([*map(_text, kept.tolist()), None], dtype=object)[codes]


def _text(value: Any) -> str:
    return MISSING if value is None or value != value or value == "" else class_text(value)
