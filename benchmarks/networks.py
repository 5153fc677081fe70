"""Which network a table is best learnt by: ``crossent fit``'s own beside others in the same folds, with the same loop.

    python benchmarks/networks.py            trains all of them; writes benchmarks/records/networks.json
    python benchmarks/networks.py --only periodic --set satimage

Everything but the network is as in ``crossent.fit``: preparation, five folds, the moving average of the weights, the
epoch that its held-out rows choose, the mean of the members' probabilities. No linear model stands beside, no
temperature is fitted and nothing is calibrated, so that figures are above those of ``fit``. What differs:

ramps       perceptrons whose numbers enter as themselves, as ramps between quantiles, and as indicators of shared
            values: the package's own (``networks.tabular``); two for each fold
plain       the same without ramps and indicators
periodic    perceptrons behind periodic embeddings, sines of learned frequencies with a linear layer for each column
            (``rtdl_num_embeddings.PeriodicEmbeddings``, not lite, as its makers set it); two for each fold
tabm        ``tabm.TabM`` as its makers set it (three blocks of 512, dropout 0.1, learning rate 2e-3, weight decay 3e-4)
            with four members for each fold, each with batches of its own

RealMLP is beside them in benchmarks/minimise.py. Of adult one row in five to learn from is taken, evenly spaced.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from minimise_sets import SETS, Set
from torch import Tensor, nn

from crossent.files import replacing
from crossent.minimise import Problem, Recipe
from crossent.minimise.data import task
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.problem import folds
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.training.judge import averaged, logits_of
from crossent.minimise.training.learn import launched
from crossent.minimise.training.train import train

# Python puts this folder first on the path; see run.py.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

RECORD = Path(__file__).resolve().parent / "records" / "networks.json"
FOLDS, MOST_ROWS = 5, 8_000
OURS = Recipe(plain=False, beside=False)
TABM = OURS.changed(learning_rate=2e-3, weight_decay=3e-4)


def tabular(x: Tensor, columns: int, members: int, bins: int) -> Tabular:
    return Tabular.for_features(
        x, columns, members=members, width=OURS.width, depth=OURS.depth, dropout=OURS.dropout, bins=bins
    )


class Members(nn.Module):
    """Rows (members, n, d), or (n, d) for all → logits (members, n, columns), by networks that have nothing in common.

    All read numbers on one scale and a column for each that says what is missing, which are those of ``Tabular``.
    """

    def __init__(self, x: Tensor, columns: int, members: int) -> None:
        super().__init__()
        self.scale = tabular(x, columns, 1, bins=0).eval()
        self.members = members
        self.inside = self.scale.features(x[:1]).shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        rows = self.scale.features(x)
        return self.logits(rows if rows.dim() == 3 else rows.expand(self.members, -1, -1))


class Periodic(Members):
    def __init__(self, x: Tensor, columns: int, members: int) -> None:
        super().__init__(x, columns, members)
        from rtdl_num_embeddings import PeriodicEmbeddings

        def one() -> nn.Module:
            sizes = [24 * self.inside, *[OURS.width] * OURS.depth]
            layers: list[nn.Module] = [PeriodicEmbeddings(self.inside, lite=False), nn.Flatten()]
            for before, after in pairwise(sizes):
                layers += [nn.Linear(before, after), nn.SiLU(), nn.Dropout(OURS.dropout)]
            return nn.Sequential(*layers, nn.Linear(sizes[-1], columns))

        self.each = nn.ModuleList(one() for _ in range(members))

    def logits(self, rows: Tensor) -> Tensor:
        return torch.stack([network(mine) for network, mine in zip(self.each, rows, strict=True)])


class ManyTabM(Members):
    """One TabM for each fold; its members are those of that fold, m = repeat · folds + fold."""

    def __init__(self, x: Tensor, columns: int, members: int) -> None:
        super().__init__(x, columns, members)
        from tabm import TabM

        # It asks whether members were meant to read rows of their own where nothing is learnt. They are all given.
        warnings.filterwarnings("ignore", message="When training=False, the input", module="tabm")
        each = members // FOLDS
        self.each = nn.ModuleList(TabM.make(n_num_features=self.inside, d_out=columns, k=each) for _ in range(FOLDS))

    def logits(self, rows: Tensor) -> Tensor:
        said = [network(rows[fold::FOLDS].transpose(0, 1)).transpose(0, 1) for fold, network in enumerate(self.each)]
        return torch.stack(said, 1).flatten(0, 1)


Maker = Callable[[Tensor, int, int], nn.Module]
NETWORKS: dict[str, tuple[Maker, int, Recipe]] = {
    "ramps": (lambda x, columns, members: tabular(x, columns, members, OURS.bins), 2, OURS),
    "plain": (lambda x, columns, members: tabular(x, columns, members, 0), 2, OURS),
    "periodic": (Periodic, 2, OURS),
    "tabm": (ManyTabM, 4, TABM),
}


def problems(here: Set) -> tuple[Problem, Problem]:
    """The rows to learn from and those to test, prepared as ``fit`` does it."""
    learn, test = here.splits[0]
    spaced = learn[:: math.ceil(len(learn) / MOST_ROWS)]
    known, new = here.rows.take(spaced), here.rows.take(test)
    found = task.look(known.y, here.name, "y", "classes", None, ())
    preparation, x = Preparation.fit(known.x, here.name)
    labels = [torch.from_numpy(rows.y) for rows in (known, new)]
    return Problem(found, x, labels[0]), Problem(found, preparation(new.x, here.name), labels[1])


def measured(name: str, here: Set) -> dict[str, Any]:
    """Train one of them, and judge it by rows held out and by rows tested."""
    make, each, recipe = NETWORKS[name]
    known, new = problems(here)
    plan = folds(known, FOLDS, each, seed=0)
    torch.manual_seed(0)
    network = make(known.x, here.columns, FOLDS * each)
    objective = recipe.objective(known.task)
    began = time.process_time()
    trained = train(network, known, objective, plan, recipe, 0, fabric=launched())
    seconds = time.process_time() - began
    said = averaged(objective.log_probabilities(logits_of(trained.network, new.x)))
    rows = -said.gather(1, new.target.unsqueeze(1)).squeeze(1)
    return {
        "held_out": known.cross_entropy(trained.held_out),
        "tested": float(rows.mean()),
        "standard_error": float(rows.std() / math.sqrt(len(rows))),
        "weights": sum(weight.numel() for weight in trained.network.parameters()),
        "epoch": trained.history.best_epoch,
        "processor_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--set", nargs="+", default=["satimage", "adult"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in asked.set:
        here = SETS[name]()
        for network in asked.only:
            found = measured(network, here)
            print(name, network, found, flush=True)
            record.setdefault(name, {})[network] = {**found, "made": time.strftime("%Y-%m-%d")}
            with replacing(RECORD) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
