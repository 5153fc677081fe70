"""Everything that traces: the operators as torch sees them, torch.compile, torch.export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.optests.generate_tests import OpCheckError

from crossent import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    Link,
    Target,
    binary_cross_entropy_with_logits,
    cross_entropy,
    sparse,
)
from crossent.compute import backends, operators
from tests.compare import faults, ulps
from tests.compute.test_autograd import (
    CALLS,
    CLASSES,
    COLUMNS,
    HEAVIER,
    LABELS,
    MASK,
    ROWS,
    SHARES,
    SOFT,
    G,
    N,
    V,
    Z,
    in_float32,
)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.using(request.param):
        yield request.param


def samples() -> Iterator[tuple[str, tuple]]:
    """What the kernels' operators are called with, and then what comes of it."""
    g = torch.Generator().manual_seed(5)
    for dtype, channels_first in ((torch.float32, False), (torch.float64, True), (torch.bfloat16, True)):
        z = torch.randn(2, V, 3, generator=g).to(dtype)
        z = z if channels_first else z.mT.contiguous().mT
        y, live = torch.randint(V, (6, 1), generator=g), torch.rand(6, generator=g) < 0.7
        w = torch.rand(V, generator=g)
        for index, q in (
            (y, None),
            (torch.randint(V, (6, 4), generator=g), None),
            (None, torch.rand(2, V, 3, generator=g).to(dtype)),
            (None, None),
        ):
            for there, weight, uniform, entropy in ((None, None, False, False), (live, w, True, True)):
                given = (z, there, index, q, weight)
                fields, gap = operators.part(*given, uniform, entropy, False)
                yield "part", (*given, uniform, entropy, weight is not None and q is None)
                b, c, d = torch.randn(3, 6, generator=g, dtype=torch.float64)
                given = (*given, fields, torch.randn(gap.shape, generator=g, dtype=torch.float64))
                yield "pull", (*given, b, c if uniform else None, d if entropy else None)
        z, share, a = z.flatten(), torch.rand(30, generator=g), torch.randn(30, generator=g, dtype=torch.float64)
        for positive, smoothing in ((None, 0.0), (torch.rand(15, generator=g), 0.1)):
            for summed in (False, True):
                yield "elements", (z, share, positive, smoothing, summed)
            for cotangents in (a, a[:1].expand(30)):
                yield "pull_elements", (z, share, positive, smoothing, cotangents)


def test_the_operators_are_what_they_say(backend: str) -> None:
    seen = set()
    for name, arguments in samples():
        torch.library.opcheck(getattr(operators, name), arguments)
        seen.add(f"crossent::{name}")
    ours = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("crossent::")}
    assert seen == {name for name in ours if not name.startswith("crossent::linear_")}  # their own tests


def test_a_fake_that_tells_something_else_is_noticed() -> None:
    library = torch.library.Library("crossent_test", "DEF")
    library.define("off(Tensor z) -> Tensor")
    library.impl("off", lambda z: z.double(), "CompositeExplicitAutograd")
    torch.library.register_fake("crossent_test::off", lambda z: torch.empty_like(z), lib=library)
    with pytest.raises(OpCheckError, match=r"Dtypes torch\.float64 and torch\.float32 are not equal"):
        torch.library.opcheck(torch.ops.crossent_test.off.default, (torch.ones(2),))


def compiler(backend: str) -> str:
    if backend == "inductor" and not any(map(shutil.which, ("g++", "c++", "clang++", "cl"))) and "CI" not in os.environ:
        pytest.skip("no C++ compiler: what torch.compile's own backend makes of the losses is not tested here")
    return backend


TRACED: dict[str, tuple[Any, dict[str, Any]]] = {
    "hard": (LABELS, {"weight": CLASSES, "label_smoothing": 0.1, "mask": MASK, "sample_weight": ROWS}),
    "soft": (SOFT, {}),
    "sparse and focal": (sparse(COLUMNS, SHARES, V), {"loss": HEAVIER, "link": CALLS["linked"][1]["link"]}),
}


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("how", ["aot_eager", "inductor"])
def test_compiled_in_one_piece_for_any_number_of_rows(how: str) -> None:
    def values(logits: list[Tensor], targets: list[Any], knobs: list[dict[str, Any]]) -> Tensor:
        given = zip(logits, targets, knobs, strict=True)
        return torch.stack([cross_entropy(z, target, **each) for z, target, each in given])

    def of_rows(repeats: int, given: Any) -> Any:
        if isinstance(given, dict):
            return {key: of_rows(repeats, value) for key, value in given.items()}
        if isinstance(given, Target):
            return Target(*(of_rows(repeats, field) for field in vars(given).values()))
        rows = isinstance(given, Tensor) and given.dim() > 0 and given.shape[0] == N
        return given.repeat(repeats, *[1] * (given.dim() - 1)) if rows else given

    torch._dynamo.reset()
    compiled = torch.compile(values, fullgraph=True, backend=compiler(how), dynamic=True)
    for repeats in (1, 3, 2):
        targets, knobs = ([of_rows(repeats, in_float32(call[at])) for call in TRACED.values()] for at in (0, 1))
        mine = [torch.randn(repeats * N, V, generator=G).requires_grad_() for _ in TRACED]
        theirs = [z.detach().clone().requires_grad_() for z in mine]
        before = [z.detach().clone() for z in mine]
        with torch.compiler.set_stance("default" if repeats == 1 else "fail_on_recompile"):
            got = compiled(mine, targets, knobs)
        expected = values(theirs, targets, knobs)
        upstream = torch.randn(len(TRACED), generator=G)
        got.backward(upstream)
        expected.backward(upstream)
        # A fused product of float64 may round another way; of its float32 that is an ulp at most.
        assert ulps(got.detach(), expected.detach()) <= 1
        for name, z, same, kept in zip(TRACED, mine, theirs, before, strict=True):
            assert ulps(z.grad, same.grad) <= 1, name
            assert torch.equal(z, kept), name
            for fault, wrong in faults(z.grad):
                assert ulps(wrong, same.grad) > 1, f"{name}: a gradient {fault} would pass"
    with torch.no_grad():
        assert ulps(compiled(mine, targets, knobs), expected.detach()) <= 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("how", ["aot_eager", "inductor"])
def test_a_compiled_model_keeps_what_the_loss_and_a_layer_share(how: str) -> None:
    """In a compiled backward pass torch writes over saved tensors: the layer's, and those that ``pull`` reads."""

    def step(x: Tensor, w: Tensor, q: Tensor) -> Tensor:
        return cross_entropy(torch.tanh(x @ w), q) + binary_cross_entropy_with_logits(x @ w, q, validate="off")

    torch._dynamo.reset()
    w, x, q = torch.eye(V), Z.float(), SOFT.float()
    (got,) = torch.autograd.grad(
        torch.compile(step, fullgraph=True, backend=compiler(how))(x, w.requires_grad_(), q), w
    )
    (expected,) = torch.autograd.grad(step(x, w, q), w)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)  # float32 sums of N products
    assert expected.abs().max() > 0.1


def test_exported_modules_give_the_modules_bits_for_any_number_of_rows() -> None:
    rows = torch.export.Dim("rows", min=2, max=1000)
    z, y = Z.float(), LABELS
    for module, inputs in (
        (CrossEntropyLoss(CLASSES.float(), label_smoothing=0.1), (z, y)),
        (CrossEntropyLoss(loss=HEAVIER, link=Link(softcap=5.0)), (z, y)),
        (CrossEntropyLoss(), (z, SOFT.float())),
        (BCEWithLogitsLoss(pos_weight=CLASSES.float()), (z, SOFT.float())),
    ):
        program = torch.export.export(module, inputs, dynamic_shapes=({0: rows}, {0: rows})).module()
        for repeats in (1, 3):
            more = [torch.cat([x, *[x.flip(0)] * (repeats - 1)]) for x in inputs]
            assert torch.equal(program(*more), module(*more))
            assert not torch.equal(program(more[0].flip(0), more[1]), module(*more))


@pytest.mark.parametrize("binary", [False, True])
def test_a_forward_derivative_is_never_compiled_to_zero(binary: bool) -> None:
    z, t = Z.float(), torch.ones_like(Z.float()).cumsum(1)

    def value(z: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(z, SOFT.float(), validate="off") if binary else cross_entropy(z, LABELS)

    def moved(z: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(value, (z,), (t,))[1]

    torch._dynamo.reset()
    expected = moved(z)
    assert expected.abs() > 0.01
    assert torch.equal(torch.compile(moved, backend="aot_eager")(z), expected)  # left to run outside of the graph
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"a forward derivative .* cannot be compiled"):
        torch.compile(moved, backend="aot_eager", fullgraph=True)(z)
