"""The scikit-learn face: scikit-learn's own checks, and what they do not ask."""

import copy
import inspect
import pickle
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import crossent
from crossent.errors import DataError
from crossent.minimise import estimators
from crossent.minimise.data.repeats import MOST_REPEATS, once_each
from crossent.minimise.estimators import BoundedRegressor, CrossEntropyClassifier
from crossent.minimise.recipe import Recipe
from tests.minimise.conftest import mixed_table

TINY = {"members": 1, "folds": 2, "width": 16, "bins": 0, "dropout": 0.0, "learning_rate": 0.1}
TINY |= {"batch": 512, "epochs": 10, "calibration": "none", "beside": False, "stop": "loss"}
BOTH = [CrossEntropyClassifier, BoundedRegressor]


def rows(n=120, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 3))
    return x, np.array(["low", "middle", "high"])[np.digitize(x[:, 0] + 0.3 * random.normal(size=n), [-0.5, 0.5])]


@pytest.mark.parametrize("kind", BOTH)
def test_scikit_learns_checks_pass(kind):
    """All of them, with none that is expected to fail; one is skipped by scikit-learn unless its environment asks."""
    found = estimator_checks.check_estimator(kind(**TINY), on_skip=None)
    assert {check["check_name"] for check in found if check["status"] != "passed"} <= {"check_array_api_input"}
    assert len(found) > 50
    assert "check_sample_weight_equivalence_on_dense_data" in {check["check_name"] for check in found}


class Forgetful(CrossEntropyClassifier):
    """A planted fault: weights are taken and not used."""

    def fit(self, X, y, sample_weight=None):
        return super().fit(X, y)


def test_scikit_learns_checks_can_fail():
    with pytest.raises(AssertionError, match="not equivalent to fitting with removed or repeated"):
        estimator_checks.check_sample_weight_equivalence_on_dense_data("Forgetful", Forgetful(**TINY))


@pytest.mark.parametrize("kind", BOTH)
def test_the_arguments_are_a_recipes_settings(kind):
    settings = {field.name: field.default for field in fields(Recipe)}
    own = {"random_state": 0} if kind is CrossEntropyClassifier else {"random_state": 0, "low": None, "high": None}
    assert {name: p.default for name, p in inspect.signature(kind).parameters.items()} == {**settings, **own}
    assert kind().get_params() == {**settings, **own}
    model = clone(kind(width=9).set_params(depth=np.int64(1), **{**TINY, "width": 7}))
    assert (model.width, model.depth) == (7, 1)
    x, _ = rows(40)
    network = model.fit(x, np.arange(40) % 2).network_
    assert isinstance(network, torch.nn.Module)
    assert kind(low=1, high=2).low == 1 if kind is BoundedRegressor else repr(kind(width=9)).endswith("(width=9)")
    with pytest.raises(DataError, match="width must be at least 1"):
        kind(width=0).fit(x, np.arange(40) % 2)
    with pytest.raises(ValueError, match="Invalid parameter 'breadth'"):
        kind().set_params(breadth=3)


def test_a_table_of_everything_as_it_comes():
    x, y = mixed_table()
    model = CrossEntropyClassifier(**TINY).fit(x, y)
    assert model.classes_.tolist() == ["buys", "leaves"]
    assert model.feature_names_in_.tolist() == x.columns.to_list()
    assert model.n_features_in_ == 10
    assert model.score(x, y) > 0.7 > np.mean(y == "buys")
    assert model.predict_proba(x).sum(axis=1) == pytest.approx(1, abs=1e-12)
    new = x.head(3).copy()
    new.loc[0, "town"] = "Atlantis"
    new.loc[1, ["größe", "town", "iso"]] = None
    with pytest.warns(UserWarning, match="X: some columns hold values that training never saw"):
        assert np.isfinite(model.predict_log_proba(new)).all()
    with pytest.raises(ValueError, match="Feature names seen at fit time, yet now missing"):
        model.predict(x.drop(columns="town"))
    with (
        pytest.warns(UserWarning, match="X does not have valid feature names"),
        pytest.raises(DataError, match="table"),
    ):
        model.predict(x.to_numpy())
    few, shuffled = x[["größe", "town", "owner", "gaps"]], np.random.default_rng(0).permutation(y)
    assert cross_val_score(model, few, y, cv=2).mean() > 0.8 > cross_val_score(model, few, shuffled, cv=2).mean()


def test_numbers_are_numbers_whatever_holds_them():
    x, y = rows()
    x[::7, 1] = np.nan
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    nullable = frame.astype({"b": "Float64"})
    expected = CrossEntropyClassifier(**TINY).fit(x.astype(np.float32), y).predict_proba(x)
    for same in (frame, nullable, x.tolist()):
        assert np.array_equal(CrossEntropyClassifier(**TINY).fit(same, y).predict_proba(same), expected)
    other = np.where(np.isnan(x), 0.0, x)  # that a number is missing is told from any number
    assert not np.array_equal(CrossEntropyClassifier(**TINY).fit(other, y).predict_proba(other), expected)


def test_pipelines_grids_and_folds():
    x, y = rows()
    pipeline = make_pipeline(StandardScaler(), CrossEntropyClassifier(**TINY))
    pipeline.fit(x, y, crossentropyclassifier__sample_weight=np.ones(len(y)))
    assert pipeline.score(x, y) > 0.7
    grid = GridSearchCV(CrossEntropyClassifier(**TINY), {"width": np.array([2, 8])}, scoring="neg_log_loss", cv=2)
    assert -grid.fit(x, y).best_score_ < np.log(3)
    assert grid.best_estimator_.width in (2, 8)
    p = cross_val_predict(CrossEntropyClassifier(**TINY), x, y, cv=2, method="predict_proba")
    assert log_loss(y, p) < np.log(3)


def predicted(x, y, weight=None):
    return CrossEntropyClassifier(**TINY).fit(x, y, weight).predict_proba(rows(30, seed=1)[0])


def test_a_weight_counts_rows_to_the_bit():
    x, y = rows()
    random = np.random.default_rng(3)
    weight = random.integers(0, 4, len(y))
    expected = predicted(x, y, weight)
    order = random.permutation(len(y))
    again = np.repeat(order, weight[order])
    assert np.array_equal(predicted(x[again], y[again]), expected)
    halves = np.repeat(order, 2)  # two rows of half the weight each
    assert np.array_equal(predicted(x[halves], y[halves], weight[halves] / 2), expected)
    assert np.array_equal(predicted(x[weight > 0], y[weight > 0], 0.25 * weight[weight > 0]), expected)
    assert not np.array_equal(predicted(x, y, weight[::-1]), expected)
    assert not np.array_equal(predicted(x, y), expected)


def test_a_weight_outweighs():
    """Labels that are a coin's: where one side weighs nine times as much, it has nine tenths of the probability."""
    x = np.random.default_rng(0).normal(size=(300, 2))
    y = np.arange(300) % 2
    p = CrossEntropyClassifier(**TINY).fit(x, y, np.where(y == 1, 9.0, 1.0)).predict_proba(x)
    assert p[:, 1].mean() == pytest.approx(0.9, abs=0.03)
    assert CrossEntropyClassifier(**TINY).fit(x, y).predict_proba(x)[:, 1].mean() == pytest.approx(0.5, abs=0.05)


def test_equal_rows_are_draws_where_rows_are_few():
    one = np.ones(6)
    x = np.array([[0.0], [0.0], [1.0], [1.0], [2.0], [2.0]])
    places, weight = once_each(x, np.array([0, 0, 1, 1, 0, 0]), one)
    assert (len(places), weight.tolist()) == (3, [2, 2, 2])
    places, weight = once_each(x, np.array([0, 1, 1, 1, 0, 0]), one)  # 0.0 came with either label
    assert (sorted(places), weight.tolist()) == (list(range(6)), [1] * 6)
    many = np.repeat(x, MOST_REPEATS, axis=0)
    assert len(once_each(many, np.repeat([0, 0, 1, 1, 0, 0], MOST_REPEATS), np.repeat(one, MOST_REPEATS))[0]) == 30
    xor = np.tile([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], (50, 1))
    y = (xor[:, 0] != xor[:, 1]).astype(int)
    model = CrossEntropyClassifier(**{**TINY, "width": 32, "epochs": 60}).fit(xor, y)
    assert model.predict_proba(xor)[np.arange(200), y].min() > 0.9


def test_soft_labels_are_shares_or_counts():
    x, y = rows()
    one_hot = pd.get_dummies(pd.Series(y)).astype(float)
    hard, soft = (CrossEntropyClassifier(**TINY).fit(x, labels) for labels in (y, one_hot))
    assert soft.classes_.tolist() == hard.classes_.tolist() == ["high", "low", "middle"]
    # float32 sums of three terms for one of a single term, over a dozen steps
    assert soft.predict_proba(x) == pytest.approx(hard.predict_proba(x), abs=1e-3)
    assert soft.score(x, one_hot) == soft.score(x, y)
    votes = 8 * one_hot.to_numpy() + [0, 1, 1]
    shares = votes / votes.sum(axis=1, keepdims=True)
    counts = CrossEntropyClassifier(**TINY).fit(x, votes)
    assert np.array_equal(counts.predict_proba(x), CrossEntropyClassifier(**TINY).fit(x, shares).predict_proba(x))
    assert counts.classes_.tolist() == [0, 1, 2]
    assert counts.score(x, shares) < 0.9
    with pytest.raises(DataError, match="one column for each class"):
        counts.score(x, votes[:, :2])


def test_soft_labels_say_how_sure_to_be():
    x = np.random.default_rng(0).normal(size=(300, 2))
    model = CrossEntropyClassifier(**TINY).fit(x, np.tile([0.7, 0.2, 0.1], (300, 1)))
    assert model.predict_proba(x).mean(axis=0) == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert model.record_["cross_entropy"].value == pytest.approx(0.8018, abs=0.02)  # the entropy of (0.7, 0.2, 0.1)


@pytest.mark.parametrize("kind", BOTH)
def test_the_random_state_decides(kind):
    x, _ = rows()
    y = (x[:, 0] > 0).astype(int)
    first, same, other = (kind(random_state=s, **TINY).fit(x, y).predict_proba(x) if kind is CrossEntropyClassifier
                          else kind(random_state=s, **TINY).fit(x, y).predict(x) for s in (1, 1, 2))  # fmt: skip
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    drawn = kind(random_state=np.random.RandomState(7), **TINY)
    assert drawn.fit(x, y)._fitted.seed != drawn.fit(x, y)._fitted.seed
    with pytest.raises(ValueError, match="'soon' cannot be used to seed"):
        kind(random_state="soon").fit(x, y)


def test_the_record_is_of_rows_that_were_held_out():
    x, y = rows()
    model = CrossEntropyClassifier(**TINY).fit(x, y)
    record = model.record_
    assert record["cross_entropy"].n == len(y)
    assert not any("equal ones" in note for note in record.facts["notes"])
    twice = CrossEntropyClassifier(**TINY).fit(np.tile(x, (2, 1)), np.tile(y, 2)).record_
    assert twice["cross_entropy"] == record["cross_entropy"]
    assert "240 rows are 120 different ones; equal ones were taken once, and weigh more." in twice.facts["notes"]
    assert record["cross_entropy"].value > log_loss(y, model.predict_proba(x))
    noise = CrossEntropyClassifier(**TINY).fit(x, np.random.default_rng(0).permutation(y)).record_
    assert noise["cross_entropy"].value > 1.0 > record["cross_entropy"].value
    assert 0 < BoundedRegressor(0, 1, **TINY).fit(x, x[:, 0] > 0).record_["mae"].value < 0.5


def test_trouble_is_said_and_ctrl_c_ends_it(monkeypatch):
    x, y = rows(40)
    said = {"stopped": "", "trouble": ["The learning rate was lowered."]}

    def learn(*arguments):
        learned = estimators.learn.__wrapped__(*arguments)
        vars(learned.history).update(said)
        return learned

    learn.__wrapped__ = estimators.learn
    monkeypatch.setattr(estimators, "learn", learn)
    with pytest.warns(ConvergenceWarning, match="learning rate was lowered"):
        model = CrossEntropyClassifier(**TINY).fit(x, y)
    assert "The learning rate was lowered." in model.record_.facts["notes"]
    said |= {"stopped": "stopped by hand; the best epoch so far is kept"}
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y)


def test_a_rows_answer_is_its_own():
    """Not that of the rows asked with it: float32 would show them in its seventh digit."""
    x, y = rows()
    model = CrossEntropyClassifier(**{**TINY, "beside": True}).fit(x, y)
    alone = np.concatenate([model.predict_log_proba(x[[row]]) for row in range(20)])
    assert alone == pytest.approx(model.predict_log_proba(x)[:20], rel=1e-12)
    assert not np.array_equal(np.log(model.run_.predict_proba(x)).round(12), model.predict_log_proba(x).round(12))


def test_the_run_inside_is_saved_and_loaded(tmp_path):
    x, y = mixed_table()
    model = CrossEntropyClassifier(**{**TINY, "beside": True, "stop": "refinement", "calibration": "guarded"}).fit(x, y)
    model.run_.save(tmp_path / "run")
    assert crossent.load(tmp_path / "run").predict_proba(x) == pytest.approx(model.predict_proba(x), abs=1e-6)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
        assert again.record_["cross_entropy"] == model.record_["cross_entropy"]


def test_a_number_stays_in_its_range():
    x = np.random.default_rng(0).normal(size=(200, 2))
    y = 3 + 4 / (1 + np.exp(-3 * x[:, 0]))
    model = BoundedRegressor(3, 7, **TINY).fit(x, y)
    assert model.score(x, y) > 0.8
    assert (model.low_, model.high_) == (3, 7)
    assert np.all((model.predict(100 * x) >= 3) & (model.predict(100 * x) <= 7))
    seen = BoundedRegressor(**TINY).fit(x, y)
    assert (seen.low_, seen.high_) == (y.min(), y.max())
    assert BoundedRegressor(0, 10, **TINY).fit(x[:20], np.full(20, 5.0)).predict(x) == pytest.approx(5, abs=0.5)


def test_what_cannot_be_learned_from_is_refused_in_a_sentence():
    x, y = rows(40)
    far = np.where(np.arange(40)[:, None] == 3, np.inf, x)
    mixed, labels = mixed_table(40)
    votes = np.ones((40, 2))
    classify, regress = CrossEntropyClassifier(**TINY), BoundedRegressor(0, 1, **TINY)
    for call, sentence in (
        (lambda: classify.fit(x, ["a"] * 40), r"at least two classes; here is one class, 'a', in all 40 rows"),
        (lambda: classify.fit(x, y, (y == "low") * 1.0), r"here is one class, 'low'"),
        (lambda: classify.fit(x, None), r"requires y to be passed, but the target y is None"),
        (lambda: classify.fit(x, x[:, 0]), r"Unknown label type: continuous"),
        (lambda: classify.fit(x, np.where(y == "low", None, y)), r"missing, NaN or infinite in \d+ rows"),
        (lambda: classify.fit(x, y[:-1]), r"inconsistent numbers of samples"),
        (lambda: classify.fit(x, y, np.zeros(40)), r"sample_weight is zero in all 40 rows"),
        (lambda: classify.fit(x, y, -np.ones(40)), r"sample_weight should be \(n,\), 0 or more.*its least is -1"),
        (lambda: classify.fit(x, y, np.full(40, np.nan)), r"Input sample_weight contains NaN"),
        (lambda: classify.fit(far, y), r"Input X contains infinity"),
        (lambda: classify.fit(mixed.assign(größe=far[:, 0]), labels), r"infinite or too large"),
        (lambda: classify.fit(mixed.head(0), []), r"X has no rows"),
        (lambda: classify.fit(mixed.to_numpy(), labels), r"could not convert string.* Pass a data frame"),
        (
            lambda: classify.fit(mixed.set_axis(["a"] * 10, axis=1), labels),
            r"unique column names, got:\n- 'a' 10 times",
        ),
        (lambda: classify.fit(x, votes.astype(int)), r"y has 2 columns of int64.*y.astype\(float\)"),
        (lambda: classify.fit(x, votes * -1), r"shares and counts are numbers from 0 on; row 0 has -1"),
        (lambda: classify.fit(x, votes * 0), r"row 0 has no share of any class"),
        (lambda: classify.fit(x, votes * 0.7), r"must add up to 1; those of row 0 add up to 1.4"),
        (lambda: regress.fit(x, x[:, 0]), r"lie outside the range 0 to 1, first .* at row"),
        (lambda: regress.fit(x, y), r"could not convert string.*CrossEntropyClassifier learns classes"),
        (lambda: regress.fit(x[:1], [0.5]), r"at least two rows .* n_samples=1"),
        (lambda: BoundedRegressor(**TINY).fit(x, np.ones(40)), r"got 1 and 1. All y are equal: give low and high"),
        (lambda: BoundedRegressor(2, 1).fit(x, np.ones(40)), r"a low end below its high end.*got 2 and 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        classify.fit(sparse.csr_array(x), y)
    for name in ("network_", "record_", "run_"):
        with pytest.raises(NotFittedError):
            getattr(regress, name)


@pytest.mark.parametrize("kind", BOTH)
def test_rows_in_another_order_are_paired_by_place_and_that_is_said(kind):
    x, y = rows(40)
    frame, y = pd.DataFrame(x, columns=list("abc")), pd.Series(y)
    y = y if kind is CrossEntropyClassifier else (y == "low").astype(float)
    known = kind(**TINY).fit(frame, y).predict(frame)
    for given in ({"y": y[::-1]}, {"y": y, "sample_weight": pd.Series(np.ones(40), index=range(39, -1, -1))}):
        with pytest.warns(UserWarning, match=r"has the rows of X in another order.*by place.*\.loc\[X\.index\]"):
            kind(**TINY).fit(frame, **given)
    renumbered = pd.Series(y.to_numpy(), index=range(7, 47))  # as a step of a pipeline may: nothing is said
    assert np.array_equal(kind(**TINY).fit(frame, renumbered).predict(frame), known)


def test_a_number_outside_the_range_is_named_by_its_own_row():
    x, _ = rows(10)
    weight = np.array([0.0, 0.0, 0.0, *[1.0] * 7])
    with pytest.raises(DataError, match="first 5 at row 4"):
        BoundedRegressor(0, 1, **TINY).fit(x, [9, 9, 9, 0.5, 5, 0.1, 0.2, 0.3, 0.4, 0.5], sample_weight=weight)


def test_both_are_names_of_the_package():
    assert crossent.CrossEntropyClassifier is CrossEntropyClassifier
    assert crossent.BoundedRegressor is BoundedRegressor
