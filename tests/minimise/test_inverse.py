"""The way back from a minimiser: expected losses are minimised numerically, and the truth has to come out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from crossent.compute import cross_entropy, losses
from crossent.compute.losses import LDAM, NLL, Brier, Confidence, Focal, GeneralisedCE, LogZ, Smoothed
from crossent.minimise.objective import inverse
from crossent.minimise.objective.catalogue import PROPERTIES
from crossent.minimise.objective.inverse import inverse_of
from crossent.minimise.objective.spelling import LOSSES, read_loss
from tests import oracle
from tests.oracle import mp

TRUTHS = {  # none of them lies where a loss below cannot see it
    "two": [0.75, 0.25],
    "two, rare": [0.04, 0.96],
    "three": [0.2, 0.55, 0.25],
    "five": [0.1, 0.3, 0.2, 0.25, 0.15],
}
INVERTED = [
    "smoothed(0.05)",
    "smoothed(0.1, over=others)",
    "smoothed(0.1, focal(2))",
    "focal(2)",
    "focal(0.5)",
    "smoothed(0.1) + 0.5*brier",
    "asymmetric(1, 3, margin=0)",
    "poly1(1)",
    "poly1(-0.7)",
    "gce(0.5)",
    "sce(0.5, 1)",
    "margin(0.5)",
    "margin(-1)",
    "nll + 0.1*confidence",
    "nll + 0.01*logz - 0.05*confidence",
    "bootstrapped(0.9)",
    "bootstrapped_soft(0.95)",
    "2*focal(1) + gce(0.7)",
    "ldam(1.0)",
]


def minimiser(loss, truth):
    """Log-probabilities of the logits that cost least, each label as often as the truth has it. Float64."""
    q, labels = torch.tensor(truth, dtype=torch.float64), torch.arange(len(truth))

    def cost(z):
        z = torch.tensor(z, requires_grad=True)
        value = (q * cross_entropy(z.expand(len(q), -1), labels, loss=loss, reduction="none", validate="off")).sum()
        return value.item(), torch.autograd.grad(value, z)[0].numpy()

    found = minimize(cost, 0.8 * np.log(truth), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert np.abs(cost(found.x)[1]).max() < 1e-6, "the minimum was not found, so nothing is shown"
    return torch.tensor(found.x).log_softmax(-1)


def counts(truth):
    return torch.arange(1, len(truth) + 1) * 10


@pytest.mark.parametrize("text", INVERTED)
@pytest.mark.parametrize("name", TRUTHS)
def test_the_truth_comes_back_from_the_numerical_minimiser(text, name):
    truth = torch.tensor(TRUTHS[name], dtype=torch.float64)
    loss = read_loss(text, counts(truth))
    said = minimiser(loss, TRUTHS[name])
    link = inverse_of(loss, len(truth))
    assert not link.missing
    assert not link.proper
    # A gradient of 1e-6 at worst moves p by that over the curvature, some 0.01.
    assert (link(said).exp() - truth).abs().max() < 2e-4
    assert (said.exp() - truth).abs().max() > 2e-3, "plain softmax would have passed as well"
    assert (inverse_of(Focal(6.0), len(truth))(said).exp() - truth).abs().max() > 2e-3, "so would another loss's link"


@pytest.mark.parametrize("text", ["nll", "brier", "nll + 0.5*brier", "nll + 0.001*logz", "focal(0)", "poly1(0)"])
@pytest.mark.parametrize("name", TRUTHS)
def test_proper_losses_have_the_truth_as_their_minimiser(text, name):
    loss = read_loss(text)
    said = minimiser(loss, TRUTHS[name])
    assert inverse_of(loss, said.numel()).proper
    assert (said.exp() - torch.tensor(TRUTHS[name])).abs().max() < 2e-4
    assert inverse_of(loss, said.numel())(said) is said


def test_rare_and_rarer_look_alike_to_a_loss_that_gives_classes_up():
    for text in ("taylor(3)", "gce(1)"):
        loss = read_loss(text)
        said = [minimiser(loss, [q, 1 - q]).exp()[0] for q in (0.2, 0.1)]
        assert max(said) < 1e-3
        assert "rare and rarer look alike" in inverse_of(loss, 2).missing


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hinge", "z = 1 above all others"),
        ("arcface", "angles"),
        ("gce(1)", "rare and rarer"),
        ("taylor(3)", "rare and rarer"),
        ("sce(0, 1)", "rare and rarer"),
        ("unlikelihood", "rare and rarer"),
        ("asymmetric", "surer than its margin"),
        ("nll + unlikelihood", "vanishes or turns"),
        ("nll + hinge", "z = 1 above all others"),
        ("confidence", "vanishes or turns"),
        ("smoothed(1)", "vanishes or turns"),
    ],
)
def test_losses_without_a_way_back_say_so_and_leave_softmax(text, why):
    link = inverse_of(read_loss(text), 3)
    assert why in link.missing
    assert link.missing.endswith(".")
    assert not link.proper
    said = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    assert link(said) is said


def forgotten():
    """Losses of compute that no recipe can ask for."""
    return set(losses.LOSSES) - set(PROPERTIES)


def test_a_loss_is_added_in_one_place_and_cannot_be_forgotten(monkeypatch):
    assert not forgotten()
    with monkeypatch.context() as without:
        without.delitem(PROPERTIES, Focal)
        assert forgotten() == {Focal}
    assert {LOSSES[known.name]: known.name for known in PROPERTIES.values() if known.name} == {
        loss: known.name for loss, known in PROPERTIES.items() if known.name
    }  # two of one name would be one
    assert [loss for loss, known in PROPERTIES.items() if not known.name] == [losses.ClassWeighted]
    assert set(LOSSES) - {known.name for known in PROPERTIES.values()} == {"bootstrapped_soft"}
    for loss, known in PROPERTIES.items():
        if known.name:
            assert (known.slopes is None) == (known.domain == "nowhere"), loss


def test_every_loss_is_proper_where_it_says_so():
    for loss, known in PROPERTIES.items():
        if loss in (losses.ClassWeighted, LogZ):
            continue
        made = read_loss(next(name for name, make in LOSSES.items() if make is loss), torch.tensor([1.0, 2.0]))
        assert inverse_of(made, 2).proper == known.proper


# Exact in both tails: against mpmath, from logits.


def exact(z, weigh):
    """log q for q ∝ weigh(p, 1 - p, log p), by 60 digits."""
    p, rest = oracle.probabilities(z), [oracle.others(z, k) for k in range(len(z))]
    parts = [weigh(a, b, mp.log(a) if a < 0.5 else mp.log1p(-b)) for a, b in zip(p, rest, strict=True)]
    # The greatest may be as near to 1 as the others leave it: its logarithm is that of 1 + others / own.
    return [float(-mp.log1p(mp.fsum(parts[:k] + parts[k + 1 :]) / part)) for k, part in enumerate(parts)]


TAILS = [[0.0, 40.0], [0.0, 100.0], [30.0, -20.0, 0.5], [0.1, 0.0, -0.1], [1e-9, 0.0], [200.0, 0.0, 0.0]]
LOCAL = {
    "focal(2)": lambda p, r, log: p / (r**2 - 2 * r * p * log),
    "gce(0.7)": lambda p, r, log: p ** mp.mpf(1 - 0.7),
    "sce(0.1, 1)": lambda p, r, log: p / (mp.mpf(0.1) + 4 * p),
    "poly1(-1)": lambda p, r, log: p / r,
    "poly1(2)": lambda p, r, log: p / (1 + 2 * p),
    "margin(1)": lambda p, r, log: p * (p * mp.exp(-1) + r),
}


@pytest.mark.parametrize("text", LOCAL)
@pytest.mark.parametrize("z", TAILS)
def test_links_keep_their_digits_where_p_is_near_0_and_1(text, z):
    from crossent.compute.distribution import of_measure

    link = inverse_of(read_loss(text), len(z))
    got = link(of_measure(torch.tensor(z, dtype=torch.float64)).log)
    truth = torch.tensor(exact(z, LOCAL[text]), dtype=torch.float64)
    # Errors of log p and log s, some ulp of numbers up to |z|, stand in the exponent of the greatest class's own log.
    allowed = 1e-15 * (8 + 8 * max(abs(v) for v in z))
    assert ((got - truth).abs() <= allowed * truth.abs().clamp(max=1.0) + 1e-15 * truth.abs()).all(), (got, truth)
    naive = torch.log(torch.tensor(z, dtype=torch.float64).softmax(-1))
    if max(z) - sorted(z)[-2] > 40:
        assert naive.max() == 0, "softmax and a logarithm would have lost it"
        assert got.max() < 0


def test_below_the_reach_of_smoothing_a_tenth_is_left():
    link = inverse_of(Smoothed(0.1), 2)
    p = torch.linspace(1e-4, 0.5, 400, dtype=torch.float64)
    got = link(torch.stack((p, 1 - p), -1).log()).exp()
    assert got.sum(-1).sub(1).abs().max() < 1e-14
    assert (got[1:, 0] > got[:-1, 0]).all(), "more said is more believed"
    inside = p > 0.05 / 0.9
    assert torch.allclose(got[inside, 0], (p[inside] - 0.05) / 0.9, rtol=1e-12, atol=0)
    below = p < 0.05
    odds = got[below, 0] / got[below, 1]
    assert (odds > 0.09 * (p / (1 - p))[below]).all()


def test_the_scale_of_a_loss_does_not_matter():
    log_p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64).log()
    assert torch.allclose(inverse_of(3 * Focal(2.0), 3)(log_p), inverse_of(Focal(2.0), 3)(log_p), rtol=1e-14, atol=0)
    mixed = NLL() + Brier() + 0.3 * Confidence() + GeneralisedCE(0.5)
    assert torch.allclose(inverse_of(2 * mixed, 3)(log_p), inverse_of(mixed, 3)(log_p), rtol=1e-13, atol=0)


def test_ldam_needs_a_slope_for_each_class():
    log_p = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    got = inverse_of(LDAM(torch.tensor([10_000, 1]), 1.0), 2)(log_p).exp()
    assert got[0, 0] > got[0, 1] + 0.05  # the rare class said as much as the other because its margin pushed it


def test_a_shape_of_any_depth():
    log_p = torch.randn(2, 3, 4, dtype=torch.float64).log_softmax(-1)
    link = inverse_of(Focal(2.0), 4)
    assert torch.equal(link(log_p)[1, 2], link(log_p[1, 2]))
    assert link(log_p).shape == log_p.shape


def test_the_guide_has_the_same_table():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "recipe.md").read_text()
    for name, make in LOSSES.items():
        if make in PROPERTIES:
            known = PROPERTIES[make]
            cells = ("yes" if known.proper else "no", known.minimiser, known.inverse, known.domain, known.source)
            assert f"| `{name}` | {' | '.join(cells)} |" in guide, name


def test_least_is_what_the_text_says():
    assert inverse.LEAST == 0.1
