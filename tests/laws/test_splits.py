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
from crossent.measure.sums import cells, compensated, folds, groups, sums
from crossent.measure.sums.compensated import Compensated, summed
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

    def plainly(code, columns, size):
        ones = np.ones(code.size)
        found = [np.bincount(code, ones if x is None else x, minlength=size) * 1.0 for x in columns]
        return [Compensated.exact(x) for x in found]

    rows = drawn("binary", weighted=True)
    for module in (cells, compensated, folds, groups, sums):
        monkeypatch.setattr(module, "summed_each", plainly)
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
    assert compensated._plain(code, x, 7).tolist() != truth  # plain sums are not
