"""A trained model with all that is needed to use it, and its folder on disk."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossent.errors import DataError, require
from crossent.files import replacing
from crossent.measure import Calibrator, write_predictions
from crossent.minimise.data import dataset
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.task import Task
from crossent.minimise.data.tokens import Tokens
from crossent.minimise.networks import rebuilt, settings_of
from crossent.minimise.networks.several import Several
from crossent.minimise.networks.text import TextNetwork
from crossent.minimise.objective.objective import Objective
from crossent.minimise.recipe import Recipe
from crossent.minimise.training.judge import interval_of, logits_of, together
from crossent.minimise.training.learn import Factory
from crossent.record import Record

MODEL_FORMAT = "crossent model 3"
MODEL, WEIGHTS, TABLE, RECORD, PREDICTIONS = (
    "model.json", "model.safetensors", "table.skops", "record.json", "predictions.parquet",
)  # fmt: skip
TEXT = "text"
"""Folders of models of texts begin so."""
FILES = (WEIGHTS, TABLE, PREDICTIONS, RECORD, MODEL)
"""What a run writes, in this order."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """The rows that were split, and what the model says of each: the content of predictions.parquet."""

    rows: NDArray[np.int64]
    splits: NDArray[Any]
    labels: NDArray[Any]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """What ``fit`` gives back: a model that predicts, and the record of how it was made and what it is worth.

    >>> import numpy as np, crossent
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> run = crossent.fit(x, x[:, 0] > 0)
    >>> run.predict_proba([[2.0, 0.0], [-2.0, 0.0]]).argmax(axis=1).tolist()
    [1, 0]
    >>> run.predict([[2.0, 0.0]]).tolist()
    ['True']
    """

    task: Task
    recipe: Recipe
    preparation: Preparation | Tokens
    network: nn.Module
    objective: Objective
    calibrator: Calibrator
    record: Record
    counts: Tensor
    predicted: Predicted | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the columns of ``predict_proba``; none for a range."""
        return self.task.classes

    def predict_proba(self, x: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, rows summing to 1, for a table or an array like the one trained on.

        For a number in a range the two columns are the expected share of the range left and reached; ``predict``
        gives the number.
        """
        return np.exp(self.calibrator.of_logits(self.log_probabilities(self._features(x)).numpy()))

    def _features(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) and not self.preparation.columns:
            return x.float() if x.is_floating_point() else x  # as the network takes it: of the user's own, tokens
        rows = x if isinstance(x, dataset.Data) else dataset.from_arrays(x, None, "x")
        return self.preparation(rows.x, rows.source)

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Log-probabilities (n, classes), float64, of prepared features, before they are calibrated."""
        return together(self.network, self.objective.log_probabilities(logits_of(self.network, features)))

    def predict(self, x: Any) -> NDArray[Any]:
        """The most probable class by name (n,), or the expected number of a range (n,)."""
        p = self.predict_proba(x)
        if self.task.kind == "range":
            return self.task.low + (self.task.high - self.task.low) * p[:, 1]
        return np.array(self.task.classes)[p.argmax(axis=1)]

    def predict_interval(self, x: Any, coverage: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lower and upper ends (n,) of intervals that hold the numbers of a range with probability ``coverage``.

        As much is left out below as above by the distribution that was learnt, which the codes hlgauss, twohot, ordinal
        and continuous_bernoulli have; of a table, at the level at which such intervals held as many of the rows held
        out. The calibrator, which looks at the mean alone, moves nothing.

        Raises:
            TypeError: a sentence, for classes, and for a code that learns no distribution, such as fraction or mse.
        """
        return interval_of(self.network, self.objective, self._features(x), coverage)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model, the record and the predictions into a folder, each file whole or not at all."""
        safetensors = require("safetensors.torch", "cli", "saving a model")
        folder = Path(folder)
        with replacing(folder / WEIGHTS) as temporary:
            texts = _texts(self.network)  # which have folders of their own, that transformers reads too
            state = {} if texts else {name: each.contiguous() for name, each in self.network.state_dict().items()}
            temporary.write_bytes(safetensors.save(state))  # not save_file, which hides that a disk is full
        for number, network in enumerate(texts, 1):
            network.save(folder / f"{TEXT}-{number}")
        self.preparation.save(folder / TABLE)
        if self.predicted is not None:
            self.write_predictions(
                folder / PREDICTIONS,
                self.predicted.probabilities,
                labels=self.predicted.labels,
                rows=self.predicted.rows,
                splits=self.predicted.splits,
            )
        self.record.write(folder / RECORD)
        with replacing(folder / MODEL) as temporary:  # last: a folder with this file is complete
            temporary.write_text(json.dumps(self._about(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def write_predictions(
        self, path: str | os.PathLike[str], probabilities: NDArray[np.float64], **columns: Any
    ) -> None:
        """Write probabilities (n, classes) as a table with this model's class names or range.

        ``columns`` are those of ``crossent.measure.write_predictions``: rows, labels, splits, intervals.
        """
        is_range = self.task.kind == "range"
        write_predictions(
            path,
            probabilities[:, 1] if is_range else probabilities,
            task=self.task.kind,
            classes=self.task.classes or None,
            low=self.task.low,
            high=self.task.high,
            source=self.record.facts.get("source"),
            target=self.record.facts.get("target"),
            **columns,
        )

    def _about(self) -> dict[str, Any]:
        return {
            "format": MODEL_FORMAT,
            "task": {**vars(self.task), "classes": list(self.task.classes)},
            "recipe": self.recipe.to_dict(),
            "preparation": self.preparation.to_dict(),
            "network": settings_of(self.network),
            "counts": self.counts.tolist(),
            "calibrator": self.calibrator.to_dict(),
            "versions": self.record.facts.get("versions", {}),
        }


def _texts(network: nn.Module) -> list[TextNetwork]:
    networks = [*network.networks] if isinstance(network, Several) else [network]
    return [each for each in networks if isinstance(each, TextNetwork)]


def load(folder: str | os.PathLike[str], *, model: Factory | None = None) -> Run:
    """Read a model back from the folder that ``Run.save`` or ``crossent fit`` wrote; nothing in it is unpickled.

    ``model`` is the factory of a network of the user's own: a folder never says which code is to be run.
    """
    folder = Path(folder)
    if not (folder / MODEL).exists():
        raise DataError(
            f"{str(folder)!r} holds no finished model: there is no {MODEL} in it. "
            "Name the folder that 'crossent fit' wrote, or go on with a stopped one by --resume."
        )
    safetensors = require("safetensors.torch", "cli", "reading a model")
    try:
        about = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        if about.get("format") != MODEL_FORMAT:
            raise DataError(
                f"{str(folder / MODEL)!r}: its format should be {MODEL_FORMAT!r} and is {about.get('format')!r}."
            )
        task = Task(**{**about["task"], "classes": tuple(about["task"]["classes"])})
        recipe = Recipe(**about["recipe"])
        texts = [TextNetwork.load(place) for place in sorted(folder.glob(f"{TEXT}-*"))]
        preparation = Tokens(texts[0]) if texts else Preparation.load(about["preparation"], folder / TABLE)
        counts = torch.tensor(about["counts"], dtype=torch.float64)
        objective = recipe.objective(task, counts)
        network: nn.Module
        if texts:
            network = Several([*texts])
        else:
            shape = tuple(about["preparation"]["shape"] or [preparation.features])
            own = None if model is None else lambda: model(shape, objective.columns)
            network = rebuilt(about["network"], own)
            network.load_state_dict(safetensors.load_file(folder / WEIGHTS))
        network.requires_grad_(False).eval()
        calibrator = Calibrator.from_dict(about["calibrator"])
    except DataError:
        raise
    except Exception as trouble:  # JSON, safetensors and torch each have their own way to say that a file is damaged
        raise DataError(f"the model in {str(folder)!r} is damaged: {' '.join(str(trouble).split())}") from trouble
    return Run(task, recipe, preparation, network, objective, calibrator, Record.read(folder / RECORD), counts)
