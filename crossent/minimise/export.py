"""A finished run as one file that runs without crossent: prepared features in, calibrated probabilities out.

Everything behind the preparation goes in: the scaling of the features, what is said of a missing one, the networks and
trees, what they say together, the calibrator. ``.pt2`` is the format of ``torch.export``, for any program with torch;
``.onnx`` is for onnxruntime and whatever else reads ONNX, in any language. The preparation of a table (dates,
categories, text) and a tokenizer stay in Python: ``run.preparation(table, "new rows")`` gives the features.

A file is compared with ``predict_proba`` before it gets its name: one that says something else is never left behind.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from crossent.errors import DataError, require
from crossent.files import replacing
from crossent.measure.calibration.steps import VennAbers
from crossent.minimise.networks.residual import Residual
from crossent.minimise.networks.tabular import Tabular
from crossent.minimise.networks.text import TextNetwork
from crossent.minimise.networks.trees import Trees
from crossent.minimise.run import Run
from crossent.minimise.training.judge import together

OUTPUTS = ("probabilities", "log_probabilities")
ABOUT = "crossent.json"
"""The name of the metadata in a ``.pt2`` file, one JSON object; in ONNX each of its fields is a property."""
ROWS = 64
TOLERANCE = 1e-5
"""Of a probability. The network computes in float32, and two programs add up the hundreds of terms of a product in
different orders: a logit of size 10 differs by some 1e-6, and a calibrator may be steeper than 1."""
ON_AN_EDGE = 2
"""Rows of the check that may fall on the other side of a step, where the calibrator is a staircase (Venn–Abers)."""


class Exported(nn.Module):
    """Prepared rows (n, …), float32, or tokens (n, t), int64 → probabilities (n, C) and their logarithms, float32.

    What ``Run.predict_proba`` does after the preparation: the network, the way back from what its loss made it say,
    what the members say together, the calibrator; all but the network in float64. The logarithms are not those
    of the probabilities: they stay exact where a probability is too small for float32. Nothing is refused here.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.network = copy.deepcopy(run.network)
        self.objective = run.objective
        self.calibrator = run.calibrator.module(dtype=torch.float64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and log-probabilities of the rows."""
        logits = self.network(x)
        if not hasattr(self.network, "members"):
            logits = logits.unsqueeze(0)
        log_p = self.calibrator(together(self.network, self.objective.log_probabilities(logits)))
        return log_p.exp().float(), log_p.float()


def as_module(run: Run) -> Exported:
    """Give everything behind a run's preparation as one ``nn.Module`` in evaluation mode, with its own weights."""
    return Exported(run).eval().requires_grad_(False)


def about(run: Run) -> dict[str, Any]:
    """Give what a program has to know to use the file: plain data.

    ``classes`` are the names of the columns. For a number in a range there are none, and the number is ``low`` +
    (``high`` − ``low``) times the second column.
    """
    text = _text(run)
    names = run.preparation.names or tuple(str(place) for place in range(run.preparation.features))
    return {
        "crossent": version("crossent"),
        "task": run.task.kind,
        "classes": list(run.task.classes),
        "low": run.task.low if run.task.kind == "range" else None,
        "high": run.task.high if run.task.kind == "range" else None,
        "features": list(names) if text is None else [text.column],
        "padding": None if text is None else text.tokenizer.pad_token_id,
        "target": run.record.facts.get("target"),
        "calibration": run.calibrator.kind,
    }


@dataclass(frozen=True)
class Written:
    """What ``export`` wrote: a file that takes rows of a shape and gives so many columns of probabilities.

    ``difference`` is the largest from ``predict_proba`` on so many ``rows``.
    """

    path: Path
    shape: tuple[int, ...]
    columns: int
    difference: float
    rows: int


def export(run: Run, path: str | os.PathLike[str], rows: Tensor | None = None) -> Written:
    """Write a run as ``.pt2`` (``torch.export``) or ``.onnx``, whole and checked, or not at all.

    Input ``features`` (rows, d) float32, any number of rows, NaN where a number is missing; images ``features`` (rows,
    channels, height, width); texts ``tokens`` (rows, t) int64, any number of both, filled up by ``padding``. Outputs
    ``probabilities`` and ``log_probabilities`` (rows, C) float32. The metadata are those of ``about``: in ONNX its
    ``metadata_props``, each value as JSON; in a ``.pt2`` the extra file ``crossent.json``.

    ``rows`` are a few prepared rows to follow the network and to check the file by. A network of the user's own needs
    them, because nobody else knows what it takes; so do images that are not square. For others they are made up.

    Accuracy: within 1e-5 of ``predict_proba`` as probabilities, on 64 rows of all sizes with gaps, or the file is not
    written. A Venn–Abers calibrator is a staircase, and a row whose odds stand on an edge may fall to either side.

    Raises DataError for another suffix, for a file that says something else than the run, and for a disk that is full.
    MissingExtra without ``crossent[onnx]``.

    >>> import tempfile, crossent
    >>> run = crossent.fit("iris")
    >>> written = export(run, tempfile.mkdtemp() + "/iris.pt2")
    >>> probabilities, logs = torch.export.load(written.path).module()(torch.tensor([[5.1, 3.5, 1.4, 0.2]]))
    >>> run.classes[probabilities[0].argmax()], written.difference < 1e-5
    ('setosa', True)
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise DataError(f"a model is exported as {' or '.join(_WRITERS)}, and {str(path)!r} is neither.")
    module, (name, x, free) = as_module(run), _made_up(run) if rows is None else _given(run, rows)
    truth = np.exp(run.calibrator.of_logits(run.log_probabilities(x).numpy()))
    with _quiet(), torch.no_grad(), replacing(path) as temporary:
        try:
            program = torch.export.export(module, (x[:3],), dynamic_shapes=(free,), strict=False)
        except Exception as trouble:  # a network of the user's own may do whatever Python can
            raise DataError(
                f"torch.export cannot follow this network: {' '.join(str(trouble).split())[:500]} Its forward may "
                "branch on shapes and not on values."
            ) from trouble
        difference = np.abs(write(program, about(run), temporary, name, x) - truth).max(axis=1)
        staircase = any(isinstance(step, VennAbers) for step in run.calibrator.steps)
        if int((difference <= TOLERANCE).sum()) < len(x) - ON_AN_EDGE * staircase:  # so that NaN is not within it
            raise DataError(
                f"the exported model would differ from predict_proba by {difference.max():.2g}, where {TOLERANCE:g} is "
                f"allowed, and {str(path)!r} was not written. Please report this, with the model's folder."
            )
    return Written(path, tuple(x.shape[1:]), truth.shape[1], float(difference.max()), len(x))


def _text(run: Run) -> TextNetwork | None:
    return next((module for module in run.network.modules() if isinstance(module, TextNetwork)), None)


Rows = tuple[str, Tensor, dict[int, Any]]
"""The name of an input, rows for it, and which of their dimensions may have another size."""


def _given(run: Run, rows: Tensor) -> Rows:
    if len(rows) == 0:
        raise DataError("a network is followed by rows, and there are none: give a few.")
    several = rows[:ROWS] if len(rows) > 1 else rows.expand(2, *rows.shape[1:])  # of one row torch takes 1 for a law
    return _free(run, several.contiguous())


def _free(run: Run, x: Tensor) -> Rows:
    rows = torch.export.Dim("rows")
    text = _text(run) is not None
    return ("tokens", x, {0: rows, 1: torch.export.Dim.AUTO}) if text else ("features", x, {0: rows})


def _made_up(run: Run) -> Rows:
    """Rows such as were trained on: of a table's size, some far out, some cells missing; words at random; pixels."""
    generator = torch.Generator().manual_seed(0)
    if (text := _text(run)) is not None:
        width, padding = min(text.longest, 24), text.tokenizer.pad_token_id
        x = torch.randint(len(text.tokenizer), (ROWS, width), generator=generator)
        x[x == padding] = (padding + 1) % len(text.tokenizer)
        ends = torch.randint(1, width + 1, (ROWS, 1), generator=generator)
        return _free(run, torch.where(torch.arange(width) < ends, x, padding))
    for module in run.network.modules():
        if isinstance(module, Tabular):
            size = (ROWS, len(module.center))
            x = module.center + module.spread * 2 * torch.randn(size, generator=generator)
            x[: ROWS // 8] *= 1e3
            x[torch.rand(size, generator=generator) < 0.1] = torch.nan
            return _free(run, x)
        if isinstance(module, Trees):  # with no network beside them
            x = torch.zeros(ROWS, run.preparation.features)
            for column, numbers in enumerate(x.T):  # on the very thresholds, where a rounding would be seen
                cuts = module.threshold[(module.feature == column) & module.threshold.isfinite()]
                if len(cuts):
                    numbers.copy_(cuts[torch.randint(len(cuts), (ROWS,), generator=generator)])
            x[torch.rand(x.shape, generator=generator) < 0.1] = torch.nan
            return _free(run, x)
        if isinstance(module, Residual):
            side = int(module.settings["side"])
            noise = torch.rand((ROWS, len(module.mean), side, side), generator=generator) - 0.5
            return _free(run, module.mean + 3 * module.deviation * noise)
    raise DataError(
        "only its maker knows what this network takes: export it from Python with a few prepared rows, "
        "export(run, path, rows=x[:10])."
    )


def _pt2(program: ExportedProgram, facts: dict[str, Any], path: Path, name: str, x: Tensor) -> NDArray[np.float64]:
    """Write the program, read it back, and give what it says of x."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={ABOUT: json.dumps(facts, ensure_ascii=False)})
    path.write_bytes(file.getvalue())  # not by torch, which has errors of its own for a disk that is full
    return torch.export.load(path).module()(x)[0].double().numpy()


def _onnx(program: ExportedProgram, facts: dict[str, Any], path: Path, name: str, x: Tensor) -> NDArray[np.float64]:
    """Write the program, have onnxruntime read it back, and give what it says of x."""
    onnx, onnxruntime, _ = (
        require(module, "onnx", "export to ONNX") for module in ("onnx", "onnxruntime", "onnxscript")
    )
    translated = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[name], output_names=list(OUTPUTS), external_data=False
    )
    assert translated is not None
    model = translated.model_proto
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()})
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path)
    return session.run(OUTPUTS[:1], {name: x.numpy()})[0].astype(np.float64)


_WRITERS: dict[str, Callable[[ExportedProgram, dict[str, Any], Path, str, Tensor], NDArray[np.float64]]] = {
    ".pt2": _pt2,
    ".onnx": _onnx,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say of their own libraries: deprecations, and translations of ops not used here."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
