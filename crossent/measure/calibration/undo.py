"""Known shifts, undone in closed form: another prior, class weights, a sampling rate. Nothing is fitted.

A model that has learned well gives p_c ∝ π_c f_c(x): what it was shown class c with, π_c, times how likely the features
are in it. If classes now come with π'_c and look as they did (f_c unchanged),

    p'_c ∝ p_c π'_c / π_c                        (Saerens, Latinne & Decaestecker 2002, eq. 4; Elkan 2001, theorem 2)

Weights in the loss do the same as another prior: the minimum of the expectation of −w_y log p_y under p is p_c ∝ w_c
p_c, since Σ_c w_c p_c log q_c is largest where q is proportional to w p. And a training set that kept a share β_c of
class c has priors ∝ β_c π_c; for two classes, with β of the negatives kept, p = β p_s / (β p_s − p_s + 1) (Dal Pozzolo
et al. 2015, eq. 4). So all three are one factor per class,

    p_c ∝ p_c · prior_is_c / (prior_was_c · weight_c · rate_c),

a bias on the log-probabilities, exact and its own inverse with the factors turned around. A probability of 0 stays 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossent.errors import DataError, some
from crossent.measure.calibration.calibrator import Calibrator
from crossent.measure.calibration.steps import Affine, numbers
from crossent.measure.predictions.naming import class_text

Factors = Mapping[Any, float] | Sequence[float]

_PRIOR_TOLERANCE = 1e-3  # as for a row of probabilities: shares that are printed with four decimals stay inside it


def undo_shift(
    *,
    prior_was: Factors | None = None,
    prior_is: Factors | None = None,
    class_weight: Factors | None = None,
    sampling_rate: Factors | None = None,
    classes: Sequence[Any] = (),
) -> Calibrator:
    """Give the calibrator that undoes what is known to have been done to the classes in training.

    ``prior_was`` and ``prior_is``: the share of each class in training, and where the model is used; both together.
    ``class_weight``: what each class weighed in the loss. ``sampling_rate``: the share of each class's rows that were
    trained on, in (0, 1], or more than 1 if they were repeated. Each is a sequence, one number per column, or a mapping
    from ``classes``, in which weights and rates that are not named are 1; of two classes one prior is enough. Raises
    DataError for anything else. Exact to rounding.

    >>> trained_on_half = undo_shift(prior_was=[0.5, 0.5], prior_is=[0.99, 0.01])
    >>> trained_on_half([0.5, 0.9]).round(4).tolist()
    [0.01, 0.0833]
    >>> weighed = undo_shift(class_weight={"fraud": 99}, classes=["fine", "fraud"])
    >>> weighed([0.5]).round(4).tolist()
    [0.01]
    """
    if (prior_was is None) != (prior_is is None):
        there, absent = ("prior_was", "prior_is") if prior_is is None else ("prior_is", "prior_was")
        raise DataError(f"{there} is given without {absent}: a shift goes from one prior to another.")
    given = [factors for factors in (prior_was, class_weight, sampling_rate) if factors is not None]
    if not given:
        raise DataError("nothing to undo: give prior_was with prior_is, class_weight or sampling_rate.")
    names = tuple(class_text(name) for name in classes)
    if not names and any(isinstance(factors, Mapping) for factors in (*given, prior_is)):
        raise DataError("factors by class name need the names in the order of the columns: classes=[…].")
    k = len(names) or len(given[0])
    if k < 2:
        raise DataError(f"it takes two classes to shift between, and there is {k}.")
    log_factor = np.zeros(k)
    if prior_was is not None and prior_is is not None:
        log_factor += np.log(_prior(prior_is, names, k, "prior_is")) - np.log(_prior(prior_was, names, k, "prior_was"))
    for factors, name in ((class_weight, "class_weight"), (sampling_rate, "sampling_rate")):
        if factors is not None:
            log_factor -= np.log(_factors(factors, names, k, name, 1.0))
    return Calibrator("shift undone", (Affine(1.0, numbers(log_factor)),), "kept", names)


def _prior(factors: Factors, names: tuple[str, ...], k: int, what: str) -> Any:
    if isinstance(factors, Mapping) and k == 2 and len(factors) == 1:
        only = float(next(iter(factors.values())))
        first = class_text(next(iter(factors))) == names[0]
        factors = {**factors, names[1] if first else names[0]: 1 - only}
    shares = _factors(factors, names, k, what, None)
    if abs(shares.sum() - 1) > _PRIOR_TOLERANCE:
        raise DataError(f"{what} should add up to 1, the shares of all classes, and adds up to {shares.sum():.6g}.")
    return shares / shares.sum()


def _factors(factors: Factors, names: tuple[str, ...], k: int, what: str, default: float | None) -> Any:
    if isinstance(factors, Mapping):
        told = {class_text(name): value for name, value in factors.items()}
        if unknown := [name for name in told if name not in names]:
            raise DataError(f"{what} names {unknown[0]!r}, which is no class; there are {some(list(names), 12)}.")
        if default is None and (absent := [name for name in names if name not in told]):
            raise DataError(f"{what} has no share for {some(absent)}: name every class.")
        values = [told.get(name, default) for name in names]
    else:
        values = list(factors)
        if len(values) != k:
            raise DataError(f"{what} should have one number per class, {k}, and has {len(values)}.")
    shown = names or tuple(str(place) for place in range(k))
    found = []
    for name, value in zip(shown, values, strict=True):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and number > 0):
            raise DataError(f"{what} should be a number above 0 for each class, and is {value!r} for {name}.")
        found.append(number)
    return np.array(found)
