"""crossent export: a fitted model as one file that runs without crossent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What crossent fit wrote.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="An .onnx or .pt2 (torch.export) file to write.")],
) -> None:
    """Write a fitted model with its calibrator as ONNX or torch.export, checked against its own probabilities."""
    from crossent.minimise import load
    from crossent.minimise.export import export as write

    written = write(load(folder), output)
    Console(highlight=False, markup=False).print(
        f"{written.path}: prepared rows of {' × '.join(map(str, written.shape))} in, {written.columns:,} probabilities "
        f"and their logarithms out; within {written.difference:.1g} of predict_proba on {written.rows} rows.",
        soft_wrap=True,
    )
