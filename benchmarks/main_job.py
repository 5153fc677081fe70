"""What the main job reaches, beside what a user would try first, on the same rows.

    python benchmarks/main_job.py                             the embedded sets, five seeds
    python benchmarks/main_job.py TRAIN TEST --target COLUMN  a table with its own test file

Every model is tested on the same rows with the same function. The peers get the validation rows to train on as well,
since they need none to stop by. The record goes to benchmarks/records/main_job.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import crossent
from crossent.minimise import data
from crossent.minimise.fit import versions

PEERS = {
    "logistic regression": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
    "random forest": lambda seed: RandomForestClassifier(500, random_state=seed, min_samples_leaf=2),
}


def one(source: str, seed: int, test: str | None, target: str | None) -> dict[str, tuple[float, float]]:
    """Test cross-entropy in nats and seconds of every model for one seed."""
    began = time.monotonic()
    run = crossent.fit(source, target=target, test=test, seed=seed)
    result = {"crossent": (run.record["cross_entropy"].value, time.monotonic() - began)}
    rows, splits = run.predicted.rows, run.predicted.splits
    own = data.read(source, target)
    other = own if test is None else data.read(test, target)
    learn = np.sort(rows[splits != "test"])
    x, held_out = (
        run.preparation(part.x.iloc[which].reset_index(drop=True), "benchmark").nan_to_num(0.0).numpy()
        for part, which in ((own, learn), (other, rows[splits == "test"]))
    )
    y = np.array([str(v) for v in own.y[learn]])
    truth = [str(v) for v in other.y[rows[splits == "test"]]]
    for name, make in PEERS.items():
        began = time.monotonic()
        model = make(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(x, y)
        p = model.predict_proba(held_out)
        measured = crossent.evaluate(p, truth, classes=list(model.classes_))
        figure = (
            measured["cross_entropy"]
            if np.isfinite(measured["cross_entropy"].value)
            else measured["cross_entropy_floored"]
        )
        result[name] = (figure.value, time.monotonic() - began)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?")
    parser.add_argument("test", nargs="?")
    parser.add_argument("--target")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    sources = [asked.train] if asked.train else ["digits", "breast_cancer", "iris", "wine"]
    record = Path(__file__).parent / "records" / "main_job.json"
    kept = json.loads(record.read_text()) if record.exists() else {}
    for source in sources:
        seeds = [one(source, seed, asked.test, asked.target) for seed in range(asked.seeds)]
        name = Path(source).stem
        kept[name] = {
            "seeds": asked.seeds,
            "versions": versions(),
            "cross_entropy_nats": {m: [round(s[m][0], 4) for s in seeds] for m in seeds[0]},
            "median_seconds": {m: round(float(np.median([s[m][1] for s in seeds])), 1) for m in seeds[0]},
        }
        means = ", ".join(f"{m} {np.mean([s[m][0] for s in seeds]):.4f}" for m in seeds[0])
        print(f"{name}: mean test cross-entropy in nats: {means}", flush=True)
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
