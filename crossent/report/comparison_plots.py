"""The picture of a comparison: the differences with their intervals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from crossent.record import Record
from crossent.report.label import clip
from crossent.report.svg import ACCENT, INK, MUTED, PAPER, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 370.0
_MOST_MODELS, _MOST_SLICES = 20, 20

Line = tuple[str, float, float | None, float | None]


def differences(record: Record) -> str:
    """Draw the difference of each model from the baseline, and of the slices that contribute most, about 0.

    A point is filled where its interval misses 0: there the rows can tell.

    >>> models = {"model": ["new", "old"], "difference": [-0.2, None], "difference_low": [-0.3, None]}
    >>> models["difference_high"] = [-0.1, None]
    >>> differences(Record("comparison", "a test", tables={"models": models})).startswith("<svg")
    True
    """
    if record.kind != "comparison":
        return ""
    models = _lines(record, "models", "model", ("difference_low", "difference_high"))[:_MOST_MODELS]
    table = record.tables.get("slices", {})
    slices = _lines(record, "slices", "slice", ("low", "high"))
    if len(set(table.get("model", []))) > 1 or not table:
        slices = []  # several models on every slice are a table, not a picture
    else:
        weight = [abs(cell) for cell in table["contribution"]]
        kept = sorted(sorted(range(len(slices)), key=lambda i: -weight[i])[:_MOST_SLICES])
        slices = [slices[i] for i in kept]
    lines = [*models, *slices]
    if not any(math.isfinite(line[1]) for line in lines):
        return ""
    height = 46 + 22 * len(lines) + (10 if slices else 0)
    with drawing(_WIDTH, height) as figure:
        names = [clip(line[0], 18) for line in lines]
        margin = 0.04 + 0.0185 * max(map(len, names))
        axes = figure.add_axes((margin, 40 / height, 0.97 - margin, 1 - 42 / height))
        places = [row + (0.45 if row >= len(models) else 0.0) for row in range(len(lines))]
        for row, (_, value, low, high) in zip(places, lines, strict=True):
            sure = low is not None and high is not None and not low <= 0 <= high
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=ACCENT, alpha=0.35, linewidth=5, solid_capstyle="butt")
            axes.plot(value, row, "o", markersize=6.5, color=ACCENT, markerfacecolor=ACCENT if sure else PAPER)
        about_zero(axes, names, places, window(lines))
        axes.set_xlabel("nats per row, against the baseline")
        return inline(figure, "differences", "Difference of each model from the baseline, with its interval")


def about_zero(axes: Axes, names: list[str], places: list[float], ends: tuple[float, float]) -> None:
    """Make axes whose rows, named, stand at ``places`` from above, with a line at 0."""
    axes.set_xlim(*ends)
    axes.axvline(0.0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=0)
    axes.set_yticks(places, names)
    axes.set(ylim=(places[-1] + 0.6, -0.6))
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="x", linewidth=0.7)


def window(lines: list[Line]) -> tuple[float, float]:
    """What the picture shows: all points, and all intervals but those several times as wide as most, which leave it."""
    widths = sorted(high - low for _, _, low, high in lines if low is not None and high is not None)
    limit = 4 * widths[len(widths) // 2] if widths else 0.0
    ends = [0.0, *(value for _, value, _, _ in lines)]
    ends += [end for _, _, low, high in lines if low is not None and high is not None and high - low <= limit
             for end in (low, high)]  # fmt: skip
    least, most = min(ends), max(ends)
    margin = 0.05 * (most - least) or 1.0  # where nothing differs: an axis in billionths would look like a figure
    return least - margin, most + margin


def _lines(record: Record, table: str, name: str, ends: tuple[str, str]) -> list[Line]:
    cells = record.tables.get(table, {})
    columns = [cells.get(column, []) for column in (name, "difference", *ends)]
    return [(str(n), d, low, high) for n, d, low, high in zip(*columns, strict=False) if d is not None]
