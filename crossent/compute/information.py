"""Entropy, cross-entropy and divergence of distributions, given as what they are: named, never guessed.

    entropy                H(p)        = -Σ p log p                     renyi_entropy      log Σ p^α / (1 - α)
    cross_entropy_between  H(p, q)     = -Σ p log q = H(p) + KL(p ‖ q)
    kl_divergence          KL(p ‖ q)   = Σ p log p/q                    renyi_divergence   log Σ p^α q^(1-α) / (α - 1)
    js_divergence          w KL(p ‖ m) + (1 - w) KL(q ‖ m)              with m = w p + (1 - w) q
    mutual_information     KL(joint ‖ product of the marginals)         information_gain   KL(posterior ‖ prior)

All of them take ``given`` (one name for what the tensors hold, or a pair of names), ``dim`` and ``unit``; two
distributions broadcast; the result lacks ``dim`` and is float32, or float64 if an input is.

Probabilities and log-probabilities must sum to 1 but for the rounding of their dtype, and are divided by their sum,
so that (1, 1e-12) in float32 is the distribution it was before it was rounded. A probability of exactly 0 and a
log-probability of -inf are classes that cannot be: 0 log 0 = 0, their gradient is 0, and where q cannot be and p can, a
divergence is what its formula says, infinity or not. Logits of NaN, +inf or nothing but -inf make their own row NaN.

Nothing here is a difference of nearly equal numbers (``crossent.compute.distribution`` says how), so close
distributions keep their digits; tests/compute/test_information.py holds it to mpmath. Each function makes a dozen
float64 copies of its inputs on the way.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from crossent.compute.distribution import Distribution, Given, excess, js, kl, kl_terms, log, log_quotient, log_ratio
from crossent.compute.distribution import read as distribution

Unit = Literal["nats", "bits"]
_NATS = {"nats": 1.0, "bits": math.log(2.0)}


def entropy(input: Tensor, *, given: Given, dim: int = -1, unit: Unit = "nats") -> Tensor:
    """Entropy H(p) = -Σ p log p: the cross-entropy of a distribution against itself, the least any model can reach.

    ``input`` holds distributions along ``dim``, as ``given`` names them; the result lacks that dimension and is
    float32, or float64 for float64 input. 0 log 0 = 0. Errors: ``ValueError`` for a negative probability or a row
    that is no distribution. Accuracy: float64 inside, rounded once (tests/compute/test_information.py).
    Source: Shannon 1948, §6.

    >>> entropy(torch.tensor([0.5, 0.25, 0.25]), given="probabilities", unit="bits")
    tensor(1.5000)
    """
    p = distribution(input, given, dim)
    return _finish(-(p.p * _silent(p)).sum(-1), unit, input)


def cross_entropy_between(
    input: Tensor, other: Tensor, *, given: Given | tuple[Given, Given], dim: int = -1, unit: Unit = "nats"
) -> Tensor:
    """H(p, q) = -Σ p log q: the price of coding what follows p (``input``) with the code of q (``other``).

    The same quantity as the loss ``cross_entropy(logits, target)``, in another order: here the truth comes first, and
    both are named by ``given``, one name or a pair. H(p, q) = H(p) + KL(p ‖ q); it is infinite if q is 0 somewhere
    p is not, and 0 log 0 = 0. Errors, dtypes and accuracy as for ``entropy``. Source: Good 1952.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> cross_entropy_between(p, q, given="probabilities")
    tensor(0.8370)
    """
    p, q = _pair(input, other, given, dim, ("input", "other"))
    terms = -p.p * torch.where(p.absent, 0.0, _silent(q))
    return _finish(torch.where(q.absent & ~p.absent, torch.inf, terms).sum(-1), unit, input, other)


def kl_divergence(
    input: Tensor, other: Tensor, *, given: Given | tuple[Given, Given], dim: int = -1, unit: Unit = "nats"
) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q): what it costs to believe q (``other``) where p (``input``) is true.

    ``given`` names what both hold, or is a pair of names. The two broadcast; the result lacks ``dim`` and is float32,
    or float64 if either input is. It is 0 only for equal distributions, infinite if q is 0 somewhere p is not, and
    H(p, q) = H(p) + KL(p ‖ q). The other direction is the other order; PyTorch's ``kl_div`` takes log q first.
    Accuracy: each term is q - p + p log(p / q), which is never negative, so close distributions do not cancel.
    Source: Kullback & Leibler 1951, eq. 2.4.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> kl_divergence(p, q, given="probabilities")
    tensor(0.1438)
    """
    p, q = _pair(input, other, given, dim, ("input", "other"))
    return _finish(kl(p, q), unit, input, other)


def information_gain(
    prior: Tensor, posterior: Tensor, *, given: Given | tuple[Given, Given], dim: int = -1, unit: Unit = "nats"
) -> Tensor:
    """KL(posterior ‖ prior): what was learnt on the way from ``prior`` to ``posterior``.

    ``given`` names what both hold, or is a pair, the prior's first. Never negative, although the entropy may well have
    grown; infinite if the posterior holds possible what the prior did not. Its mean over what can be observed is the
    mutual information, and so is that of the difference of entropies: the gain of a split (of a decision tree) is
    ``mutual_information`` of its counts, branches by classes. Source: Kullback & Leibler 1951, eq. 2.4.

    >>> prior, posterior = torch.tensor([0.25, 0.25, 0.25, 0.25]), torch.tensor([0.5, 0.5, 0.0, 0.0])
    >>> information_gain(prior, posterior, given="probabilities", unit="bits")
    tensor(1.)
    """
    before, after = _pair(prior, posterior, given, dim, ("prior", "posterior"))
    return _finish(kl(after, before), unit, prior, posterior)


def js_divergence(
    input: Tensor,
    other: Tensor,
    *,
    given: Given | tuple[Given, Given],
    weight: float = 0.5,
    dim: int = -1,
    unit: Unit = "nats",
) -> Tensor:
    """Jensen-Shannon: w KL(p ‖ m) + (1 - w) KL(q ‖ m) with the mixture m = w p + (1 - w) q and w the ``weight`` of p.

    What one draw from the mixture tells about which of the two it came from. Always finite: 0 for equal distributions,
    H(w, 1 - w) for disjoint ones, which is log 2 (1 bit) for w = ½; then it is symmetric, and its root is a metric.
    Divided by w it tends to KL(p ‖ q) as w → 0. Errors: ``ValueError`` for a weight that is not between 0 and 1.
    Accuracy: log p/m is worked out from log p/q and never from m, so close distributions do not cancel.
    Source: Lin 1991, eq. 4.1.

    >>> p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    >>> js_divergence(p, q, given="probabilities", unit="bits")
    tensor(0.3113)
    """
    check_weight(weight, "weight")
    p, q = _pair(input, other, given, dim, ("input", "other"))
    return _finish(js(p, q, weight), unit, input, other)


def renyi_entropy(input: Tensor, order: float, *, given: Given, dim: int = -1, unit: Unit = "nats") -> Tensor:
    """Rényi entropy of order α, H_α(p) = log Σ p^α / (1 - α).

    Order 0 counts the classes that can be, 1 is Shannon's entropy, 2 the collision entropy, infinity (``math.inf``)
    -log max p; it never grows with the order. Near α = 1 it is log1p(Σ p expm1((α - 1) log p)) / (1 - α), which neither
    divides 0 by 0 nor cancels. Errors: ``ValueError`` for a negative order. Source: Rényi 1961, eq. 1.21.

    >>> renyi_entropy(torch.tensor([0.5, 0.25, 0.25]), 2, given="probabilities")
    tensor(0.9808)
    """
    _check_order(order)
    p = distribution(input, given, dim)
    log_p, s = _silent(p), order - 1
    if order == 0:
        value = torch.log((~p.absent).sum(-1).to(log_p.dtype)) + 0.0 * log_p.sum(-1)  # NaN rows stay NaN
    elif order == 1:
        value = -(p.p * log_p).sum(-1)
    elif order == math.inf:
        value = -p.log.amax(-1)
    else:
        there = ~p.absent
        far = _logsumexp(order * log_p, there)
        small = (s * log_p).abs() < 1
        terms = torch.where(
            small, p.p * torch.expm1(torch.where(small, s * log_p, 0.0)), torch.exp(order * log_p) - p.p
        )
        value = -_near_or_far(torch.where(there, terms, 0.0).sum(-1), far) / s
    return _finish(value, unit, input)


def renyi_divergence(
    input: Tensor,
    other: Tensor,
    order: float,
    *,
    given: Given | tuple[Given, Given],
    dim: int = -1,
    unit: Unit = "nats",
) -> Tensor:
    """Rényi divergence of order α, D_α(p ‖ q) = log Σ p^α q^(1-α) / (α - 1).

    Order 0 is -log of q's share of what p holds possible, ½ twice the Bhattacharyya distance, 1 is KL, 2 is
    log(1 + χ²), infinity (``math.inf``) is log max p/q. It never falls as the order grows. Where p can be and q cannot
    it is infinite for α ≥ 1; for α < 1 only if the two are disjoint. Errors: ``ValueError`` for a negative order.

    Accuracy: with s = α - 1 it is log1p(s T) / s, where T = Σ p [excess(s r) / s + excess(-r)], r = log p/q, has no
    negative term and becomes KL as s → 0, so neither α near 1 nor p near q cancels. Below ½ the two change places:
    D_α(p ‖ q) = α / (1 - α) · D_(1-α)(q ‖ p). Source: van Erven & Harremoës 2014, eq. 1, prop. 2.

    >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    >>> renyi_divergence(p, q, 2, given="probabilities")
    tensor(0.2877)
    """
    _check_order(order)
    p, q = _pair(input, other, given, dim, ("input", "other"))
    if order == 0:
        # -log Σ q over what p holds possible: log1p of what is missing where little is, a sum where much is.
        missing = torch.where(p.absent, -q.p, 0.0).sum(-1)
        far = _logsumexp(*torch.broadcast_tensors(_silent(q), ~p.absent & ~q.absent))
        value = -_near_or_far(missing, far) + 0.0 * (p.p + q.p).sum(-1)  # NaN rows stay NaN
    elif order < 0.5:
        value = order / (1 - order) * _renyi(q, p, -order)
    else:
        value = _renyi(p, q, order - 1)
    return _finish(value, unit, input, other)


def _renyi(p: Distribution, q: Distribution, s: float) -> Tensor:
    """D_(1+s)(p ‖ q) for s from -½ to infinity."""
    if s == 0:
        return kl(p, q)
    ratio = log_ratio(p, q)
    there, lost = ~(p.absent | q.absent), q.absent & ~p.absent
    if s == math.inf:
        value = torch.where(there, ratio, -torch.inf).amax(-1)
        return torch.where(lost.any(-1), torch.inf, value.clamp(min=0.0))
    reach = s * ratio
    log_power = _silent(p) + reach  # log p^α q^(1-α)
    far = _logsumexp(log_power, there)
    # One term, p [excess(s r) / s + excess(-r)] = (p^α q^(1-α) - p) / s + (q - p), in the form that keeps its digits.
    # Each form is made everywhere, so each is bounded: infinity times 0 would become the NaN of a gradient.
    mild = reach.abs() < 1
    close = mild & (ratio > -1)
    r = torch.where(close, ratio, 0.0)
    in_r = p.p * (excess(s * r) / s + excess(-r))
    in_power = torch.where(
        mild, p.p * torch.expm1(torch.where(mild, reach, 0.0)), torch.exp(log_power.clamp(max=1.0)) - p.p
    )
    terms = torch.where(close, in_r, in_power / s + (q.p - p.p))
    terms = torch.where(p.absent, q.p, terms)
    terms = torch.where(lost, -p.p / s - p.p, terms)
    value = _near_or_far(s * terms.sum(-1), far) / s
    return torch.where(lost.any(-1), torch.inf, value) if s > 0 else value


def mutual_information(input: Tensor, *, given: Given, dims: tuple[int, int] = (-2, -1), unit: Unit = "nats") -> Tensor:
    """Mutual information I(X; Y) = Σ p(x, y) log p(x, y) / (p(x) p(y)): what one of two variables tells of the other.

    ``input`` holds joint tables over ``dims``; the result lacks both. Counts give the plug-in estimate, which is biased
    upwards by about (rows - 1)(columns - 1) / 2N nats (Miller 1955). The gain of a split is that of the counts of
    branches (rows) by classes (columns). 0 for independent variables, exactly so for counts.

    Errors: ``ValueError`` for a table that is no distribution. Accuracy: the ratio is worked out from
    p(x, y) - p(x) p(y), so counts keep all digits (to 2⁵³), and others an absolute 1e-16 in each log-ratio.
    Source: Shannon 1948, §12; Cover & Thomas 2006, eq. 2.28.

    >>> mutual_information(torch.tensor([[5, 0], [0, 5]]), given="counts", unit="bits")
    tensor(1.)
    """
    if input.dim() < 2:
        raise ValueError(f"a joint table has two dimensions or more; input has shape {tuple(input.shape)}.")
    if any(not -input.dim() <= d < input.dim() for d in dims) or len({d % input.dim() for d in dims}) != 2:
        raise ValueError(f"dims must be two different dimensions of a table of {input.dim()}; got {dims}.")
    first, second = dims
    table = input.movedim((first, second), (-2, -1))
    joint = distribution(table.flatten(-2), given)
    mass = (joint.p if joint.linear is None else joint.linear).unflatten(-1, table.shape[-2:])
    rows, columns = mass.sum(-1, keepdim=True), mass.sum(-2, keepdim=True)
    total = rows.sum(-2, keepdim=True)
    there = mass != 0
    product = rows * columns
    ratio = log_quotient(mass * total, product)
    # A product too small for a float64 is 0, but its logarithm is not.
    apart = log(mass) + log(total) - log(rows) - log(columns)
    ratio = torch.where(there, torch.where(product == 0, torch.where(there, apart, 0.0), ratio), 0.0)
    p, q = mass / total, (rows / total) * (columns / total)
    terms = torch.where(there, kl_terms(p, q, ratio), q)
    return _finish(terms.sum((-2, -1)), unit, input)


def _silent(p: Distribution) -> Tensor:
    """log p, and 0 where a class is absent."""
    return torch.where(p.absent, 0.0, p.log)


def _logsumexp(a: Tensor, there: Tensor) -> Tensor:
    """log Σ e^a over the classes that are there; -inf if none is."""
    none = ~there.any(-1, keepdim=True)
    total = torch.where(there | none, a, -torch.inf).logsumexp(-1)
    return torch.where(none.squeeze(-1), -torch.inf, total)


def _near_or_far(change: Tensor, far: Tensor) -> Tensor:
    """log1p(change) where that is within ½ of 0, else ``far``, the same number by another road."""
    near = far.abs() <= 0.5
    return torch.where(near, torch.log1p(torch.where(near, change, 0.0)), far)


def _pair(
    input: Tensor, other: Tensor, given: Given | tuple[Given, Given], dim: int, names: tuple[str, str]
) -> tuple[Distribution, Distribution]:
    given_p, given_q = (given, given) if isinstance(given, str) else given
    p, q = distribution(input, given_p, dim, names[0]), distribution(other, given_q, dim, names[1])
    if p.log.shape[-1] != q.log.shape[-1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same classes along dim {dim}; they have {p.log.shape[-1]} and "
            f"{q.log.shape[-1]}."
        )
    return p, q


def check_weight(weight: float, name: str) -> None:
    """Refuse a share of a mixture that is not between 0 and 1."""
    if not 0 < weight < 1:
        raise ValueError(
            f"{name} must be between 0 and 1, and is {weight}. At either end the Jensen-Shannon divergence is 0 for "
            "all distributions; for its limit, KL, ask for KL."
        )


def _check_order(order: float) -> None:
    if not order >= 0:
        raise ValueError(f"order must be 0 or more (math.inf is one), and is {order}.")


def _finish(value: Tensor, unit: str, *inputs: Tensor) -> Tensor:
    if unit not in _NATS:
        raise ValueError(f"unit must be 'nats' or 'bits'; got {unit!r}.")
    wide = any(input.dtype == torch.float64 for input in inputs)
    return (value / _NATS[unit]).to(torch.float64 if wide else torch.float32)
