"""Several networks as one: their logits side by side, and what they say together.

Members of one kind differ in what they have learned from, and are wrong by chance: their probabilities are averaged.
Networks of unlike kinds see unlike things in the same rows. What one of them has found out speaks for or against a
class whatever the others say, as the odds of unlike witnesses multiply; so they are pooled as a product of powers of
their probabilities, which is a mean of log-probabilities (the logarithmic opinion pool of Genest & Zidek 1986). A mean
of probabilities is less sure than each of them: where one is sure and right, the others take it back.

A product is as wrong as the surest of them that is wrong. The even distribution beside it bounds what that costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

LEAST = -1e4
"""Log-probability below which a kind says never; so what two of them rule out, each another class, is still a row."""


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
    """Networks of several kinds, each with members of its own → logits (members, n, columns) of all; the last is even.

    What they say together is told by ``together``. ``shares`` (networks,) are what each kind counts, and add up to 1;
    ``temperatures`` (networks,) are what the log-probabilities of its members are divided by before. ``levels`` (101,)
    are those that central intervals of a number must have in order to hold it with probability 0, 0.01, …, 1; nothing
    is known otherwise than they say.
    """

    shares: Tensor
    temperatures: Tensor
    levels: Tensor

    def __init__(
        self, networks: list[nn.Module], shares: list[float], temperatures: list[float], levels: Tensor | None = None
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("shares", torch.tensor(shares, dtype=torch.float64))
        self.register_buffer("temperatures", torch.tensor(temperatures, dtype=torch.float64))
        self.register_buffer("levels", torch.linspace(0, 1, 101, dtype=torch.float64) if levels is None else levels)

    @property
    def each(self) -> list[int]:
        """How many members each network has."""
        return [int(network.members) for network in self.networks]  # type: ignore[arg-type]

    @property
    def members(self) -> int:
        """How many members all networks have together."""
        return sum(self.each)

    @property
    def share_of_each(self) -> Tensor:
        """What each member (members,) counts in a mean of all."""
        times = torch.tensor(self.each)
        return (self.shares.cpu() / times).repeat_interleave(times)

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together where no gradient is wanted."""
        return _rows_at_once(self.networks)

    def forward(self, x: Tensor) -> Tensor:
        """Every member's logits of every row."""
        return torch.cat([network(x) for network in self.networks])

    def together(self, log_p: Tensor) -> Tensor:
        """Log-probabilities (n, classes) of all, from those of the members (members, n, classes)."""
        cooled = [
            torch.log_softmax(said / temperature, -1)
            for said, temperature in zip(log_p.split(self.each), self.temperatures, strict=True)
        ]
        return pooled(torch.stack([averaged(said) for said in cooled]), self.shares)


def averaged(log_p: Tensor, shares: Tensor | None = None) -> Tensor:
    """Log-probabilities (n, classes) of the mean of probabilities (members, n, classes), by shares or all alike."""
    if shares is not None:
        return (log_p + shares.log().view(-1, 1, 1)).logsumexp(0)
    return log_p.logsumexp(0) - math.log(log_p.shape[0])


def pooled(log_p: Tensor, shares: Tensor) -> Tensor:
    """Log-probabilities (n, classes) of kinds (kinds, n, classes) together, the last of which is even.

    The others as a product of powers, p ∝ Π p_k^(s_k / Σ s), and of that and the even one the mean by shares.
    """
    others, even = shares[:-1], shares[-1]
    power = (others / others.sum()).view(-1, 1, 1)
    product = torch.log_softmax((power * log_p[:-1].clamp(min=LEAST)).sum(0), -1)
    return torch.logaddexp(product + torch.log1p(-even), log_p[-1] + even.log())


class Even(nn.Module):
    """Rows (n, …) → logits (1, n, columns), all 0: it knows nothing, and says so."""

    members = 1

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.settings = {"columns": columns}

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros(1, x.shape[0], self.settings["columns"], device=x.device)


class Average(nn.Module):
    """Rows (n, …) → logits (members, n, columns) that are the same for every row: what labels are on average."""

    logits: Tensor

    def __init__(self, members: int, columns: int) -> None:
        super().__init__()
        self.settings = {"members": members, "columns": columns}
        self.register_buffer("logits", torch.zeros(members, 1, columns))

    @property
    def members(self) -> int:
        """One for each part of the rows that was held out."""
        return len(self.logits)

    def forward(self, x: Tensor) -> Tensor:
        """The same for every row."""
        return self.logits.expand(-1, x.shape[-2], -1)


def _rows_at_once(networks: Iterable[nn.Module]) -> int:
    """As many as the neediest of them asks for."""
    return min(int(getattr(network, "rows_at_once", 8192)) for network in networks)
