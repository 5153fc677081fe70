"""The code whose distribution is a histogram: a density that is constant in each bin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.codes.code import Code
from crossent.compute.functional import cross_entropy
from crossent.compute.target import Target, sparse

# What a normal leaves outside ± 8.3 σ is 1.04e-16, less than half an ulp of 1.
REACH = 8.3


@dataclass(frozen=True)
class HLGauss(Code):
    """A number as the bins of a normal distribution around it: classification that knows that bins are neighbours.

        target: q_i = P(bin i) of a normal with mean y and deviation sigma, given that it lies in [low, high]
        ℓ = -Σ q_i log p_i        p = softmax(z), on ``bins`` equal bins from low to high

    ``sigma`` is in bins; 0.75 is the ratio that Farebrother et al. found to serve (their σ/ς).
    The best p is the expected target: the truth blurred by sigma. ℓ is at least the entropy of q, not 0. The mean of a
    target is its label to 5e-6 of a bin at sigma 0.75, but near an end it lies further in, at the end itself by 0.7
    bins (what lies outside is given back to the inside): choose a range that is a few bins wider than the labels.

    A prediction is a density of steps, p_i / width; quantiles run straight through a bin. ``log_prob`` is the log of
    that density at y itself, so it compares with other densities; the loss, against a blurred label, does not.

    ``encode`` gives a ``Target`` for ``cross_entropy`` (with any ``loss=``) of the few columns within 8.3 sigma, 14 at
    0.75; what is left out is below the rounding of float64. Masses are differences of erfc, on the side of the
    label where it is small, so that they keep their digits.
    Sources: Imani & White 2018, §3; Farebrother et al. 2024, §3.1.

    >>> code = HLGauss(0.0, 50.0, bins=5, sigma=0.5)
    >>> target = code.encode(torch.tensor([22.0]))
    >>> target.weight
    tensor([[8.1922e-03, 3.3638e-01, 6.0063e-01, 5.4640e-02, 1.5910e-04]])
    >>> z = torch.tensor([[0.0, 0.2, 0.7, 0.1, 0.0]]).log()
    >>> code.mean(z), code.median(z), code.log_prob(z, torch.tensor([22.0]))
    (tensor([24.]), tensor([24.2857]), tensor([-2.6593]))
    """

    bins: int
    sigma: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins != int(self.bins) or self.bins < 2:
            raise ValueError(f"HLGauss needs a whole number of at least 2 bins; got {self.bins}.")
        if not 0 < self.sigma < math.inf:
            raise ValueError(
                f"sigma, the deviation of the blurred label in bins, must be more than 0; got {self.sigma}."
            )

    @property
    def columns(self) -> int:
        """One for each bin."""
        return self.bins

    @property
    def edges(self) -> Tensor:
        """The ends of the bins (bins + 1,), float64."""
        return torch.linspace(self.low, self.high, self.bins + 1, dtype=torch.float64)

    def encode(self, y: Tensor) -> Target:
        """The bins near each label of y, taken in order, and their masses: a ``Target`` of a window of columns."""
        return super().encode(y)

    def _target(self, f: Tensor, dtype: torch.dtype) -> Target:
        place, reach = (f * self.bins).unsqueeze(-1), REACH * self.sigma
        width = min(self.bins, math.ceil(2 * reach) + 1)
        first = (place - reach).floor().nan_to_num(0).clamp(0, self.bins - width)
        edge = (first + torch.arange(width + 1, device=f.device) - place) / (self.sigma * math.sqrt(2))
        mass = _normal_mass(edge[:, :-1], edge[:, 1:])
        index = first.long() + torch.arange(width, device=f.device)
        return sparse(index, (mass / mass.sum(-1, keepdim=True)).to(dtype), self.bins)

    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor:
        return cross_entropy(z, self._target(f, f.dtype), reduction=reduction)

    def _mean(self, z: Tensor) -> Tensor:
        centres = (torch.arange(self.bins, dtype=z.dtype, device=z.device) + 0.5) / self.bins
        return (z.softmax(-1) * centres).sum(-1)

    def _quantile(self, z: Tensor, level: float) -> Tensor:
        p = z.softmax(-1)
        reached = p.cumsum(-1)
        reached = reached / reached[:, -1:]  # 1 but for rounding, which must not carry a level to a bin without mass
        i = (reached < level).sum(-1, keepdim=True)
        before = torch.where(i == 0, 0.0, reached.gather(-1, (i - 1).clamp(min=0)))
        through = ((level - before) / (reached.gather(-1, i) - before)).clamp(0, 1)
        return ((i + through) / self.bins).squeeze(-1)

    def _cdf(self, z: Tensor, y: Tensor) -> Tensor:
        place = (self._unit(y) * self.bins).unsqueeze(-1)
        filled = (place - torch.arange(self.bins, device=z.device)).clamp(0, 1)  # how much of each bin lies below y
        return (z.softmax(-1) * filled).sum(-1).clamp(max=1)

    def _log_prob(self, z: Tensor, f: Tensor) -> Tensor:
        """The log-density of the bin that holds f; a border belongs to the bin above it."""
        bin = (f * self.bins).floor().clamp(max=self.bins - 1)
        log_p = z.log_softmax(-1).gather(-1, bin.nan_to_num(0).long().unsqueeze(-1)).squeeze(-1)
        return torch.where(f.isnan(), f, log_p) - math.log((self.high - self.low) / self.bins)


def _normal_mass(a: Tensor, b: Tensor) -> Tensor:
    """½ (erf b - erf a) for a < b, without losing the digits of a small mass in a tail.

    A tail on the left is turned to the right, where erfc says how little is left.
    """
    left = a + b < 0
    a, b = torch.where(left, -b, a), torch.where(left, -a, b)
    return (torch.erfc(a) - torch.erfc(b)) / 2
