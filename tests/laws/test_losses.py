"""What must hold for every loss of the public list. A loss that is added there and not here is a failure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossent import cross_entropy, sparse
from crossent.compute import losses
from crossent.compute.losses import LOSSES, NLL, ClassWeighted, Confidence, Focal, LogZ, Loss, Smoothed
from tests import oracle
from tests.compare import faults, ulps

WEIGHT = [0.5, 2.0, 1.0, 3.0, 0.25, 1.5]
KNOBS: dict[str, Loss] = {
    "NLL": losses.NLL(),
    "Smoothed": losses.Smoothed(0.1),
    "ClassWeighted": losses.ClassWeighted(torch.tensor(WEIGHT)),
    "Focal": losses.Focal(2.0),
    "Poly1": losses.Poly1(1.0),
    "GeneralisedCE": losses.GeneralisedCE(0.7),
    "LogZ": losses.LogZ(),
    "Confidence": losses.Confidence(),
    "Unlikelihood": losses.Unlikelihood(),
    "Margin": losses.Margin(0.35),
}
ROWS = {
    "ordinary": ([0.3, -1.2, 2.0, 0.1, -0.7, 1.1], 3),
    "confident": ([28.0, 0.0, -1.0, 0.5, 0.25, -2.0], 0),
    "wrong and sure": ([28.0, 0.0, -1.0, 0.5, 0.25, -2.0], 4),
    "far from zero": ([10000.0, 10001.0, 9998.5, 9999.0, 10000.5, 9990.0], 1),
    "flat": ([0.0] * 6, 5),
    "masked": ([0.3, float("-inf"), 2.0, 0.1, float("-inf"), 1.1], 2),
}
NAMES = [kind.__name__ for kind in LOSSES]


def test_every_public_loss_has_its_laws() -> None:
    assert set(KNOBS) == set(NAMES)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_the_papers_formula(name: str, row: str) -> None:
    values, y = ROWS[row]
    z = torch.tensor([values, values], requires_grad=True)  # two rows, so that a skipped last row shows
    exact = z[0].tolist()  # what float32 made of them
    got = cross_entropy(z, torch.tensor([y, y]), loss=KNOBS[name], reduction="none")
    (dz,) = torch.autograd.grad(got, z, torch.tensor([1.0, 1.0]))
    truth = float(oracle.loss(name, exact, y, WEIGHT))
    gradient = [[float(v) for v in oracle.gradient(name, exact, y, WEIGHT)]] * 2
    # The contract: 2 ulp for the loss and the target's gradient, 4 for the others. The rows are worked out in
    # float64 and rounded once, so half an ulp is what to expect; 1 leaves room for the losses' own arithmetic.
    assert ulps(got.detach(), [truth, truth]) <= 1
    # Where a gradient is a difference of larger terms (p - 1/v of smoothing on a flat row) it is exact to the
    # float64 rounding of those terms, 1e-16, which is far below an ulp of anything above 1e-8.
    largest = max(abs(v) for v in gradient[0])
    scale = [[max(abs(v), 1e-8 * largest) for v in r] for r in gradient]
    if largest < 1e-30:  # a flat row is the optimum of this loss: the gradient is zero to rounding
        assert dz.abs().max() < 1e-14
        return
    assert ulps(dz, gradient, scale) <= 1
    for fault, wrong in faults(dz):
        if not torch.equal(wrong, dz):
            assert ulps(wrong, gradient, scale) > 4, f"the comparison would accept a gradient {fault}"


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
    # The negative control: another target is another number, but for the terms that do not look at it.
    assert torch.equal(whole, value(z, (y + 1) % 6)) == (name in ("LogZ", "Confidence"))


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
    assert name in ("LogZ", "Confidence") or not torch.equal(other, seen[0][0])


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
        (lambda: losses.Margin(float("nan")), "must be finite"),
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
