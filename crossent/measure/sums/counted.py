"""How many different values came, from the smallest of their hashes, however the rows were split.

Hashes (``hashing``) are even over 2⁶⁴, so that where the K smallest of them end says how densely they lie, and so how
many there are: (K − 1) · 2⁶⁴ / h_K, unbiased, known to 1 / √(K − 2) of itself, 1.6 % (Bar-Yossef et al. 2002; Beyer et
al. 2007, *SIGMOD*, 199–210). Of fewer than K values all hashes are there, and are counted. The smallest of a union are
among the smallest of its parts, whatever the parts: what is kept does not depend on the order of the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COUNTED = 4096
"""Up to so many different values are counted; of more it is estimated how many there are."""

_Hashes = NDArray[np.uint64]


def smallest(*hashes: _Hashes) -> _Hashes:
    """Give the different ones of all these, rising, the K = COUNTED + 1 smallest at most."""
    return np.unique(np.concatenate(hashes))[: COUNTED + 1]


def how_many(hashes: _Hashes) -> tuple[int, bool]:
    """Give how many different values there were, and whether that was counted; an estimate has three digits.

    >>> from crossent.measure.sums.hashing import hashed
    >>> how_many(smallest(hashed(np.arange(4096)))), how_many(smallest(hashed(np.arange(50_000))))
    ((4096, True), (50700, False))
    """
    if hashes.size <= COUNTED:
        return hashes.size, True
    about = COUNTED * 2.0**64 / float(hashes[-1])
    return int(round(about, 2 - int(np.floor(np.log10(about))))), False
