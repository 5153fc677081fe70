"""A comparison in words, tables and pictures: what the rows cannot tell is never said, and what they can is."""

import io

import pytest
from rich.console import Console

from crossent.record import Curve, Number, Record
from crossent.report import comparison, comparison_plots, headline, html, show


def record(value=-0.012, low=-0.02, high=-0.004, verdict="better", **changes):
    numbers = {
        "difference": Number(value, "nats", low, high, 8000),
        "p_value": Number(0.004, "1"),
        "discrimination_difference": Number(0.011, "nats", 0.002, 0.02, 8000),
        "miscalibration_difference": Number(-0.001, "nats", -0.004, 0.002, 8000),
        "rows_to_turn": Number(350, "rows"),
    } | changes.pop("numbers", {})
    facts = {"baseline": "old", "model": "new", "verdict": verdict, "rows": 8000, "clusters": 120, "notes": []}
    facts |= changes.pop("facts", {})
    tables = {
        "models": {
            "model": ["new", "old"], "cross_entropy": [0.4, 0.412], "difference": [value, None],
            "difference_low": [low, None], "difference_high": [high, None], "p_adjusted": [0.004, None],
        },
        "slices": {
            "model": ["new"] * 3, "by": ["city"] * 3, "slice": ["Oslo", "[red]Rome", "<b>Bath"],
            "rows": [4000, 3000, 1000],
            "difference": [-0.02, -0.01, 0.014], "low": [-0.03, -0.02, None], "high": [-0.01, 0.01, None],
            "p_adjusted": [0.0001, 0.3, None], "contribution": [-0.01, -0.00375, 0.00175], "share": [0.6, 0.3, 0.1],
        },
        "rows": {"row": ["r7"], "label": ["yes"], "baseline": [0.2], "cross_entropy": [3.1], "contribution": [0.0004]},
    }  # fmt: skip
    curves = {"concentration": Curve([0, 0.05, 1], [0, 0.8, 1], "rows", "share")}
    return Record("comparison", "new and old compared", numbers=numbers, facts=facts, tables=tables, curves=curves)


def test_better_worse_and_undecided():
    said = headline(record())
    assert said.startswith(
        "On 8,000 rows in 120 groups new is better than old: its cross-entropy is 0.0120 nats per row"
    )
    assert "lower (95 % interval 0.0040 to 0.0200; p = 0.004)" in said
    assert (
        "It tells cases apart better (0.0020 to 0.0200 nats); in calibration no difference can be shown"
        in said.replace("it tells", "It tells")
    )
    said = headline(record(0.012, 0.004, 0.02, "worse"))
    assert "new is worse than old" in said
    assert "higher" in said
    needed = {"rows_needed": Number(54_000, "rows")}
    said = headline(record(-0.002, -0.006, 0.002, "undecided", numbers=needed))
    assert said.startswith("Which of new and old is better, 8,000 rows in 120 groups cannot tell")
    assert "better than" not in said
    assert "roughly 54,000 rows like these would show it" in said
    assert "cost the same, row by row" in headline(record(0.0, None, None, "same"))


def test_a_result_that_hangs_on_few_rows_is_called_so():
    assert "hangs on few rows" not in headline(record())
    assert "without 3 rows of them it would be the other way round" in headline(
        record(numbers={"rows_to_turn": Number(3, "rows")})
    )


def test_infinite_differences_are_said_first():
    floored = record(
        numbers={"difference_floored": record()["difference"], "difference": Number(float("-inf"), "nats")}
    )
    floored.tables["models"]["impossible_rows"] = [0, 61]
    said = headline(floored)
    assert said.startswith(
        "Some labels had probability exactly 0, and the cross-entropy is infinite, in old (61); the exact"
    )
    assert "difference is minus infinite" in said
    del floored.numbers["difference"]
    assert "difference is undefined" in headline(floored)


def test_several_models_are_all_named():
    said = headline(record(facts={"verdicts": {"new": "better", "third": "undecided", "fourth": "undecided"}}))
    assert (
        "Of all 3 models, their number allowed for, new is better than old; third and fourth are not told apart from"
        in said
    )


@pytest.mark.parametrize("width", [60, 100, 160])
def test_terminal_and_page_hold_every_table(width):
    screen = io.StringIO()
    show(record(), Console(file=screen, width=width, highlight=False, markup=False))
    for title in ("The models", "By slice", "The rows that make the difference", "[red]"):
        assert title in screen.getvalue()
    page = html.page(record())
    assert 'id="differences"' in page
    assert 'id="concentration"' in page
    assert "&lt;b&gt;Bath" in page
    assert "<b>Bath" not in page
    assert "Comparison" in page
    assert "difference in nats per row" in page


def test_other_records_have_none_of_it():
    other = Record("evaluation", "a test", numbers={"cross_entropy": Number(0.3, "nats")})
    assert comparison.sheets(other, 10) == []
    assert comparison_plots.differences(other) == ""
    bare = Record("comparison", "nothing in it")
    assert "This record holds no difference." in headline(bare)
    assert "Comparison" in html.page(bare)


def test_where_nothing_differs_the_axis_is_not_in_billionths():
    nothing = [("focal", 0.0, 0.0, 0.0), ("brier", 0.0, None, None)]
    assert comparison_plots.window(nothing) == (-1.0, 1.0)
    assert comparison_plots.window([("focal", 0.0, 0.0, 2e-12)]) == pytest.approx((-1e-13, 2.1e-12))
