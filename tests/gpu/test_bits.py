"""The GPU's kernels held to themselves and to the reference: the same bits wherever and however a row lies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import cross_entropy, linear_cross_entropy
from crossent.compute import backends, losses, operators
from crossent.compute.backends import reference
from tests.compare import bits, faults
from tests.compute.test_cpu_bits import EVERYTHING, back, layouts
from tests.compute.test_cpu_numbers import batch, random
from tests.compute.test_planted import LAYOUTS, targets
from tests.gpu.device import DEVICE, compute, there

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning:triton"),  # numpy, at NaN and infinity
]


def strided(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that nobody has touched, which the system hands out when it is."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.empty(extent, dtype=dtype, device=DEVICE).as_strided(shape, strides)


@pytest.mark.parametrize("kind", ["label", "sparse", "dense", "every column"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernels_are_the_reference_in_every_layout(layout: str, kind: str) -> None:
    z = LAYOUTS[layout][:, :, :21][:40]
    g = torch.Generator().manual_seed(2)
    rows = z.shape[0] * z.shape[2]
    live = torch.rand(rows, generator=g) > 0.2
    live[-1] = True
    weight = torch.rand(z.shape[1], generator=g) + 0.1
    index, q = targets(kind, rows, z)
    given = z, live, index, q, weight
    on_device = tuple(map(there, given))
    exact, exact_gap = reference.part(*given, True, True, True)
    fields, gap = (x.cpu() for x in operators.part(*on_device, True, True, True))
    torch.testing.assert_close(fields[:, live], exact[:, live], rtol=5e-7, atol=0)
    torch.testing.assert_close(gap[live], exact_gap[live], rtol=1e-14, atol=0)
    assert fields[:, ~live].isfinite().all()
    a = torch.rand(gap.shape, generator=g, dtype=torch.float64)
    b, c, d = torch.rand(3, rows, generator=g, dtype=torch.float64)
    for everything in (True, False):
        cotangents = (a, b, c, d) if everything else (a, None, None, None)
        known, _ = reference.part(*given, everything, everything)
        truth = reference.by_row(reference.pull(*given, known, *cotangents))
        dz = operators.pull(*on_device, there(known), *map(there, cotangents))
        assert dz.stride() == torch.empty_like(on_device[0]).stride()
        got = reference.by_row(dz).cpu()
        size = truth.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        assert ((got - truth) / size).abs().max() < 1e-6  # of the row's largest entry
        assert not bits(got[~live]).any()  # +0
        for fault, wrong in faults(got):
            assert ((wrong - truth) / size).abs().max() > 1e-5, fault


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout_has_the_same_bits(dtype: torch.dtype) -> None:
    for v in (3, 65):
        z, y = random(18, v, seed=v).to(dtype), torch.arange(18) % v
        whole = None
        for name, lying in layouts(z):
            loss, dz = compute(lying, y.reshape(lying.shape[0], *lying.shape[2:]), loss=EVERYTHING)
            seen = bits(loss.flatten()), bits(back(dz))
            whole = whole or seen
            assert torch.equal(seen[0], whole[0]), (v, name)
            assert torch.equal(seen[1], whole[1]), (v, name)
        assert not torch.equal(bits(compute(z, y.roll(1))[1]), bits(compute(z, y)[1]))


def test_tiles_batches_and_classes_that_cannot_be_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossent.compute.backends import gpu
    from crossent.compute.backends.gpu.layout import Tile

    z, y = random(13, 40).float(), torch.arange(13) * 3
    z[4] += 1e4  # read about its peak, beside rows that are not
    whole = compute(z, y, loss=EVERYTHING)
    for part in (slice(5), slice(3, 13), slice(4, 5)):
        found = compute(z[part], y[part], loss=EVERYTHING)
        assert all(torch.equal(bits(a), bits(b[part])) for a, b in zip(found, whole, strict=True))
    found = compute(F.pad(z, (0, 30), value=-torch.inf), y, loss=EVERYTHING)
    assert torch.equal(bits(found[0]), bits(whole[0]))
    assert torch.equal(bits(found[1][:, :40].contiguous()), bits(whole[1]))
    assert not found[1][:, 40:].any()
    for tile in (Tile(1, 64, 1), Tile(8, 64, 4)):
        monkeypatch.setattr(gpu, "tile_of", lambda v, inner, along, tile=tile: tile)
        found = compute(z, y, loss=EVERYTHING)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found, whole, strict=True))
    found = compute(torch.nextafter(z, torch.tensor(torch.inf)), y, loss=EVERYTHING)
    assert not any(torch.equal(bits(a), bits(b)) for a, b in zip(found, whole, strict=True))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_class_is_its_label_to_the_bit(dtype: torch.dtype) -> None:
    v = 37
    z, y = batch(v, dtype)
    hot = F.one_hot(y, v).float()
    for weight in (None, torch.linspace(0.5, 2, v)):
        for loss in (losses.NLL(), EVERYTHING):
            hard, soft = (compute(z, target, weight=weight, loss=loss) for target in (y, hot))
            assert torch.equal(bits(hard[0]), bits(soft[0]))
            assert torch.equal(bits(hard[1]), bits(soft[1]))
            assert not torch.equal(hard[0], compute(z, hot.roll(1, -1), weight=weight, loss=loss)[0])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_both_at_a_time_have_the_bits_of_one_after_the_other(dtype: torch.dtype) -> None:
    v = 37
    z, y = batch(v, dtype)
    z, index = there(z.unsqueeze(-1)), there(y.unsqueeze(-1))
    backend = backends.of(z)
    live = there(torch.arange(len(y)) % 5 != 3)
    for uniform in (False, True):
        for alive in (None, live):
            fields, gap, dz = backend.both(z, alive, index, uniform, 0.3, 0.1)
            read = backend.part(z, alive, index, None, None, uniform, False)
            assert torch.equal(bits(fields), bits(read[0]))
            assert torch.equal(bits(gap), bits(read[1]))
            a = torch.full((len(y), 1), 0.3, dtype=torch.float64, device=DEVICE)
            c = torch.full((len(y),), 0.1, dtype=torch.float64, device=DEVICE) if uniform else None
            pulled = backend.pull(z, alive, index, None, None, fields, a, None, c, None)
            assert torch.equal(bits(dz), bits(pulled))
            in_place = z.clone()
            of_device = (torch.tensor(x, dtype=torch.float64, device=DEVICE) for x in (0.3, 0.1))
            assert backend.both(in_place, alive, index, uniform, *of_device, out=in_place)[2] is in_place
            assert torch.equal(bits(in_place), bits(dz))
            over = z.clone()
            backend.pull(over, alive, index, None, None, fields, a, None, c, None, out=over)
            assert torch.equal(bits(over), bits(dz))
            kept = torch.full_like(z, 7.0)
            for g, unless in ((1.0, True), (2.0, False)):
                given = torch.tensor(g, device=DEVICE)
                backend.pull(z, alive, index, None, None, fields, a, None, c, None, out=kept, unless=given)
                assert bool((kept == 7.0).all()) == unless


def test_more_than_two_to_the_31_places_apart() -> None:
    z = random(3, 5).to(torch.bfloat16)
    y = torch.tensor([4, 0, 2])
    whole = compute(z, y)
    for strides in ((7, 2**29 + 1, 1), (2**30 + 1, 1, 1), (1, 2**29 + 8, 1)):
        far = strided((3, 5, 1), strides, torch.bfloat16)
        out = strided((3, 5, 1), strides, torch.bfloat16)
        far.copy_(z.unsqueeze(-1))
        fields, gap = operators.part(far, None, there(y[:, None]), None, None, False, False)
        a = torch.ones(3, 1, dtype=torch.float64, device=DEVICE)
        backends.of(far).pull(far, None, there(y[:, None]), None, None, fields, a, None, None, None, out)
        assert torch.equal(bits(out[..., 0]).cpu(), bits(whole[1]))
        assert torch.equal((gap[:, 0] + fields[1].log1p()).float().cpu(), whole[0])


def test_special_values_stay_in_their_row() -> None:
    z = random(6, 40).float()
    z[1, 7], z[2, 39], z[3, 0] = torch.nan, torch.inf, -torch.inf
    z[4] = -torch.inf
    loss, dz = compute(z, torch.tensor([0, 0, 0, 0, 0, 0]))
    assert loss.isnan().tolist() == [False, True, True, False, True, False]
    assert loss[3] == torch.inf
    assert dz.isnan().any(-1).tolist() == [False, True, True, False, True, False]
    assert dz[3, 0] == -1
    assert bits(dz[5, -1:]).abs() > 0


@pytest.mark.usefixtures("tiles")
def test_rows_that_are_ignored_are_not_read_and_labels_that_are_none_reach_nothing() -> None:
    z = random(9, 37).float()
    z[4] = torch.nan
    y = torch.arange(9)
    y[4] = -100
    leaf = there(z).requires_grad_()
    value = cross_entropy(leaf, there(y), label_smoothing=0.1)
    (dz,) = torch.autograd.grad(value, leaf)
    keep = torch.arange(9) != 4
    exact = cross_entropy(there(z[keep]), there(y[keep]), label_smoothing=0.1)
    assert torch.equal(bits(value), bits(exact))
    assert not bits(dz[4]).any()
    assert dz[keep].isfinite().all()
    index = there(torch.tensor([[3], [37], [-1], [2**40]]))
    _, gap = operators.part(there(z[:4, :, None]), None, index, None, None, False, False)
    assert gap[:, 0].isnan().tolist() == [False, True, True, True]
    fields = torch.ones(2, 4, dtype=torch.float64, device=DEVICE)
    dz = operators.pull(there(z[:4, :, None]), None, index, None, None, fields, gap.nan_to_num(), None, None, None)
    assert dz.isfinite().all()


def test_the_operators_pass_torchs_own_check() -> None:
    z, index = there(torch.randn(2, 4, 3)), there(torch.randint(4, (6, 1)))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.part, (z, None, index, None, None, True, True), test_utils=tests)
    fields, gap = operators.part(z, None, index, None, None, True, True)
    more = there(torch.rand(3, 6, dtype=torch.float64))
    pull = (z, None, index, None, None, fields, torch.rand_like(gap), *more)
    torch.library.opcheck(operators.pull, pull, test_utils=tests)


def test_a_head_is_its_logits() -> None:
    x, w, y = random(10, 6).float(), random(20, 6, seed=1).float(), torch.arange(10)
    y[3] = -100
    found = []
    for call in (
        lambda x, w: linear_cross_entropy(x, w, there(y), chunk_rows=4),
        lambda x, w: cross_entropy(F.linear(x, w), there(y)),
    ):
        leaves = [there(t).clone().requires_grad_() for t in (x, w)]
        value = call(*leaves)
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # float32 sums of ten rows in another order
    assert found[0][1][0].abs().max() > 1e-3


def test_addresses_are_those_of_the_strides() -> None:
    from crossent.compute.backends.gpu.layout import layout_of

    seen = set()
    for _, lying in layouts(random(18, 40)):
        z = lying.unsqueeze(-1) if lying.dim() == 2 else lying.flatten(2)
        layout = layout_of(z, torch.empty_like(z))
        assert layout.outer * layout.inner == z.shape[0] * z.shape[2]
        seen.add((layout.along(0), layout.unit, layout.outer > 1))
        for at, tensor in enumerate((z, torch.empty_like(z))):
            of_groups, columns, rows, along = layout.given(at)
            units = [layout.unit] * 3
            units[along] = 1 if along else units[along]
            for r in range(0, 18, 5):
                group, row = divmod(r, layout.inner)
                steps = group * of_groups * units[0] + 7 * columns * units[1] + row * rows * units[2]
                i, j = divmod(r, z.shape[2])
                assert steps == i * tensor.stride(0) + 7 * tensor.stride(1) + j * tensor.stride(2)
    assert {along for along, _, _ in seen} == {0, 1, 2}
    assert {unit for _, unit, _ in seen} >= {1, 2, 8}
    assert {grouped for _, _, grouped in seen} == {False, True}


def of_a_number(call, *tensors: Tensor) -> tuple[Tensor, ...]:
    leaves = [there(t).clone().requires_grad_() for t in tensors]
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("validate", ["full", "off"])
def test_a_number_has_the_bits_of_the_long_way_whatever_it_is_multiplied_by(validate: str) -> None:
    z, y = random(9, 37).float(), torch.arange(9) * 4
    y[3] = -100
    ones = there(torch.ones(37))
    for reduction in ("mean", "sum"):
        for scale in (1.0, 4.0):  # a power of two, so that it does not matter when it is multiplied in

            def call(z: Tensor, weight: Tensor | None, reduction: str = reduction, scale: float = scale) -> Tensor:
                given = {"label_smoothing": 0.1, "reduction": reduction, "validate": validate}
                return scale * cross_entropy(z, there(y), weight, **given)

            at_once = of_a_number(lambda z, call=call: call(z, None), z)
            apart = of_a_number(lambda z, call=call: call(z, ones), z)  # weights of 1 take the long way
            for a, b in zip(at_once, apart, strict=True):
                torch.testing.assert_close(a, b, rtol=3e-7, atol=0)  # 1 / n, n with a rounding more or less
            assert torch.equal(bits(at_once[0]), bits(apart[0]))
            assert not bits(at_once[1][3]).any()
    leaf = there(z).requires_grad_()
    value = cross_entropy(leaf, there(y), validate=validate)
    first = torch.autograd.grad(value, leaf, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(value, leaf)[0], first)


def test_a_label_that_nobody_looked_at_makes_its_row_nan() -> None:
    z, x, w = random(4, 7).float(), random(4, 3).float(), random(7, 3, seed=1).float()
    y = there(torch.tensor([0, 7, -100, 6]))
    value, dz = of_a_number(lambda z: cross_entropy(z, y, reduction="sum", validate="off"), z)
    assert value.isnan()
    assert dz.isnan().all(-1).tolist() == [False, True, False, False]
    assert dz[[0, 2, 3]].isfinite().all()
    value, dx, _ = of_a_number(lambda x, w: linear_cross_entropy(x, w, y, reduction="sum", validate="off"), x, w)
    assert value.isnan()
    assert dx.isnan().any(-1).tolist() == [False, True, False, False]
    right = there(torch.tensor([0, 5, -100, 6]))
    checked, unchecked = (
        of_a_number(lambda x, w, v=v: linear_cross_entropy(x, w, right, validate=v), x, w) for v in ("full", "off")
    )
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(checked, unchecked, strict=True))


@pytest.mark.parametrize("validate", ["full", "off"])
def test_nothing_that_counts_is_0_or_what_was_asked_for(validate: str) -> None:
    z, x, w, y = random(3, 7).float(), random(3, 2).float(), random(7, 2).float(), there(torch.full((3,), -100))
    for call, tensors in ((cross_entropy, (z,)), (linear_cross_entropy, (x, w))):
        value, *gradients = of_a_number(lambda *t, call=call: call(*t, y, validate=validate), *tensors)
        assert value == 0
        assert not any(bits(g.abs()).any() for g in gradients)
        assert of_a_number(lambda *t, call=call: call(*t, y, empty="nan", validate=validate), *tensors)[0].isnan()
        with pytest.raises(ValueError, match="no row has any weight"):
            call(*(there(t).requires_grad_() for t in tensors), y, empty="raise", validate=validate)
