"""Compiles kernels for an H200 where there may be none, and prints what the assembler made of them, as JSON.

Run by test_compiled.py in a process of its own: here Triton compiles, where the other tests have its interpreter. A
stand-in says which GPU there is, and what would be launched is only compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from crossent.compute.backends import gpu


class StandIn:
    """As much of a driver as a compilation asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


made: list[Any] = []
compile_and_launch = JITFunction.run


def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> Any:
    made.append(compile_and_launch(self, *args, grid=grid, warmup=True, **more))
    return made[-1]


def assembled(kernel: Any) -> dict[str, Any]:
    tool = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def ask(what: str) -> str:
            return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout

        used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", ask("-res-usage"))
        code = ask("-sass")
    assert used is not None
    operations = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    return {
        "registers": int(used[1]),
        "memory_of_threads": int(used[2]) + int(used[3]),
        "operations": sorted(set(operations)),
        "fused": kernel.metadata.enable_fp_fusion,
        "ptx": [line for line in ("cvt.rn.bf16x2.f32", "ex2.approx.ftz.f32") if line in kernel.asm["ptx"]],
    }


@triton.jit
def with_an_atomic(x):
    tl.atomic_add(x + tl.arange(0, 32), 1.0)


def main() -> None:
    driver.set_active(StandIn())
    JITFunction.run = only_compile
    found = {}

    def note(name: str) -> None:
        found[name] = assembled(made[-1])

    for v in (10, 1000, 32768, 131072, 1001):
        for dtype in (torch.bfloat16, torch.float32) if v != 1001 else (torch.float32,):
            z, y = torch.empty(64, v, 1, dtype=dtype), torch.zeros(64, 1, dtype=torch.long)
            name = f"{v} {str(dtype).removeprefix('torch.')}"
            fields, gap = gpu.part(z, None, y, None, None, False, False)
            note(f"part {name}")
            gpu.pull(z, None, y, None, None, fields, gap, None, None, None)
            note(f"pull {name}")
            gpu.both(z, None, y, False, 1.0, 0.0)
            note(f"both {name}")
    # Every other road through the kernels, so that each is known to compile.
    for dtype, shape in (
        (torch.bfloat16, (6, 5000, 1)),
        (torch.float32, (2, 40, 3)),
        (torch.float32, (2, 5000, 3)),
        (torch.float64, (6, 5000, 1)),
    ):
        z, y = torch.empty(shape, dtype=dtype), torch.zeros(6, 3, dtype=torch.long)
        live, weight = torch.ones(6, dtype=torch.bool), torch.ones(shape[1])
        for index, q in ((y, None), (None, torch.empty(shape)), (None, None)):
            fields, gap = gpu.part(z, live, index, q, weight, True, True, True)
            more = torch.ones(3, 6, dtype=torch.float64)
            gpu.pull(z, live, index, q, weight, fields, gap, *more, unless=torch.ones(()))
            gpu.pull(z, live, index, q, None, fields, gap, more[0], None, None)
        gpu.both(z, live, y[:, :1], True, 1.0, 0.1, out=z)
        x, pos = torch.empty(1000, dtype=dtype), torch.ones(3)
        for weight, summed in ((None, False), (pos, True)):
            gpu.elements(x, x, weight, 0.1, summed)
            gpu.pull_elements(x, x, weight, 0.1, torch.ones(2 if summed else 1000, dtype=torch.float64))
    with_an_atomic[(1,)](torch.empty(32))
    note("with an atomic")
    print(json.dumps({"compiled": len(made), "kernels": found}))


if __name__ == "__main__":
    sys.exit(main())
