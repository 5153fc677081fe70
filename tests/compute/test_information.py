"""Entropies and divergences: the truth in mpmath, the laws by hypothesis, edges, gradients and sentences."""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as some
from scipy import stats
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

import crossent
from crossent import (
    cross_entropy,
    cross_entropy_between,
    entropy,
    information_gain,
    js_divergence,
    kl_divergence,
    mutual_information,
    renyi_divergence,
    renyi_entropy,
)
from crossent.compute.distribution import excess
from tests import oracle
from tests.compare import faults, ulps
from tests.compute.divergences import (
    PAIRS,
    true_cross_entropy,
    true_entropy,
    true_js,
    true_kl,
    true_renyi,
    true_renyi_entropy,
)

INF = math.inf
ORDERS = [0, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-9, 1, 1 + 1e-12, 1 + 1e-6, 1.5, 2, 10, 1000.0, INF]
WEIGHTS = [0.5, 0.9, 1e-6]
EXACT = 1e-14  # relative: float64's 1e-16, times the few dozen operations of a row


def wrong_by(got: Tensor, truth: mp.mpf) -> float:
    """The relative error; infinite where only one of the two is."""
    if mp.isinf(truth) or mp.isinf(mp.mpf(float(got))):
        return 0.0 if float(got) == float(truth) else INF
    if abs(truth) < 1e-50:  # mpmath's own rounding of a 0
        return abs(float(got)) / 1e-50
    return float(abs(mp.mpf(float(got)) - truth) / abs(truth))


def both(name: str) -> tuple[Tensor, Tensor]:
    z, t = PAIRS[name]
    return (
        torch.tensor(z, dtype=torch.float64, requires_grad=True),
        torch.tensor(t, dtype=torch.float64, requires_grad=True),
    )


@pytest.mark.parametrize("name", PAIRS)
def test_every_number_is_the_formula(name: str) -> None:
    z, t = both(name)
    p, q = (oracle.probabilities(v) for v in PAIRS[name])
    found = {
        "entropy": (entropy(z, given="logits"), true_entropy(p)),
        "cross-entropy": (cross_entropy_between(z, t, given="logits"), true_cross_entropy(p, q)),
        "KL": (kl_divergence(z, t, given="logits"), true_kl(p, q)),
        "gain": (information_gain(t, z, given="logits"), true_kl(p, q)),
    }
    for weight in WEIGHTS:
        ours = js_divergence(z, t, given="logits", weight=weight)
        found[f"JS {weight}"] = ours, true_js(p, q, weight)
    for order in ORDERS:
        found[f"Rényi {order}"] = renyi_divergence(z, t, order, given="logits"), true_renyi(p, q, order)
        found[f"Rényi entropy {order}"] = renyi_entropy(z, order, given="logits"), true_renyi_entropy(p, order)
    for what, (ours, truth) in found.items():
        assert wrong_by(ours.detach(), truth) <= EXACT, f"{what}: {ours} is not {mp.nstr(truth, 17)}"
        if ours.isfinite():  # then so is the gradient
            for dz in torch.autograd.grad(ours, (z, t), allow_unused=True):
                assert dz is None or dz.isfinite().all(), what
            if ours != 0:
                assert wrong_by(ours.detach() * (1 + 1e-13), truth) > EXACT, "the comparison cannot fail"


def test_the_textbook_formulas_lose_what_we_keep() -> None:
    """The negative control of the test above: what cancels when written down as it stands."""
    z, t = (v.detach() for v in both("apart by 1e-9"))
    p, q = (oracle.probabilities(v) for v in PAIRS["apart by 1e-9"])
    a, b = z.softmax(-1), t.softmax(-1)
    m = (a + b) / 2
    plain = {
        "KL": ((a * (a / b).log()).sum(), true_kl(p, q)),
        "JS": (((a * (a / m).log()).sum() + (b * (b / m).log()).sum()) / 2, true_js(p, q, 0.5)),
        "Rényi": (torch.log((a**2 / b).sum()), true_renyi(p, q, 2)),
        "Rényi near 1": (torch.log((a ** (1 + 1e-12) * b**-1e-12).sum()) / 1e-12, true_renyi(p, q, 1 + 1e-12)),
    }
    assert all(wrong_by(value, truth) > 0.01 for value, truth in plain.values())


@pytest.mark.parametrize("name", ["ordinary", "confident", "sure of different things", "apart by 1e-9", "masked"])
@pytest.mark.parametrize("kind", ["KL", "KL back", "JS", "Rényi 0.3", "Rényi 2"])
def test_gradients_are_those_of_the_formula(name: str, kind: str) -> None:
    call, truth = {
        "KL": (lambda z, t: kl_divergence(z, t, given="logits"), true_kl),
        "KL back": (lambda z, t: kl_divergence(t, z, given="logits"), lambda p, q: true_kl(q, p)),
        "JS": (lambda z, t: js_divergence(z, t, given="logits", weight=0.3), lambda p, q: true_js(p, q, 0.3)),
        "Rényi 0.3": (lambda z, t: renyi_divergence(z, t, 0.3, given="logits"), lambda p, q: true_renyi(p, q, 0.3)),
        "Rényi 2": (lambda z, t: renyi_divergence(z, t, 2, given="logits"), lambda p, q: true_renyi(p, q, 2)),
    }[kind]
    z, t = both(name)
    exact = [mp.mpf(v) if v != -INF else v for v in PAIRS[name][0]]
    step = mp.mpf(10) ** -25

    def at(j: int, sign: int) -> mp.mpf:
        moved = [v + sign * step if i == j else v for i, v in enumerate(exact)]
        return truth(oracle.probabilities(moved), oracle.probabilities(PAIRS[name][1]))

    gradient = [0.0 if v == -INF else float((at(j, 1) - at(j, -1)) / (2 * step)) for j, v in enumerate(exact)]
    (dz,) = torch.autograd.grad(call(z, t), z)
    # Relative to the largest entry: a gradient sums to 0, so one entry may be the small difference of the others.
    scale = max(abs(v) for v in gradient)
    largest = (dz - torch.tensor(gradient, dtype=torch.float64)).abs().max() / scale
    assert largest <= 1e-12  # 25 of 60 digits are the step's; the rest is float64 through some 50 operations
    for fault, wrong in faults(dz.detach().unsqueeze(0)):
        if fault != "last row skipped" and not torch.equal(wrong[0], dz):
            assert (wrong[0] - torch.tensor(gradient, dtype=torch.float64)).abs().max() / scale > 1e-12, fault


def test_gradcheck_whatever_is_given() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    t = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    counts = (torch.rand(2, 4, dtype=torch.float64) + 0.5).requires_grad_()
    calls = [
        lambda z, t, n: entropy(z, given="logits") + entropy(n, given="counts"),
        lambda z, t, n: cross_entropy_between(z, n, given=("logits", "counts")),
        lambda z, t, n: kl_divergence(z, t, given="logits") + kl_divergence(n, z.exp(), given="counts"),
        lambda z, t, n: js_divergence(z, n, given=("logits", "counts"), weight=0.2),
        lambda z, t, n: mutual_information(n, given="counts") + mutual_information(z, given="logits"),
        *(lambda z, t, n, a=a: renyi_divergence(z, t, a, given="logits") for a in (0.2, 0.7, 1.3, 4.0, INF)),
        *(lambda z, t, n, a=a: renyi_entropy(z, a, given="logits") for a in (0.2, 1.3, 4.0, INF)),
    ]
    for call in calls:
        assert torch.autograd.gradcheck(call, (z, t, counts))
    for call in calls[:4]:
        assert torch.autograd.gradgradcheck(call, (z, t, counts))
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):  # it can say no
        torch.autograd.gradcheck(lambda z: entropy(z.detach(), given="logits") + 0 * z.sum(), z)
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(excess, x)


def test_what_is_given_says_the_same() -> None:
    counts, other = torch.tensor([4, 2, 1, 1]), torch.tensor([1, 1, 2, 4])
    p, q = counts / 8, other / 8
    forms = {"counts": counts, "probabilities": p, "log_probabilities": p.log(), "logits": p.log() + 3}
    for name, form in forms.items():
        assert entropy(form, given=name, unit="bits").item() == pytest.approx(1.75, rel=1e-7)
        assert kl_divergence(form, q, given=(name, "probabilities"), unit="bits").item() == pytest.approx(0.875, 1e-6)
        assert kl_divergence(form, q, given=(name, "probabilities")).item() == pytest.approx(0.875 * math.log(2), 1e-6)
    assert entropy(p, given="probabilities", unit="bits") == 1.75
    assert entropy(counts, given="logits", unit="bits") != 1.75  # naming it wrongly is another number, as it must be
    assert js_divergence(p, q, given="probabilities").dtype == torch.float32
    assert js_divergence(p.double(), q, given="probabilities").dtype == torch.float64
    table = torch.stack((p, q)).T
    assert torch.equal(entropy(table, given="probabilities", dim=0), entropy(table.T, given="probabilities"))


def test_probabilities_are_divided_by_their_sum() -> None:
    p = torch.tensor([1.0, 1e-12])  # what float32 makes of 1 - 1e-12
    truth = true_entropy(oracle.probabilities([0.0, float(mp.log(mp.mpf(float(p[1]))))]))
    assert entropy(p, given="probabilities").item() == pytest.approx(float(truth), rel=1e-6)
    assert -(p * p.log()).sum().item() != pytest.approx(float(truth), rel=1e-2)  # it forgets the 1


@pytest.mark.parametrize("given", ["probabilities", "counts"])
def test_close_probabilities_do_not_cancel(given: str) -> None:
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    q = p * torch.tensor([1 + 1e-9, 1 - 2e-9, 1.0], dtype=torch.float64)
    a, b = ([mp.mpf(v) for v in row.tolist()] for row in (p, q))
    b = [v / mp.fsum(b) for v in b]
    if given == "counts":
        q = q * 3e6  # and another total
        b = [mp.mpf(v) / mp.fsum(map(mp.mpf, q.tolist())) for v in q.tolist()]
    # log p/q is 1e-9, made from the numbers themselves: their product with a total may round, by 1e-16 of 1e-9.
    tolerance = 1e-6 if given == "counts" else 1e-13
    assert wrong_by(js_divergence(p, q, given=given), true_js(a, b, 0.5)) <= tolerance
    assert wrong_by(kl_divergence(p, q, given=given), true_kl(a, b)) <= tolerance
    assert wrong_by(renyi_divergence(p, q, 0.2, given=given), true_renyi(a, b, 0.2)) <= tolerance
    assert wrong_by((p * (p / (q / q.sum())).log()).sum(), true_kl(a, b)) > 0.01
    whole = torch.tensor([3, 2, 5]), torch.tensor([3000001, 2000000, 5000000])  # counts proper round nothing
    a, b = ([mp.mpf(v) / int(row.sum()) for v in row.tolist()] for row in whole)
    ours = kl_divergence(whole[0].double(), whole[1], given="counts")
    assert wrong_by(ours, true_kl(a, b)) <= 1e-9


def test_scipy_agrees() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(4, 7).double().softmax(-1), torch.randn(4, 7).double().softmax(-1)
    for row in range(4):
        ours = kl_divergence(p[row], q[row], given="probabilities")
        assert ours.item() == pytest.approx(stats.entropy(p[row], q[row]), rel=1e-13)
        assert ours.item() != pytest.approx(stats.entropy(q[row], p[row]), rel=1e-3)


def test_the_loss_and_the_divergence_are_one_family() -> None:
    torch.manual_seed(1)
    z, t = torch.randn(6, 9).double(), torch.randn(6, 9).double()
    p = t.softmax(-1)
    loss = cross_entropy(z, p, reduction="none")
    between = cross_entropy_between(t, z, given="logits")
    torch.testing.assert_close(between, loss, rtol=1e-14, atol=0)
    assert not torch.allclose(cross_entropy_between(z, t, given="logits"), loss, rtol=1e-3)


LOGITS = some.lists(some.tuples(*[some.floats(-30, 30)] * 3), min_size=2, max_size=6)
BITS = 4 * 2.0**-52  # a few roundings of float64


@settings(deadline=None, max_examples=60)
@over(LOGITS, some.floats(0.01, 0.99))
def test_laws(rows: list[tuple[float, float, float]], weight: float) -> None:
    z, t, _ = torch.tensor(rows, dtype=torch.float64).T
    kl, back = kl_divergence(z, t, given="logits"), kl_divergence(t, z, given="logits")
    h = entropy(z, given="logits")
    crossed = cross_entropy_between(z, t, given="logits")
    torch.testing.assert_close(crossed, h + kl, rtol=16 * BITS, atol=1e-300)  # H(p, q) = H(p) + KL(p ‖ q)
    js = js_divergence(z, t, given="logits", weight=weight)
    other = js_divergence(t, z, given="logits", weight=1 - weight)
    torch.testing.assert_close(js, other, rtol=1e-12, atol=1e-30)  # p and its weight change places with q's
    two = js_divergence(z, t, given="logits")
    assert min(kl, back, h, js, two) >= 0
    bound = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
    assert js <= bound * (1 + 4 * BITS)
    assert two <= math.log(2) * (1 + 4 * BITS)
    assert two <= (kl + back) / 4 * (1 + 16 * BITS) + 1e-300
    orders = [renyi_divergence(z, t, a, given="logits") for a in ORDERS]
    entropies = [renyi_entropy(z, a, given="logits") for a in ORDERS]
    for low, high in itertools.pairwise(orders):
        assert low <= high * (1 + 1e-12) + 1e-300  # never falls as the order grows
    for high, low in itertools.pairwise(entropies):
        assert low <= high * (1 + 1e-12) + 1e-300  # never grows
    merged = torch.stack((z[:2].logsumexp(0), *z[2:])), torch.stack((t[:2].logsumexp(0), *t[2:]))
    for whole, coarse in (
        (kl, kl_divergence(*merged, given="logits")),
        (js, js_divergence(*merged, given="logits", weight=weight)),
        (orders[-3], renyi_divergence(*merged, ORDERS[-3], given="logits")),
        (orders[2], renyi_divergence(*merged, ORDERS[2], given="logits")),
    ):
        # Two classes told apart no more: less is known. The merging itself rounds logits below 60 by 1e-14.
        assert coarse <= whole + 1e-13 * (1 + whole)


def test_the_laws_can_fail() -> None:
    z, t = (v.detach() for v in both("ordinary"))
    kl, back = kl_divergence(z, t, given="logits"), kl_divergence(t, z, given="logits")
    h = entropy(z, given="logits")
    assert abs(cross_entropy_between(z, t, given="logits") - (h + back)) > 0.1  # the other direction
    assert kl > math.log(2)  # a bound of Jensen-Shannon's, and not of KL's
    assert abs(kl - back) > 0.01
    one = js_divergence(z, t, given="logits", weight=0.2)
    assert abs(one - js_divergence(t, z, given="logits", weight=0.2)) > 0.01


@settings(deadline=None, max_examples=60)
@over(some.lists(some.lists(some.integers(0, 20), min_size=3, max_size=3), min_size=2, max_size=4))
def test_mutual_information_and_its_chain_rule(table: list[list[int]]) -> None:
    n = torch.tensor(table)
    n[0, 0] += 1
    joint = entropy(n.flatten().double(), given="counts")
    of_rows, of_columns = entropy(n.sum(1).double(), given="counts"), entropy(n.sum(0).double(), given="counts")
    mutual = mutual_information(n.double(), given="counts")
    assert mutual >= 0
    torch.testing.assert_close(mutual, of_rows + of_columns - joint, rtol=0, atol=1e-14)  # H of at most log 12 each
    assert torch.equal(mutual, mutual_information(n.double().T, given="counts", dims=(1, 0)))
    p = n.double() / n.sum()
    for given, form in (("probabilities", p), ("log_probabilities", p.log()), ("logits", p.log() + 1)):
        torch.testing.assert_close(mutual, mutual_information(form, given=given), rtol=1e-12, atol=1e-15)
    # KL of joints = KL of the rows + the mean KL of what the rows leave open (the chain rule).
    a, b = n.double() + 1, n.double().roll(1, 1) + 2
    whole = kl_divergence(a.flatten(), b.flatten(), given="counts")
    rows = kl_divergence(a.sum(1), b.sum(1), given="counts")
    within = (a.sum(1) / a.sum() * kl_divergence(a, b, given="counts")).sum()
    torch.testing.assert_close(whole, rows + within, rtol=1e-12, atol=1e-16)


def test_mutual_information_of_nearly_independent_counts() -> None:
    n = torch.tensor([[3 * 10**6, 7 * 10**6], [6 * 10**6, 14 * 10**6 + 1]])
    p = [[mp.mpf(v) / int(n.sum()) for v in row] for row in n.tolist()]
    rows, columns = [mp.fsum(row) for row in p], [mp.fsum(column) for column in zip(*p, strict=True)]
    truth = mp.fsum(p[i][j] * mp.log(p[i][j] / (rows[i] * columns[j])) for i in (0, 1) for j in (0, 1))
    assert truth < 1e-15
    ours = mutual_information(n, given="counts")
    assert ulps(ours, [float(truth)]) <= 1
    q = n.double() / n.sum()
    naive = (q * (q / (q.sum(1, keepdim=True) * q.sum(0))).log()).sum()
    assert ulps(naive.float(), [float(truth)]) > 1000
    assert mutual_information(torch.tensor([[2, 4], [3, 6]]), given="counts") == 0
    apart = torch.tensor([[0.0, -torch.inf], [-torch.inf, -700.0]])  # marginals whose product is no float64
    assert mutual_information(apart, given="logits").isfinite()


def test_the_gain_of_a_split_is_what_the_branches_tell() -> None:
    branches = torch.tensor([[8.0, 1.0], [2.0, 9.0]])
    parent, share = branches.sum(0), branches.sum(1) / branches.sum()
    drop = entropy(parent, given="counts") - (share * entropy(branches, given="counts")).sum()
    gains = information_gain(parent, branches, given="counts")
    ours = mutual_information(branches, given="counts")
    assert ours.item() == pytest.approx(drop.item(), rel=1e-6)
    assert ours.item() == pytest.approx((share * gains).sum().item(), rel=1e-6)
    assert ours.item() != pytest.approx(gains.mean().item(), rel=1e-3)


def test_zeros_and_infinities() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert kl_divergence(p, q, given="probabilities", unit="bits") == 1
    assert kl_divergence(q, p, given="probabilities") == torch.inf
    assert cross_entropy_between(q, p, given="probabilities") == torch.inf
    assert js_divergence(p, 1 - p, given="probabilities", unit="bits") == 1
    assert renyi_divergence(p, 1 - p, 0.5, given="probabilities") == torch.inf
    assert entropy(p, given="probabilities") == 0
    assert entropy(torch.tensor([3.0, -torch.inf]), given="logits") == 0
    x, y = (torch.tensor(v, requires_grad=True) for v in ([0.5, 0.5, 0.0], [0.25, 0.75, 0.0]))
    for call in (kl_divergence, js_divergence, cross_entropy_between):
        for dx in torch.autograd.grad(call(x, y, given="probabilities"), (x, y)):
            assert dx.isfinite().all()
            assert dx[2] == 0
            assert dx[:2].any()
    for bad in ([torch.nan, 0.0], [torch.inf, 0.0], [-torch.inf, -torch.inf]):
        z = torch.tensor([bad, [0.0, 1.0]])
        for call in (
            lambda z: entropy(z, given="logits"),
            lambda z: kl_divergence(z, torch.zeros(2), given="logits"),
            lambda z: js_divergence(torch.zeros(2), z, given="logits"),
            *(lambda z, a=a: renyi_divergence(z, torch.zeros(2), a, given="logits") for a in ORDERS),
            *(lambda z, a=a: renyi_divergence(torch.zeros(2), z, a, given="logits") for a in ORDERS),
            *(lambda z, a=a: renyi_entropy(z, a, given="logits") for a in ORDERS),
        ):
            assert call(z).isnan().tolist() == [True, False]


def test_16_bit_input_makes_a_float32_answer() -> None:
    z, t = torch.randn(3, 5).to(torch.bfloat16), torch.randn(3, 5).to(torch.float16)
    for ours, wide in (
        (entropy(z, given="logits"), entropy(z.double(), given="logits")),
        (js_divergence(z, t, given="logits"), js_divergence(z.double(), t.double(), given="logits")),
    ):
        assert ours.dtype == torch.float32
        assert ulps(ours, wide) <= 0.51


def test_vmap_and_broadcasting() -> None:
    z, t = torch.randn(3, 5), torch.randn(2, 1, 5)
    whole = js_divergence(z, t, given="logits")
    assert whole.shape == (2, 3)
    assert torch.equal(whole[1, 2], js_divergence(z[2], t[1, 0], given="logits"))
    mapped = torch.func.vmap(lambda row: kl_divergence(row, t[0, 0], given="logits"))(z)
    torch.testing.assert_close(mapped, kl_divergence(z, t[0, 0], given="logits"), rtol=1e-6, atol=0)


P = torch.tensor([0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: entropy(torch.tensor([0.5, 0.6]), given="probabilities"), "sum to 1; 1 do not"),
        (lambda: entropy(torch.tensor([0.5, -0.5]), given="probabilities"), "Are these logits"),
        (lambda: entropy(torch.tensor([1.0, torch.nan]), given="counts"), "negative, infinite or NaN"),
        (lambda: entropy(P, given="log_probabilities"), "sum to 1"),
        (lambda: entropy(torch.tensor([0, 0]), given="counts"), "nothing was counted"),
        (lambda: entropy(torch.tensor([1.0]), given="scores"), "named and never guessed"),
        (lambda: entropy(torch.tensor([1.0]), given="logits", unit="dits"), "'nats' or 'bits'"),
        (lambda: entropy(torch.tensor(1.0), given="logits"), "holds no distribution"),
        (lambda: kl_divergence(P, torch.ones(3), given=("probabilities", "counts")), "same classes along dim -1"),
        (lambda: information_gain(P, P + 1, given="probabilities"), "posterior should hold"),
        (lambda: js_divergence(P, P, given="logits", weight=1.0), "weight must be between 0 and 1, and is 1.0"),
        (lambda: renyi_divergence(P, P, -1, given="logits"), "order must be 0 or more"),
        (lambda: renyi_entropy(P, math.nan, given="logits"), "order must be 0 or more"),
        (lambda: mutual_information(P, given="probabilities"), "two dimensions or more"),
        (lambda: mutual_information(torch.ones(2, 2), given="counts", dims=(0, -2)), "two different dimensions"),
        (lambda: mutual_information(torch.ones(2, 2), given="counts", dims=(0, 3)), r"of a table of 2; got \(0, 3\)"),
    ],
)
def test_errors_are_sentences(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_names_are_public() -> None:
    assert crossent.js_divergence is js_divergence
