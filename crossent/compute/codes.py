"""A code turns a label into a target and a distribution back into a prediction.

``Fraction`` is the code of a number in a known range: the number, moved to [0, 1], is the share of a yes in a soft
binary target, so that cross-entropy trains it and the expected share is its prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fraction:
    """Numbers in [low, high] as soft binary targets (1 - f, f) with f = (y - low) / (high - low).

    The cross-entropy -f log p - (1 - f) log(1 - p) is least at p = f, so the mean of the target is what p learns:
    proper for the mean (Papke & Wooldridge 1996, eq. 5), and never outside the range.

    >>> code = Fraction(0.0, 50.0)
    >>> code.encode(torch.tensor([0.0, 10.0]))
    tensor([[1.0000, 0.0000],
            [0.8000, 0.2000]])
    >>> code.decode(torch.tensor([[0.8, 0.2]]))
    tensor([10.])
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low < self.high and abs(self.low) < float("inf") and abs(self.high) < float("inf")):
            raise ValueError(f"a range needs low < high, both finite; got {self.low} and {self.high}.")

    def encode(self, y: Tensor) -> Tensor:
        """Targets (n, 2) of numbers (n,); a number outside the range, or NaN, is a ``ValueError`` that names it."""
        outside = ~((y >= self.low) & (y <= self.high))
        if bool(outside.any()):
            at = int(outside.nonzero()[0])
            raise ValueError(
                f"{int(outside.sum()):,} labels are outside the range {self.low:g} to {self.high:g}, first at row "
                f"{at}: {float(y[at]):g}. Widen the range or mend the labels."
            )
        f = (y - self.low) / (self.high - self.low)
        return torch.stack((1 - f, f), -1)

    def decode(self, p: Tensor) -> Tensor:
        """The expected number (n,) of probabilities (n, 2)."""
        return self.low + (self.high - self.low) * p[..., 1]
