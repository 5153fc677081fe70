"""A search for a recipe in words and tables: what was found, every trial, and which settings mattered."""

from __future__ import annotations

import math
from typing import Any

from crossent.record import Number, Record, Table
from crossent.report import digits
from crossent.report.label import printable
from crossent.report.table import Sheet, Titles, counts, ends, names, nats, sheet

UNFINISHED = ("failed", "stopped", "lost", "running")
"""States of trials that came to no loss; the others are "complete" and "pruned"."""

MEANINGS = {
    "search_cross_entropy": (
        "Best trial's cross-entropy",
        "Of the best of all trials on rows its networks had not seen; a little lucky, being the best of many.",
    ),
    "search_win": (
        "What the search won",
        "How much less the best trial costs than the recipe to start from, in pairs over blocks of rows.",
    ),
}


def sentences(record: Record) -> list[str]:
    """What the search found, as sentences; none of a record without one."""
    return [printable(sentence) for sentence in record.facts.get("searched") or []]


def trials(record: Record) -> list[dict[str, Any]]:
    """The trials of a search in the order in which they were begun, each as its cells by name."""
    table = record.tables.get("trials", {})
    return [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]


def sheet_of_trials(record: Record, most: int) -> Sheet | None:
    """Every trial, the lowest loss first and then those that came to none, at most ``most``."""
    tried = sorted(trials(record), key=lambda trial: (not judged(trial), trial["cross_entropy"] or 0.0))
    shown = tried[:most]
    table: Table = {
        "trial": [trial["trial"] for trial in shown],
        "cross_entropy": [trial["cross_entropy"] for trial in shown],
        "interval": [_interval(trial) for trial in shown],
        "folds": [trial["folds"] for trial in shown],
        "seconds": [trial["seconds"] for trial in shown],
        "told": [_told(trial) for trial in shown],
    }
    left_out = f"The {most} best of {len(tried):,} trials; the record holds all." if len(tried) > most else ""
    return sheet(table, _TRIALS, left_out)


def sheet_of_importance(record: Record) -> Sheet | None:
    """How much of what makes a trial good lies in which setting, beside what chance gives."""
    return sheet(record.tables.get("importance", {}), _IMPORTANCE)


def judged(trial: dict[str, Any]) -> bool:
    """Whether a trial has a loss: on all folds, or what it would have come to when it was pruned."""
    return trial["cross_entropy"] is not None and math.isfinite(trial["cross_entropy"])


def _told(trial: dict[str, Any]) -> str:
    """The settings of a trial that was judged on all folds; what happened to another one, and its settings."""
    settings = printable(trial["settings"] or "").replace("--set ", "").replace("'", "")
    if trial["state"] == "complete":
        return settings
    words = [f"{trial['state']}:", printable(trial["sentence"] or ""), settings and f"({settings})"]
    return " ".join(word for word in words if word).replace(": (", " (")


def _interval(trial: dict[str, Any]) -> Number | None:
    if trial["low"] is None or trial["high"] is None or not judged(trial):
        return None
    return Number(trial["cross_entropy"], "nats", trial["low"], trial["high"])


_TRIALS: Titles = {
    "trial": ("trial", names, True),
    "cross_entropy": ("nats held out", nats, True),
    "interval": ("95 % interval", ends, True),
    "folds": ("folds", counts, False),
    "seconds": ("seconds", counts, False),
    "told": ("settings, or what happened", names, True),
}
_IMPORTANCE: Titles = {
    "setting": ("setting", names, True),
    "importance": ("share", digits.shares, True),
    "chance": ("by chance up to", digits.shares, True),
}
