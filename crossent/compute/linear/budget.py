"""How many rows of logits are made at a time: as many as a budget of memory has room for.

A chunk is read by two matrix products after it was written by one, so that it ought to be in cache; and each chunk adds
once to all of the head's gradient, so that chunks ought to be few. Of the budgets tried from 8 to 250 MiB, with V from
32k to 128k (docs/decisions/016), 64 MiB was within 7 % of the best for each shape, which no other was.
"""

from __future__ import annotations

import re

BUDGET = 64 * 2**20
ON_A_GPU = 1000 * 2**20
"""There no chunk is in cache, and each adds once to all of the head's gradient: a GiB, less what else is needed."""
LINKED = 64
"""Bytes for each logit where plain torch works in float64: a link, a loss of columns, some eight copies."""
TWO_ROWS = 384
"""Bytes for each logit of a divergence between two rows: some forty-eight copies."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(budget: int | str) -> int:
    """A number of bytes, or words for one.

    >>> bytes_of("256 MiB"), bytes_of("1.5GB"), bytes_of(4096)
    (268435456, 1500000000, 4096)
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", budget) if isinstance(budget, str) else None
    if found is not None and found[2].upper() in _UNITS:
        budget = int(float(found[1]) * _UNITS[found[2].upper()])
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise ValueError(
            f'budget must be a number of bytes, 1 or more, or a text like "256 MiB" (B, KB, MB, GB, KiB, MiB, GiB); '
            f"got {budget!r}."
        )
    return budget


def rows_at_a_time(budget: int | str | None, chunk_rows: int | None, classes: int, bytes_each: int) -> int:
    """How many rows of ``classes`` logits of so many bytes each fit into the budget; one at least."""
    if chunk_rows is not None:
        if budget is not None:
            raise ValueError("pass budget= or chunk_rows=, not both: each says how many rows are made at a time.")
        if not isinstance(chunk_rows, int) or chunk_rows < 1:
            raise ValueError(f"chunk_rows must be a whole number, at least 1, and is {chunk_rows!r}.")
        return chunk_rows
    return max(1, (BUDGET if budget is None else bytes_of(budget)) // max(1, classes * bytes_each))
