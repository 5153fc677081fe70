"""crossent tune: search for a recipe, then fit, test and report with it; a folder as of fit, with the trials in it."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from crossent.cli import options
from crossent.cli.folder import folder_for, probe, take_back
from crossent.cli.training import Training

if TYPE_CHECKING:
    from crossent.record import Table

MOST_TRIALS = 12
"""Rows of the table on the terminal; record.json and report.html have all."""


def tune(
    data: options.Data,
    target: options.Target = None,
    weight: options.Weight = None,
    test: options.Test = None,
    output: options.Output = None,
    task: options.Task = None,
    range_: options.Range = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="For the search and the training after it: 90s, 10m or 2h. 10m, if --trials is not given.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="The most trials, all processes together.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Where the trials are kept: to go on with a search, or to share it among processes and machines.",
        ),
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=TEXTS]",
            help="A setting to search over, as dropout or 'loss=nll, focal(0.5..3)'; else all that is usual.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe that is not searched over."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Two searches with one seed and --trials are equal to the bit.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")] = False,
) -> None:
    """Search for the recipe of the lowest cross-entropy on DATA, then train, calibrate, test and report with it.

    The test rows are looked at once, at the end. Ctrl-C ends the search and fits the best so far; --resume goes on
    after a kill.
    """
    from crossent import report
    from crossent.record import Record

    console = Console(highlight=False, markup=False)
    folder = folder_for(data, output, resume)
    if resume and (folder / "model.json").exists():
        console.print(f"{folder} is finished; nothing is left to do.")
        report.show(Record.read(folder / "record.json"), console)
        return
    checkpoint = folder / "checkpoint"
    made = [place for place in (checkpoint, *checkpoint.parents) if not os.path.exists(place)]
    probe(checkpoint, made)  # before torch is imported: on a full disk a library that torch takes in says less
    try:
        from crossent.minimise.tune.tune import tune as search

        with Training(console) as training:
            tuned = search(
                data,
                target=target,
                weight=weight,
                test=test,
                kind=task,
                limits=range_,
                settings=set_ or [],
                space=space or [],
                budget=None if budget is None else options.seconds(budget),
                trials=trials,
                storage=storage or checkpoint / "trials.journal",
                seed=seed,
                checkpoint=checkpoint,
                progress=training.show,
                said=training.say,
                command=options.command(),
            )
        report.write(tuned.run.record, folder / "report.html")
        tuned.run.save(folder)
    except BaseException:
        take_back(folder, made)
        raise
    shutil.rmtree(checkpoint, ignore_errors=True)
    report.show(tuned.run.record, console)
    console.print("\nThe best of the trials", style="bold")
    console.print(_sheet(tuned.trials, console.width))
    for sentence in tuned.found:
        console.print(sentence)
    asked = {"--target": target, "--weight": weight, "--test": test, "--task": task}
    words = ["crossent", "fit", data, *(word for name, value in asked.items() if value for word in (name, value))]
    words += ["--range", *(f"{end:g}" for end in range_)] if range_ else []
    words += ["--seed", str(seed)] if seed else []
    repeat = f"{shlex.join(words)} {tuned.run.record.facts['settings']}".rstrip()
    console.print(f"\nRepeat the best: {repeat}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Model, record and predictions: {folder}{os.sep}", soft_wrap=True)


def _sheet(trials: Table, width: int) -> Any:
    """The best trials first, then those that came to nothing, each with its settings or its sentence."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    rows = [dict(zip(trials, row, strict=True)) for row in zip(*trials.values(), strict=True)]
    rows.sort(key=lambda row: (row["cross_entropy"] is None, row["cross_entropy"] or 0.0))
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("Trial", "Nats", "95 % interval", "Folds", "Seconds"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("Settings, or what happened", overflow="fold", max_width=max(24, width - 48))
    for row in rows[:MOST_TRIALS]:
        loss = "–" if row["cross_entropy"] is None else f"{row['cross_entropy']:.4f}"
        interval = row["state"] if row["low"] is None else f"{row['low']:.4f} – {row['high']:.4f}"
        told = row["settings"].replace("--set ", "") if row["cross_entropy"] is not None else row["sentence"]
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        cells = (str(row["trial"]), loss, interval, str(row["folds"]), seconds, told)
        grid.add_row(*map(Text, cells))
    if len(rows) > MOST_TRIALS:
        grid.caption = f"{len(rows) - MOST_TRIALS} more are in record.json."
    return grid
