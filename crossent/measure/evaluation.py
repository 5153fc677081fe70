"""Everything that n rows of probabilities and labels can tell, in one record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from crossent.errors import DataError, some
from crossent.measure.decomposition import decomposition
from crossent.measure.likelihood import FLOOR, costs, errors, frequencies, likelihood
from crossent.measure.predictions import Predictions
from crossent.measure.reliability import reliability
from crossent.measure.slices import costliest, per_class
from crossent.measure.sources import read_predictions
from crossent.record import Number, Record

FEW_ROWS = 100
FEW_ROWS_OF_A_CLASS = 10  # with 4 of a class among 100, intervals said to hold 95 % held 90 % (docs/measure.md)


def evaluate(
    predictions: Any,
    labels: Any = None,
    *,
    label: str | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    floor: float = FLOOR,
    title: str | None = None,
    normalise: bool = False,
    classes: Sequence[Any] | None = None,
    rows: Any = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Record:
    """Measure what predictions are worth, and return a record of kind "evaluation" (docs/record.md names its
    parts).

    ``predictions`` is a file (.parquet, .csv), with ``label``, ``probability``, ``row`` and ``split`` as in
    ``read_predictions``; or probabilities (n,) or (n, classes) with ``labels`` (n,), ``classes`` and ``rows``
    as in ``Predictions.from_arrays``; or a ``Predictions``. ``task="range"`` with ``low`` and ``high`` is for
    labels that are numbers. ``floor`` is what ``cross_entropy_floored`` raises probabilities to, and nothing
    else does unless a row is impossible.

    Entropies are in nats or bits, as each number says. Intervals are 95 % and take rows for independent.
    Raises DataError, a sentence, for anything that is not a prediction. Cost: O(n · classes) for all but the
    calibration, which takes tens of passes; three arrays of the size of the probabilities.

    >>> record = evaluate([0.9, 0.2, 0.6, 0.3], [1, 0, 1, 0])
    >>> print(record["cross_entropy"])
    0.299 nats (0.041 to 0.603)
    >>> record.tables["per_class"]["class"], record.facts["notes"][0]
    (['0', '1'], 'Only 4 rows were measured: every interval here is rough.')
    """
    if not 0 < floor < 1:
        raise DataError(f"the floor is a probability between 0 and 1, and {floor} is not; {FLOOR:g} is usual.")
    data = _read(predictions, labels, label, probability, row, split, normalise, classes, rows, task, low, high)
    cost = costs(data.probabilities, data.labels)
    numbers = likelihood(data, floor)
    parts, calibrated_with = decomposition(data, floor)
    numbers |= parts | errors(data)
    tables = {"costliest": costliest(data, cost)}
    facts: dict[str, Any] = {"task": data.task}
    if data.task == "range":
        facts |= {"low": data.low, "high": data.high}
    else:
        tables = {"per_class": per_class(data, cost)} | tables
        facts["classes"] = list(data.classes)
    facts["rows"] = len(data)
    facts |= {name: value for name, value in (("source", data.source), ("split", data.split)) if value is not None}
    facts |= {"floor": floor, "calibrated_with": calibrated_with, "notes": _notes(data, numbers, floor)}
    return Record(
        kind="evaluation",
        title=title or (f"Predictions in {os.path.basename(data.source)}" if data.source else "Predictions"),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        numbers=numbers,
        tables=tables,
        curves={"reliability": reliability(data)},
        facts=facts,
    )


def _read(
    predictions: Any,
    labels: Any,
    label: str | None,
    probability: str | Sequence[str] | None,
    row: str | None,
    split: str | None,
    normalise: bool,
    classes: Sequence[Any] | None,
    rows: Any,
    task: str | None,
    low: float | None,
    high: float | None,
) -> Predictions:
    if isinstance(predictions, Predictions):
        return predictions
    if isinstance(predictions, str | os.PathLike):
        if labels is not None or rows is not None:
            raise DataError(
                "a file brings its own labels and row ids: name their columns with label= and row=, not "
                "labels= and rows=."
            )
        return read_predictions(
            predictions,
            label,
            probability,
            row,
            split,
            normalise,
            classes=classes,
            task=task,
            low=low,
            high=high,
        )
    if labels is None:
        raise DataError("probabilities without labels cannot be measured: pass the labels, one per row, as well.")
    if label is not None or probability is not None or row is not None or split is not None:
        raise DataError("label=, probability=, row= and split= name columns of a file, and what came is not a file.")
    return Predictions.from_arrays(predictions, labels, classes, rows, task, low, high, normalise=normalise)


def _notes(data: Predictions, numbers: dict[str, Number], floor: float) -> list[str]:
    """What a reader must know before trusting a figure, as sentences."""
    n, notes = len(data), list(data.notes)
    if n < FEW_ROWS:
        notes.append(f"Only {n:,} {'row was' if n == 1 else 'rows were'} measured: every interval here is rough.")
    if impossible := int(numbers["impossible_rows"].value):
        where = data.rows[np.isinf(costs(data.probabilities, data.labels))].tolist()
        notes.append(
            f"{impossible:,} of {n:,} labels had probability exactly 0 (rows {some(where)}), so that "
            "cross-entropy is infinite; uncertainty, discrimination and miscalibration are those of the "
            f"probabilities raised to at least {floor:g}."
        )
    if data.task == "range":
        y = data.labels
        within = costs(np.stack([1 - y, y], axis=1), y)
        if (least := float(np.mean(within))) > 0.01 * numbers["uncertainty"].value:
            notes.append(
                "Labels inside the range cost something under any prediction: on these rows no model can "
                f"have a cross-entropy below {least:.4g} nats, nor a skill above "
                f"{1 - least / numbers['uncertainty'].value:.4g}."
            )
    else:
        absent = [name for name, share in zip(data.classes, frequencies(data), strict=True) if share == 0]
        if absent and len(absent) < len(data.classes) - 1:
            notes.append(f"No row has the label {some(absent)}: nothing here tells how well that is predicted.")
        rows_of = np.bincount(data.labels, minlength=len(data.classes))
        if data.task == "binary" and 0 < (rare := int(rows_of.min())) < FEW_ROWS_OF_A_CLASS:
            notes.append(
                f"Only {rare} {'row has' if rare == 1 else 'rows have'} the label "
                f"{data.classes[int(rows_of.argmin())]}, and everything that tells the two classes apart "
                f"rests on "
                f"{'it' if rare == 1 else 'them'}: the intervals are too narrow."
            )
        p = data.probabilities
        tied = int(np.count_nonzero(np.sum(p == p.max(axis=1, keepdims=True), axis=1) > 1))
        if tied:
            notes.append(
                f"In {tied:,} of {n:,} rows several classes are equally probable; the first counts as predicted."
            )
    if numbers["label_entropy"].value == 0:
        notes.append(
            "Every row has the same label: label entropy is 0, there is nothing to tell apart, and skill is undefined."
        )
    return notes
