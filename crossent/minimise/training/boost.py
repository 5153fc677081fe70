"""Boosted trees beside the networks of a table: grown by scikit-learn in the same folds, kept as a network.

Trees are right where networks are wrong: at sharp steps, at numbers whose order says little, in columns that matter in
a corner of the table only. For each fold they learn from the rows outside it, and the round with the lowest
cross-entropy on the rows in it is the last one kept, as it is the epoch of a network. What they count beside the
networks is settled where the mixture is, by rows held out; trees that add nothing count nothing, and are left out.

Soft labels, and the shares of a range, are rows that come once for each class, with the share as their weight: the loss
is the same. All is on one thread: with more, sums are added up in an order of their own, and the bits would differ.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from crossent.compute.losses import NLL
from crossent.errors import require
from crossent.minimise.data.problem import Problem
from crossent.minimise.networks.trees import Trees
from crossent.minimise.objective.objective import Objective
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.judge import held_out_of, members_of
from crossent.minimise.training.state import History
from crossent.minimise.training.train import Progress, Trained

LEAST_ROWS = 300
"""To grow trees from: fewer say little about where to cut, and a network and a linear model say it better (LOG.md)."""
MOST_CLASSES = 100
"""Trees grow one for each class in every round."""
MOST_ROUNDS = 1000
LEAST_ROUNDS = 50
MOST_TREES = 20_000
"""Of all folds and classes together; more classes have fewer rounds."""
MOST_CELLS = 1e10
"""Cells of a table that all trees read together, at a few nanoseconds each; bins are read as rows are."""
BINS, LEAVES, DEPTH, PATIENCE, RATE = 255, 15, 10, 20, 0.1
BINS_OF_WEIGHTS = 63
"""Where rows count differently: scikit-learn then sorts a column anew for every edge of a bin."""
SORTING = 30
"""Cells that could be read in the time in which one is sorted."""


def wanted(problem: Problem, objective: Objective, recipe: Recipe, folds: int) -> bool:
    """Whether trees may stand beside the networks: the recipe has them, it minimises what they do, and there is enough.

    They say log-odds of the truth. Another loss than cross-entropy itself, or another prior, has another minimiser.
    """
    honest = type(objective.function) is NLL and recipe.imbalance == "none" and recipe.code == "fraction"
    chosen = recipe.model == "network" and recipe.beside and recipe.trees and honest
    fits = problem.x.dim() == 2 and problem.x.shape[1] > 0 and len(problem) >= LEAST_ROWS
    return chosen and fits and objective.columns <= MOST_CLASSES and _rounds(problem, objective, folds) >= LEAST_ROUNDS


def boosted(
    problem: Problem,
    objective: Objective,
    fold: Tensor,
    seed: int,
    *,
    fabric: Any,
    progress: Callable[[Progress], None] = lambda _: None,
    deadline: float = math.inf,
) -> Trained | None:
    """Grow trees for each fold of a plan (repeats, n), or none at all if there is not the time for every one.

    Arguments as for ``train``. Every process grows the same trees; the first one's clock decides for all.
    """
    ensemble = require("sklearn.ensemble", "cli", "boosted trees")
    pools = require("threadpoolctl", "cli", "boosted trees")
    row, column, weight = (part.numpy() for part in problem.labels())
    parts = [(plan[row] == f).numpy() for plan in fold for f in range(int(fold.max()) + 1)]
    if not all(held.any() for held in parts):
        return None
    x, classes = problem.x.numpy(), max(2, objective.columns)
    alike = bool((weight == weight[0]).all())
    began, grown, losses = time.monotonic(), [], []
    for number, held in enumerate(parts, 1):
        now = time.monotonic()
        if fabric.broadcast(now + (now - began) / max(1, number - 1) > deadline):
            return None
        learnt = ~held
        absent = np.setdiff1d(np.arange(classes), column[learnt])  # each is given a row of which nothing is known
        model = ensemble.HistGradientBoostingClassifier(
            learning_rate=RATE,
            max_iter=_rounds(problem, objective, len(parts)),
            max_leaf_nodes=LEAVES,
            max_depth=DEPTH,
            max_bins=BINS if alike else BINS_OF_WEIGHTS,
            n_iter_no_change=PATIENCE,
            early_stopping=True,
            random_state=(seed + number) % 2**32,
        )
        with pools.threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that are constant, or all missing
            model.fit(
                np.concatenate((x[row[learnt]], np.full((len(absent), x.shape[1]), np.nan)), dtype=np.float64),
                np.concatenate((column[learnt], absent)),
                None if alike else np.concatenate((weight[learnt], np.full(len(absent), weight.mean()))),
                X_val=x[row[held]],
                y_val=column[held],
                sample_weight_val=weight[held],
            )
        best = max(1, int(model.validation_score_.argmax()))  # the first score is that of no tree
        del model._predictors[best:]
        grown.append(model)
        losses.append(-float(model.validation_score_[best]))
        spent = time.monotonic() - began
        left = spent / number * (len(parts) - number)
        progress(Progress(number, 1.0, len(parts), math.nan, losses[-1], min(losses), number, left))
    network = Trees.of(grown, objective.columns).eval()
    held_out = held_out_of(network, objective, problem, members_of(problem, fold, network))
    history = History(validation=[float(np.mean(losses))], best_epoch=1, stopped="trees", most=1)
    history.seconds = time.monotonic() - began
    return Trained(network, history, held_out)


def _rounds(problem: Problem, objective: Objective, folds: int) -> int:
    """The most rounds: by the trees, and by what each of them reads."""
    trees = folds * (objective.columns if objective.columns > 2 else 1)
    rows, columns = problem.x.shape
    cells = columns * (rows + BINS * LEAVES)
    weighed = problem.weight is not None or problem.target.is_floating_point()
    sorting = folds * columns * rows * BINS_OF_WEIGHTS * SORTING if weighed else 0
    return int(min(MOST_ROUNDS, MOST_TREES / trees, (MOST_CELLS - sorting) / (trees * cells)))
