"""Where the rows are: a file, a folder or a pattern of them, here or in an object store.

A path with ``://`` in it (``s3://``, ``gs://``, ``memory://``, …) is fsspec's; any other is on this machine. Files of
one data set are of one kind and are read in the order of their names. A folder called ``city=Paris``, as Spark, pandas
and Arrow part tables, is a column: ``city``, which is Paris in all rows of the files in it.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

from crossent.errors import DataError, MissingExtra, require, some
from crossent.files import PACKED, check_content, ending, told_of

PURPOSE = "reading and writing prediction files"

KINDS = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".feather": "Arrow",
    ".arrow": "Arrow",
    ".ipc": "Arrow",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".npz": "NumPy arrays",
}
"""What is read, by the end of its name."""

PACKABLE = ("CSV", "TSV", "JSON lines")

READ = {suffix: (kind, None) for suffix, kind in KINDS.items()} | {
    suffix + packed: (kind, how) for suffix, kind in KINDS.items() if kind in PACKABLE for packed, how in PACKED.items()
}
"""Kind and packing, by the end of a name."""

_NAMED = f"{', '.join(KINDS)} (text also with {', '.join(PACKED)})"

_INSTEAD = {
    ".npy": " An .npy is one array, and has no place for labels: write both into one file, np.savez('p.npz', p=…, "
    "label=…), and name the probabilities with probability= (--probability)."
}
"""What to do with files that are not read, where that is not plain."""

Path_ = str | os.PathLike[str]

_DAMAGE = (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What readers throw at bytes that make no sense, beside Arrow's own errors."""


@dataclass(frozen=True)
class File:
    """One file: ``name`` as it is shown, ``path`` on its ``store`` (None is this machine), one of the kinds above.

    Of a Parquet file some row groups may be meant, ``groups``, before which there are ``first`` rows. ``folders`` are
    the columns that the folders it lies in give it, each with its value, None where that is missing; ``packed``, how
    its text is compressed.
    """

    name: str
    path: str
    kind: str
    store: Any = None
    groups: tuple[int, ...] | None = None
    first: int = 0
    folders: tuple[tuple[str, str | None], ...] = ()
    packed: str | None = None

    def __str__(self) -> str:
        return repr(self.name)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.store.size(self.path) or 0) if self.store is not None else os.path.getsize(self.path)

    def open(self) -> Any:
        """Open it for Arrow."""
        pyarrow = require("pyarrow", "cli", PURPOSE)
        return pyarrow.OSFile(self.path) if self.store is None else pyarrow.PythonFile(self._open_packed(), mode="r")

    @contextlib.contextmanager
    def open_text(self) -> Iterator[tuple[Any, Callable[[], float]]]:
        """Open it for Arrow, unpacked, and give beside it what tells the share of its bytes that was read."""
        size = max(self.size, 1)
        with self.open() as stream, self._unpacked(stream) as text:
            yield text, lambda: min(stream.tell() / size, 1.0)

    def open_bytes(self) -> Any:
        """Open it for Python, unpacked."""
        if self.packed is not None:
            return io.BufferedReader(self._unpacked(self.open()))
        return self._open_packed()

    def _open_packed(self) -> Any:
        return open(self.path, "rb") if self.store is None else self.store.open(self.path, "rb")

    def _unpacked(self, stream: Any) -> Any:
        if self.packed is None:
            return stream
        return require("pyarrow", "cli", PURPOSE).CompressedInputStream(stream, self.packed)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what a reader throws into a sentence with this file's name."""
        pyarrow = require("pyarrow", "cli", PURPOSE)
        try:
            yield
        except DataError:
            raise
        except (pyarrow.ArrowException, OSError, *_DAMAGE) as trouble:
            text = str(trouble).strip().rstrip(".") or type(trouble).__name__
            raise DataError(
                f"cannot read {self} as {self.kind}, it seems damaged or cut off: {text}. Write or fetch it again."
            ) from trouble


def are_files(what: Any) -> bool:
    """Whether this names files, one or several, and is not what stands in them.

    >>> are_files("night/"), are_files(["a.csv", Path("b.csv")]), are_files([0.5, 0.2]), are_files([])
    (True, True, False, False)
    """
    if isinstance(what, str | os.PathLike):
        return True
    return isinstance(what, list | tuple) and bool(what) and all(isinstance(path, str | os.PathLike) for path in what)


def find(path: Path_ | Sequence[Path_]) -> list[File]:
    """List the files that ``path`` stands for, in the order of their names."""
    if not isinstance(path, str | os.PathLike):
        found = [file for one in path for file in find(one)]
        levels = zip(*(PurePath(file.name).parts[:-1] for file in found), strict=False)
        shared = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
        found = [replace(file, folders=max(file.folders, _folders(file.name, shared), key=len)) for file in found]
        return _one_kind(found, "what was named")
    text = os.fspath(path)
    found = _remote(text) if "://" in text else _local(text)
    return _one_kind(found, repr(text))


def _one_kind(found: list[File], shown: str) -> list[File]:
    kinds = {file.kind if file.packed is None else f"{file.kind} packed by {file.packed}" for file in found}
    if len(kinds) > 1:
        raise DataError(
            f"{shown} has files of several kinds ({', '.join(sorted(kinds))}). Name one with a pattern: '*.parquet'."
        )
    if not found:
        raise DataError("there are no files to read.")
    times = Counter(os.path.realpath(file.path) if file.store is None else file.path for file in found)
    if twice := sorted(place for place, count in times.items() if count > 1):
        raise DataError(f"{some(twice)} would be read twice, and its rows counted twice: name every file once.")
    return found


def _local(text: str) -> list[File]:
    path = Path(text)
    if path.is_dir():
        return _inside(sorted(str(file) for file in path.rglob("*") if file.is_file()), text, text)
    if not path.exists():
        if has_magic(text):
            return _inside(sorted(glob(text, recursive=True)), text, text)
        near = difflib.get_close_matches(path.name, _neighbours(path), 1)
        meant = f" Did you mean {str(path.with_name(near[0]))!r}?" if near else ""
        raise DataError(f"there is no file {text!r}.{meant}")
    return [_file(text)]


def _remote(text: str) -> list[File]:
    fsspec = require("fsspec", "cli", "reading from an object store")
    try:
        store, inside = fsspec.core.url_to_fs(text)
    except ImportError as missing:
        raise MissingExtra(f"reading {text.partition('://')[0]}:// needs one more library: {missing}.") from missing
    except ValueError as trouble:
        raise DataError(f"cannot read {text!r}: {trouble}.") from trouble
    start = "" if "://" in inside else text.partition("://")[0] + "://"  # of the web a store keeps whole addresses
    try:
        if _ending(inside) in READ and store.isfile(inside):  # the first to be asked: the ? of an address is no pattern
            return [_file(inside, store, start)]
        if store.isdir(inside):
            return _inside(sorted(store.find(inside)), inside, text, store, start)
        if has_magic(inside):
            return _inside(sorted(store.glob(inside)), inside, text, store, start)
        if store.exists(inside):
            return [_file(inside, store, start)]
        near = difflib.get_close_matches(inside, store.find(inside.rpartition("/")[0]), 1)
        raise DataError(f"there is no file {text!r}.{f' Did you mean {start + near[0]!r}?' if near else ''}")
    except OSError as trouble:
        raise DataError(f"cannot read {text!r}: {trouble}.") from trouble


def _inside(names: list[str], root: str, shown: str, store: Any = None, start: str = "") -> list[File]:
    """The files of a folder or pattern, without what no one means: other kinds, and what begins with . or _."""
    parts = PurePath(root).parts
    fixed = next((place for place, part in enumerate(parts) if has_magic(part)), len(parts))
    below = [(name, PurePath(name).parts[fixed:]) for name in names]
    kept = [
        name
        for name, parts in below
        if _ending(name) in READ and not any(part[0] in "._" and "=" not in part for part in parts)
    ]
    if not kept:
        raise DataError(
            f"{shown!r} has no files of predictions ({_NAMED}){f'; it has {some(names)}' if names else ''}."
        )
    return [_file(name, store, start, fixed) for name in kept]


def _ending(name: str) -> str:
    """The end of a name, of an address that of its path: https://there/p.csv?signature=…"""
    return ending(told_of(name))


def _file(name: str, store: Any = None, start: str = "", fixed: int | None = None) -> File:
    end = _ending(name)
    if end not in READ:
        raise DataError(
            f"predictions are read from {_NAMED}, and {start + name!r} ends in {end!r}.{_INSTEAD.get(end, '')}"
        )
    if store is None:
        check_content(Path(name))
    kind, packed = READ[end]
    return File(start + name, name, kind, store, folders=_folders(name, fixed), packed=packed)


def _folders(name: str, fixed: int | None) -> tuple[tuple[str, str | None], ...]:
    """What the folders below the first ``fixed`` say: ("city", "Paris") for city=Paris; of a single file nothing."""
    parts = () if fixed is None else PurePath(name).parts[fixed:-1]
    said = (part.partition("=") for part in parts if "=" in part)
    return tuple((unquote(key), None if value == _MISSING else unquote(value)) for key, _, value in said)


_MISSING = "__HIVE_DEFAULT_PARTITION__"
"""What a folder says in place of a value that is missing."""


def _neighbours(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir()]
    except OSError:
        return []
