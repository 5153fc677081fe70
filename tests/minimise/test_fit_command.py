"""The command fit on two processes, and what predict adds to a number in a range."""

import os
import signal
import socket
import subprocess
import sys
import time
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


def two_processes(folder, *program):
    """The command that torchrun runs, started: a program and its arguments in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ("torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(
        [sys.executable, "-m", *launch, *map(str, program)],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_fit_under_torchrun_gives_the_answer_of_one_process(call, tmp_path, table):
    """Batches of 14 are shared as 7 and 7, the last of an epoch as 3 and 3."""
    told = ("fit", "table.csv", "--target", "kind", *SET, "--set", "epochs=4")
    assert call(*told, "-o", "alone") == (0, "")
    assert call(*told, "-o", "other", "--seed", 1) == (0, "")
    pair = two_processes(tmp_path, "-m", "crossent", *told, "-o", "pair")
    said, trouble = pair.communicate(timeout=300)
    assert pair.returncode == 0, trouble
    assert said.count("rows to learn from") == 1  # one process speaks, and one writes
    assert {path.name for path in Path("pair").iterdir()} == {path.name for path in Path("alone").iterdir()}
    one, two, another = (crossent.load(name).predict_proba(table) for name in ("alone", "pair", "other"))
    # Gradients of float32 are summed in another order, and Adam divides them by their size.
    assert np.abs(two - one).max() < 1e-4
    assert np.abs(another - one).max() > 1e-2


SLOW = """
import os, time
from pathlib import Path
from crossent.minimise.training import train
one = train._one_epoch
def slow(*arguments):
    time.sleep(0.1)
    return one(*arguments)
train._one_epoch = slow
Path(f"worker-{os.environ['RANK']}").write_text(str(os.getpid()))
from crossent.cli import main
main()
"""


def test_a_worker_that_is_killed_ends_the_others_and_the_run_goes_on_to_the_same_bytes(call, tmp_path):
    told = ("fit", "table.csv", "--target", "kind", *SET, "--set", "epochs=25", "--set", "patience=25")
    Path("slow.py").write_text(SLOW)
    killed = two_processes(tmp_path, "slow.py", *told, "-o", "killed")
    end = time.monotonic() + 120
    while not Path("killed/checkpoint/network-1.pt").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    writer, other = (int(Path(f"worker-{rank}").read_text()) for rank in (0, 1))
    os.kill(writer, signal.SIGKILL)
    assert "exitcode  : -9" in killed.communicate(timeout=60)[1]
    assert killed.returncode == 1
    with pytest.raises(ProcessLookupError):  # nobody waits for who does not come
        os.kill(other, 0)
    assert not Path("killed/model.json").exists()
    for name, more in (("killed", ["--resume"]), ("whole", [])):
        pair = two_processes(tmp_path, "-m", "crossent", *told, "-o", name, *more)
        trouble = pair.communicate(timeout=300)[1]
        assert pair.returncode == 0, trouble
    for name in ("predictions.parquet", "model.safetensors"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()


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
