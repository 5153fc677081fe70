"""What every rank is asked before anything is read, and what it goes on with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crossent.compute.agreement import agreed, arguments_told, check_link, is_dense, learned_weights, outline
from crossent.compute.arguments import (
    check_class_weight,
    check_head,
    check_logits,
    check_validate,
    result_dtype,
    target_of,
    under_autocast,
    weights_of_rows,
    whole_loss,
)
from crossent.compute.group import Group, assembled, copied
from crossent.compute.linear.budget import LINKED, rows_at_a_time
from crossent.compute.linear.columns import needs_columns
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.reduce import check_reduction
from crossent.compute.rows import counting
from crossent.compute.shards import Shard
from crossent.compute.target import Target
from crossent.parallel.mesh import hidden_here, local, spread

EAGER = torch.compiler.disable(
    reason="crossent.parallel asks all ranks at each call how wide their slices are, and a compiled program would have "
    "that number in it. Compile the model up to its hidden states or logits and call the loss outside of it, or leave "
    "out fullgraph=True: the graph has a break at the loss then, and all else is compiled"
)
"""Calls are left to eager mode; with ``fullgraph=True`` torch's error has this sentence."""


def logits_of(
    input: Tensor, given: tuple, group: Group | DeviceMesh, link: Link | None, validate: str, labels: bool = False
) -> tuple[Tensor, Target, Loss, Shard, torch.Size, torch.dtype]:
    """(z, rows, loss, shard, shape, dtype), once all ranks have said that nothing is wrong."""
    wide = 0 if input.dim() < 2 else 1
    input, group = spread(input, group, wide, "input")
    target, weight, _, reduction, _, loss, *_, normaliser, empty = given = (local(given[0]), *given[1:])
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
        check_link(link, own)
        if is_dense(target):  # whose columns are this rank's
            _rows(given, shape, tuple(input.shape), own, validate)

    facts = {
        "the shape of input but for its classes": shape,
        "the dtype of input": input.dtype,
        "whether input needs a gradient": input.requires_grad,
        "link": outline(link),
        "which weights are learned": learned_weights(weight, loss, given[6]),
        **arguments_told(given, validate),
    }
    (sizes,) = zip(*agreed(check, facts, validate == "full", [own], input.device, group), strict=True)
    shard = Shard(sizes, group)
    rows = _rows(given, shape, tuple(input.shape), own if is_dense(target) else shard.classes, validate)
    z = input.reshape(1, own, 1) if wide == 0 else input.reshape(input.shape[0], own, shape[1:].numel())
    return z, rows, _whole_loss(given, shard.classes, validate), shard, shape, result_dtype(input)


def head_of(
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
    linear_weight, group = spread(linear_weight, group, 0, "linear_weight")
    linear_bias = None if linear_bias is None else spread(linear_bias, group, 0, "linear_bias")[0]
    input, sequence_dim = hidden_here(input, sequence_dim)
    target, weight, _, reduction, _, loss, *_, normaliser, empty = given = (local(given[0]), *given[1:])
    own = linear_weight.shape[0] if linear_weight.dim() else 0
    along, slice_size = sliced_along(input, sequence_dim)

    def check() -> None:
        check_reduction(reduction, empty, normaliser)
        check_validate(validate)
        check_head(input, linear_weight, linear_bias, sliced=True)
        check_sequence(input, sequence_dim, along)
        if labels:
            _check_labels(target)
        check_link(link, own)
        if is_dense(target):
            # Of how many rows the whole has nobody knows yet if they are spread.
            of_rows = input.shape[:-1] if along is None or isinstance(target, Target) else target.shape[:-1]
            _rows(given, of_rows, (*of_rows, own), own, validate, classes_last=True)

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
        **arguments_told(given, validate),
    }
    told = agreed(check, facts, validate == "full", [own, slice_size], input.device, group)
    sizes, slices = zip(*told, strict=True)
    shard = Shard(sizes, group)
    input, linear_weight, linear_bias = under_autocast(input, linear_weight, linear_bias)
    x = copied(input, group) if along is None else assembled(input, along, slices, group)
    shape = x.shape[:-1]
    columns = own if is_dense(target) else shard.classes
    rows = _rows(given, shape, (*shape, columns), columns, validate, classes_last=True)
    whole = _whole_loss(given, shard.classes, validate)
    in_float64 = link is not None or needs_columns(rows, whole, link)
    size = rows_at_a_time(*chunks, max(1, *sizes), LINKED if in_float64 else x.element_size())
    x = x.reshape(-1, x.shape[-1])
    return (x, linear_weight, linear_bias, rows, whole, link, size, shard), shape, result_dtype(input)


def sliced_along(input: Tensor, sequence_dim: int | None) -> tuple[int | None, int]:
    """Along which dimension of hidden states each rank holds a slice, and how long this rank's is."""
    along = None if sequence_dim is None or input.dim() < 2 else sequence_dim % input.dim()
    return along, 0 if along is None else input.shape[along]


def check_sequence(input: Tensor, sequence_dim: int | None, along: int | None) -> None:
    """Refuse a dimension that is none of a sequence."""
    if sequence_dim is not None and (along is None or along == input.dim() - 1):
        raise ValueError(
            f"sequence_dim={sequence_dim} must be a dimension of input but its last, whose shape is "
            f"{tuple(input.shape)}."
        )


def _check_labels(target: Tensor | Target) -> None:
    if is_dense(target) or (isinstance(target, Target) and target.index is not None and target.index.shape[1] != 1):
        raise TypeError("one label in each row is ranked: the target must be class indices.")


def _rows(
    given: tuple,
    shape: torch.Size,
    like_logits: tuple[int, ...],
    classes: int,
    validate: str,
    classes_last: bool = False,
) -> Target:
    target, _, ignore_index, _, _, _, sample_weight, mask, _, _ = given
    row_weight, mask = weights_of_rows(sample_weight, mask, shape, validate)
    rows = target_of(target, like_logits, shape, classes, ignore_index, mask, validate, classes_last=classes_last)
    return counting(rows.weighted(row_weight, mask))


def _whole_loss(given: tuple, classes: int, validate: str) -> Loss:
    _, weight, _, _, label_smoothing, loss, *_ = given
    whole = whole_loss(loss, weight, label_smoothing, classes)
    if validate == "full":
        check_class_weight(whole)
    return whole
