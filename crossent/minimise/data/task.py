"""What is to be predicted: two classes, several, or a number in a range. The target's values say which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from crossent.errors import DataError, some

Kind = Literal["binary", "multi-class", "range"]
MOST_CLASSES_OF_WHOLE_NUMBERS = 20


@dataclass(frozen=True)
class Task:
    """The kind of target, the names of its classes or the ends of its range, and a sentence that says so."""

    kind: Kind
    classes: tuple[str, ...]
    found: str
    low: float = 0.0
    high: float = 1.0

    @property
    def columns(self) -> int:
        """How many logits a row has: a range is two, no and yes."""
        return len(self.classes) if self.classes else 2

    def encode(self, y: Any, rows: np.ndarray, source: str) -> np.ndarray:
        """Class indices (n,) int64, shares (n, classes), or for a range fractions (n,), both float64.

        Unknown labels are refused by name.
        """
        if getattr(y, "ndim", 1) == 2:
            if y.shape[1] != len(self.classes):
                raise DataError(
                    f"{source}: labels have {y.shape[1]} columns, and the task {len(self.classes)} classes."
                )
            return np.asarray(y, dtype=np.float64)
        if self.kind == "range":
            try:
                values = np.asarray(y, dtype=np.float64)
            except (TypeError, ValueError) as trouble:
                raise DataError(f"{source}: the target is a number in a range, and here it holds text.") from trouble
            outside = ~((values >= self.low) & (values <= self.high))
            if outside.any():
                at = int(np.flatnonzero(outside)[0])
                raise DataError(
                    f"{source}: {int(outside.sum()):,} values of the target lie outside the range {self.low:g} to "
                    f"{self.high:g}, first at row {rows[at]}: {values[at]:g}. Pass --range LOW HIGH that holds "
                    "them all."
                )
            return (values - self.low) / (self.high - self.low)
        place = {name: index for index, name in enumerate(self.classes)}
        names = [class_name(value) for value in y]
        unknown = [i for i, name in enumerate(names) if name not in place]
        if unknown:
            strangers = sorted({names[i] for i in unknown})
            raise DataError(
                f"{source}: {len(unknown):,} rows have a class that the training data never show: {some(strangers)} "
                f"(first at row {rows[unknown[0]]}). The model knows {some(list(self.classes), 12)}. Add rows of it to "
                "the training data, or leave those rows out."
            )
        return np.array([place[name] for name in names], dtype=np.int64)

    def target(self, encoded: np.ndarray) -> Tensor:
        """What a network learns: labels (n,) int64, shares (n, classes) float32, or for a range the share (n,)."""
        labels = torch.from_numpy(encoded)
        return labels.float() if labels.is_floating_point() else labels


def class_name(value: Any) -> str:
    """The name of a class: 3 and 3.0 are one class, as are True and numpy's True."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def look(
    y: Any,
    source: str,
    target: str,
    kind: str | None = None,
    limits: tuple[float, float] | None = None,
    names: tuple[str, ...] = (),
) -> Task:
    """Look at the target and say what it is; ``kind`` ("classes" or "range") and ``limits`` overrule the look.

    ``names`` are the classes of labels in several columns.
    """
    if kind not in (None, "classes", "range"):
        raise DataError(f"the task must be 'classes' or 'range'; got {kind!r}.")
    if names:
        if kind == "range" or limits is not None:
            raise DataError(f"{source}: a number in a range is one column, and {target!r} are {len(names)}.")
        found = f"{target!r} holds shares of {len(names)} classes ({some(list(names), 12)}): soft labels."
        return Task("binary" if len(names) == 2 else "multi-class", names, found)
    values = np.asarray(y)
    refuse_missing(values, source, target)
    numeric = values.dtype.kind in "iuf"
    if values.dtype.kind == "O":
        numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        values = values.astype(np.float64) if numeric else np.array([class_name(v) for v in values], dtype=object)
    distinct = np.unique(values)
    if len(distinct) == 1:
        raise DataError(
            f"{source}: the target {target!r} is constant, {class_name(distinct[0])!r} in all {len(values):,} rows. "
            "There is nothing to learn; check that --target names the right column."
        )
    whole = numeric and bool(np.all(distinct == np.floor(distinct)))
    as_range = kind == "range" or limits is not None
    if kind is None and limits is None:
        as_range = numeric and len(distinct) > 2 and not (whole and len(distinct) <= MOST_CLASSES_OF_WHOLE_NUMBERS)
    if as_range:
        return _range(values, numeric, source, target, limits)
    if len(distinct) > 2 and len(distinct) > 0.5 * len(values):
        raise DataError(
            f"{source}: the target {target!r} has {len(distinct):,} different values in {len(values):,} rows, for "
            f"example {some([repr(class_name(v)) for v in distinct[:3]], 3)}. That looks like free text or an id, not "
            "like classes. Name another column with --target."
        )
    ordered = [class_name(v) for v in distinct]
    if len(ordered) == 2:
        found = f"{target!r} holds two classes, {ordered[0]!r} and {ordered[1]!r}: binary classification."
    else:
        found = f"{target!r} holds {len(ordered)} classes ({some(ordered, 12)}): multi-class classification."
        if numeric and kind is None:
            found += " (If they are amounts rather than names, pass --task range.)"
    return Task("binary" if len(ordered) == 2 else "multi-class", tuple(ordered), found)


def _range(values: np.ndarray, numeric: bool, source: str, target: str, limits: tuple[float, float] | None) -> Task:
    if not numeric:
        raise DataError(f"{source}: a range needs numbers, and the target {target!r} holds text. Pass --task classes.")
    least, most = float(values.min()), float(values.max())
    low, high = limits or (least, most)
    if not -np.inf < low < high < np.inf:
        raise DataError(f"a range needs a low end below its high end, both finite; got {low:g} and {high:g}.")
    said = "as given" if limits else "as seen in the data; pass --range LOW HIGH if you know better"
    found = f"{target!r} holds numbers from {least:g} to {most:g}: bounded regression on {low:g} to {high:g} ({said})."
    return Task("range", (), found, low, high)


def refuse_missing(values: np.ndarray, source: str, target: str) -> None:
    """Refuse a target that is not there in every row, and say in which it is not."""
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
    elif values.dtype.kind == "O":
        bad = np.array([v == "" if isinstance(v, str) else str(v) in ("None", "nan", "<NA>", "NaT") for v in values])
    elif values.dtype.kind == "U":
        bad = values == ""
    elif values.dtype.kind == "M":
        raise DataError(f"{source}: the target {target!r} holds dates. Turn them into numbers or classes first.")
    else:
        return
    if bad.any():
        at = np.flatnonzero(bad)
        raise DataError(
            f"{source}: the target {target!r} is missing, NaN or infinite in {len(at):,} rows, first at row "
            f"{some(at.tolist())}. A row without a label can neither teach nor test: fill them in or leave them out. "
            "(In a CSV an empty cell, NA, N/A, NaN, None and null count as missing.)"
        )


def refuse_text(y: Any, learns: str) -> None:
    """Refuse labels that are text and no numbers; ``learns`` is a sentence that says what is wanted."""
    values = np.asarray(y)
    for value in values.ravel() if values.dtype.kind in "OU" else ():
        try:
            float(value if isinstance(value, str) else 0)
        except ValueError as trouble:
            raise DataError(f"y: {trouble}. {learns}") from trouble
