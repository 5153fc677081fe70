"""Files of predictions, calibrated: their columns of probabilities changed, every other column as it was.

Row ids, labels, splits, groups and whatever else stands in a file are carried over in their order; of a range, the
predicted mean is worked out again. Several files that are parts of one are written to one, in the order of their names.
They are read and written some thousands of rows at a time, so that memory does not grow with rows, and what is written
appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, require, some
from crossent.files import replacing
from crossent.measure.calibration import Calibrator
from crossent.measure.predictions import form as forms
from crossent.measure.predictions.naming import PREFIX, matching_order, order_by_name, single_of_first
from crossent.measure.sources import BATCH_ROWS
from crossent.measure.sources.chosen import _probabilities as probability_columns
from crossent.measure.sources.files import PURPOSE, File, find
from crossent.measure.sources.rows import numbers
from crossent.measure.sources.tables import header, scan

WRITTEN = (".parquet", ".pq", ".csv")


def apply_to_file(
    calibrator: Calibrator,
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    probability: str | Sequence[str] | None = None,
    form: str | None = None,
    normalise: bool = False,
) -> tuple[int, tuple[str, ...]]:
    """Write ``path`` to ``output``, .parquet or .csv, with its probabilities calibrated; labels are not needed.

    ``path`` is a file, or several that have the same columns: a list of them, a folder, a pattern or an address.
    ``probability``, ``form`` and ``normalise`` are as in ``read_predictions``; without ``probability`` the columns are
    p_<class> for the calibrator's classes. Columns are matched by name; those whose names say nothing of a class are
    taken in their order, with a note, and so are those that ``probability`` names one by one; columns called p_<class>
    after other classes are refused. What comes out are probabilities, whatever form came in. A calibrator that
    changes nothing leaves the numbers as they are to the last bit. Gives the number of rows, and notes.

    Raises DataError, a sentence with file and row; then ``output`` is as it was before. Cost: one pass.
    """
    target = Path(output)
    check_output(target)
    files = find(path)
    for file in files:
        if file.store is None and target.exists() and os.path.samefile(file.path, target):
            raise DataError(f"{file} would be written over its own source. Name another file with -o.")
    total, notes = 0, dict[str, None]()
    with replacing(target) as temporary:
        writer: Any = None
        try:
            for file in files:
                columns, begin = _Columns.of(file, calibrator, probability, notes), total
                for piece in scan(file, columns.held, columns.names, BATCH_ROWS):
                    place = partial(_place, file, total - begin)
                    cells = numbers(piece, columns.names, place).astype(np.float64)
                    if form is None:
                        form = _inferred(cells, file, notes)
                    changed = columns.changed(piece, calibrator, cells, form, normalise, place, notes)
                    if writer is None:
                        first, writer = columns, _writer(temporary, changed.schema, columns.told)
                    if columns is not first:
                        changed = first.alike(columns, changed, writer.schema, files[0])
                    writer.write(changed)
                    total += piece.num_rows
                if total == begin:
                    raise DataError(f"{file} has a header and no rows.")
        except DataError as trouble:
            raise trouble if str(file) in str(trouble) else DataError(f"{file}: {trouble}") from trouble
        finally:
            if writer is not None:
                writer.close()
    return total, tuple(notes)


def _inferred(cells: NDArray[np.float64], file: File, notes: dict[str, None]) -> str:
    """What the numbers are, by the first of them."""
    form = forms.infer(cells)
    if form is None:
        raise forms.unclear(cells)
    if form != forms.FORMS[0]:
        notes[f"{file} holds {form}; what was written are probabilities."] = None
    return form


def check_output(path: Path) -> None:
    """Refuse a name that says no kind of file that is written, before any work is done."""
    if path.suffix.lower() not in WRITTEN:
        raise DataError(f"predictions are written as .parquet or .csv, and {str(path)!r} ends in {path.suffix!r}.")


@dataclass(frozen=True)
class _Columns:
    """What a file holds, and which of its columns are probabilities; ``flipped`` if the only one is of the first class.

    ``told`` is what crossent wrote beside the table; a range has (low, high) there.
    """

    held: list[str]
    names: list[str]
    flipped: bool
    told: dict[str, Any]

    @classmethod
    def of(
        cls, file: File, calibrator: Calibrator, probability: str | Sequence[str] | None, notes: dict[str, None]
    ) -> _Columns:
        held, told = header(file)
        classes = list(calibrator.classes)
        own = [name for name in held if name.startswith(PREFIX)]
        if probability is None and len(classes) == 2 and own == [PREFIX + classes[0]]:
            names = own
        else:
            named = classes if probability is None and classes else None
            names = probability_columns(file, held, probability, named, [])
        asked = [] if probability is None else [probability] if isinstance(probability, str) else list(probability)
        one_by_one = names == asked and len(names) > 1  # whoever says an order has said it
        flipped = False
        if len(classes) == len(names) > 1:
            order = matching_order(classes, names) if one_by_one else order_by_name(classes, names)
            if order is None and classes != [name.removeprefix(PREFIX) for name in names]:
                notes[
                    f"{file}: the columns {some(names, 12)} were taken for the classes {some(classes, 12)} in this "
                    "order, as no name says otherwise."
                ] = None
            names = names if order is None else [names[place] for place in order]
        elif len(names) == 1 and (len(classes) == 2 or held[names[0]].startswith("lists")):
            flipped = not held[names[0]].startswith("lists") and single_of_first(classes, names[0])
        elif classes:
            raise DataError(
                f"the calibrator is for the {len(classes)} classes {some(classes, 12)}, and {file} has {len(names)} "
                f"{'column' if len(names) == 1 else 'columns'} of probabilities: {some(names, 12)}. Name them with "
                "--probability, in that order."
            )
        return cls(list(held), names, flipped, told)

    def alike(self, other: _Columns, piece: Any, schema: Any, source: File) -> Any:
        """Give a piece of another file in the columns and types of the first, ``source``."""
        if other.held != self.held or other.told != self.told:
            raise DataError(
                f"its columns are {some(other.held, 12)}, and those of {source} {some(self.held, 12)}: files that are "
                "written to one have the same columns, in the same order, and are of one task."
            )
        pyarrow = require("pyarrow", "cli", PURPOSE)
        try:
            arrays = [cells.cast(field.type) for cells, field in zip(piece.columns, schema, strict=True)]
        except pyarrow.ArrowException as trouble:
            raise DataError(f"its columns are of other types than those of {source}: {trouble}.") from trouble
        return pyarrow.RecordBatch.from_arrays(arrays, schema=schema)

    def changed(
        self,
        piece: Any,
        calibrator: Calibrator,
        cells: NDArray[Any],
        form: str,
        normalise: bool,
        place: forms.Place,
        notes: dict[str, None],
    ) -> Any:
        """Give a piece of the table with calibrated probabilities."""
        pyarrow = require("pyarrow", "cli", PURPOSE)
        shown = self.names if len(self.names) > 1 else []
        note = None
        if form == "probabilities":
            p, note = forms.probabilities(cells, place, shown, scores=normalise)
            with np.errstate(divide="ignore"):
                z = np.log(p)
        elif form == "log-probabilities":
            z, note = forms.log_probabilities(cells, place, shown)
        elif form == "logits":
            z = forms.logits(cells, place, shown)
        else:
            raise DataError(f"the form should be one of {', '.join(forms.FORMS)}, and is {form!r}.")
        if note is not None:
            notes[note] = None
        if not calibrator.steps and form == "probabilities" and note is None:
            return piece
        # A single column is of the second class, unless it is named after the first.
        q = np.exp(calibrator.of_logits(z[:, ::-1] if self.flipped else z))
        out = [q[:, 0 if self.flipped else 1]] if cells.ndim == 1 else list(q.T)
        if cells.ndim == 2 and len(self.names) == 1:  # a column of lists stays one
            lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(q.ravel()), q.shape[1])
            arrays = {self.names[0]: lists}
        else:
            arrays = {name: pyarrow.array(column) for name, column in zip(self.names, out, strict=True)}
        if self.told.get("task") == "range" and "prediction" in self.held:
            low, high = float(self.told["low"]), float(self.told["high"])
            arrays["prediction"] = pyarrow.array(low + q[:, 1] * (high - low))
        columns = [arrays.get(name, piece.column(name)) for name in self.held]
        return pyarrow.RecordBatch.from_arrays(columns, names=self.held)


def _writer(path: Path, schema: Any, told: dict[str, Any]) -> Any:
    if path.suffix.lower() == ".csv":
        return _Csv(path, schema)
    meta = {"crossent": json.dumps(told, ensure_ascii=False, sort_keys=True)} if told else None
    return _Parquet(path, schema.with_metadata(meta))


class _Csv:
    """A writer of CSV that knows its schema."""

    def __init__(self, path: Path, schema: Any) -> None:
        self.schema = schema
        types = require("pyarrow", "cli", PURPOSE).types
        if nested := [field.name for field in schema if types.is_nested(field.type)]:
            raise DataError(
                f"a cell of a CSV holds one value, and those of {some(nested, 12)} hold several. Write a .parquet file."
            )
        self.writer = require("pyarrow.csv", "cli", PURPOSE).CSVWriter(path, schema)

    def write(self, piece: Any) -> None:
        self.writer.write(piece)

    def close(self) -> None:
        self.writer.close()


class _Parquet:
    """A Parquet writer that takes pieces whose schema says the same with or without metadata."""

    def __init__(self, path: Path, schema: Any) -> None:
        self.schema = schema
        self.writer = require("pyarrow.parquet", "cli", PURPOSE).ParquetWriter(path, schema, compression="zstd")

    def write(self, piece: Any) -> None:
        self.writer.write_batch(piece.replace_schema_metadata(self.schema.metadata))

    def close(self) -> None:
        self.writer.close()


def _place(file: File, begin: int, row: int) -> str:
    return f"row {begin + row} of {file} (counted from 0)"


def classes_of(path: str | os.PathLike[str], probability: str | Sequence[str] | None = None) -> list[str]:
    """Name the classes of a file by its columns, p_<class>, or by what crossent wrote beside them.

    Of one column, p_<class>, the other class is called "not <class>".
    """
    file = find(path)[0]
    held, told = header(file)
    if told.get("task") == "range":
        raise DataError(f"{file} holds a number in a range, which has no classes whose shares could shift.")
    if told.get("classes"):
        return [str(name) for name in told["classes"]]
    names = [name.removeprefix(PREFIX) for name in probability_columns(file, held, probability, None, [])]
    return names if len(names) > 1 else [f"not {names[0]}", names[0]]
