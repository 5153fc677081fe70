import math

import pytest

from crossent.record import Number
from crossent.report import digits
from crossent.report.label import clip, printable


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (Number(0.0721, "nats", 0.0452, 0.1101), "0.072 nats (0.045 to 0.110)"),
        (Number(0.07213, "nats", 0.07209, 0.07217), "0.072130 nats (0.072090 to 0.072170)"),
        (Number(0.0721, "nats", -0.4, 0.6), "0.07 nats (−0.40 to 0.60)"),
        (Number(0.01, "nats", 0.0001, 0.0199), "0.0100 nats (0.0001 to 0.0199)"),
        (Number(0.01, "nats", 0.0, 0.02), "0.010 nats (0.000 to 0.020)"),
        (Number(3.3219, "bits"), "3.32 bits"),
        (Number(0.0, "nats"), "0.00 nats"),
        (Number(1e-9, "nats", 0.5e-9, 1.5e-9), "1 × 10⁻⁹ nats (5 × 10⁻¹⁰ to 1.5 × 10⁻⁹)"),
        (Number(math.inf, "nats", 0.1, math.inf), "infinite"),
        (Number(0.5, "nats", 0.1, math.inf), "0.500 nats (0.100 to infinite)"),
        (Number(math.nan, "nats"), "undefined"),
        (Number(0.5, "nats", math.nan, math.nan), "0.500 nats"),
        (Number(-math.inf, "share"), "minus infinite"),
        (Number(0.9694, "share", 0.952, 0.98), "96.9 % (95.2 to 98.0 %)"),
        (Number(3, "rows"), "3 rows"),
        (Number(1, "rows"), "1 row"),
        (Number(0.034, "1", 0.02, 0.05), "0.034 (0.020 to 0.050)"),
        (Number(2.713, "target", 2.61, 2.82), "2.71 (2.61 to 2.82)"),
        (Number(123456.7, "target"), "123,457"),
    ],
)
def test_a_number_is_written_with_the_digits_its_interval_deserves(number, expected):
    assert digits.written(number) == expected


def test_nearly_all_is_not_all_and_little_is_not_nothing():
    assert digits.percent(0.99999) == "99.999 %"
    assert digits.percent(1.0) == "100 %"
    assert digits.percent(0.00001) == "0.001 %"
    assert digits.percent(0.0) == "0 %"


def test_there_is_no_minus_zero():
    assert digits.spell(-0.0001, 2) == "0.00"
    assert digits.spell(-0.02, 2) == "−0.02"


def test_a_column_of_equal_kind_has_equal_decimals():
    assert digits.column([0.5, 0.0123, 2.0]) == ["0.500", "0.012", "2.000"]
    assert digits.column([1.0, 250.0]) == ["1", "250"]
    assert digits.column([]) == []


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\x00b", "\u202eabc", "\ud800"])
def test_what_a_terminal_would_obey_is_not_printed(name):
    assert "�" in printable(name)
    assert printable(name).encode("utf-8")
    assert not set(printable(name)) & set("\x1b\x00\u202e")


def test_a_long_name_is_clipped_to_the_columns_it_may_have():
    assert len(clip("x" * 400, 17)) == 17
    assert clip("x" * 17, 17) == "x" * 17
