"""Losses compared: trained alike, judged alike, told apart only where the data can, and log loss is cross-entropy."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import log_loss

import crossent
from crossent import cli
from crossent.cli.contest import way
from crossent.errors import DataError
from crossent.minimise.contest.contest import compare_losses
from crossent.minimise.contest.steepness import steepness
from crossent.minimise.data.task import Task
from crossent.minimise.objective.objective import Objective
from crossent.report import contest, html, show

TINY = ["members=1", "folds=2", "width=8", "epochs=6"]
EPSILON = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def iris():
    said = []
    losses = "nll,focal(0),smoothed(0.1),hinge,fraction"
    record = compare_losses("iris", losses=losses, seeds=2, settings=TINY, said=said.append, command="again")
    return record, said


@pytest.fixture(scope="module")
def in_a_range():
    x = np.random.default_rng(3).normal(size=(120, 2))
    y = np.clip(np.round(5 + 2 * x[:, 0] + np.random.default_rng(4).normal(size=120)), 0, 10)
    return compare_losses(
        x, y, losses="mse,fraction,mae,hlgauss(10),ordinal,twohot(5)", limits=(0, 10), seeds=2, settings=TINY
    )


def lines(record, figure, measure):
    return {line["loss"]: line for line in contest.differences(record, figure, measure)}


def test_every_loss_has_its_row_and_what_it_learns(iris):
    record, said = iris
    table = record.tables["losses"]
    rows = {name: {key: column[i] for key, column in table.items()} for i, name in enumerate(table["loss"])}
    assert set(rows) == {"nll", "focal(0)", "smoothed(0.1)", "hinge", "fraction"}
    assert (rows["nll"]["proper"], rows["nll"]["minimiser"]) == (True, "q")
    assert (rows["smoothed(0.1)"]["proper"], rows["smoothed(0.1)"]["inverse"]) == (False, "(p - ε / K) / (1 - ε)")
    assert "no inverse link" in rows["hinge"]["inverse"]
    assert rows["fraction"]["trouble"] == "fraction is a code of a number in a range, and the target has classes."
    assert rows["fraction"]["fair_cross_entropy"] is None
    assert any(sentence.startswith("fraction is left out") for sentence in said)
    able = [cost for cost in table["fair_cross_entropy"] if cost is not None]
    assert able == sorted(able)
    assert record["cross_entropy"].value == pytest.approx(rows["nll"]["fair_cross_entropy"], rel=1e-14)
    assert record.facts["baseline"] == "nll"
    assert record.facts["seeds"] == 2
    assert "calibration" not in record.facts["recipe"]


def test_a_loss_that_is_the_nll_in_other_words_is_the_same_and_another_is_not(iris):
    """Focal loss with γ = 0 is the NLL: trained from the same seeds it must give the same network, to the last bits of
    kernels that add in another order; that is the control on all that is said to be alike."""
    record, _ = iris
    for figure in ("fair", "raw"):
        for measure in ("cross_entropy", "accuracy", "brier"):
            told = lines(record, figure, measure)
            # Six epochs of steps carry a rounding of 6e-8 to some 1e-5 at most; another loss moves it further.
            assert abs(told["focal(0)"]["difference"]) < 1e-4
    assert abs(lines(record, "raw", "cross_entropy")["smoothed(0.1)"]["difference"]) > 5e-4


def test_differences_are_those_of_the_means_and_intervals_hold_them(iris, in_a_range):
    for record in (iris[0], in_a_range):
        table = record.tables["losses"]
        first = table["loss"].index(record.facts["baseline"])
        told = record.tables["differences"]
        assert set(told["figure"]) == {"fair", "raw"}
        for i, measure in enumerate(told["measure"]):
            column = "seconds" if measure == "seconds" else f"{told['figure'][i]}_{measure}"
            values = table[column]
            expected = values[table["loss"].index(told["loss"][i])] - values[first]
            assert told["difference"][i] == pytest.approx(expected, rel=1e-9, abs=1e-12)  # float64, sums of few rows
            if told["low"][i] is not None:
                assert told["low"][i] <= told["difference"][i] <= told["high"][i]


def test_a_range_is_compared_by_its_codes(in_a_range):
    record = in_a_range
    assert record.facts["baseline"] == "fraction"
    about = dict(zip(record.tables["losses"]["loss"], record.tables["losses"]["proper"], strict=True))
    proper = {"fraction", "mse", "ordinal", "twohot(5)"}
    assert about == {name: name in proper for name in (*proper, "mae", "hlgauss(10)")}
    for measure in ("cross_entropy", "mae", "rmse"):
        assert set(lines(record, "fair", measure)) == set(about) - {"fraction"}
    scores = dict(zip(record.tables["losses"]["loss"], record.tables["losses"]["fair_log_score"], strict=True))
    assert {name for name, score in scores.items() if score is not None} == {"hlgauss(10)", "ordinal"}
    assert record["mae"].value <= record["rmse"].value < 5


def test_what_is_known_of_codes_is_known_of_all():
    from crossent.minimise.contest.contest import _OF_CODE
    from crossent.minimise.objective.objective import _codes

    assert set(_OF_CODE) == set(_codes(Task("range", (), "", 0.0, 1.0)))


def test_what_cannot_be_compared_is_said_in_a_sentence():
    with pytest.raises(DataError, match="did you mean 'focal'"):
        compare_losses("iris", losses="nll,focall(2)", settings=TINY)
    with pytest.raises(DataError, match="two losses or more; got nll"):
        compare_losses("iris", losses="nll", settings=TINY)
    with pytest.raises(DataError, match="brier is to be compared with itself"):
        compare_losses("iris", losses="brier,nll,brier", settings=TINY)
    with pytest.raises(
        DataError, match=r"two losses, and 1 fits this task\. mse: mse is a code of a number in a range"
    ):
        compare_losses("iris", losses="nll,mse", settings=TINY)
    with pytest.raises(DataError, match="--seeds is for losses"):
        way(None, 3)
    with pytest.raises(DataError, match="--folds is for losses"):
        way(None, None, 3)


def test_a_training_that_fails_is_a_row_and_not_the_end(monkeypatch):
    from crossent.minimise.contest import ground

    def broken(problem, recipe, *rest, **more):
        if recipe.loss == "brier":
            raise DataError("the training loss was never finite: a sentence.")
        return learn(problem, recipe, *rest, **more)

    learn = ground.learn
    monkeypatch.setattr(ground, "learn", broken)
    record = compare_losses("iris", losses=["brier", "nll", "hinge"], seeds=1, settings=TINY)
    table = record.tables["losses"]
    assert table["loss"][-1] == "brier"
    assert table["trouble"][-1] == "the training loss was never finite: a sentence."
    assert set(lines(record, "fair", "cross_entropy")) == {"hinge"}
    assert "one seed nothing is known" in record.facts["notes"][0]
    assert record.facts["covers"] == "test rows alone"


def test_one_temperature_mends_what_is_only_too_flat():
    """Logits three times too small cost the raw figure and not the fair one: the planted fault that fairness is for."""
    from crossent.measure.calibration.rows import rows_of
    from crossent.measure.calibration.scaling import fit_scaling

    generator = np.random.default_rng(0)
    z = 3 * generator.normal(size=(4000, 3))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (p.cumsum(1) < generator.uniform(size=(4000, 1))).sum(1).clip(max=2)
    right, flat = (rows_of(scale * z, y) for scale in (1, 1 / 3))
    mended = flat.costs(fit_scaling(flat, "temperature").of_logits(flat.z)).mean()
    assert flat.costs(flat.z).mean() > right.costs(right.z).mean() + 0.1
    assert mended == pytest.approx(right.costs(right.z).mean(), abs=0.002)  # one parameter of 4,000 rows: 1 / 8,000


def test_folds_test_every_row_once_a_seed_by_networks_that_have_not_seen_it(monkeypatch):
    from crossent.minimise.contest import ground

    taught = []

    def spy(problem, recipe, seed, **more):
        taught.append((seed, recipe.loss, problem.x[:, 0]))
        return learn(problem, recipe, seed, **more)

    learn = ground.learn
    monkeypatch.setattr(ground, "learn", spy)
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[:, 0] = np.arange(60)  # each row by its own number, which preparation keeps in order
    y = (x[:, 1] > 0).astype(int)
    how = {"losses": "nll,brier", "folds": 3, "settings": TINY}
    record = compare_losses(x, y, seeds=2, **how)
    assert record["cross_entropy"].n == record.facts["rows"] == 60
    assert record.facts["splits"] == {"learn": 40, "test": 60}
    assert len(taught) == 2 * 3 * 2
    assert {len(rows) for *_, rows in taught} <= {33, 34, 35}  # of 40, less a sixth for the temperature
    for seed in (0, 1):
        own = {
            loss: [rows for number, name, rows in taught if (number, name) == (seed, loss)] for loss in ("nll", "brier")
        }
        for one, other in zip(own["nll"], own["brier"], strict=True):
            assert torch.equal(one, other)
    assert "2 × 3 trainings" in record.facts["covers"]
    assert "each tested in turn in 3 folds" in crossent.report.headline(record)
    assert "other training rows they know" in contest.limits(record)
    one = compare_losses(x, y, seeds=1, **how)
    assert one.facts["notes"] == []
    assert one.tables["differences"]["low"][0] is not None
    with pytest.raises(DataError, match="no test of its own"):
        compare_losses(x, y, test=(x, y), **how)
    with pytest.raises(DataError, match="2 folds at least"):
        compare_losses(x, y, **how | {"folds": 61})


def net():
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def loaders(generator=None):
    x = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    parts = (slice(0, 60), slice(60, 90), slice(90, 120))
    return [
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x[part], y[part]), 20, shuffle=part.start == 0, generator=generator
        )
        for part in parts
    ]


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_loaders_of_ones_own_give_every_loss_the_same_start_and_batches(generator):
    """Focal loss with γ = 0 is the NLL: to the last bit, if start and batches are alike, by whatever they are drawn."""
    record = compare_losses(
        net, loaders(generator), "nll,focal(0),brier", seeds=2, settings=["epochs=9", "learning_rate=0.05"]
    )
    assert abs(lines(record, "raw", "cross_entropy")["focal(0)"]["difference"]) < 1e-4  # as above
    assert abs(lines(record, "raw", "cross_entropy")["brier"]["difference"]) > 1e-3
    assert record.facts["splits"] == {"learn_batches": 3, "validation": 30, "test": 30}
    assert "validation loader" in record.facts["notes"][0]
    assert record.tables["losses"]["temperature"][0] > 0


def test_loaders_of_ones_own_are_refused_where_they_cannot_be_fair():
    made = net()
    for make, how, sentence in (
        (made, {}, "pass a function that makes one"),
        (lambda: made, {}, "parameters of the last network again"),
        (lambda: 3, {}, "made a int"),
        (net, {"folds": 3}, "loaders give batches"),
        (net, {"model": net}, "leave out model"),
    ):
        with pytest.raises(DataError, match=sentence):
            compare_losses(make, loaders(), "nll,brier", seeds=1, settings=["epochs=1"], **how)
    one = [torch.utils.data.DataLoader([(torch.zeros(2), torch.tensor(0.5))] * 4)] * 3
    with pytest.raises(DataError, match=r"hlgauss\(9\): it needs 9 logits a row, and the network gives 1"):
        compare_losses(lambda: torch.nn.Linear(2, 1), one, "fraction,hlgauss(9)", limits=(0, 1))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_pulls_are_the_formulas(classes):
    """By derivatives worked out on paper: L of p_y, dp_y/dz_y = p (1 - p), the other classes sharing what is left."""
    task = Task("multi-class", tuple(map(str, range(classes))), "")
    p, rest = np.array([1e-6, 1 - 1e-6]), np.array([1 - 1e-6, 1e-6])
    others = classes - 1
    formulas = {
        "nll": rest,
        "smoothed(0.1)": np.abs(rest - 0.1 * (1 - 1 / classes)),
        "gce(0.7)": p**0.7 * rest,
        "focal(2)": rest**3 - 2 * p * rest**2 * np.log(p),
        # (1 - p)² + (1 - p)² / (K - 1)
        "brier": 2 * p * rest**2 * (1 + 1 / others),
        "hinge": np.array([1.0, 0.0]),
    }
    for loss, expected in formulas.items():
        # 1 - 1e-6 is known to float64's 1e-16, which is 1e-10 of the 1e-6 left: squared in brier, cubed in focal.
        assert steepness(Objective.of(task, loss=loss)) == pytest.approx(tuple(expected), rel=1e-8), loss
    with pytest.raises(AssertionError):
        assert steepness(Objective.of(task)) == pytest.approx(tuple(formulas["gce(0.7)"]), rel=1e-8)


def test_several_logits_of_a_range_have_no_pull_and_one_has():
    share = Task("range", (), "", 0.0, 10.0)
    assert steepness(Objective.of(share, code="hlgauss")) == (None, None)
    assert steepness(Objective.of(share, code="fraction")) == pytest.approx((1 - 1e-6, 1e-6), rel=1e-9)
    assert steepness(Objective.of(share, code="mse")) == pytest.approx((2e-6 * (1 - 1e-6) ** 2, 2e-12), rel=1e-5)


def test_log_loss_is_cross_entropy():
    """Of logits, of probabilities, weighted, of two classes and of many: scikit-learn's figure, to rounding."""
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 7):
        z = 3 * torch.randn(500, classes, dtype=torch.float64, generator=generator)
        y = torch.randint(classes, (500,), generator=generator)
        w = torch.rand(500, dtype=torch.float64, generator=generator)
        p = torch.softmax(z, -1).numpy()
        theirs = log_loss(y, p, labels=range(classes))
        weighted = log_loss(y, p, sample_weight=w, labels=range(classes))
        assert float(crossent.cross_entropy(z, y)) == pytest.approx(theirs, rel=1e-13)
        assert float(crossent.cross_entropy(z, y, sample_weight=w)) == pytest.approx(weighted, rel=1e-13)
        assert crossent.evaluate(p, y.numpy())["cross_entropy"].value == pytest.approx(theirs, rel=1e-13)


def test_where_scikit_learn_clips_it_says_less_and_by_how_much():
    """A label of probability 0 costs infinity here; scikit-learn raises it to 2.2e-16, which is 36 nats. So it does
    with e^-50, which float64 could hold: logits that leave their label so little cost 50 nats here, and 800 if e^-800.
    """
    y = np.array([0, 1])
    never = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert log_loss(y, never) == pytest.approx((math.log(2) - math.log(EPSILON)) / 2, rel=1e-12)
    assert crossent.evaluate(never, y)["cross_entropy"].value == math.inf
    for depth, theirs in ((30.0, 30.0), (50.0, -math.log(EPSILON)), (800.0, -math.log(EPSILON))):
        z = torch.tensor([[0.0, -depth]], dtype=torch.float64)
        assert float(crossent.cross_entropy(z, torch.tensor([1]))) == pytest.approx(depth, rel=1e-12)
        clipped = log_loss([1], torch.softmax(z, -1).numpy(), labels=[0, 1])
        assert clipped == pytest.approx(theirs, rel=1e-9)


def test_the_page_and_the_terminal_hold_the_conclusion_and_its_limits(iris, in_a_range):
    for record in (iris[0], in_a_range):
        screen = io.StringIO()
        show(record, Console(file=screen, width=160, highlight=False, markup=False))
        page = html.page(record)
        for text in (screen.getvalue(), page):
            for part in (
                "has the lowest log loss of",
                "tuned for cross-entropy",
                "What each loss learns",
                "Bonferroni",
            ):
                assert part in " ".join(text.split())
        assert 'id="losses"' in page
        assert 'id="beside"' in page
        assert f"Log loss, against {record.facts['baseline']}" in page
    other = crossent.Record("evaluation", "a test")
    assert contest.sheets(other) == []
    assert contest.limits(other) == ""


def test_the_conclusion_says_who_wins_and_who_cannot_be_told():
    told = {
        "loss": ["brier", "hinge", "focal(2)"],
        "figure": ["fair"] * 3,
        "measure": ["cross_entropy"] * 3,
        "difference": [0.01, 0.2, -0.001],
        "low": [0.005, 0.1, -0.003],
        "high": [0.015, 0.3, 0.001],
        "p_adjusted": [0.002, 1e-9, 0.4],
        "of_seeds": [0.1, 0.1, 0.1],
        "verdict": ["worse", "worse", "undecided"],
    }
    table = {
        "loss": ["focal(2)", "nll", "brier", "hinge"],
        "fair_cross_entropy": [0.249, 0.25, 0.26, 0.45],
        "raw_cross_entropy": [0.3, 0.25, 0.26, 0.5],
    }
    facts = {"baseline": "nll", "rows": 2000, "seeds": 3}
    record = crossent.Record("losses", "a test", tables={"losses": table, "differences": told}, facts=facts)
    assert crossent.report.headline(record) == (
        "On 2,000 test rows, from 3 seeds, focal(2) has the lowest log loss of 4 losses, 0.249 nats. nll is better "
        "than brier by 0.0100 nats (0.0050 to 0.0150; p = 0.002), hinge by 0.20 nats (0.10 to 0.30; p < 0.001). From "
        "nll the data cannot tell focal(2) (−0.0010 nats, −0.0030 to 0.0010). A raw comparison would mislead, most "
        "about focal(2): without the way back and a temperature its log loss is 0.0510 nats higher."
    )


def test_the_command_line_leaves_a_record_and_a_page(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "losses"
    words = ["fit", "iris", "--compare", "nll,smoothed(0.1, over=others)", "--seeds", "1", "-o", str(folder)]
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main() sets it where nobody has; here it goes away again
    monkeypatch.setattr(sys, "argv", ["crossent", *words, *(word for setting in TINY for word in ("--set", setting))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "has the lowest log loss of 2 losses" in " ".join(said.split())
    assert {path.name for path in folder.iterdir()} == {"record.json", "report.html"}
    record = crossent.Record.read(folder / "record.json")
    assert record.kind == "losses"
    assert "--compare 'nll,smoothed(0.1, over=others)'" in record.facts["command"]
    assert contest.headline(record) == crossent.report.headline(record)
