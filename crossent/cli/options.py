"""What ``fit`` and ``tune`` are asked alike, and how such an answer is read."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from crossent.errors import DataError

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="digits, breast_cancer, iris, wine, diabetes, or a .csv, .jsonl, .parquet, .feather or .npz file.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "--label",  # as evaluate, compare and calibrate have it
        help="Column to predict, or a pattern of one for each class; else target, label, class, y or the last.",
    ),
]
Weight = Annotated[
    str | None, typer.Option(help="Column of the rows' weights; all count alike without.", show_default=False)
]
Test = Annotated[str | None, typer.Option(help="File of rows to test on, instead of a drawn fifth.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder to write; else runs/NAME, or the next free one.")
]
Task = Annotated[str | None, typer.Option(metavar="classes|range", help="What the target is, if the look is wrong.")]
Range = Annotated[
    tuple[float, float] | None, typer.Option("--range", metavar="LOW HIGH", help="Ends of the target's range.")
]


def seconds(text: str) -> float:
    """A time as it is written on the command line: 90s, 10m, 2h, or seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        found = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise DataError(f"--budget takes a time such as 90s, 10m or 2h; got {text!r}.")
    return found


def command() -> str:
    """What was typed, to stand in the record."""
    return shlex.join(["crossent", *sys.argv[1:]])
