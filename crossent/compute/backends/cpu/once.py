"""Loss and gradient from one reading of the logits, where the cotangents are known before the loss is.

The mean of a loss that is linear in its statistics has the same cotangents in every row, whatever the logits are: a of
nll, c of the uniform cross-entropy, of a soft target times its weight there. Those of a focal loss are known as soon as
the row's powers are added up. So a row's gradient can be made while it is in cache, and its powers need not be made
again. The arithmetic is that of ``part`` and ``pull``, step by step, and so are the bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu import lines, narrow, wide
from crossent.compute.backends.cpu.focal import focal
from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import UNSHIFT, as_worked, greatest, kernel, log1p
from crossent.compute.backends.cpu.soft import (
    classes_of_tile,
    exact_of_tile,
    gaps_of_tile,
    less_shares,
    only_one,
    sums_of_row,
    sums_of_tile,
)
from crossent.compute.backends.cpu.target import Row, at_target, exact
from crossent.compute.backends.cpu.tree import LANES

TILE = narrow.TILE


@kernel
def _collect(fields: NDArray, soft: bool, uniform: int, a: float, c: float, slope: NDArray, known: NDArray) -> None:
    """As ``target.collect``, of cotangents that are the same for all rows but for a ``slope``, if it has a size."""
    rest, measure, a_row, c_row, factor = known[0], known[1], known[3], known[5], known[7]
    rows = fields.shape[1]
    rest[:rows] = fields[1]
    for t in range(rows):
        a_row[t] = a * (fields[3, t] if soft else slope[t] if slope.size else 1.0)
    if uniform >= 0:
        for t in range(rows):
            c_row[t] = (c * fields[2, t] if soft else c) / fields[uniform + 1, t]
        measure[:rows] = fields[uniform + 2]
    for t in range(rows):
        factor[t] = (a_row[t] + c_row[t] * measure[t]) / (1.0 + rest[t]) * UNSHIFT


@kernel
def losses(fields: NDArray, gap: NDArray, soft: bool, uniform: int, by_nll: float, by_uniform: float) -> None:
    """Gaps → losses that have these slopes by nll and uniform, as ``stats.finish`` and a loss make them of fields."""
    rest = fields[1]
    for t in range(gap.size):
        spread = log1p(rest[t])
        value = by_nll * (gap[t] + spread) * (fields[3, t] if soft else 1.0) if by_nll != 0.0 else 0.0
        if uniform >= 0:
            even = (fields[uniform + 2, t] * spread - fields[uniform, t]) / fields[uniform + 1, t]
            value += by_uniform * even * (fields[2, t] if soft else 1.0)
        gap[t] = value


@kernel
def _scaled(kept: NDArray, tile: NDArray, known: NDArray, uniform: int) -> None:
    """Powers → gradients of all columns as if none were the label."""
    c, scale = np.empty(TILE, tile.dtype), np.empty(TILE, tile.dtype)
    c[:] = known[5]
    scale[:] = known[7]
    nothing = as_worked(0.0, scale[0])
    for j in range(kept.shape[0]):
        column = kept[j]
        for t in range(TILE):
            column[t] *= scale[t]
        if uniform >= 0:
            z = tile[j]
            for t in range(TILE):
                column[t] -= c[t] if z[t] > -np.inf else nothing


@kernel
def of_narrow(
    z: Strided,
    live: NDArray,
    index: NDArray,
    q: Strided,
    uniform: int,
    a: float,
    c: float,
    gamma: float,
    tile: NDArray,
    kept: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    value: NDArray,
    out: Strided,
    start: int,
    stop: int,
) -> None:
    """``narrow.part`` and ``narrow.pull`` of rows start … stop, whose targets are labels or, if there is a q, soft.

    A ``value`` with a size asks for focal losses, with an exponent of ``gamma``, of labels.
    """
    peak, hit, entries = np.zeros(TILE, tile.dtype), np.zeros(TILE, tile.dtype), np.zeros(TILE)
    listed, few = np.empty(TILE, np.int32), 0
    sums, ties, known = np.empty(TILE), np.empty(TILE, np.int32), np.zeros((8, TILE))
    there, column_of = np.zeros(TILE, np.int32), np.zeros(TILE, np.int32)
    each, ones = np.zeros(TILE), np.ones(TILE)
    nothing, evens, masses = known[0, :0], np.empty((3, TILE)), np.empty((3, TILE))
    slope = np.empty(TILE if value.size else 0)
    tile[:] = 0
    shares[:] = 0
    r = start
    while r < stop:
        rows = narrow.tile_of(z, r, stop)
        narrow.fetch_ahead(z, r + rows, stop)
        narrow.fetch_ahead(out, r + rows, stop)
        narrow.turn_in(z, r, rows, tile)
        narrow.silence(live, r, rows, tile)
        narrow.peaks(tile, peak)
        narrow.powers(tile, peak, kept, sums, ties)
        narrow.peak_and_rest(peak, sums, ties, fields[0, r : r + rows], fields[1, r : r + rows])
        if q.v:
            narrow.fetch_ahead(q, r + rows, stop)
            narrow.turn_in(q, r, rows, shares)
            sums_of_tile(tile, peak, shares, nothing, masses)
            classes_of_tile(shares, there, column_of)
            gaps_of_tile(tile, peak, masses, there, column_of, gap[r : r + rows, 0])
            narrow.copied(masses[1:], rows, fields[2:4], r)
        else:
            narrow.gaps(tile, peak, index[r : r + rows, 0], gap[r : r + rows, 0])
        if uniform >= 0:
            narrow.uniform_of(tile, peak, nothing, evens)
            narrow.copied(evens, rows, fields[uniform : uniform + 3], r)
        if not q.v:
            narrow.entries_in(tile, index[r : r + rows, 0], hit)
        if value.size:
            focal(hit[:rows], peak, fields[1, r : r + rows], gamma, value[r : r + rows], slope)
        _collect(fields[:, r : r + rows], q.v > 0, uniform, a, c, slope, known)
        if q.v:
            held = fields[3, r : r + rows]
            few = exact_of_tile(tile, peak, shares, nothing, known, held, there, column_of, each, entries, listed)
        else:
            exact(hit, peak, known[3], ones, known, entries)
        _scaled(kept, tile, known, uniform)
        if q.v:
            less_shares(kept, shares, nothing, each)
        if q.v:
            narrow.some_out(entries, column_of, listed[:few], kept)
        else:
            narrow.entries_out(entries, index[r : r + rows, 0], kept)
        narrow.silence(live, r, rows, kept)
        narrow.turn_out(kept, rows, out, r)
        r += rows


@kernel
def of_wide(
    z: Strided,
    live: NDArray,
    index: NDArray,
    q: Strided,
    uniform: int,
    a: float,
    c: float,
    gamma: float,
    rows: NDArray,
    grads: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    value: NDArray,
    out: Strided,
    over: bool,
    start: int,
    stop: int,
) -> None:
    """``wide.part`` and ``wide.pull`` of rows start … stop, of the same targets; ``over``: out is z itself."""
    powers = np.empty(2 * LANES, rows.dtype)
    lanes, masses, tree = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    nothing, slope = lanes[:0], np.empty(1 if value.size else 0)
    share, greatest_of = shares[0, :0], np.empty(1, rows.dtype)
    r = start
    while r < stop:
        many = lines.together(z, r, stop)
        if many > 1:
            lines.turn_in(z, r, many, rows)
        for t in range(many):
            counts = not live.size or live[r]
            if not counts:
                x = rows[t]
                x[:] = 0
                peak = x[0]
            elif many > 1:
                x = rows[t]
                peak = greatest(x)
            else:
                x, peak = lines.line_and_greatest(z, lines.place(z, r), rows[0])
                if over:
                    x = lines.apart(x, rows[0])
            at = lines.place(out, r)
            dz = grads[t] if many > 1 else lines.room(out, at, grads[0])
            greatest_of[0] = peak
            rest = wide.rest_of(x, peak, dz, powers, lanes, tree)
            fields[0, r], fields[1, r] = peak, rest
            a_row, c_row, measure, held, several = a, 0.0, 0.0, 0.0, False
            if q.v:
                share = lines.line(q, lines.place(q, r), shares[0])
                gap[r, 0], mass, held = sums_of_row(x, peak, share, nothing, lanes, masses, tree)
                fields[2, r], fields[3, r] = mass, held
                a_row = a * held
            else:
                y = index[r, 0]
                gap[r, 0] = np.float64(peak) - np.float64(x[y])
                if value.size:
                    focal(x[y : y + 1], greatest_of, fields[1, r : r + 1], gamma, value[r : r + 1], slope)
                    a_row = a * slope[0]
            if uniform >= 0:
                total, count, measure = wide.uniform_of(x, peak, nothing, lanes, tree)
                fields[uniform, r], fields[uniform + 1, r], fields[uniform + 2, r] = total, count, measure
                c_row = (c * fields[2, r] if q.v else c) / count
            if counts:
                row = Row(rest, measure, 0.0, a_row, 0.0, c_row, 0.0)
                scale = as_worked((a_row + c_row * measure) / (1.0 + rest) * UNSHIFT, peak)
                several = many == 1 and q.v > 0 and uniform < 0 and only_one(share) < 0
                if several:
                    wide.put_soft(dz, scale, x, peak, share, row, held, out, at)
                else:
                    for j in range(x.size):
                        dz[j] *= scale
                if q.v and not several:
                    wide.of_soft(x, peak, share, nothing, row, held, dz)
                elif not q.v:
                    if uniform >= 0:
                        wide.all_columns(x, peak, share, nothing, row, 0.0, dz)
                    y = index[r, 0]
                    dz[y] = at_target(x[y], peak, a_row, 1.0, row)
            else:
                dz[:] = 0
            if many == 1 and not several:
                lines.put(dz, out, at)
            r += 1
        if many > 1:
            lines.turn_out(grads, many, out, r - many)
