"""Class by class: what its rows cost, what the model knows of them, and whether its probability means what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.cells import COARSE, Cells
from crossent.measure.sums.folds import Folds
from crossent.measure.sums.sample import Sample
from crossent.measure.values.decomposition import Calibrated, parts_on
from crossent.measure.values.isotonic import cost, stated
from crossent.measure.values.means import Evidence, cross_entropy, errors, mean_of, perplexity
from crossent.measure.values.per_byte import bits_per_byte
from crossent.measure.values.reliability import smooth_calibration_error
from crossent.measure.values.spread import Spread, clustered, spread_on
from crossent.record import Number, Table

DRAWS = 60
_Float = NDArray[np.float64]


def per_class(
    of: Evidence,
    classes: tuple[str, ...],
    cells: Cells | None = None,
    floor: float | None = None,
    folds: Folds | None = None,
    bins: _Float | None = None,
) -> Table:
    """Give one line per class, in the order of the columns.

    ``rows`` (of weights, and of shares, their sum) and ``share`` of the labels. Over the rows of the class:
    ``cross_entropy`` in nats with ``low`` and ``high``; ``recall``, the share of them that was predicted as it;
    ``perplexity``; ``label_entropy``, what its label costs someone who knows the frequencies alone, with its bias,
    ``information_gained``, that less the cross-entropy, all in bits, and ``skill``, their ratio; ``top_3_accuracy``,
    ``top_5_accuracy``, ``brier``, ``kl_divergence`` where labels are distributions, ``bits_per_byte`` where bytes are
    known; ``impossible_rows``. Over all rows: ``mean_probability`` that the class was given, to be held beside
    ``share``; ``precision``, the share of rows predicted as it that were; and, of more than two classes, by class
    against the rest, ``discrimination``, ``miscalibration``, ``ece`` and ``smooth_ece`` (of two classes each is that of
    all rows). ``…_low`` and ``…_high`` are the ends of intervals, None where there is none; a figure that would be 0/0
    is None.

    Weighed with ``share``, cross-entropy, label entropy and its bias, information gained, recall, top-k, Brier and KL
    divergence add up to those of all rows. A label that is a distribution belongs to every class by its share, where it
    costs −log p_c.
    """
    label, right, predicted = (of.sums.total(name, of.which) for name in ("label", "right", "predicted"))
    counted = of.sums.count("weighted", of.which) == 0 and not of.sums.layout.soft
    own = of.sums.of_classes()
    shares, lost = of.frequencies, _lost_entropy(of)
    figures = [
        _figures(of, Evidence(own, c), float(shares[c]), float(lost[c]), folds) if x > 0 else {}
        for c, x in enumerate(label)
    ]
    if of.groups is not None and folds is None:  # too many classes: their groups were not kept
        figures = [{name: replace(x, low=None, high=None) for name, x in line.items()} for line in figures]
    loss, nothing = columns(figures, ("cross_entropy",)), [None] * len(classes)
    table: Table = {
        "class": list(classes),
        "rows": [int(x) for x in label] if counted else label.tolist(),
        "share": shares.tolist(),
        "cross_entropy": loss["cross_entropy"],
        "low": loss.get("cross_entropy_low", nothing),
        "high": loss.get("cross_entropy_high", nothing),
        "mean_probability": (of.sums.total("probability", of.which) / of.weight).tolist(),
        "precision": [float(a / b) if b else None for a, b in zip(right, predicted, strict=True)],
    }
    table |= columns(figures, tuple(name for name in _ORDER if any(name in line for line in figures)))
    table["impossible_rows"] = own.counts[:, 1].tolist()
    if cells is not None:
        drawn = Gathered.of(of)
        parts = [one_class(cells[c], c, floor, drawn) for c in range(len(classes))]
        table |= columns(parts, ("discrimination", "miscalibration"))
        if bins is not None:
            table["ece"] = (np.abs(bins).sum(axis=1) / of.weight).tolist()
        table["smooth_ece"] = [smooth_calibration_error(cells[c]) for c in range(len(classes))]
    return table


_ORDER = (
    "recall", "perplexity", "label_entropy", "label_entropy_bias", "information_gained", "skill", "top_3_accuracy",
    "top_5_accuracy", "brier", "kl_divergence", "bits_per_byte",
)  # fmt: skip


def columns(lines: list[dict[str, Number]], names: tuple[str, ...]) -> Table:
    """Write numbers as columns of their values, and of their ends where one of them has an interval."""
    table: Table = {}
    for name in names:
        found = [line.get(name) for line in lines]
        table[name] = [None if number is None else number.value for number in found]
        if any(number is not None and number.low is not None for number in found):
            table[f"{name}_low"] = [None if number is None else number.low for number in found]
            table[f"{name}_high"] = [None if number is None else number.high for number in found]
    return table


def _lost_entropy(of: Evidence) -> _Float:
    """By class, what its label entropy is off on average, nats, weighed so that classes add up (``entropy_bias``)."""
    f = of.frequencies
    return -np.divide(of.variances_of_frequencies(), 2 * f * f, out=np.zeros(f.size), where=f > 0)


def _figures(whole: Evidence, of: Evidence, share: float, bias: float, folds: Folds | None) -> dict[str, Number]:
    """The figures of a class over its own rows; ``share`` is its share of the labels, ``bias`` of their entropy."""
    soft = whole.sums.layout.soft
    of = of if folds is None else replace(of, groups=folds.groups(of.which))
    loss, entropy = cross_entropy(of), -math.log(share) + 0.0
    found = {"cross_entropy": loss, "perplexity": perplexity(loss)}
    found["label_entropy"] = Number(entropy, "nats", n=of.n).to("bits")
    found["label_entropy_bias"] = Number(bias, "nats", n=of.n).to("bits")
    found["information_gained"] = Number(entropy - loss.value, "nats", n=of.n).to("bits")
    if entropy > 0:
        found["skill"] = Number(1 - loss.value / entropy, "share", n=of.n)
    found |= errors(of, "classes", classes=whole.sums.layout.classes)
    found["recall"] = found.pop("accuracy")
    if soft:
        infinite = whole.sums.kept("class_seen")[of.which, 2] > 0
        found["kl_divergence"] = Number(math.inf, "nats", n=of.n) if infinite else mean_of(of, "divergence", "nats")
    return found | bits_per_byte(of)


@dataclass(frozen=True, eq=False)
class Gathered:
    """The rows of the sample by their groups: what the cells of a class do not know.

    ``group`` (rows,) from 0. The sample holds ``fraction`` of all rows. Of sums r over rows, Σ_g (Σ r)² exceeds Σ r² by
    the products of pairs within groups; a pair is in the sample with probability fraction², a row with fraction, so
    that the ratio of the two over all rows is estimated by 1 + (Σ_g (Σ r)² − Σ r²) / (fraction Σ r²) (Horvitz &
    Thompson 1952). Of a sample of all rows it is the ratio itself.
    """

    sample: Sample
    group: NDArray[np.int64]
    fraction: float

    @classmethod
    def of(cls, of: Evidence) -> Gathered | None:
        """Give them; None for rows that are in no groups."""
        if of.groups is None or of.sample is None:
            return None
        group = np.unique(of.sample.groups, return_inverse=True)[1].astype(np.int64)
        return cls(of.sample, group, len(of.sample) / of.n)

    def labels(self, c: int) -> tuple[_Float, _Float]:
        """The probability of a class and its label, 0 to 1, by row."""
        y = self.sample.labels
        own: _Float = np.asarray(y[:, c] if y.ndim == 2 else y == c, np.float64)
        return np.exp(self.sample.logs[:, c]), own

    def design(self, c: int) -> Callable[[Cells, _Float, float], float]:
        """How much more labels of whole groups scatter about a curve, cell by cell (``decomposition``), 1 or more."""
        p, y = self.labels(c)
        w = self.sample.weights

        def of(cells: Cells, curve: _Float, scatter: float) -> float:
            q = np.interp(p, stated(cells), curve)
            both = np.unique(self.group * len(COARSE) + COARSE.place(p, 1 - p), return_inverse=True)[1]
            alone = float(np.sum(w * w * q * (1 - q))) * scatter
            many = int(self.group.max()) + 1
            together = float(np.sum(np.bincount(both, w * (y - q)) ** 2)) * many / max(many - 1, 1)
            return max(1.0, 1 + (together - alone) / (self.fraction * alone)) if alone > 0 else 1.0

        return of

    def spread(self, c: int, cells: Cells, a: _Float, b: _Float, alone: Spread | None, labels: bool) -> Spread | None:
        """The spread of terms that are ``a`` (cells,) for rows of other classes and ``b`` for those of this one, in
        groups; ``alone`` is that of all rows by themselves.
        """
        p, y = self.labels(c)
        at, w = stated(cells), self.sample.weights
        zero, one = np.interp(p, at, a), np.interp(p, at, b)
        terms = zero + (one - zero) * y
        many = int(self.group.max()) + 1
        r = w * (terms - float(np.sum(w * terms) / np.sum(w)))
        sums, weight = (np.bincount(self.group, x, minlength=many).astype(np.float64) for x in (r, w))
        found = clustered(sums, weight, float(np.sum((w * terms) ** 2)), differences=labels and cells.hard)
        if found is None or alone is None or self.fraction >= 1:
            return found
        single = float(np.sum(r * r))
        ratio = max(1.0, 1 + (found.second - single) / (self.fraction * single))
        second = alone.second * ratio
        # As skewed as the groups are in the sample.
        return Spread(second, found.third * (second / found.second) ** 1.5, alone.total, found.freedom)


def one_class(cells: Cells, c: int, floor: float | None, drawn: Gathered | None) -> dict[str, Number]:
    """Give discrimination and miscalibration of class ``c`` against the rest, nats, from its own cells.

    Cells are coarse here, so that the model is taken by the mean prediction of each cell. Rows in groups are those of
    the sample, ``drawn``. Nothing without rows.
    """
    if not np.any(cells.weight > 0):
        return {}
    found = Calibrated.of(cells, None if drawn is None else drawn.design(c), draws=DRAWS)
    cells = found.cells
    total, share = float(cells.weight.sum()), float(cells.label.sum() / cells.weight.sum())
    # Without a floor no label met a probability of 0; a 1 that is a rounded logarithm still has to cost something.
    least = np.finfo(float).eps / 2 if floor is None else floor
    p = np.clip(stated(cells), 0.0 if floor is None else floor, 1 - least)
    own = -np.log(np.array([1 - share, share]), out=np.zeros(2), where=np.array([share < 1, share > 0]))
    effective = float(total**2 / cells.squares[0].sum())

    def spread(a: _Float, b: _Float, labels: bool) -> Spread | None:
        alone = spread_on(cells, a, b, effective - 1)
        return alone if drawn is None else drawn.spread(c, cells, a, b, alone, labels)

    entropy, loss = float(own @ [1 - share, share]), cost(cells.weight, cells.label, p) / total
    return parts_on(found, loss, entropy, own, floor, spread, round(effective), DRAWS)[0]
