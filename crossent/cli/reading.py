"""What is seen while files are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

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
