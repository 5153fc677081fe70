"""What is done to lazy logits that leaves them lazy: it is done to the hidden states instead, or remembered as a step.

A view or a slice that leaves whole rows of classes is the same view or slice of the rows of hidden states. A cast, a
constant factor, a tanh and a vector added to each row are remembered. Two lazy tensors added, as LoRA does with its
head and its correction, are one head on the hidden states of both, side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from crossent.compute.head.recipe import Recipe, Step
from crossent.compute.head.sharding import Sharding, fetches
from crossent.compute.head.tensor import SUMS, TABLE, LazyLogits, answers, looks


def dimension(z: LazyLogits, dim: int) -> int:
    """A dimension counted from the front; an IndexError as torch's if there is none."""
    if not -z.dim() <= dim < z.dim():
        raise IndexError(f"Dimension out of range (expected to be in [{-z.dim()}, {z.dim() - 1}], but got {dim})")
    return dim % z.dim()


# Views that keep rows whole.


def _reshaped(func: Callable, z: LazyLogits, *args: Any, **kwargs: Any) -> Any:
    """Another shape with the classes last, as they were: rows stay whole and in order."""
    recipe = z.recipe
    if not recipe.last or not _numbers_only(args, kwargs):
        return NotImplemented
    moved = func(looks(z), *args, **kwargs)  # torch's own errors, and the shape
    if moved.dtype != z.dtype or moved.dim() == 0 or moved.shape[-1] != recipe.classes:
        return NotImplemented
    hidden = recipe.hidden.reshape(*moved.shape[:-1], recipe.hidden.shape[-1])
    return z.like(recipe.of(hidden), alias=lambda real: func(real, *args, **kwargs), meta=moved)


def _numbers_only(args: Any, kwargs: Any) -> bool:
    flat = [*args, *kwargs.values()]
    return all(isinstance(arg, (int, tuple, list, torch.Size)) for arg in flat)


for _name in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"):
    for _owner in (Tensor, torch):
        if hasattr(_owner, _name):
            TABLE[getattr(_owner, _name)] = partial(_reshaped, getattr(_owner, _name))


def _permuted(func: Callable, z: LazyLogits, *args: Any, **kwargs: Any) -> LazyLogits:
    """Dimensions in another order."""
    recipe = z.recipe
    # Sizes that tell which dimension went where.
    order = [size - 1 for size in func(torch.empty(*range(1, z.dim() + 1), device="meta"), *args, **kwargs).shape]
    rows = [at - (at > recipe.at) for at in order if at != recipe.at]
    hidden = recipe.hidden.permute(*rows, -1)
    again = replace(recipe, hidden=hidden, at=order.index(recipe.at))
    return z.like(again, alias=lambda real: func(real, *args, **kwargs), meta=func(looks(z), *args, **kwargs))


for _name in ("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t"):
    for _owner in (Tensor, torch):
        if hasattr(_owner, _name):
            TABLE[getattr(_owner, _name)] = partial(_permuted, getattr(_owner, _name))
for _name in ("T", "mT"):
    TABLE[getattr(Tensor, _name).__get__] = partial(_permuted, getattr(Tensor, _name).__get__)


# Some of the rows.


@answers(Tensor.__getitem__)
def sliced(z: LazyLogits, index: Any) -> Any:
    """Rows by numbers, slices, masks and index tensors; of the classes all, or some by a slice (a padded head's)."""
    known = _rows_and_classes(index, z.dim()) if z.recipe.last else None
    if known is None:
        return NotImplemented
    rows, classes = known
    recipe = z.recipe.of(z.recipe.hidden[rows])
    if classes != slice(None):
        if z.recipe.log or not range(z.recipe.classes)[classes]:
            return NotImplemented
        recipe = recipe.narrowed(classes)
    if any(isinstance(part, Tensor) for part in rows):
        return z.like(recipe, meta=looks(z).new_empty((*recipe.hidden.shape[:-1], recipe.classes)))
    return z.like(recipe, alias=lambda real: real[index], meta=looks(z)[index])


def _rows_and_classes(index: Any, dims: int) -> tuple[tuple, slice] | None:
    """An index as what it does to the rows, all classes left, and a slice of the classes; None if it is no such."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is Ellipsis or isinstance(part, (int, slice, Tensor)) for part in parts):
        return None
    takes = sum(_takes(part) for part in parts)
    stretched = [at for at, part in enumerate(parts) if part is Ellipsis]
    if takes == dims and stretched:
        del parts[stretched[0]]  # it stands for nothing
    elif takes < dims and (not stretched or parts[-1] is Ellipsis):
        return tuple(parts), slice(None)
    last = parts[-1]
    if not isinstance(last, slice) or last.step not in (None, 1):
        return None
    return (*parts[:-1], slice(None)), last


def _takes(part: Any) -> int:
    """How many dimensions a part of an index stands for; an ellipsis for whatever is left."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    return part.dim() if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) else 1


def _along_rows(func: Callable, z: LazyLogits, *args: Any, **kwargs: Any) -> Any:
    """``func(z, dim, …)`` that picks whole rows along a leading dimension: one lazy tensor or several."""
    position = 1 if func in _DIM_SECOND else 0
    dim = kwargs.get("dim", args[position] if len(args) > position else 0)
    if not z.recipe.last or not isinstance(dim, int) or dimension(z, dim) == z.recipe.at:
        return NotImplemented
    at = dimension(z, dim)
    kwargs = {key: value for key, value in kwargs.items() if key != "dim"}
    args = tuple(arg for place, arg in enumerate(args) if place != position)

    def call(x: Tensor) -> Any:
        return func(x, *args, **kwargs, dim=at) if position else func(x, at, *args, **kwargs)

    hidden = call(z.recipe.hidden)
    if func in _COPIES:
        return z.like(z.recipe.of(hidden))
    moved = call(looks(z))
    if isinstance(hidden, Tensor):
        return z.like(z.recipe.of(hidden), alias=call, meta=moved)

    def part(place: int) -> LazyLogits:
        return z.like(z.recipe.of(hidden[place]), alias=lambda real: call(real)[place], meta=moved[place])

    return tuple(part(place) for place in range(len(hidden)))


_DIM_SECOND: set[Any] = set()
_COPIES = {Tensor.index_select, torch.index_select}
for _name in ("narrow", "select", "index_select", "unbind", "split", "chunk", "tensor_split"):
    for _owner in (Tensor, torch):
        _func = getattr(_owner, _name)
        TABLE[_func] = partial(_along_rows, _func)
        if _name in ("split", "chunk", "tensor_split"):
            _DIM_SECOND.add(_func)


@answers(Tensor.__iter__)
def iterated(z: LazyLogits) -> Any:
    """The rows along the first dimension, one lazy tensor each."""
    return NotImplemented if z.dim() < 2 or not z.recipe.last else iter(z.unbind(0))


# The same numbers.


@answers(vars(torch._C.TensorBase)["grad"].__get__)
def gradient(z: LazyLogits) -> None:
    """None: a gradient is kept by logits that were made for it (``retain_grad``)."""


@answers(Tensor.detach, vars(torch._C.TensorBase)["data"].__get__)
def detached(z: LazyLogits) -> LazyLogits:
    """Without the graph."""
    return z.like(z.recipe, graph=False, alias=Tensor.detach, meta=looks(z))


@answers(Tensor.clone, torch.clone)
def copied(z: LazyLogits, *, memory_format: Any = torch.preserve_format) -> Any:
    """The same again: there is nothing to copy."""
    if memory_format not in (torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    return z.like(z.recipe)


@answers(Tensor.contiguous)
def contiguous(z: LazyLogits, *, memory_format: Any = torch.contiguous_format) -> Any:
    """Itself, if its logits would be: what is written to one is seen in the other."""
    if memory_format == torch.contiguous_format and looks(z).is_contiguous():
        return z
    return copied(z, memory_format=memory_format)


@answers(Tensor.to, Tensor.type)
def cast(z: LazyLogits, *args: Any, **kwargs: Any) -> Any:
    """Another floating dtype; another device gets the logits."""
    if kwargs.get("copy") or not {*kwargs} <= {"dtype", "device", "non_blocking", "copy"} or len(args) > 2:
        return NotImplemented
    dtype, device = kwargs.get("dtype") or z.dtype, kwargs.get("device")
    for arg in args:
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, Tensor):
            dtype, device = arg.dtype, arg.device
        elif isinstance(arg, str) and arg.startswith("torch."):
            return NotImplemented  # .type("torch.HalfTensor")
        elif isinstance(arg, (str, torch.device, int)) and not isinstance(arg, bool):
            device = arg
    if device is not None and torch.empty(0, device=device).device != z.device:
        return NotImplemented
    return _cast(z, dtype)


def _cast(z: LazyLogits, dtype: torch.dtype) -> Any:
    if not dtype.is_floating_point:
        return NotImplemented
    return z if dtype == z.dtype else stepped(z, Step("cast", dtype), dtype)


for _name, _dtype in {
    "float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16
}.items():  # fmt: skip
    TABLE[getattr(Tensor, _name)] = partial(_cast, dtype=_dtype)


@answers(Tensor.type_as)
def cast_as(z: LazyLogits, other: Tensor) -> Any:
    """The dtype and device of another tensor."""
    return NotImplemented if other.device != z.device else _cast(z, other.dtype)


@answers(Tensor.cpu)
def on_cpu(z: LazyLogits) -> Any:
    """Itself, if it is there."""
    return z if z.device.type == "cpu" else NotImplemented


# Factors, the soft cap, and what is added.


def stepped(z: LazyLogits, step: Step, dtype: torch.dtype | None = None) -> LazyLogits:
    """The same logits after one more step, in this dtype."""
    looked = looks(z)
    return z.like(z.recipe.and_then(step), meta=looked if dtype is None else looked.to(dtype))


def _factor(by: Any, z: LazyLogits) -> Any:
    """A constant or a tensor of one number that leaves the dtype alone; None if it is neither."""
    if isinstance(by, (int, float)) and not isinstance(by, bool):
        return float(by)
    if isinstance(by, Tensor) and by.numel() == 1 and by.dim() <= z.dim() and by.is_floating_point():
        return by if by.dim() == 0 or by.dtype == z.dtype else None
    return None


@answers(Tensor.mul, Tensor.multiply, torch.mul, torch.multiply, Tensor.__mul__, Tensor.__rmul__)
def multiplied(z: LazyLogits, other: Any) -> Any:
    """By a constant, or by a tensor of one number."""
    return _times("times", z, other)


@answers(Tensor.div, Tensor.divide, torch.div, torch.divide, Tensor.true_divide, Tensor.__truediv__)
def divided(z: LazyLogits, other: Any, *, rounding_mode: str | None = None) -> Any:
    """By a constant, or by a tensor of one number."""
    return NotImplemented if rounding_mode is not None else _times("over", z, other)


def _times(kind: str, z: LazyLogits, other: Any) -> Any:
    by = _factor(other, z)
    # A cap has a sign and a size that have to be known; 0 and infinity are no factors to divide by.
    if by is None or z.recipe.log or (isinstance(by, Tensor) and z.recipe.capped):
        return NotImplemented
    if isinstance(by, float) and not 0 < abs(by) < float("inf"):
        return NotImplemented
    if isinstance(by, float) and z.recipe.capped and by < 0:
        return NotImplemented
    return stepped(z, Step(kind, by))


@answers(Tensor.neg, Tensor.__neg__, Tensor.negative, torch.neg, torch.negative)
def negated(z: LazyLogits) -> Any:
    """-log p, as some write the loss."""
    return stepped(z, Step("times", -1.0)) if z.recipe.log else NotImplemented


@answers(Tensor.tanh, torch.tanh, F.tanh)
def capped(z: LazyLogits) -> Any:
    """The middle of a soft cap, factor · tanh(z / factor)."""
    negative = any(
        step.kind in ("times", "over") and isinstance(step.by, float) and step.by < 0 for step in z.recipe.steps
    )
    return NotImplemented if z.recipe.log or z.recipe.capped or negative else stepped(z, Step("tanh"))


@answers(*SUMS)
def added(z: LazyLogits, other: Any, *, alpha: float = 1) -> Any:
    """A vector of one number for each class, or other lazy logits of the same rows."""
    if alpha != 1 or z.recipe.log or z.recipe.capped or not z.recipe.last or not isinstance(other, Tensor):
        return NotImplemented
    if isinstance(other, LazyLogits):
        return _together(z, other)
    if other.shape[-1:].numel() != z.recipe.classes or other.numel() != z.recipe.classes or other.dim() > z.dim():
        return NotImplemented
    if torch.promote_types(other.dtype, z.dtype) != z.dtype or other.device != z.device:
        return NotImplemented
    return stepped(z, Step("plus", other.reshape(-1)))


def _together(z: LazyLogits, other: LazyLogits) -> Any:
    """Two heads as one: the hidden states side by side."""
    same = z.shape == other.shape and z.dtype == other.dtype and z.device == other.device
    if not (same and other.usable and other.recipe.last) or other.recipe.log or other.recipe.capped:
        return NotImplemented
    with z.at_hand(), other.at_hand():
        wide, narrow = z.recipe.folded(), other.recipe.folded()
        if wide.hidden.shape[-1] < narrow.hidden.shape[-1]:
            wide, narrow = narrow, wide
        dtype = torch.promote_types(wide.hidden.dtype, narrow.hidden.dtype)
        hidden = torch.cat([wide.hidden.to(dtype), narrow.hidden.to(dtype)], -1)
        bias = narrow.bias if wide.bias is None else wide.bias if narrow.bias is None else wide.bias + narrow.bias
        parts = tuple(part.to(dtype) for part in (*wide.parts, *narrow.parts))
        # A frozen head is left where it is, unless its memory is given back in the meantime; LoRA's columns are few.
        if parts[0].requires_grad or any(lazy.sharding != Sharding() for lazy in (z, other)):
            recipe = Recipe(hidden, torch.cat(parts, -1), bias, z.recipe.at)
        else:
            recipe = Recipe(hidden, parts[0], bias, z.recipe.at, beside=torch.cat(parts[1:], -1))
    return z.like(recipe if dtype == z.dtype else recipe.and_then(Step("cast", z.dtype)), meta=looks(z))


@answers(Tensor.register_hook)
def hooked(z: LazyLogits, hook: Callable) -> Any:
    """A hook that only wants to know when the backward pass begins waits for the answers; others get the logits."""
    if not fetches(hook):
        return NotImplemented
    z.sharding = z.sharding.also(hook)
    return RemovableHandle(OrderedDict())
