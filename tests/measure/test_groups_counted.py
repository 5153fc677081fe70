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
