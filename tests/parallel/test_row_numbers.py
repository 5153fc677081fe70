"""Log-probability, log-sum-exp, entropy, argmax and rank of rows whose classes are spread: those of one process."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import crossent
from crossent import Link, parallel
from crossent.compute.losses import Brier, Focal
from crossent.compute.shards import merge
from tests.compare import bits
from tests.parallel.test_vocabulary import SIZES, own
from tests.parallel.world import Raised, good, world_of

G = torch.Generator().manual_seed(2)
X, W, B = (torch.randn(*shape, generator=G).double() for shape in ((9, 4), (6, 4), (6,)))
Y = torch.tensor([0, 1, 5, 3, -100, 5, 2, -100, 4])
Z = F.linear(X, W, B)
Z[0] = torch.tensor([1.0, 2.0, 0.0, 0.0, 2.0, 2.0])  # the greatest on several ranks: the first counts
Z[1] = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
Z[2, :5] = -torch.inf
Z[3, 2] = torch.nan
Z[4] = torch.nan  # and ignored
TAU, CAP = torch.tensor(1.5).double(), torch.tensor(4.0).double()
OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss": Focal(2.0), "label_smoothing": 0.1, "link": Link(2.0, 3.0)},
    {"loss": Brier(), "mask": torch.tensor([True, False, True, True, True, True, True, True, True])},
]


def of_logits(sizes: tuple[int, ...], z: Tensor, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """A job: all numbers, and the gradients of three of them by this rank's columns."""
    leaf = own(z, sizes).clone().requires_grad_()
    numbers = parallel.row_numbers(leaf, Y, **options)
    sums = (x[~x.isnan()].sum() for x in (numbers.loss, numbers.entropy, numbers.lse))
    slopes = torch.autograd.grad(sum(n * x for n, x in enumerate(sums, 1)), leaf)
    return *(x.detach() for x in numbers), *slopes


def of_head(sizes: tuple[int, ...], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """A job: the same of a head, with the gradients of hidden states and of the own part of the head."""
    leaves = [t.clone().requires_grad_() for t in (X, own(W, sizes, 0), own(B, sizes, 0))]
    numbers = parallel.linear_row_numbers(leaves[0], leaves[1], Y, linear_bias=leaves[2], chunk_rows=2, **options)
    slopes = torch.autograd.grad((numbers.loss + 2 * numbers.entropy + 3 * numbers.lse).sum(), leaves)
    return *(x.detach() for x in numbers), *slopes


@pytest.mark.parametrize("options", OPTIONS)
def test_of_logits(options: dict[str, Any]) -> None:
    leaf = Z.clone().requires_grad_()
    truth = crossent.row_numbers(leaf, Y, **options)
    sums = (x[~x.isnan()].sum() for x in (truth.loss, truth.entropy, truth.lse))
    (slope,) = torch.autograd.grad(sum(n * x for n, x in enumerate(sums, 1)), leaf)
    live = ~Z.isnan().any(-1)
    for size, sizes in SIZES.items():
        answers = good(world_of(size).run(of_logits, sizes, Z, options))
        for name, ours, theirs in zip(truth._fields, answers[0], truth, strict=False):
            torch.testing.assert_close(ours[live], theirs[live].detach(), rtol=1e-12, atol=1e-14, msg=name)
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert not torch.equal(ours[live].roll(1), ours[live])
            assert all(torch.equal(bits(ours), bits(answer[truth._fields.index(name)])) for answer in answers)
        assert torch.equal(answers[0][4][live], truth.argmax[live])
        assert torch.equal(answers[0][5][live], truth.rank[live])
        got = torch.cat([answer[6] for answer in answers], 1)
        torch.testing.assert_close(got[live], slope[live], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS)
def test_of_a_head(options: dict[str, Any]) -> None:
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    truth = crossent.row_numbers(F.linear(*leaves), Y, **options)
    slopes = torch.autograd.grad((truth.loss + 2 * truth.entropy + 3 * truth.lse).sum(), leaves)
    for size, sizes in SIZES.items():
        answers = good(world_of(size).run(of_head, sizes, options))
        for ours, theirs in zip(answers[0], truth, strict=False):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)
        for answer in answers:
            torch.testing.assert_close(answer[6], slopes[0], rtol=1e-11, atol=1e-13)
            assert not torch.allclose(1.01 * answer[6], slopes[0], rtol=1e-6)
        for at in (1, 2):
            torch.testing.assert_close(
                torch.cat([answer[6 + at] for answer in answers]), slopes[at], rtol=1e-11, atol=1e-13
            )


def of_trained_link(sizes: tuple[int, ...], loss: Any) -> tuple[Tensor, ...]:
    """A job: slopes of three numbers of a head by its link, whose prior is this rank's."""
    fields = [t.clone().requires_grad_() for t in (TAU, CAP, own(B, sizes, 0))]
    numbers = parallel.linear_row_numbers(X, own(W, sizes, 0), Y, loss=loss, link=Link(*fields), chunk_rows=2)
    slopes = torch.autograd.grad((numbers.loss + 2 * numbers.entropy + 3 * numbers.lse).sum(), fields)
    return *(x.detach() for x in numbers), *slopes


@pytest.mark.parametrize("loss", [Focal(2.0), Brier()])
def test_a_link_is_trained(loss: Any) -> None:
    fields = [t.clone().requires_grad_() for t in (TAU, CAP, B)]
    truth = crossent.row_numbers(F.linear(X, W), Y, loss=loss, link=Link(*fields))
    slopes = torch.autograd.grad((truth.loss + 2 * truth.entropy + 3 * truth.lse).sum(), fields)
    for size, sizes in SIZES.items():
        answers = good(world_of(size).run(of_trained_link, sizes, loss))
        for ours, theirs in zip(answers[0], truth, strict=False):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)
        for at in (0, 1):
            for answer in answers:
                torch.testing.assert_close(answer[6 + at], slopes[at], rtol=1e-11, atol=1e-13)
                assert not torch.allclose(answer[6 + at] / size, slopes[at], rtol=1e-6)
        torch.testing.assert_close(torch.cat([answer[8] for answer in answers]), slopes[2], rtol=1e-11, atol=1e-13)


def mistaken(sizes: tuple[int, ...], fault: str) -> tuple[Tensor, ...]:
    """A job: what comes of an order that is worked out wrongly."""
    places = {"counted on one rank": ("summed", lambda x, group: x), "places from 0": ("gathered", _own_places)}
    name, wrong = places[fault]
    true = vars(merge)[name]
    if fault == "counted on one rank":
        wrong = lambda x, group: x if x.dtype == torch.int64 else true(x, group)  # noqa: E731
    setattr(merge, name, wrong)
    try:
        return of_logits(sizes, Z, {})
    finally:
        setattr(merge, name, true)


def _own_places(x: Tensor, group: Any) -> Tensor:
    from crossent.compute.group import gathered

    everyone = gathered(x, group)
    return everyone - everyone[0] if x.dtype == torch.int64 else everyone


@pytest.mark.parametrize("fault", ["counted on one rank", "places from 0"])
def test_planted_faults_are_seen(fault: str) -> None:
    truth = crossent.row_numbers(Z, Y)
    live = ~Z.isnan().any(-1)
    answers = good(world_of(2).run(mistaken, SIZES[2], fault))
    same = [torch.equal(answer[at][live], truth[at][live]) for answer in answers for at in (4, 5)]
    assert not all(same), f"an order {fault} would pass"


def refused(sizes: tuple[int, ...], what: dict[str, Any]) -> Any:
    given = {"target": Y, "link": None, **what}
    return parallel.linear_row_numbers(X, own(W, sizes, 0), given["target"], link=given["link"])


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ({"target": torch.rand(9, 3).double()}, "the target must be class indices"),
        ({"target": Y + 1}, "labels that are no class: 6 at row 2"),
    ],
)
def test_what_cannot_be_had_is_an_error_on_all(what: dict[str, Any], sentence: str) -> None:
    for answer in world_of(2).run(refused, (3, 3), what, seconds=20):
        assert isinstance(answer, Raised), answer
        assert re.search(sentence, answer.text), answer.text
