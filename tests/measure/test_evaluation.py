"""The record as a whole: its parts, its notes, the decomposition's identity, and real predictions."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

import crossent.measure
from crossent.errors import DataError
from crossent.measure import Predictions, compare, evaluate
from crossent.measure.calibration.scaling import KINDS, cross_fit_log, recalibrate
from crossent.measure.sums.hashing import unmixed
from crossent.measure.sums.likelihood import costs, costs_of_logs
from crossent.measure.tally.tally import Tally
from crossent.measure.values.reliability import MOST_GROUPS
from crossent.record import Record

RNG = np.random.default_rng(0)
P = RNG.dirichlet([0.5] * 4, size=400)
Y = np.array([RNG.choice(4, p=row) for row in P])
NAMES = ["ash", "birch", "cedar", "oak"]


def adds_up(record: Record) -> float:
    """By how much the identity fails."""
    parts = {name: record[name].value for name in ("uncertainty", "discrimination", "miscalibration")}
    total = record["cross_entropy_floored" if "cross_entropy_floored" in record else "cross_entropy"].value
    return total - (parts["uncertainty"] - parts["discrimination"] + parts["miscalibration"])


def test_the_record_holds_what_its_page_says():
    record = evaluate(P, np.array(NAMES)[Y], classes=NAMES, title="trees")
    assert (record.kind, record.title) == ("evaluation", "trees")
    assert record.made.endswith("+00:00")
    units = {name: number.unit for name, number in record.items()}
    assert units == {
        "cross_entropy": "nats",
        "cross_entropy_bits": "bits",
        "impossible_rows": "rows",
        "label_entropy": "bits",
        "label_entropy_bias": "bits",
        "information_gained": "bits",
        "skill": "share",
        "perplexity": "1",
        "uncertainty": "nats",
        "discrimination": "nats",
        "miscalibration": "nats",
        "accuracy": "share",
        "top_3_accuracy": "share",
        "brier": "1",
        "ece": "1",
        "smooth_ece": "1",
    }
    assert set(record.tables) == {"per_class", "costliest"}
    assert set(record.curves) == {"reliability", "recalibrated", "reliability_null", "concentration"}
    assert record.facts["task"] == "multi-class"
    assert record.facts["classes"] == NAMES
    assert record.facts["rows"] == 400
    assert record.facts["notes"] == []
    assert Record.from_json(record.to_json()) == record
    for number in record.values():
        assert type(number.value) in (float, int)
        assert number.n == 400


def test_a_file_and_its_arrays_give_the_same_record(tmp_path):
    crossent.measure.write_predictions(
        tmp_path / "p.parquet", P, task="multi-class", labels=np.array(NAMES)[Y], classes=NAMES
    )
    file, arrays = evaluate(tmp_path / "p.parquet"), evaluate(P, Y, classes=NAMES)
    assert file.numbers == arrays.numbers
    assert file.tables == arrays.tables
    assert file.title == "Predictions in p.parquet"
    crossent.measure.write_predictions(
        tmp_path / "q.parquet",
        P,
        task="multi-class",
        labels=np.array(NAMES)[Y],
        classes=NAMES,
        rows=1000 + np.arange(400),
    )
    both = evaluate([tmp_path / "p.parquet", tmp_path / "q.parquet"])
    assert both.title == "Predictions in p.parquet, q.parquet"
    assert evaluate(Predictions.from_arrays(P, Y, NAMES)).numbers == arrays.numbers


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["binary", "multi-class", "range", "zeros"]), st.integers(1, 80), st.integers(0, 2**31))
def test_cross_entropy_is_uncertainty_less_discrimination_plus_miscalibration(task, n, seed):
    rng = np.random.default_rng(seed)
    if task == "range":
        record = evaluate(rng.random(n), rng.random(n) * 5, task="range", low=0, high=5)
    else:
        classes = 2 if task == "binary" else 4
        p = rng.dirichlet([0.3] * classes, size=n)
        if task == "zeros":
            p = np.where(p < 0.2, 0, p)
            p[p.sum(axis=1) == 0] = 1 / classes
            p /= p.sum(axis=1, keepdims=True)
        record = evaluate(p, rng.integers(classes, size=n))
    assert adds_up(record) == pytest.approx(0, abs=1e-12)
    assert Record.from_json(record.to_json()) == record
    for name, number in record.items():
        ends = (number.low, number.high)
        assert ends == (None, None) or number.low <= number.value <= number.high, name


def test_the_parts_are_those_of_the_cheaper_cross_fitted_calibrator():
    """C* between what the calibrator costs the rows of the other folds and its own, 4 to 5: too dear and too cheap."""
    sure = P**2 / (P**2).sum(axis=1, keepdims=True)
    record = evaluate(sure, Y)
    loss = np.mean([-math.log(sure[i, Y[i]]) for i in range(400)])
    rows = Predictions.from_arrays(sure, Y)
    sample = Tally.like(rows, capacity=400).add(rows).sample  # all rows
    order = np.argsort(unmixed(sample.ids))  # their places, by which their folds are drawn
    z, y = sample.logs[order], sample.labels[order]
    kinds = {kind: np.mean(costs_of_logs(cross_fit_log(z, y, kind), y)) for kind in KINDS[1:]}
    kind = min(kinds, key=kinds.get)
    own = np.mean(costs_of_logs(recalibrate(z, y, kind, logits=True).of_logits(z), y))
    assert own < kinds[kind]
    best = (4 * kinds[kind] + 5 * own) / 9
    assert record["miscalibration"].value == pytest.approx(loss - best, abs=1e-6)
    assert record["miscalibration"].low > 0
    assert abs(loss - own - record["miscalibration"].value) > 1e-4  # it can fail


def test_tables_against_loops():
    rows = Predictions.from_arrays(P, Y, NAMES, rows=[f"tree {i}" for i in range(400)])
    record = evaluate(rows)
    table, best = record.tables["per_class"], P.argmax(axis=1)
    for c in range(4):
        mine = [i for i in range(400) if Y[i] == c]
        assert table["rows"][c] == len(mine)
        assert table["share"][c] == len(mine) / 400
        assert table["cross_entropy"][c] == pytest.approx(np.mean([-math.log(P[i, c]) for i in mine]))
        assert table["mean_probability"][c] == pytest.approx(sum(P[i, c] for i in range(400)) / 400)
        hits = sum(best[i] == c for i in mine)
        assert table["recall"][c] == hits / len(mine)
        assert table["precision"][c] == hits / sum(b == c for b in best)
    worst, cost = record.tables["costliest"], costs(rows.probabilities, rows.labels)
    order = sorted(range(400), key=lambda i: -cost[i])[:20]
    assert worst["row"] == [f"tree {i}" for i in order]
    assert worst["label"] == [NAMES[Y[i]] for i in order]
    assert worst["predicted"] == [NAMES[best[i]] for i in order]
    assert worst["probability"] == [P[i, Y[i]] for i in order]


def test_equally_costly_rows_keep_their_order_and_absent_classes_are_none():
    rows = Predictions.from_arrays(np.full((30, 3), 1 / 3), [1] * 30)
    record = evaluate(rows)
    assert record.tables["costliest"]["row"] == list(range(20))
    classes = record.tables["per_class"]
    assert classes["cross_entropy"][0] is None
    assert classes["precision"] == [0.0, None, None]


def reliability(rows: Predictions):
    return evaluate(rows).curves["reliability"]


def test_reliability_groups_are_even_keep_ties_and_hold_the_diagonal():
    rng = np.random.default_rng(1)
    p = rng.random(3000).round(2)
    curve = reliability(Predictions.from_arrays(p, (rng.random(3000) < p).astype(int)))
    assert len(curve.x) == MOST_GROUPS
    assert sum(curve.n) == 3000
    assert max(curve.n) < 2 * min(curve.n)
    edges = [(p[lo <= p].min()) for lo in curve.x]
    assert len(set(edges)) == MOST_GROUPS
    inside = sum(lo <= x <= hi for x, lo, hi in zip(curve.x, curve.low, curve.high, strict=True))
    assert inside >= 13
    sure = reliability(Predictions.from_arrays(p**3 / (p**3 + (1 - p) ** 3), (rng.random(3000) < p).astype(int)))
    assert sum(lo <= x <= hi for x, lo, hi in zip(sure.x, sure.low, sure.high, strict=True)) < 9  # it can fail
    few = reliability(Predictions.from_arrays(p[:60], (p[:60] > 0.5).astype(int)))
    assert len(few.x) == 2
    tied = reliability(Predictions.from_arrays(np.full(3000, 0.3), rng.integers(2, size=3000)))
    assert tied.n == [3000]


NOTED = [
    (([0.9, 0.2], [1, 0]), {}, "Only 2 rows were measured"),
    (([0.9], [1]), {}, "Only 1 row was measured"),
    ((np.full(100, 0.5), [0, 1] * 50), {}, "In 100 of 100 rows several classes are equally probable"),
    ((np.full(100, 0.4), [1] * 100), {}, "Every row has the same label"),
    ((np.full(100, 0.4), [1] * 96 + [0] * 4), {}, "Only 4 rows have the label 0"),
    ((np.full((100, 4), 0.25), [0, 1] * 50), {}, "No row has the label 2, 3"),
    ((np.full((100, 2), 1.0), [0, 1] * 50), {"normalise": True}, "divided by its sum"),
    ((np.full(100, 1.0), [1] * 98 + [0] * 2), {}, r"2 of 100 labels had probability exactly 0 \(rows 98, 99\)"),
    ((np.full(100, 0.5), np.linspace(0, 1, 100)), {"task": "range"}, "no model can have a cross-entropy below"),
]


@pytest.mark.parametrize(("arguments", "options", "sentence"), NOTED)
def test_notes_say_what_a_reader_must_know(arguments, options, sentence):
    notes = evaluate(*arguments, **options).facts["notes"]
    assert sum(1 for note in notes if re.search(sentence, note)) == 1
    assert all(note.endswith(".") for note in notes)


def test_what_cannot_be_evaluated_is_refused(tmp_path):
    for floor in (0, 1, -1, math.nan):
        with pytest.raises(DataError, match="the floor is a probability"):
            evaluate([0.5], [1], floor=floor)
    with pytest.raises(DataError, match="pass the labels"):
        evaluate([0.5])
    with pytest.raises(DataError, match="what came is not a file"):
        evaluate([0.5], [1], split="test")
    with pytest.raises(DataError, match="brings its own labels"):
        evaluate(tmp_path / "p.csv", [1])
    with pytest.raises(DataError, match="there is no file"):
        evaluate(tmp_path / "p.csv")


# Real predictions


def test_20news_has_infinite_cross_entropy_and_says_why(real):
    p, y = np.load(real / "logits/20news_probs.npy"), np.load(real / "logits/20news_labels.npy")
    zeros = sum(1 for row, label in zip(p, y, strict=True) if row[label] == 0)
    record = evaluate(p, y)
    assert record["cross_entropy"].value == math.inf
    assert record["impossible_rows"].value == zeros == 61
    floored = np.mean([-math.log(max(row[label], 1e-6)) for row, label in zip(p, y, strict=True)])
    assert record["cross_entropy_floored"].value == pytest.approx(floored, rel=1e-12)
    assert adds_up(record) == pytest.approx(0, abs=1e-12)
    assert "61 of 7,532 labels" in record.facts["notes"][0]
    assert record.tables["costliest"]["cross_entropy"] == [math.inf] * 20


@pytest.mark.parametrize(("name", "least"), [("lenet5_cifar10", 0.05), ("densenet_cifar100", 0.3)])
def test_over_confident_networks_are_found_out(real, name, least):
    data = np.load(real / f"logits/{name}_probs.npz")
    record = evaluate(data["predictions"], data["ground_truth"])
    assert record["miscalibration"].low > least
    p = data["predictions"].astype(float)
    p /= p.sum(axis=1, keepdims=True)  # float32: off by a rounding, which is divided out and said
    assert sum("only to rounding" in note for note in record.facts["notes"]) == 1
    direct = -np.log(p[np.arange(10_000), data["ground_truth"]]).mean()
    assert record["cross_entropy"].value == pytest.approx(direct, rel=1e-12)
    curve = record.curves["reliability"]
    assert sum(y < x for x, y in zip(curve.x, curve.y, strict=True)) >= 13  # claims more than it holds


def test_scaling_and_shifting_logits_costs_calibration_and_nothing_else(real):
    found = {}
    for kind in ("tst", "tst_sc", "tst_sh"):
        z = np.load(real / f"logits/resnet50_cifar10_{kind}_logits.npy").astype(float)
        y = np.load(real / f"logits/resnet50_cifar10_{kind}_labels.npy")
        found[kind] = evaluate(softmax(z, axis=1), y)
    plain = found["tst"]["discrimination"].value
    for kind in ("tst_sc", "tst_sh"):
        assert found[kind]["discrimination"].value == pytest.approx(plain, abs=1e-3)
        assert abs(found[kind]["miscalibration"].value - found["tst"]["miscalibration"].value) > 0.05


def test_forecasts_with_exact_zeros_and_ones_stay_finite_where_they_were_right(real):
    frame = pd.read_csv(real / "forecasts/mlb_playoffs.csv")
    p, y = frame["make_playoffs"].to_numpy(), frame["make_playoffs_outcome"].to_numpy()
    record = evaluate(p, y)
    assert ((p == 0) | (p == 1)).sum() > 1000
    assert record["impossible_rows"].value == 0
    assert math.isfinite(record["cross_entropy"].value)
    wrong = np.where(np.arange(p.size) == np.argmax(p), 0, y)
    assert evaluate(p, wrong)["impossible_rows"].value == 1


def test_a_csv_of_game_forecasts_is_read_by_its_own_column_names(real):
    record = evaluate(real / "forecasts/nba_games.csv", label="prob1_outcome", probability="prob1")
    frame = pd.read_csv(real / "forecasts/nba_games.csv")
    paid = [-math.log(p if y else 1 - p) for p, y in zip(frame["prob1"], frame["prob1_outcome"], strict=True)]
    assert record["cross_entropy"].value == pytest.approx(np.mean(paid), rel=1e-12)
    with pytest.raises(
        DataError, match=r"the labels have 3: '0' \(row 1\), '0.5' \(row 13374\), '1' \(row 0\)"
    ):  # drawn games
        evaluate(real / "forecasts/mlb_games.csv", label="prob1_outcome", probability="prob1")
    drawn = evaluate(real / "forecasts/mlb_games.csv", label="prob1_outcome", probability="prob1", task="range")
    assert drawn.facts["rows"] == 15_748


def test_a_label_is_suspect_where_another_class_got_what_it_usually_gets():
    """Confident learning written out: the mean probability of class j over rows labelled j is the bar for j."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9], [0.95, 0.05], [0.45, 0.55]])
    y = np.array([0, 0, 1, 1, 1, 0])
    bar = np.array([p[y == j, j].mean() for j in (0, 1)])  # 0.72 and 0.55
    by_hand = {i: int(p[i].argmax() != y[i] and p[i].max() >= bar[p[i].argmax()]) for i in range(6)}
    table = evaluate(p, y).tables["costliest"]
    assert dict(zip(table["row"], map(int, table["suspect"]), strict=True)) == by_hand
    assert by_hand == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1}
    p[5] = 0.48, 0.52  # below the bar of class 1: unlikely, and no suspicion
    table = evaluate(p, y).tables["costliest"]
    assert [i for i, suspect in zip(table["row"], table["suspect"], strict=True) if suspect] == [4]
    assert "suspect" not in evaluate([0.2, 0.7], [0.1, 0.9], task="range").tables["costliest"]


@pytest.mark.parametrize("more", [{}, {"weight": [0.5, 1, 2, 3, 1, 1]}, {"by": {"half": list("aaabbb")}}])
def test_a_model_that_is_always_certain_and_wrong_is_measured(more):
    record = evaluate([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], [1, 0, 1, 0, 0, 1], **more)
    assert record["cross_entropy"].value == math.inf
    assert record["impossible_rows"].value == 6
    assert record["accuracy"].value == 0


@pytest.mark.parametrize("group", [None, np.arange(300) % 9])
def test_rows_of_weight_0_say_nothing_where_they_leave_one_class(group):
    """Interval for interval what is said without them."""
    draw = np.random.default_rng(0)
    p = draw.uniform(0.05, 0.95, 300)
    y = (draw.uniform(size=300) < p).astype(int)
    kept = y == 1
    with_zeros = evaluate(p, y, weight=kept.astype(float), group=group)
    without = evaluate(p[kept], y[kept], weight=np.ones(kept.sum()), group=None if group is None else group[kept])
    for name in ("cross_entropy", "brier", "miscalibration"):
        mine, truth = with_zeros[name], without[name]
        assert (mine.low is None) == (truth.low is None)
        assert (mine.value, mine.low or 0, mine.high or 0) == pytest.approx(
            (truth.value, truth.low or 0, truth.high or 0), rel=1e-9
        )


@pytest.mark.parametrize("power", [-300, -200, 8, 16, 30])
def test_one_weight_far_from_the_others_gives_no_number_that_is_none(power):
    draw = np.random.default_rng(0)
    p = draw.uniform(0.05, 0.95, 300)
    y = (draw.uniform(size=300) < p).astype(int)
    weight = np.where(np.arange(300) == 0, 10.0**power, 1.0)
    record = evaluate(p, y, weight=weight)
    said = [
        end for name in record if name != "skill" for end in (record[name].value, record[name].low, record[name].high)
    ]
    said = [end for end in said if end is not None]
    assert np.isfinite(said).all()
    assert np.abs(said).max() < 1000
    costs = -np.log(np.where(y == 1, p, 1 - p))
    assert record["cross_entropy"].value == pytest.approx(np.average(costs, weights=weight), rel=1e-12)


def test_an_iterator_of_something_else_is_refused():
    with pytest.raises(DataError, match="taken for batches of Predictions, and it gave float"):
        evaluate((p for p in [0.5, 0.5]), [0, 1])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("given", [{}, {"form": "log-probabilities"}])
def test_a_row_of_weight_0_is_not_impossible(soft, given):
    """0 · ∞ is 0: the row is left out, whatever it said."""
    p, y = np.array([[1.0, 0.0], [0.5, 0.5], [0.4, 0.6]]), np.array([1, 1, 0])
    labels = np.eye(2)[y] if soft else y
    with np.errstate(divide="ignore"):
        said = np.log(p) if given else p
    more = {**given, "truth": "soft"} if soft else given
    with_it = evaluate(said, labels, weight=[0, 1, 1], by={"k": ["a", "a", "b"]}, **more)
    without = evaluate(said[1:], labels[1:], weight=[1, 1], **more)
    assert with_it["cross_entropy"].value == without["cross_entropy"].value
    assert with_it["impossible_rows"].value == 0
    assert with_it.tables["slices"]["impossible_rows"] == [0, 0]
    assert "cross_entropy_floored" not in with_it
    assert sorted(with_it.tables["costliest"]["row"]) == [1, 2]
    assert evaluate(said, labels, weight=[1e-9, 1, 1], **more)["cross_entropy"].value == math.inf


def test_what_makes_figures_rest_on_little_is_said():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=300)
    y = (rng.uniform(size=300) < p).astype(int)
    even, one = np.ones(300), np.where(np.arange(300) == 7, 1e6, 1.0)
    said = evaluate(p, y, weight=one, bytes=np.zeros(300)).facts["notes"]
    assert "The rows weigh so unequally that they are worth no more than 1 equal ones" in said[0]
    assert said[1] == "No row has any bytes, so that there are no bits per byte."
    assert evaluate(p, y, weight=even, bytes=even).facts["notes"] == []


@pytest.mark.parametrize("size", [1e-17, 1e-80, 1e-120])
def test_models_that_are_all_but_certain_have_intervals(size, recwarn):
    """Logits of a hundred and more. Cubes and fourth powers of such costs are 0, and 1 - p is 1."""
    tiny, y, groups = size * np.random.default_rng(0).random(200), np.arange(200) % 2, np.arange(200) // 20
    logs = np.empty((200, 2))
    logs[np.arange(200), y], logs[np.arange(200), 1 - y] = -tiny, np.log(tiny)
    surer = logs.copy()
    surer[np.arange(200), y] /= 2
    surer[np.arange(200), 1 - y] -= math.log(2)
    for group in (None, groups):
        loss = evaluate(logs, y, form="log-probabilities", group=group)["cross_entropy"]
        assert loss.value == pytest.approx(tiny.mean(), rel=1e-12)
        assert 0.8 * loss.value < loss.low < loss.value < loss.high < 1.2 * loss.value
        less = compare(logs, surer, labels=y, form="log-probabilities", group=group)["difference"]
        assert less.value == pytest.approx(-tiny.mean() / 2, rel=1e-12)
        assert less.low < less.value < less.high
    assert not recwarn.list
