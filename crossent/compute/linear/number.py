"""A mean or a sum with its gradients, from one making of the logits: three products instead of four.

What a mean divides by depends on the targets, not on the logits, and is known beforehand. So a chunk's gradient can be
made as soon as the chunk has been read, and goes into the gradients of hidden states and head at once. The backward
pass hands these over, times what comes from above, which is 1 as a rule. If they are wanted twice they are made again,
and if a graph of them is wanted, the way through the rows is taken.

Where the loss is affine in its statistics, the cotangents are known before the row is read, and one kernel reads a row,
and writes its gradient over it while it is in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.compute import backends
from crossent.compute.backends.reference import wide
from crossent.compute.linear import statistics
from crossent.compute.linear.blocks import gradients_of
from crossent.compute.linear.columns import Columns, columns_of, gradient_of, is_trained, needs_columns, target_at
from crossent.compute.linear.columns import row_losses as columns_losses
from crossent.compute.linear.operators import (
    at_rows,
    back_through,
    by_itself,
    lift_of,
    linked,
    part_of,
    product_of,
    pull_over,
)
from crossent.compute.linear.product import Chunk, Gradients
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss, tensors_of
from crossent.compute.number import nobody_waits, plain_stats, slopes
from crossent.compute.reduce import reduce
from crossent.compute.rows import is_learned, losses_of, stats_of
from crossent.compute.stats import finish, unpack
from crossent.compute.target import Target, visible

OfChunk = Callable[[Chunk, Tensor], tuple[Tensor, Tensor]]
"""A chunk and the cotangent () of every row's loss → their losses and the gradient of their logits."""


@dataclass(frozen=True)
class Whole:
    """A mean or a sum over rows: what makes a chunk's losses and gradient, and what all of them are divided by."""

    live: Tensor | None
    of_chunk: OfChunk
    divisor: Tensor
    size: int
    again: Callable[..., Tensor]
    """The same number by way of the rows, for derivatives of its derivatives."""
    in_step: bool = False
    """Whether all ranks have to make the same chunks."""


def number(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    reduction: str,
    dtype: torch.dtype,
    normaliser: float | Tensor | None,
    beside: Tensor | None = None,
) -> Tensor | None:
    """The mean or sum over rows of logits x @ w.T + bias, or None where it takes the ordinary way.

    A frozen w (v, d) may have columns ``beside`` it (v, r), for the last r numbers of x.
    """
    if not _is_wanted(x, w, bias, beside):
        return None
    if is_trained(link) or any(is_learned(knob) for knob in (target.weight, target.row_weight, *tensors_of(loss))):
        return None
    if target.index is None and loss.class_weight is not None:  # of a soft target only the kernel knows the mean weight
        return None
    divisor = _divisor(_weights(target, loss, x), x, reduction, normaliser)
    if needs_columns(target, loss, link):
        of_chunk = by_autograd(columns_of(target, loss, link), target.live)
    elif link is None and _is_affine(target, loss, x) and hasattr(backends.of(x), "both"):
        of_chunk = _affine(target, loss)
    else:
        of_chunk = _by_statistics(target, loss, link)

    def again(x: Tensor, w: Tensor, bias: Tensor | None, beside: Tensor | None) -> Tensor:
        value, weight = statistics.row_losses(x, w, bias, target, loss, link, size, beside=beside)
        return reduce(value, weight, reduction, "zero", torch.Size(), dtype, normaliser)

    return total(x, w, bias, Whole(target.live, of_chunk, divisor, size, again), dtype, beside)


def total_of_columns(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    live: Tensor | None,
    columns: Columns,
    divisor: Tensor,
    size: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """The sum of any function of rows of logits, divided; None where it takes the ordinary way."""

    def again(x: Tensor, w: Tensor, bias: Tensor | None, _: None) -> Tensor:
        return (columns_losses(x, w, bias, live, columns, size)[0].sum() / divisor).to(dtype)

    return total(x, w, bias, Whole(live, by_autograd(columns, live), divisor, size, again, columns.in_step), dtype)


def total(
    x: Tensor, w: Tensor, bias: Tensor | None, whole: Whole, dtype: torch.dtype, beside: Tensor | None = None
) -> Tensor | None:
    """The number, or None where nobody wants its gradient or somebody looks at tensors that hold no numbers."""
    if not _is_wanted(x, w, bias, beside) or (x.device.type == "cpu" and not bool(whole.divisor > 0)):
        return None
    return _Number.apply(x, w, bias, beside, whole, dtype)


def _is_wanted(x: Tensor, w: Tensor, *others: Tensor | None) -> bool:
    if not all(visible(t) for t in (x, w)) or torch.autograd.forward_ad._current_level >= 0:
        return False
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, w, *others))


class _Number(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        beside: Tensor | None,
        whole: Whole,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, w, bias, beside)
        ctx.whole, ctx.dtype = whole, dtype
        value, ctx.made = _made((x, w, bias, beside), whole, ctx.needs_input_grad[:4])
        return (value.sum() / whole.divisor).to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        head = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            leaves = [t for t, there in zip(head, wanted, strict=True) if there]
            found = iter(torch.autograd.grad(ctx.whole.again(*head), leaves, g, create_graph=True))
            return *(next(found) if there else None for there in wanted), None, None
        made, ctx.made = ctx.made, None  # given away once: whoever accumulates gradients may keep them without a copy
        if made is None:
            made = _made(head, ctx.whole, wanted)[1]
        gradients, lift = made
        factor = g / lift if visible(g) else head[0].new_full((), 1.0 / lift, dtype=torch.float32)
        dx, dw, db = gradients.rounded(factor)
        if not visible(g):
            dx, dw, db = (None if d is None else (d * g).to(d.dtype) for d in (dx, dw, db))
        of_head = (dw, db, None) if head[3] is None else (None, db, dw)  # what is beside a frozen head is learned
        return dx, *of_head, None, None


def _made(
    head: tuple[Tensor, Tensor, Tensor | None, Tensor | None], whole: Whole, wanted: tuple[bool, ...]
) -> tuple[Tensor, tuple[Gradients, float]]:
    """The losses of all rows, and the gradients of their sum divided, times the power of two that stands beside."""
    x, w, bias, beside = head
    each = 1.0 / whole.divisor
    lift = lift_of(x.dtype, each)
    product = product_of(x, w, bias, whole.live, whole.size, beside)
    of_x, of_w, of_bias, of_beside = wanted
    gradients = gradients_of(product, (of_x, of_w or of_beside, of_bias), whole.in_step)
    value = torch.zeros(x.shape[0], dtype=wide(x), device=x.device)
    for chunk in gradients:
        value[chunk.at], dz = whole.of_chunk(chunk, each * lift)
        gradients.add(chunk, dz)
    return value, (gradients, lift)


# --- a chunk's losses and gradient, in three ways -----------------------------------------------------------------


def _is_affine(target: Target, loss: Loss, x: Tensor) -> bool:
    labels = target.plain_labels is not None and (target.weight is None or nobody_waits(x))
    return labels and loss.class_weight is None and loss.affine and not loss.reads - {"uniform"}


def _affine(target: Target, loss: Loss) -> OfChunk:
    """Every row has the same cotangents: its gradient is made while it is read."""
    uniform, slope = "uniform" in loss.reads, slopes(loss)

    def of_chunk(chunk: Chunk, each: Tensor) -> tuple[Tensor, Tensor]:
        z, of_rows = chunk.z.unsqueeze(-1), target_at(target, chunk.at)
        a, c = ((each if nobody_waits(z) else float(each)) * s for s in slope)
        labels = of_rows.plain_labels
        assert labels is not None
        fields, gap, dz = backends.of(z).both(z, of_rows.live, labels, uniform, a, c, out=z)
        part = unpack(fields, gap, dense=False, uniform=uniform, entropy=False)
        nll, lse, even, _ = finish(part)
        value, _ = losses_of(plain_stats(nll, lse, even, part.count, z.shape[1]), of_rows, loss)
        return value, dz.squeeze(-1)

    return of_chunk


def _by_statistics(target: Target, loss: Loss, link: Link | None) -> OfChunk:
    """Read, ask the loss for the cotangents of the statistics, pull."""

    def of_chunk(chunk: Chunk, each: Tensor) -> tuple[Tensor, Tensor]:
        z, of_rows = linked(link, chunk.z), target_at(target, chunk.at)
        stats: dict[str, Tensor] = {}
        given: tuple[Any, ...] = ()

        def read(*what: Any) -> tuple[Tensor, ...]:
            nonlocal given
            index, q, column_weight, uniform, entropy, _ = what
            fields, gap = part_of(z, of_rows.live, *what)
            part = unpack(fields, gap, dense=q is not None, uniform=uniform, entropy=entropy)
            found = dict(zip(("nll", "lse", "uniform", "entropy"), finish(part), strict=True))
            stats.update({name: s.requires_grad_() for name, s in found.items() if s is not None})
            given = of_rows.live, index, q, column_weight, fields
            return fields, *stats.values()

        with by_itself():
            value, _ = losses_of(stats_of(read, z.shape[1], of_rows, loss), of_rows, loss)
            if not value.requires_grad:
                return value, torch.zeros_like(chunk.z)
            pulls = torch.autograd.grad(value, list(stats.values()), each.expand_as(value), allow_unused=True)
        cotangents = dict(zip(stats, pulls, strict=True))
        for name in stats.keys() - {"lse"}:  # by these the kernel tells which fields there are
            if cotangents[name] is None:
                cotangents[name] = torch.zeros_like(stats[name])
        with torch.no_grad():
            in_order = (cotangents.get(name) for name in ("nll", "lse", "uniform", "entropy"))
            dz = pull_over(z, *given, *in_order)
        return value.detach(), back_through(link, chunk.z, dz)

    return of_chunk


def by_autograd(columns: Columns, live: Tensor | None) -> OfChunk:
    """Any function of a few rows of logits."""
    live = None if live is None or live.device.type == "cpu" else live  # a CPU makes none but those that count

    def of_chunk(chunk: Chunk, each: Tensor) -> tuple[Tensor, Tensor]:
        (alive,) = at_rows(chunk.at, live)
        return gradient_of(columns, chunk.z, alive, chunk.at, each.expand(chunk.z.shape[0]))[:2]

    return of_chunk


# --- what is divided by -------------------------------------------------------------------------------------------


def _weights(target: Target, loss: Loss, x: Tensor) -> Tensor | None:
    """The weights (n,) that a mean divides by, as ``rows.losses_of`` finds them, from the target alone."""
    weight = None
    if target.index is not None and (target.weight is not None or loss.class_weight is not None):
        q = torch.ones(target.index.shape, dtype=wide(x), device=x.device)
        q = q if target.weight is None else target.weight.to(wide(x))
        mass = q.sum(-1)
        if loss.class_weight is not None:
            q = q * loss.class_weight.to(q)[target.index]
        weight = torch.where(mass == 0, 1.0, q.sum(-1) / torch.where(mass == 0, 1.0, mass))
    if target.row_weight is not None:
        weight = target.row_weight.to(wide(x)) * (1.0 if weight is None else weight)
    if target.live is not None:
        weight = torch.where(target.live, x.new_ones((), dtype=wide(x)) if weight is None else weight, 0.0)
    return weight


def _divisor(weight: Tensor | None, x: Tensor, reduction: str, normaliser: float | Tensor | None) -> Tensor:
    if reduction == "sum":
        return torch.ones((), dtype=wide(x), device=x.device)
    if normaliser is not None:
        divisor = torch.as_tensor(normaliser, dtype=wide(x), device=x.device)
    else:
        divisor = torch.full((), x.shape[0], dtype=wide(x), device=x.device) if weight is None else weight.sum()
    return torch.where(divisor == 0, 1.0, divisor) if nobody_waits(x) else divisor  # nothing over nothing is 0
