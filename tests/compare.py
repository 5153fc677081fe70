"""Comparing numbers with the truth, so that the comparison can fail.

Errors are counted in ulps of the truth's own size in the dtype under test. Every comparison of a gradient also
offers ``faults``: what a broken kernel would have returned. A test that uses them shows that it would have noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def ulps(got: Tensor, truth: list[float] | Tensor, scale: list[float] | Tensor | None = None) -> float:
    """The largest error in ulps of the truth (or of ``scale``); infinite where only one of the two is finite or NaN."""
    truth = torch.as_tensor(truth, dtype=torch.float64).reshape(got.shape)
    size = truth.abs() if scale is None else torch.as_tensor(scale, dtype=torch.float64).reshape(got.shape).abs()
    info = torch.finfo(got.dtype)
    got = got.double()
    same = (got == truth) | (got.isnan() & truth.isnan())
    # An ulp at x is eps · 2^floor(log2 x), and never smaller than the spacing of the subnormals.
    exponent = torch.floor(torch.log2(size.clamp(min=info.tiny)))
    ulp = torch.clamp(info.eps * torch.exp2(exponent), min=info.smallest_normal * info.eps)
    error = torch.where(same, 0.0, (got - truth).abs() / ulp)
    error = torch.where(error.isnan(), math.inf, error)
    return float(error.max()) if error.numel() else 0.0


def faults(gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What broken kernels return: every comparison must refuse all of these."""
    yield "zeroed", torch.zeros_like(gradient)
    yield "shifted by a column", gradient.roll(1, -1)
    yield "sign flipped", -gradient
    yield "scaled by 1 %", gradient * 1.01
    tail = gradient.clone()
    tail[..., -1] = 0
    yield "last column dropped", tail
    rows = gradient.clone()
    rows[-1] = 0
    yield "last row skipped", rows
