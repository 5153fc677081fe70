"""Distillation: what a student's logits cost against a teacher's whole distribution, or the few best of it.

    forward_kl    KL(teacher ‖ student)     covers all that the teacher holds possible
    reverse_kl    KL(student ‖ teacher)     stays where the teacher is sure
    jsd           β KL(teacher ‖ m) + (1 - β) KL(student ‖ m),  m = β teacher + (1 - β) student

The first is cross-entropy less the teacher's entropy, which does not depend on the student: the gradient is that of
``cross_entropy(student, teacher's probabilities)``, but the value is 0 for a perfect student, and keeps its digits on
the way there because it is not worked out as that difference (``crossent.compute.distribution``).

A teacher's k best columns are k + 1 classes, the last being "any other", for teacher and student alike. As a row of
logits the student's are (z at the k columns, log Σ e^z of all others), so nothing is taken from 1 on its side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from crossent.compute.backends.reference import BLOCK, wide
from crossent.compute.distribution import GIVEN, WHOLE, Given, Whole, js, kl, log, of_measures, tolerance
from crossent.compute.information import check_weight
from crossent.compute.linear.derivative import pushed
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.rows import _folded, refuse_nested_forward
from crossent.compute.target import visible
from crossent.errors import some

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
Rest = Literal["other", "renormalise"]
KINDS = ("forward_kl", "reverse_kl", "jsd")
RESTS = ("other", "renormalise")


def distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    given: Given = "logits",
    index: Tensor | None = None,
    rest: Rest = "other",
    kind: Kind = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    temperature_squared: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
    empty: str = "zero",
) -> Tensor:
    """The divergence, in nats, of a student from its teacher, in every row.

        p = softmax(teacher / τ), q = softmax(student / τ)         mean: Σ D(p, q) / number of rows that count

    Args:
        student: logits (…, C), classes last, as language models have them; any floating dtype.
        teacher: (…, C), what ``given`` says; or (…, k), its values at the columns ``index``.
        given: what the teacher's numbers are: ``"logits"``, ``"log_probabilities"``, ``"probabilities"`` or
            ``"counts"``. It is never guessed.
        index: (…, k) different columns: the teacher's best, as an inference server sends them.
        rest: what becomes of the teacher's other columns when ``index`` is given. ``"other"``: they are one class of
            mass 1 - Σ p, against the sum of the student's others; the divergence is then never more than the one from
            the whole teacher. Values that sum to 1 (a sure teacher's do when rounded to 32 bits) leave them nothing,
            and reverse KL is infinite. ``"renormalise"``: they are 0, and p is divided by its sum.
        kind: ``"forward_kl"``, ``"reverse_kl"`` or ``"jsd"``.
        temperature: τ, which both are divided by. Probabilities are tempered as their logarithms. A teacher of k
            columns and ``"other"`` cannot be (its other columns are not known), and must come with the temperature
            it was asked at.
        beta: β, the teacher's share of the mixture of ``"jsd"``: divided by β it tends to forward KL as β → 0, and
            divided by 1 - β to reverse KL as β → 1.
        temperature_squared: multiply by τ², which keeps the gradient's size as τ grows; wanted where a loss on labels
            is added. Off, because the number is then no divergence any more.
        mask: bool (…), True for rows that count. The others are not read: a NaN there reaches nothing and their
            gradient is +0.
        reduction, empty: as in ``cross_entropy``; ``"mean"`` is over rows (PyTorch's ``kl_div`` divides by N · C).

    Returns:
        A scalar, or the rows (…): float64 if an input is float64, else float32.

    Raises:
        ValueError, TypeError, IndexError: a sentence that says which argument, what came, where, and what to do.

    Special values: as in ``kl_divergence``. A column of probability 0 for the teacher is a class that cannot be; where
    the student's -inf meets a teacher above 0, forward KL is infinite; in the other direction reverse KL is.

    Accuracy: float64 inside, value and gradient rounded once, also where student and teacher agree to 1e-9 or are
    sure to 1 - 1e-12 (tests/compute/test_distillation.py). Gradients of the teacher are there if it asks for them.
    Cost and memory: about fifty passes of plain torch over a block of rows, made again for the gradient; some
    forty float64 copies of one block (2¹⁸ logits, or one row) at a time, and then the gradient, held twice while its
    blocks are joined. With ``index`` all but the student's sum of others is over k + 1 columns. Where only the gradient
    matters, ``cross_entropy`` of the student against the teacher's probabilities has that of forward KL, many times
    faster.

    Source: Hinton et al. 2015, eq. 1 and §2 (temperature, τ²); Gu et al. 2024, eq. 1 (reverse KL); Agarwal et al.
    2024, eq. 1 (generalised JSD).

    >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    >>> distillation(student, teacher)
    tensor(0.3775)
    >>> distillation(student, teacher, kind="jsd", temperature=2.0)
    tensor(0.0225)
    >>> distillation(student, torch.tensor([[0.6, 0.3]]), given="probabilities", index=torch.tensor([[0, 1]]))
    tensor(0.1416)
    """
    check_reduction(reduction, empty)
    check_words(given, index, rest, kind, temperature, beta)
    check_shapes(student, teacher, index, mask, student.shape[-1] if student.dim() else 0)
    divergence = Divergence(kind, given in ("probabilities", "counts"), rest, temperature, beta)
    value, live = row_divergences(student, teacher, given, index, mask, divergence)
    if temperature_squared:
        value = value * temperature**2
    wanted = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    return reduce(value, live.to(value.dtype), reduction, empty, student.shape[:-1], wanted)


def row_divergences(
    student: Tensor, teacher: Tensor, given: str, index: Tensor | None, mask: Tensor | None, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """(the divergence, whether it counts) of every row (n,), once it has been seen that the teacher's rows are some."""
    live = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask
    live, row = live.reshape(-1), divergence.whole
    z, t = (x.reshape(live.shape[0], x.shape[-1]) for x in (student, teacher))
    columns = None if index is None else index.reshape(t.shape).long()
    _check_teacher(t, live, given, None if index is None else divergence.rest, row if index is None else WHOLE)
    if columns is not None:
        _check_columns(columns, live, row.classes(z))
    if torch.compiler.is_compiling():  # a compiler makes its own blocks
        value = divergence(z, t, columns, live)
    else:
        value = _Blocks.apply(z, t, columns, live, divergence)
    return value, live


@dataclass(frozen=True)
class Divergence:
    """The divergence (n,) of rows z (n, v) from a teacher's rows t, (n, v), or (n, k) at the columns ``index``."""

    kind: str
    linear: bool
    rest: str
    temperature: float
    beta: float
    row: Whole | None = None
    """What is asked of all columns of a row, if they are not all here."""

    @property
    def whole(self) -> Whole:
        """The same."""
        return self.row or WHOLE

    def __call__(self, z: Tensor, t: Tensor, index: Tensor | None, live: Tensor) -> Tensor:
        """Rows that are not live are not read, and are 0."""
        z, t = z.to(wide(z)), t.to(wide(t))
        z = torch.where(live.unsqueeze(-1), z, 0.0)
        t = torch.where(live.unsqueeze(-1), t, 1.0 if self.linear else 0.0)
        a = log(t) if self.linear else t
        row = self.whole
        if index is not None:
            index = torch.where(live.unsqueeze(-1), index, torch.arange(index.shape[-1], device=index.device))
            if index.shape[-1] < row.classes(z):
                z = _with_others(z, index, self.temperature, row)
                a = _with_rest(a) if self.rest == "other" else torch.nn.functional.pad(a, (0, 1), value=-torch.inf)
            else:  # all columns: nothing is left, and what 1 - Σ p would say is rounding
                z = row.answered(row.parted(z, index)[0])
            row = WHOLE  # k + 1 columns, whoever has the others
        q, p = of_measures(z, a, temperature=self.temperature, row=row)
        if self.kind == "forward_kl":
            value = kl(p, q)
        elif self.kind == "reverse_kl":
            value = kl(q, p)
        else:
            value = js(p, q, self.beta)
        return torch.where(live, row.answered(value), 0.0)


def _with_others(z: Tensor, index: Tensor, temperature: float, row: Whole) -> Tensor:
    """Logits (n, k + 1) of k columns and of all others together: τ log Σ e^(z/τ), -inf if there are none."""
    best, others = row.parted(z, index)
    ((peak, _),) = row.greatest(others.detach())
    none = peak == -torch.inf
    below = torch.where(none, 0.0, others) - torch.where(none, 0.0, peak)
    total = peak + temperature * torch.log(row.sum(torch.exp(below / temperature)))
    return row.answered(torch.cat((best, torch.where(none, -torch.inf, total)), -1))


def _with_rest(log_p: Tensor) -> Tensor:
    """Log-probabilities (n, k + 1) of k columns and of what they leave, 1 - Σ p, beginning with 1 - the greatest."""
    first = log_p.argmax(-1, keepdim=True)
    followers = log_p.exp().scatter(-1, first, 0.0).sum(-1, keepdim=True)
    rest = -torch.expm1(log_p.gather(-1, first)) - followers
    return torch.cat((log_p, log(rest.clamp(min=0.0))), -1)  # below 0 by rounding only: more has been refused


class _Blocks(torch.autograd.Function):
    """The divergence a block of rows at a time, forwards and again backwards: no copy is larger than a block."""

    @staticmethod
    def forward(z: Tensor, t: Tensor, index: Tensor | None, live: Tensor, divergence: Divergence) -> Tensor:
        return torch.cat([divergence(*rows) for rows in _rows(divergence.whole, z, t, index, live)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.divergence = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, t, index, live = ctx.saved_tensors
        for_z, for_t = ctx.needs_input_grad[:2]
        dz, dt = [], []
        for z_, t_, index_, live_, g_ in _rows(ctx.divergence.whole, z, t, index, live, g):
            if for_z:
                dz += torch.func.vjp(lambda z, t=t_, i=index_, m=live_: ctx.divergence(z, t, i, m), z_)[1](g_)
            if for_t:
                dt += torch.func.vjp(lambda t, z=z_, i=index_, m=live_: ctx.divergence(z, t, i, m), t_)[1](g_)
        return torch.cat(dz) if for_z else None, torch.cat(dt) if for_t else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        refuse_nested_forward()
        moved: list[Tensor] = []
        for z, t, index, live, *along in _rows(ctx.divergence.whole, *ctx.saved_tensors, *tangents[:2]):
            of = partial(_alone, ctx.divergence, index, live)
            moved += pushed(of, (z, t), along)
        return torch.cat(moved)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return _Blocks.apply(*_folded(info.batch_size, in_dims, inputs)).unflatten(0, (info.batch_size, -1)), 0


def _alone(divergence: Divergence, index: Tensor | None, live: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    return (divergence(z, t, index, live),)


def _rows(row: Whole, z: Tensor, *tensors: Tensor | None) -> list[tuple]:
    """The tensors cut into the same blocks of rows, about BLOCK logits each; one block where there are no rows."""
    rows = max(1, BLOCK // max(1, row.widest(z)))
    starts = range(0, max(1, z.shape[0]), rows)
    return [tuple(None if t is None else t[i : i + rows] for t in (z, *tensors)) for i in starts]


def check_words(given: str, index: Tensor | None, rest: str, kind: str, temperature: float, beta: float) -> None:
    """Refuse words and numbers that mean nothing, or not together."""
    for name, word, words in (("given", given, GIVEN), ("rest", rest, RESTS), ("kind", kind, KINDS)):
        if word not in words:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}; got {word!r}.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be greater than 0 and finite, and is {temperature}.")
    if kind == "jsd":
        check_weight(beta, "beta")
    if index is None:
        return
    if rest == "other" and given not in ("probabilities", "log_probabilities"):
        raise ValueError(
            f"a teacher of k columns given as {given} does not say what its other columns hold: pass "
            "given='log_probabilities' or 'probabilities', or rest='renormalise'."
        )
    if rest == "other" and temperature != 1:
        raise ValueError(
            f"a teacher of k columns cannot be brought to temperature {temperature}: how its other columns share their "
            "mass is not known. Ask the teacher at that temperature and pass student / temperature, or pass "
            "rest='renormalise'."
        )
    if rest == "renormalise" and kind == "reverse_kl":
        raise ValueError(
            "reverse_kl is infinite against a teacher whose other columns are 0, because the student's are not: pass "
            "rest='other', or another kind."
        )


def check_shapes(
    student: Tensor, teacher: Tensor, index: Tensor | None, mask: Tensor | None, classes: int | None
) -> None:
    """Refuse tensors that do not fit together; None where nobody knows yet how many classes there are."""
    for name, tensor in (("student", student), ("teacher", teacher)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must hold floating-point numbers; it is {_word(tensor.dtype)}.")
    if student.dim() == 0 or classes == 0:
        raise ValueError(f"student of shape {tuple(student.shape)} has no classes: logits are (…, C).")
    like, got = tuple(student.shape), tuple(teacher.shape)
    if index is None and got != like:
        raise ValueError(
            f"teacher must have the shape of student, {like}; it has {got}. A teacher of k columns needs their index."
        )
    if index is not None:
        alike = tuple(index.shape) == got and len(got) == len(like) and got[:-1] == like[:-1]
        if not alike or got[-1] < 1 or (classes is not None and got[-1] > classes):
            most = "the number of classes" if classes is None else classes
            raise ValueError(
                f"index and teacher must have the shape {(*like[:-1], 'k')} with k from 1 to {most}, for a student "
                f"of shape {like}; they have {tuple(index.shape)} and {got}."
            )
        if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            raise TypeError(
                f"index must hold integers, the columns of the teacher's values; it is {_word(index.dtype)}."
            )
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != like[:-1]):
        raise ValueError(
            f"mask must be bool of shape {like[:-1]}, True for rows that count (target != ignore_index); it is "
            f"{_word(mask.dtype)} of shape {tuple(mask.shape)}."
        )


def _check_teacher(t: Tensor, live: Tensor, given: str, rest: str | None, row: Whole) -> None:
    """Refuse rows that are not what ``given`` says: with ``rest`` they may sum to less than 1."""
    if given == "logits" or not visible(t) or not visible(live):
        return
    p = t.detach().exp() if given == "log_probabilities" else t.detach()
    total, wrong = (x.squeeze(-1) for x in row.sums(p, (~((p >= 0) & (p < torch.inf))).to(p.dtype)))
    what = f"{given} that are negative, infinite or NaN"
    wrong = wrong > 0
    if not bool((wrong & live).any()):
        if given == "counts":
            what, wrong = "counts that are all 0", total == 0
        elif rest is None:
            what, wrong = f"{given} that do not sum to 1", (total - 1).abs() > tolerance(t)
        else:
            what, wrong = f"{given} that sum to more than 1, or to 0", (total > 1 + tolerance(t)) | (total == 0)
    rows = (wrong & live).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"teacher holds {what}, in row {some(rows)}; the first sums to {float(total[rows[0]]):.9g}. "
            "Say with given= what the numbers are, and mask the rows that do not count."
        )


def _check_columns(index: Tensor, live: Tensor, classes: int) -> None:
    if not visible(index) or not visible(live):
        return
    outside = ((index < 0) | (index >= classes)).any(-1) & live
    if bool(outside.any()):
        rows = outside.nonzero().flatten().tolist()
        raise IndexError(
            f"index has columns that are no class of the student, in row {some(rows)}: {index[rows[0]].tolist()}. With "
            f"{classes} columns of logits they are 0 to {classes - 1}; do student and teacher share their vocabulary?"
        )
    ordered = index.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1) & live
    if bool(twice.any()):
        rows = twice.nonzero().flatten().tolist()
        raise ValueError(
            f"index names a column twice, in row {some(rows)}: {index[rows[0]].tolist()}. Fill up a short list with "
            "other columns of probability 0."
        )


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
