"""The reference backend: plain torch, in float64, rounded once at the end. The others are held to it.

``part`` reads the columns once; ``pull`` turns the cotangents (a, b, c, d) of (nll, lse, uniform, entropy) into
the gradient of the logits. With p = softmax(z), A = Σ_k a_k and α_j = the sum of the a_k whose target is column j:

    dz_j = (A - α_j) p_j + α_j (p_j - 1)              against the targets; p_j - 1 is expm1(-nll_j), never p_j - 1
         + b p_j                                      lse
         + c (measure p_j - u_j) / count              uniform
         + d p_j (nll_j - entropy)                    entropy

float64 is what makes float32 exact: the difference z_j - peak and the sum of 256k exponentials are then right
far below a float32 ulp. A device without float64 (Apple's GPU) works in float32 and keeps fewer digits.

Rows are worked through in blocks that stay in a processor's cache: the dozen float64 copies that plain torch makes on
the way would otherwise each be fresh pages of memory, which cost more than the arithmetic (six times, LOG.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.compute.stats import Part

BLOCK = 2**18


def wide(z: Tensor) -> torch.dtype:
    """The dtype in which rows are worked out: float64 wherever the device has it."""
    return torch.float32 if z.device.type == "mps" else torch.float64


def part(z: Tensor, live: Tensor, index: Tensor | None, column_weight: Tensor | None) -> Part:
    """Read the rows of z (n, v): the part of all columns, ``hit`` at index (n, k), or everywhere if that is None.

    A row that is not live (n,) is not read: zeros stand in for it.
    """
    blocks = [_part(_read(rows, alive), at, column_weight) for rows, alive, at in _blocks(z, z, live, index)]
    if len(blocks) == 1:
        return blocks[0]
    return Part(*(torch.cat(field) for field in zip(*(vars(block).values() for block in blocks), strict=True)))


def _part(z: Tensor, index: Tensor | None, column_weight: Tensor | None) -> Part:
    peak, first = z.max(-1)
    below = z - peak.unsqueeze(-1)
    power = torch.exp(below)
    allowed = z != -torch.inf
    bounded = torch.where(allowed, below, 0.0)  # 0 · -inf = 0 in the two sums that multiply by it
    u = _column_weights(allowed, column_weight, z.dtype)
    return Part(
        peak=peak,
        rest=power.scatter(-1, first.unsqueeze(-1), 0.0).sum(-1) + (peak - peak),  # NaN rows stay NaN
        hit=z if index is None else z.gather(-1, index),
        total=(u * bounded).sum(-1),
        dot=(power * bounded).sum(-1),
        count=allowed.sum(-1).to(z.dtype),
        measure=u.sum(-1),
    )


def pull(
    z: Tensor,
    live: Tensor,
    index: Tensor | None,
    column_weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> Tensor:
    """The gradient of z (n, v) from the cotangents a (n, k) and b, c, d (n,); in z's dtype, rounded once.

    Rows that are not live get exactly +0, by selection.
    """
    blocks = [
        _pull(rows, alive, at, column_weight, *cotangents)
        for rows, alive, at, *cotangents in _blocks(z, z, live, index, a, b, c, d)
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _pull(
    z: Tensor,
    live: Tensor,
    index: Tensor | None,
    column_weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> Tensor:
    dtype = z.dtype
    z = _read(z, live)
    s = _part(z, index, column_weight)
    mass = (1 + s.rest).unsqueeze(-1)
    power = torch.exp(z - s.peak.unsqueeze(-1))
    p = power / mass
    nll = (s.peak.unsqueeze(-1) - z) + torch.log1p(s.rest).unsqueeze(-1)
    alpha = _of_each_column(a, index, z)
    allowed = z != -torch.inf
    u = _column_weights(allowed, column_weight, z.dtype)
    entropy = torch.log1p(s.rest) - s.dot / (1 + s.rest)

    dz = (a.sum(-1, keepdim=True) - alpha) * p + alpha * torch.expm1(-nll)
    dz = dz + b.unsqueeze(-1) * p
    dz = dz + (c / s.count).unsqueeze(-1) * (s.measure.unsqueeze(-1) * p - u)
    surprise = torch.where(p == 0, 0.0, nll) - entropy.unsqueeze(-1)
    dz = dz + d.unsqueeze(-1) * p * surprise
    return torch.where(live.unsqueeze(-1), dz, 0.0).to(dtype)


def differentiable_pull(
    z: Tensor,
    live: Tensor,
    index: Tensor | None,
    column_weight: Tensor | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
) -> Tensor:
    """The same gradient from torch's softmax, for autograd to go through again: right, if not to the last digit."""
    dtype = z.dtype
    z = _read(z, live)
    log_p = torch.log_softmax(z, -1)
    p = log_p.exp()
    allowed = z != -torch.inf
    u = _column_weights(allowed, column_weight, z.dtype)
    count = allowed.sum(-1).to(z.dtype)
    alpha = _of_each_column(a, index, z)
    nll = -torch.where(allowed, log_p, 0.0)
    entropy = (p * nll).sum(-1, keepdim=True)
    dz = (a.sum(-1, keepdim=True) + b.unsqueeze(-1)) * p - alpha
    dz = dz + (c / count).unsqueeze(-1) * (u.sum(-1, keepdim=True) * p - u)
    dz = dz + d.unsqueeze(-1) * p * (nll - entropy)
    return torch.where(live.unsqueeze(-1), dz, 0.0).to(dtype)


def _read(z: Tensor, live: Tensor) -> Tensor:
    return torch.where(live.unsqueeze(-1), z, 0.0).to(wide(z))


def _blocks(z: Tensor, *tensors: Tensor | None) -> list[tuple]:
    """The tensors cut into the same blocks of rows, about BLOCK logits each; a compiler makes its own."""
    rows = max(1, BLOCK // max(1, z.shape[-1]))
    if torch.compiler.is_compiling() or z.shape[0] <= rows:
        return [tensors]
    starts = range(0, z.shape[0], rows)
    return [tuple(None if t is None else t[i : i + rows] for t in tensors) for i in starts]


def _column_weights(allowed: Tensor, column_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """u: 0 where a column is not allowed, else 1 or its class weight."""
    return allowed.to(dtype) if column_weight is None else allowed * column_weight.to(dtype)


def _of_each_column(a: Tensor, index: Tensor | None, z: Tensor) -> Tensor:
    """α: the cotangents of the targets (n, k), added up at the columns (n, v) they belong to."""
    return a if index is None else torch.zeros_like(z).scatter_add(-1, index, a.to(z.dtype))
