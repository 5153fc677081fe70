"""A mean or a sum of losses with its gradient, from one reading of the logits.

Where a loss is affine in its statistics (cross-entropy itself, smoothed or not), every row that counts has the same
cotangents (of a soft target: times the sum of its weights), and they are known beforehand. Those of a focal loss of
labels follow from the row's own statistics, in closed form. Then the gradient is made while a row is in cache, and
handed over in the backward pass: nearly half of the work and of the memory traffic is saved. What it is multiplied by
there is 1 as a rule; if it is not, or the gradient is wanted twice or with a graph, the ordinary way through ``rows``
is taken: the numbers, and the bits, are the same. (Losses of logits that are narrower than float64 are worked out by
the kernel too, in another order than the loss itself has. That moves some 2⁻⁵³ of them, which rounding
to 2⁻²⁴ takes away again unless a boundary lies between: some cases in 10⁸.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crossent.compute import backends, operators
from crossent.compute.backends.reference import wide
from crossent.compute.losses.algebra import Loss, tensors_of
from crossent.compute.reduce import reduce
from crossent.compute.rows import is_learned, pulled, row_losses
from crossent.compute.stats import Stats, finish, unpack
from crossent.compute.target import Target, look, visible


def number(
    z: Tensor,
    target: Target,
    loss: Loss,
    reduction: str,
    dtype: torch.dtype,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "off",
) -> Tensor | None:
    """The mean or sum over rows of z (n, v, l), or None where it takes the ordinary way.

    ``validate`` is for weights of a soft target that nobody has looked at: a negative one is seen as it is read.
    """
    wanted = z.requires_grad and torch.is_grad_enabled() and visible(z) and z.numel() > 0
    if not wanted or torch.autograd.forward_ad._current_level >= 0 or not hasattr(backends.of(z), "both"):
        return None
    if not loss.affine and (not loss.focus or nobody_waits(z) or z.dtype == torch.float64):
        return None
    if tensors_of(loss) or loss.reads - {"uniform"}:
        return None
    labels, soft = None, _soft(z, target, loss)
    if soft is None:
        # Which label nobody looked at is no class, only a backend that nobody waits for is asked.
        labels = target.plain_labels if target.weight is None or nobody_waits(z) else None
        if labels is None:
            return None
    divisor = _divisor(z, target, reduction, normaliser)
    if isinstance(divisor, Tensor) and empty != "zero" and reduction == "mean":
        return None  # nobody looks whether it is 0
    if divisor is None:
        return None
    signs = torch.zeros(1, dtype=torch.bool, device="cpu") if soft is not None and target.unchecked else None
    value = _Number.apply(z, labels, soft, target, loss, reduction, dtype, divisor, signs)
    if signs is not None and (bool(signs) or math.isnan(value.detach())):
        look(target, validate)
    return value


def _soft(z: Tensor, target: Target, loss: Loss) -> Tensor | None:
    """A soft target (n, v, l) that can be summed up while the gradient is made."""
    q = target.weight
    if target.index is not None or q is None or target.row_weight is not None or nobody_waits(z):
        return None
    if not loss.linear or is_learned(q) or not visible(q):
        return None
    return q.unsqueeze(-1) if q.dim() == 2 else q


def nobody_waits(z: Tensor) -> bool:
    """Whether these logits are read by a device that nobody waits for, and that takes cotangents from its memory."""
    return getattr(backends.of(z), "NOBODY_WAITS", False)


def _divisor(z: Tensor, target: Target, reduction: str, normaliser: float | Tensor | None) -> float | Tensor | None:
    """What is divided by, None if that is nothing. On a device it is a number there, which nobody waits for."""
    if not nobody_waits(z):
        rows = target.rows if target.live is None else int(target.live.sum())
        divisor = 1.0 if reduction != "mean" else rows if normaliser is None else float(normaliser)
        return divisor if rows and divisor else None
    rows_there: float | Tensor = target.rows if target.live is None else target.live.sum()
    among = 1.0 if reduction != "mean" else rows_there if normaliser is None else normaliser
    if not isinstance(among, Tensor):
        return torch.full((), among, dtype=torch.float64, device=z.device) if among else None
    among = among.to(z.device, torch.float64)
    return torch.where(among == 0, 1.0, among)


class _Number(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        labels: Tensor | None,
        soft: Tensor | None,
        target: Target,
        loss: Loss,
        reduction: str,
        dtype: torch.dtype,
        divisor: float | Tensor,
        signs: Tensor | None,
    ) -> Tensor:
        ctx.target, ctx.divisor, ctx.loss = target, divisor, loss
        zero, *ctx.slopes = _line(loss) if loss.affine else (0.0, 1.0, 0.0)
        ctx.at_once = not nobody_waits(z) and z.dtype != torch.float64 and not zero
        if ctx.at_once:
            ctx.save_for_backward(z, labels, soft, None)
            value, ctx.dz = _read_once(z, labels, soft, target, loss, ctx.slopes, 1.0 / divisor, signs)
            return _reduced(value, target, reduction, dtype, divisor)
        uniform = "uniform" in loss.reads
        a, c = (slope * (1.0 / divisor) for slope in ctx.slopes)
        given: dict[str, Any] = {} if soft is None else {"q": soft, "signs": signs}
        fields, gap, ctx.dz = backends.of(z).both(z, target.live, labels, uniform, a, c, **given)
        ctx.save_for_backward(z, labels, soft, fields)
        part = unpack(fields, gap, dense=soft is not None, uniform=uniform, entropy=False)
        nll, lse, even, _ = finish(part)
        s = plain_stats(nll, lse, even, part.count, z.shape[1])
        if soft is not None:
            s = replace(s, q=part.held, mass=part.mass, plain=False)
        return _reduced(loss(s), target, reduction, dtype, divisor)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, labels, soft, fields = ctx.saved_tensors
        made, ctx.dz = ctx.dz, None  # given away once: whoever accumulates gradients may keep it without a copy
        plain = not torch.is_grad_enabled() and visible(g)
        if plain and made is not None and not nobody_waits(z) and float(g) == 1.0:
            return made, *(None,) * 8
        if plain and ctx.at_once:
            each = float(g) / ctx.divisor
            return _read_once(z, labels, soft, ctx.target, ctx.loss, ctx.slopes, each)[1], *(None,) * 8
        each = g.to(wide(z)) / ctx.divisor
        if not ctx.loss.affine:  # its slope depends on the logits: they are read again, and differentiably
            with torch.enable_grad():
                value, _ = row_losses(z, ctx.target, ctx.loss)
            graph = torch.is_grad_enabled()
            return torch.autograd.grad(value, z, each.expand_as(value), create_graph=graph)[0], *(None,) * 8
        a, c = (each * slope for slope in ctx.slopes)
        uniform = "uniform" in ctx.loss.reads
        if fields is None:
            with torch.no_grad():
                fields, _ = operators.part(z, ctx.target.live, ctx.target.index, soft, None, uniform, False)
        a, c = a.expand(fields.shape[1], 1), c.expand(fields.shape[1]) if uniform else None
        if soft is not None:  # the weight of the target in each row
            a, c = a * fields[3].unsqueeze(-1), None if c is None else c * fields[2]
        elif ctx.target.weight is not None:  # NaN where a label is no class
            a = a * ctx.target.weight
        if plain and made is not None and nobody_waits(z):
            # Nobody waits to hear what g is: the device makes the gradient anew unless that is 1.
            live, index = ctx.target.live, ctx.target.index
            dz = backends.of(z).pull(z, live, index, None, None, fields, a, None, c, None, out=made, unless=g)
        else:
            dz = pulled(z, ctx.target, soft, fields, a, c)
        return dz, *(None,) * 8


def _reduced(value: Tensor, target: Target, reduction: str, dtype: torch.dtype, divisor: float | Tensor) -> Tensor:
    if target.live is not None:
        value = torch.where(target.live, value, 0.0)
    return reduce(value, None, reduction, "zero", torch.Size(), dtype, divisor)


def _read_once(
    z: Tensor,
    labels: Tensor | None,
    soft: Tensor | None,
    target: Target,
    loss: Loss,
    rises: Sequence[float],
    each: Any,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The losses (n,) of rows and, if each loss has the cotangent ``each``, the gradient: all that is kept of a row."""
    asked: dict[str, Any] = {} if soft is None else {"q": soft, "signs": signs}
    asked |= {"slopes": rises} if loss.affine else {"focal": loss.focus}
    a, c = (slope * each for slope in rises)
    _, value, dz = backends.of(z).both(z, target.live, labels, "uniform" in loss.reads, a, c, **asked)
    return value.squeeze(-1), dz


def slopes(loss: Loss) -> tuple[float, float]:
    """The derivatives of an affine loss by nll and uniform."""
    _, by_nll, by_uniform = _line(loss)
    return by_nll, by_uniform


def _line(loss: Loss) -> tuple[float, float, float]:
    """An affine loss of a row of zeros, and how far it rises from there with nll at 1, and with uniform at 1."""
    at_zero, by_nll, by_uniform = loss(_three_rows()).tolist()
    return at_zero, by_nll - at_zero, by_uniform - at_zero


@cache
def _three_rows() -> Stats:
    """A row of zeros, one whose nll is 1, and one whose uniform is 1."""
    nll, even = torch.eye(3, dtype=torch.float64, device="cpu")[1:]
    return plain_stats(nll.unsqueeze(-1), even, even, nll.new_ones(3), 2)


def plain_stats(nll: Tensor, lse: Tensor, uniform: Tensor | None, count: Tensor | None, classes: int) -> Stats:
    """Statistics of rows with one label of weight 1 each."""
    one = nll.new_ones(())
    return Stats(
        nll=nll,
        q=one.expand_as(nll),
        mass=one.expand_as(lse),
        lse=lse,
        classes=classes,
        uniform=uniform,
        count=count,
        plain=True,
    )
