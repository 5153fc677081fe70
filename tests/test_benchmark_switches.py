"""The pieces of benchmarks/switches.py and benchmarks/budget.py: paired differences, what is kept, and what is said."""

import importlib
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from crossent.errors import DataError
from crossent.minimise import Recipe
from crossent.minimise.data.task import Task

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("switches")  # which takes the folder from the path again


@pytest.fixture(scope="module")
def budget(bench):
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("budget")


@pytest.fixture
def coins(bench):
    """Two classes, 200 rows learnt and 200 tested."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    y = (rng.random(400) < 1 / (1 + np.exp(-2 * x))).astype(np.int64)
    rows = sys.modules["minimise_sets"].Rows(pd.DataFrame({"x": x}), y)
    at = np.arange(400)
    return bench.Set("coins", rows, ("a", "b"), None, ((at[:200], at[200:]),), "none")


@pytest.mark.parametrize("name", ["switches", "budget"])
def test_it_starts_by_itself(name):
    """From a fresh process, whose path it has to put in order."""
    done = subprocess.run([sys.executable, str(BENCHMARKS / f"{name}.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--page" in done.stdout


def said(here, steep):
    """What is said of the tested rows by one who takes x ``steep`` times."""
    p = 1 / (1 + np.exp(-steep * here.rows.x["x"].to_numpy()[here.tested]))
    return np.stack([1 - p, p], axis=1)


STEEP = {"another seed": 1.9, "trees=no": 1.5, "mixup=0.2": 1.0, "imbalance=weights": 3.0}


@pytest.fixture
def asked(bench, coins, monkeypatch):
    """Learning that takes no time; a list of what was asked for."""
    begun = []

    def learnt(here, **chosen):
        switch = "another seed" if "seed" in chosen else " ".join(chosen.get("settings", ())) or "defaults"
        begun.append(switch)
        if switch == "optimiser=none":
            raise DataError("there is no such optimiser.")
        about = {
            "fingerprint": here.fingerprint,
            "seconds": 1.0,
            "processor_seconds": 4.0 if switch == "defaults" else 6.0,
            "load_before": 0.0,
            "calibrators": ["matrix"],
            "made": "today",
        }
        return said(here, STEEP.get(switch, 2.0)), said(here, 4.0), about

    monkeypatch.setitem(bench.PLACES, "coins", lambda: coins)
    monkeypatch.setattr(bench, "learnt", learnt)
    monkeypatch.setattr(bench, "warm_up", lambda: None)
    return begun


def by_hand(here, one, other):
    """The mean of differences row by row, and its standard error."""
    labels = here.rows.y[here.tested]
    gaps = [-math.log(a[y]) + math.log(b[y]) for a, b, y in zip(one, other, labels, strict=True)]
    return statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))


def test_a_switch_is_held_against_the_defaults_row_by_row(bench, coins, asked, tmp_path):
    record = tmp_path / "record.json"
    switches = ["defaults", "another seed", "mixup=0.2", "imbalance=weights", "calibration=none", "optimiser=none"]
    bench.ask(["coins"], switches, bench.Answers(tmp_path), record)
    found = json.loads(record.read_text())["sets"]["coins"]["switches"]
    for switch in ("another seed", "mixup=0.2", "imbalance=weights"):
        mean, error = by_hand(coins, said(coins, STEEP[switch]), said(coins, 2.0))
        assert found[switch]["difference"] == pytest.approx(mean, rel=1e-9)
        assert found[switch]["standard_error"] == pytest.approx(error, rel=1e-9)
        assert found[switch]["times"] == 1.5
    mean, error = by_hand(coins, said(coins, 3.0), said(coins, 1.5))
    against = found["imbalance=weights"]["against"]["trees=no"]
    assert (against["difference"], against["standard_error"]) == pytest.approx((mean, error), rel=1e-9)
    assert "against" not in found["mixup=0.2"]
    mean, error = by_hand(coins, said(coins, 4.0), said(coins, 2.0))
    assert found["calibration=none"]["difference"] == pytest.approx(mean, rel=1e-9)
    assert found["optimiser=none"] == {"cannot": "there is no such optimiser."}
    # Uncalibrated answers are those of the defaults' own run, and the trees were left out for who needed it.
    assert asked == ["defaults", "another seed", "mixup=0.2", "imbalance=weights", "trees=no", "optimiser=none"]


def test_who_was_stopped_goes_on(bench, coins, asked, tmp_path, monkeypatch):
    record, answers = tmp_path / "record.json", bench.Answers(tmp_path)
    learnt = bench.learnt

    def stopping(here, **chosen):
        if chosen == {"settings": ["mixup=0.2"]}:
            raise KeyboardInterrupt
        return learnt(here, **chosen)

    monkeypatch.setattr(bench, "learnt", stopping)
    switches = ["defaults", "another seed", "mixup=0.2", "trees=no"]
    with pytest.raises(KeyboardInterrupt):
        bench.ask(["coins"], switches, answers, record)
    assert list(json.loads(record.read_text())["sets"]["coins"]["switches"]) == switches[:2]
    monkeypatch.setattr(bench, "learnt", learnt)
    asked.clear()
    bench.ask(["coins"], switches, answers, record)
    assert asked == switches[2:]
    whole = record.read_text()
    asked.clear()
    bench.ask(["coins"], switches, answers, record)
    assert (asked, record.read_text()) == ([], whole)
    other = bench.replace(coins, splits=((coins.splits[0][0], coins.splits[0][1][1:]),))
    monkeypatch.setitem(bench.PLACES, "coins", lambda: other)
    with pytest.raises(AssertionError, match="other rows or splits"):
        bench.ask(["coins"], ["defaults"], answers, record)


def test_the_run_of_the_defaults_knows_what_it_said_before_its_calibrator(bench, coins):
    few = {"settings": ["epochs=2", "folds=2", "members=1", "trees=no", "beside=no"]}
    after, before, about = bench.learnt(coins, **few)
    assert after.shape == before.shape == (200, 2)
    assert about["fingerprint"] == coins.fingerprint
    if about["calibrators"] == ["none"]:
        assert np.array_equal(after, before)
    _, uncalibrated, _ = bench.learnt(coins, settings=[*few["settings"], "calibration=none"])
    assert np.array_equal(before, uncalibrated)
    _, other, _ = bench.learnt(coins, seed=1, **few)
    assert not np.array_equal(before, other)


def test_every_switch_is_a_setting_that_there_is(bench):
    for switch in (*(each for of in bench.SWITCHES.values() for each in of), *bench.PICTURES):
        chosen = bench.choices(switch)
        assert bench.choices("defaults") == {}
        if "settings" in chosen:
            recipe = Recipe().parsed(chosen["settings"])
            recipe.objective(Task("binary", ("a", "b"), ""), torch.tensor([3, 5]))


def line(difference, error, **more):
    return {"cross_entropy": 0.5, "difference": difference, "standard_error": error, "times": 2.0, **more}


def test_the_table_counts_sets(bench):
    defaults = {"cross_entropy": 0.5}
    sets = {
        "satimage": {"switches": {"defaults": defaults, "mixup=0.2": line(-0.003, 0.001)}},
        "chile": {"switches": {"defaults": defaults, "mixup=0.2": line(0.001, 0.001)}},
        "pima": {"switches": {"defaults": defaults, "mixup=0.2": line(0.005, 0.001)}},
        "meals": {"switches": {"defaults": defaults, "mixup=0.2": {"cannot": "a range has no classes."}}},
        "medpar": {"switches": {"defaults": defaults, "mixup=0.2": line(0.0, None)}},
    }
    over, each = bench.row(sets, list(bench.TABLES), "mixup=0.2", None)
    cells = [cell.strip() for cell in over.strip("|").split("|")]
    assert cells[:3] == ["`mixup=0.2`", "3", "1"]
    assert cells[3].startswith("+1.0 (")
    assert cells[4:] == ["1", "1", "2"]
    by_set = dict(zip(bench.TABLES, (cell.strip() for cell in each.strip("|").split("|")[1:]), strict=True))
    assert by_set["satimage"] == "**−3.0 ± 1.0**"
    assert by_set["chile"] == "+1.0 ± 1.0"
    assert (by_set["meals"], by_set["medpar"], by_set["yogurt"]) == ("cannot", "same", "–")
    whole = "\n".join(bench.page({"sets": sets}))
    assert "`mixup=0.2` cannot be where it says: a range has no classes." in whole
    assert whole.count("`folds=10`") == 1
    assert "`folds=10`" in whole[whole.index("Not asked on any set: ") :]


def test_calibration_is_called_worse_only_beyond_a_standard_error(bench):
    def of(difference, kind="matrix"):
        found = line(difference, 0.001 if kind != "none" else None, calibrators=[kind])
        return {"splits": 1, "learned_rows": 9, "tested_rows": 9,
                "switches": {"defaults": {"cross_entropy": 0.5}, "calibration=none": found}}  # fmt: skip

    # What stands in the record is without less with: below 0, calibration made it worse.
    sets = {"adult": of(-0.0011), "iris": of(-0.0009), "wine": of(0.0011), "chile": of(0.0, "none")}
    lines = [line.replace("\n", " ") for line in bench.calibrated({"sets": sets})]
    assert lines[0].startswith("Asked on 4 sets. A calibrator was chosen on 3: with it 1 lower by more")
    assert lines[0].endswith("**1 higher by more than one**: adult.")
    assert any(row.startswith("| adult | 1 | 9 | 9 | matrix | 0.5000 | +1.1 ± 1.0 |") for row in lines)
    assert lines[-1].startswith("None was chosen on chile: there both are the same. Not asked: satimage, communities,")


def test_what_was_foretold_is_held_against_a_run_with_a_minute_more(budget):
    runs = {seconds: {} for seconds in (5, 15, 65, 70, 0)}
    assert budget.later(5, runs) == 65
    assert budget.later(10, runs) == 70
    assert budget.later(15, runs) == 0  # none had 75
    assert budget.later(15, {15: {}}) is None
    assert budget.later(0, runs) is None


def test_budgets_are_joined_and_shown(budget, coins):
    def about(seconds, held_out, told):
        return {
            "fingerprint": "",
            "seconds": seconds,
            "held_out": held_out,
            "next_minute": told,
            "epochs": 3,
            "processor_seconds": 4.0,
        }

    answers = {
        5: (np.log(said(coins, 1.0)), about(5.0, 0.40, 0.02)),
        0: (np.log(said(coins, 2.0)), about(20.0, 0.37, None)),
    }
    first, last = budget.joined(coins, answers)
    mean, error = by_hand(coins, said(coins, 1.0), said(coins, 2.0))
    assert (first["difference"], first["standard_error"]) == pytest.approx((mean, error), rel=1e-9)
    assert (first["later_won"], first["later"]) == pytest.approx((0.03, 15.0))
    assert "later_won" not in last
    shown = list(budget.page({"sets": {"coins": [first, last]}}))
    assert shown[-2].endswith("| 0.0200 | 0.0300 | 15 |")
    assert shown[-1].startswith("| none | 20 | 4 |")
