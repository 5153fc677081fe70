"""Terms that are added to a loss: they look at the whole row and not at its target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats


@dataclass(frozen=True)
class LogZ(Loss):
    """The z-loss: lse², which keeps the logits from drifting (de Brébisson & Vincent 2016; PaLM, §5, with 1e-4).

    >>> import torch
    >>> from crossent import cross_entropy
    >>> from crossent.compute.losses import NLL
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=NLL() + 1e-4 * LogZ())
    tensor(0.6932)
    """

    reads = frozenset()
    linear = True

    def __call__(self, s: Stats) -> Tensor:
        """lse², weighed like the row's target."""
        return s.over_targets(s.lse.square())


@dataclass(frozen=True)
class Confidence(Loss):
    """Minus the entropy of p: added with a positive factor it punishes confidence (Pereyra et al. 2017, eq. 1).

    >>> import torch
    >>> from crossent import cross_entropy
    >>> from crossent.compute.losses import NLL
    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([1]), loss=NLL() + 0.1 * Confidence())
    tensor(0.6238)
    """

    reads = frozenset({"entropy"})
    linear = True

    def __call__(self, s: Stats) -> Tensor:
        """-H(p), weighed like the row's target."""
        return s.over_targets(-s.entropy)
