"""What is timed must be right: loss and gradient against float64 ``F.cross_entropy`` of the same inputs.

A gate that lets everything through proves nothing. ``planted_faults`` hands it right answers with a fault of 1 % and
stops the run if one of them passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from cases import KINDS, Case
from torch import Tensor


class Tolerance(NamedTuple):
    """Relative errors that pass: of the loss, of the gradient entry by entry, and of the gradient's norm.

    An entry is compared at its own size or at the mean size of its row's entries, whichever is greater.
    """

    loss: float
    entry: float
    norm: float


# crossent: 16 ulps of float32 for a loss that was summed over rows; where p is near q the entry q - p keeps the
# absolute error of its terms, and may be a hundred times smaller; 0.51 ulp of bfloat16, whose ulp is at most 2^-7.
# PyTorch: float32 losses and gradients with errors of tens of ulps. In bfloat16 it takes p as the exponential of a
# log-probability with 8 bits, so that single entries are off by a quarter: the norm says that it is the same thing.
TOLERANCE = {
    ("crossent", torch.float32): Tolerance(1e-6, 1e-5, 1e-5),
    ("crossent", torch.bfloat16): Tolerance(1e-6, 0.51 * 2**-7, 0.51 * 2**-7),
    ("torch", torch.float32): Tolerance(1e-5, 1e-4, 1e-4),
    ("torch", torch.bfloat16): Tolerance(0.02, math.inf, 0.1),
}


def refusal(case: Case, who: str, loss: Tensor, dz: Tensor, truth: tuple[Tensor, Tensor]) -> str | None:
    """Why this loss and gradient are not those of the case; None if they are."""
    tolerance = TOLERANCE[who, case.dtype]
    true, gradient = truth
    row = None if case.kind.binary else 1
    error = dz.double() - gradient
    size = torch.maximum(gradient.abs(), gradient.abs().mean(row, keepdim=True))
    found = Tolerance(
        abs(float(loss.double() / true) - 1),
        float((error.abs() / size).max()),
        float(error.norm() / gradient.norm()),
    )
    wrong = [
        f"{name} off by {got:.1e}, {most:.1e} allowed"
        for name, got, most in zip(("loss", "gradient entry", "gradient norm"), found, tolerance, strict=True)
        if not got <= most  # a NaN is refused too
    ]
    return "; ".join(wrong) or None


def both(call: Callable[..., Tensor], leaf: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of one forward and backward."""
    leaf.grad = None
    loss = call(leaf, *given)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def truth_of(case: Case, z: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The same by PyTorch in float64."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in given)
    return both(case.kind.torch, z.double().requires_grad_(), wide)


def planted_faults() -> list[str]:
    """Faults of 1 % in right answers, and why each was refused. Stops the run if one is let through."""
    refused = []
    for (who, dtype), tolerance in TOLERANCE.items():
        if tolerance.norm > 0.01:  # PyTorch's own error is larger than the fault
            continue
        case = Case(KINDS[0], (64, 50), dtype)
        z, *given = case.inputs()
        truth = truth_of(case, z, tuple(given))
        call = case.kind.crossent if who == "crossent" else case.kind.torch
        loss, dz = both(call, z.requires_grad_(), tuple(given))
        untouched = refusal(case, who, loss, dz, truth)
        assert untouched is None, f"the gate refuses {who} in {dtype} as it is: {untouched}"
        tail = dz.clone()
        tail[:, -1] *= 1.01
        faults = {"loss": (1.01 * loss, dz), "gradient": (loss, 1.01 * dz), "last column": (loss, tail)}
        for name, (faulty_loss, faulty_dz) in faults.items():
            why = refusal(case, who, faulty_loss, faulty_dz, truth)
            assert why is not None, f"the gate let a fault of 1 % in the {name} of {who} in {dtype} through"
            refused.append(f"{who} {str(dtype).removeprefix('torch.')}, {name} + 1 %: {why}")
    return refused
