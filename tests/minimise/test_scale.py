"""Many columns, many classes, many rows: smaller networks by themselves, and no array that nobody needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossent.minimise import Problem, Recipe, fit, learn
from crossent.minimise.data.dataset import from_arrays
from crossent.minimise.data.parts import Part, rare
from crossent.minimise.data.task import Task
from crossent.minimise.finish import FEWER
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.recipe import MANY_COLUMNS, MOST_SAID, MOST_WEIGHTS
from crossent.minimise.training import judge
from tests.minimise.conftest import QUICK

FEW = Recipe(**QUICK)


def problem_of(rows, columns, classes):
    task = Task("multi-class", tuple(map(str, range(classes))), "")
    return Problem(task, torch.zeros(1, columns).expand(rows, columns), torch.arange(rows) % classes)


@pytest.mark.parametrize(("rows", "columns", "classes"), [(500, 5000, 2), (24_000, 20, 10_000), (900, 3000, 300)])
def test_a_table_of_thousands_of_columns_or_classes_has_networks_that_fit_it(rows, columns, classes):
    usual = Recipe.usual(problem_of(rows, columns, classes))
    weights = usual.members * usual.folds * (columns + classes) * usual.width
    assert weights <= MOST_WEIGHTS
    assert Recipe().members * Recipe().folds * (columns + classes) * Recipe().width > MOST_WEIGHTS
    held_out = rows if usual.folds > 1 else rows / 6
    assert held_out * classes <= 2 * MOST_SAID
    assert usual.folds == (1 if rows * classes > MOST_SAID else 5)


def test_a_table_of_any_usual_size_has_the_usual_recipe():
    for size in ((100_000, 100, 2), (10_000, MANY_COLUMNS - 10, 10), (10**6, 50, 100)):
        assert Recipe.usual(problem_of(*size)) == Recipe()


def test_where_a_column_would_have_one_ramp_it_has_none():
    x = torch.randn(50, 1600, generator=torch.Generator().manual_seed(0))
    sizes = {"members": 1, "width": 4, "depth": 1, "dropout": 0.0, "bins": 16}
    many, fewer = (Tabular.for_features(part, 2, **sizes).settings["ramps"] for part in (x, x[:, :700]))
    assert many == 0
    assert fewer == 1400  # two in each of 700 columns


def test_scales_are_the_same_in_pieces_of_columns():
    """Against numpy on all columns at once; rare values, whose scale is the mean and deviation, among them."""
    draw = np.random.default_rng(0)
    x = np.where(draw.random((400_000, 12)) < 0.05, draw.normal(3, 2, (400_000, 12)), 0).astype(np.float32)
    x[::7, 3] = np.nan  # 2,000,000 // 400,000: five columns at a time
    network = Tabular.for_features(torch.from_numpy(x), 2, members=1, width=2, depth=0, dropout=0.0, bins=0)
    whole = np.where(np.isnan(x), 0, x).astype(np.float64)
    assert network.center.numpy() == pytest.approx(whole.mean(0), rel=1e-6)
    assert network.spread.numpy() == pytest.approx(whole.std(0), rel=1e-6)
    assert network.center[5:10].numpy() != pytest.approx(whole.mean(0)[:5], rel=1e-6)


def test_counts_of_classes_are_those_of_indicators():
    target, weight = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0])
    task = Task("multi-class", ("a", "b", "c", "never"), "")
    plain, weighed = (Problem(task, torch.zeros(5, 1), target, w).counts() for w in (None, weight))
    assert plain.tolist() == [1, 1, 3, 0]
    assert weighed.tolist() == [1, 0, 3.5, 0]
    assert plain.dtype == weighed.dtype == torch.float64


def test_rare_classes_are_counted_as_they_are():
    task = Task("multi-class", ("a", "b", "c"), "")
    y = np.array([0] * 9 + [1] * 4 + [2])
    part = Part(from_arrays(np.zeros((14, 1)), y), np.arange(14), y)
    assert rare(task, (part,)) == [
        "Classes with fewer than five rows in all can hardly be learned or tested: b (4), c (1)."
    ]


def test_one_part_held_out_is_said_as_it_was_and_mixed_by_its_labels(arrays):
    """Weights and labels as shares say the same as labels: the mixture looks at the cells that count."""
    y = np.unique(arrays[1], return_inverse=True)[1]
    task = Task("multi-class", ("a", "b", "c"), "")
    x, hard = torch.from_numpy(arrays[0]), torch.from_numpy(y)
    once = replace(FEW, folds=1, stop="loss")
    labels = learn(Problem(task, x, hard), once)
    shares = learn(Problem(task, x, torch.nn.functional.one_hot(hard).float()), once)
    known = ~labels.held_out[:, 0].isnan()
    assert 0 < known.sum() < len(known) / 3
    torch.testing.assert_close(labels.network.shares, shares.network.shares, atol=1e-3, rtol=0)
    torch.testing.assert_close(labels.held_out[known], shares.held_out[known], atol=1e-3, rtol=0)


def test_of_many_classes_some_rows_choose_the_calibrator_and_there_are_no_baselines(monkeypatch):
    draw = np.random.default_rng(0)
    y = np.concatenate([np.arange(40), draw.integers(0, 30, 200)])  # ten classes have one row
    x = draw.normal(size=(40, 4))[y] + 0.3 * draw.normal(size=(240, 4))
    monkeypatch.setattr("crossent.minimise.left.MOST_CLASSES", 20)
    found = {}
    for most in (192 * 40, 192 * 40 - 1, 64 * 40):
        monkeypatch.setattr("crossent.minimise.finish.MOST_SAID", most)
        said: list[str] = []
        run = fit(x, [f"k{label}" for label in y], recipe=replace(FEW, epochs=2), said=said.append)
        sentences = [FEWER.format(rows=rows, held_out=192, most=most) for rows in (192, 96, 64)]
        found[most] = [sentence in said and sentence in run.record.facts["notes"] for sentence in sentences]
        assert "calibrators" in run.record.tables
        assert not [part for part in run.record.tables["left"]["part"] if part.startswith("against")]
        assert run.predict_proba(x[:3]).shape == (3, 40)
    assert list(found.values()) == [[False, False, False], [False, True, False], [False, False, True]]


def test_rows_are_judged_piece_by_piece(monkeypatch, arrays):
    """All rows of all members at once would be as many copies of the data as there are repeats."""
    seen, logits_of = [], judge.logits_of

    def watched(network, x, rows=8192):
        seen.append(x.numel())
        return logits_of(network, x, rows)

    monkeypatch.setattr(judge, "logits_of", watched)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 8, generator=draw)
    learn(
        Problem(Task("binary", ("a", "b"), ""), x, (x[:, 0] > 0).long()), replace(FEW, members=3, epochs=1, batch=4096)
    )
    assert max(seen) <= (8192 + 6) * 8
    assert sum(seen) > 3 * x.numel()  # each was held out thrice
