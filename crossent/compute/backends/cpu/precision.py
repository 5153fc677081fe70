"""Arithmetic of the kernels: powers of e right to an ulp in float32, 16-bit floats, and how a kernel is compiled.

``power(z, peak)`` is e^(z - peak) · 2^SHIFT for z ≤ peak. With d + e = z - peak exactly (Knuth's TwoSum), n the
nearest integer to d / log 2 and r = d - n log 2 + e, which is at most 0.35,

    e^(z - peak) = 2^n (1 + r + r² q(r))

where q is the polynomial that is nearest to (e^r - 1 - r) / r² in the greatest relative error (Remez; 7e-8 of r² in
float32, 2e-18 in float64), log 2 is taken off in two pieces of which the first times n is exact, and 2^n is made from
the bits in which n was rounded. The shift keeps every power of a float32 out of the subnormal numbers, which it would
otherwise enter 87 nats below the peak; below LOWEST it is 0. NaN stays NaN.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.extending import intrinsic, overload

_said: list[str] = []
_SOURCES = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


class _Kept(FunctionCache):
    """Numba's cache, from which a kernel comes without what would be needed to compile one.

    Before it looks into its cache, Numba fetches all that it can type and compile, scipy.linalg too: that takes some
    three times as long as the rest of a first call. What was compiled runs without, and who compiles fetches it.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept for these types, or None; it needs Numba's counts of references, and no more."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def kernel(function: Callable) -> Any:
    """Compile on first use, keep the result on disk for the next process, hold no lock while running.

    Numba looks only at a kernel's own file to see whether what it kept is out of date. These call each other across
    files, so the name that they are kept under says which sources they were made of.
    """
    function.__qualname__ += f"_{_SOURCES[:12]}"
    compiled = njit(nogil=True, error_model="numpy", forceinline=True)(function)
    try:
        compiled._cache = _Kept(function)
    except RuntimeError as trouble:  # no folder to keep it in
        if not _said:
            _said.append(str(trouble))
            warnings.warn(
                "crossent's CPU kernels cannot be kept on disk and are compiled anew in each process, which takes "
                "some seconds: neither the package's __pycache__ nor the user's cache folder can be written. Set "
                f"NUMBA_CACHE_DIR to a folder that can. ({trouble})",
                RuntimeWarning,
                stacklevel=2,
            )
    return compiled


def for_kernels(function: Callable) -> Any:
    """A function that only kernels can call; its body, one for each dtype they meet, is the ``overload`` below it."""

    @functools.wraps(function)
    def refuse(*_: Any) -> None:
        raise TypeError(
            f"{function.__name__} is compiled into kernels, for the dtypes that it meets there; it cannot be called "
            "from Python. Call the kernel that uses it."
        )

    return refuse


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def fetch(_: Any, data: Any, at: Any) -> Any:
    """Ask for the cache line of data[at], and do not wait for it."""

    def ask(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        name, place = "llvm.prefetch.p0", context.make_array(signature.args[0])(context, builder, value=args[0]).data
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        call = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(call, [builder.bitcast(builder.gep(place, [args[1]]), byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(data, types.uint64), ask


def _cast(source: Any, result: Any, steps: Callable) -> Any:
    """An intrinsic that makes ``result`` of ``source`` by the given machine steps."""

    def typed(_: Any, x: Any) -> Any:
        return result(source), lambda context, builder, signature, args: steps(builder, args[0])

    return intrinsic(typed)


_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()

# The low bits of a float to which a large constant was added are an integer; moved to the exponent they make 2^n.
_two_to_32 = _cast(
    types.float32, types.float32, lambda b, x: b.bitcast(b.shl(b.bitcast(x, _I32), ir.Constant(_I32, 23)), _F32)
)
_two_to_64 = _cast(
    types.float64, types.float64, lambda b, x: b.bitcast(b.shl(b.bitcast(x, _I64), ir.Constant(_I64, 52)), _F64)
)
_bits_of = _cast(types.float32, types.uint32, lambda b, x: b.bitcast(x, _I32))
_from_bits = _cast(types.uint32, types.float32, lambda b, x: b.bitcast(x, _F32))
_from_half = _cast(types.int16, types.float32, lambda b, x: b.fpext(b.bitcast(x, _F16), _F32))
_to_half = _cast(types.float32, types.int16, lambda b, x: b.bitcast(b.fptrunc(x, _F16), _I16))

_bits_of_32 = _cast(types.float32, types.int32, lambda b, x: b.bitcast(x, _I32))
_of_bits_32 = _cast(types.int32, types.float32, lambda b, x: b.bitcast(x, _F32))
_key_of_64 = _cast(types.float64, types.int64, lambda b, x: b.bitcast(x, _I64))
_of_key_64 = _cast(types.int64, types.float64, lambda b, x: b.bitcast(x, _F64))

SHIFT = 32
UNSHIFT = 2.0**-SHIFT
ONE = 2.0**SHIFT  # the power of the peak itself

_f, _d = np.float32, np.float64
_LOWEST_32, _LOWEST_64 = _f(-109.0), _d(-730.0)
_LOG2E_32, _LOG2E_64 = _f(1.4426950408889634), _d(1.4426950408889634)
_ROUND_32 = _f(1.5 * 2.0**23 + 127 + SHIFT)  # rounds n, and leaves n + 127 + SHIFT in the low bits
_ROUND_64 = _d(1.5 * 2.0**52 + 1023 + SHIFT)
_HIGH_32, _LOW_32 = _f(0.693145751953125), _f(1.428606765330187e-06)  # log 2 in two pieces
_HIGH_64, _LOW_64 = _d(0.6931471803691238), _d(1.9082149292705878e-10)
Q32 = tuple(_f(c) for c in (0.0013926250831497612, 0.008363232883682604, 0.041666554212984150, 0.1666657666611993, 0.5))
L32 = tuple(
    _f(c)
    for c in (0.00198669659365, -0.0131878265656, 0.041006573694, -0.0818804092358, 0.123779958679, -0.160876230093,
              0.19885820285, -0.249864964594, 0.333324975435, -0.499999794914, 0.999999999156)
)  # fmt: skip
L64 = (
    0.1479819860511658591,
    0.1531383769920937332,
    0.1818357216161805012,
    0.2222219843214978396,
    0.2857142874366239149,
    0.3999999999940941908,
    0.6666666666666735130,
)
Q64 = (
    2.09147553258932022e-9,
    2.5105312729622101787e-8,
    2.7557273478718580474e-7,
    2.7557255170000887438e-6,
    0.0000248015873256774619,
    0.00019841269875002278793,
    0.0013888888888883711167,
    0.0083333333333260831202,
    0.041666666666666669783,
    0.1666666666666667103,
    0.5,
)


@for_kernels
def raised(d: Any, e: Any) -> Any:
    """e^(d + e) · 2^SHIFT for d ≤ 0, where e is a rounding error of d."""


@overload(raised, strict=False)
def _raised(d: Any, e: Any) -> Any:
    if d == types.float32:

        def raised32(d: Any, e: Any) -> Any:
            t = fma(d, _LOG2E_32, _ROUND_32)
            n = t - _ROUND_32
            r = fma(n, -_LOW_32, fma(n, -_HIGH_32, d)) + e
            q = fma(fma(fma(fma(Q32[0], r, Q32[1]), r, Q32[2]), r, Q32[3]), r, Q32[4])
            s = _two_to_32(t)
            x = fma(fma(q * r, r, r), s, s)
            return _f(0) if d < _LOWEST_32 else x

        return raised32

    def raised64(d: Any, e: Any) -> Any:
        t = fma(d, _LOG2E_64, _ROUND_64)
        n = t - _ROUND_64
        r = fma(n, -_LOW_64, fma(n, -_HIGH_64, d)) + e
        q = fma(fma(fma(Q64[0], r, Q64[1]), r, Q64[2]), r, Q64[3])
        q = fma(fma(fma(fma(q, r, Q64[4]), r, Q64[5]), r, Q64[6]), r, Q64[7])
        q = fma(fma(fma(q, r, Q64[8]), r, Q64[9]), r, Q64[10])
        s = _two_to_64(t)
        x = fma(fma(q * r, r, r), s, s)
        return 0.0 if d < _LOWEST_64 else x

    return raised64


@kernel
def power(z: Any, peak: Any) -> Any:
    """e^(z - peak) · 2^SHIFT for z ≤ peak, in the dtype of both."""
    d = z - peak
    back = d - z
    return raised(d, (z - (d - back)) - (peak + back))


@for_kernels
def log1p_ratio(x: Any) -> Any:
    """log1p(x) / x for 0 ≤ x ≤ 1, a polynomial that is right to 2e-9: log1p(x) is x times it."""


@overload(log1p_ratio, strict=False)
def _log1p_ratio(x: Any) -> Any:
    if x == types.float32:

        def ratio32(x: Any) -> Any:
            g = fma(fma(fma(fma(L32[0], x, L32[1]), x, L32[2]), x, L32[3]), x, L32[4])
            g = fma(fma(fma(fma(g, x, L32[5]), x, L32[6]), x, L32[7]), x, L32[8])
            return fma(fma(g, x, L32[9]), x, L32[10])

        return ratio32

    return lambda x: np.log1p(x) / x if x > 1e-300 else 1.0


@kernel
def log1p(x: Any) -> Any:
    """log(1 + x) of a float64 x ≥ 0 to an ulp, on all lanes at once (Tang 1990; the polynomial is that of fdlibm).

    1 + x = 2^n (1 + f) with f in [√½ - 1, √2 - 1] and with what its rounding lost, which is put back at the end.
    """
    w = 1.0 + x
    back = w - 1.0
    lost = (1.0 - (w - back)) + (x - back)
    bits = _key_of_64(w)
    n = (bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    f = _of_key_64(bits - (n << np.int64(52))) - 1.0
    lost *= _of_key_64((np.int64(1023) - n) << np.int64(52))
    s = f / (2.0 + f)
    square = s * s
    tail = L64[0]
    for k in range(1, 7):
        tail = fma(tail, square, L64[k])
    half = 0.5 * f * f
    small = fma(np.float64(n), _LOW_64, lost * (1.0 - f + f * f))
    return fma(np.float64(n), _HIGH_64, f - (half - fma(s, fma(tail, square, half), small))) + (x - x)


@for_kernels
def widened(x: Any) -> Any:
    """A stored number in the dtype in which rows are worked out."""


@overload(widened, strict=False)
def _widened(x: Any) -> Any:
    if x == types.uint16:  # bfloat16: the upper half of a float32
        return lambda x: _from_bits(np.uint32(np.uint32(x) << np.uint32(16)))
    if x == types.int16:
        return lambda x: _from_half(x)
    return lambda x: x


@for_kernels
def stored(x: Any, like: Any) -> Any:
    """x as the dtype that ``like`` is stored in holds it, rounded to nearest, ties to even."""


@overload(stored, strict=False)
def _stored(x: Any, like: Any) -> Any:
    if like == types.uint16:

        def to_bfloat16(x: Any, like: Any) -> Any:
            bits = _bits_of(x)
            rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            return np.uint16(0x7FC0) if x != x else np.uint16(rounded)

        return to_bfloat16
    if like == types.int16:
        return lambda x, like: _to_half(x)
    return lambda x, like: x


@for_kernels
def as_worked(x: Any, like: Any) -> Any:
    """x in the dtype of ``like``, in which rows are worked out."""


@overload(as_worked, strict=False)
def _as_worked(x: Any, like: Any) -> Any:
    if like == types.float32:
        return lambda x, like: np.float32(x)
    return lambda x, like: np.float64(x)


@for_kernels
def signs_of(x: Any) -> Any:
    """The bits of a float as an integer, whose sign is the float's."""


@overload(signs_of, strict=False)
def _signs_of(x: Any) -> Any:
    return (lambda x: _bits_of_32(x)) if x == types.float32 else (lambda x: _key_of_64(x))


LEAST_KEY = np.int32(-(2**31))


@kernel
def key_of(x: Any) -> Any:
    """The bits of a float32 as an integer in the order of the floats: those of negative ones are flipped."""
    bits = _bits_of_32(x)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@kernel
def of_key(key: Any) -> Any:
    """The float32 of a key."""
    return _of_bits_32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@for_kernels
def greatest(row: Any) -> Any:
    """The greatest number of a row (some NaN if it has one, but for a negative NaN, which is passed over).

    By the bits, which order floats as integers once those of negative ones are flipped: a maximum of integers is
    what a compiler can do on all lanes at once.
    """


@overload(greatest, strict=False)
def _greatest(row: Any) -> Any:
    if row.dtype == types.float32:

        def greatest32(row: Any) -> Any:
            most = LEAST_KEY
            for j in range(row.size):
                most = max(most, key_of(row[j]))
            return of_key(most)

        return greatest32

    def greatest64(row: Any) -> Any:
        most = np.int64(-(2**63))
        for j in range(row.size):
            bits = _key_of_64(row[j])
            most = max(most, bits ^ ((bits >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))
        return _of_key_64(most ^ ((most >> np.int64(63)) & np.int64(0x7FFFFFFFFFFFFFFF)))

    return greatest64
