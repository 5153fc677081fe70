"""Sample files of lm-evaluation-harness (``--log_samples``): ``samples_<task>_<date>.jsonl``, a sample on each line.

Of a line these are read: ``doc_id``; ``filtered_resps`` (or ``resps``), for each request the log-likelihood in nats, as
text, and whether it was the greedy choice; ``target``; ``arguments``, the requests themselves; and what the harness
made of them where it tells the right choice (``_right``). Files of version 0.4.13 are in
tests/measure/lm_eval_samples.

**Multiple choice**: a request per choice. The log-likelihoods ℓ_c are logits: p_c = exp(ℓ_c) / Σ exp(ℓ), the
distribution that the harness' own Brier score takes, whose most probable class its ``acc`` counts. ``form="per-byte"``
divides ℓ_c by the bytes of the choice first, as its ``acc_bytes`` does. Where samples have unequally many choices, a
choice that is not there has probability 0. Requests without a context, which ``acc_mutual_info`` adds, are left out.

**Documents and continuations** (``loglikelihood_rolling``, ``loglikelihood``): a single request, so that nothing is
chosen. A row is a document, its cost is −ℓ, its bytes those of the text; all documents are groups of their own, and
the sum of costs over the sum of bytes is what bits per byte come from. The bytes that the harness noted beside its own
``bits_per_byte`` are taken where it did; it counts some texts before it has cleaned them.

Row ids are ``doc_id``; of several tasks ``task/doc_id``, and the task is a slice. Samples are kept as a few numbers
each, some hundredth of their line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.files import stem
from crossent.measure.predictions.predictions import Door, Predictions
from crossent.measure.sources.files import File

SOFTMAX = (
    "Samples of lm-evaluation-harness: probabilities are the softmax of the choices' log-likelihoods, as its acc and "
    "Brier score take them (form='per-byte' divides by the bytes of a choice first)."
)
PER_BYTE = (
    "Samples of lm-evaluation-harness: probabilities are the softmax of the choices' log-likelihoods per byte, as its "
    "acc_bytes takes them."
)
DOCUMENTS = (
    "Samples of lm-evaluation-harness: every row is a document and costs its negative log-likelihood; nothing was "
    "chosen among, so that there is no accuracy and nothing to calibrate."
)


@dataclass(frozen=True)
class Sample:
    """A line: the log-likelihoods of its requests, the bytes of their texts, and which was right (−1: no choice).

    ``named`` is the choice whose text is ``right``'s number, where the line alone leaves open which of them is meant;
    ``read_as``, whether the line tells that targets are numbers of choices, or their texts.
    """

    doc: str
    scores: list[float]
    bytes: list[int]
    right: int
    named: int | None = None
    read_as: str = ""


def recognised(file: File) -> bool:
    """Whether the first line of a file is a sample."""
    if file.kind != "JSON lines":
        return False
    with file.reading(), file.open_bytes() as stream:
        try:
            first = json.loads(stream.readline())
        except ValueError:
            return False
    return (
        isinstance(first, dict)
        and {"doc_id", "arguments"} <= set(first)
        and bool({"resps", "filtered_resps"} & set(first))
    )


def batches(
    files: list[File],
    source: str,
    form: str | None,
    told: dict[str, Any],
    rows: int,
    read: Callable[[list[File]], Iterable[list[Sample]]] | None = None,
) -> Iterator[Predictions]:
    """Read sample files; ``form`` is None or "per-byte", and nothing else can be said of them.

    ``read`` gives the samples of each file, in the files' order, where others read them than this process.
    """
    if said := [name for name, value in told.items() if value not in (None, False)]:
        raise DataError(
            f"{files[0]} holds samples of lm-evaluation-harness, of which {said[0]}= cannot be said: leave it out."
        )
    if form not in (None, "logits", "per-byte"):
        raise DataError(f"samples of lm-evaluation-harness have form=None or 'per-byte', and not {form!r}.")
    given = map(samples_of, files) if read is None else read(files)
    yield from _checked(
        files, [(file, x) for file, part in zip(files, given, strict=True) for x in part], source, form, rows
    )


def _checked(
    files: list[File], read: list[tuple[File, Sample]], source: str, form: str | None, rows: int
) -> Iterator[Predictions]:
    """What only all files together show: ids that come twice, how many choices there are; then rows."""
    tasks = {file: _task(file) for file in files}
    if not read:
        raise DataError(f"{files[0]} has no samples.")
    several = len(set(tasks.values())) > 1
    ids = [f"{tasks[file]}/{sample.doc}" if several else sample.doc for file, sample in read]
    seen: set[str] = set()
    for (file, _), name in zip(read, ids, strict=True):
        if name in seen:
            raise DataError(
                f"{file}: the document {name} comes twice. Read one model's run, and of several filters one, at a time."
            )
        seen.add(name)
    whole = np.array([int(name) for name in ids]) if all(name.isdecimal() for name in ids) else np.array(ids, object)
    task = np.array([*(tasks[file] for file, _ in read), None], dtype=object)[:-1]
    choices = {sample.right >= 0 for _, sample in read}
    if len(choices) > 1:
        raise DataError("some samples are multiple choice and some are documents: read them one after the other.")
    widest = max(len(sample.scores) for _, sample in read)
    door = Door(list(range(widest)), form="logits")
    door.notes.append((PER_BYTE if form == "per-byte" else SOFTMAX) if choices == {True} else DOCUMENTS)
    for start in range(0, len(read), rows):
        part = [sample for _, sample in read[start : start + rows]]
        here = slice(start, start + len(part))
        cut = {"task": task[here]} if several else {}
        if choices == {True}:
            z = np.full((len(part), widest), -np.inf)
            for i, sample in enumerate(part):
                lengths = np.maximum(sample.bytes, 1) if form == "per-byte" else 1
                z[i, : len(sample.scores)] = np.array(sample.scores) / lengths
            right = np.array([sample.right for sample in part])
            yield door.admit(z, right, whole[here], slices=cut, source=source)
        else:
            yield _documents(part, whole[here], cut, source, tuple(door.notes))


def _documents(
    part: list[Sample], ids: NDArray[Any], slices: dict[str, NDArray[Any]], source: str, notes: tuple[str, ...]
) -> Predictions:
    """Documents: column 1 is the probability of the whole text, column 0 that of any other."""
    whole = np.array([sample.scores[0] for sample in part])
    with np.errstate(divide="ignore"):
        other = np.where(whole > -math.log(2), np.log(-np.expm1(whole)), np.log1p(-np.exp(whole)))
    logs = np.stack([other, whole], axis=1)
    return Predictions(
        np.exp(logs),
        np.ones(len(part), np.int64),
        ["another text", "the text"],
        ids,
        "text",
        source=source,
        notes=notes,
        log_probabilities=logs,
        groups=ids,
        slices=slices,
        bytes=np.array([sample.bytes[0] for sample in part]),
    )


def samples_of(file: File) -> list[Sample]:
    """Read a file to its end: what one worker does of many."""
    read = list(_samples(file))
    if any(sample.named is not None for sample in read):
        known = {sample.read_as for sample in read} - {""}
        if len(known) != 1:
            place = next(i for i, sample in enumerate(read) if sample.named is not None)
            raise DataError(
                f"{file}: the target of sample {place + 1} is the number of one choice and the text of another, and "
                "no sample tells which is meant: let the task have brier_score among its metrics, which notes it."
            )
        if known == {"text"}:
            read = [sample if sample.named is None else replace(sample, right=sample.named) for sample in read]
    return read


def _task(file: File) -> str:
    return re.sub(r"^samples_|_\d{4}-\d\d-\d\dT.*$", "", stem(file.name.replace("\\", "/")))


def _samples(file: File) -> Iterator[Sample]:
    with file.reading(), file.open_bytes() as stream:
        for number, line in enumerate(stream):
            if line.strip():
                try:
                    yield _sample(json.loads(line))
                except (KeyError, IndexError, TypeError, ValueError) as trouble:
                    raise DataError(
                        f"{file}: line {number + 1} is no sample with log-likelihoods ({type(trouble).__name__}: "
                        f"{trouble}). Samples of multiple choice and of log-likelihoods are read; those of generated "
                        "text have no probabilities."
                    ) from trouble


def _sample(plain: dict[str, Any]) -> Sample:
    requests = plain["arguments"]
    if isinstance(requests, dict):
        requests = [list(request.values()) for request in requests.values()]
    if any(isinstance(request[-1], dict) for request in requests):  # how to generate; an answer of "-3" is no cost
        raise ValueError("its text was generated")
    responses = plain.get("filtered_resps") or plain["resps"]
    if "acc_mutual_info" in plain:  # behind the choices come the same without a context
        requests = requests[: len(requests) // 2]
    scores = [_first(response) for response in responses][: len(requests)]
    if any(math.isnan(score) or score > 1e-6 for score in scores):
        raise ValueError(f"a log-likelihood is 0 or less, and these are {scores}")
    texts = [str(request[-1]) for request in requests]
    lengths = [len(text.encode()) for text in texts]
    doc = str(plain["doc_id"])
    if len(scores) == 1:
        noted = plain.get("bits_per_byte")
        if isinstance(noted, list) and len(noted) == 2 and float(noted[1]) == int(noted[1]) > 0:
            lengths = [int(noted[1])]
        if not lengths[0]:
            raise ValueError("the document has no bytes")
        return Sample(doc, [min(scores[0], 0.0)], lengths, -1)
    if all(text.startswith(" ") for text in texts):  # what stands between a context and a choice is no part of it
        lengths = [length - 1 for length in lengths]
    return Sample(doc, scores, lengths, *_right(plain, texts, scores))


_GOLD = ("brier_score", "likelihood", "f1", "mcc")
"""Metrics that note the number of the right choice before what they are made of."""


def _right(plain: dict[str, Any], choices: list[str], scores: list[float]) -> tuple[int, int | None, str]:
    """The number of the right choice, and how ``target`` was read: as a "number", or as a "text".

    It is noted by some metrics; else it is ``target``, its number or its text, whichever agrees with ``acc``, which
    tells whether the most probable choice was right. Where both do, both are given, and other samples of the file have
    to tell. Where contexts are what is chosen among (WinoGrande) ``target`` is no choice, and of two ``acc`` tells.
    """
    noted = next((plain[name][0] for name in _GOLD if isinstance(plain.get(name), list) and plain[name]), None)
    if noted is not None:
        if not isinstance(noted, int) or not 0 <= noted < len(scores):
            raise ValueError(f"the right choice is noted as {noted!r}, and there are {len(scores)} choices")
        return noted, None, ""
    said, texts = str(plain["target"]).strip(), [choice.strip() for choice in choices]
    hit, best = plain.get("acc"), scores.index(max(scores))
    if len(scores) == 2 and len(set(texts)) == 1 and hit in (0, 1):
        return (best if hit else 1 - best), None, ""
    found = {}
    if said.isdecimal() and int(said) < len(scores):
        found["number"] = int(said)
    if texts.count(said) == 1:
        found["text"] = texts.index(said)
    if len(set(found.values())) > 1 and hit in (0, 1):
        found = {how: place for how, place in found.items() if (place == best) == bool(hit)}
    if not found:
        many = f", and there are {len(scores)} choices" if said.isdecimal() else ""
        raise ValueError(f"the target is {said!r}{many}, neither the number of a choice nor the text of one")
    if len(found) == 1:
        [(how, place)] = found.items()
        return place, None, how
    named = found["text"] if found["text"] != found["number"] else None
    return found["number"], named, ""


def _first(response: Any) -> float:
    """The log-likelihood, which is nested more or less deeply from version to version."""
    while isinstance(response, list | tuple):
        response = response[0]
    return float(response)
