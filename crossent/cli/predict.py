"""crossent predict: a fitted model's probabilities for new rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crossent.cli.reading import spare
from crossent.errors import DataError


def predict(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What crossent fit wrote.", show_default=False)],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows to predict, in a file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .parquet or .csv file to write.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="PACKAGE.MODULE:FACTORY", help="Makes a network of your own.", show_default=False),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Add the columns low and high, which hold so many numbers of a range, such as 0.9.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a fitted model's probabilities for the rows of DATA, whose labels are not needed."""
    from crossent.minimise import Recipe, load
    from crossent.minimise.data import dataset
    from crossent.minimise.training.learn import factory_of

    if output.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(f"predictions are written as .parquet or .csv, and {str(output)!r} is neither.")
    if Path(data).is_file():
        spare([output], data)
    run = load(folder, model=factory_of(Recipe(model=model)) if model else None)
    rows = dataset.read(data, run.record.facts.get("target"), labelled=False)
    probabilities = run.predict_proba(rows)
    try:
        intervals = None if coverage is None else run.predict_interval(rows, coverage)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"--coverage {coverage:g}: {trouble}") from trouble
    run.write_predictions(output, probabilities, intervals=intervals)
    console = Console(highlight=False, markup=False)
    for note in run.preparation.notes:
        console.print(note)
    console.print(f"{len(rows):,} rows: {output}", soft_wrap=True)
