"""What is seen while files are read, and where the record of them goes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossent.errors import DataError
from crossent.files import stem, told_of

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def reading(console: Console) -> Iterator[Callable[[float], None] | None]:
    """Give what takes the share that has been read: a bar on a terminal, gone when all is read; elsewhere nothing."""
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading"), BarColumn(bar_width=20), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task("reading", total=1.0)
        yield lambda share: bar.update(job, completed=share)


def spare(written: Sequence[Path | None], *read: str) -> None:
    """Refuse, before any work, to write over a file that is read, or two things to one file."""
    from crossent.measure.sources.files import find

    here = [path for path in read if "://" not in path]
    files = [file for path in here for file in ([path] if os.path.isfile(path) else (one.path for one in find(path)))]
    kept = set(map(os.path.realpath, files))
    places = [os.path.realpath(path) for path in written if path is not None]
    for place in places:
        if place in kept:
            raise DataError(f"{place!r} is read, and would be written over. Name another file to write to.")
        if places.count(place) > 1:
            raise DataError(f"two things would be written to {place!r}. Name a file for each.")


def beside(verb: str, *paths: str) -> Path:
    """Where a record goes if nobody says: beside what was read first, or here if that is in an object store.

    >>> print(beside("evaluation", "runs/digits.parquet"), beside("evaluation", "runs/part-*.parquet"))
    runs/digits-evaluation.json runs/part-evaluation.json
    >>> print(beside("comparison", "s3://bucket/old/", "new.csv"))
    old-new-comparison.json
    >>> print(beside("evaluation", "https://there.org/night.csv.gz?signature=7"))
    night-evaluation.json
    """
    names = dict.fromkeys(name for name in map(_name, paths) if name)
    folder = Path() if "://" in paths[0] else Path(paths[0]).parent
    while re.search(r"[*?\[]", str(folder)):
        folder = folder.parent
    return folder / f"{'-'.join(names) or 'predictions'}-{verb}.json"


def _name(path: str) -> str:
    path = told_of(path)
    place = Path(path.partition("://")[2].rstrip("/")) if "://" in path else Path(path)
    return re.sub(r"[*?\[\]]+", "", place.name if place.is_dir() else stem(place)).strip("-_. ")
