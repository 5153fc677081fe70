"""crossent evaluate: what predictions are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="A .parquet or .csv file.", show_default=False)
    ],
    label: Annotated[str | None, typer.Option(help="Column of the labels; else label.")] = None,
    probability: Annotated[
        list[str] | None, typer.Option(help="Column of probabilities, once for each; else all named p_…")
    ] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class, once for each, in the columns' order.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range", metavar="LOW HIGH", help="The labels are numbers, the probability their share of this."
        ),
    ] = None,
    row: Annotated[str | None, typer.Option(help="Column of row ids; else row.")] = None,
    split: Annotated[str | None, typer.Option(help="Rows to measure: test (if any), validation, train or all.")] = None,
    floor: Annotated[
        float, typer.Option(help="What probabilities are raised to in the second answer, if 0 met its label.")
    ] = 1e-6,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide each row by its sum first.")] = False,
    record: Annotated[Path | None, typer.Option(help="Where to write the record; else NAME-evaluation.json.")] = None,
    html: Annotated[Path | None, typer.Option("--report", help="Write a page as well.")] = None,
) -> None:
    """Measure what PREDICTIONS are worth: cross-entropy, what it is made of, and how sure one can be."""
    from crossent import report
    from crossent.measure import evaluate as measure

    names = probability[0] if probability and len(probability) == 1 else probability or None
    found = measure(
        predictions,
        label=label,
        probability=names,
        classes=class_ or None,
        task=None if range_ is None else "range",
        low=None if range_ is None else range_[0],
        high=None if range_ is None else range_[1],
        row=row,
        split=split,
        floor=floor,
        normalise=normalise,
        title=f"What {predictions.name} is worth",
    )
    record = record or predictions.with_name(f"{predictions.stem}-evaluation.json")
    found.write(record)
    console = Console(highlight=False, markup=False)
    report.show(found, console)
    console.print(f"\nRecord: {record}", soft_wrap=True)
    if html is not None:
        report.write(found, html)
        console.print(f"Report: {html}", soft_wrap=True)
