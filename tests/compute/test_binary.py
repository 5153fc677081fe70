"""Binary cross-entropy: both tails, infinite logits, every loss, and all that PyTorch's function takes."""

from __future__ import annotations

from functools import partial

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import BCEWithLogitsLoss, binary_cross_entropy_with_logits, cross_entropy
from crossent.compute import binary, functional
from crossent.compute.binary import element_number
from crossent.compute.losses import LDAM, LOSSES, NLL, ClassWeighted, Loss, Smoothed
from crossent.compute.stats import Stats
from tests.compare import faults, ulps
from tests.laws.test_losses import KNOBS as KNOBS_OF_SIX

KNOBS = {**KNOBS_OF_SIX, "LDAM": LDAM(torch.tensor([90, 10]))}


def truth(z: float, t: float) -> tuple[float, float]:
    p = 1 / (1 + mp.exp(-mp.mpf(z)))
    q = 1 / (1 + mp.exp(mp.mpf(z)))
    t = mp.mpf(t)
    loss = t * mp.log1p(mp.exp(-mp.mpf(z))) + (1 - t) * mp.log1p(mp.exp(mp.mpf(z)))
    return float(loss), float(p * (1 - t) - q * t)


Z = [-700.0, -88.0, -40.0, -17.0, -5.5, -1.0, -1e-3, -1e-30, 0.0, 1e-30, 0.3, 2.0, 16.6, 36.8, 89.0, 650.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("t", [0.0, 1.0, 0.25])
def test_both_tails_keep_their_digits(dtype: torch.dtype, t: float) -> None:
    z = torch.tensor(Z, dtype=dtype, requires_grad=True)
    value = binary_cross_entropy_with_logits(z, torch.full_like(z, t), reduction="none")
    (dz,) = torch.autograd.grad(value.sum(), z)
    exact = [truth(v, t) for v in z.detach().tolist()]
    losses, gradient = [e[0] for e in exact], torch.tensor([e[1] for e in exact], dtype=torch.float64)
    # The contract: 2 ulp of float32, or of float64 for float64; a 16-bit gradient is correctly rounded.
    narrow = dtype in (torch.bfloat16, torch.float16)
    assert ulps(value.detach(), losses) <= 2
    # (1 - t) p - t (1 - p) is a difference of numbers of the size of t: it is exact to their rounding.
    scale = gradient.abs().clamp(min=t) if 0 < t < 1 else None
    assert ulps(dz, gradient, scale) <= (0.51 if narrow else 2)
    for fault, wrong in faults(dz):
        if not torch.equal(wrong, dz):
            assert ulps(wrong, gradient, scale) > (0.51 if narrow else 4), fault


def test_infinite_logits_cost_infinity_and_keep_their_gradient() -> None:
    z = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf], requires_grad=True)
    value = binary_cross_entropy_with_logits(z, torch.tensor([1.0, 0.0, 0.0, 1.0]), reduction="none")
    assert value.tolist() == [0.0, 0.0, torch.inf, torch.inf]
    (dz,) = torch.autograd.grad(value.sum(), z)
    assert dz.tolist() == [0.0, 0.0, 1.0, -1.0]


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind is not ClassWeighted])
def test_an_element_is_a_row_of_two_columns(kind: type[Loss]) -> None:
    """The two-column face of the same loss is the oracle: (0, z) against the label."""
    z = torch.tensor([-3.0, 0.5, 12.0, -20.0], dtype=torch.float64)
    y = torch.tensor([1, 0, 1, 1])
    two = torch.stack((torch.zeros_like(z), z), 1).requires_grad_()
    one = z.clone().requires_grad_()
    loss = KNOBS[kind.__name__]
    a = binary_cross_entropy_with_logits(one, y, loss=loss, reduction="none")
    b = cross_entropy(two, y, loss=loss, reduction="none")
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-15)
    (da,) = torch.autograd.grad(a.sum(), one)
    (db,) = torch.autograd.grad(b.sum(), two)
    torch.testing.assert_close(da, db[:, 1], rtol=1e-12, atol=1e-15)
    if kind.__name__ not in ("LogZ", "Confidence"):
        assert not torch.allclose(a, cross_entropy(two, 1 - y, loss=loss, reduction="none"))


class Twice(NLL):
    """A loss that is nearly the NLL."""

    def __call__(self, s: Stats) -> Tensor:
        return 2 * super().__call__(s)


@pytest.mark.parametrize("loss", [Smoothed(0.1, over="others"), Smoothed(0.1, Twice()), Twice()])
def test_what_is_nearly_the_nll_is_not_taken_for_it(loss: Loss) -> None:
    z, y = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1, 0, 0])
    for reduction in ("none", "sum"):
        leaf, row = z.clone().requires_grad_(), z.clone().requires_grad_()
        found = binary_cross_entropy_with_logits(leaf, y.float(), loss=loss, reduction=reduction)
        wanted = cross_entropy(torch.stack((torch.zeros_like(row), row), 1), y, loss=loss, reduction=reduction)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), x)[0] for v, x in ((found, leaf), (wanted, row))))
        smoothed = binary_cross_entropy_with_logits(z, y.float(), label_smoothing=0.1, reduction=reduction)
        assert not torch.allclose(found, smoothed)


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind is not ClassWeighted])
def test_gradients_of_both_orders(kind: type[Loss]) -> None:
    z = torch.tensor([-1.5, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)

    def value(z: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(z, t, loss=KNOBS[kind.__name__], reduction="sum")

    assert torch.autograd.gradcheck(value, z)
    assert torch.autograd.gradgradcheck(value, z)


def test_agrees_with_torch() -> None:
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(5, 3, generator=g).double(), torch.rand(5, 3, generator=g).double()
    w, pos = torch.rand(3, generator=g).double(), torch.rand(3, generator=g).double() + 1
    for reduction in ("none", "mean", "sum"):
        ours = binary_cross_entropy_with_logits(z, t, w, pos_weight=pos, reduction=reduction)
        theirs = F.binary_cross_entropy_with_logits(z, t, w, pos_weight=pos, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
        assert not torch.allclose(ours, F.binary_cross_entropy_with_logits(z, t, w, reduction=reduction))
    module = BCEWithLogitsLoss(w, pos_weight=pos)
    assert module(z, t) == binary_cross_entropy_with_logits(z, t, w, pos_weight=pos)


def test_smoothing_moves_the_target_before_it_is_weighted() -> None:
    z, t, pos = torch.tensor([1.0, -2.0]).double(), torch.tensor([1.0, 0.0]).double(), torch.tensor(3.0).double()
    smoothed = binary_cross_entropy_with_logits(z, t, pos_weight=pos, label_smoothing=0.2, reduction="none")
    moved = F.binary_cross_entropy_with_logits(z, 0.8 * t + 0.1, pos_weight=pos, reduction="none")
    torch.testing.assert_close(smoothed, moved, rtol=1e-14, atol=0)
    assert not torch.allclose(smoothed, F.binary_cross_entropy_with_logits(z, t, pos_weight=pos, reduction="none"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [None, 1, 3])
def test_a_number_and_its_gradient_from_one_reading(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, classes: int | None
) -> None:
    """The bits of the ordinary way, whatever comes from above and however often."""
    g = torch.Generator().manual_seed(0)
    z = (9 * torch.randn(507, 3, generator=g)).to(dtype).requires_grad_()  # 3 blocks, of which the last is not full
    t = torch.rand(507, 3, generator=g).to(dtype)
    z.data[:4] = torch.tensor([[torch.inf], [-torch.inf], [torch.nan], [0.0]])
    weight = None if classes is None else torch.rand(classes, generator=g) + 0.5
    took: list[bool] = []

    def watched(*arguments: object) -> torch.Tensor | None:
        at_once = element_number(*arguments)
        took.append(at_once is not None)
        return at_once

    def all_found() -> list[torch.Tensor]:
        found = []
        for reduction, smoothing, labels in (("mean", 0.0, t), ("sum", 0.1, t > 0.5), ("mean", 0.1, t)):
            value = binary_cross_entropy_with_logits(
                z, labels, reduction=reduction, label_smoothing=smoothing, pos_weight=weight
            )
            found += [value, *(torch.autograd.grad(f * value, z, retain_graph=True)[0] for f in (1.0, 1.0, 3.0))]
        return [x.detach().nan_to_num(nan=-7.0) for x in found]

    monkeypatch.setattr(binary, "element_number", watched)
    once = all_found()
    assert took == [True] * 3
    monkeypatch.setattr(binary, "element_number", lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(once, all_found(), strict=True))
    assert not torch.equal(once[1], once[3])  # so the comparison can fail
    assert not torch.equal(once[1], once[-3])
    assert once[1].data_ptr() != once[2].data_ptr()
    with torch.no_grad():
        assert binary_cross_entropy_with_logits(z[4:], t[4:]) == binary_cross_entropy_with_logits(z[4:].detach(), t[4:])


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        *(
            (dtype, wrong)
            for dtype in (torch.float32, torch.float64, torch.bfloat16)
            for wrong in (-1.0, -1e-30, 1.01, 2.0, float("nan"))
        ),
        (torch.float64, 1 + 2**-52),
        (torch.int64, -1),
        (torch.int64, 2),
    ],
)
def test_a_share_that_is_none_is_seen_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch, wrong: float, dtype: torch.dtype
) -> None:
    looked, really = [], functional.check_share
    monkeypatch.setattr(functional, "check_share", lambda share: (looked.append(share), really(share)))
    z, t = torch.randn(1300, requires_grad=True), torch.rand(1300).round().to(dtype)
    assert binary_cross_entropy_with_logits(z, t).isfinite()
    if dtype != torch.int64:
        t[600] = -0.0
    assert binary_cross_entropy_with_logits(z, t).isfinite()
    assert not looked
    t[1299] = wrong
    with pytest.raises(ValueError, match=r"1 elements do not, first at \(1299,\)"):
        binary_cross_entropy_with_logits(z, t)
    with pytest.raises(ValueError, match=r"1 elements do not, first at \(1299,\)"):
        binary_cross_entropy_with_logits(z, t, reduction="none")
    binary_cross_entropy_with_logits(z, t, validate="off")


@pytest.mark.parametrize("divisor", [100, 1000, 7919])
def test_a_mean_is_rounded_once(divisor: int) -> None:
    """At z = 0 a slope is ½ - t, without rounding; its mean is the float32 that is nearest to (½ - t) / n."""
    z = torch.zeros(divisor, requires_grad=True)
    t = torch.linspace(0, 1, 65).repeat(divisor // 65 + 1)[:divisor]
    binary_cross_entropy_with_logits(z, t).backward()
    wanted = ((0.5 - t.double()) / divisor).float()
    assert z.grad.equal(wanted)
    assert not ((0.5 - t) * torch.tensor(1 / divisor)).equal(wanted)  # it can tell


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-18, 1e18, 1e30, float("inf"), float("nan")])
def test_a_cotangent_of_any_size(scale: float) -> None:
    z = torch.tensor([0.0, 2.0, -30.0], requires_grad=True)
    t = torch.tensor([0.25, 0.25, 1.0])
    slope = torch.autograd.grad(binary_cross_entropy_with_logits(z, t, reduction="sum"), z, retain_graph=True)[0]
    loss = binary_cross_entropy_with_logits(z, t, reduction="sum")
    (grad,) = torch.autograd.grad(loss, z, torch.tensor(scale))
    torch.testing.assert_close(grad, slope * scale, rtol=2**-22, atol=0, equal_nan=True)  # 2 roundings of each


def test_a_number_has_derivatives_of_both_orders() -> None:
    z = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for reduction in ("mean", "sum"):
        call = partial(binary_cross_entropy_with_logits, target=torch.linspace(0, 1, 7), reduction=reduction)
        assert torch.autograd.gradcheck(call, z)
        assert torch.autograd.gradgradcheck(call, z)


def test_class_weights_are_pos_weight_here() -> None:
    with pytest.raises(TypeError, match="pos_weight"):
        binary_cross_entropy_with_logits(torch.zeros(2), torch.zeros(2), loss=ClassWeighted(torch.ones(2)))


def test_soft_targets_have_gradients_too() -> None:
    z = torch.tensor([0.7, -2.0], dtype=torch.float64)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    (dt,) = torch.autograd.grad(binary_cross_entropy_with_logits(z, t, reduction="sum"), t)
    torch.testing.assert_close(dt, -z, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda z, t: binary_cross_entropy_with_logits(z, t[:, None]), r"needs squeeze\(1\)"),
        (lambda z, t: binary_cross_entropy_with_logits(z, 2 * t), r"2 elements do not, first at \(0,\): 2.0"),
        (lambda z, t: binary_cross_entropy_with_logits(z, -t / 2), r"2 elements do not, first at \(0,\): -0.5"),
        (lambda z, t: binary_cross_entropy_with_logits(z, t * torch.nan), r"3 elements do not, first at \(0,\): nan"),
        (lambda z, t: binary_cross_entropy_with_logits(z, t, torch.ones(2)), "does not broadcast"),
        (lambda z, t: binary_cross_entropy_with_logits(z, t, label_smoothing=1.5), "between 0 and 1"),
    ],
)
def test_errors_are_sentences(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(torch.randn(3), torch.tensor([1.0, 0.0, 1.0]))
