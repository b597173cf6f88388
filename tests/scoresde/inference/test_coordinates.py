"""Coordinates of simulations in any dtype, with constants and outliers."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from estimators import Denoising, ResidualMLP, Truncated
from scoresde import VP, DiagonalSDE
from scoresde.inference import Coordinates, Posterior, simulate
from solvers import ExponentialMultistep

DTYPES = [torch.float32, torch.float64]
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)

SIMULATORS = {
    "float32": lambda t: (5 * t + torch.randn_like(t)).float(),
    "float64": lambda t: (5 * t + torch.randn_like(t)).double(),
    "half": lambda t: (5 * t + torch.randn_like(t)).half(),
    "counts": lambda t: torch.poisson(20 * t).long(),
    "booleans": lambda t: torch.rand_like(t) < t,
    "uint8": lambda t: torch.poisson(20 * t).to(torch.uint8),
    "array": lambda t: 5 * t.numpy() + np.random.default_rng(0).normal(size=t.shape),
}


def uniform(dtype):
    return Independent(Uniform(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)), 1)


@pytest.mark.covering(1)
@both
@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("simulator", SIMULATORS.values(), ids=SIMULATORS)
def test_posteriors_are_in_the_prior_s_dtype_whatever_observations_come_in(simulator, ranks, dtype):
    theta, x = simulate(uniform(dtype), simulator, 1000)
    to = Coordinates.fit(uniform(dtype), theta, x, ranks=ranks)
    pairs = to.joint_events(theta, x)
    assert theta.dtype == pairs.dtype == dtype
    torch.testing.assert_close(pairs.std(0)[-2:], torch.ones(2, dtype=dtype), rtol=1e-3, atol=0)
    sde = DiagonalSDE(VP(), to.joint, to.joint.per_block(observation=0.0, parameter=1.0))
    for kind in DTYPES:  # of the network
        net = ResidualMLP((sde.basis.dim,), 8, 1).to(kind)
        model = Denoising(sde, net, baseline=Truncated.from_coordinates(to, sde))
        assert model.loss(pairs).dtype == dtype
        posterior = Posterior(model, to, ExponentialMultistep(4))(x[0])
        drawn = posterior.sample((3,))
        assert drawn.dtype == dtype
        assert posterior.log_prob(drawn).isfinite().all()


def test_the_dtype_of_simulations_makes_no_difference():
    """Counts are the same numbers, whatever they are stored in."""
    theta, x = simulate(uniform(torch.float64), SIMULATORS["counts"], 2000)
    exact = Coordinates.fit(uniform(torch.float64), theta, x).state_dict()
    for a, b in itertools.product(DTYPES, [torch.int32, torch.uint8, *DTYPES]):
        found = Coordinates.fit(uniform(a), theta.to(a), x.to(b)).state_dict()
        for name, value in exact.items():
            torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-5)


def test_observations_far_from_zero_keep_their_digits():
    """Seconds since 1970, of parameters in float32."""
    theta, x = simulate(uniform(torch.float32), lambda t: 1.7e9 + 3 * t.double(), 2000)
    to = Coordinates.fit(uniform(torch.float32), theta, x)
    torch.testing.assert_close(to.explained, torch.ones(2), atol=1e-5, rtol=0)
    assert to.observation(x).dtype == torch.float32


def fitted(simulator, dtype, count=4000):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prior = uniform(dtype)
        theta, x = simulate(prior, simulator, count, batch_size=count)
        to = Coordinates.fit(prior, theta, x)
    return to, x, " | ".join(str(one.message) for one in found)


@both
@pytest.mark.parametrize("value", [0.0, 3.0, -1e9])
def test_numbers_that_never_change_are_named_and_say_nothing(value, dtype):
    def simulator(t):
        return torch.cat([5 * t + torch.randn_like(t), torch.full_like(t, value)], 1)

    to, x, said = fitted(simulator, dtype)
    assert "'observation[2]', 'observation[3]': the same in all simulations" in said
    assert (to.slope[2:] == 0).all()
    other = x[:3].clone()
    other[:, 2:] += 5
    assert torch.equal(to.observation(other), to.observation(x[:3]))
    wanted = fitted(lambda t: simulator(t)[:, :2], dtype)[0]
    torch.testing.assert_close(to.explained, wanted.explained, atol=0.03, rtol=0)


@both
@pytest.mark.parametrize("outlier", [1e30, -1e30, 1e8])
@pytest.mark.parametrize("count", [1, 8])
def test_outliers_are_named_and_hide_nothing(outlier, count, dtype):
    """What the rest says of parameters is said as it is without them."""

    def simulator(t):
        x = 5 * t + torch.randn_like(t)
        x[:count, 1] = outlier
        return x

    to, x, said = fitted(simulator, dtype)
    assert "'observation[1]': outliers" in said
    wanted = 25 / 12 / (25 / 12 + 1)
    assert to.explained.tolist() == pytest.approx([wanted, wanted], abs=0.08)
    seen = to.observation(x)
    assert seen.abs().max() <= 5
    assert seen[count:].std(0).tolist() == pytest.approx([1, 1], abs=0.1)


@both
@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("unit", [2.0**-12, 2.0**12])
def test_units_of_observations_make_no_difference(unit, ranks, dtype):
    """Nor do they for outliers, and for what is rarely anything."""

    def simulator(t):
        x = torch.cat([5 * t + torch.randn_like(t), (t[:, :1] > 0.999).to(t)], 1)
        x[:3, 1] = 1e8
        return x

    prior = uniform(dtype)
    theta, x = simulate(prior, simulator, 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (Coordinates.fit(prior, theta, c * x, ranks=ranks) for c in (1.0, unit))
    assert one.clip.tolist() == other.clip.tolist() == [torch.inf, 5.0, torch.inf]
    torch.testing.assert_close(one.observation(x), other.observation(unit * x))
    torch.testing.assert_close(one.explained, other.explained)


def test_a_long_tail_keeps_what_it_says():
    """A tenth of all numbers beyond any bulk is no outlier."""
    to, x, said = fitted(lambda t: (20 * t).exp(), torch.float64)
    assert "outliers" in said
    order = x[:, 0].argsort()
    assert (to.observation(x)[order, 0].diff() > 0).all()


@both
def test_parameters_that_never_change_are_refused_by_name(dtype):
    prior = Independent(Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)), 1)
    theta, x = simulate(prior, lambda t: t, 100)
    theta[:, 1] = 0.1
    with pytest.raises(ValueError, match=r"parameters: .* the same 'parameter\[1\]' in all"):
        Coordinates.fit(prior, theta, x)
    # however small it is beside the others: what varies varies
    theta[:, 1] = 1e-6 * torch.randn(100)
    Coordinates.fit(prior, theta, x)
