"""A run: saved, loaded and used it gives the same bits; what is damaged is said in a sentence."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import crossent
from crossent.errors import DataError
from crossent.minimise import Recipe, fit, load
from crossent.minimise.data import dataset
from tests.minimise.conftest import QUICK, mixed_table


@pytest.fixture(scope="module")
def array_run(arrays):
    return fit(*arrays, recipe=Recipe(**QUICK))


@pytest.fixture(scope="module")
def range_run():
    random = np.random.default_rng(1)
    x = random.normal(size=(200, 2))
    return x, fit(x, 20 + 5 * np.tanh(x[:, 0]), limits=(10, 30), recipe=Recipe(**{**QUICK, "epochs": 30}))


def test_predictions_are_probabilities_of_the_classes(arrays, array_run):
    p = array_run.predict_proba(arrays[0])
    assert array_run.classes == ("high", "low", "middle")
    assert p.shape == (200, 3)
    assert p.dtype == np.float64
    assert p.sum(1) == pytest.approx(np.ones(200), abs=1e-12)
    assert array_run.predict(arrays[0]).tolist() == [array_run.classes[i] for i in p.argmax(1)]
    assert array_run.predict_proba(arrays[0][:1].tolist()) == pytest.approx(p[:1], abs=1e-6)


@pytest.mark.parametrize("kind", ["array", "table", "range"])
def test_loaded_it_gives_the_bits_it_gave_before(tmp_path, kind, arrays, array_run, table_run, range_run):
    x, run = {
        "array": (arrays[0], array_run),
        "table": (table_run[0], table_run[2]),
        "range": range_run,
    }[kind]
    run.save(tmp_path)
    again = load(tmp_path)
    p = run.predict_proba(x)
    assert np.array_equal(again.predict_proba(x), p)
    assert again.predict(x).tolist() == run.predict(x).tolist()
    assert (again.classes, again.recipe, again.task, again.record) == (run.classes, run.recipe, run.task, run.record)
    assert again.calibrator == run.calibrator
    assert not np.array_equal(again.predict_proba(x[::-1] if kind != "table" else x.iloc[::-1]), p)


@pytest.mark.parametrize("kind", ["array", "table", "range"])
def test_the_file_of_predictions_agrees_with_the_record(tmp_path, kind, array_run, table_run, range_run):
    run = {"array": array_run, "table": table_run[2], "range": range_run[1]}[kind]
    run.save(tmp_path)
    found = crossent.evaluate(tmp_path / "predictions.parquet")
    for name in ("cross_entropy", "label_entropy", "miscalibration", "brier" if kind != "range" else "mae"):
        assert found[name].value == pytest.approx(run.record[name].value, rel=1e-12, abs=1e-12), name
    assert found["cross_entropy"].n == run.record.facts["splits"]["test"]
    validation = crossent.evaluate(tmp_path / "predictions.parquet", split="held out")
    expected = run.record["validation_cross_entropy"].value
    assert validation["cross_entropy"].value == pytest.approx(expected, rel=1e-12)
    assert validation["cross_entropy"].value != pytest.approx(run.record["cross_entropy"].value, rel=1e-6)
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    names = [f"p_{name}" for name in run.classes] or ["p_1", "prediction"]
    assert table.columns.tolist() == ["row", "label", "split", *names]
    splits = run.record.facts["splits"]
    assert table["split"].value_counts().to_dict() == {"held out": splits["learn"], "test": splits["test"]}
    assert sorted(table["row"]) == list(range(len(table)))


def test_a_written_prediction_is_the_model_s_own(tmp_path, arrays, array_run):
    array_run.save(tmp_path)
    table = pd.read_parquet(tmp_path / "predictions.parquet").sort_values("row")
    assert table["label"].tolist() == arrays[1].tolist()
    written, said = table[["p_high", "p_low", "p_middle"]].to_numpy(), array_run.predict_proba(arrays[0])
    tested = (table["split"] == "test").to_numpy()
    # float32 networks multiply in another order for other numbers of rows, and files hold float32.
    assert np.allclose(written[tested], said[tested], rtol=0, atol=1e-6)
    assert not np.allclose(written[tested][:, [1, 0, 2]], said[tested], atol=1e-3)
    # A row that was learnt from is written down as those members saw it that had not learnt from it.
    assert not np.allclose(written[~tested], said[~tested], atol=1e-3)


def test_a_range_is_predicted_in_its_own_unit(range_run):
    x, run = range_run
    p, value = run.predict_proba(x), run.predict(x)
    assert value == pytest.approx(10 + 20 * p[:, 1], abs=1e-12)
    assert np.corrcoef(value, np.tanh(x[:, 0]))[0, 1] > 0.9
    assert run.record["mae"].value < 2.5
    assert (run.task.low, run.task.high, run.classes) == (10, 30, ())


def test_strange_names_of_classes_survive_the_folder(tmp_path):
    names = ["a,b", "nan", "None", "p_x", "ü 'q\"", "007"]
    x = np.random.default_rng(0).normal(size=(120, 2))
    run = fit(x, np.array(names * 20, dtype=object), recipe=Recipe(folds=2, members=1, width=4, epochs=2))
    run.save(tmp_path)
    assert set(load(tmp_path).classes) == set(names)
    found = crossent.evaluate(tmp_path / "predictions.parquet")
    assert found["cross_entropy"].value == pytest.approx(run.record["cross_entropy"].value, rel=1e-12)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def about(folder):
    return json.loads((folder / "model.json").read_text())


def wider(network):
    """The plan of a network, or of several in it, with one more hidden unit."""
    if "networks" in network:
        return {**network, "networks": [wider(each) for each in network["networks"]]}
    return {**network, "width": 17} if "width" in network else network


def change(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGE = {
    "model.json is gone": (lambda f: (f / "model.json").unlink(), r"holds no finished model: there is no model.json"),
    "model.json is cut": (lambda f: cut(f / "model.json"), r"the model in .* is damaged"),
    "model.json is a list": (lambda f: (f / "model.json").write_text("[]"), r"the model in .* is damaged"),
    "model.json is binary": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe"), r"the model in .* is damaged"),
    "another format": (lambda f: change(f / "model.json", format="9"), r"its format should be .* and is '9'"),
    "another network": (
        lambda f: change(f / "model.json", network=wider(about(f)["network"])),
        r"the model in .* is damaged: .*size mismatch",
    ),
    "a network of no kind": (lambda f: change(f / "model.json", network={"kind": "x"}), r"is the user's own"),
    "another setting": (
        lambda f: change(f / "model.json", recipe={**about(f)["recipe"], "dropout": 9}),
        r"dropout must lie between",
    ),
    "the last format": (lambda f: change(f / "model.json", format="crossent model 2"), r"and is 'crossent model 2'"),
    "a lacking part": (lambda f: change(f / "model.json", task={}), r"the model in .* is damaged"),
    "weights are gone": (lambda f: (f / "model.safetensors").unlink(), r"the model in .* is damaged"),
    "weights are cut": (lambda f: cut(f / "model.safetensors"), r"the model in .* is damaged"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("hello"), r"the model in .* is damaged"),
    "the table is gone": (lambda f: (f / "table.skops").unlink(), r"table.skops' cannot be read"),
    "the table is cut": (lambda f: cut(f / "table.skops"), r"table.skops' cannot be read"),
    "the record is gone": (lambda f: (f / "record.json").unlink(), r"cannot read the record"),
    "the record is cut": (lambda f: cut(f / "record.json"), r"this is not a record"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_a_sentence(tmp_path, table_run, case):
    table_run[2].save(tmp_path)
    damage, sentence = DAMAGE[case]
    load(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=sentence):
        load(tmp_path)


def test_what_is_no_folder_holds_no_model(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"holds no finished model"):
            load(place)


def test_labels_are_not_needed_to_predict_and_do_not_matter(tmp_path, table_run):
    x, y, run = table_run
    x.to_csv(tmp_path / "new.csv", index=False)
    x.assign(y=y).to_csv(tmp_path / "labelled.csv", index=False)
    without = run.predict_proba(dataset.read(tmp_path / "new.csv", "y", labelled=False))
    with_labels = run.predict_proba(dataset.read(tmp_path / "labelled.csv", "y", labelled=False))
    assert np.array_equal(without, with_labels)
    assert without == pytest.approx(run.predict_proba(x), abs=1e-4)


def test_written_predictions_are_the_same_bytes_for_the_same_seed(tmp_path):
    x, y = mixed_table(100)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fit(x, y, seed=seed, recipe=Recipe(**QUICK)).save(tmp_path / name)
    a, b, c = (Path(tmp_path / name / "predictions.parquet").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
