"""Trials, one after the other: what a recipe is worth on rows its networks have not seen, until the time is over.

Every trial ends in the study, whatever happens to it: judged on all folds, pruned, stopped by the time or by hand, or
failed with a sentence. None of them ends the search.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossent.errors import DataError
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.scaling import fit_scaling
from crossent.measure.intervals.cluster import cluster_mean
from crossent.measure.sums.hashing import stream
from crossent.minimise.data.problem import Problem, folds
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.learn import Factory, learn
from crossent.minimise.training.train import Progress
from crossent.minimise.tune.space import Space
from crossent.minimise.tune.study import START, Study, expected
from crossent.record import Number

FOLDS = 5
BLOCKS = 8
"""Parts of the rows held out at a time, whose losses are compared in pairs: fewer would prove nothing in one fold."""
TOO_SLOW = 5.0
"""Times the seconds that the best trial took for a training after which it is given up, where there is a budget."""
ASKED_EVERY = 5
"""Trials from one question to the terminator to the next: it takes about a second to answer."""


class Over(Exception):
    """The time of a trial is over; the message says which time."""


class Judge:
    """What a recipe is worth on rows that its networks have not seen."""

    def __init__(
        self, problem: Problem, seed: int, fabric: Any, model: Factory | None, progress: Callable[[Progress], None]
    ) -> None:
        self.problem, self.seed, self.fabric, self.model, self.progress = problem, seed, fabric, model, progress
        self.fold = folds(problem, min(FOLDS, len(problem)), 1, seed)
        self.folds = int(self.fold.max()) + 1
        truth = problem.distribution.numpy()
        self.truth = truth[:, 1] if problem.task.kind == "range" else truth
        weight = None if problem.weight is None else problem.weight.double().numpy()
        self.weight = weight
        counts = np.ones(len(problem), dtype=bool) if weight is None else weight > 0
        self.rows: list[NDArray[np.int64]] = []
        self.blocks: list[list[NDArray[np.int64]]] = []
        for number in range(self.folds):
            rows = np.flatnonzero((self.fold[0] == number).numpy() & counts)
            rows = stream(seed, f"blocks {number}").permutation(rows)
            self.rows.append(rows)
            self.blocks.append([block for block in np.array_split(rows, BLOCKS) if len(block)])

    def groups(self, recipe: Recipe) -> list[list[int]]:
        """The folds that are held out one after the other, or beside each other.

        The networks of a table learn side by side, and five of them hardly longer than one where there are few rows: so
        the first fold is for pruning, and all others come together. Networks that learn one after the other can be
        pruned after each.
        """
        if self.model is None and self.problem.x.dim() == 2 and ":" not in recipe.model:
            return [[0], list(range(1, self.folds))]
        return [[number] for number in range(self.folds)]

    def costs(self, recipe: Recipe, group: list[int], watch: Callable[[], None]) -> list[NDArray[np.float64]]:
        """What each row held out in each fold of a group costs, in nats, in the order of ``rows``.

        ``watch`` is called all along and may raise.
        """

        def report(at: Progress) -> None:
            watch()
            self.progress(replace(at, network=group[0] + 1, networks=self.folds))

        # All members hold out the same rows, so that what is judged is their mean.
        plan = torch.full_like(self.fold, -1)
        for part, number in enumerate(group):
            plan[self.fold == number] = part
        learned = learn(
            self.problem,
            recipe.changed(refit=False, trees=False),  # trees are the same whatever is tried
            self.seed,
            fold=plan.expand(recipe.members, -1).contiguous(),
            factory=self.model,
            fabric=self.fabric,
            progress=report,
        )
        if "by hand" in learned.history.stopped:
            raise KeyboardInterrupt
        log_p = learned.held_out.numpy()
        costs = []
        for number in group:
            rows = self.rows[number]
            weight = None if self.weight is None else self.weight[rows]
            held_out = rows_of(log_p[rows], self.truth[rows], weight)
            costs.append(held_out.costs(fit_scaling(held_out, "temperature").of_logits(held_out.z)))
        return costs

    def mean(self, costs: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
        """Of all rows (n,) what some cost on average."""
        return float(np.average(costs[rows], weights=None if self.weight is None else self.weight[rows]))


class Search:
    """One process's part in a search: trials until the time, or something else, is over."""

    def __init__(
        self,
        study: Study,
        judge: Judge,
        space: Space,
        base: Recipe,
        began: float,
        budget: float | None,
        trials: int | None,
        said: Callable[[str], None],
    ) -> None:
        self.study, self.judge, self.space, self.base, self.said = study, judge, space, base, said
        self.began, self.budget, self.most = began, budget, trials
        self.seconds: list[float] = []  # of the trials of this process
        self.why = ""

    def run(self) -> None:
        """Try recipes; ``why`` says in the end what ended it."""
        while not self.why:
            try:
                self.study.mend()
                if self.most is not None and self.study.begun >= self.most:
                    self.why = f"the {self.most} trials asked for were done"
                elif time.monotonic() >= self.end:
                    self.why = "the rest of the time is for the training with the best recipe"
                else:
                    self._one()
                    self._ask()
            except KeyboardInterrupt:
                self.why = "it was stopped by hand"

    @property
    def end(self) -> float:
        """When the search must end so that the best recipe can be trained on all folds, by ``time.monotonic()``."""
        if self.budget is None:
            return math.inf
        best = self.study.best
        # The last training is of the recipe's folds, and takes about as long for each as a trial did.
        last = math.inf if best is None else best.user_attrs["seconds"] * self.base.folds / self.judge.folds
        return self.began + self.budget - min(0.5, (1 + self.base.refit) * last / self.budget) * self.budget

    def _one(self) -> None:
        """One trial, from its settings to its end, whatever that is."""
        study, judge, began = self.study, self.judge, time.monotonic()
        trial = study.begin()
        known: dict[str, Any] = {"folds": 0}
        costs = np.full(len(judge.problem), np.nan)
        times: list[float] = []
        try:
            recipe = study.recipe(trial, self.space, self.base)
            known |= {"settings": recipe.command(self.base) or START, "recipe": recipe.to_dict()}
            ended = None
            for group in judge.groups(recipe):
                started = time.monotonic()
                for fold, cost in zip(group, judge.costs(recipe, group, self._watch(trial, len(times))), strict=True):
                    costs[judge.rows[fold]] = cost
                times.append(round(time.monotonic() - started, 3))
                known["folds"] += len(group)
                if ended := self._worse(trial, costs, group):
                    break
            state, value, sentence = ended or ("complete", *self._all(costs, known))
        except KeyboardInterrupt:
            state, value, sentence = "stopped", None, "Stopped by hand."
            self.why = "it was stopped by hand"
        except Over as late:
            state, value, sentence = "stopped", None, str(late)
        except Exception as trouble:  # memory, numbers, settings that exclude each other, a network of the user's own
            state, value = "failed", None
            sentence = " ".join(str(trouble).split())[:500] or type(trouble).__name__
        self.seconds.append(time.monotonic() - began)
        known |= {"times": times, "seconds": round(self.seconds[-1], 2), "sentence": sentence}
        study.end(trial, state, value, **known)
        self.said(f"Trial {trial.number}: {state}. {sentence} {trial.user_attrs.get('settings', '')}".rstrip())

    def _watch(self, trial: Any, place: int) -> Callable[[], None]:
        """What is looked at all through the training in a ``place`` of a trial: whether there is time left for it."""
        end, best, started = self.end, self.study.best, time.monotonic()
        slow = math.inf
        if self.budget is not None and best is not None:
            slow = TOO_SLOW * max(1.0, *best.user_attrs["times"][place : place + 1])

        def watch() -> None:
            now = time.monotonic()
            if now > end:
                raise Over("The time for the search was over.")
            if now - started > slow:
                raise Over(f"A training took more than {TOO_SLOW:g} times as long as the best trial's, {slow:.0f} s.")
            self.study.alive(trial)

        return watch

    def _worse(self, trial: Any, costs: NDArray[np.float64], group: list[int]) -> tuple[str, float, str] | None:
        """Write down what the rows of some folds cost; how the trial ends, if that is surely more than they must."""
        study, judge = self.study, self.judge
        losses = {
            fold * BLOCKS + place: judge.mean(costs, block)
            for fold in group
            for place, block in enumerate(judge.blocks[fold])
        }
        if not np.isfinite(list(losses.values())).all():
            raise DataError("A label was given probability 0, and its loss is infinite.")
        done = group[-1] + 1
        if not study.prunes(trial, losses) or done == judge.folds:
            return None
        best = study.best
        gap = study.gap(trial, best).value
        sentence = f"After {done} of {judge.folds} folds {gap:+.4f} nats from trial {best.number}, the best."
        return "pruned", best.value + gap, sentence  # about what it would have come to: the sampler learns from that

    def _all(self, costs: NDArray[np.float64], known: dict[str, Any]) -> tuple[float, str]:
        """The loss of all rows, with its interval and those of the folds in ``known``, and a sentence."""
        judge, before = self.judge, self.study.best
        rows = np.concatenate(judge.rows)
        found = cluster_mean(costs[rows], None if judge.weight is None else judge.weight[rows])
        low, high = found.interval()
        losses = [judge.mean(costs, held_out) for held_out in judge.rows if len(held_out)]
        known |= {"low": low, "high": high, "losses": losses}
        lowest = ", the lowest so far" if before is None or found.value < before.value else ""
        return found.value, f"{_written(Number(found.value, 'nats', low, high))}{lowest}."

    def _ask(self) -> None:
        """Ask the terminator now and then whether more trials are worth their time."""
        if self.why or len(self.seconds) % ASKED_EVERY:
            return
        left = self.study.still_to_win()
        if left is None or left[0] >= left[1]:
            return
        sentence = (
            f"Nothing more is to be won that these rows could show: at most {left[0]:.4f} nats, and what the folds "
            f"leave in doubt is {left[1]:.4f}"
        )
        if self.most is None:
            self.why = sentence[0].lower() + sentence[1:]
        else:
            self.said(f"{sentence}. The trials asked for are done all the same.")

    # What was found

    @property
    def recipe(self) -> Recipe:
        """The best recipe; the one to start from, if no trial was completed."""
        best = self.study.best
        return self.base if best is None else Recipe(**best.user_attrs["recipe"])

    def sentences(self) -> list[str]:
        """What was tried, what was won and what is still to be won."""
        states = self.study.table()["state"]
        of = {
            "complete": "judged on all folds", "pruned": "pruned", "failed": "failed", "stopped": "stopped",
            "lost": "lost and begun again", "running": "running elsewhere",
        }  # fmt: skip
        counted = ", ".join(f"{states.count(state)} {words}" for state, words in of.items() if state in states)
        trials = f"{len(states)} trial{'s' * (len(states) != 1)}"
        said = [f"{trials}: {counted or 'none'}. The search ended because {self.why}."]
        best, first = self.study.best, self.study.first
        if best is None:
            return [*said, "No trial was finished, so that the recipe to start from is the answer."]
        interval = Number(best.value, "nats", best.user_attrs["low"], best.user_attrs["high"])
        said.append(
            f"The lowest held-out cross-entropy is trial {best.number}'s, {_written(interval)}: "
            f"{best.user_attrs['settings']}."
        )
        if first is None:
            said.append("The recipe to start from was not judged on all folds, so that what was won is not known.")
        elif first.number == best.number:
            said.append("No other recipe was better than the one to start from.")
        else:
            won = self.study.gap(first, best)
            doubt = "These rows cannot tell the two apart. " if won.low is None or won.low <= 0 else ""
            said.append(
                f"That is {_written(won)} less than the recipe to start from costs, in pairs over blocks of rows. "
                f"{doubt}The best of many is always a little lucky; the test says what it is worth."
            )
        return [*said, *self._next_minute()]

    def _next_minute(self) -> list[str]:
        values = [trial.value for trial in self.study.trials if trial.value is not None]
        if not self.seconds or len(values) < 4:
            return []
        further = 60 / max(1e-3, float(np.mean(self.seconds)))
        return [
            f"Another minute, {further:.2g} trials, is expected to win {expected(values, further):.2g} nats of "
            "held-out loss."
        ]

    def numbers(self) -> dict[str, Number]:
        """The held-out loss of the best trial, and what it won in pairs against the recipe to start from."""
        best, first = self.study.best, self.study.first
        if best is None:
            return {}
        rows = sum(map(len, self.judge.rows))
        found = {
            "search_cross_entropy": Number(best.value, "nats", best.user_attrs["low"], best.user_attrs["high"], rows)
        }
        return found if first is None else {**found, "search_win": self.study.gap(first, best)}


def _written(number: Number) -> str:
    interval = "" if number.low is None else f" ({number.low:.4f} to {number.high:.4f})"
    return f"{number.value:.4f} nats{interval}"
