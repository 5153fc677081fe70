"""What several losses cost the same rows from the same seeds, set against one of them: the record of a comparison.

Every measure is a number for each seed and row, and every figure of the record a mean of such, with the error of
``crossed``. Accuracy and log score are better the higher, all others the lower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.intervals.cluster import ROUNDING, ClusterMean, cluster_mean, holm
from crossent.minimise.contest.crossed import Crossed, crossed
from crossent.minimise.contest.judged import Told
from crossent.minimise.data.task import Task
from crossent.minimise.finish import versions
from crossent.record import Number, Record, Table

BETTER_HIGH = ("accuracy", "log_score")
FIGURES = ("fair", "raw")
_CROSS_ENTROPY = ("nll", "fraction")
_UNITS = {"accuracy": "share", "brier": "1", "mae": "target", "rmse": "target"}


Line = tuple[str, dict[str, Any], str, list[Told]]
"""A loss: its name, what is known of it, why it failed (or ""), and what its trainings gave."""


def board(
    task: Task, weights: NDArray[np.float64] | None, lines: Sequence[Line], data: str, facts: dict[str, Any]
) -> Record:
    """Write the record of ``lines``, at least two of which did not fail.

    ``data`` is what the rows are called, ``weights`` (n,) are those of the test rows, ``facts`` are to be added.
    """
    able = [line for line in lines if not line[2]]
    names = [name for name, *_ in able]
    first = able[next((names.index(name) for name in _CROSS_ENTROPY if name in names), 0)]
    others = [line for line in able if line is not first]
    table = _losses(lines, weights)
    differences, numbers = _differences(first, others, weights), _numbers(first, weights)
    told = _of(differences, "fair", "cross_entropy")
    order = sorted(range(len(others)), key=lambda place: told["difference"][place])
    lead = order[0]
    low, high = told["low"][lead], told["high"][lead]
    numbers["difference"] = Number(told["difference"][lead], "nats", low, high, numbers["cross_entropy"].n)
    if told["p_adjusted"][lead] is not None:
        numbers["p_value"] = Number(told["p_adjusted"][lead], "1")
    return Record(
        kind="losses",
        title=f"{data}: what {'cross-entropy' if first[0] in _CROSS_ENTROPY else first[0]} wins over other losses",
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        numbers=numbers,
        tables={"losses": table, "differences": differences},
        facts={
            "task": task.kind,
            "classes": list(task.classes),
            **({"low": task.low, "high": task.high} if task.kind == "range" else {}),
            "rows": numbers["cross_entropy"].n,
            "split": "test",
            "baseline": first[0],
            "model": others[lead][0],
            "verdicts": dict(zip(told["loss"], told["verdict"], strict=True)),
            "comparisons": len(others),
            "versions": versions(),
            **facts,
        },
    )


def _of(table: Table, figure: str, measure: str) -> Table:
    pairs = zip(table["figure"], table["measure"], strict=True)
    here = [place for place, pair in enumerate(pairs) if pair == (figure, measure)]
    return {name: [column[i] for i in here] for name, column in table.items()}


def _values(told: Sequence[Told], figure: str, measure: str) -> NDArray[np.float64] | None:
    """The numbers (seeds, rows) of a measure, None where the loss has none."""
    found = [one.costs[figure].get(measure) for one in told]
    return None if any(each is None for each in found) else np.stack([each for each in found if each is not None])


def _folds(line: Line) -> NDArray[np.int64]:
    """By which lesson of each seed a row was judged (seeds, rows): alike for all losses."""
    return np.stack([one.fold for one in line[3]])


def _numbers(line: Line, weights: NDArray[np.float64] | None) -> dict[str, Number]:
    """The fair figures of the loss that others are held against."""
    numbers = {}
    for measure in line[3][0].costs["fair"]:
        values = _values(line[3], "fair", measure)
        assert values is not None
        doubt = _doubt(measure, "fair", line)
        mean = crossed(values, weights, further=doubt, fold=_folds(line)).mean
        numbers[measure] = Number(mean.value, _UNITS.get(measure, "nats"), *mean.interval(), n=mean.rows)
    return numbers


def _losses(lines: Sequence[Line], weights: NDArray[np.float64] | None) -> Table:
    """A line for each loss, the lowest fair cross-entropy first; those that failed last, with the reason."""
    columns = [
        (figure, measure)
        for figure in FIGURES
        for measure in dict.fromkeys(m for *_, told in lines for one in told for m in one.costs[figure])
    ]
    rows = []
    for name, about, trouble, told in lines:
        row: dict[str, Any] = {"loss": name, **about, "trouble": trouble or None}
        for figure, measure in columns:
            values = None if trouble else _values(told, figure, measure)
            mean = None if values is None else float(np.average(values.mean(0), weights=weights))
            row[f"{figure}_{measure}"] = mean
        for name_ in ("temperature", "seconds", "epochs"):
            row[name_] = None if trouble else float(np.mean([getattr(one, name_) for one in told]))
        rows.append(row)
    rows.sort(key=lambda row: (row["trouble"] is not None, row["fair_cross_entropy"] or 0.0))
    return {name: [row[name] for row in rows] for name in rows[0]}


def _differences(first: Line, others: Sequence[Line], weights: NDArray[np.float64] | None) -> Table:
    """A line for each other loss, figure and measure, and for its time: that of the loss minus that of the first."""
    lines: list[dict[str, Any]] = []
    for figure in FIGURES:
        for measure in first[3][0].costs[figure]:
            base = _values(first[3], figure, measure)
            means: list[tuple[str, Crossed, bool]] = []
            for other in others:
                values = _values(other[3], figure, measure)
                if base is None or values is None or _unlike(measure, first, other):
                    continue
                scale = float(max(np.abs(values).max(), np.abs(base).max()))
                doubt = math.hypot(_doubt(measure, figure, first), _doubt(measure, figure, other))
                same = bool(np.max(np.abs(values - base)) <= ROUNDING * scale)
                means.append((other[0], crossed(values - base, weights, scale, doubt, _folds(first)), same))
            lines += _lines(figure, measure, means)
    times = [np.array([one.seconds for one in line[3]]) for line in (first, *others)]
    means = []
    for other, own in zip(others, times[1:], strict=True):
        plain = replace(cluster_mean(own - times[0]), lean=0.0)  # a few seeds know nothing of skewness: the t test
        means.append((other[0], Crossed(plain, 1.0), False))
    lines += _lines("fair", "seconds", means)
    return {name: [line[name] for line in lines] for name in lines[0]}


def _lines(figure: str, measure: str, means: Sequence[tuple[str, Crossed, bool]]) -> list[dict[str, Any]]:
    adjusted = holm([found.mean.p_value for _, found, _ in means])
    lines = []
    for (name, found, same), p in zip(means, adjusted, strict=True):
        low, high = found.mean.interval(0.05 / len(means))
        lines.append(
            {
                "loss": name,
                "figure": figure,
                "measure": measure,
                "difference": found.mean.value,
                "low": low,
                "high": high,
                "p_value": found.mean.p_value,
                "p_adjusted": p,
                "of_seeds": found.of_seeds,
                "verdict": "same" if same else _verdict(found.mean, low, high, measure),
            }
        )
    return lines


def _verdict(mean: ClusterMean, low: float | None, high: float | None, measure: str) -> str:
    """ "better", "worse", or "undecided" where the interval holds 0 or there is none."""
    if low is None or high is None or low <= 0 <= high:
        return "undecided"
    return "better" if (mean.value > 0) == (measure in BETTER_HIGH) else "worse"


def _doubt(measure: str, figure: str, line: Line) -> float:
    """What fitting its calibrated self adds to the error of a miscalibration, seeds alike: they share the rows."""
    return float(np.mean([one.doubt[figure] for one in line[3]])) if measure == "miscalibration" else 0.0


def _unlike(measure: str, one: Line, other: Line) -> bool:
    """Whether a log score is a mass in one and a density in the other."""
    masses = [line[0].startswith("ordinal") for line in (one, other)]
    return measure == "log_score" and masses[0] != masses[1]
