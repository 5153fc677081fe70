"""A lazy head in two real processes: DDP, FSDP2 in every way of sharding, and gathering of logits."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from crossent import lazy_head
from tests.parallel.world import Raised, good, world_of

Y = torch.randint(23, (2, 8), generator=torch.Generator().manual_seed(0))  # a row of labels for each rank


class Model(nn.Module):
    """An embedding, two layers and a head, tied or not; given labels it gives the loss too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(23, 6)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.head = nn.Linear(6, 23, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, y: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        z = self.head(self.layers(self.embedding(y)))
        given = {"logits": z}
        return given if labels is None else {"loss": F.cross_entropy(z.float(), labels), **given}


def wrapped(model: Model, way: str) -> nn.Module:
    if way.startswith("DDP"):
        option = {"DDP": {}, "DDP, unused": {"find_unused_parameters": True}, "DDP, static": {"static_graph": True}}
        return DistributedDataParallel(model, **option[way])
    options: dict[str, Any] = {}
    if way == "FSDP, mixed":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if way != "FSDP, whole":
        for layer in (model.layers[0], model.layers[2]):
            fully_shard(layer, **options)
    if way == "FSDP, head apart":
        fully_shard(model.head)
    if way == "FSDP, resharded":
        options["reshard_after_forward"] = True
    return fully_shard(model, **options)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(way: str, tied: bool, inside: bool, spoiled: bool = False) -> tuple[list, list, list[str]]:
    """A job: losses and gradients of two steps with the eager head and with the lazy one, and what was made."""
    y, made, seen = Y[dist.get_rank()], [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DDP says that nothing was unused, FSDP2 that labels are not sharded
        for lazy in (False, True):
            model = Model(tied)
            if lazy:
                lazy_head(model, on_materialise=lambda event: made.append(event.operation))
            if spoiled and lazy:
                nn.init.zeros_(model.head.weight[:3].detach())
            model = wrapped(model, way)
            told = []
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            for _ in range(2):
                loss = model(y, y)["loss"] if inside else F.cross_entropy(model(y)["logits"].float(), y)
                loss.backward()
                told += [loss.detach(), *(full(p.grad).clone() for p in model.parameters())]
                optimizer.step()
                optimizer.zero_grad()
            with torch.no_grad():  # without a backward pass to come, resharded parameters are gone for good
                within = inside or way == "FSDP, resharded"
                told.append(model(y, y)["loss"] if within else F.cross_entropy(model(y)["logits"].float(), y))
            seen.append(told)
    return *seen, made


WAYS = ["DDP", "FSDP, whole", "FSDP, layers", "FSDP, resharded", "FSDP, head apart", "FSDP, mixed"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_lazy_and_eager_train_alike(way: str, tied: bool, inside: bool) -> None:
    if tied and way == "FSDP, head apart":
        return  # torch shards a weight once, wherever it is tied to
    for eager, lazy, made in good(world_of(2).run(trained, way, tied, inside)):
        assert made == []
        for a, b in zip(lazy, eager, strict=True):
            # float32, eight rows in another order; where parameters are bfloat16, so are the logits' gradients.
            rtol = 1e-2 if way == "FSDP, mixed" else 1e-5
            torch.testing.assert_close(a, b, rtol=rtol, atol=1e-4 if way == "FSDP, mixed" else 1e-6)


@pytest.mark.parametrize("way", ["DDP, unused", "DDP, static"])
def test_what_ddp_hands_through_a_function_of_its_own_is_made_when_it_is_used(way: str) -> None:
    for inside in (True, False):
        for eager, lazy, made in good(world_of(2).run(trained, way, False, inside)):
            assert bool(made) != inside
            for a, b in zip(lazy, eager, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def too_late() -> None:
    """A job: ask for logits of parameters that were given back."""
    model = wrapped(lazy_head(Model(False)), "FSDP, resharded")
    with torch.no_grad():
        model(Y[dist.get_rank()])["logits"].argmax(-1)


def test_parameters_that_are_gone_are_a_sentence() -> None:
    for answer in world_of(2).run(too_late):
        assert isinstance(answer, Raised)
        assert answer.kind == "RuntimeError"
        assert "Compute the loss inside the model's forward, or let the module that holds the head keep" in answer.text


def test_another_head_is_noticed() -> None:
    eager, lazy, _ = good(world_of(2).run(trained, "DDP", False, True, True))[0]
    assert not torch.allclose(lazy[0], eager[0], rtol=1e-5, atol=1e-6)


def gathered() -> tuple[Tensor, Tensor]:
    """A job: logits gathered from both ranks, and those of the eager head for all rows."""
    model = Model(False)
    everything = model(Y)["logits"]
    own = lazy_head(model)(Y[dist.get_rank()])["logits"].detach()
    rooms = [torch.empty(8, 23) for _ in range(2)]
    dist.all_gather(rooms, own)
    return torch.stack(rooms), everything.detach()


def test_logits_are_gathered() -> None:
    for got, expected in good(world_of(2).run(gathered)):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)  # a product of 8 rows, and of 16
