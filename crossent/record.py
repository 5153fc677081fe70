"""Results as plain data: a number with its unit and interval, a table, a curve, and a record of them all.

A record is what every verb of crossent leaves and what a report is drawn from. It is JSON that can be read
in ten years and without this library: a ``format`` field, plain names, units beside every number.

    {"format": "crossent record 1", "kind": "evaluation", "title": …, "made": …,
     "numbers": {"cross_entropy": {"value": 0.07, "unit": "nats", "low": 0.05, "high": 0.1, "n": 360}},
     "tables":  {"per_class": {"class": […], "rows": […]}},
     "curves":  {"reliability": {"x": […], "y": […], "low": […], "high": […], …}},
     "facts":   {"rows": 360, …}}

JSON has no infinity and no NaN, and an infinite cross-entropy is a true answer here; so the three are written
as the strings ``"Infinity"``, ``"-Infinity"`` and ``"NaN"`` and read back as numbers wherever a number stands.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossent.errors import DataError
from crossent.files import replacing

FORMAT = "crossent record 1"
_NOT_IN_JSON = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_IN_NATS = {"nats": 1.0, "bits": math.log(2.0)}


@dataclass(frozen=True)
class Number:
    """A value with its unit, its 95 % interval where there is one, and the rows it stands on.

    >>> loss = Number(0.6931471805599453, "nats", low=0.5, high=0.9, n=100)
    >>> loss.to("bits").value
    1.0
    >>> print(loss, Number(1200, "rows"), Number(0.0826, "1"))
    0.693 nats (0.500 to 0.900) 1,200 rows 0.083
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    n: int | None = None

    def to(self, unit: str) -> Number:
        """Change nats into bits or back; any other change of unit is an error."""
        if unit == self.unit:
            return self
        if unit not in _IN_NATS or self.unit not in _IN_NATS:
            raise ValueError(f"cannot turn {self.unit} into {unit}: only nats and bits turn into one another.")
        rate = _IN_NATS[self.unit] / _IN_NATS[unit]
        low = None if self.low is None else self.low * rate
        high = None if self.high is None else self.high * rate
        return Number(self.value * rate, unit, low, high, self.n)

    def ending_at(self, most: float) -> Number:
        """The same with an interval that reaches no further than the truth can be."""
        return self if self.high is None else replace(self, high=min(self.high, most))

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3f} to {self.high:.3f})"
        whole = self.unit == "rows" and float(self.value).is_integer()
        unit = "" if self.unit == "1" else f" {self.unit}"
        return f"{self.value:{',.0f' if whole else '.3f'}}{unit}{interval}"


Table = dict[str, list[Any]]
"""Columns by name, all of one length; cells are text, numbers, truth values or None."""


@dataclass(frozen=True)
class Curve:
    """Points (x, y), with a 95 % band and the rows behind each point where there are any."""

    x: list[float]
    y: list[float]
    x_name: str
    y_name: str
    low: list[float] | None = None
    high: list[float] | None = None
    n: list[int] | None = None


@dataclass(frozen=True)
class Record(Mapping[str, Number]):
    """All that one command found out; as a mapping it gives its numbers by name.

    >>> record = Record("evaluation", "a test", numbers={"cross_entropy": Number(math.inf, "nats", n=3)})
    >>> record["cross_entropy"].value
    inf
    >>> Record.from_json(record.to_json()) == record
    True
    """

    kind: str
    title: str
    made: str = ""
    numbers: dict[str, Number] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Number:
        try:
            return self.numbers[name]
        except KeyError:
            raise KeyError(f"this record has no number {name!r}; it has {', '.join(self.numbers)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def to_json(self) -> str:
        """Write the record as JSON text."""
        plain = {
            "format": FORMAT,
            "kind": self.kind,
            "title": self.title,
            "made": self.made,
            "numbers": {name: _present(vars(number)) for name, number in self.numbers.items()},
            "tables": self.tables,
            "curves": {name: _present(vars(curve)) for name, curve in self.curves.items()},
            "facts": self.facts,
        }
        return json.dumps(_spell(plain), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record back from JSON text."""
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as trouble:
            raise DataError(f"this is not a record: it is not JSON ({trouble}).") from trouble
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            found = plain.get("format") if isinstance(plain, dict) else None
            raise DataError(
                f"this is not a record that this version reads: its 'format' should be {FORMAT!r} and is {found!r}."
            )
        try:
            return cls(
                kind=plain["kind"],
                title=plain["title"],
                made=plain["made"],
                numbers={name: Number(**_unspell(number)) for name, number in plain["numbers"].items()},
                tables={name: _unspell_table(table) for name, table in plain["tables"].items()},
                curves={name: Curve(**_unspell(curve)) for name, curve in plain["curves"].items()},
                facts=plain["facts"],
            )
        except (KeyError, TypeError, AttributeError) as trouble:
            raise DataError(f"this record is damaged: a part of it is missing or misnamed ({trouble!r}).") from trouble

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the record to a file, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record from a file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as trouble:
            raise DataError(f"cannot read the record {os.fspath(path)!r}: {trouble}.") from trouble
        except DataError as trouble:
            raise DataError(f"{os.fspath(path)!r}: {trouble}") from trouble


def _present(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _spell(value: Any) -> Any:
    """Spell out the numbers that JSON lacks, all the way down."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(name): _spell(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spell(inner) for inner in value]
    return value


def _unspell(fields: dict[str, Any]) -> dict[str, Any]:
    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(inner) for inner in value]
        return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value

    names = {"unit", "x_name", "y_name"}
    return {name: value if name in names else number(value) for name, value in fields.items()}


def _unspell_table(table: Table) -> Table:
    """A column of numbers gets its infinities back; a column that holds any other text stays text."""

    def numeric(column: list[Any]) -> bool:
        return any(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in column) or (
            bool(column) and all(cell in _NOT_IN_JSON or cell is None for cell in column)
        )

    def mend(column: list[Any]) -> list[Any]:
        text = any(isinstance(cell, str) and cell not in _NOT_IN_JSON for cell in column)
        if text or not numeric(column):
            return column
        return [_NOT_IN_JSON.get(cell, cell) if isinstance(cell, str) else cell for cell in column]

    return {name: mend(column) for name, column in table.items()}
