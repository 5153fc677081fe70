"""Binary and multi-label: every element is a row of two columns, the logits (0, z).

So the same statistics and the same losses serve. With p = sigmoid(z) the two cross-entropies are
-log p = log(1 + e^-z) and -log(1 - p) = log(1 + e^z), each max(±z, 0) + log1p(e^-|z|), which loses no digit at
either end and has no clamp: p = 0 at a label of 1 costs infinity, and its logit's gradient stays -1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.stats import Stats


class _Elements(torch.autograd.Function):
    """nll (n, 2) of the classes 1 and 0, and lse, entropy (n,), of z (n,)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.to(wide(z))
        tail = torch.log1p(torch.exp(-z.abs()))
        one, zero = (-z).clamp(min=0) + tail, z.clamp(min=0) + tail
        bounded = z.isfinite()
        spread = torch.where(bounded, torch.sigmoid(z) * one + torch.sigmoid(-z) * zero, torch.where(z.isnan(), z, 0.0))
        return torch.stack((one, zero), -1), zero, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return _pull(z, *cotangents)


def _pull(z: Tensor, a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """The gradient of z: -a₁ (1 - p) + a₀ p + b p - d p (1 - p) z; plain torch, so differentiable again."""
    dtype = z.dtype
    z = z.to(wide(z))
    p, q = torch.sigmoid(z), torch.sigmoid(-z)  # both tails exact; 1 - p would lose the small one
    curvature = torch.where(z.isinf(), 0.0, p * q * torch.where(z.isinf(), 0.0, z))
    return (a[..., 1] * p - a[..., 0] * q + b * p - d * curvature).to(dtype)


def element_stats(z: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Stats:
    """The statistics of logits z (n,) against the share ``target`` (n,) in [0, 1] that is class 1.

    ``pos_weight`` (n,) multiplies the weight of class 1, as in PyTorch; in the uniform distribution too, as class
    weights do in a row of many columns.
    """
    nll, lse, entropy = _Elements.apply(z)
    one = target.to(nll.dtype)
    weight = torch.ones_like(nll)
    if pos_weight is not None:
        weight = torch.stack((pos_weight.to(nll.dtype), torch.ones_like(lse)), -1)
    return Stats(
        nll=nll,
        q=torch.stack((one, 1 - one), -1) * weight,
        mass=torch.ones_like(lse),
        lse=lse,
        classes=2,
        uniform=(weight * nll).mean(-1),
        entropy=entropy,
        count=torch.full_like(lse, 2.0),
        index=torch.tensor([1, 0], device=z.device).expand_as(nll),
        logits=torch.stack((torch.zeros_like(z), z), -1).to(nll.dtype),
    )
