import dataclasses
import math

import pytest

from crossent.record import Number, Record
from crossent.report import digits, headline
from crossent.report.text import parts_in_bits, summary


def _with(record, **numbers):
    return dataclasses.replace(record, numbers={**record.numbers, **numbers})


def test_the_headline_of_a_good_fit(case):
    assert headline(case("digits_fit")) == (
        "On 360 test rows the model's cross-entropy is 0.072 nats (0.104 bits) per row; 95 % interval 0.045 to "
        "0.110. Labels alone hold 3.32 bits; the model knows 3.22 of them (97 %). Calibration could win nothing "
        "that these rows can show (95 % interval −0.0041 to 0.0069 nats)."
    )


def test_the_headline_of_an_infinite_loss_says_why_and_what_a_floor_gives(case):
    words = headline(case("impossible"))
    assert words.startswith("The model's cross-entropy on 360 rows is infinite: to the labels of 3 of them")
    assert "With every probability raised to at least 1 × 10⁻⁶ it is 0.21 nats" in words
    assert words.endswith(
        "Above the floor, calibration could win nothing that these rows can show (95 % interval −0.010 to 0.050 nats)."
    )
    assert "knows" not in words


def test_one_impossible_row_is_one(case):
    words = headline(_with(case("impossible"), impossible_rows=Number(1, "rows")))
    assert "to the label of 1 of them the model gave probability exactly 0" in words


def test_no_impossible_row_is_not_infinite(case):
    words = headline(_with(case("digits_fit"), impossible_rows=Number(0, "rows")))
    assert "infinite" not in words


PROMISES = ("could still win", "rows can show", "has nothing to win", "chance may explain it")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.005, 0.02, "Calibration could still win 0.0120 nats per row"),
        (-0.001, 0.02, "Calibration could win nothing that these rows can show"),
        (0.0, 0.02, "Calibration could win nothing that these rows can show"),
        (-0.02, -0.005, "Calibration has nothing to win"),
        (None, None, "without an interval, chance may explain it"),
    ],
)
def test_calibration_is_promised_only_where_the_interval_leaves_zero_out(case, low, high, expected):
    words = headline(_with(case("binary"), miscalibration=Number(0.012, "nats", low, high)))
    assert [phrase for phrase in PROMISES if phrase in words] == [phrase for phrase in PROMISES if phrase in expected]
    assert expected in words


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected"),
    [
        (0.3, 0.2, 0.4, "the model knows 0.300 of them (31 %)"),
        (0.1, -0.1, 0.3, "that the model knows any of them, these rows cannot show"),
        (-0.1, -0.3, 0.1, "that the model knows any of them, these rows cannot show"),
        (-0.3, -0.4, -0.2, "the model does worse than that, by 0.300 bits"),
        (-0.3, None, None, "the model does worse than that, by 0.300 bits"),
        (0.3, None, None, "the model knows 0.300 of them (31 %)"),
    ],
)
def test_knowledge_is_claimed_only_where_the_interval_leaves_zero_out(case, gain, low, high, expected):
    assert expected in headline(_with(case("binary"), information_gained=Number(gain, "bits", low, high)))


def test_numbers_in_a_range_are_told_their_error_too(case):
    words = headline(case("in_a_range"))
    assert "off by 2.71 on average (MAE, in a range of 0 to 50)" in words
    assert "(RMSE) is 4.09" in words
    assert "MAE" not in headline(case("digits_fit"))


@pytest.mark.parametrize(
    ("kind", "facts", "expected"),
    [
        ("fit", {"rows": 7}, "On 7 test rows "),
        ("evaluation", {"rows": 7}, "On 7 rows "),
        ("evaluation", {"rows": 1, "split": "holdout"}, "On 1 holdout row "),
        ("evaluation", {}, "On the rows "),
        ("evaluation", {"rows": 12345}, "On 12,345 rows "),
    ],
)
def test_the_rows_are_named(kind, facts, expected):
    record = Record(kind, "", numbers={"cross_entropy": Number(0.5, "nats")}, facts=facts)
    assert headline(record).startswith(expected)


def test_what_is_not_a_number_is_said_to_be_undefined():
    record = Record("evaluation", "", numbers={"cross_entropy": Number(math.nan, "nats")})
    assert "undefined" in headline(record)


def test_nobody_is_told_that_0_is_perfect_where_it_cannot_be_reached(case):
    explained = {line.label: line.explanation for line in summary(case("in_a_range"))}
    assert "above 0 even for perfect forecasts" in explained["Cross-entropy"]
    assert "0 is perfect" in {line.label: line.explanation for line in summary(case("binary"))}["Cross-entropy"]


def test_every_number_has_a_line_and_every_known_one_an_explanation(record):
    lines = summary(record)
    assert len(lines) == len(record.numbers)
    assert all(label and value and explanation for label, value, explanation in lines)


def test_a_number_of_a_later_version_is_shown_under_its_own_name():
    assert summary(Record("fit", "", numbers={"new_thing": Number(0.5, "1")})) == [("New thing", "0.500", "")]


def test_a_record_reads_the_same_after_a_round_trip_through_its_file(record):
    again = Record.from_json(record.to_json())
    assert headline(again) == headline(record)
    assert summary(again) == summary(record)


def test_rows_in_groups_are_said_to_be(case):
    record = case("binary")
    grouped = dataclasses.replace(record, facts=record.facts | {"groups": 30})
    assert headline(grouped) == headline(record).replace("12,000 rows", "12,000 rows in 30 groups")
    assert "in 1 group the" in headline(dataclasses.replace(record, facts=record.facts | {"groups": 1}))
    many = dataclasses.replace(record, facts=record.facts | {"groups_estimated": 9120})
    assert headline(many) == headline(record).replace("12,000 rows", "12,000 rows in about 9,120 groups")


def test_an_interval_without_width_is_not_written():
    even = Number(math.log2(10), "bits", math.log2(10) - 1e-15, math.log2(10), 1000)
    assert digits.written(even) == "3.32 bits"
    assert "to" in digits.written(dataclasses.replace(even, low=3.31))


@pytest.mark.parametrize("name", ["digits_fit", "impossible"])
def test_the_parts_are_told_in_bits_too(case, name):
    record = case(name)
    parts, total = parts_in_bits(record).split(" = ")
    terms = [float(term) for term in parts.replace("− ", "-").replace("+ ", "").split()]
    assert sum(terms) == pytest.approx(float(total), abs=0.002)
    parts = ("uncertainty", "discrimination", "miscalibration")
    for part, term, sign in zip(parts, terms, (1, -1, 1), strict=True):
        assert sign * term == pytest.approx(record[part].value / math.log(2), abs=0.0005)
    less = dataclasses.replace(record, numbers={"uncertainty": record["uncertainty"]})
    assert parts_in_bits(less) == ""
