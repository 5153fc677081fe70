"""The pictures of a search for a recipe: what each trial cost, and which settings mattered."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from crossent.record import Record
from crossent.report import digits, search
from crossent.report.label import clip
from crossent.report.svg import ACCENT, INK, MUTED, PAPER, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 370.0
_MOST_SETTINGS = 20
_REACH = 3.0
"""How many times as far above the lowest loss as the middle one a loss may lie before it leaves the picture."""


def trials(record: Record) -> str:
    """Draw the held-out loss of every trial in the order in which they were begun, and the lowest so far.

    A trial judged on all folds is a filled point, a pruned one a hollow one, each with the interval of its difference
    from the best trial; one that failed, was stopped or was lost is a cross at the foot. What lies far above the others
    is an arrow at the top.

    >>> table = {"trial": [0, 1, 2], "state": ["complete", "pruned", "failed"], "cross_entropy": [0.3, 0.4, None],
    ...          "gap": [0.0, 0.1, None], "gap_low": [None, 0.05, None], "gap_high": [None, 0.15, None]}
    >>> trials(Record("fit", "a test", tables={"trials": table})).startswith("<svg")
    True
    >>> trials(Record("fit", "a test without a search"))
    ''
    """
    tried = search.trials(record)
    judged = [trial for trial in tried if search.judged(trial)]
    if not judged:
        return ""
    complete = [trial for trial in judged if trial["state"] == "complete"]
    least, most = _window(judged)
    with drawing(_WIDTH, 295) as figure:
        axes = figure.add_axes((0.15, 0.17, 0.83, 0.68))
        _lowest_so_far(axes, complete, last=max(trial["trial"] for trial in tried))
        for trial in judged:
            _mark(axes, trial, most)
        foot = least - 0.07 * (most - least)
        ended = [trial["trial"] for trial in tried if trial["state"] in search.UNFINISHED]
        if ended:
            axes.plot(ended, [foot] * len(ended), "x", color=MUTED, markersize=6, label="came to nothing")
        span = max(max(trial["trial"] for trial in tried), 1)
        axes.set(xlim=(-0.04 * span, 1.04 * span), ylim=(foot - 0.05 * (most - least) if ended else least, most))
        axes.locator_params(axis="x", nbins=7, integer=True)
        axes.grid(axis="y", linewidth=0.7)
        axes.tick_params(length=0)
        axes.set_xlabel("trial")
        axes.set_title("nats per row held out", loc="left", fontsize=10, color=MUTED, pad=26)
        _legend(axes)
        return inline(figure, "trials", "Held-out cross-entropy of every trial, and the lowest so far")


def importance(record: Record) -> str:
    """Draw how much of what makes a trial good lies in which setting, with what chance alone would give.

    A bar is strong where it is longer than all but one in twenty would be if losses and settings had nothing to do with
    each other: the tick.

    >>> table = {"setting": ["loss", "width"], "importance": [0.8, 0.2], "chance": [0.7, 0.9]}
    >>> importance(Record("fit", "a test", tables={"importance": table})).startswith("<svg")
    True
    """
    table = record.tables.get("importance", {})
    shares = table.get("importance", [])[:_MOST_SETTINGS]
    if not shares:
        return ""
    chances = table.get("chance", [None] * len(shares))
    names = [clip(name, 18) for name in table["setting"][: len(shares)]]
    height = 46 + 22 * len(shares)
    with drawing(_WIDTH, height) as figure:
        margin = 0.04 + 0.0185 * max(map(len, names))
        axes = figure.add_axes((margin, 40 / height, 0.86 - margin, 1 - 42 / height))
        for row, (share, chance, written) in enumerate(zip(shares, chances, digits.shares(shares), strict=False)):
            sure = chance is None or share > chance
            axes.barh(row, 100 * share, 0.62, color=ACCENT, alpha=0.85 if sure else 0.3)
            if chance is not None:
                axes.plot([100 * chance] * 2, [row - 0.4, row + 0.4], color=INK, linewidth=1.2)
            axes.text(1.18, row, written, transform=axes.get_yaxis_transform(), ha="right", va="center")
        axes.set_yticks(range(len(names)), names)
        longest = max(*shares, *(chance for chance in chances if chance is not None), 0.01)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 103 * longest))
        axes.set_xlabel("% of what makes a trial good")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        return inline(figure, "importance", "Importance of each setting for the held-out loss")


def _ends(trial: dict[str, Any]) -> tuple[float, float] | None:
    """The interval of the difference from the best trial, about the trial's own loss."""
    loss, gap, low, high = (trial.get(name) for name in ("cross_entropy", "gap", "gap_low", "gap_high"))
    if loss is None or gap is None or low is None or high is None:
        return None
    return loss + low - gap, loss + high - gap


def _window(judged: list[dict[str, Any]]) -> tuple[float, float]:
    """From below the lowest interval to above the losses that are not far from the others, and their intervals."""
    losses = [trial["cross_entropy"] for trial in judged]
    lowest = min(losses)
    shown = [
        trial for trial in judged if trial["cross_entropy"] <= lowest + _REACH * (statistics.median(losses) - lowest)
    ]
    ends = [trial["cross_entropy"] for trial in shown]
    least, most = min(ends), max(ends)
    room = _REACH * (most - least) or 1e-3
    for low, high in filter(None, map(_ends, shown)):  # one that is far wider than the losses differ is cut
        least, most = min(least, max(low, lowest - room)), max(most, min(high, max(ends) + room))
    margin = 0.06 * (most - least) or 1e-3
    return least - margin, most + margin


def _lowest_so_far(axes: Axes, complete: list[dict[str, Any]], last: int) -> None:
    """A staircase through the trials that were better than all before them, to the last trial."""
    steps: list[tuple[int, float]] = []
    for trial in sorted(complete, key=lambda trial: trial["trial"]):
        if not steps or trial["cross_entropy"] < steps[-1][1]:
            steps.append((trial["trial"], trial["cross_entropy"]))
    if steps:
        x, y = zip(*steps, (last, steps[-1][1]), strict=True)
        axes.step(x, y, where="post", color=ACCENT, linewidth=1.4, label="lowest so far", zorder=1)


def _mark(axes: Axes, trial: dict[str, Any], most: float) -> None:
    place, loss, ends = trial["trial"], trial["cross_entropy"], _ends(trial)
    complete = trial["state"] == "complete"
    colour = ACCENT if complete else MUTED
    if loss > most:
        axes.plot(place, most, "^", color=colour, markersize=5, markerfacecolor=colour if complete else PAPER,
                  clip_on=False, zorder=3)  # fmt: skip
        return
    if ends is not None:
        axes.plot([place, place], ends, color=colour, alpha=0.25, linewidth=4, solid_capstyle="butt", zorder=0)
    name = "judged on all folds" if complete else "pruned"
    axes.plot(place, loss, "o", color=colour, markersize=5, markerfacecolor=colour if complete else PAPER, label=name)


def _legend(axes: Axes) -> None:
    """One entry for each kind of mark, in a row above the picture."""
    handles, labels = axes.get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    axes.legend(
        list(kinds.values()), list(kinds), loc="lower left", bbox_to_anchor=(-0.17, 1.0), ncols=4, fontsize=8.5,
        borderaxespad=0.1, handlelength=1.2, handletextpad=0.4, columnspacing=1.1,
    )  # fmt: skip
