"""Rare classes: what the cures change, and that the truth comes back."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from crossent.errors import DataError
from crossent.minimise.data.task import Task
from crossent.minimise.objective.imbalance import Imbalance
from crossent.minimise.objective.objective import Objective

THREE = Task("multi-class", ("a", "b", "c"), "")
COUNTS = torch.tensor([700, 250, 50])
CURES = [
    "weights",
    "weights(0.5)",
    "logit_adjusted",
    "logit_adjusted(0.5)",
    "logit_adjusted(2)",
    "balanced",
    "balanced(0.3)",
]


def said(objective, truth, seen=None):
    """Logits that cost least if labels come as the truth says, in training drawn with ``seen`` (C,) shares of each."""
    q = torch.tensor(truth, dtype=torch.float64)
    q = q if seen is None else q * seen / (q * seen).sum()

    def cost(z):
        z = torch.tensor(z, requires_grad=True)
        value = (q * objective.loss(z.expand(3, 3), torch.arange(3))).sum()
        return value.item(), torch.autograd.grad(value, z)[0].numpy()

    found = minimize(cost, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-10})
    return torch.tensor(found.x)


@pytest.mark.parametrize("cure", CURES)
@pytest.mark.parametrize("loss", ["nll", "focal(2)", "smoothed(0.05)", "gce(0.5)"])
def test_the_true_distribution_comes_back(cure, loss):
    truth = [0.5, 0.2, 0.3]
    objective = Objective.of(THREE, loss=loss, imbalance=cure, prior=COUNTS)
    drawn = objective.imbalance.shares
    seen = None if drawn is None else drawn / (COUNTS.double() / 1000)
    z = said(objective, truth, seen)
    got = objective.log_probabilities(z).exp()
    assert (got - torch.tensor(truth)).abs().max() < 1e-5  # BFGS: a gradient of 1e-8 or so, and the link's slope
    assert (objective.log_probabilities(z, raw=True).exp() - torch.tensor(truth)).abs().max() > 0.05


def test_weights_are_one_on_average_over_the_rows():
    for text, power in (("weights", 1.0), ("weights(0.5)", 0.5)):
        weight = Imbalance.of(text, COUNTS).weight
        assert (weight * COUNTS).sum().item() / 1000 == pytest.approx(1.0, rel=1e-14)
        assert (weight[2] / weight[0]).item() == pytest.approx((700 / 50) ** power, rel=1e-14)


@pytest.mark.parametrize("text", ["none", "weights(0)", "balanced(0)", "logit_adjusted(0)"])
def test_no_strength_is_no_cure(text):
    cure = Imbalance.of(text, COUNTS)
    assert cure.weight is cure.shares is cure.bias is cure.factor is None


@pytest.mark.parametrize(("text", "shares"), [("balanced", [1 / 3] * 3), ("balanced(0.5)", None)])
def test_balanced_rows_have_their_shares_to_within_one_place(text, shares):
    labels = torch.repeat_interleave(torch.arange(3), COUNTS)[
        torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    ]
    cure, draw = Imbalance.of(text, COUNTS), torch.Generator().manual_seed(0)
    expected = torch.tensor(shares, dtype=torch.float64) if shares else COUNTS.sqrt().double() / COUNTS.sqrt().sum()
    assert torch.allclose(cure.shares, expected, rtol=1e-6)
    times = torch.zeros(1000)
    for _ in range(200):
        rows = cure.rows(labels, 100, draw)
        found = labels[rows].bincount(minlength=3)
        assert ((found - 100 * cure.shares).abs() < 1 + 1e-9).all()
        times += rows.bincount(minlength=1000)
    assert (times > 0).float().mean() > 0.95
    for c in range(3):
        of_class = times[labels == c]
        spread = (of_class.var() / of_class.mean()).item()
        assert 0.75 < spread < 1.35, "each row of a class as likely as another: Poisson, whose variance is its mean"
    order = labels[cure.rows(labels, 600, draw)]
    assert (order[1:] != order[:-1]).float().mean() > 0.45, "in random order, not class by class"


def test_the_generator_decides():
    labels, cure = torch.repeat_interleave(torch.arange(3), COUNTS), Imbalance.of("balanced", COUNTS)
    one, again, other = (cure.rows(labels, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_class_without_rows_in_this_part_gets_no_places():
    cure = Imbalance.of("balanced", COUNTS)
    rows = cure.rows(torch.tensor([0, 2, 2, 0]), 40, torch.Generator().manual_seed(0))
    assert torch.tensor([0, 2, 2, 0])[rows].bincount(minlength=3).tolist() == [20, 0, 20]
    rows = cure.rows(torch.tensor([0, 1, 1]), 40, torch.Generator().manual_seed(0))
    assert torch.tensor([0, 1, 1])[rows].bincount(minlength=3).tolist() == [20, 20, 0]


@pytest.mark.parametrize(
    ("text", "counts", "sentence"),
    [
        (
            "wieghts",
            COUNTS,
            "'wieghts' in the cure for imbalance 'wieghts' is no cure for imbalance; did you mean 'weights'",
        ),
        ("weights(2)", COUNTS, r"not possible: power lies between 0 .* and 1 .*, and is 2"),
        ("balanced(-0.5)", COUNTS, "not possible: power"),
        ("logit_adjusted(11)", COUNTS, "not possible: tau lies between 0"),
        ("none(1)", COUNTS, "'none' takes no arguments"),
        ("weights", None, "needs to know how many training rows each class has"),
        ("balanced", torch.tensor([5, 0, 3]), "needs training rows of every class; there are none of class 1"),
    ],
)
def test_cures_that_cannot_be(text, counts, sentence):
    with pytest.raises(DataError, match=sentence):
        Imbalance.of(text, counts)


def test_rows_are_drawn_by_label_and_for_balanced_only():
    draw = torch.Generator()
    with pytest.raises(DataError, match="for imbalance='balanced' only"):
        Imbalance.of("weights", COUNTS).rows(torch.tensor([0]), 4, draw)
    with pytest.raises(DataError, match=r"needs labels \(n,\); got targets of shape \(4, 3\)"):
        Imbalance.of("balanced", COUNTS).rows(torch.rand(4, 3), 4, draw)
