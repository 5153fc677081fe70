"""The task: what the target's values say, and what they refuse to say."""

import datetime

import numpy as np
import pandas as pd
import pytest
import torch

from crossent.errors import DataError
from crossent.minimise.data import dataset, task


def look(y, **options):
    return task.look(dataset.from_arrays(np.ones((len(y), 1)), y).y, "s.csv", "kind", **options)


TWO = {
    "whole numbers": ([0, 1] * 5, ("0", "1")),
    "small ints": (np.array([3, 7] * 5, dtype=np.int8), ("3", "7")),
    "floats": ([0.5, 1.0] * 5, ("0.5", "1")),
    "truth values": (np.array([True, False] * 5), ("False", "True")),
    "text": (["no", "yes"] * 5, ("no", "yes")),
    "nullable whole numbers": (pd.Series([2, 1] * 5, dtype="Int64"), ("1", "2")),
    "nullable truth values": (pd.Series([True, False] * 5, dtype="boolean"), ("False", "True")),
    "categories of text": (pd.Series(["b", "a"] * 5, dtype="category"), ("a", "b")),
    "categories of numbers": (pd.Series([10, 9] * 5, dtype="category"), ("9", "10")),
    "objects": (pd.Series([10, 9] * 5, dtype=object), ("9", "10")),
    "numbers and text": (np.array([1, "a"] * 5, dtype=object), ("1", "a")),
}


@pytest.mark.parametrize("name", TWO)
def test_two_values_are_binary_whatever_their_type(name):
    y, classes = TWO[name]
    found = look(y)
    assert (found.kind, found.classes, found.columns) == ("binary", classes, 2)
    assert f"'kind' holds two classes, '{classes[0]}' and '{classes[1]}'" in found.found
    encoded = found.encode(y, np.arange(10), "s.csv")
    assert [classes[i] for i in encoded] == [task.class_name(value) for value in y]
    assert len(set(encoded.tolist())) == 2


def test_three_and_three_point_nought_are_one_class():
    found = look(np.array([3, 3.0, "3", 4] * 3, dtype=object))
    assert (found.kind, found.classes) == ("binary", ("3", "4"))
    assert look([1, 2, 3, 1, 2, 3]).encode([1.0, 2, np.float32(3)], np.arange(3), "s").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"1 rows have a class that the training data never show: 3.5"):
        look([1, 2, 3, 1, 2, 3]).encode([1.0, 3.5], np.arange(2), "s")


def test_some_values_are_classes_and_many_numbers_a_range():
    assert look(["a", "b", "c"] * 3).kind == "multi-class"
    assert look(list(range(20)) * 3).kind == "multi-class"
    assert "If they are amounts rather than names, pass --task range" in look(list(range(20)) * 3).found
    assert look(list(range(21)) * 3).kind == "range"
    assert look([0.5, 1.5, 2.5] * 3).kind == "range"
    assert look([str(i) for i in range(40)] * 3).kind == "multi-class"
    # Numbers are in the order of numbers, not of letters.
    assert look([10, 9, 2] * 3).classes == ("2", "9", "10")


def test_the_look_can_be_overruled():
    stars = [1, 2, 3, 4, 5] * 4
    found = look(stars, kind="range")
    assert (found.kind, found.classes, found.low, found.high, found.columns) == ("range", (), 1, 5, 2)
    assert "as seen in the data; pass --range LOW HIGH if you know better" in found.found
    assert look(stars, limits=(0, 10)).high == 10
    assert "(as given)" in look(stars, limits=(0, 10)).found
    assert look([0.5, 1.5, 2.5] * 3, kind="classes").classes == ("0.5", "1.5", "2.5")
    with pytest.raises(DataError, match=r"the task must be 'classes' or 'range'; got 'regression'"):
        look(stars, kind="regression")
    with pytest.raises(DataError, match=r"a range needs numbers, and the target 'kind' holds text"):
        look(["a", "b", "c"] * 3, kind="range")


@pytest.mark.parametrize("limits", [(5, 1), (2, 2), (float("nan"), 3), (float("-inf"), 9), (0, float("inf"))])
def test_a_range_needs_two_ends(limits):
    with pytest.raises(DataError, match=r"a range needs a low end below its high end, both finite"):
        look([1, 2, 3] * 4, limits=limits)


def test_a_range_is_encoded_as_the_share_of_it_that_is_reached():
    found = look([10.0, 20.0, 30.0, 12.5], limits=(10, 30))
    assert found.encode([10.0, 20.0, 30.0, 12.5], np.arange(4), "s").tolist() == [0, 0.5, 1, 0.125]
    assert found.target(np.array([0.125])).tolist() == [0.125]
    assert found.target(np.array([0.125])).dtype == torch.float32
    with pytest.raises(DataError, match=r"2 values of the target lie outside the range 10 to 30, first at row 8: 31"):
        found.encode([15, 31.0, 9], np.array([7, 8, 9]), "s")
    with pytest.raises(DataError, match=r"the target is a number in a range, and here it holds text"):
        found.encode(np.array(["many", None], dtype=object), np.arange(2), "t.csv")


@pytest.mark.parametrize(
    "y",
    [
        [1, 2, np.nan, 1, np.inf, 2],
        np.array(["a", "b", None, "a", None, "b"], dtype=object),
        np.array(["a", "b", np.float32("nan"), "a", pd.NA, "b"], dtype=object),
        np.array([1, 0, pd.NaT, 1, pd.NA, 0], dtype=object),
        np.array(["a", "b", "", "a", "", "b"]),
        pd.Series(["a", "b", "", "a", "", "b"]),
        pd.Series([1, 2, None, 1, None, 2], dtype="Int64"),
        pd.Series([True, False, None, True, None, False], dtype="boolean"),
        pd.Series(["a", "b", None, "a", None, "b"], dtype="category"),
        pd.Series(["a", "b", None, "a", None, "b"], dtype="string"),
    ],
    ids=[
        "floats",
        "None",
        "NaN among text",
        "NaT among numbers",
        "no letters",
        "no text",
        "Int64",
        "boolean",
        "category",
        "string",
    ],
)
def test_rows_without_a_label_are_named(y):
    with pytest.raises(DataError, match=r"'kind' is missing, NaN or infinite in 2 rows, first at row 2, 4\. A row"):
        look(y)


def test_a_class_may_be_called_nan_if_it_is_text():
    assert look(np.array(["nan", "None"] * 5, dtype=object)).classes == ("None", "nan")


def test_targets_that_cannot_be_learned_are_refused():
    with pytest.raises(DataError, match=r"'kind' is constant, '4' in all 6 rows. There is nothing to learn"):
        look([4.0] * 6)
    with pytest.raises(DataError, match=r"'kind' is constant, 'cat' in all 6 rows"):
        look(["cat"] * 6)
    with pytest.raises(DataError, match=r"6 different values in 6 rows, .* looks like free text or an id"):
        look([f"customer {i}" for i in range(6)])
    with pytest.raises(DataError, match=r"holds dates. Turn them into numbers or classes first"):
        look(pd.Series([datetime.datetime(2020, 1, day) for day in range(1, 7)]))


def test_labels_in_several_columns_are_soft_labels_of_classes_by_name():
    found = task.look(np.array([[0.25, 0.75], [1.0, 0.0]]), "s.csv", "votes_*", names=("no", "yes"))
    assert (found.kind, found.classes, found.columns) == ("binary", ("no", "yes"), 2)
    assert found.found == "'votes_*' holds shares of 2 classes (no, yes): soft labels."
    assert task.look(np.eye(3), "s.csv", "votes_*", names=("a", "b", "c")).kind == "multi-class"
    encoded = found.encode(np.array([[0.25, 0.75]]), np.arange(1), "s.csv")
    assert encoded.tolist() == [[0.25, 0.75]]
    assert found.target(encoded).tolist() == [[0.25, 0.75]]
    assert found.target(np.array([1, 0])).dtype == torch.int64
    with pytest.raises(DataError, match=r"labels have 3 columns, and the task 2 classes"):
        found.encode(np.eye(3), np.arange(3), "t.csv")
    with pytest.raises(DataError, match=r"a number in a range is one column, and 'votes_\*' are 2"):
        task.look(np.eye(2), "s.csv", "votes_*", limits=(0, 1), names=("no", "yes"))
