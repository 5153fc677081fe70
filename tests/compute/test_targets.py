"""Targets that were made before the logits were seen are held against them, and links against their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crossent import Link, Target, TwoHot, cross_entropy, linear_cross_entropy, row_numbers, sparse
from crossent.compute.losses import Focal

Z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
ON_LOGITS: list[Callable[..., Tensor]] = [
    lambda target, **more: cross_entropy(Z, target, **more),
    lambda target, **more: linear_cross_entropy(Z, torch.eye(5), target, **more),
]
both = pytest.mark.parametrize("of", ON_LOGITS, ids=["logits", "head"])


@both
@pytest.mark.parametrize("classes", [4, 6, 50_000_000])
def test_a_target_of_other_classes_is_refused(of: Callable[..., Tensor], classes: int) -> None:
    far = torch.tensor([[0, classes - 1]] * 4)
    with pytest.raises(ValueError, match=rf"made of {classes} classes, and a row has 5 logits: make it with classes=5"):
        of(sparse(far, torch.full((4, 2), 0.5), classes=classes))


@both
def test_a_code_of_other_columns_is_refused(of: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="made of 50 classes, and a row has 5 logits"):
        of(TwoHot(0.0, 1.0, bins=50).encode(torch.rand(4)))


@both
@pytest.mark.parametrize("wrong", [5, -1, 2**40])
def test_columns_that_nobody_compared_are_looked_at(of: Callable[..., Tensor], wrong: int) -> None:
    index = torch.tensor([[0, 1], [2, wrong], [3, 4], [wrong, 0]])
    target = Target(index, torch.full((4, 2), 0.5))
    with pytest.raises(IndexError, match=rf"2 labels that are no class: {wrong} at row 1, {wrong} at row 3"):
        of(target)
    rows = of(target, validate="off", reduction="none")
    assert rows.isnan().tolist() == [False, True, False, True]
    seen = Target(index, torch.full((4, 2), 0.5), live=torch.tensor([True, False, True, False]))
    assert torch.equal(of(seen, reduction="none"), torch.where(rows.isnan(), 0.0, rows))  # what does not count is not


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 4, 3), (3, 3, 3), (2, 3, 3, 3)])
@pytest.mark.parametrize("loss", [None, Focal(2.0)], ids=str)
def test_as_many_places_as_classes_are_no_classes(shape: tuple[int, ...], loss: Any) -> None:
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    log_p = z.log_softmax(1)
    each = -log_p if loss is None else -((1 - log_p.exp()) ** 2) * log_p
    rows = cross_entropy(z, q, reduction="none", loss=loss)
    assert torch.allclose(rows, (q * each).sum(1), rtol=1e-12)  # sums of a few float64
    flat = linear_cross_entropy(z, torch.eye(3, dtype=torch.float64), q, reduction="none", loss=loss)
    log_p = z.log_softmax(-1)  # a head's classes are last
    each = -log_p if loss is None else -((1 - log_p.exp()) ** 2) * log_p
    assert torch.allclose(flat, (q * each).sum(-1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3), (2, 5, 2), (5, 4)])
def test_weights_of_all_classes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(4, 5\); they are|has \d rows, and the logits have 4"):
        cross_entropy(Z, Target(None, torch.rand(shape)))


@pytest.mark.parametrize(
    ("index", "weight"),
    [
        (torch.zeros(4, dtype=torch.int64), torch.ones(4)),
        (torch.zeros(4, 1, dtype=torch.int32), torch.ones(4, 1)),
        (torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 1)),
    ],
)
def test_a_target_says_what_it_is_made_of(index: Tensor, weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"index \(n, k\), int64, and weight \(n, k\); got"):
        Target(index, weight)


def test_columns_and_weights_that_are_exchanged_are_refused() -> None:
    with pytest.raises(TypeError, match=r"index is float32\. Are the two exchanged\?"):
        sparse(torch.tensor([[0.7, 0.3]]), torch.tensor([[0, 2]]), classes=3)


def test_the_log_probability_of_a_label_does_not_know_its_weight() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    half = row_numbers(Z, sparse(labels.unsqueeze(1), torch.full((4, 1), 0.5), classes=5))
    whole = row_numbers(Z, labels)
    assert torch.equal(half.log_prob, whole.log_prob)
    assert torch.equal(half.loss, whole.loss / 2)


@both
@pytest.mark.parametrize(
    "link",
    [
        {"temperature": torch.linspace(0.5, 1.5, 4)[:, None]},  # one for each row: all rows were read with all of them
        {"softcap": torch.linspace(0.5, 1.5, 4)},
        {"bias": torch.zeros(4, 5)},
        {"bias": torch.zeros(())},
    ],
    ids=str,
)
def test_a_link_knows_no_rows(of: Callable[..., Tensor], link: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of a link must be one number for each of the 5 classes"):
        of(torch.tensor([0, 1, 2, 3]), link=Link(**link))


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("number", [0.0, -1.0, torch.inf, torch.nan])
def test_a_link_of_numbers_that_are_none_is_refused(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be greater than 0 and finite, and is"):
        Link(**{name: number})


@both
@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("wrong", [-0.5, 0.0, torch.nan])
def test_a_link_that_was_learned_below_0_is_refused(of: Callable[..., Tensor], name: str, wrong: float) -> None:
    learned = torch.tensor(wrong, requires_grad=True)
    with pytest.raises(ValueError, match=f"the {name} of a link must be greater than 0; its least is"):
        of(torch.tensor([0, 1, 2, 3]), link=Link(**{name: learned}))
