"""The pieces of benchmarks/minimise.py: a table of who is best must count right."""

import importlib
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module("minimise")  # which takes the folder from the path again


@pytest.fixture(scope="module")
def sets(bench):
    return sys.modules["minimise_sets"]


@pytest.fixture(scope="module")
def peers(bench):
    return sys.modules["minimise_peers"]


def coins(sets, n=400, times=1):
    """Two classes, every row tested as often as asked for, by splits that do not matter here."""
    y = np.random.default_rng(0).integers(0, 2, n)
    test = np.arange(n)
    return sets.Set(
        "coins", sets.Rows(pd.DataFrame({"x": y}), y), ("a", "b"), None, ((test[:0], test),) * times, "none"
    )


def answer(here, sure, seed):
    """Log-probabilities that lean to the label by ``sure``, with noise."""
    z = sure * (2 * here.rows.y - 1) + np.random.default_rng(seed).normal(0, 1, len(here.rows.y))
    return np.log(np.stack([1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))], axis=1))


def by_hand(here, logs):
    return [-float(logs[i, label]) for i, label in enumerate(here.rows.y)]


def test_the_best_and_the_paired_differences_are_those_of_the_rows(bench, sets):
    here = coins(sets)
    answers = {"xgboost": answer(here, 0.5, 1), "crossent": answer(here, 1.5, 2), "hgb": answer(here, 1.4, 3)}
    found = bench.standing(here, answers)
    costs = {name: by_hand(here, logs) for name, logs in answers.items()}
    assert found["best"] == "crossent" == next(iter(found["peers"]))
    for name, of in found["peers"].items():
        assert of["cross_entropy"] == pytest.approx(statistics.fmean(costs[name]), rel=1e-12)
        assert of["cross_entropy"] == pytest.approx(log_loss(here.rows.y, np.exp(answers[name])), rel=1e-9)
        if name != "crossent":
            gaps = [a - b for a, b in zip(costs[name], costs["crossent"], strict=True)]
            assert of["difference"] == pytest.approx(statistics.fmean(gaps), rel=1e-12)
            assert of["standard_error"] == pytest.approx(statistics.stdev(gaps) / math.sqrt(len(gaps)), rel=1e-12)
            assert of["within"] == (of["difference"] <= of["standard_error"])
    assert not found["peers"]["xgboost"]["within"]
    assert found["beside_best_peer"]["peer"] == "hgb"
    assert found["beside_best_peer"]["difference"] == -found["peers"]["hgb"]["difference"]
    # Not the error of two means that know nothing of each other.
    unpaired = math.sqrt(sum(statistics.variance(costs[name]) / 400 for name in ("hgb", "crossent")))
    twin = bench.compared(answers["hgb"] + 1e-3, answers["hgb"], here)
    assert twin["standard_error"] is None or twin["standard_error"] < 1e-9 < unpaired


def test_a_label_called_impossible_costs_infinity_and_is_shown_beside_the_floor(bench, sets):
    here = coins(sets)
    good, fatal = answer(here, 1.0, 1), answer(here, 3.0, 2)
    fatal[0, here.rows.y[0]], fatal[0, 1 - here.rows.y[0]] = -math.inf, 0.0
    found = bench.standing(here, {"hgb": good, "xgboost": fatal})
    of = found["peers"]["xgboost"]
    assert (found["best"], of["cross_entropy"], of["impossible_rows"]) == ("hgb", None, 1)
    floored = [min(cost, -math.log(1e-6)) for cost in by_hand(here, fatal)]
    assert of["cross_entropy_floored"] == pytest.approx(statistics.fmean(floored), rel=1e-12)
    assert of["under_floor"]
    assert bench.figure(of) == f"∞ by 1 row, floored {statistics.fmean(floored):.4f}"
    assert "(floored)" in bench.gap(of)
    fatal[0] = good[0]
    assert bench.standing(here, {"hgb": good, "xgboost": fatal})["best"] == "xgboost"


def test_a_row_tested_twice_counts_once(bench, sets):
    once, twice = coins(sets), coins(sets, times=2)
    a, b = answer(once, 1.0, 1), answer(once, 1.2, 2)
    alone = bench.compared(a, b, once)
    doubled = bench.compared(np.tile(a, (2, 1)), np.tile(b, (2, 1)), twice)
    assert doubled["standard_error"] == pytest.approx(alone["standard_error"], rel=1e-9)
    as_if_new = statistics.stdev([*(by_hand(once, a - b) * 2)]) / math.sqrt(800)
    assert as_if_new < 0.75 * doubled["standard_error"]


def test_a_range_taken_for_a_coin_costs_the_same(bench, sets, peers):
    rng = np.random.default_rng(0)
    y, p = np.round(rng.random(50), 1), rng.random(50)
    rows = sets.Rows(pd.DataFrame({"p": p}), y)
    here = sets.Set("shares", rows, (), (0.0, 4.0), ((np.arange(0), np.arange(50)),), "none")
    logs = np.log(np.stack([1 - p, p], axis=1))
    found = bench.standing(here, {"hgb": logs})["peers"]["hgb"]
    x, label, weight = peers.doubled(rows)
    assert (weight > 0).all()
    assert len(label) < 100  # the rows of exactly 0 and 1 came once
    weighted = log_loss(label, x["p"], sample_weight=weight)
    assert found["cross_entropy"] == pytest.approx(weighted, rel=1e-9)
    assert found["rmse"] == pytest.approx(4 * math.sqrt(statistics.fmean((p - y) ** 2)), rel=1e-12)
    assert log_loss(label, x["p"]) != pytest.approx(weighted, rel=1e-3)


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer", "digits", "diabetes"])
def test_every_row_is_tested_twice_by_who_has_not_seen_it(sets, name):
    here = sets.SETS[name]()
    assert np.bincount(here.tested).tolist() == [2] * len(here.rows.y)
    for learn, test in here.splits:
        assert not set(learn) & set(test)
        assert here.limits is not None or set(here.rows.y[learn]) == set(range(here.columns))
    assert here.fingerprint == sets.SETS[name]().fingerprint
    assert (here.limits is None) == (name != "diabetes")


def test_a_word_or_a_class_that_was_never_seen(peers):
    known = pd.DataFrame({"word": ["a", None, "b"], "number": [1.0, 2.0, 3.0]})
    new = peers.categorical(pd.DataFrame({"word": ["b", "c"], "number": [1.0, 2.0]}), known)
    assert new["word"].cat.codes.tolist() == [1, -1]
    assert new["number"].tolist() == [1.0, 2.0]
    assert peers.in_place(np.array([[0.25, 0.75]]), np.array([0, 2]), 3).tolist() == [[0.25, 0.0, 0.75]]


def test_the_edition_for_processors_is_the_package_too(bench, monkeypatch):
    def version(name):
        if name != "boosting-cpu":
            raise bench.PackageNotFoundError(name)
        return "3.2.0"

    monkeypatch.setattr(bench, "version", version)
    assert bench.installed("boosting") == "3.2.0"
    with pytest.raises(bench.PackageNotFoundError):
        bench.installed("forests")


@pytest.mark.parametrize(("p", "sentence"), [([[0.5, 0.6]], "no distribution"), ([[math.nan, 1.0]], "no distribution"),
                                             ([[0.5, 0.5]] * 2, "is due")])  # fmt: skip
def test_what_is_no_answer_is_refused(bench, sets, p, sentence):
    with pytest.raises(AssertionError, match=sentence):
        bench.checked(np.array(p), "hgb", coins(sets, 1))


def test_asked_kept_joined_and_written(bench, sets, peers, tmp_path, monkeypatch):
    """The whole way with two peers that take no time."""

    def uniform(known, new, about):
        return np.full((len(new), about.set.columns), 1 / about.set.columns)

    def frequencies(known, new, about):
        return np.tile(np.bincount(known.y) / len(known.y), (len(new), 1))

    page, record, cache = tmp_path / "minimise.md", tmp_path / "minimise.json", tmp_path / "cache"
    page.write_text(f"before\n\n{bench.MARKERS[0]}\nstale figures\n{bench.MARKERS[1]}\n\nafter\n", encoding="utf-8")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setitem(bench.PEERS, "hgb", peers.Peer(uniform, ("numpy",)))
    monkeypatch.setitem(bench.PEERS, "logistic", peers.Peer(frequencies, ("numpy",)))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["minimise.py", "--cache", str(cache), "--record", str(record), *words])
        bench.main()

    run("--peer", "hgb", "logistic", "--set", "breast_cancer")
    run("--set", "breast_cancer", "--table")
    run("--page")
    of = json.loads(record.read_text())["sets"]["breast_cancer"]
    share = 357 / 569
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert of["best"] == "logistic"
    # Stratified folds have the set's own frequencies to a row of 455 learned and one of 114 tested, and what that adds
    # is at most 1/455 · 1/114 / (share (1 − share)) to second order.
    assert of["peers"]["logistic"]["cross_entropy"] == pytest.approx(entropy, abs=1e-4)
    assert of["peers"]["hgb"]["cross_entropy"] == pytest.approx(math.log(2), rel=1e-12)
    assert "numpy" in of["peers"]["hgb"]["versions"]
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n\n")
    assert written.endswith("\n\nafter\n")
    assert "stale" not in written
    assert f"| hgb | {math.log(2):.4f} | +" in written
    here = sets.SETS["iris"]()
    with pytest.raises(AssertionError, match="other rows or splits"):
        bench.kept(cache / "breast_cancer" / "hgb.npz", here)


@pytest.mark.parametrize("name", ["logistic", "hgb"])
@pytest.mark.parametrize("in_range", [False, True])
def test_a_peer_learns_from_words_gaps_and_fractions(bench, sets, peers, name, in_range):
    """Better than not looking at the rows, and the columns are in their places."""
    rng = np.random.default_rng(0)
    word, number = rng.choice(["low", "high", "very high"], 600), rng.normal(0, 1, 600)
    p = 1 / (1 + np.exp(-(2.0 * (word == "low") - 1 + number)))
    y = np.clip(np.round(p, 1), 0, 1) if in_range else (rng.random(600) < p).astype(np.int64)
    x = pd.DataFrame({"word": word, "number": np.where(rng.random(600) < 0.05, np.nan, number)})
    at = np.arange(600)
    here = sets.Set("made", sets.Rows(x, y), () if in_range else ("a", "b"), (0.0, 1.0) if in_range else None,
                    ((at[:400], at[400:]),), "none")  # fmt: skip
    said, about = bench.ask(name, here, 1)
    share = float(y[:400].mean())
    blind = bench.costs(np.log(np.tile([1 - share, share], (200, 1))), here).mean()
    assert bench.costs(np.log(said), here).mean() < blind - 0.02
    assert bench.costs(np.log(said[:, ::-1]), here).mean() > blind
    assert len(about["seconds"]) == 1
    assert "scikit-learn" in about["versions"]
