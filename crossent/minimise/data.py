"""Data come in: a table or an array of features, and the target, from a file or from scikit-learn's own sets."""

from __future__ import annotations

import csv
import difflib
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent.errors import DataError, require, some
from crossent.files import check_content

EMBEDDED = ("digits", "breast_cancer", "iris", "wine", "diabetes")


@dataclass(frozen=True, eq=False)
class Data:
    """Features ``x``, a pandas table or a float array (n, d), and labels ``y`` (n,), or None where there are none."""

    x: Any
    y: Any
    source: str
    target: str

    def __len__(self) -> int:
        return len(self.x)


def read(source: str | os.PathLike[str], target: str | None = None, *, labelled: bool = True) -> Data:
    """Read an embedded set by name, or a ``.csv``, ``.parquet`` or ``.npz`` file.

    ``target`` names the column of the labels; without it a table's column called target, label, class or y is taken,
    and else its last. With ``labelled=False`` a table need not have the target, and it is left out of the features.
    """
    name = os.fspath(source)
    if name in EMBEDDED:
        return _embedded(name, target)
    path = Path(source)
    suffix = path.suffix.lower()
    if not os.path.exists(path):  # which also says no to a name that is too long
        close = difflib.get_close_matches(name, [*EMBEDDED, *(str(p) for p in _beside(path))], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{name!r} is neither a file nor one of the embedded sets ({', '.join(EMBEDDED)}).{hint}")
    if path.is_dir():
        raise DataError(f"{name!r} is a folder; name a .csv, .parquet or .npz file in it.")
    if suffix not in SUFFIXES:
        raise DataError(
            f"{name!r}: data are read from {', '.join(SUFFIXES)} files, not from {suffix or 'a nameless kind'}."
        )
    check_content(path)
    if suffix == ".npz":
        return _arrays(path, target, labelled)
    return from_table(TABLES[suffix](path), target, name, labelled=labelled)


def from_table(table: Any, target: str | None, source: str, *, labelled: bool = True) -> Data:
    """Split a pandas table into features and target."""
    if len(table) == 0:
        raise DataError(f"{source!r} has a header and no rows. It needs at least one row to go on.")
    _name(table, source)
    column = target
    if column is None:
        usual = [c for c in table.columns if c.strip().lower() in ("target", "label", "class", "y")]
        column = usual[0] if usual else table.columns[-1]
    if column not in table.columns:
        if not labelled:
            return Data(table, None, source, column)
        close = difflib.get_close_matches(column, table.columns, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{source!r} has no column {column!r}.{hint} Its columns are {some(list(table.columns), 12)}.")
    x = table.drop(columns=column)
    if x.shape[1] == 0:
        raise DataError(f"{source!r} has only one column, {column!r}: there is nothing to predict it from.")
    return Data(x.reset_index(drop=True), _labels(table[column]), source, column)


def from_arrays(x: Any, y: Any, source: str = "arrays") -> Data:
    """Take what a Python caller has: arrays, tensors, or a pandas table with a series."""
    if hasattr(x, "__len__") and len(x) == 0:
        raise DataError(f"{source}: x has no rows.")
    if hasattr(x, "columns"):
        table = x.reset_index(drop=True).copy()
        _name(table, source)
        x = table
    else:
        x = _numbers(_array(x), source)
    if y is not None:
        target = str(getattr(y, "name", None) or "y")
        y = _labels(y) if hasattr(y, "isna") else _array(y)
        if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1 or len(y) != len(x):
            raise DataError(
                f"{source}: y must hold one label for each of the {len(x):,} rows of x; its shape is {y.shape}."
            )
    else:
        target = "y"
    return Data(x, y, source, target)


def _labels(y: Any) -> np.ndarray:
    """A column of labels as an array: numbers as numbers (NaN where missing), all else as objects (None there)."""
    pandas = require("pandas", "cli", "a table's column")
    if hasattr(y, "columns"):
        if y.shape[1] != 1:
            raise DataError(f"the labels must be one column; got {y.shape[1]}.")
        y = y.iloc[:, 0]
    y = pandas.Series(y)  # an index and a bare categorical are columns too
    missing = y.isna().to_numpy()
    if pandas.api.types.is_numeric_dtype(y) and not pandas.api.types.is_bool_dtype(y):
        return y.to_numpy(dtype=np.float64, na_value=np.nan) if missing.any() else y.to_numpy()
    if pandas.api.types.is_datetime64_any_dtype(y):
        return y.to_numpy()
    values = y.to_numpy(dtype=object, copy=True)
    values[missing] = None
    return values


def _name(table: Any, source: str) -> None:
    """Give a table's columns their names as text, and refuse a name that two of them have."""
    table.columns = [str(column) for column in table.columns]
    _refuse_twins(table.columns.to_list(), source)


def _refuse_twins(names: list[str], source: str) -> None:
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{source!r} has more than one column named {some(twice)}. Rename them so that each is itself.")


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _numbers(x: np.ndarray, source: str) -> np.ndarray:
    """Features given as an array are all numbers, all finite, one row each."""
    if x.ndim < 2:
        raise DataError(f"{source}: x must have a row for each example, shape (n, d); its shape is {x.shape}.")
    if x.dtype.kind not in "biuf":
        raise DataError(f"{source}: x must hold numbers; it holds {x.dtype}. Pass a pandas table for mixed columns.")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        x = x.reshape(len(x), -1).astype(np.float32, copy=False)
    bad = ~np.isfinite(x)
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise DataError(
            f"{source}: {int(bad.sum()):,} features are NaN, infinite or too large for float32, first at row {row}, "
            f"column {column}. An array must be complete; in a table (CSV, Parquet, pandas) an empty cell or NaN is "
            "taken as missing."
        )
    return x


def _embedded(name: str, target: str | None) -> Data:
    datasets = require("sklearn.datasets", "cli", "an embedded data set")
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    if target not in (None, "target"):
        raise DataError(f"the embedded set {name!r} has its own target; leave out --target.")
    y = bunch.target
    if name in ("breast_cancer", "iris", "wine"):
        y = y.map(dict(enumerate(str(label) for label in bunch.target_names)))
    return Data(bunch.data, _labels(y), name, "target")


def _csv(path: Path) -> Any:
    pandas = require("pandas", "cli", "reading a table")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = re.sub(r'"[^"]*"', "", file.readline())
            separator = max(",;\t|", key=first.count)
            file.seek(0)
            names = next(csv.reader(file, delimiter=separator, skipinitialspace=True), [])
        _refuse_twins([name for name in names if name], str(path))  # pandas would number them without a word
        with warnings.catch_warnings():
            # Without index_col=False a longer row makes pandas shift all columns by one; with it, it warns.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # low_memory=False reads a column before it decides what it is; sep=None would guess the separator slowly.
            return pandas.read_csv(
                path, low_memory=False, sep=separator, encoding="utf-8-sig", skipinitialspace=True, index_col=False
            )
    except DataError:
        raise
    except pandas.errors.EmptyDataError as trouble:
        raise DataError(f"{str(path)!r} is empty: it has no header and no rows.") from trouble
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, csv.Error, ValueError) as trouble:
        raise DataError(
            f"{str(path)!r} is not a readable CSV: {' '.join(str(trouble).split())}. Each line needs as many cells as "
            "the header, in UTF-8."
        ) from trouble


def _parquet(path: Path) -> Any:
    require("pyarrow", "cli", "reading a Parquet file")
    pandas = require("pandas", "cli", "reading a table")
    try:
        return pandas.read_parquet(path)
    except (OSError, ValueError) as trouble:
        raise DataError(f"{str(path)!r} is not a readable Parquet file: {trouble}") from trouble


TABLES: dict[str, Callable[[Path], Any]] = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
SUFFIXES = (*TABLES, ".npz")


def _arrays(path: Path, target: str | None, labelled: bool) -> Data:
    name = target or "y"
    try:
        with open(path, "rb") as file, np.load(file) as arrays:  # numpy would leave a file that is no zip open
            have = list(arrays)
            for needed in ("x", name) if labelled else ("x",):
                if needed not in have:
                    raise DataError(
                        f"{str(path)!r} needs the arrays 'x' (n, d) and {name!r} (n,); it has {some(have) or 'none'}."
                    )
            x, y = arrays["x"], arrays[name] if name in have else None
    except DataError:
        raise
    except Exception as trouble:  # zipfile, zlib and numpy each have their own way to fail
        raise DataError(
            f"{str(path)!r} is not a readable .npz of plain arrays: {trouble}. Objects in arrays are not read; "
            "save text labels as a text array."
        ) from trouble
    return from_arrays(x, y, str(path))


def _beside(path: Path) -> list[Path]:
    parent = path.parent
    try:
        return [file for file in sorted(parent.iterdir())[:1000] if file.suffix.lower() in SUFFIXES]
    except OSError:
        return []
