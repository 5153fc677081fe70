"""How fast is the head without logits? Forward and backward beside PyTorch and beside three bare matrix products.

    python benchmarks/linear.py                         everything; writes benchmarks/records/linear.json
    python benchmarks/linear.py --quick --only "(1024"  a few rounds of the cases whose name has that in it
    python benchmarks/linear.py --page                  writes docs/guides/linear.md anew from the record

Gate first, then time, as in run.py: value and both gradients of every variant are compared with float64 of the same
inputs, a wrong variant is not timed, and planted faults of 1 % show that the gate can refuse. Then all variants run
once in every round, in an order drawn anew; what is reported are medians. The yardstick is what no head can do without:
the logits, dz w and dzᵀ x as three products of PyTorch's, each into memory of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from run import ROOT, find_compiler, machine, raised_by, versions
from torch import Tensor

import crossent

# Python puts this folder first on the path; see run.py.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

RECORD = ROOT / "benchmarks" / "records" / "linear.json"
PAGE = ROOT / "docs" / "guides" / "linear.md"
MARKERS = ("<!-- figures: python benchmarks/linear.py --page -->", "<!-- end of figures -->")

# Relative errors of the loss, and of the norm of each gradient, that pass. In bfloat16 logits are rounded to 8 bits by
# all variants, and probabilities with them, so that a gradient's norm is off by some 0.3 %.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-3, 7e-3)}
LOOSE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 1e-1)}  # PyTorch's own


class Case(NamedTuple):
    """Rows, width of the hidden states, classes."""

    n: int
    d: int
    v: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"({self.n}, {self.d}, {self.v}) {str(self.dtype).removeprefix('torch.')}"

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states and head whose logits are of size 1, and labels."""
        g = torch.Generator().manual_seed(0)
        x = torch.randn(self.n, self.d, generator=g).div(self.d**0.5).to(self.dtype)
        w = torch.randn(self.v, self.d, generator=g).to(self.dtype)
        return x, w, torch.randint(self.v, (self.n,), generator=g)


SHAPES = ((1024, 512, 32000), (4096, 256, 16384), (2048, 64, 65536), (512, 768, 128256))
CASES = [
    *(Case(*shape, torch.float32) for shape in SHAPES),
    *(Case(*shape, torch.bfloat16) for shape in (SHAPES[0], SHAPES[3])),
]

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, w), y)


def of_torch(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return F.linear_cross_entropy(x, w, y, options=torch.nn.LinearCrossEntropyOptions())


def by_rows(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
    return crossent.linear_cross_entropy(x, w, y, reduction="none").mean()


def variants(compiler: str | None) -> dict[str, Call]:
    """By name; compiled anew for every case, with its shapes fixed."""
    found: dict[str, Call] = {"crossent": crossent.linear_cross_entropy, "crossent, rows": by_rows, "eager": eager}
    if compiler is not None:
        torch._dynamo.reset()
        found["compiled"] = torch.compile(eager, fullgraph=True, dynamic=False)
    return {**found, "F.linear_cross_entropy": of_torch}


def both(call: Call, leaves: tuple[Tensor, Tensor], y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of one forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    loss = call(*leaves, y)
    loss.backward()
    return loss.detach(), leaves[0].grad, leaves[1].grad  # type: ignore[return-value]


def refusal(found: tuple[Tensor, ...], truth: tuple[Tensor, ...], allowed: tuple[float, float]) -> str | None:
    """Why these are not loss and gradients of the case; None if they are."""
    names = ("loss", "gradient of the hidden states", "gradient of the head")
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
    most = (allowed[0], allowed[1], allowed[1])
    wrong = [f"{name} off by {e:.1e}, {m:.1e} allowed" for name, e, m in zip(names, errors, most, strict=True) if e > m]
    return "; ".join(wrong) or None


def truth_of(case: Case) -> tuple[Tensor, ...]:
    """The same by formula in float64, a few rows at a time."""
    x, w, y = case.inputs()
    x, w = x.double(), w.double()
    loss, dx, dw = torch.zeros((), dtype=torch.float64), torch.empty_like(x), torch.zeros_like(w)
    for start in range(0, case.n, 256):
        rows = slice(start, start + 256)
        z = x[rows] @ w.T
        log_p = torch.log_softmax(z, -1)
        loss -= log_p.gather(1, y[rows, None]).sum() / case.n
        dz = log_p.exp_()
        dz[torch.arange(len(dz)), y[rows]] -= 1
        dz /= case.n
        dx[rows] = dz @ w
        dw.addmm_(dz.T, x[rows])
    return loss, dx, dw


def planted_faults() -> list[str]:
    """Faults of 1 % in right answers, and why each was refused. Stops the run if one is let through."""
    refused = []
    for dtype in TOLERANCE:
        case = Case(64, 32, 500, dtype)
        x, w, y = case.inputs()
        found = both(crossent.linear_cross_entropy, (x.requires_grad_(), w.requires_grad_()), y)
        truth = truth_of(case)
        untouched = refusal(found, truth, TOLERANCE[dtype])
        assert untouched is None, f"the gate refuses crossent in {dtype} as it is: {untouched}"
        for at in range(3):
            faulty = tuple(1.01 * t.float() if i == at else t for i, t in enumerate(found))
            why = refusal(faulty, truth, TOLERANCE[dtype])
            assert why is not None, f"the gate let a fault of 1 % through in {dtype}"
            refused.append(f"{dtype}: {why}")
    return refused


def beyond_gradients(call: Call, leaves: tuple[Tensor, Tensor], y: Tensor) -> int | None:
    """Bytes by which a forward and backward raises resident memory at most, less the gradients; see run.py."""
    for leaf in leaves:
        leaf.grad = None
    raised = raised_by(lambda: both(call, leaves, y))
    return None if raised is None else raised - sum(leaf.nbytes for leaf in leaves)


def measure(case: Case, rounds: int, compiler: str | None) -> dict[str, Any]:
    """Gate, memory and times of one case."""
    x, w, y = case.inputs()
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    few = torch.where(torch.arange(case.n) % 4 == 0, y, -100)
    truth = truth_of(case)
    right: dict[str, Call] = {}
    refused = {}
    for name, call in variants(compiler).items():
        try:
            allowed = (TOLERANCE if name.startswith("crossent") else LOOSE)[case.dtype]
            why = refusal(both(call, leaves, y), truth, allowed)
        except Exception as trouble:  # a compiler may fail in any way, and the other variants are still to be timed
            why = f"{type(trouble).__name__}: {trouble}"[:300]
        if why is None:
            right[name] = call
        else:
            refused[name] = why
    del truth
    memory = {name: beyond_gradients(call, leaves, y) for name, call in right.items()}
    dz = torch.randn(case.n, case.v, generator=torch.Generator().manual_seed(1)).to(case.dtype)
    runs: dict[str, Callable[[], Any]] = {
        name: (lambda call=call: both(call, leaves, y)) for name, call in right.items()
    }
    runs["three products"] = lambda: (x @ w.T, dz @ w, dz.T @ x)
    runs["crossent, 75 % ignored"] = lambda: both(crossent.linear_cross_entropy, leaves, few)
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            for leaf in leaves:
                leaf.grad = None
            began = time.perf_counter()
            result = runs[name]()
            spent = time.perf_counter() - began
            del result
            if turn:  # the first round warms up
                times[name].append(1e3 * spent)
    quartiles = {name: [float(f"{np.quantile(t, q):.4g}") for q in (0.25, 0.5, 0.75)] for name, t in times.items()}
    return {
        "name": case.name,
        "shape": case[:3],
        "dtype": str(case.dtype).removeprefix("torch."),
        "milliseconds": quartiles,
        "least_milliseconds": {name: float(f"{min(t):.4g}") for name, t in times.items()},
        "gradient_bytes": sum(leaf.nbytes for leaf in leaves),
        "float32_sum_bytes": 0 if case.dtype == torch.float32 else 4 * w.numel(),
        "peak_bytes_beyond_gradients": memory,
        "refused": refused,
    }


RATIOS = {
    "crossent / three products": ("crossent", "three products"),
    "eager / crossent": ("eager", "crossent"),
    "compiled / crossent": ("compiled", "crossent"),
    "F.linear_cross_entropy / crossent": ("F.linear_cross_entropy", "crossent"),
    "crossent / 75 % ignored": ("crossent", "crossent, 75 % ignored"),
}


def ratio(figures: dict[str, Any], above: str, below: str) -> float | None:
    """How many times longer ``above`` takes than ``below``; None if one of them was not timed."""
    ms = {name: values[1] for name, values in figures["milliseconds"].items()}
    return ms[above] / ms[below] if above in ms and below in ms else None


COLUMNS = ("crossent", "crossent, rows", "three products", "eager", "compiled", "F.linear_cross_entropy")


def cells(figures: dict[str, Any]) -> list[str]:
    """The row of a case: milliseconds, ratios, and peak memory beyond the gradients in MB."""
    ms, memory = figures["milliseconds"], figures["peak_bytes_beyond_gradients"]
    ratios = (ratio(figures, *pair) for pair in RATIOS.values())
    beyond = (memory.get(name) for name in ("crossent", "eager"))
    return [
        *(f"{ms[name][1]:.0f}" if name in ms else "–" for name in COLUMNS),
        *("–" if value is None else f"{value:.2f}" for value in ratios),
        " / ".join("–" if b is None else f"{max(b, 0) / 1e6:.0f}" for b in beyond),
    ]


TITLES = [*(f"{name}, ms" for name in COLUMNS), *RATIOS, "MB: crossent / eager"]


def page(record: dict[str, Any]) -> Iterator[str]:
    """The figures of a record in Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in {**record["versions"], **record["machine"]}.items())
    before, after = record["load"]
    yield (
        f"Made {record['made']}: {about}; {record['threads']} threads, medians of {record['rounds']} rounds, load "
        f"average {before} before and {after} after. Compiler: {record['compiler'] or 'none found'}."
    )
    yield ""
    yield f"| (N, D, V) | {' | '.join(TITLES)} |"
    yield "|---|" + "---:|" * len(TITLES)
    for figures in record["cases"]:
        yield f"| {figures['name']} | {' | '.join(cells(figures))} |"
    failed = [f"{name} of {f['name']} ({why})" for f in record["cases"] for name, why in f["refused"].items()]
    if failed:
        yield from ("", "Refused by the gate, not timed: " + "; ".join(failed))


def write_page(record: dict[str, Any]) -> None:
    """Put the figures between the markers of docs/guides/linear.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, tail = rest.partition(MARKERS[1])
    assert end, f"{PAGE.name} should have the lines {MARKERS[0]} and {MARKERS[1]}"
    figures = "\n".join(page(record))
    PAGE.write_text(f"{head}{MARKERS[0]}\n\n{figures}\n\n{MARKERS[1]}{tail}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--rounds", type=int, help="default 11")
    parser.add_argument("--only", action="append", metavar="NAME", help="part of a case's name; repeatable")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", type=Path, help=f"default {RECORD.relative_to(ROOT)} for a full run")
    parser.add_argument("--page", action="store_true", help="only write docs/guides/linear.md from the record")
    asked = parser.parse_args()
    if asked.page:
        write_page(json.loads((asked.record or RECORD).read_text(encoding="utf-8")))
        return
    chosen = [case for case in CASES if any(part in case.name for part in asked.only or [""])]
    if not chosen:
        parser.error(f"no case has {asked.only} in its name. There are\n  " + "\n  ".join(case.name for case in CASES))
    place = asked.record or (None if asked.quick or asked.only else RECORD)
    rounds = asked.rounds or (3 if asked.quick else 11)
    torch.set_num_threads(asked.threads)
    compiler, load = find_compiler(), [round(os.getloadavg()[0], 2)]
    refused = planted_faults()
    print(f"the gate refuses {len(refused)} planted faults of 1 %, among them: {refused[0]}")
    print(f"{asked.threads} threads, {rounds} rounds, compiler: {compiler or 'none found'}\n\ncase", *TITLES, sep=" | ")
    measured = []
    for case in chosen:
        measured.append(measure(case, rounds, compiler))
        print(case.name, *cells(measured[-1]), sep=" | ", flush=True)
        print("  ratios of the least times:", least(measured[-1]), flush=True)
        for name, why in measured[-1]["refused"].items():
            print(f"  refused: {name}: {why}", flush=True)
    if place is not None:
        record = {
            "what": "python benchmarks/linear.py: forward and backward, milliseconds as [quartile, median, quartile]",
            "made": time.strftime("%Y-%m-%d"),
            "rounds": rounds,
            "threads": asked.threads,
            "load": [*load, round(os.getloadavg()[0], 2)],
            "machine": machine(),
            "versions": versions(),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "NUMBA_", "MALLOC_"))},
            "compiler": compiler,
            "refused_faults": refused,
            "cases": measured,
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nwritten: {place}")


def least(figures: dict[str, Any]) -> str:
    """The ratios of the least times, which a busy machine disturbs least."""
    ms = figures["least_milliseconds"]
    pairs = {name: pair for name, pair in RATIOS.items() if all(each in ms for each in pair)}
    return ", ".join(f"{name} {ms[above] / ms[below]:.2f}" for name, (above, below) in pairs.items())


if __name__ == "__main__":
    main()
