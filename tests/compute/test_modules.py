"""What a module's loss, link and weights hold is the module's: learned, saved and moved with it."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from crossent import BCEWithLogitsLoss, CrossEntropyLoss, LinearCrossEntropyLoss, Link, cross_entropy
from crossent.compute.losses import NLL, ClassWeighted, Focal, LogZ, Loss, Smoothed
from crossent.compute.stats import Stats

G = torch.Generator().manual_seed(3)
Z = torch.randn(5, 4, generator=G)
Y = torch.tensor([0, 3, 2, 1, 0])


class Scale(nn.Module, Loss):
    """Somebody's own loss that is a module."""

    def __init__(self, inner: Loss) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.tensor(2.0)), inner

    def forward(self, s: Stats) -> Tensor:
        return self.scale * self.inner(s)


def learned(number: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(number))


def everything() -> CrossEntropyLoss:
    return CrossEntropyLoss(
        nn.Parameter(torch.tensor([1.0, 2.0, 0.5, 1.5])),
        loss=NLL() + learned(0.5) * Smoothed(learned(0.2), Scale(Focal(learned(1.5)))),
        link=Link(temperature=learned(1.3), bias=torch.arange(4.0)),
    )


NAMES = ["weight", "loss.b.factor", "loss.b.loss.smoothing", "loss.b.loss.loss.scale", "link.temperature"]


def test_parameters_are_found_saved_and_moved() -> None:
    module = everything()
    # What a module of one's own keeps as a plain attribute (Focal's number in it) is its own affair.
    assert [name for name, _ in module.named_parameters()] == NAMES
    assert list(module.state_dict()) == NAMES
    assert [name for name, _ in module.named_buffers()] == ["link.bias"]  # goes along, and is not saved
    value = module(Z, Y)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())

    other = everything()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    assert other(Z, Y) != value
    other.load_state_dict(module.state_dict())
    assert other(Z, Y) == value
    memory = io.BytesIO()
    torch.save(module, memory)
    memory.seek(0)
    for twin in (copy.deepcopy(module), torch.load(memory, weights_only=False)):
        assert twin(Z, Y) == value
        with torch.no_grad():
            twin.get_parameter("loss.b.factor").zero_()
        assert twin(Z, Y) != value
        assert module(Z, Y) == value

    double = module.to(torch.float64)
    assert {p.dtype for p in (*double.parameters(), *double.buffers())} == {torch.float64}
    torch.testing.assert_close(double(Z.double(), Y).float(), value, rtol=1e-6, atol=0)
    assert next(double.to("meta").buffers()).device.type == "meta"


def test_the_gradients_are_those_of_the_function() -> None:
    module = everything()
    weight, factor, smoothing, scale, temperature = leaves = [p.detach().clone() for p in module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    gamma = torch.tensor(1.5)
    # The sum is written out: no other way than that of plain losses with numbers and tensors.
    log_p = ((Z / temperature) + torch.arange(4.0)).log_softmax(-1)
    own, at = log_p.gather(-1, Y.unsqueeze(-1)).squeeze(-1), weight[Y]
    focal = scale * (1 - own.exp()) ** gamma * -own
    even = (-log_p * weight).mean(-1)
    rows = at * -own + factor * ((1 - smoothing) * at * focal + smoothing * even)
    truth = rows.sum() / at.sum()
    torch.testing.assert_close(module(Z, Y), truth, rtol=1e-6, atol=0)
    expected = torch.autograd.grad(truth, leaves)
    for got, true in zip(torch.autograd.grad(module(Z, Y), list(module.parameters())), expected, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(1.01 * got, true, rtol=1e-5, atol=1e-7)


def test_a_head_and_binary_elements_have_them_too() -> None:
    head = LinearCrossEntropyLoss(3, 4, loss=Scale(Smoothed(0.1)), link=Link(learned(1.5)))
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "loss.scale", "link.temperature"]
    x = torch.randn(5, 3, generator=G)
    value = head(x, Y)
    value.backward()
    torch.testing.assert_close(head.get_parameter("loss.scale").grad, value.detach() / 2)

    binary = BCEWithLogitsLoss(pos_weight=learned(2.0), loss=Focal(learned(1.0)))
    assert [name for name, _ in binary.named_parameters()] == ["pos_weight", "loss.gamma"]
    binary(Z, torch.ones_like(Z)).backward()
    assert all(p.grad is not None and p.grad.any() for p in binary.parameters())


def test_an_optimiser_learns_them() -> None:
    module = CrossEntropyLoss(link=Link(temperature=learned(1.0)))
    logits = 5 * nn.functional.one_hot(Y, 4).float().roll(1, 0)  # sure, and wrong
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    before = float(module(logits, Y).detach())
    for _ in range(5):
        optimiser.zero_grad()
        module(logits, Y).backward()
        optimiser.step()
    assert float(module(logits, Y).detach()) < before
    assert module.link.temperature > 1.2


def test_what_holds_nothing_stays_what_it_was() -> None:
    loss, link = Focal(2.0) + LogZ(), Link(softcap=3.0)
    module = CrossEntropyLoss(loss=loss, link=link)
    assert module.loss is loss
    assert module.link is link
    own = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)  # no Parameter: its owner moves and saves it
    module = CrossEntropyLoss(loss=ClassWeighted(own))
    assert not list(module.parameters())
    assert not list(module.buffers())
    assert torch.autograd.grad(module(Z, Y), own)[0].any()


# Dynamo itself instantiates autograd functions, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_in_one_piece() -> None:
    module = everything()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = [torch.autograd.grad(of(Z, Y), list(module.parameters())) for of in (module, compiled)]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_tensor_times_a_loss_is_learned() -> None:
    for number in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64)):
        factor = number.requires_grad_()
        for loss in (factor * NLL(), NLL() * factor, NLL() + factor * NLL()):
            value = cross_entropy(Z, Y, loss=loss)
            (slope,) = torch.autograd.grad(value, factor)
            torch.testing.assert_close(slope.reshape(()).float(), cross_entropy(Z, Y))
    for loss in (lambda: torch.ones(5) * NLL(), lambda: NLL() * torch.ones(5)):
        with pytest.raises(
            TypeError, match=r"one number, and the tensor has shape \(5,\): weights of rows are sample_w"
        ):
            loss()
