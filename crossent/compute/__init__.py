"""Compute: every cross-entropy, exact to the last digits.

functional · modules     the public faces
fused                    losses, row numbers and distillation without logits
codes/                   a number in a range as a target, and logits as a number again
head/                    lazy logits: that head in any model, by one line (loaded when asked for: it loads Dynamo)
linear                   the head that never stores its logits
rows · binary            where autograd meets the kernels
losses/ · backends/      what to make of a row · how to read it
target · link · reduce   what a row should be · what happens before and after
stats                    the numbers through which a loss looks at a row
information              entropy and divergence of distributions
distillation             a student's divergence from its teacher
"""

from crossent.compute.codes import ContinuousBernoulli as ContinuousBernoulli
from crossent.compute.codes import Fraction as Fraction
from crossent.compute.codes import HLGauss as HLGauss
from crossent.compute.codes import Ordinal as Ordinal
from crossent.compute.codes import TwoHot as TwoHot
from crossent.compute.distillation import distillation as distillation
from crossent.compute.functional import binary_cross_entropy as binary_cross_entropy
from crossent.compute.functional import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from crossent.compute.functional import cross_entropy as cross_entropy
from crossent.compute.functional import row_numbers as row_numbers
from crossent.compute.fused import linear_cross_entropy as linear_cross_entropy
from crossent.compute.fused import linear_distillation as linear_distillation
from crossent.compute.fused import linear_row_numbers as linear_row_numbers
from crossent.compute.information import cross_entropy_between as cross_entropy_between
from crossent.compute.information import entropy as entropy
from crossent.compute.information import information_gain as information_gain
from crossent.compute.information import js_divergence as js_divergence
from crossent.compute.information import kl_divergence as kl_divergence
from crossent.compute.information import mutual_information as mutual_information
from crossent.compute.information import renyi_divergence as renyi_divergence
from crossent.compute.information import renyi_entropy as renyi_entropy
from crossent.compute.link import Link as Link
from crossent.compute.modules import BCELoss as BCELoss
from crossent.compute.modules import BCEWithLogitsLoss as BCEWithLogitsLoss
from crossent.compute.modules import CrossEntropyLoss as CrossEntropyLoss
from crossent.compute.modules import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from crossent.compute.target import Target as Target
from crossent.compute.target import sparse as sparse
