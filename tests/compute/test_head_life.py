"""What happens to lazy logits and to the model that makes them: written to, hooked, stepped past, copied, undone."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from crossent import LazyLogits, Materialised, eager_head, lazy_head
from tests.compute.test_machine import peak

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 4, generator=G).double(), torch.randint(7, (6,), generator=G)


def heads() -> tuple[nn.Linear, nn.Linear, list[Materialised]]:
    made: list[Materialised] = []
    torch.manual_seed(0)
    plain = nn.Linear(4, 7).double()
    lazy = copy.deepcopy(plain)
    lazy_head(lazy, on_materialise=made.append)
    return plain, lazy, made


def both(use: Callable[[nn.Linear, Tensor], Tensor]) -> list[Materialised]:
    """The same use of both heads gives the same numbers and gradients."""
    plain, lazy, made = heads()
    results = []
    for head in (plain, lazy):
        x = X.clone().requires_grad_()
        told = use(head, x)
        told.square().sum().backward()
        grads = [leaf.grad for leaf in (x, *head.parameters())]
        results.append([told, *grads])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)  # float64, summed in other orders
    return made


# Written to.


def scaled_in_place(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    z /= 2.0
    return F.cross_entropy(z, Y)


def masked_in_place(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    z[:, 3] = -torch.inf
    return F.cross_entropy(z, Y % 3)


def written_through_a_view(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    view = z.view(2, 3, 7)
    view[0].mul_(3.0)
    return torch.stack([F.cross_entropy(z, Y), F.cross_entropy(view.flatten(0, 1), Y)])


def seen_by_an_earlier_view(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    view = z.view(2, 3, 7).transpose(1, 2)
    z.add_(torch.arange(7.0))
    return F.cross_entropy(view, Y.view(2, 3))


def not_seen_by_what_is_no_view(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    copied, log = z.clone(), z.log_softmax(-1)
    z.mul_(5.0)
    return torch.stack([F.cross_entropy(copied, Y), F.nll_loss(log, Y), F.cross_entropy(z, Y)])


def seen_by_what_was_contiguous(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    same, copied = z.contiguous(), z.T.contiguous()
    same[:, 3] = -torch.inf
    return torch.stack([F.cross_entropy(z, Y % 3), F.cross_entropy(copied.T, Y % 3)])


def seen_by_the_detached(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    apart = z.detach()
    with torch.no_grad():
        z.mul_(2.0)
    return F.cross_entropy(z, Y) + F.cross_entropy(apart, Y)


def detached_view_written(head: nn.Linear, x: Tensor) -> Tensor:
    z = head(x)
    z.view(2, 3, 7).detach()[1] = 0.5
    return F.cross_entropy(z, Y)


WRITTEN = [
    scaled_in_place,
    masked_in_place,
    written_through_a_view,
    seen_by_an_earlier_view,
    not_seen_by_what_is_no_view,
    seen_by_what_was_contiguous,
    seen_by_the_detached,
    detached_view_written,
]


@pytest.mark.parametrize("use", WRITTEN, ids=lambda use: use.__name__)
def test_what_is_written_is_seen_wherever_it_would_be(use: Callable) -> None:
    assert both(use)


# In the graph.


class Doubled(torch.autograd.Function):
    """Somebody's own function, to which a lazy tensor is a tensor like any other."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return 2 * z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Through(torch.autograd.Function):
    """One that gives back what it got, or a copy of it, as DDP's does: the gradient has to come its way."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 3 * g  # so that a way round it would be seen


@pytest.mark.parametrize("steps", ["none", "all"])
def test_an_autograd_function_gets_numbers_and_its_gradient_is_heard(steps: str) -> None:
    before = (lambda z: z) if steps == "none" else (lambda z: torch.tanh(z[1:] / 3) * 3 + 0 * z[:1, :1])

    assert both(lambda head, x: F.cross_entropy(Doubled.apply(before(head(x))), Y[: len(before(X))]))
    assert both(lambda head, x: F.cross_entropy(Through.apply(head(x)), Y))


def test_the_way_through_the_node_knows_every_step() -> None:
    def use(head: nn.Linear, x: Tensor) -> Tensor:
        shift = torch.arange(7.0, dtype=torch.float64).requires_grad_()
        z = torch.tanh((head(x) * 2 + shift) / 5) * 5
        told = Through.apply(z.view(2, 3, 7).transpose(1, 2).log_softmax(1))
        (slope,) = torch.autograd.grad(told.square().sum(), shift, retain_graph=True)
        return torch.cat([told.flatten(), slope])

    plain, lazy, made = heads()
    torch.testing.assert_close(use(lazy, X), use(plain, X), rtol=1e-11, atol=1e-13)
    assert both(lambda head, x: use(head, x)[:42])
    assert made


def test_hooks_and_kept_gradients_are_those_of_the_logits() -> None:
    seen: dict[bool, list[Tensor]] = {}
    plain, lazy, made = heads()
    for head in (plain, lazy):
        z = head(X)
        heard: list[Tensor] = []
        z.retain_grad()
        z.register_hook(heard.append)
        F.cross_entropy(z, Y).backward()
        seen[head is lazy] = [z.grad, *heard]
    for a, b in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    assert [event.operation for event in made] == ["retain_grad"]
    assert lazy(X).grad is None


def test_requires_grad_of_logits_that_have_no_graph() -> None:
    plain, lazy, _ = heads()
    grads = []
    for head in (plain, lazy):
        z = head.requires_grad_(False)(X).requires_grad_()
        assert z.requires_grad
        F.cross_entropy(z, Y).backward()
        grads.append(z.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_the_head(reentrant: bool) -> None:
    made = both(lambda head, x: F.cross_entropy(checkpoint(head, x, use_reentrant=reentrant), Y))
    assert bool(made) == reentrant  # the reentrant one hides the graph, and so gets the numbers


def test_twice_backward_and_no_grad() -> None:
    plain, lazy, made = heads()
    loss = F.cross_entropy(lazy(X), Y)
    loss.backward(retain_graph=True)
    once = lazy.weight.grad.clone()
    loss.backward()
    assert torch.equal(lazy.weight.grad, 2 * once)
    with torch.no_grad():
        z = lazy(X)
        torch.testing.assert_close(F.cross_entropy(z, Y), F.cross_entropy(plain(X), Y), rtol=1e-13, atol=0)
    assert not F.cross_entropy(z, Y).requires_grad
    with torch.inference_mode():
        assert torch.equal(lazy(X).argmax(-1), plain(X).argmax(-1))
    with torch.no_grad():
        used_inside = F.cross_entropy(lazy(X), Y)
    assert not used_inside.requires_grad
    assert not made


def test_made_logits_are_the_eager_ones_to_the_bit_and_made_once() -> None:
    plain, lazy, made = heads()
    z, expected = lazy(X), plain(X)
    z, expected = z / 3, expected / 3
    assert torch.equal(z.exp(), expected.exp())
    assert torch.equal(z.sin(), expected.sin())
    assert torch.equal(F.cross_entropy(z, Y), F.cross_entropy(expected, Y))  # from now on they are used
    assert len(made) == 1


def test_nothing_is_kept_alive() -> None:
    _, lazy, _ = heads()
    hidden = X.clone().requires_grad_() * 1.0
    seen = weakref.ref(hidden)
    z = lazy(hidden)
    kept = z.detach()
    loss = F.cross_entropy(z.view(-1, 7), Y)
    loss.backward()
    del hidden, z, loss
    gc.collect()
    assert seen() is None  # the detached ones keep the numbers of the hidden states, not their graph
    assert kept.argmax(-1).shape == (6,)


# Too late.


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_logits_are_not_made_from_a_head_that_has_moved_on(options: dict) -> None:
    _, lazy, _ = heads()
    optimizer = torch.optim.AdamW(lazy.parameters(), lr=0.1, **options)
    z = lazy(X)
    view = z.view(2, 3, 7)
    F.cross_entropy(z, Y).backward()
    kept = lazy(X).detach().to(torch.float64, copy=True)
    optimizer.step()
    for ask in (lambda: z.argmax(-1), lambda: view.sum(), lambda: F.cross_entropy(z, Y), lambda: z[0]):
        with pytest.raises(RuntimeError, match="of the head changed in place since the forward pass"):
            ask()
    assert type(kept) is Tensor
    assert lazy(X).argmax(-1).shape == (6,)  # a new forward pass is a new promise


def test_logits_are_not_made_from_hidden_states_that_have_changed() -> None:
    _, lazy, _ = heads()
    hidden = X.clone()
    z = lazy(hidden)
    hidden.zero_()
    with pytest.raises(RuntimeError, match="the hidden states changed in place"):
        z.argmax(-1)


def test_no_logits_are_held_forwards_or_backwards() -> None:
    def step(head: nn.Linear) -> None:
        z = head(torch.ones(2048, 8))
        F.cross_entropy(z.float().view(-1, 16384), torch.arange(2048)).backward()

    torch.manual_seed(0)
    head = nn.Linear(8, 16384, bias=False)
    logits = 2048 * 16384 * 4
    step(head)  # the kernels are compiled, the gradient has its memory
    assert peak(lambda: step(head)) > 2 * logits
    lazy_head(head)
    step(head)
    # 64 MiB of them at a time, half of all that there are here, and their gradient in the same place.
    assert peak(lambda: step(head)) < 0.6 * logits


# Told.


def test_making_logits_is_told_as_asked() -> None:
    _, lazy, _ = heads()
    lazy_head(lazy, on_materialise="warn")
    with pytest.warns(
        UserWarning, match=r"lazy logits of shape \(6, 7\), 0.0 MiB, were made for softmax at .*test_head"
    ):
        lazy(X).softmax(-1)
    lazy_head(lazy, on_materialise="raise")
    with pytest.raises(RuntimeError, match="on_materialise='raise' forbids it"):
        lazy(X).softmax(-1)
    lazy_head(lazy, on_materialise="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy(X).softmax(-1)
    with pytest.raises(ValueError, match=r"must be one of 'ignore', 'warn', 'raise' or a function; got 'shout'"):
        lazy_head(lazy, on_materialise="shout")


# The model.


class Tied(nn.Module):
    """An embedding, a layer and a head with the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, y: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(self.embedding(y))))


def test_undoing_gives_back_the_very_model() -> None:
    model = Tied()
    before = {name: (type(module), dict(vars(module))) for name, module in model.named_modules()}
    keys = list(model.state_dict())
    assert lazy_head(model) is model
    assert lazy_head(model) is model  # twice is once
    assert isinstance(model(Y), LazyLogits)
    assert list(model.state_dict()) == keys
    assert model.head.weight is model.embedding.weight
    assert eager_head(model) is model
    assert {name: (type(module), dict(vars(module))) for name, module in model.named_modules()} == before
    assert type(model(Y)) is Tensor
    assert eager_head(model) is model


def test_copies_are_lazy_and_tied_too() -> None:
    model = lazy_head(Tied())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert isinstance(twin(Y), LazyLogits)
        assert twin.head.weight is twin.embedding.weight
        assert torch.equal(F.cross_entropy(twin(Y), Y), F.cross_entropy(model(Y), Y))
    plain = Tied()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(F.cross_entropy(plain(Y), Y), F.cross_entropy(model(Y), Y), rtol=1e-6, atol=0)


def test_logits_are_copied_and_pickled_as_numbers() -> None:
    plain, lazy, _ = heads()
    z = lazy(X).detach()
    assert torch.equal(pickle.loads(pickle.dumps(z)), plain(X))
    assert torch.equal(copy.deepcopy(z), plain(X))
    assert z.tolist() == plain(X).tolist()
    assert (z.numpy() == plain(X).detach().numpy()).all()


def test_dtype_moves_with_the_model() -> None:
    model = lazy_head(Tied()).bfloat16()
    assert model(Y).dtype == torch.bfloat16
    assert isinstance(model(Y), LazyLogits)


def test_which_layer_is_the_head() -> None:
    mlp = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7))
    assert isinstance(lazy_head(mlp)(X.float()), LazyLogits)
    assert type(mlp[0]) is nn.Linear

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 7), nn.Linear(4, 7)

    two = Two()
    with pytest.raises(ValueError, match=r"Two has several layers that could be its head: first, second\. Say which"):
        lazy_head(two)
    lazy_head(two, head="second")
    assert type(two.first) is nn.Linear
    lazy_head(two, head=[two.first, "second"])
    assert isinstance(two.first(X.float()), LazyLogits)
    with pytest.raises(ValueError, match=r"Two has no module 'third'\. Its linear layers end with: first, second"):
        lazy_head(two, head="third")
    with pytest.raises(ValueError, match=r"Conv1d has no torch\.nn\.Linear that could be its head"):
        lazy_head(nn.Conv1d(1, 1, 1))
    assert isinstance(lazy_head(nn.Linear(4, 7))(X.float()), LazyLogits)


def test_heads_of_another_kind_are_refused() -> None:
    class Quantised(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).round()

    with pytest.raises(TypeError, match=r"is a .*Quantised and no torch\.nn\.Linear: only of that is it known"):
        lazy_head(nn.Sequential(Quantised(4, 7)))
    parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(4, 7))
    with pytest.raises(TypeError, match=r"and no torch\.nn\.Linear"):
        lazy_head(parametrised)


def test_hooks_of_the_head_still_run() -> None:
    _, lazy, made = heads()
    called: list[type] = []
    lazy.register_forward_hook(lambda module, args, z: called.append(type(z)))
    F.cross_entropy(lazy(X), Y)
    assert called == [LazyLogits]
    assert not made
