"""Calibrate, guarded: a calibrator is used only where it lowers cross-entropy on rows it was not fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossent.measure.calibration import KINDS, Calibrator, cross_fit_log, recalibrate
from crossent.measure.interval import of_mean
from crossent.measure.likelihood import costs_of_logs
from crossent.record import Table

LEAST_ROWS = 20


def choose(log_p: NDArray[np.float64], labels: NDArray, seed: int) -> tuple[Calibrator, Table]:
    """The calibrator for log-probabilities (n, classes) of the validation rows, and what each candidate did there.

    Every family is judged by its cross-fitted cross-entropy: each row is calibrated by rows other than itself. The
    cheapest is used if the 95 % interval of its paired change lies wholly below 0; else none is, for a calibrator
    fitted to noise makes probabilities worse.
    """
    plain = costs_of_logs(log_p, labels)
    finite = np.isfinite(plain)
    table: Table = {
        "name": ["none"],
        "cross_entropy": [float(plain.mean())],
        "low": [None],
        "high": [None],
        "chosen": [True],
    }
    best, lowest = 0, 0.0
    if finite.sum() < LEAST_ROWS:
        return Calibrator(), table
    for place, kind in enumerate(KINDS[1:], 1):
        change = costs_of_logs(cross_fit_log(log_p, labels, kind, seed=seed), labels)[finite] - plain[finite]
        low, high = of_mean(change) or (None, None)
        mean = float(change.mean())
        cells = (kind, float(plain.mean()) + mean, low, high, False)
        for name, cell in zip(("name", "cross_entropy", "low", "high", "chosen"), cells, strict=True):
            table[name].append(cell)
        if high is not None and high < 0 and mean < lowest:
            best, lowest = place, mean
    table["chosen"] = [place == best for place in range(len(KINDS))]
    return (recalibrate(log_p, labels, KINDS[best], logits=True) if best else Calibrator()), table
