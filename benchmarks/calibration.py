"""What does guarded calibration do to real predictions, on rows it has not seen? Beside the usual ways, unguarded.

    python benchmarks/calibration.py [--rows N] [--seed N] [--write]

Each set of predictions in ../shared/data is cut into two halves at random (whole groups where rows come in groups: all
forecasts of a team's season stay together). A calibrator is chosen and fitted on one half and applied to the other, and
the other way round, so that every row is calibrated once, by rows of the other half. Losses are in nats; where a label
had probability 0, before or after, every probability is raised to at least 1e-6 for both (the floor of `crossent
evaluate`). The change is the mean of the differences row by row, with its 95 % interval, clustered where there are
groups.

"sigmoid" and "isotonic" are scikit-learn's CalibratedClassifierCV around a model that is already fitted, on the same
halves. `--rows` takes N rows at random, `--seed` draws them and the halves; `--write` keeps the result in
benchmarks/records/.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from crossent.measure import calibrate
from crossent.measure.calibration.rows import log_softmax
from crossent.measure.intervals.cluster import ClusterMean, cluster_mean
from crossent.measure.sums.likelihood import FLOOR, costs_of_logs

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared" / "data"
RECORD = HERE / "records" / "calibration.json"
EVENTS = ("win_division", "wildcard", "make_playoffs", "make_division_series", "make_league_series",
          "make_world_series", "win_world_series")  # fmt: skip


@dataclass(frozen=True)
class Set:
    """Predictions of one source: log-probabilities (n, classes), labels (n,), groups (n,) or None."""

    name: str
    z: Any
    y: Any
    groups: Any = None


def sets(folder: Path = DATA) -> Iterator[Set]:
    """Give every set of predictions in the folder of real data."""
    for name in ("nba_games", "mlb_games"):
        rows = _csv(folder / "forecasts" / f"{name}.csv")
        yield _binary(name, [row["prob1"] for row in rows], [row["prob1_outcome"] for row in rows])
    rows = _csv(folder / "forecasts" / "mlb_playoffs.csv")
    teams = np.array([f"{row['team']} {row['season']}" for row in rows])
    for event in EVENTS:
        known = np.array([bool(row[event]) and bool(row[f"{event}_outcome"]) for row in rows])
        chosen = [row for row, there in zip(rows, known, strict=True) if there]
        p, y = [row[event] for row in chosen], [row[f"{event}_outcome"] for row in chosen]
        yield _binary(f"mlb_playoffs: {event}", p, y, teams[known])
    logits = folder / "logits"
    for part in ("val", "tst", "tst_sh", "tst_sc"):
        stem = f"resnet50_cifar10_{part}"
        z, y = np.load(logits / f"{stem}_logits.npy"), np.load(logits / f"{stem}_labels.npy")
        yield Set(stem, log_softmax(z.astype(np.float64)), y.astype(np.int64).ravel())
    for stem in ("lenet5_cifar10", "densenet_cifar100"):
        with np.load(logits / f"{stem}_probs.npz") as file:
            yield _probabilities(stem, file["predictions"], file["ground_truth"])
    yield _probabilities("20news", np.load(logits / "20news_probs.npy"), np.load(logits / "20news_labels.npy"))
    z, y = np.load(logits / "speaker_trn_logits.npy"), np.load(logits / "speaker_trn_labels.npy")
    yield Set("speaker", log_softmax(z.astype(np.float64)), y.astype(np.int64).ravel())


def _csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _binary(name: str, p: list[str], y: list[str], groups: Any = None) -> Set:
    second = np.array(p, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return Set(
            name, np.log(np.stack([1 - second, second], axis=1)), np.array(y, dtype=np.float64).astype(int), groups
        )


def _probabilities(name: str, p: Any, y: Any) -> Set:
    y = np.asarray(y)
    with np.errstate(divide="ignore"):
        z = log_softmax(np.log(p.astype(np.float64)))
    return Set(name, z, y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.astype(np.int64).ravel())


@dataclass(frozen=True)
class Result:
    """What one way of calibrating did to one set."""

    set: str
    way: str
    rows: int
    before: float
    after: float
    change: ClusterMean
    floored: bool
    chosen: tuple[str, ...]
    seconds: float


def halves(one: Set, seed: int = 0, rows: int | None = None) -> tuple[Set, Any]:
    """Give the set, shortened if asked to, and which half each row is in."""
    random = np.random.default_rng(seed)
    if rows is not None and rows < len(one.y):
        kept = np.sort(random.permutation(len(one.y))[:rows])
        one = Set(one.name, one.z[kept], one.y[kept], None if one.groups is None else one.groups[kept])
    if one.groups is None:
        return one, random.permutation(len(one.y)) % 2
    group = np.unique(one.groups, return_inverse=True)[1]
    return one, (random.permutation(group.max() + 1) % 2)[group]


def guarded(z: Any, y: Any, groups: Any, new: Any) -> tuple[Any, str]:
    """Calibrate ``new`` by the rows (z, y), the way this package does."""
    found = calibrate(z, y, form="log-probabilities", group=groups, classes=[str(c) for c in range(z.shape[1])])
    return found.of_logits(new), found.kind


def sklearn_way(method: str) -> Any:
    """Calibrate the way scikit-learn does."""

    def way(z: Any, y: Any, groups: Any, new: Any) -> tuple[Any, str]:
        from sklearn.base import BaseEstimator, ClassifierMixin
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        class Known(ClassifierMixin, BaseEstimator):
            classes_ = np.arange(z.shape[1])

            def fit(self, x: Any, y: Any) -> Known:
                return self

            def __sklearn_is_fitted__(self) -> bool:
                return True

            def predict(self, x: Any) -> Any:
                return x.argmax(axis=1)

            def decision_function(self, x: Any) -> Any:  # it prefers these, and a sigmoid of log-odds is Platt's
                return x[:, 1] - x[:, 0] if x.shape[1] == 2 else x

        there = np.unique(y)
        if there.size < z.shape[1]:
            raise ValueError("a class did not come")
        # A finite stand-in for log 0: it refuses infinities.
        fitted = CalibratedClassifierCV(FrozenEstimator(Known()), method=method).fit(np.maximum(z, -700), y)
        with np.errstate(divide="ignore"):
            return np.log(fitted.predict_proba(np.maximum(new, -700))), method

    return way


WAYS = {"guarded": guarded, "sigmoid": sklearn_way("sigmoid"), "isotonic": sklearn_way("isotonic")}


def measured(one: Set, way: str, seed: int = 0, rows: int | None = None) -> Result:
    """Calibrate each half of a set by the other, and say what it did."""
    one, half = halves(one, seed, rows)
    out, chosen, begun = one.z.copy(), [], time.perf_counter()
    for held_out in (0, 1):
        here = half == held_out
        groups = None if one.groups is None else one.groups[~here]
        out[here], name = WAYS[way](one.z[~here], one.y[~here], groups, one.z[here])
        chosen.append(name)
    seconds = time.perf_counter() - begun
    before, after = costs_of_logs(one.z, one.y), costs_of_logs(out, one.y)
    floored = bool(np.isinf(before).any() or np.isinf(after).any())
    if floored:
        before, after = (costs_of_logs(np.maximum(logs, np.log(FLOOR)), one.y) for logs in (one.z, out))
    clusters = None if one.groups is None else np.unique(one.groups, return_inverse=True)[1]
    change = cluster_mean(after - before, clusters=clusters, scale=float(before.max()))
    return Result(
        one.name, way, len(one.y), float(before.mean()), float(after.mean()), change, floored, tuple(chosen), seconds
    )


def table(results: list[Result]) -> str:
    """Give the results as the table of docs/guides/calibrate.md."""
    lines = [
        "| set | rows | chosen on either half | before | after | change, 95 % interval | sigmoid | isotonic |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by = {(one.set, one.way): one for one in results}
    for one in (one for one in results if one.way == "guarded"):
        low, high = one.change.interval()
        span = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
        change = f"{one.change.value:+.4f}{span}" if one.before != one.after else "0"
        others = [f"{by[one.set, way].after:.4f}" if (one.set, way) in by else "–" for way in ("sigmoid", "isotonic")]
        chosen = " · ".join(dict.fromkeys(one.chosen))
        mark = " (floored)" if one.floored else ""
        lines.append(
            f"| {one.set} | {one.rows:,} | {chosen} | {one.before:.4f}{mark} | {one.after:.4f} | {change} | "
            f"{' | '.join(others)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    results: list[Result] = []
    for one in sets():
        for way in WAYS:
            with warnings.catch_warnings():
                if way != "guarded":
                    warnings.simplefilter("ignore")
                results.append(measured(one, way, asked.seed, asked.rows))
            found = results[-1]
            error = found.change.error or 0.0
            worse = "  WORSE by more than a standard error" if found.change.value > error > 0 else ""
            print(f"{found.set:38s} {way:9s} {found.before:.4f} {found.after:.4f} {found.change.value:+.5f} "
                  f"±{error:.5f} {found.seconds:6.1f} s  {' · '.join(found.chosen)}{worse}", flush=True)  # fmt: skip
    print(table(results))
    if asked.write:
        plain = [
            {
                "set": one.set, "way": one.way, "rows": one.rows, "before": one.before, "after": one.after,
                "change": one.change.value, "standard_error": one.change.error,
                "low": one.change.interval()[0], "high": one.change.interval()[1], "floored": one.floored,
                "chosen": list(one.chosen), "seconds": round(one.seconds, 2),
            }
            for one in results
        ]  # fmt: skip
        names = ("numpy", "scipy", "scikit-learn", "probmetrics", "torch")
        about = {"made_by": "python benchmarks/calibration.py --write", "versions": {n: version(n) for n in names}}
        RECORD.write_text(json.dumps({**about, "unit": "nats", "results": plain}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
