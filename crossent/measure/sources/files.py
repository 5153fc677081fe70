"""Where the rows are: a file, a folder or a pattern of them, here or in an object store.

A path with ``://`` in it (``s3://``, ``gs://``, ``memory://``, …) is fsspec's; any other is on this machine. Files of
one data set are of one kind and are read in the order of their names.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from crossent.errors import DataError, MissingExtra, require, some
from crossent.files import check_content

PURPOSE = "reading and writing prediction files"

KINDS = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".feather": "Arrow",
    ".arrow": "Arrow",
    ".ipc": "Arrow",
    ".csv": "CSV",
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".npz": "NumPy arrays",
}
"""What is read, by the end of its name."""

Path_ = str | os.PathLike[str]

_DAMAGE = (ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What readers throw at bytes that make no sense, beside Arrow's own errors."""


@dataclass(frozen=True)
class File:
    """One file: ``name`` as it is shown, ``path`` on its ``store`` (None is this machine), one of the kinds above.

    Of a Parquet file some row groups may be meant, ``groups``, before which there are ``first`` rows.
    """

    name: str
    path: str
    kind: str
    store: Any = None
    groups: tuple[int, ...] | None = None
    first: int = 0

    def __str__(self) -> str:
        return repr(self.name)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.store.size(self.path) or 0) if self.store is not None else os.path.getsize(self.path)

    def open(self) -> Any:
        """Open it for Arrow."""
        pyarrow = require("pyarrow", "cli", PURPOSE)
        return pyarrow.OSFile(self.path) if self.store is None else pyarrow.PythonFile(self.open_bytes(), mode="r")

    def open_bytes(self) -> Any:
        """Open it for Python."""
        return open(self.path, "rb") if self.store is None else self.store.open(self.path, "rb")

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
        return _one_kind([file for one in path for file in find(one)], "the files")
    text = os.fspath(path)
    found = _remote(text) if "://" in text else _local(text)
    return _one_kind(found, repr(text))


def _one_kind(found: list[File], shown: str) -> list[File]:
    if len(kinds := sorted({file.kind for file in found})) > 1:
        raise DataError(
            f"{shown} has files of several kinds ({', '.join(kinds)}). Name one with a pattern: '*.parquet'."
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
        inside = sorted(str(file) for file in path.rglob("*") if file.is_file())
        return [_file(name) for name in _readable(inside, repr(text))]
    if not path.exists():
        if has_magic(text):
            return [_file(name) for name in _readable(sorted(glob(text, recursive=True)), repr(text))]
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
    start = text.partition("://")[0] + "://"
    try:
        if store.isdir(inside):
            names = _readable(sorted(store.find(inside)), repr(text))
        elif has_magic(inside):
            names = _readable(sorted(store.glob(inside)), repr(text))
        elif store.exists(inside):
            names = [inside]
        else:
            near = difflib.get_close_matches(inside, store.find(inside.rpartition("/")[0]), 1)
            raise DataError(f"there is no file {text!r}.{f' Did you mean {start + near[0]!r}?' if near else ''}")
    except OSError as trouble:
        raise DataError(f"cannot read {text!r}: {trouble}.") from trouble
    return [_file(name, store, start) for name in names]


def _readable(names: list[str], shown: str) -> list[str]:
    """Leave out what no one means: files that begin with . or _, and those of other kinds."""
    kept = [name for name in names if Path(name).suffix.lower() in KINDS and Path(name).name[0] not in "._"]
    if not kept:
        raise DataError(
            f"{shown} has no files of predictions ({', '.join(KINDS)}){f'; it has {some(names)}' if names else ''}."
        )
    return kept


def _file(name: str, store: Any = None, start: str = "") -> File:
    suffix = Path(name).suffix.lower()
    if suffix not in KINDS:
        raise DataError(f"predictions are read from {', '.join(KINDS)}, and {start + name!r} ends in {suffix!r}.")
    if store is None:
        check_content(Path(name))
    return File(start + name, name, KINDS[suffix], store)


def _neighbours(path: Path) -> list[str]:
    try:
        return [file.name for file in path.parent.iterdir()]
    except OSError:
        return []
