"""The GPU's kernels held to the truth, as the CPU's are: the same rows, targets and statistics, the same ulps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossent import binary_cross_entropy_with_logits
from crossent.compute import operators
from crossent.compute.backends import reference
from tests import oracle
from tests.compare import faults, ulps
from tests.compute.test_cpu_numbers import FLOATS, TERMS, batch, of_every_logit, off, random, targets, truth
from tests.gpu.device import compute, there

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning:triton"),  # numpy, at NaN and infinity
]


# The terms that make a path of their own through the kernels; not the focal loss in float64, as on the CPU.
@pytest.mark.parametrize(
    ("dtype", "term"), [(d, t) for d in FLOATS for t in TERMS if (d, t) != (torch.float64, "focal")], ids=str
)
@pytest.mark.usefixtures("tiles")
def test_every_row_every_target_every_statistic(dtype: torch.dtype, term: str) -> None:
    more, knobs = TERMS[term]
    times = 3.0 if term == "focal" else 1.0  # (1 - p)² nll has three factors that are off as nll is
    for v in (1, 3, 37):
        z, y = batch(v, dtype)
        g = random(len(z)).float()
        for kind, weighted in (("labels", False), ("labels", True), ("sparse", v == 3), ("soft", v == 37)):
            weight = torch.rand(v, generator=torch.Generator().manual_seed(3)) + 0.1 if weighted else None
            target, q, own = targets(kind, z, y)
            true = truth(z, q, weight, g, **knobs)
            loss, dz = compute(z, target, g, weight=weight, **more)
            of_loss, of_gradient = off("cpu", loss, dz, true, own, times)
            assert of_loss <= 1, (v, kind)
            assert of_gradient <= 1, (v, kind)
            for fault, wrong in faults(dz):
                if v > 1 and not torch.equal(wrong, dz):
                    assert off("cpu", loss, wrong, true, own, times)[1] > 1, f"{v} {kind}: {fault} would pass"


@pytest.mark.parametrize(
    ("v", "dtype"), [(1000, torch.bfloat16), (1000, torch.float32), (5000, torch.float32)], ids=str
)
def test_wide_rows(v: int, dtype: torch.dtype) -> None:
    z, y = batch(v, dtype)
    g = random(len(z)).float()
    for term in ("NLL", "all"):
        more, knobs = TERMS[term]
        target, q, own = targets("labels", z, y)
        true = truth(z, q, None, g, **knobs)
        loss, dz = compute(z, target, g, **more)
        assert max(off("cpu", loss, dz, true, own)) <= 1, term
        for fault, wrong in faults(dz):
            assert off("cpu", loss, wrong, true, own)[1] > 1, f"{fault} would pass"


@pytest.mark.usefixtures("tiles")
def test_peaks_on_both_sides_of_where_rows_are_read_once() -> None:
    """Within ±240 powers are those of the logits themselves, beyond they are taken about the peak."""
    noise = random(8, 37).float()
    z = noise + torch.tensor([239.0, 237.0, 241.0, 300.0, -239.0, -245.0, 1e4, -1e4])[:, None]
    y = torch.arange(8) * 4
    true = truth(z, torch.nn.functional.one_hot(y, 37))
    loss, dz = compute(z, y)
    own = torch.nn.functional.one_hot(y, 37) > 0
    assert max(off("cpu", loss, dz, true, own)) <= 1
    assert off("cpu", loss * (1 + 1e-6), dz, true, own)[0] > 1


def test_powers_are_right_to_an_ulp_and_a_half() -> None:
    """A row of two whose rest is one power: its loss is log1p of that power."""
    below = -torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 87
    high = torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 90
    z = torch.stack((high, high + below), 1)[:, :, None]
    y = torch.zeros(4000, 1, dtype=torch.long)
    fields, _ = reference.part(z, None, y, None, None, False, False)
    got = operators.part(there(z), None, there(y), None, None, False, False)[0].cpu()
    error = (got[1] / fields[1] - 1).abs().max()
    assert error < 2.0**-23  # 1.92 ε of docs/algebra.md is 0.96 of that
    assert error > 2.0**-26  # float32 steps, so it is not the reference that was asked
    assert torch.equal(got[0], fields[0])


@pytest.mark.parametrize("t", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_logit(dtype: torch.dtype, t: float) -> None:
    z, true = of_every_logit(dtype, t)
    known = ~z.isnan()
    own = torch.ones_like(known[known])
    leaf = there(z).clone().requires_grad_()
    loss = binary_cross_entropy_with_logits(leaf, torch.full_like(leaf, t), reduction="none")
    loss, dz = loss.detach().cpu(), torch.autograd.grad(loss.sum(), leaf)[0].cpu()
    assert loss[~known].isnan().all()
    assert dz[~known].isnan().all()
    among_known = {name: number[known] for name, number in true.items()}
    assert max(off("cpu", loss[known], dz[known], among_known, own)) <= 1
    for fault, wrong in faults(dz[known]):
        if not torch.equal(wrong, dz[known]):
            assert off("cpu", loss[known], wrong, among_known, own)[1] > 1, fault


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_binary_elements_are_the_references(dtype: torch.dtype) -> None:
    n = 3 * 900
    z, share = 8 * random(n).to(dtype), random(n, seed=1).abs().clamp(max=1).to(dtype)
    a, pos = random(n, seed=2), torch.tensor([0.5, 2.0, 7.0])
    size = 2e-15 if dtype == torch.float64 else 6e-7
    for weight in (None, pos):
        for smoothing in (0.0, 0.1):
            given = z, share, weight, smoothing
            on_device = tuple(map(there, given))
            exact, sums = (reference.elements(*given, summed) for summed in (False, True))
            got = operators.elements(*on_device, False).cpu()
            assert ((got - exact).abs() / exact).max() < size
            assert ((got.roll(3) - exact).abs() / exact).max() > 1e-2
            torch.testing.assert_close(operators.elements(*on_device, True).cpu(), sums, rtol=size, atol=0)
            for cotangent in (a, a[:1].expand(n), a[: len(sums)]):
                exact = reference.pull_elements(*given, cotangent)
                got = operators.pull_elements(*on_device, there(cotangent)).cpu()
                # An entry is a difference of two terms, each at most 7 times its cotangent.
                most = 7 * exact.abs().max()
                assert (got - exact).abs().max() / most < size
                assert (got * 1.01 - exact).abs().max() / most > 1e-4


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=32), min_size=1, max_size=8), st.sampled_from([0, 70]), st.data())
def test_any_row_at_all(row: list[float], padding: int, data: st.DataObject) -> None:
    y = data.draw(st.integers(0, len(row) - 1))
    z = torch.tensor([row + [-np.inf] * padding], dtype=torch.float32)
    loss, dz = compute(z, torch.tensor([y]))
    if any(np.isnan(x) or x == np.inf for x in row) or all(x == -np.inf for x in row):
        assert loss.isnan().all()
        assert dz.isnan().all()
        return
    p, others = oracle.probabilities(row), oracle.others(row, y)
    exact = oracle.nll(row, y) if others > 0.5 else -oracle.mp.log1p(-others)
    slopes = torch.tensor([[float(-others if j == y else share) for j, share in enumerate(p)]], dtype=torch.float64)
    got = dz[:, : len(row)]
    assert ulps(loss, [float(exact)]) <= 2
    assert ulps(got[:, y], slopes[:, y]) <= 2
    assert ulps(got, slopes) <= 4
    assert not dz[:, len(row) :].any()
    assert not slopes.any() or ulps(got * 1.00001, slopes) > 4 or got.abs().max() < 1e-38
