"""Labels that may be wrong: which they are, and a loss that believes them less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses import Loss
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class Bootstrapped(Loss):
    """β · the cost of the label + (1 - β) · the cost of what the network says itself (Reed et al. 2015, eq. 7, hard).

        ℓ = -β log p_y - (1 - β) log max_j p_j

    A label that the network is sure is wrong pulls with β instead of 1. Not proper: the minimiser has 1 - β more on the
    most probable class. The greatest logit is that of the row as it stands, so nothing flows through the choice.

    (The soft form, with p itself in place of its greatest class, is β NLL + (1 - β) H(p): see ``spelling``. With p
    taken as a constant, as some code has it, its gradient is β times that of the NLL and nothing else.)

    >>> from crossent import cross_entropy
    >>> z = torch.tensor([[2.0, 0.0]])
    >>> cross_entropy(z, torch.tensor([1]), loss=Bootstrapped(0.8))
    tensor(1.7269)
    """

    reads = frozenset({"logits"})

    beta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta, the belief in the label, lies above 0 and is at most 1, and is {self.beta}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (β nll_k + (1 - β) log1p(Σ e^(z - peak) over all but the greatest))."""
        peak, first = s.logits.max(-1, keepdim=True)
        rest = torch.exp(s.logits - peak).scatter(-1, first, 0.0).sum(-1, keepdim=True)
        own = torch.log1p(rest) + torch.where(s.lse.isnan(), torch.nan, 0.0).unsqueeze(-1)
        return s.over_targets(self.beta * s.nll + (1 - self.beta) * own)
