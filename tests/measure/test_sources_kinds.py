"""Every kind of file, one way of reading: the same rows from each, in batches of any size, from a folder or a store."""

import gzip
import json
import tracemalloc

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.json
import pyarrow.parquet
import pytest

from crossent.errors import DataError, MissingExtra
from crossent.measure import Predictions, evaluate
from crossent.measure.sources import batches, read_predictions

RNG = np.random.default_rng(0)
N = 300
P = RNG.dirichlet([0.5] * 3, size=N)
Y = np.array(["cat", "dog", "hen"])[[RNG.choice(3, p=row) for row in P]]
TABLE = pa.table(
    {
        "id": np.arange(1000, 1000 + N),
        "y": Y,
        "prob_cat": P[:, 0],
        "prob_dog": P[:, 1],
        "prob_hen": P[:, 2],
        "w": RNG.integers(0, 4, N) / 2,
        "game": RNG.integers(40, size=N),
        "city": RNG.choice(["Oslo", "Rome"], N),
        "season": RNG.integers(2020, 2023, N),
        "length": RNG.integers(1, 99, N),
    }
)
NAMED = {
    "label": "y",
    "probability": "prob_*",
    "row": "id",
    "weight": "w",
    "group": "game",
    "by": ["city", "season"],
    "bytes": "length",
}


def write(table, path):
    path = str(path)
    if path.endswith("parquet"):
        pa.parquet.write_table(table, path, row_group_size=70)
    elif path.endswith("csv"):
        pa.csv.write_csv(table, path)
    elif path.endswith("jsonl"):
        with open(path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    elif path.endswith("npz"):
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names}
        np.savez_compressed(path, **columns)
    else:
        pa.feather.write_feather(table, path, chunksize=70)
    return path


def same(a: Predictions, b: Predictions) -> None:
    assert a.probabilities == pytest.approx(b.probabilities, abs=1e-15)
    for name in ("labels", "weights", "bytes", "rows"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    assert [str(group) for group in a.groups] == [str(group) for group in b.groups]
    assert {name: cells.tolist() for name, cells in a.slices.items()} == {
        name: cells.tolist() for name, cells in b.slices.items()
    }
    assert (a.classes, a.task, a.notes) == (b.classes, b.task, b.notes)


def expected() -> Predictions:
    beside = {"weights": TABLE["w"].to_numpy(), "groups": TABLE["game"].to_numpy(), "bytes": TABLE["length"].to_numpy()}
    slices = {name: np.array(TABLE[name].to_pylist(), object) for name in ("city", "season")}
    rows = TABLE["id"].to_numpy()
    return Predictions.from_arrays(P, Y, ["cat", "dog", "hen"], rows, **beside, slices=slices)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "feather", "npz"])
def test_every_kind_gives_the_same_rows_in_batches_of_any_size(tmp_path, suffix):
    path = write(TABLE, tmp_path / f"p.{suffix}")
    found = read_predictions(path, **NAMED)
    same(found, expected())
    assert "Some rows have weight 0 and count for nothing." in found.notes
    for rows in (1, 7, 299):
        parts = list(batches(path, **NAMED, batch_rows=rows))
        assert max(len(part) for part in parts) <= rows
        same(Predictions.concatenate(parts), expected())
        assert {tuple(part.classes) for part in parts} == {("cat", "dog", "hen")}


def test_a_folder_and_a_pattern_are_read_in_the_order_of_their_names(tmp_path):
    for start in (0, 100, 200):
        write(TABLE.slice(start, 100), tmp_path / f"part-{start:03}.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").write_text("not a table")
    for path in (tmp_path, f"{tmp_path}/part-*.parquet", sorted(tmp_path.glob("*.parquet"))):
        same(read_predictions(path, **NAMED), expected())
    assert len(read_predictions(f"{tmp_path}/part-1*.parquet", **NAMED)) == 100
    with pytest.raises(DataError, match=r"part-100.parquet would be read twice.*name every file once"):
        read_predictions([f"{tmp_path}/part-*.parquet", f"{tmp_path}/../{tmp_path.name}/part-100.parquet"], **NAMED)
    shown = read_predictions(tmp_path, label="y", probability="prob_*").rows
    assert shown.tolist() == list(range(300))  # rows without ids are counted on from file to file


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "feather", "npz"])
def test_an_object_store_is_read_like_a_disk(tmp_path, suffix):
    store = fsspec.filesystem("memory")
    with open(write(TABLE, tmp_path / f"p.{suffix}"), "rb") as file:
        store.pipe(f"/bucket/{suffix}/p.{suffix}", file.read())
    same(read_predictions(f"memory://bucket/{suffix}/p.{suffix}", **NAMED), expected())
    same(read_predictions(f"memory://bucket/{suffix}", **NAMED), expected())
    same(read_predictions(f"memory://bucket/{suffix}/*.{suffix}", **NAMED), expected())
    with pytest.raises(DataError, match=rf"no file 'memory://bucket/{suffix}/q.{suffix}'. Did you mean 'memory://"):
        read_predictions(f"memory://bucket/{suffix}/q.{suffix}")


def test_a_column_of_lists_is_one_column_per_class(tmp_path):
    lists = pa.table({"label": TABLE["y"], "p": P.tolist()})
    for suffix in ("parquet", "feather", "jsonl"):
        path = write(lists, tmp_path / f"l.{suffix}")
        found = read_predictions(path, probability="p", classes=["cat", "dog", "hen"])
        assert found.probabilities == pytest.approx(P, abs=1e-15)
    np.savez(tmp_path / "l.npz", label=Y, p=P.astype(np.float32))
    found = read_predictions(tmp_path / "l.npz", probability="p", classes=["cat", "dog", "hen"])
    assert found.probabilities == pytest.approx(P, abs=1e-6)
    pa.parquet.write_table(pa.table({"label": ["cat"] * 2, "p": [[0.5, 0.5], [1.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="'p' should be a list of 2 numbers, and that of row 1 has 1"):
        read_predictions(tmp_path / "ragged.parquet", probability="p")


def test_bytes_may_be_the_text_itself(tmp_path):
    path = write(pa.table({"label": [0, 1], "p_1": [0.2, 0.7], "text": ["né", "abcd"]}), tmp_path / "t.parquet")
    assert read_predictions(path, bytes="text").bytes.tolist() == [3, 4]


# What the first batch decides


def table(tmp_path, **columns):
    return write(pa.table(columns), tmp_path / "d.parquet")


def test_two_classes_get_their_names_from_all_of_the_labels(tmp_path):
    path = table(tmp_path, label=["yes"] * 9 + ["no"], p_yes=np.full(10, 0.9))
    assert {tuple(part.classes) for part in batches(path, batch_rows=3)} == {("no", "yes")}
    path = table(tmp_path, label=["b"] * 9 + ["c"], p_a=np.full(10, 0.9))
    with pytest.raises(DataError, match="which class is the probability of"):
        list(batches(path, batch_rows=3))


def test_labels_that_would_change_the_names_are_refused(tmp_path):
    path = table(tmp_path, label=["0"] * 9 + ["2"], p_1=np.full(10, 0.5))
    with pytest.raises(DataError, match=r"which class is the probability of|later ones"):
        list(batches(path, batch_rows=3))
    path = table(tmp_path, label=["cat"] * 9 + ["1"], p_cat=np.full(10, 0.5), p_dog=np.full(10, 0.5))
    with pytest.raises(DataError, match=r"one of the classes cat, dog.*'1'"):
        list(batches(path, batch_rows=3))


def test_the_form_of_the_first_rows_holds_for_all(tmp_path):
    z = np.where(np.arange(10)[:, None] < 8, [[3.0, -2.5]], [[0.25, 0.75]])
    path = table(tmp_path, label=[0, 1] * 5, p_0=z[:, 0], p_1=z[:, 1])
    with pytest.raises(DataError, match="first rows are logits, and rows from row 8 on add up to 1"):
        list(batches(path, batch_rows=4))
    assert read_predictions(path, form="logits").probabilities[0, 0] == pytest.approx(1 / (1 + np.exp(-5.5)))
    path = table(tmp_path, label=[0, 1] * 5, p_0=z[::-1, 0], p_1=z[::-1, 1])
    with pytest.raises(DataError, match=r"between 0 and 1.*row 2, column 'p_0': 3"):
        list(batches(path, batch_rows=2))


def test_labels_in_several_columns_meet_the_probabilities_by_name(tmp_path):
    votes = {"votes_dog": [3, 0], "votes_cat": [1, 2]}
    path = table(tmp_path, p_cat=[0.5, 0.5], p_dog=[0.5, 0.5], **votes)
    found = read_predictions(path, label="votes_*")
    assert found.labels.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert found.weights is None
    assert any("annotators' counts" in note and "counts once" in note for note in found.notes)
    assert read_predictions(path, label="votes_*", truth="weighted counts").weights.tolist() == [4.0, 2.0]
    path = table(tmp_path, p_cat=[0.5, 0.5], p_dog=[0.5, 0.5], a=[1, 0], b=[0, 1])
    with pytest.raises(DataError, match=r"which column of labels belongs to which class.*classes cat, dog"):
        read_predictions(path, label=["a", "b"])
    assert read_predictions(path, label=["a", "b"], classes=["cat", "dog"]).labels.tolist() == [0, 1]
    many = table(tmp_path, p_cat=np.full(10, 0.5), p_dog=np.full(10, 0.5), y_cat=[1] * 9 + [2], y_dog=[0] * 9 + [1])
    assert read_predictions(many, label="y_*").labels[-1].tolist() == pytest.approx([2 / 3, 1 / 3])
    with pytest.raises(DataError, match=r"one-hot label has a single 1, and that of row 9 adds up to 3.*truth='soft'"):
        list(batches(many, label="y_*", batch_rows=4))


def test_ids_that_are_text_in_one_batch_are_text_in_all(tmp_path):
    path = table(tmp_path, row=["1", "2", "x"], label=[0, 1, 0], p_1=[0.5, 0.5, 0.5])
    assert Predictions.concatenate(list(batches(path, batch_rows=2))).rows.tolist() == ["1", "2", "x"]


def test_progress_grows_to_1(tmp_path):
    for suffix in ("parquet", "csv", "jsonl", "feather", "npz"):
        (tmp_path / suffix).mkdir()
        for part in (0, 1):
            write(TABLE.slice(150 * part, 150), tmp_path / suffix / f"{part}.{suffix}")
        seen: list[float] = []
        list(batches(tmp_path / suffix, **NAMED, batch_rows=50, progress=seen.append))
        assert seen == sorted(seen)
        assert seen[-1] == pytest.approx(1.0)
        assert min(seen) < 0.6


@pytest.mark.parametrize("row_group", [5_000, 10**9])
def test_memory_does_not_grow_with_rows(tmp_path, row_group):
    """Batches are views on what is read, and nothing of an earlier one is kept, nor of what comes is fetched ahead."""
    peaks = []
    for rows in (300_000, 1_200_000):
        p = RNG.random(rows)
        path = tmp_path / f"{rows}.parquet"
        pa.parquet.write_table(pa.table({"label": (p > 0.5).astype(np.int8), "p_1": p}), path, row_group_size=row_group)
        list(batches(path))  # what is imported on first use is not counted
        tracemalloc.start()
        arrow = max(pa.total_allocated_bytes() for _ in batches(path, batch_rows=20_000))
        peaks.append(tracemalloc.get_traced_memory()[1] + arrow)
        whole = len(list(batches(path, batch_rows=20_000))) * 20_000  # the negative control: batches that are all kept
        kept = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert whole == rows
    assert peaks[1] < 1.5 * peaks[0]
    assert kept > 3 * peaks[1]


def test_real_predictions_in_an_npz_are_read_as_they_are(real):
    found = read_predictions(real / "logits/lenet5_cifar10_probs.npz", label="ground_truth", probability="predictions")
    assert (len(found), found.task, found.classes[:2]) == (10_000, "multi-class", ["0", "1"])
    record = evaluate(real / "logits/lenet5_cifar10_probs.npz", label="ground_truth", probability="predictions")
    assert record["cross_entropy"].value == pytest.approx(1.370, abs=1e-3)


def test_a_store_that_cannot_be_reached_says_what_is_missing():
    with pytest.raises(DataError, match=r"cannot read 'nowhere://bucket/p.csv'.*nowhere"):
        read_predictions("nowhere://bucket/p.csv")
    fsspec.register_implementation("absent", "no_such_library.Store", clobber=True, errtxt="Install no_such_library")
    with pytest.raises(MissingExtra, match=r"reading absent:// needs one more library: Install no_such_library"):
        read_predictions("absent://bucket/p.csv")
    with pytest.raises(DataError, match=r"'memory://nothing/\*.csv' has no files of predictions"):
        read_predictions("memory://nothing/*.csv")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("label,p\n1,0.5\n".encode("utf-16"), "text in UTF-16, as Excel writes it; text is read in UTF-8"),
        (gzip.compress(b"label,p\n1,0.5\n"), "a file packed by gzip"),
        (b"label,p\r1,0.5\r0,0.5\r", "Lines should end in a line feed"),
        (b"label,p\n1,1\n0,0\n", "'label' is named both for probabilities and for labels"),
    ],
)
def test_a_csv_of_another_kind_is_refused(tmp_path, written, sentence):
    (tmp_path / "a.csv").write_bytes(written)
    with pytest.raises(DataError, match=sentence):
        evaluate(tmp_path / "a.csv", probability=["p" if b"1,1" not in written else "label"])


@pytest.mark.parametrize("written", [b"", b"\n0,0.5\n"])
def test_an_empty_table_in_a_store_is_said_to_be_empty(written):
    """It was said to have no column 'label' among the columns it had, none."""
    with fsspec.filesystem("memory").open("/empty/a.csv", "wb") as file:
        file.write(written)
    with pytest.raises(DataError, match=r"a\.csv' is empty, or begins with an empty line"):
        read_predictions("memory://empty/a.csv")


def test_a_stream_of_arrow_is_said_to_be_one(tmp_path):
    """Its first bytes are no letters, and it was called a binary file of another kind."""
    table = pa.table({"label": [0, 1], "p_1": [0.2, 0.7]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DataError, match=r"looks like a stream of Arrow, and what is read is its file format \(pyarrow"):
        read_predictions(tmp_path / "a.arrow")
    pa.feather.write_feather(table, tmp_path / "a.arrow")
    assert len(read_predictions(tmp_path / "a.arrow")) == 2


def test_columns_of_labels_are_found_by_their_beginning(tmp_path):
    """As ``crossent fit`` writes them of soft labels."""
    (tmp_path / "a.csv").write_text("label_b,label_a,p_a,p_b\n0.25,0.75,0.5,0.5\n1,0,0.2,0.8\n")
    record = evaluate(tmp_path / "a.csv")
    assert record["cross_entropy"].value == pytest.approx(-(np.log(0.5) + np.log(0.8)) / 2)
    (tmp_path / "b.csv").write_text("label,label_b,p_a,p_b\na,1,0.5,0.5\nb,1,0.2,0.8\n")
    assert evaluate(tmp_path / "b.csv")["accuracy"].value == 1
