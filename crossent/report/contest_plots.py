"""The pictures of a comparison of losses: differences from the first one, fair and raw, with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crossent.record import Record
from crossent.report.comparison_plots import Line, about_zero, window
from crossent.report.contest import SPOKEN, differences
from crossent.report.label import clip, printable
from crossent.report.svg import ACCENT, MUTED, PAPER, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _STEP, _AROUND = 370.0, 30.0, 54.0  # points: of the picture, of a loss, and of the axis with its name
_MOST = 20
_BESIDE = ("accuracy", "brier", "mae", "rmse", "miscalibration", "seconds")


def log_loss(record: Record) -> str:
    """Draw the differences of log loss: fair ones thick, raw ones thin below them.

    A point is filled where its interval misses 0: there the data can tell.

    >>> told = {"loss": ["brier"], "figure": ["fair"], "measure": ["cross_entropy"], "difference": [0.02],
    ...         "low": [0.01], "high": [0.03]}
    >>> log_loss(Record("losses", "a test", tables={"differences": told})).startswith("<svg")
    True
    """
    return _drawn(record, ("cross_entropy",), "losses", "Difference of log loss of each loss, fair and raw")


def beside(record: Record) -> str:
    """Draw the differences of all other measures, one panel below the other."""
    return _drawn(record, _BESIDE, "beside", "Differences in other measures of each loss, fair and raw")


def _drawn(record: Record, measures: tuple[str, ...], name: str, title: str) -> str:
    panels = [(measure, lines) for measure in measures if (lines := differences(record, "fair", measure)[:_MOST])]
    if not panels:
        return ""
    sizes = [_AROUND + _STEP * len(lines) for _, lines in panels]
    longest = max(len(clip(line["loss"], 18)) for _, lines in panels for line in lines)
    margin = 0.04 + 0.0185 * longest
    height, above = sum(sizes), 0.0
    with drawing(_WIDTH, height) as figure:
        for (measure, lines), size in zip(panels, sizes, strict=True):
            bottom = 1 - (above + size - 46) / height
            axes = figure.add_axes((margin, bottom, 0.97 - margin, (size - _AROUND) / height))
            _panel(axes, lines, {line["loss"]: line for line in differences(record, "raw", measure)})
            against = f"minus that of {clip(printable(record.facts.get('baseline')), 14)}"
            unit = " (nats)" if measure in ("cross_entropy", "miscalibration") else ""
            axes.set_xlabel(f"{SPOKEN[measure]}{unit}, {against}")
            above += size
        return inline(figure, name, title)


def _panel(axes: Axes, fair: list[dict[str, Any]], raw: dict[str, dict[str, Any]]) -> None:
    lines: list[Line] = [(line["loss"], line["difference"], line["low"], line["high"]) for line in fair]
    ends = window(lines)
    for place, line in enumerate(fair):
        _mark(axes, place - (0.14 if raw else 0.0), line, ACCENT, 5.0, ends)
        if line["loss"] in raw:
            _mark(axes, place + 0.2, raw[line["loss"]], MUTED, 2.0, ends)
    about_zero(axes, [clip(line["loss"], 18) for line in fair], [float(place) for place in range(len(fair))], ends)


def _mark(axes: Axes, place: float, line: dict[str, Any], colour: str, width: float, ends: tuple[float, float]) -> None:
    """A point with its interval; one that leaves the picture is an arrow at its edge."""
    value, low, high = line["difference"], line["low"], line["high"]
    least, most = ends
    if low is not None and high is not None:
        axes.plot(
            [max(low, least), min(high, most)], [place] * 2, color=colour, alpha=0.35, lw=width, solid_capstyle="butt"
        )
    if not least <= value <= most:
        inside = most - 0.015 * (most - least) if value > most else least + 0.015 * (most - least)
        axes.plot(inside, place, ">" if value > most else "<", markersize=5, color=colour)
        return
    sure = low is not None and high is not None and not low <= 0 <= high
    axes.plot(value, place, "o", markersize=1.5 + width, color=colour, markerfacecolor=colour if sure else PAPER)
