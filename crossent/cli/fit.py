"""crossent fit: train, calibrate, test and report; a folder that is written whole, or left for --resume."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from crossent.cli.contest import way
from crossent.cli.training import Training
from crossent.errors import DataError, require


def fit(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="digits, breast_cancer, iris, wine, diabetes, or a .csv, .parquet or .npz file.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="Column to predict, or a pattern of one for each class; else target, label, class, y or the last."
        ),
    ] = None,
    weight: Annotated[
        str | None, typer.Option(help="Column of the rows' weights; all count alike without.", show_default=False)
    ] = None,
    test: Annotated[str | None, typer.Option(help="File of rows to test on, instead of a drawn fifth.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; else runs/NAME, or the next free one.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="classes|range", help="What the target is, if the look is wrong.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None, typer.Option("--range", metavar="LOW HIGH", help="Ends of the target's range.")
    ] = None,
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
    folder = _folder(data, output, resume) if first else Path()
    if first and resume and (folder / "model.json").exists():
        console.print(f"{folder} is finished; nothing is left to do.")
        report.show(Record.read(folder / "record.json"), console)
        return
    checkpoint = folder / "checkpoint"
    made = [place for place in (checkpoint, *checkpoint.parents) if not os.path.exists(place)] if first else []
    if first:
        _probe(checkpoint, made)  # before torch is imported: on a full disk a library that torch takes in says less
    try:
        from crossent.minimise.learn import launched

        train_and_test = way(compare, seeds)
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
                budget=None if budget is None else _seconds(budget),
                seed=seed,
                fabric=fabric,
                checkpoint=checkpoint,
                progress=training.show,
                said=training.say,
                command=_command(),
            )
        if not first:
            return
        report.write(run.record, folder / "report.html")
        run.save(folder)
    except BaseException:
        if first:
            _take_back(folder, made)
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
        return [loggers.CSVLogger(folder, name="log")]
    if name == "tensorboard":
        require("tensorboard", "tensorboard", "--logger tensorboard")
        return [loggers.TensorBoardLogger(folder, name="log")]
    raise DataError(f"--logger is tensorboard or csv; got {name!r}.")


def _seconds(text: str) -> float:
    """A time as it is written on the command line: 90s, 10m, 2h, or seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    try:
        seconds = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise DataError(f"--budget takes a time such as 90s, 10m or 2h; got {text!r}.")
    return seconds


def _folder(data: str, output: Path | None, resume: bool) -> Path:
    """Where this run goes: never onto another run."""
    if output is None:
        first = Path("runs") / Path(data).stem
        numbered = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))]
        if resume:
            begun = [
                folder
                for folder in numbered[: _free(numbered)]
                if (folder / "checkpoint").exists() and not (folder / "model.json").exists()
            ]
            if not begun:
                raise DataError(f"there is no stopped run of {data!r} to go on with in {first.parent}{os.sep}.")
            return begun[-1]
        return numbered[_free(numbered)]
    if output.exists() and not output.is_dir():
        raise DataError(f"{str(output)!r} is a file; name a folder with -o.")
    if not output.exists() or (resume and any((output / name).exists() for name in ("checkpoint", "model.json"))):
        return output
    if (output / "model.json").exists():
        raise DataError(f"{str(output)!r} holds a finished run, which is not overwritten; name another folder with -o.")
    if (output / "checkpoint").exists():
        raise DataError(f"{str(output)!r} holds a run that was stopped; add --resume to go on, or name another folder.")
    if any(output.iterdir()):
        raise DataError(f"{str(output)!r} is not empty; name a new folder with -o, so that nothing is overwritten.")
    return output


def _free(numbered: list[Path]) -> int:
    return next(place for place, folder in enumerate(numbered) if not os.path.exists(folder))


def _probe(folder: Path, made: list[Path]) -> None:
    """Find out before the training, not after it, that the folder cannot be written."""
    from crossent.files import replacing

    try:
        with replacing(folder / ".probe") as temporary:
            temporary.write_text("crossent was here")
        (folder / ".probe").unlink()
    except BaseException:
        _remove(made)
        raise


def _take_back(folder: Path, made: list[Path]) -> None:
    """Leave of a run that failed what --resume can go on from, and else nothing: no file, no folder it had made."""
    from crossent.minimise.run import FILES, MODEL, TEXT

    if not (folder / MODEL).exists():
        for place in folder.glob(f"{TEXT}-*"):
            shutil.rmtree(place, ignore_errors=True)
        for name in ("report.html", *FILES):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    _remove(made)


def _remove(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    for place in folders:
        try:
            place.rmdir()
        except OSError:
            return


def _command() -> str:
    return shlex.join(["crossent", *sys.argv[1:]])
