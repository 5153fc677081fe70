"""What each of two processes under torchrun does: python -m torch.distributed.run … -m tests.minimise.ranks FOLDER."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from crossent.minimise import Problem, Recipe, learn
from crossent.minimise.data.task import Task
from crossent.minimise.training.learn import launched

FEW = Recipe(folds=2, members=1, width=8, depth=1, bins=3, dropout=0.3, batch=7, epochs=6, beside=False, stop="loss")
TREES = replace(FEW, beside=True, batch=64, epochs=3)
"""With boosted trees beside the network, where there are rows enough."""


def rows(seed: int = 0, count: int = 90) -> Problem:
    """Rows of three classes that two of four numbers decide, all but some noise; one number is missing here."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=random)
    score = x[:, 0] + 0.7 * x[:, 1] + 0.3 * torch.randn(count, generator=random)
    x[::7, 2] = float("nan")
    label = (score > -0.5).long() + (score > 0.5).long()
    return Problem(Task("multi-class", ("a", "b", "c"), "three"), x, label)


def main(folder: Path) -> None:
    """Learn as one of several processes, and write down what this one then says."""
    fabric, found = launched(), {}
    for name, recipe in (("adamw", FEW), ("sgd", replace(FEW, optimiser="sgd", learning_rate=0.1))):
        learned = learn(rows(), recipe, fabric=fabric)
        found[name] = torch.cat((learned.held_out, learned.log_probabilities(rows().x)))
    found["trees"] = learn(rows(count=600), replace(TREES, epochs=1), fabric=fabric).held_out
    endless = replace(FEW, epochs=100_000, patience=100_000)
    late = learn(rows(), endless, fabric=fabric, deadline=time.monotonic() + 0.5 + 0.3 * fabric.global_rank)
    found["epochs"] = torch.tensor(len(late.history.train))
    torch.save(found, folder / f"rank-{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
