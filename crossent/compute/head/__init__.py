"""Lazy logits: the head of any model, which never stores its logits until somebody asks for them.

surgery    which module of a model is its head; making it lazy and undoing it
fused      what is asked of logits and answered without them: losses, log-probabilities, argmax, …
stays      what is done to logits that leaves them lazy: casts, views, slices, scales, the soft cap
tensor     the tensor itself, and what happens when somebody wants the numbers
watch      whether they still are what they were
sharding   heads that are in memory only while their module runs
recipe     how logits are made: hidden states, weight, bias and what was done to them since
"""

from crossent.compute.head import fused as fused  # each fills its part of the table of what stays lazy
from crossent.compute.head import stays as stays
from crossent.compute.head.surgery import eager_head as eager_head
from crossent.compute.head.surgery import lazy_head as lazy_head
from crossent.compute.head.tensor import LazyLogits as LazyLogits
from crossent.compute.head.tensor import Materialised as Materialised
