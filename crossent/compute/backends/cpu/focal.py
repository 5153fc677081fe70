"""Focal loss of labels, (1 - p)^γ nll, and its slope by nll: what one reading for loss and gradient needs of a row.

With e = e^(z - peak) at the label and rest known, in float64,

    1 - p = (rest + (1 - e)) / (1 + rest)     p = e / (1 + rest)     nll = (peak - z) + log1p(rest)
    value = (1 - p)^(γ - 1) (1 - p) nll       slope = (1 - p)^(γ - 1) ((1 - p) + γ p nll)

where nothing cancels: a label that is the peak has e = 1 exactly, and of any other the peak's 1 is in rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import UNSHIFT, kernel, log1p, power


@kernel
def focal(hit: NDArray, peak: NDArray, rest: NDArray, gamma: float, value: NDArray, slope: NDArray) -> None:
    """Values and slopes of rows whose labels have the logits ``hit``.

    (A loop for each step: so a compiler can work on all lanes at once, but for powers that are no product.)
    """
    miss, share, nll = np.empty(hit.size), np.empty(hit.size), np.empty(hit.size)
    for t in range(hit.size):
        z, top, whole = np.float64(hit[t]), np.float64(peak[t]), 1.0 + rest[t]
        e = power(z, top) * UNSHIFT
        share[t] = e / whole
        miss[t] = (rest[t] + (1.0 - e)) / whole
        nll[t] = (top - z) + log1p(rest[t])
    if gamma == 2.0:
        slope[: hit.size] = miss
    elif gamma == 1.0:
        slope[: hit.size] = 1.0
    else:
        for t in range(hit.size):  # at 0 nothing is missing: the loss is 0, and so is its slope
            slope[t] = miss[t] ** (gamma - 1.0) if miss[t] != 0.0 else 0.0
    for t in range(hit.size):
        surprise = gamma * share[t] * nll[t] if share[t] > 0.0 else 0.0  # 0 · ∞ = 0
        value[t] = slope[t] * miss[t] * nll[t]
        slope[t] *= miss[t] + surprise
