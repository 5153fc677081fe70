"""Codes: what their losses learn, labels at every edge, shapes and dtypes, and the sentences of what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossent.compute import cross_entropy
from crossent.compute.codes import CODES, Code, ContinuousBernoulli, Fraction, HLGauss, Ordinal, TwoHot
from crossent.compute.losses import Focal
from tests.compare import ulps
from tests.compute.test_codes import EPS, EXAMPLES, labels, logits

# What the losses learn: the minimum over the logits of the mean loss over a sample.


def best(code: Code, y: Tensor, loss: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    z = torch.zeros(1, code.columns, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [z], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = (loss or (lambda z: code.loss(z.expand(len(y), -1), y)))(z)
        value.backward()
        return value

    search.step(closure)
    return z.detach()


@pytest.mark.parametrize("kind", CODES)
def test_the_best_logits_tell_the_truth(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    y = torch.cat((labels(code, 60, seed=6), torch.tensor([code.low, code.high, code.high], dtype=torch.float64)))
    z = best(code, y)
    if kind is HLGauss:
        target = code.encode(y)
        expected = torch.zeros(code.columns, dtype=torch.float64)
        expected.index_add_(0, target.index.flatten(), target.weight.flatten())
        torch.testing.assert_close(z.softmax(-1)[0], expected / len(y), rtol=0, atol=1e-7)
        assert not torch.allclose(z.softmax(-1)[0], expected.flip(0) / len(y), rtol=0, atol=1e-3)
        return
    torch.testing.assert_close(code.mean(z)[0], y.mean(), rtol=0, atol=1e-6)
    if kind is Ordinal:
        for level in range(-2, 4):
            share_of_level = (y == level).double().mean()
            torch.testing.assert_close(
                code.log_prob(z, torch.tensor([level])).exp()[0], share_of_level, rtol=0, atol=1e-7
            )
        assert code.median(z)[0] == y.sort().values[(len(y) - 1) // 2]
    if kind is ContinuousBernoulli:  # the negative control: without its normaliser the mean is lost
        f = code.encode(y)
        bare = best(code, y, lambda z: F.binary_cross_entropy_with_logits(z.squeeze(-1).expand(len(f)), f))
        assert (code.mean(bare)[0] - y.mean()).abs() > 0.1


# Labels at every edge.


@st.composite
def code_and_label(draw: st.DrawFn) -> tuple[Code, Tensor]:
    low = draw(st.sampled_from([0.0, -1.0, 0.1, 1e4, -3e-5]))
    width = draw(st.sampled_from([1.0, 0.3, 50.0]))
    bins = draw(st.integers(2, 12))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    kind = draw(st.sampled_from([kind for kind in CODES if kind is not Ordinal]))
    code = kind(low, low + width, bins) if kind in (TwoHot, HLGauss) else kind(low, low + width)
    edges = torch.linspace(code.low, code.high, draw(st.sampled_from([bins, bins + 1])), dtype=torch.float64)
    anywhere = code.low + (code.high - code.low) * draw(st.floats(0, 1))
    y = draw(st.sampled_from([*edges.tolist(), min(max(anywhere, code.low), code.high)]))
    return code, torch.tensor([y], dtype=dtype)


@given(code_and_label())
@settings(max_examples=300, deadline=None)
def test_labels_at_the_edges(drawn: tuple[Code, Tensor]) -> None:
    code, y = drawn
    target = code.encode(y)
    if isinstance(code, (TwoHot, HLGauss)):
        assert target.weight.dtype == y.dtype
        assert bool((target.weight >= 0).all())
        assert target.weight.sum().item() == pytest.approx(1, abs=4 * torch.finfo(y.dtype).eps)
        assert 0 <= int(target.index.min()) <= int(target.index.max()) < code.bins
    else:
        assert 0 <= target.item() <= 1
    if isinstance(code, TwoHot):
        weight = torch.zeros(1, code.bins, dtype=y.dtype).scatter_add(-1, target.index, target.weight)
        # The label's own rounding, and that of the weights in a range of that width.
        slack = 4 * torch.finfo(y.dtype).eps * max(abs(code.low), abs(code.high))
        assert code.mean(weight.log()).item() == pytest.approx(y.item(), abs=slack)
    assert bool(code.loss(torch.zeros(1, code.columns), y).isfinite())


@given(code_and_label(), st.sampled_from(["below", "above", "nan", "inf"]))
@settings(max_examples=100, deadline=None)
def test_labels_just_outside_are_refused(drawn: tuple[Code, Tensor], where: str) -> None:
    code, y = drawn
    low, high = torch.tensor([code.low, code.high], dtype=torch.float64).to(y.dtype)
    far = torch.tensor(torch.inf, dtype=y.dtype)
    wrong = {"below": torch.nextafter(low, -far), "above": torch.nextafter(high, far), "nan": far - far, "inf": far}
    with pytest.raises(ValueError, match="outside the range"):
        code.encode(wrong[where].reshape(1))
    code.encode(torch.stack((low, high)))


@given(st.integers(-3, 3), st.integers(1, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_every_level_answers_its_questions(low: int, more: int, data: st.DataObject) -> None:
    code = Ordinal(low, low + more)
    level = data.draw(st.integers(low, low + more))
    for dtype in (torch.int64, torch.float32, torch.int8):
        bits, asked = code.encode(torch.tensor([level], dtype=dtype))
        k = level - low
        assert bits.tolist() == [[1.0] * k + [0.0] * (more - k)]
        assert asked.tolist() == [[1.0] * min(k + 1, more) + [0.0] * (more - k - 1)]


def test_levels_survive_the_way_through_shares() -> None:
    code = Ordinal(0, 49)
    assert 1 / 49 * 49 < 1  # so that rounding down would lose a level
    bits, asked = code.encode(torch.arange(50))
    assert bits.sum(-1).tolist() == list(range(50))
    assert asked.sum(-1).tolist() == [*range(1, 50), 49]


@pytest.mark.parametrize("kind", [TwoHot, HLGauss, Ordinal])
def test_rounded_sums_of_masses_stay_probabilities(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z = logits(code, 2000)
    assert bool((code.cdf(z, code.high) <= 1).all())
    if kind is not Ordinal:
        z[:, -3:] = -torch.inf  # the last three points or bins are empty
        last = code.edges[-4] if kind is HLGauss else code.points[-4]
        almost = math.nextafter(1.0, 0.0)
        assert bool((code.quantile(z, almost) <= last).all())


# Shapes, dtypes, sentences.


@pytest.mark.parametrize("kind", CODES)
def test_shapes_dtypes_and_reductions(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z, y = logits(code, 6), labels(code, 6)
    rows = code.loss(z, y, reduction="none")
    folded = z.reshape(2, 3, -1), y.reshape(2, 3)
    torch.testing.assert_close(code.loss(*folded, reduction="none"), rows.reshape(2, 3), rtol=0, atol=0)
    torch.testing.assert_close(code.mean(folded[0]), code.mean(z).reshape(2, 3), rtol=0, atol=0)
    torch.testing.assert_close(code.loss(*folded), rows.mean(), rtol=8 * EPS, atol=0)
    torch.testing.assert_close(code.loss(*folded, reduction="sum"), rows.sum(), rtol=8 * EPS, atol=0)
    for dtype in (torch.float32, torch.bfloat16):
        narrow = z.to(dtype)
        assert code.loss(narrow, y).dtype == code.mean(narrow).dtype == torch.float32
        # The same logits, widened: mean figures are rounded once to float32, losses are within its 2 ulp.
        assert ulps(code.mean(narrow), code.mean(narrow.double())) <= 0.5
        torch.testing.assert_close(code.loss(narrow, y).double(), code.loss(narrow.double(), y), rtol=2.5e-7, atol=1e-7)
    empty = code.loss(z[:0].requires_grad_(), y[:0])
    assert empty == 0
    assert empty.requires_grad
    assert code.mean(z[:0]).shape == (0,)
    if kind is not Ordinal:
        whole = torch.tensor([1, 2, 3])
        assert torch.equal(code.loss(z[:3], whole), code.loss(z[:3], whole.double()))


def test_targets_go_with_every_loss_of_the_house() -> None:
    code = EXAMPLES[HLGauss]
    z, y = logits(code, 4), labels(code, 4)
    target = code.encode(y)
    assert torch.equal(cross_entropy(z, target), code.loss(z, y))
    dense = torch.zeros(4, code.columns, dtype=torch.float64).scatter(-1, target.index, target.weight)
    torch.testing.assert_close(cross_entropy(z, target, loss=Focal(2.0)), cross_entropy(z, dense, loss=Focal(2.0)))
    assert not torch.allclose(cross_entropy(z, target, loss=Focal(2.0)), code.loss(z, y))


def test_a_half_precision_end_is_the_end() -> None:
    code = Fraction(0.7, 1.1)
    assert torch.tensor(0.7).double() < 0.7  # float32 knows no 0.7
    assert code.encode(torch.tensor([0.7, 1.1])).tolist() == [0.0, 1.0]
    assert code.encode(torch.tensor([0.7, 1.1], dtype=torch.float16)).shape == (2,)
    with pytest.raises(ValueError, match="outside"):
        code.encode(torch.tensor([0.7]).double())
    with pytest.raises(ValueError, match="row 1: inf"):  # in float16 1e5 is infinite itself
        Fraction(0.0, 1e5).encode(torch.tensor([6e4, torch.inf], dtype=torch.float16))


@pytest.mark.parametrize("kind", CODES)
def test_labels_that_cannot_be_are_named(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    y = labels(code, 4).to(torch.float32)
    y[2], y[3] = 31.5, torch.nan
    sentence = rf"2 labels are outside the range {code.low:g} to {code.high:g}, first at row 2: 31.5. Widen the range"
    for call in (lambda: code.encode(y), lambda: code.loss(logits(code, 4), y)):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(ValueError, match=r"1 labels .* first at \(1, 1\): nan"):
        code.encode(y[torch.tensor([[0, 1], [0, 3]])])


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: Fraction(1.0, 1.0), ValueError, "low < high, both finite; got 1.0 and 1.0"),
        (lambda: Fraction(0.0, math.inf), ValueError, "both finite"),
        (lambda: Fraction(math.nan, 1.0), ValueError, "both finite"),
        (lambda: TwoHot(0.0, 1.0, bins=1), ValueError, "at least 2 bins"),
        (lambda: HLGauss(0.0, 1.0, bins=2.5), ValueError, "whole number"),
        (lambda: HLGauss(0.0, 1.0, bins=9, sigma=0.0), ValueError, "sigma, .* must be more than 0; got 0.0"),
        (lambda: Ordinal(0.5, 2), ValueError, "whole numbers from low to high"),
        (lambda: Ordinal(1, 5).encode(torch.tensor([1.0, 2.5])), ValueError, r"not whole numbers, first at row 1: 2.5"),
        (lambda: Fraction(0.0, 1.0).encode(torch.tensor([1j])), TypeError, "real numbers; they are complex64"),
        (lambda: Fraction(0.0, 1.0).mean(torch.zeros(3)), ValueError, r"shape \(…, 1\).*unsqueeze"),
        (lambda: TwoHot(0.0, 1.0, 5).mean(torch.zeros(3, 4)), ValueError, r"shape \(…, 5\), its columns; got \(3, 4\)"),
        (lambda: TwoHot(0.0, 1.0, 5).mean(torch.zeros(3, 5, dtype=torch.int64)), TypeError, "floating-point; .* int64"),
        (lambda: Fraction(0.0, 1.0).loss(torch.zeros(3, 1), torch.zeros(3, 1)), ValueError, r"y.squeeze\(-1\)"),
        (lambda: Fraction(0.0, 1.0).loss(torch.zeros(3, 1), torch.zeros(3), reduction="avg"), ValueError, "'avg'"),
        (lambda: Fraction(0.0, 1.0).interval(torch.zeros(3, 1)), TypeError, "learns the mean and nothing else"),
        (lambda: Fraction(0.0, 1.0).cdf(torch.zeros(3, 1), 0.5), TypeError, "Fraction has no cdf.*HLGauss"),
        (lambda: Fraction(0.0, 1.0).log_prob(torch.zeros(1, 1), torch.zeros(1)), TypeError, "no log_prob"),
        (lambda: TwoHot(0.0, 1.0, 3).log_prob(torch.zeros(1, 3), torch.zeros(1)), TypeError, "between them has prob"),
        (lambda: TwoHot(0.0, 1.0, 3).quantile(torch.zeros(1, 3), 0.0), ValueError, "strictly between 0 and 1; got 0.0"),
        (lambda: TwoHot(0.0, 1.0, 3).interval(torch.zeros(1, 3), 90), ValueError, "strictly between 0 and 1; got 90"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(call: Callable[[], object], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call()


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("kind", CODES)
def test_compiled_and_mapped_a_bad_label_is_nan_in_its_row(kind: type[Code]) -> None:
    code = EXAMPLES[kind]
    z, y = logits(code, 3), labels(code, 3)
    whole = torch.compile(lambda z, y: code.loss(z, y, reduction="none"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(whole(z, y), code.loss(z, y, reduction="none"), rtol=1e-13, atol=1e-13)
    y[1] = 1.5 if kind is Ordinal else 99.0
    assert whole(z, y).isnan().tolist() == [False, True, False]
    y[1] = 99.0
    assert whole(z, y).isnan().tolist() == [False, True, False]
    one_by_one = torch.func.vmap(lambda z, y: code.loss(z.unsqueeze(0), y.unsqueeze(0)))(z, y)
    assert one_by_one.isnan().tolist() == [False, True, False]
