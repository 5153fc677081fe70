"""The negative log-likelihood of the target, and the two things most often done to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss, _unweighted, is_exactly
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class NLL(Loss):
    """Cross-entropy itself: Σ_k q_k (-log p_k). Strictly proper; 0 to ∞ (Good 1952).

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2]), loss=NLL())
    tensor(1.3863)
    """

    reads = frozenset()
    linear = True
    affine = True

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k nll_k."""
        return s.over_targets(s.nll)


@dataclass(frozen=True)
class Smoothed(Loss):
    """Label smoothing: (1 - ε) loss + ε · the mean of -log p_j over some classes (Szegedy et al. 2016, §7).

        over="allowed"   every class whose logit is not -inf; so the target keeps 1 - ε + ε / count
        over="others"    every allowed class but the target, which keeps 1 - ε
        over="all"       every class: infinite where a logit is -inf, as in PyTorch

    Where nothing is -inf the first and the last are the same. Not proper: its optimum is the smoothed truth. ε in
    [0, 1].

    >>> from crossent import cross_entropy
    >>> z, y = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    >>> cross_entropy(z, y, loss=Smoothed(0.1))
    tensor(0.2269)
    >>> cross_entropy(z, y, loss=Smoothed(0.1, over="others"))
    tensor(0.3269)
    """

    smoothing: float | Tensor = 0.1
    loss: Loss = NLL()
    over: str = "allowed"

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie between 0 and 1, and is {self.smoothing}.")
        if self.over not in ("allowed", "others", "all"):
            raise ValueError(f'over must be "allowed", "others" or "all", and is {self.over!r}.')
        _unweighted(self.loss)

    @property
    def reads(self) -> frozenset[str]:
        """What the loss inside reads, and the uniform cross-entropy."""
        return self.loss.reads | {"uniform"}

    @property
    def linear(self) -> bool:
        """Whether the loss inside is."""
        return self.loss.linear

    @property
    def affine(self) -> bool:
        """Whether the loss inside is, and the number of other classes does not matter."""
        return self.loss.affine and self.over == "allowed"

    def __call__(self, s: Stats) -> Tensor:
        """(1 - ε) loss + ε · mass · the mean over the other classes."""
        if is_exactly(self.smoothing, 0):
            return self.loss(s)  # 0 · ∞ = 0
        spread = self.smoothing * self._spread(s)
        return spread if is_exactly(self.smoothing, 1) else (1 - self.smoothing) * self.loss(s) + spread

    def _spread(self, s: Stats) -> Tensor:
        uniform = s.uniform
        if self.over == "all":
            uniform = uniform + torch.where(s.count < s.classes, torch.inf, 0.0)
        if not s.plain:
            # The share of a row that carries no target at all is nothing, even when the uniform part is infinite.
            uniform = s.mass * torch.where(s.mass == 0, 0.0, uniform)
        if self.over != "others":
            return uniform
        # Taken out of the sum over all is the target's own part, unless its logit is -inf: then it never was in it.
        own = s.over_targets(s.nll)
        inside = own.isfinite()
        rest = s.count * uniform - torch.where(inside, own, 0.0)
        return rest / torch.where(inside, s.count - 1, s.count).clamp(min=1)


@dataclass(frozen=True, eq=False)
class ClassWeighted(Loss):
    """A weight for every class: the target's weight multiplies the loss, as ``weight`` does in PyTorch.

    Under label smoothing the uniform part weighs every class by its own weight, also as in PyTorch. A mean divides
    by the sum of the targets' weights. Proper for the reweighted distribution w_y p_y / Σ w p.

    >>> from crossent import cross_entropy
    >>> w = torch.tensor([1.0, 3.0])
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=ClassWeighted(w), reduction="sum")
    tensor(2.0794)
    """

    weight: Tensor
    loss: Loss = NLL()

    def __post_init__(self) -> None:
        _unweighted(self.loss)
        if self.weight.dim() != 1:
            raise ValueError(
                f"class weights are one number for every class, shape (v,); got {tuple(self.weight.shape)}."
            )

    @property
    def class_weight(self) -> Tensor | None:
        """The weights (v,), for the pass over the columns."""
        return self.weight

    @property
    def reads(self) -> frozenset[str]:
        """What the loss inside reads."""
        return self.loss.reads

    @property
    def linear(self) -> bool:
        """Whether the loss inside is."""
        return self.loss.linear

    def __call__(self, s: Stats) -> Tensor:
        """The loss itself: the weights are already in the statistics."""
        return self.loss(s)


def smoothing_of_nll(loss: Loss) -> float | None:
    """The label smoothing of a loss that is the NLL and nothing else; None for any other, and if it is a tensor."""
    if type(loss) is NLL:
        return 0.0
    if type(loss) is not Smoothed or type(loss.loss) is not NLL or loss.over != "allowed":
        return None
    return None if isinstance(loss.smoothing, Tensor) else loss.smoothing
