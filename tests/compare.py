"""Comparing numbers with the truth, so that the comparison can fail.

Errors are counted in ulps of the truth's own size in the dtype under test. Every comparison of a gradient also
offers ``faults``: what a broken kernel would have returned. A test that uses them shows that it would have noticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def ulps(got: Tensor, truth: list[float] | Tensor, scale: list[float] | Tensor | None = None) -> float:
    """The largest error in ulps of the truth (or of ``scale``); infinite where only one of the two is finite or NaN."""
    truth = torch.as_tensor(truth, dtype=torch.float64).reshape(got.shape)
    size = truth.abs() if scale is None else torch.as_tensor(scale, dtype=torch.float64).reshape(got.shape).abs()
    same = (got == truth) | (got.isnan() & truth.isnan())
    same |= got.isinf() & (got == truth.to(got.dtype))  # beyond the greatest number infinity is the rounded truth
    error = torch.where(same, 0.0, (got.double() - truth).abs() / ulp(size, got.dtype))
    error = torch.where(error.isnan(), math.inf, error)
    return float(error.max()) if error.numel() else 0.0


def ulp(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of this size: eps · 2^floor(log2 size), that of the subnormals at least."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(size.double().clamp(min=info.smallest_normal)).exponent - 1
    return info.eps * torch.exp2(exponent.double())


def bits(x: Tensor) -> Tensor:
    """The numbers of a tensor as integers: equal only where signs of zeros and NaN are equal too."""
    of_size = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.detach().contiguous().view(of_size[x.element_size()])


def faults(gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What broken kernels return: every comparison must refuse all of these."""
    yield "zeroed", torch.zeros_like(gradient)
    yield "shifted by a column", gradient.roll(1, -1)
    yield "sign flipped", -gradient
    yield "scaled by 1 %", gradient * 1.01
    tail = gradient.clone()
    tail[..., -1] = 0
    yield "last column dropped", tail
    tail = gradient.clone()
    tail[..., -7:] = 0  # what is left of a row by lanes of eight
    yield "tail of the last 7 columns dropped", tail
    rows = gradient.clone()
    rows[-1] = 0
    yield "last row skipped", rows
    yield "given to the next row", gradient.roll(1, 0)


def relatively(x: Any, y: Any) -> float:
    """The largest difference of two plain values beside what differs; infinite where more than floats do."""
    if isinstance(x, dict) and isinstance(y, dict):
        return max((relatively(x[key], y[key]) for key in x), default=0.0) if list(x) == list(y) else math.inf
    if isinstance(x, list) and isinstance(y, list):
        return max(map(relatively, x, y), default=0.0) if len(x) == len(y) else math.inf
    if isinstance(x, float) and isinstance(y, float) and x != y:
        return abs(x - y) / max(abs(x), abs(y))
    return 0.0 if x == y else math.inf
