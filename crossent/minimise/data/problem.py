"""What is to be learnt, ready for a network: rows of tensors, and which rows are held out from which network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossent.minimise.data.task import Task

ENOUGH_TO_CHOOSE_BY = 5_000
"""Rows held out in one part at most: a sixth of many rows is more than epochs and a calibrator are chosen by."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Rows to learn from.

    ``x`` float32: prepared features (n, d), NaN where a number is missing, or images (n, channels, height, width).
    ``target``: labels (n,) int64, soft labels (n, classes) float32, or for a range the share (n,) float32 from 0 to 1.
    ``weight`` (n,) float32, or None where all rows count alike.
    """

    task: Task
    x: Tensor
    target: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def distribution(self) -> Tensor:
        """What log-probabilities (n, classes) are judged against: labels, soft labels, or (1 - f, f) of a range."""
        if self.task.kind == "range":
            share = self.target.double()
            return torch.stack((1 - share, share), -1)
        return self.target.double() if self.target.is_floating_point() else self.target

    def take(self, rows: Tensor) -> Problem:
        """Those rows of it."""
        return Problem(self.task, self.x[rows], self.target[rows], None if self.weight is None else self.weight[rows])

    def cross_entropy(self, log_p: Tensor, rows: Tensor | None = None) -> float:
        """Mean cross-entropy in nats of log-probabilities (n, classes), or of those of some rows; 0 of none.

        Weights count.
        """
        if rows is not None:
            return self.take(rows).cross_entropy(log_p[rows])
        row, column, count = self.labels()
        return float((count * -log_p[row, column]).sum() / count.sum()) if len(row) else 0.0

    def labels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every label of every row: the row (m,) and the class (m,), by their places, and what it counts (m,) float64.

        One for a row that has a label; of soft labels, and for a range, one for each class that has a share of the row,
        which counts the share. Rows and shares of weight 0 have none.
        """
        target = self.distribution
        weight = torch.ones(len(self)) if self.weight is None else self.weight
        soft = target.is_floating_point()  # of labels, one cell of a row counts: there may be thousands of classes
        amount = (target if soft else torch.ones(len(target), 1)) * weight.double().unsqueeze(-1)
        row, column = (amount > 0).nonzero(as_tuple=True)
        return row, column if soft else target[row], amount[row, column]

    def counts(self) -> Tensor:
        """Rows of each class, soft and weighted ones by their share: float64 (classes,)."""
        target = self.distribution
        if not target.is_floating_point():
            weight = None if self.weight is None else self.weight.double()
            return torch.bincount(target, weight, self.task.columns).double()
        return (target if self.weight is None else target * self.weight.double().unsqueeze(-1)).sum(0)


def folds(problem: Problem, parts: int, repeats: int, seed: int) -> Tensor:
    """Part the rows ``repeats`` times: int64 (repeats, n), the fold from 0 to ``parts`` - 1 in which a row is held out.

    With one part one row in six, or ``one_in``, is held out, in fold 0, and the others nowhere (-1). Folds are drawn
    by class, or by tenths of a range, so that each has its share of every one; with one part the last row of a class is
    not held out.
    """
    strata, every = _strata(problem), one_in(len(problem))
    found = np.empty((repeats, len(problem)), dtype=np.int64)
    for repeat in range(repeats):
        generator = np.random.default_rng([seed, 2, repeat])
        offset = 0
        for stratum in np.unique(strata):
            rows = generator.permutation(np.flatnonzero(strata == stratum))
            place = np.arange(len(rows)) + offset
            if parts > 1:
                found[repeat, rows] = place % parts
            else:
                found[repeat, rows] = np.where((place % every == every - 1) & (np.arange(len(rows)) > 0), 0, -1)
            offset += len(rows)  # what rounding kept from a fold in one class is owed to it in the next
        if not (found[repeat] == 0).any():  # a row of a class that has others, if there is one
            _, place, counts = np.unique(strata, return_inverse=True, return_counts=True)
            spare = np.flatnonzero(counts[place] > 1)
            found[repeat, generator.choice(spare if len(spare) else len(problem))] = 0
    return torch.from_numpy(found)


def one_in(rows: int) -> int:
    """Of how many rows one is held out, if they are held out in one part: of six, or so that 5,000 are."""
    return max(6, rows // ENOUGH_TO_CHOOSE_BY)


def _strata(problem: Problem) -> np.ndarray:
    target = problem.target
    if problem.task.kind == "range":
        order = np.argsort(target.numpy(), kind="stable")
        strata = np.empty(len(problem), dtype=np.int64)
        strata[order] = np.arange(len(problem)) * 10 // max(1, len(problem))
        return strata
    return (target.argmax(-1) if target.dim() > 1 else target).numpy()
