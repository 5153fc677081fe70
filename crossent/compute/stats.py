"""Columns → rows → number: all that a cross-entropy needs to know of a row of logits.

A *part* is what a loss could want to know of any subset of the columns of a row. Parts of disjoint subsets
``merge``, in any order and grouping; the empty subset is the identity. So one row may be read in one go, in
blocks, or on several machines, and the answer is the same.

    peak     max z_j                            rest     Σ e^{z_j - peak} over all columns but the (first) greatest
    hit      z at the target columns            total    Σ u_j (z_j - peak) over the allowed columns
    dot      Σ e^{z_j - peak} (z_j - peak)      count, measure   how many columns are allowed; Σ u_j over them

A column is allowed unless its logit is -inf; u_j is 1, or the class weight. ``finish`` turns the part of the
whole row into four cross-entropies *of the row against something*, with p = softmax(z):

    nll      against the target class           -log p_y   = (peak - hit) + log1p(rest)
    uniform  against the uniform distribution   -mean log p = (measure · log1p(rest) - total) / count
    entropy  against itself                     -Σ p log p = log1p(rest) - dot / (1 + rest)
    lse      against the base measure           log Σ e^z  = peak + log1p(rest)

The first three are sums of terms that are never negative: nothing cancels. ``lse - z_y``, which is how the
field computes the first, loses every digit on a confident row; here a row with p_y = 1 - 1e-12 keeps them all,
because ``rest`` never had the 1 added to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What is known of a subset of the columns; every field has shape (n,) except ``hit``, which has (n, k)."""

    peak: Tensor
    rest: Tensor
    hit: Tensor
    total: Tensor
    dot: Tensor
    count: Tensor
    measure: Tensor


def empty_part(like: Part) -> Part:
    """The part of no columns: the identity of ``merge``."""
    return Part(
        peak=torch.full_like(like.peak, -torch.inf),
        rest=torch.full_like(like.rest, -1.0),  # so that the mass, 1 + rest, is 0
        hit=torch.full_like(like.hit, -torch.inf),
        total=torch.zeros_like(like.total),
        dot=torch.zeros_like(like.dot),
        count=torch.zeros_like(like.count),
        measure=torch.zeros_like(like.measure),
    )


def merge(a: Part, b: Part) -> Part:
    """Join the parts of two disjoint subsets of the columns of the same rows."""
    a_leads = ~(b.peak > a.peak)  # also where either is NaN: torch.maximum then makes the peak NaN anyway
    peak = torch.maximum(a.peak, b.peak)

    def lead_and_follow(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(a_leads, x, y), torch.where(a_leads, y, x)

    lead_rest, follow_rest = lead_and_follow(a.rest, b.rest)
    lead_dot, follow_dot = lead_and_follow(a.dot, b.dot)
    _, follow_peak = lead_and_follow(a.peak, b.peak)
    # A follower at -inf has nothing to add; -inf - -inf would make a NaN of that nothing.
    nothing = follow_peak == -torch.inf
    drop = torch.where(nothing, 0.0, follow_peak - peak)
    scale = torch.where(nothing, 0.0, torch.exp(drop))

    def moved(part: Part) -> Tensor:
        shift = torch.where(part.measure == 0, 0.0, part.peak - peak)
        return part.total + part.measure * shift

    return Part(
        peak=peak,
        rest=(lead_rest + scale * follow_rest) + scale,
        hit=torch.maximum(a.hit, b.hit),
        total=moved(a) + moved(b),
        dot=lead_dot + scale * (follow_dot + drop * (1 + follow_rest)),
        count=a.count + b.count,
        measure=a.measure + b.measure,
    )


@dataclass(frozen=True)
class Stats:
    """The four cross-entropies of every row, and the target they are weighed by: what a loss is written on.

    ``nll`` has shape (n, k) for k target columns in a row, ``q`` their weights with the class weights multiplied
    in; ``lse``, ``uniform``, ``entropy`` and ``mass`` (the sum of the weights, class weights left out: 1 for a
    label) have shape (n,).
    """

    nll: Tensor
    q: Tensor
    mass: Tensor
    lse: Tensor
    uniform: Tensor
    entropy: Tensor

    @property
    def miss(self) -> Tensor:
        """1 - p at the target columns, exact where p is near 1."""
        return -torch.expm1(-self.nll)

    def over_targets(self, values: Tensor) -> Tensor:
        """Σ_k q_k values_k, where a weight of 0 silences even an infinite value: 0 · ∞ = 0 here.

        ``values`` of shape (n,) stand for the same number at every target column.
        """
        if values.dim() < self.q.dim():
            values = values.unsqueeze(-1)
        silent = (self.q == 0) & values.isinf()
        return (self.q * torch.where(silent, 0.0, values)).sum(-1)


def finish(part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(nll, lse, uniform, entropy) of the part of a whole row."""
    spread = torch.log1p(part.rest)
    nll = (part.peak.unsqueeze(-1) - part.hit) + spread.unsqueeze(-1)
    uniform = (part.measure * spread - part.total) / part.count
    entropy = spread - part.dot / (1 + part.rest)
    return nll, part.peak + spread, uniform, entropy
