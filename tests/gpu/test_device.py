"""What only a GPU can show: that nobody waits for it, and that all can be captured in a graph and replayed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crossent import binary_cross_entropy_with_logits, cross_entropy, linear_cross_entropy
from tests.compare import bits
from tests.compute.test_cpu_numbers import random

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that PyTorch can reach"),
]


def calls():
    n, d, v = 64, 32, 5000
    z, x, w = random(n, v).float(), random(n, d).float(), random(v, d, seed=1).float()
    y = torch.arange(n) * 7
    y[3] = -100
    y = y.cuda()
    share = random(n, v, seed=2).abs().clamp(max=1).cuda()
    soft = share / share.sum(-1, keepdim=True)
    return {
        "logits": ((z,), lambda z: cross_entropy(z, y, validate="off")),
        "checked": ((z,), lambda z: cross_entropy(z, y, label_smoothing=0.1, validate="async")),
        "soft": ((z,), lambda z: cross_entropy(z, soft, validate="off")),
        "scaled": ((z,), lambda z: 3 * cross_entropy(z, y, validate="off")),
        "binary": ((z,), lambda z: binary_cross_entropy_with_logits(z, share, validate="off")),
        "head": ((x, w), lambda x, w: linear_cross_entropy(x, w, y, validate="off", chunk_rows=20)),
        "narrow head": (
            (x.bfloat16(), w.bfloat16()),
            lambda x, w: linear_cross_entropy(x, w, y, validate="off", chunk_rows=20),
        ),
    }


NAMES = ("logits", "checked", "soft", "scaled", "binary", "head", "narrow head")


def step(call, leaves) -> tuple[torch.Tensor, ...]:
    value = call(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_waits_for_the_device(name: str) -> None:
    tensors, call = calls()[name]
    leaves = [t.cuda().requires_grad_() for t in tensors]
    step(call, leaves)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(call, leaves)
        with pytest.raises(RuntimeError, match="synchroniz"):
            float(leaves[0][0, 0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_replays_the_bits(name: str) -> None:
    tensors, call = calls()[name]
    leaves = [t.cuda().requires_grad_() for t in tensors]
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        step(call, leaves)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(call, leaves)
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    again = step(call, leaves)
    for a, b in zip(found, again, strict=True):
        assert torch.equal(bits(a), bits(b))


def test_a_mean_that_is_scaled_later_has_the_gradient_of_the_long_way() -> None:
    z, y = random(40, 1000).float().cuda(), (torch.arange(40) * 7).cuda()
    y[5] = -100
    for scale in (1.0, 3.0, 0.1):
        for dtype in (torch.float32, torch.bfloat16):
            found = []
            for weight in (None, torch.ones(1000, device="cuda")):  # weights of 1 take the long way
                leaf = z.to(dtype).requires_grad_()
                value = scale * cross_entropy(leaf, y, weight, label_smoothing=0.1)
                found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
            assert torch.equal(bits(found[0][0]), bits(found[1][0]))
            ulps_apart = (bits(found[0][1]).long() - bits(found[1][1]).long()).abs().max()
            assert ulps_apart <= 1  # the divisor meets the scale in another order


def test_a_compiled_step_is_the_step() -> None:
    z, y = random(40, 1000).float().cuda(), (torch.arange(40) * 7).cuda()
    leaf = z.clone().requires_grad_()
    compiled = torch.compile(lambda z: cross_entropy(2 * z, y), fullgraph=True)
    value = compiled(leaf)
    exact = F.cross_entropy(2 * z.double(), y)
    assert abs(value.item() / exact.item() - 1) < 1e-6
    (dz,) = torch.autograd.grad(value, leaf)
    (expected,) = torch.autograd.grad(cross_entropy(2 * leaf, y), leaf)
    torch.testing.assert_close(dz, expected, rtol=1e-6, atol=0)
