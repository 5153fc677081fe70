"""The search for a recipe: many trials on the rows to learn from, one training with the best, one test.

A trial trains a recipe with a fifth of the learning rows held out, then with each of the other fifths. It is judged by
the cross-entropy of the rows held out, after the inverse link of its loss and one temperature for each training: what a
user of those networks would do, so that no loss wins or loses by its scale. Parts and starts are the same in every
trial, so that trials are compared in pairs; one that is surely worse than the best so far is not finished.

The test rows are set apart before anything else, by the same seed as in ``fit``, and only the training with the best
recipe, which is ``fit`` itself, looks at them. The held-out loss of the best of many trials is too good; the test's is
not, for it has chosen nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crossent.errors import DataError
from crossent.files import refusal
from crossent.minimise.data import task
from crossent.minimise.data.parts import both, parted, prepared
from crossent.minimise.data.problem import Problem
from crossent.minimise.fit import fit
from crossent.minimise.recipe import Recipe, model_asked
from crossent.minimise.run import Run
from crossent.minimise.training.learn import Factory, launched
from crossent.minimise.training.outlook import check_budget
from crossent.minimise.training.train import Progress
from crossent.minimise.tune.search import FOLDS, Judge, Search
from crossent.minimise.tune.space import Space
from crossent.minimise.tune.study import StorageError, Study
from crossent.record import Table

USUAL_BUDGET = 600.0
"""Seconds, where neither a budget nor a number of trials is given."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a search found.

    ``run`` is ``fit`` with the best ``recipe``, its test and its record, in which the ``trials`` are a table, failures
    and all. ``found`` are sentences: what was tried, what was won, what is still to be won.
    """

    run: Run
    trials: Table
    recipe: Recipe
    found: list[str]


def tune(
    x: Any,
    y: Any = None,
    *,
    target: str | None = None,
    weight: Any = None,
    test: Any = None,
    kind: str | None = None,
    limits: tuple[float, float] | None = None,
    recipe: Recipe | None = None,
    settings: Sequence[str] = (),
    model: Factory | None = None,
    space: Sequence[str] = (),
    budget: float | None = None,
    trials: int | None = None,
    storage: str | os.PathLike[str] | None = None,
    seed: int = 0,
    fabric: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    said: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Tuned:
    """Search for the recipe of the lowest held-out cross-entropy, and fit with it.

    Args:
        x, y, target, weight, test, kind, limits, model, fabric, progress, said, command: as for ``fit``.
        recipe: where the search starts, the first trial; by default ``Recipe.usual``.
        settings: changes to it, as on the command line; what they name is not searched over.
        space: what is tried, ``"NAME=ALTERNATIVES"`` as in ``tune.space``, or ``"NAME"`` for the usual
            alternatives; by default all that is usual for such data.
        budget: seconds for the search and the training after it; by default 600, or none if ``trials`` is given.
        trials: the most trials of the study, those of other processes and earlier ones included.
        storage: a file, or the URL of a database, for the trials: to resume a search, or to share it.
        seed: of the test rows, the folds, the starts and the settings tried: one process gives the same bits again.
        checkpoint: a folder for the state of the last training, as for ``fit``.

    Ctrl-C ends the search; the best recipe so far is fitted.

    Raises:
        DataError: a sentence, if the data, the space or the storage cannot be used.

    >>> tuned = tune("iris", settings=["epochs=9", "members=1"], space=["dropout=0..0.5"], trials=1)
    >>> tuned.trials["state"][0], tuned.run.record["cross_entropy"].n
    ('complete', 30)
    """
    began = time.monotonic()
    _refuse(x, y, budget, trials)
    if budget is None and trials is None:
        budget = USUAL_BUDGET
    mine, other = both(x, y, target, weight, test)
    found = task.look(mine.y, mine.source, mine.target, kind, limits, mine.names)
    said(found.found)
    rest, _ = parted(found, mine, other, seed)
    _, features, factory = prepared(model_asked(recipe, settings), rest.x, mine.source, found, model)
    problem = Problem(found, features, found.target(rest.encoded), rest.tensor_of_weights)
    base = (recipe or Recipe.usual(problem)).parsed(settings)
    tried = Space.read(space, problem, base, [setting.partition("=")[0] for setting in settings])
    if not any(len(domain.alternatives) > 1 or domain.alternatives[0].ranges for domain in tried):
        raise DataError("there is nothing to search over: the space has one recipe in all.")
    study = Study(storage, _belongs(problem, base, tried, seed), seed, tried.place_of(base))
    said(
        f"{len(rest):,} rows to search on, each held out once in a trial of {FOLDS} trainings; the test rows are not "
        f"looked at. Searched: {', '.join(tried.to_dict())}."
    )
    judge = Judge(problem, seed, fabric or launched(), factory, progress)
    search = Search(study, judge, tried, base, began, budget, trials, said)
    try:
        search.run()
    except OSError as trouble:
        raise DataError(refusal(trouble, str(storage))) from trouble
    except StorageError as trouble:
        raise DataError(
            f"the storage {str(storage)!r} fails: {' '.join(str(trouble).split())[:300]} The trials in it are kept."
        ) from trouble
    best = search.recipe
    sentences = search.sentences()
    for sentence in sentences:
        said(sentence)
    run = fit(
        x,
        y,
        target=target,
        weight=weight,
        test=test,
        kind=kind,
        limits=limits,
        recipe=best,
        model=model,
        budget=None if budget is None else max(1e-3, began + budget - time.monotonic()),
        seed=seed,
        fabric=judge.fabric,
        # Of this recipe alone: a search that is resumed may end with another one.
        checkpoint=None if checkpoint is None else Path(checkpoint) / _digest(best.to_dict()),
        progress=progress,
        said=lambda sentence: None if sentence == found.found else said(sentence),
        command=command,
    )
    table, importance = study.table(), study.importance()
    record = replace(
        run.record,
        numbers={**run.record.numbers, **search.numbers()},
        tables={**run.record.tables, "trials": table, **({"importance": importance} if importance else {})},
        facts={
            **run.record.facts,
            "space": tried.to_dict(),
            "searched": sentences,
            "start": base.to_dict(),
            "settings": best.command(Recipe.usual(problem)),
        },
    )
    return Tuned(replace(run, record=record), table, best, sentences)


def _refuse(x: Any, y: Any, budget: float | None, trials: int | None) -> None:
    if isinstance(x, nn.Module):
        raise DataError(
            "a search makes a fresh network for every trial. Pass arrays and a function that makes one, "
            "tune(x, y, model=make), not a network."
        )
    if y is not None and isinstance(x, (str, os.PathLike)):
        raise DataError(
            f"{os.fspath(x)!r} brings its own labels; leave out y, or pass the features as a table or array."
        )
    check_budget(budget)
    if trials is not None and trials < 1:
        raise DataError(f"a search has at least one trial, and {trials} were asked for.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            "a search is shared out by trials, not by batches: without torchrun, start as many processes as there are "
            "machines or cores to spare, all with the same --storage."
        )


def _belongs(problem: Problem, base: Recipe, space: Space, seed: int) -> dict[str, str]:
    """What losses of trials can be compared within: digests of data, seed, recipe and space."""
    data = hashlib.sha256(repr(problem.task).encode())
    for part in (problem.x, problem.target, problem.weight):
        if part is not None:
            data.update(str(tuple(part.shape)).encode())
            data.update(np.ascontiguousarray(part.numpy()).tobytes())
    digests = {"recipe": _digest(base.to_dict()), "space": _digest(space.to_dict())}
    return {"data": data.hexdigest()[:16], "seed": str(seed), **digests}


def _digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
