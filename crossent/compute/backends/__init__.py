"""How a row is read: the reference in plain torch, and faster ones that are held to it.

A backend is two functions, ``part`` and ``pull``; what they take and give is written in ``reference``.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import warnings
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from crossent.compute.backends import reference

_chosen: str | None = None


def of(z: Tensor) -> ModuleType:
    """The backend for these logits."""
    if _chosen == "reference" or not z.is_floating_point():
        return reference
    if z.device.type == "cuda" or _chosen == "gpu":
        return _gpu()
    if z.device.type != "cpu" or (z.dtype == torch.float16 and not _halves_are_read()):
        return reference
    return _cpu()


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within this block every row is read by one backend, ``"reference"``, ``"cpu"`` or ``"gpu"``: to compare them.

    On tensors of the CPU ``"gpu"`` needs Triton's interpreter: TRITON_INTERPRET=1 in the environment, from the start.
    """
    global _chosen
    if name not in ("reference", "cpu", "gpu"):
        raise ValueError(f"a backend is 'reference', 'cpu' or 'gpu'; got {name!r}.")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@cache
def _cpu() -> ModuleType:
    return _or_reference("cpu", "numba")


@cache
def _halves_are_read() -> bool:
    """Whether the processor turns float16 into float32: x86 does since 2012, and all that knows AVX2.

    Where it does not, a compiled kernel would call for a function that nobody has, and the process would end.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    known = not x86 or torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    if not known:
        warnings.warn(
            "crossent's CPU kernels read float16 with AVX2, which this processor has not or ATEN_CPU_CAPABILITY turns "
            "off; the reference does the work, as exactly and several times more slowly. bfloat16 and float32 are fast "
            "here too.",
            RuntimeWarning,
            stacklevel=4,
        )
    return known


@cache
def _gpu() -> ModuleType:
    return _or_reference("gpu", "triton")


def _or_reference(backend: str, compiler: str) -> ModuleType:
    try:
        return importlib.import_module(f"crossent.compute.backends.{backend}")
    except ImportError as trouble:
        warnings.warn(
            f"crossent's {backend.upper()} kernels need {compiler}, which cannot be imported ({trouble}); the "
            "reference does the work, as exactly and several times more slowly. Install it with: pip install "
            f"{compiler}",
            RuntimeWarning,
            stacklevel=3,
        )
        return reference
