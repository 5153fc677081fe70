"""The CPU backend: rows read by Numba kernels in float32 (float64 for float64), statistics in float64.

What makes float32 enough (docs/algebra.md, "Exact in float32"):

- z - peak is kept as its rounded value and its rounding error, and the error joins the exponent after the multiple of
  log 2 is gone. Alone the rounded value would be 44 ulp wrong in e^(z - peak) at 87 nats.
- Powers are kept 2^32 times too large, so that none is subnormal, and are added up in float64.
- 1 + rest is never rounded where rest is small: the sum that holds the peak's 1 is made again without it.
- 1 - p of a target is (rest + (1 - power)) / (1 + rest), never 1 - p.

Two shapes of loop: ``wide`` reads a row along its columns, ``narrow`` has rows side by side. Which of the two depends
on v alone, and every order of summation on v and the column alone: a row gives the same bits in any batch, layout and
number of threads. ``element`` is the binary case.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.backends.cpu import element, lines, narrow, once, wide
from crossent.compute.backends.cpu.memory import Strided, gradient_like, strided, values, worked_in
from crossent.compute.backends.cpu.threads import over_blocks
from crossent.compute.stats import field_names

_NOTHING = np.empty(0)
_EVERY_ROW = np.empty(0, np.bool_)


def part(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool = False,
) -> tuple[Tensor, Tensor]:
    """The fields and gaps of all rows, as ``reference.part`` gives them."""
    if not z.numel():
        return reference.part(z, live, index, q, column_weight, uniform, entropy, order)
    names = field_names(dense=q is not None, uniform=uniform, entropy=entropy, order=order)
    rows = z.shape[0] * z.shape[2]
    columns = np.empty((rows, 0), np.int64) if index is None else values(index.contiguous())
    fields = torch.empty((len(names), rows), dtype=torch.float64)
    targets = 1 if q is not None else z.shape[1] if index is None else index.shape[1]
    gap = torch.empty((rows, targets), dtype=torch.float64)
    where = [names.index(name) if name in names else -1 for name in ("total", "dot", "first")]
    read, soft = strided(z), _no_target(z.dtype) if q is None else strided(q)
    given = (read, _rows_that_count(live), columns, soft, _of_classes(column_weight), *where)
    out = values(fields), values(gap)

    def work(start: int, stop: int) -> None:
        if z.shape[1] <= narrow.NARROW:
            memory = np.empty((3, z.shape[1], narrow.TILE), worked_in(z))
            narrow.part(*given, *memory, *out, start, stop)
        else:
            many = lines.SIDE_BY_SIDE if read.sv > read.si else 1
            wide.part(*given, _lines(z, many), _lines(z if q is None else q, 1), *out, start, stop)

    over_blocks(work, rows, z.shape[1], _whole_tiles(z))
    return fields, gap


def pull(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    fields: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    d: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """The gradient of all rows, as ``reference.pull`` gives it."""
    if not z.numel():
        return reference.pull(z, live, index, q, column_weight, fields, a, b, c, d, out)
    names = field_names(dense=q is not None, uniform=c is not None, entropy=d is not None)
    columns = np.empty((a.shape[0], 0), np.int64) if index is None else values(index.contiguous())
    where = [names.index(name) if name in names else -1 for name in ("total", "dot")]
    read, soft = strided(z), _no_target(z.dtype) if q is None else strided(q)
    cotangents = [_NOTHING if x is None else values(x.contiguous()) for x in (b, c, d)]
    known = values(fields.contiguous())
    weight = _of_classes(column_weight)
    given = (read, _rows_that_count(live), columns, soft, weight, *where, known, values(a.contiguous()), *cotangents)
    dz = gradient_like(z) if out is None else out
    into = strided(dz)

    def work(start: int, stop: int) -> None:
        if z.shape[1] <= narrow.NARROW:
            memory = np.empty((3, z.shape[1], narrow.TILE), worked_in(z))
            narrow.pull(*given, *memory, np.empty((a.shape[1], narrow.TILE)), into, start, stop)
        else:
            many = lines.SIDE_BY_SIDE if read.sv > read.si else 1
            shares = _lines(z if q is None else q, 1)
            memory = _lines(z, many), shares, _lines(z, many), np.zeros(z.shape[1])
            wide.pull(*given, *memory, into, out is not None, start, stop)

    over_blocks(work, a.shape[0], z.shape[1], _whole_tiles(z))
    return dz


def both(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    uniform: bool,
    a: float,
    c: float,
    out: Tensor | None = None,
    q: Tensor | None = None,
    focal: float | None = None,
    slopes: tuple[float, float] | None = None,
    check: bool = False,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Fields, gaps and gradient of rows with a label (r, 1) each or a soft target q, whose cotangents are known.

    Those of all rows are a and c, of a soft target times its weights there. ``focal`` asks for focal losses of labels,
    with that exponent, whose nll has a slope in each row that a is multiplied by. With it, or with ``slopes`` by nll
    and uniform of a loss that is 0 with them, sums of losses of rows that count come in the place of gaps, and fields
    are None: kept for all rows they would take as much memory as narrow rows themselves. The gradient goes where
    ``out`` says, which may be z: its rows are then written over, each once it has been read. ``check``: a row that
    counts and has a weight of q below 0 has NaN as its gap or loss.
    """
    names = field_names(dense=q is not None, uniform=uniform, entropy=False)
    rows = z.shape[0] * z.shape[2]
    columns = np.empty((rows, 0), np.int64) if index is None else values(index.contiguous())
    every = focal is None and slopes is None
    fields = torch.empty((len(names), rows), dtype=torch.float64) if every else None
    narrow_rows = z.shape[1] <= narrow.NARROW
    gaps = np.empty(rows) if every else _NOTHING
    sums = _NOTHING if every else np.zeros(-(-rows // narrow.TILE) if narrow_rows else rows)
    read, soft = strided(z), _no_target(z.dtype) if q is None else strided(q)
    dz = gradient_like(z) if out is None else out
    total = names.index("total") if uniform else -1
    by = _NOTHING if slopes is None else np.array(slopes)
    given = (read, _rows_that_count(live), columns, soft, total, a, c, -1.0 if focal is None else focal, by, check)
    of_rows, into = None if fields is None else values(fields), strided(dz)

    def work(start: int, stop: int) -> None:
        found = np.empty((len(names), narrow.TILE)) if of_rows is None else of_rows
        gap = gaps if every else np.empty(narrow.TILE)
        if narrow_rows:
            memory = np.empty((3, z.shape[1], narrow.TILE), worked_in(z))
            once.of_narrow(*given, *memory, found, gap, sums, into, every, start, stop)
        else:
            many = lines.SIDE_BY_SIDE if read.sv > read.si else 1
            memory = _lines(z, many), _lines(z, many), _lines(z if q is None else q, 1)
            once.of_wide(*given, *memory, found, gap, sums, into, every, out is not None, start, stop)

    over_blocks(work, rows, z.shape[1], _whole_tiles(z))
    return fields, torch.from_numpy(gaps).unsqueeze(-1) if every else torch.from_numpy(sums), dz


def elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
    """The costs (n,) of binary logits (n,), as ``reference.elements`` gives them; summed, those of blocks."""
    # Of numpy, for the large pages that ``gradient_like`` tells of.
    cost = torch.from_numpy(np.empty(-(-z.shape[0] // element.BLOCK) if summed else z.shape[0]))
    given = (values(z.contiguous()), values(share.contiguous()), *_repeated(pos_weight, z), smoothing)
    out = values(cost)

    def work(start: int, stop: int) -> None:
        memory = np.empty((4, element.BLOCK), worked_in(z))
        element.part(*given, memory, _NOTHING if summed else out, out, start, stop)

    over_blocks(work, z.shape[0], 1, element.BLOCK)
    return cost


def pull_elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: Tensor) -> Tensor:
    """The gradient (n,) of binary logits, as ``reference.pull_elements`` gives it."""
    dz = gradient_like(z)
    cotangent = values(a[:1] if a.stride(0) == 0 else a.contiguous())
    given = (values(z.contiguous()), values(share.contiguous()), *_repeated(pos_weight, z), smoothing, cotangent)
    out = values(dz)

    def work(start: int, stop: int) -> None:
        element.pull(*given, np.empty((3, element.BLOCK), worked_in(z)), out, start, stop)

    over_blocks(work, z.shape[0], 1, element.BLOCK)
    return dz


def both_elements(
    z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: float, check: bool = False
) -> tuple[Tensor, Tensor]:
    """The summed costs of binary logits (n,) and their gradient, whose cotangent is the same for all.

    ``check``: the sum of a block of which some share is not in [0, 1] is NaN.
    """
    dz, cost = gradient_like(z), torch.empty(-(-z.shape[0] // element.BLOCK), dtype=torch.float64)
    given = (values(z.contiguous()), values(share.contiguous()), *_repeated(pos_weight, z), smoothing, np.array([a]))
    out = values(cost), values(dz)

    def work(start: int, stop: int) -> None:
        element.both(*given, check, np.empty((4, element.BLOCK), worked_in(z)), *out, start, stop)

    over_blocks(work, z.shape[0], 1, element.BLOCK)
    return cost, dz


def _repeated(weight: Tensor | None, z: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The weights in the dtype that z is worked out in, and as often as a block can need them from any start."""
    once = np.empty(0) if weight is None else values(weight.to(torch.float64))
    once = once.astype(worked_in(z))
    return once, np.resize(once, min(once.size, z.shape[0]) + element.BLOCK) if once.size else once


def _whole_tiles(z: Tensor) -> int:
    """What blocks of rows are a multiple of: of narrow ones a tile, which costs as much if it is not full."""
    return narrow.TILE if z.shape[1] <= narrow.NARROW else 1


def _lines(x: Tensor, lines: int) -> np.ndarray:
    return np.empty((lines, x.shape[1]), worked_in(x))


@cache
def _no_target(like: torch.dtype) -> Strided:
    return strided(torch.empty((0, 0, 0), dtype=like, device="cpu"))


def _rows_that_count(live: Tensor | None) -> np.ndarray:
    return _EVERY_ROW if live is None else values(live.contiguous())


def _of_classes(weight: Tensor | None) -> np.ndarray:
    return _NOTHING if weight is None else values(weight.to(torch.float64).contiguous())
