"""How many digits are right? The worst errors found per operation and dtype, what caused them, PyTorch's beside ours.

    python benchmarks/accuracy.py           prints the tables
    python benchmarks/accuracy.py --page    writes them into docs/accuracy.md

The truth is worked out in 80-bit floats from the logits as they are stored (KL divergence: in mpmath with 50 digits).
1 - p of a column is added up from the other columns, so that it is right on confident rows too. An ulp is the distance
between neighbouring numbers at the truth, in the dtype of the answer: crossent gives float32 losses for 16-bit logits,
PyTorch 16-bit ones. Each entry of a gradient is compared with its own truth; one that is a difference of two terms is
compared at the size of the larger one. 0.5 is the best there is: the truth rounded once.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import mpmath
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import crossent
from crossent.compute import backends
from crossent.compute.losses import Focal

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
MARKERS = ("<!-- errors: python benchmarks/accuracy.py --page -->", "<!-- end of errors -->")

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
CLASSES = {2: 4096, 3: 4096, 10: 1024, 100: 64, 1000: 16, 32_000: 2, 256_000: 1}  # and how many rows of each
CASES = ("random", "flat", "confident", "sure and wrong", "peaked", "far from zero", "masked")
Call = Callable[[Tensor], Tensor]
Array = NDArray[np.longdouble]


# --- inputs ---------------------------------------------------------------------------------------------------------


@cache
def rows(case: str, v: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits (n, v) and labels (n,) of one kind of row."""
    n = CLASSES[v]
    g = torch.Generator().manual_seed(v)
    z, y = torch.randn(n, v, generator=g, dtype=torch.float64), torch.randint(v, (n,), generator=g)
    at = torch.arange(n)
    if case == "flat":
        z = torch.zeros_like(z)
    if case in ("confident", "sure and wrong"):
        z[at, y] = 27.6 + float(np.log(v))  # 1 - p is about 1e-12
    if case == "sure and wrong":
        y = (y + 1) % v
    if case == "peaked":
        z, y = 8 * z, (8 * z).argmax(-1)
    if case == "far from zero":
        z = z + (1e3 if dtype == torch.float16 else 1e4)  # float16 ends at 65504 and steps by 8 at 1e4
    if case == "masked":
        kept = z[at, y].clone()
        z[:, 1::3] = -torch.inf
        z[at, y] = kept
    return z.to(dtype), y


def classes(dtype: torch.dtype) -> list[int]:
    """The vocabularies of a dtype: all of them for float32."""
    most = {torch.float32: 256_000, torch.float64: 32_000}.get(dtype, 1000)
    return [v for v in CLASSES if v <= most]


# --- truth ----------------------------------------------------------------------------------------------------------


def wide(x: Tensor) -> Array:
    """80-bit floats."""
    return x.detach().double().numpy().astype(np.longdouble)


def of_others(x: Array) -> Array:
    """For each column the sum over all others: nothing is subtracted."""
    summed = np.zeros_like(x)
    summed[:, 1:] += x[:, :-1].cumsum(-1)
    summed[:, :-1] += x[:, :0:-1].cumsum(-1)[:, ::-1]
    return summed


@dataclass
class Row:
    """p, 1 - p and -log p of every column of rows (n, v)."""

    p: Array
    miss: Array
    nll: Array


@cache
def truth(case: str, v: int, dtype: torch.dtype) -> Row:
    """All that the operations on these rows are made of."""
    z = wide(rows(case, v, dtype)[0])
    peak = z.max(-1, keepdims=True)
    power = np.exp(z - peak)
    others = of_others(power)
    spread = np.log1p(np.take_along_axis(others, z.argmax(-1)[:, None], -1))
    return Row(power / (power + others), others / (power + others), (peak - z) + spread)


def against(row: Row, q: Array) -> tuple[Array, Array, Array]:
    """Loss (n,), gradient (n, v) and the size to which its entries are known, for the cross-entropy from q (n, v)."""
    loss = np.where(q > 0, q * np.where(q > 0, row.nll, 0), 0).sum(-1)
    towards, away = of_others(q) * row.p, q * row.miss
    return loss, towards - away, np.maximum(towards, away)


def one_hot(y: Tensor, v: int) -> Array:
    return np.eye(v, dtype=np.longdouble)[y.numpy()] if v < 2000 else wide(F.one_hot(y, v))


# --- what is compared -----------------------------------------------------------------------------------------------


@dataclass
class Compared:
    """One input: its name, the truth, and the two answers (value, gradient) to it."""

    name: str
    value: Array
    gradient: Array
    size: Array | float
    answers: list[tuple[Tensor, Tensor]]


def both(x: Tensor, *calls: Call) -> list[tuple[Tensor, Tensor]]:
    answers = []
    for call in calls:
        leaf = x.clone().requires_grad_()
        value = call(leaf)
        (dx,) = torch.autograd.grad(value.sum(), leaf)
        answers.append((value.detach(), dx))
    return answers


def of_rows(dtype: torch.dtype, operation: Callable[[str, int], tuple], masked: bool) -> Iterator[Compared]:
    """An operation (case, v) ↦ (value, gradient, size, ours, theirs) on every kind of row."""
    for v in classes(dtype):
        for case in CASES if masked else CASES[:-1]:
            value, gradient, size, ours, theirs = operation(case, v)
            yield Compared(f"{case}, V={v:,}", value, gradient, size, both(rows(case, v, dtype)[0], ours, theirs))


def hard(dtype: torch.dtype) -> Iterator[Compared]:
    def operation(case: str, v: int) -> tuple:
        y = rows(case, v, dtype)[1]
        return (
            *against(truth(case, v, dtype), one_hot(y, v)),
            lambda z: crossent.cross_entropy(z, y, reduction="none"),
            lambda z: F.cross_entropy(z, y, reduction="none"),
        )

    yield from of_rows(dtype, operation, masked=True)


def smoothed(dtype: torch.dtype) -> Iterator[Compared]:
    def operation(case: str, v: int) -> tuple:
        y = rows(case, v, dtype)[1]
        q = np.longdouble(0.9) * one_hot(y, v) + np.longdouble(0.1) / v
        return (
            *against(truth(case, v, dtype), q),
            lambda z: crossent.cross_entropy(z, y, reduction="none", label_smoothing=0.1),
            lambda z: F.cross_entropy(z, y, reduction="none", label_smoothing=0.1),
        )

    yield from of_rows(dtype, operation, masked=False)  # there PyTorch's smoothing is another one, and infinite


def soft(dtype: torch.dtype) -> Iterator[Compared]:
    def operation(case: str, v: int) -> tuple:
        q = torch.randn(CLASSES[v], v, generator=torch.Generator().manual_seed(v + 1)).softmax(-1).to(dtype)
        return (
            *against(truth(case, v, dtype), wide(q)),
            lambda z: crossent.cross_entropy(z, q, reduction="none"),
            lambda z: F.cross_entropy(z, q, reduction="none"),
        )

    yield from of_rows(dtype, operation, masked=False)  # there every class must be possible


def focal(dtype: torch.dtype) -> Iterator[Compared]:
    def torchs(z: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(z, y, reduction="none")
        return (1 - torch.exp(-nll)) ** 2 * nll

    def operation(case: str, v: int) -> tuple:
        y, row = rows(case, v, dtype)[1], truth(case, v, dtype)
        nll, gradient, _ = against(row, one_hot(y, v))
        at = y.numpy()[:, None]
        p, miss = (np.take_along_axis(x, at, -1)[:, 0] for x in (row.p, row.miss))
        slope = miss**2 + 2 * miss * p * nll
        return (
            miss**2 * nll,
            slope[:, None] * gradient,
            0.0,
            lambda z: crossent.cross_entropy(z, y, reduction="none", loss=Focal(2.0)),
            lambda z: torchs(z, y),
        )

    yield from of_rows(dtype, operation, masked=True)


def entropy(dtype: torch.dtype) -> Iterator[Compared]:
    def operation(case: str, v: int) -> tuple:
        y, row = rows(case, v, dtype)[1], truth(case, v, dtype)
        charge = row.p * np.where(row.p > 0, row.nll, 0)
        value = charge.sum(-1)
        even = row.p * value[:, None]
        return (
            value,
            charge - even,
            np.maximum(charge, even),
            lambda z: crossent.row_numbers(z, y).entropy,
            lambda z: torch.distributions.Categorical(logits=z, validate_args=False).entropy(),
        )

    yield from of_rows(dtype, operation, masked=True)


def binary(dtype: torch.dtype) -> Iterator[Compared]:
    z = torch.linspace(-80, 80, 200_001, dtype=torch.float64).to(dtype)
    v = wide(z)
    for name, share in (("label 1", 1.0), ("label 0", 0.0), ("share ¼", 0.25)):
        t = torch.full_like(z, share)
        tail = np.log1p(np.exp(-np.abs(v)))
        yes, no = (1 - share) / (1 + np.exp(-v)), share / (1 + np.exp(v))
        yield Compared(
            name,
            share * (np.maximum(-v, 0) + tail) + (1 - share) * (np.maximum(v, 0) + tail),
            yes - no,
            np.maximum(yes, no),
            both(
                z,
                lambda z, t=t: crossent.binary_cross_entropy_with_logits(z, t, reduction="none"),
                lambda z, t=t: F.binary_cross_entropy_with_logits(z, t, reduction="none"),
            ),
        )


def divergence(dtype: torch.dtype) -> Iterator[Compared]:
    """KL of logits from others: random ones, and ones that differ in the third digit."""
    for v in (2, 10, 100):
        for name, apart in (("random", 1.0), ("nearly equal", 1e-3)):
            g = torch.Generator().manual_seed(v)
            z = torch.randn(8, v, generator=g, dtype=torch.float64).to(dtype)
            t = (z.double() + apart * torch.randn(8, v, generator=g, dtype=torch.float64)).to(dtype)
            value, gradient, size = np.zeros(8, np.longdouble), *np.zeros((2, 8, v), np.longdouble)
            for i in range(8):
                p, q = (_softmax(x[i].tolist()) for x in (z, t))
                gain = [mpmath.log(a / b) for a, b in zip(p, q, strict=True)]
                kl = mpmath.fsum(a * d for a, d in zip(p, gain, strict=True))
                value[i] = float(kl)
                gradient[i] = [float(a * (d - kl)) for a, d in zip(p, gain, strict=True)]
                # A gain is (z - t) less the difference of the two log-sum-exps.
                apart_by = [mpmath.mpf(a) - mpmath.mpf(b) for a, b in zip(z[i].tolist(), t[i].tolist(), strict=True)]
                size[i] = [float(a * max(abs(b), abs(b - d))) for a, b, d in zip(p, apart_by, gain, strict=True)]

            def theirs(z: Tensor, t: Tensor = t) -> Tensor:
                return F.kl_div(t.log_softmax(-1), z.log_softmax(-1), reduction="none", log_target=True).sum(-1)

            def ours(z: Tensor, t: Tensor = t) -> Tensor:
                return crossent.kl_divergence(z, t, given="logits")

            yield Compared(f"{name}, V={v}", value, gradient, size, both(z, ours, theirs))


def _softmax(z: list[float]) -> list[mpmath.mpf]:
    power = [mpmath.exp(mpmath.mpf(x)) for x in z]
    return [x / mpmath.fsum(power) for x in power]


def linear(dtype: torch.dtype) -> Iterator[Compared]:
    """Of a head: its logits are float32 sums in both, whose rounding is most of either error."""
    for v in (10, 1000):
        for name, scale in (("random", 1.0), ("confident", 6.0)):
            g = torch.Generator().manual_seed(v)
            x, w = (torch.randn(n, 64, generator=g, dtype=torch.float64) for n in (64, v))
            x, w = x.to(dtype), (scale * w / 8).to(dtype)
            y = (x.double() @ w.double().T).argmax(-1) if name == "confident" else torch.randint(v, (64,), generator=g)
            z = wide(x) @ wide(w).T
            power = np.exp(z - z.max(-1, keepdims=True))
            others = of_others(power)
            at = np.arange(64)
            p = power / (power + others)
            p[at, y] = -(others / (power + others))[at, y]
            nll = (z.max(-1) - z[at, y]) + np.log1p(others[at, z.argmax(-1)])
            dx = p @ wide(w)

            def ours(x: Tensor, w: Tensor = w, y: Tensor = y) -> Tensor:
                return crossent.linear_cross_entropy(x, w, y, reduction="none")

            def theirs(x: Tensor, w: Tensor = w, y: Tensor = y) -> Tensor:
                return F.linear_cross_entropy(x, w, y, reduction="none")

            size = np.abs(dx).max(-1, keepdims=True)
            yield Compared(f"{name}, V={v:,}", nll, dx, size, both(x, ours, theirs))


OPERATIONS: dict[str, Callable[[torch.dtype], Iterator[Compared]]] = {
    "cross_entropy": hard,
    "the same, smoothed by 0.1": smoothed,
    "the same, soft targets": soft,
    "the same, Focal(2)": focal,
    "binary, with logits": binary,
    "row_numbers: entropy": entropy,
    "kl_divergence": divergence,
    "linear_cross_entropy": linear,
}


# --- worst errors ---------------------------------------------------------------------------------------------------


def ulps(got: Tensor, truth: Array, at_least: Array | float = 0.0) -> float:
    """The largest error in ulps of the truth, or of ``at_least`` where that is greater."""
    info, value = torch.finfo(got.dtype), wide(got)
    size = np.maximum(np.maximum(np.abs(truth), at_least), info.tiny)
    ulp = np.maximum(np.ldexp(np.longdouble(info.eps), np.frexp(size)[1] - 1), info.smallest_normal * info.eps)
    error = np.where(value == truth, 0.0, np.abs(value - truth) / ulp)
    return float(np.where(np.isnan(error), np.inf, error).max())


@dataclass
class Worst:
    """The worst errors of one answer, (ulps, the input that caused it) of its value and of its gradient."""

    value: tuple[float, str] = (-1.0, "")
    gradient: tuple[float, str] = (-1.0, "")

    def look(self, compared: Compared, value: Tensor, gradient: Tensor) -> None:
        # An error is worse if it is greater by more than the last digit that is shown: the first input is named.
        found = ulps(value, compared.value), ulps(gradient, compared.gradient, compared.size)
        if found[0] > self.value[0] + 0.005:
            self.value = found[0], compared.name
        if found[1] > self.gradient[0] + 0.005:
            self.gradient = found[1], compared.name


@dataclass
class Line:
    """A row of the table: crossent's worst and PyTorch's."""

    ours: Worst = field(default_factory=Worst)
    theirs: Worst = field(default_factory=Worst)

    def look(self, compared: Compared) -> None:
        for worst, answer in zip((self.ours, self.theirs), compared.answers, strict=True):
            worst.look(compared, *answer)

    def cells(self, *, inputs: bool) -> str:
        cells = []
        for ours, theirs in ((self.ours.value, self.theirs.value), (self.ours.gradient, self.theirs.gradient)):
            cells += [shown(ours[0]), *([ours[1]] if inputs else []), shown(theirs[0])]
        return " | ".join(cells)


def shown(error: float) -> str:
    if np.isinf(error):
        return "NaN or ∞"
    return f"{error:.2f}" if error < 100 else f"{error:,.0f}" if error < 1e5 else f"{error:.1e}"


def tables() -> Iterator[str]:
    """Both tables, in Markdown."""
    backend = backends.of(torch.zeros(1)).__name__.rpartition(".")[2]
    yield f"torch {torch.__version__}, numpy {np.__version__}, {platform.machine()}, crossent's {backend} backend:"
    yield ""
    yield "| operation, dtype | loss | its input | torch | gradient | its input | torch |"
    yield "|---|---:|---|---:|---:|---|---:|"
    by_case = {case: Line() for case in CASES}
    for operation, compared_of in OPERATIONS.items():
        for dtype, name in DTYPES.items():
            line = Line()
            for compared in compared_of(dtype):
                line.look(compared)
                if operation == "cross_entropy" and dtype == torch.float32:
                    by_case[compared.name.split(",")[0]].look(compared)
            yield f"| {operation}, {name} | {line.cells(inputs=True)} |"
        rows.cache_clear()
    truth.cache_clear()
    yield ""
    yield "By kind of row, `cross_entropy` of float32 logits against labels:"
    yield ""
    yield "| rows | loss: crossent | loss: torch | gradient: crossent | gradient: torch |"
    yield "|---|---:|---:|---:|---:|"
    for case, line in by_case.items():
        yield f"| {case} | {line.cells(inputs=False)} |"


def write_page(text: str) -> None:
    """Put the tables between their markers."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, tail = rest.partition(MARKERS[1])
    if not end:
        raise SystemExit(f"{PAGE} has no lines {MARKERS[0]} and {MARKERS[1]} to write between.")
    PAGE.write_text(f"{head}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Worst errors in ulps.")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/accuracy.md")
    asked = parser.parse_args()
    assert np.finfo(np.longdouble).eps < 1e-18, "this machine has no 80-bit floats, which the truth is worked out in"
    mpmath.mp.dps = 50
    lines = []
    for line in tables():
        print(line, flush=True)
        lines.append(line)
    if asked.page:
        write_page("\n".join(lines))


if __name__ == "__main__":
    main()
