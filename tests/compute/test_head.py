"""Lazy logits answer as logits do, and say when they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import crossent
from crossent import LazyLogits, Link, Materialised, cross_entropy, lazy_head
from crossent.compute.linear.product import _is_native
from crossent.compute.losses import Brier, Focal, LogZ
from tests.compare import faults

B, T, D, V = 2, 5, 6, 11
G = torch.Generator().manual_seed(0)
X = torch.randn(B, T, D, generator=G).double()
Y = torch.randint(V, (B, T), generator=G)
Y_IGNORED = torch.where(torch.rand(B, T, generator=G) < 0.3, -100, Y)
Q = torch.rand(B, T, V, generator=G).double().softmax(-1)
W = torch.rand(V, generator=G).double() + 0.5
SHIFT = torch.randn(V, generator=G).double()
MASK = torch.rand(B, T, generator=G) < 0.6
FEW = crossent.sparse(torch.stack([Y.view(-1), (Y.view(-1) + 3) % V], 1), torch.tensor([[0.7, 0.3]]).expand(10, 2), V)
ROWS, COLUMNS = torch.tensor([0, 3, 3, 9]), torch.tensor([4, 0, -1, 10])


def heads(bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, nn.Linear, list[Materialised]]:
    """A head, its lazy twin, and the list that the twin fills."""
    made: list[Materialised] = []
    twins = []
    for _ in range(2):
        torch.manual_seed(0)
        twins.append(nn.Linear(D, V, bias=bias, dtype=dtype))
    lazy_head(twins[1], on_materialise=made.append)
    return twins[0], twins[1], made


def flat(z: Tensor) -> Tensor:
    return z.view(-1, V)


LAZY: dict[str, Callable[[Tensor], Any]] = {
    "cross_entropy": lambda z: F.cross_entropy(flat(z), Y.view(-1)),
    "cross_entropy of a module": lambda z: nn.CrossEntropyLoss()(input=flat(z), target=Y.view(-1)),
    "cross_entropy, classes in the middle": lambda z: F.cross_entropy(z.transpose(1, 2), Y),
    "cross_entropy, permuted": lambda z: F.cross_entropy(z.permute(1, 2, 0), Y.T, reduction="none"),
    "cross_entropy, ignored": lambda z: F.cross_entropy(flat(z), Y_IGNORED.view(-1)),
    "cross_entropy, another ignored": lambda z: F.cross_entropy(flat(z), Y.view(-1), ignore_index=3),
    "cross_entropy, weights": lambda z: F.cross_entropy(flat(z), Y_IGNORED.view(-1), W),
    "cross_entropy, sum": lambda z: F.cross_entropy(flat(z), Y_IGNORED.view(-1), W, reduction="sum"),
    "cross_entropy, none": lambda z: F.cross_entropy(z.mT, Y_IGNORED, reduction="none"),
    "cross_entropy, smoothed": lambda z: F.cross_entropy(flat(z), Y_IGNORED.view(-1), label_smoothing=0.2),
    "cross_entropy, smoothed and weighted": lambda z: F.cross_entropy(flat(z), Y.view(-1), W, label_smoothing=0.2),
    "cross_entropy, soft": lambda z: F.cross_entropy(flat(z), flat(Q)),
    "cross_entropy, soft, in the middle": lambda z: F.cross_entropy(z.movedim(-1, 1), Q.movedim(-1, 1)),
    "cross_entropy, soft and weighted": lambda z: F.cross_entropy(flat(z), flat(Q), W),
    "cross_entropy, soft, smoothed, sum": lambda z: F.cross_entropy(
        flat(z), flat(Q), label_smoothing=0.1, reduction="sum"
    ),
    "cross_entropy of one row": lambda z: F.cross_entropy(z[1, 2], Y[1, 2]),
    "cross_entropy of no rows": lambda z: F.cross_entropy(z[:0].flatten(0, 1), Y[:0].flatten(), reduction="sum"),
    "causal": lambda z: F.cross_entropy(z[..., :-1, :].contiguous().view(-1, V), Y[..., 1:].reshape(-1)),
    "as Hugging Face": lambda z: F.cross_entropy(
        z.float().view(-1, V), F.pad(Y, (0, 1), value=-100)[..., 1:].reshape(-1), reduction="sum"
    )
    / torch.tensor(7),
    "nll_loss": lambda z: F.nll_loss(F.log_softmax(z, dim=-1).flatten(0, 1), Y_IGNORED.flatten()),
    "nll_loss, in the middle": lambda z: F.nll_loss(z.log_softmax(-1).transpose(1, 2), Y, W, reduction="sum"),
    "log_softmax and gather": lambda z: torch.log_softmax(z, -1).gather(-1, Y[..., None]).squeeze(-1),
    "log_softmax and gather, in the middle": lambda z: F.log_softmax(z.mT, 1).gather(1, Y[:, None]),
    "log_softmax and three": lambda z: z.log_softmax(-1).gather(-1, (Y[..., None] + torch.arange(3)) % V),
    "log_softmax and take_along_dim": lambda z: torch.take_along_dim(z.log_softmax(-1), Y[..., None], -1),
    "log_softmax and index": lambda z: flat(z).log_softmax(-1)[ROWS, COLUMNS],
    "minus log_softmax": lambda z: (-F.log_softmax(z, -1)).gather(-1, Y[..., None]),
    "smoothing of the Trainer": lambda z: (-F.log_softmax(z, -1)).sum(-1, keepdim=True, dtype=torch.float64),
    "gather": lambda z: z.gather(-1, (Y[..., None] + torch.arange(2)) % V),
    "index": lambda z: z.reshape(-1, V)[ROWS, COLUMNS],
    "logsumexp": lambda z: z.logsumexp(-1),
    "logsumexp, kept": lambda z: torch.logsumexp(z.mT, (1,), keepdim=True),
    "TRL": lambda z: z.gather(-1, Y[..., None]).squeeze(-1) - torch.stack([torch.logsumexp(row, -1) for row in z]),
    "crossent": lambda z: crossent.cross_entropy(flat(z), Y_IGNORED.view(-1), loss=Focal(2.0) + 0.1 * LogZ()),
    "crossent, soft, in the middle": lambda z: crossent.cross_entropy(input=z.mT, target=Q.mT, label_smoothing=0.1),
    "crossent, sparse": lambda z: crossent.cross_entropy(flat(z), FEW, reduction="none"),
    "crossent, link": lambda z: crossent.cross_entropy(flat(z), Y.view(-1), link=Link(temperature=2.0, softcap=3.0)),
    "crossent, module": lambda z: crossent.CrossEntropyLoss(label_smoothing=0.1)(z.mT, Y),
    "row_numbers": lambda z: crossent.row_numbers(z.mT, Y_IGNORED),
    "argmax": lambda z: z.argmax(-1),
    "argmax, kept": lambda z: z.transpose(1, 2).argmax(dim=1, keepdim=True),
    "max": lambda z: z.max(-1),
    "max, kept": lambda z: torch.max(z, dim=2, keepdim=True),
    "amax": lambda z: z.amax(-1),
    "topk": lambda z: z.topk(3),
    "topk, least": lambda z: torch.topk(z.mT, 2, dim=1, largest=False),
    "log_softmax and max": lambda z: z.log_softmax(-1).max(-1),
    "scaled": lambda z: F.cross_entropy(flat(z / 1.7 * 0.9), Y.view(-1)),
    "scaled by minus one": lambda z: F.cross_entropy(flat(z * -1), Y.view(-1)),
    "scaled by a tensor": lambda z: F.cross_entropy(flat(z * SHIFT[0]), Y.view(-1)),
    "capped": lambda z: F.cross_entropy(flat(torch.tanh(z / 3) * 3), Y.view(-1)),
    "capped, then cooled": lambda z: F.cross_entropy(flat(2.5 * (z / 3).tanh() / 0.7), Y.view(-1)),
    "capped and shifted before": lambda z: F.cross_entropy(flat(torch.tanh((z + SHIFT) / 3) * 3), Y.view(-1)),
    "capped, argmax": lambda z: (torch.tanh(z / 3) * 3).argmax(-1),
    "shifted": lambda z: F.cross_entropy(flat(z * 2 + SHIFT), Y.view(-1)),
    "shifted, three columns": lambda z: (z + SHIFT).gather(-1, (Y[..., None] + torch.arange(3)) % V),
    "masked rows": lambda z: F.cross_entropy(z[MASK], Y[MASK]),
    "rows by number": lambda z: F.cross_entropy(z[torch.arange(B), torch.tensor([4, 0])], Y[:, 0]),
    "last row": lambda z: F.cross_entropy(z[:, -1], Y[:, -1]),
    "last row, kept": lambda z: F.cross_entropy(z[:, -1:, :].squeeze(1), Y[:, -1]),
    "fewer classes": lambda z: F.cross_entropy((z + SHIFT)[..., :7].reshape(-1, 7), Y.view(-1) % 7),
    "index_select": lambda z: F.cross_entropy(z.index_select(1, COLUMNS[:2]).flatten(0, 1), Y[:, :2].flatten()),
    "narrow": lambda z: F.cross_entropy(z.narrow(1, 1, 3).flatten(0, 1), Y[:, 1:4].flatten()),
    "split": lambda z: sum(F.cross_entropy(a.mT, y) for a, y in zip(z.split(2, dim=1), Y.split(2, 1), strict=True)),
    "chunk": lambda z: torch.stack([part.argmax(-1) for part in z.chunk(2)]),
    "unbind": lambda z: torch.stack([row.argmax(-1) for row in z.unbind(1)]),
    "unflatten": lambda z: F.cross_entropy(flat(z).unflatten(0, (T, B)).mT, Y.reshape(T, B)),
    "unsqueeze": lambda z: F.cross_entropy(z[None].squeeze(0).unsqueeze(0).flatten(0, 2), Y.flatten()),
    "to": lambda z: F.cross_entropy(flat(z.to(torch.float64).to("cpu").type_as(X).cpu()), Y.view(-1)),
    "clone": lambda z: F.cross_entropy(flat(z.clone().contiguous()), Y.view(-1)),
    "detach": lambda z: F.cross_entropy(flat(z.detach()), Y.view(-1)),
}  # fmt: skip

MADE: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda z: z.softmax(-1),
    "sum": lambda z: z.sum(),
    "mean over rows": lambda z: z.mean(1),
    "exp of a slice": lambda z: z[:, 1:3].exp(),
    "one class": lambda z: z[..., 3],
    "a view across rows": lambda z: z.reshape(-1) * 2,
    "where": lambda z: torch.where(MASK[..., None], z, 0.0),
    "a matrix product": lambda z: z @ Q.mT,
    "as a target": lambda z: F.mse_loss(Q, z),
    "both": lambda z: F.mse_loss(z, z.flip(0)),
    "cross_entropy over tokens": lambda z: F.cross_entropy(z, Y[:, :1].expand(B, V) % T),
    "argmax over tokens": lambda z: z.argmax(1),
    "argmax of all": lambda z: z.argmax(),
    "gather along rows": lambda z: z.gather(1, Y[:, :1, None].expand(B, 1, V) % T),
    "infinite factor": lambda z: (z * 0.0).sum(),
    "crossent, two links": lambda z: crossent.cross_entropy(flat(z.tanh()), Y.view(-1), link=Link(softcap=3.0)),
    "crossent, of log-probabilities": lambda z: crossent.cross_entropy(
        flat(z.log_softmax(-1)), Y.view(-1), loss=LogZ()
    ),
    "numbers added": lambda z: (z + 1).exp(),
    "rows added": lambda z: (z + X[..., :1]).exp(),
    "a second tanh": lambda z: z.tanh().tanh(),
    "log_softmax over tokens": lambda z: z.log_softmax(1),
    "entropy": lambda z: (z.log_softmax(-1).exp() * z.log_softmax(-1)).sum(-1),
    "einsum": lambda z: torch.einsum("btv,v->bt", z, W),
    "concatenated": lambda z: torch.cat([z, z], 0).exp(),
    "integers": lambda z: z.to(torch.int64),
    "the greatest of all": lambda z: z.max(),
    "a loss that is minus a log": lambda z: F.nll_loss(-z.log_softmax(-1).flatten(0, 1), Y.flatten()),
}


def answers(head: nn.Linear, ask: Callable[[Tensor], Any], x: Tensor = X) -> tuple[list[Tensor], list[Tensor]]:
    """What is answered, and the gradients of a random number made of it by hidden states, weight and bias."""
    x = x.clone().requires_grad_()
    told = ask(head(x))
    told = list(told) if isinstance(told, (tuple, list)) else [told]
    up = [
        torch.rand(t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(t.dtype) for t in told
    ]
    learned = [(t, u) for t, u in zip(told, up, strict=True) if t.requires_grad]
    if not learned:
        return told, []
    leaves = [x, *head.parameters()]
    grads = torch.autograd.grad([t for t, _ in learned], leaves, [u for _, u in learned], allow_unused=True)
    return told, [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True)]


def equal(ask: Callable[[Tensor], Any], bias: bool = True) -> list[Materialised]:
    """Ask both heads and compare; what was made meanwhile."""
    plain, twin, made = heads(bias)
    expected, slopes = answers(plain, ask)
    got, twin_slopes = answers(twin, ask)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is Tensor
        assert a.shape == b.shape
        assert a.requires_grad == b.requires_grad
        # Both are worked out in float64, in other orders; "as Hugging Face" rounds to float32 on the way.
        tight = b.dtype != torch.float32
        torch.testing.assert_close(a, b, rtol=1e-12 if tight else 1e-6, atol=1e-13 if tight else 1e-6)
    assert len(twin_slopes) == len(slopes)
    for a, b in zip(twin_slopes, slopes, strict=True):
        tight = expected[0].dtype != torch.float32
        torch.testing.assert_close(a, b, rtol=1e-11 if tight else 1e-5, atol=1e-13 if tight else 1e-6)
        for fault, wrong in faults(b if b.dim() > 1 else b[None]):
            wrong = wrong.reshape(b.shape)
            if not torch.equal(wrong, b) and b.norm() > 1e-9:  # some sums of gradients are 0
                assert not torch.allclose(a, wrong, rtol=1e-11, atol=1e-13), fault
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAZY)
def test_answered_without_logits(name: str, bias: bool) -> None:
    assert equal(LAZY[name], bias) == []


@pytest.mark.parametrize("name", MADE)
def test_answered_with_logits_and_told(name: str) -> None:
    made = equal(MADE[name])
    assert made
    assert all(event.place.partition(":")[0] == __file__ for event in made), made


def test_words_of_old_are_understood() -> None:
    plain, twin, made = heads()
    with pytest.warns(UserWarning, match="will be deprecated"):
        old = F.cross_entropy(flat(plain(X)), Y.view(-1), None, False)
    with pytest.warns(UserWarning, match="will be deprecated"):
        torch.testing.assert_close(F.cross_entropy(flat(twin(X)), Y.view(-1), None, False), old, rtol=1e-12, atol=0)
    assert not made


def test_a_perturbed_head_is_noticed() -> None:
    plain, twin, _ = heads()
    with torch.no_grad():
        twin.weight[3, 2] += 1e-6
    ask = LAZY["cross_entropy"]
    assert abs(answers(plain, ask)[0][0] - answers(twin, ask)[0][0]) > 1e-9


def test_the_looks_are_those_of_the_logits() -> None:
    plain, twin, made = heads(dtype=torch.float32)
    x = X.float()
    moves: list[Callable[[Tensor], Tensor]] = [
        lambda z: z,
        lambda z: z.double(),
        lambda z: z.transpose(1, 2),
        lambda z: z[:, 1:, :],
        lambda z: z.view(-1, V)[2],
        lambda z: z.to(torch.bfloat16).log_softmax(-1),
        lambda z: z.detach(),
    ]
    for move in moves:
        a, b = move(twin(x)), move(plain(x))
        assert isinstance(a, LazyLogits)
        for look in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "itemsize"):
            assert getattr(a, look) == getattr(b, look), look
        assert a.stride() == b.stride()
        assert a.is_contiguous() == b.is_contiguous()
        assert (a.numel(), a.dim(), len(a), a.size(0)) == (b.numel(), b.dim(), len(b), b.size(0))
    assert repr(twin(x)) == "LazyLogits(shape=(2, 5, 11), dtype=torch.float32, device='cpu')"
    assert made == []


def test_errors_are_torchs() -> None:
    plain, twin, _ = heads()
    for ask in (
        lambda z: z.view(7, V),
        lambda z: z[5],
        lambda z: z.transpose(0, 3),
        lambda z: z.log_softmax(4),
        lambda z: z.gather(-1, torch.full((B, T, 1), V)),
        lambda z: z.log_softmax(-1).gather(-1, torch.full((B, T, 1), -1)),
        lambda z: F.cross_entropy(flat(z), torch.full((B * T,), V)),
    ):
        for head in (plain, twin):
            with pytest.raises((IndexError, RuntimeError)):
                ask(head(X))


def test_the_mean_over_nothing_is_zero_with_a_graph() -> None:
    _, twin, _ = heads()
    loss = F.cross_entropy(flat(twin(X)), torch.full((B * T,), -100))
    loss.backward()
    assert loss == 0
    assert not twin.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_give_a_float32_loss_and_the_dtypes_of_torch_otherwise(dtype: torch.dtype) -> None:
    plain, twin, made = heads(dtype=dtype)
    x = X.to(dtype)
    loss = F.cross_entropy(flat(twin(x)), Y.view(-1))
    assert loss.dtype == torch.float32
    truth = cross_entropy(flat(plain(x)), Y.view(-1))  # of the very 16-bit logits
    torch.testing.assert_close(loss, truth, rtol=2e-7, atol=0)
    for ask in (LAZY["log_softmax and gather"], LAZY["logsumexp"], LAZY["max"], LAZY["gather"]):
        a, b = answers(twin, ask, x)[0][0], answers(plain, ask, x)[0][0]
        assert a.dtype == b.dtype == dtype
        # One rounding of a number up to 4 to 8 or 11 bits, and the logits' own.
        torch.testing.assert_close(a, b, rtol=0, atol=8 * torch.finfo(dtype).eps)
    assert not made


def test_autocast_where_the_head_runs_decides() -> None:
    plain, twin, made = heads(dtype=torch.float32)
    x = X.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, expected = twin(x), plain(x)
        inside = F.cross_entropy(flat(z), Y.view(-1))
        log = z.log_softmax(-1)
        assert log.dtype == expected.log_softmax(-1).dtype
    assert z.dtype == expected.dtype == torch.bfloat16
    outside = F.cross_entropy(flat(z), Y.view(-1))
    assert inside == outside == cross_entropy(flat(expected), Y.view(-1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        late = F.cross_entropy(flat(twin(x)).float(), Y.view(-1))
    assert late == inside
    assert not made


def test_a_frozen_head_and_a_frozen_trunk() -> None:
    for frozen in ("head", "trunk"):
        plain, twin, made = heads()
        grads = []
        for head in (plain, twin):
            head.requires_grad_(frozen != "head")
            x = X.clone().requires_grad_(frozen != "trunk")
            F.cross_entropy(flat(head(x)), Y.view(-1)).backward()
            grads.append(head.weight.grad if frozen == "trunk" else x.grad)
            assert (head.weight.grad is None) == (frozen == "head")
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-15)
        assert not made


def test_what_is_added_and_multiplied_gets_its_gradient_even_over_a_frozen_head() -> None:
    for ask in (LAZY["shifted"], MADE["softmax"]):
        grads = []
        for head in heads()[:2]:
            head.requires_grad_(False)
            shift = SHIFT.clone().requires_grad_()
            scale = torch.tensor(1.3, dtype=torch.float64).requires_grad_()
            told = ask(head(X) * scale + shift)
            grads.append(torch.autograd.grad(told.sum() if told.dim() == 0 else told.square().sum(), (shift, scale)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-14)


def test_two_heads_added_are_one_as_lora_does() -> None:
    results = []
    for lazy in (False, True):
        torch.manual_seed(1)
        big, down, up = nn.Linear(D, V), nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)
        big.requires_grad_(False)
        made: list[Materialised] = []
        if lazy:
            lazy_head(nn.ModuleList([big, up]), head=["0", "1"], on_materialise=made.append)
        x = X.float().requires_grad_()
        z = big(x) + up(down(x)) * 0.5
        F.cross_entropy(flat(z), Y.view(-1)).backward()
        results.append((x.grad, up.weight.grad, down.weight.grad))
        assert big.weight.grad is None
        assert not made
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # float32, six and two columns summed together


class Sizes(TorchDispatchMode):
    """The shapes of all memory that any operation makes; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        fresh = not any(returned.alias_info for returned in func._schema.returns)
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if fresh and isinstance(each, Tensor):
                self.seen.add(tuple(each.shape))
        return made


def adapted(dtype: torch.dtype, adapters: int = 1) -> tuple[nn.Module, list[nn.Module], nn.ModuleList]:
    """A head, and what LoRA puts beside it: downwards and upwards for each adapter."""
    torch.manual_seed(2)
    big, *others = (
        nn.Linear(D, V),
        *(layer for _ in range(adapters) for layer in (nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False))),
    )
    both = nn.ModuleList([big, *others]).to(dtype)
    big.requires_grad_(False)
    return big, others, both


ASKED: dict[str, Callable[[Tensor], Tensor]] = {
    "a mean": lambda z: F.cross_entropy(flat(z), Y.view(-1)),
    "a sum of some": lambda z: F.cross_entropy(flat(z), HALF.view(-1), reduction="sum", label_smoothing=0.1),
    "of columns": lambda z: crossent.cross_entropy(flat(z), HALF.view(-1), loss=Brier()),
    "capped": lambda z: F.cross_entropy(flat(3 * torch.tanh(z / 3)), Y.view(-1)),
    "rows": lambda z: F.cross_entropy(flat(z), HALF.view(-1), reduction="none").square(),
    "numbers": lambda z: crossent.row_numbers(flat(z), Y.view(-1)).entropy,
    "labels": lambda z: z.log_softmax(-1).gather(-1, Y.unsqueeze(-1)),
    "a few columns": lambda z: z.gather(-1, torch.stack([Y, Y.flip(0)], -1)),
    "some classes": lambda z: F.cross_entropy(z[..., :5].transpose(1, 2), Y % 5),
    "the logits": lambda z: z.softmax(-1).square(),
}
HALF = torch.where(torch.arange(Y.numel()).view(Y.shape) % 2 == 0, Y, -100)


@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("asked", ASKED)
def test_what_is_beside_a_frozen_head_is_learned(asked: str, adapters: int) -> None:
    found = []
    for lazy in (False, True):
        big, others, both = adapted(torch.float64, adapters)
        if lazy:
            lazy_head(both, head=["0", *(str(2 * i + 2) for i in range(adapters))])
        x = X.clone().requires_grad_()
        z = big(x)
        for down, up in zip(others[::2], others[1::2], strict=True):
            z = z + up(down(x)) * 0.5
        value = ASKED[asked](z).sum()
        leaves = [x, *(layer.weight for layer in others)]
        found.append([value, *torch.autograd.grad(value, leaves, retain_graph=True)])
        again = torch.autograd.grad(2 * value, leaves)
        for once, twice in zip(found[-1][1:], again, strict=True):
            torch.testing.assert_close(2 * once, twice)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6, atol=1e-9)
        assert not torch.allclose(1.01 * ours, theirs.to(ours.dtype), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_frozen_head_is_not_copied(dtype: torch.dtype) -> None:
    """Nothing of its size is made, and what is learned has the gradient of the head in one piece."""
    big, (down, up), both = adapted(dtype)
    lazy_head(both, head=["0", "2"], on_materialise="raise")
    x = X.to(dtype).requires_grad_()
    with Sizes() as sizes:
        value = F.cross_entropy(flat(big(x) + up(down(x)) * 0.5), Y.view(-1))
        ours = torch.autograd.grad(value, (x, up.weight))
    assert (V, 2) in sizes.seen  # the gradient of what is beside it: the mode does see
    if _is_native(x):  # other dtypes are widened, a block of the head at a time, and this one is smaller than a block
        assert not {(V, D), (V, D + 2), (D, V)} & sizes.seen
    whole = torch.cat([big.weight, up.weight], 1).detach().requires_grad_()
    again = x.detach().requires_grad_()
    hidden = torch.cat([again, down(again) * 0.5], -1)
    truth = crossent.linear_cross_entropy(hidden, whole, Y, linear_bias=big.bias)
    dx, dw = torch.autograd.grad(truth, (again, whole))
    close = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]  # products rounded one by one
    torch.testing.assert_close(value, truth, rtol=close, atol=0)
    torch.testing.assert_close(ours[0], dx, rtol=close, atol=close * float(dx.abs().max()))
    torch.testing.assert_close(ours[1], dw[:, D:], rtol=close, atol=close * float(dw.abs().max()))

    for ask in (ASKED["rows"], lambda z: crossent.row_numbers(flat(z), Y.view(-1)).log_prob):
        with Sizes() as sizes:
            torch.autograd.grad(ask(big(x) + up(down(x)) * 0.5).sum(), (x, up.weight))
        assert (V, 2) in sizes.seen
        if _is_native(x):
            assert not {(V, D), (V, D + 2), (D, V)} & sizes.seen

    big.requires_grad_(True)
    with Sizes() as sizes:
        torch.autograd.grad(F.cross_entropy(flat(big(x) + up(down(x))), Y.view(-1)), big.weight)
    assert (V, D + 2) in sizes.seen  # a head that is trained too is one head with what is beside it


@pytest.mark.parametrize("asked", ["a mean", "rows", "numbers"])
def test_second_derivatives_of_what_is_beside_a_frozen_head(asked: str) -> None:
    found: list[tuple[Tensor, ...]] = []
    for lazy in (False, True):
        big, (down, up), both = adapted(torch.float64)
        if lazy:
            lazy_head(both, head=["0", "2"])

        value = ASKED[asked](big(X) + up(down(X))).sum()
        (d,) = torch.autograd.grad(value, up.weight, create_graph=True)
        twice = torch.autograd.grad(d.square().sum(), (up.weight, down.weight))
        found.append((d, *twice))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
