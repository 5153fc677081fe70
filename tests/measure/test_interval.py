"""Intervals: Hall's transform by bisection in mpmath, Wilson's by the test it inverts, coverage by counting."""

import math

import mpmath
import numpy as np
import pytest
from scipy.special import entr, expit, ndtri

from crossent.measure import Predictions, evaluate
from crossent.measure.intervals import interval
from crossent.measure.values.spread import Spread, clustered, freedom_by_class


def hall_by_bisection(rows: list[float], t: float) -> tuple[float, float]:
    """The μ at which Hall's g(T) reaches ±t, found without inverting g."""
    n = len(rows)
    x = [mpmath.mpf(row) for row in rows]
    mean = sum(x) / n
    second = sum((v - mean) ** 2 for v in x) / n
    skew = sum((v - mean) ** 3 for v in x) / n / second**1.5

    def g(mu):
        big = mpmath.sqrt(n) * (mean - mu) / mpmath.sqrt(second * n / (n - 1))
        a = skew / (3 * mpmath.sqrt(n))
        return big + a * big**2 + a**2 * big**3 / 3 + a / 2

    def solve(level):
        low, high = mean - 1000, mean + 1000
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if g(middle) > level else (low, middle)
        return float(low)

    return solve(t), solve(-t)


def test_the_interval_is_where_halls_statistic_reaches_students_point():
    rows = np.random.default_rng(0).exponential(size=40)
    t = float(mpmath.findroot(lambda x: student(x, 39) - mpmath.mpf("0.975"), 2))
    expected = hall_by_bisection(rows.tolist(), t)
    assert interval.of_mean(rows) == pytest.approx(expected, rel=1e-9)
    assert interval.of_mean(rows, skewness_corrected=False) != pytest.approx(expected, rel=1e-3)  # it can fail


def chao(counts: list[int]) -> float:
    """The estimate as it is written, term by term."""
    n, once, twice = sum(counts), counts.count(1), counts.count(2)
    found = sum(mpmath.mpf(x) / n * sum(mpmath.mpf(1) / k for k in range(x, n)) for x in counts if x)
    rare = mpmath.mpf(2) * twice / ((n - 1) * once + 2 * twice) if twice else mpmath.mpf(2) / ((n - 1) * (once - 1) + 2)
    if not once or rare == 1:
        return float(found)
    rest = -mpmath.log(rare) - sum((1 - rare) ** r / r for r in range(1, n))
    return float(found + mpmath.mpf(once) / n * (1 - rare) ** (1 - n) * rest)


@pytest.mark.parametrize("counts", [[5, 2, 1, 1, 1], [9, 1], [30, 12, 2, 2, 2, 1], [1, 1, 1, 1, 2], [40, 7, 3, 1]])
def test_classes_that_came_once_tell_of_those_that_did_not(counts):
    value, error = interval.of_unseen(np.array(counts, float))
    with mpmath.workdps(40):
        assert value == pytest.approx(chao(counts), rel=1e-4)
        left = [chao([*counts[:i], x - 1, *counts[i + 1 :]]) for i, x in enumerate(counts)]
    n = sum(counts)
    mean = sum(x * at for x, at in zip(counts, left, strict=True)) / n
    scatter = sum(x * (at - mean) ** 2 for x, at in zip(counts, left, strict=True))
    assert error == pytest.approx(math.sqrt((n - 1) / n * scatter), rel=1e-3)
    assert value > float(entr(np.array(counts) / n).sum()) + (len(counts) - 1) / (3 * n)  # what came has less


def test_entropies_of_many_classes_of_few_rows_hold():
    """A hundred even classes, two rows of each on average: 84 % where what did not come was reckoned by Miller."""
    rng = np.random.default_rng(0)
    held = {True: 0, False: 0}
    for counts in rng.multinomial(200, np.full(100, 0.01), size=200):
        shares = counts[counts > 0] / 200
        estimate, bias = float(entr(shares).sum()), (shares.size - 1) / 400
        error = math.sqrt(float(np.sum(shares * (np.log(shares) + estimate) ** 2)) / 200)
        unseen = interval.of_unseen(counts[counts > 0].astype(float))[0] - estimate
        for told in held:
            ends = interval.of_entropy(estimate, error, bias, shares.size, 100, unseen if told else 0.0)
            held[told] += ends[0] <= math.log(100) + 1e-12 and ends[1] >= math.log(100) - 1e-12
    assert held[True] >= 180  # 190 expected, with a deviation of 3
    assert held[False] < 180


def student(x, freedom):
    z = freedom / (freedom + x**2)
    return 1 - mpmath.betainc(freedom / 2, mpmath.mpf("0.5"), 0, z, regularized=True) / 2


def test_without_skewness_it_is_the_t_interval():
    rows = np.array([1.0, 2.0, 3.0, 4.0])
    assert interval.of_mean(rows) == pytest.approx(interval.of_mean(rows, skewness_corrected=False))


def test_a_mirrored_sample_has_a_mirrored_interval():
    rows = np.random.default_rng(1).exponential(size=30)
    low, high = interval.of_mean(rows)
    assert interval.of_mean(-rows) == pytest.approx((-high, -low))


@pytest.mark.parametrize("rows", [[], [1.0], [0.3, 0.3, 0.3], [0.1] * 1000, [1.0, math.inf], [1.0, math.nan]])
def test_rows_that_cannot_tell_have_no_interval(rows):
    assert interval.of_mean(np.array(rows)) is None


def test_coverage_is_nearer_95_than_the_t_interval_on_skewed_rows():
    rng, held = np.random.default_rng(2), {True: 0, False: 0}
    for _ in range(2000):
        rows = rng.lognormal(sigma=1.0, size=50)
        for corrected in held:
            low, high = interval.of_mean(rows, skewness_corrected=corrected)
            held[corrected] += low < math.exp(0.5) < high
    assert held[True] > held[False] + 40  # seen: 1868 and 1803 of 2000
    assert held[True] > 2000 * 0.92


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (300, 1000)])
def test_wilsons_ends_are_the_shares_a_score_test_just_rejects(hits, n):
    low, high = (float(end) for end in interval.of_share(np.array(float(hits)), np.array(float(n))))
    for end in (low, high):
        if 0 < end < 1:
            z = (hits / n - end) / math.sqrt(end * (1 - end) / n)
            assert abs(z) == pytest.approx(1.959963984540054)
    assert (low == 0) == (hits == 0)
    assert (high == 1) == (hits == n)


def test_with_few_degrees_of_freedom_skewness_may_lengthen_an_interval_but_not_shorten_it():
    rng = np.random.default_rng(4)
    for n in (5, 20, 21, 60):
        rows = rng.exponential(size=n)
        low, high = interval.of_mean(rows)
        straight = interval.of_mean(rows, skewness_corrected=False)
        assert high > straight[1]
        assert (low == pytest.approx(straight[0], rel=1e-12)) == (n <= interval.FEW)  # n − 1 degrees of freedom


@pytest.mark.parametrize(("hits", "n"), [(0, 30), (4, 100), (50, 100), (47, 100), (80, 100), (100, 100)])
def test_the_entropy_of_two_classes_has_the_entropies_of_all_shares_that_a_score_test_leaves(hits, n):
    low, high = interval.of_two_classes(hits / n, n)
    shares = np.linspace(1e-9, 1 - 1e-9, 200_001)
    left = shares[np.abs(hits / n - shares) / np.sqrt(shares * (1 - shares) / n) < 1.959963984540054]
    entropies = -left * np.log(left) - (1 - left) * np.log1p(-left)
    assert (low, high) == pytest.approx((entropies.min(), entropies.max()), abs=1e-4)
    # Planted fault: the ends of the share's interval alone, as if 1/2 were never between them.
    if hits == 50:
        assert high > max(entropies[0], entropies[-1]) + 1e-3


def test_wilsons_interval_by_students_t_is_a_score_test_by_it():
    low, _ = (float(x) for x in interval.of_share(np.array(interval.as_wilson(40, 6) * 0.3), interval.as_wilson(40, 6)))
    t = float(mpmath.findroot(lambda x: student(x, 6) - mpmath.mpf("0.975"), 2))
    assert (0.3 - low) / math.sqrt(low * (1 - low) / 40) == pytest.approx(t, rel=1e-9)


@pytest.mark.parametrize("shares", [(0.96, 0.04), (0.5, 0.5), (0.7, 0.25, 0.05)])
def test_degrees_of_freedom_by_class_match_the_scatter_of_the_sum_of_squares(shares):
    """The truth by drawing: ν = 2 mean² / variance of Σ r² over many samples of normal rows whose means differ."""
    rng, n = np.random.default_rng(5), 200
    mean, deviation = np.array([0.0, 3.0, -2.0])[: len(shares)], np.array([0.3, 1.0, 0.5])[: len(shares)]
    sums, said = [], []
    for _ in range(4000):
        y = rng.choice(len(shares), size=n, p=shares)
        r = mean[y] + deviation[y] * rng.normal(size=n)
        r -= r.mean()
        rows, first, second = (np.bincount(y, x, minlength=len(shares)) for x in (np.ones(n), r, r * r))
        sums.append(second.sum())
        said.append(freedom_by_class(rows, rows, first, second))
    truth = 2 * np.mean(sums) ** 2 / np.var(sums)
    assert np.median(said) == pytest.approx(truth, rel=0.1)  # the sums' variance is known to 2 or 3 %
    if min(shares) < 0.1:
        assert truth < 0.9 * (n - 1)  # what takes no notice of classes is further off


def test_entropys_interval_holds_the_entropy_of_even_and_uneven_classes():
    """Even classes: the estimate never exceeds the truth and is not normal; the interval must still hold."""
    rng = np.random.default_rng(3)
    from crossent.measure.predictions.predictions import Predictions
    from crossent.measure.tally.tally import Tally
    from crossent.measure.values.means import label_entropy

    for shares in ([0.5, 0.5], [0.1, 0.9], [0.1] * 10, [0.6, 0.2, 0.1, 0.05, 0.05]):
        truth, held, k = -sum(p * math.log(p) for p in shares), 0, len(shares)
        for _ in range(1000):
            y = rng.choice(k, size=300, p=shares)
            rows = Predictions(
                np.full((300, k), 1 / k),
                y,
                list(map(str, range(k))),
                np.arange(300),
                "binary" if k == 2 else "multi-class",
            )
            found = label_entropy(Tally.like(rows).add(rows).evidence())
            assert found.low <= found.value <= found.high
            held += found.low - 1e-12 <= truth <= found.high + 1e-12
        assert held >= 930, shares


@pytest.mark.parametrize("shares", [[1 / 3] * 3, [0.36, 0.33, 0.31], [0.45, 0.3, 0.25], [0.1] * 10])
def test_an_entropy_near_even_classes(shares):
    """At even classes, the end of the range, they miss on one side only."""
    rng = np.random.default_rng(0)
    f, n, k = np.array(shares), 100, len(shares)
    truth, held, spoilt = float(entr(f).sum()), 0, 0
    for _ in range(600):
        q = rng.multinomial(n, f) / n
        q = q[q > 0]
        estimate = float(entr(q).sum())
        error = math.sqrt(max(float(np.sum(q * np.log(q) ** 2)) - estimate**2, 0.0) / n)
        bias = (q.size - 1) / (2 * n)
        low, high = interval.of_entropy(estimate, error, bias, q.size, k)
        assert 0 <= low <= estimate <= high <= math.log(k)
        held += low - 1e-12 <= truth <= high + 1e-12
        low, high = interval.of_entropy(estimate, 0.5 * error, 0.3 * bias, q.size, k)
        spoilt += low - 1e-12 <= truth <= high + 1e-12
    even = max(shares) == min(shares)
    room = 3 * math.sqrt(0.05 * 0.95 / 600)
    assert abs(held / 600 - (0.975 if even else 0.95)) <= room
    assert spoilt / 600 < 0.93  # it can fail


def test_groups_that_make_most_of_the_scatter_are_the_degrees_of_freedom():
    rng = np.random.default_rng(0)
    weight, normal = np.ones(400), rng.normal(size=400)
    few = np.where(np.arange(400) < 4, 1.0, 1e-3) * normal
    for residual, expected in ((normal, 400), (few, 4)):
        found, usual = (clustered(residual, weight, 1.0, differences=way) for way in (True, False))
        assert usual.freedom == pytest.approx(399)
        v = residual / math.sqrt(1 - 1 / 400)
        variance = np.sum(v**4) - np.sum(v**2) ** 2 / 400
        nu = 2 * np.sum(v**2) ** 2 / variance
        assert found.freedom == pytest.approx(min(399, max(nu, 4)), rel=1e-6)
        assert expected / 2 < nu < 2 * expected
        assert found.second * (1 + 1 / found.freedom) == pytest.approx(usual.second * (1 + 1 / usual.freedom))


def test_few_groups_with_a_rare_class_scatter_as_the_model_claims(monkeypatch):
    """Thirty groups of ten rows, of which one or two hold most of the class: by the groups alone skill held 88 %,
    information gained 77, discrimination 78 and uncertainty 82."""
    from crossent.measure.predictions.predictions import Predictions
    from crossent.measure.tally.tally import Tally
    from crossent.measure.values import means

    grid = -4 + 1.5 * ndtri((np.arange(100_000) + 0.5) / 100_000)
    p = expit(grid)
    share, loss = float(p.mean()), float(np.mean(entr(p) + entr(1 - p)))
    entropy = float(entr(share) + entr(1 - share))
    # Calibrated: what is gained is discrimination.
    truth = np.array([loss, 1 - loss / entropy, entropy - loss, entropy - loss, entropy])
    rng = np.random.default_rng(0)
    usual = interval.FEW_HOLD
    held = {0.0: np.zeros(5, int), usual: np.zeros(5, int)}
    for _ in range(150):
        z = np.repeat(rng.normal(-4, 1.5, 30), 10)
        draw = np.where(rng.random(300) < 0.7, np.repeat(rng.random(30), 10), rng.random(300))
        both = np.stack([expit(-z), expit(z)], axis=1)
        y = (draw < expit(z)).astype(np.int64)
        rows = Predictions(both, y, ["0", "1"], np.arange(300), "binary", groups=np.arange(300) // 10)
        tally = Tally.like(rows).add(rows)
        for few in held:
            monkeypatch.setattr(interval, "FEW_HOLD", few)
            of = tally.evidence()
            parts, told = tally.parts()[0], means.likelihood(of, of)
            found = (
                told["cross_entropy"],
                told.get("skill"),
                told["information_gained"].to("nats"),
                parts["discrimination"],
                parts["uncertainty"],
            )
            held[few] += [
                x is None or (x.low is not None and x.low <= t <= x.high) for x, t in zip(found, truth, strict=True)
            ]
    assert np.all(held[0.0][1:] < 0.9 * 150)
    assert held[0.0][0] < held[usual][0]
    assert np.all(held[usual] >= 0.9 * 150)  # 95 % expected, with a deviation of 1.8


def test_claims_are_asked_where_groups_scatter_too_little_and_nowhere_else():
    """Ten groups: none has the class, which the model claims; two have it, and are believed; even classes, too."""
    from crossent.measure.predictions.predictions import Predictions
    from crossent.measure.tally.tally import Tally

    group, p = np.arange(100) // 10, np.full(100, 0.03)
    for y, few, asked in ((group < 0, True, True), (group < 2, True, False), (np.arange(100) % 2 == 0, False, False)):
        rows = Predictions(np.stack([1 - p, p], 1), y.astype(int), ["0", "1"], np.arange(100), "binary", groups=group)
        of = Tally.like(rows).add(rows).evidence()
        assert of.few_hold is few
        # All rows that have no class cost the same, and what is gained scatters as the label does.
        alone, found = (way(1.0, np.array([0.1, 0.0]), of.cross_entropy) for way in (of.spread, of.scatter))
        assert (alone is None or found.second != alone.second) is asked


def test_few_groups_are_no_less_skewed_than_half_of_what_is_claimed(monkeypatch):
    """Ten groups of a model twice too sure: cross-entropy held 91.8 %, nearly all of its misses too low."""
    from crossent.measure.tally.tally import Tally
    from crossent.measure.values import means

    rng = np.random.default_rng(3)
    z = rng.normal(0, 2, 1_000_000)
    truth = float(np.mean(expit(z) * np.logaddexp(0, -2 * z) + expit(-z) * np.logaddexp(0, 2 * z)))
    held, longer = {True: 0, False: 0}, set()
    for _ in range(500):
        z = np.repeat(rng.normal(0, 2, 10), 10)
        draw = np.where(rng.random(100) < 0.7, np.repeat(rng.random(10), 10), rng.random(100))
        p, group = expit(2 * z), np.arange(100) // 10
        rows = Predictions(
            np.stack([1 - p, p], 1), (draw < expit(z)).astype(int), ["0", "1"], group, "binary", groups=group
        )
        of = Tally.like(rows).add(rows).evidence()
        ends = {}
        for now in held:
            with monkeypatch.context() as patch:
                if not now:
                    patch.setattr(Spread, "as_skewed", lambda self, *_: self)
                found = means.cross_entropy(of)
            held[now] += found.low is not None and found.low <= truth <= found.high
            ends[now] = found
        longer.add(ends[True].high > 1.05 * ends[False].high)
    assert longer == {True, False}  # where there are dear mistakes nothing is added
    assert held[True] >= 0.9 * 500  # 93 % are expected, with a deviation of 1.1
    assert held[False] < held[True] - 0.01 * 500


def test_skewness_is_the_mean_of_both_where_the_claimed_one_is_further():
    own = Spread(4.0, 2.0, 10.0, 9.0)  # skewness 2 / 8
    assert own.as_skewed(1.0, 1.0).third == pytest.approx((0.25 + 1) / 2 * 8)
    assert own.as_skewed(9.0, 0.01 * 27).third == 2.0  # claimed to the same side, and less
    assert own.as_skewed(1.0, -1.0).third == pytest.approx((0.25 - 1) / 2 * 8)
    assert own.as_skewed(0.0, 1.0) == own  # nothing is claimed


@pytest.mark.parametrize(("share", "n", "among"), [(0.0, 30, 1), (0.0, 10, 3), (0.003, 30, 1), (0.4, 10, 1)])
def test_an_entropy_with_more_of_a_class_is_the_largest_that_wilson_leaves(share, n, among):
    rest = np.array([0.6, 0.4])
    high = float(interval.of_share(np.array(share * n), np.array(float(n)))[1])
    found = []
    for more in np.linspace(share, high, 20_001):
        shares = np.concatenate([(1 - more) * rest, np.full(among, more / among)])
        found.append(float(entr(shares).sum()))
    said = interval.with_more_of(found[0], share, n, among)
    assert said == pytest.approx(max(found), abs=1e-6)
    assert said > found[0] + 0.05 or share == 0.4  # there is no more to be had where the class is at its peak


def test_the_entropy_of_three_classes_of_which_few_groups_hold_one():
    """Thirty groups of ten rows, one class of 2.6 %: 74 % held, and nearly all of the others were too low."""
    from crossent.measure.tally.tally import Tally
    from crossent.measure.values import means

    rng = np.random.default_rng(0)

    def drawn(groups):
        z = rng.normal(0, 1.5, (groups, 3)) - np.array([0.0, 0.0, 4.0])
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    truth, held = float(entr(drawn(200_000).mean(axis=0)).sum()), 0
    for _ in range(150):
        p = np.repeat(drawn(30), 10, axis=0)
        draw = np.where(rng.random(300) < 0.7, np.repeat(rng.random(30), 10), rng.random(300))
        y = (p.cumsum(axis=1) < draw[:, None]).sum(axis=1).clip(0, 2)
        rows = Predictions(p, y, list("abc"), np.arange(300), "multi-class", groups=np.arange(300) // 10)
        found = means.label_entropy(Tally.like(rows).add(rows).evidence())
        held += found.low <= truth <= found.high
    assert held >= 0.93 * 150


def test_a_class_that_no_group_has_may_cost_what_a_share_of_it_would():
    """Ten groups without the class: the upper end is that of 0 groups in ten, by Wilson, times what the label costs."""
    p = np.full(100, 0.02)
    record = evaluate(p, np.zeros(100, int), group=np.arange(100) // 10, classes=["0", "1"])
    high = float(interval.of_share(np.array(0.0), np.array(10.0))[1])
    more = high * (math.log(1 / 0.02) - math.log(1 / 0.98))
    for name in ("cross_entropy", "miscalibration"):
        found = record[name]
        assert found.high == pytest.approx(found.value + more, rel=1e-9)
    assert more > 1.0  # as the groups alone have it, there is nothing to add


@pytest.mark.parametrize(("one", "few"), [(30, True), (1, False)])
def test_a_group_that_holds_most_of_a_class_tells_no_more_than_one(one, few):
    """Nine groups have the class: one of them nearly all of it, or all equally much."""
    from crossent.measure.predictions.predictions import Predictions
    from crossent.measure.tally.tally import Tally

    group = np.repeat(np.arange(20), 40)
    y = np.zeros(800, np.int64)
    for g in range(9):
        y[40 * g : 40 * g + (one if g == 0 else 1)] = 1
    p = np.full(800, y.mean())
    rows = Predictions(np.stack([1 - p, p], 1), y, ["0", "1"], np.arange(800), "binary", groups=group)
    of = Tally.like(rows).add(rows).evidence()
    assert np.count_nonzero(of.groups.labels()[:, 1]) == 9
    assert of.few_hold is few  # 38² / 908 = 1.6 and 9


def test_what_is_claimed_of_groups_is_a_sum_over_labels():
    """Σ w² Σ_y p_y (t_y − T)² Σ m² / Σ m row by row, where one group has the class."""
    from crossent.measure.predictions.predictions import Predictions
    from crossent.measure.tally.tally import Tally

    rng = np.random.default_rng(1)
    p = rng.uniform(0.01, 0.3, 60)
    group = np.sort(rng.integers(8, size=60))
    y = (np.arange(60) == 17).astype(np.int64)
    rows = Predictions(np.stack([1 - p, p], 1), y, ["0", "1"], np.arange(60), "binary", groups=group)
    of = Tally.like(rows).add(rows).evidence()
    v = np.array([0.1, 3.0])
    zero, one = np.log1p(-p) + v[0], np.log(p) + v[1]
    mean = np.mean(p * one + (1 - p) * zero)
    rowwise = float(np.sum(p * (one - mean) ** 2 + (1 - p) * (zero - mean) ** 2))
    size = np.bincount(group)
    found = of.scatter(-1.0, v, 0.0)
    assert found.second == pytest.approx(rowwise * np.sum(size**2) / 60, rel=1e-12)
    assert found.freedom == np.count_nonzero(size) - 1
    assert of.spread(-1.0, v, 0.0).second < found.second


@pytest.mark.parametrize("classes", [2, 3])
def test_intervals_end_where_the_truth_must(classes):
    """No model gains more than log classes, nor has a skill above 1; few groups would have it so."""
    reached = set()
    for seed in range(12):
        random = np.random.default_rng(seed)
        group = np.repeat(np.arange(30), 6)
        base = np.where(random.random(30) < 0.1, 2.5, -4.5)[group] + 0.5 * random.normal(size=180)
        z = np.stack([np.zeros(180), base, *[base - 1] * (classes - 2)], axis=1)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        y = (random.random(180)[:, None] > p.cumsum(1)[:, :-1]).sum(1)
        y[:classes] = np.arange(classes)
        record = evaluate(p, y, group=group)
        for name, most in (
            ("information_gained", math.log2(classes)),
            ("skill", 1.0),
            ("discrimination", math.log(classes)),
        ):
            high = record[name].high
            assert high is None or record[name].value <= high <= most, (name, seed)
            reached |= {name} if high == most else set()
    assert reached >= {"skill"}  # beyond which it would have gone
