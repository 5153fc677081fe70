"""What a compiler is asked to keep as a constant: the classes, numbers and words of a function of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar
from torch.nn import Module

from crossent.compute.linear.compiled import MADE_OF, TABLE, spelled
from crossent.compute.losses.algebra import OF_MODULE, Loss

_OF_ALL = frozenset(vars(Module()))


def outline(made: Any) -> Any:
    """An object as nested tuples of its class, its fields and what they hold."""
    if isinstance(made, Tensor):
        return ...
    if isinstance(made, (Loss, Module)) or is_dataclass(made):
        return (MADE_OF, type(made), tuple(_fields(made)))
    return guard_scalar(made) if isinstance(made, (int, float)) else made  # another number, another program


def _fields(made: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds; of a module not what all modules have, but for its tensors and the modules within."""
    for name, held in vars(made).items():
        if name in OF_MODULE:
            yield name, (TABLE, tuple((key, outline(each)) for key, each in held.items()))
        elif not isinstance(made, Module) or name not in _OF_ALL:
            yield name, outline(held)


@torch.compiler.assume_constant_result
def written(outlined: Any) -> str:
    """An outline as a text."""
    return json.dumps(spelled(outlined))
