"""Faults in the losses, at least one in each, and in the binary elements that share them."""

from __future__ import annotations

from tests.mutation.fault import Fault

LAWS = "laws/test_losses.py::test_"
OF_MODULES = ("compute/test_modules.py::test_a_head_and_binary_elements_have_them_too",)
LEARNED = ("laws/test_losses.py::test_every_number_that_a_loss_holds_may_be_learned",)
FORMULA = (LAWS + "value_and_gradient_are_the_papers_formula",)
PLANTED = ("compute/test_planted.py",)
BINARY = ("compute/test_binary.py",)
COMPOSED = ("laws/test_composition.py::test_a_loss_with_everything_is_the_composition",)

# fmt: off
LOSSES = (
    # --- likelihood
    Fault("1 % more", "losses/likelihood.py", "return s.over_targets(s.nll)\n\n\n@dataclass",
          "return 1.01 * s.over_targets(s.nll)\n\n\n@dataclass", "a scale from elsewhere", FORMULA,
          "NLL and reference"),
    Fault("smoothing adds up to 1 + ε", "losses/likelihood.py", "(1 - self.smoothing) * self.loss(s)", "self.loss(s)",
          "a regulariser in mind", FORMULA, "Smoothed and reference"),
    Fault("smoothing by v - 1", "losses/likelihood.py", "torch.where(inside, s.count - 1, s.count)", "s.count",
          "over all, over others", ("laws/test_composition.py::test_smoothing_over_whom",)),
    Fault("smoothing weighs a row without a target", "losses/likelihood.py",
          "s.mass * torch.where(s.mass == 0, 0.0, uniform)", "uniform", "a mass is mostly 1",
          ("laws/test_composition.py::test_a_loss_with_everything_is_the_composition",), "NLL and sparse"),
    Fault("smoothing over all forgets what cannot be", "losses/likelihood.py",
          "torch.where(s.count < s.classes, torch.inf, 0.0)", "0.0", "infinity is a nuisance",
          ("laws/test_composition.py::test_smoothing_over_whom",)),
    Fault("smoothing of binary elements over whomever", "losses/likelihood.py",
          'type(loss.loss) is not NLL or loss.over != "allowed"', "type(loss.loss) is not NLL", "two have one other",
          ("compute/test_binary.py::test_what_is_nearly_the_nll_is_not_taken_for_it",)),
    Fault("what descends from the NLL is the NLL", "losses/likelihood.py", "if type(loss) is NLL",
          "if isinstance(loss, NLL)", "how types are asked for",
          ("compute/test_binary.py::test_what_is_nearly_the_nll_is_not_taken_for_it",)),
    Fault("ε up to 1.1", "losses/likelihood.py", "0.0 <= self.smoothing <= 1.0", "-0.1 <= self.smoothing <= 1.1",
          "a tolerance", (LAWS + "knobs_out_of_range_are_refused",)),
    Fault("class weights without a pass", "losses/likelihood.py",
          "return self.weight\n", "return None\n", "the loss inside has none", FORMULA, "ClassWeighted and reference"),
    # --- focus
    Fault("focal without its nll", "losses/focus.py", "gamma) * near", "gamma)", "the factor alone", FORMULA,
          "Focal and reference"),
    Fault("focal from p", "losses/focus.py", "torch.pow(-torch.expm1(-near), gamma)",
          "torch.pow(1 - torch.exp(-near), gamma)", "it is the formula", FORMULA, "Focal and reference and confident"),
    Fault("focal without its ends", "losses/focus.py", "near = nll.clamp(max=50.0)", "near = nll",
          "the value is right there", (LAWS + "both_ends_are_finite_where_there_is_a_limit",), "Focal"),
    Fault("poly-1 with the other sign", "losses/focus.py", "s.nll + self.epsilon * s.miss",
          "s.nll - self.epsilon * s.miss", "sign", FORMULA, "Poly1 and reference"),
    Fault("yes and no exchanged", "losses/focus.py", "torch.where(no, _focused(left", "torch.where(~no, _focused(left",
          "a condition turned", FORMULA, "Asymmetric and reference"),
    Fault("margin not cut off at 0", "losses/focus.py", "torch.relu(s.miss - self.margin)", "(s.miss - self.margin)",
          "mostly positive", FORMULA, "Asymmetric and reference"),
    # --- robust
    Fault("not divided by q", "losses/robust.py", "missing(self.q * s.nll) / self.q",
          "missing(self.q * s.nll)", "a constant factor moves no optimum", FORMULA, "GeneralisedCE and reference"),
    Fault("log 0 with the wrong sign", "losses/robust.py", "reverse = -self.beta * self.A",
          "reverse = self.beta * self.A", "A is below 0", FORMULA, "SymmetricCE and reference"),
    Fault("Taylor's last term missing", "losses/robust.py", "range(self.order - 1, 0, -1)",
          "range(self.order - 1, 1, -1)", "off by one", FORMULA, "TaylorCE and reference"),
    # --- regulariser and contrast
    Fault("lse itself", "losses/regulariser.py", "s.lse.square()", "s.lse.abs()", "it keeps it small too", FORMULA,
          "LogZ and reference"),
    Fault("confidence rewarded", "losses/regulariser.py", "-s.entropy", "s.entropy", "sign", FORMULA,
          "Confidence and reference"),
    Fault("unlikelihood from 1 - p as it is written", "losses/contrast.py", "torch.where(likely, near, far)", "far",
          "one form is enough", FORMULA, "Unlikelihood and reference and confident"),
    # --- margin
    Fault("margin given instead of taken", "losses/margin.py", "torch.exp(m) * torch.expm1",
          "torch.exp(-m) * torch.expm1", "sign", FORMULA, "Margin and reference"),
    Fault("the far form forgets the margin", "losses/margin.py", "torch.where(far, nll + m,", "torch.where(far, nll,",
          "beyond 50 nats nothing matters", ("compute/test_planted.py",), "margin_far"),
    Fault("fourth root as a square root", "losses/margin.py", "rarity.sqrt().sqrt()", "rarity.sqrt()",
          "half the formula", FORMULA, "LDAM and reference"),
    Fault("sine and cosine of the margin", "losses/margin.py", "torch.sin(margin) * sine",
          "torch.cos(margin) * sine", "the addition theorem from memory", FORMULA, "ArcFace and reference"),
    # --- what a loss holds is learned
    Fault("focal without a slope at γ = 0", "losses/focus.py", "if is_exactly(gamma, 0):", "if gamma == 0:",
          "a number that is a tensor is 0 too", LEARNED, "Focal"),
    Fault("smoothing without a slope at ε = 0", "losses/likelihood.py", "if is_exactly(self.smoothing, 0):",
          "if self.smoothing == 0:", "a number that is a tensor is 0 too", LEARNED, "Smoothed"),
    Fault("a margin that forgets its tensor", "losses/margin.py", "torch.as_tensor(self.m, ",
          "torch.tensor(float(self.m), ", "the same value", LEARNED, "Margin"),
    Fault("a module's tensors in no field", "losses/algebra.py", "held.values() if name in OF_MODULE else (held,)",
          "(held,)", "as a frozen object has them", OF_MODULES),
    # --- score
    Fault("Brier without its rivals", "losses/score.py", "(miss.square() + rivals)", "miss.square()",
          "the binary score", FORMULA, "Brier and reference"),
    Fault("hinge against itself", "losses/score.py", "torch.where(won, best[:, 1:], best[:, :1])", "best[:, :1]",
          "the best column is a rival, mostly", FORMULA, "Hinge and reference"),
    # --- algebra
    Fault("a sum forgets what its second part reads", "losses/algebra.py", "self.a.reads | self.b.reads",
          "self.a.reads", "one of two", (LAWS + "losses_add_and_scale", "laws/test_composition.py"), "add or hand_on"),
    Fault("a sum is linear if one part is", "losses/algebra.py", "self.a.linear and self.b.linear",
          "self.a.linear or self.b.linear", "and, or", COMPOSED, "Focal and dense"),
    # --- binary elements
    Fault("0 · ∞ of an answer of no weight", "backends/cpu/element.py", " if wrong != 0 else zero", "",
          "0 times anything is 0", BINARY, "infinit"),
    Fault("what 1 + e lost is lost", "backends/cpu/element.py", "lost = e - (whole - one)", "lost = e - e",
          "it looks like zero", PLANTED, "fine_grid"),
    Fault("tail of the block dropped", "backends/cpu/element.py", "for i in range(0, costs.size, LANES)",
          "for i in range(0, costs.size - LANES, LANES)", "whole lanes only", PLANTED, "sum_of_elements"),
    Fault("lanes of a whole block one short", "backends/cpu/element.py", "range(BLOCK // LANES)",
          "range(BLOCK // LANES - 1)", "off by one", PLANTED, "sum_of_elements"),
    Fault("a cotangent is rounded before its slope", "backends/cpu/element.py", "fma(x[j], high, x[j] * low)",
          "x[j] * high", "it looks like twice the same", BINARY, "is_rounded_once"),
    Fault("shares below 0 pass by their bits", "backends/cpu/element.py", "least >= 0 and most <= one",
          "most <= one", "the greatest tells of most", BINARY, "seen_as_it_is_read"),
    Fault("smoothing to 1 instead of a half", "backends/cpu/element.py", "0.5 * smoothing", "smoothing",
          "label smoothing of two classes", BINARY, "smoothing"),
    Fault("pos_weight without a slope", "backends/cpu/element.py", "t[j] * (pos[j] if pos.size else one) * q",
          "t[j] * q", "the cost has it", PLANTED, "slip"),
    Fault("every block begins with the first weight", "backends/cpu/element.py", "at = i % pos.size", "at = 0",
          "right where the classes divide a block", PLANTED, "slip"),
)
