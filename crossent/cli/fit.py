"""crossent fit: train, calibrate, test and report; a folder that is written whole, or left for --resume."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from crossent.cli import options
from crossent.cli.contest import way
from crossent.cli.folder import folder_for, probe, require_writers, take_back
from crossent.cli.training import Training
from crossent.errors import DataError, require


def fit(
    data: options.Data,
    target: options.Target = None,
    weight: options.Weight = None,
    test: options.Test = None,
    output: options.Output = None,
    task: options.Task = None,
    range_: options.Range = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="network, linear, residual, text:FOLDER of a Hugging Face model, or package.module:factory.",
            show_default=False,
        ),
    ] = None,
    logger: Annotated[
        str | None, typer.Option(metavar="tensorboard|csv", help="Log every epoch there, in the run's folder.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "cpu",
    devices: Annotated[
        str, typer.Option(help="How many of them; auto is one, or those that torchrun started.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed, …")] = "32-true",
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="LOSSES", help="Compare losses, nll,focal(2),brier,…, or codes of a range.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="How often each loss is trained, with --compare.", min=1, show_default=False)
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Test every row in turn, in so many parts, with --compare.", min=2, show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Two runs with one seed are equal to the bit.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Train no longer than this: 90s, 10m or 2h.", show_default=False)
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Calibrate where validation says it helps.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe, such as epochs=50."),
    ] = None,
) -> None:
    """Train a network on DATA by minimising cross-entropy; calibrate, test and report it.

    Ctrl-C ends the training and keeps the best so far; --resume goes on after a kill.
    """
    from crossent import report
    from crossent.record import Record

    first = int(os.environ.get("RANK", "0")) == 0  # under torchrun one process writes, and the others help
    console = Console(highlight=False, markup=False, quiet=not first)
    folder = folder_for(data, output, resume) if first else Path()
    if first and resume and (folder / "model.json").exists():
        console.print(f"{folder} is finished; nothing is left to do.")
        report.show(Record.read(folder / "record.json"), console)
        return
    checkpoint = folder / "checkpoint"
    made = [place for place in (checkpoint, *checkpoint.parents) if not os.path.exists(place)] if first else []
    if first:
        probe(checkpoint, made)  # before torch is imported: on a full disk a library that torch takes in says less
    try:
        require_writers()
        from crossent.minimise.training.learn import launched

        train_and_test = way(compare, seeds, folds)
        settings = [*(set_ or []), *([] if calibrate else ["calibration=none"])]
        settings += [f"model={model}"] if model else []
        fabric = launched(devices, accelerator, precision, loggers=_loggers(logger, folder))
        checkpoint = Path(fabric.broadcast(str(checkpoint)))
        with Training(console) as training:
            run = train_and_test(
                data,
                target=target,
                weight=weight,
                test=test,
                kind=task,
                limits=range_,
                settings=settings,
                budget=None if budget is None else options.seconds(budget),
                seed=seed,
                fabric=fabric,
                checkpoint=checkpoint,
                progress=training.show,
                said=training.say,
                command=options.command(),
            )
        if not first:
            return
        for each in fabric.loggers:
            each.finalize("success")  # what it has kept for later is written now
        report.write(run.record, folder / "report.html")
        run.save(folder)
    except BaseException:
        if first:
            take_back(folder, made)
        raise
    shutil.rmtree(checkpoint, ignore_errors=True)
    report.show(run.record, console)
    console.print(f"\nReport: {folder / 'report.html'}", soft_wrap=True)
    what = "Model, record and predictions" if compare is None else "Record"
    console.print(f"{what}: {folder}{os.sep}", soft_wrap=True)


def _loggers(name: str | None, folder: Path) -> list[Any]:
    """What writes down every epoch, in the run's folder."""
    if name is None:
        return []
    loggers = require("lightning_fabric.loggers", "cli", "training")
    if name == "csv":
        return [loggers.CSVLogger(folder, name="log", flush_logs_every_n_steps=1)]  # a killed run keeps its epochs
    if name == "tensorboard":
        require("tensorboard", "tensorboard", "--logger tensorboard")
        return [loggers.TensorBoardLogger(folder, name="log")]
    raise DataError(f"--logger is tensorboard or csv; got {name!r}.")
