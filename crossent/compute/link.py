"""What happens to a logit before it is summarised: a soft cap, a temperature, a bias for each class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Link:
    """z ↦ cap(z) / temperature + bias, with cap(z) = softcap · tanh(z / softcap).

    The soft cap bounds the logits (Gemma Team 2024, §2); a temperature above 1 flattens the probabilities (Guo et
    al. 2017, eq. 9); a bias of the classes' log prior is logit adjustment (Menon et al. 2021, eq. 10). Each field
    may be a tensor that is trained: the first two one number or one for each class (v,), the bias (v,). Worked out in
    the rows' wide dtype, so that nothing is rounded twice. A soft cap makes -softcap of a logit of -inf, which then is
    a class like any other: forbid classes by a bias of -inf.

    >>> Link(temperature=2.0)(torch.tensor([2.0, 4.0]))
    tensor([1., 2.])
    """

    temperature: float | Tensor = 1.0
    softcap: float | Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "softcap"):
            given = getattr(self, name)
            if isinstance(given, (int, float)) and not 0 < given < math.inf:
                raise ValueError(f"{name} must be greater than 0 and finite, and is {given}.")

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the link to logits (…, v)."""
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        z = z / self.temperature
        return z if self.bias is None else z + self.bias
