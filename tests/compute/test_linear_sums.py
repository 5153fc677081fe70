"""What the head's gradient is added up in, what memory that takes, and which products are made."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import linear_cross_entropy
from crossent.compute.linear import product
from crossent.compute.linear.product import Gradients
from tests.compute.test_machine import python

G = torch.Generator().manual_seed(0)


def gradients(x: Tensor, w: Tensor, y: Tensor, **knobs: Any) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in (x, w)]
    return list(torch.autograd.grad(linear_cross_entropy(*leaves, y, reduction="sum", **knobs), leaves))


def error(got: Tensor, truth: Tensor) -> float:
    """The root of the mean square error, by that of the truth."""
    return float((got.double() - truth).norm() / truth.norm())


N, D, V = 1024, 32, 64
X = torch.randn(N, D, generator=G).add(1).bfloat16()  # all of one sign, more or less: sums that grow
W = torch.randn(V, D, generator=G).div(4).bfloat16()
Y = torch.randint(V, (N,), generator=G)


def truth(dtype: torch.dtype) -> Tensor:
    """dzᵀ x in float64, of logits and gradients that are rounded to 16 bits, as those of a head in two steps are."""
    z = F.linear(X.to(dtype), W.to(dtype)).double()
    dz = (torch.softmax(z, -1) - F.one_hot(Y, V)).to(dtype).double()
    return dz.T @ X.to(dtype).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_number_of_chunks_does_not_show(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, x, w = truth(dtype), X.to(dtype), W.to(dtype)
    once = error(exact.to(dtype), exact)  # rounded once, at the end: no better is possible

    def errors() -> list[float]:
        return [error(gradients(x, w, Y, chunk_rows=-(-N // chunks))[1], exact) for chunks in (1, 2, 4, 16, 64)]

    # A p on the border of two 16-bit numbers may be rounded either way: one per mille of once.
    assert max(errors()) < 1.05 * once

    def in_16_bits(total: Tensor, dz: Tensor, x: Tensor, first: bool) -> None:
        part = (dz.T @ x).to(dtype)
        total.copy_(part if first else (total.to(dtype) + part))

    monkeypatch.setattr(product, "_add", in_16_bits)  # the planted accumulator
    wrong = errors()
    assert wrong[-1] > 2 * once
    assert wrong[-1] > wrong[1]


def test_processors_without_16_bit_products_get_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    native = [gradients(X, W, Y), gradients(X, W, Y, chunk_rows=100)]
    bias = torch.randn(V, generator=G).bfloat16()
    value = linear_cross_entropy(X, W, Y, linear_bias=bias)
    monkeypatch.setattr(product, "_is_native", lambda x: x.dtype in (torch.float32, torch.float64))
    monkeypatch.setattr(product, "WIDENED", 7 * D)  # blocks of seven classes
    wide = [gradients(X, W, Y), gradients(X, W, Y, chunk_rows=100)]
    # The sums of 32 products are rounded to 16 bits after another order of summation: half an ulp, seldom.
    torch.testing.assert_close(linear_cross_entropy(X, W, Y, linear_bias=bias), value, rtol=1e-4, atol=0)
    for ours, theirs in zip(native, wide, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert error(a, b.double()) < 2**-8
            assert error(1.01 * a, b.double()) > 2**-8


def test_where_all_logits_are_less_than_the_sum_there_is_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, torch.dtype]] = []
    start = Gradients.__post_init__

    def spy(self: Gradients) -> None:
        start(self)
        made.append((self.product.chunks, self.dw.dtype))

    monkeypatch.setattr(Gradients, "__post_init__", spy)
    monkeypatch.setattr(product, "BUDGET", 0)
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for rows, knobs in ((2 * D, {}), (2 * D + 1, {}), (2 * D, {"chunk_rows": 16}), (2 * D, {"budget": 2 * V * 16})):
        monkeypatch.setattr("crossent.compute.linear.budget.BUDGET", 2 * V * 16)
        gradients(X[:rows], W, Y[:rows], **knobs)
    at_once = (1, torch.bfloat16) if native else (4, torch.float32)
    assert made == [at_once, (5, torch.float32), (4, torch.float32), (4, torch.float32)]


# VmHWM in a process of its own: what a forward and backward adds to what is resident.
MEMORY = """
import json, re, ctypes
import torch
from pathlib import Path
from crossent import cross_entropy, linear_cross_entropy
from crossent.compute.backends.cpu import reuse
from crossent.compute.losses import Brier

def resident(line):
    return 1024 * int(re.search(line + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

def taken(call, dtype, n, d, v, first=(64, 4000)):
    x, w = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in ((n, d), (v, d)))
    y = torch.randint(v, (n,))
    rows, classes = first
    call(x[:rows], w[:classes], y[:rows] % classes).backward()  # everything loaded, compiled and started
    x.grad = w.grad = None
    reuse.forget()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call(x, w, y).backward()
    return resident("VmHWM") - before - x.nbytes - w.nbytes

found = {}
for name, call in {
    "fused": linear_cross_entropy,
    "smoothed rows": lambda x, w, y: linear_cross_entropy(x, w, y, label_smoothing=0.1, reduction="none").sum(),
    "logits": lambda x, w, y: cross_entropy(torch.nn.functional.linear(x, w), y),
}.items():
    for dtype in (torch.float32, torch.bfloat16):
        found[f"{name} {dtype}"] = taken(call, dtype, 1536, 64, 32000)
brier = torch.compile(lambda x, w, y: linear_cross_entropy(x, w, y, loss=Brier()), fullgraph=True, backend="aot_eager")
found["brier, compiled"] = taken(brier, torch.float32, 512, 64, 32000, (512, 32000))
print(json.dumps(found))
"""


def test_no_more_memory_than_the_gradients_their_sum_and_96_mib() -> None:
    """Logits of 1536 × 32000 would be 197 MB in float32, and their gradient as much."""
    found = json.loads(python(MEMORY))
    most, total = 96 * 2**20, 4 * 32000 * 64
    for name in ("fused", "smoothed rows"):
        assert found[f"{name} torch.float32"] <= most, found
        assert found[f"{name} torch.bfloat16"] <= most + total, found
    assert found["logits torch.float32"] > 3 * most
    # Plain torch takes some 100 bytes for each of the logits that count 64; all at once were 754 MiB.
    assert found["brier, compiled"] <= 1.5 * most, found


def test_flops_are_those_of_the_rows_that_count() -> None:
    """Counted by torch's profiler, from the shapes of the products that ran."""
    x, w = torch.randn(400, 32, generator=G), torch.randn(500, 32, generator=G)
    y = torch.randint(500, (400,), generator=G)
    few = torch.where(torch.arange(400) % 4 == 0, y, -100)
    one = 2 * 400 * 32 * 500

    def flops(y: Tensor, **knobs: Any) -> float:
        leaves = [t.clone().requires_grad_() for t in (x, w)]
        with torch.profiler.profile(record_shapes=True) as profile:
            linear_cross_entropy(*leaves, y, **knobs).sum().backward()
        at = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}  # where the two factors stand
        shapes = [event.input_shapes[at[event.name] :][:2] for event in profile.events() if event.name in at]
        return sum(2 * n * k * m for (n, k), (_, m) in shapes) / one

    for knobs, products in (({}, 3), ({"chunk_rows": 64}, 3), ({"reduction": "none"}, 4)):
        assert flops(y, **knobs) == pytest.approx(products, rel=1e-9)
        assert flops(few, **knobs) == pytest.approx(products / 4, rel=1e-9)
