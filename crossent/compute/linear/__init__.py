"""The head and the loss in one: logits are made a few rows at a time, used, and forgotten.

One driver for every loss: matmul, ``rows``, loss; and backwards the same rows once more, with the gradient of the
logits turned into the gradients of hidden states, head and bias by two more matmuls.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.compute import rows
from crossent.compute.backends.reference import wide
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss
from crossent.compute.target import Target

CHUNK_BYTES = 64 * 2**20


def row_losses(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    target: Target,
    loss: Loss,
    link: Link | None,
    chunk_rows: int | None,
) -> tuple[Tensor, Tensor]:
    """(loss, weight) of every row of logits x @ w.T + bias, as ``rows.row_losses`` gives them."""
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // (w.shape[0] * x.element_size()))
    elif chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, and is {chunk_rows}.")
    if _learned(target, loss, link):
        raise ValueError(
            "linear_cross_entropy has gradients for input, linear_weight and linear_bias; a target, class weight or "
            "link that requires one needs the logits themselves: use cross_entropy(F.linear(input, linear_weight), …), "
            "or detach it."
        )
    return _Chunks.apply(x, w, bias, target, loss, link, chunk_rows)


def _learned(target: Target, loss: Loss, link: Link | None) -> bool:
    knobs = [target.weight, loss.class_weight, *(() if link is None else (link.temperature, link.bias))]
    return torch.is_grad_enabled() and any(isinstance(knob, Tensor) and knob.requires_grad for knob in knobs)


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        target: Target,
        loss: Loss,
        link: Link | None,
        chunk_rows: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w, bias)
        ctx.rest = target, loss, link, chunk_rows
        value = torch.empty(x.shape[0], dtype=wide(x), device=x.device)
        weight = torch.empty_like(value)
        for start, stop in _spans(x.shape[0], chunk_rows):
            z = _logits(x[start:stop], w, bias)
            value[start:stop], row_weight = rows.row_losses(z, target.slice(start, stop), loss, link)
            del z  # before the next chunk is made
            weight[start:stop] = 1.0 if row_weight is None else row_weight
        ctx.mark_non_differentiable(weight)
        return value, weight

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # Here create_graph=True would get a gradient that autograd takes for a constant: silently wrong.
            raise RuntimeError(
                "linear_cross_entropy has no second derivative (create_graph=True): "
                "use cross_entropy(F.linear(input, linear_weight, linear_bias), target) for that."
            )
        x, w, bias = ctx.saved_tensors
        target, loss, link, chunk_rows = ctx.rest
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        sums = torch.float64 if w.dtype == torch.float64 else torch.float32
        dx = torch.empty_like(x) if need_x else None
        dw = torch.zeros_like(w, dtype=sums) if need_w else None
        db = torch.zeros(w.shape[0], dtype=sums, device=w.device) if need_bias else None
        for start, stop in _spans(x.shape[0], chunk_rows):
            with torch.enable_grad():
                z = _logits(x[start:stop].detach(), w.detach(), bias).detach().requires_grad_()
                value = rows.row_losses(z, target.slice(start, stop), loss, link)[0]
                (dz,) = torch.autograd.grad(value, z, g[start:stop])
            if dx is not None:
                dx[start:stop] = dz @ w
            if dw is not None:
                # 16-bit operands are exact in float32, so the sum over rows and chunks is a float32 one throughout.
                dw.addmm_(dz.T.to(sums), x[start:stop].to(sums))
            if db is not None:
                db += dz.sum(0, dtype=sums)
            del z, value, dz  # before the next chunk is made
        return (
            dx,
            None if dw is None else dw.to(w.dtype),
            None if db is None else db.to(bias.dtype),
            *(None,) * 4,
        )


def _logits(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, w, bias)


def _spans(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]
