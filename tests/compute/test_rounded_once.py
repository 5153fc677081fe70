"""A row that is read twice, for its statistics and as it is, has its two gradients added up before they are rounded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy
from crossent.compute.losses import NLL, Brier, Hinge, Loss, Smoothed
from tests.compare import ulps

N, V = 400, 5
G = torch.Generator().manual_seed(0)
LABELS, SHARES = torch.randint(V, (N,), generator=G), torch.rand(N, V, generator=G)
CLASSES = torch.rand(V, generator=G)


def slope(z: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(of(z), z)[0]


@pytest.mark.parametrize("loss", [Smoothed(0.1, Brier()), NLL() + Brier(), NLL() + Hinge()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["classes", "elements", "head"])
def test_a_loss_that_looks_at_the_row_too(loss: Loss, dtype: torch.dtype, kind: str) -> None:
    z = (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))).to(dtype)
    eye = torch.eye(V)
    of: Callable[[Tensor], Tensor] = {
        "classes": lambda z: cross_entropy(z, LABELS, loss=loss, reduction="sum"),
        "elements": lambda z: binary_cross_entropy_with_logits(z, SHARES, loss=loss, reduction="sum"),
        "head": lambda z: linear_cross_entropy(z, eye.to(z.dtype), LABELS, loss=loss, reduction="sum"),
    }[kind]
    assert ulps(slope(z, of), slope(z.double(), of)) <= 0.51


def test_class_weights_that_are_learned() -> None:
    z = (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))).bfloat16()
    learned = CLASSES.clone().requires_grad_()

    def of(z: Tensor) -> Tensor:
        return cross_entropy(z, LABELS, learned, label_smoothing=0.3, reduction="sum")

    assert ulps(slope(z, of), slope(z.double(), of)) <= 0.51


@pytest.mark.parametrize("loss", [Brier(), NLL() + Brier(), NLL()], ids=str)
def test_no_elements_have_no_loss_whatever_their_weights(loss: Loss) -> None:
    none = torch.zeros(0)
    assert binary_cross_entropy_with_logits(none, none, pos_weight=none, loss=loss) == 0
