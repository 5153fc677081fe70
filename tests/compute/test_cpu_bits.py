"""The CPU kernels held to themselves: the same bits however rows lie, and special values that stay where they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from crossent import cross_entropy, sparse
from crossent.compute import losses
from tests.compare import bits
from tests.compute.test_cpu_numbers import FLOATS, batch, compute, random

EVERYTHING = losses.NLL() + 0.1 * losses.Confidence() + 1e-3 * losses.LogZ() + losses.Smoothed(0.1)
SIZES = [1, 2, 3, 10, 63, 64, 65, 127, 128, 129, 1000]


def layouts(z: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The rows z (n, v) in memory in every way there is; n is a multiple of 6."""
    n, v = z.shape
    yield "side by side", z.contiguous()
    yield "every other row", torch.stack((z, z + 1), 1).flatten(0, 1)[::2]
    yield "every other column", torch.stack((z, z + 1), 2).flatten(1)[:, ::2]
    yield "a window", torch.nn.functional.pad(z, (3, 5, 1, 2))[1 : n + 1, 3 : v + 3]
    yield "transposed", z.T.contiguous().T
    for rows in (6, n):
        apart = z.reshape(-1, rows, v).movedim(-1, 1)
        yield "channels first", apart.contiguous()
        yield "channels last", apart
    yield "channels first, a window", torch.nn.functional.pad(apart, (1, 2, 2, 1))[:, 2 : v + 2, 1:-2]
    yield "channels first, every other", apart.repeat_interleave(2, -1)[..., ::2]
    yield "pictures", z.reshape(-1, 2, 3, v).movedim(-1, 1).contiguous()
    yield "pictures, channels last", z.reshape(-1, 2, 3, v).movedim(-1, 1).contiguous(memory_format=torch.channels_last)
    yield "a last dimension of 1", z.unsqueeze(-1)
    yield "columns last but one of three", z.T.contiguous().T.unsqueeze(-1)


def back(x: Tensor) -> Tensor:
    """(n, v, …) → rows (n, v)."""
    return x.reshape(*x.shape[:2], -1).movedim(1, -1).flatten(0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int16], ids=lambda d: np.dtype(d).name)
def test_squares_are_turned_and_nothing_beside_them(dtype: type) -> None:
    from numba import njit

    from crossent.compute.backends.cpu.square import SIDE, square

    @njit
    def turned(x: np.ndarray, at: int, lines: int, width: int, y: np.ndarray, to: int) -> None:
        square(x, at, 21, lines, width, y, to, 37)

    x = np.arange(500).astype(dtype)
    for lines in range(1, SIDE + 1):
        for width in (1, 2, 9, SIDE):
            y, expected = np.full(700, 999).astype(dtype), np.full(700, 999).astype(dtype)
            for j in range(width):
                expected[5 + 37 * j : 5 + 37 * j + lines] = x[3 + j : 3 + j + 21 * lines : 21][:lines]
            turned(x, 3, lines, width, y, 5)
            assert np.array_equal(y, expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_layout_has_the_same_bits(dtype: torch.dtype) -> None:
    for v in SIZES:
        z, y = random(18, v, seed=v).to(dtype), torch.arange(18) % v
        q = random(18, v, seed=3).abs().float()
        q[3:5] = 0
        q[4, v // 2] = 1
        weight = torch.linspace(0.5, 2, v)
        for soft in (False, True):
            whole = None
            for name, lying in layouts(z):
                target = y.reshape(lying.shape[0], *lying.shape[2:])
                if soft:
                    target = back(q[:, :, None]).reshape(lying.shape[0], *lying.shape[2:], v).movedim(-1, 1)
                assert torch.equal(back(lying), z)
                loss, dz = compute(lying, target, weight=weight, loss=EVERYTHING)
                assert dz.shape == lying.shape
                seen = bits(loss.flatten()), bits(back(dz))
                whole = whole or seen
                assert torch.equal(seen[0], whole[0]), (v, name, soft)
                assert torch.equal(seen[1], whole[1]), (v, name, soft)
        if v > 1:
            assert not torch.equal(bits(compute(z, y.roll(1))[1]), bits(compute(z, y)[1]))


@pytest.mark.parametrize("v", [3, 100])
def test_a_row_shared_by_many_is_read_as_many(v: int) -> None:
    row, y = random(1, v).float(), torch.arange(40) % v
    for shared in (row.expand(40, v), row[:, :1].expand(40, v), row[0, 0].expand(40, v)):
        a, b = compute(shared, y), compute(shared.clone(), y)
        assert torch.equal(bits(a[0]), bits(b[0]))
        assert torch.equal(bits(a[1]), bits(b[1]))
        assert not torch.equal(a[1], compute(shared, y.roll(1))[1])
    leaf = row.clone().requires_grad_()  # through expand the gradient of the shared row is the sum
    (dz,) = torch.autograd.grad(cross_entropy(leaf.expand(40, v), y, reduction="sum"), leaf)
    assert torch.equal(dz, compute(row.expand(40, v), y)[1].sum(0, keepdim=True))


@pytest.mark.parametrize("v", [2, 21, 64, 65, 300, 1000])
def test_threads_position_and_batch_change_no_bit(v: int) -> None:
    n = 300_000 // v  # several blocks for each thread
    z, y, before = random(n, v).float(), torch.arange(n) % v, torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(compute(z, y, loss=EVERYTHING))
            seen.append(compute(z.T.contiguous().T[None].movedim(2, 1).contiguous(), y[None], loss=EVERYTHING))
    finally:
        torch.set_num_threads(before)
    for loss, dz in seen:
        assert torch.equal(bits(loss.flatten()), bits(seen[0][0]))
        assert torch.equal(bits(back(dz)), bits(seen[0][1]))
    for at in (0, 1, 255, 256, n // 2, n - 1):
        for rows in (slice(at, at + 1), slice(at, at + 7), slice(max(0, at - 300), at + 1)):
            loss, dz = compute(z[rows], y[rows], loss=EVERYTHING)
            assert torch.equal(bits(loss), bits(seen[0][0][rows]))
            assert torch.equal(bits(dz), bits(seen[0][1][rows]))
    assert not torch.equal(bits(seen[0][1][:1]), bits(seen[0][1][1:2]))


@pytest.mark.parametrize(
    ("v", "padded"), [(2, 3), (3, 64), (10, 11), (63, 64), (65, 66), (65, 128), (127, 129), (130, 4096), (1000, 1024)]
)
def test_classes_that_cannot_be_change_no_bit_at_the_end(v: int, padded: int) -> None:
    for dtype in FLOATS:
        z, y = batch(v, dtype)
        longer = torch.nn.functional.pad(z, (0, padded - v), value=-torch.inf)
        a, b = (compute(x, y, loss=EVERYTHING) for x in (z, longer))
        assert torch.equal(bits(a[0]), bits(b[0]))
        assert torch.equal(bits(a[1]), bits(b[1][:, :v].contiguous()))
        assert not b[1][:, v:].any()
        assert not torch.equal(a[1], compute(torch.nn.functional.pad(z, (0, 1), value=-20.0), y)[1][:, :v])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_class_is_its_label_to_the_bit(dtype: torch.dtype) -> None:
    for v in (1, 2, 10, 64, 65, 129, 1000):
        z, y = batch(v, dtype)
        hot = torch.nn.functional.one_hot(y, v)
        for weight in (None, torch.linspace(0.5, 2, v)):
            for loss in (losses.NLL(), losses.Smoothed(0.1), losses.Focal(2.0), EVERYTHING):
                hard = compute(z, y, weight=weight, loss=loss)
                for target in (hot.to(dtype), hot.float(), sparse(y[:, None], torch.ones(len(y), 1), v)):
                    soft = compute(z, target, weight=weight, loss=loss)
                    assert torch.equal(bits(hard[0]), bits(soft[0])), (v, loss)
                    assert torch.equal(bits(hard[1]), bits(soft[1])), (v, loss)
                if v > 1:
                    assert not torch.equal(hard[0], compute(z, hot.roll(1, -1).float(), loss=loss)[0])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_mean_at_once_has_the_bits_of_the_long_way(dtype: torch.dtype) -> None:
    """Weights of 1 take the long way, and so do rows that are not reduced."""
    for v in SIZES:
        z, y = batch(v, dtype)
        rows = z[: len(z) // 6 * 6]
        y = torch.where(torch.arange(len(rows)) % 5 == 3, -100, y[: len(rows)])
        for name, lying in layouts(rows):
            label = y.reshape(lying.shape[0], *lying.shape[2:])
            for smoothing in (0.0, 0.1):
                for reduction in ("mean", "sum"):
                    seen = []
                    for weight in (None, torch.ones(v)):
                        leaf = lying.detach().requires_grad_()
                        value = cross_entropy(
                            leaf, label, weight, label_smoothing=smoothing, reduction=reduction, validate="off"
                        )
                        seen.append((bits(value), bits(torch.autograd.grad(value, leaf)[0])))
                    assert torch.equal(seen[0][0], seen[1][0]), (v, name, smoothing, reduction)
                    assert torch.equal(seen[0][1], seen[1][1]), (v, name, smoothing, reduction)
    assert not torch.equal(bits(value), bits(cross_entropy(lying, label, reduction="mean")))


# --- special values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("v", [2, 10, 65, 300])
def test_what_is_no_number_poisons_its_own_row(v: int, dtype: torch.dtype) -> None:
    z, y = random(9, v).to(dtype), torch.arange(9) % v
    for loss in (losses.NLL(), EVERYTHING):
        clean = compute(z, y, loss=loss)
        for at in (0, v // 2, v - 1):
            for poison in (torch.nan, -torch.nan, torch.inf, None):
                dirty = z.clone()
                if poison is None:
                    dirty[4] = -torch.inf
                else:
                    dirty[4, at] = poison
                value, dz = compute(dirty, y, loss=loss)
                assert value[4].isnan()
                assert dz[4].isnan().all()
                for a, b in zip((value, dz), clean, strict=True):
                    assert torch.equal(bits(a[[0, 1, 2, 3, 5, 6, 7, 8]]), bits(b[[0, 1, 2, 3, 5, 6, 7, 8]]))


@pytest.mark.parametrize("v", [2, 10, 65, 300])
def test_ignored_rows_are_never_read(v: int) -> None:
    z, y = random(8, v).float(), torch.arange(8) % v
    q, live = torch.rand(8, v), torch.arange(8) % 3 != 1
    for target, name in ((y, "labels"), (q, "soft")):
        for loss in (losses.NLL(), losses.Focal(2.0), EVERYTHING):
            clean = compute(z, target, mask=live, loss=loss)
            for poison in (torch.nan, torch.inf, -torch.inf):
                dirty, weights = torch.where(live[:, None], z, poison), target
                if name == "soft":
                    weights = torch.where(live[:, None], q, torch.nan)
                value, dz = compute(dirty, weights, mask=live, loss=loss)
                assert torch.equal(bits(value), bits(clean[0])), (name, loss)
                assert torch.equal(bits(dz), bits(clean[1])), (name, loss)
                assert not bits(dz[~live]).any()
                assert compute(dirty, target, loss=loss)[0].isnan().any()  # read, they would be seen


@pytest.mark.parametrize("v", [2, 10, 65, 300])
def test_a_target_that_cannot_be_costs_infinity(v: int) -> None:
    z, y = random(3, v).float(), torch.full((3,), v - 1)
    z[1, v - 1] = -torch.inf
    for target in (y, torch.nn.functional.one_hot(y, v).float(), torch.full((3, v), 1 / v)):
        value, dz = compute(z, target)
        assert value.isinf().tolist() == [False, True, False]
        assert dz.isfinite().all()
        assert dz[1, v - 1] == (-1 / v if target.dim() == 2 and target[0, 0] else -1) or v == 2


# --- nothing, and very much -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (0, 100), (2, 3, 0), (0, 3, 4), (2, 100, 0, 5)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    z, y = torch.empty(shape), torch.empty((shape[0], *shape[2:]), dtype=torch.long)
    for target in (y, torch.empty(shape)):
        loss, dz = compute(z, target, loss=EVERYTHING)
        assert loss.shape == y.shape
        assert dz.shape == shape


def test_one_class_is_sure() -> None:
    for dtype in FLOATS:
        loss, dz = compute(torch.tensor([[3.0], [-1e4], [0.0]], dtype=dtype), torch.zeros(3, dtype=torch.long))
        assert not bits(loss.abs()).any()
        assert not bits(dz.abs()).any()


@pytest.mark.huge
@pytest.mark.parametrize("shape", [(2**15 + 1, 2**16, 1), (1, 64, 2**25 + 3), (2**26 + 5, 32, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_more_than_2_to_the_31_logits(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """Offsets beyond 32 bits; takes 10 GiB. Run with: pytest -m huge."""
    n, v, inner = shape
    z = torch.zeros(shape, dtype=dtype)
    assert z.numel() > 2**31
    last = random(3, v).to(dtype)
    z.movedim(1, -1).reshape(-1, v)[-3:] = last if inner == 1 else 0
    if inner > 1:
        z[0, :, -3:] = last.T
    y = torch.zeros(n, inner, dtype=torch.long)
    y.view(-1)[-3:] = torch.tensor([1, v // 2, v - 1])
    loss, dz = compute(z, y)
    small, gradient = compute(last, torch.tensor([1, v // 2, v - 1]))
    assert torch.equal(bits(loss.flatten()[-3:]), bits(small))
    assert torch.equal(bits(dz[0, :, -3:].T if inner > 1 else dz[-3:, :, 0]), bits(gradient))
    flat, sure = compute(torch.zeros(1, v, dtype=dtype), torch.tensor([0]))
    assert torch.equal(loss.flatten()[:-3], flat.expand(n * inner - 3))
    some = torch.arange(0, n * inner - 3, 9973)
    assert torch.equal(dz[0, :, some].T if inner > 1 else dz[some, :, 0], sure.expand(len(some), v))
    assert not torch.equal(small, flat.expand(3))
