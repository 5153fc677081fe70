"""Rows of losses that look at the columns themselves: any function of a few rows of logits, differentiated by autograd.

``Brier`` and ``Hinge`` read the logits; a soft target under a loss that is not linear in its nll has every column for a
target; a teacher's divergence reads two rows; a head that is spread over machines talks to the others. All of them are
a function of a chunk of logits, called forwards for its value and backwards once more, for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.linear.budget import LINKED, rows_at_a_time
from crossent.compute.linear.operators import by_itself, product_of
from crossent.compute.linear.product import Gradients, Rows
from crossent.compute.losses.algebra import Loss
from crossent.compute.rows import is_learned
from crossent.compute.target import Target, visible

OfRows = Callable[[Tensor, Rows], tuple[Tensor, Tensor | None]]
"""Logits (m, v) and which rows they are → (loss, weight) of each."""


def needs_columns(target: Target, loss: Loss) -> bool:
    """Whether the loss of a row is more than a function of its statistics, as many as there are targets."""
    if "logits" in loss.reads or (is_learned(loss.class_weight) and "uniform" in loss.reads):
        return True
    dense = target.index is None
    return dense and (not loss.linear or is_learned(target.weight) or is_learned(loss.class_weight))


def chunk_size(
    budget: int | str | None, chunk_rows: int | None, x: Tensor, w: Tensor, target: Target, loss: Loss, link: Any
) -> int:
    """How many rows to make at a time; negative where nobody asked for a size, so that it may be made larger."""
    plain_torch = link is not None or needs_columns(target, loss)
    size = rows_at_a_time(budget, chunk_rows, w.shape[0], LINKED if plain_torch else x.element_size())
    return size if plain_torch or budget is not None or chunk_rows is not None else -size


def counting(target: Target) -> Target:
    """The same, with rows of no weight counted among those that are not read: their loss is 0, whatever it is."""
    if target.row_weight is None:
        return target
    weighty = target.row_weight.detach() != 0
    live = weighty if target.live is None else target.live & weighty
    return Target(target.index, target.weight, live, target.row_weight, target.unchecked)


def target_at(target: Target, rows: Rows) -> Target:
    """The targets of some rows; where only those that count were chosen, nothing says so any more."""
    live = target.live if target.live is not None and target.live.device.type != "cpu" else None
    return replace(target, live=live)[rows]


def row_losses(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, of_rows: OfRows, size: int
) -> tuple[Tensor, Tensor]:
    """(loss, weight) of every row of logits x @ w.T + bias; both are 0 in rows that are not live."""
    if not visible(x) or not visible(w):
        raise NotImplementedError(
            "this loss looks at the logits themselves, and without them it can neither be compiled nor go through "
            "torch.func: call cross_entropy(F.linear(input, linear_weight, linear_bias), target, …) there."
        )
    return _Columns.apply(x, w, bias, live, of_rows, size)


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, of_rows: OfRows, size: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w, bias)
        ctx.live, ctx.of_rows, ctx.size = live, of_rows, size
        value = torch.zeros(x.shape[0], dtype=wide(x), device=x.device)
        weight = torch.zeros_like(value)
        for chunk in product_of(x, w, bias, live, size):
            value[chunk.at], of_row = of_rows(chunk.z, chunk.at)
            weight[chunk.at] = value.new_ones(()) if of_row is None else of_row
        ctx.mark_non_differentiable(weight)
        return value, weight

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Here create_graph=True would get a gradient that autograd takes for a constant: silently wrong.
            raise RuntimeError(
                "linear_cross_entropy has no second derivative (create_graph=True) of a loss that looks at the logits "
                "themselves: use cross_entropy(F.linear(input, linear_weight, linear_bias), target, …) for that."
            )
        x, w, bias = ctx.saved_tensors
        product = product_of(x, w, bias, ctx.live, ctx.size)
        gradients = Gradients(product, ctx.needs_input_grad[:3])
        for chunk in product:
            gradients.add(chunk, gradient_of(ctx.of_rows, chunk.z, chunk.at, g[chunk.at])[1])
        return *gradients.rounded(), None, None, None


def gradient_of(of_rows: OfRows, z: Tensor, rows: Rows, g: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of some rows of logits z, and their gradient from the cotangents g."""
    with by_itself():
        z = z.detach().requires_grad_()
        value = of_rows(z, rows)[0]
        if not value.requires_grad:
            return value, torch.zeros_like(z)
        (dz,) = torch.autograd.grad(value, z, g)
    return value.detach(), dz
