"""Regression in a range: a code turns a number into a target, and logits back into predictions of that number.

Every code has a range [``low``, ``high``] and the same verbs, so that another is tried by changing one line:

    columns                     how many logits a network needs
    encode(y)                   what a loss takes: a share, a ``Target``, or bits
    loss(logits, y)             what it costs that y came, in nats
    mean · median · quantile · interval · cdf · log_prob        of the distribution that the logits say

    Fraction              1 logit        the mean and nothing else
    ContinuousBernoulli   1 logit        a density e^{zx}: one bend, closed forms
    TwoHot                bins logits    masses on a grid; keeps the mean exactly
    HLGauss               bins logits    a density of steps, learnt from smoothed labels
    Ordinal               levels - 1     masses on whole numbers, learnt threshold by threshold
"""

from crossent.compute.codes.code import Code as Code
from crossent.compute.codes.histogram import HLGauss as HLGauss
from crossent.compute.codes.points import Ordinal as Ordinal
from crossent.compute.codes.points import TwoHot as TwoHot
from crossent.compute.codes.share import ContinuousBernoulli as ContinuousBernoulli
from crossent.compute.codes.share import Fraction as Fraction

CODES = (Fraction, ContinuousBernoulli, TwoHot, HLGauss, Ordinal)
