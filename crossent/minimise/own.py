"""A network and loaders of the user's own: trained, chosen, calibrated and tested as ``fit`` does it.

Batches come from the user's loader, with whatever it does to them; the loss, the optimiser, the average of the weights,
the choice of the epoch, the calibrator and the one test are those of every other run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossent.errors import DataError
from crossent.minimise.data.dataset import shares
from crossent.minimise.data.parts import Judged
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.task import Task
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.judge import columns_of


def look(
    loaders: Any, network: nn.Module, limits: tuple[float, float] | None, recipe: Recipe
) -> tuple[Any, Problem, Problem]:
    """The loader to learn from, and the rows of the two others, held in memory, with the task they are of.

    ``loaders`` (train, validation, test), each giving batches (x, y) or (x, y, weight) of tensors.
    """
    if not isinstance(loaders, Sequence) or len(loaders) != 3:
        raise DataError(
            "a network of your own is fitted with three loaders, fit(network, (train, validation, test)): to learn "
            f"from, to choose the epoch and the calibrator by, and to test once; got {_what(loaders)}."
        )
    names = ("train", "validation", "test")
    for name, loader in zip(names, loaders, strict=True):
        if not hasattr(loader, "__iter__"):
            raise DataError(f"the {name} loader gives batches (x, y); got {type(loader).__name__}.")
    try:
        batches = len(loaders[0])
    except TypeError as trouble:
        raise DataError(
            "the train loader must know how many batches it has, len(loader): epochs are counted in them."
        ) from trouble
    if batches == 0:
        raise DataError("the train loader has no batches.")
    first = _gathered(loaders[1], "validation")
    columns = columns_of(network, first[0])
    task = _task(first[1], columns, limits)
    wanted = recipe.objective(task, torch.ones(task.columns)).columns
    if columns != wanted:
        raise DataError(
            f"the network gives {columns} logits a row; a number in a range by the code {recipe.code!r} needs {wanted}."
        )
    problems = [
        Problem(task, x, _target(task, y, name), weight)
        for name, (x, y, weight) in (("validation", first), ("test", _gathered(loaders[2], "test")))
    ]
    return loaders[0], problems[0], problems[1]


def _gathered(loader: Any, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    batches = []
    for number, batch in enumerate(loader):
        if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3:
            raise DataError(
                f"the {name} loader should give (x, y) or (x, y, weight); batch {number} is {_what(batch)}."
            )
        if not all(isinstance(part, Tensor) for part in batch):
            raise DataError(f"batch {number} of the {name} loader should hold tensors; it holds {_what(batch)}.")
        batches.append(batch)
    if not batches:
        raise DataError(f"the {name} loader has no batches.")
    x, y, *weight = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return x, _column(y), weight[0].float() if weight else None


def _column(y: Tensor) -> Tensor:
    """Labels (n,) of labels (n, 1)."""
    return y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y


def _task(y: Tensor, columns: int, limits: tuple[float, float] | None) -> Task:
    if limits is not None or (y.is_floating_point() and y.dim() == 1):
        low, high = limits or (0.0, 1.0)
        return Task("range", (), f"numbers from {low:g} to {high:g}: bounded regression.", low, high)
    if columns < 2:
        raise DataError(
            f"the network gives {columns} logit a row. Give one for each class, two for a binary target; for a number "
            "in a range pass limits=(low, high)."
        )
    kind = "soft labels" if y.is_floating_point() else "labels"
    names = tuple(str(place) for place in range(columns))
    return Task("binary" if columns == 2 else "multi-class", names, f"{kind} of {columns} classes.")


def _target(task: Task, y: Tensor, name: str) -> Tensor:
    y = _column(y)
    if y.dim() != (2 if y.is_floating_point() and task.kind != "range" else 1):
        raise DataError(
            f"labels of the {name} loader have shape {tuple(y.shape)}. Whole numbers and numbers in a range should be "
            "(n,), shares of the classes (n, classes) and floating."
        )
    if task.kind == "range":
        share = (y.double() - task.low) / (task.high - task.low)
        if not bool(((share >= 0) & (share <= 1)).all()):
            raise DataError(f"a number of the {name} loader lies outside {task.low:g} to {task.high:g}; pass limits=.")
        return share.float()
    if y.is_floating_point():
        if y.shape[1] != task.columns:
            raise DataError(f"the network gives {task.columns} logits, and labels have {y.shape[1]} columns of shares.")
        return torch.from_numpy(shares(y.double().cpu().numpy(), f"the {name} loader", list(task.classes))).float()
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < task.columns:
        raise DataError(
            f"labels of the {name} loader go from {int(y.min())} to {int(y.max())}, and the network has "
            f"{task.columns} logits, for 0 to {task.columns - 1}."
        )
    return y.long()


def scaled(loader: Any, task: Task) -> Any:
    """The loader to learn from, its targets as the problem's."""
    return _Scaled(loader, lambda y: _target(task, y, "train"))


class _Scaled:
    def __init__(self, loader: Any, change: Callable[[Tensor], Tensor]) -> None:
        self.loader, self.change = loader, change

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for x, y, *weight in self.loader:
            yield (x, self.change(y), *weight)


def judged(problem: Problem, log_p: Tensor) -> Judged:
    """Rows as they are measured, with what was said of them."""
    task, target = problem.task, problem.target.double() if problem.target.is_floating_point() else problem.target
    encoded = target.numpy()
    if task.kind == "range":
        written = task.low + (task.high - task.low) * encoded
    else:
        written = encoded if encoded.dtype.kind == "f" else np.array(task.classes)[encoded]
    weight = None if problem.weight is None else problem.weight.double().numpy()
    return Judged(np.arange(len(problem)), written, encoded, weight, log_p.numpy())


def _what(thing: Any) -> str:
    if isinstance(thing, (tuple, list)):
        return f"{len(thing)} of {', '.join(type(part).__name__ for part in thing[:4])}"
    return type(thing).__name__
