"""The pictures of a comparison: the differences with their intervals, and how few rows they rest on."""

from __future__ import annotations

import math

from crossent.record import Record
from crossent.report.label import clip
from crossent.report.svg import ACCENT, INK, MUTED, PAPER, drawing, inline

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
        axes.axvline(0.0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=0)
        axes.set_yticks(places, names)
        axes.set(ylim=(places[-1] + 0.6, -0.6))
        axes.set_xlabel("nats per row, against the baseline")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(axis="x", linewidth=0.7)
        return inline(figure, "differences", "Difference of each model from the baseline, with its interval")


def concentration(record: Record) -> str:
    """Draw the share of rows against their share of all that the two models differ by."""
    curve = record.curves.get("concentration")
    if curve is None or record.kind != "comparison":
        return ""
    with drawing(_WIDTH, 265) as figure:
        axes = figure.add_axes((0.15, 0.19, 0.8, 0.76))
        x, y = ([100 * share for share in shares] for shares in (curve.x, curve.y))
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, dashes=(4, 3))
        axes.plot(x, y, color=ACCENT, linewidth=2.2)
        near = min(range(len(x)), key=lambda i: abs(x[i] - 5))
        axes.plot(x[near], y[near], "o", color=ACCENT, markersize=7, markeredgecolor=PAPER)
        axes.text(x[near] + 4, y[near] - 4, f"{x[near]:.3g} % of rows: {y[near]:.0f} %", va="top")
        axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="% of rows", ylabel="% of what differs")
        axes.grid(linewidth=0.7)
        axes.tick_params(length=0)
        return inline(figure, "concentration", "Share of rows against their share of what the models differ by")


def _lines(record: Record, table: str, name: str, ends: tuple[str, str]) -> list[Line]:
    cells = record.tables.get(table, {})
    columns = [cells.get(column, []) for column in (name, "difference", *ends)]
    return [(str(n), d, low, high) for n, d, low, high in zip(*columns, strict=False) if d is not None]
