"""Rows of any layout as ``wide`` reads and writes them: where they lie if that will do, else in a buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import (
    LEAST_KEY,
    fetch,
    fma,
    for_kernels,
    greatest,
    kernel,
    key_of,
    of_key,
    stored,
    widened,
)

LINE = 64  # bytes of a cache line
SIDE_BY_SIDE = 16  # rows read together when their columns are far apart in memory: a line holds one column of each


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


@for_kernels
def line_and_greatest(x: Strided, at: int, buffer: NDArray) -> tuple[NDArray, Any]:
    """``line``, and the ``greatest`` of its numbers."""


@overload(line_and_greatest, strict=False)
def _line_and_greatest(x: Any, at: Any, buffer: Any) -> Any:
    if x.types[0].dtype == buffer.dtype:

        def apart_from_each_other(x: Any, at: Any, buffer: Any) -> Any:
            row = line(x, at, buffer)
            return row, greatest(row)

        return apart_from_each_other

    def at_once(x: Any, at: Any, buffer: Any) -> Any:
        if x.sv != 1:
            row = line(x, at, buffer)
            return row, greatest(row)
        narrow_row, most = x.data[at : at + x.v], LEAST_KEY
        for j in range(x.v):
            z = widened(narrow_row[j])
            buffer[j] = z
            most = max(most, key_of(z))
        return buffer, of_key(most)

    return at_once


@kernel
def place(x: Strided, r: int) -> int:
    """Where row r begins; without the divisions, where rows need none."""
    if x.inner == 1:
        return r * x.sn
    return (r // x.inner) * x.sn + (r % x.inner) * x.si


@kernel
def together(x: Strided, r: int, stop: int) -> int:
    """How many rows from r on lie side by side; 1 if rows lie along their columns."""
    if x.sv <= x.si:
        return 1
    return min(SIDE_BY_SIDE, stop - r, x.inner - r % x.inner)


@kernel
def next_of(x: Strided, r: int, stop: int) -> int:
    """Where row r begins, if it is to be read and lies in one piece; else -1."""
    return place(x, r) if r < stop and x.sv == 1 else -1


@kernel
def fetch_piece(x: Strided, at: int, start: int, stop: int) -> None:
    """Ask for columns start … stop of the row that begins at data[at], and do not wait for them."""
    if at >= 0:
        for j in range(at + start, at + stop, LINE // x.data.itemsize):
            fetch(x.data, np.uint64(j))


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


@for_kernels
def put_less(powers: NDArray, scale: Any, q: NDArray, each: Any, x: Strided, at: int) -> None:
    """Powers that lie in their ``room``, scaled and less each column's share of the target, into their place."""


@overload(put_less, strict=False)
def _scale_and_put(powers: Any, scale: Any, q: Any, each: Any, x: Any, at: Any) -> Any:
    same = x.types[0].dtype == powers.dtype

    def put_row(powers: Any, scale: Any, q: Any, each: Any, x: Any, at: Any) -> Any:
        if same or x.sv != 1:
            for j in range(powers.size):
                powers[j] = fma(-each, q[j], powers[j] * scale)
            put(powers, x, at)
        else:
            row, like = x.data[at : at + x.v], x.data[at]
            for j in range(powers.size):
                row[j] = stored(fma(-each, q[j], powers[j] * scale), like)

    return put_row
