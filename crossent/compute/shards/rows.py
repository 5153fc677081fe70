"""Losses of rows of which every rank holds some columns: autograd around ``merge`` and the kernels, as ``rows`` is.

A loss that reads the logits themselves (``Brier``, ``Hinge``) gets them: the row is put together on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.compute import operators, rows
from crossent.compute.backends import reference
from crossent.compute.group import copied, joined, refuse_batch, shared, total
from crossent.compute.linear.columns import needs_columns
from crossent.compute.link import Link
from crossent.compute.losses import NLL, Loss
from crossent.compute.losses.algebra import Reweighted, tensors_of, with_tensors
from crossent.compute.shards.merge import (
    Shard,
    as_subset,
    cotangents_of,
    empty,
    here,
    localised,
    merged,
    moved,
    order_of,
    own_here,
    share_of,
)
from crossent.compute.stats import Stats, field_names
from crossent.compute.target import Target


class _Statistics(torch.autograd.Function):
    """(fields, nll, lse, uniform?, entropy?) of rows of which z (n, own, l) are these columns, as ``rows._Rows``.

    ``one_by_one`` asks for the nll of each of these columns; the cotangents of lse, uniform and entropy are partial
    then.
    """

    @staticmethod
    def forward(
        z: Tensor,
        live: Tensor | None,
        index: Tensor | None,
        q: Tensor | None,
        weight: Tensor | None,
        uniform: bool,
        entropy: bool,
        shard: Shard,
        one_by_one: bool,
    ) -> tuple[Tensor, ...]:
        what = {"dense": q is not None, "uniform": uniform, "entropy": entropy}
        if z.shape[1]:
            read = operators.part(z, live, own_here(index, shard), q, weight, uniform, entropy)
            own = as_subset(read, field_names(**what), lambda at: reference.by_row(z)[at].isnan().any(-1))
        else:
            own = empty(z.shape[0] * z.shape[2], index, q, field_names(**what), z)
        return merged(*own, index, what, shard, one_by_one)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        z, live, *target, ctx.uniform, ctx.entropy, ctx.shard, ctx.one_by_one = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, live, *target, output[0])
        ctx.save_for_forward(z, live, *target, output[0], output[2], output[-1] if ctx.entropy else None)

    @staticmethod
    def backward(ctx: Any, _: None, *given: Tensor | None) -> tuple:
        z, live, index, q, weight, fields = ctx.saved_tensors
        cotangents = cotangents_of(ctx, given, index, q, fields, z.shape[1])
        if torch.is_grad_enabled():
            return _differentiable_pull(ctx, *cotangents), *(None,) * 8
        at, known, *those = localised(ctx, index, q, weight, fields, *cotangents)
        if not z.shape[1]:
            return torch.zeros_like(z), *(None,) * 8
        return operators.pull(z, live, at, q, weight, known, *those), *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        rows.refuse_nested_forward()
        z, live, *known = ctx.saved_tensors
        read, t = (reference._read(reference.by_row(x), live) for x in (z, tangent))
        return moved(ctx, read, t, *known)

    vmap = staticmethod(refuse_batch)


def statistics_of(*given: Any) -> tuple[Tensor, ...]:
    """``_Statistics`` of z, live, index, q, weight, uniform, entropy, shard, one_by_one."""
    return _Statistics.apply(*given)


def _differentiable_pull(ctx: Any, a: Tensor, b: Tensor, c: Tensor | None, d: Tensor | None) -> Tensor:
    """The same gradient in plain torch, from statistics that have a gradient in their turn: of any order."""
    z, live, index, q, weight, fields = ctx.saved_tensors
    group = ctx.shard.group
    share, _ = share_of(ctx, a, index, q, weight, fields)
    known = dict(zip(field_names(dense=q is not None, uniform=ctx.uniform, entropy=ctx.entropy), fields, strict=True))
    # Used on these columns alone from here on, by every rank.
    spread = partial(total if ctx.one_by_one else copied, group=group)
    b = spread(b)
    c, d = (None if x is None else spread(x) for x in (c, d))
    a = a if ctx.one_by_one else copied(a, group)
    everything = total(a.sum(-1), group) if ctx.one_by_one else a.sum(-1)
    _, _, lse, *rest = statistics_of(z, live, None, None, None, False, ctx.entropy, ctx.shard, True)
    row = reference._read(reference.by_row(z), live)
    allowed = row != -torch.inf
    nll = torch.where(allowed, lse.unsqueeze(-1) - row, 0.0)
    p = torch.where(allowed, torch.exp(-nll), 0.0)
    alpha = a
    if q is not None:
        own = reference._soft_weights(reference.by_row(q), weight, a.dtype)
        alpha = a * own / torch.where(known["held"] == 0, 1.0, known["held"]).unsqueeze(-1)
    elif index is not None:
        at, _ = here(index, ctx.shard.start, z.shape[1])
        alpha = torch.zeros_like(row).scatter_add(-1, at, a * share) if row.shape[1] else torch.zeros_like(row)
    dz = (everything + b).unsqueeze(-1) * p - alpha
    if c is not None:
        u = reference._column_weights(allowed, weight, row.dtype)
        dz = dz + (c / known["count"]).unsqueeze(-1) * (known["measure"].unsqueeze(-1) * p - u)
    if d is not None:
        dz = dz + d.unsqueeze(-1) * p * (nll - rest[0].unsqueeze(-1))
    if live is not None:
        dz = torch.where(live.unsqueeze(-1), dz, 0.0)
    return reference._by_column(dz, z.shape).to(z.dtype)


# --- the statistics of rows, and their losses ---------------------------------------------------------------------


@dataclass(frozen=True)
class OwnColumns(Stats):
    """Statistics whose target columns are those of this rank: sums over them are totals over all ranks."""

    shard: Shard = field(default_factory=lambda: Shard(()))

    def of_class(self, values: Tensor) -> Tensor:
        """One number (v,) for each class → those of this rank's columns, (1, own)."""
        return self.shard.own(values.to(self.nll)).unsqueeze(0)

    def over_targets(self, values: Tensor) -> Tensor:
        """Σ_k q_k values_k over the columns of all ranks."""
        return total(super().over_targets(values), self.shard.group)

    @property
    def held(self) -> Tensor:
        """Σ_k q_k over the columns of all ranks."""
        return total(super().held, self.shard.group)


def row_losses(z: Tensor, target: Target, loss: Loss, link: Link | None, shard: Shard) -> tuple[Tensor, Tensor | None]:
    """(loss, weight) of every row, as ``rows.row_losses`` gives them of whole rows; the same on every rank.

    z (n, own, l) are this rank's columns; so are a soft target's weights and the link's bias. ``index``, ``live`` and
    ``row_weight`` of the target, and class weights and whatever else a loss holds, are of the whole row.
    """
    z = _linked(z.unsqueeze(-1) if z.dim() == 2 else z, target, link, shard)
    if "logits" in loss.reads:
        whole = joined(z, 1, shard.sizes, shard.group)
        return rows.row_losses(whole, _whole(target, shard), loss)
    one_by_one = target.index is None and needs_columns(target, loss)
    if one_by_one:  # each rank's cotangents are partial, of what all hold too
        loss = with_tensors(loss, (copied(held, shard.group) for held in tensors_of(loss)))
        if target.row_weight is not None:
            target = replace(target, row_weight=copied(target.row_weight, shard.group))

    def read(index: Tensor | None, q: Tensor | None, weight: Tensor | None, *what: bool) -> tuple[Tensor, ...]:
        return statistics_of(z, target.live, index, q, own_weight(weight, index, shard), *what[:2], shard, one_by_one)

    s = stats_of(read, target, loss, shard, one_by_one, partial(_weighed, z, target, shard))
    return losses_of(s, target, loss, shard)


def _weighed(z: Tensor, target: Target, shard: Shard, class_weight: Tensor) -> Tensor:
    """Σ_j w_j nll_j of every row, for weights that are learned: each rank adds up its own columns.

    Of labels the weights are those of all classes, and of a soft target, whose losses are partial, the own ones.
    """
    labels = target.index is not None
    own = shard.own(copied(class_weight, shard.group)) if labels else class_weight
    nll = statistics_of(z, target.live, None, None, None, False, False, shard, True)[1]
    whole = total(rows.over_allowed(nll, own), shard.group)
    return shared(whole, shard.group) if labels else whole


def row_numbers(z: Tensor, target: Target, loss: Loss, link: Link | None, shard: Shard) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row against its label, and all statistics, as ``rows.row_numbers`` gives them."""
    z = _linked(z.unsqueeze(-1) if z.dim() == 2 else z, target, link, shard)

    def read(index: Tensor | None, q: Tensor | None, weight: Tensor | None, *what: bool) -> tuple[Tensor, ...]:
        return statistics_of(z, target.live, index, q, own_weight(weight, index, shard), *what[:2], shard, False)

    of_statistics = "logits" not in loss.reads
    asked = rows.AndNumbers(loss if of_statistics else NLL())
    s = stats_of(read, target, asked, shard, False, partial(_weighed, z, target, shard))
    value = loss(s) if of_statistics else row_losses(z, target, loss, None, shard)[0]
    return value, ordered(s, order_of(reference.by_row(z.detach()), target.index, shard))


def ordered(s: Stats, order: tuple[Tensor, Tensor]) -> Stats:
    """The statistics with (first, above) of whole rows."""
    return replace(s, first=order[0], above=order[1])


def _linked(z: Tensor, target: Target, link: Link | None, shard: Shard) -> Tensor:
    """What a link makes of these columns; its temperature and soft cap are used by all ranks, its bias is their own."""
    if link is None:
        return z
    temperature, softcap = (
        copied(x, shard.group) if isinstance(x, Tensor) else x for x in (link.temperature, link.softcap)
    )
    assert temperature is not None
    moved = Link(temperature, softcap, link.bias)
    return moved(rows._live_columns(z, target).to(reference.wide(z)).movedim(1, -1)).movedim(-1, 1)


def own_weight(weight: Tensor | None, index: Tensor | None, shard: Shard) -> Tensor | None:
    """Class weights of these columns; ``stats_of`` has cut them already where there is no index."""
    return weight if weight is None or index is None else shard.own(weight)


def stats_of(
    read: Callable[..., tuple[Tensor, ...]],
    target: Target,
    loss: Loss,
    shard: Shard,
    one_by_one: bool,
    weighed: Callable[[Tensor], Tensor] | None = None,
) -> Stats:
    """What ``loss`` reads of every row, from ``read`` and ``weighed`` as ``rows.stats_of`` calls them."""
    if target.index is None and loss.class_weight is not None:
        loss = Reweighted(loss, shard.own(loss.class_weight))
    s = rows.stats_of(read, shard.classes, target, loss, None, weighed)
    return OwnColumns(**{**vars(s), "mass": total(s.mass, shard.group)}, shard=shard) if one_by_one else s


def losses_of(s: Stats, target: Target, loss: Loss, shard: Shard) -> tuple[Tensor, Tensor | None]:
    """(loss, weight) of every row, from here on the same on every rank."""
    value, weight = rows.losses_of(s, target, loss)
    if not isinstance(s, OwnColumns):
        return value, weight
    return shared(value, shard.group), None if weight is None else shared(weight, shard.group)


def _whole(target: Target, shard: Shard) -> Target:
    """A target whose weights of all columns are put together."""
    if target.index is not None:
        return target
    assert target.weight is not None
    return Target(None, joined(target.weight, 1, shard.sizes, shard.group), target.live, target.row_weight)
