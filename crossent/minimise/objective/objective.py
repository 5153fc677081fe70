"""What a network is trained to make small, and what its logits then say: the loss of a batch and its way back.

An objective is made of a task and four settings of a recipe: loss, code (for a number in a range), label smoothing and
the cure for imbalance. It holds both directions, so that they cannot part:

    loss(logits, target)          rows of costs, by the kernels of crossent.compute
    log_probabilities(logits)     what the network thinks is true, once it minimises that loss: the inverse link
                                  (``inverse``), and the prior that a cure for imbalance has moved, moved back

With ``raw=True`` the second is the plain softmax, or its mean on a code: what a comparison that is not fair would take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from crossent.compute import binary_cross_entropy_with_logits, cross_entropy
from crossent.compute.codes import Code, ContinuousBernoulli, Fraction, HLGauss, Ordinal, TwoHot
from crossent.compute.distribution import of_measure
from crossent.compute.functional import result_dtype
from crossent.compute.link import Link
from crossent.compute.losses import NLL, Loss, Smoothed
from crossent.compute.target import Target
from crossent.errors import DataError
from crossent.minimise.data.task import Task
from crossent.minimise.objective.imbalance import Imbalance
from crossent.minimise.objective.inverse import Inverse, inverse_of
from crossent.minimise.objective.mixture import interval_of_mean
from crossent.minimise.objective.spelling import read_call, read_loss


@dataclass(frozen=True, eq=False)
class Objective(ABC):
    """A loss and its inverse link for one task. Build one with ``Objective.of``."""

    task: Task
    function: Loss
    link: Inverse
    imbalance: Imbalance

    @staticmethod
    def of(
        task: Task,
        *,
        loss: str = "nll",
        code: str = "fraction",
        label_smoothing: float = 0.0,
        imbalance: str = "none",
        prior: Tensor | None = None,
    ) -> Objective:
        """The objective of a recipe's settings, each a short text (``spelling``).

        ``code`` counts for a range only. ``prior`` (C,) holds the training rows, or weights, of each class; cures for
        imbalance and LDAM ask for it. Raises DataError for settings that cannot be, alone or together.

        >>> from crossent.minimise.data.task import Task
        >>> task = Task("multi-class", ("a", "b", "c"), "three classes")
        >>> objective = Objective.of(task, loss="focal(2)")
        >>> z = torch.tensor([[1.0, 0.0, 0.0]])
        >>> objective.loss(z, torch.tensor([0]))
        tensor([0.0991])
        >>> objective.log_probabilities(z).exp()
        tensor([[0.7752, 0.1124, 0.1124]], dtype=torch.float64)
        >>> objective.log_probabilities(z, raw=True).exp()
        tensor([[0.5761, 0.2119, 0.2119]], dtype=torch.float64)
        """
        function = read_loss(loss, prior)
        if label_smoothing:
            if isinstance(function, Smoothed):
                raise DataError(f"labels are smoothed twice: by the loss {loss!r} and by label_smoothing.")
            if not 0 <= label_smoothing < 1:
                raise DataError(f"label_smoothing must be 0 or more and below 1, and is {label_smoothing}.")
            function = Smoothed(label_smoothing, function)
        if task.kind != "range":
            return OfClasses(task, function, inverse_of(function, task.columns), Imbalance.of(imbalance, prior))
        if imbalance != "none":
            raise DataError(f"imbalance={imbalance!r} is for classes, and the target is a number in a range.")
        form = _CODES_OF_ONE_LOSS.get(code.partition("(")[0].strip())
        if form and type(function) is not NLL:
            raise DataError(f"the code {code!r} has a loss of its own, {form}: leave loss and label_smoothing alone.")
        coded = read_call(code, "code", _codes(task))
        columns = max(coded.columns, 2) if isinstance(coded, Code) else 2
        return OfRange(task, function, inverse_of(function, columns), Imbalance(), coded)

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many logits a network must give for each row."""

    @property
    def proper(self) -> bool:
        """Whether the minimiser of the loss as it stands is the truth."""
        return self.link.proper and self.imbalance.factor is None

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor | Target, weight: Tensor | None = None) -> Tensor:
        """The cost of every row, in the graph of the logits (…, columns) and of their shape without the last dim.

        ``target``: labels (…), soft labels (…, C), a ``Target`` with a row for each row of the logits, or for a range
        the share (…) of it. ``weight`` (…) multiplies. float64 for float64 logits, float32 for all others.
        """

    @abstractmethod
    def log_probabilities(self, logits: Tensor, *, raw: bool = False) -> Tensor:
        """Log-probabilities (…, C) float64 of the truth as the network has learnt it; no gradient is wanted.

        For a range (…, 2): log(1 - m) and log m of the expected share m of the range. Exact in both tails.
        """

    @abstractmethod
    def log_score(self, logits: Tensor, target: Tensor) -> Tensor:
        """The log-probability (…) that labels were given; of a range the log-density at them, in the target's unit."""

    def claimed(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """The probabilities (2, …, n) of less, and of not more, than numbers (n,); None if it has no distribution."""
        return None

    @abstractmethod
    def starting_bias(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Logits (columns,) float32 that say what the training targets are on average, whatever the features.

        As the bias of a last layer whose weights are small they make training start at the entropy of the labels.
        """


@dataclass(frozen=True, eq=False)
class OfClasses(Objective):
    """Two classes or more: one logit for each."""

    @property
    def columns(self) -> int:
        """One for each class."""
        return self.task.columns

    def loss(self, logits: Tensor, target: Tensor | Target, weight: Tensor | None = None) -> Tensor:
        """``cross_entropy`` with the loss; class weights multiply what the target holds of each class."""
        shape = logits.shape[:-1]
        rows, times = self._target(target, shape)
        bias = self.imbalance.bias
        link = None if bias is None else Link(bias=bias.to(logits.device))
        z = logits.reshape(-1, self.columns)
        value = cross_entropy(z, rows, reduction="none", loss=self.function, link=link, validate=_looking(logits))
        return _times(_times(value, times).reshape(shape), weight)

    def _target(self, target: Tensor | Target, shape: torch.Size) -> tuple[Tensor | Target, Tensor | None]:
        """The target in rows, with class weights in it, or beside it for labels."""
        weight = self.imbalance.weight
        if isinstance(target, Target):
            if weight is None:
                return target, None
            each = weight if target.index is None else weight.to(target.index.device)[target.index]
            held = each if target.weight is None else target.weight * each.to(target.weight)
            return replace(target, weight=held), None
        if not target.is_floating_point():
            flat = target.expand(shape).reshape(-1)
            return flat, None if weight is None else weight.to(flat.device)[flat]
        flat = target.expand(*shape, self.columns).reshape(-1, self.columns)
        return flat if weight is None else flat * weight.to(flat), None

    def log_probabilities(self, logits: Tensor, *, raw: bool = False) -> Tensor:
        """log softmax, the loss's inverse link, and the prior moved back."""
        z = logits.detach().double()
        if raw:
            return of_measure(z).log
        if self.imbalance.bias is not None:
            z = z + self.imbalance.bias.to(z)
        log_p = self.link(of_measure(z).log)
        if self.imbalance.factor is None:
            return log_p
        return of_measure(log_p - self.imbalance.factor.log().to(z)).log

    def log_score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Σ_k q_k log p_k: minus the cross-entropy."""
        log_p = self.log_probabilities(logits)
        if target.is_floating_point():
            return torch.where(target == 0, 0.0, target * log_p).sum(-1)
        return log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def starting_bias(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """log of the classes' shares, one more row spread over all; as a cure for imbalance has moved them."""
        rows = target.shape[0]
        each = torch.ones(rows, dtype=torch.float64) if weight is None else weight.double().cpu()
        soft = target.cpu() if target.is_floating_point() else F.one_hot(target.cpu(), self.columns)
        share = (soft.double() * each.unsqueeze(-1)).sum(0) / each.sum() * rows + 1 / self.columns
        if self.imbalance.factor is not None:
            share = share * self.imbalance.factor
        z = (share / share.sum()).log()
        return (z if self.imbalance.bias is None else z - self.imbalance.bias).float()


@dataclass(frozen=True, eq=False)
class Squared:
    """(m - f)² of m = σ(z): least for the mean of the share, and silent about all else."""

    columns = 1
    power = 2


@dataclass(frozen=True, eq=False)
class Absolute:
    """|m - f| of m = σ(z): least for the median of the share, and silent about all else. Not proper for the mean."""

    columns = 1
    power = 1


@dataclass(frozen=True, eq=False)
class OfRange(Objective):
    """A number in a range: its share f of the range by a code of crossent.compute, or by squared or absolute error.

    ========================  ============================  ===================  =====================
    code                      learns                        interval             log score
    ========================  ============================  ===================  =====================
    fraction                  the mean                      none                 none
    mse                       the mean                      none                 none
    mae                       the median                    none                 none
    continuous_bernoulli      a density e^(z f)             yes                  density
    hlgauss(bins, sigma)      a density of steps, blurred   yes                  density
    twohot(bins)              masses on a grid              yes, to a step       none
    ordinal                   masses on whole numbers       yes                  mass
    ========================  ============================  ===================  =====================

    What is not there is refused with a sentence.
    """

    code: Code | Squared | Absolute

    @property
    def columns(self) -> int:
        """As many as the code asks for."""
        return self.code.columns

    def loss(self, logits: Tensor, target: Tensor | Target, weight: Tensor | None = None) -> Tensor:
        """The code's loss against the shares f (…) of the range."""
        if isinstance(target, Target) or not target.is_floating_point():
            raise TypeError("the target of a range is the share of it, a float (…) in 0 to 1.")
        shape = logits.shape[:-1]
        f, z = target.expand(shape).reshape(-1), logits.reshape(-1, self.columns)
        looking = _looking(logits)
        match self.code:
            case Fraction():
                value = binary_cross_entropy_with_logits(
                    z.squeeze(-1), f, reduction="none", loss=self.function, validate=looking
                )
            case HLGauss() | TwoHot():
                q = self._unit(self.code).encode(f.double())
                value = cross_entropy(z, q, reduction="none", loss=self.function, validate=looking)
            case Ordinal():
                value = self.code.loss(z, self._levels(self.code, f), reduction="none")
            case ContinuousBernoulli():
                value = self._unit(self.code).loss(z, f, reduction="none")
            case Squared() | Absolute():
                off = (torch.sigmoid(z.squeeze(-1).double()) - f.double()).abs()
                value = off.pow(self.code.power).to(result_dtype(z))
        return _times(value.reshape(shape), weight)

    def log_probabilities(self, logits: Tensor, *, raw: bool = False) -> Tensor:
        """log(1 - m) and log m of the expected share m, from the code's mean."""
        z = logits.detach().double()
        match self.code:
            case ContinuousBernoulli():
                unit = self._unit(self.code)
                # The mean and its distance from the other end are each other's mirror image: the smaller one is exact.
                near = torch.where(z > 0, -z, z)
                small = unit.mean(near)
                pair = torch.stack((torch.log1p(-small), torch.log(small)), -1)
                return torch.where(z > 0, pair.flip(-1), pair)
            case HLGauss() | TwoHot() | Ordinal():
                log_mass, share = self._masses(z, raw)
                pair = torch.stack((torch.log1p(-share), torch.log(share)), -1)
                return of_measure((log_mass.unsqueeze(-1) + pair).logsumexp(-2)).log
        log_p = of_measure(torch.cat((torch.zeros_like(z), z), -1)).log
        return log_p if raw or not isinstance(self.code, Fraction) else self.link(log_p)

    def expected(self, logits: Tensor) -> Tensor:
        """The expected number (…), in the target's unit."""
        share = self.log_probabilities(logits).exp()
        return self.task.low * share[..., 0] + self.task.high * share[..., 1]

    def quantile(self, logits: Tensor, level: float) -> Tensor:
        """The number (…) that is not exceeded with probability ``level``; TypeError where the code does not know."""
        return self._distribution("median, quantiles or intervals").quantile(self._linked(logits), level)

    def interval(self, logits: Tensor, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The ends (…) of the central interval that holds the number with probability ``level``."""
        return self._distribution("median, quantiles or intervals").interval(self._linked(logits), level)

    def interval_of_mean(self, logits: Tensor, share: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """The ends (n,) of that interval of what members (members, n, columns) believe together, by their shares."""
        return interval_of_mean(self._distribution("intervals"), self._linked(logits), share, level)

    def claimed(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """The probabilities (2, …, n) of less, and of not more, than the shares f (n,) of the range, or None.

        ``logits`` (…, n, columns). The two differ where the number has mass; a millionth of the range is allowed for
        the rounding of shares.
        """
        z, width = self._linked(logits), self.task.high - self.task.low
        ends = [self.task.low + (target.double() + off) * width for off in (-1e-6, 1e-6)]
        try:
            code = self._distribution("probabilities")
            return torch.stack([code.cdf(z, y.expand(z.shape[:-1])) for y in ends])
        except TypeError:  # a mean or a median is all that it learns
            return None

    def log_score(self, logits: Tensor, target: Tensor) -> Tensor:
        """The log-density at the shares f (…), per unit of the target, or the log mass for "ordinal"."""
        code = self._distribution("log_prob")
        if isinstance(code, Ordinal):
            y = self._levels(code, target.reshape(-1)).reshape(target.shape)
        else:
            f = target.double()
            y = (code.low * (1 - f) + code.high * f).clamp(code.low, code.high)
        return code.log_prob(self._linked(logits), y)

    def starting_bias(self, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The logits of the mean target of the code: of its mean, its masses or its questions."""
        f = target.double().cpu()
        each = torch.ones_like(f) if weight is None else weight.double().cpu()
        each, rows = each / each.sum(), len(f)
        mean = ((each * f).sum() * rows + 0.5) / (rows + 1)
        match self.code:
            case ContinuousBernoulli():
                return self._slope_of_mean(float(mean)).reshape(1).float()
            case HLGauss() | TwoHot():
                q = self._unit(self.code).encode(f)
                assert q.index is not None
                assert q.weight is not None
                held = (q.weight * each.unsqueeze(-1)).flatten()
                share = torch.zeros(self.columns, dtype=torch.float64).scatter_add(0, q.index.flatten(), held)
                return ((share * rows + 1 / self.columns) / (rows + 1)).log().float()
            case Ordinal():
                bits, asked = self.code.encode(self._levels(self.code, f))
                yes, all = ((each.unsqueeze(-1) * x).sum(0) * rows for x in (bits * asked, asked))
                return torch.logit((yes + 0.5) / (all + 1)).float()
        return torch.logit(mean).reshape(1).float()

    def _slope_of_mean(self, mean: float) -> Tensor:
        low, high = torch.tensor(-1e4, dtype=torch.float64), torch.tensor(1e4, dtype=torch.float64)
        unit = ContinuousBernoulli(0.0, 1.0)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if float(unit.mean(middle.reshape(1, 1))) < mean else (low, middle)
        return low

    def _distribution(self, what: str) -> Code:
        if isinstance(self.code, Code):
            return self.code
        learns = "mean" if isinstance(self.code, Squared) else "median"
        raise TypeError(
            f"{type(self.code).__name__.lower()} error has no {what}: it learns the {learns} and nothing else of the "
            "distribution. The codes continuous_bernoulli, hlgauss and ordinal learn more."
        )

    def _linked(self, logits: Tensor) -> Tensor:
        """Logits of the code after the inverse link, float64; the link belongs to the bins."""
        z = logits.detach().double()
        return self.link(of_measure(z).log) if isinstance(self.code, (HLGauss, TwoHot)) else z

    def _masses(self, z: Tensor, raw: bool) -> tuple[Tensor, Tensor]:
        """Log masses (…, k) of a code and the shares (k,) of the range where they sit."""
        if isinstance(self.code, Ordinal):
            more, zero = F.logsigmoid(z).cumsum(-1), torch.zeros_like(z[..., :1])
            log_mass = torch.cat((zero, more), -1) + torch.cat((F.logsigmoid(-z), zero), -1)
        else:
            log_p = of_measure(z).log
            log_mass = log_p if raw else self.link(log_p)
        count = log_mass.shape[-1]
        place = torch.arange(count, dtype=torch.float64, device=z.device)
        return log_mass, (place + 0.5) / count if isinstance(self.code, HLGauss) else place / (count - 1)

    def _unit(self, code: Code) -> Code:
        """The same code on shares."""
        match code:
            case HLGauss():
                return HLGauss(0.0, 1.0, code.bins, code.sigma)
            case TwoHot():
                return TwoHot(0.0, 1.0, code.bins)
        return ContinuousBernoulli(0.0, 1.0)

    def _levels(self, code: Ordinal, f: Tensor) -> Tensor:
        """The whole numbers (n,) float64 whose shares of the range are f."""
        place = f.double() * code.columns
        level = place.round()
        wrong = ~((place - level).abs() <= 1e-6 * code.columns + 1e-6)  # a float32 share is known to 6e-8
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise DataError(
                f"the code 'ordinal' is for whole numbers, and {int(wrong.sum()):,} targets are none, first at row "
                f"{at}: {code.low + float(place[at]):g}. Take another code; mixed targets have no levels either."
            )
        return level + code.low


def _times(value: Tensor, weight: Tensor | None) -> Tensor:
    return value if weight is None else value * weight.to(value)


def _looking(logits: Tensor) -> str:
    """Targets are looked at where that costs no wait."""
    return "full" if logits.device.type == "cpu" else "async"


_CODES_OF_ONE_LOSS = {
    "continuous_bernoulli": "minus its log-density",
    "ordinal": "the cross-entropy of its questions",
    "mse": "the squared error",
    "mae": "the absolute error",
}


def _codes(task: Task) -> dict[str, Callable[..., Code | Squared | Absolute]]:
    """The codes of a range by name, with the arguments that a recipe may give them."""
    low, high = task.low, task.high

    def hlgauss(bins: int = 50, sigma: float = 0.75) -> Code:
        return HLGauss(low, high, bins, sigma)

    def twohot(bins: int = 51) -> Code:
        return TwoHot(low, high, bins)

    return {
        "fraction": lambda: Fraction(low, high),
        "mse": Squared,
        "mae": Absolute,
        "continuous_bernoulli": lambda: ContinuousBernoulli(low, high),
        "hlgauss": hlgauss,
        "twohot": twohot,
        "ordinal": lambda: Ordinal(low, high),
    }
