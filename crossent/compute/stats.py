"""Columns → rows → number: all that a cross-entropy needs to know of a row of logits.

A *part* is what a loss could want to know of any subset of the columns of a row. Parts of disjoint subsets
``merge``, in any order and grouping; the empty subset is the identity. So one row may be read in one go, in
blocks, or on several machines, and the answer is the same.

    peak   max z_j                               rest   Σ e^{z_j - peak} over all columns but one of the greatest
    gap    peak - z at the target columns, (n, k)    held   how much target weight lies in this subset, (n, k)
    total  Σ u_j (z_j - peak) over the allowed columns, for the cross-entropy from the uniform distribution
    count, measure  how many columns are allowed; Σ u_j over them
    dot    Σ e^{z_j - peak} (z_j - peak), for the entropy

A column is allowed unless its logit is -inf; u_j is 1, or the class weight. A label has one target column, and its
``held`` is 1 in the subset that has it. A soft target over all columns is summed up while they are read: its one
``gap`` is the mean of peak - z_j under the target's weights, its ``held`` their sum. ``finish`` turns the part of the
whole row into four cross-entropies *of the row against something*, with p = softmax(z):

    nll      against the target class           -log p_y   = gap + log1p(rest)
    uniform  against the uniform distribution   -mean log p = (measure · log1p(rest) - total) / count
    entropy  against itself                     -Σ p log p = log1p(rest) - dot / (1 + rest)
    lse      against the base measure           log Σ e^z  = peak + log1p(rest)

The first three are sums of terms that are never negative: nothing cancels. ``lse - z_y``, which is how the
field computes the first, loses every digit on a confident row; here a row with p_y = 1 - 1e-12 keeps them all,
because ``rest`` never had the 1 added to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What is known of a subset of the columns: ``gap`` and ``held`` (n, k), all else (n,).

    ``mass`` is Σ q_j of a soft target over all columns, class weights left out, and None for any other target. What
    nobody asked for is None: ``total``, ``count`` and ``measure`` without the uniform cross-entropy, ``dot`` without
    the entropy.
    """

    peak: Tensor
    rest: Tensor
    gap: Tensor
    held: Tensor
    mass: Tensor | None = None
    total: Tensor | None = None
    count: Tensor | None = None
    measure: Tensor | None = None
    dot: Tensor | None = None


def field_names(*, dense: bool, uniform: bool, entropy: bool, order: bool = False) -> tuple[str, ...]:
    """The fields (n,) of a part in the order in which a backend stacks them; ``gap`` comes apart.

    The last two are no sums and in no ``Part``: the first of the greatest columns, and how many are above the target.
    """
    return (
        "peak",
        "rest",
        *(("mass", "held") if dense else ()),
        *(("total", "count", "measure") if uniform else ()),
        *(("dot",) if entropy else ()),
        *(("first", "above") if order else ()),
    )


def unpack(fields: Tensor, gap: Tensor, *, dense: bool, uniform: bool, entropy: bool) -> Part:
    """The part that a backend gave as ``fields`` (f, n) and ``gap`` (n, k)."""
    names = field_names(dense=dense, uniform=uniform, entropy=entropy)
    # One select each, and no unbind: a compiled backward pass makes a select again but keeps the views of an unbind,
    # as if they were memory of their own, and then writes over them while ``pull`` still has to read the fields.
    named = {name: fields[at] for at, name in enumerate(names)}
    held = named.pop("held").unsqueeze(-1) if dense else gap.new_ones(()).expand_as(gap)
    return Part(gap=gap, held=held, **named)


def empty_part(like: Part) -> Part:
    """The part of no columns: the identity of ``merge``."""

    def zeros(field: Tensor | None) -> Tensor | None:
        return None if field is None else torch.zeros_like(field)

    return Part(
        peak=torch.full_like(like.peak, -torch.inf),
        rest=torch.full_like(like.rest, -1.0),  # so that the sum of powers, 1 + rest, is 0
        gap=torch.zeros_like(like.gap),
        held=torch.zeros_like(like.held),
        mass=zeros(like.mass),
        total=zeros(like.total),
        count=zeros(like.count),
        measure=zeros(like.measure),
        dot=zeros(like.dot),
    )


def merge(a: Part, b: Part) -> Part:
    """Join the parts of two disjoint subsets of the columns of the same rows."""
    a_leads = ~(b.peak > a.peak)  # also where either is NaN: torch.maximum then makes the peak NaN anyway
    peak = torch.maximum(a.peak, b.peak)

    def lead_and_follow(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(a_leads, x, y), torch.where(a_leads, y, x)

    lead_rest, follow_rest = lead_and_follow(a.rest, b.rest)
    _, follow_peak = lead_and_follow(a.peak, b.peak)
    # A follower at -inf has nothing to add; -inf - -inf would make a NaN of that nothing.
    nothing = follow_peak == -torch.inf
    drop = torch.where(nothing, 0.0, follow_peak - peak)
    scale = torch.where(nothing, 0.0, torch.exp(drop))

    def below(part: Part, weight: Tensor) -> Tensor:
        """How far the part's own peak lies below the common one, 0 where no weight is there to be moved."""
        drop = torch.where(part.peak == peak, 0.0, peak - part.peak)  # 0 also where both are -inf
        drop = drop.reshape(-1, *[1] * (weight.dim() - 1))
        return torch.where(weight == 0, 0.0, drop)

    def sum_of(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else x + y

    held = a.held + b.held
    # The mean of the two gaps by the weight they hold; a part that holds all of it gives its own, to the bit.
    share = torch.where(held == 0, 0.0, b.held / torch.where(held == 0, 1.0, held))
    gap_a, gap_b = a.gap + below(a, a.held), b.gap + below(b, b.held)
    gap = torch.where(share == 0, gap_a, torch.where(share == 1, gap_b, (1 - share) * gap_a + share * gap_b))

    total = dot = None
    if a.total is not None and b.total is not None and a.measure is not None and b.measure is not None:
        total = (a.total - a.measure * below(a, a.measure)) + (b.total - b.measure * below(b, b.measure))
    if a.dot is not None and b.dot is not None:
        lead_dot, follow_dot = lead_and_follow(a.dot, b.dot)
        dot = lead_dot + scale * (follow_dot + drop * (1 + follow_rest))
    return Part(
        peak=peak,
        rest=(lead_rest + scale * follow_rest) + scale,
        gap=gap,
        held=held,
        mass=sum_of(a.mass, b.mass),
        total=total,
        count=sum_of(a.count, b.count),
        measure=sum_of(a.measure, b.measure),
        dot=dot,
    )


def finish(part: Part) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(nll, lse, uniform, entropy) of the part of a whole row; the last two are None if nobody asked for them."""
    spread = torch.log1p(part.rest)
    nll = part.gap + spread.unsqueeze(-1)
    uniform = entropy = None
    if part.total is not None and part.measure is not None and part.count is not None:
        uniform = (part.measure * spread - part.total) / part.count
    if part.dot is not None:
        entropy = spread - part.dot / (1 + part.rest)
    return nll, part.peak + spread, uniform, entropy


def missing(nll: Tensor) -> Tensor:
    """1 - e^-nll: what is missing from a probability, exact at both ends, and so is its derivative e^-nll.

    Autograd takes the slope of expm1 to be expm1 + 1, which keeps no digit of a small e^-nll; from log 2 on nothing
    cancels in 1 - exp, and its slope is the exponential itself. The other form is fed a harmless 1.
    """
    likely = nll < math.log(2.0)
    near = -torch.expm1(-torch.where(likely, nll, 1.0))
    far = 1 - torch.exp(-torch.where(likely, 1.0, nll))
    return torch.where(likely, near, far)


@dataclass(frozen=True)
class Stats:
    """The four cross-entropies of every row, and the target they are weighed by: what a loss is written on.

    ``nll`` has shape (n, k) for k target columns in a row, ``q`` their weights with the class weights multiplied
    in. A soft target over all columns is one column here whose nll is the mean under the target, as long as the loss
    is linear in nll; for the others it is v columns. ``lse``, ``uniform``, ``entropy``, ``count`` (of allowed columns)
    and ``mass`` (the sum of the weights, class weights left out: 1 for a label) have shape (n,). ``index`` (n, k) says
    which columns the targets are, None if that is all of them in order. ``classes`` is v, -inf columns included.
    ``logits`` (n, v) is the row itself, for the few losses that cannot do without.

    ``first`` and ``above`` (n,), whole numbers, are the greatest column and how many are greater than the target's.

    A field that the loss does not name in ``reads`` is None; ``plain`` says that all weights are 1.
    """

    nll: Tensor
    q: Tensor
    mass: Any
    lse: Tensor
    classes: int
    uniform: Any = None
    entropy: Any = None
    count: Any = None
    index: Tensor | None = None
    logits: Any = None
    first: Any = None
    above: Any = None
    plain: bool = False

    @property
    def miss(self) -> Tensor:
        """1 - p at the target columns, exact where p is near 1, with a slope p that is exact where p is near 0."""
        return missing(self.nll)

    @property
    def hit(self) -> Tensor:
        """The logits of the target columns, (n, k)."""
        return self.lse.unsqueeze(-1) - self.nll

    @property
    def held(self) -> Tensor:
        """Σ_k q_k, (n,): the target's weight, class weights included."""
        return self.q.sum(-1)

    def of_class(self, values: Tensor) -> Tensor:
        """One number (v,) for each class → that of each target column: (n, k), or (1, v) if that is all of them."""
        values = values.to(self.nll)
        return values.unsqueeze(0) if self.index is None else values[self.index]

    def over_targets(self, values: Tensor) -> Tensor:
        """Σ_k q_k values_k, where a weight of 0 silences even an infinite value: 0 · ∞ = 0 here.

        ``values`` of shape (n,) stand for the same number at every target column.
        """
        if values.dim() < self.q.dim():
            values = values.unsqueeze(-1)
        if not self.plain:
            silent = (self.q == 0) & values.isinf()
            values = self.q * torch.where(silent, 0.0, values)
        return values.squeeze(-1) if values.shape[-1] == 1 else values.sum(-1)
