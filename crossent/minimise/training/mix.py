"""Networks of unlike kinds, and trees, as one mixture: what each counts, and how much surer or less sure it is made.

Models of unlike kinds together cost less than any of them wherever they are wrong on other rows. All that is settled
here is settled by what they said of rows held out.

**Temperatures.** The epoch was chosen by what a temperature leaves, so an answer may be too sure until it is cooled. A
mean of m members is less sure than each of them, and needs less. The temperature that it needs is taken to be

    T(m)  =  a + b / m,                                                                                             (1)

and rows held out are answered by few members: those of r repeats of the folds, where all m = r · folds answer a new
row. b comes from what single members need beside what the mean over all R repeats needs, those of networks that differ
in a detail together,

    b  =  (T(1) − T(R)) / (1 − 1/R),      T(m)  =  T(r) − b (1/r − 1/m).                                            (2)

None is below 1: cooling undoes what the stop allowed, and whether a sharper answer helps is for the guarded calibrator
to show. On few rows without a mistake the likeliest temperature is near 0, and the first mistake pays.

**Powers.** Kinds k are pooled as a product (``networks.several``), and the powers are those by which the labels y of
rows i are likeliest,

    L(s)  =  Σ_i [ Σ_k s_k log p_k(y_i)  −  log Σ_c Π_k p_k(c)^(s_k) ],          s_k ≥ 0,   Σ_k s_k = 1.             (3)

L is concave, the logarithm of a sum of exponentials of linear functions being convex, so there is one maximum. That
they add up to 1 is for the reason that no temperature is below 1: more would make the whole surer than its parts.
Networks of one kind, which differ in a detail, count alike as long as there are few rows to tell them apart: as if
α rows spoke for each of the m alike, (Σ their own powers being S)

    L(s)  +  (α/m) Σ_j log(s_j / S).                                                                                 (4)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from crossent.measure.calibration.families import mixing_weights
from crossent.minimise.data.problem import Problem
from crossent.minimise.networks.several import LEAST, Average, Even, Mixture, averaged, pooled
from crossent.minimise.objective.objective import Objective
from crossent.minimise.training.judge import (
    MOST_FOR_A_TEMPERATURE,
    answers_of,
    claims_of,
    cooling,
    held_out_of,
    members_of,
)
from crossent.minimise.training.state import History
from crossent.minimise.training.train import Trained

ENOUGH_FOR_A_TEMPERATURE = 50
LEAST_SHARE = 0.02
"""Of a kind, below which it is left out."""
ALIKE = 100.0
"""Rows that speak for each network of one kind alike, before any row is seen."""


@dataclass(frozen=True)
class Cooled:
    """The temperatures that single ``members`` need, and their means over ``repeats`` of the folds.

    ``claims`` (2, n) are the probabilities of less and of not more than each row's number, where there are such.
    """

    alone: float = 1.0
    few: float = 1.0
    repeats: int = 1
    members: int = 1
    claims: Tensor | None = None


def cooled_by_itself(trained: Trained, objective: Objective, problem: Problem, plan: Tensor) -> Cooled:
    """What the answers of a network to rows held out need, or 1 where there are too few to say."""
    known = ~trained.held_out[:, 0].isnan()
    repeats, members = len(plan), getattr(trained.network, "members", 1)
    if int(known.sum()) < ENOUGH_FOR_A_TEMPERATURE:
        return Cooled(repeats=repeats, members=members)
    few = cooling(trained.held_out[known], problem.take(known)).temperature
    by = members_of(problem, plan, trained.network)
    claims = claims_of(trained.network, objective, problem, by)
    if repeats == 1:
        return Cooled(few, few, repeats, members, claims)
    answers = answers_of(trained.network, objective, problem, by)
    rows = torch.cat([held for held, _ in answers])
    alone = cooling(torch.cat([said for _, said in answers]), problem.take(rows)).temperature
    return Cooled(alone, few, repeats, members, claims)


def average(problem: Problem, objective: Objective, fold: Tensor) -> Trained:
    """A kind that says of every row what labels are on average, in the folds (repeats, n) that it is not held out in.

    A product with a power of it is drawn towards the frequencies of the classes, as far as the rows held out ask for
    it: where columns tell nothing, all the way.
    """
    network = Average(len(fold) * (int(fold.max()) + 1), objective.columns)
    members = members_of(problem, fold, network)
    for member, (learnt, _) in enumerate(members):
        weight = None if problem.weight is None else problem.weight[learnt]
        if weight is None or bool(weight.any()):
            network.logits[member] = objective.starting_bias(problem.target[learnt], weight)
    return Trained(network, History(best_epoch=1), held_out_of(network, objective, problem, members))


def mixed(
    done: Sequence[Trained], cooled: Sequence[Cooled], alike: int, objective: Objective, problem: Problem
) -> tuple[Mixture, Tensor]:
    """All of them, and the even distribution, each counting what makes the labels of rows held out most likely.

    Gives the mixture, and log-probabilities (n, classes) of rows held out; the first ``alike`` of them are of one kind.
    What counts little is left out.

    The even distribution counts as much as one row more at least, as in Laplace's rule of succession: n rows are no
    ground for being surer of anything than n to 1, and one row that was certain and wrong costs as much as hundreds
    that were right.
    """
    known = torch.stack([~each.held_out[:, 0].isnan() for each in done]).all(0)
    rows = problem.take(known)
    even = objective.log_probabilities(torch.zeros(1, objective.columns)).expand(int(known.sum()), -1)
    said = torch.stack([*(each.held_out[known] for each in done), even])
    many = _of_all_members(cooled[:alike], _together(said, cooled[:alike], rows))
    many += [temperature for each in cooled[alike:] for temperature in _of_all_members([each], each.few)] + [1.0]
    few = torch.tensor([*(max(1.0, each.few) for each in cooled), 1.0], dtype=torch.float64)
    said = torch.log_softmax(said.div_(few.view(-1, 1, 1)), -1)

    alike = min(alike, len(done))  # fewer, if a training was stopped by hand
    found = powers(said[:-1], rows, alike)
    kept = [part for part, power in enumerate(found) if power >= LEAST_SHARE]
    found = powers(said[kept], rows, sum(part < alike for part in kept))
    kept.append(len(done))
    shares = torch.tensor([*found, 0.0], dtype=torch.float64)
    row, column, counts = rows.labels()
    likelihood = torch.stack((pooled(said[kept], shares)[row, column], even[row, column])).exp().clamp(min=1e-300)
    product, nothing = mixing_weights(likelihood.numpy(), counts.numpy()).tolist()
    shares *= product
    shares[-1] = nothing
    held_out = torch.full_like(done[0].held_out, math.nan)
    held_out[known] = pooled(said[kept], shares)
    networks = [*(each.network for each in done), Even(objective.columns)]
    of_nothing = objective.claimed(torch.zeros(len(problem), objective.columns), problem.target)
    claims = [*(each.claims for each in cooled), of_nothing]
    levels = _levels([claims[part] for part in kept], shares, problem)
    mixture = Mixture([networks[part] for part in kept], shares.tolist(), [many[part] for part in kept], levels)
    return mixture, held_out


def powers(said: Tensor, problem: Problem, alike: int) -> list[float]:
    """The powers s, 0 or more and adding up to 1, that make the labels likeliest, by (3) and (4).

    ``said`` (kinds, n, classes) are log-probabilities of the rows of ``problem``.
    """
    kinds = len(said)
    if kinds == 1:
        return [1.0]
    some = slice(None, None, max(1, math.ceil(said[0].numel() / MOST_FOR_A_TEMPERATURE)))
    said = said[:, some].clamp(min=LEAST)
    row, column, counts = problem.take(torch.arange(len(problem))[some]).labels()
    given = (said[:, row, column] * counts).sum(1)
    weight = torch.zeros(said.shape[1], dtype=torch.float64).index_add_(0, row, counts)
    prior = ALIKE / alike if alike > 1 else 0.0

    def cost(s: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        power = torch.from_numpy(s)
        product = torch.einsum("k,knc->nc", power, said)
        whole = product.logsumexp(-1)
        slope = torch.einsum("nc,knc,n->k", (product - whole.unsqueeze(-1)).exp(), said, weight) - given
        value = weight @ whole - power @ given
        if prior:
            same = power[:alike].clamp(min=1e-12)
            value -= prior * (same / same.sum()).log().sum()
            slope[:alike] -= prior / same - ALIKE / same.sum()
        total = float(weight.sum())
        return float(value) / total, (slope / total).numpy()

    start = np.full(kinds, 1 / kinds)
    whole = {"type": "eq", "fun": lambda s: s.sum() - 1, "jac": lambda s: np.ones(kinds)}
    found = minimize(
        cost, start, jac=True, method="SLSQP", bounds=[(0, 1)] * kinds, constraints=whole, options={"ftol": 1e-10}
    )
    best = np.clip(found.x if found.fun <= cost(start)[0] else start, 0, 1)
    return (best / best.sum()).tolist()


def _together(said: Tensor, kinds: Sequence[Cooled], problem: Problem) -> float:
    """The temperature that the mean of all repeats of some networks needs, the first of ``said``."""
    if len(kinds) == 1 or len(problem) < ENOUGH_FOR_A_TEMPERATURE:
        return kinds[0].few
    repeats = torch.tensor([each.repeats for each in kinds], dtype=torch.float64)
    return cooling(averaged(said[: len(kinds)], repeats / repeats.sum()), problem).temperature


def _of_all_members(kinds: Sequence[Cooled], together: float) -> list[float]:
    """T(m) of each kind by (2), where ``together`` is T(R) of their mean; at most what its few members need."""
    repeats = sum(each.repeats for each in kinds)
    alone = sum(each.repeats * each.alone for each in kinds) / repeats
    b = 0.0 if repeats == 1 else (alone - together) / (1 - 1 / repeats)
    return [max(1.0, min(each.few, each.few - b * (1 / each.repeats - 1 / each.members))) for each in kinds]


def _levels(claims: Sequence[Tensor | None], shares: Tensor, problem: Problem) -> Tensor | None:
    """(101,) levels of central intervals that hold the numbers of 0, 1, …, 100 % of the rows held out.

    The narrowest central interval that holds a number has the level max(1 − 2 P(not more), 2 P(less) − 1), 0 at least;
    what c of the rows need, and one row more that needs all, is the level for c, as in cross-conformal prediction (Vovk
    2015): whatever the distribution, so many new rows are held by members like those that the rows were held out from.
    All members together know a little more than those, and hold a little more.
    """
    there = [each for each in claims if each is not None]
    if len(there) < len(claims):
        return None
    less, not_more = torch.einsum("k,kin->in", shares, torch.stack(there))
    need = torch.maximum(1 - 2 * not_more, 2 * less - 1).clamp(min=0.0)
    weight = torch.ones_like(need) if problem.weight is None else problem.weight.double()
    known = ~need.isnan() & (weight > 0)
    if int(known.sum()) < ENOUGH_FOR_A_TEMPERATURE:
        return None
    need, order = need[known].sort()
    weight = weight[known][order] / weight[known].mean()
    reached = weight.cumsum(0) / (weight.sum() + 1)
    wanted = torch.linspace(0, 1, 101, dtype=torch.float64)
    levels = torch.cat((need, torch.ones(1, dtype=torch.float64)))[torch.searchsorted(reached, wanted)]
    levels[0], levels[-1] = 0.0, 1.0
    return levels
