"""How a row is read: the reference in plain torch, and faster ones that are held to it.

A backend is two functions, ``part`` and ``pull``; what they take and give is written in ``reference``.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

from torch import Tensor

from crossent.compute.backends import reference

_chosen: str | None = None


def of(z: Tensor) -> ModuleType:
    """The backend for these logits."""
    if _chosen == "reference" or z.device.type != "cpu" or not z.is_floating_point():
        return reference
    return _cpu()


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within this block every row is read by one backend, ``"reference"`` or ``"cpu"``: to compare them."""
    global _chosen
    if name not in ("reference", "cpu"):
        raise ValueError(f"a backend is 'reference' or 'cpu'; got {name!r}.")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@cache
def _cpu() -> ModuleType:
    try:
        return importlib.import_module("crossent.compute.backends.cpu")
    except ImportError as trouble:
        warnings.warn(
            f"crossent's CPU kernels need numba, which cannot be imported ({trouble}); the reference does the work, as "
            "exactly and several times more slowly. Install it with: pip install numba",
            RuntimeWarning,
            stacklevel=2,
        )
        return reference
