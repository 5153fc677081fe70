"""Rows of losses that look at the columns themselves: any function of a few rows of logits, differentiated by autograd.

``Brier`` and ``Hinge`` read the logits; a soft target under a loss that is not linear in its nll has every column for a
target; a link that is trained moves every logit; a teacher's divergence reads two rows; a head that is spread over
machines talks to the others. All of them are a function of a chunk of logits and of a few tensors more, called forwards
for its value and backwards once more, for its gradient. Whatever among those tensors is trained has a gradient too.

Second derivatives and forward ones are those of the chunk in plain torch, from two backward passes through it. A
compiler, which does not see through an autograd function of functions, gets an operator and the function as a text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.linear.blocks import gradients_of
from crossent.compute.linear.budget import LINKED, rows_at_a_time
from crossent.compute.linear.derivative import in_chunks, one_by_one, pulled, pushed
from crossent.compute.linear.operators import at_rows, by_itself, lift_of, product_of
from crossent.compute.linear.product import Rows
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss, tensors_of, with_tensors
from crossent.compute.rows import is_compiled, is_learned, refuse_nested_forward
from crossent.compute.rows import row_losses as of_logits
from crossent.compute.target import Target

OfRows = Callable[..., tuple[Tensor, Tensor | None]]
"""(logits (m, v), which of them count (m,) or None for all, tensors …) → (loss, weight) of each row."""

TWICE = 4
"""How many times the memory of a chunk its second derivatives take: chunks have so many times fewer rows there."""


@dataclass(frozen=True)
class Columns:
    """What is made of a few rows of logits: ``of(z, live, *by_row, *whole)``.

    ``by_row`` are tensors with a row for each row of logits, ``whole`` those that all rows share.
    """

    of: OfRows
    by_row: tuple[Tensor | None, ...] = ()
    whole: tuple[Tensor | None, ...] = ()

    def at(self, rows: Rows) -> tuple[Tensor | None, ...]:
        """The tensors of some rows."""
        return (*at_rows(rows, *self.by_row), *self.whole)

    @property
    def in_step(self) -> bool:
        """Whether rows ask other ranks, so that all have to make the same chunks, however wide their columns are."""
        return getattr(self.of, "in_step", False)


_OF_LINK = ("temperature", "softcap", "bias")


@dataclass(frozen=True)
class _OfTarget:
    """Rows of logits → (loss, weight), by ``read(z, target, loss, link)``; what is a tensor is given with the rows."""

    loss: Loss
    link: Link | None
    unchecked: bool
    read: Any

    @property
    def in_step(self) -> bool:
        """Whoever brings a ``read`` of its own may ask other ranks in it."""
        return self.read is not of_logits

    def __call__(
        self,
        z: Tensor,
        live: Tensor | None,
        index: Tensor | None,
        weight: Tensor | None,
        row_weight: Tensor | None,
        *held: Any,
    ) -> tuple[Tensor, Tensor | None]:
        given = iter(held)
        loss = with_tensors(self.loss, given)
        fields: Any = {name: field for name, field in zip(_OF_LINK, given, strict=True) if field is not None}
        link = None if self.link is None else replace(self.link, **fields)
        return self.read(z, Target(index, weight, live, row_weight, self.unchecked), loss, link)


def columns_of(target: Target, loss: Loss, link: Link | None, read: Any = of_logits) -> Columns:
    """A loss as such a function; ``read(z, target, loss, link)`` gives (loss, weight) of rows that are there."""
    of_link = (getattr(link, name, None) for name in _OF_LINK)
    tensors = (x if isinstance(x, Tensor) else None for x in of_link)
    of = _OfTarget(loss, link, target.unchecked, read)
    return Columns(of, (target.index, target.weight, target.row_weight), (*tensors_of(loss), *tensors))


def needs_columns(target: Target, loss: Loss, link: Link | None = None) -> bool:
    """Whether the loss of a row is more than a function of its statistics, as many as there are targets."""
    if "logits" in loss.reads or (is_learned(loss.class_weight) and "uniform" in loss.reads):
        return True
    if is_trained(link) or (link is not None and isinstance(link.softcap, Tensor)):
        return True
    dense = target.index is None
    return dense and (not loss.linear or is_learned(target.weight) or is_learned(loss.class_weight))


def is_trained(link: Link | None) -> bool:
    """Whether someone asks for the derivative by a field of the link."""
    fields = () if link is None else (link.temperature, link.softcap, link.bias)
    return any(isinstance(x, Tensor) and is_learned(x) for x in fields)


def chunk_size(
    budget: int | str | None,
    chunk_rows: int | None,
    x: Tensor,
    w: Tensor,
    target: Target,
    loss: Loss,
    link: Link | None,
) -> int:
    """How many rows to make at a time; negative where nobody asked for a size, so that it may be made larger."""
    if needs_columns(target, loss, link):
        return rows_at_a_time(budget, chunk_rows, w.shape[0], LINKED)
    size = rows_at_a_time(budget, chunk_rows, w.shape[0], x.element_size() if link is None else LINKED)
    return size if link is not None or budget is not None or chunk_rows is not None else -size


def target_at(target: Target, rows: Rows) -> Target:
    """The targets of some rows; where only those that count were chosen, nothing says so any more."""
    live = target.live if target.live is not None and target.live.device.type != "cpu" else None
    return replace(target, live=live)[rows]


def row_losses(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, columns: Columns, size: int
) -> tuple[Tensor, Tensor]:
    """(loss, weight) of every row of logits x @ w.T + bias; both are 0 in rows that are not live."""
    if is_compiled():
        from crossent.compute.linear import compiled

        return compiled.row_losses(x, w, bias, live, columns, size)
    return _Losses.apply(columns.of, len(columns.by_row), size, live, x, w, bias, *columns.by_row, *columns.whole)


def gradient_of(
    columns: Columns,
    z: Tensor,
    live: Tensor | None,
    rows: Rows,
    g: Tensor,
    h: Tensor | None = None,
    wanted: tuple[bool, ...] = (),
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Losses of some rows of logits z, the gradient of z, and those of the tensors that are ``wanted``.

    g is the cotangent of the losses, h that of their weights.
    """
    with by_itself():
        z, given = z.detach().requires_grad_(), list(columns.at(rows))
        leaves = [z]
        for at, need in enumerate(wanted):
            tensor = given[at]
            if need and tensor is not None:
                given[at] = tensor = tensor.detach().requires_grad_()
                leaves.append(tensor)
        value, weight = columns.of(z, live, *given)
        sent = [(value, g)] if weight is None or h is None else [(value, g), (weight, h)]
        sent = [(out, up) for out, up in sent if out.requires_grad]
        found: Any = [None] * len(leaves)
        if sent:
            found = torch.autograd.grad([out for out, _ in sent], leaves, [up for _, up in sent], allow_unused=True)
    dz, *others = found
    each = iter(others)
    return value.detach(), torch.zeros_like(z) if dz is None else dz, [next(each) if need else None for need in wanted]


# --- autograd around the chunks -----------------------------------------------------------------------------------


class _Losses(torch.autograd.Function):
    """(loss, weight) of every row; ``tensors`` are those of ``Columns``, ``count`` of them by row."""

    @staticmethod
    def forward(
        of: OfRows,
        count: int,
        size: int,
        live: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        columns = Columns(of, tensors[:count], tensors[count:])
        value = torch.zeros(x.shape[0], dtype=wide(x), device=x.device)
        weight = torch.zeros_like(value)
        product = product_of(x, w, bias, live, size)
        for chunk in product:
            value[chunk.at], of_row = of(chunk.z, *at_rows(chunk.at, product.live), *columns.at(chunk.at))
            weight[chunk.at] = value.new_ones(()) if of_row is None else of_row
        return value, weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.of, ctx.count, ctx.size, *given = inputs
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:
        live, *given = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        made = _Gradients.apply(ctx.of, ctx.count, ctx.size, wanted, live, g, h, *given)
        return *(None,) * 4, *(d if need else None for d, need in zip(made, wanted, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        refuse_nested_forward()
        given = ctx.saved_tensors
        push = partial(_pushed, partial(_losses, ctx.of))
        by_row = _by_row("yynn", given, ctx.count)
        return tuple(in_chunks(push, [*given, *tangents[3:]], by_row * 2, (True, True), ctx.size // TWICE))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        return one_by_one(_Losses.apply, info.batch_size, in_dims, inputs), (0, 0)


class _Gradients(torch.autograd.Function):
    """The gradients of x, w, bias and the tensors from the cotangents of losses and weights; empty if not wanted."""

    @staticmethod
    def forward(
        of: OfRows,
        count: int,
        size: int,
        wanted: tuple[bool, ...],
        live: Tensor | None,
        g: Tensor,
        h: Tensor,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        columns = Columns(of, tensors[:count], tensors[count:])
        product = product_of(x, w, bias, live, size)
        gradients = gradients_of(product, wanted[:3], columns.in_step)  # type: ignore[arg-type]
        lift = lift_of(x.dtype, *at_rows(slice(None) if product.keep is None else product.keep, g))
        others: list[Any] = [
            torch.zeros_like(t, dtype=wide(x)) if t is not None and need else None
            for t, need in zip(tensors, wanted[3:], strict=True)
        ]
        for chunk in gradients:
            (alive,) = at_rows(chunk.at, product.live)
            ups = g[chunk.at] * lift, h[chunk.at] * lift
            _, dz, by_tensor = gradient_of(columns, chunk.z, alive, chunk.at, *ups, wanted[3:])
            gradients.add(chunk, dz)
            for at, d in enumerate(by_tensor):
                if d is not None:
                    others[at][chunk.at if at < count else ...] += d
        found = [*gradients.rounded(None if lift == 1.0 else torch.tensor(1.0 / lift))]
        for d, t in zip(others, tensors, strict=True):
            found.append(None if d is None or t is None else (d / lift).to(t.dtype))
        return tuple(x.new_empty(0) if d is None else d for d in found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.of, ctx.count, ctx.size, ctx.wanted, *given = inputs
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)

    @staticmethod
    def backward(ctx: Any, *ups: Tensor) -> tuple[Tensor | None, ...]:
        given, wanted = ctx.saved_tensors, ctx.wanted
        moves = [False, True, True, *(t is not None for t in given[3:6]), *wanted[3:]]
        by_row, made = _by_row("yyyynn", given, ctx.count), _by_row("ynn", ups, ctx.count)
        sent = [up for up, need in zip(ups, wanted, strict=True) if need]

        def pull(*all_: Tensor | None) -> tuple[Tensor, ...]:
            here, ups_here = all_[: len(given)], all_[len(given) :]
            return pulled(partial(_gradients, ctx.of, wanted), here, moves, ups_here)  # type: ignore[arg-type]

        found = iter(
            in_chunks(
                pull,
                [*given, *sent],
                [*by_row, *_those(made, wanted)],
                _those(by_row, moves),
                ctx.size // TWICE,
            )
        )
        by_input = (next(found).to(t.dtype) if move else None for t, move in zip(given, moves, strict=True))
        return *(None,) * 4, *by_input

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        refuse_nested_forward()
        given, wanted = ctx.saved_tensors, ctx.wanted
        push = partial(_pushed, partial(_gradients, ctx.of, wanted))
        by_row, made = _by_row("yyyynn", given, ctx.count), _by_row("ynn", wanted, ctx.count)
        moved = in_chunks(push, [*given, *tangents[4:]], by_row * 2, _those(made, wanted), ctx.size // TWICE)
        found, leaves = iter(moved), given[3:]
        return tuple(
            next(found).to(t.dtype) if need else given[3].new_empty(0) for t, need in zip(leaves, wanted, strict=True)
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        made = one_by_one(_Gradients.apply, info.batch_size, in_dims, inputs)
        return made, (0,) * len(made)


def _by_row(first: str, given: Any, count: int) -> list[bool]:
    """What is by row: the first as ``first`` says ("y" or "n"), then ``count`` tensors, and no other."""
    return [at < len(first) + count if at >= len(first) else first[at] == "y" for at in range(len(given))]


def _those(flags: Any, chosen: Any) -> list[bool]:
    return [flag for flag, there in zip(flags, chosen, strict=True) if there]


def _pushed(function: Any, *both: Tensor | None) -> tuple[Tensor, ...]:
    """``pushed`` of arguments followed by as many tangents."""
    half = len(both) // 2
    return pushed(function, both[:half], both[half:])


def _losses(
    of: OfRows, live: Tensor | None, x: Tensor, w: Tensor, bias: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loss, weight) of some rows, in plain torch from hidden states to losses."""
    x = x if live is None else torch.where(live.unsqueeze(-1), x, 0.0)
    value, weight = of(torch.nn.functional.linear(x, w, bias), live, *tensors)
    return value, torch.ones_like(value) if weight is None else weight


def _gradients(
    of: OfRows, wanted: tuple[bool, ...], live: Tensor | None, g: Tensor, h: Tensor, *given: Tensor | None
) -> tuple[Tensor, ...]:
    """Their gradients that are wanted, which can be gone through again."""
    return pulled(partial(_losses, of, live), given, wanted, (g, h))
