"""Files are written whole or not at all.

Every file crossent leaves behind goes first to a temporary name in the same folder and is then renamed:
a reader sees the old content or the new one, never half of it, and a full disk costs nothing that was there.
And a file that is read is looked at first: its name is only a promise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePath

from crossent.errors import DataError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; on success it becomes ``path``, on failure it is gone.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    target = Path(path)
    # In the same folder, so that the rename cannot cross a disk; with the same suffix, which writers look at.
    temporary = target.with_name(f".unfinished-{uuid.uuid4().hex}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # some writers make a private file of their own; this one has the user's usual mode
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as trouble:
        raise DataError(refusal(trouble, target)) from trouble
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""How a file is compressed, by the end of its name."""


def ending(path: str | os.PathLike[str]) -> str:
    """Give the end of a name that says of what kind a file is, in small letters; of a packed file both ends.

    >>> ending("night.v2.CSV"), ending("night.csv.gz"), ending("night/README"), ending("a.b.gz")
    ('.csv', '.csv.gz', '', '.b.gz')
    """
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    return "".join(suffixes[-2:] if suffixes and suffixes[-1] in PACKED else suffixes[-1:])


def stem(path: str | os.PathLike[str]) -> str:
    """Give the name of a file without what says its kind.

    >>> stem("runs/night.v2.csv"), stem("night.CSV.gz")
    ('night.v2', 'night')
    """
    name = PurePath(path).name
    return name[: len(name) - len(ending(name))]


def told_of(path: str | os.PathLike[str]) -> str:
    """Give a path as records tell of it: what stands behind the ? of an address may be a key to it.

    >>> told_of("night.csv"), told_of("https://there.org/night.csv?signature=7")
    ('night.csv', 'https://there.org/night.csv')
    """
    text = os.fspath(path)
    return text.partition("?")[0] if text.startswith(("http://", "https://")) else text


def check_content(path: Path) -> None:
    """Refuse a file whose first bytes are not what its name promises: a name is only a promise.

    Known are ``.parquet``, ``.feather``, ``.npz``, text (``.csv``, ``.tsv``, ``.jsonl``) and what is packed; an empty
    file is none of them.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as trouble:
        raise DataError(f"cannot read {str(path)!r}: {trouble.strerror or trouble}.") from trouble
    if not head:
        raise DataError(f"{str(path)!r} is empty: it has no bytes at all.")
    if head.startswith(b"PAR1"):
        found, looks = ".parquet", "a Parquet file"
    elif head.startswith(b"ARROW1"):
        found, looks = ".feather", "an Arrow (Feather) file"
    elif head.startswith(b"\xff\xff\xff\xff"):
        found, looks = "", "a stream of Arrow, and what is read is its file format (pyarrow.feather.write_feather)"
    elif head.startswith(b"FEA1"):
        found, looks = "", "Feather of version 1; version 2 is read"
    elif head.startswith(b"PK\x03\x04"):
        found, looks = ".npz", "a zip, as .npz and .xlsx files are"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        found, looks = "", "text in UTF-16, as Excel writes it; text is read in UTF-8"
    elif head.startswith(b"\x1f\x8b"):
        found, looks = ".gz", "a file packed by gzip, .gz"
    elif head.startswith(b"BZh"):
        found, looks = ".bz2", "a file packed by bzip2, .bz2"
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        found, looks = ".zst", "a file packed by Zstandard, .zst"
    elif b"\x00" in head:
        found, looks = "", "a binary file of another kind"
    else:
        found, looks = "text", "text, perhaps CSV"
    names = {".pq": ".parquet", ".arrow": ".feather", ".ipc": ".feather"}
    names |= dict.fromkeys((".csv", ".tsv", ".jsonl", ".ndjson"), "text")
    promised = names.get(path.suffix.lower(), path.suffix.lower())
    if found != promised:
        raise DataError(
            f"{str(path)!r} is not what its name says: its content looks like {looks}. Rename or convert it."
        )


def refusal(trouble: OSError, path: str | os.PathLike[str]) -> str:
    """Say in a sentence why the system refused to write ``path``, and what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full. Free some space and run the command again",
        errno.EDQUOT: "your disk quota is used up. Free some space and run the command again",
        errno.EFBIG: "the file would be larger than this system allows. Write to another disk",
        errno.EACCES: "there is no permission to. Choose another place, or change the permission",
        errno.EPERM: "there is no permission to. Choose another place, or change the permission",
        errno.EROFS: "the disk is read-only. Choose another place",
        errno.ENOTDIR: "a part of that path is a file, not a folder. Choose another place",
        errno.EEXIST: "a part of that path is a file, not a folder. Choose another place",
        errno.EISDIR: "it is a folder. Name a file",
    }
    reason = reasons.get(trouble.errno or 0, f"the system says: {trouble.strerror or trouble}")
    return f"cannot write {os.fspath(path)!r}: {reason}. Nothing was left half-written."
