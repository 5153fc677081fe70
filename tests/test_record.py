"""Records survive a round trip and ten years; files are written whole; errors are sentences."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crossent.errors import DataError, MissingExtra, require, some
from crossent.files import refusal, replacing
from crossent.record import Curve, Number, Record

FLOAT = st.one_of(st.floats(allow_nan=False), st.integers(-5, 5).map(float))
TEXT = st.text(max_size=8).filter(lambda text: text not in ("Infinity", "-Infinity", "NaN"))
NUMBER = st.builds(
    Number, FLOAT, st.sampled_from(["nats", "bits", "share", "rows"]), st.none() | FLOAT, st.none() | FLOAT,
    st.none() | st.integers(0, 2**40),
)  # fmt: skip
POINTS = st.lists(FLOAT, max_size=4)
CURVE = st.builds(Curve, POINTS, POINTS, TEXT, TEXT, st.none() | POINTS, st.none() | POINTS)
COLUMN = st.lists(st.none() | FLOAT, max_size=3) | st.lists(st.none() | TEXT, max_size=3)
RECORD = st.builds(
    Record,
    kind=st.sampled_from(["evaluation", "fit"]),
    title=TEXT,
    made=TEXT,
    numbers=st.dictionaries(TEXT, NUMBER, max_size=3),
    tables=st.dictionaries(TEXT, st.dictionaries(TEXT, COLUMN, max_size=3), max_size=2),
    curves=st.dictionaries(TEXT, CURVE, max_size=2),
    facts=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3),
)


# The first text drawn in a fresh checkout has Hypothesis make its table of Unicode: a second or more on a busy machine.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECORD)
def test_a_record_survives_json(record: Record) -> None:
    text = record.to_json()
    assert Record.from_json(text) == record
    assert Record.from_json(text).to_json() == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_changed_record_is_another_record() -> None:
    record = Record("fit", "a", numbers={"cross_entropy": Number(0.5, "nats")})
    assert Record.from_json(record.to_json().replace("0.5", "0.25")) != record


def test_the_three_numbers_that_json_lacks() -> None:
    record = Record(
        "evaluation",
        "x",
        numbers={"a": Number(math.inf, "nats", -math.inf, math.nan)},
        tables={"t": {"cost": [math.inf, 1.0], "label": ["NaN", "cat"], "gone": [math.inf, None]}},
    )
    assert '"value": "Infinity"' in record.to_json()
    back = Record.from_json(record.to_json())
    assert back["a"].value == math.inf
    assert math.isnan(back["a"].high)
    assert back.tables["t"] == {"cost": [math.inf, 1.0], "label": ["NaN", "cat"], "gone": [math.inf, None]}


def test_the_format_of_the_first_version_is_still_read() -> None:
    """The text below was written by version 0.1.0 and must be readable for ever; do not change it."""
    text = """{"format": "crossent record 1", "kind": "evaluation", "title": "t", "made": "2026-11-21T06:00:00Z",
      "numbers": {"cross_entropy": {"value": "Infinity", "unit": "nats", "n": 3}},
      "tables": {"costliest": {"row": [7], "cross_entropy": ["Infinity"]}},
      "curves": {"reliability": {"x": [0.1], "y": [0.2], "x_name": "p", "y_name": "f", "low": [0.0], "n": [3]}},
      "facts": {"rows": 3}}"""
    record = Record.from_json(text)
    assert record["cross_entropy"] == Number(math.inf, "nats", n=3)
    assert record.tables["costliest"]["cross_entropy"] == [math.inf]
    assert record.curves["reliability"].n == [3]
    assert dict(record) == record.numbers


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "it is not JSON"), ("[]", "its 'format' should be 'crossent record 1' and is None"),
     ('{"format": "crossent record 9"}', "is 'crossent record 9'"),
     ('{"format": "crossent record 1", "kind": "fit"}', "this record is damaged.*KeyError")],
)  # fmt: skip
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=sentence):
        Record.read(tmp_path / "r.json")


def test_units() -> None:
    assert Number(1.0, "bits", 0.5, 2.0).to("nats").high == pytest.approx(2 * math.log(2))
    with pytest.raises(ValueError, match="cannot turn share into bits"):
        Number(1.0, "share").to("bits")
    with pytest.raises(KeyError, match="it has cross_entropy"):
        Record("fit", "a", numbers={"cross_entropy": Number(0.5, "nats")})["log_loss"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
    with pytest.raises(RuntimeError, match="in the middle"), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["a.txt"]
    os.umask(mask := os.umask(0))
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only"),
     (errno.EIO, "the system says: Input/output error")],
)  # fmt: skip
def test_what_the_system_refuses_is_a_sentence(tmp_path: Path, number: int, sentence: str) -> None:
    with pytest.raises(DataError, match=f"{sentence}.*Nothing was left half-written"), replacing(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []
    assert sentence in refusal(OSError(number, os.strerror(number)), "a")


def test_a_path_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a part of that path is a file"), replacing(tmp_path / "file" / "a.txt"):
        pytest.fail("there is nothing to write to")


def test_a_missing_extra_says_how_to_get_it() -> None:
    with pytest.raises(MissingExtra, match=re.escape("pip install 'crossent[cli]'")):
        require("no_such_library.inside", "cli", "reading tables")
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):  # the library is there: not a missing extra
        require("json.no_such_part.deeper", "cli", "reading tables")
    assert some(list("abc"), 2) == "a, b, … (3 in all)"
