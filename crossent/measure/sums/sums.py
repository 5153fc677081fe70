"""What the rows of a set add up to: everything about them but the shape of the predictions.

A mean and its interval need the sums of the first three powers of a row's cost and of its weight: w, wc, w², w²c, …,
w³c³ (``POWERS``). Kept apart by class they also give those of any difference c − v(class) with v found only at the end,
such as information gained, where v is −log of the class's frequency. So one pass is enough, and two sets of sums are
merged by adding them.

Costs are kept in three: ``USUAL``, rows that the floor does not touch; ``RARE``, rows below the floor whose cost is
finite, as they are; ``FLOORED``, all rows below the floor, with the floor. Usual + rare is the exact sum, usual +
floored that of the floored probabilities.

What a class has to itself are means over the rows labelled with it. Of labels that are classes these are the same sums,
kept apart by class; a label that is a distribution belongs to each class by its share, y_c, and the sums of a class are
those of rows of the weight w y_c, with −log p_c for the cost (``class_…``). Either way the figures of the classes,
weighed by their shares of the labels, add up to those of all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.compensated import Compensated, Split, of_columns
from crossent.measure.sums.likelihood import TOPS, Rows, distributions

POWERS = ((1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3))
"""Powers of the weight and of the quantity that are summed."""

USUAL, RARE, FLOORED = range(3)
_Float = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Where each sum stands: ``classes`` columns of probability, labels that are classes or, ``soft``, shares.

    ``by_class`` says that every class has figures of its own; slices do without.
    """

    classes: int
    soft: bool
    by_class: bool = True

    @property
    def kept_apart(self) -> int:
        """How many classes the moments of costs are kept apart by; a distribution belongs to no class."""
        return 1 if self.soft else self.classes

    @property
    def lines(self) -> int:
        """How many classes the sums named in ``BY_CLASS`` are kept apart by."""
        return self.kept_apart if self.by_class else 1

    @cache  # noqa: B019 - a handful of layouts, asked for a dozen times for each class
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The sums by name."""
        k, powers, lines = self.classes, len(POWERS), self.lines
        shares = k if self.soft and self.by_class else 0
        return {
            "cost": (3, self.kept_apart, powers),
            "label": (k,),
            "probability": (k,),
            "predicted": (k,),
            "right": (k,),
            "own": (k,),  # Σ w p(label) by label, of labels that are classes
            "squared": (lines, powers),
            "absolute": (powers,),
            "hit": (lines, 3),  # Σ wh, Σ w²h, Σ w²h²
            "top": (lines, len(TOPS)),
            "truth": (powers,),  # entropy of labels that are distributions
            "divergence": (powers,),  # finite cost − that entropy
            "bytes": (lines, 3),  # Σ wb, Σ w²b², Σ w²bc
            "seen": (lines, 2),  # rows, impossible ones among them
            "class_cost": (shares, powers),
            "class_squared": (shares, powers),
            "class_divergence": (shares, powers),
            "class_hit": (shares, 3),
            "class_top": (shares, len(TOPS)),
            "class_bytes": (shares, 3),
            "class_seen": (shares, 3),  # rows with a share, those of p_c = 0, those with an infinite cost
        }

    @cache  # noqa: B019
    def places(self) -> dict[str, slice]:
        """Which entries of the one long vector they are."""
        sizes = [math.prod(shape) for shape in self.shapes().values()]
        ends = np.cumsum(sizes).tolist()
        return {name: slice(end - size, end) for name, size, end in zip(self.shapes(), sizes, ends, strict=True)}

    @property
    def width(self) -> int:
        """How many sums there are."""
        return sum(math.prod(shape) for shape in self.shapes().values())


BY_CLASS = ("squared", "hit", "top", "bytes", "seen")
COUNTS = ("rows", "impossible", "tied", "weighted", "measured in bytes")


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of one or of several sets of rows (the slices of a column, say), one line each.

    ``floats`` compensated float64 (sets, layout.width); ``counts`` int64 (sets, len(COUNTS)).
    """

    layout: Layout
    floats: Compensated
    counts: NDArray[np.int64]

    @classmethod
    def zeros(cls, layout: Layout, sets: int = 1) -> Sums:
        """Give the sums of no rows."""
        return cls(layout, Compensated.zeros(sets, layout.width), np.zeros((sets, len(COUNTS)), np.int64))

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.layout, self.floats + other.floats, self.counts + other.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, which: NDArray[np.int64] | list[int]) -> Sums:
        return Sums(self.layout, self.floats[which], self.counts[which])

    def kept(self, name: str, which: int = 0) -> _Float:
        """One of the sums of one set, in its own shape."""
        there = self.layout.places()[name]
        return self.floats[which].value[there].reshape(self.layout.shapes()[name])

    def total(self, name: str, which: int = 0) -> _Float:
        """The same over all classes, where classes have figures of their own."""
        found = self.kept(name, which)
        return found.sum(axis=0) if name in BY_CLASS else found

    def of_classes(self) -> Sums:
        """Give each class's own sums, a line for each: those of rows with one class, which is the label of all."""
        own, k, soft = Layout(1, False, False), self.layout.classes, self.layout.soft
        floats, places = np.zeros((k, own.width)), own.places()

        def put(name: str, values: _Float) -> None:
            floats[:, places[name]] = values.reshape(k, -1)

        for name in ("squared", "hit", "top", "bytes"):
            put(name, self.kept(f"class_{name}" if soft else name))
        if soft:
            cost = self.kept("class_cost")
            put("cost", np.stack([cost, np.zeros_like(cost), np.zeros_like(cost)], axis=1))
            put("divergence", self.kept("class_divergence"))
        else:
            put("cost", np.swapaxes(self.kept("cost"), 0, 1))
        put("label", self.kept("label"))
        seen = self.kept("class_seen" if soft else "seen").astype(np.int64)
        weighed = seen[:, 0] * (self.count("weighted") > 0)
        measured = seen[:, 0] * (self.count("measured in bytes") == self.count("rows"))
        counts = np.stack([*seen.T[:2], np.zeros(k, np.int64), weighed, measured], axis=1)
        return Sums(own, Compensated.exact(floats), counts)

    def count(self, name: str, which: int = 0) -> int:
        """One of the counts of one set."""
        return int(self.counts[which, COUNTS.index(name)])

    @classmethod
    def of(cls, layout: Layout, batch: Predictions, rows: Rows, code: NDArray[np.int64] | None, sets: int = 1) -> Sums:
        """Add up a batch; ``code`` (n,) says which set each row is in, None that there is one.

        Cost: some thirty passes over n and a few over (n, classes).
        """
        n, k, w = len(batch), layout.classes, batch.weights
        floats = Compensated.zeros(sets, layout.width)
        counts = np.zeros((sets, len(COUNTS)), np.int64)
        places = layout.places()

        def put(name: str, values: Compensated) -> None:
            floats.put((slice(None), places[name]), values.reshape(sets, -1))

        def over(x: _Float) -> Compensated:
            return of_columns(x) if code is None else Compensated.stack(by_set.summed(list(x.T)), axis=1)

        def by(which: NDArray[np.int64], size: int) -> Split:
            """Rows by set and by another code."""
            return Split(which if code is None else code * size + which, sets * size)

        def weighted(x: _Float) -> _Float:
            return x if w is None else (x.T * w).T

        apart, lines = layout.kept_apart, layout.lines
        by_set = Split(np.zeros(n, np.int64) if code is None else code, sets)
        by_label = by_set if apart == 1 else by(rows.label, apart)
        by_line = by_label if lines > 1 else by_set

        touched = rows.floored != rows.cost
        cost = Compensated.zeros(sets, 3, apart, len(POWERS))

        def moments(of: _Float, here: NDArray[np.int64]) -> Compensated:
            found = _moments(of[here], None if w is None else w[here], Split(by_label.code[here], by_label.size))
            return found.reshape(sets, apart, -1)

        if touched.any():
            few = np.flatnonzero(touched)
            finite = np.isfinite(rows.cost[few])
            cost.put(np.s_[:, USUAL], moments(rows.cost, np.flatnonzero(~touched)))
            cost.put(np.s_[:, RARE], moments(rows.cost, few[finite]))
            cost.put(np.s_[:, FLOORED], moments(rows.floored, few))
            never = few[~finite]
            counts[:, 1] = never.size if code is None else np.bincount(code[never], minlength=sets)
        else:
            cost.put(np.s_[:, USUAL], _moments(rows.cost, w, by_label).reshape(sets, apart, -1))
        put("cost", cost)

        def counted(x: NDArray[Any]) -> NDArray[Any]:
            """The same of what is 0 or 1."""
            return x > 0 if w is None else w * x

        hit = rows.hit
        seen, first = by_line.summed([None, weighted(hit) if layout.soft else counted(hit)])
        by_predicted = by(rows.predicted, k)
        p = weighted(batch.probabilities)
        if layout.soft:
            shares = distributions(batch.labels, k)
            put("label", over(weighted(shares)))
            put("right", by_predicted.summed([weighted(shares[np.arange(n), rows.predicted])])[0])
        else:
            alone = lines > 1  # then the lines are the classes
            put("label", seen if alone and w is None else by_label.summed([w])[0])
            put("right", first if alone else by_label.summed([counted(hit)])[0])
        if layout.soft or k > 2:
            put("probability", over(p))
            if not layout.soft:
                put("own", by_label.summed([p[np.arange(n), rows.label]])[0])
        else:  # both from the sums of each column by label
            sides = [column.reshape(sets, 2) for column in by_label.summed(list(p.T))]
            put("probability", Compensated.stack([side[:, 0] + side[:, 1] for side in sides], axis=1))
            put("own", Compensated.stack([side[:, c] for c, side in enumerate(sides)], axis=1))
        put("predicted", by_predicted.summed([w])[0])
        put("squared", _moments(rows.squared, w, by_line))
        if rows.absolute is not None:
            put("absolute", _moments(rows.absolute, w, by_set))
        if rows.truth is not None:
            put("truth", _moments(rows.truth, w, by_set))
            put("divergence", _moments(_finite(rows.cost) - rows.truth, w, by_set))
        second = first if w is None else by_line.summed([w * w * hit])[0]
        third = by_line.summed([weighted(weighted(hit * hit))])[0] if layout.soft else second
        put("hit", Compensated.stack([first, second, third], axis=1))
        if rows.top is not None:
            put("top", Compensated.stack(by_line.summed([counted(top) for top in rows.top.T]), axis=1))
        if batch.bytes is not None:
            b = batch.bytes.astype(np.float64)
            sums = (b, weighted(b * b), weighted(b * _finite(rows.cost)))
            put("bytes", Compensated.stack(by_line.summed([weighted(x) for x in sums]), axis=1))
        impossible = np.isinf(rows.cost) if touched.any() else np.zeros(n, np.bool_)
        put("seen", Compensated.stack(by_line.summed([None, impossible]), axis=1))
        if layout.soft and layout.by_class:
            for name, values in _of_shares(batch, rows, shares, w).items():
                put(name, values)
        counts[:, 0] = n if code is None else np.bincount(code, minlength=sets)
        counts[:, 2] = rows.tied if code is None else 0
        counts[:, 3] = 0 if w is None else counts[:, 0]
        counts[:, 4] = 0 if batch.bytes is None else counts[:, 0]
        return cls(layout, floats, counts)


def _finite(cost: _Float) -> _Float:
    """Costs, and 0 for those that are infinite, which are counted elsewhere."""
    return np.where(np.isfinite(cost), cost, 0.0)


def _of_shares(batch: Predictions, rows: Rows, shares: _Float, w: _Float | None) -> dict[str, Compensated]:
    """The sums of each class over rows that belong to it by their shares (n, classes)."""
    mass = shares if w is None else shares * w[:, None]
    powers = {1: mass, 2: mass * mass, 3: mass**3}
    with np.errstate(divide="ignore"):
        logs = np.log(batch.probabilities) if batch.log_probabilities is None else batch.log_probabilities
    never = np.isneginf(logs) & (mass > 0)
    cost = np.where(np.isfinite(logs), -logs, 0.0)

    def over(x: _Float, power: int = 1) -> Compensated:
        return of_columns(powers[power] * (x[:, None] if x.ndim == 1 else x))

    def moments(x: _Float) -> Compensated:
        return Compensated.stack([over(x**i, j) for j, i in POWERS], axis=1)

    seen = (mass, never, mass * np.isinf(rows.cost)[:, None])
    chosen = rows.predicted[:, None] == np.arange(mass.shape[1])
    hits = [of_columns(part * chosen) for part in (powers[1], powers[2], powers[2])]
    found = {
        "class_cost": moments(cost),
        "class_squared": moments(rows.squared),
        "class_hit": Compensated.stack(hits, axis=1),
        "class_seen": Compensated.exact(np.stack([np.count_nonzero(x, axis=0) for x in seen], axis=1) * 1.0),
    }
    if rows.truth is not None:
        found["class_divergence"] = moments(_finite(rows.cost) - rows.truth)
    if rows.top is not None:
        found["class_top"] = Compensated.stack([over(top) for top in rows.top.T.astype(np.float64)], axis=1)
    if batch.bytes is not None:
        b = batch.bytes.astype(np.float64)
        found["class_bytes"] = Compensated.stack([over(b), over(b * b, 2), over(cost * b[:, None], 2)], axis=1)
    return found


def _moments(x: _Float, w: _Float | None, by: Split) -> Compensated:
    """Σ w^j x^i by set, (sets, len(POWERS))."""
    if w is None:
        powers = [by.summed([None])[0], *by.terms([x], _powers)]
        return Compensated.stack([powers[i] for _, i in POWERS], axis=1)
    return Compensated.stack(by.terms([x, w], _weighted_powers), axis=1)


def _powers(x: _Float) -> list[_Float]:
    square = x * x
    return [x, square, square * x]


def _weighted_powers(x: _Float, w: _Float) -> list[_Float]:
    first, second = _powers(w), _powers(x)
    return [first[j - 1] * second[i - 1] if i else first[j - 1] for j, i in POWERS]
