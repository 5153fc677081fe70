"""The search for a recipe: honest about the test, the same again from one seed, shared, resumed, and never lost."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from crossent.errors import DataError
from crossent.measure.sums.likelihood import costs_of_logs
from crossent.minimise import Recipe, fit
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.task import Task
from crossent.minimise.training.learn import launched, learn
from crossent.minimise.tune import tune as module
from crossent.minimise.tune.search import BLOCKS, Judge
from crossent.minimise.tune.study import Study
from crossent.minimise.tune.tune import tune
from crossent.record import Record

TINY = (
    "members=1",
    "beside=no",
    "calibration=none",
    "width=6",
    "depth=1",
    "bins=0",
    "epochs=4",
    "batch=40",
    "averaging=0",
    "learning_rate=0.03",
)
START = Recipe().parsed(TINY)
SPACE = ("learning_rate=0.01..0.1 log", "dropout=0..0.3", "loss=nll, focal(0.5..3.0)")
SAME = ("trial", "state", "cross_entropy", "low", "high", "folds", "settings")
ROOT = Path(__file__).parents[2]


def rows(n=120, seed=3):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 3)).astype(np.float32)
    return x, (x[:, 0] + 0.7 * random.normal(size=n) > 0).astype(int)


@pytest.fixture
def search(monkeypatch, done):
    """A search whose last training, which is ``fit`` and tested as such, was done before."""
    monkeypatch.setattr(module, "fit", lambda *_, **__: done)

    def do(x=None, y=None, **how):
        x, y = rows() if x is None else (x, y)
        return tune(x, y, **{"recipe": START, "space": SPACE, "trials": 3, **how})

    return do


@pytest.fixture(scope="module")
def done():
    return fit(*rows(), settings=TINY)


def same(one, other, but=()):
    return all(one.trials[name] == other.trials[name] for name in SAME if name not in but)


# Honest


def test_one_seed_makes_the_same_trials_and_the_same_run():
    one, again, other = (tune(*rows(), recipe=START, space=SPACE, trials=2, seed=seed) for seed in (1, 1, 2))
    assert same(one, again)
    assert np.array_equal(one.run.predicted.probabilities, again.run.predicted.probabilities)
    assert one.trials["settings"] != other.trials["settings"]
    assert one.trials["cross_entropy"] != other.trials["cross_entropy"]

    # The last training is fit with the best recipe, as the command that is printed would do it.
    best = min(
        (loss, place)
        for place, loss in enumerate(one.trials["cross_entropy"])
        if one.trials["state"][place] == "complete"
    )
    assert one.recipe.command(START) == one.trials["settings"][best[1]].replace("the recipe to start from", "")
    settings = [word for word in shlex.split(one.run.record.facts["settings"]) if word != "--set"]
    repeated = fit(*rows(), settings=settings, seed=1)
    assert np.array_equal(repeated.predicted.probabilities, one.run.predicted.probabilities)
    assert repeated.record["cross_entropy"] == one.run.record["cross_entropy"]
    assert one.run.record["search_cross_entropy"].value == best[0]
    assert Record.from_json(one.run.record.to_json()).tables["trials"] == one.trials


def test_the_test_rows_never_touch_the_search(search):
    x, y = rows()
    random = np.random.default_rng(0)
    tx, ty = rows(60, seed=4)
    plain = search(x, y, test=(tx, ty), trials=2)
    shuffled = search(x, y, test=(random.permutation(tx), random.permutation(ty)), trials=2)
    assert same(plain, shuffled)
    assert plain.run.record["search_cross_entropy"] == shuffled.run.record["search_cross_entropy"]
    # Of rows that are drawn, the labels draw them; the features of those that are drawn for the test say nothing.
    drawn = fit(x, y, settings=TINY).predicted
    spoilt = x.copy()
    spoilt[drawn.rows[drawn.splits == "test"]] = 1e3
    drawn_first = search(x, y, trials=2)
    assert same(drawn_first, search(spoilt, y, trials=2))
    learnt = x.copy()
    learnt[drawn.rows[drawn.splits == "held out"][0]] += 1  # a single row that is learnt from is seen
    assert not same(drawn_first, search(learnt, y, trials=2))


def test_a_trial_costs_what_a_temperature_leaves_of_networks_that_have_not_seen_the_rows(search):
    x, y = rows(90)
    tuned = search(x, y, test=rows(30, seed=5), trials=1)
    task = Task("binary", ("0", "1"), "")
    problem = Problem(task, torch.from_numpy(x), torch.from_numpy(y))
    judge = Judge(problem, 0, launched(), None, lambda _: None)
    costs, raw = np.full(90, np.nan), np.full(90, np.nan)
    for group in ([0], [1, 2, 3, 4]):
        plan = torch.full((1, 90), -1)
        for part, number in enumerate(group):
            plan[0, judge.rows[number]] = part
        said = learn(problem, START, 0, fold=plan).held_out.numpy()
        assert np.isnan(said[:, 0]).sum() == sum(len(judge.rows[number]) for number in {0, 1, 2, 3, 4} - {*group})
        for number in group:
            held = judge.rows[number]
            z = said[held]

            def loss(log_s, z=z, held=held):
                u = np.exp(log_s) * z
                u -= np.logaddexp(u[:, :1], u[:, 1:])
                return costs_of_logs(u, y[held])

            best = minimize_scalar(
                lambda t: loss(t).sum() + 0.5 * (np.exp(t) - 1) ** 2,
                bounds=(-6, 6),
                method="bounded",
                options={"xatol": 1e-9},
            )
            costs[held], raw[held] = loss(best.x), loss(0.0)
    assert sorted(np.concatenate(judge.rows)) == list(range(90))
    # The minimum is flat: a temperature off by 1e-6 changes the loss by 1e-12; L-BFGS stops at slopes of 1e-8.
    assert tuned.trials["cross_entropy"][0] == pytest.approx(costs.mean(), abs=1e-7)
    assert abs(raw.mean() - costs.mean()) > 1e-3
    assert tuned.trials["low"][0] < costs.mean() < tuned.trials["high"][0]


def test_no_loss_wins_by_its_scale(search):
    """Twice the loss has the same minimum, and AdamW the same steps but for rounding: the trial must cost the same."""
    start = replace(START, loss="2*nll", weight_decay=0.0, optimiser="adamw")
    one, two = (search(recipe=replace(start, loss=loss), trials=1) for loss in ("nll", "2*nll"))
    assert one.trials["cross_entropy"][0] == pytest.approx(two.trials["cross_entropy"][0], rel=0.02)
    sharp = search(recipe=replace(start, loss="gce(0.9)"), trials=1)
    assert sharp.trials["cross_entropy"][0] != pytest.approx(one.trials["cross_entropy"][0], rel=0.02)


def small(shape, columns):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), columns))


@pytest.mark.parametrize("kind", ["soft labels", "weights", "images", "a network of one's own", "a range"])
def test_whatever_can_be_fitted_can_be_searched(search, kind):
    x, y = rows(60)
    random = np.random.default_rng(1)
    how = {"trials": 2, "space": ["learning_rate=0.01..0.1"]}
    if kind == "soft labels":
        y = random.dirichlet([1, 1, 1], 60)
    if kind == "weights":
        how["weight"] = random.integers(0, 2, 60).astype(float)
    if kind == "images":
        x = random.random((60, 6, 6)).astype(np.float32)
        how["recipe"] = replace(START, model="residual", crop=1, width=2, epochs=1)
    if kind == "a network of one's own":
        how["model"] = small
    if kind == "a range":
        y = np.tanh(x[:, 0])
        how["space"] = ["code=hlgauss(4..8), fraction"]
    tuned = search(x, y, **how)
    assert tuned.trials["state"][0] == "complete"
    assert set(tuned.trials["state"]) <= {"complete", "pruned"}
    assert math.isfinite(tuned.trials["cross_entropy"][0])
    if kind == "weights":  # rows that do not count are in no interval
        judged = tuned.run.record["search_cross_entropy"].n
        assert judged < 48
        assert judged == pytest.approx(how["weight"].sum() * 0.8, abs=6)


# What is tried


def test_the_first_trial_is_the_recipe_to_start_from_even_outside_the_space(search):
    tuned = search(space=["learning_rate=1e-6..2e-6", "dropout=0.1..0.4"], trials=3)
    assert tuned.trials["settings"][0] == "the recipe to start from"
    assert "--set learning_rate=" in tuned.trials["settings"][1]
    assert tuned.recipe == START
    assert any("No other recipe was better" in sentence for sentence in tuned.found)


def test_what_is_surely_worse_is_not_finished(search):
    hopeless = search(space=["learning_rate=1e-6..2e-6"], trials=3)
    assert hopeless.trials["state"] == ["complete", "pruned", "pruned"]
    assert hopeless.trials["folds"][0] == 5
    assert max(hopeless.trials["folds"][1:]) < 5
    assert min(hopeless.trials["cross_entropy"][1:]) > hopeless.trials["cross_entropy"][0]
    assert "nats from trial 0, the best" in hopeless.trials["sentence"][1]
    alike = search(space=["learning_rate=0.0299..0.0301"], trials=3)
    assert alike.trials["state"] == ["complete"] * 3


def test_failures_are_trials_with_a_sentence(search):
    x, _ = rows()
    start = replace(START, label_smoothing=0.05)
    tuned = search(x, np.tanh(x[:, 0]), limits=(-1, 1), recipe=start, space=["code=mse, fraction"], trials=5)
    failed = [place for place, state in enumerate(tuned.trials["state"]) if state == "failed"]
    assert failed
    assert "complete" in tuned.trials["state"]
    for place in failed:
        assert "has a loss of its own" in tuned.trials["sentence"][place]
        assert tuned.trials["settings"][place] == "--set code=mse"
        assert tuned.trials["cross_entropy"][place] is None
        assert tuned.trials["began"][place]
    assert any("failed" in sentence for sentence in tuned.found)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"space": ["learning_rat=1..2"]}, "no setting 'learning_rat'. Did you mean 'learning_rate'"),
        ({"space": ["dropout=0.5..0.1"]}, "must go from a lower to a higher number"),
        ({"space": ["learning_rate=0..1 log"]}, "both above 0"),
        ({"space": ["depth=1.5..3"]}, "must have whole ends"),
        ({"space": ["depth=one..three"]}, "--set depth needs a whole number"),
        ({"space": ["dropout=0..7"]}, "must lie between 0 and 0.95"),
        ({"space": ["loss=nll, focall(1..2)"]}, "did you mean 'focal'"),
        ({"space": ["loss=nll,,hinge"]}, "an empty alternative"),
        ({"space": ["loss=nll, nll"]}, "names an alternative twice"),
        ({"space": ["dropout", "dropout"]}, "which it has named"),
        ({"space": ["dropout"], "settings": ["dropout=0.1"]}, "which --set fixes"),
        ({"space": ["flip"]}, "no usual alternatives"),
        ({"space": ["noise=0"]}, "the space has one recipe in all"),
        ({"trials": 0}, "at least one trial"),
        ({"budget": -1.0}, "must be a positive number of seconds"),
        ({"storage": "."}, "is a folder"),
        ({"storage": ROOT / "LICENSE"}, "no journal of trials; it is left as it is"),
    ],
)
def test_what_cannot_be_is_refused_before_the_search(search, how, sentence):
    with pytest.raises(DataError) as refused:
        search(**how)
    assert sentence in str(refused.value)


def test_a_network_and_torchrun_are_refused(search, monkeypatch):
    with pytest.raises(DataError, match="a fresh network for every trial"):
        tune(torch.nn.Linear(3, 2), ())
    with pytest.raises(DataError, match="brings its own labels"):
        tune("iris", [1, 2])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="all with the same --storage"):
        search()


# Time, Ctrl-C, kill -9, and others on the same storage


def test_a_budget_too_small_for_a_trial_leaves_the_recipe_to_start_from(search):
    tuned = search(budget=0.02, trials=None, settings=["epochs=500", "patience=500"])
    assert set(tuned.trials["state"]) <= {"stopped"}
    assert tuned.recipe == Recipe().parsed([*TINY, "epochs=500", "patience=500"])
    assert any("the recipe to start from is the answer" in sentence for sentence in tuned.found)


def test_ctrl_c_keeps_the_best_so_far_and_fits_it(search):
    said = []

    def press(_):
        if len([s for s in said if s.startswith("Trial")]) == 2 and "pressed" not in said:
            said.append("pressed")
            raise KeyboardInterrupt

    tuned = search(trials=9, said=said.append, progress=press)
    assert tuned.trials["state"] == ["complete", tuned.trials["state"][1], "stopped"]
    assert tuned.trials["sentence"][2] == "Stopped by hand."
    assert any("stopped by hand" in sentence for sentence in tuned.found)
    assert search(trials=2).recipe == tuned.recipe


WORKER = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from crossent.minimise.tune import tune as module
    from tests.minimise import test_tune as here

    class Done(Exception):
        pass

    def fit(*_, **__):
        raise Done  # the search is over

    said = []
    def progress(_):
        if {kill} and sum(s.startswith("Trial") for s in said) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    module.fit = fit
    try:
        module.tune(
            *here.rows(), recipe=here.START, space=here.SPACE, trials={trials}, storage={storage!r},
            said=said.append, progress=progress,
        )
    except Done:
        pass
"""


def worker(storage, trials, kill=False):
    code = textwrap.dedent(WORKER).format(root=str(ROOT), storage=str(storage), trials=trials, kill=kill)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def test_killed_and_resumed_it_finds_what_it_would_have_found(search, tmp_path):
    storage = tmp_path / "trials.journal"
    killed = worker(storage, 3, kill=True)
    assert killed.wait(600) == -signal.SIGKILL
    with open(storage, "ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "half a li')  # as a full disk leaves it
    resumed, whole = search(storage=storage, trials=3), search(trials=3)
    lost = resumed.trials["state"].index("lost")
    assert lost == 2
    assert "begun again" in resumed.trials["sentence"][lost]
    written = shlex.split(resumed.trials["settings"][lost])  # before it was trained with, so that it can be named
    assert START.parsed(written[1::2]).command(START) == resumed.trials["settings"][lost + 1]
    kept = [place for place in range(4) if place != lost]
    for name in ("state", "cross_entropy", "low", "high", "settings"):
        assert [resumed.trials[name][place] for place in kept] == whole.trials[name], name
    assert resumed.recipe == whole.recipe
    # Nothing is done twice: a search that is over is over.
    assert search(storage=storage, trials=3).trials == resumed.trials
    for other, part in (({"seed": 1}, "seed"), ({"space": SPACE[:2]}, "space")):
        with pytest.raises(DataError, match=f"{part} differ"):
            search(storage=storage, trials=3, **other)
    x, y = rows()
    with pytest.raises(DataError, match="its data differs"):
        search(x + 1, y, storage=storage, trials=3)


def test_two_processes_share_one_study(search, tmp_path):
    storage = tmp_path / "trials.journal"
    other = worker(storage, 4)
    looked = []

    def wait(_):
        """Hold the first trial of this process until the other one has begun one as well."""
        while not looked:
            time.sleep(0.1)
            known = [json.loads(line) for line in storage.read_text().splitlines()]
            processes = {line["user_attr"]["process"] for line in known if "process" in line.get("user_attr", {})}
            if len(processes) > 1 or other.poll() is not None:
                looked.append(processes)

    tuned = search(storage=storage, trials=4, progress=wait)
    assert other.wait(600) == 0
    assert len(looked[0]) == 2
    shared = Study(storage, _belongs(search), 0, {})
    found = [trial for trial in shared.trials if "index" in trial.user_attrs]
    assert sorted(trial.user_attrs["index"] for trial in found) == list(range(len(found)))
    assert 4 <= len(found) <= 5  # both may have seen the last place free
    assert len({trial.user_attrs["settings"] for trial in found}) == len(found)
    assert len({trial.user_attrs["process"] for trial in found}) == 2
    assert [trial.user_attrs["settings"] for trial in found if trial.user_attrs["index"] == 0] == [
        "the recipe to start from"
    ]
    assert tuned.trials["trial"] == sorted(tuned.trials["trial"])


def _belongs(search):
    x, y = rows()
    problem_seen = []
    original = module.Study

    class Spy(original):
        def __init__(self, storage, belongs, *more):
            problem_seen.append(belongs)
            super().__init__(storage, belongs, *more)

    module.Study = Spy
    try:
        search(x, y, trials=1)
    finally:
        module.Study = original
    return problem_seen[0]


# The command line


def test_the_command_writes_a_folder_as_fit_does_with_the_trials_in_it(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from crossent.cli import app

    monkeypatch.chdir(tmp_path)
    x, y = rows(80)
    np.savetxt("rows.csv", np.column_stack([x, y]), delimiter=",", header="a,b,c,y", comments="")
    fixed = [word for setting in TINY if "rate" not in setting for word in ("--set", setting)]
    command = ["tune", "rows.csv", "--target", "y", "--space", "learning_rate=0.01..0.1 log", "--trials", "2", *fixed]
    done = CliRunner().invoke(app(), [*command, "-o", "out"], catch_exceptions=False, env={"COLUMNS": "140"})
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["model.json", "model.safetensors", "predictions.parquet", "record.json", "report.html"]
    )
    record = Record.read(tmp_path / "out" / "record.json")
    assert len(record.tables["trials"]["trial"]) == 2
    assert record.facts["space"] == {"learning_rate": "0.01..0.1 log"}
    repeat = next(line for line in done.output.splitlines() if line.startswith("Repeat the best: "))
    assert repeat.startswith("Repeat the best: crossent fit rows.csv --target y --set members=1")
    assert "The trials" in done.output
    assert all(sentence in " ".join(done.output.split()) for sentence in record.facts["searched"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="trials"' in page
    assert "The search ended because" in page
    again = CliRunner().invoke(app(), [*command, "-o", "out", "--resume"], catch_exceptions=False)
    assert "is finished; nothing is left to do" in again.output
    with pytest.raises(DataError, match="no setting 'colour'"):
        CliRunner().invoke(app(), ["tune", "rows.csv", "--space", "colour=1..2", "-o", "bad"], catch_exceptions=False)
    assert not (tmp_path / "bad").exists()


def test_blocks_are_parts_of_the_rows_held_out():
    x, y = rows(103)
    judge = Judge(
        Problem(Task("binary", ("0", "1"), ""), torch.from_numpy(x), torch.from_numpy(y)), 0, None, None, lambda _: None
    )
    for held, blocks in zip(judge.rows, judge.blocks, strict=True):
        assert len(blocks) == BLOCKS
        assert sorted(np.concatenate(blocks)) == sorted(held)
    assert sorted(np.concatenate(judge.rows)) == list(range(103))
