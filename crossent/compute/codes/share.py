"""Codes of one logit: the share f of the range is the share of a yes in a soft binary target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossent.compute.codes.code import Code
from crossent.compute.functional import binary_cross_entropy_with_logits, result_dtype
from crossent.compute.reduce import reduce


@dataclass(frozen=True)
class Fraction(Code):
    """The mean of a number in [low, high], by binary cross-entropy against its share of the range.

        ℓ = -f log p - (1 - f) log(1 - p)        f = (y - low) / (high - low)        p = σ(z)

    It is least at p = E f whatever the distribution of f, so that p learns the mean, which is never outside the range:
    proper for the mean (Papke & Wooldridge 1996, eq. 5). ``encode`` gives the shares (…), which
    ``binary_cross_entropy_with_logits`` takes. The loss is at least the entropy of f as a coin, not 0.

    Nothing but the mean is learnt: a share of ½ comes as well from labels that are all ½ as from labels at both ends.
    So the median, quantiles, intervals, the cdf and ``log_prob`` are a ``TypeError`` that says where to find them.

    >>> code = Fraction(0.0, 50.0)
    >>> code.encode(torch.tensor([0.0, 10.0]))
    tensor([0.0000, 0.2000])
    >>> z = torch.tensor([[0.2]]).logit()
    >>> code.loss(z, torch.tensor([10.0])), code.mean(z)
    (tensor(0.5004), tensor([10.]))
    """

    _why: ClassVar[str] = (
        "its loss learns the mean and nothing else of the distribution. ContinuousBernoulli (one logit too), HLGauss "
        "and Ordinal learn more."
    )

    @property
    def columns(self) -> int:
        """One: the log-odds of the share."""
        return 1

    def encode(self, y: Tensor) -> Tensor:
        """The shares f of labels y, of their shape."""
        return super().encode(y).reshape(y.shape)

    def _target(self, f: Tensor, dtype: torch.dtype) -> Tensor:
        return f.to(dtype)

    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor:
        return binary_cross_entropy_with_logits(z.squeeze(-1), f, reduction=reduction)

    def _mean(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z.squeeze(-1))


@dataclass(frozen=True)
class ContinuousBernoulli(Code):
    """A density on [low, high] from one logit: binary cross-entropy with the normaliser it lacks.

    With p = σ(z), the binary likelihood p^f (1 - p)^(1 - f) does not integrate to 1 over f in [0, 1]; times C it does:

        C = 2 artanh(1 - 2p) / (1 - 2p) = z / tanh(z/2)                   density of f:  C p^f (1 - p)^(1 - f)
        ℓ = -f log p - (1 - f) log(1 - p) - log C = A(z) - z f            A(z) = log((e^z - 1) / z)

    so it is the exponential family e^{zf}: flat at z = 0, leaning to one end as a truncated exponential otherwise, and
    never with a peak inside. ℓ is proper for the mean, which is A'(z) and not p. It is minus the log of a density of f,
    so it may be negative; the density of y is smaller by the factor high - low, which ``log_prob`` knows.

    Every figure is in closed form in a = |z| from the nearer end, stable at z = 0 and beyond |z| = 700. An infinite
    logit is a point at that end. ``encode`` gives the shares (…).
    Accuracy: 4 ulp of float64 of the terms (tests/compute/test_codes.py). Source: Loaiza-Ganem & Cunningham 2019,
    proposition 1.

    >>> code = ContinuousBernoulli(0.0, 50.0)
    >>> z = torch.tensor([[0.0], [-5.0]])
    >>> code.loss(z, torch.tensor([10.0, 0.0]), reduction="none")
    tensor([ 0.0000, -1.6162])
    >>> code.mean(z), code.median(z)
    (tensor([25.0000,  9.6608]), tensor([25.0000,  6.8643]))
    """

    @property
    def columns(self) -> int:
        """One: the slope of the log-density of the share."""
        return 1

    def encode(self, y: Tensor) -> Tensor:
        """The shares f of labels y, of their shape."""
        return super().encode(y).reshape(y.shape)

    def _target(self, f: Tensor, dtype: torch.dtype) -> Tensor:
        return f.to(dtype)

    def _loss(self, z: Tensor, f: Tensor, reduction: str) -> Tensor:
        value = -self._share_log_density(z.to(f.dtype), f)
        return reduce(value, torch.ones_like(value), reduction, "zero", value.shape, result_dtype(z))

    def _log_prob(self, z: Tensor, f: Tensor) -> Tensor:
        return self._share_log_density(z, f) - math.log(self.high - self.low)

    def _share_log_density(self, z: Tensor, f: Tensor) -> Tensor:
        """-a m - log((1 - e^-a) / a), with m the distance of f from the end to which the density leans."""
        z = z.squeeze(-1)
        a, m = _lean(z), torch.where(z >= 0, 1 - f, f)
        point = a.isinf()
        small = a <= 1
        # Either branch sees only numbers that it can bear, or its gradient would be NaN where it is not used.
        x = torch.where(small, a, 0.0) / 2
        near = torch.log1p(_sinhc_less_1(x)) - x
        far = torch.where(small | point, 1.0, a)
        log_mass = torch.where(small, near, torch.log1p(-torch.exp(-far)) - torch.log(far))
        log_mass = torch.where(point, torch.where(m > 0, 0.0, -torch.inf), log_mass)
        return -torch.where(m == 0, 0.0, a * m) - log_mass

    def _mean(self, z: Tensor) -> Tensor:
        z = z.squeeze(-1)
        a = _lean(z)
        small = a <= 1
        x = torch.where(small, a, 0.0) / 2
        far = torch.where(small, 1.0, a)
        # The mean distance from the nearer end: (1 - langevin(x)) / 2, or 1/a - 1/(e^a - 1).
        inner = (1 - _sinhc_slope(x) / (1 + _sinhc_less_1(x))) / 2
        distance = torch.where(small, inner, 1 / far - 1 / torch.expm1(far))
        return torch.where(z >= 0, 1 - distance, distance)

    def _quantile(self, z: Tensor, level: float) -> Tensor:
        z = z.squeeze(-1)
        a, rest = _lean(z), torch.where(z >= 0, torch.full_like(z, 1 - level), level)
        flat = a < FLAT
        far = torch.where(flat, 1.0, a)
        distance = torch.where(flat, rest, -torch.log1p(rest * torch.expm1(-far)) / far)
        return torch.where(z >= 0, 1 - distance, distance)

    def _cdf(self, z: Tensor, y: Tensor) -> Tensor:
        z, f = z.squeeze(-1), self._unit(y)
        a, m = _lean(z), 1 - f
        flat = a < FLAT
        far = torch.where(flat, 1.0, a)
        below = torch.expm1(-torch.where(f == 0, 0.0, far * f)) / torch.expm1(-far)
        lean = torch.exp(-torch.where(m == 0, 0.0, far * m))
        value = torch.where(flat, f, below * torch.where(z >= 0, lean, 1.0))
        return torch.where((z == -torch.inf) & (y >= self.low), 1.0, value)


# Below this the density is 1 to the last digit, and what a divides by is 0 for a subnormal a.
FLAT = 1e-30


def _lean(z: Tensor) -> Tensor:
    """|z|, with the derivative 1 at 0, where abs has 0: the loss has no kink there."""
    return torch.where(z >= 0, z, -z)


def _sinhc_less_1(x: Tensor) -> Tensor:
    """sinh(x)/x - 1 = x²/6 + x⁴/120 + … for |x| ≤ ½: all terms positive, the ratio of neighbours x²/(2n (2n + 1))."""
    total = torch.zeros_like(x)
    for n in range(8, 0, -1):
        total = x * x / (2 * n * (2 * n + 1)) * (1 + total)
    return total


def _sinhc_slope(x: Tensor) -> Tensor:
    """Its derivative x/3 + x³/30 + … for |x| ≤ ½: the ratio of neighbours is x²/(2n (2n + 3))."""
    total = torch.zeros_like(x)
    for n in range(8, 0, -1):
        total = x * x / (2 * n * (2 * n + 3)) * (1 + total)
    return x / 3 * (1 + total)
