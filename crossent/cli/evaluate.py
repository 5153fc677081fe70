"""crossent evaluate: what predictions are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crossent.cli.reading import beside, reading, spare

_COLUMNS, _MEANING, _READING, _OUTPUT = "Columns", "What they mean", "Reading", "Output"


def evaluate(
    predictions: Annotated[
        list[str],
        typer.Argument(
            metavar="PREDICTIONS",
            help="A .parquet, .feather, .csv, .jsonl or .npz file, several, a folder, a pattern or an address (s3://…).",
            show_default=False,
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the labels; else label. May be a pattern: one per class.", rich_help_panel=_COLUMNS
        ),
    ] = None,
    probability: Annotated[
        list[str] | None,
        typer.Option(
            "--probability",
            "--prob",
            help="Column of probabilities, or a pattern; else 'p_*'.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    row: Annotated[str | None, typer.Option(help="Column of row ids; else row.", rich_help_panel=_COLUMNS)] = None,
    weight: Annotated[
        str | None, typer.Option(help="Column of how much a row counts.", rich_help_panel=_COLUMNS)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column of what belongs together: games, patients, documents.", rich_help_panel=_COLUMNS),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column to cut the rows into slices by; may be repeated.", rich_help_panel=_COLUMNS),
    ] = None,
    bytes_: Annotated[
        str | None,
        typer.Option("--bytes", help="Column of bytes predicted, or the text itself.", rich_help_panel=_COLUMNS),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Rows to measure: test (if any), validation, train or all.", rich_help_panel=_COLUMNS),
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="Name of a class, once for each, in the columns' order.", rich_help_panel=_MEANING
        ),
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--range",
            metavar="LOW HIGH",
            help="The labels are numbers, the probability their share of this.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="probabilities, log-probabilities or logits; of samples per-byte. Else told from the rows.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What labels are: class, one-hot, soft, counts or 'weighted counts'. Else told from the rows.",
            rich_help_panel=_MEANING,
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide each row by its sum first.", rich_help_panel=_MEANING)
    ] = False,
    floor: Annotated[
        float,
        typer.Option(
            help="What probabilities are raised to in the second answer, if 0 met its label.", rich_help_panel=_MEANING
        ),
    ] = 1e-6,
    engine: Annotated[
        str,
        typer.Option(
            metavar="ENGINE",
            help="local, or ray: the files are read by the workers of Ray (RAY_ADDRESS, or this machine).",
            rich_help_panel=_READING,
        ),
    ] = "local",
    record: Annotated[
        Path | None,
        typer.Option(help="Where to write the record; else NAME-evaluation.json.", rich_help_panel=_OUTPUT),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--report", help="Write a page as well.", rich_help_panel=_OUTPUT)
    ] = None,
) -> None:
    """Measure what PREDICTIONS are worth: cross-entropy, what it is made of, and how sure one can be."""
    from crossent import report
    from crossent.measure import evaluate as measure

    record = record or beside("evaluation", predictions[0])
    spare([record, html], *predictions)
    console = Console(highlight=False, markup=False)
    with reading(console) as seen:
        found = measure(
            predictions[0] if len(predictions) == 1 else predictions,
            label=label[0] if label and len(label) == 1 else label or None,
            probability=probability[0] if probability and len(probability) == 1 else probability or None,
            row=row,
            weight=weight,
            group=group,
            by=by or None,
            bytes=bytes_,
            split=split,
            classes=class_ or None,
            task=None if range_ is None else "range",
            low=None if range_ is None else range_[0],
            high=None if range_ is None else range_[1],
            form=form,
            truth=truth,
            normalise=normalise,
            floor=floor,
            title=f"What {_shown(predictions)} is worth",
            engine=engine,
            progress=seen,
        )
    found.write(record)
    report.show(found, console)
    console.print(f"\nRecord: {record}", soft_wrap=True)
    if html is not None:
        report.write(found, html)
        console.print(f"Report: {html}", soft_wrap=True)


def _shown(predictions: list[str]) -> str:
    first = predictions[0].rstrip("/").rpartition("/")[2]
    return first if len(predictions) == 1 else f"{first} and {len(predictions) - 1} more"
