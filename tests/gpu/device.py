"""Where the kernels of the GPU are run, and what the CPU's tests call, done there: inputs go in, results come back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.compute.target import Target
from tests.compute import test_cpu_numbers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def there(x: Any) -> Any:
    """A tensor or a target on the device, in the layout that it has; anything else as it is."""
    if isinstance(x, Target):
        return Target(*(there(field) for field in (x.index, x.weight, x.live, x.row_weight)))
    if not isinstance(x, Tensor) or x.device.type == DEVICE:
        return x
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.as_strided((extent,), (1,)).to(DEVICE).as_strided(x.shape, x.stride())


def compute(z: Tensor, target: object, upstream: Tensor | None = None, **more: object) -> tuple[Tensor, Tensor]:
    """The losses of the rows and the gradient of z, worked out on the device."""
    found = test_cpu_numbers.compute(
        there(z), there(target), there(upstream), **{name: there(value) for name, value in more.items()}
    )
    return found[0].cpu(), found[1].cpu()
