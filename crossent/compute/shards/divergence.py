"""What is asked of a row whose columns lie on several ranks, for divergences between two such rows.

Each rank works on its own columns of both, as ``compute.distribution`` does on all of them; where that asks something
of the whole row, the ranks tell each other one number. Whatever is a sum goes back as a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from crossent.compute.distribution import Whole
from crossent.compute.group import shared, told, total
from crossent.compute.shards.merge import Shard, here


@dataclass(frozen=True)
class Spread(Whole):
    """A row of which this rank has the columns of ``shard``; a place in it is True where it is among them."""

    shard: Shard = field(default_factory=lambda: Shard(()))

    def classes(self, x: Tensor) -> int:
        """How many columns all ranks have."""
        return self.shard.classes

    def widest(self, x: Tensor) -> int:
        """How many columns the widest rank has: all ranks make the same blocks."""
        return max(self.shard.sizes)

    def greatest(self, *x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The greatest number of all ranks, and where it first is."""
        peaks, places = told(torch.stack([self._greatest_here(each) for each in x]), self.shard.group).unbind(2)
        most, rank = peaks.max(0)
        places, own = places.gather(0, rank.unsqueeze(0))[0], torch.arange(x[0].shape[-1], device=x[0].device)
        return [
            (peak.unsqueeze(-1), own + self.shard.start == place.unsqueeze(-1))
            for peak, place in zip(most, places, strict=True)
        ]

    def _greatest_here(self, x: Tensor) -> Tensor:
        """(2, …): the greatest of these columns, and where that is among all, which float64 holds below 2**53."""
        if x.shape[-1]:
            peak, at = x.detach().max(-1)
        else:
            peak = x.new_full(x.shape[:-1], -torch.inf)
            at = torch.zeros_like(peak, dtype=torch.int64)
        return torch.stack([peak, (at + self.shard.start).to(peak)])

    def at(self, where: Tensor, *x: Tensor) -> Sequence[Tensor]:
        """The numbers that are there, on whichever rank."""
        return self.sums(*(torch.where(where, each, 0.0) for each in x))

    def put(self, x: Tensor, where: Tensor, number: Tensor | float) -> Tensor:
        """The same columns with another number there."""
        return torch.where(where, number, x)

    def sums(self, *x: Tensor) -> Sequence[Tensor]:
        """The sums over all ranks."""
        return total(torch.stack([*super().sums(*x)]), self.shard.group).unbind(0)

    def parted(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the columns ``index``, and the own columns with -inf in their places."""
        own = x.shape[-1]
        at, inside = here(index, self.shard.start, own)
        # A column beside them stands for what is not here: also of a rank that has none, whose graph must be the same.
        at, padded = torch.where(inside, at, own), torch.nn.functional.pad(x, (0, 1))
        return total(padded.gather(-1, at), self.shard.group), padded.scatter(-1, at, -torch.inf)[..., :own]

    def answered(self, x: Tensor) -> Tensor:
        """A number that is from here on the same on every rank."""
        return shared(x, self.shard.group)
