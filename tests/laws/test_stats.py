"""A part is a commutative monoid under merge: any split of the columns gives the row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossent.compute.backends import reference
from crossent.compute.stats import Part, empty_part, finish, merge, unpack


def part_of(z: Tensor, index: Tensor, weight: Tensor | None) -> Part:
    """The whole part of rows z (n, v), from the reference."""
    fields, gap = reference.part(z.unsqueeze(-1), None, index, None, weight, True, True)
    return unpack(fields, gap, dense=False, uniform=True, entropy=True)


LOGIT = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([0.0, -float("inf"), 1e4, -1e4]))
ROWS = st.lists(LOGIT, min_size=3, max_size=9).filter(lambda row: any(v > -float("inf") for v in row))


def parts(row: list[float], cuts: list[int], y: int, weight: Tensor) -> list[Part]:
    """The parts of consecutive blocks of columns; the target belongs to one of them."""
    z, result = torch.tensor([row]), []
    for start, stop in zip([0, *cuts], [*cuts, len(row)], strict=True):
        if start == stop:
            continue
        inside = start <= y < stop
        part = part_of(z[:, start:stop], torch.tensor([[y - start if inside else 0]]), weight[start:stop])
        nothing = torch.zeros_like(part.held)
        # A block that is -inf throughout has no peak of its own: it is a block of columns that are not allowed.
        if part.peak.item() == -torch.inf:
            missing = {"gap": torch.full_like(part.gap, torch.inf), "held": part.held} if inside else {}
            result.append(Part(**{**vars(empty_part(part)), **missing}))
            continue
        result.append(part if inside else Part(**{**vars(part), "gap": nothing, "held": nothing}))
    return result


def close(a: Part, b: Part) -> bool:
    pairs = zip(finish(a), finish(b), strict=True)
    return all(torch.allclose(x, y, rtol=1e-13, atol=1e-13, equal_nan=True) for x, y in pairs)


@settings(max_examples=200, deadline=None)
@given(row=ROWS, data=st.data())
def test_any_split_of_the_columns_gives_the_row(row: list[float], data: st.DataObject) -> None:
    y = data.draw(st.integers(0, len(row) - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(row)), min_size=1, max_size=3)))
    weight = torch.tensor(data.draw(st.lists(st.floats(0.25, 4), min_size=len(row), max_size=len(row))))
    blocks = parts(row, cuts, y, weight)
    whole = part_of(torch.tensor([row]), torch.tensor([[y]]), weight)
    forwards = backwards = empty_part(whole)
    for block in blocks:
        forwards = merge(forwards, block)
    for block in reversed(blocks):
        backwards = merge(block, backwards)
    assert close(forwards, whole)
    assert close(backwards, whole)


def test_the_comparison_can_fail() -> None:
    weight = torch.ones(4)
    whole = part_of(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[1]]), weight)
    blocks = parts([0.0, 1.0, 2.0, 3.0], [2], 1, weight)
    assert close(merge(*blocks), whole)
    assert not close(merge(blocks[0], blocks[0]), whole)
    for field in vars(whole):
        if field in ("mass", "held"):  # of soft targets, which have a test of their own
            continue
        broken = Part(**{**vars(blocks[1]), field: vars(blocks[1])[field] + 0.01})
        if field == "gap":
            broken = Part(**{**vars(blocks[0]), field: vars(blocks[0])[field] + 0.01})
            assert not close(merge(broken, blocks[1]), whole)
        else:
            assert not close(merge(blocks[0], broken), whole), field


def test_the_empty_part_is_the_identity_to_the_bit() -> None:
    whole = part_of(torch.randn(3, 5), torch.tensor([[0], [1], [4]]), None)
    for merged in (merge(whole, empty_part(whole)), merge(empty_part(whole), whole)):
        assert all(torch.equal(vars(merged)[name], value) for name, value in vars(whole).items() if value is not None)


@pytest.mark.parametrize("at", [0, 1])
def test_nan_survives_a_merge(at: int) -> None:
    z = torch.randn(1, 6)
    z[0, at * 3] = torch.nan
    a, b = (part_of(z[:, i : i + 3], torch.tensor([[0]]), None) for i in (0, 3))
    assert finish(merge(a, b))[1].isnan().all()
    assert finish(merge(b, a))[1].isnan().all()
