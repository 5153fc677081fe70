"""Where the remaining nats are, and columns that know too much."""

import numpy as np
import pandas as pd
import pytest

import crossent
from crossent import report
from crossent.minimise.data.leak import leaks

TINY = ["folds=3", "members=1", "width=16", "epochs=8"]


def part(run, name):
    table = run.record.tables["left"]
    place = table["part"].index(name)
    return {column: cells[place] for column, cells in table.items()}


def test_a_column_that_gives_the_label_away_is_named_and_no_other():
    random = np.random.default_rng(0)
    y = random.integers(0, 2, 400)
    table = pd.DataFrame(
        {"near": y + random.normal(0, 0.6, 400), "noise": random.normal(size=400), "paid": np.where(y, "yes", "no")}
    )
    said = leaks(table, y)
    assert len(said) == 1
    assert "'paid' alone gives" in said[0]
    assert leaks(table.drop(columns="paid"), y) == []
    assert leaks(table.iloc[:40], y[:40]) == []  # too few rows to suspect anybody by
    share = y + 0.25 * (table["noise"].to_numpy() > 0)
    assert "'copy'" in leaks(table.assign(copy=share), share / 1.25)[0]  # a range


@pytest.mark.parametrize("at", [0.373, 0.5, 0.811])
def test_a_number_that_parts_the_classes_anywhere_is_named(at):
    random = np.random.default_rng(1)
    number = random.normal(size=2000)
    y = (number > np.quantile(number, at)).astype(int)
    accounts = 9_000_000_000 + number.argsort().argsort().astype(float)
    accounts[::10] = np.nan
    said = leaks(pd.DataFrame({"number": 1e3 * number, "id": accounts, "rough": number.round()}), y)
    assert [sentence.split("'")[1] for sentence in said] == ["number"]  # a tenth of the ids is missing
    assert leaks(np.stack((random.normal(size=2000), number), 1), y)[0].startswith("Column 1 alone gives")
    assert leaks(random.normal(size=(2000, 3)), y) == []
    assert leaks(random.random((200, 4, 4)), y[:200]) == []  # images


@pytest.mark.parametrize("rows", [160, 400, 2000])
def test_a_gap_between_classes_is_parted_in_its_middle(rows):
    """Few rows, and of the other half some beyond the last of this one: not all of them on the wrong side."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, rows)
    assert leaks(pd.DataFrame({"k": y + 1e-3 * random.normal(size=rows)}), y)[0].startswith("Column 'k' alone gives")


def test_equal_rows_with_different_labels_show_the_noise():
    random = np.random.default_rng(0)
    x = random.integers(0, 4, (600, 1)).astype(float)
    y = random.random(600) < 0.25
    run = crossent.fit(x, y, settings=TINY)
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert part(run, "noise")["nats"] == pytest.approx(entropy, abs=0.05)  # 480 rows: 3 standard errors of a share
    with pytest.raises(ValueError, match="noise"):
        part(crossent.fit(random.normal(size=(600, 1)), y, settings=TINY), "noise")  # no row has a twin


def test_soft_labels_show_their_own_entropy():
    random = np.random.default_rng(0)
    p = random.random(200)
    q = np.stack([p, 1 - p], 1)
    run = crossent.fit(random.normal(size=(200, 2)), q, settings=TINY)
    own = -np.mean(np.sum(q * np.log(q), 1))
    assert part(run, "noise")["nats"] == pytest.approx(own, abs=0.05)  # of the 160 rows learnt from


def test_a_network_that_learned_nothing_is_behind_its_baselines():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 3))
    run = crossent.fit(x, x[:, 0] > 0, settings=[*TINY, "trees=no", "learning_rate=1e-9"])
    assert part(run, "against a linear model")["low"] > 0.3
    learned = crossent.fit(x, x[:, 0] > 0, settings=["folds=3", "members=1", "width=16", "epochs=60"])
    assert part(learned, "against a linear model")["nats"] < 0.1


def test_the_page_shows_where_the_nats_are():
    run = crossent.fit("iris", settings=TINY)
    page = report.html.page(run.record)
    assert "Where the remaining nats are" in page
    assert "against boosted trees" in page


def test_weights_count_in_what_is_left():
    """Rows of the second half have the other label for the same feature, and weigh nothing: a baseline knows it."""
    random = np.random.default_rng(0)
    x = random.normal(size=(600, 1))
    second = np.arange(600) >= 300
    y = (x[:, 0] > 0) != second
    learned = ["folds=3", "members=1", "width=16", "epochs=60"]
    run = crossent.fit(x, y, weight=np.where(second, 1e-9, 1.0), settings=learned)
    beside = part(run, "against a linear model")
    assert -0.3 < beside["nats"] < 0.1  # -0.6 if every row counted
    run = crossent.fit(x, y, weight=np.where(second, 1e-9, 1.0), settings=[*TINY, "trees=no", "learning_rate=1e-9"])
    assert part(run, "against a linear model")["low"] > 0.3  # 0 if every row counted: there is nothing to know


def test_a_range_has_baselines_too():
    random = np.random.default_rng(0)
    x = random.normal(size=(500, 3))
    y = 1 / (1 + np.exp(-2 * x[:, 0]))
    best = float(np.mean(-y * np.log(y) - (1 - y) * np.log(1 - y)))
    blind = crossent.fit(x, y, limits=(0, 1), settings=[*TINY, "trees=no", "learning_rate=1e-9"])
    for name in ("against a linear model", "against boosted trees"):
        found = part(blind, name)
        assert found["low"] > 0.05
        assert blind.record["cross_entropy"].value - found["nats"] == pytest.approx(best, abs=0.05)


def test_slices_that_surely_cost_more_are_named_and_no_others():
    random = np.random.default_rng(0)
    n = 4000
    table = pd.DataFrame(
        {
            "town": random.choice(["Ulm", "Köln", "Bonn"], n),
            "near": random.choice(["u", "k"], n),
            "age": random.uniform(20, 60, n),
            "lead": random.normal(size=n),
        }
    )
    noisy = (table["town"] == "Ulm") | (table["age"] > 50)
    y = np.where(noisy, random.random(n) < 0.5, table["lead"] > 0)
    run = crossent.fit(table, y, settings=["folds=2", "members=1", "width=32", "epochs=15", "beside=no"])
    parts = run.record.tables["left"]
    named = [name for name in parts["part"] if set(name.split()) & set(table.columns)]
    assert sorted(name.partition(" < ")[2] or name for name in named) == ["age", "town = Ulm"]
    ulm = part(run, "town = Ulm")
    assert ulm["low"] > run.record["cross_entropy"].value
    assert ulm["low"] < ulm["nats"] < ulm["high"]
    assert " % of the rows and" in ulm["meaning"]


def test_slices_of_a_range_are_those_that_cost_more_than_their_labels_must():
    """Labels about ½ cost most whoever predicts them; those about 0.1 cost more above that, and are named."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"kind": random.choice(["half", "tenth"], 4000), "noise": random.normal(size=4000)})
    y = np.clip(np.where(table["kind"] == "half", 0.5, 0.15) + 0.1 * random.normal(size=4000), 0, 1)
    run = crossent.fit(table, y, limits=(0, 1), settings=["folds=2", "members=1", "width=16", "epochs=15", "beside=no"])
    parts = run.record.tables["left"]["part"]
    assert "kind = tenth" in parts
    assert "kind = half" not in parts
    assert "own entropy" in part(run, "kind = tenth")["meaning"]
