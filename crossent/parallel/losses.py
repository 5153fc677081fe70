"""Losses and row numbers of rows whose classes are spread over ranks."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crossent.compute import shards
from crossent.compute.functional import RowNumbers, numbers_of
from crossent.compute.group import Group
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.reduce import reduce
from crossent.compute.target import Target
from crossent.parallel.asked import EAGER, head_of, logits_of


@EAGER
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
    any order, and forward derivatives (``torch.func.jvp``); ``vmap``, ``jacfwd`` and ``hessian`` are refused. Under
    ``torch.compile`` the call is left to eager mode, which ``fullgraph=True`` forbids.
    Source: docs/algebra.md, "Merge".

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> cross_entropy(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0]))  # one rank, which holds all columns
    tensor(0.2395)
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, reduction, label_smoothing, loss, sample_weight, mask, normaliser, empty)
    z, rows, whole, shard, shape, dtype = logits_of(input, given, group, link, validate)
    value, row_weight = shards.row_losses(z, rows, whole, link, shard)
    return reduce(value, row_weight, reduction, empty, shape, dtype, normaliser)


@EAGER
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

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> numbers = row_numbers(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([1]))
    >>> numbers.log_prob, numbers.argmax, numbers.rank
    (tensor([-2.2395]), tensor([0]), tensor([1]))
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, "none", label_smoothing, loss, None, mask, None, "zero")
    z, rows, whole, shard, shape, dtype = logits_of(input, given, group, link, validate, labels=True)
    return numbers_of(*shards.row_numbers(z, rows, whole, link, shard), rows, shape, dtype)


@EAGER
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

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_cross_entropy(x, w, torch.tensor([0, 1, 2]))
    tensor(0.2395)
    >>> dist.destroy_process_group()
    """
    ignored = -100 if ignore_index is None else ignore_index
    given = (target, weight, ignored, reduction, label_smoothing, loss, sample_weight, mask, normaliser, empty)
    head = (input, linear_weight, linear_bias)
    ready, shape, dtype = head_of(head, given, group, sequence_dim, link, validate, (budget, chunk_rows))
    value, row_weight = shards.linear_row_losses(*ready)
    return reduce(value, row_weight, reduction, empty, shape, dtype, normaliser)


@EAGER
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

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> numbers = linear_row_numbers(torch.eye(3), 2 * torch.eye(3), torch.tensor([0, 1, 0]))
    >>> numbers.log_prob, numbers.rank
    (tensor([-0.2395, -0.2395, -2.2395]), tensor([0, 0, 1]))
    >>> dist.destroy_process_group()
    """
    given = (target, weight, ignore_index, "none", label_smoothing, loss, None, mask, None, "zero")
    head = (input, linear_weight, linear_bias)
    ready, shape, dtype = head_of(head, given, group, sequence_dim, link, validate, (budget, chunk_rows), labels=True)
    return numbers_of(*shards.linear_row_numbers(*ready), ready[3], shape, dtype)
