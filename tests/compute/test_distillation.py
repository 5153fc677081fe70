"""Distillation: value and gradient are the formula's, also of nearly equal, sure and shortened teachers."""

from __future__ import annotations

import importlib

import mpmath as mp
import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as some
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from crossent import cross_entropy, distillation, entropy, js_divergence, kl_divergence, sparse
from crossent.compute import distribution
from tests import oracle
from tests.compare import faults, ulps
from tests.compute.divergences import INF, PAIRS, true_js, true_kl

BETA = 0.3
TRUTH = {
    "forward_kl": true_kl,
    "reverse_kl": lambda p, q: true_kl(q, p),
    "jsd": lambda p, q: true_js(p, q, BETA),
}
KINDS = list(TRUTH)
STEP = mp.mpf(10) ** -25


def tempered(z: list[float], temperature: float) -> list[mp.mpf]:
    return oracle.probabilities([v if v == -INF else mp.mpf(v) / mp.mpf(temperature) for v in z])


def slope(value, z: list[float]) -> list[float]:
    """Central differences of a function of logits, with 60 digits: right to 10 and more after the step's 25."""

    def at(j: int, sign: int) -> mp.mpf:
        return value([v if v == -INF else mp.mpf(v) + sign * STEP * (i == j) for i, v in enumerate(z)])

    return [0.0 if v == -INF else float((at(j, 1) - at(j, -1)) / (2 * STEP)) for j, v in enumerate(z)]


def refuses_faults(dz: Tensor, gradient: list, scale: list, limit: float) -> None:
    for fault, wrong in faults(dz):
        if not torch.allclose(wrong, dz, rtol=0, atol=1e-100):  # some columns have a gradient of 1e-313
            assert ulps(wrong, gradient, scale) > limit, f"a gradient {fault} would pass"


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradient_are_the_formula(name: str, kind: str, temperature: float) -> None:
    t, z = PAIRS[name]
    student = torch.tensor([z, z], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([t, t], dtype=torch.float64)
    options = {"kind": kind, "temperature": temperature, "beta": BETA}
    ours = distillation(student, teacher, reduction="none", **options)

    def formula(z: list) -> mp.mpf:
        return TRUTH[kind](tempered(t, temperature), tempered(z, temperature))

    truth = formula(z)
    if mp.isinf(truth):
        assert ours.tolist() == [INF, INF]
        return
    assert ours[0].item() == pytest.approx(float(truth), rel=1e-14, abs=0)
    assert ours[0].item() * (1 + 1e-13) != pytest.approx(float(truth), rel=1e-14, abs=0)
    squared = distillation(student, teacher, reduction="none", temperature_squared=True, **options)
    assert torch.equal(squared, ours * temperature**2)
    (dz,) = torch.autograd.grad(ours.sum(), student)
    gradient = slope(formula, z)
    if not any(gradient):  # of disjoint distributions: 0, but for the rounding of terms near 1
        assert dz.abs().max() < 1e-15
        return
    # An entry that is a small difference of larger ones has their rounding: relative to the largest, times its ulps.
    scale = [[max(map(abs, gradient))] * len(z)] * 2
    limit = 2**13  # 1e-12 in float64: a step of 1e-25 and some 50 operations
    assert ulps(dz, [gradient] * 2, scale) <= limit
    refuses_faults(dz, [gradient] * 2, scale, limit)
    assert (dz[teacher == -INF] == 0).all() or kind != "reverse_kl"


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_rounded_once(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(6, 40, generator=generator)
    z = t + 10.0 ** torch.arange(-5, 1).unsqueeze(-1) * torch.randn(6, 40, generator=generator)  # ever less alike
    z[1, 7] = t[1, 7] = 25.0
    student = z.clone().requires_grad_()
    ours = distillation(student, t, kind=kind, beta=BETA, reduction="none")
    assert ours.dtype == torch.float32
    pairs = list(zip(t.tolist(), z.tolist(), strict=True))
    truth = [float(TRUTH[kind](oracle.probabilities(a), oracle.probabilities(b))) for a, b in pairs]
    assert ulps(ours.detach(), truth) <= 0.51
    (dz,) = torch.autograd.grad(ours.sum(), student)
    assert dz.dtype == torch.float32
    wide = z.double().requires_grad_()  # held to mpmath above
    (exact,) = torch.autograd.grad(distillation(wide, t, kind=kind, beta=BETA, reduction="sum"), wide)
    assert ulps(dz, exact) <= 0.51
    refuses_faults(dz, exact, exact, 0.51)
    half = z.bfloat16().requires_grad_()
    value = distillation(half, t, kind=kind)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, half)[0].dtype == torch.bfloat16
    if kind == "forward_kl":
        log_q, log_p = z.log_softmax(-1), t.log_softmax(-1)
        torchs = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        assert ulps(torchs, truth) > 1e5  # what students near their teachers are shown elsewhere


def test_forward_kl_is_cross_entropy_less_the_teachers_entropy() -> None:
    torch.manual_seed(1)
    z, t = torch.randn(5, 7).double().requires_grad_(), torch.randn(5, 7).double()
    value = distillation(z, t)
    loss = cross_entropy(z, t.softmax(-1))
    torch.testing.assert_close(value, loss - entropy(t, given="logits").mean(), rtol=1e-13, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(value, z), torch.autograd.grad(loss, z)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)
    assert not torch.allclose(ours, torch.autograd.grad(distillation(z, t, kind="reverse_kl"), z)[0], rtol=1e-2)


def test_whatever_the_teacher_is_given_as() -> None:
    torch.manual_seed(2)
    z, counts = torch.randn(4, 5).double(), torch.randint(1, 9, (4, 5)).double()
    counts[1, 2] = 0
    p = counts / counts.sum(-1, keepdim=True)
    expected = distillation(z, p.log(), temperature=2.0)
    for given, form in (("counts", counts), ("probabilities", p), ("log_probabilities", p.log())):
        torch.testing.assert_close(distillation(z, form, given=given, temperature=2.0), expected, rtol=1e-13, atol=0)
    assert distillation(z, p, temperature=2.0) != expected  # probabilities taken for logits are another teacher
    plain = kl_divergence(p, z, given=("probabilities", "logits")).mean()
    torch.testing.assert_close(distillation(z, p, given="probabilities"), plain, rtol=1e-14, atol=0)
    mixed = js_divergence(p, z, given=("probabilities", "logits"), weight=BETA).mean()
    torch.testing.assert_close(
        distillation(z, p, given="probabilities", kind="jsd", beta=BETA), mixed, rtol=1e-14, atol=0
    )


TOP = {  # logits of the student, the teacher's columns and log-probabilities
    "ordinary": ([0.3, -1.2, 2.0, 0.1, 0.7], [2, 0], [-0.5, -1.5]),
    "sure teacher": ([0.3, -1.2, 30.0, 0.1, 0.7], [2, 4], [-1e-11, -27.0]),
    "sure student": ([0.3, -1.2, 40.0, 0.1, 0.7], [2, 1], [-0.1, -3.0]),
    "masked student": ([0.3, -INF, 2.0, 0.1, -INF], [2, 3], [-0.5, -1.5]),
    "one column": ([0.3, -1.2, 2.0, 0.1, 0.7], [3], [-1e-6]),
    "filled up": ([0.3, -1.2, 2.0, 0.1, 0.7], [3, 1, 0], [-0.3, -2.0, -INF]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TOP)
def test_a_teacher_of_k_columns_and_the_rest(name: str, kind: str) -> None:
    z, index, log_p = TOP[name]
    student = torch.tensor([z, z], dtype=torch.float64, requires_grad=True)
    columns = torch.tensor([index, index])
    teacher = torch.tensor([log_p, log_p], dtype=torch.float64)
    ours = distillation(
        student, teacher, given="log_probabilities", index=columns, kind=kind, beta=BETA, reduction="none"
    )
    p = [mp.exp(v) for v in log_p]
    p.append(1 - mp.fsum(p))

    def formula(z: list) -> mp.mpf:
        q = oracle.probabilities(z)
        best = [q[j] for j in index]
        return TRUTH[kind](p, [*best, mp.fsum(v for j, v in enumerate(q) if j not in index)])

    truth = formula(z)
    if mp.isinf(truth):
        assert ours.tolist() == [INF, INF]
        return
    # 1 - Σ p is a sum of float64 numbers near 1e-11, but for the first exact: 1e-16 of them and of Σ p.
    assert ours[0].item() == pytest.approx(float(truth), rel=1e-13, abs=0)
    assert ours[0].item() * (1 + 1e-12) != pytest.approx(float(truth), rel=1e-13, abs=0)
    (dz,) = torch.autograd.grad(ours.sum(), student)
    gradient = slope(formula, z)
    scale = [[max(map(abs, gradient))] * len(z)] * 2
    assert ulps(dz, [gradient] * 2, scale) <= 2**13
    refuses_faults(dz, [gradient] * 2, scale, 2**13)


def test_the_rest_keeps_its_digits_where_1_minus_its_sum_does_not() -> None:
    """The negative control of "sure student": its other columns together, from their own logits."""
    z = torch.tensor([[0.3, -1.2, 40.0, 0.1]], dtype=torch.float64)
    teacher, index = torch.tensor([[1 - 1e-3]], dtype=torch.float64), torch.tensor([[2]])
    q = 1 - z.softmax(-1)[0, 2]
    assert q == 0  # and so the textbook's KL is infinite
    q, p = oracle.probabilities(z[0].tolist()), [mp.mpf(teacher.item()), 1 - mp.mpf(teacher.item())]
    truth = true_kl(p, [q[2], q[0] + q[1] + q[3]])
    ours = distillation(z, teacher, given="probabilities", index=index)
    assert ours.item() == pytest.approx(float(truth), rel=1e-13, abs=0)


def test_renormalised_is_a_sparse_target() -> None:
    torch.manual_seed(3)
    z = torch.randn(4, 9).double().requires_grad_()
    p, index = torch.randn(4, 9).double().softmax(-1).topk(3)
    options = {"given": "probabilities", "index": index, "rest": "renormalise"}
    value = distillation(z, p, **options)
    q = p / p.sum(-1, keepdim=True)
    loss = cross_entropy(z, sparse(index, q, classes=9))
    torch.testing.assert_close(value, loss - entropy(q, given="probabilities").mean(), rtol=1e-13, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(value, z), torch.autograd.grad(loss, z)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-16)
    dense = torch.zeros(4, 9, dtype=torch.float64).scatter(-1, index, q)
    for kind in ("forward_kl", "jsd"):
        for temperature in (1.0, 2.0):
            short = distillation(z, p, kind=kind, temperature=temperature, **options)
            whole = distillation(z, dense, given="probabilities", kind=kind, temperature=temperature)
            torch.testing.assert_close(short, whole, rtol=1e-13, atol=0)
    assert value != distillation(z, p, given="probabilities", index=index)


@settings(deadline=None, max_examples=40)
@over(some.lists(some.tuples(some.floats(-8, 8), some.floats(-8, 8)), min_size=3, max_size=7), some.integers(1, 3))
def test_k_columns_never_say_more_than_all(rows: list[tuple[float, float]], k: int) -> None:
    z, t = torch.tensor(rows, dtype=torch.float64).T
    log_p, index = t.log_softmax(-1).topk(k)
    everything = t.log_softmax(-1).sort(descending=True)
    for kind in KINDS:
        whole = distillation(z, t, kind=kind)
        short = distillation(z, log_p, given="log_probabilities", index=index, kind=kind)
        assert short >= 0
        # The rest, 1e-7 and more here, is what 1 - Σ p says, to 1e-16: its logarithm to 1e-9.
        assert short <= whole + 1e-8
        full = distillation(z, everything.values, given="log_probabilities", index=everything.indices, kind=kind)
        torch.testing.assert_close(full, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_all_orders(kind: str) -> None:
    torch.manual_seed(4)
    z = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    t = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 2], [3, 4], [5, 1]])
    log_p = t.detach().log_softmax(-1).gather(-1, index).requires_grad_()

    def dense(z: Tensor, t: Tensor) -> Tensor:
        return distillation(z, t, kind=kind, temperature=2.0, beta=BETA)

    def short(z: Tensor, t: Tensor) -> Tensor:
        return distillation(z, t, given="log_probabilities", index=index, kind=kind, beta=BETA)

    for call, teacher in ((dense, t), (short, log_p)):  # of the teacher too, where it asks
        assert torch.autograd.gradcheck(call, (z, teacher))
        assert torch.autograd.gradgradcheck(call, (z, teacher))
    (dz,) = torch.autograd.grad(dense(z, t), z)
    assert torch.equal(torch.func.grad(dense)(z.detach(), t.detach()), dz)
    rows = torch.func.vmap(torch.func.grad(dense))(z.detach(), t.detach()) / 3
    torch.testing.assert_close(rows, dz, rtol=1e-14, atol=1e-18)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_functions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards, and forwards over backwards, as ``torch.func.hessian`` has it: those of the formula in plain torch."""
    g = torch.Generator().manual_seed(2)
    z, t = (torch.randn(2, 4, generator=g, dtype=torch.float64) for _ in range(2))

    def formula(z: Tensor, t: Tensor) -> Tensor:
        p, q = (x.div(1.5).log_softmax(-1) for x in (t, z))
        p, q = (q, p) if kind == "reverse_kl" else (p, q)
        if kind != "jsd":
            return (p.exp() * (p - q)).sum(-1).mean()
        m = (BETA * p.exp() + (1 - BETA) * q.exp()).log()
        return (BETA * p.exp() * (p - m) + (1 - BETA) * q.exp() * (q - m)).sum(-1).mean()

    def ours(z: Tensor, t: Tensor) -> Tensor:
        return distillation(z, t, kind=kind, temperature=1.5, beta=BETA)

    ways = torch.func.hessian, torch.func.jacfwd, lambda f: torch.func.jacfwd(torch.func.grad(f))
    truths = [way(lambda z: formula(z, t))(z) for way in ways]
    for way, truth in zip(ways, truths, strict=True):
        torch.testing.assert_close(way(lambda z: ours(z, t))(z), truth, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.func.jvp(ours, (z, t), (t, z))[1], torch.func.jvp(formula, (z, t), (t, z))[1])
    with pytest.raises(NotImplementedError, match="would silently be 0"):
        torch.func.jacfwd(torch.func.jacfwd(lambda z: kl_divergence(z, t, given="logits").sum()))(z)

    true = distribution._LogSoftmaxForward.jvp
    of_the_next_class = staticmethod(lambda ctx, t, *rest: true(ctx, t, *rest).roll(1, -1))
    monkeypatch.setattr(distribution._LogSoftmaxForward, "jvp", of_the_next_class)
    assert not torch.allclose(torch.func.hessian(lambda z: ours(z, t))(z), truths[0], rtol=1e-3)


def test_the_forward_derivative_of_a_sure_row_keeps_the_digits_of_the_backward_one() -> None:
    z = torch.tensor([30.0, 0.0, 1.0, -2.0], dtype=torch.float64)
    ways = (torch.func.jacfwd, torch.func.jacrev)
    forwards, backwards = (way(lambda z: distribution.of_measure(z).log)(z) for way in ways)
    torch.testing.assert_close(forwards, backwards, rtol=1e-15, atol=0)
    assert not torch.allclose(forwards, torch.eye(4).double() - z.softmax(-1), rtol=1e-6, atol=0)  # as it is usually


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compile_without_a_graph_break() -> None:
    z, t = torch.randn(4, 6), torch.randn(4, 6)
    compiled = torch.compile(lambda z: distillation(z, t, kind="jsd"), fullgraph=True, backend="aot_eager")
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    distillation(a, t, kind="jsd").backward()
    compiled(b).backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("short", [False, True])
def test_masked_rows_are_not_read(short: bool) -> None:
    torch.manual_seed(5)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    z = torch.randn(2, 3, 5)
    if short:
        t, index = torch.rand(2, 3, 2) / 2, torch.tensor([0, 4]).expand(2, 3, 2).clone()
        index[~mask] = -100
        options = {"given": "probabilities", "index": index}
        picked = {"given": "probabilities", "index": index[mask]}
    else:
        t, options, picked = torch.randn(2, 3, 5), {}, {}
    z[~mask], t[~mask] = torch.nan, torch.nan
    z.requires_grad_()
    value = distillation(z, t, mask=mask, **options)
    (dz,) = torch.autograd.grad(value, z)
    assert value == distillation(z[mask], t[mask], **picked)
    assert not dz[~mask].any()
    assert not dz[~mask].signbit().any()
    assert dz[mask].isfinite().all()
    assert dz[mask].any()
    rows = distillation(z, t, mask=mask, reduction="none", **options)
    assert rows.shape == (2, 3)
    assert not rows[~mask].any()
    nothing = distillation(z, t, mask=torch.zeros(2, 3, dtype=torch.bool), **options)
    assert nothing == 0
    assert not torch.autograd.grad(nothing, z)[0].any()
    with pytest.raises(ValueError, match="no row has any weight"):
        distillation(
            z[:0], t[:0], mask=mask[:0], empty="raise", **{k: v[:0] if k == "index" else v for k, v in options.items()}
        )
    if not short:
        assert distillation(z, t).isnan()  # read, it would be seen


class Largest(TorchDispatchMode):
    """The largest float64 tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                self.numel = max(self.numel, tensor.numel())
        return made


def test_blocks_change_no_bit_and_nothing_wide_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    module = importlib.import_module("crossent.compute.distillation")
    z, t = torch.randn(64, 10), torch.randn(64, 10)

    def seen() -> tuple[list[Tensor], int]:
        leaf = z.clone().requires_grad_()
        with Largest() as largest:
            value = distillation(leaf, t, kind="jsd", reduction="none")
            (dz,) = torch.autograd.grad(value.sum(), leaf)
        return [value.detach(), dz], largest.numel

    whole, most = seen()
    assert most == 640
    monkeypatch.setattr(module, "BLOCK", 79)  # seven rows
    parts, most = seen()
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert most == 70


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"kind": "kl"}, ValueError, "kind must be one of 'forward_kl', 'reverse_kl', 'jsd'; got 'kl'"),
        ({"given": "scores"}, ValueError, "given must be one of"),
        ({"temperature": 0.0}, ValueError, "temperature must be greater than 0 and finite, and is 0.0"),
        ({"kind": "jsd", "beta": 1}, ValueError, "beta must be between 0 and 1, and is 1"),
        ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
        ({"teacher": torch.ones(4, 2)}, ValueError, "A teacher of k columns needs their index"),
        ({"teacher": torch.ones(4, 3).long()}, TypeError, "teacher must hold floating-point numbers; it is int64"),
        ({"given": "probabilities"}, ValueError, "do not sum to 1, in row 0, 1, 2, 3; the first sums to 3"),
        ({"given": "counts", "teacher": torch.zeros(4, 3)}, ValueError, "counts that are all 0, in row 0"),
        ({"given": "counts", "teacher": -torch.ones(4, 3)}, ValueError, "negative, infinite or NaN, in row 0"),
        ({"mask": torch.ones(4)}, ValueError, "True for rows that count .target != ignore_index.; it is float32"),
        ({"index": torch.zeros(4, 3).long()}, ValueError, "does not say what its other columns hold"),
        ({"k": [[0, 1]], "p": 0.3, "temperature": 2.0}, ValueError, "cannot be brought to temperature 2.0"),
        ({"k": [[0, 1]], "p": 0.3, "rest": "renormalise", "kind": "reverse_kl"}, ValueError, "reverse_kl is infinite"),
        ({"k": [[0, 1]], "p": 0.3, "rest": "drop"}, ValueError, "rest must be one of 'other', 'renormalise'"),
        (
            {"k": [[0, 1]], "p": 0.6},
            ValueError,
            "sum to more than 1, or to 0, in row 0, 1, 2, 3; the first sums to 1.2",
        ),
        ({"k": [[0, 3]], "p": 0.3}, IndexError, r"no class of the student, in row 0, 1, 2, 3: \[0, 3\]"),
        ({"k": [[1, 1]], "p": 0.3}, ValueError, r"names a column twice, in row 0, 1, 2, 3: \[1, 1\]"),
        ({"k": [[0.0, 1.0]], "p": 0.3}, TypeError, "index must hold integers"),
        ({"index": torch.zeros(4, 2).long(), "given": "probabilities"}, ValueError, "index and teacher must have"),
    ],
)
def test_errors_are_sentences(options: dict, kind: type[Exception], sentence: str) -> None:
    options = dict(options)
    teacher = options.pop("teacher", torch.ones(4, 3))
    if "k" in options:
        options["index"], options["given"] = torch.tensor(options.pop("k")).expand(4, 2), "probabilities"
        teacher = torch.full((4, 2), options.pop("p"))
    with pytest.raises(kind, match=sentence):
        distillation(torch.zeros(4, 3), teacher, **options)
