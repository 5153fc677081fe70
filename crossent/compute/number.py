"""A mean or a sum of losses with its gradient, from one reading of the logits.

Where a loss is affine in its statistics (cross-entropy itself, smoothed or not), every row that counts has the same
cotangents (of a soft target: times the sum of its weights), and they are known beforehand. Those of a focal loss of
labels follow from the row's own statistics, in closed form. Then the gradient is made while a row is in cache, and
handed over in the backward pass: nearly half of the work and of the memory traffic is saved. What it is multiplied by
there is 1 as a rule; if it is not, or the gradient is wanted twice or with a graph, the ordinary way through ``rows``
is taken: the numbers, and the bits, are the same. (Losses of logits that are narrower than float64 are worked out and
added up by the kernel too, in another order than the loss itself has. That moves some 2⁻⁵³ of them, which rounding
to 2⁻²⁴ takes away again unless a boundary lies between: some cases in 10⁸.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossent.compute import backends, operators
from crossent.compute.backends.reference import wide
from crossent.compute.losses.algebra import Loss, tensors_of
from crossent.compute.losses.likelihood import Smoothed, smoothing_of_nll
from crossent.compute.reduce import reduce
from crossent.compute.rows import columns, is_learned, pulled, row_losses
from crossent.compute.stats import Stats, finish, unpack
from crossent.compute.target import Target, look, visible


def number(
    input: Tensor,
    target: Target,
    loss: Loss,
    reduction: str,
    dtype: torch.dtype,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "off",
) -> Tensor | None:
    """The mean or sum over the rows of logits, or None where it takes the ordinary way.

    (Autograd sees the caller's tensor: a view of it in ``columns`` would be a step more, forwards and backwards.)

    ``validate`` is for weights of a soft target that nobody has looked at: a negative one is seen as it is read.
    """
    wanted = input.requires_grad and torch.is_grad_enabled() and visible(input) and input.numel() > 0
    if not wanted or torch.autograd.forward_ad._current_level >= 0:
        return None
    unseen = nobody_waits(input)
    if not hasattr(backends.of(input), "both"):
        return None
    if not loss.affine and (not loss.focus or unseen or input.dtype == torch.float64):
        return None
    if tensors_of(loss) or loss.reads - {"uniform"}:
        return None
    labels, soft = None, None if unseen else _soft(target, loss)
    if soft is None:
        # Which label nobody looked at is no class, only a backend that nobody waits for is asked.
        labels = target.plain_labels if target.weight is None or unseen else None
        if labels is None:
            return None
    divided = target, reduction, normaliser
    divisor = _divisor_there(input, *divided) if unseen else _divisor(*divided)
    if isinstance(divisor, Tensor) and empty != "zero" and reduction == "mean":
        return None  # nobody looks whether it is 0
    if divisor is None:
        return None
    check = soft is not None and target.unchecked
    value = _Number.apply(input, labels, soft, _Asked(target, loss, reduction, dtype, divisor, unseen, check))
    if check and math.isnan(value.detach()):
        look(target, validate)
    return value


def nobody_waits(z: Tensor) -> bool:
    """Whether these logits are read by a device that nobody waits for, and that takes cotangents from its memory."""
    return getattr(backends.of(z), "NOBODY_WAITS", False)


def _soft(target: Target, loss: Loss) -> Tensor | None:
    """A soft target (n, v, l) that can be summed up while the gradient is made."""
    q = target.weight
    if target.index is not None or q is None or target.row_weight is not None:
        return None
    if not loss.linear or is_learned(q) or not visible(q):
        return None
    return q.unsqueeze(-1) if q.dim() == 2 else q


def _divisor(target: Target, reduction: str, normaliser: float | Tensor | None) -> float | None:
    """What is divided by, None if that is nothing."""
    rows = target.rows if target.live is None else int(target.live.sum())
    divisor = 1.0 if reduction != "mean" else rows if normaliser is None else float(normaliser)
    return divisor if rows and divisor else None


def _divisor_there(z: Tensor, target: Target, reduction: str, normaliser: float | Tensor | None) -> Tensor | None:
    """The same as a number on the device of the logits, which nobody waits for; 1 if it is 0 there."""
    rows_there: float | Tensor = target.rows if target.live is None else target.live.sum()
    among = 1.0 if reduction != "mean" else rows_there if normaliser is None else normaliser
    if not isinstance(among, Tensor):
        return torch.full((), among, dtype=torch.float64, device=z.device) if among else None
    among = among.to(z.device, torch.float64)
    return torch.where(among == 0, 1.0, among)


class _Asked(NamedTuple):
    """What is asked for, and is known before a row is read."""

    target: Target
    loss: Loss
    reduction: str
    dtype: torch.dtype
    divisor: float | Tensor
    nobody_waits: bool
    check: bool
    """Whether a weight of a soft target that is below 0 is to make the loss NaN."""


class _Number(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, labels: Tensor | None, soft: Tensor | None, asked: _Asked) -> Tensor:
        loss, z = asked.loss, columns(input)
        zero, *ctx.slopes = _line(loss) if loss.affine else (0.0, 1.0, 0.0)
        ctx.asked, ctx.at_once = asked, not asked.nobody_waits and z.dtype != torch.float64 and not zero
        if ctx.at_once:
            ctx.save_for_backward(input, labels, soft, None)
            sums, ctx.dz = _read_once(z, labels, soft, asked, ctx.slopes, 1.0 / asked.divisor)
            # In Python: each operation of torch costs a small batch more than its rows.
            return torch.tensor(float(sums.sum()) / asked.divisor, dtype=asked.dtype, device=z.device)
        uniform = "uniform" in loss.reads
        a, c = (slope * (1.0 / asked.divisor) for slope in ctx.slopes)
        given: dict[str, Any] = {} if soft is None else {"q": soft, "check": asked.check}
        fields, gap, ctx.dz = backends.of(z).both(z, asked.target.live, labels, uniform, a, c, **given)
        ctx.save_for_backward(input, labels, soft, fields)
        part = unpack(fields, gap, dense=soft is not None, uniform=uniform, entropy=False)
        nll, lse, even, _ = finish(part)
        s = plain_stats(nll, lse, even, part.count, z.shape[1])
        if soft is not None:
            s = replace(s, q=part.held, mass=part.mass, plain=False)
        return _reduced(loss(s), asked)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        asked: _Asked = ctx.asked
        input, labels, soft, fields = ctx.saved_tensors  # torch refuses if they have changed meanwhile
        made, ctx.dz = ctx.dz, None  # given away once: whoever accumulates gradients may keep it without a copy
        plain = not torch.is_grad_enabled() and visible(g)
        if plain and made is not None and not asked.nobody_waits and float(g) == 1.0:
            return made.view(input.shape), *(None,) * 3
        z = columns(input)
        if plain and ctx.at_once:
            each = float(g) / asked.divisor
            return _read_once(z, labels, soft, asked, ctx.slopes, each)[1].view(input.shape), *(None,) * 3
        target, loss = asked.target, asked.loss
        each = g.to(wide(z)) / asked.divisor
        if not loss.affine:  # its slope depends on the logits: they are read again, and differentiably
            with torch.enable_grad():
                value, _ = row_losses(columns(input), target, loss)
            graph = torch.is_grad_enabled()
            return torch.autograd.grad(value, input, each.expand_as(value), create_graph=graph)[0], *(None,) * 3
        a, c = (each * slope for slope in ctx.slopes)
        uniform = "uniform" in loss.reads
        if fields is None:
            with torch.no_grad():
                fields, _ = operators.part(z, target.live, target.index, soft, None, uniform, False)
        a, c = a.expand(fields.shape[1], 1), c.expand(fields.shape[1]) if uniform else None
        if soft is not None:  # the weight of the target in each row
            a, c = a * fields[3].unsqueeze(-1), None if c is None else c * fields[2]
        elif target.weight is not None:  # NaN where a label is no class
            a = a * target.weight
        if plain and made is not None and asked.nobody_waits:
            # Nobody waits to hear what g is: the device makes the gradient anew unless that is 1.
            dz = backends.of(z).pull(
                z, target.live, target.index, None, None, fields, a, None, c, None, out=made, unless=g
            )
        else:
            dz = pulled(z, target, soft, fields, a, c)
        return dz.view(input.shape), *(None,) * 3


def _reduced(value: Tensor, asked: _Asked) -> Tensor:
    if asked.target.live is not None:
        value = torch.where(asked.target.live, value, 0.0)
    return reduce(value, None, asked.reduction, "zero", torch.Size(), asked.dtype, asked.divisor)


def _read_once(
    z: Tensor, labels: Tensor | None, soft: Tensor | None, asked: _Asked, rises: Sequence[float], each: Any
) -> tuple[Tensor, Tensor]:
    """Sums of the losses of rows that count and, if each loss has the cotangent ``each``, the gradient."""
    loss = asked.loss
    how: dict[str, Any] = {} if soft is None else {"q": soft, "check": asked.check}
    how |= {"slopes": rises} if loss.affine else {"focal": loss.focus}
    a, c = (slope * each for slope in rises)
    _, sums, dz = backends.of(z).both(z, asked.target.live, labels, "uniform" in loss.reads, a, c, **how)
    return sums, dz


def slopes(loss: Loss) -> tuple[float, float]:
    """The derivatives of an affine loss by nll and uniform."""
    _, by_nll, by_uniform = _line(loss)
    return by_nll, by_uniform


def _line(loss: Loss) -> tuple[float, float, float]:
    """An affine loss of a row of zeros, and how far it rises from there with nll at 1, and with uniform at 1."""
    smoothing = smoothing_of_nll(loss)
    return _line_of(loss) if smoothing is None else _line_of_nll(smoothing)


def _line_of(loss: Loss) -> tuple[float, float, float]:
    at_zero, by_nll, by_uniform = loss(_three_rows()).tolist()
    return at_zero, by_nll - at_zero, by_uniform - at_zero


@lru_cache
def _line_of_nll(smoothing: float) -> tuple[float, float, float]:
    """That of the losses that most calls have, which would cost them more than a hundred rows."""
    return _line_of(Smoothed(smoothing))


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
