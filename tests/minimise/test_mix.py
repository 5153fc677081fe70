"""Mixtures of unlike networks: who is in one, how long each learns, and how much surer or less sure it is made."""

import math
import time
from dataclasses import replace

import pytest
import torch

from crossent.minimise.data.problem import Problem
from crossent.minimise.data.task import Task
from crossent.minimise.networks.several import Even, Mixture, averaged, pooled
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.training import mix
from crossent.minimise.training.learn import learn
from crossent.minimise.training.mix import Cooled, average, mixed
from crossent.minimise.training.state import History
from crossent.minimise.training.train import Trained
from tests.minimise.ranks import FEW, rows

TWO = replace(FEW, members=2, bins=4, beside=True, trees=False)


def widths(problem, recipe):
    """How many inputs the first layer of each network has, and how many members it is."""
    learned = learn(problem, recipe)
    kinds = [network for network in learned.network.networks if isinstance(network, Tabular)]
    return [(network.weights[0].shape[1], network.members) for network in kinds]


def test_half_of_the_members_go_without_ramps(monkeypatch):
    monkeypatch.setattr(mix, "LEAST_SHARE", -1.0)  # nothing is left out: who counts little depends on the rows
    with_ramps, without = 4 + 1 + 4 * 4, 4 + 1  # four numbers, one of which is missing here and there
    problem = rows()
    assert widths(problem, TWO) == [(with_ramps, 2), (without, 2), (without, 2)]  # the last is linear
    assert widths(problem, replace(TWO, members=3)) == [(with_ramps, 4), (without, 2), (without, 2)]
    assert widths(problem, replace(TWO, plain=False)) == [(with_ramps, 4), (without, 2)]
    assert widths(problem, replace(TWO, members=1)) == [(with_ramps, 2), (without, 2)]
    assert widths(problem, replace(TWO, bins=0)) == [(without, 4), (without, 2)]
    assert widths(problem, replace(TWO, beside=False)) == [(with_ramps, 2), (without, 2)]
    assert widths(problem, replace(TWO, model="linear")) == [(without, 4)]


def test_of_a_time_allowed_both_kinds_get_their_part():
    """Not so where the first may take all of it: the second is left with the one epoch that nobody is denied."""
    seconds: dict[int, float] = {}
    began = time.monotonic()

    def noted(at):
        seconds[at.network] = time.monotonic() - began

    endless = replace(TWO, epochs=100_000, patience=100_000, beside=False)
    learn(rows(), endless, progress=noted, deadline=began + 3.0)
    assert sorted(seconds) == [1, 2]
    assert 0.5 < seconds[1] < 2.0
    assert seconds[2] > seconds[1] + 0.5


@pytest.mark.parametrize("repeats", [(2,), (1, 1), (2, 3), (1, 4, 4)])
def test_a_temperature_that_falls_with_the_members_is_carried_on_to_all_of_them(repeats):
    a, b, folds = 1.1, 0.8, 5
    kinds = [Cooled(a + b, a + b / r, r, r * folds) for r in repeats]
    found = mix._of_all_members(kinds, a + b / sum(repeats))
    assert found == pytest.approx([a + b / (r * folds) for r in repeats], rel=1e-12)
    # Where a mean of many needs what one of them needs, all of them together do.
    assert mix._of_all_members([replace(each, few=a + b) for each in kinds], a + b) == [a + b] * len(repeats)


def test_temperatures_are_at_least_one_and_at_most_what_few_members_need():
    assert mix._of_all_members([Cooled(1.2, 1.1, 2, 10)], 1.1)[0] == pytest.approx(1.02)
    assert mix._of_all_members([Cooled(1.2, 0.9, 2, 10)], 0.9) == [1.0]
    assert mix._of_all_members([Cooled(1.5, 1.7, 2, 10)], 1.7) == [1.7]  # a mean that needs more than one of it: odd
    assert mix._of_all_members([Cooled(1.3, 1.3, 1, 5)], 1.3) == [1.3]  # nothing tells how it falls


def said_by(log_p):
    """A network that says the same of every row, and what it said of rows held out."""
    return Trained(Even(log_p.shape[1]), History(), log_p)


def test_what_each_counts_is_what_makes_the_labels_likeliest():
    """Two that err on unlike rows; by another road: odds are multiplied, and the powers the best on a fine grid."""
    random = torch.Generator().manual_seed(3)
    label = torch.randint(2, (400,), generator=random)
    problem = Problem(Task("binary", ("no", "yes"), "y"), torch.zeros(400, 1), label)
    right = torch.nn.functional.one_hot(label, 2).double()
    first, second = 0.1 + 0.8 * right, 0.1 + 0.8 * right
    first[:200], second[300:] = 0.3 + 0.4 * (1 - right[:200]), 0.05 + 0.9 * (1 - right[300:])
    done = [said_by(first.log()), said_by(second.log())]
    network, held_out = mixed(done, [Cooled(), Cooled()], 1, FEW.objective(problem.task, problem.counts()), problem)
    grid = torch.linspace(0, 1, 1001, dtype=torch.float64).view(-1, 1)
    odds = [(part / (1 - part))[torch.arange(400), label] for part in (first, second)]
    product = odds[0] ** grid * odds[1] ** (1 - grid)
    cost = -(product / (1 + product)).log().mean(1)
    assert problem.cross_entropy(held_out) == pytest.approx(float(cost.min()), abs=2e-3)  # a row's worth of evenness
    best = float(grid[cost.argmin(), 0])
    shares = network.shares.tolist()
    assert shares[0] / sum(shares[:2]) == pytest.approx(best, abs=0.01)
    assert 0.2 < best < 0.8


def by_hand(members, shares, temperatures, c):
    """log p(c) of one row, in Python's own floats: means of cooled probabilities, a product, and the even one."""
    kinds = []
    for probabilities, temperature in zip(members, temperatures, strict=True):
        cooled = [[p ** (1 / temperature) for p in each] for each in probabilities]
        cooled = [[p / sum(each) for p in each] for each in cooled]
        kinds.append([sum(column) / len(cooled) for column in zip(*cooled, strict=True)])
    total = sum(shares[:-1])
    product = [
        math.prod(kind[k] ** (share / total) for kind, share in zip(kinds, shares[:-1], strict=False))
        for k in range(len(kinds[0]))
    ]
    return math.log((1 - shares[-1]) * product[c] / sum(product) + shares[-1] / len(product))


def test_kinds_are_multiplied_and_the_members_of_a_kind_averaged():
    members = [[[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], [[0.2, 0.5, 0.3]], [[1 / 3] * 3]]
    shares, temperatures = [0.55, 0.35, 0.1], [1.5, 2.0, 1.0]

    class Said(torch.nn.Module):
        def __init__(self, p):
            super().__init__()
            self.members, self.z = len(p), torch.tensor(p, dtype=torch.float64).log()

        def forward(self, x):
            return self.z.unsqueeze(1).expand(-1, len(x), -1)

    mixture = Mixture([Said(p) for p in members], shares, temperatures)
    log_p = mixture(torch.zeros(2, 1))
    assert log_p.shape == (mixture.members, 2, 3) == (4, 2, 3)
    truth = [by_hand(members, shares, temperatures, c) for c in range(3)]
    assert mixture.together(log_p)[1].tolist() == pytest.approx(truth, abs=1e-14)
    others = [  # faults that this would see
        averaged(log_p, mixture.share_of_each)[1],
        pooled(torch.stack([averaged(each) for each in log_p.split([2, 1, 1])]), mixture.shares)[1],
        mixture.together(log_p.flip(0))[1],
    ]
    assert all((other - torch.tensor(truth)).abs().max() > 0.01 for other in others)
    assert mixture.share_of_each.tolist() == pytest.approx([0.275, 0.275, 0.35, 0.1])


def test_kinds_that_rule_out_each_another_class_leave_a_distribution():
    log_p = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]], [[-math.log(2)] * 2]], dtype=torch.float64)
    said = pooled(log_p, torch.tensor([0.45, 0.45, 0.1], dtype=torch.float64))
    assert said.exp().tolist() == [pytest.approx([0.5, 0.5], abs=1e-12)]
    sure = pooled(log_p[[0, 0, 2]], torch.tensor([0.45, 0.45, 0.1], dtype=torch.float64))
    assert sure.exp().tolist() == [pytest.approx([0.95, 0.05], abs=1e-12)]  # half of the even share, and not 0


def test_powers_of_weights_and_shares_are_those_of_rows_that_come_so_often():
    random = torch.Generator().manual_seed(11)
    said = torch.log_softmax(torch.randn(3, 60, 3, generator=random, dtype=torch.float64), -1)
    times = torch.randint(0, 4, (60, 3), generator=random)
    times[0] = 0
    soft = (times + 1e-30) / (times.sum(1, keepdim=True) + 3e-30)
    task = Task("multi-class", ("a", "b", "c"), "y")
    one = Problem(task, torch.zeros(60, 1), soft.float(), times.sum(1).float())
    row, column = times.nonzero(as_tuple=True)
    again = row.repeat_interleave(times[row, column]), column.repeat_interleave(times[row, column])
    many = Problem(task, torch.zeros(len(again[0]), 1), again[1])
    found = mix.powers(said, one, 2)
    assert found == pytest.approx(mix.powers(said[:, again[0]], many, 2), abs=1e-4)
    assert sum(found) == pytest.approx(1, abs=1e-12)
    assert max(abs(a - b) for a, b in zip(found, mix.powers(said, replace(one, weight=None), 2), strict=True)) > 0.01
    assert mix.powers(said[:1], one, 1) == [1.0]


def test_few_rows_do_not_choose_between_networks_of_one_kind():
    """The first is right of all of a dozen rows, the second of half of them; by thousands it would be left out."""

    def shares(rows, alike):
        label = torch.arange(rows) % 2
        problem = Problem(Task("binary", ("no", "yes"), "y"), torch.zeros(rows, 1), label)
        right = torch.nn.functional.one_hot(label, 2).double()
        half = torch.where(torch.arange(rows).view(-1, 1) % 4 < 2, right, 1 - right)
        done = [said_by((0.1 + 0.8 * each).log()) for each in (right, half)]
        network, _ = mixed(done, [Cooled(), Cooled()], alike, FEW.objective(problem.task, problem.counts()), problem)
        return network.shares[:-1].tolist()

    few = shares(12, 2)
    # By another road: what they count together is 12 / 13, and how they divide it is the best on a fine grid.
    first, even = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), 1 / 13
    one_right = 9 ** (first - (1 - first))  # the odds of a label that only the first is right about
    likely = 6 * torch.stack((torch.full_like(first, 0.9), one_right / (1 + one_right))).log()
    best = float(first[(likely.sum(0) + 50 * first.log() + 50 * (1 - first).log()).argmax()])
    assert sum(few) == pytest.approx(1 - even, rel=1e-9)
    assert few[0] / sum(few) == pytest.approx(best, abs=0.001)
    assert 0.51 < best < 0.55
    assert len(shares(12, 1)) == 1
    assert len(shares(8000, 2)) == 1


def test_two_kinds_that_are_too_sure_are_less_so_together():
    """They err on other rows; what all members need is less than the few that had not seen a row."""
    random = torch.Generator().manual_seed(5)
    truth = torch.randn(4000, 1, generator=random, dtype=torch.float64) * torch.tensor([1.0, -1.0])
    label = (torch.rand(4000, generator=random) < torch.softmax(truth, -1)[:, 1].float()).long()
    problem = Problem(Task("binary", ("no", "yes"), "y"), torch.zeros(4000, 1), label)
    noisy = [torch.log_softmax(truth + torch.randn(truth.shape, generator=random), -1) for _ in range(2)]
    alone = [mix.cooling(log_p, problem).temperature for log_p in noisy]
    kinds = [Cooled(few, few, 1, 5) for few in alone]
    done = [said_by(log_p.clone()) for log_p in noisy]
    network, _ = mixed(done, kinds, 2, FEW.objective(problem.task, problem.counts()), problem)
    apart, _ = mixed(done, kinds, 1, FEW.objective(problem.task, problem.counts()), problem)
    assert min(alone) > 1.2
    assert network.temperatures[:2].tolist() < [each - 0.1 for each in alone]
    assert apart.temperatures[:2].tolist() == pytest.approx(alone)
    assert math.isclose(float(network.shares.sum()), 1.0, abs_tol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_average_says_of_a_row_how_often_classes_come_in_other_folds(weighted):
    draw = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 60, replacement=True, generator=draw)
    weight = torch.arange(60.0) % 4 if weighted else None
    problem = Problem(Task("multi-class", ("a", "b", "c"), ""), torch.zeros(60, 1), labels, weight)
    fold = torch.arange(60).unsqueeze(0) % 3
    found = average(problem, FEW.objective(problem.task, problem.counts()), fold)
    assert found.network(torch.zeros(7, 1)).shape == (3, 7, 3)
    for row in (0, 1, 2, 59):
        others = [other for other in range(60) if other % 3 != row % 3]
        counts = [sum(1.0 if weight is None else float(weight[o]) for o in others if labels[o] == c) for c in range(3)]
        rows_there = len(others)  # weights say what rows count beside each other: there are as many as there are
        shares = [count / sum(counts) * rows_there + 1 / 3 for count in counts]
        expected = [math.log(share / sum(shares)) for share in shares]
        assert found.held_out[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_where_columns_tell_nothing_the_frequencies_are_said_and_else_the_answer_has_the_bits_without_them(monkeypatch):
    draw = torch.Generator().manual_seed(1)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), 200, replacement=True, generator=draw)
    noise = Problem(Task("multi-class", ("a", "b", "c"), ""), torch.randn(200, 12, generator=draw), labels)
    few = replace(FEW, beside=True, trees=False, epochs=15, learning_rate=0.05, stop="none")
    learned = learn(noise, few)
    assert "Average" in [type(network).__name__ for network in learned.network.networks]
    said = learned.log_probabilities(torch.randn(2000, 12, generator=draw)).exp()
    told = learn(rows(), few)
    assert "Average" not in [type(network).__name__ for network in told.network.networks]

    def unlike(problem, objective, fold):
        """It says what no row is, and is left out."""
        found = average(problem, objective, fold)
        found.network.logits.mul_(-9)
        return replace(found, held_out=torch.log_softmax(-9 * found.held_out, -1))

    monkeypatch.setattr("crossent.minimise.training.learn.average", unlike)
    assert torch.equal(learn(rows(), few).held_out, told.held_out)
    alone = learn(noise, few).log_probabilities(torch.randn(2000, 12, generator=draw)).exp()
    assert said.std(0).max() < 0.5 * alone.std(0).max()  # far less is made of rows that tell nothing
