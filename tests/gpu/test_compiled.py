"""What an assembler makes of the kernels for an H200: every road compiles, and nothing in it ought not to be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interpreter

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def uses(kernel: dict[str, Any], *beginnings: str) -> list[str]:
    return [name for name in kernel["operations"] if name.startswith(beginnings)]


def test_every_road_compiles_and_the_machine_code_is_what_was_meant() -> None:
    compiled = json.loads(run("tests/gpu/compiled.py").splitlines()[-1])
    assert compiled["compiled"] > 80
    kernels = compiled["kernels"]
    assert uses(kernels.pop("with an atomic"), "ATOM", "RED")
    narrow = {"cvt.rn.bf16x2.f32", "ex2.approx.ftz.f32"}
    for name, kernel in kernels.items():
        what, v, dtype = name.split()
        # Sums have an order, registers suffice, and nothing is fused that was not asked for.
        assert not uses(kernel, "ATOM", "RED."), name
        assert not kernel["memory_of_threads"], name
        assert not kernel["fused"], name
        if v in ("1000", "32768", "131072"):  # memory is read and written 16 bytes at a time
            assert uses(kernel, "LDG.E.128"), name
            assert what == "part" or uses(kernel, "STG.E.128"), name
        if what != "part":  # 16-bit gradients are made and rounded by the hardware, and no others
            assert set(kernel["ptx"]) == (narrow if dtype == "bfloat16" else set()), name
    assert not uses(kernels["part 1001 float32"], "LDG.E.128")  # rows that begin anywhere


def test_the_benchmark_runs(tmp_path: Path) -> None:
    """At tiny shapes, so that it need not be mended where a GPU is waiting."""
    place = tmp_path / "gpu.json"
    command = ("benchmarks/run.py", "--device", "interpreter", "--rounds", "1", "--record", str(place))
    said = run("-W", "ignore", *command, TRITON_INTERPRET="1")
    assert "the gate refuses 16 planted faults" in said
    record = json.loads(place.read_text())
    assert [case["shape"] for case in record["cases"]] == [[6, 40], [6, 8, 40], [6, 40]]
    for case in record["cases"]:
        assert "crossent" in case["milliseconds"]
        assert "crossent" not in case["refused"]
        assert case["absent"]
