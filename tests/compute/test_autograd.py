"""Everything that differentiates: autograd and what is built on it, torch.func."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from crossent import (
    Link,
    Target,
    binary_cross_entropy_with_logits,
    cross_entropy,
    linear_cross_entropy,
    sparse,
)
from crossent.compute import backends
from crossent.compute.losses import LOSSES, NLL, Confidence, Focal, LogZ, Smoothed
from tests.compare import faults, ulps
from tests.laws.test_losses import KNOBS

NAMES = [kind.__name__ for kind in LOSSES]
N, V = 6, 5
G = torch.Generator().manual_seed(3)
Z = torch.randn(N, V, generator=G, dtype=torch.float64)
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
COLUMNS = torch.tensor([[0, 2], [3, 1], [4, 0], [2, 2], [1, 0], [3, 4]])
SHARES = torch.rand(N, 2, generator=G, dtype=torch.float64) + 0.1
SOFT = torch.softmax(torch.randn(N, V, generator=G, dtype=torch.float64), -1)
MASK = torch.tensor([True, False, True, True, False, True])
CLASSES = torch.rand(V, generator=G, dtype=torch.float64) + 0.5
ROWS = torch.rand(N, generator=G, dtype=torch.float64) + 0.5
COTANGENT = torch.randn(N, generator=G, dtype=torch.float64)
HEAVIER = Focal(2.0) + 0.1 * LogZ() + 0.1 * Confidence()

CALLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "hard": (LABELS, {}),
    "smoothed": (LABELS, {"label_smoothing": 0.1}),
    "soft": (SOFT, {}),
    "soft and smoothed": (SOFT, {"label_smoothing": 0.1, "weight": CLASSES}),
    "soft and focal": (SOFT, {"loss": HEAVIER}),
    "sparse": (sparse(COLUMNS, SHARES, V), {}),
    "focal": (LABELS, {"loss": HEAVIER}),
    "class weights": (LABELS, {"weight": CLASSES}),
    "masked": (LABELS, {"mask": MASK, "sample_weight": ROWS}),
    "ignored": (torch.where(MASK, LABELS, -100), {"loss": NLL() + 0.1 * LogZ()}),
    "linked": (LABELS, {"link": Link(temperature=2.0, softcap=3.0, bias=CLASSES)}),
}


def in_float32(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.float() if given.is_floating_point() else given
    if isinstance(given, Target):
        return Target(*(None if x is None else in_float32(x) for x in vars(given).values()))
    if isinstance(given, Link):
        return Link(given.temperature, given.softcap, None if given.bias is None else given.bias.float())
    return {key: in_float32(value) for key, value in given.items()} if isinstance(given, dict) else given


def plain(z: Tensor, q: Tensor) -> Tensor:
    """The row losses of soft targets by another road: torch's own, differentiable as often as one likes."""
    return -(q * torch.log_softmax(z, -1)).sum(-1)


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y, V).double()


def spread(columns: Tensor, shares: Tensor) -> Tensor:
    return torch.zeros(*columns.shape[:-1], V, dtype=shares.dtype).scatter_add(-1, columns, shares)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.using(request.param):
        yield request.param


# --- autograd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_second_and_forward_derivatives_of_every_loss(name: str, backend: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([1, 5, 0]), torch.softmax(torch.randn(3, 6, dtype=torch.float64), -1)):

        def value(z: Tensor, target: Tensor = target) -> Tensor:
            return cross_entropy(z, target, loss=KNOBS[name], label_smoothing=0.1 * (name == "NLL"), reduction="sum")

        assert torch.autograd.gradcheck(value, z, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(value, z, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", CALLS)
def test_second_and_forward_derivatives_of_every_way_to_call(name: str, backend: str) -> None:
    target, knobs = CALLS[name]
    z = Z.clone().requires_grad_()

    def value(z: Tensor) -> Tensor:
        return cross_entropy(z, target, reduction="none", **knobs)

    assert torch.autograd.gradcheck(value, z, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(value, z, check_fwd_over_rev=True)


def test_whatever_may_be_learned_has_its_gradient(backend: str) -> None:
    def free(x: Tensor) -> Tensor:
        return x.clone().requires_grad_()

    def of(z, q, shares, classes, rows, temperature, bias) -> tuple[Tensor, ...]:
        link = Link(temperature=temperature, softcap=4.0, bias=bias)
        return (
            cross_entropy(z, q, classes, link=link, sample_weight=rows, validate="off"),
            cross_entropy(z, q, loss=Smoothed(0.1, Focal(2.0)), reduction="none", validate="off"),
            cross_entropy(z, Target(COLUMNS, shares), classes, label_smoothing=0.1, sample_weight=rows),
        )

    inputs = [free(x) for x in (Z, SOFT, SHARES, CLASSES, ROWS, torch.tensor(1.5).double(), CLASSES)]
    assert torch.autograd.gradcheck(of, inputs)
    assert torch.autograd.gradgradcheck(of, inputs)

    def binary(z, target, weight, positive) -> tuple[Tensor, ...]:
        knobs = {"weight": weight, "pos_weight": positive, "reduction": "none", "validate": "off"}
        return (
            binary_cross_entropy_with_logits(z, target, label_smoothing=0.1, **knobs),
            binary_cross_entropy_with_logits(z, target, loss=HEAVIER, **knobs),
        )

    share = [free(x) for x in (Z[0], SOFT[0], ROWS[:V], CLASSES)]
    assert torch.autograd.gradcheck(binary, share)
    assert torch.autograd.gradgradcheck(binary, share)
    for frozen in range(4):  # each of them alone, too
        alone = [x.detach().requires_grad_(at == frozen) for at, x in enumerate(share)]
        assert torch.autograd.gradcheck(binary, alone, check_forward_ad=frozen == 0)


def test_soft_targets_learn_while_the_logits_are_frozen(backend: str) -> None:
    q = SOFT.clone().requires_grad_()
    cross_entropy(Z, q).backward()
    assert ulps(q.grad, -torch.log_softmax(Z, -1) / N) <= 8  # float64; torch's log_softmax is what is not exact here
    assert Z.grad is None


def test_a_product_with_the_hessian_is_the_formulas(backend: str) -> None:
    for target, q in ((LABELS, one_hot(LABELS)), (SOFT, SOFT), (sparse(COLUMNS, SHARES, V), spread(COLUMNS, SHARES))):
        z, t = Z.clone().requires_grad_(), torch.randn(N, V, generator=G, dtype=torch.float64)
        (dz,) = torch.autograd.grad(cross_entropy(z, target, reduction="none") @ COTANGENT, z, create_graph=True)
        (product,) = torch.autograd.grad((dz * t).sum(), z)
        p = torch.softmax(Z, -1)
        truth = (COTANGENT * q.sum(-1)).unsqueeze(-1) * (p * t - p * (p * t).sum(-1, keepdim=True))
        torch.testing.assert_close(product, truth, rtol=1e-12, atol=1e-14)
        for fault, wrong in faults(product):
            assert not torch.allclose(wrong, truth, rtol=1e-12, atol=1e-14), fault


def test_a_gradient_penalty_trains(backend: str) -> None:
    def penalised(row_losses: Callable[[Tensor], Tensor]) -> Tensor:
        w = torch.eye(V, dtype=torch.float64).requires_grad_()
        x = Z.clone().requires_grad_()
        value = row_losses(x @ w).mean()
        (dx,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(value + (dx.norm(dim=-1) - 1).square().mean(), w)[0]

    ours = penalised(lambda z: cross_entropy(z, SOFT, reduction="none"))
    theirs = penalised(lambda z: plain(z, SOFT))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    alone = penalised(lambda z: plain(z, SOFT.roll(1, 0)))
    assert not torch.allclose(ours, alone, rtol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_twice_backward_gives_twice_the_gradient(name: str, backend: str) -> None:
    target, knobs = in_float32(CALLS[name])
    z = Z.float().requires_grad_()
    value = cross_entropy(z, target, **knobs)
    value.backward(retain_graph=True)
    once = z.grad.clone()
    value.backward()
    assert torch.equal(z.grad, 2 * once)
    assert once.any()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_the_upstream_gradient_may_lie_as_it_likes(backend: str) -> None:
    z = torch.randn(4, V, 3, generator=G).requires_grad_()
    for target in (torch.randint(V, (4, 3), generator=G), torch.softmax(torch.randn(4, V, 3, generator=G), 1)):
        for loss in (None, HEAVIER):
            value = cross_entropy(z, target, loss=loss, reduction="none")
            g = torch.randn(4, 3, generator=G)
            (dz,) = torch.autograd.grad(value, z, g, retain_graph=True)
            sparse_memory = torch.full((8, 6), torch.nan)
            sparse_memory[::2, 1::2] = g
            for lying in (g.T.contiguous().T, sparse_memory[::2, 1::2]):
                assert not lying.is_contiguous()
                assert torch.equal(torch.autograd.grad(value, z, lying, retain_graph=True)[0], dz)
            lone = torch.randn(4, 1, generator=G).expand(4, 3)
            expected = torch.autograd.grad(value, z, lone.clone(), retain_graph=True)[0]
            assert torch.equal(torch.autograd.grad(value, z, lone, retain_graph=True)[0], expected)
            assert not torch.equal(expected, dz)


def test_many_upstream_gradients_at_once(backend: str) -> None:
    z, scales = Z.float().requires_grad_(), torch.tensor([1.0, -2.0, 0.0])
    for name, (target, knobs) in CALLS.items():

        def value(z: Tensor, target: Any = target, knobs: dict[str, Any] = knobs) -> Tensor:
            return cross_entropy(z, in_float32(target), **in_float32(knobs))

        batch = torch.autograd.grad(value(z), z, scales, is_grads_batched=True)[0]
        alone = torch.stack([torch.autograd.grad(value(z), z, scale)[0] for scale in scales])
        assert torch.equal(batch, alone), name
        assert not torch.equal(batch[0], batch[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_bit(reentrant: bool, backend: str) -> None:
    for name, (target, knobs) in CALLS.items():
        z = Z.float().requires_grad_()
        value = cross_entropy(z, in_float32(target), **in_float32(knobs))
        (dz,) = torch.autograd.grad(value, z)
        again = torch.utils.checkpoint.checkpoint(
            lambda z, t, k: cross_entropy(z, t, **k), z, in_float32(target), in_float32(knobs), use_reentrant=reentrant
        )
        again.backward()  # a reentrant checkpoint knows no autograd.grad
        assert torch.equal(again, value), name
        assert torch.equal(z.grad, dz), name


def test_autocast_makes_the_logits_narrow_and_the_loss_not() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(16, V), torch.randn(N, 16)

    def gradients(value: Tensor) -> list[Tensor]:
        return [value.detach(), *torch.autograd.grad(value, list(model.parameters()))]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(x)
        assert z.dtype == torch.bfloat16
        inside = gradients(cross_entropy(z, LABELS))
        fused = linear_cross_entropy(x, model.weight, LABELS, linear_bias=model.bias)
        head = gradients(fused)
    narrow = nn.functional.linear(x.bfloat16(), model.weight.bfloat16(), model.bias.bfloat16())
    outside = gradients(cross_entropy(narrow, LABELS))
    assert inside[0].dtype == fused.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))
    assert all(a.dtype == torch.float32 for a in head)
    assert head[0] == inside[0]
    for a, b in zip(head[1:], inside[1:], strict=True):
        # Autocast rounds the sum over rows to bfloat16 once, half an ulp of 2⁻⁸; the fused one keeps float32.
        torch.testing.assert_close(a, b, rtol=2**-8, atol=2**-9 * float(b.abs().max()))
    assert not torch.equal(cross_entropy(model(x), LABELS), inside[0])  # without autocast other bits


def test_frozen_inputs_get_nothing_and_change_nothing_for_the_others() -> None:
    x, w, b = Z.float(), torch.randn(V, V, generator=G), torch.randn(V, generator=G)

    def fused(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, LABELS, linear_bias=b, chunk_rows=2)

    def apart(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return cross_entropy(nn.functional.linear(x, w, b), LABELS)

    for way in (fused, apart):
        whole: tuple[Tensor, ...] = ()
        for frozen in itertools.product((False, True), repeat=3):
            leaves = [t.clone().requires_grad_(not stays) for t, stays in zip((x, w, b), frozen, strict=True)]
            value = way(*leaves)
            assert value.requires_grad == (not all(frozen))
            if not all(frozen):
                value.backward()
            whole = whole or tuple(t.grad for t in leaves)
            for t, stays, full in zip(leaves, frozen, whole, strict=True):
                assert t.grad is None if stays else torch.equal(t.grad, full)
        assert all(t.any() for t in whole)


@pytest.mark.parametrize("name", CALLS)
def test_no_input_is_written_to(name: str, backend: str) -> None:
    target, knobs = in_float32(CALLS[name])
    fields = vars(target).values() if isinstance(target, Target) else (target,)
    inputs = [Z.float().requires_grad_(), *(x for x in (*fields, *knobs.values()) if isinstance(x, Tensor))]

    def state() -> list[tuple[int, Tensor]]:
        return [(x._version, x.detach().clone()) for x in inputs]

    def same(before: list[tuple[int, Tensor]]) -> bool:
        return all(v == w and torch.equal(a, b) for (v, a), (w, b) in zip(before, state(), strict=True))

    before = state()
    value = cross_entropy(inputs[0], target, reduction="none", **knobs)
    g = torch.randn(N, generator=G)
    kept = g.clone()
    (dz,) = torch.autograd.grad(value, inputs[0], g, create_graph=True)
    dz.square().sum().backward()
    assert same(before)
    assert torch.equal(g, kept)
    with torch.no_grad():
        inputs[0][0, 0] += 1  # the negative control
    assert not same(before)


# --- torch.func ---------------------------------------------------------------------------------------------------


def test_derivatives_of_functions_are_the_formulas(backend: str) -> None:
    for target, q in ((LABELS, one_hot(LABELS)), (SOFT, SOFT), (sparse(COLUMNS, SHARES, V), spread(COLUMNS, SHARES))):

        def ours(z: Tensor, target: Any = target) -> Tensor:
            return cross_entropy(z, target, reduction="none")

        def theirs(z: Tensor, q: Tensor = q) -> Tensor:
            return plain(z, q)

        for how in (
            lambda f: torch.func.grad(lambda z: f(z).sum())(Z),
            lambda f: torch.func.jacrev(f)(Z),
            lambda f: torch.func.jacfwd(f)(Z),
            lambda f: torch.func.hessian(f)(Z),  # forward over reverse
            lambda f: torch.func.jacrev(torch.func.jacfwd(f))(Z),
            lambda f: torch.func.jacrev(torch.func.jacrev(f))(Z),
            lambda f: torch.func.jvp(f, (Z,), (SOFT,))[1],
            lambda f: torch.func.vjp(f, Z)[1](COTANGENT)[0],
            lambda f: torch.func.jvp(lambda z: torch.func.vjp(f, z)[1](COTANGENT)[0], (Z,), (SOFT,))[1],
        ):
            truth = how(theirs)
            torch.testing.assert_close(how(ours), truth, rtol=1e-12, atol=1e-14)
            assert truth.abs().max() > 1e-2


def test_vmap_over_whatever_belongs_to_rows_gives_the_rows_bits(backend: str) -> None:
    z = torch.randn(3, N, V, generator=G)
    y = torch.randint(V, (3, N), generator=G)
    q = torch.softmax(torch.randn(3, N, V, generator=G), -1)
    mask, rows = torch.rand(3, N, generator=G) < 0.7, torch.rand(3, N, generator=G)
    columns, shares = torch.randint(V, (3, N, 2), generator=G), torch.rand(3, N, 2, generator=G)
    weight = CLASSES.float()
    ways: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[int | None, ...]]] = [
        (lambda z, y: cross_entropy(z, y, weight, label_smoothing=0.1), (z, y), (0, 0)),
        (lambda z, y: cross_entropy(z, y, loss=HEAVIER), (z, y[0]), (0, None)),
        (cross_entropy, (z[0], y), (None, 0)),
        (cross_entropy, (z, q), (0, 0)),
        (cross_entropy, (z.movedim(0, 1), q[0]), (1, None)),
        (lambda z, y, m, r: cross_entropy(z, y, mask=m, sample_weight=r), (z, y, mask, rows), (0, 0, 0, 0)),
        (lambda z, i, w: cross_entropy(z, Target(i, w)), (z, columns, shares), (0, 0, 0)),
        (lambda z, w: cross_entropy(z, Target(columns[0], w)), (z[0], shares), (None, 0)),
        (lambda z, y: cross_entropy(z, y, weight), (z[:, 0], y[:, 0]), (0, 0)),  # rows (C,) without a batch
    ]
    for function, inputs, dims in ways:

        def one(at: int, inputs: tuple = inputs, dims: tuple = dims) -> list[Tensor]:
            return [x if dim is None else x.select(dim, at) for x, dim in zip(inputs, dims, strict=True)]

        for f in (function, torch.func.grad(function)):
            got = torch.func.vmap(f, in_dims=dims)(*inputs)
            assert torch.equal(got, torch.stack([f(*one(at)) for at in range(3)]))
            assert not torch.equal(got[0], got[1])


def test_forward_over_forward_is_refused_in_a_sentence(backend: str) -> None:
    def binary(z: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(z, SOFT)

    for f in (lambda z: cross_entropy(z, LABELS), binary, lambda z: cross_entropy(z, SOFT, loss=HEAVIER)):
        with pytest.raises(NotImplementedError, match=r"would silently be 0.*write torch\.func\.hessian"):
            torch.func.jacfwd(torch.func.jacfwd(f))(Z)
        with pytest.raises(NotImplementedError, match="would silently be 0"):
            torch.func.jvp(lambda z, f=f: torch.func.jvp(f, (z,), (SOFT,))[1], (Z,), (SOFT,))


def test_forward_derivatives_by_what_is_not_the_logits(backend: str) -> None:
    functions: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda q: cross_entropy(Z, q, validate="off"), SOFT),
        (lambda w: cross_entropy(Z, SOFT, w), CLASSES),
        (lambda w: cross_entropy(Z, LABELS, w, label_smoothing=0.1), CLASSES),
        (lambda r: cross_entropy(Z, LABELS, sample_weight=r), ROWS),
        (lambda t: cross_entropy(Z, LABELS, link=Link(temperature=t)), torch.tensor(1.5, dtype=torch.float64)),
        (lambda t: binary_cross_entropy_with_logits(Z, t, validate="off"), SOFT),
        (lambda c: binary_cross_entropy_with_logits(Z, SOFT, pos_weight=c), CLASSES),
        (lambda w: binary_cross_entropy_with_logits(Z, SOFT, w), CLASSES),
    ]
    for f, x in functions:
        t = torch.randn(x.shape, generator=G, dtype=torch.float64)
        moved = torch.func.jvp(f, (x,), (t,))[1]
        truth = (f(x + 1e-5 * t) - f(x - 1e-5 * t)) / 2e-5  # an error of order 1e-10
        torch.testing.assert_close(moved, truth, rtol=0, atol=1e-9)
        assert abs(truth) > 1e-3


def test_vmap_over_class_weights_is_refused_in_a_sentence() -> None:
    with pytest.raises(NotImplementedError, match=r"vmap over class weights is not possible.*call cross_entropy once"):
        torch.func.vmap(lambda w: cross_entropy(Z, LABELS, w, label_smoothing=0.1))(CLASSES.expand(2, V))
