"""What the probabilities of one slice are worth once they are calibrated, and how far off they are.

The same numbers as those of all rows, from less: of two classes and of ranges the isotonic curve on the slice's own
cells, 256 at most; of more classes the recalibration of those rows of the sample that are in the slice. Cross-entropy
and label entropy are exact, so that in every slice cross-entropy = uncertainty − discrimination + miscalibration. What
the coarser cells cost: at 10⁵ rows the parts are within 10⁻⁴ nats of those of the rows (test_slices), a small
part of what their intervals allow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossent.measure.sums.cells import Cells
from crossent.measure.sums.hashing import hashed
from crossent.measure.sums.sample import Sample
from crossent.measure.values.decomposition import Calibrated, design_of, isotonic_parts, joint_parts
from crossent.measure.values.means import Evidence, label_entropy
from crossent.measure.values.reliability import expected_calibration_error, smooth_calibration_error
from crossent.record import Number

MOST_PARTS = 200
"""So many slices, those of most weight, have the parts of the decomposition: each takes some 10 ms, with many classes
more."""

DRAWS = 60


def rows_of_slice(sample: Sample, column: int, value: str) -> Sample:
    """Give the rows of the sample that have this value in a column of slices, by its place among their names."""
    return sample.take(np.flatnonzero(sample.slices[:, column] == hashed(np.array([value]))[0]))


def calibration_errors(of: Evidence, bins: NDArray[np.float64], cells: Cells) -> dict[str, Number]:
    """Give ``ece``, from its bins (3, BINS), and ``smooth_ece``, with every cell at its mean prediction."""
    smooth = smooth_calibration_error(cells)
    return {"ece": Number(expected_calibration_error(bins), "1", n=of.n), "smooth_ece": Number(smooth, "1", n=of.n)}


def parts_of_slice(of: Evidence, task: str) -> dict[str, Number]:
    """Give uncertainty, discrimination and miscalibration, nats; nothing where no two rows of the sample are in it.

    Of two classes ``of`` has the slice's own cells, and the histograms of folds where rows come in groups; of more the
    rows of the sample that are in the slice.
    """
    if task != "multi-class":
        assert of.cells is not None
        design = design_of(None if of.groups is None else of.groups.by_fold())
        return isotonic_parts(of, Calibrated.of(of.cells, design, draws=DRAWS), DRAWS)[0]
    if of.sample is None or np.count_nonzero(of.sample.weights) < 2:
        return {}
    return joint_parts(of)[0] | {"uncertainty": label_entropy(replace(of, sample=None))}
