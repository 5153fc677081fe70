"""The loop: the same bits for the same seed, after any stop; the best epoch kept; trouble said in sentences."""

import io
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from crossent.errors import DataError
from crossent.minimise import Problem, Recipe
from crossent.minimise.data.problem import folds
from crossent.minimise.data.task import Task
from crossent.minimise.networks import Tabular
from crossent.minimise.training import judge, train
from crossent.minimise.training.judge import logits_of
from crossent.minimise.training.learn import launched
from crossent.minimise.training.optimiser import optimisers
from tests.compare import bits

RECIPE = Recipe(folds=2, members=1, width=8, bins=4, epochs=6, dropout=0.2, stop="loss")
TASK = Task("binary", ("no", "yes"), "two classes")
FILE = "network-1.pt"


def rows(seed=0, n=96):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=random)
    return Problem(TASK, x, (x[:, 0] + torch.randn(n, generator=random) > 0).long())


@pytest.fixture(scope="module")
def fabric():
    return launched()


@pytest.fixture
def trained(fabric):
    def run(recipe=RECIPE, seed=0, data_seed=0, problem=None, network=None, fold=None, checkpoint=None, **options):
        problem = problem or rows(data_seed)
        fold = folds(problem, recipe.folds, recipe.members, seed) if fold is None else fold
        objective = recipe.objective(problem.task, problem.counts())
        if network is None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                network = Tabular.for_features(
                    problem.x,
                    objective.columns,
                    members=recipe.folds * recipe.members,
                    width=recipe.width,
                    depth=recipe.depth,
                    dropout=recipe.dropout,
                    bins=recipe.bins,
                )
        path = None if checkpoint is None else checkpoint / FILE
        return train.train(network, problem, objective, fold, recipe, seed, fabric=fabric, checkpoint=path, **options)

    return run


def same(one, other):
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(bits(one.held_out), bits(other.held_out))


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


def test_equal_seeds_give_equal_bits_and_other_seeds_others(trained):
    one, again = trained(seed=3), trained(seed=3)
    assert same(one, again)
    assert (one.history.train, one.history.validation) == (again.history.train, again.history.validation)
    assert not same(one, trained(seed=4))
    assert not same(one, trained(data_seed=1, seed=3))
    assert not same(one, trained(replace(RECIPE, dropout=0.0), seed=3))


def killed_and_resumed(trained, folder, epoch, recipe=RECIPE, **options):
    """A training that was killed in an epoch and gone on with, and the epochs it then did."""
    made = options.pop("make", lambda: None)
    with pytest.raises(Stop):
        trained(recipe, network=made(), checkpoint=folder, progress=stopper(epoch, Stop()), **options)
    begun = []
    resumed = trained(recipe, network=made(), checkpoint=folder, progress=lambda at: begun.append(at.epoch), **options)
    return resumed, begun


def same_course(one, other):
    """Whether two trainings are alike in all that can be seen of them but the clock."""
    return same(one, other) and all(
        getattr(one.history, name) == getattr(other.history, name)
        for name in ("train", "validation", "best_epoch", "stopped", "trouble")
    )


@pytest.mark.parametrize("epoch", range(1, 7))
def test_a_run_stopped_in_any_epoch_goes_on_to_the_same_bits(tmp_path, eager, trained, epoch):
    whole = trained()
    assert len(whole.history.train) == 6
    resumed, begun = killed_and_resumed(trained, tmp_path, epoch)
    assert (tmp_path / FILE).exists()
    assert begun[0] == epoch  # it did go on: the epochs before were not done again
    assert same_course(whole, resumed)
    assert not same_course(whole, trained(seed=1))


class Normed(nn.Sequential):
    """A network of the user's own, one member, with statistics of batches in it."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser": "muon"},
        {"optimiser": "schedulefree"},
        {"optimiser": "sgd", "schedule": "one-cycle"},
        {"optimiser": "lbfgs", "averaging": 0.0, "dropout": 0.0},
        {"sharpness": 0.1, "schedule": "cosine"},
        {"mixup": 0.4, "cutmix": 0.4},
        {"imbalance": "balanced", "stop": "refinement"},
        {"stop": "none", "averaging": 0.0},
    ],
    ids=lambda settings: "-".join(str(value) for value in settings.values()),
)
def test_so_does_one_of_every_recipe(tmp_path, eager, trained, settings):
    recipe = replace(RECIPE, epochs=4, **settings)
    whole = trained(recipe)
    resumed, begun = killed_and_resumed(trained, tmp_path, 3, recipe)
    assert begun[0] == 3
    assert same_course(whole, resumed)
    assert not same(whole, trained(replace(RECIPE, epochs=4)))  # the setting does something


def test_so_does_a_network_with_batch_norm_and_one_member(tmp_path, eager, trained):
    recipe, fold = replace(RECIPE, epochs=4), torch.where(torch.arange(96) % 6 == 0, 0, -1).unsqueeze(0)
    whole = trained(recipe, network=Normed(), fold=fold)
    resumed, _ = killed_and_resumed(trained, tmp_path, 3, recipe, make=Normed, fold=fold)
    assert same_course(whole, resumed)
    assert whole.held_out.isnan().any(1).tolist() == (fold[0] < 0).tolist()


def test_ctrl_c_in_the_middle_of_an_epoch_leaves_a_checkpoint_of_a_whole_one(tmp_path, eager, trained):
    def progress(at):
        if at.epoch == 4 and at.share < 1:
            raise KeyboardInterrupt

    stopped = trained(checkpoint=tmp_path, progress=progress)
    assert len(stopped.history.train) == len(stopped.history.validation) == 3
    assert same_course(trained(), trained(checkpoint=tmp_path))


def test_going_on_with_a_finished_training_changes_nothing(tmp_path, eager, trained):
    impatient = replace(RECIPE, epochs=60, patience=2, learning_rate=0.05)
    one = trained(impatient, checkpoint=tmp_path)
    assert one.history.stopped == "no lower held-out loss in 2 epochs"
    assert same_course(one, trained(impatient, checkpoint=tmp_path))


def test_going_on_after_the_time_was_over_goes_on(tmp_path, trained):
    short = trained(checkpoint=tmp_path, deadline=time.monotonic())
    assert (len(short.history.train), short.history.stopped) == (1, "the time allowed was over")
    assert same_course(trained(checkpoint=tmp_path), trained())


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"data_seed": 1}, {"recipe": replace(RECIPE, learning_rate=1e-3)}],
    ids=["seed", "data", "recipe"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, trained, other):
    trained(checkpoint=tmp_path)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(DataError, match=r"belongs to other data, another recipe or another seed. Resume with what"):
        trained(**other, checkpoint=tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    trained(checkpoint=tmp_path)  # and with what it was started with it is not


def test_a_checkpoint_belongs_to_its_weights_and_folds(tmp_path, trained):
    problem = replace(rows(), weight=torch.linspace(0.5, 1.5, 96))
    trained(problem=problem, checkpoint=tmp_path)
    trained(problem=problem, checkpoint=tmp_path)
    for other in ({"problem": rows()}, {"problem": problem, "fold": torch.arange(96).unsqueeze(0) % 2}):
        with pytest.raises(DataError, match=r"belongs to other data"):
            trained(**other, checkpoint=tmp_path)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Evil:
    """What would run as soon as it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"cannot be read: .* Delete it to start afresh"),
        (b"not a checkpoint at all", r"cannot be read: .* Delete it to start afresh"),
        (saved({"a": torch.ones(2)}), r"belongs to other data"),
        (saved(Evil()), r"cannot be read: .* Delete it to start afresh"),
        (saved([1, 2]), r"belongs to other data|cannot be read"),
    ],
    ids=["empty", "text", "someone else's", "code", "a list"],
)
def test_a_damaged_checkpoint_is_a_sentence(tmp_path, trained, capsys, content, sentence):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        trained(checkpoint=tmp_path)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_was_cut_is_a_sentence(tmp_path, trained):
    trained(checkpoint=tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot be read: .* Delete it to start afresh"):
        trained(checkpoint=tmp_path)


@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_ctrl_c_keeps_the_best_so_far(trained, epoch):
    stopped = trained(progress=stopper(epoch, KeyboardInterrupt()))
    assert len(stopped.history.train) == len(stopped.history.validation) == epoch
    assert stopped.history.stopped == "stopped by hand; the best epoch so far is kept"
    best = stopped.history.best_epoch
    assert same(stopped, trained(replace(RECIPE, epochs=best)))
    assert not same(stopped, trained(replace(RECIPE, epochs=best + 1, stop="none")))


def test_ctrl_c_while_an_epoch_is_measured_leaves_curves_of_one_length(monkeypatch, trained):
    score, calls = train.score, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(train, "score", interrupted)
    history = trained().history
    assert len(history.train) == len(history.validation) == 2


def test_ctrl_c_before_there_is_anything_to_keep_is_ctrl_c(eager, trained):
    def progress(at):
        if at.share < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(progress=progress)


TOO_FAR = replace(RECIPE, epochs=30, dropout=0.0, learning_rate=0.05)


def test_the_best_epoch_is_the_lowest_point_of_the_held_out_curve(trained):
    one, problem = trained(TOO_FAR), rows()
    history = one.history
    assert history.best_epoch == int(np.argmin(history.validation)) + 1
    assert 1 < history.best_epoch < len(history.validation)  # a training that went too far, or nothing would be shown
    assert problem.cross_entropy(one.held_out) == history.best
    assert one.held_out.exp().sum(1).numpy() == pytest.approx(np.ones(96), abs=1e-12)
    # The same from the network alone, worked out in numpy. It is a network of float32, and matrices of another size
    # are multiplied in another order: some 1e-6 of logits below 10.
    fold = folds(problem, 2, 1, 0)[0].numpy()
    logits = judge.logits_of(one.network, problem.x).double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    row, label = np.arange(96), problem.target.numpy()
    assert -log_p[fold, row, label].mean() == pytest.approx(history.best, abs=1e-5)
    assert -log_p[1 - fold, row, label].mean() == pytest.approx(history.train[history.best_epoch - 1], abs=1e-5)
    assert abs(log_p[fold, row, label].mean() - log_p[1 - fold, row, label].mean()) > 1e-2


def test_the_refinement_part_is_what_a_temperature_leaves_and_is_lowest_later(trained):
    """Over-confidence, which a temperature mends, does not end a training that still sorts the rows better."""
    plain, refined = trained(TOO_FAR).history, trained(replace(TOO_FAR, stop="refinement"), seed=0).history
    assert plain.train == refined.train
    assert all(low <= high + 1e-9 for low, high in zip(refined.validation, plain.validation, strict=True))
    assert refined.validation[-1] < plain.validation[-1] - 0.05
    assert refined.best_epoch == int(np.argmin(refined.validation)) + 1
    # A temperature found by trying many, on the last epoch's rows; above three it costs something.
    last = trained(replace(TOO_FAR, stop="none"))

    def least(low: float, high: float) -> float:
        powers = np.linspace(low, high, 400)
        return min(rows().cross_entropy((last.held_out * power).log_softmax(-1)) for power in powers)

    asked = min(least(1 / 3, 2), least(1 / 60, 1 / 3) + math.log(2000) / len(rows()))
    assert refined.validation[-1] == pytest.approx(asked, abs=1e-4)  # the steps of the search, squared


def test_as_many_epochs_and_as_much_patience_as_asked(trained):
    assert len(trained(replace(RECIPE, epochs=2)).history.train) == 2
    assert trained(replace(RECIPE, epochs=2)).history.stopped == "the most epochs allowed, 2, were done"
    history = trained(replace(RECIPE, epochs=500, patience=3, learning_rate=0.05)).history
    assert len(history.train) == history.best_epoch + 3 < 500
    assert trained(replace(RECIPE, epochs=9, patience=1, learning_rate=0.3, stop="none")).history.best_epoch == 9


def test_no_epoch_begins_after_the_deadline(trained):
    history = trained(deadline=time.monotonic() - 1).history
    assert (len(history.train), history.stopped) == (1, "the time allowed was over")
    assert len(trained(deadline=time.monotonic() + 600).history.train) == 6


class Brittle(nn.Module):
    """Says NaN as soon as a weight has gone further than it may, or after so many batches."""

    def __init__(self, reach=math.inf, batches=10**9):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.reach, self.batches = reach, batches
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.seen += 1
        broken = (self.linear.weight.detach().abs().max() > self.reach) | (self.training and self.seen > self.batches)
        return torch.where(broken, math.nan, self.linear(x))


ONE = torch.where(torch.arange(96) % 6 == 0, 0, -1).unsqueeze(0)
BRITTLE = replace(RECIPE, epochs=5, learning_rate=0.2, averaging=0.0, batch=16)


def test_a_loss_that_is_not_finite_is_rolled_back_with_a_lower_learning_rate_and_said(trained):
    one = trained(BRITTLE, network=Brittle(1.0), fold=ONE)
    trouble = one.history.trouble
    assert 1 <= len(trouble) <= 5
    epoch = next(epoch for epoch in range(1, 6) if f"In epoch {epoch} " in trouble[0])
    assert trouble[0] == (
        f"In epoch {epoch} the training loss was not finite; the epoch was undone, and the learning rate lowered to "
        "0.06."
    )
    assert np.isfinite(one.history.train + one.history.validation).all()
    assert len(one.history.train) == 5
    assert one.network.linear.weight.abs().max() <= 1
    # What was undone is undone to the bit: a run that was slow enough from the beginning is the same one.
    slow = trained(replace(BRITTLE, learning_rate=0.01), network=Brittle(1.0), fold=ONE)
    assert slow.history.trouble == []
    free = trained(BRITTLE, network=Brittle(), fold=ONE)
    assert free.history.trouble == []
    assert free.history.train[: epoch - 1] == one.history.train[: epoch - 1]
    assert free.history.train[epoch - 1] != one.history.train[epoch - 1]
    assert free.network.linear.weight.abs().max() > 1


@pytest.mark.parametrize("epoch", range(1, 6))
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_a_run_that_was_rolled_back_goes_on_to_the_same_bits(tmp_path, eager, trained, epoch, optimiser):
    recipe = replace(BRITTLE, optimiser=optimiser)
    whole = trained(recipe, network=Brittle(0.8), fold=ONE)
    assert whole.history.trouble
    resumed, _ = killed_and_resumed(trained, tmp_path, epoch, recipe, make=lambda: Brittle(0.8), fold=ONE)
    assert same_course(whole, resumed)


def test_five_lower_learning_rates_and_no_more(tmp_path, eager, trained):
    one = trained(BRITTLE, network=Brittle(batches=14), fold=ONE, checkpoint=tmp_path)
    assert len(one.history.trouble) == 5
    assert one.history.trouble[-1].endswith(f"the learning rate lowered to {0.2 * 0.3**5:.2g}.")
    assert one.history.stopped == "the training loss was not finite, and 5 lower learning rates did not help"
    assert len(one.history.train) == 2  # of 80 rows in 5 batches, the third epoch breaks
    assert same(one, trained(replace(BRITTLE, epochs=2), network=Brittle(), fold=ONE))
    assert same_course(one, trained(BRITTLE, network=Brittle(), fold=ONE, checkpoint=tmp_path))  # it is over


def test_a_loss_that_is_never_finite_is_a_sentence(trained):
    with pytest.raises(DataError, match=r"the training loss was never finite: .* learning rate, 0.2, is too high even"):
        trained(BRITTLE, network=Brittle(batches=0), fold=ONE)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("trouble", [None, KeyboardInterrupt, Stop])
def test_torch_is_left_as_it_was_found(trained, trouble, two_threads):
    inside = []
    with train.threads(nn.Linear(3, 2), 1):
        inside.append(torch.get_num_threads())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    assert inside == [1]  # so little work does change the number of threads, and what follows can fail
    if trouble is Stop:
        with pytest.raises(Stop):
            trained(progress=stopper(2, Stop()))
    else:
        trained(progress=stopper(2, trouble()) if trouble else lambda _: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    one = trained()
    torch.rand(5)
    assert not torch.equal(torch.get_rng_state(), state)
    assert same(one, trained())  # nor does it listen to the global generator


def test_progress_tells_where_it_stands(eager, trained):
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


def test_a_member_without_a_row_to_choose_by_and_a_plan_of_another_size_are_refused(trained):
    with pytest.raises(ValueError, match=r"every member needs a row that is held out from it"):
        trained(fold=torch.where(torch.arange(96) % 2 == 0, 1, -1).unsqueeze(0))
    with pytest.raises(ValueError, match=r"3 members are parted by fold, and the network has 2"):
        trained(fold=torch.arange(96).unsqueeze(0) % 3)


def test_rows_are_judged_by_members_that_did_not_learn_from_them(trained):
    """A label or a feature that is made wrong changes what is said of other rows, and never of those held out with it.

    Members share nothing but the batch: the gradient of each is its own, too small here to be clipped with the others.
    """
    recipe = replace(RECIPE, folds=3, stop="none", dropout=0.2)
    clean = rows()
    fold = folds(clean, 3, 1, 0)
    before = trained(recipe, problem=clean, fold=fold)
    for row in (0, 41):
        for poisoned in (
            Problem(TASK, clean.x, clean.target.index_fill(0, torch.tensor([row]), 1 - int(clean.target[row]))),
            Problem(TASK, clean.x.index_fill(0, torch.tensor([row]), 9.0), clean.target),
        ):
            after = trained(recipe, problem=poisoned, fold=fold, network=before_training(recipe, clean))
            others = torch.arange(96) != row
            beside, learnt = (fold[0] == fold[0, row]) & others, fold[0] != fold[0, row]
            assert torch.equal(after.held_out[beside], before.held_out[beside])
            assert (after.held_out[learnt] != before.held_out[learnt]).all()
            if torch.equal(poisoned.x, clean.x):
                assert torch.equal(after.held_out[row], before.held_out[row])


def before_training(recipe, problem):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tabular.for_features(
            problem.x, 2, members=recipe.folds, width=recipe.width, depth=2, dropout=recipe.dropout, bins=recipe.bins
        )


def linear(problem, members=1):
    return Tabular.for_features(problem.x, problem.task.columns, members=members, width=1, depth=0, dropout=0.0, bins=0)


EXACT = replace(RECIPE, optimiser="lbfgs", averaging=0.0, stop="none", epochs=4)


def of_learnt(one, problem, fold):
    """Log-probabilities of the rows that the one member learnt from."""
    return logits_of(one.network, problem.x)[0].double().log_softmax(-1)[fold[0] < 0]


def noisy(classes=3, n=201):
    random = np.random.default_rng(8)
    x = random.normal(size=(n, 3))
    y = (x[:, 0] + random.normal(size=n) > 0) * 1 + (x[:, 1] + random.normal(size=n) > 0.5) * 1
    task = Task("multi-class", ("a", "b", "c"), "three")
    return Problem(task, torch.from_numpy(x).float(), torch.from_numpy(y))


def test_lbfgs_on_the_linear_model_reaches_the_optimum_of_scikit_learn(trained):
    from sklearn.linear_model import LogisticRegression

    problem = noisy()
    fold = torch.full((1, 201), -1)
    fold[0, 0] = 0
    start = linear(problem)
    features, labels = start.features(problem.x)[1:].double().numpy(), problem.target[1:].numpy()
    exact = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000).fit(features, labels).predict_log_proba(features)
    least = -exact[np.arange(200), labels].mean()
    one = trained(EXACT, problem=problem, network=start, fold=fold)
    found = of_learnt(one, problem, fold).numpy()
    # The line search compares losses in float32, which are alike within 6e-8 of 1: about the minimum of a parabola that
    # is the root of it, some 3e-4 of the weights, times features up to 3.
    assert found == pytest.approx(exact, abs=3e-3)
    assert -found[np.arange(200), labels].mean() == pytest.approx(least, abs=1e-6)
    early = trained(
        replace(EXACT, epochs=1, optimiser="adamw", batch=200), problem=problem, network=linear(problem), fold=fold
    )
    assert of_learnt(early, problem, fold).numpy() != pytest.approx(exact, abs=0.1)


def test_a_row_of_weight_two_is_learnt_as_that_row_twice(trained):
    problem = noisy()
    times = torch.from_numpy(np.random.default_rng(0).integers(0, 3, 201))
    times[0] = 1
    fold = torch.full((1, 201), -1)
    fold[0, 0] = 0

    def said(problem, fold):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = linear(noisy())
        return logits_of(trained(EXACT, problem=problem, network=start, fold=fold).network, noisy().x)[0]

    weighted = said(replace(problem, weight=times.float()), fold)
    repeated = said(
        problem.take(torch.arange(201).repeat_interleave(times)), fold[:, torch.arange(201).repeat_interleave(times)]
    )
    plain = said(problem, fold)
    weighted, repeated, plain = (logits.log_softmax(-1) for logits in (weighted, repeated, plain))
    assert torch.allclose(weighted, repeated, atol=3e-3)  # as above: the minimum of a float32 loss
    assert not torch.allclose(weighted, plain, atol=0.05)
    soft = replace(problem, target=torch.nn.functional.one_hot(problem.target, 3).float())
    assert torch.allclose(said(soft, fold).log_softmax(-1), plain, atol=3e-3)


def test_schedule_free_training_is_the_loop_of_its_authors(trained):
    """One batch of all rows, so that no order matters: the same weights from the package used as its README says."""
    recipe = replace(RECIPE, optimiser="schedulefree", epochs=5, batch=96, dropout=0.0, stop="none", learning_rate=0.05)
    problem, fold = rows(), ONE
    made = [Normless(), Normless()]
    one = trained(recipe, problem=problem, network=made[0], fold=fold)
    (theirs,) = optimisers(made[1], recipe)
    learnt = fold[0] < 0
    for _ in range(5):
        theirs.train()
        theirs.zero_grad()
        torch.nn.functional.cross_entropy(made[1](problem.x[learnt]), problem.target[learnt]).backward()
        theirs.step()
    moving = [p.detach().clone() for p in made[1].parameters()]
    theirs.eval()
    for p, q, r in zip(one.network.parameters(), made[1].parameters(), moving, strict=True):
        assert torch.allclose(p, q, atol=1e-5)  # sums of 80 rows in another order, and Adam's division by their size
        assert not torch.allclose(p, r, atol=1e-4)


class Normless(nn.Sequential):
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            super().__init__(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def test_what_is_kept_is_the_mean_of_the_weights_on_the_way(trained, monkeypatch):
    """A memory longer than the training makes it the plain mean of the weights after each step."""
    seen = []
    update = AveragedModel.update_parameters

    def watched(self, network):
        seen.append([p.detach().clone() for p in network.parameters()])
        update(self, network)

    monkeypatch.setattr(AveragedModel, "update_parameters", watched)
    recipe = replace(RECIPE, averaging=1000.0, epochs=3, stop="none")
    one = trained(recipe, network=Normless(), fold=ONE)
    assert len(seen) == 15
    for place, p in enumerate(one.network.parameters()):
        mean = torch.stack([step[place] for step in seen]).double().mean(0).float()
        assert torch.allclose(p, mean, atol=1e-6)  # roundings of a running mean
        assert not torch.allclose(p, seen[-1][place], atol=1e-4)
    last = trained(replace(recipe, averaging=0.0), network=Normless(), fold=ONE)
    assert all(torch.equal(p, q) for p, q in zip(last.network.parameters(), seen[-1], strict=True))


def overconfident(n=3000, factor=3.0, seed=0):
    """Log-probabilities of three classes that are ``factor`` times too sure, and five draws of the truth each."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.log_softmax(torch.randn(n, 3, generator=draw, dtype=torch.float64), -1)
    votes = torch.multinomial(true.exp(), 5, replacement=True, generator=draw)
    shares = torch.nn.functional.one_hot(votes, 3).double().mean(1)
    return torch.log_softmax(factor * true, -1), shares


def test_a_temperature_is_fitted_to_soft_labels_as_to_as_many_rows_with_labels():
    said, shares = overconfident()
    task, everyone = Task("multi-class", ("a", "b", "c"), "three"), [(torch.empty(0).long(), torch.arange(3000))]
    soft = Problem(task, torch.zeros(3000, 1), shares.float())
    found, plain = (judge.score(said, soft, everyone, stop) for stop in ("refinement", "loss"))
    # By another road: the least of the loss over a fine grid of temperatures, 1 / 3 among them.
    losses = [soft.cross_entropy(torch.log_softmax(said / t, -1)) for t in torch.linspace(1, 6, 501).double()]
    assert found == pytest.approx(min(losses), abs=1e-5)  # the ridge, half an observation, and the grid's step
    assert plain == pytest.approx(losses[0], abs=1e-12)
    assert plain > found + 0.1  # what stopping on the loss would be misled by
    # Each row five times, once with each vote, is the same.
    counts = (5 * shares).round().long()
    label = torch.arange(3).repeat(3000, 1).flatten().repeat_interleave(counts.flatten())
    row = torch.arange(3000).repeat_interleave(5)
    hard = Problem(task, torch.zeros(15000, 1), label)
    votes = judge.score(said[row], hard, [(torch.empty(0).long(), torch.arange(15000))], "refinement")
    assert found == pytest.approx(votes, abs=1e-5)  # the ridge counts a fifth as much there


def test_a_temperature_above_three_has_to_win_what_chance_could():
    """Answers learnt by heart that a temperature of 30 would hide on a few rows of noise are not the best epoch."""
    for rows, factor in ((3000, 30.0), (12, 6.0)):
        said, shares = overconfident(factor=factor)
        problem = Problem(Task("multi-class", ("a", "b", "c"), "three"), torch.zeros(rows, 1), shares[:rows].float())
        found = judge.score(said[:rows], problem, [(torch.empty(0).long(), torch.arange(rows))], "refinement")
        powers = np.linspace(1 / 60, 1 / 3, 2000)
        least = min(problem.cross_entropy(torch.log_softmax(said[:rows] * power, -1)) for power in powers)
        at_three = problem.cross_entropy(torch.log_softmax(said[:rows] / 3, -1))
        assert found == pytest.approx(min(at_three, least + math.log(2000) / rows), abs=1e-4)
        assert (found < at_three) == (rows == 3000)
        assert found > least + 1e-3  # what it would be let off


def test_weights_count_in_the_temperature_and_rows_of_weight_zero_do_not():
    said, shares = overconfident(400)
    task, weight = Task("multi-class", ("a", "b", "c"), "three"), torch.ones(400)
    weight[::2] = 0
    spoilt = said.clone()
    spoilt[::2] = spoilt[::2].flip(-1)
    everyone, x = [(torch.empty(0).long(), torch.arange(400))], torch.zeros(400, 1)
    odd = [(torch.empty(0).long(), torch.arange(200))]
    half = judge.score(said[1::2], Problem(task, x[1::2], shares.float()[1::2]), odd, "refinement")
    weighed = judge.score(spoilt, Problem(task, x, shares.float(), weight), everyone, "refinement")
    assert weighed == pytest.approx(half, abs=1e-9)
    assert judge.score(spoilt, Problem(task, x, shares.float()), everyone, "refinement") > half + 0.05


def test_of_very_many_probabilities_some_rows_settle_the_temperature(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    label = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    problem = Problem(Task("multi-class", tuple("abcde"), ""), torch.zeros(4000, 1), label)
    log_p = torch.log_softmax(3 * z, 1)  # three times as sure as it should be
    every = judge.cooling(log_p, problem).temperature
    assert every == pytest.approx(3, rel=0.05)
    monkeypatch.setattr(judge, "MOST_FOR_A_TEMPERATURE", 5000)
    fourth = judge.cooling(log_p, problem).temperature
    one_in_four = problem.take(torch.arange(0, 4000, 4))
    assert fourth == judge.cooling(log_p[::4], one_in_four).temperature != every
    assert fourth == pytest.approx(3, rel=0.1)  # of 1000 rows; its standard error is some 4 %


def test_what_was_learnt_is_told_by_more_rows_than_the_curve_looks_at(trained, monkeypatch):
    monkeypatch.setattr(train, "MOST_ROWS_FOR_THE_CURVE", 10)
    problem = rows()
    fold = folds(problem, RECIPE.folds, RECIPE.members, 0)
    history = (done := trained(fold=fold)).history
    log_p = RECIPE.objective(TASK).log_probabilities(logits_of(done.network, problem.x))
    learnt = torch.where(fold[0] == 0, 1, 0)  # of two members, the one whose fold the row is not in
    costs = -log_p[learnt, torch.arange(len(problem)), problem.target]
    assert history.learnt == pytest.approx(float(costs.mean()), rel=1e-6)  # float32 products of another shape
    spaced = torch.linspace(0, len(problem) - 1, 10).long()
    assert history.train[history.best_epoch - 1] == pytest.approx(float(costs[spaced].mean()), rel=1e-6)
    assert (
        abs(history.learnt - history.train[history.best_epoch - 1]) > 1e-3
    )  # the control: the two could be told apart


def test_ctrl_c_while_it_is_told_leaves_the_word_of_the_curve(trained, monkeypatch):
    def stopped(*given):
        if given[-1] == judge.MOST_ROWS_LEARNT:
            raise KeyboardInterrupt
        return told(*given)

    told = train.learnt_of
    monkeypatch.setattr(train, "learnt_of", stopped)
    history = trained().history
    assert history.by_hand
    assert history.learnt == history.train[history.best_epoch - 1]
