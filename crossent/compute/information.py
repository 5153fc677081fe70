"""Entropy and KL divergence of distributions, given as what they are.

A tensor of numbers does not say whether it holds logits, probabilities, log-probabilities or counts, and guessing
wrong gives a plausible number. So ``given`` says it. Everything is worked out from log-probabilities in float64.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide

Given = Literal["logits", "probabilities", "log_probabilities", "counts"]
Unit = Literal["nats", "bits"]
_NATS = {"nats": 1.0, "bits": math.log(2.0)}


def entropy(input: Tensor, *, given: Given, dim: int = -1, unit: Unit = "nats") -> Tensor:
    """Entropy H(p) = -Σ p log p: the cross-entropy of a distribution against itself, the least any model can reach.

    ``input`` holds distributions along ``dim``, as ``given`` names them; the result lacks that dimension and is
    float32, or float64 for float64 input. 0 log 0 = 0. Errors: ``ValueError`` for a negative probability or a row
    that is no distribution. Accuracy: float64 inside, rounded once (tests/compute/test_information.py).
    Source: Shannon 1948, §6.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]), given="probabilities", unit="bits")
    tensor(1.5000)
    """
    log_p = log_probabilities(input, given, dim, "input")
    p = log_p.exp()
    summand = torch.where(p == 0, 0.0, p * torch.where(p == 0, 0.0, log_p))
    return (-summand.sum(dim) / _nats(unit)).to(_out(input))


def kl_divergence(
    input: Tensor, other: Tensor, *, given: Given | tuple[Given, Given], dim: int = -1, unit: Unit = "nats"
) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q): what it costs to believe q (``other``) where p (``input``) is true.

    ``given`` names what both hold, or is a pair of names. The two broadcast; the result lacks ``dim`` and is float32,
    or float64 if either input is. It is 0 only for equal distributions, infinite if q is 0 somewhere p is not, and
    H(p, q) = H(p) + KL(p ‖ q). Note the order: PyTorch's ``kl_div`` takes log q first.
    Accuracy: each term is q - p + p log(p / q), which is never negative, so close distributions do not cancel.
    Source: Kullback & Leibler 1951, eq. 2.4.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> kl_divergence(p, q, given="probabilities")
    tensor(0.1438)
    """
    given_p, given_q = (given, given) if isinstance(given, str) else given
    log_p = log_probabilities(input, given_p, dim, "input")
    log_q = log_probabilities(other, given_q, dim, "other")
    p, q = log_p.exp(), log_q.exp()
    absent = p == 0
    # log p - log q where p is there; a harmless 0 where it is not, so that no gradient meets -inf - -inf.
    ratio = torch.where(absent, 0.0, torch.where(absent, 0.0, log_p) - torch.where(absent, 0.0, log_q))
    terms = torch.where(absent, q, p * (ratio + torch.expm1(-ratio)))
    return (terms.sum(dim) / _nats(unit)).to(torch.promote_types(_out(input), _out(other)))


def log_probabilities(input: Tensor, given: Given, dim: int, name: str) -> Tensor:
    """Log-probabilities along ``dim``, in float64, from whatever ``given`` says the tensor holds."""
    if given == "logits":
        return torch.log_softmax(input.to(wide(input)), dim)
    if given == "log_probabilities":
        log_p = input.to(wide(input))
        _refuse_unless_one(log_p.exp().sum(dim), input, name)
        return log_p
    if given not in ("probabilities", "counts"):
        raise ValueError(
            f"given must be 'logits', 'probabilities', 'log_probabilities' or 'counts'; got {given!r}. "
            "It is named and never guessed, because a wrong guess looks like a right number."
        )
    p = input.to(wide(input))
    if bool((p < 0).any()):
        at = (p < 0).nonzero()[0].tolist()
        raise ValueError(
            f"{name} holds negative {given}, first at {tuple(at)}: {float(p[tuple(at)])}. Are these logits?"
        )
    total = p.sum(dim, keepdim=True)
    if given == "probabilities":
        _refuse_unless_one(total.squeeze(dim), input, name)
    elif bool((total == 0).any()):
        raise ValueError(f"{name} holds counts that are all 0 along dim {dim}: nothing was counted there.")
    return torch.log(p / total if given == "counts" else p)


def _refuse_unless_one(total: Tensor, input: Tensor, name: str) -> None:
    # Rounding v numbers near 1/v to their dtype moves the sum by at most half an ulp of 1 and a little.
    tolerance = 4 * torch.finfo(input.dtype).eps if input.dtype.is_floating_point else 0.0
    wrong = ~((total - 1).abs() <= max(tolerance, 1e-6))
    if bool(wrong.any()):
        at = wrong.nonzero()[0].tolist()
        found = float(total[tuple(at)])
        raise ValueError(
            f"{name} should hold distributions that sum to 1; {int(wrong.sum())} do not, first at "
            f"{tuple(at)}: {found}. "
            "Pass given='logits' or given='counts' if that is what they are."
        )


def _nats(unit: str) -> float:
    if unit not in _NATS:
        raise ValueError(f"unit must be 'nats' or 'bits'; got {unit!r}.")
    return _NATS[unit]


def _out(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32
