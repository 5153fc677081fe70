"""Several networks of one kind as one: their logits side by side."""

from __future__ import annotations

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

    def forward(self, x: Tensor) -> Tensor:
        """Every network's logits of every row."""
        return torch.stack([network(x) for network in self.networks])
