"""How rows lie in memory, and how a program of the GPU takes some of them: addresses, tiles, and their size for each V.

Logits (n, v, l) are rows (i, ·, j). They are seen here as ``outer`` groups of ``inner`` rows that lie a fixed step
apart, so that a tile of rows is a tile of memory: all rows in one group wherever the strides allow it (side by side,
channels last), one group for each i where they do not (channels first).

A thread can read 16 bytes at once only if the compiler knows that addresses are multiples of them. It looks at whole
arguments and knows those that 16 divides; a row of 1000 would be read one logit at a time. So what strides and v have
in common is taken out of them (``unit``) and multiplied back in inside the kernel, as a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, ROWS, NEITHER = 1, 2, 0  # along what neighbours in memory lie


@dataclass(frozen=True)
class Tile:
    """What one program reads at a time: ``rows`` of ``lanes`` columns, with so many warps of 32 threads."""

    rows: int
    lanes: int
    warps: int


def tile_of(v: int, inner: int, along: int) -> Tile:
    """The tile for rows of v columns.

    ``lanes`` decides in which order a row is added up, so it depends on v alone; how many rows stand beside each other,
    and how many threads share them, changes no bit. Up to 4096 columns are one tile, read once, 16 logits to a thread:
    more, and registers run out where a loss reads several statistics. Wider rows are read in steps of 8 logits to a
    thread, by as many threads as let the rows that are being worked on stay in the second-level cache, where their
    gradient finds them again: one row of 128k in bfloat16 for each of 132 multiprocessors is 34 MB.
    """
    if v > 4096:
        lanes = 2048 if v <= 32768 else 4096 if v <= 65536 else 8192
        return Tile(1, lanes, lanes // 256)
    lanes = max(2, triton.next_power_of_2(v))  # some versions of Triton fail to compile tiles of one column
    rows = max(1, 512 // lanes)
    if along == ROWS:  # a sector of memory holds 8 to 16 of them
        rows = max(rows, min(16, 8192 // lanes))
    rows = min(rows, triton.next_power_of_2(inner))
    return Tile(rows, lanes, max(1, rows * lanes // 512))


@dataclass(frozen=True)
class Layout:
    """Where the rows of some tensors (n, v, l) of one shape lie."""

    outer: int
    inner: int
    v: int
    unit: int
    strides: tuple[tuple[int, int, int], ...]
    """Of each tensor: from group to group, from column to column, from row to row."""

    def along(self, tensor: int) -> int:
        """Along what the neighbours in memory lie."""
        _, columns, rows = self.strides[tensor]
        return COLUMNS if columns == 1 else ROWS if rows == 1 else NEITHER

    def given(self, tensor: int) -> tuple[int, int, int, int]:
        """The strides as a kernel takes them, without the unit, and along what."""
        of_groups, columns, rows = self.strides[tensor]
        along = self.along(tensor)
        return (
            of_groups // self.unit,
            columns if along == COLUMNS else columns // self.unit,
            rows if along == ROWS else rows // self.unit,
            along,
        )

    @property
    def far(self) -> bool:
        """Whether offsets inside a row need 64 bits."""
        return any((self.v + 2 * 8192) * columns >= 2**31 for _, columns, _ in self.strides)


def layout_of(*tensors: Tensor) -> Layout:
    """The layout that tensors (n, v, l) of one shape have in common."""
    n, v, length = tensors[0].shape
    if length == 1:
        outer, inner, strides = 1, n, [(0, x.stride(1), x.stride(0)) for x in tensors]
    elif all(x.stride(0) == length * x.stride(2) for x in tensors) or n == 1:
        outer, inner, strides = 1, n * length, [(0, x.stride(1), x.stride(2)) for x in tensors]
    else:
        outer, inner, strides = n, length, [(x.stride(0), x.stride(1), x.stride(2)) for x in tensors]
    unit = 16
    for of_groups, columns, rows in strides:
        if columns == 1:
            unit = math.gcd(unit, of_groups, rows, v)
        elif rows == 1:
            unit = math.gcd(unit, of_groups, columns, inner)
        else:
            unit = math.gcd(unit, of_groups, columns, rows)
    return Layout(outer, inner, v, unit, tuple(strides))


def pointer(x: Tensor) -> Tensor:
    """A tensor as a kernel takes it: bool as the bytes that it is."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


# --- inside a kernel ------------------------------------------------------------------------------------------------


@triton.jit
def rows_of_program(blocks, inner, TILE: tl.constexpr):
    """(group, rows in it, whether they exist, their numbers) of this program; all in 64 bits."""
    program = tl.program_id(0)
    group = (program // blocks).to(tl.int64)
    row = (program % blocks).to(tl.int64) * TILE + tl.arange(0, TILE)
    return group, row, row < inner, group * inner + row


@triton.jit
def starts(x, group, row, of_groups, of_rows, UNIT: tl.constexpr, ALONG: tl.constexpr):
    """Where rows begin."""
    if ALONG == 2:
        return x + (group * of_groups * UNIT + row)
    else:
        return x + (group * of_groups + row * of_rows) * UNIT


@triton.jit
def places(row, column, of_columns, UNIT: tl.constexpr, ALONG: tl.constexpr, FAR: tl.constexpr):
    """Addresses (rows, columns)."""
    if ALONG == 1:
        return row[:, None] + column[None, :]
    elif FAR:
        return row[:, None] + (column.to(tl.int64) * of_columns * UNIT)[None, :]
    else:
        return row[:, None] + (column * of_columns * UNIT)[None, :]
