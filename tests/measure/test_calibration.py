"""Calibration: known temperatures and biases come back, gradients vanish, separable labels stay finite."""

import json
import math

import mpmath
import numpy as np
import pytest
from scipy.special import expit, softmax

from crossent.measure import cross_fit, recalibrate
from crossent.measure.calibration import KINDS, Scaling
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.likelihood import costs
from crossent.measure.tally.tally import Tally
from crossent.measure.values.decomposition import joint_parts


def miscalibration(p, y):
    """Of more than two classes, by cross-fitting."""
    rows = Predictions.from_arrays(p, y)
    return joint_parts(Tally.like(rows, capacity=len(rows)).add(rows).evidence())[0]["miscalibration"]


def sample(n, classes=3, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, (n, classes))
    p = softmax(z, axis=1)
    return z, p, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def penalised(p, y, temperature, bias, ridge):
    """The objective by a loop over rows in 30 digits; shares no code with the package."""
    with mpmath.workdps(30):
        total = mpmath.mpf(0)
        for row, label in zip(p.tolist(), y.tolist(), strict=True):
            if row[label] == 0:
                continue
            mass = [
                mpmath.mpf(v) ** (1 / temperature) * mpmath.exp(b) if v else 0 for v, b in zip(row, bias, strict=True)
            ]
            total -= mpmath.log(mass[label] / sum(mass))
        return total + ridge / 2 * ((1 / temperature - 1) ** 2 + sum(b * b for b in bias))


@pytest.mark.parametrize("zeros", [False, True])
def test_the_fit_is_the_minimum_of_what_it_says_it_minimises(zeros):
    _, p, y = sample(60, seed=1)
    if zeros:
        p[::7, 0] = 0
        p /= p.sum(axis=1, keepdims=True)
    fitted = recalibrate(p, y, ridge=0.5)
    t, b = mpmath.mpf(fitted.temperature), [mpmath.mpf(v) for v in fitted.bias]
    best = penalised(p, y, t, b, 0.5)
    for step in (mpmath.mpf("1e-4"), -mpmath.mpf("1e-4")):
        assert penalised(p, y, 1 / (1 / t + step), b, 0.5) > best
        for j in range(3):
            assert penalised(p, y, t, [v + step * (k == j) for k, v in enumerate(b)], 0.5) > best
    assert sum(fitted.bias) == pytest.approx(0, abs=1e-6)


def test_a_known_temperature_and_bias_come_back():
    z, _, y = sample(20_000)
    claimed = softmax(3.0 * z + np.array([1.0, 0.0, -1.0]), axis=1)
    fitted = recalibrate(claimed, y)
    assert fitted.temperature == pytest.approx(3.0, rel=0.04)
    assert fitted.bias == pytest.approx((-1 / 3, 0, 1 / 3), abs=0.05)
    assert recalibrate(z * 3, y, "temperature", logits=True).temperature == pytest.approx(3.0, rel=0.04)
    assert recalibrate(softmax(z, axis=1), y, "temperature").temperature == pytest.approx(1.0, rel=0.04)


def test_two_classes_agree_with_one_column_and_with_a_range():
    rng = np.random.default_rng(2)
    z = rng.normal(0, 2, 5000)
    y = (rng.random(5000) < expit(z)).astype(int)
    p = expit(2 * z + 0.7)
    one = recalibrate(p, y)
    assert recalibrate(np.stack([1 - p, p], 1), y) == one
    soft = recalibrate(p, y.astype(float))
    assert soft.temperature == pytest.approx(one.temperature, rel=1e-5)
    assert soft.bias == pytest.approx(one.bias, abs=1e-5)
    assert one(p) == pytest.approx(one(np.stack([1 - p, p], 1))[:, 1])


def test_a_range_is_calibrated_to_its_mean():
    rng = np.random.default_rng(3)
    z = rng.normal(0, 1, 20_000)
    y = rng.beta(5 * expit(z), 5 * expit(-z))
    fitted = recalibrate(expit(2.5 * z), y)
    assert fitted.temperature == pytest.approx(2.5, rel=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_separable_labels_give_a_finite_answer(kind):
    p = np.array([0.1, 0.2, 0.8, 0.9] * 5)
    fitted = recalibrate(p, (p > 0.5).astype(int), kind)
    assert math.isfinite(fitted.temperature)
    assert fitted.kind == kind
    assert all(math.isfinite(shift) for shift in fitted.bias)
    assert np.isfinite(fitted(p)).all()


def test_zeros_stay_zeros_and_rows_stay_distributions():
    _, p, y = sample(500, 4)
    p[:, 3] = 0
    p /= p.sum(axis=1, keepdims=True)
    fitted = recalibrate(p, np.minimum(y, 3))  # labels 3 are impossible, and left out
    q = fitted(p)
    assert (q[:, 3] == 0).all()
    assert q.sum(axis=1) == pytest.approx(np.ones(500))
    keep = y != 3
    assert recalibrate(p[keep], y[keep]).temperature == pytest.approx(fitted.temperature, rel=1e-6)
    assert recalibrate(p[~keep], y[~keep]) == Scaling()  # nothing that can be learned from


def test_a_calibrator_survives_json_and_does_nothing_when_it_is_none():
    fitted = Scaling(1.7, (0.25, -0.25))
    assert Scaling.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    assert [Scaling().kind, Scaling(2.0).kind, fitted.kind] == list(KINDS)
    p = np.array([[0.2, 0.8], [0.0, 1.0]])
    assert Scaling()(p) == pytest.approx(p, abs=1e-15)


def test_logits_keep_what_probabilities_lose():
    z = np.array([[0.0, -2000.0]])
    assert Scaling(2.0).of_logits(z).tolist() == [[0.0, -1000.0]]


def test_cross_fitting_calibrates_each_row_by_the_others():
    _, p, y = sample(50)
    fitted = cross_fit(p, y, folds=5, seed=1)
    assert cross_fit(p, y, folds=5, seed=1).tolist() == fitted.tolist()
    assert cross_fit(p, y, folds=5, seed=2).tolist() != fitted.tolist()
    alone = cross_fit(p, y, folds=50)  # each row a fold: a loop over rows must find the same
    for i in (0, 17, 49):
        rest = np.arange(50) != i
        assert alone[i] == pytest.approx(recalibrate(p[rest], y[rest])(p[i : i + 1])[0], abs=1e-6)
    own = recalibrate(p, y)(p)  # the comparison can fail: fitted on itself, a row is cheaper
    assert costs(own, y).mean() < costs(alone, y).mean() - 1e-3


def test_folds_do_not_leak_how_often_classes_come():
    """Fifty classes, calibrated: stratified folds would claim 0.016 nats; seen here: -0.0008, and 0 alarms of 10."""
    rng, values, alarms = np.random.default_rng(0), [], 0
    for _ in range(10):
        z = rng.normal(0, 1.5, (1000, 50))
        p = softmax(z, axis=1)
        y = (p.cumsum(axis=1) < rng.random((1000, 1))).sum(axis=1)
        found = miscalibration(p, y)
        values.append(found.value)
        alarms += found.low > 0
    assert -0.004 < np.mean(values) < 0.001
    assert alarms <= 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_rows_is_no_trouble(n):
    p = np.array([0.3, 0.6, 0.9])[:n]
    assert np.isfinite(cross_fit(p, np.array([0, 1, 1])[:n])).all()


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="kind should be one of 'none', 'temperature'"):
        recalibrate([0.5], [1], "platt")
    with pytest.raises(ValueError, match="their shapes are"):
        recalibrate([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="class labels should be integers"):
        recalibrate(np.full((2, 3), 1 / 3), [0.0, 1.0])
    with pytest.raises(ValueError, match="for 2 classes, and the rows have 3"):
        Scaling(1.0, (0.1, -0.1))(np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="2 folds or more"):
        cross_fit([0.5, 0.5], [0, 1], folds=1)
    with pytest.raises(ValueError, match="logits should be"):
        recalibrate([0.5, 0.5], [0, 1], logits=True)


def test_calibrated_models_show_no_miscalibration_and_over_confident_ones_do():
    """200 simulated models of 1000 rows: how often the 95 % interval holds 0. Seen: 200 and 0."""
    held = {1.0: 0, 1.5: 0}
    temperatures, values = [], []
    for seed in range(200):
        z, _, y = sample(1000, 3, seed, scale=1.5)
        for sharpness in held:
            p = softmax(sharpness * z, axis=1)
            found = miscalibration(p, y)
            held[sharpness] += found.low <= 0 <= found.high
            if sharpness == 1.0:
                values.append(found.value)
            else:
                temperatures.append(recalibrate(p, y).temperature)
    assert held[1.0] >= 190
    assert held[1.5] <= 4
    assert -0.002 < np.mean(values) < 0.0005
    assert np.mean(temperatures) == pytest.approx(1.5, rel=0.02)


def test_folds_are_not_tied_to_data_drawn_with_the_same_seed():
    """Labels that are 1 in every fifth place of a permutation: with its own seed, and none of the fold's business."""
    n, seed = 1000, 3
    y = (np.random.default_rng(seed).permutation(n) % 5 == 0).astype(int)
    p = np.full(n, 0.5)

    def cost(fitted):
        return float(np.mean(-np.log(np.where(y == 1, fitted, 1 - fitted))))

    entropy = -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
    assert cost(cross_fit(p, y, seed=seed)) == pytest.approx(entropy, abs=0.01)
    tied = y == 1  # what a fold that is all 1s gets from the others, which are all 0s: it can fail
    assert cost(np.where(tied, 1 / n, 0.25)) > 2 * entropy
