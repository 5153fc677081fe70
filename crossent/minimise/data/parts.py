"""The rows of one run in two parts, to learn from, and to judge by once; and what a network reads of the first."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossent.errors import DataError, some
from crossent.measure.sums.likelihood import costs_of_logs
from crossent.minimise.data import dataset, split, task
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.tokens import WORD, Tokens
from crossent.record import Number

FEW_ROWS = 10


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows and what was said of them: their numbers in the data, labels as written and encoded, weights (n,) or None.

    ``log_p`` (n, classes) float64, not yet calibrated.
    """

    rows: NDArray[np.int64]
    labels: NDArray[Any]
    encoded: NDArray[Any]
    weight: NDArray[np.float64] | None
    log_p: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: NDArray[np.bool_]) -> Judged:
        """Some of them."""
        weight = None if self.weight is None else self.weight[which]
        return Judged(self.rows[which], self.labels[which], self.encoded[which], weight, self.log_p[which])

    def mean(self, log_p: NDArray[np.float64]) -> Number:
        """Mean cross-entropy of log-probabilities of these rows."""
        return Number(float(np.average(costs_of_logs(log_p, self.encoded), weights=self.weight)), "nats", n=len(self))


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of one part of the split: where they stand, and what is to be predicted of them."""

    data: dataset.Data
    rows: np.ndarray
    encoded: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def weight(self) -> np.ndarray | None:
        """Their weights (n,), or None where all rows count alike."""
        return None if self.data.weight is None else self.data.weight[self.rows]

    def judged(self, found: task.Task, log_p: torch.Tensor) -> Judged:
        """Them with what was said of them; labels as they are written: numbers of a range, names, or shares."""
        y = self.data.y[self.rows]
        if found.kind == "range":
            y = np.asarray(y, dtype=np.float64)
        elif y.ndim == 1:
            y = np.array([task.class_name(value) for value in y])
        return Judged(self.rows, y, self.encoded, self.weight, log_p.numpy())

    @property
    def tensor_of_weights(self) -> torch.Tensor | None:
        """Their weights as a network wants them: 1 on average."""
        return None if self.weight is None else torch.from_numpy(self.weight / self.weight.mean()).float()

    @property
    def x(self) -> Any:
        """Their features; a table's keep their numbers as its index, so that trouble can be said to be in that row."""
        x = self.data.x
        return x.iloc[self.rows] if hasattr(x, "iloc") else x[self.rows]


def both(x: Any, y: Any, target: str | None, weight: Any, test: Any) -> tuple[dataset.Data, dataset.Data | None]:
    """The data, and the test's own if it has any; both labelled."""
    if isinstance(x, (str, os.PathLike)):
        own = dataset.read(x, target, weight)
    else:
        own = dataset.from_arrays(x, y, weight=weight)
    if own.y is None:
        raise DataError("fit needs labels: pass y, or a file that has them.")
    if test is None:
        return own, None
    from_file = isinstance(test, (str, os.PathLike))
    named = weight if isinstance(weight, str) else None
    if from_file:
        other = dataset.read(test, own.target, named)
    else:
        other = dataset.from_arrays(test[0], test[1], "test", *test[2:])
    if other.y is None:
        raise DataError("the test needs labels: pass a file that has them, or a pair (x, y).")
    if other.y.ndim == 1:
        task.refuse_missing(other.y, other.source, other.target)
    return own, _alike(own, other)


def _alike(own: dataset.Data, other: dataset.Data) -> dataset.Data:
    """The test's data, with the columns of soft labels in the order of those to learn from."""
    if own.y.ndim != other.y.ndim:
        soft, hard = (own, other) if own.y.ndim == 2 else (other, own)
        raise DataError(
            f"labels of {soft.source} are shares of the classes, and those of {hard.source} are one column: write both "
            "in one way."
        )
    if other.names == own.names:
        return other
    if sorted(other.names) != sorted(own.names):
        raise DataError(
            f"the columns of labels are {some([*own.names], 12)} in {own.source}, and {some([*other.names], 12)} in "
            f"{other.source}: they should have the same names."
        )
    return replace(other, y=other.y[:, [other.names.index(name) for name in own.names]], names=own.names)


def parted(found: task.Task, own: dataset.Data, other: dataset.Data | None, seed: int) -> tuple[Part, Part]:
    """Rows to learn from, and rows to judge by."""
    rows = np.arange(len(own))
    encoded = found.encode(own.y, rows, own.source)
    if other is None:
        rest, tested = split.draw(encoded, seed)
        judge = Part(own, tested, encoded[tested])
    else:
        rest, tested = rows, np.arange(len(other))
        judge = Part(other, tested, found.encode(other.y, tested, other.source))
    learn = Part(own, rest, encoded[rest])
    if len(own) < FEW_ROWS or not (len(learn) > 1 and len(judge)):
        raise DataError(
            f"{own.source}: {len(own):,} rows are too few to learn from most, choose by some in turn and test on the "
            f"rest; it takes at least {FEW_ROWS}."
        )
    if learn.weight is not None and (counting := np.count_nonzero(own.weight)) < FEW_ROWS:
        raise DataError(
            f"{own.source}: {counting:,} of {len(own):,} rows have a weight above 0, and the others count for nothing; "
            f"it takes at least {FEW_ROWS}."
        )
    return learn, judge


def prepared(
    asked: str, x: Any, source: str, found: task.Task, model: Callable[..., Any] | None = None
) -> tuple[Preparation | Tokens, torch.Tensor, Callable[..., Any] | None]:
    """What is known of rows to learn from, their features or tokens, and what makes the network, if it is not ours.

    ``asked`` is the recipe's ``model``: a model folder of texts takes tokens, and is copied for every training.
    """
    if not asked.startswith(WORD):
        return *Preparation.fit(x, source), model
    tokens = Tokens.of(asked, x, source, found)
    return tokens, tokens(x, source), tokens.copy


def rare(found: task.Task, parts: tuple[Part, ...]) -> list[str]:
    """Say which classes have fewer than five rows in all."""
    if found.kind == "range":
        return []
    own = [part.encoded for part in parts if part.data is parts[0].data]  # not a test file's: they teach nothing
    counts = sum(part.sum(0) if part.ndim == 2 else np.bincount(part, minlength=len(found.classes)) for part in own)
    few = [
        f"{name} ({count:.3g})"
        for name, count in zip(found.classes, np.asarray(counts).tolist(), strict=True)
        if count < 5
    ]
    return [f"Classes with fewer than five rows in all can hardly be learned or tested: {some(few)}."] if few else []
