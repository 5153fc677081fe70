"""The example that trains a language model twice: its losses coincide, its page is whole, and it can say that not."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from crossent import Record

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "language_model.py"
LINE = "crossent.lazy_head(model)  # the only line in which the two differ"

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'crossent[models]'")


def run(example: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), "--quick"],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("language_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_heads_train_the_same_model(tmp_path: Path, example: ModuleType) -> None:
    done = run(EXAMPLE, tmp_path)
    assert done.returncode == 0, done.stderr
    record = Record.read(tmp_path / "language_model.json")
    eager, lazy = (record.curves[head].y for head in ("eager", "lazy"))
    assert len(eager) == len(lazy) == 6
    # The first loss is that of random weights: ln V, and float32 carries seven digits of it.
    assert eager[0] == pytest.approx(math.log(32768), abs=0.2)
    assert min(eager) < eager[0] - 0.2  # not of the last alone: its few rows are this Python's own texts
    assert record["apart"].value == max(abs(a - b) for a, b in zip(eager, lazy, strict=True)) <= 1e-5
    assert record["bits_per_byte_lazy"].value == pytest.approx(record["bits_per_byte_eager"].value, rel=1e-6)
    assert 1 < record["bits_per_byte_lazy"].value < 8  # 8: guessing bytes
    if sys.platform == "linux":  # 256 rows: the eager head holds logits and gradient, the lazy one no two of them
        assert record["head_memory_eager"].value > 2 * record["logits"].value > record["head_memory_lazy"].value
    page = (tmp_path / "language_model.html").read_text(encoding="utf-8")
    assert "The two losses coincide" in page
    assert page.count("<svg") == 3
    assert str(tmp_path) not in page
    assert str(ROOT) not in page
    again = tmp_path / "again.html"
    example.write(record, again)  # the page is drawn from the record and from nothing else
    assert again.read_text(encoding="utf-8") == page


@pytest.mark.models
def test_a_head_that_is_not_the_same_is_found_out(tmp_path: Path) -> None:
    """The fault: one token in a hundred gets no gradient."""
    fault = "model.lm_head.weight.register_hook(lambda g: g * (torch.arange(len(g)) % 100 != 7)[:, None])"
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count(LINE) == 1
    wrong = tmp_path / EXAMPLE.name
    wrong.write_text(text.replace(LINE, f"crossent.lazy_head({fault} and model)"), encoding="utf-8")
    wrong.with_suffix(".html.j2").write_text(EXAMPLE.with_suffix(".html.j2").read_text(encoding="utf-8"), "utf-8")
    done = run(wrong, tmp_path)
    assert done.returncode == 1
    assert "do not coincide" in done.stderr
    assert Record.read(tmp_path / "language_model.json")["apart"].value > 2e-3  # and 1e-6 without the fault
    assert "alarm" in (tmp_path / "language_model.html").read_text(encoding="utf-8").partition("</style>")[2]


def test_under_torchrun_it_names_the_example_that_is_for_it(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["language_model.py"])
    assert example.arguments().steps == 60
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        example.arguments()
    assert "examples/parallel_language_model.py is the one for torchrun" in capsys.readouterr().err


def test_a_curve_that_is_no_number_is_far_from_every_other(example: ModuleType) -> None:
    assert example.apart([1.0, 2.0], [1.0, 2.5]) == [0.0, 0.5]
    assert example.apart([1.0, math.nan], [1.0, math.nan]) == [0.0, math.inf]


@pytest.mark.parametrize(
    ("value", "text"), [(7.3e-5, "7 × 10⁻⁵"), (-2e-8, "−2 × 10⁻⁸"), (1e-3, "10⁻³"), (0.0, "0"), (math.inf, "infinite")]
)
def test_small_numbers_are_written_as_powers(example: ModuleType, value: float, text: str) -> None:
    assert example.power(value) == text
