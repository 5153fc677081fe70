"""The contract of every number: dtypes, accuracy, special values, empty batches, reductions, sizes of vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from crossent import CrossEntropyLoss, Link, cross_entropy
from crossent.compute import backends, losses
from crossent.compute.backends import reference
from crossent.compute.losses import NLL, LogZ
from tests.compare import faults, ulps

# Ulps of float32 that the loss, the target's gradient and the other gradients may be off by. The reference rounds once
# from float64: half an ulp, and a whole one where the truth itself is rounded to float64. The kernels work in float32.
ALLOWED = {"reference": (1.0, 1.0, 1.0), "cpu": (2.0, 2.0, 4.0)}


def truth(z: Tensor, y: int) -> tuple[float, np.ndarray]:
    """Loss and gradient of one row in 80-bit floats: the other columns are added up without the target's 1."""
    assert np.finfo(np.longdouble).eps < 1e-18, "this machine has no 80-bit floats; use another truth here"
    v = z.double().numpy().astype(np.longdouble)
    power = np.exp(v - v[y])
    power[y] = 0
    odds = power.sum()
    p = power / (1 + odds)
    p[y] = -odds / (1 + odds)
    return float(np.log1p(odds)), p.astype(np.float64)


def rows(v: int) -> dict[str, tuple[Tensor, int]]:
    noise = torch.randn(v, generator=torch.Generator().manual_seed(v))
    confident = noise.clone()
    confident[v // 2] = 27.6 + np.log(v)  # p = 1 - 1e-12
    peaked = noise * 8
    far = noise + 1e4
    masked = noise.clone()
    masked[1::3] = -torch.inf
    return {
        "random": (noise, v - 1),
        "flat": (torch.zeros(v), 0),
        "confident": (confident, v // 2),
        "sure and wrong": (confident, 0),
        "peaked": (peaked, int(peaked.argmax())),
        "offset by 1e4": (far, v // 2),
        "masked": (masked, 0),
    }


@pytest.mark.parametrize("backend", ALLOWED)
@pytest.mark.parametrize("v", [2, 3, 10, 64, 65, 1000, 32000, 256000])
def test_float32_keeps_its_digits(v: int, backend: str) -> None:
    of_loss, of_target, of_others = ALLOWED[backend]
    for name, (row, y) in rows(v).items():
        z = torch.stack((row, row)).requires_grad_()
        with backends.using(backend):
            value = cross_entropy(z, torch.tensor([y, y]), reduction="none")
            (dz,) = torch.autograd.grad(value.sum(), z)
        loss, gradient = truth(row, y)
        exact = torch.from_numpy(np.stack([gradient] * 2))
        assert ulps(value.detach(), [loss, loss]) <= of_loss, name
        assert ulps(dz[:, y], exact[:, y]) <= of_target, name
        assert ulps(dz, exact) <= of_others, name
        # Two ulps of the target's own entry: the roundings of the others, each beside its own size, come to less.
        assert abs(dz[0].double().sum()) <= 2.4e-7 * abs(gradient[y]), name
        for fault, wrong in faults(dz):
            if not torch.equal(wrong, dz):
                assert ulps(wrong, exact) > 4, f"{name}: a gradient {fault} would pass"


@pytest.mark.parametrize("backend", ALLOWED)
def test_torch_loses_the_digits_that_we_keep(backend: str) -> None:
    """The negative control of the test above, and the reason for this package."""
    z = torch.zeros(1, 32000)
    z[0, 5] = 28.0
    loss, _ = truth(z[0], 5)
    y = torch.tensor([5])
    with backends.using(backend):
        assert ulps(cross_entropy(z, y), [loss]) <= ALLOWED[backend][0]
    assert ulps(F.cross_entropy(z, y), [loss]) > 1e5


def test_an_ignored_row_is_not_read_through_a_link_either() -> None:
    z = torch.randn(3, 4)
    z[1] = torch.nan
    z.requires_grad_()
    value = cross_entropy(z, torch.tensor([0, -100, 2]), link=Link(temperature=2.0, softcap=5.0))
    (dz,) = torch.autograd.grad(value, z)
    assert value.isfinite()
    assert dz.isfinite().all()
    assert not dz[1].any()
    assert dz[0].any()
    assert cross_entropy(z, torch.tensor([0, 1, 2]), link=Link(softcap=5.0)).isnan()  # read, it would be seen


@pytest.mark.parametrize("backend", ALLOWED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_logits_make_float32_losses_and_correctly_rounded_gradients(dtype: torch.dtype, backend: str) -> None:
    for v in (2, 10, 64, 65, 1000):
        for name, (row, y) in rows(v).items():
            z = (row if "1e4" not in name else row - 9000).to(dtype)[None].requires_grad_()
            with backends.using(backend):
                value = cross_entropy(z, torch.tensor([y]), reduction="none")
                (dz,) = torch.autograd.grad(value.sum(), z)
            assert value.dtype == torch.float32
            assert dz.dtype == dtype
            loss, gradient = truth(z[0].detach(), y)
            assert ulps(value.detach(), [loss]) <= ALLOWED[backend][0], name
            assert ulps(dz[0], torch.from_numpy(gradient)) <= 0.51, name
            for fault, wrong in faults(dz):
                if not torch.equal(wrong, dz):
                    assert ulps(wrong[0], torch.from_numpy(gradient)) > 0.51, f"{name}: a gradient {fault} would pass"


def test_float64_stays_float64() -> None:
    z = torch.randn(4, 5, dtype=torch.float64)
    assert cross_entropy(z, torch.tensor([0, 1, 2, 3])).dtype == torch.float64


def test_many_rows_of_float16_neither_overflow_nor_vanish() -> None:
    n = 70_000  # past float16's largest number, 65504
    z = torch.zeros(n, 2, dtype=torch.float16, requires_grad=True)
    y = torch.zeros(n, dtype=torch.long)
    for read in (z, z.detach()):  # with its gradient, and losses alone
        total = cross_entropy(read, y, reduction="sum")
        assert total.item() == pytest.approx(n * np.log(2), rel=1e-7)
    (dz,) = torch.autograd.grad(cross_entropy(z, y), z)
    assert dz[0].tolist() == pytest.approx([-0.5 / n, 0.5 / n], rel=6e-3)  # 7e-6 is subnormal in float16: 2**-24 steps
    (torchs,) = torch.autograd.grad(F.cross_entropy(z, y), z)
    assert not torchs.any()  # PyTorch's gradient is lost altogether


def test_257_rows_of_bfloat16_are_divided_by_257() -> None:
    z = torch.zeros(257, 2, dtype=torch.bfloat16, requires_grad=True)
    (dz,) = torch.autograd.grad(cross_entropy(z, torch.zeros(257, dtype=torch.long)), z)
    assert dz[0, 1] == torch.tensor(0.5 / 257, dtype=torch.bfloat16)
    assert dz[0, 1] != torch.tensor(0.5 / 256, dtype=torch.bfloat16)


def test_a_class_at_minus_infinity_is_a_class_that_cannot_be() -> None:
    z = torch.tensor([[1.0, -torch.inf, 2.0]], requires_grad=True)
    possible = cross_entropy(z, torch.tensor([0]))
    assert possible == cross_entropy(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    (dz,) = torch.autograd.grad(possible, z)
    assert dz[0, 1] == 0
    assert dz.isfinite().all()
    assert cross_entropy(z, torch.tensor([1])) == torch.inf
    # Smoothing spreads its mass over the classes that can be, soft targets multiply 0 by infinity: 0.
    smoothed = cross_entropy(z, torch.tensor([0]), label_smoothing=0.1)
    assert smoothed == cross_entropy(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), label_smoothing=0.1)
    soft = torch.tensor([[0.5, 0.0, 0.5]])
    value = cross_entropy(z, soft)
    assert value == cross_entropy(torch.tensor([[1.0, 2.0]]), soft[:, ::2])
    (dz,) = torch.autograd.grad(value, z)
    assert dz.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empty_batches(reduction: str) -> None:
    for z, y in (
        (torch.randn(2, 3, requires_grad=True), torch.tensor([-100, -100])),
        (torch.randn(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)),
    ):
        value = cross_entropy(z, y, reduction=reduction)
        assert value == 0
        (dz,) = torch.autograd.grad(value, z)
        assert torch.equal(dz, torch.zeros_like(z))
    if reduction == "mean":
        assert cross_entropy(z, y, empty="nan").isnan()
        with pytest.raises(ValueError, match="every target is ignored"):
            cross_entropy(z, y, empty="raise")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8])
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    z = torch.randn(3, 4)
    assert cross_entropy(z, torch.tensor([0, 3, 1], dtype=dtype)) == cross_entropy(z, torch.tensor([0, 3, 1]))


def test_inputs_are_never_changed() -> None:
    z, y, w = torch.randn(3, 4), torch.tensor([0, -100, 3]), torch.rand(4)
    before = z.clone(), y.clone(), w.clone()
    leaf = z.requires_grad_()
    cross_entropy(leaf, y, w, label_smoothing=0.1).backward()
    assert all(torch.equal(a, b) for a, b in zip((z, y, w), before, strict=True))


@pytest.mark.parametrize("block", [1, 20, 21])
def test_blocks_of_rows_change_no_bit(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    torch.manual_seed(7)
    z, q, w = torch.randn(9, 10), torch.rand(9, 10), torch.rand(10)
    y = torch.randint(10, (9,))

    def seen() -> list[Tensor]:
        tensors = []
        for target in (y, q):
            leaf = z.clone().requires_grad_()
            value = cross_entropy(
                leaf, target, w, loss=NLL() + 0.1 * LogZ() + 0.1 * losses.Confidence(), reduction="none"
            )
            tensors += [value.detach(), torch.autograd.grad(value.sum(), leaf)[0]]
        return tensors

    with backends.using("reference"):
        whole = seen()
        monkeypatch.setattr(reference, "BLOCK", block)
        assert len(reference._blocks(z, z)) == {1: 9, 20: 5, 21: 5}[block]
        assert all(torch.equal(a, b) for a, b in zip(whole, seen(), strict=True))
    assert not torch.equal(whole[0], whole[2])


def torch_cases():
    g = torch.Generator().manual_seed(0)
    weight = torch.rand(5, generator=g).double() + 0.1
    for shape in ((5,), (4, 5), (4, 5, 3), (2, 5, 3, 2)):
        z = torch.randn(*shape, generator=g).double()
        spots = shape[:1] * (len(shape) > 1) + shape[2:]
        y = torch.randint(5, spots, generator=g)
        for w in (None, weight):
            for smoothing in (0.0, 0.2):
                for reduction in ("none", "mean", "sum"):
                    yield z, y, w, smoothing, reduction


def test_everything_torch_has_agrees_with_torch_where_torch_is_right() -> None:
    count = 0
    for z, y, w, smoothing, reduction in torch_cases():
        ours = cross_entropy(z, y, w, label_smoothing=smoothing, reduction=reduction)
        theirs = F.cross_entropy(z, y, w, label_smoothing=smoothing, reduction=reduction)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)  # float64 both, other orders of summation
        if w is not None and not (z.dim() == 1 and reduction == "mean"):  # the mean of one row forgets its weight
            plain = cross_entropy(z, y, label_smoothing=smoothing, reduction=reduction)
            assert not torch.allclose(ours, plain, rtol=1e-6)
        count += 1
    assert count == 48
    z, q = torch.randn(6, 5).double(), torch.rand(6, 5).double().softmax(-1)
    torch.testing.assert_close(
        cross_entropy(z, q, label_smoothing=0.3),
        F.cross_entropy(z, q, label_smoothing=0.3),
        rtol=1e-12,
        atol=0,
    )
    module = CrossEntropyLoss(torch.rand(5), label_smoothing=0.1)
    assert module(z.float(), q.argmax(-1)) == cross_entropy(z.float(), q.argmax(-1), module.weight, label_smoothing=0.1)


def test_torch_func_and_compile() -> None:
    z, y = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 5, 2, 2])
    loss = NLL() + 1e-2 * LogZ()

    def row(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z, y, loss=loss, reduction="sum")

    expected = torch.func.grad(lambda z: row(z, y))(z)
    leaf = z.clone().requires_grad_()
    (dz,) = torch.autograd.grad(row(leaf, y), leaf)
    assert torch.equal(expected, dz)
    assert torch.equal(torch.func.vmap(torch.func.grad(row))(z, y), dz)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda z: row(z, y[:1])))(z[:1]).reshape(6, 6)
    p = z[0].softmax(-1)
    truth = torch.diag(p) - p.outer(p)
    lse = torch.logsumexp(z[0], -1)
    truth = truth + 2e-2 * (p.outer(p) + lse * truth)
    torch.testing.assert_close(hessian, truth, rtol=1e-12, atol=1e-14)


def test_checkpointing_export_and_forward_mode() -> None:
    z, y = torch.randn(4, 6, requires_grad=True), torch.tensor([0, 5, -100, 2])
    (dz,) = torch.autograd.grad(cross_entropy(z, y), z)
    again = torch.utils.checkpoint.checkpoint(lambda z: cross_entropy(z, y), z, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, z)[0], dz)
    module = CrossEntropyLoss(label_smoothing=0.1)
    exported = torch.export.export(module, (z.detach(), y)).module()
    assert exported(z.detach(), y) == module(z.detach(), y)
    assert exported(z.detach().flip(0), y) != module(z.detach(), y)
    tangent = torch.randn(4, 6)
    value, moved = torch.func.jvp(lambda z: cross_entropy(z, y), (z.detach(),), (tangent,))
    assert value == cross_entropy(z, y)
    torch.testing.assert_close(moved, (dz * tangent).sum(), rtol=1e-6, atol=1e-7)  # float32 sums of 24 products
    assert abs(moved) > 1e-3


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_without_a_graph_break() -> None:
    z, y = torch.randn(4, 6), torch.tensor([0, 5, -100, 2])

    focal = losses.Focal(2.0) + 0.1 * losses.Confidence()  # a loss is made outside, as a module is

    def step(z: Tensor) -> Tensor:
        return cross_entropy(z, y, torch.ones(6), label_smoothing=0.1) + cross_entropy(z, y, loss=focal)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    step(a).backward()
    compiled(b).backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=0)


def test_a_label_out_of_range_never_reads_foreign_memory() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    rows = cross_entropy(z, torch.tensor([0, 4, -7]), reduction="none", validate="off")
    assert rows.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda z, y: cross_entropy(z, y + 3),
            IndexError,
            r"3 labels that are no class: 4 at row 1, 5 at row 2, 6 at row 3",
        ),
        (lambda z, y: cross_entropy(z, y.unsqueeze(1)), ValueError, r"Write target.squeeze\(-1\)"),
        (lambda z, y: cross_entropy(z, y.float()), TypeError, r"write target.long\(\)"),
        (
            lambda z, y: cross_entropy(z, F.one_hot(y, 4)),
            ValueError,
            r"one-hot integers: write target.float\(\)",
        ),
        (lambda z, y: cross_entropy(y, z), TypeError, "Are input and target exchanged"),
        (lambda z, y: cross_entropy(z, y[:2]), ValueError, r"must have shape \(4,\)"),
        (
            lambda z, y: cross_entropy(z, y, reduction="avg"),
            ValueError,
            "reduction must be one of 'none', 'sum', 'mean'",
        ),
        (lambda z, y: cross_entropy(z, y, label_smoothing=-0.1), ValueError, "between 0 and 1, and is -0.1"),
        (lambda z, y: cross_entropy(z, y, torch.ones(3)), ValueError, "each of the 4 classes"),
        (lambda z, y: cross_entropy(z, y, -torch.ones(4)), ValueError, "negative or NaN at class 0, 1, 2, 3"),
        (lambda z, y: cross_entropy(z, -torch.ones(4, 4)), ValueError, "0 or more; 16 are negative"),
        (lambda z, y: cross_entropy(z[:, :0], y), ValueError, "has no classes"),
        (lambda z, y: cross_entropy(z, y, validate="yes"), ValueError, "validate must be 'full', 'async' or 'off'"),
        (lambda z, y: cross_entropy(z, y, empty="skip"), ValueError, "empty must be one of"),
    ],
)
def test_errors_are_sentences(call, kind: type[Exception], sentence: str) -> None:
    z, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    with pytest.raises(kind, match=sentence):
        call(z, y)


def test_probabilities_passed_as_logits_are_noticed() -> None:
    p = torch.randn(4, 5).softmax(-1)
    with pytest.warns(UserWarning, match="leave out the softmax"):
        cross_entropy(p, torch.tensor([0, 1, 2, 3]))
    cross_entropy(p, torch.tensor([0, 1, 2, 3]), validate="off")  # warnings are errors here: none may come
    cross_entropy(torch.eye(4), torch.tensor([0, 1, 2, 3]))
    cross_entropy(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3]))
