"""Packed text, tables parted by tabs, and folders that are columns: the same rows as from one plain file."""

import bz2
import functools
import gzip
import http.server
import json
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from crossent import cli
from crossent.errors import DataError
from crossent.measure import Calibrator, compare, evaluate
from crossent.measure.calibration.calibrated import apply_to_file
from crossent.measure.sources import batches, read_predictions
from crossent.measure.sources.rows import splits_in

RNG = np.random.default_rng(0)
N = 300
P = RNG.uniform(0.02, 0.98, N)
CITY = RNG.choice(["Paris", "New York"], N)
TABLE = pa.table({"label": RNG.binomial(1, P), "p_1": P, "game": RNG.integers(40, size=N)})

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}


def text(table: pa.Table, ending: str) -> bytes:
    if ending == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    into = pa.BufferOutputStream()
    options = pa.csv.WriteOptions(delimiter="\t" if ending == ".tsv" else ",")
    pa.csv.write_csv(table, into, write_options=options)
    return into.getvalue().to_pybytes()


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_packed_text_is_read_as_it_was(tmp_path, ending, packed):
    raw = text(TABLE, ending)
    path = tmp_path / f"p{ending}{packed}"
    path.write_bytes(PACK.get(packed, bytes)(raw))
    found = read_predictions(path, group="game")
    assert found.probabilities[:, 1].tolist() == P.tolist()
    assert found.labels.tolist() == TABLE["label"].to_pylist()
    assert [str(group) for group in found.groups] == [str(group) for group in TABLE["game"].to_pylist()]
    assert len(read_predictions(tmp_path)) == len(read_predictions(f"{tmp_path}/*{packed}")) == N
    store = fsspec.filesystem("memory")
    store.pipe(f"/packed/{path.name}", path.read_bytes())
    assert read_predictions(f"memory://packed/{path.name}").labels.tolist() == found.labels.tolist()
    store.rm(f"/packed/{path.name}")
    seen: list[float] = []
    list(batches(path, progress=seen.append, batch_rows=50))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_packed_files_that_were_put_behind_each_other_are_read_to_the_end(tmp_path):
    """As ``cat a.csv.gz b.csv.gz`` and bgzip make them: many a reader stops at the end of the first."""
    raw = text(TABLE, ".csv")
    for ending, pack in PACK.items():
        (tmp_path / f"p.csv{ending}").write_bytes(pack(raw[:2000]) + pack(raw[2000:]))
        assert len(read_predictions(tmp_path / f"p.csv{ending}")) == N


def test_packed_files_that_are_broken_get_their_sentence(tmp_path):
    raw = text(TABLE, ".csv")
    cut, flipped, other = (tmp_path / f"{name}.csv.gz" for name in ("cut", "flipped", "other"))
    whole = gzip.compress(raw)
    cut.write_bytes(whole[:-200])
    flipped.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    other.write_bytes(raw)
    for path in (cut, flipped):
        with pytest.raises(DataError, match=rf"cannot read '.*{path.name}' as CSV, it seems damaged or cut off"):
            read_predictions(path)
    with pytest.raises(DataError, match=r"other.csv.gz' is not what its name says: its content looks like text"):
        read_predictions(other)
    cells = raw.decode().splitlines()
    cells[7] = "1,often,3"
    bad = tmp_path / "bad.csv.gz"
    bad.write_bytes(gzip.compress("\n".join(cells).encode()))
    with pytest.raises(DataError, match=r"'p_1' should hold numbers, and row 6 \(line 8\) has 'often'"):
        read_predictions(bad)
    bad = tmp_path / "bad.tsv"
    bad.write_text("label\tp_1\n1\t0.5\n0\t0.5\t7\n")
    with pytest.raises(DataError, match=r"row 1 \(line 3\) has 3 cells where the header has 2"):
        read_predictions(bad)
    bad.write_text("label,p_1\n1,0.5\n")
    with pytest.raises(DataError, match=r"parted by ','; a .csv here .* a .tsv by tabs. Call it .csv"):
        read_predictions(bad)
    (tmp_path / "bad.csv").write_text("label\tp_1\n1\t0.5\n")
    with pytest.raises(DataError, match=r"parted by '\\t'; a .csv here .* a .tsv by tabs. Call it .tsv"):
        read_predictions(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("label;p_1\n1;0,5\n")
    with pytest.raises(DataError, match=r"parted by ';'.*pd.read_csv\(…, sep=';'\).to_csv"):
        read_predictions(tmp_path / "bad.csv")


def test_a_file_beside_its_packed_copy_is_not_read_twice(tmp_path):
    """As ``gzip -k`` leaves them."""
    raw = text(TABLE, ".csv")
    (tmp_path / "p.csv").write_bytes(raw)
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(DataError, match=r"files of several kinds \(CSV, CSV packed by gzip\)"):
        read_predictions(tmp_path)
    assert len(read_predictions(f"{tmp_path}/*.csv")) == N


def test_an_array_alone_is_told_to_bring_its_labels(tmp_path):
    np.save(tmp_path / "p.npy", P)
    with pytest.raises(DataError, match=r"ends in '.npy'. An .npy is one array, .*np.savez\('p.npz', p=…, label=…\)"):
        read_predictions(tmp_path / "p.npy")
    np.savez(tmp_path / "p.npz", p=P, label=TABLE["label"].to_numpy())
    assert len(read_predictions(tmp_path / "p.npz", probability="p")) == N


# Folders that are columns


@pytest.fixture
def parted(tmp_path):
    """The table in folders by city, as Arrow and Spark write them, and the same rows in one file, in their order."""
    order = np.concatenate([np.flatnonzero(city == CITY) for city in ("New York", "Paris")])
    table = TABLE.append_column("city", pa.array(CITY))
    pa.parquet.write_to_dataset(table, tmp_path / "night", partition_cols=["city"])
    whole = table.take(pa.array(order))
    pa.parquet.write_table(whole, tmp_path / "whole.parquet")
    assert sorted(folder.name for folder in (tmp_path / "night").iterdir()) == ["city=New%20York", "city=Paris"]
    return tmp_path


def test_a_folder_called_by_a_value_is_a_column(parted):
    told = {"by": "city", "group": "game"}
    whole = read_predictions(parted / "whole.parquet", **told)
    for path in (parted / "night", f"{parted}/night/city=*/*.parquet", sorted((parted / "night").rglob("*.parquet"))):
        found = read_predictions(path, **told)
        assert found.labels.tolist() == whole.labels.tolist()
        assert found.slices["city"].tolist() == whole.slices["city"].tolist()
        assert set(read_predictions(path, group="city").groups) == {"New York", "Paris"}
    here, there = evaluate(parted / "night", by="city"), evaluate(parted / "whole.parquet", by="city")
    assert here.tables["slices"] == there.tables["slices"]
    record = compare(
        {"a": str(parted / "night"), "b": f"{parted}/night/*/*.parquet"}, by="city", group="game", task="binary"
    )
    assert record["difference"].value == 0
    assert set(record.tables["slices"]["slice"]) == {"New York", "Paris"}


def test_folders_of_any_kind_of_file_are_columns(tmp_path):
    for ending in (".csv", ".tsv.gz", ".jsonl", ".feather", ".npz"):
        for city in ("Paris", "Rome"):
            folder = tmp_path / ending / f"city={city}" / "w=2"
            folder.mkdir(parents=True)
            part = TABLE.slice(0, 100)
            if ending == ".feather":
                pa.feather.write_feather(part, folder / "a.feather")
            elif ending == ".npz":
                np.savez(folder / "a.npz", **{name: part[name].to_numpy() for name in part.column_names})
            else:
                raw = text(part, ending.removesuffix(".gz"))
                (folder / f"a{ending}").write_bytes(gzip.compress(raw) if ending.endswith(".gz") else raw)
        found = read_predictions(tmp_path / ending, by="city", group="city", weight="w")
        assert found.slices["city"].tolist() == found.groups.tolist() == ["Paris"] * 100 + ["Rome"] * 100
        assert found.weights.tolist() == [2.0] * 200


def test_what_a_folder_says_is_refused_where_it_is_missing(tmp_path):
    for folder in ("city=__HIVE_DEFAULT_PARTITION__", "city=Paris"):
        (tmp_path / folder).mkdir()
        pa.parquet.write_table(TABLE, tmp_path / folder / "a.parquet")
    with pytest.raises(DataError, match=r"HIVE_DEFAULT_PARTITION__/a.parquet': .*row 0.*no group"):
        read_predictions(tmp_path, group="city")
    pa.parquet.write_table(TABLE, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet' has no column 'city'"):
        read_predictions(tmp_path, by="city")


def test_folders_are_no_probabilities_and_no_ids_and_yield_to_columns(tmp_path):
    """lr=0.1 above what was named is nobody's column, and below it only one that is asked for."""
    path = tmp_path / "lr=0.1" / "runs" / "p_drop=0.5" / "row=3" / "game=x"
    path.mkdir(parents=True)
    pa.parquet.write_table(TABLE, path / "a.parquet")
    found = read_predictions(path.parents[2], group="game")
    assert found.rows.tolist() == list(range(N))
    assert found.groups.tolist() == TABLE["game"].to_pylist()
    with pytest.raises(DataError, match="no column 'lr'"):
        read_predictions(path.parents[2], by="lr")


def test_splits_may_be_folders(tmp_path):
    """Training rows that lay in a folder of their own were measured with the test rows."""
    for split, rows in (("train", 200), ("test", 100)):
        (tmp_path / f"split={split}").mkdir()
        pa.parquet.write_table(TABLE.slice(0, rows), tmp_path / f"split={split}" / "a.parquet")
    found = read_predictions(tmp_path)
    assert (len(found), found.split) == (100, "test")
    assert "test (100), train (200); none was asked for" in found.notes[0]
    assert len(read_predictions(tmp_path, split="all")) == 300
    assert splits_in(tmp_path) == ["test", "train"]


def test_what_is_unfinished_or_hidden_is_not_read(tmp_path):
    """Spark's _temporary, Delta's log and Jupyter's checkpoints hold copies of rows, which were counted twice."""
    pa.parquet.write_table(TABLE, tmp_path / "a.parquet")
    for folder in ("_temporary/0", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
        pa.parquet.write_table(TABLE, tmp_path / folder / "a-checkpoint.parquet")
    assert len(read_predictions(tmp_path)) == N
    assert len(read_predictions(f"{tmp_path}/**/*.parquet")) == N
    assert len(read_predictions(tmp_path / "_temporary")) == N  # who names it means it


def test_what_folders_say_is_written_beside_calibrated_rows(parted):
    count, _ = apply_to_file(Calibrator(["0", "1"], (), "", ""), parted / "night", parted / "out.parquet")
    assert count == N
    out = pa.parquet.read_table(parted / "out.parquet")
    assert out["city"].to_pylist() == pa.parquet.read_table(parted / "whole.parquet")["city"].to_pylist()


def test_the_command_line_reads_them(parted, monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["crossent", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    (parted / "p.csv.gz").write_bytes(gzip.compress(text(TABLE, ".csv")))
    assert "p-evaluation.json" in call(parted / "p.csv.gz")
    assert (parted / "p-evaluation.json").exists()
    assert "New York" in call(f"{parted}/night/*/*.parquet", "--by", "city")


def test_an_address_of_the_web_may_carry_a_signature(tmp_path):
    """Its ? was taken for a pattern and its end for that of the file; and addresses were shown as http://http://…"""
    pytest.importorskip("aiohttp", reason="fsspec reads the web with aiohttp: pip install aiohttp")
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(text(TABLE, ".csv")))
    (tmp_path / "bad.csv").write_text("label,p_1\n1,often\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        try:
            found = read_predictions(f"{there}/p.csv.gz?signature=a*b/c.d")
            assert (len(found), found.source) == (N, f"{there}/p.csv.gz")  # a record goes to others
            with pytest.raises(DataError, match=rf"^'{there}/bad.csv': column 'p_1' should hold numbers"):
                read_predictions(f"{there}/bad.csv")
            with pytest.raises(DataError, match=rf"no file '{there}/bed.csv'. Did you mean '{there}/bad.csv'"):
                read_predictions(f"{there}/bed.csv")
        finally:
            server.shutdown()


def test_packed_samples_of_language_models_are_of_their_task(tmp_path):
    folder = Path(__file__).parent / "lm_eval_samples"
    found = {}
    for packed in ("", ".gz"):
        (tmp_path / f"all{packed}").mkdir()
        for task in ("brier", "choice"):
            [file] = folder.glob(f"samples_local_{task}_*.jsonl")
            raw = file.read_bytes()
            (tmp_path / f"all{packed}" / f"{file.name}{packed}").write_bytes(gzip.compress(raw) if packed else raw)
        found[packed] = read_predictions(tmp_path / f"all{packed}")
    assert found[""].rows.tolist() == found[".gz"].rows.tolist()
    assert set(found[".gz"].slices["task"]) == {"local_brier", "local_choice"}


def test_a_long_document_is_a_cell_and_a_quote_that_nothing_closes_is_none(tmp_path):
    """Python's reader takes cells of 131,072 letters, unless it is told otherwise."""
    long = "a line\n" * 30_000
    path = tmp_path / "p.csv"
    path.write_text(f'text,label,p_1\n"{long}",1,0.5\nshort,0,0.5\n')
    assert len(read_predictions(path)) == 2
    path.write_text(f'text,label,p_1\n"{long},1,0.5\n"short",0,0.5\nlast,1,0.5\n')
    with pytest.raises(DataError, match=r"quote that closes nowhere|Mend that line"):
        read_predictions(path)
