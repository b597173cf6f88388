"""Weights find their places, whatever wraps a network or wrapped it."""

import itertools

import pytest
import torch
from runs import edited
from safetensors.torch import load, save
from torch import nn

from estimators import Gaussian, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity
from scoresde.internals.wrappers import match_names, unwrapped


def compiled(network):
    return torch.compile(network, backend="eager")


class Own(nn.Module):
    """Has a part by the name that wrappers give theirs, beside others."""

    def __init__(self):
        super().__init__()
        self.module, self.bias = nn.Linear(3, 2), nn.Parameter(torch.randn(2))

    def forward(self, x, level):
        return self.module(torch.cat([x, level.reshape(-1, 1)], 1)) + self.bias


class Alone(nn.Module):
    """Has no other part."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)

    def forward(self, x, level):
        return self.module(x)


WRAPPERS = {
    "plain": lambda network: network,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda network: nn.DataParallel(compiled(network)),
    "twice": lambda network: nn.DataParallel(nn.DataParallel(network)),
}
NETWORKS = {"usual": None, "own": Own, "alone": Alone}


@pytest.mark.covering(2)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("before", WRAPPERS)
@pytest.mark.parametrize("after", WRAPPERS)
@pytest.mark.parametrize("whole", [False, True])
def test_weights_are_loaded_whatever_wraps_a_network(network, before, after, whole):
    def wrapped(name, outside):
        build = NETWORKS[network]
        estimator = edited(network=None if build is None else build())
        if outside:
            return WRAPPERS[name](estimator)
        estimator.network = WRAPPERS[name](estimator.network)
        return estimator

    first, second = wrapped(before, whole), wrapped(after, False)
    with torch.no_grad():
        for i, weight in enumerate(first.parameters()):
            weight += i + 1
    second.load_state_dict(first.state_dict())
    names = dict(unwrapped(first).named_parameters())
    assert len(names) > 1
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_said():
    first, second = edited(), edited()
    state = first.state_dict()
    name = next(iter(state))
    del state[name]
    with pytest.raises(RuntimeError, match=f"Missing key.* {name!r}".replace("'", '"')):
        second.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*more"):
        second.load_state_dict({**first.state_dict(), "more": torch.ones(1)})
    assert second.load_state_dict(state, strict=False).missing_keys == [name]


def test_an_estimator_that_is_a_part_is_loaded_as_well():
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = edited()

    first, second = Lightning(), Lightning()
    first.model.network = compiled(first.model.network)
    with torch.no_grad():
        next(first.parameters()).add_(1)
    second.load_state_dict(first.state_dict())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def corrected(speed, wrap):
    """A network that corrects a baseline, which has the same SDE."""
    sde = DiagonalSDE(VP(), Identity((2,)), speed)
    baseline = Gaussian(sde, torch.full((2,), speed), torch.eye(2))
    return edited(lambda basis: sde, wrap(ResidualMLP((2,), 4, 1)), baseline=baseline)


@pytest.mark.parametrize(("before", "after"), itertools.product(["plain", "compiled"], repeat=2))
def test_what_parts_share_is_kept_once(before, after):
    """And read from files that have it by every name, as well."""
    first, second = (corrected(s, WRAPPERS[w]) for s, w in ((0.5, before), (0.25, after)))
    state = first.state_dict()
    assert {*load(save(state))} == {*state}
    assert [n for n in state if n.endswith("sde.clock.speeds")] == ["sde.clock.speeds"]
    assert any(name.startswith("sde.") for name in first.baseline.state_dict())
    every = nn.Module.state_dict(first)
    assert len(every) > len(state)
    z = torch.randn(3, 2)
    for values in (state, every):
        with torch.no_grad():
            for value in second.state_dict().values():
                value.zero_()
        second.load_state_dict(values)
        assert second.baseline.sde is second.sde
        assert torch.equal(second.denoise(z, 0.5), first.denoise(z, 0.5))


def test_names_are_never_mixed_up():
    found = {"n.bias": 1, "n.module.weight": 2, "n.module.bias": 3}
    wanted = ["n.module.bias", "n.module.module.weight", "n.module.module.bias"]
    assert match_names(found, wanted) == dict(zip(wanted, (1, 2, 3), strict=True))
