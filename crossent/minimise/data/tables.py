"""Tables from files: of whatever kind one is, a pandas table comes out, or a sentence that says what is wrong."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossent.errors import DataError, require, some
from crossent.files import PACKED


def _text(path: Path) -> Any:
    """Rows of text, parted by commas, semicolons, tabs or bars: by what the header has most of."""
    pandas = require("pandas", "cli", "reading a table")
    try:
        with _opened(path) as file:
            first = file.readline()
        bare = re.sub(r'"[^"]*"', "", first)
        separator = max(",;\t|", key=bare.count)
        with _opened(path) as file:
            names = next(csv.reader(file, delimiter=separator, skipinitialspace=True), [])
        refuse_twins([name for name in names if name], str(path))  # pandas would number them without a word
        with warnings.catch_warnings(), _opened(path) as file:
            # Without index_col=False a longer row makes pandas shift all columns by one; with it, it warns.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            # low_memory=False reads a column before it decides what it is; sep=None would guess the separator slowly.
            return pandas.read_csv(file, low_memory=False, sep=separator, skipinitialspace=True, index_col=False)
    except DataError:
        raise
    except pandas.errors.EmptyDataError as trouble:
        raise DataError(f"{str(path)!r} is empty: it has no header and no rows.") from trouble
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, csv.Error, ValueError, OSError) as trouble:
        raise DataError(
            f"{str(path)!r} is not a readable CSV: {' '.join(str(trouble).split())}. Each line needs as many cells as "
            "the header, in UTF-8."
        ) from trouble


def _opened(path: Path) -> Any:
    """The text of a file, unpacked."""
    stream = _unpacked(path) if path.suffix.lower() in PACKED else path.open("rb")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


def _unpacked(path: Path) -> Any:
    pyarrow = require("pyarrow", "cli", "reading a packed file")
    return pyarrow.input_stream(str(path), compression=PACKED.get(path.suffix.lower()))


def refuse_twins(names: list[str], source: str) -> None:
    """Refuse a name that several columns have."""
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{source!r} has more than one column named {some(twice)}. Rename them so that each is itself.")


def _lines(path: Path) -> Any:
    """An object of JSON on each line."""
    json = require("pyarrow.json", "cli", "reading JSON lines")
    return _by_arrow(path, "file of JSON lines", lambda: json.read_json(_unpacked(path)).to_pandas())


def _parquet(path: Path) -> Any:
    pandas = require("pandas", "cli", "reading a table")
    require("pyarrow", "cli", "reading a Parquet file")
    return _by_arrow(path, "Parquet file", lambda: pandas.read_parquet(path))


def _feather(path: Path) -> Any:
    feather = require("pyarrow.feather", "cli", "reading a Feather file")
    return _by_arrow(path, "Feather file", lambda: feather.read_feather(path, memory_map=False))


def _by_arrow(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, NotImplementedError) as trouble:
        raise DataError(f"{str(path)!r} is not a readable {kind}: {' '.join(str(trouble).split())}") from trouble


_OF_TEXT = {".csv": _text, ".tsv": _text, ".jsonl": _lines, ".ndjson": _lines}
TABLES: dict[str, Callable[[Path], Any]] = {
    **_OF_TEXT,
    **{kind + packed: read for kind, read in _OF_TEXT.items() for packed in PACKED},
    **dict.fromkeys((".parquet", ".pq"), _parquet),
    **dict.fromkeys((".feather", ".arrow", ".ipc"), _feather),
}
"""What reads a file, by the end of its name."""
KINDS = f".csv, .tsv, .jsonl (packed too: {', '.join(PACKED)}), .parquet, .feather"
