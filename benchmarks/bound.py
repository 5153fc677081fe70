"""What forward and backward cannot avoid, and the time it takes on this machine at this moment.

Autograd calls the backward after the whole forward, when the first rows have long left the cache. So whatever the
kernel, the logits and the targets pass through the processor twice and the gradient once:

    bytes = 2 (logits + targets) + gradient

A label is 8 bytes for a row of V logits, next to nothing; dense soft targets are as large as the logits. And the
softmax of n logits is n exponentials. (A kernel that keeps nothing between the passes takes 2n; keeping them would
cost a write and a read. One of each logit is what nobody gets below.)

Two yardsticks run among the variants, in the same rounds, so that a busy machine slows them all alike:

    copy    the logits into a buffer that exists: reads and writes n logits, hence bytes per second
    exp     of a block of float32 that stays in cache, into another: exponentials per second

The bound is the longer of the two times: a perfect kernel does one behind the other. It is no law. Logits that fit
into the last cache may beat it, and so would a faster exponential than torch's. What it leaves out on purpose is the
price of fresh memory: a gradient is a new array, whose pages the system hands out one by one. ``logits.clone()`` pays
that price as well, and stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 262_144  # exponentials in the yardstick: 1 MiB in, 1 MiB out


@dataclass(frozen=True)
class Bound:
    """Bytes and exponentials of one forward and backward."""

    bytes: int
    exps: int

    def milliseconds(self, bytes_per_ms: float, exps_per_ms: float) -> float:
        """The least time at these two rates."""
        return max(self.bytes / bytes_per_ms, self.exps / exps_per_ms)


def bound(z: Tensor, target: Tensor) -> Bound:
    """What logits z and their target cost at the least; the gradient is as large as z."""
    return Bound(bytes=2 * (z.nbytes + target.nbytes) + z.nbytes, exps=z.numel())


class Copy:
    """Copies the logits into a buffer that was written before."""

    def __init__(self, z: Tensor):
        self.source, self.buffer = z, z.clone()

    def __call__(self) -> Tensor:
        return self.buffer.copy_(self.source)

    @property
    def bytes(self) -> int:
        """Read and written by one call."""
        return 2 * self.source.nbytes


class Exp:
    """Takes the exponential of a block that stays in cache."""

    def __init__(self) -> None:
        self.source, self.buffer = torch.linspace(-8, 0, BLOCK), torch.zeros(BLOCK)

    def __call__(self) -> Tensor:
        return torch.exp(self.source, out=self.buffer)
