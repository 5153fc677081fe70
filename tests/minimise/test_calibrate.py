"""Calibration is used where it helps, and left out where it would learn noise."""

import numpy as np
import pytest

from crossent.measure.calibration import Calibrator
from crossent.minimise import calibrate


def validation(seed, n=300, classes=3, sharpened=1.0):
    """Logits whose softmax are the true probabilities, made too sure of themselves ``sharpened`` times."""
    random = np.random.default_rng(seed)
    z = random.normal(0, 1.5, (n, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = (p.cumsum(1) > random.random((n, 1))).argmax(1)
    z = z * sharpened
    return z - np.log(np.exp(z).sum(1, keepdims=True)), labels


def test_overconfident_probabilities_are_softened():
    for seed in range(5):
        log_p, labels = validation(seed, sharpened=3.0)
        calibrator, table = calibrate.choose(log_p, labels, 0)
        assert calibrator.kind in ("temperature", "temperature and bias")
        assert 2 < calibrator.temperature < 4.5
        assert table["name"][table["chosen"].index(True)] == calibrator.kind
        assert min(table["cross_entropy"]) < table["cross_entropy"][0]
        fresh, truth = validation(seed + 100, n=4000, sharpened=3.0)
        before = -fresh[np.arange(4000), truth].mean()
        after = -calibrator.of_logits(fresh)[np.arange(4000), truth].mean()
        assert after < before - 0.1


def test_calibrated_probabilities_are_mostly_left_alone_and_never_much_harmed():
    left, harm = 0, []
    for seed in range(15):
        log_p, labels = validation(seed)
        calibrator, _ = calibrate.choose(log_p, labels, 0)
        left += calibrator.kind == "none"
        fresh, truth = validation(seed + 100, n=4000)
        harm.append((fresh - calibrator.of_logits(fresh))[np.arange(4000), truth].mean())
    # The interval of the gain must lie above 0: noise does that for either of two families in one case of twenty or so.
    assert left >= 13
    assert np.mean(harm) < 0.001
    assert max(harm) < 0.03
    forced = [calibrate.choose(*validation(seed, sharpened=3.0), 0)[0].kind == "none" for seed in range(5)]
    assert not any(forced)


@pytest.mark.parametrize("rows", [1, 2, 19])
def test_a_handful_of_rows_calibrates_nothing(rows):
    log_p, labels = validation(0, n=rows, sharpened=10.0)
    calibrator, table = calibrate.choose(log_p, labels, 0)
    assert calibrator == Calibrator()
    assert (table["name"], table["chosen"]) == (["none"], [True])
    assert calibrate.choose(*validation(0, n=40, sharpened=10.0), 0)[0].kind != "none"


def test_the_table_says_what_each_family_did():
    log_p, labels = validation(1, sharpened=3.0)
    _, table = calibrate.choose(log_p, labels, 0)
    assert table["name"] == ["none", "temperature", "temperature and bias"]
    assert table["cross_entropy"][0] == pytest.approx(-log_p[np.arange(300), labels].mean(), rel=1e-12)
    assert sum(table["chosen"]) == 1
    assert (table["low"][0], table["high"][0]) == (None, None)
    for place in (1, 2):
        change = table["cross_entropy"][place] - table["cross_entropy"][0]
        assert table["low"][place] < change < table["high"][place] < 0
    assert calibrate.choose(log_p, labels, 0)[1] == table
    assert calibrate.choose(log_p[::-1], labels, 0)[1] != table


def test_impossible_rows_and_absent_classes_are_borne():
    log_p, labels = validation(2, classes=5, sharpened=3.0)
    log_p, labels = log_p[labels < 4], labels[labels < 4]
    log_p[0, labels[0]] = -np.inf
    calibrator, table = calibrate.choose(log_p, labels, 0)
    assert calibrator.kind != "none"
    assert table["cross_entropy"][0] == np.inf
    p = np.exp(calibrator.of_logits(log_p))
    assert p.sum(1) == pytest.approx(np.ones(len(p)), abs=1e-12)


def test_shares_of_a_range_are_calibrated_too():
    random = np.random.default_rng(0)
    z = random.normal(0, 1, 400)
    shares = 1 / (1 + np.exp(-z + random.normal(0, 0.1, 400)))
    sharp = np.stack([-np.logaddexp(0, 3 * z), -np.logaddexp(0, -3 * z)], 1)
    calibrator, _ = calibrate.choose(sharp, shares, 0)
    assert calibrator.temperature == pytest.approx(3.0, rel=0.15)
    right = np.stack([-np.logaddexp(0, z), -np.logaddexp(0, -z)], 1)
    assert calibrate.choose(right, shares, 0)[0].temperature == pytest.approx(1.0, abs=0.1)
