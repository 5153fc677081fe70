"""What a loss's networks say of the rows that judge them, and what that costs: fair and raw, by every measure."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import fit_scaling
from crossent.measure.comparison.rival import rival
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums import likelihood
from crossent.minimise.contest.ground import Lesson, Rows
from crossent.minimise.data.task import Task
from crossent.minimise.networks.several import averaged
from crossent.minimise.objective.objective import OfRange
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.judge import logits_of, shares_of, together


@dataclass(frozen=True, eq=False)
class Said:
    """What the networks of one training say: by figure log-probabilities (n, classes) of the rows that judge them.

    ``score`` (n,) are the log scores of a code that has them. ``held_out`` is the cross-entropy of the rows that the
    temperature was fitted to, after it.
    """

    log_p: dict[str, NDArray[np.float64]]
    score: NDArray[np.float64] | None
    temperature: float
    seconds: float
    epochs: float
    held_out: float


@dataclass(frozen=True, eq=False)
class Told:
    """What one seed gave: by figure and measure a number for each row that judges (n,).

    ``doubt`` is by figure the standard deviation that fitting a calibrated self adds to the mean miscalibration.
    ``fold`` (n,) is the lesson whose network judged a row; all else are means over lessons.
    """

    costs: dict[str, dict[str, NDArray[np.float64]]]
    doubt: dict[str, float]
    fold: NDArray[np.int64]
    temperature: float
    seconds: float
    epochs: float
    held_out: float

    def __str__(self) -> str:
        return f"{self.held_out:.4f} nats held out after {self.epochs:.3g} epochs, {self.seconds:.1f} s."


def train(lesson: Lesson, recipe: Recipe, seed: int, task: Task, **how: Any) -> Said:
    """One training of a lesson. ``how`` as for ``learn``: fabric, checkpoint, progress, deadline.

    DataError, or what the training raises, if it fails; KeyboardInterrupt if it was stopped by hand.
    """
    began = time.monotonic()
    learned = lesson.learn(recipe, seed, **how)
    history, objective = learned.history, learned.objective
    if "by hand" in history.stopped:
        raise KeyboardInterrupt
    seconds = max(time.monotonic() - began, history.seconds)  # a training that was gone on with had some before
    logits, shares = logits_of(learned.network, lesson.judged), shares_of(learned.network)
    raw = averaged(objective.log_probabilities(logits, raw=True), shares).numpy()
    fair = together(learned.network, objective.log_probabilities(logits)).numpy()
    known = lesson.known
    apart = rows_of(learned.log_probabilities(lesson.apart).numpy(), known.encoded, known.weight)
    temperature = fit_scaling(apart, "temperature")
    score = None
    if isinstance(objective, OfRange):
        with contextlib.suppress(TypeError):  # a code that learns no distribution
            share = task.target(lesson.tested.encoded)
            each = objective.log_score(logits, share.expand(logits.shape[:-1])).unsqueeze(-1)
            score = averaged(each, shares).squeeze(-1).numpy()
    return Said(
        {"fair": temperature.of_logits(fair), "raw": raw},
        score,
        temperature.temperature,
        seconds,
        len(history.train),
        float(np.average(apart.costs(temperature.of_logits(apart.z)), weights=known.weight)),
    )


def told(said: Sequence[tuple[NDArray[np.int64], Said]], tested: Rows, task: Task) -> Told:
    """What the trainings of one seed give together, each with the places of the rows that it was judged by.

    DataError if a label was given probability 0, for such a loss is infinite.
    """
    fold = np.empty(len(tested), dtype=np.int64)
    for number, (at, _) in enumerate(said):
        fold[at] = number
    costs, doubt = {}, {}
    for figure in said[0][1].log_p:
        log_p = _joined([(at, one.log_p[figure]) for at, one in said])
        costs[figure], doubt[figure] = _costs(log_p, tested, task)
    scores = [(at, one.score) for at, one in said if one.score is not None and np.isfinite(one.score).all()]
    if len(scores) == len(said):
        costs["fair"]["log_score"] = _joined(scores)
    means = {
        name: float(np.mean([getattr(one, name) for _, one in said]))
        for name in ("temperature", "seconds", "epochs", "held_out")
    }
    return Told(costs, doubt, fold, **means)


def _joined(parts: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Each part's rows in their places."""
    whole = np.empty((sum(len(at) for at, _ in parts), *parts[0][1].shape[1:]))
    for at, values in parts:
        whole[at] = values
    return whole


def _costs(log_p: NDArray[np.float64], tested: Rows, task: Task) -> tuple[dict[str, NDArray[np.float64]], float]:
    """What each row says of log-probabilities, by measure, and the doubt of the mean miscalibration."""
    predictions = _predictions(log_p, tested, task)
    rows = likelihood.Rows.of(predictions)
    if not np.isfinite(rows.cost).all():
        raise DataError("it gave the label of a test row probability 0, so that its cross-entropy is infinite.")
    found = {"cross_entropy": rows.cost}
    if rows.absolute is not None:
        # Linear in the squares about their mean, so that its mean over the rows is the root, and its scatter that's.
        root = math.sqrt(float(np.average(rows.squared, weights=tested.weight)))
        found |= {"mae": rows.absolute, "rmse": root / 2 + rows.squared / (2 * root) if root else rows.squared}
    else:
        found |= {"accuracy": rows.hit, "brier": rows.squared}
    own = rival("", predictions, None)
    assert own.calibrated is not None
    return found | {"miscalibration": own.costs - own.calibrated}, own.doubt


def _predictions(log_p: NDArray[np.float64], tested: Rows, task: Task) -> Predictions:
    """Log-probabilities (n, classes) as ``measure`` takes them."""
    is_range = task.kind == "range"
    return Predictions(
        np.exp(log_p),
        tested.encoded,
        list(task.classes),
        tested.place,
        task.kind,
        task.low if is_range else None,
        task.high if is_range else None,
        log_probabilities=log_p,
        weights=tested.weight,
    )
