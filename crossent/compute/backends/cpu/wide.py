"""Wide rows, read along their columns: LANES sums that belong to column mod LANES, joined as a fixed tree.

So the order of summation depends on the column alone: zeros at the end of a row change no bit, and neither does the
way in which it lies in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import (
    ONE,
    UNSHIFT,
    as_worked,
    for_kernels,
    greatest,
    kernel,
    power,
    stored,
    widened,
)
from crossent.compute.backends.cpu.soft import only_one, sums_of_row, take_from_row
from crossent.compute.backends.cpu.target import Row, at_target, collect, row_of
from crossent.compute.backends.cpu.tree import LANES, in_blocks, tree_sum

SIDE_BY_SIDE = 16  # rows read together when their columns are far apart in memory: a line holds one column of each


# --- rows in and out ----------------------------------------------------------------------------------------------


@for_kernels
def line(x: Strided, at: int, buffer: NDArray) -> NDArray:
    """The v numbers from data[at] on, as they are worked out in: where they lie, if that needs no change."""


@overload(line, strict=False)
def _line(x: Any, at: Any, buffer: Any) -> Any:
    if x.types[0].dtype == buffer.dtype:

        def in_place(x: Any, at: Any, buffer: Any) -> Any:
            if x.sv == 1:
                return x.data[at : at + x.v]
            for j in range(x.v):
                buffer[j] = x.data[at + j * x.sv]
            return buffer

        return in_place

    def copied(x: Any, at: Any, buffer: Any) -> Any:
        if x.sv == 1:
            row = x.data[at : at + x.v]
            for j in range(x.v):
                buffer[j] = widened(row[j])
        else:
            for j in range(x.v):
                buffer[j] = widened(x.data[at + j * x.sv])
        return buffer

    return copied


@kernel
def place(x: Strided, r: int) -> int:
    """Where row r begins."""
    return (r // x.inner) * x.sn + (r % x.inner) * x.si


@kernel
def together(x: Strided, r: int, stop: int) -> int:
    """How many rows from r on lie side by side; 1 if rows lie along their columns."""
    if x.sv <= x.si:
        return 1
    return min(SIDE_BY_SIDE, stop - r, x.inner - r % x.inner)


@kernel
def apart(row: NDArray, buffer: NDArray) -> NDArray:
    """A copy of the row in the buffer, which stays in cache, where its place is about to be written over."""
    for j in range(row.size):
        buffer[j] = row[j]
    return buffer


@kernel
def turn_in(x: Strided, r: int, rows: int, buffer: NDArray) -> None:
    """Rows that lie side by side → the rows of the buffer."""
    base = place(x, r)
    for j in range(x.v):
        at = base + j * x.sv
        for t in range(rows):
            buffer[t, j] = widened(x.data[at + t * x.si])


@kernel
def turn_out(buffer: NDArray, rows: int, x: Strided, r: int) -> None:
    """The rows of the buffer → rows that lie side by side."""
    base = place(x, r)
    like = x.data[0]
    for j in range(x.v):
        at = base + j * x.sv
        for t in range(rows):
            x.data[at + t * x.si] = stored(buffer[t, j], like)


# --- forwards -----------------------------------------------------------------------------------------------------


@kernel
def first_at(row: NDArray, peak: Any) -> int:
    """The first column that equals the peak; 0 if none does (NaN)."""
    first = np.int32(row.size)
    for j in range(row.size):
        first = min(first, np.int32(j) if row[j] == peak else np.int32(row.size))
    return first if first < row.size else 0


@kernel
def rest_of(row: NDArray, peak: Any, kept: NDArray, powers: NDArray, lanes: NDArray, tree: NDArray) -> float:
    """Σ e^(z - peak) over all columns but one of the greatest; the powers are kept if there is room for them."""
    lanes[:] = 0.0
    blocks, tail = in_blocks(row, 2 * LANES)
    room, end = in_blocks(kept, 2 * LANES)
    for b in range(blocks.shape[0]):
        for j in range(2 * LANES):
            powers[j] = power(blocks[b, j], peak)
        if kept.size:
            for j in range(2 * LANES):
                room[b, j] = powers[j]
        for j in range(LANES):
            lanes[j] += np.float64(powers[j] + powers[j + LANES])
    if tail.size:
        powers[tail.size :] = 0
        for j in range(tail.size):
            powers[j] = power(tail[j], peak)
        for j in range(end.size):
            end[j] = powers[j]
        for j in range(LANES):
            lanes[j] += np.float64(powers[j] + powers[j + LANES])
    whole = tree_sum(lanes, tree)
    if whole >= 2.0 * ONE:
        return (whole - ONE) * UNSHIFT
    # The peak outweighs all others, and adding its 1 has cost them digits: its lane is added up again without it.
    # (A NaN also comes here, and stays one.)
    first = first_at(row, peak)
    again = 0.0
    for j in range(first % LANES, row.size, LANES):
        if j != first:
            again += np.float64(power(row[j], peak))
    lanes[first % LANES] = again + (whole - whole)
    return tree_sum(lanes, tree) * UNSHIFT


@kernel
def uniform_of(row: NDArray, peak: Any, weight: NDArray, lanes: NDArray, tree: NDArray) -> tuple[float, float, float]:
    """(total, count, measure): Σ u (z - peak), how many columns are allowed, Σ u."""
    nothing, count = as_worked(0.0, peak), np.int32(0)
    half = as_worked(0.5, peak)  # the whole may be too large for a float32
    lanes[:] = 0.0
    if weight.size:
        for start in range(0, row.size, LANES):
            block = row[start : start + min(LANES, row.size - start)]
            u = weight[start : start + block.size]
            for j in range(block.size):
                lanes[j] += u[j] * np.float64(half * block[j] - half * peak if block[j] > -np.inf else nothing)
    else:
        blocks, tail = in_blocks(row, LANES)
        for b in range(blocks.shape[0]):
            for j in range(LANES):
                z = blocks[b, j]
                lanes[j] += np.float64(half * z - half * peak if z > -np.inf else nothing)
        for j in range(tail.size):
            lanes[j] += np.float64(half * tail[j] - half * peak if tail[j] > -np.inf else nothing)
    for j in range(row.size):
        count += np.int32(row[j] > -np.inf)
    total = 2.0 * tree_sum(lanes, tree)
    if not weight.size:
        return total, float(count), float(count)
    lanes[:] = 0.0
    for start in range(0, row.size, LANES):
        block = row[start : start + min(LANES, row.size - start)]
        u = weight[start : start + block.size]
        for j in range(block.size):
            lanes[j] += u[j] if block[j] > -np.inf else 0.0
    return total, float(count), tree_sum(lanes, tree)


@kernel
def _dot(row: NDArray, peak: Any, lanes: NDArray, tree: NDArray) -> float:
    """Σ e^(z - peak) (z - peak)."""
    high = np.float64(peak)
    lanes[:] = 0.0
    for start in range(0, row.size, LANES):
        block = row[start : start + min(LANES, row.size - start)]
        for j in range(block.size):
            x = np.float64(power(block[j], peak)) * (np.float64(block[j]) - high)
            lanes[j] += x if block[j] > -np.inf else 0.0
    return tree_sum(lanes, tree) * UNSHIFT


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
    rows: NDArray,
    shares: NDArray,
    fields: NDArray,
    gap: NDArray,
    start: int,
    stop: int,
) -> None:
    """Fill fields and gap for rows start … stop; ``uniform``, ``dot`` and ``first`` say where, -1 for not wanted.

    ``rows`` and ``shares`` (SIDE_BY_SIDE, v) are memory to work in, of the dtype in which z and q are worked out.
    """
    powers = np.empty(2 * LANES, rows.dtype)
    lanes, tree = np.empty(LANES), np.empty(LANES)
    r = start
    while r < stop:
        many = together(z, r, stop)
        if many > 1:
            turn_in(z, r, many, rows)
        for t in range(many):
            row = rows[t] if many > 1 else line(z, place(z, r), rows[0])
            if live.size and not live[r]:
                row = rows[t]
                row[:] = 0
            peak = greatest(row)
            fields[0, r] = peak
            fields[1, r] = rest_of(row, peak, rows[0, :0], powers, lanes, tree)
            for k in range(index.shape[1]):
                gap[r, k] = np.float64(peak) - np.float64(row[index[r, k]])
            if not index.shape[1] and not q.v:
                for j in range(row.size):
                    gap[r, j] = np.float64(peak) - np.float64(row[j])
            if q.v:
                gap[r, 0], fields[2, r], fields[3, r] = sums_of_row(
                    row, peak, line(q, place(q, r), shares[0]), weight, lanes, tree
                )
            if uniform >= 0:
                fields[uniform, r], fields[uniform + 1, r], fields[uniform + 2, r] = uniform_of(
                    row, peak, weight, lanes, tree
                )
            if dot >= 0:
                fields[dot, r] = _dot(row, peak, lanes, tree)
            if first >= 0:
                fields[first, r] = first_at(row, peak)
                above, hit = 0, row[index[r, 0]] if index.shape[1] else peak  # nothing is above no target
                for j in range(row.size):
                    above += np.int64(row[j] > hit)
                fields[first + 1, r] = above
            r += 1


# --- backwards ----------------------------------------------------------------------------------------------------


@kernel
def all_columns(z: NDArray, peak: Any, q: NDArray, weight: NDArray, row: Row, held: float, dz: NDArray) -> None:
    """Take from the gradient of nll and lse what belongs to a soft target and to the rest of a loss."""
    nothing = as_worked(0.0, peak)
    if row.c != 0.0:
        if weight.size:
            for j in range(z.size):
                dz[j] -= as_worked(row.c * weight[j], peak) if z[j] > -np.inf else nothing
        else:
            c = as_worked(row.c, peak)
            for j in range(z.size):
                dz[j] -= c if z[j] > -np.inf else nothing
    if q.size:
        take_from_row(q, weight, row.a / held if held != 0 else 0.0, dz)
    if row.d != 0.0:
        d, beyond = as_worked(row.d / (1.0 + row.rest) * UNSHIFT, peak), as_worked(row.beyond, peak)
        for j in range(z.size):
            x = power(z[j], peak)
            dz[j] += x * ((peak - z[j]) + beyond) * d if x > 0 else nothing


@for_kernels
def room(x: Strided, at: int, buffer: NDArray) -> NDArray:
    """Where to write the v numbers that belong at data[at]: there, if they need no change, else the buffer."""


@for_kernels
def put(buffer: NDArray, x: Strided, at: int) -> None:
    """Store what was written to the ``room``, if it is not in its place already."""


@overload(room, strict=False)
def _room(x: Any, at: Any, buffer: Any) -> Any:
    if x.types[0].dtype == buffer.dtype:
        return lambda x, at, buffer: x.data[at : at + x.v] if x.sv == 1 else buffer
    return lambda x, at, buffer: buffer


@overload(put, strict=False)
def _put(buffer: Any, x: Any, at: Any) -> Any:
    same = x.types[0].dtype == buffer.dtype

    def put_row(buffer: Any, x: Any, at: Any) -> Any:
        if x.sv == 1:
            if not same:
                row, like = x.data[at : at + x.v], x.data[at]
                for j in range(x.v):
                    row[j] = stored(buffer[j], like)
        else:
            for j in range(x.v):
                x.data[at + j * x.sv] = stored(buffer[j], x.data[at])

    return put_row


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
    rows: NDArray,
    shares: NDArray,
    grads: NDArray,
    alpha: NDArray,
    out: Strided,
    over: bool,
    start: int,
    stop: int,
) -> None:
    """The gradient of rows start … stop into ``out``; ``alpha`` (v,) is zeros, and zeros again afterwards.

    ``over`` says that out is z itself.
    """
    known = np.zeros((8, stop - start))
    collect(start, stop - start, fields, uniform, dot, a, b, c, d, known)
    lean = uniform < 0 and dot < 0 and not q.v
    r = start
    while r < stop:
        many = together(z, r, stop)
        if many > 1:
            turn_in(z, r, many, rows)
        for t in range(many):
            at = place(out, r)
            dz = grads[t] if many > 1 else room(out, at, grads[0])
            if live.size and not live[r]:
                dz[:] = 0
            else:
                x = rows[t] if many > 1 else line(z, place(z, r), rows[0])
                if over and many == 1:
                    x = apart(x, rows[0])
                peak = as_worked(fields[0, r], rows[0, 0])
                factor = as_worked(known[7, r - start], peak)
                for j in range(x.size):
                    dz[j] = power(x[j], peak) * factor
                row = row_of(known, r - start)
                if q.v:
                    of_soft(x, peak, line(q, place(q, r), shares[0]), weight, row, fields[3, r], dz)
                else:
                    if not lean:
                        all_columns(x, peak, shares[0, :0], weight, row, 0.0, dz)
                    _of_columns(x, peak, index, weight, a, r, alpha, row, dz)
            if many == 1:
                put(dz, out, at)
            r += 1
        if many > 1:
            turn_out(grads, many, out, r - many)


@kernel
def _of_columns(
    z: NDArray, peak: Any, index: NDArray, weight: NDArray, a: NDArray, r: int, alpha: NDArray, row: Row, dz: NDArray
) -> None:
    """The exact entries of the target columns: those of index, or every one that has a cotangent."""
    if index.shape[1] == 1:
        j = index[r, 0]
        dz[j] = at_target(z[j], peak, a[r, 0], weight[j] if weight.size else 1.0, row)
    elif index.shape[1]:
        for k in range(index.shape[1]):
            alpha[index[r, k]] += a[r, k]
        for k in range(index.shape[1]):
            j = index[r, k]
            dz[j] = at_target(z[j], peak, alpha[j], weight[j] if weight.size else 1.0, row)
        for k in range(index.shape[1]):
            alpha[index[r, k]] = 0.0
    else:
        for j in range(z.size):
            if a[r, j] != 0.0:
                dz[j] = at_target(z[j], peak, a[r, j], weight[j] if weight.size else 1.0, row)


@kernel
def of_soft(z: NDArray, peak: Any, q: NDArray, weight: NDArray, row: Row, held: float, dz: NDArray) -> None:
    """One class alone is a label, to the bit. Of several, only the peak can have a p near 1, and needs care."""
    alone = only_one(q)
    column = alone
    all_columns(z, peak, q[:0] if alone >= 0 else q, weight, row, held, dz)
    if alone < 0 and row.rest < 1.0:
        column = first_at(z, peak)
    if column >= 0:
        u = weight[column] if weight.size else 1.0
        share = 1.0 if alone >= 0 else np.float64(q[column]) * u / held if held != 0 else 0.0
        dz[column] = at_target(z[column], peak, row.a * share, u, row)
