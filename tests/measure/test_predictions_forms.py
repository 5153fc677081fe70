"""Numbers of every form and labels of every kind become the same predictions, by name or by themselves."""

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossent.errors import DataError
from crossent.measure import Calibrator, Predictions, calibrate, compare, evaluate
from crossent.measure.calibration.steps import Mixture
from crossent.measure.predictions.form import infer

from_arrays = Predictions.from_arrays
RNG = np.random.default_rng(0)
Z = RNG.normal(0, 3, (50, 4))
LOGS = Z - np.log(np.exp(Z).sum(axis=1, keepdims=True))
Y = RNG.integers(4, size=50)


@pytest.mark.parametrize(
    ("numbers", "form"), [(np.exp(LOGS), "probabilities"), (LOGS, "log-probabilities"), (Z, "logits")]
)
def test_forms_are_told_apart_and_said(numbers, form):
    found, named = from_arrays(numbers, Y), from_arrays(numbers, Y, form=form)
    assert found.probabilities == pytest.approx(np.exp(LOGS), rel=1e-13)
    assert found.probabilities.tolist() == named.probabilities.tolist()
    assert named.notes == ()
    assert [note for note in found.notes if f"were taken for {form}" in note] == list(found.notes)
    assert bool(found.notes) == (form != "probabilities")
    assert (found.log_probabilities is None) == (form == "probabilities")
    if found.log_probabilities is not None:
        assert found.log_probabilities == pytest.approx(LOGS, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 6), st.integers(1, 30), st.integers(0, 2**31), st.floats(0.5, 20))
def test_no_form_is_taken_for_another(classes, n, seed, spread):
    """What is inferred is right, or nothing is inferred; logits that happen to be shifted are still logits."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, spread, (n, classes)) + rng.normal()
    logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    assert infer(np.exp(logs)) == "probabilities"
    assert infer(logs) == "log-probabilities"
    assert infer(z) in ("logits", None, "probabilities")
    if infer(z) == "probabilities":  # then it is refused, for no logit of both signs passes as one
        with pytest.raises(DataError):
            from_arrays(z, np.zeros(n, int))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mask", [-3.4028234663852886e38, -1.7976931348623157e308, -1e300, -1e30])
def test_a_mask_is_a_probability_of_0_and_no_cost_of_1e38_nats(mask):
    """NumPy warned of overflows, and a label that met the lowest float32 cost 3.4e38 nats, finite and possible."""
    z = np.array([[1.0, mask, -1.0], [mask, 2.0, 0.5], [0.0, 1.0, 2.0], [-mask / 4, -1.0, mask]] * 10)
    record = evaluate(z, [0, 1, 2, 0] * 10, form="logits")
    kept = [(1.0, -1.0), (2.0, 0.5), (2.0, 0.0, 1.0)]
    truth = sum(mpmath.log(sum(mpmath.exp(other - first) for other in row)) for row in kept for first in row[:1]) / 4
    assert record["cross_entropy"].value == pytest.approx(float(truth), rel=1e-14)
    assert evaluate(z, [1, 1, 2, 0] * 10, form="logits")["impossible_rows"].value == 10
    odds = np.array([mask, 1.0, -mask, -1.0] * 10)
    found = evaluate(odds, [0, 1, 1, 0] * 10, form="logits")
    assert found["cross_entropy"].value == pytest.approx(np.log1p(np.exp(-1)) / 2, rel=1e-14)
    assert evaluate(odds, [1, 1, 1, 0] * 10, form="logits")["impossible_rows"].value == 10
    compare(z, z / 2, labels=[1, 1, 2, 0] * 10, form="logits")
    compare(odds, odds / 2, labels=[1, 0, 1, 0] * 10, form="logits")
    calibrate(odds, [1, 0, 1, 0] * 10, form="logits")


def test_a_masked_class_gets_nothing_from_a_calibrator():
    """Behind a network the even part of the mixture gave it a share; in NumPy too, but for −inf itself."""
    softer = Calibrator("temperature", (Mixture(temperature=2.0, weights=(0.9, 0.0, 0.1)),))
    z = torch.tensor([[1.0, torch.finfo(torch.float32).min, 0.0], [1.0, -torch.inf, 0.0]])
    for found in (softer.of_logits(z), softer.module()(z).numpy()):
        assert np.isneginf(found[:, 1]).all()
        assert found[0] == pytest.approx(found[1])


def test_one_column_has_to_be_named():
    odds = np.array([-800.0, -2.0, 0.0, 3.0, 800.0])
    with pytest.raises(DataError, match="form='logits'"):
        from_arrays(odds, [0, 1, 0, 1, 1])
    found = from_arrays(odds, [0, 1, 0, 1, 1], form="logits")
    for i, z in enumerate(odds):
        with mpmath.workdps(50):
            for column, sign in ((0, 1), (1, -1)):
                exact = float(-mpmath.log1p(mpmath.exp(sign * mpmath.mpf(float(z)))))
                assert found.log_probabilities[i, column] == pytest.approx(exact, rel=1e-14, abs=1e-300)
    logs = np.array([-1e-20, -1e-5, -0.5, -1.0, -40.0, -np.inf])
    found = from_arrays(logs, [1] * 6, form="log-probabilities")
    for i, log in enumerate(logs):
        with mpmath.workdps(50):
            exact = float(mpmath.log(1 - mpmath.exp(mpmath.mpf(float(log))))) if np.isfinite(log) else 0.0
        assert found.log_probabilities[i].tolist() == pytest.approx([exact, log], rel=1e-13)


REFUSED = [
    ([[np.nan, 1.0]], {"form": "logits"}, "every logit should be a number.*row 0, column '0': nan"),
    ([[np.inf, 1.0]], {"form": "logits"}, "a logit is finite, or −inf.*row 0, column '0': inf"),
    ([[-np.inf, -np.inf]], {"form": "logits"}, "row 0 has −inf in every column"),
    ([[0.1, -3.0]], {"form": "log-probabilities"}, "a log-probability is 0 or less.*row 0, column '0': 0.1.*logits"),
    ([[-1.0, -1.0]], {"form": "log-probabilities"}, "exponentials of a row .* add up to 1.*row 0 add up to 0.7357"),
    ([[np.nan, -1.0]], {"form": "log-probabilities"}, "every log-probability should be a number"),
    ([[0.5, 0.5]], {"form": "odds"}, "form should be 'probabilities', 'log-probabilities' or 'logits', and is 'odds'"),
    ([[2.0, -3.0]], {"form": "logits", "normalise": True}, "only probabilities can be divided by their sum"),
    ([[-0.7, 0.4]], {}, "not clear whether they are log-probabilities or logits.*Name the form"),
]


@pytest.mark.parametrize(("numbers", "options", "sentence"), REFUSED)
def test_numbers_that_are_not_what_they_are_said_to_be(numbers, options, sentence):
    with pytest.raises(DataError, match=sentence):
        from_arrays(numbers, [0] * len(numbers), **options)


def test_bfloat16_rows_may_be_off_by_its_own_rounding():
    p = torch.tensor(RNG.dirichlet([1] * 3, 500)).to(torch.bfloat16)
    worst = float((p.double().sum(dim=1) - 1).abs().max())
    assert worst > 1e-3  # beyond what float32 is allowed, where this would be refused
    assert from_arrays(p, [0] * 500).probabilities.sum(axis=1) == pytest.approx(np.ones(500), abs=1e-15)
    with pytest.raises(DataError, match="add up to 1"):
        from_arrays(p.float(), [0] * 500)


# Labels

P3 = [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]


def test_one_hot_labels_are_classes():
    for labels in (np.eye(3)[[2, 0]], np.eye(3, dtype=bool)[[2, 0]], torch.eye(3)[[2, 0]]):
        found = from_arrays(P3, labels)
        assert (found.labels.tolist(), found.labels.dtype, found.soft) == ([2, 0], np.int64, False)


def test_shares_and_counts():
    soft = from_arrays(P3, [[0.5, 0.5, 0], [0, 0.25, 0.75]])
    assert soft.labels.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]
    assert soft.soft
    assert "Labels are shares" in soft.notes[0]
    counts = from_arrays(P3, [[2, 2, 0], [0, 1, 3]])
    assert counts.labels.tolist() == soft.labels.tolist()
    assert counts.weights is None
    assert "every row counts once" in counts.notes[0]
    weighed = from_arrays(P3, [[2, 2, 0], [0, 1, 7]], truth="weighted counts", weights=[1, 0.5])
    assert weighed.weights.tolist() == [4.0, 4.0]
    assert "weighs as much as it has annotators" in weighed.notes[0]


def test_shares_of_one_class_have_to_be_named():
    with pytest.raises(DataError, match=r"row 1 has 0.25.*truth='soft' \(--truth soft\)"):
        from_arrays([0.5, 0.5], [1.0, 0.25])
    found = from_arrays([0.5, 0.5], [1.0, 0.25], truth="soft")
    assert (found.task, found.labels.tolist(), found.classes) == ("binary", [1.0, 0.25], ["0", "1"])
    assert from_arrays(pd.DataFrame({"p_no": [0.5], "p_yes": [0.5]}), [0.25], truth="soft").classes == ["no", "yes"]


def test_frames_of_labels_meet_frames_of_probabilities_by_name():
    p = pd.DataFrame(P3, columns=["p_cat", "p_dog", "p_hen"])
    y = pd.DataFrame([[0, 1, 3], [4, 0, 0]], columns=["hen", "cat", "dog"])
    assert from_arrays(p, y).labels.tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    with pytest.raises(DataError, match="which column of labels belongs to which class"):
        from_arrays(p, y.rename(columns={"hen": "cow"}))


LABELS = [
    ([[0.5, 0.4, 0], [0, 0, 1]], {}, "shares of a label should add up to 1.*row 0 add up to 0.9"),
    ([[0.5, -0.5, 1], [0, 0, 1]], {}, "a label cannot be negative, and row 0, column '1' has -0.5"),
    ([[np.nan, 0.5, 0.5], [0, 0, 1]], {}, "a label should be a number, and row 0, column '0' has nan"),
    ([[0, 0, 0], [0, 0, 1]], {"truth": "counts"}, "row 0 has no label: all of its columns are 0"),
    ([[1, 1, 0], [0, 0, 1]], {"truth": "one-hot"}, "a one-hot label has a single 1, and that of row 0 adds up to 2"),
    ([[0.5, 0.5, 0], [0, 0, 1]], {"truth": "counts"}, "counts are whole numbers, and row 0 has 0.5"),
    ([[1, 0], [0, 1]], {}, "there are 3 classes and 2 columns of labels"),
    ([0, 1], {"truth": "counts"}, "cannot be counts for 3 classes: give one column of labels per class"),
    ([0.5, 1], {"truth": "soft"}, "cannot be soft for 3 classes"),
    ([[1, 0, 0], [0, 1, 0]], {"truth": "class"}, "labels that are classes have one column, and there are 3"),
    ([["a", "b", "c"]] * 2, {}, "labels that are shares or counts should be numbers"),
    ([0, 1], {"truth": "votes"}, "truth should be 'class', .* or 'weighted counts', and is 'votes'"),
]


@pytest.mark.parametrize(("labels", "options", "sentence"), LABELS)
def test_labels_that_are_not_what_they_are_said_to_be(labels, options, sentence):
    with pytest.raises(DataError, match=sentence):
        from_arrays(P3, labels, **options)
    with pytest.raises(DataError, match=r"a share lies between 0 and 1, and the label of row 1 is 1.5"):
        from_arrays([0.5, 0.5], [1, 1.5], truth="soft")


def test_what_stands_beside_the_rows():
    found = from_arrays(
        [0.5, 0.5, 0.5], [0, 1, 1], weights=torch.tensor([1, 2, 0]), groups=["a", "a", "b"], bytes=[3, 0, 9],
        slices={"city": ["Oslo", None, ""], "season": pd.Series([2020.0, 2021.0, 2020.0])},
    )  # fmt: skip
    assert found.weights.tolist() == [1.0, 2.0, 0.0]
    assert found.groups.tolist() == ["a", "a", "b"]
    assert found.bytes.tolist() == [3, 0, 9]
    assert found.slices["city"].tolist() == ["Oslo", "(missing)", "(missing)"]
    assert found.slices["season"].tolist() == ["2020", "2021", "2020"]
    for name in ("weights", "groups", "bytes"):
        with pytest.raises(DataError, match=rf"3 rows and {name} of shape \(2,\)"):
            from_arrays([0.5, 0.5, 0.5], [0, 1, 1], **{name: [1, 2]})
    with pytest.raises(DataError, match=r"slices\['city'\] of shape \(1,\)"):
        from_arrays([0.5, 0.5, 0.5], [0, 1, 1], slices={"city": ["Oslo"]})
    with pytest.raises(DataError, match="all weights are 0"):
        from_arrays([0.5], [1], weights=[0])


def test_shapes_that_do_not_belong_together_are_no_batch():
    p, y, rows = np.full((2, 2), 0.5), np.array([0, 1]), np.arange(2)
    assert len(Predictions(p, y, ["0", "1"], rows, "binary")) == 2
    for wrong in (
        {"labels": y[:1]},
        {"rows": rows[:1]},
        {"weights": np.ones(3)},
        {"log_probabilities": np.ones((2, 3))},
    ):
        given_ = {"probabilities": p, "labels": y, "classes": ["0", "1"], "rows": rows, "task": "binary"} | wrong
        with pytest.raises(DataError, match=r"shape|logarithms"):
            Predictions(**given_)


def test_real_logits_are_recognised(real):
    z = np.load(real / "logits/resnet50_cifar10_tst_logits.npy")
    y = np.load(real / "logits/resnet50_cifar10_tst_labels.npy")
    found = from_arrays(z, y)
    assert "taken for logits" in found.notes[0]
    assert found.probabilities == pytest.approx(torch.softmax(torch.tensor(z).double(), 1).numpy(), rel=1e-12)
    for kind in ("tst_sc", "tst_sh", "val"):
        z = np.load(real / f"logits/resnet50_cifar10_{kind}_logits.npy")
        assert infer(z.astype(float)) == "logits", kind
    assert infer(np.load(real / "logits/speaker_trn_logits.npy").astype(float)) == "log-probabilities"
