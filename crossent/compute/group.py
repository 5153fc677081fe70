"""What processes say to each other: torch.distributed's collectives, and the ways back through them.

Two kinds of tensor go through a group. One is *replicated*: every rank holds the same bits, works out the same loss
from it and calls the same backward pass, so that its gradient is the same on every rank too. The other is *partial*:
what counts is the sum over the ranks. Each way forwards has its way back:

    copied    replicated → used by every rank on its own columns; back: the sum of what the ranks send
    total     partial → its sum; back: the sum of what the ranks send, for each of them uses the sum
    shared    the end of a stretch of ``total``: its value is replicated, and each rank sends back its share of the
              one gradient, 1 / P of it, so that the sums below come out right
    joined    slices → the whole; back: one's own slice, as the gradient of a replicated whole is whole everywhere
    assembled slices → the whole, used by every rank on its own columns; back: one's own slice of the sum
    told      anything → that of all ranks; nothing goes back

16-bit gradients are added up in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

Group = Any
"""A torch.distributed.ProcessGroup; None is all processes."""


def gathered(x: Tensor, group: Group) -> Tensor:
    """The tensors of all ranks, (P, *shape), in the order of the ranks: the same bits on each."""
    everyone = x.new_empty((dist.get_world_size(group), *x.shape))
    dist.all_gather(list(everyone), x.detach().contiguous(), group=group)
    return everyone


def refuse_batch(*_: Any) -> NoReturn:
    """Batches of directions are an error: the nth direction of every rank's own columns would be one and the same."""
    raise NotImplementedError(
        "torch.func.vmap, and what is made of it (jacfwd, jacrev, hessian), is not possible where classes lie on "
        "several ranks: all ranks would move columns of their own at once, and what comes out would be no derivative "
        "by any of them. Write a loop, and torch.func.grad or jvp for each direction; a direction is a vector over the "
        "columns of all ranks, of which each passes its part."
    )


def refuse_batches() -> None:
    """The same before anything is read."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack):
        refuse_batch()


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum over the ranks; 16-bit tensors are added up in float32."""
    narrow = x.dtype in (torch.float16, torch.bfloat16)
    whole = x.detach().to(torch.float32) if narrow else x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, group=group)
    return whole.to(x.dtype)


def concatenated(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
    """The slices of all ranks one after the other along ``dim``; ``sizes`` may differ and may be 0."""
    most = max(sizes)
    slices = x.detach().movedim(dim, 0)
    padded = slices.new_zeros((most, *slices.shape[1:]))
    padded[: slices.shape[0]] = slices
    everyone = gathered(padded, group)
    whole = torch.cat([everyone[rank, :size] for rank, size in enumerate(sizes)])
    return whole.movedim(0, dim).contiguous()


def own_slice(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
    """This rank's slice of a whole."""
    rank = dist.get_rank(group)
    return x.narrow(dim, sum(sizes[:rank]), sizes[rank]).contiguous()


class _OverRanks(torch.autograd.Function):
    """A linear function of one tensor; what else it is given is for the way back too, and for tangents."""

    def __init_subclass__(cls) -> None:
        cls.jvp = staticmethod(lambda ctx, tangent, *_: cls.apply(tangent, *ctx.rest))  # type: ignore[method-assign]
        cls.vmap = staticmethod(refuse_batch)  # type: ignore

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.rest = inputs[1:]


class _Copied(_OverRanks):
    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Collected.apply(g, *ctx.rest), None


class _Collected(_OverRanks):
    """The way back of ``_Copied``: a sum whose own way back is a copy."""

    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Copied.apply(g, *ctx.rest), None


class _Total(_OverRanks):
    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return summed(x, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(g, *ctx.rest), None


class _Shared(_OverRanks):
    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Divided.apply(g, *ctx.rest), None


class _Divided(_OverRanks):
    """The way back of ``_Shared``: a share of a replicated gradient."""

    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return x / dist.get_world_size(group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _Total.apply(g, *ctx.rest) / dist.get_world_size(*ctx.rest), None


class _Joined(_OverRanks):
    @staticmethod
    def forward(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
        return concatenated(x, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return _Own.apply(g, *ctx.rest), None, None, None


class _Own(_OverRanks):
    """The way back of ``_Joined``."""

    @staticmethod
    def forward(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
        return own_slice(x, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return _Joined.apply(g, *ctx.rest), None, None, None


class _Assembled(_OverRanks):
    @staticmethod
    def forward(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
        return concatenated(x, dim, sizes, group)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return _Scattered.apply(g, *ctx.rest), None, None, None


class _Scattered(_OverRanks):
    """The way back of ``_Assembled``: reduce and scatter, in one collective where the slices are equal."""

    @staticmethod
    def forward(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
        if len(set(sizes)) > 1 or not sizes[0]:
            return own_slice(summed(x, group), dim, sizes, group)
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        slices = x.movedim(dim, 0).to(torch.float32 if narrow else x.dtype).contiguous()
        own = slices.new_empty((sizes[0], *slices.shape[1:]))
        dist.reduce_scatter(own, list(slices.split(sizes[0])), group=group)
        return own.to(x.dtype).movedim(0, dim).contiguous()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        return _Assembled.apply(g, *ctx.rest), None, None, None


class _Told(_OverRanks):
    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return gathered(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, None]:
        return None, None


def told(x: Tensor, group: Group) -> Tensor:
    """The tensors of all ranks, (P, *shape), in the order of the ranks, within functions that are differentiated."""
    return _Told.apply(x.detach(), group)


def copied(x: Tensor, group: Group) -> Tensor:
    """A replicated tensor that every rank goes on to use on columns of its own."""
    return _Copied.apply(x, group)


def total(x: Tensor, group: Group) -> Tensor:
    """The sum of partial tensors, which every rank goes on to use on columns of its own."""
    return _Total.apply(x, group)


def shared(x: Tensor, group: Group) -> Tensor:
    """A sum of partial tensors, from here on replicated."""
    return _Shared.apply(x, group)


def joined(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
    """The whole of slices along ``dim``, from here on replicated."""
    return _Joined.apply(x, dim, sizes, group)


def assembled(x: Tensor, dim: int, sizes: Sequence[int], group: Group) -> Tensor:
    """The whole of slices along ``dim``, which every rank goes on to use on columns of its own."""
    return _Assembled.apply(x, dim, sizes, group)


def group_of(group: Group | DeviceMesh) -> Group:
    """The process group that is meant, of a mesh of one dimension too."""
    if not dist.is_initialized():
        raise RuntimeError(
            "torch.distributed is not initialised: start with torchrun and call torch.distributed.init_process_group "
            "first. On one process use crossent.cross_entropy or crossent.linear_cross_entropy."
        )
    if not isinstance(group, DeviceMesh):
        return group
    if group.ndim != 1:
        raise ValueError(
            f"the mesh has {group.ndim} dimensions, {group.mesh_dim_names}; pass the one along which the classes are "
            "spread, as mesh['tp']."
        )
    return group.get_group()
