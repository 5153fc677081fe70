"""From a table with a column of texts to tokens: what ``Preparation`` is for a table of numbers and categories."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor

from crossent.errors import DataError
from crossent.minimise.data.task import Task
from crossent.minimise.networks.text import TextNetwork, column_of_text

WORD = "text:"
"""How a recipe's ``model`` names a model folder of the user's: text:/path/to/folder."""


class Tokens:
    """Rows become tokens (n, t), int64, by the tokenizer of a ``TextNetwork``."""

    vectorizer = None
    names: tuple[str, ...] = ()

    def __init__(self, network: TextNetwork) -> None:
        self.network = network
        self.columns = (network.column,)
        self.features = network.longest

    @classmethod
    def of(cls, model: str, table: Any, source: str, task: Task) -> Tokens:
        """Take the folder of a recipe's ``model``, and the column of a table that holds the texts."""
        if task.kind == "range":
            raise DataError(f"{source}: a model of texts tells classes apart; the target is a number in a range.")
        if not hasattr(table, "columns"):
            raise DataError(f"{source}: a model of texts reads a table with a column of text, not an array.")
        folder = model.removeprefix(WORD)
        return cls(TextNetwork.from_folder(folder, column_of_text(table, source), task.classes))

    @property
    def notes(self) -> list[str]:
        """What was said of texts that were cut."""
        return self.network.notes

    def __call__(self, x: Any, source: str) -> Tensor:
        """The tokens of a table's texts."""
        if not hasattr(x, "columns"):
            raise DataError(f"{source}: the model was trained on a table with the column {self.columns[0]!r}.")
        return self.network.tokens(x, source)

    def copy(self, shape: tuple[int, ...], columns: int) -> TextNetwork:
        """A network to train, as a ``Factory`` gives it: the user's own stays as it was."""
        return copy.deepcopy(self.network)

    def to_dict(self) -> dict[str, Any]:
        """What is kept of it beside the network's own folder."""
        return {"columns": list(self.columns), "features": self.features, "names": []}

    def save(self, path: Path) -> None:
        """Nothing: the tokenizer is in the network's folder."""
