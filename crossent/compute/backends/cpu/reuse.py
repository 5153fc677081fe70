"""Memory of gradients that is used again once nobody holds it.

A fresh page costs as much as the arithmetic that is done on it, and on a virtual machine, which may have to ask its
host for it, now a little and now ten times as much (LOG.md). A training step frees the gradients of the step before. So
what they lay in is kept, up to ``KEPT`` bytes of it, and lent again; whoever holds a tensor, or an array or view of it,
keeps it from being lent. In training that hardly raises the most that a process ever holds: a loss is computed when the
activations of the whole network are there.

Larger blocks, up to ``LOOSE`` bytes of them, are kept on call: Linux is told that it may take their pages when it is
short of memory (MADV_FREE), and takes none otherwise. Such pages are written to again at no cost; one that was taken
is fresh.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = 2**20
"""Bytes below which the system's own allocator keeps pages well enough."""
KEPT = 2**27
"""Bytes that are kept at most, all together, of blocks no larger than that."""
LOOSE = 2**30 if hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE") else KEPT
"""Bytes that are kept at most of larger blocks, whose pages the system may take back as long as nobody uses them."""

_kept: list[NDArray[np.uint8]] = []  # the oldest first
_loose: list[NDArray[np.uint8]] = []


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
    if not SMALL <= size <= max(KEPT, LOOSE):
        return np.empty(size, np.uint8)
    block = _taken(_kept if size <= KEPT else _loose, size)
    return np.asarray(_Lent(_fresh(size) if block is None else block))[:size]


def forget() -> None:
    """Give all that is kept back to the system."""
    _kept.clear()
    _loose.clear()


def _fresh(size: int) -> NDArray[np.uint8]:
    if size <= KEPT:
        return np.empty(size, np.uint8)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)  # few to be told of, and to be asked for if they were taken
    except OSError:
        return np.empty(size, np.uint8)
    return np.frombuffer(pages, np.uint8)


def _taken(blocks: list[NDArray[np.uint8]], size: int) -> NDArray[np.uint8] | None:
    """The youngest block that is large enough, and not more than twice as large; None if there is none."""
    for at in range(len(blocks) - 1, -1, -1):
        try:
            if size <= blocks[at].size <= 2 * size:
                block = blocks.pop(at)
                if block.size >= size:  # other threads may have moved them meanwhile
                    return block
                _give_back(block)
        except IndexError:
            continue
    return None


def _give_back(block: NDArray[np.uint8]) -> None:
    blocks, most = (_kept, KEPT) if block.size <= KEPT else (_loose, LOOSE)
    if blocks is _loose and not _loosened(block):
        return
    blocks.append(block)
    while sum(kept.size for kept in blocks) > most:
        try:
            blocks.pop(0)
        except IndexError:
            return


def _loosened(block: NDArray[np.uint8]) -> bool:
    """Let the system take the pages of a block until somebody writes to them; False if it cannot be told that."""
    try:
        block.base.obj.madvise(mmap.MADV_FREE)  # type: ignore[union-attr]
    except (AttributeError, OSError):
        return False
    return True
