"""How a network is trained, as data: every setting by name, so that a record can say it and a command repeat it."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from crossent.errors import DataError
from crossent.minimise.data.mirror import mirrors_alike
from crossent.minimise.data.problem import Problem, one_in
from crossent.minimise.data.task import Task
from crossent.minimise.objective.objective import Objective

_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}
"""What a setting may be, by what it is unsaid."""
CHOICES = {
    "model": ("network", "linear", "residual"),
    "optimiser": ("adamw", "muon", "schedulefree", "sgd", "lbfgs"),
    "schedule": ("constant", "cosine", "one-cycle"),
    "stop": ("loss", "refinement", "none"),
    "calibration": ("guarded", "none"),
}
LEAST = {"members": 1, "folds": 1, "width": 1, "depth": 0, "bins": 0, "crop": 0, "batch": 0, "epochs": 0, "patience": 0}
BOUNDS = {
    "dropout": (0.0, 0.95),
    "label_smoothing": (0.0, 1.0),
    "mixup": (0.0, 10.0),
    "cutmix": (0.0, 10.0),
    "noise": (0.0, 10.0),
    "learning_rate": (1e-9, 10.0),
    "weight_decay": (0.0, 100.0),
    "sharpness": (0.0, 10.0),
    "averaging": (0.0, 1000.0),
}

MANY_COLUMNS = 2_000
"""Columns and classes of a table together, from which on its usual networks are fewer and narrower."""
MOST_WEIGHTS = 2_500_000
"""Of the first and last layers of such networks together."""
MOST_SAID = 20_000_000
"""Probabilities of rows held out, beyond which such a table holds out one part of its rows and not each in turn."""

IMAGES: dict[str, Any] = {
    "model": "residual", "folds": 1, "members": 1, "width": 32, "depth": 2, "dropout": 0.0, "crop": 2,
    "optimiser": "muon", "learning_rate": 0.015, "weight_decay": 0.05, "schedule": "one-cycle", "batch": 128,
    "epochs": 12, "patience": 12, "averaging": 0.0,
}  # fmt: skip
TEXTS: dict[str, Any] = {
    "model": "text:", "folds": 1, "members": 1, "learning_rate": 5e-5, "weight_decay": 0.01, "batch": 16, "epochs": 4,
    "schedule": "one-cycle", "averaging": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The settings of one training.

    Network: ``model`` is "network" (for a table or an array, several perceptrons side by side), "linear", "residual"
    (for images), or "package.module:factory". Rows are parted into ``folds``, and for each fold ``members`` networks
    learn from the others; the probabilities of one kind are averaged, those of unlike kinds multiplied. With one fold a
    part of the rows is held out once. ``bins`` are the ramps by which a number enters, 0 for none; with ``plain`` half
    of the members go without.

    What is minimised: ``loss`` as ``Objective`` reads it, such as "focal(2)"; ``label_smoothing``; the ``code`` of a
    number in a range; ``imbalance``. What is done to the rows: ``mixup`` and ``cutmix`` (their Beta's parameter),
    ``noise`` (standard deviation), and for images ``flip`` and ``crop`` (pixels).

    How: ``optimiser``, ``schedule``, ``sharpness`` (the radius of sharpness-aware steps), and ``averaging``, how many
    epochs' worth of steps the moving average of the weights trails behind, which is what is kept. ``batch``, ``epochs``
    and ``patience`` 0 mean by the number of rows. ``stop`` looks at the held-out "loss", or at its "refinement", what
    of it is left by a temperature. With ``refit`` fresh networks learn from all rows, for as many epochs. ``beside``
    the network of a table a linear model learns in the same folds, and boosted ``trees`` where there are rows enough;
    they count what rows held out give them.
    """

    model: str = "network"
    folds: int = 5
    members: int = 2
    width: int = 192
    depth: int = 2
    bins: int = 16
    plain: bool = True
    dropout: float = 0.3
    loss: str = "nll"
    label_smoothing: float = 0.0
    code: str = "fraction"
    imbalance: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    noise: float = 0.0
    flip: bool = False
    crop: int = 0
    optimiser: str = "adamw"
    learning_rate: float = 4e-3
    weight_decay: float = 0.1
    schedule: str = "constant"
    sharpness: float = 0.0
    averaging: float = 2.0
    batch: int = 0
    epochs: int = 0
    patience: int = 0
    stop: str = "refinement"
    refit: bool = False
    beside: bool = True
    trees: bool = True
    calibration: str = "guarded"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (kind, told) = getattr(self, field.name), _KINDS[type(field.default)]
            if not isinstance(value, kind) or isinstance(value, bool) != isinstance(field.default, bool):
                raise DataError(f"the recipe's {field.name} is {told}; it is {value!r}.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "model" and ":" in value):
                close = difflib.get_close_matches(str(value), choices, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                more = ", text:FOLDER of a model of texts, or package.module:factory" if name == "model" else ""
                raise DataError(f"the recipe's {name} is one of {', '.join(choices)}{more}; it is {value!r}.{hint}")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise DataError(f"the recipe's {name} must be at least {least}, and is {getattr(self, name)}.")
        for name, (low, high) in BOUNDS.items():
            if not low <= getattr(self, name) <= high:
                raise DataError(
                    f"the recipe's {name} must lie between {low:g} and {high:g}, and is {getattr(self, name)}."
                )

    @classmethod
    def usual(cls, problem: Problem) -> Recipe:
        """The recipe that nobody chose another for: by rows (n, d), tokens, or images (n, channels, height, width).

        Images are mirrored where a mirror image could be one of the same class (``data.mirror``). Tables of thousands
        of columns or classes have fewer and narrower networks, and many rows of many classes are held out in one part:
        what is said of each held-out row is a number for each class.
        """
        if not problem.x.is_floating_point():
            return cls(**TEXTS)
        if problem.x.dim() > 2:
            return cls(**IMAGES, flip=mirrors_alike(problem))
        ends = problem.x.shape[1] + problem.task.columns
        if ends <= MANY_COLUMNS:
            return cls()
        folds = 1 if len(problem) * problem.task.columns > MOST_SAID else cls.folds
        width = MOST_WEIGHTS // (folds * ends) // 16 * 16
        return cls(folds=folds, members=1, width=max(32, min(cls.width, width)))

    def says_of_folds(self, rows: int) -> str:
        """How ``rows`` are held out, in words."""
        if self.folds > 1:
            return f"held out in turn in {self.folds} folds"
        return "a sixth of them held out" if one_in(rows) == 6 else f"one in {one_in(rows)} of them held out"

    def batch_for(self, rows: int) -> int:
        """The batch size: as asked, or a power of two that makes some thirty steps an epoch, between 16 and 512."""
        if self.optimiser == "lbfgs":
            return rows
        if self.batch > 0:
            return min(self.batch, rows)
        size = 16
        while size < 512 and size * 30 < rows:
            size *= 2
        return min(size, rows)

    def patience_for(self, steps: int) -> int:
        """Epochs to wait for a lower held-out loss: as asked, or six, or the epochs that 300 steps fill.

        A step is the unit of patience on a small table, where an epoch is a handful of ``steps``; an epoch on a large
        one.
        """
        return self.patience or max(6, -(-300 // steps))

    def epochs_for(self, patience: int) -> int:
        """The most epochs: as asked, or 200, or four times the patience."""
        return self.epochs or max(200, 4 * patience)

    def changed(self, **settings: Any) -> Recipe:
        """The same recipe with some settings of other values; an unknown name is refused."""
        known = self.to_dict()
        for name in settings:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise DataError(f"a recipe has no setting {name!r}.{hint} It has {', '.join(known)}.")
        return replace(self, **settings)

    def parsed(self, settings: Sequence[str]) -> Recipe:
        """The same recipe with settings written as NAME=VALUE, as on the command line.

        >>> Recipe().parsed(["epochs=50", "loss=focal(2)", "flip=yes"]).flip
        True
        """
        known = self.to_dict()
        chosen: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise DataError(
                    f"--set takes NAME=VALUE with one of the names {', '.join(known)}; got {setting!r}.{hint}"
                )
            chosen[name] = _value(name, type(known[name]), text)
        return self.changed(**chosen)

    def command(self, base: Recipe | None = None) -> str:
        """What to add to ``crossent fit DATA`` to use this recipe: the settings that differ from ``base``.

        >>> Recipe(epochs=50, loss="focal(2)").command()
        "--set 'loss=focal(2)' --set epochs=50"
        """
        usual = (base or Recipe()).to_dict()
        written = [f"{name}={value}" for name, value in self.to_dict().items() if value != usual[name]]
        return " ".join(f"--set {shlex.quote(setting)}" for setting in written)

    def objective(self, task: Task, counts: Tensor | None = None) -> Objective:
        """What is minimised for a task; ``counts`` (classes,) are the rows of each class to learn from."""
        return Objective.of(
            task,
            loss=self.loss,
            code=self.code,
            label_smoothing=self.label_smoothing,
            imbalance=self.imbalance,
            prior=None if task.kind == "range" else counts,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def model_asked(recipe: Recipe | None, settings: Sequence[str]) -> str:
    """The model that was asked for, or nothing."""
    asked = [setting.partition("=")[2] for setting in settings if setting.startswith("model=")]
    return asked[-1] if asked else recipe.model if recipe else ""


def _value(name: str, kind: type, text: str) -> Any:
    if kind is bool:
        words = {
            "yes": True,
            "true": True,
            "on": True,
            "1": True,
            "no": False,
            "false": False,
            "off": False,
            "0": False,
        }
        if text.lower() not in words:
            raise DataError(f"--set {name} needs yes or no; got {text!r}.")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError as trouble:
        wanted = "a whole number" if kind is int else "a number"
        raise DataError(f"--set {name} needs {wanted}; got {text!r}.") from trouble
