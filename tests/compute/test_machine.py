"""The kernels among threads, processes and folders, and what they take: no more memory than they say."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import crossent
from crossent import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy
from crossent.compute import backends, losses
from crossent.compute.backends.cpu import reuse
from crossent.compute.backends.cpu.threads import BLOCK, WORTH, over_blocks

ROOT = Path(crossent.__file__).parents[1]

# Narrow rows and wide ones, more logits than one block, so that they are shared out.
BITS = """
import hashlib
import numpy as np
import torch
from crossent import cross_entropy

def bits(seed=0, rows_of=((20000, 10), (200, 1000))):
    digest = hashlib.sha256()
    for n, v in rows_of:
        random = np.random.default_rng(seed)
        z = torch.from_numpy(random.standard_normal((n, v), dtype=np.float32)).requires_grad_()
        y = torch.from_numpy(random.integers(0, v, n))
        for reduction in ("mean", "none"):
            value = cross_entropy(z, y, label_smoothing=0.1, reduction=reduction)
            (dz,) = torch.autograd.grad(value, z, torch.ones_like(value))
            digest.update(value.detach().numpy().tobytes() + dz.numpy().tobytes())
    return digest.hexdigest()
"""
_here: dict[str, Any] = {}
exec(BITS, _here)
bits: Callable[..., str] = _here["bits"]
WITHOUT_NUMBA = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numba":
            raise ModuleNotFoundError("No module named 'numba'", name="numba")
sys.meta_path.insert(0, Blocker())
"""


def python(*code: str, at: Path = ROOT, **environment: str) -> str:
    """What a fresh interpreter prints; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", "\n".join(code)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=at,
        env={**os.environ, "PYTHONPATH": str(at), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- threads and processes ----------------------------------------------------------------------------------------


def test_many_python_threads_at_once_get_the_bits_of_one() -> None:
    serial = [bits(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(bits, range(8))) == serial
    assert len(set(serial)) == 8


@pytest.mark.parametrize("road", ["torch's team", "a pool"])
def test_as_many_threads_as_torch_has_and_the_same_bits(road: str) -> None:
    seen = json.loads(
        python(
            "import json, os, threading, time",
            "os.cpu_count = lambda: 8",  # the pool may grow to 7, whatever this machine has
            BITS,
            "from crossent.compute.backends.cpu import threads as room",
            "from crossent.compute.backends.cpu.threads import BLOCK, over_blocks",
            "assert room._team() is not None" if road == "torch's team" else "room._team = lambda: None",
            "who, rows, at_work, most, lock = set(), [], 0, 0, threading.Lock()",
            "def work(start, stop):",
            "    global at_work, most",
            "    with lock:",
            "        at_work += 1",
            "        most = max(most, at_work)",
            "        who.add(threading.current_thread().name.replace('-', '_').partition('_')[0])",
            "        rows.extend(range(start, stop))",
            "    time.sleep(0.002)",
            "    with lock:",
            "        at_work -= 1",
            "seen = []",
            "for threads in (1, 2, 4):",
            "    torch.set_num_threads(threads)",
            "    most = 0; who.clear(); rows.clear()",
            "    over_blocks(work, 64, BLOCK // 2)",
            "    seen.append((threads, most, sorted(who), sorted(rows) == list(range(64)), bits()))",
            "print(json.dumps(seen))",
        )
    )
    for threads, most, who, all_rows_once, found in seen:
        assert min(threads, 2) <= most <= threads
        # A thread that Python did not start is a Dummy to it.
        others = [] if threads == 1 else ["Dummy"] if road == "torch's team" else ["crossent"]
        assert sorted(who) == sorted(["MainThread", *others])
        assert all_rows_once
        assert found == bits()


@pytest.mark.parametrize(("blocks", "threads"), [(5, 2), (6, 4), (1, 2)])
def test_each_thread_has_as_many_blocks(blocks: int, threads: int) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        over_blocks(lambda start, stop: found.append((start, stop)), blocks * BLOCK // 8, 8, 256)
    finally:
        torch.set_num_threads(before)
    found.sort()
    assert len(found) == -(-blocks // threads) * threads  # of five blocks two threads make six
    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == blocks * BLOCK // 8
    assert all(start % 256 == 0 for start, _ in found)


@pytest.mark.parametrize(
    ("logits", "blocks"), [(WORTH, 1), (WORTH + 8, 2), (BLOCK, 2), (2 * BLOCK, 2), (2 * BLOCK + 8, 4)]
)
def test_few_rows_make_few_blocks(logits: int, blocks: int) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        over_blocks(lambda start, stop: found.append((start, stop)), logits // 8, 8)
    finally:
        torch.set_num_threads(before)
    assert len(found) == blocks


def test_what_goes_wrong_on_another_thread_is_raised_here_and_no_thread_is_lost() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    begun = threading.Barrier(2, timeout=60)  # both threads have a block before one of them fails

    def fail(start: int, _: int) -> None:
        begun.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(f"at row {start}")

    try:
        with pytest.raises(ValueError, match=r"at row \d"):
            over_blocks(fail, 2, BLOCK)
        done: list[int] = []
        over_blocks(lambda start, stop: done.extend(range(start, stop)), 64, BLOCK)
        assert sorted(done) == list(range(64))
    finally:
        torch.set_num_threads(threads)


def test_a_forked_child_computes_and_so_does_its_parent_afterwards() -> None:
    printed = python(
        "import os, warnings",
        BITS,
        "torch.set_num_threads(2)",
        # Few rows: a forked child has none of the threads that torch takes for many, and torch waits for them.
        "rows = ((1000, 10), (1000, 300))",
        "print(bits(0, rows), flush=True)",  # torch's team, which stays here, has begun
        "with warnings.catch_warnings():",
        "    warnings.simplefilter('ignore', DeprecationWarning)",  # of Python 3.12: there are threads, on purpose
        "    child = os.fork()",
        "if child == 0:",
        "    print(bits(0, rows), flush=True)",
        "    os._exit(0)",
        "assert os.waitpid(child, 0)[1] == 0",
        "print(bits(0, rows), bits(1, rows))",
    ).split()
    rows = ((1000, 10), (1000, 300))
    assert printed == [bits(0, rows)] * 3 + [bits(1, rows)]


def test_a_spawned_child_computes_the_same(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    main = "multiprocessing.get_context('spawn').Pool(1) as pool: print(bits(), pool.apply(bits))"
    script.write_text(f"import multiprocessing\n{BITS}\nif __name__ == '__main__':\n    with {main}\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == [bits()] * 2, done.stderr


# --- numba: there or not, kept or not -----------------------------------------------------------------------------


def test_numba_is_loaded_by_the_first_call_and_not_before() -> None:
    printed = python(
        "import sys, torch, crossent",
        "z, y = torch.zeros(2, 3), torch.tensor([0, 1])",
        "crossent.cross_entropy, crossent.CrossEntropyLoss(), crossent.binary_cross_entropy_with_logits",
        "print('numba' in sys.modules)",
        "crossent.cross_entropy(z, y)",
        "print('numba' in sys.modules)",
    )
    assert printed.split() == ["False", "True"]


def test_without_numba_the_reference_does_the_work_and_says_so_once() -> None:
    printed = python(
        WITHOUT_NUMBA,
        "import warnings",
        BITS,
        "with warnings.catch_warnings(record=True) as said:",
        "    warnings.simplefilter('always')",
        "    print(bits(), bits(1))",
        "print(*(each.message for each in said), sep='\\n')",
    ).splitlines()
    with backends.using("reference"):
        assert printed[0] == f"{bits()} {bits(1)}"
    assert printed[0] != f"{bits()} {bits(1)}"  # the kernels round their float32 in other places
    assert len(printed) == 2
    assert "need numba, which cannot be imported (No module named 'numba'); the reference does the work" in printed[1]
    assert printed[1].endswith("Install it with: pip install numba")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors all read float16")
def test_a_processor_that_cannot_read_float16_is_asked_for_the_reference_and_says_so_once() -> None:
    code = (
        "import sys, warnings, torch",
        "from crossent import cross_entropy",
        "z, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 5",
        "with warnings.catch_warnings(record=True) as said:",
        "    warnings.simplefilter('always')",
        "    halves = [cross_entropy(z.half(), y).item().hex() for _ in range(2)]",
        "    print(*halves, 'numba' in sys.modules)",
        "    cross_entropy(z.bfloat16(), y)",
        "print('numba' in sys.modules, len(said), *(each.message for each in said))",
    )
    old, new = (python(*code, ATEN_CPU_CAPABILITY=to).splitlines() for to in ("default", "avx2"))
    z, y = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 5
    with backends.using("reference"):
        exact = cross_entropy(z.half(), y).item().hex()
    assert old[0].split() == [exact, exact, "False"]
    assert old[1].startswith("True 1 crossent's CPU kernels read float16 with AVX2, which this processor has not")
    assert new[0].endswith("True")
    assert new[1] == "True 0"


# One kernel, and the smallest, since it is compiled anew.
SMALL = """
import torch
from crossent import cross_entropy
print(cross_entropy(torch.tensor([[0.1, 0.2, -3.0]] * 5), torch.tensor([0, 1, 2, 0, 1])).item().hex())
"""


def small() -> str:
    return cross_entropy(torch.tensor([[0.1, 0.2, -3.0]] * 5), torch.tensor([0, 1, 2, 0, 1])).item().hex()


def test_kernels_are_kept_on_disk_for_the_next_process(tmp_path: Path) -> None:
    code = (
        SMALL,
        "from crossent.compute.backends.cpu import narrow",
        "stats = narrow.part.stats",
        "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))",
        "import sys",
        "print('numba.np.arraymath' in sys.modules)",
    )
    first, second = (python(*code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines() for _ in range(2))
    assert first == [small(), "0 1", "True"]
    assert second == [small(), "1 0", "False"]  # what is only needed to compile is not loaded


def test_where_nothing_can_be_kept_kernels_work_and_say_so_once(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "crossent", tmp_path / "crossent", ignore=shutil.ignore_patterns("__pycache__"))
    # Where a file stands nobody can make a folder, not even root, whom a folder without write permission lets in.
    for file in (tmp_path / "crossent").rglob("*.py"):
        (file.parent / "__pycache__").touch()
    nowhere = str(tmp_path / "crossent" / "__init__.py" / "nowhere")
    printed = python(
        "import warnings",
        "with warnings.catch_warnings(record=True) as said:",
        "    warnings.simplefilter('always')",
        *(f"    {line}" for line in SMALL.splitlines()),
        "print(*(each.message for each in said), sep='\\n')",
        at=tmp_path,
        NUMBA_CACHE_DIR=nowhere,
        XDG_CACHE_HOME=nowhere,
        HOME=nowhere,
    ).splitlines()
    assert printed[0] == small()
    assert len(printed) == 2
    assert "cannot be kept on disk and are compiled anew in each process" in printed[1]
    assert "Set NUMBA_CACHE_DIR to a folder that can." in printed[1]


# --- memory -------------------------------------------------------------------------------------------------------

N, V = 2048, 8192


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that work() holds at a time: numpy's as tracemalloc sees them and torch's as its profiler does.

    The two peaks are added, though they need not fall together. (What a kernel takes for itself, some lines of 128
    numbers, neither of them sees.)
    """
    for _ in range(2):  # at first things are done that are done once: compiling, loading, starting threads
        reuse.forget()  # memory that is used again would be seen by neither
        tracemalloc.start()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del result
    held = highest = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return most + highest


def forth_and_back(function: Callable[[Tensor], Tensor], *leaves: Tensor) -> Callable[[], Any]:
    def work() -> Any:
        value = function(*leaves)
        return torch.autograd.grad(value, leaves, torch.ones_like(value))

    return work


LABELS = torch.from_numpy(np.random.default_rng(0).integers(0, V, N))
LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "rows": lambda: torch.randn(N, V),
    "every other column": lambda: torch.randn(N, 2 * V)[:, ::2],
    "columns": lambda: torch.randn(V, N).T,
    "channels first": lambda: torch.randn(2, V, N // 2),
    "bfloat16": lambda: torch.randn(N, V).bfloat16(),
}
# What is allowed beside the gradient: 64 float64 for each row, and for each thread 40 lines of float32 columns.
BESIDE = 64 * 8 * N + torch.get_num_threads() * 40 * 4 * V
CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": cross_entropy,
    "smoothed": lambda z, y: cross_entropy(z, y, label_smoothing=0.1),
    "focal, row by row": lambda z, y: cross_entropy(z, y, loss=losses.Focal(2.0), reduction="none"),
    "entropy and class weights": lambda z, y: cross_entropy(z, y, torch.ones(V), loss=losses.Confidence()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_makes_the_gradient_and_little_else(layout: str) -> None:
    z = LAYOUTS[layout]().requires_grad_()
    y = LABELS.reshape(z.shape[0], *z.shape[2:])
    gradient = z.numel() * z.element_size()
    for name, call in CALLS.items():
        taken = peak(forth_and_back(lambda z, call=call: call(z, y), z))
        assert gradient <= taken <= gradient + BESIDE, name
        with torch.no_grad():
            assert peak(lambda call=call: call(z, y)) <= BESIDE, name
    copied = peak(forth_and_back(lambda z: cross_entropy(z.clone(), y), z))
    assert copied > gradient + BESIDE  # the negative control


def test_soft_targets_are_read_where_they_lie() -> None:
    for of in ("rows", "channels first"):
        z = LAYOUTS[of]().requires_grad_()
        q = torch.softmax(LAYOUTS[of](), 1)
        gradient = z.numel() * z.element_size()
        assert peak(forth_and_back(lambda z, q=q: cross_entropy(z, q), z)) <= gradient + BESIDE
        assert peak(forth_and_back(lambda z, q=q: cross_entropy(z, q.clone()), z)) > gradient + BESIDE


def test_binary_makes_the_gradient_and_losses_only_where_they_are_wanted() -> None:
    z, t = torch.randn(N, V).requires_grad_(), torch.rand(N, V)
    floats, doubles = 4 * z.numel(), 8 * z.numel()
    calls: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
        "mean": (lambda z: binary_cross_entropy_with_logits(z, t), 0),
        "weights of classes": (lambda z: binary_cross_entropy_with_logits(z, t, pos_weight=torch.ones(V)), 0),
        # The losses in float64 and rounded, and once more the two of what comes back, less what has gone by then.
        "element by element": (
            lambda z: binary_cross_entropy_with_logits(z, t, reduction="none"),
            2 * doubles + floats,
        ),
    }
    for name, (call, more) in calls.items():
        taken = peak(forth_and_back(call, z))
        assert floats <= taken <= floats + more + BESIDE, name
    copied = peak(forth_and_back(lambda z: binary_cross_entropy_with_logits(z.clone(), t), z))
    assert copied > floats + BESIDE


def test_linear_cross_entropy_holds_a_chunk_of_logits_and_its_gradient() -> None:
    x, w = torch.randn(N, 64).requires_grad_(), torch.randn(V, 64).requires_grad_()
    gradients, chunk = 4 * (x.numel() + w.numel()), 4 * 512 * V
    allowed = gradients + 2 * chunk + BESIDE
    assert peak(forth_and_back(lambda x, w: linear_cross_entropy(x, w, LABELS, chunk_rows=512), x, w)) <= allowed
    assert peak(forth_and_back(lambda x, w: cross_entropy(torch.nn.functional.linear(x, w), LABELS), x, w)) > allowed
