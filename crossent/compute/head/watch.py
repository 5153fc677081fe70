"""Whether hidden states and head still are what they were when the lazy logits were promised.

Two things tell: the version counter of a tensor, which every in-place operation moves; and a hook on the steps of
optimizers, since fused ones move no counter.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Watch:
    """Tensors, and whether anyone has written to them since this was made."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        # What is no leaf is watched without its graph, which nobody should keep alive for this.
        self.tensors = {
            name: (tensor if tensor.is_leaf else tensor.detach(), tensor._version)
            for name, tensor in tensors.items()
            if not tensor.is_inference()
        }
        self.stepped: str | None = None
        if not _alive:
            _listen()
        _alive.add(self)

    def changed(self) -> str | None:
        """The name of a tensor that was changed, if one was."""
        if self.stepped:
            return self.stepped
        return next((name for name, (tensor, version) in self.tensors.items() if tensor._version != version), None)


_alive: weakref.WeakSet[Watch] = weakref.WeakSet()
_hooks: list[Any] = []


def _listen() -> None:
    if not _hooks:
        _hooks.append(register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    if _alive:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for watch in _alive:
            for name, (tensor, _version) in watch.tensors.items():
                if id(tensor) in stepped:
                    watch.stepped = name
