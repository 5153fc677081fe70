"""Losses that look harder, or less hard, at the rows that are already right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss, is_exactly
from crossent.compute.stats import Stats


def _focused(nll: Tensor, gamma: float | Tensor) -> Tensor:
    """(1 - e^-nll)^γ nll."""
    if is_exactly(gamma, 0):
        return nll
    # From 50 nats on (1 - p)^γ is 1 to the last digit of float64, and the loss is nll; at ∞ autograd would meet 0 · ∞.
    near = nll.clamp(max=50.0)
    if isinstance(gamma, Tensor) or gamma < 1:  # the power has no derivative at 0, where the loss is 0 with slope 0
        sure = near == 0
        inner = torch.where(sure, 1.0, near)
        focused = torch.where(sure, 0.0, torch.pow(-torch.expm1(-inner), gamma) * inner)
    else:
        focused = torch.pow(-torch.expm1(-near), gamma) * near
    return torch.where(nll > 50, nll, focused)


@dataclass(frozen=True)
class Focal(Loss):
    """Focal loss: Σ_k q_k (1 - p_k)^γ (-log p_k), with 1 - p = -expm1(-nll) (Lin et al. 2017, eq. 4).

    γ = 0 is the NLL. Not proper for γ > 0: its optimum is less confident than the truth. 0 to ∞.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=Focal(2.0))
    tensor(0.1733)
    """

    reads = frozenset()

    gamma: float | Tensor = 2.0

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be 0 or more, and is {self.gamma}.")

    @property
    def focus(self) -> float | None:
        """γ itself, but of a subclass that may be another loss."""
        return self.gamma if type(self) is Focal and not isinstance(self.gamma, Tensor) else None

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (1 - p_k)^γ nll_k."""
        return s.over_targets(_focused(s.nll, self.gamma))


@dataclass(frozen=True)
class Poly1(Loss):
    """The NLL with the first term of its series in 1 - p reweighted: nll + ε (1 - p) (Leng et al. 2022, eq. 3).

    ε ≥ -1 keeps it decreasing in p. Not proper unless ε = 0.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=Poly1(1.0))
    tensor(1.1931)
    """

    reads = frozenset()

    epsilon: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not self.epsilon >= -1:
            raise ValueError(f"epsilon must be -1 or more, and is {self.epsilon}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (nll_k + ε (1 - p_k))."""
        return s.over_targets(s.nll + self.epsilon * s.miss)


@dataclass(frozen=True)
class Asymmetric(Loss):
    """Focal loss with a γ of its own for "no", where what is sure enough costs nothing (Ridnik et al. 2021, eq. 7).

    Class 0 is "no", every other class "yes". With p the probability of the target,

        yes   (1 - p)^γ₊ (-log p)
        no    r^γ₋ (-log(1 - r)), r = max(1 - p - m, 0)

    On binary elements (``binary_cross_entropy_with_logits``) this is the paper's multi-label loss, whose p is 1 - p of
    a "no". Not proper. 0 to ∞ for a "yes"; a "no" costs at most -log m. γ₊, γ₋ ≥ 0; m in [0, 1).

    >>> from crossent import binary_cross_entropy_with_logits
    >>> z, t = torch.tensor([0.0, 0.0, -4.0]), torch.tensor([1.0, 0.0, 0.0])
    >>> binary_cross_entropy_with_logits(z, t, loss=Asymmetric(0.0, 4.0, margin=0.05), reduction="none")
    tensor([0.6931, 0.0245, 0.0000])
    """

    reads = frozenset()

    gamma_pos: float | Tensor = 0.0
    gamma_neg: float | Tensor = 4.0
    margin: float | Tensor = 0.05

    def __post_init__(self) -> None:
        if not (self.gamma_pos >= 0 and self.gamma_neg >= 0):
            raise ValueError(
                f"gamma_pos and gamma_neg must be 0 or more, and are {self.gamma_pos} and {self.gamma_neg}."
            )
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin is a probability, 0 or more and below 1, and is {self.margin}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k of either: a "no" is focal too, of the nll that is left of it."""
        no = s.of_class(torch.arange(s.classes, device=s.nll.device)) == 0
        left = s.nll if is_exactly(self.margin, 0) else -torch.log1p(-torch.relu(s.miss - self.margin))
        return s.over_targets(torch.where(no, _focused(left, self.gamma_neg), _focused(s.nll, self.gamma_pos)))
