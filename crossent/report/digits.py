"""Numbers as a person reads them: as many digits as the interval deserves, infinities in words."""

from __future__ import annotations

import math
from dataclasses import replace

from crossent.record import Number

_MOST_DIGITS = 6
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SILENT_UNITS = {"1", "target", ""}  # what such a number counts is said beside it, not after it


def decimals(value: float, low: float | None = None, high: float | None = None) -> int:
    """Say how many decimals ``value`` deserves.

    With an interval: two significant digits of half its width, because later digits are noise. Without one:
    three significant digits of the value. Never more than six significant digits.

    >>> decimals(0.0721, 0.045, 0.110), decimals(3.3219), decimals(12345.6)
    (3, 2, 0)
    """
    if not math.isfinite(value):
        return 0
    places = 2 - _magnitude(value)
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        places = 1 - _magnitude((high - low) / 2)
        # On which side of zero an interval ends must be seen: a few digits more where an end rounds to it.
        nearest = min(abs(low), abs(high))
        if nearest:
            places = max(places, min(-_magnitude(nearest), places + 2))
        if value:
            places = min(places, _MOST_DIGITS - 1 - _magnitude(value))
    return max(places, 0)


def spell(value: float, places: int | None = None) -> str:
    """Write a value with so many decimals (by default: what it deserves alone).

    >>> [spell(x) for x in (0.07213, -0.5, 12345.6, 3.1e-12, math.inf, math.nan)]
    ['0.0721', '−0.500', '12,346', '3.1 × 10⁻¹²', 'infinite', 'undefined']
    """
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    places = decimals(value) if places is None else places
    if value and (abs(value) >= 1e12 or (places > 7 and abs(value) < 1e-5)):
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    else:
        text = f"{value:,.{min(places, 7)}f}"
        if not any(digit in "123456789" for digit in text):
            text = text.lstrip("-")  # no minus zero
    return text.replace("-", "−")


def percent(share: float, places: int = 0) -> str:
    """Write a share in percent; what is not quite all is never rounded to 100 %, nor what is little to 0 %.

    >>> percent(0.9697), percent(0.9996), percent(1.0), percent(0.0004), percent(-0.25)
    ('97 %', '99.96 %', '100 %', '0.04 %', '−25 %')
    """
    if not math.isfinite(share):
        return spell(share)
    while places < 6 and share not in (0.0, 1.0) and float(f"{100 * share:.{places}f}") in (0.0, 100.0):
        places += 1
    return f"{spell(100 * share, places)} %"


def shares(values: list[float | None]) -> list[str]:
    """Write the shares of a table's column in percent.

    >>> shares([1.0, 0.99996, 0.5, 0.0, None])
    ['100 %', '>99.9 %', '50.0 %', '0 %', '–']
    """

    def cell(share: float | None) -> str:
        if share is None or math.isnan(share):
            return "–"
        if share in (0.0, 1.0):
            return percent(share)
        edges = {"0.0": "<0.1 %", "100.0": ">99.9 %"}
        return edges.get(f"{100 * share:.1f}", percent(share, 1))

    return [cell(share) for share in values]


def value(number: Number) -> str:
    """Write a number and its unit, without the interval.

    >>> value(Number(0.0721, "nats", 0.045, 0.110)), value(Number(0.5, "share")), value(Number(1, "rows"))
    ('0.072 nats', '50 %', '1 row')
    """
    if not math.isfinite(number.value):
        return spell(number.value)
    if number.unit == "share":
        return percent(number.value, _percent_places(number))
    if number.unit == "rows":
        return f"{number.value:,.0f} {'row' if number.value == 1 else 'rows'}"
    text = spell(number.value, decimals(number.value, number.low, number.high))
    return text if number.unit in _SILENT_UNITS else f"{text} {number.unit}"


def interval(number: Number) -> str:
    """Write the interval alone, without its unit; nothing where there is none.

    >>> interval(Number(0.0721, "nats", 0.045, 0.110)), interval(Number(0.5, "nats"))
    ('0.045 to 0.110', '')
    """
    if number.low is None or number.high is None or math.isnan(number.low) or math.isnan(number.high):
        return ""
    if not math.isfinite(number.value):
        return ""
    if number.unit == "share":
        places = _percent_places(number)
        low, high = (spell(100 * end, places) for end in (number.low, number.high))
        return f"{low} to {high} %" if math.isfinite(number.high) else f"{low} % to {high}"
    places = decimals(number.value, number.low, number.high)
    return f"{spell(number.low, places)} to {spell(number.high, places)}"


def written(number: Number) -> str:
    """Write a number with its unit and, in brackets, its interval.

    >>> written(Number(0.0721, "nats", 0.045, 0.110)), written(Number(0.9694, "share", 0.955, 0.98))
    ('0.072 nats (0.045 to 0.110)', '96.9 % (95.5 to 98.0 %)')
    """
    between = interval(number)
    if between and math.isclose(number.low or 0.0, number.high or 0.0, rel_tol=1e-9):
        between = ""  # as with the entropy of classes that are exactly even: its ends are the value itself
        number = replace(number, low=None, high=None)
    return f"{value(number)} ({between})" if between else value(number)


def column(values: list[float | None]) -> list[str]:
    """Write the numbers of a table's column with the same decimals, so that they can be compared at a glance.

    >>> column([0.0123, 2.5, math.inf, None, 0.0, 1e-9])
    ['0.012', '2.500', 'infinite', '–', '0', '<0.001']
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    largest = max(sizes, default=0.0)
    if all(size == round(size) for size in sizes):
        places = 0
    elif largest < 0.01:
        places = decimals(largest)
    else:
        places = max(3 - max(_magnitude(largest), 0), 0)

    def cell(value: float | None) -> str:
        if value is None or value == 0:
            return "–" if value is None else "0"
        smallest = 10.0**-places
        return f"<{spell(smallest, places)}" if 0 < value < smallest / 2 else spell(value, places)

    return [cell(value) for value in values]


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _percent_places(number: Number) -> int:
    if number.low is None or number.high is None:
        return 0
    return min(decimals(100 * number.value, 100 * number.low, 100 * number.high), 2)
