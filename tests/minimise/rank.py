"""One rank's validation: in a file of its own, so that its process imports nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from crossent.record import Record


def validated(x: Tensor, y: Tensor, begins: list[list[int]]) -> tuple[dict[str, float], Record]:
    """What this rank logs of its batches of 20, through the hooks that Lightning calls; and the record."""
    from crossent.minimise.callbacks.lightning import DecompositionCallback

    told: dict[str, float] = {}
    module = SimpleNamespace(device=torch.device("cpu"), log_dict=lambda values, **_: told.update(values))
    trainer, parts = SimpleNamespace(sanity_checking=False), DecompositionCallback()
    parts.on_validation_epoch_start(trainer, module)
    for batch, begin in enumerate(begins[torch.distributed.get_rank()]):
        rows = slice(begin, begin + 20)
        parts.on_validation_batch_end(trainer, module, {"logits": x[rows], "labels": y[rows]}, None, batch)
    parts.on_validation_epoch_end(trainer, module)
    return told, parts.records[0]
