"""What every rank is asked before anything is read: whether all is well, and whether all were told the same.

An error on one rank would leave the others waiting in the next collective for someone who has gone. So each rank looks
at its own arguments first, and in one gather all tell each other whether they found something wrong, how many columns
they hold, and a digest of each argument that ought to be the same. Then either all go on, or all raise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossent.compute.group import Group, gathered, refuse_batches
from crossent.compute.link import Link
from crossent.compute.losses.algebra import Loss, tensors_of
from crossent.compute.target import Target, visible


def differences(facts: Tensor, names: Sequence[str]) -> dict[str, list[int]]:
    """Which of the named numbers (P, f) differ from rank 0's, and on which ranks."""
    wrong = (facts != facts[:1]).tolist()
    return {
        name: ranks for at, name in enumerate(names) if (ranks := [rank for rank, row in enumerate(wrong) if row[at]])
    }


def agree(
    trouble: Exception | None, facts: dict[str, int], own: Sequence[int], device: torch.device, group: Group
) -> Tensor:
    """Every rank's ``own`` numbers (P, o), once all ranks have said that nothing is wrong and ``facts`` are the same.

    An error of one rank becomes an error of all, at the same place, so that no rank waits in the next collective for
    another that has left.
    """
    mine = torch.tensor([trouble is not None, *own, *facts.values()], dtype=torch.int64, device=device)
    everyone = gathered(mine, group).cpu()
    failed = everyone[:, 0].nonzero().flatten().tolist()
    if failed:
        said: list[Any] = [None] * len(everyone)
        dist.all_gather_object(said, None if trouble is None else f"{type(trouble).__name__}: {trouble}", group=group)
        if trouble is not None:
            raise trouble
        raise ValueError(f"rank {failed[0]} of {len(everyone)} cannot go on, and so none can. {said[failed[0]]}")
    wrong = differences(everyone[:, 1 + len(own) :], list(facts))
    if wrong:
        listed = "; ".join(f"{name} (rank {', '.join(map(str, ranks))})" for name, ranks in wrong.items())
        raise ValueError(
            f"the {len(everyone)} ranks were called with different arguments. Not as on rank 0: {listed}. Every rank "
            "passes its own columns of the logits, of the head and of class probabilities, and the same of all else."
        )
    return everyone[:, 1 : 1 + len(own)]


_NAMES = (
    "target",
    "weight",
    "ignore_index",
    "reduction",
    "label_smoothing",
    "loss",
    "sample_weight",
    "mask",
    "normaliser",
    "empty",
)


def agreed(
    check: Callable[[], None], told: dict[str, Any], values: bool, own: list[int], device: torch.device, group: Group
) -> list[list[int]]:
    """The ``own`` numbers of every rank, of which the first is how many columns it holds, or the error of any on all.

    What was ``told`` must be the same on all ranks; with ``values`` so must the numbers in its tensors.
    """
    refuse_batches()
    trouble = None
    try:
        check()
    except (ValueError, TypeError, IndexError) as wrong:
        trouble = wrong
    digests = {name: _digest(said, values) for name, said in told.items()}
    shard_sizes = agree(trouble, digests, own, device, group).tolist()
    if sum(row[0] for row in shard_sizes) == 0:
        raise ValueError(f"no rank of the {len(shard_sizes)} has any columns: there are no classes.")
    return shard_sizes


def arguments_told(given: tuple, validate: str) -> dict[str, Any]:
    """What is the same on every rank of a loss's arguments, by their names."""
    target, *others = given
    return {"target": _without_columns(target), **dict(zip(_NAMES[1:], others, strict=True)), "validate": validate}


def _digest(said: Any, values: bool) -> int:
    """A whole number that two ranks have in common if they were told the same; tensors by their values if asked."""
    # Inside torch.func every copy of a tensor is wrapped, and its numbers are out of reach.
    values = values and not torch._C._functorch.get_interpreter_stack()
    told = hashlib.blake2b(digest_size=7)

    def tell(x: Any) -> None:
        if isinstance(x, Tensor):
            tell((str(x.dtype), tuple(x.shape)))
            if values and visible(x):
                told.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif is_dataclass(x):
            tell([type(x).__qualname__, *(getattr(x, field.name) for field in fields(x))])
        elif isinstance(x, Loss):
            tell([type(x).__qualname__, *tensors_of(x)])
        elif isinstance(x, (list, tuple)):
            told.update(b"[")
            for each in x:
                tell(each)
            told.update(b"]")
        else:  # what has no value of its own is told by its kind: its address would differ on every rank
            plain = x is None or isinstance(x, (bool, int, float, str, torch.dtype))
            told.update(f"{x!r};".encode() if plain else f"{type(x).__qualname__};".encode())

    tell(said)
    return int.from_bytes(told.digest(), "big")


def _without_columns(target: Tensor | Target) -> Any:
    """What of a target is the same on every rank: all of it, but for the probabilities of the own columns."""
    if isinstance(target, Target) and target.index is None:
        return "probabilities", target.rows, target.live, target.row_weight
    if isinstance(target, Tensor) and target.is_floating_point():
        return "probabilities", target.dim()
    return target


def is_dense(target: Tensor | Target) -> bool:
    """Whether it has a number for every class, of which this rank has those of its columns."""
    return target.index is None if isinstance(target, Target) else target.is_floating_point()


def outline(link: Link | None) -> Any:
    """What of a link is the same on every rank: all but the numbers of its bias."""
    if link is None:
        return None
    shared = link.temperature, link.softcap
    learned = [isinstance(x, Tensor) and x.requires_grad for x in shared]
    return *shared, learned, None if link.bias is None else link.bias.requires_grad


def learned_weights(weight: Tensor | None, loss: Loss | None, sample_weight: Tensor | None) -> list[bool]:
    """Whether somebody asks for the gradients of class weights, what a loss holds, and sample weights."""
    knobs = weight, *([] if loss is None else tensors_of(loss)), sample_weight
    return [x is not None and x.requires_grad for x in knobs]


def check_link(link: Link | None, own: int) -> None:
    """Refuse a field of a link that is no number, and a bias that is not this rank's."""
    for name in ("temperature", "softcap"):
        field = None if link is None else getattr(link, name)
        if isinstance(field, Tensor) and field.numel() != 1:
            raise ValueError(
                f"the {name} of a link must be one number where columns lie on several ranks; it has shape "
                f"{tuple(field.shape)}."
            )
    if link is not None and link.bias is not None and link.bias.shape != (own,):
        raise ValueError(
            f"the bias of a link must be that of this rank's {own} columns, shape ({own},); it has "
            f"{tuple(link.bias.shape)}."
        )
