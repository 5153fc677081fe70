"""A head that something else shards: FSDP2's own shards, tensor-parallel heads under FSDP2, ZeRO-3's pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import crossent
from crossent import parallel
from tests.parallel.world import good, world_of

Y = torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(0))  # a row of labels for each data rank
Y[1, :5] = -100  # which have different numbers of tokens


class Model(nn.Module):
    """An embedding, a layer, and a head whose loss is made of its own piece of the classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer, self.head = nn.Embedding(23, 6), nn.Linear(6, 6), nn.Linear(6, 23, bias=False)

    def hidden(self, y: Tensor) -> Tensor:
        return self.layer(self.embedding(y.clamp(min=0)))

    def forward(self, y: Tensor, count: Any) -> Tensor:
        return parallel.linear_cross_entropy(self.hidden(y), self.head.weight, y, normaliser=count)


class Trunk(Model):
    def forward(self, y: Tensor) -> Tensor:
        return self.hidden(y)


def whole() -> tuple[Tensor, ...]:
    """The truth: one process with all rows; the loss, and the gradients of layer and head."""
    model = Model()
    y = Y.reshape(-1)
    loss = F.cross_entropy(model.head(model.hidden(y)), y)
    return loss.detach(), *torch.autograd.grad(loss, (model.layer.weight, model.head.weight))


def own_shards(summed: bool) -> tuple[Tensor, ...]:
    """A job: the head that FSDP2 sharded is never gathered; its shards are the pieces of the vocabulary."""
    model = Trunk()
    for part in (model.layer, model.head, model):
        fully_shard(part)
        if summed:  # the loss is of all ranks, not of this one: FSDP is to add its gradients up
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    hidden = model(Y[dist.get_rank()])
    loss = parallel.linear_cross_entropy(hidden, model.head.weight, Y.reshape(-1), sequence_dim=0)
    loss.backward()
    return loss.detach(), *(p.grad.full_tensor() for p in (model.layer.weight, model.head.weight))


def test_the_shards_of_fsdp_are_pieces_of_the_vocabulary() -> None:
    for answer in good(world_of(2).run(own_shards, True)):
        for ours, theirs in zip(answer, whole(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    for loss, of_layer, _ in good(world_of(2).run(own_shards, False)):  # what forgetting it would do
        torch.testing.assert_close(loss, whole()[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(2 * of_layer, whole()[1], rtol=1e-5, atol=1e-7)


def of_two_dimensions(inside: bool) -> tuple[Tensor, ...]:
    """A job: data ranks times vocabulary ranks; FSDP2 shards what tensor parallelism has sharded already."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "vocabulary"))
    model = Model()
    spread = distribute_tensor(model.head.weight.detach(), mesh["vocabulary"], [Shard(0)])
    model.head.weight = nn.Parameter(spread)
    for part in (model.layer, model):
        fully_shard(part, mesh=mesh["data"])
    y = Y[mesh["data"].get_local_rank()]
    count = parallel.normaliser(y, group=mesh["data"].get_group())
    if not inside:
        with pytest.raises(ValueError, match="must be a DTensor on a mesh of one dimension"):
            parallel.linear_cross_entropy(torch.ones(3, 6), model.head.weight, y[:3])
        with pytest.raises(TypeError, match=r"pass it to crossent\.parallel"):
            crossent.linear_cross_entropy(torch.ones(3, 6), model.head.weight, y[:3])
    loss = model(y, count)
    loss.backward()
    dist.all_reduce(mean := loss.detach().clone())
    place = mesh["vocabulary"].get_local_rank()
    pieces = [torch.empty(6, 6) for _ in range(4)]
    own = model.head.weight.grad.to_local()
    dist.all_gather(pieces, F.pad(own, (0, 0, 0, 6 - len(own))))
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(4)]
    dist.all_gather(sizes, torch.tensor([len(own)]))
    assert place == dist.get_rank() % 2
    of_head = [pieces[rank][: int(sizes[rank])] for rank in (0, 2, 1, 3)]  # vocabulary first, then FSDP's shards of it
    return mean / 4, model.layer.weight.grad.full_tensor(), torch.cat(of_head)


@pytest.mark.parametrize("inside", [True, False])
def test_a_tensor_parallel_head_under_fsdp(inside: bool) -> None:
    for answer in good(world_of(4).run(of_two_dimensions, inside)):
        for ours, theirs in zip(answer, whole(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
            assert not torch.allclose(1.01 * ours, theirs, rtol=1e-5, atol=1e-7)


def in_pieces(module: nn.Module) -> None:
    """What ZeRO-3 does to a module, on one process: its weight is there while it runs, forwards and backwards."""
    weight: Any = module.weight
    everything = weight.detach().clone()
    weight.ds_id = 0

    def fetch(*_: Any) -> None:
        weight.data = everything

    def release(*_: Any) -> None:
        weight.data = torch.empty(0)

    module.register_forward_pre_hook(fetch)
    module.register_forward_hook(release)
    module.register_full_backward_pre_hook(fetch)
    release()


def test_a_head_that_zero_3_keeps_in_pieces() -> None:
    """A lazy head makes its logits where its weight is whole; the functions refuse what is not there."""
    y = Y[0]
    truth, pieces = Model(), Model()
    crossent.lazy_head(pieces, head="head", on_materialise="raise")
    in_pieces(pieces.head)
    logits = pieces.head(pieces.hidden(y))
    assert type(logits) is Tensor
    loss, expected = (F.cross_entropy(z, y) for z in (logits, truth.head(truth.hidden(y))))
    got = torch.autograd.grad(loss, pieces.layer.weight)
    torch.testing.assert_close(got, torch.autograd.grad(expected, truth.layer.weight), rtol=0, atol=0)
    del pieces.head.weight.ds_id  # were it not known
    with pytest.raises(RuntimeError):
        F.cross_entropy(pieces.head(pieces.hidden(y)), y)
    pieces.head.weight.ds_id = 0
    with pytest.raises(ValueError, match="linear_weight is a parameter that ZeRO-3 keeps in pieces"):
        crossent.linear_cross_entropy(pieces.hidden(y), pieces.head.weight, y)
