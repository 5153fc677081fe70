"""Labels that may be wrong: which they are, and a loss that believes them less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.compute.losses import Loss
from crossent.compute.stats import Stats
from crossent.errors import DataError
from crossent.record import Table


def suspects(
    log_p: Tensor, labels: Tensor, classes: Sequence[str], rows: Sequence[Any] | None = None, most: int | None = None
) -> Table:
    """Rows whose label may be mistaken, the most suspicious first: confident learning on held-out probabilities.

    A row is suspect if a class other than its label is the most probable one, and was given as much as that class
    usually gets where it is the label: p_c ≥ the mean of p_c over the rows labelled c. So a class that the network is
    never sure of needs less to be believed, and a shift of all probabilities of a class changes little. This is the
    rule by which ``crossent evaluate`` marks its costliest rows, for all rows.

    Args:
        log_p: log-probabilities (n, C) by networks that had not seen the row; rows of NaN, which nobody held out, are
            left out, and so is their label.
        labels: the classes (n,) that the data give, int64.
        classes: the names (C,) of the classes.
        rows: what to call the rows (n,); their numbers if not given.
        most: how many rows to list at most.

    Returns:
        A table: row, label, probable (the class to look for), p_label and p_probable, and margin, the difference of
        the two, by which the rows are ordered.

    Raises:
        DataError: labels are soft, or shapes differ.

    Wrong labels are among the suspects, and so are rows that are only hard: look before you leave out. Cost: one pass.
    Source: Northcutt, Jiang & Chuang 2021, eq. 1 and 2, with the most probable class alone as candidate; ranked by
    their normalised margin.

    >>> p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.95, 0.05]], dtype=torch.float64)
    >>> suspects(p.log(), torch.tensor([0, 0, 1, 1]), ("cat", "dog"))
    {'row': [3], 'label': ['dog'], 'probable': ['cat'], 'p_label': [0.05], 'p_probable': [0.95], 'margin': [0.9]}
    """
    if labels.is_floating_point() or labels.shape != log_p.shape[:1]:
        raise DataError(
            "suspects are labels (n,) that disagree with held-out probabilities (n, C); got labels of shape "
            f"{tuple(labels.shape)}, {str(labels.dtype).removeprefix('torch.')}, and log-probabilities of shape "
            f"{tuple(log_p.shape)}. Soft labels say themselves how sure they are."
        )
    if log_p.shape[1] != len(classes):
        raise DataError(f"{len(classes)} classes are named, and there are {log_p.shape[1]} columns of probabilities.")
    known = (~log_p.isnan().any(1)).nonzero().flatten()
    p, y = log_p[known].double().exp(), labels[known]
    own = p.gather(1, y.unsqueeze(1)).squeeze(1)
    count = torch.bincount(y, minlength=len(classes))
    usual = torch.zeros(len(classes), dtype=torch.float64).index_add(0, y, own) / count  # of a class without rows: NaN
    most_p, probable = p.max(1)
    found = ((probable != y) & (most_p >= usual[probable])).nonzero().flatten()
    margin = most_p - own
    found = found[margin[found].argsort(descending=True, stable=True)][:most]
    numbers = known[found].tolist()
    return {
        "row": numbers if rows is None else [rows[number] for number in numbers],
        "label": [classes[c] for c in y[found].tolist()],
        "probable": [classes[c] for c in probable[found].tolist()],
        "p_label": _shown(own[found]),
        "p_probable": _shown(most_p[found]),
        "margin": _shown(margin[found]),
    }


def _shown(p: Tensor) -> list[float]:
    """Probabilities to 12 digits: what is beyond them is rounding."""
    return [float(f"{value:.12g}") for value in p.tolist()]


@dataclass(frozen=True)
class Bootstrapped(Loss):
    """β · the cost of the label + (1 - β) · the cost of what the network says itself (Reed et al. 2015, eq. 7, hard).

        ℓ = -β log p_y - (1 - β) log max_j p_j

    A label that the network is sure is wrong pulls with β instead of 1. Not proper: the minimiser has 1 - β more on the
    most probable class. The greatest logit is that of the row as it stands, so nothing flows through the choice.

    (The soft form, with p itself in place of its greatest class, is β NLL + (1 - β) H(p): see ``spelling``. With p
    taken as a constant, as some code has it, its gradient is β times that of the NLL and nothing else.)

    >>> from crossent import cross_entropy
    >>> z = torch.tensor([[2.0, 0.0]])
    >>> cross_entropy(z, torch.tensor([1]), loss=Bootstrapped(0.8))
    tensor(1.7269)
    """

    reads = frozenset({"logits"})

    beta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta, the belief in the label, lies above 0 and is at most 1, and is {self.beta}.")

    def __call__(self, s: Stats) -> Tensor:
        """Σ_k q_k (β nll_k + (1 - β) log1p(Σ e^(z - peak) over all but the greatest))."""
        peak, first = s.logits.max(-1, keepdim=True)
        rest = torch.exp(s.logits - peak).scatter(-1, first, 0.0).sum(-1, keepdim=True)
        own = torch.log1p(rest) + torch.where(s.lse.isnan(), torch.nan, 0.0).unsqueeze(-1)
        return s.over_targets(self.beta * s.nll + (1 - self.beta) * own)
