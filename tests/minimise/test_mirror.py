"""The look at mirror images: where left and right mean something, and where they do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from crossent.minimise import Problem, Recipe
from crossent.minimise.data.mirror import mirrors_alike
from crossent.minimise.data.task import Task


def task(classes):
    return Task("multi-class", tuple(map(str, range(classes))), "")


def bumps(shift, rows=600):
    """Images with one bump: class k has it in row k, and, with ``shift`` 0, anywhere from left to right."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 4, rows)
    column = generator.integers(0, 16, rows) if shift == 0 else 2 * label + 1
    images = generator.random((rows, 1, 16, 16)) * 0.1
    images[np.arange(rows), 0, 4 * label if shift == 0 else 8, column] = 2.0
    return Problem(task(4), torch.from_numpy(images).float(), torch.from_numpy(label))


def test_left_and_right_mean_something_in_digits_and_nothing_where_only_the_height_counts():
    digits = load_digits()
    x, y = torch.from_numpy(digits.images).float().unsqueeze(1), torch.from_numpy(digits.target)
    problem = Problem(task(10), x, y)
    assert not mirrors_alike(problem)
    assert not Recipe.usual(problem).flip
    alike = bumps(shift=0)
    assert mirrors_alike(alike)
    assert Recipe.usual(alike).flip
    assert not mirrors_alike(bumps(shift=1))  # the place from left to right is all that tells them apart
    # The same digits, every other one mirrored: now a mirror image of a digit is a digit.
    both = torch.where((torch.arange(len(x)) % 2 == 0).view(-1, 1, 1, 1), x, x.flip(-1))
    assert mirrors_alike(replace(problem, x=both))
    # Labels that have nothing to do with the images tell nothing of either.
    drawn = torch.randint(0, 10, (len(x),), generator=torch.Generator().manual_seed(0))
    assert not mirrors_alike(replace(problem, x=both, target=drawn))


@pytest.mark.parametrize("form", ["range", "few", "table"])
def test_nothing_is_said_of_what_cannot_be_looked_at(form):
    alike = bumps(shift=0)
    assert mirrors_alike(alike)
    if form == "range":
        other = Problem(Task("range", (), "", 0, 1), alike.x, torch.rand(len(alike)))
    else:
        other = alike.take(torch.arange(199)) if form == "few" else replace(alike, x=alike.x.flatten(1))
    assert not mirrors_alike(other)


def test_soft_labels_and_large_images_are_looked_at_too():
    alike = bumps(shift=0)
    soft = torch.nn.functional.one_hot(alike.target, 4).float() * 0.7 + 0.075
    large = alike.x.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert mirrors_alike(replace(alike, target=soft, x=large))
    assert not mirrors_alike(
        replace(bumps(shift=1), x=bumps(shift=1).x.repeat_interleave(3, 2).repeat_interleave(3, 3))
    )
