"""The steps a calibrator is made of, each from log-probabilities (n, k) to log-probabilities, as plain numbers.

A step knows how it is applied and how it is written down; how its numbers are found is the business of ``families``,
and how it runs behind a network that of ``module``. Every step gives rows that add up to 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crossent.measure.calibration.rows import Floats, log_softmax


@dataclass(frozen=True)
class Mixture:
    """Scaled probabilities, the ones that came, and even ones, mixed: Σ_j weights_j p_j.

        q = w₀ softmax(log p / T + b) + w₁ p + w₂ / k

    With w₁ = 0 it is a temperature (and a bias) that never becomes certain: no class gets less than w₂/k. With w₁ > 0
    it is ensemble temperature scaling (Zhang, Kailkhura & Han 2020, eq. 8).

    >>> sure = np.log([[0.9, 0.1]])
    >>> np.exp(Mixture(2.0, (), (0.5, 0.5, 0.0))(sure)).round(3).tolist()  # half way from 0.9 to 0.75
    [[0.825, 0.175]]
    """

    temperature: float = 1.0
    bias: tuple[float, ...] = ()
    weights: tuple[float, float, float] = (1.0, 0.0, 0.0)
    name: ClassVar[str] = "mixture"

    def __call__(self, z: Floats) -> Floats:
        """Apply it to log-probabilities (n, k)."""
        u = z / self.temperature
        scaled = log_softmax(u + np.array(self.bias) if self.bias else u)
        parts = (scaled, z, np.full_like(z, -np.log(z.shape[1])))
        mixed = [np.log(weight) + part for weight, part in zip(self.weights, parts, strict=True) if weight > 0]
        return log_softmax(np.logaddexp.reduce(mixed) if len(mixed) > 1 else mixed[0])


@dataclass(frozen=True)
class Affine:
    """softmax(A log p + b): A one number, a number per class, or a matrix (k, k) as a tuple of its rows.

    Vector and matrix scaling (Guo et al. 2017). For two classes a number each is beta calibration (Kull, Silva Filho &
    Flach 2017, eq. 4): log-odds a log p₁ − b log p₀ + c.

    >>> np.exp(Affine(1.0, (0.0, np.log(3.0)))(np.log([[0.5, 0.5]]))).round(3).tolist()
    [[0.25, 0.75]]
    """

    scale: float | tuple[float, ...] | tuple[tuple[float, ...], ...] = 1.0
    bias: tuple[float, ...] = ()
    name: ClassVar[str] = "affine"

    def __call__(self, z: Floats) -> Floats:
        """Apply it to log-probabilities (n, k)."""
        scale = np.array(self.scale)
        u = z @ scale.T if scale.ndim == 2 else z * scale
        return log_softmax(u + np.array(self.bias) if self.bias else u)


@dataclass(frozen=True)
class Quadratic:
    """Two classes, whose log-odds l become c₀ + c₁ l + c₂ l² (quadratic scaling, Berta et al. 2025, eq. 6).

    >>> np.exp(Quadratic((0.0, 0.5, 0.0))(np.log([[0.9, 0.1]]))).round(3).tolist()  # a temperature of 2
    [[0.75, 0.25]]
    """

    coefficients: tuple[float, float, float] = (0.0, 1.0, 0.0)
    name: ClassVar[str] = "quadratic"

    def __call__(self, z: Floats) -> Floats:
        """Apply it to log-probabilities (n, 2)."""
        shift, slope, bend = self.coefficients
        odds = z[:, 1] - z[:, 0]
        return log_softmax(np.stack([np.zeros_like(odds), shift + odds * (slope + bend * odds)], axis=1))


@dataclass(frozen=True)
class Curve:
    """The two staircases of a Venn–Abers predictor, by log-odds l: what l would mean if its row's label were 1, or 0.

    ``high[j]`` holds for edges_high[j−1] < l ≤ edges_high[j], ``low[j]`` for edges_low[j−1] ≤ l < edges_low[j]; each
    has one value more than edges. The probability is high / (1 − low + high), which for the log loss regrets least
    whichever of the two is right (Vovk, Petej & Fedorova 2015, section 4).
    """

    edges_high: tuple[float, ...]
    high: tuple[float, ...]
    edges_low: tuple[float, ...]
    low: tuple[float, ...]

    def __call__(self, odds: Floats) -> Floats:
        """Give the probability at log-odds (n,)."""
        high = np.array(self.high)[np.searchsorted(self.edges_high, odds, side="left")]
        low = np.array(self.low)[np.searchsorted(self.edges_low, odds, side="right")]
        return high / (1 - low + high)


@dataclass(frozen=True)
class VennAbers:
    """One ``Curve`` for each pair of classes (i, j), i < j, in the order (0, 1), (0, 2), …, (1, 2), …: of the odds of
    j.

    Two classes have one. For more, with r_ij the probability of i among i and j, the pairs are put together by
    p_i ∝ 1 / (Σ_{j≠i} 1/r_ij − (k − 2)) (Price et al. 1994; Manokhin 2017, eq. 4).
    """

    curves: tuple[Curve, ...]
    name: ClassVar[str] = "venn-abers"

    def __call__(self, z: Floats) -> Floats:
        """Apply it to log-probabilities (n, k)."""
        k = z.shape[1]
        inverse = np.zeros_like(z)
        for curve, (i, j) in zip(self.curves, pairs(k), strict=True):
            with np.errstate(invalid="ignore"):
                odds = z[:, j] - z[:, i]
            second = curve(np.where(np.isnan(odds), 0.0, odds))  # two impossible classes are equally so
            inverse[:, j] += 1 / second
            inverse[:, i] += 1 / (1 - second)
        return log_softmax(-np.log(inverse - (k - 2)))


def pairs(k: int) -> list[tuple[int, int]]:
    """Give the pairs of k classes in the order ``VennAbers`` keeps them."""
    return [(i, j) for i in range(k) for j in range(i + 1, k)]


Step = Mixture | Affine | Quadratic | VennAbers
_STEPS: dict[str, Any] = {step.name: step for step in (Mixture, Affine, Quadratic, VennAbers)}


def to_dict(step: Step) -> dict[str, Any]:
    """Write a step as plain data that JSON holds."""
    return {"step": step.name, **asdict(step)}


def from_dict(plain: dict[str, Any]) -> Step:
    """Read back what ``to_dict`` wrote; a KeyError, TypeError or ValueError if it is anything else.

    >>> from_dict(to_dict(Affine((1.0, 2.0)))) == Affine((1.0, 2.0))
    True
    """
    kind = _STEPS[plain["step"]]
    fields = {name: _tuples(value) for name, value in plain.items() if name != "step"}
    if kind is VennAbers:
        fields["curves"] = tuple(
            Curve(**{name: _tuples(value) for name, value in curve.items()}) for curve in plain["curves"]
        )
    return kind(**fields)


def _tuples(value: Any) -> Any:
    """Numbers in lists become numbers in tuples; anything that is not a number is refused."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(item) for item in value)
    return value if isinstance(value, dict) else float(value)


def numbers(values: NDArray[Any]) -> Any:
    """Give an array as floats in tuples, the form in which steps hold numbers."""
    return _tuples(values.tolist())
