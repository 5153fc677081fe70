"""Rows of logits z = x wᵀ + bias, a few at a time in the same memory, and the way back of their gradient.

    dx = dz w        dw = dzᵀ x        db = Σ dz

Only rows that count are made: the others are left out before the first product, and cost nothing.

Narrow numbers. Logits have the dtype of the hidden states, as those of ``F.linear``, and so has their gradient. The
head's gradient is added up over the chunks in float32 (float64 for float64), and rounded once: products of 16-bit
numbers are exact in float32. If there is but one chunk, the product adds up inside itself, in float32 again, and there
is no sum to be kept. A processor without instructions for a dtype takes five to seventy times as long for its products
as for those of float32; there all operands are widened, a block of the head's rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from crossent.compute import backends
from crossent.compute.linear.budget import BUDGET, ON_A_GPU

BLOCK = 1024
"""Classes of a block of the head, at least: enough for a product at full speed, and few enough for the cache."""
WIDENED = 2**21
"""Numbers of a block that is widened to float32: 8 MiB, so that they are multiplied while in cache."""
LARGE = 2**30
"""Bytes above which memory comes in torch's small pages; see ``room``."""
GATHERED = 2**21
"""Numbers of the rows that are gathered at a time: 8 MiB of float32, which stay in cache."""

Rows = slice | Tensor


@dataclass(frozen=True)
class Chunk:
    """Rows ``at`` of the batch: their hidden states x (m, d) and logits z (m, v), which may be written over."""

    at: Rows
    x: Tensor
    z: Tensor


@dataclass
class Product:
    """The rows of x (n, d) that ``keep`` names, all for None, times the head w (v, d), ``size`` of them at a time.

    Where it was not worth waiting to hear which rows count, ``live`` tells, and zeros are read in the others.

    If the memory of the head's gradient has room for the logits of all rows, and what a chunk may take for the rest,
    they are made in ``blocks`` of classes (``linear.blocks``): whoever makes logits of this product makes them in these
    blocks, so that their bits are the same.

    A frozen head may have columns ``beside`` it (v, r), which are learned, as LoRA's are; x then is (n, d + r). Each
    part has a product of its own, so that nobody copies the head.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None
    keep: Tensor | None
    size: int
    live: Tensor | None = None
    beside: Tensor | None = None
    chunks: int = field(init=False)
    blocks: list[slice] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.x.shape[0] if self.keep is None else self.keep.shape[0]
        v, d = self.w.shape
        most = self.size * v
        self.chunks = -(-rows // self.size)
        self.size = -(-rows // max(1, self.chunks))  # as even as may be
        self.blocks = [slice(0, v)]
        fits = rows <= d and 2 * BLOCK * rows + max(v, GATHERED) <= most
        at_once = self.x.device.type == "cpu" and self.x.dtype in (torch.float32, torch.float64)
        if at_once and self.beside is None and self.chunks > 1 and v >= 2 * BLOCK and fits:
            self.blocks = [slice(start, start + BLOCK) for start in range(0, v - BLOCK + 1, BLOCK)]
            self.blocks[-1] = slice(self.blocks[-1].start, v)  # a block of one class would be another kind of product

    def __iter__(self) -> Iterator[Chunk]:
        rows = self.x.shape[0] if self.keep is None else self.keep.shape[0]
        memory = room(self.x, self.size, self.w.shape[0])
        for span in spans(rows, self.size):
            at = span if self.keep is None else self.keep[span]
            x = self.x[at]
            z = memory[: x.shape[0]]
            if self.live is not None:
                x = torch.where(self.live[at].unsqueeze(-1), x, 0.0)
            self._logits(x, z)
            yield Chunk(at, x, z)

    def _logits(self, x: Tensor, z: Tensor) -> None:
        if _is_native(x):
            for block in self.blocks:
                self.logits_of(block, x, z[:, block])
            return
        x, more = (part.float() for part in self.parts(x))
        for block, w in _widened(self.w):
            made = x @ w.T if self.bias is None else torch.addmm(self.bias[block].float(), x, w.T)
            z[:, block] = made if self.beside is None else made.addmm_(more, self.beside[block].float().T)

    def logits_of(self, block: slice, x: Tensor, z: Tensor) -> None:
        """The logits z (m, b) of a block of classes."""
        x, more = self.parts(x)
        if self.bias is None:
            torch.mm(x, self.w[block].T, out=z)
        else:
            torch.addmm(self.bias[block], x, self.w[block].T, out=z)
        if self.beside is not None:
            z.addmm_(more, self.beside[block].T)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states of the head, and those of what is beside it."""
        width = self.w.shape[1]
        return x[:, :width], x[:, width:]

    @property
    def learned(self) -> Tensor:
        """The part of the head that may have a gradient."""
        return self.w if self.beside is None else self.beside


@dataclass
class Gradients:
    """The gradients of hidden states, head and bias, as chunks add to them; only what is wanted is worked out."""

    product: Product
    wanted: tuple[bool, bool, bool]
    dx: Tensor | None = None
    dw: Tensor | None = None
    db: Tensor | None = None

    def __post_init__(self) -> None:
        x, w = self.product.x, self.product.learned
        sums = torch.float64 if w.dtype == torch.float64 else torch.float32
        once = self.product.chunks == 1 and _is_native(x)
        if self.wanted[0]:
            self.dx = room(x, *x.shape)
            if self.product.keep is not None or not self.product.chunks:
                self.dx.zero_()
        if self.wanted[1]:
            self.dw = room(w, *w.shape, dtype=w.dtype if once else sums)
            if not self.product.chunks:
                self.dw.zero_()
        if self.wanted[2]:
            self.db = torch.zeros(w.shape[0], dtype=sums, device=w.device)
        self._first = True

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks whose gradients are to be added, each before the next is asked for."""
        return iter(self.product)

    def add(self, chunk: Chunk, dz: Tensor) -> None:
        """Add what the gradient dz (m, v) of a chunk's logits contributes."""
        x, w = chunk.x, self.product.learned
        if self.db is not None:
            self.db += dz.sum(0, dtype=self.db.dtype)
        if self.dx is not None and self.product.beside is not None:
            both = self.product.w, self.product.beside
            made = [dz @ part if _is_native(x) else _times(dz, part) for part in both]
            self.dx[chunk.at] = torch.cat(made, -1).to(x.dtype)
        elif self.dx is not None:
            if isinstance(chunk.at, slice) and _is_native(x):
                torch.mm(dz, w, out=self.dx[chunk.at])
            else:
                self.dx[chunk.at] = (dz @ w if _is_native(x) else _times(dz, w)).to(x.dtype)
        if self.dw is not None:
            x = x if self.product.beside is None else self.product.parts(x)[1]
            if dz.dtype == self.dw.dtype or _adds_up_wide(dz.device):
                _add(self.dw, dz, x, self._first)
            else:
                x = x.to(self.dw.dtype)
                columns = max(1, WIDENED // max(1, dz.shape[0]))
                for start in range(0, w.shape[0], columns):
                    block = slice(start, start + columns)
                    _add(self.dw[block], dz[:, block].to(self.dw.dtype), x, self._first)
        self._first = False

    def rounded(self, factor: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three, times a factor, in the dtypes of what they are gradients of; they are held here no longer."""
        of = self.product.x, self.product.learned, self.product.bias
        if factor is not None and factor.device.type == "cpu" and float(factor) == 1.0:
            factor = None
        found = []
        for name, x in zip(("dx", "dw", "db"), of, strict=True):
            d = getattr(self, name)
            setattr(self, name, None)
            found.append(None if d is None or x is None else _times_rounded(d, factor, x.dtype))
        return found[0], found[1], found[2]


def spans(rows: int, size: int) -> list[slice]:
    """Rows 0 … rows, ``size`` of them at a time."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, max(1, size))]


def rows_at_once(x: Tensor, w: Tensor, rows: int, size: int) -> int:
    """All rows in one chunk, where that takes no more memory than the float32 sum it spares.

    A head of 16 bits needs 4 · v · d bytes for that sum, unless there is but one chunk; 2 · n · v for all logits are
    less up to n = 2 d, and the products stay in 16 bits, twice as fast.
    """
    if x.device.type == "cuda":
        size = max(size, ON_A_GPU // (w.shape[0] * x.element_size()))
    narrow = x.element_size() == 2 and x.device.type in ("cpu", "cuda") and _is_native(x)
    fits = 2 * rows * w.shape[0] <= 4 * w.numel() + BUDGET
    return max(size, rows) if narrow and fits else size


def rows_kept(live: Tensor | None) -> Tensor | None:
    """The rows that count, None for all: found on the CPU only, since another device would have to be waited for."""
    if live is None or live.device.type != "cpu" or bool(live.all()):
        return None
    return live.nonzero().flatten()


def _add(total: Tensor, dz: Tensor, x: Tensor, first: bool) -> None:
    """total += dzᵀ x; the first time, total holds nothing yet. It may be float32 where dz and x are not."""
    wide: dict[str, Any] = {} if dz.dtype == total.dtype else {"out_dtype": total.dtype}
    if first:
        torch.mm(dz.T, x, out=total, **wide)
    else:
        torch.addmm(total, dz.T, x, out=total, **wide)


@cache
def _adds_up_wide(device: torch.device) -> bool:
    """Whether products of 16-bit matrices can be added to a float32 one there, as the device itself does inside."""
    if device.type != "cuda":
        return False
    narrow, wide = torch.zeros(8, 8, dtype=torch.bfloat16, device=device), torch.zeros(8, 8, device=device)
    try:
        _add(wide, narrow, narrow, True)
        _add(wide, narrow, narrow, False)
    except (RuntimeError, TypeError):  # torch before 2.10
        return False
    return True


def _times_rounded(d: Tensor, factor: Tensor | None, dtype: torch.dtype) -> Tensor:
    if factor is not None and d.dtype != dtype and d.device.type != "cpu":
        return torch.mul(d, factor, out=torch.empty_like(d, dtype=dtype))  # in one pass over memory
    d = d if factor is None else d.mul_(factor)
    return d if d.dtype == dtype else room(d, *d.shape, dtype=dtype).copy_(d)


def _times(dz: Tensor, w: Tensor) -> Tensor:
    """dz w in float32, of operands for which the processor has no instructions."""
    total = dz.new_zeros((dz.shape[0], w.shape[1]), dtype=torch.float32)
    for block, wide in _widened(w):
        total.addmm_(dz[:, block].float(), wide)
    return total


def _widened(w: Tensor) -> Iterator[tuple[slice, Tensor]]:
    rows = max(1, WIDENED // max(1, w.shape[1]))
    for start in range(0, w.shape[0], rows):
        block = slice(start, start + rows)
        yield block, w[block].float()


def _is_native(x: Tensor) -> bool:
    """Whether the device multiplies matrices of this dtype with instructions made for it."""
    if x.device.type != "cpu" or x.dtype in (torch.float32, torch.float64):
        return True
    known = torch.ops.mkldnn
    return known._is_mkldnn_bf16_supported() if x.dtype == torch.bfloat16 else known._is_mkldnn_fp16_supported()


def room(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of any content, of what is used again where the backend keeps such, unless it is LARGE.

    What is not kept comes in small pages. Fresh large ones cost a third of these if they were in use a moment ago; but
    a virtual machine that has given them back to its host, after two seconds, may wait for them twenty times as long
    (LOG.md), and a head with so large a gradient has steps that take seconds.
    """
    dtype = like.dtype if dtype is None else dtype
    backend = backends.of(like)
    if not hasattr(backend, "gradient_like") or prod(shape) * dtype.itemsize > LARGE:
        return like.new_empty(shape, dtype=dtype)
    return backend.gradient_like(torch.empty(shape, dtype=dtype, device="meta"))
