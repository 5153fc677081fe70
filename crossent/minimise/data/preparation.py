"""From what a user has to what a network reads: a table of anything, or an array, into float32 features.

Tables go through skrub's ``TableVectorizer``, fitted on the training rows alone: numbers stay, dates become their
parts, few-valued columns become indicators, text and many-valued columns a few directions of their character n-grams.
A table of numbers alone needs none of it, and five thousand columns no time. A missing number stays NaN; the network
has a column for that. What was fitted is kept in skops' format, which is JSON and plain arrays in a zip: nothing is
unpickled when it is loaded, and no type but those of the libraries that made it is accepted.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossent.errors import DataError, require, some
from crossent.files import replacing
from crossent.minimise.data import dataset

TRUSTED = ("skrub.", "sklearn.", "numpy.dtype", "datetime.", "pandas.DatetimeTZDtype")
"""Beside what skops trusts itself; not all of pandas, numpy or scipy, which have functions that read pickles."""
ADDRESS = re.compile(rb'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.)')
"""Of an object, and of a file of its numbers, in skops' schema; in text of the table's own quotes are escaped."""
INDICATORS = (100, 1000)
"""Values for which a column of text has indicators: the first number at any rate, up to the second where its values
come ROWS_FOR_EACH times on average. A column with more is read by its character n-grams."""
ROWS_FOR_EACH = 5
MOST_CELLS = 200_000_000
"""Indicators in all rows of such a column beyond the first number: 0.8 GB."""


@dataclass(eq=False)
class Preparation:
    """How rows become features; ``columns`` are a table's, empty for an array of ``features`` numbers or channels.

    ``shape`` is that of a row of an array, which for images is more than their channels.
    """

    columns: tuple[str, ...]
    features: int
    names: tuple[str, ...] = ()
    vectorizer: Any = None
    notes: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()

    @classmethod
    def fit(cls, x: Any, source: str) -> tuple[Preparation, Tensor]:
        """Learn from the training rows how to prepare, and prepare them."""
        if not hasattr(x, "columns"):
            return cls((), x.shape[1], shape=tuple(x.shape[1:])), _tensor(x)
        if all(isinstance(kind, np.dtype) and kind.kind in "iuf" for kind in x.dtypes):
            return cls._of_numbers(x, source)
        skrub = require("skrub", "cli", "a table of mixed columns")
        vectorizer = skrub.TableVectorizer(
            cardinality_threshold=_most_values(len(x)),
            datetime=skrub.DatetimeEncoder(add_weekday=True, add_total_seconds=True),
            high_cardinality=skrub.StringEncoder(n_components=30, random_state=0),
            drop_null_fraction=1.0,
            drop_if_constant=True,
        )
        preparation = cls(tuple(x.columns), 0, (), vectorizer)
        table = preparation._quietly(vectorizer.fit_transform, x, source)
        if table.shape[1] == 0:
            raise _nothing(x, source)
        preparation.features = table.shape[1]
        preparation.names = tuple(str(name) for name in table.columns)
        dropped = [
            column
            for column in x.columns
            if not set(vectorizer.input_to_outputs_.get(column, ())) & set(preparation.names)
        ]
        preparation._note_dropped(dropped)
        return preparation, _finite(table, source)

    @classmethod
    def _of_numbers(cls, x: Any, source: str) -> tuple[Preparation, Tensor]:
        """The same for a table of numbers: columns that are empty, or one value in every row, are left out."""
        features = _finite(x, source)
        tells = (features != features[:1]).any(0) & ~features.isnan().all(0)
        if not tells.any():
            raise _nothing(x, source)
        names = tuple(column for column, told in zip(x.columns, tells.tolist(), strict=True) if told)
        preparation = cls(tuple(x.columns), len(names), names)
        preparation._note_dropped([column for column in x.columns if column not in set(names)])
        return preparation, features if len(names) == x.shape[1] else features[:, tells]

    def __call__(self, x: Any, source: str) -> Tensor:
        """Prepare other rows in the same way: features (n, d), float32, NaN where a number is missing."""
        if not self.columns:
            if hasattr(x, "columns"):
                x = dataset.from_arrays(x.to_numpy(), None, source).x
            if x.shape[1] != self.features:
                raise DataError(
                    f"{source}: the model was trained on {self.features} features, and these rows have {x.shape[1]}."
                )
            return _tensor(x)
        if not hasattr(x, "columns"):
            raise DataError(
                f"{source}: the model was trained on a table with named columns; give a table, not an array."
            )
        missing = [column for column in self.columns if column not in x.columns]
        if missing:
            raise DataError(
                f"{source} lacks {len(missing)} of the {len(self.columns)} columns the model was trained on: "
                f"{some(missing, 12)}. Add them (empty cells are allowed) or name them as in training."
            )
        if self.vectorizer is None:
            table = x[list(self.names)].apply(require("pandas", "cli", "a table").to_numeric, errors="coerce")
        else:
            table = self._quietly(self.vectorizer.transform, x[list(self.columns)], source)
        lost = [column for column in self.columns if self._lost(column, x[column], table)]
        if lost:
            self._note(
                f"{source}: some cells of {some(lost)} are not of the kind that training saw there; "
                "they count as missing."
            )
        return _finite(table, source)

    def _lost(self, column: str, cells: Any, table: Any) -> bool:
        """Whether a cell that was there has become a missing number: text where training saw numbers or dates."""
        made = (column,) if self.vectorizer is None else self.vectorizer.input_to_outputs_.get(column, ())
        outputs = [name for name in made if name in table.columns]
        return bool(outputs) and bool((table[outputs[0]].isna().to_numpy() & cells.notna().to_numpy()).any())

    def _note_dropped(self, columns: list[str]) -> None:
        if columns:
            self._note(f"Columns with nothing to tell (empty, or one value) were left out: {some(columns)}.")

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _quietly(self, prepare: Any, x: Any, source: str) -> Any:
        """Run skrub, and turn what it warns of into notes, and what it fails on into a sentence."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                table = prepare(x)
            except (ValueError, TypeError) as trouble:
                raise DataError(
                    f"{source}: the columns cannot be prepared: {' '.join(str(trouble).split())[:500]} "
                    "Columns must hold the kind of values they held in training."
                ) from trouble
        for warning in caught:
            text = " ".join(str(warning.message).split())
            if "unknown categories" in text:
                self._note(
                    f"{source}: some columns hold values that training never saw; they count as none of the known ones."
                )
        return table

    def to_dict(self) -> dict[str, Any]:
        """All but the vectorizer, as plain data."""
        return {
            "columns": list(self.columns),
            "features": self.features,
            "names": list(self.names),
            "shape": list(self.shape),
            "vectorized": self.vectorizer is not None,
        }

    def save(self, path: Path) -> None:
        """Write the vectorizer of a table; an array has none, nor has a table of numbers."""
        if self.vectorizer is None:
            return
        skops = require("skops.io", "cli", "saving how a table is prepared")
        with replacing(path) as temporary:
            _write_without_addresses(skops.dumps(self.vectorizer), temporary)

    @classmethod
    def load(cls, plain: dict[str, Any], path: Path) -> Preparation:
        """Read back what ``to_dict`` and ``save`` wrote; types of unknown origin are refused."""
        names, shape = tuple(plain["names"]), tuple(plain["shape"])
        preparation = cls(tuple(plain["columns"]), plain["features"], names, shape=shape)
        if preparation.columns and plain.get("vectorized", True):
            skops = require("skops.io", "cli", "reading how a table is prepared")
            require("skrub", "cli", "a table of mixed columns")
            try:
                strangers = skops.get_untrusted_types(file=path)
                foreign = [name for name in strangers if not name.startswith(TRUSTED)]
                if foreign:
                    raise DataError(
                        f"{str(path)!r} holds types that no model of crossent has: {some(foreign)}. It was not loaded."
                    )
                preparation.vectorizer = skops.load(path, trusted=strangers)
            except DataError:
                raise
            except Exception as trouble:  # a zip, JSON and several libraries, each with its own errors
                raise DataError(
                    f"{str(path)!r} cannot be read: {trouble}. It needs the versions of skrub and scikit-learn that "
                    "are named in model.json, or close ones."
                ) from trouble
        return preparation


def _write_without_addresses(archive: bytes, path: Path) -> None:
    """Write skops' zip so that one vectorizer has the same bytes whenever it is written.

    skops names objects by where they lay in memory, and a zip keeps the time; here they are numbered as they come.
    """
    numbers: dict[bytes, bytes] = {}

    def numbered(text: bytes) -> bytes:
        return ADDRESS.sub(lambda found: numbers.setdefault(found[0], b"%d" % len(numbers)), text)

    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        schema = numbered(old.read("schema.json"))
        new.writestr(zipfile.ZipInfo("schema.json"), schema, zipfile.ZIP_DEFLATED, 6)
        for name in old.namelist():
            if name != "schema.json":
                address, _, kind = name.partition(".")
                part = zipfile.ZipInfo(f"{numbers[address.encode()].decode()}.{kind}")
                new.writestr(part, old.read(name), zipfile.ZIP_DEFLATED, 6)


def _most_values(rows: int) -> int:
    """Values from which on a column of text is read by n-grams.

    Persons, items and places that come again and again are each what they are: that two names look alike says little.
    """
    few, many = INDICATORS
    return max(few, min(many, rows // ROWS_FOR_EACH, MOST_CELLS // max(1, rows)))


def _nothing(x: Any, source: str) -> DataError:
    return DataError(f"{source}: no column says anything; each is empty or has one value ({some(list(x.columns))}).")


def _finite(table: Any, source: str) -> Tensor:
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        x = table.to_numpy(dtype=np.float32)
    infinite = np.isinf(x)
    if infinite.any():
        row, column = np.argwhere(infinite)[0].tolist()
        raise DataError(
            f"{source}: {int(infinite.sum()):,} features are infinite or too large for float32, first in column "
            f"{str(table.columns[column])!r} at row {table.index[row]}. Replace them by a number, or by an "
            "empty cell if they are missing."
        )
    return _tensor(x)


def _tensor(x: np.ndarray) -> Tensor:
    """A float32 tensor of an array; one that may not be written to (pandas gives such) is copied."""
    return torch.from_numpy(np.require(x, np.float32, ["C", "W"]))
