"""Class weights and sample weights that are learned have their whole gradient on every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossent import cross_entropy, parallel
from crossent.compute.losses import Brier, Focal, LogZ, Loss, Smoothed
from crossent.compute.stats import Stats
from tests.compute.test_linear_derivatives import Curved
from tests.laws.test_losses import KNOBS
from tests.parallel.test_vocabulary import SIZES, Z, own
from tests.parallel.world import good, world_of

G = torch.Generator().manual_seed(0)


def weighted(sizes: tuple[int, ...], target: Any, loss: Any, through_head: bool) -> tuple[Tensor, ...]:
    """A job: the gradients of own columns, and of the class and sample weights that all ranks share."""
    leaf = own(LEARNED[0], sizes).clone().requires_grad_()
    of_classes, of_rows = (t.clone().requires_grad_() for t in LEARNED[1:])
    options = {"weight": of_classes, "sample_weight": of_rows, "loss": loss}
    if through_head:
        eye = torch.eye(len(leaf), dtype=leaf.dtype)
        value = parallel.linear_cross_entropy(eye, leaf.T, own(target, sizes), chunk_rows=2, **options)
    else:
        value = parallel.cross_entropy(leaf, own(target, sizes), **options)
    return torch.autograd.grad(value.square(), (leaf, of_classes, of_rows))


LEARNED = tuple(t.double() for t in (Z[1:5].nan_to_num(neginf=0.5), torch.arange(1.0, 7.0), torch.arange(1.0, 5.0)))


@pytest.mark.parametrize("through_head", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["NLL", "Focal", "Brier", "Smoothed", "smoothed focal"])
def test_class_and_sample_weights_that_are_learned(name: str, soft: bool, through_head: bool) -> None:
    target = torch.rand(4, 6, generator=G).double() if soft else torch.tensor([0, 5, 2, 3])
    leaves = [t.clone().requires_grad_() for t in LEARNED]
    loss = Smoothed(0.2, Focal(1.5) + 0.1 * LogZ(), "all") if name == "smoothed focal" else KNOBS[name]
    value = cross_entropy(leaves[0], target, weight=leaves[1], sample_weight=leaves[2], loss=loss)
    truth = torch.autograd.grad(value.square(), leaves)
    for size, sizes in SIZES.items():
        of_logits, *of_weights = zip(
            *good(world_of(size).run(weighted, sizes, target, loss, through_head)), strict=True
        )
        torch.testing.assert_close(torch.cat(of_logits, 1), truth[0], rtol=1e-11, atol=1e-13)
        for found, expected in zip(of_weights, truth[1:], strict=True):
            for each in found:
                torch.testing.assert_close(each, expected, rtol=1e-11, atol=1e-13)
            assert not torch.allclose(found[0] / size, expected, rtol=1e-6)


class Module(torch.nn.Module, Loss):
    """Such a loss that is a module."""

    def __init__(self, power: Tensor, inner: Loss) -> None:
        super().__init__()
        self.power, self.inner = torch.nn.Parameter(power.detach().clone()), inner

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def forward(self, s: Stats) -> Tensor:
        return (1.0 + self.inner(s)) ** self.power


def of_own_loss(sizes: tuple[int, ...], target: Any, through_head: bool, inner: Loss | None) -> tuple[Tensor, ...]:
    """A job: the gradients of own columns, and of a number that a loss or a module holds."""
    leaf, power = own(LEARNED[0], sizes).clone().requires_grad_(), POWER.clone().requires_grad_()
    made = Curved(power, LogZ()) if inner is None else Module(power, inner)
    power = made.power
    loss = Focal(2.0) + 0.5 * made
    if through_head:
        eye = torch.eye(len(leaf), dtype=leaf.dtype)
        value = parallel.linear_cross_entropy(eye, leaf.T, own(target, sizes), chunk_rows=2, loss=loss)
    else:
        value = parallel.cross_entropy(leaf, own(target, sizes), loss=loss)
    return torch.autograd.grad(value.square(), (leaf, power))


POWER = torch.tensor(1.5, dtype=torch.float64)


@pytest.mark.parametrize("inner", [None, LogZ(), Brier()], ids=["", "a module", "a module of columns"])
@pytest.mark.parametrize("through_head", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_what_a_loss_holds_may_be_learned(soft: bool, through_head: bool, inner: Loss | None) -> None:
    target = torch.rand(4, 6, generator=G).double() if soft else torch.tensor([0, 5, 2, 3])
    leaves = [t.clone().requires_grad_() for t in (LEARNED[0], POWER)]
    value = cross_entropy(leaves[0], target, loss=Focal(2.0) + 0.5 * Curved(leaves[1], inner or LogZ()))
    truth = torch.autograd.grad(value.square(), leaves)
    for size, sizes in SIZES.items():
        of_logits, powers = zip(*good(world_of(size).run(of_own_loss, sizes, target, through_head, inner)), strict=True)
        torch.testing.assert_close(torch.cat(of_logits, 1), truth[0], rtol=1e-11, atol=1e-13)
        for each in powers:
            torch.testing.assert_close(each, truth[1], rtol=1e-11, atol=1e-13)


def curved(sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """A job: row numbers, and a Hessian times a vector, of class weights and logits under label smoothing."""
    leaf, of_classes = own(LEARNED[0], sizes).clone().requires_grad_(), LEARNED[1].clone().requires_grad_()
    labels = torch.tensor([0, 5, 2, 3])
    numbers = parallel.row_numbers(leaf, labels, of_classes, label_smoothing=0.1)
    return numbers.loss.detach(), *_twice(numbers.loss.square().sum(), leaf, of_classes)


def _twice(value: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    (along,) = torch.autograd.grad(value, weight, create_graph=True)
    return torch.autograd.grad(along.square().sum(), (z, weight))


def test_row_numbers_and_second_derivatives_under_label_smoothing() -> None:
    leaf, of_classes = (t.clone().requires_grad_() for t in LEARNED[:2])
    labels = torch.tensor([0, 5, 2, 3])
    value = cross_entropy(leaf, labels, of_classes, label_smoothing=0.1, reduction="none")
    of_logits, of_weights = _twice(value.square().sum(), leaf, of_classes)
    values, logits, weights = zip(*good(world_of(3).run(curved, SIZES[3])), strict=True)
    torch.testing.assert_close(torch.cat(logits, 1), of_logits, rtol=1e-10, atol=1e-12)
    for loss, each in zip(values, weights, strict=True):
        torch.testing.assert_close(loss, value.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(each, of_weights, rtol=1e-10, atol=1e-12)
