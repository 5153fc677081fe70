"""From a problem and a recipe to networks that have learnt it, and what they say of rows they had not seen.

For tables and arrays all members of all folds are one batched network. Images and networks of the user's own are
trained one after another. Every row is held out from some of the members; what those say of it is what epochs and
calibrators are chosen by, so that no row has to be given up for that.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossent.errors import DataError, require
from crossent.measure.calibration.families import mixing_weights
from crossent.minimise.data.problem import Problem, folds
from crossent.minimise.networks.several import Even, Mixture, Several
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.objective.objective import Objective
from crossent.minimise.recipe import Recipe
from crossent.minimise.training import boost
from crossent.minimise.training.judge import (
    Ends,
    answers_of,
    averaged,
    cooling,
    interval_of,
    logits_of,
    members_of,
    shares_of,
    temperatures_of,
)
from crossent.minimise.training.outlook import Outlook, outlook
from crossent.minimise.training.state import BY_HAND, History
from crossent.minimise.training.train import Progress, Trained, train

ENOUGH_FOR_A_TEMPERATURE = 50
LEAST_SHARE = 0.02
"""Of a second model, below which it is left out."""
SHARE_OF_THE_NETWORKS = 0.85
"""Of the time that is left, where trees are grown after them."""
Factory = Callable[[tuple[int, ...], int], nn.Module]
"""Makes a network for rows of a shape and so many logits: ``factory((features,), columns)``."""


@dataclass(frozen=True, eq=False)
class Learned:
    """Networks that have learnt, and log-probabilities (n, classes) of every row by those that had not seen it.

    ``outlook`` is what more time would win, where time was short.
    """

    network: nn.Module
    objective: Objective
    held_out: Tensor
    history: History
    outlook: Outlook | None = None

    def log_probabilities(self, x: Tensor) -> Tensor:
        """Log-probabilities (n, classes), float64, of prepared rows: of the mean of the members' probabilities."""
        return averaged(
            self.objective.log_probabilities(logits_of(self.network, x)),
            shares_of(self.network),
            temperatures_of(self.network),
        )

    def interval(self, x: Tensor, coverage: float) -> Ends | None:
        """The ends (n,) of intervals of prepared rows, or None where what was learnt has none."""
        try:
            return interval_of(self.network, self.objective, x, coverage)
        except TypeError:
            return None


def launched(devices: int | str = "auto", accelerator: str = "cpu", precision: str = "32-true", **more: Any) -> Any:
    """A Lightning Fabric, launched: one process, or as many as ``torchrun`` or SLURM have started."""
    fabric = require("lightning_fabric", "cli", "training")
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices == "auto":
        devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        more.setdefault("num_nodes", int(os.environ.get("WORLD_SIZE", devices)) // devices)
    made = fabric.Fabric(accelerator=accelerator, devices=devices, precision=precision, **more)
    made.launch()
    return made


def learn(
    problem: Problem,
    recipe: Recipe,
    seed: int = 0,
    *,
    fold: Tensor | None = None,
    factory: Factory | None = None,
    fabric: Any = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    deadline: float = math.inf,
) -> Learned:
    """Train the networks of a recipe on a problem.

    Args:
        problem: the rows; none of them is kept for a test.
        recipe: the settings.
        seed: of folds, starts, batches and dropout: the same seed gives the same bits on one machine.
        fold: (members, n) int64, the part in which a row is held out, -1 for none; by default as the recipe says.
        factory: makes the network, instead of the recipe's ``model``.
        fabric: a launched Lightning Fabric; by default one process on the CPU.
        checkpoint: a folder for the state of the training, to go on from.
        progress: called after each epoch, and twice a second within long ones.
        deadline: ``time.monotonic()`` at which training is to be over.
    """
    fabric = fabric or launched()
    objective = recipe.objective(problem.task, problem.counts())
    factory = factory or factory_of(recipe)
    together = factory is None and problem.x.dim() == 2
    if fold is None:
        fold = folds(problem, min(recipe.folds, len(problem)), recipe.members, seed)
    if together:
        jobs = [(fold, recipe)]
        if recipe.model == "network" and recipe.beside:
            jobs.append((fold, recipe.changed(model="linear")))
    else:
        jobs = [(_only(repeat, part), recipe) for repeat in fold for part in range(int(fold.max()) + 1)]
    trees = together and boost.wanted(problem, objective, recipe, int(fold.max()) + 1)
    networks = len(jobs) + trees
    done: list[Trained] = []
    temperatures: list[tuple[float, float]] = []
    for number, (plan, chosen) in enumerate(jobs, 1):
        left = (deadline - time.monotonic()) * (SHARE_OF_THE_NETWORKS if trees else 1)
        left = left if together else left / (len(jobs) - number + 1)
        job = _Job(problem, objective, factory, fabric, _numbered(progress, number, networks), time.monotonic() + left)
        kept = None if checkpoint is None else checkpoint / f"network-{number}.pt"
        try:
            trained = job.train(plan, chosen, seed * 1_000_003 + number, kept)
            cooled = _temperatures(trained, objective, problem, plan) if together else (1.0, 1.0)
            trained = job.train_on_all(trained, plan, chosen, seed * 1_000_003 + number, kept)
        except KeyboardInterrupt:  # before this network has anything to keep: those that are finished are kept
            if not done:
                raise
            done[-1] = _stopped(done[-1])
            break
        done.append(trained)
        temperatures.append(cooled)
        if trained.history.by_hand:
            break
    if trees and not done[-1].history.by_hand:
        beside = _numbered(progress, networks, networks)
        try:
            grown = boost.boosted(problem, objective, fold[:1], seed, fabric=fabric, progress=beside, deadline=deadline)
            cooled = (1.0, 1.0) if grown is None else _temperatures(grown, objective, problem, fold[:1])
        except KeyboardInterrupt:
            done[-1] = _stopped(done[-1])
        else:
            if grown is not None:
                done.append(grown)
                temperatures.append(cooled)
    if together:
        learned = _mixed(done, temperatures, objective, problem)
        return replace(learned, outlook=_outlook(done[:1], deadline))  # the networks come first, and count most
    held_out = _mean([each.held_out for each in done])
    several = Several([each.network for each in done])
    return Learned(several, objective, held_out, _told(done), _outlook(done, deadline))


@dataclass(frozen=True, eq=False)
class _Job:
    """What every training of a problem has in common."""

    problem: Problem
    objective: Objective
    factory: Factory | None
    fabric: Any
    progress: Callable[[Progress], None]
    deadline: float

    def train(self, plan: Tensor, recipe: Recipe, seed: int, checkpoint: Path | None) -> Trained:
        """A fresh network, trained on the rows that a plan does not hold out."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = _network(self.problem, recipe, self.objective, plan, self.factory)
        return train(
            network,
            self.problem,
            self.objective,
            plan,
            recipe,
            seed,
            fabric=self.fabric,
            checkpoint=checkpoint,
            progress=self.progress,
            deadline=self.deadline,
        )

    def train_on_all(
        self, trained: Trained, plan: Tensor, recipe: Recipe, seed: int, checkpoint: Path | None
    ) -> Trained:
        """Fresh networks on all rows for as many epochs as were best, if the recipe says so; they are the ones kept.

        What is known of rows held out is what the first networks said of them: of these nothing can be held out.
        """
        if not recipe.refit or trained.history.by_hand:
            return trained
        everything = torch.full((len(plan) * (int(plan.max()) + 1), len(self.problem)), -1)
        whole = recipe.changed(stop="none", epochs=trained.history.best_epoch)
        kept = None if checkpoint is None else checkpoint.with_stem(f"{checkpoint.stem}-on-all")
        try:
            return replace(trained, network=self.train(everything, whole, seed + 500_000, kept).network)
        except KeyboardInterrupt:
            return _stopped(trained)


def learn_from_loader(
    network: nn.Module,
    loader: Any,
    held_out: Problem,
    recipe: Recipe,
    seed: int = 0,
    fabric: Any = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    deadline: float = math.inf,
) -> Learned:
    """Train one network on batches of a loader; the rows of ``held_out`` are held out. The network is trained in place.

    Arguments as for ``learn``; ``loader`` gives (x, target) or (x, target, weight), targets as a ``Problem`` has them.
    """
    trained = train(
        network,
        held_out,
        recipe.objective(held_out.task, held_out.counts()),
        torch.zeros(1, len(held_out), dtype=torch.long),
        recipe,
        seed,
        fabric=fabric or launched(),
        checkpoint=None if checkpoint is None else checkpoint / "network-1.pt",
        progress=progress,
        deadline=deadline,
        loader=loader,
    )
    objective = recipe.objective(held_out.task, held_out.counts())
    return Learned(trained.network, objective, trained.held_out, trained.history, _outlook([trained], deadline))


def factory_of(recipe: Recipe) -> Factory | None:
    """The user's own function that a recipe names, or None where the network is one of ours."""
    if ":" not in recipe.model:
        return None
    module, _, name = recipe.model.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as trouble:
        raise DataError(
            f"the model {recipe.model!r} cannot be imported: {trouble}. It is written package.module:function, and "
            "Python looks for the package in its path (PYTHONPATH=. adds the folder you are in)."
        ) from trouble
    return found


def _network(
    problem: Problem, recipe: Recipe, objective: Objective, fold: Tensor, factory: Factory | None
) -> nn.Module:
    """A fresh network for a problem; draws from torch's own random numbers."""
    shape, columns = tuple(problem.x.shape[1:]), objective.columns
    if factory is not None:
        network = factory(shape, columns)
        if not isinstance(network, nn.Module):
            raise DataError(f"a model's factory must give a torch.nn.Module; it gave {type(network).__name__}.")
        return network
    if problem.x.dim() > 2:
        from crossent.minimise.networks.residual import Residual

        return Residual.for_images(
            problem.x,
            columns,
            width=recipe.width,
            depth=recipe.depth,
            dropout=recipe.dropout,
            mirror=recipe.flip,
        )
    linear = recipe.model == "linear"
    return Tabular.for_features(
        problem.x,
        columns,
        members=len(fold) * max(1, int(fold.max()) + 1),
        width=recipe.width,
        depth=0 if linear else recipe.depth,
        dropout=0.0 if linear else recipe.dropout,
        bins=0 if linear else recipe.bins,
        noise=recipe.noise,
        labels=problem.distribution,
    )


def _only(repeat: Tensor, part: int) -> Tensor:
    """The plan of one network: rows of one fold held out (0), all others learnt (-1)."""
    return torch.where(repeat == part, 0, -1).unsqueeze(0)


def _mixed(
    done: list[Trained], temperatures: list[tuple[float, float]], objective: Objective, problem: Problem
) -> Learned:
    """All of them, and the even distribution, each counting what makes the labels of rows held out most likely.

    Each has its temperature first: the epoch was chosen by what a temperature leaves, and would be too sure without.
    The mean of models of unlike kinds costs less than any of them wherever they are wrong on other rows, and a few
    dozen rows settle what each counts: maximum likelihood of a mixture, by expectation-maximisation. What counts little
    is left out. The even distribution counts as much as one row more at least, as in Laplace's rule of succession: n
    rows are no ground for being surer of anything than n to 1, and one row that was certain and wrong costs as much as
    hundreds that were right.
    """
    known = torch.stack([~each.held_out[:, 0].isnan() for each in done]).all(0)
    row, column, counts = problem.take(known).labels()
    even = objective.log_probabilities(torch.zeros(1, objective.columns)).expand(int(known.sum()), -1)
    said = torch.stack([*(each.held_out[known] for each in done), even])
    few, many = zip(*temperatures, (1.0, 1.0), strict=True)
    said = torch.log_softmax(said.div_(torch.tensor(few).double().view(-1, 1, 1)), -1)

    def shares(parts: list[int]) -> list[float]:
        likelihood = said[:, row, column][parts].exp().clamp(min=1e-300)
        return mixing_weights(likelihood.numpy(), counts.numpy()).tolist()

    parts = list(range(len(said)))
    kept = [part for part, share in zip(parts, shares(parts), strict=True) if share >= LEAST_SHARE or part == parts[-1]]
    kept = kept if len(kept) > 1 else parts
    found = torch.tensor(shares(kept), dtype=torch.float64)
    found = found / found.sum()
    held_out = torch.full_like(done[0].held_out, math.nan)
    held_out[known] = averaged(said[kept], found)
    networks = [*(each.network for each in done), Even(objective.columns)]
    return Learned(
        Mixture([networks[part] for part in kept], found.tolist(), [many[part] for part in kept]),
        objective,
        held_out,
        _told(done),
    )


def _stopped(trained: Trained) -> Trained:
    """It, and that Ctrl-C ended what came after it; the file that holds it goes on saying how it ended itself."""
    return replace(trained, history=replace(trained.history, stopped=BY_HAND))


def _told(done: list[Trained]) -> History:
    """What happened to the first network; to the last, if it was stopped by hand, for who asks whether one was."""
    return done[-1 if done[-1].history.by_hand else 0].history


def _outlook(done: list[Trained], deadline: float) -> Outlook | None:
    """What more time would win, if time was short and nobody stopped the training by hand."""
    histories = [each.history for each in done]
    return None if deadline == math.inf or any(each.by_hand for each in histories) else outlook(histories)


def _temperatures(trained: Trained, objective: Objective, problem: Problem, plan: Tensor) -> tuple[float, float]:
    """What cools the mean of the few members that had not seen a row, and what cools the mean of all.

    A mean of more members is less sure, and needs less. The temperature is taken to fall with 1 / members, through what
    single members need and what their means over the repeats need, which are both known from rows held out.

    None is below 1: cooling undoes what the stop allowed, and whether a sharper answer helps is for the guarded
    calibrator to show. On few rows without a mistake the likeliest temperature is near 0, and the first mistake pays.
    """
    known = ~trained.held_out[:, 0].isnan()
    if int(known.sum()) < ENOUGH_FOR_A_TEMPERATURE:
        return 1.0, 1.0
    few = cooling(trained.held_out[known], problem.take(known)).temperature
    repeats, members = len(plan), getattr(trained.network, "members", 1)
    if repeats == 1:
        return max(1.0, few), max(1.0, few)
    answers = answers_of(trained.network, objective, problem, members_of(problem, plan, trained.network))
    rows = torch.cat([held for held, _ in answers])
    alone = cooling(torch.cat([said for _, said in answers]), problem.take(rows)).temperature
    many = few - (alone - few) * (1 / repeats - 1 / members) / (1 - 1 / repeats)
    return max(1.0, few), max(1.0, min(few, many))


def _mean(log_p: list[Tensor]) -> Tensor:
    """Log of the mean of probabilities, for each row over those that say something of it."""
    stacked = torch.stack(log_p)
    known = ~stacked.isnan()
    total = torch.where(known, stacked, -math.inf).logsumexp(0)
    return torch.where(known.any(0), total - known.sum(0).double().log(), math.nan)


def _numbered(progress: Callable[[Progress], None], number: int, of: int) -> Callable[[Progress], None]:
    return lambda at: progress(replace(at, network=number, networks=of))
