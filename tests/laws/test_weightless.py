"""Rows of weight 0, wherever they stand and whatever they hold, change nothing: no number, table, curve or choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from crossent import DataError, calibrate, compare, evaluate
from crossent.measure import Predictions

N, MORE = 240, 40


def drawn(classes: int, soft: bool, grouped: bool, named: bool, seed: int = 0):
    """Rows that are too sure of themselves, and the same with rows of weight 0 between them."""
    rng = np.random.default_rng([classes, soft, grouped, seed])
    p = rng.dirichlet(np.full(classes, 0.5), N)
    true = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    y = rng.dirichlet(np.ones(classes), N) if soft else (true.cumsum(axis=1) < rng.random((N, 1))).sum(axis=1)
    weight = rng.choice([0.5, 1.0, 2.0], N)
    at = np.sort(rng.integers(0, N + 1, MORE))
    beside = {"weight": (weight, np.zeros(MORE))}
    if grouped:
        beside["group"] = np.arange(N) // 8, rng.integers(25, 40, MORE)  # of some that are there and some that are not
    if named:
        beside["rows"] = np.array([f"r{i:04}" for i in range(N)]), np.array([f"n{i:04}" for i in range(MORE)])
    nothing = np.eye(classes)[rng.integers(classes, size=MORE)]  # zeros, some of them at the label
    extra = rng.dirichlet(np.ones(classes), MORE) if soft else rng.integers(classes, size=MORE)

    def among(cells, more):
        return np.insert(cells, at, more, axis=0)

    without = (p, y, {name: cells for name, (cells, _) in beside.items()})
    return without, (among(p, nothing), among(y, extra), {name: among(*both) for name, both in beside.items()})


def everything(record, but=()):
    """All that a record holds, as plain numbers and texts by name."""
    found = {name: (one.value, one.low, one.high, one.n) for name, one in record.numbers.items()}
    for name, table in record.tables.items():
        found |= {f"{name}.{column}": tuple(cells) for column, cells in table.items()}
    for name, curve in record.curves.items():
        found |= {f"{name} x": tuple(curve.x), f"{name} y": tuple(curve.y)}
    found |= {name: fact for name, fact in record.facts.items() if name not in ("notes", "source")}
    return {name: cells for name, cells in found.items() if name not in but}


def off(one, other):
    """The names under which two of these differ by more than rounding."""
    return [name for name in one.keys() | other.keys() if not _alike(one.get(name), other.get(name))]


def _alike(a, b):
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return a == b or abs(a - b) <= 1e-12 * max(1.0, abs(a))
    return a == b


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_what_weighs_nothing_changes_no_number(classes, soft, grouped, named):
    (p, y, beside), (more_p, more_y, more_beside) = drawn(classes, soft, grouped, named)
    slices = {"half": np.where(np.arange(N) % 3, "a", "b")}
    at = more_beside["weight"] > 0
    more_slices = np.full(N + MORE, "c")
    more_slices[at] = slices["half"]
    by, more_by = ({"by": slices}, {"by": {"half": more_slices}}) if named or not soft else ({}, {})
    # Without ids rows are known by their place, and it is said truly; so costliest rows have other names.
    but = () if named else ("costliest.row",)
    one = everything(evaluate(p, y, **beside, **by), but)
    other = evaluate(more_p, more_y, **more_beside, **more_by)
    assert off(one, everything(other, but)) == []
    assert "Some rows have weight 0 and count for nothing." in other.facts["notes"]
    # It can fail: the same rows with the least of weights are seen.
    seen = {**more_beside, "weight": np.where(at, more_beside["weight"], 1e-3)}
    assert len(off(one, everything(evaluate(more_p, more_y, **seen, **more_by), but))) > 10


@pytest.mark.parametrize("classes", [2, 3])
def test_what_weighs_nothing_changes_neither_comparison_nor_choice(classes):
    (p, y, beside), (more_p, more_y, more_beside) = drawn(classes, False, True, True)

    def cooler(p):
        return np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)

    one = compare({"a": p, "b": cooler(p)}, labels=y, **beside)
    other = compare({"a": more_p, "b": cooler(more_p)}, labels=more_y, **more_beside)
    assert off(everything(one), everything(other)) == []
    del beside["rows"], more_beside["rows"]
    p, more_p = (x**3 / (x**3).sum(axis=1, keepdims=True) for x in (p, more_p))
    chosen, again = calibrate(p, y, **beside), calibrate(more_p, more_y, **more_beside)
    assert chosen.kind == again.kind != "none"
    assert chosen(p) == pytest.approx(again(p), abs=1e-12)
    assert off(chosen.choice.table, again.choice.table) == []


def test_a_place_gives_the_same_folds_whatever_was_left_out_between():
    """Folds are drawn by the order of whole numbers: by their hashes, 3 classes moved by some 10⁻³ nats."""
    (p, y, _), (more_p, more_y, beside) = drawn(3, False, False, False)
    here = beside["weight"] > 0
    places = np.flatnonzero(here)
    one = evaluate(p, y)["miscalibration"].value
    assert evaluate(more_p[here], more_y[here], rows=places)["miscalibration"].value == one
    assert evaluate(p, y, rows=np.array([f"r{i}" for i in range(N)]))["miscalibration"].value != one


def test_batches_without_weight_are_as_if_they_had_not_come():
    (p, y, beside), _ = drawn(3, False, True, True)
    rows = Predictions.from_arrays(p, y, weights=beside["weight"], rows=beside["rows"], groups=beside["group"])
    nothing = replace(rows, weights=np.zeros(N), rows=np.array([f"n{i}" for i in range(N)]))
    alone = everything(evaluate(iter([rows])))
    for batches in ([nothing, rows], [rows, nothing], [nothing, nothing, rows]):
        assert off(alone, everything(evaluate(iter(batches)))) == []
    with pytest.raises(DataError, match="all weights are 0, so that nothing is left to measure"):
        evaluate(iter([nothing]))
