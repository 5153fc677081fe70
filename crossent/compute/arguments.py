"""What a caller hands in, made into rows, targets and weights, or refused in a sentence.

Everything is looked at here and nowhere else: shapes and dtypes always, values if ``validate`` says so.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from crossent.compute import target as targets
from crossent.compute.link import Link
from crossent.compute.losses import NLL, ClassWeighted, Loss, Smoothed
from crossent.compute.rows import columns
from crossent.compute.target import Target
from crossent.errors import some


def result_dtype(input: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower: a loss is never 16 bits wide."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def whole_loss(loss: Loss | None, weight: Tensor | None, label_smoothing: float, classes: int) -> Loss:
    """The loss with its label smoothing and its class weights around it."""
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


def check_class_weight(loss: Loss) -> None:
    """Refuse class weights that are negative or NaN."""
    weight = loss.class_weight
    if weight is None or not targets.visible(weight):
        return
    wrong = ~(weight >= 0)
    if bool(wrong.any()):
        at = wrong.nonzero().flatten().tolist()
        raise ValueError(f"class weights must be 0 or more; they are negative or NaN at class {some(at)}.")


def check_link(link: Link | None, classes: int, validate: str) -> None:
    """Refuse fields of a link that are neither one number nor one for each class, and those learned below 0."""
    if link is None:
        return
    for name in ("temperature", "softcap", "bias"):
        field = getattr(link, name, None)
        if not isinstance(field, Tensor):
            continue
        if field.shape != (classes,) and (name == "bias" or field.numel() != 1):
            wanted = f"one number for each of the {classes} classes" + ("" if name == "bias" else ", or one for all")
            raise ValueError(f"the {name} of a link must be {wanted}; got shape {tuple(field.shape)}.")
        seen = validate == "full" and field.device.type == "cpu" and targets.visible(field)
        if name != "bias" and seen and not bool((field > 0).all()):
            raise ValueError(
                f"the {name} of a link must be greater than 0; its least is {float(field.detach().amin())} now. If it "
                "is learned, learn its logarithm."
            )


def weights_of_rows(
    weight: Tensor | None, mask: Tensor | None, shape: torch.Size, validate: str
) -> tuple[Tensor | None, Tensor | None]:
    """Sample weights and mask, one for each row (n,)."""
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
        wrong = ~(weight >= 0) if mask is None else ~(weight >= 0) & mask
        if bool(wrong.any()):
            at = [tuple(place) for place in wrong.nonzero()[:5].tolist()]
            raise ValueError(f"sample_weight must be 0 or more; it is negative or NaN at {some(at)}.")
    return (None if weight is None else weight.reshape(-1)), (None if mask is None else mask.reshape(-1))


def target_of(
    target: Tensor | Target,
    like_logits: tuple[int, ...],
    shape: torch.Size,
    classes: int,
    ignore_index: int,
    mask: Tensor | None,
    validate: str,
    later: bool = False,
    classes_last: bool = False,
) -> Target:
    """Find out what the target is from its dtype and shape, or say what is wrong with it.

    ``like_logits`` is the shape of the logits: (C,), (N, C), (N, C, …), or with ``classes_last`` (…, C).

    ``mask`` (n,) is as ``weights_of_rows`` gives it: what stands in rows that do not count is not looked at. ``later``
    leaves it to the caller to ``look`` at the values of class probabilities.
    """
    rows_last = classes_last or len(like_logits) <= 2
    if isinstance(target, Target):
        if ignore_index != -100:
            raise ValueError(
                f"ignore_index={ignore_index} is for labels, and this target is ready: give it to crossent.sparse, or "
                "pass mask=, True for each row that counts."
            )
        if target.rows != math.prod(shape):
            raise ValueError(f"the target has {target.rows} rows, and the logits have {math.prod(shape)}.")
        return targets.fitted(target, like_logits, rows_last, classes, validate)
    got, dtype = tuple(target.shape), str(target.dtype).removeprefix("torch.")
    if target.is_floating_point():
        if got == like_logits:
            if ignore_index != -100:
                raise ValueError(
                    f"ignore_index={ignore_index} names a label, and a target of class probabilities has none: "
                    "pass mask=, True for each row that counts."
                )
            as_it_is = target.dim() == 2 and rows_last
            q = target if as_it_is else target.reshape(math.prod(shape), classes) if rows_last else columns(target)
            return targets.probabilities(q, mask, validate=validate, later=later)
        if got == tuple(shape):
            raise TypeError(
                f"target is {dtype} of shape {got}: class labels are integers (write target.long()), "
                f"and class probabilities have one number for each class, shape {like_logits}."
            )
        raise ValueError(f"class probabilities must have shape {like_logits}; the target has {got}.")
    if target.is_complex():
        raise TypeError(f"target is {dtype}; it must hold integers (labels) or floats (probabilities).")
    if got == tuple(shape):
        return targets.labels(target.reshape(-1), classes, ignore_index, mask, validate=validate)
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


def check_logits(input: Tensor, kind: str = "logits") -> None:
    """Refuse what is no floating-point logits, and tensors that are spread over processes."""
    if type(input).__name__ == "DTensor":  # not imported here: it takes half a second
        raise TypeError(
            f"input holds {kind} that are a DTensor: classes that are spread over processes are for "
            "crossent.parallel; for rows that are, pass input.to_local()."
        )
    if not input.is_floating_point():
        raise TypeError(
            f"input must hold floating-point {kind}; it is {str(input.dtype).removeprefix('torch.')}. "
            "Are input and target exchanged?"
        )


def check_classes(input: Tensor) -> int:
    """How many classes the logits (C,), (N, C) or (N, C, …) have; refuse those that have none."""
    if input.dim() == 0:
        raise ValueError("input is a single number; logits have a dimension of classes: (C,), (N, C) or (N, C, …).")
    classes = input.shape[0] if input.dim() == 1 else input.shape[1]
    if classes == 0:
        raise ValueError(f"input of shape {tuple(input.shape)} has no classes: the dimension of logits is empty.")
    return classes


def check_head(
    input: Tensor, w: Tensor, bias: Tensor | None, names: str = "input linear_weight linear_bias", sliced: bool = False
) -> int:
    """How many classes the head w (C, D) of hidden states (…, D) has; refuse what does not fit together.

    A slice of a head may have none.
    """
    of_input, of_w, of_bias = names.split()
    for name, tensor in ((of_w, w), (of_bias, bias)):
        _refuse_pieces(name, tensor)
    if w.dim() != 2 or input.dim() == 0 or input.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"{of_input} (…, D) and {of_w} (C, D) must agree in D; got {tuple(input.shape)} and {tuple(w.shape)}."
        )
    if not w.shape[0] and not sliced:
        raise ValueError(f"{of_w} of shape {tuple(w.shape)} has no classes: it is (C, D).")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"{of_bias} must have shape ({w.shape[0]},); got {tuple(bias.shape)}.")
    check_logits(input, "hidden states")
    given = {of_input: input, of_w: w, **({} if bias is None else {of_bias: bias})}
    if len({t.dtype for t in given.values()}) > 1 and not _is_autocast(input):
        raise TypeError(
            "hidden states and head must have one dtype, as for F.linear; "
            + ", ".join(f"{name} is {str(t.dtype).removeprefix('torch.')}" for name, t in given.items())
            + ". Convert one of them, or use autocast."
        )
    return w.shape[0]


def _refuse_pieces(name: str, tensor: Tensor | None) -> None:
    """Refuse a head's parameter of which this process holds a piece."""
    if type(tensor).__name__ == "DTensor":
        raise TypeError(
            f"{name} is a DTensor, of which this process holds a piece: pass it to crossent.parallel, which works on "
            "the pieces, or compute the loss inside the forward of the module that FSDP gathers it for."
        )
    if tensor is not None and hasattr(tensor, "ds_id") and not tensor.numel():
        raise ValueError(
            f"{name} is a parameter that ZeRO-3 keeps in pieces and makes whole only while its module runs: compute "
            "cross_entropy(head(hidden), target), or gather it around forward and backward pass "
            "(deepspeed.zero.GatheredParameters)."
        )


def _is_autocast(input: Tensor) -> bool:
    """Whether autocast is on where the tensor is; torch does not know of it on no device at all."""
    return input.device.type != "meta" and torch.is_autocast_enabled(input.device.type)


def under_autocast(input: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states and head in the dtype that autocast would multiply them in, forwards and backwards."""
    if not _is_autocast(input):
        return input, w, bias
    narrow = torch.get_autocast_dtype(input.device.type)
    return input.to(narrow), w.to(narrow), None if bias is None else bias.to(narrow)


def check_same_shape(input: Tensor, target: Tensor) -> None:
    """Refuse binary targets that are not one for each element."""
    if target.shape != input.shape:
        raise ValueError(
            f"target must have the shape of input, {tuple(input.shape)}; it has {tuple(target.shape)}. "
            "Each element is its own yes or no; reshape one of them (a column (N, 1) against (N,) needs squeeze(1))."
        )


def check_validate(validate: str) -> None:
    """Refuse words that say nothing about validation."""
    if validate not in ("full", "async", "off"):
        raise ValueError(f"validate must be 'full', 'async' or 'off'; got {validate!r}.")


def check_share(share: Tensor, name: str = "target", hint: str = "For labels -1 and 1 pass (target + 1) / 2.") -> None:
    """Refuse shares and probabilities outside [0, 1]."""
    if not targets.visible(share) or share.dtype == torch.bool or not share.numel() or targets.within(share, 1.0):
        return
    least, greatest = torch.aminmax(share.detach())  # a NaN is both
    if not (least >= 0 and greatest <= 1):
        wrong = ~((share >= 0) & (share <= 1))
        at = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must lie in [0, 1], the share that is class 1; {int(wrong.sum()):,} elements do not, first at "
            f"{at}: {share[at].item()}. {hint}"
        )


def check_weights_of_elements(weight: Tensor | None, name: str) -> None:
    """Refuse weights of binary elements that are negative or NaN."""
    if weight is None or not targets.visible(weight):
        return
    wrong = ~(weight >= 0)
    if bool(wrong.any()):
        at = [tuple(place) for place in wrong.nonzero()[:5].tolist()]
        raise ValueError(f"{name} must be 0 or more; it is negative or NaN at {some(at)}.")


def order_in_memory(input: Tensor, target: Tensor) -> list[int]:
    """The dimensions of both in the order in which they lie in memory, if that is the same and without holes."""
    as_they_are = list(range(input.dim()))
    if torch.compiler.is_compiling() or input.stride() != target.stride() or input.is_contiguous():
        return as_they_are
    strides = input.stride()
    order = sorted(as_they_are, key=lambda at: -strides[at])
    return order if input.permute(order).is_contiguous() else as_they_are


def in_a_row(x: Tensor, order: list[int]) -> Tensor:
    """Its elements (n,), with the dimensions in that order."""
    return x if x.dim() == 1 else (x if _natural(order) else x.permute(order)).reshape(-1)


def _natural(order: list[int]) -> bool:
    return order == sorted(order)


def repeating(weight: Tensor, class_dim: int | None, input: Tensor, name: str, order: list[int]) -> Tensor:
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
    return _spread(weight, input, name).permute(order).reshape(-1)


def weighty(input: Tensor, weight: Tensor, instead: float) -> Tensor:
    """The elements, and a harmless number for those of no weight: they are not read, so that 0 · ∞ = 0."""
    return torch.where(_spread(weight, input, "weight") == 0, instead, input)


def _spread(weight: Tensor, input: Tensor, name: str) -> Tensor:
    try:
        return weight.expand_as(input)
    except RuntimeError as trouble:
        raise ValueError(
            f"{name} of shape {tuple(weight.shape)} does not broadcast to the logits, {tuple(input.shape)}. "
            "If it has one number for each class, say with class_dim which dimension is the classes."
        ) from trouble


def times(value: Tensor, weight: Tensor, input: Tensor, order: list[int]) -> Tensor:
    """The losses (n,) of elements in that order, each times its weight."""
    repeated = repeating(weight, None, input, "weight", order).to(value.dtype)
    if not value.numel():
        return value
    return (value.reshape(-1, repeated.shape[0]) * repeated).reshape(-1)


def warn_of_probabilities(input: Tensor) -> None:
    """Rows that are non-negative and sum to 1 are probabilities, not logits; a look at eight rows costs nothing."""
    if input.dim() < 2 or input.shape[1] < 2 or input.numel() < 2 * input.shape[1] or not targets.visible(input):
        return
    classes = min(4, input.shape[1])
    first = input.detach().as_strided((classes,), input.stride()[1:2], input.storage_offset()).tolist()
    if not all(0 <= logit <= 1.01 for logit in first):
        return  # nearly all calls end here
    z = columns(input.detach())
    rows = z[:8, :, 0] if z.shape[2] == 1 else z[0, :, :8].T
    if float(rows[0].amin()) < 0 or abs(float(rows[0].sum()) - 1) > 0.01:
        return
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
