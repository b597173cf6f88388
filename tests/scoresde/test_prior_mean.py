"""An SDE that knows the data's mean: samples, densities and bounds against closed forms."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from estimators import Gaussian
from scoresde import (
    EDM,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    RectifiedFlow,
    bound,
    log_prob,
)
from scoresde.conditioning import condition
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

MEAN = torch.tensor([300.0, -50.0], dtype=torch.float64)
SPREAD = torch.tensor([[4.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
every_schedule = pytest.mark.parametrize(
    "schedule", [VP(), Cosine(), EDM(), RectifiedFlow(eps=1e-5)], ids=lambda s: type(s).__name__
)


def model(schedule, basis, **known):
    sde = DiagonalSDE(schedule, basis, scale=[2.0, 1.0], **known)
    return Gaussian(sde, MEAN, SPREAD)


@every_schedule
def test_densities_and_bounds_of_every_event(schedule):
    exact = model(schedule, Identity((2,)), mean=MEAN)
    x = MEAN + torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 0.5]])
    first = exact.marginal(torch.tensor([schedule.eps])).log_prob(x)
    torch.testing.assert_close(log_prob(exact, x).value, first, atol=5e-3, rtol=0)
    # without a correlation the bound's control is exact, and nothing is left to chance
    variances = torch.diag(SPREAD.diagonal())
    exact = Gaussian(exact.sde, MEAN, variances)
    wanted = MultivariateNormal(MEAN, variances).log_prob(x)
    torch.testing.assert_close(bound(exact, x), -wanted, atol=0.02, rtol=0)


@every_schedule
@pytest.mark.parametrize("clean", [True, False])
def test_conditionals_keep_the_mean_of_what_is_not_observed(schedule, clean):
    joint = model(schedule, Joint(y=(1,), x=(1,)), mean=MEAN)
    given = condition(joint, clean=clean, y=torch.tensor([301.0]))
    x = ExponentialMultistep(200, grid="log_snr", eta=0.0 if clean else 1.0).sample(given, (3000,))
    centre, std = -50 + 1.2 / 4, (1 - 1.2**2 / 4) ** 0.5
    if clean:
        assert float(x.mean()) == pytest.approx(centre, abs=0.08)
        assert float(x.std()) == pytest.approx(std, rel=0.06)
        wanted = torch.distributions.Normal(centre, std).log_prob(x[:3]).squeeze(-1)
        found = log_prob(given, x[:3]).value
        torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    else:  # replacement is no exact conditional
        assert float(x.mean()) == pytest.approx(-50, abs=0.5)


def test_what_is_dropped_enters_around_its_mean():
    sde = DiagonalSDE(VP(), Haar((1, 2, 2), 1), drop=[1.0, 0.6], mean=[8.0, 9.0])
    late = sde.stages()[1]
    mean, sigma = sde.moments(late.start, 1, 4)
    alpha, wanted = sde.kernel(torch.tensor([0.6], dtype=torch.float64))
    torch.testing.assert_close(mean, (9 * alpha).expand(3))
    torch.testing.assert_close(sigma, wanted.expand(3))
    distribution = sde.distribution(late.start, 1, 4)
    assert torch.equal(distribution.mean, mean)
    assert torch.equal(distribution.stddev, sigma)


def test_means_fit_the_basis():
    with pytest.raises(ValueError, match="mean: expected a last axis of 1"):
        DiagonalSDE(VP(), Identity((3,)), mean=[0.0, 1.0])
