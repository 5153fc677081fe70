"""The guard: what helps is found and what does not is left alone, whatever the rows, the zeros, the groups."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, softmax

import crossent
from crossent import DataError
from crossent.measure.calibration import choose
from crossent.measure.calibration.families import Family
from crossent.measure.calibration.rows import log_softmax
from crossent.measure.calibration.steps import Affine, Mixture
from crossent.measure.predictions.predictions import Predictions
from crossent.measure.sums.likelihood import costs_of_logs
from tests.measure.test_calibration_families import sample


def test_logits_that_are_given_for_probabilities_are_sent_where_they_belong():
    z, y = sample(400, 3)
    found = crossent.calibrate(3 * z, y, form="logits")
    assert len(repr(found)) < 200  # and not every number of it
    with pytest.raises(DataError, match=r"these are logits, of which of_logits"):
        found(3 * z)
    with pytest.raises(DataError, match=r"these are log-probabilities, of which of_logits"):
        found(log_softmax(3 * z))
    fresh = 3 * sample(100, 3, seed=1)[0]  # rows that were fitted to may stand on a step of Venn–Abers
    assert np.exp(found.of_logits(fresh)) == pytest.approx(found(softmax(fresh, axis=1)), abs=1e-12)


FEW = ["temperature", "temperature and bias"]


def test_overconfident_probabilities_are_softened():
    for seed in range(3):
        z, y = sample(300, 3, seed, sharpened=3.0)
        found = crossent.calibrate(z, y, form="logits")
        assert found.kind != "none"
        table = found.choice.table
        assert table["name"][table["chosen"].index(True)] == found.kind
        assert min(table["cross_entropy"]) < table["cross_entropy"][0]
        fresh, truth = sample(4000, 3, seed + 100, sharpened=3.0)
        before, after = (costs_of_logs(logs, truth).mean() for logs in (log_softmax(fresh), found.of_logits(fresh)))
        assert after < before - 0.1


def test_calibrated_probabilities_are_left_alone():
    """20 calibrated models of 400 rows, four candidates each: at most one in forty should be touched.

    Seen: 0. Had the cheapest been taken without an interval, more would be, as the last line shows.
    """
    touched, lucky, harm = 0, 0, []
    for seed in range(20):
        z, y = sample(400, 2, seed, sharpened=1.0)
        found = crossent.calibrate(z, y, form="logits", families=[*FEW, "beta", "quadratic"])
        touched += found.kind != "none"
        lucky += min(found.choice.table["cross_entropy"][1:]) < found.choice.table["cross_entropy"][0]
        fresh, truth = sample(1000, 2, seed + 100, sharpened=1.0)
        harm.append((costs_of_logs(found.of_logits(fresh), truth) - costs_of_logs(log_softmax(fresh), truth)).mean())
    assert touched <= 2
    assert max(harm) < 0.02
    assert lucky >= 3


def test_intervals_are_wider_for_more_candidates():
    z, y = sample(300, 2, 1, sharpened=1.5)
    alone = crossent.calibrate(z, y, form="logits", families=["temperature"]).choice.table
    several = crossent.calibrate(z, y, form="logits", families=[*FEW, "beta"]).choice.table
    assert several["low"][1] < alone["low"][1] < alone["high"][1] < several["high"][1]
    assert several["cross_entropy"][1] == alone["cross_entropy"][1]


def test_a_family_that_would_only_have_learnt_its_own_rows_by_heart_does_not_win():
    """A planted candidate that knows its rows: perfect on those it was fitted to, worse than nothing on others."""

    def by_heart(rows):
        seen = {row.tobytes(): int(label) for row, label in zip(rows.z, rows.y, strict=True)}

        class Heart:
            def __call__(self, z):
                hits = np.array([seen.get(row.tobytes(), 0) for row in z])
                return np.log(np.where(np.arange(z.shape[1]) == hits[:, None], 0.98, 0.02 / (z.shape[1] - 1)))

        return (Heart(),)

    z, y = sample(300, 3, 0, sharpened=1.0)
    found = choose(z, y, candidates=[Family("by heart", by_heart)])
    assert found.kind == "none"
    assert found.choice.table["low"][1] > 0


def test_what_surely_wins_goes_before_what_wins_more_by_a_few_rows():
    """Planted: one candidate mends ten costly rows of 400, the other makes all others surer, which are right."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    given = np.where(np.arange(400) < 10, 0.001, rng.uniform(0.58, 0.62, 400))
    z = np.log(np.where(np.arange(2) == y[:, None], given[:, None], 1 - given[:, None]))

    def lost(z):
        return z.min(1, keepdims=True) < np.log(0.01)

    few = Family("few", lambda rows: (lambda z: np.where(lost(z), np.log(0.5), z),))
    many = Family("many", lambda rows: (lambda z: np.where(lost(z), z, log_softmax(2 * z)),))
    found = choose(z, y, candidates=[few, many])
    table = found.choice.table
    assert table["cross_entropy"][1] < table["cross_entropy"][2]
    assert table["high"][2] < table["high"][1] < 0
    assert found.kind == "many"


def test_a_family_that_gives_zero_to_a_label_is_out():
    never = Family("never", lambda rows: (Affine(1.0, (0.0, 0.0, -np.inf)),))
    z, y = sample(300, 3, 0, sharpened=3.0)
    found = choose(z, y, candidates=[never])
    assert found.kind == "none"
    assert found.choice.left_out == {"never": "it gave a probability of 0 to a label that came"}


def test_a_known_shift_and_a_known_scale_are_found(real):
    """Two classes' logits shifted by a constant, all divided by five: the same model either way."""
    folder = real / "logits"
    plain, shifted, scaled = (np.load(folder / f"resnet50_cifar10_{part}_logits.npy").astype(float)[:2000]
                              for part in ("tst", "tst_sh", "tst_sc"))  # fmt: skip
    y = np.load(folder / "resnet50_cifar10_tst_labels.npy").ravel().astype(int)[:2000]
    shift = np.median(shifted - plain, axis=0)
    scale = np.median(plain / scaled)
    assert np.abs(shifted - plain - shift).max() < 1e-3
    assert (np.abs(shift) > 0.5).any()
    assert abs(scale - 1) > 0.5
    a, b, c = (crossent.calibrate(z, y, form="logits", families=FEW[1:]) for z in (plain, shifted, scaled))
    first, second, third = (one.steps[0] for one in (a, b, c))
    assert isinstance(first, Mixture)
    assert second.temperature == pytest.approx(first.temperature, rel=0.02)
    assert third.temperature * scale == pytest.approx(first.temperature, rel=0.02)
    off = np.array(second.bias) - np.array(first.bias)
    undone = -shift / first.temperature
    # Biases mean the same up to a constant; the ridge, one row of 2000, holds them back a little.
    assert off - off.mean() == pytest.approx(undone - undone.mean(), abs=0.05)
    assert np.abs(undone - undone.mean()).max() > 0.3  # the comparison can fail
    losses = [costs_of_logs(one.of_logits(z), y).mean() for one, z in ((a, plain), (b, shifted), (c, scaled))]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=0.002)


def test_zeros_that_no_label_met_stay_and_others_are_moved():
    z, y = sample(600, 3, 0, sharpened=3.0)
    p = softmax(z, axis=1)
    p[np.arange(600), (y + 1) % 3] = 0
    p /= p.sum(axis=1, keepdims=True)
    found = crossent.calibrate(p, y)
    assert (found.kind, found.zeros) != ("none", "moved")
    assert (found(p)[p == 0] == 0).all()
    assert "stay 0" in found.choice.notes[0]

    p[:3] = np.eye(3)[(y[:3] + 1) % 3]
    found = crossent.calibrate(p, y)
    assert found.zeros == "moved"
    assert found.kind != "none"
    assert found.choice.table["cross_entropy"][0] == np.inf
    assert "3 of 600 labels had probability 0" in found.choice.notes[0]
    assert "(floored)" in found.choice.sentence
    assert found(p).min() > 0


def test_impossible_rows_buy_a_candidate_no_more_than_the_floor():
    """Right but for three impossible rows: moving zeros gains at most log(p / floor) on each, and no more counts."""
    z, y = sample(2000, 3, 0, sharpened=1.0)
    p = softmax(z, axis=1)
    p[:3] = np.eye(3)[(y[:3] + 1) % 3]
    found = crossent.calibrate(p, y, families=FEW[:1])
    floored = costs_of_logs(np.log(np.maximum(p, 1e-6)), y).mean()
    gained = floored - found.choice.table["cross_entropy"][1]
    assert 0 < gained < 3 * np.log(1e6) / 2000


def test_rows_with_one_possible_class_are_left_out_of_the_fit_and_stay():
    z, y = sample(400, 2, 0, sharpened=3.0)
    p = softmax(z, axis=1)
    sure = np.eye(2)[np.arange(400) % 2]
    with_sure = crossent.calibrate(np.vstack([p, sure]), np.append(y, np.arange(400) % 2), families=["beta"])
    alone = crossent.calibrate(p, y, families=["beta"])
    assert with_sure.kind == alone.kind == "beta"
    assert with_sure.steps == alone.steps
    assert (with_sure(sure) == sure).all()


def test_clusters_make_the_judgement_as_wide_as_it_should_be():
    """The same rows twenty times are no new evidence: with groups, no more is found than in the rows."""
    z, y = sample(60, 2, 2, sharpened=1.4)
    once = crossent.calibrate(z, y, form="logits", families=["temperature"]).choice.table
    many_z, many_y = np.tile(z, (20, 1)), np.tile(y, 20)
    groups = np.tile(np.arange(60), 20)
    grouped = crossent.calibrate(many_z, many_y, form="logits", families=["temperature"], group=groups).choice.table
    blind = crossent.calibrate(many_z, many_y, form="logits", families=["temperature"]).choice.table
    width = [one["high"][1] - one["low"][1] for one in (once, grouped, blind)]
    assert width[1] == pytest.approx(width[0], rel=0.5)
    assert width[2] < 0.4 * width[0]
    assert grouped["chosen"][0]
    assert not blind["chosen"][0]  # the comparison can fail: taken for 1200 rows, they would say too much


def test_rows_of_one_group_are_never_on_both_sides():
    seen = []

    def watch(rows):
        seen.append(set(np.round(rows.z[:, 1], 9)))
        return (Mixture(1.0, (), (0.9, 0.0, 0.1)),)

    z, y = sample(100, 2)
    groups = np.repeat(np.arange(10), 10)
    choose(z, y, groups=groups, candidates=[Family("watch", watch)])
    log_p = np.round(log_softmax(z)[:, 1], 9)
    for others in seen[:5]:
        inside = np.array([value in others for value in log_p]).reshape(10, 10)
        assert (inside.all(axis=1) | ~inside.any(axis=1)).all()
        assert inside.any()
        assert not inside.all()


def test_weights_of_any_unit_and_rows_of_weight_zero():
    z, y = sample(500, 3, 0, sharpened=2.5)
    w = np.random.default_rng(0).uniform(0.5, 2.0, 500)
    found, other = (crossent.calibrate(z, y, form="logits", weight=unit * w) for unit in (1.0, 1000.0))
    assert other.kind == found.kind != "none"
    assert other.of_logits(z) == pytest.approx(found.of_logits(z), abs=1e-6)
    assert "counts every row once" in found.choice.left_out["structured vector"]
    assert "counts every row once" in found.choice.left_out["Venn–Abers"]
    w[250:] = 0
    half = crossent.calibrate(z, y, form="logits", weight=w)
    same = crossent.calibrate(z[:250], y[:250], form="logits", weight=w[:250])
    assert (half.rows, half.steps) == (250, same.steps)
    assert half.steps != found.steps


def test_soft_labels_and_fractions_of_a_range():
    z, _ = sample(500, 3, 0, sharpened=3.0)
    shares = softmax(z / 3, axis=1)
    found = crossent.calibrate(z, shares, form="logits", truth="soft")
    assert found.kind in (*FEW, "ensemble temperature")
    assert found.steps[0].temperature == pytest.approx(3.0, rel=0.1)
    assert "shares of classes" in found.choice.left_out["structured matrix"]
    assert "shares of classes" in found.choice.left_out["Venn–Abers"]

    rng = np.random.default_rng(0)
    odds = rng.normal(size=400)
    came = expit(odds + rng.normal(0, 0.1, 400))
    found = crossent.calibrate(expit(3 * odds), came, task="range")
    assert found.kind != "none"
    assert np.abs(found(expit(3 * odds)) - expit(odds)).max() < 0.05


def test_the_same_seed_gives_the_same_answer_and_folds_are_not_tied_to_its_numbers():
    z, y = sample(200, 2, 5, sharpened=1.5)
    one, two = (crossent.calibrate(z, y, form="logits", families=FEW) for _ in range(2))
    assert one == two
    assert crossent.calibrate(z, y, form="logits", families=FEW, seed=1).choice.table != one.choice.table
    # numpy draws p and a permutation from the same bits: with seed 0 on both sides folds would be sorted by p.
    p = np.random.default_rng(0).uniform(size=500)
    tied = np.random.default_rng(0).permutation(500) % 5
    from crossent.measure.calibration.choice import _folds

    apart = [abs(np.corrcoef(p, fold == 4)[0, 1]) for fold in (tied, _folds(500, None, 0))]
    assert apart[1] < 0.12


@pytest.mark.parametrize("rows", [1, 4, 25])
def test_a_handful_of_rows_calibrates_nothing(rows):
    z, y = sample(rows, 3, 0, sharpened=10.0)
    found = choose(z, y)
    assert (found.kind, found.steps) == ("none", ())
    assert found.choice.table["chosen"] == [True]
    assert ("too few to judge" in found.choice.sentence) is (rows > 1)
    z, y = sample(60, 3, 0, sharpened=10.0)
    assert choose(z, y).kind != "none"


def test_what_cannot_be_judged_is_not_changed_and_said():
    z, _ = sample(50, 2)
    found = choose(z, np.zeros(50, np.int64))
    assert found.kind == "none"
    assert "all 50 labels are the same class" in found.choice.sentence
    z, y = sample(50, 2, sharpened=5.0)
    rare = (np.arange(50) < 7).astype(np.int64)
    assert "7 of 50 rows have another label than the commonest" in choose(z, rare).choice.sentence
    # Twenty-five rows of the rarer class, and all in five of ten groups: five independent events, not twenty-five.
    halves, groups = (np.arange(50) < 25).astype(np.int64), np.arange(50) // 5
    assert "5 of 10 groups have another label" in choose(z, halves, groups=groups).choice.sentence
    assert "all rows are of one group" in choose(z, y, groups=np.zeros(50)).choice.sentence


def test_a_class_that_never_came_and_absent_classes_in_folds_are_borne():
    z, y = sample(400, 5, 2, sharpened=3.0)
    keep = y < 4
    keep[np.flatnonzero(y == 3)[2:]] = False  # class 4 never came, class 3 twice
    found = choose(z[keep], y[keep])
    assert found.kind != "none"
    assert np.exp(found.of_logits(z)).sum(axis=1) == pytest.approx(np.ones(400), abs=1e-12)


def test_without_the_extra_structured_scaling_is_left_out_and_said(monkeypatch):
    found_by = importlib.import_module

    def absent(name, *arguments):
        if name.startswith("probmetrics"):
            raise ModuleNotFoundError("No module named 'probmetrics'", name="probmetrics")
        return found_by(name, *arguments)

    z, y = sample(300, 3, 0, sharpened=3.0)
    monkeypatch.setattr(importlib, "import_module", absent)
    found = crossent.calibrate(z, y, form="logits")
    assert found.kind in (*FEW, "ensemble temperature", "Venn–Abers")
    assert "pip install 'crossent[calibrate]'" in found.choice.left_out["structured vector"]
    assert "crossent[calibrate]" in found.choice.left_out["structured matrix"]
    assert found.choice.absent[0].startswith("Left out: structured vector, structured matrix. Structured scaling needs")


def test_candidates_with_more_numbers_than_rows_are_left_out():
    z, y = sample(100, 12, 0)
    left = choose(z, y).choice.left_out
    assert left["structured matrix"] == "its 156 numbers are more than the 100 rows"
    assert left["Venn–Abers"] == "it has one curve for each pair of classes, and 12 classes have 66"


@pytest.mark.parametrize(
    ("arguments", "how", "sentence"),
    [
        (([0.2, 0.3],), {}, "calibrate needs labels"),
        (([0.2, np.nan], [0, 1]), {}, "row 1"),
        (([0.2, 1.3], [0, 1]), {}, "does not: row 1"),
        (([0.2, 0.3], [0]), {}, "2 rows of probabilities and 1 labels"),
        (([[0.5, 0.2]], [0]), {}, "add up to"),
        (([0.2, 0.3], [0, 1]), {"families": ["spline"]}, "no family of calibrators 'spline'"),
        (([0.2, 0.3], [0, 1]), {"weight": [1.0, -1.0]}, "row 1"),
        (([0.2, 0.3], [0, 1]), {"weight": [0.0, 0.0]}, "."),
        (([], []), {}, "no rows"),
        (("absent.parquet",), {}, "there is no file"),
        (("valid.parquet", [0, 1]), {}, "label=, not labels="),
        (([0.2, 0.3], [0, 1]), {"label": "y"}, "name columns of a file"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, how, sentence):
    with pytest.raises(DataError, match=sentence) as refused:
        crossent.calibrate(*arguments, **how)
    assert str(refused.value).rstrip().endswith((".", "?", "'"))


def test_rows_that_are_read_already_are_taken_as_they_are():
    z, y = sample(300, 2, 0, sharpened=3.0)
    p = softmax(z, axis=1)[:, 1]
    rows = Predictions.from_arrays(p, y)
    assert crossent.calibrate(rows, families=FEW) == crossent.calibrate(p, y, families=FEW)
    assert crossent.calibrate(rows, families=FEW).classes == ("0", "1")


def test_files_in_parts_are_one_and_rows_of_several_splits_are_chosen_by_name(tmp_path):
    z, y = sample(300, 2, 0, sharpened=3.0)
    p, split = softmax(z, axis=1), np.where(np.arange(300) % 3 == 0, "test", "held out")
    table = pa.table({"y": y, "p_0": p[:, 0], "p_1": p[:, 1], "game": np.arange(300) // 2, "w": 1.0 + np.arange(300)})
    parts = [tmp_path / f"{name}.parquet" for name in ("a", "b")]
    for part, rows in zip(parts, (slice(0, 200), slice(200, 300)), strict=True):
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), part)
    how = {"families": FEW}
    whole = crossent.calibrate(p, y, weight=table["w"], group=table["game"].to_numpy(), **how)
    for named in (parts, str(tmp_path), str(tmp_path / "?.parquet")):
        assert crossent.calibrate(named, label="y", weight="w", group="game", **how) == whole
    assert crossent.calibrate(p, y, **how) != whole  # weights and groups do count

    pq.write_table(table.append_column("split", pa.array(split)), tmp_path / "both.parquet")
    with pytest.raises(DataError, match=r"of the splits held out, test, .* named, with split="):
        crossent.calibrate(tmp_path / "both.parquet", label="y", **how)
    chosen = crossent.calibrate(tmp_path / "both.parquet", label="y", split="held out", **how)
    assert chosen == crossent.calibrate(p[split == "held out"], y[split == "held out"], **how)
    pq.write_table(table.append_column("split", pa.array(["validation"] * 300)), tmp_path / "one.parquet")
    assert crossent.calibrate(tmp_path / "one.parquet", label="y", **how).rows == 300


def test_what_was_seen_of_the_rows_is_said():
    z, y = sample(300, 3, 0, sharpened=3.0)
    weight = np.append(np.ones(299), 0.0)
    notes = crossent.calibrate(z, y, weight=weight, families=FEW[:1]).choice.notes
    assert [note.split(":")[0] for note in notes] == [
        "The numbers were taken for logits", "Some rows have weight 0 and count for nothing.",
    ]  # fmt: skip


def test_nothing_real_is_made_worse(real):
    """Halves of small parts of every set of real predictions, each calibrated by the other; the whole of them is the
    business of benchmarks/calibration.py."""
    place = Path(__file__).resolve().parents[2] / "benchmarks" / "calibration.py"
    spec = importlib.util.spec_from_file_location("calibration_benchmark", place)
    bench = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = bench  # dataclasses look their module up
    spec.loader.exec_module(bench)
    seen, helped = 0, 0
    for one in bench.sets(real):
        found = bench.measured(one, "guarded", rows=600)
        assert found.change.value <= (found.change.error or 1e-12), found.set
        seen += 1
        helped += found.change.value < 0
    assert seen == 17
    assert helped >= 6
