"""Binary elements: one logit each, the cross-entropy of a share against its probability, and the gradient.

With e = e^(-|z|) the two costs are max(∓z, 0) + log1p(e), and the two probabilities 1 / (1 + e) and e / (1 + e). No
difference is taken but 1 - t. Class weights repeat: element i has the weight at i mod their number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import (
    UNSHIFT,
    as_worked,
    fma,
    kernel,
    log1p_ratio,
    raised,
    signs_of,
    stored,
    widened,
)
from crossent.compute.backends.cpu.views import lent
from crossent.compute.backends.reference import ELEMENTS

BLOCK = ELEMENTS  # elements that are worked on together
LANES = 64
TINY = 2.0**-64


@kernel
def _read(z: NDArray, share: NDArray, smoothing: float, x: NDArray, t: NDArray, tail: NDArray) -> None:
    """Logits, shares and e^(-|z|) as they are worked with."""
    keep, move = as_worked(1.0 - smoothing, x[0]), as_worked(0.5 * smoothing, x[0])
    unshift, nothing = as_worked(UNSHIFT, x[0]), as_worked(-0.0, x[0])  # to add -0 is to do nothing, to add 0 is not
    for j in range(z.size):
        x[j] = widened(z[j])
    for j in range(z.size):
        t[j] = keep * as_worked(widened(share[j]), keep) + move
    for j in range(z.size):
        tail[j] = raised(-abs(x[j]), nothing) * unshift


@kernel
def _is_outside(share: NDArray) -> bool:
    """Whether some share is not in [0, 1].

    The bits of a float in [0, 1] are an integer from 0 to those of 1. So few steps tell of nearly all blocks; in the
    others there may be a -0, whose bits are those of a negative integer.
    """
    one = signs_of(as_worked(1.0, widened(share[0])))
    least = most = one
    for j in range(share.size):
        bits = signs_of(widened(share[j]))
        least, most = min(least, bits), max(most, bits)
    if least >= 0 and most <= one:
        return False
    for j in range(share.size):
        t = widened(share[j])
        if not (t >= 0 and t <= 1):
            return True
    return False


@kernel
def _costs(x: NDArray, t: NDArray, tail: NDArray, pos: NDArray, out: NDArray) -> None:
    """The costs."""
    zero, one = as_worked(0.0, x[0]), as_worked(1.0, x[0])
    for j in range(x.size):
        spread = tail[j] * log1p_ratio(tail[j])
        yes, no = (pos[j] if pos.size else one) * t[j], one - t[j]
        wrong = yes if x[j] < 0 else no
        # A weight of 0 silences even an infinite cost; a NaN is in the tail as well, and stays.
        out[j] = fma(yes + no, spread, wrong * abs(x[j]) if wrong != 0 else zero)


@kernel
def _sum(costs: NDArray, lanes: NDArray) -> float:
    """Of a block, in float64 and always in the same order."""
    if costs.size == BLOCK:  # the same sums, in registers
        for j in range(LANES):
            lane = 0.0
            for i in range(BLOCK // LANES):
                lane += np.float64(costs[i * LANES + j])
            lanes[j] = lane
    else:
        lanes[:] = 0.0
        for i in range(0, costs.size, LANES):
            some = costs[i : min(i + LANES, costs.size)]
            for j in range(some.size):
                lanes[j] += np.float64(some[j])
    half = LANES
    while half > 1:
        half //= 2
        for j in range(half):
            lanes[j] += lanes[j + half]
    return lanes[0]


@kernel
def _slopes(x: NDArray, t: NDArray, tail: NDArray, pos: NDArray, a: NDArray, out: NDArray) -> None:
    """The gradient; ``a`` is one cotangent for all, or one for each."""
    one = as_worked(1.0, x[0])
    for j in range(x.size):
        e = tail[j]
        whole = one + e
        lost = e - (whole - one)
        guess = one / whole
        likely = fma(
            guess, fma(-whole, guess, one) - lost * guess, guess
        )  # 1 / (1 + e), Newton's step with what was lost
        unlikely = e * likely
        p, q = (likely, unlikely) if x[j] > 0 else (unlikely, likely)
        x[j] = (one - t[j]) * p - t[j] * (pos[j] if pos.size else one) * q
    like = out[0]
    if a.size > 1:
        for j in range(x.size):
            out[j] = stored(as_worked(a[j] * np.float64(x[j]), one), like)
    elif TINY < abs(a[0]) < 1 / TINY:
        high = as_worked(a[0], one)
        low = as_worked(a[0] - np.float64(high), one)
        for j in range(x.size):
            out[j] = stored(fma(x[j], high, x[j] * low), like)
    else:
        for j in range(x.size):
            out[j] = stored(as_worked(a[0] * np.float64(x[j]), one), like)


@kernel
def _weights(pos: NDArray, pattern: NDArray, i: int, j: int) -> NDArray:
    """The weights of elements i … j: ``pattern`` repeats pos, and is longer than a block by one turn."""
    if not pos.size:
        return pos
    at = i % pos.size
    return pattern[at : at + (j - i)]


@kernel
def part(
    z: NDArray,
    share: NDArray,
    pos: NDArray,
    pattern: NDArray,
    smoothing: float,
    memory: NDArray,
    out: NDArray,
    sums: NDArray,
    start: int,
    stop: int,
) -> None:
    """The costs of elements start … stop into ``out``, or if that is empty those of each block into ``sums``.

    ``memory`` (4, BLOCK) is to work in. start is a multiple of BLOCK.
    """
    z, share, pos, pattern = lent(z), lent(share), lent(pos), lent(pattern)
    memory, out = lent(memory), lent(out)
    lanes = np.empty(LANES)
    for i in range(start, stop, BLOCK):
        j = min(i + BLOCK, stop)
        x, t, tail, costs = memory[0, : j - i], memory[1, : j - i], memory[2, : j - i], memory[3, : j - i]
        _read(z[i:j], share[i:j], smoothing, x, t, tail)
        weights = _weights(pos, pattern, i, j)
        if out.size:
            _costs(x, t, tail, weights, out[i:j])
        else:
            _costs(x, t, tail, weights, costs)
            sums[i // BLOCK] = _sum(costs, lanes)


@kernel
def pull(
    z: NDArray,
    share: NDArray,
    pos: NDArray,
    pattern: NDArray,
    smoothing: float,
    a: NDArray,
    memory: NDArray,
    out: NDArray,
    start: int,
    stop: int,
) -> None:
    """The gradient of elements start … stop from the cotangents ``a``: one, one for each block, or one for each."""
    z, share, pos, pattern, a = lent(z), lent(share), lent(pos), lent(pattern), lent(a)
    memory, out = lent(memory), lent(out)
    blocks = (z.size + BLOCK - 1) // BLOCK
    for i in range(start, stop, BLOCK):
        j = min(i + BLOCK, stop)
        x, t, tail = memory[0, : j - i], memory[1, : j - i], memory[2, : j - i]
        _read(z[i:j], share[i:j], smoothing, x, t, tail)
        own = a[i:j] if a.size == z.size else a[i // BLOCK : i // BLOCK + 1] if a.size == blocks else a
        _slopes(x, t, tail, _weights(pos, pattern, i, j), own, out[i:j])


@kernel
def both(
    z: NDArray,
    share: NDArray,
    pos: NDArray,
    pattern: NDArray,
    smoothing: float,
    a: NDArray,
    check: bool,
    memory: NDArray,
    sums: NDArray,
    out: NDArray,
    start: int,
    stop: int,
) -> None:
    """``part`` into ``sums`` and ``pull`` into ``out`` of elements that are read once: ``a`` is known beforehand.

    ``check``: the sum of a block is NaN if a share is not in [0, 1].
    """
    z, share, pos, pattern = lent(z), lent(share), lent(pos), lent(pattern)
    memory, out = lent(memory), lent(out)
    lanes = np.empty(LANES)
    for i in range(start, stop, BLOCK):
        j = min(i + BLOCK, stop)
        x, t, tail, costs = memory[0, : j - i], memory[1, : j - i], memory[2, : j - i], memory[3, : j - i]
        _read(z[i:j], share[i:j], smoothing, x, t, tail)
        weights = _weights(pos, pattern, i, j)
        _costs(x, t, tail, weights, costs)
        sums[i // BLOCK] = np.nan if check and _is_outside(share[i:j]) else _sum(costs, lanes)
        _slopes(x, t, tail, weights, a, out[i:j])
