"""Rows of losses without logits: autograd around ``linear_part`` and ``linear_pull``, as ``rows`` is around theirs.

Forwards the rows are made and read; backwards they are made again, since the losses, which are plain torch on the
statistics, say only then what each row's gradient is multiplied by. Second derivatives (products with a Hessian) are
made chunk by chunk too, in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.linear import columns
from crossent.compute.linear.derivative import in_chunks, one_by_one, pulled, pushed
from crossent.compute.linear.operators import back_through, linear_part, linear_pull, link_of, linked
from crossent.compute.linear.product import spans
from crossent.compute.link import Link
from crossent.compute.losses import NLL, Loss
from crossent.compute.rows import (
    AndNumbers,
    is_compiled,
    losses_of,
    refuse_nested_forward,
    stats_of,
)
from crossent.compute.rows import row_losses as of_logits
from crossent.compute.rows import row_numbers as numbers_of_logits
from crossent.compute.stats import Stats, finish, unpack
from crossent.compute.target import Target

PLAIN = 16
"""How many times the memory of its logits plain torch takes for a chunk: chunks have so many times fewer rows there."""


class _Statistics(torch.autograd.Function):
    """(fields, nll, lse, uniform?, entropy?) of the logits of x (n, d) and w (v, d)."""

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
        column_weight: Tensor | None,
        uniform: bool,
        entropy: bool,
        order: bool,
        size: int,
        beside: Tensor | None,
    ) -> tuple[Tensor, ...]:
        head, target = (x, w, bias, temperature, softcap, prior), (live, index, q, column_weight)
        fields, gap = linear_part(*head, *target, uniform, entropy, order, size, beside)
        part = unpack(fields, gap, dense=q is not None, uniform=uniform, entropy=entropy)
        return fields, *(stat for stat in finish(part) if stat is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, w, bias, temperature, ctx.softcap, prior, live, index, q, column_weight, *rest = inputs
        ctx.uniform, ctx.entropy, _, ctx.size, beside = rest
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, bias, temperature, prior, live, index, q, column_weight, output[0], beside)
        ctx.save_for_forward(x, w, bias, temperature, prior, live, index, q, column_weight, output[0], beside)

    @staticmethod
    def backward(ctx: Any, _: None, a: Tensor | None, b: Tensor | None, *rest: Tensor | None) -> tuple:
        x, w, bias, temperature, prior, live, index, q, column_weight, fields, beside = ctx.saved_tensors
        given = iter(rest)
        c = next(given) if ctx.uniform else None
        d = next(given) if ctx.entropy else None
        if a is None:
            columns = 1 if q is not None else w.shape[0] if index is None else index.shape[1]
            a = fields.new_zeros(1, 1).expand(fields.shape[1], columns)
        c = fields.new_zeros(1).expand(fields.shape[1]) if ctx.uniform and c is None else c
        d = fields.new_zeros(1).expand(fields.shape[1]) if ctx.entropy and d is None else d
        for_w = ctx.needs_input_grad[1 if beside is None else -1]
        wanted = ctx.needs_input_grad[0], for_w, bias is not None and ctx.needs_input_grad[2]
        head = x, w, bias, temperature, ctx.softcap, prior
        made = _gradients().apply(*head, live, index, q, column_weight, fields, a, b, c, d, ctx.size, *wanted, beside)
        dx, dw, db = (d if there else None for d, there in zip(made, wanted, strict=True))
        of_head = (dw, db, *(None,) * 12) if beside is None else (None, db, *(None,) * 11, dw)
        return dx, *of_head

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        fields, *stats = one_by_one(_kind().apply, info.batch_size, in_dims, inputs)
        return (fields, *stats), (0,) * (1 + len(stats))


class _StatisticsForward(_Statistics):
    """The same with a forward derivative, which torch.compile cannot see through."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple:
        refuse_nested_forward()
        x, w, bias, temperature, prior, live, index, q, column_weight, _, beside = ctx.saved_tensors
        link = link_of(temperature, ctx.softcap, prior)
        tx, tw, tb = tangents[:3]
        if beside is not None:
            tw = torch.cat([_or_zeros(tw, w), _or_zeros(tangents[-1], beside)], -1)
            w = torch.cat([w, beside], -1)
        moved = []
        for at in spans(x.shape[0], max(1, abs(ctx.size) // PLAIN)):
            alive = None if live is None else live[at]
            rows = _read(x[at], alive)
            z = torch.nn.functional.linear(rows, w, bias)
            t = torch.zeros_like(z)
            t = t if tx is None else t + _read(tx[at], alive) @ w.T
            t = t if tw is None else t + rows @ tw.T
            t = t if tb is None else t + tb
            if link is not None:
                made, z = z, linked(link, z)
                t = back_through(link, made, t.to(z.dtype)).to(z.dtype)  # element by element: forwards is backwards
            columns_, share = (None if t is None else t[at] for t in (index, q))
            share = None if share is None else share.reshape(*z.shape, 1)
            given = z.unsqueeze(-1), alive, columns_, share, column_weight, ctx.uniform, ctx.entropy, t.unsqueeze(-1)
            moved.append([move for move in reference.push(*given) if move is not None])
        return None, *(torch.cat(parts) for parts in zip(*moved, strict=True))


class _Gradients(torch.autograd.Function):
    """The gradients of x, w and bias from the cotangents of the four statistics; what is not wanted is empty."""

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
        column_weight: Tensor | None,
        fields: Tensor,
        a: Tensor,
        b: Tensor | None,
        c: Tensor | None,
        d: Tensor | None,
        size: int,
        for_x: bool,
        for_w: bool,
        for_bias: bool,
        beside: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, target = (x, w, bias, temperature, softcap, prior), (live, index, q, column_weight)
        return linear_pull(*head, *target, fields, a, b, c, d, size, for_x, for_w, for_bias, beside)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, w, bias, temperature, ctx.softcap, prior, live, index, q, column_weight, *rest = inputs
        fields, a, b, c, d, ctx.size, *ctx.wanted, beside = rest
        saved = x, w, bias, temperature, prior, live, index, q, column_weight, fields, beside, a, b, c, d
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *ups: Tensor | None) -> tuple[Tensor | None, ...]:
        given, pull = _again(ctx)
        sent = [(up, made) for up, made in zip(ups, _MADE, strict=True) if up is not None]
        if not sent:
            return (None,) * 20
        moves = [at > 2 and t is not None for at, t in enumerate(given)]
        pull = partial(pull, wanted=[up is not None for up in ups])

        def of_these(*here: Tensor | None) -> tuple[Tensor, ...]:
            of, cotangents = here[: len(given)], [up for up in here[len(given) :] if up is not None]
            return pulled(pull, of, moves, cotangents)

        by_row, made = [*_BY_ROW, *(by for _, by in sent)], [by for by, t in zip(_BY_ROW, moves, strict=True) if t]
        found = iter(in_chunks(of_these, [*given, *(up for up, _ in sent)], by_row, made, abs(ctx.size) // PLAIN))
        by_input = [
            None if t is None or not move else next(found).to(t.dtype) for t, move in zip(given, moves, strict=True)
        ]
        return *by_input[3:6], *(None,) * 8, *by_input[7:], *(None,) * 4, by_input[6]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        return one_by_one(_gradients().apply, info.batch_size, in_dims, inputs), (0, 0, 0)


class _GradientsForward(_Gradients):
    """The same with a forward derivative."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        refuse_nested_forward()
        given, pull = _again(ctx)
        pull = partial(pull, wanted=ctx.wanted)

        def of_these(*both: Tensor | None) -> tuple[Tensor, ...]:
            return pushed(pull, both[: len(given)], both[len(given) :])

        along = [None, None, None, *tangents[:3], tangents[-1], *tangents[11:15]]
        made = [by for by, need in zip(_MADE, ctx.wanted, strict=True) if need]
        found = iter(in_chunks(of_these, [*given, *along], _BY_ROW * 2, made, abs(ctx.size) // PLAIN))
        x = ctx.saved_tensors[0]
        return tuple(next(found).to(x.dtype) if need else x.new_empty(0) for need in ctx.wanted)


_BY_ROW = [True, True, True, True, False, False, False, True, True, True, True]
"""What of (live, index, q, x, w, bias, beside, a, b, c, d) has a row for each row of logits; and of (dx, dw, db):"""
_MADE = [True, False, False]


def _again(ctx: Any) -> tuple[list[Tensor | None], Any]:
    """(live, index, q, x, w, bias, beside, a, b, c, d), and the gradients of some rows as a function of these.

    In plain torch, that can be gone through again.
    """
    x, w, bias, temperature, prior, live, index, q, column_weight, _, beside, *cotangents = ctx.saved_tensors
    link = link_of(temperature, ctx.softcap, prior)

    def gradients(
        live: Tensor | None,
        index: Tensor | None,
        q: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        beside: Tensor | None,
        a: Tensor,
        *bcd: Tensor | None,
        wanted: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        x, learned = _read(x, live), slice(0 if beside is None else w.shape[1], None)
        w = w if beside is None else torch.cat([w, beside], -1)
        made = torch.nn.functional.linear(x, w, bias)
        z = linked(link, made).unsqueeze(-1)
        share = None if q is None else q.reshape(z.shape)
        dz = reference.differentiable_pull(z, live, index, share, column_weight, a, *bcd).squeeze(-1)
        dz = back_through(link, made, dz)
        found = dz @ w, dz.T @ x[:, learned], dz.sum(0)
        return tuple(d for d, there in zip(found, wanted, strict=True) if there)

    return [live, index, q, x, w, bias, beside, *cotangents], gradients


def _read(x: Tensor, live: Tensor | None) -> Tensor:
    """Hidden states with zeros in the rows that are not to be read."""
    return x if live is None else torch.where(live.unsqueeze(-1), x, 0.0)


def _or_zeros(t: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if t is None else t


def _kind() -> Any:
    """The function to apply, as ``rows`` chooses it."""
    return _Statistics if is_compiled() else _StatisticsForward


def _gradients() -> Any:
    return _Gradients if is_compiled() else _GradientsForward


# --- the statistics of a head's rows, and its losses --------------------------------------------------------------


def row_stats(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    beside: Tensor | None = None,
) -> Stats:
    """What ``loss`` reads of every row of x @ w.T + bias against its target; see ``rows.row_stats``.

    A frozen w (v, d) may have columns ``beside`` it (v, r), for the last r numbers of x.
    """
    prior = temperature = softcap = None
    if link is not None:
        softcap, prior = None if link.softcap is None else float(link.softcap), link.bias
        temperature = torch.as_tensor(link.temperature, dtype=reference.wide(x), device=x.device)

    def read(*what: Any) -> tuple[Tensor, ...]:
        return _kind().apply(x, w, bias, temperature, softcap, prior, target.live, *what, size, beside)

    return stats_of(read, w.shape[0], target, loss)


def row_numbers(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    beside: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row, and all statistics of the one pass that it took; see ``rows.row_numbers``."""
    if columns.is_trained(link):
        with torch.no_grad():
            s = row_stats(x, w, bias, target, AndNumbers(NLL()), link, size, beside)
        w = w if beside is None else torch.cat([w, beside], -1)
        return through_link(s, x, w, bias, target, loss, link, size)
    if columns.needs_columns(target, loss, link):  # the loss from its columns, all else from one more reading
        value, _ = row_losses(x, w, bias, target, loss, link, abs(size), beside=beside)
        return value, row_stats(x, w, bias, target, AndNumbers(NLL()), link, size, beside)
    s = row_stats(x, w, bias, target, AndNumbers(loss), link, size, beside)
    return loss(s), s


def through_link(
    s: Stats,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    read: Any = numbers_of_logits,
) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row and the statistics s again, with gradients for a link that is trained.

    Such a link moves every logit, so that these are ``columns``, two numbers of a row at a time; ``read(z, target,
    loss, link)`` gives loss and statistics of a few rows of logits.
    """

    def loss_and_nll(*rows: Any) -> tuple[Tensor, Tensor]:
        value, s = read(*rows)
        return value, s.nll[:, 0]

    def lse_and_entropy(*rows: Any) -> tuple[Tensor, Tensor]:
        s = read(*rows)[1]
        return s.lse, s.entropy

    of = partial(row_losses, x, w, bias, target, loss, link, abs(size))
    (value, nll), (lse, entropy) = of(loss_and_nll), of(lse_and_entropy)
    assert nll is not None
    return value, replace(s, nll=nll.unsqueeze(-1), lse=lse, entropy=entropy)


def row_losses(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    read: Any = of_logits,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(loss, weight) of every row of logits x @ w.T + bias, as ``rows.row_losses`` gives them.

    ``read(z, target, loss, link)`` gives them of a few rows of logits; whoever brings another one reads columns.
    """
    if read is of_logits and not columns.needs_columns(target, loss, link):
        return losses_of(row_stats(x, w, bias, target, loss, link, size, beside), target, loss)
    w = w if beside is None else torch.cat([w, beside], -1)
    return columns.row_losses(x, w, bias, target.live, columns.columns_of(target, loss, link, read), size)
