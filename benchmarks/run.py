"""How fast? Forward and backward of crossent beside PyTorch, compiled PyTorch, a copy of the logits, and the bound.

    python benchmarks/run.py                              everything; writes benchmarks/records/compute.json
    python benchmarks/run.py --quick --only "hard (8192"  a few rounds of the cases whose name has that in it
    python benchmarks/run.py --only start                 the first call and the import, in fresh processes
    python benchmarks/run.py --page                       writes docs/speed.md anew from the record
    python benchmarks/run.py --device cuda                on a GPU, and beside what is used there (benchmarks/gpu.py)

Gate first, then time. Loss and gradient of every variant are compared with float64 ``F.cross_entropy`` of the same
inputs, and a wrong variant is not timed; that the gate can refuse is shown at the start, with planted faults of 1 %.
Then all variants of a case run once in every round, in an order drawn anew, on the same logits, whose ``.grad`` is
None each time; results are freed outside the clock. What is reported are medians over the rounds.

Runs with ``--quick`` or ``--only`` write a record only where ``--record`` says, so that they replace no full one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu
import numpy as np
import torch
from bound import Copy, Exp, bound
from cases import CASES, Case
from gate import both, planted_faults, refusal, truth_of
from torch import Tensor

import crossent

# Python puts this folder first on the path, and numba, which is loaded later, would take coverage.py here for the
# package of that name.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "compute.json"
PAGE = ROOT / "docs" / "speed.md"
MARKERS = ("<!-- figures: python benchmarks/run.py --page -->", "<!-- end of figures -->")


def variants(case: Case, compiler: str | None) -> dict[str, tuple[str, Callable[..., Tensor]]]:
    """By name: whose tolerance it is held to, and the call. Compiled anew for every case, with its shapes fixed."""
    found = {"crossent": ("crossent", case.kind.crossent), "torch": ("torch", case.kind.torch)}
    if compiler is not None:
        torch._dynamo.reset()
        for name, (who, call) in list(found.items()):
            found[f"{name}, compiled"] = (who, torch.compile(call, fullgraph=True, dynamic=False))
    return found


def measure(case: Case, rounds: int, compiler: str | None) -> dict[str, Any]:
    """Gate, memory and times of one case."""
    z, *rest = case.inputs()
    given = tuple(rest)
    least = bound(z, given[0])
    leaf = z.detach().clone().requires_grad_()
    truth = truth_of(case, z, given)
    right, refused = {}, {}
    for name, (who, call) in variants(case, compiler).items():
        try:
            why = refusal(case, who, *both(call, leaf, given), truth)
        except Exception as trouble:  # a compiler may fail in any way, and the other variants are still to be timed
            why = f"{type(trouble).__name__}: {str(trouble).strip().splitlines()[0] if str(trouble) else ''}"[:300]
        if why is None:
            right[name] = call
        else:
            refused[name] = why
    del truth
    memory = {name: peak_beyond_gradient(call, leaf, given) for name, call in right.items()}
    yardsticks = {"clone": z.clone, "copy": (copy := Copy(z)), "exp": (exp := Exp())}
    times: dict[str, list[float]] = {name: [] for name in (*right, *yardsticks)}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(times), len(times)):
            leaf.grad = None
            began = time.perf_counter()
            result = yardsticks[name]() if name in yardsticks else both(right[name], leaf, given)
            spent = time.perf_counter() - began
            del result
            if turn:  # the first round warms up
                times[name].append(1e3 * spent)
    ms = {name: [float(np.quantile(list_, q)) for q in (0.25, 0.5, 0.75)] for name, list_ in times.items()}
    bytes_per_ms, exps_per_ms = copy.bytes / ms["copy"][1], exp.source.numel() / ms["exp"][1]
    return {
        "name": case.name,
        "kind": case.kind.name,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "milliseconds": {name: [float(f"{value:.4g}") for value in values] for name, values in ms.items()},
        "bound": {
            "bytes": least.bytes,
            "exponentials": least.exps,
            "GB_per_second": round(bytes_per_ms / 1e6, 2),
            "exponentials_per_ns": round(exps_per_ms / 1e6, 3),
            "milliseconds": float(f"{least.milliseconds(bytes_per_ms, exps_per_ms):.4g}"),
        },
        "gradient_bytes": z.nbytes,
        "peak_bytes_beyond_gradient": memory,
        "refused": refused,
    }


def peak_beyond_gradient(call: Callable[..., Tensor], leaf: Tensor, given: tuple[Tensor, ...]) -> int | None:
    """Bytes by which a forward and backward raises the process's resident memory at most, less the gradient's own."""
    leaf.grad = None
    raised = raised_by(lambda: both(call, leaf, given))
    return None if raised is None else raised - leaf.nbytes


def raised_by(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the process's resident memory at most.

    Free memory is handed back to the system first, what gradients lay in too, and the kernel's high-water mark (VmHWM)
    set to what is left. Its counters lag by some hundred KB. None where there is no /proc to ask.
    """
    if (reuse := sys.modules.get("crossent.compute.backends.cpu.reuse")) is not None:  # not there without numba
        reuse.forget()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def resident(line: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"{line}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


# Run in a fresh process: seconds of importing crossent after torch, of the first forward and backward, of the second.
START = """
import json, sys, time
import torch
torch.set_num_threads({threads})
if {numba}: import numba
began = time.perf_counter()
from {module} import cross_entropy
imported = time.perf_counter()
z, y = torch.zeros(256, 1000, requires_grad=True), torch.zeros(256, dtype=torch.long)
marks = [time.perf_counter()]
for _ in range(2):
    z.grad = None
    cross_entropy(z, y).backward()
    marks.append(time.perf_counter())
print(json.dumps([imported - began, marks[1] - marks[0], marks[2] - marks[1], "numba" in sys.modules]))
"""


def start(repeats: int, threads: int) -> dict[str, Any]:
    """Medians of import and first call in fresh processes, after one that fills the cache of kernels."""

    def run(module: str, numba: bool) -> list[Any]:
        program = START.format(threads=threads, numba=numba, module=module)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    found: dict[str, Any] = {}
    for module, numba in (("crossent", False), ("crossent", True), ("torch.nn.functional", False)):
        run(module, numba)
        columns = list(zip(*(run(module, numba) for _ in range(repeats)), strict=True))
        name = module.partition(".")[0] + (", numba imported before" if numba else "")
        seconds = dict(zip(("import", "first call", "second call"), map(statistics.median, columns[:3]), strict=True))
        found[name] = {
            "seconds": {key: float(f"{value:.3g}") for key, value in seconds.items()},
            "numba_loaded": columns[3][0],
        }
    return found


def ratio(figures: dict[str, Any], above: str, below: str) -> float | None:
    """How many times longer ``above`` takes than ``below``; None if one of them was not timed."""
    ms = {name: values[1] for name, values in figures["milliseconds"].items()}
    ms["bound"] = figures["bound"]["milliseconds"]
    return ms[above] / ms[below] if above in ms and below in ms else None


RATIOS = {
    "eager / crossent": ("torch", "crossent"),
    "compiled / crossent": ("torch, compiled", "crossent"),
    "crossent / clone": ("crossent", "clone"),
    "crossent / bound": ("crossent", "bound"),
}


def summary(cases: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each statement one could want to make of all cases."""

    def line(what: str, pair: str, among: list[dict[str, Any]], worst: Callable[..., Any], word: str) -> Iterator[str]:
        known = [(value, f["name"]) for f in among if (value := ratio(f, *RATIOS[pair])) is not None]
        if known:
            mean = math.exp(statistics.fmean(math.log(value) for value, _ in known))
            extreme, name = worst(known)
            yield f"{what}: {pair}: geometric mean {mean:.2f}, {word} {extreme:.2f} ({name}), {len(known)} cases"

    binary = [f for f in cases if f["kind"].startswith("binary")]
    classes = [f for f in cases if f not in binary]
    wide = [f for f in classes if f["shape"][1] >= 1000 and f["dtype"] == "float32"]
    for what, among in (("multi-class", classes), ("binary", binary)):
        yield from line(what, "eager / crossent", among, min, "minimum")
        yield from line(what, "compiled / crossent", among, min, "minimum")
    yield from line("V ≥ 1000, float32", "crossent / clone", wide, max, "maximum")
    yield from line("all", "crossent / bound", cases, max, "maximum")
    failed = [f"{name} of {f['name']} ({why})" for f in cases for name, why in f["refused"].items()]
    if failed:
        yield "refused, not timed: " + "; ".join(failed)


COLUMNS = ("crossent", "torch", "torch, compiled", "crossent, compiled", "clone")


def cells(figures: dict[str, Any]) -> list[str]:
    """The row of a case: milliseconds, the bound, ratios, and peak memory beyond the gradient in MB."""

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}" if value < 99.5 else f"{value:.0f}"

    ms, memory = figures["milliseconds"], figures["peak_bytes_beyond_gradient"]
    bytes_ = [memory.get(name) for name in ("crossent", "torch")]
    return [
        *(shown(ms[name][1] if name in ms else None) for name in COLUMNS),
        shown(figures["bound"]["milliseconds"]),
        *(shown(ratio(figures, *pair)) for pair in RATIOS.values()),
        " / ".join("–" if b is None else f"{max(b, 0) / 1e6:.0f}" for b in bytes_),
    ]


def titles() -> list[str]:
    """The head of ``cells``."""
    short = ("crossent", "eager", "compiled", "crossent compiled", "clone", "bound")
    return [*(f"{name}, ms" for name in short), *RATIOS, "MB: crossent / eager"]


def page(record: dict[str, Any]) -> str:
    """The figures of a record in Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in {**record["versions"], **record["machine"]}.items())
    before, after = record["load"]
    out = [
        f"Made {record['made']}: {about}; {record['threads']} threads, medians of {record['rounds']} rounds, load "
        f"average {before} before and {after} after. Cases: {len(record['cases'])} of {len(CASES)}. "
        f"Compiler of the compiled variants: {record['compiler'] or 'none found, so there are none'}. "
        f"numba was {'' if record['numba_loaded'] else 'not '}loaded.",
        "",
        *(f"- {line}" for line in summary(record["cases"])),
    ]
    for kind in dict.fromkeys(f["kind"] for f in record["cases"]):
        out += ["", f"### {kind.capitalize()}", "", f"| logits | {' | '.join(titles())} |"]
        out += ["|---|" + "---:|" * len(titles())]
        for f in record["cases"]:
            if f["kind"] == kind:
                out += [f"| {tuple(f['shape'])} {f['dtype']} | {' | '.join(cells(f))} |"]
    if record["start"]:
        out += [
            "",
            "### The first call",
            "",
            "| seconds in a fresh process | import beyond torch | first call | both |",
        ]
        out += ["|---|---:|---:|---:|"]
        for name, found in record["start"].items():
            took = found["seconds"]
            both_ = took["import"] + took["first call"]
            out += [f"| {name} | {took['import']:.3f} | {took['first call']:.3f} | {both_:.3f} |"]
    return "\n".join(out)


def write_page(record: dict[str, Any]) -> None:
    """Put the figures between the markers of docs/speed.md."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, tail = rest.partition(MARKERS[1])
    assert end, f"{PAGE.name} should have the lines {MARKERS[0]} and {MARKERS[1]}"
    PAGE.write_text(f"{head}{MARKERS[0]}\n\n{page(record)}\n\n{MARKERS[1]}{tail}", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What kind of computer this is."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return {"processor": model.group(1) if model else platform.processor(), "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Of everything that has a say in the figures."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "crossent": crossent.__version__}
    for name in ("torch", "numpy", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def find_compiler() -> str | None:
    """The C++ compiler that inductor would use."""
    wanted = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return next((name for name in wanted if name and shutil.which(name)), None)


def on_a_gpu(asked: argparse.Namespace) -> None:
    """The benchmark of benchmarks/gpu.py, or its page."""
    if asked.page:
        gpu.write_page(json.loads((asked.record or gpu.RECORD).read_text(encoding="utf-8")))
        return
    place = asked.record or (gpu.RECORD if asked.device == "cuda" else None)
    gpu.run(asked.device, asked.rounds or (3 if asked.quick else 15), place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--rounds", type=int, help="default 21")
    parser.add_argument("--only", action="append", metavar="NAME", help="part of a case's name, or start; repeatable")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", type=Path, help=f"default {RECORD.relative_to(ROOT)} for a full run")
    parser.add_argument("--page", action="store_true", help="only write docs/speed.md (docs/gpu.md) from the record")
    parser.add_argument("--device", choices=("cpu", "cuda", "interpreter"), default="cpu", help="see benchmarks/gpu.py")
    asked = parser.parse_args()
    if asked.device != "cpu":
        on_a_gpu(asked)
        return
    place = asked.record or (None if asked.quick or asked.only else RECORD)
    if asked.page:
        made = asked.record or RECORD
        if not made.exists():
            parser.error(f"there is no record {made} to make the page from; a full run writes one.")
        write_page(json.loads(made.read_text(encoding="utf-8")))
        return
    only = asked.only or ["start", ""]
    chosen = [case for case in CASES if any(part in case.name for part in only)]
    if not chosen and "start" not in only:
        names = "\n  ".join(case.name for case in CASES)
        parser.error(f"no case has {' or '.join(map(repr, only))} in its name. There are start and\n  {names}")
    rounds = asked.rounds or (3 if asked.quick else 21)
    torch.set_num_threads(asked.threads)
    compiler = find_compiler()
    load = [round(os.getloadavg()[0], 2)]
    refused = planted_faults()
    print(f"the gate refuses {len(refused)} planted faults of 1 %, among them: {refused[0]}")
    print(f"{asked.threads} threads, {rounds} rounds, compiler of the compiled variants: {compiler or 'none found'}\n")
    # In fresh processes and before anything else, so that nothing that this process does is in the way.
    first = start(1 if asked.quick else 5, asked.threads) if "start" in only else {}
    for name, found in first.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f} s" for key, value in found["seconds"].items()))
    measured = []
    width = max((len(case.name) for case in chosen), default=0)
    if chosen:
        print("case".ljust(width), *titles(), sep=" | ")
    for case in chosen:
        measured.append(measure(case, rounds, compiler))
        row = [cell.rjust(len(title)) for cell, title in zip(cells(measured[-1]), titles(), strict=True)]
        print(case.name.ljust(width), *row, sep=" | ", flush=True)
    print("", *summary(measured), sep="\n")
    if place is not None:
        record = {
            "what": "python benchmarks/run.py: forward and backward, milliseconds as [quartile, median, quartile]",
            "made": time.strftime("%Y-%m-%d"),
            "rounds": rounds,
            "threads": asked.threads,
            "load": [*load, round(os.getloadavg()[0], 2)],
            "machine": machine(),
            "versions": versions(),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "NUMBA_", "MALLOC_"))},
            "compiler": compiler,
            "numba_loaded": "numba" in sys.modules,
            "refused_faults": refused,
            "summary": list(summary(measured)),
            "start": first,
            "cases": measured,
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\nwritten: {place}")


if __name__ == "__main__":
    main()
