"""Lazy logits of models that are compiled, exported and transformed: lazy behind a break of the graph, else plain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossent import LazyLogits, lazy_head
from tests.compute.test_head_life import Tied, X, Y, heads

# Dynamo asks every tensor for its .grad and hides the warning, which is an error here.
ASKS_FOR_GRAD = pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")


@ASKS_FOR_GRAD
def test_compiled_with_breaks_it_is_lazy_and_in_one_graph_it_is_plain() -> None:
    torch.compiler.reset()
    plain, model = Tied(), lazy_head(Tied())
    model.load_state_dict(plain.state_dict())

    def loss(module: nn.Module, whole: bool) -> tuple[type, Tensor, Tensor]:
        compiled = torch.compile(module, backend="aot_eager", fullgraph=whole)
        z = compiled(Y)
        value = F.cross_entropy(z.float().view(-1, 7), Y)
        return type(z), value, torch.autograd.grad(value, module.embedding.weight)[0]

    _, expected, slope = loss(plain, False)
    for whole, kind in ((False, LazyLogits), (True, Tensor)):
        torch.compiler.reset()
        got_kind, got, got_slope = loss(model, whole)
        assert got_kind is kind
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(got_slope, slope, rtol=1e-5, atol=1e-8)


@ASKS_FOR_GRAD
def test_a_compiled_loss_takes_lazy_logits() -> None:
    torch.compiler.reset()
    plain, lazy, made = heads()
    loss = torch.compile(lambda z: F.cross_entropy(z.float().view(-1, 7) * 2, Y), backend="aot_eager")
    torch.testing.assert_close(loss(lazy(X)), loss(plain(X)), rtol=1e-6, atol=0)
    assert not made


def test_exported_and_under_torch_func_it_is_plain() -> None:
    model = lazy_head(Tied())
    exported = torch.export.export(model, (Y,)).module()
    assert torch.equal(exported(Y), model(Y).to(torch.float32, copy=True))
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (Y,), tie_weights=True), Y)

    slope = torch.func.grad(loss)(parameters)
    F.cross_entropy(model(Y), Y).backward()
    torch.testing.assert_close(slope["embedding.weight"], model.embedding.weight.grad, rtol=1e-5, atol=1e-8)
