"""A student and a teacher whose classes are spread over processes are as far apart as in one process."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from crossent import distillation, linear_distillation, parallel
from crossent.compute.distribution import Whole
from crossent.compute.shards import Spread, divergence
from tests.compare import bits, faults, ulps
from tests.compute.divergences import PAIRS
from tests.parallel.test_vocabulary import own
from tests.parallel.world import Raised, good, world_of

SIZES = {2: (4, 2), 3: (1, 0, 5)}
"""How many of the six classes each rank holds: no two alike, and one with none."""
KINDS = ("forward_kl", "reverse_kl", "jsd")
BETA = 0.3
G = torch.Generator().manual_seed(0)
T, Z = (torch.tensor([[*pair[at], 0.5, -1.0] for pair in PAIRS.values()]).double() for at in (0, 1))
"""The hard pairs of one process, with two classes more, of which both think the same."""
MASK = torch.ones(len(Z), dtype=torch.bool)
MASK[1], Z[1, 0] = False, torch.nan
FEW = torch.tensor([[0, 5, 2], [3, 1, 4]]).repeat(len(Z), 1)[: len(Z)]
TEACHERS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "logits": (T, {"temperature": 3.0}),
    "probabilities": (T.softmax(-1), {"given": "probabilities"}),
    "few": (T.softmax(-1).gather(-1, FEW), {"given": "probabilities", "index": FEW}),
    "few, of logits": (T.gather(-1, FEW), {"index": FEW, "rest": "renormalise", "temperature": 3.0}),
    "all, by index": (
        T.log_softmax(-1).flip(-1),
        {"given": "log_probabilities", "index": torch.arange(5, -1, -1).repeat(len(Z), 1)},
    ),
}


def of_shards(sizes: tuple[int, ...], z: Tensor, t: Tensor, up: Tensor | None, options: dict) -> tuple[Tensor, ...]:
    """A job: the divergence, and the gradients of this rank's columns and of what it has of the teacher."""
    few = "index" in options
    leaves = [own(z, sizes, -1).clone(), (t if few else own(t, sizes, -1)).clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value = parallel.distillation(*leaves, **options)
    return value.detach(), *torch.autograd.grad(value, leaves, up)


def together(answers: list[Any], few: bool) -> tuple[Tensor, ...]:
    """The value, which is the same bits on every rank, and the gradients of all columns."""
    values, of_student, of_teacher = zip(*good(answers), strict=True)
    assert all(torch.equal(bits(value), bits(values[0])) for value in values)
    if few:
        assert all(torch.equal(bits(d), bits(of_teacher[0])) for d in of_teacher)
    return values[0], torch.cat(of_student, -1), of_teacher[0] if few else torch.cat(of_teacher, -1)


def alone(z: Tensor, t: Tensor, up: Tensor | None, options: dict) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in (z, t)]
    value = distillation(*leaves, **options)
    return value.detach(), *torch.autograd.grad(value, leaves, up)


def near(ours: Tensor, truth: Tensor) -> bool:
    """Float64 both, summed in other orders: to 1e-13 of the value, and of the largest entry of a row's gradient."""
    scale = truth.abs().nan_to_num(0, 0, 0)
    scale = scale.amax(-1, keepdim=True).expand_as(scale) if truth.dim() > 1 else scale
    return bool(
        torch.isclose(ours, truth, rtol=1e-13, atol=0, equal_nan=True)
        .logical_or((ours - truth).abs() <= 1e-13 * scale)
        .all()
    )


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_hard_pairs_are_those_of_one_process(kind: str, teacher: str) -> None:
    t, options = TEACHERS[teacher]
    if kind == "reverse_kl" and options.get("rest"):
        return  # refused: it is infinite
    options = {**options, "kind": kind, "beta": BETA, "mask": MASK, "reduction": "none"}
    up = torch.rand(len(Z), generator=G).double() + 0.5
    truth = alone(Z, t, up, options)
    for size, sizes in SIZES.items():
        ours = together(world_of(size).run(of_shards, sizes, Z, t, up, options), "index" in options)
        for got, true in zip(ours, truth, strict=True):
            assert near(got, true)
            assert not near(got * (1 + 1e-11), true)
        assert torch.equal(bits(ours[1][1]), torch.zeros(6, dtype=torch.int64))
        for fault, wrong in faults(ours[1]):
            assert not near(wrong, truth[1]), f"a gradient {fault} would pass"


def in_blocks(sizes: tuple[int, ...], z: Tensor, t: Tensor, options: dict) -> tuple[Tensor, ...]:
    """The same job with blocks of two rows, as the widest rank has them."""
    module = importlib.import_module("crossent.compute.distillation")
    true, module.BLOCK = module.BLOCK, 2 * max(sizes)
    try:
        return of_shards(sizes, z, t, None, options)
    finally:
        module.BLOCK = true


def test_float32_is_rounded_once_and_blocks_change_no_bit() -> None:
    z = torch.randn(2, 4, 6, generator=G)
    t = z + 10.0 ** torch.arange(-4, 0).unsqueeze(-1) * torch.randn(2, 4, 6, generator=G)  # ever less alike
    options = {"kind": "jsd", "temperature": 2.0, "temperature_squared": True}
    whole = together(world_of(3).run(of_shards, SIZES[3], z, t, None, options), False)
    blocks = together(world_of(3).run(in_blocks, SIZES[3], z, t, options), False)
    truth = alone(z.double(), t.double(), None, options)
    for ours, cut, true in zip(whole, blocks, truth, strict=True):
        assert ours.dtype == torch.float32
        assert ulps(ours, true) <= 0.51
        assert torch.equal(bits(ours), bits(cut))
    half = together(world_of(2).run(of_shards, SIZES[2], z.bfloat16(), t.bfloat16(), None, {}), False)
    assert [x.dtype for x in half] == [torch.float32, torch.bfloat16, torch.bfloat16]


def messages(z: Tensor, t: Tensor, rows: int, options: dict) -> tuple[int, int]:
    """A job: how many collectives there are forwards and backwards, with blocks of so many rows."""
    module = importlib.import_module("crossent.compute.distillation")
    sent = 0

    def counted(send: Any) -> Any:
        def counts(*given: Any, **named: Any) -> Any:
            nonlocal sent
            sent += 1
            return send(*given, **named)

        return counts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", rows * SIZES[2][0])
        for name in ("all_gather", "all_reduce"):
            patch.setattr(dist, name, counted(getattr(dist, name)))
        leaf = own(z, SIZES[2], -1).clone().requires_grad_()
        value = parallel.distillation(leaf, own(t, SIZES[2], -1), **options)
        forwards, sent = sent, 0
        value.backward()
    return forwards, sent


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_messages_of_a_block(kind: str, temperature: float) -> None:
    """What is asked of student and teacher, or of a row in two ways, goes in one message."""
    z, t = torch.randn(2, 4, 6, generator=G)
    options = {"kind": kind, "temperature": temperature}
    one, two = (good(world_of(2).run(messages, z, t, rows, options))[0] for rows in (4, 2))
    assert [b - a for a, b in zip(one, two, strict=True)] == [5, 8]


def of_functions(sizes: tuple[int, ...], z: Tensor, t: Tensor, along: Tensor, options: dict) -> tuple[Tensor, ...]:
    """A job: a Hessian times a vector, and forward derivatives."""
    z, t, along = (own(x, sizes, -1) for x in (z, t, along))
    leaf = z.clone().requires_grad_()
    (dz,) = torch.autograd.grad(parallel.distillation(leaf, t, **options), leaf, create_graph=True)
    twice = torch.autograd.grad(dz, leaf, along)[0]
    moved = torch.func.jvp(lambda z, t: parallel.distillation(z, t, **options), (z, t), (along, t))[1]
    with pytest.raises(NotImplementedError, match="is not possible where classes lie on several ranks"):
        torch.func.vmap(lambda z: parallel.distillation(z, t))(z.expand(2, *z.shape))
    return twice, moved


@pytest.mark.parametrize("kind", KINDS)
def test_second_and_forward_derivatives(kind: str) -> None:
    z, t, along = (torch.randn(4, 6, generator=G).double() for _ in range(3))
    options = {"kind": kind, "temperature": 1.5}
    leaf = z.clone().requires_grad_()
    (dz,) = torch.autograd.grad(distillation(leaf, t, **options), leaf, create_graph=True)
    truth = torch.autograd.grad(dz, leaf, along)[0]
    moved = torch.func.jvp(lambda z, t: distillation(z, t, **options), (z, t), (along, t))[1]
    twice, forwards = zip(*good(world_of(3).run(of_functions, SIZES[3], z, t, along, options)), strict=True)
    torch.testing.assert_close(torch.cat(twice, -1), truth, rtol=1e-11, atol=1e-15)
    for each in forwards:
        torch.testing.assert_close(each, moved, rtol=1e-12, atol=1e-15)


def of_dtensors(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    student, teacher = (distribute_tensor(x, mesh, [Shard(x.dim() - 1)]).requires_grad_() for x in (z, t))
    value = parallel.distillation(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0].full_tensor()


def test_dtensors_know_their_mesh() -> None:
    z, t = (torch.randn(2, 3, 5, generator=G).double() for _ in range(2))
    value, dz, _ = alone(z, t, None, {})
    for ours, gradient in good(world_of(3).run(of_dtensors, z, t)):
        torch.testing.assert_close(ours, value, rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, dz, rtol=1e-12, atol=1e-16)


# --- heads -------------------------------------------------------------------------------------------------------

HEADS = tuple(torch.randn(*shape, generator=G).double() for shape in ((2, 4, 3), (6, 3), (6,), (2, 4, 5), (6, 5), (6,)))
"""Hidden states, head and bias of a student and of a teacher."""


def of_heads(
    sizes: tuple[int, ...], rows: tuple[int, ...] | None, heads: tuple[Tensor, ...], options: dict
) -> tuple[Tensor, ...]:
    """A job: the divergence, and the gradients of hidden states and of the own slices of head and bias."""
    x, w, b, t, tw, tb = heads
    if rows is not None:
        options = {**options, "sequence_dim": 1}
        x, t = own(x, rows, 1), own(t, rows, 1)
    leaves = [leaf.clone().requires_grad_() for leaf in (x, own(w, sizes, 0), own(b, sizes, 0))]
    x, w, b = leaves
    tw, tb = own(tw, sizes, 0), own(tb, sizes, 0)
    value = parallel.linear_distillation(x, w, t, tw, linear_bias=b, teacher_bias=tb, **options)
    return value.detach(), *torch.autograd.grad(value.sum() * 3, leaves)


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_heads_are_those_of_one_process(reduction: str, spread: bool) -> None:
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])
    options = {"kind": "jsd", "temperature": 2.0, "temperature_squared": True, "chunk_rows": 3, "mask": mask}
    options["reduction"] = reduction
    x, w, b, t, tw, tb = HEADS
    leaves = [leaf.clone().requires_grad_() for leaf in (x, w, b)]
    value = linear_distillation(leaves[0], leaves[1], t, tw, linear_bias=leaves[2], teacher_bias=tb, **options)
    truth = value.detach(), *torch.autograd.grad(value.sum() * 3, leaves)
    for size, sizes in SIZES.items():
        rows = {2: (1, 3), 3: (2, 0, 2)}[size] if spread else None
        values, of_x, of_w, of_b = zip(*good(world_of(size).run(of_heads, sizes, rows, HEADS, options)), strict=True)
        assert all(torch.equal(each, values[0]) for each in values)
        dx = torch.cat(of_x, 1) if spread else of_x[0]
        for ours, true in zip((values[0], dx, torch.cat(of_w), torch.cat(of_b)), truth, strict=True):
            torch.testing.assert_close(ours, true, rtol=1e-11, atol=1e-14)
        for fault, wrong in faults(dx):
            assert not torch.allclose(wrong, truth[1], rtol=1e-11, atol=1e-14), fault


def test_heads_of_a_wide_rank_and_a_narrow_one() -> None:
    """The wide one has room for all its logits where its gradient will be, and makes the same chunks all the same."""
    x, t = (torch.randn(400, width, generator=G) / 20 for width in (400, 2))
    w, tw = (torch.randn(12_100, width, generator=G) for width in (400, 2))
    heads = x, w, torch.zeros(12_100), t, tw, torch.zeros(12_100)
    ours = good(world_of(2).run(of_heads, (12_000, 100), None, heads, {"chunk_rows": 300}))
    leaf = w.clone().requires_grad_()
    truth = torch.autograd.grad(3 * linear_distillation(x, leaf, t, tw), leaf)[0]
    torch.testing.assert_close(torch.cat([each[2] for each in ours]), truth, rtol=1e-4, atol=1e-8)


# --- faults that were planted, and what is refused ----------------------------------------------------------------


@contextmanager
def planted(fault: str) -> Iterator[None]:
    first = Spread.greatest

    def of_every_rank(self: Spread, *x: Tensor) -> list[tuple[Tensor, Tensor]]:
        own = (each == each.amax(-1, keepdim=True) if each.shape[-1] else each != each for each in x)
        return [(peak, places) for (peak, _), places in zip(first(self, *x), own, strict=True)]

    places: dict[str, tuple[Any, str, Any]] = {
        "with the sum of own columns": (Spread, "sums", Whole.sums),
        "with a greatest column on each rank": (Spread, "greatest", of_every_rank),
        "with each rank's whole gradient": (Spread, "answered", Whole.answered),
        "with the teacher's best on every rank": (divergence, "here", lambda index, *_: (index * 0, index >= 0)),
    }
    place, name, wrong = places[fault]
    true = vars(place)[name]
    setattr(place, name, wrong)
    try:
        yield
    finally:
        setattr(place, name, true)


def faulty(fault: str, sizes: tuple[int, ...], z: Tensor, t: Tensor, options: dict) -> tuple[Tensor, ...]:
    with planted(fault):
        return of_shards(sizes, z, t, None, options)


@pytest.mark.parametrize(
    ("fault", "teacher"),
    [
        ("with the sum of own columns", "logits"),
        ("with a greatest column on each rank", "logits"),
        ("with each rank's whole gradient", "few"),
        ("with the teacher's best on every rank", "few"),
    ],
)
def test_planted_faults_are_seen(fault: str, teacher: str) -> None:
    t, options = TEACHERS[teacher]
    options = {**options, "mask": MASK, "kind": "jsd"}
    answers = good(world_of(2).run(faulty, fault, SIZES[2], Z, t, options))
    value, dz, *_ = alone(Z, t, None, options)
    assert not (near(answers[0][0], value) and near(torch.cat([answer[1] for answer in answers], -1), dz))


def refused(sizes: tuple[int, ...], change: dict[int, dict[str, Any]], everyone: dict[str, Any]) -> Any:
    options = {"student": own(Z[2:4], sizes).clone(), "teacher": own(T[2:4], sizes).clone(), **everyone}
    options |= change.get(dist.get_rank(), {})
    return parallel.distillation(options.pop("student"), options.pop("teacher"), **options)


P = torch.full((2, 3), 0.25).double()
NOTHING = {rank: {"teacher": torch.zeros(2, size).double()} for rank, size in enumerate(SIZES[3])}


@pytest.mark.parametrize(
    ("change", "everyone", "sentence"),
    [
        (
            {1: {"kind": "jsd"}},
            {},
            r"different arguments. Not as on rank 0: given, rest, kind, temperature, beta \(rank 1",
        ),
        ({2: {"teacher": torch.zeros(2, 4)}}, {}, r"teacher must have the shape of student, \(2, 5\)"),
        ({2: {"teacher": torch.zeros(2, 5)}}, {}, r"the dtypes of student and teacher \(rank 2\)"),
        ({0: {"mask": torch.tensor([True, False])}}, {}, r"mask \(rank 1, 2\)"),
        ({}, {"kind": "kl"}, "kind must be one of"),
        ({}, {"given": "probabilities"}, "teacher holds probabilities that are negative, infinite or NaN, in row 0"),
        (NOTHING, {"given": "counts"}, "counts that are all 0"),
        (
            {},
            {"index": torch.tensor([[0, 6, 1], [1, 2, 0]]), "teacher": P, "given": "probabilities"},
            "no class of the student",
        ),
        ({}, {"index": FEW[:2].repeat(1, 3), "teacher": P.repeat(1, 3), "rest": "renormalise"}, "with k from 1 to 6"),
        (
            {1: {"teacher": P / 2}},
            {"index": FEW[:2], "teacher": P, "given": "probabilities"},
            "index, and",
        ),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(change: dict, everyone: dict, sentence: str) -> None:
    answers = world_of(3).run(refused, SIZES[3], change, everyone, seconds=20)
    for answer in answers:
        assert isinstance(answer, Raised), answer
        assert re.search(sentence, answer.text), answer.text
    good(world_of(3).run(refused, SIZES[3], {}, {}))
