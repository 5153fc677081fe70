"""Equal rows, and what a weight means: how many rows a row counts for.

Weight 0 is a row that is not there, and weight 3 is three equal rows, to the bit. So equal rows are taken once with the
sum of their weights, in an order of their own: neither how often they are written down nor in which order they come
changes anything that follows. It also keeps copies of a row from standing on both sides of a fold, where they would
flatter the network.

In a table of few different rows that is the wrong thing to do. There, equal rows are not copies but draws, and a
network that is judged on a row which it never saw, or saw only with the other label, is judged on what was kept from
it. So where the same features came with different labels, or rows came more than ``MOST_REPEATS`` times on average,
every row stays a row of its own, and its weight is what its loss is multiplied by.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.errors import require

MOST_REPEATS = 5


def once_each(
    rows: Any, target: NDArray[Any], weight: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places of rows that differ in features or target, each with the sum of the weights of those that equal it.

    ``rows`` a pandas table or an array (n, d), ``target`` (n,) or (n, classes), ``weight`` (n,) positive. Where equal
    rows are draws, see above, all n places with the weights that they had. The order is the same whatever order rows
    came in. Rows are told apart by hashes of 64 bits for features and 64 for targets: in a million rows two that differ
    are taken for one with a probability below 10⁻⁷. Cost: one hash of all cells, and one sort.

    >>> x, y = np.array([[1.0], [2.0], [1.0]]), np.array([0, 1, 0])
    >>> places, weight = once_each(x, y, np.ones(3))
    >>> sorted(zip(x[places, 0].tolist(), weight.tolist()))
    [(1.0, 2.0), (2.0, 1.0)]
    """
    of_rows, of_target = hashes(rows), hashes(target)
    order = np.lexsort((weight, of_target, of_rows))
    of_rows, of_target, weight = of_rows[order], of_target[order], weight[order]
    new_features = np.append(True, of_rows[1:] != of_rows[:-1])
    new = np.flatnonzero(new_features | np.append(True, of_target[1:] != of_target[:-1]))
    if len(new) > np.count_nonzero(new_features) or weight.sum() > MOST_REPEATS * len(new):
        return order, weight
    return order[new], np.add.reduceat(weight, new)


def hashes(values: Any) -> NDArray[np.uint64]:
    """A hash of 64 bits (n,) for each row of a table or an array (n,) or (n, d)."""
    pandas = require("pandas", "cli", "telling rows apart")
    return pandas.util.hash_pandas_object(pandas.DataFrame(values), index=False).to_numpy()
