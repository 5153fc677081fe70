"""Loss and gradient from one reading of the logits, where the cotangents are known before the loss is.

The arithmetic is that of ``read.part`` and ``write.pull``, step by step, and so are the bits. Rows that fit into a tile
are in registers when their gradient is made; wider ones are read again, as a rule from the second-level cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.compute.backends.gpu.arithmetic import UNSHIFT, power, stored
from crossent.compute.backends.gpu.layout import places, rows_of_program, starts
from crossent.compute.backends.gpu.read import columns_of, evens, hits_of, last_of, peak_and_rest, put_field
from crossent.compute.backends.gpu.write import column_gradient, entry, factor_of, no_gradient


@triton.jit
def both(
    z, zg, zc, zr, out, og, oc, orow, live, index, ir, fields, gap, a, c, blocks, inner, v, rows,
    LIVE: tl.constexpr, UNIFORM: tl.constexpr, UNIT: tl.constexpr, V_UNIT: tl.constexpr, R_UNIT: tl.constexpr,
    Z_ALONG: tl.constexpr, O_ALONG: tl.constexpr, FAR: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
    MANY: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """Fields, gap and gradient of a tile of rows with a label each; the cotangents are the numbers at a and c."""
    inner, v = inner * R_UNIT, v * V_UNIT
    group, of_group, there, r = rows_of_program(blocks, inner, TILE)
    alive = there
    if LIVE:
        alive = there & (tl.load(live + r, mask=there, other=0) != 0)
    last = last_of(v, alive)
    row, into = starts(z, group, of_group, zg, zr, UNIT, Z_ALONG), starts(out, group, of_group, og, orow, UNIT, O_ALONG)
    first = columns_of(row, tl.arange(0, LANES), v, alive, zc, UNIT, Z_ALONG, FAR)
    peak, rest = peak_and_rest(first, row, v, last, alive, zc, LANES, MANY, UNIT, Z_ALONG, FAR)
    high = peak.to(tl.float64)
    put_field(fields, 0, rows, r, peak, 0.0, alive, there)
    put_field(fields, 1, rows, r, rest, tl.zeros((TILE,), tl.float64) + (v - 1), alive, there)
    y = tl.load(index + r * ir, mask=alive, other=-1).to(tl.int64)[:, None]
    hit, inside = hits_of(row, y, v, alive, zc, UNIT, Z_ALONG)
    own = tl.where(inside, high[:, None] - hit.to(tl.float64), float("nan"))
    tl.store(gap + r[:, None], tl.where(alive[:, None], own, 0.0), mask=there[:, None])

    nothing = tl.zeros((TILE,), tl.float64)
    # A label that is no class makes its row NaN.
    a_row = tl.where(tl.reshape(inside, (TILE,)), nothing + tl.load(a), float("nan"))
    c_row, measure = nothing, nothing
    if UNIFORM:
        all_columns = nothing + v
        total, count, measure = evens(peak, row, v, last, alive, zc, z, False, LANES, UNIT, Z_ALONG, FAR)
        put_field(fields, 2, rows, r, total, 0.0, alive, there)
        put_field(fields, 3, rows, r, count, all_columns, alive, there)
        put_field(fields, 4, rows, r, measure, all_columns, alive, there)
        c_row = tl.load(c) / count
    inverse = 1.0 / (1.0 + rest)
    factor = factor_of(peak, a_row, nothing, c_row, measure, inverse)
    exact = entry(
        hit, power(hit, peak[:, None]).to(tl.float64) * UNSHIFT, a_row[:, None], 1.0, high[:, None], rest[:, None],
        inverse[:, None], a_row[:, None], nothing[:, None], c_row[:, None], nothing[:, None], measure[:, None],
        nothing[:, None], UNIFORM, False,
    )  # fmt: skip
    if MANY:
        for done in range(0, last, LANES):
            # From the end, whose columns were read last: they are the likeliest to be in the cache.
            at = tl.arange(0, LANES) + ((v - 1) // LANES * LANES - done)
            x = columns_of(row, at, v, alive, zc, UNIT, Z_ALONG, FAR)
            dz = column_gradient(
                x, 0.0, 1.0, peak, rest, inverse, factor, a_row, nothing, c_row, nothing, measure, nothing, alive, LIVE,
                False, UNIFORM, False, NARROW,
            )  # fmt: skip
            mask = there[:, None] & (at < v)[None, :]
            tl.store(places(into, at, oc, UNIT, O_ALONG, FAR), stored(dz, out), mask=mask)
        if LIVE:
            no_gradient(into, v, last, there, oc, LANES, UNIT, O_ALONG, FAR)
    else:
        dz = column_gradient(
            first, 0.0, 1.0, peak, rest, inverse, factor, a_row, nothing, c_row, nothing, measure, nothing, alive, LIVE,
            False, UNIFORM, False, NARROW,
        )  # fmt: skip
        if LIVE:
            dz = tl.where(alive[:, None], dz, 0.0)
        column = tl.arange(0, LANES)
        mask = there[:, None] & (column < v)[None, :]
        tl.store(places(into, column, oc, UNIT, O_ALONG, FAR), stored(dz, out), mask=mask)
    tl.debug_barrier()
    to = y if O_ALONG == 1 else y * oc * UNIT
    tl.store(into[:, None] + to, stored(exact, out), mask=inside)
