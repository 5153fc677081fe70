"""A loss that pushes a class away."""

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
