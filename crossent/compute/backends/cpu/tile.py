"""Tiles of narrow rows: TILE of them side by side, turned in from any layout and out into any.

Logits that come channels first lie side by side already; others are turned as they are read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from crossent.compute.backends.cpu.lines import LINE
from crossent.compute.backends.cpu.memory import Strided
from crossent.compute.backends.cpu.precision import as_worked, fetch, fma, for_kernels, kernel, stored, widened
from crossent.compute.backends.cpu.square import SIDE, square
from crossent.compute.backends.cpu.tree import TILE


class Next(NamedTuple):
    """Where the next tile begins, how far its columns lie apart, and how many of its rows to ask for."""

    at: int
    sv: int
    rows: int


# Indices that are not those of a loop are unsigned: of a signed one a kernel asks each time whether it counts from the
# end, and that costs as much as the number it fetches.


@kernel
def tile_of(x: Strided, r: int, stop: int) -> int:
    """How many rows from r on make a tile: they share their place in n, or have inner of 1."""
    rows = min(TILE, stop - r)
    return rows if x.inner == 1 else min(rows, x.inner - r % x.inner)


@kernel
def _first_of(x: Strided, r: int) -> tuple[int, int]:
    """Where row r begins, and how far it is from there to the next row of its tile."""
    if x.inner == 1:
        return r * x.sn, x.sn
    return (r // x.inner) * x.sn + (r % x.inner) * x.si, x.si


@kernel
def next_of(x: Strided, r: int, stop: int) -> Next:
    """What to ask for of the tile that begins at row r, column by column, while another is worked on.

    Rows that lie one after the other are as many pieces, each as long as a column. (All at once would be more than a
    processor can wait for, and it would stand still.)
    """
    at, rows = _first_of(x, r)[0], tile_of(x, r, stop)
    if r < stop and x.inner > 1 and x.si == 1:
        return Next(at, x.sv, rows)
    if r < stop and x.inner == 1 and x.sv == 1 and x.sn == x.v:
        return Next(at, rows, rows)
    return Next(0, 0, 0)


@kernel
def fetch_column(data: NDArray, ahead: Next, j: int) -> None:
    """Ask for column j of the next tile, and do not wait for it."""
    at = ahead.at + j * ahead.sv
    for t in range(0, ahead.rows, LINE // data.itemsize):
        fetch(data, np.uint64(at + t))


@for_kernels
def _as_stored(tile: NDArray, x: Strided) -> NDArray:
    """Memory for a tile of numbers as x stores them: the tile itself, if that is how they are worked out."""


@overload(_as_stored, strict=False)
def _like_stored(tile: Any, x: Any) -> Any:
    if x.types[0].dtype == tile.dtype:
        return lambda tile, x: tile
    return lambda tile, x: np.empty(tile.shape, x.data.dtype)


@kernel
def _rows_in_squares(x: Strided, base: int, step: int, rows: int) -> int:
    """How many of the rows from base on can be read as squares, which may be wider than they are."""
    if x.sv != 1 or step <= 0:
        return 0
    wide = -(-x.v // SIDE) * SIDE
    return max(0, min(rows, (x.data.size - base - wide) // step + 1)) // SIDE * SIDE


@kernel
def turn_in(x: Strided, r: int, rows: int, tile: NDArray) -> None:
    """Rows r … r + rows into the tile (v, TILE), column by column."""
    base, step = _first_of(x, r)
    if step == 1:
        for j in range(x.v):
            at, column = base + j * x.sv, tile[j]
            side_by_side = x.data[at : at + rows]
            for t in range(rows):
                column[t] = widened(side_by_side[t])
        return
    squares = _rows_in_squares(x, base, step, rows)
    if squares:
        read = _as_stored(tile, x)
        for t in range(0, squares, SIDE):
            for j in range(0, x.v, SIDE):
                square(x.data, base + t * step + j, step, SIDE, min(SIDE, x.v - j), read, j * TILE + t, TILE)
        if x.data.itemsize != tile.itemsize:
            for j in range(x.v):
                column, line = tile[j], read[j]
                for t in range(squares):
                    column[t] = widened(line[t])
    for j in range(x.v):
        column = tile[j]
        first, apart = np.uint64(base + j * x.sv), np.uint64(step)
        for t in range(np.uint64(squares), np.uint64(rows)):
            column[t] = widened(x.data[first + t * apart])


@kernel
def turn_out(tile: NDArray, rows: int, x: Strided, r: int) -> None:
    """The tile's rows to where they belong in x."""
    base, step = _first_of(x, r)
    like = x.data[0]
    if step == 1:
        for j in range(x.v):
            at, column = base + j * x.sv, tile[j]
            side_by_side = x.data[at : at + rows]
            for t in range(rows):
                side_by_side[t] = stored(column[t], like)
        return
    ready = _as_stored(tile, x)
    if x.data.itemsize != tile.itemsize:
        for j in range(x.v):
            column, line = tile[j], ready[j]
            for t in range(TILE):
                line[t] = stored(column[t], like)
    squares = rows // SIDE * SIDE if x.sv == 1 else 0
    for t in range(0, squares, SIDE):
        for j in range(0, x.v, SIDE):
            square(ready, j * TILE + t, TILE, min(SIDE, x.v - j), SIDE, x.data, base + t * step + j, step)
    for j in range(x.v):
        line = ready[j]
        first, apart = np.uint64(base + j * x.sv), np.uint64(step)
        for t in range(np.uint64(squares), np.uint64(rows)):
            x.data[first + t * apart] = line[t]


@kernel
def turn_out_less(kept: NDArray, scale: NDArray, q: NDArray, each: NDArray, rows: int, x: Strided, r: int) -> None:
    """Powers times ``scale``, less each row's share of the target in q, to where they belong in x.

    The steps are those of ``less_shares`` and ``turn_out``, and so are the bits; rows that lie side by side are stored
    as they are made.
    """
    base, step = _first_of(x, r)
    like = x.data[0]
    for j in range(x.v):
        at = base + j * x.sv
        column, share = kept[j], q[j]
        if step == 1:
            side_by_side = x.data[at : at + rows]
            for t in range(rows):
                side_by_side[t] = stored(fma(-share[t], each[t], column[t] * scale[t]), like)
        else:
            for t in range(TILE):
                column[t] = fma(-share[t], each[t], column[t] * scale[t])
    if step != 1:
        turn_out(kept, rows, x, r)


@kernel
def some_to_places(entries: NDArray, index: NDArray, listed: NDArray, x: Strided, r: int, like: NDArray) -> None:
    """As ``some_out``, to columns of x; ``like`` is of the dtype in which rows are worked out."""
    base, step = _first_of(x, r)
    for i in range(listed.size):
        t = listed[i]
        at = np.uint64(base + t * step + index[t] * x.sv)
        x.data[at] = stored(as_worked(entries[t], like[0]), x.data[0])


@kernel
def silence_places(live: NDArray, r: int, rows: int, x: Strided) -> None:
    """Zeros in x for the rows that are not to be read."""
    if live.size:
        base, step = _first_of(x, r)
        for t in range(rows):
            if not live[r + t]:
                for j in range(x.v):
                    x.data[np.uint64(base + t * step + j * x.sv)] = 0


@kernel
def silence(live: NDArray, r: int, rows: int, tile: NDArray) -> None:
    """Zeros for the rows that are not to be read."""
    if live.size:
        for t in range(rows):
            if not live[r + t]:
                for j in range(tile.shape[0]):
                    tile[j, t] = 0


@kernel
def entries_in(tile: NDArray, index: NDArray, entries: NDArray) -> None:
    """What stands in one column of each row."""
    for t in range(index.size):
        entries[t] = tile[np.uint64(index[t]), t]


@kernel
def entries_out(entries: NDArray, index: NDArray, tile: NDArray) -> None:
    """Back to its column."""
    for t in range(index.size):
        tile[np.uint64(index[t]), t] = entries[t]


@kernel
def some_out(entries: NDArray, index: NDArray, listed: NDArray, tile: NDArray) -> None:
    """Those of some rows back to their columns."""
    for i in range(listed.size):
        t = np.uint64(listed[i])
        tile[np.uint64(index[t]), t] = entries[t]
