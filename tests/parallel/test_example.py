"""The example under torchrun: a vocabulary that is spread gives the losses of one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "parallel_language_model.py"


def losses(*command: str) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, *command, str(EXAMPLE)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [float(number) for number in re.findall(r"(\d+\.\d+) nats", done.stdout)]


def test_two_processes_train_what_one_does() -> None:
    alone = losses()
    together = losses("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    # To four digits after thirty steps in float32, whose sums have another order.
    assert len(alone) == len(together) == 4
    assert max(abs(a - b) for a, b in zip(alone, together, strict=True)) <= 2e-4
    assert alone[-1] < 0.75 * alone[0]
