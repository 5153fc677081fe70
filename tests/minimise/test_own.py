"""A network and loaders of the user's own, and model folders of texts, go the way of every other run."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crossent
from crossent.errors import DataError

SETTINGS = ["epochs=12", "patience=12", "averaging=0.5", "learning_rate=0.02"]


def rows(n=500, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=random)
    return x, (x[:, 0] + 0.3 * torch.randn(n, generator=random) > 0).long()


def loaders(x, y, cut=(300, 400), batch=30):
    parts = ((0, cut[0]), (cut[0], cut[1]), (cut[1], len(x)))
    return [DataLoader(TensorDataset(x[a:b], y[a:b]), batch_size=batch, shuffle=a == 0) for a, b in parts]


def network(columns=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, columns))


def test_a_network_of_ones_own_is_learned_chosen_and_tested_once():
    x, y = rows()
    run = crossent.fit(network(), loaders(x, y), settings=SETTINGS)
    assert run.record["cross_entropy"].n == 100
    assert run.record["cross_entropy"].value < 0.3
    p = run.predict_proba(x[400:])
    cost = -np.log(p[np.arange(100), y[400:]]).mean()  # the record by another road
    assert cost == pytest.approx(run.record["cross_entropy"].value, abs=1e-6)  # logits are float32
    shuffled = crossent.fit(
        network(), loaders(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))])
    )
    assert shuffled.record["cross_entropy"].value > 0.6  # the loss is of the labels, not of anything


def test_it_is_saved_and_read_back_with_its_factory_only(tmp_path):
    x, y = rows()
    run = crossent.fit(network(), loaders(x, y), settings=SETTINGS)
    run.save(tmp_path / "run")
    with pytest.raises(DataError, match="pass the factory"):
        crossent.load(tmp_path / "run")
    again = crossent.load(tmp_path / "run", model=lambda shape, columns: network(columns))
    assert np.array_equal(again.predict_proba(x), run.predict_proba(x))


def test_soft_labels_weights_and_a_range_come_through_loaders():
    x, y = rows()
    soft = torch.nn.functional.one_hot(y, 2).float() * 0.8 + 0.1
    run = crossent.fit(network(), loaders(x, soft), settings=SETTINGS)
    assert run.record["cross_entropy"].value < 0.6  # the labels' own entropy is 0.325
    numbers = loaders(x, x[:, 0].sigmoid() * 10)
    with pytest.raises(DataError, match="2 logits a row; a number in a range by the code 'fraction' needs 1"):
        crossent.fit(network(), numbers, limits=(0.0, 10.0), settings=SETTINGS)
    run = crossent.fit(network(1), numbers, limits=(0.0, 10.0), settings=SETTINGS)
    assert run.predict(x).min() >= 0
    assert np.corrcoef(run.predict(x), x[:, 0])[0, 1] > 0.9
    parts = [(x[a:b], y[a:b], torch.ones(b - a)) for a, b in ((0, 300), (300, 400), (400, 500))]
    weighed = [DataLoader(TensorDataset(*part), batch_size=30) for part in parts]
    assert crossent.fit(network(), weighed, settings=SETTINGS).record["cross_entropy"].value < 0.4


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda x, y: loaders(x, y)[:2], "three loaders"),
        (lambda x, y: [[], *loaders(x, y)[1:]], "no batches"),
        (lambda x, y: [iter([]), *loaders(x, y)[1:]], "how many batches"),
        (lambda x, y: loaders(x, y + 1), "labels of the validation loader go from 1 to 2"),
        (lambda x, y: [loaders(x, y)[0], [(x, "a")], loaders(x, y)[2]], "should hold tensors"),
        (lambda x, y: [loaders(x, y)[0], [x], loaders(x, y)[2]], r"should give \(x, y\)"),
        (lambda x, y: loaders(x, torch.stack((y, 1 - y), 1)), r"validation loader have shape \(100, 2\)"),
        (
            lambda x, y: loaders(x, torch.stack((y, y, 1 - y), 1).float()),
            "2 logits, and labels have 3 columns of shares",
        ),
        (lambda x, y: loaders(x, torch.stack((y, 1.5 - y), 1).float()), "must add up to 1; those of row"),
        (lambda x, y: loaders(x, torch.stack((y, 0.0 * y), 1)), "no share of any class"),
    ],
)
def test_what_no_loader_gives_is_said(make, sentence):
    with pytest.raises(DataError, match=sentence):
        crossent.fit(network(), make(*rows()), settings=SETTINGS)


def test_labels_in_a_column_are_labels_and_counts_are_shares():
    """Counts that were not made shares weighed as many rows in training, and one in the test."""
    x, y = rows()
    plain = crossent.fit(network(), loaders(x, y), settings=["epochs=2"]).record["cross_entropy"]
    votes = torch.nn.functional.one_hot(y, 2).float() * torch.tensor([[1.0], [9.0]])[y]
    for same in (y[:, None], y[:, None].int(), votes):
        torch.manual_seed(0)
        run = crossent.fit(network(), loaders(x, same), settings=["epochs=2"])
        assert run.record["cross_entropy"].value == pytest.approx(plain.value, abs=0.02)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), r"for 2 rows a tensor of shape \(2,\) came"),
        (nn.LSTM(4, 2), "for 2 rows a tuple came"),
        (nn.Linear(4, 2).requires_grad_(False), "nothing of the network can learn"),
    ],
)
def test_a_network_that_gives_no_logits_or_cannot_learn_is_refused(model, sentence):
    x, y = rows()
    with pytest.raises(DataError, match=sentence):
        crossent.fit(model, loaders(x, y), settings=SETTINGS)
    with pytest.raises(DataError, match=sentence):
        crossent.fit(x, y, model=lambda shape, columns: model, settings=["epochs=1"])


def test_a_factory_that_makes_another_number_of_logits_is_refused():
    with pytest.raises(DataError, match="gives 7 logits a row, and 2 are needed"):
        crossent.fit(*rows(), model=lambda shape, columns: nn.Linear(4, 7), settings=["epochs=1"])


def test_one_logit_is_said():
    x, y = rows()
    with pytest.raises(DataError, match="1 logit a row"):
        crossent.fit(network(1), loaders(x, y), settings=SETTINGS)


def test_a_model_folder_of_texts_is_fine_tuned_saved_and_read_back(tmp_path):
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    from tests.minimise.test_text import model_folder, texts

    folder = model_folder(tmp_path / "bert")
    table, y = texts(240)
    settings = [f"model=text:{folder}", "learning_rate=3e-3", "epochs=24", "patience=24"]
    run = crossent.fit(table, y, settings=settings)
    assert run.recipe.folds == 1
    assert run.record["cross_entropy"].value < 0.5
    run.save(tmp_path / "run")
    again = crossent.load(tmp_path / "run")
    assert np.array_equal(again.predict_proba(table), run.predict_proba(table))
    with pytest.raises(DataError, match=r"no config\.json"):
        crossent.fit(table, y, settings=[f"model=text:{tmp_path / 'nowhere'}"])
    with pytest.raises(DataError, match="no column of text"):
        crossent.fit(table[["id"]], y, settings=[f"model=text:{folder}"])


def test_a_model_folder_of_texts_can_be_searched(tmp_path):
    pytest.importorskip("transformers", reason="the extra 'text' is not installed")
    from tests.minimise.test_text import model_folder, texts

    named = f"model=text:{model_folder(tmp_path / 'bert')}"
    table, y = texts(60)
    tuned = crossent.tune(table, y, settings=[named, "epochs=1"], trials=2)
    assert tuned.trials["state"][0] == "complete"
    assert tuned.trials["state"][1] in ("complete", "pruned")
    assert "failed" not in tuned.trials["state"]
    assert {"noise", "mixup", "cutmix", "width"}.isdisjoint(tuned.run.record.facts["space"])
    assert named in tuned.recipe.command()
    assert tuned.run.predict_proba(table).shape == (60, 2)


def test_what_is_left_to_win_is_said_of_a_network_of_ones_own_too():
    run = crossent.fit(network(), loaders(*rows()), settings=SETTINGS)
    assert run.record.tables["left"]["part"] == ["calibration", "class 1"]
