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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from crossent.measure import interval
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import KINDS, Scaling, fit_scaling
from crossent.measure.cells import COARSE, Cells
from crossent.measure.compensated import summed
from crossent.measure.groups import Groups
from crossent.measure.isotonic import Optimism, cost, dispersion, isotonic, optimism, smooth, stated
from crossent.measure.likelihood import costs_of_logs, distributions
from crossent.measure.means import Evidence, Spread, clustered, label_entropy, of_cells
from crossent.measure.sample import Sample
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
    def of(cls, cells: Cells, groups: Groups | None = None, keep: bool = False) -> Calibrated:
        """Fit the curves to the cells of one histogram. Cost: 200 regressions over the cells with rows."""
        cells = cells.occupied()
        even = smooth(cells)
        scatter = max(dispersion(cells, even), 1e-6)
        if groups is not None and groups.folds is not None:
            scatter *= _design(groups.folds, cells, even, scatter)
        return cls(cells, isotonic(cells), even, optimism(cells, stated(cells), scatter, keep=keep), scatter)


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


def isotonic_parts(of: Evidence, calibrated: Calibrated) -> tuple[dict[str, Number], str]:
    """Give uncertainty, discrimination and miscalibration in nats, and a sentence on the calibrated model."""
    assert of.cells is not None
    cells, n = calibrated.cells, of.n
    total = float(cells.weight.sum())
    loss, entropy = of.cross_entropy, label_entropy(of)
    even = calibrated.even
    drawn = optimism(cells, even, calibrated.scatter, seed=1)
    fitted = cost(cells.weight, cells.label, calibrated.curve) / total
    best = fitted + drawn.bias
    # Does the smooth curve do? Then the isotonic one claims no more on it than on labels drawn from it.
    smooth_fits = drawn.as_high_as(cost(cells.weight, cells.label, even) / total - fitted) > _LEVEL
    q = even if smooth_fits else calibrated.curve
    zero, one = (np.where(np.isfinite(x), x, 0.0) for x in _costs(q))
    lost, gained = loss - best, entropy.value - best
    own = of.cost_under_frequencies()
    least = math.inf if of.floor is None else -math.log(of.floor)
    mine = (np.minimum(x, least) for x in _costs(stated(cells)))
    my_zero, my_one = (np.where(np.isfinite(x), x, 0.0) for x in mine)  # an infinite one is one that nobody paid
    parts = {"uncertainty": entropy}
    for name, value, a, b in (
        ("discrimination", gained, own[0] - zero, own[1] - one),
        ("miscalibration", lost, my_zero - zero, my_one - one),
    ):
        spread = _spread(of, cells, a, b)
        low, high = _ends_of(value, spread, drawn.variance)
        parts[name] = Number(value, "nats", low, high, n)
    seen = loss - fitted
    parts["miscalibration"] = _bounded(parts["miscalibration"], calibrated.null.as_high_as(seen) > _LEVEL)
    parts["discrimination"] = _bounded(parts["discrimination"], False)
    sentence = (
        f"isotonic regression (CORP) on {np.count_nonzero(of.cells.weight):,} cells of probability, "
        f"{drawn.bias:.2g} nats that such a curve claims on rows like these given back"
    )
    return parts, sentence


def _costs(q: _Float) -> tuple[_Float, _Float]:
    with np.errstate(divide="ignore"):
        return -np.log1p(-q), -np.log(q)


def _spread(of: Evidence, cells: Cells, a: _Float, b: _Float) -> Spread | None:
    """The spread of terms that are ``a`` (cells,) for a label of 0 and ``b`` for one of 1."""
    total = float(cells.weight.sum())
    mean = float(np.sum(a * (cells.weight - cells.label) + b * cells.label)) / total
    if of.groups is not None and of.groups.folds is not None:
        folds = of.groups.folds
        at_zero = _on_folds(cells, [a * (cells.weight - cells.label)], cells.weight - cells.label)[0]
        at_one = _on_folds(cells, [b * cells.label], cells.label)[0]
        sums = (at_zero * (folds.weight - folds.label) + at_one * folds.label).sum(axis=1)
        weight = folds.weight.sum(axis=1)
        return clustered(sums - mean * weight, weight, float(np.sum(sums**2)))
    second, third, size = of_cells(cells, a, b - a, mean)
    if second <= 64 * np.finfo(float).eps * size:
        return None
    return Spread(second, third, total, of.effective - 1)


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
    sample = of.sample
    y, w = sample.labels, sample.weights
    z = sample.logs if of.floor is None else np.maximum(sample.logs, math.log(of.floor))
    own = costs_of_logs(z, y)
    held_out, fitted, kind, temperature = np.full(len(sample), np.inf), own, "", 1.0
    used = w > 0
    for family in KINDS[1:]:
        found, flattered, whole = _cross_fitted(sample, z, used, family, seed)
        if np.average(found, weights=w) < np.average(held_out, weights=w):
            held_out, fitted, kind, temperature = found, flattered, family, whole.temperature
    rows_more = PARTS_FOLDS / (PARTS_FOLDS - 1)  # all rows to those of a fold's fit
    calibrated = (held_out + rows_more * fitted) / (1 + rows_more)
    entropy, loss = label_entropy(of), of.cross_entropy
    lost = float(np.average(own, weights=w) - np.average(calibrated, weights=w))
    base = distributions(y, z.shape[1]) @ of.cost_under_frequencies()
    gained = entropy.value - loss + lost
    parts = {"uncertainty": entropy}
    # What the fit wins on its own rows is χ² of so many degrees of freedom over 2n.
    scatter = (1 if kind == KINDS[1] else z.shape[1]) / 2 / float(w.sum() ** 2 / np.sum(w * w)) ** 2
    for name, value, terms, scale in (
        ("discrimination", gained, base - calibrated, base),
        ("miscalibration", lost, own - calibrated, own),
    ):
        ends = _of_rows(terms, scale, sample, of)
        mean = float(np.average(terms, weights=w))
        low, high = (None, None) if ends is None else _ends(value, ends[0] - mean, ends[1] - mean, scatter)
        parts[name] = Number(value, "nats", low, high, of.n)
    if (high := parts["miscalibration"].high) is not None:
        parts["miscalibration"] = replace(parts["miscalibration"], high=max(high, 0.0))
    drawn = f" on a sample of {len(sample):,} rows" if len(sample) < of.n else ""
    sentence = (
        f"{kind} on the log-probabilities, cross-fitted in {min(PARTS_FOLDS, len(sample))} folds{drawn} "
        f"(temperature {temperature:.3g} when fitted on all rows)"
    )
    return parts, sentence


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
    """A fold for each row, whole groups to one fold; not stratified (docs/decisions/006)."""
    rng = np.random.default_rng(seed)
    if sample.groups.any():
        names, of = np.unique(sample.groups, return_inverse=True)
        return (rng.permutation(names.size) % min(PARTS_FOLDS, names.size))[of]
    return rng.permutation(len(sample)) % min(PARTS_FOLDS, len(sample))


def _of_rows(terms: _Float, scale: _Float, sample: Sample, of: Evidence) -> interval.Interval:
    """The 95 % interval of the mean of the sample's terms."""
    if not np.isfinite(terms).all():
        return None
    w = sample.weights
    if of.groups is not None:
        bucket, place = np.unique(sample.groups, return_inverse=True)
        weight = summed(place, w, bucket.size)
        mean = float(np.average(terms, weights=w))
        sums = np.bincount(place, w * terms, minlength=bucket.size)
        spread = clustered(sums - mean * weight, weight, float(np.sum(np.bincount(place, w * scale) ** 2)))
        return None if spread is None else spread.interval(mean)
    if np.all(w == w[0]):
        return interval.of_mean(terms, scale=float(np.max(scale)))
    mean = float(np.average(terms, weights=w))
    residual = w * (terms - mean)
    second, third = float(np.sum(residual**2)), float(np.sum(residual**3))
    if second <= (8 * np.finfo(float).eps) ** 2 * float(np.sum((w * scale) ** 2)):
        return None
    return interval.of_sums(mean, second, third, float(w.sum()), float(w.sum() ** 2 / np.sum(w * w)) - 1)


def one_class(cells: Cells, floor: float | None, grouped: bool, draws: int = 50) -> dict[str, float | None] | None:
    """Give discrimination and miscalibration of one class against the rest, nats, from its own cells.

    Cells are coarse here, so that the model is taken by the mean prediction of each cell. No interval for rows in
    groups: the cells do not know them. None without rows.
    """
    cells = cells.occupied()
    total = float(cells.weight.sum())
    if not cells.weight.size or total <= 0:
        return None
    curve, even, p = isotonic(cells), smooth(cells), stated(cells)
    scatter = max(dispersion(cells, even), 1e-6)
    drawn = optimism(cells, even, scatter, draws)
    if floor is not None:
        p = np.clip(p, floor, 1 - floor)
    zero, one = (np.where(np.isfinite(x), x, 0.0) for x in _costs(even))
    my_zero, my_one = (np.where(np.isfinite(x), x, 0.0) for x in _costs(p))
    best = cost(cells.weight, cells.label, curve) / total + drawn.bias
    lost = cost(cells.weight, cells.label, p) / total - best
    share = float(cells.label.sum()) / total
    a, b = my_zero - zero, my_one - one
    mean = float(np.sum(a * (cells.weight - cells.label) + b * cells.label)) / total
    second, third, size = of_cells(cells, a, b - a, mean)
    effective = float(total**2 / cells.squares[0].sum())
    spread = Spread(second, third, total, effective - 1) if second > 64 * np.finfo(float).eps * size else None
    low, high = (None, None) if grouped else _ends_of(lost, spread, drawn.variance)
    return {
        "discrimination": float(-share * np.log(share) - (1 - share) * np.log1p(-share)) - best
        if 0 < share < 1
        else -best,
        "miscalibration": lost,
        "miscalibration_low": low,
        "miscalibration_high": None if high is None else max(high, 0.0),
    }
