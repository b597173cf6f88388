"""U-Nets of a library: events of any size, conditions of three kinds."""

import sys
from functools import partial

import pytest
import torch

from estimators import ClassifierFree, Denoising, MultiScale, UNet
from scoresde import Cosine, DiagonalSDE, Haar, Identity
from scoresde.testing import NetworkLaws
from solvers import DDIM

SMALL = {"channels": [8, 16], "blocks": 1}


def learned(network, seed=0):
    """With weights everywhere: the last layer is 0 at first."""
    torch.manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network.eval()


class TestImages(NetworkLaws):
    event_shape = (3, 10, 7)

    def make(self):
        return learned(UNet(self.event_shape, **SMALL))


class TestSignals(NetworkLaws):
    event_shape = (9,)

    def make(self):
        return learned(UNet(self.event_shape, **SMALL))


class TestVolumes(NetworkLaws):
    event_shape = (2, 4, 3, 6)

    def make(self):
        return learned(UNet(self.event_shape, **SMALL, spatial=3))


class TestLabels(NetworkLaws):
    event_shape = (1, 8, 8)

    def make(self):
        return learned(UNet(self.event_shape, **SMALL, classes=3))

    def condition(self, batch):
        return torch.arange(batch) % 4


class TestMaps(NetworkLaws):
    event_shape = (1, 6, 8)

    def make(self):
        return learned(UNet(self.event_shape, **SMALL, condition_channels=2))

    def condition(self, batch):
        return torch.randn(batch, 2, 6, 8, generator=torch.Generator().manual_seed(0)).double()


class TestLevels(NetworkLaws):
    event_shape = (2, 4, 6)
    noise_levels = 48

    def make(self):
        return learned(UNet(self.event_shape, **SMALL, noise_levels=48, condition_channels=1))

    def condition(self, batch):
        return torch.randn(batch, 1, 4, 6, generator=torch.Generator().manual_seed(0)).double()


CONDITIONS = {
    "classes": (3, lambda: (torch.tensor([0, 1]), torch.tensor([0, 2]))),
    "condition_dim": (4, lambda: (torch.zeros(2, 4), torch.eye(2, 4))),
    "condition_channels": (2, lambda: (torch.zeros(2, 2, 5, 8), torch.ones(2, 2, 5, 8))),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", CONDITIONS)
def test_it_hears_of_its_condition(kind, dtype):
    value, make = CONDITIONS[kind]
    network = learned(UNet((3, 5, 8), **SMALL, **{kind: value})).to(dtype)
    x, level = torch.ones(2, 3, 5, 8, dtype=dtype), torch.zeros(2, dtype=dtype)
    one, other = (network(x, level, c.to(dtype) if c.is_floating_point() else c) for c in make())
    # of labels and vectors the first sample's is the same
    same = kind != "condition_channels"
    assert torch.allclose(one[0], other[0]) == (same and kind == "classes")
    assert not torch.allclose(one[1], other[1])
    with pytest.raises(ValueError, match="condition: expected one, got None"):
        network(x, level)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("condition", [{}, {"classes": 3}], ids=str)
@pytest.mark.parametrize(("noise_levels", "first"), [(32, 1), ([8, 24], 8)], ids=str)
def test_it_hears_of_every_level(noise_levels, first, condition, dtype):
    """The first ones exchanged for others, whose average is the same."""
    network = learned(UNet((2, 4, 4), **SMALL, noise_levels=noise_levels, **condition)).to(dtype)
    x, level = torch.ones(1, 2, 4, 4, dtype=dtype), torch.full((1, 32), 0.5, dtype=dtype)
    rest = slice(16, 16 + first) if noise_levels == 32 else slice(8, None)
    level[:, :first], level[:, rest] = 1.5, -0.5
    other = level.clone()
    other[:, :first], other[:, rest] = -0.5, 1.5
    label = [torch.tensor([2])] if condition else []
    assert not torch.allclose(network(x, level, *label), network(x, other, *label))
    for wrong in (torch.zeros(1, dtype=dtype), level[:, 1:]):
        with pytest.raises(ValueError, match="noise_level: expected 32 for an event"):
            network(x, wrong, *label)


def test_a_level_is_heard_where_it_is():
    """Of shifted levels the network says the same, shifted, far from borders."""
    network = learned(UNet((1, 32), channels=[8], blocks=1, attention=0, noise_levels=32))
    levels = torch.zeros(2, 32)
    levels[0, 14], levels[1, 16] = 1.0, 1.0
    one, other = network(torch.ones(2, 1, 32), levels)[:, 0]
    torch.testing.assert_close(one[8:22], other[10:24])
    assert (one[8:22] - one[4]).abs().max() > 0.01


def test_levels_within_a_block_are_one():
    network = UNet((1, 4, 4), **SMALL, noise_levels=[4, 12])
    model = Denoising(DiagonalSDE(Cosine(), Haar((1, 4, 4), 1)), network, times="components")
    with pytest.raises(ValueError, match="noise_level: expected one for all of a block"):
        model.loss(torch.randn(2, 1, 4, 4))


@pytest.mark.parametrize("space", [(8,), (5, 8)], ids=str)
def test_maps_of_another_size_are_seen_by_their_means(space):
    network = learned(UNet((3, *space), **SMALL, condition_channels=2, spatial=len(space))).double()
    x, level = torch.ones(2, 3, *space).double(), torch.zeros(2).double()
    maps = torch.randn(2, 2, *[3 * size for size in space], dtype=torch.float64)
    means = maps.unflatten(-1, (-1, 3)).mean(-1)
    if len(space) > 1:
        means = means.unflatten(-2, (-1, 3)).mean(-2)
    torch.testing.assert_close(network(x, level, maps), network(x, level, means))
    for bad in (maps[:, :1], maps.unsqueeze(-1)):
        with pytest.raises(ValueError, match=r"condition: expected maps \(batch, 2, \*space\) of"):
            network(x, level, bad)


@pytest.mark.parametrize("view", ["events", "packed"])
def test_networks_of_all_scales_see_a_map(view):
    sde = DiagonalSDE(Cosine(), Haar((1, 8, 8), levels=2), drop=[1.0, 0.7, 0.5])
    make = partial(UNet, channels=[8], blocks=1, condition_channels=1)
    model, x = learned(MultiScale(sde, make, network_bases=view)), torch.ones(1, 1, 8, 8)
    z = sde.basis(x)
    for stage in sde.stages():
        one, other = (model.denoise(z[:, : stage.dim], 0.4, maps) for maps in (x, -x))
        assert not torch.allclose(one, other)


@pytest.mark.parametrize("channels", [(8, 8, 8), (2, 3, 5), (32, 64, 32)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_hears_of_the_noise_and_of_far_pixels(dtype, channels):
    network = learned(UNet((1, 16, 16), channels=channels, blocks=1, attention=4)).to(dtype)
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    low, high = network(x, torch.tensor([-1.0]).to(dtype)), network(x, torch.ones(1).to(dtype))
    assert not torch.allclose(low, high, rtol=0.01, atol=0.01)
    corner = x.clone().requires_grad_()
    network(corner, torch.zeros(1).to(dtype))[0, 0, 0, 0].backward()
    assert corner.grad[0, 0, -1, -1] != 0  # by attention


@pytest.mark.parametrize(("attention", "attending"), [(0, []), (3, []), (4, [4]), (8, [4, 8])])
def test_only_resolutions_that_are_small_enough_attend(attention, attending):
    network = UNet((1, 16, 16), channels=[8, 8, 8], blocks=1, attention=attention)
    seen = set()
    for module in network.modules():
        if type(module).__name__ == "SpatialAttentionBlock":
            module.register_forward_pre_hook(lambda _, given: seen.add(given[0].shape[-1]))
    network(torch.ones(1, 1, 16, 16), torch.zeros(1))
    assert sorted(seen) == attending


def test_padding_is_of_what_is_there():
    """A constant image of an odd size is the corner of one of a size that can be halved."""
    odd = learned(UNet((1, 7, 8), channels=[8, 8], blocks=1, attention=0))
    even = UNet((1, 8, 8), channels=[8, 8], blocks=1, attention=0).eval()
    even.load_state_dict(odd.state_dict())
    level = torch.zeros(1)
    whole = even(torch.ones(1, 1, 8, 8), level)
    torch.testing.assert_close(odd(torch.ones(1, 1, 7, 8), level), whole[:, :, :7])


def test_it_says_nothing_at_first():
    network = UNet((1, 8, 8), **SMALL)
    assert not network(torch.ones(2, 1, 8, 8), torch.zeros(2)).any()


def test_a_guided_model_of_it_is_trained_and_sampled():
    sde = DiagonalSDE(Cosine(), Haar((1, 8, 8), levels=1))
    model = Denoising(sde, learned(UNet((1, 8, 8), **SMALL, classes=2)))
    labels = torch.tensor([0, 1, 2, 0])
    model.loss(torch.randn(4, 1, 8, 8), labels).backward()
    assert model.network.embed.weight.grad.abs().sum(-1).gt(0).tolist() == [True] * 3
    guided = ClassifierFree(model, null_condition=2, guidance=3.0)
    assert DDIM(3).sample(guided, (3,), condition=torch.tensor([0, 1, 1])).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": []}, "channels: expected numbers above 1"),
        ({"channels": [8, 1]}, "channels: expected"),
        ({"blocks": 0}, "blocks: expected a whole number of at least 1"),
        ({"attention": -1}, "attention: expected"),
        (
            {"classes": 2, "condition_dim": 3},
            "condition: expected one kind: labels",
        ),
        ({"spatial": 4}, "spatial: expected 1"),
        ({"noise_levels": 2}, "noise_levels: expected 1, or 64 of an event, or sizes of blocks"),
        ({"noise_levels": [16, 16]}, "noise_levels: expected"),
        ({"noise_levels": [0, 64]}, "noise_levels: expected"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet((1, 8, 8), **{**SMALL, **arguments})


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.diffusion_model_unet", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[images\]'"):
        UNet((1, 8, 8))


def test_a_condition_that_was_not_announced_is_refused():
    model = Denoising(DiagonalSDE(Cosine(), Identity((1, 8, 8))), UNet((1, 8, 8), **SMALL))
    with pytest.raises(ValueError, match="condition: expected none"):
        model.loss(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
