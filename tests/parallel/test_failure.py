"""A rank that dies or never comes is an error on the others, within the timeout of the group; nobody hangs."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from crossent import parallel
from tests.parallel.world import Raised, World

SECONDS = 5.0
PATIENCE = 4 * SECONDS
"""What a test waits: far more than the timeout, far less than for ever."""


def dying(when: str) -> float:
    """A job: one rank leaves at some point of a step; the others say how long they waited."""
    last = dist.get_rank() == dist.get_world_size() - 1
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    started = time.monotonic()

    def leave(now: str) -> None:
        if last and when == now:
            os._exit(1)
        if last and when == f"never comes {now}":
            time.sleep(2 * PATIENCE)

    try:
        leave("before the loss")
        value = parallel.linear_cross_entropy(x, w, torch.tensor([0, 1, 2, 3]))
        leave("before the gradient")
        value.backward()
    except Exception as trouble:
        raise type(trouble)(f"{trouble} after {time.monotonic() - started:.1f} s") from trouble
    return time.monotonic() - started


@pytest.mark.parametrize("when", ["before the loss", "before the gradient", "never comes before the loss"])
def test_a_rank_that_dies_is_an_error_of_the_others(when: str) -> None:
    with World(3, SECONDS) as world:
        started = time.monotonic()
        world.run(dying, "not at all", seconds=60)  # the group is up
        begun = time.monotonic()
        answers = world.patiently(dying, when, ranks=2, seconds=PATIENCE)
        assert time.monotonic() - begun < PATIENCE
        assert begun - started < 60
    for answer in answers:
        assert isinstance(answer, Raised), answer
        assert any(word in answer.text for word in ("Connection closed", "Timed out", "timed out", "Connection reset"))


def test_a_world_in_which_nobody_dies_answers() -> None:
    with World(2, SECONDS) as world:
        assert all(isinstance(answer, float) for answer in world.run(dying, "not at all"))
