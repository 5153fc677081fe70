"""A head's gradients, a block of its classes at a time: the logits of all rows lie in the memory of its gradient.

In float32 and float64 the gradient dw (v, d) of the head has to be there in the end, and nothing is in it until the
logits have been used: it has room for d rows of them. So where there are no more,

1. the logits of every block of b classes are made, and lie where the gradient of that block, b · d numbers, will be;
2. a few rows at a time are gathered from all blocks, read, and their gradient put back in their place;
3. the gradient of a block's logits is copied out, dx += dz_b w_b is added up, and dw_b = dz_bᵀ x written over it.

These are the same three products. But none is added to memory that is not in cache (chunks of rows pass over all of dw
for each of them), every block of the head is read while the products need it, and fresh memory, which costs as much as
the arithmetic done on it, is hardly taken.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossent.compute.linear.product import GATHERED, Chunk, Gradients, Product, Rows, room, spans


def gradients_of(product: Product, wanted: tuple[bool, bool, bool], in_step: bool = False) -> Gradients:
    """What adds up the gradients of hidden states, head and bias: in blocks where there is memory for it.

    ``in_step`` asks for the chunks of the product, as many as every other rank makes: how many rows are gathered from
    blocks depends on how many columns this one holds.
    """
    in_blocks = wanted[1] and len(product.blocks) > 1 and not in_step
    return (BlockGradients if in_blocks else Gradients)(product, wanted)


class BlockGradients(Gradients):
    """Gradients whose chunks are a few rows gathered from the memory of ``dw``."""

    def __iter__(self) -> Iterator[Chunk]:
        product = self.product
        keep, v = product.keep, product.w.shape[0]
        self.x = product.x if keep is None else product.x[keep]
        self._make()
        few = max(1, min(product.size, GATHERED // v))
        memory = room(self.x, few, v)
        for span in spans(self.x.shape[0], few):
            z = memory[: span.stop - span.start]
            for there, here in self._places(span, z):
                here.copy_(there)
            self._span = span
            yield Chunk(self._rows(span), self.x[span], z)

    def add(self, chunk: Chunk, dz: Tensor) -> None:
        """Put the gradient dz (m, v) of a chunk's logits in their place."""
        if self.db is not None:
            self.db += dz.sum(0, dtype=self.db.dtype)
        for there, here in self._places(self._span, dz):
            there.copy_(here)

    def rounded(self, factor: Tensor | None = None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """All three, times a factor; see ``Gradients``."""
        if hasattr(self, "x"):
            self._multiply()
            del self.x
        return super().rounded(factor)

    def _make(self) -> None:
        """All logits, by the products that ``Product`` makes of a chunk of rows."""
        product = self.product
        # Each chunk's hidden states as it has them: products of memory that is aligned otherwise have other last bits.
        chunks = [(span, product.x[self._rows(span)]) for span in spans(self.x.shape[0], product.size)]
        for block in product.blocks:
            for span, x in chunks:
                product.logits_of(block, x, self._block(block)[span])

    def _multiply(self) -> None:
        """The gradient of the logits, block by block, times hidden states and head."""
        x, blocks = self.x, self.product.blocks
        assert self.dw is not None
        dx = None if self.dx is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
        memory = room(x, x.shape[0] * (blocks[-1].stop - blocks[-1].start))
        for block in blocks:
            width = block.stop - block.start
            dz = memory[: x.shape[0] * width].view(-1, width)
            dz.copy_(self._block(block))
            if dx is not None:
                dx.addmm_(dz, self.product.w[block])
            torch.mm(dz.T, x, out=self.dw[block])
        if self.dx is not None and dx is not None:
            self.dx[self._rows(slice(0, x.shape[0]))] = dx

    def _block(self, block: slice) -> Tensor:
        """The logits (rows, b) of a block, where its gradient will be."""
        assert self.dw is not None
        rows, width = self.x.shape[0], block.stop - block.start
        return self.dw[block].view(-1)[: rows * width].view(rows, width)

    def _places(self, span: slice, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the logits of some rows lie in the blocks and in z (m, v): all blocks of one width, and the last."""
        assert self.dw is not None
        last, d = self.product.blocks[-1], self.dw.shape[1]
        width = self.product.blocks[0].stop
        rows = span.stop - span.start
        first = self.dw.view(-1)[span.start * width :]
        alike = first.as_strided((rows, last.start // width, width), (width, width * d, 1))
        yield alike, z[:, : last.start].view(rows, -1, width)
        yield self._block(last)[span], z[:, last]

    def _rows(self, span: slice) -> Rows:
        return span if self.product.keep is None else self.product.keep[span]
