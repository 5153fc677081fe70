"""The network for images: any size, one scale, an identity at the start, no row's business another's; its mirror."""

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, relu

from crossent.minimise.networks.residual import MOST_PLACES, Residual


def images(n=12, channels=1, height=9, width=9, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def fresh(x, columns=3, seed=0, width=16, depth=1, dropout=0.0, mirror=False):
    torch.manual_seed(seed)
    return Residual.for_images(x, columns, width=width, depth=depth, dropout=dropout, mirror=mirror)


def mirrored(network):
    other = copy.deepcopy(network)
    other.mirror = True
    return other


def used(network, x, steps=20):
    """Trained for a moment, so that no weight and no statistic is what it was at the start."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    for _ in range(steps):
        network.zero_grad()
        cross_entropy(network(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained():
    x = images()
    return used(fresh(x, depth=2), x)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (8, 8), (9, 16), (17, 17), (28, 28), (33, 12), (64, 64)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_size_gives_logits_and_teaches_every_weight(height, width, channels):
    x = images(4, channels, height, width)
    network = fresh(x, columns=5, depth=2)
    inside = []
    network.stem.register_forward_hook(lambda module, given, made: inside.append(made.shape[2:]))
    for block in (block for block in network.blocks):
        torch.nn.init.ones_(block.second[1].weight)  # at zero, as at the start, nothing reaches what lies before it
    logits = network(x)
    assert logits.shape == (4, 5)
    assert max(inside[0]) <= MOST_PLACES
    assert max(height, width) <= MOST_PLACES or 2 * max(inside[0]) > MOST_PLACES  # no smaller than it has to be
    cross_entropy(logits, torch.tensor([0, 1, 2, 4])).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        if height * width > 1:  # one pixel leaves eight of nine weights of a 3 × 3 kernel nothing to read but padding
            assert weight.grad.abs().sum() > 0, name


def test_the_scale_of_the_pixels_does_not_matter_because_the_network_knows_it():
    x = images(channels=2)
    brighter = 255 * x + 40
    one, other = fresh(x), fresh(brighter)
    one.eval(), other.eval()
    # Both read the same numbers; 40 + 255 x is rounded at 2^-16, 1/5,000,000 of its deviation of 74.
    assert torch.allclose(one(x), other(brighter), rtol=0, atol=1e-5)
    assert not torch.allclose(one(x), one(brighter), rtol=0, atol=1e-2)  # the control: without its own figures it does


def test_mean_and_deviation_are_those_of_the_training_images():
    x = images(50, 3)
    network = fresh(x)
    scaled = ((x - network.mean) / network.deviation).double()
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.allclose(scaled.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_a_channel_that_is_the_same_everywhere_is_no_division_by_nothing(value):
    x = images(channels=2)
    x[:, 1] = value
    network = fresh(x)
    assert network.deviation.flatten()[1] == 1
    assert network(x).isfinite().all()


def test_equal_seeds_give_equal_networks_and_other_seeds_others():
    x = images()
    one, same, other = (fresh(x, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])


def test_at_the_start_each_block_is_its_shortcut():
    x = images(channels=2)
    network = fresh(x, depth=2).eval()
    h = torch.rand(3, 16, 8, 8)
    for block in network.blocks:
        shortcut = relu(block.shortcut(h))
        assert torch.equal(block(h), shortcut)
        grown = copy.deepcopy(block)
        torch.nn.init.ones_(grown.second[1].weight)
        assert not torch.allclose(grown(h), shortcut, rtol=0, atol=1e-2)  # the control: what it adds is seen
        h = shortcut


def test_a_row_is_nobody_elses_business_once_trained(trained):
    x = images(6)
    with torch.no_grad():
        alone = torch.cat([trained(row) for row in x.split(1)])
        # Batches of other sizes are added up in another order: some hundreds of roundings of numbers near 1.
        assert torch.allclose(trained(x), alone, rtol=0, atol=1e-5)
        training = copy.deepcopy(trained).train()
        assert not torch.allclose(
            training(x)[:2], training(x[:2]), rtol=0, atol=1e-3
        )  # the control: while training it is


def test_the_weights_carry_everything(trained):
    x = images(channels=1)
    again = Residual(**trained.settings)
    assert not torch.equal(again.eval()(x), trained(x))
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again(x), trained(x))


def test_dropout_is_for_training_only():
    x = images()
    network = fresh(x, dropout=0.5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_with_a_mirror_the_logits_are_the_mean_of_two(trained):
    x = images(8)
    with torch.no_grad():
        one, other = (trained(seen) for seen in (x, x.flip(-1)))
        got = mirrored(trained)(x)
        assert not torch.allclose(one, other, rtol=0, atol=1e-2)  # otherwise there is nothing to average
        assert torch.equal(got, (one + other) / 2)
        for label in range(3):  # convexity, row by row
            y = torch.full((8,), label)
            loss, *two = (cross_entropy(z.double(), y, reduction="none") for z in (got, one, other))
            assert (loss <= (two[0] + two[1]) / 2).all()


def test_with_a_mirror_it_does_not_see_which_way_an_image_looks(trained):
    x = images(8)
    twice = mirrored(trained)
    with torch.no_grad():
        assert torch.equal(twice(x), twice(x.flip(-1)))
        assert not torch.allclose(
            trained(x), trained(x.flip(-1)), rtol=0, atol=1e-2
        )  # the control: without one it does
        assert not torch.allclose(twice(x), twice(x.flip(-2)), rtol=0, atol=1e-2)  # upside down is another image


def test_a_mirror_is_for_trained_networks_only():
    x = images()
    one, other = fresh(x), fresh(x, mirror=True)
    assert torch.equal(one(x), other(x))  # while training every image counts once
    one, other = (used(network, x, steps=3) for network in (one, other))
    assert not torch.equal(one(x), other(x))


def bars(n, seed):
    """Noisy images with a bar somewhere: lying (0) or standing (1)."""
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=random)
    x = 0.5 * torch.rand(n, 1, 8, 8, generator=random)
    at = torch.randint(8, (n,), generator=random)
    for image, place, standing in zip(x, at, y, strict=True):
        (image[0, :, place] if standing else image[0, place, :]).add_(0.5)
    return x, y


@pytest.mark.parametrize("told", [True, False])
def test_it_learns_what_a_picture_shows_wherever_it_stands(told):
    x, y = bars(512, seed=0)
    if not told:  # the control: the same pictures, labels of others
        y = y[torch.randperm(512, generator=torch.Generator().manual_seed(5))]
    network = fresh(x, columns=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for epoch in range(6):
        for rows in torch.randperm(512, generator=torch.Generator().manual_seed(epoch)).split(64):
            network.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    test_x, test_y = bars(512, seed=1)
    with torch.no_grad():
        loss = float(cross_entropy(network.eval()(test_x), test_y))
    assert (loss < 0.1) if told else (loss > 0.6)


def test_it_exports_with_its_mirror(trained):
    x = images(4)
    twice = mirrored(trained)
    program = torch.export.export(twice, (x,), dynamic_shapes=({0: torch.export.Dim("n", max=4096)},))
    again = images(7, seed=3)
    with torch.no_grad():
        assert torch.allclose(program.module()(again), twice(again), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.rand(5, 8, 8), r"expected images \(n, c, h, w\).*got \(5, 8, 8\) of torch.float32.*x.unsqueeze\(1\)"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), r"of torch.uint8.*x.float\(\) / 255"),
        (torch.rand(0, 1, 8, 8), "at least one pixel"),
        (torch.full((5, 1, 8, 8), math.nan), "a pixel is NaN or infinite"),
        (torch.full((5, 1, 8, 8), math.inf), "a pixel is NaN or infinite"),
    ],
)
def test_what_are_no_images_is_said(x, sentence):
    with pytest.raises(ValueError, match=sentence):
        fresh(x)


def test_images_of_other_channels_and_settings_below_one_are_said(trained):
    with pytest.raises(ValueError, match=r"expected images \(n, 1, h, w\), got \(2, 3, 9, 9\)"):
        trained(images(2, 3))
    with pytest.raises(ValueError, match="depth must be at least 1, and is 0"):
        fresh(images(), depth=0)
