"""Binary elements: one logit each, the cross-entropy of a share against its probability, and the gradient.

With e = e^(-|z|) the two costs are max(∓z, 0) + log1p(e), and the two probabilities 1 / (1 + e) and e / (1 + e). The
power and the polynomial of log1p are worked out in float32, everything that joins them in float64, so that the loss
is right to 2 ulp and so are both tails of the probability.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import UNSHIFT, as_worked, kernel, log1p_ratio, raised, stored, widened

BLOCK = 512


@kernel
def _tails(z: NDArray, x: NDArray, tail: NDArray) -> None:
    """The logits as they are worked with, and e^(-|z|), too large by 2^SHIFT."""
    for j in range(z.size):
        x[j] = widened(z[j])
    for j in range(z.size):
        below = -x[j] if x[j] > 0 else x[j]
        tail[j] = raised(below, as_worked(0.0, below))


@kernel
def _costs(
    x: NDArray, tail: NDArray, ratio: NDArray, share: NDArray, pos: NDArray, smoothing: float, out: NDArray
) -> None:
    for j in range(x.size):
        ratio[j] = log1p_ratio(tail[j] * as_worked(UNSHIFT, tail[j]))
    for j in range(x.size):
        t = (1.0 - smoothing) * np.float64(widened(share[j])) + 0.5 * smoothing
        one, zero = t * (pos[j] if pos.size > 1 else pos[0]), 1.0 - t
        z = np.float64(x[j])
        # A weight of 0 silences even an infinite cost; a NaN is in the tail as well, and stays.
        below = -one * z if z < 0 and one != 0 else 0.0
        above = zero * z if z > 0 and zero != 0 else 0.0
        out[j] = (one + zero) * (np.float64(tail[j]) * UNSHIFT * np.float64(ratio[j])) + below + above


@kernel
def _slopes(
    x: NDArray, tail: NDArray, guess: NDArray, share: NDArray, pos: NDArray, smoothing: float, a: NDArray, out: NDArray
) -> None:
    unit = as_worked(1.0, tail[0])
    for j in range(x.size):
        guess[j] = unit / (unit + tail[j] * as_worked(UNSHIFT, tail[j]))
    like = out[0]
    for j in range(x.size):
        t = (1.0 - smoothing) * np.float64(widened(share[j])) + 0.5 * smoothing
        one, zero = t * (pos[j] if pos.size > 1 else pos[0]), 1.0 - t
        e = np.float64(tail[j]) * UNSHIFT
        likely = np.float64(guess[j])
        likely = likely * (2.0 - (1.0 + e) * likely)  # one step of Newton's: 1 / (1 + e) to the last digits
        unlikely = e * likely
        p, q = (likely, unlikely) if x[j] > 0 else (unlikely, likely)
        dz = (a[j] if a.size > 1 else a[0]) * (zero * p - one * q)
        out[j] = stored(as_worked(dz, x[j]), like)


@kernel
def part(
    z: NDArray, share: NDArray, pos: NDArray, smoothing: float, memory: NDArray, out: NDArray, start: int, stop: int
) -> None:
    """The costs of elements start … stop. ``pos`` has one number or one for each; ``memory`` is (3, BLOCK)."""
    for i in range(start, stop, BLOCK):
        j = min(i + BLOCK, stop)
        x, tail, ratio = memory[0, : j - i], memory[1, : j - i], memory[2, : j - i]
        _tails(z[i:j], x, tail)
        _costs(x, tail, ratio, share[i:j], pos[i:j] if pos.size > 1 else pos, smoothing, out[i:j])


@kernel
def pull(
    z: NDArray,
    share: NDArray,
    pos: NDArray,
    smoothing: float,
    a: NDArray,
    memory: NDArray,
    out: NDArray,
    start: int,
    stop: int,
) -> None:
    """The gradient of elements start … stop from the cotangents ``a``, one number or one for each."""
    for i in range(start, stop, BLOCK):
        j = min(i + BLOCK, stop)
        x, tail, guess = memory[0, : j - i], memory[1, : j - i], memory[2, : j - i]
        _tails(z[i:j], x, tail)
        weight = pos[i:j] if pos.size > 1 else pos
        _slopes(x, tail, guess, share[i:j], weight, smoothing, a[i:j] if a.size > 1 else a, out[i:j])
