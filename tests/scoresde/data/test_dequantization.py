"""A learned dequantisation: a density on every cell, and a tighter bound."""

import math

import pytest
import torch
from torch import nn

from scoresde.data import bits_per_dim, quantize
from scoresde.data.dequantization import VariationalDequantization

pytestmark = pytest.mark.usefixtures("float64")

BINS = 4


class Table(nn.Module):
    """Shift and log-scale by integer."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2, BINS))

    def forward(self, centre):
        value = quantize(centre, BINS)
        return self.values[0][value], self.values[1][value]


def random_table():
    table = Table()
    with torch.no_grad():
        table.values.copy_(0.7 * torch.randn(2, BINS))
    return table


def test_without_a_network_it_is_uniform():
    v = torch.randint(BINS, (5000, 2))
    x, log_q = VariationalDequantization(BINS)(v)
    assert log_q.abs().max() < 1e-10
    assert torch.equal(quantize(x, BINS), v)
    u = (x + 1) * BINS / 2 - v
    assert float(u.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.005)


def test_log_q_is_the_density_of_what_is_drawn():
    """By importance: ``E_q[h(u) / q(u)]`` is the integral of ``h`` over the cell."""
    model = VariationalDequantization(BINS, random_table())
    for value in range(BINS):
        v = torch.full((200000, 1), value)
        x, log_q = model(v, torch.Generator().manual_seed(value))
        u = ((x + 1) * BINS / 2 - v).squeeze(1).detach()
        weight = (-log_q).exp().detach()
        for h, truth in ((u * (1 - u), 1 / 6), (u**2 * (1 - u), 1 / 12)):
            value = weight * h
            assert abs(float(value.mean()) - truth) < 5 * float(value.std()) / len(v) ** 0.5


def test_the_network_hears_the_centres_of_cells():
    heard = []

    class Told(torch.nn.Module):
        def forward(self, centre):
            heard.append(centre)
            return torch.zeros_like(centre), torch.zeros_like(centre)

    VariationalDequantization(4, Told())(torch.tensor([[0, 1, 2, 3]]))
    torch.testing.assert_close(heard[0], torch.tensor([[-0.75, -0.25, 0.25, 0.75]]))


def test_training_tightens_the_bound_which_holds():
    distribution = torch.distributions.Normal(0.2, 0.15)
    edges = torch.linspace(-1, 1, BINS + 1)
    exact = distribution.cdf(edges).diff()  # P(v), all but 1e-7 of it
    v = torch.arange(BINS).repeat(500)[:, None]
    weight = exact.repeat(500)
    model = VariationalDequantization(BINS, Table())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    def cost(seed):
        x, log_q = model(v, torch.Generator().manual_seed(seed))
        bits = bits_per_dim(distribution.log_prob(x).squeeze(1) - log_q, 1, BINS)
        return (weight * bits).sum() / 500

    entropy = -float((exact * exact.log2()).sum())
    before = float(cost(99).detach())
    for step in range(60):
        optimizer.zero_grad()
        cost(step).backward()
        optimizer.step()
    after = float(cost(99).detach())
    assert entropy - 0.01 < after < before - 0.3
    assert after < entropy + 0.15


def test_levels_are_checked():
    with pytest.raises(ValueError, match="bins"):
        VariationalDequantization(1)


def test_the_bound_is_jensens():
    """For a density that is constant on cells, uniform dequantisation loses nothing."""
    x, log_q = VariationalDequantization(2)(torch.randint(2, (10, 3)))
    flat = torch.full((10,), -3 * math.log(2))
    torch.testing.assert_close(bits_per_dim(flat - log_q, 3, 2), torch.ones(10))
    assert x.abs().max() <= 1
