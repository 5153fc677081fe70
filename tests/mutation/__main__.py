"""The mutation lane: every fault is planted in a copy of the package, and the suite must notice each of them.

    python -m tests.mutation               all faults
    python -m tests.mutation tail peak     those whose name or file has one of the words

First the unchanged copy, which must pass the same tests; then a change that is none, which must get past them; then the
faults, each in a copy of its own. A fault is *killed* if a test fails, and only then: a copy that cannot be imported,
tests that cannot be collected and a run that does not end are errors of the lane. Faults are data: kernels.py, rows.py,
losses.py and families.py say what is planted and why somebody might have written it so.

Each run is a fork of this process, which has imported everything but the package: a run then costs its tests and no
imports.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.pop("NUMBA_CACHE_DIR", None)  # kernels are kept beside their source, in each copy

import mpmath  # noqa: F401
import numba  # noqa: F401
import pytest
import torch

from tests.mutation.fault import PACKAGE, Fault
from tests.mutation.faults import FAULTS

WORKERS = 2
LONGEST = 180  # seconds


@dataclass
class Verdict:
    """What came of a run: what pytest said, the first test that failed, and how long it took."""

    said: str
    by: str = ""
    seconds: float = 0.0


class FirstFailure:
    """A pytest plugin that remembers which test failed first."""

    by = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.by:
            self.by = report.nodeid


def in_the_copy(copy: Path, fault: Fault, answer: Connection) -> None:
    """Run the fault's tests on the copy; this is a process of its own, and the package is imported here first."""
    with (copy / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    for name in [name for name in sys.modules if name.split(".")[0] in ("crossent", "tests")]:
        del sys.modules[name]
    torch.manual_seed(0)
    import crossent

    assert Path(crossent.__file__).is_relative_to(copy), f"{crossent.__file__} is tested, not the copy"
    first = FirstFailure()
    options = ["-n0", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    options += ["-k", fault.only] if fault.only else []
    code = pytest.main([*options, *(f"tests/{test}" for test in fault.tests)], plugins=[first])
    answer.send(({0: "survived", 1: "killed"}.get(code, f"pytest ended with {code!r}"), first.by))


def copied(source: Path, copy: Path, without: tuple[str, ...] = (), by: Callable = os.link) -> None:
    """The package, its tests and their settings, with what is cached beside them; as links, since nobody writes there.

    (What is cached is replaced and not written over, and so is the file that gets a fault.)
    """
    for part in ("crossent", "tests"):
        shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns(*without), copy_function=by)
    shutil.copy2(source / "pyproject.toml", copy)


def forget_kernels(path: Path) -> None:
    """Drop compiled kernels that call one of this file: numba sees only that a kernel's own file has changed."""
    changed, found = set[Path](), {path}
    while found:
        changed |= found
        names = "|".join(file.stem for file in found)
        calls = re.compile(rf"^from crossent\.compute\.backends\.cpu\b.*\b({names})\b", re.MULTILINE)
        found = {file for file in path.parent.glob("*.py") if calls.search(file.read_text())} - changed
    for file in changed:
        for cached in path.parent.glob(f"__pycache__/{file.stem}.*.nbi"):
            cached.unlink()


def plant(fault: Fault, origin: Path, copy: Path) -> None:
    """A copy of the package that has the fault."""
    copied(origin, copy)
    path = copy / PACKAGE / fault.file
    forget_kernels(path)
    source = fault.planted(path.read_text())
    path.unlink()
    path.write_text(source)


def verdicts(faults: list[Fault], origin: Path, folder: Path | None) -> Iterator[tuple[Fault, Verdict]]:
    """What the tests say of each fault, as they end; of the origin itself if there is no folder to make copies in."""
    fork = multiprocessing.get_context("fork")
    ahead, running = list(enumerate(faults)), {}
    while ahead or running:
        while ahead and len(running) < WORKERS:
            number, fault = ahead.pop(0)
            copy = origin if folder is None else folder / str(number)
            if folder is not None:
                plant(fault, origin, copy)
            mine, theirs = fork.Pipe(duplex=False)
            process = fork.Process(target=in_the_copy, args=(copy, fault, theirs))
            process.start()
            theirs.close()
            running[mine] = fault, process, copy, time.monotonic()
        for answer in wait(list(running), timeout=1) or list(running):
            fault, process, copy, began = running[answer]
            seconds = time.monotonic() - began
            if answer.poll():
                try:
                    verdict = Verdict(*answer.recv())
                except EOFError:
                    verdict = Verdict("died: " + (copy / "log.txt").read_text()[-2000:])
            elif seconds > LONGEST:
                process.kill()
                verdict = Verdict(f"did not end in {LONGEST} s")
            else:
                continue
            process.join()
            del running[answer]
            if folder is not None:
                shutil.rmtree(copy)
            yield fault, replace(verdict, seconds=seconds)


def unchanged(faults: list[Fault]) -> list[Fault]:
    """No faults, with all tests that are asked about these: one for each file of tests."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for fault in faults:
        for test in fault.tests:
            asked.setdefault(test.partition("::")[0], []).append((test, fault.only))
    result = []
    for path, pairs in asked.items():
        tests, words = {test for test, _ in pairs}, {only for _, only in pairs}
        only = "" if "" in words else " or ".join(f"({word})" for word in sorted(words))
        named = (path,) if path in tests else tuple(sorted(tests))
        result.append(replace(faults[0], name="unchanged", tests=named, only=only))
    return result


def main(words: list[str]) -> int:
    chosen = [f for f in FAULTS if not words or any(word in f.name or word in f.file for word in words)]
    if not chosen:
        print(f"no fault has {' or '.join(words)} in its name or file")
        return 1
    here, began = Path(__file__).parents[2], time.monotonic()
    for fault in chosen:
        fault.planted((here / PACKAGE / fault.file).read_text())  # before anything else: is its text still there?
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        origin, folder = Path(name) / "origin", Path(name) / "copies"
        folder.mkdir()
        # What is cached in the checkout may be older than a kernel it calls.
        copied(here, origin, without=("__pycache__",), by=shutil.copy2)
        for fault, verdict in verdicts(unchanged(chosen), origin, None):
            if verdict.said != "survived":
                wrong.append(f"without any fault {fault.tests} -k {fault.only!r}: {verdict.said} {verdict.by}")
        if wrong:
            print(*wrong, sep="\n")
            return 1
        print(f"without any fault all tests pass, {time.monotonic() - began:.0f} s", flush=True)
        harmless = replace(chosen[-1], name="harmless", old="from __future__", new="# nothing\nfrom __future__")
        for fault, verdict in verdicts([harmless, *chosen], origin, folder):
            print(f"{verdict.seconds:5.1f} s  {verdict.said:8}  {fault.file}: {fault.name}  {verdict.by}", flush=True)
            if verdict.said != ("survived" if fault is harmless else "killed"):
                wrong.append(f"{fault.file}: {fault.name}: {verdict.said}")
    print(f"{len(chosen)} faults, {len(wrong)} verdicts that should be others, {time.monotonic() - began:.0f} s")
    print(*wrong, sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
