"""Blocks of rows over as many threads as torch has; the kernels hold no lock.

The pool is shared by all callers, from any Python thread. A forked child has none of its parent's threads, so it
starts a pool of its own. A caller works on blocks itself and never waits for a thread that has not begun: a busy
machine or a pool in use by others costs time and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

BLOCK = 2**17  # logits: long enough to be worth a thread (some 50 µs), short enough to share out evenly

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget)


def _helpers() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="crossent")
    return _pool


def over_blocks(work: Callable[[int, int], None], rows: int, columns: int, multiple: int = 1) -> None:
    """Call work(start, stop) on all rows, in blocks that begin at a multiple of ``multiple`` rows."""
    size = max(1, BLOCK // max(1, columns))
    size = -(-size // multiple) * multiple
    threads = torch.get_num_threads()
    if threads == 1 or rows <= size:
        work(0, rows)
        return
    starts = iter(range(0, rows, size))  # shared: next() on it is one step under the interpreter's lock

    def share() -> None:
        for start in starts:
            work(start, min(start + size, rows))

    helpers = min(threads - 1, -(-rows // size) - 1)
    waiting = [_helpers().submit(share) for _ in range(helpers)]
    share()
    for helper in waiting:
        if not helper.cancel():  # one that has not begun has nothing left to do
            helper.result()
