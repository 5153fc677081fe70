"""The scikit-learn face: a classifier, and a regressor for a number in a range, that fit, predict and clone as usual.

``fit`` learns from all rows it is given: there is no test part, for that is the business of ``cross_val_score`` and its
like. What it has to choose or to calibrate by, it holds out in folds, and ``record_`` tells what networks that did not
learn from a row say of it.

A weight counts rows: weight 3 is three equal rows, and weight 0 none (``repeats``).
"""

from __future__ import annotations

import copy
import numbers
import warnings
from dataclasses import dataclass, fields, make_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossent.errors import DataError, require, some
from crossent.measure import Calibrator, Predictions, evaluate
from crossent.measure.calibration import choose as choose_calibrator
from crossent.minimise.data import dataset
from crossent.minimise.data.paired import counted, take, warn_of_another_order
from crossent.minimise.data.preparation import Preparation
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.repeats import once_each
from crossent.minimise.data.task import Task, class_name, refuse_missing, refuse_text
from crossent.minimise.finish import recorded, versions
from crossent.minimise.recipe import Recipe
from crossent.minimise.run import Run
from crossent.minimise.training.judge import interval_of
from crossent.minimise.training.learn import Learned, learn
from crossent.record import Record

_PURPOSE = "an estimator for scikit-learn"
base = require("sklearn.base", "cli", _PURPOSE)
_Classifier: Any = base.ClassifierMixin
_Regressor: Any = base.RegressorMixin
exceptions = require("sklearn.exceptions", "cli", _PURPOSE)
multiclass = require("sklearn.utils.multiclass", "cli", _PURPOSE)
validation = require("sklearn.utils.validation", "cli", _PURPOSE)
pandas = require("pandas", "cli", _PURPOSE)

_Settings: Any = make_dataclass(
    "_Settings",
    [(field.name, field.type, field.default) for field in fields(Recipe)],
    bases=(base.BaseEstimator,),
    namespace={
        "__doc__": "A recipe's settings as the arguments of an estimator, by the same names.",
        "__module__": __name__,
    },
    kw_only=True,
    eq=False,
    repr=False,
)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """What ``fit`` found; of the rows it was found from, only what they were to be: ``problem.x`` has no columns."""

    problem: Problem
    recipe: Recipe
    seed: int
    preparation: Preparation
    learned: Learned
    calibrator: Calibrator
    notes: list[str]

    @cached_property
    def record(self) -> Record:
        """What the networks say of rows they did not learn from, measured when somebody asks: it takes a second."""
        known, said = _held_out(self.learned)
        problem, log_p = self.problem.take(known), self.calibrator.of_logits(said)
        task, truth = problem.task, problem.distribution.numpy()
        if task.kind == "range":
            labels = task.low + (task.high - task.low) * truth[:, 1]
        else:  # shares were rounded to float32, and have to add up to 1
            labels = truth / truth.sum(1, keepdims=True) if truth.ndim == 2 else np.array(task.classes)[truth]
        measured = evaluate(
            Predictions.from_arrays(
                np.exp(log_p[:, 1] if task.kind == "range" else log_p),
                labels,
                classes=list(task.classes) or None,
                task=task.kind,
                low=task.low,
                high=task.high,
                weights=None if problem.weight is None else problem.weight.double().numpy(),
                source="X",
                split="held out",
            ),
            title="What networks that did not learn from a row know of y",
        )
        return recorded(
            measured,
            self.learned.history,
            self.calibrator.choice.table if self.calibrator.choice else None,
            numbers={},
            facts={
                "source": "X",
                "target": "y",
                "found": task.found,
                "splits": {"learn": len(self.problem), "test": 0},
                "features": self.preparation.features,
                "calibration": self.calibrator.kind,
                "seed": self.seed,
                "recipe": self.recipe.to_dict(),
                "versions": versions(),
                "notes": [
                    *measured.facts.get("notes", []),
                    "Epoch and calibrator were chosen by these rows: new rows cost a little more.",
                    *self.notes,
                ],
            },
        )


class _Estimator(_Settings):
    """What both estimators do: look at X, learn, and say log-probabilities."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    @property
    def network_(self) -> torch.nn.Module:
        """The network inside: prepared features (n, d) → logits (networks, n, columns)."""
        return self._found.learned.network

    @property
    def record_(self) -> Record:
        """What networks that did not learn from a row say of it: cross-entropy with its interval, and all the rest."""
        return self._found.record

    @property
    def run_(self) -> Run:
        """The same model as ``crossent.fit`` gives it: it saves itself, and ``crossent.load`` and the CLI take it."""
        found = self._found
        problem, learned = found.problem, found.learned
        return Run(
            problem.task, found.recipe, found.preparation, learned.network, learned.objective, found.calibrator,
            found.record, problem.counts(),
        )  # fmt: skip

    @property
    def _found(self) -> _Fitted:
        validation.check_is_fitted(self)
        return self._fitted

    def _rows(self, X: Any, *, reset: bool) -> Any:
        """X as scikit-learn wants it looked at: a table if its columns are mixed, else a float32 array (n, d)."""
        if hasattr(X, "to_pandas"):
            X = X.to_pandas()
        table = _is_mixed(X) if reset else bool(self._found.preparation.columns)
        if not table:
            try:
                return validation.validate_data(self, X, reset=reset, dtype=np.float32, ensure_all_finite="allow-nan")
            except ValueError as trouble:
                if "could not convert string" not in str(trouble):
                    raise
                raise DataError(f"X: {trouble}. Pass a data frame for columns of text.") from trouble
        validation.validate_data(self, X, reset=reset, skip_check_array=True)
        if not hasattr(X, "iloc"):
            return X  # an array where a table was learned from: its preparation says so
        if not len(X):
            raise DataError("X has no rows.")
        table = X.reset_index(drop=True)
        dataset.named(table, "X")
        return table

    def _learn(self, rows: Any, target: NDArray[Any], weight: NDArray[np.float64], task: Task) -> None:
        """The way through, from rows that count to a network and its calibrator."""
        recipe = Recipe(**{field.name: _plain(getattr(self, field.name)) for field in fields(Recipe)})
        seed = _seed(self.random_state)
        places, weight = once_each(rows, target, weight)
        preparation, x = Preparation.fit(take(rows, places), "X")
        weight = (weight / weight.mean()).astype(np.float32)
        varied = torch.from_numpy(weight) if np.ptp(weight) > 0 else None
        problem = Problem(task, x, torch.from_numpy(target[places]), varied)
        learned = learn(problem, recipe, seed)
        if learned.history.by_hand:
            raise KeyboardInterrupt  # Ctrl-C is to end a search over many, not one training in it
        for trouble in learned.history.trouble:
            warnings.warn(trouble, exceptions.ConvergenceWarning, stacklevel=3)
        calibrator = Calibrator()
        if recipe.calibration == "guarded":
            known, said = _held_out(learned)
            judge = problem.take(known)
            calibrator = choose_calibrator(
                said,
                judge.distribution.numpy(),
                weights=None if judge.weight is None else judge.weight.double().numpy(),
                seed=seed,
                classes=task.classes,
            )
        notes = [*preparation.notes, *learned.history.trouble]
        if len(places) < len(rows):
            notes.append(
                f"{len(rows):,} rows are {len(places):,} different ones; equal ones were taken once, and weigh more."
            )
        bare = replace(problem, x=problem.x.new_zeros(len(problem), 0))
        self._fitted = _Fitted(bare, recipe, seed, preparation, learned, calibrator, notes)

    def _log_probabilities(self, X: Any) -> NDArray[np.float64]:
        network, x = self._prepared(X)
        return self._found.calibrator.of_logits(
            replace(self._found.learned, network=network).log_probabilities(x).numpy()
        )

    def _prepared(self, X: Any) -> tuple[torch.nn.Module, torch.Tensor]:
        """The network and the rows in float64: in float32 a row's answer depends on how many are asked with it."""
        found = self._found
        preparation, network = replace(found.preparation, notes=[]), found.learned.network
        x = preparation(self._rows(X, reset=False), "X")
        for note in preparation.notes:
            warnings.warn(note, UserWarning, stacklevel=4)
        if ":" in found.recipe.model:  # a network of the user's own may be for float32 alone
            return network, x
        return copy.deepcopy(network).double(), x.double()


@dataclass(kw_only=True, eq=False, repr=False)
class CrossEntropyClassifier(_Classifier, _Estimator):
    """Networks trained by minimising cross-entropy, calibrated where that helps, as a scikit-learn classifier.

    Arguments, all by name, are ``random_state`` (a whole number: the same one, the same bits; None or a ``RandomState``
    draws one) and the settings of a ``Recipe``, which says what they mean: ``members``, ``folds``, ``width``, ``loss``,
    ``learning_rate``, …

    After ``fit``: ``classes_``, ``n_features_in_``, ``feature_names_in_``; ``network_``, the ``torch.nn.Module``
    inside; ``record_``, what networks that did not learn from a row say of it; ``run_``, the same model as
    ``crossent.fit`` gives it.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> model = CrossEntropyClassifier(members=1, folds=2, epochs=20).fit(X, y)
    >>> model.score(X, y) > 0.9, model.predict_proba(X.head(2)).shape
    (True, (2, 3))
    """

    random_state: Any = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> CrossEntropyClassifier:
        """Learn from all rows.

        Args:
            X: a data frame of columns of any kind, empty cells included; or an array (n, d) of numbers, NaN where one
                is missing.
            y: labels (n,). Or soft labels, a float array or frame (n, classes): each row a distribution over the
                classes, or how many annotators chose each; a row counts once, however many they were.
            sample_weight: (n,), how many rows each row counts for; 0 leaves it out.

        Rows are paired by place, and a warning says so where their names are the same in another order.

        Raises:
            ValueError: a sentence, for what cannot be learned from.
        """
        warn_of_another_order(X, y=y, sample_weight=sample_weight)
        rows = self._rows(X, reset=True)
        labels, names = self._soft(y) if _is_soft(y) else (self._hard(y), None)
        rows, labels, weight = counted(self, rows, labels, sample_weight)
        if names is None:
            names, target = np.unique(labels, return_inverse=True)
        else:
            target = labels.astype(np.float32)
        if len(names) < 2:
            raise DataError(
                f"{type(self).__name__} needs rows of at least two classes; here is one class, "
                f"{class_name(names[0])!r}, in all {len(rows):,} rows that count."
            )
        said = tuple(class_name(name) for name in names)
        task = Task(
            "binary" if len(said) == 2 else "multi-class", said, f"y holds {len(names):,} classes: {some([*said], 12)}."
        )
        self._learn(rows, target, weight, task)
        self.classes_ = names
        return self

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Log-probabilities (n, classes) in nats, float64; small ones are not rounded to -inf."""
        return self._log_probabilities(X)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, classes), float64, in the order of ``classes_``."""
        return np.exp(self._log_probabilities(X))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Log-odds (n,) of the second of two classes; of more, the log-probabilities (n, classes)."""
        log_p = self._log_probabilities(X)
        return log_p[:, 1] - log_p[:, 0] if log_p.shape[1] == 2 else log_p

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class (n,)."""
        best = self._log_probabilities(X).argmax(axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy; for soft labels the mean share that the predicted class has of them."""
        if not _is_soft(y):
            return super().score(X, y, sample_weight)
        best = self._log_probabilities(X).argmax(axis=1)
        share, names = self._soft(y)
        if not np.array_equal(names, self.classes_):
            raise DataError(f"soft labels need one column for each class, {some(list(self.classes_), 12)}.")
        return float(np.average(share[np.arange(len(share)), best], weights=sample_weight))

    def _hard(self, y: Any) -> NDArray[Any]:
        _refuse_none(self, y)
        labels = validation.column_or_1d(y, warn=True)
        refuse_missing(labels, "y", "y")
        multiclass.check_classification_targets(labels)
        return labels

    def _soft(self, y: Any) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Shares (n, classes) that add up to 1, and the names of their columns."""
        soft = np.asarray(y)
        names = np.asarray(y.columns) if hasattr(y, "columns") else np.arange(soft.shape[1])
        if soft.dtype.kind != "f":
            raise DataError(
                f"y has {soft.shape[1]} columns of {soft.dtype}. {type(self).__name__} gives a row one class: "
                "pass labels (n,), or soft labels (n, classes) as floats, for counts y.astype(float). Several labels "
                "at once are several problems (sklearn.multioutput)."
            )
        return dataset.shares(soft, "y", [str(name) for name in names]), names


@dataclass(eq=False, repr=False)
class BoundedRegressor(_Regressor, _Estimator):
    """A number between ``low`` and ``high``, as a scikit-learn regressor: networks that minimise its cross-entropy.

    Where the number lies in its range is what is learned, by the recipe's ``code``; ``predict`` gives the expected
    number, which never leaves the range. Without ``low`` or ``high`` the least or greatest number in ``y`` is taken,
    beyond which nothing can be predicted: give them where they are known. The other arguments, all by name, are those
    of ``CrossEntropyClassifier``, and so is what there is after ``fit``, with ``low_`` and ``high_``.

    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> model = BoundedRegressor(0, 1, members=1, folds=2, epochs=20).fit(X, 1 / (1 + np.exp(-2 * X[:, 0])))
    >>> bool(0 < model.predict([[-2.0, 0.0]])[0] < 0.3 < 0.7 < model.predict([[2.0, 0.0]])[0] < 1)
    True
    """

    low: Any = None
    high: Any = None
    random_state: Any = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BoundedRegressor:
        """Learn from all rows: X and ``sample_weight`` as in ``CrossEntropyClassifier``, y (n,) from low to high.

        Raises:
            ValueError: a sentence, for what cannot be learned from.
        """
        warn_of_another_order(X, y=y, sample_weight=sample_weight)
        rows = self._rows(X, reset=True)
        _refuse_none(self, y)
        refuse_text(y, f"{type(self).__name__} learns numbers; CrossEntropyClassifier learns classes.")
        column = validation.column_or_1d(y, warn=True)
        values = validation.check_array(column, ensure_2d=False, dtype=np.float64, input_name="y")
        rows, values, weight = counted(self, rows, values, sample_weight)
        if len(values) < 2:
            raise DataError(f"{type(self).__name__} needs at least two rows that count to learn from; n_samples=1.")
        low = float(values.min() if self.low is None else self.low)
        high = float(values.max() if self.high is None else self.high)
        if not -np.inf < low < high < np.inf:
            raise DataError(
                f"a range needs a low end below its high end, both finite; got {low:g} and {high:g}."
                + (" All y are equal: give low and high." if low == high and None in (self.low, self.high) else "")
            )
        outside = (values < low) | (values > high)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            at = first if sample_weight is None else int(np.flatnonzero(np.asarray(sample_weight))[first])
            raise DataError(
                f"{int(outside.sum()):,} numbers in y lie outside the range {low:g} to {high:g}, first "
                f"{values[first]:g} at row {at}. Give low and high that hold them all."
            )
        task = Task("range", (), f"y holds numbers: bounded regression on {low:g} to {high:g}.", low, high)
        self._learn(rows, ((values - low) / (high - low)).astype(np.float32), weight, task)
        self.low_, self.high_ = low, high
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The expected number (n,), between ``low_`` and ``high_``."""
        share = np.exp(self._log_probabilities(X)[:, 1])
        return self.low_ + (self.high_ - self.low_) * share

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The lower and upper ends (n,) of intervals that hold the numbers with probability ``coverage``.

        As much is left out below as above, at the level at which as many rows held out were held. ``code`` must learn a
        distribution, as hlgauss, twohot, ordinal and continuous_bernoulli do; for others TypeError, a sentence.
        """
        network, x = self._prepared(X)
        return interval_of(network, self._found.learned.objective, x, coverage)


def _is_mixed(X: Any) -> bool:
    """Whether X is a data frame with a column that is not of numbers."""
    return hasattr(X, "dtypes") and hasattr(X, "iloc") and not all(map(pandas.api.types.is_numeric_dtype, X.dtypes))


def _is_soft(y: Any) -> bool:
    shape = np.asarray(y).shape
    return len(shape) == 2 and shape[1] > 1


def _refuse_none(estimator: Any, y: Any) -> None:
    if y is None:
        raise DataError(f"{type(estimator).__name__} requires y to be passed, but the target y is None.")


def _plain(value: Any) -> Any:
    """A setting as Python has it: grids of settings are often made by NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def _seed(random_state: Any) -> int:
    """A whole number is the seed itself; from what else scikit-learn takes for a random state, one is drawn."""
    if isinstance(random_state, numbers.Integral) and int(random_state) >= 0:
        return int(random_state)
    return int(require("sklearn.utils", "cli", _PURPOSE).check_random_state(random_state).randint(2**31 - 1))


def _held_out(learned: Learned) -> tuple[torch.Tensor, NDArray[np.float64]]:
    """Places of the rows that were held out from some network, and the log-probabilities of each by those networks."""
    known = (~learned.held_out[:, 0].isnan()).nonzero().flatten()
    return known, learned.held_out[known].numpy()
