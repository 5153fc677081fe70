"""The mean of numbers that were measured on every test row by every seed, and its error: rows and trainings both count.

A loss is judged by training several networks from several seeds and testing all of them on the same rows. Seed s and
row i give the number d_si, a cost or a difference of two costs. Of d_si = μ + r_i + a_s + e_si the row's part r is what
other test rows would change, a what other folds, starts and batches would, e what belongs to neither. The mean over
both has (Searle, Casella & McCulloch 1992, *Variance Components*, §4.3, the two-way crossed model with random effects)

    error² = (σ_r² + σ_e² / S) / n  +  σ_a² / S ,

n rows and S seeds. The first term is the squared error of the mean over rows of d_i = Σ_s d_si / S, found by
``cluster_mean`` with weights and skewness. The second is what the S means scatter beyond what e alone would make them,

    σ_a² = s_a² − s_e² ,    s_a² = Σ_s (d_s − d)² / (S − 1),    s_e² = σ_e² / n,

0 where that is below it. The degrees of freedom are Satterthwaite's, ν = error⁴ / (first² / ν_r + (s_a² / S)² /
(S − 1)): where seeds make the error, three seeds leave ν near 2 and the interval is as wide as that deserves; where
rows make it, ν is theirs. With a single seed nothing is known of a, and the error is that of the rows alone.

**Folds.** Where every row is judged in turn, by the network of its fold k, there are S K trainings, each judged on the
rows of its fold: d_si = μ + r_i + a_sk + e_si with k the fold of i. Now σ_a² is what the S K means of folds scatter
beyond what the rows within a fold make them. What other training rows would change is seen in that only in part, for
any two training sets share most of their rows, and no estimate of the rest is free of bias (Bengio & Grandvalet 2004,
*JMLR* 5, 1089–1105). Nadeau & Bengio 2003 (*Machine Learning* 52, 239–281, the corrected resampled t test) take the
correlation ρ of two such means to be the share of rows that are tested, here 1 / K, so that the variance of their mean
is their scatter times 1 / (S K) + ρ / (1 − ρ):

    error² = (σ_r² + σ_e² / S) / n  +  σ_a² (1 / (S K) + 1 / (K − 1)) .

They correct the whole scatter of the means so (and Bouckaert & Frank 2004 for folds drawn several times), rows
included. Here it is that of the trainings alone: what other rows would change is known from the rows, each of which is
judged once by every seed. So the interval is as a rule narrower than theirs, and never narrower than that of the rows.
In ν the second term has S K − 1 degrees of freedom, and stands there as it is: what is subtracted from s_a² is here as
large as the first term, and with s_a² itself ν would fall to 1 where trainings make no difference at all.

Where nearly all luck lies in which rows were learnt from, the interval is too narrow, and theirs is too, though less:
for two ridge regressions with half as many features as rows, by five folds and two seeds, 95 % intervals held the truth
76 % of the time, theirs 85 %, those of rows alone 66 %. With three folds and one seed, a bare three trainings, they
hold it 91 % of the time where trainings make most of the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from crossent.measure.intervals.cluster import ClusterMean, cluster_mean


@dataclass(frozen=True)
class Crossed:
    """A mean over rows and seeds with its error, and how much of its square the trainings make, from 0 to 1."""

    mean: ClusterMean
    of_seeds: float


def crossed(
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    scale: float | None = None,
    further: float = 0.0,
    fold: NDArray[np.int64] | None = None,
) -> Crossed:
    """Estimate the mean that ``values`` (seeds, rows) were drawn from; rows and trainings are both drawn.

    ``weights`` (rows,) are what a row counts. ``scale`` and ``further`` are those of ``cluster_mean``: the largest
    number that was subtracted, and a standard deviation of the value from elsewhere. ``fold`` (seeds, rows), from 0 on,
    is by whose network each seed judged a row; by default each seed has one.

    >>> one_seed = np.array([[0.1, 0.3, 0.2, 0.6]])
    >>> round(crossed(one_seed).mean.error, 3)
    0.108
    >>> seeds_differ = np.vstack((one_seed, one_seed + 1, one_seed + 2))
    >>> round(crossed(seeds_differ).mean.error, 3), round(crossed(seeds_differ).of_seeds, 3)
    (0.587, 0.966)
    >>> folds_differ = np.array([[0.1, 0.3, 0.2, 1.1, 1.3, 1.2]])
    >>> round(crossed(folds_differ, fold=np.array([[0, 0, 0, 1, 1, 1]])).mean.error, 3)
    0.892
    """
    rows = values.mean(0)
    alone = cluster_mean(rows, weights, None, scale, further)
    folded = None if fold is None or not fold.any() else fold
    if folded is not None:
        judged = [
            (each, part == number) for each, part in zip(values, folded, strict=True) for number in np.unique(part)
        ]
        parts = [
            cluster_mean(each[own], None if weights is None else weights[own], None, scale) for each, own in judged
        ]
        means = np.array([part.value for part in parts])
        of_neither = float(np.mean([(part.error or 0.0) ** 2 for part in parts]))
        factor = 1 / len(means) + 1 / int(folded.max())  # the last of K folds is K − 1
    elif len(values) > 1:
        w = np.full(rows.size, 1 / rows.size) if weights is None else weights / weights.sum()
        means = values @ w
        errors = [cluster_mean(each - rows, weights, None, scale).error or 0.0 for each in values]
        # What is left of a row once its own mean is taken away has (S − 1) / S of the variance of e.
        of_neither = float(np.mean(np.square(errors))) * len(means) / (len(means) - 1)
        factor = 1 / len(means)
    else:
        return Crossed(alone, 0.0)
    of_means = float(np.var(means, ddof=1))
    own = max(of_means - of_neither, 0.0) * factor
    if not own:
        return Crossed(alone, 0.0)
    found = cluster_mean(rows, weights, None, scale, math.hypot(further, math.sqrt(own)))
    assert found.error is not None
    first = 0.0 if alone.error is None else alone.error**2
    part = of_means * factor if folded is None else own
    doubt = part**2 / (len(means) - 1) + (first**2 / alone.freedom if alone.freedom else 0.0)
    return Crossed(replace(found, freedom=max(found.error**4 / doubt, 1.0)), own / found.error**2)
