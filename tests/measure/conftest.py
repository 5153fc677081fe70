from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real predictions beside the checkout; tests that need it say so where it is absent."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real predictions (shared/data beside the checkout) are not on this machine")
    return folder
