"""What is asked of a row whose columns lie on several ranks, for divergences between two such rows.

Each rank works on its own columns of both, as ``compute.distribution`` does on all of them; where that asks something
of the whole row, the ranks tell each other one number. Whatever is a sum goes back as a sum.
"""

from __future__ import annotations

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

    def greatest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest number of all ranks, and where it first is."""
        own = torch.arange(x.shape[-1], device=x.device) + self.shard.start
        if x.shape[-1]:
            peak, at = x.detach().max(-1)
        else:
            peak = x.new_full(x.shape[:-1], -torch.inf)
            at = torch.zeros_like(peak, dtype=torch.int64)
        # Places are exact in float64: there are fewer than 2**53 columns.
        peaks, places = told(torch.stack([peak, (at + self.shard.start).to(peak)]), self.shard.group).unbind(1)
        most, rank = peaks.max(0)
        return most.unsqueeze(-1), own == places.gather(0, rank.unsqueeze(0))[0].unsqueeze(-1)

    def at(self, x: Tensor, where: Tensor) -> Tensor:
        """The number that is there, on whichever rank."""
        return self.sum(torch.where(where, x, 0.0))

    def put(self, x: Tensor, where: Tensor, number: Tensor | float) -> Tensor:
        """The same columns with another number there."""
        return torch.where(where, number, x)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks."""
        return total(super().sum(x), self.shard.group)

    def every(self, x: Tensor) -> Tensor:
        """Whether all are true on all ranks."""
        return self.sum((~x).double()) == 0

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
