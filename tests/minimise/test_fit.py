"""The way through: from data of every kind to figures that agree with each other."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crossent.errors import DataError
from crossent.minimise import Recipe, fit
from tests.minimise.conftest import QUICK, mixed_table

FEW = Recipe(**QUICK)

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "tables"


@pytest.mark.parametrize(
    ("name", "kind", "splits"),
    [
        ("digits", "multi-class", (1438, 359)),
        ("breast_cancer", "binary", (455, 114)),
        ("iris", "multi-class", (120, 30)),
        ("wine", "multi-class", (142, 36)),
        ("diabetes", "range", (354, 88)),
    ],
)
def test_the_embedded_sets_are_learned(name, kind, splits):
    said = []
    run = fit(name, recipe=replace(FEW, epochs=12, stop="loss"), said=said.append)
    facts = run.record.facts
    assert run.task.kind == kind
    assert tuple(facts["splits"].values()) == pytest.approx(splits, abs=2)
    assert sum(facts["splits"].values()) == sum(splits)
    assert said[0] == facts["found"]
    assert f"{splits[0]:,} rows to learn from, held out in turn in 2 folds; {splits[1]} to test once." in said
    # It knows more of a label than its frequency: the loss of someone who knows nothing else is the label entropy.
    assert run.record["cross_entropy"].value < 0.95 * run.record["label_entropy"].value * math.log(2)
    assert run.record.kind == "fit"
    assert len(run.record.curves["training"].x) == len(run.record.curves["validation"].y) == facts["epochs"] <= 12
    best = min(run.record.curves["validation"].y)
    assert run.record.curves["validation"].y[facts["best_epoch"] - 1] == best
    if facts["calibration"] == "none":
        assert run.record["validation_cross_entropy"].value == pytest.approx(best, rel=1e-6)
        assert run.record["uncalibrated_cross_entropy"].value == pytest.approx(run.record["cross_entropy"].value)
    else:
        assert run.record["validation_cross_entropy"].value < best
    assert run.record["validation_cross_entropy"].n == splits[0]  # every row was held out from a member


def test_digits_with_the_usual_settings_reach_a_tenth_of_a_nat():
    """The one slow test here: the usual recipe, of one member in two folds, for fewer epochs."""
    run = fit("digits", settings=["folds=2", "members=1", "beside=no", "epochs=20"])
    assert run.record["cross_entropy"].value <= 0.10
    assert run.record["cross_entropy"].n == 359
    assert run.record["accuracy"].value >= 0.96
    assert run.recipe == Recipe(folds=2, members=1, beside=False, epochs=20)


def test_a_mixed_csv_end_to_end(tmp_path):
    x, y = mixed_table()
    x.assign(deal=y).to_csv(tmp_path / "deals.csv", index=False, sep=";")
    run = fit(tmp_path / "deals.csv", target="deal", recipe=replace(FEW, epochs=25))
    assert run.classes == ("buys", "leaves")
    assert run.record["cross_entropy"].value < 0.55
    assert run.record.facts["target"] == "deal"
    assert run.record.facts["features"] == run.preparation.features
    assert any("left out: same, empty" in note for note in run.record.facts["notes"])
    shuffled = x.assign(deal=np.random.default_rng(0).permutation(y))
    shuffled.to_csv(tmp_path / "noise.csv", index=False)
    noise = fit(tmp_path / "noise.csv", target="deal", recipe=FEW)
    assert noise.record["cross_entropy"].value > 0.55  # nothing is known where there is nothing to know


def test_the_split_the_bits_and_the_figures_are_the_seed_s(arrays):
    runs = [fit(*arrays, seed=seed, recipe=FEW) for seed in (1, 1, 2)]
    numbers = [{name: number.value for name, number in run.record.numbers.items()} for run in runs]
    assert numbers[0] == numbers[1]
    assert numbers[0] != numbers[2]
    assert np.array_equal(runs[0].predicted.probabilities, runs[1].predicted.probabilities)
    assert np.array_equal(runs[0].predicted.rows, runs[1].predicted.rows)
    assert not np.array_equal(runs[0].predicted.rows, runs[2].predicted.rows)


def test_the_test_rows_change_nothing_but_the_test(arrays):
    """What is trained, chosen and calibrated does not look at the test rows: other test rows, the same model."""
    x, y = arrays
    random = np.random.default_rng(0)
    one, other = (fit(x, y, test=(random.normal(size=(40, 3)), random.choice(y, 40)), recipe=FEW) for _ in range(2))
    assert np.array_equal(one.predict_proba(x), other.predict_proba(x))
    assert one.record["validation_cross_entropy"] == other.record["validation_cross_entropy"]
    assert one.record["cross_entropy"].value != other.record["cross_entropy"].value
    assert one.record.facts["splits"] == {"learn": 200, "test": 40}
    assert not np.array_equal(fit(x, y, recipe=FEW).predict_proba(x), one.predict_proba(x))


def test_a_test_file_of_its_own(tmp_path):
    x, y = mixed_table(300)
    table = x.assign(deal=y)
    table[:200].to_csv(tmp_path / "train.csv", index=False)
    table[200:].to_parquet(tmp_path / "test.parquet")
    said = []
    run = fit(tmp_path / "train.csv", target="deal", test=tmp_path / "test.parquet", recipe=FEW, said=said.append)
    assert run.record.facts["splits"] == {"learn": 200, "test": 100}
    assert f"100 to test once (all of {tmp_path / 'test.parquet'})." in " ".join(said)
    assert run.predicted.labels[run.predicted.splits == "test"].tolist() == y[200:].tolist()

    def refused(change):
        change(table[200:].reset_index(drop=True)).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataError) as sentence:
            fit(tmp_path / "train.csv", target="deal", test=tmp_path / "bad.csv", recipe=FEW)
        return str(sentence.value)

    def with_cell(row, value):
        def change(rest):
            rest.loc[row, "deal"] = value
            return rest

        return change

    unseen = refused(with_cell(7, "returns"))
    assert "1 rows have a class that the training data never show: returns (first at row 7)" in unseen
    assert "bad.csv: the target 'deal' is missing, NaN or infinite in 1 rows, first at row 9" in refused(
        with_cell(9, None)
    )
    assert "has no column 'deal'" in refused(lambda rest: rest.drop(columns="deal"))
    assert "lacks 1 of the 10 columns" in refused(lambda rest: rest.drop(columns="town"))
    assert "has a header and no rows" in refused(lambda rest: rest[:0])


def test_a_test_of_a_range_must_lie_in_it_and_be_numbers():
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = np.linspace(0, 1.5, 60)
    for labels, sentence in (
        (
            [0.5, 2.5],
            r"1 values of the target lie outside the range 0 to 1.5, first at row 1: 2.5. Pass --range LOW HIGH",
        ),
        (["some", "more"], r"test: the target is a number in a range, and here it holds text"),
        ([0.5, np.nan], r"test: the target 'y' is missing, NaN or infinite in 1 rows, first at row 1"),
        (None, r"the test needs labels"),
    ):
        with pytest.raises(DataError, match=sentence):
            fit(x, y, test=(x[:2], labels), recipe=FEW)
    run = fit(x, y, test=(x[:2], [0.5, 2.5]), limits=(0, 3), recipe=FEW)
    assert run.record.facts["high"] == 3


def test_what_cannot_be_fitted_is_refused_in_a_sentence(arrays):
    x, y = arrays
    for call, sentence in (
        (lambda: fit(x), r"fit needs labels: pass y, or a file that has them"),
        (lambda: fit("iris", y), r"'iris' brings its own labels; leave out y"),
        (lambda: fit(x, y, seed=-1), r"the seed must be a whole number from 0"),
        (lambda: fit(x[:9], y[:9]), r"9 rows are too few .* it takes at least 10"),
        (lambda: fit(x, ["a"] * 200), r"is constant, 'a' in all 200 rows"),
        (lambda: fit(np.where(x > 2, np.inf, x), y), r"features are infinite or too large"),
        (lambda: fit(x, np.where(x[:, 0] > 2, np.nan, 1.0)), r"'y' is missing, NaN or infinite in"),
        (lambda: fit(x, y, test=(x[:5, :2], y[:5])), r"trained on 3 features, and these rows have 2"),
    ):
        with pytest.raises(DataError, match=sentence):
            call()


def test_ten_rows_are_enough():
    x = np.arange(20.0).reshape(10, 2)
    run = fit(x, [0, 1] * 5, recipe=FEW)
    assert sum(run.record.facts["splits"].values()) == 10
    assert run.record.facts["calibration"] == "none"


def test_a_rare_class_is_noted_and_can_be_predicted():
    x = np.random.default_rng(0).normal(size=(100, 2))
    y = np.array(["often"] * 60 + ["sometimes"] * 39 + ["once"])
    run = fit(x, y, recipe=FEW)
    assert any(
        "fewer than five rows in all can hardly be learned or tested: once (1)" in n for n in run.record.facts["notes"]
    )
    assert run.predict_proba(x).shape == (100, 3)
    assert run.predicted.splits[run.predicted.labels == "once"].tolist() == ["held out"]


def test_calibration_can_be_left_out(arrays):
    run = fit(*arrays, recipe=FEW, settings=["calibration=none"])
    assert run.record.facts["calibration"] == "none"
    assert "calibrators" not in run.record.tables
    # One is worked out from the probabilities and one from the logits: float64 rounds them apart, by 1e-14 at most.
    before, after = run.record["uncalibrated_cross_entropy"].value, run.record["cross_entropy"].value
    assert abs(after - before) <= 1e-14 * before
    assert "calibrators" in fit(*arrays, recipe=FEW).record.tables


def real(name):
    path = TABLES / name
    if not path.exists():
        pytest.skip(f"the real table {name} does not lie beside this checkout")
    return path


def test_a_census_with_its_own_test_file(tmp_path):
    for part, rows in (("train", 3000), ("test", 1500)):
        pd.read_csv(real(f"adult_{part}.csv"), nrows=rows).to_csv(tmp_path / f"{part}.csv", index=False)
    recipe = replace(FEW, width=32, epochs=6)
    run = fit(tmp_path / "train.csv", target="income", test=tmp_path / "test.csv", recipe=recipe)
    assert run.task.kind == "binary"
    assert run.record["cross_entropy"].n == 1500
    assert run.record["cross_entropy"].value < 0.42
    assert run.record["accuracy"].value > 0.8


def test_crime_in_communities_as_a_range():
    run = fit(real("communities.csv"), recipe=replace(FEW, width=32, epochs=6))
    assert (run.task.kind, run.task.low, run.task.high) == ("range", 0, 1)
    assert run.record["mae"].value < 0.12
    assert run.record["skill"].value > 0.1
