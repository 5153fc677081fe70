"""Losses of a head that look at the logits themselves, links that are trained, teachers: derivatives of every kind.

The truth is the same loss of logits that are there, in float64, differentiated by torch as often as it takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from crossent import Link, cross_entropy, distillation, linear_cross_entropy, linear_distillation, linear_row_numbers
from crossent.compute.functional import row_numbers
from crossent.compute.linear import columns, compiled, outline
from crossent.compute.losses import NLL, Brier, Focal, Hinge, Loss
from crossent.compute.stats import Stats
from crossent.compute.target import Target
from tests.compare import faults
from tests.compute.test_compile import compiler

G = torch.Generator().manual_seed(5)
N, D, V = 6, 3, 5


def some(*shape: int) -> Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64)


X, W, B, PRIOR, T, U = some(N, D), some(V, D), some(V), some(V), some(N, 2), some(V, 2)
Y = torch.tensor([0, 3, 1, 4, -100, 2])
SOFT = torch.softmax(some(N, V), -1)
ROWS, CLASSES = (torch.rand(n, generator=G, dtype=torch.float64) + 0.5 for n in (N, V))
TAU, CAP = torch.tensor(1.3).double(), torch.tensor(4.0).double()

Value = Callable[..., Tensor]


def of_loss(target: Any, **knobs: Any) -> tuple[Value, Value, tuple[Tensor, ...]]:
    """(fused, of the logits, what it is a function of)."""
    return (
        lambda x, w, b: linear_cross_entropy(x, w, target, linear_bias=b, chunk_rows=3, **knobs),
        lambda z: cross_entropy(z, target, **knobs),
        (X, W, B),
    )


def of_teacher(kind: Any) -> tuple[Value, Value, tuple[Tensor, ...]]:
    return (
        lambda x, w, b: linear_distillation(x, w, T, U, linear_bias=b, kind=kind, temperature=1.5, chunk_rows=3),
        lambda z: distillation(z, T @ U.T, kind=kind, temperature=1.5),
        (X, W, B),
    )


CALLS: dict[str, tuple[Value, Value, tuple[Tensor, ...]]] = {
    "Brier": of_loss(Y, loss=Brier()),
    "Hinge": of_loss(Y, loss=Hinge()),
    "Focal of probabilities": of_loss(SOFT, loss=Focal()),
    "a teacher": of_teacher("jsd"),
    "a link": (
        lambda x, w, b, t, c, p: linear_cross_entropy(x, w, Y, linear_bias=b, link=Link(t, c, p), chunk_rows=3),
        lambda z, t, c, p: cross_entropy(z, Y, link=Link(t, c, p)),
        (X, W, B, TAU, CAP, PRIOR),
    ),
    "probabilities and row weights": (
        lambda x, w, b, q, r: linear_cross_entropy(
            x, w, q.square(), linear_bias=b, loss=Focal(), sample_weight=r, chunk_rows=3
        ),
        lambda z, q, r: cross_entropy(z, q.square(), loss=Focal(), sample_weight=r),
        (X, W, B, SOFT, ROWS),
    ),
    "class weights": (
        lambda x, w, b, c: linear_cross_entropy(x, w, Y, linear_bias=b, loss=Brier(), weight=c, chunk_rows=3),
        lambda z, c: cross_entropy(z, Y, loss=Brier(), weight=c),
        (X, W, B, CLASSES),
    ),
}


def free(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


def apart(of_logits: Value) -> Value:
    return lambda x, w, b, *rest: of_logits(F.linear(x, w, b), *rest)


def flat(found: Any) -> Tensor:
    return torch.cat([t.flatten() for t in (found if isinstance(found, (tuple, list)) else (found,))])


@pytest.mark.parametrize("name", CALLS)
def test_first_second_and_forward_derivatives(name: str) -> None:
    value, _, given = CALLS[name]
    assert torch.autograd.gradcheck(value, free(given), check_forward_ad=True, fast_mode=True)
    if name in (
        "a link",
        "probabilities and row weights",
    ):  # all that the others have
        assert torch.autograd.gradgradcheck(value, free(given), fast_mode=True)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_and_products_with_the_hessian_are_those_of_the_logits(name: str) -> None:
    value, of_logits, given = CALLS[name]
    along = [some(*t.shape) for t in given]
    found = []
    for way in (value, apart(of_logits)):
        leaves = free(given)
        plain = torch.autograd.grad(way(*leaves), leaves)
        first = torch.autograd.grad(way(*leaves), leaves, create_graph=True)
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(plain, first, strict=True))
        second = torch.autograd.grad(sum((d * t).sum() for d, t in zip(first, along, strict=True)), leaves)
        found.append([*plain, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)  # float64 both, sums in other orders
        for fault, wrong in faults(torch.atleast_2d(ours)):
            if not torch.equal(wrong, torch.atleast_2d(ours)):
                assert not torch.allclose(wrong, torch.atleast_2d(theirs), rtol=1e-11, atol=1e-13), fault


@pytest.mark.parametrize("name", CALLS)
def test_derivatives_of_functions(name: str) -> None:
    value, of_logits, given = CALLS[name]
    every, along = tuple(range(len(given))), tuple(some(*t.shape) for t in given)
    batch = (0, *(None for _ in given[1:]))
    both = torch.stack([X, 2 * X]), *given[1:]
    for how in (
        lambda f: torch.func.grad(f, every)(*given),
        lambda f: torch.func.jvp(f, given, along)[1],
        lambda f: torch.func.jacrev(torch.func.grad(f))(*given),
        lambda f: torch.func.vmap(f, batch)(*both),
        lambda f: torch.func.vmap(torch.func.grad(f, 1), batch)(*both),
    ):
        ours, theirs = flat(how(value)), flat(how(apart(of_logits)))
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)
        assert name == "Hinge" or not torch.allclose(1.01 * ours, theirs, rtol=1e-11, atol=1e-13)
    by_two_ways = torch.func.hessian(value)(*given), torch.func.jacrev(torch.func.grad(apart(of_logits)))(*given)
    torch.testing.assert_close(*by_two_ways, rtol=1e-11, atol=1e-13)


def test_shared_gradients_that_are_not_added_up_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: of the head's second derivatives, those of the last chunk alone."""
    true = columns.in_chunks
    value, of_logits, given = CALLS["Brier"]
    truth = torch.func.jacrev(torch.func.grad(apart(of_logits), 1), 1)(*given)

    def last_alone(function: Any, given: Any, by_row: Any, made: Any, size: int) -> list[Tensor]:
        rows = [t[-1:] if by and t is not None else t for t, by in zip(given, by_row, strict=True)]
        some = function(*rows)
        found = true(function, given, by_row, made, size)
        return [one if by else last for one, last, by in zip(found, some, made, strict=True)]

    right = torch.func.jacrev(torch.func.grad(value, 1), 1)(*given)
    torch.testing.assert_close(right, truth, rtol=1e-11, atol=1e-13)
    monkeypatch.setattr(columns, "in_chunks", last_alone)
    wrong = torch.func.jacrev(torch.func.grad(value, 1), 1)(*given)
    assert not torch.allclose(wrong, truth, rtol=1e-3)


def test_a_trained_link_has_the_same_bits_however_it_is_reduced() -> None:
    """And its gradient is there for narrow heads too, in the link's own dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [*free(tuple(t.to(dtype) for t in (X, W))), *free((TAU.float(), CAP.float(), PRIOR.float()))]
        x, w, t, c, p = leaves
        total = linear_cross_entropy(x, w, Y, link=Link(t, c, p), reduction="sum", chunk_rows=3)
        rows = linear_cross_entropy(x, w, Y, link=Link(t, c, p), reduction="none", chunk_rows=3)
        found = torch.autograd.grad(total, leaves)
        again = torch.autograd.grad(rows, leaves, torch.ones_like(rows))
        z = F.linear(x, w)
        truth = torch.autograd.grad(cross_entropy(z, Y, link=Link(t, c, p), reduction="sum"), leaves)
        for a, b, true in zip(found, again, truth, strict=True):
            assert a.dtype == true.dtype
            assert torch.equal(a, b)
            # One rounding of the result, and for 16 bits those of torch's own product of it.
            torch.testing.assert_close(a, true, rtol=4 * torch.finfo(a.dtype).eps, atol=torch.finfo(dtype).eps)


def test_small_cotangents_of_float16_rows_are_not_lost() -> None:
    """1e-7 of a slope of 1e-2 is less than the least number of float16, and the head adds up 4096 of them."""
    x = torch.ones(4096, 1, dtype=torch.float16)
    w = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float16, requires_grad=True)
    y = torch.zeros(4096, dtype=torch.long)
    up = torch.full((4096,), 1e-7)
    linear_cross_entropy(x, w, y, loss=Brier(), reduction="none", chunk_rows=512).backward(up)
    z = w.detach().double().T.requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(z, y[:1], loss=Brier()), z)
    torch.testing.assert_close(w.grad.double(), 4096e-7 * slope.T, rtol=2**-9, atol=2**-24)
    assert w.grad.all()


def test_row_numbers_of_losses_that_read_logits() -> None:
    for loss in (Brier(), Hinge(), NLL() + 0.5 * Brier()):
        mine, theirs = free((X, W, B)), free((X, W, B))
        got = linear_row_numbers(mine[0], mine[1], Y, linear_bias=mine[2], loss=loss, chunk_rows=3)
        expected = row_numbers(F.linear(*theirs), Y, loss=loss)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)
        for a, b in ((got.loss, expected.loss), (got.entropy, expected.entropy)):
            made = torch.autograd.grad(a.sum(), mine, retain_graph=True)
            for ours, other in zip(made, torch.autograd.grad(b.sum(), theirs, retain_graph=True), strict=True):
                torch.testing.assert_close(ours, other, rtol=1e-11, atol=1e-14)
        assert not torch.allclose(got.loss, got.log_prob)


# --- tracing ------------------------------------------------------------------------------------------------------


def agree(compiled: Value, eager: Value, given: tuple[Tensor, ...]) -> None:
    """The same values, and the same gradients of two of them."""
    mine, theirs = free(given), free(given)
    got, expected = compiled(*mine), eager(*theirs)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    up = torch.tensor([1.0, -2.0]).double()[-got.numel() :].reshape(got.shape)
    for a, b in zip(torch.autograd.grad(got, mine, up), torch.autograd.grad(expected, theirs, up), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
        assert not torch.allclose(1.01 * a, b, rtol=1e-11, atol=1e-13)


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_in_one_piece() -> None:
    torch._dynamo.reset()
    value, _, given = CALLS["a link"]
    agree(torch.compile(value, fullgraph=True, backend=compiler("inductor")), value, given)


@dataclass(frozen=True, eq=False)
class Powered(Loss):
    """Somebody's own loss, with a number or a tensor of its own."""

    power: float | Tensor

    def __call__(self, s: Stats) -> Tensor:
        return s.over_targets((1.0 + s.nll) ** self.power)


class Bent(torch.nn.Module, Loss):
    """Somebody's own loss that is a module, and holds another module."""

    def __init__(self, power: Tensor) -> None:
        super().__init__()
        self.power = torch.nn.Parameter(power)
        self.bend = torch.nn.Linear(1, 1, dtype=torch.float64)
        self.inner = Brier()

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def forward(self, s: Stats) -> Tensor:
        return self.bend(self.inner(s).unsqueeze(-1) ** self.power).squeeze(-1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_and_eager_have_the_same_bits() -> None:
    class Local(Powered):
        """One that nobody can import."""

    power, weight = torch.tensor(1.5).double(), torch.rand(5, generator=G).double() + 0.5

    def loss_of(loss: Loss, **knobs: Any) -> Value:
        return lambda x, w, b, p: linear_cross_entropy(x, w, SOFT, linear_bias=b, loss=loss, chunk_rows=3, **knobs)

    cases: list[Value] = [
        *(loss_of(Powered(power)) for power in (2.0, 2.5, 3.0)),  # numbers of which a compiler would make a variable
        loss_of(Local(2.0)),
        loss_of(0.5 * Bent(power) + NLL()),
        loss_of(0.5 * Brier() + NLL(), weight=weight, link=Link(softcap=3.0)),
        lambda x, w, b, p: linear_cross_entropy(x, w, Y, linear_bias=b, loss=Brier() + Powered(p), reduction="sum"),
    ]
    for whole in cases:
        torch._dynamo.reset()
        found = []
        for value in (whole, torch.compile(whole, fullgraph=True, backend="aot_eager")):
            leaves = free((X, W, B, power))
            got = value(*leaves)
            found.append([got, *torch.autograd.grad(got, leaves, allow_unused=True)])
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (torch.equal(a, b) and a.any())


def test_what_a_compiled_program_names_has_to_be_there() -> None:
    for name, kind, sentence in (
        ("crossent.compute.losses:Mine", LookupError, "needs crossent.compute.losses:Mine, which is not here"),
        ("subprocess:Popen", TypeError, "subprocess:Popen is no loss, link or divergence"),
        ("antigravity:Loss", LookupError, "nobody has imported antigravity here.* write `import antigravity` before"),
        ("crossent.compute.losses:NLL.__init__.__globals__", LookupError, "which is not here"),
    ):
        with pytest.raises(kind, match=sentence):
            compiled._read(json.dumps(["object", name, {}]))
    assert "antigravity" not in sys.modules  # it opens a browser


def test_the_operators_are_what_they_say() -> None:
    target = Target(Y.clamp(min=0).unsqueeze(-1), live=Y >= 0)
    made = columns.columns_of(target, 0.5 * Brier(), None)
    of, head = outline.written(outline.outline(made.of)), (target.live, X, W, B, [*made.by_row, *made.whole])
    g, h = some(N), some(N)
    wanted = [True, False, True, *(False for _ in head[-1])]
    torch.library.opcheck(torch.ops.crossent.linear_columns_losses.default, (of, 3, 2, *head))
    torch.library.opcheck(torch.ops.crossent.linear_columns_gradients.default, (of, 3, 2, wanted, g, h, *head))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_keeps_no_logits() -> None:
    """What the compiled forward pass hands to the backward pass has no rows of logits; that of the logits has."""
    x, w, t, u = some(8, 3), some(51, 3), some(8, 2), some(51, 2)
    y = torch.arange(8)
    kept: list[int] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        (outputs,) = graph.graph.output_node().args
        sizes = [node.meta["val"].shape for node in outputs if isinstance(node, torch.fx.Node)]
        kept.extend(size[0] for size in sizes if len(size) > 1 and size[0] <= 8 and size[1] == 51)
        return make_boxed_func(graph.forward)

    def fused(x: Tensor, w: Tensor) -> Tensor:
        teacher = linear_distillation(x, w, t, u, kind="jsd", temperature=1.5, chunk_rows=4)
        return torch.stack([linear_cross_entropy(x, w, y, loss=Brier(), chunk_rows=4), teacher])

    def whole(x: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(F.linear(x, w), y, loss=Brier())

    backend = aot_autograd(fw_compiler=look, partition_fn=min_cut_rematerialization_partition)
    for value, there in ((fused, False), (whole, True)):
        kept.clear()
        torch._dynamo.reset()
        agree(torch.compile(value, fullgraph=True, backend=backend), value, (x, w))
        assert bool(set(kept) - {2, 3}) == there  # 2 and 3 are those of the heads, turned round
