"""How many digits are right? Worst errors of losses and gradients in ulps, PyTorch's beside ours.

    python benchmarks/accuracy.py

The truth is worked out in 80-bit floats from the logits as they are stored; the other columns of a row are added up
without the target's 1, so that it is right on confident rows too. An ulp is the distance between neighbouring numbers
at the truth, in the dtype of the answer: crossent gives float32 losses for 16-bit logits, PyTorch 16-bit ones. Each
entry of a gradient is compared with its own truth. 0.5 is the best there is: the truth rounded once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import crossent

CLASSES = {2: 64, 3: 64, 10: 64, 1000: 32, 32_000: 4, 256_000: 2}  # and how many rows of each
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
CASES = ("random", "flat", "confident", "sure and wrong", "peaked", "far from zero", "masked")


def rows(case: str, n: int, v: int, dtype: torch.dtype, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits (n, v) and labels (n,) of one kind of row."""
    z, y = torch.randn(n, v, generator=g), torch.randint(v, (n,), generator=g)
    at = torch.arange(n)
    if case == "flat":
        z = torch.zeros(n, v)
    if case in ("confident", "sure and wrong"):
        z[at, y] = 27.6 + float(np.log(v))  # 1 - p is about 1e-12
    if case == "sure and wrong":
        y = (y + 1) % v
    if case == "peaked":
        z, y = 8 * z, (8 * z).argmax(-1)
    if case == "far from zero":
        z = z + (1e4 if dtype == torch.float32 else 1e3)  # float16 ends at 65504 and steps by 8 at 1e4
    if case == "masked":
        kept = z[at, y].clone()
        z[:, 1::3] = -torch.inf
        z[at, y] = kept
    return z.to(dtype), y


def truth_of_rows(z: Tensor, y: Tensor) -> tuple[NDArray, NDArray]:
    """Loss (n,) and gradient (n, v), rounded to float64 at the end."""
    at = np.arange(len(y))
    v = z.double().numpy().astype(np.longdouble)
    high = v.max(axis=1, keepdims=True)
    power = np.exp(v - high)
    target = power[at, y].copy()
    power[at, y] = 0
    rest = power.sum(axis=1)
    p = power / (target + rest)[:, None]
    p[at, y] = -rest / (target + rest)
    # log(1 + rest / target), or where the target is dwarfed, the difference of logarithms that do not cancel.
    near = rest < target
    loss = np.where(near, np.log1p(rest / target), (high[:, 0] - v[at, y]) + np.log(target + rest))
    return loss.astype(np.float64), p.astype(np.float64)


def truth_of_elements(z: Tensor, t: Tensor) -> tuple[NDArray, NDArray]:
    """The same of binary cross-entropy, element by element."""
    v, share = z.double().numpy().astype(np.longdouble), t.double().numpy().astype(np.longdouble)
    tail = np.log1p(np.exp(-np.abs(v)))
    loss = share * (np.maximum(-v, 0) + tail) + (1 - share) * (np.maximum(v, 0) + tail)
    gradient = (1 - share) / (1 + np.exp(-v)) - share / (1 + np.exp(v))
    return loss.astype(np.float64), gradient.astype(np.float64)


def ulps(got: Tensor, truth: NDArray, at_least: NDArray | float = 0.0) -> float:
    """The largest error in ulps of the truth, or of ``at_least`` where that is greater."""
    info, value = torch.finfo(got.dtype), got.detach().double().numpy()
    size = np.maximum(np.maximum(np.abs(truth), at_least), info.tiny)
    ulp = np.maximum(info.eps * np.exp2(np.floor(np.log2(size))), info.smallest_normal * info.eps)
    error = np.where(value == truth, 0.0, np.abs(value - truth) / ulp)
    return float(np.where(np.isnan(error), np.inf, error).max())


def both(call: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    value = call(leaf)
    (dz,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), dz


def lines() -> Iterator[tuple[str, ...]]:
    g = torch.Generator().manual_seed(0)
    for dtype, name in DTYPES.items():
        for case in CASES:
            worst = [0.0] * 4
            for v, n in CLASSES.items():
                if dtype != torch.float32 and v > 1000:
                    continue
                z, y = rows(case, n, v, dtype, g)
                loss, gradient = truth_of_rows(z, y)
                for i, call in enumerate((crossent.cross_entropy, F.cross_entropy)):
                    value, dz = both(lambda z, call=call, y=y: call(z, y, reduction="none"), z)
                    worst[i] = max(worst[i], ulps(value, loss))
                    worst[2 + i] = max(worst[2 + i], ulps(dz, gradient))
            yield f"cross_entropy, {name}", case, *map(shown, worst)
    for dtype, name in DTYPES.items():
        z = torch.linspace(-80, 80, 20_001).to(dtype)
        for case, share in (("label 1", 1.0), ("label 0", 0.0), ("share ¼", 0.25)):
            t = torch.full_like(z, share)
            loss, gradient = truth_of_elements(z, t)
            # (1 - t) p - t (1 - p) passes through 0 between: there the share is the size to be exact to.
            least = share if 0 < share < 1 else 0.0
            worst = [0.0] * 4
            for i, call in enumerate((crossent.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)):
                value, dz = both(lambda z, call=call, t=t: call(z, t, reduction="none"), z)
                worst[i], worst[2 + i] = ulps(value, loss), ulps(dz, gradient, least)
            yield f"binary, {name}", case, *map(shown, worst)


def shown(error: float) -> str:
    return f"{error:.2f}" if error < 100 else f"{error:,.0f}" if error < 1e5 else f"{error:.1e}"


def main() -> None:
    assert np.finfo(np.longdouble).eps < 1e-18, "this machine has no 80-bit floats, which the truth is worked out in"
    print(f"torch {torch.__version__}, numpy {np.__version__}, {platform.machine()}\n")
    print("| operation | rows | loss: crossent | loss: torch | gradient: crossent | gradient: torch |")
    print("|---|---|---:|---:|---:|---:|")
    for line in lines():
        print("| " + " | ".join(line) + " |", flush=True)


if __name__ == "__main__":
    main()
