"""Narrow rows, too short to read along: they lie side by side, TILE of them, and columns come one after the other.

How they come there and go is in ``tile``. Sums go over the columns in order, row by row, in any layout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import ONE, UNSHIFT, as_worked, kernel, power
from crossent.compute.backends.cpu.soft import classes_of_tile, exact_of_tile, gaps_of_tile, less_shares, sums_of_tile
from crossent.compute.backends.cpu.target import collect, exact
from crossent.compute.backends.cpu.tile import (
    entries_in,
    entries_out,
    fetch_column,
    next_of,
    silence,
    some_out,
    tile_of,
    turn_in,
    turn_out,
)
from crossent.compute.backends.cpu.tree import FOUR, TILE, copy, in_fours
from crossent.compute.backends.cpu.views import lent

NARROW = 64  # columns; more are a wide row


# Small kernels that go through a whole tile: a compiler that sees one loop at a time turns each into vector
# instructions, and a call for every column would cost as much as the column.


@kernel
def peaks(tile: NDArray, peak: NDArray) -> None:
    """The greatest logit of each row."""
    copy(tile[0], peak)
    fours, rest = in_fours(tile[1:])
    for b in range(fours.shape[0]):
        four = fours[b]
        for t in range(TILE):
            most = peak[t]
            for k in range(FOUR):
                most = four[k, t] if four[k, t] > most else most
            peak[t] = most
    for j in range(rest.shape[0]):
        column = rest[j]
        for t in range(TILE):
            peak[t] = column[t] if column[t] > peak[t] else peak[t]


@kernel
def powers(
    tile: NDArray,
    peak: NDArray,
    kept: NDArray,
    sums: NDArray,
    ties: NDArray,
    z: Strided,
    q: Strided,
    out: Strided,
    r: int,
    stop: int,
) -> None:
    """Keep all powers; add up those below 1, and count those that are 1: of the peak, and of what is as good as it.

    Meanwhile the tiles of z, q and out that begin at row r are fetched.
    """
    z_next, q_next, out_next = next_of(z, r, stop), next_of(q, r, stop), next_of(out, r, stop)
    for j in range(tile.shape[0]):
        fetch_column(z.data, z_next, j)
        fetch_column(q.data, q_next, j)
        fetch_column(out.data, out_next, j)
        column, power_of = tile[j], kept[j]
        for t in range(TILE):
            power_of[t] = power(column[t], peak[t])
    sums[:] = 0.0
    ties[:] = 0
    nothing, one = as_worked(0.0, tile[0, 0]), as_worked(ONE, tile[0, 0])
    fours, rest = in_fours(kept)
    for b in range(fours.shape[0]):
        four = fours[b]
        for t in range(TILE):
            below, ones = sums[t], ties[t]
            for k in range(FOUR):
                x = four[k, t]
                below += np.float64(nothing if x == one else x)
                ones += np.int32(x == one)
            sums[t], ties[t] = below, ones
    for j in range(rest.shape[0]):
        column = rest[j]
        for t in range(TILE):
            sums[t] += np.float64(nothing if column[t] == one else column[t])
            ties[t] += np.int32(column[t] == one)


@kernel
def peak_and_rest(peak: NDArray, sums: NDArray, ties: NDArray, high: NDArray, rest: NDArray) -> None:
    """Into fields what is known of the rows' powers."""
    for t in range(high.size):
        high[t] = peak[t]
        rest[t] = sums[t] * UNSHIFT + np.float64(ties[t] - 1)  # NaN where the peak is infinite, as its power is


@kernel
def copied(sums: NDArray, rows: int, fields: NDArray, r: int) -> None:
    """What was summed up of the tile's rows into their fields."""
    for k in range(sums.shape[0]):
        for t in range(rows):
            fields[k, r + t] = sums[k, t]


@kernel
def gaps(peak: NDArray, hit: NDArray, gap: NDArray) -> None:
    """How far below the peak the labels' logits are."""
    for t in range(gap.size):
        gap[t] = np.float64(peak[t]) - np.float64(hit[t])


@kernel
def _dots(tile: NDArray, peak: NDArray, dots: NDArray) -> None:
    dots[:] = 0.0
    for j in range(tile.shape[0]):
        column = tile[j]
        for t in range(TILE):
            x = np.float64(power(column[t], peak[t])) * (np.float64(column[t]) - np.float64(peak[t]))
            dots[t] += x if column[t] > -np.inf else 0.0


@kernel
def uniform_of(tile: NDArray, peak: NDArray, weight: NDArray, sums: NDArray) -> None:
    """total, count and measure of the rows into sums (3, TILE)."""
    sums[:] = 0.0
    total, count, measure = sums[0], sums[1], sums[2]
    allowed = np.zeros(TILE, np.int32)
    nothing, half = as_worked(0.0, peak[0]), as_worked(0.5, peak[0])  # half: the whole may be too large for a float32
    for j in range(tile.shape[0]):
        column = tile[j]
        for t in range(TILE):
            allowed[t] += np.int32(column[t] > -np.inf)
        if weight.size:
            u = weight[j]
            for t in range(TILE):
                total[t] += u * np.float64(half * column[t] - half * peak[t] if column[t] > -np.inf else nothing)
            for t in range(TILE):
                measure[t] += u if column[t] > -np.inf else 0.0
    if not weight.size:
        fours, rest = in_fours(tile)
        for b in range(fours.shape[0]):
            four = fours[b]
            for t in range(TILE):
                even = total[t]
                for k in range(FOUR):
                    even += np.float64(half * four[k, t] - half * peak[t] if four[k, t] > -np.inf else nothing)
                total[t] = even
        for j in range(rest.shape[0]):
            column = rest[j]
            for t in range(TILE):
                total[t] += np.float64(half * column[t] - half * peak[t] if column[t] > -np.inf else nothing)
    for t in range(TILE):
        total[t] *= 2.0
    copy(allowed, count)
    if not weight.size:
        copy(allowed, measure)


@kernel
def part(
    z: Strided,
    live: NDArray,
    index: NDArray,
    q: Strided,
    weight: NDArray,
    uniform: int,
    dot: int,
    first: int,
    tile: NDArray,
    kept: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    start: int,
    stop: int,
) -> None:
    """Fill fields and gap for rows start … stop; ``uniform``, ``dot`` and ``first`` say where, -1 for not wanted.

    ``tile``, ``kept`` and ``shares`` (v, TILE) are memory to work in, of the dtype in which z and q are worked out.
    """
    z, q, live, index, weight = lent(z), lent(q), lent(live), lent(index), lent(weight)
    tile, kept, shares, fields, gap = lent(tile), lent(kept), lent(shares), lent(fields), lent(gap)
    peak, hit = np.empty(TILE, tile.dtype), np.empty(TILE, tile.dtype)
    power_sum, ties = np.empty(TILE), np.empty(TILE, np.int32)
    sums, there, alone = np.empty((3, TILE)), np.empty(TILE, np.int32), np.empty(TILE, np.int32)
    tile[:] = 0
    shares[:] = 0
    r = start
    while r < stop:
        rows = tile_of(z, r, stop)
        turn_in(z, r, rows, tile)
        silence(live, r, rows, tile)
        peaks(tile, peak)
        powers(tile, peak, kept, power_sum, ties, z, q, q, r + rows, stop)
        peak_and_rest(peak, power_sum, ties, fields[0, r : r + rows], fields[1, r : r + rows])
        for k in range(index.shape[1]):
            entries_in(tile, index[r : r + rows, k], hit)
            gaps(peak, hit, gap[r : r + rows, k])
        if not index.shape[1] and not q.v:
            for t in range(rows):
                for j in range(z.v):
                    gap[r + t, j] = np.float64(peak[t]) - np.float64(tile[j, t])
        if q.v:
            turn_in(q, r, rows, shares)
            sums_of_tile(tile, peak, shares, weight, sums)
            classes_of_tile(shares, there, alone)
            gaps_of_tile(tile, peak, sums, there, alone, gap[r : r + rows, 0])
            copied(sums[1:], rows, fields[2:4], r)
        if uniform >= 0:
            uniform_of(tile, peak, weight, sums)
            copied(sums, rows, fields[uniform : uniform + 3], r)
        if dot >= 0:
            _dots(tile, peak, power_sum)
            for t in range(rows):
                fields[dot, r + t] = power_sum[t] * UNSHIFT
        if first >= 0:
            _order(tile, peak, index, r, rows, fields[first : first + 2])
        r += rows


@kernel
def _order(tile: NDArray, peak: NDArray, index: NDArray, r: int, rows: int, out: NDArray) -> None:
    """The first greatest column, and how many are greater than the target."""
    for t in range(rows):
        first, above = 0, 0
        hit = tile[index[r + t, 0], t] if index.shape[1] else peak[t]  # nothing is above no target
        for j in range(tile.shape[0] - 1, -1, -1):
            if tile[j, t] == peak[t]:
                first = j
            if tile[j, t] > hit:
                above += 1
        out[0, r + t] = first
        out[1, r + t] = above


@kernel
def _columns(
    tile: NDArray, peak: NDArray, factor: NDArray, z: Strided, q: Strided, out: Strided, r: int, stop: int
) -> None:
    """The gradient of all columns as if none were a target, of a loss that looks at nll and lse only.

    Meanwhile the tiles of z, q and out that begin at row r are fetched.
    """
    z_next, q_next, out_next = next_of(z, r, stop), next_of(q, r, stop), next_of(out, r, stop)
    for j in range(tile.shape[0]):
        fetch_column(z.data, z_next, j)
        fetch_column(q.data, q_next, j)
        fetch_column(out.data, out_next, j)
        column = tile[j]
        for t in range(TILE):
            column[t] = power(column[t], peak[t]) * factor[t]


@kernel
def _less_uniform(tile: NDArray, z: NDArray, weight: NDArray, c: NDArray) -> None:
    own = np.empty(TILE, tile.dtype)
    nothing = as_worked(0.0, tile[0, 0])
    for j in range(tile.shape[0]):
        column, logits = tile[j], z[j]
        u = weight[j] if weight.size else 1.0
        for t in range(TILE):
            own[t] = c[t] * u
        for t in range(TILE):
            column[t] -= own[t] if logits[t] > -np.inf else nothing


@kernel
def _more_entropy(tile: NDArray, z: NDArray, peak: NDArray, known: NDArray) -> None:
    spread, beyond = np.empty(TILE, tile.dtype), np.empty(TILE, tile.dtype)
    nothing = as_worked(0.0, tile[0, 0])
    for t in range(TILE):
        spread[t] = known[6, t] / (1.0 + known[0, t]) * UNSHIFT
        beyond[t] = known[2, t]
    for j in range(tile.shape[0]):
        column, logits = tile[j], z[j]
        for t in range(TILE):
            x = power(logits[t], peak[t])
            column[t] += x * ((peak[t] - logits[t]) + beyond[t]) * spread[t] if x > 0 else nothing


@kernel
def _targets(
    k: int, tile: NDArray, index: NDArray, a: NDArray, weight: NDArray, hit: NDArray, alpha: NDArray, u: NDArray
) -> None:
    """The k-th target columns of the rows: their logits, the cotangents that meet there, their class weights."""
    rows = a.shape[0]
    if index.shape[1]:
        entries_in(tile, index[:, k], hit)
        if weight.size:
            for t in range(rows):
                u[t] = weight[np.uint64(index[t, k])]
    else:
        copy(tile[k], hit)
        if weight.size:
            u[:] = weight[k]
    for t in range(rows):
        alpha[t] = a[t, k]
    if index.shape[1] > 1:
        for t in range(rows):
            alpha[t] = 0.0  # in the order of the sum over all, so that nothing is left where all are one column
            for other in range(index.shape[1]):
                if index[t, other] == index[t, k]:
                    alpha[t] += a[t, other]


@kernel
def pull(
    z: Strided,
    live: NDArray,
    index: NDArray,
    q: Strided,
    weight: NDArray,
    uniform: int,
    dot: int,
    fields: NDArray,
    a: NDArray,
    b: NDArray,
    c: NDArray,
    d: NDArray,
    tile: NDArray,
    kept: NDArray,
    shares: NDArray,
    entries: NDArray,
    out: Strided,
    start: int,
    stop: int,
) -> None:
    """The gradient of rows start … stop into ``out``.

    ``entries`` (k, TILE) holds the entries of the target columns meanwhile.
    """
    z, q, out, live, index, weight = lent(z), lent(q), lent(out), lent(live), lent(index), lent(weight)
    tile, kept, shares, entries = lent(tile), lent(kept), lent(shares), lent(entries)
    fields, a, b, c, d = lent(fields), lent(a), lent(b), lent(c), lent(d)
    peak, factor, each = np.zeros(TILE, tile.dtype), np.zeros(TILE, tile.dtype), np.zeros(TILE)
    hit, alpha, u, known = np.zeros(TILE, tile.dtype), np.zeros(TILE), np.ones(TILE), np.zeros((8, TILE))
    spare = np.empty((2, TILE))
    column_of, there, listed, few = np.zeros(TILE, np.int32), np.zeros(TILE, np.int32), np.empty(TILE, np.int32), 0
    tile[:] = 0
    shares[:] = 0
    r = start
    while r < stop:
        rows = tile_of(z, r, stop)
        turn_in(z, r, rows, tile)
        silence(live, r, rows, tile)
        collect(r, rows, fields, uniform, dot, a, b, c, d, known)
        copy(known[7], factor)
        copy(fields[0, r:], peak[:rows])
        if q.v:
            turn_in(q, r, rows, shares)
            classes_of_tile(shares, there, column_of)
            held = fields[3, r : r + rows]
            few = exact_of_tile(
                tile, peak, shares, weight, known, held, there, column_of, each, entries[0], listed, hit, spare
            )
        else:
            for k in range(a.shape[1]):
                _targets(k, tile, index[r : r + rows], a[r : r + rows], weight, hit, alpha, u)
                exact(hit, peak, alpha, u, known, entries[k])
        if uniform >= 0 or dot >= 0:
            for j in range(z.v):
                copy(tile[j], kept[j])
        _columns(tile, peak, factor, z, q, out, r + rows, stop)
        if uniform >= 0:
            _less_uniform(tile, kept, weight, known[5])
        if q.v:
            less_shares(tile, shares, weight, each)
        if dot >= 0:
            _more_entropy(tile, kept, peak, known)
        if q.v:
            some_out(entries[0], column_of, listed[:few], tile)
        elif index.shape[1]:
            for k in range(index.shape[1]):
                entries_out(entries[k], index[r : r + rows, k], tile)
        else:
            for j in range(z.v):
                for t in range(rows):
                    tile[j, t] = entries[j, t] if a[r + t, j] != 0.0 else tile[j, t]
        silence(live, r, rows, tile)
        turn_out(tile, rows, out, r)
        r += rows
