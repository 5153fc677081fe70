"""Labels that may be wrong, and a loss that believes them less."""

import numpy as np
import pytest
import torch

from crossent import evaluate
from crossent.compute import cross_entropy
from crossent.compute.losses import NLL, Confidence
from crossent.errors import DataError
from crossent.measure import Predictions
from crossent.minimise.objective.spelling import read_loss
from crossent.minimise.objective.suspects import Bootstrapped, suspects


def planted(n=600, wrong=40, seed=0):
    """Three classes that a good network tells apart, and labels of which some were exchanged."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, n)
    z = random.normal(size=(n, 3)) + 3.5 * np.eye(3)[truth]
    labels = truth.copy()
    exchanged = random.choice(n, wrong, replace=False)
    labels[exchanged] = (labels[exchanged] + random.integers(1, 3, wrong)) % 3
    return torch.from_numpy(z).log_softmax(-1), torch.from_numpy(labels), set(exchanged.tolist())


NAMES = ("a", "b", "c")


def test_planted_labels_are_found():
    log_p, labels, exchanged = planted()
    found = suspects(log_p, labels, NAMES)
    right = [row in exchanged for row in found["row"]]
    assert sum(right) > 25, "most of the 40"
    assert sum(right) / len(right) > 0.8, "and few others"
    assert all(right[:15]), "the most suspicious first"
    assert found["margin"] == sorted(found["margin"], reverse=True)
    clean = suspects(*planted(wrong=0)[:2], NAMES)
    assert len(clean["row"]) < 15


def test_the_rule_is_that_of_the_costliest_rows():
    """crossent evaluate marks suspects among the twenty costliest rows: the two have to agree on each of them."""
    log_p, labels, _ = planted(seed=3)
    found = suspects(log_p, labels, NAMES)
    p = log_p.exp().numpy()
    p = p / p.sum(1, keepdims=True)
    table = evaluate(Predictions.from_arrays(p, labels.numpy())).tables["costliest"]
    marked = {int(row) for row, suspect in zip(table["row"], table["suspect"], strict=True) if suspect}
    asked = {int(row) for row in table["row"]}
    assert marked == asked & set(found["row"])
    assert marked
    shifted = suspects(log_p.roll(1, 1), labels, NAMES)
    assert marked != asked & set(shifted["row"])


def test_a_row_says_what_it_needs_to():
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.95, 0.05], [0.5, 0.5]], dtype=torch.float64)
    found = suspects(p.log(), torch.tensor([0, 0, 1, 1, 1]), ("cat", "dog"), rows=["v", "w", "x", "y", "z"])
    assert found == {
        "row": ["y"],
        "label": ["dog"],
        "probable": ["cat"],
        "p_label": [0.05],
        "p_probable": [0.95],
        "margin": [0.9],
    }


def test_what_is_needed_is_what_the_class_usually_gets():
    """Class 1 is never given more than 0.6: 0.6 is enough for it, and not for class 0."""
    p = torch.tensor([[0.99, 0.01], [0.99, 0.01], [0.4, 0.6], [0.4, 0.6], [0.4, 0.6], [0.6, 0.4]], dtype=torch.float64)
    found = suspects(p.log(), torch.tensor([0, 0, 1, 1, 0, 1]), NAMES[:2])
    assert found["row"] == [4]


def test_rows_that_nobody_held_out_are_left_out():
    log_p, labels, _ = planted()
    found = suspects(log_p, labels, NAMES)
    log_p[found["row"][0]] = torch.nan
    again = suspects(log_p, labels, NAMES)
    assert found["row"][0] not in again["row"]
    assert set(again["row"]) >= set(found["row"][2:6])
    assert suspects(log_p, labels, NAMES, most=3)["row"] == again["row"][:3]


def test_a_class_without_labels_makes_nobody_suspect():
    p = torch.tensor([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], dtype=torch.float64)
    assert suspects(p.log(), torch.tensor([0, 0, 1]), NAMES)["row"] == []


def test_what_has_no_suspects():
    p = torch.full((4, 3), 1 / 3).log()
    with pytest.raises(DataError, match="Soft labels say themselves how sure they are"):
        suspects(p, torch.full((4, 3), 1 / 3), NAMES)
    with pytest.raises(DataError, match=r"got labels of shape \(3,\)"):
        suspects(p, torch.tensor([0, 1, 2]), NAMES)
    with pytest.raises(DataError, match="2 classes are named, and there are 3 columns"):
        suspects(p, torch.tensor([0, 1, 2, 0]), NAMES[:2])


# Bootstrapped targets.


def rows(dtype=torch.float64):
    return torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=dtype) * 3, torch.arange(30) % 4


def test_hard_bootstrapping_is_cross_entropy_to_the_mixed_target():
    z, y = rows()
    target = 0.8 * torch.eye(4, dtype=torch.float64)[y] + 0.2 * torch.eye(4, dtype=torch.float64)[z.argmax(1)]
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    got = cross_entropy(one, y, loss=Bootstrapped(0.8), reduction="none")
    expected = cross_entropy(other, target, reduction="none")
    assert torch.allclose(got, expected, rtol=1e-13, atol=1e-15)
    got.sum().backward()
    expected.sum().backward()
    assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-15)
    assert not torch.allclose(got, cross_entropy(z, y, loss=Bootstrapped(0.9), reduction="none"), rtol=1e-2)


def test_hard_bootstrapping_of_a_sure_row_keeps_its_digits():
    z = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    got = cross_entropy(z, torch.tensor([0]), loss=Bootstrapped(0.7))
    assert got.item() == pytest.approx(2 * np.exp(-60.0), rel=1e-14)


def test_soft_bootstrapping_is_minimum_entropy_regularisation():
    z, y = rows()
    p = z.softmax(-1)
    target = 0.9 * torch.eye(4, dtype=torch.float64)[y] + 0.1 * p
    got = cross_entropy(z, y, loss=read_loss("bootstrapped_soft(0.9)"), reduction="none")
    assert torch.allclose(got, -(target * p.log()).sum(-1), rtol=1e-12, atol=1e-14)
    assert read_loss("bootstrapped_soft(0.5)") == NLL() * 0.5 + Confidence() * -0.5


def test_soft_bootstrapping_with_a_constant_target_would_only_scale_the_gradient():
    """Why the gradient goes through the target: otherwise it is that of the NLL times β."""
    z, y = rows()
    found = []
    for loss in ("constant", "nll", "soft"):
        leaf = z.clone().requires_grad_()
        target = 0.9 * torch.eye(4, dtype=torch.float64)[y] + 0.1 * leaf.softmax(-1).detach()
        value = {
            "constant": lambda leaf=leaf, target=target: cross_entropy(leaf, target, reduction="sum"),
            "nll": lambda leaf=leaf: 0.9 * cross_entropy(leaf, y, reduction="sum"),
            "soft": lambda leaf=leaf: cross_entropy(leaf, y, loss=read_loss("bootstrapped_soft(0.9)"), reduction="sum"),
        }[loss]()
        value.backward()
        found.append(leaf.grad)
    assert torch.allclose(found[0], found[1], rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found[2], found[1], rtol=1e-3)


@pytest.mark.parametrize("beta", [0.0, 1.1, float("nan")])
def test_belief_in_the_label_is_a_share(beta):
    with pytest.raises(ValueError, match="beta, the belief in the label"):
        Bootstrapped(beta)
