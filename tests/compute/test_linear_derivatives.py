"""Everything that differentiates and traces, through a head whose logits are not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import Link, Target, cross_entropy, linear_cross_entropy, sparse
from crossent.compute.fused import linear_cross_entropy_of
from crossent.compute.linear import operators
from crossent.compute.losses import LOSSES, Brier, Focal, LogZ, Loss
from crossent.compute.stats import Stats
from tests.compare import faults
from tests.compute.test_autograd import CALLS, CLASSES, COLUMNS, HEAVIER, LABELS, ROWS, SHARES, SOFT, N, V, in_float32
from tests.compute.test_compile import compiler
from tests.laws.test_losses import KNOBS

G = torch.Generator().manual_seed(1)
D = 3
X, W, B = (torch.randn(*shape, generator=G, dtype=torch.float64) for shape in ((N, D), (V, D), (V,)))


def free(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def fused(target: Any, knobs: dict[str, Any], **more: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: linear_cross_entropy(x, w, target, linear_bias=b, chunk_rows=2, **knobs, **more)


def apart(target: Any, knobs: dict[str, Any], **more: Any) -> Callable[..., Tensor]:
    return lambda x, w, b: cross_entropy(F.linear(x, w, b), target, **knobs, **more)


# --- autograd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reduction"), [*((name, "none") for name in CALLS), ("smoothed", "mean"), ("linked", "mean")]
)
def test_first_and_second_derivatives(name: str, reduction: str) -> None:
    value = fused(*CALLS[name], reduction=reduction)
    assert torch.autograd.gradcheck(value, free(X, W, B), check_forward_ad=reduction == "none")
    assert torch.autograd.gradgradcheck(value, free(X, W, B))


@pytest.mark.parametrize(("name", "reduction"), [*((name, "none") for name in CALLS), ("smoothed", "mean")])
def test_derivatives_of_what_is_beside_a_frozen_head(name: str, reduction: str) -> None:
    target, knobs = CALLS[name]

    def value(x: Tensor, beside: Tensor, b: Tensor, w: Tensor = W) -> Tensor:
        options = {"linear_bias": b, "chunk_rows": 2, "reduction": reduction, **knobs}
        return linear_cross_entropy_of(x, (w, beside), target, **options)

    leaves = free(torch.cat([X, X[:, :2].cos()], -1), W[:, 1:].sin(), B)
    assert torch.autograd.gradcheck(value, leaves, check_forward_ad=reduction == "none")
    assert torch.autograd.gradgradcheck(value, leaves)
    if reduction == "none":
        x, beside, b = (leaf.detach() for leaf in leaves)
        slope = torch.func.grad(lambda beside: value(x, beside, b).square().sum())
        mixed = torch.func.jvp(slope, (beside,), (beside.cos(),))[1]
        once = torch.autograd.grad(value(x, leaves[1], b).square().sum(), leaves[1], create_graph=True)
        torch.testing.assert_close(mixed, torch.autograd.grad(once, leaves[1], beside.cos())[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_number_has_the_bits_of_its_rows(kind: type) -> None:
    """Made in the forward pass or made again: the same gradients, to the bit."""
    target = torch.cat([LABELS, torch.tensor([-100])])
    x = torch.cat([X, torch.full((1, D), torch.nan)])
    leaves = free(*(t.float() for t in (x, torch.cat([W, W[:1] / 2]), torch.cat([B, B[:1]]))))  # six classes
    at_once = fused(target, {"loss": KNOBS[kind.__name__]}, reduction="sum")(*leaves)
    rows = fused(target, {"loss": KNOBS[kind.__name__]}, reduction="none")(*leaves)
    made = torch.autograd.grad(at_once, leaves, retain_graph=True)
    again = torch.autograd.grad(at_once, leaves)
    of_rows = torch.autograd.grad(rows, leaves, torch.ones_like(rows))
    for first, second, third in zip(made, again, of_rows, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert kind.__name__ == "Hinge" or first.any()
    (other,) = torch.autograd.grad(fused(target, {"loss": HEAVIER})(*leaves), leaves[:1])
    assert not torch.equal(other, made[0])  # equal tensors are not what this always finds


def test_what_comes_from_above_multiplies_the_gradients() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        leaves = free(*(t.to(dtype) for t in (X, W, B)))
        value = fused(LABELS, {})(*leaves)
        plain = torch.autograd.grad(value, leaves, retain_graph=True)
        for factor in (2.0, 0.25):
            scaled = torch.autograd.grad(value, leaves, torch.tensor(factor).to(value.dtype), retain_graph=True)
            for a, b in zip(scaled, plain, strict=True):
                assert torch.equal(a, factor * b), dtype
        third = torch.autograd.grad(value, leaves, torch.tensor(1 / 3, dtype=value.dtype), retain_graph=True)
        for a, b in zip(third, plain, strict=True):  # rounded once more
            torch.testing.assert_close(a.double(), b.double() / 3, rtol=1.01 * torch.finfo(dtype).eps, atol=0)
        batch = torch.autograd.grad(
            value, leaves, torch.tensor([1.0, 2.0]).to(value.dtype), retain_graph=True, is_grads_batched=True
        )
        for both, one in zip(batch, plain, strict=True):
            assert torch.equal(both, torch.stack([one, 2 * one]))


def test_a_mean_of_many_float16_rows_keeps_its_gradient() -> None:
    """1 / 2^13 of a probability of 1e-4 is less than the least number of float16."""
    n, v = 2**13, 64
    x, w = torch.ones(n, 1, dtype=torch.float16), torch.linspace(-3, 3, v, dtype=torch.float16).unsqueeze(1)
    y = torch.zeros(n, dtype=torch.long)
    head = w.clone().requires_grad_()
    linear_cross_entropy(x, head, y).backward()
    truth = torch.softmax(w[:, 0].double(), 0) - F.one_hot(torch.tensor(0), v)
    torch.testing.assert_close(head.grad[:, 0].double(), truth, rtol=2**-10, atol=2**-25)
    narrow = (truth / n).to(torch.float16).double() * n  # what a 16-bit gradient of each row would come to
    assert (narrow - truth).abs().div(truth.abs()).max() > 0.9


def test_whatever_else_may_be_learned_has_its_gradient() -> None:
    def of(x: Tensor, w: Tensor, shares: Tensor, classes: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        return (
            linear_cross_entropy(x, w, Target(COLUMNS, shares), weight=classes, sample_weight=rows, chunk_rows=2),
            linear_cross_entropy(x, w, LABELS, weight=classes, loss=Focal(2.0), reduction="none"),
        )

    inputs = free(X, W, SHARES, CLASSES, ROWS)
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)


@dataclass(frozen=True, eq=False)
class Curved(Loss):
    """Somebody's own loss, with a number that is learned: (1 + loss)^power."""

    power: Tensor
    loss: Loss

    @property
    def reads(self) -> frozenset[str]:
        return self.loss.reads

    def __call__(self, s: Stats) -> Tensor:
        return (1.0 + self.loss(s)) ** self.power


@pytest.mark.parametrize("inner", [LogZ(), Brier()], ids=["of statistics", "of columns"])
@pytest.mark.parametrize("target", [LABELS, SOFT], ids=["labels", "soft"])
def test_what_a_loss_holds_may_be_learned(inner: Loss, target: Tensor) -> None:
    power = torch.tensor(1.5, dtype=torch.float64)

    def of(made: Callable, reduction: str) -> Callable[..., Tensor]:
        def call(x: Tensor, w: Tensor, b: Tensor, power: Tensor) -> Tensor:
            return made(target, {"loss": Focal(2.0) + 0.5 * Curved(power, inner)}, reduction=reduction)(x, w, b)

        return call

    for reduction in ("mean", "none"):
        mine, theirs = free(X, W, B, power), free(X, W, B, power)
        got, expected = of(fused, reduction)(*mine), of(apart, reduction)(*theirs)
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
        slopes = (torch.autograd.grad(v.square().sum(), leaves) for v, leaves in ((got, mine), (expected, theirs)))
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)
        assert a.abs() > 1e-3
    assert torch.autograd.gradgradcheck(of(fused, "mean"), free(X, W, B, power))


def test_a_product_with_the_hessian_is_that_of_the_logits() -> None:
    along = [torch.randn(t.shape, generator=G, dtype=torch.float64) for t in (X, W, B)]
    for name in CALLS:
        found = []
        for way in (fused, apart):
            leaves = free(X, W, B)
            first = torch.autograd.grad(way(*CALLS[name])(*leaves), leaves, create_graph=True)
            found.append(torch.autograd.grad(sum((d * t).sum() for d, t in zip(first, along, strict=True)), leaves))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
            for fault, wrong in faults(torch.atleast_2d(ours)):
                if not torch.equal(wrong, torch.atleast_2d(ours)):
                    assert not torch.allclose(wrong, torch.atleast_2d(theirs), rtol=1e-11, atol=1e-13), fault


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(reentrant: bool) -> None:
    for name in CALLS:
        target, knobs = in_float32(CALLS[name])
        leaves = free(X.float(), W.float(), B.float())
        fused(target, knobs)(*leaves).backward()
        again = free(*leaves)
        torch.utils.checkpoint.checkpoint(fused(target, knobs), *again, use_reentrant=reentrant).backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(leaves, again, strict=True)), name


# --- torch.func ---------------------------------------------------------------------------------------------------


def test_derivatives_of_functions_are_those_of_the_logits() -> None:
    every = (0, 1, 2)
    along = tuple(torch.randn(t.shape, generator=G, dtype=torch.float64) for t in (X, W, B))
    for name in ("hard", "smoothed", "soft", "sparse", "focal", "ignored", "linked"):
        ours, theirs = fused(*CALLS[name]), apart(*CALLS[name])
        for how in (
            lambda f: torch.func.grad(f, every)(X, W, B),
            lambda f: torch.func.jvp(f, (X, W, B), along)[1:],
            lambda f: torch.func.jacrev(torch.func.grad(f))(X, W, B).unbind(),
            lambda f: (torch.func.hessian(f, 1)(X, W, B), torch.func.hessian(f, 2)(X, W, B)),
            lambda f: torch.func.vmap(f, (0, None, None))(torch.stack([X, 2 * X]), W, B).unbind(),
            lambda f: torch.func.vmap(torch.func.grad(f, 1), (0, None, 0))(X.expand(2, N, D), W, torch.stack([B, -B])),
        ):
            a, b = (torch.cat([t.flatten() for t in how(f)]) for f in (ours, theirs))
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
            assert not torch.allclose(1.01 * a, b, rtol=1e-11, atol=1e-13)


def test_what_is_not_there_is_refused_in_a_sentence() -> None:
    value = fused(LABELS, {})
    with pytest.raises(NotImplementedError, match="would silently be 0"):
        torch.func.jacfwd(torch.func.jacfwd(value))(X, W, B)


# --- tracing ------------------------------------------------------------------------------------------------------


def samples() -> list[tuple[Any, tuple]]:
    """What the operators are called with, and then what comes of it."""
    found: list[tuple[Any, tuple]] = []
    live = torch.tensor([True, False, True, True, True, True])
    for index, q, column_weight, uniform, entropy in (
        (LABELS.unsqueeze(1), None, None, False, False),
        (COLUMNS, None, CLASSES, True, True),
        (None, SOFT.unsqueeze(-1), None, True, False),
    ):
        for dtype, link in ((torch.float32, (None, None, None)), (torch.bfloat16, (torch.tensor(2.0), 3.0, B))):
            given = X.to(dtype), W.to(dtype), B.to(dtype), *link, live, index, q, column_weight
            order = index is not None
            fields, gap = operators.linear_part(*given, uniform, entropy, order, -2)
            found.append((operators.linear_part, (*given, uniform, entropy, order, -2)))
            fields = fields[:-2] if order else fields
            b, c, d = torch.randn(3, N, generator=G, dtype=torch.float64)
            cotangents = torch.randn(gap.shape, generator=G, dtype=torch.float64), b, c if uniform else None
            given = *given, fields, *cotangents, d if entropy else None, 2
            found += [(operators.linear_pull, (*given, *there)) for there in ((True, True, True), (False, True, False))]
    wide, beside, of_label = torch.cat([X, X], -1), W.cos(), (None, LABELS.unsqueeze(1), None, None)
    given = wide, W, B, None, None, None, *of_label
    found.append((operators.linear_part, (*given, False, False, False, 2, beside)))
    fields, gap = operators.linear_part(*given, False, False, False, 2, beside)
    pulled = *given, fields, gap, None, None, None, 2, True, True, True, beside
    return [*found, (operators.linear_pull, pulled)]


def test_the_operators_are_what_they_say() -> None:
    for operator, arguments in samples():
        torch.library.opcheck(operator, arguments)


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("how", ["aot_eager", "inductor"])
def test_compiled_in_one_piece(how: str) -> None:
    traced = {
        "hard": (LABELS, {"weight": CLASSES, "label_smoothing": 0.1, "sample_weight": ROWS}),
        "soft": (SOFT, {}),
        "sparse": (sparse(COLUMNS, SHARES, V), {"loss": HEAVIER, "link": Link(2.0, 3.0, CLASSES)}),
    }

    def values(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.stack([fused(*in_float32(call))(x, w, b) for call in traced.values()])

    torch._dynamo.reset()
    mine, theirs = free(X.float(), W.float(), B.float()), free(X.float(), W.float(), B.float())
    got = torch.compile(values, fullgraph=True, backend=compiler(how))(*mine)
    expected = values(*theirs)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    got.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(got, expected, rtol=2**-22, atol=0)  # sums of float64 in another order, rounded once
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2**-20, atol=2**-22)  # three float32 gradients added up
        assert b.grad.abs().max() > 0.1


def test_z_loss_is_among_what_a_number_may_hold() -> None:
    leaves, plain = free(X, W, B), free(X, W, B)
    knobs = {"loss": Focal(2.0) + 0.1 * LogZ(), "label_smoothing": 0.1, "weight": CLASSES}
    fused(LABELS, knobs)(*leaves).backward()
    apart(LABELS, knobs)(*plain).backward()
    for a, b in zip(leaves, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
