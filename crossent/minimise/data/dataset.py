"""Data come in: a table or an array of features, and the target, from a file or from scikit-learn's own sets."""

from __future__ import annotations

import difflib
import fnmatch
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossent.errors import DataError, require, some
from crossent.files import check_content, ending
from crossent.measure.predictions.columns import MOST_WEIGHT, as_array
from crossent.measure.predictions.predictions import same_index
from crossent.minimise.data.tables import KINDS, TABLES, refuse_twins

EMBEDDED = ("digits", "breast_cancer", "iris", "wine", "diabetes")


@dataclass(frozen=True, eq=False)
class Data:
    """Features ``x`` and labels ``y``.

    ``x`` is a pandas table, a float array (n, d), or images (n, channels, height, width) from 0 to 1. ``y`` (n,), or
    (n, classes) of shares or counts with the ``names`` of the classes, or None where there are none. ``weight`` (n,)
    float64, or None where all rows count alike.
    """

    x: Any
    y: Any
    source: str
    target: str
    names: tuple[str, ...] = ()
    weight: Any = None

    def __len__(self) -> int:
        return len(self.x)


def read(
    source: str | os.PathLike[str], target: str | None = None, weight: str | None = None, *, labelled: bool = True
) -> Data:
    """Read an embedded set by name, or a file: one of the ``TABLES``, or an ``.npz``.

    ``target`` names the column of the labels; without it a table's column called target, label, class or y is taken,
    and else its last; a pattern such as ``votes_*`` names one column for each class, of shares or counts. ``weight``
    names the column of the rows' weights. With ``labelled=False`` a table need not have these, and they are left out of
    the features.
    """
    name = os.fspath(source)
    if name in EMBEDDED:
        if weight is not None:
            raise DataError(f"the embedded set {name!r} has no weights; leave out --weight.")
        return _embedded(name, target)
    path = Path(source)
    kind = ending(path)
    if not os.path.exists(path):  # which also says no to a name that is too long
        close = difflib.get_close_matches(name, [*EMBEDDED, *(str(p) for p in _beside(path))], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{name!r} is neither a file nor one of the embedded sets ({', '.join(EMBEDDED)}).{hint}")
    if path.is_dir():
        raise DataError(f"{name!r} is a folder; name a file in it, a .csv, .parquet or .npz, say.")
    if kind not in TABLES and kind != ".npz":
        raise DataError(f"{name!r}: data are read from {KINDS} and .npz files, not from {kind or 'a nameless kind'}.")
    check_content(path)
    if kind == ".npz":
        return _arrays(path, target, weight, labelled)
    return from_table(TABLES[kind](path), target, name, weight, labelled=labelled)


def from_table(
    table: Any, target: str | None, source: str, weight: str | None = None, *, labelled: bool = True
) -> Data:
    """Split a pandas table into features, target and weights."""
    if len(table) == 0:
        raise DataError(f"{source!r} has a header and no rows. It needs at least one row to go on.")
    named(table, source)
    weights = None
    if weight is not None and (labelled or weight in table.columns):
        weights = _weights(table[_known(weight, table, source)], source, weight)
        table = table.drop(columns=weight)
    column = target
    if column is not None and column not in table.columns and "*" in column:
        return _several(table, column, source, weights, labelled)
    if column is None:
        usual = [c for c in table.columns if c.strip().lower() in ("target", "label", "class", "y")]
        column = usual[0] if usual else table.columns[-1]
    if column not in table.columns:
        if not labelled:
            return Data(table, None, source, column, weight=weights)
        _known(column, table, source)
    x = table.drop(columns=column)
    if x.shape[1] == 0:
        raise DataError(f"{source!r} has only one column, {column!r}: there is nothing to predict it from.")
    return Data(x.reset_index(drop=True), _labels(table[column]), source, column, weight=weights)


def _several(table: Any, pattern: str, source: str, weights: Any, labelled: bool) -> Data:
    """One column of shares or counts for each class."""
    columns = [name for name in table.columns if fnmatch.fnmatchcase(name, pattern)]
    if not columns and not labelled:
        return Data(table, None, source, pattern, weight=weights)
    if len(columns) < 2:
        count = f"{len(columns)} column{'s' * (len(columns) != 1)}"
        raise DataError(
            f"{source!r} has {count} like {pattern!r}; labels in several columns need one for each class, two or more. "
            f"Its columns are {some(list(table.columns), 12)}."
        )
    x, y = table.drop(columns=columns), table[columns]
    if x.shape[1] == 0:
        raise DataError(f"{source!r} has only columns like {pattern!r}: there is nothing to predict them from.")
    before = pattern.partition("*")[0]
    names = tuple(name.removeprefix(before) for name in columns)
    return Data(x.reset_index(drop=True), shares(y, source, columns), source, pattern, names, weights)


def _known(column: str, table: Any, source: str) -> str:
    if column not in table.columns:
        close = difflib.get_close_matches(column, table.columns, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{source!r} has no column {column!r}.{hint} Its columns are {some(list(table.columns), 12)}.")
    return column


def shares(y: Any, source: str, columns: list[str]) -> np.ndarray:
    """Labels (n, classes), shares or counts, as shares that add up to 1."""
    try:
        shares = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as trouble:
        raise DataError(
            f"{source}: labels in several columns are shares or counts, and here they hold text."
        ) from trouble
    bad = ~(shares >= 0) | ~np.isfinite(shares)
    if bad.any():
        row, place = np.argwhere(bad)[0].tolist()
        raise DataError(
            f"{source}: shares and counts are numbers from 0 on; row {row} has {shares[row, place]} in "
            f"{columns[place]!r}."
        )
    total = shares.sum(1)
    if (total == 0).any():
        raise DataError(f"{source}: row {int(np.argmin(total))} has no share of any class; leave such rows out.")
    whole = bool(np.all(shares == np.floor(shares)))
    off = np.abs(total - 1) > 1e-4
    if off.any() and not whole:
        row = int(np.argmax(off))
        raise DataError(
            f"{source}: shares of the classes must add up to 1; those of row {row} add up to {total[row]:g}. (Counts "
            "of annotators, whole numbers, may add up to anything.)"
        )
    return shares / total[:, None]


def _weights(values: Any, source: str, name: str = "weight") -> np.ndarray:
    """Weights of rows: finite, not negative, not all 0."""
    try:
        weights = np.asarray(_array(values), dtype=np.float64)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"{source}: {name!r} must hold numbers, the weights of the rows.") from trouble
    bad = ~(weights >= 0) | ~np.isfinite(weights)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{source}: weights are finite numbers from 0 on; row {row} has {weights[row]} in {name!r}.")
    if not weights.sum() > 0:
        raise DataError(f"{source}: all weights in {name!r} are 0: no row counts.")
    if weights.max() > MOST_WEIGHT or weights.sum() < 1 / MOST_WEIGHT:
        raise DataError(
            f"{source}: weights in {name!r} go up to {weights.max():g}, and the third powers of weights above "
            f"{MOST_WEIGHT:g}, or all below its inverse, are no numbers. Divide them by one number: only their "
            "proportions matter."
        )
    return weights


def from_arrays(x: Any, y: Any, source: str = "arrays", weight: Any = None) -> Data:
    """Take what a Python caller has: arrays, tensors, or a table of pandas, Polars or Arrow with a series."""
    same_index({f"{source}: x": x, "y": y, "the weights": weight})
    x, y = _in_pandas(x), _in_pandas(y)
    if hasattr(x, "toarray"):
        raise DataError(f"{source}: x is a sparse matrix, which nothing here reads; pass x.toarray().")
    if hasattr(x, "__len__") and len(x) == 0:
        raise DataError(f"{source}: x has no rows.")
    if hasattr(x, "columns"):
        table = x.reset_index(drop=True).copy()
        named(table, source)
        x = table
    else:
        x = _numbers(_array(x), source)
    weights: Any = None
    names: tuple[str, ...] = ()
    if weight is not None:
        weights = _weights(weight, source)
        if weights.shape != (len(x),):
            raise DataError(f"{source}: {len(x):,} rows need as many weights; their shape is {weights.shape}.")
    if y is not None:
        target = str(getattr(y, "name", None) or "y")
        if hasattr(y, "columns") and y.shape[1] > 1:
            names = tuple(map(str, y.columns))
        y = _labels(y) if hasattr(y, "isna") and not names else _array(y)
        if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim == 2 and len(y) == len(x):
            names = names or tuple(map(str, range(y.shape[1])))
            return Data(x, shares(y, source, list(names)), source, target, names, weights)
        if y.ndim != 1 or len(y) != len(x):
            raise DataError(
                f"{source}: y must hold one label for each of the {len(x):,} rows of x; its shape is {y.shape}."
            )
    else:
        target = "y"
    return Data(x, y, source, target, weight=weights)


def _in_pandas(values: Any) -> Any:
    """A table or a column of Polars or Arrow as one of pandas; all else as it came."""
    return values.to_pandas() if hasattr(values, "to_pandas") else values


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


_SEVERAL = (list, tuple, dict, np.ndarray)


def named(table: Any, source: str) -> None:
    """Give a table's columns their names as text; refuse a name that two of them have, and cells that are no values."""
    table.columns = [str(column) for column in table.columns]
    refuse_twins(table.columns.to_list(), source)
    for name in table.columns:
        dtype = table[name].dtype
        several = str(dtype) == "object" and table[name].map(lambda cell: isinstance(cell, _SEVERAL))
        if dtype.kind == "c" or np.any(several):
            holds = "complex numbers" if dtype.kind == "c" else "several values in a cell"
            raise DataError(f"{source}: the column {name!r} holds {holds}; give every value a column of its own.")


def _array(values: Any) -> np.ndarray:
    """What came as an array: NaN, or None, where it is masked; numbers of 16 bits that NumPy has not are float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()
    return as_array(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)


def _numbers(x: np.ndarray, source: str) -> np.ndarray:
    """Features given as an array are all numbers, one row each, finite or NaN where missing; images have a channel."""
    if x.ndim < 2:
        raise DataError(
            f"{source}: x must have a row for each example, shape (n, d); its shape is {x.shape}. One feature is "
            "one column: x.reshape(-1, 1) of an array, x.to_frame() of a pandas Series."
        )
    if x.dtype.kind not in "biuf":
        raise DataError(f"{source}: x must hold numbers; it holds {x.dtype}. Pass a pandas table for mixed columns.")
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        numbers = x.astype(np.float32, copy=False)
    if x.ndim > 4:
        raise DataError(
            f"{source}: x holds rows (n, d) or images (n, height, width[, channels]); its shape is {x.shape}."
        )
    bad = np.isinf(numbers) if x.ndim == 2 else ~np.isfinite(numbers)
    if bad.any():
        row, column = np.argwhere(bad.reshape(len(x), -1))[0].tolist()
        raise DataError(
            f"{source}: {int(bad.sum()):,} features are infinite or too large for float32, first at row {row}, "
            f"column {column}. Replace them by a number, or by NaN if they are missing (images must be complete)."
        )
    return numbers if x.ndim == 2 else _images(numbers, x.dtype)


def _images(x: np.ndarray, was: np.dtype) -> np.ndarray:
    """Images (n, h, w), (n, c, h, w) or (n, h, w, c) as (n, c, h, w); bytes are brought to 0 … 1."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] > 4 and x.shape[3] <= 4:  # four channels at most, and the rest is not so thin
        x = np.moveaxis(x, 3, 1)
    return np.ascontiguousarray(x / 255 if was == np.uint8 else x, dtype=np.float32)


def _embedded(name: str, target: str | None) -> Data:
    datasets = require("sklearn.datasets", "cli", "an embedded data set")
    bunch = getattr(datasets, f"load_{name}")(as_frame=True)
    if target not in (None, "target"):
        raise DataError(f"the embedded set {name!r} has its own target; leave out --target.")
    y = bunch.target
    if name in ("breast_cancer", "iris", "wine"):
        y = y.map(dict(enumerate(str(label) for label in bunch.target_names)))
    return Data(bunch.data, _labels(y), name, "target")


def _arrays(path: Path, target: str | None, weight: str | None, labelled: bool) -> Data:
    name = target or "y"
    try:
        with open(path, "rb") as file, np.load(file) as arrays:  # numpy would leave a file that is no zip open
            have = list(arrays)
            for needed in ["x", name, *([weight] if weight else [])] if labelled else ["x"]:
                if needed not in have:
                    raise DataError(
                        f"{str(path)!r} needs the arrays 'x' (n, d) and {name!r} (n,); it has {some(have) or 'none'}."
                    )
            x, y = arrays["x"], arrays[name] if name in have else None
            weights = arrays[weight] if weight in have else None
    except DataError:
        raise
    except Exception as trouble:  # zipfile, zlib and numpy each have their own way to fail
        raise DataError(
            f"{str(path)!r} is not a readable .npz of plain arrays: {trouble}. Objects in arrays are not read; "
            "save text labels as a text array."
        ) from trouble
    return from_arrays(x, y, str(path), weights)


def _beside(path: Path) -> list[Path]:
    parent = path.parent
    try:
        return [file for file in sorted(parent.iterdir())[:1000] if ending(file) in TABLES or ending(file) == ".npz"]
    except OSError:
        return []
