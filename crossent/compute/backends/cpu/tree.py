"""How much is worked on at a time, and the order in which a wide row is summed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import kernel
from crossent.compute.backends.cpu.views import shaped

LANES = 128  # sums of a wide row: those of column mod LANES, joined as a fixed tree
TILE = 256  # narrow rows side by side
STRETCH = 4096  # columns of a wide row whose powers are made, and then added up, while they are in the first cache
FOUR = 4  # columns of a tile that are added up in one go: their sums are fetched and put back once


@kernel
def copy(x: NDArray, into: NDArray) -> None:
    """As many numbers of x as there is room for, in its dtype. (To assign a slice takes several times as long.)"""
    for t in range(into.size):
        into[t] = x[t]


@kernel
def tree_sum(lanes: NDArray, tree: NDArray) -> float:
    """Σ lanes, always in the same order; ``tree`` (LANES,) is to work in."""
    half = LANES // 2
    for j in range(half):
        tree[j] = lanes[j] + lanes[j + half]
    while half > 1:
        half //= 2
        for j in range(half):
            tree[j] += tree[j + half]
    return tree[0]


@kernel
def in_blocks(row: NDArray, size: int) -> tuple[NDArray, NDArray]:
    """The whole blocks of a row, (blocks, size), and what is left of it.

    (Indices into two dimensions cost nothing.)
    """
    whole = row.size // size
    return shaped(row, (whole, size)), row[whole * size :]


@kernel
def add_pairs(row: NDArray, lanes: NDArray) -> None:
    """Each number of a row to its lane, in pairs: j and j + LANES of a block of both are added first, as they are."""
    blocks, tail = in_blocks(row, 2 * LANES)
    for b in range(blocks.shape[0]):
        for j in range(LANES):
            lanes[j] += np.float64(blocks[b, j] + blocks[b, j + LANES])
    pairs = max(0, tail.size - LANES)
    for j in range(pairs):
        lanes[j] += np.float64(tail[j] + tail[j + LANES])
    for j in range(pairs, min(tail.size, LANES)):
        lanes[j] += np.float64(tail[j])


@kernel
def in_fours(tile: NDArray) -> tuple[NDArray, NDArray]:
    """The columns of a tile four by four, (fours, FOUR, TILE), and what is left of them, (rest, TILE)."""
    whole = tile.shape[0] // FOUR * FOUR
    return shaped(tile, (whole // FOUR, FOUR, TILE)), tile[whole:]


@kernel
def add_row(row: NDArray, lanes: NDArray) -> None:
    """Each number of a row to its lane, in float64."""
    blocks, tail = in_blocks(row, LANES)
    for b in range(blocks.shape[0]):
        for j in range(LANES):
            lanes[j] += np.float64(blocks[b, j])
    for j in range(tail.size):
        lanes[j] += np.float64(tail[j])
