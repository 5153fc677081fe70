"""One page for a person: self-contained, without scripts, legible on a phone, in the dark and on paper."""

from __future__ import annotations

import importlib.resources
import os
import re
from typing import Any

from crossent.errors import require
from crossent.files import replacing
from crossent.record import Record
from crossent.report import (
    comparison,
    comparison_plots,
    contest,
    contest_plots,
    digits,
    plots,
    search,
    search_plots,
    table,
    text,
)
from crossent.report.label import printable

_MOST_CLASSES = 300
_MOST_ROWS = 50
_MOST_SLICES = 100
_MOST_TRIALS = 200
_TASKS = {"binary": "yes or no", "multi-class": "classes", "range": "a number in a range"}


def write(record: Record, path: str | os.PathLike[str]) -> None:
    """Write the record as one HTML page that opens anywhere, offline.

    Args:
        record: what to show; parts that it lacks are left out of the page.
        path: the file to write, whole or not at all.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
        DataError: the file cannot be written.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> write(Record("evaluation", "an empty one"), path)
    >>> path.read_text(encoding="utf-8").splitlines()[0]
    '<!doctype html>'
    """
    finished = page(record)
    with replacing(path) as temporary:
        # A name can hold half a letter (a lone surrogate), which no file can: it becomes a question mark.
        temporary.write_text(finished, encoding="utf-8", errors="replace", newline="\n")


def page(record: Record) -> str:
    """Give the page as text; the same record always gives the same text."""
    jinja2 = require("jinja2", "cli", "writing a report")
    from markupsafe import Markup

    here = importlib.resources.files("crossent.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tied"] = _tied
    template = environment.from_string(here.joinpath("template.html.j2").read_text(encoding="utf-8"))
    # Only what this package wrote itself is marked as safe; everything else is escaped.
    pictures = {
        "learning": plots.learning(record),
        "reliability": plots.reliability(record),
        "decomposition": plots.decomposition(record),
        "classes": plots.classes(record),
        "differences": comparison_plots.differences(record),
        "concentration": plots.concentration(record),
        "losses": contest_plots.log_loss(record),
        "beside": contest_plots.beside(record),
        "trials": search_plots.trials(record),
        "importance": search_plots.importance(record),
    }
    return template.render(
        style=Markup(here.joinpath("page.css").read_text(encoding="utf-8")),
        pictures={name: Markup(picture) for name, picture in pictures.items()},
        title=printable(record.title) or "A record without a title",
        kicker=_kicker(record),
        hero=_hero(record),
        headline=text.headline(record),
        impossible=text.is_impossible(record),
        notes=[printable(note) for note in record.facts.get("notes") or []],
        summary=text.summary(record),
        in_bits=text.parts_in_bits(record),
        kind=record.kind,
        task=record.facts.get("task"),
        band="reliability_null" in record.curves,
        whisker="miscalibration" in record and digits.interval(record["miscalibration"]) != "",
        kept=record.facts.get("best_epoch"),
        comparison=comparison.sheets(record, _MOST_ROWS) + contest.sheets(record),
        searched=search.sentences(record),
        trials=search.sheet_of_trials(record, _MOST_TRIALS),
        limits=contest.limits(record),
        slices=table.slices(record, _MOST_SLICES),
        per_class=table.per_class(record, _MOST_CLASSES),
        costliest=table.costliest(record, _MOST_ROWS),
        suspected=_suspected(record),
        calibrators=table.calibrators(record),
        left=table.left(record),
        done=_done(record),
        recipe=_pairs(record.facts.get("recipe")),
        command=printable(record.facts.get("command") or ""),
    )


def _kicker(record: Record) -> str:
    kinds = {"fit": "Fit", "evaluation": "Evaluation", "comparison": "Comparison", "losses": "Losses compared"}
    kind = kinds.get(record.kind, printable(record.kind))
    day = record.made.partition("T")[0]
    return " · ".join(part for part in ("crossent", kind, text.measured_rows(record), printable(day)) if part)


def _hero(record: Record) -> dict[str, str]:
    """The big number: the cross-entropy, in words where it is no number."""
    if record.kind == "losses":
        return contest.hero(record)
    loss = record.numbers.get("cross_entropy")
    of = "" if loss is not None else "difference in "
    loss = loss or comparison.difference(record)
    if loss is None:
        return {}
    value, _, unit = digits.value(loss).partition(" ")
    return {"value": value, "unit": unit and f"{of}{unit} per row", "interval": digits.interval(loss)}


def _done(record: Record) -> list[tuple[str, str]]:
    """What was done, as (question, answer) pairs; what the record does not say is not asked."""
    facts = record.facts
    task = facts.get("task")
    asked = _TASKS.get(task, task) if isinstance(task, str) else None
    if task == "range" and facts.get("low") is not None and facts.get("high") is not None:
        asked = f"a number from {facts['low']:g} to {facts['high']:g}"
    if facts.get("classes") and task == "multi-class":
        asked = f"one of {len(facts['classes']):,} classes"
    epochs = facts.get("epochs")
    trained = None
    if epochs is not None:
        kept = f"; epoch {facts['best_epoch']} was kept" if facts.get("best_epoch") is not None else ""
        trained = f"{epochs} {'epoch' if epochs == 1 else 'epochs'}{kept}"
    seconds = facts.get("seconds")
    answers = [
        ("Data", facts.get("source")),
        ("Rows", text.measured_rows(record) + " measured"),
        ("Predicted", asked),
        ("Target", facts.get("found")),
        ("Split", _listed(facts.get("splits"), "{1:,} {0}")),
        ("Training", trained),
        ("Ended because", facts.get("stopped")),
        ("More time", facts.get("outlook")),
        ("Calibration", facts.get("calibration")),
        ("Miscalibration against", facts.get("calibrated_with")),
        ("Time", f"{digits.spell(seconds)} s" if isinstance(seconds, (int, float)) else None),
        ("Seed", facts.get("seed")),
        ("Versions", _listed(facts.get("versions"), "{0} {1}")),
        ("Made", record.made),
    ]
    return [(question, printable(answer)) for question, answer in answers if answer not in (None, "")]


def _suspected(record: Record) -> int | None:
    """How many of the rows shown have a suspect label; None if nobody asked."""
    found = record.tables.get("costliest", {}).get("suspect")
    return None if found is None else sum(map(bool, found[:_MOST_ROWS]))


def _listed(pairs: dict[str, Any] | None, form: str) -> str:
    return ", ".join(form.format(name, value) for name, value in (pairs or {}).items())


def _pairs(settings: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Settings by name; a switch is written as the command line has it."""
    words = {True: "yes", False: "no"}
    return [
        (printable(name).replace("_", " "), words[value] if isinstance(value, bool) else printable(value))
        for name, value in (settings or {}).items()
    ]


def _tied(line: str) -> str:
    """Keep a number and its unit on one line, and an interval that is a cell of its own."""
    if re.fullmatch(r"[−\d][\d.,]* to [−\d][\d.,]*", line):
        return line.replace(" ", "\u00a0")
    return re.sub(r"(?<=\d) (?=(%|nats|bits|rows?|×)(\W|$))|(?<=×) (?=\d)", "\u00a0", line)
