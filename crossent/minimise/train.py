"""The training loop: one file, read from top to bottom.

Mini-batches by AdamW at a constant rate; what is validated, kept and used is a moving average of the weights, which
does the work of a schedule and needs no end date (Polyak & Juditsky 1992; Izmailov et al. 2018). The stop is early:
the epoch of the lowest validation cross-entropy wins.

Every epoch draws from a generator seeded with (seed, epoch) and from nothing else. So a run that was killed and
resumed makes the same batches, the same dropout and the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crossent.compute import cross_entropy
from crossent.errors import DataError, require
from crossent.files import replacing
from crossent.minimise.model import Network, averaged
from crossent.minimise.recipe import Recipe

MOST_ROWS_FOR_THE_CURVE = 10_000
LEAST_WORK_FOR_THREADS = 2e8
"""Multiplications in a forward pass below which one thread does it: threads that wait for each other a thousand
times a second gain little on a quiet machine, and made a run fifty times slower on one that was busy (LOG.md)."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands: after an epoch, or, with ``share`` below 1, within one.

    ``expected`` is the last epoch if none improves on the best so far; ``seconds_left`` is the time until then.
    Cross-entropies are those after the last whole epoch, NaN before the first.
    """

    epoch: int
    share: float
    expected: int
    train: float
    validation: float
    best: float
    best_epoch: int
    seconds_left: float


@dataclass
class History:
    """What happened: cross-entropy on training and validation rows after each epoch, the best epoch, why it ended."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    seconds: float = 0.0

    @property
    def best(self) -> float:
        """The lowest validation cross-entropy so far."""
        return self.validation[self.best_epoch - 1] if self.best_epoch else math.inf


def log_probabilities(network: Network, x: Tensor, rows: int = 8192) -> Tensor:
    """Log-probabilities (n, columns) in float64 of prepared, unscaled features, a few thousand rows at a time."""
    with torch.no_grad():
        pieces = [averaged(network(network.scaled(piece))) for piece in x.split(rows)] if len(x) else []
    return torch.cat(pieces) if pieces else torch.zeros(0, network.biases[-1].shape[-1], dtype=torch.float64)


def train(
    x: Tensor,
    target: Tensor,
    validation_x: Tensor,
    validation_target: Tensor,
    columns: int,
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[Network, History]:
    """Train on x (n, d), choose the epoch on the validation rows, and give back the best network and its history.

    ``KeyboardInterrupt`` (Ctrl-C) ends the training and keeps the best so far. With ``checkpoint``, a folder, the state
    is written there about once a second, and a state that is found there is gone on from.
    """
    start = _generator(seed, 0)
    network = Network.for_features(x, columns, recipe.members, recipe.width, recipe.depth, start)
    scaled = network.scaled(x)
    state = _State(network, recipe, _fingerprint(x, target, validation_x, validation_target, recipe, seed))
    if checkpoint is not None:
        state.resume(checkpoint)
    history = state.history
    sample = torch.linspace(0, len(x) - 1, min(len(x), MOST_ROWS_FOR_THE_CURVE)).long()
    batch = min(recipe.batch_for(len(x)), len(x))
    patience = recipe.patience_for(math.ceil(len(x) / batch))
    epochs = recipe.epochs_for(patience)
    began, already, saved = time.monotonic(), history.seconds, time.monotonic()
    interrupted = False
    try:
        for epoch in range(len(history.train) + 1, epochs + 1):
            if history.train and (epoch - 1 - history.best_epoch >= patience or not math.isfinite(history.train[-1])):
                break  # only after a resume: the training had ended when the checkpoint was written
            with _threads(network, batch):
                _one_epoch(
                    state, scaled, target, batch, recipe, _generator(seed, epoch), epoch, epochs, patience, progress
                )
            # Ctrl-C may come between any two lines: what belongs together is computed first, then set at once.
            losses = (
                _measure(state.average, x[sample], target[sample]),
                _measure(state.average, validation_x, validation_target),
            )
            better = losses[1] < history.best
            copied = copy.deepcopy(state.average) if better else state.best
            history.train.append(losses[0])
            history.validation.append(losses[1])
            state.best, history.best_epoch = copied, epoch if better else history.best_epoch
            history.seconds = already + time.monotonic() - began
            progress(_progress(history, epoch, 1.0, epochs, patience))
            if checkpoint is not None and time.monotonic() - saved > 1.0:
                state.save(checkpoint)
                saved = time.monotonic()
            if not math.isfinite(history.train[-1]):
                history.stopped = "the training loss was no longer finite"
                break
            if epoch - history.best_epoch >= patience:
                break
        history.stopped = history.stopped or (
            f"no lower validation loss in {patience} epochs"
            if len(history.train) - history.best_epoch >= patience
            else f"the most epochs allowed, {epochs}, were done"
        )
    except KeyboardInterrupt:
        if not history.best_epoch:
            raise
        history.stopped = "stopped by hand; the best epoch so far is kept"
        interrupted = True
    if not history.best_epoch:
        raise DataError(
            "the training loss was never finite: the features hold numbers too large to learn from, or the learning "
            f"rate, {recipe.learning_rate:g}, is too high."
        )
    history.seconds = already + time.monotonic() - began
    if checkpoint is not None and not interrupted:  # in the middle of an epoch: the last whole one stays saved
        state.save(checkpoint)
    return state.best, history


def _one_epoch(
    state: _State,
    x: Tensor,
    target: Tensor,
    batch: int,
    recipe: Recipe,
    generator: torch.Generator,
    epoch: int,
    epochs: int,
    patience: int,
    progress: Callable[[Progress], None],
) -> None:
    order = torch.randperm(len(x), generator=generator)
    said = time.monotonic()
    for step, rows in enumerate(order.split(batch), 1):
        logits = state.network(x[rows], recipe.dropout, generator)
        members, n, columns = logits.shape
        # Every member learns by itself: the mean over members and rows is the mean of their own losses.
        labels = target[rows].repeat(members, *[1] * (target.dim() - 1))
        loss = cross_entropy(
            logits.reshape(members * n, columns), labels, label_smoothing=recipe.label_smoothing, validate="off"
        )
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0 * math.sqrt(members))
        state.optimizer.step()
        state.follow(recipe.averaging * math.ceil(len(x) / batch))
        now = time.monotonic()
        if now - said > 0.5:
            said = now
            progress(_progress(state.history, epoch, min(step * batch / len(x), 1.0), epochs, patience))


def _measure(network: Network, x: Tensor, target: Tensor) -> float:
    """Cross-entropy of the averaged members, in nats: the same function that is minimised."""
    with _threads(network, len(x)):
        return float(cross_entropy(log_probabilities(network, x), target, validate="off"))


def _progress(history: History, epoch: int, share: float, epochs: int, patience: int) -> Progress:
    done = len(history.train)
    expected = min(epochs, history.best_epoch + patience)
    left = history.seconds / done * (expected - epoch + 1 - share) if done else math.nan
    last = (history.train[-1], history.validation[-1]) if done else (math.nan, math.nan)
    return Progress(epoch, share, expected, *last, history.best, history.best_epoch, left)


@contextlib.contextmanager
def _threads(network: Network, rows: int) -> Iterator[None]:
    """One thread where there is too little work for more."""
    before = torch.get_num_threads()
    if rows * sum(weight.numel() for weight in network.weights) < LEAST_WORK_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generator(seed: int, epoch: int) -> torch.Generator:
    """One stream for each epoch of each seed: a hash keeps (1, 12) apart from (11, 2)."""
    digest = hashlib.sha256(f"crossent {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _fingerprint(*parts: Tensor | Recipe | int) -> str:
    """What a checkpoint belongs to: these rows, this recipe, this seed."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(np.ascontiguousarray(part.numpy()).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


class _State:
    """Everything that changes while training: network, its average, the best average, optimiser, history."""

    def __init__(self, network: Network, recipe: Recipe, fingerprint: str) -> None:
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.best = copy.deepcopy(network).requires_grad_(False)
        decayed = [*network.weights]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": recipe.weight_decay},
                {"params": [*network.biases], "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.99),
        )
        self.history = History()
        self.steps = 0
        self.fingerprint = fingerprint

    def follow(self, horizon: float) -> None:
        """Move the average towards the network: a plain mean at first, then one with a memory of ``horizon`` steps."""
        self.steps += 1
        pace = max(1 / self.steps, 1 / max(1.0, horizon))
        for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast.detach(), pace)

    def save(self, folder: Path) -> None:
        """Write the state, whole or not at all: tensors and, in the same file's header, the history."""
        safetensors = require("safetensors.torch", "cli", "saving a checkpoint")
        tensors: dict[str, Tensor] = {}
        for name, network in self._networks().items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in moments.items()}
        about = {"fingerprint": self.fingerprint, "steps": str(self.steps), "history": json.dumps(vars(self.history))}
        with replacing(folder / "training.safetensors") as temporary:
            # Not save_file: that a disk is full has to arrive here as the OSError it is.
            temporary.write_bytes(safetensors.save({key: value.contiguous() for key, value in tensors.items()}, about))

    def resume(self, folder: Path) -> None:
        """Take up a state that was saved, if there is one; one of other data or settings is refused."""
        path = folder / "training.safetensors"
        if not path.exists():
            return
        require("safetensors.torch", "cli", "reading a checkpoint")
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as trouble:
            raise DataError(
                f"the checkpoint {str(path)!r} cannot be read: {trouble}. Delete it to start afresh."
            ) from trouble
        if about.get("fingerprint") != self.fingerprint:
            raise DataError(
                f"the checkpoint {str(path)!r} belongs to other data, another recipe or another seed. Resume with what "
                "it was started with, or choose another folder to start afresh."
            )
        for name, network in self._networks().items():
            prefix = f"{name}."
            network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.steps = int(about["steps"])
        vars(self.history).update(json.loads(about["history"]))
        self.history.stopped = ""

    def _networks(self) -> dict[str, Network]:
        return {"network": self.network, "average": self.average, "best": self.best}
