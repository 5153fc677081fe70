"""Numbers of rows and a teacher's distribution without logits: what the logits would have given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import Link, distillation, linear_distillation, linear_row_numbers, row_numbers
from crossent.compute.losses import Brier, Focal

G = torch.Generator().manual_seed(0)
X, W, B = (torch.randn(*shape, generator=G).double() for shape in ((2, 5, 4), (6, 4), (6,)))
T, U, C = (torch.randn(*shape, generator=G).double() for shape in ((2, 5, 3), (6, 3), (6,)))
Y = torch.tensor([[0, 1, 2, 3, 4], [5, -100, 1, 0, 2]])
MASK = torch.tensor([[True, True, False, True, True], [True, False, True, True, True]])


def free(*tensors: Tensor) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize(
    "knobs", [{}, {"mask": MASK, "label_smoothing": 0.1}, {"loss": Focal(2.0), "link": Link(2.0, 3.0, C)}]
)
def test_row_numbers_are_those_of_the_logits(knobs: dict[str, Any]) -> None:
    mine, theirs = free(X, W, B), free(X, W, B)
    x, w, b = mine
    got = linear_row_numbers(x, w, Y, linear_bias=b, chunk_rows=3, **knobs)
    flat = {key: value.reshape(10) if isinstance(value, Tensor) else value for key, value in knobs.items()}
    expected = row_numbers(F.linear(*theirs).reshape(10, 6), Y.reshape(10), **flat)
    for name, a, b in zip(got._fields, got, expected, strict=True):
        assert a.shape == Y.shape
        torch.testing.assert_close(a.flatten(), b, rtol=1e-13, atol=1e-15)
        assert not torch.equal(a.flatten().roll(1), b), name
        if not a.requires_grad:
            continue
        made = torch.autograd.grad(a.sum(), mine, retain_graph=True)
        for ours, other in zip(made, torch.autograd.grad(b.sum(), theirs, retain_graph=True), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-14)
            assert not torch.allclose(1.01 * ours, other, rtol=1e-11, atol=1e-14)
    assert got.rank[1, 1] == got.argmax[1, 1] == -1


@pytest.mark.parametrize("loss", [None, Focal(2.0), Brier()])
def test_row_numbers_train_a_link(loss: Any) -> None:
    """Every number moves with temperature, soft cap and prior as that of the logits does."""
    fields = torch.tensor(1.3).double(), torch.tensor(4.0).double(), C
    mine, theirs = free(X, W, *fields), free(X, W, *fields)
    got = linear_row_numbers(*mine[:2], Y, loss=loss, link=Link(*mine[2:]), chunk_rows=3)
    z = F.linear(*theirs[:2]).reshape(10, 6)
    expected = row_numbers(z, Y.reshape(10), loss=loss, link=Link(*theirs[2:]))
    for name, a, b in zip(got._fields, got, expected, strict=True):
        torch.testing.assert_close(a.flatten(), b, rtol=1e-13, atol=1e-15)
        assert not torch.equal(a.flatten().roll(1), b), name
        if name in ("argmax", "rank"):
            continue
        up = torch.rand(10, generator=G).double()
        made = torch.autograd.grad(a.flatten(), mine, up, retain_graph=True)
        for ours, other in zip(made, torch.autograd.grad(b, theirs, up, retain_graph=True), strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-14)
            assert not torch.allclose(1.01 * ours, other, rtol=1e-11, atol=1e-14)


def test_perplexity_needs_no_gradient_and_no_bits_more() -> None:
    with torch.no_grad():
        one = linear_row_numbers(X.float(), W.float(), Y)
        other = linear_row_numbers(X.float().requires_grad_(), W.float(), Y)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert one.loss.dtype == torch.float32


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distillation_is_that_of_the_logits(kind: Any, reduction: str) -> None:
    knobs: dict[str, Any] = {"kind": kind, "temperature": 1.5, "beta": 0.3, "temperature_squared": True, "mask": MASK}
    poisoned, teacher = X.clone(), T.clone()
    poisoned[~MASK] = teacher[~MASK] = torch.nan
    mine, theirs = free(poisoned, W, B), free(X, W, B)
    got = linear_distillation(
        *mine[:2], teacher, U, linear_bias=mine[2], teacher_bias=C, reduction=reduction, chunk_rows=3, **knobs
    )
    expected = distillation(F.linear(*theirs), F.linear(T, U, C), reduction=reduction, **knobs)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-15)
    up = torch.rand(got.shape, generator=G).double()
    for a, b in zip(torch.autograd.grad(got, mine, up), torch.autograd.grad(expected, theirs, up), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert not torch.allclose(1.01 * a, b, rtol=1e-12, atol=1e-15)


def test_nothing_to_learn_from() -> None:
    none = torch.zeros_like(MASK)
    x = X.clone().requires_grad_()
    value = linear_distillation(x, W, T, U, mask=none)
    value.backward()
    assert value == 0
    assert not x.grad.any()
    assert linear_distillation(X, W, T, U, mask=none, empty="nan").isnan()


def test_what_cannot_be_had_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="must be class indices"):
        linear_row_numbers(X, W, torch.rand(2, 5, 6))
    with pytest.raises(IndexError, match="labels that are no class"):
        linear_row_numbers(X, W, Y + 1)
    with pytest.raises(ValueError, match=r"same rows and classes: \(2, 5\) rows of 6 and \(2, 5\) rows of 5"):
        linear_distillation(X, W, T, U[:5])
    with pytest.raises(ValueError, match=r"teacher_input .* must agree in D"):
        linear_distillation(X, W, T, U[:, :2])
    with pytest.raises(ValueError, match="a teacher gets no gradient"):
        linear_distillation(X, W, T.clone().requires_grad_(), U)
    with pytest.raises(ValueError, match="kind must be one of"):
        linear_distillation(X, W, T, U, kind="backward_kl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        linear_distillation(X, W, T, U, temperature=0)
