"""What measuring costs: seconds and peak memory of a full report, beside what others need for a part of it.

    python benchmarks/measure.py [ROWS] [ROWS OF TEN CLASSES] [--only NAME …]

Makes Parquet files of calibrated predictions in a temporary folder, float32, labels int8 (100,000,000 rows of two
classes are 0.5 GB), and runs each contender in a process of its own, which reads its own file. Time is of the whole
process but for the start of Python and its imports; memory is the peak of the process. The record goes to
benchmarks/records/measure.json. The peers do less, which is said beside them:

    crossent                every number, curve and table of ``evaluate``
    scikit-learn            log_loss alone
    model-diagnostics       the decomposition alone, without intervals
    torchmetrics            binary: accuracy and calibration error, in batches; it has no log loss of probabilities
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

RECORD = Path(__file__).parent / "records" / "measure.json"
BATCH = 1_000_000


def make(path: Path, rows: int, classes: int) -> None:
    """Write calibrated predictions, a million rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = ["p_1"] if classes == 2 else [f"p_{c}" for c in range(classes)]
    schema = pa.schema([("label", pa.int8()), *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for begin in range(0, rows, BATCH):
            n = min(BATCH, rows - begin)
            if classes == 2:
                p = 1 / (1 + np.exp(-rng.normal(0, 2, n)))
                columns, label = [p.astype(np.float32)], rng.random(n) < p
            else:
                z = np.exp(rng.normal(0, 1.5, (n, classes)))
                p = z / z.sum(axis=1, keepdims=True)
                label = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
                columns = list(p.astype(np.float32).T)
            writer.write_table(pa.table([pa.array(label.astype(np.int8)), *map(pa.array, columns)], schema=schema))


def ours(path: str, classes: int) -> dict[str, float]:
    import crossent

    record = crossent.evaluate(path, label="label")
    return {name: record[name].value for name in ("cross_entropy", "discrimination", "miscalibration")}


def scikit_learn(path: str, classes: int) -> dict[str, float]:
    from sklearn.metrics import log_loss

    p, y = _columns(path, classes)
    return {"cross_entropy": float(log_loss(y, p))}


def model_diagnostics(path: str, classes: int) -> dict[str, float]:
    from model_diagnostics.scoring import LogLoss, decompose

    p, y = _columns(path, classes)
    found = decompose(y_obs=y.astype(np.float64), y_pred=p.astype(np.float64), scoring_function=LogLoss())
    return {name: float(found[name][0]) for name in ("miscalibration", "discrimination", "uncertainty", "score")}


def torchmetrics(path: str, classes: int) -> dict[str, float]:
    import torch
    from torchmetrics.classification import (
        BinaryAccuracy,
        BinaryCalibrationError,
        MulticlassAccuracy,
        MulticlassCalibrationError,
    )

    p, y = _columns(path, classes)
    error = BinaryCalibrationError(15) if classes == 2 else MulticlassCalibrationError(classes, 15)
    right = BinaryAccuracy() if classes == 2 else MulticlassAccuracy(classes, average="micro")
    for begin in range(0, len(y), BATCH):
        part, came = torch.from_numpy(p[begin : begin + BATCH]), torch.from_numpy(y[begin : begin + BATCH]).long()
        error.update(part, came)
        right.update(part, came)
    return {"ece": float(error.compute()), "accuracy": float(right.compute())}


def _columns(path: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = [table.column(name).to_numpy() for name in table.column_names if name != "label"]
    return columns[0] if classes == 2 else np.stack(columns, axis=1), table.column("label").to_numpy()


CONTENDERS = {
    "crossent": ours,
    "scikit-learn": scikit_learn,
    "model-diagnostics": model_diagnostics,
    "torchmetrics": torchmetrics,
}


def run(name: str, path: Path, classes: int) -> dict[str, object]:
    """One contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, str(path), str(classes)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def one(name: str, path: str, classes: str) -> None:
    imports = {
        "crossent": "crossent.measure",
        "scikit-learn": "sklearn.metrics",
        "model-diagnostics": "model_diagnostics.scoring",
        "torchmetrics": "torchmetrics.classification",
    }
    __import__(imports[name])
    __import__("pyarrow.parquet")
    began = time.perf_counter()
    found = CONTENDERS[name](path, int(classes))
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "seconds": round(seconds, 2),
                "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
                "peak_GiB": round(used.ru_maxrss / 2**20, 3),
                "found": found,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=100_000_000)
    parser.add_argument("ten", nargs="?", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record["machine"] = {
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("crossent", "numpy", "scipy", "pyarrow", *list(CONTENDERS)[1:], "torch")},
    }
    with tempfile.TemporaryDirectory() as folder:
        for classes, rows in ((2, asked.rows), (10, asked.ten)):
            if not rows:
                continue
            path = Path(folder) / "predictions.parquet"
            make(path, rows, classes)
            case = record.setdefault(f"{classes} classes", {}).setdefault(f"{rows:.0e} rows".replace("+0", ""), {})
            for name in asked.only:
                if name == "model-diagnostics" and classes > 2:
                    continue
                load = os.getloadavg()[0]
                case[name] = run(name, path, classes) | {"load_before": round(load, 1)}
                print(classes, "classes", f"{rows:,} rows", name, case[name], flush=True)
            path.unlink()
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(*sys.argv[2:5])
    else:
        main()
