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

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute.distribution import of_measure
from crossent.compute.losses import Loss
from crossent.compute.losses.algebra import Scaled, Sum
from crossent.minimise.objective.catalogue import TINY, NoSlope, is_proper, slopes_of

LEAST = 0.1
"""What is left of the probability of a class where the inverse link would leave nothing or less."""


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
        slopes = slopes_of(self.loss, log_p)
        s = (self.sign * slopes.s).clamp(min=TINY)
        if slopes.r is None:
            return of_measure(log_p - s.log()).log
        # r/p is what (1) adds to λ; p/s cannot be taken out of the sum, because r may stay where p is 0.
        r = self.sign * slopes.r
        p = log_p.exp()
        level = (1 - (r / s).sum(-1, keepdim=True)) / (p / s).sum(-1, keepdim=True)
        share = level + torch.where(p == 0, -level, r / torch.where(p == 0, 1.0, p))
        share = torch.maximum(share, LEAST * level.abs()).clamp(min=TINY)
        return of_measure(log_p + share.log() - s.log()).log


def inverse_of(loss: Loss, classes: int) -> Inverse:
    """The inverse link of a loss of so many classes, or one that does nothing and says why.

    Slopes are looked at on a grid of probabilities: one that vanishes or turns has no way back.
    """
    if is_proper(loss):
        return Inverse(loss, proper=True)
    p = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
    grid = torch.stack((p, *[(1 - p) / (classes - 1)] * (classes - 1)), -1).log()
    grid = torch.cat((grid, grid.roll(1, -1)))  # class 0 may have a slope of its own
    try:
        s = slopes_of(loss, grid).s
    except NoSlope as nothing:
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
        slopes = slopes_of(loss, at)
        grown = [abs(float(x[1, here] / p[1])) > 1.001 * abs(float(x[0, here] / p[0])) for x in slopes if x is not None]
        if not any(grown):
            return False
    return True


def _name(loss: Loss) -> str:
    return "this sum of losses" if isinstance(loss, (Sum, Scaled)) else type(loss).__name__
