"""The public functions as modules, with PyTorch's names and arguments, for models that hold their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossent.compute import functional
from crossent.compute.link import Link
from crossent.compute.losses import Loss
from crossent.compute.target import Target


class CrossEntropyLoss(nn.Module):
    """``cross_entropy`` with its options fixed.

    >>> CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
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
        self.register_buffer("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.link = link
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
            loss=self.loss,
            link=self.link,
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
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)
        self.class_dim = class_dim
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.loss = loss
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
            loss=self.loss,
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
        self.register_buffer("weight", weight)
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
        self.register_buffer("weight", weight)
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.link = link
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
        return functional.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            linear_bias=self.linear.bias,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            loss=self.loss,
            link=self.link,
            sample_weight=sample_weight,
            mask=mask,
            normaliser=normaliser,
            empty=self.empty,
            validate=self.validate,
            budget=self.budget,
            chunk_rows=self.chunk_rows,
        )
