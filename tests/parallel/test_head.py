"""A head whose classes are spread over processes, without its logits, gives what one process gives."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import crossent
from crossent import Link, cross_entropy, parallel
from crossent.compute import group
from crossent.compute.losses import LOSSES
from tests.compare import bits, faults
from tests.laws.test_losses import KNOBS
from tests.parallel.test_vocabulary import SIZES, own
from tests.parallel.world import Raised, good, world_of

G = torch.Generator().manual_seed(1)
X, W, B = (torch.randn(*shape, generator=G).double() for shape in ((8, 4), (6, 4), (6,)))
TARGETS = {
    "labels": torch.tensor([0, 1, 5, 3, -100, 5, 2, -100]),
    "sparse": crossent.sparse(torch.randint(6, (8, 3), generator=G), torch.rand(8, 3, generator=G).double(), 6),
    "soft": torch.rand(8, 6, generator=G).double(),
}


def of_head(sizes: tuple[int, ...], tensors: tuple[Tensor, ...], target: Any, bias: bool, options: dict) -> tuple:
    """A job: loss, and the gradients of hidden states, of the own slice of the head and of its bias."""
    x, w, b = tensors
    leaves = [x.clone(), own(w, sizes, 0).clone(), own(b, sizes, 0).clone()]
    link = options.get("link")
    if link is not None:
        options = {**options, "link": Link(link.temperature, link.softcap, own(link.bias, sizes, 0))}
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = parallel.linear_cross_entropy(
        leaves[0], leaves[1], own(target, sizes, -1), linear_bias=leaves[2] if bias else None, **options
    )
    return value.detach(), *torch.autograd.grad(value.sum() * 3, leaves[: 3 if bias else 2])


def whole(answers: list[Any]) -> tuple[Tensor, ...]:
    """The loss and dX, which are the same bits on every rank, and all of dW and db."""
    for answer in good(answers):
        assert torch.equal(bits(answer[0]), bits(answers[0][0]))
        assert torch.equal(bits(answer[1]), bits(answers[0][1]))
    return *answers[0][:2], *(torch.cat(slices) for slices in list(zip(*answers, strict=True))[2:])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_every_loss_and_target_is_that_of_one_process(size: int, kind: str) -> None:
    for kind_of_loss in LOSSES:
        loss = KNOBS[kind_of_loss.__name__]
        link = Link(temperature=1.7, softcap=3.0, bias=torch.arange(6.0).double() / 5) if size == 3 else None
        options = {"loss": loss, "link": link, "chunk_rows": 3}
        got = whole(world_of(size).run(of_head, SIZES[size], (X, W, B), TARGETS[kind], size > 2, options))
        leaves = [t.clone().requires_grad_() for t in ((X, W, B) if size > 2 else (X, W))]
        value = cross_entropy(F.linear(*leaves), TARGETS[kind], loss=loss, link=link)
        truth = value.detach(), *torch.autograd.grad(3 * value, leaves)
        for ours, theirs in zip(got, truth, strict=True):  # float64 both: other orders of summation
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14, msg=kind_of_loss.__name__)
        for gradient, true in zip(got[1:3], truth[1:3], strict=True):
            for fault, wrong in faults(gradient):
                if not torch.equal(wrong, gradient):
                    assert not torch.allclose(wrong, true, rtol=1e-11, atol=1e-14), fault


def of_sequence(
    sizes: tuple[int, ...], rows: tuple[int, ...], dim: int, x: Tensor, w: Tensor, y: Tensor
) -> tuple[Tensor, ...]:
    """A job: hidden states of which this rank has a slice of the sequence."""
    leaf = own(x, rows, dim).clone().requires_grad_()
    head = own(w, sizes, 0).clone().requires_grad_()
    value = parallel.linear_cross_entropy(leaf, head, y, sequence_dim=dim, chunk_rows=2)
    return value.detach(), *torch.autograd.grad(value, (leaf, head))


@pytest.mark.parametrize(("size", "rows"), [(2, (4, 4)), (3, (5, 0, 3)), (4, (2, 2, 2, 2))])
@pytest.mark.parametrize("dim", [0, 1])
def test_sequence_parallel_hidden_states(size: int, rows: tuple[int, ...], dim: int) -> None:
    x = torch.randn(2, 8, 4, generator=G).double() if dim else X
    y = torch.randint(6, x.shape[:-1], generator=G)
    leaves = [t.clone().requires_grad_() for t in (x, W)]
    truth = cross_entropy(F.linear(*leaves).reshape(-1, 6), y.reshape(-1))
    dx, dw = torch.autograd.grad(truth, leaves)
    values, of_x, of_w = zip(*good(world_of(size).run(of_sequence, SIZES[size], rows, dim, x, W, y)), strict=True)
    for value in values:
        torch.testing.assert_close(value, truth.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.cat(of_x, dim), dx, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(torch.cat(of_w), dw, rtol=1e-11, atol=1e-14)
    assert not torch.allclose(torch.cat(of_x, dim) * size, dx, rtol=1e-6)


def test_a_wide_rank_and_a_narrow_one_make_the_same_chunks() -> None:
    """The wide one has room for all its logits where its gradient will be, which on its own it reads in more chunks."""
    x, y = torch.randn(400, 400, generator=G) / 20, torch.randint(12_100, (400,), generator=G)
    w = torch.randn(12_100, 400, generator=G)
    options = {"loss": KNOBS["Brier"], "chunk_rows": 300}
    made = world_of(2).run(of_head, (12_000, 100), (x, w, w[:, 0]), y, False, options)
    ours, truth = whole(made)[2], w.clone().requires_grad_()
    value = crossent.linear_cross_entropy(x, truth, y, **options)
    torch.testing.assert_close(ours, torch.autograd.grad(3 * value, truth)[0], rtol=1e-5, atol=1e-8)


def of_dtensors(x: Tensor, w: Tensor, y: Tensor, spread: bool) -> tuple[Tensor, ...]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    hidden = distribute_tensor(x, mesh, [Shard(0) if spread else Replicate()]).requires_grad_()
    head = distribute_tensor(w, mesh, [Shard(0)]).requires_grad_()
    value = parallel.linear_cross_entropy(hidden, head, y)
    return value.detach(), *(d.full_tensor() for d in torch.autograd.grad(value, (hidden, head)))


@pytest.mark.parametrize("spread", [False, True])
def test_dtensors_say_how_they_are_spread(spread: bool) -> None:
    y = torch.tensor([0, 1, 5, 3, 4, 5, 2, 0])
    leaves = [t.clone().requires_grad_() for t in (X, W)]
    value = cross_entropy(F.linear(*leaves), y)
    truth = value.detach(), *torch.autograd.grad(value, leaves)
    for answer in good(world_of(4).run(of_dtensors, X, W, y, spread)):
        for ours, theirs in zip(answer, truth, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_heads(dtype: torch.dtype) -> None:
    """As far from float64 as one process with numbers of that width, and half as far again for 16-bit hidden states:
    what each rank contributes to their gradient is rounded before it is added up in float32, and rounded once more.
    """
    x, w = torch.randn(40, 16, generator=G).to(dtype), torch.randn(6, 16, generator=G).to(dtype)
    y = torch.randint(6, (40,), generator=G)
    exact = [t.double().requires_grad_() for t in (x, w)]
    truth = torch.autograd.grad(3 * cross_entropy(F.linear(*exact), y), exact)
    single = [t.clone().requires_grad_() for t in (x, w)]
    alone = torch.autograd.grad(3 * crossent.linear_cross_entropy(*single, y, chunk_rows=8), single)
    _, *spread = whole(world_of(3).run(of_head, SIZES[3], (x, w, torch.zeros(6)), y, False, {"chunk_rows": 8}))
    for ours, theirs, true in zip(spread, alone, truth, strict=True):
        assert ours.dtype == dtype
        assert (ours - true).norm() <= 1.5 * (theirs - true).norm() + 1e-7 * true.norm()


def frozen(sizes: tuple[int, ...], which: str) -> tuple[bool, bool]:
    x, w = X.clone().requires_grad_(which != "trunk"), own(W, sizes, 0).clone().requires_grad_(which != "head")
    parallel.linear_cross_entropy(x, w, TARGETS["labels"]).backward()
    return x.grad is not None, w.grad is not None


@pytest.mark.parametrize("which", ["trunk", "head"])
def test_a_frozen_half_leaves_the_other_its_gradient(which: str) -> None:
    assert good(world_of(3).run(frozen, SIZES[3], which)) == [(which != "trunk", which != "head")] * 3


def curved(sizes: tuple[int, ...], along: Tensor) -> Tensor:
    """A job: second derivatives along a direction of the hidden states, by autograd and by torch.func."""
    x, w = X.clone().requires_grad_(), own(W, sizes, 0).clone().requires_grad_()

    def value(x: Tensor, w: Tensor) -> Tensor:
        return parallel.linear_cross_entropy(x, w, TARGETS["labels"], label_smoothing=0.1).square()

    def by_function(x: Tensor, w: Tensor) -> Tensor:
        return (torch.func.grad(value)(x, w) * along).sum()

    (dx,) = torch.autograd.grad(value(x, w), x, create_graph=True)
    return *torch.autograd.grad(dx, (x, w), along), *torch.func.grad(by_function, (0, 1))(x.detach(), w.detach())


def test_second_derivatives_go_through_the_logits() -> None:
    along = torch.randn(8, 4, generator=G).double()
    leaves = [t.clone().requires_grad_() for t in (X, W)]
    value = cross_entropy(F.linear(*leaves), TARGETS["labels"], label_smoothing=0.1)
    (dx,) = torch.autograd.grad(value.square(), leaves[0], create_graph=True)
    truth = torch.autograd.grad(dx, leaves, along)
    of_x, of_w, x_again, w_again = zip(*good(world_of(3).run(curved, SIZES[3], along)), strict=True)
    for each in (*of_x, *x_again):
        torch.testing.assert_close(each, truth[0], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(1.01 * each, truth[0], rtol=1e-9)
    for pieces in (of_w, w_again):
        torch.testing.assert_close(torch.cat(pieces), truth[1], rtol=1e-9, atol=1e-12)


def with_link(sizes: tuple[int, ...], loss: Any) -> tuple[Tensor, ...]:
    """A job: the gradients of hidden states, head, and a link: the own part of its bias, the rest of all."""
    leaves = [X, own(W, sizes, 0), torch.tensor(1.3).double(), torch.tensor(4.0).double(), own(B, sizes, 0)]
    x, w, temperature, softcap, prior = leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    link = Link(temperature, softcap, prior)
    value = parallel.linear_cross_entropy(x, w, TARGETS["labels"], loss=loss, link=link, chunk_rows=3)
    return torch.autograd.grad(value.square(), leaves)


@pytest.mark.parametrize("name", ["NLL", "Smoothed", "Brier"])
def test_a_link_that_is_trained(name: str) -> None:
    leaves = [X, W, torch.tensor(1.3).double(), torch.tensor(4.0).double(), B]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = cross_entropy(F.linear(*leaves[:2]), TARGETS["labels"], loss=KNOBS[name], link=Link(*leaves[2:]))
    truth = torch.autograd.grad(value.square(), leaves)
    for size, sizes in SIZES.items():
        dx, dw, *shared, prior = zip(*good(world_of(size).run(with_link, sizes, KNOBS[name])), strict=True)
        for each, true in ((dx, truth[0]), (shared[0], truth[2]), (shared[1], truth[3])):
            for one in each:
                torch.testing.assert_close(one, true, rtol=1e-11, atol=1e-13)
                assert not torch.allclose(one / size, true, rtol=1e-6)
        torch.testing.assert_close(torch.cat(dw), truth[1], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(torch.cat(prior), truth[4], rtol=1e-11, atol=1e-13)


def forgetful(sizes: tuple[int, ...]) -> tuple:
    true, group._Copied.backward = group._Copied.backward, staticmethod(lambda ctx, g: (g, None))
    try:
        return of_head(sizes, (X, W, B), TARGETS["labels"], False, {})
    finally:
        group._Copied.backward = true


def test_a_reduction_that_is_forgotten_is_seen() -> None:
    leaves = [t.clone().requires_grad_() for t in (X, W)]
    truth = torch.autograd.grad(3 * cross_entropy(F.linear(*leaves), TARGETS["labels"]), leaves)
    for answer in good(world_of(2).run(forgetful, SIZES[2])):
        assert not torch.allclose(answer[1], truth[0], rtol=1e-3)


def refused(sizes: tuple[int, ...], change: dict[int, dict[str, Any]], everyone: dict[str, Any]) -> Any:
    given = {"input": X, "linear_weight": own(W, sizes, 0), "target": TARGETS["labels"], **everyone}
    return parallel.linear_cross_entropy(**{**given, **change.get(dist.get_rank(), {})})


@pytest.mark.parametrize(
    ("change", "everyone", "sentence"),
    [
        ({1: {"linear_weight": W[:1, :3]}}, {}, "must agree in D"),
        ({1: {"input": X[:7]}}, {}, r"the shape of input \(rank 1\)"),
        ({0: {"chunk_rows": 3}}, {}, r"budget and chunk_rows \(rank 1\)"),
        ({1: {"linear_weight": W[4:].clone().requires_grad_()}}, {}, r"need a gradient \(rank 1\)"),
        ({1: {"sequence_dim": 5}}, {}, "sequence_dim=5 must be a dimension of input but its last"),
        ({}, {"sequence_dim": 0}, r"labels must have shape \(16,\)"),
        ({0: {"linear_bias": torch.zeros(6)}}, {}, r"linear_bias must have shape \(4,\)"),
        ({}, {"link": Link(temperature=torch.ones(4, 1))}, "the temperature of a link must be one number"),
        ({1: {"link": Link(softcap=torch.tensor(3.0))}}, {"link": Link(softcap=torch.tensor(2.0))}, r"link \(rank 1\)"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(change: dict, everyone: dict, sentence: str) -> None:
    for answer in world_of(2).run(refused, SIZES[2], change, everyone, seconds=20):
        assert isinstance(answer, Raised), answer
        assert re.search(sentence, answer.text), answer.text
    good(world_of(2).run(refused, SIZES[2], {}, {}))
