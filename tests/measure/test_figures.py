"""Secondary figures, slices, concentration, bytes, log-probabilities: each by another road."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import top_k_accuracy_score

from crossent.measure import evaluate
from crossent.measure.evaluation import tallied
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.tally.tally import Tally

RNG = np.random.default_rng(0)  # for what all tests share; each draws its own, so that it is the same alone
P = RNG.dirichlet([0.5] * 6, size=900)
Y = (P.cumsum(axis=1) < RNG.random((900, 1))).sum(axis=1)
NAMES = list("abcdef")
CITY = np.array(["Rome", "Oslo", "Lima"], dtype=object)[RNG.integers(3, size=900)]
ROWS = Predictions(P, Y, NAMES, np.arange(900), "multi-class", slices={"city": CITY})
Z = RNG.normal(0, 2, 900)
B = (RNG.random(900) < expit(Z)).astype(np.int64)
BINARY = Predictions(np.stack([expit(-1.7 * Z), expit(1.7 * Z)], 1), B, ["no", "yes"], np.arange(900), "binary")


def test_top_k_is_scikit_learns():
    record = evaluate(ROWS)
    for k in (3, 5):
        assert record[f"top_{k}_accuracy"].value == pytest.approx(top_k_accuracy_score(Y, P, k=k), abs=1e-15)
    assert record["top_3_accuracy"].value != top_k_accuracy_score(Y, P, k=2)
    even = evaluate(Predictions(np.full((6, 6), 1 / 6), np.arange(6), NAMES, np.arange(6), "multi-class"))
    assert even["top_3_accuracy"].value == 0.5  # of equally probable classes the first come first
    assert "top_3_accuracy" not in evaluate(BINARY)


@pytest.mark.parametrize("lies", [np.ascontiguousarray, np.asfortranarray])
def test_the_ece_of_a_class_does_not_hang_on_how_rows_lie_in_memory(lies):
    """With weights, or labels that are shares, it had 0.09 for 0.28 where columns lay behind one another."""
    hit = np.eye(6)[Y]
    bins = np.clip(np.ceil(P * 15), 1, 15)
    truth = [sum(abs(((P - hit) * (bins == j))[:, c].mean()) for j in range(1, 16)) for c in range(6)]
    for labels, weight in ((Y, None), (Y, np.ones(900)), (Y, np.full(900, 2.5)), (hit, None), (hit, np.ones(900))):
        table = evaluate(lies(P), lies(labels), weight=weight, truth="soft" if labels.ndim == 2 else None)
        assert table.tables["per_class"]["ece"] == pytest.approx(truth, abs=1e-12)


def test_ece_by_a_loop_and_smooth_ece_by_its_integral():
    record = evaluate(BINARY)
    p = BINARY.probabilities[:, 1]
    ece = 0.0
    for j in range(15):
        mine = [i for i in range(900) if j / 15 < p[i] <= (j + 1) / 15 or (j == 0 and p[i] == 0)]
        ece += abs(sum(B[i] - p[i] for i in mine)) / 900
    assert record["ece"].value == pytest.approx(ece, abs=1e-12)
    sigma, t = record["smooth_ece"].value, np.linspace(0, 1, 4001)

    def smoothed(width):
        total = np.zeros_like(t)
        for shift in (-2, 0, 2):  # the reflections of the row at 0 and 1
            for centre in (p + shift, -p + shift):
                near = np.exp(-0.5 * ((t[:, None] - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi))
                total += near @ (B - p) / 900
        return np.trapezoid(np.abs(total), t)

    assert smoothed(sigma) == pytest.approx(sigma, abs=2e-3)
    assert smoothed(2 * sigma) != pytest.approx(2 * sigma, abs=2e-2)


SOFT = RNG.dirichlet([0.6] * 6, size=900)
LENGTHS = RNG.integers(1, 40, size=900)
CUT = {"slices": {"city": CITY}, "bytes": LENGTHS}
OF_A_SLICE = (
    "cross_entropy", "label_entropy", "information_gained", "skill", "perplexity", "accuracy", "brier", "bits_per_byte",
)  # fmt: skip


def part(rows, here, **also):
    """Some of the rows by themselves, without slices."""
    cut = {name: None if getattr(rows, name) is None else getattr(rows, name)[here] for name in ("groups", "weights")}
    return Predictions(
        rows.probabilities[here], rows.labels[here], rows.classes, rows.rows[here], rows.task, rows.low, rows.high,
        bytes=rows.bytes[here], **cut, **also,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (replace(ROWS, **CUT), ("top_3_accuracy", "top_5_accuracy")),
        (replace(ROWS, **CUT, weights=RNG.gamma(3.0, size=900)), ("top_3_accuracy",)),
        (replace(BINARY, **CUT), ()),
        (replace(ROWS, **CUT, labels=SOFT), ("top_3_accuracy", "truth_entropy", "kl_divergence")),
    ],
)
def test_a_slice_is_what_its_rows_are_alone(rows, more):
    table = evaluate(rows).tables["slices"]
    assert sorted(table["slice"]) == ["Lima", "Oslo", "Rome"]
    assert sum(table["rows"]) == 900
    assert sum(table["share_of_loss"]) == pytest.approx(1)
    assert table["share_of_loss"] == sorted(table["share_of_loss"], reverse=True)
    for line, city in enumerate(table["slice"]):
        alone = evaluate(part(rows, city == CITY))
        # Of labels that are shares, how cost and label vary together is kept in 64 folds, which tell a width to 9 %.
        room = 1e-9 if not rows.soft else 0.3
        if not rows.soft:
            assert table["label_entropy_bias"][line] == pytest.approx(alone["label_entropy_bias"].value, rel=1e-9)
        for name in (*OF_A_SLICE, *more):
            assert table[name][line] == pytest.approx(alone[name].value, rel=1e-12), name
            if name == "cross_entropy":
                found = table["low"][line], table["high"][line]
            else:
                found = table[f"{name}_low"][line], table[f"{name}_high"][line]
            loose = room if name in ("information_gained", "skill", "label_entropy") else 1e-9
            if name == "label_entropy":  # near even classes, which end at log k: the square of a width tells the length
                loose *= 2
            width = alone[name].high - alone[name].low
            assert found[1] - found[0] == pytest.approx(width, rel=loose), name
        other = evaluate(part(rows, city != CITY))
        assert table["brier"][line] != pytest.approx(other["brier"].value, rel=1e-6)  # it can fail


def test_a_slice_of_a_range_and_of_impossible_rows():
    y = np.random.default_rng(1).random(900)
    record = evaluate(BINARY.probabilities[:, 1], 10 * y, task="range", low=0, high=10, by={"city": CITY})
    table = record.tables["slices"]
    p = BINARY.probabilities[:, 1]
    for line, city in enumerate(table["slice"]):
        here = city == CITY
        assert table["mae"][line] == pytest.approx(10 * np.mean(np.abs(p - y)[here]), rel=1e-12)
        assert table["rmse"][line] == pytest.approx(10 * math.sqrt(np.mean((p - y)[here] ** 2)), rel=1e-12)
        assert table["rmse_low"][line] < table["rmse"][line] < table["rmse_high"][line]
        assert table["information_gained_low"][line] < table["information_gained"][line]
    zero = np.where((CITY == "Oslo") & (B == 1), 0.0, p)
    table = evaluate(zero, B, by={"city": CITY}, floor=1e-3).tables["slices"]
    oslo = table["slice"].index("Oslo")
    assert table["cross_entropy"][oslo] == math.inf
    assert table["low"][oslo] is None
    assert table["cross_entropy_floored"][oslo] == pytest.approx(
        np.mean(-np.log(np.maximum(np.where(B == 1, zero, 1 - zero), 1e-3))[CITY == "Oslo"]), rel=1e-12
    )
    assert table["impossible_rows"] == [int(np.sum((name == CITY) & (B == 1) & (zero == 0))) for name in table["slice"]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "two classes", "soft"])
def test_the_figures_of_a_class_are_those_of_its_rows(kind, weighted):
    rows = replace({"classes": ROWS, "two classes": BINARY, "soft": replace(ROWS, labels=SOFT)}[kind], bytes=LENGTHS)
    w = np.random.default_rng(1).gamma(3.0, size=900) if weighted else np.ones(900)
    rows = replace(rows, weights=w if weighted else None)
    record = evaluate(rows)
    table, p, y = record.tables["per_class"], rows.probabilities, rows.labels
    for c in range(p.shape[1]):
        mass = w * (y[:, c] if kind == "soft" else y == c)
        own = np.eye(p.shape[1])[y] if y.ndim == 1 else y
        cost = -np.log(p[:, c])
        loss, f = np.average(cost, weights=mass), mass.sum() / w.sum()
        squared = (p[:, 1] - own[:, 1]) ** 2 if p.shape[1] == 2 else np.sum((p - own) ** 2, axis=1)
        place = np.argsort(np.argsort(-p, axis=1), axis=1)
        top = place[np.arange(900), own.argmax(axis=1)] < 3
        truth = {
            "cross_entropy": loss, "perplexity": math.exp(loss), "label_entropy": -math.log2(f),
            "information_gained": -math.log2(f) - loss / math.log(2), "skill": 1 + loss / math.log(f),
            "brier": np.average(squared, weights=mass), "recall": np.average(p.argmax(axis=1) == c, weights=mass),
            "bits_per_byte": np.sum(mass * cost) / np.sum(mass * LENGTHS) / math.log(2),
        }  # fmt: skip
        if p.shape[1] > 3:
            truth["top_3_accuracy"] = np.average(top, weights=mass)
        if kind == "soft":
            apart = np.sum(y * np.log(y / p), axis=1)
            truth["kl_divergence"] = np.average(apart, weights=mass)
        for name, value in truth.items():
            assert table[name][c] == pytest.approx(value, rel=1e-10), name
        assert table["brier"][c] != pytest.approx(table["brier"][c - 1], rel=1e-6)  # it can fail
        spread = math.sqrt(np.sum((mass * (cost - loss)) ** 2)) / mass.sum()
        # Nothing but the skewness and Student's t part the two; of half as many rows it would be 1.41.
        assert table["high"][c] - table["low"][c] == pytest.approx(2 * 1.96 * spread, rel=0.25)
        if p.shape[1] > 2:  # one against the rest; of two classes that is all rows
            place, off = np.clip(np.ceil(p[:, c] * 15), 1, 15), w * (p[:, c] - own[:, c])
            ece = sum(abs(np.sum(off[place == b])) for b in range(1, 16)) / w.sum()
            assert table["ece"][c] == pytest.approx(ece, rel=1e-10)
            rest = np.stack([1 - p[:, c], p[:, c]], axis=1)
            came = own[:, c] if kind == "soft" else (y == c).astype(np.int64)
            alone = evaluate(Predictions(rest, came, ["no", "yes"], np.arange(900), "binary", weights=rows.weights))
            assert table["ece"][c] == pytest.approx(alone["ece"].value, rel=1e-10)
            assert table["smooth_ece"][c] == pytest.approx(alone["smooth_ece"].value, abs=2e-3)  # cells 6 % wide
            assert table["ece"][c] != pytest.approx(table["ece"][c - 1], rel=1e-6)  # it can fail
        for name in ("brier", "recall"):
            assert table[f"{name}_low"][c] < table[name][c] < table[f"{name}_high"][c]
    adding_up = (
        ("cross_entropy", "cross_entropy"), ("recall", "accuracy"), ("brier", "brier"),
        ("label_entropy", "label_entropy"), ("label_entropy_bias", "label_entropy_bias"),
    )  # fmt: skip
    for name, whole in adding_up:
        assert np.dot(table["share"], table[name]) == pytest.approx(record[whole].value, rel=1e-12), name


def test_a_class_without_rows_and_one_of_impossible_rows_are_said():
    p = np.array([[0.5, 0.5, 0.0], [0.7, 0.2, 0.1], [0.0, 0.4, 0.6], [0.6, 0.4, 0.0]])
    table = evaluate(p, np.array([0, 1, 0, 1]), classes=["a", "b", "c"]).tables["per_class"]
    assert table["impossible_rows"] == [1, 0, 0]
    assert table["cross_entropy"][0] == math.inf
    assert (table["cross_entropy"][2], table["brier"][2], table["low"][2]) == (None, None, None)
    shares = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0]])
    table = evaluate(p, shares, classes=["a", "b", "c"], truth="soft").tables["per_class"]
    assert (table["cross_entropy"][0], table["kl_divergence"][0], table["kl_divergence"][1]) == (math.inf,) * 3
    assert math.isfinite(table["cross_entropy"][1])
    assert table["impossible_rows"] == [1, 0, 0]


def test_groups_widen_the_intervals_of_classes_too():
    """Rows that are there six times, in groups of their copies: as wide as once, 64 folds and all (9 % each)."""
    which = np.repeat(np.arange(900), 6)
    for one in (
        replace(ROWS, bytes=LENGTHS),
        replace(ROWS, labels=SOFT, bytes=LENGTHS),
        replace(BINARY, bytes=LENGTHS),
    ):
        copies = replace(
            one, probabilities=one.probabilities[which], labels=one.labels[which], rows=np.arange(5400),
            bytes=LENGTHS[which], slices={},
        )  # fmt: skip
        once, grouped, blind = (
            evaluate(rows).tables["per_class"] for rows in (one, replace(copies, groups=which), copies)
        )
        names = [name for name in once if name.endswith("_low")]
        assert len(names) >= 4
        for name in names:
            high = name.removesuffix("_low") + "_high"
            width = [np.array(table[high]) - np.array(table[name]) for table in (once, grouped, blind)]
            assert np.all(width[1] > 0.6 * width[0]), name
            assert np.all(width[1] < 1.6 * width[0]), name
            if not name.startswith(("miscalibration", "discrimination")):
                assert np.all(width[2] < 0.5 * width[0]), name  # it can fail: √6


def test_groups_widen_the_intervals_of_slices_too():
    which = np.repeat(np.arange(900), 6)
    rows = replace(
        BINARY, probabilities=BINARY.probabilities[which], labels=B[which], rows=np.arange(5400), groups=which,
        slices={"city": CITY[which]},
    )  # fmt: skip
    widths = []
    for one in (rows, replace(rows, groups=None)):
        table = evaluate(one).tables["slices"]
        widths.append(np.array(table["high"]) - np.array(table["low"]))
    assert np.all(widths[0] > 1.5 * widths[1])  # √6 is expected


def test_concentration_is_the_sorted_cost():
    record = evaluate(BINARY)
    curve = record.curves["concentration"]
    cost = np.sort(-np.log(np.where(B == 1, BINARY.probabilities[:, 1], BINARY.probabilities[:, 0])))[::-1]
    exact = np.interp(curve.x, np.arange(901) / 900, np.concatenate([[0], np.cumsum(cost) / cost.sum()]))
    assert np.max(np.abs(exact - np.array(curve.y))) < 1e-3
    assert (curve.x[0], curve.y[0]) == (0, 0)
    assert (curve.x[-1], curve.y[-1]) == (pytest.approx(1), pytest.approx(1))
    assert np.interp(0.2, curve.x, curve.y) > 0.4  # not the diagonal


def test_concentration_counts_impossible_rows_at_the_floor():
    p = np.array([0.0] * 10 + [0.5] * 90)
    record = evaluate(np.stack([1 - p, p], 1), np.ones(100, int), floor=1e-3)
    curve = record.curves["concentration"]
    lost = 10 * math.log(1000)
    assert np.interp(0.1, curve.x, curve.y) == pytest.approx(lost / (lost + 90 * math.log(2)), abs=1e-9)


def test_log_probabilities_do_not_underflow():
    logs = np.array([[-1e-30, -800.0], [-2.0, math.log1p(-math.exp(-2))]] * 60)
    labels = np.array([1, 0] * 60)
    rows = Predictions(np.exp(logs), labels, ["0", "1"], np.arange(120), "binary", log_probabilities=logs)
    record = evaluate(rows)
    assert record["cross_entropy"].value == pytest.approx(401)
    assert record["impossible_rows"].value == 0
    assert evaluate(replace(rows, log_probabilities=None))["impossible_rows"].value == 60  # exp(-800) is 0


def test_bits_per_byte_is_a_ratio_of_sums():
    rows = replace(BINARY, bytes=np.random.default_rng(1).integers(1, 40, size=900))
    cost = -np.log(np.where(B == 1, BINARY.probabilities[:, 1], BINARY.probabilities[:, 0]))
    found = evaluate(rows)["bits_per_byte"]
    assert found.value == pytest.approx(cost.sum() / rows.bytes.sum() / math.log(2), rel=1e-12)
    drawn = [np.random.default_rng(i).integers(900, size=900) for i in range(2000)]
    resampled = [cost[i].sum() / rows.bytes[i].sum() / math.log(2) for i in drawn]
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(resampled), rel=0.1)
    assert "bits_per_byte" not in evaluate(BINARY)


def test_documents_are_measured_by_bytes_and_by_nothing_that_needs_classes():
    rng = np.random.default_rng(1)
    logs = np.stack([np.full(50, -np.inf), rng.normal(-300, 50, size=50)], 1)
    rows = Predictions(
        np.exp(logs), np.ones(50, np.int64), [], np.arange(50), "text",
        log_probabilities=logs, bytes=rng.integers(300, 400, size=50), groups=np.arange(50) // 2,
    )  # fmt: skip
    record = evaluate(rows)
    assert record["bits_per_byte"].value == pytest.approx(-logs[:, 1].sum() / rows.bytes.sum() / math.log(2))
    assert record["bits_per_byte"].low < record["bits_per_byte"].value < record["bits_per_byte"].high
    assert "accuracy" not in record
    assert "miscalibration" not in record
    assert list(record.tables["costliest"]) == ["row", "cross_entropy"]


def test_the_curves_hold_the_model_and_its_null_band():
    record = evaluate(BINARY)
    curve, null = record.curves["recalibrated"], record.curves["reliability_null"]
    assert np.all(np.diff(curve.y) >= 0)
    assert null.x == null.y == curve.x
    calibrated = evaluate(Predictions(np.stack([expit(-Z), expit(Z)], 1), B, ["no", "yes"], np.arange(900), "binary"))
    outside = [
        np.mean([not a <= y <= b for a, y, b in zip(low.low, at.y, low.high, strict=True)])
        for at, low in (
            (calibrated.curves["recalibrated"], calibrated.curves["reliability_null"]),
            (curve, null),
        )
    ]
    assert outside[0] < 0.2 < outside[1]


def test_batches_in_two_threads_are_what_one_batch_is():
    pieces = [
        Predictions(P[i : i + 100], Y[i : i + 100], NAMES, np.arange(i, i + 100), "multi-class")
        for i in range(0, 900, 100)
    ]
    tally, first, _ = tallied(iter(pieces))
    whole = Tally.like(ROWS, capacity=900).add(replace(ROWS, slices={}))
    assert tally.rows == 900
    assert first is pieces[0]
    for name, number in whole.value().items():
        assert tally.value()[name].value == pytest.approx(number.value, abs=1e-12), name
    assert evaluate(iter(pieces)).numbers == evaluate(iter(pieces)).numbers


def test_weight_group_and_by_are_values_for_arrays():
    p = BINARY.probabilities
    record = evaluate(
        p, np.array(["no", "yes"])[B], classes=["no", "yes"], weight=np.random.default_rng(1).random(900) + 0.5,
        group=np.arange(900) // 3, by={"city": CITY},
    )  # fmt: skip
    assert record.facts["groups"] == 300
    assert set(record.tables["slices"]["slice"]) == {"Rome", "Oslo", "Lima"}
    assert record["cross_entropy"].value != evaluate(BINARY)["cross_entropy"].value
