"""Cross-entropy and its relatives, from sums: their values and their intervals.

**One road to every interval.** Each quantity here is, to first order, a mean of terms

    t_i = α cost_i + v(label_i),        v(y) = Σ_c y_c v_c,

with α and v found at the end. ``Evidence.spread`` gives Σ r² and Σ r³ of the residuals r = w (t − mean) from what a
tally keeps: from the moments by class; for labels that are shares of two classes from the cells, in which a cost is
linear in the label, and for distributions over more from the sample of rows, or of a slice from its folds; and, where
rows come in groups, from the groups' sums, r then being a group's.

**The yardstick.** Someone who knows only the frequencies f_c of the labels in these rows pays the label
entropy, H = −Σ_c f_c log f_c, which is the mean of the rows' costs under f. So information gained, H −
cross-entropy, is a mean of differences row by row, and its interval comes from those differences: the hard
rows, hard for both, cancel. The derivative of H by f, through which sampling moves H, gives exactly the same
rows (delta method).

**A class that never came.** Rows of one label cannot tell what the other would have cost. The model can: it has
claimed how often it comes, and what it costs then is known. So where one of two classes came alone, terms scatter as
the model claims they do, if that is more (``Evidence.claimed``). Groups of which few hold a class cannot tell either;
where they scatter less than even rows by themselves would, the same is done (``Evidence.or_claimed``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from crossent.measure.intervals import interval
from crossent.measure.sums.cells import Cells
from crossent.measure.sums.groups import Groups
from crossent.measure.sums.likelihood import TOPS, costs_of_logs, distributions
from crossent.measure.sums.sample import Sample
from crossent.measure.sums.sums import FLOORED, POWERS, RARE, USUAL, Sums
from crossent.measure.values.spread import (
    AGREE,
    Spread,
    as_claimed,
    costs_of_cells,
    freedom_by_class,
    of_groups,
    of_moments,
    spread_on,
)
from crossent.record import Number

_Float = NDArray[np.float64]
_FEW_A_CLASS = 20  # rows a class: of more, what Miller's term leaves of the bias is a thousandth of a nat
NOT_OF_TEXTS = ("label_entropy", "label_entropy_bias", "information_gained", "skill", "perplexity")  # need classes


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one set of rows leaves behind; a ``floor`` asks for the costs under it, which must be those that were
    summed. ``folds`` are rows by themselves in buckets, for a slice of labels that are distributions.
    """

    sums: Sums
    which: int = 0
    cells: Cells | None = None
    sample: Sample | None = None
    groups: Groups | None = None
    floor: float | None = None
    folds: Groups | None = None

    def __post_init__(self) -> None:
        if self.n == 0:
            raise ValueError("there are no rows in this tally, so that nothing can be said of them.")

    @property
    def n(self) -> int:
        """Rows."""
        return self.sums.count("rows", self.which)

    @property
    def impossible(self) -> int:
        """Rows whose label had probability 0."""
        return self.sums.count("impossible", self.which)

    @property
    def moments(self) -> _Float:
        """Σ w^j cost^i, (classes, powers)."""
        kept = self.sums.total("cost", self.which)
        return kept[USUAL] + kept[RARE if self.floor is None else FLOORED]

    @property
    def weight(self) -> float:
        """Σ w."""
        return float(self.squares_of_weight()[0])

    def squares_of_weight(self) -> _Float:
        """Σ w, Σ w², Σ w³ over all rows."""
        kept = self.sums.total("squared", self.which)
        return kept[[POWERS.index((j, 0)) for j in (1, 2, 3)]]

    @property
    def effective(self) -> float:
        """How many rows of equal weight (or groups of equal size) would tell as much: (Σ w)² / Σ w²."""
        if self.groups is not None:
            mine = self.groups.column("weight")
            return float(mine.sum() ** 2 / (mine * mine).sum())
        one, two, _ = self.squares_of_weight()
        return float(one * one / two)

    @property
    def cross_entropy(self) -> float:
        """The mean cost in nats."""
        if self.impossible and self.floor is None:
            return math.inf
        return float(self.moments[:, POWERS.index((1, 1))].sum()) / self.weight

    @property
    def frequencies(self) -> _Float:
        """How often each class came, (classes,)."""
        return self.sums.total("label", self.which) / self.weight

    @property
    def usual_confidence(self) -> _Float:
        """The mean probability that each class got over the rows labelled with it, (classes,); inf where none is."""
        label = self.sums.total("label", self.which)
        return np.where(label > 0, self.sums.total("own", self.which) / np.where(label > 0, label, 1.0), np.inf)

    @property
    def entropy(self) -> float:
        """The plug-in entropy of the labels' frequencies, nats."""
        return max(float(entr(self.frequencies).sum()), 0.0)

    def cost_under_frequencies(self) -> _Float:
        """−log f by class. For a class that never came 0, which is never looked up; of groups, where claims look it up
        (``scatter``), what half a row costs."""
        shares, never = self.frequencies, 1.0 if self.groups is None else 0.5 / self.n
        return -np.log(np.where(shares > 0, shares, never)) + 0.0

    def spread(self, alpha: float, v: _Float, mean: float) -> Spread | None:
        """Give the spread of the terms α cost + v(label), whose mean is ``mean``; None where all terms agree."""
        if self.groups is not None:
            return self._spread_of(self.groups, alpha, v, mean)
        freedom = self.effective - 1
        if not self.sums.layout.soft:
            m, d = self.moments, v - mean
            second = alpha**2 * m[:, 4] + 2 * alpha * d * m[:, 3] + d * d * m[:, 2]
            if v.any():
                freedom = min(freedom, freedom_by_class(m[:, 0], m[:, 2], alpha * m[:, 3] + d * m[:, 2], second))
            third = alpha**3 * m[:, 8] + 3 * alpha**2 * d * m[:, 7] + 3 * alpha * d * d * m[:, 6] + d**3 * m[:, 5]
            size = alpha**2 * m[:, 4].sum() + (v * v * m[:, 2]).sum()
            if second.sum() <= AGREE * size:
                return None
            return Spread(float(second.sum()), float(third.sum()), self.weight, freedom)
        if not v.any():
            m = self.moments[0]
            return of_moments(m * np.array([alpha**i for _, i in POWERS]), mean, self.weight, freedom)
        if self.cells is not None:
            zero, one = costs_of_cells(self.cells)
            return spread_on(self.cells, alpha * zero + v[0], alpha * one + v[1], freedom)
        if self.sample is None:
            return None if self.folds is None else self._spread_of(self.folds, alpha, v, mean)
        terms = distributions(self.sample.labels, v.size) @ v
        if alpha:  # without it a cost may be infinite
            terms = terms + alpha * self._cost_of_sample()
        squares = self.sample.weights**2
        scatter = float(np.sum(squares * (terms - mean) ** 2))
        if scatter <= AGREE * float(np.sum(squares * terms**2)):
            return None
        return Spread(scatter * float(self.squares_of_weight()[1] / squares.sum()), 0.0, self.weight, freedom)

    def claimed(self) -> Spread | None:
        """How much costs of two classes would scatter if labels came as the model claims; None unless one class alone
        came, and for rows in groups, of which nothing says how they go together.
        """
        if self.cells is None or self.groups is not None or self.sums.layout.soft or np.all(self.frequencies > 0):
            return None
        return Spread(*as_claimed(self.cells, *costs_of_cells(self.cells)), self.weight, self.effective - 1)

    def scatter(self, alpha: float, v: _Float, mean: float) -> Spread | None:
        """Give the spread of the same terms for an interval, of few groups with what is claimed (``or_claimed``)."""
        found = self.spread(alpha, v, mean)
        if self.cells is None or self.groups is None or self.sums.layout.soft:
            return found
        zero, one = costs_of_cells(self.cells)
        return self.or_claimed(found, as_claimed(self.cells, alpha * zero + v[0], alpha * one + v[1]))

    @property
    def few_hold(self) -> bool:
        """Whether the rarer of two classes is held by fewer than ``FEW_HOLD`` of several groups, and by fewer than half
        of what all of them are worth."""
        if self.groups is None or len(self.groups) < 2 or self.cells is None or self.sums.layout.soft:
            return False
        return bool(self.groups.held().min() < min(interval.FEW_HOLD, self.effective / 2))

    def or_claimed(self, found: Spread | None, alone: tuple[float, float]) -> Spread | None:
        """Give the spread of groups, of fewer than ``FEW`` ``as_skewed`` as single rows would be if labels came as
        claimed, of which Σ r² and Σ r³ are ``alone``. Few that hold a class and scatter less than ``TAME`` of that have
        not seen what it costs: then that of labels so drawn, rows of a group being one draw, the most in common."""
        assert self.groups is not None
        tame = found is None or found.second * (1 + 1 / found.freedom) < interval.TAME * alone[0]
        if not (self.few_hold and tame):
            return found.as_skewed(*alone) if found and self.effective < interval.FEW else found
        size = self.groups.column("weight")
        return Spread(alone[0] * float(np.sum(size**2) / np.sum(size)), 0.0, self.weight, len(self.groups) - 1.0)

    def unseen(self) -> float:
        """What one of two classes that never came may add to the cost of a row, nats; 0 where both came. Its share, at
        most the upper end of Wilson's interval of 0 rows (or groups) in so many, times what its label would have cost
        more, a mean over the rows. That is the most, if the class comes no more often where the model gives it less.
        """
        if self.cells is None or self.sums.layout.soft or np.all(self.frequencies > 0):
            return 0.0
        zero, one = costs_of_cells(self.cells)
        more = float(np.sum(self.cells.weight * (one - zero))) / self.weight
        high = interval.of_share(np.array(0.0), np.array(self.effective))[1]
        return float(high) * max(more if self.frequencies[1] == 0 else -more, 0.0)

    @property
    def lonely(self) -> bool:
        """Whether one of two classes came once, counted in independent rows: nothing tells how it scatters."""
        if self.groups is not None or self.sums.layout.soft or self.sums.layout.classes != 2:
            return False
        m = self.moments
        return bool(np.any(m[:, 0] ** 2 < 1.5 * m[:, 2]))

    def _spread_of(self, groups: Groups, alpha: float, v: _Float, mean: float) -> Spread | None:
        cost = groups.column("cost" if self.floor is None else "floored")
        return of_groups(alpha * cost + groups.labels() @ v, groups, mean, bool(v.any()) and not self.sums.layout.soft)

    def _cost_of_sample(self) -> _Float:
        assert self.sample is not None
        return self.sample.floored if self.floor is not None else costs_of_logs(self.sample.logs, self.sample.labels)

    def variances_of_frequencies(self) -> _Float:
        """The variance of each entry of ``frequencies``, (classes,)."""
        f = self.frequencies
        groups = self.folds if self.groups is None else self.groups
        if groups is not None:
            residual = groups.labels() - f * groups.column("weight")[:, None]
            return (residual**2).sum(axis=0) / self.weight**2
        if not self.sums.layout.soft:
            two = self.moments[:, POWERS.index((2, 0))]
            return np.maximum(two * (1 - 2 * f) + f * f * two.sum(), 0.0) / self.weight**2
        if self.cells is not None:
            two, y, yy = self.cells.squares.sum(axis=-1)
            own = max(float(yy - 2 * f[1] * y + f[1] ** 2 * two), 0.0) / self.weight**2
            return np.array([own, own])
        if self.sample is None:
            return np.zeros(f.size)
        squares = self.sample.weights**2
        off = (distributions(self.sample.labels, f.size) - f) ** 2
        return off.T @ squares * (self.squares_of_weight()[1] / squares.sum()) / self.weight**2


def _number(value: float, unit: str, spread: Spread | None, n: int, least: float = -math.inf) -> Number:
    ends = None if spread is None else spread.interval(value)
    return Number(value, unit, n=n) if ends is None else Number(value, unit, max(ends[0], least), ends[1], n)


def cross_entropy(of: Evidence) -> Number:
    """The mean of the costs, nats, with Hall's interval."""
    value = of.cross_entropy
    if not math.isfinite(value):
        return _number(value, "nats", None, of.n)
    spread, claimed = of.scatter(1.0, np.zeros(of.sums.layout.classes), value), of.claimed()
    if claimed is not None and claimed.second > (0.0 if spread is None else spread.second):
        spread = claimed
    found = _number(value, "nats", spread, of.n, least=0.0)
    return found if found.high is None else replace(found, high=max(found.high, value + of.unseen()))


def label_entropy(of: Evidence) -> Number:
    """Estimate the entropy of the labels, in nats: that of their own frequencies, the plug-in estimate.

    It is low in expectation (``entropy_bias``), because frequencies fit the rows they were counted on, with weights,
    shares and groups too. The interval allows for that; the value is left as it is, so that information gained is the
    difference of two figures that stand in the record. Of two classes it is that of the share, exactly, and holds where
    one of them never came.
    """
    shares, value = of.frequencies, of.entropy
    came = shares > 0
    if shares.size == 2 and of.n > 1:
        share = float(shares[1])
        rows = _rows_behind(share, of.spread(0.0, np.array([0.0, 1.0]), share), of)
        # Few groups cannot tell how much their rows have in common: all, which leaves as many rows as groups.
        ends = interval.of_two_classes(share, min(rows, of.effective) if of.few_hold else rows)
        return Number(value, "nats", min(ends[0], value), max(ends[1], value), of.n)
    bias = -entropy_bias(of)
    if of.n < 2 or bias <= 0 or np.count_nonzero(came) < 2:
        return Number(value, "nats", n=of.n)
    error = 0.0
    if spread := of.spread(0.0, of.cost_under_frequencies(), value):
        error = math.sqrt(spread.second) / spread.total
    unseen = 0.0
    if (counts := _counts_of_few(of)) is not None:
        estimate, own = interval.of_unseen(counts)
        # The jackknife's error is too large on average (Efron & Stein 1981), the other, of what came alone, too small.
        unseen, error = estimate - value, math.sqrt((error**2 + max(error, own) ** 2) / 2)
    low, high = interval.of_entropy(value, error, bias, int(came.sum()), shares.size, unseen)
    return Number(value, "nats", low, max(high, _with_more_of_few(of, value)), of.n)


def _with_more_of_few(of: Evidence, value: float) -> float:
    """The most that an entropy may be for classes that few groups hold, and for all together that none has."""
    if of.groups is None:
        return value
    shares, never = of.frequencies, int(np.count_nonzero(of.frequencies == 0))
    few = (shares > 0) & (shares < 1) & (of.groups.held() < min(interval.FEW_HOLD, of.effective / 2))
    each = [(float(share), 1) for share in shares[few]] + [(0.0, never)] * bool(never)
    return max((interval.with_more_of(value, share, of.effective, among) for share, among in each), default=value)


def _counts_of_few(of: Evidence) -> _Float | None:
    """How often each class came that did, where rows are few for so many classes, some came once, and rows are counted:
    neither weighed nor in groups, nor their labels shares."""
    labels = of.sums.total("label", of.which)
    counts = labels[labels > 0]
    weighed = of.sums.layout.soft or of.groups is not None or of.sums.count("weighted", of.which) > 0
    if weighed or of.n > _FEW_A_CLASS * labels.size or not np.any(counts == 1):
        return None
    return counts


def entropy_bias(of: Evidence) -> float:
    """How far the plug-in entropy is off on average, nats: −Σ_c Var(f_c) / (2 f_c), which is −(k − 1)/(2n) for n rows
    of k classes (Miller 1955). 0 where one class came.
    """
    shares = of.frequencies
    came = shares > 0
    if np.count_nonzero(came) < 2:
        return 0.0
    return -float(np.sum(of.variances_of_frequencies()[came] / shares[came])) / 2


def likelihood(of: Evidence, floored: Evidence) -> dict[str, Number]:
    """Measure cross-entropy, what it is worth beside the label entropy, and how many rows were called
    impossible.

    Skill is 1 − C/H, C the cross-entropy and H the label entropy of the same rows; its interval is that of the mean of
    −c_i/H + C h_i/H² (delta method). Without skill where H is 0. Intervals end at log classes gained and a skill of 1.
    Perplexity is exp(C), its interval that of C. Where labels are distributions, ``truth_entropy`` is the mean of their
    own entropies, which no model can go below, and ``kl_divergence`` what the model loses beyond it.
    """
    n = of.n
    loss, entropy = cross_entropy(of), label_entropy(of)
    found = {"cross_entropy": loss, "cross_entropy_bits": loss.to("bits")}
    if of.impossible:
        found["cross_entropy_floored"] = cross_entropy(floored)
    found["impossible_rows"] = Number(of.impossible, "rows", n=n)
    found["label_entropy"] = entropy.to("bits")
    found["label_entropy_bias"] = Number(entropy_bias(of), "nats", n=n).to("bits")
    own, finite = of.cost_under_frequencies(), math.isfinite(loss.value)
    gain = entropy.value - loss.value
    spread = of.scatter(-1.0, own, gain) if finite else None
    found["information_gained"] = _number(gain, "nats", spread, n).to("bits").ending_at(math.log2(own.size))
    known = None not in (loss.low, loss.high, entropy.low, entropy.high)
    if known and of.claimed() is not None:
        # The two do not go together where one of the classes never came: every difference of what both may be.
        apart = Number(gain, "nats", -(loss.high or 0.0), (entropy.high or 0.0) - (loss.low or 0.0), n)
        found["information_gained"] = apart.to("bits")
    if entropy.value > 0:
        value, h = 1 - loss.value / entropy.value, entropy.value
        terms = own * (loss.value / h**2) if finite else own
        share: interval.Interval = None
        if known and entropy.low and of.lonely:  # every ratio of what both may be
            share = 1 - (loss.high or 0.0) / entropy.low, 1 - (loss.low or 0.0) / (entropy.high or h)
        elif finite and (spread := of.scatter(-1 / h, terms, 0.0)):
            share = spread.interval(value)
        low, high = share or (None, None)
        found["skill"] = Number(value, "share", low, high, n).ending_at(1.0)
    found["perplexity"] = perplexity(loss)
    return found


def perplexity(loss: Number) -> Number:
    """Give exp of a cross-entropy in nats, with the same of its interval."""
    value = math.exp(min(loss.value, 709.0)) if math.isfinite(loss.value) else math.inf
    return Number(value, "1", _exp(loss.low), _exp(loss.high), loss.n)


def _exp(x: float | None) -> float | None:
    return None if x is None else math.exp(min(x, 709.0))  # beyond, float64 ends


def truth(of: Evidence) -> dict[str, Number]:
    """Give the entropy of labels that are distributions, and the KL divergence of the model from them; else nothing."""
    if not of.sums.layout.soft:
        return {}
    apart = Number(math.inf, "nats", n=of.n) if of.impossible else mean_of(of, "divergence", "nats")
    return {"truth_entropy": mean_of(of, "truth", "nats"), "kl_divergence": apart}


def errors(of: Evidence, task: str, classes: int | None = None) -> dict[str, Number]:
    """Measure how far off predictions are, in the units people ask for beside the log loss.

    Classes: accuracy, the share of rows whose most probable class came (of equal ones, the first), with Wilson's
    interval; the same for the 3 and the 5 most probable classes; and the Brier score (1950), the mean of
    Σ_c (p_c − y_c)², or (p − y)² for two classes, which is half that sum and what scikit-learn calls Brier too. A
    range: mean absolute and root mean squared error of the predicted mean, in the target's own unit; the interval of
    the latter is the root of the square's. ``classes`` says how many there are, where rows are those of one class.
    """
    if task == "range":
        absolute, squared = mean_of(of, "absolute", "target"), mean_of(of, "squared", "target")
        root = [None if end is None else math.sqrt(end) for end in (squared.low, squared.high)]
        return {"mae": absolute, "rmse": Number(math.sqrt(squared.value), "target", root[0], root[1], of.n)}
    found = {"accuracy": _accuracy(of)}
    classes = classes or of.sums.layout.classes
    if classes > TOPS[0]:
        for k, hits in zip(TOPS, of.sums.total("top", of.which), strict=True):
            if classes > k:
                found[f"top_{k}_accuracy"] = _share(of, float(hits) / of.weight, _design(of))
    return found | {"brier": mean_of(of, "squared", "1")}


def mean_of(of: Evidence, name: str, unit: str) -> Number:
    """Give the mean of one of the quantities whose powers are summed, with its interval; none of them is below 0."""
    m = of.sums.total(name, of.which)
    mean = float(m[1]) / of.weight
    if of.groups is not None:
        return _number(mean, unit, of_groups(of.groups.column(name), of.groups, mean), of.n, least=0.0)
    return _number(mean, unit, of_moments(m, mean, of.weight, of.effective - 1), of.n, least=0.0)


def _design(of: Evidence) -> float:
    """How many independent rows a share of hits rests on: its binomial variance over that of weights and groups."""
    one, two, three = of.sums.total("hit", of.which)
    share = float(one) / of.weight
    if of.groups is not None:
        return _rows_behind(share, of_groups(of.groups.column("hit"), of.groups, share), of)
    variance = float(three - 2 * share * two + share**2 * of.squares_of_weight()[1]) / of.weight**2
    return share * (1 - share) / variance if variance > 0 and 0 < share < 1 else of.effective


def _rows_behind(share: float, spread: Spread | None, of: Evidence) -> float:
    """How many independent rows would know a share as well as this ``spread`` says; with few groups, Student's t."""
    if spread is None or not 0 < share < 1:
        return of.effective
    if of.groups is None:
        return share * (1 - share) * spread.total**2 / spread.second
    error2 = spread.second * (1 + 1 / spread.freedom) / spread.total**2
    return interval.as_wilson(share * (1 - share) / error2, spread.freedom)


def _accuracy(of: Evidence) -> Number:
    return _share(of, float(of.sums.total("hit", of.which)[0]) / of.weight, _design(of))


def _share(of: Evidence, share: float, independent: float) -> Number:
    """Wilson's interval with as many rows as the share's own variance says."""
    low, high = interval.of_share(np.array(share * independent), np.array(independent))
    return Number(share, "share", float(low), float(high), of.n)
