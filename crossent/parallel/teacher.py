"""Divergences from a teacher, of rows whose classes are spread over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from crossent.compute.agreement import agreed
from crossent.compute.arguments import check_head, result_dtype, under_autocast, weights_of_rows
from crossent.compute.distillation import Divergence, Kind, Rest, check_shapes, check_words, row_divergences
from crossent.compute.distribution import Given
from crossent.compute.fused import check_teacher_is_fixed, distilled, divergence_between
from crossent.compute.group import Group, assembled, concatenated, copied
from crossent.compute.linear import TWO_ROWS, rows_at_a_time
from crossent.compute.reduce import check_reduction, reduce
from crossent.compute.shards import Shard, Spread
from crossent.parallel.asked import EAGER, check_sequence, sliced_along
from crossent.parallel.mesh import hidden_here, local, spread


@EAGER
def distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    group: Group | DeviceMesh = None,
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
    """``crossent.distillation`` of logits whose classes are spread over the ranks of a group.

        p = softmax(teacher / τ), q = softmax(student / τ)         over the classes of all ranks

    Args:
        student: this rank's columns of the logits, (…, own): consecutive classes in the order of the ranks, as many as
            it likes on each, none too. Or a ``DTensor`` on a mesh of one dimension, sharded along its last dimension.
        teacher: the same columns of the teacher's, (…, own), what ``given`` says; or, with ``index``, its values at a
            few columns (…, k), the same on every rank.
        group: the ``ProcessGroup``, or a ``DeviceMesh`` of one dimension; None is all processes, or the mesh of a
            DTensor.
        index: (…, k) columns among all classes, the same on every rank.
        mask: the same on every rank.
        given, rest, kind, temperature, beta, temperature_squared, reduction, empty: as in ``crossent.distillation``.

    Returns:
        The scalar or the rows, as a plain tensor: the same bits on every rank.

    Raises:
        ValueError, TypeError, IndexError: as ``crossent.distillation``, on every rank if on one; and a sentence that
            says which arguments differ between which ranks.

    Accuracy: that of ``crossent.distillation``, which adds up in another order. Gradients of the teacher are there if
    it asks for them: of its own columns, or of all k values on every rank. Cost: that of ``crossent.distillation``,
    divided among the ranks; of each block of rows (2¹⁸ logits of the widest rank) five exchanges of one to four
    numbers a row forwards and eight backwards, and with ``index`` three and five.
    Memory: as on one machine, of the own columns.
    Derivatives of any order, and forward ones; ``vmap`` is refused. Under ``torch.compile`` the call is left to eager
    mode, which ``fullgraph=True`` forbids. Source: as in ``crossent.distillation``.

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> student, teacher = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    >>> distillation(student, teacher)  # one rank, which holds all columns
    tensor(0.3775)
    >>> dist.destroy_process_group()
    """
    student, group = spread(student, group, max(0, student.dim() - 1), "student")
    if index is None:
        teacher = local(teacher)
    few = None if index is None else (index, teacher)

    def check() -> None:
        check_reduction(reduction, empty)
        check_words(given, index, rest, kind, temperature, beta)
        check_shapes(student, teacher, index, mask, None)

    told = {
        "the shape of student but for its classes": student.shape[:-1],
        "the dtypes of student and teacher": (student.dtype, teacher.dtype),
        "whether student and teacher need a gradient": (student.requires_grad, teacher.requires_grad),
        "index, and teacher beside it": few,
        "given, rest, kind, temperature, beta": (given, rest, kind, temperature, beta, temperature_squared),
        "mask": mask,
        "reduction and empty": (reduction, empty),
    }
    own = student.shape[-1] if student.dim() else 0
    (sizes,) = zip(*agreed(check, told, True, [own], student.device, group), strict=True)
    row = Spread(Shard(sizes, group))
    check_shapes(student, teacher, index, mask, row.shard.classes)
    divergence = Divergence(kind, given in ("probabilities", "counts"), rest, temperature, beta, row)
    value, live = row_divergences(student, teacher, given, index, mask, divergence)
    if temperature_squared:
        value = value * temperature**2
    wanted = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    return reduce(value, live.to(value.dtype), reduction, empty, student.shape[:-1], wanted)


@EAGER
def linear_distillation(
    input: Tensor,
    linear_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    *,
    group: Group | DeviceMesh = None,
    sequence_dim: int | None = None,
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
    """``crossent.linear_distillation`` of heads whose classes are spread over the ranks of a group.

    Args:
        input, teacher_input: hidden states (…, D) and (…, E), the same on every rank; or, with ``sequence_dim``, this
            rank's slices of them. ``DTensor``s that are replicated or sharded along one dimension say so themselves.
        linear_weight, teacher_weight: this rank's rows of both heads, (own, D) and (own, E): the same classes.
        linear_bias, teacher_bias: this rank's, (own,).
        group, sequence_dim: as in ``linear_cross_entropy`` of this module.
        mask: of the whole input, the same on every rank.
        all else: as in ``crossent.linear_distillation``; a budget is for the widest rank.

    Returns:
        The scalar or the rows (…) of the whole input: the same bits on every rank.

    Raises:
        ValueError, TypeError: as ``distillation`` of this module; and for a teacher that requires a gradient.

    Every rank gets the gradient of its part of the head; that of hidden states is the sum over the ranks. Accuracy:
    that of ``crossent.linear_distillation``. Cost: that divided among the ranks, and of each chunk eight
    exchanges of one to four numbers a row, for rows thirteen. Source: Hinton et al. 2015, eq. 1.

    >>> import torch, torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> x, w = torch.eye(3), 2 * torch.eye(3)
    >>> linear_distillation(x, w, torch.ones(3, 1), torch.zeros(3, 1))
    tensor(0.4743)
    >>> dist.destroy_process_group()
    """
    linear_weight, group = spread(linear_weight, group, 0, "linear_weight")
    teacher_weight, _ = spread(teacher_weight, group, 0, "teacher_weight")
    linear_bias, teacher_bias = (
        None if bias is None else spread(bias, group, 0, "a bias")[0] for bias in (linear_bias, teacher_bias)
    )
    teacher_input, of_teacher = hidden_here(teacher_input, sequence_dim)
    input, sequence_dim = hidden_here(input, sequence_dim)
    along, slice_size = sliced_along(input, sequence_dim)
    student, teacher = (input, linear_weight, linear_bias), (teacher_input, teacher_weight, teacher_bias)

    def check() -> None:
        check_reduction(reduction, empty)
        check_words("logits", None, "other", kind, temperature, beta)
        own = check_head(*student, sliced=True)
        others = check_head(*teacher, "teacher_input teacher_weight teacher_bias", sliced=True)
        check_sequence(input, sequence_dim, along)
        if others != own or teacher_input.shape[:-1] != input.shape[:-1] or of_teacher != sequence_dim:
            raise ValueError(
                "student and teacher must have the same rows and classes here: "
                f"{tuple(input.shape[:-1])} rows of {own}, spread along {sequence_dim}, and "
                f"{tuple(teacher_input.shape[:-1])} rows of {others}, spread along {of_teacher}."
            )
        check_teacher_is_fixed(*teacher)
        if along is None:
            weights_of_rows(None, mask, input.shape[:-1], "off")

    def but_slices(x: Tensor) -> list[int]:
        return [size for at, size in enumerate(x.shape) if at != along]

    told = {
        "the shapes of hidden states": (but_slices(input), but_slices(teacher_input), along),
        "the dtypes of hidden states and heads": [x.dtype for x in (*student[:2], *teacher[:2])],
        "which of input, linear_weight and the biases are there and need a gradient": [
            None if x is None else x.requires_grad for x in (*student, teacher_bias)
        ],
        "kind, temperature, beta": (kind, temperature, beta, temperature_squared),
        "mask": mask,
        "reduction and empty": (reduction, empty),
        "budget and chunk_rows": (budget, chunk_rows),
    }
    own = linear_weight.shape[0] if linear_weight.dim() else 0
    sizes, slices = zip(*agreed(check, told, True, [own, slice_size], input.device, group), strict=True)
    size = rows_at_a_time(budget, chunk_rows, max(sizes), TWO_ROWS)
    input, linear_weight, linear_bias = under_autocast(*student)
    teacher_input, teacher_weight, teacher_bias = under_autocast(*teacher)
    if along is None:
        x, t = copied(input, group), teacher_input
    else:
        x, t = assembled(input, along, slices, group), concatenated(teacher_input, along, slices, group)
    shape = x.shape[:-1]
    _, live = weights_of_rows(None, mask, shape, "off")
    x, t = x.reshape(-1, x.shape[-1]), t.reshape(-1, t.shape[-1])
    between = divergence_between(kind, temperature, beta, temperature_squared, Spread(Shard(sizes, group)))
    student, teacher = (x, linear_weight, linear_bias), (t, teacher_weight, teacher_bias)
    return distilled(student, teacher, between, live, size, reduction, empty, shape, result_dtype(input))
