"""The training loop: one file, read from top to bottom.

Mini-batches on Lightning Fabric, from one core to many machines. What is judged, kept and used is a moving average of
the weights, which does the work of a schedule and needs no end date (Polyak & Juditsky 1992; Izmailov et al. 2018).
After each epoch the average says what it thinks of the rows that were held out; the epoch that did so at the lowest
cross-entropy wins.

Every epoch seeds torch with (seed, epoch) and draws from nothing else. So a run that was killed and resumed makes the
same batches, the same dropout and the same bits as one that was not. On several processes each reads its share of
every batch, with the dropout and the mixing that one process would have drawn for it, and the batch norm of all rows;
and the loss is divided by the rows of the whole batch, however raggedly it was shared out.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossent.compute.target import Target
from crossent.errors import DataError
from crossent.minimise.data.problem import Problem
from crossent.minimise.networks.dropout import shared
from crossent.minimise.objective.objective import Objective
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.augment import Augment
from crossent.minimise.training.judge import (
    MOST_ROWS_FOR_THE_CURVE,
    MOST_ROWS_LEARNT,
    Members,
    held_out_of,
    learnt_of,
    members_of,
    score,
    threads,
)
from crossent.minimise.training.optimiser import sharpen
from crossent.minimise.training.state import BY_HAND, MOST_ROLLBACKS, OVER, SLOWER, History, State
from crossent.minimise.training.whole import Whole


@dataclass(frozen=True)
class Progress:
    """Where a training stands: after an epoch, or, with ``share`` below 1, within one.

    ``expected`` is the last epoch if none improves on the best so far; ``seconds_left`` is the time until then.
    Cross-entropies are those after the last whole epoch, NaN before the first. ``network`` of ``networks`` is trained.
    """

    epoch: int
    share: float
    expected: int
    train: float
    validation: float
    best: float
    best_epoch: int
    seconds_left: float
    network: int = 1
    networks: int = 1


@dataclass(frozen=True, eq=False)
class Trained:
    """The best network, what happened, and log-probabilities (n, classes) of each row by members it was held out from.

    Rows that no member had held out are NaN.
    """

    network: nn.Module
    history: History
    held_out: Tensor


def train(
    network: nn.Module,
    problem: Problem,
    objective: Objective,
    fold: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    fabric: Any,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    deadline: float = math.inf,
    loader: Any = None,
    number: int = 1,
) -> Trained:
    """Train a network, choose the epoch on the rows held out, and give back the best.

    Args:
        network: features (n, …) → logits (n, columns); or, with an attribute ``members``, features (members, n, …) →
            logits (members, n, columns). It is trained in place.
        problem: the rows.
        objective: what is minimised, and how logits become log-probabilities.
        fold: (repeats, n) int64 of ``folds``; member m = repeat · folds + f learns from the rows not in fold f.
        recipe: the settings.
        seed: of batches, dropout and augmentation.
        fabric: a launched ``lightning_fabric.Fabric``.
        checkpoint: a file for the state, written about once a second; one that is found is gone on from.
        progress: called after each epoch, and twice a second within long ones.
        deadline: ``time.monotonic()`` after which no epoch begins.
        loader: where the batches (x, target) to learn from come from, if not from the problem, whose rows are then all
            held out; its ``len`` is the number of batches.
        number: which of several networks this is, for the log.

    ``KeyboardInterrupt`` (Ctrl-C) ends the training and keeps the best so far.
    """
    members = members_of(problem, fold, network)
    if recipe.stop != "none" and not all(len(held) for _, held in members):
        raise ValueError("every member needs a row that is held out from it.")
    rows = len(loader) if loader is not None else min(len(learnt) for learnt, _ in members)
    batch = 1 if loader is not None else recipe.batch_for(rows)
    sizes = [1] * rows if loader is not None else _sizes(rows, batch, hasattr(network, "members"))
    steps = len(sizes)
    patience = recipe.patience_for(steps)
    epochs = recipe.epochs_for(patience)
    state = State(network, recipe, steps, fabric, _fingerprint(problem, fold, recipe, seed))
    if checkpoint is not None:
        state.resume(checkpoint)
    history = state.history
    history.most = epochs
    began, already, saved, interrupted = time.monotonic(), history.seconds, time.monotonic(), False

    def report(epoch: int, share: float) -> None:
        history.seconds = already + time.monotonic() - began
        progress(_progress(history, epoch, share, epochs, patience))

    def learnt(trained: nn.Module, loss: float, most: int = MOST_ROWS_FOR_THE_CURVE) -> float:
        return loss if loader is not None else learnt_of(trained, objective, problem, members, most)

    held_out = held_out_of(state.best, objective, problem, members) if history.best_epoch else torch.empty(0)
    try:
        while len(history.train) < epochs and not history.stopped:
            epoch = len(history.train) + 1
            if fabric.broadcast(bool(history.train) and time.monotonic() > deadline):  # one clock for all processes
                history.stopped = OVER
                break
            with threads(network, batch), _seeded(seed, epoch, len(history.trouble), fabric.global_rank) as draw:
                coins = torch.Generator().manual_seed(_stream(seed, epoch, len(history.trouble), 0))
                loss = _one_epoch(state, problem, objective, members, sizes, epochs, draw, coins, report, loader)
            # Ctrl-C may come between any two lines: what belongs together is computed first, then set at once.
            said, losses = held_out, (loss, math.nan)
            if math.isfinite(loss):
                said = held_out_of(state.judged(problem.x, batch), objective, problem, members)
                losses = (learnt(state.average.module, loss), score(said, problem, members, recipe.stop))
            if any(map(math.isnan, losses)):  # the last step of an epoch may be the one too far
                if not state.roll_back():
                    break
                continue
            better = losses[1] < history.best or recipe.stop == "none"
            kept = (copy.deepcopy(state.average.module), said, epoch) if better else (state.best, held_out, None)
            history.train.append(losses[0])
            history.validation.append(losses[1])
            state.best, held_out, history.best_epoch = kept[0], kept[1], kept[2] or history.best_epoch
            state.remember()
            report(epoch, 1.0)
            fabric.log_dict({"network": number, "training": losses[0], "held_out": losses[1]}, step=epoch)
            if recipe.stop != "none" and epoch - history.best_epoch >= patience:
                history.stopped = f"no lower held-out loss in {patience} epochs"
            if checkpoint is not None and time.monotonic() - saved > 1.0:
                state.save(checkpoint)
                saved = time.monotonic()
        history.stopped = history.stopped or f"the most epochs allowed, {epochs}, were done"
        if history.best_epoch:
            history.learnt = learnt(state.best, history.train[history.best_epoch - 1], MOST_ROWS_LEARNT)
    except KeyboardInterrupt:
        if not history.best_epoch:
            raise
        history.learnt = history.train[history.best_epoch - 1]
        history.stopped = BY_HAND
        interrupted = True
    if not history.best_epoch:
        raise DataError(
            "the training loss was never finite: the features hold numbers too large to learn from, or the learning "
            f"rate, {recipe.learning_rate:g}, is too high even {SLOWER**MOST_ROLLBACKS:.1g} times as high."
        )
    history.seconds = already + time.monotonic() - began
    if checkpoint is not None and not interrupted:  # in the middle of an epoch: the last whole one stays saved
        state.save(checkpoint)
    return Trained(state.best.requires_grad_(False).eval().cpu(), history, held_out)


def _one_epoch(
    state: State,
    problem: Problem,
    objective: Objective,
    members: Members,
    sizes: list[int],
    epochs: int,
    draw: torch.Generator,
    coins: torch.Generator,
    report: Callable[[int, float], None],
    loader: Any,
) -> float:
    """One pass over the rows, of which steps read so many; the mean of the losses on the way."""
    recipe, fabric, epoch = state.recipe, state.fabric, len(state.history.train) + 1
    images = problem.x.dim() > 2  # a table's noise is in units that its network knows
    augment = Augment(recipe.mixup, recipe.cutmix, recipe.noise if images else 0.0, recipe.flip, recipe.crop)
    many, one_of_several = hasattr(state.network, "members"), loader is None and fabric.world_size > 1
    share = slice(fabric.global_rank, None, fabric.world_size)
    if loader is None:
        order = torch.stack([_order(learnt, sum(sizes), problem.target, objective, draw) for learnt, _ in members])
        # Rows of one process are mixed with rows of another: each mixes the whole batch, and takes its share then.
        batches = _batches(problem, order.split(sizes, 1), many, fabric, slice(None) if augment else share)
    else:
        batches = _loaded(loader, fabric)
    drawn = coins if one_of_several else torch.default_generator
    total, said, steps = torch.zeros((), dtype=torch.float64), time.monotonic(), len(sizes)
    state.train()
    for step, (x, target, weight, divisor) in enumerate(batches):
        mixed: Tensor | Target = target
        if augment and weight is not None:
            x, mixed, weight = augment(x, target, drawn, weight)
        elif augment:
            x, mixed = augment(x, target, drawn)
        if augment and one_of_several:
            x, mixed, weight = _taken(share, x.shape[: 1 + many], x, mixed, weight)

        def gradients(
            x: Tensor = x,
            target: Tensor | Target = mixed,
            weight: Tensor | None = weight,
            divisor: float = divisor,
            rows: int = round(divisor * fabric.world_size) // len(members),  # of the batch, on all processes
        ) -> Tensor:
            for optimiser in state.optimisers:
                optimiser.zero_grad(set_to_none=True)
            with _whole(fabric, many, rows, None if loader is not None else coins):
                loss = objective.loss(state.model(x), target, weight).sum() / divisor
            fabric.backward(loss)
            return loss

        state.pace((epoch - 1 + step / steps) / epochs)
        if recipe.optimiser == "lbfgs":
            loss = state.optimisers[0].step(gradients)
        else:
            loss = gradients()
            if recipe.sharpness > 0:
                sharpen(state.network, recipe.sharpness, gradients)
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), math.sqrt(len(members)))
            for optimiser in state.optimisers:
                optimiser.step()
        state.average.update_parameters(state.network)
        total += loss.detach().double()
        if time.monotonic() - said > 0.5:
            said = time.monotonic()
            report(epoch, (step + 1) / steps)
    return float(fabric.all_reduce(total, reduce_op="mean")) / steps


def _whole(fabric: Any, many: bool, rows: int, coins: torch.Generator | None) -> contextlib.AbstractContextManager[Any]:
    """Within it a network sees the whole batch, of which each of several processes has a share."""
    if fabric.world_size == 1:
        return contextlib.nullcontext()
    if many and coins is not None:
        return shared(fabric.global_rank, fabric.world_size, rows, coins)
    return Whole(fabric, rows, coins)


def _sizes(rows: int, batch: int, many: bool) -> list[int]:
    """How many rows each step reads.

    A last row that would be alone joins the batch before it, where a network may have batch norm: no row has a spread.
    """
    whole, left = divmod(rows, batch)
    if left == 1 and whole and not many:
        return [batch] * (whole - 1) + [batch + 1]
    return [batch] * whole + [left] * (left > 0)


def _batches(
    problem: Problem, wholes: Sequence[Tensor], many: bool, fabric: Any, share: slice
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, float]]:
    """Rows, targets and weights of this process, its ``share`` of a batch, and what their losses are divided by.

    The loss is a mean over all rows of all members, wherever they are, and Fabric divides gradients by the number of
    processes: so it is the sum of the rows here by the rows of the whole batch for each process.
    """
    for whole in wholes:
        mine = whole[:, share] if many else whole[0, share]
        weight = None if problem.weight is None else problem.weight[mine].to(fabric.device)
        target = problem.target[mine].to(fabric.device)
        yield problem.x[mine].to(fabric.device), target, weight, whole.numel() / fabric.world_size


def _taken(
    share: slice, lead: torch.Size, x: Tensor, target: Tensor | Target, weight: Tensor | None
) -> tuple[Tensor, Tensor | Target, Tensor | None]:
    """A share of the rows, whose leading dimensions are ``lead``; those of a ``Target`` are flattened."""
    rows = torch.arange(lead.numel(), device=x.device).view(lead)[..., share]

    def of(values: Tensor) -> Tensor:
        rest = values.shape[len(lead) :]
        return values.reshape(-1, *rest)[rows.reshape(-1)].view(*rows.shape, *rest)

    mine = target[rows.reshape(-1)] if isinstance(target, Target) else of(target)
    return of(x), mine, None if weight is None else of(weight)


def _loaded(loader: Any, fabric: Any) -> Iterator[tuple[Tensor, Tensor, Tensor | None, float]]:
    """The same from a loader, which has shared its rows among the processes: their number is asked for."""
    for x, target, *weight in loader:
        rows = fabric.all_reduce(torch.tensor(float(len(x))), reduce_op="mean")
        yield (
            x.to(fabric.device),
            target.to(fabric.device),
            weight[0].to(fabric.device) if weight else None,
            float(rows),
        )


def _order(learnt: Tensor, rows: int, target: Tensor, objective: Objective, draw: torch.Generator) -> Tensor:
    """As many of a member's rows, in an order of its own; drawn by class where classes are to be balanced."""
    if objective.imbalance.shares is not None:
        return learnt[objective.imbalance.rows(target[learnt], rows, draw)]
    return learnt[torch.randperm(len(learnt), generator=draw)[:rows]]


def _progress(history: History, epoch: int, share: float, epochs: int, patience: int) -> Progress:
    done = len(history.train)
    expected = min(epochs, history.best_epoch + patience)
    left = history.seconds / done * max(0.0, expected - epoch + 1 - share) if done else math.nan
    last = (history.train[-1], history.validation[-1]) if done else (math.nan, math.nan)
    return Progress(epoch, share, expected, *last, history.best, history.best_epoch, left)


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, again: int, rank: int) -> Iterator[torch.Generator]:
    """Torch's own random numbers seeded for an epoch of this process; gives a generator that is alike on all."""
    with torch.random.fork_rng():
        torch.manual_seed(_stream(seed, epoch, again, rank))
        yield torch.Generator().manual_seed(_stream(seed, epoch, again))


def _stream(*parts: Any) -> int:
    """One stream for each epoch of each seed: a hash keeps (1, 12) apart from (11, 2)."""
    digest = hashlib.sha256(" ".join(map(str, ("crossent", *parts))).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _fingerprint(problem: Problem, fold: Tensor, recipe: Recipe, seed: int) -> str:
    """What a checkpoint belongs to: these rows, this recipe, this seed."""
    digest = hashlib.sha256(repr((problem.task, recipe, seed)).encode())
    for part in (problem.x, problem.target, problem.weight, fold):
        if part is not None:
            digest.update(str(tuple(part.shape)).encode())
            digest.update(np.ascontiguousarray(part.numpy()).data)
    return digest.hexdigest()
