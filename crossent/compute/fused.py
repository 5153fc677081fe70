"""A head and its loss in one, the numbers of every row, and a teacher's distribution, without logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.compute import linear
from crossent.compute.arguments import (
    check_class_weight,
    check_head,
    check_link,
    check_validate,
    result_dtype,
    target_of,
    under_autocast,
    weights_of_rows,
    whole_loss,
)
from crossent.compute.backends.reference import wide
from crossent.compute.distillation import Divergence, Kind, check_words
from crossent.compute.distribution import Whole
from crossent.compute.functional import RowNumbers, numbers_of
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.number import nobody_waits
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.rows import counting
from crossent.compute.target import Target


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Cross-entropy of ``input @ linear_weight.T + linear_bias`` without ever holding all the logits.

    A few rows of logits exist at a time; for a vocabulary of 256k that is the difference between gigabytes and
    megabytes. Of a mean or a sum the gradients are made there and then; of rows they are made in the backward pass,
    from logits that are made once more. The bits are the same, if what comes from above is.

    Args:
        input: hidden states (…, D).
        linear_weight: the head, (C, D), of input's dtype.
        target: class indices (…), class probabilities (…, C), or a ``Target`` of as many rows.
        linear_bias: (C,).
        weight, reduction, label_smoothing, loss, link, sample_weight, mask, normaliser, empty, validate: as in
            ``cross_entropy``.
        ignore_index: None means -100 for class indices, as in PyTorch.
        budget: how much memory the logits of one chunk may take: bytes, or a text like ``"256 MiB"``; 64 MiB by
            default, which was near the best for the time, too (docs/decisions/016), and 1,000 MiB on a GPU. A link,
            and a loss that looks at the logits themselves, count 64 bytes for each logit, since plain torch works them
            out.
        chunk_rows: how many rows make a chunk, instead of a budget.

    Returns:
        A scalar, or the rows (…): float64 for float64 hidden states, else float32.

    Raises:
        ValueError, TypeError, IndexError: a sentence that says which argument, what came, where, and what to do.

    Rows that are ignored, masked or of no weight are left out before the first product, and cost nothing.

    Accuracy: that of ``cross_entropy`` on logits that are rounded to input's dtype, as those of ``F.linear``, and so is
    their gradient. The head's gradient is added up in float32 (float64 for float64), whatever its dtype, and rounded
    once: the number of chunks does not show (tests/compute/test_linear_sums.py). A 16-bit gradient of a number
    is rounded once more where what comes from above is no power of two.
    Memory: the gradients of what needs them; the budget; for a head of 16 bits the float32 sum of its gradient, 4 C D
    bytes, or, where that is less, all logits in 16 bits at once (unless a budget forbids it).
    Cost: 6 N C D flops for a mean or a sum, 8 N C D for rows, and where more is learned than hidden states and head.
    Derivatives: of first order in ``input``, ``linear_weight``, ``linear_bias``, the fields of the link, targets,
    sample weights, class weights and whatever else a loss holds; of second order too, chunk by chunk in plain torch
    (``create_graph=True``, ``torch.func.hessian``); forward ones (``torch.func.jvp``) of both. ``vmap`` goes through a
    batch one by one; ``torch.compile`` keeps it whole. Source: Wijmans et al. 2024.

    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_cross_entropy(x, w, torch.tensor([0, 1, 2]))
    tensor(0.2395)
    """
    check_reduction(reduction, empty, normaliser)
    check_validate(validate)
    check_head(input, linear_weight, linear_bias)
    return linear_cross_entropy_of(
        input,
        (linear_weight,),
        target,
        linear_bias=linear_bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        loss=loss,
        link=link,
        sample_weight=sample_weight,
        mask=mask,
        normaliser=normaliser,
        empty=empty,
        validate=validate,
        budget=budget,
        chunk_rows=chunk_rows,
    )


def linear_cross_entropy_of(
    input: Tensor,
    parts: tuple[Tensor, ...],
    target: Tensor | Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """The same of a head that has been looked at; its columns may be in two parts, of which the first is frozen."""
    (linear_weight, *others), classes = parts, parts[0].shape[0]
    shape = input.shape[:-1]
    ignored = -100 if ignore_index is None else ignore_index
    row_weight, mask = weights_of_rows(sample_weight, mask, shape, validate)
    rows = target_of(target, (*shape, classes), shape, classes, ignored, mask, validate, classes_last=True)
    rows = counting(rows.weighted(row_weight, mask))
    whole = whole_loss(loss, weight, label_smoothing, classes)
    check_link(link, classes, validate)
    if validate == "full":
        check_class_weight(whole)
    x, w, bias = under_autocast(input, linear_weight, linear_bias)
    x, dtype = x.reshape(-1, x.shape[-1]), result_dtype(x)
    size = linear.chunk_size(budget, chunk_rows, x, w, rows, whole, link)
    beside = others[0].to(w.dtype) if others else None
    if reduction != "none" and (empty == "zero" or not nobody_waits(x)):
        at_once = linear.number(x, w, bias, rows, whole, link, size, reduction, dtype, normaliser, beside)
        if at_once is not None:
            return at_once
    value, row_weight = linear.row_losses(x, w, bias, rows, whole, link, size, beside=beside)
    return reduce(value, row_weight, reduction, empty, shape, dtype, normaliser)


def linear_row_numbers(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    mask: Tensor | None = None,
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> RowNumbers:
    """``row_numbers`` of ``input @ linear_weight.T + linear_bias``, of which a few rows exist at a time.

    What evaluation, perplexity, reinforcement learning and preference losses need of a language model: loss,
    log-probability of the label, log-sum-exp, entropy, argmax and rank. Gradients go through the first four.

    Args:
        input: hidden states (…, D).
        linear_weight, linear_bias: the head, (C, D) and (C,).
        target: labels (…).
        weight, ignore_index, label_smoothing, loss, link, mask, validate: as in ``row_numbers``.
        budget, chunk_rows: as in ``linear_cross_entropy``, and so are memory and accuracy.

    Returns:
        ``RowNumbers``, each of the shape of the labels.

    Raises:
        ValueError, TypeError, IndexError: a sentence that says which argument, what came, where, and what to do.

    Cost: 2 N C D flops, and 6 N C D more with gradients; for a loss that looks at the logits themselves (``Brier``,
    ``Hinge``) twice that, and for a link that is trained three times. Rows that are ignored cost nothing.

    >>> numbers = linear_row_numbers(torch.eye(3), 2 * torch.eye(3), torch.tensor([0, 1, 0]))
    >>> numbers.log_prob, numbers.rank
    (tensor([-0.2395, -0.2395, -2.2395]), tensor([0, 0, 1]))
    """
    check_head(input, linear_weight, linear_bias)
    return linear_row_numbers_of(
        input,
        (linear_weight,),
        target,
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        loss=loss,
        link=link,
        mask=mask,
        validate=validate,
        budget=budget,
        chunk_rows=chunk_rows,
    )


def linear_row_numbers_of(
    input: Tensor,
    parts: tuple[Tensor, ...],
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    mask: Tensor | None = None,
    validate: str = "full",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> RowNumbers:
    """The same of a head that has been looked at; its columns may be in two parts, of which the first is frozen."""
    check_validate(validate)
    (linear_weight, *others), classes, shape = parts, parts[0].shape[0], input.shape[:-1]
    _, mask = weights_of_rows(None, mask, shape, validate)
    rows = target_of(target, (*shape, classes), shape, classes, ignore_index, mask, validate, classes_last=True)
    if rows.index is None or rows.index.shape[1] != 1:
        raise TypeError("linear_row_numbers ranks one label in each row: the target must be class indices.")
    rows = rows.weighted(None, mask)
    whole = whole_loss(loss, weight, label_smoothing, classes)
    check_link(link, classes, validate)
    if validate == "full":
        check_class_weight(whole)
    x, w, bias = under_autocast(input, linear_weight, linear_bias)
    x, dtype = x.reshape(-1, x.shape[-1]), result_dtype(x)
    size = linear.chunk_size(budget, chunk_rows, x, w, rows, whole, link)
    beside = others[0].to(w.dtype) if others else None
    return numbers_of(*linear.row_numbers(x, w, bias, rows, whole, link, size, beside), rows, shape, dtype)


@dataclass(frozen=True)
class _Apart:
    """Rows of a student's logits → their divergence from the teacher's, whose logits are made for them."""

    divergence: Divergence

    @property
    def in_step(self) -> bool:
        """Whether other ranks have other columns of the same rows."""
        return self.divergence.row is not None

    def __call__(
        self, z: Tensor, live: Tensor | None, x: Tensor, w: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, None]:
        with torch.no_grad():
            t = torch.nn.functional.linear(x, w, bias)
        live = torch.ones(z.shape[0], dtype=torch.bool, device=z.device) if live is None else live
        return self.divergence(z, t, None, live), None


def linear_distillation(
    input: Tensor,
    linear_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    *,
    linear_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    kind: Kind = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    temperature_squared: bool = False,
    mask: Tensor | None = None,
    reduction: str = "mean",
    empty: str = "zero",
    budget: int | str | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """``distillation`` of a student's head from a teacher's, where neither's logits are ever all there.

    Args:
        input, linear_weight, linear_bias: the student's hidden states (…, D) and head (C, D), (C,).
        teacher_input, teacher_weight, teacher_bias: the teacher's, (…, E), (C, E) and (C,); they get no gradient.
        kind, temperature, beta, temperature_squared, mask, reduction, empty: as in ``distillation``.
        budget, chunk_rows: as in ``linear_cross_entropy``; a logit counts 384 bytes, since plain torch works it out.

    Returns:
        A scalar, or the rows (…): float64 for a student in float64, else float32.

    Raises:
        ValueError, TypeError: a sentence that says which argument, what came, and what to do.

    Accuracy: that of ``distillation``; 16-bit logits are rounded to 16 bits, as those of ``F.linear``.
    Cost: 6 N C D + 2 N C E flops for a mean or a sum, 2 N C (D + E) more for rows, and some fifty passes of plain torch
    over each chunk. Derivatives of any kind, as those of ``linear_cross_entropy``. Source: Hinton et al. 2015, eq. 1.

    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_distillation(x, w, x, w)
    tensor(0.)
    >>> linear_distillation(x, w, torch.ones(3, 1), torch.zeros(3, 1))
    tensor(0.4743)
    """
    check_reduction(reduction, empty)
    classes = check_head(input, linear_weight, linear_bias)
    others = check_head(teacher_input, teacher_weight, teacher_bias, "teacher_input teacher_weight teacher_bias")
    shape = input.shape[:-1]
    if others != classes or teacher_input.shape[:-1] != shape:
        raise ValueError(
            "student and teacher must have the same rows and classes: "
            f"{tuple(shape)} rows of {classes} and {tuple(teacher_input.shape[:-1])} rows of {others}."
        )
    check_words("logits", None, "other", kind, temperature, beta)
    check_teacher_is_fixed(teacher_input, teacher_weight, teacher_bias)
    _, live = weights_of_rows(None, mask, shape, "off")
    x, w, bias = under_autocast(input, linear_weight, linear_bias)
    t, teacher_w, teacher_b = under_autocast(teacher_input, teacher_weight, teacher_bias)
    x, t, dtype = x.reshape(-1, x.shape[-1]), t.reshape(-1, t.shape[-1]), result_dtype(x)
    of = divergence_between(kind, temperature, beta, temperature_squared)
    size = linear.rows_at_a_time(budget, chunk_rows, classes, linear.TWO_ROWS)
    return distilled((x, w, bias), (t, teacher_w, teacher_b), of, live, size, reduction, empty, shape, dtype)


def check_teacher_is_fixed(*of_teacher: Tensor | None) -> None:
    """Refuse a teacher that is trained."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in of_teacher):
        raise ValueError(
            "a teacher gets no gradient here, and its hidden states, head or bias require one: detach them, "
            "or use distillation(F.linear(input, linear_weight), F.linear(teacher_input, teacher_weight))."
        )


def distilled(
    student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Tensor, Tensor, Tensor | None],
    divergence: Divergence,
    live: Tensor | None,
    size: int,
    reduction: str,
    empty: str,
    shape: torch.Size,
    dtype: torch.dtype,
) -> Tensor:
    """The same of heads (hidden states, head, bias) that have been looked at, ``size`` rows at a time."""
    x, columns = student[0], linear.Columns(_Apart(divergence), teacher[:1], teacher[1:])
    value = None
    if reduction != "none":
        rows = torch.full((), x.shape[0], dtype=wide(x), device=x.device) if live is None else live.sum(dtype=wide(x))
        divisor = rows if reduction == "mean" else rows**0
        value = linear.total_of_columns(*student, live, columns, divisor, size, dtype)
    if value is None:
        value, weight = linear.columns_losses(*student, live, columns, size)
        weight = weight if live is None else torch.where(live, weight, 0.0)
        value = reduce(value, weight, reduction, empty, shape, dtype)
    return value


def divergence_between(
    kind: str, temperature: float, beta: float, squared: bool, row: Whole | None = None
) -> Divergence:
    """The divergence of two rows of logits, times τ² if that is wanted."""
    return (_Squared if squared else Divergence)(kind, False, "other", temperature, beta, row)


class _Squared(Divergence):
    """The divergence times τ²."""

    def __call__(self, z: Tensor, t: Tensor, index: Tensor | None, live: Tensor) -> Tensor:
        """The same rows, multiplied."""
        return super().__call__(z, t, index, live) * self.temperature**2
