"""The public functions as modules, with PyTorch's names and arguments, for models that hold their loss.

What a loss or a link holds is the module's too: an ``nn.Parameter`` is found by ``parameters()`` and saved, and any
other tensor goes where the module goes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from crossent.compute import functional, fused
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.target import Target


class _Holding(nn.Module):
    """A loss or a link whose tensors are the parameters and buffers of a module."""

    def __init__(self, held: Loss | Link) -> None:
        super().__init__()
        self._rest = copy.copy(held)
        for name, inside in vars(held).items():
            inside = _held(inside)
            if isinstance(inside, nn.Module):
                self.add_module(name, inside)
            elif isinstance(inside, nn.Parameter):
                self.register_parameter(name, inside)
            elif isinstance(inside, Tensor) and not inside.requires_grad:  # one that does is its owner's to look after
                self.register_buffer(name, inside, persistent=False)
            else:
                continue
            object.__setattr__(self._rest, name, None)

    def forward(self) -> Any:
        """The loss or the link with its tensors as they are now."""
        made = copy.copy(self._rest)
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            object.__setattr__(made, name, tensor)
        for name, module in self._modules.items():
            object.__setattr__(made, name, _as_it_is(module))
        return made

    def _get_name(self) -> str:
        return type(self._rest).__name__


def _held(held: Any) -> Any:
    """A loss or a link as it is, or as a module if it holds tensors or modules; anything else as it is."""
    if isinstance(held, nn.Module) or not isinstance(held, (Loss, Link)):
        return held
    inside = _Holding(held)
    return inside if (*inside._parameters, *inside._buffers, *inside._modules) else held


def _as_it_is(held: Any) -> Any:
    """The loss or the link that is held."""
    return held() if isinstance(held, _Holding) else held


def _register_weight(module: nn.Module, name: str, weight: Tensor | None) -> None:
    """A weight is a buffer, as PyTorch's, unless it is to be learned."""
    if isinstance(weight, nn.Parameter):
        module.register_parameter(name, weight)
    else:
        module.register_buffer(name, weight)


class CrossEntropyLoss(nn.Module):
    """``cross_entropy`` with its options fixed.

    A ``weight``, and whatever ``loss`` and ``link`` hold, is learned with the model if it is an ``nn.Parameter``; so
    are the parameters of a loss that is a module itself (``class Mine(nn.Module, Loss)``, whose ``forward`` takes the
    statistics).

    >>> CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    >>> learned = CrossEntropyLoss(link=Link(temperature=nn.Parameter(torch.tensor(1.5))))
    >>> [name for name, _ in learned.named_parameters()]
    ['link.temperature']
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        loss: Loss | None = None,
        link: Link | None = None,
        empty: str = "zero",
        validate: str = "full",
    ) -> None:
        super().__init__()
        _register_weight(self, "weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.loss = _held(loss)
        self.link = _held(link)
        self.empty = empty
        self.validate = validate

    def forward(
        self,
        input: Tensor,
        target: Tensor | Target,
        *,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        normaliser: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of logits (N, C, …) against their targets; weights and mask of the rows belong to the batch."""
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            loss=_as_it_is(self.loss),
            link=_as_it_is(self.link),
            sample_weight=sample_weight,
            mask=mask,
            normaliser=normaliser,
            empty=self.empty,
            validate=self.validate,
        )


class BCEWithLogitsLoss(nn.Module):
    """``binary_cross_entropy_with_logits`` with its options fixed.

    >>> BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
    tensor(1.3863)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        class_dim: int | None = None,
        label_smoothing: float = 0.0,
        loss: Loss | None = None,
        empty: str = "zero",
        validate: str = "full",
    ) -> None:
        super().__init__()
        _register_weight(self, "weight", weight)
        _register_weight(self, "pos_weight", pos_weight)
        self.class_dim = class_dim
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.loss = _held(loss)
        self.empty = empty
        self.validate = validate

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits of any shape against targets of the same shape."""
        return functional.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            class_dim=self.class_dim,
            label_smoothing=self.label_smoothing,
            loss=_as_it_is(self.loss),
            empty=self.empty,
            validate=self.validate,
        )


class BCELoss(nn.Module):
    """``binary_cross_entropy`` of probabilities, with its options fixed.

    >>> BCELoss()(torch.full((2,), 0.5), torch.tensor([1.0, 0.0]))
    tensor(0.6931)
    """

    weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, *, reduction: str = "mean", empty: str = "zero", validate: str = "full"
    ) -> None:
        super().__init__()
        _register_weight(self, "weight", weight)
        self.reduction = reduction
        self.empty = empty
        self.validate = validate

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of probabilities of any shape against targets of the same shape."""
        return functional.binary_cross_entropy(
            input, target, self.weight, reduction=self.reduction, empty=self.empty, validate=self.validate
        )


class LinearCrossEntropyLoss(nn.Module):
    """A linear head and its cross-entropy in one; the logits are never all there.

    >>> head = LinearCrossEntropyLoss(8, 100)
    >>> head(torch.zeros(2, 8), torch.tensor([1, 2])).item()  # log 100
    4.605170249938965
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        loss: Loss | None = None,
        link: Link | None = None,
        empty: str = "zero",
        validate: str = "full",
        budget: int | str | None = None,
        chunk_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        _register_weight(self, "weight", weight)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.loss = _held(loss)
        self.link = _held(link)
        self.empty = empty
        self.validate = validate
        self.budget = budget
        self.chunk_rows = chunk_rows

    def forward(
        self,
        input: Tensor,
        target: Tensor | Target,
        *,
        sample_weight: Tensor | None = None,
        mask: Tensor | None = None,
        normaliser: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of hidden states (…, in_features) against their targets."""
        return fused.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            loss=_as_it_is(self.loss),
            link=_as_it_is(self.link),
            sample_weight=sample_weight,
            mask=mask,
            normaliser=normaliser,
            empty=self.empty,
            validate=self.validate,
            budget=self.budget,
            chunk_rows=self.chunk_rows,
        )
