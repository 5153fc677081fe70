"""What each of two processes under torchrun does: python -m torch.distributed.run … -m tests.minimise.ranks FOLDER."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from crossent.minimise import Problem, Recipe, learn
from crossent.minimise.data.task import Task
from crossent.minimise.training.learn import launched

FEW = Recipe(folds=2, members=1, width=8, depth=1, bins=3, dropout=0.3, batch=7, epochs=6, beside=False, stop="loss")
TREES = replace(FEW, beside=True, batch=64, epochs=3)
"""With boosted trees beside the network, where there are rows enough."""
MIXED = {
    "mixup": replace(FEW, mixup=0.4, noise=0.2, epochs=3),
    "cutmix and mixup": replace(FEW, mixup=1.0, cutmix=1.0, epochs=3, dropout=0.0),
}
"""Rows of one process are mixed with those of the other."""


def rows(seed: int = 0, count: int = 90) -> Problem:
    """Rows of three classes that two of four numbers decide, all but some noise; one number is missing here."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=random)
    score = x[:, 0] + 0.7 * x[:, 1] + 0.3 * torch.randn(count, generator=random)
    x[::7, 2] = float("nan")
    label = (score > -0.5).long() + (score > 0.5).long()
    return Problem(Task("multi-class", ("a", "b", "c"), "three"), x, label)


PICTURES = replace(FEW, mixup=0.4, cutmix=1.0, flip=True, crop=1, epochs=2, batch=16)
NORMED = replace(FEW, epochs=3, batch=13)
"""Of 45 rows the last batch would have 6: 3 on each process."""


def images() -> Problem:
    """Pictures of two classes."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, 8, 8, generator=random)
    return Problem(Task("binary", ("a", "b"), "two"), x, torch.arange(40) % 2)


def normed(shape: tuple[int, ...], logits: int) -> nn.Module:
    """A network of one's own that is made of what makes a row depend on its batch, and of coins."""
    return nn.Sequential(
        Filled(), nn.Linear(shape[0], 12), nn.Dropout(0.3), nn.BatchNorm1d(12), nn.ReLU(), nn.Unflatten(1, (3, 4)),
        nn.Dropout1d(0.3), nn.BatchNorm1d(3, affine=False), nn.Flatten(), nn.Dropout(0.2, inplace=True),
        nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, logits),
    )  # fmt: skip


class Attending(nn.Module):
    """A network of one's own that tosses coins inside functions of torch: attention, heads, recurrent layers."""

    def __init__(self, logits: int) -> None:
        super().__init__()
        self.wide = nn.Linear(1, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.3, batch_first=True)
        self.heads = nn.MultiheadAttention(8, 2, dropout=0.3)
        self.grouped = nn.Linear(8, 4)
        self.lstm = nn.LSTM(8, 3, 3, dropout=0.3, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(6, 4, 2, dropout=0.3)
        self.last = nn.Linear(4, logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, t) → logits (n, logits)."""
        x = self.encoder(self.wide(x.nan_to_num(0.0)[..., None]))
        turned = x.transpose(0, 1)
        x = self.heads(turned, turned, turned)[0].transpose(0, 1)
        query, few = x.unflatten(-1, (2, 4)).transpose(1, 2), self.grouped(x)[:, None]
        p = 0.3 if self.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(query, few, few, dropout_p=p, is_causal=True, enable_gqa=True)
        x = self.lstm(seen.transpose(1, 2).flatten(2))[0].transpose(0, 1)
        return self.last(self.gru(x)[0][-1])


def attending(shape: tuple[int, ...], logits: int) -> nn.Module:
    """The network of rows of any length."""
    return Attending(logits)


class Filled(nn.Module):
    """Missing numbers are 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, d)."""
        return x.nan_to_num(0.0)


def main(folder: Path) -> None:
    """Learn as one of several processes, and write down what this one then says."""
    fabric, found = launched(), {}
    for name, recipe in (("adamw", FEW), ("sgd", replace(FEW, optimiser="sgd", learning_rate=0.1)), *MIXED.items()):
        learned = learn(rows(), recipe, fabric=fabric)
        found[name] = torch.cat((learned.held_out, learned.log_probabilities(rows().x)))
    weighted = replace(rows(), weight=torch.linspace(0.2, 1.8, 90))
    found["weighted"] = learn(weighted, MIXED["mixup"], fabric=fabric).held_out
    shares = replace(rows(), target=torch.nn.functional.one_hot(rows().target).float())
    found["shares"] = learn(shares, MIXED["mixup"], fabric=fabric).held_out
    found["images"] = learn(images(), PICTURES, fabric=fabric).held_out
    found["own"] = learn(rows(), NORMED, factory=normed, fabric=fabric).held_out
    found["attending"] = learn(rows(), NORMED, factory=attending, fabric=fabric).held_out
    found["trees"] = learn(rows(count=600), replace(TREES, epochs=1), fabric=fabric).held_out
    endless = replace(FEW, epochs=100_000, patience=100_000)
    late = learn(rows(), endless, fabric=fabric, deadline=time.monotonic() + 0.5 + 0.3 * fabric.global_rank)
    found["epochs"] = torch.tensor(len(late.history.train))
    torch.save(found, folder / f"rank-{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
