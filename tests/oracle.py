"""The truth, by another road: mpmath with 60 digits, from probabilities, sharing no code with the package.

Logits go in exactly as they are stored (a float is a rational number), so the only error left is that of the
implementation under test. Slow, and meant to be.
"""

from __future__ import annotations

import mpmath as mp

mp.mp.dps = 60


def probabilities(z: list[float]) -> list[mp.mpf]:
    power = [mp.mpf(0) if v == float("-inf") else mp.exp(mp.mpf(v)) for v in z]
    total = mp.fsum(power)
    return [v / total for v in power]


def others(z: list[float], y: int) -> mp.mpf:
    """1 - p_y, added up from the other columns: exact however small."""
    p = probabilities(z)
    return mp.fsum(p[:y] + p[y + 1 :])


def nll(z: list[float], y: int) -> mp.mpf:
    p = probabilities(z)[y]
    return mp.inf if p == 0 else -mp.log(p)


def _log(v: mp.mpf) -> mp.mpf:
    return -mp.inf if v == 0 else mp.log(v)


def loss(name: str, z: list[float], y: int, weight: list[float] | None = None) -> mp.mpf:
    """Every public loss with the knobs of ``KNOBS``, written from its paper's formula in p."""
    p, miss = probabilities(z), others(z, y)
    allowed = [j for j, v in enumerate(z) if v != float("-inf")]
    entropy = -mp.fsum(v * _log(v) for v in p if v > 0)
    lse = mp.log(mp.fsum(mp.exp(mp.mpf(z[j])) for j in allowed))
    if name == "NLL":
        return -_log(p[y])
    if name == "Smoothed":
        q = {j: mp.mpf("0.9") * (j == y) + mp.mpf("0.1") / len(allowed) for j in {*allowed, y}}
        return mp.fsum(-v * _log(p[j]) for j, v in q.items())
    if name == "ClassWeighted":
        return mp.mpf(weight[y]) * -_log(p[y])
    if name == "Focal":
        return miss**2 * -_log(p[y])
    if name == "Poly1":
        return -_log(p[y]) + miss
    if name == "GeneralisedCE":
        return (1 - p[y] ** mp.mpf("0.7")) / mp.mpf("0.7")
    if name == "LogZ":
        return lse**2
    if name == "Confidence":
        return -entropy
    if name == "Unlikelihood":
        return -_log(miss)
    if name == "Margin":
        moved = list(z)
        shifted = [
            mp.exp(mp.mpf(v) - (mp.mpf(0.35) if j == y else 0)) if v != float("-inf") else mp.mpf(0)
            for j, v in enumerate(moved)
        ]
        return -_log(shifted[y] / mp.fsum(shifted))
    raise KeyError(f"the oracle does not know the loss {name!r}: write its formula here")


def gradient(name: str, z: list[float], y: int, weight: list[float] | None = None) -> list[mp.mpf]:
    """Central differences with a step of 1e-20 and 60 digits: right to about 40 digits relative to 1."""
    step = mp.mpf(10) ** -20

    def at(j: int, sign: int) -> mp.mpf:
        moved = [mp.mpf(v) if v != float("-inf") else v for v in z]
        moved[j] = moved[j] + sign * step
        return loss(name, moved, y, weight)

    return [mp.mpf(0) if v == float("-inf") else (at(j, 1) - at(j, -1)) / (2 * step) for j, v in enumerate(z)]
