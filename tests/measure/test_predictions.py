"""The door: what is a prediction, which class is which column, and the sentence for everything else."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from crossent.errors import DataError
from crossent.measure import Predictions, evaluate

from_arrays = Predictions.from_arrays
THREE = [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]


def test_one_column_is_the_probability_of_class_1():
    rows = from_arrays([0.25, 1.0], [0, 1])
    assert rows.probabilities.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert (rows.task, rows.classes, rows.labels.dtype, len(rows)) == ("binary", ["0", "1"], np.int64, 2)
    assert from_arrays(np.array([[0.25], [1.0]]), [[0], [1]]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "classes", "names", "expected"),
    [
        ([2, 0], None, ["0", "1", "2"], [2, 0]),
        ([2.0, 0.0], None, ["0", "1", "2"], [2, 0]),
        (["2", "0"], None, ["0", "1", "2"], [2, 0]),
        (np.array([2, 0], dtype=np.uint8), None, ["0", "1", "2"], [2, 0]),
        (["hen", "cat"], ["cat", "dog", "hen"], ["cat", "dog", "hen"], [2, 0]),
        ([2, 0], ["cat", "dog", "hen"], ["cat", "dog", "hen"], [2, 0]),
        ([5, 3], [3, 4, 5], ["3", "4", "5"], [2, 0]),  # names that are numbers are never taken for places
        ([2, 1], [1, 2, 0], ["1", "2", "0"], [1, 0]),
        (["010", "10"], ["10", "010", "x"], ["10", "010", "x"], [1, 0]),
        (pd.Series(["hen", "cat"], dtype="category"), ["cat", "dog", "hen"], ["cat", "dog", "hen"], [2, 0]),
        (torch.tensor([2, 0]), None, ["0", "1", "2"], [2, 0]),
    ],
)
def test_labels_meet_columns_by_their_text(labels, classes, names, expected):
    rows = from_arrays(THREE, labels, classes)
    assert rows.classes == names
    assert rows.labels.tolist() == expected


@pytest.mark.parametrize(
    ("labels", "classes", "names", "expected"),
    [
        ([True, False], None, ["False", "True"], [1, 0]),
        (["yes", "no"], ["no", "yes"], ["no", "yes"], [1, 0]),
        (np.array([1, 1]), None, ["0", "1"], [1, 1]),
        (["true", "false"], None, ["False", "True"], [1, 0]),
    ],
)
def test_two_classes_are_named_too(labels, classes, names, expected):
    rows = from_arrays([0.5, 0.5], labels, classes)
    assert (rows.classes, rows.labels.tolist()) == (names, expected)


def test_frames_bring_names_and_tensors_any_float():
    frame = pd.DataFrame(THREE, columns=["p_cat", "p_dog", "p_hen"])
    assert from_arrays(frame, pd.Series(["hen", "dog"])).labels.tolist() == [2, 1]
    assert from_arrays(torch.tensor([0.5, 0.25], dtype=torch.bfloat16), [1, 0]).probabilities[1, 1] == 0.25
    assert from_arrays(torch.tensor([0.5, 0.25], requires_grad=True), [1, 0]).probabilities[1, 1] == 0.25
    wild = from_arrays(np.array([[0.6, 0.4000002]], dtype=np.float32), [1])
    low, high = (np.float64(np.float32(p)) for p in (0.6, 0.4000002))
    assert wild.probabilities[0, 1] == high / (low + high)  # off by a rounding of float32: divided by its sum
    assert from_arrays(np.array([[0.0, 1 + 1.2e-7]], dtype=np.float32), [1]).probabilities[0, 1] == 1.0


def test_a_series_is_of_the_class_it_is_named_after_and_a_number_is_no_name():
    """``pd.DataFrame(p)`` calls its column 0, and p is none the less the probability of class 1."""
    p, y = np.array([0.9, 0.2, 0.6]), [1, 0, 1]
    for values in (pd.DataFrame(p), pd.DataFrame({7: p}), pd.Series(p, name=0), pd.Series(p, name="p_1"), p):
        assert from_arrays(values, y).probabilities[:, 1].tolist() == p.tolist()
        assert from_arrays(values, y).classes == ["0", "1"]
    turned = from_arrays(pd.Series(1 - p, name="p_no"), ["yes", "no", "yes"])
    assert (turned.classes, turned.labels.tolist()) == (["yes", "no"], [0, 1, 0])


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (pd.DataFrame(THREE, columns=["p_hen", "p_cat", "p_dog"]), ["cat", "dog", "hen"]),
        (pd.DataFrame(THREE, columns=["hen", "cat", "dog"]), ["cat", "dog", "hen"]),
        (pd.DataFrame(THREE)[[2, 0, 1]], [0, 1, 2]),
        (pd.Series([0.5, 0.1], name="p_no"), ["no", "yes"]),
    ],
)
def test_names_of_classes_in_another_order_than_the_columns_are_refused(values, classes):
    labels = classes[:2]
    with pytest.raises(DataError, match=r"in another order\. Name the classes in the order of the columns"):
        from_arrays(values, labels, classes)
    assert from_arrays(np.asarray(values), labels, classes).labels.tolist() == [0, 1]


def test_labels_that_are_places_of_columns_are_said_to_be():
    frame = pd.DataFrame({"yes": [0.9, 0.2], "no": [0.1, 0.8]})
    assert from_arrays(frame, [0, 1]).notes == (
        "Labels are whole numbers and classes are not: labels were taken for places of the columns, 0 for yes, 1 for "
        "no.",
    )
    assert from_arrays(frame, ["yes", "no"]).notes == ()
    assert from_arrays(THREE, [0, 1]).notes == ()


def test_what_is_masked_is_missing():
    p, w = np.ma.array([0.5, 0.25], mask=[False, True]), np.ma.array([1, 2], mask=[True, False])
    with pytest.raises(DataError, match="row 1: nan"):
        from_arrays(p, [0, 1])
    with pytest.raises(DataError, match="row 0 has nan"):
        from_arrays([0.5, 0.25], [0, 1], weights=w)
    with pytest.raises(DataError, match="row 0 has no label"):
        from_arrays([0.5, 0.25], np.ma.array(["a", "b"], mask=[True, False]), ["a", "b"])
    assert from_arrays(np.ma.array([0.5, 0.25]), [0, 1]).probabilities[:, 1].tolist() == [0.5, 0.25]


def test_frames_of_arrow_say_what_arrays_say():
    names = ["p_cat", "p_dog", "p_hen"]
    column = pa.chunked_array
    found = from_arrays(
        pa.table(dict(zip(names, np.transpose(THREE), strict=True))), column([["hen"], ["dog"]]),
        weights=column([[1.0, 2.0]]), groups=pa.array(["x", "y"]),
    )  # fmt: skip
    truth = from_arrays(np.array(THREE), ["hen", "dog"], columns=names)
    assert found.probabilities.tolist() == truth.probabilities.tolist()
    assert (found.classes, found.labels.tolist()) == (["cat", "dog", "hen"], [2, 1]) == (truth.classes, [2, 1])
    assert (found.weights.tolist(), found.groups.tolist()) == ([1.0, 2.0], ["x", "y"])
    with pytest.raises(DataError, match="row 1: nan"):
        from_arrays(pa.array([0.5, None]), [0, 1])


def test_normalise_divides_and_says_so():
    rows = from_arrays([[2, 2], [1, 3]], [0, 1], normalise=True)
    assert rows.probabilities.tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert "divided by its sum" in rows.notes[0]


def test_a_range_becomes_fractions():
    rows = from_arrays([0.25, 1.0], [10, 30], task="range", low=10, high=30)
    assert rows.labels.tolist() == [0.0, 1.0]
    assert rows.probabilities.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert (rows.classes, rows.low, rows.high) == ([], 10.0, 30.0)


NAN = math.nan
REFUSED = [
    (([], []), {}, "there are no rows to measure"),
    (([0.5], [0, 1]), {}, "1 rows of probabilities and 2 labels: give one label per row"),
    (([[[0.5]]], [0]), {}, r"should be \(rows,\) or \(rows, classes\) and have shape \(1, 1, 1\)"),
    ((np.zeros((2, 4, 9)), np.zeros((2, 4))), {}, r"have shape \(2, 4, 9\). If the last axis .* p.reshape\(-1, 9\)"),
    (([[0.5, 0.5], [1, 0]], [0, -100]), {}, r"'-100' \(row 1\) is not. What PyTorch ignores, -100, is left out"),
    ((THREE, np.zeros((2, 1, 3))), {}, r"labels should be \(rows,\) or \(rows, classes\) and have shape \(2, 1, 3\)"),
    (([0.5, NAN], [0, 1]), {}, "one that is not: row 1: nan"),
    (([[0.5, 0.5], [math.inf, 0]], [0, 1]), {}, "row 1, column '0': inf"),
    (([0.5, 1.5], [0, 1]), {}, r"between 0 and 1.*row 1: 1.5 \(the only such row\).*percentages"),
    (([50, 99], [0, 1]), {}, "If these are percentages, divide them by 100"),
    (([[-0.7, -0.7]], [1]), {}, "no probabilities, and it is not clear.*Name the form"),
    (([[-3.0, 4.0]], [1]), {}, r"row 0, column '0': -3.*logits, say so: form='logits' \(--form logits\)"),
    (([-3.0, 4.0], [0, 1]), {}, "row 0: -3.*logits, say so: form='logits'"),
    (([[0.5, 0.5], [0.5, 0.6]], [0, 1]), {}, r"add up to 1 \(within 0.001\).*row 1 add up to 1.1.*normalise=True"),
    (([[0.0, 0.0]], [0]), {"normalise": True}, "row 0 is all zeros"),
    (([[0.5, "b"]], [0]), {}, r"should be numbers, and some are not: 'b' \(row 0, column 1, counted from 0\)\."),
    (([0.5 + 0.1j], [0]), {}, "probabilities should be numbers, and some are not: they are complex"),
    (({"p": [0.5]}, [0]), {}, r"a mapping of p came: make a frame of it"),
    ((torch.empty(1, 2, device="meta"), [0]), {}, "on the device 'meta' has a shape and no entries"),
    ((pl.DataFrame({"p_a": [0.5]}).lazy(), [0]), {}, r"a lazy frame has no rows yet: give what its collect\(\)"),
    (([0.5, 0.5], [0, 1]), {"rows": ["a", None]}, "row 1, counted from 0, has no row id .the only such row.. Give"),
    (([0.5, 0.5], [0, 1]), {"rows": [NAN, 3.0]}, "row 0, counted from 0, has no row id"),
    (([0.5], [0]), {"weights": [1e61]}, "row 0 has the weight 1e.61, and above 1e.60 .* Divide all weights"),
    (([0.5], [0]), {"weights": [1e-61]}, "together are 1e-61, and below 1e-60 .* Multiply all of them"),
    (([0.5], [0]), {"weights": [1e-130]}, "all weights are 0, or below 1e-120"),
    ((THREE, [0, 3]), {}, r"should be 0 to 2, and '3' \(row 1\) is not"),
    ((THREE, [0, -1]), {}, r"should be 0 to 2, and '-1' \(row 1\) is not"),
    ((THREE, ["cat", "dog"]), {}, "which column belongs to which class.*classes="),
    ((THREE, ["cat", "cow"]), {"classes": ["cat", "dog", "hen"]}, r"one of the classes cat, dog, hen.*'cow' \(row 1\)"),
    ((THREE, [0, 3]), {"classes": [3, 4, 5]}, r"this is not: '0' \(row 0\)"),
    ((THREE, [0, 1]), {"classes": ["a", "b"]}, "3 columns of probabilities and 2 classes"),
    ((THREE, [0, 1]), {"classes": ["a", "b", "a"]}, "two classes have one name"),
    ((THREE, [0, 1]), {"task": "binary"}, "said to be 'binary', but there are 3 classes"),
    ((THREE, [0, 1]), {"task": "ranking"}, "task should be 'binary', 'multi-class' or 'range'"),
    (([0.5, 0.5], ["no", "yes"]), {}, "which class is the probability of.*classes="),
    (([0.5, 0.5, 0.5], [0, 1, 2]), {}, "have 3: '0' .row 0., '1' .row 1., '2' .row 2.. Mend the rows"),
    (([0.5], ["x"]), {"classes": ["a", "b", "c"]}, "means two classes, and 3 are named"),
    (([0.5, 0.5], [0.0, 0.3]), {}, "row 1 has 0.3.*task='range'"),
    (([0.5, 0.5], [0.0, NAN]), {}, "row 1 has no label"),
    (([0.5, 0.5], ["a", None]), {}, "row 1 has no label"),
    (([0.5, 0.5], [0, 1]), {"rows": ["a", "a"]}, "come several times: a"),
    (([0.5, 0.5], [0, 1]), {"rows": [1]}, "2 rows and 1 row ids"),
    (([0.5, 0.5], [0, 40]), {"task": "range", "low": 0, "high": 30}, "range 0 to 30, and row 1 has 40"),
    (([0.5, 0.5], [0, NAN]), {"task": "range"}, "row 1 has no label"),
    (([0.5], ["tall"]), {"task": "range"}, "labels of a range should be numbers"),
    (([0.5], [0]), {"task": "range", "low": 1, "high": 1}, "low end below its high end"),
    (([[0.5, 0.5]], [0]), {"task": "range"}, "one probability per row: the expected fraction"),
]


@pytest.mark.parametrize(("arguments", "options", "sentence"), REFUSED)
def test_what_is_not_a_prediction_is_refused_with_a_sentence(arguments, options, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        from_arrays(*arguments, **options)
    assert str(caught.value)[-1] in ".?"


def test_sparse_numbers_are_what_they_stand_for():
    dense = np.array([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    labels = np.eye(3)[[0, 1, 2]]
    whole = from_arrays(dense, labels)
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.coo_array, lambda x: torch.tensor(x).to_sparse()):
        found = from_arrays(kind(dense), kind(labels))
        assert np.array_equal(found.probabilities, whole.probabilities)
        assert np.array_equal(found.labels, whole.labels)


def test_bytes_may_be_texts_and_slices_a_frame():
    texts = ["é", "", "abc"]
    assert from_arrays([0.5, 0.2, 0.3], [1, 0, 1], bytes=texts).bytes.tolist() == [2, 0, 3]
    columns = {"city": ["Bath", "Rome", "Bath"], "day": [1, 2, 2]}
    one = evaluate([0.5, 0.2, 0.3], [1, 0, 1], by=columns)
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns), pa.table(columns)):
        again = evaluate([0.5, 0.2, 0.3], [1, 0, 1], by=frame)
        assert again.tables["slices"] == one.tables["slices"]


def test_the_ids_of_the_rows_are_what_errors_name():
    with pytest.raises(DataError, match="row house-7"):
        from_arrays([0.5, 7.0], [0, 1], rows=["house-3", "house-7"])


@pytest.mark.parametrize("name", ["weights", "groups", "bytes", "rows", "slices"])
def test_what_stands_beside_in_another_order_is_refused(name):
    """It was put to the rows by its place, whatever they were called."""
    p, cells = pd.Series([0.1, 0.9]), pd.Series([1, 2], index=[1, 0])
    for values, labels in ((p, [0, 1]), (p.to_numpy(), pd.Series([0, 1]))):
        with pytest.raises(DataError, match=r"the (probabilities|labels) and .* have different indices"):
            from_arrays(values, labels, **{name: {"k": cells} if name == "slices" else cells})
        same = cells.sort_index()
        assert len(from_arrays(values, labels, **{name: {"k": same} if name == "slices" else same})) == 2
    assert len(from_arrays(p, [0, 1], **{name: {"k": cells.tolist()} if name == "slices" else cells.tolist()})) == 2


def test_frames_in_different_orders_are_refused():
    p, y = pd.Series([0.1, 0.9]), pd.Series([0, 1], index=[1, 0])
    with pytest.raises(DataError, match="different indices"):
        from_arrays(p, y)
    assert len(from_arrays(p, y.sort_index())) == 2


def test_classes_may_be_an_array():
    rows = Predictions.from_arrays([[0.5, 0.5], [0.25, 0.75]], [0, 1], classes=np.array(["cat", "dog"]))
    assert rows.classes == ["cat", "dog"]
