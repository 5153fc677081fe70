"""What has no weight is not read: 0 · ∞ = 0, a NaN reaches nothing, and a weight that is learned keeps its slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crossent import binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy
from crossent.compute.losses import Focal, Smoothed, Unlikelihood

LABELS = torch.tensor([0, 1, 2, 3])
WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5])


def logits(second: float) -> Tensor:
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    z[1] = second
    return z.requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [None, Focal(0.5), Unlikelihood()], ids=str)
@pytest.mark.parametrize("second", [torch.nan, torch.inf, -torch.inf])
def test_a_row_of_no_weight_is_not_read(reduction: str, loss: Any, second: float) -> None:
    z, seen = logits(second), logits(0.0)
    values = [cross_entropy(x, LABELS, sample_weight=WEIGHT, reduction=reduction, loss=loss) for x in (z, seen)]
    assert torch.equal(*values)
    for value in values:
        value.sum().backward()
    assert not z.grad[1].any()
    assert not z.grad[1].signbit().any()
    assert torch.equal(z.grad, torch.where(WEIGHT.unsqueeze(1) == 0, 0.0, seen.grad))


@pytest.mark.parametrize(
    "of",
    [
        lambda z, w, **more: cross_entropy(z, LABELS, sample_weight=w, **more),
        lambda z, w, **more: linear_cross_entropy(z, torch.eye(5), LABELS, sample_weight=w, **more),
        lambda z, w, **more: linear_cross_entropy(z, torch.eye(5), LABELS, sample_weight=w, chunk_rows=2, **more),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_learned_weight_of_0_has_the_slope_of_any_other(of: Callable[..., Tensor], reduction: str) -> None:
    z, w = logits(0.0).detach(), WEIGHT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(of(z, w, reduction=reduction), w)
    rows = -z.double().log_softmax(1)[range(4), LABELS]
    mean = (WEIGHT * rows).sum() / WEIGHT.sum()
    truth = rows if reduction == "sum" else (rows - mean) / WEIGHT.sum()
    assert torch.allclose(slope.double(), truth, rtol=1e-6, atol=0)  # 8 ulps: sums of a few float32


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [None, Smoothed(0.1, over="all"), Smoothed(0.1, over="others"), Focal(0.5)], ids=str)
@pytest.mark.parametrize("learned", ["rows", "classes", "logits"])
@pytest.mark.parametrize("head", [False, True], ids=["logits", "head"])
def test_a_row_that_does_not_count_has_no_slope(reduction: str, loss: Any, learned: str, head: bool) -> None:
    z, rows, classes = logits(torch.nan).detach(), WEIGHT + 1, torch.arange(1.0, 6.0)
    rows[1] = torch.nan
    leaf = {"rows": rows, "classes": classes, "logits": z}[learned].requires_grad_()
    options: dict[str, Any] = {"weight": classes, "sample_weight": rows, "mask": LABELS != 1, "loss": loss}
    value = (
        linear_cross_entropy(z, torch.eye(5), LABELS, reduction=reduction, **options)
        if head
        else cross_entropy(z, LABELS, reduction=reduction, **options)
    )
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert slope.isfinite().all()
    assert learned == "classes" or not slope[1].any()


def test_a_learned_weight_of_0_silences_an_infinite_loss() -> None:
    z, w = logits(0.0).detach(), WEIGHT.clone().requires_grad_()
    z[1, 1] = -torch.inf
    assert cross_entropy(z, LABELS, sample_weight=w).isfinite()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("loss", [None, Focal(0.5)], ids=str)
@pytest.mark.parametrize("second", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT.unsqueeze(0)], ids=["elements", "columns"])
def test_an_element_of_no_weight_is_not_read(reduction: str, loss: Any, second: float, weight: Tensor) -> None:
    lead = weight.shape[:-1]
    values, grads = [], []
    for x in (second, 0.0):
        z = torch.tensor([0.3, x, -2.0, 5.0]).expand(*lead, 4).clone().requires_grad_()
        t = torch.tensor([0.0, 1.0, 0.5, 1.0]).expand_as(z)
        value = binary_cross_entropy_with_logits(z, t, weight, reduction=reduction, loss=loss)
        value.sum().backward()
        values, grads = [*values, value], [*grads, z.grad]
    assert torch.equal(*values)
    assert torch.equal(*grads)
    assert not grads[0][..., 1].any()
    assert not grads[0][..., 1].signbit().any()


@pytest.mark.parametrize("second", [torch.nan, 0.0])
def test_a_probability_of_no_weight_is_not_read(second: float) -> None:
    p = torch.tensor([0.3, second, 0.9, 1.0], requires_grad=True)
    value = binary_cross_entropy(p, torch.tensor([0.0, 1.0, 0.5, 1.0]), WEIGHT, reduction="sum", validate="off")
    assert value.isfinite()
    value.backward()
    assert p.grad[1] == 0
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("of", [binary_cross_entropy_with_logits, binary_cross_entropy])
@pytest.mark.parametrize("wrong", [-1.0, torch.nan])
def test_weights_of_elements_are_looked_at(of: Callable[..., Tensor], wrong: float) -> None:
    x, t = torch.full((2, 3), 0.5), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"weight must be 0 or more; it is negative or NaN at \(1,\)"):
        of(x, t, torch.tensor([1.0, wrong, 1.0]))
    if of is binary_cross_entropy_with_logits:
        with pytest.raises(ValueError, match=r"pos_weight must be 0 or more; it is negative or NaN at \(1,\)"):
            of(x, t, pos_weight=torch.tensor([1.0, wrong, 1.0]))


def test_weights_that_do_not_fit_are_still_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"weight of shape \(3,\) does not broadcast to the logits, \(2, 4\)"):
        binary_cross_entropy_with_logits(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(3))


@pytest.mark.parametrize("normaliser", [0, 0.0, torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize(
    "of",
    [
        lambda labels, n: cross_entropy(logits(0.0), labels, normaliser=n),
        lambda labels, n: linear_cross_entropy(logits(0.0), torch.eye(5), labels, normaliser=n),
    ],
    ids=["logits", "head"],
)
def test_rows_that_count_are_not_divided_by_nothing(of: Callable[..., Tensor], normaliser: Any) -> None:
    with pytest.raises(ValueError, match="normaliser is 0, and this batch has rows to be divided by it"):
        of(LABELS, normaliser)
    assert of(torch.full((4,), -100), normaliser) == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_head_on_no_device_has_its_shapes(reduction: str) -> None:
    x, w = (torch.empty(*shape, 5, device="meta", requires_grad=True) for shape in ((3, 4), (7,)))
    value = linear_cross_entropy(x, w, torch.empty(3, 4, dtype=torch.int64, device="meta"), reduction=reduction)
    value.sum().backward()
    assert value.shape == ((3, 4) if reduction == "none" else ())
    assert x.grad.shape == x.shape
    assert w.grad.shape == w.shape


def test_an_empty_mean_under_vmap_is_no_look_at_what_cannot_be_looked_at() -> None:
    z = logits(0.0).detach()
    some = torch.func.vmap(lambda z: cross_entropy(z, LABELS, sample_weight=WEIGHT * z[:, 0].exp(), empty="raise"))
    assert some(torch.stack((z, z))).isfinite().all()
