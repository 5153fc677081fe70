"""Heads whose parameters are in memory only while their module runs (FSDP).

The memory of such a weight is given back after the forward pass and fetched again before the backward pass, when a
gradient arrives at what the module returned. Lazy logits are not there for one to arrive. So they remember the modules,
fetch the weight themselves when something is asked of them, and hang the hooks on the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sharding:
    """``modules`` that own the head's parameters, and ``hooks`` that fetch them when a backward pass begins."""

    modules: tuple[Any, ...] = ()
    hooks: tuple[Callable[[Tensor], Tensor], ...] = ()

    def also(self, hook: Callable[[Tensor], Tensor]) -> Sharding:
        """With one more hook, and the modules that it fetches."""
        modules = hook.__self__._modules  # type: ignore[attr-defined]
        return replace(self, modules=(*self.modules, *modules), hooks=(*self.hooks, hook))

    @contextmanager
    def fetched(self, weight: Tensor) -> Iterator[None]:
        """Have the weight in memory, and give it back if it was not."""
        absent = _absent(weight)
        for module in self.modules if absent else ():
            module.unshard()
        if _absent(weight):
            raise RuntimeError(
                "these lazy logits can no longer be made: the memory of the head was given back after the forward pass "
                "(FSDP). Compute the loss inside the model's forward, or let the module that holds the head keep its "
                "parameters: fully_shard(…, reshard_after_forward=False)."
            )
        try:
            yield
        finally:
            for module in self.modules if absent else ():
                module.reshard()

    def awaits(self, answer: Tensor) -> Tensor:
        """The answer itself, whose gradient fetches the weight."""
        if answer.requires_grad:
            for hook in self.hooks:
                answer.register_hook(hook)
        return answer


def fetches(hook: Any) -> bool:
    """Whether a hook is one of FSDP's: it is about the time and gives the gradient back as it is."""
    owner = getattr(hook, "__self__", None)
    return type(owner).__module__.startswith("torch.distributed.fsdp") and hasattr(owner, "_modules")


def _absent(weight: Tensor) -> bool:
    return weight.device.type != "meta" and weight.numel() > 0 and weight.untyped_storage().size() == 0
