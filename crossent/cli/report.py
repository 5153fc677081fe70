"""crossent report: a record, looked at again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record.json.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page to write; else only print.")] = None,
) -> None:
    """Show a record again, and draw its page; needs no torch and no data."""
    from crossent import report as drawing
    from crossent.record import Record

    found = Record.read(record)
    console = Console(highlight=False, markup=False)
    drawing.show(found, console)
    if output is not None:
        drawing.write(found, output)
        console.print(f"\nReport: {output}", soft_wrap=True)
