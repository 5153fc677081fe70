"""For the Trainer of transformers: one object that is its ``compute_metrics`` and, to know the model, a callback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossent.errors import DataError, require
from crossent.measure.metric import CrossEntropyMetric
from crossent.minimise.callbacks import logged
from crossent.record import Record

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    TrainerCallback = require("transformers", "models", "DecompositionCallback").TrainerCallback

IGNORED = -100
"""The label of what does not count, everywhere in transformers; it also fills up rows of unequal length."""
MOST_ENTRIES = 1 << 22
"""Logits that are measured at a time: 32 MiB in float64."""
SHIFTED = ("ForCausalLM", "LMHeadModel")
STRAIGHT = ("ForTokenClassification", "ForMaskedLM")


class DecompositionCallback(TrainerCallback):
    """Log what the log loss of the evaluated rows is made of, at each evaluation.

        parts = DecompositionCallback()
        Trainer(model, …, compute_metrics=parts, callbacks=[parts])

    As ``compute_metrics`` it measures; Trainer puts ``eval_`` before the names and tells its loggers. As a callback it
    looks at the model: where the classes of (n, tokens, C) predict the *next* label (``causal``) or the one at their
    place, and whether every logit stands for a yes or no of its own (multi-label). Without that, ``causal`` has to be
    said for three dimensions. Labels of −100 do not count.

    Trainer keeps all logits of an evaluation until its end. With ``TrainingArguments(batch_eval_metrics=True)`` they
    come batch by batch and none are kept; the numbers are the same. ``every`` measures each so-many-th position of a
    sequence only, and given as ``preprocess_logits_for_metrics=parts.preprocess`` it leaves out the others before they
    are gathered: for vocabularies of many thousands of words.

    ``options`` are those of ``CrossEntropyMetric``: ``form``, ``task``, ``classes``, ``floor``, ``parts=False`` to
    leave out the parts, which take a minute for a thousand classes. ``record`` is the last evaluation's whole record,
    with intervals. The numbers are those of ``crossent.evaluate`` on the rows that count, in every process: Trainer has
    gathered them, without the rows that a sampler repeats.

    Raises DataError, a sentence, for a regression, for labels that are missing, and for what is no prediction.

    >>> import numpy as np
    >>> from transformers import EvalPrediction
    >>> parts = DecompositionCallback()
    >>> found = parts(EvalPrediction(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 1])))
    >>> round(found["cross_entropy"], 4), parts.record.facts["rows"]
    (0.5845, 3)
    """

    def __init__(self, causal: bool | None = None, every: int = 1, **options: Any) -> None:
        if every < 1:
            raise DataError(f"every should be 1 or more positions, and is {every}.")
        self.causal, self.every, self.options = causal, every, options
        self.record: Record | None = None
        self._metric = self._fresh()
        self._rows = 0
        self._asked = False

    def __call__(self, seen: Any, compute_result: bool = True) -> dict[str, float]:
        """Add the rows of a ``transformers.EvalPrediction``, and if these were the last, give the numbers by name."""
        self._asked = True
        for logits, labels in self._pieces(seen.predictions, seen.label_ids):
            # Named by their place, which is the same in every process: the folds of the parts are drawn by names.
            self._metric.update(logits, labels, row=torch.arange(self._rows, self._rows + len(labels)))
            self._rows += len(labels)
        if not compute_result:
            return {}
        self.record = self._metric.record("Evaluation")
        self._begin()
        return logged(self.record)

    def preprocess(self, logits: Any, labels: Tensor) -> Tensor:
        """For ``preprocess_logits_for_metrics``: the logits alone, at the positions that are measured."""
        z = logits[0] if isinstance(logits, tuple | list) else logits
        return self._measured(z, self._is_causal(z)) if z.ndim == 3 else z

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Look at the model, as far as nobody has said what its logits are."""
        kind, config = type(model).__name__, getattr(model, "config", None)
        if self.causal is None and kind.endswith(SHIFTED + STRAIGHT):
            self.causal = kind.endswith(SHIFTED)
        problem = getattr(config, "problem_type", None)
        if problem == "regression":
            raise DataError(
                f"this {kind} is a regression (problem_type): its outputs are no logits, and have no log loss."
            )
        if problem == "multi_label_classification" and "task" not in self.options:
            self.options = {**self.options, "task": "binary"}
            self._begin()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the rows of an evaluation that was broken off."""
        self._begin()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notice that nothing was measured."""
        if not self._asked:
            raise DataError(
                "the evaluation is over and no logits with labels came to this callback: give it to Trainer twice, as "
                "compute_metrics= and in callbacks=, with an eval_dataset that has labels and without "
                "prediction_loss_only."
            )
        self._asked = False

    def _fresh(self) -> CrossEntropyMetric:
        return CrossEntropyMetric(**self.options, ignore_index=IGNORED, sync_on_compute=False)

    def _begin(self) -> None:
        self._metric, self._rows = self._fresh(), 0

    def _is_causal(self, logits: Tensor) -> bool:
        if self.causal is None:
            raise DataError(
                f"the logits are {tuple(logits.shape)}, one row for each position: say causal=True if position i "
                "predicts the label of i + 1 (language models), causal=False if its own; or give this callback to "
                "Trainer in callbacks= too, so that it sees the model."
            )
        return self.causal

    def _measured(self, values: Tensor, causal: bool) -> Tensor:
        return (values[:, :-1] if causal else values)[:, :: self.every]

    def _pieces(self, predictions: Any, labels: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and labels that count, (n, C) and (n,), or (n, C) both, a few million numbers at a time."""
        if isinstance(predictions, list):  # eval_do_concat_batches=False
            for one, other in zip(predictions, labels, strict=True):
                yield from self._pieces(one, other)
            return
        if labels is None or isinstance(labels, tuple):
            raise DataError(
                f"there should be one array of labels for each row, and there are {len(labels) if labels else 'none'}: "
                "say label_names= in TrainingArguments."
            )
        z = torch.as_tensor(predictions[0] if isinstance(predictions, tuple) else predictions)
        y = torch.as_tensor(labels)
        if z.ndim == 2 and z.shape[1] == 1 and y.is_floating_point():
            raise DataError(f"logits {tuple(z.shape)} and labels of {y.dtype} are a regression: it has no log loss.")
        if z.ndim == 3:
            causal = self._is_causal(z)
            y = self._measured(y[:, 1:] if causal else y, False)
            z = z if z.shape[1] == y.shape[1] else self._measured(z, causal)  # preprocess may have been there before
        elif z.ndim > 3:
            z = z.movedim(1, -1)  # of images the classes come first
        if not y.is_floating_point() and y.shape not in (z.shape, z.shape[:-1]):
            raise DataError(
                f"logits {tuple(z.shape)} need labels {tuple(z.shape[:-1])}, and these are {tuple(y.shape)}."
            )
        at_a_time = max(1, MOST_ENTRIES // max(1, z[:1].numel()))
        for some, theirs in zip(z.split(at_a_time), y.split(at_a_time), strict=True):
            counts = slice(None) if theirs.is_floating_point() else theirs != IGNORED
            yield some[counts], theirs[counts]
