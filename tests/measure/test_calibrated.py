"""crossent calibrate: files calibrated whole or not at all, all other columns as they were, a sentence for the rest."""

import re
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from scipy.special import softmax

import crossent
from crossent import Calibrator, DataError, cli
from crossent.measure import read_predictions, write_predictions
from crossent.measure.calibration.calibrated import apply_to_file
from crossent.measure.calibration.steps import Affine, Mixture
from tests.measure.test_calibration_families import sample

SOFTER = Calibrator("temperature", (Mixture(2.0),), classes=("no", "yes"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Over-confident rows to calibrate by, and others to be calibrated."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("valid", 0), ("test", 1)):
        z, y = sample(600, 3, seed, sharpened=3.0)
        write_predictions(
            f"{name}.parquet", softmax(z, axis=1), task="multi-class", labels=np.array(["a", "b", "c"])[y],
            classes=["a", "b", "c"], rows=[f"r{place:04}" for place in range(600)],
        )  # fmt: skip
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command in this process: exit status, standard output with single spaces, standard error."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["crossent", "calibrate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert max(map(len, said.out.splitlines()), default=0) <= max(columns, 30)
        return int(ended.value.code or 0), " ".join(said.out.split()), said.err

    return run


def test_a_file_is_calibrated_by_another_and_keeps_the_rest(files, call):
    status, said, trouble = call(
        "valid.parquet", "--apply", "test.parquet", "-o", "out.parquet", "--calibrator", "c.json"
    )
    assert (status, trouble) == (0, "")
    assert "on rows it was not fitted to, cross-entropy falls from" in said
    assert "600 rows: out.parquet" in said
    before, after = (read_predictions(f"{name}.parquet") for name in ("test", "out"))
    assert after.rows.tolist() == before.rows.tolist()
    assert after.labels.tolist() == before.labels.tolist()
    found = crossent.calibrate("valid.parquet")
    assert found == Calibrator.read("c.json")
    assert after.probabilities == pytest.approx(found(before.probabilities), abs=1e-12)
    gain = -np.log(after.probabilities / before.probabilities)[np.arange(600), before.labels].mean()
    assert gain < -0.1
    assert pyarrow.parquet.read_schema("out.parquet").metadata[b"crossent"]
    again = call("c.json", "--apply", "test.parquet", "-o", "again.parquet")
    assert again[0] == 0
    assert (files / "again.parquet").read_bytes() == (files / "out.parquet").read_bytes()


def test_a_narrow_terminal_sees_what_was_chosen_and_why(files, call):
    wide, narrow = call("valid.parquet"), call("valid.parquet", columns=36)
    assert narrow[0] == wide[0] == 0
    kind = crossent.calibrate("valid.parquet").kind
    for said in (wide[1], narrow[1]):
        assert said.startswith(f"{kind[0].upper()}{kind[1:]}: on rows it was not fitted to")
        assert "←" in said
        assert "hold together with 95 %" in said
    assert "cross-entropy change" in wide[1]
    assert "cross-entropy change" not in narrow[1]


def test_nothing_to_fix_leaves_every_number_as_it_was(files, call):
    z, y = sample(400, 2, 0, sharpened=1.0)
    write_predictions("right.parquet", softmax(z, axis=1), task="binary", labels=y, classes=["0", "1"])
    status, said, _ = call("right.parquet", "--apply", "right.parquet", "-o", "same.parquet")
    assert status == 0
    assert said.startswith("Nothing to fix: cross-entropy is")
    assert re.search(r"changes it by [−+]\d\.\d{4} \([−+]\d\.\d{4} to [−+]\d\.\d{4}\)\.", said)
    assert pd.read_parquet("same.parquet").equals(pd.read_parquet("right.parquet"))


@pytest.mark.parametrize("column", ["p_yes", "p_no", "score"])
def test_one_column_of_two_classes_is_the_one_it_is_named_after(tmp_path, column):
    p = np.array([0.9, 0.2, 0.5])
    pd.DataFrame({"id": ["007", "x", "y"], column: p, "note": [1, 2, 3]}).to_csv(tmp_path / "a.csv", index=False)
    # An odd calibrator, which does not treat the two classes alike.
    one = Calibrator("temperature and bias", (Mixture(2.0, (0.0, 1.0)),), classes=("no", "yes"))
    apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", None if column != "score" else "score")
    written = pd.read_csv(tmp_path / "b.csv", dtype={"id": str})
    assert written["id"].tolist() == ["007", "x", "y"]
    assert written["note"].tolist() == [1, 2, 3]
    truth = 1 - one(1 - p) if column == "p_no" else one(p)
    assert written[column].to_numpy() == pytest.approx(truth, abs=1e-12)
    assert np.abs(one(p) - (1 - one(1 - p))).max() > 0.1


@pytest.mark.parametrize("named", [False, True])
def test_named_columns_are_of_the_classes_they_are_called_after(tmp_path, named):
    """In any order, in files (with a pattern too) and in frames: not the first for the first class."""
    p = softmax(np.random.default_rng(0).normal(0, 2, (20, 3)), axis=1)
    one = Calibrator("beta", (Affine(1.5, (0.0, 0.3, -1.0)),), classes=("a", "b", "c"))
    truth, turned = one(p), pd.DataFrame(p, columns=["p_a", "p_b", "p_c"])[["p_c", "p_a", "p_b"]]
    turned.to_csv(tmp_path / "a.csv", index=False)
    apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", "p_*" if named else None)
    written = pd.read_csv(tmp_path / "b.csv")
    assert list(written) == ["p_c", "p_a", "p_b"]
    assert written.to_numpy() == pytest.approx(truth[:, [2, 0, 1]], abs=1e-12)
    assert one(turned) == pytest.approx(truth[:, [2, 0, 1]], abs=1e-15)
    assert one.of_logits(np.log(turned)) == pytest.approx(np.log(truth[:, [2, 0, 1]]), abs=1e-12)
    assert one(pd.DataFrame(p, columns=["x", "y", "z"])) == pytest.approx(truth, abs=0)  # no name says anything
    assert np.abs(one(turned.to_numpy()) - truth[:, [2, 0, 1]]).max() > 0.1


def test_a_series_of_the_first_class_is_calibrated_as_that(tmp_path):
    p = np.array([0.9, 0.2, 0.5])
    one = Calibrator("beta", (Affine(1.5, (0.0, 0.3)),), classes=("no", "yes"))
    assert one(pd.Series(1 - p, name="p_no")) == pytest.approx(1 - one(p), abs=1e-15)
    assert one(pd.Series(p, name="p_yes")).tolist() == one(pd.Series(p)).tolist() == one(p).tolist()
    z = np.log(p / (1 - p))
    assert one.of_logits(pd.Series(-z, name="p_no")) == pytest.approx(-one.of_logits(z), abs=1e-15)
    pd.DataFrame({"p_no": 1 - p}).to_csv(tmp_path / "a.csv", index=False)
    apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", "p_no")
    assert pd.read_csv(tmp_path / "b.csv")["p_no"].to_numpy() == pytest.approx(1 - one(p), abs=1e-12)


@pytest.mark.parametrize("named", [["p_x", "p_y", "p_z"], ["p_a", "p_b", "p_x"], ["a", "b", "z"]])
def test_columns_called_after_other_classes_are_refused(tmp_path, named):
    """They were taken in their order: another class's numbers, without a word."""
    p = softmax(np.random.default_rng(0).normal(0, 2, (20, 3)), axis=1)
    one = Calibrator("beta", (Affine(1.5, (0.0, 0.3, -1.0)),), classes=("a", "b", "c"))
    frame = pd.DataFrame(p, columns=named)
    frame.to_csv(tmp_path / "a.csv", index=False)
    sentence = f"the columns {', '.join(named)} should be called after the classes a, b, c, and "
    sentence += "none of them is" if named[0] == "p_x" else f"{named[2]} is not"
    for call in (one, one.of_logits, lambda _: apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", "*")):
        with pytest.raises(DataError, match=re.escape(sentence)):
            call(frame)
    assert not (tmp_path / "b.csv").exists()
    # Whoever names them one by one has said the order, and is told that names did not.
    _, notes = apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", named)
    assert f"the columns {', '.join(named)} were taken for the classes a, b, c in this order" in notes[0]
    assert pd.read_csv(tmp_path / "b.csv").to_numpy() == pytest.approx(one(p), abs=1e-12)


def test_columns_that_say_nothing_are_taken_in_their_order_with_a_note(tmp_path):
    p = softmax(np.random.default_rng(0).normal(0, 2, (20, 3)), axis=1)
    one = Calibrator("beta", (Affine(1.5, (0.0, 0.3, -1.0)),), classes=("a", "b", "c"))
    for named, noted in ((["s1", "s2", "s3"], 1), (["p_0", "p_1", "p_2"], 1), (["p_a", "p_b", "p_c"], 0)):
        pd.DataFrame(p, columns=named).to_csv(tmp_path / "a.csv", index=False)
        _, notes = apply_to_file(one, tmp_path / "a.csv", tmp_path / "b.csv", "*")
        assert len(notes) == noted
        assert pd.read_csv(tmp_path / "b.csv").to_numpy() == pytest.approx(one(p), abs=1e-12)


def test_one_column_is_of_one_of_two_classes_or_refused(tmp_path):
    p = np.array([0.9, 0.2, 0.5])
    two = Calibrator("beta", (Affine(1.5, (0.0, 0.3)),), classes=("no", "yes"))
    three = Calibrator("beta", (Affine(1.5, (0.0, 0.3, -1.0)),), classes=("a", "b", "c"))
    assert two(pd.DataFrame({"p_yes": p})).tolist() == two(p[:, None]).tolist() == two(p)[:, None].tolist()
    assert two(pd.DataFrame({"p_no": 1 - p})) == pytest.approx(1 - two(p)[:, None], abs=1e-15)
    z = np.log(p / (1 - p))
    assert two.of_logits(z[:, None]).tolist() == two.of_logits(z)[:, None].tolist()
    pd.DataFrame({"p_maybe": p}).to_csv(tmp_path / "a.csv", index=False)
    for call in (two, lambda _: apply_to_file(two, tmp_path / "a.csv", tmp_path / "b.csv", "p_*")):
        with pytest.raises(DataError, match="'p_maybe' should be of one of the classes no, yes, and is "):
            call(pd.DataFrame({"p_maybe": p}))
    plain = Calibrator("beta", (Affine(1.5, (0.0, 0.3)),), classes=("0", "1"))  # as of labels 0 and 1, p_churn
    assert plain(pd.DataFrame({"p_churn": p})).tolist() == plain(p[:, None]).tolist()
    for rows in (p, p[:, None], pd.DataFrame({"p_a": p})):
        for call in (three, three.of_logits):
            with pytest.raises(DataError, match="for 3 classes, and the rows have 1 column, which is enough for two"):
                call(rows)
    with pytest.raises(DataError, match=r"for the 3 classes a, b, c, and .*a\.csv' has 1 column of probabilities"):
        apply_to_file(three, tmp_path / "a.csv", tmp_path / "b.csv", "p_*")


def test_cells_of_several_values_are_no_csv(tmp_path):
    pd.DataFrame({"p": [[0.5, 0.5]], "more": [{"a": [1]}]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        DataError, match=r"a.parquet': a cell of a CSV holds one value, and those of p, more hold several"
    ):
        apply_to_file(SOFTER, tmp_path / "a.parquet", tmp_path / "b.csv", "p")
    assert not (tmp_path / "b.csv").exists()
    assert apply_to_file(SOFTER, tmp_path / "a.parquet", tmp_path / "b.parquet", "p")[0] == 1


def test_columns_are_matched_by_name_and_forms_are_told_apart(tmp_path):
    z = np.random.default_rng(0).normal(0, 2, (50, 2))
    one = Calibrator("beta", (Affine((1.5, 0.5), (0.0, 0.3)),), classes=("no", "yes"))
    truth = np.exp(one.of_logits(z))
    pd.DataFrame({"p_yes": z[:, 1], "p_no": z[:, 0]}).to_parquet(tmp_path / "z.parquet")
    rows, notes = apply_to_file(one, tmp_path / "z.parquet", tmp_path / "out.parquet")
    written = pd.read_parquet(tmp_path / "out.parquet")
    assert list(written) == ["p_yes", "p_no"]
    assert written["p_yes"].to_numpy() == pytest.approx(truth[:, 1], abs=1e-12)
    assert rows == 50
    assert "holds logits; what was written are probabilities" in notes[0]


def test_the_predicted_mean_of_a_range_is_worked_out_again(tmp_path):
    p = np.array([0.1, 0.5, 0.8])
    write_predictions(tmp_path / "r.parquet", p, task="range", low=10.0, high=30.0, labels=[12.0, 20.0, 28.0])
    apply_to_file(Calibrator("temperature", (Mixture(2.0),)), tmp_path / "r.parquet", tmp_path / "out.parquet")
    written = pd.read_parquet(tmp_path / "out.parquet")
    assert written["prediction"].to_numpy() == pytest.approx(10 + 20 * written["p_1"].to_numpy())
    assert written["p_1"].to_numpy() == pytest.approx(Calibrator("t", (Mixture(2.0),))(p))
    assert read_predictions(tmp_path / "out.parquet").task == "range"


def test_a_shift_is_undone_from_the_command_line(files, call):
    p = np.array([0.5, 0.9])
    pd.DataFrame({"p_fraud": p, "who": ["x", "y"]}).to_parquet("f.parquet")
    status, said, _ = call("f.parquet", "--prior-was", "fraud=0.5", "--prior-is", "fraud=0.01", "-o", "g.parquet")
    assert (status, said.split(".")[0]) == (0, "Shift undone")
    truth = crossent.undo_shift(prior_was=[0.5, 0.5], prior_is=[0.99, 0.01])(p)
    assert pd.read_parquet("g.parquet")["p_fraud"].to_numpy() == pytest.approx(truth, abs=1e-14)
    assert call("f.parquet", "--class-weight", "fraud=99", "-o", "w.parquet")[0] == 0
    assert pd.read_parquet("w.parquet")["p_fraud"].to_numpy() == pytest.approx(truth, abs=1e-14)
    assert call("f.parquet", "--sampling-rate", "not fraud=0.1", "-o", "s.parquet", "--calibrator", "s.json")[0] == 0
    dal_pozzolo = 0.1 * p / (0.1 * p - p + 1)
    assert pd.read_parquet("s.parquet")["p_fraud"].to_numpy() == pytest.approx(dal_pozzolo, abs=1e-14)
    assert Calibrator.read("s.json").classes == ("not fraud", "fraud")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.parquet"], "there is no file 'absent.parquet'"),
        (["valid.parquet", "--apply", "test.parquet"], "with -o"),
        (["valid.parquet", "-o", "out.parquet"], "with --apply"),
        (["valid.parquet", "--apply", "test.parquet", "-o", "out.xlsx"], "ends in '.xlsx'"),
        (["valid.parquet", "--apply", "test.parquet", "-o", "test.parquet"], "over its own source"),
        (["valid.parquet", "--apply", "test.parquet", "-o", "valid.parquet"], "is read, and would be written over"),
        (["valid.parquet", "--class-weight", "a=2", "-o", "valid.parquet"], "is read, and would be written over"),
        (["valid.parquet", "--apply", "two.parquet", "-o", "out.parquet"], "has no column 'p_a'"),
        (["valid.parquet", "--apply", "bad.parquet", "-o", "out.parquet"], "row 70000 of 'bad.parquet'"),
        (["valid.parquet", "--calibrator", "c.txt"], "is written as .json"),
        (["valid.parquet", "--label", "lable"], "has no column 'lable'"),
        (["valid.parquet", "--group", "game"], "has no column 'game'"),
        (["valid.parquet", "--class-weight", "a", "-o", "out.parquet"], "--class-weight takes CLASS=NUMBER"),
        (["valid.parquet", "--class-weight", "z=2", "-o", "out.parquet"], "names 'z', which is no class"),
        (["valid.parquet", "--class-weight", "a=2"], "with -o"),
        (["valid.parquet", "--class-weight", "a=2", "--class-weight", "a=3", "-o", "out.csv"], "'a' twice"),
        (["valid.parquet", "--class-weight", "a=2", "--apply", "test.parquet", "-o", "out.csv"], "no --apply"),
        (["damaged.json", "--apply", "test.parquet", "-o", "out.parquet"], "'damaged.json' is not JSON"),
        (["header.csv", "--apply", "test.parquet", "-o", "out.parquet"], "a header and no rows"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(files, call, arguments, sentence):
    pd.DataFrame({"p_x": [0.5], "p_y": [0.5]}).to_parquet("two.parquet")
    broken = np.full(70_001, 1 / 3)
    broken[-1] = np.nan  # in the second piece, when the first has been written
    pd.DataFrame({"p_a": broken, "p_b": 1 / 3, "p_c": 1 / 3}).to_parquet("bad.parquet")
    (files / "damaged.json").write_text("{")
    (files / "header.csv").write_text("label,p_a,p_b,p_c\n")
    (files / "out.parquet").write_text("what was there before")
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    status, said, trouble = call(*arguments)
    assert (status, said) == (2, "")
    assert sentence in trouble
    assert trouble.startswith("crossent: ")
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


@pytest.mark.parametrize("output", ["out.parquet", "out.csv"])
def test_parts_are_written_to_one_file_in_the_order_of_their_names(files, call, output):
    table = pd.read_parquet("test.parquet")
    (files / "parts").mkdir()
    narrow = table.iloc[250:].astype({"p_a": np.float32})  # parts may differ in width
    narrow.to_parquet("parts/part-1.parquet")
    table.iloc[:250].to_parquet("parts/part-0.parquet")
    found = crossent.calibrate("valid.parquet")
    found.write("c.json")
    whole = found(table[["p_a", "p_b", "p_c"]].to_numpy())
    named = ["--apply", "parts/part-0.parquet", "--apply", "parts/part-1.parquet"]
    for arguments in (["--apply", "parts"], ["--apply", "parts/part-*.parquet"], named):
        status, said, trouble = call("c.json", *arguments, "-o", output)
        assert (status, trouble) == (0, "")
        assert f"600 rows: {output}" in said
        after = pd.read_parquet(output) if output.endswith(".parquet") else pd.read_csv(output)
        assert after["row"].tolist() == table["row"].tolist()
        assert after[["p_a", "p_b", "p_c"]].to_numpy() == pytest.approx(whole, abs=1e-6)
    assert after["label"].tolist() != table["label"].tolist()[::-1]  # it can fail


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda table: table.rename(columns={"row": "id"}), "'part-1.parquet': its columns are .* those of 'part-0"),
        (lambda table: table[["p_a", "p_b", "p_c", "row"]], "have the same columns, in the same order"),
        (lambda table: table.assign(label=[["a"]] * len(table)), "of other types than those of 'part-0"),
        (lambda table: table.iloc[:0], "'part-1.parquet' has a header and no rows"),
        (lambda table: table.assign(p_b=7.0), "row 0 of 'part-1.parquet'"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_and_leave_nothing(files, change, sentence):
    table = pd.read_parquet("test.parquet")[["row", "label", "p_a", "p_b", "p_c"]]
    table.iloc[:300].to_parquet("part-0.parquet")
    change(table.iloc[300:]).to_parquet("part-1.parquet")
    found = Calibrator("temperature", (Mixture(2.0),), classes=("a", "b", "c"))
    with pytest.raises(DataError, match=sentence):
        apply_to_file(found, "part-*.parquet", "out.parquet")
    assert not (files / "out.parquet").exists()
    table.iloc[300:].to_parquet("part-1.parquet")
    with pytest.raises(DataError, match="over its own source"):
        apply_to_file(found, ".", "part-1.parquet")
