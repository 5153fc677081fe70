"""Rare classes: three ways to train as if they were not, each with the way back to the true frequencies.

    weights           the cost of a row times w_y ∝ n_y^-power
    balanced          rows drawn so that class c makes up a share ∝ n_c^(1 - power) of a batch
    logit_adjusted    τ log π_c is added to the logits in training (Menon et al. 2021, eq. 10)

The first two teach the network another prior, and at their minimum it says p_c ∝ f_c q_c of a true q, with f the
weights, or the shares that were drawn over those that there are (Elkan 2001, theorem 2; Saerens et al. 2002, eq. 4). So
the truth is q_c ∝ p_c / f_c: what ``crossent.measure.undo_shift`` does to finished predictions. Of the third, Menon
et al. predict with the logits as they stand, which are for classes of equal frequency; with τ log π_c added, as in
training, they are for the frequencies that there are, and that is what cross-entropy on the true distribution judges.

How often a class came never changes what a network can win here: all three only change where it looks harder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.errors import DataError, some
from crossent.minimise.objective.spelling import read_call


@dataclass(frozen=True, eq=False)
class Imbalance:
    """What is done about rare classes: each field None where it is not done.

    ``weight`` (C,) multiplies the cost of a label, 1 on average over the training rows. ``shares`` (C,) of the classes
    in a batch that is drawn. ``bias`` (C,) is added to the logits, in training and after. ``factor`` (C,) is what the
    network has learnt each class with too much. All float64.
    """

    weight: Tensor | None = None
    shares: Tensor | None = None
    bias: Tensor | None = None
    factor: Tensor | None = None

    @staticmethod
    def of(text: str, counts: Tensor | None) -> Imbalance:
        """Read "none", "weights", "balanced" or "logit_adjusted", each with its power or τ: "weights(0.5)".

        ``counts`` (C,) are the training rows of each class, or their weights. Raises DataError.

        >>> Imbalance.of("weights", torch.tensor([90, 10])).weight
        tensor([0.5556, 5.0000], dtype=torch.float64)
        """
        make, strength = read_call(text, "cure for imbalance", _CURES)
        if make is None or strength == 0:
            return Imbalance()
        if counts is None:
            raise DataError(f"imbalance={text!r} needs to know how many training rows each class has, and nobody said.")
        n = counts.to(torch.float64)
        if n.dim() != 1 or not bool((n > 0).all() and n.isfinite().all()):
            gone = (~(n > 0)).nonzero().flatten().tolist()
            raise DataError(
                f"imbalance={text!r} needs training rows of every class; there are none of class {some(gone)}. "
                "Leave the class out, or pass imbalance='none'."
            )
        return make(n / n.sum(), strength)

    def rows(self, labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """``size`` rows (size,) int64 of labels (n,), so that the classes have their ``shares``, in random order.

        Every class gets its share of the places, rounded up or down by chance, and every place one of the class's rows,
        each as likely as another. Classes without rows get no places.

        >>> cure = Imbalance.of("balanced", torch.tensor([6, 2]))
        >>> drawn = cure.rows(torch.tensor([0, 0, 0, 1, 0, 0, 1, 0]), 10, torch.Generator().manual_seed(0))
        >>> torch.tensor([0, 0, 0, 1, 0, 0, 1, 0])[drawn].bincount()
        tensor([5, 5])
        """
        if self.shares is None:
            raise DataError("rows are drawn by class for imbalance='balanced' only.")
        if labels.dim() != 1 or labels.is_floating_point():
            raise DataError(
                "balanced sampling draws rows by their class, and needs labels (n,); got targets of shape "
                f"{tuple(labels.shape)}. For soft labels use imbalance='weights' or 'logit_adjusted'."
            )
        device = labels.device
        n = torch.bincount(labels, minlength=len(self.shares))
        share = torch.where(n > 0, self.shares.to(device), 0.0)
        # One random offset for all places (systematic sampling) leaves each class its share to within one place.
        u = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).to(device)
        place = (torch.arange(size, device=device) + u) / size * share.sum()
        last = int((n > 0).nonzero().max())
        drawn = torch.searchsorted(share.cumsum(0), place, right=True).clamp(max=last)
        which = torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).to(device)
        offset = torch.minimum((which * n[drawn]).long(), n[drawn] - 1)
        first = n.cumsum(0) - n
        rows = labels.argsort(stable=True)[first[drawn] + offset]
        return rows[torch.randperm(size, generator=generator, device=generator.device).to(device)]


def _weights(prior: Tensor, power: float) -> Imbalance:
    weight = prior**-power
    weight = weight / (prior * weight).sum()
    return Imbalance(weight=weight, factor=weight)


def _balanced(prior: Tensor, power: float) -> Imbalance:
    shares = prior ** (1 - power)
    shares = shares / shares.sum()
    return Imbalance(shares=shares, factor=shares / prior)


def _logit_adjusted(prior: Tensor, tau: float) -> Imbalance:
    return Imbalance(bias=tau * prior.log())


def _up_to_one(power: float) -> float:
    if not 0 <= power <= 1:
        raise ValueError(f"power lies between 0 (nothing is done) and 1 (classes count alike), and is {power}.")
    return power


def _strength(tau: float) -> float:
    if not 0 <= tau <= 10:
        raise ValueError(f"tau lies between 0 (nothing is done) and 10, 1 being usual, and is {tau}.")
    return tau


def _of_weights(power: float = 1.0) -> tuple:
    return _weights, _up_to_one(power)


def _of_balanced(power: float = 1.0) -> tuple:
    return _balanced, _up_to_one(power)


def _of_logit_adjusted(tau: float = 1.0) -> tuple:
    return _logit_adjusted, _strength(tau)


_CURES = {
    "none": lambda: (None, 0.0),
    "weights": _of_weights,
    "logit_adjusted": _of_logit_adjusted,
    "balanced": _of_balanced,
}
