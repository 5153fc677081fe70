"""The calibrator: a chain of steps, what it does with exact zeros, and its file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crossent.errors import DataError
from crossent.files import replacing
from crossent.measure.calibration import steps as step_forms
from crossent.measure.calibration.rows import Floats, log_softmax
from crossent.measure.calibration.steps import Step
from crossent.measure.predictions import form
from crossent.measure.predictions.columns import as_array, column_names
from crossent.measure.predictions.naming import order_by_name, single_of_first

if TYPE_CHECKING:
    from crossent.measure.calibration.choice import Choice
    from crossent.measure.calibration.module import Module

FORMAT = "crossent calibrator 1"


@dataclass(frozen=True)
class Calibrator:
    """What turns a model's probabilities into better ones: steps, one after the other, on log-probabilities.

    ``kind`` names the family ("none" changes nothing). ``zeros`` says what becomes of a probability of exactly 0:
    "kept" leaves it there, and shares the row out among the other classes; "moved" takes it for what it turned out to
    be, a claim that was false at least once, and gives it what the steps say. ``classes`` are the names of the columns,
    where they are known, ``rows`` how many were fitted to, and ``choice`` says why it was chosen.

    >>> from crossent.measure.calibration.steps import Mixture
    >>> softer = Calibrator("temperature", (Mixture(temperature=2.0),))
    >>> softer([[0.9, 0.1], [1.0, 0.0]]).round(3).tolist(), softer([0.1]).round(3).tolist()
    ([[0.75, 0.25], [1.0, 0.0]], [0.25])
    >>> Calibrator.from_dict(softer.to_dict()) == softer
    True
    """

    kind: str = "none"
    steps: tuple[Step, ...] = field(default=(), repr=False)
    zeros: str = "kept"
    classes: tuple[str, ...] = ()
    rows: int = 0
    choice: Choice | None = field(default=None, repr=False)

    def __call__(self, probabilities: Any) -> Floats:
        """Calibrate probabilities (n, classes), or (n,) or (n, 1) of the second class: float64 of the same shape.

        Columns of a frame that are called after the classes (``p_cat`` or ``cat``) may stand in any order, which is
        kept; a series, or a frame of one column, called p_<class> after the first class is of that. Names that say
        nothing of a class leave the columns in the classes' order. Raises DataError, a sentence with the row, for
        anything that is not a probability, and for columns called after other classes; logits go to ``of_logits``.
        """
        p = _grid(probabilities, "probabilities")
        if p.ndim == 2 and p.shape[1] == 1:
            return self._of_pair(p[:, 0], probabilities)[:, None]
        if p.ndim == 1:
            return self._of_pair(p, probabilities)
        self._fits(p.shape[1])
        if not p.size:
            return p
        if form.infer(p) in ("logits", "log-probabilities"):
            raise DataError(
                f"these are {form.infer(p)}, of which of_logits gives the calibrated log-probabilities: "
                "calibrator.of_logits(…). A call takes and gives probabilities."
            )
        both, _ = form.probabilities(p, "row {}".format, [str(name) for name in range(p.shape[1])])
        with np.errstate(divide="ignore"):
            return np.exp(self._of_array(np.log(both), self._order(probabilities)))

    def _of_pair(self, p: Floats, named: Any) -> Floats:
        """Calibrate the probability (n,) of one of two classes, the second unless ``named`` after the first."""
        self._fits(1)
        first = self._of_the_first(named)
        if not p.size:
            return p
        both, _ = form.probabilities(p, "row {}".format, [])
        with np.errstate(divide="ignore"):
            logs = np.log(both[:, ::-1] if first else both)
        return np.exp(self._of_array(logs, None))[:, 0 if first else 1]

    def of_logits(self, logits: Any) -> Floats:
        """Give the calibrated log-probabilities, float64, of logits or of log-probabilities (n, classes).

        The way to calibrate without first rounding small probabilities to 0. Log-odds (n,) of the second of two classes
        give log-odds. Raises DataError where a row is not logits: a NaN, +inf, or −inf everywhere.
        """
        z = _grid(logits, "logits")
        if z.ndim == 1 or z.shape[1] == 1:
            self._fits(1)
            first = self._of_the_first(logits)
            return (-self._of_array(-z.ravel(), None) if first else self._of_array(z.ravel(), None)).reshape(z.shape)
        return self._of_array(z, self._order(logits))

    def _of_the_first(self, values: Any) -> bool:
        """Whether a series, or the only column of a frame, is called after the first of the classes."""
        columns = column_names(values)
        return columns is not None and len(self.classes) == 2 and single_of_first(list(self.classes), columns[0])

    def _order(self, values: Any) -> list[int] | None:
        """Give the column of each class in a frame; None where nothing says that they stand in another order."""
        columns = column_names(values)
        fit = columns is not None and len(columns) == len(self.classes)  # if not, that is said
        order = order_by_name(list(self.classes), columns) if columns is not None and fit else None
        return None if order == sorted(order or ()) else order

    def _of_array(self, z: Floats, order: list[int] | None) -> Floats:
        if order is not None:
            return self._of_array(z[:, order], None)[:, np.argsort(order)]
        self._fits(z.shape[1] if z.ndim == 2 else 2)
        if not z.size:
            return z
        u = first = form.logits(z, "row {}".format, [str(name) for name in range(z.shape[-1])])
        for step in self.steps:
            u = step(u)
        if self.zeros == "kept" and self.steps and (never := np.isneginf(first)).any():
            u = log_softmax(np.where(never, -np.inf, u))
        return u if z.ndim == 2 else u[:, 1] - u[:, 0]

    def _fits(self, columns: int) -> None:
        """Refuse rows of so many columns if they cannot be of the classes; one is enough for two of them."""
        known = len(self.classes) or next((len(b) for step in self.steps if (b := getattr(step, "bias", ()))), 0)
        if known and known != max(columns, 2):
            came = "1 column, which is enough for two" if columns == 1 else f"{columns} columns"
            raise DataError(
                f"this calibrator is for {known} classes, and the rows have {came}: give a column for each class."
            )

    def module(self, one_logit: bool = False, dtype: Any = None) -> Module:
        """Give a ``torch.nn.Module`` to put behind a model: logits (…, classes) → calibrated log-probabilities.

        With ``one_logit`` it takes and gives the log-odds of the second of two classes, in any shape. Its numbers are
        buffers of ``dtype``, torch.float32 unless said, and are not trained. It exports with ``torch.export`` and to
        ONNX. Accuracy: within 1e-6 of ``of_logits`` as probabilities in float32, 1e-12 in float64. Venn–Abers has steps
        at the very predictions it was fitted to: one of those may fall on the other side of its step by rounding.
        """
        from crossent.measure.calibration.module import Module

        return Module(self, one_logit, dtype)

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain data that JSON holds."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "classes": list(self.classes),
            "zeros": self.zeros,
            "rows": self.rows,
            "steps": [step_forms.to_dict(step) for step in self.steps],
            "choice": None if self.choice is None else self.choice.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Calibrator:
        """Read back what ``to_dict`` wrote; DataError, a sentence, if it is anything else."""
        from crossent.measure.calibration.choice import Choice

        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            found = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
            raise DataError(f"a calibrator's format should be {FORMAT!r} and is {found!r}.")
        try:
            made = cls(
                str(plain["kind"]),
                tuple(step_forms.from_dict(step) for step in plain["steps"]),
                {"kept": "kept", "moved": "moved"}[plain["zeros"]],
                tuple(str(name) for name in plain["classes"]),
                int(plain["rows"]),
                None if plain["choice"] is None else Choice.from_dict(plain["choice"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as trouble:
            raise DataError(f"this calibrator is damaged: {type(trouble).__name__}: {trouble}.") from trouble
        return made

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Calibrator:
        """Read it from the file that ``write`` wrote; nothing in it is executed."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as trouble:
            raise DataError(f"cannot read {os.fspath(path)!r}: {trouble.strerror or trouble}.") from trouble
        except ValueError as trouble:
            raise DataError(f"{os.fspath(path)!r} is not JSON: {trouble}.") from trouble
        try:
            return cls.from_dict(plain)
        except DataError as trouble:
            raise DataError(f"{os.fspath(path)!r}: {trouble}") from trouble


def _grid(values: Any, name: str) -> Floats:
    array = as_array(values)
    if array.ndim not in (1, 2):
        raise DataError(f"{name} should be (rows,) or (rows, classes) and have shape {array.shape}.")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as trouble:
        raise DataError(f"{name} should be numbers, and some are not: {trouble}.") from trouble
