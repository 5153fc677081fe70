"""The rows a calibrator is fitted to: log-probabilities, what came, and what each row counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.likelihood import costs_of_logs

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """n rows of k classes: ``z`` log-probabilities (n, k), −inf where a class was called impossible; ``y`` what came.

    ``y`` is int64 (n,), the class, or float64 (n, k), the share of each class (soft labels, fractions of a range).
    ``weights`` (n,) are positive with mean 1, so that n rows weigh as much as n rows whatever the unit they came in;
    None where all are 1.
    """

    z: Floats
    y: NDArray[Any]
    weights: Floats | None = None

    @property
    def soft(self) -> bool:
        """Whether labels are shares of the classes, not one class."""
        return self.y.ndim == 2

    @property
    def classes(self) -> int:
        """How many columns there are."""
        return int(self.z.shape[1])

    def __len__(self) -> int:
        return int(self.z.shape[0])

    def take(self, which: NDArray[Any]) -> Rows:
        """Give some of the rows, by a mask or by places; their weights have mean 1 again."""
        weights = None if self.weights is None else self.weights[which]
        if weights is not None and weights.size:
            weights = weights / weights.mean()
        return Rows(self.z[which], self.y[which], weights)

    def costs(self, logs: Floats) -> Floats:
        """Give what each row costs in nats under log-probabilities (n, k); infinite where a label met a 0."""
        if not self.soft:
            return costs_of_logs(logs, self.y)
        return -np.sum(np.multiply(self.y, logs, out=np.zeros_like(logs), where=self.y > 0), axis=1) + 0.0

    def of(self, labels: Floats) -> Floats:
        """Give ``labels`` (n, k) at what came, (n,): the entry of the class, or the average over the shares."""
        return labels[np.arange(len(self)), self.y] if not self.soft else np.sum(self.y * labels, axis=1)

    def shares(self) -> Floats:
        """Give what came as a distribution over the classes, (n, k)."""
        return self.y if self.soft else np.eye(self.classes)[self.y]


def rows_of(z: Floats, y: NDArray[Any], weights: Floats | None = None) -> Rows:
    """Put logits (n, k), labels in any of their forms and weights of any unit, none of them 0, into one form.

    Fractions (n,) of two classes become shares (1 − y, y); logits are normalised to log-probabilities.
    """
    if y.dtype.kind == "f" and y.ndim == 1:
        y = np.stack([1 - y, y], axis=1)
    return Rows(log_softmax(z), y, None if weights is None else weights / weights.mean())


def log_softmax(u: Floats) -> Floats:
    """Give u − log Σ exp u along the last axis; −inf stays −inf."""
    v = u - np.max(u, axis=-1, keepdims=True)
    return v - np.log(np.sum(np.exp(v), axis=-1, keepdims=True))
