"""The network for tables and plain arrays: several small ones side by side, from prepared features to logits.

One member is a multi-layer perceptron; all members are one batched matrix product, so that ten cost little more than
one on a small table. Each may read rows of its own, which is what bagging over folds needs. Their probabilities are
averaged: the mean of a few independent networks has a lower cross-entropy than any of them (Lakshminarayanan et al.
2017, §2.4).

A number enters twice: as itself, and as its place among quantiles of the training rows, written as a ramp for each
bin (piecewise-linear encoding; Gorishniy, Rubachev & Babenko 2022, eq. 1). A perceptron bends slowly in a number; in
ramps it bends wherever there are rows. And a value may mean something that its neighbours do not (9999, a working week
of 40 hours, a capital gain of exactly 15024, the number of a school). It does where most rows of a column share a few
values, and where the labels jump from value to value by more than chance, which is tested (``_chance``). In such a
column each value is told from the others by an indicator, as categories are. LOG.md has what all of it was worth.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from crossent.minimise.networks.dropout import Dropout, noise_like

MOST_RAMPS = 1500
"""Ramps of all columns together; more columns get fewer bins each."""
MOST_INDICATORS = 512
"""Indicators of all columns together."""
LEAST_ROWS = 5
"""Rows that must share a value for it to have an indicator."""
CHANCE = 0.005
"""In so many of columns in which labels change smoothly they are said to jump."""
MOST_CLASSES = 100
"""Classes with which jumps are looked for."""


class Tabular(nn.Module):
    """Features (n, d), or (members, n, d) where members read rows of their own → logits (members, n, columns).

    A number is centred on the median of the training rows, divided by their spread, and bent softly so that nothing
    lies beyond ±3; a missing one becomes the median, and says that it was missing in a column of its own. Those figures
    travel with the weights, so that the network takes prepared features as they are. ``noise`` is the deviation of
    Gaussian noise that training adds to the bent numbers.
    """

    center: Tensor
    spread: Tensor
    gaps: Tensor
    ramp_column: Tensor
    ramp_start: Tensor
    ramp_width: Tensor
    value_column: Tensor
    value: Tensor

    def __init__(
        self,
        features: int,
        gaps: int,
        ramps: int,
        values: int,
        columns: int,
        members: int,
        width: int,
        depth: int,
        dropout: float,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("gaps", torch.zeros(gaps, dtype=torch.long))
        self.register_buffer("ramp_column", torch.zeros(ramps, dtype=torch.long))
        self.register_buffer("ramp_start", torch.zeros(ramps))
        self.register_buffer("ramp_width", torch.ones(ramps))
        self.register_buffer("value_column", torch.zeros(values, dtype=torch.long))
        self.register_buffer("value", torch.zeros(values))
        sizes = [features + gaps + ramps + values, *[width] * depth, columns]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(members, before, after)) for before, after in pairwise(sizes)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, after)) for after in sizes[1:])
        self.dropout = Dropout(dropout)
        self.noise = noise

    @property
    def settings(self) -> dict[str, int | float]:
        """What ``Tabular(**settings)`` takes to make a network that these weights fit."""
        return {
            "features": len(self.center),
            "gaps": len(self.gaps),
            "ramps": len(self.ramp_column),
            "values": len(self.value),
            "columns": self.weights[-1].shape[-1],
            "members": self.members,
            "width": self.weights[0].shape[-1],
            "depth": len(self.weights) - 1,
            "dropout": self.dropout.p,
            "noise": self.noise,
        }

    @property
    def members(self) -> int:
        """How many networks stand side by side."""
        return self.weights[0].shape[0]

    @classmethod
    def for_features(
        cls,
        x: Tensor,
        columns: int,
        *,
        members: int,
        width: int,
        depth: int,
        dropout: float,
        bins: int,
        noise: float = 0.0,
        labels: Tensor | None = None,
    ) -> Tabular:
        """A fresh network scaled to the rows x (n, d), NaN where a number is missing; draws from torch's own seed.

        ``labels`` of the rows, (n,) int64 or shares (n, classes), tell in which columns values are unlike neighbours.
        """
        gaps = x.isnan().any(0).nonzero().flatten()
        center, spread = _center_and_spread(x)
        sample = _sample(x)
        ramps = _ramps(_bent(sample, center, spread), bins)
        told = None if labels is None else _shares(_sample(labels, x.shape[1]))
        values = _values(sample, told) if bins else torch.zeros(2, 0)
        network = cls(
            x.shape[1], len(gaps), ramps.shape[1], values.shape[1], columns, members, width, depth, dropout, noise
        )
        network.center.copy_(center)
        network.spread.copy_(spread)
        network.gaps.copy_(gaps)
        network.ramp_column.copy_(ramps[0].long())
        network.ramp_start.copy_(ramps[1])
        network.ramp_width.copy_(ramps[2])
        network.value_column.copy_(values[0].long())
        network.value.copy_(values[1])
        for weight in network.weights:
            nn.init.normal_(weight, std=1 / math.sqrt(max(1, weight.shape[1])))
        with torch.no_grad():
            network.weights[-1].mul_(0.1)  # start near the prior: no member is sure of anything yet
        return network

    def features(self, x: Tensor) -> Tensor:
        """What the first layer reads: numbers on one scale, what was missing, ramps, and values by themselves."""
        z = _bent(x, self.center, self.spread)
        if self.training and self.noise > 0:
            z = z + self.noise * noise_like(z)
        ramps = ((_columns(z, self.ramp_column) - self.ramp_start) / self.ramp_width).clamp(0.0, 1.0)
        gaps = x[..., self.gaps].isnan().to(z.dtype)
        values = (_columns(x, self.value_column) == self.value).to(z.dtype)
        return torch.cat((z.nan_to_num(0.0), gaps, ramps.nan_to_num(0.0), values), -1)

    def forward(self, x: Tensor) -> Tensor:
        """The members' logits (members, n, columns)."""
        h = self.features(x)
        if h.dim() == 2:
            h = h.unsqueeze(0).expand(self.members, -1, -1)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = self.dropout(nn.functional.silu(torch.baddbmm(bias, h, weight)))
        return torch.baddbmm(self.biases[-1], h, self.weights[-1])


def _columns(x: Tensor, places: Tensor) -> Tensor:
    """``x[..., places]``; of a matrix ``index_select`` takes a quarter of the time."""
    return x.reshape(-1, x.shape[-1]).index_select(1, places).view(*x.shape[:-1], len(places))


def _bent(x: Tensor, center: Tensor, spread: Tensor) -> Tensor:
    z = (x - center) / spread
    return z / torch.sqrt(1 + (z / 3).square())


def _center_and_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Median and quartile spread of each column, or mean and deviation of one that is mostly one value."""
    low, middle, high = torch.nanquantile(_sample(x), torch.tensor([0.25, 0.5, 0.75]), dim=0).nan_to_num(0.0)
    spread = (high - low) / 1.349  # the quartiles of a normal distribution are 1.349 of its sigmas apart
    means, deviations = [], []
    for start in range(0, x.shape[1], step := max(1, 2_000_000 // max(1, len(x)))):  # some columns in float64 at a time
        some = x[:, start : start + step]
        present = torch.where(some.isnan(), middle[start : start + step], some).double()
        means.append(present.mean(0))
        deviations.append(present.std(0, correction=0))
    deviation = torch.cat(deviations).float()
    rare = spread <= 1e-6 * deviation
    center = torch.where(rare, torch.cat(means).float(), middle)
    spread = torch.where(rare, deviation, spread)
    return center, torch.where(spread > 0, spread, 1.0)


def _ramps(z: Tensor, bins: int) -> Tensor:
    """(3, ramps): column, start and width of each bin between quantiles of the rows z; none for a two-valued column."""
    columns = [column[~column.isnan()] for column in z.T]
    many = [place for place, column in enumerate(columns) if bins and len(column.unique()) > 2]
    bins = min(bins, MOST_RAMPS // max(1, len(many)))
    found = []
    for place in many if bins > 1 else []:  # one ramp over all of a column would say what the number says
        distinct = columns[place].unique()
        edges = distinct if len(distinct) <= bins else _edges(columns[place], bins)
        found.append(torch.stack((torch.full_like(edges[:-1], place), edges[:-1], edges.diff())))
    return torch.cat(found, 1) if found else torch.zeros(3, 0)


def _values(x: Tensor, labels: Tensor | None = None) -> Tensor:
    """(2, values): column and number of the values that get an indicator; those of columns with few values first."""
    found = []
    for column in range(x.shape[1]):
        known = ~x[:, column].isnan()
        values, place, counts = x[known, column].unique(return_inverse=True, return_counts=True)
        jumps = labels is not None and _chance(values, place, counts, labels[known]) < CHANCE
        if len(values) > 2 and (_lumpy(counts) or jumps):
            shared = values[counts >= LEAST_ROWS]
            found.append(torch.stack((torch.full_like(shared, column), shared)))
    found.sort(key=lambda each: each.shape[1])
    return torch.cat(found, 1)[:, :MOST_INDICATORS] if found else torch.zeros(2, 0)


def _lumpy(counts: Tensor) -> bool:
    """Whether half the rows of a column or more share values that five times as many rows have as their neighbours.

    ``counts`` (values,) of a column's sorted values; neighbours are the two below and the two above, by their median.
    """
    c = torch.nn.functional.pad(counts.double(), (2, 2), value=math.nan)
    neighbours = torch.stack((c[:-4], c[1:-3], c[3:-1], c[4:])).nanmedian(0).values
    rows = int(counts.sum())
    special = (counts >= max(10, rows // 1000)) & (counts >= 5 * neighbours)
    return 2 * int(counts[special].sum()) >= rows


def _chance(values: Tensor, place: Tensor, counts: Tensor, labels: Tensor) -> float:
    """The probability that chance makes labels jump so from value to value of a column; 1 where nobody could tell.

    The shares m (classes,) of the labels at a value v₁ are held against the line between those at its two neighbours,

        t = m₁ - (1 - a) m₀ - a m₂,      a = (v₁ - v₀) / (v₂ - v₀),      s = 1/n₁ + (1 - a)²/n₀ + a²/n₂.

    Where labels change smoothly with the number the t are chance, and Σ t²/(p s) over values and classes, with p the
    shares of the classes in all rows, has the mean of χ² of (classes - 1) degrees of freedom for each value (Pearson).
    Neighbouring t have rows in common, and correlations of -2/3 and 1/6 where values come equally often. So its
    variance is 1 + 2 (4/9 + 1/36) ≈ 2 times that of χ²: half of it is about χ² of half the degrees (Satterthwaite
    1946).

    Asked where eight values or more come ``LEAST_ROWS`` times on average. ``place`` (n,) is where a row's value is
    among the sorted ``values``, ``labels`` (n, classes) are shares.
    """
    if len(values) < 8 or len(place) < LEAST_ROWS * len(values) or labels.shape[1] < 2:
        return 1.0
    m = torch.zeros(len(values), labels.shape[1], dtype=torch.float64).index_add_(0, place, labels)
    n, v, p = counts.double(), values.double(), labels.mean(0)
    m = m / n.unsqueeze(1)
    a = ((v[1:-1] - v[:-2]) / (v[2:] - v[:-2])).unsqueeze(1)
    t = m[1:-1] - (1 - a) * m[:-2] - a * m[2:]
    s = 1 / n[1:-1] + (1 - a[:, 0]).square() / n[:-2] + a[:, 0].square() / n[2:]
    found = (t.square() / p.clamp(min=1e-12)).sum(1).div(s).sum()
    degrees = torch.tensor((labels.shape[1] - 1.0) * (len(values) - 2), dtype=torch.float64)
    return float(torch.special.gammaincc(degrees / 4, found / 4))  # of χ², halves; and half of both


def _shares(labels: Tensor) -> Tensor | None:
    """Labels as shares (n, classes), float64; None of more than ``MOST_CLASSES``."""
    if labels.is_floating_point():
        return labels.double() if labels.shape[1] <= MOST_CLASSES else None
    classes = int(labels.max()) + 1 if len(labels) else 0
    return nn.functional.one_hot(labels, classes).double() if classes <= MOST_CLASSES else None


def _edges(values: Tensor, bins: int) -> Tensor:
    """Quantiles of a column, so that bins hold equally many rows; a value that many rows share is an edge of its own.

    A column that is mostly 0 would else have all its quantiles there and no bin for the rows that say most.
    """
    distinct, counts = values.unique(return_counts=True)
    shared = counts * bins >= len(values)
    rest = values[~torch.isin(values, distinct[shared])]
    quantiles = rest.quantile(torch.linspace(0, 1, bins + 1)) if len(rest) else rest
    return torch.cat((distinct[shared], quantiles)).unique()


def _sample(x: Tensor, columns: int = 0) -> Tensor:
    """Quantiles of a big table are those of evenly spaced rows of it (torch sorts at most 16 million numbers).

    Of labels those of a table of so many ``columns``.
    """
    rows = min(20_000, 16_000_000 // max(1, columns or x.shape[1]))
    return x if len(x) <= rows else x[torch.linspace(0, len(x) - 1, rows).long()]
