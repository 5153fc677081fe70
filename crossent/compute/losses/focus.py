"""Losses that look harder, or less hard, at the rows that are already right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class Focal(Loss):
    """Focal loss: Σ_k q_k (1 - p_k)^γ (-log p_k), with 1 - p = -expm1(-nll) (Lin et al. 2017, eq. 4).

    γ = 0 is the NLL. Not proper for γ > 0: its optimum is less confident than the truth. 0 to ∞.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=Focal(2.0))
    tensor(0.1733)
    """

    reads = frozenset()

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be 0 or more, and is {self.gamma}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (1 - p_k)^γ nll_k."""
        if self.gamma == 0:
            return s.over_targets(s.nll)
        # At nll = 0 the power has no derivative for γ < 1, at nll = ∞ autograd meets 0 · ∞. Both ends are known:
        # 0 with slope 0, and nll itself (from 50 nats on (1 - p)^γ is 1 to the last digit of float64).
        sure, lost = s.nll == 0, s.nll > 50
        inner = torch.where(sure | lost, 1.0, s.nll)
        focused = torch.pow(-torch.expm1(-inner), self.gamma) * inner
        return s.over_targets(torch.where(lost, s.nll, torch.where(sure, 0.0, focused)))


@dataclass(frozen=True)
class Poly1(Loss):
    """The NLL with the first term of its series in 1 - p reweighted: nll + ε (1 - p) (Leng et al. 2022, eq. 3).

    ε ≥ -1 keeps it decreasing in p. Not proper unless ε = 0.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=Poly1(1.0))
    tensor(1.1931)
    """

    reads = frozenset()

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        if not self.epsilon >= -1:
            raise ValueError(f"epsilon must be -1 or more, and is {self.epsilon}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (nll_k + ε (1 - p_k))."""
        return s.over_targets(s.nll + self.epsilon * s.miss)
