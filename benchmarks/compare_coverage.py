"""How often do the intervals of a comparison hold the truth? Simulated pairs of models, counted coverage.

    python benchmarks/compare_coverage.py [repetitions of a difference] [repetitions of its parts]

True log-odds are normal with the mean and deviation given; with ``together`` that share of their variance is one draw
per cluster. Model A claims them, model B claims them times a sharpness, and with a normal error of deviation ``noise``
(of which again a share is common to a cluster). Clusters have one row, ten, ten that are forecasts of one label, or a
number from a heavy tail (Pareto 1.5, up to 300). The truth is the mean over a million rows. Beside crossent's interval
stand those that someone might take instead: Student's t with clusters − 1 degrees of freedom (CR1), the same without
clusters, and the one of two means as if the models had been measured on different rows.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, stdtrit

from crossent.measure.comparison.contrast import Ground, parts
from crossent.measure.comparison.rival import Rival, rival
from crossent.measure.predictions.predictions import Predictions

Array = NDArray[np.float64]

SHAPES = {  # rows of each of so many clusters
    "1": lambda rng, count: np.ones(count, int),
    "10": lambda rng, count: np.full(count, 10),
    "10, one label": lambda rng, count: np.full(count, 10),
    "heavy": lambda rng, count: np.minimum(1 + (5 * rng.pareto(1.5, count)).astype(int), 300),
}
PAIRS = {  # mean and deviation of the true log-odds, sharpness of B, noise of B
    "B twice too sure": (0.0, 2.0, 2.0, 0.0),
    "B twice too sure, confident": (0.0, 4.0, 2.0, 0.0),
    "B noisy": (0.0, 2.0, 1.0, 1.0),
}
ALIKE = {
    "the same model": (0.0, 2.0, 1.0, 0.0),
    "B 5 % too sure": (0.0, 2.0, 1.05, 0.0),
    "B a little noisy": (0.0, 2.0, 1.0, 0.2),
}
RARE = {  # a class of 4.4 %
    "rare class, B twice too sure": (-4.0, 1.5, 2.0, 0.0),
    "rare class, B noisy": (-4.0, 1.5, 1.0, 1.0),
    "rare class, B 30 % too sure": (-4.0, 1.5, 1.3, 0.3),
}
SETTINGS = [  # shape, clusters, share of the variance that is the cluster's
    *(("1", count, 0.0) for count in (100, 300, 1000)),
    *(("10", count, 0.5) for count in (5, 10, 30, 100)),
    *(("10, one label", count, 0.9) for count in (10, 30, 100)),
    *(("heavy", count, 0.5) for count in (5, 10, 30, 100)),
]
SETTINGS_OF_RARE = [
    *(("1", count, 0.0) for count in (100, 300, 1000)),
    *(("10, one label", count, 0.9) for count in (10, 30, 100, 300)),
]
SETTINGS_OF_PARTS = [
    *(("1", count, 0.0) for count in (100, 300, 1000)),
    *(("10", count, 0.5) for count in (10, 30, 100)),
    *(("10, one label", count, 0.9) for count in (10, 30, 100)),
]
PARTS = ("cross-entropy", "discrimination", "miscalibration")


def draw(
    rng: np.random.Generator, shape: str, count: int, together: float, pair: tuple[float, float, float, float]
) -> tuple[Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Log-odds of A and of B, labels, clusters."""
    mean, deviation, sharpness, noise = pair
    cluster = np.repeat(np.arange(count), SHAPES[shape](rng, count))

    def normal() -> Array:
        own = rng.normal(size=cluster.size)
        return np.sqrt(together) * rng.normal(size=count)[cluster] + np.sqrt(1 - together) * own

    a = mean + deviation * normal()
    b = sharpness * (a + noise * normal())
    drawn = rng.random(count)[cluster] if shape.endswith("one label") else rng.random(a.size)
    return a, b, (drawn < expit(a)).astype(np.int64), cluster


def costs(z: Array, y: NDArray[np.int64]) -> Array:
    return -log_expit(np.where(y == 1, z, -z))


def others(a: Array, b: Array, cluster: NDArray[np.int64] | None) -> dict[str, tuple[float, float]]:
    """Mean and half width of the intervals that someone might take instead."""
    n, d = a.size, b - a
    found = {}
    for name, groups in (("t, clusters − 1", cluster), ("t, rows", None)):
        pull = (d - d.mean()) / n
        pull = pull if groups is None else np.bincount(groups, pull)
        g = pull.size
        error = np.sqrt(g / (g - 1) * np.sum(pull**2))
        found[name] = float(d.mean()), float(stdtrit(g - 1, 0.975) * error)
    error = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / n)
    found["unpaired"] = float(d.mean()), float(1.96 * error)
    return found


def coverage_of_differences(repetitions: int) -> None:
    print(f"differences, {repetitions} repetitions: % of intervals that held the truth")
    print(f"{'pair':30}{'rows each':>15}{'clusters':>9}{'crossent':>10}{'t, cl.−1':>10}{'t, rows':>9}{'unpaired':>10}")
    rng = np.random.default_rng(0)
    for name, pair in (PAIRS | RARE).items():
        for shape, count, together in SETTINGS_OF_RARE if name in RARE else SETTINGS:
            many = [draw(rng, shape, 20_000, together, pair) for _ in range(50 if shape == "1" else 10)]
            truth = float(np.concatenate([costs(b, y) - costs(a, y) for a, b, y, _ in many]).mean())
            held = dict.fromkeys(("crossent", "t, clusters − 1", "t, rows", "unpaired"), 0)
            for _ in range(repetitions):
                a, b, y, cluster = draw(rng, shape, count, together, pair)
                ca, cb = costs(a, y), costs(b, y)
                groups = None if shape == "1" else cluster
                one, two = (Rival(n, c, c, None, 0.0, "", y == 1) for n, c in (("A", ca), ("B", cb)))
                ground = Ground(np.arange(y.size), [], None, groups, None, {})
                low, high = parts(ground, one, two)["cross_entropy"].interval()
                held["crossent"] += low is not None and high is not None and low <= truth <= high
                for road, (mean, half) in others(ca, cb, groups).items():
                    held[road] += abs(mean - truth) <= half
            said = "".join(f"{100 * count_held / repetitions:>10.1f}" for count_held in held.values())
            print(f"{name:30}{shape:>15}{count:>9}{said}", flush=True)


def predictions(z: Array, y: NDArray[np.int64], cluster: NDArray[np.int64] | None) -> Predictions:
    logs = np.stack([log_expit(-z), log_expit(z)], axis=1)
    ids = np.arange(y.size)
    return Predictions(np.exp(logs), y, ["0", "1"], ids, "binary", log_probabilities=logs, groups=cluster)


def coverage_of_parts(repetitions: int) -> None:
    print(f"\nparts, {repetitions} repetitions: % of intervals that held the truth (below · above it)")
    print(f"{'pair':30}{'rows each':>15}{'clusters':>9}" + "".join(f"{part:>22}" for part in PARTS))
    rng = np.random.default_rng(1)

    def measured(
        a: Array, b: Array, y: NDArray[np.int64], cluster: NDArray[np.int64] | None
    ) -> dict[str, tuple[float, float | None, float | None]]:
        ground = Ground(np.arange(y.size), [], None, cluster, None, {})
        one, two = (rival(n, predictions(z, y, cluster), None) for n, z in (("A", a), ("B", b)))
        return {part: (mean.value, *mean.interval()) for part, mean in parts(ground, one, two).items()}

    for name, pair in (PAIRS | ALIKE | RARE).items():
        truths = {
            part: value for part, (value, *_) in measured(*draw(rng, "1", 2_000_000, 0.0, pair)[:3], None).items()
        }
        for shape, count, together in SETTINGS_OF_PARTS:
            below, above = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0)
            for _ in range(repetitions):
                a, b, y, cluster = draw(rng, shape, count, together, pair)
                if name == "the same model":
                    b = a + 1e-3 * rng.normal(size=a.size)
                for part, (_, low, high) in measured(a, b, y, None if shape == "1" else cluster).items():
                    below[part] += high is None or high < truths[part]
                    above[part] += low is None or low > truths[part]
            cells = []
            for part in truths:
                under, over = 100 * below[part] / repetitions, 100 * above[part] / repetitions
                cells.append(f"{f'{100 - under - over:.1f} ({under:.1f} · {over:.1f})':>22}")
            print(f"{name:30}{shape:>15}{count:>9}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    told = [int(word) for word in sys.argv[1:3]]
    coverage_of_differences(told[0] if told else 2000)
    coverage_of_parts(told[1] if len(told) > 1 else 300)
