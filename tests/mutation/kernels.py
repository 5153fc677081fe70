"""Faults in the backends: the compiled kernels, what they share, and the reference they are held to."""

from __future__ import annotations

from tests.mutation.fault import Fault

FORMULA = ("laws/test_losses.py::test_value_and_gradient_are_the_papers_formula",)
DIGITS = ("compute/test_contract.py::test_float32_keeps_its_digits",)
LAYOUT = ("compute/test_planted.py::test_the_kernels_are_the_reference_in_every_layout",)
BOTH_DTYPES = ("compute/test_planted.py::test_no_digit_is_lost_in_either_dtype",)
POWERS = ("compute/test_planted.py::test_powers_are_right_to_an_ulp",)
PLANTED = ("compute/test_planted.py",)

_PRECISION, _TARGET = "backends/cpu/precision.py", "backends/cpu/target.py"
_NARROW, _WIDE, _SOFT = "backends/cpu/narrow.py", "backends/cpu/wide.py", "backends/cpu/soft.py"
_REFERENCE = "backends/reference.py"

# fmt: off
KERNELS = (
    # --- precision
    Fault("digits of a coefficient exchanged", _PRECISION, "0.008363232883682604", "0.008633232883682604",
          "typed from a table", POWERS, "float32"),
    Fault("error of the difference dropped", _PRECISION, "fma(n, -_HIGH_32, d)) + e", "fma(n, -_HIGH_32, d))",
          "it looks like zero", POWERS, "float32"),
    Fault("log 2 in one piece", _PRECISION, "fma(n, -_LOW_32, fma(n, -_HIGH_32, d))", "fma(n, -_HIGH_32, d)",
          "the second piece looks negligible", POWERS, "float32"),
    Fault("log 2 of float64 mistyped", _PRECISION, "1.9082149292705878e-10", "1.9082419292705878e-10",
          "two digits exchanged, in the fourth of sixteen", POWERS, "float64"),
    Fault("powers too small are nothing", _PRECISION, "_f(-109.0)", "_f(-80.0)",
          "the limit of another exponential", POWERS, "float32"),
    Fault("exponent bias off by one", _PRECISION, "2.0**23 + 127", "2.0**23 + 126",
          "the bias of frexp is not that of the bits", POWERS, "float32"),
    Fault("bfloat16 cut off", _PRECISION,
          "(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)",
          "bits >> np.uint32(16)", "the upper half is the number, nearly", PLANTED, "tie"),
    Fault("bfloat16 ties always down", _PRECISION, " + ((bits >> np.uint32(16)) & np.uint32(1))", "",
          "half an ulp either way is within every tolerance", PLANTED, "tie"),
    Fault("greatest starts at zero", _PRECISION, "most = np.int32(-(2**31))", "most = np.int32(0)",
          "a maximum of absolute values begins there", PLANTED, "greatest"),
    # --- target entries
    Fault("1 - p as it is written", _TARGET, "((row.rest + (1.0 - e)) / whole)", "(1.0 - p)",
          "it is the formula", PLANTED, "entry"),
    Fault("cotangent of the others dropped", _TARGET, "(row.a - alpha) * p - alpha", "-alpha",
          "with one target it is 0", PLANTED, "entry"),
    Fault("measure missing at the target", _TARGET, "(row.measure * p - (u", "(p - (u",
          "right without smoothing", PLANTED, "entry"),
    Fault("a class that cannot be is smoothed", _TARGET, "(u if z > -np.inf else 0.0)", "u",
          "no label is at -inf, one would think", PLANTED, "entry"),
    Fault("surprise with the wrong sign", _TARGET, "+ row.beyond) if p", "- row.beyond) if p",
          "log p and -log p are easily confused", PLANTED, "entry"),
    Fault("lse has no slope at the target", _TARGET, " + row.b * p", "", "the other columns have it", PLANTED, "entry"),
    Fault("second target column not added", _TARGET, "range(1, a.shape[1])", "range(2, a.shape[1])",
          "off by one", PLANTED, "entry"),
    Fault("divided by Σ u instead of the count", _TARGET, "fields[uniform + 1, r + t]", "fields[uniform + 2, r + t]",
          "the same without class weights", PLANTED, "entry"),
    Fault("smoothing missing in the factor", _TARGET, " + c_row[t] * measure[t])", ")",
          "it is 0 for the NLL", PLANTED, "entry"),
    # --- narrow rows
    Fault("a tile runs into the next image", _NARROW, "min(rows, x.inner - r % x.inner)", "min(rows, x.inner)",
          "tiles mostly begin where images do", LAYOUT, "narrow and label"),
    Fault("every tile reads the first rows", _NARROW, "return r * x.sn, x.sn", "return 0, x.sn",
          "an offset forgotten", LAYOUT, "narrow and label"),
    Fault("last column without a gradient", _NARROW, "for j in range(tile.shape[0]):\n        column = tile[j]\n"
          "        for t in range(TILE):\n            column[t] = power", "for j in range(tile.shape[0] - 1):\n"
          "        column = tile[j]\n        for t in range(TILE):\n            column[t] = power",
          "off by one", FORMULA, "NLL and cpu"),
    Fault("last column not added up", _NARROW, "for j in range(tile.shape[0]):\n        column, power_of",
          "for j in range(tile.shape[0] - 1):\n        column, power_of", "off by one", FORMULA, "NLL and cpu"),
    Fault("powers added up in 16 bits", _NARROW, "sums[t] += np.float64(nothing",
          "sums[t] = np.float64(np.int64(sums[t] / 2.0**24)) * 2.0**24 + np.float64(nothing",  # the 8 bits of bfloat16
          "an accumulator of the input's dtype", FORMULA, "NLL and cpu"),
    Fault("powers added up in float32", _NARROW, "sums[t] += np.float64(nothing",
          "sums[t] = np.float64(np.float32(sums[t])) + np.float64(nothing",
          "float32 in, float32 out", BOTH_DTYPES, "float32-64"),
    Fault("two peaks counted as one", _NARROW, "np.float64(ties[t] - 1)", "0.0", "ties are rare", FORMULA,
          "NLL and cpu and flat"),
    Fault("infinity is no longer NaN", _NARROW, " + np.float64(peak[t] - peak[t])", "", "x - x is 0",
          ("laws/test_losses.py::test_nan_stays_in_its_row",), "NLL"),
    Fault("classes that cannot be are counted", _NARROW, "allowed[t] += np.int32(column[t] > -np.inf)",
          "allowed[t] += np.int32(1)", "v is at hand", FORMULA, "Smoothed and cpu and masked"),
    Fault("class weights missing in held", _SOFT, "held[t] += np.float64(share[t]) * w",
          "held[t] += np.float64(share[t])", "mass and held look alike", LAYOUT,
          "narrow and dense"),
    Fault("one-hot divided by itself", _SOFT, "if there[t] == 1:\n            gap",
          "if there[t] == -1:\n            gap",
          "w d / w is d", PLANTED, "one_hot_row"),
    Fault("ignored rows silenced by 0 only", _NARROW, "        silence(live, r, rows, tile)\n        turn_out",
          "        turn_out", "0 · p is 0", LAYOUT, "narrow and label"),
    Fault("a column named twice counts once", _NARROW, "alpha[t] += a[r + t, other]", "alpha[t] += 0.0",
          "mixup of two different labels is tested", LAYOUT, "narrow and sparse"),
    Fault("soft weights not normalised", _SOFT, "a[t] / held[t] if there", "a[t] if there",
          "probabilities sum to 1", LAYOUT,
          "narrow and dense"),
    Fault("entropy's slope turned round", _NARROW, "((peak[t] - logits[t]) + beyond", "((logits[t] - peak[t]) + beyond",
          "sign", FORMULA, "Confidence and cpu"),
    Fault("class weight missing in the uniform slope", _NARROW, "own[t] = c[t] * u", "own[t] = c[t]",
          "u is 1 without class weights", LAYOUT, "narrow and label"),
    # --- wide rows
    Fault("tail of the row dropped", _WIDE, "if tail.size:", "if not tail.size:", "whole blocks only", DIGITS, "1000"),
    Fault("old powers in the tail", _WIDE, "powers[tail.size :] = 0", "powers[tail.size : LANES] = 0",
          "half of the buffer cleared", DIGITS, "1000"),
    Fault("1 + rest rounded", _WIDE, "if whole >= 2.0 * ONE", "if whole >= 0.0", "one pass instead of two", DIGITS,
          "1000"),
    Fault("infinity is no longer NaN", _WIDE, "again + (whole - whole)", "again", "x - x is 0",
          PLANTED, "infinite and cpu"),
    Fault("wide rows read without their stride", _WIDE, "buffer[t, j] = widened(x.data[at + t * x.si])",
          "buffer[t, j] = widened(x.data[at + t])", "side by side is mostly next to each other", LAYOUT,
          "wide and label"),
    Fault("rows together run into the next image", _WIDE, "stop - r, x.inner - r % x.inner", "stop - r",
          "16 divides most image sizes", LAYOUT, "wide and label"),
    Fault("entropy's sum 1 % too large",
          _WIDE, "block[j] > -np.inf else 0.0\n    return tree_sum(lanes, tree) * UNSHIFT",
          "block[j] > -np.inf else 0.0\n    return tree_sum(lanes, tree) * UNSHIFT * 1.01",
          "a constant of another unit", LAYOUT,
          "wide and label"),
    Fault("class weights missing in held of a wide row", _SOFT, "held = tree_sum(lanes, tree)\n    alone",
          "held = mass\n    alone",
          "mass and held look alike", LAYOUT, "wide and dense"),
    Fault("alpha not cleared for the next row", _WIDE, "alpha[index[r, k]] = 0.0", "alpha[index[r, 0]] = 0.0",
          "right for a label", LAYOUT, "wide and sparse"),
    Fault("surprise without its constant", _WIDE, "((peak - z[j]) + beyond)", "(peak - z[j])",
          "beyond is small on flat rows", LAYOUT, "wide and label"),
    Fault("target shifted by one", _WIDE, "j = index[r, 0]\n", "j = max(index[r, 0] - 1, 0)\n", "labels from 1", DIGITS,
          "1000"),
    # --- memory and threads
    Fault("strides exchanged", "backends/cpu/memory.py", "*x.shape, *x.stride())",
          "*x.shape, x.stride(0), x.stride(2), x.stride(1))", "channels first or last", LAYOUT, "label"),
    Fault("a view read from its base", "backends/cpu/memory.py", "as_strided((extent,), (1,))",
          "as_strided((extent,), (1,), 0)", "the offset of a view forgotten",
          ("laws/test_losses.py::test_a_row_does_not_depend_on_its_neighbours_or_on_layout",), "NLL"),
    Fault("last block of rows skipped", "backends/cpu/threads.py", "range(0, rows, size)",
          "range(0, rows - size, size)", "off by one block", PLANTED, "threads"),
    # --- the reference
    Fault("p - 1 as it is written", _REFERENCE, "alpha * torch.expm1(-nll)", "alpha * (p - 1)", "it is the formula",
          FORMULA, "NLL and reference and confident"),
    Fault("infinity is no longer NaN", _REFERENCE, " + (peak - peak)", "", "x - x is 0",
          PLANTED, "infinite and reference"),
    Fault("0 · ∞ in the sums", _REFERENCE, "(u * bounded).sum(-1)", "(u * below).sum(-1)", "0 times anything is 0",
          FORMULA, "Smoothed and reference and masked"),
    Fault("a column named twice counts once", _REFERENCE, ".scatter_add(-1, index", ".scatter(-1, index",
          "the shorter name", LAYOUT, "narrow and sparse"),
    Fault("second derivative with a sign", _REFERENCE, "a.sum(-1, keepdim=True) * p - alpha",
          "a.sum(-1, keepdim=True) * p + alpha", "sign",
          ("laws/test_losses.py::test_gradients_of_all_orders_are_those_of_the_value",), "NLL"),
    Fault("forward derivative divided by v", _REFERENCE, "(u * t).sum(-1)) / allowed.sum(-1)",
          "(u * t).sum(-1)) / z.shape[-1]", "the same where nothing is -inf", PLANTED, "forward"),
)
