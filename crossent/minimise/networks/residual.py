"""The network for images: a small residual network, from pixels to logits, made for a few CPU cores.

A residual block adds what it learns to what it was given, x + f(x), so that a deeper network is never a harder one to
train (He et al. 2016, eq. 1). Here each f is two 3×3 convolutions, and is zero at the start: the network begins as a
shallow one and grows into its depth (Goyal et al. 2017, §5.1).

What a convolution costs is its multiplications times its places. The stem therefore brings any image to at most 16 × 16
places at once, and the second half of the blocks works on a quarter of them with twice the channels: 28 × 28 pixels
become 14 × 14 and 7 × 7 places. Small images lose nothing, 8 × 8 stay 8 × 8 and become 4 × 4.

    image (c, h, w) → on one scale → stem, at most 16 × 16 → depth blocks of width → depth blocks of 2 width at half
    the side → mean over all places → dropout → logits
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

MOST_PLACES = 16
"""The side that the stem leaves at most: beyond it twice the side is four times the work."""
ENOUGH_IMAGES = 10_000
"""Mean and deviation of the pixels are taken from so many images at most, evenly spaced."""


class Residual(nn.Module):
    """Images (n, c, h, w) → logits (n, columns).

    The mean and the deviation of each channel over the training images are its first step. They travel with the
    weights, so that the network takes images as they are, in 0 … 1 or on any other scale. Nothing depends on the size
    of an image but the stride of the stem: 8 × 8 to 64 × 64 is what it was made for, with any number of channels.

    With ``mirror`` a trained network (``eval()``) looks at every image twice, as it is and mirrored, and gives the mean
    of the two logits. For a network that was trained with flips both are honest answers, and the cross-entropy of the
    mean is, on every row and for every label, at most the mean of the two, because log-sum-exp is convex. It costs a
    second pass, and is wrong where left and right mean something: letters, digits, traffic signs.

    ``width`` is the channels of the first half of the blocks, a multiple of 16 for speed; ``depth`` the blocks of each
    half. Weights are some 90 · depth · width². Batch normalisation makes a row depend on its batch while training:
    batches of one or two images teach it nothing.

    >>> images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    >>> network = Residual.for_images(images, 10, width=16, depth=1, dropout=0.0)
    >>> network(images).shape
    torch.Size([20, 10])
    """

    mean: Tensor
    deviation: Tensor
    work: int
    """Multiplications of an image, roughly: every weight of a convolution is used at every place."""

    def __init__(
        self, channels: int, side: int, columns: int, width: int, depth: int, dropout: float, mirror: bool = False
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels), ("side", side), ("columns", columns), ("width", width), ("depth", depth)
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, and is {value}.")
        self.settings = {
            "channels": channels, "side": side, "columns": columns, "width": width, "depth": depth, "dropout": dropout,
            "mirror": mirror,
        }  # fmt: skip
        self.mirror = mirror
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        stride = 1
        while side > MOST_PLACES * stride:
            stride *= 2
        self.stem = nn.Sequential(_convolution(channels, width, 2 * stride + 1, stride), nn.BatchNorm2d(width))
        wide = 2 * width
        self.blocks = nn.Sequential(
            *(Block(width, width) for _ in range(depth)),
            Block(width, wide, stride=2),
            *(Block(wide, wide) for _ in range(depth - 1)),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(wide, columns)
        self.work = sum(p.numel() for p in self.parameters()) * MOST_PLACES**2 // 4
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(wide))  # start near the even distribution
        nn.init.zeros_(self.head.bias)

    @classmethod
    def for_images(
        cls, x: Tensor, columns: int, *, width: int, depth: int, dropout: float, mirror: bool = False
    ) -> Residual:
        """A fresh network scaled to the training images x (n, c, h, w); draws from torch's own seed.

        A channel that is the same everywhere says nothing, and is centred only. ``ValueError`` for what are not
        images of floating-point numbers, and for NaN or infinite pixels.
        """
        if x.dim() != 4 or x.numel() == 0 or not x.is_floating_point():
            raise ValueError(
                "expected images (n, c, h, w) of floating-point numbers with at least one pixel, got "
                f"{tuple(x.shape)} of {x.dtype}. Give grey images (n, h, w) a channel with x.unsqueeze(1), and bytes "
                "a scale with x.float() / 255."
            )
        network = cls(x.shape[1], max(x.shape[2:]), columns, width, depth, dropout, mirror)
        every = math.ceil(len(x) / ENOUGH_IMAGES)
        deviation, mean = torch.std_mean(x[::every].double(), (0, 2, 3), correction=0)
        if not bool((mean.isfinite() & deviation.isfinite()).all()):
            raise ValueError("images must be finite: a pixel is NaN or infinite.")
        network.mean.copy_(mean[:, None, None])
        flat = deviation <= 1e-6 * mean.abs()  # what rounding leaves of a constant
        network.deviation.copy_(torch.where(flat, 1.0, deviation)[:, None, None])
        return network

    def forward(self, x: Tensor) -> Tensor:
        """The logits (n, columns) of images (n, c, h, w)."""
        if x.dim() != 4 or x.shape[1] != len(self.mean):
            raise ValueError(f"expected images (n, {len(self.mean)}, h, w), got {tuple(x.shape)}.")
        if self.mirror and not self.training:
            return (self._logits(x) + self._logits(x.flip(-1))) / 2
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        # Channels last in memory: what a convolution reads together lies together, which CPUs reward.
        h = ((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        h = self.blocks(relu(self.stem(h)))
        return self.head(self.dropout(h.mean((2, 3))))


class Block(nn.Module):
    """h (n, before, s, s) → relu(shortcut(h) + f(h)), where f is two 3×3 convolutions and zero at the start.

    With ``stride`` 2 the shortcut is a mean over 2 × 2 places before its 1×1 convolution, so that it forgets no place
    (He et al. 2019, "Bag of Tricks", §4, ResNet-D).
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(_convolution(before, after, 3, stride), nn.BatchNorm2d(after))
        last = nn.BatchNorm2d(after)
        nn.init.zeros_(last.weight)
        self.second = nn.Sequential(_convolution(after, after, 3), last)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, _convolution(before, after, 1), nn.BatchNorm2d(after))

    def forward(self, h: Tensor) -> Tensor:
        """What the next block reads."""
        return relu(self.shortcut(h) + self.second(relu(self.first(h))))


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the side, or divides it by the stride; the norm behind it has the bias."""
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # He et al. 2015, eq. 10
    return convolution
