"""How hard a loss pulls at the logit of the label: where a network is surely wrong, and where it is surely right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossent.compute import cross_entropy
from crossent.minimise.objective.objective import Objective, OfRange

NEAR = 1e-6
_MOST_CLASSES = 64


def steepness(objective: Objective, near: float = NEAR) -> tuple[float | None, float | None]:
    """|dL/dz_y| where the label has probability ``near``, and where it has 1 - ``near``.

    The loss's own gradient by the kernels that train with it, float64; the other classes share what is left evenly, and
    of classes that a loss treats unequally the largest is given (of more than 64, of 64 of them). Of a number in a
    range the label is the upper end and p the sigmoid of its one logit; codes with several logits give None.

    The NLL pulls by 1 - p: fully at a row that is surely wrong, hardly at one that is surely right. The Brier score
    lets go of both.

    >>> from crossent.minimise.data.task import Task
    >>> three = Task("multi-class", ("a", "b", "c"), "three classes")
    >>> ["%.3g" % slope for slope in steepness(Objective.of(three))]
    ['1', '1e-06']
    >>> ["%.3g" % slope for slope in steepness(Objective.of(three, loss="brier"))]
    ['3e-06', '3e-12']
    """
    if isinstance(objective, OfRange) and objective.columns > 1:
        return None, None
    odds = math.log(near) - math.log1p(-near)
    return _slope(objective, odds), _slope(objective, -odds)


def _slope(objective: Objective, odds: float) -> float:
    if isinstance(objective, OfRange):
        z = torch.tensor([[odds]], dtype=torch.float64, requires_grad=True)
        return float(_gradient(objective.loss(z, torch.ones(1, dtype=torch.float64)), z).abs())
    classes = objective.columns
    label = torch.linspace(0, classes - 1, min(classes, _MOST_CLASSES)).long()
    z = torch.zeros(len(label), classes, dtype=torch.float64)
    z[torch.arange(len(label)), label] = odds + math.log(classes - 1)
    z.requires_grad_()
    value = cross_entropy(z, label, reduction="none", loss=objective.function)
    return float(_gradient(value, z).gather(1, label.unsqueeze(1)).abs().max())


def _gradient(value: Tensor, z: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), z)
    return found
