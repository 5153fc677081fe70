"""The families of calibrators: for each, how the numbers of its steps are found, and which rows it cannot take.

    temperature            softmax(log p / T), mixed with the even distribution
    temperature and bias   softmax(log p / T + b), mixed with it (Platt's scaling for two classes)
    ensemble temperature   softmax(log p / T), p itself and the even distribution, mixed
    quadratic, beta        two classes: log-odds c₀ + c₁ l + c₂ l², or a log p₁ − b log p₀ + c
    structured vector      several classes: softmax(v log p + b), by probmetrics
    structured matrix      several classes: softmax(W log p + b), by probmetrics
    Venn–Abers             any increasing curve, for two classes or for each pair of a few

**The mixture.** On labels that the model separates, T → 0 would make it certain. Mixed with the even distribution it
never is. Laplace smoothing fixes the even part's weight at ε = 1/(n + 1) (TS-mix: Berta, Holzmüller, Jordan & Bach
2025). Here that is the least it can be: the weights are those that make the labels most likely among all with w_even ≥
ε, found by expectation maximisation. With r_ij the share of part j in what row i's label got,

    r_ij = w_j p_ij / Σ_k w_k p_ik,        w_j ← mean_i r_ij,

and where w_even would fall below ε it is ε, and the others share the rest as they would have: the weights that are best
for those shares within the bound, so that the likelihood, concave in the weights, rises at every step.

**The curves for two classes and for several** start from the temperature's result, whose logarithms are finite whatever
came in. Quadratic and beta minimise the cross-entropy plus a ridge that weighs as much as one observation, λ/2 Σ (θ −
θ₀)² with λ = 1 and θ₀ no change: a convex problem in three numbers. Beta's a and b are 0 or more, as in Kull et al.
(2017).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from crossent.errors import MissingExtra, require
from crossent.measure.calibration.rows import Floats, Rows
from crossent.measure.calibration.scaling import KINDS, fit_scaling
from crossent.measure.calibration.steps import Affine, Mixture, Quadratic, Step, numbers
from crossent.measure.calibration.venn_abers import fit_venn_abers

Refusal = Callable[[Rows], str | None]

MOST_PAIRED = 10
"""Classes up to which every pair gets a curve of its own: 45 pairs. More have too few rows each."""


@dataclass(frozen=True)
class Family:
    """A name, a fit from rows to steps, and what says in a clause why some rows are not for it, None if they are.

    ``only`` is "two" or "several" where it is for so many classes.
    """

    name: str
    fit: Callable[[Rows], tuple[Step, ...]]
    refuses: Refusal = lambda _: None
    only: str = ""

    def suits(self, classes: int) -> bool:
        """Whether it is for that many classes."""
        return {"two": classes == 2, "several": classes > 2}.get(self.only, True)


def fit_temperature(rows: Rows) -> tuple[Step, ...]:
    """One temperature, mixed with the even distribution."""
    return (_mixture(rows, KINDS[1], ensemble=False),)


def fit_bias(rows: Rows) -> tuple[Step, ...]:
    """One temperature and one bias per class, mixed with the even distribution."""
    return (_mixture(rows, KINDS[2], ensemble=False),)


def fit_ensemble(rows: Rows) -> tuple[Step, ...]:
    """One temperature, mixed with what came and with the even distribution."""
    return (_mixture(rows, KINDS[1], ensemble=True),)


def fit_quadratic(rows: Rows) -> tuple[Step, ...]:
    """A parabola of the log-odds, after a temperature."""
    softer = _mixture(rows, KINDS[1], ensemble=False)
    z = softer(rows.z)
    odds = z[:, 1] - z[:, 0]
    free = _curve(rows, np.stack([np.ones_like(odds), odds, odds * odds], axis=1), np.array([0.0, 1.0, 0.0]), [])
    return (softer, Quadratic(numbers(free)))


def fit_beta(rows: Rows) -> tuple[Step, ...]:
    """a log p₁ − b log p₀ + c with a, b ≥ 0, after a temperature."""
    softer = _mixture(rows, KINDS[1], ensemble=False)
    z = softer(rows.z)
    c, a, b = _curve(rows, np.stack([np.ones(len(z)), z[:, 1], -z[:, 0]], axis=1), np.array([0.0, 1.0, 1.0]), [1, 2])
    return (softer, Affine((float(b), float(a)), (0.0, float(c))))


def fit_structured_vector(rows: Rows) -> tuple[Step, ...]:
    """One number and one bias per class, with probmetrics' ridge, after a temperature."""
    return _structured(rows, "SVSCalibrator")


def fit_structured_matrix(rows: Rows) -> tuple[Step, ...]:
    """A matrix and a bias, with probmetrics' ridge on each, after a temperature."""
    return _structured(rows, "SMSCalibrator")


def _mixture(rows: Rows, kind: str, ensemble: bool) -> Mixture:
    scaling = fit_scaling(rows, kind)
    even = np.full_like(rows.z, -np.log(rows.classes))
    parts = [scaling.of_logits(rows.z), rows.z, even] if ensemble else [scaling.of_logits(rows.z), even]
    if rows.soft:  # every class of a row is a label that came as often as its share says
        seen = rows.y > 0
        counts = (rows.y if rows.weights is None else rows.y * rows.weights[:, None])[seen]
        likelihood = np.stack([np.exp(part[seen]) for part in parts])
    else:
        counts = np.ones(len(rows)) if rows.weights is None else rows.weights
        likelihood = np.stack([np.exp(part[np.arange(len(rows)), rows.y]) for part in parts])
    found = mixing_weights(likelihood, counts)
    scaled, came, rest = found if ensemble else (found[0], 0.0, found[1])
    return Mixture(scaling.temperature, scaling.bias, (float(scaled), float(came), float(rest)))


def mixing_weights(likelihood: Floats, counts: Floats, tolerance: float = 1e-9, most: int = 2000) -> Floats:
    """Give the weights of the parts of a mixture, from what each part (parts, n) gave to the labels; the last is even.

    ``counts`` (n,) are what a label counts. Ends when no weight moves by more than ``tolerance``; O(parts · n) a step.

    >>> mixing_weights(np.array([[1.0, 1.0, 0.0], [0.5, 0.5, 0.5]]), np.ones(3)).round(6).tolist()
    [0.333333, 0.666667]
    >>> mixing_weights(np.array([[1.0, 1.0, 1.0], [0.5, 0.5, 0.5]]), np.ones(3)).round(6).tolist()
    [0.75, 0.25]
    """
    total = float(counts.sum())
    least = 1 / (total + 1)
    weights = np.full(len(likelihood), 0.01 / (len(likelihood) - 1))
    weights[0] = 0.99
    for _ in range(most):
        shares = weights[:, None] * likelihood
        found = shares @ (counts / shares.sum(axis=0)) / total
        if found[-1] < least:
            found *= (1 - least) / found[:-1].sum()
            found[-1] = least
        moved = float(np.max(np.abs(found - weights)))
        weights = found
        if moved <= tolerance:
            break
    return weights


def _curve(rows: Rows, features: Floats, plain: Floats, positive: list[int]) -> Floats:
    """Minimise Σ w (softplus(f θ) − y f θ) + ½ |θ − θ₀|², some entries of θ being 0 or more."""
    y = rows.shares()[:, 1]
    weights = np.ones(len(rows)) if rows.weights is None else rows.weights
    n = max(len(rows), 1)

    def objective(theta: Floats) -> tuple[float, Floats]:
        odds = features @ theta
        off = theta - plain
        value = float(weights @ (np.logaddexp(0, odds) - y * odds)) + 0.5 * float(off @ off)
        return value / n, (features.T @ (weights * (expit(odds) - y)) + off) / n

    bounds = [(0.0 if place in positive else None, None) for place in range(plain.size)]
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    return minimize(objective, plain, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _structured(rows: Rows, name: str) -> tuple[Step, ...]:
    softer = _mixture(rows, KINDS[1], ensemble=False)
    fitted = getattr(_probmetrics(), name)()
    # It computes in float32 and moves zeros to 1e-38 in silence; after a mixture there are none.
    fitted.fit(np.exp(softer(rows.z)), rows.y)
    even = fitted.ts_.output_constant / (fitted.ts_.n_samples_ + 1)
    again = Mixture(1 / float(fitted.ts_.cal_.invtemp_), (), (1 - even, 0.0, even))
    if name == "SVSCalibrator":
        scale, bias = np.asarray(fitted.v_), np.asarray(fitted.b_)
    else:
        scale, bias = fitted.W_[:, :-1], fitted.W_[:, -1]
    return softer, again, Affine(numbers(scale.astype(float)), numbers(bias.astype(float)))


def _probmetrics() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library it imports uses what torch calls deprecated
        return require("probmetrics.calibrators", "calibrate", "structured scaling")


def _only_classes(rows: Rows) -> str | None:
    """Clause of a family that knows a row only as one class that came, counted once."""
    if rows.soft:
        return "it takes one class for each row, and these labels are shares of classes"
    return "it counts every row once, and these rows have weights" if rows.weights is not None else None


def _no_vector(rows: Rows) -> str | None:
    if (only := _only_classes(rows)) is not None:
        return only
    try:
        _probmetrics()
    except MissingExtra as missing:
        return str(missing)
    return None


def _no_matrix(rows: Rows) -> str | None:
    numbers_needed = rows.classes * (rows.classes + 1)
    if numbers_needed > len(rows):
        return f"its {numbers_needed:,} numbers are more than the {len(rows):,} rows"
    return _no_vector(rows)


def _no_pairs(rows: Rows) -> str | None:
    if rows.classes > MOST_PAIRED:
        return f"it has one curve for each pair of classes, and {rows.classes} classes have {_pairs(rows.classes):,}"
    return _only_classes(rows)


def _pairs(k: int) -> int:
    return k * (k - 1) // 2


FAMILIES = (
    Family("temperature", fit_temperature),
    Family("temperature and bias", fit_bias),
    Family("ensemble temperature", fit_ensemble),
    Family("quadratic", fit_quadratic, only="two"),
    Family("beta", fit_beta, only="two"),
    Family("structured vector", fit_structured_vector, _no_vector, "several"),
    Family("structured matrix", fit_structured_matrix, _no_matrix, "several"),
    Family("Venn–Abers", lambda rows: (fit_venn_abers(rows),), _no_pairs),
)
"""The candidates, the simple ones first; of equally good ones the first is taken."""
