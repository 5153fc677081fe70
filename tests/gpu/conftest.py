"""Where the GPU's kernels run: on a GPU, or where there is none in Triton's interpreter, on tensors of the CPU.

The interpreter is chosen when Triton is first imported, so these tests run by themselves:

    pytest -m interpreter tests/gpu
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") == "interpreter" and not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    import triton

    from crossent.compute import backends

    if not torch.cuda.is_available() and not triton.knobs.runtime.interpret:
        pytest.fail("Triton's interpreter is chosen for a whole process. Run: pytest -m interpreter tests/gpu")
    with backends.using("gpu"):
        yield


@pytest.fixture(params=["its own tiles", "tiles of 8 rows and 16 columns"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiles that are chosen for V, and some that make loops of a few dozen columns."""
    from crossent.compute.backends import gpu
    from crossent.compute.backends.gpu.layout import Tile

    if request.param != "its own tiles":
        monkeypatch.setattr(gpu, "tile_of", lambda v, inner, along: Tile(8, 16, 1))
    return request.param
