"""How much is worked on at a time, and the order in which a wide row is summed."""

from __future__ import annotations

from numpy.typing import NDArray

from crossent.compute.backends.cpu.precision import kernel

LANES = 128  # sums of a wide row: those of column mod LANES, joined as a fixed tree
TILE = 256  # narrow rows side by side


@kernel
def tree_sum(lanes: NDArray, tree: NDArray) -> float:
    """Σ lanes, always in the same order; ``tree`` (LANES,) is to work in."""
    half = LANES // 2
    for j in range(half):
        tree[j] = lanes[j] + lanes[j + half]
    while half > 1:
        half //= 2
        for j in range(half):
            tree[j] += tree[j + half]
    return tree[0]
