"""A comparison in words: which model is better, by how much, and whether the rows can tell.

What is said of chance is careful: models that the rows cannot tell apart are not called equal, nor is the one that
happens to be ahead called better.
"""

from __future__ import annotations

from crossent.record import Number, Record, Table
from crossent.report import digits
from crossent.report.label import printable
from crossent.report.table import Sheet, Titles, counts, names, nats, select, sheet

_MOST_SLICES = 30

MEANINGS = {
    "difference": (
        "Difference of cross-entropy",
        "That of the model minus that of the baseline, row by row on the same rows. Below 0 the model is better.",
    ),
    "difference_bits": ("Difference in bits", "The same, divided by log 2."),
    "difference_floored": (
        "Floored difference",
        "The same with every probability of all models raised to at least the floor.",
    ),
    "difference_bits_per_byte": (
        "Difference per byte",
        "In bits per byte of what was predicted; bytes are the weights.",
    ),
    "p_value": ("p-value", "How often rows alone would make so large a difference between models of equal worth."),
    "discrimination_difference": (
        "Difference of discrimination",
        "What the model tells apart better than the baseline once both are calibrated. Above 0 the model is better.",
    ),
    "miscalibration_difference": (
        "Difference of miscalibration",
        "What calibration could win for the model, minus what it could win for the baseline. Below 0 it wastes less.",
    ),
    "rows_needed": (
        "Rows needed",
        "Roughly how many rows like these would show a difference as large as this one looks.",
    ),
    "rows_to_turn": (
        "Rows that would turn it",
        "How few rows, those that speak most for the one ahead, one would have to leave out to put it behind.",
    ),
}


def headline(record: Record) -> str:
    """Say which model is better, by how much, and whether the rows can tell; then in which part, and on how many rows.

    >>> numbers = {"difference": Number(-0.012, "nats", -0.02, -0.004, 900), "p_value": Number(0.004, "1")}
    >>> facts = {"baseline": "old", "model": "new", "verdict": "better", "rows": 900}
    >>> print(headline(Record("comparison", "a test", numbers=numbers, facts=facts)))
    On 900 rows new is better than old: its cross-entropy is 0.0120 nats per row lower (95 % interval 0.0040 to 0.0200;
    p = 0.004).
    """
    sentences = (_infinite(record), _verdict(record), _parts(record), _hanging(record), _others(record))
    return " ".join(sentence for sentence in sentences if sentence)


def models(record: Record) -> Sheet | None:
    """All models, the cheapest first, with their difference from the baseline."""
    return sheet(record.tables.get("models", {}), _MODELS)


def parts(record: Record) -> Sheet | None:
    """The difference of each model from the baseline, part by part."""
    table = record.tables.get("parts", {})
    table = {**table, "part": [str(part).replace("_", "-") for part in table.get("part", [])]}
    return sheet(_without_single(table), _PARTS)


def slices(record: Record) -> Sheet | None:
    """The slices by what they contribute to the difference, the largest contribution first, at most 30."""
    table = record.tables.get("slices", {})
    table = _without_single(table)
    cells = table.get("contribution", [])
    order = sorted(range(len(cells)), key=lambda i: -abs(cells[i]))
    left_out = ""
    if len(cells) > _MOST_SLICES:
        left_out = f"The {_MOST_SLICES} that contribute most of {len(cells):,} slices; the record holds all."
    return sheet(select(table, order[:_MOST_SLICES]), _SLICES, left_out)


def rows(record: Record, most: int) -> Sheet | None:
    """The rows that make the largest difference, in either direction, at most ``most`` of them."""
    return sheet(select(record.tables.get("rows", {}), range(most)), _ROWS)


def sheets(record: Record, most: int) -> list[tuple[str, Sheet]]:
    """All tables of a comparison with their titles, none for another kind of record; at most ``most`` rows of data."""
    if record.kind != "comparison":
        return []
    found = {
        "The models": models(record),
        "Part by part": parts(record),
        "By slice": slices(record),
        "The rows that make the difference": rows(record, most),
    }
    return [(title, content) for title, content in found.items() if content is not None]


def difference(record: Record) -> Number | None:
    """Give the difference that is spoken of: the floored one, where the exact one is infinite or undefined."""
    return record.numbers.get("difference_floored") or record.numbers.get("difference")


def p_value(p: float) -> str:
    """Write a p-value after its letter.

    >>> p_value(0.0000012), p_value(0.0042), p_value(0.31)
    ('p < 0.001', 'p = 0.004', 'p = 0.31')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _counted(record: Record) -> str:
    n, clusters = record.facts.get("rows"), record.facts.get("clusters")
    if not isinstance(n, int):
        return "the same rows"
    of = f" in {clusters:,} {'group' if clusters == 1 else 'groups'}" if isinstance(clusters, int) else ""
    return f"{n:,} {'row' if n == 1 else 'rows'}{of}"


def _infinite(record: Record) -> str:
    if "difference_floored" not in record.numbers:
        return ""
    table = record.tables.get("models", {})
    pairs = zip(table.get("model", []), table.get("impossible_rows", []), strict=False)
    told = [f"{printable(name)} ({count:,})" for name, count in pairs if count]
    floor = record.facts.get("floor")
    raised = f"at least {digits.spell(floor)}" if isinstance(floor, (int, float)) else "at least the floor"
    exact = record.numbers.get("difference")
    which = "undefined" if exact is None else digits.value(exact)
    return (
        f"Some labels had probability exactly 0, and the cross-entropy is infinite, in {' and '.join(told)}; the exact "
        f"difference is {which}. With every probability raised to {raised}:"
    )


def _verdict(record: Record) -> str:
    found, facts = difference(record), record.facts
    model, baseline = printable(facts.get("model")), printable(facts.get("baseline"))
    if facts.get("verdict") == "same":
        return f"On {_counted(record)} {model} and {baseline} cost the same, row by row."
    if found is None:
        return "This record holds no difference."
    size = digits.value(Number(abs(found.value), found.unit, found.low, found.high))
    p = record.numbers.get("p_value")
    chance = f"; {p_value(p.value)}" if p is not None else ""
    lower = "lower" if found.value < 0 else "higher"
    if found.low is None or found.high is None:
        return (
            f"On {_counted(record)} the cross-entropy of {model} is {size} per row {lower} than that of {baseline}; "
            "how far chance goes, these rows cannot tell."
        )
    if found.low <= 0 <= found.high:
        between = digits.interval(found)
        needed = record.numbers.get("rows_needed")
        more = (
            f" If it is as large as it looks, roughly {digits.spell(needed.value, 0)} rows like these would show it."
            if needed is not None
            else ""
        )
        return (
            f"Which of {model} and {baseline} is better, {_counted(record)} cannot tell: the cross-entropy of {model} "
            f"is {size} per row {lower}, and the 95 % interval of the difference ({between}{chance}) holds 0.{more}"
        )
    least, most = sorted((abs(found.low), abs(found.high)))
    between = digits.interval(Number(abs(found.value), found.unit, least, most))
    better = "better" if found.value < 0 else "worse"
    return (
        f"On {_counted(record)} {model} is {better} than {baseline}: its cross-entropy is {size} per row {lower} (95 % "
        f"interval {between}{chance})."
    )


def _parts(record: Record) -> str:
    said = []
    for part, good, bad in (
        ("discrimination", "tells cases apart better", "tells cases apart less well"),
        ("miscalibration", "is the worse calibrated", "is the better calibrated"),
    ):
        found = record.numbers.get(f"{part}_difference")
        if found is None or found.low is None or found.high is None:
            return ""
        if found.low <= 0 <= found.high:
            name = "discrimination" if part == "discrimination" else "calibration"
            said.append(f"in {name} no difference can be shown ({digits.interval(found)})")
        else:
            said.append(f"it {good if found.value > 0 else bad} ({digits.interval(found)} nats)")
    if record.facts.get("verdict") == "same":
        return ""
    sentence = "; ".join(said)
    return sentence[0].upper() + sentence[1:] + "."


def _hanging(record: Record) -> str:
    """A result that hangs on few rows is worth saying; the limit is 1 row in 200."""
    turn, n = record.numbers.get("rows_to_turn"), record.facts.get("rows")
    decided = record.facts.get("verdict") in ("better", "worse")
    if turn is None or not isinstance(n, int) or not decided or turn.value * 200 > n:
        return ""
    few = digits.value(turn)
    return f"That hangs on few rows: without {few} of them it would be the other way round."


def _others(record: Record) -> str:
    verdicts = record.facts.get("verdicts") or {}
    if len(verdicts) < 2:
        return ""
    baseline = printable(record.facts.get("baseline"))
    words = {"better": "better than", "worse": "worse than", "undecided": "not told apart from", "same": "the same as"}
    said = []
    for verdict, word in words.items():
        if named := [printable(name) for name, found in verdicts.items() if found == verdict]:
            listed = " and ".join(part for part in (", ".join(named[:-1]), named[-1]) if part)
            said.append(f"{listed} {'is' if len(named) == 1 else 'are'} {word} {baseline}")
    return f"Of all {len(verdicts)} models, their number allowed for, {'; '.join(said)}."


def _without_single(table: Table) -> Table:
    """With a single model its name in every line says nothing."""
    if len(set(table.get("model", []))) < 2:
        return {name: column for name, column in table.items() if name != "model"}
    return table


def p_values(values: list[float | None]) -> list[str]:
    """Write the p-values of a table's column, without their letter; one that is not known is a dash."""
    return ["–" if p is None else p_value(p).removeprefix("p ").removeprefix("= ") for p in values]


_MODELS: Titles = {
    "model": ("model", names, True),
    "cross_entropy": ("cross-entropy", nats, True),
    "difference": ("difference", nats, True),
    "difference_low": ("95 % from", nats, True),
    "difference_high": ("to", nats, True),
    "p_adjusted": ("p", p_values, True),
    "discrimination": ("discrimination", nats, False),
    "miscalibration": ("miscalibration", nats, False),
    "kl_divergence": ("KL from the truth", nats, False),
    "impossible_rows": ("impossible rows", counts, False),
}
_PARTS: Titles = {
    "model": ("model", names, True),
    "part": ("part", names, True),
    "difference": ("difference", nats, True),
    "low": ("95 % from", nats, True),
    "high": ("to", nats, True),
    "p_value": ("p", p_values, True),
}
_SLICES: Titles = {
    "model": ("model", names, True),
    "by": ("by", names, False),
    "slice": ("slice", names, True),
    "rows": ("rows", counts, True),
    "difference": ("difference", nats, True),
    "low": ("95 % from", nats, True),
    "high": ("to", nats, True),
    "p_adjusted": ("p (Holm)", p_values, True),
    "contribution": ("contribution", nats, True),
    "share": ("share of all that differs", digits.shares, False),
}
_ROWS: Titles = {
    "row": ("row", names, True),
    "label": ("label", names, True),
    "group": ("group", names, False),
    "baseline": ("baseline", nats, True),
    "cross_entropy": ("model", nats, True),
    "contribution": ("contribution", nats, True),
    "share": ("share of all that differs", digits.shares, False),
}
