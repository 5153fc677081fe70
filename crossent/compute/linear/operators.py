"""``part`` and ``pull`` of rows whose logits are made for the purpose, as operators that torch knows by name.

They are ``compute/operators.py`` with hidden states and head (x, w, bias) in the place of z, and with a link, given
by its three fields, between. What is ``beside`` a frozen w has the gradient that w has else. A compiler that sees them
cannot join the two passes and keep the logits.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from crossent.compute import backends
from crossent.compute.backends.reference import wide
from crossent.compute.linear.blocks import gradients_of
from crossent.compute.linear.product import Product, Rows, rows_at_once, rows_kept
from crossent.compute.link import Link
from crossent.compute.stats import field_names

_HEAD = "Tensor x, Tensor w, Tensor? bias, Tensor? temperature, float? softcap, Tensor? prior"
_TARGET = "Tensor? live, Tensor? index, Tensor? q, Tensor? column_weight"
_library = torch.library.Library("crossent", "FRAGMENT")
_library.define(
    f"linear_part({_HEAD}, {_TARGET}, bool uniform, bool entropy, bool order, int size, Tensor? beside=None) "
    "-> (Tensor, Tensor)"
)
_library.define(
    f"linear_pull({_HEAD}, {_TARGET}, Tensor fields, Tensor a, Tensor? b, Tensor? c, Tensor? d, int size, "
    "bool for_x, bool for_w, bool for_bias, Tensor? beside=None) -> (Tensor, Tensor, Tensor)"
)


def link_of(temperature: Tensor | None, softcap: float | None, prior: Tensor | None) -> Link | None:
    """The link with these fields; None if there is none."""
    if temperature is None and softcap is None and prior is None:
        return None
    return Link(1.0 if temperature is None else temperature, softcap, prior)


def product_of(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, size: int, beside: Tensor | None = None
) -> Product:
    """The product of the rows that count. A negative size is one that nobody asked for: it may be made larger."""
    keep = rows_kept(live)
    rows = x.shape[0] if keep is None else keep.shape[0]
    if size < 0:
        size = rows_at_once(x, w, rows, -size)
    return Product(x, w, bias, keep, size, None if live is None or live.device.type == "cpu" else live, beside)


def at_rows(at: Rows, *tensors: Tensor | None) -> Any:
    """The same rows of each of them."""
    return tuple(None if x is None else x[at] for x in tensors)


def part_of(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool,
) -> tuple[Tensor, Tensor]:
    """``part`` of rows z (m, v)."""
    return backends.of(z).part(z.unsqueeze(-1), live, index, q, column_weight, uniform, entropy, order)


def pull_over(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    fields: Tensor,
    *cotangents: Tensor | None,
) -> Tensor:
    """``pull`` of rows z (m, v), written over them."""
    rows = z.unsqueeze(-1)
    return backends.of(z).pull(rows, live, index, q, column_weight, fields, *cotangents, out=rows).squeeze(-1)


def linked(link: Link | None, z: Tensor) -> Tensor:
    """What the statistics are taken of: z itself, or in its wide dtype once the link has been applied."""
    return z if link is None else link(z.to(wide(z)))


def back_through(link: Link | None, z: Tensor, dz: Tensor) -> Tensor:
    """The gradient of z from that of what the link makes of it."""
    if link is None:
        return dz
    slope = dz / link.temperature
    if link.softcap is not None:
        slope = slope * (1 - torch.tanh(z.to(slope.dtype) / link.softcap) ** 2)
    return slope.to(z.dtype)


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """A derivative within a forward or backward pass, which a checkpoint around it is not to see."""
    # Not within torch.func, where there are none.
    allowed = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.enable_grad(), hooks if allowed else contextlib.nullcontext():
        yield


def lift_of(dtype: torch.dtype, *cotangents: Tensor | None) -> float:
    """A power of two by which the gradients of float16 logits are multiplied until they have been added up.

    float16 ends at 6e-8, and of a mean over a million rows nothing would be left. With the greatest cotangent near 1
    nothing is lost that float16 can hold.
    """
    if dtype != torch.float16 or any(x is not None and x.device.type != "cpu" for x in cotangents):
        return 1.0
    sizes = [float(x.abs().amax()) for x in cotangents if x is not None and x.numel()]
    greatest = max((size for size in sizes if math.isfinite(size)), default=0.0)
    return 2.0 ** -math.floor(math.log2(greatest)) if greatest > 0 else 1.0


def _part(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    softcap: float | None,
    prior: Tensor | None,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool,
    size: int,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    link = link_of(temperature, softcap, prior)
    fields, gap = _part_fake(
        x, w, bias, temperature, softcap, prior, live, index, q, column_weight, uniform, entropy, order, size
    )
    product = product_of(x, w, bias, live, size, beside)
    if product.keep is not None or not product.chunks:  # ones make nothing infinite in rows that nobody looks at
        fields.fill_(1.0)
        gap.fill_(1.0)
    for chunk in product:
        live_, index_, q_ = at_rows(chunk.at, product.live, index, q)
        read = part_of(linked(link, chunk.z), live_, index_, q_, column_weight, uniform, entropy, order)
        fields[:, chunk.at], gap[chunk.at] = read
    return fields, gap


def _part_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    softcap: float | None,
    prior: Tensor | None,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool,
    size: int,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    names = field_names(dense=q is not None, uniform=uniform, entropy=entropy, order=order)
    targets = 1 if q is not None else w.shape[0] if index is None else index.shape[1]
    rows = x.shape[0]
    return x.new_empty((len(names), rows), dtype=wide(x)), x.new_empty((rows, targets), dtype=wide(x))


def _pull(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    temperature: Tensor | None,
    softcap: float | None,
    prior: Tensor | None,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    fields: Tensor,
    a: Tensor,
    b: Tensor | None,
    c: Tensor | None,
    d: Tensor | None,
    size: int,
    for_x: bool,
    for_w: bool,
    for_bias: bool,
    beside: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    link = link_of(temperature, softcap, prior)
    product = product_of(x, w, bias, live, size, beside)
    gradients = gradients_of(product, (for_x, for_w, for_bias))
    lift = lift_of(x.dtype, *at_rows(slice(None) if product.keep is None else product.keep, a, b, c, d))
    cotangents = [None if t is None else t * lift if lift != 1.0 else t for t in (a, b, c, d)]
    for chunk in gradients:
        of_rows = at_rows(chunk.at, product.live, index, q)
        z = linked(link, chunk.z)
        dz = pull_over(z, *of_rows, column_weight, fields[:, chunk.at], *at_rows(chunk.at, *cotangents))
        gradients.add(chunk, back_through(link, chunk.z, dz))
    dx, dw, db = gradients.rounded(None if lift == 1.0 else torch.tensor(1.0 / lift))
    return _or_empty(dx, x), _or_empty(dw, x), _or_empty(db, x)


def _or_empty(d: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if d is None else d


def _pull_fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    beside = rest[16] if len(rest) > 16 else None
    wanted = zip((x, w if beside is None else beside, bias), rest[13:16], strict=True)
    return tuple(  # type: ignore[return-value]
        x.new_empty(0) if leaf is None or not there else torch.empty_like(leaf, memory_format=torch.contiguous_format)
        for leaf, there in wanted
    )


_library.impl("linear_part", _part, "CompositeExplicitAutograd")
_library.impl("linear_pull", _pull, "CompositeExplicitAutograd")
torch.library.register_fake("crossent::linear_part", _part_fake, lib=_library)
torch.library.register_fake("crossent::linear_pull", _pull_fake, lib=_library)

linear_part = torch.ops.crossent.linear_part.default
linear_pull = torch.ops.crossent.linear_pull.default
