"""Tables of every kind, read in pieces: what columns a file has, and its rows as Arrow batches, a few at a time.

No kind is ever read whole, so that memory does not grow with rows: Parquet page by page, Arrow (Feather) and JSON lines
batch by batch, CSV block by block, arrays of an .npz through its unzipping. A matrix in an .npz is a column of lists.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from crossent.errors import DataError, require
from crossent.measure.sources.files import PURPOSE, File

BLOCK = 1 << 22
"""Bytes of text that are parsed at a time."""

MARKS = {"CSV": ",", "TSV": "\t"}
"""What parts the columns."""

FOLDER = "the name of a folder"
"""What a column is that a folder called city=Paris makes."""

Columns = dict[str, str]
"""What a column holds, by its name: "numbers", "truth values", "text", "lists of numbers", "nothing", or so."""


def header(file: File) -> tuple[Columns, dict[str, Any]]:
    """Give the columns of a file, those that its folders are last, and what crossent wrote beside them."""
    own, told = _header(file)
    return own | {name: FOLDER for name, _ in file.folders if name not in own}, told


def _header(file: File) -> tuple[Columns, dict[str, Any]]:
    with file.reading():
        if file.kind in MARKS:
            return dict.fromkeys(_header_of_csv(file), "text"), {}
        if file.kind == "NumPy arrays":
            return _header_of_npz(file), {}
        if file.kind == "JSON lines":
            schema = _schema_of_lines(file)
        elif file.kind == "Parquet":
            with file.open() as stream:
                schema = require("pyarrow.parquet", "cli", PURPOSE).read_schema(stream)
        else:
            with file.open() as stream:
                schema = require("pyarrow.ipc", "cli", PURPOSE).open_file(stream).schema
        told = json.loads((schema.metadata or {}).get(b"crossent", b"{}"))
        if twice := [name for name in dict.fromkeys(schema.names) if schema.names.count(name) > 1]:
            raise DataError(f"{file} has several columns called {', '.join(twice)}. Give every column its own name.")
        columns = {field.name: content(field.type) for field in schema}
        return columns, told if isinstance(told, dict) else {}


def content(kind: Any) -> str:
    """Name what an Arrow type holds, so that int8 and float64 are both numbers."""
    types = require("pyarrow.types", "cli", PURPOSE)
    if types.is_dictionary(kind):
        return content(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "lists of " + content(kind.value_type)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    return "truth values" if types.is_boolean(kind) else "nothing" if types.is_null(kind) else str(kind)


def scan(
    file: File, columns: list[str], numeric: list[str], rows: int, seen: Callable[[float], None] | None = None
) -> Iterator[Any]:
    """Give the named columns of a file as Arrow record batches of at most ``rows`` rows, in their order.

    ``numeric`` are the columns that have to hold numbers, which text does not say of itself. ``seen`` is told what
    share of the file has been read.
    """
    given = {name: value for name, value in file.folders if name in columns}
    if given:
        kinds, _ = header(file)
        given = {name: value for name, value in given.items() if kinds[name] == FOLDER}
    own = [name for name in columns if name not in given] or list(kinds)[:1]
    numeric = [name for name in numeric if name in own]
    pieces = _READERS[file.kind](file, own, numeric, rows, seen or (lambda share: None))
    while True:
        with file.reading():
            piece = next(pieces, None)
        if piece is None:
            return
        if given:
            piece = _with_folders(piece, columns, given)
        for start in range(0, piece.num_rows, rows):
            yield piece.slice(start, rows)


def _with_folders(piece: Any, columns: list[str], given: dict[str, str | None]) -> Any:
    """Add the columns that folders are, one value in all rows."""
    pyarrow = require("pyarrow", "cli", PURPOSE)
    arrays = [
        pyarrow.array([given[name]] * piece.num_rows, pyarrow.string()) if name in given else piece.column(name)
        for name in columns
    ]
    return pyarrow.RecordBatch.from_arrays(arrays, names=columns)


_Seen = Callable[[float], None]


def _parquet(file: File, columns: list[str], numeric: list[str], rows: int, seen: _Seen) -> Iterator[Any]:
    with file.open() as stream:
        # Unasked, Arrow fetches every row group ahead, and of each whole columns: all of the file, in the end.
        options = {"pre_buffer": False, "buffer_size": 1 << 20}
        table = require("pyarrow.parquet", "cli", PURPOSE).ParquetFile(stream, **options)
        groups = range(table.num_row_groups) if file.groups is None else file.groups
        whole, done = sum(table.metadata.row_group(group).num_rows for group in groups), 0
        for piece in table.iter_batches(rows, row_groups=list(groups), columns=columns, use_threads=False):
            yield piece
            seen((done := done + piece.num_rows) / whole)


def _arrow(file: File, columns: list[str], numeric: list[str], rows: int, seen: _Seen) -> Iterator[Any]:
    ipc = require("pyarrow.ipc", "cli", PURPOSE)
    with file.open() as stream:
        names = ipc.open_file(stream).schema.names
        wanted = [names.index(name) for name in columns]
        table = ipc.open_file(stream, options=ipc.IpcReadOptions(included_fields=wanted))
        for number in range(table.num_record_batches):
            piece = table.get_batch(number).select(columns)
            piece.validate(full=True)  # Arrow trusts what stands in a file, and a damaged one would end the process
            yield piece
            seen((number + 1) / table.num_record_batches)


def _csv(file: File, columns: list[str], numeric: list[str], rows: int, seen: _Seen) -> Iterator[Any]:
    """Columns are text unless they have to be numbers: "007" is a row's name, not seven."""
    pyarrow, reader = require("pyarrow", "cli", PURPOSE), require("pyarrow.csv", "cli", PURPOSE)
    kinds = {name: pyarrow.float64() if name in numeric else pyarrow.string() for name in columns}
    number = 0
    try:
        with file.open_text() as (stream, share):
            watched = _Watched(stream)
            table = reader.open_csv(
                pyarrow.PythonFile(watched, mode="r"),
                read_options=reader.ReadOptions(block_size=BLOCK, use_threads=False),
                parse_options=reader.ParseOptions(delimiter=MARKS[file.kind], newlines_in_values=True),
                convert_options=reader.ConvertOptions(include_columns=columns, column_types=kinds),
            )
            for piece in table:
                yield piece
                number += piece.num_rows
                seen(share())
    except pyarrow.ArrowException as trouble:
        if "Empty CSV" in str(trouble):
            return  # a header and no rows
        raise _what_is_wrong(file, columns, numeric) or trouble from trouble
    suspicious = watched.quotes and (watched.quotes % 2 or watched.lines > number + 1)
    if suspicious and (wrong := _what_is_open(file)) is not None:
        raise wrong


class _Watched:
    """A stream that counts quotes and lines. Arrow takes a quote that nothing closes for the beginning of a cell that
    goes on to the next quote, or to the end of the file, and the rows between for a part of it."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self.stream, self.quotes, self.lines = stream, 0, 0

    def read(self, size: int = -1) -> bytes:
        found: bytes = self.stream.read(size)
        self.quotes += found.count(b'"')
        self.lines += found.count(b"\n")
        return found


def _what_is_open(file: File) -> DataError | None:
    """Read a CSV whose quotes are odd, or whose cells hold several lines, once more and slowly: do all quotes close
    where cells end? Say which one does not."""
    usual = csv.field_size_limit(2**31 - 1)  # a cell may be a long document
    try:
        with file.open_bytes() as stream:
            text = (line.decode("utf-8", "replace") for line in stream)
            lines = csv.reader(text, delimiter=MARKS[file.kind], strict=True)
            number, before = -1, 0  # counts the header, so that it is the row that comes
            try:
                for _ in lines:
                    number, before = number + 1, lines.line_num
            except csv.Error:
                return DataError(
                    f"{file}: row {number} (line {before + 1}) has a quote that closes nowhere, or not at the end of a "
                    "cell, and rows after it would be taken for part of that cell. Mend that line; a quote inside a "
                    "quoted cell is written twice."
                )
    finally:
        csv.field_size_limit(usual)
    return None


def _what_is_wrong(file: File, columns: list[str], numeric: list[str]) -> DataError | None:
    """Read a broken CSV once more, slowly, to say where it breaks."""
    with file.open_bytes() as stream:
        number = -1
        try:
            text = (line.decode("utf-8-sig" if number < 0 else "utf-8") for line in stream)
            lines = csv.reader(text, delimiter=MARKS[file.kind])
            names = next(lines)
            for number, cells in enumerate(lines):
                if cells and len(cells) != len(names):
                    return DataError(
                        f"{file}: row {number} (line {lines.line_num}) has {len(cells)} cells where the header has "
                        f"{len(names)}. Mend that line; a comma inside a cell needs quotes around the cell."
                    )
                for name in numeric:
                    if name in columns and cells and not _number(cells[names.index(name)]):
                        return DataError(
                            f"{file}: column {name!r} should hold numbers, and row {number} (line {lines.line_num}) "
                            f"has {cells[names.index(name)]!r}. {mend(cells[names.index(name)])}"
                        )
        except UnicodeDecodeError as trouble:
            return not_utf8(file, f"row {number + 1}", trouble)
        except csv.Error as trouble:
            return DataError(f"cannot read {file} as {file.kind}: after row {number}: {trouble}. Mend that line.")
    return None


def mend(cell: Any) -> str:
    """What to do with a cell that should hold a number."""
    if str(cell).strip().lower() in ("true", "false"):
        return "Write truth values as 1 and 0."
    if "," in str(cell):
        return "Write decimals with a point, and nothing between thousands."
    return "Mend the cell, or leave the row out."


def not_utf8(file: File, where: str, trouble: UnicodeDecodeError) -> DataError:
    """What to say of text in another encoding."""
    start = max(trouble.start - 12, 0)
    shown = trouble.object[start : trouble.end + 12].decode("utf-8", "replace").strip()
    return DataError(
        f"{file} is not UTF-8: {where} has the byte 0x{trouble.object[trouble.start]:02x} in {shown!r}. Save it as "
        "UTF-8, or convert it: iconv -f latin1 -t utf-8."
    )


def _number(cell: str) -> bool:
    if cell.strip() in ("", "NA", "N/A", "NULL", "null", "#N/A", "n/a"):
        return True  # a cell that is missing is another story, and told where probabilities are looked at
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # which Python would take for nothing


def _header_of_csv(file: File) -> list[str]:
    with file.open_bytes() as stream:
        first = stream.readline()
    try:
        names = next(csv.reader([first.decode("utf-8-sig")], delimiter=MARKS[file.kind]), [])
    except UnicodeDecodeError as trouble:
        raise not_utf8(file, "the header", trouble) from trouble
    except csv.Error as trouble:
        raise DataError(
            f"cannot read the header of {file} as {file.kind}: {trouble}. Lines should end in a line feed, with or "
            "without a carriage return before it."
        ) from trouble
    if not any(names):
        raise DataError(f"{file} is empty, or begins with an empty line: its first line should name the columns.")
    if len(names) == 1 and (mark := next((mark for mark in ",;\t|" if mark in names[0]), None)):
        write = f"Write it so: pd.read_csv(…, sep={mark!r}).to_csv(…, index=False), with decimal=',' where that is so."
        raise DataError(
            f"the columns of {file} seem to be parted by {mark!r}; a .csv here is parted by commas, a .tsv by tabs. "
            + {",": "Call it .csv.", "\t": "Call it .tsv."}.get(mark, write)
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{file} has several columns called {', '.join(twice)}. Give every column its own name.")
    return names


def _json(stream: Any, schema: Any) -> Any:
    reader = require("pyarrow.json", "cli", PURPOSE)
    options = reader.ParseOptions(explicit_schema=schema) if schema is not None else reader.ParseOptions()
    return reader.open_json(
        stream, read_options=reader.ReadOptions(block_size=BLOCK, use_threads=False), parse_options=options
    )


def _jsonl(file: File, columns: list[str], numeric: list[str], rows: int, seen: _Seen) -> Iterator[Any]:
    pyarrow = require("pyarrow", "cli", PURPOSE)
    kinds = {field.name: field.type for field in _schema_of_lines(file)}
    for name in numeric:  # the first cells may have been whole numbers, and those that follow not
        if content(kinds[name]) == "numbers":
            kinds[name] = pyarrow.float64()
    schema = pyarrow.schema([(name, kinds[name]) for name in columns])
    try:
        with file.open_text() as (stream, share):
            for piece in _json(stream, schema):
                piece = piece.select(columns)
                piece.validate(full=True)  # Arrow takes text for UTF-8
                yield piece
                seen(share())
    except pyarrow.ArrowException as trouble:
        raise _what_is_wrong_with_lines(file, columns) or trouble from trouble


def _schema_of_lines(file: File) -> Any:
    """What the first lines hold."""
    try:
        with file.open_text() as (stream, _):
            return _json(stream, None).schema
    except require("pyarrow", "cli", PURPOSE).ArrowException as trouble:
        raise _what_is_wrong_with_lines(file, None) or trouble from trouble


def _what_is_wrong_with_lines(file: File, columns: list[str] | None) -> DataError | None:
    """Read broken JSON lines once more, slowly, to say where they break, in these ``columns`` or in any."""
    kinds: dict[str, str] = {}
    with file.open_bytes() as stream:
        number = -1
        for line, text in enumerate(stream, 1):
            if not text.strip():
                continue
            number += 1
            where = f"row {number} (line {line})"
            try:
                cells = json.loads(text)
            except UnicodeDecodeError as trouble:
                return not_utf8(file, where, trouble)
            except ValueError as trouble:
                return DataError(f"{file}: {where} is no JSON, it seems damaged or cut off: {trouble}. Mend that line.")
            if not isinstance(cells, dict):
                return DataError(f"{file}: {where} is {_JSON[type(cells)]}, and each line should be an object.")
            for name in cells if columns is None else columns:
                if (cell := cells.get(name)) is not None and kinds.setdefault(name, _JSON[type(cell)]) != (
                    kind := _JSON[type(cell)]
                ):
                    return DataError(
                        f"{file}: the column {name!r} holds {kinds[name]} in the rows before, and {where} has {kind}: "
                        f"{cell!r}. Write all of its cells alike."
                    )
    return DataError(f"{file} has no rows.") if number < 0 else None


_JSON = {
    int: "a number", float: "a number", bool: "a truth value", str: "text", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip
"""What JSON calls the things that Python makes of it."""


def _header_of_npz(file: File) -> Columns:
    columns: Columns = {}
    with file.open_bytes() as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.namelist():
            shape, _, dtype = _array(archive.open(member))
            kind = "numbers" if dtype.kind in "iuf" else "truth values" if dtype.kind == "b" else "text"
            columns[member.removesuffix(".npy")] = kind if len(shape) == 1 else "lists of " + kind
    return columns


def _array(stream: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype of an array, with the stream left where its cells begin."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _npz(file: File, columns: list[str], numeric: list[str], rows: int, seen: _Seen) -> Iterator[Any]:
    pyarrow = require("pyarrow", "cli", PURPOSE)
    with file.open_bytes() as stream, zipfile.ZipFile(stream) as archive:
        members = [archive.open(f"{name}.npy") for name in columns]
        about = [_array(member) for member in members]
        for name, (shape, fortran, dtype) in zip(columns, about, strict=True):
            if len(shape) not in (1, 2) or dtype.hasobject or (fortran and len(shape) == 2):
                raise DataError(
                    f"{file}: the array {name!r} has shape {shape} and dtype {dtype}{' in Fortran order' * fortran}. "
                    "Arrays should be (rows,) or (rows, classes), of numbers or text, in C order: "
                    "np.ascontiguousarray, and of text np.asarray(…).astype(str), makes them so."
                )
        if len(lengths := {shape[0] for shape, _, _ in about}) > 1:
            shown = ", ".join(f"{name} {shape}" for name, (shape, _, _) in zip(columns, about, strict=True))
            raise DataError(f"{file}: the arrays should have equally many rows, and have the shapes {shown}.")
        whole = lengths.pop()
        for start in range(0, whole, rows):
            n = min(rows, whole - start)
            arrays = []
            for member, (shape, _, dtype) in zip(members, about, strict=True):
                width = shape[1] if len(shape) == 2 else 1
                cells = np.frombuffer(member.read(n * width * dtype.itemsize), dtype)
                if cells.size < n * width:
                    raise EOFError(f"an array ends after {start:,} of {whole:,} rows")
                cells = cells.astype(dtype.newbyteorder("="), copy=False)
                flat = pyarrow.array(cells.tolist() if dtype.kind in "US" else cells)
                arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, width) if len(shape) == 2 else flat)
            yield pyarrow.RecordBatch.from_arrays(arrays, names=columns)
            seen((start + n) / whole)


_READERS = {
    "Parquet": _parquet, "Arrow": _arrow, "CSV": _csv, "TSV": _csv, "JSON lines": _jsonl, "NumPy arrays": _npz
}  # fmt: skip
