"""From a problem to networks: one batched one for tables, one after another for others; alike on two processes."""

import math
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
import torch
from torch import nn

from crossent.errors import DataError
from crossent.minimise import Problem, Recipe, learn
from crossent.minimise.data.problem import folds
from crossent.minimise.training import learn as learning
from crossent.minimise.training.judge import logits_of
from crossent.minimise.training.learn import launched
from crossent.minimise.training.train import _sizes
from tests.minimise.ranks import FEW, MIXED, NORMED, PICTURES, TREES, attending, images, normed, rows

ROOT = Path(__file__).parents[2]


def bits(learned):
    """All that has been learnt, in one tensor."""
    state = [p.double().flatten() for p in learned.network.state_dict().values()]
    return torch.cat([*state, learned.held_out.flatten().nan_to_num(9.0)])


def probability(learned, x):
    return learned.log_probabilities(x).exp()


def test_the_seed_decides_and_nothing_else():
    one, again = learn(rows(), FEW, 3), learn(rows(), FEW, 3)
    assert torch.equal(bits(one), bits(again))
    assert not torch.equal(bits(one), bits(learn(rows(), FEW, 4)))
    torch.manual_seed(99)
    assert torch.equal(bits(one), bits(learn(rows(), FEW, 3)))


def test_probabilities_are_of_classes_and_every_row_was_held_out():
    learned = learn(rows(), FEW)
    assert learned.held_out.shape == (90, 3)
    assert learned.held_out.dtype == torch.float64
    assert learned.held_out.exp().sum(1).numpy() == pytest.approx(np.ones(90), abs=1e-12)
    p = probability(learned, rows().x)
    assert p.sum(1).numpy() == pytest.approx(np.ones(90), abs=1e-12)
    assert rows().cross_entropy(learned.held_out) < math.log(3) - 0.1  # it has learnt something
    lost = learn(
        replace(rows(), target=rows().target[torch.randperm(90, generator=torch.Generator().manual_seed(1))]), FEW
    )
    assert rows().cross_entropy(lost.held_out) > math.log(3) - 0.1


def test_one_fold_holds_out_a_sixth_and_says_nothing_of_the_rest():
    learned = learn(rows(), replace(FEW, folds=1))
    known = ~learned.held_out[:, 0].isnan()
    assert torch.equal(known, folds(rows(), 1, 1, 0)[0] == 0)
    assert 10 <= known.sum() <= 15


def test_there_are_no_more_folds_than_rows():
    few = rows().take(torch.tensor([0, 1, 2, 3]))
    assert not learn(few, replace(FEW, folds=9)).held_out.isnan().any()


class Small(nn.Module):
    """A network of the user's own, which says what it was asked for."""

    def __init__(self, shape, columns):
        super().__init__()
        self.shape, self.columns = shape, columns
        self.linear = nn.Linear(math.prod(shape), columns)

    def forward(self, x):
        return self.linear(x.nan_to_num(0.0).flatten(1))


def test_a_network_of_one_s_own_is_trained_for_every_fold_and_member_and_averaged():
    made = []

    def factory(shape, columns):
        made.append(Small(shape, columns))
        return made[-1]

    recipe, problem = replace(FEW, folds=3, members=2, stop="none"), rows()
    seen = []
    learned = learn(problem, recipe, factory=factory, progress=seen.append)
    assert {(each.shape, each.columns) for each in made} == {((4,), 3)}
    assert {(at.network, at.networks) for at in seen} == {(number, 6) for number in range(1, 7)}
    logits = logits_of(learned.network, problem.x).double()
    assert logits.shape == (6, 90, 3)
    p = logits.softmax(-1)
    assert probability(learned, problem.x).numpy() == pytest.approx(p.mean(0).numpy(), abs=1e-12)
    # Held out: of two repeats in three folds, the two networks whose fold a row was in. float32 matrices of another
    # height may be multiplied in another order.
    fold = folds(problem, 3, 2, 0)
    own = torch.stack([p[repeat * 3 + fold[repeat], torch.arange(90)] for repeat in range(2)]).mean(0)
    assert learned.held_out.exp().numpy() == pytest.approx(own.numpy(), abs=1e-6)
    wrong = torch.stack([p[repeat * 3 + (fold[repeat] + 1) % 3, torch.arange(90)] for repeat in range(2)]).mean(0)
    assert learned.held_out.exp().numpy() != pytest.approx(wrong.numpy(), abs=1e-3)


def test_images_are_learnt_by_a_residual_network():
    x = torch.zeros(40, 1, 8, 8)
    x[:20, :, :4] = 1.0
    problem = Problem(replace(rows().task, kind="binary", classes=("up", "down")), x, (torch.arange(40) >= 20).long())
    recipe = replace(Recipe.usual(problem), width=4, depth=1, epochs=4, batch=8, crop=0, stop="none")
    learned = learn(problem, recipe)
    assert problem.cross_entropy(learned.log_probabilities(x)) < 0.4
    assert torch.equal(bits(learned), bits(learn(problem, recipe)))


def test_a_factory_that_cannot_be_found_or_makes_no_network_is_a_sentence():
    for name, sentence in (
        ("no_such_package:make", r"the model 'no_such_package:make' cannot be imported: No module named"),
        ("math:no_such_function", r"has no attribute 'no_such_function'. It is written package.module:function"),
        ("builtins:print", r"a model's factory must give a torch.nn.Module; it gave NoneType"),
    ):
        with pytest.raises(DataError, match=sentence):
            learn(rows(), replace(FEW, model=name))
    named = learn(rows(), replace(FEW, model=f"{__name__}:Small"))
    assert torch.equal(bits(named), bits(learn(rows(), FEW, factory=Small)))


class Stop(Exception):
    """A kill."""


def test_a_kill_in_the_third_of_four_networks_loses_nothing(tmp_path):
    recipe = replace(FEW, members=2)
    whole = learn(rows(), recipe, factory=Small)

    def kill(at):
        if at.network == 3 and at.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        learn(rows(), recipe, factory=Small, checkpoint=tmp_path, progress=kill)
    assert {path.name for path in tmp_path.iterdir()} == {"network-1.pt", "network-2.pt"}
    seen = []
    resumed = learn(rows(), recipe, factory=Small, checkpoint=tmp_path, progress=seen.append)
    assert min(at.network for at in seen) == 3  # what was finished is not done again
    assert torch.equal(bits(resumed), bits(whole))


@pytest.fixture
def ctrl_c_in(monkeypatch):
    """Ctrl-C before the training of that number has anything to keep."""

    def at(number):
        begun, train = [], learning.train

        def trained(*arguments, **options):
            begun.append(1)
            if len(begun) == number:
                raise KeyboardInterrupt
            return train(*arguments, **options)

        monkeypatch.setattr(learning, "train", trained)

    return at


def test_ctrl_c_before_the_second_network_has_anything_to_keep_keeps_the_first(ctrl_c_in):
    only = learn(rows(), FEW, fold=folds(rows(), 2, 1, 0), factory=Small).network.networks[0]
    ctrl_c_in(2)
    kept = learn(rows(), FEW, factory=Small)
    assert len(kept.network.networks) == 1
    for mine, its in zip(kept.network.networks[0].parameters(), only.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert kept.history.stopped == "stopped by hand; the best epoch so far is kept"
    assert kept.held_out[:, 0].isnan().sum() == 45  # the other half was held out from nobody yet
    assert kept.outlook is None
    ctrl_c_in(1)
    with pytest.raises(KeyboardInterrupt):  # there is nothing to keep
        learn(rows(), FEW, factory=Small)


@pytest.mark.parametrize("setting", ["beside", "refit"])
def test_ctrl_c_before_what_comes_after_the_networks_of_a_table_keeps_them(ctrl_c_in, setting):
    alone = learn(rows(), FEW)
    ctrl_c_in(2)
    kept = learn(rows(), replace(FEW, **{setting: True}))
    assert torch.equal(bits(kept), bits(alone))
    assert "by hand" in kept.history.stopped
    assert "by hand" not in alone.history.stopped


def test_the_time_allowed_is_shared_among_the_networks():
    recipe = replace(FEW, epochs=100_000, patience=100_000)
    began, ends = time.monotonic(), {}
    learned = learn(
        rows(),
        recipe,
        factory=Small,
        deadline=began + 2,
        progress=lambda at: ends.update({at.network: time.monotonic()}),
    )
    assert learned.history.stopped == "the time allowed was over"
    assert set(ends) == {1, 2}
    assert ends[1] - began < 1.9  # the second has its half
    assert len(learn(rows(), FEW, deadline=time.monotonic() - 1).history.train) == 1


def on_two_processes(folder, *arguments):
    """What two processes under torchrun, that speak by gloo, have learnt: tensors, the first process's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "tests.minimise.ranks"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, str(folder), *arguments],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt") for rank in (0, 1)]


def test_two_processes_give_the_answer_of_one(tmp_path):
    """Batches of 7 are shared as 4 and 3, the last of an epoch as 1 and 0."""
    pair = on_two_processes(tmp_path)
    x = rows().x
    for name, recipe in (("adamw", FEW), ("sgd", replace(FEW, optimiser="sgd", learning_rate=0.1)), *MIXED.items()):
        alone = learn(rows(), recipe)
        said = torch.cat((alone.held_out, alone.log_probabilities(x)))
        assert torch.equal(pair[0][name], pair[1][name])  # both processes know the whole
        # Gradients of float32 are summed in another order, and Adam divides them by their size: a few 1e-6 after six
        # epochs of some seven steps.
        assert torch.allclose(pair[0][name], said, atol=1e-4), (pair[0][name] - said).abs().max()
        other = learn(rows(), recipe, 1)
        assert not torch.allclose(pair[0][name], torch.cat((other.held_out, other.log_probabilities(x))), atol=1e-2)
    weighted = replace(rows(), weight=torch.linspace(0.2, 1.8, 90))
    shares = replace(rows(), target=torch.nn.functional.one_hot(rows().target).float())
    for name, problem in (("weighted", weighted), ("shares", shares)):
        assert torch.allclose(pair[0][name], learn(problem, MIXED["mixup"]).held_out, atol=1e-4)
    own = learn(rows(), NORMED, factory=normed).held_out
    attended = learn(rows(), NORMED, factory=attending).held_out
    for name, alone in (("images", learn(images(), PICTURES).held_out), ("own", own), ("attending", attended)):
        assert torch.equal(pair[0][name], pair[1][name])
        assert torch.allclose(pair[0][name], alone, atol=1e-4), (pair[0][name] - alone).abs().max()
    assert not torch.allclose(learn(rows(), NORMED, 1, factory=normed).held_out, own, atol=1e-2)
    assert not torch.allclose(learn(rows(), NORMED, 1, factory=attending).held_out, attended, atol=1e-2)
    alone = learn(rows(count=600), replace(TREES, epochs=1))
    assert "Trees" in [type(network).__name__ for network in alone.network.networks]
    assert torch.equal(pair[0]["trees"], pair[1]["trees"])
    assert torch.allclose(pair[0]["trees"], alone.held_out, atol=1e-4)
    assert pair[0]["epochs"] == pair[1]["epochs"]  # of a training that ends by the clock


def test_one_process_is_launched_where_none_was_started(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    fabric = launched()
    assert (fabric.world_size, fabric.global_rank, fabric.device.type) == (1, 0, "cpu")


def test_beside_the_network_a_linear_model_and_knowing_nothing_count_what_held_out_rows_give_them():
    problem, recipe = rows(), replace(FEW, epochs=12, learning_rate=0.05)
    learned = learn(problem, replace(recipe, beside=True))
    kinds = [type(network).__name__ for network in learned.network.networks]
    assert kinds[-1] == "Even"
    assert set(kinds[:-1]) == {"Tabular"}
    assert learned.network.shares.sum().item() == pytest.approx(1, abs=1e-12)
    assert learned.network.shares[-1] >= 1 / 91 - 1e-12  # one row more, of which nothing was known
    best = problem.cross_entropy(learned.held_out)
    for lone in (recipe, replace(recipe, model="linear")):
        alone = learn(problem, lone)
        assert [type(network).__name__ for network in alone.network.networks] == ["Tabular", "Even"]
        assert best < problem.cross_entropy(alone.held_out) + 1e-3


def test_the_seconds_of_a_training_are_those_of_all_its_networks(tmp_path):
    learned = learn(rows(), replace(FEW, beside=True), checkpoint=tmp_path)
    each = [torch.load(path, weights_only=True)["history"]["seconds"] for path in sorted(tmp_path.glob("*.pt"))]
    assert len(each) == 2
    assert learned.history.seconds == pytest.approx(sum(each), rel=1e-9)
    assert learned.history.seconds > max(each)


def test_with_refit_fresh_networks_learn_from_all_rows_and_held_out_rows_stay_those_of_the_first():
    problem = rows()
    first, whole = learn(problem, FEW), learn(problem, replace(FEW, refit=True))
    assert torch.equal(first.held_out, whole.held_out)
    assert not torch.equal(first.log_probabilities(problem.x), whole.log_probabilities(problem.x))
    # Each of its members has seen all rows: another label of any row changes all of them.
    for row in (0, 50):
        target = problem.target.clone()
        target[row] = (target[row] + 1) % 3
        other = learn(replace(problem, target=target), replace(FEW, refit=True, stop="none"))
        same = learn(problem, replace(FEW, refit=True, stop="none"))
        for mine, theirs in zip(same.network.networks[0].weights[0], other.network.networks[0].weights[0], strict=True):
            assert not torch.equal(mine, theirs)


def test_products_of_numpy_and_scipy_have_one_thread_while_networks_learn_and_theirs_back_afterwards():
    def seen():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    while_learning = []
    with threadpoolctl.threadpool_limits(2, "blas"):
        before = seen()
        learn(rows(), FEW, progress=lambda _: while_learning.append(seen()))
        after = seen()
    assert before == after
    assert set(before) == {2}  # the control: there is a pool, and it has threads to lose
    assert {count for pools in while_learning for count in pools} == {1}


def test_a_linear_model_beside_networks_ends_after_so_many_steps_and_one_that_stands_alone_does_not(monkeypatch):
    def epochs(recipe):
        networks = {}
        learn(rows(), recipe, progress=lambda at: networks.update({at.network: at.epoch}))
        return networks

    recipe = replace(FEW, epochs=9, patience=9, batch=20)
    steps = -(-len(rows()) // 20)
    assert epochs(replace(recipe, beside=True)) == {1: 9, 2: 9}  # the control: nothing ends it here
    monkeypatch.setattr(learning, "MOST_STEPS_OF_A_LINEAR_MODEL", 4 * steps)
    assert epochs(replace(recipe, beside=True)) == {1: 9, 2: 4}
    assert epochs(replace(recipe, model="linear")) == {1: 9}


def test_a_row_that_would_be_alone_in_its_batch_joins_another_where_batch_norm_may_be():
    """Of 45 rows learnt in batches of 11 one is left; no spread can be taken of it."""
    learned = learn(rows(), replace(NORMED, batch=11), factory=normed)
    assert learned.held_out.isfinite().all()
    assert [_sizes(45, 11, many) for many in (False, True)] == [[11, 11, 11, 12], [11, 11, 11, 11, 1]]
    assert [_sizes(rows, 11, False) for rows in (1, 12, 22, 24)] == [[1], [12], [11, 11], [11, 11, 2]]


def test_dropout_before_batch_norm_draws_from_the_seed_alone():
    """The averages of batch norm are taken anew for the average of the weights, with coins of their own."""
    said = []
    for other in (1, 2):
        torch.manual_seed(other)
        said.append(learn(rows(), NORMED, factory=normed).held_out)
    assert torch.equal(*said)
