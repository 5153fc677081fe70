"""Rows of several models brought together: the same row of each, in one order, or a sentence that says why not.

Rows meet by their id; the order of the files does not matter. What only some of the models predicted is left out,
counted and named. Where there are no ids rows meet by place, only if there are equally many, with the same labels; and
0, 1, 2, … in their order are taken for places unless they are known to be ids. Labels are compared in either case,
because a model is measured on what came, and that is not the model's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.comparison.rival import row_costs
from crossent.measure.predictions.naming import class_text
from crossent.measure.predictions.predictions import Predictions

_SAME_LABEL = 1e-6  # labels that are shares or distributions may have gone through float32


@dataclass(frozen=True, eq=False)
class Head:
    """What of a model's predictions is needed to find its rows, and their exact costs: all but the probabilities.

    ``named`` says whether ``rows`` are ids or no more than places; None, that nobody knows.
    """

    name: str
    rows: NDArray[Any]
    labels: NDArray[Any]
    classes: list[str]
    task: str
    range: tuple[float | None, float | None]
    costs: NDArray[np.float64]
    named: bool | None

    @classmethod
    def of(cls, name: str, predictions: Predictions, named: bool | None = None) -> Head:
        """Take the head of a model's predictions; the probabilities can then be let go."""
        p = predictions
        return cls(name, p.rows, p.labels, p.classes, p.task, (p.low, p.high), row_costs(p), named)


@dataclass(frozen=True, eq=False)
class Joined:
    """The rows that all models have, in the first one's order.

    ``places`` holds for each model where these rows stand among its own, ``columns`` where the first model's classes
    stand among its columns. ``left_out`` says for each model how many of its rows another one lacks; ``notes`` say it
    in sentences.
    """

    rows: NDArray[Any]
    labels: NDArray[Any]
    places: list[NDArray[np.int64]]
    columns: list[list[int]]
    left_out: dict[str, int]
    notes: list[str]

    def take(self, here: NDArray[np.bool_]) -> Joined:
        """Give some of the rows."""
        places = [place[here] for place in self.places]
        return replace(self, rows=self.rows[here], labels=self.labels[here], places=places)


def join(heads: Sequence[Head]) -> Joined:
    """Bring the rows of the models together, the first one leading.

    Raises DataError, a sentence with the model, the rows and what to do: ids that come twice, no row in common, other
    numbers of rows where there are no ids, labels that disagree, classes or a task that are not the same. Cost: one
    sort of the ids per model.

    >>> a = Predictions.from_arrays([0.9, 0.2, 0.6], [1, 0, 1], rows=["x", "y", "z"])
    >>> b = Predictions.from_arrays([0.7, 0.1], [1, 0], rows=["z", "y"])
    >>> found = join([Head.of("a", a), Head.of("b", b)])
    >>> found.rows.tolist(), [places.tolist() for places in found.places], found.notes
    (['y', 'z'], [[1, 2], [1, 0]], ["2 rows were compared: b lacks 1 of a's (x)."])
    """
    first = heads[0]
    columns = [_columns(first, head) for head in heads]
    for head in heads:
        _refuse_copies(head)
    notes: list[str] = []
    unnamed = [head for head in heads if not _has_ids(head)]
    by_place = len(unnamed) == len(heads)
    if by_place:
        if other := next((head for head in heads if len(head.rows) != len(first.rows)), None):
            raise DataError(
                f"{first.name} has {len(first.rows):,} rows and {other.name} has {len(other.rows):,}, and no ids say "
                "which belong together (ids 0, 1, 2, … are places, not names). Give both a column of row ids, called "
                "row, or name it with row= (--row)."
            )
        places = [np.arange(len(first.rows))] * len(heads)
    else:
        if bare := next((head for head in unnamed if head.named is False), None):
            other = next(head for head in heads if _has_ids(head))
            raise DataError(
                f"{other.name} has row ids and {bare.name} has none, so that nothing says which rows belong together. "
                "Give both a column of row ids, called row, or name it with row= (--row)."
            )
        places = _met(heads, notes)
    rows, labels = first.rows[places[0]], first.labels[places[0]]
    for head, own, order in zip(heads[1:], places[1:], columns[1:], strict=True):
        _refuse_other_labels(first, head, rows, labels, _translated(head.labels[own], order), by_place)
    if by_place:
        whole = "the only row was" if len(rows) == 1 else f"the {len(rows):,} rows were"
        notes.append(f"No row ids: {whole} compared in their order, in which all labels agree.")
    left_out = {head.name: len(head.rows) - len(rows) for head in heads}
    return Joined(rows, labels, places, columns, left_out, notes)


def _has_ids(head: Head) -> bool:
    if head.named is not None:
        return head.named
    return not (head.rows.dtype.kind in "iu" and np.array_equal(head.rows, np.arange(head.rows.size)))


def _keys(heads: Sequence[Head]) -> list[NDArray[Any]]:
    """The ids in one type: whole numbers where all are, text otherwise."""
    if all(head.rows.dtype.kind in "iu" and head.rows.dtype != np.uint64 for head in heads):
        return [head.rows.astype(np.int64) for head in heads]
    return [np.array([class_text(row) for row in head.rows.tolist()], dtype=str) for head in heads]


def _refuse_copies(head: Head) -> None:
    ids = head.rows if head.rows.dtype != object else head.rows.astype(str)
    kept, times = np.unique(ids, return_counts=True)
    if kept.size < ids.size:
        raise DataError(
            f"{head.name}: row ids should name each row once, and these come several times: "
            f"{some(kept[times > 1].tolist())}. Remove the copies, or name another column with row= (--row)."
        )


def _met(heads: Sequence[Head], notes: list[str]) -> list[NDArray[np.int64]]:
    """Where the common rows stand in each model, by id; what was left out goes to the notes."""
    keys = _keys(heads)
    found = []
    for own in keys[1:]:
        order = np.argsort(own, kind="stable")
        at = np.searchsorted(own, keys[0], sorter=order)
        place = order[np.minimum(at, own.size - 1)]
        found.append(np.where(own[place] == keys[0], place, -1))
    common = np.all([place >= 0 for place in found], axis=0) if found else np.ones(keys[0].size, bool)
    first = heads[0]
    if not common.any():
        other = next((head for head, place in zip(heads[1:], found, strict=True) if (place < 0).all()), heads[-1])
        raise DataError(
            f"no row of {first.name} (ids {some(first.rows.tolist(), 3)}) is in {other.name} (ids "
            f"{some(other.rows.tolist(), 3)}): nothing can be compared. Name the column of row ids with row= (--row)."
        )
    lacking = []
    for head, own, place in zip(heads[1:], keys[1:], found, strict=True):
        if (place < 0).any():
            lost = first.rows[place < 0].tolist()
            lacking.append(f"{head.name} lacks {len(lost):,} of {first.name}'s ({some(lost)})")
        only = np.ones(own.size, bool)
        only[place[place >= 0]] = False
        if only.any():
            lost = head.rows[only].tolist()
            lacking.append(f"{first.name} lacks {len(lost):,} of {head.name}'s ({some(lost)})")
    if lacking:
        count = int(common.sum())
        notes.append(f"{count:,} {'row was' if count == 1 else 'rows were'} compared: {'; '.join(lacking)}.")
    return [np.flatnonzero(common), *(place[common] for place in found)]


def _columns(first: Head, head: Head) -> list[int]:
    """Where the first model's classes stand among this one's columns."""
    if head.task != first.task or head.range != first.range:
        raise DataError(
            f"{first.name} predicts {_target(first)} and {head.name} {_target(head)}: they must be the same."
        )
    if set(head.classes) != set(first.classes):
        if len(first.classes) == 2 and set(map(_number, head.classes)) == set(map(_number, first.classes)):
            return [[*map(_number, head.classes)].index(_number(name)) for name in first.classes]
        ours = [name for name in first.classes if name not in head.classes]
        theirs = [name for name in head.classes if name not in first.classes]
        only = [f"only {h.name} has {some(names)}" for h, names in ((first, ours), (head, theirs)) if names]
        raise DataError(
            f"{first.name} and {head.name} do not have the same classes: {', '.join(only)}. Name them alike with "
            "classes= (--class), in the order of the columns."
        )
    return [head.classes.index(name) for name in first.classes] or list(range(2))


def _number(name: str) -> str:
    """Truth values as the numbers they are: of two classes, those called False and True are 0 and 1."""
    return {"False": "0", "True": "1"}.get(name, name)


def _target(head: Head) -> str:
    if head.task == "range":
        return f"a number from {head.range[0]:g} to {head.range[1]:g}"
    return f"one of {len(head.classes)} classes" if head.classes else head.task


def _translated(labels: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """A model's labels, in the columns of the first one."""
    if order == sorted(order):
        return labels
    if labels.dtype.kind != "f":
        return np.argsort(order)[labels]
    return labels[:, order] if labels.ndim == 2 else 1 - labels


def _refuse_other_labels(
    first: Head, head: Head, rows: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any], by_place: bool
) -> None:
    if ours.shape != theirs.shape or (ours.dtype.kind == "f") != (theirs.dtype.kind == "f"):
        kinds = [
            "distributions" if y.ndim == 2 else "shares" if y.dtype.kind == "f" else "classes" for y in (ours, theirs)
        ]
        raise DataError(
            f"the labels of {first.name} are {kinds[0]} and those of {head.name} {kinds[1]}: give both the same."
        )
    if ours.dtype.kind == "f":
        apart = np.abs(ours - theirs) > _SAME_LABEL
        other = apart.any(axis=1) if apart.ndim == 2 else apart
    else:
        other = ours != theirs
    if not other.any():
        return
    where = np.flatnonzero(other)
    shown = [f"{rows[i]}: {_label(first, ours[i])} and {_label(first, theirs[i])}" for i in where[:3]]
    advice = (
        "They have no row ids: if the order differs, name the column of ids with row= (--row)."
        if by_place
        else "One of the files is about other data, or its labels were changed: measure both on the same."
    )
    raise DataError(
        f"{first.name} and {head.name} disagree about the label of {where.size:,} of {rows.size:,} rows "
        f"({'; '.join(shown)}{', …' if where.size > 3 else ''}). {advice}"
    )


def _label(head: Head, label: Any) -> str:
    if np.ndim(label):
        return "[" + ", ".join(f"{share:.3g}" for share in label) + "]"
    return head.classes[label] if isinstance(label, np.integer) and head.classes else f"{label:.6g}"
