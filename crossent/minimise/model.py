"""The network: several small ones side by side, from prepared features to logits.

One member is a multi-layer perceptron; all members are one batched matrix product, so that eight cost little more
than one on a small table. Their probabilities are averaged: the mean of a few independent networks has a lower
cross-entropy than any of them, for free (Lakshminarayanan et al. 2017).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Prepared features (n, d) → logits (members, n, columns).

    The first thing it does is to bring features to one scale: each is centred on its median, divided by its spread,
    and bent softly so that nothing lies beyond ±3; a missing number becomes the median, and says that it was missing
    in a column of its own. Those figures come from the training rows alone and travel with the weights.
    """

    center: Tensor
    spread: Tensor
    gaps: Tensor

    def __init__(self, features: int, gaps: int, columns: int, members: int, width: int, depth: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("gaps", torch.zeros(gaps, dtype=torch.long))
        sizes = [features + gaps, *[width] * depth, columns]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(members, before, after)) for before, after in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, after)) for after in sizes[1:])

    @classmethod
    def for_features(
        cls, x: Tensor, columns: int, members: int, width: int, depth: int, generator: torch.Generator
    ) -> Network:
        """A fresh network scaled to the training rows x (n, d), NaN where a number is missing."""
        gaps = x.isnan().any(0).nonzero().flatten()
        network = cls(x.shape[1], len(gaps), columns, members, width, depth)
        low, middle, high = torch.nanquantile(_sample(x), torch.tensor([0.25, 0.5, 0.75]), dim=0).nan_to_num(0.0)
        spread = (high - low) / 1.349  # the quartiles of a normal distribution are 1.349 of its sigmas apart
        # A column that is mostly one value has no quartiles to speak of: its standard deviation serves.
        present = torch.where(x.isnan(), middle, x)
        deviation = present.double().std(0, correction=0).float()
        rare = spread <= 1e-6 * deviation
        middle = torch.where(rare, present.double().mean(0).float(), middle)
        spread = torch.where(rare, deviation, spread)
        network.center.copy_(middle)
        network.spread.copy_(torch.where(spread > 0, spread, 1.0))
        network.gaps.copy_(gaps)
        for weight in network.weights:
            nn.init.normal_(weight, std=1 / math.sqrt(max(1, weight.shape[1])), generator=generator)
        with torch.no_grad():
            network.weights[-1].mul_(0.1)  # start near the uniform distribution: no member is sure of anything yet
        return network

    def scaled(self, x: Tensor) -> Tensor:
        """Features on one scale, with the columns that say what was missing."""
        z = (x - self.center) / self.spread
        z = (z / torch.sqrt(1 + (z / 3).square())).nan_to_num(0.0)
        return torch.cat((z, x[:, self.gaps].isnan().to(z.dtype)), 1)

    def forward(self, x: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The members' logits of scaled features (n, d); dropout draws from the generator alone."""
        h = x.unsqueeze(0).expand(self.weights[0].shape[0], -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if layer < last:
                h = nn.functional.silu(h)
                if dropout > 0:
                    keep = torch.rand(h.shape, generator=generator, device=h.device) >= dropout
                    h = h * keep / (1 - dropout)
        return h


def averaged(logits: Tensor) -> Tensor:
    """Log-probabilities (n, columns) of the mean of the members' probabilities, in float64."""
    return torch.log_softmax(logits.double(), -1).logsumexp(0) - math.log(logits.shape[0])


def _sample(x: Tensor) -> Tensor:
    """Quantiles of a big table are those of evenly spaced rows of it (torch sorts at most 16 million numbers)."""
    rows = min(20_000, 16_000_000 // max(1, x.shape[1]))
    return x if len(x) <= rows else x[torch.linspace(0, len(x) - 1, rows).long()]
