"""The memory of a head: fresh for what is given away, kept from call to call for what is worked in.

A fresh page costs as much as the arithmetic that is done on it, and on a virtual machine, which may have to ask its
host for it, now a little and now ten times as much (docs/decisions/016). So the memory of a chunk of logits, if it is
no more than ``KEPT``, is kept for the next call's. In training that takes no more than the call itself does: a loss is
computed when the activations of the whole network are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

from crossent.compute import backends
from crossent.compute.linear.budget import BUDGET

KEPT = BUDGET
LARGE = 2**27
"""Bytes from which memory comes in torch's small pages; see ``room``."""
_ALIGNED = 64

_kept: list[np.ndarray] = []  # arrays, since a tensor that was made in inference mode stays what it is


@contextmanager
def borrowed(like: Tensor, *shape: int) -> Iterator[Tensor]:
    """Memory that somebody has written to before, of the dtype of ``like``, until the end of the block.

    Whoever asks meanwhile, a thread or a loss that has a head of its own inside, gets other memory: what is lent is not
    in the list, and taking from it and putting back are one step each under the interpreter's lock.
    """
    needed = prod(shape) * like.element_size()
    if like.device.type != "cpu" or not 0 < needed <= KEPT:
        yield room(like, *shape)
        return
    try:
        memory = _kept.pop()
    except IndexError:
        memory = np.empty(0, np.uint8)
    if memory.size < needed + _ALIGNED:
        memory = np.empty(needed + _ALIGNED, np.uint8)
    first = -memory.ctypes.data % _ALIGNED
    try:
        yield torch.from_numpy(memory[first : first + needed]).view(like.dtype).view(shape)
    finally:
        if not _kept:
            _kept.append(memory)


def forget() -> None:
    """Give back what is kept."""
    _kept.clear()


def room(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that nobody has written to, in large pages where the backend knows how to get them, unless it is LARGE.

    Large pages cost a third of small ones if they were in use a moment ago. A virtual machine that has given them back
    to its host, after two seconds, may wait for them twenty times as long (LOG.md); and a head with so large a gradient
    has steps that take seconds.
    """
    dtype = like.dtype if dtype is None else dtype
    backend = backends.of(like)
    if not hasattr(backend, "gradient_like") or prod(shape) * dtype.itemsize > LARGE:
        return like.new_empty(shape, dtype=dtype)
    return backend.gradient_like(torch.empty(shape, dtype=dtype, device="meta"))
