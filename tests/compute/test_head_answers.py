"""Lazy logits asked in the ways that are seldom asked: names of NumPy's, places for answers, classes that cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossent

torch.manual_seed(0)
EAGER = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 7)).double()
LAZY = crossent.lazy_head(copy.deepcopy(EAGER))
X = torch.randn(3, 5, 6, dtype=torch.float64)
Y = torch.randint(7, (3, 5))
ADDED = torch.arange(7.0, dtype=torch.float64)
FORBIDDEN = torch.where(ADDED == 5, -torch.inf, 0.0)
SHARES = torch.rand(3, 7, 5, dtype=torch.float64)  # sums that are not 1
WEIGHT = ADDED + 1

ASKED: dict[str, Callable[[Tensor], Any]] = {
    "sum, axis": lambda z: z.log_softmax(axis=-1).sum(axis=-1, keepdims=True),
    "argmax, axis": lambda z: z.argmax(axis=-1),
    "max, axis": lambda z: z.max(axis=-1).values,
    "amax, axis": lambda z: z.amax(axis=-1, keepdims=True),
    "logsumexp, axis": lambda z: torch.logsumexp(z, axis=-1),
    "added, x and x2": lambda z: torch.add(x=z, x2=ADDED),
    "unbound, axis": lambda z: torch.unbind(z, axis=1)[2],
    "no place for the answer": lambda z: torch.add(z, 1, out=None),
    "a dtype by its old name": lambda z: z.type("torch.FloatTensor").double(),
    "turned, copied and flattened": lambda z: z.transpose(1, 2).contiguous().view(3, -1),
    "turned, copied as it lies and flattened": lambda z: z.permute(2, 0, 1).clone().reshape(7, -1),
    "Σ log p with a class that cannot be": lambda z: (z + FORBIDDEN).log_softmax(-1).sum(-1),
    "smoothed over a class that cannot be": lambda z: F.cross_entropy(
        (z + FORBIDDEN).transpose(1, 2), Y.clamp(max=4), label_smoothing=0.1
    ),
    "smoothed": lambda z: F.cross_entropy(z.transpose(1, 2), Y, WEIGHT, label_smoothing=0.1),
    "shares, smoothed": lambda z: F.cross_entropy(z.transpose(1, 2), SHARES, label_smoothing=0.3),
    "shares, smoothed and weighted": lambda z: F.cross_entropy(
        z.transpose(1, 2), SHARES, WEIGHT, label_smoothing=0.3, reduction="none"
    ),
}


def answer(model: nn.Module, asked: Callable[[Tensor], Any]) -> tuple[Tensor, list[Tensor]]:
    """What is answered, and the gradients of a random product of it if there are any."""
    value = asked(model(X))
    if not value.requires_grad or not value.isfinite().all():
        return value.detach() + 0, []
    up = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
    return value.detach() + 0, list(torch.autograd.grad((up * value).sum(), list(model.parameters())))


@pytest.mark.parametrize("name", ASKED)
def test_the_answer_is_the_eager_heads(name: str) -> None:
    (truth, slopes), (value, found) = (answer(model, ASKED[name]) for model in (EAGER, LAZY))
    assert value.shape == truth.shape
    rounded = 1e-6 if "old name" in name else 1e-12  # float32 in between; sums of some tens of float64
    assert torch.allclose(value.double(), truth.double(), rtol=rounded)
    assert len(found) == len(slopes)
    for slope, like in zip(found, slopes, strict=True):
        assert torch.allclose(slope, like, rtol=0, atol=rounded * like.abs().max().item())


def test_an_answer_goes_to_its_place() -> None:
    with torch.no_grad():
        z, plain = LAZY(X), EAGER(X)
        columns = torch.empty(3, 5, dtype=torch.int64)
        assert torch.argmax(z, -1, out=columns) is columns
        assert torch.equal(columns, plain.argmax(-1))
        greatest = torch.empty(3, 5, dtype=torch.float64)
        torch.max(z, -1, out=(greatest, columns))
        assert torch.equal(greatest, plain.amax(-1))
        assert torch.equal(torch.add(z, 1, out=torch.empty_like(plain)), plain + 1)


def test_numpys_names_need_no_logits() -> None:
    model = crossent.lazy_head(copy.deepcopy(EAGER), on_materialise="raise")
    for name in ("sum, axis", "argmax, axis", "max, axis", "logsumexp, axis", "shares, smoothed", "smoothed"):
        answer(model, ASKED[name])
