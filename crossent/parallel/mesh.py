"""Groups, meshes, and tensors that know theirs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as Placed

from crossent.compute.group import Group, group_of


def spread(x: Tensor, group: Group | DeviceMesh, classes: int, name: str) -> tuple[Tensor, Group]:
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


def local(x: Any) -> Any:
    """This rank's columns of class probabilities, or labels that all ranks have."""
    return x.to_local() if isinstance(x, DTensor) else x


def hidden_here(x: Tensor, sequence_dim: int | None) -> tuple[Tensor, int | None]:
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
