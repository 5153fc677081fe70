"""Where the logits of all rows lie in the memory of the head's gradient, every answer is that of chunks of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import Link, cross_entropy, linear_cross_entropy
from crossent.compute.linear import blocks, product
from crossent.compute.linear.blocks import BlockGradients
from crossent.compute.losses import Focal, LogZ
from tests.compare import faults

N, D, V = 23, 14, 75
G = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(*shape, generator=G).double() for shape in ((N, D), (V, D), (V,)))
Y = torch.randint(V, (N,), generator=G)
Y[5] = -100

CALLS: dict[str, dict[str, Any]] = {
    "labels": {},
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"weight": torch.rand(V, generator=G).double() + 0.5},
    "z-loss": {"loss": Focal(2.0) + 1e-2 * LogZ()},
    "linked": {"link": Link(temperature=1.7, softcap=3.0)},
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of eight classes, three rows gathered at a time; how many blocks each gradient was made in."""
    seen: list[int] = []
    start = BlockGradients.__post_init__

    def spy(self: BlockGradients) -> None:
        start(self)
        seen.append(len(self.product.blocks))

    monkeypatch.setattr(BlockGradients, "__post_init__", spy)
    for module in (product, blocks):
        monkeypatch.setattr(module, "GATHERED", 3 * V)
    monkeypatch.setattr(product, "BLOCK", 8)
    return seen


def gradients(x: Tensor, y: Tensor, reduction: str, **knobs: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [t.to(x.dtype).clone().requires_grad_() for t in (x, W, B)]
    value = linear_cross_entropy(leaves[0], leaves[1], y, linear_bias=leaves[2], reduction=reduction, **knobs).sum()
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [15, 12])  # one of them ignored: as many as the head has room for, and fewer
def test_gradients_are_those_of_the_logits(name: str, rows: int, made: list[int]) -> None:
    poisoned = X[:rows].clone()
    poisoned[5] = torch.nan
    loss, found = gradients(poisoned, Y[:rows], "sum", chunk_rows=8, **CALLS[name])
    plain = [t.clone().requires_grad_() for t in (X[:rows], W, B)]
    truth = cross_entropy(F.linear(*plain), Y[:rows], reduction="sum", **CALLS[name])
    torch.testing.assert_close(loss, truth.detach(), rtol=1e-13, atol=0)  # float64 both: other orders of summation
    for a, b in zip(found, torch.autograd.grad(truth, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
        for fault, wrong in faults(a if a.dim() > 1 else a[None]):
            wrong = wrong.reshape(a.shape)
            if not torch.equal(wrong, a):
                assert not torch.allclose(wrong, b, rtol=1e-11, atol=1e-14), fault
    assert made == [9]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [15, 12])
def test_a_number_has_the_bits_of_its_rows(name: str, rows: int, made: list[int]) -> None:
    for dtype in (torch.float32, torch.float64):
        x = X[:rows].to(dtype)
        of_one = gradients(x, Y[:rows], "sum", chunk_rows=8, **CALLS[name])[1]
        of_rows = gradients(x, Y[:rows], "none", chunk_rows=8, **CALLS[name])[1]
        for a, b in zip(of_one, of_rows, strict=True):
            assert torch.equal(a, b)
        other = gradients(1.0001 * x, Y[:rows], "none", chunk_rows=8, **CALLS[name])[1]
        assert not torch.equal(other[1], of_one[1])  # equal tensors are not what this always finds
    assert made == [9] * 6


def test_blocks_are_for_numbers_of_their_own_width_and_for_heads_that_learn(made: list[int]) -> None:
    for dtype, wanted, knobs in (
        (torch.bfloat16, True, {"chunk_rows": 8}),
        (torch.float64, False, {"chunk_rows": 8}),
        (torch.float64, True, {}),  # one chunk holds all
        (torch.float64, True, {"chunk_rows": 2}),  # nothing but two rows may be held: a block has more
    ):
        w = W.to(dtype).requires_grad_(wanted)
        linear_cross_entropy(X[:15].to(dtype).requires_grad_(), w, Y[:15], **knobs).backward()
        assert made == []
    linear_cross_entropy(X[:16], W.clone().requires_grad_(), Y[:16], chunk_rows=8).backward()
    assert made == []  # 15 rows that count, and room for 14
    linear_cross_entropy(X[:15], W.clone().requires_grad_(), Y[:15], chunk_rows=8).backward()
    assert made == [9]  # a frozen trunk


def test_all_products_are_made_once(made: list[int]) -> None:
    with torch.profiler.profile(record_shapes=True) as profile:
        gradients(X[:15], Y[:15], "sum", chunk_rows=8)
    at = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}  # where the two factors stand
    shapes = [event.input_shapes[at[event.name] :][:2] for event in profile.events() if event.name in at]
    assert sum(2 * n * k * m for (n, k), (_, m) in shapes) == 3 * 2 * 14 * D * V
    assert made == [9]
