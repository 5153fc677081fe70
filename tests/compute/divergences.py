"""The truth of what lies between two distributions, in mpmath, and the pairs of logits that are hard."""

from __future__ import annotations

import math

import mpmath as mp

from tests import oracle

assert mp.mp.dps >= 60, f"{oracle.__name__} sets the digits"
INF = math.inf
PAIRS = {
    "ordinary": ([0.3, -1.2, 2.0, 0.1], [1.0, 0.5, -0.7, 0.2]),
    "confident": ([28.0, 0.0, -1.0, 0.5], [27.0, 0.3, 0.0, -1.0]),
    "sure of different things": ([28.0, 0.0, -1.0, 0.5], [0.0, 29.0, 0.0, -1.0]),
    "apart by 1e-9": ([0.3, -1.2, 2.0, 0.1], [0.3 + 1e-9, -1.2, 2.0 - 3e-9, 0.1]),
    "confident, apart by 1e-12": ([28.0, -1.2, 2.0, 0.1], [28 + 1e-12, -1.2, 2.0 - 3e-12, 0.1]),
    "offset by 1e4": ([10000.3, 9999.0, 10002.0, 10000.0], [0.3, -1.2, 2.0, 0.1]),
    "masked": ([0.3, -INF, 2.0, 0.1], [1.0, -INF, 0.7, 0.2]),
    "q masked": ([0.3, 1.0, 2.0, 0.1], [1.0, -INF, 0.7, 0.2]),
    "p masked": ([0.3, -INF, 2.0, 0.1], [1.0, 1.0, 0.7, 0.2]),
    "disjoint": ([0.3, -INF, 2.0, -INF], [-INF, 1.0, -INF, 0.2]),
    "p of 1e-313": ([0.0, -720.0, -3.0, -800.0], [0.0, 0.0, 1.0, -1.0]),
    "q of 1e-313": ([0.0, 0.0, 1.0, -1.0], [0.0, -720.0, -3.0, -800.0]),
}


def true_entropy(p: list[mp.mpf]) -> mp.mpf:
    return -mp.fsum(v * mp.log(v) for v in p if v > 0)


def true_cross_entropy(p: list[mp.mpf], q: list[mp.mpf]) -> mp.mpf:
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0]
    return mp.inf if any(b == 0 for _, b in pairs) else -mp.fsum(a * mp.log(b) for a, b in pairs)


def true_kl(p: list[mp.mpf], q: list[mp.mpf]) -> mp.mpf:
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0]
    return mp.inf if any(b == 0 for _, b in pairs) else mp.fsum(a * mp.log(a / b) for a, b in pairs)


def true_js(p: list[mp.mpf], q: list[mp.mpf], weight: float) -> mp.mpf:
    w = mp.mpf(weight)
    m = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
    return w * true_kl(p, m) + (1 - w) * true_kl(q, m)


def true_renyi(p: list[mp.mpf], q: list[mp.mpf], order: float) -> mp.mpf:
    pairs = [(a, b) for a, b in zip(p, q, strict=True) if a > 0]
    if order >= 1 and any(b == 0 for _, b in pairs):
        return mp.inf
    if order == 1:
        return true_kl(p, q)
    if order == INF:
        return max(mp.log(a / b) for a, b in pairs)
    total = mp.fsum(a ** mp.mpf(order) * b ** (1 - mp.mpf(order)) for a, b in pairs if b > 0)
    return mp.inf if total == 0 else mp.log(total) / (mp.mpf(order) - 1)


def true_renyi_entropy(p: list[mp.mpf], order: float) -> mp.mpf:
    if order == 1:
        return true_entropy(p)
    if order == INF:
        return -mp.log(max(p))
    return mp.log(mp.fsum(v ** mp.mpf(order) for v in p if v > 0)) / (1 - mp.mpf(order))
