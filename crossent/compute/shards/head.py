"""Losses of the rows of a head of which every rank holds a slice, without its logits: ``linear``'s operators between
the two halves of ``merge``. One gather serves all rows, since the parts of all of them fit into memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.compute import linear
from crossent.compute.backends import reference
from crossent.compute.group import refuse_batch
from crossent.compute.linear.columns import is_trained, needs_columns
from crossent.compute.linear.derivative import pulled
from crossent.compute.linear.operators import back_through, linear_part, linear_pull, link_of, linked, product_of
from crossent.compute.link import Link
from crossent.compute.losses import NLL, Loss
from crossent.compute.rows import AndNumbers, refuse_nested_forward
from crossent.compute.shards import rows
from crossent.compute.shards.merge import (
    Shard,
    as_subset,
    cotangents_of,
    empty,
    localised,
    merged,
    moved,
    order_of,
    own_here,
)
from crossent.compute.stats import Stats, field_names
from crossent.compute.target import Target


class _Statistics(torch.autograd.Function):
    """The same of logits x @ w.T + bias with a link, whose columns are these and are not kept."""

    @staticmethod
    def forward(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        temperature: Tensor | None,
        softcap: float | None,
        prior: Tensor | None,
        live: Tensor | None,
        index: Tensor | None,
        q: Tensor | None,
        weight: Tensor | None,
        uniform: bool,
        entropy: bool,
        size: int,
        shard: Shard,
    ) -> tuple[Tensor, ...]:
        what = {"dense": q is not None, "uniform": uniform, "entropy": entropy}
        head = x, w, bias, temperature, softcap, prior

        def is_nan(at: Tensor) -> Tensor:
            return torch.nn.functional.linear(x[at], w, bias).isnan().any(-1)

        if w.shape[0]:
            here = own_here(index, shard)
            read = linear_part(*head, live, here, q, weight, uniform, entropy, False, size)
            own = as_subset(read, field_names(**what), is_nan)
        else:
            own = empty(x.shape[0], index, q, field_names(**what), x)
        return merged(*own, index, what, shard, False)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *head, ctx.softcap, prior, live, index, q, weight, ctx.uniform, ctx.entropy, ctx.size, ctx.shard = inputs
        ctx.one_by_one = False
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*head, prior, live, index, q, weight, output[0])
        known = output[0], output[2], output[-1] if ctx.entropy else None
        ctx.save_for_forward(*head, prior, live, index, q, weight, *known)

    @staticmethod
    def backward(ctx: Any, _: None, *given: Tensor | None) -> tuple:
        x, w, bias, temperature, prior, live, index, q, weight, fields = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_through_logits(ctx, given), *(None,) * 11
        cotangents = cotangents_of(ctx, given, index, q, fields, w.shape[0])
        at, known, *those = localised(ctx, index, q, weight, fields, *cotangents)
        wanted = ctx.needs_input_grad[:3]
        if not w.shape[0]:
            return *(torch.zeros_like(t) if need else None for t, need in zip((x, w, bias), wanted, strict=True)), *(
                None,
            ) * 11
        head = x, w, bias, temperature, ctx.softcap, prior
        pulled = linear_pull(*head, live, at, q, weight, known, *those, ctx.size, *wanted)
        return *(t if need else None for t, need in zip(pulled, wanted, strict=True)), *(None,) * 11

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_nested_forward()
        x, w, bias, temperature, prior, live, *known = ctx.saved_tensors
        link = link_of(temperature, ctx.softcap, prior)
        tx, tw, tb = tangents[:3]
        rows_ = x if live is None else torch.where(live.unsqueeze(-1), x, 0.0)
        z = torch.nn.functional.linear(rows_, w, bias)
        t = torch.zeros_like(z)
        if tx is not None:
            t = t + (tx if live is None else torch.where(live.unsqueeze(-1), tx, 0.0)) @ w.T
        t = t if tw is None else t + rows_ @ tw.T
        t = t if tb is None else t + tb
        at = linked(link, z)
        t = back_through(link, z, t.to(at.dtype))  # element by element: forwards is backwards
        return moved(ctx, at.to(reference.wide(at)), t, *known)

    vmap = staticmethod(refuse_batch)


def _of_logits(
    ctx: Any, temperature: Tensor | None, prior: Tensor | None, target: tuple, x: Tensor, w: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """The statistics by way of all the logits of these columns, with a graph."""
    live = target[0]
    z = torch.nn.functional.linear(x, w, bias)
    if live is not None:
        z = torch.where(live.unsqueeze(-1), z, 0.0)
    z = linked(link_of(temperature, ctx.softcap, prior), z).unsqueeze(-1)
    return rows.statistics_of(z, *target, ctx.uniform, ctx.entropy, ctx.shard, False)[1:]


def _through_logits(ctx: Any, given: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of x, w and bias with a graph of their own, by way of all the logits."""
    x, w, bias, temperature, prior, *target, _ = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]

    def of_head(*head: Tensor | None) -> tuple[Tensor, ...]:
        outputs = _of_logits(ctx, temperature, prior, (*target,), *head)  # type: ignore[arg-type]
        return tuple(out for out, g in zip(outputs, given, strict=True) if g is not None)

    grads = iter(pulled(of_head, (x, w, bias), wanted, [g for g in given if g is not None]))
    return tuple(next(grads) if need else None for need in wanted)


def linear_row_losses(
    x: Tensor, w: Tensor, bias: Tensor | None, target: Target, loss: Loss, link: Link | None, size: int, shard: Shard
) -> tuple[Tensor, Tensor | None]:
    """The same of logits x @ w.T + bias, ``size`` rows of them at a time; w (own, d) and bias are this rank's.

    x is used on own columns: it comes from ``copied`` or ``assembled``.
    """
    if needs_columns(target, loss, link):

        def read(z: Tensor, target: Target, loss: Loss, link: Link | None) -> tuple[Tensor, Tensor | None]:
            return rows.row_losses(z, target, loss, link, shard)

        return linear.row_losses(x, w, bias, target, loss, link, size, read)
    return rows.losses_of(_stats_of(x, w, bias, target, loss, link, size, shard), target, loss, shard)


def _stats_of(
    x: Tensor, w: Tensor, bias: Tensor | None, target: Target, loss: Loss, link: Link | None, size: int, shard: Shard
) -> Stats:
    """What ``loss`` reads of every row."""
    temperature = softcap = prior = None
    if link is not None:
        temperature = torch.as_tensor(link.temperature, dtype=reference.wide(x), device=x.device)
        softcap, prior = None if link.softcap is None else float(link.softcap), link.bias

    def read(index: Tensor | None, q: Tensor | None, weight: Tensor | None, *what: bool) -> tuple[Tensor, ...]:
        target_here = target.live, index, q, rows.own_weight(weight, index, shard)
        return _Statistics.apply(x, w, bias, temperature, softcap, prior, *target_here, *what[:2], size, shard)

    return rows.stats_of(read, target, loss, shard, False)


def _numbers(shard: Shard, z: Tensor, target: Target, loss: Loss, link: Link | None) -> tuple[Tensor, Stats]:
    return rows.row_numbers(z, target, loss, link, shard)


def linear_row_numbers(
    x: Tensor, w: Tensor, bias: Tensor | None, target: Target, loss: Loss, link: Link | None, size: int, shard: Shard
) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row against its label, and all statistics; the columns are read once more for their order.

    All ranks make the same chunks, since each asks the others for the logits of its labels.
    """
    of_statistics = not needs_columns(target, loss, link)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not is_trained(link)):
        s = _stats_of(x, w, bias, target, AndNumbers(loss if of_statistics else NLL()), link, size, shard)
    if is_trained(link):
        value, s = linear.through_link(s, x, w, bias, target, loss, link, size, partial(_numbers, shard))
    else:
        value = loss(s) if of_statistics else linear_row_losses(x, w, bias, target, loss, link, size, shard)[0]
    first = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    above = torch.zeros_like(first)
    with torch.no_grad():
        for chunk in product_of(x, w, bias, target.live, size):
            assert target.index is not None
            first[chunk.at], above[chunk.at] = order_of(linked(link, chunk.z), target.index[chunk.at], shard)
    return value, rows.ordered(s, (first, above))
