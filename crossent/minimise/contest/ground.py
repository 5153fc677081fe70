"""Where losses are compared: what the networks of every loss learn from, and the rows that judge them.

    Drawn       rows of a table, images or texts. A test is set apart; or, with folds, every row is judged in turn, once
                for each seed, by networks that have not seen it
    Brought     loaders of the user's own, with a function that makes the network

Either gives the *lessons* of a seed: one, or one for each fold. In a lesson every loss learns from the same rows, from
the same start, in the same batches. The rows for the temperature are set apart from all its networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import starmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossent.errors import DataError
from crossent.measure.sums.hashing import stream
from crossent.minimise import own
from crossent.minimise.data.dataset import Data
from crossent.minimise.data.parts import Judged, Part, parted, prepared
from crossent.minimise.data.problem import Problem, folds
from crossent.minimise.data.task import Task
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.learn import Factory, Learned, learn, learn_from_loader


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known of rows: where they stand in their data, labels as a task encodes them, weights (n,) or None."""

    place: NDArray[np.int64]
    encoded: NDArray[Any]
    weight: NDArray[np.float64] | None

    @classmethod
    def of(cls, part: Part | Judged) -> Rows:
        """What a part of the data, or rows of loaders, say of themselves."""
        return cls(part.rows, part.encoded, part.weight)

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What the networks of one seed learn from, on one split.

    ``learn(recipe, seed, fabric=, checkpoint=, progress=, deadline=)`` trains. ``apart`` are features of rows for the
    temperature, and ``known`` what is known of them; ``judged`` are features of the rows to judge by, ``tested`` what
    is known of those, and ``at`` (n,) where they stand among all that are judged.
    """

    learn: Callable[..., Learned]
    apart: Tensor
    known: Rows
    judged: Tensor
    tested: Rows
    at: NDArray[np.int64]


class Drawn:
    """Rows with labels, of which a test is set apart (``folds`` None), or all are judged in turn."""

    columns: int | None = None
    """Logits of the network, where it is not made to measure."""

    def __init__(
        self,
        mine: Data,
        other: Data | None,
        task: Task,
        asked: str,
        model: Factory | None,
        seed: int,
        folds: int | None,
    ) -> None:
        """``asked`` is the recipe's model, if any was asked for; ``seed`` the first one, which draws the test."""
        self.task, self.source, self.target = task, mine.source, mine.target
        self._asked, self._model, self._folds, self._mine, self._seed = asked, model, folds, mine, seed
        rest, judge = parted(task, mine, other, seed)
        if folds is not None:
            if other is not None:
                raise DataError("with folds every row is judged in turn, so that no test of its own can be given.")
            rows = np.arange(len(mine))
            judge = Part(mine, rows, task.encode(mine.y, rows, mine.source))
            if not 2 <= folds <= len(mine):
                raise DataError(f"there are 2 folds at least and one for each row at most, and {folds} were asked for.")
        self._judge = _that_count(judge)
        self.tested = Rows.of(self._judge)
        self._rest = rest
        self._first = preparation, problem, *_ = self._prepared(*next(self._splits(seed)))
        self.problem, self.notes = problem, list(preparation.notes)
        # One network for each loss, and nothing to lean on.
        self.usual = Recipe.usual(problem).changed(plain=False, beside=False)
        self.sizes = {"learn": len(problem), "test": len(self.tested)}

    def lessons(self, seed: int) -> Iterator[Lesson]:
        """What the networks of a seed learn from: one lesson, or one for each fold."""
        splits = [self._first] if self._folds is None else starmap(self._prepared, self._splits(seed))
        for _, problem, rest, judge, judged, model in splits:
            learnt, apart, known = _parted(problem, rest, seed)
            train = partial(learn, learnt, factory=model)
            at = np.searchsorted(self.tested.place, judge.rows)
            yield Lesson(train, apart, known, judged, Rows.of(judge), at)

    def says(self, recipe: Recipe) -> str:
        """Which rows teach and which judge, in words."""
        learn, test = self.sizes["learn"], self.sizes["test"]
        tested = f"{test:,} to test" if self._folds is None else f"{test:,} to test in turn, in {self._folds} folds"
        return f"{learn:,} rows to learn from, {recipe.says_of_folds(learn)}; {tested}"

    def covers(self, seeds: int) -> str:
        """What intervals are over."""
        drawn = "draws rows for the temperature, folds, starts and batches anew"
        if self._folds is not None:
            return (
                f"rows, each tested once by every seed, and {seeds} × {self._folds} trainings, seeds and folds, with a "
                "correction for the rows that trainings share (after Nadeau & Bengio 2003)"
            )
        return f"test rows and seeds, each of which {drawn}" if seeds > 1 else "test rows alone"

    def _splits(self, seed: int) -> Iterator[tuple[Part, Part]]:
        """Rows to learn from and rows to judge by; folds are drawn by class, by the seed alone."""
        if self._folds is None:
            yield self._rest, self._judge
            return
        whole = self._judge
        share = Problem(self.task, torch.empty(len(whole), 0), self.task.target(whole.encoded))
        drawn = int(stream(seed, "outer folds").integers(2**62))
        fold = folds(share, self._folds, 1, drawn)[0].numpy()
        for number in range(self._folds):
            yield (
                replace(whole, rows=whole.rows[fold != number], encoded=whole.encoded[fold != number]),
                replace(whole, rows=whole.rows[fold == number], encoded=whole.encoded[fold == number]),
            )

    def _prepared(self, rest: Part, judge: Part) -> tuple[Any, Problem, Part, Part, Tensor, Factory | None]:
        """What is known of features is learnt from the rows to learn from, in every fold anew."""
        preparation, features, model = prepared(self._asked, rest.x, self.source, self.task, self._model)
        problem = Problem(self.task, features, self.task.target(rest.encoded), rest.tensor_of_weights)
        return preparation, problem, rest, judge, preparation(judge.x, judge.data.source), model


def _parted(problem: Problem, rest: Part, seed: int) -> tuple[Problem, Tensor, Rows]:
    """Rows to learn from, and a sixth set apart for the temperature, drawn by class: features, and what is known."""
    apart = folds(problem, 1, 1, seed)[0] == 0
    counts = apart.numpy() if rest.weight is None else apart.numpy() & (rest.weight > 0)
    if not counts.any():
        raise DataError("no row with a weight was drawn for the temperature; take another seed.")
    known = Rows.of(replace(rest, rows=rest.rows[counts], encoded=rest.encoded[counts]))
    return problem.take(~apart), problem.x[torch.from_numpy(counts)], known


class Brought:
    """Three loaders, and a function without arguments that makes a fresh network."""

    def __init__(self, make: Callable[[], nn.Module], loaders: Any, limits: tuple[float, float] | None) -> None:
        """``loaders`` as for ``fit``: to learn from, to choose the epoch and the temperature by, and to judge by."""
        self.usual = Recipe(folds=1, members=1)
        self._make, self._last = make, _network(make(), None)
        loader, self.problem, judge = own.look(loaders, self._last, limits, self.usual)
        self.task = self.problem.task
        with torch.no_grad():
            self.columns = int(self._last.eval()(self.problem.x[:2]).shape[-1])
        self._loader, self._judge = loader, judge
        self.tested, self._known = (Rows.of(own.judged(part, torch.empty(0))) for part in (judge, self.problem))
        self.source, self.target = getattr(make, "__name__", type(make).__name__), "y"
        self.notes = ["The temperature was fitted to the rows that chose the epoch, those of the validation loader."]
        self.sizes = {"learn_batches": len(loader), "validation": len(self.problem), "test": len(judge)}

    def lessons(self, seed: int) -> Iterator[Lesson]:
        """One lesson, for the networks of a seed."""
        at = np.arange(len(self.tested))
        yield Lesson(self._train, self.problem.x, self._known, self._judge.x, self.tested, at)

    def says(self, recipe: Recipe) -> str:
        """Which rows teach and which judge, in words."""
        batches, chosen, test = self.sizes.values()
        return f"{batches:,} batches to learn from, {chosen:,} rows to choose by; {test:,} to test"

    def covers(self, seeds: int) -> str:
        """What intervals are over."""
        return "test rows and seeds, each of which draws starts and batches anew" if seeds > 1 else "test rows alone"

    def _train(self, recipe: Recipe, seed: int, **how: Any) -> Learned:
        """From the start that the seed makes, in its batches, whether the loader draws them by torch or by itself."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._last = network = _network(self._make(), self._last)
        for owner in (self._loader, getattr(self._loader, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(seed)
        return learn_from_loader(network, own.scaled(self._loader, self.task), self.problem, recipe, seed, **how)


def _network(made: Any, last: nn.Module | None) -> nn.Module:
    """What the user's function made, if it is a fresh network."""
    if not isinstance(made, nn.Module):
        raise DataError(f"the function should make a network, a torch.nn.Module, and made a {type(made).__name__}.")
    if last is not None and {*map(id, made.parameters())} & {*map(id, last.parameters())}:
        raise DataError("the function gave parameters of the last network again; every training needs a fresh one.")
    return made


def _that_count(part: Part) -> Part:
    """The rows whose weight is not 0."""
    if part.weight is None or part.weight.all():
        return part
    here = part.weight > 0
    if not here.any():
        raise DataError("all rows of the test have weight 0, so that nothing is left to compare on.")
    return replace(part, rows=part.rows[here], encoded=part.encoded[here])
