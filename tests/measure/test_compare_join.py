"""Rows of several models meet by id, whatever their order; whatever does not belong together is refused by name."""

import numpy as np
import pytest

from crossent.errors import DataError
from crossent.measure import Predictions
from crossent.measure.comparison.join import Head, join


def head(name, p, y, **options):
    return Head.of(name, Predictions.from_arrays(p, y, **options))


def test_order_does_not_matter_and_one_sided_rows_are_named():
    rng, n = np.random.default_rng(0), 200
    p, y = rng.uniform(size=n), rng.integers(0, 2, n)
    ids = np.array([f"game {i}" for i in range(n)])
    b, c = rng.permutation(n)[:150], rng.permutation(n)[:180]
    found = join([head("a", p, y, rows=ids), head("b", p[b], y[b], rows=ids[b]), head("c", p[c], y[c], rows=ids[c])])
    expected = [i for i in range(n) if i in set(b) & set(c)]
    assert found.rows.tolist() == ids[expected].tolist()
    for places, own in zip(found.places, (np.arange(n), b, c), strict=True):
        assert own[places].tolist() == expected
    assert found.left_out == {"a": n - len(expected), "b": 150 - len(expected), "c": 180 - len(expected)}
    assert f"{len(expected)} rows were compared: b lacks 50 of a's (game" in found.notes[0]
    assert "c lacks 20 of a's" in found.notes[0]
    assert "… (50 in all)" in found.notes[0]


def test_rows_on_the_other_side_are_named_too():
    found = join([head("a", [0.5] * 2, [0, 1], rows=[7, 9]), head("b", [0.5] * 3, [1, 1, 0], rows=[9, 4, 7])])
    assert found.notes == ["2 rows were compared: a lacks 1 of b's (4)."]
    assert found.places[1].tolist() == [2, 0]


def test_truth_values_meet_the_numbers_they_are():
    came = np.array([True, False, True])
    numbers, truths = head("a", [0.5] * 3, came.astype(int)), head("b", [0.5] * 3, came)
    assert truths.classes == ["False", "True"]
    assert join([numbers, truths]).labels.tolist() == [1, 0, 1]
    turned = head("b", np.full((3, 2), 0.5), came, classes=["True", "False"])
    assert join([numbers, turned]).columns == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="disagree about the label of 3 of 3 rows"):
        join([numbers, head("b", [0.5] * 3, ~came)])
    with pytest.raises(DataError, match="do not have the same classes"):
        join([numbers, head("b", [0.5] * 3, np.where(came, "yes", "no"), classes=["no", "yes"])])


def test_ids_of_different_types_meet_by_their_text():
    found = join([head("a", [0.5] * 3, [0, 1, 1], rows=[7, 9, 12]), head("b", [0.5] * 2, [1, 0], rows=["12", "7"])])
    assert found.places[0].tolist() == [0, 2]


def test_columns_in_another_order_are_brought_to_the_first_ones():
    a = head("a", [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], ["x", "z"], classes=["x", "y", "z"])
    b = head("b", [[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]], ["x", "z"], classes=["z", "x", "y"])
    assert join([a, b]).columns == [[0, 1, 2], [1, 2, 0]]
    c = head("c", [[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]], ["z", "x"], classes=["z", "x", "y"])
    with pytest.raises(DataError, match=r"disagree about the label of 2 of 2 rows \(0: x and z; 1: z and x\)"):
        join([a, c])


def test_without_ids_rows_meet_by_place_and_it_is_said():
    found = join([head("a", [0.5] * 3, [0, 1, 1]), head("b", [0.5] * 3, [0, 1, 1])])
    assert found.notes == ["No row ids: the 3 rows were compared in their order, in which all labels agree."]
    with pytest.raises(DataError, match="a has 3 rows and b has 2, and no ids say which belong together"):
        join([head("a", [0.5] * 3, [0, 1, 1]), head("b", [0.5] * 2, [0, 1])])
    with pytest.raises(DataError, match=r"label of 2 of 3 rows \(0: 0 and 1; 1: 1 and 0\). They have no row ids"):
        join([head("a", [0.5] * 3, [0, 1, 1]), head("b", [0.5] * 3, [1, 0, 1])])


def refusals():
    a = head("a.csv", [0.5] * 3, [0, 1, 1], rows=["x", "y", "z"])
    yield (
        a,
        head("b.csv", [0.5] * 2, [0, 1], rows=["u", "v"]),
        r"no row of a.csv \(ids x, y, z\) is in b.csv \(ids u, v\)",
    )
    yield a, head("b.csv", [0.5] * 2, [0, 0], rows=["x", "y"]), r"label of 1 of 2 rows \(y: 1 and 0\). One of the files"
    yield (
        a,
        head("b.csv", [0.5] * 2, ["no", "yes"], classes=["no", "yes"], rows=["x", "y"]),
        ("not have the same classes: only a.csv has 0, 1, only b.csv has no, yes. Name them alike"),
    )
    yield (
        a,
        head("b.csv", [[0.2, 0.5, 0.3]], [2], rows=["x"]),
        "a.csv predicts one of 2 classes and b.csv one of 3 classes: they must be the same",
    )
    yield a, head("b.csv", [0.5], [0.5], task="range", rows=["x"]), "a.csv predicts one of 2 classes and b.csv a number"
    r = head("r.csv", [0.5], [0.5], task="range", rows=["x"])
    yield (
        r,
        head("s.csv", [0.5], [0.5], task="range", low=0, high=9, rows=["x"]),
        "a number from 0 to 1 and s.csv a number",
    )
    yield r, head("s.csv", [0.5], [0.6], task="range", rows=["x"]), r"label of 1 of 1 rows \(x: 0.5 and 0.6\)"
    yield (
        a,
        head("b.csv", [[0.5, 0.5]], [[0.3, 0.7]], rows=["x"]),
        "labels of a.csv are classes and those of b.csv distrib",
    )


@pytest.mark.parametrize(("a", "b", "sentence"), list(refusals()))
def test_what_does_not_belong_together_is_refused(a, b, sentence):
    with pytest.raises(DataError, match=sentence):
        join([a, b])


def test_copies_that_came_in_different_batches_are_refused():
    halves = [Predictions.from_arrays([0.5, 0.4], [0, 1], rows=ids) for ids in (["x", "y"], ["y", "z"])]
    with pytest.raises(DataError, match=r"b: row ids should name each row once, and these come several times: y"):
        join([head("a", [0.5], [0], rows=["x"]), Head.of("b", Predictions.concatenate(halves))])
