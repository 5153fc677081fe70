"""How logits are made: hidden states, head, and what was done to the logits since.

    values = steps(hidden @ weight.T + bias), with the classes moved to where the caller sees them

``values`` does literally that, step by step, so that it gives the bits that the model would have had. ``folded`` says
the same in the words of ``linear_cross_entropy``: constant factors are multiplied into the hidden states, added vectors
into the bias, and factor · tanh · factor, the soft cap, becomes a ``Link``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.compute.link import Link


class Step(NamedTuple):
    """Something done to every logit alike: ``kind`` of "cast", "times", "over", "plus", "tanh" or "log_softmax"."""

    kind: str
    by: Any = None

    def __call__(self, z: Tensor) -> Tensor:
        """Do it to logits (…, v)."""
        return _DOES[self.kind](z, self.by)


_DOES: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "cast": lambda z, dtype: z.to(dtype),
    "times": lambda z, by: z * by,
    "over": lambda z, by: z / by,
    "plus": lambda z, by: z + by,
    "tanh": lambda z, _: torch.tanh(z),
    "log_softmax": lambda z, dtype: F.log_softmax(z, -1, dtype=dtype),
}


class Folded(NamedTuple):
    """The same logits as link(hidden @ weight.T + bias), the weight that of all ``parts`` side by side."""

    hidden: Tensor
    parts: tuple[Tensor, ...]
    bias: Tensor | None
    link: Link | None


@dataclass(frozen=True, eq=False)
class Recipe:
    """``hidden`` (…, d), ``weight`` (v, d) and ``bias`` (v,), and the ``steps`` since; classes are seen at ``at``.

    A frozen weight may have columns ``beside`` it (v, r), as LoRA adds them, and hidden states of as many more.

    ``at`` counts from the front: the logits (…, v) of an untouched recipe have them at the end.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    at: int
    steps: tuple[Step, ...] = ()
    beside: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The weight, and what is beside it."""
        return (self.weight,) if self.beside is None else (self.weight, self.beside)

    @property
    def classes(self) -> int:
        """How many columns the logits have."""
        return self.weight.shape[0]

    @property
    def last(self) -> bool:
        """Whether the classes are the last dimension that the caller sees."""
        return self.at == self.hidden.dim() - 1

    @property
    def log(self) -> bool:
        """Whether these are log-probabilities."""
        return any(step.kind == "log_softmax" for step in self.steps)

    @property
    def sign(self) -> float:
        """What log-probabilities have been multiplied by since: -1 after a minus, else 1."""
        after = self.steps[[step.kind for step in self.steps].index("log_softmax") + 1 :] if self.log else ()
        return -1.0 if sum(step.kind == "times" for step in after) % 2 else 1.0

    @property
    def capped(self) -> bool:
        """Whether a tanh was taken."""
        return any(step.kind == "tanh" for step in self.steps)

    @property
    def shifted(self) -> bool:
        """Whether a number of its own was added to each class: -inf forbids it."""
        return self.bias is not None or any(step.kind == "plus" for step in self.steps)

    def and_then(self, step: Step) -> Recipe:
        """The same logits after one more step."""
        return replace(self, steps=(*self.steps, step))

    def of(self, hidden: Tensor) -> Recipe:
        """The same for other rows, with the classes at the end."""
        return replace(self, hidden=hidden, at=hidden.dim() - 1)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All tensors that the logits come from, by name."""
        steps = {f"{step.kind} of step {at}": step.by for at, step in enumerate(self.steps)}
        named = {
            "hidden states": self.hidden,
            "weight of the head": self.weight,
            "bias of the head": self.bias,
            "weight beside the head": self.beside,
            **steps,
        }
        return {name: leaf for name, leaf in named.items() if isinstance(leaf, Tensor)}

    def on(self, leaves: dict[str, Tensor]) -> Recipe:
        """The same recipe of other tensors."""
        steps = (
            Step(step.kind, leaves.get(f"{step.kind} of step {at}", step.by)) for at, step in enumerate(self.steps)
        )
        weights = leaves["weight of the head"], leaves.get("bias of the head")
        return Recipe(leaves["hidden states"], *weights, self.at, tuple(steps), leaves.get("weight beside the head"))

    def detached(self) -> Recipe:
        """The same outside of the graph."""
        return self.on({name: leaf.detach() for name, leaf in self.leaves.items()})

    def narrowed(self, classes: slice) -> Recipe:
        """The same for some of the classes."""
        steps = tuple(Step("plus", step.by[classes]) if step.kind == "plus" else step for step in self.steps)
        bias = None if self.bias is None else self.bias[classes]
        beside = None if self.beside is None else self.beside[classes]
        return replace(self, weight=self.weight[classes], bias=bias, steps=steps, beside=beside)

    @property
    def rows(self) -> Recipe:
        """The same with all leading dimensions made one."""
        return self.of(self.hidden.reshape(-1, self.hidden.shape[-1]))

    def values(self) -> Tensor:
        """The logits themselves."""
        width = self.weight.shape[-1]
        z = F.linear(self.hidden[..., :width], self.weight, self.bias)
        if self.beside is not None:
            z = z + F.linear(self.hidden[..., width:], self.beside)
        for step in self.steps:
            z = step(z)
        return z.movedim(-1, self.at)

    def folded(self) -> Folded:
        """Factors and vectors folded into hidden states and bias, the soft cap as a link; log_softmax left out."""
        hidden, bias = self.hidden, self.bias
        times, over, cap = 1.0, 1.0, None
        for kind, by in self.steps:
            if kind == "log_softmax":
                break
            if kind == "tanh":
                cap, times, over = over / times, 1.0, 1.0
            elif kind == "plus":
                hidden, bias = _scaled(hidden, bias, times / over)
                times, over = 1.0, 1.0
                bias = by.to(self.weight.dtype) if bias is None else bias + by.to(bias.dtype)
            elif kind in ("times", "over") and isinstance(by, Tensor):
                factor = by.reshape(()).to(hidden.dtype)
                hidden, bias = _scaled(hidden, bias, factor if kind == "times" else 1 / factor)
            elif kind == "times":
                times *= by
            elif kind == "over":
                over *= by
        if cap is None:
            hidden, bias = _scaled(hidden, bias, times / over)
            return Folded(hidden, self.parts, bias, None)
        # times/over · tanh(z / cap) = (cap · tanh(z / cap)) / temperature
        return Folded(hidden, self.parts, bias, Link(temperature=cap * over / times, softcap=cap))


def _scaled(hidden: Tensor, bias: Tensor | None, by: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(by, float) and by == 1.0:
        return hidden, bias
    return hidden * by, None if bias is None else bias * by
