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
    run = crossent.fit(x, x[:, 0] > 0, settings=[*TINY, "learning_rate=1e-9"])
    assert part(run, "against a linear model")["low"] > 0.3
    learned = crossent.fit(x, x[:, 0] > 0, settings=["folds=3", "members=1", "width=16", "epochs=60"])
    assert part(learned, "against a linear model")["nats"] < 0.1


def test_the_page_shows_where_the_nats_are():
    run = crossent.fit("iris", settings=TINY)
    page = report.html.page(run.record)
    assert "Where the remaining nats are" in page
    assert "against boosted trees" in page
