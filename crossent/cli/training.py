"""What is seen while a network trains."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from crossent.minimise import Progress


class Training:
    """What is seen while a network trains: a bar on a terminal, a line of JSON every few seconds anywhere else."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Any = None
        self.job: Any = None
        self.said = time.monotonic()

    def __enter__(self) -> Training:
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(
                BarColumn(bar_width=20 if self.console.width >= 100 else 8),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            # Of the first run on a machine it is long before there is more to say: kernels are compiled.
            first = "a first run compiles its kernels, some 20 seconds"
            self.job = self.bar.add_task(f"starting; {first}" if self.console.width >= 72 else first, total=None)
            self.bar.start()
        return self

    def __exit__(self, *trouble: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, sentence: str) -> None:
        """Print what happened, above the bar."""
        self.console.print(sentence)

    def show(self, at: Progress) -> None:
        """Show how far the training is."""
        words = self._words(at)
        if self.bar is not None:
            done = (at.epoch - 1 + at.share) / max(at.epoch, at.expected)
            self.bar.update(self.job, description=words, completed=done, total=1.0)
        elif time.monotonic() - self.said > 2.0:
            self.said = time.monotonic()
            known = {name: value for name, value in vars(at).items() if math.isfinite(value)}  # NaN is no JSON
            self.console.print(json.dumps(known), soft_wrap=True)

    def _words(self, at: Progress) -> str:
        epoch = f"epoch {at.epoch}" if at.share >= 1 else f"epoch {at.epoch}, {at.share:.0%} of it"
        if at.networks > 1:
            epoch = f"network {at.network} of {at.networks}, {epoch}"
        if at.train != at.train:
            return epoch
        left = "" if at.seconds_left != at.seconds_left else f" · {_clock(at.seconds_left)} left, more if it improves"
        best = f" (best {at.best:.4f}, epoch {at.best_epoch})"
        if self.console.width < 100:
            left, best = left.replace(", more if it improves", ""), ""
        return f"{epoch} · train {at.train:.4f} · validation {at.validation:.4f}{best}{left}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
