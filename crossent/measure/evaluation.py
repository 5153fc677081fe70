"""Everything that any number of rows of probabilities and labels can tell, in one record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import numpy as np

from crossent.errors import DataError, some
from crossent.measure.predictions.predictions import Predictions, slices_by
from crossent.measure.sources import batches
from crossent.measure.sources.files import are_files
from crossent.measure.sums.likelihood import FLOOR, floor_said
from crossent.measure.sums.sample import capacity_for
from crossent.measure.tally.engine import ENGINES, tallied_by_ray
from crossent.measure.tally.tally import Tally
from crossent.measure.values.by_class import per_class
from crossent.measure.values.by_slice import MOST_PARTS
from crossent.measure.values.means import Evidence
from crossent.measure.values.reliability import axis_names, curves, reliability
from crossent.measure.values.slices import concentration, costliest, slices
from crossent.record import Curve, Number, Record, Table

FEW_ROWS = 100
FEW_ROWS_OF_A_CLASS = 10  # with 4 of a class among 100, intervals said to hold 95 % held 90 % (docs/measure.md)
FEW_GROUPS = 20
CARRIERS = 2  # so few groups with 80 % of the scatter of many, and the interval is what these happened to cost
THREADS = 2
"""Two, because NumPy and the reading of files share what cores there are."""


def evaluate(
    predictions: Any,
    labels: Any = None,
    *,
    label: str | Sequence[str] | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    weight: Any = None,
    group: Any = None,
    by: Any = None,
    bytes: Any = None,
    form: str | None = None,
    truth: str | None = None,
    floor: float = FLOOR,
    title: str | None = None,
    normalise: bool = False,
    classes: Sequence[Any] | None = None,
    rows: Any = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    engine: str = "local",
    progress: Callable[[float], None] | None = None,
) -> Record:
    """Measure what predictions are worth, and return a record of kind "evaluation" (docs/record.md names its
    parts).

    ``predictions`` is a file, a folder or a glob of them, read in batches, with ``label``, ``probability``, ``row`` and
    ``split`` as in ``read_predictions``; or probabilities (n,) or (n, classes) with ``labels`` (n,), ``classes`` and
    ``rows`` as in ``Predictions.from_arrays``; or a ``Predictions``, or an iterable of them. ``labels`` may be shares
    of the classes, or counts of annotators' votes (``truth``); ``form`` says that predictions are "log-probabilities"
    or "logits". ``task="range"`` with ``low`` and ``high`` is for labels that are numbers. ``floor`` is what
    ``cross_entropy_floored`` raises probabilities to, and nothing else does unless a row is impossible.

    What a row counts (``weight``), which rows are not independent (``group``), the columns of slices (``by``) and the
    length of what was predicted (``bytes``) are names of columns for a file; for arrays they are the values (n,)
    themselves, ``by`` a mapping of names to them.

    ``engine="ray"`` reads files on the workers of Ray (engine.py), with the same record. ``progress`` is told
    what share of the files has been read.

    Entropies are in nats or bits, as each number says. Intervals are 95 %, and without ``group`` they take rows for
    independent. Raises DataError, a sentence, for anything that is not a prediction. Cost: one pass, some 100 ns for a
    row of two classes, and a second or so at the end; of files never more than a few batches are held.

    >>> record = evaluate([0.9, 0.2, 0.6, 0.3], [1, 0, 1, 0])
    >>> print(record["cross_entropy"])
    0.299 nats (0.021 to 0.603)
    >>> record.tables["per_class"]["class"], record.facts["notes"][0]
    (['0', '1'], 'Only 4 rows were measured: every interval here is rough.')
    """
    if not 0 < floor < 1:
        raise DataError(
            f"the floor is a probability between 0 and 1, and {floor} is not; {floor_said(FLOOR)} is usual."
        )
    if engine not in ENGINES:
        raise DataError(f"engine should be {' or '.join(map(repr, ENGINES))}, and is {engine!r}.")
    if engine != "local" and not are_files(predictions):
        raise DataError(f"engine={engine!r} reads files, and what came is none: leave engine= out, or name files.")
    if isinstance(predictions, Predictions):
        read: Iterable[Predictions] = [predictions]
    elif are_files(predictions):
        if labels is not None or rows is not None:
            raise DataError(
                "a file brings its own labels and row ids: name their columns with label= and row=, not "
                "labels= and rows=."
            )
        named: dict[str, Any] = {
            "label": label, "probability": probability, "row": row, "split": split, "weight": weight, "group": group,
            "by": by, "bytes": bytes, "form": form, "truth": truth, "classes": classes, "task": task, "low": low,
            "high": high, "normalise": normalise,
        }  # fmt: skip
        if engine == "ray":
            tally, first, notes = tallied_by_ray(predictions, named, lambda batch: tally_for(batch, floor), progress)
            return record_of(tally, first.source, first.split, notes, title)
        read = batches(predictions, **named, progress=progress)
    elif isinstance(predictions, Iterator):
        read = predictions
    else:
        if labels is None:
            raise DataError("probabilities without labels cannot be measured: pass the labels, one per row, as well.")
        if label is not None or probability is not None or row is not None or split is not None:
            raise DataError(
                "label=, probability=, row= and split= name columns of a file, and what came is not a file."
            )
        read = [
            Predictions.from_arrays(
                predictions, labels, classes, rows, task, low, high, form=form, truth=truth, weights=weight,
                groups=group, slices=slices_by(by), bytes=bytes, normalise=normalise,
            )
        ]  # fmt: skip
    tally, first, notes = tallied(read, floor)
    return record_of(tally, first.source, first.split, notes, title)


def tallied(read: Iterable[Predictions], floor: float = FLOOR) -> tuple[Tally, Predictions, list[str]]:
    """Add up batches in two threads; give the tally, the first batch and what the batches had to say.

    Batch i goes to thread i mod 2, so that the same batches give the same bits.
    """
    notes: dict[str, None] = {}
    first: Predictions | None = None
    with ThreadPoolExecutor(THREADS) as pool:
        running: list[Future[Tally] | None] = [None] * THREADS
        empty: Tally | None = None
        for turn, batch in zip(cycle(range(THREADS)), read, strict=False):
            if not isinstance(batch, Predictions):
                raise DataError(
                    "an iterator is taken for batches of Predictions, and it gave "
                    f"{type(batch).__name__}: give arrays, tensors, frames or lists."
                )
            if first is None or empty is None:
                first = batch
                empty = tally_for(batch, floor)
            notes |= dict.fromkeys(batch.notes)
            before = running[turn]
            running[turn] = pool.submit((empty if before is None else before.result()).add, batch)
        done = [job.result() for job in running if job is not None]
    if first is None:
        raise DataError("there are no rows to measure.")
    tally = done[0]
    for other in done[1:]:
        tally = tally.merge(other)
    if not tally.rows:
        raise DataError("all weights are 0, so that nothing is left to measure: a row that counts weighs more.")
    return tally, first, list(notes)


def tally_for(batch: Predictions, floor: float = FLOOR) -> Tally:
    """Give the tally of no rows, with room for the sample that classes are recalibrated on."""
    return Tally.like(batch, floor, capacity=capacity_for(batch.probabilities.shape[1]))


def record_of(
    tally: Tally,
    source: str | None = None,
    split: str | None = None,
    notes: Sequence[str] = (),
    title: str | None = None,
) -> Record:
    """Give the record of what was added up, wherever that was."""
    parts, calibrated_with, calibrated = tally.parts() if tally.task != "text" else ({}, None, None)
    numbers = tally.numbers(parts)
    floored = tally.floor if tally.sums.count("impossible") else None
    low, high = tally.low or 0.0, 1.0 if tally.high is None else tally.high
    tables: dict[str, Table] = {}
    if tally.task in ("binary", "multi-class"):
        off = None if tally.class_bins is None else tally.class_bins.value
        of, classes = tally.evidence(), tally.classes
        tables["per_class"] = per_class(of, classes, tally.by_class, floored, tally.class_folds, off)
    if tally.slices:
        tables["slices"] = slices(tally.slices, floored, tally.task, tally.groups is not None, tally.sample)
    usual = tally.evidence().usual_confidence if tally.task in ("binary", "multi-class") and not tally.soft else None
    tables["costliest"] = costliest(tally.costliest, tally.task, tally.classes, low, high, usual)
    drawn: dict[str, Curve] = {}
    if calibrated is not None:
        names = axis_names(tally.task, tally.classes)
        drawn["reliability"] = reliability(calibrated, names, tally.soft)
        drawn |= curves(calibrated, names)
    drawn["concentration"] = concentration(tally.by_cost.value, tally.impossible(), tally.floor)
    facts: dict[str, Any] = {"task": tally.task}
    if tally.task == "range":
        facts |= {"low": tally.low, "high": tally.high}
    else:
        facts["classes"] = list(tally.classes)
    facts["rows"] = tally.rows
    if tally.groups is not None:
        count, counted = tally.groups.how_many()
        facts["groups" if counted else "groups_estimated"] = count
    facts |= {name: value for name, value in (("source", source), ("split", split)) if value is not None}
    facts |= {"floor": tally.floor, "calibrated_with": calibrated_with, "notes": [*notes, *_notes(tally, numbers)]}
    return Record(
        kind="evaluation",
        title=title or (f"Predictions in {_short(source)}" if source else "Predictions"),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        numbers=numbers,
        tables=tables,
        curves=drawn,
        facts={name: value for name, value in facts.items() if value is not None},
    )


def _short(source: str) -> str:
    """The names of files without their folders; ``source`` may be a list of several."""
    return ", ".join(os.path.basename(name) for name in source.split(", "))


def _notes(tally: Tally, numbers: dict[str, Number]) -> list[str]:
    """What a reader must know before trusting a figure, as sentences."""
    n, notes, floor = tally.rows, [], tally.floor
    of = tally.evidence()
    if n < FEW_ROWS:
        notes.append(f"Only {n:,} {'row was' if n == 1 else 'rows were'} measured: every interval here is rough.")
    elif tally.groups is None and of.effective < FEW_ROWS:
        notes.append(
            f"The rows weigh so unequally that they are worth no more than {of.effective:.3g} equal ones: every "
            "interval here is rough."
        )
    if of.sums.count("measured in bytes") == n and not of.sums.total("bytes")[0]:
        notes.append("No row has any bytes, so that there are no bits per byte.")
    if tally.groups is not None and of.effective < FEW_GROUPS:
        notes.append(
            f"The rows are worth no more than {of.effective:.0f} independent groups of equal size: the intervals rest "
            "on few groups and are rough."
        )
    notes += _on_groups(tally, of)
    if impossible := of.impossible:
        where = [row[2] for row in tally.costliest if np.isinf(row[0])]
        shown = (
            some(where) if impossible <= len(where) else f"{', '.join(map(str, where[:5]))}, … ({impossible:,} in all)"
        )
        notes.append(
            f"{impossible:,} of {n:,} labels had probability exactly 0 (row{'s' * (impossible > 1)} {shown}), so that "
            "cross-entropy is infinite; uncertainty, discrimination and miscalibration are those of the "
            f"probabilities raised to at least {floor_said(floor)}."
        )
    if tally.task == "text":
        return notes
    values = sum(len(part.values) for part in tally.slices.values())
    if values > MOST_PARTS:
        notes.append(
            f"Discrimination and miscalibration are given for {MOST_PARTS:,} of the {values:,} slices, those of most "
            "weight; everything else for all."
        )
    if tally.soft:
        least, entropy = numbers["truth_entropy"].value, numbers["uncertainty"].value
        if least > 0.01 * entropy > 0:
            what = "Labels inside the range" if tally.task == "range" else "Labels that are shares of several classes"
            notes.append(
                f"{what} cost something under any prediction: on these rows no model can "
                f"have a cross-entropy below {least:.4g} nats, nor a skill above {1 - least / entropy:.4g}."
            )
    if tally.task != "range":
        absent = [name for name, share in zip(tally.classes, of.frequencies, strict=True) if share == 0]
        if absent and len(absent) < len(tally.classes) - 1:
            notes.append(f"No row has the label {some(absent)}: nothing here tells how well that is predicted.")
        if tally.task == "binary" and not tally.soft:
            rows_of = of.moments[:, 0]
            rare = round(float(rows_of.min()))
            if of.sums.count("weighted") == 0 and 0 < rare < FEW_ROWS_OF_A_CLASS:
                notes.append(
                    f"Only {rare} {'row has' if rare == 1 else 'rows have'} the label "
                    f"{tally.classes[int(rows_of.argmin())]}, and everything that tells the two classes apart "
                    f"rests on "
                    f"{'it' if rare == 1 else 'them'}: the intervals are rough."
                )
        if tied := of.sums.count("tied"):
            notes.append(
                f"In {tied:,} of {n:,} rows several classes are equally probable; the first counts as predicted."
            )
    if numbers["label_entropy"].value == 0:
        notes.append(
            "Every row has the same label: label entropy is 0, there is nothing to tell apart, and skill is undefined."
        )
    return notes


def _on_groups(tally: Tally, of: Evidence) -> list[str]:
    """What no interval can know where few of the groups tell of a class, or make most of the scatter."""
    if tally.groups is None or len(tally.groups) < 2:
        return []
    count, counted = tally.groups.how_many()
    groups = f"{count:,} groups" if counted else f"about {count:,} groups"
    held = tally.groups.held()
    if of.few_hold and held.min() < of.effective / 2:
        rarer = int(held.argmin())
        holding = int(np.count_nonzero(tally.groups.labels()[:, rarer]))
        return [
            f"The label {tally.classes[rarer]} is held by {holding or 'none'} of {groups}, too few to tell what it "
            "costs. Where groups scatter too little, the intervals take the model's word for it: if it is too sure of "
            "itself, they are too narrow."
        ]
    if (carriers := tally.groups.carriers("floored")) <= CARRIERS < of.effective / 4:
        return [
            f"{'One' if carriers == 1 else carriers} of {groups} {'makes' if carriers == 1 else 'make'} 80 % or more "
            "of the scatter that the interval of the cross-entropy rests on: how often such a group comes, and what it "
            "costs, is hardly known."
        ]
    return []
