"""An exported run says what the run says: in torch, in onnxruntime, without crossent, for any number of rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crossent import cli
from crossent.errors import DataError
from crossent.measure import Calibrator
from crossent.measure.calibration.steps import Affine, Curve, Mixture, VennAbers
from crossent.minimise import Recipe, Run, fit, load
from crossent.minimise import export as exporting
from crossent.minimise.export import TOLERANCE, Written, about, as_module, export
from crossent.minimise.networks.residual import Residual
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.objective.objective import Objective
from tests.minimise.conftest import QUICK

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'crossent[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'crossent[onnx]'")

SOFTER = Calibrator("temperature", (Mixture(3.0, (), (0.9, 0.0, 0.1)),))
FEW = Recipe(**QUICK)
Outputs = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def runs(arrays, table_run) -> dict[str, tuple[Any, Run]]:
    """What a run may be of, each with rows to predict; calibrated, so that leaving that out would be seen."""
    x = np.random.default_rng(1).normal(size=(120, 2))
    a_range = fit(x, 20 + 5 * np.tanh(x[:, 0]), limits=(10, 30), recipe=FEW)
    found = {"array": (arrays[0], fit(*arrays, recipe=FEW)), "table": table_run[::2], "range": (x, a_range)}
    return {kind: (x, replace(run, calibrator=SOFTER)) for kind, (x, run) in found.items()}


def features(run: Run, x: Any) -> np.ndarray:
    rows = x if hasattr(x, "columns") else np.asarray(x, np.float32)
    return run.preparation(rows, "rows").numpy()


def by_onnxruntime(path: Path, name: str = "features") -> Callable[[np.ndarray], Outputs]:
    session = onnxruntime.InferenceSession(path)
    assert [place.name for place in session.get_inputs()] == [name]
    return lambda x: tuple(session.run(["probabilities", "log_probabilities"], {name: x}))


def by_torch(path: Path, name: str = "features") -> Callable[[np.ndarray], Outputs]:
    module = torch.export.load(path).module()
    return lambda x: tuple(part.numpy() for part in module(torch.from_numpy(x)))


READERS = {"onnx": by_onnxruntime, "pt2": by_torch}
WRITTEN = [("array", "onnx"), ("array", "pt2"), ("table", "onnx"), ("range", "pt2")]


@pytest.fixture(scope="module")
def files(runs: dict, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Written]:
    """What was written of a kind of run, once for all tests."""

    @cache
    def of(kind: str, suffix: str) -> Written:
        return export(runs[kind][1], tmp_path_factory.mktemp(kind) / f"model.{suffix}")

    return of


@pytest.mark.parametrize(("kind", "suffix"), WRITTEN)
def test_it_says_what_the_run_says(runs: dict, files: Callable, kind: str, suffix: str) -> None:
    x, run = runs[kind]
    written = files(kind, suffix)
    predict, rows, truth = READERS[suffix](written.path), features(run, x), run.predict_proba(x)
    assert (kind == "table") == np.isnan(rows).any()
    for some in (slice(0, 1), slice(0, 2), slice(None)):
        p, log_p = predict(rows[some])
        assert p.dtype == log_p.dtype == np.float32
        assert np.abs(p - truth[some]).max() <= TOLERANCE
        assert np.abs(np.exp(log_p.astype(np.float64)) - truth[some]).max() <= TOLERANCE
    assert predict(rows[:0])[0].shape == (0, truth.shape[1])
    assert written.difference <= TOLERANCE
    assert (written.shape, written.columns) == (rows.shape[1:], truth.shape[1])
    uncalibrated = replace(run, calibrator=Calibrator()).predict_proba(x)
    for other in (uncalibrated, truth[:, ::-1], np.roll(truth, 1, axis=0)):
        assert np.abs(predict(rows)[0] - other).max() > 100 * TOLERANCE
    assert [file.name for file in written.path.parent.iterdir()] == [written.path.name]


def test_what_is_missing_is_not_a_zero(runs: dict, files: Callable) -> None:
    x, run = runs["table"]
    predict, rows = by_onnxruntime(files("table", "onnx").path), features(run, x)
    gone = np.isnan(rows).any(axis=1)
    changed = np.abs(predict(np.nan_to_num(rows))[0] - run.predict_proba(x)).max(axis=1)
    assert changed[gone].max() > 100 * TOLERANCE
    assert changed[~gone].max() <= TOLERANCE


def test_the_way_back_from_another_loss_is_in_it(tmp_path: Path, runs: dict) -> None:
    x, run = runs["array"]
    settings = {"loss": "focal(2)", "imbalance": "logit_adjusted"}
    other = replace(run, objective=Objective.of(run.task, **settings, prior=torch.tensor([100.0, 60.0, 40.0])))
    p, _ = by_onnxruntime(export(other, tmp_path / "model.onnx").path)(features(run, x))
    assert np.abs(p - other.predict_proba(x)).max() <= TOLERANCE
    assert np.abs(p - run.predict_proba(x)).max() > 100 * TOLERANCE


@pytest.mark.parametrize("code", ["continuous_bernoulli", "hlgauss"])
def test_the_mean_of_a_code_is_in_it(tmp_path: Path, runs: dict, code: str) -> None:
    x, run = runs["range"]
    objective = Objective.of(run.task, code=code)
    rows = torch.from_numpy(features(run, x))
    torch.manual_seed(0)
    network = Tabular.for_features(rows, objective.columns, members=2, width=8, depth=1, dropout=0.0, bins=4)
    with torch.no_grad():
        network.weights[-1].mul_(20)
    run = replace(run, objective=objective, network=network.eval())
    p, _ = by_torch(export(run, tmp_path / "model.pt2").path)(rows.numpy())
    assert np.abs(p - run.predict_proba(x)).max() <= TOLERANCE
    assert np.ptp(p[:, 1]) > 100 * TOLERANCE


def test_images_come_as_pixels(tmp_path: Path, runs: dict) -> None:
    images = torch.rand(40, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    network = Residual.for_images(images, 3, width=8, depth=1, dropout=0.1)
    with torch.no_grad():
        network.head.weight.mul_(100)
    run = replace(runs["array"][1], network=network.eval())
    truth = np.exp(run.calibrator.of_logits(run.log_probabilities(images).numpy()))
    predict = by_onnxruntime(export(run, tmp_path / "model.onnx").path)
    assert np.abs(predict(images.numpy())[0] - truth).max() <= TOLERANCE
    assert np.abs(predict(images.flip(1).numpy())[0] - truth).max() > 100 * TOLERANCE
    wide = images[:, :, :5]
    written = export(run, tmp_path / "wide.pt2", wide)
    assert written.shape == (2, 5, 9)
    found, expected = by_torch(written.path)(wide.numpy())[0], run.log_probabilities(wide)
    assert np.abs(found - np.exp(run.calibrator.of_logits(expected.numpy()))).max() <= TOLERANCE


class Own(torch.nn.Module):
    """A network of somebody's own; with ``branching`` one that looks at values."""

    def __init__(self, branching: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.branching = torch.nn.Linear(3, 3), branching

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x if not self.branching or x.sum() > 0 else -x)


@pytest.mark.parametrize("rows", [1, 50])
def test_a_network_of_one_s_own_needs_rows(tmp_path: Path, runs: dict, rows: int) -> None:
    x, run = runs["array"]
    run = replace(run, network=Own())
    path = tmp_path / "model.pt2"
    with pytest.raises(DataError, match=r"only its maker knows what this network takes: .* rows=x"):
        export(run, path)
    with pytest.raises(DataError, match="there are none: give a few"):
        export(run, path, torch.zeros(0, 3))
    with pytest.raises(DataError, match=r"cannot follow this network: .* and not on values"):
        export(replace(run, network=Own(branching=True)), path, torch.ones(4, 3))
    assert list(tmp_path.iterdir()) == []
    written = export(run, path, torch.from_numpy(features(run, x)[:rows]))
    assert written.rows == max(2, rows)
    assert np.abs(by_torch(path)(features(run, x))[0] - run.predict_proba(x)).max() <= TOLERANCE


def test_texts_come_as_tokens(tmp_path: Path, runs: dict) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'crossent[text]'")
    from crossent.minimise.networks.text import TextNetwork
    from tests.minimise.test_text import model_folder, texts

    torch.manual_seed(0)
    network = TextNetwork.from_folder(model_folder(tmp_path / "bert"), "note", ["a", "b", "c"]).eval()
    run = replace(runs["array"][1], network=network)
    path = export(run, tmp_path / "model.onnx").path
    tokens = network.tokens(texts(30)[0], "notes")
    truth = np.exp(run.calibrator.of_logits(run.log_probabilities(tokens).numpy()))
    predict = by_onnxruntime(path, "tokens")
    for rows, width in ((slice(0, 1), 9), (slice(None), tokens.shape[1])):
        some = tokens[rows, :width].numpy()
        expected = np.exp(run.calibrator.of_logits(run.log_probabilities(tokens[rows, :width]).numpy()))
        found = predict(some)[0]
        assert np.abs(found - expected).max() <= TOLERANCE
    assert np.abs(found - np.roll(truth, 1, axis=0)).max() > 100 * TOLERANCE


def test_logarithms_stay_where_probabilities_end(tmp_path: Path, runs: dict) -> None:
    x, run = runs["array"]
    run = replace(run, calibrator=Calibrator("steep", (Affine(400.0),)))
    truth = run.calibrator.of_logits(np.log(replace(run, calibrator=Calibrator()).predict_proba(x)))
    assert truth.min() < -200  # exp of it is 0 in float32
    p, log_p = by_torch(export(run, tmp_path / "model.pt2").path)(features(run, x))
    assert (p == 0).any()
    # The slope of 400 magnifies what float32 rounds away of log-probabilities about 1: 400 · 1e-6.
    assert np.abs(log_p - truth).max() <= 1e-3


def test_a_staircase_is_exported_too(tmp_path: Path, runs: dict) -> None:
    x, run = runs["range"]
    plain = replace(run, calibrator=Calibrator()).predict_proba(x)
    odds = np.sort(np.log(plain[:, 1] / plain[:, 0]))
    edges = tuple(float(odds[place : place + 2].mean()) for place in (40, 80))  # between rows, not on one
    curve = Curve(edges, (0.2, 0.5, 0.8), edges, (0.1, 0.4, 0.7))
    run = replace(run, calibrator=Calibrator("venn-abers", (VennAbers((curve,)),)))
    p, _ = by_onnxruntime(export(run, tmp_path / "model.onnx").path)(features(run, x))
    assert np.abs(p - run.predict_proba(x)).max() <= TOLERANCE
    assert len(np.unique(p[:, 1].round(4))) == 3


def test_it_runs_without_crossent(tmp_path: Path, runs: dict, files: Callable) -> None:
    x, run = runs["array"]
    shutil.copy(files("array", "pt2").path, tmp_path)
    np.save(tmp_path / "x.npy", features(run, x))
    program = (
        "import json, sys; sys.modules['crossent'] = None\n"
        "import numpy, torch\n"
        "more = {'crossent.json': ''}\n"
        "model = torch.export.load('model.pt2', extra_files=more).module()\n"
        "numpy.save('p.npy', model(torch.from_numpy(numpy.load('x.npy')))[0].numpy())\n"
        "print(json.loads(more['crossent.json'])['classes'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(run.classes))
    assert np.abs(np.load(tmp_path / "p.npy") - run.predict_proba(x)).max() <= TOLERANCE


@pytest.mark.parametrize(("kind", "suffix"), WRITTEN)
def test_the_file_says_what_its_columns_are(runs: dict, files: Callable, kind: str, suffix: str) -> None:
    _, run = runs[kind]
    path = files(kind, suffix).path
    if suffix == "onnx":
        more = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        told = {name: json.loads(value) for name, value in more.items()}
    else:
        torch.export.load(path, extra_files=(more := {"crossent.json": ""}))
        told = json.loads(more["crossent.json"])
    assert told == about(run)
    assert told["classes"] == list(run.classes)
    assert len(told["features"]) == run.preparation.features
    assert (told["low"], told["high"]) == ((10, 30) if kind == "range" else (None, None))
    assert told["calibration"] == "temperature"
    if kind == "table":
        assert "größe" in told["features"]


def test_a_file_that_says_something_else_is_not_left_behind(
    tmp_path: Path, runs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = runs["array"]
    path = tmp_path / "model.pt2"
    path.write_text("an older model")
    monkeypatch.setattr(exporting, "as_module", lambda run: as_module(replace(run, calibrator=Calibrator())))
    with pytest.raises(DataError, match=r"would differ from predict_proba by 0\.\d+, where 1e-05 is allowed"):
        export(run, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "an older model"


def test_the_run_is_left_as_it_was(tmp_path: Path, runs: dict) -> None:
    x, run = runs["array"]
    module = as_module(run)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert np.ptp(run.predict_proba(x), axis=0).max() > 0.1
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_other_files_are_refused(tmp_path: Path, runs: dict) -> None:
    _, run = runs["array"]
    with pytest.raises(DataError, match=r"exported as \.pt2 or \.onnx, and '.*model\.h5' is neither"):
        export(run, tmp_path / "model.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a part of that path is a file"):
        export(run, tmp_path / "file" / "model.pt2")


def test_from_the_command_line(
    tmp_path: Path, runs: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, run = runs["array"]
    run.save(tmp_path / "run")
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(sys, "argv", ["crossent", "export", str(tmp_path / "run"), "-o", str(path)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code
    said = capsys.readouterr().out
    assert "prepared rows of 3 in, 3 probabilities and their logarithms out" in said
    assert "of predict_proba on 64 rows" in said
    assert np.abs(by_torch(path)(features(run, x))[0] - run.predict_proba(x)).max() <= TOLERANCE


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_a_mixture_is_written_and_read_back(suffix, arrays, tmp_path, monkeypatch):
    """Networks, a linear model, the frequencies and the even distribution: none is left out, however little it says."""
    monkeypatch.setattr("crossent.minimise.training.mix.LEAST_SHARE", -1.0)
    x, run = arrays[0], fit(*arrays, recipe=replace(FEW, beside=True, epochs=2))
    assert [type(kind).__name__ for kind in run.network.networks] == ["Tabular", "Tabular", "Average", "Even"]
    run.save(tmp_path / "run")
    assert np.array_equal(load(tmp_path / "run").predict_proba(x), run.predict_proba(x))
    written = export(run, tmp_path / f"model.{suffix}")
    for some in (x[:1], x[:7]):
        assert READERS[suffix](written.path)(some)[0] == pytest.approx(run.predict_proba(some), abs=TOLERANCE)
