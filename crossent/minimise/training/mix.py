"""Networks of unlike kinds, and trees, as one mixture: what each counts, and how much surer or less sure it is made.

The mean of models of unlike kinds costs less than any of them wherever they are wrong on other rows. All that is
settled here is settled by what they said of rows held out.

**Temperatures.** The epoch was chosen by what a temperature leaves, so an answer may be too sure until it is cooled. A
mean of m members is less sure than each of them, and needs less. The temperature that it needs is taken to be

    T(m)  =  a + b / m,                                                                                             (1)

and rows held out are answered by few members: those of r repeats of the folds, where all m = r · folds answer a new
row. b comes from what single members need beside what the mean over all R repeats needs, those of networks that differ
in a detail together,

    b  =  (T(1) − T(R)) / (1 − 1/R),      T(m)  =  T(r) − b (1/r − 1/m).                                            (2)

None is below 1: cooling undoes what the stop allowed, and whether a sharper answer helps is for the guarded calibrator
to show. On few rows without a mistake the likeliest temperature is near 0, and the first mistake pays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.measure.calibration.families import mixing_weights
from crossent.minimise.data.problem import Problem
from crossent.minimise.networks.several import Even, Mixture
from crossent.minimise.objective.objective import Objective
from crossent.minimise.training.judge import answers_of, averaged, claims_of, cooling, members_of
from crossent.minimise.training.train import Trained

ENOUGH_FOR_A_TEMPERATURE = 50
LEAST_SHARE = 0.02
"""Of a second model, below which it is left out."""
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


def mixed(
    done: Sequence[Trained], cooled: Sequence[Cooled], alike: int, objective: Objective, problem: Problem
) -> tuple[Mixture, Tensor]:
    """All of them, and the even distribution, each counting what makes the labels of rows held out most likely.

    Gives the mixture, and log-probabilities (n, classes) of rows held out; the first ``alike`` of them are of one kind.

    A few dozen rows settle what each counts: maximum likelihood of a mixture, by expectation-maximisation, where
    networks of one kind, which differ in a detail, count alike as long as there are few rows to tell them apart. What
    counts little is left out. The even distribution counts as much as one row more at least, as in Laplace's rule of
    succession: n rows are no ground for being surer of anything than n to 1, and one row that was certain and wrong
    costs as much as hundreds that were right.
    """
    known = torch.stack([~each.held_out[:, 0].isnan() for each in done]).all(0)
    row, column, counts = problem.take(known).labels()
    even = objective.log_probabilities(torch.zeros(1, objective.columns)).expand(int(known.sum()), -1)
    said = torch.stack([*(each.held_out[known] for each in done), even])
    many = _of_all_members(cooled[:alike], _together(said, cooled[:alike], problem.take(known)))
    many += [temperature for each in cooled[alike:] for temperature in _of_all_members([each], each.few)] + [1.0]
    few = torch.tensor([*(max(1.0, each.few) for each in cooled), 1.0], dtype=torch.float64)
    said = torch.log_softmax(said.div_(few.view(-1, 1, 1)), -1)

    alike = min(alike, len(done))  # fewer, if a training was stopped by hand

    def shares(parts: list[int]) -> list[float]:
        likelihood = said[:, row, column][parts].exp().clamp(min=1e-300)
        kind = sum(part < alike for part in parts)
        return mixing_weights(likelihood.numpy(), counts.numpy(), alike=kind, rows=ALIKE).tolist()

    parts = list(range(len(said)))
    kept = [part for part, share in zip(parts, shares(parts), strict=True) if share >= LEAST_SHARE or part == parts[-1]]
    kept = kept if len(kept) > 1 else parts
    found = torch.tensor(shares(kept), dtype=torch.float64)
    found = found / found.sum()
    held_out = torch.full_like(done[0].held_out, math.nan)
    held_out[known] = averaged(said[kept], found)
    networks = [*(each.network for each in done), Even(objective.columns)]
    of_nothing = objective.claimed(torch.zeros(len(problem), objective.columns), problem.target)
    claims = [*(each.claims for each in cooled), of_nothing]
    levels = _levels([claims[part] for part in kept], found, problem)
    mixture = Mixture([networks[part] for part in kept], found.tolist(), [many[part] for part in kept], levels)
    return mixture, held_out


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
