"""Tensors as kernels see them: a flat array and strides, so that no layout is copied; and memory for gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.compute.backends.cpu import reuse

# How a kernel tells 16-bit floats apart: by the integers that carry their bits.
_CARRIED = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_ARRAY = {torch.float64: np.float64, torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.int16}


ALIGNED = 64  # bytes of a cache line, and of the widest register


class Strided(NamedTuple):
    """A tensor (n, v, inner): element (i, j, k) is data[i · sn + j · sv + k · si]."""

    data: NDArray
    n: int
    v: int
    inner: int
    sn: int
    sv: int
    si: int


def values(x: Tensor) -> NDArray:
    """The numbers of a tensor as an array that shares its memory; 16-bit floats as the integers that carry them."""
    x = x.detach() if x.requires_grad else x
    return (x.view(_CARRIED[x.dtype]) if x.dtype in _CARRIED else x).numpy()


def strided(x: Tensor) -> Strided:
    """A tensor (n, v, inner) of any layout, without a copy."""
    shape, steps, array = x.shape, x.stride(), values(x)
    if not array.flags.c_contiguous:
        extent = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True)) if x.numel() else 0
        array = values(x.as_strided((extent,), (1,)))
    return Strided(array.reshape(-1), *shape, *steps)


def gradient_like(z: Tensor) -> Tensor:
    """Memory for the gradient of z, of its shape, dtype and (where it has no holes) strides.

    Of what is used again (``reuse``), or of numpy, which asks the system for large pages: a fresh page costs more than
    the arithmetic done on it, and torch takes small ones (LOG.md). Aligned as torch's own is: products into numpy's, 16
    bytes off, take half as long again in 16 bits.
    """
    size = z.numel() * z.element_size()
    memory = reuse.memory(size + ALIGNED)
    first = -memory.ctypes.data % ALIGNED
    memory = memory[first : first + size].view(_ARRAY[z.dtype])
    made = torch.from_numpy(memory.reshape(z.shape) if z.is_contiguous() else memory)
    made = made.view(z.dtype) if z.dtype in _CARRIED else made
    return made if z.is_contiguous() else made.as_strided(z.shape, torch.empty_like(z, device="meta").stride())


def worked_in(x: Tensor) -> Any:
    """The dtype in which a kernel works out rows of x."""
    return np.float64 if x.dtype == torch.float64 else np.float32
