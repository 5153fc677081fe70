"""Codes: every loss, gradient and decoded figure against mpmath, where they are easy and where they break."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath as mp
import pytest
import torch
from torch import Tensor

from crossent.compute.codes import CODES, Code, ContinuousBernoulli, Fraction, HLGauss, Ordinal, TwoHot
from tests.compare import faults, ulps

mp.mp.dps = 60

EPS = torch.finfo(torch.float64).eps
LOW, HIGH = -20.0, 30.0
EXAMPLES: dict[type[Code], Code] = {
    Fraction: Fraction(LOW, HIGH),
    ContinuousBernoulli: ContinuousBernoulli(LOW, HIGH),
    TwoHot: TwoHot(LOW, HIGH, bins=11),
    HLGauss: HLGauss(LOW, HIGH, bins=25),
    Ordinal: Ordinal(-2, 3),
}
DENSITIES = [ContinuousBernoulli, HLGauss]
POINTS = [TwoHot, Ordinal]
LEVELS = [0.001, 0.05, 0.25, 0.5, 0.9, 0.999]


def labels(code: Code, n: int, seed: int = 0) -> Tensor:
    f = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = code.low + (code.high - code.low) * f
    return y.round() if isinstance(code, Ordinal) else y


def logits(code: Code, n: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(n, code.columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share(code: Code, y: float) -> mp.mpf:
    return (mp.mpf(y) - mp.mpf(code.low)) / (mp.mpf(code.high) - mp.mpf(code.low))


def sigmoid(z: float) -> mp.mpf:
    return 1 / (1 + mp.exp(-mp.mpf(z)))


def softmax(z: list[float]) -> list[mp.mpf]:
    power = [mp.exp(mp.mpf(v)) for v in z]
    return [v / mp.fsum(power) for v in power]


def masses(code: Code, z: list[float]) -> list[mp.mpf]:
    """The probabilities of points or bins: of Ordinal as the paper multiplies them, P(y > k) - P(y > k - 1)."""
    if not isinstance(code, Ordinal):
        return softmax(z)
    exceeds = [mp.mpf(1), *(mp.fprod(sigmoid(v) for v in z[: k + 1]) for k in range(len(z))), mp.mpf(0)]
    return [a - b for a, b in pairwise(exceeds)]


def normal_target(code: HLGauss, y: float) -> list[mp.mpf]:
    """All bins, not only those near y: the truth of the window too."""
    step = (mp.mpf(code.high) - mp.mpf(code.low)) / code.bins
    edges = [mp.mpf(code.low) + i * step for i in range(code.bins + 1)]
    below = [mp.ncdf((edge - mp.mpf(y)) / (mp.mpf(code.sigma) * step)) for edge in edges]
    return [(b - a) / (below[-1] - below[0]) for a, b in pairwise(below)]


def bernoulli_constant(p: mp.mpf) -> mp.mpf:
    """C(λ) as Loaiza-Ganem & Cunningham write it."""
    return mp.mpf(2) if p == mp.mpf(1) / 2 else 2 * mp.atanh(1 - 2 * p) / (1 - 2 * p)


def true_loss(code: Code, z: list[float], y: float) -> mp.mpf:
    f = share(code, y)
    if isinstance(code, Fraction):
        return -f * mp.log(sigmoid(z[0])) - (1 - f) * mp.log(sigmoid(-z[0]))
    if isinstance(code, ContinuousBernoulli):
        p, q = sigmoid(z[0]), sigmoid(-z[0])
        return -f * mp.log(p) - (1 - f) * mp.log(q) - mp.log(bernoulli_constant(p))
    p = masses(code, z)
    if isinstance(code, Ordinal):
        return -mp.log(p[int(y) - int(code.low)])
    if isinstance(code, HLGauss):
        q = normal_target(code, y)
    else:
        hats = [1 - abs(f * (code.columns - 1) - i) for i in range(code.columns)]
        q = [max(hat, mp.mpf(0)) for hat in hats]
    return -mp.fsum(a * mp.log(b) for a, b in zip(q, p, strict=True))


def true_mean(code: Code, z: list[float]) -> mp.mpf:
    if isinstance(code, Fraction):
        f = sigmoid(z[0])
    elif isinstance(code, ContinuousBernoulli):
        p = sigmoid(z[0])
        f = mp.mpf(1) / 2 if z[0] == 0 else p / (2 * p - 1) + 1 / (2 * mp.atanh(1 - 2 * p))
    else:
        p = masses(code, z)
        place = [
            (i + mp.mpf(1) / 2) / len(p) if isinstance(code, HLGauss) else mp.mpf(i) / (len(p) - 1)
            for i in range(len(p))
        ]
        f = mp.fsum(a * b for a, b in zip(p, place, strict=True))
    return mp.mpf(code.low) + (mp.mpf(code.high) - mp.mpf(code.low)) * f


def true_quantile(code: Code, z: list[float], level: float) -> mp.mpf:
    level = mp.mpf(level)
    if isinstance(code, ContinuousBernoulli):
        p, q = sigmoid(z[0]), sigmoid(-z[0])
        # F(x) = (p^x q^(1-x) + p - 1) / (2p - 1), solved for x
        f = level if z[0] == 0 else mp.log((level * (2 * p - 1) + 1 - p) / q) / mp.log(p / q)
    else:
        p = masses(code, z)
        i = next(i for i in range(len(p)) if mp.fsum(p[: i + 1]) >= level)
        before, mass = mp.fsum(p[:i]), p[i]
        f = (i + (level - before) / mass) / len(p) if isinstance(code, HLGauss) else mp.mpf(i) / (len(p) - 1)
    return mp.mpf(code.low) + (mp.mpf(code.high) - mp.mpf(code.low)) * f


def test_every_code_has_its_example_here() -> None:
    assert set(EXAMPLES) == set(CODES)


@pytest.mark.parametrize("kind", CODES)
def test_loss_and_its_gradient_are_those_of_the_formula(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z, y = logits(code, 8), labels(code, 8)
    z.requires_grad_()
    value = code.loss(z, y, reduction="none")
    (dz,) = torch.autograd.grad(value.sum(), z)
    rows = z.detach().tolist()
    truth = [float(true_loss(code, row, label)) for row, label in zip(rows, y.tolist(), strict=True)]
    # A dozen float64 operations on terms of the size of the loss or of 1.
    assert ulps(value.detach(), truth, torch.tensor(truth).abs().clamp(min=1)) <= 16
    assert ulps(1.0001 * value.detach(), truth, torch.tensor(truth).abs().clamp(min=1)) > 1e6

    step = mp.mpf(10) ** -20
    exact = torch.zeros_like(dz)
    for i, row in enumerate(rows):
        for j in range(code.columns):
            ends = [[mp.mpf(v) + sign * step * (k == j) for k, v in enumerate(row)] for sign in (1, -1)]
            up, down = (true_loss(code, end, y[i].item()) for end in ends)
            exact[i, j] = float((up - down) / (2 * step))
    size = torch.ones_like(exact)  # p - q: exact to the rounding of its terms, which are at most 1
    assert ulps(dz, exact, size) <= 16
    for fault, wrong in faults(dz):
        if not torch.equal(wrong, dz):
            assert ulps(wrong, exact, size) > 1e6, fault
    assert torch.autograd.gradcheck(lambda z: code.loss(z, y), z)
    assert torch.autograd.gradgradcheck(lambda z: code.loss(z, y), z)


@pytest.mark.parametrize("kind", CODES)
def test_mean_is_that_of_the_formula(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 8, seed=1)
    truth = [float(true_mean(code, row)) for row in z.tolist()]
    assert ulps(code.mean(z), truth, torch.full((8,), HIGH)) <= 8
    assert ulps(code.mean(z.flip(0)), truth, torch.full((8,), HIGH)) > 1e6
    assert torch.autograd.gradcheck(code.mean, z.requires_grad_())


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind is not Fraction])
def test_quantiles_are_those_of_the_formula(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 8, seed=2)
    for level in LEVELS:
        truth = [float(true_quantile(code, row, level)) for row in z.tolist()]
        got = code.quantile(z, level)
        # The slope of a quantile is 1 / density: in the emptiest bin hit here it magnifies rounding a hundredfold.
        torch.testing.assert_close(got, torch.tensor(truth, dtype=torch.float64), rtol=0, atol=2000 * EPS * HIGH)
        if kind in DENSITIES:
            torch.testing.assert_close(
                code.cdf(z, got), torch.full((8,), level, dtype=torch.float64), rtol=0, atol=1e-13
            )
            assert not torch.allclose(
                code.cdf(z, got + 0.01), torch.full((8,), level, dtype=torch.float64), rtol=0, atol=1e-13
            )
        else:
            assert bool((code.cdf(z, got) >= level).all())
            assert bool((code.cdf(z, got - 1e-6) < level).all())
    assert torch.equal(code.median(z), code.quantile(z, 0.5))
    low, high = code.interval(z, 0.8)
    assert torch.allclose(low, code.quantile(z, 0.1))
    assert torch.allclose(high, code.quantile(z, 0.9))
    assert bool((low < code.median(z)).all() if kind in DENSITIES else (low <= high).all())


@pytest.mark.parametrize("kind", [kind for kind in CODES if kind is not Fraction])
def test_cdf_rises_from_0_to_1(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 5, seed=3)
    rise = torch.stack([code.cdf(z, at) for at in torch.linspace(code.low - 1, code.high + 1, 200).tolist()])
    assert bool((rise.diff(dim=0) >= 0).all())
    assert torch.equal(rise[0], torch.zeros(5).double())
    torch.testing.assert_close(rise[-1], torch.ones(5).double(), rtol=0, atol=4 * EPS)
    assert code.cdf(z, math.nan).isnan().all()
    thresholds = labels(code, 5)
    one_by_one = torch.stack([code.cdf(z[i : i + 1], thresholds[i].item())[0] for i in range(5)])
    torch.testing.assert_close(code.cdf(z, thresholds), one_by_one, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("kind", DENSITIES)
def test_log_prob_is_the_log_of_the_slope_of_the_cdf(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z, y = logits(code, 6, seed=4), labels(code, 6, seed=4)
    slope = (code.cdf(z, y + 1e-5) - code.cdf(z, y - 1e-5)) / 2e-5
    torch.testing.assert_close(code.log_prob(z, y).exp(), slope, rtol=1e-8, atol=EPS / 1e-5)
    assert not torch.allclose(code.log_prob(z, y.flip(0)).exp(), slope, rtol=1e-3, atol=0)
    other = type(code)(2 * LOW, 2 * HIGH, *([code.bins] if isinstance(code, HLGauss) else []))
    torch.testing.assert_close(other.log_prob(z, 2 * y), code.log_prob(z, y) - math.log(2), rtol=1e-12, atol=0)


def test_log_prob_of_levels_are_masses_that_sum_to_1() -> None:
    code = EXAMPLES[Ordinal]
    z = logits(code, 3)
    total = sum(code.log_prob(z, torch.full((3,), level)).exp() for level in range(-2, 4))
    torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=8 * EPS)
    assert torch.equal(code.log_prob(z, labels(code, 3)), -code.loss(z, labels(code, 3), reduction="none"))


@pytest.mark.parametrize("kind", DENSITIES)
def test_the_ends_have_a_density_too(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 2)
    ends = torch.tensor([LOW, HIGH], dtype=torch.float64)
    inside = torch.tensor([LOW + 1e-9, HIGH - 1e-9], dtype=torch.float64)
    torch.testing.assert_close(code.log_prob(z, ends), code.log_prob(z, inside), rtol=0, atol=1e-9)


def test_a_quantile_on_points_is_the_first_point_that_reaches_the_level() -> None:
    assert TwoHot(0.0, 1.0, bins=2).median(torch.zeros(1, 2)) == 0  # exactly half lies at 0
    narrow = TwoHot(0.1, 0.7, bins=7)  # points that float32 does not know
    z = logits(narrow, 50).float()
    assert bool((narrow.cdf(z, narrow.median(z)) >= 0.5).all())
    assert not bool((narrow.cdf(z, narrow.median(z).double()) >= 0.5).all())


# The continuous Bernoulli where formulas break: at 0, beside it, and far out.

SLOPES = [0.0, 5e-324, 1e-300, 1e-31, 1e-20, 1e-9, 1e-4, 0.1, 0.99, 1.0, 1.01, 5.0, 36.0, 90.0, 699.0, 710.0, 1e4, 1e9]


@pytest.mark.parametrize("f", [0.0, 1e-12, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_continuous_bernoulli_keeps_its_digits_everywhere(f: float, sign: int) -> None:
    code = ContinuousBernoulli(0.0, 1.0)
    slopes = [sign * v for v in SLOPES]
    z = torch.tensor(slopes, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    y = torch.full((len(slopes),), f, dtype=torch.float64)
    value = code.loss(z, y, reduction="none")
    (dz,) = torch.autograd.grad(value.sum(), z)
    loss, size, mean = [], [], []
    for v in slopes:
        # e^z and the density as it is defined; the formula in λ needs as many digits as 1 - λ has zeros.
        v = mp.mpf(v)
        with mp.workdps(700):
            area = mp.mpf(1) if v == 0 else mp.expm1(v) / v
            loss.append(float(mp.log(area) - v * mp.mpf(f)))
            mean.append(mp.mpf("0.5") if v == 0 else mp.exp(v) / mp.expm1(v) - 1 / v)
            distance = 1 - mp.mpf(f) if v >= 0 else mp.mpf(f)
            size.append(float(abs(v) * distance + abs(mp.log(area) - max(v, 0))))
    assert ulps(value.detach(), loss, size) <= 4
    assert ulps(code.mean(z.detach()), [float(m) for m in mean]) <= (4 if sign < 0 else 1)
    exact = [float(m - mp.mpf(f)) for m in mean]
    # mean - f is a difference of two numbers below 1; next to it nothing else is rounded.
    assert ulps(dz.squeeze(-1), exact, [max(abs(float(m)), f) for m in mean]) <= 4
    assert ulps(-dz.squeeze(-1), exact, [max(abs(float(m)), f) for m in mean]) > 1e6


def test_the_usual_formula_fails_where_ours_does_not() -> None:
    code = ContinuousBernoulli(0.0, 1.0)
    z = torch.tensor([[1e-7], [40.0]], dtype=torch.float64)
    p = torch.sigmoid(z.squeeze(-1))
    usual = p / (2 * p - 1) + 1 / (2 * torch.atanh(1 - 2 * p))
    truth = [float(true_mean(code, [1e-7])), float(1 - mp.mpf(1) / 40)]
    assert ulps(code.mean(z), truth) <= 1
    assert ulps(usual[:1], truth[:1]) > 1e6
    assert not usual[1].isfinite() or ulps(usual[1:], truth[1:]) > 1e6


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sign", [1, -1])
def test_continuous_bernoulli_quantiles_everywhere(level: float, sign: int) -> None:
    code = ContinuousBernoulli(0.0, 1.0)
    slopes = [sign * v for v in SLOPES]
    z = torch.tensor(slopes, dtype=torch.float64).unsqueeze(-1)
    truth = []
    for v in slopes:
        with mp.workdps(700):
            truth.append(float(level if v == 0 else mp.log1p(mp.mpf(level) * mp.expm1(mp.mpf(v))) / mp.mpf(v)))
    # 1 - level carries half an ulp of 1, and the quantile's slope is at most 1 / min(level, 1 - level) there.
    tolerance = 4 * EPS / min(level, 1 - level)
    torch.testing.assert_close(
        code.quantile(z, level), torch.tensor(truth, dtype=torch.float64), rtol=tolerance, atol=0
    )
    assert torch.equal(code.quantile(z, level).sort(descending=sign < 0).values, code.quantile(z, level))


def test_continuous_bernoulli_is_torchs_where_that_is_right() -> None:
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    peer = torch.distributions.ContinuousBernoulli(logits=z)
    code, y = ContinuousBernoulli(0.0, 1.0), torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(code.log_prob(z.unsqueeze(-1), y), peer.log_prob(y), rtol=0, atol=1e-5)
    torch.testing.assert_close(code.mean(z.unsqueeze(-1)), peer.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(code.cdf(z.unsqueeze(-1), y), peer.cdf(y), rtol=0, atol=1e-5)
    assert not torch.allclose(code.log_prob(-z.unsqueeze(-1), y), peer.log_prob(y), rtol=0, atol=1e-2)


def test_infinite_logits_are_points_at_the_ends() -> None:
    code = ContinuousBernoulli(0.0, 10.0)
    z = torch.tensor([[torch.inf], [-torch.inf]], requires_grad=True)
    assert code.mean(z).tolist() == code.median(z).tolist() == [10.0, 0.0]
    assert code.cdf(z, 0.0).tolist() == [0.0, 1.0]
    assert code.cdf(z, 10.0).tolist() == [1.0, 1.0]
    assert code.loss(z, torch.tensor([4.0, 4.0]), reduction="none").tolist() == [torch.inf, torch.inf]
    assert code.loss(z, torch.tensor([10.0, 0.0]), reduction="none").tolist() == [-torch.inf, -torch.inf]
    (dz,) = torch.autograd.grad(code.loss(z, torch.tensor([4.0, 4.0]), reduction="sum"), z)
    torch.testing.assert_close(dz, torch.tensor([[0.6], [-0.4]]))
    sure = torch.tensor([[torch.inf, torch.inf, -torch.inf, torch.nan, torch.nan]], requires_grad=True)
    ordinal = Ordinal(0, 5)
    value = ordinal.loss(sure, torch.tensor([2]))
    (dz,) = torch.autograd.grad(value, sure)
    assert value == 0
    assert dz.tolist() == [[0.0] * 5]  # the last two questions are not asked, so their NaN is not read
    assert ordinal.loss(sure, torch.tensor([3])).isnan()


@pytest.mark.parametrize("kind", CODES)
def test_nan_logits_make_nan_in_their_own_row(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 3)
    z[1] = torch.nan
    found = [code.mean(z), code.loss(z, labels(code, 3), reduction="none")]
    if kind is not Fraction:
        found += [code.median(z), *code.interval(z), code.cdf(z, 0.0)]
    for figure in found:
        assert figure.isnan().tolist() == [False, True, False]


# Histograms.


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 0.75, 3.0, 100.0])
@pytest.mark.parametrize("y", [LOW, LOW + 1.9, 0.0, 7.3, HIGH - 1e-9, HIGH])
def test_window_masses_keep_their_digits(sigma: float, y: float) -> None:
    code = HLGauss(LOW, HIGH, bins=25, sigma=sigma)
    target = code.encode(torch.tensor([y], dtype=torch.float64))
    with mp.workdps(60):
        truth = torch.tensor([float(q) for q in normal_target(code, y)], dtype=torch.float64)
    index, weight = target.index[0], target.weight[0]
    near = truth[index]
    # The place of y among 25 bins is rounded three times, and log erfc moves by up to 8.3 / sigma times that; in narrow
    # bins a difference of two values loses a factor of sigma.
    tolerance = (100 + 8 * sigma + 1.5 * 25 * 8.3 / sigma) * EPS
    close = ((weight - near).abs() <= tolerance * near) | (near < 1e-17)
    assert close.all()
    assert truth.sum() - near.sum() <= EPS  # what the window leaves out
    assert weight.sum().item() == pytest.approx(1, abs=4 * EPS)
    if sigma == 0.75 and y == LOW:  # the difference of two values of the cdf, as it is usually taken
        edges = (code.edges - y) / 1.5
        usual = torch.special.ndtr(edges).diff() / (torch.special.ndtr(edges[-1]) - torch.special.ndtr(edges[0]))
        assert not (((usual[index] - near).abs() <= tolerance * near) | (near < 1e-17)).all()


def test_a_blurred_label_keeps_its_mean_but_not_at_the_ends() -> None:
    code = HLGauss(LOW, HIGH, bins=25)
    y = torch.linspace(LOW + 12, HIGH - 12, 101, dtype=torch.float64)
    width = 2.0

    def mean(y: Tensor) -> Tensor:
        target = code.encode(y)
        centre = (code.edges[:-1] + code.edges[1:]) / 2
        return (target.weight * centre[target.index]).sum(-1)

    assert 1e-6 * width < (mean(y) - y).abs().max() < 5e-6 * width
    ends = torch.tensor([LOW, HIGH], dtype=torch.float64)
    inwards = mp.fsum(q * (i + mp.mpf("0.5")) for i, q in enumerate(normal_target(code, LOW)))
    assert 0.65 < inwards < 0.75
    expected = width * float(inwards) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(mean(ends) - ends, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", CODES)
def test_a_perfect_distribution_decodes_to_its_label(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    y = labels(code, 20, seed=5)
    if kind is Fraction:
        z = torch.logit(code.encode(y)).unsqueeze(-1)
    elif kind is ContinuousBernoulli:
        z = torch.zeros(20, 1, dtype=torch.float64)
        for _ in range(60):  # Newton on A'(z) = f, from the middle: A' is a cdf of the slope, smooth and rising
            z.requires_grad_()
            mean = code.mean(z)
            (slope,) = torch.autograd.grad(mean.sum(), z)
            z = (z - ((mean - y) / slope.squeeze(-1)).unsqueeze(-1).clamp(-1, 1)).detach()
    elif kind is Ordinal:
        bits, _ = code.encode(y)
        z = torch.where(bits == 1, torch.inf, -torch.inf).double()
    else:
        y = y.clamp(LOW + 12, HIGH - 12) if kind is HLGauss else y
        target = code.encode(y)
        z = torch.zeros(20, code.columns, dtype=torch.float64).scatter(-1, target.index, target.weight).log()
    # 1e-5: what a blurred label moves, 5e-6 of a bin of 2. The others are exact.
    tolerance = 1e-5 if kind is HLGauss else 1e-12
    torch.testing.assert_close(code.mean(z), y, rtol=0, atol=tolerance)
    assert not torch.allclose(code.mean(z.roll(1, 0)), y, rtol=0, atol=1e-2)
