"""Real processes that talk through gloo, started once for each size and given work by name.

    with World(3) as world:
        one_for_each_rank = world.run(job, argument, …)

A job is a function of a test's module; it finds torch.distributed initialised. What it raises on some ranks comes back
as ``Raised``. A world whose job did not come back in time is of no more use.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Raised:
    """What a job raised: the name of the exception's class, its text, and the traceback for whoever reads the test."""

    kind: str
    text: str
    where: str


class World:
    """``size`` processes in one gloo group; ``seconds`` is how long a collective waits for the others."""

    def __init__(self, size: int, seconds: float = 30.0) -> None:
        self.size = size
        start = multiprocessing.get_context("forkserver")
        start.set_forkserver_preload(["torch", "torch.distributed.tensor", "crossent.parallel", "tests.oracle"])
        self._folder = tempfile.TemporaryDirectory()
        place = str(Path(self._folder.name) / "store")
        self.pipes, ends = zip(*(start.Pipe() for _ in range(size)), strict=True)
        self.processes = [
            start.Process(target=_serve, args=(rank, size, place, seconds, end), daemon=True)
            for rank, end in enumerate(ends)
        ]
        for process, end in zip(self.processes, ends, strict=True):
            process.start()
            end.close()

    def run(self, job: Callable[..., Any], *arguments: Any, seconds: float = 180.0) -> list[Any]:
        """What the job gives on each rank; ``Raised`` where it raised, None where the process is gone."""
        return self.patiently(job, *arguments, ranks=self.size, seconds=seconds)

    def patiently(self, job: Callable[..., Any], *arguments: Any, ranks: int, seconds: float) -> list[Any]:
        """The same, of the first ``ranks``: the others may never answer."""
        for pipe in self.pipes:
            try:
                pipe.send((job, arguments))
            except (BrokenPipeError, ConnectionError):
                continue
        until = time.monotonic() + seconds
        return [self._answer(pipe, until) for pipe in self.pipes[:ranks]]

    def _answer(self, pipe: Any, until: float) -> Any:
        if not pipe.poll(max(0.0, until - time.monotonic())):
            raise TimeoutError("a rank hangs")
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            return None

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(10)
        self._folder.cleanup()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _serve(rank: int, size: int, place: str, seconds: float, pipe: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in pytest's own process, and with its one exception
    warnings.filterwarnings("ignore", ".*torch.jit.*", DeprecationWarning)
    os.environ["OMP_NUM_THREADS"] = "1"
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size, timeout=timeout)
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(job(*arguments))
        except Exception as trouble:
            pipe.send(Raised(type(trouble).__name__, str(trouble), traceback.format_exc()))


@cache
def world_of(size: int) -> World:
    """The world of this size, the same for all tests of a process; it ends with the process."""
    return World(size)


def good(answers: list[Any]) -> list[Any]:
    """The answers, of which none may be an error."""
    for rank, answer in enumerate(answers):
        assert answer is not None, f"rank {rank} is gone"
        assert not isinstance(answer, Raised), f"rank {rank}: {answer.where}"
    return answers
