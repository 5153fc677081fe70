"""Which of several models is better on the same rows, by how much, and whether the rows can tell.

Rows are brought together (``join``), each model is boiled down to what they cost it (``rival``), and each statement is
a mean of differences row by row (``contrast``), with an error that respects clusters (``cluster``). All models are held
against one, the baseline.

**Several at once.** With m models against the baseline, each interval is one of 1 − 0.05/m, so that all of them hold
together 95 % of the time (Bonferroni), and p-values are Holm's. Slices likewise, m being the number of slices times
that of models. A slice that stands out among many has stood that test.

**Probability 0.** A label that had probability 0 makes a cross-entropy infinite, and the difference too, or undefined
where both are. It is reported so, and everything else is said of the probabilities raised to the floor, those of all
models alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossent.errors import DataError, some
from crossent.files import stem
from crossent.measure.comparison.contrast import Ground
from crossent.measure.comparison.join import Head, Joined, join
from crossent.measure.comparison.ranking import ranking
from crossent.measure.comparison.rival import rival
from crossent.measure.predictions.predictions import Predictions, same_index, slices_by
from crossent.measure.sources import read_predictions, samples
from crossent.measure.sources.files import are_files, find
from crossent.measure.sources.tables import header
from crossent.measure.sums.likelihood import FLOOR, floor_said
from crossent.record import Record

Progress = Callable[[float], None]
"""What is told the share of the work that is done."""


@dataclass(frozen=True)
class Source:
    """Gives a model's predictions, each time it is asked, so that only one model's probabilities are held at a time.

    ``named`` says whether its rows have ids; None, that nobody knows.
    """

    read: Callable[[Progress | None], Predictions]
    named: bool | None = None


def compare(
    *predictions: Any,
    labels: Any = None,
    names: Sequence[str] | None = None,
    baseline: str | int | None = None,
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
    rows: Any = None,
    floor: float = FLOOR,
    title: str | None = None,
    normalise: bool = False,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    progress: Progress | None = None,
) -> Record:
    """Compare models on the same rows, and return a record of kind "comparison" (docs/record.md names its parts).

    ``predictions`` are two or more files, with ``label``, ``probability``, ``row``, ``split``, ``weight``, ``group``,
    ``by``, ``bytes``, ``form`` and ``truth`` naming columns and kinds as in ``read_predictions``; or one file and in
    ``probability`` one column for each model, that of class 1; or arrays (n,) or (n, classes) of probabilities, with
    ``labels`` and ``rows``, and in ``weight``, ``group``, ``bytes`` and ``by`` (a mapping of names to values) the
    values (n,) themselves, as in ``evaluate``; or ``Predictions``; or one mapping of any of these by name. Files, each
    of which may be a folder, a pattern or a list of them, are joined on their row ids. Weights, groups, slices and
    bytes are the baseline's; of a file that is not the baseline these columns are not read.

    The first model is the baseline unless ``baseline`` names another, or gives its place. Differences are model minus
    baseline, in nats: below 0 the model is the better one. ``floor`` is what probabilities are raised to, those of all
    models, if a label had probability 0 in one of them. ``progress`` is told what share of the files has been read.

    Raises DataError, a sentence, for rows, labels, classes or ids that do not belong together. Memory: four columns of
    float64 per model beside ids, labels, weights and clusters, and one model's probabilities at a time, three times
    over while it is calibrated. Cost: files are read twice; each model is calibrated as by ``evaluate``.

    >>> labels = [1, 0, 1, 0, 1, 1, 0, 0]
    >>> old, new = [0.6, 0.5, 0.6, 0.4, 0.7, 0.5, 0.4, 0.6], [0.9, 0.4, 0.8, 0.2, 0.9, 0.8, 0.1, 0.2]
    >>> record = compare({"old": old, "new": new}, labels=labels)
    >>> print(record["difference"], record.facts["verdict"])
    -0.373 nats (-0.662 to -0.248) better
    """
    models = _named(predictions, names, probability)
    order = _baseline_first(list(models), baseline)
    same_index({name: what for name, (what, _) in models.items()})
    beside: dict[str, Any] = {"weight": weight, "group": group, "by": by, "bytes": bytes}

    def source(name: str) -> Source:
        what, own = models[name]
        settings: dict[str, Any] = {"classes": classes, "task": task, "low": low, "high": high, "normalise": normalise}
        settings |= {"form": form, "truth": truth}
        if isinstance(what, Predictions):
            return Source(lambda seen: what)
        if are_files(what):
            if labels is not None or rows is not None or not _are_names(weight, group, by, bytes):
                raise DataError(
                    "files bring their own labels, row ids, weights, groups, slices and bytes: name their columns with "
                    "label=, row=, weight=, group=, by= and bytes=."
                )
            asked: dict[str, Any] = {"label": label, "probability": own, "row": row, "split": split}
            asked |= beside if name == order[0] else {}
            return Source(lambda seen: read_predictions(what, **asked, **settings, progress=seen), _has_ids(what, row))
        if labels is None:
            raise DataError("probabilities without labels cannot be compared: pass labels=, one per row, as well.")
        named = (column for column in (weight, group, by, bytes) if isinstance(column, str))
        if any(column is not None for column in (label, row, split, probability, *named)):
            raise DataError(
                "label=, probability=, row= and split= name columns of files, and what came are arrays: pass labels= "
                "and rows=, and the values themselves in weight=, group=, by= and bytes=."
            )
        found = Predictions.from_arrays(
            what, labels, rows=rows, weights=weight, groups=group, slices=slices_by(by), bytes=bytes, **settings
        )
        return Source(lambda seen: found, rows is not None)

    return rank({name: source(name) for name in order}, floor, title, progress)


def _are_names(*columns: Any) -> bool:
    """Whether these name columns of a file, or are not given."""
    names = [name for column in columns for name in (column if isinstance(column, list | tuple) else [column])]
    return all(name is None or isinstance(name, str) for name in names)


def _has_ids(path: Any, row: str | None) -> bool:
    """Whether files have row ids; samples of language models have the numbers of their documents."""
    file = find(path)[0]
    return samples.recognised(file) or row is not None or "row" in header(file)[0]


def rank(
    sources: Mapping[str, Source], floor: float = FLOOR, title: str | None = None, progress: Progress | None = None
) -> Record:
    """Do what ``compare`` does for models by name, the first being the baseline."""
    if not 0 < floor < 1:
        raise DataError(
            f"the floor is a probability between 0 and 1, and {floor} is not; {floor_said(FLOOR)} is usual."
        )
    heads: list[Head] = []
    shared: dict[str, Any] = {}
    notes: dict[str, None] = {}  # in order, each once
    for place, (name, source) in enumerate(sources.items()):
        data = source.read(_part_of(progress, place, 2 * len(sources)))
        heads.append(Head.of(name, data, source.named))
        for kind, cells in (
            ("weights", data.weights),
            ("groups", data.groups),
            ("slices", data.slices),
            ("bytes", data.bytes),
        ):
            if cells is not None and len(cells) and kind not in shared:
                shared[kind] = len(heads) - 1, cells
        notes |= dict.fromkeys(data.notes)
    del data
    joined, ground = _ground(join(heads), heads[0], shared)
    impossible = [int(np.count_nonzero(np.isinf(h.costs[at]))) for h, at in zip(heads, joined.places, strict=True)]
    used = floor if any(impossible) else None
    rivals = []
    for place, (name, source) in enumerate(sources.items()):
        seen = _part_of(progress, len(sources) + place, 2 * len(sources))
        rivals.append(rival(name, _on(joined, place, source.read(seen), heads[0], ground), used))
    return ranking(heads[0], joined, ground, rivals, impossible, floor, title, [*notes])


def _part_of(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """Tell of one part of several that come one after the other."""
    return None if progress is None else lambda share: progress((part + share) / parts)


def _named(predictions: Sequence[Any], names: Sequence[str] | None, probability: Any) -> dict[str, tuple[Any, Any]]:
    """The models by name, each with the columns of probabilities asked for."""
    models: list[Any] = list(predictions)
    own = [probability] * len(models)
    said = list(names) if names is not None else None
    if len(models) == 1 and isinstance(models[0], Mapping):
        said, models = [str(name) for name in models[0]], list(models[0].values())
        own = [probability] * len(models)
    elif len(models) == 1 and are_files(models[0]) and not isinstance(probability, str | None):
        own = list(probability)
        models = models * len(own)
        said = said or [str(column) for column in own]
    if len(models) < 2:
        if len(models) == 1 and isinstance(models[0], list | tuple) and are_files(models[0]):
            raise DataError("a list of files is one model in parts: give each model by itself, compare(one, other).")
        raise DataError(
            f"a comparison needs two models or more, and {len(models)} came: give another file, or of one file a "
            "column of probabilities for each model (probability=[…], or --probability twice)."
        )
    if said is None:
        said = [_letter(place) for place in range(len(models))]
        if all(isinstance(model, str | os.PathLike) for model in models):
            paths = [os.fspath(model) for model in models]
            files = [os.path.basename(path.rstrip("/\\")) for path in paths]
            stems = [stem(name) for name in files]
            said = next(some for some in (stems, files, paths) if len(set(some)) == len(some) or some is paths)
    if len(said) != len(models):
        raise DataError(f"there are {len(models)} models and {len(said)} names: {some(said)}.")
    if twice := sorted({name for name in said if said.count(name) > 1}):
        raise DataError(f"two models are called {some(twice)}. Give each another name with names= (--name).")
    return dict(zip(said, zip(models, own, strict=True), strict=True))


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"model {place + 1}"


def _baseline_first(names: list[str], baseline: str | int | None) -> list[str]:
    if baseline is None:
        return names
    if isinstance(baseline, int):
        if not 0 <= baseline < len(names):
            raise DataError(f"the baseline is the model in place {baseline}, and the places are 0 to {len(names) - 1}.")
        baseline = names[baseline]
    if baseline not in names:
        raise DataError(f"the baseline {baseline!r} is none of the models, which are {some(names, 10)}.")
    return [baseline, *(name for name in names if name != baseline)]


def _ground(joined: Joined, first: Head, shared: Mapping[str, Any]) -> tuple[Joined, Ground]:
    """Bring weights, groups and slices to the joint rows; rows of weight 0 count for nothing and are left out."""

    def brought(kind: str, cells: Any) -> Any:
        return cells[joined.places[shared[kind][0]]]

    weights = brought("weights", shared["weights"][1]) if "weights" in shared else None
    groups = brought("groups", shared["groups"][1]) if "groups" in shared else None
    size = brought("bytes", shared["bytes"][1]) if "bytes" in shared else None
    slices = {n: brought("slices", cells) for n, cells in shared["slices"][1].items()} if "slices" in shared else {}
    if weights is not None and not weights.all():
        here = weights > 0
        if not here.any():
            raise DataError("all rows that the models share have weight 0, so that nothing is left to compare.")
        joined, weights = joined.take(here), weights[here]
        groups, size = (None if cells is None else cells[here] for cells in (groups, size))
        slices = {name: cells[here] for name, cells in slices.items()}
    clusters = None if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)
    labels: Any = joined.labels
    if first.classes and labels.dtype.kind != "f":
        labels = np.array(first.classes, dtype=object)[labels]
    elif labels.ndim == 2:
        labels = np.array([first.classes[c] for c in labels.argmax(axis=1)], dtype=object)
    elif first.task == "range":
        low, high = first.range[0] or 0.0, 1.0 if first.range[1] is None else first.range[1]
        labels = low + labels * (high - low)
    return joined, Ground(joined.rows, labels, weights, clusters, groups, slices, size)


def _on(joined: Joined, place: int, data: Predictions, first: Head, ground: Ground) -> Predictions:
    """A model's predictions of the joint rows, its columns in the first one's order, with what the models share."""
    at = np.ix_(joined.places[place], np.array(joined.columns[place]))
    logs = data.log_probabilities
    return Predictions(
        data.probabilities[at],
        joined.labels,
        first.classes,
        joined.rows,
        data.task,
        data.low,
        data.high,
        log_probabilities=None if logs is None else logs[at],
        weights=ground.weights,
        groups=ground.groups,
    )
