"""How weights are moved: Muon against the singular values, sharpness against a formula, schedules by their shape."""

from dataclasses import replace

import numpy as np
import pytest
import schedulefree
import torch
from torch import nn

from crossent.minimise import Recipe
from crossent.minimise.networks import Residual, Tabular
from crossent.minimise.training.optimiser import Muon, optimisers, orthogonal, rate, sharpen
from tests.compare import bits


def matrices(*shape, seed=0):
    """With singular values from 1 to 20: what five iterations can bring to one another."""
    generator = torch.Generator().manual_seed(seed)
    u, _, v = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    return u @ torch.diag_embed(torch.linspace(1, 20, u.shape[-1]).expand((*u.shape[:-2], u.shape[-1]))) @ v


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (3, 5, 9), (4, 9, 5), (2, 3, 4, 6)])
def test_muon_brings_all_singular_values_to_one_and_turns_nothing(shape):
    g = matrices(*shape)
    found = orthogonal(g)
    assert found.shape == g.shape
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.mT @ found @ v.mT  # in the basis of the singular vectors only the values have changed
    values = torch.diagonal(inside, dim1=-2, dim2=-1)
    # The bounds that the authors of these coefficients give for their iteration, after five of which it has not yet
    # come to rest: Jordan et al. 2024, "Muon", the section on coefficients.
    assert values.min() > 0.68
    assert values.max() < 1.2
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-4  # float32 in ten products of matrices
    before = s / torch.linalg.matrix_norm(g).unsqueeze(-1)
    assert not ((before > 0.68) & (before < 1.2)).all()


def test_members_side_by_side_are_brought_to_one_each_by_itself():
    g = matrices(3, 5, 9)
    one = orthogonal(torch.stack((1000 * g[0], g[1], 1e-3 * g[2])))
    assert torch.allclose(one, orthogonal(g), atol=1e-3)  # the 1e-7 beside a norm of 0.05
    together = orthogonal(torch.cat((1000 * g[0], g[1], 1e-3 * g[2]), 1))
    assert not torch.allclose(torch.cat(tuple(one), 1), together, atol=0.1)


@pytest.mark.parametrize("shape", [(6, 10), (3, 6, 10), (8, 3, 2, 2)])
def test_a_step_of_muon_is_the_formula(shape):
    generator = torch.Generator().manual_seed(1)
    p = nn.Parameter(torch.randn(shape, generator=generator))
    optimiser = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = p.detach().clone(), torch.zeros(shape)
    for _ in range(3):
        p.grad = torch.randn(shape, generator=generator)
        optimiser.step()
        momentum = 0.9 * momentum + 0.1 * p.grad
        direction = 0.1 * p.grad + 0.9 * momentum
        flat = direction.reshape(shape[0], -1) if len(shape) == 4 else direction
        step = orthogonal(flat) * 0.2 * max(flat.shape[-2:]) ** 0.5
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * step.reshape(shape)
    # Four roundings of float32 a step, of numbers up to 4; the orthogonal part is not continuous to better.
    assert torch.allclose(p, expected, atol=1e-5)
    assert not torch.allclose(p, expected + 0.001, atol=1e-5)
    with pytest.raises(TypeError, match=r"Muon takes no closure"):
        optimiser.step(lambda: None)


def test_a_step_of_muon_is_as_large_as_one_of_adam():
    """0.2 √max(rows, columns) makes the root mean square of a step 0.2, as Adam's usually is (Liu et al. 2025)."""
    for shape in ((64, 64), (128, 32), (16, 200)):
        p = nn.Parameter(torch.zeros(shape))
        p.grad = matrices(*shape)
        Muon([p], lr=1.0, weight_decay=0.0).step()
        size = p.detach().square().mean().sqrt().item()
        # Of singular values of 1 the root mean square is 1/√max; they lie between 0.68 and 1.2.
        assert 0.68 * 0.2 <= size <= 1.2 * 0.2


class Words(nn.Module):
    """An embedding, a norm, a hidden matrix and a head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)


def tabular(depth):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return Tabular.for_features(x, 3, members=2, width=5, depth=depth, dropout=0.0, bins=2)


def residual():
    return Residual.for_images(torch.rand(4, 1, 8, 8), 3, width=4, depth=1, dropout=0.0)


def groups(network, recipe):
    """For each optimiser and group: the names it moves, and its weight decay."""
    names = {id(p): name for name, p in network.named_parameters()}
    return [
        (type(one).__name__, sorted(names[id(p)] for p in group["params"]), group.get("weight_decay"))
        for one in optimisers(network, recipe)
        for group in one.param_groups
    ]


def test_muon_leaves_heads_biases_and_embeddings_to_adam():
    muon = Recipe(optimiser="muon", weight_decay=0.3)
    assert groups(tabular(2), muon) == [
        ("Muon", ["weights.0", "weights.1"], 0.3),
        ("AdamW", ["weights.2"], 0.3),
        ("AdamW", ["biases.0", "biases.1", "biases.2"], 0.0),
    ]
    assert groups(Words(), muon) == [
        ("Muon", ["hidden.weight"], 0.3),
        ("AdamW", ["head.weight"], 0.3),
        ("AdamW", ["embedding.weight", "head.bias", "hidden.bias", "norm.bias", "norm.weight"], 0.0),
    ]
    assert [name for name, _, _ in groups(tabular(0), muon)] == ["AdamW", "AdamW"]  # a linear model is all head
    (_, moved, _), *rest = groups(residual(), muon)
    assert all(dict(residual().named_parameters())[name].dim() == 4 for name in moved)
    assert len(moved) >= 3
    kept = {name for _, names, _ in rest for name in names}
    assert {name for name, p in residual().named_parameters() if p.dim() < 4} == kept


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "schedulefree", "lbfgs", "muon"])
@pytest.mark.parametrize("make", [lambda: tabular(2), Words, residual], ids=["tabular", "words", "residual"])
def test_every_parameter_that_wants_to_be_moved_is_moved_by_one_and_matrices_alone_decay(optimiser, make):
    network = make()
    found = groups(network, Recipe(optimiser=optimiser, weight_decay=0.3))
    moved = sorted(name for _, names, _ in found for name in names)
    assert moved == sorted(name for name, p in network.named_parameters() if p.requires_grad)
    if optimiser == "lbfgs":
        return
    for _, names, decay in found:
        for name in names:
            p = network.get_parameter(name)
            matrix = p.dim() >= 2 and "biases" not in name and "embedding" not in name
            assert decay == (0.3 if matrix else 0.0), name


def test_sharpness_asks_for_the_gradient_at_the_worst_point_near_by():
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    a = a @ a.T
    network = nn.Linear(5, 1, dtype=torch.float64)
    network.bias.requires_grad_(False)
    w = network.weight

    def gradients():
        network.zero_grad()
        (0.5 * w[0] @ a @ w[0]).backward()

    before, plain = w.detach().clone(), a @ w.detach()[0]
    gradients()
    sharpen(network, 0.7, gradients)
    assert torch.equal(bits(w), bits(before))  # the weights come back to the bit
    moved = before[0] + 0.7 * plain / plain.norm()
    assert torch.allclose(w.grad[0], a @ moved, rtol=1e-12)  # float64: 1e-12 beside a norm, and roundings
    assert not torch.allclose(w.grad[0], plain, rtol=1e-2)
    gradients()
    sharpen(network, 1e-13, gradients)
    assert torch.allclose(w.grad[0], plain, rtol=1e-9)
    assert network.bias.grad is None


def test_the_radius_is_that_of_all_weights_together():
    network = nn.Linear(3, 2)
    seen = []

    def gradients():
        seen.append([p.detach().clone() for p in network.parameters()])
        for p in network.parameters():
            p.grad = torch.full_like(p, 2.0)

    gradients()
    sharpen(network, 0.5, gradients)
    gone = torch.cat([(there - here).flatten() for here, there in zip(*seen, strict=True)])
    assert gone.norm().item() == pytest.approx(0.5, rel=1e-5)  # float32
    assert (gone > 0).all()  # upwards


DONE = np.linspace(0, 1, 101)


def test_schedules_have_their_shapes():
    def shape(schedule):
        return np.array([rate(Recipe(schedule=schedule), done) for done in DONE])

    assert shape("constant").tolist() == [1.0] * 101
    assert shape("cosine") == pytest.approx(0.5 * (1 + np.cos(np.pi * DONE)), abs=1e-15)
    assert rate(Recipe(schedule="cosine"), 1.3) == pytest.approx(0, abs=1e-15)  # never negative
    cycle = shape("one-cycle")
    assert cycle[0] == pytest.approx(0.04)
    assert cycle.argmax() == 30
    assert cycle.max() == pytest.approx(1, abs=2e-4)
    assert cycle[-1] == pytest.approx(1e-4)
    assert (np.diff(cycle[:31]) > 0).all()
    assert (np.diff(cycle[30:]) < 0).all()
    assert np.abs(np.diff(cycle)).max() < 0.06  # no leap: the steepest of both slopes, π/2/30
    assert shape("cosine") != pytest.approx(cycle, abs=0.1)


def test_schedule_free_is_its_authors_own():
    recipe = Recipe(optimiser="schedulefree", learning_rate=0.01, weight_decay=0.2)
    (mine,) = optimisers(nn.Linear(3, 2), recipe)
    assert isinstance(mine, schedulefree.AdamWScheduleFree)
    assert [group["lr"] for group in mine.param_groups] == [0.01, 0.01]
    (other,) = optimisers(nn.Linear(3, 2), replace(recipe, optimiser="adamw"))
    assert not isinstance(other, schedulefree.AdamWScheduleFree)
