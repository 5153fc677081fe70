"""What models claim of a difference that rests on few labels."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit, log_expit, stdtr, stdtrit

from crossent.measure import Predictions
from crossent.measure.comparison.claimed import CLAIMED_FREEDOM, claimed_error, of_rare, steadied
from crossent.measure.comparison.contrast import Ground, parts
from crossent.measure.comparison.rival import Rival, rival
from crossent.measure.intervals.cluster import cluster_mean


def drawn(rng, clusters: int, size: int = 10):
    """Log-odds, labels of which all in a cluster share one draw, and clusters."""
    cluster = np.repeat(np.arange(clusters), size)
    z = 4 * (np.sqrt(0.9) * rng.normal(size=clusters)[cluster] + np.sqrt(0.1) * rng.normal(size=cluster.size))
    return z, rng.random(clusters)[cluster] < expit(z), cluster


def cost(z, came):
    return -log_expit(np.where(came, z, -z))


def test_the_error_is_that_of_labels_drawn_as_the_models_claim():
    rng = np.random.default_rng(0)
    z, came, cluster = drawn(rng, 6)
    other = 0.5 * z
    p = (expit(z) + expit(other)) / 2
    draws = []
    for _ in range(20_000):
        y = rng.random(6)[cluster] < p
        draws.append(np.mean(cost(other, y) - cost(z, y)))
    share = np.full(z.size, 1 / z.size)
    said = claimed_error(cost(z, came), cost(other, came), came, share, cluster)
    pulls = np.bincount(cluster, (came - p) / np.sqrt(p * (1 - p)))
    assert np.mean(pulls**2) > 3  # the labels of a cluster are seen to go together, not altogether
    # What draws scatter about each cluster's own mean is a part of it: clusters themselves are drawn, too.
    by_cluster = np.bincount(
        cluster, p * (log_expit(z) - log_expit(other)) + (1 - p) * (log_expit(-z) - log_expit(-other))
    )
    between = np.sum(((by_cluster - by_cluster.mean()) / z.size) ** 2)
    assert said <= np.sqrt(np.var(draws) + between) * 1.02
    assert said >= np.sqrt(between)
    assert claimed_error(cost(z, came), cost(other, came), came, share, np.arange(z.size)) is None  # 60 labels


def test_the_error_is_a_sum_over_the_steps_of_each_cluster():
    """The module's formula, cluster by cluster and step by step."""
    rng = np.random.default_rng(7)
    z, came, cluster = drawn(rng, 9)
    kept = rng.permutation(90)[:60]
    z, came, cluster = z[kept], came[kept], np.unique(cluster[kept], return_inverse=True)[1]
    other, h = 0.4 * z + rng.normal(size=60), rng.dirichlet(np.full(60, 3.0))
    p = (expit(z) + expit(other)) / 2
    a, b = log_expit(z) - log_expit(other), log_expit(-z) - log_expit(-other)
    mean = np.sum(h * (p * a + (1 - p) * b))
    common = alone = square = pairs = 0.0
    for g in range(9):
        here = cluster == g
        draws = np.sort(np.append(p[here], [0.0, 1.0]))
        for low, high in pairwise(draws):
            d = np.where((low + high) / 2 < p[here], a[here], b[here])
            common += (high - low) * np.sum(h[here] * (d - mean)) ** 2
        expected = np.sum(h[here] * (p * a + (1 - p) * b - mean)[here])
        alone += np.sum((h**2 * p * (1 - p) * (a - b) ** 2)[here]) + expected**2
        r = ((came - p) / np.sqrt(np.maximum(p * (1 - p), 1e-3)))[here]
        square, pairs = square + np.sum(r) ** 2 - np.sum(r**2), pairs + r.size * (r.size - 1)
    r2 = np.mean((came - p) ** 2 / np.maximum(p * (1 - p), 1e-3))
    together = min(max(square / pairs / r2, 0), 1)
    assert 0.1 < together < 1
    said = claimed_error(cost(z, came), cost(other, came), came, h, cluster, np.inf)
    assert said**2 == pytest.approx(together * common + (1 - together) * alone, rel=1e-9)
    assert common > 1.5 * alone  # a part forgotten would be seen


def test_differences_of_ten_labels_hold_the_truth_oftener():
    rng = np.random.default_rng(1)
    z, came, _ = drawn(rng, 20_000)
    truth = np.mean(cost(2 * z, came) - cost(z, came))
    held = {"claimed": 0, "rows alone": 0}
    for _ in range(200):
        z, came, cluster = drawn(rng, 10)
        a, b = cost(z, came), cost(2 * z, came)
        one, two = (Rival(name, c, c, None, 0.0, "", came) for name, c in (("A", a), ("B", b)))
        ground = Ground(np.arange(z.size), [], None, cluster, None, {})
        for name, mean in (
            ("claimed", parts(ground, one, two)["cross_entropy"]),
            ("rows alone", cluster_mean(b - a, clusters=cluster)),
        ):
            low, high = mean.interval()
            held[name] += low <= truth <= high
    assert held["claimed"] >= 0.91 * 200  # 95 % but for twice its standard error
    assert held["rows alone"] < 0.85 * 200  # it can fail


def test_each_end_is_the_further_of_what_is_seen_and_what_is_claimed():
    rng = np.random.default_rng(3)
    seen = set()
    for clusters in [10] * 12 + [19] * 3 + [90]:
        z, came, cluster = drawn(rng, clusters)
        a, b = cost(z, came), cost(2 * z, came)
        one, two = (Rival(name, c, c, None, 0.0, "", came) for name, c in (("A", a), ("B", b)))
        found = parts(Ground(np.arange(z.size), [], None, cluster, None, {}), one, two)["cross_entropy"]
        own = cluster_mean(b - a, clusters=cluster)
        claimed = claimed_error(a, b, came, np.full(z.size, 1 / z.size), cluster)
        if own.freedom >= 20:
            error = steadied(a, b, came, np.full(z.size, 1 / z.size), cluster, own.error)
            many = replace(own, error=error, freedom=own.freedom_of_tails)
            assert found.interval() == pytest.approx(many.interval(), rel=1e-12)
            seen.add("many clusters")
            continue
        if claimed is None:
            assert (found.interval(), found.p_value) == (own.interval(), own.p_value)
            seen.add("many labels")
            continue
        own = replace(own, freedom=own.freedom + CLAIMED_FREEDOM)
        if claimed <= own.error:
            assert (found.interval(), found.p_value) == (own.interval(), own.p_value)
            seen.add("own")
            continue
        low, high = own.interval(0.01)
        half = claimed * stdtrit(own.freedom, 0.995)
        assert found.interval(0.01) == pytest.approx((min(low, own.value - half), max(high, own.value + half)))
        by_claims = 2 * stdtr(own.freedom, -abs(own.value) / claimed)
        assert found.p_value == pytest.approx(max(own.p_value, by_claims))
        assert found.rows_needed == pytest.approx(own.rows_needed * (claimed / own.error) ** 2)
        seen.add("claimed")
    assert seen == {"claimed", "own", "many labels", "many clusters"}


def test_claims_are_a_few_squares_beside_those_of_many_clusters():
    """Thirty clusters of one label: by their own scatter alone a model twice too sure held 92 %."""
    rng = np.random.default_rng(5)
    z, came, _ = drawn(rng, 200_000)
    truth = np.mean(cost(2 * z, came) - cost(z, came))

    def rivals():
        z, came, cluster = drawn(rng, 30)
        return *(
            Rival(n, x, x, None, 0.0, "", came) for n, x in (("a", cost(z, came)), ("b", cost(2 * z, came)))
        ), cluster

    roads = {
        "now": lambda ground, one, two: parts(ground, one, two)["cross_entropy"],
        "clusters alone": lambda ground, one, two: ground.mean(two.floored - one.floored),
    }
    held = held_of(truth, 800, rivals, roads)
    assert held["now"] > 0.93 * 800
    assert held["clusters alone"] < held["now"] - 0.015 * 800
    one, two, cluster = rivals()
    a, b, share = one.costs, two.costs, np.full(300, 1 / 300)
    claimed = claimed_error(a, b, one.came, share, cluster, np.inf)
    v = np.bincount(cluster, share * (b - a - np.mean(b - a)))
    nu = max(2 * np.sum(v**2) ** 2 / (np.sum(v**4) - np.sum(v**2) ** 2 / 30), 4)
    said = steadied(a, b, one.came, share, cluster, claimed / 2)
    assert said**2 == pytest.approx((nu / 4 + CLAIMED_FREEDOM) * claimed**2 / (nu + CLAIMED_FREEDOM), rel=1e-9)
    assert steadied(a, b, one.came, share, cluster, 2 * claimed) == 2 * claimed  # the dear side alone
    alike = np.full(40, 0.7), np.where(np.arange(40) < 20, 0.4, 1.2)  # every square the same, as well known as can be
    assert steadied(*alike, np.arange(40) < 20, np.full(40, 1 / 40), np.arange(40), 0.01) == pytest.approx(0.01)


def test_weights_count_and_labels_twice_are_no_more_labels():
    rng = np.random.default_rng(2)
    z, came, cluster = drawn(rng, 8)
    twice = np.concatenate([np.arange(z.size), np.arange(z.size)])
    share = np.full(z.size, 1 / z.size)
    once = claimed_error(cost(z, came), cost(2 * z, came), came, share, cluster)
    weights = np.where(cluster < 4, 2.0, 1.0)
    heavier = claimed_error(cost(z, came), cost(2 * z, came), came, weights / weights.sum(), cluster)
    assert heavier != pytest.approx(once, rel=1e-3)
    doubled = claimed_error(
        cost(z, came)[twice], cost(2 * z, came)[twice], came[twice], np.full(2 * z.size, 0.5 / z.size), cluster[twice]
    )
    assert doubled == pytest.approx(once, rel=0.1)  # the same labels twice are no more labels


def rare(rng, clusters: int, size: int = 10):
    """Log-odds of a class of 4.4 %, the same in a cluster, whose rows share most draws of their labels."""
    cluster = np.repeat(np.arange(clusters), size)
    z = (-4 + 1.5 * rng.normal(size=clusters))[cluster]
    draw = np.where(rng.random(cluster.size) < 0.7, rng.random(clusters)[cluster], rng.random(cluster.size))
    return z, draw < expit(z), cluster


def test_a_rare_class_that_few_of_many_clusters_hold():
    """Thirty clusters: by their own scatter intervals of a model a third too sure held 79 %, nearly all too low."""
    rng = np.random.default_rng(0)
    z, _, _ = rare(rng, 100_000, 1)
    truth = np.mean(expit(z) * (log_expit(z) - log_expit(1.3 * z)) + expit(-z) * (log_expit(-z) - log_expit(-1.3 * z)))
    held = {"now": 0, "clusters alone": 0}
    for _ in range(300):
        z, came, cluster = rare(rng, 30)
        one, two = (
            Rival(name, x, x, None, 0.0, "", came) for name, x in (("a", cost(z, came)), ("b", cost(1.3 * z, came)))
        )
        ground = Ground(np.arange(z.size), [], None, cluster, None, {})
        alone = cluster_mean(two.floored - one.floored, None, cluster)
        for name, found in (("now", parts(ground, one, two)["cross_entropy"]), ("clusters alone", alone)):
            low, high = found.interval()
            held[name] += low is not None and low <= truth <= high
    assert held["clusters alone"] < 0.88 * 300
    assert held["now"] > 0.92 * 300


def held_of(truth, repetitions, rows, roads):
    """How many of ``repetitions`` intervals hold the truth, by road."""
    held = dict.fromkeys(roads, 0)
    for _ in range(repetitions):
        one, two, cluster = rows()
        ground = Ground(np.arange(one.costs.size), [], None, cluster, None, {})
        for name, road in roads.items():
            low, high = road(ground, one, two).interval()
            held[name] += low is not None and low <= truth <= high
    return held


def test_a_rare_class_in_a_hundred_single_rows():
    """Four of a hundred rows: by their own scatter intervals of a noisy rival held 88 %."""
    rng = np.random.default_rng(0)

    def noisy(rows):
        z, came, _ = rare(rng, rows, 1)
        return came, cost(z, came), cost(z + rng.normal(size=rows), came)

    _, a, b = noisy(2_000_000)
    truth = np.mean(b - a)

    def rivals():
        came, *both = noisy(100)
        return *(Rival(name, x, x, None, 0.0, "", came) for name, x in zip("ab", both, strict=True)), None

    roads = {
        "now": lambda ground, one, two: parts(ground, one, two)["cross_entropy"],
        "rows alone": lambda ground, one, two: ground.mean(two.floored - one.floored),
    }
    held = held_of(truth, 400, rivals, roads)
    assert held["rows alone"] < 0.92 * 400
    assert held["now"] > 0.93 * 400


def test_parts_of_single_rows_have_not_seen_a_rare_class_either():
    rng = np.random.default_rng(8)
    z, came, _ = rare(rng, 100, 1)
    while came.sum() != 1:
        z, came, _ = rare(rng, 100, 1)
    logs = [np.stack([log_expit(-x), log_expit(x)], axis=1) for x in (z, 1.3 * z + rng.normal(size=100))]
    made = [Predictions(np.exp(x), came.astype(int), ["0", "1"], np.arange(100), "binary") for x in logs]
    one, two = (rival(name, x, None) for name, x in zip("ab", made, strict=True))
    ground = Ground(np.arange(100), [], None, None, None, {})
    found, seen = parts(ground, one, two), ground.mean(two.floored - one.floored)
    unseen = found["cross_entropy"].error
    assert unseen > 1.2 * seen.error  # claims are asked
    for part in ("discrimination", "miscalibration"):
        assert found[part].error >= unseen
        assert found[part].freedom <= 99 + 1e-9


def test_parts_have_not_seen_what_the_difference_has_not():
    """Ten labels, a model twice too sure: the whole difference is one of miscalibration, which held 86 % by itself."""
    rng = np.random.default_rng(4)
    z, came, _ = drawn(rng, 20_000)
    truth = np.mean(cost(2 * z, came) - cost(z, came))

    def rivals():
        z, came, cluster = drawn(rng, 10)
        logs = [np.stack([log_expit(-z * k), log_expit(z * k)], axis=1) for k in (1, 2)]
        rows = (np.arange(z.size), "binary")
        made = [
            Predictions(np.exp(x), came.astype(int), ["0", "1"], *rows, log_probabilities=x, groups=cluster)
            for x in logs
        ]
        return *(rival(name, one, None) for name, one in zip("ab", made, strict=True)), cluster

    def alone(ground, one, two):
        calibrated = two.calibrated - one.calibrated
        doubt = np.hypot(one.doubt, two.doubt)
        return cluster_mean(two.floored - one.floored - calibrated, None, ground.clusters, None, doubt)

    roads = {"now": lambda ground, one, two: parts(ground, one, two)["miscalibration"], "by itself": alone}
    held = held_of(truth, 150, rivals, roads)
    assert held["by itself"] < 0.9 * 150
    assert held["now"] > 0.92 * 150


def test_what_is_claimed_of_a_rare_class_is_a_sum_over_labels():
    rng = np.random.default_rng(1)
    z = rng.normal(-4, 1, 60)
    other, cluster, share = 1.5 * z, np.sort(rng.integers(12, size=60)), rng.dirichlet(np.full(60, 3.0))
    came = np.zeros(60, bool)
    costs = cost(z, came), cost(other, came)
    p = (expit(z) + expit(other)) / 2
    of_one, of_none = log_expit(z) - log_expit(other), log_expit(-z) - log_expit(-other)
    mean = np.sum(share * (p * of_one + (1 - p) * of_none))
    rows = np.sum(share**2 * (p * (of_one - mean) ** 2 + (1 - p) * (of_none - mean) ** 2))
    size = np.bincount(cluster, share)
    said, freedom = of_rare(*costs, came, share, cluster, 0.8 * np.sqrt(rows))
    assert said == pytest.approx(np.sqrt(rows * np.sum(size**2) / np.sum(share**2)), rel=1e-9)
    assert freedom == np.count_nonzero(size) - 1
    # Of a class that never came claims are all there is, unless the clusters scatter more.
    assert of_rare(*costs, came, share, cluster, 0.9 * np.sqrt(rows)) == (said, freedom)
    assert of_rare(*costs, came, share, cluster, 2 * said) == (2 * said, freedom)
    # An error that is no smaller than that of rows is believed, with the degrees of freedom of its own squares.
    came[7] = True
    costs = cost(z, came), cost(other, came)
    said, freedom = of_rare(*costs, came, share, cluster, 0.9 * np.sqrt(rows))
    v = np.bincount(cluster, share * (costs[1] - costs[0] - np.sum(share * (costs[1] - costs[0]))))
    nu = 2 * np.sum(v**2) ** 2 / (np.sum(v**4) - np.sum(v**2) ** 2 / v.size)
    assert said is None
    assert freedom == pytest.approx(max(nu, 4), rel=1e-9)
    # A class that many clusters hold asks nothing of anybody.
    assert of_rare(*costs, np.arange(60) % 2 == 0, share, np.arange(60) // 3, 1e-9) == (None, np.inf)
