"""A loss is a small frozen object: one number per row from the row's statistics. Losses add up and scale.

    NLL() + 1e-4 * LogZ()          a loss
    ClassWeighted(w, 2 * Focal())  a loss

Each is one to three lines of plain torch on ``Stats``; autograd differentiates it, and no kernel knows it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

from crossent.compute.stats import Stats


class Loss:
    """Something that gives a number (n,) for every row; ``+`` and multiplication by a number make new ones.

    ``reads`` names the statistics it looks at besides nll, q and mass; only those are worked out. ``linear`` says that
    it is linear in nll, so that a soft target over all columns may be summed up while the row is read; what is not
    linear gets every column apart. The defaults are right for any loss that does not need the logits, and cost most.
    """

    @property
    def reads(self) -> frozenset[str]:
        """Some of "uniform", "entropy" and "logits"; "uniform" also brings ``count``."""
        return frozenset({"uniform", "entropy"})

    @property
    def linear(self) -> bool:
        """Whether the loss of a mixture of labels is the mixture of their losses' nll."""
        return False

    @property
    def affine(self) -> bool:
        """Whether its derivatives by nll and uniform are numbers that no row changes."""
        return False

    @property
    def focus(self) -> float | None:
        """γ of a loss that is (1 - p)^γ nll for a label, whose slope a backend may know beforehand; None of others."""
        return None

    @property
    def class_weight(self) -> Tensor | None:
        """The weight (v,) of each class that the pass over the columns must know, or None."""
        return None

    def __call__(self, s: Stats) -> Tensor:
        """The loss of every row, (n,)."""
        raise TypeError(f"{type(self).__name__} is not a loss yet: it must define __call__(self, s: Stats).")

    def __add__(self, other: Loss) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return Sum(self, other)

    def __mul__(self, factor: float | Tensor) -> Loss:
        if isinstance(factor, Loss):
            raise TypeError("two losses cannot be multiplied; add them, or multiply one by a number.")
        if not isinstance(factor, Tensor):
            return Scaled(float(factor), self)
        if factor.numel() != 1 or factor.dim() > 1:
            raise TypeError(
                f"a loss is multiplied by one number, and the tensor has shape {tuple(factor.shape)}: weights of rows "
                "are sample_weight=, and weights of classes weight= or ClassWeighted(weight, loss)."
            )
        return Scaled(factor, self)

    __rmul__ = __mul__


def is_exactly(x: float | Tensor, number: float) -> bool:
    """Whether a number is this one and stays it: a tensor may be learned, and has a slope there too."""
    return not isinstance(x, Tensor) and x == number


def _unweighted(loss: Loss) -> Loss:
    if loss.class_weight is not None:
        raise TypeError(
            "class weights belong to the whole loss, because a row is read once: "
            "write ClassWeighted(weight, a + b), not ClassWeighted(weight, a) + b."
        )
    return loss


@dataclass(frozen=True)
class Sum(Loss):
    """a + b."""

    a: Loss
    b: Loss

    def __post_init__(self) -> None:
        _unweighted(self.a)
        _unweighted(self.b)

    @property
    def reads(self) -> frozenset[str]:
        """What either of them reads."""
        return self.a.reads | self.b.reads

    @property
    def linear(self) -> bool:
        """Whether both are."""
        return self.a.linear and self.b.linear

    @property
    def affine(self) -> bool:
        """Whether both are."""
        return self.a.affine and self.b.affine

    def __call__(self, s: Stats) -> Tensor:
        """The sum of the two, row by row."""
        return self.a(s) + self.b(s)


@dataclass(frozen=True)
class Scaled(Loss):
    """factor · loss; a tensor may be learned."""

    factor: float | Tensor
    loss: Loss

    @property
    def reads(self) -> frozenset[str]:
        """What the loss that is scaled reads."""
        return self.loss.reads

    @property
    def linear(self) -> bool:
        """Whether the loss that is scaled is."""
        return self.loss.linear

    @property
    def affine(self) -> bool:
        """Whether the loss that is scaled is."""
        return self.loss.affine

    @property
    def class_weight(self) -> Tensor | None:
        """The class weights of the loss that is scaled."""
        return self.loss.class_weight

    def __call__(self, s: Stats) -> Tensor:
        """The loss times the factor, row by row."""
        return self.factor * self.loss(s)


@dataclass(frozen=True, eq=False)
class Reweighted(Loss):
    """A loss with class weights in the place of its own."""

    loss: Loss
    weight: Tensor

    @property
    def reads(self) -> frozenset[str]:
        """What the loss reads."""
        return self.loss.reads

    @property
    def linear(self) -> bool:
        """Whether the loss is."""
        return self.loss.linear

    @property
    def class_weight(self) -> Tensor | None:
        """The other weights."""
        return self.weight

    def __call__(self, s: Stats) -> Tensor:
        """The loss itself: the weights are already in the statistics."""
        return self.loss(s)


OF_MODULE = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its tensors and the modules within."""


def tensors_of(loss: Loss | Module) -> list[Tensor]:
    """All tensors that a loss and the losses within it hold: class weights, and whatever else may be learned.

    Of a module, and of modules that a loss holds, they are the parameters and buffers too.
    """
    found: list[Tensor] = []
    for name, held in vars(loss).items():
        for each in held.values() if name in OF_MODULE else (held,):
            if isinstance(each, Tensor):
                found.append(each)
            elif isinstance(each, (Loss, Module)):
                found += tensors_of(each)
    return found


def with_tensors(loss: Any, tensors: Iterator[Tensor]) -> Any:
    """The same loss with other tensors in the places of its own (or of ``...``), in the order of ``tensors_of``."""

    def with_other(held: Any) -> Any:
        if isinstance(held, Tensor) or held is ...:
            return next(tensors)
        return with_tensors(held, tensors) if isinstance(held, (Loss, Module)) else held

    made = copy.copy(loss)
    for name, held in vars(loss).items():
        if name in OF_MODULE:
            object.__setattr__(made, name, {key: with_other(each) for key, each in held.items()})
        else:
            object.__setattr__(made, name, with_other(held))
    return made
