"""Where a cross-entropy comes from: cross-entropy = uncertainty − discrimination + miscalibration.

    uncertainty      H        what the labels cost someone who knows only their frequencies
    discrimination   H − C*   what the model's probabilities gain on that, had they been calibrated
    miscalibration   C − C*   what they lose by not being so: the KL divergence of the model from the calibrated one

with C the model's cross-entropy and C* that of its calibrated self (Murphy 1973 for squares; Bröcker 2009 for
every proper score). C* is not known and is estimated by cross-fitting: each row is calibrated by what the other folds
say, with a temperature alone or with a bias per class as well, whichever comes out cheaper. Fitted on its own rows, or
estimated in bins, C* would be too low and miscalibration positive even for perfect models. Cross-fitted it errs the
other way, by about (parameters)/(2n): a calibrated model comes out slightly below 0, which is how "nothing to win"
looks. What this family of calibrators cannot mend, such as a wavy curve of reliability, counts as lack of
discrimination.

The interval of miscalibration is that of the row-by-row differences between the two costs, and reaches up to 0 at
least, for the truth is not below. It takes the calibrators as given; their own scatter is of the order 1/n, not 1/√n.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossent.measure.calibration import KINDS, cross_fit_log, recalibrate
from crossent.measure.likelihood import (
    costs,
    costs_of_frequencies,
    costs_of_logs,
    label_entropy,
    mean_difference,
)
from crossent.measure.predictions import Predictions
from crossent.record import Number

FOLDS = 5


def decomposition(predictions: Predictions, floor: float, seed: int = 0) -> tuple[dict[str, Number], str]:
    """Give uncertainty, discrimination and miscalibration in nats, and a sentence on the calibrated model.

    If a label had probability 0 the parts are those of the floored probabilities, as
    ``cross_entropy_floored`` is: no calibrator moves a zero. The three add up to that cross-entropy to
    rounding (1e-12). Cost: six calibrations, tens of passes over the probabilities each.

    >>> p = np.tile([0.6, 0.8, 0.3, 0.1], 50)
    >>> y = np.tile([1, 1, 0, 0], 50)
    >>> parts, _ = decomposition(Predictions.from_arrays(p, y), floor=1e-6)
    >>> whole = parts["uncertainty"].value - parts["discrimination"].value + parts["miscalibration"].value
    >>> bool(np.isclose(whole, np.mean(-np.log([0.6, 0.8, 0.7, 0.9]))))
    True
    """
    p, y = predictions.probabilities, predictions.labels
    if np.isinf(costs(p, y)).any():
        p = np.maximum(p, floor)
    with np.errstate(divide="ignore"):
        z = np.log(p)
    own, calibrated, kind, temperature = costs(p, y), np.array([np.inf]), "", 1.0
    for family in KINDS[1:]:
        whole = recalibrate(z, y, family, logits=True)
        found = costs_of_logs(cross_fit_log(z, y, family, FOLDS, seed, start=whole), y)
        if np.mean(found) < np.mean(calibrated):
            calibrated, kind, temperature = found, family, whole.temperature
    entropy = label_entropy(predictions)
    loss, best = float(np.mean(own)), float(np.mean(calibrated))
    lost = mean_difference(own, calibrated, loss - best)
    if lost.high is not None:
        lost = replace(lost, high=max(lost.high, 0.0))
    gained = mean_difference(costs_of_frequencies(predictions), calibrated, entropy.value + lost.value - loss)
    sentence = (
        f"{kind} on the log-probabilities, cross-fitted in {min(FOLDS, len(predictions))} folds "
        f"(temperature {temperature:.3g} when fitted on all rows)"
    )
    return {"uncertainty": entropy, "discrimination": gained, "miscalibration": lost}, sentence
