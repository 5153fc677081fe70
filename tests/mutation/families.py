"""Faults in the families beside the multi-class losses: codes, information, distillation."""

from __future__ import annotations

from tests.mutation.fault import Fault

CODES, LABELS = "compute/test_codes.py::test_", "compute/test_codes_labels.py::test_"
INFORMATION = "compute/test_information.py::test_"
FORMULAS = (INFORMATION + "every_number_is_the_formula", INFORMATION + "zeros_and_infinities")
DISTILLATION = "compute/test_distillation.py::test_"

# fmt: off
FAMILIES = (
    # --- codes
    Fault("window one column short", "codes/histogram.py", "math.ceil(2 * reach) + 1", "math.ceil(2 * reach)",
          "posts and fences", (CODES + "window_masses_keep_their_digits",)),
    Fault("erf instead of erfc", "codes/histogram.py", "(torch.erfc(a) - torch.erfc(b)) / 2",
          "(torch.erf(b) - torch.erf(a)) / 2", "the same on paper", (CODES + "window_masses_keep_their_digits",)),
    Fault("centres at the lower edges", "codes/histogram.py", "device=z.device) + 0.5) / self.bins",
          "device=z.device) + 0.0) / self.bins", "half a bin", (CODES + "mean_is_that_of_the_formula",)),
    Fault("density per bin instead of per unit", "codes/histogram.py",
          " - math.log((self.high - self.low) / self.bins)",
          " + math.log(self.bins)", "right where the range is 1",
          (CODES + "log_prob_is_the_log_of_the_slope_of_the_cdf",)),
    Fault("two-hot weights exchanged", "codes/points.py", "torch.stack((1 - t, t), -1)", "torch.stack((t, 1 - t), -1)",
          "which of the two", (CODES + "loss_and_its_gradient_are_those_of_the_formula",), "TwoHot"),
    Fault("the last point has no neighbour", "codes/points.py", "clamp(max=self.bins - 2)", "clamp(max=self.bins - 1)",
          "off by one", (LABELS + "labels_at_the_edges",)),
    Fault("one question too many", "codes/points.py", "(level >= k).to(f.dtype)", "(level >= k - 1).to(f.dtype)",
          "off by one", (CODES + "loss_and_its_gradient_are_those_of_the_formula",), "Ordinal"),
    Fault("normaliser dropped", "codes/share.py", "torch.where(m == 0, 0.0, a * m) - log_mass",
          "torch.where(m == 0, 0.0, a * m)", "as binary cross-entropy does",
          (CODES + "loss_and_its_gradient_are_those_of_the_formula",), "ContinuousBernoulli"),
    Fault("a term of the series missing", "codes/share.py",
          "for n in range(8, 0, -1):\n        total = x * x / (2 * n * (2 * n + 1)) * (1 + total)",
          "for n in range(4, 0, -1):\n        total = x * x / (2 * n * (2 * n + 1)) * (1 + total)",
          "converges quickly", (CODES + "continuous_bernoulli_keeps_its_digits_everywhere",)),
    Fault("labels a little outside pass", "codes/code.py", "(at <= self.high)", "(at <= self.high + 1e-3)",
          "a tolerance for rounding", (LABELS + "labels_just_outside_are_refused",)),
    # --- information
    Fault("KL the other way round", "information.py", "return _finish(kl(p, q), unit", "return _finish(kl(q, p), unit",
          "the argument order of PyTorch", FORMULAS),
    Fault("bits are nats", "information.py", "value / _NATS[unit]", "value * _NATS[unit]", "divide or multiply",
          (*FORMULAS, INFORMATION + "scipy_agrees", INFORMATION + "mutual_information_and_its_chain_rule")),
    Fault("an impossible class costs nothing", "information.py",
          "torch.where(q.absent & ~p.absent, torch.inf, terms).sum(-1), unit, input, other",
          "torch.where(q.absent & ~p.absent, 0.0, terms).sum(-1), unit, input, other", "infinity is a nuisance",
          FORMULAS),
    Fault("Rényi by α instead of 1 - α", "information.py", "value = order / (1 - order) * _renyi(q, p, -order)",
          "value = _renyi(q, p, -order)", "skew symmetry from memory", FORMULAS),
    Fault("mixture half and half", "distribution.py", "m = w * p.p + other * q.p", "m = 0.5 * p.p + 0.5 * q.p",
          "the usual weight", FORMULAS),
    Fault("log p - log q as it is written", "distribution.py", "torch.where(near, ratio, far)", "far",
          "it is the formula", FORMULAS),
    Fault("a term of the excess missing", "distribution.py", "for k in range(11, 2, -1)", "for k in range(7, 2, -1)",
          "converges quickly", (*FORMULAS, INFORMATION + "close_probabilities_do_not_cancel",
                                DISTILLATION + "value_and_gradient_are_the_formula")),
    # --- distillation
    Fault("temperature once too few", "distillation.py", "value = value * temperature**2",
          "value = value * temperature", "the gradient is smaller by τ, one would think",
          ("compute/test_distillation.py",)),
    Fault("the others of the student forgotten", "distillation.py", "torch.where(none, -torch.inf, total)",
          "torch.full_like(total, -torch.inf)", "k columns are nearly all",
          (DISTILLATION + "a_teacher_of_k_columns_and_the_rest",)),
    Fault("the rest as 1 - Σ p", "distillation.py", "-torch.expm1(log_p.gather(-1, first)) - followers",
          "1 - log_p.gather(-1, first).exp() - followers", "it is the formula",
          ("compute/test_planted.py",), "sure_teacher"),
    Fault("last block of rows missing", "distillation.py", "starts = range(0, max(1, z.shape[0]), rows)",
          "starts = range(0, max(1, z.shape[0] - rows + 1), rows)", "whole blocks only",
          (DISTILLATION + "blocks_change_no_bit_and_nothing_wide_is_larger",)),
    Fault("masked rows multiplied away", "distillation.py", "z = torch.where(live.unsqueeze(-1), z, 0.0)",
          "z = z * live.unsqueeze(-1)", "masks are multiplied everywhere",
          (DISTILLATION + "masked_rows_are_not_read",)),
)
