"""What models claim of a difference that rests on few labels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, log_expit, stdtr, stdtrit

from crossent.measure import Predictions, compare
from crossent.measure.comparison.claimed import CLAIMED_FREEDOM, claimed_error, of_rare
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
    for clusters in [10] * 12 + [90]:
        z, came, cluster = drawn(rng, clusters)
        a, b = cost(z, came), cost(2 * z, came)
        one, two = (Rival(name, c, c, None, 0.0, "", came) for name, c in (("A", a), ("B", b)))
        found = parts(Ground(np.arange(z.size), [], None, cluster, None, {}), one, two)["cross_entropy"]
        own = cluster_mean(b - a, clusters=cluster)
        claimed = claimed_error(a, b, came, np.full(z.size, 1 / z.size), cluster)
        if claimed is None or own.freedom >= 20:
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
    assert seen == {"claimed", "own", "many labels"}


def test_many_labels_are_judged_by_themselves_and_weights_count():
    rng = np.random.default_rng(2)
    z, came, cluster = drawn(rng, 90)
    record = compare({"A": expit(z), "B": expit(2 * z)}, labels=came.astype(int), group=cluster)
    own = cluster_mean(cost(2 * z, came) - cost(z, came), clusters=cluster)
    assert record["difference"].low == pytest.approx(own.interval()[0], rel=1e-9)
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
    assert held["rows alone"] < 0.90 * 400
    assert held["now"] > 0.93 * 400


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
    # An error that is no smaller than that of rows is believed, with the degrees of freedom of its own squares.
    said, freedom = of_rare(*costs, came, share, cluster, 0.9 * np.sqrt(rows))
    v = np.bincount(cluster, share * (costs[1] - costs[0] - np.sum(share * (costs[1] - costs[0]))))
    nu = 2 * np.sum(v**2) ** 2 / (np.sum(v**4) - np.sum(v**2) ** 2 / v.size)
    assert said is None
    assert freedom == pytest.approx(max(nu, 4), rel=1e-9)
    # A class that many clusters hold asks nothing of anybody.
    assert of_rare(*costs, np.arange(60) % 2 == 0, share, np.arange(60) // 3, 1e-9) == (None, np.inf)
