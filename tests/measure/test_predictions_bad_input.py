"""Bad input, every case: a sentence that says in which file, row and column, and what to do; never a silent number.

Each file is first read whole without its fault, so that it is the fault that is refused.
"""

import inspect
import re

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from crossent.errors import DataError
from crossent.measure import calibrate, evaluate
from crossent.measure.sources import batches, read_predictions, rows

N = 20
GOOD = {
    "row": [f"r{i}" for i in range(N)],
    "label": ["cat", "dog"] * (N // 2),
    "p_cat": np.linspace(0.1, 0.8, N),
    "p_dog": 1 - np.linspace(0.1, 0.8, N),
    "w": np.ones(N),
    "game": np.arange(N) % 5,
    "bytes": np.arange(1, N + 1),
}


def write(path, columns=None, **changed):
    pa.parquet.write_table(pa.table({**(columns or GOOD), **changed}), path)
    return path


def put(name, place, value):
    column = list(GOOD[name])
    column[place] = value
    return {name: column}


BESIDE = {"weight": "w", "group": "game", "bytes": "bytes"}
PER_ROW = [
    ("nan", put("p_cat", 7, float("nan")), "should be a number.*row r7, column 'p_cat': nan.*leave the row out"),
    ("empty cell", put("p_dog", 7, None), "should be a number.*row r7, column 'p_dog': nan"),
    ("infinite", put("p_cat", 7, float("inf")), "should be a number.*row r7, column 'p_cat': inf"),
    ("below 0", put("p_cat", 7, -0.1), "between 0 and 1.*row r7, column 'p_cat': -0.1.*look broken: mend them"),
    ("above 1", put("p_dog", 7, 1.1), "between 0 and 1.*row r7, column 'p_dog': 1.1"),
    ("does not add up", put("p_dog", 7, 0.9), r"add up to 1 \(within 0.001\).*row r7 add up.*normalise"),
    (
        "text for a number",
        {"p_dog": [*map(str, GOOD["p_dog"][:7]), "half", *map(str, GOOD["p_dog"][8:])]},
        "'p_dog' should hold numbers.*r7 has 'half'",
    ),
    ("unknown label", put("label", 7, "cow"), r"one of the classes cat, dog.*'cow' \(row r7\).*leave its rows out"),
    ("no label", put("label", 7, None), "row r7 has no label.*Leave such rows out"),
    ("empty label", put("label", 7, ""), "row r7 has no label"),
    ("duplicate id", put("row", 7, "r3"), "come several times: r3.*Remove the copies"),
    ("no id", put("row", 7, None), "row 7, counted from 0, has no row id .the only such row.. Give every row an id"),
    (
        "negative weight",
        put("w", 7, -1.0),
        "weight is a number, 0 or more, and row r7 has -1.*weight 0, or is left out",
    ),
    ("no weight", put("w", 7, float("nan")), "weight is a number, 0 or more, and row r7 has nan"),
    ("infinite weight", put("w", 7, float("inf")), "weight is a number, 0 or more, and row r7 has inf"),
    ("all weights 0", {"w": np.zeros(N)}, "all weights are 0, or below 1e-120, so that nothing is left to measure"),
    ("no group", {"game": ["a"] * 7 + [None] + ["b"] * 12}, "row r7 has no group"),
    ("half a byte", put("bytes", 7, 1.5), "bytes are whole numbers, 0 or more, and row r7 has 1.5"),
    ("negative bytes", put("bytes", 7, -2), "bytes are whole numbers, 0 or more, and row r7 has -2"),
]


@pytest.mark.parametrize(("changed", "sentence"), [case[1:] for case in PER_ROW], ids=[case[0] for case in PER_ROW])
@pytest.mark.parametrize("batch_rows", [3, 65_536])
def test_a_row_that_is_no_prediction(tmp_path, changed, sentence, batch_rows):
    good = write(tmp_path / "good.parquet")
    assert sum(len(part) for part in batches(good, **BESIDE, batch_rows=batch_rows)) == N
    with pytest.raises(DataError, match=sentence) as caught:
        list(batches(write(tmp_path / "bad.parquet", **changed), **BESIDE, batch_rows=batch_rows))
    assert "bad.parquet" in str(caught.value)
    assert str(caught.value).endswith(".")
    with pytest.raises(DataError, match=sentence):
        evaluate(tmp_path / "bad.parquet") if not set(changed) & set(BESIDE.values()) else list(
            batches([good.parent / "bad.parquet"], **BESIDE)
        )


def test_a_row_of_a_second_file_is_named_with_its_file(tmp_path):
    plain = {name: GOOD[name] for name in ("label", "p_cat", "p_dog")}
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", plain)
    assert len(read_predictions(tmp_path)) == 2 * N
    write(tmp_path / "b.parquet", plain | put("p_cat", 7, 2.0))
    with pytest.raises(DataError, match=r"b.parquet': .*between 0 and 1.*row 7, column 'p_cat': 2"):
        read_predictions(tmp_path)


@pytest.mark.parametrize("batch_rows", [3, 65_536])
@pytest.mark.parametrize(
    ("labels", "column", "third"),
    [(["0", "1"], "p_1", "2"), (["no", "yes"], "p_yes", "maybe"), ([0, 1], "p", 2), (["0", "0"], "p", "2")],
)
def test_a_third_label_where_there_are_two_classes(tmp_path, labels, column, third, batch_rows):
    plain = {"label": labels * (N // 2), column: GOOD["p_cat"]}
    a, b = (write(tmp_path / name, plain) for name in ("a.parquet", "b.parquet"))
    if column != "p":
        assert len(read_predictions([a, b])) == 2 * N
    bad = [third if i == 7 else label for i, label in enumerate(plain["label"])]
    how = {"probability": column, "batch_rows": batch_rows}
    for files in ([write(b, plain, label=bad)], [a, b]):
        with pytest.raises(
            DataError, match=rf"b.parquet': .*'{third}' \(row 7\).*(Mend the rows|Name the cl)"
        ) as caught:
            list(batches(files, **how))
        if len(files) == 2:  # rows of the first file, which are good, are not named as rows of the second
            assert "row 0" not in str(caught.value)


def test_a_file_is_named_once_and_is_the_right_one(tmp_path):
    (tmp_path / "a.csv").write_text("label,p_yes\nno,0.5\nyes,0.5\n")
    (tmp_path / "b.csv").write_text("label,p_yes\nno,0.5\nyes\n")
    with pytest.raises(DataError, match=r"^'\S*b.csv': row 1 \(line 3\) has 1 cells where the header has 2"):
        read_predictions(tmp_path)


def test_rounding_is_divided_out_and_said_once(tmp_path):
    for dtype in (np.float16, np.float32):
        p = GOOD["p_cat"].astype(dtype)
        path = write(tmp_path / "p.parquet", p_cat=p, p_dog=(1 - GOOD["p_cat"]).astype(dtype))
        found = read_predictions(path)
        assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(N), abs=3e-16)
        assert found.probabilities[:, 0] == pytest.approx(p.astype(float), abs=float(np.finfo(dtype).eps))
        for batch_rows in (3, 100):
            notes = [note for part in batches(path, batch_rows=batch_rows) for note in part.notes]
            assert sum("only to rounding" in note for note in set(notes)) == 1
        assert sum("only to rounding" in note for note in evaluate(path).facts["notes"]) == 1
    exact = read_predictions(write(tmp_path / "p.parquet"))
    assert not any("rounding" in note for note in exact.notes)
    assert exact.probabilities[:, 0].tolist() == list(GOOD["p_cat"])


def test_a_weight_of_0_is_allowed_and_said(tmp_path):
    path = write(tmp_path / "p.parquet", **put("w", 7, 0.0))
    assert "Some rows have weight 0 and count for nothing." in read_predictions(path, weight="w").notes
    assert read_predictions(write(path), weight="w").notes == ()


def test_labels_of_one_class_only_are_measured_and_said(tmp_path):
    record = evaluate(write(tmp_path / "p.parquet", label=["cat"] * N))
    assert any("Every row has the same label" in note for note in record.facts["notes"])
    assert record["label_entropy"].value == 0
    assert "skill" not in record
    for only, column in (("1", "p_0"), ("0", "p_1"), ("yes", "p_no"), ("no", "p_no")):  # and no order is guessed
        plain = {"label": [only] * 2, column: [0.75, 0.75]}
        found = read_predictions(write(tmp_path / "one.parquet", plain))
        right = 0.75 if column == f"p_{only}" else 0.25
        assert found.probabilities[0, found.labels[0]] == right, (only, column)


def test_ids_that_come_twice_far_apart_are_found(tmp_path, monkeypatch):
    path = write(tmp_path / "p.parquet", **put("row", 19, "r0"))
    with pytest.raises(DataError, match=r"p.parquet.*come several times: r0"):
        list(batches(path, batch_rows=4))
    numbers = [*range(100, 119), 105]
    with pytest.raises(DataError, match="come several times: 105"):
        list(batches(write(tmp_path / "p.parquet", row=numbers), batch_rows=4))
    assert len(list(batches(write(tmp_path / "p.parquet", row=[*numbers[:-1], 7]), batch_rows=4))) == 5
    monkeypatch.setattr(rows, "IDS_KEPT", 8)
    found = list(batches(write(tmp_path / "p.parquet", row=numbers), batch_rows=4))
    assert any("after that within batches only" in note for note in found[-1].notes)


# Files


def test_an_empty_file(tmp_path):
    for name in ("p.parquet", "p.csv", "p.jsonl", "p.feather", "p.npz"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=rf"{name}' is empty: it has no bytes"):
            read_predictions(tmp_path / name)
    nothing = pa.table(GOOD).slice(0, 0)
    pa.parquet.write_table(nothing, tmp_path / "p.parquet")
    pa.feather.write_feather(nothing, tmp_path / "p.feather")
    (tmp_path / "p.csv").write_text("label,p_cat,p_dog\n")
    np.savez(tmp_path / "p.npz", label=np.zeros(0), p_cat=np.zeros(0), p_dog=np.zeros(0))
    for name in ("p.parquet", "p.feather", "p.csv", "p.npz"):
        with pytest.raises(DataError, match=rf"{name}' has a header and no rows"):
            read_predictions(tmp_path / name)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97, 0.999])
def test_a_truncated_file(tmp_path, kept):
    table = pa.table({name: np.random.default_rng(0).random(20_000) for name in ("p_cat", "label")})
    pa.parquet.write_table(table, tmp_path / "p.parquet")
    pa.feather.write_feather(table, tmp_path / "p.feather", chunksize=500)
    np.savez_compressed(tmp_path / "p.npz", **{name: table[name].to_numpy() for name in table.column_names})
    for name in ("p.parquet", "p.feather", "p.npz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
        with pytest.raises(
            DataError, match=rf"cannot read '.*{name}' as .*damaged or cut off.*Write or fetch it again"
        ):
            read_predictions(tmp_path / name, task="range")


def test_a_damaged_page(tmp_path):
    write(tmp_path / "p.parquet", {name: GOOD[name] for name in ("label", "p_cat", "p_dog")})
    broken = bytearray((tmp_path / "p.parquet").read_bytes())
    broken[4:300] = bytes(296)
    (tmp_path / "p.parquet").write_bytes(broken)
    with pytest.raises(DataError, match="damaged or cut off"):
        read_predictions(tmp_path / "p.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "feather", "csv", "jsonl", "npz"])
def test_bytes_changed_anywhere_are_refused_or_leave_predictions(tmp_path, suffix):
    """A sentence, or rows that could have been predicted; nothing else, least of all the end of the process."""
    rng = np.random.default_rng(0)
    plain = pa.table({name: GOOD[name] for name in ("row", "label", "p_cat", "p_dog")})
    path = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(plain, path)
    elif suffix == "feather":
        pa.feather.write_feather(plain, path)
    elif suffix == "npz":
        np.savez(path, **{name: np.array(plain[name].to_pylist()) for name in plain.column_names})
    else:
        getattr(plain.to_pandas(), "to_csv" if suffix == "csv" else "to_json")(
            path, **({"index": False} if suffix == "csv" else {"orient": "records", "lines": True})
        )
    whole = path.read_bytes()
    assert len(read_predictions(path)) == N
    refused = 0
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            found = read_predictions(path)
        except DataError:
            refused += 1
        else:
            assert (found.probabilities >= 0).all()
            assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(found)))
    assert refused > 20


def test_dtypes_that_differ_between_files(tmp_path):
    plain = {name: GOOD[name] for name in ("label", "p_cat", "p_dog")}
    write(tmp_path / "a.parquet", plain)
    write(tmp_path / "b.parquet", plain | {"p_cat": np.float32(GOOD["p_cat"])})
    assert len(read_predictions(tmp_path)) == 2 * N  # numbers of two widths agree to rounding
    write(tmp_path / "b.parquet", plain | {"label": [0, 1] * (N // 2)})
    with pytest.raises(
        DataError, match=r"'label' holds numbers in .*b.parquet' and text in the files before. Write them"
    ):
        read_predictions(tmp_path)
    write(tmp_path / "b.parquet", plain | {"p_cat": [str(p) for p in GOOD["p_cat"]]})
    with pytest.raises(DataError, match=r"'p_cat' holds text in .*b.parquet' and numbers in the files before"):
        read_predictions(tmp_path)
    write(tmp_path / "b.parquet", {"label": GOOD["label"], "p_cat": GOOD["p_cat"]})
    with pytest.raises(DataError, match=r"b.parquet' has no column 'p_dog' for the rows, as the first file has"):
        read_predictions(tmp_path)
    (tmp_path / "c.csv").write_text("label,p_cat,p_dog\ncat,1,0\n")
    with pytest.raises(DataError, match=r"several kinds \(CSV, Parquet\). Name one with a pattern"):
        read_predictions(tmp_path)


def test_a_missing_column_has_its_nearest_names(tmp_path):
    path = write(tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"no column 'labels' for the labels; .*Did you mean 'label'\?.*with label="):
        read_predictions(path, label="labels")
    for option, purpose in (("weight", "weights"), ("group", "groups"), ("by", "slices"), ("bytes", "bytes")):
        with pytest.raises(DataError, match=rf"no column 'gane' for the {purpose}.*Did you mean 'game'\?.*{option}="):
            read_predictions(path, **{option: "gane"})
    with pytest.raises(
        DataError, match=r"no column like 'prob_\*' for probabilities; its columns are row, label, p_cat"
    ):
        read_predictions(path, probability="prob_*")


def test_text_that_is_not_utf_8(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes("label,p_cat,p_dog\ncat,0.5,0.5\nré,0.5,0.5\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"p.csv' is not UTF-8: row 1 has the byte 0xe9 in .*iconv -f latin1"):
        read_predictions(path)
    path.write_bytes("label,p_cat,p_é\ncat,0.5,0.5\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8: the header has the byte 0xe9"):
        read_predictions(path)


@pytest.mark.parametrize(("line", "cells"), [("cat,0.5", 2), ("cat,0.5,0.5,", 4), ("cat,0,5,0,5", 5)])
def test_ragged_lines(tmp_path, line, cells):
    (tmp_path / "p.csv").write_text(f"label,p_cat,p_dog\ndog,0.5,0.5\n{line}\n")
    with pytest.raises(DataError, match=rf"row 1 \(line 3\) has {cells} cells where the header has 3. Mend that line"):
        read_predictions(tmp_path / "p.csv")


def test_lines_that_are_no_json(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"label": "a", "p_a": 0.5, "p_b": 0.5}\n{"label": "a", "p_a": \n')
    with pytest.raises(DataError, match=r"p.jsonl': row 1 \(line 2\) is no JSON, it seems damaged or cut off: .* Mend"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"label": "a", "p_a": 0.5, "p_b": 0.5}\n\n{"label": "a", "p_a": "x", "p_b": 0.5}\n',
         r"'p_a' holds a number in the rows before, and row 1 \(line 3\) has text: 'x'. Write all of its cells alike"),
        ('[{"label": "a", "p_a": 0.5, "p_b": 0.5}]', r"row 0 \(line 1\) is a list, and each line should be an object"),
        ("\n\n", "p.jsonl' has no rows"),
        ('{"label": "\xe9", "p_a": 0.5, "p_b": 0.5}\n', r"is not UTF-8: row 0 \(line 1\) has the byte 0xe9"),
    ],
)  # fmt: skip
def test_lines_that_are_json_and_no_rows(tmp_path, text, sentence):
    (tmp_path / "p.jsonl").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=sentence):
        read_predictions(tmp_path / "p.jsonl")


def test_cells_that_hold_cells_are_no_group(tmp_path):
    path = write(tmp_path / "p.parquet", game=[{"year": 1}] * N)
    with pytest.raises(DataError, match=r"a column of cells of the type struct.* give one cell per row"):
        read_predictions(path, group="game")


def test_arrays_that_do_not_belong_together(tmp_path):
    np.savez(tmp_path / "p.npz", label=np.zeros(3), p_1=np.zeros(2))
    with pytest.raises(DataError, match=r"equally many rows, and have the shapes label \(3,\), p_1 \(2,\)"):
        read_predictions(tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", label=np.array([None, 1]), p_1=np.zeros(2))
    with pytest.raises(DataError, match="dtype object"):
        read_predictions(tmp_path / "p.npz")
    np.savez(tmp_path / "p.npz", label=np.zeros(3), p=np.asfortranarray(np.full((3, 2), 0.5)))
    with pytest.raises(DataError, match=r"in Fortran order.*C order"):
        read_predictions(tmp_path / "p.npz", probability="p")


@pytest.mark.parametrize("beside", ["weight", "group", "bytes", "by"])
def test_a_columns_name_beside_arrays_is_not_taken_for_its_cells(beside):
    """Text has entries, its letters, and one that is as long as there are rows would be a column of them."""
    for model in (evaluate, calibrate):
        if beside in inspect.signature(model).parameters:
            with pytest.raises(DataError, match="'day', the name of a column, and the probabilities are in no file"):
                model([0.2, 0.6, 0.9], [0, 1, 1], **{beside: "day"})
            model([0.2, 0.6, 0.9], [0, 1, 1], **{beside: [1, 2, 3]})
    with pytest.raises(DataError, match=r"one entry for each row was expected.*None came\."):
        evaluate(None, [0, 1, 1])


def test_every_sentence_ends(tmp_path):
    """A last look at how errors read: one sentence or more, none of them a traceback's words."""
    path = write(tmp_path / "p.parquet")
    for options in ({"form": "odds"}, {"truth": "votes"}, {"task": "ranking"}, {"split": "test"}, {"label": "*x"}):
        with pytest.raises(DataError) as caught:
            read_predictions(path, **options)
        assert re.search(r"[.?]$", str(caught.value))
