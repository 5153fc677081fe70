"""A lazy head in every architecture of transformers: the same loss, the same gradients, and no logits.

Ten of them run by default, all of them with: pytest -m models tests/models
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'crossent[models]'", exc_type=ImportError
)

from crossent import LazyLogits, Materialised  # noqa: E402
from tests.models import architectures  # noqa: E402
from tests.models.architectures import NOT_BUILT, NOT_LAZY, Case, cases, look, verdict  # noqa: E402

SOME = {
    "CAUSAL_LM": {"llama", "gemma2", "gpt2", "cohere", "qwen3_moe", "mamba"},
    "MASKED_LM": {"bert", "roberta"},
    "SEQUENCE_CLASSIFICATION": {"mistral"},
    "TOKEN_CLASSIFICATION": {"distilbert"},
}
LOSS, GRADIENT = 2e-6, 2e-6
"""Relative to the loss and to the norm of all gradients: float32, 24 rows and 99 columns summed in another order."""

ALL = list(cases())
LAZY = [case for case in ALL if case.kind not in NOT_BUILT and (case.table, case.kind) not in NOT_LAZY]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What transformers warns of in configurations that nobody will use is its own affair."""
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check(case: Case) -> None:
    seen = look(case)
    assert not seen.made, [str(event) for event in seen.made]
    assert seen.lazy == pytest.approx(seen.eager, rel=LOSS)
    assert seen.apart <= GRADIENT
    assert seen.lazy > 0


@pytest.mark.parametrize("case", [c for c in LAZY if c.kind in SOME.get(c.table, ())], ids=str)
def test_some_architectures(case: Case) -> None:
    check(case)


@pytest.mark.models
@pytest.mark.parametrize("case", LAZY, ids=str)
def test_all_architectures(case: Case) -> None:
    check(case)


@pytest.mark.models
@pytest.mark.parametrize("case", [c for c in ALL if (c.table, c.kind) in NOT_LAZY], ids=str)
def test_what_is_not_lazy_is_right_and_known(case: Case) -> None:
    word = verdict(case)
    assert word in ("made", "plain", "no head")
    if word != "no head":
        seen = look(case)
        assert seen.lazy == pytest.approx(seen.eager, rel=LOSS)
        assert seen.apart <= GRADIENT


@pytest.mark.models
@pytest.mark.parametrize("case", [c for c in ALL if c.kind in NOT_BUILT], ids=str)
def test_what_is_not_built_cannot_be(case: Case) -> None:
    """When one of these can, its name leaves the list."""
    with pytest.raises(Exception):  # noqa: B017 - each has its own
        look(case)


@pytest.mark.models
def test_the_page_says_what_was_seen() -> None:
    between = architectures.BETWEEN.search(architectures.PAGE.read_text(encoding="utf-8"))
    assert between is not None
    assert between[0] == between[1] + architectures.page() + between[2]


def test_names_in_the_lists_are_names_of_architectures() -> None:
    kinds = {case.kind for case in ALL}
    assert not set(NOT_BUILT) - kinds
    assert not {kind for _, kind in NOT_LAZY} - kinds
    assert len(LAZY) > 400
    for table, some in SOME.items():
        assert not some - {case.kind for case in LAZY if case.table == table}


def one(table: str, kind: str) -> Case:
    return next(case for case in ALL if (case.table, case.kind) == (table, kind))


def test_another_head_is_noticed() -> None:
    seen = look(one("CAUSAL_LM", "llama"), spoil=True)
    assert seen.lazy != pytest.approx(seen.eager, rel=LOSS)
    assert seen.apart > GRADIENT


def test_logits_that_are_made_are_counted() -> None:
    seen = look(one("SEQUENCE_CLASSIFICATION", "eurobert"))  # takes a mean of logits
    assert [event.operation for event in seen.made] == ["mean"]
    assert isinstance(seen.made[0], Materialised)
    assert seen.made[0].shape == (2, 12, 5)
    assert "modeling_eurobert.py" in seen.made[0].place
    assert isinstance(look(one("CAUSAL_LM", "llama")).logits, LazyLogits)
