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


def nll_if(z: list[float], y: int, logit: mp.mpf) -> mp.mpf:
    """The nll of class y once its logit is another one."""
    return nll([logit if j == y else v for j, v in enumerate(z)], y)


def arcface(cosine: mp.mpf, margin: mp.mpf) -> mp.mpf:
    """cos(θ + m) by way of the angle; past π the authors' line."""
    angle = mp.acos(cosine)
    return mp.cos(angle + margin) if angle + margin < mp.pi else cosine - margin * mp.sin(margin)


COUNTS = [1000, 10, 300, 50, 5, 120]


def loss(name: str, z: list[float], y: int, weight: list[float] | None = None) -> mp.mpf:
    """Every public loss with the knobs of ``KNOBS``, written from its paper's formula in p.

    ``weight`` are class weights; a term of the target has that of its class, the uniform part that of each class.
    """
    if weight is not None and name not in ("Smoothed", "ClassWeighted"):
        return mp.mpf(weight[y]) * loss(name, z, y)
    w = [mp.mpf(1)] * len(z) if weight is None else [mp.mpf(v) for v in weight]
    p, miss = probabilities(z), others(z, y)
    allowed = [j for j, v in enumerate(z) if v != float("-inf")]
    entropy = -mp.fsum(v * _log(v) for v in p if v > 0)
    lse = mp.log(mp.fsum(mp.exp(mp.mpf(z[j])) for j in allowed))
    if name == "NLL":
        return -_log(p[y])
    if name == "Smoothed":
        q = {j: mp.mpf("0.9") * (j == y) + mp.mpf("0.1") / len(allowed) for j in {*allowed, y}}
        return mp.fsum(-v * w[j] * _log(p[j]) for j, v in q.items())
    if name == "ClassWeighted":
        return w[y] * -_log(p[y])
    if name == "Focal":
        return miss**2 * -_log(p[y])
    if name == "Asymmetric":
        r = max(miss - mp.mpf(0.05), mp.mpf(0))
        return -(r**4) * _log(1 - r) if y == 0 else miss * -_log(p[y])
    if name == "Poly1":
        return -_log(p[y]) + miss
    if name == "GeneralisedCE":
        return (1 - p[y] ** mp.mpf("0.7")) / mp.mpf("0.7")
    if name == "SymmetricCE":
        reverse = -mp.fsum(p[j] * (0 if j == y else -4) for j in range(len(p)))
        return mp.mpf("0.1") * -_log(p[y]) + reverse
    if name == "TaylorCE":
        return mp.fsum(miss**i / i for i in (1, 2, 3))
    if name == "LogZ":
        return lse**2
    if name == "Confidence":
        return -entropy
    if name == "Unlikelihood":
        return -_log(miss)
    if name == "Margin":
        return nll_if(z, y, mp.mpf(z[y]) - mp.mpf(0.35))
    if name == "LDAM":
        return nll_if(z, y, mp.mpf(z[y]) - mp.mpf(0.5) * mp.mpf(min(COUNTS)) ** 0.25 / mp.mpf(COUNTS[y]) ** 0.25)
    if name == "ArcFace":
        cosine = mp.mpf(z[y]) / 30
        return mp.nan if abs(cosine) > 1 else nll_if(z, y, 30 * arcface(cosine, mp.mpf(0.5)))
    if name == "Brier":
        return miss**2 + mp.fsum(v**2 for j, v in enumerate(p) if j != y)
    if name == "Hinge":
        return max(mp.mpf(0), 1 + max(mp.mpf(v) for j, v in enumerate(z) if j != y) - mp.mpf(z[y]))
    raise KeyError(f"the oracle does not know the loss {name!r}: write its formula here")


def slopes(name: str, z: list[float], y: int, weight: list[float] | None = None) -> list[tuple[mp.mpf, mp.mpf]]:
    """The slope of each logit from the left and from the right: the same but where the loss has a kink.

    Differences with a step of 1e-20 and 60 digits, right to about 20 digits relative to 1.
    """
    step, here = mp.mpf(10) ** -20, loss(name, z, y, weight)

    def to(j: int, move: mp.mpf) -> mp.mpf:
        moved = [mp.mpf(v) if v != float("-inf") else v for v in z]
        moved[j] = moved[j] + move
        return (loss(name, moved, y, weight) - here) / move

    return [(mp.mpf(0),) * 2 if v == float("-inf") else (to(j, -step), to(j, step)) for j, v in enumerate(z)]
