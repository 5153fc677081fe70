"""PyTorch's own samples of its cross-entropies, given to ours.

PyTorch ships the inputs with which it tests itself: an OpInfo for each function and a ModuleInfo for each module. Here
they go through our functions and modules, and values and gradients are held against PyTorch's *in float64 from the
same inputs*, so that its own rounding is not blamed on us. Where we differ on purpose stands in ``DIFFERENCES`` and
``ANSWERED``: nothing else may differ, and what stands there must.
"""

from __future__ import annotations

import inspect
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from torch import Tensor

import crossent
from tests.compare import faults

# What numbers are worked out in, for every dtype that we take.
WIDE = {torch.float64: torch.float64} | dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), torch.float32)
# Our function, and the samples of one dtype in torch 2.13; fewer means that the list, and this test, has run dry.
LISTS = {
    "cross_entropy": ("cross_entropy", 21),
    "linear_cross_entropy": ("linear_cross_entropy", 329),
    "binary_cross_entropy_with_logits": ("binary_cross_entropy_with_logits", 26),
    "binary_cross_entropy": ("binary_cross_entropy", 11),
    "kl_div": ("kl_divergence", 16),
    "logsigmoid": ("binary_cross_entropy_with_logits", 36),
    "CrossEntropyLoss": ("cross_entropy", 105),
    "LinearCrossEntropyLoss": ("linear_cross_entropy", 857),
    "BCEWithLogitsLoss": ("binary_cross_entropy_with_logits", 6),
    "BCELoss": ("binary_cross_entropy", 6),
}
# Names that are not written here yet. Once there they are tested, and have to go from this list.
ABSENT: set[str] = set()
HEAD = ("input", "linear_weight", "linear_bias")


@dataclass(frozen=True)
class Sample:
    """One call: the function's name in PyTorch, its arguments by PyTorch's names, and the class if it is a module's."""

    name: str
    arguments: dict[str, Any]
    module: str | None = None

    def __getitem__(self, argument: str) -> Any:
        return self.arguments.get(argument)

    def having(self, **changed: Any) -> Sample:
        return replace(self, arguments={**self.arguments, **changed})

    @property
    def dtype(self) -> torch.dtype:
        return self["input"].dtype

    @property
    def reduction(self) -> str:
        return self["reduction"] or "mean"


def kl_div(input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """PyTorch takes log q first and is element-wise; ours takes p first and sums over classes."""
    given = ("log_probabilities" if log_target else "probabilities", "log_probabilities")
    rows = crossent.kl_divergence(target, input, given=given)
    divisor = {"sum": 1, "batchmean": input.shape[0], "mean": input.numel()}
    return rows if reduction == "none" else rows.sum() / divisor[reduction]


def logsigmoid(input: Tensor) -> Tensor:
    """The log-probability of class 1 is minus the cost of a label of 1."""
    return -crossent.binary_cross_entropy_with_logits(input, torch.ones_like(input), reduction="none")


def ours(sample: Sample) -> Tensor:
    """The sample as our call; what is not translated here has the same name in both."""
    arguments = dict(sample.arguments)
    if sample.name in ("kl_div", "logsigmoid"):
        return globals()[sample.name](**arguments)
    if sample.name == "linear_cross_entropy":
        size = getattr(arguments.pop("options", None), "batch_chunk_size", None)
        arguments |= {} if size is None else {"chunk_rows": size}
    if sample.module is None or not hasattr(crossent, sample.module):  # a module that we have as a function only
        return getattr(crossent, sample.name)(**arguments)
    made, forward = getattr(crossent, sample.module), (arguments.pop("input"), arguments.pop("target"))
    if sample.name == "linear_cross_entropy":
        w, bias = arguments.pop("linear_weight"), arguments.pop("linear_bias", None)
        head = made(w.shape[-1], w.shape[0], bias=bias is not None, dtype=w.dtype, **arguments)
        held = {"linear.weight": w} | ({} if bias is None else {"linear.bias": bias})
        assert held.keys() == dict(head.named_parameters()).keys()
        return torch.func.functional_call(head, held, forward)
    return made(**arguments)(*forward)


def theirs(sample: Sample) -> Tensor:
    with warnings.catch_warnings():
        # kl_div's "mean" advertises "batchmean", and chunked heads of many dimensions say that they are not chunked.
        warnings.simplefilter("ignore", UserWarning)
        arguments = {name: value for name, value in sample.arguments.items() if name != "out_features"}
        return getattr(F, sample.name)(**arguments)


@dataclass(frozen=True)
class Difference:
    """Where we differ on purpose: the reason, the samples it holds for, and one of three ways to differ.

    ``refused`` is the sentence we raise where PyTorch answers, and ``then`` makes of the sample one that we take.
    ``instead`` is what to ask of PyTorch, in float64, to get our number. Neither: only the result's dtype differs.
    """

    reason: str
    where: tuple[str, ...]
    when: Callable[[Sample], bool]
    refused: str | None = None
    then: Callable[[Sample], Sample] | None = None
    instead: Callable[[Sample], Tensor] | None = None


def softly(s: Sample) -> Tensor:
    """PyTorch's sum over probability targets that are smoothed within their mass, and our divisor."""
    q = s["target"].movedim(0 if s["input"].dim() == 1 else 1, -1)
    smoothing, mass = s["label_smoothing"] or 0.0, q.sum(-1, keepdim=True)
    smoothed = ((1 - smoothing) * q + smoothing * mass / q.shape[-1]).movedim(-1, 0 if s["input"].dim() == 1 else 1)
    if s.reduction != "mean" or s["weight"] is None:
        return theirs(s.having(target=smoothed, label_smoothing=0.0))
    divisor = (q @ s["weight"] / mass.squeeze(-1)).sum()
    return theirs(s.having(target=smoothed, label_smoothing=0.0, reduction="sum")) / divisor


def between_distributions(s: Sample) -> Tensor:
    """PyTorch's divergence of what the two are when each is divided by its sum, added up over classes."""
    p = s["target"].log_softmax(-1) if s["log_target"] else s["target"] / s["target"].sum(-1, keepdim=True)
    divergence = theirs(s.having(input=s["input"].log_softmax(-1), target=p))
    return divergence.sum(-1) if s.reduction == "none" else divergence


DIFFERENCES = [
    Difference(
        "a loss is never 16 bits wide: the result of bfloat16 and float16 is float32",
        tuple(LISTS),
        when=lambda s: s.dtype.itemsize == 2,
    ),
    Difference(
        "a negative class weight asks a model to be wrong, and its mean may divide by nothing",
        ("cross_entropy", "CrossEntropyLoss"),
        when=lambda s: s["weight"] is not None and bool((s["weight"] < 0).any()),
        refused="class weights must be 0 or more",
        then=lambda s: s.having(weight=s["weight"].abs()),
    ),
    Difference(
        "a negative weight of an element asks a model to be wrong",
        ("binary_cross_entropy", "binary_cross_entropy_with_logits", "BCELoss", "BCEWithLogitsLoss"),
        when=lambda s: s["weight"] is not None and bool((s["weight"] < 0).any()),
        refused="weight must be 0 or more; it is negative",
        then=lambda s: s.having(weight=s["weight"].abs()),
    ),
    Difference(
        "a head of several dimensions is several heads: call once for each",
        ("linear_cross_entropy", "LinearCrossEntropyLoss"),
        when=lambda s: s["linear_weight"].dim() > 2,
        refused="must agree in D|unexpected keyword argument 'out_features'",
    ),
    Difference(
        "the mean of probability targets divides by Σ w q / Σ q of the rows, as one-hot targets must; PyTorch by N",
        ("cross_entropy", "linear_cross_entropy", "CrossEntropyLoss", "LinearCrossEntropyLoss"),
        when=lambda s: s["weight"] is not None and s.reduction == "mean" and s["target"].is_floating_point(),
        instead=softly,
    ),
    Difference(
        "smoothing spreads ε of a row's mass, of 1 or not; if it is 1, only the target's gradient differs",
        ("CrossEntropyLoss", "LinearCrossEntropyLoss"),
        when=lambda s: bool(s["label_smoothing"]) and s["target"].is_floating_point(),
        instead=softly,
    ),
    Difference(
        "the mean of nothing is 0, connected to the graph, and not NaN (empty='nan' is PyTorch's)",
        ("CrossEntropyLoss",),
        when=lambda s: s.reduction == "mean" and s["ignore_index"] and bool((s["target"] == s["ignore_index"]).all()),
        instead=lambda s: 0 * s["input"].sum(),
    ),
    Difference(
        "a divergence is between distributions, which are divided by their sums, and a number for each row of them",
        ("kl_div",),
        when=lambda s: True,
        instead=between_distributions,
    ),
]

# Where PyTorch raises and we answer: its sentence → our reason.
ANSWERED: dict[str, str] = {}
# Arguments that PyTorch has and we do not.
WITHOUT = {
    "size_average": "deprecated there: reduction says it",
    "reduce": "deprecated there: reduction says it",
    "options": "how to chunk; chunk_rows here, and no number depends on it",
    "out_features": "a head of several dimensions is several heads",
}


signature = cache(inspect.signature)


def bound(function: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    return dict(signature(function).bind(*args, **kwargs).arguments)


def of_function(name: str, given: Any) -> Sample:
    if name == "logsigmoid":  # a builtin without a signature
        return Sample(name, {"input": given.input})
    return Sample(name, bound(getattr(F, name), (given.input, *given.args), given.kwargs))


def of_module(kind: str, given: Any) -> Sample:
    """The module's options and what it is called with, as one call of its function."""
    build, call = given.constructor_input, given.forward_input
    made = getattr(torch.nn, kind)
    arguments = bound(made, build.args, build.kwargs) | bound(made.forward, (None, *call.args), call.kwargs)
    if kind == "LinearCrossEntropyLoss":
        held, spread = made(*build.args, **build.kwargs).linear, arguments.pop("out_features")
        shape = arguments["num_classes"], *spread
        arguments["linear_weight"] = held.weight.reshape(*shape, -1)
        arguments["linear_bias"] = None if held.bias is None else held.bias.reshape(shape)
        arguments |= {"out_features": spread} if spread else {}
    known = ("self", "in_features", "num_classes", "bias", "device", "dtype")
    return Sample(LISTS[kind][0], {name: value for name, value in arguments.items() if name not in known}, kind)


def samples(source: SimpleNamespace, where: str, dtype: torch.dtype) -> Iterator[Sample]:
    for op in source.functions:
        if op.name == f"nn.functional.{where}":
            given = op.reference_inputs("cpu", dtype, requires_grad=True)
            # A million numbers take seconds and say nothing that a thousand do not.
            yield from (of_function(where, one) for one in given if one.input.numel() < 100_000)
    for info in source.modules:
        if info.module_cls.__name__ == where:
            given = info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=True)
            yield from (of_module(where, one) for one in given)


def leaves(sample: Sample, dtype: torch.dtype | None = None) -> Sample:
    """The sample with leaves of its own, in another floating dtype if one is named."""
    floats = {k: v for k, v in sample.arguments.items() if isinstance(v, Tensor) and v.is_floating_point()}
    made = {k: v.detach().to(dtype or v.dtype).requires_grad_(v.requires_grad) for k, v in floats.items()}
    return sample.having(**made)


def gradients(value: Tensor, sample: Sample, upstream: Tensor) -> dict[str, Tensor]:
    learned = {k: v for k, v in sample.arguments.items() if isinstance(v, Tensor) and v.requires_grad}
    return dict(zip(learned, torch.autograd.grad(value, list(learned.values()), upstream.to(value.dtype)), strict=True))


def as_logits(wide: Sample, narrow: Sample) -> Sample:
    """The fused head in two steps, its logits rounded to the sample's dtype as PyTorch and we both round them.

    bfloat16 logits of 30 are right to 0.1: the truth must start from them. Its gradient does not see the rounding.
    """
    exact = F.linear(*(wide[name] for name in HEAD))
    with torch.no_grad():
        rounding = F.linear(*(narrow[name] for name in HEAD)).double() - exact
    rest = {k: v for k, v in wide.arguments.items() if k not in (*HEAD, "options") and v is not None}
    return Sample("cross_entropy", rest | {"input": exact + rounding})


def allowed(sample: Sample, exact: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """How far a number of ``dtype`` may be from the exact one, given the size of what it was made from.

    Ours is worked out in float32 at least: 2 ulp of a row's loss and 4 ulp of a logit's gradient, so 4 ulp of the
    largest entry of the sample. The truth is float64 and has errors of its own, where 1 - p cancels: 64 ulp of that. A
    16-bit gradient is rounded once. In the fused head the logits' gradient is rounded before it is multiplied, and the
    product of up to 8 terms has half an ulp of each: 4 ulp more.
    """
    wide = WIDE[sample.dtype]
    head = sample.name == "linear_cross_entropy" and dtype == sample.dtype
    ulps = 64 if wide == torch.float64 else 8 if head else 4
    rounded = exact.abs().clamp(min=torch.finfo(dtype).tiny) + (scale if head else 0)
    return ulps * torch.finfo(wide).eps * scale + 0.51 * torch.finfo(dtype).eps * rounded


def near(got: Tensor, exact: Tensor, tolerance: Tensor) -> bool:
    if got.shape != exact.shape:
        return False
    same = (got == exact) | (got.isnan() & exact.isnan())
    return bool((same | ((got.double() - exact).abs() <= tolerance)).all())


def size(exact: Tensor) -> float:
    return float(exact.detach()[exact.isfinite()].abs().max()) if exact.isfinite().any() else 0.0


def head_scales(wide: Sample, asked: Sample, exact: Tensor, upstream: Tensor) -> dict[str, float]:
    """What the products of the head's gradients are made from: the same products of absolute values."""
    (dz,) = torch.autograd.grad(exact, asked["input"], upstream.double(), retain_graph=True)
    head = {name: wide[name].detach().abs().requires_grad_() for name in HEAD if wide[name] is not None}
    products = torch.autograd.grad(F.linear(*head.values()), list(head.values()), dz.abs())
    return {name: size(product) for name, product in zip(head, products, strict=True)}


def check(sample: Sample, instead: Callable[[Sample], Tensor] | None, tally: Counter[str]) -> bool:
    """Whether value and gradients of ours are the exact ones; ``tally`` counts the faults planted and refused."""
    narrow, wide = leaves(sample), leaves(sample, torch.float64)
    head = sample.name == "linear_cross_entropy"
    asked, answer = as_logits(wide, narrow) if head else wide, instead or theirs
    got, exact = ours(narrow), answer(asked)
    assert got.dtype == WIDE[sample.dtype]
    scale = size(exact)
    if asked["weight"] is not None and bool((asked["weight"] < 0).any()):
        scale = size(answer(asked.having(weight=asked["weight"].abs())))  # what cancelled in the sum
    if not near(got, exact, allowed(sample, exact, scale, got.dtype)):
        return False
    upstream = torch.rand_like(got) + 0.5
    if head and got.dim() == 0 and sample.dtype in (torch.bfloat16, torch.float16):
        # Its gradients are made in the forward pass: another factor than a power of two would round them once more,
        # which tests/compute/test_linear_sums.py allows for.
        upstream = torch.exp2(torch.randint(-2, 3, ()).to(got))
    scales = head_scales(wide, asked, exact, upstream) if head else {}
    found, expected = gradients(got, narrow, upstream), gradients(exact, wide, upstream)
    for name, dz in found.items():
        assert dz.dtype == sample.dtype
        tolerance = allowed(sample, expected[name], scales.get(name, size(expected[name])), dz.dtype)
        if not near(dz, expected[name], tolerance):
            return False
        for fault, wrong in faults(torch.atleast_2d(dz)) if name == "input" and dz.numel() else ():
            wrong = wrong.reshape(dz.shape)
            if not torch.equal(wrong, dz):
                tally[fault] += 1
                tally[f"{fault}, and refused"] += not near(wrong, expected[name], tolerance)
    return True


def judge(samples: Iterator[Sample], where: str, dtype: torch.dtype) -> None:
    """Every sample agrees, or differs as listed; every listed difference is there; the comparison sees faults."""
    seen: set[str] = set()
    tally: Counter[str] = Counter()
    for sample in samples:
        tally["samples"] += 1
        instead = None
        for difference in (d for d in DIFFERENCES if where in d.where):
            if not difference.when(sample):
                continue
            seen.add(difference.reason)
            if difference.refused is not None:
                with pytest.raises((ValueError, TypeError), match=difference.refused):
                    ours(leaves(sample))
                assert theirs(leaves(sample)).numel()
                if difference.then is None:
                    break
                sample = difference.then(sample)
            elif difference.instead is not None:
                instead = difference.instead
                assert not check(sample, None, Counter()), f"no difference: {difference.reason}, {sample}"
            else:
                assert theirs(leaves(sample)).dtype == dtype != WIDE[dtype]
        else:
            assert check(sample, instead, tally), f"{where} differs from PyTorch: {sample}"
    assert tally["samples"] >= LISTS[where][1]
    assert tally["sign flipped"] > 0
    listed = {d.reason for d in DIFFERENCES if where in d.where and (d.refused or d.instead or dtype.itemsize == 2)}
    assert seen == listed, "a listed difference was not met"
    # A row or column that is tiny beside the sample's largest entry may be lost unseen, and rows of saturated elements
    # may be exchanged: in one of twenty samples, or in two, at most.
    # A head's gradient in bfloat16 is rounded twice, by 0.4 % each time: 1 % is sometimes not beyond that.
    share = 0.8 if dtype == torch.bfloat16 else 0.95
    for fault in [name for name in tally if f"{name}, and refused" in tally]:
        unseen = tally[fault] - tally[f"{fault}, and refused"]
        assert unseen <= max(2, (1 - share) * tally[fault]), f"a gradient {fault} would pass"


@pytest.fixture(scope="module")
def source() -> Iterator[SimpleNamespace]:
    """PyTorch's lists. What importing them would change for every other test is kept from it."""
    profile = settings.get_current_profile_name()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        # Private modules of PyTorch import its own deprecated ones; that is between PyTorch and itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db
    settings.load_profile(profile)  # PyTorch loads one of its own for hypothesis
    assert not torch.backends.flags_frozen()
    return SimpleNamespace(functions=op_db, modules=module_db)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("where", [name for name in LISTS if hasattr(F, name) or hasattr(torch.nn, name)])
def test_samples(source: SimpleNamespace, where: str, dtype: torch.dtype) -> None:
    there = hasattr(crossent, LISTS[where][0])
    random.seed(0)
    torch.manual_seed(0)
    if there:
        judge(samples(source, where, dtype), where, dtype)
    assert there != (LISTS[where][0] in ABSENT), "it is there and tested: take it off the list"


def test_arguments_have_pytorchs_names() -> None:
    """Every argument of PyTorch's is one of ours, but for those listed; and each of these is somewhere."""
    missing: set[str] = set()
    for where in LISTS:
        home = F if hasattr(F, where) else torch.nn
        if hasattr(home, where) and hasattr(crossent, where):
            missing |= {*signature(getattr(home, where)).parameters} - {*signature(getattr(crossent, where)).parameters}
    assert missing == {*WITHOUT}


def wrong_calls(source: SimpleNamespace) -> Iterator[tuple[Callable[[Any], Tensor], str]]:
    """The mistakes that PyTorch tests itself with, as calls of its functions or of ours, and PyTorch's sentence."""
    for op in source.functions:
        name = op.name.removeprefix("nn.functional.")
        for error in op.error_inputs("cpu") if name in LISTS and op.error_inputs_func else ():
            at = error.sample_input
            yield lambda home, n=name, at=at: getattr(home, n)(at.input, *at.args, **at.kwargs), error.error_regex
    for info in source.modules:
        kind, errors = info.module_cls.__name__, info.module_error_inputs_func
        options = {"dtype": torch.float32, "requires_grad": False, "training": True}
        for error in errors(info, "cpu", **options) if kind in LISTS and errors else ():
            made, at = error.module_error_input.constructor_input, error.module_error_input.forward_input
            call = lambda home, k=kind, m=made, at=at: getattr(home, k)(*m.args, **m.kwargs)(*at.args)  # noqa: E731
            yield call, error.error_regex


# One of PyTorch's own patterns is written so.
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_wrong_calls_are_refused_in_a_sentence(source: SimpleNamespace) -> None:
    torchs = SimpleNamespace(**vars(torch.nn) | vars(F))
    met: Counter[str] = Counter()
    for call, sentence in wrong_calls(source):
        met[sentence] += 1
        with pytest.raises((ValueError, RuntimeError), match=sentence):
            call(torchs)
        if sentence in ANSWERED:
            assert call(crossent).isfinite()
            continue
        with pytest.raises((ValueError, TypeError, IndexError)) as refusal:
            call(crossent)
        said = str(refusal.value)
        assert said.endswith((".", "?")), said
        assert len(said.split()) > 5, said
    assert met.total() >= 30
    assert {*ANSWERED} <= {*met}
