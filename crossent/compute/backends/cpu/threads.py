"""Blocks of rows over as many threads as torch has; the kernels hold no lock.

They run on torch's own threads. After a parallel operation these spin for some milliseconds, waiting for the next one,
and would take the cores from any others. What a compiler makes of ``#pragma omp parallel`` is a call of GOMP_parallel,
and that of the OpenMP runtime torch has loaded is called here: each thread of the team enters Python, holding the
interpreter's lock for as long as it takes to ask for a block, and works on blocks until there are none.

Where that runtime is not to be had (builds of torch without it; a forked child, whose team stayed with its parent),
a pool of ours takes the team's place. The caller works on blocks itself and never waits for a helper that has not
begun: a busy machine or a pool in use by others costs time and nothing else.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

WORTH = 2**17  # logits that are worth a thread: some 50 µs
BLOCK = 2**21  # logits of a block at most: long beside asking for one, for which a thread may have to be woken

_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_pool: ThreadPoolExecutor | None = None
_forked = False


def _forget() -> None:
    global _pool, _forked
    _pool, _forked = None, True


os.register_at_fork(after_in_child=_forget)


def over_blocks(work: Callable[[int, int], None], rows: int, columns: int, multiple: int = 1) -> None:
    """Call work(start, stop) on all rows, in blocks that begin at a multiple of ``multiple`` rows.

    There are as many for each thread: of five blocks one of two threads would do three. And there are few: whoever asks
    for one needs the interpreter's lock, and the other thread, woken up for it, comes 20 to 50 µs late.
    """
    logits = rows * max(1, columns)
    threads = min(torch.get_num_threads(), -(-logits // WORTH))
    if threads <= 1:
        work(0, rows)
        return
    blocks = -(-logits // (threads * BLOCK)) * threads
    size = -(-rows // blocks)
    size = -(-size // multiple) * multiple
    starts = iter(range(0, rows, size))  # shared: next() on it is one step under the interpreter's lock

    def share() -> None:
        for start in starts:
            work(start, min(start + size, rows))

    team = None if _forked else _team()
    if team is None:
        _in_pool(share, threads)
    else:
        _in_team(team, share, threads)


@functools.cache
def _team() -> Callable[..., None] | None:
    """GOMP_parallel(entry, data, threads, flags) of the runtime that torch is linked with, if it has one."""
    try:
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [_Entry, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _in_team(team: Callable[..., None], share: Callable[[], None], threads: int) -> None:
    trouble: list[BaseException] = []

    @_Entry
    def enter(_: int | None) -> None:
        try:
            share()
        except BaseException as error:  # nothing may leave through a frame of the runtime's
            trouble.append(error)

    team(enter, None, threads, 0)
    if trouble:
        raise trouble[0]


def _in_pool(share: Callable[[], None], threads: int) -> None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="crossent")
    waiting = [_pool.submit(share) for _ in range(threads - 1)]
    share()
    for helper in waiting:
        if not helper.cancel():  # one that has not begun has nothing left to do
            helper.result()
