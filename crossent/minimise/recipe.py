"""How a network is trained, as data: every setting by name, so that a record can say it and a command repeat it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from crossent.errors import DataError


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    ``members`` networks are trained side by side on the same batches from different starts, and their probabilities
    are averaged. ``batch``, ``epochs`` and ``patience`` 0 mean by the number of rows. ``averaging`` is how many
    epochs' worth of steps the moving average of the weights, which is what is kept, trails behind.
    """

    members: int = 8
    width: int = 192
    depth: int = 2
    dropout: float = 0.3
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch: int = 0
    epochs: int = 0
    patience: int = 0
    averaging: float = 2.0
    label_smoothing: float = 0.01

    def __post_init__(self) -> None:
        for least, names in ((1, ("members", "width", "depth")), (0, ("batch", "epochs", "patience"))):
            for name in names:
                if getattr(self, name) < least:
                    raise DataError(f"the recipe's {name} must be at least {least}, and is {getattr(self, name)}.")
        for name, low, high in (
            ("dropout", 0.0, 0.95),
            ("learning_rate", 1e-9, 10.0),
            ("weight_decay", 0.0, 100.0),
            ("label_smoothing", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise DataError(
                    f"the recipe's {name} must lie between {low:g} and {high:g}, and is {getattr(self, name)}."
                )

    def batch_for(self, rows: int) -> int:
        """The batch size: as asked, or a power of two that makes some twenty steps an epoch, between 16 and 512."""
        if self.batch > 0:
            return self.batch
        size = 16
        while size < 512 and size * 30 < rows:
            size *= 2
        return size

    def patience_for(self, steps: int) -> int:
        """Epochs to wait for a lower validation loss: as asked, or twelve, or the epochs that 300 steps fill.

        A step is the unit of patience on a small table, where an epoch is a handful of ``steps``; an epoch on a large
        one.
        """
        return self.patience or max(12, math.ceil(300 / steps))

    def epochs_for(self, patience: int) -> int:
        """The most epochs: as asked, or 200, or four times the patience."""
        return self.epochs or max(200, 4 * patience)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
