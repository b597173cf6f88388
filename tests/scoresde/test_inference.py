"""Posteriors of simulators, against closed forms."""

import pytest
import torch
from torch.distributions import Independent, LogNormal, MultivariateNormal, Normal, Uniform

from estimators import Denoising, Gaussian, PartNetwork, ResidualMLP, measure
from scoresde import VP, DiagonalSDE
from scoresde.data import Dataset
from scoresde.inference import Posterior, pairs, simulate, unbounded
from scoresde.training import Training
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

SOLVER = ExponentialMultistep(40)


def standard(n=2):
    return Independent(Normal(torch.zeros(n), torch.ones(n)), 1)


def exact(prior):
    """``x = A u + e`` with ``u`` standard normal: an exact joint estimator, and ``u``'s law."""
    A = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
    spread = A @ A.mT + 0.25 * torch.eye(3)
    joint = torch.cat([torch.cat([spread, A], 1), torch.cat([A.mT, torch.eye(2)], 1)])
    basis = pairs(torch.zeros(1, 2), torch.zeros(1, 3))
    sde = DiagonalSDE(VP(), basis, basis.spread(observation=0, parameter=1))
    gain = A.mT @ torch.linalg.inv(spread)
    posterior = Posterior(Gaussian(sde, torch.zeros(5), joint), prior, SOLVER)
    return posterior, lambda x: MultivariateNormal(x @ gain.mT, torch.eye(2) - gain @ A)


def test_the_posterior_of_every_observation():
    posterior, law = exact(standard())
    x = torch.randn(4, 3)
    found = posterior(x)
    assert (found.batch_shape, found.event_shape) == ((4,), (2,))
    samples = found.sample((4000,))
    torch.testing.assert_close(samples.mean(0), law(x).mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples.std(0), law(x).stddev, rtol=0.06, atol=0)
    torch.testing.assert_close(
        found.log_prob(samples[:3]), law(x).log_prob(samples[:3]), rtol=0, atol=0.04
    )


def test_bounded_parameters_keep_their_support_and_the_density_its_jacobian():
    prior = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    posterior, law = exact(prior)
    x = torch.tensor([0.5, -1.0, 0.3])
    samples = posterior(x).sample((500,))
    assert (samples > 0).all()
    wanted = law(x).log_prob(samples.log()) - samples.log().sum(-1)
    torch.testing.assert_close(posterior(x).log_prob(samples), wanted, rtol=0, atol=0.04)
    torch.testing.assert_close(unbounded(prior, samples), samples.log())


def test_simulations_are_pairs():
    prior = standard()
    theta, x = simulate(prior, lambda t: torch.cat([t, t[:, :1]], 1), 2500, batch_size=1000)
    assert theta.shape == (2500, 2)
    assert torch.equal(x, torch.cat([theta, theta[:, :1]], 1))
    assert theta.unique(dim=0).shape == theta.shape


def test_failed_simulations_are_left_out():
    def failing(theta):
        return torch.where(theta > 1, torch.nan, theta)

    theta, x = simulate(standard(1), failing, 1000)
    assert 800 < len(theta) < 900
    assert torch.equal(theta, x)


def test_a_trained_posterior():
    prior = Independent(Uniform(-2 * torch.ones(1), 2 * torch.ones(1)), 1)
    theta, x = simulate(prior, lambda t: t + 0.3 * torch.randn_like(t), 4000)
    u = unbounded(prior, theta)
    joint = pairs(u, x)
    data = joint.join(observation=x, parameter=u)
    sde = DiagonalSDE(VP(), joint, joint.spread(observation=0, parameter=1))
    network = PartNetwork(joint, "parameter", ResidualMLP((1,), 32, 2, condition_dim=1))
    model = Denoising(sde, network, **measure(sde, data))
    training = Training(steps=500, batch_size=256, lr=5e-3, ema=0.98)
    training.fit(model, Dataset("pairs", data), progress=False)
    posterior = Posterior(model, prior, ExponentialMultistep(20))(torch.tensor([0.5]))
    samples = posterior.sample((4000,))
    assert abs(samples.mean() - 0.5) < 0.06
    assert abs(samples.std() - 0.3) < 0.12  # trained for a moment
    grid = torch.linspace(-1.99, 1.99, 400).unsqueeze(-1)
    mass = posterior.log_prob(grid).exp().sum() * 3.98 / 399
    assert abs(mass - 1) < 0.03


def test_what_a_part_network_says_of_the_others_is_nothing():
    joint = pairs(torch.zeros(1, 2), torch.zeros(1, 3))

    class Sum(torch.nn.Module):
        def forward(self, x, level, condition):
            return x + condition.sum(-1, keepdim=True)

    event = torch.arange(5.0).unsqueeze(0)
    found = PartNetwork(joint, "parameter", Sum())(event, torch.zeros(1))
    assert found.tolist() == [[0.0, 0.0, 0.0, 6.0, 7.0]]
    with pytest.raises(ValueError, match="parts: "):
        PartNetwork(joint, "theta", Sum())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda: simulate(Normal(torch.zeros(2), 1.0), lambda t: t, 10),
            "prior: expected no batch",
        ),
        (lambda: simulate(standard(), lambda t: t[:1], 10), "simulator: expected 10 observations"),
        (lambda: simulate(standard(), lambda t: t / 0, 10), "simulator: expected finite"),
        (lambda: exact(standard())[0](torch.zeros(4)), "observation: expected shape"),
    ],
)
def test_bad_inference(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
