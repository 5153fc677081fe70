"""The laws of a tally: identity, associative, commutative, any split, any dtype, pickles, processes."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from crossent.errors import DataError
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.distinct import Distinct, code
from crossent.measure.sums.histograms import Histograms, narrow_code
from crossent.measure.tally.tally import Tally

KINDS = ("binary", "soft binary", "range", "classes", "soft classes", "zeros", "logs")


def drawn(kind: str, n: int, seed: int, weighted: bool = False, grouped: bool = False, sliced: bool = False):
    """Rows of one kind, with whatever may come with them."""
    rng = np.random.default_rng(seed)
    k = 4 if "classes" in kind or kind == "zeros" else 2
    p = rng.dirichlet([0.4] * k, size=n)
    labels: np.ndarray = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    logs = None
    if kind == "zeros":
        p = np.where(p < 0.05, 0.0, p)
        p /= p.sum(axis=1, keepdims=True)
    if kind in ("soft binary", "range"):
        labels = rng.random(n)
    if kind == "soft classes":
        labels = rng.dirichlet([0.3] * k, size=n)
    if kind == "logs":
        z = rng.normal(0, 30, (n, 2))
        logs = z - np.logaddexp(z[:, :1], z[:, 1:])
        p = np.exp(logs)
    task = "range" if kind == "range" else "binary" if k == 2 else "multi-class"
    ends = (2.0, 7.0) if task == "range" else (None, None)
    return Predictions(
        p, labels, [] if task == "range" else [str(c) for c in range(k)], np.arange(n), task, *ends,
        log_probabilities=logs,
        weights=rng.gamma(2.0, size=n) if weighted else None,
        groups=rng.integers(max(2, n // 4), size=n) if grouped else None,
        slices={"city": np.array(["Rome", "Oslo", "Lima"], dtype=object)[rng.integers(3, size=n)]} if sliced else {},
        bytes=rng.integers(1, 9, size=n) if weighted else None,
    )  # fmt: skip


def part(rows: Predictions, which) -> Predictions:
    def cut(x):
        return None if x is None else x[which]

    return replace(
        rows, probabilities=rows.probabilities[which], labels=rows.labels[which], rows=rows.rows[which],
        log_probabilities=cut(rows.log_probabilities), weights=cut(rows.weights), groups=cut(rows.groups),
        slices={name: cells[which] for name, cells in rows.slices.items()}, bytes=cut(rows.bytes),
    )  # fmt: skip


def state(tally: Tally) -> dict[str, np.ndarray]:
    """Everything that numbers are made from, as arrays by name."""
    found = {"sums": tally.sums.floats.value, "counts": tally.sums.counts, "by cost": tally.by_cost.value}
    found["bins"] = tally.bins.value
    found |= {} if tally.class_bins is None else {"bins of classes": tally.class_bins.value}
    kept = {} if tally.predicted is None else {"predicted": tally.predicted.cells}
    kept |= {} if tally.by_class is None else {"by class": tally.by_class}
    for name, cells in kept.items():
        found |= {f"{name} {what}": getattr(cells, what) for what in ("weight", "label", "prediction", "squares")}
    if tally.predicted is not None:
        found |= {"keys": tally.predicted.keys, "bits dropped": np.array(tally.predicted.drop)}
    if tally.sample is not None:
        kept_rows = ("keys", "logs", "labels", "weights", "slices")
        found |= {f"sample {what}": getattr(tally.sample, what) for what in kept_rows}
    if tally.groups is not None:
        found |= {"groups": tally.groups.keys, "by group": tally.groups.sums.value}
        found |= {} if tally.groups.folds is None else histograms("folds", tally.groups.folds)
    for name, slices in tally.slices.items():
        found |= {name: np.array(slices.values), f"sums of {name}": slices.sums.floats.value}
        found |= {} if slices.folds is None else {f"folds of {name}": slices.folds.sums.value}
        found |= {} if slices.bins is None else {f"bins of {name}": slices.bins.value}
        found |= {} if slices.predicted is None else histograms(f"predicted of {name}", slices.predicted)
        found |= {} if slices.curves is None else histograms(f"curves of {name}", slices.curves)
    found |= {} if tally.class_folds is None else {"folds of classes": tally.class_folds.sums.value}
    found["costliest"] = np.array([(row[0], row[2]) for row in tally.costliest])
    return found


def histograms(name: str, of: Histograms) -> dict[str, np.ndarray]:
    return {f"{name} sums": of.cells.sums.value, f"{name} keys": of.keys, f"{name} bits dropped": of.drop}


def apart(one: Tally, other: Tally) -> float:
    """The largest difference of two tallies, beside the size of what differs; infinite where more than that differs."""
    worst, mine, theirs = 0.0, state(one), state(other)
    if mine.keys() != theirs.keys():
        return np.inf
    for name, x in mine.items():
        y = theirs[name]
        if x.shape != y.shape:
            return np.inf
        if x.dtype.kind in "fiu":
            with np.errstate(invalid="ignore"):
                off = np.abs(x.astype(float) - y.astype(float)) / np.maximum(np.abs(x.astype(float)), 1e-9)
            same = x == y  # infinities are
            worst = max(worst, float(np.max(np.where(same, 0.0, off), initial=0.0)))
        elif not np.array_equal(x, y):
            return np.inf
    return worst


def added(rows: Predictions, cuts: list[int], order: list[int] | None = None, capacity: int = 50) -> Tally:
    """The tally of rows cut at these places, the pieces added in this order."""
    ends = [0, *sorted(cut % (len(rows) + 1) for cut in cuts), len(rows)]
    tally = Tally.like(rows, capacity=capacity)
    for piece in order or range(len(ends) - 1):
        tally = tally.add(part(rows, slice(ends[piece], ends[piece + 1])))
    return tally


KIND = {"kind": st.sampled_from(KINDS), "n": st.integers(1, 300), "seed": st.integers(0, 2**31)}
EXTRA = {name: st.booleans() for name in ("weighted", "grouped", "sliced")}


@settings(max_examples=80, deadline=None)
@given(cuts=st.lists(st.integers(0, 1000), max_size=5), shuffled=st.randoms(), **KIND, **EXTRA)
def test_any_split_in_any_order_gives_the_same_tally(cuts, shuffled, kind, n, seed, weighted, grouped, sliced):
    rows = drawn(kind, n, seed, weighted, grouped, sliced)
    order = list(range(len(cuts) + 1))
    shuffled.shuffle(order)
    whole = added(rows, [])
    assert apart(whole, added(rows, cuts, order)) <= 1e-12
    if n > 1:  # it can fail: a row left out
        assert apart(whole, added(part(rows, slice(1, None)), cuts, order)) > 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 1000), max_size=5),
    st.sampled_from([2, 7, 50, 200]),
    st.integers(1, 400),
    st.integers(0, 99),
)
def test_cells_are_as_fine_as_all_rows_together_allow(cuts, most, n, seed):
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(n) < 0.5, expit(rng.normal(0, rng.choice([1e-3, 2, 30]), n)), rng.integers(0, 11, n) / 10)
    y = rng.random(n) < p
    whole = Distinct.none(most).of(p, 1 - p, y, None)
    ends = [0, *sorted(cut % (n + 1) for cut in cuts), n]
    parts, running = Distinct.none(most), Distinct.none(most)
    for begin, end in pairwise(ends):
        if end > begin:
            here = slice(begin, end)
            parts = Distinct.none(most).of(p[here], 1 - p[here], y[here], None) + parts
            running = running + running.of(p[here], 1 - p[here], y[here], None)
    for other in (parts, running):
        assert (other.drop, other.keys.tolist()) == (whole.drop, whole.keys.tolist())
        assert np.array_equal(other.cells.weight, whole.cells.weight)
        assert np.array_equal(other.cells.label, whole.cells.label)
        assert np.allclose(other.cells.prediction, whole.cells.prediction, rtol=1e-13, atol=0)
    assert whole.keys.size <= most
    if whole.drop:  # one bit more would have been too many
        finer = np.unique(code(p, 1 - p, whole.drop - 1)).size
        assert finer > most


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 1000), max_size=5),
    st.sampled_from([2, 7, 50, 200]),
    st.integers(1, 400),
    st.integers(0, 99),
)
def test_cells_of_every_line_are_as_fine_as_its_own_rows_allow(cuts, most, n, seed):
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(n) < 0.5, expit(rng.normal(0, rng.choice([1e-3, 2, 30]), n)), rng.integers(0, 11, n) / 10)
    y, line = rng.random(n) < p, np.minimum(rng.geometric(0.5, n) - 1, 3)

    def of(which) -> Histograms:
        return Histograms.of(line[which], narrow_code(p, 1 - p)[which], 4, p[which], y[which], None, most)

    whole = of(slice(None))
    ends = [0, *sorted(cut % (n + 1) for cut in cuts), n]
    pieces = [of(slice(begin, end)) for begin, end in pairwise(ends)]
    for turn in (pieces, pieces[::-1]):
        other = turn[0]
        for piece in turn[1:]:
            other = other + piece
        assert (other.drop.tolist(), other.keys.tolist()) == (whole.drop.tolist(), whole.keys.tolist())
        assert np.array_equal(other.cells.weight, whole.cells.weight)
        assert np.array_equal(other.cells.label, whole.cells.label)
        assert np.allclose(other.cells.prediction, whole.cells.prediction, rtol=1e-13, atol=0)
    for k in range(4):
        mine = line == k
        assert whole.line(k).weight.sum() == mine.sum()
        assert whole.line(k).label.sum() == y[mine].sum()
        assert whole.line(k).weight.size <= most
        alone = Histograms.of(line[mine] * 0, narrow_code(p, 1 - p)[mine], 1, p[mine], y[mine], None, most)
        assert alone.drop[0] == whole.drop[k]  # what the other lines hold is no matter
        if whole.drop[k]:  # one bit more would have been too many
            codes = narrow_code(p, 1 - p)[mine]
            finer = Histograms.of(line[mine] * 0, codes, 1, p[mine], y[mine], None, None)
            assert finer._dropping(whole.drop[k : k + 1] - 1).keys.size > most
    moved = whole.on([0, 2, 3, 6], 7)
    assert moved.line(6).weight.tolist() == whole.line(3).weight.tolist()
    assert moved.line(1).weight.size == 0


@settings(max_examples=40, deadline=None)
@given(**KIND, **EXTRA)
def test_identity_associative_commutative(kind, n, seed, weighted, grouped, sliced):
    none = Tally.like(drawn(kind, 1, 0), capacity=50)
    a, b, c = (none.add(drawn(kind, n, seed + turn, weighted, grouped, sliced)) for turn in range(3))
    assert apart(none.merge(a), a) == apart(a.merge(none), a) == 0
    assert apart(a.merge(b), b.merge(a)) == 0
    assert apart(a.merge(b).merge(c), a.merge(b.merge(c))) <= 1e-12
    assert a.merge(b).rows == 2 * n
    assert apart(a.merge(b), a.merge(a)) > 1e-9 or n < 3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_and_end_is_the_same_to_twelve_digits(kind, weighted):
    rows = drawn(kind, 240, 5, weighted, grouped=weighted)
    one, other = added(rows, [], capacity=240).value(), added(rows, [100, 37, 211], [2, 0, 3, 1], capacity=240).value()
    assert one.keys() == other.keys()
    for name, number in one.items():
        for end in ("value", "low", "high"):
            x, y = getattr(number, end), getattr(other[name], end)
            assert x == y or abs(x - y) <= 1e-12 * max(1.0, abs(x)), (name, end)


def test_sums_of_many_batches_do_not_drift():
    """One chunk again and again, 4096 times: compensated sums stay at 4096 times it, plain ones do not."""
    rows = drawn("binary", 100, 3, weighted=True)
    chunk = Tally.like(rows).add(rows)
    total, plain = chunk, chunk.sums.floats.value
    for _ in range(4095):
        total = replace(chunk, sums=total.sums + chunk.sums)
        plain = plain + chunk.sums.floats.value
    truth = 4096 * chunk.sums.floats.value  # a power of 2: exact
    assert np.array_equal(total.sums.floats.value, truth)
    assert not np.array_equal(plain, truth)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_inputs_agree_to_their_own_rounding(dtype):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, size=4000)
    y = (rng.random(4000) < p).astype(int)

    def loss(values) -> float:
        rows = Predictions.from_arrays(values, y)
        return Tally.like(rows).add(rows).evidence().cross_entropy

    narrow = p.astype(dtype)
    # d(−log p) = dp / p: half a unit in the last place of each probability, on either side.
    room = np.finfo(dtype).eps * 1.01 * np.mean(np.maximum(1, 1 / np.minimum(p, 1 - p)))
    assert abs(loss(narrow) - loss(p)) <= room
    assert loss(narrow) == loss(narrow.astype(np.float64))  # nothing but the input's own rounding
    assert loss(narrow) != loss(p)


def test_a_pickled_tally_is_the_same_tally():
    for kind in KINDS:
        tally = added(drawn(kind, 200, 1, True, True, True), [])
        assert apart(pickle.loads(pickle.dumps(tally)), tally) == 0


def _in_another_process(kind: str, seed: int) -> Tally:
    rows = drawn(kind, 500, seed, True, True, True)
    return Tally.like(rows, capacity=50).add(rows)


def test_two_processes_merge_to_what_one_makes():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for kind in ("binary", "classes"):
            one, other = pool.map(_in_another_process, [kind, kind], [1, 2])
            here = _in_another_process(kind, 1).merge(_in_another_process(kind, 2))
            assert apart(one.merge(other), here) == 0


def test_it_stays_small_whatever_comes():
    """Pickled: ten slices in very many groups under 500 kB, and no more for ten times the rows but longer counts."""
    rng = np.random.default_rng(0)

    def size(rows: Predictions) -> int:
        return len(pickle.dumps(Tally.like(rows).add(rows)))

    for kind, n in (("binary", 200_000), ("classes", 100_000)):
        rows = drawn(kind, n, 0)
        rows = replace(rows, groups=rng.integers(10**9, size=n), slices={"s": (np.arange(n) % 10).astype("U1")})
        few = part(rows, slice(n // 10))
        assert size(rows) < min(500_000, 1.5 * size(few))
        assert size(replace(rows, slices={}, groups=None)) < 300_000
        weighted = replace(rows, weights=rng.gamma(2.0, size=n))
        assert size(rows) < size(weighted) < 1_100_000
    more = replace(few, groups=rng.integers(10**9, size=len(few)), slices={"s": np.arange(len(few)).astype("U2")})
    values = np.unique(more.slices["s"]).size
    assert (size(more) - size(replace(more, slices={}))) / values < 12_000


def test_many_groups_go_into_buckets_and_tell_the_same():
    """20,000 groups of three equal rows, in 1,024 buckets: three times the variance of as many single rows."""
    single = drawn("binary", 20_000, 2)
    which = np.repeat(np.arange(20_000), 3)
    rows = replace(part(single, which), rows=np.arange(60_000), groups=which * 7)
    tally = Tally.like(rows).add(rows)
    assert tally.groups.folded
    assert len(tally.groups) <= tally.groups.most == 1024
    of = tally.evidence()
    bucketed = of.spread(1.0, np.zeros(2), of.cross_entropy)
    alone = replace(of, groups=None).spread(1.0, np.zeros(2), of.cross_entropy)
    assert bucketed.second == pytest.approx(3 * alone.second, rel=0.15)  # ± √(2 / 1024) is 4 %, costs are skewed
    few = part(rows, slice(0, 3000))
    exact = Tally.like(few).add(few).groups
    assert not exact.folded
    assert len(exact) == 1000


def test_what_does_not_belong_together_is_refused():
    binary, classes = drawn("binary", 20, 0), drawn("classes", 20, 0)
    with pytest.raises(DataError, match="cannot take rows of the task 'multi-class'"):
        Tally.like(binary).add(classes)
    with pytest.raises(DataError, match="one tally has the floor"):
        Tally.like(binary).add(binary).merge(Tally.like(binary, floor=1e-3).add(binary))
    with pytest.raises(DataError, match="some rows came with groups and some without"):
        Tally.like(binary).add(binary).add(drawn("binary", 20, 0, grouped=True))
    with pytest.raises(DataError, match="some labels are distributions"):
        Tally.like(binary).add(drawn("soft binary", 20, 0))
    names = np.array([f"r{i}" for i in range(1500)], dtype=object)
    rows = replace(drawn("binary", 1500, 0), slices={"id": names})
    with pytest.raises(DataError, match=r"more than 1,000 values"):
        Tally.like(rows).add(rows)
    with pytest.raises(ValueError, match="there are no rows"):
        Tally.like(binary).value()
