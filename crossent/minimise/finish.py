"""From networks that have learnt to a run: calibrate by the rows held out, test once, and write down what was found."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.files import stem
from crossent.measure import Calibrator, Predictions, evaluate
from crossent.measure.calibration import choose as choose_calibrator
from crossent.minimise.data.parts import Judged
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.task import Task
from crossent.minimise.data.tokens import Tokens
from crossent.minimise.recipe import Recipe
from crossent.minimise.run import Predicted, Run
from crossent.minimise.training.learn import Learned
from crossent.minimise.training.state import History
from crossent.record import Curve, Number, Record, Table

MOST_SAID = 10_000_000
"""Probabilities of rows held out by which a calibrator is chosen: it takes hundreds of passes over them."""
FEWER = (
    "The calibrator was chosen by {rows:,} of the {held_out:,} rows held out, evenly spaced: all of them together have "
    "more than {most:,} probabilities."
)
COVERAGE = 0.9
"""Of the intervals that the test rows are counted in."""


def finish(
    learned: Learned,
    recipe: Recipe,
    preparation: Preparation | Tokens,
    held_out: Judged,
    test: Judged,
    test_x: Tensor,
    counts: Tensor,
    seed: int,
    said: Callable[[str], None],
    facts: dict[str, Any],
) -> Run:
    """Choose a calibrator by rows held out, apply it, judge the test rows once, and put all into a ``Run``.

    ``test_x`` are the test rows as the network reads them; ``counts`` (classes,) the rows of each class learnt from;
    ``facts`` go into the record, with their ``source``, ``target``, the source ``tested``, and ``notes``.
    """
    task = learned.objective.task
    calibrator = Calibrator()
    if recipe.calibration == "guarded":
        one_in = -(-held_out.log_p.size // MOST_SAID)
        some = held_out.take(np.arange(len(held_out)) % one_in == 0) if one_in > 1 else held_out
        calibrator = choose_calibrator(some.log_p, some.encoded, weights=some.weight, seed=seed, classes=task.classes)
        if one_in > 1:
            sentence = FEWER.format(rows=len(some), held_out=len(held_out), most=MOST_SAID)
            facts = {**facts, "notes": [*facts["notes"], sentence]}
            said(sentence)
        for sentence in [calibrator.choice.sentence, *calibrator.choice.absent] if calibrator.choice else []:
            said(sentence)
    parts = (held_out, test)
    log_p = [calibrator.of_logits(part.log_p) for part in parts]
    predicted = Predicted(
        rows=np.concatenate([part.rows for part in parts]),
        splits=np.repeat(["held out", "test"], [len(part) for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        probabilities=np.exp(np.concatenate(log_p)),
    )
    outlook = learned.outlook
    if outlook is not None:
        said(outlook.sentence)
    measured = _measured(task, test, np.exp(log_p[1]), facts)
    notes = [*measured.facts.get("notes", []), *facts["notes"], *learned.history.trouble]
    record = recorded(
        measured,
        learned.history,
        calibrator.choice.table if calibrator.choice else None,
        numbers={
            "training_cross_entropy": Number(learned.history.learnt, "nats"),
            "validation_cross_entropy": held_out.mean(log_p[0]),
            "uncalibrated_cross_entropy": test.mean(test.log_p),
            **_covered(learned, test_x, test),
            **({} if outlook is None or outlook.nats is None else {"next_minute": Number(outlook.nats, "nats")}),
        },
        facts={
            "found": task.found,
            **({} if outlook is None else {"outlook": outlook.sentence}),
            "calibration": calibrator.kind,
            "seed": seed,
            "recipe": recipe.to_dict(),
            "versions": versions(),
            **{name: value for name, value in facts.items() if name not in ("tested", "notes")},
            "notes": notes,
        },
    )
    return Run(task, recipe, preparation, learned.network, learned.objective, calibrator, record, counts, predicted)


def _measured(task: Task, test: Judged, p: NDArray[np.float64], facts: dict[str, Any]) -> Record:
    """What the model is worth on the rows that nothing before has looked at."""
    return evaluate(
        Predictions.from_arrays(
            p[:, 1] if task.kind == "range" else p,
            test.labels,
            classes=list(task.classes) or None,
            rows=test.rows,
            weights=test.weight,
            task=task.kind,
            low=task.low,
            high=task.high,
            source=facts["tested"],
            split="test",
        ),
        title=f"{stem(facts['source'])}: what a network knows of {facts['target']}",
    )


def _covered(learned: Learned, test_x: Tensor, test: Judged) -> dict[str, Number]:
    """How many of the test rows lie in their intervals of 90 %, where the target is a number that has such."""
    ends = learned.interval(test_x, COVERAGE)
    if ends is None:
        return {}
    low, high = ends
    held = (low <= test.labels) & (test.labels <= high)
    return {"coverage": Number(float(np.average(held, weights=test.weight)), "1", n=len(test))}


def versions() -> dict[str, str]:
    """The versions of what a figure may depend on."""
    found = {"python": platform.python_version()}
    for name in ("crossent", "torch", "numpy", "scipy", "scikit-learn", "skrub", "lightning-fabric"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def recorded(
    measured: Record, history: History, candidates: Table | None, numbers: dict[str, Number], facts: dict[str, Any]
) -> Record:
    """The evaluation of the test rows, with the training beside it."""
    epochs = [float(epoch) for epoch in range(1, len(history.train) + 1)]
    curves = {
        name: Curve(epochs, list(values), "epoch", "cross-entropy in nats")
        for name, values in (("training", history.train), ("validation", history.validation))
    }
    return Record(
        kind="fit",
        title=measured.title,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        numbers={**measured.numbers, **numbers},
        tables={**measured.tables, **({"calibrators": candidates} if candidates else {})},
        curves={**measured.curves, **curves},
        facts={
            **measured.facts,
            **facts,
            "epochs": len(history.train),
            "best_epoch": history.best_epoch,
            "stopped": history.stopped,
            "seconds": round(history.seconds, 1),
            "threads": torch.get_num_threads(),
        },
    )
