"""Backwards: the gradient of every row from its statistics and their cotangents, as ``reference.pull`` gives it.

A column that is no target's has a power times one factor of its row, in float32 as on the CPU; for 16-bit gradients by
the hardware's power of 2. Whatever could cancel is worked out in float64, by one formula for every column that has it
(``entry``): the targets', and all of them where a loss reads the uniform cross-entropy or the entropy.

Targets named by an index are stored after everything else, over what was there: a barrier lies between the two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.compute.backends.gpu.arithmetic import UNSHIFT, power, rough, stored, summed, widened
from crossent.compute.backends.gpu.layout import places, rows_of_program, starts
from crossent.compute.backends.gpu.read import columns_of, hits_of, last_of


@triton.jit
def entry(
    z, e, alpha, u, peak, rest, inverse, a, b, c, d, measure, beyond, UNIFORM: tl.constexpr, ENTROPY: tl.constexpr
):
    """dz of columns with logits z, powers e and class weights u, whose targets' cotangents add up to alpha; in float64.

    1 - p is (rest + (1 - e)) / (1 + rest), which loses no digit as 1 - p does: docs/algebra.md, "The target's entry".
    """
    p = e * inverse
    dz = (a - alpha) * p - alpha * ((rest + (1.0 - e)) * inverse) + b * p
    if UNIFORM:
        dz += c * (measure * p - tl.where(z != float("-inf"), u, 0.0))
    if ENTROPY:
        dz += tl.where(p > 0, d * p * ((peak - z.to(tl.float64)) + beyond), tl.where(p == 0, 0.0, p))
    return dz


@triton.jit
def powers_of(z, peak, NARROW: tl.constexpr):
    """e^(z - peak) · 2^SHIFT of all columns."""
    if NARROW:
        return rough(z, peak[:, None])
    else:
        return power(z, peak[:, None])


@triton.jit
def alpha_of(y, index, a, r, ir, ik, ar, ak, k, there):
    """The cotangents of all targets of a row that name the columns y (rows, k), added up in order."""
    alpha = tl.zeros(y.shape, tl.float64)
    for which in range(0, k):
        same = y == tl.load(index + (r * ir + which * ik), mask=there, other=-1)[:, None]
        own = tl.load(a + (r * ar + which * ak), mask=there, other=0.0).to(tl.float64)
        alpha += tl.where(same, own[:, None], 0.0)
    return alpha


@triton.jit
def column_gradient(
    z, alpha, u, peak, rest, inverse, factor, a, b, c, d, measure, beyond, alive, LIVE: tl.constexpr,
    DENSE: tl.constexpr, UNIFORM: tl.constexpr, ENTROPY: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """dz of a tile of columns, as if an index named none of them; ``alpha`` is that of DENSE targets."""
    if UNIFORM or ENTROPY:
        dz = entry(
            z, power(z, peak[:, None]).to(tl.float64) * UNSHIFT, alpha, u, peak.to(tl.float64)[:, None], rest[:, None],
            inverse[:, None], a[:, None], b[:, None], c[:, None], d[:, None], measure[:, None], beyond[:, None],
            UNIFORM, ENTROPY,
        )  # fmt: skip
    else:
        dz = powers_of(z, peak, NARROW) * factor[:, None]
        if DENSE:
            exact = entry(
                z, power(z, peak[:, None]).to(tl.float64) * UNSHIFT, alpha, u, peak.to(tl.float64)[:, None],
                rest[:, None], inverse[:, None], a[:, None], b[:, None], 0.0, 0.0, 0.0, 0.0, False, False,
            )  # fmt: skip
            dz = tl.where(alpha == 0, dz.to(tl.float64), exact)
    if LIVE and z.shape[0] > 1:  # a tile of one row comes here only if that is alive
        dz = tl.where(alive[:, None], dz, 0.0)
    return dz


@triton.jit
def factor_of(z, a, b, c, measure, inverse):
    """What a power is multiplied by in a column that is no target's, in the dtype rows are worked out in."""
    return ((a + b + c * measure) * inverse * UNSHIFT).to(z.dtype)


@triton.jit
def no_gradient(out, v, last, there, of_columns, LANES: tl.constexpr, UNIT: tl.constexpr, ALONG: tl.constexpr,
                FAR: tl.constexpr):  # fmt: skip
    """Zeros for a tile of which no row is alive, where ``last`` is 0."""
    zeros = tl.zeros((there.shape[0], LANES), tl.float32)
    for start in range(last, v, LANES):
        at = tl.arange(0, LANES) + start
        tl.store(
            places(out, at, of_columns, UNIT, ALONG, FAR),
            stored(zeros, out),
            mask=there[:, None] & (at < v)[None, :],
        )


@triton.jit
def pull(
    z, zg, zc, zr, q, qg, qc, qr, out, og, oc, orow, live, index, ir, ik, weight, fields, a, ar, ak, b, br, c, cr, d,
    dr, unless, blocks, inner, v, rows, k,
    LIVE: tl.constexpr, INDEX: tl.constexpr, SOFT: tl.constexpr, WEIGHT: tl.constexpr, LSE: tl.constexpr,
    UNIFORM: tl.constexpr, ENTROPY: tl.constexpr, UNLESS: tl.constexpr, UNIT: tl.constexpr, V_UNIT: tl.constexpr,
    R_UNIT: tl.constexpr, Z_ALONG: tl.constexpr, Q_ALONG: tl.constexpr, O_ALONG: tl.constexpr, FAR: tl.constexpr,
    TILE: tl.constexpr, LANES: tl.constexpr, TARGETS: tl.constexpr, NARROW: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of rows. UNLESS: nothing is done if the number at ``unless`` is 1."""
    inner, v = inner * R_UNIT, v * V_UNIT
    if UNLESS:  # then there are no rows and no columns
        done = tl.load(unless) == 1
        inner, v = tl.where(done, 0, inner), tl.where(done, 0, v)
    group, of_group, there, r = rows_of_program(blocks, inner, TILE)
    alive = there
    if LIVE:
        alive = there & (tl.load(live + r, mask=there, other=0) != 0)
    last = last_of(v, alive)
    row, into = starts(z, group, of_group, zg, zr, UNIT, Z_ALONG), starts(out, group, of_group, og, orow, UNIT, O_ALONG)
    DENSE: tl.constexpr = not INDEX
    nothing = tl.zeros((TILE,), tl.float64)

    # What is one number for each row.
    high = tl.load(fields + r, mask=alive, other=0.0)
    rest = tl.load(fields + (rows + r), mask=alive, other=0.0)
    inverse = 1.0 / (1.0 + rest)
    peak = high.to(tl.float64 if z.dtype.element_ty == tl.float64 else tl.float32)
    b_row, c_row, d_row, measure, beyond = nothing, nothing, nothing, nothing, nothing
    following: tl.constexpr = 4 if SOFT else 2
    if LSE:
        b_row = tl.load(b + r * br, mask=alive, other=0.0).to(tl.float64)
    if UNIFORM:
        count = tl.load(fields + ((following + 1) * rows + r), mask=alive, other=1.0)
        measure = tl.load(fields + ((following + 2) * rows + r), mask=alive, other=0.0)
        c_row = tl.load(c + r * cr, mask=alive, other=0.0).to(tl.float64) / count
    if ENTROPY:
        at_dot: tl.constexpr = following + 3 if UNIFORM else following
        beyond = tl.load(fields + (at_dot * rows + r), mask=alive, other=0.0) * inverse
        d_row = tl.load(d + r * dr, mask=alive, other=0.0).to(tl.float64)
    held, share = nothing, row
    a_row = nothing
    if SOFT:
        share = starts(q, group, of_group, qg, qr, UNIT, Q_ALONG)
        held = tl.load(fields + (3 * rows + r), mask=alive, other=1.0)
        held = tl.where(held == 0, 1.0, held)
        a_row = tl.load(a + r * ar, mask=alive, other=0.0).to(tl.float64)
    elif INDEX:
        for which in range(0, k):
            a_row += tl.load(a + (r * ar + which * ak), mask=alive, other=0.0).to(tl.float64)
    else:
        each = tl.zeros((TILE, LANES), tl.float64)
        for start in range(0, last, LANES):
            at = tl.arange(0, LANES) + start
            there_too = alive[:, None] & (at < v)[None, :]
            each += tl.load(a + (r[:, None] * ar + at[None, :] * ak), mask=there_too, other=0.0).to(tl.float64)
        a_row = summed(each, LANES)

    # The targets, before anything is stored: out may be z.
    y = tl.zeros((TILE, TARGETS), tl.int64)
    inside, exact = y > 0, y.to(tl.float64)
    if INDEX:
        at_k = tl.arange(0, TARGETS)
        wanted = alive[:, None] & (at_k < k)[None, :]
        y = tl.load(index + (r[:, None] * ir + at_k[None, :] * ik), mask=wanted, other=-1).to(tl.int64)
        hit, inside = hits_of(row, y, v, alive, zc, UNIT, Z_ALONG)
        of_class = tl.full((TILE, TARGETS), 1.0, tl.float64)
        if WEIGHT:
            of_class = widened(tl.load(weight + y, mask=inside, other=1.0)).to(tl.float64)
        exact = entry(
            hit, power(hit, peak[:, None]).to(tl.float64) * UNSHIFT,
            alpha_of(y, index, a, r, ir, ik, ar, ak, k, alive), of_class, high[:, None], rest[:, None],
            inverse[:, None], a_row[:, None], b_row[:, None], c_row[:, None], d_row[:, None], measure[:, None],
            beyond[:, None], UNIFORM, ENTROPY,
        )  # fmt: skip

    factor = factor_of(peak, a_row, b_row, c_row, measure, inverse)
    for start in range(0, last, LANES):
        at = tl.arange(0, LANES) + start
        real = (at < v)[None, :]
        x = columns_of(row, at, v, alive, zc, UNIT, Z_ALONG, FAR)
        alpha, u = tl.zeros((1, 1), tl.float64), tl.full((1, 1), 1.0, tl.float64)
        if WEIGHT:
            u = widened(tl.load(weight + at, mask=at < v, other=0.0)).to(tl.float64)[None, :]
        if SOFT:
            part_of = tl.load(places(share, at, qc, UNIT, Q_ALONG, FAR), mask=alive[:, None] & real, other=0.0)
            alpha = a_row[:, None] * (widened(part_of).to(tl.float64) * u / held[:, None])
        elif DENSE:
            each_of = tl.load(a + (r[:, None] * ar + at[None, :] * ak), mask=alive[:, None] & real, other=0.0)
            alpha = each_of.to(tl.float64)
        dz = column_gradient(
            x, alpha, u, peak, rest, inverse, factor, a_row, b_row, c_row, d_row, measure, beyond, alive, LIVE,
            DENSE, UNIFORM, ENTROPY, NARROW,
        )  # fmt: skip
        tl.store(places(into, at, oc, UNIT, O_ALONG, FAR), stored(dz, out), mask=there[:, None] & real)
    if LIVE:
        no_gradient(into, v, last, there, oc, LANES, UNIT, O_ALONG, FAR)
    if INDEX:
        tl.debug_barrier()
        to = y if O_ALONG == 1 else y * oc * UNIT
        tl.store(into[:, None] + to, stored(exact, out), mask=inside)
