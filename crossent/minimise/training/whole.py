"""A batch that processes share, seen whole by whatever network: batch norm and dropout as one process has them.

What makes a row depend on its batch is asked of torch within ``Whole``: batch normalisation sums over the rows of all
processes (Ioffe & Szegedy 2015, alg. 1, of the whole batch), and dropout tosses the coins of all rows and takes those
of its own. So a network learns what it would have learnt alone, but for the rounding of sums.

Attention and recurrent layers toss coins inside one function of torch, whose steps are taken one by one here: softmax,
coins, values (Vaswani et al. 2017, eq. 1), and one layer after another. Out of reach, and drawn by each process, is
what a GPU draws, ``alpha_dropout``, and packed sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_OF_CHANNELS = (functional.dropout1d, functional.dropout2d, functional.dropout3d)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


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
        if func is functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._heads(func, *args, **kwargs)
        if getattr(func, "__name__", "") in _RECURRENT and len(args) == 9 and isinstance(args[3], bool):
            return self._recurrent(func, *args)  # of a packed sequence the fourth are the parameters
        return func(*args, **kwargs)

    def _tosses(self, x: Tensor, p: float, rows: int = 0) -> bool:
        """Whether coins are tossed for all rows, where dimension ``rows`` of x is that of the rows here."""
        reached = self.coins is not None and x.device.type == "cpu" and x.dim() > 1
        return reached and 0 < p < 1 and x.shape[rows] == self.here

    def _kept(self, shape: tuple[int, ...], p: float, like: Tensor, rows: int = 0) -> Tensor:
        """What ``like`` is multiplied by: 0 with probability p, else 1 / (1 − p). Torch tosses in memory's order."""
        whole = (*shape[:rows], self.rows, *shape[rows + 1 :])
        order = list(range(len(whole)))
        if shape == like.shape:
            order.sort(key=like.stride, reverse=True)
        kept = torch.empty_permuted(whole, order, dtype=like.dtype)
        kept.bernoulli_(1 - p, generator=self.coins).div_(1 - p)
        return kept[(slice(None),) * rows + (self.mine,)]

    def _dropout(
        self, func: Callable[..., Any], x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or not self._tosses(x, p):
            return func(x, p, training, inplace)
        each = x.shape[1:] if func is functional.dropout else (x.shape[1], *(1 for _ in x.shape[2:]))
        kept = self._kept((len(x), *each), p, x)
        return x.mul_(kept) if inplace else x * kept

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not self._tosses(query, dropout_p):
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
        seen = query @ key.transpose(-2, -1) * (query.size(-1) ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = seen.new_ones(seen.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            seen = seen.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            seen = seen + attn_mask
        blind = (seen == -math.inf).all(-1, keepdim=True)  # who may look at nothing sees 0
        weights = seen.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        return (weights * self._kept(weights.shape, dropout_p, weights)) @ value

    def _heads(
        self, func: Any, query: Tensor, key: Tensor, value: Tensor, size: int, heads: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run torch's own code of it, with the coins of the whole batch."""

        def dropout(weights: Tensor, p: float) -> Tensor:  # (rows · heads, queries, keys)
            return self._dropout(functional.dropout, weights.unflatten(0, (-1, heads)), p).flatten(0, 1)

        asked = {"has_torch_function": lambda _: False}  # it would ask here again
        ours = asked | {"dropout": dropout, "scaled_dot_product_attention": self._attention}
        again = FunctionType(func.__code__, func.__globals__ | ours, func.__name__, func.__defaults__)
        return again(query, key, value, size, heads, *args, **kwargs)

    def _recurrent(
        self,
        func: Callable[..., Any],
        x: Tensor,
        start: Any,
        parameters: list[Tensor],
        biases: bool,
        layers: int,
        p: float,
        training: bool,
        both_ways: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        rows = 0 if batch_first else 1
        if not training or layers == 1 or not self._tosses(x, p, rows):
            return func(x, start, parameters, biases, layers, p, training, both_ways, batch_first)
        each, ways, ends = len(parameters) // layers, 1 + both_ways, []
        for layer in range(layers):
            of_layer = parameters[each * layer : each * (layer + 1)]
            here = slice(ways * layer, ways * (layer + 1))
            begin = start[here] if isinstance(start, Tensor) else tuple(state[here] for state in start)
            x, *end = func(x, begin, of_layer, biases, 1, 0.0, training, both_ways, batch_first)
            ends.append(end)
            if layer < layers - 1:
                x = x * self._kept(x.shape, p, x, rows)
        return x, *(torch.cat(state) for state in zip(*ends, strict=True))

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
