"""Losses that ask for a margin: the target must win although something is taken from its logit.

Taking m from z_y multiplies the odds (1 - p)/p against the target by e^m, so the row need not be read again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats

_MOST = 300.0
"""The greatest margin in logits: e^m e^(50 + m) is still a float64."""


def _nll_after(nll: Tensor, m: Tensor) -> Tensor:
    """The nll once m is taken from the target's logit: log1p(e^m expm1(nll))."""
    # From 50 + |m| nats on, expm1(nll) is e^nll to the last digit and 1 is nothing beside it: nll + m is left.
    far = nll > 50 + m.abs()
    return torch.where(far, nll + m, torch.log1p(torch.exp(m) * torch.expm1(torch.where(far, 1.0, nll))))


@dataclass(frozen=True)
class Margin(Loss):
    """Additive margin softmax: the NLL after taking m from the target's logit (Wang F. et al. 2018, eq. 6).

    log(1 + e^m (1 - p) / p). On logits s · cosine, ``Margin(s * m)`` is CosFace's s (cos θ - m) (Wang H. et al. 2018,
    eq. 4): m counts in logits here. Not proper for m ≠ 0. 0 to ∞; m between -300 and 300.

    >>> from crossent import cross_entropy
    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> cross_entropy(z, torch.tensor([0]), loss=Margin(0.5))
    tensor(0.2664)
    >>> cross_entropy(z - torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([0]))
    tensor(0.2664)
    """

    reads = frozenset()

    m: float | Tensor = 0.35

    def __post_init__(self) -> None:
        if not -_MOST <= self.m <= _MOST:
            raise ValueError(f"the margin m must be finite, -{_MOST:g} to {_MOST:g}, and is {self.m}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k log1p(e^m expm1(nll_k))."""
        return s.over_targets(_nll_after(s.nll, torch.as_tensor(self.m, dtype=s.nll.dtype, device=s.nll.device)))


@dataclass(frozen=True, eq=False)
class LDAM(Loss):
    """Label-distribution-aware margins: the rarer a class, the more is taken from its logit (Cao et al. 2019, eq. 13).

    Δ_y = margin · (n_min / n_y)^¼ with n the ``counts`` (v,) of each class in the training set, so that ``margin`` is
    that of the rarest. It counts in logits: the paper's scale of 30 with margins up to 0.5 is
    ``Link(temperature=1 / 30)`` with ``margin=15.0``. Not proper. 0 to ∞.

    >>> from crossent import cross_entropy
    >>> rare = LDAM(torch.tensor([10_000, 625]), margin=1.0)
    >>> cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), loss=rare, reduction="none")
    tensor([0.9741, 1.3133])
    """

    reads = frozenset()

    counts: Tensor
    margin: float | Tensor = 0.5

    def __post_init__(self) -> None:
        wrong = int((~(self.counts > 0)).sum())
        if self.counts.dim() != 1 or wrong:
            raise ValueError(
                "counts must be one number greater than 0 for every class, shape (v,); got shape "
                f"{tuple(self.counts.shape)}, where {wrong} are not. Leave out classes that never occur."
            )
        if not 0 <= self.margin <= _MOST:
            raise ValueError(f"margin must lie between 0 and {_MOST:g}, and is {self.margin}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k log1p(e^Δ_k expm1(nll_k))."""
        if len(self.counts) != s.classes:
            raise ValueError(f"LDAM has counts of {len(self.counts)} classes, and the logits are of {s.classes}.")
        rarity = self.counts.min().to(s.nll) / s.of_class(self.counts)
        return s.over_targets(_nll_after(s.nll, self.margin * rarity.sqrt().sqrt()))


@dataclass(frozen=True)
class ArcFace(Loss):
    """Additive angular margin: s cos θ of the target becomes s cos(θ + m) (Deng et al. 2019, eq. 3).

    The logits are s · cosine, s the ``scale``, and ``margin`` is in radians. Where θ + m passes π the cosine would rise
    again; there the target's logit becomes s (cos θ - m sin m), as in the authors' code, which is a step down at
    θ = π - m. At a cosine of ±1 the angle has no slope, and only that of cos m is used. Not proper. 0 to ∞; 0 ≤ m < π,
    0 < s ≤ 150.

    A target's logit that is more than 1 % beyond ±s is no rounded cosine and makes its row NaN; -inf costs infinity.

    >>> from crossent import cross_entropy
    >>> cosine = torch.tensor([[0.6, -0.2, 0.0]])
    >>> cross_entropy(10 * cosine, torch.tensor([0]), loss=ArcFace(0.5, scale=10.0))
    tensor(0.2403)
    """

    reads = frozenset()

    margin: float | Tensor = 0.5
    scale: float | Tensor = 64.0

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.pi:
            raise ValueError(f"margin is an angle in radians, 0 or more and below π, and is {self.margin}.")
        if not 0 < self.scale <= _MOST / 2:
            raise ValueError(f"scale must be greater than 0 and at most {_MOST / 2:g}, and is {self.scale}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k log1p(e^(z_k - z'_k) expm1(nll_k)), z' the target's logit with its margin."""
        given = s.hit / self.scale
        cosine = given.clamp(-1, 1)
        squared = (1 - cosine) * (1 + cosine)
        upright = squared > 0  # the root of 0 has no slope
        sine = torch.where(upright, torch.where(upright, squared, 1.0).sqrt(), 0.0)
        margin = torch.as_tensor(self.margin, dtype=cosine.dtype, device=cosine.device)
        # 1 - cos m is 2 sin²(m/2): small margins keep their digits.
        within = 2 * torch.sin(margin / 2) ** 2 * cosine + torch.sin(margin) * sine
        beyond = cosine <= -torch.cos(margin)
        taken = self.scale * torch.where(beyond, margin * torch.sin(margin), within)
        no_cosine = (given.abs() > 1.01) & (given != -torch.inf)
        return s.over_targets(torch.where(no_cosine, torch.nan, _nll_after(s.nll, taken)))
