"""How a row is read: the reference in plain torch, and faster ones that are held to it."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from crossent.compute.backends import reference


def of(z: Tensor) -> ModuleType:
    """The backend for these logits."""
    return reference
