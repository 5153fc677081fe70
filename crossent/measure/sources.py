"""Predictions in files: the one place that knows how crossent writes them, and that reads anybody's.

A file of predictions is a table, Parquet or CSV, with one row per prediction:

    row         what identifies the row in the data it came from
    label       what came: a class, or a value in the target's own unit (absent where it is not known yet)
    split       train, validation or test (absent where there is only one)
    p_<…>       the probability of each class; for a range one column, p_1, the expected fraction of it
    prediction  (range only) the predicted mean, low + p_1 (high − low), in the target's unit

What a table cannot say (the task, the range, the order of the classes) stands in a Parquet file's metadata,
key ``crossent``, as JSON. A CSV has no such place, so a range has to be told when it is read.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossent.errors import DataError, require, some
from crossent.files import check_content, replacing
from crossent.measure.naming import PREFIX, class_text
from crossent.measure.predictions import Predictions, as_array

_PARQUET = (".parquet", ".pq")
_CSV = (".csv",)
_PURPOSE = "reading and writing prediction files"


def read_predictions(
    path: str | os.PathLike[str],
    label: str | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    normalise: bool = False,
    *,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Predictions:
    """Read predictions from a Parquet or CSV file, crossent's own or any other framework's.

    ``label`` names the column of labels ("label"), ``probability`` one column, the probability of the
    positive class (or the expected fraction of a range), or one per class (all that begin with ``p_``);
    ``row`` the column of row ids ("row" if it is there). ``split`` chooses among the values of the column
    "split"; without it the test rows are taken, which ``notes`` then says, and "all" takes every row.
    ``classes`` names the classes where the columns do not; ``task="range"`` with ``low`` and ``high`` says
    that labels are numbers in a range.

    Raises DataError, a sentence, for a file that cannot be read or holds anything but predictions;
    MissingExtra without pyarrow. Cost: one pass over the columns named.
    """
    path = Path(path)
    parquet = _recognised(path)
    names, told = _header_of_parquet(path) if parquet else (_header_of_csv(path), {})
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{str(path)!r} has several columns called {some(twice)}. Give every column its own name.")
    task = task or told.get("task")
    classes = classes if classes is not None else told.get("classes")
    if task == "range":
        low, high = (told.get("low") if low is None else low), (told.get("high") if high is None else high)

    label = _present(path, names, label or "label", "the labels", "label= (--label)")
    chosen = _probability_columns(path, names, probability, classes if probability is None else None)
    row = _present(path, names, row, "the row ids", "row= (--row)") if row else ("row" if "row" in names else None)
    parts = "split" if "split" in names and label != "split" else None
    if split is not None and parts is None:
        raise DataError(f"{str(path)!r} has no column 'split', so that {split!r} cannot be chosen: leave split out.")

    wanted = list(dict.fromkeys(name for name in (row, label, parts, *chosen) if name))
    table = (_parquet_table if parquet else _csv_table)(path, wanted, chosen)
    if not table.num_rows:
        raise DataError(f"{str(path)!r} has a header and no rows.")
    notes: tuple[str, ...] = ()
    if parts is not None:
        table, split, notes = _one_split(path, table, parts, split)
    ids = _plain_ids(table.column(row)) if row else None
    cells = table.column(label)
    labels = _numbers(path, cells, label) if task == "range" else _cells(cells)
    p = np.stack([_numbers(path, table.column(name), name) for name in chosen], axis=1)
    try:
        return Predictions.from_arrays(
            p if len(chosen) > 1 else p[:, 0], labels, classes, ids, task, low, high, columns=chosen,
            normalise=normalise, source=told.get("source") or str(path), split=split, notes=notes,
        )  # fmt: skip
    except DataError as trouble:
        hint = ""
        if not parquet and task is None and len(chosen) == 1 and "prediction" in names:
            hint = " A CSV cannot say that a target is a range; add task='range' with low= and high= if it is."
        raise DataError(f"{str(path)!r}: {trouble}{hint}") from trouble


BATCH_ROWS = 65_536
"""Rows of a batch: 1 MiB of binary probabilities, which stays in the cache between one look at them and the next."""


def batches(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    label: str | Sequence[str] | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    weight: str | None = None,
    group: str | None = None,
    by: str | Sequence[str] | None = None,
    bytes: str | None = None,
    form: str | None = None,
    truth: str | None = None,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    normalise: bool = False,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Predictions]:
    """Read predictions batch by batch, each of at most ``batch_rows`` rows, checked and in one form."""
    assert isinstance(path, str | os.PathLike)
    assert label is None or isinstance(label, str)
    yield read_predictions(
        path, label, probability, row, split, normalise, classes=classes, task=task, low=low, high=high
    )


def write_predictions(
    path: str | os.PathLike[str],
    probabilities: Any,
    *,
    task: str,
    labels: Any = None,
    rows: Any = None,
    splits: Any = None,
    classes: Sequence[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    source: str | None = None,
    target: str | None = None,
) -> None:
    """Write predictions as the table described above; the suffix, .parquet or .csv, says which kind.

    ``probabilities`` (n, classes), or for task "range" (n,), the expected fraction; float32 stays float32.
    ``labels`` (n,) as they stand in the data (class names, or values of a range), None where they are not
    known; ``rows`` (n,) row ids, else 0, 1, …; ``splits`` (n,) text. ``source`` and ``target`` name the data
    and its column. The file is written whole or not at all, and the same predictions give the same bytes (of
    one pyarrow version).
    """
    pyarrow = require("pyarrow", "cli", _PURPOSE)
    path = Path(path)
    if path.suffix.lower() not in _PARQUET + _CSV:
        raise DataError(f"predictions are written as .parquet or .csv, and {str(path)!r} ends in {path.suffix!r}.")
    p = as_array(probabilities)
    columns: dict[str, Any] = {"row": np.arange(len(p)) if rows is None else as_array(rows)}
    if labels is not None:
        columns["label"] = as_array(labels)
    if splits is not None:
        columns["split"] = as_array(splits)
    about: dict[str, Any] = {"task": task, "source": source, "target": target}
    if task == "range":
        if p.ndim != 1 or low is None or high is None:
            raise DataError("for a range give probabilities (n,), the expected fraction, with low and high.")
        columns["p_1"] = p
        columns["prediction"] = low + p.astype(np.float64) * (high - low)
        about |= {"low": float(low), "high": float(high)}
    else:
        names = [class_text(name) for name in classes or []]
        if p.ndim != 2 or len(names) != p.shape[1]:
            raise DataError(f"probabilities should be (n, {len(names)}), one column per class, and are {p.shape}.")
        columns |= {PREFIX + name: p[:, j] for j, name in enumerate(names)}
        if len(set(names)) < len(names):
            raise DataError(f"two classes have one name in {some(names, 10)}. Give each a name of its own.")
        about["classes"] = names
    for name, column in columns.items():
        if len(column) != len(p):
            raise DataError(f"there are {len(p):,} rows of probabilities and {len(column):,} in {name!r}.")
    table = pyarrow.table({name: pyarrow.array(np.ascontiguousarray(cells)) for name, cells in columns.items()})
    about = {name: value for name, value in about.items() if value is not None}
    with replacing(path) as temporary:
        if path.suffix.lower() in _PARQUET:
            meta = {"crossent": json.dumps(about, ensure_ascii=False, sort_keys=True)}
            require("pyarrow.parquet", "cli", _PURPOSE).write_table(
                table.replace_schema_metadata(meta), temporary, compression="zstd"
            )
        else:
            require("pyarrow.csv", "cli", _PURPOSE).write_csv(table, temporary)


def _recognised(path: Path) -> bool:
    """True for a Parquet file, False for text; an error for anything else."""
    shown = repr(str(path))
    if path.is_dir():
        raise DataError(f"{shown} is a folder, and a file of predictions is wanted (.parquet or .csv).")
    if not path.exists():
        near = difflib.get_close_matches(path.name, _neighbours(path), 1)
        raise DataError(f"there is no file {shown}.{f' Did you mean {near[0]!r}?' if near else ''}")
    suffix = path.suffix.lower()
    if suffix not in _PARQUET + _CSV:
        raise DataError(f"predictions are read from .parquet or .csv, and {shown} ends in {suffix!r}.")
    check_content(path)
    return suffix in _PARQUET


def _neighbours(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir()]
    except OSError:
        return []


def _header_of_parquet(path: Path) -> tuple[list[str], dict[str, Any]]:
    pyarrow, parquet = require("pyarrow", "cli", _PURPOSE), require("pyarrow.parquet", "cli", _PURPOSE)
    try:
        schema = parquet.read_schema(path)
        told = json.loads((schema.metadata or {}).get(b"crossent", b"{}"))
    except (pyarrow.ArrowException, OSError, ValueError) as trouble:
        raise DataError(f"cannot read {str(path)!r} as Parquet, it seems damaged: {trouble}.") from trouble
    return list(schema.names), told if isinstance(told, dict) else {}


def _header_of_csv(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file), [])
    except (UnicodeDecodeError, csv.Error) as trouble:
        raise DataError(f"cannot read {str(path)!r} as CSV: its text is not UTF-8 ({trouble}).") from trouble
    if len(names) == 1 and (mark := next((mark for mark in ";\t|" if mark in names[0]), None)):
        raise DataError(f"the columns of {str(path)!r} seem to be parted by {mark!r}; a CSV here is parted by commas.")
    return names


def _present(path: Path, names: list[str], wanted: str, purpose: str, option: str) -> str:
    if wanted in names:
        return wanted
    near = difflib.get_close_matches(wanted, names, 1)
    raise DataError(
        f"{str(path)!r} has no column {wanted!r} for {purpose}; its columns are {some(names, 12)}. "
        f"{f'Did you mean {near[0]!r}? ' if near else ''}Name the column with {option}"
    )


def _probability_columns(
    path: Path, names: list[str], probability: str | Sequence[str] | None, classes: Sequence[Any] | None
) -> list[str]:
    if probability is None and classes is None:
        found = [name for name in names if name.startswith(PREFIX)]
        if not found:
            raise DataError(
                f"{str(path)!r} has no columns of probabilities called p_<class>; its columns are "
                f"{some(names, 12)}. Name one, that of the positive class, or one per class, with "
                "probability= (--probability)"
            )
        return found
    if probability is None:
        asked = [PREFIX + class_text(name) for name in classes or []]
        if len(asked) == 2 and asked[0] not in names and asked[1] in names:
            asked = asked[1:]  # two classes, and the column of the second one is enough
    else:
        asked = [probability] if isinstance(probability, str) else list(probability)
    if len(set(asked)) < len(asked):
        raise DataError(f"{str(path)!r}: a column of probabilities is named twice: {some(asked)}.")
    return [_present(path, names, name, "probabilities", "probability= (--probability)") for name in asked]


def _parquet_table(path: Path, wanted: list[str], numeric: list[str]) -> Any:
    pyarrow, parquet = require("pyarrow", "cli", _PURPOSE), require("pyarrow.parquet", "cli", _PURPOSE)
    try:
        return parquet.read_table(path, columns=wanted)
    except (pyarrow.ArrowException, OSError) as trouble:
        raise DataError(f"cannot read {str(path)!r} as Parquet, it seems damaged: {trouble}.") from trouble


def _csv_table(path: Path, wanted: list[str], numeric: list[str]) -> Any:
    """Probabilities are read as what they look like, all else as text: "007" is a row's name, not seven."""
    pyarrow, reader = require("pyarrow", "cli", _PURPOSE), require("pyarrow.csv", "cli", _PURPOSE)
    text = {name: pyarrow.string() for name in wanted if name not in numeric}
    try:
        return reader.read_csv(
            path,
            parse_options=reader.ParseOptions(newlines_in_values=True),
            convert_options=reader.ConvertOptions(include_columns=wanted, column_types=text),
        )
    except (pyarrow.ArrowException, OSError) as trouble:
        raise DataError(f"cannot read {str(path)!r} as CSV: {str(trouble).strip()}.") from trouble


def _one_split(path: Path, table: Any, column: str, split: str | None) -> tuple[Any, str, tuple[str, ...]]:
    values = np.array([str(value) for value in table.column(column).to_pylist()])
    kept, counts = np.unique(values, return_counts=True)
    present = ", ".join(f"{name} ({count:,})" for name, count in zip(kept, counts, strict=True))
    if split == "all":
        return table, "all", ()
    chosen = "test" if split is None else split
    mask = values == chosen
    if not mask.any():
        raise DataError(
            f"{str(path)!r} has no rows in the split {chosen!r}; it has {present}. Ask for one of these with "
            "split= (--split), or for all rows with split all."
        )
    notes: tuple[str, ...] = ()
    if split is None and len(kept) > 1:
        notes = (f"The file holds the splits {present}; none was asked for, and the test rows were measured.",)
    return table.filter(mask), chosen, notes


def _cells(column: Any) -> Any:
    """A column of labels or ids, as an array where there is one kind of cell, as objects otherwise."""
    pyarrow = require("pyarrow", "cli", _PURPOSE)
    if column.null_count == 0 and (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type)):
        return column.to_numpy()
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]  # one axis, whatever the cells are


def _plain_ids(column: Any) -> Any:
    """Row ids; text that is whole numbers, written the one usual way, is those numbers."""
    cells = _cells(column)
    if cells.dtype == object and all(isinstance(cell, str) and cell.isdecimal() for cell in cells):
        numbers = [int(cell) for cell in cells]
        if max(numbers, default=0) < 2**63 and [str(number) for number in numbers] == list(cells):
            return np.array(numbers, dtype=np.int64)
    return cells


def _numbers(path: Path, column: Any, name: str) -> Any:
    """A column as float64, NaN where a cell is empty; an error names the first cell that is no number."""
    pyarrow = require("pyarrow", "cli", _PURPOSE)
    kind = column.type
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
        return column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    values = np.full(len(column), np.nan)
    for i, cell in enumerate(column.to_pylist()):
        try:
            values[i] = np.nan if cell in (None, "") else float(cell)
        except (TypeError, ValueError):
            raise DataError(
                f"{str(path)!r}: column {name!r} should hold numbers, and row {i} (counted from 0) has {cell!r}."
            ) from None
    return values
