"""How often do the 95 % intervals hold the truth? Simulated models, counted coverage.

    python benchmarks/interval_coverage.py means [repetitions]      plain t beside Hall's, gained and skill
    python benchmarks/interval_coverage.py parts [repetitions]      the decomposition of two classes
    python benchmarks/interval_coverage.py grouped [repetitions]    both, rows in 10 to 300 groups of ten
    python benchmarks/interval_coverage.py classes [repetitions]    the decomposition of three classes
    python benchmarks/interval_coverage.py classes_grouped [repetitions]    the figures of three classes, one rare
    python benchmarks/interval_coverage.py by_class [repetitions]   that of each class against the rest, and its figures
    python benchmarks/interval_coverage.py slices [repetitions]     the decomposition of a slice of two classes

Each model draws its log-odds, then labels from the true probabilities, and claims the log-odds times a sharpness: 1 is
calibrated, above it too sure of itself; "wavy" claims log-odds that no beta curve mends. The truth is an integral over
the log-odds, taken on a fine grid of their quantiles, with no sampling. Misses are counted on each side: an interval
that says 95 % should have 2.5 % each. An interval that could not be given counts as one that lies below; but skill,
which is 0/0 where one class came alone, is counted where there is one, and the share of samples with one is said. Of
p % counted in r repetitions the simulation's own standard error is √(p (100 − p) / r): 0.3 at 5000, 1.4 at 250.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_expit, ndtri, softmax

from crossent.measure.intervals import interval
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.tally.tally import Tally
from crossent.measure.values import means
from crossent.measure.values.by_class import per_class
from crossent.measure.values.decomposition import joint_parts
from crossent.measure.values.slices import slices

MODELS = {  # name: (mean and standard deviation of the true log-odds, sharpness of the claimed ones)
    "calibrated, uncertain": (0.0, 1.0, 1.0),
    "calibrated, confident": (0.0, 4.0, 1.0),
    "calibrated, rare class": (-4.0, 1.5, 1.0),
    "over-confident, a little": (0.0, 2.0, 1.3),
    "over-confident, twice": (0.0, 2.0, 2.0),
    "over-confident, four times": (0.0, 3.0, 4.0),
    "wavy": (0.0, 2.0, np.nan),
    "rare class, claimed × 2": (-4.0, 1.5, 2.0),
    "calibrated, rarer class": (-5.0, 1.5, 1.0),
}
SIZES = (30, 100, 300, 1000)
GROUP = 10
GROUPS = (10, 30, 100, 300)


def claimed(z: np.ndarray, sharpness: float) -> np.ndarray:
    """The log-odds that the model claims where the true ones are ``z``."""
    return z + np.sin(2 * z) / 2.5 if np.isnan(sharpness) else sharpness * z


def truth(mean: float, deviation: float, sharpness: float) -> tuple[float, float, float]:
    """The expected cost of a row, the entropy of the label, and the expected cost under the true probabilities."""
    grid = mean + deviation * ndtri((np.arange(2_000_000) + 0.5) / 2_000_000)
    p, z = expit(grid), claimed(grid, sharpness)
    loss = float(np.mean(-p * log_expit(z) - (1 - p) * log_expit(-z)))
    best = float(np.mean(-p * log_expit(grid) - (1 - p) * log_expit(-grid)))
    share = float(np.mean(p))
    return loss, float(-share * np.log(share) - (1 - share) * np.log1p(-share)), best


def side(ends: tuple[float | None, float | None] | None, value: float) -> int:
    """−1: the interval lies below the truth; 1: above it; 0: it holds it. None lies below."""
    if ends is None or ends[1] is None or ends[1] < value:
        return -1
    return 1 if ends[0] > value else 0


def ends_of(number) -> tuple[float | None, float | None] | None:
    return None if number is None else (number.low, number.high)


def shown(found: list[int]) -> str:
    below, held, above = (100 * np.mean(np.array(found) == s) for s in (-1, 0, 1))
    return f"{held:.1f} ({below:.1f} · {above:.1f})"


def of_means(repetitions: int) -> None:
    print("| model | rows | plain t | Hall | label entropy | gained | skill |\n|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, (mean, deviation, sharpness) in MODELS.items():
        loss, entropy, _ = truth(mean, deviation, sharpness)
        for n in SIZES:
            sides: dict[str, list[int]] = {key: [] for key in ("t", "hall", "entropy", "gained", "skill")}
            for _ in range(repetitions):
                z = rng.normal(mean, deviation, n)
                tally = _binary(rng, z, claimed(z, sharpness))
                of = tally.evidence()
                found = means.likelihood(of, of)
                spread = of.spread(1.0, np.zeros(2), of.cross_entropy)
                plain = spread and interval.of_sums(of.cross_entropy, spread.second, 0.0, n, n - 1)
                sides["t"].append(side(plain, loss))
                sides["hall"].append(side(ends_of(found["cross_entropy"]), loss))
                sides["entropy"].append(side(ends_of(found["label_entropy"].to("nats")), entropy))
                sides["gained"].append(side(ends_of(found["information_gained"].to("nats")), entropy - loss))
                if "skill" in found:
                    sides["skill"].append(side(ends_of(found["skill"]), 1 - loss / entropy))
            there = 100 * len(sides["skill"]) / repetitions
            said = " | ".join(shown(found) for found in sides.values())
            print(f"| {name} | {n} | {said}{f', of {there:.0f} %' if there < 99.5 else ''} |", flush=True)


def _binary(rng: np.random.Generator, true: np.ndarray, stated: np.ndarray, groups=None, cut=None) -> Tally:
    y = (rng.random(true.size) < expit(true)).astype(np.int64)
    p = np.stack([expit(-stated), expit(stated)], axis=1)
    rows = Predictions(p, y, ["0", "1"], np.arange(true.size), "binary", groups=groups, slices=cut or {})
    return Tally.like(rows).add(rows)


def of_parts(repetitions: int) -> None:
    """Two classes, rows by themselves."""
    print("| model | rows | uncertainty | discrimination | miscalibration | mean − truth | looks miscalibrated, % |")
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for name, (mean, deviation, sharpness) in MODELS.items():
        loss, entropy, best = truth(mean, deviation, sharpness)
        wanted = {"uncertainty": entropy, "discrimination": entropy - best, "miscalibration": loss - best}
        for n in (100, 1000):
            sides: dict[str, list[int]] = {key: [] for key in wanted}
            values, alarms = [], 0
            for _ in range(repetitions):
                z = rng.normal(mean, deviation, n)
                parts = _binary(rng, z, claimed(z, sharpness)).parts()[0]
                for key, value in wanted.items():
                    sides[key].append(side(ends_of(parts[key]), value))
                values.append(parts["miscalibration"].value)
                alarms += (parts["miscalibration"].low or 0.0) > 0
            off = np.mean(values) - wanted["miscalibration"]
            counted = " | ".join(shown(found) for found in sides.values())
            print(f"| {name} | {n} | {counted} | {off:+.4f} | {100 * alarms / repetitions:.1f} |", flush=True)


def of_groups(repetitions: int) -> None:
    """Two classes in groups of ten rows, whose log-odds are the same and most of whose draws are too."""
    wanted = ("cross_entropy", "uncertainty", "information_gained", "skill", "discrimination", "miscalibration")
    print("| model | groups | " + " | ".join(wanted) + " |")
    print("|---|---|" + "---|" * len(wanted))
    for number, (name, (mean, deviation, sharpness)) in enumerate(MODELS.items()):
        loss, entropy, best = truth(mean, deviation, sharpness)
        true = dict(
            zip(wanted, (loss, entropy, entropy - loss, 1 - loss / entropy, entropy - best, loss - best), strict=True)
        )
        for groups in GROUPS:
            rng = np.random.default_rng([number, groups])
            sides: dict[str, list[int]] = {key: [] for key in wanted}
            for _ in range(repetitions):
                z = np.repeat(rng.normal(mean, deviation, groups), GROUP)
                tally = _grouped(rng, z, claimed(z, sharpness), GROUP)
                of = tally.evidence()
                found = means.likelihood(of, of) | tally.parts()[0]
                found["information_gained"] = found["information_gained"].to("nats")
                for key, value in true.items():
                    if key in found:
                        sides[key].append(side(ends_of(found[key]), value))
            print(f"| {name} | {groups} | {' | '.join(map(shown, sides.values()))} |", flush=True)


def of_slices(repetitions: int) -> None:
    """A slice of two classes, by its own coarse cells; by itself and in groups of ten rows as in ``of_parts``."""
    print("| model | rows | groups of | discrimination | miscalibration | mean − truth |")
    print("|---|---|---|---|---|---|")
    for name in ("calibrated, uncertain", "over-confident, twice", "wavy"):
        mean, deviation, sharpness = MODELS[name]
        loss, entropy, best = truth(mean, deviation, sharpness)
        wanted = {"discrimination": entropy - best, "miscalibration": loss - best}
        for n, group in ((1000, 1), (1000, 10), (3000, 10)):
            rng = np.random.default_rng(0)
            sides: dict[str, list[int]] = {key: [] for key in wanted}
            values = []
            for _ in range(repetitions):
                z = np.repeat(rng.normal(mean, deviation, n // group), group)
                draw = _grouped if group > 1 else lambda rng, true, stated, _, cut: _binary(rng, true, stated, cut=cut)
                tally = draw(rng, z, claimed(z, sharpness), group, {"all": np.full(n, "rows", object)})
                table = slices(tally.slices, None, "binary", group > 1)
                for key, value in wanted.items():
                    sides[key].append(side((table[f"{key}_low"][0], table[f"{key}_high"][0]), value))
                values.append(table["miscalibration"][0])
            off = np.mean(values) - wanted["miscalibration"]
            print(f"| {name} | {n} | {group} | {' | '.join(map(shown, sides.values()))} | {off:+.4f} |", flush=True)


def _grouped(rng: np.random.Generator, true: np.ndarray, stated: np.ndarray, group: int, cut=None) -> Tally:
    common = np.repeat(rng.random(true.size // group), group)
    draw = np.where(rng.random(true.size) < 0.7, common, rng.random(true.size))
    y = (draw < expit(true)).astype(np.int64)
    p = np.stack([expit(-stated), expit(stated)], axis=1)
    of = np.arange(true.size) // group
    rows = Predictions(p, y, ["0", "1"], np.arange(true.size), "binary", groups=of, slices=cut or {})
    return Tally.like(rows).add(rows)


def of_classes(repetitions: int) -> None:
    """Three classes with normal logits of deviation 1.5; the truth by two million drawn rows."""
    print(
        "| sharpness | rows | uncertainty | discrimination | miscalibration | mean − truth | looks miscalibrated, % |"
    )
    print("|---|---|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, (2_000_000, 3))
    p = softmax(z, axis=1)
    for sharpness in (1.0, 1.5):
        q = softmax(sharpness * z, axis=1)
        best, loss = (float(np.mean(-np.sum(p * np.log(x), axis=1))) for x in (p, q))
        wanted = {"uncertainty": np.log(3), "discrimination": np.log(3) - best, "miscalibration": loss - best}
        for n in (300, 1000):
            sides: dict[str, list[int]] = {key: [] for key in wanted}
            values, alarms = [], 0
            for _ in range(repetitions):
                here = rng.integers(len(z), size=n)
                y = (p[here].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
                rows = Predictions(q[here], y, ["a", "b", "c"], np.arange(n), "multi-class")
                parts = joint_parts(Tally.like(rows).add(rows).evidence())[0]
                for key, value in wanted.items():
                    sides[key].append(side(ends_of(parts[key]), value))
                values.append(parts["miscalibration"].value)
                alarms += (parts["miscalibration"].low or 0.0) > 0
            off = np.mean(values) - wanted["miscalibration"]
            counted = " | ".join(shown(found) for found in sides.values())
            print(f"| {sharpness} | {n} | {counted} | {off:+.4f} | {100 * alarms / repetitions:.1f} |", flush=True)


def of_classes_in_groups(repetitions: int) -> None:
    """Three classes of which one is rare, in groups of ten rows as in ``of_groups``; the truth by many drawn rows."""
    wanted = ("cross_entropy", "label_entropy", "information_gained", "skill")
    print("| sharpness | groups | " + " | ".join(wanted) + " |\n|---|---|" + "---|" * len(wanted))

    def drawn(rng: np.random.Generator, groups: int) -> np.ndarray:
        return softmax(rng.normal(0, 1.5, (groups, 3)) - np.array([0.0, 0.0, 4.0]), axis=1)

    def sharper(p: np.ndarray, sharpness: float) -> np.ndarray:
        return p**sharpness / np.sum(p**sharpness, axis=1, keepdims=True)

    many = drawn(np.random.default_rng(1), 1_000_000)
    entropy = -float(np.sum(many.mean(axis=0) * np.log(many.mean(axis=0))))
    for sharpness in (1.0, 2.0):
        loss = -float(np.mean(np.sum(many * np.log(sharper(many, sharpness)), axis=1)))
        true = dict(zip(wanted, (loss, entropy, entropy - loss, 1 - loss / entropy), strict=True))
        for groups in (10, 30, 100):
            rng = np.random.default_rng(groups)
            sides: dict[str, list[int]] = {key: [] for key in wanted}
            for _ in range(repetitions):
                p = np.repeat(drawn(rng, groups), GROUP, axis=0)
                common = np.repeat(rng.random(groups), GROUP)
                draw = np.where(rng.random(common.size) < 0.7, common, rng.random(common.size))
                y = (p.cumsum(axis=1) < draw[:, None]).sum(axis=1).clip(0, 2)
                of = np.arange(common.size) // GROUP
                rows = Predictions(sharper(p, sharpness), y, list("abc"), np.arange(of.size), "multi-class", groups=of)
                evidence = Tally.like(rows).add(rows).evidence()
                found = means.likelihood(evidence, evidence)
                for key in wanted:
                    number = found[key].to("nats") if found[key].unit == "bits" else found[key]
                    sides[key].append(side(ends_of(number), true[key]))
            print(f"| {sharpness} | {groups} | {' | '.join(map(shown, sides.values()))} |", flush=True)


def of_each_class(repetitions: int) -> None:
    """Three classes of which one is rare; a class at a time, by itself and in groups of ten rows, all and a sample."""
    names = ("cross_entropy", "brier", "recall", "discrimination", "miscalibration")
    print("| sharpness | rows | groups of | class | share | " + " | ".join(names) + " |")
    print("|---|---|---|---|---|" + "---|" * len(names))
    rng = np.random.default_rng(0)
    z = rng.normal(0, 1.5, (1_000_000, 3)) - np.array([0.0, 0.0, 2.0])
    p = softmax(z, axis=1)
    for sharpness in (1.0, 1.5):
        q = softmax(sharpness * z, axis=1)
        truth = [_truth_of(p, q, c) for c in range(3)]
        for n, group, capacity in ((1000, 1, 50_000), (1000, 10, 50_000), (3000, 10, 50_000), (3000, 10, 1000)):
            sides: dict[tuple[int, str], list[int]] = {(c, name): [] for c in range(3) for name in names}
            for _ in range(repetitions):
                here = np.repeat(rng.integers(len(z), size=n // group), group)
                common = np.repeat(rng.random(n // group), group)
                draw = np.where(rng.random(n) < (0.7 if group > 1 else 0.0), common, rng.random(n))
                y = (p[here].cumsum(axis=1) < draw[:, None]).sum(axis=1).clip(0, 2)
                of = np.arange(n) // group if group > 1 else None
                rows = Predictions(q[here], y, ["a", "b", "c"], np.arange(n), "multi-class", groups=of)
                tally = Tally.like(rows, capacity=capacity).add(rows)
                table = per_class(tally.evidence(), tally.classes, tally.by_class, None, tally.class_folds)
                for c, name in sides:
                    ends = ("low", "high") if name == "cross_entropy" else (f"{name}_low", f"{name}_high")
                    sides[c, name].append(side((table[ends[0]][c], table[ends[1]][c]), truth[c][name]))
            for c, share in enumerate(p.mean(axis=0)):
                said = " | ".join(shown(sides[c, name]) for name in names)
                rows_said = f"{n}" if capacity > n else f"{n}, sample of {capacity}"
                print(f"| {sharpness} | {rows_said} | {group} | {'abc'[c]} | {share:.2f} | {said} |", flush=True)


def _truth_of(p: np.ndarray, q: np.ndarray, c: int) -> dict[str, float]:
    """The figures of one class over very many rows; one against the rest, the calibrated model is p's mean where q is.

    Of three classes the probability of one is not all that q says, so that its calibrated self is E(p_c | q_c): the
    curve of p_c on q_c, by narrow cells of equally many rows.
    """
    share = float(p[:, c].mean())
    order = np.argsort(q[:, c])
    best = p[order, c].reshape(20_000, -1).mean(axis=1)
    own = -share * np.log(share) - (1 - share) * np.log1p(-share)
    least = float(np.mean(-best * np.log(best) - (1 - best) * np.log1p(-best)))
    loss = float(np.mean(-p[:, c] * np.log(q[:, c]) - (1 - p[:, c]) * np.log1p(-q[:, c])))
    squared = np.sum(q * q, axis=1) + 1 - 2 * q[:, c]
    return {
        "cross_entropy": float(np.mean(-p[:, c] * np.log(q[:, c])) / share),
        "brier": float(np.mean(p[:, c] * squared) / share),
        "recall": float(np.mean(p[:, c] * (q.argmax(axis=1) == c)) / share),
        "discrimination": own - least,
        "miscalibration": loss - least,
    }


def main(what: str = "means", repetitions: str = "1000") -> None:
    kinds: dict[str, Callable[[int], None]] = {
        "means": of_means,
        "parts": of_parts,
        "grouped": of_groups,
        "classes": of_classes,
        "classes_grouped": of_classes_in_groups,
        "by_class": of_each_class,
        "slices": of_slices,
    }
    print(f"{repetitions} repetitions; % of intervals that hold the truth (below it · above it)\n")
    kinds[what](int(repetitions))


if __name__ == "__main__":
    main(*sys.argv[1:3])
