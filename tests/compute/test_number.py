"""A mean with its gradient from one reading: the same bits as the ordinary way, and never a gradient given twice."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy
from crossent.compute import functional, number
from crossent.compute import target as targets
from crossent.compute.backends.cpu.precision import log1p
from crossent.compute.losses import LOSSES, NLL, Focal, LogZ, Loss, Smoothed
from tests.laws.test_losses import KNOBS

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda z: z[:, :, 0].contiguous(),
    "sliced rows": lambda z: torch.cat((z, z), 1)[:, : z.shape[1], 0],
    "channels first": lambda z: z.contiguous(),
    "channels last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
}


def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "number", lambda *_: None)


def seen(z: Tensor, y: Tensor, **options: object) -> list[Tensor]:
    leaf = z.clone(memory_format=torch.preserve_format).requires_grad_()
    value = cross_entropy(leaf, y, **options)
    return [value.detach(), *torch.autograd.grad(value, leaf)]


def soft_targets(n: int, classes: int, inner: int, g: torch.Generator) -> Tensor:
    """Of any sum: a class alone, of weight 1 and of another, no class at all, a few classes, all of them."""
    q = torch.rand(n, classes, inner, generator=g) ** 3
    q[:3] = 0
    q[0, classes - 1], q[1, 1] = 1.0, 0.4
    q[3, 1 : classes - 1] = 0
    return q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 10, 64, 65, 300])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bits_of_the_ordinary_way(
    monkeypatch: pytest.MonkeyPatch, layout: str, classes: int, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(classes)
    z = (4 * torch.randn(9, classes, 19, generator=g)).to(dtype)
    z[2, 1:] = -torch.inf
    z[3, 0], z[4] = 40.0, 1.5  # a row that is sure, a row of ties
    z = LAYOUTS[layout](z)
    y = torch.randint(classes, (9, *z.shape[2:]), generator=g)
    some = torch.where(torch.rand(y.shape, generator=g) < 0.3, -100, y)
    z[5][(slice(None), *torch.where(some[5:6] == -100)[1:])] = torch.nan  # where nothing may be read
    counts = ~z.isnan().any(1)
    q = LAYOUTS[layout](soft_targets(9, classes, 19, g).to(dtype))
    q.movedim(1, -1)[~counts] = torch.nan  # nor here
    calls = [
        {**target, "reduction": reduction, "label_smoothing": smoothing}
        for target in ({"target": y.masked_fill(~counts, -100)}, {"target": some}, {"target": q, "mask": counts})
        for reduction in ("mean", "sum")
        for smoothing in (0.0, 0.1)
    ]
    at_once = [seen(z, call["target"], **{k: v for k, v in call.items() if k != "target"}) for call in calls]
    ordinary(monkeypatch)
    for call, found in zip(calls, at_once, strict=True):
        value, dz = seen(z, call["target"], **{k: v for k, v in call.items() if k != "target"})
        assert torch.equal(found[0], value) or (value.isnan() and found[0].isnan())
        assert torch.equal(found[1].isnan(), dz.isnan())
        assert torch.equal(found[1].nan_to_num(), dz.nan_to_num())
        assert found[1].stride() == dz.stride()
    # Mean and sum differ, labels and soft targets, and what is smoothed: so the comparison can.
    assert len({tuple(dz.nan_to_num().flatten().tolist()) for _, dz in at_once}) == len(calls)


@pytest.mark.parametrize("loss", [Smoothed, Focal, lambda knob: 2 * Smoothed(knob) + Focal(knob)])
def test_a_number_that_a_loss_holds_is_learned(loss: Callable[[object], Loss]) -> None:
    z, y = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 0])
    logits, step = torch.randn(6, dtype=torch.float64, requires_grad=True), 1e-6
    for value in (
        lambda knob: cross_entropy(z, y, loss=loss(knob)),
        lambda knob: binary_cross_entropy_with_logits(logits, torch.arange(6) / 5, loss=loss(knob)),
    ):
        knob = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(value(knob), knob)
        rise = (value(0.4 + step) - value(0.4 - step)).item() / (2 * step)
        assert rise != 0
        assert abs(found.item() - rise) <= 1e-7  # the difference quotient has 10 digits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("classes", [5, 100])
@pytest.mark.parametrize("wrong", [-1e-30, -1.0, float("nan")])
def test_a_weight_that_is_none_is_seen_as_it_is_read(
    monkeypatch: pytest.MonkeyPatch, wrong: float, classes: int, dtype: torch.dtype
) -> None:
    looked, really = [], targets.look
    monkeypatch.setattr(number, "look", lambda *given: (looked.append(given), really(*given)))
    monkeypatch.setattr(targets, "look", lambda *_: pytest.fail("the weights were read for their own sake"))
    z = torch.randn(700, classes).to(dtype).requires_grad_()
    q = torch.softmax(torch.randn(700, classes), 1).to(dtype)
    q[599, classes - 1] = -0.0  # a minus, and not negative
    assert cross_entropy(z, q).isfinite()
    assert not looked
    q[600, classes - 1] = wrong
    with pytest.raises(ValueError, match=rf"1 are negative or NaN, first at \(row, class\) \(600, {classes - 1}\)"):
        cross_entropy(z, q)
    assert cross_entropy(z, q, mask=torch.arange(700) != 600).isfinite()
    cross_entropy(z, q, validate="off")


@pytest.mark.parametrize("rows", [1, 63, 64, 256, 700])
def test_a_sum_is_that_of_all_rows(rows: int) -> None:
    z, y = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows)), torch.arange(rows) % 5
    each = cross_entropy(z, y, reduction="none").double()
    whole = cross_entropy(z.requires_grad_(), y, reduction="sum").item()
    close = 2**-22  # rows rounded to float32, and their sum
    assert whole == pytest.approx(each.sum().item(), rel=close)
    assert whole != pytest.approx(each[:-1].sum().item(), rel=close)


def asked(monkeypatch: pytest.MonkeyPatch, **options: object) -> bool:
    """Whether a call takes the short way."""
    took: list[bool] = []

    def watched(*arguments: object) -> Tensor | None:
        result = number.number(*arguments)
        took.append(result is not None)
        return result

    monkeypatch.setattr(functional, "number", watched)
    z = torch.randn(4, 6, requires_grad=bool(options.pop("learned", True)))
    cross_entropy(z, options.pop("target", torch.tensor([0, 1, 2, 5])), **options)
    return took == [True]


def test_who_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.tensor([0, 1, -100, 5])
    assert asked(monkeypatch)
    assert asked(monkeypatch, target=y, label_smoothing=0.1)
    assert asked(monkeypatch, mask=torch.tensor([True, False, True, True]), reduction="sum")
    assert asked(monkeypatch, loss=0.5 * NLL() + Smoothed(0.2))
    assert not asked(monkeypatch, learned=False)
    assert not asked(monkeypatch, reduction="none")
    assert not asked(monkeypatch, weight=torch.ones(6))
    assert not asked(monkeypatch, sample_weight=torch.ones(4))
    assert asked(monkeypatch, target=torch.rand(4, 6))
    assert asked(monkeypatch, target=torch.rand(4, 6), label_smoothing=0.1, reduction="sum")
    assert not asked(monkeypatch, target=torch.rand(4, 6), weight=torch.ones(6))
    assert not asked(monkeypatch, target=torch.rand(4, 6).requires_grad_())
    assert not asked(monkeypatch, target=torch.rand(4, 6), loss=KNOBS["Focal"])
    assert asked(monkeypatch, target=y, loss=Focal(0.5))
    assert not asked(monkeypatch, target=y, loss=Focal(2.0), sample_weight=torch.ones(4))
    assert not asked(monkeypatch, target=y, loss=Focal(2.0), weight=torch.ones(6))
    assert not asked(monkeypatch, loss=Focal(0.0))
    assert not asked(monkeypatch, loss=2 * Focal(2.0))
    assert not asked(monkeypatch, loss=type("Other", (Focal,), {})(2.0))
    assert not asked(monkeypatch, loss=NLL() + LogZ())
    assert not asked(monkeypatch, loss=Smoothed(0.1, over="others"))
    assert not asked(monkeypatch, target=torch.full((4,), -100))
    with torch.no_grad():
        assert not asked(monkeypatch)


@pytest.mark.parametrize("name", [kind.__name__ for kind in LOSSES])
def test_a_loss_that_says_it_is_affine_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    loss = KNOBS[name]
    z, y = 3 * torch.randn(7, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 5, 0])
    z, y = (z[:, :2], y % 2) if name == "LDAM" and len(getattr(loss, "counts", ())) == 2 else (z, y)
    found = seen(z, y, loss=loss)
    ordinary(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(found, seen(z, y, loss=loss), strict=True))
    assert loss.affine == (name in ("NLL", "Smoothed"))


def test_an_untruthful_loss_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar(type(KNOBS["Focal"])):
        affine = True

    z, y = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 4])
    found = seen(z, y, loss=Liar(2.0))
    ordinary(monkeypatch)
    assert not torch.allclose(found[1], seen(z, y, loss=Liar(2.0))[1], rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_few_sure_rows_have_the_bits_of_many(layout: str, weighted: bool) -> None:
    """A tile makes the entries of few sure rows one by one, and those of many side by side."""
    g = torch.Generator().manual_seed(6)
    z, q = torch.randn(256, 21, 1, generator=g), soft_targets(256, 21, 1, g)
    sure = torch.arange(0, 256, 37)
    z[sure, sure % 21] += 20
    many, shares = (x[sure].repeat(37, 1, 1)[:256] for x in (z, q))
    options = {"weight": torch.linspace(0.5, 2, 21)} if weighted else {}

    def of(z: Tensor, q: Tensor) -> Tensor:
        z, q = (x.reshape(2, 128, 21, 1).movedim(1, 3).flatten(2) for x in (z, q))  # 128 rows side by side
        dz = seen(
            LAYOUTS[layout](z if "rows" not in layout else z.movedim(2, 0).flatten(0, 1).unsqueeze(-1)),
            q if "rows" not in layout else q.movedim(2, 0).flatten(0, 1),
            reduction="sum",
            **options,
        )[1]
        return dz.movedim(1, -1).reshape(128, 2, 21) if "rows" in layout else dz.permute(2, 0, 1)

    few, as_many = of(z, q), of(many, shares)
    row = {int(t): few[t % 128, t // 128] for t in sure}
    for i in range(256):
        assert torch.equal(as_many[i % 128, i // 128], row[int(sure[i % len(sure)])])
    assert not torch.equal(row[0], row[37])


def rows_of_all_kinds(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of float32 or less: any, sure of the label, sure of another, with ties, with a class that cannot be."""
    g = torch.Generator().manual_seed(classes)
    z, y = 4 * torch.randn(300, classes, generator=g), torch.randint(classes, (300,), generator=g)
    sure, wrong = torch.arange(0, 300, 5), torch.arange(1, 300, 5)
    z[sure, y[sure]] += 10 + 30 * torch.rand(60, generator=g)
    z[wrong, (y[wrong] + 1) % classes] += 40
    z[2::50] = z[2, 0]
    z[3::50, 0] = -torch.inf  # of which some are labels, that cost infinity
    return z.to(dtype), y


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.7])
@pytest.mark.parametrize("classes", [2, 10, 65, 300])
def test_focal_losses_keep_their_digits(monkeypatch: pytest.MonkeyPatch, classes: int, gamma: float) -> None:
    """Truth: the ordinary way in float64, which tests/laws holds to mpmath.

    A sure row's loss is a power of rest, γ + 1, and as many times as far off. Rounding to a subnormal adds 2^-149; what
    powers are multiplied by is 2^32 times too small, and adds 2^-117.
    """
    z, y = rows_of_all_kinds(classes, torch.float32)
    dz = seen(z, y, loss=Focal(gamma), reduction="sum")[1]
    each = [seen(z[i : i + 1], y[i : i + 1], loss=Focal(gamma), reduction="sum")[0] for i in range(100)]
    half, *_ = rows_of_all_kinds(classes, torch.bfloat16)
    dz_half = seen(half, y, loss=Focal(gamma), reduction="sum")[1]
    ordinary(monkeypatch)
    leaf = z.double().requires_grad_()
    rows = cross_entropy(leaf, y, loss=Focal(gamma), reduction="none")
    (true,) = torch.autograd.grad(rows.sum(), leaf)
    ulp = 2.0**-23
    found = torch.stack(each).double()
    finite = rows[:100].isfinite()
    assert torch.equal(found.isinf(), ~finite)
    assert ((found - rows[:100])[finite].abs() <= (gamma + 2) * ulp * rows[:100][finite] + 2.0**-149).all()
    assert ((dz.double() - true).abs() <= (gamma + 2) * ulp * true.abs() + 2.0**-117).all()
    true_half = seen(half.double(), y, loss=Focal(gamma), reduction="sum")[1]
    assert ((dz_half.double() - true_half).abs() <= 0.51 * 2.0**-7 * true_half.abs() + 1e-40).all()
    assert not ((dz.double() * (1 + 1e-5) - true).abs() <= (gamma + 2) * ulp * true.abs() + 2.0**-117).all()


def test_focal_losses_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the upstream gradient is not 1, or the gradient is wanted once more, or has a graph."""
    z, y = rows_of_all_kinds(21, torch.float32)
    y[::7] = -100
    leaf = z.clone().requires_grad_()
    value = cross_entropy(leaf, y, loss=Focal(2.0))
    first, second = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for _ in range(2))
    (tripled,) = torch.autograd.grad(3.0 * value, leaf, retain_graph=True)
    (graphed,) = torch.autograd.grad(value, leaf, create_graph=True)
    counts = graphed[1:3].square().sum()
    (moved,) = torch.autograd.grad(counts, leaf)
    ordinary(monkeypatch)
    value = cross_entropy(leaf, y, loss=Focal(2.0))
    (dz,) = torch.autograd.grad(value, leaf, retain_graph=True)
    for found in (first, second, graphed.detach()):
        torch.testing.assert_close(found, dz, rtol=1e-6, atol=0)
    torch.testing.assert_close(tripled, torch.autograd.grad(3.0 * value, leaf, retain_graph=True)[0], rtol=1e-6, atol=0)
    (graphed,) = torch.autograd.grad(value, leaf, create_graph=True)
    (again,) = torch.autograd.grad(graphed[1:3].square().sum(), leaf)
    torch.testing.assert_close(moved, again, rtol=1e-5, atol=0)
    assert again.any()
    assert not torch.allclose(tripled, dz, rtol=1e-3, atol=0)


def test_log1p_is_right_to_an_ulp() -> None:
    g = np.random.default_rng(0)
    x = np.concatenate(
        [10 ** g.uniform(-30, 6, 2000), g.uniform(0, 30, 2000), 2.0 ** np.arange(-60, 20), [5e-324, 0.0]]
    )
    worst = {"ours": 0.0, "log(1 + x)": 0.0}
    with mpmath.workprec(120):
        for at in x.tolist():
            true = mpmath.log1p(mpmath.mpf(at))
            for name, found in (("ours", log1p(at)), ("log(1 + x)", np.log(1.0 + at))):
                off = abs(mpmath.mpf(float(found)) - true) / np.spacing(float(true))
                worst[name] = max(worst[name], float(off))
    assert worst["ours"] <= 1.0
    assert worst["log(1 + x)"] > 1e6
    assert np.isnan(log1p(np.nan))


@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_given_once_and_made_again(monkeypatch: pytest.MonkeyPatch, soft: bool) -> None:
    g = torch.Generator().manual_seed(2)
    z, y = torch.randn(5, 100, generator=g), torch.tensor([0, 99, -100, 7, 50])
    if soft:
        y = torch.rand(5, 100, generator=g)
    leaf = z.clone().requires_grad_()
    value = cross_entropy(leaf, y, label_smoothing=0.1)
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(value, leaf, retain_graph=True)
    assert torch.equal(second, kept)
    first.zero_()  # what was given away is theirs
    assert torch.equal(torch.autograd.grad(value, leaf, retain_graph=True)[0], kept)
    assert first.data_ptr() != second.data_ptr()
    value.backward(retain_graph=True)
    value.backward()
    assert torch.equal(leaf.grad, 2 * kept)

    scaled = [torch.autograd.grad(factor * cross_entropy(leaf, y), leaf)[0] for factor in (3.0, 0.25, 0.0)]
    ordinary(monkeypatch)
    for factor, dz in zip((3.0, 0.25, 0.0), scaled, strict=True):
        assert torch.equal(dz, torch.autograd.grad(factor * cross_entropy(leaf, y), leaf)[0])
    assert not torch.equal(scaled[0], 3 * kept)


def test_graphs_of_gradients_and_changed_logits() -> None:
    z = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    y = torch.tensor([0, 1, -100, 4])
    q = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for target, smoothing in ((y, 0.0), (y, 0.2), (q, 0.0), (q, 0.2)):
        assert torch.autograd.gradcheck(lambda z, t=target, s=smoothing: cross_entropy(z, t, label_smoothing=s), z)
        assert torch.autograd.gradgradcheck(lambda z, t=target, s=smoothing: cross_entropy(z, t, label_smoothing=s), z)
    work = z.detach().clone().requires_grad_()
    logits = work * 2
    value = cross_entropy(logits, y)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(work.detach(), torch.ones_like(work))
        moved = torch.autograd.forward_ad.unpack_dual(cross_entropy(dual, y)).tangent
    assert abs(moved.item()) < 1e-12  # adding the same to every logit changes nothing
