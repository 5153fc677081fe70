"""Rows for the test: as many as promised, of every class its share, the same for the same seed."""

import numpy as np
import pytest

from crossent.minimise.data.split import draw

CLASSES = np.random.default_rng(3).choice(6, 1000, p=[0.5, 0.3, 0.1, 0.06, 0.03, 0.01])
FRACTIONS = np.random.default_rng(4).beta(0.5, 2, 999)
SOFT = np.random.default_rng(5).dirichlet(np.ones(4) / 3, 600)


@pytest.mark.parametrize("encoded", [CLASSES, FRACTIONS, SOFT], ids=["classes", "range", "soft"])
@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_part_and_the_parts_have_their_shares(encoded, seed):
    found = draw(encoded, seed)
    assert np.sort(np.concatenate(found)).tolist() == list(range(len(encoded)))
    assert all((np.diff(rows) > 0).all() for rows in found)
    assert [len(rows) for rows in found] == pytest.approx([0.8 * len(encoded), 0.2 * len(encoded)], abs=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("labels", [CLASSES, SOFT.argmax(1)], ids=["classes", "soft"])
def test_every_part_has_its_share_of_every_class(seed, labels):
    encoded = CLASSES if labels is CLASSES else SOFT
    for rows, share in zip(draw(encoded, seed), (0.8, 0.2), strict=True):
        assert np.bincount(labels[rows], minlength=4) == pytest.approx(share * np.bincount(labels), abs=1)
    # A draw that ignores the classes is caught by the same comparison.
    careless = np.argsort(labels, kind="stable")[seed : seed + len(labels) // 5]
    assert np.bincount(labels[careless], minlength=labels.max() + 1) != pytest.approx(0.2 * np.bincount(labels), abs=1)


def test_every_tenth_of_a_range_is_in_every_part():
    edges = np.quantile(FRACTIONS, np.linspace(0, 1, 11))
    for rows, share in zip(draw(FRACTIONS, 0), (0.8, 0.2), strict=True):
        assert np.histogram(FRACTIONS[rows], edges)[0] == pytest.approx(np.full(10, share * 99.9), abs=2)


@pytest.mark.parametrize("seed", range(20))
def test_every_class_is_learnt_also_one_of_a_single_row(seed):
    encoded = np.repeat(np.arange(7), [60, 1, 2, 1, 5, 1, 3])
    learnt, tested = draw(encoded, seed)
    assert set(encoded[learnt].tolist()) == set(range(7))
    assert not {1, 3, 5} & set(encoded[tested].tolist())
    assert len(tested) == pytest.approx(0.2 * len(encoded), abs=1)


def test_the_seed_and_nothing_else_decides():
    def tested(seed):
        return draw(CLASSES, seed)[1].tolist()

    first = tested(7)
    np.random.seed(1)  # noqa: NPY002  (the old global generator is what must not matter)
    assert tested(7) == first
    assert tested(8) != first
    assert tested(2**63 - 1) != first
