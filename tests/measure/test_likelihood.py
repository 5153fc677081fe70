"""Log loss and its relatives, against mpmath, loops over rows, and scikit-learn where it is right."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, expit
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.likelihood import FLOOR, costs
from crossent.measure.tally.tally import Tally
from crossent.measure.values import means

RNG = np.random.default_rng(0)
P = RNG.dirichlet([0.4] * 5, size=300)
Y = np.array([RNG.choice(5, p=row) for row in P])
ROWS = Predictions.from_arrays(P, Y)


def likelihood(rows: Predictions) -> dict:
    tally = Tally.like(rows).add(rows)
    return means.likelihood(tally.evidence(), tally.evidence(floored=True))


def errors(rows: Predictions) -> dict:
    return means.errors(Tally.like(rows).add(rows).evidence(), rows.task)


def label_entropy(rows: Predictions):
    return means.label_entropy(Tally.like(rows).add(rows).evidence())


def by_mpmath(p, y):
    """Cross-entropy, label entropy, information gained (nats) and skill, in 40 digits."""
    with mpmath.workdps(40):
        n = len(y)
        loss = -sum(mpmath.log(mpmath.mpf(float(p[i][y[i]]))) for i in range(n)) / n
        counts = {c: sum(1 for label in y if label == c) for c in set(y)}
        entropy = -sum(mpmath.mpf(c) / n * mpmath.log(mpmath.mpf(c) / n) for c in counts.values())
        return float(loss), float(entropy), float(entropy - loss), float(1 - loss / entropy)


def test_values_agree_with_forty_digits():
    found = likelihood(ROWS)
    loss, entropy, gained, skill = by_mpmath(P.tolist(), Y.tolist())
    assert found["cross_entropy"].value == pytest.approx(loss, rel=1e-14)
    assert found["cross_entropy_bits"].value == pytest.approx(loss / math.log(2), rel=1e-14)
    assert found["label_entropy"].value == pytest.approx(entropy / math.log(2), rel=1e-14)
    assert found["information_gained"].value == pytest.approx(gained / math.log(2), rel=1e-13)
    assert found["skill"].value == pytest.approx(skill, rel=1e-13)
    wrong = by_mpmath(P.tolist(), np.roll(Y, 1).tolist())  # the comparison can fail: labels one row off
    assert found["cross_entropy"].value != pytest.approx(wrong[0], rel=1e-3)


def test_the_bias_of_the_entropy_is_what_draws_have_on_average():
    rows, classes, groups = 120, 4, np.arange(120) // 4
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    truth = float(entr(shares).sum()) / math.log(2)
    even = np.full((rows, classes), 1 / classes)
    random = np.random.default_rng(0)
    for weight, group, times in ((None, None, 1), (random.gamma(1.0, size=rows), None, 1), (None, groups, 4)):
        off, said = [], []
        for _ in range(300):
            y = random.choice(classes, rows // times, p=shares).repeat(times)  # one label for all rows of a group
            rows_drawn = Predictions.from_arrays(even, y, weights=weight, groups=group)
            found = likelihood(rows_drawn)
            off.append(found["label_entropy"].value - truth)
            said.append(found["label_entropy_bias"].value)
        error = np.std(off) / math.sqrt(len(off))
        assert abs(np.mean(off) - np.mean(said)) < 3 * error + 0.1 * abs(np.mean(said))  # terms of 1/n² are left out
        if weight is None and group is None:
            miller = -(classes - 1) / (2 * rows) / math.log(2)
            assert said[0] == pytest.approx(miller, rel=1e-12)
        else:  # the comparison can fail: weights and groups are fewer rows
            assert abs(np.mean(off) - miller) > 3 * error


def test_scikit_learn_agrees():
    found = likelihood(ROWS) | errors(ROWS)
    assert found["cross_entropy"].value == pytest.approx(log_loss(Y, P, labels=range(5)), rel=1e-12)
    assert found["accuracy"].value == accuracy_score(Y, P.argmax(axis=1))
    one_hot = np.eye(5)[Y]
    assert found["brier"].value == pytest.approx(np.mean(((P - one_hot) ** 2).sum(axis=1)), rel=1e-12)
    p, y = P[:, 0] / (P[:, 0] + P[:, 1]), (Y == 0).astype(int)
    binary = errors(Predictions.from_arrays(p, y))
    assert binary["brier"].value == pytest.approx(brier_score_loss(y, p), rel=1e-12)


def test_float32_probabilities_add_up_to_1_before_they_are_measured():
    p = P.astype(np.float32)
    found = likelihood(Predictions.from_arrays(p, Y))["cross_entropy"].value
    whole = p.astype(float) / p.astype(float).sum(axis=1, keepdims=True)
    assert found == pytest.approx(by_mpmath(whole.tolist(), Y.tolist())[0], rel=1e-14)
    assert found != pytest.approx(by_mpmath(p.astype(float).tolist(), Y.tolist())[0], rel=1e-12)  # it can fail


def test_an_exact_zero_makes_cross_entropy_infinite_and_is_counted():
    p = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = likelihood(Predictions.from_arrays(p, [1, 1, 1]))
    assert found["cross_entropy"].value == math.inf
    assert found["cross_entropy"].low is None
    assert found["cross_entropy"].high is None
    assert found["impossible_rows"].value == 1
    assert found["cross_entropy_floored"].value == pytest.approx((-math.log(FLOOR) + math.log(2)) / 3)
    assert "skill" not in found  # all labels are equal
    two = likelihood(Predictions.from_arrays(p, [1, 1, 0]))
    assert two["skill"].value == two["information_gained"].value == -math.inf
    assert two["skill"].low is None


def test_nothing_is_floored_where_nothing_is_impossible():
    p = [[1 - 1e-12, 1e-12], [0.5, 0.5]]
    found = likelihood(Predictions.from_arrays(p, [1, 0]))
    assert found["cross_entropy"].value == pytest.approx((-math.log(1e-12) + math.log(2)) / 2)
    assert "cross_entropy_floored" not in found
    assert found["impossible_rows"].value == 0


def test_a_zero_on_a_class_that_did_not_come_costs_nothing():
    assert costs(np.array([[0.0, 1.0]]), np.array([1])).tolist() == [0.0]
    assert costs(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0])).tolist() == [0.0, 0.0]
    assert costs(np.array([[0.0, 1.0]]), np.array([0.9])).tolist() == [math.inf]


def test_a_range_is_soft_binary_cross_entropy_and_its_errors_are_in_its_own_unit():
    y, p = RNG.uniform(10, 30, size=50), RNG.uniform(0.05, 0.95, size=50)
    rows = Predictions.from_arrays(p, y, task="range", low=10, high=30)
    found = likelihood(rows) | errors(rows)
    loss, mae, mse = 0.0, 0.0, 0.0
    for target, q in zip(y, p, strict=True):
        f = (target - 10) / 20
        loss -= (f * math.log(q) + (1 - f) * math.log(1 - q)) / 50
        mae += abs(10 + 20 * q - target) / 50
        mse += (10 + 20 * q - target) ** 2 / 50
    m = (y.mean() - 10) / 20
    entropy = -(m * math.log(m) + (1 - m) * math.log(1 - m))
    assert found["cross_entropy"].value == pytest.approx(loss, rel=1e-13)
    assert label_entropy(rows).value == pytest.approx(entropy, rel=1e-13)
    assert found["mae"].value == pytest.approx(mae, rel=1e-13)
    assert found["rmse"].value == pytest.approx(math.sqrt(mse), rel=1e-13)
    assert found["rmse"].low < found["rmse"].value < found["rmse"].high
    assert "accuracy" not in found


def test_the_order_of_rows_and_of_classes_changes_nothing():
    order, swap = RNG.permutation(len(Y)), np.array([3, 0, 4, 1, 2])
    found = likelihood(ROWS) | errors(ROWS)
    rows = Predictions.from_arrays(P[order], Y[order])
    classes = Predictions.from_arrays(P[:, swap], np.argsort(swap)[Y])
    for other in (likelihood(rows) | errors(rows), likelihood(classes) | errors(classes)):
        for name, number in found.items():
            assert other[name].value == pytest.approx(number.value, rel=1e-12), name
            assert other[name].low == (number.low if number.low is None else pytest.approx(number.low, rel=1e-9))


def test_the_frequencies_themselves_gain_nothing_and_no_skill():
    shares = np.bincount(Y, minlength=5) / len(Y)
    found = likelihood(Predictions.from_arrays(np.tile(shares, (len(Y), 1)), Y))
    assert found["information_gained"].value == pytest.approx(0, abs=1e-13)
    assert found["skill"].value == pytest.approx(0, abs=1e-13)


def test_intervals_of_gain_and_skill_hold_the_truth_as_often_as_they_say():
    """Counted on 1000 samples of 300 rows from one calibrated model; what another model claims misses."""
    rng, truth_rows = np.random.default_rng(4), 2_000_000
    z = rng.normal(0, 2, truth_rows)
    p = 1 / (1 + np.exp(-z))
    loss = float(np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p)))
    held = {"information_gained": 0, "skill": 0, "shifted": 0}
    for i in range(1000):
        q = p[i * 300 : (i + 1) * 300]
        found = likelihood(Predictions.from_arrays(q, (rng.random(300) < q).astype(int)))
        gained, skill = found["information_gained"].to("nats"), found["skill"]
        held["information_gained"] += gained.low < math.log(2) - loss < gained.high
        held["skill"] += skill.low < 1 - loss / math.log(2) < skill.high
        held["shifted"] += skill.low < 1.25 - loss / math.log(2) < skill.high
    assert 930 <= held["information_gained"] <= 970  # seen: 949
    assert 930 <= held["skill"] <= 970  # seen: 950
    assert held["shifted"] < 50


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(2, 60), st.integers(0, 2**31))
def test_information_gained_is_label_entropy_less_cross_entropy(classes, n, seed):
    rng = np.random.default_rng(seed)
    p, y = rng.dirichlet([0.3] * classes, size=n) * 0.999 + 0.001 / classes, rng.integers(classes, size=n)
    found = likelihood(Predictions.from_arrays(p, y))
    bits = found["label_entropy"].value - found["cross_entropy_bits"].value
    assert found["information_gained"].value == pytest.approx(bits, abs=1e-12)
    if "skill" in found:
        assert found["skill"].value == pytest.approx(bits / found["label_entropy"].value, abs=1e-12)
    for number in found.values():
        assert number.low is None or number.low <= number.value <= number.high


def test_rows_of_one_class_alone_scatter_as_the_model_claims():
    """Of thirty rows of which one in fifty is expected to be the other class, most samples have none."""
    rng = np.random.default_rng(0)
    held, gained, plain, alone = 0, 0, 0, 0
    grid = expit(rng.normal(-4, 1.5, 400_000))
    truth = float(np.mean(entr(grid) + entr(1 - grid)))
    share = float(grid.mean())
    entropy = float(entr(share) + entr(1 - share))
    for _ in range(400):
        p = expit(rng.normal(-4, 1.5, 30))
        y = (rng.random(30) < p).astype(int)
        if y.any():
            continue
        rows = Predictions.from_arrays(p, y)
        of = Tally.like(rows).add(rows).evidence()
        found = means.likelihood(of, of)
        alone += 1
        held += found["cross_entropy"].low <= truth <= found["cross_entropy"].high
        gained += found["information_gained"].low <= (entropy - truth) / math.log(2) <= found["information_gained"].high
        low, high = of.spread(1.0, np.zeros(2), of.cross_entropy).interval(of.cross_entropy)
        plain += low <= truth <= high
        assert of.claimed().second == pytest.approx(
            np.sum(p * (-np.log(p) - _claim(p)) ** 2 + (1 - p) * (-np.log1p(-p) - _claim(p)) ** 2), rel=1e-9
        )
    assert alone > 80
    assert held >= 0.95 * alone
    assert gained >= 0.95 * alone
    assert plain < 0.5 * alone  # it can fail: what the rows say of themselves misses
    both = Predictions.from_arrays([0.1, 0.2, 0.3], [0, 0, 1])
    assert Tally.like(both).add(both).evidence().claimed() is None


def _claim(p):
    """The mean cost that a model claims to have."""
    return np.mean(entr(p) + entr(1 - p))


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_what_hardly_came_is_in_the_intervals(sharpness):
    """Of a model twice too sure rows of one class know nothing, nor does the model; of a class that came once its one
    row does not know how it scatters."""
    rng = np.random.default_rng(1)
    grid = rng.normal(-4, 1.5, 400_000)
    p, claims = expit(grid), expit(sharpness * grid)
    truth = float(np.mean(-p * np.log(claims) - (1 - p) * np.log1p(-claims)))
    entropy = float(entr(p.mean()) + entr(1 - p.mean()))
    none, once, claimed, delta = [], [], [], []
    for _ in range(250):
        z = rng.normal(-4, 1.5, 30)
        y = (rng.random(30) < expit(z)).astype(int)
        rows = Predictions.from_arrays(expit(sharpness * z), y)
        of = Tally.like(rows).add(rows).evidence()
        if y.sum() == 0:
            number = means.cross_entropy(of)
            none.append(number.low <= truth <= number.high)
            low, high = of.claimed().interval(number.value)
            claimed.append(low <= truth <= high)
        elif y.sum() == 1:
            assert of.lonely
            number, h = means.likelihood(of, of)["skill"], of.entropy
            once.append(number.low <= 1 - truth / entropy <= number.high)
            low, high = of.spread(-1 / h, of.cost_under_frequencies() * of.cross_entropy / h**2, 0.0).interval(
                number.value
            )
            delta.append(low <= 1 - truth / entropy <= high)
        else:
            assert not of.lonely
    assert min(len(none), len(once)) > 40
    assert min(np.mean(none), np.mean(once)) >= 0.95
    assert np.mean(delta) < 0.9  # it can fail: what was said of a class that came once
    assert sharpness == 1 or np.mean(claimed) < 0.5  # and what the model says of one that never came
