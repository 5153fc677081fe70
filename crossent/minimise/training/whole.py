"""A batch that processes share, seen whole by whatever network: batch norm and dropout as one process has them.

What makes a row depend on its batch is asked of torch within ``Whole``: batch normalisation sums over the rows of all
processes (Ioffe & Szegedy 2015, alg. 1, of the whole batch), and dropout tosses the coins of all rows and takes those
of its own. So a network learns what it would have learnt alone, but for the rounding of sums.

What torch does inside one function of its own is out of reach, the dropout of its attention and of its recurrent
layers among it: that is drawn by each process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_OF_CHANNELS = (functional.dropout1d, functional.dropout2d, functional.dropout3d)


class Whole(TorchFunctionMode):
    """Within it x (rows here, …) are rows ``first``, ``first + step``, … of a batch of ``rows``.

    Without ``coins``, a generator that is alike on all processes, dropout is each process's own.
    """

    def __init__(self, fabric: Any, rows: int, coins: torch.Generator | None) -> None:
        super().__init__()
        self.fabric, self.rows, self.coins = fabric, rows, coins
        self.mine = slice(fabric.global_rank, None, fabric.world_size)
        self.here = len(range(rows)[self.mine])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.batch_norm:
            return self._batch_norm(func, *args, **kwargs)
        if func is functional.dropout or func in _OF_CHANNELS:
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(
        self, func: Callable[..., Any], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        reachable = self.coins is not None and x.device.type == "cpu" and x.dim() > 1 and len(x) == self.here
        if not training or not 0 < p < 1 or not reachable:
            return func(x, p, training, inplace)
        each = x.shape[1:] if func is functional.dropout else (x.shape[1], *(1 for _ in x.shape[2:]))
        kept = torch.empty(self.rows, *each, dtype=x.dtype).bernoulli_(1 - p, generator=self.coins).div_(1 - p)
        return x.mul_(kept[self.mine]) if inplace else x * kept[self.mine]

    def _batch_norm(
        self,
        func: Callable[..., Any],
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return func(x, mean, variance, weight, bias, training, momentum, eps)
        over = [dim for dim in range(x.dim()) if dim != 1]
        count = self._sum(x.new_tensor(float(math.prod(x.shape[dim] for dim in over)), dtype=torch.float64))
        count = count.to(torch.float32)
        center = self._sum(x.float().sum(over, keepdim=True)) / count
        apart = x.float() - center
        spread = self._sum(apart.square().sum(over, keepdim=True)) / count
        if mean is not None and variance is not None:
            with torch.no_grad():
                mean.lerp_(center.flatten().to(mean.dtype), momentum)
                unbiased = spread.flatten() * (count / (count - 1).clamp(min=1))
                variance.lerp_(unbiased.to(variance.dtype), momentum)
        scale = (spread + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.view_as(scale)
        said = apart * scale
        return (said if bias is None else said + bias.view_as(scale)).to(x.dtype)

    def _sum(self, x: Tensor) -> Tensor:
        return _Sum.apply(x, self.fabric)


class _Sum(torch.autograd.Function):
    """The sum over all processes. The loss of each is a function of it, and so its gradient is their sum, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fabric: Any) -> Tensor:
        ctx.fabric = fabric
        return fabric.all_reduce(x.clone(), reduce_op="sum")

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return ctx.fabric.all_reduce(gradients[0].contiguous().clone(), reduce_op="sum"), None
