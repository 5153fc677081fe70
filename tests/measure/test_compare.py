"""Comparisons: against scipy and sums written out, on published forecasts, at probability 0, with soft truths."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit

import crossent
from crossent.errors import DataError
from crossent.measure import Predictions, compare, evaluate, write_predictions
from crossent.measure.comparison import rival
from crossent.measure.comparison.contrast import Ground, slices
from crossent.measure.comparison.rival import Rival
from crossent.record import Record


def pair(n=400, seed=0):
    """Labels, what was true, and a model that is too sure of itself."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, n)
    return (rng.random(n) < expit(z)).astype(int), expit(z), expit(1.8 * z)


def costs(p, y):
    return -np.log(np.where(y == 1, p, 1 - p))


def test_the_difference_is_the_paired_one():
    y, true, sure = pair()
    record = compare({"true": true, "sure": sure}, labels=y)
    d = costs(sure, y) - costs(true, y)
    found = record["difference"]
    assert found.value == pytest.approx(d.mean(), rel=1e-12)
    assert found.low < d.mean() < found.high
    # Near Student's interval, from which only the skewness parts it; far from those of two unpaired means.
    truth = stats.ttest_1samp(d, 0).confidence_interval()
    assert found.high - found.low == pytest.approx(truth.high - truth.low, rel=0.1)
    unpaired = 2 * 1.96 * math.hypot(costs(sure, y).std(), costs(true, y).std()) / math.sqrt(y.size)
    assert unpaired > 1.5 * (found.high - found.low)
    assert record.facts["verdict"] == "worse"
    back = compare({"sure": sure, "true": true}, labels=y)  # the sign is that of model minus baseline
    assert (back["difference"].value, back["difference"].low) == pytest.approx((-found.value, -found.high))
    assert back.facts["verdict"] == "better"
    assert back["p_value"].value == pytest.approx(record["p_value"].value, rel=1e-12)


def test_parts_add_up_and_are_those_of_each_model_alone():
    y, true, sure = pair()
    record = compare(true, sure, labels=y)
    assert record["difference"].value == pytest.approx(
        record["miscalibration_difference"].value - record["discrimination_difference"].value, abs=1e-12
    )
    table = record.tables["models"]
    for k in range(2):
        whole = record["uncertainty"].value - table["discrimination"][k] + table["miscalibration"][k]
        assert whole == pytest.approx(table["cross_entropy"][k], abs=1e-12)
    assert record["uncertainty"].value == pytest.approx(stats.entropy([y.mean(), 1 - y.mean()]), rel=1e-12)
    # The same log-odds in another unit discriminate the same, and the interval knows it.
    apart = record["discrimination_difference"]
    assert abs(apart.value) < 1e-3
    assert apart.low < 0 < apart.high
    assert record["miscalibration_difference"].low > 0


@pytest.mark.parametrize("kind", ["two classes", "weighted and grouped", "range", "classes", "soft classes", "zeros"])
def test_a_models_own_parts_are_those_of_evaluate(kind):
    rng, n = np.random.default_rng(9), 600
    y, true, sure = pair(n)
    also, both = {}, [true, sure]
    if kind == "weighted and grouped":
        also = {"weight": rng.uniform(0.2, 2, n), "group": rng.integers(0, 90, n)}
    elif kind == "range":
        y, also = rng.beta(3 * true, 3 * (1 - true)), {"task": "range"}
    elif "classes" in kind and kind != "two classes":
        both = [rng.dirichlet(np.full(4, 0.5), n)]
        y = (
            (both[0].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
            if kind == "classes"
            else rng.dirichlet(np.ones(4), n)
        )
        both.append(both[0] ** 2 / np.sum(both[0] ** 2, axis=1, keepdims=True))
    elif kind == "zeros":
        both = [np.where(rng.random(n) < 0.02, 0.0, p) for p in both]
    table = compare({"a": both[0], "b": both[1]}, labels=y, **also).tables["models"]
    alone = {name: evaluate(p, y, **also) for name, p in zip("ab", both, strict=True)}
    for line, name in enumerate(table["model"]):
        for part in ("discrimination", "miscalibration"):
            assert table[part][line] == pytest.approx(alone[name][part].value, abs=1e-12), (name, part)
    assert abs(alone["a"]["miscalibration"].value - alone["b"]["miscalibration"].value) > 1e-3  # it can fail


def test_of_very_many_rows_of_several_classes_a_sample_is_calibrated(monkeypatch):
    rng, n = np.random.default_rng(10), 6000
    p = rng.dirichlet(np.full(3, 0.5), n)
    y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    sure = p**2 / np.sum(p**2, axis=1, keepdims=True)
    whole = compare(p, sure, labels=y)
    monkeypatch.setattr(rival, "capacity_for", lambda classes: 1500)
    drawn = compare(p, sure, labels=y)
    assert "on a sample of 1,500 rows" in drawn.facts["calibrated_with"]
    assert "sample" not in whole.facts["calibrated_with"]
    for name in ("discrimination_difference", "miscalibration_difference"):
        assert drawn[name].value == pytest.approx(whole[name].value, abs=2e-3)  # 3 numbers of 1,500 rows: 1e-3
        assert drawn[name].low < whole[name].value < drawn[name].high
        assert drawn[name].n == n
    assert drawn["miscalibration_difference"].low > 0.02


def test_progress_rises_to_one(tmp_path):
    y, true, sure = pair()
    for name, p in (("a", true), ("b", sure)):
        pd.DataFrame({"label": y, "p_1": p}).to_parquet(tmp_path / f"{name}.parquet")
    told: list[float] = []
    compare(tmp_path / "a.parquet", tmp_path / "b.parquet", progress=told.append)
    assert told == sorted(told)
    assert (told[-1], len(set(told))) == (1.0, 4)


def test_clusters_weights_and_slices_are_written_out():
    y, true, sure = pair()
    rng = np.random.default_rng(1)
    w, g, city = rng.uniform(0, 2, 400), rng.integers(0, 40, 400), rng.choice(["Oslo", "Rome", "Bath"], 400)
    w[:7] = 0.0
    record = compare(true, sure, labels=y, weight=w, group=g, by={"city": city})
    d = costs(sure, y) - costs(true, y)
    assert record["difference"].value == pytest.approx(np.average(d, weights=w), rel=1e-12)
    assert (record["difference"].n, record.facts["clusters"]) == (393, 40)
    table = record.tables["slices"]
    assert table["slice"] == ["Bath", "Oslo", "Rome"]
    for k, name in enumerate(table["slice"]):
        here = city == name
        assert table["difference"][k] == pytest.approx(np.average(d[here], weights=w[here]), rel=1e-12)
        assert table["contribution"][k] == pytest.approx(np.sum(w[here] * d[here]) / w.sum(), rel=1e-10)
        assert table["share"][k] == pytest.approx(np.sum(w[here] * abs(d[here])) / np.sum(w * abs(d)), rel=1e-10)
        assert table["p_adjusted"][k] >= table["p_value"][k]
    assert sum(table["contribution"]) == pytest.approx(record["difference"].value, rel=1e-12)
    # Intervals of three slices are wider than one of its own would be; planted faults: weights or clusters forgotten.
    alone = compare(true[city == "Rome"], sure[city == "Rome"], labels=y[city == "Rome"], weight=w[city == "Rome"],
                    group=g[city == "Rome"])["difference"]  # fmt: skip
    assert table["high"][2] - table["low"][2] > 1.15 * (alone.high - alone.low)
    for fault in ({"group": g}, {"weight": w}):
        other = compare(true, sure, labels=y, **fault)["difference"]
        assert (other.low, other.high) != pytest.approx((record["difference"].low, record["difference"].high), rel=1e-3)


def test_rows_are_named_and_their_contributions_are_of_the_sum():
    y, true, sure = pair()
    ids = np.array([f"r{i}" for i in range(400)])
    record = compare(true, sure, labels=y, rows=ids)
    d = costs(sure, y) - costs(true, y)
    table, order = record.tables["rows"], np.argsort(-abs(d))[:20]
    assert table["row"] == ids[order].tolist()
    assert table["contribution"] == pytest.approx(d[order] / 400)
    assert table["share"] == pytest.approx(abs(d[order]) / abs(d).sum())
    turn = int(record["rows_to_turn"].value)
    kept = np.sort(d)  # leaving out the rows that speak most for the winner, here those where the difference is largest
    assert kept[: 400 - turn].sum() <= 0 < kept[: 400 - turn + 1].sum()
    curve = record.curves["concentration"]
    assert curve.y[curve.n.index(20)] == pytest.approx(abs(d[order]).sum() / abs(d).sum())
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, pytest.approx(1))


def test_order_of_rows_and_columns_changes_nothing():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(3), 300), rng.dirichlet(np.ones(3), 300)
    y, ids, order = rng.integers(0, 3, 300), np.arange(300) + 1000, rng.permutation(300)
    names = np.array(["x", "y", "z"])
    there, turn = ["x", "y", "z"], [2, 0, 1]
    a = Predictions.from_arrays(p, names[y], classes=there, rows=ids)
    b = Predictions.from_arrays(q, names[y], classes=there, rows=ids)
    turned = Predictions.from_arrays(q[order][:, turn], names[y][order], [there[k] for k in turn], ids[order])
    one, two = compare(a, b), compare(a, turned)
    for name in ("difference", "p_value", "discrimination_difference", "miscalibration_difference"):
        assert two[name].value == pytest.approx(one[name].value, rel=1e-6, abs=1e-9)
    assert one.tables["rows"]["row"] == two.tables["rows"]["row"]


def test_several_models_are_held_against_one_together():
    y, true, sure = pair()
    flat = np.full(400, y.mean())
    record = compare({"true": true, "sure": sure, "flat": flat, "again": true.copy()}, labels=y, baseline="true")
    assert record.tables["models"]["model"][-1] == "flat"
    assert record.facts["verdicts"] == {"sure": "worse", "flat": "worse", "again": "same"}
    two = compare({"true": true, "sure": sure}, labels=y)["difference"]
    place = record.tables["models"]["model"].index("sure")
    low, high = (record.tables["models"][f"difference_{end}"][place] for end in ("low", "high"))
    assert high - low > 1.1 * (two.high - two.low)
    assert compare({"true": true, "sure": sure}, labels=y, baseline=1).facts["baseline"] == "sure"


def test_probability_0_is_infinite_and_floored():
    y, true, sure = np.array([1, 0] * 100), np.full(200, 0.6), np.full(200, 0.6)
    sure[4] = 0.0  # its label is 1
    record = compare({"a": true, "b": sure}, labels=y)
    assert record["difference"].value == math.inf
    assert record["difference"].low is None
    assert record["difference_floored"].value == pytest.approx((math.log(1e6) + math.log(0.6)) / 200)
    assert record.tables["models"]["impossible_rows"] == [0, 1]
    assert "Some labels had probability exactly 0 (b: 1; row 4)" in " ".join(record.facts["notes"])
    assert compare({"b": sure, "a": true}, labels=y)["difference"].value == -math.inf
    both = compare({"b": sure, "c": sure * 0.9}, labels=y, floor=1e-3)
    assert "difference" not in both
    assert both.facts["floor"] == 1e-3
    assert "undefined" in " ".join(both.facts["notes"])
    assert Record.from_json(both.to_json()) == both
    with pytest.raises(DataError, match="the floor is a probability between 0 and 1"):
        compare(true, sure, labels=y, floor=0)


def test_a_soft_truth_needs_fewer_rows():
    rng = np.random.default_rng(3)
    truth = rng.dirichlet(np.ones(3), 500)
    a, b = (np.exp(np.log(truth) + s * rng.normal(size=truth.shape)) for s in (0.3, 0.5))
    a, b = a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)
    hard = np.array([rng.choice(3, p=row) for row in truth])
    soft, drawn = compare(a, b, labels=truth), compare(a, b, labels=hard)
    kl = [np.mean(np.sum(truth * np.log(truth / p), axis=1)) for p in (a, b)]
    assert soft.tables["models"]["kl_divergence"] == pytest.approx(kl, rel=1e-9)
    assert soft["difference"].value == pytest.approx(kl[1] - kl[0], rel=1e-9)
    width = [record["difference"].high - record["difference"].low for record in (soft, drawn)]
    assert width[0] < 0.7 * width[1]
    assert soft["difference"].low > 0


def documents(stretch):
    logs = -np.random.default_rng(7).gamma(5, 40, 30) * stretch
    both = np.stack([np.log1p(-np.exp(logs)), logs], axis=1)
    size = np.random.default_rng(8).integers(50, 900, 30)
    ids = np.array([f"d{i}" for i in range(30)], dtype=object)
    return Predictions(np.exp(both), np.ones(30, int), [], ids, "text", log_probabilities=both, bytes=size)


def test_documents_have_no_parts_and_a_difference_per_byte():
    a, b = documents(1.0), documents(1.05)
    record = compare(a, b)
    d = a.log_probabilities[:, 1] - b.log_probabilities[:, 1]
    assert record["difference"].value == pytest.approx(d.mean(), rel=1e-12)
    per_byte = record["difference_bits_per_byte"]
    assert per_byte.value == pytest.approx(d.sum() / a.bytes.sum() / math.log(2), rel=1e-12)
    assert per_byte.low < per_byte.value < per_byte.high
    assert not {"uncertainty", "discrimination_difference"} & set(record)
    assert record.tables["parts"]["part"] == ["cross_entropy"]
    y, true, sure = pair(300)
    size = 1 + np.arange(300) % 7
    per_byte = compare(true, sure, labels=y, bytes=size)["difference_bits_per_byte"]
    assert per_byte.value == pytest.approx((costs(sure, y) - costs(true, y)).sum() / size.sum() / math.log(2))
    b.log_probabilities[3, 1] = -np.inf
    with pytest.raises(DataError, match="a document had probability exactly 0"):
        compare(a, b)


def test_what_the_rows_cannot_tell_is_said_to_be_so():
    y, true, _ = pair(200)
    near = expit(logit(true) + 0.3 * np.random.default_rng(4).normal(size=200))
    record = compare(true, near, labels=y)
    assert record.facts["verdict"] == "undecided"
    low, high = record["difference"].low, record["difference"].high
    assert low < 0 < high
    error = (high - low) / 2 / stats.t.ppf(0.975, 199)
    assert record["rows_needed"].value == pytest.approx(200 * (2.8 * error / record["difference"].value) ** 2, rel=0.1)
    same = compare(true, true.copy(), labels=y)
    assert same.facts["verdict"] == "same"
    assert "rows" not in same.tables
    assert "p_value" not in same
    assert not any("same amount" in note for note in same.facts["notes"])
    beside = compare({"true": true, "copy": true.copy(), "sure": expit(3 * logit(true))}, labels=y)
    assert beside.facts["verdicts"] == {"copy": "same", "sure": "worse"}
    assert not any("same amount" in note for note in beside.facts["notes"])
    shifted = compare({"a": np.full(200, 0.5), "b": np.where(y == 1, 0.6, 0.4)}, labels=y)
    assert any("b and a differ by the same amount everywhere" in note for note in shifted.facts["notes"])
    one = compare(true, near, labels=y, group=np.zeros(200, int))
    assert one["difference"].low is None
    assert "All rows are in one group" in " ".join(one.facts["notes"])


def test_among_many_slices_that_differ_in_nothing_none_stands_out():
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(200):
        a, b = rng.gamma(1.0, size=(2, 1000))
        rivals = [Rival(name, cost, cost, cost, 0.0, "") for name, cost in (("a", a), ("b", b))]
        names = np.repeat([f"s{k:02}" for k in range(20)], 50).astype(object)
        lines = slices(Ground(np.arange(1000), [], None, None, None, {"s": names}), *rivals)
        ends = [line["mean"].interval(0.05 / 20) for line in lines]
        wrong += any(not low <= 0 <= high for low, high in ends)
    assert wrong / 200 < 0.1  # 0.05 and 3 standard errors of 200 tries
    assert wrong / 200 < 0.3 < 1 - 0.95**20  # what intervals of 95 % each would give


def refusals():
    y, p = [0, 1, 1], [0.5, 0.6, 0.7]
    yield (p,), {"labels": y}, "needs two models or more, and 1 came"
    yield (["a.csv", "b.csv"],), {}, "a list of files is one model in parts: give each model by itself"
    yield (p, p), {}, "probabilities without labels cannot be compared"
    yield (p, p), {"labels": y, "group": "g"}, "name columns of files, and what came are arrays"
    yield ("a.csv", "b.csv"), {"labels": y}, "files bring their own labels"
    yield (p, p), {"labels": y, "names": ["a"]}, "there are 2 models and 1 names"
    yield (p, p), {"labels": y, "names": ["a", "a"]}, "two models are called a. Give each another name"
    yield (p, p), {"labels": y, "baseline": "C"}, "the baseline 'C' is none of the models, which are A, B"
    yield (p, p), {"labels": y, "baseline": 2}, "in place 2, and the places are 0 to 1"
    yield (p, [0.5, 0.6]), {"labels": y}, "2 rows of probabilities and 3 labels"
    yield (p, [0.5, math.nan, 0.5]), {"labels": y}, "row 1: nan"
    yield (p, p), {"labels": y, "weight": [0, 0, 0]}, "all weights are 0"
    yield (p, p), {"labels": y, "weight": [1, -1, 1]}, "row 1"


@pytest.mark.parametrize(("models", "options", "sentence"), list(refusals()))
def test_bad_input_is_refused(models, options, sentence):
    with pytest.raises(DataError, match=sentence):
        compare(*models, **options)


# Real forecasts.


def test_published_forecasts_and_their_complement_are_one_model(real):
    frame = pd.read_csv(real / "forecasts/nba_games.csv")
    record = compare({"one": frame.prob1, "two": 1 - frame.prob2}, labels=frame.prob1_outcome)
    assert record.facts["verdict"] == "same"
    assert record["difference"].value == pytest.approx(0, abs=1e-15)


def test_published_forecasts_are_better_than_their_frequency_and_than_sharper_ones(real):
    frame = pd.read_csv(real / "forecasts/nba_games.csv")
    p, y = frame.prob1.to_numpy(), frame.prob1_outcome.to_numpy()
    models = {"published": p, "frequency": np.full(p.size, y.mean()), "sharper": expit(1.2 * logit(p))}
    record = compare(models, labels=y, group=frame.season.to_numpy(), by={"season": frame.season.to_numpy()})
    assert record.facts["verdicts"] == {"frequency": "worse", "sharper": "worse"}
    assert record.facts["clusters"] == frame.season.nunique()
    own = evaluate(p, y)
    place = record.tables["models"]["model"].index("published")
    assert record.tables["models"]["cross_entropy"][place] == pytest.approx(own["cross_entropy"].value, rel=1e-12)


def test_forecasts_of_one_season_are_not_independent(real):
    frame = pd.read_csv(real / "forecasts/mlb_playoffs.csv")
    p, y = frame.make_playoffs.to_numpy(), frame.make_playoffs_outcome.to_numpy().astype(int)
    group = (frame.season.astype(str) + " " + frame.team).to_numpy()
    models = {"published": p, "flatter": expit(0.8 * logit(np.clip(p, 1e-4, 1 - 1e-4)))}
    rows, teams = compare(models, labels=y), compare(models, labels=y, group=group)
    assert teams["difference"].value == rows["difference"].value
    assert teams.facts["clusters"] == frame.groupby(["season", "team"]).ngroups
    width = [record["difference"].high - record["difference"].low for record in (teams, rows)]
    assert width[0] > 4 * width[1]  # the planted fault: the cluster dropped
    d = costs(models["flatter"], y) - costs(p, y)
    sums = pd.Series(d - d.mean()).groupby(group).sum()
    g = sums.size
    error = math.sqrt(g / (g - 1) * (sums**2).sum()) / d.size  # CR1, as statsmodels has it
    # Clusters of 30 seasons are not quite equal, and their skewness stretches the interval: 6 % in all.
    assert width[0] == pytest.approx(2 * stats.t.ppf(0.975, g - 1) * error, rel=0.1)


def test_a_network_against_its_tempered_self(real):
    z = np.load(real / "logits/resnet50_cifar10_tst_logits.npy").astype(float)
    y = np.load(real / "logits/resnet50_cifar10_tst_labels.npy")
    record = compare({"network": z, "tempered": z / 2.5}, labels=y, form="logits")
    assert record.facts["verdict"] == "better"
    assert record["discrimination_difference"].value == pytest.approx(0, abs=1e-5)
    assert record["discrimination_difference"].low < 0 < record["discrimination_difference"].high
    assert record["miscalibration_difference"].value == pytest.approx(record["difference"].value, abs=1e-5)
    truth = stats.ttest_1samp(np.subtract(*(-np.log(_softmax(x)[np.arange(y.size), y]) for x in (z / 2.5, z))), 0)
    interval = truth.confidence_interval()
    assert record["difference"].low == pytest.approx(interval.low, rel=0.05)
    assert record["difference"].high == pytest.approx(interval.high, rel=0.05)


def _softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# Files and the command line.


@pytest.fixture
def files(tmp_path):
    y, true, sure = pair(300)
    rng = np.random.default_rng(6)
    frame = pd.DataFrame(
        {"row": [f"r{i}" for i in range(300)], "label": y, "p_1": true, "game": rng.integers(0, 30, 300)}
    )
    frame["segment"] = rng.choice(["home", "away"], 300)
    frame.to_parquet(tmp_path / "a.parquet")
    other = frame.assign(p_1=sure)[["row", "label", "p_1"]].sample(frac=1, random_state=0)
    other.to_parquet(tmp_path / "b.parquet")
    other.iloc[4:].to_csv(tmp_path / "c.csv", index=False)
    return tmp_path


def test_files_are_joined_and_say_what_arrays_say(files):
    frame = pd.read_parquet(files / "a.parquet")
    found = compare(files / "a.parquet", files / "b.parquet", group="game", by="segment")
    y, p, q = pair(300)
    truth = compare(p, q, labels=y, group=frame.game.to_numpy(), by={"segment": frame.segment.to_numpy()})
    assert found["difference"] == truth["difference"]
    assert found.tables["slices"]["difference"] == truth.tables["slices"]["difference"]
    assert found.facts["models"] == ["a", "b"]
    short = compare(files / "a.parquet", files / "c.csv")
    assert short.facts["rows"] == 296
    assert "296 rows were compared: c lacks 4 of a's (" in short.facts["notes"][0]


def test_a_model_may_be_in_several_files(files, monkeypatch, capsys):
    whole = compare(files / "a.parquet", files / "b.parquet", group="game")
    frame = pd.read_parquet(files / "a.parquet")
    (files / "parts").mkdir()
    for place in (0, 100, 200):
        frame.iloc[place : place + 100].to_parquet(files / "parts" / f"{place}.parquet")
    each = sorted((files / "parts").iterdir())
    for named, name in ((f"{files / 'parts'}/", "parts"), (each, "A")):
        found = compare(named, files / "b.parquet", group="game")
        assert found["difference"] == whole["difference"]
        assert found.facts["models"][0] == name
    assert compare(each[:2], files / "b.parquet")["difference"].n == 200  # all of them are read

    address = f"file://{files}/parts/*.parquet"  # whose two strokes a path would lose
    monkeypatch.chdir(files / "parts")
    assert run(monkeypatch, "compare", address, files / "b.parquet", "--group", "game") == 0
    capsys.readouterr()
    assert Record.read("b-comparison.json")["difference"] == whole["difference"]


def test_columns_of_one_file_are_models(files):
    frame = pd.read_parquet(files / "a.parquet")
    frame.assign(other=pair(300)[2]).rename(columns={"p_1": "first"}).to_csv(files / "both.csv", index=False)
    found = compare(files / "both.csv", probability=["first", "other"])
    assert found.facts["models"] == ["first", "other"]
    assert found["difference"].value == pytest.approx(
        compare(files / "a.parquet", files / "b.parquet")["difference"].value
    )


def test_predictions_as_crossent_writes_them_meet_by_their_ids(tmp_path):
    y, true, sure = pair(50)
    for name, p, order in (("a", true, slice(None)), ("b", sure, slice(None, None, -1))):
        both = np.stack([1 - p, p], axis=1)[order]
        write_predictions(tmp_path / f"{name}.parquet", both, task="binary", labels=y[order], rows=np.arange(50)[order],
                          classes=["0", "1"])  # fmt: skip
    found = compare(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert found["difference"].value == pytest.approx(np.mean(costs(sure, y) - costs(true, y)))
    pd.read_parquet(tmp_path / "b.parquet").drop(columns="row").to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="a has row ids and bare has none, so that nothing says which rows belong"):
        compare(tmp_path / "a.parquet", tmp_path / "bare.parquet")


def run(monkeypatch, *words):
    from crossent import cli

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr("sys.argv", ["crossent", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_a_record_and_a_page(files, monkeypatch, capsys):
    page = files / "page.html"
    words = ("compare", files / "a.parquet", files / "b.parquet", files / "c.csv", "--group", "game", "--by", "segment")
    assert run(monkeypatch, *words, "--report", page) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "On 296 rows in 30 groups" in said
    record = Record.read(files / "a-b-comparison.json")
    assert record.kind == "comparison"
    assert json.loads(record.to_json())["facts"]["baseline"] == "a"
    assert "The rows that make the difference" in page.read_text(encoding="utf-8")
    assert crossent.compare is compare


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("a.parquet",), "a comparison needs two models or more, and 1 came"),
        (("a.parquet", "none.parquet"), "none.parquet"),
        (("a.parquet", "b.parquet", "--group", "gaem"), "has no column 'gaem' for the groups"),
        (("b.parquet", "a.parquet", "--by", "segment"), "has no column 'segment' for the slices"),
        (("a.parquet", "b.parquet", "--baseline", "c"), "the baseline 'c' is none of the models"),
        (("a.parquet", "cut.parquet"), "cut.parquet"),
        (("a.parquet", "wrong.parquet"), "a and wrong disagree about the label of 1 of 300 rows (r7: "),
        (("a.parquet", "twice.parquet"), "r3"),
    ],
)
def test_the_command_refuses_in_a_sentence(files, monkeypatch, capsys, words, sentence):
    whole, other = (files / "a.parquet").read_bytes(), pd.read_parquet(files / "a.parquet")
    (files / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    other.assign(label=np.where(other.row == "r7", 1 - other.label, other.label)).to_parquet(files / "wrong.parquet")
    pd.concat([other, other.iloc[3:4]]).to_parquet(files / "twice.parquet")
    before = sorted(files.iterdir())
    assert run(monkeypatch, "compare", *(files / w if w.endswith("parquet") else w for w in words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("crossent: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert sorted(files.iterdir()) == before


def test_models_whose_rows_have_other_indices_are_refused():
    """They were held against each other by their place."""
    a, b = pd.Series([0.6, 0.5, 0.7]), pd.Series([0.9, 0.2, 0.8], index=[2, 1, 0])
    with pytest.raises(DataError, match="old and new have different indices"):
        compare({"old": a, "new": b}, labels=[1, 0, 1])
    assert compare({"old": a, "new": b.sort_index()}, labels=[1, 0, 1])["difference"].n == 3


@pytest.mark.parametrize("clusters", [None, 60])
def test_a_model_and_its_recalibration_tell_apart_alike(clusters):
    """Their curves have the same steps: as if each had a doubt of its own, the interval was six times as wide."""
    rng = np.random.default_rng(0)
    z, cluster = rng.normal(0, 2, 1200), None if clusters is None else rng.integers(clusters, size=1200)
    y = (rng.uniform(size=1200) < expit(z)).astype(int)
    record = compare({"a": expit(z), "b": expit(1.05 * z + 0.1)}, labels=y, group=cluster)
    apart, calibration = record["discrimination_difference"], record["miscalibration_difference"]
    assert apart.low <= 0 <= apart.high
    whole = record["difference"]
    assert calibration.high - calibration.low < (1.1 if clusters is None else 2) * (whole.high - whole.low)
    noisy = compare({"a": expit(z), "b": expit(z + rng.normal(0, 0.5, 1200))}, labels=y, group=cluster)
    assert noisy["discrimination_difference"].high < 0  # it can be seen


def test_forecasts_made_softer_tell_apart_alike(real):
    """Cells of probability show how teams scatter less well once softened, and curves then seem to claim less."""
    frame = pd.read_csv(real / "forecasts/mlb_playoffs.csv")
    p, y = frame.make_playoffs.to_numpy(), frame.make_playoffs_outcome.to_numpy().astype(int)
    cluster = (frame.season.astype(str) + " " + frame.team).to_numpy()
    odds = 0.7 * (np.log(p + 0.01) - np.log(1.01 - p))
    found = compare({"a": p, "b": expit(odds)}, labels=y, group=cluster)["discrimination_difference"]
    assert found.low < 0 < found.high
    assert found.high - found.low < 0.03
