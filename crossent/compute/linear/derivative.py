"""Derivatives of functions of rows, a few rows at a time, by ``torch.func.vjp`` alone: of any order, and forward ones.

A function of tensors, some of which have a row for each row of logits while the others are shared by all rows, is
worked out for a few rows at a time: what it gives by row is put together, what it gives for all rows is added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.linear.product import spans

Tensors = Sequence[Tensor | None]


def in_chunks(
    function: Callable[..., Sequence[Tensor]], given: Tensors, by_row: Sequence[bool], made: Sequence[bool], size: int
) -> list[Tensor]:
    """``function`` of ``size`` rows at a time of what is given ``by_row``; ``made`` says which answers are by row."""
    rows = next(t.shape[0] for t, by in zip(given, by_row, strict=True) if by and t is not None)
    parts: list[list[Tensor]] = [[] for _ in made]
    for at in spans(rows, max(1, size)) or [slice(0, 0)]:
        some = (t[at] if by and t is not None else t for t, by in zip(given, by_row, strict=True))
        for part, one, by in zip(parts, function(*some), made, strict=True):
            if by or not part:
                part.append(one if by else one.to(wide(one)))
            else:  # added up in the wide dtype, whatever its own
                part[0] = part[0] + one
    return [torch.cat(part) if by else part[0] for part, by in zip(parts, made, strict=True)]


def of_moving(function: Callable[..., Any], given: Tensors, moves: Sequence[bool]) -> tuple[Any, tuple]:
    """The function of those arguments alone that move, and them."""

    def of(*moving: Tensor) -> Any:
        each = iter(moving)
        return function(*(next(each) if move else t for t, move in zip(given, moves, strict=True)))

    return of, tuple(t for t, move in zip(given, moves, strict=True) if move)


def pulled(
    function: Callable[..., tuple[Tensor, ...]], given: Tensors, moves: Sequence[bool], ups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of the arguments that move, from the cotangents of the function's answers."""
    of, moving = of_moving(function, given, moves)
    return torch.func.vjp(of, *moving)[1](tuple(ups))


def pushed(function: Callable[..., tuple[Tensor, ...]], given: Tensors, along: Tensors) -> tuple[Tensor, ...]:
    """How the function's answers move when its arguments move along tangents (None: it stays).

    By two backward passes, since torch.autograd.forward_ad does not nest: what goes back through the function is linear
    in the cotangent, and going back through that is the forward derivative.
    """
    of, moving = of_moving(function, given, [t is not None for t in along])
    answers, back = torch.func.vjp(of, *moving)[:2]
    nothing = tuple(torch.zeros_like(answer) for answer in answers)
    return torch.func.vjp(back, nothing)[1](tuple(t for t in along if t is not None))[0]


def one_by_one(call: Callable[..., tuple], batch: int, in_dims: tuple, inputs: tuple) -> tuple[Tensor, ...]:
    """What ``call`` gives for each element of the batch that vmap handed over, stacked."""

    def one(at: int) -> tuple[Tensor, ...]:
        given = zip(inputs, in_dims, strict=True)
        return call(*(x if dim is None or not isinstance(x, Tensor) else x.select(dim, at) for x, dim in given))

    return tuple(torch.stack(found) for found in zip(*(one(at) for at in range(batch)), strict=True))
