"""The head that never holds its logits gives what the logits would have given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import LinearCrossEntropyLoss, Link, cross_entropy, linear_cross_entropy
from crossent.compute import arguments
from crossent.compute.linear.product import Product
from crossent.compute.losses import LOSSES, Loss
from tests.compare import faults
from tests.laws.test_losses import KNOBS

G = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(*shape, generator=G).double() for shape in ((11, 4), (6, 4), (6,)))
Y = torch.tensor([0, 1, 2, 3, 4, 5, -100, 1, 0, -100, 2])


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_value_and_gradients_are_those_of_the_logits(kind: type[Loss], chunk_rows: int) -> None:
    loss, link = KNOBS[kind.__name__], Link(temperature=1.7, softcap=3.0)
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    ours = linear_cross_entropy(
        leaves[0], leaves[1], Y, linear_bias=leaves[2], loss=loss, link=link, chunk_rows=chunk_rows
    )
    plain = [t.clone().requires_grad_() for t in (X, W, B)]
    theirs = cross_entropy(F.linear(*plain), Y, loss=loss, link=link)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-15)  # float64 both: other orders of summation
    for a, b in zip(torch.autograd.grad(3 * ours, leaves), torch.autograd.grad(3 * theirs, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        for fault, wrong in faults(a if a.dim() > 1 else a[None]):
            wrong = wrong.reshape(b.shape)
            if not torch.equal(wrong, a):
                assert not torch.allclose(wrong, b, rtol=1e-12, atol=1e-15), fault
    assert not leaves[0].grad_fn


def test_upstream_of_rows_is_respected() -> None:
    x = X.clone().requires_grad_()
    up = torch.rand(11, generator=G).double()
    (dx,) = torch.autograd.grad(linear_cross_entropy(x, W, Y, reduction="none", chunk_rows=3), x, up)
    plain = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(plain @ W.T, Y, reduction="none"), plain, up)
    torch.testing.assert_close(dx, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("frozen", ["trunk", "head"])
def test_a_frozen_half_leaves_the_other_its_gradient(frozen: str) -> None:
    x, w = X.clone().requires_grad_(frozen != "trunk"), W.clone().requires_grad_(frozen != "head")
    linear_cross_entropy(x, w, Y).backward()
    live = w if frozen == "trunk" else x
    assert live.grad is not None
    assert live.grad.any()
    assert (x if frozen == "trunk" else w).grad is None


def test_twice_backward_gives_twice_the_same() -> None:
    x = X.clone().requires_grad_()
    value = linear_cross_entropy(x, W, Y)
    value.backward(retain_graph=True)
    first = x.grad.clone()
    value.backward()
    assert torch.equal(x.grad, 2 * first)


def test_bfloat16_heads_add_up_in_float32() -> None:
    """4096 rows of one gradient: a bfloat16 sum would stop growing at 256 times its addend."""
    x = torch.ones(4096, 1, dtype=torch.bfloat16)
    w = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_cross_entropy(x, w, torch.zeros(4096, dtype=torch.long), reduction="sum", chunk_rows=1).backward()
    assert w.grad.flatten().tolist() == [-2048.0, 2048.0]


def test_autocast_makes_16_bit_logits_and_right_gradients() -> None:
    x, w = X.float().requires_grad_(), W.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = linear_cross_entropy(x, w, Y)
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad.dtype == w.grad.dtype == torch.float32
    # bfloat16 has 8 bits: a product of four terms is right to about 1 %, and so is its gradient.
    plain = X.clone().requires_grad_()
    cross_entropy(plain @ W.T, Y).backward()
    assert (x.grad - plain.grad).norm() < 0.02 * plain.grad.norm()


def rows_made(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> list[int]:
    """How many rows of logits each product made."""
    seen: list[int] = []
    make = Product._logits
    monkeypatch.setattr(Product, "_logits", lambda self, x, z: (seen.append(len(x)), make(self, x, z))[1])
    value = call()
    if value.requires_grad:
        value.sum().backward()
    monkeypatch.undo()
    return seen


def test_a_chunk_of_logits_exists_at_a_time_and_is_made_once_for_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.clone().requires_grad_()
    for knobs in ({"chunk_rows": 3}, {"budget": 3 * 6 * 8}, {"budget": "144 B"}):  # three rows of six float64 logits

        def made(x: Tensor = x, knobs: dict[str, Any] = knobs, **more: Any) -> list[int]:
            return rows_made(monkeypatch, lambda: linear_cross_entropy(x, W, Y, **knobs, **more))

        assert made() == made(reduction="sum") == [3, 3, 3]  # of the nine that count
        assert made(reduction="none") == [3, 3, 3] * 2
        assert made(X) == [3, 3, 3]  # nobody wants a gradient
    assert rows_made(monkeypatch, lambda: linear_cross_entropy(x, W, Y)) == [9]
    assert rows_made(monkeypatch, lambda: linear_cross_entropy(x, W, Y, loss=LOSSES[-1](), chunk_rows=4)) == [3, 3, 3]


def test_rows_that_do_not_count_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned = X.clone()
    poisoned[Y == -100] = torch.nan
    weight = torch.ones(11).double()
    weight[:4] = 0
    poisoned[:4] = torch.inf
    for loss in (None, *(KNOBS[name] for name in ("Focal", "LogZ", "Brier"))):
        for reduction in ("mean", "none"):
            x, w = poisoned.clone().requires_grad_(), W.clone().requires_grad_()

            knobs = {"loss": loss, "reduction": reduction, "sample_weight": weight}
            call = partial(linear_cross_entropy, x, w, Y, **knobs)
            seen = rows_made(monkeypatch, call)
            assert set(seen) == {5}
            assert not x.grad[(Y == -100) | (weight == 0)].any()
            assert x.grad.isfinite().all()
            assert w.grad.isfinite().all()
            assert w.grad.any()
    nothing = torch.full((11,), -100)
    x = poisoned.clone().requires_grad_()
    assert rows_made(monkeypatch, lambda: linear_cross_entropy(x, W, nothing)) == []
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_soft_targets_and_leading_dimensions() -> None:
    q = torch.rand(11, 6, generator=G).double().softmax(-1)
    torch.testing.assert_close(linear_cross_entropy(X, W, q), cross_entropy(X @ W.T, q), rtol=1e-14, atol=0)
    x, y = X[:10].reshape(2, 5, 4), Y[:10].reshape(2, 5)
    assert linear_cross_entropy(x, W, y, reduction="none").shape == (2, 5)
    torch.testing.assert_close(linear_cross_entropy(x, W, y), cross_entropy(X[:10] @ W.T, Y[:10]), rtol=1e-14, atol=0)
    x, q = x, q[:10].reshape(2, 5, 6)
    torch.testing.assert_close(
        linear_cross_entropy(x, W, q), cross_entropy(X[:10] @ W.T, q.reshape(10, 6)), rtol=1e-14, atol=0
    )


def test_module_holds_the_head() -> None:
    head = LinearCrossEntropyLoss(4, 6, bias=True, dtype=torch.float64, label_smoothing=0.1)
    expected = cross_entropy(head.linear(X), Y, label_smoothing=0.1)
    torch.testing.assert_close(head(X, Y), expected, rtol=1e-14, atol=0)
    assert set(head.state_dict()) == {"linear.weight", "linear.bias"}


def test_what_cannot_be_had_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="input is float64, linear_weight is float32"):
        linear_cross_entropy(X, W.float(), Y)
    with pytest.raises(ValueError, match="has no classes"):
        linear_cross_entropy(X, W[:0], Y)
    with pytest.raises(ValueError, match="not both"):
        linear_cross_entropy(X, W, Y, chunk_rows=1, budget=1)
    for budget in (0, -1, "256 apples", "many", True, 1.5):
        with pytest.raises(ValueError, match="budget must be a number of bytes"):
            linear_cross_entropy(X, W, Y, budget=budget)
    with pytest.raises(ValueError, match=r"agree in D; got \(11, 4\) and \(6, 3\)"):
        linear_cross_entropy(X, W[:, :3], Y)
    with pytest.raises(ValueError, match="at least 1"):
        linear_cross_entropy(X, W, Y, chunk_rows=0)
    with pytest.raises(ValueError, match=r"linear_bias must have shape \(6,\)"):
        linear_cross_entropy(X, W, Y, linear_bias=torch.zeros(5))
    assert arguments.result_dtype(X) == torch.float64
