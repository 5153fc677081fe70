"""The smaller public faces: numbers of rows, probabilities instead of logits, weights of classes, rows and elements."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    Link,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    linear_cross_entropy,
    linear_row_numbers,
    row_numbers,
    sparse,
)
from crossent.compute import backends
from crossent.compute.losses import Focal
from tests import oracle
from tests.compare import ulps


def naive(z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The same numbers in float64 from torch's softmax: right where nothing is near 0."""
    z = z.double()
    log_p = torch.log_softmax(z, 1)
    hit = z.gather(1, y.unsqueeze(1))
    entropy = -(log_p.exp() * torch.where(log_p.isinf(), 0.0, log_p)).sum(1)
    argmax, rank = z.argmax(1), (z > hit).sum(1)
    return log_p.gather(1, y.unsqueeze(1)).squeeze(1), torch.logsumexp(z, 1), entropy, argmax, rank


@pytest.mark.parametrize("of", [row_numbers, lambda z, y, **more: linear_row_numbers(z, torch.eye(4), y, **more)])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_row_of_no_numbers_is_never_right(of: Any, backend: str) -> None:
    z = torch.zeros(5, 4)
    z[1], z[2], z[3, 2] = torch.nan, -torch.inf, torch.nan
    z[4, 0] = 1.0
    with backends.using(backend):
        assert of(z, torch.tensor([3, 0, 1, 2, 0])).rank.tolist() == [0, 3, 3, 3, 0]  # a tie is not above
        unseen = of(z, torch.tensor([9, -100, 1, -1, 3]), validate="off")
    assert unseen.rank.tolist() == [3, -1, 3, 3, 1]
    assert unseen.log_prob.isnan().tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("classes", [3, 10, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_numbers_of_a_row(dtype: torch.dtype, classes: int, backend: str) -> None:
    g = torch.Generator().manual_seed(classes)
    z = (3 * torch.randn(40, classes, generator=g)).to(dtype)
    z[::3, 1] = -torch.inf
    z[1::4, 2] = z[1::4].amax(1)  # the greatest twice
    y = torch.randint(classes, (40,), generator=g)
    y[::3] = 0
    with backends.using(backend):
        numbers = row_numbers(z, y)
        loss = cross_entropy(z, y, reduction="none")
    log_prob, lse, entropy, argmax, rank = naive(z, y)
    assert torch.allclose(numbers.log_prob.double(), log_prob, rtol=1e-5)
    assert torch.equal(numbers.loss, loss)
    assert torch.equal(numbers.log_prob, -loss)
    # lse is a sum of two terms of either sign, and float64 truth has 1e-15 of its own.
    assert torch.allclose(numbers.lse.double(), lse, rtol=5e-7 if dtype != torch.float64 else 1e-14, atol=1e-6)
    # Where one class is nearly all, the naive entropy is a small difference of larger numbers, worth 1e-13.
    assert torch.allclose(numbers.entropy.double(), entropy, rtol=5e-7 if dtype != torch.float64 else 1e-13, atol=1e-16)
    assert numbers.argmax.tolist() == argmax.tolist()
    assert numbers.rank.tolist() == rank.tolist()
    assert numbers.rank.dtype == numbers.argmax.dtype == torch.int64
    assert (numbers.rank != row_numbers(z, (y + 1) % classes).rank).any()


def test_numbers_of_rows_have_gradients_shapes_and_links() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, -100, 4], [2, 2, 1]])
    numbers = row_numbers(z, y, loss=Focal(2.0), link=Link(temperature=2.0))
    assert numbers.loss.shape == numbers.rank.shape == (2, 3)
    assert numbers.log_prob[0, 1] == numbers.lse[0, 1] == numbers.loss[0, 1] == 0
    assert (numbers.argmax[0, 1], numbers.rank[0, 1]) == (-1, -1)
    rows, labels = z.detach().movedim(1, -1).reshape(-1, 5) / 2, y.flatten().clamp(min=0)
    log_prob, lse, entropy, argmax, _ = naive(rows, labels)
    live = y.flatten() != -100
    for got, truth in ((numbers.log_prob, log_prob), (numbers.lse, lse), (numbers.entropy, entropy)):
        torch.testing.assert_close(got.flatten()[live].detach(), truth[live], rtol=1e-13, atol=1e-14)
    assert numbers.argmax.flatten()[live].tolist() == argmax[live].tolist()

    def summed(z: Tensor) -> Tensor:
        some = row_numbers(z, y)
        return some.log_prob.sum() + 0.3 * some.lse.sum() - 0.7 * some.entropy.sum() + some.loss.square().sum()

    assert torch.autograd.gradcheck(summed, z)
    masked = row_numbers(z, y.clamp(min=0), mask=y != -100)
    assert torch.equal(masked.log_prob, row_numbers(z, y).log_prob)


def test_what_row_numbers_refuses() -> None:
    z = torch.randn(2, 3)
    with pytest.raises(TypeError, match="must be class indices"):
        row_numbers(z, torch.rand(2, 3))
    with pytest.raises(IndexError, match="3 at row 1"):
        row_numbers(z, torch.tensor([0, 3]))
    assert row_numbers(z, torch.tensor([0, 3]), validate="off").log_prob.isnan().tolist() == [False, True]


P = [0.0, 1e-30, 1e-7, 0.2, 0.5, 0.9, 1 - 2**-24, 1.0]


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_binary_cross_entropy_of_probabilities(dtype: torch.dtype, t: float) -> None:
    p = torch.tensor(P, dtype=dtype, requires_grad=True)
    value = binary_cross_entropy(p, torch.full_like(p, t), reduction="none")
    (dp,) = torch.autograd.grad(value.sum(), p)

    def log(x: mp.mpf) -> mp.mpf:
        return -mp.inf if x == 0 else mp.log(x)

    exact = [mp.mpf(v) for v in p.tolist()]
    truth = [(t and -t * log(v)) + ((1 - t) and -(1 - t) * log(1 - v)) for v in exact]
    slope = [
        (t and (-t / v if v else -mp.inf)) + ((1 - t) and ((1 - t) / (1 - v) if v != 1 else mp.inf)) for v in exact
    ]
    # Float64 all through and rounded once: half an ulp, or a few of its own.
    assert ulps(value.detach(), [float(v) for v in truth]) <= (4 if dtype == torch.float64 else 0.51)
    finite = [i for i, v in enumerate(slope) if mp.isfinite(v) and abs(v) < torch.finfo(dtype).max]
    # (1 - t) / (1 - p) - t / p crosses 0 at p = t: exact to the size of its terms there.
    scale = [max(abs(float(slope[i])), float(1 / max(exact[i], mp.mpf(10) ** -30)) * t) for i in finite]
    assert ulps(dp[finite], [float(slope[i]) for i in finite], scale) <= (4 if dtype == torch.float64 else 0.51)
    assert [float(dp[i]) for i in range(len(P)) if not mp.isfinite(slope[i])] == [
        float(v) for v in slope if not mp.isfinite(v)
    ]
    if dtype == torch.float32:
        assert ulps(value.detach() * 1.01, [float(v) for v in truth]) > 4 or t in (0.0, 1.0)


def test_probabilities_agree_with_logits_and_with_torch() -> None:
    g = torch.Generator().manual_seed(1)
    z, t = torch.randn(6, 4, generator=g).double(), torch.rand(6, 4, generator=g).double()
    w = torch.rand(4, generator=g).double()
    for reduction in ("none", "mean", "sum"):
        ours = binary_cross_entropy(z.sigmoid(), t, w, reduction=reduction)
        torch.testing.assert_close(
            ours, F.binary_cross_entropy(z.sigmoid(), t, w, reduction=reduction), rtol=1e-12, atol=0
        )
        logits = binary_cross_entropy_with_logits(z, t, w, reduction=reduction)
        torch.testing.assert_close(ours, logits, rtol=1e-12, atol=0)
        assert BCELoss(w, reduction=reduction)(z.sigmoid(), t).equal(ours)
        assert not torch.allclose(ours, binary_cross_entropy(z.sigmoid(), t, reduction=reduction))
    assert torch.autograd.gradcheck(lambda p: binary_cross_entropy(p, t), z.sigmoid().requires_grad_())


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda z, t: binary_cross_entropy(z, t), ValueError, "look like logits: use binary_cross_entropy_with_logits"),
        (lambda z, t: binary_cross_entropy(t, z), ValueError, "target must lie in"),
        (lambda z, t: binary_cross_entropy(t.long(), t), TypeError, "floating-point probabilities"),
        (lambda z, t: binary_cross_entropy(t, t[0]), ValueError, "must have the shape of input"),
        (
            lambda z, t: binary_cross_entropy_with_logits(z, t, pos_weight=torch.ones(4), class_dim=0),
            ValueError,
            r"class_dim=0 says .* whose shape is \(2, 4\); pos_weight has shape \(4,\)",
        ),
        (
            lambda z, t: binary_cross_entropy_with_logits(z, t, pos_weight=torch.ones(2)),
            ValueError,
            "say with class_dim which dimension is the classes",
        ),
        (
            lambda z, t: cross_entropy(z, t, sample_weight=torch.ones(3)),
            ValueError,
            r"one entry for each row, shape \(2,\)",
        ),
        (
            lambda z, t: cross_entropy(z, t, sample_weight=-torch.ones(2)),
            ValueError,
            r"negative or NaN at \(0,\), \(1,\)",
        ),
        (lambda z, t: cross_entropy(z, t, mask=torch.ones(2)), TypeError, r"mask must be bool.*Write mask.bool\(\)"),
    ],
)
def test_errors_are_sentences(call, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call(torch.tensor([[-1.0, 2.0, 0.5, 3.0]] * 2), torch.tensor([[0.0, 1.0, 0.25, 0.5]] * 2))


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_weights_of_classes_along_a_named_dimension(layout: str) -> None:
    g = torch.Generator().manual_seed(2)
    z, t = torch.randn(3, 5, 4, 2, generator=g), torch.randint(2, (3, 5, 4, 2), generator=g).float()
    if layout == "channels last":
        z, t = z.to(memory_format=torch.channels_last), t.to(memory_format=torch.channels_last)
    if layout == "strided":
        z, t = z.repeat_interleave(2, 3)[..., ::2], t.repeat_interleave(2, 3)[..., ::2]
    w = torch.rand(5, generator=g) + 0.5
    for reduction in ("none", "mean"):
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        ours = binary_cross_entropy_with_logits(a, t, pos_weight=w, class_dim=1, reduction=reduction)
        theirs = F.binary_cross_entropy_with_logits(
            b.double(), t.double(), pos_weight=w[:, None, None].double(), reduction=reduction
        )
        assert ulps(ours.detach(), theirs.detach()) <= 2
        (da,), (db,) = torch.autograd.grad(ours.sum(), a), torch.autograd.grad(theirs.sum(), b)
        assert torch.allclose(da, db, rtol=3e-7, atol=0)
        plain = binary_cross_entropy_with_logits(a, t, reduction=reduction)
        assert not torch.allclose(ours, plain, rtol=1e-3)
        module = BCEWithLogitsLoss(pos_weight=w, class_dim=1, reduction=reduction)
        assert torch.equal(module(a, t), ours)


def test_weights_and_mask_of_rows() -> None:
    g = torch.Generator().manual_seed(3)
    z, y = torch.randn(6, 5, generator=g, dtype=torch.float64), torch.tensor([0, 4, -100, 2, 1, 3])
    w, mask = torch.tensor([1.0, 2.0, 5.0, 0.0, 0.5, 1.5], dtype=torch.float64), torch.tensor([1, 1, 1, 1, 0, 1]).bool()
    z[3, 2] = -torch.inf  # costs infinity, and weighs nothing
    z[4] = torch.nan  # and a row that is masked
    rows = torch.tensor([0, 1, 5])
    nll = torch.tensor([float(oracle.nll(z[i].tolist(), int(y[i]))) for i in rows], dtype=torch.float64)
    mean = (w[rows] * nll).sum() / w[rows].sum()
    torch.testing.assert_close(cross_entropy(z, y, sample_weight=w, mask=mask), mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(CrossEntropyLoss()(z, y, sample_weight=w, mask=mask), mean, rtol=1e-14, atol=0)
    none = cross_entropy(z, y, sample_weight=w, mask=mask, reduction="none")
    torch.testing.assert_close(none[rows], w[rows] * nll, rtol=1e-14, atol=0)
    assert none[[2, 3, 4]].tolist() == [0, 0, 0]
    assert not torch.allclose(mean, cross_entropy(z[rows], y[rows]))
    soft = F.one_hot(y.clamp(min=0), 5).double()
    live = mask & (y != -100)
    torch.testing.assert_close(cross_entropy(z, soft, sample_weight=w, mask=live), mean, rtol=1e-14, atol=0)
    few = sparse(y.clamp(min=0).unsqueeze(1), torch.ones(6, 1), 5)
    torch.testing.assert_close(cross_entropy(z, few, sample_weight=w, mask=live), mean, rtol=1e-14, atol=0)
    head = torch.eye(5, dtype=torch.float64)
    x = torch.where(z.isinf(), -800.0, z)  # a matrix product makes NaN of 0 · ∞
    torch.testing.assert_close(linear_cross_entropy(x, head, y, sample_weight=w, mask=mask), mean, rtol=1e-14, atol=0)
    whole = LinearCrossEntropyLoss(5, 5, dtype=torch.float64)
    whole.linear.weight.data.copy_(head)
    torch.testing.assert_close(whole(x, y, sample_weight=w, mask=mask), mean, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_masked_rows_may_hold_anything(backend: str) -> None:
    g = torch.Generator().manual_seed(8)
    z, y = torch.randn(4, 3, generator=g, requires_grad=True), torch.tensor([2, 777, 1, -5])
    mask = torch.tensor([True, False, True, False])
    soft = torch.softmax(torch.randn(4, 3, generator=g), 1)
    soft[1], soft[3] = torch.nan, -1.0
    weight = torch.tensor([1.0, torch.nan, 2.0, -1.0])
    pixels, shares = z.T.reshape(1, 3, 2, 2), soft.T.reshape(1, 3, 2, 2)
    with backends.using(backend):
        for target, all_of_it, rows in (
            (y, z, mask),
            (soft, z, mask),
            (y.reshape(1, 2, 2), pixels, mask.reshape(1, 2, 2)),
            (shares, pixels, mask.reshape(1, 2, 2)),
        ):
            value = cross_entropy(all_of_it, target, sample_weight=weight.reshape(rows.shape), mask=rows)
            kept = cross_entropy(z[mask], (soft if target.is_floating_point() else y)[mask], sample_weight=weight[mask])
            torch.testing.assert_close(value, kept, rtol=3e-7, atol=0)  # two orders of adding two rows in float64
            (dz,) = torch.autograd.grad(value, z)
            assert dz[~mask].equal(torch.zeros(2, 3))
            assert not dz[mask].eq(0).any()
            with pytest.raises((IndexError, ValueError), match=r"no class|negative or NaN"):
                cross_entropy(all_of_it, target, mask=torch.ones_like(rows))


def test_sparse_targets_of_fewer_classes_are_filled_up_with_ignore_index() -> None:
    g = torch.Generator().manual_seed(9)
    z = torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    index, weight = torch.tensor([[3, 0], [1, -1], [-1, -1]]), torch.tensor([[0.5, 0.5], [1.0, torch.nan], [7.0, -3.0]])
    target = sparse(index, weight, 4, ignore_index=-1)
    dense = torch.tensor([[0.5, 0, 0, 0.5], [0, 1, 0, 0]], dtype=torch.float64)
    for loss in (None, Focal(2.0)):
        value = cross_entropy(z, target, loss=loss)
        # The third row, which would make NaN, is no row at all: the mean divides by 2.
        torch.testing.assert_close(value, cross_entropy(z[:2], dense, loss=loss), rtol=1e-14, atol=0)
        (dz,) = torch.autograd.grad(value, z)
        assert dz[2].equal(torch.zeros(4, dtype=torch.float64))
        assert not torch.allclose(value, cross_entropy(z, torch.cat([dense, dense[:1]]), loss=loss))
    with pytest.raises(IndexError, match=r"2 labels .*: -1 at row 1, -1 at row 2\. .*ignore_index, -100"):
        sparse(index[:, 1:], weight[:, :1], 4)
    with pytest.raises(ValueError, match=r"ignore_index=-1 is for labels, and this target is ready: give it to cross"):
        cross_entropy(z, target, ignore_index=-1)
