"""The guide's blocks that need transformers and Lightning run too, in the order of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

ABSENT = "transformers is not installed: pip install 'crossent[models]'"
transformers = pytest.importorskip("transformers", reason=ABSENT)

from tests.models.architectures import PAGE  # noqa: E402
from tests.test_docs import blocks  # noqa: E402


@pytest.mark.filterwarnings("ignore")  # what they warn of each other is theirs
def test_the_whole_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("accelerate", "lightning"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'crossent[models]'")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    kept = 0
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        assert block.kind == "python"
        kept += block.reason is not None
        exec(compile("\n" * block.line + block.code, str(PAGE), "exec"), namespace)
    assert kept == 4
