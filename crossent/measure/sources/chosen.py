"""Which columns are meant: by name, by pattern, or by what they are called when nobody says."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Any

from crossent.errors import DataError, some
from crossent.measure.predictions.naming import PREFIX, class_text
from crossent.measure.sources.files import File
from crossent.measure.sources.tables import FOLDER, Columns, header


@dataclass(frozen=True)
class Chosen:
    """The columns to read, by what they are for; ``held`` says what each holds."""

    labels: list[str]
    probabilities: list[str]
    row: str | None
    split: str | None
    weight: str | None
    group: str | None
    by: list[str]
    bytes: str | None
    held: Columns

    @property
    def all(self) -> list[str]:
        """Every column once."""
        single = [name for name in (self.row, self.split, self.weight, self.group, self.bytes) if name]
        return list(dict.fromkeys([*single, *self.labels, *self.probabilities, *self.by]))

    @property
    def several_labels(self) -> bool:
        """Whether labels are one column per class."""
        return len(self.labels) > 1 or self.held[self.labels[0]].startswith("lists")

    def numeric(self, number_labels: bool) -> list[str]:
        """The columns that have to hold numbers."""
        labels = self.labels if number_labels or self.several_labels else []
        return [*self.probabilities, *labels, *(name for name in (self.weight, self.bytes) if name)]

    def check(self, file: File) -> None:
        """Refuse another file of the same data set in which a column is missing or holds something else."""
        held, _ = header(file)
        for name in self.all:
            present(file, held, name, "the rows, as the first file has", "the same option, or leave this file out")
            if held[name] != self.held[name] and "nothing" not in (held[name], self.held[name]):
                raise DataError(
                    f"the column {name!r} holds {held[name]} in {file} and {self.held[name]} in the files before. "
                    "Write them alike: a class or an id that is a number here and a text there may not be the same one."
                )


def choose(
    file: File,
    held: Columns,
    label: str | Sequence[str] | None,
    probability: str | Sequence[str] | None,
    row: str | None,
    weight: str | None,
    group: str | None,
    by: str | Sequence[str] | None,
    bytes: str | None,
    classes: Sequence[Any] | None,
) -> Chosen:
    """Find the columns in a file's header; every name may be a pattern where several columns may be meant."""
    several = "label" not in held and any(name.startswith("label_") for name in held)
    labels = _several(file, held, label or ("label_*" if several else "label"), "the labels", "label= (--label)")

    own = {name: kind for name, kind in held.items() if kind != FOLDER}

    def one(name: str | None, purpose: str, option: str, among: Columns = held) -> str | None:
        return None if name is None else present(file, among, name, purpose, option)

    probabilities = _probabilities(file, held, probability, classes, labels)
    if both := [name for name in probabilities if name in labels]:
        raise DataError(
            f"{file}: the column {both[0]!r} is named both for probabilities and for labels, which it would agree with "
            "in every row. Name another with probability= (--probability) or label= (--label)."
        )
    return Chosen(
        labels,
        probabilities,
        one(row or ("row" if "row" in own else None), "the row ids", "row= (--row)", own),
        "split" if "split" in held and "split" not in labels else None,
        one(weight, "the weights", "weight= (--weight)"),
        one(group, "the groups", "group= (--group)"),
        [] if by is None else _several(file, held, by, "the slices", "by= (--by)"),
        one(bytes, "the bytes", "bytes= (--bytes)", own),
        held,
    )


def present(file: File, held: Columns, wanted: str, purpose: str, option: str) -> str:
    """Find a column, or say which names are near."""
    if wanted in held:
        return wanted
    near = difflib.get_close_matches(wanted, held, 3)
    meant = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise DataError(
        f"{file} has no column {wanted!r} for {purpose}; its columns are {some(list(held), 12)}. {meant}Name the "
        f"column with {option}."
    )


def _several(file: File, held: Columns, wanted: str | Sequence[str], purpose: str, option: str) -> list[str]:
    found: list[str] = []
    for name in [wanted] if isinstance(wanted, str) else list(wanted):
        if name not in held and has_magic(name):
            matches = [column for column in held if fnmatchcase(column, name)]
            if not matches:
                raise DataError(
                    f"{file} has no column like {name!r} for {purpose}; its columns are {some(list(held), 12)}. Mend "
                    f"the pattern in {option}."
                )
            found.extend(matches)
        else:
            found.append(present(file, held, name, purpose, option))
    if len(set(found)) < len(found):
        raise DataError(f"{file}: a column for {purpose} is named twice: {some(found)}.")
    return found


def _probabilities(
    file: File, held: Columns, probability: str | Sequence[str] | None, classes: Sequence[Any] | None, labels: list[str]
) -> list[str]:
    held = {name: kind for name, kind in held.items() if kind != FOLDER}
    if probability is not None:
        return _several(file, held, probability, "probabilities", "probability= (--probability)")
    found = [name for name in held if name.startswith(PREFIX) and name not in labels]
    if classes is not None and (found or not any(held[name].startswith("lists") for name in held)):
        asked = [PREFIX + class_text(name) for name in classes]
        if len(asked) == 2 and asked[0] not in held and asked[1] in held:
            asked = asked[1:]  # two classes, and the column of the second one is enough
        return [present(file, held, name, "probabilities", "probability= (--probability)") for name in asked]
    if not found:
        raise DataError(
            f"{file} has no columns of probabilities called p_<class>; its columns are {some(list(held), 12)}. Name "
            "one, that of the positive class or of whole rows of them, or one per class, with probability= "
            "(--probability)."
        )
    return found
