"""Losses that push a class away: from the row altogether, or from its rivals by a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class Unlikelihood(Loss):
    """-log(1 - p): the target is what must *not* be said (Welleck et al. 2020, eq. 3). 0 to ∞.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=Unlikelihood())
    tensor(0.6931)
    """

    reads = frozenset()

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (-log(1 - p_k))."""
        # log(1 - e^-nll) by whichever of two forms keeps its digits (Mächler 2012); the other one is fed a harmless 1.
        likely = s.nll < math.log(2.0)
        near = torch.log(-torch.expm1(-torch.where(likely, s.nll, 1.0)))
        far = torch.log1p(-torch.exp(-torch.where(likely, 1.0, s.nll)))
        return s.over_targets(-torch.where(likely, near, far))


@dataclass(frozen=True)
class Margin(Loss):
    """Additive margin softmax: the NLL after taking m from the target's logit (Wang et al. 2018, eq. 6).

    Taking m from z_y multiplies the odds (1 - p)/p against the target by e^m, so the row need not be read again:
    log(1 + e^m expm1(nll)). Not proper for m ≠ 0.

    >>> from crossent import cross_entropy
    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> cross_entropy(z, torch.tensor([0]), loss=Margin(0.5))
    tensor(0.2664)
    >>> cross_entropy(z - torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0]))
    tensor(0.2664)
    """

    reads = frozenset()

    m: float = 0.35

    def __post_init__(self) -> None:
        if not math.isfinite(self.m):
            raise ValueError(f"the margin m must be finite, and is {self.m}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k log1p(e^m expm1(nll_k))."""
        # From 50 nats on, expm1(nll) is e^nll to the last digit and the loss is nll + m (for any m below 50 - 36).
        far = s.nll > 50 + abs(self.m)
        near = torch.where(far, 1.0, s.nll)
        return s.over_targets(torch.where(far, s.nll + self.m, torch.log1p(math.exp(self.m) * torch.expm1(near))))
