"""Cross-entropy on many machines: torch.distributed's groups and meshes, and the same numbers as on one.

    cross_entropy         of logits whose classes are spread over the ranks of a group (vocabulary-parallel)
    linear_cross_entropy  of a head whose classes are, without its logits; hidden states whole or sequence-parallel
    row_numbers           log-probability, log-sum-exp, entropy, argmax and rank of such rows
    linear_row_numbers    the same of a head
    distillation          of logits against a teacher's that are spread alike, or against its few best columns
    linear_distillation   of a head from a teacher's
    normaliser            what a mean divides by when its rows are spread over ranks and micro-batches

Every rank of the group calls the function, with its own columns and the same of everything else, and gets the whole
loss: the same bits on every rank. In the backward pass each gets the gradient of what it holds; of what all hold
(hidden states, a learned temperature or weight) all get the whole gradient. Call ``backward`` on every rank, as if
each were alone.

What is wrong on one rank is an error on all of them, in the same call. A rank that dies or never comes is an error of
torch.distributed's on the others, within the timeout of the group.
"""

from crossent.compute.normaliser import normaliser as normaliser
from crossent.parallel.losses import cross_entropy as cross_entropy
from crossent.parallel.losses import linear_cross_entropy as linear_cross_entropy
from crossent.parallel.losses import linear_row_numbers as linear_row_numbers
from crossent.parallel.losses import row_numbers as row_numbers
from crossent.parallel.teacher import distillation as distillation
from crossent.parallel.teacher import linear_distillation as linear_distillation

__all__ = [
    "cross_entropy",
    "distillation",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_row_numbers",
    "normaliser",
    "row_numbers",
]
