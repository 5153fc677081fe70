"""Rows → number: none, sum or mean, with the divisor said and the empty case decided."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossent.compute.target import visible

REDUCTIONS = ("none", "sum", "mean")
EMPTY = ("zero", "nan", "raise")


def reduce(
    value: Tensor,
    weight: Tensor | None,
    reduction: str,
    empty: str,
    shape: torch.Size,
    dtype: torch.dtype,
    normaliser: float | Tensor | None = None,
) -> Tensor:
    """Reduce row losses (n,) with row weights (n,); ``mean`` is Σ value / Σ weight, or / normaliser if there is one.

    ``weight`` None is a weight of 1 in every row.

    The sums are in the rows' own wide dtype and rounded to ``dtype`` once, at the end: a million rows of float16
    logits neither overflow nor stop counting. If no row has weight, the mean is 0 and still connected to the graph
    (``empty="zero"``), NaN (``"nan"``, PyTorch's answer) or a ``ValueError`` (``"raise"``).
    """
    if reduction == "none":
        return value.reshape(shape).to(dtype)
    if reduction == "sum":
        return value.sum().to(dtype)
    total: float | Tensor
    if normaliser is not None:
        total = normaliser.to(value) if isinstance(normaliser, Tensor) else normaliser
    else:
        total = value.numel() if weight is None else weight.sum()
    nothing = isinstance(total, (int, float)) and total == 0
    if isinstance(total, Tensor) and visible(total) and (empty == "raise" or total.device.type == "cpu"):
        nothing = bool(total == 0)
    if nothing and normaliser is not None and visible(value) and bool(value.detach().sum() != 0):
        raise ValueError(
            "normaliser is 0, and this batch has rows to be divided by it: it is the number of rows that count in all "
            "micro-batches and ranks, this batch among them (crossent.parallel.normaliser)."
        )
    if empty == "raise" and nothing:
        raise ValueError(
            "no row has any weight: every target is ignored, the batch is empty, or all class weights are 0. "
            'The mean of nothing is undefined; pass empty="zero" to make it 0.'
        )
    if empty == "zero" and isinstance(total, Tensor):
        total = torch.where(total == 0, 1.0, total)
    elif empty == "zero":
        total = total or 1.0
    return (value.sum() / total).to(dtype)


def check_reduction(reduction: str, empty: str, normaliser: float | Tensor | None = None) -> None:
    """Refuse words that are no reduction, and a normaliser that is no divisor or that nothing would be divided by."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}.")
    if empty not in EMPTY:
        raise ValueError(f"empty must be one of {', '.join(map(repr, EMPTY))}; got {empty!r}.")
    if normaliser is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"normaliser is what a mean divides by, and with reduction={reduction!r} it would be unused: leave it out, "
            'or pass reduction="mean".'
        )
    if isinstance(normaliser, Tensor):
        if normaliser.dim() != 0 or normaliser.requires_grad:
            raise ValueError(
                f"normaliser must be one number without a gradient; it has shape {tuple(normaliser.shape)}, "
                f"requires_grad={normaliser.requires_grad}."
            )
        if normaliser.device.type != "cpu":
            return  # a look would wait for the device
    if isinstance(normaliser, Tensor) and not visible(normaliser):
        return
    if not torch.compiler.is_compiling() and not 0 <= float(normaliser) < math.inf:
        raise ValueError(f"normaliser must be a finite number, 0 or more; got {float(normaliser)}.")
