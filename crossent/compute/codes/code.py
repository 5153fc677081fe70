"""What all codes share: the range, the shapes, and the way from the user's unit to [0, 1] and back.

Inside a code a number is its *share* f = (y - low) / (high - low), logits are rows (n, columns), and both are float64.
So a code is a few formulas on [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.functional import result_dtype
from crossent.compute.reduce import check_reduction
from crossent.compute.target import visible


@dataclass(frozen=True)
class Code(ABC):
    """Numbers in [low, high] as targets, and logits (…, columns) as distributions of such a number.

    Labels y have the logits' shape without the columns and any real dtype. A label outside the range, or NaN, is a
    ``ValueError`` that names it; where nothing may be looked at (inside torch.compile) its row becomes NaN. The ends
    count as inside once they are rounded to the labels' own dtype. Results are float64 for float64 logits and float32
    for all others; everything is worked out in float64 and rounded once, but for the losses of many columns, which are
    those of ``cross_entropy``.
    """

    low: float
    high: float

    _why: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ValueError(f"a range needs low < high, both finite; got {self.low} and {self.high}.")

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many logits a network must give for one number."""

    def encode(self, y: Tensor) -> Any:
        """The target of labels y, in their order: what the code's loss takes."""
        return self._target(self._share(y), result_dtype(y))

    def loss(self, logits: Tensor, y: Tensor, *, reduction: str = "mean") -> Tensor:
        """What it costs, in nats, that labels y came: the mean or sum over them, or (``"none"``) each one's cost."""
        check_reduction(reduction, "zero")
        shape = self._shape(logits)
        value = self._loss(logits.reshape(-1, self.columns), self._share(like(y, shape)), reduction)
        return value.reshape(shape) if reduction == "none" else value

    def mean(self, logits: Tensor) -> Tensor:
        """The expected number."""
        return self._number(logits, self._mean(self._rows(logits)))

    def median(self, logits: Tensor) -> Tensor:
        """The number that is as likely to be exceeded as not: ``quantile(logits, 0.5)``."""
        return self.quantile(logits, 0.5)

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """The least number that is not exceeded with probability ``level``, which lies between 0 and 1."""
        return self._number(logits, self._quantile(self._rows(logits), between(level)))

    def interval(self, logits: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The lower and the upper end of the central interval that holds the number with probability ``level``.

        As much is left out below as above. On points (``TwoHot``, ``Ordinal``) it holds at least ``level``.
        """
        outside = (1 - between(level)) / 2
        return self.quantile(logits, outside), self.quantile(logits, 1 - outside)

    def cdf(self, logits: Tensor, y: float | Tensor) -> Tensor:
        """The probability that the number is at most y: one threshold for all rows, or one for each."""
        shape, z = self._shape(logits), self._rows(logits)
        at = y if isinstance(y, Tensor) else torch.tensor(y, dtype=z.dtype, device=z.device)
        at = (at if at.is_floating_point() else at.to(z.dtype)).expand(shape).reshape(-1)
        value = torch.where(at.isnan(), torch.nan, self._cdf(z, at))
        return value.reshape(shape).to(result_dtype(logits))

    def log_prob(self, logits: Tensor, y: Tensor) -> Tensor:
        """The log of the density at y, in nats and in y's unit, or of the mass of y for ``Ordinal``.

        Its mean over held-out labels is the log score, by which codes that have a density are compared.
        """
        shape = self._shape(logits)
        value = self._log_prob(self._rows(logits), self._share(like(y, shape)))
        return value.reshape(shape).to(result_dtype(logits))

    # What a code says of rows z (n, columns) and shares f (n,), all float64.

    @abstractmethod
    def _target(self, f: Tensor, dtype: torch.dtype) -> Any: ...

    @abstractmethod
    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor: ...

    @abstractmethod
    def _mean(self, z: Tensor) -> Tensor: ...

    def _quantile(self, z: Tensor, level: float) -> Tensor:
        self._refuse("median, quantiles or intervals")

    def _cdf(self, z: Tensor, y: Tensor) -> Tensor:
        self._refuse("cdf")

    def _log_prob(self, z: Tensor, f: Tensor) -> Tensor:
        self._refuse("log_prob")

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has no {what}: {self._why}")

    # The way in and out.

    def _shape(self, logits: Tensor) -> torch.Size:
        if not logits.is_floating_point():
            raise TypeError(f"logits must be floating-point; they are {str(logits.dtype).removeprefix('torch.')}.")
        if logits.dim() == 0 or logits.shape[-1] != self.columns:
            hint = " Write logits.unsqueeze(-1) if each number is a row of its own." if self.columns == 1 else ""
            raise ValueError(
                f"{type(self).__name__} takes logits of shape (…, {self.columns}), its columns; got "
                f"{tuple(logits.shape)}.{hint}"
            )
        return logits.shape[:-1]

    def _rows(self, logits: Tensor) -> Tensor:
        self._shape(logits)
        return logits.reshape(-1, self.columns).to(wide(logits))

    def _number(self, logits: Tensor, f: Tensor) -> Tensor:
        y = (self.low * (1 - f) + self.high * f).clamp(self.low, self.high)  # exact at both ends
        return y.reshape(logits.shape[:-1]).to(result_dtype(logits))

    def _unit(self, y: Tensor) -> Tensor:
        """Shares in [0, 1] of any numbers: what lies outside the range is moved to its nearer end."""
        return ((y.to(wide(y)) - self.low) / (self.high - self.low)).clamp(0, 1)

    def _share(self, y: Tensor) -> Tensor:
        """Shares (n,) of labels of any shape, which must lie in the range."""
        if y.is_complex():
            raise TypeError(f"labels must be real numbers; they are {str(y.dtype).removeprefix('torch.')}.")
        at = (y if y.is_floating_point() else y.to(wide(y))).reshape(-1)
        # A float32 0.7 lies below 0.7: torch compares with the ends as the labels' dtype knows them (or as inf).
        inside = (at >= self.low) & (at <= self.high) & at.isfinite()
        if visible(y) and not bool(inside.all()):
            raise ValueError(
                f"{first(y, ~inside, f'outside the range {self.low:.12g} to {self.high:.12g}')} "
                "Widen the range or mend them."
            )
        return torch.where(inside, self._unit(at), torch.nan)


def first(y: Tensor, wrong: Tensor, fault: str) -> str:
    """A sentence on labels that are wrong (n,): how many, where the first of them is, and what it is."""
    at = wrong.reshape(y.shape).nonzero()[0].tolist()
    place = f"row {at[0]}" if len(at) == 1 else f"{tuple(at)}"
    return f"{int(wrong.sum()):,} labels are {fault}, first at {place}: {y[tuple(at)].item()}."


def like(y: Tensor, shape: torch.Size) -> Tensor:
    """The labels, if they are one for each row of logits."""
    if y.shape != shape:
        hint = " Write y.squeeze(-1)." if y.shape == (*shape, 1) else ""
        raise ValueError(
            f"labels must have shape {tuple(shape)}, one for each row of logits; they have {tuple(y.shape)}.{hint}"
        )
    return y


def between(level: float) -> float:
    """The level, if it is a probability between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is a probability strictly between 0 and 1; got {level}. (0 and 1 give the range.)")
    return level
