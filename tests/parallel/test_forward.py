"""Forward derivatives of losses whose classes are spread: those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import Link, cross_entropy, parallel
from crossent.compute import group
from tests.laws.test_losses import KNOBS
from tests.parallel.test_vocabulary import NAMES, SIZES, TARGETS, own
from tests.parallel.world import good, world_of

G = torch.Generator().manual_seed(4)
Z, X, W = (torch.randn(*shape, generator=G).double() for shape in ((7, 6), (7, 4), (6, 4)))
ALONG, OF_X, OF_W = (torch.randn(*t.shape, generator=G).double() for t in (Z, X, W))
SOFT = torch.rand(7, 6, generator=G).double()


def target_of(kind: str) -> Any:
    return SOFT if kind == "soft" else TARGETS[kind]


def of_logits(sizes: tuple[int, ...], kind: str, names: list[str], forgetful: bool = False) -> list[Tensor]:
    """A job: how each loss moves; ``forgetful`` is a sum over the ranks that is left out of the way forwards."""
    true = group._Total.forward
    if forgetful:
        group._Total.forward = staticmethod(lambda x, group: x.clone())
    try:
        moved = []
        for name in names:

            def value(z: Tensor, name: str = name) -> Tensor:
                return parallel.cross_entropy(z, own(target_of(kind), sizes), loss=KNOBS[name], link=Link(1.5, 4.0))

            moved.append(torch.func.jvp(value, (own(Z, sizes),), (own(ALONG, sizes),))[1])
    finally:
        group._Total.forward = true
    return moved


def truth_of_logits(kind: str, name: str) -> Tensor:
    def value(z: Tensor) -> Tensor:
        return cross_entropy(z, target_of(kind), loss=KNOBS[name], link=Link(1.5, 4.0))

    return torch.func.jvp(value, (Z,), (ALONG,))[1]


@pytest.mark.parametrize("kind", TARGETS)
def test_of_logits(kind: str) -> None:
    for size, sizes in SIZES.items():
        for answer in good(world_of(size).run(of_logits, sizes, kind, NAMES)):
            for name, ours in zip(NAMES, answer, strict=True):
                theirs = truth_of_logits(kind, name)
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13, msg=name)
                assert name == "Hinge" or not torch.allclose(1.01 * ours, theirs, rtol=1e-10)


def test_a_sum_that_is_left_out_is_seen() -> None:
    answers = good(world_of(3).run(of_logits, SIZES[3], "labels", ["NLL"], True))
    assert not any(torch.allclose(answer[0], truth_of_logits("labels", "NLL"), rtol=1e-6) for answer in answers)


def of_head(sizes: tuple[int, ...], names: list[str]) -> list[Tensor]:
    moved = []
    for name in names:

        def value(x: Tensor, w: Tensor, name: str = name) -> Tensor:
            return parallel.linear_cross_entropy(x, w, TARGETS["labels"], loss=KNOBS[name], chunk_rows=3)

        given, along = (X, own(W, sizes, 0)), (OF_X, own(OF_W, sizes, 0))
        moved.append(torch.func.jvp(value, given, along)[1])
    return moved


def test_of_a_head() -> None:
    names = ["NLL", "Smoothed", "Focal", "Brier"]
    for size, sizes in SIZES.items():
        for answer in good(world_of(size).run(of_head, sizes, names)):
            for name, ours in zip(names, answer, strict=True):

                def value(x: Tensor, w: Tensor, name: str = name) -> Tensor:
                    return cross_entropy(F.linear(x, w), TARGETS["labels"], loss=KNOBS[name])

                theirs = torch.func.jvp(value, (X, W), (OF_X, OF_W))[1]
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13, msg=name)
                assert not torch.allclose(1.01 * ours, theirs, rtol=1e-10)
