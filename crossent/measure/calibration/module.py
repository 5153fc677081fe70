"""The calibrator in torch: the same steps on logits, to put behind a network, to compile and to export.

The numbers are buffers: they move with ``.to``, stand in the state dict and are not trained; gradients go through to
the logits. Everything is written with operations that ``torch.export`` and ONNX know. NumPy's version of each step is
in ``steps``, and tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crossent.errors import DataError
from crossent.measure.calibration.steps import Affine, Curve, Mixture, Quadratic, Step, VennAbers, pairs
from crossent.measure.predictions.form import MASK

if TYPE_CHECKING:
    from crossent.measure.calibration.calibrator import Calibrator


class Module(nn.Module):
    """Logits (…, classes) → calibrated log-probabilities; with ``one_logit`` log-odds → calibrated log-odds.

    >>> from crossent.measure.calibration import Calibrator
    >>> from crossent.measure.calibration.steps import Mixture
    >>> softer = Calibrator("temperature", (Mixture(temperature=2.0),)).module(one_logit=True)
    >>> softer(torch.tensor([4.0, -2.0])).tolist()
    [2.0, -1.0]
    """

    def __init__(self, calibrator: Calibrator, one_logit: bool = False, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if one_logit and len(calibrator.classes) > 2:
            raise DataError(f"one logit tells two classes apart, and there are {len(calibrator.classes)}.")
        self.one_logit = one_logit
        self.kept = calibrator.zeros == "kept" and bool(calibrator.steps)
        self.steps = nn.Sequential(*(_MODULES[type(step)](step) for step in calibrator.steps))
        self.to(dtype or torch.float32)

    def forward(self, logits: Tensor) -> Tensor:
        """Calibrate; 16-bit floats are computed with, and come back, as float32."""
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.one_logit:
            z = _both(z)
        else:
            z = torch.log_softmax(z, dim=-1)
        z = torch.where(z <= -MASK, -torch.inf, z)
        u = self.steps(z)
        u = torch.where(torch.isnan(z).any(dim=-1, keepdim=True), torch.nan, u)  # a staircase would give it a step
        if self.kept:
            u = torch.log_softmax(torch.where(z == -torch.inf, z, u), dim=-1)
        return u[..., 1] - u[..., 0] if self.one_logit else u


class _Mixture(nn.Module):
    scale: Tensor
    bias: Tensor
    log_weights: Tensor

    def __init__(self, step: Mixture) -> None:
        super().__init__()
        self.shown = tuple(place for place, weight in enumerate(step.weights) if weight > 0)
        self.register_buffer("scale", _numbers(1 / step.temperature))
        self.register_buffer("bias", _numbers(step.bias or (0.0,)))
        self.register_buffer("log_weights", _numbers([max(weight, 1e-300) for weight in step.weights], log=True))

    def forward(self, z: Tensor) -> Tensor:
        mixed: Tensor | None = None
        for place in self.shown:
            if place == 0:
                part = torch.log_softmax(z * self.scale + self.bias, dim=-1)
            elif place == 1:
                part = z
            else:
                part = torch.zeros_like(z) - torch.log(torch.ones_like(self.scale) * z.shape[-1])
            part = part + self.log_weights[place]
            mixed = part if mixed is None else torch.logaddexp(mixed, part)
        assert mixed is not None
        return torch.log_softmax(mixed, dim=-1)


class _Affine(nn.Module):
    scale: Tensor
    bias: Tensor

    def __init__(self, step: Affine) -> None:
        super().__init__()
        self.register_buffer("scale", _numbers(step.scale))
        self.register_buffer("bias", _numbers(step.bias or (0.0,)))

    def forward(self, z: Tensor) -> Tensor:
        u = z @ self.scale.T if self.scale.ndim == 2 else z * self.scale
        return torch.log_softmax(u + self.bias, dim=-1)


class _Quadratic(nn.Module):
    coefficients: Tensor

    def __init__(self, step: Quadratic) -> None:
        super().__init__()
        self.register_buffer("coefficients", _numbers(step.coefficients))

    def forward(self, z: Tensor) -> Tensor:
        odds = z[..., 1] - z[..., 0]
        shift, slope, bend = self.coefficients.unbind()
        curved = shift + odds * (slope + bend * odds)
        return _both(curved)


class _VennAbers(nn.Module):
    def __init__(self, step: VennAbers) -> None:
        super().__init__()
        self.curves = nn.ModuleList(_Curve(curve) for curve in step.curves)

    def forward(self, z: Tensor) -> Tensor:
        k = z.shape[-1]
        inverse = [torch.zeros_like(z[..., 0]) for _ in range(k)]
        for curve, (i, j) in zip(self.curves, pairs(k), strict=True):
            odds = z[..., j] - z[..., i]
            second = curve(torch.where(torch.isnan(odds), torch.zeros_like(odds), odds))
            inverse[j] = inverse[j] + 1 / second
            inverse[i] = inverse[i] + 1 / (1 - second)
        return torch.log_softmax(-torch.log(torch.stack(inverse, dim=-1) - (k - 2)), dim=-1)


class _Curve(nn.Module):
    edges_high: Tensor
    high: Tensor
    edges_low: Tensor
    low: Tensor

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        for name in ("edges_high", "high", "edges_low", "low"):
            self.register_buffer(name, _numbers(getattr(curve, name)))

    def forward(self, odds: Tensor) -> Tensor:
        # Counting the edges below is a search that ONNX knows too.
        high = self.high[(odds[..., None] > self.edges_high).sum(dim=-1)]
        low = self.low[(odds[..., None] >= self.edges_low).sum(dim=-1)]
        return high / (1 - low + high)


_MODULES: dict[type[Step], type[nn.Module]] = {
    Mixture: _Mixture,
    Affine: _Affine,
    Quadratic: _Quadratic,
    VennAbers: _VennAbers,
}


def _both(odds: Tensor) -> Tensor:
    """Turn log-odds of the second class into the log-probabilities of both, (…, 2).

    By softplus, because ONNX has no logsigmoid: it is exported as log(sigmoid), which in float32 is off by 0.03 at
    log-odds of 15 and infinite beyond 17.
    """
    softplus = nn.functional.softplus
    return -torch.stack([softplus(odds, threshold=40.0), softplus(-odds, threshold=40.0)], dim=-1)


def _numbers(values: float | Sequence[float] | Sequence[Sequence[float]], log: bool = False) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.log() if log else tensor
