"""Arithmetic of the kernels: powers of e right to an ulp in float32, sums in an order that is written down.

Two powers, by the same steps as on the CPU (docs/algebra.md, "Exact in float32"), with the same polynomials:

    power(z, peak)    e^(z - peak) · 2^SHIFT for z ≤ peak, in the dtype of both: z - peak with its rounding error
    alone(z)          e^z of a float32, as a float64

The second is what lets a row be read once. It needs no peak: its exponent is put into the bits of a float64, which has
room for e^(±700), so powers can be added up before anybody knows which is the greatest. And nothing is subtracted from
z, so there is no rounding error to carry along, which is 5 of 27 operations for each logit.

Every multiplication followed by an addition that is meant to be rounded once is written as ``fma``; kernels are
launched without fusion of the others, which would break the difference z - peak. Python's numbers become float32 in
Triton unless they meet a float64; ``like`` makes a constant in the dtype of what it is used with.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton's interpreter cuts bfloat16 off where the hardware rounds, and misreads its subnormal numbers.
BY_HAND = tl.constexpr(triton.knobs.runtime.interpret)

SHIFT = 32
UNSHIFT = tl.constexpr(2.0**-SHIFT)
SHIFTED = tl.constexpr(float(SHIFT))
REACH = tl.constexpr(240.0)  # a peak within ±REACH has all powers that count, 109 nats down, where ``alone`` is exact
FLOOR = tl.constexpr(-700.0)  # what is below counts as if it were there: 10^-200 of a peak within reach

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST_32, LOWEST_64 = tl.constexpr(-109.0), tl.constexpr(-730.0)
# Added and taken off they round n, and in between n is in the low bits: with the bias of an exponent, or alone.
ROUND_32, ROUND_64 = tl.constexpr(1.5 * 2.0**23 + 127 + SHIFT), tl.constexpr(1.5 * 2.0**52 + 1023 + SHIFT)
ROUND_ALONE = tl.constexpr(1.5 * 2.0**23)
HIGH_32, LOW_32 = tl.constexpr(0.693145751953125), tl.constexpr(1.428606765330187e-06)  # log 2 in two pieces
HIGH_64, LOW_64 = tl.constexpr(0.6931471803691238), tl.constexpr(1.9082149292705878e-10)


@triton.jit
def like(number: tl.constexpr, x):
    """A constant in the dtype of x."""
    return tl.full((), number, x.dtype)


@triton.jit
def widened(x):
    """A stored number in the dtype in which rows are worked out: float32, or float64 for float64."""
    if x.dtype == tl.float64:
        return x
    elif BY_HAND and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def stored(x, out):
    """x as the memory at ``out`` holds it: through the dtype rows are worked out in, to nearest, ties to even."""
    kind: tl.constexpr = out.dtype.element_ty
    if kind == tl.float64:
        return x.to(tl.float64)
    elif BY_HAND and kind == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.float32).to(kind)


@triton.jit
def _step(q, r, coefficient: tl.constexpr):
    """q r + coefficient, rounded once: a step of Horner's."""
    return tl.fma(q, r, like(coefficient, r))


@triton.jit
def _reduced(d, n):
    """d - n log 2, at most 0.35 for the integer n that is nearest to d / log 2."""
    if d.dtype == tl.float64:
        return tl.fma(n, like(-LOW_64, d), tl.fma(n, like(-HIGH_64, d), d))
    else:
        return tl.fma(n, like(-LOW_32, d), tl.fma(n, like(-HIGH_32, d), d))


@triton.jit
def _grown(r):
    """e^r - 1 for |r| ≤ 0.35, where it is not the last word on relative accuracy: 1 is still to be added."""
    if r.dtype == tl.float64:
        q = like(2.09147553258932022e-9, r)
        q = _step(q, r, 2.5105312729622101787e-8)
        q = _step(q, r, 2.7557273478718580474e-7)
        q = _step(q, r, 2.7557255170000887438e-6)
        q = _step(q, r, 0.0000248015873256774619)
        q = _step(q, r, 0.00019841269875002278793)
        q = _step(q, r, 0.0013888888888883711167)
        q = _step(q, r, 0.0083333333333260831202)
        q = _step(q, r, 0.041666666666666669783)
        q = _step(q, r, 0.1666666666666667103)
        q = _step(q, r, 0.5)
    else:
        q = like(0.0013926250831497612, r)
        q = _step(q, r, 0.008363232883682604)
        q = _step(q, r, 0.041666554212984150)
        q = _step(q, r, 0.1666657666611993)
        q = _step(q, r, 0.5)
    return tl.fma(q * r, r, r)


@triton.jit
def power(z, peak):
    """e^(z - peak) · 2^SHIFT for z ≤ peak: the difference exactly, as two numbers (Knuth's TwoSum). NaN stays NaN."""
    d = z - peak
    back = d - z
    error = (z - (d - back)) - (peak + back)
    if d.dtype == tl.float64:
        t = tl.fma(d, like(LOG2E, d), like(ROUND_64, d))
        y = _grown(_reduced(d, t - like(ROUND_64, d)) + error)
        s = (t.to(tl.int64, bitcast=True) << 52).to(tl.float64, bitcast=True)
        lost = d < like(LOWEST_64, d)
    else:
        t = tl.fma(d, like(LOG2E, d), like(ROUND_32, d))
        y = _grown(_reduced(d, t - like(ROUND_32, d)) + error)
        s = (t.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
        lost = d < like(LOWEST_32, d)
    return tl.where(lost, like(0.0, d), tl.fma(y, s, s))


@triton.jit
def alone(z):
    """e^z of a float32 as a float64, to an ulp of float32 for -350 ≤ z ≤ 350. Of NaN it makes some number."""
    z = tl.maximum(z, like(FLOOR, z))
    t = tl.fma(z, like(LOG2E, z), like(ROUND_ALONE, z))
    y = (_grown(_reduced(z, t - like(ROUND_ALONE, z))) + like(1.0, z)).to(tl.float64)
    n = t.to(tl.int32, bitcast=True).to(tl.int64) << 52  # only the lowest 12 bits stay, and the rounder's own are 0
    return (y.to(tl.int64, bitcast=True) + n).to(tl.float64, bitcast=True)


@triton.jit
def rough(z, peak):
    """e^(z - peak) · 2^SHIFT by the hardware's own power of 2: for a gradient that is rounded to 16 bits.

    Off by 2^-22 of itself, and by 2^-23 of its exponent: by 10^-5 at -109 nats, a hundredth of bfloat16's half ulp, and
    by 3 · 10^-6 at -30, where that is so of float16 too (below, only subnormal gradients are left in it).
    """
    return tl.exp2(tl.fma(z - peak, like(LOG2E, peak), like(SHIFTED, peak)))


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def greatest(x):
    """The greatest of each row of x (rows, columns); NaN if there is one."""
    return tl.reduce(x, 1, _greater)


@triton.jit
def summed(x, COLUMNS: tl.constexpr):
    """Σ of each row of x (rows, columns), neighbours first, then pairs of pairs: an order of columns alone.

    Zeros at the end change nothing, and neither does the way in which threads share the columns out.
    """
    LEVELS: tl.constexpr = COLUMNS.bit_length() - 1
    for level in tl.static_range(LEVELS):
        x = tl.sum(tl.reshape(x, (x.shape[0], COLUMNS >> (level + 1), 2)), 2)
    return tl.reshape(x, (x.shape[0],))


@triton.jit
def log1p_ratio(x):
    """log1p(x) / x for 0 ≤ x ≤ 1: log1p(x) is x times it. A polynomial for float32, right to 2e-9."""
    if x.dtype == tl.float64:
        whole = x + 1.0
        return tl.where(whole == 1.0, like(1.0, x), tl.log(whole) / (whole - 1.0))
    else:
        g = like(0.00198669659365, x)
        g = _step(g, x, -0.0131878265656)
        g = _step(g, x, 0.041006573694)
        g = _step(g, x, -0.0818804092358)
        g = _step(g, x, 0.123779958679)
        g = _step(g, x, -0.160876230093)
        g = _step(g, x, 0.19885820285)
        g = _step(g, x, -0.249864964594)
        g = _step(g, x, 0.333324975435)
        g = _step(g, x, -0.499999794914)
        return _step(g, x, 0.999999999156)
