"""Memory of gradients is used again once nobody holds it, and never before."""

from __future__ import annotations

import gc
import mmap
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from crossent import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy
from crossent.compute.backends.cpu import reuse

G = torch.Generator().manual_seed(0)
Z = torch.randn(600, 500, generator=G)  # 1.2 MB
Y = torch.randint(500, (600,), generator=G)


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    gc.collect()
    reuse.forget()
    yield
    reuse.forget()


def gradient(z: Tensor = Z) -> Tensor:
    leaf = z.clone().requires_grad_()
    cross_entropy(leaf, Y[: len(z)]).backward()
    assert leaf.grad is not None
    return leaf.grad


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "a tensor": lambda g: g,
    "a row": lambda g: g[5],
    "another shape": lambda g: g.view(-1, 2).T,
    "its storage": lambda g: g.untyped_storage(),
    "an array": lambda g: g.numpy(),
    "an array of an array": lambda g: g.numpy()[3:][1:].reshape(-1)[::2],
    "another library's tensor": lambda g: np.from_dlpack(g),
    "bytes": lambda g: memoryview(g.numpy()).cast("B"),
    "a graph": lambda g: (g.requires_grad_() * g).sum(),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_it_is_lent_again_when_nobody_holds_it(holder: str) -> None:
    first = gradient()
    known, place = first.clone(), first.data_ptr()
    held = HOLDERS[holder](first)
    del first
    other = gradient(-Z)
    assert other.data_ptr() != place
    assert not reuse._kept
    del held, other
    gc.collect()
    assert len(reuse._kept) == 2
    again, more = gradient(), gradient()
    assert not reuse._kept
    assert place in (again.data_ptr(), more.data_ptr())
    assert torch.equal(again, known)
    assert torch.equal(more, known)


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    one = gradient().nbytes
    assert len(reuse._kept) == 1
    gradient(Z[:400])  # less than a MiB
    gradient(Z.repeat(1, 3))  # three times as large: it takes fresh memory
    assert [round(block.size / one) for block in reuse._kept] == [1, 3]
    gradient(Z.repeat(1, 2))  # the large block is not more than twice as large
    assert [round(block.size / one) for block in reuse._kept] == [1, 3]
    monkeypatch.setattr(reuse, "KEPT", int(3.5 * one))
    gradient(Z.repeat(1, 2))
    assert [round(block.size / one) for block in reuse._kept] == [3]  # the oldest went
    gradient(Z.repeat(1, 4))
    assert [round(block.size / one) for block in reuse._kept] == [3]  # more than may be kept at all


def test_large_blocks_are_on_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux may take the pages of what nobody holds, up to a bound, and only of that."""
    if reuse.LOOSE == reuse.KEPT:  # no Linux: only what is small is kept
        return
    monkeypatch.setattr(reuse, "KEPT", 2**20)
    first = gradient()
    known, place, size = first.clone(), first.data_ptr(), first.nbytes
    assert on_call() < 0.2 * size
    del first
    assert len(reuse._loose) == 1
    assert not reuse._kept
    assert on_call() > 0.8 * size  # Linux counts some fifteen pages late
    again = gradient()
    assert again.data_ptr() == place
    assert torch.equal(again, known)
    assert on_call() < 0.2 * size
    del again
    pages = reuse._loose[0].base.obj
    pages.madvise(mmap.MADV_DONTNEED)  # as if the system had been short of memory
    assert not reuse._loose[0].any()
    assert torch.equal(gradient(), known)
    assert len(reuse._loose) == 1
    monkeypatch.setattr(reuse, "LOOSE", int(2.5 * size))
    held = [gradient() for _ in range(3)]
    del held
    assert len(reuse._loose) == 2
    gradient(Z.repeat(1, 3))  # more than may be kept at all
    assert len(reuse._loose) == 2


def on_call() -> int:
    """Bytes of this process that Linux may take."""
    found = re.search(r"LazyFree:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return 1024 * int(found[1])


class _NoPages:
    """A system that takes no advice."""

    def __init__(self, *_: object, **__: object) -> None:
        raise OSError(22, "Invalid argument")


def test_a_system_that_takes_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    known = gradient()
    monkeypatch.setattr(reuse, "KEPT", 2**20)
    monkeypatch.setattr(reuse.mmap, "mmap", _NoPages)
    assert torch.equal(gradient(), known)
    assert not reuse._loose


def test_training_after_inference() -> None:
    """A tensor that was made in inference mode may not be saved for a backward pass, later either: arrays are kept."""
    with torch.inference_mode(False):
        gradient()
    with torch.inference_mode():
        linear_cross_entropy(Z, Z[:700], Y)
    leaf = Z.clone().requires_grad_()
    (first,) = torch.autograd.grad(linear_cross_entropy(leaf, Z[:500], Y, reduction="none").sum(), leaf)
    (second,) = torch.autograd.grad(linear_cross_entropy(leaf, Z[:500], Y, reduction="none").sum(), leaf)
    assert torch.equal(first, second)


def test_threads_do_not_share_it() -> None:
    def of(seed: int) -> list[Tensor]:
        g = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(4):
            z = torch.randn(600 + 40 * seed, 500, generator=g, requires_grad=True)
            y = torch.randint(500, z.shape[:1], generator=g)
            value = cross_entropy(z, y) + binary_cross_entropy_with_logits(z, torch.rand(z.shape, generator=g))
            found += [value.detach(), *torch.autograd.grad(value, z)]
        return found

    alone = [of(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(of, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({float(found[0]) for found in alone}) == 8


def test_a_gradient_may_outlive_the_program() -> None:
    """What Python says of errors at its end stands in stderr, and nowhere else."""
    code = (
        "import torch, crossent; z = torch.randn(600, 500, requires_grad=True); "
        "crossent.cross_entropy(z, torch.zeros(600).long()).backward(); kept = [z.grad.numpy()]; kept.append(kept)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "Exception" not in done.stderr, done.stderr
