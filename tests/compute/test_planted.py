"""What the rest of the suite let pass when faults were planted (tests/mutation): each test here kills some of them."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy, distillation, linear_cross_entropy
from crossent.compute import backends, operators
from crossent.compute.backends import reference
from crossent.compute.backends.cpu import threads
from crossent.compute.backends.cpu.precision import SHIFT, greatest, power, stored
from crossent.compute.backends.cpu.target import Row, at_target, collect, row_of
from crossent.compute.losses import Margin, Smoothed
from tests.compare import faults, ulps

mp.mp.dps = 60


def channels_first(n: int, v: int, inner: int, step: int = 1) -> Tensor:
    """Logits (n, v, inner) whose rows lie side by side, ``step`` apart; class 2 cannot be, and no row has a tie."""
    g = torch.Generator().manual_seed(n * v * inner)
    z = 3 * torch.randn(n, v, inner * step, generator=g)
    z[:, 2] = -torch.inf
    return z[:, :, ::step]


LAYOUTS = {
    "narrow, row by row": channels_first(300, 7, 1),  # more rows than a tile
    "narrow, channels first": channels_first(2, 7, 300),
    "narrow, strided": channels_first(3, 7, 9, step=2),
    "wide, row by row": channels_first(5, 300, 1),
    "wide, channels first": channels_first(2, 300, 21),  # more rows than are read together
    "wide, strided": channels_first(2, 300, 5, step=3),
}


def targets(kind: str, rows: int, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """(index, q) of so many rows; the sparse ones name a column twice, and one that cannot be."""
    g = torch.Generator().manual_seed(1)
    if kind == "label":
        return torch.randint(z.shape[1], (rows, 1), generator=g), None
    if kind == "sparse":
        index = torch.randint(z.shape[1], (rows, 3), generator=g)
        index[::2, 1] = index[::2, 2]
        return index, None
    q = torch.rand(z.shape, generator=g)
    q[:, 2] = 0
    return None, q if kind == "dense" else None


@pytest.mark.parametrize("kind", ["label", "sparse", "dense", "every column"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernels_are_the_reference_in_every_layout(layout: str, kind: str) -> None:
    z, g = LAYOUTS[layout], torch.Generator().manual_seed(2)
    rows = z.shape[0] * z.shape[2]
    live = torch.rand(rows, generator=g) > 0.2
    live[-1] = True
    weight = torch.rand(z.shape[1], generator=g) + 0.1
    index, q = targets(kind, rows, z)
    (fields, gap), (exact, exact_gap) = (
        backend.part(z, live, index, q, weight, True, True) for backend in (backends.of(z), reference)
    )
    # Powers in float32, sums in float64: 2e-7 for each term, whose sums have no sign but that of ``total`` and ``dot``.
    torch.testing.assert_close(fields[:, live], exact[:, live], rtol=5e-7, atol=0)
    # A gap is one float32 from another, and exact; the mean of many is of gaps that were rounded to float32.
    torch.testing.assert_close(gap[live], exact_gap[live], rtol=6e-8 if kind == "dense" else 1e-15, atol=0)
    a = torch.rand(gap.shape, generator=g, dtype=torch.float64)
    b, c, d = torch.rand(3, rows, generator=g, dtype=torch.float64)
    for everything in (True, False):
        cotangents = (a, b, c, d) if everything else (a, None, None, None)
        known, _ = reference.part(z, live, index, q, weight, everything, everything)
        dz, truth = (
            backend.pull(z, live, index, q, weight, known, *cotangents) for backend in (backends.of(z), reference)
        )
        by_row = [reference.by_row(x) for x in (dz, truth)]
        size = by_row[1].abs().amax(-1, keepdim=True).clamp(min=1e-30)

        def off(got: Tensor, truth: Tensor = by_row[1], size: Tensor = size) -> float:
            return float(((got - truth) / size).abs().max())

        assert off(by_row[0]) < 1e-6  # of the row's largest entry
        assert torch.equal(by_row[0][~live], torch.zeros_like(by_row[0][~live]))
        assert not by_row[0][~live].signbit().any()
        for fault, wrong in faults(by_row[0]):
            assert off(wrong) > 1e-5, fault


def in_long_double(row: Tensor, y: int) -> tuple[float, Tensor]:
    """Loss and gradient of one row, from 80-bit floats."""
    v = row.double().numpy().astype(np.longdouble)
    power = np.exp(v - v[y])
    power[y] = 0
    odds = power.sum()
    p = power / (1 + odds)
    p[y] = -odds / (1 + odds)
    return float(np.log1p(odds)), torch.from_numpy(p.astype(np.float64))


@pytest.mark.parametrize("v", [64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_no_digit_is_lost_in_either_dtype(dtype: torch.dtype, v: int) -> None:
    noise = torch.randn(v, dtype=torch.float64, generator=torch.Generator().manual_seed(v))
    below = -300 + 2 * noise
    steep = torch.linspace(-85, 0, v, dtype=torch.float64)
    steep[0] = 2.0
    crowd = torch.full((v,), -18.02, dtype=torch.float64)  # each is less than half an ulp of the sum they are added to
    crowd[:2] = torch.tensor([0.0, -1e-3])
    crowded = [(crowd, 0)] if dtype == torch.float32 else []  # float64 is added up in float64
    for row, y in (*crowded, (noise, 3), (4 * noise, 5), (below, 7), (steep, 0), (steep, v - 1)):
        z = row.to(dtype)[None].requires_grad_()
        value = cross_entropy(z, torch.tensor([y]), reduction="none")
        (dz,) = torch.autograd.grad(value.sum(), z)
        loss, gradient = in_long_double(z[0].detach(), y)
        assert ulps(value.detach(), [loss]) <= 2
        assert ulps(dz[0], gradient) <= 4  # the contract's; in float64 too
        assert ulps(dz[0] * (1 + 8 * torch.finfo(dtype).eps), gradient) > 4


@pytest.mark.parametrize(("kind", "least"), [(np.float32, -105.0), (np.float64, -725.0)])
def test_powers_are_right_to_an_ulp(kind: type, least: float) -> None:
    eps = float(np.finfo(kind).eps)
    noise = np.random.default_rng(0)
    for below, high in zip(noise.uniform(least, 0, 300), noise.uniform(-9, 9, 300), strict=True):
        z, peak = kind(high + below), kind(high)
        exact = mp.exp(mp.mpf(float(z)) - mp.mpf(float(peak)))
        got = mp.ldexp(mp.mpf(float(power(z, peak))), -SHIFT)
        assert abs(got / exact - 1) <= eps  # between half an ulp and a whole one
        assert abs(got * (1 + 4 * eps) / exact - 1) > eps
    assert power(kind(3), kind(3)) == 2.0**SHIFT
    assert power(kind(-np.inf), kind(3)) == 0
    assert np.isnan(power(kind(np.nan), kind(3)))


def test_the_greatest_of_negative_numbers() -> None:
    of = njit(lambda row: greatest(row))
    for kind in (np.float32, np.float64):
        for row in ([-3.0, -1.5, -2.0], [-np.inf, -7.0], [2.0, -3.0, 1.0], [-0.0, 5e-324], [-np.inf] * 2):
            assert of(np.array(row, kind)) == max(np.array(row, kind))
        assert np.isnan(of(np.array([1.0, np.nan, 2.0], kind)))


def test_bfloat16_is_rounded_to_nearest_and_on_a_tie_to_even() -> None:
    to = njit(lambda x: stored(x, np.uint16(0)))
    fractions = torch.arange(0, 2**18, 61, dtype=torch.float64) / 2**17  # below, on and above ties
    ties = 1 + torch.arange(1, 16, 2, dtype=torch.float64) / 256
    x = torch.cat((fractions + 1, ties, -ties, torch.tensor([0.0, -0.0, 1e-40, 3.4e38, torch.inf]))).float()
    got = torch.tensor([int(to(np.float32(v))) for v in x.tolist()])
    expected = x.bfloat16().view(torch.int16).long() & 0xFFFF
    assert torch.equal(got, expected)
    assert not torch.equal(got, x.view(torch.int32).long() >> 16 & 0xFFFF)  # cut off
    assert torch.tensor(to(np.float32(np.nan)), dtype=torch.int32).to(torch.int16).view(torch.bfloat16).isnan()


COTANGENTS = {"a": 0.7, "b": -0.3, "c": 1.1, "d": 0.9}


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("only", ["a", "b", "c", "d", "abcd"])
def test_the_entry_of_a_target_is_the_formula(only: str, share: float, at: int) -> None:
    """The formulas at the head of the reference, with 60 digits, for a row that is sure of its first class."""
    z, u = [28.0, 0.5, -1.0, -np.inf], [0.5, 2.0, 1.0, 4.0]
    power_of = [mp.exp(mp.mpf(v)) if v > -np.inf else mp.mpf(0) for v in z]
    rest = mp.fsum(power_of[1:]) / power_of[0]
    p = [v / mp.fsum(power_of) for v in power_of]
    miss = mp.fsum(v for j, v in enumerate(p) if j != at)
    entropy = -mp.fsum(v * mp.log(v) for v in p if v)
    a, b, c, d = (mp.mpf(COTANGENTS[name]) if name in only else mp.mpf(0) for name in "abcd")
    held, measure = mp.mpf(share) * a, mp.fsum(u[:3])
    truth = (a - held) * p[at] - held * miss + b * p[at] + c / 3 * (measure * p[at] - (u[at] if p[at] else 0))
    truth += d * p[at] * (-mp.log(p[at]) - entropy) if p[at] else 0
    terms = [(a - held) * p[at], held * miss, b * p[at], c * measure * p[at], 28 * d * p[at]]

    fields = np.array([[28.0], [float(rest)], [0.0], [3.0], [float(measure)], [0.0]])
    fields[5] = float(mp.fsum(v / power_of[0] * (mp.mpf(w) - 28) for v, w in zip(power_of, z, strict=True) if v))
    known = np.zeros((8, 1))
    parts = (float(held), float(a - held))
    others = [np.array([float(x)]) if x else np.empty(0) for x in (b, c, d)]
    collect(0, 1, fields, 2 if c else -1, 5 if d else -1, np.array([parts]), *others, known)
    row = row_of(known, 0)
    assert isinstance(row, Row)
    got = at_target(z[at], 28.0, float(held), u[at], row)
    scale = max(abs(float(term)) for term in terms)
    assert abs(got - float(truth)) <= 4e-15 * scale
    factor = float((a + b + c / 3 * measure) / (1 + rest))
    assert known[7, 0] * 2.0**SHIFT == pytest.approx(factor, rel=1e-14, abs=1e-300)
    wrong = row._replace(a=row.a * 1.01, b=row.b * 1.01, c=row.c * 1.01, d=row.d * 1.01)
    one_percent_more = at_target(z[at], 28.0, float(held) * 1.01, u[at], wrong)
    assert not truth or abs(one_percent_more / float(truth) - 1) > 1e-3


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_infinite_row_is_nan_and_alone(bad: float, backend: str) -> None:
    z = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    z[1, slice(None) if bad == -torch.inf else 170] = bad
    with backends.using(backend):
        rows = cross_entropy(z, torch.tensor([0, 0, 0]), reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


def test_two_threads_give_the_bits_of_one() -> None:
    z = torch.randn(threads.WORTH // 10 * 2 + 5, 10, generator=torch.Generator().manual_seed(0))
    y = torch.randint(10, z.shape[:1], generator=torch.Generator().manual_seed(1))
    before, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaf = z.clone().requires_grad_()
            value = cross_entropy(leaf, y, reduction="none")
            seen.append((value.detach(), torch.autograd.grad(value.sum(), leaf)[0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    assert seen[0][0].min() > 0  # no row was left as it lay in memory
    assert (seen[0][1] != 0).all()


def test_the_forward_derivative_is_the_backward_one_where_a_class_cannot_be() -> None:
    z, g = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    z[1, 3] = -torch.inf
    y = torch.tensor([0, 1, 2])

    def value(z: Tensor) -> Tensor:
        return cross_entropy(z, y, loss=Smoothed(0.2), reduction="none")

    _, moved = torch.func.jvp(value, (z,), (g,))
    expected = (torch.func.vjp(value, z)[1](torch.ones(3, dtype=torch.float64))[0] * g).sum(-1)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(moved[1], expected[1] * 4 / 5, rtol=1e-3)


def test_opcheck_of_rows_that_lie_side_by_side() -> None:
    z, index = torch.randn(2, 4, 3), torch.randint(4, (6, 1))
    torch.library.opcheck(operators.part, (z, None, index, None, None, True, True))
    fields, gap = operators.part(z, None, index, None, None, True, True)
    more = torch.rand(3, 6, dtype=torch.float64)
    torch.library.opcheck(operators.pull, (z, None, index, None, None, fields, torch.rand_like(gap), *more))


def test_a_row_of_no_weight_costs_nothing_even_if_it_is_infinite() -> None:
    z = torch.tensor([[0.0, -torch.inf], [1.0, 0.0]], requires_grad=True)
    y, weight = torch.tensor([1, 0]), torch.tensor([0.0, 2.0])
    value = cross_entropy(z, y, sample_weight=weight)
    assert value == cross_entropy(z[1:], y[1:])
    (dz,) = torch.autograd.grad(value, z)
    assert dz.isfinite().all()
    assert cross_entropy(z, y) == torch.inf


@pytest.mark.parametrize("where", ["logits", "targets"])
def test_nan_of_an_ignored_row_reaches_nothing_under_soft_targets(where: str) -> None:
    z, q = torch.randn(3, 4), torch.rand(3, 4)
    (z if where == "logits" else q)[1] = torch.nan
    z.requires_grad_()
    keep = torch.tensor([True, False, True])
    for loss in (None, Margin(0.1)):  # summed up while it is read, and column by column
        value = cross_entropy(z, q, mask=keep, loss=loss, validate="off")
        assert value == cross_entropy(z[keep], q[keep], loss=loss)
        (dz,) = torch.autograd.grad(value, z)
        assert torch.equal(dz[1], torch.zeros(4))
        assert dz[0].isfinite().all()
        assert cross_entropy(z, q, loss=loss, validate="off").isnan()


def test_labels_end_at_the_last_class() -> None:
    z = torch.randn(3, 4)
    for y in ([0, 1, 4], [0, -100, 4], [0, 1, -1]):
        with pytest.raises(IndexError, match="1 labels that are no class"):
            cross_entropy(z, torch.tensor(y))
    assert cross_entropy(z, torch.tensor([0, 1, 3])).isfinite()


def test_any_class_may_be_the_one_to_ignore() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert cross_entropy(z, y, ignore_index=0) == cross_entropy(z[1:3], y[1:3])
    assert cross_entropy(z, y, ignore_index=0) != cross_entropy(z, y)


def test_a_mask_adds_to_what_is_ignored() -> None:
    z, y = torch.randn(4, 3), torch.tensor([0, -100, 2, 1])
    masked = cross_entropy(z, y, mask=torch.tensor([False, True, True, True]))
    assert masked == cross_entropy(z[2:], y[2:])
    assert masked != cross_entropy(z, y)


@pytest.mark.parametrize("wrong", [-1e-4, torch.nan])
def test_a_target_a_little_below_0_is_refused(wrong: float) -> None:
    q = torch.rand(3, 4)
    q[1, 2] = wrong
    with pytest.raises(ValueError, match=r"0 or more; 1 are negative or NaN, first at \(row, class\) \(1, 2\)"):
        cross_entropy(torch.randn(3, 4), q)


@pytest.mark.parametrize("wrong", [-0.005, 1.005, torch.nan])
def test_a_share_a_little_outside_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"1 elements do not, first at \(1,\)"):
        binary_cross_entropy_with_logits(torch.zeros(2), torch.tensor([0.5, wrong]))


def test_a_head_weighs_its_rows() -> None:
    x, w, y = torch.randn(4, 3).double(), torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 4])
    weight, mask = torch.tensor([0.5, 2.0, 1.0, 0.25]), torch.tensor([True, True, False, True])
    got = linear_cross_entropy(x, w, y, sample_weight=weight, mask=mask)
    expected = cross_entropy(x @ w.T, y, sample_weight=weight, mask=mask)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    assert not torch.allclose(got, linear_cross_entropy(x, w, y, mask=mask), rtol=1e-3)
    assert not torch.allclose(got, linear_cross_entropy(x, w, y, sample_weight=weight), rtol=1e-3)


@pytest.mark.parametrize("nll", [1e-9, 1.0, 49.0, 51.0, 700.0])
def test_a_margin_far_from_the_target(nll: float) -> None:
    odds = torch.tensor([[-nll, 0.0]], dtype=torch.float64)
    got = cross_entropy(odds, torch.tensor([0]), loss=Margin(0.25))
    expected = cross_entropy(odds - torch.tensor([0.25, 0.0]), torch.tensor([0]))
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)
    assert not torch.allclose(got, cross_entropy(odds, torch.tensor([0])), rtol=1e-5)


def test_weights_of_classes_do_not_slip_from_block_to_block() -> None:
    g = torch.Generator().manual_seed(0)
    rows = reference.ELEMENTS // 3 + 50  # three classes do not divide a block
    z, t = torch.randn(rows, 3, generator=g), torch.rand(rows, 3, generator=g)
    pos = torch.tensor([0.5, 2.0, 7.0])
    leaf, wide = z.clone().requires_grad_(), z.double().requires_grad_()
    value = binary_cross_entropy_with_logits(leaf, t, pos_weight=pos, reduction="none")
    exact = F.binary_cross_entropy_with_logits(wide, t.double(), pos_weight=pos.double(), reduction="none")
    assert ulps(value.detach(), exact.detach()) <= 4
    (dz,), (dw,) = torch.autograd.grad(value.sum(), leaf), torch.autograd.grad(exact.sum(), wide)
    off = (dz - dw).abs().max()  # the entries are below 7, and differences of two terms
    assert off < 7 * 2e-7
    slipped = F.binary_cross_entropy_with_logits(wide, t.double(), pos_weight=pos.double().roll(1), reduction="none")
    assert ulps(value.detach(), slipped.detach()) > 1e4


@pytest.mark.parametrize("n", [1, 63, 65, 700])
def test_a_sum_of_elements_is_the_sum_of_all_of_them(n: int) -> None:
    g = torch.Generator().manual_seed(n)
    z, t = torch.randn(n, generator=g), torch.rand(n, generator=g)
    each = F.binary_cross_entropy_with_logits(z.double(), t.double(), reduction="none")
    for reduction, exact in (("sum", each.sum()), ("mean", each.mean())):
        got = binary_cross_entropy_with_logits(z, t, reduction=reduction).double()
        torch.testing.assert_close(got, exact, rtol=3e-7, atol=0)  # costs to 2 ulp and one rounding of their sum
        assert (each / exact).max() > 3e-6  # so that each of them shows


def test_gradients_of_binary_elements_on_a_fine_grid() -> None:
    z = torch.linspace(-20, 20, 100_001, requires_grad=True)
    value = binary_cross_entropy_with_logits(z, torch.zeros_like(z), reduction="sum")
    (dz,) = torch.autograd.grad(value, z)
    exact = torch.sigmoid(z.detach().double())
    assert ulps(dz, exact) <= 2  # the contract's
    assert ulps(dz * (1 + 2**-22), exact) > 2


def test_the_rest_of_a_sure_teacher_keeps_its_digits() -> None:
    """Its log-probability of -1e-12 says what it leaves to the others; 1 - e^-1e-12 keeps four digits of that."""
    z = torch.tensor([[26.0, 0.0, 0.5]], dtype=torch.float64)
    log_p = torch.tensor([[-1e-12]], dtype=torch.float64)
    got = distillation(z, log_p, given="log_probabilities", index=torch.tensor([[0]]))
    power_of = [mp.exp(v) for v in (26, 0, 0.5)]
    q, left = 1 / (1 + (power_of[1] + power_of[2]) / power_of[0]), mp.fsum(power_of[1:]) / mp.fsum(power_of)

    def divergence(rest: mp.mpf) -> float:
        return float((1 - rest) * mp.log((1 - rest) / q) + rest * mp.log(rest / left))

    assert got.item() == pytest.approx(divergence(-mp.expm1(mp.mpf(-1e-12))), rel=1e-12, abs=0)
    assert got.item() != pytest.approx(divergence(mp.mpf(1 - torch.exp(log_p).item())), rel=1e-6, abs=0)


@pytest.mark.parametrize("v", [6, 100, 300])  # side by side, along, and in whole blocks
def test_a_one_hot_row_is_its_label_to_the_last_bit_of_float64(v: int) -> None:
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(200, v, generator=g, dtype=torch.float64), torch.randint(v, (200,), generator=g)
    w = torch.rand(v, generator=g, dtype=torch.float64)
    hot = F.one_hot(y, v).double() * 0.3  # no power of 2: multiplied in and divided out again it leaves a rounding
    gap = z.amax(-1) - z.gather(-1, y[:, None])[:, 0]
    _, ours = backends.of(z).part(z[..., None], None, None, hot[..., None], w, False, False)
    assert torch.equal(ours[:, 0], gap)
    weight = 0.3 * w[y]
    assert not torch.equal(weight * gap / weight, gap)
