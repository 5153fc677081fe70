"""The tables of a record, made ready to be read: titled, ordered, rounded, cut where nobody would read on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from crossent.record import Number, Record, Table
from crossent.report import digits
from crossent.report.label import printable


@dataclass(frozen=True)
class Column:
    """A column of finished cells; ``essential`` ones stay where there is room for few."""

    title: str
    cells: list[str]
    numeric: bool
    essential: bool
    explained: str = ""
    """Where on the page it is explained: an anchor."""


@dataclass(frozen=True)
class Sheet:
    """A finished table: its columns, and a sentence about rows that were left out, if any were."""

    columns: list[Column]
    left_out: str = ""

    @property
    def rows(self) -> list[list[str]]:
        """The cells by rows."""
        return [list(row) for row in zip(*(column.cells for column in self.columns), strict=True)]


def names(values: list[Any]) -> list[str]:
    """Names stay as they are, whole numbers too; labels in a range are numbers like any other."""
    numbers = any(isinstance(value, float) for value in values)
    if numbers and not _worded(values):
        return digits.column(values)
    return [printable(value) for value in values]


def counts(values: list[Any]) -> list[str]:
    """Numbers of rows in threes; sums of weights to a tenth."""
    whole = all(value is None or float(value).is_integer() for value in values)
    return ["–" if value is None else f"{value:,.0f}" if whole else f"{value:,.1f}" for value in values]


def nats(values: list[Any]) -> list[str]:
    """Numbers with as many decimals as their neighbours; undefined ones are a dash."""
    return digits.column([None if value is None or math.isnan(value) else value for value in values])


def ends(values: list[Number | None]) -> list[str]:
    """The ends of the intervals of numbers; a dash where there is none."""
    return [("" if cell is None else digits.interval(cell)) or "–" for cell in values]


def _yes(values: list[Any]) -> list[str]:
    return ["yes" if value else "" for value in values]


def _worded(values: list[Any]) -> bool:
    return any(isinstance(value, str) for value in values)


# name in the record → (title for a reader, how its cells are written, whether it is essential)
Titles = dict[str, tuple[str, Callable[[list[Any]], list[str]], bool]]
_PER_CLASS: Titles = {
    "class": ("class", names, True),
    "rows": ("rows", counts, True),
    "share": ("share", digits.shares, False),
    "cross_entropy": ("cross-entropy", nats, True),
    "skill": ("skill", digits.shares, False),
    "kl_divergence": ("KL", nats, False),
    "miscalibration": ("miscalibration", nats, False),
    "mean_probability": ("mean probability", digits.shares, False),
    "recall": ("recall", digits.shares, True),
    "precision": ("precision", digits.shares, True),
    "brier": ("Brier", digits.column, False),
    "impossible_rows": ("impossible rows", counts, False),
}
_COSTLIEST: Titles = {
    "row": ("row", names, True),
    "label": ("label", names, True),
    "predicted": ("predicted", names, True),
    "probability": ("P(label)", digits.column, True),
    "cross_entropy": ("cross-entropy", nats, True),
    "suspect": ("label suspect", _yes, False),
}
_SLICES: Titles = {
    "column": ("by", names, False),
    "slice": ("slice", names, True),
    "rows": ("rows", counts, True),
    "share": ("share of rows", digits.shares, False),
    "share_of_loss": ("share of the loss", digits.shares, True),
    "cross_entropy": ("cross-entropy", nats, True),
    "interval": ("95 % interval", names, False),
    "skill": ("skill", digits.shares, True),
    "miscalibration": ("miscalibration", nats, False),
    "kl_divergence": ("KL", nats, False),
    "bits_per_byte": ("bits per byte", digits.column, False),
    "accuracy": ("accuracy", digits.shares, False),
    "rmse": ("RMSE", digits.column, False),
    "impossible_rows": ("impossible rows", counts, False),
}
_LEFT: Titles = {
    "part": ("where", names, True),
    "nats": ("nats", nats, True),
    "interval": ("95 % interval", names, False),
    "meaning": ("what it is", names, True),
}
_CALIBRATORS: Titles = {
    "name": ("calibrator", names, True),
    "cross_entropy": ("cross-entropy", nats, True),
    "change": ("change", names, True),
    "chosen": ("chosen", _yes, True),
}


def per_class(record: Record, most: int) -> Sheet | None:
    """The classes in the record's order; beyond ``most`` of them the most expensive ones, dearest first."""
    table = record.tables.get("per_class", {})
    total = len(next(iter(table.values()), []))
    table = _without_impossible(table)
    if total > most:
        table = select(table, _dearest(table)[:most])
        return sheet(table, _PER_CLASS, f"The {most} dearest of {total:,} classes; the record holds all.")
    return sheet(table, _PER_CLASS)


def slices(record: Record, most: int) -> Sheet | None:
    """The slices of the rows, those with the largest share of the loss first, at most ``most`` of them."""
    table = record.tables.get("slices", {}) if record.kind != "comparison" else {}
    total = len(next(iter(table.values()), []))
    carried = [-math.inf if share is None else share for share in table.get("share_of_loss", [])]
    table = select(table, sorted(range(total), key=lambda i: -carried[i])[:most])
    table = _without_impossible(table)
    if len(set(table.get("column", []))) < 2:
        table.pop("column", None)
    table["interval"] = intervals(table)
    left_out = f"The {most} that carry most of {total:,} slices; the record holds all." if total > most else ""
    return sheet(table, _SLICES, left_out)


def _without_impossible(table: Table) -> Table:
    """Leave out the column of impossible rows where there are none."""
    if any(table.get("impossible_rows", [])):
        return table
    return {name: column for name, column in table.items() if name != "impossible_rows"}


def intervals(table: Table, low: str = "low", high: str = "high") -> list[str | None]:
    """The ends of intervals as text, in one column."""

    def cell(a: float | None, b: float | None) -> str | None:
        if a is None or b is None or not math.isfinite(b - a):
            return None
        places = digits.decimals((a + b) / 2, a, b)
        return f"{digits.spell(a, places)} to {digits.spell(b, places)}"

    return [cell(a, b) for a, b in zip(table.get(low, []), table.get(high, []), strict=False)]


def costliest(record: Record, most: int) -> Sheet | None:
    """The rows that cost most, dearest first, at most ``most`` of them."""
    found = sheet(select(record.tables.get("costliest", {}), range(most)), _COSTLIEST)
    if found is None:
        return None
    linked = [replace(c, explained="suspicion") if c.title == _COSTLIEST["suspect"][0] else c for c in found.columns]
    return replace(found, columns=linked)


def left(record: Record) -> Sheet | None:
    """Where the remaining nats are, or None."""
    found = record.tables.get("left", {})
    bounds = zip(found.get("low", []), found.get("high", []), strict=False)
    return sheet({**found, "interval": [_change(low, high) for low, high in bounds]}, _LEFT)


def calibrators(record: Record) -> Sheet | None:
    """The calibrations that were tried, or None; the interval of their change against none in one column."""
    tried = record.tables.get("calibrators", {})
    bounds = zip(tried.get("low", []), tried.get("high", []), strict=False)
    return sheet({**tried, "change": [_change(low, high) for low, high in bounds]}, _CALIBRATORS)


def _change(low: float | None, high: float | None) -> str | None:
    if low is None or high is None or low == high:
        return None  # no calibration against itself
    places = digits.decimals(low, low, high)
    return f"{digits.spell(low, places)} to {digits.spell(high, places)}"


def _dearest(table: Table) -> list[int]:
    """Indices of the rows by cross-entropy, highest first; undefined ones last."""
    losses = table.get("cross_entropy", [])

    def dearness(index: int) -> float:
        loss = losses[index]
        return -math.inf if loss is None or math.isnan(loss) else loss

    return sorted(range(len(losses)), key=dearness, reverse=True)


def select(table: Table, indices: list[int] | range) -> Table:
    """Give some of a table's rows; those beyond its end are none."""
    return {name: [column[i] for i in indices if i < len(column)] for name, column in table.items()}


def sheet(table: Table, titles: Titles, left_out: str = "") -> Sheet | None:
    """Finish the columns that have a title, in the titles' order; None where there is nothing to show."""
    columns = [
        Column(title, write(table[name]), write is not _yes and not _worded(table[name]), essential)
        for name, (title, write, essential) in titles.items()
        if name in table
    ]
    return Sheet(columns, left_out) if columns and columns[0].cells else None
