"""Memory of gradients that is used again once nobody holds it.

A fresh page costs as much as the arithmetic that is done on it, and on a virtual machine, which may have to ask its
host for it, now a little and now ten times as much (LOG.md). A training step frees the gradients of the step before. So
what they lay in is kept, up to ``KEPT`` bytes of it, and lent again; whoever holds a tensor, or an array or view of it,
keeps it from being lent. In training that hardly raises the most that a process ever holds: a loss is computed when the
activations of the whole network are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = 2**20
"""Bytes below which the system's own allocator keeps pages well enough."""
KEPT = 2**27
"""Bytes that are kept at most, all together."""

_kept: list[NDArray[np.uint8]] = []  # the oldest first


class _Lent:
    """A block that goes back when the last array of it is gone.

    It is no array itself: numpy lets views of views hold on to the first array alone, but never looks behind an object
    of another kind.
    """

    __slots__ = ("block",)

    def __init__(self, block: NDArray[np.uint8]) -> None:
        self.block = block

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.block.__array_interface__

    def __del__(self) -> None:
        if _give_back is not None:  # Python takes modules apart at its end
            _give_back(self.block)


def memory(size: int) -> NDArray[np.uint8]:
    """So many bytes, of any content."""
    if not SMALL <= size <= KEPT:
        return np.empty(size, np.uint8)
    block = _taken(size)
    return np.asarray(_Lent(np.empty(size, np.uint8) if block is None else block))[:size]


def forget() -> None:
    """Give all that is kept back to the system."""
    _kept.clear()


def _taken(size: int) -> NDArray[np.uint8] | None:
    """The youngest block that is large enough, and not more than twice as large; None if there is none."""
    for at in range(len(_kept) - 1, -1, -1):
        try:
            if size <= _kept[at].size <= 2 * size:
                block = _kept.pop(at)
                if block.size >= size:  # other threads may have moved them meanwhile
                    return block
                _give_back(block)
        except IndexError:
            continue
    return None


def _give_back(block: NDArray[np.uint8]) -> None:
    _kept.append(block)
    while sum(kept.size for kept in _kept) > KEPT:
        try:
            _kept.pop(0)
        except IndexError:
            return
