"""Files: what is written is read back, other people's columns are found, and every bad file gets its sentence."""

import gzip
import sys

import numpy as np
import pandas as pd
import pytest

from crossent.errors import DataError, MissingExtra
from crossent.measure import read_predictions, write_predictions
from crossent.measure.sources.rows import splits_in

P = np.array([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]], dtype=np.float32)
SPLITS = ["train", "test", "validation", "test"]
CLASSES = ["cat", "dog", "hen"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_classes_go_there_and_back(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    labels = ["hen", "dog", "cat", "dog"]
    write_predictions(path, P, task="multi-class", labels=labels, rows=[7, 8, 9, 12], splits=SPLITS, classes=CLASSES)
    found = read_predictions(path)
    stored = P[[1, 3]].astype(float)
    if suffix == ".parquet":
        assert found.probabilities.tolist() == (stored / stored.sum(axis=1, keepdims=True)).tolist()
    assert found.probabilities == pytest.approx(stored, abs=1e-7)
    assert (found.rows.tolist(), found.labels.tolist(), found.classes) == ([8, 12], [1, 1], CLASSES)
    assert (found.task, found.split) == ("multi-class", "test")
    assert "test (2), train (1), validation (1); none was asked for" in found.notes[0]
    assert read_predictions(path, split="train").labels.tolist() == [2]
    assert not any("splits" in note for note in read_predictions(path, split="train").notes)
    assert len(read_predictions(path, split="all")) == 4


def test_the_same_predictions_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_predictions(tmp_path / f"{name}.parquet", P, task="multi-class", classes=CLASSES, source="s", target="t")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_a_range_goes_there_and_back_and_a_csv_asks_for_its_ends(tmp_path):
    options = {
        "task": "range",
        "labels": [12.0, 30.0],
        "low": 10,
        "high": 30,
        "source": "houses.csv",
        "target": "price",
    }
    write_predictions(tmp_path / "p.parquet", [0.25, 0.5], **options)
    found = read_predictions(tmp_path / "p.parquet")
    assert found.labels == pytest.approx([0.1, 1.0])
    assert (found.task, found.low, found.high, found.source) == ("range", 10.0, 30.0, "houses.csv")
    assert pd.read_parquet(tmp_path / "p.parquet")["prediction"].tolist() == [15.0, 20.0]
    write_predictions(tmp_path / "p.csv", [0.25, 0.5], **options)
    with pytest.raises(DataError, match="A CSV cannot say that a target is a range; add task='range'"):
        read_predictions(tmp_path / "p.csv")
    again = read_predictions(tmp_path / "p.csv", task="range", low=10, high=30)
    assert again.labels == pytest.approx(found.labels)


@pytest.mark.parametrize(
    ("labels", "classes"), [([True, False], [False, True]), ([3, 5], [3, 5]), (["b", "a"], ["a", "b"])]
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_any_kind_of_label_is_found_by_its_text(tmp_path, labels, classes, suffix):
    path = tmp_path / f"p{suffix}"
    write_predictions(path, P[:2, :2] / P[:2, :2].sum(1, keepdims=True), task="binary", labels=labels, classes=classes)
    assert read_predictions(path).labels.tolist() == [classes.index(label) for label in labels]


def csv(tmp_path, text, name="p.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_other_frameworks_columns_are_named(tmp_path):
    path = csv(tmp_path, "id,truth,score\n007,1,0.75\n008,0,0.5\n")
    found = read_predictions(path, label="truth", probability="score", row="id")
    assert found.probabilities[:, 1].tolist() == [0.75, 0.5]
    assert found.rows.tolist() == ["007", "008"]  # text, as it stands there
    path = csv(tmp_path, "truth,prob_cat,prob_dog\ndog,0.5,0.5\n")
    found = read_predictions(path, label="truth", probability=["prob_dog", "prob_cat"])
    assert (found.classes, found.labels.tolist()) == (["dog", "cat"], [0])
    path = csv(tmp_path, "label,p_yes\nyes,0.75\nno,0.5\n")
    assert read_predictions(path).classes == ["no", "yes"]
    path = csv(tmp_path, "label,score\nyes,0.75\nno,0.5\n")
    assert read_predictions(path, probability="score", classes=["yes", "no"]).labels.tolist() == [0, 1]


BAD = [
    ("", {}, "is empty: it has no bytes"),
    ("label,p_0,p_1\n", {}, "has a header and no rows"),
    (
        "lable,p_0,p_1\n1,0.5,0.5\n",
        {},
        "no column 'label' for the labels; its columns are lable, p_0, p_1.*mean 'lable'",
    ),
    ("label,a,b\n1,0.5,0.5\n", {}, "no columns of probabilities called p_<class>; its columns are label, a, b"),
    ("label,a,b\n1,0.5,0.5\n", {"probability": ["a", "c"]}, "no column 'c' for probabilities"),
    ("label,a,b\n1,0.5,0.5\n", {"probability": ["a", "a"]}, "named twice: a"),
    ("label,p_0,p_1\n1,0.5,0.5\n", {"row": "id"}, "no column 'id' for the row ids"),
    ("label,p_0,p_1\n1,0.5,0.5\n", {"split": "test"}, "no column 'split'"),
    ("label,p_0,p_0\n1,0.5,0.5\n", {}, "several columns called p_0"),
    ("label;p_0;p_1\n1;0,5;0,5\n", {}, "seem to be parted by ';'"),
    ("label,p_0,p_1\n1,0.5,0.5\n1,0.5\n", {}, r"row 1 \(line 3\) has 2 cells where the header has 3. Mend that line"),
    ("label,p_0,p_1\n1,0.5,0,5\n", {}, r"row 0 \(line 2\) has 4 cells where the header has 3"),
    ("label,p_0,p_1\n1,0.5,half\n", {}, r"column 'p_1' should hold numbers, and row 0 .* has 'half'"),
    ("label,p_0,p_1\n1,0.5,\n", {}, "row 0, column 'p_1': nan"),
    ("label,p_0,p_1\n,0.5,0.5\n", {}, "row 0 has no label"),
    ("label,p_0,p_1\n2,0.5,0.5\n", {}, r"one of the classes 0, 1, and this is not: '2' \(row 0\)"),
    ("row,label,p_0,p_1\na,1,0.5,0.7\n", {}, "those of row a add up to 1.2"),
    ("row,label,p_0,p_1\na,1,0.5,0.5\na,1,0.5,0.5\n", {}, "several times: a"),
    ("label,split,p_0,p_1\n1,train,0.5,0.5\n", {}, r"no rows in the split 'test'; it has train \(1\)"),
    ("label,split,p_0,p_1\n1,test,0.5,0.5\n", {"split": "validation"}, "no rows in the split 'validation'"),
]


@pytest.mark.parametrize(("text", "options", "sentence"), BAD)
def test_a_bad_file_gets_its_sentence(tmp_path, text, options, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_predictions(csv(tmp_path, text), **options)
    assert "p.csv" in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_cells_that_are_no_numbers_are_told_how_to_become_some(tmp_path, suffix):
    for cell, fix in (("True", "Write truth values as 1 and 0"), ("0,5", "Write decimals with a point")):
        table = pd.DataFrame({"label": [0, 1], "p_1": [0.5, 0.5], "w": [cell, cell]})
        path = tmp_path / f"w{suffix}"
        table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
        with pytest.raises(DataError, match=rf"'w' should hold numbers, and row 0.* has '{cell}'. {fix}"):
            read_predictions(path, weight="w")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_a_quote_that_nothing_closes_swallows_no_rows(tmp_path, ending):
    """Arrow takes all that follows for one cell: of 200,000 rows 49,999 were missing, and nothing said so."""
    lines = ["label,p_1,note", *(f"{i % 2},0.{i % 9 + 1},x" for i in range(200_000))]

    def written(**changed):
        text = "\n".join([changed.get(f"row_{i - 1}", line) for i, line in enumerate(lines)]) + "\n"
        raw = (text.replace(",", "\t") if ending == ".tsv" else text).encode()
        path = tmp_path / f"q{ending}"
        path.write_bytes(gzip.compress(raw) if ending.endswith(".gz") else raw)
        return path

    said = r"row 150000 \(line 150002\) has a quote that closes nowhere, or not at the end of a cell.*Mend that line"
    with pytest.raises(DataError, match=said):
        read_predictions(written(row_150000='0,0.5,"never closed'))
    with pytest.raises(DataError, match=said):  # an even number of quotes
        read_predictions(written(row_150000='0,0.5,"never closed', row_150700='1,0.5,"nor here'))
    fine = {"row_1": '1,0.5,"two\nlines ""and"" quotes"', "row_7": '0,0.5,5" pipe', "row_9": ""}
    assert len(read_predictions(written(**fine))) == 199_999
    with pytest.raises(DataError, match=r"'p_1' should hold numbers, and row 3 \(line 5\) has '0_5'"):
        read_predictions(written(row_3="1,0_5,x"))


def test_rows_that_do_not_add_up_say_which_columns_were_taken(tmp_path):
    path = csv(tmp_path, "label,p_0,p_1,p_value\n1,0.4,0.6,0.1\n")
    with pytest.raises(DataError, match=r"add up to 1.1 .*taken from the columns p_0, p_1, p_value. If a column"):
        read_predictions(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_that_name_no_split_are_said(tmp_path, suffix):
    """They were left out, and no note told of them."""
    table = pd.DataFrame({"label": [0, 1] * 4, "p_1": [0.5] * 8, "split": ["test", None] * 4})
    path = tmp_path / f"s{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    found = read_predictions(path)
    assert len(found) == 4
    assert found.notes[0].startswith("The file holds the splits (missing) (4), test (4); none was asked for")
    assert splits_in(path) == ["(missing)", "test"]
    assert len(read_predictions(path, split="(missing)")) == 4
    assert len(read_predictions(path, split="all")) == 8


def test_what_is_no_table_at_all_gets_its_sentence(tmp_path):
    csv(tmp_path, "x", "preds.csv")
    with pytest.raises(DataError, match=r"no file .*Did you mean '.*preds.csv'"):
        read_predictions(tmp_path / "pred.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files of predictions"):
        read_predictions(tmp_path / "empty")
    with pytest.raises(DataError, match=r"from .parquet, .*, .npz.*, and .* ends in '.xlsx'"):
        read_predictions(csv(tmp_path, "x", "p.xlsx"))
    with pytest.raises(DataError, match=r"not what its name says.*looks like text, perhaps CSV. Rename"):
        read_predictions(csv(tmp_path, "label,p_1\n", "p.parquet"))
    with pytest.raises(DataError, match="looks like a binary file of another kind"):
        read_predictions(csv(tmp_path, "\0\0\0", "q.parquet"))
    with pytest.raises(DataError, match="looks like a binary file of another kind"):
        read_predictions(csv(tmp_path, "\0\0\0", "q.csv"))
    with pytest.raises(DataError, match="seems damaged"):
        read_predictions(csv(tmp_path, "PAR1 and no more", "r.parquet"))
    write_predictions(tmp_path / "s.parquet", P, task="multi-class", classes=CLASSES)
    (tmp_path / "s.parquet").rename(tmp_path / "s.csv")
    with pytest.raises(DataError, match=r"its content looks like a Parquet file. Rename"):
        read_predictions(tmp_path / "s.csv")
    (tmp_path / "t.csv").write_bytes("label,p_é\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_predictions(tmp_path / "t.csv")
    write_predictions(tmp_path / "unlabelled.parquet", P, task="multi-class", classes=CLASSES)
    with pytest.raises(DataError, match="no column 'label'"):
        read_predictions(tmp_path / "unlabelled.parquet")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"written as .parquet or .csv, and .* ends in '.txt'"):
        write_predictions(tmp_path / "p.txt", P, task="multi-class", classes=CLASSES)
    with pytest.raises(DataError, match=r"\(n, 2\), one column per class, and are \(4, 3\)"):
        write_predictions(tmp_path / "p.csv", P, task="multi-class", classes=CLASSES[:2])
    with pytest.raises(DataError, match="4 rows of probabilities and 1 in 'label'"):
        write_predictions(tmp_path / "p.csv", P, task="multi-class", classes=CLASSES, labels=["cat"])
    with pytest.raises(DataError, match="for a range give"):
        write_predictions(tmp_path / "p.csv", P, task="range", low=0, high=1)
    with pytest.raises(DataError, match="two classes have one name"):
        write_predictions(tmp_path / "p.csv", P, task="multi-class", classes=["1", 1, "2"])
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = csv(tmp_path, "label,p_1\n1,0.5\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match="pip install 'crossent\\[cli\\]'"):
        read_predictions(path)


def test_columns_that_are_written_are_those_of_their_names(tmp_path):
    """Not of the place that they have in a frame."""
    frame = pd.DataFrame([[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]], columns=["c", "a", "b"])
    soft = pd.DataFrame([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25]], columns=["b", "c", "a"])
    write_predictions(tmp_path / "p.csv", frame, task="multi-class", labels=soft, classes=["a", "b", "c"])
    written = pd.read_csv(tmp_path / "p.csv")
    assert written[["p_a", "p_b", "p_c"]].to_numpy().tolist() == [[0.2, 0.3, 0.5], [0.8, 0.1, 0.1]]
    assert written[["label_a", "label_b", "label_c"]].to_numpy().tolist() == [[0, 1, 0], [0.25, 0.25, 0.5]]
