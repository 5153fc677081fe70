"""A fault as data: what to change in which file, why a person might have written it so, and which tests must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path("crossent/compute")


@dataclass(frozen=True)
class Fault:
    """``old`` stands exactly once in ``file`` (below crossent/compute) and becomes ``new``.

    ``tests`` are arguments of pytest below tests/, as few and as quick as will do, and ``only`` its -k. ``name`` says
    what is wrong, ``why`` how it comes about.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]
    only: str = ""

    def planted(self, source: str) -> str:
        """The source with the fault in it."""
        if (times := source.count(self.old)) != 1:
            raise ValueError(
                f"the fault {self.name!r} looks for {self.old!r} in {PACKAGE / self.file}, where it should stand once "
                f"and stands {times} times. The code has moved: let the fault move with it."
            )
        return source.replace(self.old, self.new)
