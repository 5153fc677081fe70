"""A comparison of losses in words and tables: which is best, by how much, and whether the data can tell.

What is said of chance is careful, as in ``comparison``: losses that the data cannot tell apart are not called equal.
"""

from __future__ import annotations

from typing import Any

from crossent.record import Number, Record, Table
from crossent.report import digits
from crossent.report.comparison import p_value, p_values
from crossent.report.label import printable
from crossent.report.table import Sheet, Titles, counts, ends, names, nats, select, sheet

SPOKEN = {
    "cross_entropy": "log loss",
    "accuracy": "accuracy",
    "brier": "Brier score",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "miscalibration": "miscalibration",
    "log_score": "log score",
    "seconds": "seconds of training",
}
"""The measures, in the order in which a reader wants them."""
_MOST_SPOKEN = 3  # differences that the data cannot tell from 0, whose intervals are said in the headline


def headline(record: Record) -> str:
    """Say which loss is best, whether the data can tell, by how much, and what a raw comparison would have hidden.

    >>> table = {"loss": ["nll", "brier"], "fair_cross_entropy": [0.25, 0.27], "raw_cross_entropy": [0.26, 0.27]}
    >>> told = {"loss": ["brier"], "figure": ["fair"], "measure": ["cross_entropy"], "difference": [0.02],
    ...         "low": [0.01], "high": [0.03], "p_adjusted": [0.001], "verdict": ["worse"]}
    >>> facts = {"baseline": "nll", "rows": 900, "seeds": 3}
    >>> print(headline(Record("losses", "a test", tables={"losses": table, "differences": told}, facts=facts)))
    On 900 test rows, from 3 seeds, nll has the lowest log loss of 2 losses, 0.250 nats. It is better than brier by
    0.020 nats (0.010 to 0.030; p = 0.001).
    """
    table = record.tables.get("losses", {})
    costs = zip(table.get("fair_cross_entropy", []), table.get("loss", []), strict=False)
    fair = [(cost, name) for cost, name in costs if cost is not None]
    if not fair:
        return "This record holds no comparison of losses."
    cost, best = min(fair)
    rows, seeds, folds = (record.facts.get(name) for name in ("rows", "seeds", "folds"))
    count = f"{rows:,} test {'row' if rows == 1 else 'rows'}" if isinstance(rows, int) else "the test rows"
    drawn = f", from {seeds} {'seed' if seeds == 1 else 'seeds'}," if isinstance(seeds, int) else ""
    count += f", each tested in turn in {folds} folds" if folds else ""
    opening = f"On {count}{drawn} {printable(best)} has the lowest log loss of {len(fair)} losses"
    sentences = [
        f"{opening}, {digits.spell(cost)} nats.",
        *_against(record, best),
        _misled(record),
        _elsewhere(record),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def limits(record: Record) -> str:
    """What the conclusion rests on and how far it does not reach; nothing for another kind of record."""
    if record.kind != "losses":
        return ""
    budget = record.facts.get("budget")
    equal = f"Every loss had {printable(budget)}. " if budget else ""
    covers = printable(record.facts.get("covers") or "test rows")
    silent = "other training rows, other data or another recipe"
    known = ""
    if record.facts.get("folds"):
        silent = "other data or another recipe"
        known = "Of other training rows they know what folds show whose training rows are mostly the same. "
    return (
        f"{equal}Intervals are over {covers}; within one measure they hold together 95 % of the time over all losses "
        f"(Bonferroni), and p-values are Holm's. {known}They do not say what {silent} would give, and the recipe was "
        "tuned for cross-entropy."
    )


def hero(record: Record) -> dict[str, str]:
    """The big number: by how much the best other loss is above, or below, the one that all are held against."""
    found = record.numbers.get("difference")
    if found is None:
        return {}
    value = ("+" if found.value > 0 else "") + digits.value(found).partition(" ")[0]
    model, first = (printable(record.facts.get(name)) for name in ("model", "baseline"))
    return {"value": value, "unit": f"nats: {model} minus {first}", "interval": digits.interval(found)}


def sheets(record: Record) -> list[tuple[str, Sheet]]:
    """The tables of a comparison of losses with their titles; none for another kind of record."""
    if record.kind != "losses":
        return []
    table = record.tables.get("losses", {})
    table = {**table, "proper": [None if cell is None else "yes" if cell else "no" for cell in table.get("proper", [])]}
    kept = [place for place, trouble in enumerate(table.get("trouble", [])) if not trouble]
    found = {"The losses": sheet(select(table, kept), _LOSSES), "What each loss learns": sheet(_full(table), _ABOUT)}
    baseline = printable(record.facts.get("baseline"))
    for measure, words in SPOKEN.items():
        found[f"{words.capitalize()}, against {baseline}"] = sheet(_paired(record, measure), _PAIRED)
    return [(title, content) for title, content in found.items() if content is not None]


def differences(record: Record, figure: str, measure: str) -> list[dict[str, Any]]:
    """The lines of the record's differences of one figure and measure, none for another kind of record."""
    if record.kind != "losses":
        return []
    table = record.tables.get("differences", {})
    lines = [dict(zip(table, cells, strict=True)) for cells in zip(*table.values(), strict=True)]
    return [line for line in lines if (line["figure"], line["measure"]) == (figure, measure)]


def _against(record: Record, best: str) -> list[str]:
    """The fair log loss of the others against that of the first loss, by what can be told."""
    told = sorted(differences(record, "fair", "cross_entropy"), key=lambda line: abs(line["difference"]))
    first = record.facts.get("baseline")
    said = []
    for verdict, words in (("worse", "better than"), ("better", "worse than")):
        if listed := [f"{printable(line['loss'])} by {_size(line)}" for line in told if line["verdict"] == verdict]:
            said.append(f"{words} {', '.join(listed)}")
    sentences = [f"{'It' if best == first else printable(first)} is {'; it is '.join(said)}."] if said else []
    unsure = [line for line in told if line["verdict"] == "undecided"]
    if unsure:
        listed = [f"{printable(line['loss'])} ({_signed(line, len(unsure) <= _MOST_SPOKEN)})" for line in unsure]
        sentences.append(f"From {printable(first)} the data cannot tell {', '.join(listed)}.")
    if same := [printable(line["loss"]) for line in told if line["verdict"] == "same"]:
        sentences.append(f"To the last digit the same as {printable(first)}: {', '.join(same)}.")
    return sentences


def _size(line: dict[str, Any]) -> str:
    least, most = sorted((abs(line["low"]), abs(line["high"])))
    number = Number(abs(line["difference"]), "nats", least, most)
    p = f"; {p_value(line['p_adjusted'])}" if line["p_adjusted"] is not None else ""
    return f"{digits.value(number)} ({digits.interval(number)}{p})"


def _signed(line: dict[str, Any], whole: bool) -> str:
    number = Number(line["difference"], "nats", line["low"], line["high"])
    size = ("+" if line["difference"] > 0 else "") + digits.value(number)
    return f"{size}, {digits.interval(number)}" if whole and digits.interval(number) else size


def _misled(record: Record) -> str:
    """Whose log loss a raw comparison would have overstated most, if by more than a twentieth of the best one."""
    table = record.tables["losses"]
    cells = zip(table["loss"], table["raw_cross_entropy"], table["fair_cross_entropy"], strict=True)
    pairs = [(raw - fair, name, fair) for name, raw, fair in cells if raw is not None and fair is not None]
    most, name, _ = max(pairs)
    if most <= min(fair for *_, fair in pairs) / 20:
        return ""
    return (
        f"A raw comparison would mislead, most about {printable(name)}: without the way back and a temperature its log "
        f"loss is {digits.spell(most)} nats higher."
    )


def _elsewhere(record: Record) -> str:
    """On which other measures some loss can be shown to be better than the first."""
    first, said = printable(record.facts.get("baseline")), []
    for measure in ("accuracy", "brier", "mae", "rmse", "miscalibration"):
        told = differences(record, "fair", measure)
        if better := [printable(line["loss"]) for line in told if line["verdict"] == "better"]:
            said.append(
                f"In {SPOKEN[measure]} {', '.join(better)} {'is' if len(better) == 1 else 'are'} better than {first}."
            )
    return " ".join(said)


def _paired(record: Record, measure: str) -> Table:
    """A line for each loss with the fair and the raw difference; without the raw one where there is none."""
    fair = differences(record, "fair", measure)
    raw = {line["loss"]: line for line in differences(record, "raw", measure)}
    unit = "share" if measure == "accuracy" else "1"

    def number(line: dict[str, Any] | None) -> Number | None:
        return None if line is None else Number(line["difference"], unit, line["low"], line["high"])

    table: Table = {
        "loss": [line["loss"] for line in fair],
        "fair": [number(line) for line in fair],
        "interval": [number(line) for line in fair],
        "p": [line["p_adjusted"] for line in fair],
        "verdict": [line["verdict"] if line["verdict"] != "undecided" else None for line in fair],
    }
    if raw:
        table["raw"] = [number(raw.get(line["loss"])) for line in fair]
        table["raw_interval"] = list(table["raw"])
        table["of_seeds"] = [line["of_seeds"] if line["low"] is not None else None for line in fair]
    return table


def _full(table: Table) -> Table:
    """Leave out the column of troubles where there are none."""
    return {name: column for name, column in table.items() if name != "trouble" or any(column)}


def _signs(values: list[Number | None]) -> list[str]:
    return ["–" if cell is None else ("+" if cell.value > 0 else "") + digits.value(cell) for cell in values]


def _words(values: list[Any]) -> list[str]:
    return ["–" if value is None else printable(value) for value in values]


def _sizes(values: list[float | None]) -> list[str]:
    """Numbers of very different sizes, each with two digits of its own."""

    def cell(value: float | None) -> str:
        if value is None or value == 0:
            return "–" if value is None else "0"
        if value >= 0.01:
            return f"{value:.2g}"
        mantissa, exponent = f"{value:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa.removesuffix('.0')}\u00a0×\u00a010{raised}"

    return [cell(value) for value in values]


_LOSSES: Titles = {
    "loss": ("loss", names, True),
    "fair_cross_entropy": ("log loss, fair", nats, True),
    "raw_cross_entropy": ("raw", nats, True),
    "fair_accuracy": ("accuracy", digits.shares, True),
    "fair_brier": ("Brier, fair", nats, False),
    "raw_brier": ("raw", nats, False),
    "fair_mae": ("MAE, fair", nats, True),
    "raw_mae": ("raw", nats, False),
    "fair_rmse": ("RMSE, fair", nats, True),
    "raw_rmse": ("raw", nats, False),
    "fair_log_score": ("log score", nats, False),
    "fair_miscalibration": ("miscalibration, fair", nats, False),
    "raw_miscalibration": ("raw", nats, False),
    "temperature": ("temperature", digits.column, False),
    "epochs": ("epochs", counts, False),
    "seconds": ("seconds", digits.column, False),
}
_PAIRED: Titles = {
    "loss": ("loss", names, True),
    "fair": ("fair", _signs, True),
    "interval": ("95 % interval", ends, True),
    "p": ("p (Holm)", p_values, False),
    "verdict": ("is", _words, True),
    "raw": ("raw", _signs, False),
    "raw_interval": ("95 % interval", ends, False),
    "of_seeds": ("trainings’ share", digits.shares, False),
}
_ABOUT: Titles = {
    "loss": ("loss", names, True),
    "proper": ("proper", _words, True),
    "minimiser": ("its minimiser, q being the truth", _words, True),
    "inverse": ("the way back from p", _words, False),
    "gradient_at_0": ("pull at p = 10⁻⁶", _sizes, False),
    "gradient_at_1": ("at 1 − 10⁻⁶", _sizes, False),
    "trouble": ("why it is not compared", _words, True),
}
