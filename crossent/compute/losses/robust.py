"""Losses that forgive: bounded ones, for labels that are sometimes wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class GeneralisedCE(Loss):
    """(1 - p^q) / q, between the NLL (q → 0) and the mean absolute error (q = 1) (Zhang & Sabuncu 2018, eq. 6).

    Bounded by 1 / q, so that no single label can cost more. Not proper.

    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=GeneralisedCE(1.0))
    tensor(0.5000)
    """

    reads = frozenset()

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"q must be greater than 0 and at most 1, and is {self.q}; for 0 use NLL().")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (-expm1(-q nll_k) / q)."""
        return s.over_targets(-torch.expm1(-self.q * s.nll) / self.q)
