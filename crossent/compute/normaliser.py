"""What a mean divides by when its rows are spread over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crossent.compute.agreement import agree
from crossent.compute.arguments import weights_of_rows
from crossent.compute.group import Group, group_of, summed
from crossent.compute.target import Target, labels


def normaliser(
    targets: Tensor | Target | float | Sequence[Tensor | Target | float],
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | Sequence[Tensor] | None = None,
    mask: Tensor | Sequence[Tensor] | None = None,
    group: Group | DeviceMesh = None,
    averaged: bool = True,
) -> Tensor:
    """What each micro-batch's loss is divided by, so that the gradient is that of the mean over all rows of all ranks.

        N = Σ_ranks Σ_micro-batches Σ_rows weight            normaliser = N / P if gradients are averaged, else N

    A mean of means is wrong as soon as ranks or micro-batches have different numbers of tokens. Pass the targets of
    *all* micro-batches of the step before its first backward pass, and the result to each of their losses:

        divisor = normaliser([y for _, y in batches])
        for x, y in batches:
            cross_entropy(model(x), y, normaliser=divisor).backward()

    Args:
        targets: the targets of this rank's micro-batches, one or a list: class indices of any shape, exactly as they
            are passed to the loss; a sparse ``Target``; or a number of rows (or a sum of weights) that is known.
        weight, ignore_index, sample_weight, mask: as they are passed to the loss; the last two one for each target.
        group: the processes whose gradients are added up: DDP's process group, FSDP's mesh (of any dimensions), those
            of context parallel with it. None is all processes, or this one alone where torch.distributed is not
            initialised. Ranks with the same rows (a vocabulary-parallel group) may be in it as long as it is
            averaged: they are counted as often as they are divided by.
        averaged: True if gradients of the group are divided by its size P, as DDP and FSDP do; False if they are added.

    Returns:
        A float64 scalar, the same on every rank. The losses of a rank, added up over its micro-batches and averaged
        over the ranks, are the mean of all rows.

    Raises:
        ValueError, TypeError: on every rank if on one.

    Exact in float64: whole numbers up to 2⁵³. Cost: two small collectives.

    >>> first, second = torch.tensor([1, 0, -100, 2]), torch.tensor([1, -100, -100, -100])
    >>> normaliser([first, second])  # without torch.distributed: of the micro-batches
    tensor(4., dtype=torch.float64)
    """
    trouble: Exception | None = None
    counted: Tensor | float = 0.0
    device = torch.device("cpu")
    try:
        each: list[Any] = list(targets) if isinstance(targets, (list, tuple)) else [targets]
        if not each:
            raise ValueError("there are no targets: pass those of every micro-batch of the step.")
        device = next((x.device for x in each if isinstance(x, Tensor)), device)
        weights, masks = _for_each(sample_weight, each, "sample_weight"), _for_each(mask, each, "mask")
        for row in zip(each, weights, masks, strict=True):
            counted = counted + _weight_of(*row, weight, ignore_index)
    except (ValueError, TypeError, IndexError) as wrong:
        trouble = wrong
    groups = _all_groups(group)
    for one in groups:
        agree(trouble, {"averaged": int(averaged)}, [], device, one)
    if trouble is not None:
        raise trouble
    whole = torch.as_tensor(counted, dtype=torch.float64, device=device).detach()
    for one in groups:
        whole = summed(whole, one)
        if averaged:
            whole = whole / dist.get_world_size(one)
    return whole


def _all_groups(group: Group | DeviceMesh) -> list[Group]:
    """One group for each dimension of a mesh; none if this process is alone."""
    if isinstance(group, DeviceMesh):
        return group.get_all_groups()
    if group is None and not dist.is_initialized():
        return []
    return [group_of(group)]


def _for_each(given: Tensor | Sequence[Tensor] | None, targets: list, name: str) -> Iterable[Tensor | None]:
    if given is None:
        return [None] * len(targets)
    listed: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(listed) != len(targets):
        raise ValueError(f"{name} must be one for each target: there are {len(listed)}, and {len(targets)} targets.")
    return listed


def _weight_of(
    target: Tensor | Target | float,
    sample_weight: Tensor | None,
    mask: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
) -> Tensor | float:
    """The weight of all rows of a target, as the losses weigh them."""
    if isinstance(target, (int, float)) or (isinstance(target, Tensor) and target.dim() == 0):
        if not 0 <= float(target) < float("inf"):
            raise ValueError(f"a number of rows is 0 or more and finite; got {float(target)}.")
        return float(target)
    if (isinstance(target, Tensor) and target.is_floating_point()) or (
        isinstance(target, Target) and target.index is None
    ):
        raise TypeError("class probabilities do not say how many rows they are: pass that number (or sum of weights).")
    shape = target.shape if isinstance(target, Tensor) else torch.Size([target.rows])
    row_weight, counts = weights_of_rows(sample_weight, mask, shape, "full")
    if isinstance(target, Tensor):
        # Which labels are classes only class weights could tell here; the loss looks at them.
        classes = 2**31 if weight is None else weight.shape[0]
        target = labels(target.reshape(-1), classes, ignore_index, counts, validate="full")
    rows = target.weighted(row_weight, counts)
    assert rows.index is not None
    q = torch.ones_like(rows.index, dtype=torch.float64) if rows.weight is None else rows.weight.double()
    mass = q.sum(-1)
    held = mass if weight is None else (q * weight.double()[rows.index]).sum(-1)
    each = torch.where(mass == 0, 1.0, held / torch.where(mass == 0, 1.0, mass))
    if rows.row_weight is not None:
        each = each * rows.row_weight
    return (each if rows.live is None else torch.where(rows.live, each, 0.0)).sum()
