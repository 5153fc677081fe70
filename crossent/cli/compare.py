"""crossent compare: which of several models is better, and whether the rows can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crossent.cli.reading import beside, reading, spare


def compare(
    predictions: Annotated[
        list[str],
        typer.Argument(
            metavar="PREDICTIONS…",
            help="A file of each model, or a folder, a pattern or an address (s3://…) of them; the baseline first.",
            show_default=False,
        ),
    ],
    label: Annotated[str | None, typer.Option(help="Column of the labels; else label.")] = None,
    probability: Annotated[
        list[str] | None,
        typer.Option(
            "--probability", "--prob", help="Column of probabilities, once for each; of one file, once for each model."
        ),
    ] = None,
    row: Annotated[str | None, typer.Option(help="Column of row ids that the files are joined on; else row.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of what belongs together: games, patients, documents.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column to cut the rows into slices by; may be repeated.")
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Column of what a row counts.")] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", help="Column of bytes, or of the text that was predicted.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Name of the model that others are held against.")] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name of a model, once for each, in their order.")] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class, once for each, in the columns' order.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", metavar="LOW HIGH", help="The labels are numbers, the probability their share of it."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Rows to compare: test (if any), validation, train or all.")] = None,
    form: Annotated[str | None, typer.Option(help="probabilities, log-probabilities or logits.")] = None,
    truth: Annotated[str | None, typer.Option(help="What the labels are: class, one-hot, soft, counts.")] = None,
    floor: Annotated[float, typer.Option(help="What probabilities are raised to if 0 met its label.")] = 1e-6,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide each row by its sum first.")] = False,
    record: Annotated[Path | None, typer.Option(help="Where to write the record; else A-B-comparison.json.")] = None,
    html: Annotated[Path | None, typer.Option("--report", help="Write a page as well.")] = None,
) -> None:
    """Compare models on the same rows: which is better, by how much, where, and whether the rows can tell.

    The columns --weight, --group, --by and --bytes are those of the baseline's file.
    """
    from crossent import report
    from crossent.measure import compare as measure

    several = probability if probability and (len(probability) > 1 or len(predictions) == 1) else None
    record = record or beside("comparison", *predictions[:2])
    spare([record, html], *predictions)
    console = Console(highlight=False, markup=False)
    with reading(console) as seen:
        found = measure(
            *predictions,
            names=name or None,
            baseline=baseline,
            label=label,
            probability=several or (probability[0] if probability else None),
            row=row,
            split=split,
            weight=weight,
            group=group,
            by=by or None,
            bytes=bytes_,
            form=form,
            truth=truth,
            floor=floor,
            normalise=normalise,
            classes=class_ or None,
            task=None if range_ is None else "range",
            low=None if range_ is None else range_[0],
            high=None if range_ is None else range_[1],
            progress=seen,
        )
    found.write(record)
    report.show(found, console)
    console.print(f"\nRecord: {record}", soft_wrap=True)
    if html is not None:
        report.write(found, html)
        console.print(f"Report: {html}", soft_wrap=True)
