"""A mean over all rows of ranks and micro-batches has the gradient of one big batch: DDP, FSDP2, context parallel."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import crossent
from crossent import cross_entropy, linear_cross_entropy, parallel
from tests.parallel.world import Raised, good, world_of

G = torch.Generator().manual_seed(2)
ROWS = ((5, 2), (1, 7), (4, 4), (3, 6))
"""How many rows each rank has in each of its two micro-batches."""
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 3.0]).double()


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def batches(rank: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(inputs, labels with some ignored, row weights) of a rank's micro-batches."""
    g = torch.Generator().manual_seed(rank)
    made = []
    for rows in ROWS[rank]:
        y = torch.randint(4, (rows,), generator=g)
        y[torch.rand(rows, generator=g) < 0.3] = -100
        made.append((torch.randn(rows, 6, generator=g).double(), y, torch.rand(rows, generator=g).double()))
    if rank == 1:
        made[0][1].fill_(-100)  # a micro-batch that counts for nothing
    return made


def options(kind: str, w: Tensor) -> dict[str, Any]:
    return {"plain": {}, "class weights": {"weight": WEIGHT}, "row weights": {"sample_weight": w}}[kind]


def one_big_batch(size: int, kind: str) -> tuple[Tensor, list[Tensor]]:
    """The truth: every row of every rank in one mean, on one process."""
    rows = [batch for rank in range(size) for batch in batches(rank)]
    x, y, w = (torch.cat(each) for each in zip(*rows, strict=True))
    net = model()
    value = cross_entropy(net(x), y, **options(kind, w))
    return value.detach(), list(torch.autograd.grad(value, list(net.parameters())))


def divisor(kind: str, group: Any = None, averaged: bool = True) -> Tensor:
    mine = batches(dist.get_rank())
    knobs = options(kind, mine[0][2])
    if "sample_weight" in knobs:
        knobs = {"sample_weight": [w for _, _, w in mine]}
    return parallel.normaliser([y for _, y, _ in mine], group=group, averaged=averaged, **knobs)


def with_ddp(kind: str, means: bool) -> tuple[Tensor, list[Tensor]]:
    """A job: DDP and two micro-batches; ``means`` is the fault of a mean of means."""
    net = model()
    wrapped = DistributedDataParallel(net)
    shared, value = divisor(kind), torch.zeros(()).double()
    mine = batches(dist.get_rank())
    for at, (x, y, w) in enumerate(mine):
        last = at == len(mine) - 1
        with contextlib.nullcontext() if last else wrapped.no_sync():
            given = options(kind, w)
            loss = cross_entropy(wrapped(x), y, **given) / len(mine) if means else None
            loss = cross_entropy(wrapped(x), y, normaliser=shared, **given) if loss is None else loss
            loss.backward()
            value += loss.detach()
    dist.all_reduce(value)
    return value / dist.get_world_size(), [p.grad for p in net.parameters()]


def with_fsdp(kind: str, hybrid: bool) -> tuple[Tensor, list[Tensor]]:
    """A job: FSDP2, over all ranks or with replicas of shards (HSDP)."""
    size = dist.get_world_size()
    names = ("replicate", "shard") if hybrid else ("shard",)
    mesh = init_device_mesh("cpu", (2, size // 2) if hybrid else (size,), mesh_dim_names=names)
    net = model()
    fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    shared, value = divisor(kind, mesh), torch.zeros(()).double()
    for x, y, w in batches(dist.get_rank()):
        loss = cross_entropy(net(x), y, normaliser=shared, **options(kind, w))
        loss.backward()
        value += loss.detach()
    dist.all_reduce(value)
    return value / size, [p.grad.full_tensor() for p in net.parameters()]


def check(answers: list[Any], size: int, kind: str) -> bool:
    value, gradients = one_big_batch(size, kind)
    same = True
    for ours, found in good(answers):
        same &= torch.allclose(ours, value, rtol=1e-12, atol=0)
        same &= all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(found, gradients, strict=True))
    return same


@pytest.mark.parametrize("kind", ["plain", "class weights", "row weights"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_ddp_and_accumulation_are_one_big_batch(size: int, kind: str) -> None:
    assert check(world_of(size).run(with_ddp, kind, False), size, kind)
    assert not check(world_of(size).run(with_ddp, kind, True), size, kind), "a mean of means would pass"


@pytest.mark.parametrize(("size", "hybrid"), [(2, False), (3, False), (4, True)])
def test_fsdp_and_accumulation_are_one_big_batch(size: int, hybrid: bool) -> None:
    assert check(world_of(size).run(with_fsdp, "plain", hybrid), size, "plain")


def of_context(x: Tensor, w: Tensor, y: Tensor, averaged: bool) -> Tensor:
    """A job: the tokens of each sequence are spread over the ranks; gradients are added up by hand."""
    rank, size = dist.get_rank(), dist.get_world_size()
    tokens = slice(rank * x.shape[1] // size, (rank + 1) * x.shape[1] // size)
    head = w.clone().requires_grad_()
    shared = parallel.normaliser(y[:, tokens], averaged=averaged)
    linear_cross_entropy(x[:, tokens], head, y[:, tokens], normaliser=shared).backward()
    dist.all_reduce(head.grad)
    return head.grad / size if averaged else head.grad


@pytest.mark.parametrize("averaged", [False, True])
def test_context_parallel_tokens(averaged: bool) -> None:
    x, w = torch.randn(2, 7, 5, generator=G).double(), torch.randn(4, 5, generator=G).double()
    y = torch.randint(4, (2, 7), generator=G)
    y[0, :4] = -100
    head = w.clone().requires_grad_()
    linear_cross_entropy(x, head, y).backward()
    for dw in good(world_of(3).run(of_context, x, w, y, averaged)):
        torch.testing.assert_close(dw, head.grad, rtol=1e-11, atol=1e-14)


def both_kinds(x: Tensor, w: Tensor, y: Tensor, of_all: bool) -> Tensor:
    """A job: rows over two pairs of ranks, the head over the two of each pair."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    row, column = mesh.get_coordinate()
    head = w.chunk(2)[column].clone().requires_grad_()
    mine = slice(0, 3) if row == 0 else slice(3, None)
    shared = parallel.normaliser(y[mine], group=None if of_all else mesh["data"])
    value = parallel.linear_cross_entropy(x[mine], head, y[mine], group=mesh["classes"], normaliser=shared)
    (dw,) = torch.autograd.grad(value, head)
    dist.all_reduce(dw, group=mesh["data"].get_group())
    return dw / 2


@pytest.mark.parametrize("of_all", [False, True])
def test_rows_over_some_ranks_and_classes_over_the_others(of_all: bool) -> None:
    """Ranks that have the same rows may be counted, since they are divided by as often."""
    x, w = torch.randn(8, 5, generator=G).double(), torch.randn(6, 5, generator=G).double()
    y = torch.tensor([0, 5, -100, 1, 2, 3, 4, 5])
    head = w.clone().requires_grad_()
    linear_cross_entropy(x, head, y).backward()
    first, second, *again = good(world_of(4).run(both_kinds, x, w, y, of_all))
    torch.testing.assert_close(torch.cat([first, second]), head.grad, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(torch.cat(again), head.grad, rtol=1e-11, atol=1e-14)


# --- alone, and what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", [crossent.cross_entropy, lambda z, y, **k: linear_cross_entropy(z, torch.eye(4), y, **k)]
)
def test_accumulation_alone_needs_no_processes(loss: Any) -> None:
    z, y = torch.randn(9, 4, generator=G), torch.randint(4, (9,), generator=G)
    y[2:4] = -100
    leaf = z.clone().requires_grad_()
    loss(leaf, y).backward()
    parts = z[:3].clone().requires_grad_(), z[3:].clone().requires_grad_()
    shared = parallel.normaliser([y[:3], y[3:]])
    assert shared == 7
    for number in (shared, 7, 7.0):
        values = [loss(part, each, normaliser=number) for part, each in zip(parts, (y[:3], y[3:]), strict=True)]
        found = torch.cat([torch.autograd.grad(v, part)[0] for v, part in zip(values, parts, strict=True)])
        torch.testing.assert_close(found, leaf.grad, rtol=1e-6, atol=1e-9)
    nothing = loss(parts[0], torch.full((3,), -100), normaliser=0.0)
    nothing.backward()
    assert nothing == 0
    assert not parts[0].grad.any()


def test_modules_take_one_with_each_batch() -> None:
    z, y = torch.randn(3, 4, generator=G), torch.tensor([0, 1, 2])
    assert torch.equal(crossent.CrossEntropyLoss()(z, y, normaliser=10), cross_entropy(z, y, normaliser=10))
    head = crossent.LinearCrossEntropyLoss(4, 5)
    expected = linear_cross_entropy(z, head.linear.weight, y, normaliser=10)
    torch.testing.assert_close(head(z, y, normaliser=10), expected)
    assert head(z, y) != expected


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_normaliser_that_would_be_unused_is_an_error(reduction: str) -> None:
    z, y = torch.randn(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="it would be unused"):
        cross_entropy(z, y, reduction=reduction, normaliser=2)
    with pytest.raises(ValueError, match="it would be unused"):
        linear_cross_entropy(z, torch.eye(3), y, reduction=reduction, normaliser=2)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (-1.0, "finite number, 0 or more; got -1.0"),
        (float("nan"), "finite number, 0 or more; got nan"),
        (torch.ones(2), r"one number without a gradient; it has shape \(2,\)"),
        (torch.ones((), requires_grad=True), "requires_grad=True"),
    ],
)
def test_what_is_no_divisor_is_refused(number: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), normaliser=number)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"targets": []}, "there are no targets"),
        ({"targets": torch.rand(2, 3)}, "do not say how many rows they are"),
        ({"targets": [torch.tensor([0])], "mask": [torch.ones(1).bool()] * 2}, "mask must be one for each target"),
        ({"targets": torch.tensor([0, 4]), "weight": WEIGHT}, "labels that are no class: 4 at row 1"),
        ({"targets": torch.tensor([0, -3])}, "labels that are no class: -3 at row 1"),
        ({"targets": float("inf")}, "0 or more and finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(given: dict, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=sentence):
        parallel.normaliser(**given)


def of_one_bad_rank() -> Tensor:
    return parallel.normaliser(torch.rand(2, 3) if dist.get_rank() == 1 else torch.tensor([0, 1]))


def test_a_bad_target_on_one_rank_is_an_error_on_all() -> None:
    for answer in world_of(3).run(of_one_bad_rank, seconds=20):
        assert isinstance(answer, Raised)
        assert "do not say how many rows" in answer.text
