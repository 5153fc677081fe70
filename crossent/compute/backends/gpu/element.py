"""Binary elements: one logit each, the cost of a share against its probability, and the gradient.

With e = e^(-|z|) the two costs are max(∓z, 0) + log1p(e), and the two probabilities 1 / (1 + e) and e / (1 + e). No
difference is taken but 1 - t of a share t. Class weights repeat: element i has the weight at i mod their number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossent.compute.backends.gpu.arithmetic import UNSHIFT, like, log1p_ratio, power, stored, summed, widened


@triton.jit
def _read(z, share, pos, n, repeat, SMOOTHING: tl.constexpr, POS: tl.constexpr, TILE: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """(blocks, their elements, whether these exist, z, weights of the classes 1 and 0, e^-|z|), of TILE blocks."""
    block = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    i = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there = i < n
    x = widened(tl.load(z + i, mask=there, other=0.0))
    t = widened(tl.load(share + i, mask=there, other=0.0)).to(x.dtype)
    one, keep, move = like(1.0, x), like(1.0 - SMOOTHING, x), like(0.5 * SMOOTHING, x)
    yes, no = tl.fma(t, keep, move), tl.fma(one - t, keep, move)  # the second is no difference from the first
    if POS:
        yes *= widened(tl.load(pos + i % repeat, mask=there, other=0.0)).to(x.dtype)
    return block, i, there, x, yes, no, power(-tl.abs(x), like(0.0, x)) * like(UNSHIFT, x)


@triton.jit
def part(
    z, share, pos, out, n, repeat, SMOOTHING: tl.constexpr, POS: tl.constexpr, SUMMED: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The costs, or if SUMMED their sums over blocks, as ``reference.elements`` gives them."""
    block, i, there, x, yes, no, tail = _read(z, share, pos, n, repeat, SMOOTHING, POS, TILE, BLOCK)
    zero = like(0.0, x)
    # A weight of 0 silences even an infinite cost; a NaN is in the tail as well, and stays.
    below = tl.where((x < 0) & (yes != 0), -yes * x, zero)
    above = tl.where((x > 0) & (no != 0), no * x, zero)
    cost = tl.fma(yes + no, tail * log1p_ratio(tail), below + above).to(tl.float64)
    if SUMMED:
        tl.store(out + block, summed(tl.where(there, cost, 0.0), BLOCK), mask=block * BLOCK < n)
    else:
        tl.store(out + i, cost, mask=there)


@triton.jit
def pull(
    z, share, pos, a, a_step, out, n, repeat, SMOOTHING: tl.constexpr, POS: tl.constexpr, EACH: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient, as ``reference.pull_elements`` gives it, from a cotangent for EACH element or for each block."""
    block, i, there, x, yes, no, e = _read(z, share, pos, n, repeat, SMOOTHING, POS, TILE, BLOCK)
    one = like(1.0, x)
    whole = one + e
    lost = e - (whole - one)
    if x.dtype == tl.float64:
        guess = one / whole
    else:
        guess = tl.div_rn(tl.zeros_like(whole) + one, whole)  # what "/" means for float32 is off by 2 ulp
    likely = guess - lost * guess * guess  # 1 / (1 + e), with what the sum had lost
    unlikely = e * likely
    p, q = tl.where(x > 0, likely, unlikely), tl.where(x > 0, unlikely, likely)
    slope = no * p - yes * q
    if EACH:
        g = tl.load(a + i * a_step, mask=there, other=0.0)
    else:
        g = tl.load(a + block * a_step, mask=block * BLOCK < n, other=0.0)[:, None]
    tl.store(out + i, stored(g.to(tl.float64) * slope.to(tl.float64), out), mask=there)
