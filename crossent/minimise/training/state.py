"""Everything that changes while a network trains, to go back to and to go on from."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from crossent.errors import DataError
from crossent.files import replacing
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.optimiser import optimisers, rate

OVER = "the time allowed was over"
BY_HAND = "stopped by hand; the best epoch so far is kept"
MOST_ROLLBACKS = 5
SLOWER = 0.3
"""By how much the learning rate falls when a loss was no longer finite."""


@dataclass
class History:
    """What happened: cross-entropy on learnt and held-out rows after each epoch, the best epoch, why it ended.

    ``most`` are the epochs that were allowed; ``learnt`` is the cross-entropy after the best one on more of the rows
    learnt than the curve looks at.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped: str = ""
    seconds: float = 0.0
    trouble: list[str] = field(default_factory=list)
    most: int = 0
    learnt: float = math.nan

    @property
    def best(self) -> float:
        """The lowest held-out cross-entropy so far."""
        return self.validation[self.best_epoch - 1] if self.best_epoch else math.inf

    @property
    def by_time(self) -> bool:
        """Whether the clock ended it."""
        return self.stopped == OVER

    @property
    def by_hand(self) -> bool:
        """Whether Ctrl-C ended it."""
        return self.stopped == BY_HAND


Tensors = tuple[Tensor, ...] | list[Tensor]


class State:
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
            with torch.random.fork_rng():  # dropout before a norm is drawn alike whenever, and wherever, this is asked
                torch.manual_seed(0)
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
        self.history.stopped = "" if self.history.by_time else self.history.stopped
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
