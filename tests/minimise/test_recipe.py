"""The recipe: every setting has its bounds, is written as a command, and read back from it."""

import dataclasses
import shlex

import numpy as np
import pytest
import torch

from crossent.errors import DataError
from crossent.minimise import Problem, Recipe
from crossent.minimise.data.task import Task
from crossent.minimise.recipe import BOUNDS, CHOICES, LEAST


@pytest.mark.parametrize(
    "setting",
    ["members=0", "folds=0", "width=0", "epochs=-1", "batch=-1", "patience=-1", "depth=-1", "bins=-1", "crop=-1"],
)
def test_a_number_that_is_too_low_is_refused(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(DataError, match=rf"the recipe's {name} must be at least {LEAST[name]}, and is {value}\."):
        Recipe(**{name: int(value)})
    Recipe(**{name: LEAST[name]})


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_beyond_its_bounds_is_refused(name):
    low, high = BOUNDS[name]
    for value in (low - 0.001, high + 0.001, float("nan"), float("inf")):
        with pytest.raises(DataError, match=rf"the recipe's {name} must lie between .* and is {value}"):
            Recipe(**{name: value})
    assert (getattr(Recipe(**{name: low}), name), getattr(Recipe(**{name: high}), name)) == (low, high)


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_is_none_of_the_choices_is_refused_with_what_is_close(name):
    for choice in CHOICES[name]:
        assert getattr(Recipe(**{name: choice}), name) == choice
    first = CHOICES[name][0]
    with pytest.raises(DataError, match=rf"the recipe's {name} is one of {first}, .*; it is '{first}s'. Did you mean"):
        Recipe(**{name: first + "s"})
    with pytest.raises(DataError, match=r"it is 'qqq'\.$"):
        Recipe(**{name: "qqq"})
    assert Recipe(model="package.module:factory").model == "package.module:factory"
    with pytest.raises(
        DataError, match=r"residual, text:FOLDER of a model of texts, or package.module:factory; it is 'foo'"
    ):
        Recipe(model="foo")


CHANGED = Recipe(
    model="my.own:network", folds=3, members=4, width=7, depth=0, bins=1, plain=False, dropout=0.1 + 0.2,
    loss="focal(2)", label_smoothing=0.05, code="hlgauss(32)", imbalance="logit_adjusted", mixup=1.0, cutmix=1 / 3,
    noise=0.5, flip=True, crop=2, optimiser="muon", learning_rate=1.23456789e-5, weight_decay=0.0,
    schedule="one-cycle", sharpness=0.05, averaging=1e-7, batch=64, epochs=50, patience=9, stop="none", refit=True,
    beside=False, trees=False, calibration="none",
)  # fmt: skip


def problem_of(x):
    return Problem(Task("binary", ("a", "b"), ""), x, torch.arange(len(x)) % 2)


def read_back(command, base=None):
    words = shlex.split(command)
    assert words[::2] == ["--set"] * (len(words) // 2)
    return (base or Recipe()).parsed(words[1::2])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"epochs": "x"}, "epochs is a whole number; it is 'x'"),
        ({"epochs": 2.5}, "epochs is a whole number; it is 2.5"),
        ({"members": True}, "members is a whole number; it is True"),
        ({"dropout": None}, "dropout is a number; it is None"),
        ({"flip": 1}, "flip is True or False; it is 1"),
        ({"loss": 3}, "loss is text; it is 3"),
    ],
)
def test_a_setting_of_another_kind_is_refused(setting, told):
    with pytest.raises(DataError, match=f"the recipe's {told}"):
        Recipe(**setting)
    assert Recipe(epochs=np.int64(3), dropout=np.float32(0.5), sharpness=0).epochs == 3


def test_a_recipe_is_the_command_that_repeats_it():
    assert all(value != getattr(Recipe(), name) for name, value in CHANGED.to_dict().items())  # none is left untried
    assert read_back(CHANGED.command()) == CHANGED
    assert Recipe().command() == ""
    images = Recipe.usual(problem_of(torch.zeros(2, 1, 8, 8)))
    assert read_back(CHANGED.command(images), images) == CHANGED
    assert read_back(Recipe().command(CHANGED), CHANGED) == Recipe()
    few = Recipe(epochs=50)
    assert read_back(few.command(), images) != few  # a command stands on what it was said from
    assert Recipe(**CHANGED.to_dict()) == CHANGED
    assert set(CHANGED.to_dict()) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("layers=3", r"--set takes NAME=VALUE with one of the names model, .*; got 'layers=3'"),
        ("epoch=3", r"got 'epoch=3'. Did you mean 'epochs'\?"),
        ("epochs", r"got 'epochs'"),
        ("width=big", r"--set width needs a whole number; got 'big'"),
        ("width=2.5", r"--set width needs a whole number; got '2.5'"),
        ("dropout=much", r"--set dropout needs a number; got 'much'"),
        ("flip=perhaps", r"--set flip needs yes or no; got 'perhaps'"),
        ("dropout=2", r"the recipe's dropout must lie between 0 and 0.95, and is 2.0"),
        ("optimiser=adam", r"is one of adamw, .*; it is 'adam'. Did you mean 'adamw'\?"),
    ],
)
def test_a_setting_that_cannot_be_is_a_sentence(setting, sentence):
    with pytest.raises(DataError, match=sentence):
        Recipe().parsed(["width=8", setting])


def test_settings_are_read_in_every_usual_spelling():
    for word in ("yes", "true", "on", "1", "True"):
        assert Recipe().parsed([f"flip={word}"]).flip
    for word in ("no", "false", "off", "0"):
        assert not Recipe(flip=True).parsed([f"flip={word}"]).flip
    assert Recipe().parsed(["loss=focal(2)", "learning_rate=1e-3", "loss=gce(0.7)"]).loss == "gce(0.7)"
    assert Recipe().changed(epochs=3) == Recipe(epochs=3)
    with pytest.raises(DataError, match=r"a recipe has no setting 'epoch'. Did you mean 'epochs'\? It has model, "):
        Recipe().changed(epoch=3)


def test_what_is_left_to_the_number_of_rows():
    # Left alone, a small table is given patience in steps, and a large one in epochs.
    assert (Recipe().patience_for(5), Recipe().epochs_for(60)) == (60, 240)
    assert (Recipe().patience_for(1000), Recipe().epochs_for(6)) == (6, 200)
    assert [Recipe().batch_for(rows) for rows in (5, 100, 1000, 5000, 10**6)] == [5, 16, 64, 256, 512]
    assert (Recipe(batch=40).batch_for(1000), Recipe(batch=40).batch_for(30)) == (40, 30)
    assert (Recipe(patience=7).patience_for(5), Recipe(epochs=9).epochs_for(60)) == (7, 9)
    assert Recipe(optimiser="lbfgs", batch=40).batch_for(1000) == 1000


def test_rows_and_images_have_recipes_of_their_own():
    assert Recipe.usual(problem_of(torch.zeros(3, 4))) == Recipe()
    assert Recipe.usual(problem_of(torch.zeros(3, 4, dtype=torch.long))).learning_rate == 5e-5  # tokens
    images = Recipe.usual(problem_of(torch.zeros(3, 1, 8, 8)))
    assert (images.model, images.folds, images.flip) == ("residual", 1, False)
    assert images.says_of_folds(1437) == "a sixth of them held out"
    assert images.says_of_folds(60_000) == "one in 12 of them held out"
    assert Recipe(folds=3).says_of_folds(60_000) == "held out in turn in 3 folds"


def test_the_objective_is_the_recipe_s():
    task = Task("binary", ("a", "b"), "two")
    z, y = torch.tensor([[0.3, -1.0]]), torch.tensor([1])
    assert Recipe().objective(task).loss(z, y).item() == pytest.approx(torch.nn.functional.cross_entropy(z, y).item())
    for recipe in (Recipe(loss="focal(2)"), Recipe(label_smoothing=0.1)):
        assert recipe.objective(task).loss(z, y).item() != Recipe().objective(task).loss(z, y).item()
    weighted = Recipe(imbalance="weights").objective(task, torch.tensor([30.0, 10.0]))
    assert weighted.loss(z, y).item() != Recipe().objective(task).loss(z, y).item()
    # The mean over a batch of a row twice is that of the row with weight 2, by the rows' weights.
    twice = Recipe().objective(task).loss(z.repeat(2, 1), y.repeat(2)).sum()
    assert twice.item() == Recipe().objective(task).loss(z, y, torch.tensor([2.0])).sum().item()
