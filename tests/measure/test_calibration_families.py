"""Each family against another road to the same answer: brute force, probmetrics, stationary points, repeated rows."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, softmax

from crossent.measure.calibration import Calibrator
from crossent.measure.calibration.families import FAMILIES, fit_beta, fit_quadratic, mixing_weights
from crossent.measure.calibration.rows import Rows, rows_of
from crossent.measure.calibration.venn_abers import fit_curve

BY_NAME = {family.name: family for family in FAMILIES}
PLAIN = ("temperature", "temperature and bias", "ensemble temperature")


def sample(n, classes, seed=0, sharpened=2.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (n, classes))
    p = softmax(z, axis=1)
    return sharpened * z, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def brute(scores, labels, score, label):
    """Isotonic regression with one row more, by scipy's own algorithm, read off at that row."""
    all_scores, all_labels = np.append(scores, score), np.append(labels, label).astype(float)
    block, inverse = np.unique(all_scores, return_inverse=True)
    weights = np.bincount(inverse)
    fitted = isotonic_regression(np.bincount(inverse, all_labels) / weights, weights=weights).x
    return fitted[inverse[-1]], block.size


@pytest.mark.parametrize("seed", range(30))
def test_venn_abers_is_isotonic_regression_with_one_row_more(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    scores = np.round(rng.normal(size=n), int(rng.integers(0, 3)))
    labels = rng.random(n) < expit(scores)
    curve = fit_curve(scores, labels)
    asked = np.concatenate([scores, scores + 1e-6, scores - 1e-6, [-9.0, 9.0]])
    high = np.array(curve.high)[np.searchsorted(curve.edges_high, asked, side="left")]
    low = np.array(curve.low)[np.searchsorted(curve.edges_low, asked, side="right")]
    assert high == pytest.approx([brute(scores, labels, s, 1)[0] for s in asked], abs=1e-14)
    assert low == pytest.approx([brute(scores, labels, s, 0)[0] for s in asked], abs=1e-14)
    assert (low < high).all()  # the comparison can fail: one staircase is not the other


def test_mixing_weights_are_the_most_likely_ones_within_their_bound():
    rng = np.random.default_rng(0)
    likelihood, counts = rng.uniform(size=(3, 200)), rng.uniform(0.5, 2.0, 200)
    found = mixing_weights(likelihood, counts, tolerance=1e-12, most=100_000)
    least = 1 / (counts.sum() + 1)

    def cost(free):
        return -counts @ np.log(np.array([*free, 1 - sum(free)]) @ likelihood)

    other = minimize(cost, [0.3, 0.3], method="SLSQP", bounds=[(0, 1)] * 2, tol=1e-14,
                     constraints={"type": "ineq", "fun": lambda free: 1 - sum(free) - least}).x  # fmt: skip
    assert found[:2] == pytest.approx(other, abs=1e-5)
    assert mixing_weights(np.array([[1.0, 1.0], [0.5, 0.5]]), np.ones(2))[-1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["quadratic", "beta"])
def test_curves_are_the_minimum_of_what_they_say_they_minimise(name):
    rows = rows_of(*sample(300, 2, seed=3))
    softer, step = (fit_quadratic if name == "quadratic" else fit_beta)(rows)
    z = softer(rows.z)
    if name == "quadratic":
        theta, plain = np.array(step.coefficients), np.array([0.0, 1.0, 0.0])
        odds = z[:, 1] - z[:, 0]
        features = np.stack([np.ones(300), odds, odds**2], axis=1)
    else:
        theta, plain = np.array([step.bias[1], step.scale[1], step.scale[0]]), np.array([0.0, 1.0, 1.0])
        features = np.stack([np.ones(300), z[:, 1], -z[:, 0]], axis=1)

    def cost(parameters):
        odds = np.array([float(row @ parameters) for row in features])
        p = expit(odds)
        return -np.sum(np.log(np.where(rows.y == 1, p, 1 - p))) + 0.5 * np.sum((parameters - plain) ** 2)

    best = cost(theta)
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        assert cost(theta + 1e-3 * direction) > best


@pytest.mark.parametrize("name", ["structured vector", "structured matrix"])
def test_structured_scaling_is_that_of_probmetrics(name):
    pytest.importorskip("probmetrics")
    z, y = sample(800, 4, seed=1)
    rows = rows_of(z, y)
    steps = BY_NAME[name].fit(rows)
    from crossent.measure.calibration.families import _probmetrics

    kind = "SVSCalibrator" if name == "structured vector" else "SMSCalibrator"
    theirs = getattr(_probmetrics(), kind)()
    smoothed = np.exp(steps[0](rows.z))
    theirs.fit(smoothed, y)
    new = rows_of(*sample(50, 4, seed=2)).z
    ours = np.exp(Calibrator(name, steps).of_logits(new))
    assert ours == pytest.approx(theirs.predict_proba(np.exp(steps[0](new))), abs=1e-5)  # they work in float32
    assert np.abs(ours - np.exp(steps[0](new))).max() > 1e-2  # the comparison can fail


@pytest.mark.parametrize("name", [*PLAIN, "quadratic", "beta"])
def test_weights_count_as_repeated_rows_and_soft_labels_as_shared_ones(name):
    z, y = sample(120, 2, seed=4)
    times = 1 + np.arange(120) % 3
    weighted = Rows(rows_of(z, y).z, y, times.astype(float))  # not brought to mean 1, so that the ridge weighs the same
    repeated = rows_of(np.repeat(z, times, axis=0), np.repeat(y, times))
    family = BY_NAME[name]
    new = rows_of(*sample(30, 2, seed=5)).z
    a, b = (np.exp(Calibrator(name, family.fit(rows)).of_logits(new)) for rows in (weighted, repeated))
    assert a == pytest.approx(b, abs=1e-5)  # two minima found to that tolerance
    ignored = np.exp(Calibrator(name, family.fit(rows_of(z, y))).of_logits(new))
    assert np.abs(a - ignored).max() > 1e-3

    shares = np.stack([1 - y, y], axis=1) * 0.8 + 0.1
    soft = np.exp(Calibrator(name, family.fit(rows_of(z, shares))).of_logits(new))
    both = Rows(rows_of(np.repeat(z, 2, axis=0), np.tile([0, 1], 120)).z, np.tile([0, 1], 120), shares.ravel())
    split = np.exp(Calibrator(name, family.fit(both)).of_logits(new))
    assert soft == pytest.approx(split, abs=1e-5)
    hard = np.exp(Calibrator(name, family.fit(rows_of(z, np.eye(2)[y]))).of_logits(new))
    assert hard == pytest.approx(ignored, abs=1e-9)
    assert np.abs(soft - hard).max() > 0.02


@pytest.mark.parametrize("classes", [2, 3])
def test_separable_labels_never_make_anything_certain(classes):
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, 300)
    z = rng.normal(0, 0.1, (300, classes)) + 2.0 * np.eye(classes)[y]
    rows = rows_of(z, y)
    for family in FAMILIES:
        if not family.suits(classes) or family.refuses(rows):
            continue
        found = Calibrator(family.name, family.fit(rows))
        p = np.exp(found.of_logits(np.vstack([z, 40 * z])))
        # The least that n rows allow: the mixture leaves ε/k, and what comes after it keeps the order of that.
        assert p.min() > 1e-6, family.name
        assert np.isfinite(found.of_logits(z)).all()
