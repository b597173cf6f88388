"""Networks of several stages with so many parameters, or operations, in all."""

import copy
import re
from functools import partial

import pytest
import torch
from commands import run
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from estimators import MultiScale, ResidualMLP, UNet, cmde
from estimators.budget import STEP, count_operations, count_parameters, widths
from scoresde import DiagonalSDE, Haar, Joint, LogLinear
from scoresde.app.model import Model
from scoresde.internals.allocation import AllocationLimit


def perceptron(shape, width=8):
    return ResidualMLP(shape, width, 1)


def sde(basis=None):
    basis = Haar((1, 8, 8), levels=2) if basis is None else basis
    drop = [1.0] * (len(basis.blocks) - 2) + [0.75, 0.5]
    return DiagonalSDE(LogLinear(), basis, drop=drop)


class Convolution(nn.Module):
    """Two of them, with a layer between that has weights for every pair of channels."""

    def __init__(self, shape, width):
        super().__init__()
        self.width = width
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Conv2d(width, shape[0], 3, padding=1),
        )

    def forward(self, x, noise_level):
        return self.body(x)


def convolution(shape, width=8):
    return Convolution(shape, width)


def spent(model):
    """Operations of every stage's network."""
    found = []
    for stage in model.stages:
        shape = stage.network_basis.event_shape
        network = copy.deepcopy(stage.network).to("meta")
        found.append(count_operations(lambda: network, shape))  # noqa: B023
    return found


def sizes(model):
    return [sum(p.numel() for p in stage.parameters()) for stage in model.stages]


@pytest.mark.parametrize("budget", [30_000, 100_000, 1_000_000])
def test_all_have_as_many_as_there_may_be(budget):
    """One step more of any would be too many, or beyond its share."""
    model = MultiScale(sde(), perceptron, budget=budget)
    found = sizes(model)
    assert 0.85 * budget < sum(found) <= budget
    assert max(found) < 1.3 * min(found)
    assert [stage.network.input_layer.out_features % STEP for stage in model.stages] == [0, 0, 0]


def test_shares_may_be_said():
    model = MultiScale(sde(), perceptron, budget=[10_000, 20_000, 40_000])
    for size, share in zip(sizes(model), [10_000, 20_000, 40_000], strict=True):
        assert 0.7 * share < size <= share


def test_a_network_of_all_widths_is_found():
    for budget in (200, 1_000, 12_345):
        (width,) = widths([lambda w: nn.Linear(w, 3, bias=False)], budget)
        assert width == budget // 3 // STEP * STEP


def test_no_memory_and_no_random_numbers_are_taken():
    state = torch.get_rng_state()
    with AllocationLimit(0):
        assert widths([lambda w: nn.Linear(w, w, bias=False)], 10**8) == [10**4]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("operations", [200_000, 2_000_000])
def test_all_take_as_many_operations_as_they_may(operations):
    """One step more of any would be too many, or beyond its share; coarse networks are wider."""
    model = MultiScale(sde(), perceptron, operations=operations, network_bases="events")
    found = spent(model)
    assert 0.8 * operations < sum(found) <= operations
    assert max(found) < 1.4 * min(found)
    each = [operations // 2, operations // 8, operations // 4]
    model = MultiScale(sde(), perceptron, operations=each, network_bases="events")
    for number, share in zip(spent(model), each, strict=True):
        assert 0.5 * share < number <= share


def test_both_are_kept():
    """Of convolutions on images of 2, 4 and 8 pixels: the fine one costs most, the others weigh."""
    options = {"budget": [9_000] * 3, "operations": [10**9, 10**9, 200_000]}
    model = MultiScale(sde(), convolution, network_bases="events", **options)
    assert [stage.network.width for stage in model.stages] == [24, 24, 8]
    assert all(size <= 9_000 for size in sizes(model))
    assert spent(model)[-1] <= 200_000


def test_operations_are_those_of_torch_when_it_counts_an_update():
    network = UNet((3, 9, 8), (8, 16), blocks=1, attention=4)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(5, 3, 9, 8), torch.zeros(5))
    made = count_operations(lambda: UNet((3, 9, 8), (8, 16), blocks=1, attention=4), (3, 9, 8))
    assert counter.get_total_flops() == 5 * made


@pytest.mark.parametrize("told", [{}, {"classes": 3}, {"condition_dim": 5}])
def test_networks_with_conditions_are_counted(told):
    for make in (partial(ResidualMLP, (1, 8, 8), 8, 1), partial(UNet, (1, 8, 8), (8, 16), 1)):
        plain, some = (count_operations(partial(make, **v), (1, 8, 8)) for v in ({}, told))
        assert (some > plain) == ("condition_dim" in told or (bool(told) and make.func is not UNet))


@pytest.mark.parametrize("wide", [None, 24, 8])
def test_what_modulates_a_perceptron_is_as_wide_as_is_said(wide):
    """Products of matrices alone, two operations for each pair of numbers."""
    make = partial(ResidualMLP, (3,), 24, 2, embedding_dim=wide)
    e, w = wide or 24, 24
    modulated = 17 * e + e * e + 2 * e * 2 * w
    assert count_operations(make, (3,)) == 2 * (3 * w + modulated + 2 * 2 * w * w + w * 3)
    with pytest.raises(ValueError, match="embedding_dim: expected a whole number"):
        ResidualMLP((3,), 24, 2, embedding_dim=0)


def test_maps_are_counted():
    make = partial(UNet, (1, 8, 8), (8, 16), 1)
    assert count_operations(partial(make, condition_channels=4), (1, 8, 8)) - count_operations(
        make, (1, 8, 8)
    ) == 2 * 4 * 9 * 8 * 64  # fmt: skip


def test_parts_are_seen_by_networks_of_a_budget():
    basis = Joint(y=(1, 2, 2), x=Haar((1, 8, 8), levels=2))
    model = cmde(sde(basis), perceptron, budget=50_000)
    assert 0.8 * 50_000 < sum(sizes(model)) <= 50_000


def test_channels_stay_in_proportion(tmp_path):
    """From the command line, and as it was when it is loaded."""
    text = """
        [data]
        source = "digits"
        held_out = 0.9
        [sde]
        name = "diagonal"
        schedule = "log-linear"
        drop = [1.0, 0.5]
        speeds = [1.0, 2.0]
        [sde.basis]
        name = "haar"
        levels = 1
        [estimator]
        name = "multi-scale"
        budget = 200_000
        operations = 30_000_000
        [estimator.networks]
        name = "unet"
        channels = [16, 32]
        blocks = 1
        attention = 0
        [solver]
        name = "ddim"
        steps = 4
        [training]
        steps = 1
        batch_size = 4
        measurements = 1
    """
    (tmp_path / "x.toml").write_text(text)
    result = run("train", tmp_path / "x.toml", "--output", tmp_path / "m")
    assert result.exit_code == 0, result.output
    model = Model.load(tmp_path / "m").estimator
    assert sum(sizes(model)) <= 200_000
    assert sum(spent(model)) <= 30_000_000
    for stage in model.stages:
        assert isinstance(stage.network, UNet)
        narrow, wide = stage.network.channels
        assert wide == 2 * narrow
    (tmp_path / "x.toml").write_text(text.replace("200_000", "60"))
    result = run("train", tmp_path / "x.toml", "--output", tmp_path / "m", "--replace")
    assert "budget: expected" in result.output.splitlines()[-1]
    (tmp_path / "x.toml").write_text(text.replace("30_000_000", "60"))
    result = run("train", tmp_path / "x.toml", "--output", tmp_path / "m", "--replace")
    message = r"operations: expected \d+ operations for network 1 of 2, or more, got 30, an equal"
    assert re.search(message, result.output.splitlines()[-1]), result.output


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: MultiScale(sde(), perceptron, budget=0), ValueError, "budget: .*at least 1"),
        (lambda: MultiScale(sde(), perceptron, operations=0), ValueError, "operations: .*least 1"),
        (
            lambda: MultiScale(sde(), perceptron((64,)), operations=10**6),
            TypeError,
            "operations: expected functions that make networks",
        ),
        (
            lambda: MultiScale(sde(), lambda s, w: nn.Bilinear(w, w, w), operations=10**6),
            ValueError,
            "operations: expected a network that can be called without memory, .*got Bilinear: ",
        ),
        (lambda: MultiScale(sde(), perceptron, operations=[9] * 2), ValueError, "or 3, got 2"),
        (lambda: MultiScale(sde(), perceptron, budget=2.5), ValueError, r"budget: .*2\.5"),
        (lambda: MultiScale(sde(), perceptron, budget=[9, 9]), ValueError, "budget: .*or 3, got 2"),
        (lambda: MultiScale(sde(), perceptron, budget=90), ValueError, "budget: expected .* or mo"),
        (
            lambda: MultiScale(sde(), perceptron((64,)), budget=10**6),
            TypeError,
            "budget: expected functions that make networks",
        ),
        (
            lambda: MultiScale(sde(), lambda shape: perceptron(shape), budget=10**6),
            TypeError,
            "networks: .*takes 1 positional argument but 2 were given",
        ),
    ],
)
def test_errors(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_parameters_are_counted():
    assert count_parameters(lambda: nn.Linear(3, 4)) == 16
