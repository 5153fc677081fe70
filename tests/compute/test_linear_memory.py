"""The memory of a chunk of logits is kept for the next call, lent to one at a time, and not read once given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from crossent import linear_cross_entropy, linear_distillation, linear_row_numbers
from crossent.compute.linear import blocks, memory, product
from crossent.compute.losses import Brier, Focal

G = torch.Generator().manual_seed(0)
X, W, Y = torch.randn(50, 8, generator=G), torch.randn(40, 8, generator=G), torch.randint(40, (50,), generator=G)


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    memory.forget()
    yield
    memory.forget()


def gradients(call: Callable[[Tensor, Tensor], Tensor], rows: int = 50) -> list[Tensor]:
    x, w = X[:rows].clone().requires_grad_(), W.clone().requires_grad_()
    value = call(x, w)
    return [value.detach(), *torch.autograd.grad(value, (x, w))]


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "number": lambda x, w: linear_cross_entropy(x, w, Y[: len(x)]),
    "focal": lambda x, w: linear_cross_entropy(x, w, Y[: len(x)], loss=Focal()),
    "columns": lambda x, w: linear_cross_entropy(x, w, Y[: len(x)], loss=Brier()),
    "rows": lambda x, w: linear_cross_entropy(x, w, Y[: len(x)], reduction="none").sum(),
    "rows of columns": lambda x, w: linear_cross_entropy(x, w, Y[: len(x)], loss=Brier(), reduction="none").sum(),
    "numbers": lambda x, w: sum(n.sum() for n in linear_row_numbers(x, w, Y[: len(x)])[:4]),
    "teacher": lambda x, w: linear_distillation(x, w, X[: len(x)], W.flip(0)),
    "bfloat16": lambda x, w: linear_cross_entropy(x.bfloat16(), w.bfloat16(), Y[: len(x)]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [50, 7])  # more than the head's gradient has room for, and fewer
def test_what_is_given_back_is_not_read(monkeypatch: pytest.MonkeyPatch, name: str, rows: int) -> None:
    before, spoilt = gradients(CALLS[name], rows), []

    @contextmanager
    def spoiling(like: Tensor, *shape: int) -> Iterator[Tensor]:
        with memory.borrowed(like, *shape) as lent:
            yield lent
            lent.fill_(torch.nan)
            spoilt.append(lent)

    for module in (product, blocks):
        monkeypatch.setattr(module, "borrowed", spoiling)
    after = gradients(CALLS[name], rows)
    assert spoilt
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(a.isfinite().all() for a in after)


def test_it_is_kept_up_to_a_size_and_lent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = gradients(CALLS["number"])
    (kept,) = memory._kept
    assert kept.nbytes >= 4 * 50 * 40
    again = gradients(CALLS["number"])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(memory._kept) == 1
    assert memory._kept[0] is kept
    with memory.borrowed(X, 50, 40) as one, memory.borrowed(X, 50, 40) as other:
        assert kept.ctypes.data <= one.data_ptr() < kept.ctypes.data + kept.nbytes
        assert one.data_ptr() % 64 == other.data_ptr() % 64 == 0
        one.fill_(1.0)
        other.fill_(2.0)
        assert one.eq(1.0).all()
        assert not memory._kept
    assert len(memory._kept) == 1
    with memory.borrowed(X, 100, 40):  # it is too small for that
        assert not memory._kept
    assert memory._kept[0].nbytes >= 4 * 100 * 40
    memory.forget()
    monkeypatch.setattr(memory, "KEPT", 4 * 50 * 40 - 1)
    gradients(CALLS["number"])
    assert not memory._kept


def test_it_comes_back_from_a_block_that_fails() -> None:
    with pytest.raises(KeyboardInterrupt), memory.borrowed(X, 3):
        raise KeyboardInterrupt
    assert len(memory._kept) == 1


def test_training_after_inference() -> None:
    """A tensor made in inference mode may not be saved for a backward pass, later either."""
    with torch.inference_mode():
        numbers = linear_row_numbers(X, W, Y)
    assert memory._kept
    for name in CALLS:
        assert gradients(CALLS[name])[1].abs().sum() > 0
    assert not numbers.loss.requires_grad


def test_threads_do_not_share_it() -> None:
    calls = [CALLS[name] for name in ("number", "rows", "columns", "focal")] * 10
    alone = [gradients(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(gradients, calls))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
