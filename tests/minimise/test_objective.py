"""Objectives: what a batch costs, what the logits say, and what cannot be."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from crossent.compute import cross_entropy
from crossent.compute.codes import ContinuousBernoulli, Fraction, HLGauss, Ordinal, TwoHot
from crossent.compute.losses import NLL, Brier, Confidence, Focal, GeneralisedCE, Smoothed
from crossent.compute.target import Target
from crossent.errors import DataError
from crossent.measure import undo_shift
from crossent.minimise.data.task import Task
from crossent.minimise.objective.objective import Objective
from crossent.minimise.objective.spelling import LOSSES, read_loss, split
from tests.compare import bits, ulps
from tests.oracle import mp

THREE = Task("multi-class", ("a", "b", "c"), "")
TWO = Task("binary", ("no", "yes"), "")
RANGE = Task("range", (), "", 10.0, 20.0)
COUNTS = torch.tensor([60, 30, 10])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Classes.


def test_the_plain_objective_is_cross_entropy_to_the_bit():
    z, y = random(50, 3, dtype=torch.float32), torch.arange(50) % 3
    objective = Objective.of(THREE)
    assert objective.columns == 3
    assert objective.proper
    assert torch.equal(bits(objective.loss(z, y)), bits(cross_entropy(z, y, reduction="none")))
    assert not torch.equal(bits(objective.loss(z, y)), bits(cross_entropy(z + 1e-3 * z, y, reduction="none")))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mixture_of_weight_1_and_0_costs_what_the_label_costs_to_the_bit(name, dtype):
    """mixup that did not mix: the value to the bit, the gradient to the 4 ulp that cross_entropy promises."""
    objective = Objective.of(THREE, loss=name, prior=COUNTS)
    y, other = torch.arange(40) % 3, (torch.arange(40) + 1) % 3
    found = []
    for weights, index in (((1.0, 0.0), (y, other)), ((0.0, 1.0), (other, y)), ((0.75, 0.25), (y, other))):
        target = Target(torch.stack(index, -1), torch.tensor(weights).expand(40, 2))
        z = (3 * random(40, 3, dtype=dtype)).requires_grad_()
        value = objective.loss(z, target)
        value.sum().backward()
        found.append((value, z.grad))
    z = (3 * random(40, 3, dtype=dtype)).requires_grad_()
    plain = objective.loss(z, y)
    plain.sum().backward()
    for value, gradient in found[:2]:
        assert torch.equal(bits(value), bits(plain))
        assert ulps(gradient, z.grad, torch.maximum(z.grad.abs(), z.softmax(-1))) <= 4  # of the terms of a difference
    if name not in ("confidence", "logz"):  # which do not ask for the label
        assert not torch.allclose(found[2][0], plain)
        assert ulps(found[2][1], z.grad) > 1000


@pytest.mark.parametrize("name", ["nll", "focal(2)", "gce", "bootstrapped"])
def test_a_mixture_that_did_not_mix_keeps_the_digits_of_a_sure_row(name):
    objective = Objective.of(THREE, loss=name)
    found = []
    for target in (torch.tensor([0]), Target(torch.tensor([[0, 2]]), torch.tensor([[1.0, 0.0]]))):
        z = torch.tensor([[40.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
        value = objective.loss(z, target)
        value.sum().backward()
        found.append((value, z.grad))
    assert torch.equal(bits(found[0][0]), bits(found[1][0]))
    assert 0 < found[0][0].item() < 1e-16
    assert ulps(found[1][1], found[0][1]) <= 4


def test_soft_labels_and_sparse_ones_cost_the_expected_loss():
    q = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    z = random(1, 3)
    for name in ("nll", "focal(2)", "brier", "hinge", "gce", "smoothed(0.1)", "bootstrapped"):
        for cure in ("none", "weights"):
            objective = Objective.of(THREE, loss=name, imbalance=cure, prior=COUNTS)
            of_labels = objective.loss(z.expand(3, 3), torch.arange(3))
            weight = objective.imbalance.weight
            expected = (q * of_labels).sum(-1)
            got = objective.loss(z, q), objective.loss(z, Target(torch.tensor([[0, 1, 2]]), q))
            assert torch.allclose(torch.cat(got), expected.expand(2), rtol=1e-14, atol=0), (name, cure)
            if weight is not None:
                plain = Objective.of(THREE, loss=name, prior=COUNTS).loss(z, q)
                assert not torch.allclose(expected, plain, rtol=1e-3)


def test_members_are_rows_as_well():
    z, y, w = random(2, 5, 3), torch.tensor([0, 1, 2, 2, 1]), torch.rand(2, 5).double()
    objective = Objective.of(THREE, loss="focal(2)")
    got = objective.loss(z, y.expand(2, 5), w)
    for member in range(2):
        assert torch.equal(got[member], objective.loss(z[member], y, w[member]))
    assert torch.equal(got, objective.loss(z, y, w)), "one label for all members"
    log_p = objective.log_probabilities(z)
    assert torch.equal(log_p[1], objective.log_probabilities(z[1]))


def test_label_smoothing_is_undone_and_not_said_twice():
    objective = Objective.of(THREE, loss="focal(2)", label_smoothing=0.1)
    assert objective.function == Smoothed(0.1, Focal(2.0))
    assert not objective.proper
    with pytest.raises(DataError, match=r"smoothed twice: by the loss 'smoothed\(0.1\)' and by label_smoothing"):
        Objective.of(THREE, loss="smoothed(0.1)", label_smoothing=0.1)
    with pytest.raises(DataError, match="label_smoothing must be 0 or more and below 1, and is 1"):
        Objective.of(THREE, label_smoothing=1.0)


def test_log_probabilities_of_a_cure_are_those_of_the_shift_undone():
    z = random(20, 3)
    for cure in ("weights", "weights(0.5)", "balanced"):
        objective = Objective.of(THREE, imbalance=cure, prior=COUNTS)
        undone = undo_shift(class_weight=objective.imbalance.factor.tolist()).of_logits(z.numpy())
        assert torch.allclose(objective.log_probabilities(z), torch.from_numpy(undone), rtol=1e-12, atol=1e-14)
        assert (objective.log_probabilities(z) - objective.log_probabilities(z, raw=True)).abs().max() > 0.1
        assert not objective.proper
    adjusted = Objective.of(THREE, imbalance="logit_adjusted", prior=COUNTS)
    expected = (z + (COUNTS.double() / 100).log()).log_softmax(-1)
    assert torch.allclose(adjusted.log_probabilities(z), expected, rtol=0, atol=1e-14)
    y = torch.arange(20) % 3
    assert torch.allclose(adjusted.loss(z, y), -expected.gather(1, y[:, None])[:, 0], rtol=1e-13, atol=0)
    assert adjusted.proper


def test_the_log_score_of_classes_is_minus_the_cross_entropy():
    z, y = random(9, 3), torch.arange(9) % 3
    objective = Objective.of(THREE)
    assert torch.allclose(objective.log_score(z, y), -cross_entropy(z, y, reduction="none"), rtol=1e-14, atol=0)
    soft = torch.nn.functional.one_hot(y, 3).double()
    assert torch.equal(objective.log_score(z, soft), objective.log_score(z, y))


@pytest.mark.parametrize("cure", ["none", "weights", "balanced", "logit_adjusted"])
def test_training_starts_at_the_entropy_of_the_labels(cure):
    y = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    objective = Objective.of(THREE, imbalance=cure, prior=COUNTS)
    log_p = objective.log_probabilities(objective.starting_bias(y))
    entropy = -sum(p * math.log(p) for p in (0.6, 0.3, 0.1))
    # One row in a thousand is spread over the classes: about 2e-4 of each share, and the loss has no slope there.
    assert -log_p[y].mean() == pytest.approx(entropy, abs=1e-6)
    assert cross_entropy(torch.zeros(1000, 3), y).item() > entropy + 0.1


def test_the_start_counts_weights_and_soft_labels():
    y, w = torch.tensor([0, 1, 1]), torch.tensor([2.0, 1.0, 1.0])
    objective = Objective.of(TWO)
    assert objective.starting_bias(y, w)[0] == objective.starting_bias(y, w)[1]
    assert torch.equal(objective.starting_bias(torch.eye(2)[y]), objective.starting_bias(y))
    assert objective.starting_bias(y)[0] < objective.starting_bias(y)[1]


# A range.

CODES = ["fraction", "mse", "mae", "continuous_bernoulli", "hlgauss(40)", "twohot(21)", "ordinal"]


def shares(n=400, seed=3):
    """Shares that are whole numbers of a range of 10, so that any code takes them; leaning to one side."""
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)).square() * 10).round() / 10


@pytest.mark.parametrize(
    ("code", "same"),
    [
        ("fraction", Fraction(10.0, 20.0)),
        ("continuous_bernoulli", ContinuousBernoulli(0.0, 1.0)),
        ("hlgauss(40, 1.5)", HLGauss(10.0, 20.0, 40, 1.5)),
        ("twohot(21)", TwoHot(10.0, 20.0, 21)),
        ("ordinal", Ordinal(10, 20)),
    ],
)
def test_the_loss_of_a_code_is_the_codes_own(code, same):
    objective, f = Objective.of(RANGE, code=code), shares()
    z = random(len(f), objective.columns)
    y = f if "bernoulli" in code else (10 + 10 * f.double()).round()
    f = f.double().mul(10).round().div(10)
    y = f if "bernoulli" in code else y
    assert objective.columns == same.columns
    assert torch.allclose(objective.loss(z, f), same.loss(z, y, reduction="none"), rtol=1e-9, atol=1e-12)


def test_errors_of_a_sigmoid():
    z, f = random(30, 1), torch.rand(30).double()
    m = torch.sigmoid(z[:, 0])
    assert torch.allclose(Objective.of(RANGE, code="mse").loss(z, f), (m - f) ** 2, rtol=1e-14, atol=0)
    assert torch.allclose(Objective.of(RANGE, code="mae").loss(z, f), (m - f).abs(), rtol=1e-14, atol=0)
    # Squared error is the Brier score of the share as a coin, halved, but for what the share costs by itself.
    brier = Objective.of(RANGE, loss="brier").loss(z, f) / 2 - f * (1 - f)
    assert torch.allclose(Objective.of(RANGE, code="mse").loss(z, f), brier, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_probabilities_of_a_range_are_two_that_add_up(code, dtype):
    objective = Objective.of(RANGE, code=code)
    z = 4 * random(2, 30, objective.columns, dtype=dtype)
    log_p = objective.log_probabilities(z)
    assert log_p.shape == (2, 30, 2)
    assert log_p.dtype == torch.float64
    assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-14
    expected = objective.expected(z)
    assert torch.allclose(expected, 10 + 10 * log_p[..., 1].exp(), rtol=1e-14, atol=0)
    if code not in ("mse", "mae"):
        assert torch.allclose(expected, objective.code.mean(z.double()), rtol=1e-13, atol=0)


@pytest.mark.parametrize("z", [-600.0, -40.0, -1e-3, 0.0, 3.0, 50.0, 300.0])
@pytest.mark.parametrize("code", ["fraction", "mse", "continuous_bernoulli"])
def test_a_share_near_0_or_1_keeps_its_digits(code, z):
    got = Objective.of(RANGE, code=code).log_probabilities(torch.tensor([[z]], dtype=torch.float64))[0]
    x = mp.mpf(z)
    if code == "continuous_bernoulli":
        # The mean distance from the lower end, and that from the upper: A'(x) and A'(-x).
        m, rest = (mp.mpf(1) / 2,) * 2 if z == 0 else (1 - 1 / v + 1 / mp.expm1(v) for v in (x, -x))
    else:
        m, rest = 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
    logs = (float(mp.log(a) if a < 0.5 else mp.log1p(-b)) for a, b in ((rest, m), (m, rest)))
    truth = torch.tensor(list(logs), dtype=torch.float64)
    assert torch.allclose(got, truth, rtol=1e-14, atol=0), (got, truth)
    if abs(z) >= 40 and code != "continuous_bernoulli":
        assert torch.sigmoid(torch.tensor(abs(z), dtype=torch.float64)).log() == 0


def test_a_share_of_bins_near_an_end_keeps_its_digits():
    z = torch.tensor([[80.0] + [0.0] * 20], dtype=torch.float64)
    got = Objective.of(RANGE, code="twohot(21)").log_probabilities(z)[0]
    total = mp.exp(80) + 20
    m = mp.fsum(mp.mpf(k) / 20 for k in range(21)) / total
    assert got[1].item() == pytest.approx(float(mp.log(m)), rel=1e-14)
    assert got[0].item() == pytest.approx(float(mp.log1p(-m)), rel=1e-12)
    assert got[0] < 0


@pytest.mark.parametrize("code", ["fraction", "mse", "continuous_bernoulli"])
def test_one_logit_learns_the_mean_and_absolute_error_the_median(code):
    f = shares().double()

    def best(code):
        objective = Objective.of(RANGE, code=code)

        def cost(z):
            return objective.loss(torch.full((len(f), 1), z, dtype=torch.float64), f).mean().item()

        at = minimize_scalar(cost, bounds=(-8, 8), method="bounded", options={"xatol": 1e-10}).x
        return objective.expected(torch.tensor([[at]], dtype=torch.float64)).item()

    mean = 10 + 10 * f.mean().item()
    assert best(code) == pytest.approx(mean, abs=1e-5)  # near a minimum a cost known to 1e-16 places z to 1e-8
    median = 10 + 10 * f.median().item()
    assert best("mae") == pytest.approx(median, abs=1e-5)
    assert abs(mean - median) > 0.1


@pytest.mark.parametrize("code", CODES)
def test_training_of_a_range_starts_at_the_mean(code):
    f = shares(4000)
    objective = Objective.of(RANGE, code=code)
    bias = objective.starting_bias(f)
    assert bias.shape == (objective.columns,)
    # One row in four thousand is added; HLGauss sees labels at the ends blurred to the inside, a bin is 0.25.
    allowed = 0.08 if code.startswith("hlgauss") else 0.003
    assert objective.expected(bias).item() == pytest.approx(10 + 10 * f.double().mean().item(), abs=allowed)
    assert objective.starting_bias(f, (f > 0.5).float() + 1e-3).sum() != bias.sum()


@pytest.mark.parametrize("code", ["continuous_bernoulli", "hlgauss(30)"])
def test_a_density_integrates_to_one_in_the_unit_of_the_target(code):
    objective = Objective.of(RANGE, code=code)
    z = random(1, objective.columns)
    f = (torch.arange(30_000, dtype=torch.float64) + 0.5) / 30_000
    density = objective.log_score(z.expand(30_000, -1), f).exp()
    assert density.mean().item() * 10 == pytest.approx(1.0, abs=1e-6)  # the midpoint rule, on a range of 10
    low, high = objective.interval(z, 0.8)
    inside = (10 + 10 * f >= low) & (10 + 10 * f <= high)
    assert (density * inside).mean().item() * 10 == pytest.approx(0.8, abs=1e-3)
    assert objective.quantile(z, 0.5).item() > low


def test_a_score_of_levels_is_a_mass():
    objective = Objective.of(RANGE, code="ordinal")
    z = random(1, 10)
    mass = objective.log_score(z.expand(11, -1), torch.arange(11) / 10).exp()
    assert mass.sum().item() == pytest.approx(1.0, abs=1e-14)


def test_the_link_of_a_loss_reaches_the_mean_the_interval_and_the_score_of_bins():
    plain = Objective.of(RANGE, code="hlgauss(30)")
    focal = Objective.of(RANGE, code="hlgauss(30)", loss="focal(3)")
    z = 2 * random(4, 30)
    f = torch.full((4,), 0.33, dtype=torch.float64)
    linked = focal.link(z.log_softmax(-1))
    assert torch.allclose(focal.log_probabilities(z), plain.log_probabilities(linked), rtol=1e-13, atol=0)
    assert torch.allclose(focal.quantile(z, 0.3), plain.quantile(linked, 0.3))
    assert torch.allclose(focal.log_score(z, f), plain.log_score(linked, f))
    assert torch.equal(focal.log_probabilities(z, raw=True), plain.log_probabilities(z))
    assert not torch.allclose(focal.log_score(z, f), plain.log_score(z, f), rtol=1e-3)


def test_a_loss_of_a_fraction_is_that_of_a_coin():
    z, f = random(30, 1), torch.rand(30).double()
    got = Objective.of(RANGE, loss="focal(2)").loss(z, f)
    two = torch.cat((torch.zeros_like(z), z), -1)
    expected = cross_entropy(two, torch.stack((1 - f, f), -1), loss=Focal(2.0), reduction="none")
    assert torch.allclose(got, expected, rtol=1e-13, atol=0)


# What cannot be.


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"code": "fractoin"}, "'fractoin' in the code 'fractoin' is no code; did you mean 'fraction'"),
        (
            {"code": "hlgauss(1)"},
            r"the code 'hlgauss\(1\)' is not possible: HLGauss needs a whole number of at least 2",
        ),
        ({"code": "hlgauss(bin=10)"}, "has no argument 'bin'; did you mean 'bins'"),
        ({"code": "twohot(5.5)"}, "'bins' of 'twohot' should be a whole number, and is 5.5"),
        ({"code": "mse", "loss": "focal(2)"}, "'mse' has a loss of its own, the squared error: leave loss"),
        ({"code": "ordinal", "label_smoothing": 0.1}, "'ordinal' has a loss of its own"),
        ({"imbalance": "weights"}, "is for classes, and the target is a number in a range"),
    ],
)
def test_settings_of_a_range_that_cannot_be(settings, sentence):
    with pytest.raises(DataError, match=sentence):
        Objective.of(RANGE, **settings)


def test_levels_have_to_be_whole():
    with pytest.raises(DataError, match=r"whole numbers from low to high; got 0\.5 and 1\.5"):
        Objective.of(Task("range", (), "", 0.5, 1.5), code="ordinal")
    objective = Objective.of(RANGE, code="ordinal")
    with pytest.raises(DataError, match=r"1 targets are none, first at row 1: 13.3"):
        objective.loss(random(2, 10), torch.tensor([0.1, 0.33]))
    wide = Objective.of(Task("range", (), "", 0.0, 5000.0), code="ordinal")
    f = torch.arange(5001).float() / 5000  # shares in float32 are still whole levels
    assert torch.equal(wide._levels(wide.code, f), torch.arange(5001).double())


@pytest.mark.parametrize("code", ["fraction", "mse", "mae"])
def test_codes_of_a_mean_have_no_interval_and_no_score(code):
    objective = Objective.of(RANGE, code=code)
    z = random(3, 1)
    with pytest.raises(TypeError, match="has no median, quantiles or intervals: it"):
        objective.interval(z)
    with pytest.raises(TypeError, match="has no log_prob: it"):
        objective.log_score(z, torch.rand(3))


def test_the_target_of_a_range_is_a_share():
    with pytest.raises(TypeError, match="the share of it, a float"):
        Objective.of(RANGE).loss(random(2, 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"1\.5"):
        Objective.of(RANGE).loss(random(2, 1), torch.tensor([0.0, 1.5]))


# Spelling.


def test_losses_by_name_place_and_sum():
    assert read_loss("smoothed(0.1, focal(3), over=others)") == Smoothed(0.1, Focal(3.0), "others")
    assert read_loss(" focal ( gamma = 1.5 ) ") == Focal(1.5)
    assert read_loss("nll - 1e-2*confidence") == NLL() + -0.01 * Confidence()
    assert read_loss("0.5*gce(.7) + 2*brier") == 0.5 * GeneralisedCE(0.7) + 2 * Brier()
    assert read_loss("sce(0.1, 1, A=-6)").A == -6.0
    assert split("nll,smoothed(0.1, focal(2)) , hinge") == ["nll", "smoothed(0.1, focal(2))", "hinge"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("focall(2)", "did you mean 'focal'"),
        ("log_loss", "did you mean 'nll'"),
        ("GeneralisedCE", "did you mean 'gce'"),
        ("zzz", r"is no loss\. There are nll, smoothed"),
        ("focal(gama=2)", "no argument 'gama'; did you mean 'gamma'.*It takes gamma"),
        ("nll(2)", "'nll' takes no arguments, and 'nll\\(2\\)' gives it 1"),
        ("focal(1, 2)", "takes at most 1"),
        ("focal(1, gamma=2)", "by place and by name"),
        ("focal(gamma=2, gamma=2)", "names 'gamma' twice"),
        ("sce(alpha=1, 2)", "named argument, after others"),
        ("focal(-1)", "not possible: gamma must be 0 or more"),
        ("focal(two)", "'gamma' of 'focal' should be a number, and is 'two'"),
        ("focal(1e999)", "'gamma' of 'focal' should be a number, and is inf"),
        ("smoothed(0.1, over=3)", "'over' of 'smoothed' should be a word, and is 3"),
        ("smoothed(0.1, 3)", "'loss' of 'smoothed' should be a loss, and is 3"),
        ("taylor(2.5)", "'order' of 'taylor' should be a whole number, and is 2.5"),
        ("focal(2", "should go on with a comma or a closing bracket, and there is its end"),
        ("focal(2))", r"should go on with nothing, and there is '\)'"),
        ("2 nll", r"should go on with \* and a loss, and there is 'nll'"),
        ("nll +", "should go on with the name of a loss, and there is its end"),
        ("", "should go on with the name of a loss, and there is its end"),
        ("nll; import os", r"cannot be read from '; import os' on"),
        ("__import__(os)", "is no loss"),
        ("ldam", "needs to know how many training rows each class has"),
    ],
)
def test_what_is_no_loss_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(DataError, match=sentence):
        read_loss(text)


def test_a_loss_has_to_be_text():
    with pytest.raises(DataError, match="spelt as text, and Focal"):
        read_loss(Focal(2.0))


def test_every_loss_trains_and_says_probabilities():
    for name in LOSSES:
        objective = Objective.of(THREE, loss=name, prior=COUNTS)
        z = (5 * random(6, 3, dtype=torch.float32)).requires_grad_()
        objective.loss(z, torch.arange(6) % 3).sum().backward()
        assert z.grad.isfinite().all()
        log_p = objective.log_probabilities(z)
        assert log_p.isfinite().all()
        assert not log_p.requires_grad
        assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-14


def test_extreme_logits_stay_finite():
    z = torch.tensor([[0.0, 500.0, -700.0], [800.0, 0.0, 0.0]], dtype=torch.float64)
    for name in LOSSES:
        log_p = Objective.of(THREE, loss=name, prior=COUNTS).log_probabilities(z)
        assert not log_p.isnan().any(), name
        assert (log_p.exp().sum(-1) - 1).abs().max() < 1e-14, name


class Saying(torch.nn.Module):
    """What is exported: a network and its way back."""

    def __init__(self, objective):
        super().__init__()
        self.objective, self.head = objective, torch.nn.Linear(4, objective.columns)

    def forward(self, x):
        return self.objective.log_probabilities(self.head(x))


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        (THREE, {"loss": "focal(2)", "imbalance": "weights"}),
        (THREE, {"loss": "smoothed(0.1) + 0.1*confidence", "imbalance": "logit_adjusted"}),
        (RANGE, {"code": "continuous_bernoulli"}),
        (RANGE, {"code": "ordinal"}),
    ],
)
def test_the_way_back_is_exported_with_the_network(task, settings):
    torch.manual_seed(0)
    prior = COUNTS if task is THREE else None
    module = Saying(Objective.of(task, prior=prior, **settings)).eval()
    rows = {0: torch.export.Dim("n")}
    exported = torch.export.export(module, (torch.randn(5, 4),), dynamic_shapes=(rows,)).module()
    x = 3 * torch.randn(9, 4)
    assert (exported(x) - module(x)).abs().max() < 1e-12
    assert (exported(x) - exported(-x)).abs().max() > 1e-2
