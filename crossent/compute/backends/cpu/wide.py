"""Wide rows, read along their columns: LANES sums that belong to column mod LANES, joined as a fixed tree.

So the order of summation depends on the column alone: zeros at the end of a row change no bit, and neither does the
way in which it lies in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.lines import (
    apart,
    fetch_piece,
    line,
    next_of,
    place,
    put,
    put_less,
    room,
    together,
    turn_in,
    turn_out,
)
from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import ONE, UNSHIFT, as_worked, greatest, kernel, power, stored
from crossent.compute.backends.cpu.soft import only_one, sums_of_row, take_from_row
from crossent.compute.backends.cpu.target import Row, at_target, collect, row_of
from crossent.compute.backends.cpu.tree import LANES, STRETCH, add_pairs, in_blocks, tree_sum
from crossent.compute.backends.cpu.views import lent

PIECE = 256  # columns of the next row that are asked for at a time

# --- forwards -----------------------------------------------------------------------------------------------------


@kernel
def first_at(row: NDArray, peak: Any) -> int:
    """The first column that equals the peak; 0 if none does (NaN)."""
    first = np.int32(row.size)
    for j in range(row.size):
        first = min(first, np.int32(j) if row[j] == peak else np.int32(row.size))
    return first if first < row.size else 0


@kernel
def _raise(row: NDArray, peak: Any, made: NDArray) -> None:
    for j in range(row.size):
        made[j] = power(row[j], peak)


@kernel
def rest_of(row: NDArray, peak: Any, kept: NDArray, powers: NDArray, lanes: NDArray, tree: NDArray) -> float:
    """Σ e^(z - peak) over all columns but one of the greatest; the powers are kept if there is room for them.

    ``powers`` (STRETCH,) is where they are made if there is none.
    """
    lanes[:] = 0.0
    for start in range(0, row.size, STRETCH):
        z = row[start : min(start + STRETCH, row.size)]
        made = kept[start : start + z.size] if kept.size else powers[: z.size]
        _raise(z, peak, made)
        add_pairs(made, lanes)
    return _rest_in(lanes, row, peak, tree)


@kernel
def rest_ahead(
    row: NDArray, peak: Any, kept: NDArray, lanes: NDArray, tree: NDArray, z: Strided, q: Strided, out: Strided, r: int,
    stop: int,
) -> float:  # fmt: skip
    """The same of a row of at most STRETCH columns, while what row r will need is fetched piece by piece.

    (All at once would be more than a processor can wait for.)
    """
    z_next, q_next, out_next = next_of(z, r, stop), next_of(q, r, stop) if q.v else -1, next_of(out, r, stop)
    lanes[:] = 0.0
    for start in range(0, row.size, PIECE):
        end = min(start + PIECE, row.size)
        fetch_piece(z, z_next, start, end)
        fetch_piece(q, q_next, start, end)
        fetch_piece(out, out_next, start, end)
        _raise(row[start:end], peak, kept[start:end])
    add_pairs(kept, lanes)
    return _rest_in(lanes, row, peak, tree)


@kernel
def _rest_in(lanes: NDArray, row: NDArray, peak: Any, tree: NDArray) -> float:
    """The sum of a row's powers, which are added up in the lanes, but for one of the greatest."""
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
    z, q, live, index, weight = lent(z), lent(q), lent(live), lent(index), lent(weight)
    rows, shares, fields, gap = lent(rows), lent(shares), lent(fields), lent(gap)
    powers = np.empty(STRETCH, rows.dtype)
    lanes, masses, tree = np.empty(LANES), np.empty(LANES), np.empty(LANES)
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
                    row, peak, line(q, place(q, r), shares[0]), weight, lanes, masses, tree
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
    z, q, out, live, index, weight = lent(z), lent(q), lent(out), lent(live), lent(index), lent(weight)
    rows, shares, grads, alpha, fields, a = lent(rows), lent(shares), lent(grads), lent(alpha), lent(fields), lent(a)
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


@kernel
def put_soft(
    powers: NDArray, scale: Any, z: NDArray, peak: Any, q: NDArray, row: Row, held: float, out: Strided, at: int
) -> None:
    """Powers → the gradient of nll under a target of several classes without class weights, in its place."""
    each = row.a / held if held != 0 else 0.0
    put_less(powers, scale, q, as_worked(each, peak), out, at)
    if row.rest < 1.0:
        j = first_at(z, peak)
        own = np.float64(q[j]) / held if held != 0 else 0.0
        entry = as_worked(at_target(z[j], peak, row.a * own, 1.0, row), peak)
        out.data[at + j * out.sv] = stored(entry, out.data[at])
