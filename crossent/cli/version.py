"""crossent --version."""

from __future__ import annotations

from typing import Annotated

import typer


def version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Print the version, if asked to."""
    if version:
        import crossent

        print(f"crossent {crossent.__version__}")
        raise typer.Exit
