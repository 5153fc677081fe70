"""What cross-entropy wins over other losses on one data set: each trained alike, judged alike, said with its doubt.

Raw comparisons of losses mislead. A network that minimises focal loss or label smoothing is not wrong about the truth,
it answers another question; read as if it had answered ours it looks bad, and the remedy costs nothing. So each loss is
judged twice, by the same network:

    raw     the plain softmax of its logits, or the mean of its code, as most comparisons take it
    fair    through the loss's inverse link (``inverse``), then one temperature for every loss, fitted to a sixth of the
            rows that none of its networks learnt from, by what they say together

The link is exact at the minimum of the loss, and no trained network is there; the temperature mends what a link that is
too strong or too weak leaves, and epochs are chosen by what a temperature would leave as well (``stop="refinement"``).

All losses learn from the same rows in the same folds, from the same starts, in the same batches, and end by the same
rule. That is done from several seeds, each of which draws that sixth, folds, starts and batches anew; all are tested on
the same rows: those of a test or, with outer folds, all in turn. Differences from the first loss are taken row by row
and seed by seed, and rows and trainings both make their error (``crossed``).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from crossent.compute.losses import NLL
from crossent.errors import DataError, some
from crossent.files import stem
from crossent.minimise.contest.ground import Brought, Drawn, Lesson, Rows
from crossent.minimise.contest.judged import Said, Told, told, train
from crossent.minimise.contest.scoreboard import board
from crossent.minimise.contest.steepness import steepness
from crossent.minimise.data import task as tasks
from crossent.minimise.data.parts import both
from crossent.minimise.objective.catalogue import PROPERTIES
from crossent.minimise.objective.objective import Objective, OfRange
from crossent.minimise.objective.spelling import read_loss, split
from crossent.minimise.recipe import Recipe, model_asked
from crossent.minimise.training.learn import Factory, launched
from crossent.minimise.training.outlook import check_budget
from crossent.minimise.training.train import Progress
from crossent.record import Record

LOSSES = "nll,smoothed(0.05),focal(2),brier,hinge,gce(0.7)"
CODES = "fraction,hlgauss,twohot,continuous_bernoulli,mse,mae"
"""What is compared if nobody says what: losses of classes, and codes of a number in a range."""
FEW_SEEDS, MORE_SEEDS, SEEDS_WITH_FOLDS = 3, 5, 2
ROWS_FOR_MORE = 2_000
"""Up to so many rows to learn from a training is cheap, and five seeds are taken in place of three; with folds two."""

_OF_CODE = {
    "fraction": (True, "the mean"),
    "mse": (True, "the mean"),
    "mae": (False, "the median, which is read as if it were the mean"),
    "continuous_bernoulli": (True, "the mean, as a density e^(z f)"),
    "hlgauss": (False, "the masses of steps, from labels that are blurred"),
    "twohot": (True, "masses on a grid that have the right mean"),
    "ordinal": (True, "the masses of whole numbers"),
}
"""Whether a code's minimiser has the true mean, and what it is."""


def compare_losses(
    x: Any,
    y: Any = None,
    losses: str | Sequence[str] | None = None,
    *,
    target: str | None = None,
    weight: Any = None,
    test: Any = None,
    kind: str | None = None,
    limits: tuple[float, float] | None = None,
    recipe: Recipe | None = None,
    settings: Sequence[str] = (),
    model: Factory | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    budget: float | None = None,
    fabric: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    said: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Record:
    """Train with each of several losses under equal budgets, and say what cross-entropy wins over the others.

    Args:
        x: features, or the name of an embedded set or a file; with ``y``, ``target``, ``weight``, ``test``, ``kind``,
            ``limits``, ``recipe``, ``settings``, ``model`` and ``fabric`` as in ``fit``. The recipe's own loss is not
            looked at. Or a function without arguments that makes a network of your own, and three loaders as ``y``, as
            ``fit`` takes them; what they draw by torch, or by a generator of their own, is drawn alike for every loss.
        losses: as a recipe spells them, in one text parted by commas or one by one: "nll,focal(2)"; of a range also
            codes: "fraction,hlgauss(30),mse". By default ``LOSSES`` or ``CODES``. The others are held against "nll"
            ("fraction"), or against the first if that is not there.
        seeds: how many trainings of each loss; by default 5 up to 2,000 rows to learn from, 3 beyond, and 2 with folds.
        folds: with K every row is tested, by the networks of the fold that has not seen it, K trainings for each seed
            and loss; by default a test is set apart, the same for all seeds.
        seed: the first of them, and that of the rows drawn for the test.
        budget: seconds for all trainings together; each gets the same share, after which no epoch begins.
        checkpoint: a folder for the state of the trainings, to go on from.
        progress: as in ``fit``, for each training.
        said: called with sentences about what was found, one after each training.
        command: what a reader could type to repeat this; it goes into the record.

    Returns:
        A record of kind "losses": ``numbers`` of the loss that others are held against, the tables ``losses`` and
        ``differences``, and in ``facts`` what the intervals cover. ``report.headline`` makes it the conclusion.

    Raises:
        DataError: a sentence, if the data cannot be used, a loss is misspelt, or fewer than two losses fit the task. A
            loss that is spelt well and fails is a row of the table with the reason.

    Cost: that of losses · seeds · folds trainings.

    >>> record = compare_losses("iris", losses="nll,brier", seeds=2, settings=["members=1", "folds=2", "epochs=3"])
    >>> record.facts["baseline"], sorted(record.tables["losses"]["loss"])
    ('nll', ['brier', 'nll'])
    """
    began = time.monotonic()
    ground: Drawn | Brought
    check_budget(budget)
    if callable(x):
        ground = _brought(x, y, limits, model, folds)
    else:
        if y is not None and isinstance(x, (str, os.PathLike)):
            raise DataError(f"{os.fspath(x)!r} brings its own labels; leave out y (losses are named by losses=).")
        mine, other = both(x, y, target, weight, test)
        found = tasks.look(mine.y, mine.source, mine.target, kind, limits, mine.names)
        ground = Drawn(mine, other, found, model_asked(recipe, settings), model, seed, folds)
    task, tested = ground.task, ground.tested
    said(task.found)
    recipe = (recipe or ground.usual).parsed(settings)
    entries = [_entry(text, ground, recipe) for text in _texts(losses, task)]
    for entry in entries:
        if entry.trouble:
            said(f"{entry.name} is left out: {entry.trouble}")
    usual = SEEDS_WITH_FOLDS if folds else MORE_SEEDS if len(ground.problem) <= ROWS_FOR_MORE else FEW_SEEDS
    repeats = seeds or usual
    alive = [entry for entry in entries if not entry.trouble]
    if len(alive) < 2:
        raise DataError(f"a comparison needs two losses, and {len(alive)} fits this task. " + _troubles(entries))
    said(f"{len(alive)} losses, {repeats} {'seed' if repeats == 1 else 'seeds'}; {ground.says(recipe)}.")
    fabric = fabric or launched()
    share = math.inf if budget is None else budget / (len(alive) * repeats * (folds or 1))
    done = 0
    try:
        for number in range(seed, seed + repeats):
            first = (number - seed) % len(alive)
            turn = alive[first:] + alive[:first]  # none is always the first
            for place, lesson in enumerate(ground.lessons(number)):
                for entry in turn:
                    where = f"{entries.index(entry)}-{number}" + (f"-{place}" if folds else "")
                    entry.learn(
                        lesson,
                        number,
                        task,
                        fabric=fabric,
                        checkpoint=None if checkpoint is None else Path(checkpoint) / where,
                        progress=progress,
                        deadline=time.monotonic() + share,
                    )
            for entry in turn:
                entry.count(tested, task)
                said(f"{entry.name}, seed {number}: {entry.trouble or entry.told[-1]}")
            alive = [entry for entry in alive if not entry.trouble]
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        said(f"Stopped by hand; the {done} seeds that all losses had are compared.")
    if len(alive) < 2:
        raise DataError("a comparison needs two losses, and fewer could be trained. " + _troubles(entries))
    return board(
        task,
        tested.weight,
        [(entry.name, entry.about, entry.trouble, entry.told[:done]) for entry in entries],
        stem(ground.source),
        facts={
            "source": ground.source,
            "target": ground.target,
            "found": task.found,
            "splits": ground.sizes,
            "seed": seed,
            "seeds": done,
            "folds": folds,
            "covers": ground.covers(done),
            "budget": _budget(recipe, budget, share),
            "recipe": {name: value for name, value in recipe.to_dict().items() if name not in ("loss", "calibration")},
            "command": command,
            "seconds": round(time.monotonic() - began, 1),
            "notes": [*ground.notes, *_notes(recipe, done, folds, entries)],
        },
    )


@dataclass(eq=False)
class _Entry:
    """A loss of the comparison: its recipe, what is known of it, what its trainings said, and gave seed by seed."""

    name: str
    recipe: Recipe
    about: dict[str, Any]
    trouble: str = ""
    told: list[Told] = field(default_factory=list)
    said: list[tuple[NDArray[np.int64], Said]] = field(default_factory=list)

    def learn(self, lesson: Lesson, seed: int, task: tasks.Task, **how: Any) -> None:
        """Train in a lesson; one that fails leaves its trouble, and is left out from then on."""
        if self.trouble:
            return
        try:
            self.said.append((lesson.at, train(lesson, self.recipe, seed, task, **how)))
        except (ValueError, TypeError) as trouble:  # DataError is one of them
            self.trouble = " ".join(str(trouble).split())

    def count(self, tested: Rows, task: tasks.Task) -> None:
        """Put the lessons of a seed together."""
        said, self.said = self.said, []
        if self.trouble:
            return
        try:
            self.told.append(told(said, tested, task))
        except DataError as trouble:
            self.trouble = str(trouble)


def _brought(
    make: Callable[[], Any], loaders: Any, limits: tuple[float, float] | None, model: Any, folds: int | None
) -> Brought:
    """Loaders of the user's own, with a function that makes the network."""
    if isinstance(make, nn.Module):
        raise DataError(
            "each training needs a fresh network: pass a function that makes one, compare_losses(make, loaders), and "
            "not a network."
        )
    if model is not None:
        raise DataError("the first argument makes the network; leave out model, or pass arrays.")
    if folds is not None:
        raise DataError("folds are drawn of rows, and loaders give batches; leave out folds, or pass arrays.")
    return Brought(make, loaders, limits)


def _texts(losses: str | Sequence[str] | None, task: tasks.Task) -> list[str]:
    if losses is None:
        losses = CODES if task.kind == "range" else LOSSES
    texts = split(losses) if isinstance(losses, str) else list(losses)
    if len(texts) < 2:
        raise DataError(f"a comparison needs two losses or more; got {some(texts) or 'none'}.")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise DataError(f"{some(twice)} is to be compared with itself: name each loss once.")
    return texts


def _entry(text: str, ground: Drawn | Brought, recipe: Recipe) -> _Entry:
    """What a text asks for; a misspelt one is refused, one that does not fit the task or the network says why."""
    task, counts = ground.task, ground.problem.counts()
    coded = text.partition("(")[0].strip() in _OF_CODE
    if not coded:
        read_loss(text, counts)
    if coded and task.kind != "range":
        reason = f"{text} is a code of a number in a range, and the target has classes."
        return _Entry(text, recipe, _about(None, ""), reason)
    own = recipe.changed(code=text, loss="nll") if coded else recipe.changed(loss=text)
    try:
        objective = own.objective(task, counts)
    except DataError as trouble:
        return _Entry(text, own, _about(None, ""), str(trouble))
    entry = _Entry(text, own, _about(objective, own.code.partition("(")[0].strip()))
    if ground.columns not in (None, objective.columns):
        entry.trouble = f"it needs {objective.columns} logits a row, and the network gives {ground.columns}."
    return entry


def _about(objective: Objective | None, code: str) -> dict[str, Any]:
    """Whether a loss is proper, what it learns, the way back, and how steep it is where p is near 0 and 1."""
    names = ("proper", "minimiser", "inverse", "gradient_at_0", "gradient_at_1")
    if objective is None:
        return dict.fromkeys(names)
    at_0, at_1 = steepness(objective)
    known = PROPERTIES.get(type(objective.function))
    proper, minimiser = objective.proper, known.minimiser if known else "that of the sum (docs/guides/recipe.md)"
    back = objective.link.missing or (known.inverse if known else "by equation (1) there")
    if isinstance(objective, OfRange) and type(objective.function) is NLL:
        proper, minimiser = _OF_CODE[code]
        back = "none" if code == "mae" else "its mean"
    return dict(zip(names, (proper, minimiser, back, at_0, at_1), strict=True))


def _troubles(entries: Sequence[_Entry]) -> str:
    return " ".join(f"{entry.name}: {entry.trouble}" for entry in entries if entry.trouble)


def _budget(recipe: Recipe, budget: float | None, share: float) -> str:
    """What was equal, in words."""
    rule = {
        "none": f"{recipe.epochs or 'as many'} epochs",
        "loss": "the same rule of when to end (held-out cross-entropy)",
        "refinement": "the same rule of when to end (held-out cross-entropy after a temperature)",
    }[recipe.stop]
    time_ = "" if budget is None else f", and at most {share:.3g} s for each training"
    return f"the same rows, folds, starts, batches and recipe, {rule}{time_}"


def _notes(recipe: Recipe, seeds: int, folds: int | None, entries: Sequence[_Entry]) -> list[str]:
    """What a reader must know before trusting a figure, as sentences."""
    notes = []
    if seeds == 1 and folds is None:
        notes.append("With one seed nothing is known of what another would give: intervals are of the test rows alone.")
    if recipe.stop == "loss":
        notes.append(
            "Epochs were chosen by held-out cross-entropy before any temperature, which is unfair to losses whose "
            "inverse link fits a network badly; set stop=refinement."
        )
    notes += [f"{entry.name} is not compared: {entry.trouble}" for entry in entries if entry.trouble]
    return notes
