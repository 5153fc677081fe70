"""What must hold for every loss of the public list. A loss that is added there and not here is a failure."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy, sparse
from crossent.compute import backends, losses
from crossent.compute.losses import LOSSES, NLL, ClassWeighted, Confidence, Focal, LogZ, Loss, Smoothed
from crossent.compute.rows import row_stats
from crossent.compute.target import labels
from tests import oracle
from tests.compare import faults, ulps

WEIGHT = [0.5, 2.0, 1.0, 3.0, 0.25, 1.5]
KNOBS: dict[str, Loss] = {
    "NLL": losses.NLL(),
    "Smoothed": losses.Smoothed(0.1),
    "ClassWeighted": losses.ClassWeighted(torch.tensor(WEIGHT)),
    "Focal": losses.Focal(2.0),
    "Asymmetric": losses.Asymmetric(1.0, 4.0, 0.05),
    "Poly1": losses.Poly1(1.0),
    "GeneralisedCE": losses.GeneralisedCE(0.7),
    "SymmetricCE": losses.SymmetricCE(0.1, 1.0, -4.0),
    "TaylorCE": losses.TaylorCE(3),
    "LogZ": losses.LogZ(),
    "Confidence": losses.Confidence(),
    "Unlikelihood": losses.Unlikelihood(),
    "Margin": losses.Margin(0.35),
    "LDAM": losses.LDAM(torch.tensor(oracle.COUNTS), 0.5),
    "ArcFace": losses.ArcFace(0.5, 30.0),
    "Brier": losses.Brier(),
    "Hinge": losses.Hinge(1.0),
}
ROWS = {
    "ordinary": ([0.3, -1.2, 2.0, 0.1, -0.7, 1.1], 3),
    "confident": ([28.0, 0.0, -1.0, 0.5, 0.25, -2.0], 0),
    "wrong and sure": ([28.0, 0.0, -1.0, 0.5, 0.25, -2.0], 4),
    "first and wrong": ([-3.0, 1.0, 2.5, 0.0, 0.5, -1.0], 0),
    "far from zero": ([10000.0, 10001.0, 9998.5, 9999.0, 10000.5, 9990.0], 1),
    "flat": ([0.0] * 6, 5),
    "masked": ([0.3, float("-inf"), 2.0, 0.1, float("-inf"), 1.1], 2),
}
NAMES = [kind.__name__ for kind in LOSSES]
BLIND = ("LogZ", "Confidence")  # these do not look at the target

# Ulps of float32 that the loss, the target's gradient and the other gradients may be off by. The reference works in
# float64 and rounds once: half an ulp is what to expect, and 1 leaves room for the losses' own arithmetic. The kernels
# have what the contract gives them.
REFERENCE, KERNEL, KERNEL_OTHERS = 1.0, 2.0, 4.0
TOLERANCES = {"reference": (REFERENCE, REFERENCE, REFERENCE), "cpu": (KERNEL, KERNEL, KERNEL_OTHERS)}


def test_every_public_loss_has_its_laws() -> None:
    assert set(KNOBS) == set(NAMES)


def terms(z: Tensor, y: int, loss: Loss) -> list[float]:
    """The largest term of each logit's gradient, from the cotangents of the statistics.

    Where a gradient is a difference of larger terms (p - 1/v of smoothing on a flat row) no digit below theirs is
    known.
    """
    s = row_stats(z[:1].detach(), labels(torch.tensor([y]), 6, -100), loss)
    there = {name: vars(s)[name] for name in ("nll", "lse", "uniform", "entropy") if vars(s)[name] is not None}
    leaves = {name: value.detach().double().requires_grad_() for name, value in there.items()}
    value = loss(replace(s, **leaves))
    pulled = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True) if value.requires_grad else ()
    size = {name: float(g.abs().sum()) for name, g in zip(leaves, pulled, strict=False) if g is not None}
    p = torch.softmax(z[0].detach().double(), -1)
    known = p > 0
    lost = torch.where(known, -torch.where(known, p, 1.0).log(), 0.0)
    own = size.get("nll", 0.0) * torch.where(torch.arange(6) == y, 1 - p, p)
    even = size.get("uniform", 0.0) * torch.maximum(p, known / known.sum())
    sure = size.get("entropy", 0.0) * p * torch.maximum(lost, (p * lost).sum())
    return torch.stack((own, size.get("lse", 0.0) * p, even, sure)).amax(0).tolist()


@pytest.mark.parametrize("backend", TOLERANCES)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_the_papers_formula(name: str, row: str, backend: str) -> None:
    values, y = ROWS[row]
    z = torch.tensor([values, values], requires_grad=True)  # two rows, so that a skipped last row shows
    exact = z[0].tolist()  # what float32 made of them
    with backends.using(backend):
        got = cross_entropy(z, torch.tensor([y, y]), loss=KNOBS[name], reduction="none")
        (dz,) = torch.autograd.grad(got, z, torch.tensor([1.0, 1.0]))
        larger = terms(z, y, KNOBS[name])
    truth = float(oracle.loss(name, exact, y, WEIGHT if name == "ClassWeighted" else None))
    if math.isnan(truth):  # ArcFace of what is no cosine
        assert got.isnan().all()
        return
    of_loss, of_target, of_others = TOLERANCES[backend]
    assert ulps(got.detach(), [truth, truth]) <= of_loss
    gradient = []
    for j, (left, right) in enumerate(oracle.slopes(name, exact, y, WEIGHT if name == "ClassWeighted" else None)):
        kink = abs(left - right) > 1e-10  # any slope between the two is one there
        assert not kink or float(left) <= float(dz[0, j]) <= float(right)
        gradient.append(float(dz[0, j]) if kink else float((left + right) / 2))
    # What the terms of a difference know ends with their own rounding: that of float64 for the reference, which is far
    # below an ulp of anything above 1e-8 of the largest, and that of the larger term for the kernels.
    largest = max(abs(v) for v in gradient)
    floor = [1e-8 * largest] * 6 if backend == "reference" else larger
    scale = [max(abs(v), least) for v, least in zip(gradient, floor, strict=True)]
    if largest < 1e-30 and backend == "reference":  # the optimum of this loss: the gradient is zero to rounding
        assert dz.abs().max() < 1e-14
        return

    def off(dz: Tensor) -> float:
        """The error as a share of what is allowed."""
        target = ulps(dz[:, y], [gradient[y]] * 2, [scale[y]] * 2) / of_target
        return max(target, ulps(dz, [gradient] * 2, [scale] * 2) / of_others)

    assert off(dz) <= 1
    for fault, wrong in faults(dz):
        # What is below the rounding of the terms cannot be told from them.
        if float((wrong - dz).abs().div(torch.tensor(scale)).nan_to_num().max()) > 1e-5:
            assert off(wrong) > 1, f"the comparison would accept a gradient {fault}"


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_all_orders_are_those_of_the_value(name: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1, 5, 0])

    def value(z: Tensor) -> Tensor:
        return cross_entropy(z, y, loss=KNOBS[name], reduction="sum")

    assert torch.autograd.gradcheck(value, z)
    assert torch.autograd.gradgradcheck(value, z)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours_or_on_layout(name: str) -> None:
    torch.manual_seed(1)
    z, y = torch.randn(7, 6), torch.randint(6, (7,))

    def value(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z, y, loss=KNOBS[name], reduction="none")

    whole = value(z, y)
    assert torch.equal(whole[4:5], value(z[4:5], y[4:5]))
    assert torch.equal(whole.flip(0), value(z.flip(0), y.flip(0)))
    assert torch.equal(whole, value(z.T.contiguous().T, y))
    assert torch.equal(whole, value(torch.cat((-z, z, -z), 1)[:, 6:12], y))  # neither whole nor from the beginning
    # The negative control: another target is another number, but for the terms that do not look at it.
    assert torch.equal(whole, value(z, (y + 1) % 6)) == (name in BLIND)


@pytest.mark.parametrize("name", NAMES)
def test_a_one_hot_soft_target_gives_the_bits_of_the_label(name: str) -> None:
    torch.manual_seed(2)
    z = torch.randn(5, 6)
    z[2, 3] = -torch.inf
    y = torch.tensor([0, 1, 2, 4, 5])
    hot = torch.nn.functional.one_hot(y, 6).float()
    weight = None if name == "ClassWeighted" else torch.tensor(WEIGHT)
    for reduction in ("none", "mean", "sum"):
        seen = []
        for target in (y, hot, sparse(y.unsqueeze(1), torch.ones(5, 1), 6)):
            leaf = z.clone().requires_grad_()
            value = cross_entropy(leaf, target, weight, loss=KNOBS[name], reduction=reduction)
            (dz,) = torch.autograd.grad(value.sum(), leaf)
            seen.append((value.detach(), dz))
        for value, dz in seen[1:]:
            assert torch.equal(value, seen[0][0])
            assert torch.equal(dz, seen[0][1])
    other = cross_entropy(z, hot.roll(1, -1), weight, loss=KNOBS[name], reduction="sum")
    assert name in BLIND or not torch.equal(other, seen[0][0])


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_row_is_never_read(name: str) -> None:
    torch.manual_seed(3)
    z, y = torch.randn(4, 6), torch.tensor([1, -100, 3, -100])
    clean = cross_entropy(z[::2], y[::2], loss=KNOBS[name])
    for poison in (torch.nan, torch.inf, -torch.inf):
        leaf = z.clone()
        leaf[1::2] = poison
        leaf.requires_grad_()
        value = cross_entropy(leaf, y, loss=KNOBS[name])
        (dz,) = torch.autograd.grad(value, leaf)
        assert torch.equal(value, clean)
        assert torch.equal(dz[1::2], torch.zeros(2, 6))
        assert not dz[1::2].signbit().any()
        assert dz[::2].isfinite().all()
        assert dz[::2].any()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_row(name: str) -> None:
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    for bad in (torch.nan, torch.inf):
        poisoned = z.clone()
        poisoned[1, 2] = bad
        rows = cross_entropy(poisoned, torch.tensor([0, 0, 0]), loss=KNOBS[name], reduction="none")
        assert rows.isnan().tolist() == [False, True, False]
    poisoned = z.clone()
    poisoned[1] = -torch.inf
    rows = cross_entropy(poisoned, torch.tensor([0, 0, 0]), loss=KNOBS[name], reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


def test_losses_add_and_scale() -> None:
    z, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(5)), torch.tensor([0, 1, 2, 3])

    def value(loss: Loss) -> Tensor:
        return cross_entropy(z.double(), y, loss=loss)

    together = value(NLL() + 0.1 * Confidence() + LogZ() * 1e-2)
    apart = value(NLL()) + 0.1 * value(Confidence()) + 1e-2 * value(LogZ())
    assert torch.allclose(together, apart, rtol=1e-14, atol=0)
    assert not torch.allclose(together, value(NLL()), rtol=1e-3)


def test_class_weights_belong_to_the_whole() -> None:
    weighted = ClassWeighted(torch.ones(6))
    with pytest.raises(TypeError, match=r"write ClassWeighted\(weight, a \+ b\)"):
        weighted + NLL()
    with pytest.raises(TypeError, match="whole loss"):
        Smoothed(0.1, weighted)
    with pytest.raises(TypeError, match="cannot be multiplied"):
        NLL() * NLL()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Smoothed(-0.1), "label_smoothing must lie between 0 and 1, and is -0.1"),
        (lambda: Focal(-1.0), "gamma must be 0 or more"),
        (lambda: losses.Poly1(-2.0), "epsilon must be -1 or more"),
        (lambda: losses.GeneralisedCE(0.0), r"for 0 use NLL\(\)"),
        (lambda: Smoothed(0.1, over="rest"), 'over must be "allowed", "others" or "all", and is \'rest\''),
        (lambda: losses.Margin(float("nan")), "must be finite"),
        (lambda: losses.Margin(1000.0), "-300 to 300, and is 1000"),
        (lambda: losses.Asymmetric(-1.0), "must be 0 or more, and are -1.0 and 4.0"),
        (lambda: losses.Asymmetric(margin=1.0), "below 1, and is 1.0"),
        (lambda: losses.SymmetricCE(-0.1), "alpha and beta must be 0 or more"),
        (lambda: losses.SymmetricCE(A=0.0), "less than 0, and is 0.0"),
        (lambda: losses.TaylorCE(0), "whole number, 1 or more, and is 0"),
        (lambda: losses.TaylorCE(1.5), "whole number, 1 or more, and is 1.5"),
        (lambda: losses.LDAM(torch.tensor([3, 0, 2])), "where 1 are not"),
        (lambda: losses.LDAM(torch.ones(2, 2)), r"got shape \(2, 2\)"),
        (lambda: losses.LDAM(torch.ones(2), -1.0), "between 0 and 300, and is -1.0"),
        (lambda: cross_entropy(torch.zeros(1, 3), torch.tensor([0]), loss=losses.LDAM(torch.ones(2))), "of 2 classes"),
        (lambda: losses.ArcFace(4.0), "radians, 0 or more and below π, and is 4.0"),
        (lambda: losses.ArcFace(scale=0.0), "greater than 0 and at most 150, and is 0.0"),
        (lambda: losses.Hinge(-1.0), "0 or more and finite, and is -1.0"),
        (lambda: ClassWeighted(torch.ones(2, 2)), r"shape \(v,\); got \(2, 2\)"),
    ],
)
def test_knobs_out_of_range_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_finite_gradient_at_both_ends(gamma: float) -> None:
    z = torch.tensor([[0.0, -torch.inf], [-800.0, 0.0]], requires_grad=True)  # p = 1 exactly; p = e^-800
    value = cross_entropy(z, torch.tensor([0, 0]), loss=Focal(gamma), reduction="none")
    assert value.tolist() == [0.0, 800.0]
    (dz,) = torch.autograd.grad(value.sum(), z)
    assert dz.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_are_finite_where_there_is_a_limit(name: str) -> None:
    nothing = -torch.inf
    rows = [[0.0, *[nothing] * 5], [-25.0, 0.0, *[nothing] * 4], [nothing, 0.0, 1.0, *[nothing] * 3]]
    z = torch.tensor(rows, requires_grad=True)  # p is 1, e^-25 and 0
    value = cross_entropy(z, torch.tensor([0, 0, 0]), loss=KNOBS[name], reduction="none")
    (dz,) = torch.autograd.grad(value.sum(), z)
    assert not value.isnan().any()
    assert dz[1:].isfinite().all()
    # Unlikelihood is infinite at p = 1, and its slope there is 0 · ∞ with the other logits at -inf.
    assert dz[0].isfinite().all() or name == "Unlikelihood"
    bounded = ("GeneralisedCE", "TaylorCE", "Unlikelihood", "Brier", "Asymmetric", *BLIND)
    assert value[2].isinf() == (name not in bounded)


def test_a_margin_is_cosface_on_scaled_cosines() -> None:
    cosine, y = torch.tensor([[0.6, -0.2, 0.1]]).double(), torch.tensor([0])
    moved = 30 * (cosine - torch.tensor([[0.35, 0.0, 0.0]], dtype=torch.float64))
    expected = torch.nn.functional.cross_entropy(moved, y)
    assert torch.allclose(cross_entropy(30 * cosine, y, loss=losses.Margin(30 * 0.35)), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(cross_entropy(30 * cosine, y, loss=losses.Margin(0.35)), expected, rtol=1e-3)


@pytest.mark.parametrize("cosine", [-1.0, -0.95, -0.88, -0.87, 0.0, 0.999999, 1.0, 1.004])
def test_arcface_at_every_angle(cosine: float) -> None:
    z = torch.tensor([[30 * cosine, 3.0, -6.0]], dtype=torch.float64, requires_grad=True)
    value = cross_entropy(z, torch.tensor([0]), loss=losses.ArcFace(0.5, 30.0))
    moved = 30 * oracle.arcface(oracle.mp.mpf(min(cosine, 1.0)), oracle.mp.mpf(0.5))
    moved += 30 * max(oracle.mp.mpf(0), oracle.mp.mpf(cosine) - 1)  # a rounded 1 loses what 1 would
    expected = float(oracle.nll_if(z[0].tolist(), 0, moved))
    assert value.item() == pytest.approx(expected, rel=1e-9)  # the sine of 0.04 keeps half the digits of its cosine
    assert value.item() != pytest.approx(float(oracle.nll(z[0].tolist(), 0)), rel=1e-2)
    (dz,) = torch.autograd.grad(value, z)
    assert dz.isfinite().all()


def test_what_is_no_cosine_is_nan_in_its_row() -> None:
    z = torch.tensor([[31.0, 0.0], [3.0, 0.0], [-31.0, 0.0]])
    rows = cross_entropy(z, torch.tensor([0, 0, 0]), loss=losses.ArcFace(0.5, 30.0), reduction="none")
    assert rows.isnan().tolist() == [True, False, True]


def test_asymmetric_on_binary_elements_is_the_multi_label_loss() -> None:
    z, t = torch.linspace(-4, 4, 9).double(), torch.tensor([0.0, 1.0] * 4 + [0.0]).double()
    p = torch.sigmoid(z)
    shifted = (p - 0.05).clamp(min=0)
    expected = -t * (1 - p) * p.log() - (1 - t) * shifted**4 * (1 - shifted).log()
    got = binary_cross_entropy_with_logits(z, t, loss=KNOBS["Asymmetric"], reduction="none")
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-300)
    swapped = binary_cross_entropy_with_logits(z, t, loss=losses.Asymmetric(4.0, 1.0, 0.05), reduction="none")
    assert not torch.allclose(swapped, expected, rtol=1e-2)


def test_taylor_runs_from_the_absolute_error_to_the_nll() -> None:
    z, y = torch.randn(4, 6, generator=torch.Generator().manual_seed(6)).double(), torch.tensor([0, 1, 2, 3])
    p = torch.softmax(z, -1)[torch.arange(4), y]
    for order, expected in ((1, 1 - p), (2000, -p.log())):
        got = cross_entropy(z, y, loss=losses.TaylorCE(order), reduction="none")
        assert torch.allclose(got, expected, rtol=1e-12, atol=0)
    assert not torch.allclose(cross_entropy(z, y, loss=losses.TaylorCE(3), reduction="none"), -p.log(), rtol=1e-3)


LEARNED = [
    (name, field.name)
    for name, loss in KNOBS.items()
    for field in fields(loss)  # type: ignore[arg-type]
    if isinstance(getattr(loss, field.name), float)
]


@pytest.mark.parametrize("at", ["here", 0.0])
@pytest.mark.parametrize(("name", "field"), LEARNED)
def test_every_number_that_a_loss_holds_may_be_learned(name: str, field: str, at: str | float) -> None:
    """A tensor in its place has the slope that differences have, through logits and through a head; also at 0."""
    given = getattr(KNOBS[name], field) if at == "here" else 0.0
    g = torch.Generator().manual_seed(5)
    x, w = torch.randn(5, 4, generator=g).double(), torch.randn(6, 4, generator=g).double()
    y = torch.tensor([0, 5, 2, 3, 0])

    def value(number: float | Tensor, head: bool) -> Tensor:
        loss = replace(KNOBS[name], **{field: number})  # type: ignore[type-var]
        if name == "ArcFace":  # which asks for cosines times a scale
            return cross_entropy(30 * torch.tanh(x @ w.T), y, loss=loss)
        return linear_cross_entropy(x, w, y, loss=loss) if head else cross_entropy(x @ w.T, y, loss=loss)

    try:
        value(given, False)
    except ValueError:
        return  # this number may not be 0
    learned = torch.tensor(given, dtype=torch.float64, requires_grad=True)
    step = 1e-6
    if given:
        true = (float(value(given + step, False)) - float(value(given - step, False))) / (2 * step)
    else:  # nothing is below some of them
        ahead = [float(value(i * step, False)) for i in range(3)]
        true = (4 * ahead[1] - ahead[2] - 3 * ahead[0]) / (2 * step)
    for head in (False, True):
        (slope,) = torch.autograd.grad(value(learned, head), learned)
        assert float(slope) == pytest.approx(true, rel=1e-5, abs=1e-8), head
