"""The one place where autograd meets the kernels: logits in, the statistics of every row out.

``_Rows`` calls a backend's ``part`` forwards and its ``pull`` backwards; everything above it (losses, targets,
reductions) is plain torch that autograd differentiates by itself. ``_Pull`` makes the backward differentiable in
its turn, through torch's own softmax, so that Hessians and gradient penalties work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats, finish
from crossent.compute.target import Target


class _Rows(torch.autograd.Function):
    """(nll, lse, uniform, entropy) of z (n, v), in the backend's wide dtype."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        z: Tensor, live: Tensor, index: Tensor | None, column_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return finish(reference.part(z, live, index, column_weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None, None]:
        z, live, index, column_weight = ctx.saved_tensors
        return _Pull.apply(z, live, index, column_weight, *cotangents), None, None, None


class _Pull(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        z: Tensor,
        live: Tensor,
        index: Tensor | None,
        column_weight: Tensor | None,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
    ) -> Tensor:
        return reference.pull(z, live, index, column_weight, a, b, c, d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, live, index, column_weight, *cotangents = ctx.saved_tensors

        def again(z: Tensor, *cotangents: Tensor) -> Tensor:
            return reference.differentiable_pull(z, live, index, column_weight, *cotangents)

        back = torch.func.vjp(again, z, *cotangents)[1]
        dz, *rest = back(g)
        return dz, None, None, None, *rest


def row_stats(z: Tensor, target: Target, class_weight: Tensor | None = None, link: Link | None = None) -> Stats:
    """The statistics of every row of z (n, v) against its target.

    Rows that are not live are never read, so that a NaN there reaches nothing and their gradient is exactly +0.
    """
    if link is not None:  # its own derivative at a NaN would be one, so here the selection comes first
        z = link(torch.where(target.live.unsqueeze(-1), z, 0.0).to(reference.wide(z)))
    nll, lse, uniform, entropy = _Rows.apply(z, target.live, target.index, class_weight)
    q = target.weight.to(nll.dtype)
    mass = q.sum(-1)
    if class_weight is not None:
        q = q * target.of_each_class(class_weight.to(nll.dtype))
    return Stats(nll=nll, q=q, mass=mass, lse=lse, uniform=uniform, entropy=entropy)


def row_losses(z: Tensor, target: Target, loss: Loss, link: Link | None = None) -> tuple[Tensor, Tensor]:
    """(loss, weight) of every row, both (n,): the weight is what a mean divides by, 1 unless classes are weighted.

    Rows that are not live have loss 0 and weight 0.
    """
    s = row_stats(z, target, loss.class_weight, link)
    value = torch.where(target.live, loss(s), 0.0)
    # The mean class weight under the target: w_y for a label, the same for its one-hot, 1 without class weights.
    weight = torch.where(s.mass == 0, 1.0, s.q.sum(-1) / torch.where(s.mass == 0, 1.0, s.mass))
    return value, torch.where(target.live, weight, 0.0)
