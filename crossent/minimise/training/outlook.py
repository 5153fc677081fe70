"""What more time would win: the curve of the held-out loss, carried on.

A training that was ended by the clock leaves a curve of its held-out loss over equally long epochs k. It is carried on
by the best of two families that losses of networks follow (Domhan, Springenberg & Hutter 2015, table 1), a decay
towards a floor by a fixed share an epoch, or by a power of the epochs done:

    L(k) = a + b e^(-k / τ)            L(k) = a + b k^(-c)            b ≥ 0, a ≥ 0                              (1)

What d more epochs win is L(k) - L(k + d) at the last epoch k. The later half of the curve is fitted by least squares:
a and b are linear, and τ or c is the best of a grid, τ at most twice the time so far, so that no straight line is
carried on for ever. Where the curve does not fall by more than its noise, by an F test, nothing is expected: a loss
that has levelled off or rises wins nothing by going on.

It is a forecast of the loss that epochs are chosen by, from one curve, and knows nothing of what no curve shows: a
learning rate that is still to fall, a second descent, a kind of network that has hardly begun. So it is said to be the
least: of six runs that were then given the minute two won about as much and four more (docs/switches.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from crossent.errors import DataError
from crossent.minimise.training.state import History

LEAST_EPOCHS = 5
"""Of a curve to be carried on: three make any of (1) fit, and two more show the noise."""
MINUTE = 60.0
NO_TREES = "There was no time for boosted trees, and what they would win is not counted."
_SHAPES = 200
"""Rates and powers that are tried in each family, in equal ratios."""
_POWERS = (0.25, 8.0)
_SURE = 0.05


@dataclass(frozen=True)
class Outlook:
    """What the next minute of a training is expected to win: ``nats``, or None where nobody can say; in a sentence."""

    nats: float | None
    sentence: str


def check_budget(seconds: float | None) -> None:
    """Refuse a time that is none: what is not above 0, not finite, or no number."""
    if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise DataError(f"the budget must be a positive number of seconds, and is {seconds!r}.")


def outlook(histories: Sequence[History]) -> Outlook:
    """What one more minute of trainings that share the time alike would win, together, in nats a row.

    ``histories`` of networks whose held-out losses are averaged. None does more than its ``most`` epochs.

    >>> curve = [0.3 + 0.2 * 0.5 ** (k / 10) for k in range(1, 21)]
    >>> stopped = "the time allowed was over"
    >>> cut = History(train=curve, validation=curve, best_epoch=20, stopped=stopped, seconds=120, most=200)
    >>> round(outlook([cut]).nats, 3)  # ten epochs more halve the 0.05 that are left
    0.025
    """
    cut = [history for history in histories if history.by_time]
    if not cut:
        return Outlook(0.0, f"More time is not expected to win anything: {histories[0].stopped}.")
    if (few := min(len(history.validation) for history in cut)) < LEAST_EPOCHS:
        epochs = f"{few} epoch{'s' * (few != 1)}"
        return Outlook(None, f"The time was over after {epochs}, too few to say what the next minute would win.")
    won = []
    for history in cut:
        done = len(history.validation)
        further = MINUTE / len(cut) / max(1e-9, history.seconds / done)
        won.append(expected(history.validation, min(further, history.most - done)))
    nats = math.fsum(won) / len(histories)
    if nats < 5e-7:
        why = "the held-out loss no longer falls by more than its noise"
        return Outlook(nats, f"More time is not expected to win anything: {why}.")
    return Outlook(nats, f"The next minute of training is expected to win at least {nats:.2g} nats of held-out loss.")


def expected(losses: Sequence[float], further: float) -> float:
    """What ``further`` epochs are expected to win over the last of ``losses``, by (1): 0 or more, at most that loss."""
    last = len(losses)
    window = min(last, max(LEAST_EPOCHS, -(-last // 2)))
    k = np.arange(last - window + 1, last + 1, dtype=np.float64)
    y = np.asarray(losses[-window:], dtype=np.float64)
    if not np.isfinite(y).all() or further <= 0:
        return 0.0
    g = _shapes(k[0], np.append(k, last + further), last)
    after, g = g[:, -1], g[:, :-1]
    deviation = g - g.mean(1, keepdims=True)
    b = deviation @ y / np.square(deviation).sum(1)
    b = np.where(y.mean() < b * g.mean(1), g @ y / np.square(g).sum(1), b)  # no cross-entropy has a floor below 0
    a = np.maximum(0.0, y.mean() - b * g.mean(1))
    left = np.where(b > 0, np.square(y - a[:, None] - b[:, None] * g).sum(1), np.inf)
    best = int(left.argmin())
    # The height and the shape are two numbers more than a mean: they must take away more than noise gives them.
    free, flat = window - 3, float(np.square(y - y.mean()).sum())
    if not flat - left[best] > 2 * float(f_distribution.isf(_SURE, 2, free)) * left[best] / free:
        return 0.0
    return min(float(b[best] * (g[best, -1] - after[best])), float(y[-1]))


def _shapes(first: float, k: NDArray[np.float64], last: int) -> NDArray[np.float64]:
    """(shapes, epochs): what b multiplies in (1), taken to be 1 at the ``first`` epoch."""
    rates = np.geomspace(last / 32, 2 * last, _SHAPES)[:, None]
    powers = np.geomspace(*_POWERS, _SHAPES)[:, None]
    return np.concatenate((np.exp((first - k) / rates), (k / first) ** -powers))
