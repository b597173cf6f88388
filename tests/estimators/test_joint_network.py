"""Parts of a joint event side by side."""

import pytest
import torch
from torch import nn

from estimators import JointNetwork, ResidualMLP
from scoresde import Joint
from scoresde.testing import NetworkLaws

LAYOUTS = {
    "one space": ({"y": (1, 8, 4), "x": (1, 8, 4)}, (2, 8, 4)),
    "resolutions": ({"y": (3, 2, 4), "x": (3, 8, 8)}, (6, 8, 8)),
    "the other order": ({"x": (3, 8, 8), "y": (1, 2, 2)}, (4, 8, 8)),
    "no multiple": ({"y": (1, 3, 3), "x": (1, 8, 8)}, (2, 8, 8)),
    "a vector": ({"y": (5,), "x": (1, 4, 4)}, (6, 4, 4)),
    "vectors": ({"y": (5,), "x": (2,), "w": (1,)}, (8,)),
    "no channels": ({"y": (4, 4), "x": (2, 8, 8)}, (3, 8, 8)),
}
every_layout = pytest.mark.parametrize("name", LAYOUTS)


class Same(nn.Module):
    """Says what it sees, and keeps it."""

    def forward(self, x, level, condition=None):
        self.seen, self.condition = x, condition
        return x


class Mixing(nn.Module):
    def forward(self, x, level):
        return x * x.sum((1, 2, 3), keepdim=True)


@every_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_spread_is_gathered(name, dtype):
    """Means of what was repeated are what it was."""
    parts, shape = LAYOUTS[name]
    joint, same = Joint(**parts), Same()
    network = JointNetwork(joint, same)
    assert JointNetwork.seen_shape(joint) == shape
    x = torch.randn(5, joint.dim, dtype=dtype)
    found = network(x, torch.zeros(5, dtype=dtype))
    assert same.seen.shape == (5, *shape)
    if name != "no multiple":  # a pixel of 8 / 3 is a mean with its neighbours
        torch.testing.assert_close(found, x)
    assert found.shape == x.shape


def test_a_pixel_stands_where_it_was():
    joint, same = Joint(y=(1, 2, 2), x=(1, 4, 4)), Same()
    y = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    JointNetwork(joint, same)(joint.join(y=y, x=torch.zeros(1, 1, 4, 4)), torch.zeros(1))
    assert same.seen[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_a_condition_goes_on():
    joint, same = Joint(y=(1,), x=(2,)), Same()
    network = JointNetwork(joint, same)
    network(torch.zeros(2, 3), torch.zeros(2), torch.ones(2))
    assert same.condition.tolist() == [1, 1]


def test_every_part_learns():
    """Gradients reach the input through all of them."""
    joint = Joint(y=(1, 2, 2), x=(1, 8, 8))
    network = JointNetwork(joint, Mixing())
    x = torch.randn(2, joint.dim, requires_grad=True)
    for part in joint.slices.values():
        (gradient,) = torch.autograd.grad(network(x, torch.zeros(2))[:, part].sum(), x)
        for other in joint.slices.values():
            assert gradient[:, other].abs().max() > 0


def test_spaces_of_different_dimension_are_refused():
    with pytest.raises(ValueError, match=r"event_shape: expected 3 axes or more"):
        JointNetwork(Joint(y=(2, 2), x=(1, 4, 4, 4)), Same(), spatial=3)


class TestLaws(NetworkLaws):
    event_shape = (20,)

    def make(self):
        return JointNetwork(Joint(y=(4,), x=(1, 4, 4)), ResidualMLP((5, 4, 4), 16, 1))
