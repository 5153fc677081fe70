"""Every loss with everything it may be combined with, and whether it says truly what it reads and that it is linear."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossent import Link, cross_entropy, sparse
from crossent.compute import backends
from crossent.compute.losses import LOSSES, NLL, ClassWeighted, Focal, LogZ, Loss, Smoothed
from crossent.compute.rows import row_losses, row_stats
from crossent.compute.stats import Stats
from crossent.compute.target import Target, labels, probabilities
from tests import oracle
from tests.laws.test_losses import KNOBS, WEIGHT

NAMES = [kind.__name__ for kind in LOSSES]
G = torch.Generator().manual_seed(7)
Z = torch.randn(4, 6, generator=G, dtype=torch.float64)
Z[1, 4] = -torch.inf
W = torch.tensor(WEIGHT, dtype=torch.float64)
LABELS = torch.tensor([0, 3, 5, 2])
COLUMNS = torch.tensor([[0, 2], [3, 1], [5, 0], [2, 4]])
SHARES = torch.tensor([[0.7, 0.3], [0.2, 0.8], [1.0, 0.0], [0.5, 0.4]], dtype=torch.float64)
DENSE = torch.softmax(torch.randn(4, 6, generator=G, dtype=torch.float64), -1)
DENSE[1, 4] = DENSE[2, 0] = 0
LINK = Link(temperature=1.7, softcap=3.0, bias=torch.randn(6, generator=G, dtype=torch.float64))
TARGETS = {
    "hard": (LABELS, F.one_hot(LABELS, 6).double()),
    "sparse": (sparse(COLUMNS, SHARES, 6), torch.zeros(4, 6, dtype=torch.float64).scatter(1, COLUMNS, SHARES)),
    "dense": (DENSE, DENSE),
}
SAMPLE = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
COUNTED = torch.tensor([True, True, False, True])
EPSILON, LAMBDA = 0.2, 0.05


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with backends.using(request.param):
        yield


@dataclass(frozen=True)
class Combination:
    """What goes with a loss."""

    weighted: bool
    smoothed: bool
    z_loss: bool
    linked: bool
    sampled: bool
    ignored: bool


EVERYTHING = Combination(*[True] * 6)


def ours(name: str, kind: str, with_: Combination, z: Tensor, reduction: str) -> Tensor:
    loss = NLL() if name == "ClassWeighted" else KNOBS[name]
    target, counted = TARGETS[kind][0], COUNTED if with_.ignored else None
    if with_.ignored and kind == "hard":
        target, counted = torch.where(COUNTED, LABELS, -100), None
    return cross_entropy(
        z,
        target,
        W if with_.weighted or name == "ClassWeighted" else None,
        loss=loss + LAMBDA * LogZ() if with_.z_loss else loss,
        label_smoothing=EPSILON if with_.smoothed else 0.0,
        link=LINK if with_.linked else None,
        sample_weight=SAMPLE if with_.sampled else None,
        mask=counted,
        reduction=reduction,
    )


@cache
def of_label(name: str, row: tuple[float, ...], y: int, weighted: bool) -> float:
    return float(oracle.loss(name, list(row), y, WEIGHT if weighted else None))


def by_hand(name: str, kind: str, with_: Combination) -> tuple[list[float], float]:
    """(rows, mean) put together from the oracle's loss of every single label, on the row that the link gave."""
    weighted = with_.weighted or name == "ClassWeighted"
    name = "NLL" if name == "ClassWeighted" else name
    z, q = Z, TARGETS[kind][1].tolist()
    if with_.linked:
        z = 3.0 * torch.tanh(Z / 3.0) / 1.7 + LINK.bias
    rows, weights = [], []
    for i, row in enumerate(map(tuple, z.tolist())):
        live = [j for j in range(6) if q[i][j] > 0]
        allowed = [j for j in range(6) if row[j] > -float("inf")]
        mass, held = sum(q[i]), sum(q[i][j] * (WEIGHT[j] if weighted else 1.0) for j in live)
        value = sum(q[i][j] * of_label(name, row, j, weighted) for j in live)
        if with_.z_loss:
            value += LAMBDA * held * of_label("LogZ", row, 0, False)
        if with_.smoothed:
            uniform = sum(of_label("ClassWeighted" if weighted else "NLL", row, j, weighted) for j in allowed)
            value = (1 - EPSILON) * value + EPSILON * mass * uniform / len(allowed)
        share = (float(SAMPLE[i]) if with_.sampled else 1.0) * float(COUNTED[i] or not with_.ignored)
        rows.append(share * value)
        weights.append(share * held / mass)
    return rows, sum(rows) / sum(weights)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_with_everything_is_the_composition(name: str, kind: str) -> None:
    def right(given: Combination, truth: Combination) -> bool:
        rows, mean = by_hand(name, kind, truth)
        found = ours(name, kind, given, Z, "none").tolist(), float(ours(name, kind, given, Z, "mean"))
        # Both sides are float64; what is left is a few roundings of the two sums.
        return found == (pytest.approx(rows, rel=1e-12, abs=1e-14), pytest.approx(mean, rel=1e-12, abs=1e-14))

    for flags in itertools.product((False, True), repeat=6):
        assert right(Combination(*flags), Combination(*flags)), Combination(*flags)
    for knob in vars(EVERYTHING):  # the controls: leaving one out is noticed
        if not (name == "ClassWeighted" and knob == "weighted"):
            assert not right(EVERYTHING, replace(EVERYTHING, **{knob: False})), knob


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_is_that_of_the_composition(name: str, kind: str) -> None:
    z = Z.clone()
    z[1, 4] = 0.25  # gradcheck moves every logit, and -inf does not move
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ours(name, kind, EVERYTHING, z, "mean"), z)


OVER = ("allowed", "others", "all")


def smoothed_by_hand(z: Tensor, q: Tensor, w: Tensor, over: str) -> list[float]:
    """Σ_j of the smoothed target's -log p_j, class by class."""
    rows = []
    for row, share in zip(torch.log_softmax(z, -1).neg().tolist(), q.tolist(), strict=True):
        value = 0.0
        for y in [j for j in range(6) if share[j] > 0]:
            allowed = {"allowed": range(6), "others": [j for j in range(6) if j != y], "all": range(6)}[over]
            allowed = [j for j in allowed if over == "all" or row[j] < float("inf")]
            spread = sum(float(w[j]) * row[j] for j in allowed) / len(allowed)
            value += share[y] * ((1 - EPSILON) * float(w[y]) * row[y] + EPSILON * spread)
        rows.append(value)
    return rows


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_over_whom(kind: str, weighted: bool) -> None:
    target, q = TARGETS[kind]
    w = W if weighted else torch.ones_like(W)

    def value(over: str) -> list[float]:
        loss = Smoothed(EPSILON, over=over)
        return cross_entropy(Z, target, W if weighted else None, loss=loss, reduction="none").tolist()

    for over in OVER:
        assert value(over) == pytest.approx(smoothed_by_hand(Z, q, w, over), rel=1e-12)
        for other in OVER:
            assert over == other or value(over) != pytest.approx(smoothed_by_hand(Z, q, w, other), rel=1e-4)
    assert value("all")[1] == float("inf")
    leaf = Z.clone().requires_grad_()
    for over in OVER:
        (dz,) = torch.autograd.grad(
            cross_entropy(leaf, target, loss=Smoothed(EPSILON, over=over), reduction="sum"), leaf
        )
        assert dz.isfinite().all()


def test_smoothing_over_all_is_pytorchs() -> None:
    z = Z.clone()
    z[1, 4] = -3.0
    theirs = F.cross_entropy(z, LABELS, W, label_smoothing=EPSILON)
    assert torch.allclose(cross_entropy(z, LABELS, W, loss=Smoothed(EPSILON, over="all")), theirs, rtol=1e-13, atol=0)
    others = cross_entropy(z, LABELS, W, loss=Smoothed(EPSILON, over="others"))
    assert not torch.allclose(others, theirs, rtol=1e-3)


def test_the_ends_of_smoothing() -> None:
    z = torch.tensor([[0.0, 1.0, -torch.inf], [2.0, -torch.inf, -torch.inf]])

    def value(y: list[int], epsilon: float, over: str) -> list[float]:
        return cross_entropy(z, torch.tensor(y), loss=Smoothed(epsilon, over=over), reduction="none").tolist()

    assert value([1, 0], 0.0, "all") == value([1, 0], 0.0, "others") == pytest.approx([0.3132617, 0.0])
    assert value([2, 0], 1.0, "allowed") == pytest.approx(
        [0.8132617, 0.0]
    )  # a target that gets no weight costs nothing
    assert value([0, 0], 1.0, "others") == pytest.approx([0.3132617, 0.0])  # an only class has no others
    assert value([2, 1], 0.1, "others") == [float("inf")] * 2
    bounded = cross_entropy(z[:1], torch.tensor([2]), loss=Smoothed(0.1, KNOBS["Brier"], "others"), reduction="none")
    p = torch.softmax(z[0].double(), 0)
    assert bounded.item() == pytest.approx(float(0.9 * (1 + p.square().sum()) + 0.1 * 0.8132617), rel=1e-6)


class Declared(Loss):
    """A loss that says what it is told to say about itself."""

    def __init__(self, loss: Loss, reads: frozenset[str] | None = None, linear: bool | None = None) -> None:
        self.loss, self._reads, self._linear = loss, reads, linear

    @property
    def reads(self) -> frozenset[str]:
        return self.loss.reads if self._reads is None else self._reads

    @property
    def linear(self) -> bool:
        return self.loss.linear if self._linear is None else self._linear

    @property
    def class_weight(self) -> Tensor | None:
        return self.loss.class_weight

    def __call__(self, s: Stats) -> Tensor:
        return self.loss(s)


FIELDS = {"uniform": ("uniform", "count"), "entropy": ("entropy",), "logits": ("logits",)}


def row_target(kind: str) -> Target:
    if kind == "hard":
        return labels(LABELS, 6, -100)
    return probabilities(DENSE) if kind == "dense" else TARGETS["sparse"][0]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_reads_what_it_says_and_no_more(name: str, kind: str) -> None:
    loss = KNOBS[name]
    s = row_stats(Z, row_target(kind), Declared(loss, reads=frozenset(FIELDS)))

    def poisoned(reads: frozenset[str]) -> Tensor:
        unread = [field for read in FIELDS.keys() - reads for field in FIELDS[read]]
        return loss(replace(s, **{field: torch.full_like(vars(s)[field], torch.nan) for field in unread}))

    assert torch.equal(poisoned(loss.reads), loss(s))
    assert not loss(s).isnan().any()
    for read in loss.reads:  # the control: one that says too little is found out
        assert poisoned(loss.reads - {read}).isnan().any(), read


def value_and_gradient(loss: Loss, linear: bool) -> tuple[Tensor, Tensor] | None:
    """Against mixed labels; None if the loss cannot be read that way at all."""
    z = Z.clone().requires_grad_()
    value, _ = row_losses(z, probabilities(DENSE), Declared(loss, linear=linear))
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


@pytest.mark.parametrize("name", NAMES)
def test_linear_is_what_can_be_summed_up(name: str) -> None:
    loss = KNOBS[name]
    apart, summed = value_and_gradient(loss, False), value_and_gradient(loss, True)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(apart, summed, strict=True)) == loss.linear


def test_a_loss_that_wrongly_says_it_is_linear_is_found_out() -> None:
    assert not Focal().linear
    apart, summed = value_and_gradient(Focal(), False), value_and_gradient(Focal(), True)
    assert not torch.allclose(apart[0], summed[0], rtol=1e-2)


def test_wholes_hand_on_what_their_parts_declare() -> None:
    for inner in (NLL(), KNOBS["Focal"], KNOBS["Confidence"], KNOBS["Brier"]):
        for whole in (Smoothed(0.1, inner), 2 * inner, inner + LogZ(), ClassWeighted(W, inner)):
            assert whole.linear == inner.linear
            assert whole.reads >= inner.reads
    assert Smoothed(0.1).reads == {"uniform"}
    assert (KNOBS["Confidence"] + KNOBS["Hinge"]).reads == {"entropy", "logits"}
