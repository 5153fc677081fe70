"""Arrow's columns as NumPy arrays: numbers, lists of numbers, texts, row ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, require
from crossent.measure.predictions.truth import Coded
from crossent.measure.sources.files import PURPOSE
from crossent.measure.sources.tables import content, mend


def numbers(table: Any, columns: list[str], place: Callable[[int], str]) -> NDArray[Any]:
    """Give columns of numbers, or of lists of them, as (n,) or (n, columns), NaN where a cell is empty."""
    if len(columns) == 1:
        return _numbers(table.column(columns[0]), columns[0], place)
    grid = np.empty((len(columns), table.num_rows))  # column after column in memory, as they come
    for j, name in enumerate(columns):
        cells = _numbers(table.column(name), name, place)
        if cells.ndim != 1:
            raise DataError(f"the column {name!r} holds lists, and so must be the only one of its kind.")
        grid[j] = cells
    return grid.T


def _numbers(column: Any, name: str, place: Callable[[int], str]) -> NDArray[Any]:
    pyarrow = require("pyarrow", "cli", PURPOSE)
    held = content(column.type)
    if held.startswith("lists"):
        sizes = require("pyarrow.compute", "cli", PURPOSE).list_value_length(column).to_numpy(zero_copy_only=False)
        if (bad := sizes != sizes[0]).any():
            i = int(np.argmax(bad))
            raise DataError(
                f"every cell of the column {name!r} should be a list of {sizes[0]:g} numbers, and that of {place(i)} "
                f"has {sizes[i]:g}. Give every row one number per class."
            )
        cells = _numbers(column.flatten(), name, place)
        return cells.reshape(len(column), -1)
    if held in ("numbers", "truth values", "nothing"):
        if pyarrow.types.is_decimal(column.type) or held != "numbers":
            column = column.cast(pyarrow.float64())
        return np.asarray(column.to_numpy(zero_copy_only=False))
    try:
        return np.asarray(column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False))
    except pyarrow.ArrowException:
        for i, cell in enumerate(column.to_pylist()):
            try:
                float("nan" if cell in (None, "") else cell)
            except (TypeError, ValueError):
                raise DataError(
                    f"column {name!r} should hold numbers, and {place(i)} has {cell!r}. {mend(cell)}"
                ) from None
        return np.array([np.nan if cell in (None, "") else float(cell) for cell in column.to_pylist()])


def lengths(table: Any, name: str, place: Callable[[int], str]) -> NDArray[Any]:
    """Give a column of bytes, or the lengths in bytes of a column of text."""
    column = table.column(name)
    if content(column.type) == "text":
        found = require("pyarrow.compute", "cli", PURPOSE).binary_length(column)
        return np.asarray(found.to_numpy(zero_copy_only=False))
    return _numbers(column, name, place)


def coded_cells(column: Any) -> NDArray[Any] | Coded:
    """Give a column of classes, groups or slices: numbers and truth values as they are, all else coded."""
    pyarrow = require("pyarrow", "cli", PURPOSE)
    held = content(column.type)
    if held == "numbers" and not pyarrow.types.is_decimal(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if held == "truth values" and not column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if held.startswith("lists") or pyarrow.types.is_nested(column.type):
        kind = "lists" if held.startswith("lists") else f"cells of the type {held}"
        raise DataError(f"a column of {kind} is no column of classes, groups or slices: give one cell per row.")
    if held != "text" and not pyarrow.types.is_dictionary(column.type):
        column = column.cast(pyarrow.string())
    words = column.dictionary_encode()
    return Coded(words.dictionary.to_pylist(), words.indices.fill_null(-1).to_numpy(zero_copy_only=False))


def plain_ids(column: Any) -> NDArray[Any]:
    """Row ids; text that is whole numbers, written the one usual way, is those numbers."""
    if content(column.type) == "numbers" and not column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False))
    cells = column.to_pylist()
    if all(isinstance(cell, str) and cell.isdecimal() for cell in cells):
        whole = [int(cell) for cell in cells]
        if max(whole, default=0) < 2**63 and [str(number) for number in whole] == cells:
            return np.array(whole, dtype=np.int64)
    return np.array([*cells, None], dtype=object)[:-1]  # one axis, whatever the cells are
