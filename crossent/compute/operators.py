"""The kernels as operators that torch knows by name, so that compilers, exporters and fake tensors see them.

They hold no autograd (``rows`` has it) and choose the backend when they run. A tensor that is only a stand-in gets the
shapes of the answer from the fakes below.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.compute import backends
from crossent.compute.backends.reference import ELEMENTS, wide
from crossent.compute.stats import field_names

_library = torch.library.Library("crossent", "DEF")
_library.define(
    "part(Tensor z, Tensor? live, Tensor? index, Tensor? q, Tensor? column_weight, bool uniform, bool entropy, "
    "bool order=False) -> (Tensor, Tensor)"
)
_library.define(
    "pull(Tensor z, Tensor? live, Tensor? index, Tensor? q, Tensor? column_weight, Tensor fields, "
    "Tensor a, Tensor? b, Tensor? c, Tensor? d) -> Tensor"
)

_library.define("elements(Tensor z, Tensor share, Tensor? pos_weight, float smoothing, bool summed) -> Tensor")
_library.define("pull_elements(Tensor z, Tensor share, Tensor? pos_weight, float smoothing, Tensor a) -> Tensor")


def _part(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool = False,
) -> tuple[Tensor, Tensor]:
    return backends.of(z).part(z, live, index, q, column_weight, uniform, entropy, order)


def _pull(
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
) -> Tensor:
    return backends.of(z).pull(z, live, index, q, column_weight, fields, a, b, c, d)


def _elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
    return backends.of(z).elements(z, share, pos_weight, smoothing, summed)


def _pull_elements(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, a: Tensor) -> Tensor:
    return backends.of(z).pull_elements(z, share, pos_weight, smoothing, a)


_library.impl("elements", _elements, "CompositeExplicitAutograd")
_library.impl("pull_elements", _pull_elements, "CompositeExplicitAutograd")
_library.impl("part", _part, "CompositeExplicitAutograd")
_library.impl("pull", _pull, "CompositeExplicitAutograd")


@torch.library.register_fake("crossent::part", lib=_library)
def _part_fake(
    z: Tensor,
    live: Tensor | None,
    index: Tensor | None,
    q: Tensor | None,
    column_weight: Tensor | None,
    uniform: bool,
    entropy: bool,
    order: bool = False,
) -> tuple[Tensor, Tensor]:
    rows = z.shape[0] * z.shape[2]
    targets = 1 if q is not None else z.shape[1] if index is None else index.shape[1]
    names = field_names(dense=q is not None, uniform=uniform, entropy=entropy, order=order)
    return z.new_empty((len(names), rows), dtype=wide(z)), z.new_empty((rows, targets), dtype=wide(z))


@torch.library.register_fake("crossent::pull", lib=_library)
def _pull_fake(z: Tensor, *_: Tensor | None) -> Tensor:
    return torch.empty_like(z)


@torch.library.register_fake("crossent::elements", lib=_library)
def _elements_fake(z: Tensor, share: Tensor, pos_weight: Tensor | None, smoothing: float, summed: bool) -> Tensor:
    return z.new_empty(-(-z.shape[0] // ELEMENTS) if summed else z.shape[0], dtype=wide(z))


@torch.library.register_fake("crossent::pull_elements", lib=_library)
def _pull_elements_fake(z: Tensor, *_: Tensor | float | None) -> Tensor:
    return torch.empty_like(z)


part = torch.ops.crossent.part.default
pull = torch.ops.crossent.pull.default
elements = torch.ops.crossent.elements.default
pull_elements = torch.ops.crossent.pull_elements.default
