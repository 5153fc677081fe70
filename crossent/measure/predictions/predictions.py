"""Rows of probabilities with their labels: checked once, at the door, so that no formula behind it has to.

A row of numbers is a prediction only if its entries lie in [0, 1], add up to 1 and have a label among the
classes. Whatever does not is refused with a sentence that names the row; nothing is clipped, dropped or
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.predictions.columns import (
    MOST_WEIGHT,
    as_array,
    column,
    column_names,
    fractions,
    row_bytes,
    row_groups,
    row_ids,
    row_weights,
    texts,
)
from crossent.measure.predictions.form import (
    BFLOAT16_TOLERANCE,
    FORMS,
    SUM_TOLERANCE,
    Place,
    as_numbers,
    infer,
    log_probabilities,
    logits,
    probabilities,
    unclear,
)
from crossent.measure.predictions.naming import Vocabulary, matching_order
from crossent.measure.predictions.truth import TRUTHS, Coded, coded, shares
from crossent.measure.predictions.truth import infer as infer_truth

TASKS = ("binary", "multi-class", "range")
"""What can be asked for; "text", for documents, is what sources give that hold nothing else."""

_EVIDENCE = {
    "log-probabilities": "the exponentials of a row add up to 1",
    "logits": "they have both signs, and their rows do not add up to 1; softmax was applied",
}


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
        form: str | None = None,
        truth: str | None = None,
        weights: Any = None,
        groups: Any = None,
        slices: Mapping[str, Any] | None = None,
        bytes: Any = None,
        columns: Sequence[str] | None = None,
        normalise: bool = False,
        source: str | None = None,
        split: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> Predictions:
        """Check arrays, tensors, lists or frames and put them into one form.

        ``probabilities`` (n,) are those of the second class (or the expected fraction of a range), (n,
        classes) one column per class; ``form`` says if they are "log-probabilities" or "logits" (form.py tells what is
        found out unasked). ``labels`` (n,) are class names, or, where no name is a whole number, also the columns'
        indices; (n, classes) one-hot, shares or counts, which ``truth`` can name (truth.py); for ``task="range"`` they
        are values between ``low`` and ``high`` (0 and 1 unless said). The names come from ``classes``, or else from
        ``columns`` or a frame's own column names (``p_cat`` or ``cat`` for "cat"). ``weights``, ``groups``, ``bytes``
        (n,) and ``slices``, by name (n,), are as in the class. ``normalise`` divides each row by its sum, for
        scores that do not add up to 1.

        Raises DataError, a sentence, for anything that is not a probability or has no label. Cost: O(n ·
        classes).

        >>> rows = Predictions.from_arrays([[2.0, -1.5, 0.0]], [[3, 1, 0]], slices={"city": ["Oslo"]})
        >>> rows.log_probabilities.round(2).tolist(), rows.labels.tolist(), len(rows.notes)
        ([[-0.15, -3.65, -2.15]], [[0.75, 0.25, 0.0]], 2)
        """
        beside = {"weights": weights, "groups": groups, "bytes": bytes}
        cut = {f"slices[{name!r}]": cells for name, cells in (slices or {}).items()}
        same_index({"the probabilities": probabilities, "the labels": labels, "row ids": rows, **beside, **cut})
        p, y = as_array(probabilities), as_array(labels)
        columns = column_names(probabilities) if columns is None else columns
        label_columns = column_names(labels)
        bfloat16 = str(getattr(probabilities, "dtype", "")).endswith("bfloat16")
        if p.ndim == 2 and p.shape[1] == 1:
            p = p[:, 0]
        if p.ndim not in (1, 2):
            flat = f" If the last axis is that of classes, flatten the others: p.reshape(-1, {p.shape[-1]})."
            raise DataError(
                f"the probabilities should be (rows,) or (rows, classes) and have shape {p.shape}.{flat * (p.ndim > 2)}"
            )
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim not in (1, 2):
            raise DataError(f"the labels should be (rows,) or (rows, classes) and have shape {y.shape}.")
        if len(p) != len(y):
            raise DataError(
                f"there are {len(p):,} rows of probabilities and {len(y):,} labels: give one label per row."
            )
        if not len(y):
            raise DataError("there are no rows to measure.")
        tolerance = BFLOAT16_TOLERANCE if bfloat16 else SUM_TOLERANCE
        door = Door(classes, task, low, high, form, truth, columns, label_columns, normalise, tolerance)
        door.notes.extend(notes)
        beside = {name: None if cells is None else column(cells, len(y), name) for name, cells in beside.items()}
        cut = {name: column(cells, len(y), f"slices[{name!r}]") for name, cells in (slices or {}).items()}
        found = door.admit(p, y, row_ids(rows, len(y)), **beside, slices=cut, source=source, split=split)
        door.close()
        return found

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put the batches of one data set together again; the last one knows the names of the classes.

        >>> half = [Predictions.from_arrays([p], [1]) for p in (0.5, 0.25)]
        >>> Predictions.concatenate(half).probabilities[:, 1].tolist()
        [0.5, 0.25]
        """
        first, last = parts[0], parts[-1]
        if len(parts) == 1:
            return first

        def joined(cells: Sequence[NDArray[Any] | None]) -> Any:
            there = [cell for cell in cells if cell is not None]
            return np.concatenate(there) if there else None

        return replace(
            last,
            probabilities=joined([part.probabilities for part in parts]),
            labels=joined([part.labels for part in parts]),
            rows=_ids_joined([part.rows for part in parts]),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            log_probabilities=joined([part.log_probabilities for part in parts]),
            weights=joined([part.weights for part in parts]),
            groups=joined([part.groups for part in parts]),
            slices={name: joined([part.slices[name] for part in parts]) for name in first.slices},
            bytes=joined([part.bytes for part in parts]),
        )


class Door:
    """Checks rows on their way in, batch after batch, by what the first of them decided.

    What the numbers are (``form``), what the labels are (``truth``), which column is which class: each is said, or read
    off the first batch, and from then on it holds. A later batch that does not fit is refused, never read another way,
    so that a data set is worth the same however it is cut into batches.

    The arguments are those of ``Predictions.from_arrays``.
    """

    def __init__(
        self,
        classes: Sequence[Any] | None = None,
        task: str | None = None,
        low: float | None = None,
        high: float | None = None,
        form: str | None = None,
        truth: str | None = None,
        columns: Sequence[str] | None = None,
        label_columns: Sequence[str] | None = None,
        normalise: bool = False,
        tolerance: float = SUM_TOLERANCE,
    ) -> None:
        for name, given, known in (("form", form, FORMS), ("truth", truth, TRUTHS), ("task", task, TASKS)):
            if given is not None and given not in known:
                raise DataError(
                    f"{name} should be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}, and is {given!r}."
                )
        if normalise and form not in (None, "probabilities"):
            raise DataError(f"only probabilities can be divided by their sum, and the form is {form!r}.")
        self.classes, self.task, self.columns, self.label_columns = classes, task, columns, label_columns
        self.low, self.high, self.form, self.truth, self.normalise = low, high, form, truth, normalise
        self.tolerance = tolerance
        self.notes: list[str] = []
        self.rows, self.weight = 0, 0.0
        self._named = form is not None
        self._vocabulary: Vocabulary | None = None
        if task == "range":
            self.low, self.high = 0.0 if low is None else float(low), 1.0 if high is None else float(high)
            if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
                raise DataError(
                    f"a range needs a low end below its high end; here they are {self.low} and {self.high}."
                )

    def admit(
        self,
        p: NDArray[Any],
        y: NDArray[Any] | Coded,
        ids: NDArray[Any],
        place: Place | None = None,
        *,
        weights: Any = None,
        groups: Any = None,
        slices: Mapping[str, Any] | None = None,
        bytes: Any = None,
        source: str | None = None,
        split: str | None = None,
    ) -> Predictions:
        """Check one batch; raise DataError, a sentence, for the first thing that is wrong with it."""
        place = place or (lambda i: f"row {ids[i]}")
        both, logs = self._form(p, place)
        k = both.shape[1]
        counted = None
        if self.task == "range":
            if p.ndim == 2:
                raise DataError("for a number in a range give one probability per row: the expected fraction of it.")
            labels = fractions(y, place, self.low or 0.0, 1.0 if self.high is None else self.high)
            names, task = [], "range"
        else:
            task = "binary" if k == 2 else "multi-class"
            if self.task not in (None, task):
                raise DataError(f"the task is said to be {self.task!r}, but there are {k} classes.")
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(k, p.ndim == 1, self.classes, self.columns)
            labels, counted = self._labels(y, k, place)
            names = self._vocabulary.names
        w = row_weights(weights, place)
        if w is not None and not w.all():
            self._say("Some rows have weight 0 and count for nothing.")
        if counted is not None:
            w = counted if w is None else w * counted
        self.rows += len(both)
        self.weight += float(len(both) if w is None else w.sum())
        return Predictions(
            both, labels, names, ids, task, *((self.low, self.high) if task == "range" else (None, None)),
            source, split, tuple(self.notes), logs, w, None if groups is None else row_groups(groups, place),
            {name: texts(cells) for name, cells in (slices or {}).items()},
            None if bytes is None else row_bytes(bytes, place),
        )  # fmt: skip

    def close(self) -> None:
        """Say what only the whole can show: that there was nothing in it."""
        if not self.rows:
            raise DataError("there are no rows to measure.")
        if not self.weight > 0:
            raise DataError(
                f"all weights are 0, or below {MOST_WEIGHT**-2:g}, so that nothing is left to measure: a row that "
                "counts weighs more."
            )
        if self.weight < 1 / MOST_WEIGHT:
            raise DataError(
                f"all weights together are {self.weight:g}, and below {1 / MOST_WEIGHT:g} their third powers are no "
                "numbers any more. Multiply all of them by one number: only their proportions matter."
            )

    def join(self, other: Door) -> None:
        """Take what another door, opened like this one, let in of the rows that come next."""
        for note in other.notes:
            self._say(note)
        self.rows += other.rows
        self.weight += other.weight
        if self._vocabulary is not None and other._vocabulary is not None:
            self._vocabulary.join(other._vocabulary)

    def _say(self, note: str | None) -> None:
        if note and note not in self.notes:
            self.notes.append(note)

    def _form(self, p: NDArray[Any], place: Place) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        p = np.asfortranarray(as_numbers(p))  # one class after the other in memory: each is then read in one go
        named = self.columns if self.columns is not None else self.classes
        shown = [str(name) for name in (range(p.shape[-1]) if named is None else named)] if p.ndim == 2 else [""]
        if not self._named and not self.normalise:
            found = infer(p, self.tolerance)
            if self.form is None:
                if found is None:
                    raise unclear(p)
                self.form = found
                if found != "probabilities":
                    self._say(f"The numbers were taken for {found}: {_EVIDENCE[found]}.")
            elif self.form == "logits" and found == "probabilities" and p.ndim == 2:
                raise DataError(
                    f"the first rows are logits, and rows from {place(0)} on add up to 1 as probabilities do: one "
                    "file holds one kind of number. Write them alike, or name the form (--form)."
                )
        if self.form == "logits":
            logs = logits(p, place, shown)
        elif self.form == "log-probabilities":
            logs, note = log_probabilities(p, place, shown, self.tolerance)
            self._say(note)
        else:
            both, note = probabilities(p, place, shown, scores=self.normalise, tolerance=self.tolerance)
            self._say(note)
            return both, None
        return np.exp(logs), logs

    def _labels(self, y: NDArray[Any] | Coded, k: int, place: Place) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
        assert self._vocabulary is not None
        several = not isinstance(y, Coded) and y.ndim == 2
        if self.truth in (None, "class") and not several:
            words, table, codes, first = coded(y, place)
            places = self._vocabulary.places(words, lambda text: place(first(text)))
            self._say(self._vocabulary.note)
            return places[table][codes], None
        if isinstance(y, Coded):
            raise DataError(f"labels that are {self.truth} should be numbers, and they are text.")
        y = as_numbers(y, "labels that are shares or counts")
        if several and self.truth == "class":
            raise DataError(f"labels that are classes have one column, and there are {y.shape[1]}.")
        if not several and (self.truth != "soft" or k != 2):
            raise DataError(
                f"labels in a single column cannot be {self.truth} for {k} classes: give one column of labels per "
                "class."
            )
        names = self._vocabulary.without_labels()
        if several:
            if y.shape[1] != k:
                raise DataError(f"there are {k} classes and {y.shape[1]} columns of labels: give one per class.")
            if self.label_columns is not None:
                y = y[:, self._order(names)]
            self.truth = self.truth or infer_truth(y)
        labels, counted, note = shares(y, self.truth or "soft", place, self.label_columns or names)
        self._say(note)
        return labels, counted

    def _order(self, names: list[str]) -> list[int]:
        """Which column of labels belongs to which class: by name, or by place where the classes were named."""
        assert self.label_columns is not None
        order = matching_order(names, self.label_columns)
        if order is None and self.classes is None:
            raise DataError(
                f"which column of labels belongs to which class? The labels are {some(list(self.label_columns), 10)} "
                f"and the classes {some(names, 10)}. Call them alike (label_cat, p_cat), or name the classes in the "
                "order of the columns with classes= (--class)."
            )
        return order or list(range(len(names)))


def _ids_joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Ids that are text in one batch are text in all."""
    if len({part.dtype == object for part in parts}) > 1:
        parts = [part if part.dtype == object else part.astype(str).astype(object) for part in parts]
    return np.concatenate(parts)


def same_index(named: Mapping[str, Any]) -> None:
    """Refuse series and frames of pandas with different indices: they would be put together by their place."""
    first: tuple[str, Any] | None = None
    for name, values in named.items():
        index: Any = getattr(values, "index", None)
        if not hasattr(index, "equals"):  # a list has a method of that name
            continue
        if first is None:
            first = name, index
        elif not index.equals(first[1]):
            raise DataError(
                f"{first[0]} and {name} have different indices, so that rows may not belong together. Sort them alike, "
                "or drop both indices with reset_index(drop=True)."
            )


def slices_by(by: Any) -> Mapping[str, Any] | None:
    """The columns of slices by name, of what a caller gives: a mapping, a frame, a named series, or a single array.

    >>> slices_by(["Rome", "Oslo"])
    {'slice': ['Rome', 'Oslo']}
    """
    if by is None or isinstance(by, Mapping):
        return by
    names = column_names(by)
    if names is not None and len(getattr(by, "shape", ())) == 2:
        return {name: by[name] for name in names}
    name = getattr(by, "name", None)
    return {str(name) if name else "slice": by}
