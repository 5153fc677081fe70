"""Binary and multi-label: every element is a row of two columns, the logits (0, z).

So the same statistics and the same losses serve. With p = sigmoid(z) the two cross-entropies are
-log p = log(1 + e^-z) and -log(1 - p) = log(1 + e^z), each max(±z, 0) + log1p(e^-|z|), which loses no digit at
either end and has no clamp: p = 0 at a label of 1 costs infinity, and its logit's gradient stays -1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from crossent.compute import backends, operators
from crossent.compute.backends import reference
from crossent.compute.backends.reference import wide
from crossent.compute.rows import along_tangents, bound_quickly, is_compiled, refuse_nested_forward
from crossent.compute.stats import Stats
from crossent.compute.target import visible


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
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return _pull(z, *cotangents)


class _ElementsForward(_Elements):
    """The same with a forward derivative, which torch.compile cannot see through."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_nested_forward()
        (z,) = ctx.saved_tensors
        z, t = z.to(wide(z)), tangent.to(wide(tangent))
        p, q = torch.sigmoid(z), torch.sigmoid(-z)
        curvature = torch.where(z.isinf(), 0.0, p * q * torch.where(z.isinf(), 0.0, z))
        return torch.stack((-q * t, p * t), -1), p * t, -curvature * t


@bound_quickly
class _Costs(torch.autograd.Function):
    """What most calls need and no more: the cost (n,) of logits z (n,) against shares, or its sums over blocks."""

    @staticmethod
    def forward(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
        return operators.elements(z, share, pos_weight, smoothing, summed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.smoothing, ctx.summed = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _slopes().apply(*ctx.saved_tensors, ctx.smoothing, a), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return _costs().apply(*_folded(info.batch_size, in_dims, inputs)).unflatten(0, (info.batch_size, -1)), 0


class _CostsForward(_Costs):
    """The same with a forward derivative."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        refuse_nested_forward()
        z, share, pos_weight = ctx.saved_tensors
        moved = reference.pull_elements(z.to(wide(z)), share, pos_weight, ctx.smoothing, tangent.to(wide(z)))
        return reference.in_blocks(moved) if ctx.summed else moved


@bound_quickly
class _Slopes(torch.autograd.Function):
    """The gradient of z from the cotangents a (n,)."""

    @staticmethod
    def forward(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: Tensor) -> Tensor:
        return operators.pull_elements(z, share, pos_weight, smoothing, a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.smoothing, a = inputs
        ctx.save_for_backward(*tensors, a)
        ctx.save_for_forward(*tensors, a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        again, z, a = _slopes_again(ctx)
        dz, da = torch.func.vjp(again, z, a)[1](g)
        return dz, None, None, None, da

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return _slopes().apply(*_folded(info.batch_size, in_dims, inputs)).unflatten(0, (info.batch_size, -1)), 0


class _SlopesForward(_Slopes):
    """The same with a forward derivative."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        refuse_nested_forward()
        again, z, a = _slopes_again(ctx)
        along = [torch.zeros_like(x) if t is None else t for t, x in ((tangents[0], z), (tangents[-1], a))]
        return along_tangents(again, [z, a], along)


class _Number(torch.autograd.Function):
    """Their sum, divided, with the gradient made while the elements are in cache: ``number`` tells of that."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        share: Tensor,
        pos_weight: Tensor | None,
        smoothing: float,
        divisor: float,
        dtype: torch.dtype,
        check: bool,
    ) -> Tensor:
        ctx.smoothing, ctx.divisor = smoothing, divisor
        ctx.save_for_backward(z, share, pos_weight)
        costs, ctx.dz = backends.of(z).both_elements(z, share, pos_weight, smoothing, 1.0 / divisor, check)
        return torch.tensor(float(costs.sum()) / divisor, dtype=dtype, device=z.device)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.dz = ctx.dz, None  # given away once: whoever accumulates gradients may keep it without a copy
        if made is not None and not torch.is_grad_enabled() and visible(g) and float(g) == 1.0:
            return made, *(None,) * 6
        z, share, pos_weight = ctx.saved_tensors
        a = (g.to(wide(z)) / ctx.divisor).expand(z.shape)
        return _slopes().apply(z, share, pos_weight, ctx.smoothing, a), *(None,) * 6


def _slopes_again(ctx: Any) -> tuple[Any, Tensor, Tensor]:
    """The gradient in plain torch, as a function of what it can be differentiated by."""
    z, share, pos_weight, a = ctx.saved_tensors
    smoothing = ctx.smoothing
    return lambda z, a: reference.pull_elements(z, share, pos_weight, smoothing, a), z, a


def _costs() -> Any:
    return _Costs if is_compiled() else _CostsForward


def _slopes() -> Any:
    return _Slopes if is_compiled() else _SlopesForward


def _folded(batch: int, in_dims: tuple, inputs: tuple) -> Any:
    """What vmap handed over, with the batch folded into the elements; weights that repeat go on repeating."""
    pairs = [(x, at) for x, at in zip(inputs, in_dims, strict=True) if isinstance(x, Tensor)]
    length = max(x.shape[-1] if at is None else x.movedim(at, 0).shape[1] for x, at in pairs)
    for position, (value, at) in enumerate(zip(inputs, in_dims, strict=True)):
        if not isinstance(value, Tensor) or (position == 2 and at is None):
            yield value
        elif position == 2:
            yield value.movedim(at, 0).repeat(1, length // (value.numel() // batch)).flatten()
        else:
            spread = value.unsqueeze(0) if at is None else value.movedim(at, 0)
            yield spread.expand(batch, spread.shape[1]).flatten()


def _pull(z: Tensor, a: Tensor, b: Tensor, d: Tensor) -> Tensor:
    """The gradient of z: -a₁ (1 - p) + a₀ p + b p - d p (1 - p) z; plain torch, so differentiable again."""
    dtype = z.dtype
    z = z.to(wide(z))
    p, q = torch.sigmoid(z), torch.sigmoid(-z)  # both tails exact; 1 - p would lose the small one
    curvature = torch.where(z.isinf(), 0.0, p * q * torch.where(z.isinf(), 0.0, z))
    return (a[..., 1] * p - a[..., 0] * q + b * p - d * curvature).to(dtype)


def element_stats(z: Tensor, target: Tensor, pos_weight: Tensor | None = None) -> Stats:
    """The statistics of logits z (n,) against the share ``target`` (n,) in [0, 1] that is class 1.

    ``pos_weight`` (n,), or a shorter one that repeats, multiplies the weight of class 1, as in PyTorch; in the uniform
    distribution too, as class weights do in a row of many columns.
    """
    z = z.to(wide(z))  # a loss may read the logits too: two gradients are added up, and rounded once
    nll, lse, entropy = (_Elements if is_compiled() else _ElementsForward).apply(z)
    one = target.to(nll.dtype)
    weight = torch.ones_like(nll)
    if pos_weight is not None:
        positive = pos_weight.to(nll.dtype).repeat(lse.shape[0] // max(1, pos_weight.shape[0]))
        weight = torch.stack((positive, torch.ones_like(lse)), -1)
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
        logits=torch.stack((torch.zeros_like(z), z), -1),
    )


def element_number(
    z: Tensor,
    target: Tensor,
    pos_weight: Tensor | None,
    smoothing: float,
    divisor: float,
    dtype: torch.dtype,
    refuse: Callable[[], None] | None = None,
) -> Tensor | None:
    """Σ ``element_losses`` / divisor with its gradient from one reading, or None where it takes the ordinary way.

    ``refuse`` is called if a share that is read is not in [0, 1]; if it is None nobody looks.
    """
    wanted = z.requires_grad and torch.is_grad_enabled() and torch.autograd.forward_ad._current_level < 0
    if not wanted or not hasattr(backends.of(z), "both_elements"):
        return None
    value = _Number.apply(z, _share(z, target), pos_weight, smoothing, divisor, dtype, refuse is not None)
    if refuse is not None and math.isnan(value.detach()):
        refuse()
    return value


def element_losses(z: Tensor, target: Tensor, pos_weight: Tensor | None, smoothing: float, *, summed: bool) -> Tensor:
    """The negative log-likelihood (n,) of logits z (n,) against the share ``target`` (n,), moved towards ½.

    ``summed`` asks for sums over blocks of elements, for a caller who adds them up anyway.

    ``pos_weight`` repeats, as in ``element_stats``. The same number as the NLL of ``element_stats``, in one pass.
    """
    positive = None if pos_weight is None else pos_weight.detach()
    return _costs().apply(z, _share(z, target), positive, smoothing, summed)


def _share(z: Tensor, target: Tensor) -> Tensor:
    return target if target.is_floating_point() else target.to(z.dtype)
