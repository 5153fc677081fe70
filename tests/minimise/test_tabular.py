"""The network for tables: numbers on one scale, ramps by the formula, indicators for lumpy columns, gaps, members."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from crossent.minimise.networks import Tabular, rebuilt, settings_of
from crossent.minimise.networks.dropout import Dropout
from crossent.minimise.networks.tabular import CHANCE, MOST_CLASSES, MOST_INDICATORS, MOST_RAMPS, _chance

SHAPE = {"members": 2, "width": 8, "depth": 2, "dropout": 0.0}


def network(x, bins=4, seed=1, columns=2, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tabular.for_features(x, columns, bins=bins, **{**SHAPE, **settings}).eval()


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def kinds(made, x):
    """The parts of what the first layer reads: numbers, gaps, ramps, indicators."""
    sizes = [len(made.center), len(made.gaps), len(made.ramp_column), len(made.value)]
    return made.features(x).split(sizes, -1)


@pytest.mark.filterwarnings("error")
def test_scaling_bears_gaps_constants_and_outliers():
    x = normal(50, 4)
    x[:, 1] = 5.0
    x[::3, 2] = float("nan")
    x[:, 3] = 0.0
    x[7, 3] = 1e30
    made = network(x, bins=0)
    z, gaps, ramps, values = kinds(made, x)
    assert (z.shape, gaps.shape, ramps.shape, values.shape) == ((50, 4), (50, 1), (50, 0), (50, 0))
    assert made.features(x).isfinite().all()
    assert z.abs().max() <= 3
    assert z[:, 1].tolist() == [0.0] * 50
    assert gaps[:, 0].tolist() == [float(i % 3 == 0) for i in range(50)]
    assert z[0, 2] == 0  # a gap is the median
    assert made.features(torch.full((1, 4), float("nan"))).tolist() == [[0, 0, 0, 0, 1]]
    assert network(x).features(x).isfinite().all()
    assert network(x)(torch.full((3, 4), float("nan"))).isfinite().all()


def test_a_number_is_its_distance_from_the_median_in_quartiles_softly_bent():
    x = 100 + 7 * normal(501, 2)
    z = kinds(network(x, bins=0), x)[0].double().numpy()
    low, middle, high = np.quantile(x.double().numpy(), [0.25, 0.5, 0.75], axis=0)
    straight = (x.double().numpy() - middle) / ((high - low) / 1.349)
    # x is near 100 and read in float32: 8e-6 of it, by a spread of 7.
    assert z == pytest.approx(straight / np.sqrt(1 + (straight / 3) ** 2), abs=1e-5)
    assert z != pytest.approx(straight, abs=1e-2)


def by_the_formula(z, edges):
    """Piecewise-linear encoding, bin by bin: Gorishniy, Rubachev & Babenko 2022, eq. 1, with both ends clipped."""
    found = np.zeros((len(z), len(edges) - 1))
    for row, number in enumerate(z):
        for place, (start, end) in enumerate(pairwise(edges)):
            if number < start:
                found[row, place] = 0
            elif number >= end:
                found[row, place] = 1
            else:
                found[row, place] = (number - start) / (end - start)
    return found


def test_ramps_are_the_piecewise_linear_encoding_between_quantiles():
    x = normal(300, 2)
    made = network(x, bins=5)
    z, _, ramps, _ = kinds(made, x)
    assert made.ramp_column.tolist() == [0] * 5 + [1] * 5
    for column in (0, 1):
        number = z[:, column].double().numpy()
        edges = np.quantile(number, np.linspace(0, 1, 6))
        mine = ramps[:, made.ramp_column == column].double().numpy()
        # A ramp is as steep as its bin is narrow, here 0.3 at least: float32 roundings of z by that.
        assert mine == pytest.approx(by_the_formula(number, edges), abs=1e-5)
        assert mine != pytest.approx(by_the_formula(number, np.linspace(edges[0], edges[-1], 6)), abs=0.05)
    beyond = kinds(made, torch.tensor([[-1e9, 1e9]]))[2]
    assert beyond.tolist() == [[0] * 5 + [1] * 5]
    missing = kinds(made, torch.tensor([[float("nan"), 0.0]]))[2]
    assert missing[0, :5].tolist() == [0] * 5


def test_few_values_have_a_ramp_between_neighbours_and_two_have_none():
    x = torch.stack((torch.arange(60) % 4, torch.arange(60) % 2, torch.zeros(60)), 1).float()
    made = network(x, bins=8)
    assert made.ramp_column.tolist() == [0, 0, 0]
    ramps = kinds(made, x[:4])[2]
    assert ramps.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert len(network(x, bins=0).ramp_column) == 0


def test_a_column_that_is_mostly_one_value_has_bins_where_the_others_are():
    x = torch.zeros(1000, 1)
    x[:100, 0] = torch.arange(1, 101) + 0.5 * torch.rand(100, generator=torch.Generator().manual_seed(0))
    made = network(x, bins=4)
    inside = kinds(made, x[:100])[2]
    assert ((inside > 0) & (inside < 1)).any(1).float().mean() > 0.9


def numbered(rows, values, classes, seed, jump):
    """A column of whole numbers and labels: shares that go up with the number, and jump from one to the next."""
    draw = np.random.default_rng(seed)
    number = draw.integers(0, values, rows)
    slope = np.linspace(-0.6, 0.6, values)[:, None] * np.linspace(-1, 1, classes)
    slope += jump * draw.normal(size=(values, classes))
    p = np.exp(slope) / np.exp(slope).sum(1, keepdims=True)
    label = (draw.random(rows)[:, None] > p[number].cumsum(1)[:, :-1]).sum(1)
    return torch.from_numpy(number).float(), torch.from_numpy(label)


def chance(number, label, classes):
    values, place, counts = number.unique(return_inverse=True, return_counts=True)
    return _chance(values, place, counts, torch.nn.functional.one_hot(label, classes).double())


def by_hand(number, label, classes):
    """The same, one value and one class after the other."""
    number, label = number.double().numpy(), label.numpy()
    values, total = np.unique(number), 0.0
    for before, here, after in zip(values, values[1:], values[2:], strict=False):
        n = [np.sum(number == value) for value in (before, here, after)]
        a = (here - before) / (after - before)
        s = 1 / n[1] + (1 - a) ** 2 / n[0] + a**2 / n[2]
        for k in range(classes):
            m = [np.mean(label[number == value] == k) for value in (before, here, after)]
            total += (m[1] - (1 - a) * m[0] - a * m[2]) ** 2 / np.mean(label == k) / s
    return stats.chi2.sf(total / 2, (classes - 1) * (len(values) - 2) / 2)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_chance_of_jumps_is_that_of_the_formula(classes):
    number, label = numbered(400, 30, classes, 1, jump=0.6)
    number = number**2 / 9  # values need not be evenly spaced
    # torch's incomplete gamma function agrees with scipy's to nine digits or so
    assert chance(number, label, classes) == pytest.approx(by_hand(number, label, classes), rel=1e-7)
    assert chance(number, label, classes) != pytest.approx(by_hand(number.sqrt(), label, classes), rel=1e-3)
    assert chance(number[:39], label[:39], classes) == 1.0  # too few rows for each value


@pytest.mark.parametrize("classes", [2, 4])
def test_smooth_columns_jump_by_chance_as_often_as_is_said(classes):
    found = np.array([chance(*numbered(1500, 40, classes, seed, jump=0.0), classes) for seed in range(400)])
    # 400 columns: four standard errors are 0.044 at 0.05 and 0.1 at 0.5. Shares on a curve are a little surer than
    # those of all rows, so that chance comes less often, if anything.
    assert (found < 0.05).mean() < 0.05 + 0.044
    assert 0.5 - 0.2 < (found < 0.5).mean() < 0.5 + 0.1
    jumping = np.array([chance(*numbered(1500, 40, classes, seed, jump=1.0), classes) for seed in range(20)])
    assert (jumping < CHANCE).all()


def test_a_number_that_is_a_name_has_indicators():
    person, label = numbered(1200, 60, 2, 0, jump=1.5)
    age, _ = numbered(1200, 60, 2, 1, jump=0.0)
    x = torch.stack((age, person), 1)
    made = network(x, labels=label)
    assert set(made.value_column.tolist()) == {1}
    assert made.value.tolist() == person.unique().tolist()
    soft = torch.nn.functional.one_hot(label, 2).float()
    assert network(x, labels=soft).value.tolist() == made.value.tolist()
    assert len(network(x).value) == 0
    gaps = x.clone()
    gaps[::7, 1] = float("nan")
    assert set(network(gaps, labels=label).value_column.tolist()) == {1}
    many = torch.arange(1200) % (MOST_CLASSES + 1)
    assert len(network(x, labels=many).value) == 0  # nobody looks


def test_lumpy_columns_have_indicators_and_smooth_ones_none():
    draw = np.random.default_rng(0)
    rows = 600
    gains = np.where(draw.random(rows) < 0.9, 0.0, draw.choice([5013.0, 15024.0, 7688.0], rows))
    hours = np.where(draw.random(rows) < 0.6, 40, draw.integers(1, 99, rows)).astype(float)
    smooth, whole = draw.normal(size=rows), np.round(draw.normal(40, 12, rows))
    two = draw.integers(0, 2, rows).astype(float)
    x = torch.from_numpy(np.stack([smooth, gains, two, hours, whole], 1)).float()
    made = network(x)
    assert set(made.value_column.tolist()) == {1, 3}
    assert {0.0, 15024.0} <= set(made.value[made.value_column == 1].tolist())
    assert 40.0 in made.value[made.value_column == 3]
    values = kinds(made, x)[3]
    for place, (column, value) in enumerate(zip(made.value_column, made.value, strict=True)):
        assert torch.equal(values[:, place].bool(), x[:, column] == value)
        assert values[:, place].sum() >= 5  # each is shared
    near = x.clone()
    near[:, 1] += 0.5
    assert not kinds(made, near)[3][:, made.value_column == 1].any()
    gap = kinds(made, torch.full((1, 5), float("nan")))[3]
    assert gap.tolist() == [[0.0] * len(made.value)]
    assert len(network(x, bins=0).value) == 0


def test_many_columns_have_fewer_bins_and_no_more_indicators_than_there_is_room_for():
    wide = normal(40, 400)
    made = network(wide, bins=16)
    assert len(made.ramp_column) <= MOST_RAMPS < 400 * 16
    assert set(made.ramp_column.tolist()) == set(range(400))
    lumps = torch.where(normal(60, 300) > 0.5, normal(60, 300).round(), 0.0)
    assert len(network(lumps).value) <= MOST_INDICATORS


def test_noise_is_for_training_alone():
    x = normal(20, 3)
    made = network(x, noise=0.5)
    z = kinds(made, x)[0]
    assert torch.equal(kinds(made, x)[0], z)
    made.train()
    draws = torch.cat([kinds(made, x)[0] - z for _ in range(100)])
    # The deviation of 6000 draws is known to a hundredth: five of its standard errors are 0.023.
    assert draws.std().item() == pytest.approx(0.5, abs=0.023)
    assert torch.equal(kinds(network(x).train(), x)[0], z)  # none unless asked for


def test_members_are_networks_of_their_own_side_by_side():
    x = normal(30, 3)
    made = network(x, members=3, columns=4)
    logits = made(x)
    assert logits.shape == (3, 30, 4)
    h = made.features(x).double()
    for member in range(3):
        g = h
        for weight, bias in zip(made.weights[:-1], made.biases[:-1], strict=True):
            g = g @ weight[member].double() + bias[member].double()
            g = g * torch.sigmoid(g)
        g = g @ made.weights[-1][member].double() + made.biases[-1][member].double()
        assert torch.allclose(logits[member].double(), g, atol=1e-5)  # float32 sums of some thirty numbers
        assert not torch.allclose(logits[member].double(), g.flip(0), atol=1e-3)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)
    own = torch.stack((x, x.flip(0), x[torch.arange(30) // 2]))
    each = made(own)
    assert torch.allclose(each[0], logits[0], atol=1e-5)
    assert torch.allclose(each[1], logits[1].flip(0), atol=1e-5)
    assert torch.allclose(each[2], logits[2][torch.arange(30) // 2], atol=1e-5)


def test_a_network_is_made_again_from_its_settings():
    x = normal(200, 3)
    x[::5, 1] = float("nan")
    x[:150, 2] = 1.0
    made = network(x, noise=0.1, depth=0)
    again = rebuilt(settings_of(made)).eval()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x))
    assert again.settings == made.settings
    assert len(made.weights) == 1


def test_the_start_is_the_draw_s_and_near_to_knowing_nothing():
    x = normal(200, 3)
    assert torch.equal(network(x)(x), network(x)(x))
    assert not torch.equal(network(x)(x), network(x, seed=2)(x))
    assert network(x)(x).abs().max() < 0.5


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 1e-6])
def test_dropout_drops_its_share_and_keeps_the_mean_and_the_gradient_sees_what_is_kept(p):
    torch.manual_seed(0)
    x = torch.ones(4, 50_001, requires_grad=True)  # no multiple of the four coins of a word
    y = Dropout(p)(x)
    y.sum().backward()
    y, n = y.detach(), x.numel()
    error = math.sqrt(p * (1 - p) / n)
    assert abs(float((y == 0).double().mean()) - p) < 5 * error + 2**-16
    assert abs(float(y.double().mean()) - 1) < 5 * error / (1 - p) + 1e-6
    assert torch.equal(x.grad, y)
    if p > 0.1:  # the control: the bounds tell a share from one that is 0.02 off
        assert abs(float((y == 0).double().mean()) - (p - 0.02)) > 5 * error + 2**-16


def test_the_coins_of_a_word_are_tossed_one_by_one():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(100_000, 4)) == 0).double()
    together = torch.corrcoef(dropped.T) - torch.eye(4)
    assert together.abs().max() < 5 / math.sqrt(100_000)
    turned = torch.stack((dropped[:, 0], dropped[:, 0]))
    assert torch.corrcoef(turned)[0, 1] > 0.99  # the control: coins that are one would be seen


def test_dropout_draws_from_torchs_seed_and_nothing_where_nothing_is_learnt():
    x = torch.ones(64)

    def drawn(seed, times=1):
        torch.manual_seed(seed)
        return [Dropout(0.5)(x) for _ in range(times)][-1]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), drawn(1, times=2))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(before, torch.get_rng_state())
