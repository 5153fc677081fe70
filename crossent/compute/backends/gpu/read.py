"""Forwards: peak, rest and gap of every row from one reading, and from a second what only some losses want.

Each of ``LANES`` lanes of a tile keeps the greatest logit that came its way and a sum: of every newcomer and the
greatest so far, the lesser is the one whose power is added. So when all columns are through, each lane's own greatest
is missing from its sum. They are added at the end, but for those that are the peak, which are counted. The peak's power
is 1 and must never have been in ``rest``: it would have cost the others their digits, and a confident row is made of
those digits.

The powers are those of the logits themselves, in float64 (``arithmetic.alone``), and rest is their sum times
e^-peak. Only a row whose peak is beyond ±240 is read again, about its peak; so is every row of float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.compute.backends.gpu.arithmetic import REACH, UNSHIFT, alone, greatest, power, summed, widened
from crossent.compute.backends.gpu.layout import places, rows_of_program, starts

_GREATEST, _ALONE, _ABOUT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def columns_of(
    row, column, v, alive, of_columns, UNIT: tl.constexpr, ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """The logits at some columns of rows; -inf where there are none, and in rows that are not alive: never read."""
    there = alive[:, None] & (column < v)[None, :]
    return widened(tl.load(places(row, column, of_columns, UNIT, ALONG, FAR), mask=there, other=float("-inf")))


@triton.jit
def last_of(v, alive):
    """Where loops over columns end: at v, or at once if no row is alive."""
    return tl.where(tl.max(alive.to(tl.int32), 0) > 0, v, 0)


@triton.jit
def _read(
    first, peak, row, v, last, alive, of_columns, POWERS: tl.constexpr, LANES: tl.constexpr, UNIT: tl.constexpr,
    ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """(greatest, sum of the powers of all others) of each lane of rows whose first columns are ``first``."""
    column = tl.arange(0, LANES)
    most, total = first, tl.zeros(first.shape, tl.float64)
    z = columns_of(row, column + LANES, v, alive, of_columns, UNIT, ALONG, FAR)
    for start in range(LANES, last, LANES):
        # The next columns are on their way while these are worked on.
        ahead = columns_of(row, column + (start + LANES), v, alive, of_columns, UNIT, ALONG, FAR)
        less = tl.minimum(most, z)
        most = tl.maximum(most, z, propagate_nan=tl.PropagateNan.ALL)
        if POWERS == _ALONE:
            total += alone(less)
        if POWERS == _ABOUT:
            total += power(less, peak[:, None]).to(tl.float64)
        z = ahead
    return most, total


@triton.jit
def _but_peaks(most, peak):
    """(the lanes' greatest without those that are the peak, how many of them there are but one)."""
    is_peak = most == peak[:, None]
    return tl.where(is_peak, float("-inf"), most), (tl.sum(is_peak.to(tl.int32), 1) - 1).to(tl.float64)


@triton.jit
def _rest_about(
    first, peak, row, v, last, alive, of_columns, LANES: tl.constexpr, MANY: tl.constexpr, UNIT: tl.constexpr,
    ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """rest by powers of z - peak."""
    if MANY:
        most, total = _read(first, peak, row, v, last, alive, of_columns, _ABOUT, LANES, UNIT, ALONG, FAR)
        others, ties = _but_peaks(most, peak)
        powers = total + power(others, peak[:, None]).to(tl.float64)
    else:
        others, ties = _but_peaks(first, peak)
        powers = power(others, peak[:, None]).to(tl.float64)
    return summed(powers, LANES) * UNSHIFT + ties


@triton.jit
def peak_and_rest(
    first, row, v, last, alive, of_columns, LANES: tl.constexpr, MANY: tl.constexpr, UNIT: tl.constexpr,
    ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """(peak, Σ e^(z - peak) over all columns but one of the greatest) of rows whose first columns are ``first``."""
    if first.dtype == tl.float64:
        most = first
        if MANY:
            most, _ = _read(first, first, row, v, last, alive, of_columns, _GREATEST, LANES, UNIT, ALONG, FAR)
        peak = greatest(most)
        rest = _rest_about(first, peak, row, v, last, alive, of_columns, LANES, MANY, UNIT, ALONG, FAR)
    else:
        if MANY:
            most, total = _read(first, first, row, v, last, alive, of_columns, _ALONE, LANES, UNIT, ALONG, FAR)
            peak = greatest(most)
            others, ties = _but_peaks(most, peak)
            powers = total + alone(others)
        else:
            peak = greatest(first)
            others, ties = _but_peaks(first, peak)
            powers = alone(others)
        rest = summed(powers, LANES) * tl.exp(-peak.to(tl.float64)) + ties
        beyond = (tl.abs(peak) > REACH) & (tl.abs(peak) < float("inf"))
        if tl.max(beyond.to(tl.int32), 0) > 0:
            about = _rest_about(first, peak, row, v, last, alive, of_columns, LANES, MANY, UNIT, ALONG, FAR)
            rest = tl.where(beyond, about, rest)
    return peak, rest + (peak - peak).to(tl.float64)  # rows with +inf or NaN, or without a class that can be, are NaN


@triton.jit
def put_field(fields, at: tl.constexpr, rows, r, value, otherwise, alive, there):
    """Store one field of rows; of those that are not alive what it is of a row of zeros."""
    tl.store(fields + (rows * at + r), tl.where(alive, value, otherwise).to(tl.float64), mask=there)


@triton.jit
def evens(
    peak, row, v, last, alive, of_columns, weight, WEIGHT: tl.constexpr, LANES: tl.constexpr, UNIT: tl.constexpr,
    ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """(total, count, measure): Σ u (z - peak), how many columns are allowed, Σ u."""
    column = tl.arange(0, LANES)
    high = peak.to(tl.float64)[:, None]
    total = tl.zeros((peak.shape[0], LANES), tl.float64)
    count, measure = tl.zeros(total.shape, tl.int32), tl.zeros(total.shape, tl.float64)
    for start in range(0, last, LANES):
        at = column + start
        z = columns_of(row, at, v, alive, of_columns, UNIT, ALONG, FAR)
        allowed = z != float("-inf")
        below = z.to(tl.float64) - high
        count += allowed.to(tl.int32)
        if WEIGHT:
            u = widened(tl.load(weight + at, mask=at < v, other=0.0)).to(tl.float64)[None, :]
            total += tl.where(allowed, u * below, 0.0)
            measure += tl.where(allowed, u, 0.0)
        else:
            total += tl.where(allowed, below, 0.0)
    number = tl.sum(count, 1).to(tl.float64)
    if WEIGHT:
        return summed(total, LANES), number, summed(measure, LANES)
    else:
        return summed(total, LANES), number, number


@triton.jit
def _dot(
    peak, row, v, last, alive, of_columns, LANES: tl.constexpr, UNIT: tl.constexpr, ALONG: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """Σ e^(z - peak) (z - peak)."""
    column = tl.arange(0, LANES)
    total = tl.zeros((peak.shape[0], LANES), tl.float64)
    for start in range(0, last, LANES):
        z = columns_of(row, column + start, v, alive, of_columns, UNIT, ALONG, FAR)
        below = z.to(tl.float64) - peak.to(tl.float64)[:, None]
        x = power(z, peak[:, None]).to(tl.float64) * below
        total += tl.where(z != float("-inf"), x, 0.0)
    return summed(total, LANES) * UNSHIFT


@triton.jit
def _order(
    peak, hit, row, v, last, alive, of_columns, LANES: tl.constexpr, UNIT: tl.constexpr, ALONG: tl.constexpr,
    FAR: tl.constexpr,
):  # fmt: skip
    """(the first of the greatest columns, how many are above ``hit``)."""
    column = tl.arange(0, LANES)
    above = tl.zeros((peak.shape[0], LANES), tl.int32)
    first = above + v
    for start in range(0, last, LANES):
        z = columns_of(row, column + start, v, alive, of_columns, UNIT, ALONG, FAR)
        first = tl.minimum(first, tl.where(z == peak[:, None], (column + start)[None, :], v))
        above += (z > hit[:, None]).to(tl.int32)
    lead = tl.min(first, 1)
    return tl.where(lead < v, lead, 0).to(tl.float64), tl.sum(above, 1).to(tl.float64)


@triton.jit
def _soft(
    peak, row, v, last, alive, of_columns, share, of_shares, weight, WEIGHT: tl.constexpr, LANES: tl.constexpr,
    UNIT: tl.constexpr, ALONG: tl.constexpr, SHARES_ALONG: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """(gap, mass, held) of soft targets: the mean of peak - z under them, Σ q, Σ q w.

    One class alone is a label: its gap is its own, to the bit.
    """
    column = tl.arange(0, LANES)
    high = peak.to(tl.float64)[:, None]
    aim = tl.zeros((peak.shape[0], LANES), tl.float64)
    mass, held, own = tl.zeros(aim.shape, tl.float64), tl.zeros(aim.shape, tl.float64), tl.zeros(aim.shape, tl.float64)
    number = tl.zeros(aim.shape, tl.int32)
    for start in range(0, last, LANES):
        at = column + start
        z = columns_of(row, at, v, alive, of_columns, UNIT, ALONG, FAR)
        there = alive[:, None] & (at < v)[None, :]
        q = tl.load(places(share, at, of_shares, UNIT, SHARES_ALONG, FAR), mask=there, other=0.0)
        q = widened(q).to(tl.float64)
        weighed = q
        if WEIGHT:
            weighed = q * widened(tl.load(weight + at, mask=at < v, other=0.0)).to(tl.float64)[None, :]
        meant = weighed != 0
        gap = high - z.to(tl.float64)
        aim += tl.where(meant, weighed * gap, 0.0)
        own += tl.where(meant, gap, 0.0)
        number += meant.to(tl.int32)
        mass += q
        held += weighed
    whole = summed(held, LANES)
    mean = summed(aim, LANES) / tl.where(whole == 0, 1.0, whole)
    return tl.where(tl.sum(number, 1) == 1, summed(own, LANES), mean), summed(mass, LANES), whole


@triton.jit
def hits_of(row, y, v, alive, of_columns, UNIT: tl.constexpr, ALONG: tl.constexpr):
    """The logits at columns y (rows, k), and whether these are columns at all: what is none is never read."""
    inside = alive[:, None] & (y >= 0) & (y < v)
    at = y if ALONG == 1 else y * of_columns * UNIT
    return widened(tl.load(row[:, None] + at, mask=inside, other=0.0)), inside


@triton.jit
def part(
    z, zg, zc, zr, q, qg, qc, qr, live, index, ir, ik, weight, fields, gap, blocks, inner, v, rows, k,
    LIVE: tl.constexpr, INDEX: tl.constexpr, SOFT: tl.constexpr, WEIGHT: tl.constexpr, UNIFORM: tl.constexpr,
    ENTROPY: tl.constexpr, ORDER: tl.constexpr, UNIT: tl.constexpr, V_UNIT: tl.constexpr, R_UNIT: tl.constexpr,
    Z_ALONG: tl.constexpr, Q_ALONG: tl.constexpr, FAR: tl.constexpr, TILE: tl.constexpr, LANES: tl.constexpr,
    MANY: tl.constexpr, TARGETS: tl.constexpr,
):  # fmt: skip
    """The fields (f, rows) and gaps (rows, k) of a tile of rows, as ``reference.part`` gives them."""
    inner, v = inner * R_UNIT, v * V_UNIT
    group, of_group, there, r = rows_of_program(blocks, inner, TILE)
    alive = there
    if LIVE:
        alive = there & (tl.load(live + r, mask=there, other=0) != 0)
    last = last_of(v, alive)
    row = starts(z, group, of_group, zg, zr, UNIT, Z_ALONG)
    first = columns_of(row, tl.arange(0, LANES), v, alive, zc, UNIT, Z_ALONG, FAR)
    peak, rest = peak_and_rest(first, row, v, last, alive, zc, LANES, MANY, UNIT, Z_ALONG, FAR)
    all_columns = tl.zeros((TILE,), tl.float64) + v
    put_field(fields, 0, rows, r, peak, 0.0, alive, there)
    put_field(fields, 1, rows, r, rest, all_columns - 1.0, alive, there)
    high = peak.to(tl.float64)
    if SOFT:
        share = starts(q, group, of_group, qg, qr, UNIT, Q_ALONG)
        own, mass, held = _soft(
            peak, row, v, last, alive, zc, share, qc, weight, WEIGHT, LANES, UNIT, Z_ALONG, Q_ALONG, FAR
        )
        tl.store(gap + r, tl.where(alive, own, 0.0), mask=there)
        put_field(fields, 2, rows, r, mass, 1.0, alive, there)
        put_field(fields, 3, rows, r, held, 1.0, alive, there)
    elif INDEX:
        for start in range(0, k, TARGETS):
            at = start + tl.arange(0, TARGETS)
            wanted = there[:, None] & (at < k)[None, :]
            y = tl.load(index + (r[:, None] * ir + at[None, :] * ik), mask=wanted, other=0)
            hit, inside = hits_of(row, y, v, alive, zc, UNIT, Z_ALONG)
            own = tl.where(inside, high[:, None] - hit.to(tl.float64), float("nan"))
            tl.store(gap + (r[:, None] * k + at[None, :]), tl.where(alive[:, None], own, 0.0), mask=wanted)
    else:
        for start in range(0, v, LANES):
            at = tl.arange(0, LANES) + start
            own = high[:, None] - columns_of(row, at, v, alive, zc, UNIT, Z_ALONG, FAR).to(tl.float64)
            own = tl.where(alive[:, None], own, 0.0)
            tl.store(gap + (r[:, None] * v + at[None, :]), own, mask=there[:, None] & (at < v)[None, :])
    following: tl.constexpr = 4 if SOFT else 2
    if UNIFORM:
        total, count, measure = evens(peak, row, v, last, alive, zc, weight, WEIGHT, LANES, UNIT, Z_ALONG, FAR)
        put_field(fields, following, rows, r, total, 0.0, alive, there)
        put_field(fields, following + 1, rows, r, count, all_columns, alive, there)
        put_field(fields, following + 2, rows, r, measure, all_columns, alive, there)
    then: tl.constexpr = following + 3 if UNIFORM else following
    if ENTROPY:
        dot = _dot(peak, row, v, last, alive, zc, LANES, UNIT, Z_ALONG, FAR)
        put_field(fields, then, rows, r, dot, 0.0, alive, there)
    finally_: tl.constexpr = then + 1 if ENTROPY else then
    if ORDER:
        hit = peak  # nothing is above no target
        if INDEX:
            y = tl.load(index + r * ir, mask=there, other=0)
            own, _ = hits_of(row, y[:, None], v, alive, zc, UNIT, Z_ALONG)
            hit = tl.reshape(own, (TILE,))
        lead, above = _order(peak, hit, row, v, last, alive, zc, LANES, UNIT, Z_ALONG, FAR)
        put_field(fields, finally_, rows, r, lead, 0.0, alive, there)
        put_field(fields, finally_ + 1, rows, r, above, 0.0, alive, there)
