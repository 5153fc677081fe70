"""Dropout whose coins are sixteen bits each.

torch's own tosses a float for every element, which on a processor took a sixth of a training of a table. Here a word of
64 random bits makes four coins, of a precision that no training knows of.

Where processes share a batch each tosses the coins of the whole batch and takes those of its own rows: so they learn
what one process would have learnt. The noise on a table's features is drawn in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SIDES = 2**16
_LOWEST = -(2**63)


class _Share(NamedTuple):
    """Rows first, first + step, … of so many, and whose coins are tossed for all of them."""

    first: int
    step: int
    rows: int
    generator: torch.Generator


_share: _Share | None = None


@contextlib.contextmanager
def shared(first: int, step: int, rows: int, generator: torch.Generator) -> Iterator[None]:
    """Within it x (…, rows, d) are rows ``first``, ``first + step``, … of a batch of ``rows``."""
    global _share
    before, _share = _share, _Share(first, step, rows, generator)
    try:
        yield
    finally:
        _share = before


def _whole(x: Tensor) -> torch.Size:
    """The shape of the whole batch that x (…, rows, d) is a share of."""
    return x.shape if _share is None else torch.Size((*x.shape[:-2], _share.rows, x.shape[-1]))


def noise_like(x: Tensor) -> Tensor:
    """Normal variates for x (…, rows, d), from torch's own random numbers; within ``shared`` from those given there."""
    if _share is None or x.device.type != "cpu":
        return torch.randn_like(x)
    drawn = torch.randn(_whole(x), generator=_share.generator, dtype=x.dtype)
    return drawn[..., _share.first :: _share.step, :]


class Dropout(nn.Dropout):
    """Zeros in a share ``p`` of the elements while it trains, the others divided by 1 - p (Srivastava et al. 2014, §4).

    On a processor p is rounded to a multiple of 2⁻¹⁶, which the division knows of, so that the mean stays as it is.
    Draws from torch's own random numbers; within ``shared`` from those given there.

    >>> x = torch.ones(1000, requires_grad=True)
    >>> y = Dropout(0.25)(x)
    >>> set(y.tolist()) == {0.0, torch.tensor(4 / 3).item()}
    True
    >>> Dropout(0.25).eval()(x) is x
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """x with some elements 0, as it came if nothing is learnt."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        dropped = round(self.p * _SIDES)
        whole = _whole(x)
        words = torch.empty(-(-whole.numel() // 4), dtype=torch.int64)
        words.random_(_LOWEST, None, generator=None if _share is None else _share.generator)
        coins = words.view(torch.int16)[: whole.numel()].view(whole)
        if _share is not None:
            coins = coins[..., _share.first :: _share.step, :]
        return x * (coins >= dropped - _SIDES // 2).to(x.dtype).mul_(_SIDES / max(1, _SIDES - dropped))
