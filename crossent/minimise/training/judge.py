"""What networks say of rows: members' answers, the mean of them, and what the stop of a training looks at."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossent.errors import DataError, require
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import Scaling, fit_scaling
from crossent.minimise.data.problem import Problem
from crossent.minimise.networks.several import Mixture, averaged
from crossent.minimise.objective.objective import Objective, OfRange

MOST_ROWS_FOR_THE_CURVE = 1_000
MOST_ROWS_LEARNT = 8_000
"""By which the cross-entropy of what was learnt is told in the end."""
MOST_NUMBERS = 4_000_000
"""Read and said at once for that, of all members; wider rows are fewer."""
MOST_FOR_A_TEMPERATURE = 5_000_000
"""Probabilities that a temperature is fitted to at most: it is one number, which some hundred rows settle."""
MOST_COOLED = 3.0
"""The temperature that the stop allows without asking. Of noise some epoch in a hundred looks well by chance on a few
rows, at a temperature of 30: its answers are learnt by heart, and what the members say together is not cooled as
much."""
BY_CHANCE = math.log(2000)
"""Nats, in all of the rows held out, that more than that has to win. Answers that know nothing are k times as likely as
the truth in one draw of k at most (Markov's inequality), and so one of a hundred epochs is 2000 times in 5 % of all."""
LEAST_WORK_FOR_THREADS = 2e8
"""Multiplications in a forward pass below which one thread does it: threads that wait for each other a thousand
times a second gain little on a quiet machine, and made a run fifty times slower on one that was busy (LOG.md)."""


def logits_of(network: nn.Module, x: Tensor, rows: int = 8192) -> Tensor:
    """Logits (members, n, columns) of rows (n, …), or (members, n, d) where members read their own; piece by piece."""
    many = hasattr(network, "members")
    own = many and x.dim() == 3
    pieces = []
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for piece in x.split(max(1, min(rows, getattr(network, "rows_at_once", rows))), 1 if own else 0):
            logits = network(piece.to(device)).cpu()
            pieces.append(logits if many else logits.unsqueeze(0))
    return torch.cat(pieces, 1)


def together(network: nn.Module, log_p: Tensor) -> Tensor:
    """Log-probabilities (n, classes) of all members, from those of each (members, n, classes).

    A mixture knows how it is mixed; of members of one kind it is the mean of their probabilities.
    """
    return network.together(log_p) if isinstance(network, Mixture) else averaged(log_p)


def shares_of(network: nn.Module) -> Tensor | None:
    """What each member counts in a mean; None where all count alike."""
    return network.share_of_each if isinstance(network, Mixture) else None


Ends = tuple[NDArray[np.float64], NDArray[np.float64]]
"""The lower ends (n,) of intervals, and the upper ones."""


def interval_of(network: nn.Module, objective: Objective, x: Tensor, coverage: float) -> Ends:
    """The ends (n,) float64 of the interval that holds the numbers of prepared rows with probability ``coverage``.

    Of what the members believe together, in the target's unit, at the level at which such intervals held as many of the
    rows held out, where that is known. TypeError, a sentence, where they learnt classes, or a code without a
    distribution.
    """
    if not isinstance(objective, OfRange):
        raise TypeError("classes have no interval: their probabilities say all that is believed of them.")
    logits = logits_of(network, x)
    share = shares_of(network)
    even = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    levels = getattr(network, "levels", None)
    if levels is not None and 0 < coverage < 1:
        level = np.interp(coverage, np.linspace(0, 1, len(levels)), levels.numpy())
        coverage = min(max(float(level), 1e-6), 1 - 1e-6)
    low, high = objective.interval_of_mean(logits, even if share is None else share, coverage)
    return low.numpy(), high.numpy()


Members = list[tuple[Tensor, Tensor]]
"""For each member the rows it learns from and the rows it does not."""


def members_of(problem: Problem, fold: Tensor, network: nn.Module) -> Members:
    """Who learns from what: member m = repeat · folds + f of ``fold`` (repeats, n) holds out the rows of fold f."""
    parts = max(1, int(fold.max()) + 1)
    found = [((part != f).nonzero().flatten(), (part == f).nonzero().flatten()) for part in fold for f in range(parts)]
    if len(found) != getattr(network, "members", 1):
        raise ValueError(
            f"{len(found)} members are parted by fold, and the network has {getattr(network, 'members', 1)}."
        )
    return found


def held_out_of(network: nn.Module, objective: Objective, problem: Problem, members: Members) -> Tensor:
    """Log-probabilities (n, classes) of each row, averaged over the members that had not learned from it."""
    network.eval()
    if not all(len(held) for _, held in members):  # nothing is held out where all is learnt from: stop is "none"
        return torch.full((len(problem), problem.task.columns), math.nan, dtype=torch.float64)
    answers = answers_of(network, objective, problem, members)
    if len(answers) == 1:
        only = torch.full((len(problem), answers[0][1].shape[-1]), math.nan, dtype=torch.float64)
        only[answers[0][0]] = answers[0][1]
        return only
    sum_p = torch.full((len(problem), answers[0][1].shape[-1]), -math.inf, dtype=torch.float64)
    times = torch.zeros(len(problem), 1, dtype=torch.float64)
    for held, said in answers:
        sum_p[held] = torch.logaddexp(sum_p[held], said)
        times[held] += 1
    return torch.where(times > 0, sum_p - times.log(), math.nan)


def answers_of(
    network: nn.Module, objective: Objective, problem: Problem, members: Members
) -> list[tuple[Tensor, Tensor]]:
    """For each member the rows held out from it, and its log-probabilities (rows, classes) of them."""
    logits = _held_out_logits(network, problem, members)
    return [(held, objective.log_probabilities(said)) for (_, held), said in zip(members, logits, strict=True)]


def _held_out_logits(network: nn.Module, problem: Problem, members: Members) -> list[Tensor]:
    """For each member its logits (rows, columns) of the rows held out from it."""
    most = max(len(held) for _, held in members)
    # Folds differ by a row or so: shorter ones repeat a row, whose second answer is left out.
    rows = torch.stack([torch.cat((held, held[:1].expand(most - len(held)))) for _, held in members])
    with threads(network, most):
        if hasattr(network, "members"):
            pieces = rows.split(8192 // len(members) + 1, 1)  # all at once would be a copy of the rows for each repeat
            logits = torch.cat([logits_of(network, problem.x[piece]) for piece in pieces], 1)
        else:
            logits = logits_of(network, problem.x[rows[0]])
    return [said[: len(held)] for (_, held), said in zip(members, logits, strict=True)]


def claims_of(network: nn.Module, objective: Objective, problem: Problem, members: Members) -> Tensor | None:
    """The probabilities (2, n) of less and of not more than each row's number, by members that had not learned from it.

    NaN where all had; None where classes were learnt, or a code without a distribution.
    """
    if not isinstance(objective, OfRange):
        return None
    total, times = torch.zeros(2, len(problem), dtype=torch.float64), torch.zeros(len(problem), dtype=torch.float64)
    for (_, held), said in zip(members, _held_out_logits(network, problem, members), strict=True):
        if (claimed := objective.claimed(said, problem.target[held])) is None:
            return None
        total[:, held] += claimed
        times[held] += 1
    return torch.where(times > 0, total / times, math.nan)


def learnt_of(network: nn.Module, objective: Objective, problem: Problem, members: Members, most: int) -> float:
    """Cross-entropy on a sample of the rows, at ``most`` so many, by members that learned from them."""
    numbers = problem.x[:1].numel() + len(members) * objective.columns
    most = min(len(problem), most, max(100, MOST_NUMBERS // numbers))
    sample = torch.linspace(0, len(problem) - 1, most).long()
    with threads(network, len(sample)):
        log_p = objective.log_probabilities(logits_of(network, problem.x[sample], 8192 // len(members) + 1))
    learnt = torch.ones(len(members), len(problem), dtype=torch.bool)
    for member, (_, held) in enumerate(members):
        learnt[member, held] = False
    learnt = learnt[:, sample]
    known = learnt.any(0)
    log_p = torch.where(learnt.unsqueeze(-1), log_p, -math.inf)[:, known]
    log_p = log_p.logsumexp(0) - learnt.sum(0)[known].double().log().unsqueeze(-1)
    return problem.take(sample[known]).cross_entropy(log_p)


def score(log_p: Tensor, problem: Problem, members: Members, stop: str) -> float:
    """What the stop looks at: held-out cross-entropy, or what a fitted temperature leaves of it.

    The second is the refinement part, which goes on falling while over-confidence, which a calibrator mends later,
    makes the whole rise (Berta, Holzmüller, Jordan & Bach 2025, §4). A temperature above ``MOST_COOLED`` costs what
    ``BY_CHANCE`` says. Soft labels and weights count in it as they do in the loss.
    """
    known = torch.zeros(len(problem), dtype=torch.bool)
    known[torch.cat([held for _, held in members])] = True
    if log_p[known].isnan().any():
        return math.nan
    if stop == "refinement":
        counts = known if problem.weight is None else known & (problem.weight > 0)
        fitted = cooling(log_p[counts], problem.take(counts))
        rows, said = problem.take(known), log_p[known].numpy()

        def left(temperature: float) -> float:
            return rows.cross_entropy(torch.from_numpy(replace(fitted, temperature=temperature).of_logits(said)))

        if fitted.temperature <= MOST_COOLED:
            return left(fitted.temperature)
        return min(left(MOST_COOLED), left(fitted.temperature) + BY_CHANCE / int(counts.sum()))
    return problem.cross_entropy(log_p, known)


def cooling(log_p: Tensor, problem: Problem) -> Scaling:
    """The temperature that makes the labels of rows most likely, given log-probabilities (n, classes) of them."""
    some = slice(None, None, max(1, math.ceil(log_p.numel() / MOST_FOR_A_TEMPERATURE)))
    truth = problem.distribution[some].numpy()
    if truth.ndim == 2:  # shares were rounded to float32, and have to add up to 1
        truth = truth / truth.sum(1, keepdims=True)
    weight = None if problem.weight is None else problem.weight[some].double().numpy()
    return fit_scaling(rows_of(log_p[some].numpy(), truth, weight), "temperature")


@contextlib.contextmanager
def blas_alone() -> Iterator[None]:
    """NumPy's and SciPy's products on one thread.

    Here they are of a few numbers, and threads that wait for the next one, awake, took as much of a processor as the
    training itself (LOG.md).
    """
    with require("threadpoolctl", "cli", "training").threadpool_limits(1, "blas"):
        yield


@contextlib.contextmanager
def threads(network: nn.Module, rows: int) -> Iterator[None]:
    """One thread where there is too little work for more."""
    before = torch.get_num_threads()
    work = getattr(network, "work", None) or sum(p.numel() for p in network.parameters())
    if rows * work < LEAST_WORK_FOR_THREADS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def columns_of(network: nn.Module, x: Tensor) -> int:
    """How many logits a network gives each row of x (n, …), which it is asked for two of."""
    rows = x[:2]
    network.eval()
    with torch.no_grad():
        said = network(rows)
    if not isinstance(said, Tensor) or said.dim() != 2 or len(said) != len(rows):
        what = f"a tensor of shape {tuple(said.shape)}" if isinstance(said, Tensor) else f"a {type(said).__name__}"
        raise DataError(
            f"a network of your own should give a tensor of logits, (rows, logits): for {len(rows)} rows {what} came. "
            "Wrap it in a module whose forward returns that."
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise DataError("nothing of the network can learn: it has no parameter, or all have requires_grad=False.")
    return said.shape[1]
