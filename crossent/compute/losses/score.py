"""Scores that are no cross-entropies, for comparison with those that are: they look at every column of the row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats


def _row(s: Stats) -> Tensor:
    """The logits (n, v), NaN throughout a row that has no probabilities."""
    return s.logits + torch.where(s.lse.isnan(), torch.nan, 0.0).unsqueeze(-1)


@dataclass(frozen=True)
class Brier(Loss):
    """The Brier score of all classes: (1 - p_y)² + Σ_{j≠y} p_j² (Brier 1950, eq. 2). Strictly proper; 0 to 2.

    Against a soft target it is the expected score Σ_k q_k Brier_k, which is Σ_j (p_j - q_j)² and a constant.

    With e_j = e^(z_j - peak) and r, Q the sums of e_j and e_j² over all columns but the greatest, it is
    (r² + Q) / (1 + r)² for the greatest and ((1 + r - e_y)² + 1 + Q - e_y²) / (1 + r)² for another. Nothing cancels:
    where p_y is 1 - 1e-12 it is about 1e-24, and not 0.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]), loss=Brier())
    tensor(0.5000)
    """

    reads = frozenset({"logits"})

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k ((1 - p_k)² + Σ_{j≠k} p_j²)."""
        z = _row(s)
        peak, first = z.max(-1, keepdim=True)
        others = torch.exp(z - peak).scatter(-1, first, 0.0)
        r, squares = others.sum(-1, keepdim=True), others.square().sum(-1, keepdim=True)
        own = others if s.index is None else others.gather(-1, s.index)
        won = s.of_class(torch.arange(s.classes, device=z.device)) == first
        miss = torch.where(won, r, 1 + r - own)
        rivals = torch.where(won, squares, 1 + squares - own.square())
        return s.over_targets((miss.square() + rivals) / (1 + r).square())


@dataclass(frozen=True)
class Hinge(Loss):
    """The multi-class hinge: how far the best other logit comes within ``margin`` (Crammer & Singer 2001, §3).

    max(0, margin + max_{j≠y} z_j - z_y); of binary elements max(0, margin ∓ z). It knows no probabilities and is not
    proper. At a tie of rivals the slope is that of one of them. 0 to ∞.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0]), loss=Hinge())
    tensor(0.5000)
    """

    reads = frozenset({"logits"})

    margin: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin must be 0 or more and finite, and is {self.margin}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k max(0, margin + max_{j≠k} z_j - z_k)."""
        z = _row(s)
        own = z if s.index is None else z.gather(-1, s.index)
        # A column that never wins stands in for the rival of an only class.
        best, at = torch.nn.functional.pad(z, (0, 1), value=-torch.inf).topk(2, -1)
        won = s.of_class(torch.arange(s.classes, device=z.device)) == at[:, :1]
        rival = torch.where(won, best[:, 1:], best[:, :1])
        return s.over_targets(torch.relu(self.margin + rival - own))
