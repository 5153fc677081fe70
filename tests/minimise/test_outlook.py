"""What the next minute would win: planted curves, whose answer is a formula, and curves that win nothing."""

import time
from dataclasses import replace

import numpy as np
import pytest

from crossent.minimise import Recipe, fit
from crossent.minimise.training import boost
from crossent.minimise.training.outlook import MINUTE, NO_TREES, expected, outlook
from crossent.minimise.training.state import BY_HAND, OVER, History
from tests.minimise.conftest import QUICK

K = np.arange(1, 21, dtype=np.float64)
CURVES = {
    "a quick decay": lambda k: 0.3 + 0.5 * np.exp(-k / 5),
    "a slow decay": lambda k: 0.3 + 0.5 * np.exp(-k / 20),
    "a root": lambda k: 0.3 + 0.5 * k**-0.5,
    "a hyperbola": lambda k: 0.3 + 0.5 / k,
}


def noisy(curve, noise, seed):
    return curve + noise * np.random.default_rng(seed).normal(size=len(curve))


def straight_on(losses, further):
    """The planted fault: the last slope, carried on."""
    return further * (losses[-2] - losses[-1])


@pytest.mark.parametrize("further", [5, 20, 200])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_curve_of_either_family_is_carried_on_to_what_it_wins(curve, further):
    truth = curve(20) - curve(20.0 + further)
    assert expected(curve(K), further) == pytest.approx(truth, rel=0.03)  # a grid whose steps are 2 %
    assert straight_on(curve(K), further) != pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("curve", [CURVES["a slow decay"], CURVES["a root"]], ids=["a slow decay", "a root"])
def test_noise_of_a_tenth_of_what_is_won_leaves_the_median_right(curve):
    """Ten curves; a window of ten points fixes the slope, and with it what a few epochs win, to about 30 %."""
    truth = curve(20) - curve(25)
    found = np.median([expected(noisy(curve(K), 0.1 * truth, seed), 5) for seed in range(10)])
    assert found == pytest.approx(truth, rel=0.3)


FLAT = np.full(20, 0.3)


@pytest.mark.parametrize(
    "curve",
    [FLAT, 0.3 + 0.5 * np.exp(-2 * K), 0.3 + 0.001 * K, 0.3 + 0.01 * np.abs(K - 10)],
    ids=["flat", "at its floor", "rising", "fallen and risen"],
)
def test_a_curve_that_wins_nothing_is_expected_to_win_nothing(curve):
    assert expected(curve, 200) < 1e-6
    wins = [expected(noisy(curve, 0.002, seed), 200) for seed in range(40)]
    assert np.mean([win > 0 for win in wins]) <= 0.15  # a test of 5 %, on 40 curves: 6 are its 99.9th percentile
    assert expected(noisy(0.3 + 0.5 * np.exp(-K / 20), 0.002, 0), 200) > 0.05  # the same noise hides no real fall


def test_nothing_is_won_beyond_the_loss_itself_and_below_zero():
    line = 1.0 - 0.045 * K  # 0.1 is left
    assert 0 < expected(line, 10_000) <= 0.1 + 1e-12
    assert expected(CURVES["a root"](K), 0) == 0
    assert expected([0.5, 0.4, np.nan, 0.3, 0.2], 9) == 0


def cut(curve, seconds=120.0, stopped=OVER, most=200):
    return History(list(curve), list(curve), int(np.argmin(curve)) + 1, stopped, seconds, [], most)


def test_a_minute_is_as_many_epochs_as_it_holds_and_no_more_than_are_allowed():
    curve = CURVES["a slow decay"](K)  # 6 s an epoch: a minute is ten
    ten, two = outlook([cut(curve)]), outlook([cut(curve, most=22)])
    assert ten.nats == pytest.approx(expected(curve, MINUTE / 6))
    assert f"next minute of training is expected to win at least {ten.nats:.2g} nats of held-out loss." in ten.sentence
    assert two.nats == pytest.approx(expected(curve, 2))
    assert two.nats < ten.nats
    halves = outlook([cut(curve), cut(curve)])  # two networks share it
    assert halves.nats == pytest.approx(expected(curve, MINUTE / 12))
    assert outlook([cut(curve), cut(curve, stopped="no lower held-out loss in 6 epochs")]).nats == ten.nats / 2


def test_where_nothing_is_expected_it_says_why():
    ended = outlook([cut(FLAT, stopped="no lower held-out loss in 6 epochs")])
    assert ended.nats == 0
    assert ended.sentence == "More time is not expected to win anything: no lower held-out loss in 6 epochs."
    assert outlook([cut(FLAT)]).sentence.endswith("the held-out loss no longer falls by more than its noise.")
    few = outlook([cut(FLAT[:1])])
    assert few.nats is None
    assert few.sentence == "The time was over after 1 epoch, too few to say what the next minute would win."


def test_a_fit_within_a_budget_says_so_and_one_without_does_not(arrays, monkeypatch):
    said, endless = [], replace(Recipe(**QUICK), epochs=100_000, patience=100_000)
    with monkeypatch.context() as clock:  # one that every look moves on, for this machine may be busy
        clock.setattr(time, "monotonic", map(float, range(10_000)).__next__)
        record = fit(*arrays, recipe=endless, budget=200, said=said.append).record
    assert record.facts["stopped"] == OVER
    assert record.facts["outlook"] in said
    assert record["next_minute"].value >= 0
    assert record["next_minute"].unit == "nats"

    ended = fit(*arrays, recipe=Recipe(**QUICK), budget=600).record
    assert ended.facts["outlook"] == "More time is not expected to win anything: the most epochs allowed, 8, were done."
    assert ended["next_minute"].value == 0

    def stop(at):
        if at.epoch == 3:
            raise KeyboardInterrupt

    for record in (
        fit(*arrays, recipe=Recipe(**QUICK)).record,
        fit(*arrays, recipe=Recipe(**QUICK), budget=600, progress=stop).record,
    ):
        assert "outlook" not in record.facts
        assert "next_minute" not in record.numbers
    assert record.facts["stopped"] == BY_HAND


@pytest.mark.parametrize("time_for_trees", [True, False])
def test_trees_that_there_was_no_time_for_are_said(time_for_trees, monkeypatch):
    x = np.random.default_rng(0).normal(size=(boost.LEAST_ROWS, 2))
    if not time_for_trees:
        monkeypatch.setattr(boost, "boosted", lambda *_, **__: None)
    known = (x, x[:, 0] + x[:, 1] > 0)
    run = fit(*known, test=known, recipe=replace(Recipe(**QUICK), beside=True, trees=True), budget=600)
    assert (NO_TREES in run.record.facts["outlook"]) == (not time_for_trees)
