"""The CPU kernels held to the truth: every kind of row, target and statistic, every 16-bit logit, any row at all.

Errors are in ulps of each entry. An entry that is a difference (p - q against soft targets, p - ε/v of smoothing,
p (nll - entropy), the sum of several terms) is known to the rounding of its larger term: there an ulp is one of that.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy, sparse
from crossent.compute import backends, losses
from tests import oracle
from tests.compare import bits, faults, ulp, ulps

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# --- truth ----------------------------------------------------------------------------------------------------------


def truth(
    z: Tensor,
    q: Tensor,
    weight: Tensor | None = None,
    upstream: Tensor | None = None,
    *,
    smoothing: float = 0.0,
    confidence: float = 0.0,
    z_loss: float = 0.0,
    focal: float = 0.0,
) -> dict[str, Tensor]:
    """Loss (n,) and gradient (n, v) of rows z (n, v) under weights q (n, v), from probabilities in 80-bit floats.

    1 - p_j is added up from the other columns, those before j and those behind it, so that it needs no peak taken out.
    "loss_size" and "size" are the largest terms of the two: where they are sums of several, what is known of them.
    """
    assert np.finfo(np.longdouble).eps < 1e-18, "this machine has no 80-bit floats; use another truth here"
    wide = np.longdouble
    x, share = z.double().numpy().astype(wide), q.double().numpy().astype(wide)
    u = np.ones(x.shape[1], wide) if weight is None else weight.double().numpy().astype(wide)
    g = np.ones((len(x), 1), wide) if upstream is None else upstream.double().numpy().astype(wide)[:, None]
    with np.errstate(all="ignore"):
        peak = x.max(-1, keepdims=True)
        power = np.exp(x - peak)
        others = _of_others(power)
        p, miss = power / (power + others), others / (power + others)
        spread = np.log1p(np.take_along_axis(others, x.argmax(-1)[:, None], -1))
        lse = peak + spread
        nll = np.where(p < 0.5, (peak - x) + spread, -np.log1p(-miss))
        known = np.where(p > 0, nll, 0)
        entropy = (p * known).sum(-1, keepdims=True)
        allowed = x > -np.inf
        count, weights = allowed.sum(-1, keepdims=True), allowed * u
        uniform = np.where(weights > 0, weights * nll, 0).sum(-1, keepdims=True) / count
        mass, a = share.sum(-1, keepdims=True), share * u
        held = a.sum(-1, keepdims=True)
        # The loss, and its slope for each nll.
        of_nll, slope = nll, 1
        if focal:
            of_nll = miss**focal * nll
            slope = miss**focal + focal * miss ** (focal - 1) * p * known
        keep = 1 - wide(smoothing)
        value = [
            keep * np.where(a > 0, a * of_nll, 0).sum(-1, keepdims=True),
            wide(smoothing) * mass * uniform if smoothing else 0 * held,
            -wide(confidence) * held * entropy,
            wide(z_loss) * held * lse**2,
        ]
        most = np.maximum(np.abs(peak), spread)
        loss_size = np.maximum.reduce(
            [abs(sum(value)), *map(np.abs, value[:3]), 2 * wide(z_loss) * held * np.abs(lse) * most]
        )
        alpha = keep * np.where(a > 0, a * slope, 0)
        even, sure, norm = wide(smoothing) * mass / count, -wide(confidence) * held, 2 * wide(z_loss) * held
        terms = [
            (_of_others(alpha) + even * weights.sum(-1, keepdims=True) + norm * lse) * p,
            -alpha * miss,
            -even * weights,
            sure * p * known,
            -sure * p * entropy,
        ]
        gradient = g * sum(terms)
        if z.dtype == torch.float64:  # what is not the target's own is a difference there, a - α
            terms.append(alpha * p)
        size = np.abs(g) * np.maximum.reduce([abs(sum(terms)), *map(np.abs, terms), np.abs(norm * most * p)])
        found = {"loss": sum(value)[:, 0], "loss_size": loss_size[:, 0], "gradient": gradient, "size": size}
        return {name: torch.from_numpy(number.astype(np.float64)) for name, number in found.items()}


def _of_others(x: np.ndarray) -> np.ndarray:
    """For each column the sum over all others: nothing is subtracted."""
    summed = np.zeros_like(x)
    summed[:, 1:] += x[:, :-1].cumsum(-1)
    summed[:, :-1] += x[:, :0:-1].cumsum(-1)[:, ::-1]
    return summed


def rows(v: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, int]]:
    """Rows that break kernels, as their dtype holds them, and a target that is allowed."""
    info = torch.finfo(dtype)
    noise = torch.randn(v, generator=torch.Generator().manual_seed(v), dtype=torch.float64)
    confident, two, many, masked, alone = (noise.clone() for _ in range(5))
    confident[v // 2] = 27.6 + np.log(v)  # p = 1 - 1e-12
    two[[0, v - 1]] = noise.max()
    many[::2] = noise.max()
    masked[1::3] = -torch.inf
    alone[:] = -torch.inf
    alone[v - 1] = 1.5
    far = 1e4 if dtype != torch.float16 else 1e3
    column = torch.arange(v)
    # float64 has no wider dtype in which sums of its greatest numbers are still numbers.
    largest = torch.full((v,), 1e300 if dtype == torch.float64 else info.max, dtype=torch.float64)
    largest[1::3] *= -1
    found = {
        "flat": (torch.zeros(v), 0),
        "two greatest": (two, v - 1),
        "many greatest": (many, 0),
        "confident": (confident, v // 2),
        "sure and wrong": (confident, 0),
        "offset": (noise + far, v // 2),
        "offset down": (noise - far, 0),
        "masked": (masked, 0),
        "peaked": (200 * (2 * torch.rand(v, generator=torch.Generator().manual_seed(1)) - 1), v - 1),
        "one class allowed": (alone, v - 1),
        "denormal": (noise * info.smallest_normal / 4, 0),
        "signed zeros": (torch.where(column % 3 == 0, -0.0, 0.0), v // 2),
        "largest": (largest, 0),
        "largest and lost": (largest, min(1, v - 1)),
        "neighbours": (1 + info.eps * (column % 5).double(), v // 2),
        "tiny": (noise * 1e-6, v // 2),
        "random": (noise, v - 1),  # the last, so that a skipped last row shows
    }
    return {name: (row.to(dtype), y) for name, (row, y) in found.items()}


def batch(v: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All rows of the catalogue, and their targets."""
    chosen = rows(v, dtype).values()
    return torch.stack([row for row, _ in chosen]), torch.tensor([y for _, y in chosen])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- what is allowed ------------------------------------------------------------------------------------------------

# Ulps of the loss, of the target's entry, of the other entries. The reference rounds once, from float64. In float64
# there is no wider dtype, so every sum and product on the way rounds; and z - peak is rounded in the reference, which
# costs as many ulps as it has nats: it has no line here.
ALLOWED = {
    ("reference", torch.float32): (1.0, 1.0, 1.0),
    ("cpu", torch.float32): (2.0, 2.0, 4.0),
    ("cpu", torch.float64): (4.0, 8.0, 8.0),
}


def off(
    backend: str, loss: Tensor, dz: Tensor, true: dict[str, Tensor], target: Tensor, times: float = 1.0
) -> tuple[float, float]:
    """The greatest errors of loss and gradient as shares of what is allowed; ``target`` marks the targets' entries.

    A loss that takes the error of nll several ``times`` may be off by as much more.
    """
    narrow = dz.dtype in (torch.bfloat16, torch.float16)
    of_loss, of_target, of_others = ALLOWED[backend, torch.float32 if narrow else dz.dtype]
    value = ulps(loss, true["loss"], true["loss_size"]) / (of_loss * times)
    gradient, size = true["gradient"], true["size"]
    if narrow:  # rounded once, and where it is a difference also known to float32's 4 ulp of the larger term
        blur = torch.where(size > gradient.abs(), 4 * times * ulp(size, torch.float32), 0.0)
        allowed = 0.51 * ulp(gradient.abs(), dz.dtype) + blur
    else:
        allowed = torch.where(target, of_target, of_others) * times * ulp(size, dz.dtype)
    error = (dz.double() - gradient).abs() / allowed
    return value, float(torch.where(error.isnan(), torch.inf, error).max())


TERMS = {
    "NLL": ({}, {}),
    "smoothed": ({"label_smoothing": 0.1}, {"smoothing": 0.1}),
    "confidence": ({"loss": losses.NLL() + 0.1 * losses.Confidence()}, {"confidence": 0.1}),
    "z-loss": ({"loss": losses.NLL() + 1e-4 * losses.LogZ()}, {"z_loss": 1e-4}),
    "focal": ({"loss": losses.Focal(2.0)}, {"focal": 2.0}),
    "all": (
        {"loss": losses.NLL() + 0.1 * losses.Confidence() + 1e-4 * losses.LogZ(), "label_smoothing": 0.1},
        {"smoothing": 0.1, "confidence": 0.09, "z_loss": 0.9e-4},
    ),
}


def targets(kind: str, z: Tensor, y: Tensor) -> tuple[object, Tensor, Tensor]:
    """(what a user passes, the same as weights of all columns, which entries are a target's own)."""
    n, v = z.shape
    q = torch.zeros(n, v)
    if kind == "labels":
        q.scatter_(1, y[:, None], 1.0)
        return y, q, q > 0
    if kind == "sparse":  # the label's column comes twice
        columns, shares = torch.stack((y, (y + 2) % v, y), 1), torch.tensor([0.5, 0.3, 0.2]).expand(n, 3)
        columns = torch.where(z.gather(1, columns) > -torch.inf, columns, y[:, None])
        return sparse(columns, shares, v), q.double().scatter_add_(1, columns, shares.double()), q > 0
    q = torch.where(z > -torch.inf, torch.rand(n, v, generator=torch.Generator().manual_seed(v)), 0.0)
    q[0] = 0
    q[1] = 0
    q[1, v // 2] = 1
    return q, q, (q > 0) & ((q > 0).sum(-1, keepdim=True) == 1)


def compute(z: Tensor, target: object, upstream: Tensor | None = None, **more: object) -> tuple[Tensor, Tensor]:
    """The losses of the rows and the gradient of z, which may lie in any layout."""
    leaf = z.detach().requires_grad_()
    loss = cross_entropy(leaf, target, reduction="none", validate="off", **more)
    upstream = torch.ones_like(loss) if upstream is None else upstream
    return loss.detach(), torch.autograd.grad(loss, leaf, upstream)[0]


# --- digits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "knobs"), [("NLL", {}), ("Smoothed", {"smoothing": 0.1}), ("Focal", {"focal": 2.0})])
def test_the_truth_is_the_oracles(name: str, knobs: dict[str, float]) -> None:
    for v in (1, 2, 6):
        z, y = batch(v, torch.float32)
        true = truth(z, torch.nn.functional.one_hot(y, v), **knobs)
        for row, label, loss, gradient in zip(z.tolist(), y.tolist(), true["loss"], true["gradient"], strict=True):
            exact = torch.tensor(float(oracle.loss(name, row, label)), dtype=torch.float64)
            assert ulps(loss, exact) <= 2  # both end in float64, and 0.1 is another number in binary
            assert exact == 0 or exact.isinf() or ulps(loss * 1.0001, exact) > 2
            if max(map(abs, row)) < 1e6:  # its slopes are differences with a step of 1e-20
                slopes = [float(left) for left, _ in oracle.slopes(name, row, label)]
                assert gradient.tolist() == pytest.approx(slopes, rel=1e-8, abs=1e-17)


# Not the focal loss in float64: its 1 - e^-nll knows p no better than nll ulps, which no narrower dtype sees.
@pytest.mark.parametrize(
    ("dtype", "term"), [(d, t) for d in FLOATS for t in TERMS if (d, t) != (torch.float64, "focal")], ids=str
)
def test_every_row_every_target_every_statistic(dtype: torch.dtype, term: str) -> None:
    more, knobs = TERMS[term]
    times = 3.0 if term == "focal" else 1.0  # (1 - p)² nll has three factors that are off as nll is
    for v in (1, 2, 3, 10, 63, 64, 65, 127, 128, 129, 256, 1000, 4097):
        z, y = batch(v, dtype)
        g = random(len(z)).float()
        for kind in ("labels", "sparse", "soft"):
            target, q, own = targets(kind, z, y)
            for weight in (None, torch.rand(v, generator=torch.Generator().manual_seed(3)) + 0.1):
                true = truth(z, q, weight, g, **knobs)
                for backend in ("reference", "cpu"):
                    if (backend, dtype) == ("reference", torch.float64):
                        continue
                    with backends.using(backend):
                        loss, dz = compute(z, target, g, weight=weight, **more)
                    of_loss, of_gradient = off(backend, loss, dz, true, own, times)
                    assert of_loss <= 1, (v, kind, backend)
                    assert of_gradient <= 1, (v, kind, backend)
                    for fault, wrong in faults(dz):
                        if v > 1 and not torch.equal(wrong, dz):
                            assert off(backend, loss, wrong, true, own, times)[1] > 1, f"{v} {kind}: {fault} would pass"


def test_a_vocabulary_of_128256() -> None:
    z, y = random(3, 128256).float() * 3, torch.tensor([7, 128255, 64000])
    z[0, 7] = 45.0
    for dtype in FLOATS:
        loss, dz = compute(z.to(dtype), y)
        true = truth(z.to(dtype), torch.nn.functional.one_hot(y, 128256))
        own = torch.nn.functional.one_hot(y, 128256) > 0
        assert max(off("cpu", loss, dz, true, own)) <= 1
        for fault, wrong in faults(dz):
            assert off("cpu", loss, wrong, true, own)[1] > 1, fault


@pytest.mark.parametrize("v", [5, 200])
def test_any_gradient_from_above(v: int) -> None:
    z, y = random(6, v).float(), torch.arange(6) % v
    hot = torch.nn.functional.one_hot(y, v)
    for name, upstream in {
        "random": random(6, seed=1).float(),
        "one number expanded": torch.tensor(0.3).expand(6),
        "every other": random(12, seed=2).float()[::2],
        "huge": torch.full((6,), 1e30),
        "small": torch.full((6,), 1e-24),
    }.items():
        loss, dz = compute(z, y, upstream)
        true = truth(z, hot, upstream=upstream)
        assert max(off("cpu", loss, dz, true, hot > 0)) <= 1, name
        assert off("cpu", loss, dz * 1.000001, true, hot > 0)[1] > 1, name
    # What powers are multiplied by is 2^-32 of the cotangent, in float32: of one below 2^-94 it is subnormal, and known
    # to 2^-150, which the powers make 2^-118.
    _, dz = compute(z, y, torch.full((6,), 1e-30))
    exact = truth(z, hot, upstream=torch.full((6,), 1e-30))["gradient"]
    assert (dz.double() - exact).abs().max() <= 2.0**-118
    assert (dz.double() * 1.0001 - exact).abs().max() > 2.0**-118
    assert not bits(compute(z, y, torch.zeros(6))[1].abs()).any()


# --- every 16-bit logit ---------------------------------------------------------------------------------------------


def of_every_logit(dtype: torch.dtype, t: float) -> tuple[Tensor, dict[str, Tensor]]:
    """All 65,536 logits z, with loss and gradient of (0, z) against a share of t for z."""
    z = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x, zero, t = z.double().numpy().astype(np.longdouble), np.longdouble(0), np.longdouble(t)
    with np.errstate(all="ignore"):
        p, q = 1 / (1 + np.exp(-x)), 1 / (1 + np.exp(x))
        one, other = t * np.logaddexp(zero, -x) if t else 0, (1 - t) * np.logaddexp(zero, x) if t < 1 else 0
        found = {"loss": one + other, "gradient": (1 - t) * p - t * q, "size": np.maximum((1 - t) * p, t * q)}
        found["loss_size"] = np.abs(found["loss"])
        return z, {name: torch.from_numpy(number.astype(np.float64)) for name, number in found.items()}


@pytest.mark.parametrize("t", [0.0, 1.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_logit(dtype: torch.dtype, t: float) -> None:
    z, true = of_every_logit(dtype, t)
    known = ~z.isnan()
    own = torch.ones_like(known[known])

    def held(loss: Tensor, dz: Tensor, true: dict[str, Tensor]) -> float:
        return max(off("cpu", loss, dz, true, own))

    leaf = z.clone().requires_grad_()
    loss = binary_cross_entropy_with_logits(leaf, torch.full_like(z, t), reduction="none")
    (dz,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss[~known].isnan().all()
    assert dz[~known].isnan().all()
    among_known = {name: number[known] for name, number in true.items()}
    assert held(loss.detach()[known], dz[known], among_known) <= 1
    for fault, wrong in faults(dz[known]):
        if not torch.equal(wrong, dz[known]):
            assert held(loss.detach()[known], wrong, among_known) > 1, fault
    # The same as the second column of rows, where ±inf has its own meaning.
    finite = z.isfinite()
    two = torch.stack((torch.zeros_like(z[finite]), z[finite]), 1)
    among_finite = {name: number[finite] for name, number in true.items()}
    loss, pair = compute(two, torch.tensor([1 - t, t]).expand(len(two), 2))
    own = torch.ones_like(finite[finite])
    assert held(loss, pair[:, 1], among_finite) <= 1
    assert held(loss, -pair[:, 0], among_finite) <= 1
    assert held(loss, pair[:, 0], among_finite) > 1


@settings(max_examples=60, deadline=None, derandomize=True)
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
