import io
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from crossent.errors import MissingExtra
from crossent.record import Record
from crossent.report import show


def _shown(record, width, **options):
    sheet = io.StringIO()
    show(record, Console(file=sheet, width=width, **options))
    return sheet.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_wider_than_the_terminal(record, width):
    assert all(cell_len(line) <= width for line in _shown(record, width).splitlines())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_numbers_that_do_not_fit_are_left_out_and_not_squeezed(width):
    """At 60 columns the slices of a comparison had columns of a single dot."""
    cells = {name: [-0.1234, 0.5] for name in ("difference", "low", "high", "p_value", "contribution")}
    slices = {"model": ["newer", "other"], "column": ["city"] * 2, "slice": ["a", "b"], "rows": [1234, 567], **cells}
    lines = _shown(Record("comparison", "two", tables={"slices": slices}), width).splitlines()
    sheet = lines[lines.index("By slice") :]
    assert not [line for line in sheet if "…" in line.split()]
    assert all(f"{rows:,}" in " ".join(sheet) for rows in slices["rows"])
    assert ("−0.123" in " ".join(sheet)) or width < 60


def test_names_that_begin_alike_are_told_apart():
    """On 60 columns candidate_with_a_long_name and candidate_with_a_longer_name were both "candida…"."""
    names = ["candidate_with_a_long_name", "candidate_with_a_longer_name"]
    cells = {name: [-0.1234, 0.5] for name in ("difference", "low", "high", "p_value")}
    parts = {"model": names, "part": ["discrimination", "miscalibration"], **cells}
    lines = _shown(Record("comparison", "two", tables={"parts": parts}), 60).splitlines()
    sheet = [line for line in lines[lines.index("Part by part") + 3 :] if "─" not in line]
    starts = [place for place, line in enumerate(sheet) if "0.123" in line or "0.500" in line]
    shown = [sheet[slice(a, b)] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    for name, part, block in zip(names, parts["part"], shown, strict=True):
        edge = block[0].index(part[:8])
        assert "".join(line[:edge].strip() for line in block) == name
        assert "".join(line[edge : edge + 11].strip() for line in block) == part


def test_a_wide_terminal_sees_more(case):
    narrow, wide = _shown(case("digits_fit"), 60), _shown(case("digits_fit"), 200)
    for words in ("mean probability", "also called log loss"):
        assert words in wide
        assert words not in narrow
    for words in ("0.072 nats (0.045 to 0.110)", "96.9 % (95.2 to 98.0 %)", "recall", "P(label)"):
        assert words in wide
        assert words in narrow


def test_a_pipe_gets_no_colours_and_a_terminal_does(case):
    assert "\x1b" not in _shown(case("impossible"), 80)
    assert "\x1b[1;31m" in _shown(case("impossible"), 80, force_terminal=True, color_system="standard")


def test_names_are_names_and_not_orders(case):
    shown = _shown(case("hostile"), 200, force_terminal=True, color_system="standard")
    assert "[bold red]rich[/]" in shown
    assert "\x1b[31mred" not in shown
    assert "\x07" not in shown


def test_notes_and_an_infinite_loss_are_said(case):
    shown = " ".join(_shown(case("impossible"), 80).split())
    assert "is infinite: to the labels of 3 of them" in shown
    assert "Note: 3 rows gave probability exactly 0" in shown


def test_many_classes_are_cut_with_a_sentence(case):
    shown = _shown(case("hundred_classes"), 80)
    assert "The 20 dearest of 100 classes; the record holds all." in shown
    assert sum("species" in line for line in shown.split("The rows that cost most")[0].splitlines()) == 21


def test_a_terminal_without_unicode_is_spoken_to_without(case):
    sheet = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(case("hostile"), Console(file=sheet, width=80))
    sheet.flush()
    assert b"-0.0041 to 0.0069" in sheet.buffer.getvalue()


def test_without_rich_the_extra_is_named(case, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    sentence = r"printing a record needs the library 'rich'.*pip install 'crossent\[cli\]'"
    with pytest.raises(MissingExtra, match=sentence):
        show(case("binary"))


def test_what_is_left_to_win_is_said_with_its_meaning_where_there_is_room():
    parts = {"part": ["noise", "x" * 60], "nats": [0.25, 0.5], "low": [None, 0.4], "high": [None, 0.6]}
    record = Record("fit", "a fit", tables={"left": {**parts, "meaning": ["Nobody gets below it.", "A costly slice."]}})
    wide, narrow = _shown(record, 130), _shown(record, 60)
    assert "Where the remaining nats are" in wide
    assert "0.50 nats (0.40 to 0.60)" in wide
    assert "Nobody gets below it." in wide
    assert "Nobody gets below it." not in narrow
    assert "x" * 39 + "…" in wide
