"""Training rows that were never seen: mixed, cut together, jittered, moved; and the targets that go with them.

A mixed row has two labels, and its target is a ``Target`` of two columns, whose weights are multiples of 2^-24 that add
up to 1 to the last bit. So a row that was not mixed after all costs what its label costs, bit for bit, and class counts
of ten thousand cost nothing. Everything is drawn from the generator that is given, row by row.

    mixup      x = λ a + (1 - λ) b, λ ~ Beta(α, α)                                  Zhang et al. 2018, eq. 1
    cutmix     images: a box of b in a, the label weighed by area                    Yun et al. 2019, eq. 1
               tables: some columns of b in a, the label weighed by their number     Somepalli et al. 2021 (SAINT), §3.4
    noise      Gaussian, of that deviation in units of the features
    flip       images: left and right exchanged in every second row
    crop       images: moved by up to so many pixels either way, zeros moving in
    Hidden     manifold mixup: mixup of what a layer inside a network gives           Verma et al. 2019, §2

Rows of a table are (n, d), or (members, n, d) with a pairing for each member; images (n, c, h, w) or (members, n, c, h,
w). A target has the leading dimensions of the rows: labels int64, shares of a range as floats; soft labels have one
dimension more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from crossent.compute.target import Target
from crossent.errors import DataError, some

_STEPS = 2.0**24
"""λ is a whole number of these parts of 1, so that λ and 1 - λ are float32 numbers that add up to 1."""


@dataclass(frozen=True)
class Augment:
    """What is done to every batch; 0 and False do nothing.

    ``mixup`` and ``cutmix`` are the α of Beta(α, α): 1 mixes anything with anything, 0.2 mostly little. With both, each
    row gets one of them by the toss of a coin. ``noise`` is a deviation, ``crop`` a number of pixels.

    >>> g = torch.Generator().manual_seed(0)
    >>> x, target = Augment(mixup=1.0)(torch.eye(3), torch.tensor([0, 1, 2]), g)
    >>> target.index[:, 0].tolist(), target.weight.sum(1).tolist()
    ([0, 1, 2], [1.0, 1.0, 1.0])
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    noise: float = 0.0
    flip: bool = False
    crop: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DataError(f"{name} must be 0 or more and finite, and is {getattr(self, name)}.")
        if self.crop != int(self.crop) or self.crop < 0:
            raise DataError(f"crop is a whole number of pixels, 0 or more, and is {self.crop}.")

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return self != Augment()

    @overload
    def __call__(self, x: Tensor, target: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | Target]: ...

    @overload
    def __call__(
        self, x: Tensor, target: Tensor, generator: torch.Generator, weight: Tensor
    ) -> tuple[Tensor, Tensor | Target, Tensor]: ...

    def __call__(
        self, x: Tensor, target: Tensor, generator: torch.Generator, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor | Target] | tuple[Tensor, Tensor | Target, Tensor]:
        """New rows and their targets, and their weights if they have any; what came is left as it is.

        A row that is λ of a row of weight v and 1 - λ of one of weight w weighs λ v + (1 - λ) w, and its target is
        λ v to (1 - λ) w of theirs, so that every label counts with its own weight.

        Labels come back as a ``Target`` with a row for each row of ``x``, leading dimensions flattened, if rows are
        mixed, and as they came if not; soft labels and shares are mixed to such. x is floating-point, NaN where a value
        is missing: a missing value stays so under noise, and of two rows the heavier one's value, or gap, is taken.
        """
        image = _is_image(x)
        if (self.flip or self.crop) and not image:
            raise DataError(f"flip and crop are for images (n, c, h, w); the rows have shape {tuple(x.shape)}.")
        rows = x.reshape(-1, *x.shape[-3:]) if image else x.reshape(-1, x.shape[-1])
        lead = x.shape[:-3] if image else x.shape[:-1]
        _check(target, lead)
        if self.flip:
            rows = torch.where(_random(len(rows), generator, x).lt(0.5).view(-1, 1, 1, 1), rows.flip(-1), rows)
        if self.crop:
            rows = _moved(rows, self.crop, generator)
        if self.noise:
            drawn = torch.randn(rows.shape, generator=generator, device=generator.device, dtype=rows.dtype)
            rows = rows + self.noise * drawn.to(x.device)
        if not (self.mixup or self.cutmix):
            return (rows.reshape(x.shape), target) if weight is None else (rows.reshape(x.shape), target, weight)
        pair = paired(lead, generator, x.device)
        other = rows[pair]
        if self.mixup:
            share = beta(self.mixup, len(rows), generator, x.device)
            mixed = blend(rows, other, share)
        if self.cutmix:
            cut, kept = (_boxes if image else _columns)(rows, other, self.cutmix, generator)
            if self.mixup:
                coin = _random(len(rows), generator, x) < 0.5
                share = torch.where(coin, share, kept)
                mixed = torch.where(coin.view(-1, *[1] * (rows.dim() - 1)), mixed, cut)
            else:
                share, mixed = kept, cut
        x = mixed.reshape(x.shape)
        if weight is None:
            return x, mixed_target(target, lead, pair, share)
        own, others = weight.reshape(-1), weight.reshape(-1)[pair]
        both = blend(own, others, share)
        share = torch.where((own == others) | (both == 0), share, _to_steps(share.double() * own / both))
        return x, mixed_target(target, lead, pair, share), both.reshape(weight.shape)


def mixed_target(target: Tensor, lead: torch.Size, pair: Tensor, share: Tensor) -> Tensor | Target:
    """The target of rows of which ``share`` (n,) is their own and the rest that of the rows ``pair`` (n,).

    Labels become a ``Target`` of two columns; soft labels and shares of a range are added up in their proportion.
    """
    if not target.is_floating_point():
        y = target.reshape(-1)
        return Target(torch.stack((y, y[pair]), -1), torch.stack((share, 1 - share), -1))
    flat = target.reshape(lead.numel(), *target.shape[len(lead) :])
    return blend(flat, flat[pair], share).reshape(target.shape)


def blend(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """share · a + (1 - share) · b, row by row: a where share is 1, and b where it is 0, to the bit.

    Where either of two values is missing (NaN), that of the heavier row is taken.
    """
    share = share.view(-1, *[1] * (a.dim() - 1)).to(a.dtype)
    mixed = torch.where(share == 1, a, torch.where(share == 0, b, share * a + (1 - share) * b))
    return torch.where(mixed.isnan(), torch.where(share >= 0.5, a, b), mixed)


def beta(alpha: float, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Shares (size,) float32 from Beta(alpha, alpha), each a multiple of 2^-24."""
    # A gamma variate of shape α is one of shape α + 1 times u^(1/α) (Marsaglia & Tsang 2000, §6), here by logarithms:
    # for a small α both of a pair are below any number that can be written down, and their ratio is not.
    shape = torch.full((2, size), alpha + 1, dtype=torch.float64, device=generator.device)
    gamma = torch._standard_gamma(shape, generator=generator).log()
    u = torch.rand(2, size, dtype=torch.float64, generator=generator, device=generator.device)
    one, other = gamma + torch.log1p(-u) / alpha
    return _to_steps(torch.sigmoid(one - other)).to(device)


def paired(lead: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """A row to mix each row with, (n,) for n = the product of ``lead``: for each member a permutation of its rows."""
    members = lead[:-1].numel()
    drawn = torch.rand(members, lead[-1], generator=generator, device=generator.device).argsort(-1)
    first = torch.arange(members, device=drawn.device).unsqueeze(-1) * lead[-1]
    return (drawn + first).reshape(-1).to(device)


def smoothed_target(target: Tensor, smoothing: float, classes: int) -> Tensor:
    """Labels (n,), or soft labels (n, classes), moved towards all classes alike: (1 - ε) q + ε / classes, float64.

    For models with a loss of their own. The objective's ``label_smoothing`` costs the same without the columns.

    >>> smoothed_target(torch.tensor([1]), 0.2, 2)
    tensor([[0.1000, 0.9000]], dtype=torch.float64)
    """
    soft = target if target.is_floating_point() else nn.functional.one_hot(target, classes)
    return (1 - smoothing) * soft.double() + smoothing / classes


@dataclass(frozen=True, eq=False)
class Mixed:
    """How the rows of a batch were mixed inside a network: call it with their target."""

    layer: str
    pair: Tensor
    share: Tensor

    def __call__(self, target: Tensor) -> Tensor | Target:
        """The target (n,) or (n, C) of the mixed rows."""
        return mixed_target(target, torch.Size((len(self.pair),)), self.pair, self.share)


@contextmanager
def hidden_mixup(
    network: nn.Module, layers: tuple[str, ...], alpha: float, rows: int, generator: torch.Generator
) -> Iterator[Mixed]:
    """Manifold mixup: inside this context one of the layers, drawn anew, gives mixtures of its rows.

    ``layers`` are names as in ``network.named_modules()``; "" stands for the input of the network. The layer must give
    a tensor with the batch of ``rows`` as its first dimension, and run once; anything else is an error.

    >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> x, y, g = torch.ones(5, 2), torch.tensor([0, 1, 2, 0, 1]), torch.Generator().manual_seed(0)
    >>> with hidden_mixup(network, ("", "0"), 2.0, len(x), g) as mixed:
    ...     logits = network(x)
    >>> mixed(y).index.shape
    torch.Size([5, 2])
    """
    modules = dict(network.named_modules())
    if not layers or (strange := [name for name in layers if name not in modules]):
        what = f"{strange[0]!r} is no layer of this network" if layers else "no layer was named"
        raise DataError(f"{what}; it has {some([repr(name) for name in modules], 12)}.")
    at = int(torch.randint(len(layers), (), generator=generator, device=generator.device))
    module, device = modules[layers[at]], generator.device
    pair = paired(torch.Size((rows,)), generator, device)
    mixed = Mixed(layers[at], pair, beta(alpha, rows, generator, device))
    runs = 0

    def mix(h: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if not isinstance(h, Tensor) or h.dim() < 2 or len(h) != rows:
            came = f"a tensor of shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
            raise DataError(f"layer {layers[at]!r} should hold a tensor of {rows} rows to mix, and holds {came}.")
        return blend(h, h[pair.to(h.device)], mixed.share.to(h.device))

    if layers[at] == "":
        hook = module.register_forward_pre_hook(lambda _, inputs: (mix(inputs[0]), *inputs[1:]))
    else:
        hook = module.register_forward_hook(lambda _, __, output: mix(output))
    try:
        yield mixed
    finally:
        hook.remove()
    if runs != 1:
        raise DataError(f"layer {layers[at]!r} ran {runs} times where its rows were to be mixed once.")


def _is_image(x: Tensor) -> bool:
    if not x.is_floating_point() or not 2 <= x.dim() <= 5:
        raise DataError(
            "rows are floating-point, (n, d), (members, n, d), (n, c, h, w) or (members, n, c, h, w); got "
            f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}. Tokens cannot be mixed; what an "
            "embedding makes of them can: see hidden_mixup."
        )
    return x.dim() >= 4


def _check(target: Tensor, lead: torch.Size) -> None:
    deeper = target.is_floating_point() and target.dim() == len(lead) + 1
    if isinstance(target, Target) or (target.shape[:-1] if deeper else target.shape) != lead:
        raise DataError(
            f"a target for rows {tuple(lead)} has that shape, or one dimension more for soft labels; got "
            f"{tuple(target.shape)}."
        )


def _random(size: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(size, generator=generator, device=generator.device, dtype=torch.float64).to(like.device)


def _to_steps(share: Tensor) -> Tensor:
    return ((share * _STEPS).round() / _STEPS).float()


def _moved(rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) moved by -most … most pixels in either direction, with zeros moving in."""
    n, c, h, w = rows.shape
    device = generator.device
    down, right = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator, device=device).to(rows.device)
    padded = nn.functional.pad(rows, (most, most, most, most))
    at = torch.arange(n, device=rows.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=rows.device).view(1, c, 1, 1)
    y = (down + torch.arange(h, device=rows.device)).view(n, 1, h, 1)
    x = (right + torch.arange(w, device=rows.device)).view(n, 1, 1, w)
    return padded[at, channel, y, x]


def _boxes(rows: Tensor, other: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images with a box of another in them, and the share of pixels that is their own, exactly.

    The box has the image's proportions and the area 1 - λ before the border cuts it, its centre anywhere.
    """
    n, _, h, w = rows.shape
    side = (1 - beta(alpha, n, generator, rows.device)).double().sqrt()
    inside = []
    for length in (h, w):
        centre, half = (_random(n, generator, rows) * length).floor(), (side * length).floor() / 2
        first, last = (centre - half).floor().clamp(0, length), (centre + half).floor().clamp(0, length)
        place = torch.arange(length, device=rows.device)
        inside.append((place >= first.unsqueeze(-1)) & (place < last.unsqueeze(-1)))
    box = inside[0].unsqueeze(-1) & inside[1].unsqueeze(-2)
    kept = 1 - box.sum((-1, -2)).double() / (h * w)
    return torch.where(box.unsqueeze(1), other, rows), _to_steps(kept)


def _columns(rows: Tensor, other: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows (n, d) with each column from another row with probability 1 - λ, and the share of columns that is theirs."""
    n, d = rows.shape
    drawn = _random(n * d, generator, rows).view(n, d)
    taken = drawn >= beta(alpha, n, generator, rows.device).unsqueeze(-1)
    return torch.where(taken, other, rows), _to_steps(1 - taken.sum(-1).double() / d)
