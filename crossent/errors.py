"""What crossent says when it cannot go on: sentences a person can act on.

Two kinds of trouble have a class of their own, because the command line treats them differently from a
programming error: it prints their sentence and exits with status 2, without a traceback. Everything else
(a wrong shape, a wrong dtype) is Python's own ``ValueError``, ``TypeError`` or ``IndexError``.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class DataError(ValueError):
    """The data, a file or an option cannot be used; the message says what, where and what to do."""


class MissingExtra(ImportError):
    """A library is absent that an optional part of crossent needs; the message names the extra."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra brings it.

    >>> require("json", "cli", "reading records").__name__
    'json'
    >>> require("no_such_library", "cli", "reading tables")
    Traceback (most recent call last):
    crossent.errors.MissingExtra: reading tables needs the library 'no_such_library', which is not installed. Install...
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module.partition(".")[0]:
            raise  # the library is here, something inside it is not: that is another story
        raise MissingExtra(
            f"{purpose} needs the library {module.partition('.')[0]!r}, which is not installed. "
            f"Install it with: pip install 'crossent[{extra}]'"
        ) from missing


def some(items: list, most: int = 5) -> str:
    """List the first few of ``items`` for a sentence, and say how many there are in all.

    >>> some([3, 7])
    '3, 7'
    >>> some(list(range(9)), most=3)
    '0, 1, 2, … (9 in all)'
    """
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, … ({len(items):,} in all)"
