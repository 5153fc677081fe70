"""Rows of probabilities with their labels: checked once, at the door, so that no formula behind it has to.

A row of numbers is a prediction only if its entries lie in [0, 1], add up to 1 and have a label among the
classes. Whatever does not is refused with a sentence that names the row; nothing is clipped, dropped or
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.naming import class_text, name_columns, name_pair

SUM_TOLERANCE = 1e-3
"""How far from 1 a row may add up. A row whose sum is off by ε has a cross-entropy off by some ε nats,
which at 1e-3 is below what most test sets resolve; and probabilities stored in 16 bits or printed with four
decimals stay inside it, while logits, percentages and one-against-rest scores do not."""

ABOVE_ONE = 1e-6
"""How far above 1 an entry may lie: a few roundings of float32, which softmax leaves; it is read as 1."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The probabilities a model gave to n rows, and what came: a whole data set, or one batch of a larger one.

    ``probabilities`` is float64 (n, classes), one column per class; two classes have two columns, and a
    number in a range has (1 − p, p) with p the expected fraction of the range. ``log_probabilities``, of the same
    shape, is there when logarithms or logits came, so that nothing underflows on the way, and None otherwise.

    ``labels`` is int64 (n,), the column of the class that came; or float64 (n,), the share of the second of two
    classes, and for task "range" the fraction (value − low) / (high − low); or float64 (n, classes), a distribution
    per row. ``classes`` are their names as text, none for a range; ``rows`` are the row ids (n,); ``task`` is
    "binary", "multi-class" or "range", or "text": rows are documents, column 1 is the probability of the whole
    document and every label is 1. ``low`` and ``high`` are the range, in the target's own unit.

    Each of the following is None (or empty) where nothing was said: ``weights`` float64 (n,), what a row counts, 0
    or more; ``groups`` (n,), whole numbers or text, which rows belong together and are not independent; ``slices``, by
    name a text per row, (n,) of objects; ``bytes`` int64 (n,), the length of what the row predicted. ``source`` and
    ``split`` say where the rows came from; ``notes`` are sentences on how they were read.

    Raises DataError if the shapes of these do not belong together; their contents were looked at in ``from_arrays``.

    >>> rows = Predictions.from_arrays([0.9, 0.2, 0.6], [1, 0, 1])
    >>> rows.task, rows.classes, rows.probabilities[0].round(3).tolist(), rows.labels.tolist()
    ('binary', ['0', '1'], [0.1, 0.9], [1, 0, 1])
    >>> Predictions.from_arrays([[0.7, 0.2, 0.1]], ["dog"], classes=["cat", "dog", "hen"]).labels.tolist()
    [1]
    """

    probabilities: NDArray[np.float64]
    labels: NDArray[Any]
    classes: list[str]
    rows: NDArray[Any]
    task: str
    low: float | None = None
    high: float | None = None
    source: str | None = None
    split: str | None = None
    notes: tuple[str, ...] = ()
    log_probabilities: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None
    groups: NDArray[Any] | None = None
    slices: dict[str, NDArray[Any]] = field(default_factory=dict)
    bytes: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n, k = self.probabilities.shape
        shaped = {"labels": self.labels, "rows": self.rows, "weights": self.weights, "groups": self.groups}
        shaped |= {"bytes": self.bytes} | {f"slices[{name!r}]": cells for name, cells in self.slices.items()}
        for name, cells in shaped.items():
            soft = name == "labels" and self.labels.dtype.kind == "f" and self.labels.shape == (n, k)
            if cells is not None and cells.shape != (n,) and not soft:
                raise DataError(f"there are {n:,} rows of probabilities, and {name} has the shape {cells.shape}.")
        logs = self.log_probabilities
        if logs is not None and logs.shape != (n, k):
            raise DataError(f"probabilities are {(n, k)} and their logarithms {logs.shape}: one of each is needed.")

    def __len__(self) -> int:
        return int(self.probabilities.shape[0])

    @property
    def soft(self) -> bool:
        """Whether labels are distributions (or fractions of a range), not the class that came."""
        return self.labels.dtype.kind == "f"

    @classmethod
    def from_arrays(
        cls,
        probabilities: Any,
        labels: Any,
        classes: Sequence[Any] | None = None,
        rows: Any = None,
        task: str | None = None,
        low: float | None = None,
        high: float | None = None,
        *,
        columns: Sequence[str] | None = None,
        normalise: bool = False,
        source: str | None = None,
        split: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> Predictions:
        """Check arrays, tensors, lists or frames and put them into one form.

        ``probabilities`` (n,) are those of the second class (or the expected fraction of a range), (n,
        classes) one column per class. ``labels`` (n,) are class names, or, where no name is a whole number,
        also the columns' indices; for ``task="range"`` they are values between ``low`` and ``high`` (0 and 1
        unless said). The names come from ``classes``, or else from ``columns`` or a frame's own column names
        (``p_cat`` or ``cat`` for "cat"). ``normalise`` divides each row by its sum, for scores that do not
        add up to 1.

        Raises DataError, a sentence, for anything that is not a probability or has no label. Cost: O(n ·
        classes).
        """
        _same_index(probabilities, labels)
        if columns is None and hasattr(probabilities, "columns"):
            columns = [str(name) for name in probabilities.columns]
        p, y = as_array(probabilities), as_array(labels)
        if p.ndim == 2 and p.shape[1] == 1:
            p = p[:, 0]
        if p.ndim not in (1, 2):
            raise DataError(f"the probabilities should be (rows,) or (rows, classes) and have shape {p.shape}.")
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim != 1:
            raise DataError(
                f"the labels should be one per row, shape (rows,), and have shape {y.shape}. If they are "
                "one-hot, pass labels.argmax(axis=1)."
            )
        if len(p) != len(y):
            raise DataError(
                f"there are {len(p):,} rows of probabilities and {len(y):,} labels: give one label per row."
            )
        if not len(y):
            raise DataError("there are no rows to measure.")
        ids = _ids(rows, len(y))
        shown = [str(name) for name in (columns or classes or range(p.shape[-1]))] if p.ndim == 2 else [""]
        p = _probabilities(p, ids, shown, normalise)
        if normalise and p.ndim == 2:
            notes = (*notes, "Each row of probabilities was divided by its sum before anything was measured.")
        if task == "range":
            if p.ndim == 2:
                raise DataError("for a number in a range give one probability per row: the expected fraction of it.")
            low, high = 0.0 if low is None else float(low), 1.0 if high is None else float(high)
            fraction = _fractions(y, ids, low, high)
            both = np.stack([1 - p, p], axis=1)
            return cls(both, fraction, [], ids, "range", low, high, source, split, notes)
        if task not in (None, "binary", "multi-class"):
            raise DataError(f"task should be 'binary', 'multi-class' or 'range', and is {task!r}.")
        texts, codes, first = _texts(y, ids)
        if p.ndim == 1:
            names, index = name_pair(texts, first, classes, columns[0] if columns else None)
            p = np.stack([1 - p, p], axis=1)
        else:
            names, index = name_columns(texts, first, p.shape[1], classes, columns)
        found = "binary" if p.shape[1] == 2 else "multi-class"
        if task is not None and task != found:
            raise DataError(f"the task is said to be {task!r}, but there are {p.shape[1]} classes.")
        return cls(p, index[codes], names, ids, found, None, None, source, split, notes)


def as_array(values: Any) -> NDArray[Any]:
    """Turn a tensor, frame, series or list into an array; 16-bit floats of a tensor become float32."""
    if hasattr(values, "detach"):  # a tensor: NumPy has no bfloat16
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
        return np.asarray(values.numpy())
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    if isinstance(values, np.ndarray):
        return values
    values = list(values)
    if any(value is None or isinstance(value, str) for value in values):
        return np.array(values, dtype=object)
    return np.asarray(values)


def _same_index(probabilities: Any, labels: Any) -> None:
    mine: Any = getattr(probabilities, "index", None)
    theirs: Any = getattr(labels, "index", None)
    if hasattr(mine, "equals") and hasattr(theirs, "equals") and not mine.equals(theirs):
        raise DataError(
            "the probabilities and the labels have different indices, so that rows may not belong together. "
            "Sort them alike, or drop both indices with reset_index(drop=True)."
        )


def _ids(rows: Any, n: int) -> NDArray[Any]:
    if rows is None:
        return np.arange(n)
    ids = as_array(rows)
    if ids.shape != (n,):
        raise DataError(f"there are {n:,} rows and {ids.size:,} row ids: give one id per row.")
    kept, times = np.unique(ids.astype(str) if ids.dtype == object else ids, return_counts=True)
    if kept.size < n:
        raise DataError(
            "row ids should name each row once, and these come several times: "
            f"{some(kept[times > 1].tolist())}. Remove the copies: a row counted twice makes every interval "
            "too narrow."
        )
    return ids


def _probabilities(p: NDArray[Any], ids: NDArray[Any], columns: list[str], normalise: bool) -> NDArray[np.float64]:
    """Check that each row is a distribution; the two tolerances have their reasons above."""
    try:
        p = p.astype(np.float64)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"the probabilities should be numbers, and some are not: {trouble}.") from trouble
    grid = p if p.ndim == 2 else p[:, None]

    def place(where: NDArray[np.bool_]) -> str:
        i, j = np.unravel_index(int(np.argmax(where)), where.shape)
        column = f", column {columns[j]!r}" if columns[j] else ""
        return f"row {ids[i]}{column}: {grid[i, j]:.6g} ({int(where.any(axis=1).sum()):,} rows in all)"

    if (bad := ~np.isfinite(grid)).any():
        raise DataError(f"every probability should be a number, and here is one that is not: {place(bad)}.")
    scores = normalise and p.ndim == 2
    most = math.inf if scores else 1 + ABOVE_ONE
    if (bad := (grid < 0) | (grid > most)).any():
        raise DataError(
            f"a probability lies between 0 and 1, and here is one that does not: {place(bad)}. {_guess(grid)}"
        )
    if p.ndim == 1:
        return np.minimum(p, 1.0)
    total = p.sum(axis=1)
    if scores:
        if (total == 0).any():
            raise DataError(f"row {ids[np.argmin(total)]} is all zeros and cannot be divided by its sum.")
        return p / total[:, None]
    if (off := np.abs(total - 1) > SUM_TOLERANCE).any():
        i = int(np.argmax(off))
        raise DataError(
            f"the probabilities of a row should add up to 1 (within {SUM_TOLERANCE}), and those of row "
            f"{ids[i]} add up to {total[i]:.6g} ({int(off.sum()):,} rows in all). If a column is missing, "
            "add it; if these are scores that only need dividing by their sum, ask for that with "
            "normalise=True (--normalise)."
        )
    return np.minimum(p, 1.0)


def _guess(grid: NDArray[np.float64]) -> str:
    """Say what numbers outside [0, 1] most likely are."""
    if grid.min() >= 0 and grid.max() <= 100 + ABOVE_ONE:
        return "If these are percentages, divide them by 100."
    if grid.max() <= 0:
        return "If these are log-probabilities, take their exponential first."
    if grid.shape[1] == 1:
        return "If these are logits, turn them into probabilities first: 1 / (1 + exp(-logit))."
    return "If these are logits, turn them into probabilities first: softmax over the columns."


def _fractions(y: NDArray[Any], ids: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise DataError(f"a range needs a low end below its high end; here they are {low} and {high}.")
    try:
        value = y.astype(np.float64)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"the labels of a range should be numbers, and some are not: {trouble}.") from trouble
    if (bad := np.isnan(value)).any():
        raise DataError(
            f"row {ids[np.argmax(bad)]} has no label ({int(bad.sum()):,} rows in all). Leave such rows out."
        )
    if (bad := (value < low) | (value > high)).any():
        i = int(np.argmax(bad))
        raise DataError(
            f"labels should lie in the range {low:g} to {high:g}, and row {ids[i]} has {value[i]:g} "
            f"({int(bad.sum()):,} rows in all). Give the range with low= and high=, or leave the row out."
        )
    return np.clip((value - low) / (high - low), 0.0, 1.0)  # the clip takes away a rounding, never a value


def _texts(y: NDArray[Any], ids: NDArray[Any]) -> tuple[list[str], NDArray[np.int64], dict[str, Any]]:
    """The distinct labels as text, for each row which of them it has, and the row where each comes first."""
    if y.dtype.kind == "f":
        missing = np.isnan(y)
    elif y.dtype == object:
        missing = np.array([value is None or value != value or str(value) in ("", "<NA>", "NaT") for value in y])
    else:
        missing = np.zeros(y.shape, bool)
    if missing.any():
        raise DataError(
            f"row {ids[np.argmax(missing)]} has no label ({int(missing.sum()):,} rows in all). Leave such "
            "rows out: what did not come cannot be measured."
        )
    if y.dtype.kind == "f" and (bad := y != np.round(y)).any():
        i = int(np.argmax(bad))
        raise DataError(
            f"a label should be a class, and row {ids[i]} has {y[i]:g}. For a number in a range say so: "
            "task='range', with low= and high=."
        )
    if y.dtype == object:
        y = np.array([class_text(value) for value in y], dtype=str)
    kept, start, codes = np.unique(y, return_index=True, return_inverse=True)
    texts = [class_text(value) for value in kept.tolist()]
    return texts, codes.astype(np.int64), dict(zip(texts, ids[start].tolist(), strict=True))
