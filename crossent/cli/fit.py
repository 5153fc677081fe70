"""crossent fit: train, calibrate, test and report; a folder that is written whole, or left for --resume."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from crossent.cli.training import Training
from crossent.errors import DataError


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
        str | None, typer.Option(help="Column to predict; else target, label, class, y, or the last.")
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

    console = Console(highlight=False, markup=False)
    folder = _folder(data, output, resume)
    if resume and (folder / "model.json").exists():
        console.print(f"{folder} is finished; nothing is left to do.")
        report.show(Record.read(folder / "record.json"), console)
        return
    checkpoint = folder / "checkpoint"
    made = [place for place in (checkpoint, *checkpoint.parents) if not os.path.exists(place)]
    _probe(checkpoint, made)  # before torch is imported: on a full disk a library that torch takes in says less
    try:
        from crossent.minimise import fit as train_and_test

        settings = [*(set_ or []), *([] if calibrate else ["calibration=none"])]
        with Training(console) as training:
            run = train_and_test(
                data,
                target=target,
                test=test,
                kind=task,
                limits=range_,
                settings=settings,
                budget=None if budget is None else _seconds(budget),
                seed=seed,
                checkpoint=checkpoint,
                progress=training.show,
                said=training.say,
                command=_command(),
            )
        report.write(run.record, folder / "report.html")
        run.save(folder)
    except BaseException:
        _take_back(folder, made)
        raise
    shutil.rmtree(checkpoint, ignore_errors=True)
    report.show(run.record, console)
    console.print(f"\nReport: {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Model, record and predictions: {folder}{os.sep}", soft_wrap=True)


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
    from crossent.minimise.run import FILES, MODEL

    if not (folder / MODEL).exists():
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
