"""What a row should be: some columns and their weights, and whether the row counts at all.

A label is one column of weight 1; mixup is two columns; a histogram window or a top-k teacher is ten; a dense soft
target is every column (``index`` None). Whatever a user hands in becomes this one form here, and what cannot be
meant is refused here, in a sentence, before a kernel reads anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.errors import some


@dataclass(frozen=True, eq=False)
class Target:
    """Targets of n rows: ``index`` (n, k) int64 columns or None for all v, ``weight`` (n, k), ``live`` (n,) bool.

    A row that is not live (ignored) is never read. Build one with ``labels``, ``probabilities`` or ``sparse``.
    """

    index: Tensor | None
    weight: Tensor
    live: Tensor

    def of_each_class(self, values: Tensor) -> Tensor:
        """The value (v,) that belongs to each target column: (n, k), or (v,) for a dense target."""
        return values if self.index is None else values[self.index]

    def slice(self, start: int, stop: int) -> Target:
        """The targets of rows start to stop."""
        index = None if self.index is None else self.index[start:stop]
        return Target(index, self.weight[start:stop], self.live[start:stop])


def labels(y: Tensor, classes: int, ignore_index: int, *, validate: bool = True) -> Target:
    """One class index in each row: y (n,) of any integer dtype; ``ignore_index`` marks rows that do not count.

    A label outside 0 … classes - 1 is an ``IndexError`` that names the first of them. Where nothing may be looked
    at (``validate=False``, or inside torch.compile) its row becomes NaN: never an access out of bounds.
    """
    if y.dtype == torch.uint8 and ignore_index < 0:  # a byte holds no negative number: nothing is ignored
        live = torch.ones_like(y, dtype=torch.bool)
    else:
        live = y != ignore_index
    y = y.long()
    inside = (y >= 0) & (y < classes)
    if validate and visible(y):
        outside = live & ~inside
        if bool(outside.any()):
            raise IndexError(_outside(y, outside, classes, ignore_index))
    weight = torch.where(inside | ~live, 1.0, torch.nan)
    return Target(torch.where(live & inside, y, 0).unsqueeze(-1), weight.unsqueeze(-1), live)


def probabilities(q: Tensor, *, validate: bool = True) -> Target:
    """A weight for every class: q (n, v), as PyTorch takes class probabilities. Rows need not sum to 1."""
    if validate:
        _refuse_negative(q)
    return Target(None, q, torch.ones(q.shape[:-1], dtype=torch.bool, device=q.device))


def sparse(index: Tensor, weight: Tensor, classes: int, *, validate: bool = True) -> Target:
    """A few classes in each row and their weights: index (n, k) and weight (n, k).

    >>> mixup = sparse(torch.tensor([[0, 2]]), torch.tensor([[0.7, 0.3]]), classes=3)
    >>> mixup.weight
    tensor([[0.7000, 0.3000]])
    """
    if index.dim() != 2 or index.shape != weight.shape:
        raise ValueError(
            f"a sparse target is index (n, k) and weight (n, k); got {tuple(index.shape)} and {tuple(weight.shape)}."
        )
    index = index.long()
    if validate:
        _refuse_negative(weight)
    inside = (index >= 0) & (index < classes)
    if validate and visible(index) and not bool(inside.all()):
        raise IndexError(_outside(index, ~inside, classes, None))
    live = torch.ones(index.shape[0], dtype=torch.bool, device=index.device)
    return Target(torch.where(inside, index, 0), torch.where(inside, weight, torch.nan), live)


def visible(tensor: Tensor) -> bool:
    """Whether values may be looked at: not while compiling or exporting, on no device, or under vmap."""
    if torch.compiler.is_compiling() or tensor.device.type == "meta":
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _refuse_negative(weight: Tensor) -> None:
    if not visible(weight):
        return
    wrong = ~(weight >= 0)  # also NaN
    if bool(wrong.any()):
        where = [tuple(at) for at in wrong.nonzero()[:5].tolist()]
        raise ValueError(
            f"target weights must be 0 or more; {int(wrong.sum()):,} are negative or NaN, first at (row, class) "
            f"{some(where)}."
        )


def _outside(y: Tensor, outside: Tensor, classes: int, ignore_index: int | None) -> str:
    at = outside.nonzero()[:5]
    found = [f"{int(y[tuple(place)])} at row {int(place[0])}" for place in at]
    besides = "" if ignore_index is None else f" (or ignore_index, {ignore_index})"
    return (
        f"target has {int(outside.sum()):,} labels that are no class: {some(found)}. With {classes} columns of logits "
        f"a label is 0 to {classes - 1}{besides}. Check that labels count from 0 and that the head has enough columns."
    )
