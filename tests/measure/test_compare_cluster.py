"""Means of rows in clusters, against textbooks' formulas written out here, scipy, mpmath and counted coverage."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from scipy import stats

from crossent.measure.intervals.cluster import cluster_mean, holm


def rows(n=60, seed=0):
    return np.random.default_rng(seed).normal(0.2, 1.0, n)


def by_matrices(d, w, g):
    """The error and its degrees of freedom from the n × n covariance of the rows, none of it multiplied out.

    Rows have variance own/w and, inside a cluster, the covariance ``shared``; both come from the textbook's F test of
    whether clusters differ. A cluster's pull is a linear form of the rows.
    """
    n, w = d.size, w / w.mean()
    clusters = np.unique(g)
    inside = (g[:, None] == g).astype(float)
    m = np.array([w[g == c].sum() for c in clusters])
    means = np.array([np.average(d[g == c], weights=w[g == c]) for c in clusters])
    own = sum(w[g == c] @ (d[g == c] - mean) ** 2 for c, mean in zip(clusters, means, strict=True)) / (n - m.size)
    f = m @ (means - w @ d / n) ** 2 / (m.size - 1) / own
    shared = max(f - 1, 0) * own / ((n - m @ m / n) / (m.size - 1))
    covariance = np.diag(own / w) + shared * inside
    pulls = np.array([(g == c) * w / n for c in clusters]) @ (np.eye(n) - np.ones((n, 1)) * w / n)
    tau = np.array([(w[g == c] @ covariance[np.ix_(g == c, g == c)] @ w[g == c]) for c in clusters]) / n**2
    scale = np.sqrt(tau / np.diag(pulls @ covariance @ pulls.T))
    spread = scale[:, None] * (pulls @ covariance @ pulls.T) * scale
    return float(np.linalg.norm(scale * (pulls @ d))), np.trace(spread) ** 2 / np.trace(spread @ spread), f


def test_single_rows_are_the_paired_t_test():
    a, b = np.random.default_rng(1).gamma(2.0, size=(2, 50))
    found, truth = cluster_mean(b - a), stats.ttest_rel(b, a)
    assert found.value / found.error == pytest.approx(truth.statistic, rel=1e-12)
    assert found.freedom == pytest.approx(truth.df, rel=1e-12)
    straight = type(found)(found.value, found.error, found.freedom, 0.0, 50, 50)  # without the skewness it is that test
    assert straight.p_value == pytest.approx(truth.pvalue, rel=1e-10)
    assert straight.interval() == pytest.approx(tuple(truth.confidence_interval()), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_unequal_clusters_are_the_matrices_of_bell_and_mccaffrey(weighted, shared):
    d, rng = rows(), np.random.default_rng(2)
    g = rng.choice(7, 60, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    d = d + shared * rng.normal(size=7)[g]
    w = rng.uniform(0.2, 3.0, 60) if weighted else np.ones(60)
    found = cluster_mean(d, w if weighted else None, g)
    error, freedom, f = by_matrices(d, w, g)
    if not weighted:
        assert f == pytest.approx(stats.f_oneway(*(d[g == c] for c in range(7))).statistic)
    assert found.value == pytest.approx(np.average(d, weights=w), rel=1e-13)
    assert found.error == pytest.approx(error, rel=1e-10)
    assert found.freedom == pytest.approx(freedom, rel=1e-10)
    assert found.freedom < 6  # the large cluster is seen
    # Planted faults: the clusters dropped, the weights dropped, leverage forgotten (CR0), the pairs broken.
    cr0 = math.sqrt(np.sum(np.bincount(g, w * (d - found.value)) ** 2)) / w.sum()
    faults = [cluster_mean(d, w if weighted else None).error, cr0]
    faults += [cluster_mean(d, None, g).error] if weighted else []
    for fault in faults:
        assert fault != pytest.approx(error, rel=1e-3)


def test_equal_clusters_are_the_t_test_of_their_means():
    d, g = rows(), np.repeat(np.arange(12), 5)
    found, truth = cluster_mean(d, clusters=g), stats.ttest_1samp(d.reshape(12, 5).mean(axis=1), 0.0)
    assert found.value / found.error == pytest.approx(truth.statistic, rel=1e-12)
    assert (found.freedom, found.clusters, found.rows) == (pytest.approx(11), 12, 60)


def test_halls_cubic_to_many_digits():
    d = np.random.default_rng(3).gamma(0.5, size=25)
    found = cluster_mean(d)
    with mpmath.workdps(40):
        x = [mpmath.mpf(float(v)) for v in d]
        n, mean = len(x), sum(x) / len(x)
        error = mpmath.sqrt(sum((v - mean) ** 2 for v in x) / (n - 1) / n)
        skewness = (sum((v - mean) ** 3 for v in x) / n) / (sum((v - mean) ** 2 for v in x) / n) ** mpmath.mpf(1.5)
        a = skewness / (3 * mpmath.sqrt(n))
        t = mean / error
        g = ((1 + a * t) ** 3 - 1) / (3 * a) + a / 2
        edge = ((1 + 3 * a * (mpmath.mpf(stats.t.ppf(0.975, n - 1)) - a / 2)) ** (mpmath.mpf(1) / 3) - 1) / a
        far = mpmath.mpf(stats.t.ppf(0.975, n - 1)) + t - edge  # beyond 95 % no faster than T
        assert far < g
        further = mpmath.betainc(mpmath.mpf(n - 1) / 2, 0.5, 0, (n - 1) / (n - 1 + far * far), regularized=True)
        near = ((1 + a / 2) ** 3 - 1) / (3 * a) + a / 2  # of T = 1/2
        tail = mpmath.betainc(mpmath.mpf(n - 1) / 2, 0.5, 0, (n - 1) / (n - 1 + near * near), regularized=True)
    assert found.lean == pytest.approx(float(a), rel=1e-12)
    assert found.p_value == pytest.approx(float(further), rel=1e-9)
    assert cluster_mean(d - found.value + found.error / 2).p_value == pytest.approx(float(tail), rel=1e-9)
    low, high = found.interval()
    assert high - found.value > 1.2 * (found.value - low)  # long to the side of the skewness: a sign is in it
    assert cluster_mean(-d).interval() == pytest.approx((-high, -low), rel=1e-12)


def tailed(rng, n=100):
    """Numbers about 0 with long tails to both sides."""
    return rng.normal(size=n) * np.where(rng.random(n) < 0.1, 6.0, 1.0)


def test_what_skewness_is_by_chance():
    """Where nothing is skewed a goes along with T; ``chance`` is its slope, and without it intervals hold oftener."""
    rng = np.random.default_rng(9)
    found = [cluster_mean(tailed(rng, 300)) for _ in range(4000)]
    t, a = np.array([[x.value / x.error, x.lean] for x in found]).T
    kurtosis = 3 * (0.9 + 0.1 * 6**4) / (0.9 + 0.1 * 6**2) ** 2 - 3
    assert np.polyfit(t, a, 1)[0] == pytest.approx(kurtosis / 3 / 300, rel=0.15)  # the first term
    assert np.mean([x.chance for x in found]) == pytest.approx(kurtosis / 3 / 300, rel=0.25)
    found = [cluster_mean(tailed(rng)) for _ in range(3000)]
    held, before = (
        np.mean([low <= 0 <= high for low, high in (x.interval() for x in kind)])
        for kind in (found, [replace(x, chance=0.0) for x in found])
    )
    assert held > before + 0.01  # 93 and 91 %
    assert held > 0.92
    # Where one row makes all of the kurtosis it makes the skewness, too: nothing is by chance.
    assert cluster_mean(np.append(np.zeros(30) + 1e-3 * rows(30), 5.0)).chance == 0
    v = rows(40) ** 3
    pull = (v - v.mean()) / 40 * math.sqrt(40 / 39)
    s = np.sum(pull**2)
    by_hand = (np.sum(pull**4) / s**2 - 1 / 40 - np.sum(pull**3) ** 2 / s**3 - 2 / 39) / 3
    assert by_hand > 0.01
    assert cluster_mean(v).chance == pytest.approx(by_hand, rel=1e-9)
    assert cluster_mean(v).freedom_of_tails == pytest.approx(2 / (3 * by_hand + 2 / 39), rel=1e-9)


@pytest.mark.parametrize("miss", [0.5, 0.05, 0.001])
@pytest.mark.parametrize("tails", [False, True])
def test_interval_and_p_value_never_contradict_one_another(miss, tails):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        d = tailed(rng, 15) if tails else rng.gamma(0.7, size=15)
        low, _ = cluster_mean(d).interval(miss)
        assert cluster_mean(d - low).p_value == pytest.approx(miss, rel=1e-6)
        assert cluster_mean(d - low - 1e-3).p_value > miss * 0.9


def test_laws():
    d, rng = rows(), np.random.default_rng(4)
    w, g = rng.uniform(0.5, 2, 60), rng.integers(0, 9, 60)
    found, order = cluster_mean(d, w, g), rng.permutation(60)
    for same in (cluster_mean(d, 7.5 * w, g), cluster_mean(d[order], w[order], g[order]), cluster_mean(d, w, 8 - g)):
        assert same.interval() == pytest.approx(found.interval(), rel=1e-12)
    # A row of weight 0 changes nothing, nor is it counted, whatever it holds.
    more = cluster_mean(np.append(d, 1e9), np.append(w, 0.0), np.append(g, 20))
    assert more.interval() == pytest.approx(found.interval(), rel=1e-12)
    assert (more.rows, more.clusters) == (60, found.clusters)
    # Doubt from elsewhere adds as a square.
    assert cluster_mean(d, w, g, further=0.3).error == pytest.approx(math.hypot(found.error, 0.3))


def test_what_cannot_be_told():
    for found in (
        cluster_mean(np.array([0.3])),
        cluster_mean(np.full(9, 0.1)),
        cluster_mean(rows(), clusters=np.zeros(60, int)),
        cluster_mean(0.1 + 1e-15 * rows(), scale=5.0),
    ):
        assert found.error is None
        assert found.interval() == (None, None)
        assert found.p_value is None
        assert found.rows_needed is None
    with pytest.raises(ValueError, match="a row that counts"):
        cluster_mean(rows(), np.zeros(60))
    with pytest.raises(ValueError, match="rows that are finite"):
        cluster_mean(np.array([1.0, np.inf]))


def test_rows_needed_would_show_it_four_times_out_of_five():
    rng, mean = np.random.default_rng(5), 0.1
    needed = [cluster_mean(rng.normal(mean, 1, 20_000)).rows_needed for _ in range(20)]
    n = round(float(np.median(needed)))
    assert n == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 / mean**2, rel=0.1)
    shown = np.mean([cluster_mean(rng.normal(mean, 1, n)).p_value < 0.05 for _ in range(1500)])
    assert shown == pytest.approx(0.8, abs=0.05)  # 0.05 is 4.8 standard errors of 1500 tries, and what 10 % of n moves


def test_holm_is_holm():
    p = [0.001, 0.2, None, 0.012, 0.03, 0.9]
    found = holm(p)
    assert found == pytest.approx([0.005, 0.4, None, 0.048, 0.09, 0.9])
    assert found[4] > 3 * 0.03 - 1e-12  # not Bonferroni's, not the raw one
    assert holm([]) == []
    assert holm([None]) == [None]


def skewed_clusters(rng, count=40):
    size = rng.integers(1, 15, count)
    g = np.repeat(np.arange(count), size)
    return rng.gamma(1.0, size=count)[g] + 0.3 * rng.normal(size=g.size), g


def test_intervals_hold_and_those_without_clusters_do_not():
    rng = np.random.default_rng(6)
    truth, held, dropped = 1.0, [], []
    for _ in range(1500):
        d, g = skewed_clusters(rng)
        for found, where in ((cluster_mean(d, clusters=g), held), (cluster_mean(d), dropped)):
            low, high = found.interval()
            where.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.97
    assert np.mean(dropped) < 0.8  # the planted fault


@pytest.mark.parametrize("scale", [2.0**-350, 2.0**-500, 2.0**340])
def test_the_unit_of_costs_changes_nothing_but_the_unit(scale: float) -> None:
    """Fourth powers of 1e-82 are 0: two models that are all but certain ended in a division by it."""
    rng = np.random.default_rng(3)
    costs = rng.standard_t(3, 60) + rng.exponential(size=60)
    clusters = np.arange(60) // 4
    for groups in (None, clusters):
        found, scaled = (cluster_mean(costs * unit, clusters=groups) for unit in (1.0, scale))
        assert scaled.interval() == pytest.approx([end * scale for end in found.interval()], rel=1e-12)
        assert scaled.p_value == pytest.approx(found.p_value, rel=1e-12)
        assert found.lean
        assert found.chance or groups is not None  # of sums of four rows none is by chance
        assert (scaled.lean, scaled.chance) == pytest.approx((found.lean, found.chance), rel=1e-9)
