"""Averages of weights, moved all at once."""

import copy

import pytest
import torch
from torch import nn

from scoresde.training.average import WeightAverage

DTYPES = [torch.float32, torch.float64]


def network(dtype):
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    parts[2].weight = parts[2].weight  # tied with itself, listed once
    return parts.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_are_those_of_one_weight_after_the_other(dtype):
    module = network(dtype)
    average = WeightAverage(module)
    wanted = {name: p.detach().clone() for name, p in module.named_parameters()}
    for decay in (0.0, 0.5, 0.9):
        with torch.no_grad():
            for i, parameter in enumerate(module.parameters()):
                parameter.add_(0.1 * (i + 1))
        average.update(decay)
        for name, p in module.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * p.detach()
    assert average.values.keys() == wanted.keys()
    for name, value in average.values.items():
        torch.testing.assert_close(value, wanted[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_update_forgets_what_was_there(dtype):
    module = network(dtype)
    average = WeightAverage(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3e5).add_(1 / 3)
    average.update(0.0)
    for name, parameter in module.named_parameters():
        assert torch.equal(average.values[name], parameter)


def test_weights_come_back_after_an_error():
    module = network(torch.float32)
    average, before = WeightAverage(module), copy.deepcopy(module.state_dict())
    average.values["0.weight"].fill_(5.0)

    def look():
        with average.in_place():
            assert average.placed
            assert not module.training
            assert bool((module[0].weight == 5.0).all())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert module.training
    assert not average.placed
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_weights_of_several_precisions_have_averages():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())
    average = WeightAverage(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    average.update(0.0)
    assert all(bool((value == 0).all()) for value in average.values.values())
    assert average.values["2.weight"].dtype == torch.bfloat16
