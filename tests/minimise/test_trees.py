"""Boosted trees: as a network they say what scikit-learn says; grown in folds they count what they are worth."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from crossent.minimise import Problem, Recipe, fit, learn, load
from crossent.minimise.data.problem import folds
from crossent.minimise.data.task import Task
from crossent.minimise.export import TOLERANCE, export
from crossent.minimise.networks import rebuilt, settings_of
from crossent.minimise.networks.trees import Trees, _down
from crossent.minimise.training import boost
from crossent.minimise.training import learn as learning
from crossent.minimise.training.judge import held_out_of, members_of
from crossent.minimise.training.learn import launched
from tests.minimise.ranks import TREES, rows


def kinds(learned):
    return [type(network).__name__ for network in learned.network.networks]


def bits(learned):
    state = [p.double().flatten() for p in learned.network.state_dict().values()]
    return torch.cat([*state, learned.held_out.flatten().nan_to_num(9.0)])


def grow(problem, recipe=TREES, seed=0, **options):
    objective, fold = recipe.objective(problem.task, problem.counts()), folds(problem, recipe.folds, 1, seed)
    return boost.boosted(problem, objective, fold, seed, fabric=launched(), **options)


# As scikit-learn has it.


def table(classes, features=3, count=400):
    random = np.random.default_rng(classes + features)
    x = random.normal(size=(count, features)).astype(np.float32).round(1)  # many rows on one value
    x[random.random(x.shape) < 0.2] = np.nan
    score = np.nan_to_num(x[:, 0], nan=2.0) + 0.5 * random.normal(size=count)
    return x, np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))


def grown(classes, features=3, rounds=25):
    x, y = table(classes, features)
    return x, HistGradientBoostingClassifier(max_iter=rounds, max_depth=6, random_state=0).fit(x, y)


def questions(network, x):
    """Rows that were seen, each threshold and its neighbours in float32, the ends of the line, and nothing at all."""
    cuts = network.threshold[network.threshold.isfinite()].unique().numpy()
    beside = [np.nextafter(cuts, np.float32(end)) for end in (-np.inf, np.inf)]
    numbers = np.concatenate([cuts, *beside, np.float32([-np.inf, np.inf, np.nan, 3e38])])
    alone = np.repeat(numbers[:, None], x.shape[1], 1)
    mixed = np.random.default_rng(0).choice(numbers, (200, x.shape[1]))
    return np.concatenate((x, alone, mixed))


def by_scikit_learn(model, x):
    """Finite numbers are asked as they are; it takes no infinite ones, and float64 has finite ones beyond float32's."""
    z = model.decision_function(np.clip(x.astype(np.float64), -1e300, 1e300))
    return z if z.ndim == 2 else np.stack((np.zeros_like(z), z), 1)


def off(network, model, x):
    return np.abs(network(torch.from_numpy(x))[0].numpy() - by_scikit_learn(model, x)).max()


ROUNDING = 2e-6
"""25 leaves of size 1 at most are rounded to float32, each by 2⁻²⁵, and so is their sum, of size 8 at most, by 2⁻²²."""


@pytest.mark.parametrize(("classes", "features"), [(2, 3), (2, 1), (4, 3), (3, 1)])
def test_a_network_of_trees_says_what_scikit_learn_says(classes, features):
    x, model = grown(classes, features)
    network = Trees.of([model], classes)
    asked = questions(network, x)
    assert np.isnan(x).any()
    assert network(torch.from_numpy(asked)).shape == (1, len(asked), classes)
    assert network(torch.from_numpy(asked)).dtype == torch.float32
    assert off(network, model, asked) <= ROUNDING
    assert network(torch.zeros(0, features)).shape == (1, 0, classes)


FAULTS = {
    "missing numbers go the other way": lambda n: n.missing.copy_(~n.missing & n.threshold.isfinite()),
    "a threshold is one float32 too high": lambda n: n.threshold.copy_(n.threshold.nextafter(torch.tensor(math.inf))),
    "a threshold is one float32 too low": lambda n: n.threshold.copy_(n.threshold.nextafter(torch.tensor(-math.inf))),
    "a step too few": lambda n: setattr(n, "depth", n.depth - 1),
    "a leaf says something else": lambda n: n.value.add_((n.value == n.value.max()) * 1e-4),
    "the number before the first tree": lambda n: n.start.add_(1e-5),
    "another feature": lambda n: n.feature.copy_((n.feature + 1) % 3),
    "left for right": lambda n: n.left.copy_(torch.where(n.threshold.isfinite(), n.left - 1, n.left)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_that_comparison_sees_every_planted_fault(fault):
    x, model = grown(4)
    network = Trees.of([model], 4)
    asked = questions(network, x)
    FAULTS[fault](network)
    assert off(network, model, asked) > 5 * ROUNDING


def test_a_threshold_rounded_down_parts_float32_as_it_parted_before():
    random = np.random.default_rng(0)
    a = random.normal(size=5000).astype(np.float32)
    b = np.nextafter(a, np.float32(np.inf))
    between = (a.astype(np.float64) + b.astype(np.float64)) / 2
    assert np.array_equal(_down(between), a)
    assert not np.array_equal(between.astype(np.float32), a)  # the nearest would be b for every other one
    assert np.array_equal(_down(a.astype(np.float64)), a)
    ends = _down(np.array([np.inf, 1e300, -1e300]))
    assert ends.tolist() == [np.inf, float(np.finfo(np.float32).max), -np.inf]


def test_of_two_classes_one_logit_may_be_wanted():
    x, model = grown(2)
    one, two = (Trees.of([model], columns)(torch.from_numpy(x)) for columns in (1, 2))
    assert one.shape == (1, 400, 1)
    assert torch.equal(one, two[..., 1:])
    assert not two[..., 0].any()


def test_members_of_unlike_size_stand_side_by_side_and_may_read_rows_of_their_own():
    x, model = grown(3)
    _, short = grown(3, rounds=4)
    network = Trees.of([model, short], 3)
    said = network(torch.from_numpy(x))
    for member, alone in enumerate((model, short)):
        assert np.abs(said[member].numpy() - alone.decision_function(x)).max() <= ROUNDING
    assert not torch.allclose(said[0], said[1], atol=0.1)
    own = torch.from_numpy(np.stack((x, x[::-1])))
    apart = network(own)
    assert torch.equal(apart[0], said[0])
    assert torch.equal(apart[1], said[1].flip(0))


def test_its_settings_and_its_weights_make_it_again():
    x, model = grown(3)
    network = Trees.of([model], 3)
    again = rebuilt(settings_of(network))
    assert not again(torch.from_numpy(x)).any()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(torch.from_numpy(x)), network(torch.from_numpy(x)))


# Grown in folds.


def test_each_fold_learns_from_the_rows_outside_it_and_stops_by_those_in_it(monkeypatch):
    problem, seen = replace(rows(count=120), weight=torch.rand(120) + 0.5), []
    problem = replace(problem, x=problem.x.nan_to_num(5.0))
    learnt = HistGradientBoostingClassifier.fit

    def told(self, x, y, weight, **held):
        seen.append((x, y, weight, held))
        return learnt(self, x, y, weight, **held)

    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", told)
    trained = grow(problem)
    fold = folds(problem, 2, 1, 0)[0]
    assert len(seen) == trained.network.members == 2
    for part, (x, y, weight, held) in enumerate(seen):
        for apart, (its_x, its_y, its_weight) in (
            (fold != part, (x, y, weight)),
            (fold == part, (held["X_val"], held["y_val"], held["sample_weight_val"])),
        ):
            assert np.array_equal(its_x, problem.x[apart])
            assert np.array_equal(its_y, problem.target[apart])
            assert np.array_equal(its_weight, problem.weight[apart].double())
    objective = TREES.objective(problem.task)
    log_p = objective.log_probabilities(trained.network(problem.x))
    own = log_p[fold, torch.arange(120)]
    assert torch.allclose(trained.held_out, own, atol=1e-6)
    assert not torch.allclose(trained.held_out, log_p[1 - fold, torch.arange(120)], atol=0.1)
    assert problem.cross_entropy(trained.held_out) < math.log(3) - 0.2


def test_the_round_with_the_lowest_loss_on_the_rows_held_out_is_the_last():
    problem = rows(count=200)
    trained = grow(problem)
    parts = members_of(problem, folds(problem, 2, 1, 0), trained.network)
    objective = TREES.objective(problem.task)
    best = problem.cross_entropy(trained.held_out)
    for fewer in (3, 6, 12):  # trees: one, two and four rounds
        root = trained.network.root.clone()
        for member in root:
            member[member.nonzero().flatten()[-fewer:]] = 0
        shorter = rebuilt(settings_of(trained.network))
        shorter.load_state_dict({**trained.network.state_dict(), "root": root})
        assert problem.cross_entropy(held_out_of(shorter, objective, problem, parts)) > best


def test_soft_labels_are_rows_that_come_once_for_each_class():
    hard = rows(count=150)
    q = torch.full((150, 3), 0.125)
    q[torch.arange(150), hard.target] = 0.75
    soft = grow(replace(hard, target=q))
    fold = folds(hard, 2, 1, 0)
    again = replace(
        hard,
        x=hard.x.repeat_interleave(3, 0),
        target=torch.arange(3).repeat(150),
        weight=q.flatten(),
    )
    same = boost.boosted(
        again, TREES.objective(hard.task), fold.repeat_interleave(3, 1), 0, fabric=launched()
    ).network.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in soft.network.state_dict().items())
    other = grow(hard).network.state_dict()
    assert not torch.equal(other["start"], same["start"])


def test_a_share_of_a_range_is_two_rows_and_one_logit():
    random = torch.Generator().manual_seed(0)
    x = torch.rand(300, 2, generator=random)
    share = (x[:, 0] > 0.5).float() * 0.6 + 0.2
    problem = Problem(Task("range", (), "share", 0.0, 1.0), x, share)
    trained = grow(problem)
    assert trained.network.columns == 1
    said = trained.held_out.exp()[:, 1]
    assert (said - share).abs().mean() < 0.03  # of a step of 0.6: one row in twenty may be on its wrong side
    assert (said - share.flip(0)).abs().mean() > 0.2


def test_a_class_that_a_fold_does_not_show_is_improbable_and_not_impossible():
    problem = rows(count=200)
    problem.target[:] = problem.target.clamp(max=1)
    problem.target[0] = 2  # one row: outside its own fold there is none
    said = grow(problem).held_out
    assert said.isfinite().all()
    assert said.exp().sum(1).numpy() == pytest.approx(np.ones(200), abs=1e-12)
    assert 1e-4 < float(said[0, 2].exp()) < 0.1


def test_weight_nought_is_a_row_that_is_not_there():
    weight = torch.ones(200)
    weight[::5] = 0.0
    problem = replace(rows(count=200), weight=weight)
    other = replace(problem, target=torch.where(weight > 0, problem.target, 2 - problem.target))
    plan, objective = folds(problem, 2, 1, 0), TREES.objective(problem.task)
    one, same, whole = (
        boost.boosted(each, objective, plan, 0, fabric=launched()).held_out
        for each in (problem, other, replace(other, weight=None))
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, whole, atol=0.01)


# Beside the networks.


STEPS = 700


@pytest.fixture(scope="module")
def steps():
    """A class that changes seven times along a number, which networks without ramps find hard and trees easy."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, 5, generator=random)
    x[torch.rand(x.shape, generator=random) < 0.05] = float("nan")
    label = (x[:, 0].nan_to_num(0.0) * 3).floor().long() % 2
    flip = torch.rand(STEPS, generator=random) < 0.05
    return Problem(Task("binary", ("a", "b"), "steps"), x, torch.where(flip, 1 - label, label))


@pytest.fixture(scope="module")
def learned(steps):
    return learn(steps, TREES)


def test_trees_that_know_more_than_the_networks_count_and_win(steps, learned):
    assert "Trees" in kinds(learned)
    without = learn(steps, replace(TREES, trees=False))
    assert "Trees" not in kinds(without)
    assert steps.cross_entropy(learned.held_out) < steps.cross_entropy(without.held_out) - 0.1
    own = learned.network.shares[:-1].sum()
    assert float(own) > 0.5


def test_trees_that_are_wrong_count_nothing(monkeypatch, steps):
    grown = boost.boosted

    def wrong(problem, *arguments, **options):
        return grown(replace(problem, target=1 - problem.target), *arguments, **options)

    monkeypatch.setattr(boost, "boosted", wrong)
    assert torch.equal(bits(learn(steps, TREES)), bits(learn(steps, replace(TREES, trees=False))))


def test_the_seed_decides_and_nothing_else(steps, learned):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(bits(learn(steps, TREES)), bits(learned))
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(bits(learn(steps, TREES, 1)), bits(learned))


class Stop(Exception):
    """A kill."""


def test_a_kill_among_the_trees_loses_nothing(tmp_path, steps, learned):
    def kill(at):
        if at.network == 3:
            raise Stop

    with pytest.raises(Stop):
        learn(steps, TREES, checkpoint=tmp_path, progress=kill)
    seen = []
    resumed = learn(steps, TREES, checkpoint=tmp_path, progress=seen.append)
    assert {(at.network, at.networks, at.expected) for at in seen} == {(3, 3, 2)}
    assert torch.equal(bits(resumed), bits(learned))


def test_ctrl_c_among_the_trees_keeps_the_networks(steps):
    def stop(at):
        if at.network == 3:
            raise KeyboardInterrupt

    kept = learn(steps, TREES, progress=stop)
    assert "by hand" in kept.history.stopped
    assert torch.equal(bits(kept), bits(learn(steps, replace(TREES, trees=False))))


def test_without_time_there_are_no_trees_and_networks_leave_them_some(monkeypatch, steps):
    assert grow(steps, deadline=time.monotonic() - 1) is None
    late = learn(steps, TREES, deadline=time.monotonic() - 1)
    assert "Trees" not in kinds(late)
    ends = []

    def stopped(*_, deadline, **__):
        ends.append(deadline)
        raise Stop

    monkeypatch.setattr(learning, "train", stopped)
    for recipe, share in ((TREES, 0.85), (replace(TREES, trees=False), 1.0)):
        now = time.monotonic()
        with pytest.raises(Stop):
            learn(steps, recipe, deadline=now + 1000)
        assert ends.pop() - now == pytest.approx(1000 * share, abs=50)


@pytest.mark.parametrize(
    "settings",
    [
        {"trees": False},
        {"beside": False},
        {"model": "linear"},
        {"loss": "focal(2)"},
        {"label_smoothing": 0.1},
        {"imbalance": "balanced"},
        {},
    ],
)
def test_where_trees_do_not_fit_there_are_none(steps, settings):
    def wanted(problem, recipe):
        return boost.wanted(problem, recipe.objective(problem.task, problem.counts()), recipe, recipe.folds)

    recipe = replace(Recipe(), **settings)
    assert wanted(steps, recipe) == (not settings)
    if not settings:
        some = torch.arange(boost.LEAST_ROWS)
        assert wanted(steps.take(some), recipe)
        assert not wanted(steps.take(some[1:]), recipe)
        many = Task("multi-class", tuple(map(str, range(101))), "many")
        assert not wanted(replace(steps, task=many), recipe)
        assert not wanted(replace(steps, x=torch.zeros(STEPS, 0)), recipe)
        assert not wanted(replace(steps, x=torch.zeros(STEPS, 200_000)[:, :200_000]), recipe)
        a_range = Problem(Task("range", (), "share", 0.0, 1.0), steps.x, torch.rand(STEPS))
        assert wanted(a_range, recipe)
        assert not wanted(a_range, replace(recipe, code="hlgauss(20)"))


@pytest.fixture(scope="module")
def run(steps):
    return fit(steps.x.numpy(), steps.target.numpy(), recipe=TREES)


def test_a_run_with_trees_is_saved_loaded_and_exported(tmp_path, steps, run):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'crossent[onnx]'")
    pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'crossent[onnx]'")
    import onnxruntime

    x = steps.x.numpy()
    p = run.predict_proba(x)
    assert "Trees" in kinds(run)
    run.save(tmp_path / "run")
    assert np.array_equal(load(tmp_path / "run").predict_proba(x), p)
    assert b"sklearn" not in (tmp_path / "run" / "model.safetensors").read_bytes()
    export(run, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    assert np.abs(module(steps.x)[0].numpy() - p).max() <= TOLERANCE
    export(run, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for some in (x, x[:1]):
        said = session.run(["probabilities"], {"features": some})[0]
        assert np.abs(said - p[: len(some)]).max() <= TOLERANCE
    assert np.abs(session.run(["probabilities"], {"features": np.nan_to_num(x)})[0] - p).max() > 100 * TOLERANCE
