"""The way through: from data of every kind to figures that agree with each other."""

import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from crossent.errors import DataError
from crossent.minimise import Recipe, fit, load
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
        # A temperature where it helps, and an even distribution that counts as one row of all.
        assert run.record["validation_cross_entropy"].value < best + 2 / splits[0]
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
    run = fit(tmp_path / "deals.csv", target="deal", recipe=replace(FEW, epochs=40, dropout=0.1))
    assert run.classes == ("buys", "leaves")
    assert run.record["cross_entropy"].value < 0.62  # four seeds: 0.556 to 0.606; with labels exchanged 0.66 to 0.70
    assert run.record.facts["target"] == "deal"
    assert run.record.facts["features"] == run.preparation.features
    assert any("left out: same, empty" in note for note in run.record.facts["notes"])
    shuffled = x.assign(deal=np.random.default_rng(0).permutation(y))
    shuffled.to_csv(tmp_path / "noise.csv", index=False)
    noise = fit(tmp_path / "noise.csv", target="deal", recipe=FEW)
    assert noise.record["cross_entropy"].value > 0.62  # nothing is known where there is nothing to know


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


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"seed": "a"}, "whole number from 0 to 2⁶³ - 1, and is 'a'"),
        ({"seed": 1.5}, "and is 1.5"),
        ({"budget": -1.0}, "the budget must be a positive number of seconds, and is -1.0"),
        ({"budget": float("nan")}, "a positive number of seconds, and is nan"),
        ({"budget": "10m"}, "a positive number of seconds, and is '10m'"),
        ({"model": "linear"}, r"model= takes a function that makes a network; settings=\['model=linear'\]"),
    ],
)
def test_arguments_of_another_kind_are_refused(arrays, more, sentence):
    with pytest.raises(DataError, match=sentence):
        fit(*arrays, **more)


def test_fewer_than_ten_rows_that_count_are_too_few(arrays):
    weight = np.zeros(len(arrays[0]))
    weight[:9] = 1
    with pytest.raises(DataError, match=r"9 of 200 rows have a weight above 0, and the others count for nothing"):
        fit(*arrays, weight=weight, recipe=Recipe(**QUICK))


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


def test_settings_are_those_of_the_command_line_and_the_last_word(arrays):
    run = fit(*arrays, recipe=FEW, settings=["epochs=2", "loss=focal(2)", "width=4"])
    assert run.recipe == replace(FEW, epochs=2, loss="focal(2)", width=4)
    assert run.record.facts["recipe"] == run.recipe.to_dict()
    assert run.record.facts["epochs"] == 2
    with pytest.raises(DataError, match=r"got 'epoch=2'. Did you mean 'epochs'"):
        fit(*arrays, settings=["epoch=2"])


def test_a_budget_ends_the_training(arrays):
    run = fit(*arrays, recipe=replace(FEW, epochs=100_000, patience=100_000), budget=1.0)
    assert run.record.facts["stopped"] == "the time allowed was over"
    assert 1 <= run.record.facts["epochs"] < 100_000
    assert fit(*arrays, recipe=FEW, budget=600).record.facts["stopped"] == "the most epochs allowed, 8, were done"


@pytest.mark.parametrize(("budget", "left"), [(5.0, 4.0), (100.0, 97.5)])
def test_a_budget_has_room_for_what_follows_the_training(arrays, budget, left, monkeypatch):
    class Reached(Exception):
        pass

    def learn(*_, deadline, **__):
        raise Reached(deadline)

    monkeypatch.setattr(sys.modules["crossent.minimise.fit"], "learn", learn)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    with pytest.raises(Reached) as found:
        fit(*arrays, recipe=FEW, budget=budget)
    assert found.value.args == (1000.0 + left,)


def test_a_missing_number_of_an_array_is_missing():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 2))
    y = draw.random(300) < 0.5
    x[:, 1] = np.where(y, x[:, 1], np.nan)  # that it is missing is all there is to know
    run = fit(x, y, recipe=FEW)
    assert run.record["cross_entropy"].value < 0.2
    assert run.predict([[0.0, np.nan], [0.0, 0.0]]).tolist() == ["False", "True"]
    filled = fit(np.nan_to_num(x) + draw.normal(size=(300, 2)) * np.isnan(x), y, recipe=FEW)
    assert filled.record["cross_entropy"].value > 0.5


def votes(rows=240, seed=0):
    """Three annotators, who know by one number what the label is, and one of ten rows that count for ten."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=rows)
    yes = draw.binomial(3, 1 / (1 + np.exp(-2 * x)))
    return pd.DataFrame({"x": x, "z": draw.normal(size=rows), "votes_no": 3 - yes, "votes_yes": yes})


def test_counts_of_annotators_are_learnt_and_judged_as_shares(tmp_path):
    table = votes()
    table.to_csv(tmp_path / "votes.csv", index=False)
    said = []
    run = fit(tmp_path / "votes.csv", target="votes_*", recipe=replace(FEW, epochs=20), said=said.append)
    assert said[0] == "'votes_*' holds shares of 2 classes (no, yes): soft labels."
    assert run.classes == ("no", "yes")
    tested = run.predicted.splits == "test"
    rows, p = run.predicted.rows[tested], run.predicted.probabilities[tested]
    share = table[["votes_no", "votes_yes"]].to_numpy()[rows] / 3
    expected = -(share * np.log(p)).sum(1).mean()
    assert run.record["cross_entropy"].value == pytest.approx(expected, rel=1e-9)
    assert expected < 0.6 < math.log(2)
    # The same shares as arrays are the same run, to the bit; the more frequent label alone is another.
    x, y = table[["x", "z"]], table[["votes_no", "votes_yes"]]
    again = fit(x, y.rename(columns=lambda name: name.removeprefix("votes_")), recipe=replace(FEW, epochs=20))
    assert np.array_equal(again.predicted.probabilities, run.predicted.probabilities)
    hard = fit(x, (y["votes_yes"] > 1).map({True: "yes", False: "no"}), recipe=replace(FEW, epochs=20))
    assert not np.allclose(hard.predict_proba(x), run.predict_proba(x), atol=0.02)


def test_rows_of_weight_zero_teach_and_count_nothing(tmp_path):
    table, y = mixed_table(300)
    wrong = np.arange(300) % 3 == 0
    lie = np.where(wrong, np.where(y == "buys", "leaves", "buys"), y)
    recipe = replace(FEW, epochs=15)
    honest, fooled = fit(table, lie, weight=(~wrong).astype(float), recipe=recipe), fit(table, lie, recipe=recipe)
    truth = (y == "leaves").astype(int)
    loss = {run: -np.log(run.predict_proba(table)[np.arange(300), truth]).mean() for run in (honest, fooled)}
    assert loss[honest] < loss[fooled] - 0.05
    table.assign(deal=lie, count=(~wrong).astype(int)).to_csv(tmp_path / "a.csv", index=False)
    named = fit(tmp_path / "a.csv", target="deal", weight="count", recipe=recipe)
    assert "count" not in named.preparation.names
    assert named.record["cross_entropy"].value < fooled.record["cross_entropy"].value
    with pytest.raises(DataError, match=r"300 rows need as many weights; their shape is \(2,\)"):
        fit(table, y, weight=[1, 2])


def pictures(rows=60):
    """Light above or light below."""
    x = np.random.default_rng(0).integers(0, 60, (rows, 8, 8), dtype=np.uint8)
    y = np.arange(rows) % 2
    x[y == 1, :4] += 150
    x[y == 0, 4:] += 150
    return x, np.array(["below", "above"])[y]


PICTURES = ["width=4", "depth=1", "epochs=10", "batch=8", "crop=0"]


def test_images_of_bytes_are_learnt_saved_and_read_back(tmp_path):
    x, y = pictures()
    run = fit(x, y, settings=PICTURES)
    assert run.recipe.model == "residual"
    assert run.record["cross_entropy"].value < 0.4
    run.save(tmp_path)
    p = run.predict_proba(x)
    assert np.array_equal(load(tmp_path).predict_proba(x), p)
    assert run.predict_proba(x[:, None]) == pytest.approx(p, abs=1e-6)
    assert run.predict_proba(x[..., None] / 255) == pytest.approx(p, abs=1e-5)
    assert not np.allclose(run.predict_proba(x[:, ::-1]), p, atol=0.1)  # upside down
    with pytest.raises(DataError, match=r"trained on 1 features, and these rows have 3"):
        run.predict_proba(np.zeros((2, 3, 8, 8)))


class Flat(nn.Module):
    """A network of the user's own."""

    def __init__(self, shape, columns):
        super().__init__()
        self.linear = nn.Linear(math.prod(shape), columns)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("kind", ["rows", "images"])
def test_a_network_of_one_s_own_is_trained_saved_and_read_back_by_its_factory(tmp_path, arrays, kind):
    x, y = arrays if kind == "rows" else pictures()
    recipe = replace(FEW, epochs=4)
    run = fit(x, y, recipe=recipe, model=Flat)
    assert all(isinstance(network, Flat) for network in run.network.networks)
    run.save(tmp_path)
    assert np.array_equal(load(tmp_path, model=Flat).predict_proba(x), run.predict_proba(x))
    with pytest.raises(DataError, match=r"the network in this folder is the user's own, .* pass the factory"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"the model in .* is damaged: .*size mismatch"):
        load(tmp_path, model=lambda shape, columns: Flat((*shape, 2), columns))
    named = fit(x, y, recipe=recipe, settings=[f"model={__name__}:Flat"])
    assert np.array_equal(named.predict_proba(x), run.predict_proba(x))


def test_a_training_that_was_rolled_back_says_so_in_its_record(arrays):
    """A network that breaks when its weights go too far, as one that overflows does."""

    class Brittle(Flat):
        def forward(self, x):
            return torch.where(self.linear.weight.detach().abs().max() > 0.9, math.nan, super().forward(x))

    run = fit(*arrays, recipe=replace(FEW, folds=1, learning_rate=0.5), model=Brittle)
    assert any("the training loss was not finite; the epoch was undone" in note for note in run.record.facts["notes"])
    assert np.isfinite(run.predict_proba(arrays[0])).all()
    calm = fit(*arrays, recipe=replace(FEW, folds=1), model=Flat)
    assert not any("not finite" in note for note in calm.record.facts["notes"])


def test_of_noise_nothing_is_believed():
    """On these rows the usual recipe once kept an epoch that a temperature of 59 made look well: 1.22 nats."""
    draw = np.random.default_rng(1003)
    x, y = draw.normal(size=(3100, 10)), draw.integers(0, 2, 3100)
    loss = fit(x[:100], y[:100], test=(x[100:], y[100:]), seed=3).record["cross_entropy"].value
    assert loss == pytest.approx(math.log(2), abs=0.01)  # 0.0003 here; what a hundred rows show by chance is 1 / 200
