"""Losses of columns for a compiler: two operators, and the function that they are of as a text.

Dynamo does not see through an autograd function of functions, and whatever it sees through becomes part of its program,
chunk by chunk, and takes the memory that suits it. So the function is written down: what a loss, a link or a divergence
is made of are classes, numbers and words, with ``...`` in the places of tensors, which the operators are given beside
it. The text is a constant of the program, and the chunks are made within the operators, as they are without a compiler:
in the same memory, with the same bits. A text names classes of modules that are imported already, and imports none: a
saved program runs no code but that of its own process.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import reduce
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor
from torch.nn import Module

from crossent.compute.backends.reference import wide
from crossent.compute.linear import columns
from crossent.compute.losses.algebra import Loss

# --- a function as a text -----------------------------------------------------------------------------------------

MADE_OF, TABLE = "made of", "table"
_KEPT: dict[str, Any] = {}
"""What no import finds (a class within a function, one that was defined anew) has a name in this process alone."""


def spelled(outlined: Any) -> list[Any]:
    """An outline as what JSON knows: the same in every process, but for what is kept."""
    if outlined is ...:
        return ["tensor"]
    if isinstance(outlined, tuple) and outlined[:1] == (MADE_OF,):
        _, kind, fields = outlined
        return ["object", _name_of(kind), {name: spelled(held) for name, held in fields}]
    if isinstance(outlined, tuple) and outlined[:1] == (TABLE,):
        return ["table", {name: spelled(held) for name, held in outlined[1]}]
    if outlined is None or isinstance(outlined, (bool, int, float, str)):
        return ["value", outlined]
    return ["thing", _name_of(outlined)]


def _read(text: str) -> Any:
    """The object of which this is the text."""
    return _made(*json.loads(text))


def _made(what: str, *of: Any) -> Any:
    if what == "tensor":
        return ...
    if what == "table":
        return {key: _made(*held) for key, held in of[0].items()}
    if what != "object":
        return _thing(*of) if what == "thing" else of[0]
    name, fields = of
    kind = _thing(name)
    if not (isinstance(kind, type) and (issubclass(kind, (Loss, Module)) or is_dataclass(kind))):
        raise TypeError(f"{name} is no loss, link or divergence, and a compiled program says that it is.")
    made = object.__new__(kind)
    if isinstance(made, Module):
        Module.__init__(made)
    for field, held in fields.items():
        object.__setattr__(made, field, _made(*held))
    return made


def _name_of(thing: Any) -> str:
    name = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    if _imported(name) is not thing:
        name = next((name for name, other in _KEPT.items() if other is thing), f"kept {uuid4().hex}")
        _KEPT[name] = thing
    return name


def _thing(name: str) -> Any:
    found = _KEPT[name] if name in _KEPT else _imported(name)
    if found is not None:
        return found
    module = name.partition(":")[0]
    if name.startswith("kept ") or module in sys.modules:
        raise LookupError(
            f"a compiled program needs {name}, which is not here: a loss that another process is to know must be a "
            "class at the top of a module that can be imported."
        )
    raise LookupError(
        f"a compiled program names {name}, and nobody has imported {module} here: a program imports nothing by itself. "
        f"If you know what it is, write `import {module}` before it runs."
    )


def _imported(name: str) -> Any:
    """What is called so in a module that somebody has imported: a text imports nothing."""
    module, _, path = name.partition(":")
    try:  # what lies in its dictionaries: asked for attributes, a module might import others
        return reduce(lambda held, part: vars(held)[part], path.split("."), sys.modules[module])
    except (KeyError, TypeError):
        return None


# --- its losses and their gradients, as operators --------------------------------------------------------------------

_library = torch.library.Library("crossent", "FRAGMENT")
_HEAD = "Tensor? live, Tensor x, Tensor w, Tensor? bias, Tensor?[] tensors"
_library.define(f"linear_columns_losses(str of, int count, int size, {_HEAD}) -> (Tensor, Tensor)")
_library.define(
    f"linear_columns_gradients(str of, int count, int size, bool[] wanted, Tensor g, Tensor h, {_HEAD}) -> Tensor[]"
)


@contextlib.contextmanager
def _autograd() -> Iterator[None]:
    """Derivatives within an operator: a compiled program may have switched autograd off for all that is in it."""
    exclude = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), exclude):
        yield


def _losses_op(
    of: str,
    count: int,
    size: int,
    live: Tensor | None,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    tensors: list[Tensor | None],
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return columns._Losses.forward(_read(of), count, size, live, x, w, bias, *tensors)


def _losses_fake(of: str, count: int, size: int, live: Tensor | None, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    value = x.new_empty(x.shape[0], dtype=wide(x))
    return value, torch.empty_like(value)


def _gradients_op(
    of: str,
    count: int,
    size: int,
    wanted: list[bool],
    g: Tensor,
    h: Tensor,
    live: Tensor | None,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    tensors: list[Tensor | None],
) -> list[Tensor]:
    with torch.no_grad(), _autograd():
        return [*columns._Gradients.forward(_read(of), count, size, tuple(wanted), live, g, h, x, w, bias, *tensors)]


def _gradients_fake(
    of: str, count: int, size: int, wanted: list[bool], g: Tensor, h: Tensor, live: Tensor | None, *head: Any
) -> list[Tensor]:
    *leaves, tensors = head
    x = leaves[0]
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format) if need and t is not None else x.new_empty(0)
        for t, need in zip((*leaves, *tensors), wanted, strict=True)
    ]


for _name, _op, _fake in (
    ("linear_columns_losses", _losses_op, _losses_fake),
    ("linear_columns_gradients", _gradients_op, _gradients_fake),
):
    _library.impl(_name, _op, "CompositeExplicitAutograd")
    torch.library.register_fake(f"crossent::{_name}", _fake, lib=_library)


class _Compiled(torch.autograd.Function):
    """``columns._Losses`` for a compiler, to whom the function is a text and its chunks are within an operator."""

    @staticmethod
    def forward(
        ctx: Any,
        of: str,
        count: int,
        size: int,
        live: Tensor | None,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.of, ctx.count, ctx.size = of, count, size
        ctx.save_for_backward(live, x, w, bias, *tensors)
        return torch.ops.crossent.linear_columns_losses(of, count, size, live, x, w, bias, tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:
        live, x, w, bias, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        made = torch.ops.crossent.linear_columns_gradients(
            ctx.of, ctx.count, ctx.size, list(wanted), g, h, live, x, w, bias, tensors
        )
        return *(None,) * 4, *(d if need else None for d, need in zip(made, wanted, strict=True))


def row_losses(
    x: Tensor, w: Tensor, bias: Tensor | None, live: Tensor | None, made: columns.Columns, size: int
) -> tuple[Tensor, Tensor]:
    """``columns.row_losses`` in a program that is being compiled."""
    from crossent.compute.linear.outline import outline, written  # which brings Dynamo along, and takes seconds

    of, tensors = written(outline(made.of)), (*made.by_row, *made.whole)
    return _Compiled.apply(of, len(made.by_row), size, live, x, w, bias, *tensors)
