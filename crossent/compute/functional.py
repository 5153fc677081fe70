"""The public functions: PyTorch's names and arguments, this package's numbers.

Each turns what the user has into rows (n, v) and a ``Target``, asks ``rows`` for a loss per row, and reduces.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from crossent.compute import binary, linear
from crossent.compute import target as targets
from crossent.compute.link import Link
from crossent.compute.losses import NLL, ClassWeighted, Loss, Smoothed
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.rows import row_losses
from crossent.compute.target import Target
from crossent.errors import some


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
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the shape of the indices).
        label_smoothing: ε in [0, 1]; see ``Smoothed``. Classes with a logit of -inf get none of it.
        loss: what to compute of each row instead of the negative log-likelihood: any loss or sum of losses of
            ``crossent.compute.losses``.
        link: temperature, soft cap or class bias to apply to the logits first.
        sample_weight: a weight, 0 or more, for each row, of the shape of the indices: it multiplies the row's loss, and
            the mean divides by the sum of the weights.
        mask: True for each row that counts, of the shape of the indices; the others are ignored.
        empty: the mean when no row counts: ``"zero"`` (with a gradient of 0), ``"nan"`` (PyTorch's) or ``"raise"``.
        validate: ``"full"`` looks at the values of the target and names bad ones; ``"async"`` lets the device do it,
            which neither waits nor says where; ``"off"`` does not look. A label out of range that nobody looked at
            makes its own row NaN.

    Returns:
        A scalar, or the rows: float64 for float64 logits and float32 for all others, 16-bit ones too.

    Raises:
        ValueError, TypeError, IndexError: a sentence that says which argument, what came, where, and what to do.

    Differences from ``F.cross_entropy``: the mean over nothing is 0 unless asked otherwise; with class weights the
    mean of probability targets divides by the sum of Σ_c w_c q_c, so that a one-hot target gives the number of its
    label (PyTorch divides by N); the result of 16-bit logits is float32.

    Special values: a logit of -inf is a class of probability 0 (gradient 0); a target there costs infinity; NaN, +inf
    or nothing but -inf makes its own row NaN.

    Accuracy: loss and target gradient within 2 ulp of float32 and the other gradients within 4, also where p is
    1 - 1e-12 (tests/compute/test_contract.py); a gradient that is a difference, as p - q against soft targets, to 4 ulp
    of the larger term. Cost: the logits are read once forwards and once backwards, in whatever layout they lie, and one
    array of their size is made: their gradient. A link adds a few in float64. A soft target is read twice; if the loss
    is not linear in the negative log-likelihood (``Focal``, …), its columns are worked out one by one, in float64.
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
    check_reduction(reduction, empty)
    _check_validate(validate)
    _check_logits(input)
    if input.dim() == 0:
        raise ValueError("input is a single number; logits have a dimension of classes: (C,), (N, C) or (N, C, …).")
    classes = input.shape[0] if input.dim() == 1 else input.shape[1]
    if classes == 0:
        raise ValueError(f"input of shape {tuple(input.shape)} has no classes: the dimension of logits is empty.")
    z = _columns(input)
    shape = input.shape[:0] if input.dim() == 1 else input.shape[:1] + input.shape[2:]
    rows = _target(target, tuple(input.shape), shape, classes, ignore_index, validate)
    rows = rows.weighted(*_weights_of_rows(sample_weight, mask, shape, validate))
    if validate == "full":
        _warn_of_probabilities(z)
    whole = _whole_loss(loss, weight, label_smoothing, classes)
    if validate == "full":
        _check_class_weight(whole)
    value, row_weight = row_losses(z, rows, whole, link)
    return reduce(value, row_weight, reduction, empty, shape, result_dtype(input))


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
        weight: multiplies the elements' losses; broadcasts to ``input``.
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
    (tests/compute/test_binary.py). Cost: the logits are read once forwards and once backwards; what is made is a
    float64 loss for each element, and the gradient. Source: Good 1952.

    >>> z = torch.tensor([0.0, 40.0, -40.0])
    >>> binary_cross_entropy_with_logits(z, torch.tensor([1.0, 1.0, 0.0]), reduction="none")
    tensor([6.9315e-01, 4.2484e-18, 4.2484e-18])
    """
    check_reduction(reduction, empty)
    _check_validate(validate)
    _check_logits(input)
    if target.shape != input.shape:
        raise ValueError(
            f"target must have the shape of input, {tuple(input.shape)}; it has {tuple(target.shape)}. "
            "Each element is its own yes or no; reshape one of them (a column (N, 1) against (N,) needs squeeze(1))."
        )
    if validate == "full":
        _check_share(target)
    whole = _whole_loss(loss, None, label_smoothing, 2)
    if whole.class_weight is not None:
        raise TypeError(
            "class weights of binary elements are pos_weight: pass pos_weight=w[1] / w[0], not ClassWeighted."
        )
    order = _order_in_memory(input, target)
    z, share = input.permute(order).reshape(-1), target.permute(order).reshape(-1)
    positive = None if pos_weight is None else _repeating(pos_weight, class_dim, input, "pos_weight", order)
    smoothing = _smoothing_of_nll(whole)
    learned = target.requires_grad or (pos_weight is not None and pos_weight.requires_grad)
    if smoothing is not None and not learned:
        summed = reduction != "none" and weight is None and targets.visible(z) and z.numel() > 0
        value = binary.element_losses(z, share, positive, smoothing, summed=summed)
    else:
        value = whole(binary.element_stats(z, share, positive))
    if weight is not None:
        repeated = _repeating(weight, None, input, "weight", order).to(value.dtype)
        value = (value.reshape(-1, repeated.shape[0]) * repeated).reshape(-1)
    if reduction == "none":
        shape = [input.shape[at] for at in order]
        return value.reshape(shape).permute([order.index(at) for at in range(input.dim())]).to(result_dtype(input))
    return reduce(value, value.new_tensor(input.numel()), reduction, empty, input.shape, result_dtype(input))


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
    empty: str = "zero",
    validate: str = "full",
    chunk_rows: int | None = None,
) -> Tensor:
    """Cross-entropy of ``input @ linear_weight.T + linear_bias`` without ever holding all the logits.

    A few rows of logits exist at a time, forwards and again backwards; for a vocabulary of 256k that is the
    difference between gigabytes and megabytes.

    Args:
        input: hidden states (…, D).
        linear_weight: the head, (C, D).
        target: class indices (…), class probabilities (…, C), or a ``Target`` of as many rows.
        linear_bias: (C,).
        weight, reduction, label_smoothing, loss, link, sample_weight, mask, empty, validate: as in ``cross_entropy``.
        ignore_index: None means -100 for class indices, as in PyTorch.
        chunk_rows: rows of logits held at a time; by default as many as make 64 MiB of them.

    Returns:
        A scalar, or the rows (…): float64 for float64 hidden states, else float32.

    Memory: the gradients of what needs them, and chunk_rows × C logits with their gradient.
    The head's gradient is added up in float32 (float64 for float64), whatever its dtype.
    Cost: 8 N C D flops when trained (the logits are made twice). Double backward is refused at the call.

    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_cross_entropy(x, w, torch.tensor([0, 1, 2]))
    tensor(0.2395)
    """
    check_reduction(reduction, empty)
    _check_validate(validate)
    if linear_weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != linear_weight.shape[-1]:
        raise ValueError(
            f"input (…, D) and linear_weight (C, D) must agree in D; got {tuple(input.shape)} and "
            f"{tuple(linear_weight.shape)}."
        )
    classes = linear_weight.shape[0]
    if linear_bias is not None and linear_bias.shape != (classes,):
        raise ValueError(f"linear_bias must have shape ({classes},); got {tuple(linear_bias.shape)}.")
    shape = input.shape[:-1]
    ignored = -100 if ignore_index is None else ignore_index
    rows = _target(target, (*shape, classes), shape, classes, ignored, validate)
    rows = rows.weighted(*_weights_of_rows(sample_weight, mask, shape, validate))
    whole = _whole_loss(loss, weight, label_smoothing, classes)
    if validate == "full":
        _check_class_weight(whole)
    if torch.is_autocast_enabled(input.device.type):
        # Autocast would make the logits narrow forwards and not backwards, where they are made again.
        narrow = torch.get_autocast_dtype(input.device.type)
        input, linear_weight = input.to(narrow), linear_weight.to(narrow)
        linear_bias = None if linear_bias is None else linear_bias.to(narrow)
    value, row_weight = linear.row_losses(
        input.reshape(-1, input.shape[-1]),
        linear_weight,
        linear_bias,
        rows,
        whole,
        link,
        chunk_rows,
    )
    return reduce(value, row_weight, reduction, empty, shape, result_dtype(input))


def result_dtype(input: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower: a loss is never 16 bits wide."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def _whole_loss(loss: Loss | None, weight: Tensor | None, label_smoothing: float, classes: int) -> Loss:
    whole = NLL() if loss is None else loss
    if label_smoothing != 0.0:
        if whole.class_weight is not None:
            raise TypeError(
                "label_smoothing and a loss that is already ClassWeighted: "
                "write ClassWeighted(weight, Smoothed(label_smoothing, loss))."
            )
        whole = Smoothed(label_smoothing, whole)
    if weight is not None:
        whole = ClassWeighted(weight, whole)
    if whole.class_weight is not None and whole.class_weight.shape != (classes,):
        raise ValueError(
            f"class weights must be one number for each of the {classes} classes; "
            f"got shape {tuple(whole.class_weight.shape)}."
        )
    return whole


def _check_class_weight(loss: Loss) -> None:
    weight = loss.class_weight
    if weight is None or not targets.visible(weight):
        return
    wrong = ~(weight >= 0)
    if bool(wrong.any()):
        at = wrong.nonzero().flatten().tolist()
        raise ValueError(f"class weights must be 0 or more; they are negative or NaN at class {some(at)}.")


def _columns(input: Tensor) -> Tensor:
    """Logits (C,), (N, C) or (N, C, d1, …) as (n, v, l): a view wherever the layout allows one."""
    if input.dim() == 1:
        return input.reshape(1, -1, 1)
    return input.unsqueeze(-1) if input.dim() == 2 else input.flatten(2)


def _weights_of_rows(
    weight: Tensor | None, mask: Tensor | None, shape: torch.Size, validate: str
) -> tuple[Tensor | None, Tensor | None]:
    for name, given in (("sample_weight", weight), ("mask", mask)):
        if given is not None and given.shape != shape:
            raise ValueError(
                f"{name} must have one entry for each row, shape {tuple(shape)}; it has {tuple(given.shape)}."
            )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be bool, True where a row counts; it is {str(mask.dtype).removeprefix('torch.')}. "
            "Write mask.bool(), or pass weights as sample_weight."
        )
    if weight is not None and validate == "full" and targets.visible(weight):
        wrong = ~(weight >= 0)
        if bool(wrong.any()):
            at = [tuple(place) for place in wrong.nonzero()[:5].tolist()]
            raise ValueError(f"sample_weight must be 0 or more; it is negative or NaN at {some(at)}.")
    return (None if weight is None else weight.reshape(-1)), (None if mask is None else mask.reshape(-1))


def _target(
    target: Tensor | Target,
    like_logits: tuple[int, ...],
    shape: torch.Size,
    classes: int,
    ignore_index: int,
    validate: str,
) -> Target:
    """Find out what the target is from its dtype and shape, or say what is wrong with it."""
    if isinstance(target, Target):
        if target.rows != shape.numel():
            raise ValueError(f"the target has {target.rows} rows, and the logits have {shape.numel()}.")
        return target
    got, dtype = tuple(target.shape), str(target.dtype).removeprefix("torch.")
    if target.is_floating_point():
        if got == like_logits:
            rows_last = like_logits == (*shape, classes)
            q = target.reshape(-1, classes) if rows_last else _columns(target)
            return targets.probabilities(q, validate=validate)
        if got == tuple(shape):
            raise TypeError(
                f"target is {dtype} of shape {got}: class labels are integers (write target.long()), "
                f"and class probabilities have one number for each class, shape {like_logits}."
            )
        raise ValueError(f"class probabilities must have shape {like_logits}; the target has {got}.")
    if target.is_complex():
        raise TypeError(f"target is {dtype}; it must hold integers (labels) or floats (probabilities).")
    if got == tuple(shape):
        return targets.labels(target.reshape(-1), classes, ignore_index, validate=validate)
    hint = ""
    if got == (*shape, 1):
        hint = " Write target.squeeze(-1)."
    elif got == like_logits:
        hint = " These look like one-hot integers: write target.float() for probabilities, or argmax for labels."
    elif len(got) == len(shape) and set(got) == set(shape):
        hint = " The same sizes stand in another order: is it transposed?"
    raise ValueError(
        f"labels must have shape {tuple(shape)}, one for each row of {classes} logits; the target has {got}.{hint}"
    )


def _check_logits(input: Tensor) -> None:
    if not input.is_floating_point():
        raise TypeError(
            f"input must hold floating-point logits; it is {str(input.dtype).removeprefix('torch.')}. "
            "Are input and target exchanged?"
        )


def _check_validate(validate: str) -> None:
    if validate not in ("full", "async", "off"):
        raise ValueError(f"validate must be 'full', 'async' or 'off'; got {validate!r}.")


def _check_share(target: Tensor) -> None:
    if not targets.visible(target) or target.dtype == torch.bool or not target.numel():
        return
    least, greatest = torch.aminmax(target.detach())  # a NaN is both
    if not (least >= 0 and greatest <= 1):
        wrong = ~((target >= 0) & (target <= 1))
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"target must lie in [0, 1], the share that is class 1; {int(wrong.sum()):,} elements do not, first at "
            f"{at}: {target[at].item()}. For labels -1 and 1 pass (target + 1) / 2."
        )


def _smoothing_of_nll(loss: Loss) -> float | None:
    """The label smoothing of a loss that is the NLL and nothing else; None for any other."""
    if isinstance(loss, NLL):
        return 0.0
    plain = isinstance(loss, Smoothed) and isinstance(loss.loss, NLL)
    return loss.smoothing if isinstance(loss, Smoothed) and plain else None


def _order_in_memory(input: Tensor, target: Tensor) -> list[int]:
    """The dimensions of both in the order in which they lie in memory, if that is the same and without holes."""
    as_they_are = list(range(input.dim()))
    if torch.compiler.is_compiling() or input.stride() != target.stride() or input.is_contiguous():
        return as_they_are
    order = sorted(as_they_are, key=lambda at: -input.stride(at))
    return order if input.permute(order).is_contiguous() else as_they_are


def _natural(order: list[int]) -> bool:
    return order == sorted(order)


def _repeating(weight: Tensor, class_dim: int | None, input: Tensor, name: str, order: list[int]) -> Tensor:
    """Weights that, repeated, are those of the elements in that order: one, one for each class, or all of them."""
    if class_dim is not None:
        if not -input.dim() <= class_dim < input.dim() or weight.shape != (input.shape[class_dim],):
            raise ValueError(
                f"class_dim={class_dim} says that {name} has one number for each class along that dimension of input, "
                f"whose shape is {tuple(input.shape)}; {name} has shape {tuple(weight.shape)}."
            )
        weight = weight.reshape([-1 if at == class_dim % input.dim() else 1 for at in range(input.dim())])
    last = input.shape[order[-1]] if order else 1
    along_last = weight.dim() == input.dim() and weight.numel() == weight.shape[order[-1]] if order else False
    if weight.numel() == 1 or (weight.numel() == last and (along_last or (weight.dim() == 1 and _natural(order)))):
        return weight.reshape(-1)
    try:
        return weight.expand_as(input).permute(order).reshape(-1)
    except RuntimeError as trouble:
        raise ValueError(
            f"{name} of shape {tuple(weight.shape)} does not broadcast to the logits, {tuple(input.shape)}. "
            "If it has one number for each class, say with class_dim which dimension is the classes."
        ) from trouble


def _warn_of_probabilities(z: Tensor) -> None:
    """Rows that are non-negative and sum to 1 are probabilities, not logits; a look at eight rows costs nothing."""
    if not targets.visible(z) or z.shape[0] * z.shape[2] < 2 or z.shape[1] < 2:
        return
    rows = (z[:8, :, 0] if z.shape[2] == 1 else z[0, :, :8].T).detach()
    if bool((rows[0] < 0).any()) or abs(float(rows[0].sum()) - 1) > 0.01:
        return  # most calls end here
    head = rows.float()
    one_hot = (head == 0).sum(-1) == z.shape[1] - 1  # identity matrices are fine logits
    if bool(((head >= 0).all(-1) & ((head.sum(-1) - 1).abs() < 1e-5) & ~one_hot).all()) and bool(
        (head.amax(-1) - head.amin(-1) > 1e-3).any()
    ):
        warnings.warn(
            "input looks like probabilities: its rows are non-negative and sum to 1. cross_entropy takes logits; "
            "leave out the softmax (or pass probabilities.log()). If these are logits, pass validate='off'.",
            UserWarning,
            stacklevel=3,
        )
