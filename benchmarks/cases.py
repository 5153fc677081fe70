"""What is timed: a kind of loss, as crossent's user writes it and as PyTorch's does, on logits of a shape and a dtype.

Logits are standard normal, labels uniform, and soft targets a softmax of other normals: timings hardly depend on the
values, and no row here is one on which PyTorch loses its digits (for those: benchmarks/accuracy.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import crossent
from crossent.compute.losses import Focal

Call = Callable[..., Tensor]
"""(logits, target) or (logits, target, pos_weight) to a mean loss."""

SHAPES = ((65_536, 10), (8192, 1000), (4, 21, 256, 256), (1024, 32_000), (256, 128_256))
ELEMENTS = (1_048_576,)
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Kind:
    """A loss written twice. ``dense`` targets are probabilities, of every class or of the element being class 1."""

    name: str
    crossent: Call
    torch: Call
    dense: bool = False
    binary: bool = False
    pos_weight: float | None = None


@dataclass(frozen=True)
class Case:
    """A kind on logits of one shape, (N, V) or (N, V, d1, …) or (elements,), and one dtype."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """As ``--only`` finds it: kind, shape, dtype."""
        return f"{self.kind.name} {self.shape} {str(self.dtype).removeprefix('torch.')}"

    @property
    def classes(self) -> int:
        """V; 2 for binary."""
        return 2 if self.kind.binary else self.shape[1]

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Logits, target and, for some binary kinds, pos_weight: the same for every variant."""
        g = torch.Generator().manual_seed(seed)
        z = torch.randn(self.shape, generator=g).to(self.dtype)
        rows = (self.shape[0], *self.shape[2:])
        if self.kind.binary and self.kind.dense:
            target = torch.rand(self.shape, generator=g).to(self.dtype)
        elif self.kind.binary:
            target = torch.randint(2, self.shape, generator=g).to(self.dtype)
        elif self.kind.dense:
            target = (2 * torch.randn(self.shape, generator=g)).softmax(1).to(self.dtype)
        else:
            target = torch.randint(self.classes, rows, generator=g)
        if self.kind.pos_weight is None:
            return z, target
        return z, target, torch.tensor(self.kind.pos_weight, dtype=self.dtype)

    @property
    def logits(self) -> int:
        """How many logits there are."""
        return math.prod(self.shape)


def focal(z: Tensor, y: Tensor) -> Tensor:
    """Focal loss with γ = 2 as it is usually put together."""
    ce = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


KINDS = (
    Kind("hard", crossent.cross_entropy, F.cross_entropy),
    Kind(
        "smoothed",
        lambda z, y: crossent.cross_entropy(z, y, label_smoothing=0.1),
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    ),
    Kind("soft", crossent.cross_entropy, F.cross_entropy, dense=True),
    Kind("focal", lambda z, y: crossent.cross_entropy(z, y, loss=Focal(2.0)), focal),
)

BINARY_KINDS = tuple(
    Kind(
        f"binary {target}{'' if c is None else ' pos_weight'}",
        lambda z, t, c=None: crossent.binary_cross_entropy_with_logits(z, t, pos_weight=c),
        lambda z, t, c=None: F.binary_cross_entropy_with_logits(z, t, pos_weight=c),
        dense=target == "soft",
        binary=True,
        pos_weight=c,
    )
    for target in ("hard", "soft")
    for c in (None, 3.0)
)

CASES = tuple(
    [Case(kind, shape, dtype) for kind in KINDS for shape in SHAPES for dtype in DTYPES]
    + [Case(kind, ELEMENTS, dtype) for kind in BINARY_KINDS for dtype in DTYPES]
)
