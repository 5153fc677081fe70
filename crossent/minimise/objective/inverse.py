"""What minimises a loss, and the way from there back to the truth: one place says it for every loss.

A network that minimises cross-entropy says the truth; one that minimises another loss says something else, and raw
comparisons of losses mislead. Let q be the true distribution of a row and p what the network says. The losses here that
read probabilities cost, on average over the label,

    L(p) = Σ_k q_k φ_k(p_k) + R(p)

with φ_k the cost of label k, and R what does not ask for the label (the uniform part of label smoothing, a penalty on
confidence). Where all p_k > 0, the least L on the simplex is stationary: p_k ∂L/∂p_k = -λ p_k for some λ. With the two
*slopes* s_k = -p_k φ'_k(p_k) and r_k = p_k ∂R/∂p_k, that is q_k s_k = λ p_k + r_k, or

    q_k = (λ p_k + r_k) / s_k        λ = (1 - Σ r/s) / Σ p/s                                                    (1)

So the inverse link is in closed form, and one formula serves every loss and every sum of losses, because slopes add up.
Its special cases: nothing to undo for the NLL (s = 1, r = 0); (p - ε/K) / (1 - ε) for label smoothing; p^(1-g) for
generalised CE; Ψ of Charoenphakdee et al. 2021, theorem 11, for focal loss. It is a function of p: no two truths lead
to the same p inside the simplex. Where the least L is on its edge, many do: a loss whose slope φ' is bounded (absolute
error, Taylor's) gives a class that is rare enough nothing. Then, and where a slope turns or a loss reads no
probabilities, no way back is known; `inverse_of` says so and leaves plain softmax.

A network is not at the minimum in every row. Where (1) would give a class less than nothing, as label smoothing does
below ε/K, the class gets a tenth (``LEAST``) of what it would have without R, and the row is normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.distribution import of_measure
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

LEAST = 0.1
"""What is left of the probability of a class where the inverse link would leave nothing or less."""
_TINY = 1e-300


@dataclass(frozen=True)
class Property:
    """Whether a loss is proper, what its minimiser is for a true distribution q, and the way back to q.

    ``domain`` says for which minimisers the way back is exact; ``source`` where it is from.
    """

    proper: bool
    minimiser: str
    inverse: str
    domain: str
    source: str


_EVERYWHERE = "every p inside the simplex"
_NO = "none: plain softmax is left"

PROPERTIES: dict[type[Loss], Property] = {
    NLL: Property(True, "q", "p", _EVERYWHERE, "Good 1952"),
    Brier: Property(True, "q", "p", _EVERYWHERE, "Brier 1950"),
    LogZ: Property(True, "q, with log Σ e^z = 0, when added to a proper loss", "p", _EVERYWHERE, "PaLM, §5"),
    Smoothed: Property(
        False, "(1 - ε) q + ε / K", "(p - ε / K) / (1 - ε)", "p ≥ ε / K; a tenth of p below", "Szegedy et al. 2016, §7"
    ),
    ClassWeighted: Property(False, "∝ w q", "∝ p / w", _EVERYWHERE, "Elkan 2001, theorem 2"),
    Focal: Property(
        False,
        "less sure than q",
        "∝ p / ((1 - p)^γ - γ (1 - p)^(γ-1) p log p)",
        _EVERYWHERE,
        "Charoenphakdee et al. 2021, theorem 11",
    ),
    Asymmetric: Property(
        False,
        "as Focal, with a γ for class 0 and one for the others",
        "as Focal; none with a margin, above which a sure no costs nothing",
        "margin 0",
        "Charoenphakdee et al. 2021, theorem 11",
    ),
    Poly1: Property(False, "q / (λ - ε q)", "∝ p / (1 + ε p)", _EVERYWHERE, "equation (1)"),
    GeneralisedCE: Property(
        False, "∝ q^(1 / (1 - g)), surer than q", "∝ p^(1 - g)", "g < 1; for g = 1 none", "equation (1)"
    ),
    SymmetricCE: Property(
        False, "α q / (λ + β A q), surer than q", "∝ p / (α - β A p)", "α > 0; for α = 0 none", "equation (1)"
    ),
    TaylorCE: Property(
        False,
        "surer than q; a class of small q gets nothing",
        _NO,
        "∝ p / (1 - (1 - p)^t) where no class gets nothing, which the answer does not show",
        "equation (1)",
    ),
    Confidence: Property(
        False,
        "less sure than q, when added to a proper loss with a factor β > 0",
        "p (1 + β (H(p) + log p)), when added to the NLL",
        "where that is positive; a tenth of p elsewhere",
        "equation (1)",
    ),
    Unlikelihood: Property(
        False,
        "1 - (K - 1) q, nothing where that is negative: the target is what must not be said",
        _NO,
        "(1 - p) / (K - 1) where no class gets nothing, which the answer does not show",
        "equation (1)",
    ),
    Margin: Property(
        False, "less sure than q for m < 0, surer for m > 0", "∝ p (p + e^m (1 - p))", _EVERYWHERE, "equation (1)"
    ),
    LDAM: Property(False, "as Margin, with an m for each class", "∝ p (p e^-m + 1 - p)", _EVERYWHERE, "equation (1)"),
    ArcFace: Property(False, "it reads angles and no probabilities", _NO, "nowhere", "Deng et al. 2019"),
    Hinge: Property(
        False, "z = 1 above all others for the most probable class", _NO, "nowhere", "Crammer & Singer 2001"
    ),
    Bootstrapped: Property(
        False,
        "β q + (1 - β) on the most probable class",
        "(p - (1 - β) [most probable]) / β",
        "the greatest p ≥ 1 - β",
        "equation (1); Reed et al. 2015",
    ),
}
"""What is known of each loss. For sums see ``inverse_of``: slopes add up."""


@dataclass(frozen=True, eq=False)
class Inverse:
    """The way from what a network says, at the minimum of ``loss``, back to the truth.

    >>> from crossent.compute.losses import Smoothed
    >>> said = torch.tensor([0.95, 0.05], dtype=torch.float64).log()
    >>> inverse_of(Smoothed(0.05), 2)(said).exp()
    tensor([0.9737, 0.0263], dtype=torch.float64)
    """

    loss: Loss
    proper: bool
    missing: str = ""
    """Why there is no way back, as a sentence; empty if there is one."""
    sign: float = 1.0

    def __call__(self, log_p: Tensor) -> Tensor:
        """Log-probabilities (…, K) of the truth, float64, for those of the minimiser; as they are if no way is known.

        By equation (1), on logarithms: relative errors stay at a few roundings wherever p is near 0 or 1.
        """
        if self.proper or self.missing:
            return log_p
        slopes = _slopes(self.loss, log_p)
        s = (self.sign * slopes.s).clamp(min=_TINY)
        if slopes.r is None:
            return of_measure(log_p - s.log()).log
        # r/p is what (1) adds to λ; p/s cannot be taken out of the sum, because r may stay where p is 0.
        r = self.sign * slopes.r
        p = log_p.exp()
        level = (1 - (r / s).sum(-1, keepdim=True)) / (p / s).sum(-1, keepdim=True)
        share = level + torch.where(p == 0, -level, r / torch.where(p == 0, 1.0, p))
        share = torch.maximum(share, LEAST * level.abs()).clamp(min=_TINY)
        return of_measure(log_p + share.log() - s.log()).log


def inverse_of(loss: Loss, classes: int) -> Inverse:
    """The inverse link of a loss of so many classes, or one that does nothing and says why.

    Slopes are looked at on a grid of probabilities: one that vanishes or turns has no way back.
    """
    if _proper(loss):
        return Inverse(loss, proper=True)
    p = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    grid = torch.stack((p, *[(1 - p) / (classes - 1)] * (classes - 1)), -1).log()
    grid = torch.cat((grid, grid.roll(1, -1)))  # class 0 may have a slope of its own
    try:
        s = _slopes(loss, grid).s
    except _NoSlope as nothing:
        return Inverse(loss, False, f"{_name(loss)} has no inverse link: {nothing}")
    sign = 1.0 if bool((s > 0).all()) else -1.0
    if not bool((sign * s > 0).all()):
        return Inverse(loss, False, f"{_name(loss)} has no inverse link: its slope vanishes or turns.")
    if not _steep(loss, classes):
        reason = "its minimiser gives a class that is rare enough nothing, so that rare and rarer look alike."
        return Inverse(loss, False, f"{_name(loss)} has no inverse link: {reason}")
    return Inverse(loss, False, sign=sign)


def _steep(loss: Loss, classes: int) -> bool:
    """Whether φ' or ∂R/∂p grows without bound as p → 0, which keeps the minimiser inside the simplex."""
    p = torch.tensor([1e-6, 1e-12], dtype=torch.float64)
    rare = torch.stack((p, *[(1 - p) / (classes - 1)] * (classes - 1)), -1).log()
    for at in (rare, rare.roll(1, -1)):
        here = int(at[0].argmin())
        slopes = _slopes(loss, at)
        grown = [abs(float(x[1, here] / p[1])) > 1.001 * abs(float(x[0, here] / p[0])) for x in slopes if x is not None]
        if not any(grown):
            return False
    return True


class _NoSlope(Exception):
    pass


@dataclass(frozen=True, eq=False)
class _Slopes:
    """s = -p φ'(p) and r = p ∂R/∂p, both (…, K); r None is 0."""

    s: Tensor
    r: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.s, self.r))

    def __add__(self, other: _Slopes) -> _Slopes:
        given = [r for r in (self.r, other.r) if r is not None]
        return _Slopes(self.s + other.s, sum(given[1:], given[0]) if given else None)

    def times(self, factor: float) -> _Slopes:
        return _Slopes(factor * self.s, None if self.r is None else factor * self.r)


def _slopes(loss: Loss, log_p: Tensor) -> _Slopes:
    """The slopes of a loss at log-probabilities (…, K), float64."""
    p, one = log_p.exp(), torch.ones_like(log_p)
    match loss:
        case Sum():
            return _slopes(loss.a, log_p) + _slopes(loss.b, log_p)
        case Scaled():
            return _slopes(loss.loss, log_p).times(loss.factor)
        case NLL():
            return _Slopes(one)
        case LogZ():  # the greatest freedom of the logits, their offset, is all it takes: R is 0 at the minimum
            return _Slopes(torch.zeros_like(p))
        case Brier():  # Σ_j p_j² + 1 - 2 p_k
            return _Slopes(2 * p, 2 * p.square())
        case Confidence():  # R = Σ p log p
            return _Slopes(torch.zeros_like(p), torch.where(p == 0, 0.0, p * (log_p + 1)))
        case Smoothed():
            return _smoothed(loss, log_p)
        case Bootstrapped():
            top = torch.zeros_like(p).scatter(-1, log_p.argmax(-1, keepdim=True), 1.0)
            return _Slopes(loss.beta * one, (loss.beta - 1) * top)
        case Focal():
            return _Slopes(_focal(loss.gamma, log_p))
        case Asymmetric():
            if loss.margin:
                raise _NoSlope("a no that is surer than its margin costs nothing, however sure it is.")
            of_no, of_yes = _focal(loss.gamma_neg, log_p), _focal(loss.gamma_pos, log_p)
            return _Slopes(torch.cat((of_no[..., :1], of_yes[..., 1:]), -1))
        case Poly1():  # 1 + ε p, whose terms are positive in either form
            return _Slopes(
                1 + loss.epsilon * p if loss.epsilon >= 0 else 1 + loss.epsilon - loss.epsilon * _miss(log_p)
            )
        case GeneralisedCE():
            return _Slopes(torch.exp(loss.q * log_p))
        case SymmetricCE():
            return _Slopes(loss.alpha - loss.beta * loss.A * p)
        case TaylorCE():  # p Σ_{i<t} (1 - p)^i
            return _Slopes(-torch.expm1(loss.order * _log_miss(log_p)))
        case Unlikelihood():
            return _Slopes(-p / _miss(log_p).clamp(min=_TINY))
        case Margin():
            return _Slopes(_margin(log_p.new_tensor(loss.m), log_p))
        case LDAM():
            counts = loss.counts.to(log_p)
            return _Slopes(_margin(loss.margin * (counts.min() / counts) ** 0.25, log_p))
    fact = PROPERTIES.get(type(loss))
    raise _NoSlope(f"{fact.minimiser}." if fact else "nothing is known of its minimiser.")


def _smoothed(loss: Smoothed, log_p: Tensor) -> _Slopes:
    """(1 - ε) of the loss inside, and the mean of -log p_j over all classes or over the others."""
    inner, classes = _slopes(loss.loss, log_p).times(1 - loss.smoothing), log_p.shape[-1]
    if loss.over == "others":
        each = loss.smoothing / (classes - 1)
        return inner + _Slopes(torch.full_like(log_p, -each), torch.full_like(log_p, -each))
    return inner + _Slopes(torch.zeros_like(log_p), torch.full_like(log_p, -loss.smoothing / classes))


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


def _proper(loss: Loss) -> bool:
    match loss:
        case Sum():
            return _proper(loss.a) and _proper(loss.b)
        case Scaled():
            return loss.factor >= 0 and _proper(loss.loss)
        case Smoothed():
            return loss.smoothing == 0 and _proper(loss.loss)
        case Focal():
            return loss.gamma == 0
        case Poly1():
            return loss.epsilon == 0
    return isinstance(loss, (NLL, Brier, LogZ))


def _name(loss: Loss) -> str:
    return "this sum of losses" if isinstance(loss, (Sum, Scaled)) else type(loss).__name__
