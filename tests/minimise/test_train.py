"""The loop: the same bits for the same seed, after any stop; the best epoch kept; trouble said in sentences."""

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from crossent.errors import DataError
from crossent.minimise import Recipe, train
from crossent.minimise.model import Network

RECIPE = Recipe(members=2, width=8, epochs=6, dropout=0.2)


def rows(seed=0, n=120):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=random)
    return x, (x[:, 0] + torch.randn(n, generator=random) > 0).long()


def trained(recipe=RECIPE, seed=0, data_seed=0, **options):
    x, y = rows(data_seed)
    return train.train(x[:90], y[:90], x[90:], y[90:], 2, recipe, seed, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Stop(Exception):
    """A kill, as far as the loop can tell: nothing catches it."""


def stopper(epoch, trouble):
    def progress(at):
        if at.epoch == epoch:
            raise trouble

    return progress


@pytest.fixture
def eager(monkeypatch):
    """A clock that runs so fast that every epoch is worth a checkpoint, and every step a word."""
    now = [0.0]

    def monotonic():
        now[0] += 2.0
        return now[0]

    monkeypatch.setattr(train.time, "monotonic", monotonic)


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    network, history = trained(seed=3)
    again, same_history = trained(seed=3)
    assert same(network, again)
    assert (history.train, history.validation) == (same_history.train, same_history.validation)
    assert not same(network, trained(seed=4)[0])
    assert not same(network, trained(data_seed=1, seed=3)[0])
    assert not same(network, trained(replace(RECIPE, dropout=0.0), seed=3)[0])


@pytest.mark.parametrize("epoch", range(1, 7))
def test_a_run_stopped_in_any_epoch_goes_on_to_the_same_bits(tmp_path, eager, epoch):
    whole, history = trained()
    assert len(history.train) == 6
    with pytest.raises(Stop):
        trained(checkpoint=tmp_path, progress=stopper(epoch, Stop()))
    if epoch > 1:
        assert (tmp_path / "training.safetensors").exists()
    begun = []
    resumed, resumed_history = trained(checkpoint=tmp_path, progress=lambda at: begun.append(at.epoch))
    assert begun[0] == epoch  # it did go on: the epochs before were not done again
    assert same(whole, resumed)
    assert resumed_history.train == history.train
    assert resumed_history.validation == history.validation
    assert (resumed_history.best_epoch, resumed_history.stopped) == (history.best_epoch, history.stopped)


def test_ctrl_c_in_the_middle_of_an_epoch_leaves_a_checkpoint_of_a_whole_one(tmp_path, eager):
    whole, _ = trained()

    def progress(at):
        if at.epoch == 4 and at.share < 1:
            raise KeyboardInterrupt

    _, history = trained(checkpoint=tmp_path, progress=progress)
    assert len(history.train) == len(history.validation) == 3
    assert same(whole, trained(checkpoint=tmp_path)[0])


def test_going_on_with_a_finished_training_changes_nothing(tmp_path, eager):
    impatient = replace(RECIPE, epochs=60, patience=2)
    network, history = trained(impatient, checkpoint=tmp_path)
    assert history.stopped == "no lower validation loss in 2 epochs"
    again, later = trained(impatient, checkpoint=tmp_path)
    assert same(network, again)
    assert (later.train, later.best_epoch, later.stopped) == (history.train, history.best_epoch, history.stopped)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"data_seed": 1}, {"recipe": replace(RECIPE, learning_rate=1e-3)}],
    ids=["seed", "data", "recipe"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, other):
    trained(checkpoint=tmp_path)
    before = (tmp_path / "training.safetensors").read_bytes()
    with pytest.raises(DataError, match=r"belongs to other data, another recipe or another seed. Resume with what"):
        trained(**{"recipe": RECIPE, **other}, checkpoint=tmp_path)
    assert (tmp_path / "training.safetensors").read_bytes() == before
    trained(checkpoint=tmp_path)  # and with what it was started with it is not


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"cannot be read: .* Delete it to start afresh"),
        (b"not a checkpoint at all", r"cannot be read: .* Delete it to start afresh"),
        (safetensors.torch.save({"a": torch.ones(2)}), r"belongs to other data"),
    ],
    ids=["empty", "text", "someone else's"],
)
def test_a_damaged_checkpoint_is_a_sentence(tmp_path, content, sentence):
    (tmp_path / "training.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        trained(checkpoint=tmp_path)


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_ctrl_c_keeps_the_best_so_far(epoch):
    network, history = trained(progress=stopper(epoch, KeyboardInterrupt()))
    assert len(history.train) == len(history.validation) == epoch
    assert history.stopped == "stopped by hand; the best epoch so far is kept"
    short, _ = trained(replace(RECIPE, epochs=history.best_epoch))
    assert same(network, short)
    assert not same(network, trained(replace(RECIPE, epochs=history.best_epoch + 1))[0])


def test_ctrl_c_while_an_epoch_is_measured_leaves_curves_of_one_length(monkeypatch):
    measure, calls = train._measure, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:  # the third epoch's validation rows
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(train, "_measure", interrupted)
    _, history = trained()
    assert len(history.train) == len(history.validation) == 2


def test_ctrl_c_before_there_is_anything_to_keep_is_ctrl_c(eager):
    def progress(at):
        if at.share < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(progress=progress)


def test_the_best_epoch_is_the_lowest_point_of_the_validation_curve():
    network, history = trained(replace(RECIPE, epochs=60, dropout=0.0, learning_rate=0.05))
    assert history.best_epoch == int(np.argmin(history.validation)) + 1
    assert 1 < history.best_epoch < len(history.validation)  # a training that went too far, or nothing would be shown
    x, y = rows()
    assert train._measure(network, x[90:], y[90:]) == history.validation[history.best_epoch - 1]
    assert train._measure(network, x[:90], y[:90]) == history.train[history.best_epoch - 1]
    log_p = train.log_probabilities(network, x[90:])
    assert log_p.exp().sum(1).numpy() == pytest.approx(np.ones(30), abs=1e-12)
    assert -log_p[torch.arange(30), y[90:]].mean().item() == pytest.approx(history.best, rel=1e-12)


def test_as_many_epochs_and_as_much_patience_as_asked():
    assert len(trained(replace(RECIPE, epochs=2))[1].train) == 2
    assert trained(replace(RECIPE, epochs=2))[1].stopped == "the most epochs allowed, 2, were done"
    _, history = trained(replace(RECIPE, epochs=500, patience=3, learning_rate=0.05))
    assert len(history.train) == history.best_epoch + 3 < 500
    # Left alone, a small table is given patience in steps, and a large one in epochs.
    assert (Recipe().patience_for(5), Recipe().epochs_for(60)) == (60, 240)
    assert (Recipe().patience_for(1000), Recipe().epochs_for(12)) == (12, 200)


@pytest.mark.parametrize(
    "setting",
    ["members=0", "width=0", "epochs=-1", "batch=-1", "dropout=1.0", "dropout=nan", "learning_rate=0", "depth=0"],
)
def test_a_recipe_that_cannot_be_is_refused(setting):
    name, _, value = setting.partition("=")
    with pytest.raises(DataError, match=rf"the recipe's {name} must"):
        Recipe(**{name: float(value) if "." in value or value == "nan" else int(value)})


def test_a_loss_that_is_never_finite_is_a_sentence(monkeypatch):
    monkeypatch.setattr(train, "_measure", lambda *_: math.nan)
    with pytest.raises(DataError, match=r"the training loss was never finite: .* learning rate, 0.002, is too high"):
        trained()


def test_a_loss_that_stops_being_finite_ends_the_training_and_keeps_what_was(tmp_path, eager, monkeypatch):
    measure, calls = train._measure, []

    def failing(*arguments):
        calls.append(1)
        return math.nan if len(calls) > 6 else measure(*arguments)

    monkeypatch.setattr(train, "_measure", failing)
    network, history = trained(checkpoint=tmp_path)
    assert history.stopped == "the training loss was no longer finite"
    assert len(history.train) == 4
    assert history.best_epoch <= 3
    _, later = trained(checkpoint=tmp_path)
    assert len(later.train) == 4  # it is over, and going on does not make it longer
    monkeypatch.undo()
    assert same(network, trained(replace(RECIPE, epochs=history.best_epoch))[0])


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("trouble", [None, KeyboardInterrupt, Stop])
def test_torch_is_left_as_it_was_found(trouble, two_threads):
    torch.manual_seed(11)
    state, inside = torch.get_rng_state(), []
    with train._threads(Network(3, 0, 2, 2, 8, 2), 1):
        inside.append(torch.get_num_threads())
    assert inside == [1]  # so little work does change the number of threads, and what follows can fail
    if trouble is Stop:
        with pytest.raises(Stop):
            trained(progress=stopper(2, Stop()))
    else:
        trained(progress=stopper(2, trouble()) if trouble else lambda _: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    network = trained()[0]
    torch.rand(5)
    assert not torch.equal(torch.get_rng_state(), state)
    assert same(network, trained()[0])  # nor does it listen to the global generator


def test_progress_tells_where_it_stands(eager):
    seen = []
    trained(progress=seen.append)
    ends = [at for at in seen if at.share == 1 and at.train == at.train]
    within = [at for at in seen if at.share < 1]
    assert {at.epoch for at in ends} == set(range(1, 7))
    assert within
    assert all(0 < at.share < 1 for at in within)
    assert all(at.best <= at.validation and at.best_epoch <= at.epoch <= at.expected for at in ends)
    assert ends[-1].seconds_left == 0
    assert ends[0].seconds_left > 0


@pytest.mark.filterwarnings("error")
def test_scaling_bears_gaps_constants_and_outliers():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 5.0
    x[::3, 2] = float("nan")
    x[:, 3] = 0.0
    x[7, 3] = 1e30
    network = Network.for_features(x, 2, 2, 8, 1, torch.Generator().manual_seed(1))
    z = network.scaled(x)
    assert z.shape == (50, 5)
    assert z.isfinite().all()
    assert z.abs().max() <= 3
    assert z[:, 1].tolist() == [0.0] * 50
    assert z[:, 4].tolist() == [float(i % 3 == 0) for i in range(50)]
    assert z[0, 2] == 0  # a gap is the median
    new = torch.full((1, 4), float("nan"))
    assert network.scaled(new).tolist() == [[0, 0, 0, 0, 1]]
