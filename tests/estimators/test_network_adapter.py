"""Networks of other libraries: what they are told, and what they return."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from estimators import Denoising, NetworkAdapter
from scoresde import VP, DiagonalSDE, Identity
from scoresde.testing import NetworkLaws
from solvers import DDIM

Named = namedtuple("Named", "sample")


class Output(OrderedDict):
    """Of a library whose networks return dictionaries with attributes."""

    @property
    def sample(self):
        return self["sample"]


RETURNED = {
    "a tensor": lambda x: x,
    "a tuple": lambda x: (x, None),
    "a named tuple": Named,
    "an output": lambda x: Output(sample=x),
}


class Theirs(nn.Module):
    def __init__(self, returned="an output"):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.returned = nn.Linear(3, 3), RETURNED[returned]

    def forward(self, sample, timestep, class_labels=None):
        time = (timestep / 250).unsqueeze(-1)
        told = 0.0 if class_labels is None else class_labels.unsqueeze(-1)
        return self.returned(self.layer(sample) * time + told)


class TestAdapter(NetworkLaws):
    def make(self):
        return NetworkAdapter(Theirs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("returned", RETURNED)
def test_it_returns_the_prediction(returned, dtype):
    theirs = Theirs(returned).to(dtype)
    x, level = torch.ones(2, 3, dtype=dtype), torch.tensor([1.0, 2.0], dtype=dtype)
    labels = torch.tensor([5, 7])
    expected = theirs.layer(x) * level.unsqueeze(-1)
    network = NetworkAdapter(theirs)
    torch.testing.assert_close(network(x, level), expected)
    torch.testing.assert_close(network(x, level, labels), expected + labels.unsqueeze(-1))


def test_what_embeds_the_noise_is_trained_with_it():
    class Modulated(nn.Module):
        def forward(self, x, mod, y=None):
            return x * mod + (0 if y is None else y)

    embed = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 3))
    model = Denoising(
        DiagonalSDE(VP(), Identity((3,))), NetworkAdapter(Modulated(), embed, condition="y")
    )
    model.loss(torch.randn(4, 3)).backward()
    assert embed[1].weight.grad.abs().sum() > 0
    assert DDIM(2).sample(model, (5,), condition=torch.ones(5, 3)).shape == (5, 3)


def test_what_is_no_prediction_is_refused():
    class Silent(nn.Module):
        def forward(self, x, time):
            return {"sample": x}

    with pytest.raises(ValueError, match="network: expected one that returns a tensor, or has it"):
        NetworkAdapter(Silent())(torch.ones(1, 3), torch.ones(1))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.sin,), "network"),
        ((nn.Identity(), 250.0), "embed"),
        ((nn.Identity(), abs, 3), "cond"),
    ],
)
def test_wrong_arguments(arguments, name):
    with pytest.raises(TypeError, match=name):
        NetworkAdapter(*arguments)
