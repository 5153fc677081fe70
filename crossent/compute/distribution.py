"""Distributions, and what lies between two of them: log p, log p/q and the divergences, exact however close or sure.

A tensor of numbers does not say whether it holds logits, probabilities, log-probabilities or counts, and guessing
wrong gives a plausible number. So ``given`` says it, and whatever it says becomes a measure e^a, and p = e^a / Σ e^a.
All is float64 along the last dimension. Three things are done so that no digit is lost:

    log p     (a - peak) - log1p(rest), where rest leaves out the greatest: p = 1 - 1e-12 keeps its digits
    log p/q   d - log1p(Σ q expm1(d)) with d = a_p - a_q, where p and q are near: not a difference of logarithms
    KL        Σ (q - p + p log p/q), whose terms are never negative: p · excess(-log p/q) with excess(x) = e^x - 1 - x

A class whose log p is -inf is *absent*: 0 log 0 = 0 there, and its gradient is 0.

All that is asked of a row as a whole is a method of ``Whole``, so that the columns may lie on several machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from crossent.compute.backends.reference import wide
from crossent.compute.rows import is_compiled, refuse_nested_forward
from crossent.compute.target import visible

Given = Literal["logits", "probabilities", "log_probabilities", "counts"]
GIVEN = ("logits", "probabilities", "log_probabilities", "counts")


@dataclass(frozen=True)
class Whole:
    """What is asked of all columns of a row: here they are the last dimension, which each answer keeps, of size 1.

    What is asked of several tensors at once is answered together: in one message, if columns lie on several machines.
    """

    def classes(self, x: Tensor) -> int:
        """How many columns a row has."""
        return x.shape[-1]

    def widest(self, x: Tensor) -> int:
        """How many columns of a row are in one place, at most."""
        return x.shape[-1]

    def greatest(self, *x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The greatest number of each, and where it first is, for ``at`` and ``put``."""
        return [each.max(-1, keepdim=True) for each in x]

    def at(self, where: Tensor, *x: Tensor) -> Sequence[Tensor]:
        """The number of each that is there."""
        return [each.gather(-1, where) for each in x]

    def put(self, x: Tensor, where: Tensor, number: Tensor | float) -> Tensor:
        """The same row with another number there."""
        return x.scatter(-1, where, number)

    def sums(self, *x: Tensor) -> Sequence[Tensor]:
        """The sum of each, in the wide dtype."""
        return [each.sum(-1, keepdim=True, dtype=wide(each)) for each in x]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of one."""
        return self.sums(x)[0]

    def parted(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers (…, k) of the columns ``index`` (…, k), and the row with -inf in their places."""
        return x.gather(-1, index), x.scatter(-1, index, -torch.inf)

    def answered(self, x: Tensor) -> Tensor:
        """A number that was made of whole rows, for whoever asks no more of them."""
        return x


WHOLE = Whole()
"""Functions are given None in its place: a compiler takes no object for a constant."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """Distributions along the last dimension: ``log`` p, where it is first the greatest, and what it was made of.

    p is proportional to e^(``measure`` / ``temperature``), and to ``linear`` where the numbers came as such.
    """

    log: Tensor
    first: Tensor
    measure: Tensor
    linear: Tensor | None = None
    temperature: float = 1.0
    row: Whole | None = None

    @property
    def whole(self) -> Whole:
        """What is asked of all classes."""
        return self.row or WHOLE

    @property
    def p(self) -> Tensor:
        """The probabilities."""
        return self.log.exp()

    @property
    def absent(self) -> Tensor:
        """Where a class cannot be. NaN is not absent: it makes its row NaN."""
        return self.log == -torch.inf


def read(input: Tensor, given: Given, dim: int = -1, name: str = "input") -> Distribution:
    """The distributions along ``dim``, which becomes the last, of what ``given`` says the tensor holds."""
    if given not in GIVEN:
        raise ValueError(
            f"given must be 'logits', 'probabilities', 'log_probabilities' or 'counts'; got {given!r}. "
            "It is named and never guessed, because a wrong guess looks like a right number."
        )
    if input.dim() == 0 or input.shape[dim] == 0:
        raise ValueError(f"{name} of shape {tuple(input.shape)} holds no distribution along dim {dim}.")
    a = input.movedim(dim, -1).to(wide(input))
    if given in ("logits", "log_probabilities"):
        if given == "log_probabilities":
            _refuse_unless_one(a.exp().sum(-1), input, name)
        return of_measure(a)
    _refuse_negative(a, given, name)
    if given == "probabilities":
        _refuse_unless_one(a.sum(-1), input, name)
    elif visible(a) and bool((a.sum(-1) == 0).any()):
        raise ValueError(f"{name} holds counts that are all 0 along dim {dim}: nothing was counted there.")
    return of_linear(a)


def of_measure(a: Tensor, temperature: float = 1.0) -> Distribution:
    """The distribution proportional to e^(a / temperature), a in float64."""
    return of_measures(a, temperature=temperature)[0]


def of_measures(*a: Tensor, temperature: float = 1.0, row: Whole | None = None) -> list[Distribution]:
    """The same of several, asked of their rows together."""
    found = (row or WHOLE).greatest(*(each.detach() for each in a))
    below = [(each - _level(peak)) / temperature for each, (peak, _) in zip(a, found, strict=True)]
    firsts = [first for _, first in found]
    logs = _log_softmax(below, firsts, row)
    return [Distribution(*each, None, temperature, row) for each in zip(logs, firsts, a, strict=True)]


def of_linear(p: Tensor) -> Distribution:
    """The distribution proportional to p, in float64 and not negative."""
    return replace(of_measure(log(p)), linear=p)


def _level(peak: Tensor) -> Tensor:
    """What is taken from all of a row: NaN of one with +inf, or nothing above -inf."""
    return torch.where(peak.isfinite(), peak, torch.nan)


def log(p: Tensor) -> Tensor:
    """The logarithm, with a gradient of 0 where p is 0."""
    return torch.where(p == 0, -torch.inf, torch.log(torch.where(p == 0, 1.0, p)))


def log_quotient(x: Tensor, y: Tensor) -> Tensor:
    """Elementwise log x/y of positive numbers: through their difference where they are close. 0 where either is 0."""
    x, y = torch.broadcast_tensors(x, y)
    there = (x != 0) & (y != 0)
    x, y = torch.where(there, x, 1.0), torch.where(there, y, 1.0)
    close = ((x - y).abs() < 0.5 * y) & (y > 1e-300)
    near = torch.log1p(torch.where(close, x - y, 0.0) / torch.where(close, y, 1.0))
    return torch.where(close, near, torch.log(x) - torch.log(y))


def log_ratio(p: Distribution, q: Distribution) -> Tensor:
    """log p/q where both are there, and 0 where either is absent.

    Where the two are near, the normalisers are compared through the differences of the measures and not through
    their own logarithms: logits that differ by 1e-12 have a ratio with all its digits.
    """
    there = ~(p.absent | q.absent)
    far = torch.where(there, p.log, 0.0) - torch.where(there, q.log, 0.0)
    if p.linear is not None and q.linear is not None:
        d = log_quotient(*_comparable(p.linear, q.linear))
    elif p.temperature == q.temperature:
        d = _difference(p.measure, q.measure, q.first, there, p.whole) / p.temperature
    else:
        return far
    small = d.detach().abs() <= 30
    d = torch.where(small & there, d, 0.0)
    # Not near are rows with a ratio that is not small, and those that the sum of q leaves something out of.
    out = (there & ~small) | (q.absent & ~p.absent)
    mean, left_out = p.whole.sums(q.p * torch.where(p.absent, -1.0, torch.expm1(d)), out.to(d.dtype))
    near = (mean.abs() <= 0.5) & (left_out == 0)
    ratio = d - torch.log1p(torch.where(near, mean, 0.0))
    return torch.where(there, torch.where(near, ratio, far), 0.0)


def _difference(a: Tensor, b: Tensor, most: Tensor, there: Tensor, row: Whole) -> Tensor:
    """a - b, but for a number that is the same for all classes, where the two are there; b is greatest at ``most``."""
    a, b = torch.where(there, a, 0.0), torch.where(there, b, 0.0)
    most = most.expand(*a.shape[:-1], most.shape[-1])
    a_most, b_most = row.at(most, a.detach(), b.detach())
    # Close logits are subtracted first, which is exact; logits with offsets of their own first lose those.
    close = (a_most - b_most).abs() <= 1
    return torch.where(close, (a - b) - (a_most - b_most), (a - a_most) - (b - b_most))


def _comparable(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, times the other's sum if the sums are far apart: that of counts is exact, and nothing is divided."""
    of_x, of_y = x.sum(-1, keepdim=True).detach(), y.sum(-1, keepdim=True).detach()
    apart = (of_x - of_y).abs() > 0.1 * of_y
    return x * torch.where(apart, of_y, 1.0), y * torch.where(apart, of_x, 1.0)


def kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q) of every row, in nats."""
    terms = kl_terms(p.p, q.p, log_ratio(p, q))
    terms = torch.where(p.absent, q.p, terms)
    return p.whole.sum(torch.where(q.absent & ~p.absent, torch.inf, terms)).squeeze(-1)


def kl_terms(p: Tensor, q: Tensor, ratio: Tensor) -> Tensor:
    """The terms q - p + p log p/q of a divergence of (…, v): none is negative, and their sum is Σ p log p/q."""
    close = ratio > -1
    near = p * excess(torch.where(close, -ratio, 0.0))
    return torch.where(close, near, (q - p) + p * ratio)  # where q > e p nothing cancels, and e^-ratio may overflow


def js(p: Distribution, q: Distribution, weight: float) -> Tensor:
    """w KL(p ‖ m) + (1 - w) KL(q ‖ m) of every row with m = w p + (1 - w) q, in nats."""
    w, other = weight, 1 - weight
    ratio = log_ratio(p, q)
    m = w * p.p + other * q.p
    of_p = kl_terms(p.p, m, _log_over_mixture(ratio, w, other))
    of_q = kl_terms(q.p, m, _log_over_mixture(-ratio, other, w))
    terms = w * of_p + other * of_q
    # Where one of the two is absent, the other is its share of the mixture: log 1/w remains.
    terms = torch.where(p.absent, -other * math.log1p(-w) * q.p, terms)
    terms = torch.where(q.absent, -w * math.log(w) * p.p, terms)
    return p.whole.sum(terms).squeeze(-1)


def _log_over_mixture(ratio: Tensor, w: float, other: float) -> Tensor:
    """log p/m for log p/q: -log(w + (1 - w) q/p), through what it lacks to 1 where p and q are close."""
    close = ratio.abs() <= 1
    near = -torch.log1p(other * torch.expm1(torch.where(close, -ratio, 0.0)))
    above, below = ratio.clamp(min=0.0), ratio.clamp(max=0.0)  # one of them is 0: neither exponential can overflow
    far = below - torch.log(w * torch.exp(below) + other * torch.exp(-above))
    return torch.where(close, near, far)


def _log_softmax(below: list[Tensor], firsts: list[Tensor], given: Whole | None) -> list[Tensor]:
    """log softmax of each, of which nothing is above 0: value and gradient with all digits where p is near 1."""
    row = given or WHOLE
    rests = row.sums(*(row.put(torch.exp(a.detach()), first, 0.0) for a, first in zip(below, firsts, strict=True)))
    kind = _LogSoftmax if is_compiled() else _LogSoftmaxForward
    return [kind.apply(*each, given) for each in zip(below, firsts, rests, strict=True)]


class _LogSoftmax(torch.autograd.Function):
    """below - log1p(rest), with the gradient that ``rest`` would have; ``first`` is 0 in below, and not in the rest."""

    generate_vmap_rule = True

    @staticmethod
    def forward(below: Tensor, first: Tensor, rest: Tensor, given: Whole | None) -> Tensor:
        return below - torch.log1p(rest)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])
        ctx.row = inputs[3] or WHOLE

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        log_p, first = ctx.saved_tensors
        # dz_j = g_j (1 - p_j) - p_j Σ_{i≠j} g_i; only at the greatest class could the g_j taken out of the sum be most
        # of it, so there the others are added up by themselves.
        return -g * torch.expm1(log_p) - log_p.exp() * _others(g, first, ctx.row), None, None, None


class _LogSoftmaxForward(_LogSoftmax):
    """The same with a forward derivative, which torch.compile cannot see through."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _LogSoftmax.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output, inputs[1])

    @staticmethod
    def jvp(ctx: Any, t: Tensor, *_: None) -> Tensor:
        refuse_nested_forward()
        log_p, first = ctx.saved_tensors
        # t_j (1 - p_j) - Σ_{i≠j} p_i t_i
        return -t * torch.expm1(log_p) - _others(log_p.exp() * t, first, ctx.row)


def _others(x: Tensor, first: Tensor, row: Whole) -> Tensor:
    """Σ_{i≠j} x_i for every j: at the greatest class a sum of its own, in which nothing cancels."""
    every, followers = row.sums(x, row.put(x, first, 0.0))
    return row.put(every - x, first, followers)


def excess(x: Tensor) -> Tensor:
    """e^x - 1 - x, which is x²/2 near 0 and never negative, with all its digits; its derivative is e^x - 1."""
    return (_Excess if is_compiled() else _ExcessForward).apply(x)


class _Excess(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        near = x.abs() < 0.125
        small = torch.where(near, x, 0.0)
        series = torch.ones_like(x)
        for k in range(11, 2, -1):  # Σ x^k / k! from k = 2: what is left out is 0.125^10 · 2/12!, 4e-18, of it
            series.mul_(small).mul_(1 / k).add_(1)
        return torch.where(near, series.mul_(small).mul_(small).mul_(0.5), torch.expm1(x) - x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.expm1(x)


class _ExcessForward(_Excess):
    """The same with a forward derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, t: Tensor) -> Tensor:
        refuse_nested_forward()
        (x,) = ctx.saved_tensors
        return t * torch.expm1(x)


def _refuse_negative(p: Tensor, given: str, name: str) -> None:
    if not visible(p):
        return
    wrong = ~((p >= 0) & (p < torch.inf))
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name} holds {given} that are negative, infinite or NaN; the first, along the last dimension, is at "
            f"{at}: {float(p[at])}. Are these logits?"
        )


def tolerance(input: Tensor) -> float:
    """How far a sum of probabilities, stored in input's dtype, may be from 1 by rounding alone."""
    # Rounding v numbers near 1/v to their dtype moves the sum by at most half an ulp of 1 and a little.
    return max(4 * torch.finfo(input.dtype).eps, 1e-6) if input.dtype.is_floating_point else 1e-6


def _refuse_unless_one(total: Tensor, input: Tensor, name: str) -> None:
    if not visible(total):
        return
    wrong = ~((total - 1).abs() <= tolerance(input))
    if bool(wrong.any()):
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name} should hold distributions that sum to 1; {int(wrong.sum())} do not, first at "
            f"{at}: {float(total[at])}. "
            "Pass given='logits' or given='counts' if that is what they are."
        )
