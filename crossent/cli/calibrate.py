"""crossent calibrate: better probabilities where that can be shown, and known shifts undone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from crossent.cli.reading import reading, spare
from crossent.errors import DataError
from crossent.report.label import wrapped

if TYPE_CHECKING:
    from crossent.measure import Calibrator

_PROSE = 100  # columns beyond which the eye loses the line
_ROOMY = 66  # columns from which on a table of candidates shows the loss beside the change


def calibrate(
    predictions: Annotated[
        str,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Rows with labels to calibrate by: a file, a folder, a pattern or an address (s3://…); or a "
            "calibrator, .json; or rows with a shift to undo.",
            show_default=False,
        ),
    ],
    apply: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows to calibrate, which need no labels: a file, a folder, a pattern or an address; may be repeated. "
            "All go to one file."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write them, .parquet or .csv.")
    ] = None,
    calibrator: Annotated[Path | None, typer.Option(help="Where to write the calibrator, .json.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the labels; else label.")] = None,
    probability: Annotated[
        list[str] | None,
        typer.Option("--probability", "--prob", help="Column of probabilities, once for each; else all named p_…"),
    ] = None,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Name of a class, once for each, in the columns' order.")
    ] = None,
    range_: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", metavar="LOW HIGH", help="The labels are numbers, the probability their share of it."),
    ] = None,
    row: Annotated[str | None, typer.Option(help="Column of row ids; else row.")] = None,
    split: Annotated[str | None, typer.Option(help="Rows to calibrate by: validation, test, train or all.")] = None,
    weight: Annotated[str | None, typer.Option(help="Column of what a row counts.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of what belongs together: games, patients, documents.")
    ] = None,
    form: Annotated[str | None, typer.Option(help="probabilities, log-probabilities or logits.")] = None,
    truth: Annotated[str | None, typer.Option(help="What the labels are: class, one-hot, soft, counts.")] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide each row by its sum first.")] = False,
    seed: Annotated[int, typer.Option(help="Draws the folds that candidates are judged by.")] = 0,
    prior_was: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=SHARE", help="Undo a shift: share of a class in training.")
    ] = None,
    prior_is: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=SHARE", help="Share of a class where the model is used.")
    ] = None,
    class_weight: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=WEIGHT", help="Undo what a class weighed in the loss.")
    ] = None,
    sampling_rate: Annotated[
        list[str] | None, typer.Option(metavar="CLASS=RATE", help="Undo that this share of a class was trained on.")
    ] = None,
) -> None:
    """Calibrate by PREDICTIONS, if that helps beyond doubt, and write the rows of other files calibrated.

    Every candidate is judged on rows it was not fitted to, by the 95 % interval of the change it makes; where none
    helps, nothing is changed. Every column but the probabilities is kept.
    """
    from crossent.measure.calibration.calibrated import apply_to_file, check_output

    console = Console(highlight=False, markup=False)
    columns = (probability[0] if len(probability) == 1 else probability) if probability else None
    shift = {
        "prior_was": _factors(prior_was, "--prior-was"),
        "prior_is": _factors(prior_is, "--prior-is"),
        "class_weight": _factors(class_weight, "--class-weight"),
        "sampling_rate": _factors(sampling_rate, "--sampling-rate"),
    }
    undone = any(factors is not None for factors in shift.values())
    rows = [predictions] if undone and not apply else apply or None
    if undone and apply:
        raise DataError("a shift is undone in closed form, by no other rows: name one file, and no --apply.")
    if rows is not None and output is None:
        raise DataError(f"name the file to write the calibrated rows of {', '.join(map(repr, rows))} to, with -o.")
    if output is not None and rows is None:
        raise DataError(f"name the file whose rows are to be calibrated and written to {str(output)!r}, with --apply.")
    if output is not None:
        check_output(output)
    if calibrator is not None and calibrator.suffix.lower() != ".json":
        raise DataError(f"a calibrator is written as .json, and {str(calibrator)!r} is not.")
    spare([output, calibrator], predictions)

    if undone:
        found = _undone(predictions, shift, class_, columns)
    elif predictions.lower().endswith(".json"):
        from crossent.measure import Calibrator

        found = Calibrator.read(predictions)
    else:
        from crossent.measure import calibrate as choose

        with reading(console) as seen:
            found = choose(
                predictions,
                label=label,
                probability=columns,
                row=row,
                split=split,
                weight=weight,
                group=group,
                form=form,
                truth=truth,
                normalise=normalise,
                classes=class_ or None,
                task=None if range_ is None else "range",
                low=None if range_ is None else range_[0],
                high=None if range_ is None else range_[1],
                seed=seed,
                progress=seen,
            )
    total, notes = 0, tuple[str, ...]()
    if rows is not None and output is not None:
        total, notes = apply_to_file(found, rows, output, columns, form, normalise)
    if calibrator is not None:
        found.write(calibrator)
    _show(console, found, notes)
    if output is not None:
        console.print(f"\n{total:,} rows: {output}", soft_wrap=True)
    if calibrator is not None:
        console.print(f"Calibrator: {calibrator}", soft_wrap=True)


def _factors(given: list[str] | None, option: str) -> dict[str, float] | None:
    """Read CLASS=NUMBER, once for each class; a class's own name may hold an equals sign."""
    if not given:
        return None
    found: dict[str, float] = {}
    for one in given:
        name, equals, value = one.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise DataError(f"{option} takes CLASS=NUMBER, once for each class, and got {one!r}.")
        if name in found:
            raise DataError(f"{option} names the class {name!r} twice.")
        found[name] = number
    return found


def _undone(path: str, shift: dict[str, Any], classes: list[str] | None, columns: Any) -> Calibrator:
    from crossent.measure import undo_shift
    from crossent.measure.calibration.calibrated import classes_of

    return undo_shift(**shift, classes=classes or classes_of(path, columns))


def _show(console: Console, found: Calibrator, notes: tuple[str, ...]) -> None:
    from rich import box
    from rich.table import Table

    def say(text: str, style: str = "") -> None:
        console.print(Text(wrapped(text, min(console.width, _PROSE)), style=style))

    choice = found.choice
    if choice is None:
        say({"none": "Nothing is changed."}.get(found.kind, f"{found.kind[0].upper()}{found.kind[1:]}."), "bold")
    else:
        say(choice.sentence, "bold")
        if len(choice.table["name"]) > 1:
            roomy = console.width >= _ROOMY
            grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
            grid.add_column("candidate", overflow="fold")
            if roomy:
                grid.add_column("cross-entropy", justify="right", no_wrap=True)
            grid.add_column("change, in nats", justify="right", overflow="fold")
            for name, loss, low, high, chosen in zip(*choice.table.values(), strict=True):
                change = "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}".replace("-", "−")
                cells = [f"{name} ←" if chosen else name, *([f"{loss:.4f}"] if roomy else []), change]
                grid.add_row(*(Text(cell) for cell in cells), style="bold" if chosen else "")
            console.print()
            console.print(grid)
            say("Each candidate on rows it was not fitted to; all intervals hold together with 95 %.", "dim")
        for sentence in choice.absent:
            say(sentence, "dim")
    for note in (*(choice.notes if choice is not None else ()), *notes):
        console.print()
        say(f"Note: {note}", "yellow")
