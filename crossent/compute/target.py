"""What a row should be: some columns and their weights, and whether the row counts at all.

A label is one column of weight 1; mixup is two columns; a histogram window or a top-k teacher is ten; a dense soft
target is every column (``index`` None). Whatever a user hands in becomes this one form here, and what cannot be
meant is refused here, in a sentence, before a kernel reads anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from crossent.errors import some


@dataclass(frozen=True, eq=False)
class Target:
    """Targets of n rows: ``index`` (n, k) int64 columns and their ``weight`` (n, k), or weights of all v columns.

    In the second case ``index`` is None and ``weight`` has the shape of the logits, (n, v) or (n, v, l). ``weight``
    None is a weight of 1 for every column of ``index``. A row that is not ``live`` (n,) is ignored and never read; None
    says that all are live. ``row_weight`` (n,) multiplies the losses of rows and their share in a mean. ``unchecked``
    says that nobody has looked at the values: of labels the weight is then 1, or NaN where they are no class.
    ``classes`` is how many classes the columns are known to be of; None says that nobody has compared. Build one with
    ``labels``, ``probabilities`` or ``sparse``.
    """

    index: Tensor | None
    weight: Tensor | None = None
    live: Tensor | None = None
    row_weight: Tensor | None = None
    unchecked: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.index is None:
            if self.weight is None:
                raise ValueError("a target needs columns (index), or a weight for every column.")
            return
        got, weights = tuple(self.index.shape), None if self.weight is None else tuple(self.weight.shape)
        if self.index.dtype != torch.int64 or len(got) != 2 or weights not in (None, got):
            raise ValueError(
                f"a target is index (n, k), int64, and weight (n, k); got {_word(self.index)} {got} and weights "
                f"{weights}. crossent.sparse takes columns of any integer dtype."
            )

    @property
    def rows(self) -> int:
        """How many rows it is for."""
        if self.index is not None:
            return self.index.shape[0]
        assert self.weight is not None
        return self.weight.shape[0] * self.weight.shape[2:].numel()

    def __getitem__(self, rows: Any) -> Target:
        """The targets of some rows: a slice, or their numbers."""
        fields = (self.index, self.weight, self.live, self.row_weight)
        index, weight, live, row_weight = (None if field is None else field[rows] for field in fields)
        return replace(self, index=index, weight=weight, live=live, row_weight=row_weight)

    def weighted(self, row_weight: Tensor | None = None, mask: Tensor | None = None) -> Target:
        """The same with weights (n,) for rows, and with only the rows of ``mask`` (n,) counting."""
        if row_weight is mask is self.row_weight is None:
            return self
        if mask is not None:
            mask = mask if self.live is None else self.live & mask
        return replace(self, live=self.live if mask is None else mask, row_weight=row_weight)

    @property
    def plain_labels(self) -> Tensor | None:
        """Labels (n, 1) of weight 1, -1 where nobody looked and they are no class; None for any other target."""
        if self.index is None or self.index.shape[1] != 1 or self.row_weight is not None:
            return None
        if self.weight is None:
            return self.index
        return torch.where(self.weight.isnan(), -1, self.index) if self.unchecked else None


def labels(y: Tensor, classes: int, ignore_index: int, mask: Tensor | None = None, *, validate: str = "full") -> Target:
    """One class index in each row: y (n,) of any integer dtype; ``ignore_index`` marks rows that do not count.

    Neither do rows where ``mask`` (n,) is False, which may hold anything. Any other label outside 0 … classes - 1 is
    an ``IndexError`` that names the first of them. Where nothing may be looked at (``validate="off"``, or inside
    torch.compile) its row becomes NaN: never an access out of bounds.
    """
    unsigned = y.dtype == torch.uint8 and ignore_index < 0  # a byte holds no negative number: nothing is ignored
    y = y.long()
    if validate == "full" and visible(y) and y.numel():
        least, greatest = torch.aminmax(y)
        if int(least) >= 0 and int(greatest) < classes and not 0 <= ignore_index < classes:
            return Target(y.unsqueeze(-1), live=mask)
    live = torch.ones_like(y, dtype=torch.bool) if unsigned else y != ignore_index
    live = live if mask is None else live & mask
    inside = (y >= 0) & (y < classes)
    outside = live & ~inside
    if validate == "full" and visible(y) and bool(outside.any()):
        raise IndexError(_outside(y, outside, classes, ignore_index))
    if validate == "async":
        torch._assert_async(~outside.any(), f"target has labels that are no class: 0 to {classes - 1} are.")
    index = torch.where(live & inside, y, 0).unsqueeze(-1)
    if validate == "full" and visible(y):
        return Target(index, live=live)
    return Target(index, torch.where(outside, torch.nan, 1.0).unsqueeze(-1), live, unchecked=True)


def probabilities(q: Tensor, mask: Tensor | None = None, *, validate: str = "full", later: bool = False) -> Target:
    """A weight for every class: q (n, v) or (n, v, l), as PyTorch takes class probabilities. Rows need not sum to 1.

    Rows where ``mask`` (n · l,) is False do not count and may hold anything. ``later`` leaves it to the caller to
    ``look``: whoever reads every weight anyway can see a sign on the way.
    """
    target = Target(None, q, mask, unchecked=later)
    if not later:
        look(target, validate)
    return target


def look(target: Target, validate: str) -> None:
    """Refuse weights of all columns that are negative or NaN in a row that counts."""
    q, live = target.weight, target.live
    assert q is not None
    _refuse_negative(q, None if live is None else live.reshape(q.shape[0], 1, *q.shape[2:]), validate)


def sparse(index: Tensor, weight: Tensor, classes: int, *, ignore_index: int = -100, validate: str = "full") -> Target:
    """A few classes in each row and their weights: index (n, k) and weight (n, k).

    Where the index is ``ignore_index`` the weight is not read and counts as 0, so that rows can hold fewer than k
    classes; a row of nothing else is ignored, as a label of ``ignore_index`` is. Any other label outside
    0 … classes - 1 is an ``IndexError`` with its place, a negative weight a ``ValueError``.

    >>> mixup = sparse(torch.tensor([[0, 2]]), torch.tensor([[0.7, 0.3]]), classes=3)
    >>> mixup.weight
    tensor([[0.7000, 0.3000]])
    """
    if index.dim() != 2 or index.shape != weight.shape:
        raise ValueError(
            f"a sparse target is index (n, k) and weight (n, k); got {tuple(index.shape)} and {tuple(weight.shape)}."
        )
    if index.is_floating_point() or index.is_complex():
        raise TypeError(f"the columns of a sparse target are integers; index is {_word(index)}. Are the two exchanged?")
    index = index.long()
    meant = index != ignore_index
    _refuse_negative(weight, meant, validate)
    inside = (index >= 0) & (index < classes)
    outside = meant & ~inside
    if validate == "full" and visible(index) and bool(outside.any()):
        raise IndexError(_outside(index, outside, classes, ignore_index))
    if validate == "async":
        torch._assert_async(~outside.any(), f"target has columns that are no class: 0 to {classes - 1} are.")
    weight = torch.where(meant, torch.where(inside, weight, torch.nan), 0.0)
    return Target(torch.where(meant & inside, index, 0), weight, meant.any(1), classes=classes)


def fitted(target: Target, like_logits: tuple[int, ...], rows_last: bool, classes: int, validate: str) -> Target:
    """A target that was made before the logits were seen, held against their shape: no kernel reads beyond them."""
    index, weight = target.index, target.weight
    if index is None:
        assert weight is not None
        like = (target.rows, classes) if rows_last else (like_logits[0], classes, math.prod(like_logits[2:]))
        if tuple(weight.shape) not in (like, (*like, 1)):
            raise ValueError(f"the weights of a target of all classes must be {like}; they are {tuple(weight.shape)}.")
        return target
    if target.classes is not None:
        if target.classes != classes:
            raise ValueError(
                f"the target is made of {target.classes} classes, and a row has {classes} logits: make it with "
                f"classes={classes} (of a code: as many columns), or check that the head has enough."
            )
        return target
    outside = (index < 0) | (index >= classes)
    read = outside if target.live is None else outside & target.live.unsqueeze(-1)
    if validate == "full" and visible(index):
        if not bool(outside.any()):
            return target
        if bool(read.any()):
            raise IndexError(_outside(index, read, classes, None))
    if validate == "async":
        torch._assert_async(~read.any(), f"target has columns that are no class: 0 to {classes - 1} are.")
    weight = torch.ones_like(index, dtype=torch.float64) if weight is None else weight
    return replace(target, index=torch.where(outside, 0, index), weight=torch.where(read, torch.nan, weight))


def visible(tensor: Tensor) -> bool:
    """Whether values may be looked at: not while compiling or exporting, on no device, or under vmap."""
    if torch.compiler.is_compiling() or tensor.device.type == "meta":
        return False
    inside = torch._C._functorch
    # The second kind comes from torch.autograd.grad(…, is_grads_batched=True).
    return not (inside.is_functorch_wrapped_tensor(tensor) or inside.is_legacy_batchedtensor(tensor))


_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}


def within(x: Tensor, most: float) -> bool:
    """Whether 0 ≤ x ≤ most by the bits of x alone, which for floats from 0 on are integers in the same order.

    False is no answer: -0 has the bits of a negative number, and integers are not looked at. (Comparing floats takes
    torch two to ten times as long.)
    """
    if x.dtype not in _BITS:
        return False
    least, greatest = torch.aminmax(x.detach().view(_BITS[x.dtype]))
    return int(least) >= 0 and int(greatest) <= _bits_of(most, x.dtype)


@cache
def _bits_of(number: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(number, dtype=dtype, device="cpu").view(_BITS[dtype]))


def _refuse_negative(weight: Tensor, read: Tensor | None, validate: str) -> None:
    """``read`` is True where a weight counts, of a shape that broadcasts to the weights'."""
    if validate == "async":
        fine = (weight >= 0) if read is None else (weight >= 0) | ~read
        torch._assert_async(fine.all(), "target weights must be 0 or more; some are negative or NaN.")
    if validate != "full" or not visible(weight) or not weight.numel() or within(weight, math.inf):
        return
    if not bool(weight.detach().amin() >= 0):  # amin of a NaN is NaN
        wrong = ~(weight >= 0) if read is None else ~(weight >= 0) & read
        if not bool(wrong.any()):
            return
        where = [tuple(at) for at in wrong.nonzero()[:5].tolist()]
        raise ValueError(
            f"target weights must be 0 or more; {int(wrong.sum()):,} are negative or NaN, first at (row, class) "
            f"{some(where)}."
        )


def _word(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _outside(y: Tensor, outside: Tensor, classes: int, ignore_index: int | None) -> str:
    at = outside.nonzero()[:5]
    found = [f"{int(y[tuple(place)])} at row {int(place[0])}" for place in at]
    besides = "" if ignore_index is None else f" (or ignore_index, {ignore_index})"
    return (
        f"target has {int(outside.sum()):,} labels that are no class: {some(found)}. With {classes} columns of logits "
        f"a label is 0 to {classes - 1}{besides}. Check that labels count from 0 and that the head has enough columns."
    )
