"""What a search may change: for each setting of a recipe the texts it may be, with ranges in them for numbers.

    learning_rate   1e-3..2e-2 log                   a number between the two, drawn by its logarithm
    depth           1..4                             a whole number, because the setting is one
    mixup           0, 0.1..1                        none, or a number
    loss            nll, focal(0.3..3), gce(0.1..0.7)
    code            fraction, hlgauss(20..100)       in brackets a range of whole numbers is written without a point

Alternatives are parted by commas outside brackets. Each one, its ranges filled in, is read as ``--set NAME=TEXT`` is:
so a trial is a recipe, a recipe is a command, and what a setting may be is decided in one place. Numbers are drawn
with three digits, so that the command repeats them exactly.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from crossent.errors import DataError
from crossent.minimise.data.problem import Problem
from crossent.minimise.objective.spelling import split
from crossent.minimise.recipe import Recipe

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(\s+log\b)?")
_UNEVEN = 3
"""How many times as often as the rarest class the commonest one comes before cures for imbalance are tried."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, drawn evenly or by their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    def drawn(self, trial: Any, name: str) -> str:
        """The text of a number that an Optuna trial suggests."""
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return self.text(trial.suggest_float(name, self.low, self.high, log=self.log))

    def text(self, value: float) -> str:
        """A number within the range, as it is written: three digits, or more at an end that has more."""
        if self.whole:
            return str(int(value))
        rounded = float(f"{value:.3g}")
        return f"{min(max(rounded, self.low), self.high):.6g}"


@dataclass(frozen=True)
class Alternative:
    """One text that a setting may be, and the ranges in it, in their order."""

    text: str
    ranges: tuple[Range, ...]

    def filled(self, numbers: Sequence[str]) -> str:
        """The text with numbers in the place of its ranges."""
        given = iter(numbers)
        return _RANGE.sub(lambda _: next(given), self.text)

    def found_in(self, value: str) -> list[float] | None:
        """The numbers that make this text out of a value, or None if none do."""
        pieces = _RANGE.split(self.text)[::4]  # between the ranges; split gives their three groups too
        pattern = f"({_NUMBER})".join(re.escape(piece.replace(" ", "")) for piece in pieces)
        found = re.fullmatch(pattern, value.replace(" ", ""))
        if found is None:
            return None
        numbers = [float(number) for number in found.groups()]
        fits = all(
            r.low <= number <= r.high and (not r.whole or number == int(number))
            for r, number in zip(self.ranges, numbers, strict=True)
        )
        return numbers if fits else None


@dataclass(frozen=True)
class Domain:
    """A setting and the alternatives for it."""

    name: str
    alternatives: tuple[Alternative, ...]

    @property
    def text(self) -> str:
        """As it was written."""
        return ", ".join(alternative.text for alternative in self.alternatives)

    def names(self, alternative: Alternative) -> list[str]:
        """What Optuna calls the numbers of an alternative: as the setting, if there is nothing else to it."""
        if len(self.alternatives) == 1 and alternative.ranges and _RANGE.fullmatch(alternative.text):
            return [self.name]
        several = len(alternative.ranges) > 1
        return [
            f"{self.name}: {alternative.text}" + (f", number {place}" if several else "")
            for place, _ in enumerate(alternative.ranges, 1)
        ]

    def drawn(self, trial: Any) -> str:
        """The text that an Optuna trial suggests."""
        chosen = self.alternatives[0]
        if len(self.alternatives) > 1:
            text = trial.suggest_categorical(self.name, [alternative.text for alternative in self.alternatives])
            chosen = next(alternative for alternative in self.alternatives if alternative.text == text)
        return chosen.filled([r.drawn(trial, name) for r, name in zip(chosen.ranges, self.names(chosen), strict=True)])

    def place_of(self, value: str) -> dict[str, Any] | None:
        """What a trial would have to suggest for a value; None if the value is not among the alternatives."""
        for alternative in self.alternatives:
            numbers = alternative.found_in(value)
            if numbers is None:
                continue
            kinds = [int if r.whole else float for r in alternative.ranges]
            drawn = {
                name: kind(number) for name, kind, number in zip(self.names(alternative), kinds, numbers, strict=True)
            }
            return drawn if len(self.alternatives) == 1 else {self.name: alternative.text, **drawn}
        return None


@dataclass(frozen=True)
class Space:
    """The settings that a search may change; as a mapping of texts it goes into the record.

    >>> space = Space.of({"learning_rate": "1e-3..1e-2 log", "loss": "nll, focal(0.5..3)"}, Recipe())
    >>> space.place_of(Recipe(loss="focal(2)"))
    {'learning_rate': 0.004, 'loss': 'focal(0.5..3)', 'loss: focal(0.5..3)': 2.0}
    """

    domains: tuple[Domain, ...]

    @classmethod
    def of(cls, texts: dict[str, str], base: Recipe) -> Space:
        """Read what each setting may be; refused are unknown settings, and texts that are no value of theirs."""
        return cls(tuple(_domain(name, text, base) for name, text in texts.items()))

    @classmethod
    def read(cls, written: Sequence[str], problem: Problem, base: Recipe, fixed: Sequence[str] = ()) -> Space:
        """The space of texts NAME=ALTERNATIVES, or NAME for the usual ones; the usual space if there are none.

        Settings named in ``fixed`` are left alone. Losses, codes and cures are tried at the ends of their ranges, so
        that a misspelt one is refused before the search and not by every trial.
        """
        usual = usual_texts(problem, base)
        texts = {name: text for name, text in usual.items() if name not in fixed} if not written else {}
        for one in written:
            name, equals, text = (piece.strip() for piece in one.partition("="))
            if name not in base.to_dict():
                raise DataError(_unknown(name, base))
            if name in fixed or name in texts:
                raise DataError(f"--space names {name!r}, which {'--set fixes' if name in fixed else 'it has named'}.")
            if not equals and name not in usual:
                raise DataError(
                    f"--space {name} has no usual alternatives for these data and this recipe; write them: "
                    f"--space '{name}=…'. The usual space has {', '.join(usual)}."
                )
            texts[name] = text if equals else usual[name]
        space = cls.of(texts, base)
        for domain in space.domains:
            if domain.name in ("loss", "code", "imbalance", "label_smoothing"):
                for text in _ends(domain):
                    # Alone: whether it goes with the others is what trials are for, and they say so if it does not.
                    Recipe().parsed([f"{domain.name}={text}"]).objective(problem.task, problem.counts())
        return space

    def __iter__(self) -> Iterator[Domain]:
        return iter(self.domains)

    def __len__(self) -> int:
        return len(self.domains)

    def recipe(self, trial: Any, base: Recipe, first: bool = False) -> Recipe:
        """The recipe that an Optuna trial suggests; the first trial is ``base``, wherever the space leads."""
        return base.parsed(self.drawn(trial, base, first))

    def drawn(self, trial: Any, base: Recipe, first: bool = False) -> list[str]:
        """The same as texts NAME=VALUE, which may exclude each other; none for the first trial."""
        if first:
            for domain in self.domains:
                if domain.place_of(_written(base, domain.name)) is not None:
                    domain.drawn(trial)
            return []
        return [f"{domain.name}={domain.drawn(trial)}" for domain in self.domains]

    def place_of(self, recipe: Recipe) -> dict[str, Any]:
        """Where a recipe lies in the space: what Optuna would call it, as far as its values are among the texts."""
        places = [domain.place_of(_written(recipe, domain.name)) for domain in self.domains]
        return {name: value for place in places if place is not None for name, value in place.items()}

    def to_dict(self) -> dict[str, str]:
        """The texts by the names of the settings."""
        return {domain.name: domain.text for domain in self.domains}


def usual_texts(problem: Problem, base: Recipe) -> dict[str, str]:
    """What is usually tried, by what the rows, the target and the network of ``base`` are."""
    rows, images = len(problem), problem.x.dim() > 2
    classes, soft = problem.task.kind != "range", problem.target.dim() > 1
    texts = {"learning_rate": "5e-4..2e-2 log", "weight_decay": "0.003..1 log", "averaging": "0.5..8 log"}
    tokens = not problem.x.is_floating_point()
    if tokens:  # a model that has learnt much already: small steps, by the optimiser it was made with, of whole texts
        texts |= {"learning_rate": "1e-5..2e-4 log", "averaging": "0, 0.5..2", "epochs": "2..8"}
    else:
        texts["optimiser"] = "adamw, muon, schedulefree" if find_spec("schedulefree") else "adamw, muon"
    if base.model == "network":
        texts |= {"width": "48..512 log", "depth": "1..4", "dropout": "0..0.6", "bins": "0, 4..48"}
    elif base.model == "residual":
        texts |= {"width": "16, 24, 32, 48", "depth": "1..3", "dropout": "0..0.4", "flip": "no, yes", "crop": "0..4"}
    else:  # a linear model has few steps to choose from, and of another's insides nothing is known
        texts.pop("optimiser", None) if base.model == "linear" else None
    if classes:
        texts["loss"] = "nll, focal(0.3..3.0), gce(0.05..0.7), poly1(0.5..4.0)"
        texts["label_smoothing"] = "0, 0.005..0.2 log"
        texts |= {} if tokens else {"mixup": "0, 0.1..1", "cutmix": "0, 0.1..1"}
        counts = problem.counts()
        if float(counts.max()) > _UNEVEN * max(float(counts.min()), 1.0):
            cures = "none, weights(0.2..1.0), logit_adjusted(0.2..1.0)"
            texts["imbalance"] = cures if soft else f"{cures}, balanced(0.2..1.0)"
    else:
        texts["code"] = "fraction, mse, continuous_bernoulli, hlgauss(20..100)"
    if not images and not tokens:
        texts["noise"] = "0, 0.01..0.3 log"
    sizes = [size for size in (64, 128, 256, 512, 1024) if size * 8 <= rows]
    if len(sizes) > 1:
        texts["batch"] = ", ".join(map(str, [base.batch, *(size for size in sizes if size != base.batch)]))
    return texts


def _domain(name: str, text: str, base: Recipe) -> Domain:
    if name not in base.to_dict():
        raise DataError(_unknown(name, base))
    whole = type(getattr(base, name)) is int
    written = getattr(base, name).__class__ is str
    alternatives = []
    for piece in split(text):
        if not piece:
            raise DataError(f"--space {name}={text!r} has an empty alternative; they are parted by commas.")
        ranges = tuple(_range(found, name, whole, written) for found in _RANGE.finditer(piece))
        alternatives.append(Alternative(piece, ranges))
    domain = Domain(name, tuple(alternatives))
    if len({alternative.text for alternative in alternatives}) < len(alternatives):
        raise DataError(f"--space {name}={text!r} names an alternative twice.")
    for end in _ends(domain):
        try:
            base.parsed([f"{name}={end}"])
        except DataError as trouble:
            raise DataError(
                f"--space {name}={text!r}: {trouble} A range is written LOW..HIGH, with log after it to draw by "
                "logarithms; alternatives are parted by commas."
            ) from trouble
    return domain


def _range(found: re.Match[str], name: str, whole: bool, written: bool) -> Range:
    low, high, log = float(found[1]), float(found[2]), found[3] is not None
    # In a loss or a code nothing but its writing says whether a number must be whole.
    whole = whole or (written and all(end.lstrip("+-").isdigit() for end in (found[1], found[2])))
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        raise DataError(
            f"--space {name}: the range {found[0]!r} must go from a lower to a higher number"
            f"{', both above 0 where it is drawn by logarithms' if log else ''}."
        )
    if whole and (low != int(low) or high != int(high)):
        raise DataError(f"--space {name}: the range {found[0]!r} must have whole ends, because {name} is whole.")
    return Range(low, high, log, whole)


def _ends(domain: Domain) -> list[str]:
    """Every alternative at the low and at the high ends of its ranges."""
    texts = [
        alternative.filled([r.text(getattr(r, end)) for r in alternative.ranges])
        for alternative in domain.alternatives
        for end in ("low", "high")
    ]
    return list(dict.fromkeys(texts))


def _written(recipe: Recipe, name: str) -> str:
    """A setting as ``--set`` would have it."""
    value = getattr(recipe, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _unknown(name: str, base: Recipe) -> str:
    close = difflib.get_close_matches(name, base.to_dict(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"--space: a recipe has no setting {name!r}.{hint} It has {', '.join(base.to_dict())}."
