"""Logits whose classes are spread over 2, 3 and 4 processes give what one process gives, for every loss and target."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import crossent
from crossent import Link, cross_entropy, parallel
from crossent.compute import backends, group, shards
from crossent.compute.losses import LOSSES, NLL, ClassWeighted, Focal, Smoothed
from crossent.compute.stats import Part
from crossent.compute.stats import merge as true_merge
from crossent.compute.target import Target
from tests.compare import bits, faults, ulps
from tests.laws.test_losses import KNOBS, WEIGHT
from tests.parallel.world import Raised, good, world_of

SIZES = {2: (4, 2), 3: (1, 0, 5), 4: (2, 1, 2, 1)}
"""How many of the six classes each rank of a world holds: no two alike, and one with none."""
NAMES = [kind.__name__ for kind in LOSSES]
G = torch.Generator().manual_seed(0)
Z = 3 * torch.randn(7, 6, generator=G)
Z[1, 4:] = -torch.inf  # what the last ranks hold
Z[2] = torch.tensor([28.0, 0.0, -1.0, 0.5, 0.25, -2.0])  # sure
Z[3] += 1e4
Z[5] = torch.nan  # and ignored
Z[6] = torch.tensor([-torch.inf, 1.0, -torch.inf, -torch.inf, -torch.inf, 0.0])
LIVE = torch.tensor([True, True, True, True, True, False, True])
SOFT = torch.rand(7, 6, generator=G).softmax(-1) * (-torch.inf < Z)
SOFT[0] = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
SOFT[3] = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.5, 0.0])
INDEX = torch.tensor([[0, 5, 2], [3, 1, 1], [0, 4, 3], [5, 5, 5], [2, 0, 1], [0, 0, 0], [1, 5, 1]])
TARGETS: dict[str, Tensor | Target] = {
    "labels": torch.tensor([5, 0, 0, 2, 3, -100, 1]),
    "sparse": crossent.sparse(INDEX, torch.rand(7, 3, generator=G), 6),
    "soft": SOFT,
}


def own(x: Any, sizes: tuple[int, ...], dim: int = 1) -> Any:
    """This rank's slice of what is spread; labels and sparse targets as they are."""
    if isinstance(x, Target) or (isinstance(x, Tensor) and not x.is_floating_point()):
        return x
    rank = dist.get_rank()
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank])


def of_shard(
    backend: str, sizes: tuple[int, ...], z: Tensor, target: Any, up: Tensor | None, options: dict
) -> tuple[Tensor, Tensor]:
    """A job: loss and gradient of this rank's columns."""
    leaf = own(z, sizes).clone().requires_grad_()
    with backends.using(backend):
        value = parallel.cross_entropy(leaf, own(target, sizes), **options)
        (dz,) = torch.autograd.grad(value, leaf, up)
    return value.detach(), dz


def alone(z: Tensor, target: Any, up: Tensor | None, options: dict) -> tuple[Tensor, Tensor]:
    """The truth: one process, in float64, with the reference."""
    leaf = z.double().requires_grad_()
    with backends.using("reference"):
        value = cross_entropy(leaf, target, **options)
        (dz,) = torch.autograd.grad(value, leaf, None if up is None else up.double())
    return value.detach(), dz


def together(answers: list[Any]) -> tuple[Tensor, Tensor]:
    """The loss, which is the same bits on every rank, and the gradient of all columns."""
    values, gradients = zip(*good(answers), strict=True)
    assert all(torch.equal(bits(value), bits(values[0])) for value in values)
    return values[0], torch.cat(gradients, 1)


def off(got: Tensor, truth: Tensor, least: Tensor | float = 0.0) -> float:
    """Ulps; where a gradient is a difference of larger terms no digit below ``least`` is known."""
    return ulps(got, truth.to(torch.float64), truth.abs().clamp(min=least))


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_every_loss_and_target_is_that_of_one_process(size: int, kind: str) -> None:
    world, target = world_of(size), TARGETS[kind]
    up = torch.rand(7, generator=G) + 0.5
    mask = {} if kind == "labels" else {"mask": LIVE}
    for name in NAMES:
        weight = None if name == "ClassWeighted" else torch.tensor(WEIGHT)
        options = {"loss": KNOBS[name], "weight": weight, "reduction": "none", **mask}
        value, dz = together(world.run(of_shard, "reference", SIZES[size], Z, target, up, options))
        truth, slope = alone(Z, target, up, options)
        # The reference rounds once. Below 1e-8 of the largest entry float64's own rounding of its terms shows.
        least = 1e-8 * float(slope.nan_to_num(0, 0, 0).abs().max())
        assert off(value, truth) <= 1, name
        assert off(dz, slope, least) <= 1, name
        assert torch.equal(bits(dz[5]), torch.zeros(6, dtype=torch.int32)), name
        for fault, wrong in faults(dz):
            if not torch.equal(wrong.nan_to_num(), dz.nan_to_num()):
                assert off(wrong, slope, least) > 1, f"{name}: a gradient {fault} would pass"


@pytest.mark.parametrize("kind", TARGETS)
def test_the_kernels_keep_the_contract(kind: str) -> None:
    """Loss and target's gradient within 2 ulps, the others 4, of the larger term where they are a difference."""
    up = torch.rand(7, generator=G) + 0.5
    for size in SIZES:
        for loss in (NLL(), Smoothed(0.1), Focal(2.0)):
            options = {"loss": loss, "reduction": "none", "mask": LIVE}
            value, dz = together(world_of(size).run(of_shard, "cpu", SIZES[size], Z, TARGETS[kind], up, options))
            truth, slope = alone(Z, TARGETS[kind], up, options)
            assert off(value, truth) <= (4 if isinstance(loss, Focal) else 2)  # Focal is a cube on a sure row
            p = Z.double().softmax(-1)
            terms = torch.where(LIVE[:, None], p, 0.0).nan_to_num()
            if kind != "labels" or loss != NLL():
                terms = terms.clamp(min=1.0)  # p - q, p - ε / v
            assert off(dz, slope, terms if kind != "labels" or loss != NLL() else 0.0) <= 4
            assert off(dz.roll(1, 0), slope, terms) > 4


def test_wide_rows_are_read_by_wide_kernels() -> None:
    z = 5 * torch.randn(5, 700, generator=G)
    y, sizes = torch.tensor([0, 699, 350, 300, 7]), (300, 400)
    options = {"reduction": "none"}
    value, dz = together(world_of(2).run(of_shard, "cpu", sizes, z, y, torch.ones(5), options))
    truth, slope = alone(z, y, torch.ones(5), options)
    assert off(value, truth) <= 2
    assert off(dz, slope) <= 4
    assert off(dz * 1.01, slope) > 4


def test_rows_without_probabilities_are_nan_and_no_others() -> None:
    """NaN, +inf and nothing but -inf, on whichever rank; a block of -inf on one rank is none of them."""
    z = torch.zeros(6, 6)
    z[0, 5], z[1, 0], z[2], z[3, :3] = torch.nan, torch.inf, -torch.inf, -torch.inf
    z[4, 3:], z[4, 4] = -torch.inf, torch.nan  # NaN among -inf
    for size, sizes in SIZES.items():
        for backend in ("reference", "cpu"):
            for target in (torch.zeros(6).long(), torch.full((6, 6), 1 / 6)):
                for loss in (NLL(), Smoothed(0.1), Focal()):
                    options = {"reduction": "none", "loss": loss, "validate": "full"}
                    value, _ = together(world_of(size).run(of_shard, backend, sizes, z, target, torch.ones(6), options))
                    assert value.isnan().tolist() == [True, True, True, False, True, False], (size, backend, loss)
                    assert torch.equal(value[3], cross_entropy(z, target, **options)[3])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", TARGETS)
def test_reductions_weights_masks_and_links(kind: str, reduction: str) -> None:
    options = {
        "loss": ClassWeighted(torch.tensor(WEIGHT), Smoothed(0.2, Focal(1.5))),
        "reduction": reduction,
        "sample_weight": torch.rand(7, generator=G),
        "mask": LIVE,
        "link": Link(temperature=1.7, softcap=20.0),
    }
    for size, sizes in SIZES.items():
        value, dz = together(world_of(size).run(of_shard, "reference", sizes, Z, TARGETS[kind], None, options))
        truth, slope = alone(Z, TARGETS[kind], None, options)
        assert off(value, truth) <= 1
        assert off(dz, slope, 1e-8) <= 1
        assert off(value * 1.000001, truth) > 1


def test_channels_first_and_single_rows() -> None:
    z, y = torch.randn(3, 6, 2, 2, generator=G), torch.randint(6, (3, 2, 2), generator=G)
    value, dz = together(world_of(3).run(of_shard, "reference", SIZES[3], z, y, None, {}))
    truth, slope = alone(z, y, None, {})
    assert off(value, truth) <= 1
    assert off(dz, slope) <= 1
    soft = torch.rand(3, 6, 2, 2, generator=G)
    value, dz = together(world_of(3).run(of_shard, "reference", SIZES[3], z, soft, None, {"loss": Focal()}))
    truth, slope = alone(z, soft, None, {"loss": Focal()})
    assert off(value, truth) <= 1
    assert off(dz, slope, 1e-8) <= 1


def one_row(sizes: tuple[int, ...]) -> Tensor:
    return parallel.cross_entropy(own(Z[0], sizes, 0), torch.tensor(3))


def test_one_row_of_logits() -> None:
    for value in good(world_of(3).run(one_row, SIZES[3])):
        torch.testing.assert_close(value, cross_entropy(Z[0], torch.tensor(3)))


# --- learned links, learned targets, second derivatives -----------------------------------------------------------


def learned(sizes: tuple[int, ...], z: Tensor, target: Tensor, loss: Any) -> tuple[Tensor, ...]:
    """A job: the gradients of logits, of a temperature that all share, of own biases, and of soft targets."""
    leaves = [own(z, sizes).clone(), torch.tensor(1.3).double(), own(torch.arange(6.0).double(), sizes, 0).clone()]
    leaves += [own(target, sizes).clone()] if target.is_floating_point() else []
    leaves = [leaf.requires_grad_() for leaf in leaves]
    given = leaves[3] if len(leaves) > 3 else target
    link = Link(temperature=leaves[1], softcap=9.0, bias=leaves[2])
    value = parallel.cross_entropy(leaves[0], given, loss=loss, link=link)
    return torch.autograd.grad(value.square(), leaves)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", ["NLL", "Smoothed", "Focal", "Confidence", "Brier", "ArcFace"])
def test_links_and_targets_that_are_learned(name: str, soft: bool) -> None:
    z = torch.randn(4, 6, generator=G).double()
    target = torch.rand(4, 6, generator=G).double() if soft else torch.tensor([0, 5, 2, 3])
    leaves = [z.clone(), torch.tensor(1.3).double(), torch.arange(6.0).double(), *([target.clone()] if soft else [])]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    link = Link(temperature=leaves[1], softcap=9.0, bias=leaves[2])
    value = cross_entropy(leaves[0], leaves[3] if soft else target, loss=KNOBS[name], link=link)
    truth = torch.autograd.grad(value.square(), leaves)
    for size, sizes in SIZES.items():
        answers = good(world_of(size).run(learned, sizes, z, target, KNOBS[name]))
        of_logits, of_temperature, of_bias, *of_target = zip(*answers, strict=True)
        torch.testing.assert_close(torch.cat(of_logits, 1), truth[0], rtol=1e-11, atol=1e-13)
        for each in of_temperature:
            torch.testing.assert_close(each, truth[1], rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(torch.cat(of_bias), truth[2], rtol=1e-11, atol=1e-13)
        if soft:
            torch.testing.assert_close(torch.cat(of_target[0], 1), truth[3], rtol=1e-11, atol=1e-13)
        assert not torch.allclose(of_temperature[0] / size, truth[1], rtol=1e-6)


LEARNS = torch.ones(6, requires_grad=True)


def curved(sizes: tuple[int, ...], z: Tensor, target: Any, along: Tensor, options: dict) -> Tensor:
    """A job: a Hessian times a vector, each rank's columns of both."""
    leaf = own(z, sizes).clone().requires_grad_()
    value = parallel.cross_entropy(leaf, own(target, sizes), **options).square()
    return _twice(value, leaf, own(along, sizes))


def _twice(value: Tensor, leaf: Tensor, along: Tensor) -> Tensor:
    (dz,) = torch.autograd.grad(value, leaf, create_graph=True)
    return torch.autograd.grad(dz, leaf, along)[0]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str, kind: str) -> None:
    z = torch.randn(7, 6, generator=G).double()
    along = torch.randn(7, 6, generator=G).double()
    target = TARGETS[kind] if kind != "soft" else torch.rand(7, 6, generator=G).double()
    options = {"loss": KNOBS[name]}
    leaf = z.clone().requires_grad_()
    truth = _twice(cross_entropy(leaf, target, **options).square(), leaf, along)
    got = torch.cat(good(world_of(3).run(curved, SIZES[3], z, target, along, options)), 1)
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(got.roll(1, 1), truth, rtol=1e-6)


def transformed(sizes: tuple[int, ...], z: Tensor) -> tuple[Tensor, Tensor]:
    """A job: torch.func.grad, and torch.compile, which leaves the call to eager mode."""
    y = torch.tensor([0, 5, 3])
    leaf = own(z, sizes).clone().requires_grad_()
    # Behind a break of the graph the compiler looks at the .grad of a tensor that is no leaf, and warns itself of it.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
    compiled = torch.compile(lambda z: 2 * parallel.cross_entropy(z * 1.0, y), backend="eager")(leaf)
    by_function = torch.func.grad(lambda z: 2 * parallel.cross_entropy(z, y))(own(z, sizes))
    _refuse_batches_and_whole_graphs(sizes, own(z, sizes), y)
    return by_function, torch.autograd.grad(compiled, leaf)[0]


def _refuse_batches_and_whole_graphs(sizes: tuple[int, ...], z: Tensor, y: Tensor) -> None:
    """Each with our sentence, on all ranks, for logits and for heads, also where only the way back is a batch."""
    f = torch.func
    w = torch.eye(6)[sum(sizes[: dist.get_rank()]) :][: sizes[dist.get_rank()]].double()
    for value, at in (
        (lambda z: parallel.cross_entropy(z, y), z),
        (lambda w: parallel.linear_cross_entropy(torch.eye(6)[:3].double(), w, y, loss=KNOBS["Brier"]), w),
        (lambda x: parallel.linear_cross_entropy(x, w, y), torch.eye(6)[:3].double()),
    ):
        for refused in (f.jacfwd, f.hessian, lambda value: f.jacrev(f.grad(value)), f.vmap):
            with pytest.raises(NotImplementedError, match="is not possible where classes lie on several ranks"):
                refused(value)(at.expand(2, *at.shape) if refused is f.vmap else at)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="call the loss outside of it"):
            torch.compile(value, fullgraph=True, backend="eager")(at)


def test_torch_func_grad_and_compile() -> None:
    z = torch.randn(3, 6, generator=G).double()
    leaf = z.clone().requires_grad_()
    (truth,) = torch.autograd.grad(2 * cross_entropy(leaf, torch.tensor([0, 5, 3])), leaf)
    by_function, compiled = zip(*good(world_of(2).run(transformed, SIZES[2], z)), strict=True)
    torch.testing.assert_close(torch.cat(by_function, 1), truth, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.cat(compiled, 1), truth, rtol=1e-12, atol=1e-15)


# --- faults that were planted ------------------------------------------------------------------------------------


@contextmanager
def planted(fault: str) -> Iterator[None]:
    def without_rescaling(a: Part, b: Part) -> Part:
        return Part(**{**vars(true_merge(a, b)), "rest": a.rest + b.rest + 1})

    def local_count(a: Part, b: Part) -> Part:
        return Part(**{**vars(true_merge(a, b)), "count": b.count})

    places = {
        "merged without the peaks": (shards.merge, "merge", without_rescaling),
        "smoothing with the local V": (shards.merge, "merge", local_count),
        "gradient of what is shared not added up": (group._Copied, "backward", staticmethod(lambda ctx, g: (g, None))),
        "the target's place on every rank": (shards.merge, "here", lambda index, *_: (index * 0, index >= 0)),
    }
    place, name, wrong = places[fault]
    true = vars(place)[name]
    setattr(place, name, wrong)
    try:
        yield
    finally:
        setattr(place, name, true)


def faulty(fault: str, sizes: tuple[int, ...], z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    temperature = torch.tensor(1.0, requires_grad=True)
    leaf = own(z, sizes).clone().requires_grad_()
    with planted(fault):
        value = parallel.cross_entropy(
            leaf, torch.tensor([5, 0, 0]), label_smoothing=0.1, link=Link(temperature=temperature)
        )
        return value.detach(), *torch.autograd.grad(value, (leaf, temperature))


@pytest.mark.parametrize(
    "fault",
    [
        "merged without the peaks",
        "smoothing with the local V",
        "gradient of what is shared not added up",
        "the target's place on every rank",
    ],
)
def test_planted_faults_are_seen(fault: str) -> None:
    z = torch.randn(3, 6, generator=G)
    temperature, leaf = torch.tensor(1.0, requires_grad=True), z.clone().requires_grad_()
    truth = cross_entropy(leaf, torch.tensor([5, 0, 0]), label_smoothing=0.1, link=Link(temperature=temperature))
    slopes = torch.autograd.grad(truth, (leaf, temperature))
    answers = good(world_of(2).run(faulty, fault, SIZES[2], z))
    value, gradient = answers[0][0], torch.cat([answer[1] for answer in answers], 1)
    right = (
        off(value, truth.detach()) <= 4,
        off(gradient, slopes[0], 1e-2) <= 4,
        all(off(answer[2], slopes[1], 1e-2) <= 4 for answer in answers),
    )
    assert not all(right), f"a loss {fault} would pass"


# --- what ranks must agree on ------------------------------------------------------------------------------------


def refused(sizes: tuple[int, ...], change: dict[int, dict[str, Any]], everyone: dict[str, Any]) -> Any:
    options = {"input": own(Z[:2], sizes).clone(), "target": torch.tensor([0, 1]), **everyone}
    options |= change.get(dist.get_rank(), {})
    return parallel.cross_entropy(options.pop("input"), options.pop("target"), **options)


@pytest.mark.parametrize(
    ("change", "everyone", "sentence"),
    [
        ({1: {"target": torch.tensor([0, 2])}}, {}, r"different arguments. Not as on rank 0: target \(rank 1\)"),
        ({2: {"input": torch.zeros(3, 5)}}, {}, r"the shape of input but for its classes \(rank 2\)"),
        ({0: {"label_smoothing": 0.1}}, {}, r"label_smoothing \(rank 1, 2\)"),
        ({1: {"loss": Focal(1.0)}, 0: {"loss": Focal(2.0)}, 2: {"loss": Focal(2.0)}}, {}, r"loss \(rank 1\)"),
        ({1: {"reduction": "none"}}, {}, r"reduction \(rank 1\)"),
        ({2: {"input": torch.zeros(2, 5).double()}}, {}, r"the dtype of input \(rank 2\)"),
        ({2: {"input": torch.zeros(2, 5, requires_grad=True)}}, {}, r"whether input needs a gradient \(rank 2\)"),
        ({1: {"input": torch.zeros(2, 3).long()}}, {}, "floating-point logits; it is int64"),
        ({0: {"mask": torch.ones(2)}}, {}, r"mask must be bool|mask \(rank"),
        ({}, {"target": torch.tensor([0, 6])}, "labels that are no class: 6 at row 1. With 6 columns"),
        ({}, {"target": torch.tensor([0, 1, 2])}, r"labels must have shape \(2,\)"),
        ({}, {"weight": torch.ones(2)}, "one number for each of the 6 classes"),
        ({1: {"weight": LEARNS.detach()}}, {"weight": LEARNS}, r"weights are learned \(rank 1\)"),
        ({}, {"reduction": "sum", "normaliser": 3.0}, "it would be unused"),
        ({1: {"normaliser": 3.0}}, {}, r"normaliser \(rank 1\)"),
        ({0: {"link": Link(bias=torch.zeros(6))}}, {"link": Link(bias=torch.zeros(0))}, "bias of a link must be that"),
    ],
)
def test_what_is_wrong_on_one_rank_is_an_error_on_all(change: dict, everyone: dict, sentence: str) -> None:
    answers = world_of(3).run(refused, SIZES[3], change, everyone, seconds=20)
    for answer in answers:
        assert isinstance(answer, Raised), answer
        assert re.search(sentence, answer.text), answer.text
    # The group is still of use: nobody waits for anybody.
    good(world_of(3).run(refused, SIZES[3], {}, {}))


def negative(sizes: tuple[int, ...]) -> Tensor:
    soft = own(SOFT[:2].clone(), sizes)
    if dist.get_rank() == 2:
        soft[1, 2] = -0.5
    return parallel.cross_entropy(own(Z[:2], sizes), soft)


def test_a_bad_probability_on_one_rank_is_an_error_on_all() -> None:
    first, _, third = world_of(3).run(negative, SIZES[3], seconds=20)
    assert third.text.startswith("target weights must be 0 or more; 1 are negative")
    assert first.text.startswith("rank 2 of 3 cannot go on, and so none can. ValueError: target weights")


def test_without_processes_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="not initialised: start with torchrun"):
        parallel.cross_entropy(Z[:2], torch.tensor([0, 1]))


# --- meshes and DTensors -----------------------------------------------------------------------------------------


def of_dtensor(z: Tensor, soft: Tensor) -> tuple[Tensor, ...]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    leaf = z.clone().requires_grad_()
    spread = distribute_tensor(leaf, mesh, [Shard(1)])
    value = parallel.cross_entropy(spread, torch.tensor([0, 4, 2]), label_smoothing=0.1)
    (dz,) = torch.autograd.grad(value, spread)
    by_mesh = parallel.cross_entropy(spread.to_local(), torch.tensor([0, 4, 2]), label_smoothing=0.1, group=mesh)
    of_soft = parallel.cross_entropy(spread, distribute_tensor(soft, mesh, [Shard(1)]))
    with pytest.raises(TypeError, match=r"crossent\.parallel"):
        cross_entropy(spread, torch.tensor([0, 4, 2]))
    with pytest.raises(ValueError, match="sharded along its classes, Shard"):
        parallel.cross_entropy(distribute_tensor(z, mesh, [Replicate()]), torch.tensor([0, 4, 2]))
    return value.detach(), dz.full_tensor(), by_mesh.detach(), of_soft.detach()


def test_dtensors_know_their_mesh() -> None:
    """Five classes on four ranks: torch gives them 2, 2, 1 and 0."""
    z, soft = torch.randn(3, 5, generator=G), torch.rand(3, 5, generator=G)
    leaf = z.clone().requires_grad_()
    truth = cross_entropy(leaf, torch.tensor([0, 4, 2]), label_smoothing=0.1)
    (slope,) = torch.autograd.grad(truth, leaf)
    for value, dz, by_mesh, of_soft in good(world_of(4).run(of_dtensor, z, soft)):
        torch.testing.assert_close(value, truth.detach(), rtol=3e-7, atol=0)
        torch.testing.assert_close(dz, slope, rtol=1e-6, atol=1e-8)
        assert torch.equal(value, by_mesh)
        torch.testing.assert_close(of_soft, cross_entropy(z, soft), rtol=3e-7, atol=0)
