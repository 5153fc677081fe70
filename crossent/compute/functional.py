"""The public functions: PyTorch's names and arguments, this package's numbers.

Each turns what the user has into rows (n, v) and a ``Target``, asks ``rows`` for a loss per row, and reduces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossent.compute import binary
from crossent.compute import target as targets
from crossent.compute.arguments import (
    check_class_weight,
    check_classes,
    check_link,
    check_logits,
    check_same_shape,
    check_share,
    check_validate,
    check_weights_of_elements,
    in_a_row,
    order_in_memory,
    repeating,
    result_dtype,
    target_of,
    times,
    warn_of_probabilities,
    weights_of_rows,
    weighty,
    whole_loss,
)
from crossent.compute.backends.reference import wide
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.losses.likelihood import smoothing_of_nll
from crossent.compute.number import number
from crossent.compute.override import overridable
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.rows import columns, counting, is_learned, row_losses
from crossent.compute.rows import row_numbers as rows_of
from crossent.compute.stats import Stats
from crossent.compute.target import Target


@overridable
def cross_entropy(
    input: Tensor,
    target: Tensor | Target,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    normaliser: float | Tensor | None = None,
    empty: str = "zero",
    validate: str = "full",
) -> Tensor:
    """Cross-entropy of logits against targets: what it costs, in nats, to believe softmax(input).

        ℓ_i = -log softmax(z_i)[y_i]            mean: Σ w_{y_i} ℓ_i / Σ w_{y_i}

    Args:
        input: logits, (C,), (N, C) or (N, C, d1, …), of any floating dtype.
        target: class indices, of input's shape without C, in any integer dtype; or class probabilities, of input's
            shape, in any floating dtype; or a ``Target`` (a few weighted classes in each row; ``crossent.sparse``).
        weight: a weight (C,) for each class; see ``ClassWeighted``.
        ignore_index: rows with this label are not read: a NaN there reaches nothing and their gradient is +0.
            (``crossent.sparse`` has its own; class probabilities have no labels: use ``mask``.)
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the shape of the indices).
        label_smoothing: ε in [0, 1]; see ``Smoothed``. Classes with a logit of -inf get none of it.
        loss: what to compute of each row instead of the negative log-likelihood: any loss or sum of losses of
            ``crossent.compute.losses``.
        link: temperature, soft cap or class bias to apply to the logits first.
        sample_weight: a weight, 0 or more, for each row, of the shape of the indices: it multiplies the row's loss, and
            the mean divides by the sum of the weights.
        mask: True for each row that counts, of the shape of the indices; the others are ignored, whatever they hold.
        normaliser: what the mean divides the sum by instead of its own weights: a number, as that of all tokens of
            all micro-batches and ranks (``crossent.parallel.normaliser``). Refused with any other reduction.
        empty: the mean when no row counts: ``"zero"`` (with a gradient of 0), ``"nan"`` (PyTorch's) or ``"raise"``.
        validate: ``"full"`` looks at the values of the target and names bad ones; ``"async"`` lets the device do it,
            which neither waits nor says where; ``"off"`` does not look. A label out of range that nobody looked at
            makes its own row NaN.

    Returns:
        A scalar, or the rows: float64 for float64 logits and float32 for all others, 16-bit ones too.

    Raises:
        ValueError, TypeError, IndexError: a sentence that says which argument, what came, where, and what to do.

    Differences from ``F.cross_entropy``: the mean over nothing is 0 unless asked otherwise; with class weights the
    mean of probability targets divides by the sum over rows of Σ_c w_c q_c / Σ_c q_c, so that a one-hot target gives
    the number of its label (PyTorch divides by N); the result of 16-bit logits is float32.

    Special values: a logit of -inf is a class of probability 0 (gradient 0); a target there costs infinity; NaN, +inf
    or nothing but -inf makes its own row NaN.

    Accuracy: loss and target gradient within 2 ulp of float32 and the other gradients within 4, also where p is
    1 - 1e-12 (tests/compute/test_contract.py); a gradient that is a difference, as p - q against soft targets, to 4 ulp
    of the larger term. Cost: the logits are read once forwards and once backwards, in whatever layout they lie, and one
    array of their size is made: their gradient. A mean or sum of NLL, smoothed or not, or of ``Focal`` of labels,
    without class weights, takes one reading for both. A link adds a few in float64. A soft target is read as often as
    the logits; if the loss is not linear in the negative log-likelihood (``Focal``, …), its columns are worked out one
    by one, in float64.
    Source: Good 1952.

    >>> z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 30.0]])
    >>> cross_entropy(z, torch.tensor([0, 2]))
    tensor(0.1198)
    >>> cross_entropy(z, torch.tensor([0, 2]), reduction="none")  # the second is 1.9e-13, not 0
    tensor([2.3954e-01, 1.8715e-13])
    >>> cross_entropy(z, torch.tensor([0, 3]))
    Traceback (most recent call last):
    IndexError: target has 1 labels that are no class: 3 at row 1. With 3 columns of logits a label is...
    """
    check_reduction(reduction, empty, normaliser)
    check_validate(validate)
    check_logits(input)
    classes = check_classes(input)
    shape = input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]
    row_weight, mask = weights_of_rows(sample_weight, mask, shape, validate)
    rows = target_of(target, tuple(input.shape), shape, classes, ignore_index, mask, validate, later=True)
    rows = counting(rows.weighted(row_weight, mask))
    if validate == "full":
        warn_of_probabilities(input)
    whole = whole_loss(loss, weight, label_smoothing, classes)
    check_link(link, classes, validate)
    if validate == "full":
        check_class_weight(whole)
    if reduction != "none" and link is None:
        at_once = number(input, rows, whole, reduction, result_dtype(input), normaliser, empty, validate)
        if at_once is not None:
            return at_once
    if rows.index is None and rows.unchecked:
        targets.look(rows, validate)
    value, row_weight = row_losses(columns(input), rows, whole, link)
    return reduce(value, row_weight, reduction, empty, shape, result_dtype(input), normaliser)


class RowNumbers(NamedTuple):
    """What one pass over the logits knows of each row; every field has the shape of the labels.

    ``loss`` in nats, ``log_prob`` the log-probability of the label (0 nats are certainty), ``lse`` log Σ e^z and
    ``entropy`` of softmax(z) in nats carry gradients. ``argmax`` (the first of the greatest) and ``rank`` (how many
    classes are above the label: 0 is top, and a tie is not above) are int64. An ignored row has 0 everywhere, and -1 as
    argmax and rank; a row of NaN, +inf or nothing but -inf has the last rank.
    """

    loss: Tensor
    log_prob: Tensor
    lse: Tensor
    entropy: Tensor
    argmax: Tensor
    rank: Tensor


@overridable
def row_numbers(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    link: Link | None = None,
    mask: Tensor | None = None,
    validate: str = "full",
) -> RowNumbers:
    """Loss, log-probability of the label, log-sum-exp, entropy, argmax and rank of every row, from one pass.

    What evaluation, perplexity, reinforcement learning and preference losses need of a row of logits. The arguments
    are those of ``cross_entropy`` with ``reduction="none"``; the target must be labels. Top-k accuracy is
    ``(numbers.rank < k).float().mean()``.

    Returns:
        ``RowNumbers``: float64 for float64 logits, else float32; argmax and rank in int64.

    Accuracy: as ``cross_entropy``; the log-probability is right to 2 ulp near 0 too; the log-sum-exp to a rounding of
    its two terms. Cost: one reading of the logits; with gradients one more. Memory: O(N) and the gradient.

    >>> z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 30.0]])
    >>> numbers = row_numbers(z, torch.tensor([1, 2]))
    >>> numbers.log_prob, numbers.argmax, numbers.rank
    (tensor([-2.2395e+00, -1.8715e-13]), tensor([0, 2]), tensor([1, 0]))
    """
    check_validate(validate)
    check_logits(input)
    classes = check_classes(input)
    shape = input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]
    row_weight, mask = weights_of_rows(None, mask, shape, validate)
    rows = target_of(target, tuple(input.shape), shape, classes, ignore_index, mask, validate)
    if rows.index is None or rows.index.shape[1] != 1:
        raise TypeError("row_numbers ranks one label in each row: the target must be class indices.")
    rows = rows.weighted(row_weight, mask)
    whole = whole_loss(loss, weight, label_smoothing, classes)
    check_link(link, classes, validate)
    if validate == "full":
        check_class_weight(whole)
    return numbers_of(*rows_of(columns(input), rows, whole, link), rows, shape, result_dtype(input))


def numbers_of(value: Tensor, s: Stats, rows: Target, shape: torch.Size, dtype: torch.dtype) -> RowNumbers:
    """What was read of the rows, in the shape of the labels."""
    # A label that is no class and that nobody looked at has a weight of NaN, and so have its numbers.
    wrong = torch.zeros_like(value) if rows.weight is None else torch.where(rows.weight[:, 0].isnan(), torch.nan, 0.0)

    # What is no number is above nothing: a diverged model is never right.
    last = torch.where((s.lse + wrong).isnan(), s.classes - 1, s.above)

    def shown(x: Tensor, ignored: float = 0.0) -> Tensor:
        return (x if rows.live is None else torch.where(rows.live, x, ignored)).reshape(shape)

    return RowNumbers(
        loss=shown(value).to(dtype),
        log_prob=shown(wrong - s.nll[:, 0]).to(dtype),
        lse=shown(s.lse).to(dtype),
        entropy=shown(s.entropy).to(dtype),
        argmax=shown(s.first, -1).long(),
        rank=shown(last, -1).long(),
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    class_dim: int | None = None,
    label_smoothing: float = 0.0,
    loss: Loss | None = None,
    empty: str = "zero",
    validate: str = "full",
) -> Tensor:
    """Binary cross-entropy of logits, element by element: binary and multi-label classification, and shares in [0, 1].

        ℓ = w [-c t log σ(z) - (1 - t) log(1 - σ(z))]            mean: Σ ℓ / number of elements

    Each element is a row of the two logits (0, z), so ``loss`` may be any loss that ``cross_entropy`` takes but
    ``ClassWeighted``: the weight of class 1 against class 0 is ``pos_weight``.

    Args:
        input: logits of any shape and floating dtype; ±inf are probabilities of exactly 1 and 0.
        target: of the same shape: the share t in [0, 1] that is class 1; floating, integer or bool.
        weight: multiplies the elements' losses, 0 or more; broadcasts to ``input``. Elements of weight 0 are not read:
            a NaN there reaches nothing and their gradient is +0. (A mean still counts them, as PyTorch's does.)
        reduction: ``"mean"`` (over elements), ``"sum"`` or ``"none"``.
        pos_weight: c, the weight of class 1; broadcasts to ``input``, as in PyTorch: one weight for each class belongs
            to the last dimension.
        class_dim: the dimension of ``input`` that one ``pos_weight`` (C,) for each class belongs to, wherever it is.
        label_smoothing: ε moves every target towards ½: (1 - ε) t + ε / 2, before any ``pos_weight``.
        loss, empty, validate: as in ``cross_entropy``.

    Returns:
        A scalar, or the elements: float64 for float64 logits, else float32.

    Raises:
        ValueError: the shapes differ, or a target is outside [0, 1] (named with its place).

    Nothing is clamped: a probability of 0 at a target of 1 costs infinity, and the gradient of its logit is -1.
    Accuracy: loss and gradient within 2 ulp of float32, both tails; gradients of 16-bit logits correctly rounded
    (tests/compute/test_binary.py). Cost: the logits are read once forwards and once backwards, for a mean or sum of NLL
    once for both; what is made is the gradient, and without a reduction a float64 loss for each element. Source: Good
    1952.

    >>> z = torch.tensor([0.0, 40.0, -40.0])
    >>> binary_cross_entropy_with_logits(z, torch.tensor([1.0, 1.0, 0.0]), reduction="none")
    tensor([6.9315e-01, 4.2484e-18, 4.2484e-18])
    """
    check_reduction(reduction, empty)
    check_validate(validate)
    check_logits(input)
    check_same_shape(input, target)
    if validate == "full":
        check_weights_of_elements(weight, "weight")
        check_weights_of_elements(pos_weight, "pos_weight")
    whole = whole_loss(loss, None, label_smoothing, 2)
    if whole.class_weight is not None:
        raise TypeError(
            "class weights of binary elements are pos_weight: pass pos_weight=w[1] / w[0], not ClassWeighted."
        )
    if weight is not None and not is_learned(weight):
        input = weighty(input, weight, 0.0)
    order = order_in_memory(input, target)
    z, share = in_a_row(input, order), in_a_row(target, order)
    positive = None if pos_weight is None else repeating(pos_weight, class_dim, input, "pos_weight", order)
    smoothing = None if is_learned(target) or is_learned(pos_weight) else smoothing_of_nll(whole)
    summed = smoothing is not None and reduction != "none" and weight is None and targets.visible(z) and z.numel() > 0
    refuse = (lambda: check_share(target)) if validate == "full" else None
    if smoothing is not None and summed:
        divisor = 1.0 if reduction == "sum" else z.numel()
        at_once = binary.element_number(z, share, positive, smoothing, divisor, result_dtype(input), refuse)
        if at_once is not None:
            return at_once
    if refuse is not None:
        refuse()
    if smoothing is not None:
        value = binary.element_losses(z, share, positive, smoothing, summed=summed)
    else:
        value = whole(binary.element_stats(z, share, positive))
    if weight is not None:
        value = times(value, weight, input, order)
    if reduction == "none":
        shape = [input.shape[at] for at in order]
        return value.reshape(shape).permute([order.index(at) for at in range(input.dim())]).to(result_dtype(input))
    return reduce(value, value.new_full((), input.numel()), reduction, empty, input.shape, result_dtype(input))


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    empty: str = "zero",
    validate: str = "full",
) -> Tensor:
    """Binary cross-entropy of probabilities, for models whose last step is a sigmoid that cannot be taken away.

        ℓ = w [-t log p - (1 - t) log(1 - p)]            mean: Σ ℓ / number of elements

    Args:
        input: probabilities in [0, 1] of any shape and floating dtype.
        target, weight, reduction, empty, validate: as in ``binary_cross_entropy_with_logits``.

    Returns:
        A scalar, or the elements: float64 for float64 probabilities, else float32.

    Raises:
        ValueError: the shapes differ, or a probability or a target is outside [0, 1] (named with its place).

    The bound: the number is right to half an ulp for the probability as it is stored, but a stored probability has
    lost what its logit knew. In float32 the neighbours of 1 are 6e-8 apart, so that 1 - p, the loss of a row that is
    nearly sure and its gradient are known to within 6e-8 (bfloat16: 4e-3, float16: 5e-4) and no better; a logit keeps
    all digits. Nothing is clamped, as PyTorch does at a log of -100: p = 0 at a target of 1 costs infinity and has a
    gradient of -∞. Cost: plain torch in float64. Source: Good 1952.

    >>> p = torch.tensor([0.9, 0.2, 1.0])
    >>> binary_cross_entropy(p, torch.tensor([1.0, 0.0, 1.0]), reduction="none")
    tensor([0.1054, 0.2231, 0.0000])
    """
    check_reduction(reduction, empty)
    check_validate(validate)
    check_logits(input, "probabilities")
    check_same_shape(input, target)
    if validate == "full":
        check_share(target)
        check_share(input, "input", "These look like logits: use binary_cross_entropy_with_logits.")
        check_weights_of_elements(weight, "weight")
    if weight is not None and not is_learned(weight):
        input = weighty(input, weight, 0.5)
    p, t = input.to(wide(input)).reshape(-1), target.to(wide(input)).reshape(-1)

    # 0 · ∞ = 0: a share of 0 costs nothing and has no gradient. log1p keeps the digits of a p near 0; 1 - p loses them.
    yes = torch.where(t == 0, 0.0, -t * torch.log(torch.where(t == 0, 1.0, p)))
    no = torch.where(t == 1, 0.0, -(1 - t) * torch.log1p(torch.where(t == 1, 0.0, -p)))
    value = yes + no
    if weight is not None:
        value = times(value, weight, input, list(range(input.dim())))
    return reduce(value, None, reduction, empty, input.shape, result_dtype(input))
