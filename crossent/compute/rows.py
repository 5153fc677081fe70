"""The one place where autograd meets the kernels: logits in, the statistics of every row out.

``_Rows`` calls ``part`` forwards and ``_Pull`` calls ``pull`` backwards; everything above it (losses, targets,
reductions) is plain torch that autograd differentiates by itself. Only what the loss reads is worked out. Second
derivatives and forward-mode ones go through torch's own softmax: right, if not to the last digit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crossent.compute import operators
from crossent.compute.backends import reference
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss
from crossent.compute.stats import Stats, finish, unpack
from crossent.compute.target import Target


def bound_quickly(function: type[torch.autograd.Function]) -> Any:
    """Keep a function's signature beside it: torch binds arguments by it in every call, and reads it anew each time."""
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    return function


@bound_quickly
class _Rows(torch.autograd.Function):
    """(fields, nll, lse, uniform?, entropy?) of z (n, v, l), in the wide dtype.

    ``fields`` are the backend's own, for ``pull``; they carry no gradient.
    """

    @staticmethod
    def forward(
        z: Tensor,
        live: Tensor | None,
        index: Tensor | None,
        q: Tensor | None,
        column_weight: Tensor | None,
        uniform: bool,
        entropy: bool,
        order: bool,
    ) -> tuple[Tensor, ...]:
        fields, gap = operators.part(z, live, index, q, column_weight, uniform, entropy, order)
        part = unpack(fields, gap, dense=q is not None, uniform=uniform, entropy=entropy)
        return fields, *(stat for stat in finish(part) if stat is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        z, live, index, q, column_weight, ctx.uniform, ctx.entropy, _ = inputs
        ctx.mark_non_differentiable(output[0])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, live, index, q, column_weight, output[0])
        ctx.save_for_forward(z, live, index, q, column_weight, output[0])

    @staticmethod
    def backward(ctx: Any, _: None, a: Tensor | None, b: Tensor | None, *rest: Tensor | None) -> tuple:
        z, live, index, q, column_weight, fields = ctx.saved_tensors
        given = iter(rest)
        c = next(given) if ctx.uniform else None
        d = next(given) if ctx.entropy else None
        if a is None:
            columns = 1 if q is not None else z.shape[1] if index is None else index.shape[1]
            a = fields.new_zeros(1, 1).expand(fields.shape[1], columns)
        # The kernel tells by c and d which fields there are.
        c = fields.new_zeros(1).expand(fields.shape[1]) if ctx.uniform and c is None else c
        d = fields.new_zeros(1).expand(fields.shape[1]) if ctx.entropy and d is None else d
        return _kind(_Pull).apply(z, live, index, q, column_weight, fields, a, b, c, d), *(None,) * 7

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple, tuple]:
        fields, *stats = _kind(_Rows).apply(*_folded(info.batch_size, in_dims, inputs))
        batch = (info.batch_size, -1)
        return (fields.unflatten(1, batch), *(stat.unflatten(0, batch) for stat in stats)), (1, *(0 for _ in stats))


class _RowsForward(_Rows):
    """The same with a forward derivative, which torch.compile cannot see through."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, *_: None) -> tuple:
        refuse_nested_forward()
        z, live, index, q, column_weight, _ = ctx.saved_tensors
        t = torch.zeros_like(z) if tangent is None else tangent
        moved = reference.push(z, live, index, q, column_weight, ctx.uniform, ctx.entropy, t)
        return None, *(move for move in moved if move is not None)


@bound_quickly
class _Pull(torch.autograd.Function):
    """The gradient of the logits from the cotangents of the four statistics."""

    @staticmethod
    def forward(
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
        return operators.pull(z, live, index, q, column_weight, fields, a, b, c, d)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        again, moving = _pull_again(ctx.saved_tensors)
        dz, *rest = torch.func.vjp(again, *moving)[1](g)
        given = iter(rest)
        cotangents = (None if cotangent is None else next(given) for cotangent in ctx.saved_tensors[6:])
        return dz, *(None,) * 5, *cotangents

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Tensor | None) -> tuple[Tensor, int]:
        # The fields have their rows in the second dimension; turned round they fold like everything else.
        turned, dims = list(inputs), list(in_dims)
        assert inputs[5] is not None
        turned[5] = inputs[5].mT if in_dims[5] is None else inputs[5].movedim(in_dims[5], 0).mT
        dims[5] = None if in_dims[5] is None else 0
        folded = list(_folded(info.batch_size, tuple(dims), tuple(turned)))
        folded[5] = folded[5].mT
        return _kind(_Pull).apply(*folded).unflatten(0, (info.batch_size, -1)), 0


class _PullForward(_Pull):
    """The same with a forward derivative."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        refuse_nested_forward()
        again, moving = _pull_again(ctx.saved_tensors)
        cotangents = zip(tangents[6:], ctx.saved_tensors[6:], strict=True)
        along = [tangents[0], *(tangent for tangent, there in cotangents if there is not None)]
        whole = [torch.zeros_like(x) if t is None else t for t, x in zip(along, moving, strict=True)]
        return along_tangents(again, moving, whole)


def refuse_nested_forward() -> None:
    """Forward over forward is an error: torch takes the second derivative of an autograd function to be 0 there.

    https://github.com/pytorch/pytorch/issues/197867
    """
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1:
        raise NotImplementedError(
            "a forward derivative of a forward derivative (jacfwd of jacfwd, jvp of jvp) would silently be 0, since "
            "torch.autograd.Function has none; write torch.func.hessian, jacfwd of jacrev, or jacrev of either."
        )


def along_tangents(gradient: Any, at: list[Tensor], along: list[Tensor]) -> Tensor:
    """How a gradient of its first argument moves when its arguments move along tangents.

    By two backward passes, since torch.autograd.forward_ad does not nest: what goes back through the gradient is linear
    in the cotangent, and going back through that is the forward derivative.
    """
    back = torch.func.vjp(gradient, *at)[1]
    return torch.func.vjp(back, torch.zeros_like(at[0]))[1](tuple(along))[0]


def _pull_again(saved: tuple) -> tuple[Any, list[Tensor]]:
    """``pull`` in plain torch, as a function of what it can be differentiated by: z and the cotangents."""
    z, live, index, q, column_weight, _, *cotangents = saved

    def again(z: Tensor, *moving: Tensor) -> Tensor:
        given = iter(moving)
        a, b, c, d = (None if cotangent is None else next(given) for cotangent in cotangents)
        assert a is not None
        return reference.differentiable_pull(z, live, index, q, column_weight, a, b, c, d)

    return again, [z, *(cotangent for cotangent in cotangents if cotangent is not None)]


def _folded(batch: int, in_dims: tuple, inputs: tuple) -> Any:
    """What vmap handed over, with the batch folded into the rows: rows know nothing of each other."""
    for position, (value, at) in enumerate(zip(inputs, in_dims, strict=True)):
        if position == 4 and at is not None:
            raise NotImplementedError(
                "torch.func.vmap over class weights is not possible, since all rows are read with the same ones; "
                "call cross_entropy once for each, or take the weights into sparse or soft targets."
            )
        if position == 4 or not isinstance(value, Tensor):
            yield value
        else:
            spread = value.unsqueeze(0).expand(batch, *value.shape) if at is None else value.movedim(at, 0)
            yield spread.flatten(0, 1)


def _kind(function: type[torch.autograd.Function]) -> Any:
    """The function to apply: with a forward derivative, except for a compiler that could not see through it."""
    if is_compiled():
        return function
    return _RowsForward if function is _Rows else _PullForward


def is_compiled() -> bool:
    """Whether a compiler is looking, who sees no forward derivative: one that is asked for would come out as 0."""
    if torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0:
        raise NotImplementedError(
            "a forward derivative (torch.func.jvp, jacfwd) cannot be compiled: torch.compile does not see through it. "
            "Call it outside of torch.compile, or take the gradient (torch.func.grad), which can be compiled."
        )
    return torch.compiler.is_compiling()


def is_learned(x: Tensor | None) -> bool:
    """Whether someone asks for the derivative by x, backwards or forwards."""
    if x is None or x.requires_grad:
        return x is not None
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad.unpack_dual(x).tangent is not None


def row_stats(z: Tensor, target: Target, loss: Loss, link: Link | None = None) -> Stats:
    """What ``loss`` reads of every row of z, (n, v) or (n, v, l), against its target.

    Rows that are not live are never read, so that a NaN there reaches nothing and their gradient is exactly +0.
    """
    z = z.unsqueeze(-1) if z.dim() == 2 else z
    if link is not None:  # its own derivative at a NaN would be one, so here the selection comes first
        z = link(_live_columns(z, target).to(reference.wide(z)).movedim(1, -1)).movedim(-1, 1)  # its bias is (v,)

    looked_at = "logits" in loss.reads
    if looked_at or (is_learned(loss.class_weight) and "uniform" in loss.reads):
        # The row is read twice, and two gradients are added up: in the wide dtype, to be rounded once.
        z = _live_columns(z, target).to(reference.wide(z))

    def read(*what: Any) -> tuple[Tensor, ...]:
        return _kind(_Rows).apply(z, target.live, *what)

    return stats_of(read, z.shape[1], target, loss, reference.by_row(z) if looked_at else None)


def stats_of(
    read: Callable[..., tuple[Tensor, ...]],
    classes: int,
    target: Target,
    loss: Loss,
    columns: Tensor | None = None,
    weighed: Callable[[Tensor], Tensor] | None = None,
) -> Stats:
    """What ``loss`` reads of every row, from whoever can read them.

    ``read(index, q, column_weight, uniform, entropy, order)`` gives (fields, nll, lse, uniform?, entropy?) of every
    row; ``columns`` (n, v) are the rows themselves, for the losses that cannot do without. ``weighed`` gives
    Σ_j w_j nll_j of every row for class weights that are learned, where no rank has all columns.
    """
    class_weight = loss.class_weight
    dense = target.index is None
    # A soft target is summed up while the row is read, unless someone needs its columns one by one.
    weights_learned = is_learned(class_weight)
    soft = target.weight if dense and loss.linear and not weights_learned and not is_learned(target.weight) else None
    if soft is not None and soft.dim() == 2:
        soft = soft.unsqueeze(-1)
    uniform, entropy = "uniform" in loss.reads, "entropy" in loss.reads
    order = "order" in loss.reads
    fields, nll, lse, *rest = read(target.index, soft, class_weight, uniform, entropy, order)
    given = iter(rest)
    known = unpack(fields, nll, dense=soft is not None, uniform=uniform, entropy=entropy)
    if soft is not None:
        q, mass = known.held, known.mass
    elif target.weight is None:
        q = nll.new_ones(()).expand_as(nll)
        mass = nll.new_ones(()).expand_as(lse)
    else:
        weight = target.weight if target.weight.dim() == 2 else reference.by_row(target.weight)
        q = weight.to(nll.dtype)
        mass = q.sum(-1)
    if class_weight is not None and soft is None:
        q = q * (class_weight.to(q) if target.index is None else class_weight.to(q)[target.index])
    even = next(given) if uniform else None
    if known.count is not None and weights_learned and class_weight is not None:
        # By its definition, which is differentiable by the weights; to the kernel they are fixed.
        if weighed is None:
            even = over_allowed(read(None, None, None, False, False, False)[1], class_weight) / known.count
        else:
            even = weighed(class_weight) / known.count
    return Stats(
        nll=nll,
        q=q,
        mass=mass,
        lse=lse,
        classes=classes,
        uniform=even,
        entropy=next(given) if entropy else None,
        count=known.count,
        index=target.index,
        logits=columns,
        plain=target.weight is None and class_weight is None,
        first=fields[-2] if order else None,
        above=fields[-1] if order else None,
    )


def over_allowed(nll: Tensor, class_weight: Tensor) -> Tensor:
    """Σ_j w_j nll_j over the allowed of some columns (n, v)."""
    return (torch.where(nll == torch.inf, 0.0, nll) * class_weight.to(nll.dtype)).sum(-1)


@dataclass(frozen=True)
class AndNumbers(Loss):
    """A loss, and whatever else is known of a row once it is read."""

    loss: Loss

    @property
    def reads(self) -> frozenset[str]:
        """What the loss reads, the entropy, and the order of the columns."""
        return self.loss.reads | {"entropy", "order"}

    @property
    def linear(self) -> bool:
        """Whether the loss is."""
        return self.loss.linear

    @property
    def class_weight(self) -> Tensor | None:
        """The class weights of the loss."""
        return self.loss.class_weight


def row_numbers(z: Tensor, target: Target, loss: Loss, link: Link | None = None) -> tuple[Tensor, Stats]:
    """The loss (n,) of every row, and all statistics of the one pass that it took."""
    s = row_stats(z, target, AndNumbers(loss), link)
    return loss(s), s


def row_losses(z: Tensor, target: Target, loss: Loss, link: Link | None = None) -> tuple[Tensor, Tensor | None]:
    """(loss, weight) of every row, both (n,): the weight is what a mean divides by.

    It is 1 unless classes or rows are weighted, and None if it is 1 in every row. Rows that are not live have loss 0
    and weight 0.
    """
    return losses_of(row_stats(z, target, loss, link), target, loss)


def columns(input: Tensor) -> Tensor:
    """Logits (C,), (N, C) or (N, C, d1, …) as (n, v, l): a view wherever the layout allows one."""
    if input.dim() == 1:
        return input.reshape(1, -1, 1)
    return input.unsqueeze(-1) if input.dim() == 2 else input.flatten(2)


def counting(target: Target) -> Target:
    """The same, with rows of no weight counted among those that are not read: their loss is 0, whatever it is.

    Where weights are learned a row of no weight is read: its loss is the derivative by its weight.
    """
    if target.row_weight is None or is_learned(target.row_weight):
        return target
    weighty = target.row_weight != 0
    return replace(target, live=weighty if target.live is None else target.live & weighty)


def losses_of(s: Stats, target: Target, loss: Loss) -> tuple[Tensor, Tensor | None]:
    """The same, of rows that have been read."""
    value = loss(s)
    if s.plain and target.live is None and target.row_weight is None:
        return value, None
    # The mean class weight under the target: w_y for a label, the same for its one-hot, 1 without class weights.
    weight = torch.where(s.mass == 0, 1.0, s.held / torch.where(s.mass == 0, 1.0, s.mass))
    if target.row_weight is not None:
        row_weight = target.row_weight.to(value)
        if target.live is not None:  # what stands in other rows is not looked at, and has no slope
            row_weight = torch.where(target.live, row_weight, 0.0)
        silent = (row_weight == 0) & ~value.isfinite()  # 0 · ∞ = 0: a row of no weight costs nothing
        value, weight = torch.where(silent, 0.0, value) * row_weight, weight * row_weight
    if target.live is not None:
        value, weight = torch.where(target.live, value, 0.0), torch.where(target.live, weight, 0.0)
    return value, weight


def pulled(z: Tensor, target: Target, soft: Tensor | None, fields: Tensor, a: Tensor, c: Tensor | None) -> Tensor:
    """The gradient of z (n, v, l) from cotangents of nll and uniform; differentiable in its turn."""
    return _kind(_Pull).apply(z, target.live, target.index, soft, None, fields, a, None, c, None)


def _live_columns(z: Tensor, target: Target) -> Tensor:
    """z (n, v, l) with zeros in the rows that are not to be read."""
    if target.live is None:
        return z
    return torch.where(target.live.reshape(z.shape[0], 1, z.shape[2]), z, 0.0)
