"""Losses that forgive: bounded ones, for labels that are sometimes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from crossent.compute.losses.algebra import Loss, is_exactly
from crossent.compute.stats import Stats, missing


@dataclass(frozen=True)
class GeneralisedCE(Loss):
    """(1 - p^q) / q, between the NLL (q → 0) and the mean absolute error (q = 1) (Zhang & Sabuncu 2018, eq. 6).

    Bounded by 1 / q, so that no single label can cost more. Not proper.

    >>> import torch
    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=GeneralisedCE(1.0))
    tensor(0.5000)
    """

    reads = frozenset()

    q: float | Tensor = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"q must be greater than 0 and at most 1, and is {self.q}; for 0 use NLL().")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (1 - e^(-q nll_k)) / q."""
        return s.over_targets(missing(self.q * s.nll) / self.q)


@dataclass(frozen=True)
class SymmetricCE(Loss):
    """α · cross-entropy + β · reverse cross-entropy, the row's from its label (Wang et al. 2019, eq. 7).

    -Σ_j p_j log q_j of a label q is -A (1 - p_y) once log 0 is called A, some number below 0: so this is
    α nll - β A (1 - p). The second term is bounded, and one wrong label weighs no more than -A in it. Not proper.
    0 to ∞ for α > 0.

    >>> import torch
    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=SymmetricCE(alpha=1.0, beta=0.5, A=-4.0))
    tensor(1.6931)
    """

    reads = frozenset()

    alpha: float | Tensor = 0.1
    beta: float | Tensor = 1.0
    A: float | Tensor = -4.0

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < math.inf and 0 <= self.beta < math.inf):
            raise ValueError(f"alpha and beta must be 0 or more and finite, and are {self.alpha} and {self.beta}.")
        if not -math.inf < self.A < 0:
            raise ValueError(f"A stands for log 0, must be finite and less than 0, and is {self.A}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (α nll_k - β A (1 - p_k))."""
        reverse = -self.beta * self.A * s.miss
        return s.over_targets(reverse if is_exactly(self.alpha, 0) else self.alpha * s.nll + reverse)


@dataclass(frozen=True)
class TaylorCE(Loss):
    """The first t terms of the NLL's series in 1 - p: Σ_{i=1}^t (1 - p)^i / i (Feng et al. 2020, §3).

    t = 1 is the mean absolute error (halved), t → ∞ the NLL. Bounded by 1 + 1/2 + … + 1/t. Not proper.

    >>> import torch
    >>> from crossent import cross_entropy
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=TaylorCE(2))
    tensor(0.6250)
    """

    reads = frozenset()

    order: int = 2

    def __post_init__(self) -> None:
        if not (isinstance(self.order, int) and self.order >= 1):
            raise ValueError(f"order must be a whole number, 1 or more, and is {self.order}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k Σ_i (1 - p_k)^i / i, by Horner's rule."""
        miss = s.miss
        series = miss / self.order
        for i in range(self.order - 1, 0, -1):
            series = miss * (1 / i + series)
        return s.over_targets(series)
