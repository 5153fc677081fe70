"""crossent fit --compare: the same way through, with several losses and no model at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossent.errors import DataError
from crossent.record import Record


@dataclass(frozen=True)
class Compared:
    """What a comparison leaves: a record, which is written where a run's would be."""

    record: Record

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        self.record.write(folder / "record.json")


def way(losses: str | None, seeds: int | None, folds: int | None = None) -> Callable[..., Any]:
    """Give what trains and tests: ``fit``, or the comparison of ``losses`` with the same arguments."""
    if losses is None:
        for option, number in (("--seeds", seeds), ("--folds", folds)):
            if number is not None:
                raise DataError(f"{option} is for losses that are compared: name them with --compare.")
        from crossent.minimise import fit

        return fit
    from crossent.minimise.contest.contest import compare_losses

    def compared(data: Any, **asked: Any) -> Compared:
        return Compared(compare_losses(data, losses=losses, seeds=seeds, folds=folds, **asked))

    return compared
