"""The command line: what it writes, what it says, and that every refusal is a sentence that leaves nothing behind.

Most commands run in this process, through the same ``main`` that the installed command calls: what it does not turn
into a sentence and exit status 2 arrives here as an exception. Kills, signals, full disks and missing libraries need
a process of their own.
"""

import contextlib
import io
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import crossent
from crossent import cli
from crossent.cli.training import Training
from crossent.minimise import Progress

SMALL = ["members=1", "folds=2", "width=8", "beside=no"]
QUICK = [word for setting in [*SMALL, "epochs=3"] for word in ("--set", setting)]
WRITTEN = {"model.json", "model.safetensors", "predictions.parquet", "record.json", "report.html"}


def listing(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(here, monkeypatch, capsys):
    """Run a command in this process: exit status, standard output, standard error."""

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main() sets it where nobody has; here it goes away again

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["crossent", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def refused(here, call):
    """Run a command that must be refused: a sentence, status 2, and not a byte on the disk changed."""

    def run(*arguments):
        before = listing(here)
        status, _, said = call(*arguments)
        assert status == 2
        assert listing(here) == before
        assert re.fullmatch(r"crossent: [^\n]+\n", said), said
        return said

    return run


def process(*arguments, code=None, **options):
    """Start a command in a process of its own; ``code`` runs before it."""
    program = f"{code or ''}\nfrom crossent.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(running, seconds=120):
    out, err = running.communicate(timeout=seconds)
    return running.returncode, out, err


def flowers(rows=60, **columns):
    random = np.random.default_rng(0)
    x = random.normal(size=rows)
    kind = np.where(x + random.normal(0, 0.5, rows) > 0, "rose", "tulip")
    return pd.DataFrame({"petal": x, "soil": random.choice(["clay", "sand"], rows), "kind": kind, **columns})


def test_fit_predict_report_and_evaluate(here, call):
    table = flowers()
    table.to_csv("flowers.csv", index=False)
    status, said, err = call("fit", "flowers.csv", *QUICK)
    assert (status, err) == (0, "")
    assert "'kind' holds two classes, 'rose' and 'tulip': binary classification." in " ".join(said.split())
    assert "48 rows to learn from, held out in turn in 2 folds; 12 to test once." in " ".join(said.split())
    folder = here / "runs" / "flowers"
    assert {path.name for path in folder.iterdir()} == WRITTEN | {"table.skops"}
    record = json.loads((folder / "record.json").read_text())
    assert record["facts"]["recipe"]["epochs"] == record["facts"]["epochs"] == 3
    assert record["facts"]["command"].startswith("crossent fit flowers.csv --set members=1")
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert predictions.columns.tolist() == ["row", "label", "split", "p_rose", "p_tulip"]
    assert set(predictions["split"]) == {"held out", "test"}
    assert len(predictions) == 60
    assert "<html" in (folder / "report.html").read_text()

    table.drop(columns="kind").to_csv("new.csv", index=False)
    status, said, err = call("predict", folder, "new.csv", "-o", "out/new.parquet")
    assert (status, said, err) == (0, "60 rows: out/new.parquet\n", "")
    new = pd.read_parquet("out/new.parquet")
    assert new.columns.tolist() == ["row", "p_rose", "p_tulip"]
    expected = crossent.load(folder).predict_proba(table)
    assert new[["p_rose", "p_tulip"]].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert new[["p_tulip", "p_rose"]].to_numpy() != pytest.approx(expected, abs=1e-6)
    table.assign(soil="peat").to_csv("peat.csv", index=False)
    assert "values that training never saw" in call("predict", folder, "peat.csv", "-o", "peat.csv.csv")[1]

    status, said, _ = call("report", folder / "record.json", "-o", "page.html")
    assert status == 0
    assert "Report: page.html" in said
    assert (here / "page.html").stat().st_size > 10_000
    status, said, _ = call("evaluate", folder / "predictions.parquet", "--record", "again.json")
    assert status == 0
    again = json.loads((here / "again.json").read_text())
    assert again["numbers"]["cross_entropy"]["value"] == pytest.approx(
        record["numbers"]["cross_entropy"]["value"], rel=1e-12
    )


OWN = """
import math
import torch

def network(shape, columns):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), columns))
"""


def test_a_network_of_one_s_own_with_weights_shares_and_a_budget(here, call, monkeypatch):
    (here / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(here)
    random = np.random.default_rng(0)
    yes = random.integers(0, 4, 60)
    table = pd.DataFrame({"a": yes + random.normal(size=60), "w": 1.0, "votes_no": 3 - yes, "votes_yes": yes})
    table.to_csv("votes.csv", index=False)
    told = ["--target", "votes_*", "--weight", "w", "--model", "mine:network", "--budget", "10m", *QUICK]
    status, said, err = call("fit", "votes.csv", "-o", "run", *told)
    assert (status, err) == (0, "")
    assert "'votes_*' holds shares of 2 classes (no, yes): soft labels." in " ".join(said.split())
    facts = json.loads((here / "run" / "record.json").read_text())["facts"]
    assert (facts["recipe"]["model"], facts["features"], facts["epochs"]) == ("mine:network", 1, 3)
    status, _, err = call("predict", "run", "votes.csv", "-o", "p.csv")
    assert status == 2
    assert "pass the factory it was made by" in err
    assert call("predict", "run", "votes.csv", "-o", "p.csv", "--model", "mine:network")[0] == 0
    assert pd.read_csv("p.csv").columns.tolist() == ["row", "p_no", "p_yes"]
    status, _, err = call("predict", "run", "votes.csv", "-o", "p.csv", "--model", "mine:nothing")
    assert status == 2
    assert "the model 'mine:nothing' cannot be imported" in err


def test_every_run_has_a_folder_of_its_own(here, call, refused):
    flowers().to_csv("flowers.csv", index=False)
    assert call("fit", "flowers.csv", *QUICK)[0] == 0
    assert call("fit", "flowers.csv", *QUICK)[0] == 0
    assert call("fit", "flowers.csv", *QUICK, "--seed", 1)[0] == 0
    runs = [here / "runs" / name / "predictions.parquet" for name in ("flowers", "flowers-2", "flowers-3")]
    assert runs[0].read_bytes() == runs[1].read_bytes()  # one seed, one result, to the bit
    assert runs[0].read_bytes() != runs[2].read_bytes()
    assert "holds a finished run, which is not overwritten" in refused("fit", "iris", "-o", "runs/flowers")
    assert "there is no stopped run of 'flowers.csv' to go on with in runs/" in refused(
        "fit", "flowers.csv", "--resume"
    )
    assert "is not empty; name a new folder" in refused("fit", "iris", "-o", "runs")
    assert "is not empty; name a new folder" in refused("fit", "iris", "-o", ".", "--resume")
    assert "is a file; name a folder with -o" in refused("fit", "iris", "-o", "flowers.csv")
    before = listing(here)
    status, said, _ = call("fit", "flowers.csv", "--resume", "-o", "runs/flowers")
    assert status == 0
    assert "runs/flowers is finished; nothing is left to do." in said
    assert listing(here) == before


def test_a_folder_may_have_any_name(here, call):
    flowers().to_csv("flowers.csv", index=False)
    status, said, err = call("fit", "flowers.csv", "-o", "[red]a[/b] ü", *QUICK)
    assert (status, err) == (0, "")
    assert "Report: [red]a[/b] ü/report.html" in said
    assert call("predict", "[red]a[/b] ü", "flowers.csv", "-o", "[/p].csv")[1] == "60 rows: [/p].csv\n"


BAD = {
    "no such file": (None, ["fit", "flower.csv"], "Did you mean 'data.csv'|is neither a file nor one of the embedded"),
    "no such set": (None, ["fit", "irsi"], "Did you mean 'iris'"),
    "a name too long": (None, ["fit", "a" * 300 + ".csv", "-o", "out"], "is neither a file nor"),
    "no such column": (flowers(), ["fit", "data.csv", "--target", "kin"], r"no column 'kin'. Did you mean 'kind'\?"),
    "one class": (flowers(kind="rose"), ["fit", "data.csv"], "is constant, 'rose' in all 60 rows"),
    "a constant number": (flowers(kind=4), ["fit", "data.csv"], "is constant, '4' in all 60 rows"),
    "a missing label": (
        flowers(kind=["rose", None, "tulip"] * 20),
        ["fit", "data.csv"],
        "'kind' is missing, NaN or infinite in 20 rows, first at row 1, 4",
    ),
    "an empty file": ("", ["fit", "data.csv"], "is empty: it has no bytes at all"),
    "a header alone": ("a,b\n", ["fit", "data.csv"], "has a header and no rows"),
    "few rows": ("a,b\n1,2\n3,4\n", ["fit", "data.csv"], "2 rows are too few"),
    "not a csv": (
        b"PAR1 and more",
        ["fit", "data.csv"],
        "not what its name says: its content looks like a Parquet file",
    ),
    "infinite": (flowers(petal=[*range(59), np.inf]), ["fit", "data.csv"], "first in column 'petal' at row 59. R"),
    "a foreign task": (flowers(), ["fit", "data.csv", "--task", "guess"], "must be 'classes' or 'range'; got 'guess'"),
    "a range of text": (flowers(), ["fit", "data.csv", "--task", "range"], "needs numbers, and the target 'kind'"),
    "an empty range": (flowers(kind=range(60)), ["fit", "data.csv", "--range", "5", "1"], "low end below its high end"),
    "a narrow range": (flowers(kind=range(60)), ["fit", "data.csv", "--range", "0", "9"], "outside the range 0 to 9"),
    "a seed below 0": (flowers(), ["fit", "data.csv", "--seed", "-1"], "the seed must be a whole number from 0"),
    "an unknown setting": (flowers(), ["fit", "data.csv", "--set", "layers=3"], "--set takes NAME=VALUE with one of"),
    "a setting of text": (flowers(), ["fit", "data.csv", "--set", "width=big"], "--set width needs a whole number"),
    "a setting too low": (flowers(), ["fit", "data.csv", "--set", "members=0"], "members must be at least 1, and is 0"),
    "a setting between": (flowers(), ["fit", "data.csv", "--set", "dropout=2"], "dropout must lie between 0 and 0.95"),
    "a foreign word": (flowers(), ["fit", "data.csv", "--set", "optimiser=adam"], "Did you mean 'adamw'"),
    "a time of no unit": (flowers(), ["fit", "data.csv", "--budget", "soon"], "--budget takes a time such as 90s, 10m"),
    "no time": (flowers(), ["fit", "data.csv", "--budget", "0s"], "--budget takes a time such as 90s"),
    "no weights": (flowers(), ["fit", "data.csv", "--weight", "w"], "has no column 'w'"),
    "negative weights": (flowers(w=-1), ["fit", "data.csv", "--weight", "w"], "weights are finite numbers from 0 on"),
    "one share": (flowers(), ["fit", "data.csv", "--label", "so*"], "has 1 column like 'so\\*'"),
    "no such factory": (flowers(), ["fit", "data.csv", "--model", "nowhere:make"], "'nowhere:make' cannot be imported"),
    "no test file": (flowers(), ["fit", "data.csv", "--test", "tset.csv"], "'tset.csv' is neither a file"),
    "no model": (flowers(), ["predict", ".", "data.csv", "-o", "p.csv"], "holds no finished model"),
    "another output": (flowers(), ["predict", ".", "data.csv", "-o", "p.txt"], "written as .parquet or .csv"),
    "no record": (flowers(), ["report", "record.json"], "cannot read the record 'record.json'"),
    "not a record": (flowers(), ["report", "data.csv"], "this is not a record: it is not JSON"),
    "no predictions": (flowers(), ["evaluate", "p.parquet"], "there is no file 'p.parquet'"),
    "below a file": (flowers(), ["fit", "data.csv", "-o", "data.csv/run"], "a part of that path is a file"),
    "no place to write": (flowers(), ["fit", "data.csv", "-o", "/proc/run"], "cannot write '/proc/run"),
}


PLACES = {"": [], "in out": ["-o", "out"], "deep down": ["-o", "deep/er/out"]}
CASES = [
    pytest.param(content, [*command, *PLACES[place]], sentence, id=f"{case} {place}".strip())
    for case, (content, command, sentence) in BAD.items()
    for place in (PLACES if command[0] == "fit" and "-o" not in command else [""])
]


@pytest.mark.parametrize(("content", "command", "sentence"), CASES)
def test_every_refusal_is_a_sentence_and_leaves_nothing(here, refused, content, command, sentence):
    (here / "deep").mkdir()  # an empty folder that was there stays there
    if isinstance(content, pd.DataFrame):
        content.to_csv("data.csv", index=False)
    elif content is not None:
        (here / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(sentence, refused(*command))
    if command[-1] == "out":
        (here / "out").mkdir()  # and so does one that was named with -o
        refused(*command)


def test_arrays_with_infinite_numbers_and_a_class_only_in_the_test_are_refused(here, refused):
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = np.array(["a", "b"] * 30)
    np.savez("good.npz", x=x, y=y)
    np.savez("stranger.npz", x=x[:3], y=["a", "c", "b"])
    x[4, 1] = np.inf
    np.savez("endless.npz", x=x, y=y)
    assert "1 features are infinite or too large for float32, first at row 4, column 1" in refused("fit", "endless.npz")
    unseen = refused("fit", "good.npz", "--test", "stranger.npz")
    assert "1 rows have a class that the training data never show: c (first at row 1). The model knows a, b." in unseen


def test_misuse_has_a_usage_line_and_status_2(call):
    for command in (["fit"], ["fit", "iris", "--sead", "1"], ["predict", "runs"], ["fit", "iris", "--seed", "x"]):
        status, _, said = call(*command)
        assert status == 2
        assert "Usage: crossent" in said
    assert call("--version")[1] == f"crossent {crossent.__version__}\n"
    assert "minimise it (fit, " in " ".join(call("--help")[1].split())


def test_a_refusal_in_a_process_of_its_own(here):
    status, out, err = ended(process("fit", "irsi", cwd=here))
    assert (status, out) == (2, "")
    assert re.fullmatch(r"crossent: 'irsi' is neither .* Did you mean 'iris'\?\n", err)
    assert listing(here) == {}


# A training that lasts for seconds: it never stops of itself, and each epoch waits a little. Waiting is not part of
# what is computed, so the bits are those of the command without it.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
from crossent.minimise.training import train
one = train._one_epoch
def slow(*arguments):
    time.sleep(0.1)
    return one(*arguments)
train._one_epoch = slow
"""
LONG = [word for setting in [*SMALL, "epochs=40", "patience=40"] for word in ("--set", setting)]


def until(condition, running, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_logger_writes_every_epoch(here, call):
    flowers().to_csv("flowers.csv", index=False)
    assert call("fit", "flowers.csv", "-o", "run", *QUICK, "--logger", "csv")[0] == 0
    (written,) = (here / "run/log").rglob("*.csv")
    curves = crossent.Record.read("run/record.json").curves
    told = pd.read_csv(written)
    assert told["step"].tolist() == [1, 2, 3]
    assert told["training"].to_numpy() == pytest.approx(curves["training"].y)
    assert told["held_out"].to_numpy() == pytest.approx(curves["validation"].y)
    assert set(told["network"]) == {1}


def test_a_log_of_several_networks_says_which_each_row_is_of(here, call):
    flowers().to_csv("flowers.csv", index=False)
    settings = ["--set", "members=2", "--set", "beside=yes"]
    assert call("fit", "flowers.csv", "-o", "run", *QUICK, *settings, "--logger", "csv")[0] == 0
    (written,) = (here / "run/log").rglob("*.csv")
    told = pd.read_csv(written)
    assert told["network"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]  # with ramps, without, linear
    assert told["step"].tolist() == [1, 2, 3] * 3


def test_a_killed_run_goes_on_to_the_bytes_of_one_that_was_not(here, call):
    flowers().to_csv("flowers.csv", index=False)
    running = process("fit", "flowers.csv", "-o", "killed", *LONG, code=SLOW, cwd=here)
    until((here / "killed" / "checkpoint" / "network-1.pt").exists, running)
    running.kill()
    assert ended(running)[0] == -signal.SIGKILL
    assert {path.name for path in (here / "killed").iterdir()} == {"checkpoint"}
    assert "holds no finished model" in call("predict", "killed", "flowers.csv", "-o", "p.csv")[2]
    status, _, said = call("fit", "flowers.csv", "-o", "killed", *LONG)
    assert status == 2
    assert "holds a run that was stopped; add --resume" in said
    assert call("fit", "flowers.csv", "-o", "killed", *LONG, "--resume", "--seed", "1")[0] == 2
    status, _, _ = call("fit", "flowers.csv", "-o", "killed", *LONG, "--resume")
    assert status == 0
    assert call("fit", "flowers.csv", "-o", "whole", *LONG)[0] == 0
    for name in ("predictions.parquet", "model.safetensors"):
        assert (here / "killed" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert {path.name for path in (here / "killed").iterdir()} == WRITTEN | {"table.skops"}
    assert call("fit", "flowers.csv", "-o", "other", *LONG, "--seed", "1")[0] == 0
    assert (here / "other/predictions.parquet").read_bytes() != (here / "whole/predictions.parquet").read_bytes()


def test_ctrl_c_ends_the_training_with_a_report(here):
    flowers().to_csv("flowers.csv", index=False)
    running = process("fit", "flowers.csv", "-o", "run", *LONG, code=SLOW, cwd=here)
    until((here / "run" / "checkpoint" / "network-1.pt").exists, running)
    running.send_signal(signal.SIGINT)
    status, out, err = ended(running)
    assert (status, err) == (0, "")
    assert "Report: run/report.html" in out
    assert {path.name for path in (here / "run").iterdir()} == WRITTEN | {"table.skops"}
    facts = json.loads((here / "run" / "record.json").read_text())["facts"]
    assert facts["stopped"] == "stopped by hand; the best epoch so far is kept"
    assert 1 <= facts["epochs"] < 40


def test_ctrl_c_before_there_is_anything_to_keep_leaves_nothing(here):
    flowers().to_csv("flowers.csv", index=False)
    waiting = SLOW.replace("time.sleep(0.1)", "time.sleep(60)")
    running = process("fit", "flowers.csv", "-o", "run", *LONG, code=waiting, cwd=here)
    until((here / "run" / "checkpoint").exists, running)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    status, _, err = ended(running)
    assert status not in (0, 2)
    assert "Traceback" not in err
    assert list(listing(here)) == ["flowers.csv"]


def small_files_only(limit):
    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return set_limit


@pytest.mark.parametrize("limit", [0, 4000], ids=["nothing can be written", "only little can be written"])
def test_a_full_disk_is_a_sentence(here, limit):
    flowers().to_csv("flowers.csv", index=False)
    before = set(listing(here))
    status, _, err = ended(
        process("fit", "flowers.csv", "-o", "run", *QUICK, cwd=here, preexec_fn=small_files_only(limit))
    )
    assert status == 2
    assert re.fullmatch(r"crossent: cannot write 'run/[^\n]*larger than this system allows[^\n]*\n", err)
    assert set(listing(here)) == before


@pytest.mark.parametrize("name", ["report.html", "table.skops", "predictions.parquet", "record.json", "model.json"])
def test_a_disk_that_fills_up_at_the_end_leaves_only_what_resume_needs(here, call, monkeypatch, name):
    flowers().to_csv("flowers.csv", index=False)
    replace = os.replace

    def full(source, target):
        if os.fspath(target).endswith(name):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    status, _, err = call("fit", "flowers.csv", "-o", "run", *QUICK)
    assert status == 2
    assert re.fullmatch(rf"crossent: cannot write 'run/{name}': the disk is full. Free some space [^\n]*\n", err)
    assert set(listing(here / "run")) == {"checkpoint", "checkpoint/network-1.pt"}
    monkeypatch.setattr(os, "replace", replace)
    assert call("fit", "flowers.csv", "-o", "run", *QUICK, "--resume")[0] == 0
    assert set(listing(here / "run")) == WRITTEN | {"table.skops"}


def without(*modules):
    """As if these were not installed: to import them fails, and to look for them finds nothing."""
    return f"""
import importlib.util, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
look = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] in {modules!r} else look(name, *more)
"""


@pytest.mark.parametrize("module", ["typer", "rich", "skrub", "pandas", "safetensors", "lightning_fabric"])
def test_a_missing_library_is_a_sentence_that_says_what_to_install(here, module):
    flowers().to_csv("flowers.csv", index=False)
    status, _, err = ended(process("fit", "flowers.csv", *QUICK, code=without(module), cwd=here))
    assert status == 2
    assert re.fullmatch(
        rf"crossent: [^\n]*'{module}', which is not installed. Install it with: pip install 'crossent\[cli\]'\n", err
    )


def test_a_report_is_drawn_where_there_is_no_torch(here, call):
    flowers().to_csv("flowers.csv", index=False)
    assert call("fit", "flowers.csv", "-o", "run", *QUICK)[0] == 0
    command = ["report", "run/record.json", "-o", "x.html"]
    status, out, err = ended(process(*command, code=without("torch", "numba", "sklearn"), cwd=here))
    assert (status, err) == (0, "")
    assert "cross-entropy is" in " ".join(out.split())
    assert (here / "x.html").read_bytes() == (here / "run" / "report.html").read_bytes()
    status, _, err = ended(process("fit", "iris", code=without("torch"), cwd=here))  # the block does block
    assert status != 0
    assert "No module named 'torch'" in err


def test_a_narrow_terminal_is_not_overrun(here, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    flowers().to_csv("flowers.csv", index=False)
    status, said, _ = call("fit", "flowers.csv", "-o", "run", *QUICK)
    assert status == 0
    free = ("Report: ", "Model, record", "{")  # a path is on one line, to be copied, and JSON, to be read by programs
    lines = [line for line in said.splitlines() if not line.startswith(free)]
    assert max(map(len, lines)) <= 50
    monkeypatch.setenv("COLUMNS", "120")
    _, said, _ = call("report", "run/record.json")
    assert max(map(len, said.splitlines())) > 50


def test_the_bar_on_a_terminal_fits_and_goes_away(here):
    """On a real terminal, 50 columns wide: one line that is drawn over and taken back."""
    import fcntl
    import pty
    import struct
    import termios

    flowers().to_csv("flowers.csv", index=False)
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 50, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    program = SLOW + "\nfrom crossent.cli import main\nmain()"
    command = [sys.executable, "-c", program, "fit", "flowers.csv", *QUICK, "--set", "epochs=8"]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=here, env={**environment, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(mine, 65536):
            seen += piece
    os.close(mine)
    assert running.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", seen.decode())
    lines = [line for line in re.split(r"[\r\n]+", text) if not line.startswith(("Report: ", "Model, record"))]
    assert any("epoch" in line and "validation" in line for line in lines)
    assert max(map(len, lines)) <= 50
    assert "Report: runs/flowers/report.html" in text


@pytest.mark.parametrize(
    ("width", "shown"), [(100, "starting; a first run compiles"), (60, "a first run compiles its kernels")]
)
def test_a_terminal_sees_something_before_the_first_epoch(width, shown):
    """Of the first run on a machine the kernels are compiled then, for some 20 seconds."""
    screen = io.StringIO()
    with Training(Console(file=screen, force_terminal=True, width=width)) as training:
        training.bar.refresh()
        assert shown in screen.getvalue()
        training.show(Progress(1, 0.5, 4, math.nan, math.nan, math.nan, 0, math.nan))
        training.bar.refresh()
        assert "epoch 1, 50% of it" in screen.getvalue()
        assert (training.bar.tasks[0].completed, training.bar.tasks[0].total) == (0.125, 1.0)
