"""Cross-entropy on many machines: torch.distributed's groups and meshes, and the same numbers as on one.

    cross_entropy         of logits whose classes are spread over the ranks of a group (vocabulary-parallel)
    linear_cross_entropy  of a head whose classes are, without its logits; hidden states whole or sequence-parallel
    row_numbers           log-probability, log-sum-exp, entropy, argmax and rank of such rows
    linear_row_numbers    the same of a head
    normaliser            what a mean divides by when its rows are spread over ranks and micro-batches

Every rank of the group calls the function, with its own columns and the same of everything else, and gets the whole
loss: the same bits on every rank. In the backward pass each gets the gradient of what it holds; of what all hold
(hidden states, a learned temperature or weight) all get the whole gradient. Call ``backward`` on every rank, as if
each were alone.

What is wrong on one rank is an error on all of them, in the same call. A rank that dies or never comes is an error of
torch.distributed's on the others, within the timeout of the group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as Placed

from crossent.compute import linear, shards
from crossent.compute.agreement import agreed, check_knobs, is_dense, learned_weights, outline
from crossent.compute.arguments import (
    check_class_weight,
    check_logits,
    check_validate,
    result_dtype,
    target_of,
    under_autocast,
    weights_of_rows,
    whole_loss,
)
from crossent.compute.functional import RowNumbers, numbers_of
from crossent.compute.group import Group, assembled, copied, group_of
from crossent.compute.linear.budget import LINKED, rows_at_a_time
from crossent.compute.linear.columns import needs_columns
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.normaliser import normaliser as normaliser
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.shards import Shard
from crossent.compute.target import Target

__all__ = ["cross_entropy", "linear_cross_entropy", "linear_row_numbers", "normaliser", "row_numbers"]

_EAGER = torch.compiler.disable(
    reason="crossent.parallel asks all ranks at each call how wide their slices are, and a compiled program would have "
    "that number in it. Compile the model up to its hidden states or logits and call the loss outside of it, or leave "
    "out fullgraph=True: the graph has a break at the loss then, and all else is compiled"
)
"""Calls are left to eager mode; with ``fullgraph=True`` torch's error has this sentence."""


@_EAGER
def cross_entropy(
    input: Tensor,
    target: Tensor | Target,
    weight: Tensor | None = None,
    *,
    group: Group | DeviceMesh = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "full",
) -> Tensor:
    """``crossent.cross_entropy`` of logits whose classes are spread over the ranks of a group.

        ℓ_i = log Σ_ranks Σ_j e^{z_ij} - z_{i, y_i}

    Args:
        input: this rank's columns of the logits, (N, own) or (N, own, d1, …): consecutive classes in the order of the
            ranks, as many as it likes on each, none too. Or a ``DTensor`` on a mesh of one dimension that is sharded
            along its classes.
        target: class indices, of all classes, the same on every rank; or a sparse ``Target`` of them; or class
            probabilities of this rank's columns, of input's shape (a ``DTensor`` too).
        weight: a weight (C,) for each class of all, the same on every rank; so is whatever else a loss holds.
        group: the ``ProcessGroup``, or a ``DeviceMesh`` of one dimension; None is all processes, or the mesh of a
            DTensor.
        link: its bias is that of this rank's columns, (own,).
        sample_weight, mask: the same on every rank.
        ignore_index, reduction, label_smoothing, loss, normaliser, empty: as in ``crossent.cross_entropy``.
        validate: ``"full"`` also compares the arguments of all ranks, by their digests.

    Returns:
        The scalar or the rows, as a plain tensor: the same bits on every rank.

    Raises:
        ValueError, TypeError, IndexError: as ``crossent.cross_entropy``, on every rank if on one; and a sentence that
            says which arguments differ between which ranks.

    Accuracy: that of ``crossent.cross_entropy``, in ulps. The last bit may depend on how many ranks there are, as
    float64 sums do on their order; nothing else does. Cost: two gathers forwards, one of a dozen whole numbers and one
    of 24 bytes for each row (of a label; 80 for what reads everything), and none backwards. Against class probabilities
    and a loss that is not linear in the negative log-likelihood there are two small sums more each way. ``Brier`` and
    ``Hinge`` read the logits themselves, and gather them. Memory: as on one machine, of the own columns. Gradients of
    any order, and forward derivatives (``torch.func.jvp``); ``vmap``, ``jacfwd`` and ``hessian`` are refused, and so
    are class weights that are learned with label smoothing. Under ``torch.compile`` the call is left to eager mode,
    which ``fullgraph=True`` forbids.
    Source: docs/algebra.md, "Merge".

    >>> import os, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> cross_entropy(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))  # one rank, which holds all columns
    tensor(0.2395)
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, reduction, label_smoothing, loss, sample_weight, mask, normaliser, empty)
    z, rows, whole, shard, shape, dtype = _logits(input, given, group, link, validate)
    value, row_weight = shards.row_losses(z, rows, whole, link, shard)
    return reduce(value, row_weight, reduction, empty, shape, dtype, normaliser)


@_EAGER
def row_numbers(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    group: Group | DeviceMesh = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    mask: Tensor | None = None,
    validate: str = "full",
) -> RowNumbers:
    """``crossent.row_numbers`` of logits whose classes are spread over the ranks of a group.

    The arguments are those of ``cross_entropy`` of this module; the target must be labels. All ranks get the same bits.
    Argmax and rank count over all classes. Cost: that of ``cross_entropy``, and three small gathers more.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> numbers = row_numbers(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1]))
    >>> numbers.log_prob, numbers.argmax, numbers.rank
    (tensor([-2.2395]), tensor([0]), tensor([1]))
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, "none", label_smoothing, loss, None, mask, None, "zero")
    z, rows, whole, shard, shape, dtype = _logits(input, given, group, link, validate, labels=True)
    return numbers_of(*shards.row_numbers(z, rows, whole, link, shard), rows, shape, dtype)


@_EAGER
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | Target,
    *,
    group: Group | DeviceMesh = None,
    sequence_dim: int | None = None,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """``crossent.linear_cross_entropy`` with a head whose classes are spread over the ranks of a group.

    Args:
        input: hidden states (…, D), the same on every rank; or, with ``sequence_dim``, this rank's slice of them. A
            ``DTensor`` that is replicated or sharded along one of its dimensions says so itself.
        linear_weight: this rank's rows of the head, (own, D): consecutive classes in the order of the ranks, as many as
            it likes on each. Or a ``DTensor`` sharded along its first dimension.
        target: class indices (…) of the whole input, of all classes, the same on every rank; a sparse ``Target`` of
            them; or class probabilities of this rank's columns, (…, own).
        sequence_dim: the dimension of ``input`` along which each rank holds a slice, in the order of the ranks
            (sequence-parallel hidden states).
        linear_bias: this rank's, (own,).
        group, weight, link, sample_weight, mask, validate: as in ``cross_entropy`` of this module.
        budget, chunk_rows and all else: as in ``crossent.linear_cross_entropy``; a budget is for the widest rank.

    Returns:
        The scalar or the rows (…) of the whole input, as a plain tensor: the same bits on every rank.

    Raises:
        ValueError, TypeError, IndexError: as ``cross_entropy`` of this module.

    Every rank gets the gradient of its part of the head. That of hidden states is the sum over the ranks: reduced to
    all, or scattered along ``sequence_dim``; 16-bit ones are added up in float32. Cost: 8 N C D
    flops divided among the ranks, for a mean too; one gather of 24 bytes a row, and a few of each chunk for losses that
    read the columns themselves; one reduction of the hidden states' gradient, and with ``sequence_dim`` one gather of
    hidden states. Memory: as there, and the hidden states of the whole sequence.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_cross_entropy(x, w, torch.tensor([0, 1, 2]))
    tensor(0.2395)
    >>> dist.destroy_process_group()
    """
    ignored = -100 if ignore_index is None else ignore_index
    given = (target, weight, ignored, reduction, label_smoothing, loss, sample_weight, mask, normaliser, empty)
    head = (input, linear_weight, linear_bias)
    ready, shape, dtype = _head(head, given, group, sequence_dim, link, validate, (budget, chunk_rows))
    value, row_weight = shards.linear_row_losses(*ready)
    return reduce(value, row_weight, reduction, empty, shape, dtype, normaliser)


@_EAGER
def linear_row_numbers(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    group: Group | DeviceMesh = None,
    sequence_dim: int | None = None,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    mask: Tensor | None = None,
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> RowNumbers:
    """``crossent.linear_row_numbers`` with a head whose classes are spread over the ranks of a group.

    What reinforcement learning and preference losses need of a model whose head is too large for one rank. The
    arguments are those of ``linear_cross_entropy`` of this module; the target must be labels. All ranks get the same
    bits, of the whole input. Argmax and rank count over all classes, and their logits are made once more for it: with
    gradients 10 N C D flops, divided among the ranks, and three small gathers for each chunk. A link that is trained
    has its gradient, from three more readings.

    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> numbers = linear_row_numbers(torch.eye(3), 2 * torch.eye(3), torch.tensor([0, 1, 0]))
    >>> numbers.log_prob, numbers.rank
    (tensor([-0.2395, -0.2395, -2.2395]), tensor([0, 0, 1]))
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, "none", label_smoothing, loss, None, mask, None, "zero")
    head = (input, linear_weight, linear_bias)
    ready, shape, dtype = _head(head, given, group, sequence_dim, link, validate, (budget, chunk_rows), labels=True)
    return numbers_of(*shards.linear_row_numbers(*ready), ready[3], shape, dtype)


# --- what every rank is asked, and what it goes on with -----------------------------------------------------------


def _logits(
    input: Tensor, given: tuple, group: Group | DeviceMesh, link: Link | None, validate: str, labels: bool = False
) -> tuple[Tensor, Target, Loss, Shard, torch.Size, torch.dtype]:
    """(z, rows, loss, shard, shape, dtype), once all ranks have said that nothing is wrong."""
    wide = 0 if input.dim() < 2 else 1
    input, group = _spread(input, group, wide, "input")
    target, weight, _, reduction, smoothing, loss, *_, normaliser, empty = given = (_local(given[0]), *given[1:])
    own = input.shape[wide] if input.dim() else 0
    shape = torch.Size() if input.dim() < 2 else input.shape[:1] + input.shape[2:]

    def check() -> None:
        check_reduction(reduction, empty, normaliser)
        check_validate(validate)
        check_logits(input)
        if input.dim() == 0:
            raise ValueError("input is a single number; logits have a dimension of classes: (N, C) or (N, C, …).")
        if labels:
            _check_labels(target)
        check_knobs(weight, loss, link, smoothing, own)
        if is_dense(target):  # whose columns are this rank's
            _rows(given, shape, tuple(input.shape), own, validate)

    facts = {
        "the shape of input but for its classes": shape,
        "the dtype of input": input.dtype,
        "whether input needs a gradient": input.requires_grad,
        "link": outline(link),
        "which weights are learned": learned_weights(weight, loss, given[6]),
    }
    (sizes,) = zip(*agreed(check, facts, given, validate, [own], input.device, group), strict=True)
    shard = Shard(sizes, group)
    rows = _rows(given, shape, tuple(input.shape), own if is_dense(target) else shard.classes, validate)
    z = input.reshape(1, own, 1) if wide == 0 else input.reshape(input.shape[0], own, shape[1:].numel())
    return z, rows, _whole_loss(given, shard.classes, validate), shard, shape, result_dtype(input)


def _head(
    head: tuple[Tensor, Tensor, Tensor | None],
    given: tuple,
    group: Group | DeviceMesh,
    sequence_dim: int | None,
    link: Link | None,
    validate: str,
    chunks: tuple[int | str | None, int | None],
    labels: bool = False,
) -> tuple[tuple, torch.Size, torch.dtype]:
    """((x, w, bias, rows, loss, link, size, shard), shape, dtype), once all ranks have said that nothing is wrong."""
    input, linear_weight, linear_bias = head
    linear_weight, group = _spread(linear_weight, group, 0, "linear_weight")
    linear_bias = None if linear_bias is None else _spread(linear_bias, group, 0, "linear_bias")[0]
    input, sequence_dim = _hidden(input, sequence_dim)
    target, weight, _, reduction, smoothing, loss, *_, normaliser, empty = given = (_local(given[0]), *given[1:])
    own = linear_weight.shape[0] if linear_weight.dim() else 0
    along = None if sequence_dim is None or input.dim() < 2 else sequence_dim % input.dim()
    slice_size = 0 if along is None else input.shape[along]

    def check() -> None:
        check_reduction(reduction, empty, normaliser)
        check_validate(validate)
        check_logits(input, "hidden states")
        if linear_weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != linear_weight.shape[-1]:
            raise ValueError(
                f"input (…, D) and linear_weight (own, D) must agree in D; got {tuple(input.shape)} and "
                f"{tuple(linear_weight.shape)}."
            )
        if sequence_dim is not None and (along is None or along == input.dim() - 1):
            raise ValueError(
                f"sequence_dim={sequence_dim} must be a dimension of input but its last, whose shape is "
                f"{tuple(input.shape)}."
            )
        if linear_bias is not None and linear_bias.shape != (own,):
            raise ValueError(f"linear_bias must have shape ({own},); got {tuple(linear_bias.shape)}.")
        if labels:
            _check_labels(target)
        check_knobs(weight, loss, link, smoothing, own)
        if is_dense(target):
            # Of how many rows the whole has nobody knows yet if they are spread.
            of_rows = input.shape[:-1] if along is None or isinstance(target, Target) else target.shape[:-1]
            _rows(given, of_rows, (*of_rows, own), own, validate)

    others = [size for at, size in enumerate(input.shape) if at != along]
    facts = {
        "the shape of input": (others, along),
        "the dtype of input": (input.dtype, linear_weight.dtype),
        "which of input, linear_weight and linear_bias are there and need a gradient": [
            None if x is None else x.requires_grad for x in (input, linear_weight, linear_bias)
        ],
        "link": outline(link),
        "which weights are learned": learned_weights(weight, loss, given[6]),
        "budget and chunk_rows": chunks,
    }
    told = agreed(check, facts, given, validate, [own, slice_size], input.device, group)
    sizes, slices = zip(*told, strict=True)
    shard = Shard(sizes, group)
    input, linear_weight, linear_bias = under_autocast(input, linear_weight, linear_bias)
    x = copied(input, group) if along is None else assembled(input, along, slices, group)
    shape = x.shape[:-1]
    columns = own if is_dense(target) else shard.classes
    rows = linear.counting(_rows(given, shape, (*shape, columns), columns, validate))
    whole = _whole_loss(given, shard.classes, validate)
    in_float64 = link is not None or needs_columns(rows, whole, link)
    size = rows_at_a_time(*chunks, max(1, *sizes), LINKED if in_float64 else x.element_size())
    x = x.reshape(-1, x.shape[-1])
    return (x, linear_weight, linear_bias, rows, whole, link, size, shard), shape, result_dtype(input)


def _check_labels(target: Tensor | Target) -> None:
    if is_dense(target) or (isinstance(target, Target) and target.index is not None and target.index.shape[1] != 1):
        raise TypeError("one label in each row is ranked: the target must be class indices.")


def _rows(given: tuple, shape: torch.Size, like_logits: tuple[int, ...], classes: int, validate: str) -> Target:
    target, _, ignore_index, _, _, _, sample_weight, mask, _, _ = given
    row_weight, mask = weights_of_rows(sample_weight, mask, shape, validate)
    rows = target_of(target, like_logits, shape, classes, ignore_index, mask, validate)
    return rows.weighted(row_weight, mask)


def _whole_loss(given: tuple, classes: int, validate: str) -> Loss:
    _, weight, _, _, label_smoothing, loss, *_ = given
    whole = whole_loss(loss, weight, label_smoothing, classes)
    if validate == "full":
        check_class_weight(whole)
    return whole


# --- groups, meshes and tensors that know theirs ------------------------------------------------------------------


def _spread(x: Tensor, group: Group | DeviceMesh, classes: int, name: str) -> tuple[Tensor, Group]:
    """The columns (or rows of a head) of this rank, and the group that has all."""
    if not isinstance(x, DTensor):
        return x, group_of(group)
    if x.device_mesh.ndim != 1 or x.placements[0] != Placed(classes):
        raise ValueError(
            f"{name} must be a DTensor on a mesh of one dimension, sharded along its classes, Shard({classes}); it is "
            f"{x.placements} on {x.device_mesh}. Rows of other ranks are no matter of this function: pass to_local() "
            "of what is sharded along its classes too, with group=."
        )
    if group is not None and group_of(group) != x.device_mesh.get_group():
        raise ValueError(f"{name} is a DTensor on a mesh that is not the one of group=; leave group out.")
    return x.to_local(), x.device_mesh.get_group()


def _local(x: Tensor | Target) -> Tensor | Target:
    """This rank's columns of class probabilities, or labels that all ranks have."""
    return x.to_local() if isinstance(x, DTensor) else x


def _hidden(x: Tensor, sequence_dim: int | None) -> tuple[Tensor, int | None]:
    """Hidden states as a plain tensor, and along which dimension they are spread."""
    if not isinstance(x, DTensor):
        return x, sequence_dim
    (placement, *others) = x.placements
    if others or not (isinstance(placement, Replicate) or type(placement) is Placed) or sequence_dim is not None:
        raise ValueError(
            f"hidden states as a DTensor must be replicated, or sharded along one dimension (which is then the "
            f"sequence_dim), on a mesh of one dimension; they are {x.placements} on {x.device_mesh}."
        )
    return x.to_local(), placement.dim if isinstance(placement, Placed) else None
