"""How often do the 95 % intervals hold the truth? Simulated models, counted coverage, plain t beside Hall's.

    python benchmarks/interval_coverage.py [repetitions]

Each model draws its log-odds, then labels from the true probabilities, and claims the log-odds times a
sharpness: 1 is calibrated, above it too sure of itself. The true cross-entropy is an integral over the
log-odds, taken on a fine grid of their quantiles, with no sampling. Misses are counted on each side: an
interval that says 95 % should have 2.5 % each; an interval that could not be given counts as one that lies
below.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.special import expit, log_expit, ndtri

from crossent.measure import interval
from crossent.measure.likelihood import label_entropy, likelihood
from crossent.measure.predictions import Predictions

MODELS = {  # name: (mean and standard deviation of the true log-odds, sharpness of the claimed ones)
    "calibrated, uncertain": (0.0, 1.0, 1.0),
    "calibrated, confident": (0.0, 4.0, 1.0),
    "calibrated, rare class": (-4.0, 1.5, 1.0),
    "over-confident, twice": (0.0, 2.0, 2.0),
    "over-confident, four times": (0.0, 3.0, 4.0),
}
SIZES = (30, 100, 300, 1000)


def truth(mean: float, deviation: float, sharpness: float) -> tuple[float, float]:
    """The expected cost of a row and the entropy of the label."""
    grid = mean + deviation * ndtri((np.arange(2_000_000) + 0.5) / 2_000_000)
    p = expit(grid)
    loss = float(np.mean(-p * log_expit(sharpness * grid) - (1 - p) * log_expit(-sharpness * grid)))
    share = float(np.mean(p))
    return loss, float(-share * np.log(share) - (1 - share) * np.log1p(-share))


def side(ends: tuple[float, float] | None, value: float) -> int:
    """−1: the interval lies below the truth; 1: above it; 0: it holds it. None lies below."""
    if ends is None or ends[1] < value:
        return -1
    return 1 if ends[0] > value else 0


def main(repetitions: int = 2000) -> None:
    print(f"{repetitions} repetitions; coverage in % (below | above: % of intervals that lie below, above the truth)")
    print(f"{'model':28}{'rows':>6}  {'plain t':>20}  {'Hall':>20}  {'entropy':>8}  {'gained':>8}  {'skill':>8}")
    rng = np.random.default_rng(0)
    for name, (mean, deviation, sharpness) in MODELS.items():
        loss, entropy = truth(mean, deviation, sharpness)
        for n in SIZES:
            sides: dict[str, list[int]] = {key: [] for key in ("t", "hall", "entropy", "gained", "skill")}
            for _ in range(repetitions):
                z = rng.normal(mean, deviation, n)
                y = (rng.random(n) < expit(z)).astype(np.int64)
                q = expit(sharpness * z)
                rows = Predictions(np.stack([1 - q, q], 1), y, ["0", "1"], np.arange(n), "binary")
                cost = -log_expit(np.where(y == 1, 1, -1) * sharpness * z)
                found = likelihood(rows)
                sides["t"].append(side(interval.of_mean(cost, skewness_corrected=False), loss))
                sides["hall"].append(side(interval.of_mean(cost), loss))
                for key, number, value in (
                    ("entropy", label_entropy(rows), entropy),
                    ("gained", found["information_gained"].to("nats"), entropy - loss),
                    ("skill", found.get("skill"), 1 - loss / entropy),
                ):
                    ends = None if number is None or number.low is None else (number.low, number.high)
                    sides[key].append(side(ends, value))
            share = {key: [100 * np.mean(np.array(found) == s) for s in (-1, 0, 1)] for key, found in sides.items()}
            two = [f"{share[key][1]:.1f} ({share[key][0]:.1f} | {share[key][2]:.1f})" for key in ("t", "hall")]
            one = [f"{share[key][1]:.1f}" for key in ("entropy", "gained", "skill")]
            print(
                f"{name:28}{n:6}  {two[0]:>20}  {two[1]:>20}  {one[0]:>8}  {one[1]:>8}  {one[2]:>8}",
                flush=True,
            )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
