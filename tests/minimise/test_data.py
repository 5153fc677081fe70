"""Data: every reader reads, and every file that cannot be used gets its sentence."""

import datetime
import gzip
import io
import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.sparse
import torch

from crossent.errors import DataError
from crossent.minimise.data import dataset, parts

TABLE = pd.DataFrame({"height": [1.5, 2.5, 3.5], "town": ["Bonn", "Köln, West", "Ulm"], "y": ["no", "yes", "no"]})


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def same_as_the_table(found):
    return (
        found.x["height"].tolist() == TABLE["height"].tolist()
        and found.x["town"].tolist() == TABLE["town"].tolist()
        and found.y.tolist() == TABLE["y"].tolist()
        and (found.target, len(found)) == ("y", 3)
    )


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_csv_is_read_whatever_parts_its_cells(tmp_path, separator, suffix, mark):
    path = written(tmp_path, f"a{suffix}", mark + TABLE.to_csv(sep=separator, index=False))
    assert same_as_the_table(dataset.read(path))
    other = written(tmp_path, f"b{suffix}", mark + TABLE.replace("Ulm", "Hof").to_csv(sep=separator, index=False))
    assert not same_as_the_table(dataset.read(other))


def test_a_parquet_file_and_its_missing_cells(tmp_path):
    TABLE.to_parquet(tmp_path / "a.parquet")
    assert same_as_the_table(dataset.read(tmp_path / "a.parquet"))
    TABLE.assign(height=[1.5, None, 3.5]).to_parquet(tmp_path / "b.parquet")
    assert dataset.read(tmp_path / "b.parquet").x["height"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
def test_packed_text_and_json_lines_are_the_table(tmp_path, packed):
    for name, text in (
        ("a.csv", TABLE.to_csv(sep=";", index=False)),
        ("a.jsonl", TABLE.to_json(orient="records", lines=True)),
    ):
        path = tmp_path / f"{name}{packed}"
        with pa.output_stream(str(path), compression="detect") as file:
            file.write(text.encode())
        assert path.read_bytes().startswith(text[:4].encode()) == (not packed)
        assert same_as_the_table(dataset.read(path))


def test_a_feather_file_is_the_table(tmp_path):
    for name in ("a.feather", "a.arrow"):
        TABLE.to_feather(tmp_path / name)
        assert same_as_the_table(dataset.read(tmp_path / name))


def test_quoted_cells_keep_separators_lines_and_spaces_after_a_comma(tmp_path):
    text = '"name; of, it", note, y\n"a, b", "two\nlines", 1\n"c", d, 0\n'
    found = dataset.read(written(tmp_path, "a.csv", text))
    assert found.x["name; of, it"].tolist() == ["a, b", "c"]
    assert found.x["note"].tolist() == ["two\nlines", "d"]
    assert found.y.tolist() == [1, 0]
    semicolons = dataset.read(written(tmp_path, "b.csv", '"last, first, middle";y\n"a, b";1\n'))
    assert semicolons.x.columns.tolist() == ["last, first, middle"]


@pytest.mark.parametrize(
    ("header", "target", "expected"),
    [
        ("a,target,b", None, "target"),
        ("label,a,b", None, "label"),
        ("a, Class ,b", None, "Class "),
        ("a,b,c", None, "c"),
        ("y,b,c", "b", "b"),
    ],
)
def test_the_target_is_the_usual_name_or_the_last_column_unless_named(tmp_path, header, target, expected):
    found = dataset.read(written(tmp_path, "a.csv", f"{header}\n1,2,3\n4,5,6\n"), target)
    assert found.target == expected
    assert expected not in found.x.columns
    assert found.x.shape == (2, 2)


def test_an_npz_with_numbers_images_and_text_labels(tmp_path):
    x, y = np.arange(24).reshape(3, 8), np.array(["a", "b", "a"])
    np.savez(tmp_path / "a.npz", x=x, y=y, other=y[::-1])
    found = dataset.read(tmp_path / "a.npz")
    assert found.x.tolist() == x.tolist()
    assert found.x.dtype == np.float32
    assert found.y.tolist() == ["a", "b", "a"]
    np.savez_compressed(tmp_path / "b.npz", x=x, kind=[3, 1, 2])
    assert dataset.read(tmp_path / "b.npz", "kind").y.tolist() == [3, 1, 2]
    assert dataset.read(tmp_path / "b.npz", labelled=False).y is None


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("digits", (1797, 64), {*range(10)}),
        ("breast_cancer", (569, 30), {"malignant", "benign"}),
        ("iris", (150, 4), {"setosa", "versicolor", "virginica"}),
        ("wine", (178, 13), {"class_0", "class_1", "class_2"}),
    ],
)
def test_the_embedded_sets(name, shape, labels):
    found = dataset.read(name)
    assert found.x.shape == shape
    assert set(found.y.tolist()) == labels
    with pytest.raises(DataError, match=r"has its own target; leave out --target"):
        dataset.read(name, "size")


def test_diabetes_is_a_number_for_each_row():
    found = dataset.read("diabetes")
    assert found.x.shape == (442, 10)
    assert (found.y.min(), found.y.max()) == (25, 346)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("sheet.xml", "<a/>")
    return buffer.getvalue()


def parquet(table=TABLE):
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


ARRAYS = npz(x=np.arange(4000.0).reshape(1000, 4), y=np.arange(1000) % 2)
BAD_FILES = {
    "no bytes": ("a.csv", b"", "is empty: it has no bytes at all"),
    "no bytes, npz": ("a.npz", b"", "is empty: it has no bytes at all"),
    "blank lines": ("a.csv", "\n\n\n", "is empty: it has no header and no rows"),
    "header only": ("a.csv", "a,b,y\n", "has a header and no rows"),
    "one column": ("a.csv", "y\n1\n2\n", "has only one column, 'y': there is nothing to predict it from"),
    "twins": ("a.csv", "a,b,a,y\n1,2,3,4\n", "more than one column named a. Rename them"),
    "a later line too long": ("a.csv", "a,b,y\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
    "all lines too long": ("a.csv", "a,b,y\n1,2,3,4\n5,6,7,8\n", "Each line needs as many cells as the header"),
    "an open quote": ("a.csv", 'a,y\n"never closed,1\n2,3\n', "is not a readable CSV"),
    "latin-1": ("a.csv", "a,y\né,1\n".encode("latin-1"), "is not a readable CSV: .* in UTF-8"),
    "utf-16": ("a.csv", "a,y\n1,1\n".encode("utf-16"), "not what its name says: its content looks like text in UTF-16"),
    "junk": ("a.csv", bytes(range(256)) * 9, "not what its name says: its content looks like a binary file"),
    "junk without zeros": ("a.csv", bytes(range(128, 256)) * 9, "is not a readable CSV: .* in UTF-8"),
    "a zip": ("a.csv", zipped(), "its content looks like a zip, as .npz and .xlsx files are. Rename or convert it"),
    "parquet named csv": ("a.csv", parquet(), "its content looks like a Parquet file. Rename"),
    "csv named parquet": ("a.parquet", "a,y\n1,2\n", "its content looks like text, perhaps CSV. Rename or convert it"),
    "csv named npz": ("a.npz", "a,y\n1,2\n", "its content looks like text, perhaps CSV. Rename or convert it"),
    "a cut parquet": ("a.parquet", parquet()[:-30], "is not a readable Parquet file"),
    "cut gzip": ("a.csv.gz", gzip.compress(b"a,y\n" + b"1,2\n" * 99)[:20], "is not a readable CSV: "),
    "plain text called packed": ("a.csv.gz", "a,y\n1,2\n", "its content looks like text"),
    "packed text called plain": ("a.csv", gzip.compress(b"a,y\n1,2\n"), "a file packed by gzip, .gz. Rename"),
    "no JSON": ("a.jsonl", '{"a": 1, "y": 2}\n{"a": 1, "y"}\n', "is not a readable file of JSON lines: .* in row 1"),
    "several values": ("a.jsonl", '{"a": [1, 2], "y": 2}\n', "the column 'a' holds several values in a cell"),
    "a cut feather": ("a.feather", b"ARROW1" + bytes(40), "is not a readable Feather file: "),
    "a cut npz": ("a.npz", ARRAYS[: len(ARRAYS) // 2], "is not a readable .npz of plain arrays"),
    "no arrays": ("a.npz", zipped(), r"needs the arrays 'x' \(n, d\) and 'y' \(n,\); it has sheet.xml"),
    "no y": ("a.npz", npz(x=np.ones((3, 2)), z=np.ones(3)), r"needs the arrays 'x' .* it has x, z"),
    "objects": (
        "a.npz",
        npz(x=np.ones((2, 2)), y=np.array(["a", None], dtype=object)),
        "Objects in arrays are not read",
    ),
    "flat x": ("a.npz", npz(x=np.ones(3), y=np.ones(3)), r"x must have a row for each example.*reshape\(-1, 1\)"),
    "text x": ("a.npz", npz(x=np.array([["a"]]), y=np.ones(1)), "x must hold numbers; it holds <U1"),
    "lengths": ("a.npz", npz(x=np.ones((3, 2)), y=np.ones(4)), r"one label for each of the 3 rows of x; its shape is"),
    "infinite": ("a.npz", npz(x=np.array([[1, 2], [3, np.inf]]), y=np.ones(2)), "1 features are .* at row 1, column 1"),
    "too large": ("a.npz", npz(x=np.array([[1e300, 2.0]]), y=np.ones(1)), "too large for float32, first at row 0"),
    "a gap in an image": (
        "a.npz",
        npz(x=np.full((2, 3, 3), np.nan), y=np.ones(2)),
        r"18 features are infinite or .* by NaN if they are missing \(images must be complete\)",
    ),
    "five dimensions": ("a.npz", npz(x=np.ones((2, 1, 1, 1, 1)), y=np.ones(2)), r"or images \(n, height, width"),
    "negative shares": ("a.npz", npz(x=np.ones((1, 2)), y=np.array([[2, -1]])), "row 0 has -1.0 in '1'"),
    "missing shares": ("a.npz", npz(x=np.ones((1, 2)), y=np.array([[np.nan, 1]])), "row 0 has nan in '0'"),
    "no shares": ("a.npz", npz(x=np.ones((2, 2)), y=np.array([[1, 0], [0, 0]])), "row 1 has no share of any class"),
    "shares over 1": (
        "a.npz",
        npz(x=np.ones((2, 2)), y=np.array([[0.5, 0.5], [0.5, 0.7]])),
        r"shares of the classes must add up to 1; those of row 1 add up to 1\.2",
    ),
    "text shares": (
        "a.npz",
        npz(x=np.ones((1, 2)), y=np.array([["a", "b"]])),
        "are shares or counts, and here .* text",
    ),
    "another kind": (
        "a.xlsx",
        zipped(),
        r"read from .csv, .tsv, .jsonl \(packed too: .*\), .parquet, .feather and .npz files, not from .xlsx",
    ),
    "no kind": ("a", "a,y\n1,2\n", "not from a nameless kind"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_every_file_that_cannot_be_used_gets_its_sentence(tmp_path, case):
    name, content, sentence = BAD_FILES[case]
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=sentence) as refused:
        dataset.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_columns_of_one_name_are_refused_in_parquet_and_in_memory(tmp_path):
    twins = pa.Table.from_arrays([pyarrow.array([1, 2])] * 3, names=["a", "a", "y"])
    pyarrow.parquet.write_table(twins, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"is not a readable Parquet file|more than one column named a"):
        dataset.read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"more than one column named a"):
        dataset.from_arrays(pd.DataFrame([[1, 2]], columns=["a", "a"]), [1])
    with pytest.raises(DataError, match=r"more than one column named 1"):
        dataset.from_arrays(pd.DataFrame([[1, 2]], columns=[1, "1"]), [1])


def test_what_is_not_there_is_named_with_what_is_close(tmp_path):
    path = written(tmp_path, "flowers.csv", "petal,sepal,kind\n1,2,3\n")
    with pytest.raises(DataError, match=r"neither a file nor one of the embedded sets .* Did you mean '.*flowers.csv'"):
        dataset.read(tmp_path / "flower.csv")
    with pytest.raises(DataError, match=r"Did you mean 'iris'"):
        dataset.read("irsi")
    with pytest.raises(DataError, match=r"embedded sets \([^)]*\)\.$"):
        dataset.read("nothing like it")
    with pytest.raises(DataError, match=r"neither a file"):
        dataset.read("long" * 100 + ".csv")
    with pytest.raises(DataError, match=r"no column 'kin'. Did you mean 'kind'\? Its columns are petal, sepal, kind"):
        dataset.read(path, "kin")
    with pytest.raises(DataError, match=r"no column 'colour'. Its columns are"):
        dataset.read(path, "colour")
    with pytest.raises(DataError, match=r"is a folder; name a file in it, a .csv, .parquet or .npz, say"):
        dataset.read(tmp_path)


def test_labels_in_every_guise_are_one_column():
    x = np.ones((3, 2))
    guises = [
        ["a", "b", "a"],
        np.array(["a", "b", "a"]),
        np.array([["a"], ["b"], ["a"]]),
        pd.Series(["a", "b", "a"], index=[7, 5, 3]),
        pd.Series(["a", "b", "a"], dtype="string"),
        pd.Series(["a", "b", "a"], dtype="category"),
        pd.Categorical(["a", "b", "a"]),
        pd.Index(["a", "b", "a"]),
        pd.DataFrame({"kind": ["a", "b", "a"]}),
    ]
    for guise in guises:
        assert dataset.from_arrays(x, guise).y.tolist() == ["a", "b", "a"], type(guise)
    assert dataset.from_arrays(torch.ones(3, 2), torch.tensor([1, 0, 1])).y.tolist() == [1, 0, 1]
    assert dataset.from_arrays(x, pd.array([1, None, 2], dtype="Int64")).y.tolist() == pytest.approx(
        [1, np.nan, 2], nan_ok=True
    )
    with pytest.raises(DataError, match=r"one label for each of the 3 rows"):
        dataset.from_arrays(x, ["a", "b"])
    with pytest.raises(DataError, match=r"x has no rows"):
        dataset.from_arrays(np.ones((0, 2)), [])


def test_tables_of_polars_and_arrow_are_tables():
    days = [datetime.date(2020, 1, 1), datetime.date(2020, 2, 1), None]
    cells = {"a": [1.0, None, 2.5], "kind": ["x", "y", None], "day": days}
    tables = [pl.DataFrame(cells).with_columns(pl.col("kind").cast(pl.Categorical)), pa.table(cells)]
    for table, y in zip(tables, (pl.Series("won", ["b", "a", "b"]), pa.array(["b", "a", "b"])), strict=True):
        found = dataset.from_arrays(table, y, weight=pl.Series([1, 2, 3]))
        assert found.x["a"].tolist() == pytest.approx([1, np.nan, 2.5], nan_ok=True)
        assert found.x["kind"].isna().tolist() == [False, False, True]
        assert pd.to_datetime(found.x["day"]).dt.month.tolist()[:2] == [1, 2]
        assert (found.y.tolist(), found.weight.tolist()) == (["b", "a", "b"], [1, 2, 3])
    soft = dataset.from_arrays(tables[0], pl.DataFrame({"u": [1, 0, 2], "v": [0, 3, 2]}))
    assert (soft.names, soft.y.tolist()) == (("u", "v"), [[1, 0], [0, 1], [0.5, 0.5]])


def test_what_is_masked_is_missing_and_bfloat16_are_numbers():
    found = dataset.from_arrays(np.ma.array([[1, 2], [3, 4]], mask=[[0, 1], [0, 0]]), np.ma.array([1, 2], mask=[1, 0]))
    assert np.isnan(found.x).tolist() == [[False, True], [False, False]]
    assert np.isnan(found.y).tolist() == [True, False]
    assert dataset.from_arrays(torch.tensor([[0.5], [2.0]]).bfloat16(), [0, 1]).x.tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (pd.DataFrame({"a": [1, 2]}), pd.Series([0, 1], index=[1, 0]), "x and y have different indices"),
        (pd.DataFrame({"a": [1, 2], "k": [[1], [2, 3]]}), [0, 1], "'k' holds several values in a cell"),
        (pd.DataFrame({"a": [1, 2j]}), [0, 1], "'a' holds complex numbers"),
        (scipy.sparse.csr_matrix(np.eye(2)), [0, 1], r"is a sparse matrix, .* pass x.toarray\(\)"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(x, y, sentence):
    with pytest.raises(DataError, match=sentence):
        dataset.from_arrays(x, y)


def test_soft_labels_of_a_test_are_those_of_the_same_names(tmp_path):
    """They were taken by their place: with the columns in another order the test was of other classes."""
    train, turned = VOTES[["a", "votes_no", "votes_yes"]], VOTES[["votes_yes", "a", "votes_no"]]
    for name, table in (("train", train), ("test", turned)):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    own, other = parts.both(tmp_path / "train.csv", None, "votes_*", None, tmp_path / "test.csv")
    assert other.names == own.names == ("no", "yes")
    assert other.y.tolist() == own.y.tolist()
    columns = ["votes_no", "votes_yes"]
    own, other = parts.both(train[["a"]], train[columns], None, None, (turned[["a"]], turned[columns[::-1]]))
    assert other.y.tolist() == own.y.tolist()
    strange = turned[columns].rename(columns={"votes_no": "votes_maybe"})
    for labels, sentence in ((strange, "should have the same names"), ([0, 1, 1], "write both in one way")):
        with pytest.raises(DataError, match=sentence):
            parts.both(train[["a"]], train[columns], None, None, (train[["a"]], labels))
    with pytest.raises(DataError, match="write both in one way"):
        parts.both(train[["a"]], [0, 1, 1], None, None, (train[["a"]], train[columns]))


def test_the_caller_keeps_the_table_as_it_was():
    table = pd.DataFrame({1: [1.0, 2.0], "b": ["x", "y"]}, index=[9, 8])
    before = table.copy()
    found = dataset.from_arrays(table, ["a", "b"])
    assert found.x.columns.tolist() == ["1", "b"]
    pd.testing.assert_frame_equal(table, before)


def test_a_missing_number_of_an_array_is_missing_and_an_infinite_one_is_refused():
    x = np.array([[1.0, np.nan], [3.0, 4.0]])
    found = dataset.from_arrays(x, [0, 1]).x
    assert np.isnan(found).tolist() == [[False, True], [False, False]]
    assert found[1].tolist() == [3, 4]
    for bad in (np.inf, -np.inf, 1e39):
        with pytest.raises(DataError, match=r"1 features are infinite or too large for float32, first at row 1"):
            dataset.from_arrays(np.array([[1.0, np.nan], [3.0, bad]]), [0, 1])


IMAGE = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (IMAGE, IMAGE / 255),
        (np.moveaxis(IMAGE, 1, 3), IMAGE / 255),
        (IMAGE[:, 0], IMAGE[:, :1] / 255),
        (IMAGE[:, :1], IMAGE[:, :1] / 255),
        (np.moveaxis(IMAGE[:, :1], 1, 3), IMAGE[:, :1] / 255),
        (IMAGE / 255, IMAGE / 255),
        (torch.from_numpy(IMAGE), IMAGE / 255),
        (IMAGE.astype(np.int16), IMAGE),
        (np.moveaxis(IMAGE, 1, 3).astype(np.float64), IMAGE),
    ],
    ids=["c h w", "h w c", "h w", "1 h w", "h w 1", "floats", "tensor", "int16 as they are", "float64 as they are"],
)
def test_images_come_as_channels_height_width_and_bytes_as_shares(given, expected):
    found = dataset.from_arrays(given, [0, 1]).x
    assert (found.dtype, found.flags["C_CONTIGUOUS"]) == (np.float32, True)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected.astype(np.float32))
    assert not np.array_equal(
        dataset.from_arrays(given[::-1] if isinstance(given, np.ndarray) else given.flip(0), None).x, found
    )


VOTES = pd.DataFrame({"a": [1.5, 2.5, 3.5], "votes_no": [3, 0, 1], "w": [1, 0, 2.5], "votes_yes": [1, 2, 1]})


def test_a_pattern_names_one_column_for_each_class(tmp_path):
    VOTES.to_csv(tmp_path / "a.csv", index=False)
    found = dataset.read(tmp_path / "a.csv", "votes_*", "w")
    assert (found.names, found.target, found.x.columns.tolist()) == (("no", "yes"), "votes_*", ["a"])
    assert found.y.tolist() == [[0.75, 0.25], [0, 1], [0.5, 0.5]]
    assert found.weight.tolist() == [1, 0, 2.5]
    assert dataset.read(tmp_path / "a.csv", "votes_*").x.columns.tolist() == ["a", "w"]
    assert dataset.read(tmp_path / "a.csv", "w").y.tolist() == [1, 0, 2.5]
    new = VOTES[["a"]]
    new.to_csv(tmp_path / "new.csv", index=False)
    assert dataset.read(tmp_path / "new.csv", "votes_*", "w", labelled=False).x.columns.tolist() == ["a"]
    assert dataset.read(tmp_path / "a.csv", "votes_*", "w", labelled=False).x.columns.tolist() == ["a"]
    for pattern, sentence in (
        ("ballot_*", r"has 0 columns like 'ballot_\*'; labels in several columns need one for each class, two or more"),
        ("votes_n*", r"has 1 column like 'votes_n\*'"),
        ("*", r"has only columns like '\*': there is nothing to predict them from"),
    ):
        with pytest.raises(DataError, match=sentence):
            dataset.read(tmp_path / "a.csv", pattern)


def test_soft_labels_of_arrays_and_tables_are_shares_with_names():
    x = np.ones((2, 3))
    counts = dataset.from_arrays(x, np.array([[3, 1], [0, 5]]))
    assert (counts.y.tolist(), counts.names) == ([[0.75, 0.25], [0, 1]], ("0", "1"))
    named = dataset.from_arrays(x, pd.DataFrame({"no": [0.2, 1.0], "yes": [0.8, 0.0]}))
    assert (named.y.tolist(), named.names) == ([[0.2, 0.8], [1, 0]], ("no", "yes"))
    assert dataset.from_arrays(torch.ones(2, 3), torch.tensor([[0.5, 0.5], [0.25, 0.75]])).y.tolist()[1] == [0.25, 0.75]
    off = np.array([[0.5, 0.50004], [1 / 3, 2 / 3]])  # what rounding leaves is put right
    assert dataset.from_arrays(x, off).y.sum(1) == pytest.approx([1, 1], abs=1e-15)
    with pytest.raises(DataError, match=r"one label for each of the 2 rows of x; its shape is \(3, 2\)"):
        dataset.from_arrays(x, np.ones((3, 2)))


def test_weights_are_finite_numbers_one_a_row_and_not_all_nothing(tmp_path):
    assert dataset.from_arrays(np.ones((2, 1)), [0, 1], weight=[1, 3]).weight.tolist() == [1, 3]
    for weight, sentence in (
        ([1, 2, 3], r"2 rows need as many weights; their shape is \(3,\)"),
        ([1, -1], r"weights are finite numbers from 0 on; row 1 has -1.0 in 'weight'"),
        ([1, np.nan], r"row 1 has nan"),
        ([1, np.inf], r"row 1 has inf"),
        ([0, 0], r"all weights in 'weight' are 0: no row counts"),
        ([1, 1e99], r"go up to 1e\+99, .* Divide them by one number"),
        ([1e-99, 1e-99], r"go up to 1e-99, .* only their proportions matter"),
        (["a", "b"], r"'weight' must hold numbers"),
    ):
        with pytest.raises(DataError, match=sentence):
            dataset.from_arrays(np.ones((2, 1)), [0, 1], weight=weight)
    with pytest.raises(DataError, match=r"x and the weights have different indices"):
        dataset.from_arrays(pd.DataFrame({"a": [1, 2]}), [0, 1], weight=pd.Series([1, 2], index=[1, 0]))
    VOTES.assign(town="Ulm").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"'town' must hold numbers, the weights of the rows"):
        dataset.read(tmp_path / "a.csv", "a", "town")
    with pytest.raises(DataError, match=r"has no column 'ww'. Did you mean 'w'\?"):
        dataset.read(tmp_path / "a.csv", "a", "ww")
    with pytest.raises(DataError, match=r"the embedded set 'iris' has no weights; leave out --weight"):
        dataset.read("iris", weight="w")
    np.savez(tmp_path / "a.npz", x=np.ones((2, 1)), y=[0, 1], w=[1.0, 2.0])
    assert dataset.read(tmp_path / "a.npz", weight="w").weight.tolist() == [1, 2]
    assert dataset.read(tmp_path / "a.npz", weight="w", labelled=False).weight.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"needs the arrays 'x' .* it has x, y, w"):
        dataset.read(tmp_path / "a.npz", weight="v")
