"""How fast on a GPU? Forward and backward beside PyTorch and its peers, three bare matrix products, and a device copy.

    python benchmarks/run.py --device cuda           gates, then times; writes benchmarks/records/gpu.json (8 minutes)
    python benchmarks/run.py --device cuda --page    writes the figures of docs/gpu.md anew from the record
    python benchmarks/run.py --device interpreter    the same program at tiny shapes, where there is no GPU: no figures

Two operations. **Cross-entropy of logits** moves memory: what cannot be avoided is one reading of the logits and one
writing of their gradient, which is what a copy of the logits does. **Cross-entropy of a head** multiplies matrices:
what cannot be avoided is z = x wᵀ, dx = dz w and dw = dzᵀ x.

Gate first: of every variant the loss, and gradients (of logits in the first and the last rows), are compared with
float64 results of the same inputs; what is wrong is named and not timed. At the start faults are planted in right
answers, and the run stops if one of them passes. Then all variants run once in every round, in an order drawn anew,
between two events of the device; medians and quartiles over the rounds. Results are freed outside the clock.
``captured`` is the same call replayed from a CUDA graph: without the time that Python takes. Peak memory is what the
allocator had handed out at most during one call, beyond what there was before: the gradients themselves are in it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import crossent
from crossent.compute import backends

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "gpu.json"
PAGE = ROOT / "docs" / "gpu.md"
MARKERS = ("<!-- figures: python benchmarks/run.py --device cuda --page -->", "<!-- end of figures -->")

LOGITS = ((16_384, 131_072), (32_768, 32_768), (262_144, 1000))
HEADS = ((8192, 4096, 128_256), (8192, 2304, 256_000), (4096, 4096, 32_000))
TINY_LOGITS, TINY_HEADS = ((6, 40),), ((6, 8, 40),)
SECONDS = 420  # when they are over, variants that are left are named and not timed
EDGE = 64  # rows at either end whose gradient is compared
BLOCK = 512  # rows that are worked out in float64 at a time

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Variant:
    """A call (z, y) or (x, w, y) to a mean loss. ``spoils``: it writes over its logits, which are then made anew."""

    name: str
    call: Call
    spoils: bool = False
    captured: bool = False


@dataclass(frozen=True)
class Case:
    """Logits (N, V), or a head (N, D, V), in one dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def linear(self) -> bool:
        return len(self.shape) == 3

    @property
    def name(self) -> str:
        kind = "linear cross-entropy" if self.linear else "cross-entropy"
        return f"{kind} {self.shape} {str(self.dtype).removeprefix('torch.')}"

    def inputs(self, device: str) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the gradient is of, and the labels: normal logits, of which the labels' own are raised by 4."""
        g = torch.Generator(device).manual_seed(0)
        n, v = self.shape[0], self.shape[-1]
        y = torch.randint(v, (n,), generator=g, device=device)
        if self.linear:
            d = self.shape[1]
            x = torch.randn(n, d, generator=g, device=device).to(self.dtype)
            w = (torch.randn(v, d, generator=g, device=device) * d**-0.5).to(self.dtype)
            return (x, w), y
        z = torch.empty(n, v, dtype=self.dtype, device=device)
        for start in range(0, n, BLOCK):  # float32 normals of all of it at once would be larger than all the rest
            z[start : start + BLOCK] = torch.randn(min(BLOCK, n - start), v, generator=g, device=device)
        z[torch.arange(n, device=device), y] += 4
        return (z,), y


# --- variants -------------------------------------------------------------------------------------------------------


def _imported(module: str, name: str) -> Call | None:
    """A function of a package that may not be there, or may not load."""
    with contextlib.suppress(Exception):
        return getattr(importlib.import_module(module), name)
    return None


def variants(case: Case, device: str) -> tuple[list[Variant], dict[str, str]]:
    """Those that there are, and the names of those that there are not with the reason."""
    absent = {}
    compiled = device == "cuda"
    if compiled:
        torch._dynamo.reset()
    else:
        absent["torch, compiled"] = absent["captured"] = "there is no GPU"
    if not case.linear:
        found = [Variant("crossent", crossent.cross_entropy), Variant("torch", F.cross_entropy)]
        liger = _imported("liger_kernel.transformers.functional", "liger_cross_entropy")
        if compiled:
            unchecked = _unchecked(crossent.cross_entropy)
            found += [
                Variant("crossent, captured", unchecked, captured=True),
                Variant("torch, captured", F.cross_entropy, captured=True),
                Variant("torch, compiled", torch.compile(F.cross_entropy, fullgraph=True, dynamic=False)),
            ]
        if liger is None:
            absent["liger"] = "liger_kernel cannot be imported"
        else:
            found.append(Variant("liger", lambda z, y: _first(liger(z, y)), spoils=True))
        return found, absent

    def eager(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, w), y)

    found = [Variant("crossent", crossent.linear_cross_entropy), Variant("torch", eager)]
    if compiled:
        found += [
            Variant("crossent, captured", _unchecked(crossent.linear_cross_entropy), captured=True),
            Variant("torch, compiled", torch.compile(eager, fullgraph=True, dynamic=False)),
        ]
    own = getattr(F, "linear_cross_entropy", None)
    if own is None:
        absent["F.linear_cross_entropy"] = f"torch {torch.__version__} has none"
    else:
        found.append(Variant("F.linear_cross_entropy", own))
    liger = _imported("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    if liger is None:
        absent["liger"] = "liger_kernel cannot be imported"
    else:
        found.append(Variant("liger", lambda x, w, y: _first(liger(x, w, y))))
    cut = _imported("cut_cross_entropy", "linear_cross_entropy")
    if cut is None:
        absent["cut-cross-entropy"] = "cut_cross_entropy cannot be imported"
    else:
        found.append(Variant("cut-cross-entropy", cut))
    return found, absent


def _unchecked(call: Call) -> Call:
    """Without a look at the values, which a graph cannot wait for."""
    return lambda *given: call(*given, validate="off")


def _first(found: Any) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


# --- the gate -------------------------------------------------------------------------------------------------------

# Relative errors that pass: of the loss, and of gradients in the norm. Of logits, crossent's loss is one of float32 and
# its gradient rounded once, by half an ulp of bfloat16 (2^-9) at most; others round the loss to 8 bits, and take p as
# the exponential of a log-probability with 8 bits. A head's logits are rounded to bfloat16 by some and not by others.
ALLOWED = {
    ("crossent", False): (1e-6, 2.0**-9),
    ("others", False): (1e-2, 5e-2),
    ("crossent", True): (1e-3, 1e-2),
    ("others", True): (1e-2, 5e-2),
}


def truth(case: Case, leaves: tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The mean loss and the gradients, in float64: of logits those of ``_edges``, of a head all."""
    n = case.shape[0]
    total = torch.zeros((), dtype=torch.float64, device=y.device)
    if not case.linear:
        (z,) = leaves
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            total += F.cross_entropy(z[rows].double(), y[rows], reduction="sum")
        edge = _edges(z).double().requires_grad_()
        (dz,) = torch.autograd.grad(F.cross_entropy(edge, _edges(y), reduction="sum") / n, edge)
        return total / n, [dz]
    x, w = leaves
    dx, dw = torch.empty_like(x, dtype=torch.float64), torch.zeros_like(w, dtype=torch.float64)
    wide = w.double()
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        z = (x[rows].double() @ wide.T).requires_grad_()
        part = F.cross_entropy(z, y[rows], reduction="sum") / n
        (dz,) = torch.autograd.grad(part, z)
        total += part.detach()
        dx[rows] = dz @ wide
        dw.addmm_(dz.T, x[rows].double())
    return total, [dx, dw]


def _edges(t: Tensor) -> Tensor:
    return torch.cat((t[:EDGE], t[-EDGE:]))


def refusal(case: Case, who: str, found: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]]) -> str | None:
    """Why this loss and these gradients are not those of the case; None if they are."""
    of_loss, of_gradient = ALLOWED["crossent" if who.startswith("crossent") else "others", case.linear]
    if case.dtype == torch.float32 and not case.linear:
        of_gradient = 1e-6 if who.startswith("crossent") else 1e-4
    errors = [("loss", abs(float(found[0].double() / exact[0]) - 1), of_loss)]
    for name, got, true in zip(("dx", "dw") if case.linear else ("dz",), found[1], exact[1], strict=True):
        got = got if case.linear else _edges(got)
        errors.append((name, float((got.double() - true).norm() / true.norm()), of_gradient))
    wrong = [f"{name} off by {got:.1e}, {most:.1e} allowed" for name, got, most in errors if not got <= most]
    return "; ".join(wrong) or None


def planted_faults(device: str) -> list[str]:
    """Faults of 2 % in right answers, for others of 10 %, and why each was refused; none may be let through."""
    refused = []
    for case in (Case((96, 300), torch.bfloat16), Case((96, 64, 300), torch.bfloat16)):
        leaves, y = case.inputs(device)
        exact = truth(case, leaves, y)
        right = exact[0].float(), [g.to(case.dtype) for g in exact[1]]
        if not case.linear:
            right = right[0], [torch.cat((right[1][0][:EDGE], right[1][0][EDGE:]))]
        for who in ("crossent", "torch"):
            untouched = refusal(case, who, right, exact)
            assert untouched is None, f"the gate refuses the truth itself: {untouched}"
            shifted, more = [g.roll(1, -1) for g in right[1]], 0.02 if who == "crossent" else 0.1
            faults = {
                f"loss + {more:.0%}": ((1 + more) * right[0], right[1]),
                f"gradients + {more:.0%}": (right[0], [(1 + more) * g for g in right[1]]),
                "gradients shifted by a column": (right[0], shifted),
                "gradients not written": (right[0], [torch.full_like(g, torch.nan) for g in right[1]]),
            }
            for name, faulty in faults.items():
                why = refusal(case, who, faulty, exact)
                assert why is not None, f"the gate let {name} of {who} in {case.name} through"
                refused.append(f"{who}, {name}: {why}")
    return refused


# --- the clock ------------------------------------------------------------------------------------------------------


def milliseconds(call: Callable[[], Any], device: str) -> float:
    """Of one call, from the device standing still until it stands still again; its result is freed afterwards."""
    if device != "cuda":
        began = time.perf_counter()
        result = call()
        spent = 1e3 * (time.perf_counter() - began)
        del result
        return spent
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    result = call()
    after.record()
    torch.cuda.synchronize()
    del result
    return before.elapsed_time(after)


def peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """What the allocator hands out at most during a call, beyond what it had; None where it does not say."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def both(call: Call, leaves: tuple[Tensor, ...], y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one forward and backward."""
    for leaf in leaves:
        leaf.grad = None
    loss = call(*leaves, y)
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]  # type: ignore[misc]


def captured(call: Call, leaves: tuple[Tensor, ...], y: Tensor) -> tuple[Callable[[], Any], Any]:
    """A forward and backward as a CUDA graph: (what replays it, where its results are)."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            both(call, leaves, y)
    torch.cuda.current_stream().wait_stream(aside)
    for leaf in leaves:
        leaf.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both(call, leaves, y)
    for leaf in leaves:  # they belong to the graph
        leaf.grad = None
    return graph.replay, found


def yardsticks(case: Case, leaves: tuple[Tensor, ...]) -> dict[str, Callable[[], Any]]:
    """What cannot be avoided: of logits a copy, of a head the three products in its dtype."""
    if not case.linear:
        (z,) = leaves
        buffer = torch.empty_like(z)
        source = z.detach()
        return {"copy": lambda: buffer.copy_(source)}
    x, w = (leaf.detach() for leaf in leaves)
    dz = torch.randn(x.shape[0], w.shape[0], dtype=x.dtype, device=x.device)
    z = torch.empty_like(dz)

    def products() -> tuple[Tensor, Tensor]:
        torch.mm(x, w.T, out=z)
        return dz @ w, dz.T @ x

    return {"three products": products}


def measure(case: Case, device: str, rounds: int, until: float) -> dict[str, Any]:
    """Gate, memory and times of one case."""
    leaves, y = case.inputs(device)
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    exact = truth(case, tuple(leaf.detach() for leaf in leaves), y)
    chosen, absent = variants(case, device)
    right: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int | None] = {}
    refused: dict[str, str] = {}
    spoilt = {variant.name for variant in chosen if variant.spoils}
    spare = leaves[0].detach().clone() if spoilt else None

    def restore(name: str) -> None:
        if name in spoilt and spare is not None:
            leaves[0].detach().copy_(spare)

    for variant in chosen:
        if time.monotonic() > until:
            absent[variant.name] = f"the {SECONDS} seconds of a run were over"
            continue
        try:
            if variant.captured:
                call, found = captured(variant.call, leaves, y)
                call()
            else:
                call = _bound(both, variant.call, leaves, y)
                found = call()
            why = refusal(case, variant.name, found, exact)
            del found
            restore(variant.name)
            if why is None:
                memory[variant.name] = None if variant.captured else peak_bytes(call, device)
                restore(variant.name)
        except Exception as trouble:  # a peer may fail in any way, and the other variants are still to be timed
            why = f"{type(trouble).__name__}: {str(trouble).strip().splitlines()[0] if str(trouble) else ''}"[:300]
            restore(variant.name)
        for leaf in leaves:
            leaf.grad = None
        if why is None:
            right[variant.name] = call
        else:
            refused[variant.name] = why
            print(f"  {variant.name}: {why}", flush=True)
    del exact
    right |= yardsticks(case, leaves)
    times: dict[str, list[float]] = {name: [] for name in right}
    order = random.Random(0)
    for turn in range(rounds + 2):
        for name in order.sample(list(right), len(right)):
            for leaf in leaves:
                leaf.grad = None
            spent = milliseconds(right[name], device)
            restore(name)
            if turn > 1:  # two rounds warm up
                times[name].append(spent)
        if time.monotonic() > until + 30 and turn > 4:
            break
    found_ms = {name: _quartiles(each) for name, each in times.items()}
    return {
        "name": case.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "rounds": min(map(len, times.values())),
        "milliseconds": found_ms,
        "peak_bytes": memory,
        "gradient_bytes": [leaf.nbytes for leaf in leaves],
        "bound": _bound_of(case, found_ms),
        "refused": refused,
        "absent": absent,
    }


def _bound(function: Callable, *given: Any) -> Callable[[], Any]:
    return lambda: function(*given)


def _quartiles(each: list[float]) -> list[float]:
    if len(each) == 1:
        return [round(each[0], 4)] * 3
    return [float(f"{q:.4g}") for q in statistics.quantiles(each, n=4, method="inclusive")]


def _bound_of(case: Case, ms: dict[str, list[float]]) -> dict[str, float]:
    """What the yardstick says in units that can be compared with a data sheet."""
    if case.linear:
        n, d, v = case.shape
        return {"flops": 6 * n * d * v, "TFLOP_per_second": round(6 * n * d * v / ms["three products"][1] / 1e9, 1)}
    moved = 2 * math.prod(case.shape) * torch.empty((), dtype=case.dtype).element_size()
    return {"bytes": moved, "GB_per_second": round(moved / ms["copy"][1] / 1e6, 1)}


# --- the record and its page ----------------------------------------------------------------------------------------


def yardstick(figures: dict[str, Any]) -> float:
    """Milliseconds of what cannot be avoided."""
    ms = figures["milliseconds"]
    return ms["three products" if len(figures["shape"]) == 3 else "copy"][1]


def lines(figures: dict[str, Any]) -> Iterator[list[str]]:
    """A row for each variant: milliseconds, times the yardstick, peak memory in GiB."""
    least = yardstick(figures)
    for name, (_, median, _) in sorted(figures["milliseconds"].items(), key=lambda item: item[1][1]):
        bytes_ = figures["peak_bytes"].get(name)
        yield [name, f"{median:.3f}", f"{median / least:.2f}", "–" if bytes_ is None else f"{bytes_ / 2**30:.2f}"]
    for name, why in {**figures["refused"], **figures["absent"]}.items():
        yield [name, "–", "–", why]


def page(record: dict[str, Any]) -> str:
    """The figures of a record in Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in {**record["versions"], **record["machine"]}.items())
    out = [f"Made {record['made']} in {record['seconds']} s: {about}."]
    for figures in record["cases"]:
        what = "three products" if len(figures["shape"]) == 3 else "copy"
        gradients = sum(figures["gradient_bytes"]) / 2**30
        out += ["", f"### {figures['name'].capitalize()}", ""]
        out += [f"{figures['bound']}; the gradients are {gradients:.2f} GiB; {figures['rounds']} rounds.", ""]
        out += [f"| variant | ms | times {what} | peak, GiB |", "|---|---:|---:|---:|"]
        out += [f"| {' | '.join(row)} |" for row in lines(figures)]
    return "\n".join(out)


def write_page(record: dict[str, Any]) -> None:
    """Put the figures between the markers of docs/gpu.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, tail = rest.partition(MARKERS[1])
    assert end, f"{PAGE.name} should have the lines {MARKERS[0]} and {MARKERS[1]}"
    PAGE.write_text(f"{head}{MARKERS[0]}\n\n{page(record)}\n\n{MARKERS[1]}{tail}", encoding="utf-8")


def versions() -> dict[str, str]:
    """Of everything that has a say in the figures."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "crossent": crossent.__version__, "torch": torch.__version__}
    for name in ("triton", "liger-kernel", "cut-cross-entropy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def run(device: str, rounds: int, place: Path | None) -> None:
    """Gate and time every case; the record is written anew after each, so that a run that is cut off leaves one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here that PyTorch can reach; --device interpreter tries the program without.")
    began = time.monotonic()
    on = "cuda" if device == "cuda" else "cpu"
    logits, heads = (LOGITS, HEADS) if on == "cuda" else (TINY_LOGITS, TINY_HEADS)
    cases = [Case(shape, torch.bfloat16) for shape in (*logits, *heads)]
    cases += [Case(shape, torch.float32) for shape in logits]
    with contextlib.nullcontext() if on == "cuda" else backends.using("gpu"):
        refused = planted_faults(on)
        print(f"the gate refuses {len(refused)} planted faults, among them: {refused[0]}", flush=True)
        measured: list[dict[str, Any]] = []
        for case in cases:
            if time.monotonic() - began > SECONDS:
                print(f"{case.name}: not run, the {SECONDS} seconds are over", flush=True)
                continue
            print(case.name, flush=True)
            try:
                measured.append(measure(case, on, rounds, began + SECONDS))
            except Exception as trouble:  # say so, and let the other cases be timed
                print(f"  {type(trouble).__name__}: {str(trouble)[:500]}", flush=True)
                continue
            for row in lines(measured[-1]):
                print("  ", "  ".join(cell.ljust(24) for cell in row), flush=True)
            if on == "cuda":
                torch.cuda.empty_cache()
            if place is not None:
                write(place, refused, measured, time.monotonic() - began, on)
    print(f"{time.monotonic() - began:.0f} s" + ("" if place is None else f", written: {place}"))
    if not measured or any("crossent" not in figures["milliseconds"] for figures in measured):
        raise SystemExit("crossent itself was refused or failed in at least one case; see above.")


def write(place: Path, refused: list[str], measured: list[dict[str, Any]], seconds: float, on: str) -> None:
    """The record."""
    machine = {"device": torch.cuda.get_device_name() if on == "cuda" else "none: Triton's interpreter, no figures"}
    record = {
        "what": "python benchmarks/run.py --device cuda: forward and backward, ms as [quartile, median, quartile]",
        "made": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "machine": machine,
        "versions": versions(),
        "refused_faults": refused,
        "cases": measured,
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
