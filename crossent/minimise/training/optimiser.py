"""How weights are moved: optimisers by name, with weight decay for matrices alone, and the steps round them.

AdamW, SGD and L-BFGS are torch's; schedule-free AdamW is its authors' (Defazio et al. 2024). Muon (Jordan et al. 2024)
moves matrices along their momentum with all singular values brought to one, and leaves heads, biases and embeddings to
AdamW; torch's own takes matrices alone, so that members side by side and convolutions would be left out, and the one
here takes them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from crossent.errors import require
from crossent.minimise.recipe import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the fifth-order iteration that Muon's authors chose for its slope at 0."""


def optimisers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The optimisers of a recipe for all parameters that want a gradient: one, or two with Muon."""
    wanted = {name: p for name, p in network.named_parameters() if p.requires_grad}
    head = _head(network)
    matrices = {name: p for name, p in wanted.items() if _is_matrix(network, name, p)}
    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = [
        {"params": [*matrices.values()], "weight_decay": decay},
        {"params": [p for name, p in wanted.items() if name not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "adamw":
        return [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=True)]
    if recipe.optimiser == "sgd":
        return [torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)]
    if recipe.optimiser == "schedulefree":
        schedulefree = require("schedulefree", "minimise", "the optimiser 'schedulefree'")
        return [schedulefree.AdamWScheduleFree(groups, lr=rate, betas=(0.9, 0.99), warmup_steps=100)]
    if recipe.optimiser == "lbfgs":
        return [
            torch.optim.LBFGS([*wanted.values()], lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe")
        ]
    hidden = {name: p for name, p in matrices.items() if p is not head}
    rest = [
        {"params": [p for name, p in matrices.items() if name not in hidden], "weight_decay": decay},
        groups[-1] if len(groups) > 1 else {"params": [], "weight_decay": 0.0},
    ]
    rest = [group for group in rest if group["params"]]
    found: list[torch.optim.Optimizer] = []
    if hidden:
        found.append(Muon([*hidden.values()], lr=rate, weight_decay=decay))
    if rest:
        found.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99)))
    return found


class Muon(torch.optim.Optimizer):
    """Momentum with its singular values brought to one, for tensors (…, rows, columns) and convolutions.

    A step is ``-lr · 0.2 · √max(rows, columns) · UVᵀ`` where ``USVᵀ`` is the momentum: as large as AdamW's, so that
    both take one learning rate (Liu et al. 2025, eq. 4). UVᵀ comes from five Newton-Schulz iterations.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 2e-3, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        if closure is not None:
            raise TypeError("Muon takes no closure: call step() after backward().")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                direction = p.grad.lerp(momentum, group["momentum"])  # Nesterov's
                matrices = direction.flatten(1) if p.dim() == 4 else direction
                step = orthogonal(matrices).view_as(p)
                size = 0.2 * math.sqrt(max(matrices.shape[-2:]))
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"] * size)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """UVᵀ, nearly, of matrices USVᵀ (…, rows, columns): singular values come out between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def rate(recipe: Recipe, done: float) -> float:
    """The share of the learning rate after a share ``done`` of all steps, from 0 to 1."""
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if recipe.schedule == "one-cycle":  # up for three tenths, then down (Smith & Topin 2018)
        up = 0.3
        if done < up:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * done / up))
        return 0.5 * (1 + math.cos(math.pi * min((done - up) / (1 - up), 1.0))) + 1e-4
    return 1.0


def sharpen(network: nn.Module, radius: float, again: Callable[[], Any]) -> None:
    """Replace the gradients by those at the worst point near by (Foret et al. 2021, eq. 2 and 3).

    The weights go up the gradient by ``radius``, ``again`` computes the gradients there, and the weights come back to
    the same bits. It costs a second forward and backward pass.
    """
    moved = [p for p in network.parameters() if p.grad is not None]
    kept = [p.detach().clone() for p in moved]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in moved]))
    with torch.no_grad():
        for p in moved:
            p.add_(p.grad * (radius / (norm + 1e-12)))
    again()
    with torch.no_grad():
        for p, before in zip(moved, kept, strict=True):
            p.copy_(before)


def _is_matrix(network: nn.Module, name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix that multiplies features: not a bias, a scale of a norm, or an embedding."""
    owner = network.get_submodule(name.rpartition(".")[0]) if "." in name else network
    biases = getattr(network, "biases", None)
    return p.dim() >= 2 and not isinstance(owner, nn.Embedding) and owner is not biases


def _head(network: nn.Module) -> Tensor | None:
    """The last matrix, which makes the logits."""
    weights = getattr(network, "weights", None)
    if isinstance(weights, nn.ParameterList):
        return weights[-1]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1].weight if linear else None
