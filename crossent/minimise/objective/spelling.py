"""Losses, codes and cures for imbalance as short texts, so that a recipe can be printed, read and repeated.

    text  = [sign] term, then + or − another, as often as wanted          nll + 0.1 * confidence
    term  = [number "*"] name ["(" argument {"," argument} ")"]            focal(2), smoothed(0.05, over=others)
    argument = [name "="] (number | word | text of a loss)                 smoothed(0.1, focal(2))

Nothing is executed: names are looked up, numbers are read, and everything else is refused with what would fit.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from crossent.compute.losses import NLL, Confidence, Loss
from crossent.errors import DataError
from crossent.minimise.objective.catalogue import PROPERTIES


def bootstrapped_soft(beta: float = 0.95) -> Loss:
    """β NLL + (1 - β) H(p): the target is β · label + (1 - β) · p, gradient and all (Reed et al. 2015, eq. 6)."""
    if not 0 < beta <= 1:
        raise ValueError(f"beta, the belief in the label, lies above 0 and is at most 1, and is {beta}.")
    return NLL() * beta + Confidence() * (beta - 1)


LOSSES: dict[str, Callable[..., Loss]] = {
    **{known.name: loss for loss, known in PROPERTIES.items() if known.name},
    "bootstrapped_soft": bootstrapped_soft,
}
"""Every loss by its short name; class weights are a cure for imbalance and spelt there."""

_ALSO = {"ce": "nll", "crossentropy": "nll", "logloss": "nll", "bce": "nll", "labelsmoothing": "smoothed"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[-+*(),=]))"
)


def read_loss(text: str, counts: torch.Tensor | None = None) -> Loss:
    """The loss that a text spells; ``counts`` (classes,) of the training rows are for the losses that ask for them.

    Raises DataError, a sentence, for what is no loss.

    >>> read_loss("focal(2)")
    Focal(gamma=2.0)
    >>> read_loss("nll + 0.1*confidence")
    Sum(a=NLL(), b=Scaled(factor=0.1, loss=Confidence()))
    >>> read_loss("focall(2)")
    Traceback (most recent call last):
    crossent.errors.DataError: 'focall' in the loss 'focall(2)' is no loss; did you mean 'focal'? There are nll, ...
    """
    reader = _Reader(text, "loss", counts)
    loss = reader.loss()
    reader.end()
    return loss


def read_call(text: str, what: str, known: dict[str, Callable[..., Any]]) -> Any:
    """What ``name`` or ``name(arguments)`` makes, one of ``known``; ``what`` it is called in sentences.

    >>> read_call("pair(2, b=3)", "thing", {"pair": lambda a, b: (a, b)})
    (2, 3)
    """
    reader = _Reader(text, what, None)
    made = reader.call(known)
    reader.end()
    return made


def split(text: str) -> list[str]:
    """Texts that stand side by side, parted by commas outside brackets: those of ``--compare``.

    >>> split("nll, smoothed(0.1, over=others),hinge")
    ['nll', 'smoothed(0.1, over=others)', 'hinge']
    """
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [piece.strip() for piece in pieces]


@dataclass
class _Reader:
    """A text and how far it has been read."""

    text: str
    what: str
    counts: torch.Tensor | None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise DataError(f"a {self.what} is spelt as text, and {self.text!r} is none.")
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(self.text.rstrip()):
            found = _TOKEN.match(self.text, at)
            if found is None:
                raise DataError(f"the {self.what} {self.text!r} cannot be read from {self.text[at:].strip()!r} on.")
            assert found.lastgroup is not None
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        self.at = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        """The next token, or one after it, without taking it."""
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ("end", "its end")

    def take(self, *expected: str) -> bool:
        """Take the next token if it is one of these signs."""
        if self.peek()[0] == "sign" and self.peek()[1] in expected:
            self.at += 1
            return True
        return False

    def refuse(self, expected: str) -> DataError:
        """The sentence that the next token is not what should come."""
        kind, found = self.peek()
        return DataError(
            f"the {self.what} {self.text!r} should go on with {expected}, and there is "
            f"{found if kind == 'end' else repr(found)}."
        )

    def end(self) -> None:
        """Refuse whatever is left."""
        if self.peek()[0] != "end":
            raise self.refuse("nothing")

    def loss(self) -> Loss:
        """A sum of terms."""
        total, sign = None, -1.0 if self.take("-") else 1.0
        while True:
            term = self.term(sign)
            total = term if total is None else total + term
            if self.take("+"):
                sign = 1.0
            elif self.take("-"):
                sign = -1.0
            else:
                return total

    def term(self, sign: float) -> Loss:
        """A loss, with a factor if there is one."""
        factor = sign
        if self.peek()[0] == "number":
            factor *= self.number()
            if not self.take("*"):
                raise self.refuse("* and a loss")
        loss = self.call(LOSSES)
        return loss if factor == 1 else loss * factor

    def number(self) -> float | int:
        """A number: a whole one if it is written as one."""
        sign = -1 if self.take("-") else 1
        kind, found = self.peek()
        if kind != "number":
            raise self.refuse("a number")
        self.at += 1
        return sign * (int(found) if found.isdigit() else float(found))

    def call(self, known: dict[str, Callable[..., Any]]) -> Any:
        """A name with its arguments, made."""
        kind, name = self.peek()
        if kind != "word":
            raise self.refuse(f"the name of a {self.what}")
        self.at += 1
        make = known.get(name)
        if make is None:
            raise DataError(self._unknown(name, list(known)))
        given, named = self.arguments()
        return self._made(make, name, given, named)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """What stands in brackets, if there are any."""
        given: list[Any] = []
        named: dict[str, Any] = {}
        if not self.take("("):
            return given, named
        while not self.take(")"):
            if self.peek()[0] == "word" and self.peek(1) == ("sign", "="):
                key = self.peek()[1]
                self.at += 2
                if key in named:
                    raise DataError(f"the {self.what} {self.text!r} names {key!r} twice.")
                named[key] = self.value()
            elif named:
                raise self.refuse("a named argument, after others that are named,")
            else:
                given.append(self.value())
            if not self.take(",") and self.peek() != ("sign", ")"):
                raise self.refuse("a comma or a closing bracket")
        return given, named

    def value(self) -> Any:
        """A number, a loss, or a word that names none."""
        kind, found = self.peek()
        if kind == "word" and (self.what != "loss" or found not in LOSSES):
            self.at += 1
            return found
        if kind == "word" or (kind == "number" and self.peek(1) == ("sign", "*")):
            return self.loss()
        return self.number()

    def _made(self, make: Callable[..., Any], name: str, given: list[Any], named: dict[str, Any]) -> Any:
        asked = inspect.signature(make).parameters
        names = [key for key in asked if key != "counts"]
        for key in named:
            if key not in names:
                raise DataError(self._no_argument(name, key, names))
        if len(given) > len(names):
            raise DataError(
                f"{name!r} takes {_takes(asked, names)}, and {self.text!r} gives it {len(given)} arguments."
            )
        filled = {**dict(zip(names, given, strict=False)), **named}
        if len(filled) < len(given) + len(named):
            raise DataError(f"the {self.what} {self.text!r} gives an argument of {name!r} by place and by name.")
        for key, value in filled.items():
            filled[key] = self._fits(name, key, value, asked[key])
        if "counts" in asked:
            if self.counts is None:
                raise DataError(f"{name!r} needs to know how many training rows each class has, and nobody said.")
            filled["counts"] = self.counts
        try:
            return make(**filled)
        except (ValueError, TypeError) as trouble:
            raise DataError(f"the {self.what} {self.text!r} is not possible: {trouble}") from trouble

    def _fits(self, name: str, key: str, value: Any, asked: inspect.Parameter) -> Any:
        """The value in the kind of the argument's default: a number, a word or a loss."""
        default = asked.default
        kind: Any = int | float
        meant = "a number"
        if isinstance(default, str):
            kind, meant = str, "a word"
        elif isinstance(default, Loss):
            kind, meant = Loss, "a loss"
        elif isinstance(default, int):
            kind, meant = int, "a whole number"
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(
                f"{key!r} of {name!r} should be {meant}, and is {value!r} in the {self.what} {self.text!r}."
            )
        return float(value) if isinstance(default, float) else value

    def _unknown(self, name: str, known: list[str]) -> str:
        plain = name.lower().replace("_", "")
        close = _ALSO.get(plain) if self.what == "loss" else None
        near = [close] if close else difflib.get_close_matches(name.lower(), known, 1, 0.5)
        if not near and self.what == "loss":
            near = [key for key, make in LOSSES.items() if make.__name__.lower() == plain]
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{name!r} in the {self.what} {self.text!r} is no {self.what}{hint} There are {', '.join(known)}."

    def _no_argument(self, name: str, key: str, names: list[str]) -> str:
        near = difflib.get_close_matches(key, names, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        takes = f"It takes {', '.join(names)}." if names else "It takes none."
        return f"{name!r} has no argument {key!r}{hint} {takes} (In the {self.what} {self.text!r}.)"


def _takes(asked: Any, names: list[str]) -> str:
    if not names:
        return "no arguments"
    return f"at most {len(names)} ({', '.join(str(asked[key]).split(':')[0] for key in names)})"
