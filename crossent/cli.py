"""The command line: parses, calls a verb, writes what it found, prints it.

Every refusal is a sentence on standard error and exit status 2, with no traceback.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from crossent.errors import DataError, MissingExtra, require

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError:  # main() says so in a sentence; the annotations below are then never looked at
    typer = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from crossent.minimise import Progress, Recipe


def main() -> None:
    """Run the command line, and say in a sentence why it could not."""
    # Threads that spin while they wait are a catastrophe on a machine that is busy with something else. This has to be
    # said before torch is imported, and a user who has said otherwise is left alone.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        require("typer", "cli", "the command line")
        require("rich", "cli", "the command line")
        _app()(prog_name="crossent")
    except (DataError, MissingExtra) as trouble:
        print(f"crossent: {trouble}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _app() -> Any:
    app = typer.Typer(
        help="Cross-entropy: minimise it (fit), use the model (predict), measure it (evaluate), look at it (report).",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.command()(fit)
    app.command()(predict)
    app.command()(evaluate)
    app.command()(report)
    app.callback(invoke_without_command=True)(_version)
    return app


def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import crossent

        print(f"crossent {crossent.__version__}")
        raise typer.Exit


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
    from crossent.minimise import fit as train_and_test
    from crossent.record import Record

    console = Console(highlight=False, markup=False)
    recipe = _recipe(set_ or [])
    folder = _folder(data, output, resume)
    if resume and (folder / "model.json").exists():
        console.print(f"{folder} is finished; nothing is left to do.")
        report.show(Record.read(folder / "record.json"), console)
        return
    checkpoint = folder / "checkpoint"
    made = [place for place in (checkpoint, *checkpoint.parents) if not os.path.exists(place)]
    try:
        _probe(checkpoint)
        with _Training(console) as training:
            run = train_and_test(
                data,
                target=target,
                test=test,
                kind=task,
                limits=range_,
                recipe=recipe,
                calibrated=calibrate,
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


def predict(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What crossent fit wrote.", show_default=False)],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows to predict, in a file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .parquet or .csv file to write.")],
) -> None:
    """Write a fitted model's probabilities for the rows of DATA, whose labels are not needed."""
    from crossent.minimise import data as sources
    from crossent.minimise import load

    if output.suffix.lower() not in (".parquet", ".csv"):
        raise DataError(f"predictions are written as .parquet or .csv, and {str(output)!r} is neither.")
    run = load(folder)
    rows = sources.read(data, run.record.facts.get("target"), labelled=False)
    probabilities = run.predict_proba(rows)
    run.write_predictions(output, probabilities)
    console = Console(highlight=False, markup=False)
    for note in run.preparation.notes:
        console.print(note)
    console.print(f"{len(rows):,} rows: {output}", soft_wrap=True)


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


def report(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A record.json.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page to write; else only print.")] = None,
) -> None:
    """Show a record again, and draw its page; needs no torch and no data."""
    from crossent import report as drawing
    from crossent.record import Record

    found = Record.read(record)
    console = Console(highlight=False, markup=False)
    drawing.show(found, console)
    if output is not None:
        drawing.write(found, output)
        console.print(f"\nReport: {output}", soft_wrap=True)


class _Training:
    """What is seen while a network trains: a bar on a terminal, a line every few seconds anywhere else."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Any = None
        self.job: Any = None
        self.said = time.monotonic()

    def __enter__(self) -> _Training:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(
                BarColumn(bar_width=20 if self.console.width >= 100 else 8),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            self.bar.start()
        return self

    def __exit__(self, *trouble: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, sentence: str) -> None:
        self.console.print(sentence)

    def show(self, at: Progress) -> None:
        words = self._words(at)
        if self.bar is not None:
            if self.job is None:
                self.job = self.bar.add_task(words, total=1.0)
            done = (at.epoch - 1 + at.share) / max(at.epoch, at.expected)
            self.bar.update(self.job, description=words, completed=done)
        elif time.monotonic() - self.said > 2.0:
            self.said = time.monotonic()
            self.console.print(words)

    def _words(self, at: Progress) -> str:
        epoch = f"epoch {at.epoch}" if at.share >= 1 else f"epoch {at.epoch}, {at.share:.0%} of it"
        if at.train != at.train:
            return epoch
        left = "" if at.seconds_left != at.seconds_left else f" · {_clock(at.seconds_left)} left, more if it improves"
        best = f" (best {at.best:.4f}, epoch {at.best_epoch})"
        if self.console.width < 100:
            left, best = left.replace(", more if it improves", ""), ""
        return f"{epoch} · train {at.train:.4f} · validation {at.validation:.4f}{best}{left}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _recipe(settings: list[str]) -> Recipe:
    from crossent.minimise import Recipe

    known = Recipe().to_dict()
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise DataError(f"--set takes NAME=VALUE with one of the names {', '.join(known)}; got {setting!r}.")
        kind = type(known[name])
        try:
            chosen[name] = kind(value)
        except ValueError as trouble:
            wanted = "a whole number" if kind is int else "a number"
            raise DataError(f"--set {name} needs {wanted}; got {value!r}.") from trouble
    return Recipe(**chosen)


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


def _probe(folder: Path) -> None:
    """Find out before the training, not after it, that the folder cannot be written."""
    from crossent.files import replacing

    with replacing(folder / ".probe") as temporary:
        temporary.write_text("crossent was here")
    (folder / ".probe").unlink()


def _take_back(folder: Path, made: list[Path]) -> None:
    """Leave of a run that failed what --resume can go on from, and else nothing: no file, no folder it had made."""
    from crossent.minimise.run import FILES, MODEL

    if not (folder / MODEL).exists():
        for name in ("report.html", *FILES):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    for place in made:
        try:
            place.rmdir()
        except OSError:
            return


def _command() -> str:
    return shlex.join(["crossent", *sys.argv[1:]])
