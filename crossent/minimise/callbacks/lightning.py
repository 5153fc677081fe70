"""For the Trainer of Lightning: rows are taken from validation steps, merged over ranks, and their parts logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from crossent.errors import DataError, require
from crossent.measure.metric import CrossEntropyMetric
from crossent.minimise.callbacks import logged
from crossent.record import Record

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = require("lightning.pytorch", "models", "DecompositionCallback").Callback

Where = str | Callable[[Any, Any], Tensor]
"""A key of what ``validation_step`` gave back, or else of the batch; or a function of (outputs, batch)."""


class DecompositionCallback(Callback):
    """Log what the log loss of the validation rows is made of, after each validation.

    ``logits`` and ``labels`` say where they are: by key in the dictionary that ``validation_step`` returns, or in the
    batch if that is a dictionary; or by a function of (outputs, batch). ``prefix`` stands before each name, and where
    there are several loaders Lightning's ``/dataloader_idx_1`` after it. ``options`` are those of
    ``CrossEntropyMetric``: ``form``, ``task``, ``class_dim=-1`` for a language model's (N, tokens, C), ``classes``,
    ``ignore_index``.

    The numbers are those of ``crossent.evaluate`` on all rows of all ranks, each rank has them, and ``ModelCheckpoint``
    and ``EarlyStopping`` can monitor them. ``records`` keeps the last validation's whole record for each loader, with
    intervals. The rows of Lightning's sanity check are not measured. Rows that a ``DistributedSampler`` repeats to fill
    the last batch count twice, as in every metric.

    Raises DataError, a sentence, where there are no such logits or labels, and for what is no prediction. Cost: that of
    ``CrossEntropyMetric``, a second or so a validation up to ten classes.

    >>> import torch, lightning
    >>> class Line(lightning.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.line = torch.nn.Linear(2, 3)
    ...
    ...     def validation_step(self, batch, index):
    ...         return {"logits": self.line(batch[0])}
    >>> parts = DecompositionCallback(labels=lambda outputs, batch: batch[1])
    >>> parts.prefix
    'val_'
    """

    def __init__(
        self, logits: Where = "logits", labels: Where = "labels", *, prefix: str = "val_", **options: Any
    ) -> None:
        super().__init__()
        CrossEntropyMetric(**options)  # an option that does not exist is refused before hours of training
        self.logits, self.labels, self.prefix, self.options = logits, labels, prefix, options
        self.records: dict[int, Record] = {}
        self._metrics: dict[int, CrossEntropyMetric] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rows of a validation that was broken off."""
        self._metrics = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the rows of a batch."""
        if trainer.sanity_checking:
            return
        if dataloader_idx not in self._metrics:
            self._metrics[dataloader_idx] = CrossEntropyMetric(**self.options).to(pl_module.device)
        logits, labels = (
            where(outputs, batch) if callable(where) else _found(where, name, outputs, batch)
            for name, where in (("logits", self.logits), ("labels", self.labels))
        )
        self._metrics[dataloader_idx].update(logits, labels)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge the ranks' rows, and log what they say."""
        for loader, metric in sorted(self._metrics.items()):
            record = self.records[loader] = metric.record("Validation")
            suffix = f"/dataloader_idx_{loader}" if len(self._metrics) > 1 else ""
            # Every rank has merged all ranks' rows already: Lightning has nothing left to reduce.
            told = {f"{self.prefix}{name}{suffix}": value for name, value in logged(record).items()}
            pl_module.log_dict(told, add_dataloader_idx=False)  # which Lightning knows during batches only
        self._metrics = {}


def _found(key: str, name: str, outputs: Any, batch: Any) -> Tensor:
    for place in (outputs, batch):
        if isinstance(place, Mapping) and key in place:
            return place[key]
    what = f"a dictionary of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else type(outputs).__name__
    raise DataError(
        f"there are no {name} {key!r}: validation_step gave back {what}, and the batch is a {type(batch).__name__}. "
        f"Return them from validation_step by that name, or say where they are: {name}='name', or "
        f"{name}=lambda outputs, batch: …"
    )
