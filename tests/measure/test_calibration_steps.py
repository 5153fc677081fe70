"""Calibrators on paper and in torch: JSON both ways, NumPy against torch, torch.export and ONNX, and bad input."""

import json
import logging
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from crossent import Calibrator, DataError
from crossent.measure.calibration.choice import Choice
from crossent.measure.calibration.families import FAMILIES
from crossent.measure.calibration.rows import rows_of
from crossent.measure.calibration.steps import Affine, Curve, Mixture, VennAbers
from tests.measure.test_calibration_families import sample


@pytest.fixture(scope="module")
def fitted():
    """One calibrator of every family that suits, by (name, classes)."""
    found = {}
    for classes in (2, 4):
        rows = rows_of(*sample(400, classes))
        for family in FAMILIES:
            if family.suits(classes) and not family.refuses(rows):
                found[family.name, classes] = Calibrator(family.name, family.fit(rows), rows=400)
    return found


NAMES = [(family.name, k) for k in (2, 4) for family in FAMILIES if family.suits(k)]


@pytest.mark.parametrize(("name", "classes"), NAMES)
def test_json_and_torch_say_what_numpy_says(fitted, name, classes):
    one = fitted[name, classes]
    assert Calibrator.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    z = np.random.default_rng(1).normal(0, 6, (64, classes))
    z[0, 0] = -np.inf
    truth = one.of_logits(z)
    assert np.isneginf(truth[0, 0])
    assert logsumexp(truth, axis=1) == pytest.approx(np.zeros(64), abs=1e-12)
    in_64 = one.module(dtype=torch.float64)(torch.tensor(z)).numpy()
    assert np.exp(in_64) == pytest.approx(np.exp(truth), abs=1e-12)
    in_32 = one.module()(torch.tensor(z, dtype=torch.float32)).numpy()
    assert np.exp(in_32) == pytest.approx(np.exp(truth), abs=1e-6)
    assert np.abs(np.exp(truth) - np.exp(Calibrator().of_logits(z))).max() > 0.01  # it does change something


@pytest.mark.parametrize(("name", "classes"), [("structured matrix", 4), ("Venn–Abers", 2), ("quadratic", 2)])
def test_the_module_exports(fitted, name, classes):
    one = fitted[name, classes]
    module, z = one.module(), torch.tensor(np.random.default_rng(2).normal(0, 3, (20, classes)), dtype=torch.float32)
    z[4, 0], z[5, 1:] = -torch.inf, -torch.inf  # what never comes, and what always does
    truth = np.exp(one.of_logits(z.double()))
    assert np.sum(truth == 0) == classes
    rows = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(module, (z[:3],), dynamic_shapes=rows)
    for found in (exported.module()(z).exp().numpy(), np.exp(by_onnx(module, z))):
        assert found == pytest.approx(truth, abs=1e-6)
        np.testing.assert_array_equal(found == 0, truth == 0)


def by_onnx(module, z):
    """What ONNX Runtime makes of rows z."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter uses what its own libraries call deprecated
        rows = ({0: torch.export.Dim("rows")},)
        program = torch.onnx.export(module, (z[:3],), dynamic_shapes=rows, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    return session.run(None, {session.get_inputs()[0].name: z.numpy()})[0]


def test_log_odds_of_any_size_go_through_onnx(fitted, monkeypatch):
    one = fitted["quadratic", 2]
    odds = torch.cat([torch.linspace(-90, 90, 401), torch.tensor([-torch.inf, torch.inf])])
    truth = one.of_logits(odds.double().numpy())
    assert truth[-2:].tolist() == [-np.inf, np.inf]
    near = {"rel": 2e-6, "abs": 2e-6}  # some ten roundings of float32
    assert by_onnx(one.module(one_logit=True), odds) == pytest.approx(truth, **near)

    def as_logsigmoid(odds):
        return torch.stack([torch.nn.functional.logsigmoid(-odds), torch.nn.functional.logsigmoid(odds)], dim=-1)

    monkeypatch.setattr("crossent.measure.calibration.module._both", as_logsigmoid)
    assert one.module(one_logit=True)(odds).numpy() == pytest.approx(truth, **near)  # torch does not mind
    assert by_onnx(one.module(one_logit=True), odds) != pytest.approx(truth, **near)


def test_one_logit_goes_through_as_two(fitted):
    one = fitted["temperature and bias", 2]
    odds = np.linspace(-6, 6, 30)
    truth = one.of_logits(odds)
    both = one.of_logits(np.stack([np.zeros(30), odds], axis=1))
    assert truth == pytest.approx(both[:, 1] - both[:, 0], abs=1e-12)
    found = one.module(one_logit=True, dtype=torch.float64)(torch.tensor(odds).reshape(5, 6))
    assert found.numpy().ravel() == pytest.approx(truth, abs=1e-9)
    assert one(1 / (1 + np.exp(-odds))) == pytest.approx(1 / (1 + np.exp(-truth)), abs=1e-12)
    with pytest.raises(DataError, match="one logit tells two classes apart, and there are 3"):
        Calibrator(classes=("a", "b", "c")).module(one_logit=True)


def test_gradients_go_through_and_numbers_are_not_trained(fitted):
    module = fitted["structured vector", 4].module(dtype=torch.float64)
    assert list(module.parameters()) == []
    assert module.state_dict()
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, z)
    assert module(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.float64
    assert fitted["beta", 2].module()(torch.zeros(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_zeros_are_kept_or_moved_as_said():
    steps = (Mixture(2.0, (), (0.9, 0.0, 0.1)),)
    p = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    kept, moved = Calibrator("temperature", steps)(p), Calibrator("temperature", steps, "moved")(p)
    assert kept.tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]
    assert moved[1] == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])
    logits = torch.tensor(np.log(np.maximum(p, 1e-300)))
    logits[p == 0] = -torch.inf
    for zeros, truth in (("kept", kept), ("moved", moved)):
        module = Calibrator("temperature", steps, zeros).module(dtype=torch.float64)
        assert module(logits).exp().numpy() == pytest.approx(truth, abs=1e-12)


def test_a_file_comes_back_whole_and_in_ten_years(tmp_path, fitted):
    one = fitted["Venn–Abers", 2]
    one.write(tmp_path / "c.json")
    assert Calibrator.read(tmp_path / "c.json") == one
    # Written by the first version, and never to be changed: what it said then it says for ever.
    old = {
        "format": "crossent calibrator 1", "kind": "beta", "classes": ["no", "yes"], "zeros": "kept", "rows": 100,
        "steps": [
            {"step": "mixture", "temperature": 2.0, "bias": [], "weights": [0.99, 0.0, 0.01]},
            {"step": "affine", "scale": [1.5, 0.5], "bias": [0.0, 0.25]},
        ],
        "choice": {
            "sentence": "Beta.", "table": {"name": ["none"], "cross_entropy": ["inf"]}, "left_out": {}, "notes": [],
        },
    }  # fmt: skip
    read = Calibrator.from_dict(old)
    # 0.8 → 2/3 at temperature 2 → 0.665; log-odds 0.5 log 0.665 − 1.5 log 0.335 + 0.25
    p = 0.99 * (2 / 3) + 0.005
    odds = 0.5 * np.log(p) - 1.5 * np.log(1 - p) + 0.25
    assert read([0.8])[0] == pytest.approx(1 / (1 + np.exp(-odds)), abs=1e-12)
    assert isinstance(read.choice, Choice)
    assert read.choice.table["cross_entropy"] == [np.inf]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "format should be 'crossent calibrator 1' and is 'list'"),
        ('{"format": "crossent calibrator 9"}', "and is 'crossent calibrator 9'"),
        ('{"format": "crossent calibrator 1"}', "damaged: KeyError: 'kind'"),
    ],
)
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path, text, sentence):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=sentence) as refused:
        Calibrator.read(tmp_path / "c.json")
    assert "c.json" in str(refused.value)
    with pytest.raises(DataError, match="cannot read"):
        Calibrator.read(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("steps", "trouble"),
    [
        ([{"step": "spline"}], "KeyError: 'spline'"),
        ([{"step": "affine", "scale": "two"}], "ValueError"),
        ([{"step": "affine", "slope": 2.0}], "TypeError"),
    ],
)
def test_a_damaged_step_is_refused_in_a_sentence(steps, trouble):
    with pytest.raises(DataError, match=f"this calibrator is damaged: {trouble}"):
        Calibrator.from_dict({**Calibrator().to_dict(), "steps": steps})


@pytest.mark.parametrize(
    ("p", "sentence"),
    [
        ([0.2, np.nan], "not: row 1"),
        ([0.2, 1.2], "does not: row 1"),
        ([[0.5, 0.5], [-0.1, 1.1]], "does not: row 1, column '0'"),
        ([[0.5, 0.3]], "add up to 1"),
        ([["a", "b"]], "should be numbers"),
        (np.zeros((2, 2, 2)), "shape"),
        ([[0.2, 0.3, 0.5]], "for 2 classes, and the rows have 3"),
    ],
)
def test_what_is_no_probability_is_refused(p, sentence):
    with pytest.raises(DataError, match=sentence):
        Calibrator("temperature", (Mixture(2.0),), classes=("a", "b"))(p)


def test_what_is_no_logit_is_refused():
    one = Calibrator("temperature", (Mixture(2.0),))
    for bad in ([[0.0, np.nan]], [[0.0, np.inf]], [[-np.inf, -np.inf]]):
        with pytest.raises(DataError, match="row 0"):
            one.of_logits(bad)
    assert one.of_logits(np.zeros((0, 3))).shape == (0, 3)
    assert one(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("family", ["temperature", "Venn–Abers"])
def test_what_is_no_number_stays_none_behind_a_network(family):
    """A staircase has a step for everything, and gave NaN that of its first."""
    steps = {"temperature": Mixture(2.0), "Venn–Abers": VennAbers((Curve((0.0,), (0.3, 0.8), (0.0,), (0.2, 0.7)),))}
    module = Calibrator(family, (steps[family],)).module(one_logit=True)
    found = module(torch.tensor([math.nan, 1.0]))
    assert found.isnan().tolist() == [True, False]
    by_columns = Calibrator(family, (steps[family],)).module()(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]))
    assert by_columns.isnan().tolist() == [[True, True], [False, False]]


def test_pairs_that_agree_are_put_together_as_they_are():
    """Curves that give back the odds they see: coupling pairs of one distribution gives that distribution."""
    p = np.array([[0.2, 0.3, 0.5]])
    flat = [p[0, j] / (p[0, i] + p[0, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    step = VennAbers(tuple(Curve((), (r / (1 - r) * 1e-9,), (), (1 - 1e-9,)) for r in flat))
    assert np.exp(step(np.log(p))) == pytest.approx(p, abs=1e-6)
    assert np.exp(Affine(1.0)(np.log(p))) == pytest.approx(p)
