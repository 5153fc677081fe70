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
from crossent.minimise.data.problem import Problem, folds
from crossent.minimise.networks.several import Several
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.objective.objective import Objective
from crossent.minimise.recipe import Recipe
from crossent.minimise.training import boost
from crossent.minimise.training.judge import (
    Ends,
    blas_alone,
    columns_of,
    interval_of,
    logits_of,
    together,
)
from crossent.minimise.training.mix import Cooled, average, cooled_by_itself, mixed
from crossent.minimise.training.outlook import NO_TREES, Outlook, outlook
from crossent.minimise.training.state import BY_HAND, History
from crossent.minimise.training.train import Progress, Trained, train

SHARE_OF_THE_NETWORKS = 0.85
"""Of the time that is left, where trees are grown after them."""
MOST_STEPS_OF_A_LINEAR_MODEL = 3_000
"""Beside networks. Where it goes on for longer it is far behind them, and counts next to nothing (LOG.md)."""
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
        """Log-probabilities (n, classes), float64, of prepared rows: what the members say together."""
        return together(self.network, self.objective.log_probabilities(logits_of(self.network, x)))

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


@blas_alone()
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
    parts = int(fold.max()) + 1
    one_by_one = [(_only(repeat, part), recipe) for repeat in fold for part in range(parts)]
    jobs = _kinds(fold, recipe, len(problem)) if together else one_by_one
    trees = together and boost.wanted(problem, objective, recipe, parts)
    networks = len(jobs) + trees
    done: list[Trained] = []
    cooled: list[Cooled] = []
    for number, (plan, chosen) in enumerate(jobs, 1):
        left = (deadline - time.monotonic()) * (SHARE_OF_THE_NETWORKS if trees else 1)
        left /= max(1, sum(rest.model == recipe.model for _, rest in jobs[number - 1 :]))  # a linear one takes no time
        job = _Job(problem, objective, factory, fabric, _numbered(progress, number, networks), time.monotonic() + left)
        kept = None if checkpoint is None else checkpoint / f"network-{number}.pt"
        try:
            trained = job.train(plan, chosen, seed * 1_000_003 + number, kept, number)
            mean = cooled_by_itself(trained, objective, problem, plan) if together else Cooled()
            trained = job.train_on_all(trained, plan, chosen, seed * 1_000_003 + number, kept, number)
        except KeyboardInterrupt:  # before this network has anything to keep: those that are finished are kept
            if not done:
                raise
            done[-1] = _stopped(done[-1])
            break
        done.append(trained)
        cooled.append(mean)
        if trained.history.by_hand:
            break
    if trees and not done[-1].history.by_hand:
        beside = _numbered(progress, networks, networks)
        try:
            grown = boost.boosted(problem, objective, fold[:1], seed, fabric=fabric, progress=beside, deadline=deadline)
            mean = Cooled() if grown is None else cooled_by_itself(grown, objective, problem, fold[:1])
        except KeyboardInterrupt:
            done[-1] = _stopped(done[-1])
        else:
            if grown is not None:
                done.append(grown)
                cooled.append(mean)
    if together:
        alike = sum(chosen.model == recipe.model for _, chosen in jobs)  # they come first, and count most
        kinds = done
        if recipe.model == "network" and recipe.beside:
            kinds = [*done, average(problem, objective, fold[:1])]
            cooled.append(cooled_by_itself(kinds[-1], objective, problem, fold[:1]))
        network, held_out = mixed(kinds, cooled, min(alike, len(done)), objective, problem)
        more = _outlook(done[:alike], deadline)
        if more is not None and trees and len(done) == len(jobs):
            more = replace(more, sentence=f"{more.sentence} {NO_TREES}")
        return Learned(network, objective, held_out, _told(done), more)
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

    def train(self, plan: Tensor, recipe: Recipe, seed: int, checkpoint: Path | None, number: int) -> Trained:
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
            number=number,
        )

    def train_on_all(
        self, trained: Trained, plan: Tensor, recipe: Recipe, seed: int, checkpoint: Path | None, number: int
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
            return replace(trained, network=self.train(everything, whole, seed + 500_000, kept, number).network)
        except KeyboardInterrupt:
            return _stopped(trained)


@blas_alone()
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
        if not hasattr(network, "members") and (gives := columns_of(network, problem.x)) != columns:
            raise DataError(f"the factory's network gives {gives} logits a row, and {columns} are needed.")
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


def _kinds(fold: Tensor, recipe: Recipe, rows: int) -> list[tuple[Tensor, Recipe]]:
    """The networks of a table, each kind with its plan: half of the members without ramps, and linear ones beside.

    What bends anywhere and what bends slowly are wrong on other rows, so that a mean of both is better than either. Of
    linear models, which vary little with their start, one for each fold is enough.
    """
    plain = len(fold) // 2 if recipe.model == "network" and recipe.plain and recipe.bins > 1 else 0
    kinds = [(fold[plain:], recipe)]
    if plain:
        kinds.append((fold[:plain], recipe.changed(bins=1)))
    if recipe.model == "network" and recipe.beside:
        kinds.append((fold[:1], _linear(recipe, rows)))
    return kinds


def _linear(recipe: Recipe, rows: int) -> Recipe:
    """The recipe of a linear model beside networks, which learns from some of the rows."""
    steps = -(-rows // recipe.batch_for(rows))
    most = recipe.epochs_for(recipe.patience_for(steps))
    return recipe.changed(model="linear", epochs=min(most, -(-MOST_STEPS_OF_A_LINEAR_MODEL // steps)))


def _only(repeat: Tensor, part: int) -> Tensor:
    """The plan of one network: rows of one fold held out (0), all others learnt (-1)."""
    return torch.where(repeat == part, 0, -1).unsqueeze(0)


def _stopped(trained: Trained) -> Trained:
    """It, and that Ctrl-C ended what came after it; the file that holds it goes on saying how it ended itself."""
    return replace(trained, history=replace(trained.history, stopped=BY_HAND))


def _told(done: list[Trained]) -> History:
    """What happened to the first network; to the last, if it was stopped by hand, for who asks whether one was.

    The seconds are those of all of them.
    """
    history = done[-1 if done[-1].history.by_hand else 0].history
    return replace(history, seconds=sum(each.history.seconds for each in done))


def _outlook(done: list[Trained], deadline: float) -> Outlook | None:
    """What more time would win, if time was short and nobody stopped the training by hand."""
    histories = [each.history for each in done]
    return None if deadline == math.inf or any(each.by_hand for each in histories) else outlook(histories)


def _mean(log_p: list[Tensor]) -> Tensor:
    """Log of the mean of probabilities, for each row over those that say something of it."""
    stacked = torch.stack(log_p)
    known = ~stacked.isnan()
    total = torch.where(known, stacked, -math.inf).logsumexp(0)
    return torch.where(known.any(0), total - known.sum(0).double().log(), math.nan)


def _numbered(progress: Callable[[Progress], None], number: int, of: int) -> Callable[[Progress], None]:
    return lambda at: progress(replace(at, network=number, networks=of))
