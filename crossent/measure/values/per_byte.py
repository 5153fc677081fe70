"""What a byte of text costs: a ratio of two sums, with its interval."""

from __future__ import annotations

import math

import numpy as np

from crossent.measure.sums.sums import POWERS
from crossent.measure.values.means import Evidence
from crossent.measure.values.spread import Spread, clustered
from crossent.record import Number


def bits_per_byte(of: Evidence) -> dict[str, Number]:
    """Give the cost in bits for each byte that was predicted, where lengths came with every row; else nothing.

    A ratio of two sums, with the interval of the mean of its residuals cost − ratio · bytes.
    """
    if of.sums.count("measured in bytes", of.which) < of.n:
        return {}
    total, squares, both = of.sums.total("bytes", of.which)
    if total <= 0:
        return {}
    total = float(total)
    value = of.cross_entropy * of.weight / total
    ends = None
    if math.isfinite(value):
        if of.groups is not None:
            cost, length = of.groups.column("cost"), of.groups.column("bytes")
            spread = clustered(cost - value * length, length, float(np.sum(cost**2)))
        else:
            second = float(of.moments[:, POWERS.index((2, 2))].sum() - 2 * value * both + value**2 * squares)
            spread = Spread(second, 0.0, float(total), of.effective - 1)
        ends = None if spread is None else spread.interval(value)
    low, high = ends or (None, None)
    return {"bits_per_byte": Number(value, "nats", None if low is None else max(low, 0.0), high, of.n).to("bits")}
