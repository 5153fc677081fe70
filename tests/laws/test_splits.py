"""Any split of a stream gives the same record: every number, every table, every curve, to the last bit.

Batches of any size and rows in any order, files in any order, any tree of merging; with groups, slices, weights and
many classes. The law asks for 10⁻¹² beside a figure; sums that round as one number does (``sums.compensated``) make it
0, but for one figure in some 10⁸.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from crossent.measure import evaluate
from crossent.measure.evaluation import record_of, tally_for
from crossent.measure.predictions.form import log_probabilities, logits, probabilities
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums import compensated
from crossent.measure.sums.compensated import Compensated, Split, of_alike, of_columns, summed
from crossent.measure.sums.hashing import hashed
from crossent.measure.tally.tally import Tally
from crossent.record import Record
from tests.compare import relatively

ROWS = 1500


def drawn(kind: str, weighted: bool, seed: int = 0) -> Predictions:
    """Rows in some hundred groups whose labels go together, cut by a column of four values and one of three."""
    rng = np.random.default_rng(seed)
    k = 12 if "classes" in kind else 2
    group = rng.integers(100, size=ROWS)
    z = rng.normal(0, 1.5, (ROWS, k)) + rng.normal(0, 1, (100, k))[group]
    p = np.exp(1.3 * z)
    p /= p.sum(axis=1, keepdims=True)
    true = np.exp(z)
    true /= true.sum(axis=1, keepdims=True)
    labels: np.ndarray = (true.cumsum(axis=1) < rng.random((ROWS, 1))).sum(axis=1).clip(0, k - 1)
    if kind == "range":
        labels = rng.beta(2 * true[:, 1] + 0.1, 2 * true[:, 0] + 0.1)
    if kind == "soft classes":
        labels = rng.dirichlet([0.3] * k, size=ROWS)
    names = [] if kind == "range" else [str(c) for c in range(k)]
    task = "range" if kind == "range" else "binary" if k == 2 else "multi-class"
    weights = rng.gamma(2.0, size=ROWS) * (rng.random(ROWS) < 0.9) if weighted else None
    third = (np.arange(ROWS) % 3).astype(str).astype(object)
    cities = np.array(["Bath", "Lima", "Oslo", "Rome"], object)[rng.integers(4, size=ROWS)]
    return Predictions(
        p, labels, names, np.arange(ROWS), task, *((2.0, 7.0) if task == "range" else (None, None)),
        weights=weights, groups=group, slices={"city": cities, "third": third},
        bytes=rng.integers(1, 9, size=ROWS),
    )  # fmt: skip


def part(rows: Predictions, which: np.ndarray) -> Predictions:
    return replace(
        rows, probabilities=rows.probabilities[which], labels=rows.labels[which], rows=rows.rows[which],
        weights=None if rows.weights is None else rows.weights[which], groups=rows.groups[which],
        slices={name: cells[which] for name, cells in rows.slices.items()}, bytes=rows.bytes[which],
    )  # fmt: skip


def merged(rows: Predictions, rng: np.random.Generator) -> Tally:
    """Rows in any order, cut anywhere (once into a single row), and merged two and two, whichever come."""
    cuts = np.sort(np.append(rng.integers(1, ROWS - 1, size=5), [700, 701]))
    tallies = [tally_for(rows).add(part(rows, piece)) for piece in np.split(rng.permutation(ROWS), cuts) if piece.size]
    while len(tallies) > 1:
        one, two = (tallies.pop(int(rng.integers(len(tallies)))) for _ in range(2))
        tallies.append(one.merge(two))
    return tallies[0]


def apart(one: Record, other: Record) -> float:
    """The largest difference of two records, relative to what differs; infinite where more than figures differ."""
    mine, theirs = json.loads(one.to_json()), json.loads(other.to_json())
    for record in (mine, theirs):
        record.pop("made"), record.pop("title"), record["facts"].pop("source", None)
    return relatively(mine, theirs)


KINDS = ("binary", "range", "classes", "soft classes")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_same_record(kind, weighted):
    rows = drawn(kind, weighted)
    whole = record_of(tally_for(rows).add(rows))
    assert {"per_class", "slices"} - set(whole.tables) == ({"per_class"} if kind == "range" else set())
    for seed in range(2):
        assert apart(whole, record_of(merged(rows, np.random.default_rng(seed)))) <= 1e-12
    spoilt = replace(rows, probabilities=rows.probabilities.copy())
    one = spoilt.probabilities[7]
    one[:] = (1 - 1e-7) * one + 1e-7 / one.size  # it can fail: a ten-millionth of one row
    assert apart(whole, record_of(merged(spoilt, np.random.default_rng(0)))) > 1e-12


def test_sums_that_round_as_they_come_do_not(monkeypatch):
    """What the law rests on: with plain sums of batches the same rows give parts that differ in the tenth digit."""

    def plainly(split, columns, terms):
        return [Compensated.exact(np.bincount(split.code, x, split.size) * 1.0) for x in terms(*columns)]

    rows = drawn("binary", weighted=True)
    monkeypatch.setattr(Split, "terms", plainly)
    whole = record_of(tally_for(rows).add(rows))
    assert max(apart(whole, record_of(merged(rows, np.random.default_rng(seed)))) for seed in range(2)) > 1e-12


def test_files_of_any_kind_in_any_order(tmp_path):
    """CSV and Parquet of the same rows have other batches, and one knows groups by their text, the other by their
    numbers; so have files cut anew and turned about."""
    rows = drawn("classes", weighted=False)
    frame = pd.DataFrame(rows.probabilities, columns=[f"p_{c}" for c in rows.classes]).assign(
        label=rows.labels, game=rows.groups, city=rows.slices["city"], row=[f"r{i}" for i in rows.rows]
    )
    frame.to_csv(tmp_path / "all.csv", index=False)
    frame.to_parquet(tmp_path / "all.parquet", row_group_size=130)
    (tmp_path / "turned").mkdir()
    for place, piece in enumerate(np.array_split(np.arange(ROWS)[::-1], [1, 20, 800])):
        frame.iloc[piece].to_parquet(tmp_path / "turned" / f"{place}.parquet")
    named = {"label": "label", "probability": "p_*", "row": "row", "group": "game", "by": "city"}
    found = [evaluate(tmp_path / name, **named) for name in ("all.csv", "all.parquet", "turned")]
    assert apart(found[0], found[1]) <= 1e-12
    assert apart(found[0], found[2]) <= 1e-12


def test_text_of_a_whole_number_is_that_number():
    numbers = np.array([0, 7, -12, 10**17, 999_999_999_999_999_999, -(10**18) + 1])
    assert hashed(np.array([str(x) for x in numbers], object)).tolist() == hashed(numbers).tolist()
    others = ["-", "-0", "00", "007", "-07", "7.0", "7 ", "+7", "1e3", "٧", "12345678901234567890", "7a", ""]
    alone = [hashed(np.array([text], object))[0] for text in others]
    assert len({*alone, *hashed(numbers).tolist()}) == len(others) + numbers.size
    assert hashed(np.array([*others, "a much longer text"], object))[:-1].tolist() == alone


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_a_row_is_worth_the_same_in_every_batch(classes):
    z = np.random.default_rng(0).normal(size=(40, classes))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    p[3] *= 1.0001  # within the tolerance: this one is divided by its sum
    columns = [str(c) for c in range(classes)]
    for given, take in (
        (z, lambda x: logits(x, str, columns)),
        (np.log(p), lambda x: log_probabilities(x, str, columns)[0]),
        (p, lambda x: probabilities(x, str, columns)[0]),
    ):
        whole = take(np.asfortranarray(given))
        for size in (1, 2, 7, 39):
            pieces = [take(np.asfortranarray(given[i : i + size])) for i in range(0, 40, size)]
            assert np.array_equal(np.concatenate(pieces), whole)


def test_sums_are_the_nearest_float_in_any_order():
    rng = np.random.default_rng(0)
    x = rng.normal(size=999) * 10.0 ** rng.integers(-12, 3, size=999)
    for size in (1, 2, 7):
        code = rng.integers(size, size=999)
        truth = [math.fsum(x[code == c]) for c in range(size)]
        for _ in range(20):
            turn = rng.permutation(999)
            pieces = [summed(code[i], x[i], size) for i in np.split(turn, np.sort(rng.integers(999, size=4)))]
            total = pieces[0]
            for piece in pieces[1:]:
                total = total + piece
            assert total.value.tolist() == truth
        spread = np.arange(999)
        assert Compensated.exact(x[None]).gathered(code[spread], size).value[0].tolist() == truth
    assert np.bincount(code, x, 7).tolist() != truth  # plain sums are not


def in_pieces(add, x, rng):
    """The sums of rows in any order, cut anywhere."""
    pieces = [add(i) for i in np.split(rng.permutation(len(x)), np.sort(rng.integers(len(x), size=4)))]
    total = pieces[0]
    for piece in pieces[1:]:
        total = total + piece
    return total.value.tolist()


def test_a_class_of_small_costs_beside_one_of_large_costs_has_its_own_digits():
    """A sure model's cubes of costs: 10⁻¹⁷ for the class that it expects and 10³ for the other."""
    rng = np.random.default_rng(1)
    code = (np.arange(3000) % 50 == 0).astype(np.int64)
    cost = np.where(code == 1, rng.uniform(8, 12, 3000), rng.uniform(1e-6, 4e-6, 3000))
    truth = [math.fsum(cost[code == c] ** 2 * cost[code == c]) for c in range(2)]

    def cubes(i):
        return Split(code[i], 2).terms([cost[i]], lambda x: [x * x * x])[0]

    assert all(in_pieces(cubes, cost, rng) == truth for _ in range(20))
    # With digits taken off below the largest of both classes, as it was once, they fall as they come.
    total = math.fsum(cost**3)

    def beside(i):
        sigma = 2.0 ** (math.frexp(total)[1] + 1)
        near = (cost[i] ** 3 + sigma) - sigma
        return Compensated.exact(np.bincount(code[i], near, 2) + np.bincount(code[i], cost[i] ** 3 - near, 2))

    assert len({in_pieces(beside, cost, rng)[0] for _ in range(20)}) > 1


def test_numbers_of_one_exponent_and_columns_add_up_as_well(monkeypatch):
    rng = np.random.default_rng(2)
    code = np.sort(rng.integers(6, size=5000))
    x = rng.uniform(0.6, 1.7, size=5000) * 2.0 ** (-40.0 * code)
    x[code % 3 == 0] *= 10.0 ** rng.uniform(-30, 0, size=np.count_nonzero(code % 3 == 0))  # the first of either line
    x[::7] = 0.0
    x[code == 5] = x[code == 5].astype(np.float32)  # whose last digits are 0
    truth = [math.fsum(x[code == c]) for c in range(6)]
    assert all(in_pieces(lambda i: of_alike(code[i], x[i], 6, 2), x, rng) == truth for _ in range(20))
    found = [in_pieces(lambda i: of_alike(code[i], x[i], 6, 1), x, rng) for _ in range(20)]
    assert any(sums != truth for sums in found)  # nothing said of the fourth, whose exponents differ
    wide = np.asfortranarray(rng.normal(size=(900, 3)) * 10.0 ** rng.integers(-9, 3, size=(900, 3)))
    truth = [math.fsum(column) for column in wide.T]
    for block in (compensated._BLOCK, 100):  # one block, and several
        monkeypatch.setattr(compensated, "_BLOCK", block)
        assert all(in_pieces(lambda i: of_columns(wide[i]), wide, rng) == truth for _ in range(10))
        whole = summed(np.zeros(900, np.int64), wide[:, 0], 1)
        assert whole.value.tolist() == truth[:1]
    assert wide.sum(axis=0).tolist() != truth or wide[::-1].sum(axis=0).tolist() != truth
