"""Preparation: any table becomes features, learned from training rows alone, and kept without a pickle."""

import io
import pickletools
import zipfile

import numpy as np
import pandas as pd
import pytest
import sklearn.preprocessing
import skops.io
import skrub
import torch

from crossent.errors import DataError
from crossent.minimise.data.preparation import Preparation, _most_values
from tests.minimise.conftest import mixed_table


def test_a_table_of_everything_becomes_numbers():
    x, _ = mixed_table()
    preparation, features = Preparation.fit(x, "t.csv")
    assert features.shape == (240, preparation.features)
    assert features.dtype == torch.float32
    assert len(preparation.names) == preparation.features
    column = dict(zip(preparation.names, features.T, strict=True))
    assert column["größe"].numpy() == pytest.approx(x["größe"].to_numpy(), abs=1e-4)
    assert column["owner"].tolist() == x["owner"].astype(float).tolist()
    for town in ("Ulm", "Köln", "Bonn"):
        assert column[f"town_{town}"].tolist() == (x["town"] == town).astype(float).tolist()
    for name, layout in (("iso", "%Y-%m-%d"), ("german", "%d.%m.%Y"), ("clock", "%Y-%m-%d %H:%M:%S")):
        days = pd.to_datetime(x[name], format=layout)
        assert column[f"{name}_month"].tolist() == days.dt.month.tolist(), name
        assert column[f"{name}_day"].tolist() == days.dt.day.tolist(), name
    assert sum(name.startswith("note_") for name in preparation.names) == 30
    assert column["gaps"].isnan().tolist() == x["gaps"].isna().tolist()
    assert not features[:, [name != "gaps" for name in preparation.names]].isnan().any()


def test_columns_that_say_nothing_are_left_out_and_named():
    x, _ = mixed_table()
    preparation, _ = Preparation.fit(x, "t.csv")
    assert preparation.notes == ["Columns with nothing to tell (empty, or one value) were left out: same, empty."]
    assert not {"same", "empty"} & set(preparation.names)
    fuller, _ = Preparation.fit(x.assign(same=range(240), empty=range(240)), "t.csv")
    assert fuller.notes == []
    with pytest.raises(DataError, match=r"no column says anything; each is empty or has one value \(same, empty\)"):
        Preparation.fit(x[["same", "empty"]], "t.csv")


def test_values_that_come_again_and_again_are_indicators_however_many_there_are():
    persons = [f"p{number}" for number in range(150)]
    x = pd.DataFrame({"person": persons * 6, "score": np.arange(900.0)})
    preparation, features = Preparation.fit(x, "t.csv")
    assert set(preparation.names) == {"score", *(f"person_{name}" for name in persons)}
    column = features[:, preparation.names.index("person_p7")]
    assert column.tolist() == (x["person"] == "p7").astype(float).tolist()
    few, _ = Preparation.fit(x.head(450), "t.csv")  # three rows for each are too few to know a person by
    assert sum(name.startswith("person_") for name in few.names) == 30
    assert [_most_values(rows) for rows in (10, 500, 600, 5000, 10**5, 10**6, 10**7)] == [
        100, 100, 120, 1000, 1000, 200, 100,
    ]  # fmt: skip


def numbers():
    """A table of numbers alone: of several kinds, with gaps, and with columns that have nothing to tell."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "same": 3,
            "whole": rng.integers(0, 9, 50),
            "gaps": np.where(rng.random(50) < 0.3, np.nan, rng.normal(size=50)),
            "empty": np.nan,
            "first alone": [np.nan, *[2.0] * 49],
            "last alone": [*[2.0] * 49, np.nan],
            "small": rng.normal(size=50).astype(np.float32),
            "byte": rng.integers(0, 200, 50).astype(np.uint8),
        }
    )


def test_a_table_of_numbers_is_prepared_as_skrub_would_without_it(monkeypatch):
    x = numbers()
    vectorizer = skrub.TableVectorizer(drop_null_fraction=1.0, drop_if_constant=True)
    truth = vectorizer.fit_transform(x)
    monkeypatch.setattr(skrub, "TableVectorizer", None)
    preparation, features = Preparation.fit(x, "n.csv")
    assert preparation.names == tuple(truth.columns)
    assert np.array_equal(features.numpy(), truth.to_numpy(np.float32), equal_nan=True)
    assert not np.array_equal(features.numpy(), truth.to_numpy(np.float32)[::-1], equal_nan=True)
    assert preparation.notes == ["Columns with nothing to tell (empty, or one value) were left out: same, empty."]
    with pytest.raises(DataError, match=r"no column says anything; each is empty or has one value \(same, empty\)"):
        Preparation.fit(x[["same", "empty"]], "n.csv")
    with pytest.raises(
        DataError, match=r"1 features are infinite or too large for float32, first in column 'whole' at"
    ):
        Preparation.fit(x.assign(whole=[np.inf, *range(49)]), "n.csv")


def test_a_table_of_numbers_is_read_again_as_it_was(tmp_path):
    x = numbers()
    preparation, features = Preparation.fit(x, "n.csv")
    preparation.save(tmp_path / "table.skops")
    assert not (tmp_path / "table.skops").exists()
    again = Preparation.load(preparation.to_dict(), tmp_path / "table.skops")
    shuffled = x[x.columns[::-1]].assign(more=1)
    assert np.array_equal(again(shuffled, "new.csv").numpy(), features.numpy(), equal_nan=True)
    with pytest.raises(DataError, match=r"lacks 1 of the 8 columns the model was trained on: whole"):
        again(x.drop(columns="whole"), "new.csv")
    words = x.astype({"whole": object})
    words.loc[4, "whole"], words.loc[5, "whole"] = "many", "7"
    got = again(words, "new.csv")[:, again.names.index("whole")]
    assert got[4].isnan()
    assert got[5] == 7
    assert again.notes[-1] == (
        "new.csv: some cells of whole are not of the kind that training saw there; they count as missing."
    )
    # A folder that was written when such tables had a vectorizer too still needs it.
    old = {name: value for name, value in preparation.to_dict().items() if name != "vectorized"}
    with pytest.raises(DataError, match=r"table\.skops' cannot be read"):
        Preparation.load(old, tmp_path / "table.skops")


def test_what_only_appears_at_prediction_is_borne():
    x, _ = mixed_table()
    preparation, features = Preparation.fit(x, "t.csv")
    new = x.head(4).copy()
    new.loc[0, "town"] = "Atlantis"
    new.loc[1, ["größe", "town", "iso", "note"]] = None
    new["owner"] = new["owner"].astype(object)
    new.loc[2, "owner"] = None
    got = preparation(new[new.columns[::-1]].assign(more=1), "new.csv")
    assert got.shape == (4, preparation.features)
    column = dict(zip(preparation.names, got.T, strict=True))
    assert [column[f"town_{town}"][0].item() for town in ("Ulm", "Köln", "Bonn")] == [0, 0, 0]
    assert column["größe"][1].isnan()
    assert column["iso_month"][1].isnan()
    assert column["owner"][2].isnan()
    assert torch.equal(got[3], features[3])  # a row in which nothing is new is what it was, in any order of columns
    assert not torch.equal(got[1].nan_to_num(0.0), features[1].nan_to_num(0.0))
    assert preparation.notes[-1] == (
        "new.csv: some columns hold values that training never saw; they count as none of the known ones."
    )


def test_nothing_is_learned_from_other_rows():
    x, _ = mixed_table()
    train, rest = x.head(160), x.tail(80)
    alone, features = Preparation.fit(train, "t.csv")
    alone(rest.assign(größe=1e6, town="Atlantis"), "rest")
    assert torch.equal(alone(train, "t.csv").nan_to_num(-1.0), features.nan_to_num(-1.0))
    # The control: had the other rows been seen, the features of the training rows would be others.
    _, leaked = Preparation.fit(pd.concat([train, rest.assign(note="elm pine fir", town="Atlantis")]), "t.csv")
    assert leaked[:160].shape != features.shape or not torch.allclose(leaked[:160], features, equal_nan=True)


def test_columns_must_be_there_and_hold_their_kind():
    x, _ = mixed_table()
    preparation, _ = Preparation.fit(x, "t.csv")
    with pytest.raises(DataError, match=r"new.csv lacks 2 of the 10 columns .*: town, note. Add them"):
        preparation(x.drop(columns=["town", "note"]), "new.csv")
    with pytest.raises(DataError, match=r"trained on a table with named columns; give a table, not an array"):
        preparation(np.ones((2, 10)), "new.npz")


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_an_infinite_number_is_found_in_the_row_it_has_in_the_file(value):
    x, _ = mixed_table()
    x.loc[17, "größe"] = value
    with pytest.raises(
        DataError, match=r"1 features are infinite or too large for float32, first in column 'größe' at"
    ):
        Preparation.fit(x, "t.csv")
    with pytest.raises(DataError, match=r"at row 17\. Replace"):
        Preparation.fit(x.iloc[[3, 17, 40, 2]], "t.csv")


def test_text_where_training_saw_numbers_or_dates_counts_as_missing_and_is_said():
    x, _ = mixed_table()
    preparation, _ = Preparation.fit(x, "t.csv")
    seen = len(preparation.notes)
    preparation(x, "new.csv")
    assert len(preparation.notes) == seen
    got = preparation(x.assign(größe=["tall", *["170"] * 239], iso="someday"), "new.csv")
    column = dict(zip(preparation.names, got.T, strict=True))
    assert column["größe"].isnan().tolist() == [True, *[False] * 239]
    assert preparation.notes[seen:] == [
        "new.csv: some cells of größe, iso are not of the kind that training saw there; they count as missing."
    ]


def test_an_array_is_taken_as_it_is():
    x = np.arange(6.0).reshape(3, 2)
    preparation, features = Preparation.fit(x, "a.npz")
    assert features.tolist() == x.tolist()
    assert preparation(pd.DataFrame(x), "t.csv").tolist() == x.tolist()
    with pytest.raises(DataError, match=r"trained on 2 features, and these rows have 3"):
        preparation(np.ones((1, 3)), "b.npz")
    with pytest.raises(DataError, match=r"x must hold numbers"):
        preparation(pd.DataFrame({"a": ["x"], "b": [1]}), "t.csv")


def test_saved_and_loaded_it_gives_the_same_bits(tmp_path):
    x, _ = mixed_table()
    kinds = x.assign(
        kind=pd.Categorical(x["town"]),
        whole=pd.array([None, *range(239)], dtype="Int64"),
        day=pd.to_datetime(x["iso"]),
        zone=pd.to_datetime(x["clock"]).dt.tz_localize("UTC"),
        text=x["note"].astype("string"),
    )
    preparation, features = Preparation.fit(kinds, "t.csv")
    preparation.save(tmp_path / "table.skops")
    again = Preparation.load(preparation.to_dict(), tmp_path / "table.skops")
    assert torch.equal(again(kinds, "t.csv").nan_to_num(-1.0), features.nan_to_num(-1.0))
    assert not torch.equal(again(kinds[::-1], "t.csv").nan_to_num(-1.0), features.nan_to_num(-1.0))
    # Nor do its bytes know where in memory it lay, or when: what is fitted anew has the same.
    for number, other in enumerate((Preparation.fit(kinds, "t.csv")[0], Preparation.fit(kinds[::-1], "t.csv")[0])):
        other.save(tmp_path / f"{number}.skops")
    saved = [(tmp_path / f"{name}.skops").read_bytes() for name in ("table", 0, 1)]
    assert saved[0] == saved[1] != saved[2]


def is_pickle(content):
    """Whether Python would unpickle this: its operations can be read from the first to the last byte."""
    try:
        return any(operation.name == "STOP" for operation, _, _ in pickletools.genops(content))
    except Exception:
        return False


def test_no_file_of_a_run_is_a_pickle_or_holds_one(tmp_path, table_run):
    import pickle

    table_run[2].save(tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(files) == {"model.json", "model.safetensors", "table.skops", "record.json", "predictions.parquet"}
    with zipfile.ZipFile(tmp_path / "table.skops") as inside:
        members = {name: inside.read(name) for name in inside.namelist()}
    assert len(members) > 5
    for name, content in members.items():
        assert name == "schema.json" or content[:6] == b"\x93NUMPY" or zipfile.is_zipfile(io.BytesIO(content)), name
        if content[:6] == b"\x93NUMPY":
            np.load(io.BytesIO(content), allow_pickle=False)
    for name, content in {**files, **members}.items():
        assert not is_pickle(content), name
    assert is_pickle(pickle.dumps({"a": np.ones(3)}))


@pytest.mark.parametrize("function", [pd.read_pickle, eval, __import__("os").system], ids=["read_pickle", "eval", "os"])
def test_a_file_with_a_foreign_type_is_not_loaded(tmp_path, function):
    skops.io.dump(sklearn.preprocessing.FunctionTransformer(function), tmp_path / "table.skops")
    with pytest.raises(DataError, match=r"holds types that no model of crossent has: .* It was not loaded"):
        Preparation.load({"columns": ["a"], "features": 1, "names": ["a"], "shape": []}, tmp_path / "table.skops")


def test_a_damaged_file_is_a_sentence(tmp_path):
    (tmp_path / "table.skops").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"cannot be read: .* needs the versions of skrub and scikit-learn"):
        Preparation.load({"columns": ["a"], "features": 1, "names": ["a"], "shape": []}, tmp_path / "table.skops")
