"""Where a cross-entropy comes from: cross-entropy = uncertainty − discrimination + miscalibration.

    uncertainty      H        what the labels cost someone who knows only their frequencies
    discrimination   H − C*   what the model's probabilities gain on that, had they been calibrated
    miscalibration   C − C*   what they lose by not being so: the KL divergence of the model from the calibrated one

with C the model's cross-entropy and C* that of its calibrated self (Murphy 1973 for squares; Bröcker 2009 for
every proper score). C* is not known.

**Two classes, or a number in a range** (``isotonic_parts``). C* is that of the isotonic curve (``isotonic``) on the
cells, raised by how much such a curve claims on rows like these. To first order C − C* is the mean of the differences
cost − calibrated cost row by row: the curve is the best there is, so its own error counts twice over (envelope
theorem). That second-order part has no share in the interval of a model that is far from calibrated, and is all there
is for one that is calibrated; its scatter is that of the drawn claims. The first-order part is taken about the smooth
curve, unless the rows say that this one does not fit, and then about the isotonic one. Where a calibrated model would
look as miscalibrated as this one more than 1 time in 40, the interval reaches down to 0.

**More classes** (``joint_parts``). No order leads to a curve. The calibrated self is the model with a temperature
alone or with a bias per class as well. Fitted to the rows it is judged on, it looks cheaper than it is by
(parameters)/(2n); cross-fitted, each row by what the other folds say, dearer by (parameters)/(2n · 4/5), as the fits
have four fifths of the rows. C* is the mean of the two, weighted 5 to 4, in which both cancel; which of the two
families serves is decided by the cross-fitted cost alone. What the family cannot mend counts as lack of
discrimination. Folds are of whole groups where there are any.

The interval of miscalibration reaches up to 0 at least, for the truth is not below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import KINDS, Scaling, fit_scaling
from crossent.measure.intervals import interval
from crossent.measure.sums.cells import COARSE, Cells
from crossent.measure.sums.hashing import stream, unmixed
from crossent.measure.sums.likelihood import costs_of_logs, distributions
from crossent.measure.sums.sample import Sample
from crossent.measure.values.isotonic import (
    DRAWS,
    Optimism,
    cost,
    cost_of_own,
    dispersion,
    isotonic,
    optimism,
    smooth,
    stated,
)
from crossent.measure.values.means import Evidence, label_entropy
from crossent.measure.values.spread import Spread, as_claimed, clustered, spread_on
from crossent.record import Number

_Float = NDArray[np.float64]
PARTS_FOLDS = 5
_LEVEL = 0.025


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A model's calibrated self on its cells: ``cells`` that have rows, in rising order, and by cell ``curve``, the
    isotonic one, and ``even``, the smooth one; ``null``, what curves fitted to labels of a calibrated model claim;
    ``scatter``, how much more or less labels scatter than independent 0s and 1s.
    """

    cells: Cells
    curve: _Float
    even: _Float
    null: Optimism
    scatter: float

    @classmethod
    def of(cls, cells: Cells, design: Design | None = None, keep: bool = False, draws: int = DRAWS) -> Calibrated:
        """Fit the curves to the cells of one histogram; ``design`` says by how much rows in groups scatter more.

        Cost: ``draws`` regressions over the cells with rows.
        """
        cells = cells.occupied()
        even = smooth(cells)
        scatter = max(dispersion(cells, even), 1e-6)
        if design is not None:
            scatter *= design(cells, even, scatter)
        null = optimism(cells, stated(cells), scatter, draws, keep=keep)
        return cls(cells, isotonic(cells), even, null, scatter)


Design = Callable[[Cells, _Float, float], float]
"""From cells, their curve and the scatter of their labels: the variance of groups over that of rows, 1 or more."""


def design_of(folds: Cells | None) -> Design | None:
    """Give the design of rows in groups, from the histograms of their folds; None without."""
    if folds is None:
        return None
    return lambda cells, curve, scatter: _design(folds, cells, curve, scatter)


def _design(folds: Cells, cells: Cells, curve: _Float, scatter: float) -> float:
    """How much more the labels of whole groups scatter about the curve than as many rows by themselves.

    Cell by cell, for a curve bends to what goes together in one place: forecasts of a season that move from 0.2 to 0.9
    are wrong together, but no part of the curve has all of them.
    """
    q = _on_folds(cells, [curve * cells.weight])[0]
    residual = folds.label - folds.weight * q
    alone = float(np.sum(curve * (1 - curve) * cells.squares[0])) * scatter
    used = int(np.count_nonzero(folds.weight.sum(axis=1)))
    whole = float(np.sum(residual**2)) * used / max(used - 1, 1)
    return max(1.0, whole / alone) if alone > 0 else 1.0


def _on_folds(cells: Cells, sums: list[_Float], by: _Float | None = None) -> list[_Float]:
    """Means over the rows of each coarse cell, from sums over the fine ones."""
    p = stated(cells)
    place = COARSE.place(p, 1 - p)
    weight = np.bincount(place, cells.weight if by is None else by, minlength=len(COARSE))
    return [
        np.divide(total, weight, out=np.zeros(len(COARSE)), where=weight > 0)
        for total in (np.bincount(place, x, minlength=len(COARSE)) for x in sums)
    ]


def isotonic_parts(of: Evidence, calibrated: Calibrated, draws: int = DRAWS) -> tuple[dict[str, Number], str]:
    """Give uncertainty, discrimination and miscalibration in nats, and a sentence on the calibrated model."""
    assert of.cells is not None
    entropy = label_entropy(of)
    found, best = parts_on(
        calibrated,
        of.cross_entropy,
        entropy.value,
        of.cost_under_frequencies(),
        of.floor,
        lambda a, b, labels: _spread(of, calibrated, a, b, labels),
        of.n,
        draws,
    )
    lost = found["miscalibration"]
    if lost.high is not None:  # the calibrated self would cost more too, so that this is the most
        found["miscalibration"] = replace(lost, high=max(lost.high, lost.value + of.unseen()))
    return {"uncertainty": entropy, **found}, said_of(int(np.count_nonzero(of.cells.weight)), best)


def parts_on(
    calibrated: Calibrated,
    loss: float,
    entropy: float,
    own: _Float,
    floor: float | None,
    spread: Callable[[_Float, _Float, bool], Spread | None],
    n: int,
    draws: int = DRAWS,
) -> tuple[dict[str, Number], Best]:
    """Give discrimination and miscalibration by an isotonic curve, nats, and what the calibrated self costs.

    ``loss`` is the model's cross-entropy, ``entropy`` the labels', ``own`` (2,) the costs of the labels 0 and 1 under
    their frequencies; ``spread`` gives that of terms that are ``a`` (cells,) for a label of 0 and ``b`` for one of 1,
    and is told whether they are differences between what the labels cost (``spread.clustered``).
    """
    cells, best = calibrated.cells, best_of(calibrated, draws)
    zero, one = best.costs()
    least = math.inf if floor is None else -math.log(floor)
    mine = (np.minimum(x, least) for x in _costs(stated(cells)))
    my_zero, my_one = (np.where(np.isfinite(x), x, 0.0) for x in mine)  # an infinite one is one that nobody paid
    parts = {}
    for name, value, a, b in (
        ("discrimination", entropy - best.cost, own[0] - zero, own[1] - one),
        ("miscalibration", loss - best.cost, my_zero - zero, my_one - one),
    ):
        low, high = _ends_of(value, spread(a, b, name == "discrimination"), best.variance)
        parts[name] = Number(value, "nats", low, high, n)
    parts["discrimination"] = parts["discrimination"].ending_at(math.log(2))
    nothing = calibrated.null.as_high_as(loss - best.fitted) > _LEVEL
    parts["miscalibration"] = _bounded(parts["miscalibration"], nothing)
    parts["discrimination"] = _bounded(parts["discrimination"], False)
    return parts, best


@dataclass(frozen=True, eq=False)
class Best:
    """What the calibrated self costs, nats: ``cost`` C*, ``fitted`` that of the isotonic curve on its own rows, with
    ``claimed`` given back, of the ``variance`` of such a claim; ``curve`` (cells,), about which rows scatter.
    """

    cost: float
    fitted: float
    claimed: float
    variance: float
    curve: _Float

    def costs(self) -> tuple[_Float, _Float]:
        """What labels of 0 and of 1 cost under the curve, by cell; 0 where nobody paid an infinite cost."""
        zero, one = (np.where(np.isfinite(x), x, 0.0) for x in _costs(self.curve))
        return zero, one


def best_of(calibrated: Calibrated, draws: int = DRAWS) -> Best:
    """Give back what the isotonic curve claims too much. Cost: ``draws`` regressions over the cells."""
    cells, even = calibrated.cells, calibrated.even
    total = float(cells.weight.sum())
    drawn = optimism(cells, even, calibrated.scatter, draws, seed=1)
    fitted = cost_of_own(cells.weight, cells.label, calibrated.curve) / total
    # Does the smooth curve do? Then the isotonic one claims no more on it than on labels drawn from it.
    smooth_fits = drawn.as_high_as(cost(cells.weight, cells.label, even) / total - fitted) > _LEVEL
    curve = even if smooth_fits else calibrated.curve
    return Best(fitted + drawn.bias, fitted, drawn.bias, drawn.variance, curve)


def said_of(cells: int, best: Best) -> str:
    """Say in words what the calibrated self is."""
    return (
        f"isotonic regression (CORP) on {cells:,} cells of probability, {best.claimed:.2g} nats that such a curve "
        "claims on rows like these given back"
    )


def _costs(q: _Float) -> tuple[_Float, _Float]:
    with np.errstate(divide="ignore"):
        return -np.log1p(-q), -np.log(q)


def _spread(of: Evidence, calibrated: Calibrated, a: _Float, b: _Float, labels: bool) -> Spread | None:
    """The spread of terms that are ``a`` (cells,) for a label of 0 and ``b`` for one of 1, maybe differences between
    ``labels``; where few groups hold one, maybe that of labels drawn as the model claims or by the curve."""
    cells = calibrated.cells
    total = float(cells.weight.sum())
    mean = float(np.sum(a * (cells.weight - cells.label) + b * cells.label)) / total
    if of.groups is not None and (folds := of.groups.by_fold()) is not None:
        at_zero = _on_folds(cells, [a * (cells.weight - cells.label)], cells.weight - cells.label)[0]
        at_one = _on_folds(cells, [b * cells.label], cells.label)[0]
        sums = (at_zero * (folds.weight - folds.label) + at_one * folds.label).sum(axis=1)
        weight = folds.weight.sum(axis=1)
        found = clustered(sums - mean * weight, weight, float(np.sum(sums**2)), differences=labels and cells.hard)
        if not cells.hard:
            return found
        return of.or_claimed(found, max(as_claimed(cells, a, b, curve) for curve in (None, calibrated.even)))
    return spread_on(cells, a, b, of.effective - 1)


def _ends(value: float, below: float, above: float, variance: float) -> tuple[float, float]:
    """The interval of a first-order part with these ends, about 0, and a second-order part with this variance."""
    more = float(ndtri(1 - _LEVEL)) ** 2 * variance
    return value - math.sqrt(below**2 + more), value + math.sqrt(above**2 + more)


def _ends_of(value: float, spread: Spread | None, variance: float) -> tuple[float | None, float | None]:
    ends = None if spread is None else spread.interval(0.0)
    if ends is None and variance <= 0:
        return None, None
    return _ends(value, *(ends or (0.0, 0.0)), variance)


def _bounded(part: Number, nothing_found: bool) -> Number:
    """What cannot be below 0 has an interval that reaches 0; all of it, where nothing was found."""
    if part.low is None or part.high is None:
        return part
    low = min(part.low, 0.0) if nothing_found else part.low
    return replace(part, low=low, high=max(part.high, 0.0))


def joint_parts(of: Evidence, seed: int = 0) -> tuple[dict[str, Number], str]:
    """Do the same for more than two classes, by the rows of the sample.

    Cost: twelve calibrations, tens of passes over the sample's probabilities each.
    """
    assert of.sample is not None
    sample = of.sample.take(np.argsort(unmixed(of.sample.ids), kind="stable"))  # fits see rows in one order
    y, w = sample.labels, sample.weights
    z = sample.logs if of.floor is None else np.maximum(sample.logs, math.log(of.floor))
    own, found = costs_of_logs(z, y), joint_self(sample, z, seed)
    calibrated = found.costs
    entropy, loss = label_entropy(of), of.cross_entropy
    lost = float(np.average(own, weights=w) - np.average(calibrated, weights=w))
    base = distributions(y, z.shape[1]) @ of.cost_under_frequencies()
    gained = entropy.value - loss + lost
    parts = {"uncertainty": entropy}
    # What the fit wins on its own rows is χ² of so many degrees of freedom over 2n.
    scatter = (1 if found.kind == KINDS[1] else z.shape[1]) / 2 / float(w.sum() ** 2 / np.sum(w * w)) ** 2
    for name, value, terms, scale in (
        ("discrimination", gained, base - calibrated, base),
        ("miscalibration", lost, own - calibrated, own),
    ):
        ends = _of_rows(terms, scale, sample, of, name == "discrimination")
        mean = float(np.average(terms, weights=w))
        low, high = (None, None) if ends is None else _ends(value, ends[0] - mean, ends[1] - mean, scatter)
        parts[name] = Number(value, "nats", low, high, of.n)
    parts["discrimination"] = parts["discrimination"].ending_at(math.log(z.shape[1]))
    if (high := parts["miscalibration"].high) is not None:
        parts["miscalibration"] = replace(parts["miscalibration"], high=max(high, 0.0))
    return parts, found.sentence(of.n)


@dataclass(frozen=True, eq=False)
class Joint:
    """The calibrated self of a sample: ``whole``, fitted to all of it, of one ``kind``, and what each row costs under
    that, ``fitted``, and under the fit of the other folds, ``held_out``, nats (rows,).
    """

    kind: str
    whole: Scaling
    held_out: _Float
    fitted: _Float
    weights: _Float

    @property
    def costs(self) -> _Float:
        """What each row costs under the calibrated self, in expectation: the errors of the two fits cancel."""
        return (self.held_out + _ROWS_MORE * self.fitted) / (1 + _ROWS_MORE)

    @property
    def flattery(self) -> float:
        """By how much the fit makes its own rows too cheap, nats, and others too dear: (parameters)/(2n)."""
        return self.apart / (1 + _ROWS_MORE)

    @property
    def apart(self) -> float:
        """How much dearer rows are under the fits of other folds than under their own, 0 or more."""
        return max(float(np.average(self.held_out - self.fitted, weights=self.weights)), 0.0)

    def sentence(self, n: int) -> str:
        """Say in words what the calibrated self of ``n`` rows is."""
        rows = self.fitted.size
        drawn = f" on a sample of {rows:,} rows" if rows < n else ""
        return (
            f"{self.kind} on the log-probabilities, cross-fitted in {min(PARTS_FOLDS, rows)} folds{drawn} "
            f"(temperature {self.whole.temperature:.3g} when fitted on all rows)"
        )


_ROWS_MORE = PARTS_FOLDS / (PARTS_FOLDS - 1)  # all rows to those of a fold's fit


def joint_self(sample: Sample, z: _Float, seed: int = 0) -> Joint:
    """Fit both families to the log-probabilities ``z`` of a sample; the cheaper one when cross-fitted serves.

    Of more classes than rows a temperature alone is fitted: a bias for each class would rest on less than a row.
    """
    w = sample.weights
    best: Joint | None = None
    for family in KINDS[1:] if len(sample) >= z.shape[1] else KINDS[1:2]:
        held_out, fitted, whole = _cross_fitted(sample, z, w > 0, family, seed)
        if best is None or np.average(held_out, weights=w) < np.average(best.held_out, weights=w):
            best = Joint(family, whole, held_out, fitted, w)
    assert best is not None
    return best


def _cross_fitted(
    sample: Sample, z: _Float, used: NDArray[np.bool_], family: str, seed: int
) -> tuple[_Float, _Float, Scaling]:
    """What each row costs under the calibrator that the other folds give, under that of all rows, and the latter."""
    even = bool(np.all(sample.weights == sample.weights[0]))
    rows = rows_of(z, sample.labels, None if even else np.where(used, sample.weights, 1.0))
    if not even:
        rows = replace(rows, weights=sample.weights / sample.weights.mean())
    whole = fit_scaling(rows.take(used), family)
    fold = _folds(sample, seed)
    logs = rows.z.copy()
    if len(sample) > 1 and fold.max() > 0:
        for held_out in range(int(fold.max()) + 1):
            here = fold == held_out
            logs[here] = fit_scaling(rows.take(~here & used), family, start=whole).of_logits(rows.z[here])
    return costs_of_logs(logs, sample.labels), costs_of_logs(whole.of_logits(rows.z), sample.labels), whole


def _folds(sample: Sample, seed: int) -> NDArray[np.int64]:
    """A fold for each row, whole groups to one fold; not stratified (docs/decisions/006).

    By name and not by place, so that models that are compared have the same folds; rows that are numbered in their
    order, so that rows left out between them change nothing.
    """
    names, of = np.unique(unmixed(sample.groups if sample.groups.any() else sample.ids), return_inverse=True)
    return (stream(seed, "folds").permutation(names.size) % min(PARTS_FOLDS, names.size))[of]


def _of_rows(terms: _Float, scale: _Float, sample: Sample, of: Evidence, labels: bool) -> interval.Interval:
    """The 95 % interval of the mean of the sample's terms."""
    if not np.isfinite(terms).all():
        return None
    w = sample.weights
    if of.groups is not None:
        bucket, place = np.unique(sample.groups, return_inverse=True)
        weight = np.bincount(place, w, minlength=bucket.size).astype(np.float64)
        mean = float(np.average(terms, weights=w))
        sums = np.bincount(place, w * terms, minlength=bucket.size)
        size = float(np.sum(np.bincount(place, w * scale) ** 2))
        spread = clustered(sums - mean * weight, weight, size, differences=labels and sample.labels.ndim == 1)
        return None if spread is None else spread.interval(mean)
    if np.all(w == w[0]):
        return interval.of_mean(terms, scale=float(np.max(scale)))
    mean = float(np.average(terms, weights=w))
    residual = w * (terms - mean)
    second, third = float(np.sum(residual**2)), float(np.sum(residual**3))
    if second <= (8 * np.finfo(float).eps) ** 2 * float(np.sum((w * scale) ** 2)):
        return None
    return interval.of_sums(mean, second, third, float(w.sum()), float(w.sum() ** 2 / np.sum(w * w)) - 1)
