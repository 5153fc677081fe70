"""Soft targets over all columns, summed up while a row is read: the mean of peak - z under them, and their sums.

One class alone is a label, to the bit: its mean is its own peak - z, and its gradient that of a label. Of several
classes only the peak can have a p near 1; its entry is made exactly, as a label's is, and is never worse for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import as_worked, fma, kernel, signs_of
from crossent.compute.backends.cpu.target import at_target, exact, row_of
from crossent.compute.backends.cpu.tree import FOUR, LANES, TILE, add_row, copy, in_blocks, in_fours, tree_sum

FEW = TILE // 8  # entries of a tile that are sooner made one by one

# --- rows side by side: tile and q are (v, TILE) ------------------------------------------------------------------


@kernel
def sums_of_tile(tile: NDArray, peak: NDArray, q: NDArray, weight: NDArray, sums: NDArray) -> None:
    """Into sums (3, TILE): Σ q w (peak - z), Σ q, Σ q w."""
    sums[:] = 0.0
    aim, mass, held = sums[0], sums[1], sums[2]
    nothing, half = as_worked(0.0, peak[0]), as_worked(0.5, peak[0])  # half: the whole may be too large for a float32
    if weight.size:
        for j in range(tile.shape[0]):
            column, share, w = tile[j], q[j], weight[j]
            for t in range(TILE):
                gap = half * peak[t] - half * column[t] if share[t] * w != 0 else nothing
                aim[t] += np.float64(share[t]) * w * np.float64(gap)
            for t in range(TILE):
                held[t] += np.float64(share[t]) * w
            for t in range(TILE):
                mass[t] += np.float64(share[t])
    else:
        fours, rest = in_fours(tile)
        shares, others = in_fours(q)
        for b in range(fours.shape[0]):
            four, share_of = fours[b], shares[b]
            for t in range(TILE):
                aimed, whole, high = aim[t], mass[t], half * peak[t]
                for k in range(FOUR):
                    gap = fma(-half, four[k, t], high) if share_of[k, t] != 0 else nothing
                    aimed = fma(np.float64(share_of[k, t]), np.float64(gap), aimed)
                    whole += np.float64(share_of[k, t])
                aim[t], mass[t] = aimed, whole
        for j in range(rest.shape[0]):
            column, share = rest[j], others[j]
            for t in range(TILE):
                gap = half * peak[t] - half * column[t] if share[t] != 0 else nothing
                aim[t] += np.float64(share[t]) * np.float64(gap)
            for t in range(TILE):
                mass[t] += np.float64(share[t])
        copy(mass, held)
    for t in range(TILE):
        aim[t] *= 2.0


@kernel
def classes_of_tile(q: NDArray, there: NDArray, alone: NDArray) -> None:
    """How many classes have a weight (or 2 for more), and the last of them where that is one."""
    there[:] = 0
    alone[:] = 0
    for j in range(q.shape[0]):
        share = q[j]
        for t in range(TILE):
            there[t] += np.int32(share[t] != 0)
        several = np.int32(0)
        for t in range(TILE):
            several += np.int32(there[t] > 1)
        if several == TILE:  # whichever is the last of them, it is not alone
            return
    for j in range(q.shape[0]):
        share, here = q[j], np.int32(j)
        for t in range(TILE):
            alone[t] = here if share[t] != 0 else alone[t]


@kernel
def gaps_of_tile(tile: NDArray, peak: NDArray, sums: NDArray, there: NDArray, alone: NDArray, gap: NDArray) -> None:
    """The mean of peak - z under each target; where one class is alone its own, to the bit."""
    aim, held, single = sums[0], sums[2], np.int32(0)
    for t in range(gap.size):
        gap[t] = aim[t] / held[t] if held[t] != 0.0 else 0.0
    for t in range(gap.size):
        single += np.int32(there[t] == 1)
    if single:
        for t in range(gap.size):
            if there[t] == 1:
                gap[t] = np.float64(peak[t]) - np.float64(tile[np.uint64(alone[t]), t])


@kernel
def exact_of_tile(
    tile: NDArray, peak: NDArray, q: NDArray, weight: NDArray, known: NDArray, held: NDArray, there: NDArray,
    column_of: NDArray, each: NDArray, entries: NDArray, listed: NDArray, hit: NDArray, spare: NDArray,
) -> int:  # fmt: skip
    """How many rows have an entry that is made exactly, which ``listed`` says; and what a weight of 1 takes from each.

    The entry is that of a class that is alone, or of the first peak where its p is above a half. ``column_of`` comes as
    a class that has a weight; ``hit`` and ``spare`` (2, TILE) are to work in. Few entries are made one by one, many for
    all rows side by side, with the same bits.
    """
    a, few = known[3], 0
    for t in range(held.size):
        each[t] = a[t] / held[t] if there[t] > 1 and held[t] != 0.0 else 0.0
    for t in range(held.size):
        listed[few] = t
        few += int(there[t] == 1 or known[0, t] < 1.0)
    if few <= FEW:
        for i in range(few):
            t = np.uint64(listed[i])
            j = column_of[t]
            if there[t] != 1:
                j = 0
                while j < tile.shape[0] - 1 and tile[j, t] != peak[t]:
                    j += 1
            u = weight[j] if weight.size else 1.0
            share = 1.0 if there[t] == 1 else q[j, t] * u / held[t] if held[t] != 0.0 else 0.0
            entries[t], column_of[t] = at_target(tile[j, t], peak[t], a[t] * share, u, row_of(known, t)), j
        return few
    alpha, u_of = spare[0], spare[1]
    for step in range(tile.shape[0]):
        j = tile.shape[0] - 1 - step
        column, here = tile[j], np.int32(j)
        for t in range(TILE):
            column_of[t] = here if column[t] == peak[t] and there[t] != 1 else column_of[t]
    for t in range(TILE):
        hit[t] = tile[np.uint64(column_of[t]), t]
    for t in range(TILE):
        alpha[t] = q[np.uint64(column_of[t]), t]
    for t in range(TILE):
        u_of[t] = weight[np.uint64(column_of[t])] if weight.size else 1.0
    for t in range(held.size):
        share = 1.0 if there[t] == 1 else alpha[t] * u_of[t] / held[t] if held[t] != 0.0 else 0.0
        alpha[t] = a[t] * share
    exact(hit, peak, alpha, u_of, known, entries)
    return few


@kernel
def less_shares(tile: NDArray, q: NDArray, weight: NDArray, each: NDArray) -> None:
    """Take from every column its share of the target."""
    if weight.size:
        for j in range(q.shape[0]):
            column, share, w = tile[j], q[j], weight[j]
            for t in range(TILE):
                column[t] -= as_worked(each[t] * (np.float64(share[t]) * w), column[t])
        return
    rounded = np.empty(TILE, tile.dtype)
    copy(each, rounded)
    for j in range(q.shape[0]):
        column, share = tile[j], q[j]
        for t in range(TILE):
            column[t] = fma(-share[t], rounded[t], column[t])


@kernel
def has_sign(q: NDArray) -> bool:
    """Whether some number of a row has a minus."""
    signs = signs_of(as_worked(0.0, q[0]))
    for j in range(q.size):
        signs |= signs_of(q[j])
    return signs < 0


@kernel
def is_negative(q: NDArray) -> bool:
    """Whether some number of a row is below 0, which -0 is not."""
    below = np.int32(0)
    for j in range(q.size):
        below += np.int32(q[j] < 0)
    return below > 0


# --- a wide row ---------------------------------------------------------------------------------------------------


@kernel
def only_one(q: NDArray) -> int:
    """The column of a soft target that has all the weight; -1 if there are several or none."""
    if q.size > 1 and q[0] != 0 and q[1] != 0:
        return -1
    there = np.int32(0)
    blocks, tail = in_blocks(q, LANES)
    for b in range(blocks.shape[0]):
        for j in range(LANES):
            there += np.int32(blocks[b, j] != 0)
        if there > 1:  # as a rule at once
            return -1
    for j in range(tail.size):
        there += np.int32(tail[j] != 0)
    if there == 1:
        for j in range(q.size):
            if q[j] != 0:
                return j
    return -1


@kernel
def sums_of_row(
    row: NDArray, peak: Any, q: NDArray, weight: NDArray, lanes: NDArray, masses: NDArray, tree: NDArray
) -> tuple[float, float, float]:
    """(gap, mass, held) of a soft target: the mean of peak - z under it, Σ q, Σ q w."""
    half = 0.5  # the whole may be too large for a float64
    high = half * np.float64(peak)
    lanes[:] = 0.0
    masses[:] = 0.0
    if weight.size:
        for start in range(0, row.size, LANES):
            block, share = row[start : start + min(LANES, row.size - start)], q[start : start + LANES]
            w = weight[start : start + block.size]
            for j in range(block.size):
                own = np.float64(share[j]) * w[j]
                lanes[j] = fma(own, fma(-half, np.float64(block[j]), high) if own != 0.0 else 0.0, lanes[j])
        add_row(q, masses)
    else:
        pairs, rest = in_blocks(row, 2 * LANES)
        shares, others = in_blocks(q, 2 * LANES)
        for b in range(pairs.shape[0]):
            pair, share_of = pairs[b], shares[b]
            for j in range(LANES):
                aimed, whole = lanes[j], masses[j]
                for k in range(2):
                    share = np.float64(share_of[k * LANES + j])
                    gap = fma(-half, np.float64(pair[k * LANES + j]), high) if share != 0.0 else 0.0
                    aimed = fma(share, gap, aimed)
                    whole += share
                lanes[j], masses[j] = aimed, whole
        for start in range(0, rest.size, LANES):
            block, share_of = rest[start : min(start + LANES, rest.size)], others[start:]
            for j in range(block.size):
                share = np.float64(share_of[j])
                lanes[j] = fma(share, fma(-half, np.float64(block[j]), high) if share != 0.0 else 0.0, lanes[j])
                masses[j] += share
    aim = 2.0 * tree_sum(lanes, tree)
    mass = held = tree_sum(masses, tree)
    if weight.size:
        lanes[:] = 0.0
        for start in range(0, row.size, LANES):
            share = q[start : start + min(LANES, row.size - start)]
            w = weight[start : start + share.size]
            for j in range(share.size):
                lanes[j] += np.float64(share[j]) * w[j]
        held = tree_sum(lanes, tree)
    alone = only_one(q)
    if alone >= 0:
        return np.float64(peak) - np.float64(row[alone]), mass, held
    return (aim / held if held != 0 else 0.0), mass, held


@kernel
def take_from_row(q: NDArray, weight: NDArray, share: float, dz: NDArray) -> None:
    """Take from every column its share of the target."""
    if weight.size:
        for j in range(dz.size):
            dz[j] -= as_worked(share * (np.float64(q[j]) * weight[j]), dz[j])
    else:
        each = as_worked(share, dz[0])
        for j in range(dz.size):
            dz[j] = fma(-each, as_worked(q[j], each), dz[j])
