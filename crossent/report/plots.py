"""The pictures of a report: learning curves, reliability, decomposition, cross-entropy by class, concentration.

Each takes a record and gives an SVG element for the inside of a page, or "" where the record holds nothing to
draw. The figures are small, so that on a phone their letters are as large as the page's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from crossent.record import Curve, Record
from crossent.report import digits
from crossent.report.label import clip
from crossent.report.svg import ACCENT, INK, LINE, MUTED, PAPER, drawing, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 370.0
_MOST_CLASSES = 20
_FEW = 5.0  # per cent of rows whose share of the loss is written beside the curve
_WIDE_RANGE = 12.0  # ratio of losses from which a curve reads better on a logarithmic scale


class Step(NamedTuple):
    """A step of the decomposition: a bar from ``start`` to ``end``, what it is called, how it is drawn."""

    name: str
    start: float
    end: float
    sign: str = ""
    colour: str = MUTED
    strength: float = 0.45


def learning(record: Record) -> str:
    """Draw cross-entropy against epochs, for training and validation, with the epoch that was kept.

    >>> curve = Curve([1, 2, 3], [0.9, 0.5, 0.4], "epoch", "cross-entropy")
    >>> learning(Record("fit", "a test", curves={"training": curve})).startswith("<svg")
    True
    >>> learning(Record("fit", "a test without curves"))
    ''
    """
    curves = {name: _finite(record.curves.get(name)) for name in ("training", "validation")}
    losses = [loss for points in curves.values() for _, loss in points]
    if not losses:
        return ""
    with drawing(_WIDTH, 265) as figure:
        axes = figure.add_axes((0.13, 0.17, 0.85, 0.7))
        for name, colour, width in (("training", MUTED, 1.5), ("validation", ACCENT, 2.2)):
            if points := curves[name]:
                marker = "o" if len(points) == 1 else None
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, linewidth=width, marker=marker, label=name)
        _mark_best(axes, record.facts.get("best_epoch"), dict(curves["validation"]))
        if min(losses) > 0 and max(losses) / min(losses) > _WIDE_RANGE:
            _go_logarithmic(axes)
        else:
            axes.set_ylim(bottom=min(0.0, min(losses)))
        _whole_epochs(axes)
        axes.grid(axis="y", linewidth=0.7)
        axes.tick_params(length=0)
        axes.set_xlabel("epoch")
        axes.set_title("nats per row", loc="left", fontsize=10, color=MUTED, pad=10)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handlelength=1.4)
        return inline(figure, "learning", "Cross-entropy of training and validation rows by epoch")


def reliability(record: Record) -> str:
    """Draw observed frequency against prediction with 95 % bands, over a small histogram of row counts.

    A point is filled where its band misses the diagonal: there the rows contradict the model. The isotonic curve of all
    rows is drawn too, and the grey band in which that of a calibrated model would lie, where the record has them.
    """
    curve = record.curves.get("reliability")
    spots = _spots(curve)
    if curve is None or not spots:
        return ""
    low, high = _window([value for x, y, lowest, highest, _ in spots for value in (x, y, lowest, highest)])
    counted = any(count for *_, count in spots)
    height = 395 if counted else 340
    with drawing(_WIDTH, height) as figure:
        # The upper axes are square, and the lower ones take what is left.
        left, side = 0.15, 0.82
        bottom = 0.98 - side * _WIDTH / height
        axes = figure.add_axes((left, bottom, side, 0.98 - bottom))
        null, isotonic = record.curves.get("reliability_null"), record.curves.get("recalibrated")
        if null is not None and null.low is not None and null.high is not None:
            axes.fill_between(null.x, null.low, null.high, color=MUTED, alpha=0.16, linewidth=0)
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(4, 3))
        if isotonic is not None:
            axes.plot(isotonic.x, isotonic.y, color=ACCENT, linewidth=1.1, alpha=0.8)
        for x, y, lowest, highest, _ in spots:
            axes.plot([x, x], [lowest, highest], color=ACCENT, alpha=0.35, linewidth=5, solid_capstyle="butt")
            agrees = curve.low is None or lowest <= x <= highest  # without a band nothing is contradicted
            axes.plot(x, y, "o", markersize=6.5, color=ACCENT, markerfacecolor=PAPER if agrees else ACCENT)
        margin = 0.02 * (high - low)
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), ylabel=clip(curve.y_name, 45))
        axes.set_yticks(axes.get_xticks())
        axes.set_ylim(low - margin, high + margin)
        axes.grid(linewidth=0.7)
        axes.tick_params(length=0)
        if counted:
            axes.tick_params(labelbottom=False)
            _count_rows(figure.add_axes((left, 0.12, side, bottom - 0.15), sharex=axes), spots, curve.x_name)
        else:
            axes.set_xlabel(clip(curve.x_name, 50))
        return inline(figure, "reliability", "Observed frequency against prediction, by groups of rows")


def decomposition(record: Record) -> str:
    """Draw uncertainty − discrimination + miscalibration = cross-entropy as steps, in nats.

    A good model's cross-entropy is a sliver of the uncertainty: then the last steps are drawn again, enlarged.
    """
    names = ("uncertainty", "discrimination", "miscalibration")
    parts = [record.numbers[name] for name in names if name in record.numbers]
    if len(parts) < len(names) or not all(math.isfinite(part.value) for part in parts):
        return ""
    uncertainty, discrimination, miscalibration = parts
    left = uncertainty.value - discrimination.value
    total = left + miscalibration.value
    whisker = None
    if miscalibration.low is not None and miscalibration.high is not None:
        whisker = Step("", left + miscalibration.low, left + miscalibration.high)
    # With impossible rows these are the parts of the floored cross-entropy, the other one being infinite.
    loss = record.numbers.get("cross_entropy_floored") or record.numbers.get("cross_entropy")
    places = digits.decimals(total, loss.low, loss.high) if loss is not None else digits.decimals(total)
    first = [
        Step("uncertainty", 0.0, uncertainty.value),
        Step("discrimination", uncertainty.value, left, "−", ACCENT, 0.45),
    ]
    waste = Step("miscalibration", left, total, "+", INK, 0.7)
    result = Step("cross-entropy", 0.0, total, "=", ACCENT, 1.0)
    enlarge = max(left, total) < 0.2 * uncertainty.value
    with drawing(_WIDTH, 270 if enlarge else 170) as figure:
        if enlarge:
            rest = Step("left to know", 0.0, left, "=")
            whole = _stairs(figure, (0.62, 0.38), [*first, result], None, places)
            part = _stairs(figure, (0.0, 0.38), [rest, waste, result], whisker, places)
            _shade_between(figure, whole, part)
        else:
            _stairs(figure, (0.0, 1.0), [*first, waste, result], whisker, places)
        title = "Cross-entropy as uncertainty, less discrimination, plus miscalibration"
        return inline(figure, "decomposition", title)


def classes(record: Record) -> str:
    """Draw the cross-entropy of each class, the dearest first, beside that of all rows."""
    table = record.tables.get("per_class", {})
    losses = zip(table.get("class", []), table.get("cross_entropy", []), strict=False)
    known = [(name, loss) for name, loss in losses if loss is not None and not math.isnan(loss)]
    if not known:
        return ""
    known = sorted(known, key=lambda pair: -pair[1])[:_MOST_CLASSES]
    overall = record.numbers.get("cross_entropy")
    finite = [loss for _, loss in known if math.isfinite(loss)]
    if overall is not None and math.isfinite(overall.value):
        finite.append(overall.value)
    longest = max(finite, default=0.0) or 1.0
    names = [clip(name, 18) for name, _ in known]
    height = 46 + 22 * len(known)
    with drawing(_WIDTH, height) as figure:
        margin = 0.04 + 0.0185 * max(map(len, names))
        axes = figure.add_axes((margin, 40 / height, 0.86 - margin, 1 - 42 / height))
        written = digits.column([loss for _, loss in known])
        for row, ((_, loss), value) in enumerate(zip(known, written, strict=True)):
            bar = min(loss, longest * 1.03)  # an infinite bar is a pale one that leaves the picture
            axes.barh(row, bar, 0.62, color=ACCENT, alpha=0.85 if loss <= longest else 0.3)
            axes.text(1.18, row, value, transform=axes.get_yaxis_transform(), ha="right", va="center")
        axes.set_yticks(range(len(known)), names)
        axes.set(ylim=(len(known) - 0.4, -0.6), xlim=(0, longest * 1.03))
        if overall is not None and math.isfinite(overall.value):
            axes.axvline(overall.value, color=INK, linewidth=1, dashes=(4, 3))
        axes.set_xlabel("nats per row of the class")
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", labelcolor=INK)
        return inline(figure, "classes", "Cross-entropy of each class, the most expensive first")


def concentration(record: Record) -> str:
    """Draw how much of the loss, or of what two models differ by, falls on how few rows.

    >>> curve = Curve([0.0, 0.05, 1.0], [0.0, 0.6, 1.0], "share of rows", "share of the loss")
    >>> concentration(Record("evaluation", "a test", curves={"concentration": curve})).startswith("<svg")
    True
    """
    curve = record.curves.get("concentration")
    if curve is None:
        return ""
    what = "what differs" if record.kind == "comparison" else "the loss"
    with drawing(_WIDTH, 265) as figure:
        axes = figure.add_axes((0.15, 0.19, 0.8, 0.76))
        x, y = ([100 * share for share in shares] for shares in (curve.x, curve.y))
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, dashes=(4, 3))
        axes.plot(x, y, color=ACCENT, linewidth=2.2)
        few = _at(x, y, _FEW)
        axes.plot(_FEW, few, "o", color=ACCENT, markersize=7, markeredgecolor=PAPER)
        axes.text(99, 5, f"{_FEW:g} % of the rows carry {few:.0f} %", ha="right")
        first = "those that differ most first" if record.kind == "comparison" else "the costliest first"
        axes.set(xlim=(0, 102), ylim=(0, 102), xlabel=f"% of rows, {first}", ylabel=f"% of {what}")
        axes.grid(linewidth=0.7)
        axes.tick_params(length=0)
        return inline(figure, "concentration", f"Share of rows against their share of {what}")


def _at(x: list[float], y: list[float], wanted: float) -> float:
    """The height of a curve that is straight between its points."""
    for (left, low), (right, high) in zip(zip(x, y, strict=True), zip(x[1:], y[1:], strict=True), strict=False):
        if right >= wanted:
            return low + (high - low) * (wanted - left) / (right - left) if right > left else high
    return y[-1]


def _finite(curve: Curve | None) -> list[tuple[float, float]]:
    pairs = zip(curve.x, curve.y, strict=False) if curve is not None else ()
    return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


def _mark_best(axes: Axes, epoch: object, validation: dict[float, float]) -> None:
    if not isinstance(epoch, (int, float)):
        return
    axes.axvline(epoch, color=MUTED, linewidth=1, dashes=(4, 3), zorder=0)
    if epoch in validation:
        axes.plot(epoch, validation[epoch], "o", color=ACCENT, markersize=7, markeredgecolor=PAPER)


def _go_logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _whole_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def _spots(curve: Curve | None) -> list[tuple[float, float, float, float, int]]:
    """Points as (x, y, low, high, rows); a band that is missing is the point itself."""
    if curve is None:
        return []
    rows = curve.n or [0] * len(curve.x)
    spots = zip(curve.x, curve.y, curve.low or curve.y, curve.high or curve.y, rows, strict=False)
    return [spot for spot in spots if all(math.isfinite(value) for value in spot)]


def _window(values: list[float]) -> tuple[float, float]:
    """The part of 0 to 1 that holds all values: all of it, unless they fill only a small corner."""
    low, high = max(min(values), 0.0), min(max(values), 1.0)
    if high - low > 0.5:
        return 0.0, 1.0
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-4)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return max(low, 0.0), min(max(high, low + step), 1.0)


def _count_rows(axes: Axes, spots: list[tuple[float, float, float, float, int]], name: str) -> None:
    counts = [spot[4] for spot in spots]
    axes.vlines([spot[0] for spot in spots], 0, counts, color=MUTED, linewidth=5)
    axes.set(ylim=(0, max(counts) * 1.15), xlabel=clip(name, 50), ylabel="rows")
    axes.set_yticks([max(counts)], [f"{max(counts):,}"])
    axes.tick_params(length=0)


def _stairs(figure: Figure, place: tuple[float, float], steps: list[Step], whisker: Step | None, places: int) -> Axes:
    """Draw the steps as bars, each beginning where the one above ended; the last but one may have whiskers."""
    axes = figure.add_axes((0.29, place[0], 0.53, place[1]))
    ends = [end for step in [*steps, *([whisker] if whisker else [])] for end in (step.start, step.end)]
    axes.set(xlim=(min(0.0, *ends), max(*ends, 1e-9)), ylim=(len(steps) - 0.5, -0.5))
    beside = axes.get_yaxis_transform()
    for row, step in enumerate(steps):
        width = step.end - step.start
        axes.barh(row, width, 0.58, step.start, color=step.colour, alpha=step.strength, linewidth=0)
        if row + 1 < len(steps):
            axes.plot([step.end, step.end], [row - 0.29, row + 1.29], color=MUTED, linewidth=0.8)
        amount = digits.spell(-width if step.sign == "−" else width, places)
        axes.text(-0.04, row, step.name, transform=beside, ha="right", va="center")
        axes.text(1.05, row, step.sign, transform=beside, ha="center", va="center", color=MUTED)
        axes.text(1.335, row, amount, transform=beside, ha="right", va="center")
    if whisker:
        ends, row = [whisker.start, whisker.end], len(steps) - 2
        axes.plot(ends, [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
    axes.axvline(0.0, color=LINE, linewidth=1)
    axes.set_axis_off()
    return axes


def _shade_between(figure: Figure, whole: Axes, part: Axes) -> None:
    """Shade the way from the stretch of the upper scale that the lower one enlarges."""
    from matplotlib.patches import Polygon

    def place(axes: Axes, x: float, y: float) -> tuple[float, float]:
        across, up = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
        return across, up

    low, high = part.get_xlim()
    bottom, top = whole.get_ylim()[0], part.get_ylim()[1]
    corners = [(whole, low, bottom), (whole, high, bottom), (part, high, top), (part, low, top)]
    shade = Polygon([place(*corner) for corner in corners], color=LINE, alpha=0.5, linewidth=0)
    shade.set_transform(figure.transFigure)
    figure.add_artist(shade)
