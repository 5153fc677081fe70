"""A problem's figures, and its folds: every row held out once, every class in every fold."""

import numpy as np
import pytest
import torch

from crossent.minimise import Problem
from crossent.minimise.data.problem import folds, one_in
from crossent.minimise.data.task import Task

FIVE = Task("multi-class", tuple("abcde"), "five classes")
RANGE = Task("range", (), "a range", 0.0, 1.0)
LABELS = torch.from_numpy(np.random.default_rng(3).choice(5, 503, p=[0.5, 0.3, 0.15, 0.03, 0.02]))


def problem(target=LABELS, task=FIVE, weight=None):
    return Problem(task, torch.zeros(len(target), 1), target, weight)


SOFT = torch.nn.functional.one_hot(LABELS, 5).float() * 0.6 + 0.08
FRACTIONS = torch.from_numpy(np.random.default_rng(4).beta(0.5, 2, 503)).float()
KINDS = {"labels": problem(), "soft": problem(SOFT), "range": problem(FRACTIONS, RANGE)}


def strata(kind):
    """What the draw is to be fair to: classes, the likeliest class, tenths of a range."""
    if kind == "range":
        return np.argsort(np.argsort(FRACTIONS.numpy())) * 10 // 503
    return LABELS.numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [2, 5, 7])
def test_every_row_is_held_out_once_in_every_repeat_and_folds_are_alike(kind, parts):
    found = folds(KINDS[kind], parts, 3, seed=1)
    assert (found.shape, found.dtype) == ((3, 503), torch.int64)
    assert len({tuple(repeat.tolist()) for repeat in found}) == 3  # a repeat is another draw
    for repeat in found.numpy():
        assert set(repeat.tolist()) == set(range(parts))
        sizes = np.bincount(repeat)
        assert sizes.max() - sizes.min() <= 1
        for stratum in np.unique(strata(kind)):
            share = np.bincount(repeat[strata(kind) == stratum], minlength=parts)
            assert share.max() - share.min() <= 1, stratum
    # The same comparison refuses folds that are drawn whatever the class.
    careless = np.arange(503) * parts // 503
    order = np.argsort(strata(kind), kind="stable")
    share = np.bincount(careless[strata(kind)[order] == 0], minlength=parts)
    assert share.max() - share.min() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_part_holds_out_a_sixth_by_class_and_learns_from_the_last_of_one(kind):
    found = folds(KINDS[kind], 1, 2, seed=1).numpy()
    assert set(np.unique(found)) == {-1, 0}
    for repeat in found:
        lost = len(np.unique(strata(kind)))  # a class may keep one row that it owed
        assert 503 // 6 - lost <= (repeat == 0).sum() <= 503 / 6
        for stratum in np.unique(strata(kind)):
            inside = strata(kind) == stratum
            assert (repeat[inside] == 0).sum() == pytest.approx(inside.sum() / 6, abs=1)
    for seed in range(20):
        few = problem(torch.tensor([0] * 5 + [1] * 6 + [2] + [3] + [4]))
        held = folds(few, 1, 1, seed)[0] == 0
        assert 1 <= held.sum() <= 3
        assert set(few.target[~held].tolist()) == set(range(5))


def test_of_many_rows_five_thousand_are_held_out_in_one_part():
    assert [one_in(rows) for rows in (1, 1437, 30_000, 35_000, 60_000, 10**6)] == [6, 6, 6, 7, 12, 200]
    many = problem(torch.arange(60_000) % 3)
    held = folds(many, 1, 1, seed=1)[0] == 0
    assert held.sum() == 5000
    assert torch.bincount(many.target[held]).tolist() == pytest.approx([5000 / 3] * 3, abs=1)


def test_there_is_a_row_to_choose_by_however_few_rows_there_are():
    for rows in (2, 3, 5):
        for seed in range(5):
            few = problem(torch.arange(rows))
            held = folds(few, 1, 1, seed)[0] == 0
            assert held.sum() == 1
            assert set(folds(few, rows, 1, seed)[0].tolist()) == set(range(rows))


def test_the_seed_and_nothing_else_draws_them():
    first = folds(problem(), 5, 2, 7)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (the old global generator is what must not matter)
    assert torch.equal(folds(problem(), 5, 2, 7), first)
    assert not torch.equal(folds(problem(), 5, 2, 8), first)
    assert torch.equal(folds(problem(), 5, 1, 7)[0], first[0])  # more members are more draws, not others


LOG_P = torch.randn(503, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(1)
WEIGHT = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 503)).float()


def test_a_cross_entropy_is_the_mean_of_the_costs_by_numpy():
    log_p = LOG_P.numpy()
    plain = -log_p[np.arange(503), LABELS.numpy()]
    soft = -(SOFT.double().numpy() * log_p).sum(1)
    # Sums of 503 doubles of size 1: some 1e-15 each way.
    assert problem().cross_entropy(LOG_P) == pytest.approx(plain.mean(), rel=1e-13)
    assert problem(SOFT).cross_entropy(LOG_P) == pytest.approx(soft.mean(), rel=1e-13)
    rows = LABELS == 1
    assert problem().cross_entropy(LOG_P, rows) == pytest.approx(plain[rows.numpy()].mean(), rel=1e-13)
    assert problem().cross_entropy(LOG_P, rows) != pytest.approx(plain.mean(), rel=1e-3)
    pair = LOG_P[:, :2].log_softmax(1)
    f = FRACTIONS.double().numpy()
    expected = -((1 - f) * pair[:, 0].numpy() + f * pair[:, 1].numpy()).mean()
    assert KINDS["range"].cross_entropy(pair) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("target", [LABELS, SOFT], ids=["labels", "soft"])
def test_a_row_of_weight_three_is_that_row_three_times(target):
    times = WEIGHT.long()
    weighted, repeated = problem(target, weight=WEIGHT), problem(target.repeat_interleave(times, 0))
    again = LOG_P.repeat_interleave(times, 0)
    assert weighted.cross_entropy(LOG_P) == pytest.approx(repeated.cross_entropy(again), rel=1e-13)
    assert weighted.cross_entropy(LOG_P) != pytest.approx(problem(target).cross_entropy(LOG_P), rel=1e-4)
    assert weighted.counts().numpy() == pytest.approx(repeated.counts().numpy(), rel=1e-6)  # soft labels of float32
    assert weighted.counts().numpy() != pytest.approx(problem(target).counts().numpy(), rel=1e-2)


def test_counts_are_rows_of_each_class_and_sums_of_a_range():
    assert problem().counts().tolist() == np.bincount(LABELS).tolist()
    assert problem(SOFT).counts().numpy() == pytest.approx(SOFT.double().sum(0).numpy())
    assert KINDS["range"].counts().numpy() == pytest.approx([503 - FRACTIONS.sum().item(), FRACTIONS.sum().item()])


def test_some_rows_are_taken_with_their_weights():
    some = problem(SOFT, weight=WEIGHT).take(torch.tensor([5, 2]))
    assert torch.equal(some.target, SOFT[[5, 2]])
    assert torch.equal(some.weight, WEIGHT[[5, 2]])
    assert len(some) == 2
    assert problem().take(torch.tensor([5])).weight is None
