"""crossent tune: search for a recipe, then fit, test and report with it; a folder as of fit, with the trials in it."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Annotated

import typer
from rich.console import Console

from crossent.cli import options
from crossent.cli.folder import folder_for, probe, require_writers, take_back
from crossent.cli.training import Training


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
        require_writers()
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
    asked = {"--target": target, "--weight": weight, "--test": test, "--task": task}
    words = ["crossent", "fit", data, *(word for name, value in asked.items() if value for word in (name, value))]
    words += ["--range", *(f"{end:g}" for end in range_)] if range_ else []
    words += ["--seed", str(seed)] if seed else []
    repeat = f"{shlex.join(words)} {tuned.run.record.facts['settings']}".rstrip()
    console.print(f"\nRepeat the best: {repeat}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Model, record and predictions: {folder}{os.sep}", soft_wrap=True)
