"""Known shifts against models that had them: Bayes' rule on known densities, networks trained with weights, samples."""

import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from crossent import DataError, undo_shift

MEANS = (-1.0, 0.0, 2.0)


def bayes(x, prior):
    """The posterior of three normal densities under a prior, by Bayes' rule."""
    joint = np.stack([share * norm.pdf(x, mean) for share, mean in zip(prior, MEANS, strict=True)], axis=1)
    return joint / joint.sum(axis=1, keepdims=True)


def test_another_prior_is_bayes_rule_under_that_prior():
    x = np.linspace(-4, 5, 50)
    was, now = (0.2, 0.5, 0.3), (0.7, 0.1, 0.2)
    found = undo_shift(prior_was=was, prior_is=now)
    assert found(bayes(x, was)) == pytest.approx(bayes(x, now), abs=1e-14)
    back = undo_shift(prior_was=now, prior_is=was)
    assert back(found(bayes(x, was))) == pytest.approx(bayes(x, was), abs=1e-13)
    assert np.abs(bayes(x, was) - bayes(x, now)).max() > 0.3  # the comparison can fail


def test_class_weights_are_undone_where_the_weighted_loss_is_least():
    """One row of features, many labels: the weighted loss is least at p_c ∝ w_c f_c, found here by a grid."""
    share, weight = 0.1, 7.0
    grid = np.linspace(1e-4, 1 - 1e-4, 100_000)
    loss = -(1 - share) * np.log(1 - grid) - share * weight * np.log(grid)
    learned = grid[np.argmin(loss)]
    assert learned == pytest.approx(share * weight / (share * weight + 1 - share), abs=1e-4)
    assert undo_shift(class_weight=[1.0, weight])([learned])[0] == pytest.approx(share, abs=1e-4)
    assert undo_shift(class_weight={"b": weight}, classes=["a", "b"])([learned])[0] == pytest.approx(share, abs=1e-4)
    assert undo_shift(class_weight=[weight, 1.0])([learned])[0] > 0.8  # the wrong way round


def test_a_sampling_rate_is_undone_as_dal_pozzolo_has_it():
    """Kept: a tenth of the negatives. p = β p_s / (β p_s − p_s + 1), and the frequencies of the whole population."""
    beta, p_s = 0.1, np.linspace(0.001, 0.999, 99)
    found = undo_shift(sampling_rate=[beta, 1.0])(p_s)
    assert found == pytest.approx(beta * p_s / (beta * p_s - p_s + 1), abs=1e-14)

    rng = np.random.default_rng(0)
    x = rng.normal(size=400_000)
    y = rng.random(x.size) < expit(3 * x - 4)
    kept = y | (rng.random(x.size) < beta)
    bins = np.digitize(x, np.linspace(-1, 2, 7))
    for which in range(8):
        here = bins == which
        if y[here].sum() < 200:
            continue
        sampled = float(np.mean(y[here & kept]))
        truth, n = float(np.mean(y[here])), int(here.sum())
        error = math.sqrt(truth * (1 - truth) / n) + math.sqrt(truth * (1 - truth) / (beta * n))
        assert abs(undo_shift(sampling_rate=[beta, 1.0])([sampled])[0] - truth) < 4 * error
        assert abs(sampled - truth) > 4 * error  # and without it the frequencies are others


def test_all_at_once_is_one_after_the_other():
    p = bayes(np.linspace(-3, 4, 20), (0.3, 0.3, 0.4))
    was, now, weight, rate = (0.2, 0.5, 0.3), (0.4, 0.4, 0.2), (1.0, 2.0, 5.0), (1.0, 0.5, 0.1)
    at_once = undo_shift(prior_was=was, prior_is=now, class_weight=weight, sampling_rate=rate)(p)
    in_turn = undo_shift(prior_was=was, prior_is=now)(
        undo_shift(class_weight=weight)(undo_shift(sampling_rate=rate)(p))
    )
    assert at_once == pytest.approx(in_turn, abs=1e-14)


def test_names_in_any_order_one_prior_of_two_and_zeros():
    both = undo_shift(prior_was={"yes": 0.5}, prior_is={"no": 0.9}, classes=["no", "yes"])
    in_order = undo_shift(prior_was=[0.5, 0.5], prior_is=[0.9, 0.1])
    assert both([0.3, 0.8]) == pytest.approx(in_order([0.3, 0.8]), abs=1e-14)
    assert in_order([0.3, 0.8]) != pytest.approx(in_order([0.7, 0.2]), abs=0.1)
    assert both([[1.0, 0.0], [0.0, 1.0]]).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert both.kind == "shift undone"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "nothing to undo"),
        ({"prior_was": [0.5, 0.5]}, "prior_was is given without prior_is"),
        ({"prior_is": [0.5, 0.5]}, "prior_is is given without prior_was"),
        ({"prior_was": [0.5, 0.5], "prior_is": [0.5, 0.6]}, "prior_is should add up to 1"),
        ({"prior_was": [0.5, 0.5], "prior_is": [1.0, 0.0]}, "above 0 for each class, and is 0.0 for 1"),
        ({"prior_was": [0.5, 0.5], "prior_is": [0.3, 0.3, 0.4]}, "one number per class, 2, and has 3"),
        ({"class_weight": {"a": 2.0}}, r"need the names in the order of the columns"),
        ({"class_weight": {"c": 2.0}, "classes": ["a", "b"]}, "names 'c', which is no class; there are a, b"),
        ({"class_weight": [1.0, math.nan]}, "above 0 for each class"),
        ({"sampling_rate": [1.0, "all"]}, "above 0 for each class, and is 'all'"),
        ({"sampling_rate": [1.0]}, "two classes"),
        ({"prior_was": {"a": 0.2, "b": 0.3}, "prior_is": {"a": 0.5}, "classes": ["a", "b", "c"]}, "no share for"),
    ],
)
def test_what_cannot_be_undone_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(DataError, match=sentence):
        undo_shift(**given)
