"""A study without training: what a space draws, what is pruned, lost, refused, and what is still to be won."""

import math
import shlex

import numpy as np
import optuna
import pytest
import torch

from crossent.errors import DataError
from crossent.minimise import Recipe
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.task import Task
from crossent.minimise.tune import study
from crossent.minimise.tune.space import Space, usual_texts
from crossent.minimise.tune.study import Study, expected
from tests.minimise.test_tune import rows


def test_a_space_is_texts_that_become_recipes_and_commands():
    x, y = rows(4000)
    problem = Problem(Task("binary", ("0", "1"), ""), torch.from_numpy(x), torch.from_numpy(y))
    base = Recipe()
    space = Space.read((), problem, base)
    assert set(space.to_dict()) == set(usual_texts(problem, base))
    assert {"loss", "label_smoothing", "width", "batch", "mixup", "optimiser"} <= set(space.to_dict())
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [space.recipe(random.ask(), base) for _ in range(40)]
    for recipe in drawn:
        written = [word for word in shlex.split(recipe.command(base)) if word != "--set"]
        assert base.parsed(written) == recipe
        assert 5e-4 <= recipe.learning_rate <= 2e-2
        assert 48 <= recipe.width <= 512
        assert recipe.mixup == 0 or 0.1 <= recipe.mixup <= 1
        place = space.place_of(recipe)
        assert space.recipe(optuna.trial.FixedTrial(place), base) == recipe
    assert {recipe.loss.partition("(")[0] for recipe in drawn} == {"nll", "focal", "gce", "poly1"}
    assert len({recipe.width for recipe in drawn}) > 20
    # A number in a range has no class to mix or to be rare; images are flipped and have no bins.
    share = Problem(Task("range", (), "", 0, 1), torch.from_numpy(x), torch.rand(4000))
    assert "code" in usual_texts(share, base)
    assert not {"loss", "mixup", "imbalance"} & usual_texts(share, base).keys()
    rare = Problem(problem.task, problem.x, (torch.arange(4000) < 100).long())
    assert "imbalance" in usual_texts(rare, base)
    assert "imbalance" not in usual_texts(problem, base)
    images = Problem(problem.task, torch.rand(40, 1, 8, 8), torch.from_numpy(y[:40]))
    assert {"flip", "crop"} < usual_texts(images, Recipe.usual(images)).keys()
    assert "bins" not in usual_texts(images, Recipe.usual(images))
    assert "loss" not in Space.read((), problem, base, fixed=["loss"]).to_dict()


def fill(found, losses, spread=0.01, fold=None):
    """Trials of a study without training: what each costs, with folds that differ by ``spread``."""
    for place, loss in enumerate(losses):
        trial = found.begin()
        position = trial.suggest_float("position", 0, 1)
        trial.suggest_categorical("idle", ["a", "b"])
        value = loss(position) if callable(loss) else loss
        folds = value + spread * np.array([-1, 0, 1, 0.5, -0.5])
        found.prunes(trial, dict.fromkeys(range(3), value))
        found.end(trial, "complete", value, losses=folds.tolist(), settings=str(place), low=None, high=None)


@pytest.mark.parametrize("name", ["trials.journal", "trials.db"])
def test_a_silent_trial_of_another_machine_is_begun_again_and_a_talking_one_is_not(tmp_path, name):
    found = Study(tmp_path / name, {"data": "x"}, 0, {})
    begun = [found.begin()]
    begun[0].suggest_float("position", 0, 1)
    begun[0].set_user_attr("process", "elsewhere 1")
    begun.append(found.begin())
    begun[1].set_user_attr("process", "elsewhere 1")
    for trial, silent in zip(begun, (study.SILENT + 1, 1.0), strict=True):
        trial.set_user_attr("alive", trial.user_attrs["alive"] - silent)
    other = Study(tmp_path / name, {"data": "x"}, 0, {})
    other.mend()
    again = other.begin()
    assert again.user_attrs["again"] == 0
    assert again.user_attrs["index"] == 0
    assert again.suggest_float("position", 0, 1) == found.trials[0].params["position"]
    assert found.table()["state"] == ["lost", "running", "running"]
    assert found.begun == 2
    found.end(again, "stopped")
    assert found.begin().user_attrs["index"] == 2
    with pytest.raises(DataError, match="of other things than this one: its data differs"):
        Study(tmp_path / name, {"data": "y"}, 0, {})


def test_ranks_and_the_mean_must_both_say_that_a_trial_is_worse():
    found = Study(None, {}, 0, {})
    best = {block: 0.5 + block / 100 for block in range(8)}
    first = found.begin()
    assert not found.prunes(first, best)
    found.end(first, "complete", 0.535, losses=[0.5, 0.6])
    assert not found.prunes(found.begin(), best)  # as good, block for block
    assert found.prunes(found.begin(), {block: loss + 0.01 for block, loss in best.items()})
    assert not found.prunes(found.begin(), {block: loss - 0.01 for block, loss in best.items()})
    # Seven blocks of eight a little worse, and one much better.
    assert not found.prunes(found.begin(), {block: loss + 0.001 for block, loss in best.items()} | {0: 0.1})


def test_a_storage_that_is_something_else_is_left_as_it_is(tmp_path):
    for name in ("data.csv", "data.db"):
        (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(DataError, match="it is left as it is"):
            Study(tmp_path / name, {}, 0, {})
        assert (tmp_path / name).read_text() == "a,b\n1,2\n"


def test_the_terminator_says_when_nothing_is_left():
    flat, steep = Study(None, {}, 0, {}), Study(None, {}, 0, {})
    fill(flat, [lambda position: 0.5 + 1e-4 * position] * 24, spread=0.05)
    fill(steep, [lambda position: 0.5 + position] * 24, spread=0.0)
    bound, doubt = flat.still_to_win()
    assert bound < doubt
    # The error of a cross-validated mean, by hand: folds at -1, 0, 1, 1/2 and -1/2 have a variance of 1/2.
    assert doubt == pytest.approx(0.05 * math.sqrt((1 / 5 + 1 / 4) * 0.5))
    bound, doubt = steep.still_to_win()
    assert bound > doubt == 0
    early = Study(None, {}, 0, {})
    fill(early, [0.5] * 19)
    assert early.still_to_win() is None


def test_what_mattered_is_told_from_what_chance_gives():
    found, noise, few = (Study(None, {}, 0, {}) for _ in range(3))
    fill(found, [lambda position: 0.5 + position] * 24)
    fill(noise, np.random.default_rng(1).normal(0.5, 0.1, size=24))
    fill(few, [0.5] * (study.LEAST_TO_WEIGH - 1))
    table = found.importance()
    assert table["setting"] == ["position", "idle"]
    assert sum(table["importance"]) == pytest.approx(1)
    assert table["importance"][0] > max(0.9, table["chance"][0])
    assert table["importance"][1] < table["chance"][1]
    # Of losses that have nothing to do with either, one has the larger share all the same, and does not pass chance.
    table = noise.importance()
    assert max(table["importance"]) > 0.5
    assert all(share <= chance for share, chance in zip(table["importance"], table["chance"], strict=True))
    assert few.importance() is None


@pytest.mark.parametrize(("sign", "furthers"), [(1, (1,)), (-1, (1, 40))], ids=["floor", "exponential tail"])
def test_what_more_trials_are_expected_to_win_is_what_they_win(sign, furthers):
    random = np.random.default_rng(0)
    for further in furthers:
        drawn = 5 + sign * random.exponential(0.1, size=(20_000, 40 + further))
        won = (drawn[:, :40].min(1) - drawn.min(1)).mean()
        gains = [expected(list(values), further) for values in drawn[:, :40]]
        error = 4 * math.hypot((drawn[:, :40].min(1) - drawn.min(1)).std(), np.std(gains)) / math.sqrt(20_000)
        # The distance is that among n draws, not n + 1: near a floor larger by a part in n, here in 40.
        assert abs(won - np.mean(gains)) < error + won / 40
        assert abs(won - 1.5 * np.mean(gains)) > error + won / 40
    assert math.isnan(expected([0.3], 5))
    assert expected([0.3, 0.3, 0.4], 5) == 0
