"""The GPU backend: rows read by Triton kernels in float32 (float64 for float64), summed up in float64.

What it takes and gives is written in ``reference``; its digits are those of the CPU's kernels, and docs/algebra.md
("Exact in float32") says why they are enough. Sums are in float64 because that is the simplest that is right: on the
processors this is made for (A100, H100, H200, B200) float64 runs at half the speed of float32 and costs a conversion
and an addition for each logit, no more than the four to six operations of a compensated float32. On consumer cards, at
a 64th of the speed, it is these additions that a row waits for.

Nothing here waits for the device, allocates beyond its results, or adds up in an order that depends on anything but the
number of columns: no atomics, one program for a tile of rows. So everything can be captured in a CUDA graph, and a row
has the same bits in any batch, place and layout.

``arithmetic`` has powers and sums, ``layout`` addresses and tiles, ``read`` is forwards, ``write`` backwards, ``once``
both at a time, and ``element`` the binary case.
"""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.backends.gpu import element, once, read, write
from crossent.compute.backends.gpu.layout import Layout, Tile, layout_of, pointer, tile_of
from crossent.compute.backends.reference import ELEMENTS
from crossent.compute.stats import field_names

# Steps that are exact only if nothing is fused would be broken by a compiler that fuses; fma is written where meant.
_EXACT = {"enable_fp_fusion": False}
NOBODY_WAITS = True
"""Cotangents that are the same for all rows are read from the device's memory, and labels that are no class allowed."""
_TARGETS = 16  # columns of an index that are read together


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
    layout, tile = _shape(z, *(() if q is None else (q,)))
    names = field_names(dense=q is not None, uniform=uniform, entropy=entropy, order=order)
    rows, v = z.shape[0] * z.shape[2], z.shape[1]
    fields = torch.empty((len(names), rows), dtype=torch.float64, device=z.device)
    targets = 1 if q is not None else v if index is None else index.shape[1]
    gap = torch.empty((rows, targets), dtype=torch.float64, device=z.device)
    *of_z, z_along = layout.given(0)
    *of_q, q_along = (0, 0, 0, 0) if q is None else layout.given(1)
    with _on(z):
        read.part[_grid(layout, tile)](
            z, *of_z, z if q is None else q, *of_q, *_optional(z, live), *_labels(z, index),
            *_optional(z, column_weight), fields, gap, *_counts(layout, tile), rows, targets,
            LIVE=live is not None, INDEX=index is not None, SOFT=q is not None, WEIGHT=column_weight is not None,
            UNIFORM=uniform, ENTROPY=entropy, ORDER=order, Z_ALONG=z_along, Q_ALONG=q_along,
            MANY=v > tile.lanes, TARGETS=min(triton.next_power_of_2(targets), _TARGETS), **_compiled(layout, tile),
        )  # fmt: skip
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
    unless: Tensor | None = None,
) -> Tensor:
    """The gradient of all rows, as ``reference.pull`` gives it; nothing is done if the number at ``unless`` is 1."""
    if not z.numel():
        return reference.pull(z, live, index, q, column_weight, fields, a, b, c, d, out)
    dz = torch.empty_like(z) if out is None else out
    layout, tile = _shape(z, dz, *(() if q is None else (q,)))
    *of_z, z_along = layout.given(0)
    *of_out, out_along = layout.given(1)
    *of_q, q_along = (0, 0, 0, 0) if q is None else layout.given(2)
    cotangents = [given for x in (b, c, d) for given in ((z, 0) if x is None else (x, x.stride(0)))]
    with _on(z):
        write.pull[_grid(layout, tile)](
            z, *of_z, z if q is None else q, *of_q, dz, *of_out, *_optional(z, live), *_labels(z, index),
            *_optional(z, column_weight), fields.contiguous(), a, *a.stride(), *cotangents, *_optional(z, unless),
            *_counts(layout, tile), fields.shape[1], a.shape[1],
            LIVE=live is not None, INDEX=index is not None, SOFT=q is not None, WEIGHT=column_weight is not None,
            LSE=b is not None, UNIFORM=c is not None, ENTROPY=d is not None, UNLESS=unless is not None,
            Z_ALONG=z_along, Q_ALONG=q_along, O_ALONG=out_along, NARROW=_narrow(z),
            TARGETS=1 if index is None else triton.next_power_of_2(a.shape[1]), **_compiled(layout, tile),
        )  # fmt: skip
    return dz


def both(
    z: Tensor,
    live: Tensor | None,
    index: Tensor,
    uniform: bool,
    a: float | Tensor,
    c: float | Tensor,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fields, gaps and gradient of rows with a label (r, 1) each, whose cotangents a and c are the same for all.

    These may be numbers on the device, which nobody waits for. ``out``, where the gradient goes, may be z.
    """
    dz = torch.empty_like(z) if out is None else out
    layout, tile = _shape(z, dz)
    names = field_names(dense=False, uniform=uniform, entropy=False)
    rows, v = z.shape[0] * z.shape[2], z.shape[1]
    fields = torch.empty((len(names), rows), dtype=torch.float64, device=z.device)
    gap = torch.empty((rows, 1), dtype=torch.float64, device=z.device)
    *of_z, z_along = layout.given(0)
    *of_out, out_along = layout.given(1)
    given = [x.to(torch.float64) if isinstance(x, Tensor) else _number(x, z) for x in (a, c)]
    with _on(z):
        once.both[_grid(layout, tile)](
            z, *of_z, dz, *of_out, *_optional(z, live), *_labels(z, index)[:2], fields, gap, *given,
            *_counts(layout, tile), rows,
            LIVE=live is not None, UNIFORM=uniform, Z_ALONG=z_along, O_ALONG=out_along, MANY=v > tile.lanes,
            NARROW=_narrow(z), **_compiled(layout, tile),
        )  # fmt: skip
    return fields, gap, dz


def elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
    """The costs (n,) of binary logits (n,), as ``reference.elements`` gives them; summed, those of blocks."""
    n = z.shape[0]
    if not n:
        return reference.elements(z, share, pos_weight, smoothing, summed)
    cost = torch.empty(-(-n // ELEMENTS) if summed else n, dtype=torch.float64, device=z.device)
    weight, period = _repeated(z, pos_weight)
    with _on(z):
        element.part[(triton.cdiv(n, _BLOCKS * ELEMENTS),)](
            z.contiguous(), share.contiguous(), weight, cost, n, period,
            SMOOTHING=float(smoothing), POS=pos_weight is not None, SUMMED=summed, **_OF_ELEMENTS,
        )  # fmt: skip
    return cost


def pull_elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: Tensor) -> Tensor:
    """The gradient (n,) of binary logits, as ``reference.pull_elements`` gives it."""
    n = z.shape[0]
    if not n:
        return torch.empty_like(z)
    dz = torch.empty_like(z, memory_format=torch.contiguous_format)
    weight, period = _repeated(z, pos_weight)
    with _on(z):
        element.pull[(triton.cdiv(n, _BLOCKS * ELEMENTS),)](
            z.contiguous(), share.contiguous(), weight, a, a.stride(0), dz, n, period, SMOOTHING=float(smoothing),
            POS=pos_weight is not None, EACH=a.shape == z.shape, **_OF_ELEMENTS,
        )  # fmt: skip
    return dz


_BLOCKS = 4  # of ELEMENTS to a program
_OF_ELEMENTS = {"TILE": _BLOCKS, "BLOCK": ELEMENTS, "num_warps": 4, **_EXACT}


def _shape(*tensors: Tensor) -> tuple[Layout, Tile]:
    layout = layout_of(*tensors)
    return layout, tile_of(layout.v, layout.inner, layout.along(0))


def _grid(layout: Layout, tile: Tile) -> tuple[int]:
    return (layout.outer * triton.cdiv(layout.inner, tile.rows),)


def _counts(layout: Layout, tile: Tile) -> tuple[int, int, int]:
    """How many tiles a group has, how many rows, and v, without the unit that addresses have in common."""
    units = _units(layout)
    return triton.cdiv(layout.inner, tile.rows), layout.inner // units["R_UNIT"], layout.v // units["V_UNIT"]


def _units(layout: Layout) -> dict[str, int]:
    common = {size: layout.unit if size % layout.unit == 0 else 1 for size in (layout.v, layout.inner)}
    return {"UNIT": layout.unit, "V_UNIT": common[layout.v], "R_UNIT": common[layout.inner]}


def _compiled(layout: Layout, tile: Tile) -> dict[str, int | bool]:
    """What a kernel is compiled for: one for each tile, unit and kind of layout, and nothing else of the shape."""
    return {
        **_units(layout), "FAR": layout.far, "TILE": tile.rows, "LANES": tile.lanes, "num_warps": tile.warps, **_EXACT
    }  # fmt: skip


def _optional(z: Tensor, x: Tensor | None) -> tuple[Tensor]:
    """A pointer to x, or to something."""
    return (z if x is None else pointer(x.contiguous()),)


def _labels(z: Tensor, index: Tensor | None) -> tuple[Tensor, int, int]:
    return (z, 0, 0) if index is None else (index, *index.stride())


def _repeated(z: Tensor, weight: Tensor | None) -> tuple[Tensor, int]:
    return (z, 1) if weight is None else (weight.contiguous(), weight.shape[0])


def _number(x: float, z: Tensor) -> Tensor:
    return torch.full((), x, dtype=torch.float64, device=z.device)


def _narrow(z: Tensor) -> bool:
    return z.dtype in (torch.bfloat16, torch.float16)


def _on(z: Tensor) -> contextlib.AbstractContextManager:
    """Launch on the device that z is on. (On the CPU it is Triton's interpreter that runs.)"""
    return torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext()
