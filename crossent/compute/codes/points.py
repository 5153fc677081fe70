"""Codes whose distribution is masses on a grid of points: ``TwoHot`` and ``Ordinal``."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.compute.codes.code import Code, between, first
from crossent.compute.functional import binary_cross_entropy_with_logits, cross_entropy, result_dtype
from crossent.compute.reduce import reduce
from crossent.compute.target import Target, sparse, visible


class Points(Code):
    """Masses (n, k) on k evenly spaced points: what follows from them alone.

    Between points nothing is known, so nothing is interpolated: a quantile is the first point at which the masses have
    added up to the level.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """How many points there are."""

    @property
    def points(self) -> Tensor:
        """The points (count,), float64."""
        return torch.linspace(self.low, self.high, self.count, dtype=torch.float64)

    @abstractmethod
    def _masses(self, z: Tensor) -> Tensor: ...

    def _mean(self, z: Tensor) -> Tensor:
        shares = torch.linspace(0, 1, self.count, dtype=z.dtype, device=z.device)
        return (self._masses(z) * shares).sum(-1)

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """The first point at which the masses have added up to ``level``, exactly that point."""
        reached = self._masses(self._rows(logits)).cumsum(-1)
        whole = reached[:, -1:]  # 1 but for rounding, which must not carry a level to a point without mass
        passed = (reached / whole < between(level)).sum(-1)
        y = torch.where(whole.squeeze(-1).isnan(), torch.nan, self.points.to(reached)[passed])
        return y.reshape(logits.shape[:-1]).to(result_dtype(logits))

    def _cdf(self, z: Tensor, y: Tensor) -> Tensor:
        points = self.points.to(y.dtype).to(y.device)  # as y's dtype knows them
        return (self._masses(z) * (points <= y.unsqueeze(-1))).sum(-1).clamp(max=1)


@dataclass(frozen=True)
class TwoHot(Points):
    """A number as weights on the two grid points around it, such that their mean is the number.

        target: 1 - t on point i and t on point i + 1, where i + t = f (bins - 1)
        ℓ = -(1 - t) log p_i - t log p_{i+1}         p = softmax(z), on ``bins`` points from low to high

    Proper for the mean, exactly: the best p is the expected target, whose mean is E y, at the ends of the range too.
    Its masses are the truth seen through hats as wide as two steps: quantiles, intervals and the cdf are right to about
    a step, and lie on points. There is no ``log_prob``: between points the density is 0, at them infinite.

    ``encode`` gives a ``Target`` of two columns for ``cross_entropy``, with any ``loss=``.
    Source: Schrittwieser et al. 2020 (MuZero), appendix F; Bellemare et al. 2017, eq. 7 (the projection).

    >>> code = TwoHot(0.0, 50.0, bins=6)
    >>> target = code.encode(torch.tensor([12.5]))
    >>> target.index, target.weight
    (tensor([[1, 2]]), tensor([[0.7500, 0.2500]]))
    >>> z = torch.tensor([[0.0, 0.75, 0.25, 0.0, 0.0, 0.0]]).log()
    >>> code.mean(z), code.median(z)
    (tensor([12.5000]), tensor([10.]))
    """

    bins: int

    _why: ClassVar[str] = (
        "its masses sit on points, and a label between them has probability 0. HLGauss, with as many logits, has one."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins != int(self.bins) or self.bins < 2:
            raise ValueError(
                f"TwoHot needs a whole number of at least 2 bins, the points of its grid; got {self.bins}."
            )

    @property
    def columns(self) -> int:
        """One for each point."""
        return self.bins

    @property
    def count(self) -> int:
        """As many points as bins."""
        return self.bins

    def encode(self, y: Tensor) -> Target:
        """The points around each label of y, taken in order, and their weights: a ``Target`` of two columns."""
        return super().encode(y)

    def _target(self, f: Tensor, dtype: torch.dtype) -> Target:
        place = f * (self.bins - 1)
        first = place.floor().nan_to_num(0).clamp(max=self.bins - 2)
        t = place - first
        index = first.long().unsqueeze(-1) + torch.arange(2, device=f.device)
        return sparse(index, torch.stack((1 - t, t), -1).to(dtype), self.bins)

    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor:
        return cross_entropy(z, self._target(f, f.dtype), reduction=reduction)

    def _masses(self, z: Tensor) -> Tensor:
        return z.softmax(-1)


@dataclass(frozen=True)
class Ordinal(Points):
    """Whole numbers from low to high as a row of questions: is it more than low? if so, more than low + 1? …

        P(y > k | y ≥ k) = σ(z_k)        P(y > k) = Π_{j ≤ k} σ(z_j)        k = 0 … levels - 2, counted from low
        ℓ = Σ_{k ≤ y} binary cross-entropy of z_k against [y > k] = -log P(y)

    A question that an earlier answer has settled is not asked and not read. The probabilities P(y > k) cannot cross,
    whatever the logits; and the sum of the questions is the log-likelihood of y, so ℓ is strictly proper. (Shi et al.
    divide by the number of questions instead of labels, which has the same minimiser.) The mean takes neighbouring
    levels to be equally far apart; the median and the interval need only their order.

    ``encode`` gives bits and asked, both (…, columns): the answers, and which questions count. Instead of questions one
    after the other, Cao et al. (CORAL) ask them side by side, P(y > k) = σ(z_k), which do not cross because all z_k are
    one score with a falling bias for each k. One score with biases may be fed to this code too; it then is a
    continuation-ratio model and no CORAL. Sources: Shi, Cao & Raschka 2021 (CORN); Cao, Mirjalili & Raschka 2020.

    >>> code = Ordinal(1, 5)
    >>> bits, asked = code.encode(torch.tensor([3]))
    >>> bits, asked
    (tensor([[1., 1., 0., 0.]]), tensor([[1., 1., 1., 0.]]))
    >>> z = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    >>> code.loss(z, torch.tensor([3])), code.log_prob(z, torch.tensor([3]))
    (tensor(1.1333), tensor([-1.1333]))
    >>> code.mean(z), code.median(z), code.interval(z, 0.5)
    (tensor([2.9333]), tensor([3.]), (tensor([2.]), tensor([4.])))
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low != int(self.low) or self.high != int(self.high):
            raise ValueError(
                f"the levels of Ordinal are the whole numbers from low to high; got {self.low} and {self.high}. "
                "Number the levels 0, 1, 2, … if they are something else."
            )

    @property
    def columns(self) -> int:
        """One for each level but the last."""
        return self.count - 1

    @property
    def count(self) -> int:
        """As many points as whole numbers from low to high."""
        return int(self.high) - int(self.low) + 1

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """bits and asked, both (…, columns): [y > k], and 1 where that question is asked, [y ≥ k]."""
        bits, asked = super().encode(y)
        return bits.reshape(*y.shape, self.columns), asked.reshape(*y.shape, self.columns)

    def _share(self, y: Tensor) -> Tensor:
        f = super()._share(y)
        whole = (
            y.reshape(-1) == y.reshape(-1).round() if y.is_floating_point() else torch.ones_like(f, dtype=torch.bool)
        )
        if visible(y) and not bool(whole.all()):
            raise ValueError(
                f"{first(y, ~whole, 'not whole numbers')} The levels are {int(self.low)}, …, {int(self.high)}: "
                "round them?"
            )
        return torch.where(whole, f, torch.nan)

    def _target(self, f: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        level = (f * self.columns).round().unsqueeze(-1)
        k = torch.arange(self.columns, device=f.device)
        asked = torch.where(level.isnan(), level, (level >= k).to(f.dtype))
        return (level > k).to(dtype), asked.to(dtype)

    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor:
        value = self._cost(z.to(f.dtype), f)
        return reduce(value, torch.ones_like(value), reduction, "zero", value.shape, result_dtype(z))

    def _log_prob(self, z: Tensor, f: Tensor) -> Tensor:
        return -self._cost(z, f)

    def _cost(self, z: Tensor, f: Tensor) -> Tensor:
        bits, asked = self._target(f, f.dtype)
        read = torch.where(asked == 0, 0.0, z)  # by selection: a NaN or an infinity that is not asked reaches nothing
        return binary_cross_entropy_with_logits(read, bits, asked, reduction="none").sum(-1)

    def _masses(self, z: Tensor) -> Tensor:
        more, stop = F.logsigmoid(z), F.logsigmoid(-z)
        zero = torch.zeros_like(z[:, :1])
        return torch.exp(torch.cat((zero, more.cumsum(-1)), -1) + torch.cat((stop, zero), -1))
