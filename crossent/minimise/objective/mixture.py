"""The mean of what several networks believe of a number: a distribution too, and its central interval.

Each network gives logits of a code, and with them a distribution of the number. Their mean, each counting its share, is
what they believe together: of histograms on the same bins, and of masses on the same points, it is one again, whose
masses are the mean masses. Of densities e^(z f) it is none of the family, and its quantiles are found by halving the
range until a float64 has no further digit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.compute.codes import Code, ContinuousBernoulli, Ordinal

_HALVINGS = 60
"""The range is 2⁻⁶⁰ of itself then: below what float64 tells apart beside its ends."""


def interval_of_mean(code: Code, z: Tensor, share: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The ends (n,) float64 of the central interval of the mean distribution of ``z`` (members, n, columns), float64.

    ``share`` (members,) adds up to 1. As much is left out below as above; on points it holds at least ``level``.
    TypeError, a sentence, where the code has no distribution.

    >>> from crossent import HLGauss
    >>> sure = torch.tensor([[[0.0, -99.0]], [[-99.0, 0.0]]], dtype=torch.float64)  # one low, the other high
    >>> interval_of_mean(HLGauss(0.0, 10.0, 2), sure, torch.tensor([0.9, 0.1]), 0.5)
    (tensor([1.3889], dtype=torch.float64), tensor([4.1667], dtype=torch.float64))
    """
    if not 0 < level < 1:
        raise ValueError(f"the coverage of an interval lies between 0 and 1, and is {level}.")
    log_share = share.double().log().view(-1, 1, 1)
    if isinstance(code, ContinuousBernoulli):
        outside = (1 - level) / 2
        return _halved(code, z, share, outside), _halved(code, z, share, 1 - outside)
    if isinstance(code, Ordinal):
        exceeded = F.pad(F.logsigmoid(z).cumsum(-1), (1, 0))  # P(more than the level before)
        mass = (exceeded + F.pad(F.logsigmoid(-z), (0, 1)) + log_share).logsumexp(0)
        more = (exceeded[..., 1:] + log_share).logsumexp(0)
        return code.interval(more - mass[..., :-1], level)  # the questions whose answers make these masses
    return code.interval((z.log_softmax(-1) + log_share).logsumexp(0), level)


def _halved(code: Code, z: Tensor, share: Tensor, level: float) -> Tensor:
    """The number (n,) that the mean distribution does not exceed with probability ``level``."""
    low, high = (torch.full(z.shape[1:-1], end, dtype=torch.float64) for end in (code.low, code.high))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = (code.cdf(z, middle.expand(z.shape[:-1])) * share.double().view(-1, 1)).sum(0) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
