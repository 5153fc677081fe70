"""The training loop: one file, read from top to bottom.

Mini-batches on Lightning Fabric, from one core to many machines. What is judged, kept and used is a moving average of
the weights, which does the work of a schedule and needs no end date (Polyak & Juditsky 1992; Izmailov et al. 2018).
After each epoch the average says what it thinks of the rows that were held out; the epoch that did so at the lowest
cross-entropy wins.

Every epoch seeds torch with (seed, epoch) and draws from nothing else. So a run that was killed and resumed makes the
same batches, the same dropout and the same bits as one that was not. On several processes each reads its share of
every batch, and the loss is divided by the rows of the whole batch, however raggedly it was shared out.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from crossent.compute.target import Target
from crossent.errors import DataError
from crossent.files import replacing
from crossent.measure.calibration.scaling import recalibrate
from crossent.minimise.augment import Augment
from crossent.minimise.objective import Objective
from crossent.minimise.optimiser import optimisers, rate, sharpen
from crossent.minimise.problem import Problem
from crossent.minimise.recipe import Recipe

MOST_ROWS_FOR_THE_CURVE = 4_000
MOST_ROLLBACKS = 5
SLOWER = 0.3
"""By how much the learning rate falls when a loss was no longer finite."""
LEAST_WORK_FOR_THREADS = 2e8
"""Multiplications in a forward pass below which one thread does it: threads that wait for each other a thousand
times a second gain little on a quiet machine, and made a run fifty times slower on one that was busy (LOG.md)."""


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


@dataclass
class History:
    """What happened: cross-entropy on learnt and held-out rows after each epoch, the best epoch, why it ended."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)

    @property
    def best(self) -> float:
        """The lowest held-out cross-entropy so far."""
        return self.validation[self.best_epoch - 1] if self.best_epoch else math.inf


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

    ``KeyboardInterrupt`` (Ctrl-C) ends the training and keeps the best so far.
    """
    members = _members(problem, fold, network)
    rows = len(loader) if loader is not None else min(len(learnt) for learnt, _ in members)
    batch = 1 if loader is not None else recipe.batch_for(rows)
    steps = math.ceil(rows / batch)
    patience = recipe.patience_for(steps)
    epochs = recipe.epochs_for(patience)
    state = _State(network, recipe, steps, fabric, _fingerprint(problem, fold, recipe, seed))
    if checkpoint is not None:
        state.resume(checkpoint)
    history = state.history
    began, already, saved, interrupted = time.monotonic(), history.seconds, time.monotonic(), False

    def report(epoch: int, share: float) -> None:
        history.seconds = already + time.monotonic() - began
        progress(_progress(history, epoch, share, epochs, patience))

    held_out = _held_out(state.best, objective, problem, members) if history.best_epoch else torch.empty(0)
    try:
        while len(history.train) < epochs and not history.stopped:
            epoch = len(history.train) + 1
            if fabric.broadcast(bool(history.train) and time.monotonic() > deadline):  # one clock for all processes
                history.stopped = "the time allowed was over"
                break
            with _threads(network, batch), _seeded(seed, epoch, len(history.trouble), fabric.global_rank) as draw:
                loss = _one_epoch(state, problem, objective, members, rows, batch, epochs, draw, report, loader)
            # Ctrl-C may come between any two lines: what belongs together is computed first, then set at once.
            said, losses = held_out, (loss, math.nan)
            if math.isfinite(loss):
                said = _held_out(state.judged(problem.x, batch), objective, problem, members)
                learnt = loss if loader is not None else _learnt(state.average.module, objective, problem, members)
                losses = (learnt, _score(said, problem, members, recipe.stop))
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
            fabric.log_dict({"training": losses[0], "held_out": losses[1]}, step=epoch)
            if recipe.stop != "none" and epoch - history.best_epoch >= patience:
                history.stopped = f"no lower held-out loss in {patience} epochs"
            if checkpoint is not None and time.monotonic() - saved > 1.0:
                state.save(checkpoint)
                saved = time.monotonic()
        history.stopped = history.stopped or f"the most epochs allowed, {epochs}, were done"
    except KeyboardInterrupt:
        if not history.best_epoch:
            raise
        history.stopped = "stopped by hand; the best epoch so far is kept"
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


def logits_of(network: nn.Module, x: Tensor, rows: int = 8192) -> Tensor:
    """Logits (members, n, columns) of rows (n, …), or (members, n, d) where members read their own; piece by piece."""
    many = hasattr(network, "members")
    own = many and x.dim() == 3
    pieces = []
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for piece in x.split(max(1, min(rows, getattr(network, "rows_at_once", rows))), 1 if own else 0):
            logits = network(piece.to(device)).cpu()
            pieces.append(logits if many else logits.unsqueeze(0))
    return torch.cat(pieces, 1)


def averaged(log_p: Tensor, shares: Tensor | None = None, temperatures: Tensor | None = None) -> Tensor:
    """Log-probabilities (n, classes) of the mean of the members' probabilities (members, n, classes).

    ``shares`` (members,) are what members count, if not all alike; ``temperatures`` (members,) cool each of them first.
    """
    if temperatures is not None:
        log_p = torch.log_softmax(log_p / temperatures.view(-1, 1, 1), -1)
    if shares is not None:
        return (log_p + shares.log().view(-1, 1, 1)).logsumexp(0)
    return log_p.logsumexp(0) - math.log(log_p.shape[0])


def shares_of(network: nn.Module) -> Tensor | None:
    """What each member counts in the mean; None where all count alike."""
    return getattr(network, "shares", None)


def temperatures_of(network: nn.Module) -> Tensor | None:
    """By what each member's log-probabilities are divided; None where nothing is."""
    return getattr(network, "temperatures", None)


Members = list[tuple[Tensor, Tensor]]
"""For each member the rows it learns from and the rows it does not."""


def _members(problem: Problem, fold: Tensor, network: nn.Module) -> Members:
    parts = max(1, int(fold.max()) + 1)
    found = [((part != f).nonzero().flatten(), (part == f).nonzero().flatten()) for part in fold for f in range(parts)]
    if len(found) != getattr(network, "members", 1):
        raise ValueError(
            f"{len(found)} members are parted by fold, and the network has {getattr(network, 'members', 1)}."
        )
    return found


def _one_epoch(
    state: _State,
    problem: Problem,
    objective: Objective,
    members: Members,
    rows: int,
    batch: int,
    epochs: int,
    draw: torch.Generator,
    report: Callable[[int, float], None],
    loader: Any,
) -> float:
    """One pass over the rows; the mean of the losses on the way."""
    recipe, fabric, epoch = state.recipe, state.fabric, len(state.history.train) + 1
    images = problem.x.dim() > 2  # a table's noise is in units that its network knows
    augment = Augment(recipe.mixup, recipe.cutmix, recipe.noise if images else 0.0, recipe.flip, recipe.crop)
    if loader is None:
        order = torch.stack([_order(learnt, rows, problem.target, objective, draw) for learnt, _ in members])
        batches = _batches(problem, order, batch, hasattr(state.network, "members"), fabric)
    else:
        batches = _loaded(loader, fabric)
    total, said, steps = torch.zeros((), dtype=torch.float64), time.monotonic(), math.ceil(rows / batch)
    state.train()
    for step, (x, target, weight, divisor) in enumerate(batches):
        mixed: Tensor | Target = target
        if augment and weight is not None:
            x, mixed, weight = augment(x, target, torch.default_generator, weight)
        elif augment:
            x, mixed = augment(x, target, torch.default_generator)

        def gradients(
            x: Tensor = x, target: Tensor | Target = mixed, weight: Tensor | None = weight, divisor: float = divisor
        ) -> Tensor:
            for optimiser in state.optimisers:
                optimiser.zero_grad(set_to_none=True)
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


def _batches(
    problem: Problem, order: Tensor, batch: int, many: bool, fabric: Any
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, float]]:
    """Rows, targets and weights of this process, and what their losses are divided by.

    The loss is a mean over all rows of all members, wherever they are, and Fabric divides gradients by the number of
    processes: so it is the sum of the rows here by the rows of the whole batch for each process.
    """
    share = slice(fabric.global_rank, None, fabric.world_size)
    for whole in order.split(batch, 1):
        mine = whole[:, share] if many else whole[0, share]
        weight = None if problem.weight is None else problem.weight[mine].to(fabric.device)
        target = problem.target[mine].to(fabric.device)
        yield problem.x[mine].to(fabric.device), target, weight, whole.numel() / fabric.world_size


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


def _held_out(network: nn.Module, objective: Objective, problem: Problem, members: Members) -> Tensor:
    """Log-probabilities (n, classes) of each row, averaged over the members that had not learned from it."""
    network.eval()
    if not all(len(held) for _, held in members):  # nothing is held out where all is learnt from: stop is "none"
        return torch.full((len(problem), problem.task.columns), math.nan, dtype=torch.float64)
    most = max(len(held) for _, held in members)
    # Folds differ by a row or so: shorter ones repeat a row, whose answer is written twice.
    rows = torch.stack([torch.cat((held, held[:1].expand(most - len(held)))) for _, held in members])
    with _threads(network, most):
        if hasattr(network, "members"):
            log_p = objective.log_probabilities(logits_of(network, problem.x[rows], 8192 // len(members) + 1))
        else:
            log_p = objective.log_probabilities(logits_of(network, problem.x[rows[0]]))
    sum_p = torch.full((len(problem), log_p.shape[-1]), -math.inf, dtype=torch.float64)
    times = torch.zeros(len(problem), 1, dtype=torch.float64)
    for held, said in zip([held for _, held in members], log_p, strict=True):
        sum_p[held] = torch.logaddexp(sum_p[held], said[: len(held)])
        times[held] += 1
    return torch.where(times > 0, sum_p - times.log(), math.nan)


def _learnt(network: nn.Module, objective: Objective, problem: Problem, members: Members) -> float:
    """Cross-entropy on a sample of the rows, by members that learned from them."""
    sample = torch.linspace(0, len(problem) - 1, min(len(problem), MOST_ROWS_FOR_THE_CURVE)).long()
    with _threads(network, len(sample)):
        log_p = objective.log_probabilities(logits_of(network, problem.x[sample], 8192 // len(members) + 1))
    learnt = torch.ones(len(members), len(problem), dtype=torch.bool)
    for member, (_, held) in enumerate(members):
        learnt[member, held] = False
    learnt = learnt[:, sample]
    known = learnt.any(0)
    log_p = torch.where(learnt.unsqueeze(-1), log_p, -math.inf)[:, known]
    log_p = log_p.logsumexp(0) - learnt.sum(0)[known].double().log().unsqueeze(-1)
    return problem.take(sample[known]).cross_entropy(log_p)


def _score(log_p: Tensor, problem: Problem, members: Members, stop: str) -> float:
    """What the stop looks at: held-out cross-entropy, or what a fitted temperature leaves of it.

    The second is the refinement part, which goes on falling while over-confidence, which a calibrator mends later,
    makes the whole rise (Berta, Holzmüller, Jordan & Bach 2025, §4).
    """
    known = torch.zeros(len(problem), dtype=torch.bool)
    known[torch.cat([held for _, held in members])] = True
    if log_p[known].isnan().any():
        return math.nan
    if stop == "refinement" and problem.target.dim() == 1:
        said, labels = log_p[known].numpy(), problem.target[known].double().numpy()
        labels = labels if problem.task.kind == "range" else labels.astype(np.int64)
        log_p = log_p.clone()
        log_p[known] = torch.from_numpy(recalibrate(said, labels, "temperature", logits=True).of_logits(said))
    return problem.cross_entropy(log_p, known)


def _progress(history: History, epoch: int, share: float, epochs: int, patience: int) -> Progress:
    done = len(history.train)
    expected = min(epochs, history.best_epoch + patience)
    left = history.seconds / done * max(0.0, expected - epoch + 1 - share) if done else math.nan
    last = (history.train[-1], history.validation[-1]) if done else (math.nan, math.nan)
    return Progress(epoch, share, expected, *last, history.best, history.best_epoch, left)


@contextlib.contextmanager
def _threads(network: nn.Module, rows: int) -> Iterator[None]:
    """One thread where there is too little work for more."""
    before = torch.get_num_threads()
    work = getattr(network, "work", None) or sum(p.numel() for p in network.parameters())
    if rows * work < LEAST_WORK_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
    return digest.hexdigest()


Tensors = tuple[Tensor, ...] | list[Tensor]


class _State:
    """Everything that changes while training: network, its average, the best average, optimisers, history."""

    def __init__(self, network: nn.Module, recipe: Recipe, steps: int, fabric: Any, fingerprint: str) -> None:
        self.network, self.recipe, self.fabric, self.fingerprint = network, recipe, fabric, fingerprint
        horizon = max(1.0, recipe.averaging * steps)

        def follow(slow: Tensors, fast: Tensors, count: Tensor | int) -> None:
            """A plain mean at first, then one with a memory of ``horizon`` steps."""
            torch._foreach_lerp_(slow, fast, max(1 / (int(count) + 1), 1 / horizon))

        self.model, *self.optimisers = fabric.setup(network, *optimisers(network, recipe))
        self.average = AveragedModel(network, multi_avg_fn=follow if recipe.averaging > 0 else _newest)
        self.average.requires_grad_(False)
        self.best = copy.deepcopy(self.average.module)
        self.rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]
        self.slowed = 1.0
        self.history = History()
        self.good: Any = None
        self.remember()

    def train(self) -> None:
        """Dropout and batch norm learn; schedule-free weights go to where gradients are taken."""
        self.network.train()
        for optimiser in self.optimisers:
            if hasattr(optimiser.optimizer, "train"):
                optimiser.optimizer.train()

    def judged(self, x: Tensor, batch: int) -> nn.Module:
        """The averaged network as it would be used now."""
        for optimiser in self.optimisers:
            if hasattr(optimiser.optimizer, "eval"):
                optimiser.optimizer.eval()
                self.average.module.load_state_dict(self.network.state_dict())  # schedule-free has its own average
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules()):
            some = torch.linspace(0, len(x) - 1, min(len(x), 64 * batch)).long()
            pieces = (x[rows].to(self.fabric.device) for rows in some.split(batch) if len(rows) > 1)
            update_bn(pieces, self.average.module)
        return self.average.module.eval()

    def pace(self, done: float) -> None:
        """Set the learning rates for a share of all steps done."""
        if self.recipe.optimiser == "lbfgs":
            return
        for optimiser, rates in zip(self.optimisers, self.rates, strict=True):
            for group, usual in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = usual * self.slowed * rate(self.recipe, done)

    def remember(self) -> None:
        """Keep a copy of the state, which is finite, to go back to."""
        self.good = copy.deepcopy(self._tensors())

    def roll_back(self) -> bool:
        """Go back to the last finite state with a lower learning rate; not more than a few times."""
        trouble = self.history.trouble
        if len(trouble) >= MOST_ROLLBACKS:
            self.history.stopped = (
                f"the training loss was not finite, and {MOST_ROLLBACKS} lower learning rates did not help"
            )
            return False
        self._restore(copy.deepcopy(self.good))
        self.slowed *= SLOWER
        trouble.append(
            f"In epoch {len(self.history.train) + 1} the training loss was not finite; the epoch was undone, and the "
            f"learning rate lowered to {self.recipe.learning_rate * self.slowed:.2g}."
        )
        return True

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all; tensors and plain values, read back without unpickling anything."""
        if self.fabric.global_rank:
            return
        whole = {
            "fingerprint": self.fingerprint,
            "state": self._tensors(),
            "best": self.best.state_dict(),
            "history": vars(self.history),
            "slowed": self.slowed,
        }
        buffer = io.BytesIO()  # torch.save to a path would say less of a full disk
        torch.save(whole, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    def resume(self, path: Path) -> None:
        """Take up a state that was saved, if there is one; one of other data or settings is refused."""
        if not path.exists():
            return
        try:
            whole = torch.load(path, weights_only=True)
        except Exception as trouble:  # a zip, a restricted pickle and torch each have their own way to say it
            raise DataError(
                f"the checkpoint {str(path)!r} cannot be read: {' '.join(str(trouble).split())[:200]} Delete it to "
                "start afresh."
            ) from trouble
        if not isinstance(whole, dict) or whole.get("fingerprint") != self.fingerprint:
            raise DataError(
                f"the checkpoint {str(path)!r} belongs to other data, another recipe or another seed. Resume with what "
                "it was started with, or choose another folder to start afresh."
            )
        self._restore(whole["state"])
        self.best.load_state_dict(whole["best"])
        self.slowed = whole["slowed"]
        vars(self.history).update(whole["history"])
        self.history.stopped = "" if self.history.stopped.startswith("the time") else self.history.stopped
        self.remember()

    def _tensors(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def _restore(self, kept: dict[str, Any]) -> None:
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        for optimiser, own in zip(self.optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(own)


def _newest(slow: Tensors, fast: Tensors, count: Tensor | int) -> None:
    torch._foreach_copy_(slow, fast)
