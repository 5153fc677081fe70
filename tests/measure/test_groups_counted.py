"""How many groups there were: counted while they are few, estimated when they are many, however the rows are split."""

import pickle

import numpy as np
import pytest

from crossent import report
from crossent.measure import evaluate
from crossent.measure.evaluation import record_of, tally_for
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.counted import COUNTED, how_many, smallest
from crossent.measure.sums.hashing import hashed
from crossent.measure.tally.packing import packed, unpacked

DEVIATION = 1 / np.sqrt(COUNTED - 1)


def rows_in(groups):
    """A row for each of ``groups``, and the same again in another order."""
    group = np.concatenate([groups, groups[::-1]])
    p = np.random.default_rng(0).uniform(0.1, 0.9, group.size)
    came = (np.arange(group.size) % 2).astype(np.int64)
    return Predictions.from_arrays(p, came, groups=group)


def counted(facts):
    return {name: value for name, value in facts.items() if name.startswith("groups")}


@pytest.mark.parametrize("count", [1, 1024, 1025, COUNTED])
def test_few_groups_are_counted(count):
    record = evaluate(rows_in(np.array([f"game {i}" for i in range(count)])))
    assert counted(record.facts) == {"groups": count}
    assert f" in {count:,} group" in report.headline(record)


def test_more_groups_are_estimated_and_said_to_be():
    record = evaluate(rows_in(np.arange(COUNTED + 1)))
    assert list(counted(record.facts)) == ["groups_estimated"]
    assert record.facts["groups_estimated"] == pytest.approx(COUNTED + 1, rel=4 * DEVIATION)
    assert f" in about {record.facts['groups_estimated']:,} groups " in report.headline(record)


def test_estimates_scatter_as_they_are_said_to():
    found = []
    for turn in range(60):
        about, exact = how_many(smallest(hashed(np.arange(turn * 10**6, turn * 10**6 + 30_000))))
        assert not exact
        found.append(about / 30_000)
    # Of 60 the mean is known to 1 / √60 of one deviation, the deviation to 1 / √120 of itself: four of each.
    assert np.mean(found) == pytest.approx(1, abs=4 * DEVIATION / np.sqrt(60))
    assert np.std(found) == pytest.approx(DEVIATION, rel=4 / np.sqrt(120))


def test_however_the_rows_are_split_the_groups_are_as_many():
    rows = rows_in(np.random.default_rng(1).integers(10**6, size=9000))
    whole = tally_for(rows).add(rows)
    pieces = [
        part(rows, piece)
        for piece in np.array_split(np.random.default_rng(2).permutation(len(rows)), [7, 300, 2000, 9000])
    ]
    left = right = tally_for(rows)
    for piece in pieces:
        left = left.merge(tally_for(rows).add(piece))
        right = tally_for(rows).add(piece).merge(right)
    for one in (left, right, pickle.loads(pickle.dumps(left)), unpacked(packed(right))):
        assert counted(record_of(one).facts) == counted(record_of(whole).facts)
        np.testing.assert_array_equal(one.groups.came, whole.groups.came)
    once = tally_for(rows).add(rows_in(np.arange(5000)))
    assert counted(record_of(once.merge(once)).facts) == counted(record_of(once).facts)  # the same groups are no more
    other = tally_for(rows).add(rows_in(np.arange(5000, 10_000)))
    assert record_of(once.merge(other)).facts["groups_estimated"] == pytest.approx(10_000, rel=4 * DEVIATION)


def part(rows, here):
    """Some of the rows."""
    return Predictions(
        rows.probabilities[here], rows.labels[here], rows.classes, rows.rows[here], rows.task, groups=rows.groups[here]
    )


def few(record):
    """The notes on groups that say what no interval knows."""
    words = ("too few to tell what it costs", "how often such a group comes")
    return [note for note in record.facts["notes"] if any(word in note for word in words)]


def test_few_groups_with_a_class_are_said():
    """Counted as (Σ y)² / Σ y², under 8 and under half of what all groups are worth."""
    group = np.repeat(np.arange(40), 5)
    for holding, said in ((0, "none"), (1, "1"), (7, "7"), (8, None), (30, None)):
        y = ((group < holding) & (np.arange(200) % 5 == 0)).astype(int)
        found = few(evaluate(np.full(200, 0.1), y, group=group, classes=["0", "1"]))
        start = f"The label 1 is held by {said} of 40 groups, too few to tell what it costs."
        assert [note.startswith(start) for note in found] == ([True] if said else [])
        assert not few(evaluate(np.full(200, 0.1), y, classes=["0", "1"]))
    even = np.arange(50) % 2  # ten groups, each of which has both: fewer than 8 may be all there are
    assert not few(evaluate(np.full(50, 0.5), even, group=np.arange(50) // 10))


@pytest.mark.parametrize(("dear", "said"), [(1, "One of 40 groups makes"), (2, "2 of 40 groups make"), (3, None)])
def test_few_groups_with_most_of_the_scatter_are_said(dear, said):
    """Of more classes, documents and ranges too, where no claim stands in for what no group shows."""
    group = np.repeat(np.arange(40), 5)
    y = np.where(group < dear, 1, 0)
    p = np.tile([0.998, 0.001, 0.001], (200, 1))
    found = few(evaluate(p, y, group=group))
    assert [note.startswith(f"{said} 80 % or more of the scatter") for note in found] == ([True] if said else [])
