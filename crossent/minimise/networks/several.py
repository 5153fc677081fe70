"""Several networks of one kind as one: their logits side by side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Several(nn.Module):
    """Rows (n, …) → logits (members, n, columns) of networks that were trained one after another."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    @property
    def members(self) -> int:
        """How many networks there are."""
        return len(self.networks)

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together where no gradient is wanted."""
        return _rows_at_once(self.networks)

    def forward(self, x: Tensor) -> Tensor:
        """Every network's logits of every row."""
        return torch.stack([network(x) for network in self.networks])


class Mixture(nn.Module):
    """Networks of several kinds, each with members of its own → logits (members, n, columns) of all.

    ``shares`` (members,) say what each member's probabilities count in the mean; they add up to 1. ``temperatures``
    (members,) say by what its log-probabilities are divided before. ``levels`` (101,) are those that central intervals
    of a number must have in order to hold it with probability 0, 0.01, …, 1; nothing is known otherwise than they say.
    """

    shares: Tensor
    temperatures: Tensor
    levels: Tensor

    def __init__(
        self, networks: list[nn.Module], shares: list[float], temperatures: list[float], levels: Tensor | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        counts = [int(network.members) for network in networks]  # type: ignore[arg-type]
        times, each = torch.tensor(counts), torch.tensor([shares, temperatures], dtype=torch.float64)
        self.register_buffer("shares", (each[0] / times).repeat_interleave(times))
        self.register_buffer("temperatures", each[1].repeat_interleave(times))
        self.register_buffer("levels", torch.linspace(0, 1, 101, dtype=torch.float64) if levels is None else levels)

    @property
    def members(self) -> int:
        """How many members all networks have together."""
        return len(self.shares)

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together where no gradient is wanted."""
        return _rows_at_once(self.networks)

    def forward(self, x: Tensor) -> Tensor:
        """Every member's logits of every row."""
        return torch.cat([network(x) for network in self.networks])


class Even(nn.Module):
    """Rows (n, …) → logits (1, n, columns), all 0: it knows nothing, and says so."""

    members = 1

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.settings = {"columns": columns}

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(1, x.shape[0], self.settings["columns"], device=x.device)


def _rows_at_once(networks: Iterable[nn.Module]) -> int:
    """As many as the neediest of them asks for."""
    return min(int(getattr(network, "rows_at_once", 8192)) for network in networks)
