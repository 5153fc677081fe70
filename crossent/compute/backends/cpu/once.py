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
    has_sign,
    is_negative,
    only_one,
    sums_of_row,
    sums_of_tile,
)
from crossent.compute.backends.cpu.target import Row, at_target, exact
from crossent.compute.backends.cpu.tile import (
    entries_in,
    entries_out,
    silence,
    silence_places,
    some_to_places,
    tile_of,
    turn_in,
    turn_out,
    turn_out_less,
)
from crossent.compute.backends.cpu.tree import LANES, STRETCH, copy
from crossent.compute.backends.cpu.views import lent, shaped

TILE = narrow.TILE
QUARTER = TILE // 4


@kernel
def _collect(
    fields: NDArray, at: int, rows: int, soft: bool, uniform: int, a: float, c: float, slope: NDArray, known: NDArray
) -> None:
    """As ``target.collect``, of cotangents that are the same for all rows but for a ``slope``, if it has a size."""
    rest, measure, a_row, c_row, factor = known[0], known[1], known[3], known[5], known[7]
    stop = at + rows
    copy(fields[1, at:], rest[:rows])
    if soft:
        held = fields[3, at:stop]
        for t in range(rows):
            a_row[t] = a * held[t]
    elif slope.size:
        for t in range(rows):
            a_row[t] = a * slope[t]
    else:
        for t in range(rows):
            a_row[t] = a
    if uniform >= 0:
        count = fields[uniform + 1, at:stop]
        for t in range(rows):
            c_row[t] = (c * fields[2, at + t] if soft else c) / count[t]
        copy(fields[uniform + 2, at:], measure[:rows])
    for t in range(rows):
        factor[t] = (a_row[t] + c_row[t] * measure[t]) / (1.0 + rest[t]) * UNSHIFT


@kernel
def _losses(fields: NDArray, soft: bool, uniform: int, by: NDArray, at: int, gap: NDArray) -> None:
    """Gaps → losses whose slopes by nll and uniform are ``by``, as ``stats.finish`` and a loss make them of fields.

    (Loops of their own for what is rarely asked for: a compiler works on all lanes of a short one.)
    """
    stop, by_nll, by_uniform = at + gap.size, by[0], by[1]
    rest = fields[1, at:stop]
    if by_nll != 0.0:
        for t in range(gap.size):
            gap[t] = by_nll * (gap[t] + log1p(rest[t]))
        if soft:
            held = fields[3, at:stop]
            for t in range(gap.size):
                gap[t] *= held[t]
    else:
        gap[:] = 0.0
    if uniform >= 0:
        total, count, measure = fields[uniform, at:stop], fields[uniform + 1, at:stop], fields[uniform + 2, at:stop]
        for t in range(gap.size):
            even = by_uniform * ((measure[t] * log1p(rest[t]) - total[t]) / count[t])
            gap[t] += even * fields[2, at + t] if soft else even


@kernel
def _total(losses: NDArray, live: NDArray, lanes: NDArray) -> float:
    """Of at most TILE losses those that count, added up always in the same order; ``lanes`` is to work in."""
    copy(losses, lanes[: losses.size])
    for t in range(losses.size, TILE):
        lanes[t] = 0.0
    for t in range(live.size):
        lanes[t] = lanes[t] if live[t] else 0.0
    for t in range(QUARTER):
        lanes[t] = (lanes[t] + lanes[t + QUARTER]) + (lanes[t + 2 * QUARTER] + lanes[t + 3 * QUARTER])
    total = 0.0
    for t in range(0, QUARTER, 8):
        total += ((lanes[t] + lanes[t + 1]) + (lanes[t + 2] + lanes[t + 3])) + (
            (lanes[t + 4] + lanes[t + 5]) + (lanes[t + 6] + lanes[t + 7])
        )
    return total


@kernel
def _scaled(kept: NDArray, scale: NDArray, even: NDArray, tile: NDArray) -> None:
    """Powers → gradients of all columns as if none were the label."""
    nothing = as_worked(0.0, scale[0])
    for j in range(kept.shape[0]):
        column = kept[j]
        if even.size:
            z = tile[j]
            for t in range(TILE):
                column[t] = column[t] * scale[t] - (even[t] if z[t] > -np.inf else nothing)
        else:
            for t in range(TILE):
                column[t] *= scale[t]


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
    by: NDArray,
    check: bool,
    tile: NDArray,
    kept: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    sums: NDArray,
    out: Strided,
    every: bool,
    start: int,
    stop: int,
) -> None:
    """``narrow.part`` and ``narrow.pull`` of rows start … stop, whose targets are labels or, if there is a q, soft.

    A ``gamma`` of 0 or more asks for focal losses of labels with that exponent, and ``by`` with its two slopes for
    those of ``_losses``: they come in the place of gaps. ``check``: a row of which a weight is below 0 has NaN there.
    ``every`` says that fields and gap have room for all rows, and not for those that are worked on together; then
    what comes in the place of gaps is added up, one of ``sums`` for every TILE rows.
    """
    z, q, out, live, index, by, sums = lent(z), lent(q), lent(out), lent(live), lent(index), lent(by), lent(sums)
    tile, kept, shares, fields, gap = lent(tile), lent(kept), lent(shares), lent(fields), lent(gap)
    peak, hit, entries = np.zeros(TILE, tile.dtype), np.zeros(TILE, tile.dtype), np.zeros(TILE)
    listed, scale, take = np.empty(TILE, np.int32), np.empty(TILE, tile.dtype), np.empty(TILE, tile.dtype)
    even = np.empty(TILE if uniform >= 0 else 0, tile.dtype)
    power_sum, ties, known = np.empty(TILE), np.empty(TILE, np.int32), np.zeros((8, TILE))
    there, column_of = np.zeros(TILE, np.int32), np.zeros(TILE, np.int32)
    each, ones, spare = np.zeros(TILE), np.ones(TILE), np.empty((2, TILE))
    nothing, evens, masses = known[0, :0], np.empty((3, TILE)), np.empty((3, TILE))
    slope = np.empty(TILE if gamma >= 0.0 else 0)
    tile[:] = 0
    shares[:] = 0
    r = start
    while r < stop:
        rows = tile_of(z, r, stop)
        turn_in(z, r, rows, tile)
        silence(live, r, rows, tile)
        narrow.peaks(tile, peak)
        narrow.powers(tile, peak, kept, power_sum, ties, z, q, out, r + rows, stop)
        at = r if every else 0
        high, rest, here = fields[0, at : at + rows], fields[1, at : at + rows], gap[at : at + rows]
        narrow.peak_and_rest(peak, power_sum, ties, high, rest)
        if q.v:
            turn_in(q, r, rows, shares)
            sums_of_tile(tile, peak, shares, nothing, masses)
            classes_of_tile(shares, there, column_of)
            gaps_of_tile(tile, peak, masses, there, column_of, here)
            narrow.copied(masses[1:], rows, fields[2:4], at)
        else:
            entries_in(tile, index[r : r + rows, 0], hit)
            narrow.gaps(peak, hit, here)
        if uniform >= 0:
            narrow.uniform_of(tile, peak, nothing, evens)
            narrow.copied(evens, rows, fields[uniform : uniform + 3], at)
        if gamma >= 0.0:
            focal(hit[:rows], peak, rest, gamma, here, slope)
        elif by.size:
            _losses(fields, q.v > 0, uniform, by, at, here)
        if check and has_sign(shaped(shares, (shares.size,))):
            for t in range(rows):
                here[t] = np.nan if is_negative(shares[:, t]) else here[t]
        if not every:
            sums[r // TILE] += _total(here, live[r : r + rows] if live.size else live, spare[0])
        _collect(fields, at, rows, q.v > 0, uniform, a, c, slope, known)
        copy(known[7], scale)
        copy(known[5], even)
        if q.v:
            held = fields[3, at : at + rows]
            few = exact_of_tile(
                tile, peak, shares, nothing, known, held, there, column_of, each, entries, listed, hit, spare
            )
            copy(each, take)
            if uniform >= 0:
                _scaled(kept, scale, even, tile)
                copy(ones, scale)
            turn_out_less(kept, scale, shares, take, rows, out, r)
            some_to_places(entries, column_of, listed[:few], out, r, tile[0])
            silence_places(live, r, rows, out)
        else:
            exact(hit, peak, known[3], ones, known, entries)
            _scaled(kept, scale, even, tile)
            entries_out(entries, index[r : r + rows, 0], kept)
            silence(live, r, rows, kept)
            turn_out(kept, rows, out, r)
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
    by: NDArray,
    check: bool,
    rows: NDArray,
    grads: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    sums: NDArray,
    out: Strided,
    every: bool,
    over: bool,
    start: int,
    stop: int,
) -> None:
    """The same of wide rows, as ``wide.part`` and ``wide.pull``; one of ``sums`` for each row. ``over``: out is z."""
    z, q, out, live, index, by, sums = lent(z), lent(q), lent(out), lent(live), lent(index), lent(by), lent(sums)
    rows, grads, shares, fields, gap = lent(rows), lent(grads), lent(shares), lent(fields), lent(gap)
    powers = np.empty(2 * LANES, rows.dtype)
    lanes, masses, tree = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    nothing, slope = lanes[:0], np.empty(1)
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
            if many == 1 and x.size <= STRETCH:
                rest = wide.rest_ahead(x, peak, dz, lanes, tree, z, q, out, r + 1, stop)
            else:
                rest = wide.rest_of(x, peak, dz, powers, lanes, tree)
            f = r if every else 0
            fields[0, f], fields[1, f] = peak, rest
            a_row, c_row, measure, held, several, minus = a, 0.0, 0.0, 0.0, False, False
            if q.v:
                share = lines.line(q, lines.place(q, r), shares[0])
                minus = check and has_sign(share)  # before the sums, whose steps fetch the row more slowly
                gap[f], mass, held = sums_of_row(x, peak, share, nothing, lanes, masses, tree)
                fields[2, f], fields[3, f] = mass, held
                a_row = a * held
            else:
                y = index[r, 0]
                gap[f] = np.float64(peak) - np.float64(x[y])
                if gamma >= 0.0:
                    focal(x[y : y + 1], greatest_of, fields[1, f : f + 1], gamma, gap[f : f + 1], slope)
                    a_row = a * slope[0]
            if uniform >= 0:
                total, count, measure = wide.uniform_of(x, peak, nothing, lanes, tree)
                fields[uniform, f], fields[uniform + 1, f], fields[uniform + 2, f] = total, count, measure
                c_row = (c * fields[2, f] if q.v else c) / count
            if by.size:
                _losses(fields, q.v > 0, uniform, by, f, gap[f : f + 1])
            if minus and is_negative(share):
                gap[f] = np.nan
            if not every:
                sums[r] = gap[f] if counts else 0.0
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
