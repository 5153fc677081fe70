"""How a network is trained, as data: every setting by name, so that a record can say it and a command repeat it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from crossent.errors import DataError


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    ``members`` networks are trained side by side on the same batches from different starts, and their probabilities
    are averaged. ``batch`` 0 means by the number of rows. ``averaging`` is the share of an epoch's worth of steps by
    which the moving average of the weights, which is what is kept, trails behind.
    """

    members: int = 8
    width: int = 192
    depth: int = 2
    dropout: float = 0.15
    learning_rate: float = 2e-3
    weight_decay: float = 2e-2
    batch: int = 0
    epochs: int = 200
    patience: int = 12
    averaging: float = 2.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("members", "width", "depth", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise DataError(f"the recipe's {name} must be at least 1, and is {getattr(self, name)}.")
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

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
