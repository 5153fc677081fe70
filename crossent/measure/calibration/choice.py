"""The guarded choice: a calibrator is used only where it lowers the cross-entropy of rows it was not fitted to.

Every family is fitted five times to four fifths of the rows, and each row is calibrated by the fit that has not seen it
(folds at random, not stratified: docs/decisions/006; whole groups where groups are given). The differences, row by row,
from what the rows cost as they came have a mean and an interval (``cluster``: skewness, weights and clusters are in
it). m candidates are m chances to be lucky, so that each interval is one of 100 − 5/m %: that all of them hold at once
has probability 95 % or more (Bonferroni). Of the candidates whose interval lies below 0 the one that surely wins most,
whose interval ends lowest, is fitted to all rows: the cheapest in the mean may barely pass, by a few rows that it
cheapens much. If there is none, nothing is changed: a calibrator fitted to noise makes probabilities worse.

**Exact zeros.** If no label ever met a probability of 0, zeros are believed: they stay 0, and rows with one possible
class are left as they are. If one did, what the model calls impossible is not, and zeros are moved by every candidate;
a note says so. Those rows cost infinity as they came, which anything would beat. So nothing else wins by them than the
floor allows: with impossible rows, "as they came" means with every probability raised to at least ``FLOOR``, the
policy of ``likelihood``. A candidate that gives 0 to a label that came is out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.calibration.calibrator import Calibrator
from crossent.measure.calibration.families import FAMILIES, Family
from crossent.measure.calibration.rows import Floats, Rows, rows_of
from crossent.measure.intervals.cluster import cluster_mean
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sources import read_predictions
from crossent.measure.sources.files import are_files
from crossent.measure.sources.rows import splits_in
from crossent.measure.sums.hashing import stream
from crossent.measure.sums.likelihood import FLOOR, floor_said
from crossent.record import Table

FOLDS = 5

LEAST_EVENTS = 20
"""Fewer independent rows whose label is not the commonest class calibrate nothing.

An interval cannot know of what was not in the sample: with 3 groups, or 16 rows, of a rare class it lay below 0 for
calibrators that made other rows of the same data dearer by more than one standard error (docs/guides/calibrate.md)."""


@dataclass(frozen=True)
class Choice:
    """Why a calibrator was chosen: a sentence, what each candidate did, which were left out and why, and notes.

    ``table`` has the columns name, cross_entropy (cross-fitted, in nats), low and high (of its change; all intervals of
    one table hold together with 95 %) and chosen.
    """

    sentence: str
    table: Table
    left_out: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def absent(self) -> list[str]:
        """Sentences on the candidates that were left out, one for each reason."""
        return [
            f"Left out: {', '.join(name for name, reason in self.left_out.items() if reason == why)}. "
            f"{why[0].upper()}{why[1:].rstrip('.')}."
            for why in dict.fromkeys(self.left_out.values())
        ]

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain data that JSON holds; an infinite cross-entropy as text."""
        plain = asdict(self)
        plain["table"] = {
            name: [str(cell) if cell in (np.inf,) else cell for cell in cells] for name, cells in self.table.items()
        }
        return {**plain, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Choice:
        """Read back what ``to_dict`` wrote."""
        table = {
            name: [float(cell) if name == "cross_entropy" else cell for cell in cells]
            for name, cells in plain["table"].items()
        }
        return cls(str(plain["sentence"]), table, dict(plain["left_out"]), tuple(plain["notes"]))


def calibrate(
    probabilities: Any,
    labels: Any = None,
    *,
    label: str | Sequence[str] | None = None,
    probability: str | Sequence[str] | None = None,
    row: str | None = None,
    split: str | None = None,
    weight: Any = None,
    group: Any = None,
    form: str | None = None,
    truth: str | None = None,
    normalise: bool = False,
    classes: Sequence[Any] | None = None,
    task: str | None = None,
    low: float | None = None,
    high: float | None = None,
    seed: int = 0,
    families: Sequence[str] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Calibrator:
    """Find the calibrator that makes these probabilities better; one that changes nothing, if none does beyond doubt.

    ``probabilities`` (n,) of the second class or (n, classes), arrays, tensors or frames, with ``labels``: class names
    or columns, shares (n, classes), fractions with ``task="range"``. Or a file, a folder or a pattern of them, with
    ``label``, ``probability``, ``row`` and ``split`` naming columns; or ``Predictions``. What a row counts (``weight``)
    and which rows are not independent (``group``) are names of columns for files, values (n,) for arrays. All of these,
    ``form`` and what follows it are as in ``evaluate``, but for a file of several splits: nobody calibrates by the test
    rows unasked, and so ``split`` has to say which. ``seed`` draws the folds; the same seed gives the same answer.
    ``families`` names the candidates, all that can take these rows unless said.

    Returns a ``Calibrator``: call it on probabilities; ``.choice`` says why. Raises DataError, a sentence, for anything
    that is not predictions. Accuracy: never worse than doing nothing beyond one standard error on the sets of
    docs/guides/calibrate.md. Cost: six fits of each of up to seven families, most of them tens of passes over (n,
    classes) in float64.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(size=4000)
    >>> y = (rng.uniform(size=p.size) < p).astype(int)
    >>> calibrate(p, y).kind
    'none'
    >>> sure = p**3 / (p**3 + (1 - p) ** 3)  # log-odds three times too large
    >>> c = calibrate(sure, y)
    >>> bool(np.abs(c(sure) - p).max() < 0.05)
    True
    """
    how: dict[str, Any] = {"form": form, "truth": truth, "normalise": normalise, "classes": classes, "task": task}
    how |= {"low": low, "high": high}
    if isinstance(probabilities, Predictions):
        found = probabilities
    elif are_files(probabilities):
        if labels is not None:
            raise DataError("a file brings its own labels: name their column with label=, not labels=.")
        if split is None:
            split = _only_split(probabilities)
        found = read_predictions(
            probabilities, label, probability, row, split, weight=weight, group=group, progress=progress, **how
        )
    elif labels is None:
        raise DataError("calibrate needs labels: pass them after the probabilities, or a file that has them.")
    elif label is not None or probability is not None or row is not None or split is not None:
        raise DataError("label=, probability=, row= and split= name columns of a file, and what came is not a file.")
    else:
        found = Predictions.from_arrays(probabilities, labels, weights=weight, groups=group, **how)
    known = [family.name for family in FAMILIES]
    if families is not None and (unknown := [name for name in families if name not in known]):
        raise DataError(f"there is no family of calibrators {unknown[0]!r}; there are {', '.join(known)}.")
    if found.task == "text":
        raise DataError(
            "rows of text have one probability each, that of the text: there is nothing to share it out to."
        )
    z = found.log_probabilities
    if z is None:
        with np.errstate(divide="ignore"):
            z = np.log(found.probabilities)
    return choose(
        z,
        found.labels,
        weights=found.weights,
        groups=found.groups,
        seed=seed,
        classes=tuple(found.classes),
        candidates=[family for family in FAMILIES if families is None or family.name in families],
        notes=found.notes,
    )


def _only_split(path: Any) -> str | None:
    """The split whose rows a file holds, None where it says nothing of splits; refuse to choose among several."""
    found = splits_in(path)
    if len(found) > 1:
        raise DataError(
            f"the rows are of the splits {some(found)}, and those to calibrate by have to be named, with split= "
            "(--split): not those the model was trained on, nor those it is tested on."
        )
    return found[0] if found else None


def choose(
    logits: Floats,
    labels: NDArray[Any],
    *,
    weights: Floats | None = None,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
    classes: tuple[str, ...] = (),
    candidates: Sequence[Family] = FAMILIES,
    notes: tuple[str, ...] = (),
) -> Calibrator:
    """Do what ``calibrate`` does from checked rows: logits (n, classes), labels as ``Predictions`` holds them."""
    if weights is not None:
        counted = weights > 0
        logits, labels, weights = logits[counted], labels[counted], weights[counted]
        groups = None if groups is None else groups[counted]
    if not len(labels):
        raise DataError("there are no rows to calibrate with.")
    rows = rows_of(logits, labels, weights)
    came = rows.costs(rows.z)
    impossible = int(np.count_nonzero(np.isinf(came)))
    zeros = "moved" if impossible else "kept"
    plain = rows.costs(np.maximum(rows.z, np.log(FLOOR))) if impossible else came
    clusters = None if groups is None else np.unique(groups, return_inverse=True)[1]
    notes = (*notes, *_notes(rows, impossible))
    table: Table = {"name": ["none"], "cross_entropy": [_mean(came, rows)], "low": [None], "high": [None]}

    def settled(kind: str, steps: tuple, sentence: str, left_out: dict[str, str]) -> Calibrator:
        table["chosen"] = [name == kind for name in table["name"]]
        choice = Choice(sentence, table, left_out, notes)
        return Calibrator(kind, steps, zeros, classes, len(rows), choice)

    if (reason := _too_little(rows, clusters)) is not None:
        return settled("none", (), f"Nothing is changed: {reason}.", {})
    candidates = [family for family in candidates if family.suits(rows.classes)]
    left_out = {family.name: why for family in candidates if (why := family.refuses(rows)) is not None}
    candidates = [family for family in candidates if family.name not in left_out]
    unsettled = np.ones(len(rows), bool) if impossible else np.isfinite(rows.z).sum(axis=1) > 1
    fold = _folds(len(rows), clusters, seed)
    tried: list[tuple[float, float | None, float | None, Family]] = []
    for family in candidates:
        costs = rows.costs(_cross_fitted(family, rows, zeros, unsettled, fold))
        if np.isinf(costs).any():
            left_out[family.name] = "it gave a probability of 0 to a label that came"
            continue
        change = cluster_mean(costs - plain, rows.weights, clusters, scale=float(np.max(plain)))
        low, high = change.interval(0.05 / len(candidates))
        tried.append((change.value, low, high, family))
        for name, cell in (("name", family.name), ("cross_entropy", _mean(costs, rows)), ("low", low), ("high", high)):
            table[name].append(cell)
    better = [(high, low, value, family) for value, low, high, family in tried if high is not None and high < 0]
    loss = _mean(plain, rows)
    if not better:
        return settled("none", (), _nothing(tried, loss, len(rows), bool(impossible)), left_out)
    high, low, value, family = min(better, key=lambda one: one[0])
    steps = family.fit(rows.take(unsettled))
    assert low is not None
    sentence = (
        f"{family.name[0].upper()}{family.name[1:]}: on rows it was not fitted to, cross-entropy falls from {loss:.4f} "
        f"{'(floored) ' if impossible else ''}to {loss + value:.4f} nats, by {-value:.4f} ({-high:.4f} to {-low:.4f})."
    )
    return settled(family.name, steps, sentence, left_out)


def _cross_fitted(family: Family, rows: Rows, zeros: str, unsettled: NDArray[np.bool_], fold: NDArray[Any]) -> Floats:
    out = rows.z.copy()
    for held_out in range(int(fold.max()) + 1):
        here = fold == held_out
        others = rows.take(~here & unsettled)
        if len(others):
            out[here] = Calibrator(family.name, family.fit(others), zeros).of_logits(rows.z[here])
    return out


def _folds(n: int, clusters: NDArray[np.int64] | None, seed: int) -> NDArray[np.int64]:
    """Which fold a row is held out with: at random, whole clusters together."""
    random = stream(seed, "folds")
    if clusters is None:
        return random.permutation(n) % min(FOLDS, n)
    count = int(clusters.max()) + 1
    return (random.permutation(count) % min(FOLDS, count))[clusters]


def _too_little(rows: Rows, clusters: NDArray[np.int64] | None) -> str | None:
    if not rows.soft and (rows.y == rows.y[0]).all():
        return f"all {len(rows):,} labels are the same class, so that probabilities cannot be held against what came"
    if clusters is not None and not clusters.any():
        return "all rows are of one group, and it takes other groups to judge a calibrator by"
    shares = rows.shares()
    other = 1 - shares[:, int(np.argmax(shares.mean(axis=0)))]
    events = float(np.minimum(other if clusters is None else np.bincount(clusters, other), 1.0).sum())
    if events < LEAST_EVENTS:
        units = f"{len(rows):,} rows" if clusters is None else f"{int(clusters.max()) + 1:,} groups"
        return (
            f"{events:.3g} of {units} have another label than the commonest, too few to judge a calibrator by; it "
            f"takes {LEAST_EVENTS}"
        )
    return None


def _notes(rows: Rows, impossible: int) -> tuple[str, ...]:
    if impossible:
        return (
            f"{impossible:,} of {len(rows):,} labels had probability 0, so that what is called impossible is not: a "
            "calibrator that is chosen moves every zero to a small positive probability, and was held against the "
            f"probabilities raised to at least {floor_said(FLOOR)}.",
        )
    never = int(np.count_nonzero(np.isneginf(rows.z)))
    return (f"{never:,} probabilities are exactly 0, no label came there, and they stay 0.",) if never else ()


def _nothing(tried: list[Any], loss: float, n: int, floored: bool) -> str:
    start = f"Nothing to fix: cross-entropy is {loss:.4f} nats{' (floored)' if floored else ''}"
    if not tried:
        return f"{start}, and no candidate could be judged."
    value, low, high, family = min(tried, key=lambda one: one[0])
    if low is None or high is None:
        return f"{start}, and the rows do not differ enough to judge a calibrator by."
    change = f"{value:+.4f} ({low:+.4f} to {high:+.4f})".replace("-", "−")
    return (
        f"{start}, and no calibrator lowers it by more than {n:,} rows could show by chance; the best, {family.name}, "
        f"changes it by {change}."
    )


def _mean(costs: Floats, rows: Rows) -> float:
    return float(np.mean(costs)) if rows.weights is None else float(np.mean(costs * rows.weights))
