"""Every loss by itself: how a recipe spells it, whether it is proper, what minimises it, and the way back to the truth.

This is the one place where a loss of ``crossent.compute.losses`` becomes one of a recipe: ``spelling`` reads names from
here, ``inverse`` slopes (its equation (1) is meant below), the comparison of losses and the guide all the rest. A new
loss is an entry of ``PROPERTIES``; a test says which one is missing.

The *slopes* of a loss that costs Σ_k q_k φ_k(p_k) + R(p) on average over a label drawn from q are

    s_k = -p_k φ'_k(p_k)        r_k = p_k ∂R/∂p_k ,

functions of log p, with all digits where p is near 0 and 1. They add up over sums of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.compute.losses import (
    LDAM,
    NLL,
    ArcFace,
    Asymmetric,
    Brier,
    ClassWeighted,
    Confidence,
    Focal,
    GeneralisedCE,
    Hinge,
    LogZ,
    Loss,
    Margin,
    Poly1,
    Smoothed,
    SymmetricCE,
    TaylorCE,
    Unlikelihood,
)
from crossent.compute.losses.algebra import Scaled, Sum
from crossent.minimise.objective.suspects import Bootstrapped

TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Slopes:
    """s = -p φ'(p) and r = p ∂R/∂p, both (…, K); r None is 0."""

    s: Tensor
    r: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.s, self.r))

    def __add__(self, other: Slopes) -> Slopes:
        given = [r for r in (self.r, other.r) if r is not None]
        return Slopes(self.s + other.s, sum(given[1:], given[0]) if given else None)

    def times(self, factor: float) -> Slopes:
        """Those of the loss times a factor."""
        return Slopes(factor * self.s, None if self.r is None else factor * self.r)


class NoSlope(Exception):
    """A loss does not read probabilities, or not all of them; the message is a sentence."""


@dataclass(frozen=True)
class Property:
    """What is known of a loss; q is the truth, p what a network says at the minimum.

    ``name`` is how a recipe spells it, empty where it is spelt elsewhere. ``minimiser`` is p for q, ``inverse`` the way
    back, ``domain`` for which p that is exact, ``source`` where it is from. ``slopes`` are those at log-probabilities
    (…, K), None where the loss reads none. ``idle`` says whether the knobs of a loss make it the NLL.
    """

    name: str
    proper: bool
    minimiser: str
    inverse: str
    domain: str
    source: str
    slopes: Callable[[Any, Tensor], Slopes] | None = None
    idle: Callable[[Any], bool] = lambda loss: False


def is_proper(loss: Loss) -> bool:
    """Whether no prediction is expected to cost less than the truth."""
    match loss:
        case Sum():
            return is_proper(loss.a) and is_proper(loss.b)
        case Scaled():
            return bool(loss.factor >= 0) and is_proper(loss.loss)
        case Smoothed() if loss.smoothing == 0:
            return is_proper(loss.loss)
    known = PROPERTIES.get(type(loss))
    return known is not None and (known.proper or known.idle(loss))


def slopes_of(loss: Loss, log_p: Tensor) -> Slopes:
    """The slopes of a loss, or of a sum of losses, at log-probabilities (…, K), float64. Raises NoSlope."""
    match loss:
        case Sum():
            return slopes_of(loss.a, log_p) + slopes_of(loss.b, log_p)
        case Scaled():
            return slopes_of(loss.loss, log_p).times(float(loss.factor))
    known = PROPERTIES.get(type(loss))
    if known is None or known.slopes is None:
        raise NoSlope(f"{known.minimiser}." if known else "nothing is known of its minimiser.")
    return known.slopes(loss, log_p)


def _even(loss: NLL, log_p: Tensor) -> Slopes:
    return Slopes(torch.ones_like(log_p))


def _nothing(loss: LogZ, log_p: Tensor) -> Slopes:
    """The greatest freedom of the logits, their offset, is all it takes: R is 0 at the minimum."""
    return Slopes(torch.zeros_like(log_p))


def _brier(loss: Brier, log_p: Tensor) -> Slopes:
    """Of Σ_j p_j² + 1 - 2 p_k."""
    p = log_p.exp()
    return Slopes(2 * p, 2 * p.square())


def _confidence(loss: Confidence, log_p: Tensor) -> Slopes:
    """R = Σ p log p."""
    p = log_p.exp()
    return Slopes(torch.zeros_like(p), torch.where(p == 0, 0.0, p * (log_p + 1)))


def _bootstrapped(loss: Bootstrapped, log_p: Tensor) -> Slopes:
    top = torch.zeros_like(log_p).scatter(-1, log_p.argmax(-1, keepdim=True), 1.0)
    return Slopes(torch.full_like(log_p, loss.beta), (loss.beta - 1) * top)


def _asymmetric(loss: Asymmetric, log_p: Tensor) -> Slopes:
    if loss.margin:
        raise NoSlope("a no that is surer than its margin costs nothing, however sure it is.")
    of_no, of_yes = _focal(float(loss.gamma_neg), log_p), _focal(float(loss.gamma_pos), log_p)
    return Slopes(torch.cat((of_no[..., :1], of_yes[..., 1:]), -1))


def _poly1(loss: Poly1, log_p: Tensor) -> Slopes:
    """1 + ε p, whose terms are positive in either form."""
    epsilon = loss.epsilon
    return Slopes(1 + epsilon * log_p.exp() if epsilon >= 0 else 1 + epsilon - epsilon * _miss(log_p))


def _ldam(loss: LDAM, log_p: Tensor) -> Slopes:
    counts = loss.counts.to(log_p)
    return Slopes(_margin(loss.margin * (counts.min() / counts) ** 0.25, log_p))


def _smoothed(loss: Smoothed, log_p: Tensor) -> Slopes:
    """(1 - ε) of the loss inside, and the mean of -log p_j over all classes or over the others."""
    smoothing, classes = float(loss.smoothing), log_p.shape[-1]
    inner = slopes_of(loss.loss, log_p).times(1 - smoothing)
    if loss.over == "others":
        each = smoothing / (classes - 1)
        return inner + Slopes(torch.full_like(log_p, -each), torch.full_like(log_p, -each))
    return inner + Slopes(torch.zeros_like(log_p), torch.full_like(log_p, -smoothing / classes))


def _focal(gamma: float, log_p: Tensor) -> Tensor:
    """(1 - p)^γ (1 + γ p (-log p) / (1 - p))."""
    log_miss = _log_miss(log_p)
    miss, p = log_miss.exp(), log_p.exp()
    sure, gone = miss == 0, p == 0
    ratio = torch.where(sure, 1.0, -torch.where(gone, 0.0, log_p) / torch.where(sure, 1.0, miss))
    return torch.exp(gamma * log_miss) * (1 + gamma * p * ratio)


def _margin(m: Tensor, log_p: Tensor) -> Tensor:
    """e^m / (p + e^m (1 - p)) = 1 / (p e^-m + 1 - p)."""
    return 1 / (log_p.exp() * torch.exp(-m) + _miss(log_p))


def _miss(log_p: Tensor) -> Tensor:
    return _log_miss(log_p).exp()


def _log_miss(log_p: Tensor) -> Tensor:
    """log(1 - p_k) with all digits: of the greatest class what the others have, of another log(1 - e^log p)."""
    top = log_p.argmax(-1, keepdim=True)
    others = log_p.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=-_FAR)
    return torch.log1p(-log_p.exp().clamp(max=0.75)).scatter(-1, top, others)  # no other class has more than half


_FAR = 690.0
"""-log of the least probability that is told from 0."""


_EVERYWHERE = "every p inside the simplex"
_NO = "none: plain softmax is left"

PROPERTIES: dict[type[Loss], Property] = {
    NLL: Property("nll", True, "q", "p", _EVERYWHERE, "Good 1952", slopes=_even),
    Smoothed: Property(
        "smoothed",
        False,
        "(1 - ε) q + ε / K",
        "(p - ε / K) / (1 - ε)",
        "p ≥ ε / K; a tenth of p below",
        "Szegedy et al. 2016, §7",
        slopes=_smoothed,
    ),
    Focal: Property(
        "focal",
        False,
        "less sure than q",
        "∝ p / ((1 - p)^γ - γ (1 - p)^(γ-1) p log p)",
        _EVERYWHERE,
        "Charoenphakdee et al. 2021, theorem 11",
        slopes=lambda loss, log_p: Slopes(_focal(loss.gamma, log_p)),
        idle=lambda loss: loss.gamma == 0,
    ),
    Asymmetric: Property(
        "asymmetric",
        False,
        "as Focal, with a γ for class 0 and one for the others",
        "as Focal; none with a margin, above which a sure no costs nothing",
        "margin 0",
        "Charoenphakdee et al. 2021, theorem 11",
        slopes=_asymmetric,
    ),
    Poly1: Property(
        "poly1",
        False,
        "q / (λ - ε q)",
        "∝ p / (1 + ε p)",
        _EVERYWHERE,
        "equation (1)",
        slopes=_poly1,
        idle=lambda loss: loss.epsilon == 0,
    ),
    GeneralisedCE: Property(
        "gce",
        False,
        "∝ q^(1 / (1 - g)), surer than q",
        "∝ p^(1 - g)",
        "g < 1; for g = 1 none",
        "equation (1)",
        slopes=lambda loss, log_p: Slopes(torch.exp(loss.q * log_p)),
    ),
    SymmetricCE: Property(
        "sce",
        False,
        "α q / (λ + β A q), surer than q",
        "∝ p / (α - β A p)",
        "α > 0; for α = 0 none",
        "equation (1)",
        slopes=lambda loss, log_p: Slopes(loss.alpha - loss.beta * loss.A * log_p.exp()),
    ),
    TaylorCE: Property(
        "taylor",
        False,
        "surer than q; a class of small q gets nothing",
        _NO,
        "∝ p / (1 - (1 - p)^t) where no class gets nothing, which the answer does not show",
        "equation (1)",
        slopes=lambda loss, log_p: Slopes(-torch.expm1(loss.order * _log_miss(log_p))),
    ),
    Bootstrapped: Property(
        "bootstrapped",
        False,
        "β q + (1 - β) on the most probable class",
        "(p - (1 - β) [most probable]) / β",
        "the greatest p ≥ 1 - β",
        "equation (1); Reed et al. 2015",
        slopes=_bootstrapped,
    ),
    Brier: Property("brier", True, "q", "p", _EVERYWHERE, "Brier 1950", slopes=_brier),
    Hinge: Property(
        "hinge", False, "z = 1 above all others for the most probable class", _NO, "nowhere", "Crammer & Singer 2001"
    ),
    Margin: Property(
        "margin",
        False,
        "less sure than q for m < 0, surer for m > 0",
        "∝ p (p + e^m (1 - p))",
        _EVERYWHERE,
        "equation (1)",
        slopes=lambda loss, log_p: Slopes(_margin(log_p.new_tensor(loss.m), log_p)),
    ),
    LDAM: Property(
        "ldam",
        False,
        "as Margin, with an m for each class",
        "∝ p (p e^-m + 1 - p)",
        _EVERYWHERE,
        "equation (1)",
        slopes=_ldam,
    ),
    ArcFace: Property("arcface", False, "it reads angles and no probabilities", _NO, "nowhere", "Deng et al. 2019"),
    Unlikelihood: Property(
        "unlikelihood",
        False,
        "1 - (K - 1) q, nothing where that is negative: the target is what must not be said",
        _NO,
        "(1 - p) / (K - 1) where no class gets nothing, which the answer does not show",
        "equation (1)",
        slopes=lambda loss, log_p: Slopes(-log_p.exp() / _miss(log_p).clamp(min=TINY)),
    ),
    Confidence: Property(
        "confidence",
        False,
        "less sure than q, when added to a proper loss with a factor β > 0",
        "p (1 + β (H(p) + log p)), when added to the NLL",
        "where that is positive; a tenth of p elsewhere",
        "equation (1)",
        slopes=_confidence,
    ),
    LogZ: Property(
        "logz",
        True,
        "q, with log Σ e^z = 0, when added to a proper loss",
        "p",
        _EVERYWHERE,
        "PaLM, §5",
        slopes=_nothing,
    ),
    ClassWeighted: Property("", False, "∝ w q", "∝ p / w", _EVERYWHERE, "Elkan 2001, theorem 2"),
}
"""What is known of each loss. For sums see ``inverse``: slopes add up."""
