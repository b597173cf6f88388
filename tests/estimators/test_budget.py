"""Networks of several stages with so many parameters in all."""

import pytest
import torch
from commands import run
from torch import nn

from estimators import MultiScale, ResidualMLP, UNet, cmde
from estimators.budget import STEP, parameters, widths
from scoresde import DiagonalSDE, Haar, Joint, LogLinear
from scoresde.app.model import Model
from scoresde.internals.allocation import AllocationLimit


def perceptron(shape, width=8):
    return ResidualMLP(shape, width, 1)


def sde(basis=None):
    basis = Haar((1, 8, 8), levels=2) if basis is None else basis
    drop = [1.0] * (len(basis.blocks) - 2) + [0.75, 0.5]
    return DiagonalSDE(LogLinear(), basis, drop=drop)


def sizes(model):
    return [sum(p.numel() for p in stage.parameters()) for stage in model.stages]


@pytest.mark.parametrize("budget", [30_000, 100_000, 1_000_000])
def test_all_have_as_many_as_there_may_be(budget):
    """One step more of any would be too many, or beyond its share."""
    model = MultiScale(sde(), perceptron, budget=budget)
    found = sizes(model)
    assert 0.85 * budget < sum(found) <= budget
    assert max(found) < 1.3 * min(found)
    assert [stage.network.enter.out_features % STEP for stage in model.stages] == [0, 0, 0]


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
    for stage in model.stages:
        assert isinstance(stage.network, UNet)
        narrow, wide = stage.network.channels
        assert wide == 2 * narrow
    (tmp_path / "x.toml").write_text(text.replace("200_000", "60"))
    result = run("train", tmp_path / "x.toml", "--output", tmp_path / "m", "--replace")
    assert "budget: expected" in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: MultiScale(sde(), perceptron, budget=0), ValueError, "budget: .*at least 1"),
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
    assert parameters(lambda: nn.Linear(3, 4)) == 16
