"""The command fit on two processes, and what predict adds to a number in a range."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import crossent
from crossent import cli

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["members=1", "folds=2", "width=8", "bins=3", "beside=no", "dropout=0.3", "batch=14", "learning_rate=0.05"]
SET = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def table():
    """Two numbers, a number in a range and a class."""
    draw = np.random.default_rng(0)
    table = pd.DataFrame(draw.normal(size=(120, 2)), columns=["a", "b"])
    table["stars"] = (2.5 + table["a"] + draw.normal(0, 0.5, 120)).round().clip(0, 5).astype(int)
    table["kind"] = np.where(table["a"] + 0.3 * table["b"] + draw.normal(0, 0.3, 120) > 0, "rose", "tulip")
    return table


@pytest.fixture
def call(tmp_path, monkeypatch, capsys, table):
    """Run a command in this process, in a folder with the table: exit status, standard error."""
    table.to_csv(tmp_path / "table.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["crossent", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_predict_adds_intervals_where_there_are_some(call, table):
    told = ("--target", "stars", "--range", 0, 5, *SET)
    for name, code in (("levels", "ordinal"), ("mean", "fraction")):
        epochs = ("--set", f"epochs={20 if code == 'ordinal' else 1}")
        assert call("fit", "table.csv", *told, "--set", f"code={code}", *epochs, "-o", name) == (0, "")
    assert call("predict", "levels", "table.csv", "-o", "p.csv", "--coverage", 0.8) == (0, "")
    found, run = pd.read_csv("p.csv"), crossent.load("levels")
    assert found.columns.tolist() == ["row", "p_1", "prediction", "low", "high"]
    low, high = run.predict_interval(table, 0.8)
    assert np.array_equal(found["low"], low)
    assert np.array_equal(found["high"], high)
    assert low.min() < low.max()
    assert not np.array_equal(high, run.predict_interval(table, 0.4)[1])
    for folder, share, sentence in (
        ("mean", "0.8", "--coverage 0.8: Fraction has no median, quantiles or intervals: its loss learns the mean"),
        ("levels", "80", "--coverage 80: the coverage of an interval lies between 0 and 1, and is 80"),
    ):
        status, said = call("predict", folder, "table.csv", "-o", "q.csv", "--coverage", share)
        assert status == 2
        assert sentence in said
        assert said.count("\n") == 1
        assert not Path("q.csv").exists()


def test_fit_under_torchrun_gives_the_answer_of_one_process(call, tmp_path, table):
    """Batches of 14 are shared as 7 and 7, the last of an epoch as 3 and 3."""
    told = ("fit", "table.csv", "--target", "kind", *SET, "--set", "epochs=4")
    assert call(*told, "-o", "alone") == (0, "")
    assert call(*told, "-o", "other", "--seed", 1) == (0, "")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What the command torchrun runs.
    launch = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    pair = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "crossent", *told, "-o", "pair"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert pair.returncode == 0, pair.stderr
    assert pair.stdout.count("rows to learn from") == 1  # one process speaks, and one writes
    assert {path.name for path in Path("pair").iterdir()} == {path.name for path in Path("alone").iterdir()}
    one, two, another = (crossent.load(name).predict_proba(table) for name in ("alone", "pair", "other"))
    # Gradients of float32 are summed in another order, and Adam divides them by their size.
    assert np.abs(two - one).max() < 1e-4
    assert np.abs(another - one).max() > 1e-2


@pytest.mark.parametrize("library", ["safetensors", "skops", "pyarrow", "jinja2", "matplotlib"])
def test_a_library_that_is_missing_is_said_before_the_training(call, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    monkeypatch.setattr("crossent.minimise.training.learn.launched", lambda *_, **__: pytest.fail("it trains"))
    status, said = call("fit", "table.csv", *SET, "-o", "run")
    assert status == 2
    assert (
        f"needs the library '{library}', which is not installed. Install it with: pip install 'crossent[cli]'" in said
    )
    assert not Path("run").exists()
