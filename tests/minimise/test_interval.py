"""Intervals of a number: as many numbers inside as was asked for, counted; none where nothing was learnt of one."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import crossent
from crossent import BoundedRegressor, ContinuousBernoulli, HLGauss, Ordinal, TwoHot
from crossent.errors import DataError
from crossent.measure import read_predictions
from crossent.minimise import Recipe, fit
from crossent.minimise.data.problem import Problem
from crossent.minimise.data.task import Task
from crossent.minimise.objective.mixture import interval_of_mean
from crossent.minimise.training import mix
from tests.minimise.conftest import QUICK

MEMBERS, ROWS = 3, 4000
SHARE = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def off(rows, level):
    """Four standard errors of a share of ``level`` among so many rows: a right one is beyond it once in 16,000."""
    return 4 * math.sqrt(level * (1 - level) / rows)


def drawn(code, z, draw):
    """Numbers (n,) of the mean of the members' distributions: a member by its share, and a number of its own."""
    who = torch.multinomial(SHARE, ROWS, replacement=True, generator=draw)
    own = z[who, torch.arange(ROWS)]
    u = torch.rand(ROWS, generator=draw, dtype=torch.float64)
    if isinstance(code, ContinuousBernoulli):  # the inverse of its cdf, log(1 + u (e^z - 1)) / z
        s = own[:, 0]
        return code.low + (code.high - code.low) * torch.log1p(u * torch.expm1(s)) / s
    if isinstance(code, Ordinal):
        more = torch.sigmoid(own).cumprod(-1)  # P(more than level k)
        return code.low + (more > u.unsqueeze(-1)).sum(-1)
    place = torch.multinomial(own.softmax(-1), 1, generator=draw).squeeze(-1)
    if isinstance(code, HLGauss):
        return code.low + (code.high - code.low) * (place + u) / code.bins
    return code.points[place]


def means_of_ends(code, z, share, level):
    """The planted fault: the mean of the members' own intervals, which are narrower than where they disagree."""
    ends = [code.interval(each, level) for each in z]
    return tuple(sum(s * end[side] for s, end in zip(share, ends, strict=True)) for side in (0, 1))


CODES = [ContinuousBernoulli(-5.0, 20.0), HLGauss(-5.0, 20.0, 25), TwoHot(-5.0, 20.0, 201), Ordinal(0, 60)]


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("code", CODES, ids=[type(code).__name__ for code in CODES])
def test_the_interval_of_the_mean_holds_as_many_numbers_as_it_says(code, level):
    draw = torch.Generator().manual_seed(7)
    z = 2 * torch.randn(MEMBERS, ROWS, code.columns, generator=draw, dtype=torch.float64)
    if isinstance(code, Ordinal):
        z = z / 4 + 4  # levels of some likelihood up to the last
    else:  # members that disagree
        z = z + torch.tensor([-2.0, 0.0, 2.0]).view(3, 1, 1) * torch.linspace(-1, 1, code.columns).double().add(0.5)
    y = drawn(code, z, draw)

    def held(ends):
        low, high = ends
        return float(((low <= y) & (y <= high)).double().mean())

    low, high = interval_of_mean(code, z, SHARE, level)
    truth = level
    if isinstance(code, (TwoHot, Ordinal)):  # whole points: as many as reach the level at either end, and those exactly
        points = code.low + (code.high - code.low) * torch.linspace(
            0, 1, mass_of(code, z).shape[-1], dtype=torch.float64
        )
        mass = (SHARE.view(3, 1, 1) * mass_of(code, z)).sum(0)
        inside = (low.unsqueeze(-1) - 1e-9 <= points) & (points <= high.unsqueeze(-1) + 1e-9)
        assert ((mass * inside).sum(-1) > level - 1e-12).all()
        assert ((mass * (points < low.unsqueeze(-1) - 1e-9)).sum(-1) < (1 - level) / 2).all()
        truth = float((mass * inside).sum(-1).mean())
    assert abs(held((low, high)) - truth) < off(ROWS, level)
    assert held(interval_of_mean(code, z, SHARE, level - 0.1)) < truth - off(ROWS, level) or code is CODES[3]
    if isinstance(code, ContinuousBernoulli):
        assert held(means_of_ends(code, z, SHARE, level)) < level - off(ROWS, level)


def mass_of(code, z):
    """Masses (members, n, points), by products of probabilities."""
    if isinstance(code, TwoHot):
        return z.softmax(-1)
    more, one = torch.sigmoid(z), torch.ones_like(z[..., :1])
    return torch.cat((one, more.cumprod(-1)), -1) * torch.cat((1 - more, one), -1)


def test_one_member_has_the_interval_of_its_code():
    for code in CODES:
        z = torch.randn(1, 50, code.columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for mine, its in zip(interval_of_mean(code, z, torch.ones(1), 0.8), code.interval(z[0], 0.8), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)  # by halving, or through the log of masses


@pytest.fixture(scope="module")
def learnt():
    """A number whose spread, not only its mean, depends on x; and two thousand more rows."""

    def rows(n, seed):
        draw = np.random.default_rng(seed)
        x = (draw.random((n, 1)) < 0.5).astype(float)
        return x, 50 + np.where(x[:, 0] > 0, 40, 10) * draw.uniform(-1, 1, n)

    x, y = rows(1000, 0)
    model = BoundedRegressor(
        0,
        100,
        code="hlgauss(20)",
        model="linear",
        members=1,
        folds=2,
        epochs=25,
        learning_rate=0.1,
        batch=100,
        stop="none",
        weight_decay=0.0,
    )
    return model.fit(x, y), rows(2000, 1)


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_what_was_learnt_holds_as_many_new_rows_as_asked(learnt, coverage):
    """Bins of 5, blurred by 3.75, widen the narrow half's ±10: a fifth too many may lie inside, and no fewer."""
    model, (x, y) = learnt
    low, high = model.predict_interval(x, coverage)
    assert low.shape == high.shape == (len(x),)
    assert low.dtype == np.float64
    wide = x[:, 0] > 0
    held = (low <= y) & (y <= high)
    learnt_from = off(500, coverage)  # what 500 rows of that half, of which half was learnt, say of its quantiles
    assert abs(held[wide].mean() - coverage) < off(wide.sum(), coverage) + learnt_from
    assert -off(500, coverage) < held[~wide].mean() - coverage < off(500, coverage) + 0.2
    assert (high - low)[wide].min() > 1.8 * (high - low)[~wide].max()
    blind = np.quantile(y, [(1 - coverage) / 2, (1 + coverage) / 2])  # the planted fault: an interval that knows no x
    assert abs(((blind[0] <= y) & (y <= blind[1]))[wide].mean() - coverage) > off(wide.sum(), coverage) + learnt_from


@pytest.mark.parametrize("code", ["hlgauss", "ordinal", "continuous_bernoulli"])
def test_rows_held_out_say_how_wide_intervals_must_be(code):
    """Whatever the code claims: a truncated exponential claims far more than a number near its mean needs."""

    def some(n, seed):
        draw = np.random.default_rng(seed)
        x = draw.normal(size=(n, 2))
        return x, np.clip(50 + 10 * x[:, 0] + 5 * draw.standard_t(4, n), 0, 100).round()

    (x, y), (new, came), coverage = some(700, 0), some(4000, 1), 0.8
    few = {"folds": 3, "members": 2, "width": 32, "epochs": 15, "learning_rate": 0.01, "batch": 64}
    model = BoundedRegressor(0, 100, code=code, random_state=0, **few).fit(x, y)

    def held():
        low, high = model.predict_interval(new, coverage)
        return float(((low <= came) & (came <= high)).mean())

    calibrated, levels = held(), model.network_.levels
    assert abs(calibrated - coverage) < off(700, coverage) + off(4000, coverage)
    assert levels.diff().min() >= 0
    levels.copy_(torch.linspace(0, 1, 101))  # the planted fault: what is claimed is believed
    assert held() > calibrated + (0.15 if code == "continuous_bernoulli" else 0.01)


def test_the_level_for_a_coverage_is_what_so_many_rows_need():
    """A claim of u for less and for not more needs the level |2u − 1|; by another road: sorted, and counted."""
    task = Task("range", (), "y", 0.0, 1.0)
    u = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
    problem = Problem(task, torch.zeros(500, 1), torch.zeros(500))
    claims, one = torch.stack((u, u)), torch.ones(1, dtype=torch.float64)
    levels = mix._levels([claims], one, problem)
    need = sorted(abs(2 * float(each) - 1) for each in u)
    for percent in range(1, 100):
        assert levels[percent] == pytest.approx(need[math.ceil(percent * 501 / 100 - 1e-9) - 1], abs=1e-12)
    assert (levels[0], levels[100]) == (0.0, 1.0)
    # A point with mass is held by what reaches it from either side: half of it lies below, a fifth above.
    point = torch.tensor([[0.5], [0.8]], dtype=torch.float64).expand(2, 500)
    assert mix._levels([point], one, problem)[50] == 0.0
    # Two kinds claim by their shares; a row that counts twice is two rows; one of weight 0 none.
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    both = mix._levels([claims, torch.zeros_like(claims)], shares, problem)
    assert both[50] == pytest.approx(sorted(abs(1.5 * float(each) - 1) for each in u)[250], abs=1e-12)
    weight = torch.tensor([2.0, 0.0]).repeat(250)
    doubled = mix._levels([claims], one, replace(problem, weight=weight))
    assert torch.equal(doubled, mix._levels([claims[:, ::2]], one, problem.take(torch.arange(0, 500, 2))))
    # Fewer than fifty rows, or a kind that claims nothing, settle nothing.
    assert mix._levels([claims[:, :49]], one, problem.take(torch.arange(49))) is None
    assert mix._levels([claims, None], shares, problem) is None


def test_a_run_has_the_same_intervals_and_its_folder_keeps_them(tmp_path, learnt):
    model, (x, _) = learnt
    run = model.run_
    for mine, its in zip(run.predict_interval(x[:9]), model.predict_interval(x[:9]), strict=True):
        assert mine == pytest.approx(its, abs=1e-3)  # float32 before float64
    run.save(tmp_path)
    again = crossent.load(tmp_path)
    assert np.array_equal(again.predict_interval(x[:9], 0.8), run.predict_interval(x[:9], 0.8))


def test_a_fit_counts_the_test_rows_in_their_intervals(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 2))
    y = draw.integers(0, 6, 300)
    run = fit(x, y, limits=(0, 5), recipe=Recipe(**{**QUICK, "code": "ordinal"}))
    found, test = run.record["coverage"], run.predicted.splits == "test"
    low, high = run.predict_interval(x[run.predicted.rows[test]].astype(np.float32))
    labels = run.predicted.labels[test]
    assert found.value == np.mean((low <= labels) & (labels <= high))
    assert found.n == test.sum()

    path = tmp_path / "p.parquet"
    run.write_predictions(path, run.predict_proba(x), labels=y, intervals=run.predict_interval(x))
    assert pd.read_parquet(path).columns.tolist() == ["row", "label", "p_1", "prediction", "low", "high"]
    assert crossent.evaluate(read_predictions(path))["mae"].n == 300


def test_what_has_no_interval_says_so(arrays):
    x = np.random.default_rng(0).normal(size=(60, 2))
    few = Recipe(**{**QUICK, "epochs": 1})
    for code, sentence in (
        ("fraction", "its loss learns the mean and nothing else"),
        ("mse", "error has no intervals"),
    ):
        run = fit(x, x[:, 0].clip(0, 1), limits=(0, 1), recipe=few.changed(code=code))
        with pytest.raises(TypeError, match=sentence):
            run.predict_interval(x)
        assert "coverage" not in run.record.numbers
    with pytest.raises(TypeError, match="classes have no interval"):
        fit(*arrays, recipe=few).predict_interval(arrays[0])
    model = BoundedRegressor(0, 1, code="twohot(5)", members=1, folds=2, epochs=1).fit(x, x[:, 0].clip(0, 1))
    with pytest.raises(ValueError, match="between 0 and 1, and is 90"):
        model.predict_interval(x, 90)
    with pytest.raises((ValueError, DataError)):
        model.predict_interval(x[:, :1])
