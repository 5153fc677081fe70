"""The tally on a cluster of Ray, started here with two CPUs: what one process says, to the letter and to 10⁻¹²."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crossent import cli
from crossent.errors import DataError, MissingExtra
from crossent.measure import evaluate, sources
from crossent.measure.sources.files import File
from crossent.measure.tally import engine
from crossent.measure.tally.engine import Share, spread
from crossent.record import Record
from tests.compare import relatively

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'crossent[ray]'")

# Ray 2.60 copies its own settings, among them those that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray[.]")

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # Ray puts its own hands on what Python does with an error at the end and with SIGTERM, and leaves them there.
    hook, on_term = sys.excepthook, signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about its coming defaults
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    sys.excepthook = hook
    signal.signal(signal.SIGTERM, on_term)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # and what dies of Ray's must die here, not in somebody else's test
        gc.collect()


def table(n: int, classes: list[str], first: int = 0) -> pd.DataFrame:
    p = RNG.dirichlet([0.4] * len(classes), n)
    came = (p.cumsum(axis=1) < RNG.random((n, 1))).sum(axis=1).clip(0, len(classes) - 1)
    names = [f"p_{name}" for name in classes]
    return pd.DataFrame(p, columns=names).assign(
        label=np.array(classes)[came],
        weight=RNG.gamma(2.0, size=n),
        game=RNG.integers(n // 5, size=n),
        city=RNG.choice(["Oslo", "Rome", "Lima"], n),
        length=RNG.integers(1, 50, n),
        id=np.arange(first, first + n),
    )


def write(rows: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        rows.to_parquet(path, row_group_size=300)
    elif path.suffix == ".csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_json(path, orient="records", lines=True)


def apart(one: Record, other: Record) -> float:
    """The largest difference of two records beside what differs; infinite where more than numbers differs."""
    mine, theirs = json.loads(one.to_json()), json.loads(other.to_json())
    mine.pop("made"), theirs.pop("made")
    return relatively(mine, theirs)


def same(one: Record, other: Record) -> bool:
    return apart(one, other) < 1e-12


COLUMNS = {"weight": "weight", "group": "game", "by": "city", "bytes": "length"}


@pytest.mark.parametrize(
    ("ending", "classes", "options"),
    [
        ("parquet", ["cat", "dog", "hen"], COLUMNS | {"row": "id"}),
        ("csv", ["no", "yes"], COLUMNS),
        ("jsonl", ["0", "1"], {}),
    ],
)
def test_the_record_is_that_of_one_process(tmp_path, ending, classes, options):
    for part, n in enumerate((700, 1100, 40)):
        write(table(n, classes, 2000 * part), tmp_path / f"{part}.{ending}")
    told: list[float] = []
    here = evaluate(tmp_path, **options)
    there = evaluate(tmp_path, **options, engine="ray", progress=told.append)
    assert same(here, there)
    assert told == pytest.approx([1 / 3, 2 / 3, 1])
    (tmp_path / f"2.{ending}").unlink()
    assert not same(here, evaluate(tmp_path, **options, engine="ray"))  # it can be seen that rows are lost


def test_a_large_file_is_cut_into_row_groups_and_keeps_its_rows_places(tmp_path, monkeypatch):
    rows = table(2000, ["a", "b", "c"])
    write(rows, tmp_path / "all.parquet")
    monkeypatch.setattr(engine, "SHARE_ROWS", 500)
    cut: list[Share] = []

    def watched(work, shares):
        cut.extend(shares)
        return spread(work, shares)

    monkeypatch.setattr(engine, "spread", watched)
    here = evaluate(tmp_path / "all.parquet", by="city")
    found = [evaluate(tmp_path / "all.parquet", by="city", engine="ray") for _ in range(2)]
    assert [(share.file.groups, share.file.first) for share in cut[: len(cut) // 2]] == [
        ((0, 1), 0), ((2, 3), 600), ((4, 5), 1200), ((6,), 1800),
    ]  # fmt: skip
    assert same(here, found[0])
    assert found[0].numbers == found[1].numbers  # the same files, the same bits
    rows.loc[1900, "p_a"] = 1.5
    write(rows, tmp_path / "all.parquet")
    with pytest.raises(DataError, match=r"row 1900, column 'p_a': 1\.5") as there:
        evaluate(tmp_path / "all.parquet", engine="ray")
    assert "all.parquet" in str(there.value)


def spoilt(name: str, rows: list[pd.DataFrame], folder: Path) -> dict:
    """Spoil files in one way, and give the options to read them with."""
    if name == "two bad rows in two files: the first is named":
        rows[2].loc[5, "p_dog"] = -0.5
        rows[1].loc[7, "p_cat"] = np.nan
    elif name == "a label without a column":
        rows[2].loc[3, "label"] = "cow"
    elif name == "a label that is missing":
        rows[1].loc[4, "label"] = None
    elif name == "a weight below 0":
        rows[2].loc[9, "weight"] = -1.0
    elif name == "an id that comes twice, in two files":
        rows[2].loc[3, "id"] = rows[0].loc[7, "id"]
    elif name == "a column that only some files have":
        rows[1] = rows[1].drop(columns="p_hen")
    elif name == "no column of that name":
        return {"group": "gaem"}
    elif name == "rows of a split that is not there":
        for part in rows:
            part["split"] = "train"
    elif name == "weights that are all 0":
        for part in rows:
            part["weight"] = 0.0
    elif name == "another form in a later file":
        columns = [column for column in rows[0] if column.startswith("p_")]
        rows[0][columns] = np.log(rows[0][columns]) + 7.0 * RNG.standard_normal((len(rows[0]), 1))
    return {}


WRONG = [
    "two bad rows in two files: the first is named", "a label without a column", "a label that is missing",
    "a weight below 0", "an id that comes twice, in two files", "a column that only some files have",
    "no column of that name", "rows of a split that is not there", "weights that are all 0",
    "another form in a later file", "a file that is cut off",
]  # fmt: skip


@pytest.mark.parametrize(("name", "ending"), list(zip(WRONG, ["parquet", "csv"] * len(WRONG), strict=False)))
def test_what_is_wrong_is_said_in_the_same_sentence(tmp_path, name, ending):
    rows = [table(60, ["cat", "dog", "hen"], 100 * part) for part in range(3)]
    options = {"weight": "weight", "row": "id"} | spoilt(name, rows, tmp_path)
    for part, one in enumerate(rows):
        write(one, tmp_path / f"{part}.{ending}")
    if name == "a file that is cut off":
        whole = (tmp_path / f"1.{ending}").read_bytes()
        (tmp_path / f"1.{ending}").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(DataError) as here:
        evaluate(str(tmp_path), **options)
    with pytest.raises(DataError) as there:
        evaluate(str(tmp_path), **options, engine="ray")
    assert str(there.value) == str(here.value)
    assert str(tmp_path) in str(here.value)


def test_names_that_workers_found_apart_are_compared(tmp_path):
    """No worker sees both labels that do not go together; one process does, and so has the merging to."""
    for part, label in enumerate((1, 1, 0, 2)):
        rows = pd.DataFrame({"score": RNG.random(20), "label": label})
        rows.to_parquet(tmp_path / f"{part}.parquet")
    said = []
    for where in engine.ENGINES:
        with pytest.raises(DataError) as refused:
            evaluate(str(tmp_path), probability="score", engine=where)
        said.append(str(refused.value))
    assert said[0] == said[1]
    assert "3.parquet" in said[0]


def test_notes_of_all_workers_arrive_once(tmp_path):
    for part in range(3):
        rows = table(50, ["a", "b", "c"]).assign(split=["test", "train"] * 25)
        names = ["p_a", "p_b", "p_c"]
        if part:
            rows[names] = rows[names].round(4)
        write(rows, tmp_path / f"{part}.parquet")
    here, there = evaluate(tmp_path), evaluate(tmp_path, engine="ray")
    assert there.facts == here.facts
    assert sum("train (75)" in note for note in there.facts["notes"]) == 1
    assert sum("added up to 1 only to rounding" in note for note in there.facts["notes"]) == 1


def test_a_lost_worker_is_replaced(tmp_path):
    mark = tmp_path / "was here"

    def work(share):
        if share.before == 2 and not mark.exists():
            mark.touch()
            os._exit(1)
        return 10 * share.before

    shares = [Share(File("x", "x", "CSV"), number) for number in range(4)]
    assert list(spread(work, shares)) == [0, 10, 20, 30]
    assert mark.exists()


def test_workers_lost_again_and_again_end_in_a_sentence(monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 1)

    def work(share):
        os._exit(1)

    (answer,) = spread(work, [Share(File("x", "x", "CSV"))])
    assert isinstance(answer, DataError)
    assert "'x': Ray lost 2 workers over it" in str(answer)


def test_trouble_that_is_nobodys_data_is_not_called_so():
    def work(share):
        return 1 / 0

    with pytest.raises(Exception, match="ZeroDivisionError") as raised:
        list(spread(work, [Share(File("x", "x", "CSV"))]))
    assert not isinstance(raised.value, DataError)


def test_a_file_that_a_worker_cannot_see_is_said():
    answer = engine._added(None, None, Share(File("night.csv", "/nowhere/night.csv", "CSV")))  # type: ignore[arg-type]
    assert isinstance(answer, DataError)
    assert "'night.csv' is not on the machine of one of Ray's workers" in str(answer)


def test_what_it_cannot_read(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="engine='ray' reads files"):
        evaluate([0.5, 0.2], [1, 0], engine="ray")
    with pytest.raises(DataError, match="engine should be 'local' or 'ray', and is 'spark'"):
        evaluate("p.parquet", engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'crossent\[ray\]'"):
        evaluate(tmp_path / "p.parquet", engine="ray")


def samples(path: Path, docs: range, choices: int) -> None:
    """A sample file of lm-evaluation-harness: multiple choice, or, of one choice, documents."""
    lines = []
    for doc in docs:
        texts = [f" answer {c}" for c in range(choices)]
        lines.append(
            {
                "doc_id": doc,
                "target": str(RNG.integers(choices)),
                "arguments": {f"gen_args_{c}": {"arg_0": "Q:", "arg_1": text} for c, text in enumerate(texts)},
                "filtered_resps": [[str(score), "False"] for score in -RNG.gamma(3.0, 4.0, choices)],
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("choices", [1, 4])
def test_samples_of_language_models_are_read_file_by_file(tmp_path, choices):
    for number, task in enumerate(("arc", "piqa", "sciq")):
        samples(
            tmp_path / f"samples_{task}_2026-01-02T03-04-05.jsonl",
            range(40 + number),
            choices - (number == 1 < choices),
        )
    told: list[float] = []
    here, there = evaluate(tmp_path), evaluate(tmp_path, engine="ray", progress=told.append)
    assert same(here, there)
    assert there.facts == here.facts
    assert told == pytest.approx([1 / 3, 2 / 3, 1])
    assert there.facts["rows"] == 123
    for wrong in ("another sample of a document", "no sample at all"):
        path = tmp_path / "samples_piqa_2026-01-02T03-04-05.jsonl"
        lines = path.read_text().splitlines(keepends=True)[:20]
        path.write_text("".join([*lines, lines[4] if wrong.startswith("another") else '{"doc_id": 3}\n']))
        said = []
        for where in engine.ENGINES:
            with pytest.raises(DataError) as refused:
                evaluate(str(tmp_path), engine=where)
            said.append(str(refused.value))
        assert said[0] == said[1]
        assert "samples_piqa" in said[0]
    with pytest.raises(DataError, match=r"samples of lm-evaluation-harness, of which weight= cannot be said"):
        evaluate(tmp_path, weight="w", engine="ray")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    write(table(80, ["a", "b"]), tmp_path / "p.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["crossent", "evaluate", "p.parquet", "--weight", "weight", "--engine", "ray"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code or 0, said.err) == (0, "")
    found = Record.read(tmp_path / "p-evaluation.json")
    rows = sources.read_predictions("p.parquet", weight="weight")
    assert found["cross_entropy"].value == pytest.approx(evaluate(rows)["cross_entropy"].value, rel=1e-12)
