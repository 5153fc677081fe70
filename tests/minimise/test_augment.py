"""Rows that are mixed, cut, moved and jittered, and targets that say exactly what was done."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crossent.compute.target import Target
from crossent.errors import DataError
from crossent.minimise.data.task import Task
from crossent.minimise.objective.objective import Objective
from crossent.minimise.training import augment
from crossent.minimise.training.augment import Augment, beta, blend, hidden_mixup, paired, smoothed_target
from tests.compare import bits

CLASSES = Task("multi-class", tuple("abcdefghij"), "")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def table(n=64, d=12, seed=1):
    return torch.randn(n, d, generator=seeded(seed)), torch.arange(n) % 10


def images(n=40, c=2, h=9, w=7, seed=2):
    return torch.rand(n, c, h, w, generator=seeded(seed)) + 0.01, torch.arange(n) % 10


def test_nothing_asked_is_nothing_done():
    x, y = table()
    same, target = Augment()(x, y, seeded())
    assert torch.equal(bits(same), bits(x))
    assert target is y
    assert not Augment()
    assert Augment(noise=0.1)
    assert Augment()(x, y, seeded(), torch.ones(64))[2].sum() == 64


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}, {"noise": 0.3}])
def test_the_generator_and_nothing_else_decides(settings):
    x, y = table()
    torch.manual_seed(5)
    one = Augment(**settings)(x, y, seeded(3))
    torch.manual_seed(6)
    state = torch.get_rng_state()
    again, other = Augment(**settings)(x, y, seeded(3)), Augment(**settings)(x, y, seeded(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])


def test_what_came_is_left_as_it_is():
    x, y = images()
    before = x.clone()
    Augment(mixup=0.4, cutmix=1.0, noise=0.1, flip=True, crop=2)(x, y, seeded())
    assert torch.equal(x, before)


def test_mixup_is_the_mean_that_the_target_says():
    x, y = table()
    mixed, target = Augment(mixup=0.8)(x, y, seeded())
    share = target.weight[:, :1]
    found = (mixed.unsqueeze(1) - (share * x).unsqueeze(1) - ((1 - share).unsqueeze(1) * x)).abs().amax(-1)
    partner = found.argmin(1)
    assert found.gather(1, partner.unsqueeze(1)).max() < 1e-6  # float32
    assert torch.equal(target.index, torch.stack((y, y[partner]), 1))
    assert torch.equal(partner.sort().values, torch.arange(64)), "a permutation: every row is a partner once"
    wrong = (mixed - share * x - (1 - share) * x.roll(1, 0)).abs().max()
    assert wrong > 0.1


@pytest.mark.parametrize("settings", [{"mixup": 0.3}, {"cutmix": 0.3}, {"mixup": 1.0, "cutmix": 1.0}])
@pytest.mark.parametrize("make", [table, images])
def test_weights_add_up_to_one_to_the_last_bit(settings, make):
    target = Augment(**settings)(*make(), seeded())[1]
    assert target.weight.dtype == torch.float32
    assert torch.equal(target.weight.sum(1), torch.ones(len(target.weight)))
    exact = target.weight.double().sum(1)
    assert torch.equal(exact, torch.ones_like(exact))
    assert (target.weight >= 0).all()
    assert target.weight[:, 1].max() > 0.2


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    drawn = beta(alpha, 4000, seeded(), torch.device("cpu")).double().numpy()
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.001  # the seed is fixed: this never flickers
    assert stats.kstest(drawn, stats.beta(alpha + 0.3, alpha).cdf).pvalue < 0.001
    assert (drawn * 2**24 == np.round(drawn * 2**24)).all()


def test_a_tiny_alpha_mixes_nothing_rather_than_0_by_0():
    drawn = beta(1e-4, 1000, seeded(), torch.device("cpu"))
    assert drawn.isfinite().all()
    assert ((drawn == 0) | (drawn == 1)).float().mean() > 0.9
    assert 0.4 < drawn.mean() < 0.6


@pytest.mark.parametrize("loss", ["nll", "focal(2)", "gce(0.7)", "brier", "smoothed(0.1)", "bootstrapped"])
def test_rows_that_were_not_mixed_cost_what_their_label_costs_to_the_bit(loss):
    """With a tiny alpha λ is 0 or 1: each row is one of the two rows, and so is its cost."""
    x, y = table(200)
    mixed, target = Augment(mixup=1e-4)(x, y, seeded())
    head = torch.randn(12, 10, generator=seeded(7))
    objective = Objective.of(CLASSES, loss=loss)
    got = objective.loss(mixed @ head, target)
    pure = (target.weight == 1).any(1)
    assert pure.float().mean() > 0.9
    heavier = target.index.gather(1, target.weight.argmax(1, keepdim=True)).squeeze(1)
    expected = objective.loss(mixed @ head, heavier)
    assert torch.equal(bits(got[pure]), bits(expected[pure]))
    own = (target.weight[:, 0] == 1) & pure
    assert 50 < own.sum() < 199
    assert torch.equal(bits(mixed[own]), bits(x[own])), "and x is the row, to the bit"
    swapped = Target(target.index, target.weight.flip(1))
    assert not torch.allclose(objective.loss(mixed @ head, swapped)[pure], expected[pure])


def test_soft_labels_and_shares_are_mixed_in_their_proportion():
    x, y = table()
    soft = nn.functional.one_hot(y, 10).float()
    sparse = Augment(mixup=1.0)(x, y, seeded())[1]
    mixed = Augment(mixup=1.0)(x, soft, seeded())[1]
    dense = torch.zeros(64, 10).scatter_add(1, sparse.index, sparse.weight)
    assert torch.allclose(mixed, dense, atol=1e-7)
    f = torch.rand(64, generator=seeded(9))
    share = Augment(mixup=1.0)(x, f, seeded())[1]
    other = f[paired(torch.Size((64,)), seeded(), torch.device("cpu"))]
    assert torch.allclose(share, sparse.weight[:, 0] * f + sparse.weight[:, 1] * other, atol=1e-7)
    assert share.shape == (64,)
    assert (share - f).abs().max() > 0.1


def test_each_member_is_paired_within_itself():
    x = torch.arange(3.0).view(3, 1, 1).expand(3, 50, 2) * 1000 + torch.rand(3, 50, 2, generator=seeded())
    y = torch.arange(50).expand(3, 50) % 10
    mixed, target = Augment(mixup=1.0)(x, y, seeded())
    assert mixed.shape == (3, 50, 2)
    assert target.index.shape == (150, 2)
    for member in range(3):
        low, high = x[member].min(), x[member].max()
        assert mixed[member].min() >= low - 1e-3
        assert mixed[member].max() <= high + 1e-3
    pair = paired(torch.Size((3, 50)), seeded(), x.device).view(3, 50)
    assert not torch.equal(pair[0], pair[1] - 50), "with a pairing of its own"
    z = torch.randn(3, 50, 10, generator=seeded())
    assert Objective.of(CLASSES).loss(z, target).shape == (3, 50)


def test_every_label_counts_with_its_own_weight():
    """What a mixed batch costs is λ v loss(a) + (1 - λ) w loss(b), summed over rows."""
    x, y = table()
    w = torch.rand(64, generator=seeded(4)) * 5
    w[:10] = 0
    mixed, plain = Augment(mixup=1.0)(x, y, seeded())
    same, target, weight = Augment(mixup=1.0)(x, y, seeded(), w)
    assert torch.equal(same, mixed)
    z = torch.randn(64, 10, generator=seeded(8), dtype=torch.float64)
    pair = paired(torch.Size((64,)), seeded(), x.device)
    objective = Objective.of(CLASSES)
    own, other = objective.loss(z, y), objective.loss(z, y[pair])
    share = plain.weight[:, 0].double()
    expected = share * w * own + (1 - share) * w[pair] * other
    got = objective.loss(z, target, weight)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)  # shares and weights are float32
    assert not torch.allclose(objective.loss(z, plain, w), expected, rtol=1e-2)
    assert torch.equal(target.weight.sum(1), torch.ones(64))


def test_missing_values_follow_the_heavier_row():
    a = torch.tensor([[1.0, torch.nan, 3.0]]).expand(3, 3)
    b = torch.tensor([[torch.nan, 20.0, 30.0]]).expand(3, 3)
    got = blend(a, b, torch.tensor([1.0, 0.75, 0.25]))
    nan = torch.nan
    expected = torch.tensor([[1.0, nan, 3.0], [1.0, nan, 9.75], [nan, 20.0, 23.25]])
    assert torch.equal(got.nan_to_num(-1), expected.nan_to_num(-1))
    x, y = table()
    x[::3, 1] = nan
    noisy, _ = Augment(noise=0.5)(x, y, seeded())
    assert torch.equal(noisy.isnan(), x.isnan())


def test_noise_has_the_deviation_that_was_asked_for():
    x, y = torch.zeros(200, 50), torch.zeros(200, dtype=torch.long)
    noisy, target = Augment(noise=0.3)(x, y, seeded())
    assert noisy.std().item() == pytest.approx(0.3, rel=0.03)  # 10 000 draws: 0.7 % is a standard error
    assert target is y


def test_feature_cutmix_weighs_by_the_columns_it_kept():
    x, y = table(n=300, d=8)
    x = torch.arange(300.0).unsqueeze(1) * 100 + torch.arange(8.0)  # every value tells its row and its column
    mixed, target = Augment(cutmix=1.0)(x, y, seeded())
    row, column = mixed.long() // 100, mixed.long() % 100
    assert torch.equal(column, torch.arange(8).expand(300, 8)), "columns stay where they are"
    kept = row == torch.arange(300).unsqueeze(1)
    assert torch.equal(target.weight[:, 0], kept.float().mean(1))
    partner = torch.where(kept, 0, row).amax(1)
    other = torch.where(kept, partner.unsqueeze(1), row)
    assert torch.equal(other, partner.unsqueeze(1).expand(300, 8)), "of one other row"
    swapped = ~kept.all(1)
    assert torch.equal(target.index[swapped, 1], y[partner[swapped]])
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert not torch.equal(target.weight[:, 0], 1 - kept.float().mean(1))


def test_cutmix_weighs_by_the_exact_area():
    n, h, w = 300, 9, 7
    x = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 2, h, w).contiguous()
    y = torch.arange(n) % 10
    mixed, target = Augment(cutmix=1.0)(x, y, seeded())
    foreign = mixed[:, 0] != x[:, 0]
    assert torch.equal(mixed[:, 1] != x[:, 1], foreign), "all channels alike"
    area = foreign.sum((1, 2)).double() / (h * w)
    # 1 - area to the nearest multiple of 2^-24; a row may also be its own partner, and then nothing is seen.
    seen = area > 0
    assert ((1 - area - target.weight[:, 0].double())[seen].abs() <= 2**-25).all()
    for image, share in zip(foreign[seen], area[seen], strict=True):
        rows, columns = image.any(1).nonzero().flatten(), image.any(0).nonzero().flatten()
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert box.item() / (h * w) == pytest.approx(share.item()), "one whole box"
    assert 0.05 < area.mean() < 0.5
    assert (area > 0.6).any()


def test_with_both_each_row_gets_one_of_them():
    x = torch.arange(400.0).unsqueeze(1) * 100 + torch.arange(8.0)
    mixed, _ = Augment(mixup=1.0, cutmix=1.0)(x, torch.arange(400) % 10, seeded())
    whole = (mixed % 1 == 0).all(1)  # a mean of two is hardly ever a whole number
    assert 0.35 < whole.float().mean() < 0.65


def test_flip_mirrors_half_of_the_images():
    x, y = images(400)
    flipped, target = Augment(flip=True)(x, y, seeded())
    assert target is y
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == x).flatten(1).all(1)).all()
    assert 0.4 < mirrored.float().mean() < 0.6


def test_crop_moves_images_by_a_few_pixels_and_fills_with_zeros():
    x, y = images(300)
    moved, _ = Augment(crop=2)(x, y, seeded())
    assert moved.shape == x.shape
    seen = set()
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    for image in range(300):
        places = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if torch.equal(padded[image, :, dy : dy + 9, dx : dx + 7], moved[image])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25
    assert (moved == 0).any()


def test_images_of_members_have_their_own_dimension():
    x, _ = images(12)
    many, y = x.view(3, 4, 2, 9, 7), torch.arange(12).view(3, 4) % 10
    moved, target = Augment(mixup=1.0, crop=1, flip=True)(many, y, seeded())
    assert moved.shape == many.shape
    assert target.index.shape == (12, 2)
    assert torch.equal(target.index[:, 0], y.flatten())
    assert (
        target.index[:, 1].view(3, 4) // 4 * 0 + y.sort(1).values == target.index[:, 1].view(3, 4).sort(1).values
    ).all()


def test_smoothed_targets_cost_what_the_objective_smooths():
    z, y = torch.randn(30, 10, generator=seeded(), dtype=torch.float64), torch.arange(30) % 10
    got = Objective.of(CLASSES).loss(z, smoothed_target(y, 0.1, 10))
    expected = Objective.of(CLASSES, label_smoothing=0.1).loss(z, y)
    assert torch.allclose(got, expected, rtol=1e-13, atol=0)
    assert not torch.allclose(Objective.of(CLASSES, label_smoothing=0.11).loss(z, y), got, rtol=1e-3)
    soft = smoothed_target(y, 0.0, 10)
    assert torch.equal(smoothed_target(soft, 0.1, 10), smoothed_target(y, 0.1, 10))


# Manifold mixup.


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.parametrize("layer", ["", "0", "1", "2"])
def test_hidden_rows_are_mixed_where_the_layer_is(layer):
    model, (x, y) = network(), table()
    with hidden_mixup(model, (layer,), 1.0, len(x), seeded()) as mixed:
        got = model(x)
    assert mixed.layer == layer
    share = mixed.share.unsqueeze(1)
    h = x
    for name, part in [("", nn.Identity()), *model.named_children()]:
        h = part(h)
        if name == layer:
            h = share * h + (1 - share) * h[mixed.pair]
    assert torch.allclose(got, h, atol=1e-6)
    assert not torch.allclose(got, model(x), atol=1e-2), "and outside the context nothing is"
    target = mixed(y)
    assert torch.equal(target.index, torch.stack((y, y[mixed.pair]), 1))
    got.sum().backward()
    assert model[0].weight.grad.isfinite().all()


def test_the_layer_is_drawn_anew():
    model, (x, _) = network(), table()
    drawn = set()
    for seed in range(30):
        with hidden_mixup(model, ("", "0", "1"), 1.0, len(x), seeded(seed)) as mixed:
            model(x)
        drawn.add(mixed.layer)
    assert drawn == {"", "0", "1"}


def test_the_hook_is_gone_after_an_error_too():
    model, (x, _) = network(), table()
    with pytest.raises(RuntimeError, match="mine"), hidden_mixup(model, ("0",), 1.0, len(x), seeded()):
        raise RuntimeError("mine")
    assert not model[0]._forward_hooks
    with pytest.raises(DataError, match="layer '0' ran 0 times"), hidden_mixup(model, ("0",), 1.0, 64, seeded()):
        pass
    with pytest.raises(DataError, match="layer '0' ran 2 times"), hidden_mixup(model, ("0",), 1.0, 64, seeded()):
        model(x), model(x)
    with (
        pytest.raises(
            DataError, match=r"layer '0' should hold a tensor of 63 rows to mix, and holds a tensor of shape"
        ),
        hidden_mixup(model, ("0",), 1.0, 63, seeded()),
    ):
        model(x)
    assert not model[0]._forward_hooks


def test_layers_have_to_be_there():
    with pytest.raises(DataError, match="'3' is no layer of this network; it has '', '0', '1', '2'"):
        hidden_mixup(network(), ("3",), 1.0, 4, seeded()).__enter__()
    with pytest.raises(DataError, match="no layer was named"):
        hidden_mixup(network(), (), 1.0, 4, seeded()).__enter__()


# What cannot be.


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mixup": -0.1}, "mixup must be 0 or more and finite, and is -0.1"),
        ({"cutmix": float("nan")}, "cutmix must be 0 or more and finite, and is nan"),
        ({"noise": float("inf")}, "noise must be 0 or more"),
        ({"crop": 1.5}, "crop is a whole number of pixels"),
        ({"crop": -1}, "crop is a whole number of pixels"),
    ],
)
def test_settings_that_cannot_be(settings, sentence):
    with pytest.raises(DataError, match=sentence):
        Augment(**settings)


def test_rows_and_targets_that_do_not_fit():
    x, y = table()
    with pytest.raises(DataError, match=r"flip and crop are for images .* have shape \(64, 12\)"):
        Augment(flip=True)(x, y, seeded())
    with pytest.raises(DataError, match=r"a target for rows \(64,\) has that shape.* got \(63,\)"):
        Augment(mixup=1.0)(x, y[1:], seeded())
    with pytest.raises(DataError, match="got int64 of shape"):
        Augment(mixup=1.0)(x.long(), y, seeded())


def test_one_row_has_no_partner_but_itself():
    x, target = Augment(mixup=1.0)(torch.ones(1, 3), torch.tensor([4]), seeded())
    assert torch.equal(x, torch.ones(1, 3))
    z = torch.randn(1, 10, generator=seeded(), dtype=torch.float64)
    assert torch.allclose(
        Objective.of(CLASSES).loss(z, target), Objective.of(CLASSES).loss(z, torch.tensor([4])), rtol=1e-15, atol=0
    )


def test_the_steps_are_those_of_float32():
    assert float(np.float32(1 - 1 / augment._STEPS)) == 1 - 1 / augment._STEPS
