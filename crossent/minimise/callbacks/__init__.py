"""The decomposition of log loss, logged while someone else's trainer trains.

A validation loss that falls says that a model gets better, and not at what. Its parts do:

    cross-entropy = uncertainty − discrimination + miscalibration

Uncertainty is the labels' own and stays. Discrimination is what was learned; miscalibration is what can be had back
afterwards, by calibration. A network that overfits often goes on to discriminate better while its miscalibration grows
faster: the loss turns, and there was more to learn (Berta et al. 2025, "Rethinking Early Stopping").

lightning      DecompositionCallback for the Trainer of Lightning
transformers   DecompositionCallback for the Trainer of transformers

Both measure with ``CrossEntropyMetric``, so that the figures are those of ``crossent.evaluate`` on the same rows. Each
file needs its library when it is imported, and nothing else of crossent imports either.
"""

from __future__ import annotations

from crossent.record import Record

LOGGED = (
    "cross_entropy",
    "cross_entropy_floored",
    "uncertainty",
    "discrimination",
    "miscalibration",
    "information_gained",
    "skill",
)
"""The numbers that are logged, of those that a record has: the floored one is there when rows are impossible."""


def logged(record: Record) -> dict[str, float]:
    """Give the numbers to log by name: parts in nats, information gained in bits, skill as a share.

    >>> from crossent import evaluate
    >>> found = logged(evaluate([0.9, 0.2, 0.6, 0.3], [1, 0, 1, 0]))
    >>> round(found["uncertainty"] - found["discrimination"] + found["miscalibration"] - found["cross_entropy"], 12)
    0.0
    """
    return {name: record[name].value for name in LOGGED if name in record}
