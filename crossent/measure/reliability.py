"""The curve of reliability: among rows predicted 0.7, did 7 in 10 come?

Rows are ordered by their prediction and cut into groups of equal count, rows of equal prediction staying
together; each group is a point (mean predicted, share that came). Points of a calibrated model lie on the
diagonal, within bands that miss it 1 time in 20 each, so that among fifteen points one outside is no
surprise.
"""

from __future__ import annotations

import numpy as np

from crossent.measure import interval
from crossent.measure.predictions import Predictions
from crossent.record import Curve

MOST_GROUPS = 15
ROWS_PER_GROUP = 25  # below, a band spans some 0.4 and a point says next to nothing


def reliability(predictions: Predictions) -> Curve:
    """Give mean predicted → observed frequency, by at most 15 groups of similar prediction.

    Two classes: the probability of the second one; more: that of the predicted class, against how often it
    was right; a range: the expected fraction. Bands are Wilson's for classes and the skewness-corrected t
    interval of the mean for a range, or Wilson's, which is the wider, in a group whose labels are all equal.
    Cost O(n log n).

    >>> curve = reliability(Predictions.from_arrays([0.2, 0.8] * 50, [0, 1, 0, 1, 0, 1, 1, 1, 0, 0] * 10))
    >>> [round(x, 3) for x in curve.x], curve.y, curve.n
    ([0.2, 0.8], [0.2, 0.8], [50, 50])
    """
    p, y = predictions.probabilities, predictions.labels
    if predictions.task == "multi-class":
        chosen = np.argmax(p, axis=1)
        x, came = p[np.arange(y.size), chosen], (chosen == y).astype(np.float64)
        x_name, y_name = "probability of the predicted class", "share of rows that were of it"
    elif predictions.task == "binary":
        x, came = p[:, 1], y.astype(np.float64)
        x_name, y_name = f"predicted probability of {predictions.classes[1]}", "observed frequency"
    else:
        x, came = p[:, 1], y
        x_name, y_name = (
            "predicted mean, as a fraction of the range",
            "observed mean, as a fraction of the range",
        )

    wanted = int(np.clip(x.size // ROWS_PER_GROUP, 1, MOST_GROUPS))
    _, value, times = np.unique(x, return_inverse=True, return_counts=True)
    middle = np.cumsum(times) - times / 2  # rows that share a value go by their mean rank, together
    group_of_value = np.unique((middle * wanted / x.size).astype(np.int64), return_inverse=True)[1]
    group = group_of_value[value]
    n = np.bincount(group)
    observed = np.bincount(group, came) / n
    low, high = interval.of_share(observed * n, n.astype(np.float64))
    if predictions.task == "range":
        for k in range(n.size):
            if (ends := interval.of_mean(came[group == k])) is not None:
                low[k], high[k] = max(ends[0], 0.0), min(ends[1], 1.0)
    return Curve(
        x=(np.bincount(group, x) / n).tolist(),
        y=observed.tolist(),
        x_name=x_name,
        y_name=y_name,
        low=low.tolist(),
        high=high.tolist(),
        n=n.tolist(),
    )
