"""Tables and arrays small enough to train on in a moment."""

import numpy as np
import pandas as pd
import pytest
import torch

from crossent.minimise import Recipe, fit

QUICK = {"folds": 2, "members": 1, "width": 16, "epochs": 8, "learning_rate": 0.02, "beside": False}


@pytest.fixture
def quick():
    return Recipe(**QUICK)


def mixed_table(rows=240, seed=0):
    """A table of everything that people keep in tables, and a class that some of it decides."""
    random = np.random.default_rng(seed)
    days = pd.date_range("2021-03-01", periods=rows, freq="17h")
    table = pd.DataFrame(
        {
            "größe": random.normal(170, 10, rows).round(1),
            "town": random.choice(["Ulm", "Köln", "Bonn"], rows),
            "owner": random.random(rows) > 0.5,
            "iso": days.strftime("%Y-%m-%d"),
            "german": days.strftime("%d.%m.%Y"),
            "clock": days.strftime("%Y-%m-%d %H:%M:%S"),
            "note": [" ".join(random.choice(["red", "old", "big", "oak"], 3)) + f" {i}" for i in range(rows)],
            "gaps": np.where(random.random(rows) < 0.3, np.nan, random.normal(size=rows)),
            "same": 7,
            "empty": np.nan,
        }
    )
    score = (table["größe"] - 170) / 10 + 2 * (table["town"] == "Ulm") - 1.5 * table["owner"]
    return table, np.where(score + random.normal(0, 0.3, rows) > 0, "buys", "leaves")


@pytest.fixture(scope="session")
def arrays():
    random = np.random.default_rng(5)
    x = random.normal(size=(200, 3)).astype(np.float32)
    return x, np.array(["low", "middle", "high"])[np.digitize(x[:, 0] + 0.3 * random.normal(size=200), [-0.5, 0.5])]


@pytest.fixture(scope="session")
def table_run():
    """One run on the mixed table, for the tests that only look."""
    x, y = mixed_table()
    return x, y, fit(x, y, recipe=Recipe(**QUICK))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tests on a machine that is busy with others: threads that wait for each other would take half the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
