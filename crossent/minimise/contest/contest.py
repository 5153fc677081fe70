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
the same rows. Differences from the first loss are taken row by row and seed by seed, and both make their error
(``crossed``).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.compute.losses import NLL
from crossent.errors import DataError, some
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import fit_scaling
from crossent.measure.comparison.rival import rival
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.likelihood import Rows
from crossent.minimise.contest.scoreboard import Told, board
from crossent.minimise.contest.steepness import steepness
from crossent.minimise.data import task as tasks
from crossent.minimise.data.parts import Part, both, parted
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.problem import Problem, folds
from crossent.minimise.data.tokens import WORD, Tokens
from crossent.minimise.objective.inverse import PROPERTIES
from crossent.minimise.objective.objective import Objective, OfRange
from crossent.minimise.objective.spelling import read_loss, split
from crossent.minimise.recipe import Recipe, model_asked
from crossent.minimise.training.judge import averaged, logits_of, shares_of, temperatures_of
from crossent.minimise.training.learn import Factory, launched, learn
from crossent.minimise.training.train import Progress
from crossent.record import Record

LOSSES = "nll,smoothed(0.05),focal(2),brier,hinge,gce(0.7)"
CODES = "fraction,hlgauss,twohot,continuous_bernoulli,mse,mae"
"""What is compared if nobody says what: losses of classes, and codes of a number in a range."""
FEW_SEEDS, MORE_SEEDS = 3, 5
ROWS_FOR_MORE = 2_000
"""Up to so many rows to learn from a training is cheap, and five seeds are taken in place of three."""

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
            looked at.
        losses: as a recipe spells them, in one text parted by commas or one by one: "nll,focal(2)"; of a range also
            codes: "fraction,hlgauss(30),mse". By default ``LOSSES`` or ``CODES``. The others are held against "nll"
            ("fraction"), or against the first if that is not there.
        seeds: how many trainings of each loss; by default 5 up to 2,000 rows to learn from, and 3 beyond.
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

    Cost: that of losses · seeds trainings.

    >>> record = compare_losses("iris", losses="nll,brier", seeds=2, settings=["members=1", "folds=2", "epochs=3"])
    >>> record.facts["baseline"], sorted(record.tables["losses"]["loss"])
    ('nll', ['brier', 'nll'])
    """
    began = time.monotonic()
    if y is not None and isinstance(x, (str, os.PathLike)):
        raise DataError(f"{os.fspath(x)!r} brings its own labels; leave out y (losses are named by losses=).")
    mine, other = both(x, y, target, weight, test)
    found = tasks.look(mine.y, mine.source, mine.target, kind, limits, mine.names)
    said(found.found)
    rest, judge = parted(found, mine, other, seed)
    judge = _that_count(judge)
    preparation: Preparation | Tokens
    texts = (named := model_asked(recipe, settings)).startswith(WORD)
    if texts:
        preparation = Tokens.of(named, rest.x, mine.source, found)
        features, model = preparation(rest.x, mine.source), preparation.copy
    else:
        preparation, features = Preparation.fit(rest.x, mine.source)
    problem = Problem(found, features, found.target(rest.encoded), rest.tensor_of_weights)
    usual = Recipe.texts() if texts else Recipe.usual(problem)
    recipe = (recipe or usual.changed(beside=False)).parsed(settings)  # one network a loss, and nothing to lean on
    entries = [_entry(text, problem, recipe) for text in _texts(losses, found)]
    for entry in entries:
        if entry.trouble:
            said(f"{entry.name} is left out: {entry.trouble}")
    repeats = seeds or (MORE_SEEDS if len(rest) <= ROWS_FOR_MORE else FEW_SEEDS)
    alive = [entry for entry in entries if not entry.trouble]
    if len(alive) < 2:
        raise DataError(f"a comparison needs two losses, and {len(alive)} fits this task. " + _troubles(entries))
    said(
        f"{len(alive)} losses, {repeats} {'seed' if repeats == 1 else 'seeds'}; {len(rest):,} rows to learn from, "
        f"{recipe.says_of_folds}; {len(judge):,} to test."
    )
    fabric = fabric or launched()
    share = math.inf if budget is None else budget / (len(alive) * repeats)
    judged = _Judge(judge, preparation(judge.x, judge.data.source), found)
    done = 0
    try:
        for repeat in range(repeats):
            turn = alive[repeat % len(alive) :] + alive[: repeat % len(alive)]  # none is always the first
            heard = {}
            parts = _Parts.of(problem, rest, seed + repeat)
            for entry in turn:
                place = None if checkpoint is None else Path(checkpoint) / f"{entries.index(entry)}-{seed + repeat}"
                heard[entry.name] = told = _trained(
                    entry, parts, judged, seed + repeat, model, fabric, place, progress, time.monotonic() + share
                )
                said(f"{entry.name}, seed {seed + repeat}: {told or entry.trouble}")
            alive = [entry for entry in alive if not entry.trouble]
            for entry in alive:
                told = heard[entry.name]
                assert told is not None
                entry.told.append(told)
            done += 1
    except KeyboardInterrupt:
        if not done:
            raise
        said(f"Stopped by hand; the {done} seeds that all losses had are compared.")
    if len(alive) < 2:
        raise DataError("a comparison needs two losses, and fewer could be trained. " + _troubles(entries))
    return board(
        found,
        judge.weight,
        [(entry.name, entry.about, entry.trouble, entry.told) for entry in entries],
        Path(mine.source).stem,
        facts={
            "source": mine.source,
            "target": mine.target,
            "found": found.found,
            "splits": {"learn": len(rest), "test": len(judge)},
            "seed": seed,
            "seeds": done,
            "budget": _budget(recipe, budget, share),
            "recipe": {name: value for name, value in recipe.to_dict().items() if name not in ("loss", "calibration")},
            "command": command,
            "seconds": round(time.monotonic() - began, 1),
            "notes": [*preparation.notes, *_notes(recipe, done, entries)],
        },
    )


@dataclass(eq=False)
class _Entry:
    """A loss of the comparison: its recipe and objective, what is known of it, what its trainings gave."""

    name: str
    recipe: Recipe
    objective: Objective | None
    about: dict[str, Any]
    trouble: str = ""
    told: list[Told] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Judge:
    """The rows of the test with their features."""

    test: Part
    features: Any
    task: tasks.Task

    def predictions(self, log_p: NDArray[np.float64]) -> Predictions:
        """Log-probabilities (n, classes) of the test rows, as ``measure`` takes them."""
        is_range = self.task.kind == "range"
        return Predictions(
            np.exp(log_p),
            self.test.encoded,
            list(self.task.classes),
            self.test.rows,
            self.task.kind,
            self.task.low if is_range else None,
            self.task.high if is_range else None,
            log_probabilities=log_p,
            weights=self.test.weight,
        )


@dataclass(frozen=True, eq=False)
class _Parts:
    """The rows to learn from, and those set apart from all networks for the temperature: features, labels, weights."""

    learn: Problem
    apart: Tensor
    encoded: NDArray[Any]
    weight: NDArray[np.float64] | None

    @classmethod
    def of(cls, problem: Problem, rest: Part, seed: int) -> _Parts:
        """A sixth of the rows is set apart, drawn by class."""
        apart = folds(problem, 1, 1, seed)[0] == 0
        counts = apart.numpy() if rest.weight is None else apart.numpy() & (rest.weight > 0)
        if not counts.any():
            raise DataError("no row with a weight was drawn for the temperature; take another seed.")
        weight = None if rest.weight is None else rest.weight[counts]
        return cls(problem.take(~apart), problem.x[torch.from_numpy(counts)], rest.encoded[counts], weight)


def _texts(losses: str | Sequence[str] | None, task: tasks.Task) -> list[str]:
    if losses is None:
        losses = CODES if task.kind == "range" else LOSSES
    texts = split(losses) if isinstance(losses, str) else list(losses)
    if len(texts) < 2:
        raise DataError(f"a comparison needs two losses or more; got {some(texts) or 'none'}.")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise DataError(f"{some(twice)} is to be compared with itself: name each loss once.")
    return texts


def _entry(text: str, problem: Problem, recipe: Recipe) -> _Entry:
    """What a text asks for; a misspelt one is refused, one that does not fit the task says why."""
    coded = text.partition("(")[0].strip() in _OF_CODE
    if not coded:
        read_loss(text, problem.counts())
    if coded and problem.task.kind != "range":
        reason = f"{text} is a code of a number in a range, and the target has classes."
        return _Entry(text, recipe, None, _about(None, ""), reason)
    own = recipe.changed(code=text, loss="nll") if coded else recipe.changed(loss=text)
    try:
        objective = own.objective(problem.task, problem.counts())
    except DataError as trouble:
        return _Entry(text, own, None, _about(None, ""), str(trouble))
    return _Entry(text, own, objective, _about(objective, own.code.partition("(")[0].strip()))


def _about(objective: Objective | None, code: str) -> dict[str, Any]:
    """Whether a loss is proper, what it learns, the way back, and how steep it is where p is near 0 and 1."""
    names = ("proper", "minimiser", "inverse", "gradient_at_0", "gradient_at_1")
    if objective is None:
        return dict.fromkeys(names)
    at_0, at_1 = steepness(objective)
    known = PROPERTIES.get(type(objective.function))
    proper, minimiser = objective.proper, known.minimiser if known else "that of the sum (docs/guides/recipe.md)"
    back = objective.link.missing or (known.inverse if known else "by equation (1) there")
    if isinstance(objective, OfRange) and isinstance(objective.function, NLL):
        proper, minimiser = _OF_CODE[code]
        back = "none" if code == "mae" else "its mean"
    return dict(zip(names, (proper, minimiser, back, at_0, at_1), strict=True))


def _trained(
    entry: _Entry,
    parts: _Parts,
    judge: _Judge,
    seed: int,
    model: Factory | None,
    fabric: Any,
    checkpoint: Path | None,
    progress: Callable[[Progress], None],
    deadline: float,
) -> Told | None:
    """One training and what the test rows cost it; None, and the trouble written down, if it failed."""
    began = time.monotonic()
    try:
        learned = learn(
            parts.learn,
            entry.recipe,
            seed,
            factory=model,
            fabric=fabric,
            checkpoint=checkpoint,
            progress=progress,
            deadline=deadline,
        )
    except (ValueError, TypeError) as trouble:  # DataError is one of them
        entry.trouble = " ".join(str(trouble).split())
        return None
    history, objective = learned.history, learned.objective
    if "by hand" in history.stopped:
        raise KeyboardInterrupt
    seconds = max(time.monotonic() - began, history.seconds)  # a training that was gone on with had some before
    logits = logits_of(learned.network, judge.features)
    shares = shares_of(learned.network)
    raw = averaged(objective.log_probabilities(logits, raw=True), shares).numpy()
    fair = averaged(objective.log_probabilities(logits), shares, temperatures_of(learned.network)).numpy()
    apart = rows_of(learned.log_probabilities(parts.apart).numpy(), parts.encoded, parts.weight)
    temperature = fit_scaling(apart, "temperature")
    costs = {
        "fair": _costs(judge, temperature.of_logits(fair)),
        "raw": _costs(judge, raw),
    }
    if not all(np.isfinite(cost["cross_entropy"]).all() for cost, _ in costs.values()):
        entry.trouble = "it gave the label of a test row probability 0, so that its cross-entropy is infinite."
        return None
    if isinstance(objective, OfRange):
        share = judge.task.target(judge.test.encoded)
        with contextlib.suppress(TypeError):  # a code that learns no distribution
            each = objective.log_score(logits, share.expand(logits.shape[:-1])).unsqueeze(-1)
            score = averaged(each, shares).squeeze(-1).numpy()
            if np.isfinite(score).all():
                costs["fair"][0]["log_score"] = score
    return Told(
        {figure: cost for figure, (cost, _) in costs.items()},
        {figure: doubt for figure, (_, doubt) in costs.items()},
        temperature.temperature,
        seconds,
        len(history.train),
        held_out=float(np.average(apart.costs(temperature.of_logits(apart.z)), weights=parts.weight)),
    )


def _costs(judge: _Judge, log_p: NDArray[np.float64]) -> tuple[dict[str, NDArray[np.float64]], float]:
    """What each test row says of log-probabilities, by measure, and the doubt of the mean miscalibration."""
    predictions = judge.predictions(log_p)
    rows = Rows.of(predictions)
    if not np.isfinite(rows.cost).all():
        return {"cross_entropy": rows.cost}, 0.0
    found = {"cross_entropy": rows.cost}
    if rows.absolute is not None:
        # Linear in the squares about their mean, so that its mean over the rows is the root, and its scatter that's.
        root = math.sqrt(float(np.average(rows.squared, weights=judge.test.weight)))
        found |= {"mae": rows.absolute, "rmse": root / 2 + rows.squared / (2 * root) if root else rows.squared}
    else:
        found |= {"accuracy": rows.hit, "brier": rows.squared}
    own = rival("", predictions, None)
    assert own.calibrated is not None
    return found | {"miscalibration": own.costs - own.calibrated}, own.doubt


def _that_count(part: Part) -> Part:
    """The rows whose weight is not 0."""
    if part.weight is None or part.weight.all():
        return part
    here = part.weight > 0
    if not here.any():
        raise DataError("all rows of the test have weight 0, so that nothing is left to compare on.")
    return replace(part, rows=part.rows[here], encoded=part.encoded[here])


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


def _notes(recipe: Recipe, seeds: int, entries: Sequence[_Entry]) -> list[str]:
    """What a reader must know before trusting a figure, as sentences."""
    notes = []
    if seeds == 1:
        notes.append("With one seed nothing is known of what another would give: intervals are of the test rows alone.")
    if recipe.stop == "loss":
        notes.append(
            "Epochs were chosen by held-out cross-entropy before any temperature, which is unfair to losses whose "
            "inverse link fits a network badly; set stop=refinement."
        )
    notes += [f"{entry.name} is not compared: {entry.trouble}" for entry in entries if entry.trouble]
    return notes
