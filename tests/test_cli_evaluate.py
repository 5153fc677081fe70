"""crossent evaluate: every option arrives where it should, on any kind of file, and what it writes is whole."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest

from crossent import cli
from crossent.measure import Predictions
from crossent.measure import evaluate as measure
from crossent.record import Record

RNG = np.random.default_rng(0)
N = 400
P = RNG.dirichlet([0.6] * 3, N)
TABLE = pd.DataFrame(P, columns=["prob_cat", "prob_dog", "prob_hen"]).assign(
    y=[["cat", "dog", "hen"][RNG.choice(3, p=row)] for row in P],
    w=RNG.integers(1, 4, N),
    g=RNG.integers(60, size=N),
    city=RNG.choice(["Oslo", "Rome"], N),
    length=RNG.integers(1, 50, N),
    id=np.arange(N)[::-1],
)
OPTIONS = [
    *("--prob", "prob_*", "--label", "y", "--weight", "w", "--group", "g", "--by", "city"),
    *("--bytes", "length", "--row", "id"),
]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(*arguments, columns=100, command="evaluate"):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["crossent", command, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_every_column_reaches_the_record(tmp_path, call):
    TABLE.to_parquet(tmp_path / "p.parquet")
    status, said, trouble = call("p.parquet", *OPTIONS, "--report", "p.html")
    assert (status, trouble) == (0, "")
    found = Record.read(tmp_path / "p-evaluation.json")
    rows = Predictions.from_arrays(
        P, TABLE["y"], ["cat", "dog", "hen"], TABLE["id"], weights=TABLE["w"], groups=TABLE["g"],
        slices={"city": TABLE["city"]}, bytes=TABLE["length"],
    )  # fmt: skip
    expected = measure(rows)
    for name, number in expected.items():
        assert found[name].value == pytest.approx(number.value, rel=1e-9), name
    assert found.tables["slices"] == json.loads(expected.to_json())["tables"]["slices"]
    assert "bits_per_byte" in found
    plain = measure(Predictions.from_arrays(P, TABLE["y"], ["cat", "dog", "hen"]))
    assert found["cross_entropy"].value != pytest.approx(plain["cross_entropy"].value, rel=1e-6)  # weights count
    assert found["cross_entropy"].low != pytest.approx(plain["cross_entropy"].low, rel=1e-6)
    assert said.startswith("\nWhat p.parquet is worth")
    assert said.endswith("Record: p-evaluation.json\nReport: p.html\n")
    assert (tmp_path / "p.html").stat().st_size > 10_000


@pytest.mark.parametrize("columns", [60, 120])
def test_lines_fit_the_terminal(tmp_path, call, columns):
    TABLE.to_csv(tmp_path / "p.csv", index=False)
    said = call("p.csv", *OPTIONS, columns=columns)[1]
    assert max(map(len, said.splitlines())) <= columns


def test_a_pattern_a_folder_and_several_files(tmp_path, call):
    for part in range(4):
        TABLE[part * 100 : part * 100 + 100].to_csv(tmp_path / f"part-{part}.csv", index=False)
    whole = None
    for paths in (["part-*.csv"], [f"part-{part}.csv" for part in range(4)], ["."]):
        assert call(*paths, *OPTIONS, "--record", "r.json")[0] == 0
        found = Record.read(tmp_path / "r.json").numbers
        assert whole in (None, found)
        whole = found
    assert call("part-*.csv", *OPTIONS)[1].endswith("Record: part-evaluation.json\n")
    assert call("part-0.csv", "part-1.csv", *OPTIONS)[1].endswith("Record: part-0-evaluation.json\n")


def test_what_numbers_and_labels_mean_can_be_said(tmp_path, call):
    odds = pd.DataFrame({"score": RNG.normal(size=50), "label": RNG.integers(2, size=50)})
    odds.to_csv(tmp_path / "odds.csv", index=False)
    assert "say so: form='logits' (--form logits)" in call("odds.csv", "--prob", "score")[2]
    assert call("odds.csv", "--prob", "score", "--form", "logits")[0] == 0
    direct = np.logaddexp(0, np.where(odds["label"] == 1, -odds["score"], odds["score"])).mean()
    found = Record.read(tmp_path / "odds-evaluation.json")
    assert found["cross_entropy"].value == pytest.approx(direct, rel=1e-12)
    votes = pd.DataFrame({"p_a": [0.5] * 9, "p_b": [0.5] * 9, "n_a": range(1, 10), "n_b": [1] * 9})
    votes.to_csv(tmp_path / "votes.csv", index=False)
    assert "every row counts once" in " ".join(call("votes.csv", "--label", "n_*")[1].split())
    said = call("votes.csv", "--label", "n_*", "--truth", "weighted counts")[1]
    assert "weighs as much as it has annotators" in " ".join(said.split())
    tall = pd.DataFrame({"p": [0.2, 0.4], "label": [12, 19]})
    tall.to_csv(tmp_path / "tall.csv", index=False)
    assert call("tall.csv", "--prob", "p", "--range", 10, 20)[0] == 0
    assert Record.read(tmp_path / "tall-evaluation.json").facts["high"] == 20


def test_an_object_store_has_its_record_here(tmp_path, call):
    import fsspec

    fsspec.filesystem("memory").pipe("/night/p.csv", TABLE.to_csv(index=False).encode())
    assert call("memory://night/p.csv", *OPTIONS)[1].endswith("Record: p-evaluation.json\n")
    assert Record.read(tmp_path / "p-evaluation.json").facts["rows"] == N


def test_a_refusal_is_a_sentence_and_leaves_nothing(tmp_path, call):
    TABLE.assign(prob_cat=2.0).to_csv(tmp_path / "p.csv", index=False)
    status, said, trouble = call("p.csv", *OPTIONS, "--report", "p.html")
    assert (status, said) == (2, "")
    assert trouble.startswith("crossent: 'p.csv': a probability lies between 0 and 1")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        ("evaluate", ["p.csv", "--record", "p.csv"], "p.csv' is read, and would be written over. Name another"),
        ("evaluate", ["p.csv", "--report", "../{}/p.csv"], "p.csv' is read, and would be written over"),
        ("evaluate", [".", "--report", "p.csv"], "p.csv' is read, and would be written over"),
        (
            "evaluate",
            ["p.csv", "--record", "r.json", "--report", "r.json"],
            "two things would be written to '.*r.json'",
        ),
        ("compare", ["p.csv", "q.csv", "--record", "q.csv"], "q.csv' is read, and would be written over"),
        ("predict", ["model", "p.csv", "-o", "p.csv"], "p.csv' is read, and would be written over"),
    ],
)
def test_what_is_read_is_not_written_over(tmp_path, call, command, arguments, sentence):
    """``--record p.csv`` put the record where the predictions had been."""
    TABLE.to_csv(tmp_path / "p.csv", index=False)
    TABLE.to_csv(tmp_path / "q.csv", index=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    options = [] if command == "predict" else OPTIONS[:4]
    status, said, trouble = call(*(text.format(tmp_path.name) for text in arguments), *options, command=command)
    assert (status, said) == (2, "")
    assert re.search(sentence, trouble)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
