"""One model against the baseline: by how much, in which part, on which slices, on which rows.

A difference is the model's cost minus the baseline's, d_i on row i, so that below 0 the model is the better one. Its
mean D = Σ w_i d_i / W is a sum over rows, and over slices, so that each has a contribution to it, in nats; all of them
add up to D. Shares are of Σ w_i |d_i|, all that the two differ by in either direction, because D itself can be nearly
0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.comparison.claimed import CLAIMED_FREEDOM, claimed_error, of_rare, steadied
from crossent.measure.comparison.rival import Rival, doubt_between
from crossent.measure.intervals.cluster import ROUNDING, ClusterMean, cluster_mean
from crossent.measure.intervals.interval import FEW
from crossent.measure.values.spread import freedom_by_class
from crossent.record import Curve

MOST_ROWS = 20
_SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(k / 10 for k in range(1, 11)))


@dataclass(frozen=True, eq=False)
class Ground:
    """What the models share: the rows' ids, labels as text or numbers, what rows count and belong to.

    ``weights`` (n,) are positive; ``clusters`` (n,) whole numbers from 0; ``groups`` the same by name: each may be
    None, and so may ``bytes`` (n,), the length of what a row predicted. ``slices`` has by name a text per row.
    """

    rows: NDArray[Any]
    labels: list[Any] | NDArray[Any]
    weights: NDArray[np.float64] | None
    clusters: NDArray[np.int64] | None
    groups: NDArray[Any] | None
    slices: Mapping[str, NDArray[Any]]
    bytes: NDArray[np.int64] | None = None

    def mean(self, rows: NDArray[np.float64], scale: float | None = None, further: float = 0.0) -> ClusterMean:
        """Give the mean of numbers that belong to these rows."""
        return cluster_mean(rows, self.weights, self.clusters, scale, further)

    def share(self) -> NDArray[np.float64]:
        """What each row counts, adding up to 1."""
        n = len(self.rows)
        return np.full(n, 1 / n) if self.weights is None else self.weights / self.weights.sum()

    def take(self, here: NDArray[np.bool_]) -> Ground:
        """Give some of the rows; clusters are counted anew."""
        clusters = None if self.clusters is None else np.unique(self.clusters[here], return_inverse=True)[1]
        weights = None if self.weights is None else self.weights[here]
        return Ground(self.rows[here], [], weights, clusters, None, {})


def same(baseline: Rival, model: Rival) -> bool:
    """Say whether the two cost the same on every row, but for rounding."""
    size = float(max(np.max(baseline.floored), np.max(model.floored)))
    return bool(np.max(np.abs(model.floored - baseline.floored)) <= ROUNDING * size)


def parts(ground: Ground, baseline: Rival, model: Rival) -> dict[str, ClusterMean]:
    """Give the differences of cross-entropy (floored), discrimination and miscalibration, in nats.

    The first is −the second + the third, to rounding; documents have the first only.
    """
    scale = float(max(np.max(baseline.floored), np.max(model.floored)))
    own = model.floored - baseline.floored
    seen = ground.mean(own, scale)
    whole = _of_few_labels(ground, baseline, model, seen)
    if model.calibrated is None or baseline.calibrated is None:
        return {"cross_entropy": whole}
    doubt, calibrated = doubt_between(baseline, model, ground.share()), model.calibrated - baseline.calibrated
    return {
        "cross_entropy": whole,
        "discrimination": _as_doubtful(ground.mean(-calibrated, scale, doubt), seen, whole),
        "miscalibration": _as_doubtful(ground.mean(own - calibrated, scale, doubt), seen, whole),
    }


def _of_few_labels(ground: Ground, baseline: Rival, model: Rival, mean: ClusterMean) -> ClusterMean:
    """The same mean, its error no smaller than the models claim where few rows or clusters hold few labels
    (``claimed``), its freedom that of the classes where they have less (``freedom_by_class``).
    """
    if baseline.came is None or mean.error is None:
        return mean
    clusters = np.arange(len(ground.rows)) if ground.clusters is None else ground.clusters
    rows = baseline.floored, model.floored, baseline.came, ground.share(), clusters
    few = ground.clusters is not None and mean.freedom < FEW
    if few and (error := claimed_error(*rows)) is not None:
        own = replace(mean, freedom=mean.freedom + CLAIMED_FREEDOM)
        # An error that is not the rows' own does not go together with their mean: nothing leans T to a side.
        return own if error <= mean.error else replace(own, beside=replace(own, error=error, lean=0.0))
    error, freedom = of_rare(*rows, mean.error)
    if error is not None:
        return replace(mean, error=error, freedom=freedom, lean=0.0)
    if ground.clusters is None:
        classes = np.stack([~baseline.came, baseline.came])
        share, residual = ground.share(), model.floored - baseline.floored - mean.value
        sums = [classes @ x for x in (share, share**2, share**2 * residual, (share * residual) ** 2)]
        freedom = min(freedom, freedom_by_class(*sums))
    elif not few and math.isinf(freedom):
        mean = replace(mean, error=steadied(*rows, mean.error), freedom=mean.freedom_of_tails)
    return replace(mean, freedom=min(mean.freedom, freedom))


def _as_doubtful(part: ClusterMean, seen: ClusterMean, whole: ClusterMean) -> ClusterMean:
    """A part of the difference: what the rows have not ``seen`` of the ``whole``, they have not of the part either."""
    if part.error is None or seen.error is None or whole.error is None:
        return part
    own, known = part.error**2, seen.error**2

    def with_unseen(error: float) -> float:
        return math.sqrt(own + max(error**2 - known, 0.0))

    if whole.freedom >= seen.freedom + CLAIMED_FREEDOM:
        part = replace(part, freedom=part.freedom + CLAIMED_FREEDOM)
        unseen = whole.beside and whole.beside.error
        return replace(part, beside=replace(part, error=with_unseen(unseen), lean=0.0)) if unseen else part
    freedom = min(part.freedom_of_tails, whole.freedom)
    if not whole.lean:  # what a class costs was not seen, and of neither part
        return replace(part, error=max(with_unseen(whole.error), whole.error), freedom=freedom, lean=0.0)
    return replace(part, error=with_unseen(whole.error), freedom=freedom)


def per_byte(ground: Ground, baseline: Rival, model: Rival) -> ClusterMean | None:
    """Give the difference in nats per byte of what was predicted: a mean over bytes, which are the rows' weights."""
    if ground.bytes is None:
        return None
    difference = model.floored - baseline.floored
    each = np.divide(difference, ground.bytes, out=np.zeros_like(difference), where=ground.bytes > 0)
    weights = ground.bytes * ground.share()
    return cluster_mean(each, weights, ground.clusters) if weights.any() else None


def slices(ground: Ground, baseline: Rival, model: Rival) -> list[dict[str, Any]]:
    """Give a line per slice: its name, both cross-entropies, its contribution to the difference, and its mean.

    Slices stand in the order of their names; the cells ``mean`` hold a ``ClusterMean``.
    """
    difference, share = model.floored - baseline.floored, ground.share()
    moved = float(np.sum(share * np.abs(difference)))
    lines = []
    for by, names in ground.slices.items():
        kept, codes = np.unique(np.array([str(name) for name in names]), return_inverse=True)
        for code, name in enumerate(kept.tolist()):
            here = codes == code
            inside = ground.take(here)
            w, d = share[here], difference[here]
            scale = float(max(np.max(baseline.floored[here]), np.max(model.floored[here])))
            lines.append(
                {
                    "by": by,
                    "slice": name,
                    "baseline": float(np.average(baseline.floored[here], weights=w)),
                    "cross_entropy": float(np.average(model.floored[here], weights=w)),
                    "contribution": float(np.sum(w * d)),
                    "share": float(np.sum(w * np.abs(d)) / moved) if moved else None,
                    "mean": inside.mean(d, scale),
                }
            )
    return lines


def dearest(ground: Ground, baseline: Rival, model: Rival) -> dict[str, list[Any]]:
    """Give the 20 rows that make the largest difference, in either direction, the largest first.

    ``baseline`` and ``cross_entropy`` are what the row costs either model, before the floor, in nats.
    """
    pull = ground.share() * (model.floored - baseline.floored)
    moved = float(np.sum(np.abs(pull)))
    top = np.argsort(-np.abs(pull), kind="stable")[:MOST_ROWS]
    top = top[pull[top] != 0]
    table = {"row": ground.rows[top].tolist(), "label": [_plain(ground.labels[i]) for i in top]}
    if ground.groups is not None:
        table["group"] = ground.groups[top].tolist()
    return table | {
        "baseline": baseline.costs[top].tolist(),
        "cross_entropy": model.costs[top].tolist(),
        "contribution": pull[top].tolist(),
        "share": (np.abs(pull[top]) / moved).tolist() if moved else [],
    }


def rows_to_turn(ground: Ground, baseline: Rival, model: Rival) -> int | None:
    """Count the rows, those that speak most for the winner, without which it would not win; None without a winner.

    The mean of the rows that are left has the sign of their sum, so that taking the largest first is the least.
    """
    pull = ground.share() * (model.floored - baseline.floored)
    total = float(np.sum(pull))
    if total == 0:
        return None
    speaking = np.sort(pull * np.sign(total))[::-1]
    speaking = speaking[speaking > 0]
    left = abs(total) - np.cumsum(speaking)
    return min(int(np.searchsorted(-left, 0.0)) + 1, int(speaking.size))


def concentration(ground: Ground, baseline: Rival, model: Rival) -> Curve | None:
    """Give the share of rows → their share of all that the models differ by, the largest differences first."""
    pull = np.sort(ground.share() * np.abs(model.floored - baseline.floored))[::-1]
    if not pull[0]:
        return None
    n = pull.size
    counts = np.unique([round(share * n) for share in _SHARES])
    reached = np.concatenate([[0.0], np.cumsum(pull)])
    return Curve(
        x=(counts / n).tolist(),
        y=(reached[counts] / reached[-1]).tolist(),
        x_name="share of rows, those that differ most first",
        y_name="share of all that the models differ by",
        n=counts.tolist(),
    )


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
