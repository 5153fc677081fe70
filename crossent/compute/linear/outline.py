"""What a compiler is asked to keep as a constant: the classes, numbers and words of a function of rows."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar

from crossent.compute.linear.compiled import MADE_OF, spelled
from crossent.compute.losses.algebra import Loss


def outline(made: Any) -> Any:
    """An object as nested tuples of its class, its fields and what they hold."""
    if isinstance(made, Tensor):
        return ...
    if isinstance(made, Loss) or is_dataclass(made):
        return (MADE_OF, type(made), tuple((name, outline(held)) for name, held in vars(made).items()))
    return guard_scalar(made) if isinstance(made, (int, float)) else made  # another number, another program


@torch.compiler.assume_constant_result
def written(outlined: Any) -> str:
    """An outline as a text."""
    return json.dumps(spelled(outlined))
