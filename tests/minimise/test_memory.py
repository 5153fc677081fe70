"""What a fit takes beside its data stays within what docs/guides/fit.md says: 150 MB and eight times the features."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import ctypes, json, re
from pathlib import Path
import numpy as np
import torch
from crossent.minimise import fit

torch.set_num_threads(1)

def resident(line):
    return 1024 * int(re.search(line + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

def taken(call):
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before

def learnt(rows):
    draw = np.random.default_rng(0)
    x = draw.random((rows, 50), dtype=np.float32)
    y = (x[:, 0] + 0.2 * draw.normal(size=rows) > 0.5).astype(int)
    return x, lambda: fit(x, y, settings=["epochs=1", "folds=2", "members=1", "width=32", "trees=no"])

learnt(600)[1]()  # everything loaded, compiled and started
x, call = learnt(120_000)
print(json.dumps({"data": x.nbytes, "fit": taken(call), "fifteen copies": taken(lambda: x.repeat(15, 0))}))
"""


def test_a_fit_takes_no_more_than_150_mb_and_eight_times_its_features():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout.splitlines()[-1])
    allowed = 150e6 + 8 * took["data"]
    assert took["data"] == 24_000_000
    assert took["data"] < took["fit"] < allowed, took
    assert took["fifteen copies"] > allowed  # the measure sees what is too much
