"""What is asked of lazy logits and answered without them.

Losses and log-probabilities go to ``linear_cross_entropy``; argmax, topk and their like look at a few rows at a time;
a few columns of every row are a few dot products. Arguments, shapes and means are those of the function of torch that
was called; a loss is float32 or wider, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.compute import functional
from crossent.compute.functional import RowNumbers
from crossent.compute.fused import linear_cross_entropy_of, linear_row_numbers_of
from crossent.compute.head.recipe import Step
from crossent.compute.head.stays import dimension, sliced, stepped
from crossent.compute.head.tensor import LazyLogits, answers
from crossent.compute.link import Link
from crossent.compute.losses import Smoothed
from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats
from crossent.compute.target import Target, visible

CHUNK_BYTES = 64 * 2**20


def _linear(z: LazyLogits, target: Tensor | Target, *, link: Link | None = None, **options: Any) -> Tensor:
    """``linear_cross_entropy`` of the recipe, in the dtype of a loss of z; one of the two links at most."""
    # On an accelerator nobody waits for the device, unless asked to.
    options = {"validate": "full" if z.device.type == "cpu" else "async", **options}
    with z.at_hand():
        hidden, parts, bias, own = z.recipe.folded()
        value = linear_cross_entropy_of(hidden, parts, target, linear_bias=bias, link=own or link, **options)
    return z.sharding.awaits(value.double() if z.dtype == torch.float64 else value.float())


@answers(F.cross_entropy)
def cross_entropy(
    z: LazyLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """F.cross_entropy, all its arguments."""
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    learned = (weight is not None and weight.requires_grad) or target.requires_grad
    if z.recipe.at != (0 if z.dim() == 1 else 1) or z.recipe.sign < 0 or learned:
        return NotImplemented
    options: dict[str, Any] = {"weight": weight, "reduction": reduction}
    if not target.is_floating_point():
        # torch smooths over all classes, and -inf comes from a bias: without one that is smoothing over the allowed.
        over = "all" if z.recipe.shifted else "allowed"
        smoothed = Smoothed(label_smoothing, over=over) if label_smoothing else None
        return _linear(z, target, ignore_index=ignore_index, loss=smoothed, **options)
    if target.shape != z.shape:
        return NotImplemented
    soft = target.movedim(z.recipe.at, -1)
    if label_smoothing:  # whatever the probabilities sum to, torch adds ε / C to each
        soft = soft * (1 - label_smoothing) + label_smoothing / z.recipe.classes
    if reduction != "mean":
        return _linear(z, soft, **options)
    # torch divides by the number of rows, class weights or not.
    return _linear(z, soft, **{**options, "reduction": "sum"}) / max(1, z.recipe.hidden.shape[:-1].numel())


@answers(F.nll_loss)
def nll_loss(
    z: LazyLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """F.nll_loss of lazy log-probabilities."""
    if not z.recipe.log or target.is_floating_point():
        return NotImplemented
    return cross_entropy(z, target, weight, size_average, ignore_index, reduce, reduction)


@answers(F.log_softmax, torch.log_softmax, Tensor.log_softmax)
def log_softmax(z: LazyLogits, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
    """Lazy log-probabilities."""
    if dim is None or dimension(z, dim) != z.recipe.at or z.recipe.log:
        return NotImplemented
    if dtype is None and torch.is_autocast_enabled(z.device.type):
        dtype = torch.ones(1, dtype=z.dtype, device=z.device).log_softmax(0).dtype  # some devices' is wider
    return stepped(z, Step("log_softmax", dtype), dtype)


def _takes(z: LazyLogits, link: Link | None) -> bool:
    """Whether a function of this package can have the recipe: classes second, logits, and a single link."""
    return z.recipe.at == (0 if z.dim() == 1 else 1) and not z.recipe.log and (link is None or not z.recipe.capped)


@answers(functional.cross_entropy)
def any_cross_entropy(
    z: LazyLogits, target: Any, weight: Tensor | None = None, *, link: Link | None = None, **options: Any
) -> Any:
    """``crossent.cross_entropy``, with any loss."""
    if not _takes(z, link):
        return NotImplemented
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == z.shape:
        target = target.movedim(z.recipe.at, -1)
    return _linear(z, target, weight=weight, link=link, **options)


@answers(functional.row_numbers)
def row_numbers(
    z: LazyLogits, target: Tensor, weight: Tensor | None = None, *, link: Link | None = None, **options: Any
) -> Any:
    """``crossent.row_numbers``."""
    if not _takes(z, link):
        return NotImplemented
    with z.at_hand():
        hidden, parts, bias, own = z.recipe.folded()
        options |= {"linear_bias": bias, "weight": weight, "link": own or link}
        numbers = linear_row_numbers_of(hidden, parts, target, **options)
    return RowNumbers(*(z.sharding.awaits(number) for number in numbers))


# A few columns of every row.


@answers(torch.gather, Tensor.gather)
def gather(z: LazyLogits, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Any:
    """The columns ``index`` of every row: logits or log-probabilities."""
    at = z.recipe.at
    if dimension(z, dim) != at or index.dim() != z.dim() or index.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    chosen = index.movedim(at, -1)
    if chosen.shape[:-1] != z.recipe.hidden.shape[:-1] or chosen.shape[-1] > z.recipe.hidden.shape[-1]:
        return NotImplemented
    return _chosen(z, chosen).movedim(-1, at)


@answers(torch.take_along_dim, Tensor.take_along_dim)
def take_along_dim(z: LazyLogits, indices: Tensor, dim: int | None = None) -> Any:
    """As gather, with leading dimensions of size 1 stretched."""
    if dim is None or indices.dim() != z.dim():
        return NotImplemented
    shape = [*z.shape]
    shape[dimension(z, dim)] = indices.shape[dim]
    return gather(z, dim, indices.expand(shape))


@answers(Tensor.__getitem__)
def picked(z: LazyLogits, index: Any) -> Any:
    """z[rows, …, labels] with an index tensor for every dimension; what else there is to an index, ``sliced`` knows."""
    whole = isinstance(index, tuple) and len(index) == z.dim() and z.recipe.last
    if not whole or not all(isinstance(i, Tensor) and i.dtype == torch.int64 for i in index):
        return sliced(z, index)
    *rows, columns = torch.broadcast_tensors(*index)
    columns = torch.where(columns < 0, columns + z.recipe.classes, columns)  # -1 is the last
    some = z.like(z.recipe.of(z.recipe.hidden[tuple(rows)] if rows else z.recipe.hidden.expand(*columns.shape, -1)))
    return _chosen(some, columns.unsqueeze(-1)).squeeze(-1)


def _chosen(z: LazyLogits, index: Tensor) -> Tensor:
    """The columns ``index`` (…, k) of every row, in the dtype of z."""
    classes = z.recipe.classes
    outside = (index < 0) | (index >= classes)
    if not visible(index) or index.device.type != "cpu":
        torch._assert_async(~outside.any(), f"an index is no class: 0 to {classes - 1} are.")
    elif bool(outside.any()):
        at = tuple(outside.nonzero()[0].tolist())
        raise IndexError(f"index {int(index[at])} at {at} is no class: 0 to {classes - 1} are.")
    if z.recipe.log and index.shape[-1] == 1:
        label = Target(index.reshape(-1, 1).long())
        return -z.recipe.sign * _linear(z, label, reduction="none").reshape(index.shape).to(z.dtype)
    with z.at_hand():
        hidden, parts, bias, link = z.recipe.folded()
        columns = torch.cat([F.embedding(index, part) for part in parts], -1)  # (…, k, d)
        values = torch.matmul(columns, hidden.unsqueeze(-1)).squeeze(-1)
        values = values if bias is None else values + bias[index]
        if link is not None:
            values = link(values)
        if z.recipe.log:
            values = z.recipe.sign * (values - _statistic(z, "lse").unsqueeze(-1))
    return z.sharding.awaits(values.to(z.dtype))


# Over the classes of every row.


@dataclass(frozen=True)
class _Statistic(Loss):
    """A statistic of every row, as a loss: "lse", or "uniform", the mean of -log p over all classes."""

    name: str

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.name} & {"uniform"})

    @property
    def linear(self) -> bool:
        return True

    def __call__(self, s: Stats) -> Tensor:
        value = getattr(s, self.name)
        return value if self.name == "lse" else torch.where(s.count < s.classes, torch.inf, value)


def _statistic(z: LazyLogits, name: str) -> Tensor:
    """The statistic of every row (…,) of the logits, log_softmax left out."""
    rows = z.recipe.hidden.shape[:-1]
    any_class = Target(torch.zeros(rows.numel(), 1, dtype=torch.int64, device=z.device))
    return _linear(z, any_class, loss=_Statistic(name), reduction="none").reshape(rows)


@answers(torch.logsumexp, Tensor.logsumexp)
def logsumexp(z: LazyLogits, dim: Any, keepdim: bool = False) -> Any:
    """log Σ e^z over the classes."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(dims) != 1 or dimension(z, dims[0]) != z.recipe.at or z.recipe.log:
        return NotImplemented
    value = _statistic(z, "lse").to(z.dtype)
    return value.unsqueeze(z.recipe.at) if keepdim else value


@answers(torch.sum, Tensor.sum)
def summed(z: LazyLogits, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Σ log p over the classes: the smoothing part of a smoothed loss."""
    dims = dim if isinstance(dim, (tuple, list)) else (dim,)
    if len(dims) != 1 or dims[0] is None or dimension(z, dims[0]) != z.recipe.at or not z.recipe.log:
        return NotImplemented
    value = (-z.recipe.sign * z.recipe.classes * _statistic(z, "uniform")).to(dtype or z.dtype)
    return value.unsqueeze(z.recipe.at) if keepdim else value


def _chunks(z: LazyLogits, look: Callable[[Tensor], Any]) -> list[Any]:
    """What ``look`` sees of the logits of a few rows at a time, as the eager head would have made them."""
    recipe = z.recipe.rows
    size = max(1, CHUNK_BYTES // (recipe.classes * max(recipe.hidden.element_size(), z.dtype.itemsize)))
    with z.at_hand(), torch.no_grad():
        return [look(recipe.of(hidden).values()) for hidden in recipe.hidden.detach().split(size)]


def _placed(z: LazyLogits, per_row: Tensor, keepdim: bool = True) -> Tensor:
    """Results (n, k) of all rows as (…, k, …), or (…) without the dimension of classes."""
    seen = per_row.reshape(*z.recipe.hidden.shape[:-1], -1)
    return seen.movedim(-1, z.recipe.at) if keepdim else seen.squeeze(-1)


@answers(torch.argmax, Tensor.argmax)
def argmax(z: LazyLogits, dim: int | None = None, keepdim: bool = False) -> Any:
    """The greatest class of every row."""
    if dim is None or dimension(z, dim) != z.recipe.at:
        return NotImplemented
    return _placed(z, torch.cat(_chunks(z, lambda rows: rows.argmax(-1))), keepdim)


def _greatest(z: LazyLogits, k: int, largest: bool, ordered: bool) -> tuple[Tensor, Tensor]:
    """(values, columns), both (n, k); the values carry gradients."""
    seen = list(_chunks(z, lambda rows: rows.topk(k, -1, largest, ordered)))
    values, columns = (torch.cat([part[field] for part in seen]) for field in (0, 1))
    if z.requires_grad and torch.is_grad_enabled():
        values = _chosen(z, columns.reshape(*z.recipe.hidden.shape[:-1], k))
    return values, columns


@answers(torch.topk, Tensor.topk)
def topk(z: LazyLogits, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The k greatest classes of every row, and their logits."""
    if dimension(z, dim) != z.recipe.at or not 0 < k <= z.recipe.classes:
        return NotImplemented
    if k > z.recipe.hidden.shape[-1]:
        return NotImplemented  # so many columns are no less than the logits
    values, columns = _greatest(z, k, largest, sorted)
    return torch.return_types.topk((_placed(z, values), _placed(z, columns)))


@answers(torch.max, Tensor.max)
def greatest(z: LazyLogits, dim: Any = None, keepdim: bool = False) -> Any:
    """The greatest class of every row, and its logit."""
    if not isinstance(dim, int) or dimension(z, dim) != z.recipe.at:
        return NotImplemented
    values, columns = _greatest(z, 1, True, True)
    return torch.return_types.max((_placed(z, values, keepdim), _placed(z, columns, keepdim)))


@answers(torch.amax, Tensor.amax)
def amax(z: LazyLogits, dim: Any = (), keepdim: bool = False) -> Any:
    """The greatest logit of every row."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if len(dims) != 1 or dimension(z, dims[0]) != z.recipe.at:
        return NotImplemented
    return _placed(z, _greatest(z, 1, True, True)[0], keepdim)
