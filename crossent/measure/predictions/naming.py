"""Which column belongs to which class: labels and columns meet by the text of the class.

A label may arrive as text, a whole number, a truth value or a float that is whole; a class may be the text of
a column name. They are the same class if they read the same: ``1``, ``1.0`` and ``"1"``; ``True`` and
``"true"``; nothing else. Where text does not decide, the answer is an error that asks, because a wrong order
of the columns gives a number that looks like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some

PREFIX = "p_"
"""Columns of probabilities are called p_<class>."""

_Naming = tuple[list[str], NDArray[np.int64]]


def class_text(value: Any) -> str:
    """Write a class as text, one way whatever type it came in.

    >>> class_text(1.0), class_text(np.int8(1)), class_text(True), class_text("1.50")
    ('1', '1', 'True', '1.50')
    """
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _key(text: str) -> str:
    """What is compared: "1.0" reads as "1", "true" as "True"."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.capitalize()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _matched(texts: list[str], names: list[str]) -> NDArray[np.int64] | None:
    """The place of each text among the names, to the letter or as they read; None if one has none."""
    for reading in (str, _key):
        place = {reading(name): j for j, name in enumerate(names)}
        if len(place) < len(names):
            if reading is str:
                raise DataError(f"two classes have one name in {some(names, 10)}. Give each a name of its own.")
            continue  # "010" and "10" are two classes: only the letter decides
        places = [place.get(reading(text), -1) for text in texts]
        if -1 not in places:
            return np.array(places, dtype=np.int64)
    return None


def _indices(texts: list[str], count: int) -> NDArray[np.int64] | None:
    """The texts as numbers of columns, 0 to count − 1; None if one is not."""
    if not all(_key(text).isdecimal() and int(_key(text)) < count for text in texts):
        return None
    return np.array([int(_key(text)) for text in texts], dtype=np.int64)


def _place(text: str, first: dict[str, Any]) -> str:
    return f"{text!r} ({first[text]})" if text in first else repr(text)


def _places(texts: list[str], first: dict[str, Any]) -> str:
    """The labels, those that are new last, with the place where each comes first."""
    return some([_place(text, first) for text in sorted(texts, key=lambda text: text in first)])


def name_pair(
    texts: list[str], first: dict[str, Any], classes: Sequence[Any] | None = None, column: str | None = None
) -> _Naming:
    """Name the two classes where there is one probability per row, that of the second class.

    ``texts`` are the distinct labels, ``first`` says where each comes first ("row 3"), for the error.

    >>> name_pair(["0", "1"], {})[0], name_pair(["no", "yes"], {}, column="p_yes")[0]
    (['0', '1'], ['no', 'yes'])
    >>> name_pair(["1"], {}, column="p_0")[0]
    ['1', '0']
    """
    if classes is not None:
        names = [class_text(name) for name in classes]
        if len(names) != 2:
            raise DataError(f"one probability per row means two classes, and {len(names)} are named: {some(names)}.")
        if column is not None and is_of(names[0], column):
            raise _turned(names, [column])
        return names, _found(texts, first, names)
    positive = (column or "").removeprefix(PREFIX)
    for pair in (["0", "1"], ["False", "True"]):
        names = pair[::-1] if _key(positive) == pair[0] else pair  # p_0 is the probability of 0
        if (index := _matched(texts, names)) is not None and (texts or _key(positive) in pair):
            return names, index
    same = [text for text in texts if _key(text) == _key(positive)]
    if (column or "").startswith(PREFIX) and len(texts) + (not same) <= 2:
        other = next((text for text in texts if text not in same), f"not {positive}")
        names = [other, *(same or [positive])]
        return names, _found(texts, first, names)
    if same and len(texts) <= 2:
        other = next((text for text in texts if text not in same), f"not {same[0]}")
        names = [other, same[0]]
        return names, _found(texts, first, names)
    if not texts:
        return ["0", "1"], np.zeros(0, np.int64)
    if len(texts) > 2:
        raise DataError(
            f"one probability per row means two classes, and the labels have {len(texts)}: {_places(texts, first)}. "
            "Mend the rows whose label is neither class or leave them out, or give one column of probabilities per "
            "class; for a number in a range say so (task='range', or --range LOW HIGH)."
        )
    raise DataError(
        f"which class is the probability of? The labels are {_places(texts, first)}. Name the classes, the one that "
        f"the probability belongs to last (classes={[*texts, '…'][:2]}, or --class twice), or call the column "
        "p_<class>."
    )


def name_columns(
    texts: list[str],
    first: dict[str, Any],
    count: int,
    classes: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
) -> _Naming:
    """Name the classes where there is one column per class, ``count`` in all.

    Column names are tried as they are, without ``p_`` and without whatever they all begin with up to a ``_``.

    >>> names, index = name_columns(["cat", "dog"], {}, 3, columns=["prob_cat", "prob_dog", "prob_hen"])
    >>> names, index.tolist()
    (['cat', 'dog', 'hen'], [0, 1])
    """
    if classes is not None:
        names = [class_text(name) for name in classes]
        if len(names) != count:
            raise DataError(f"there are {count} columns of probabilities and {len(names)} classes: {some(names)}.")
        if columns is not None and matching_order(names, columns) not in (None, list(range(count))):
            raise _turned(names, columns)
        return names, _found(texts, first, names)
    if columns is None:
        for names in ([str(j) for j in range(count)], ["False", "True"][: max(count, 2)]):
            if len(names) == count and (index := _matched(texts, names)) is not None:
                return names, index
        if all(_key(text).lstrip("-").isdecimal() for text in texts):
            wrong = next(text for text in texts if not 0 <= int(_key(text)) < count)
            ignored = "What PyTorch ignores, -100, is left out here: p[y != -100], y[y != -100]."
            named = "If the classes are called otherwise, name them with classes=."
            raise DataError(
                f"there are {count} columns of probabilities, so whole-number labels should be 0 to "
                f"{count - 1}, and {_place(wrong, first)} is not. {ignored if _key(wrong) == '-100' else named}"
            )
        raise DataError(
            f"which column belongs to which class? The labels are {_places(texts, first)}. Name the {count} columns in "
            "their order with classes=."
        )
    for names in _readings(list(columns)):
        if (index := _matched(texts, names)) is not None:
            return names, index
    return (names := _readings(list(columns))[0]), _found(texts, first, names)


def _readings(columns: list[str]) -> list[list[str]]:
    """The class names that columns may stand for, the likeliest first."""
    readings = [columns]
    shared = "".join(here[0] for here in takewhile(lambda here: len(set(here)) == 1, zip(*columns, strict=False)))
    if cut := shared[: shared.rfind("_") + 1]:
        readings.append([name.removeprefix(cut) for name in columns])
    if all(name.startswith(PREFIX) for name in columns):
        readings.insert(0, [name.removeprefix(PREFIX) for name in columns])
    return readings


class Vocabulary:
    """The names of the classes, decided once and held to: batch after batch, labels may be new but no name may change.

    ``pair`` says that there is one probability per row. Labels are looked at together with all that came before, so
    that a file read in batches gets the names, or the error, that it would get in one piece; where a later batch would
    have changed the names, the error asks for them.
    """

    def __init__(
        self, count: int, pair: bool, classes: Sequence[Any] | None = None, columns: Sequence[str] | None = None
    ) -> None:
        self.count, self.pair, self.classes, self.columns = count, pair, classes, columns
        self.names: list[str] = []
        self.note: str | None = None
        self._place: dict[str, int] = {}
        self._first: dict[str, Any] = {}

    def places(self, texts: list[str], first: Callable[[str], Any]) -> NDArray[np.int64]:
        """Give the column of each of the distinct labels ``texts``; ``first`` says where one comes first."""
        if new := [text for text in texts if text not in self._first]:
            here = {text: first(text) for text in new}
            self._first |= here
            self._decide(here)
        return np.array([self._place[text] for text in texts], dtype=np.int64)

    def join(self, other: Vocabulary) -> None:
        """Take the labels that another vocabulary met, and refuse what would have changed a name."""
        self.places(list(other._first), other._first.__getitem__)

    def without_labels(self) -> list[str]:
        """Name the classes where labels are shares, so that no label names one."""
        if not self.names:
            if not self.pair and self.classes is None and self.columns is None:
                self.classes = range(self.count)
            self._decide({})
        return self.names

    def _decide(self, here: dict[str, Any]) -> None:
        """Name the classes with labels that are new ``here``: those of rows before, maybe of another file, are good."""
        known = sorted(self._first)
        if self.pair:
            column = self.columns[0] if self.columns else None
            names, index = name_pair(known, here, self.classes, column)
        else:
            names, index = name_columns(known, here, self.count, self.classes, self.columns)
        place = dict(zip(known, index.tolist(), strict=True))
        if self.names and (names != self.names or any(place[text] != was for text, was in self._place.items())):
            raise DataError(
                f"the first labels made the classes {some(self.names)}, and later ones make them {some(names)}: labels "
                f"are {_places(known, here)}. Name the classes in the order of their columns with classes= (--class)."
            )
        self.names, self._place = names, place
        if known and _matched(known, names) is None:
            self.note = (
                f"Labels are whole numbers and classes are not: labels were taken for places of the columns, 0 for "
                f"{names[0]}, 1 for {names[1]}{', …' if len(names) > 2 else ''}."
            )


def is_of(name: str, column: str) -> bool:
    """Whether a column is called after a class.

    >>> is_of("no", "p_no"), is_of("1.0", "p_1"), is_of("no", "score")
    (True, True, False)
    """
    return _key(column.removeprefix(PREFIX)) == _key(name)


def _turned(names: list[str], columns: Sequence[str]) -> DataError:
    return DataError(
        f"the classes are named {some(names, 10)} and the columns of probabilities {some(list(columns), 10)}, in "
        "another order. Name the classes in the order of the columns, that of a single one last, or leave classes= "
        "(--class) out: the columns say what they are of."
    )


def matching_order(names: list[str], columns: Sequence[str]) -> list[int] | None:
    """Give where among ``columns`` each class is named; None if their names do not say.

    >>> matching_order(["cat", "dog"], ["votes_dog", "votes_cat"])
    [1, 0]
    """
    for reading in _readings(list(columns)):
        index = _matched(names, reading)
        if index is not None and len(set(index.tolist())) == len(reading):
            return [int(place) for place in index]
    return None


def order_by_name(classes: list[str], columns: list[str]) -> list[int] | None:
    """Give where among as many ``columns`` each class is named; None if their names say nothing of a class.

    Columns p_0, p_1, … count the places. Raises DataError where columns are called p_<class> after others, or some
    after a class and some not: to take them in their order would calibrate one class as another.

    >>> order_by_name(["cat", "dog"], ["p_dog", "p_cat"]), order_by_name(["cat", "dog"], ["x", "y"])
    ([1, 0], None)
    """
    order = matching_order(classes, columns)
    if order is not None or [name.removeprefix(PREFIX) for name in columns] == [str(j) for j in range(len(columns))]:
        return order
    strange = [name for name in columns if not any(is_of(known, name) for known in classes)]
    if len(strange) == len(columns) and not all(name.startswith(PREFIX) for name in columns):
        return None
    none = not strange or len(strange) == len(columns)
    are = "none of them is" if none else f"{some(strange, 12)} {'is' if len(strange) == 1 else 'are'} not"
    raise DataError(
        f"the columns {some(columns, 12)} should be called after the classes {some(classes, 12)}, and {are}. Call them "
        "p_<class>; or, if they are in the classes' order, name them one by one (--probability), or pass an array."
    )


def single_of_first(classes: list[str], column: str) -> bool:
    """Whether the only column of two classes is of the first; DataError where it is called p_<class> after neither.

    Classes that are just 0 and 1, or False and True, have no names that a column could contradict.
    """
    neither = column.startswith(PREFIX) and not any(is_of(name, column) for name in classes)
    if neither and [_key(name) for name in classes] not in (["0", "1"], ["False", "True"]):
        raise DataError(
            f"the column {column!r} should be of one of the classes {some(classes)}, and is called after neither. Call "
            f"it {PREFIX + classes[1]!r}, or {PREFIX + classes[0]!r} if it is of that one."
        )
    return is_of(classes[0], column)


def _found(texts: list[str], first: dict[str, Any], names: list[str]) -> NDArray[np.int64]:
    """The place of each label among the names; by number only where no name is a number itself."""
    if (index := _matched(texts, names)) is not None:
        return index
    if not any(_key(name).lstrip("-").isdecimal() for name in names):
        index = _indices(texts, len(names))
        if index is not None:
            return index
    known = {_key(name) for name in names}
    lost = [text for text in texts if _key(text) not in known]
    raise DataError(
        f"every label should be one of the classes {some(names, 10)}, and "
        f"{'this is' if len(lost) == 1 else 'these are'} not: "
        f"{some([_place(text, first) for text in lost])}. Add a column of probabilities for it, or leave its "
        "rows out."
    )
