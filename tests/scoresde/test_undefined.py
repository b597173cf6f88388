"""Densities are numbers: none is passed on as NaN, and what is not finite has none."""

import copy

import pyro
import pytest
import torch
from pyro.infer import HMC, MCMC
from torch.distributions import Gamma, Independent, Uniform

from estimators import Denoising, Gaussian, PartNetwork, ResidualMLP, Truncated
from scoresde import VP, DiagonalSDE, Identity, ScoreDistribution, ScoreEstimator
from scoresde.inference import Coordinates, Posterior, simulate
from solvers import DDIM, ExponentialMultistep

every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SDE = DiagonalSDE(VP(), Identity((2,)))


class Holes(ScoreEstimator):
    """Knows no score where the first component is above 2."""

    def denoise(self, z, t, condition=None):
        return torch.where(z[..., :1] > 2, torch.nan, z / 2)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return Denoising(SDE, ResidualMLP((2,), 8, 1)).to(dtype)


@every_precision
def test_an_event_without_a_density_is_named(dtype):
    distribution = ScoreDistribution(Holes(SDE), DDIM(5))
    x = torch.zeros(2, 3, 2, dtype=dtype)
    assert distribution.log_prob(x).isfinite().all()
    x[1, 2, 0] = 9.0
    with pytest.raises(
        ValueError, match=r"log_prob: expected a number .* at \[\[1, 2\]\] of \(2, 3\)"
    ):
        distribution.log_prob(x)
    with pytest.raises(ValueError, match=r"log_prob: .* at \[\[\]\] of \(\)"):
        distribution.log_prob(x[1, 2])


@every_precision
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_has_no_density(dtype, value):
    """And takes the others' neither them nor their gradients."""
    distribution = ScoreDistribution(network(dtype), DDIM(5), validate_args=False)
    x = torch.zeros(3, 2, dtype=dtype)
    wanted = distribution.log_prob(x)
    x[1, 0] = value
    x.requires_grad_()
    found = distribution.log_prob(x)
    assert found[1] == -torch.inf
    torch.testing.assert_close(found[::2], wanted[::2])
    (slope,) = torch.autograd.grad(found[::2].sum() + found[1], x)
    assert slope.isfinite().all()


@every_precision
@pytest.mark.parametrize("kind", ["network", "gaussian", "truncated"])
def test_far_away_there_is_next_to_no_density_and_no_nan(kind, dtype):
    model = {
        "network": lambda: network(dtype),
        "gaussian": lambda: Gaussian(SDE, torch.zeros(2), torch.eye(2)),
        "truncated": lambda: Truncated(SDE, -1.0, [1.0, torch.inf]),
    }[kind]()
    size = torch.tensor([1e3, 1e6, 1e12, 1e19, 1e30, 1e38], dtype=dtype)
    x = torch.stack([torch.stack([size, -size], -1), torch.stack([0 * size, size], -1)])
    assert (ScoreDistribution(model, DDIM(5)).log_prob(x) < -1e4).all()


def test_a_trajectory_that_diverges_is_refused_without_an_error():
    """Steps a hundred times too long: every proposal is refused, or the chain would stop."""
    distribution = ScoreDistribution(network(), DDIM(5), method=DDIM(5))

    def model():
        return pyro.sample("x", distribution)

    kernel = HMC(model, step_size=1e3, num_steps=12, adapt_step_size=False, adapt_mass_matrix=False)
    chain = MCMC(kernel, num_samples=2, warmup_steps=1, disable_progbar=True)
    chain.run()
    assert chain.get_samples()["x"].isfinite().all()


def simulated(prior, dtype=torch.float32):
    torch.manual_seed(0)

    def simulator(theta):
        both = torch.cat([theta, theta.prod(-1, keepdim=True)], -1)
        return both + 0.1 * torch.randn(len(theta), 3)

    theta, x = (v.to(dtype) for v in simulate(prior, simulator, 2000))
    to = Coordinates.fit(prior, theta, x)
    sde = DiagonalSDE(VP(), to.joint, to.joint.per_block(observation=0, parameter=1))
    part = PartNetwork(to.joint, "parameter", ResidualMLP((2,), 16, 1, condition_dim=3))
    model = Denoising(sde, part, baseline=Truncated.from_coordinates(to, sde)).to(dtype)
    return theta, Posterior(model, to, ExponentialMultistep(12))


BOX = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
SEEN = torch.tensor([[0.5, 0.2, 0.1], [-0.9, 0.95, -0.8], [0.0, 0.0, 0.0]])


def test_posteriors_between_bounds_have_densities_in_float32():
    """Those of float64, event by event; and they add up to one."""
    theta, posterior = simulated(BOX)
    fine = Posterior(
        copy.deepcopy(posterior.estimator).double(),
        copy.deepcopy(posterior.coordinates).double(),
        posterior.solver,
    )
    grid = torch.cartesian_prod(*[torch.linspace(-0.975, 0.975, 40)] * 2)
    for seen in SEEN:
        found = posterior(seen).log_prob(theta[:100])
        wanted = fine(seen.double()).log_prob(theta[:100].double())
        assert found.isfinite().all()
        likely = wanted > wanted.max() - 15
        torch.testing.assert_close(found[likely].double(), wanted[likely], rtol=0, atol=0.02)
    mass = posterior(SEEN[1]).log_prob(grid).exp().sum() * (2 / 40) ** 2
    assert 0.9 < mass < 1.02


def test_the_border_of_a_support_has_no_density():
    """The logarithm of 0 is a parameter's; in its coordinates that is minus infinity."""
    prior = Independent(Gamma(2 * torch.ones(2), torch.ones(2)), 1)
    theta, posterior = simulated(prior)
    values = theta[:3].clone()
    values[1, 0] = 0.0
    values.requires_grad_()
    found = posterior(SEEN).log_prob(values)
    assert found[1] == -torch.inf
    assert found[::2].isfinite().all()
    (slope,) = torch.autograd.grad(found[::2].sum(), values)
    assert slope.isfinite().all()


def test_a_posterior_without_a_density_says_where():
    theta, posterior = simulated(BOX)
    with torch.no_grad():
        posterior.estimator.network.network.output_layer[1].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"log_prob: expected a number .* at \[\[0\], \[1\]\]"):
        posterior(SEEN[0]).log_prob(theta[:2])
