"""The parts of a cross-entropy: cells against rows, bias and alarms counted, groups, weights, shares."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_expit, logit

from crossent.measure import evaluate
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.cells import Cells, Grid
from crossent.measure.sums.distinct import Distinct, code
from crossent.measure.tally.tally import Tally
from crossent.measure.values.decomposition import isotonic_parts
from crossent.measure.values.isotonic import cost, isotonic, optimism, smooth, stated

PARTS = ("uncertainty", "discrimination", "miscalibration")


def sample(n, seed, sharpness=1.0, mean=0.0, deviation=2.0):
    """Log-odds claimed and labels drawn."""
    rng = np.random.default_rng(seed)
    z = rng.normal(mean, deviation, n)
    return sharpness * z, (rng.random(n) < expit(z)).astype(np.int64)


def rows_of(z, y, **also):
    return Predictions(np.stack([expit(-z), expit(z)], 1), y, ["0", "1"], np.arange(y.shape[0]), "binary", **also)


def parts_of(rows):
    return Tally.like(rows).add(rows).parts()[0]


def row_by_row(p, y):
    """Every row a cell of its own."""
    order = np.argsort(p, kind="stable")
    return Cells.of(np.arange(p.size), p.size, p[order], y[order] > 0, None)


def given_back(cells, draws, seed=0):
    """What the isotonic curve of the cells costs, and with what it flatters itself given back."""
    own = cost(cells.weight, cells.label, isotonic(cells)) / cells.weight.sum()
    return own, own + optimism(cells, smooth(cells), 1.0, draws, seed).bias


@pytest.mark.parametrize(("sharpness", "deviation"), [(1, 2), (0.02, 1)])
def test_cells_are_as_good_as_rows(sharpness, deviation):
    """A million rows, whose log-odds span 20 or 0.1: within 1e-5 nats of the isotonic curve of the rows, by row.

    Of 8 draws the mean claim is known to some 3e-6.
    """
    z, y = sample(1_000_000, 0, sharpness, deviation=deviation)
    p = expit(z)
    raw, exact = given_back(row_by_row(p, y), draws=8)
    cells = Distinct.none().of(p, expit(-z), y == 1, None).cells
    assert 2000 < cells.weight.size <= 8192
    rough, found = given_back(cells, draws=40)
    assert found == pytest.approx(exact, abs=1e-5)
    assert abs(rough - raw) > 1.5e-5  # it can fail: what is not given back differs
    if sharpness == 0.02:  # and so do cells that are as wide wherever predictions are
        grid = Grid(128, 64)
        fixed = Cells.of(grid.place(p, 1 - p), len(grid), p, y == 1, None).occupied()
        assert given_back(fixed, draws=20)[1] > exact + 1e-4


def test_few_different_predictions_are_kept_as_they_are():
    z, y = sample(5000, 2, 1.4)
    p = expit(z)
    exact = Distinct.none().of(p, expit(-z), y == 1, None)
    assert exact.drop == 0
    mine, theirs = exact.cells, row_by_row(p, y)
    assert cost(mine.weight, mine.label, isotonic(mine)) == pytest.approx(
        cost(theirs.weight, theirs.label, isotonic(theirs))
    )
    tight = Distinct.none(512).of(p, expit(-z), y == 1, None)
    assert tight.drop > 0
    assert 256 < tight.cells.weight.size <= 512
    assert (
        cost(tight.cells.weight, tight.cells.label, isotonic(tight.cells))
        > cost(mine.weight, mine.label, isotonic(mine)) + 1
    )


def test_codes_rise_with_predictions_and_tell_small_ones_from_either_end():
    p = np.array([0.0, 1e-300, 2.0**-66, 1e-9, 0.1, 0.5 - 1e-12, 0.5, 0.5 + 1e-12, 0.9, 1 - 1e-9, 1.0])
    for drop in (0, 30, 45, 52):
        codes = code(p, 1 - p, drop)
        assert np.all(np.diff(codes) >= 0)
        assert codes[0] == codes[1] == codes[2]
    small = np.exp(-np.random.default_rng(0).uniform(0.7, 40, 100_000))
    low, high = code(small, 1 - small, 45), code(1 - small, small, 45)
    middle = code(np.array([0.5]), np.array([0.5]), 45)
    assert np.array_equal(high - middle, middle + 1 - low)  # symmetric, and exact near 1
    for cell in np.unique(low)[::300]:
        mine = small[low == cell]
        assert mine.max() / mine.min() < 1 + 1 / 128


def test_a_calibrated_model_does_not_look_miscalibrated():
    """120 samples of 1000 rows: an isotonic curve claims 0.016 nats that are not there; what is reported is 0."""
    naive, values, alarms = [], [], 0
    for seed in range(120):
        z, y = sample(1000, seed, deviation=1.0)
        rows = rows_of(z, y)
        tally = Tally.like(rows).add(rows)
        part = tally.parts()[0]["miscalibration"]
        values.append(part.value)
        alarms += part.low > 0
        naive.append(tally.evidence().cross_entropy - given_back(row_by_row(expit(z), y), draws=2)[0])
    assert np.mean(naive) == pytest.approx(0.016, abs=0.001)
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / np.sqrt(120) + 1e-4)
    assert abs(np.mean(values)) < 0.0012
    assert alarms <= 8  # 3 expected


def test_intervals_hold_the_truth_of_an_over_confident_model():
    grid = 2 * np.random.default_rng(9).normal(size=2_000_000)
    p = expit(grid)
    best = np.mean(-p * log_expit(grid) - (1 - p) * log_expit(-grid))
    loss = np.mean(-p * log_expit(2 * grid) - (1 - p) * log_expit(-2 * grid))
    truth = {"discrimination": np.log(2) - best, "miscalibration": loss - best}
    held = dict.fromkeys([*truth, "shifted"], 0)
    for seed in range(100):
        parts = parts_of(rows_of(*sample(1000, seed, 2.0)))
        for name, value in truth.items():
            held[name] += parts[name].low <= value <= parts[name].high
        held["shifted"] += parts["miscalibration"].low <= 1.5 * truth["miscalibration"] <= parts["miscalibration"].high
    assert held["discrimination"] >= 88  # 95 expected, 3.3 standard errors
    assert held["miscalibration"] >= 88
    assert held["shifted"] < 70  # it can fail


def test_the_smooth_curve_finds_log_odds_that_are_too_large():
    z, y = sample(20_000, 1, 4.0, deviation=3.0)
    p = expit(z)
    cells = Distinct.none().of(p, expit(-z), y == 1, None).cells
    q, claimed = smooth(cells), logit(np.clip(stated(cells), 1e-12, 1 - 1e-12))
    assert np.max(np.abs(logit(q) - claimed / 4)[np.abs(claimed) < 12]) < 0.25
    assert optimism(cells, q, 1.0, draws=20).bias == pytest.approx(0.0037, rel=0.4)


def test_rows_of_a_group_that_copy_one_another_count_once():
    z, y = sample(800, 3, 1.6)
    single = parts_of(rows_of(z, y))
    which = np.repeat(np.arange(800), 10)
    tenfold = rows_of(z[which], y[which], groups=which)
    grouped, blind = parts_of(tenfold), parts_of(replace(tenfold, groups=None))
    for name in ("discrimination", "miscalibration"):
        width = {kind: parts[name].high - parts[name].low for kind, parts in
                 (("single", single), ("grouped", grouped), ("blind", blind))}  # fmt: skip
        assert width["grouped"] == pytest.approx(width["single"], rel=0.35)  # 64 folds tell a width to 9 %
        assert width["blind"] < 0.5 * width["single"]
    assert grouped["miscalibration"].value == pytest.approx(single["miscalibration"].value, abs=0.012)
    assert blind["miscalibration"].value > single["miscalibration"].value + 0.01  # 0.02 nats that are not there


def test_a_weight_is_as_many_rows():
    z, y = sample(500, 4, 1.5)
    w = np.random.default_rng(0).integers(1, 5, size=500)
    which = np.repeat(np.arange(500), w)
    weighted, copied = (
        evaluate(rows) for rows in (rows_of(z, y, weights=w.astype(float)), rows_of(z[which], y[which]))
    )
    same = ("cross_entropy", "label_entropy", "information_gained", "skill", "accuracy", "brier", "uncertainty", "ece")
    for name in (*same, "smooth_ece"):
        assert weighted[name].value == pytest.approx(copied[name].value, rel=1e-12), name
    assert weighted["cross_entropy"].high - weighted["cross_entropy"].low > (
        copied["cross_entropy"].high - copied["cross_entropy"].low
    )
    unit = evaluate(rows_of(z, y, weights=np.full(500, 3.7)))
    plain = evaluate(rows_of(z, y))
    for name, number in plain.items():
        for end in ("value", "low", "high"):
            mine, theirs = getattr(number, end), getattr(unit[name], end)
            assert mine == theirs or mine == pytest.approx(theirs, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("classes", [2, 4])
def test_a_one_hot_row_is_a_class(classes):
    rng = np.random.default_rng(5)
    p = rng.dirichlet([0.5] * classes, size=400)
    y = (p.cumsum(axis=1) < rng.random((400, 1))).sum(axis=1)
    names = [str(c) for c in range(classes)]
    task = "binary" if classes == 2 else "multi-class"
    hard = evaluate(Predictions(p, y, names, np.arange(400), task))
    soft = evaluate(Predictions(p, np.eye(classes)[y], names, np.arange(400), task))
    for name, number in hard.items():
        assert soft[name].value == pytest.approx(number.value, abs=1e-12), name
        if number.low is not None and name != "perplexity":
            # The skewness of what hangs on two moments is not kept for shares of more than two classes.
            room = 1e-9 if classes == 2 else 0.03
            assert soft[name].low == pytest.approx(number.low, abs=room * (number.high - number.low)), name
    assert soft["truth_entropy"].value == 0
    assert soft["kl_divergence"].value == pytest.approx(hard["cross_entropy"].value)


def test_soft_labels_cost_their_own_entropy_and_the_divergence():
    rng = np.random.default_rng(6)
    p, y = rng.dirichlet([2.0] * 5, size=300), rng.dirichlet([0.5] * 5, size=300)
    record = evaluate(Predictions(p, y, list("abcde"), np.arange(300), "multi-class"))
    own = np.mean([-sum(v * np.log(v) for v in row if v > 0) for row in y])
    apart = np.mean(
        [sum(v * np.log(v / q) for v, q in zip(row, mine, strict=True)) for row, mine in zip(y, p, strict=True)]
    )
    assert record["truth_entropy"].value == pytest.approx(own, rel=1e-12)
    assert record["kl_divergence"].value == pytest.approx(apart, rel=1e-12)
    assert record["cross_entropy"].value == pytest.approx(own + apart, rel=1e-12)
    assert record["kl_divergence"].low < apart < record["kl_divergence"].high
    whole = record["uncertainty"].value - record["discrimination"].value + record["miscalibration"].value
    assert whole == pytest.approx(record["cross_entropy"].value, abs=1e-12)


def test_parts_of_impossible_rows_are_those_of_the_floor():
    z, y = sample(500, 7)
    p = expit(z)
    p[:3], y[:3] = 0.0, 1
    rows = Predictions(np.stack([1 - p, p], 1), y, ["0", "1"], np.arange(500), "binary")
    tally = Tally.like(rows, floor=1e-4).add(rows)
    parts, said = isotonic_parts(tally.evidence(floored=True), tally.parts()[2])
    total = parts["uncertainty"].value - parts["discrimination"].value + parts["miscalibration"].value
    floored = np.maximum(np.where(y == 1, p, 1 - p), 1e-4)
    assert total == pytest.approx(np.mean(-np.log(floored)), abs=1e-12)
    assert "isotonic" in said
    assert all(np.isfinite([parts[name].low, parts[name].high]).all() for name in PARTS)
