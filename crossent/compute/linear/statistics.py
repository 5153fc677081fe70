"""Rows of losses without logits: autograd around ``linear_part`` and ``linear_pull``, as ``rows`` is around theirs.

Forwards the rows are made and read; backwards they are made again, since the losses, which are plain torch on the
statistics, say only then what each row's gradient is multiplied by. Second derivatives (products with a Hessian) are
made chunk by chunk too, in plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.linear import columns
from crossent.compute.linear.operators import at_rows, back_through, linear_part, linear_pull, link_of, linked
from crossent.compute.linear.product import spans
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss
from crossent.compute.rows import (
    AndNumbers,
    is_compiled,
    is_learned,
    losses_of,
    refuse_nested_forward,
    stats_of,
)
from crossent.compute.rows import row_losses as of_logits
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
    ) -> tuple[Tensor, ...]:
        head, target = (x, w, bias, temperature, softcap, prior), (live, index, q, column_weight)
        fields, gap = linear_part(*head, *target, uniform, entropy, order, size)
        part = unpack(fields, gap, dense=q is not None, uniform=uniform, entropy=entropy)
        return fields, *(stat for stat in finish(part) if stat is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, w, bias, temperature, ctx.softcap, prior, live, index, q, column_weight, *rest = inputs
        ctx.uniform, ctx.entropy, _, ctx.size = rest
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, bias, temperature, prior, live, index, q, column_weight, output[0])
        ctx.save_for_forward(x, w, bias, temperature, prior, live, index, q, column_weight, output[0])

    @staticmethod
    def backward(ctx: Any, _: None, a: Tensor | None, b: Tensor | None, *rest: Tensor | None) -> tuple:
        x, w, bias, temperature, prior, live, index, q, column_weight, fields = ctx.saved_tensors
        given = iter(rest)
        c = next(given) if ctx.uniform else None
        d = next(given) if ctx.entropy else None
        if a is None:
            columns = 1 if q is not None else w.shape[0] if index is None else index.shape[1]
            a = fields.new_zeros(1, 1).expand(fields.shape[1], columns)
        c = fields.new_zeros(1).expand(fields.shape[1]) if ctx.uniform and c is None else c
        d = fields.new_zeros(1).expand(fields.shape[1]) if ctx.entropy and d is None else d
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]
        head = x, w, bias, temperature, ctx.softcap, prior
        made = _gradients().apply(*head, live, index, q, column_weight, fields, a, b, c, d, ctx.size, *wanted)
        return *(d if there else None for d, there in zip(made, wanted, strict=True)), *(None,) * 11

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        fields, *stats = _each(_kind().apply, info.batch_size, in_dims, inputs)
        return (fields, *stats), (0,) * (1 + len(stats))


class _StatisticsForward(_Statistics):
    """The same with a forward derivative, which torch.compile cannot see through."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple:
        refuse_nested_forward()
        x, w, bias, temperature, prior, live, index, q, column_weight, _ = ctx.saved_tensors
        link = link_of(temperature, ctx.softcap, prior)
        tx, tw, tb = tangents[:3]
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, target = (x, w, bias, temperature, softcap, prior), (live, index, q, column_weight)
        return linear_pull(*head, *target, fields, a, b, c, d, size, for_x, for_w, for_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, w, bias, temperature, ctx.softcap, prior, live, index, q, column_weight, *rest = inputs
        fields, a, b, c, d, ctx.size, *ctx.wanted = rest
        ctx.save_for_backward(x, w, bias, temperature, prior, live, index, q, column_weight, fields, a, b, c, d)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, bias, temperature, prior, live, index, q, column_weight, _, *cotangents = ctx.saved_tensors
        if all(t is None for t in g):
            return (None,) * 19
        link = link_of(temperature, ctx.softcap, prior)
        upstream = [t if wanted else None for t, wanted in zip(g, ctx.wanted, strict=True)]
        by_row: list[list[Tensor]] = []
        sums = torch.float64 if w.dtype == torch.float64 else torch.float32
        whole = [torch.zeros_like(t, dtype=sums) for t in (w, bias) if t is not None]
        for at in spans(x.shape[0], max(1, abs(ctx.size) // PLAIN)):
            alive, columns_, share = at_rows(at, live, index, q)
            again = _again(link, alive, columns_, share, column_weight, [t is not None for t in upstream])
            inputs = {"x": x[at], "w": w, "bias": bias, **dict(zip("abcd", at_rows(at, *cotangents), strict=True))}
            there = {name: t for name, t in inputs.items() if t is not None}

            def of_these(*given: Tensor, names: tuple = tuple(there), again: Any = again) -> tuple[Tensor, ...]:
                return again(**dict(zip(names, given, strict=True)))

            along = (upstream[0] if upstream[0] is None else upstream[0][at], *upstream[1:])
            moved = torch.func.vjp(of_these, *there.values())[1](tuple(t for t in along if t is not None))
            by_name = dict(zip(there, moved, strict=True))
            shared = [by_name.pop(name) for name in ("w", "bias") if name in by_name]
            whole = [d + more for d, more in zip(whole, shared, strict=True)]
            by_row.append(list(by_name.values()))
        dx, *others = (torch.cat(parts) for parts in zip(*by_row, strict=True))
        dw, db = whole[0].to(w.dtype), None if bias is None else whole[1].to(bias.dtype)
        given = iter(others)
        by_cotangent = (None if c is None else next(given) for c in cotangents)
        return dx, dw, db, *(None,) * 8, *by_cotangent, *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        return _each(_gradients().apply, info.batch_size, in_dims, inputs), (0, 0, 0)


class _GradientsForward(_Gradients):
    """The same where a forward derivative may be asked for: it is not there, and says so."""

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(
            "linear_cross_entropy has no forward derivative of its gradient (torch.func.hessian, jacfwd of grad): "
            "write torch.func.jacrev of torch.func.grad, or take the vjp of grad for a product with the Hessian."
        )


def _again(
    link: Link | None,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    wanted: list[bool],
) -> Any:
    """The gradients of some rows' hidden states, of head and bias, in plain torch that can be gone through again."""

    def gradients(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None = None,
        a: Tensor | None = None,
        b: Tensor | None = None,
        c: Tensor | None = None,
        d: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        assert a is not None
        x = _read(x, live)
        made = torch.nn.functional.linear(x, w, bias)
        z = linked(link, made).unsqueeze(-1)
        share = None if q is None else q.reshape(z.shape)
        dz = reference.differentiable_pull(z, live, index, share, column_weight, a, b, c, d).squeeze(-1)
        dz = back_through(link, made, dz)
        found = dz @ w, dz.T @ x, dz.sum(0)
        return tuple(d for d, there in zip(found, wanted, strict=True) if there)

    return gradients


def _read(x: Tensor, live: Tensor | None) -> Tensor:
    """Hidden states with zeros in the rows that are not to be read."""
    return x if live is None else torch.where(live.unsqueeze(-1), x, 0.0)


def _kind() -> Any:
    """The function to apply, as ``rows`` chooses it."""
    return _Statistics if is_compiled() else _StatisticsForward


def _gradients() -> Any:
    return _Gradients if is_compiled() else _GradientsForward


def _each(call: Any, batch: int, in_dims: tuple, inputs: tuple) -> tuple[Tensor, ...]:
    """What ``call`` gives for each element of the batch that vmap handed over, stacked."""

    def one(at: int) -> tuple[Tensor, ...]:
        given = zip(inputs, in_dims, strict=True)
        return call(*(x if dim is None or not isinstance(x, Tensor) else x.select(dim, at) for x, dim in given))

    return tuple(torch.stack(found) for found in zip(*(one(at) for at in range(batch)), strict=True))


# --- the statistics of a head's rows, and its losses --------------------------------------------------------------


def row_stats(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
) -> Stats:
    """What ``loss`` reads of every row of x @ w.T + bias against its target; see ``rows.row_stats``."""
    prior = temperature = softcap = None
    if link is not None:
        softcap, prior = link.softcap, link.bias
        temperature = torch.as_tensor(link.temperature, dtype=reference.wide(x), device=x.device)

    def read(*what: Any) -> tuple[Tensor, ...]:
        return _kind().apply(x, w, bias, temperature, softcap, prior, target.live, *what, size)

    return stats_of(read, w.shape[0], target, loss)


def row_numbers(
    x: Tensor, w: Tensor, bias: Tensor | None, target: Target, loss: Loss, link: Link | None, size: int
) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row, and all statistics of the one pass that it took; see ``rows.row_numbers``."""
    _refuse_learned(link)
    if columns.needs_columns(target, loss):
        raise NotImplementedError(
            f"{type(loss).__name__} looks at the logits themselves, and linear_row_numbers has none: "
            "use row_numbers(F.linear(input, linear_weight, linear_bias), target, …)."
        )
    s = row_stats(x, w, bias, target, AndNumbers(loss), link, size)
    return loss(s), s


def row_losses(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    size: int,
    read: Any = of_logits,
) -> tuple[Tensor, Tensor | None]:
    """(loss, weight) of every row of logits x @ w.T + bias, as ``rows.row_losses`` gives them.

    ``read(z, target, loss, link)`` gives them of a few rows of logits; whoever brings another one reads columns.
    """
    _refuse_learned(link)
    if read is of_logits and not columns.needs_columns(target, loss):
        return losses_of(row_stats(x, w, bias, target, loss, link, size), target, loss)
    _refuse_learned(target.weight, target.row_weight, loss.class_weight)

    def of_rows(z: Tensor, at: Any) -> tuple[Tensor, Tensor | None]:
        return read(z, columns.target_at(target, at), loss, link)

    return columns.row_losses(x, w, bias, target.live, of_rows, size)


def _refuse_learned(*knobs: Link | Tensor | None) -> None:
    fields: list[Any] = []
    for knob in knobs:
        fields += [knob.temperature, knob.bias] if isinstance(knob, Link) else [knob]
    if torch.is_grad_enabled() and any(isinstance(field, Tensor) and is_learned(field) for field in fields):
        raise ValueError(
            "without logits there is no gradient for a link, nor, under this loss, for targets and weights; one that "
            "requires it needs the logits themselves: use cross_entropy(F.linear(input, linear_weight), …), "
            "or detach it."
        )
