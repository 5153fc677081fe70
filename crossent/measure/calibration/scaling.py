"""One temperature and one bias per class: the smallest change that makes probabilities mean what they say.

Scaling looks at a row only through its log-probabilities. It divides them by one temperature T (a model
too sure of itself needs T > 1) and adds one bias per class (a model trained on other frequencies needs that):

    q_c = exp(s log p_c + b_c) / Σ_k exp(s log p_k + b_k),     s = 1/T.

T = 1, b = 0 changes nothing; no T > 0 and no b changes a probability of exactly 0, so that what a model calls
impossible stays so. Two classes, where b is one number, make this Platt's scaling (1999) of the log-odds;
more classes, temperature scaling (Guo et al. 2017) with the bias-only corrections of Alexandari et al. (2020)
added. Logits may stand for log p: they differ by a constant per row, which cancels.

Fitting minimises the cross-entropy of the labels plus a ridge,

    Σ_i w_i cost_i(s, b) + λ/2 · ((s − 1)² + Σ_c b_c²),

a convex function of (s, b), so that its minimum is one, whatever the start. The ridge weighs as much as one
observation with standard deviation 1: it keeps the answer finite where labels are separable or a class never
came, and is nothing beside a few hundred rows. With r_ic = q_ic − y_ic the gradient is Σ_ic r_ic log p_ic + λ
(s − 1) and Σ_i r_ic + λ b_c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from crossent.measure.calibration.rows import Rows, log_softmax, rows_of
from crossent.measure.sums.hashing import stream

KINDS = ("none", "temperature", "temperature and bias")
"""The families of calibrators, each contained in the next."""

_SHARPEST, _FLATTEST = 1e-4, 1e4  # temperatures: beyond, float64 cannot tell the result from a limit


@dataclass(frozen=True)
class Scaling:
    """A temperature and a bias per class, in the order of the probability columns; no bias is the empty
    tuple.

    >>> sure = np.array([[0.9, 0.1], [1.0, 0.0]])
    >>> Scaling(temperature=2.0)(sure).round(3).tolist()
    [[0.75, 0.25], [1.0, 0.0]]
    >>> Scaling.from_dict(Scaling(2.0, (0.5, -0.5)).to_dict()) == Scaling(2.0, (0.5, -0.5))
    True
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """The smallest family that holds this calibrator, one of KINDS."""
        return KINDS[2] if self.bias else KINDS[0] if self.temperature == 1 else KINDS[1]

    def __call__(self, probabilities: Any) -> NDArray[np.float64]:
        """Calibrate probabilities (n, classes), or (n,) of the second class; float64 of the same shape."""
        p = np.asarray(probabilities, dtype=np.float64)
        if p.ndim == 1:
            return self(np.stack([1 - p, p], axis=1))[:, 1]
        with np.errstate(divide="ignore"):
            return np.exp(self.of_logits(np.log(p)))

    def of_logits(self, logits: Any) -> NDArray[np.float64]:
        """Give the calibrated log-probabilities (n, classes) of logits or of log-probabilities, in float64.

        A logit of −inf stays −inf. The way to calibrate without first rounding small probabilities to 0.
        """
        z = np.asarray(logits, dtype=np.float64)
        if self.bias and z.shape[-1] != len(self.bias):
            raise ValueError(f"this calibrator is for {len(self.bias)} classes, and the rows have {z.shape[-1]}.")
        u = z / self.temperature
        return log_softmax(u + np.array(self.bias) if self.bias else u)

    def to_dict(self) -> dict[str, Any]:
        """Write it as plain data that JSON holds."""
        return {"kind": self.kind, "temperature": self.temperature, "bias": list(self.bias)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Scaling:
        """Read back what to_dict wrote."""
        return cls(float(plain["temperature"]), tuple(float(shift) for shift in plain["bias"]))


def recalibrate(
    probabilities: Any,
    labels: Any,
    kind: str = "temperature and bias",
    ridge: float = 1.0,
    *,
    logits: bool = False,
) -> Scaling:
    """Fit the calibrator of one family that makes the labels most likely.

    ``probabilities`` float (n, classes), or (n,) of the second class; with ``logits=True`` logits or
    log-probabilities (n, classes). ``labels`` (n,) integer columns, or float fractions in [0, 1] of a range.
    Rows whose label has probability exactly 0 are left out: no calibrator can mend them. The minimum is found
    by L-BFGS with the exact gradient, in float64, temperature within 1e-4 to 1e4; without rows the answer is
    no change. Cost: tens of passes over (n, classes), three arrays of that size.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.uniform(size=20_000)
    >>> y = (rng.uniform(size=p.size) < p).astype(int)
    >>> sure = p**3 / (p**3 + (1 - p) ** 3)  # log-odds three times too large
    >>> round(recalibrate(sure, y, "temperature").temperature)
    3
    """
    z, y = _rows(probabilities, labels, logits)
    return fit_scaling(rows_of(z, y), kind, ridge)


def cross_fit(
    probabilities: Any,
    labels: Any,
    kind: str = "temperature and bias",
    folds: int = 5,
    seed: int = 0,
    ridge: float = 1.0,
    *,
    logits: bool = False,
) -> NDArray[np.float64]:
    """Calibrate each row by a calibrator fitted on the other folds, so that no row helped to calibrate
    itself.

    Arguments as in ``recalibrate``; returns float64 probabilities of the shape that came. Folds are drawn at random,
    the same ones for the same ``seed`` and number of rows, and on purpose not stratified by label: that would tell
    each fold's biases how often every class comes in the fold held out. On 1000 rows of 50 classes, perfectly
    calibrated, it made 0.016 nats of miscalibration out of nothing (docs/measure.md).
    With fewer rows than folds every row is a fold; a single row stays as it is.
    """
    flat = np.ndim(probabilities) == 1
    fitted = np.exp(cross_fit_log(*_rows(probabilities, labels, logits), kind, folds, seed, ridge))
    return fitted[:, 1] if flat else fitted


def cross_fit_log(
    z: NDArray[np.float64],
    y: NDArray[Any],
    kind: str = "temperature and bias",
    folds: int = 5,
    seed: int = 0,
    ridge: float = 1.0,
    start: Scaling | None = None,
) -> NDArray[np.float64]:
    """Do what ``cross_fit`` does from log-probabilities to log-probabilities, where nothing underflows."""
    if folds < 2:
        raise ValueError(f"cross-fitting needs 2 folds or more, and {folds} were asked for.")
    rows = rows_of(z, y)
    n = len(rows)
    fold = stream(seed, "folds").permutation(n) % min(folds, n)
    start = start or fit_scaling(rows, kind, ridge)  # near every fold's minimum, and no part of the answer
    out = rows.z.copy()
    for held_out in range(min(folds, n)):
        here = fold == held_out
        if n > 1:
            out[here] = fit_scaling(rows.take(~here), kind, ridge, start).of_logits(rows.z[here])
    return out


def _rows(probabilities: Any, labels: Any, logits: bool) -> tuple[NDArray[np.float64], NDArray[Any]]:
    z, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if logits and z.ndim != 2:
        raise ValueError(f"logits should be (rows, classes) and have shape {z.shape}.")
    if z.ndim == 1:
        z = np.stack([1 - z, z], axis=1)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise ValueError(f"probabilities (n, classes) need labels (n,); their shapes are {z.shape} and {y.shape}.")
    if y.dtype.kind == "f" and z.shape[1] != 2:
        raise ValueError("labels that are fractions need one probability per row; class labels should be integers.")
    if not logits:
        with np.errstate(divide="ignore"):
            z = np.log(z)
    return z, y.astype(np.float64 if y.dtype.kind == "f" else np.int64)


def fit_scaling(
    rows: Rows, kind: str = "temperature and bias", ridge: float = 1.0, start: Scaling | None = None
) -> Scaling:
    """Do what ``recalibrate`` does for rows in one form: soft labels and weights count as they should."""
    if kind not in KINDS:
        raise ValueError(f"kind should be one of {', '.join(map(repr, KINDS))}, and is {kind!r}.")
    if kind == "none":
        return Scaling()
    if not (possible := np.isfinite(rows.costs(rows.z))).all():
        rows = rows.take(possible)
    if not len(rows):
        return Scaling()
    z, weights = rows.z, rows.weights
    classes, shifted = rows.classes, kind == KINDS[2]
    allowed = np.isfinite(z)
    finite = np.where(allowed, z, 0.0)  # 0 · log 0 = 0: a class called impossible pulls at nothing
    if rows.soft:
        came = np.sum(rows.y if weights is None else rows.y * weights[:, None], axis=0)
    else:
        came = np.bincount(rows.y, weights, minlength=classes)
    # What the labels add to the objective is linear in (s, b) and is summed once.
    hits = rows.of(finite)
    pull = float(np.sum(hits if weights is None else hits * weights))

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        s, b = parameters[0], parameters[1:]
        u = s * finite
        if shifted:
            u += b
        u[~allowed] = -np.inf
        peak = np.max(u, axis=1, keepdims=True)
        q = np.exp(u - peak)
        total = np.sum(q, axis=1, keepdims=True)
        q /= total
        normaliser = peak + np.log(total)
        if weights is not None:
            q *= weights[:, None]
            normaliser *= weights[:, None]
        value = float(np.sum(normaliser)) - s * pull + ridge / 2 * (s - 1) ** 2
        slope = np.empty_like(parameters)
        slope[0] = np.sum(q * finite) - pull + ridge * (s - 1)
        if shifted:
            value += -float(came @ b) + ridge / 2 * float(b @ b)
            slope[1:] = q.sum(axis=0) - came + ridge * b
        return value / len(rows), slope / len(rows)

    begin = start or Scaling()
    first = np.array([1 / begin.temperature, *((begin.bias or (0.0,) * classes) if shifted else ())])
    bounds = [(1 / _FLATTEST, 1 / _SHARPEST)] + [(None, None)] * (first.size - 1)
    options = {"maxiter": 1000, "maxfun": 2000, "ftol": 1e-15, "gtol": 1e-8}
    best = minimize(objective, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return Scaling(1 / float(best[0]), tuple(float(shift) for shift in best[1:]))
