"""Faults on the way from the user's arguments to a number: targets, statistics, links, rows, reductions, heads."""

from __future__ import annotations

from tests.mutation.fault import Fault

CONTRACT = "compute/test_contract.py::test_"
LAWS = "laws/test_losses.py::test_"
PLANTED = ("compute/test_planted.py",)
MONOID = ("laws/test_stats.py",)
COMPOSED = ("laws/test_composition.py::test_a_loss_with_everything_is_the_composition",)
LINEAR = ("compute/test_linear.py",)
BINARY = ("compute/test_binary.py",)

# fmt: off
ROWS = (
    # --- statistics
    Fault("the follower's peak is not added", "stats.py", "(lead_rest + scale * follow_rest) + scale",
          "lead_rest + scale * follow_rest", "rest leaves out a greatest: one of each part", MONOID),
    Fault("moved entropy without the peak's 1", "stats.py", "drop * (1 + follow_rest)", "drop * follow_rest",
          "rest leaves out the greatest", MONOID),
    Fault("uniform divided by Σ u", "stats.py", "- part.total) / part.count", "- part.total) / part.measure",
          "the same without class weights", COMPOSED, "NLL and hard"),
    Fault("uniform spread by the count", "stats.py", "(part.measure * spread - part.total)",
          "(part.count * spread - part.total)", "the same without class weights", COMPOSED, "NLL and hard"),
    Fault("1 - p by the wrong form", "stats.py", "torch.where(likely, near, far)", "torch.where(likely, far, near)",
          "arguments exchanged", (LAWS + "value_and_gradient_are_the_papers_formula",), "Poly1"),
    Fault("0 · ∞ over targets", "stats.py", "torch.where(silent, 0.0, values)", "values", "0 times anything is 0",
          (CONTRACT + "a_class_at_minus_infinity_is_a_class_that_cannot_be",
           LAWS + "a_one_hot_soft_target_gives_the_bits_of_the_label")),
    # --- rows
    Fault("row weight missing in the divisor", "rows.py", "weight * row_weight", "weight",
          "the loss has it already", COMPOSED, "NLL and hard"),
    Fault("weighted rows with infinite loss", "rows.py", "torch.where(silent, 0.0, value) * row_weight",
          "value * row_weight", "0 times anything is 0", PLANTED, "no_weight"),
    Fault("class weight missing", "rows.py", "if class_weight is not None and soft is None",
          "if class_weight is not None and soft is not None", "a condition turned", COMPOSED, "NLL and hard"),
    Fault("mean by rows instead of weights", "rows.py", "torch.where(s.mass == 0, 1.0, s.held /",
          "torch.where(s.mass >= 0, 1.0, s.held /", "Keras divides by the number of rows",
          (CONTRACT + "everything_torch_has_agrees_with_torch_where_torch_is_right",)),
    Fault("ignored rows multiplied away", "rows.py", "torch.where(target.live, value, 0.0)", "value * target.live",
          "masks are multiplied everywhere", PLANTED, "nan_of_an_ignored"),
    Fault("ignored logits multiplied away", "rows.py",
          "torch.where(target.live.reshape(z.shape[0], 1, z.shape[2]), z, 0.0)",
          "z * target.live.reshape(z.shape[0], 1, z.shape[2])", "masks are multiplied everywhere",
          (CONTRACT + "an_ignored_row_is_not_read_through_a_link_either",)),
    Fault("fakes forget the last dimension", "operators.py", "rows = z.shape[0] * z.shape[2]", "rows = z.shape[0]",
          "(n, v) in mind", PLANTED, "opcheck"),
    # --- targets
    Fault("a label of v is a class", "target.py", "inside = (y >= 0) & (y < classes)",
          "inside = (y >= 0) & (y <= classes)", "off by one", PLANTED, "labels_end"),
    Fault("the quick look lets v pass", "target.py", "int(greatest) < classes", "int(greatest) <= classes",
          "off by one", PLANTED, "labels_end"),
    Fault("an ignored class in range counts", "target.py", " and not 0 <= ignore_index < classes", "",
          "ignore_index is mostly -100", PLANTED, "any_class"),
    Fault("labels out of range cost nothing", "target.py", "torch.where(outside, torch.nan, 1.0)",
          "torch.where(outside, 0.0, 1.0)", "as if they were ignored",
          (CONTRACT + "a_label_out_of_range_never_reads_foreign_memory",)),
    Fault("a mask replaces what is ignored", "target.py", "mask if self.live is None else self.live & mask", "mask",
          "one mask at a time", PLANTED, "a_mask_adds"),
    Fault("small negative weights pass", "target.py", "weight.detach().amin() >= 0", "weight.detach().amin() >= -1e-3",
          "a tolerance for rounding", PLANTED, "below_0"),
    Fault("chunks one row short", "linear/product.py", "slice(start, min(start + size, rows))",
          "slice(start, min(start + size, rows) - 1)", "inclusive ends", LINEAR, "upstream"),
    # --- reductions
    Fault("mean of float16", "reduce.py", "return value.sum().to(dtype)", "return value.half().sum().to(dtype)",
          "in the dtype of the logits", (CONTRACT + "many_rows_of_float16_neither_overflow_nor_vanish",)),
    Fault("mean divided by rows", "reduce.py", "else weight.sum()", "else weight.new_tensor(weight.numel())",
          "what is a mean otherwise", (CONTRACT + "everything_torch_has_agrees_with_torch_where_torch_is_right",)),
    Fault("an empty mean is 0 / 0", "reduce.py", "torch.where(total == 0, 1.0, total)", "total", "PyTorch's answer",
          (CONTRACT + "empty_batches",)),
    # --- a number and its gradient from one reading
    Fault("upstream gradient forgotten", "number.py", " and float(g) == 1.0", "", "a loss is where backward begins",
          ("compute/test_number.py",)),
    Fault("a sum divided too", "number.py", '1.0 if reduction != "mean" else rows if', "rows if",
          "the mean was written first",
          ("compute/test_number.py",)),
    Fault("read once, smoothing missing in the factor", "backends/cpu/once.py", "(a_row[t] + c_row[t] * measure[t])",
          "a_row[t]", "it is 0 for the NLL", ("compute/test_number.py",)),
    Fault("read once, a soft target's weight missing", "backends/cpu/once.py", "a * (fields[3, t] if soft",
          "a * (1.0 if soft", "it is 1 for probabilities", ("compute/test_number.py",)),
    Fault("read once, a wide soft target's weight missing", "backends/cpu/once.py", "a_row = a * held", "a_row = a",
          "it is 1 for probabilities", ("compute/test_number.py",)),
    Fault("soft upstream gradient not weighed", "number.py", "a * fields[3].unsqueeze(-1)", "a",
          "backward begins with 1", ("compute/test_number.py",)),
    Fault("upstream gradient of focal losses not passed on", "number.py", "fields, slope * each, None)",
          "fields, slope / target.rows, None)", "backward begins with 1",
          ("compute/test_number.py::test_focal_losses_are_made_again",)),
    Fault("read once, a wide row's focal slope missing", "backends/cpu/once.py", "a_row = a * slope[0]", "a_row = a",
          "right for γ = 0", ("compute/test_number.py::test_focal_losses_keep_their_digits",)),
    Fault("upstream gradient of elements forgotten", "binary.py", " and float(g) == 1.0", "",
          "a loss is where backward begins", BINARY),
    Fault("elements read once, weights from the start", "backends/cpu/element.py",
          "_slopes(x, t, tail, weights, a, out[i:j])", "_slopes(x, t, tail, pattern[: j - i], a, out[i:j])",
          "right in the first block, and for one weight", BINARY),
    Fault("negative shares let through by their bits", "target.py", "return int(least) >= 0 and ", "return ",
          "most are too large", BINARY),
    Fault("read once, last column without a gradient", "backends/cpu/once.py", "range(kept.shape[0])",
          "range(kept.shape[0] - 1)", "off by one", ("compute/test_number.py",)),
    # --- links
    Fault("temperature multiplied", "link.py", "z / self.temperature", "z * self.temperature",
          "an inverse temperature", COMPOSED, "NLL and hard"),
    Fault("soft cap not undone", "link.py", "self.softcap * torch.tanh", "torch.tanh", "tanh looks like the cap",
          COMPOSED, "NLL and hard"),
    Fault("prior taken off", "link.py", "z + self.bias", "z - self.bias", "adjusting after training is the reverse",
          COMPOSED, "NLL and hard"),
    # --- heads
    Fault("last chunk dropped", "linear/product.py", "for start in range(0, rows, max(1, size))",
          "for start in range(0, rows - size, max(1, size))", "whole chunks only", LINEAR, "upstream"),
    Fault("head's gradient added up in 16 bits", "linear/product.py",
          "torch.float64 if w.dtype == torch.float64 else torch.float32", "w.dtype", "zeros_like(w)", LINEAR,
          "bfloat16"),
    Fault("bias gradient of the last chunk only", "linear/product.py", "self.db += dz", "self.db = dz", "a character",
          LINEAR, "value_and_gradients and NLL"),
    Fault("upstream gradient of the first rows", "linear/operators.py", "*at_rows(chunk.at, *cotangents))",
          "*(t if t is None else t[: len(chunk.x)] for t in cotangents))", "right for a mean, where all are equal",
          LINEAR, "upstream"),
    # --- public functions
    Fault("sample weights ignored by the head", "functional.py",
          "classes, ignored, mask, validate)\n    rows = linear.counting(rows.weighted(row_weight,",
          "classes, ignored, mask, validate)\n    rows = linear.counting(rows.weighted(None,",
          "an argument added to one of two functions", PLANTED, "head"),
    Fault("smoothing inside forgets the loss", "arguments.py", "whole = Smoothed(label_smoothing, whole)",
          "whole = Smoothed(label_smoothing, NLL())", "label_smoothing is written for the NLL", COMPOSED,
          "Focal and hard"),
    Fault("a share of 1 + 1 % passes", "arguments.py", "(share >= 0) & (share <= 1)",
          "(share >= 0) & (share <= 1.01)", "a tolerance for rounding", PLANTED, "share"),
)
