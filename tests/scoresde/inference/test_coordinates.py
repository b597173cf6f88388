"""Coordinates of simulations in any dtype, with constants and outliers."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import (
    Binomial,
    Dirichlet,
    Independent,
    LogNormal,
    MixtureSameFamily,
    Normal,
    Poisson,
    Uniform,
)

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


@both
@pytest.mark.parametrize("ranks", [False, True])
def test_no_number_is_too_far_to_be_seen(ranks, dtype):
    """Neither one that is clipped, as a few simulations were, nor one that never varied."""
    zero = torch.zeros(2, dtype=dtype)
    prior = Independent(Normal(zero, 1 + zero), 1)
    torch.manual_seed(0)
    theta, x = simulate(prior, lambda t: t + 0.1 * torch.randn_like(t), 2000)
    x = torch.cat([x, torch.full_like(x[:, :1], 0.1)], 1)
    x[:4, :2] *= 1000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to = Coordinates.fit(prior, theta, x, ranks=ranks)
    assert to.relative_distance(x).max() == pytest.approx(1, rel=1e-4)
    far = torch.tensor([[1e12, -1e12, 0.1], [0.5, 0.5, 0.2]], dtype=dtype)
    assert (to.relative_distance(far) > 1000).all()
    for kind in DTYPES:  # the constant in other digits is the same constant
        assert to.relative_distance(torch.tensor([0.5, 0.5, 0.1], dtype=kind)) < 0.1


@both
def test_a_set_without_items_is_like_none_that_had_some(dtype):
    theta = torch.randn(50, 2, dtype=dtype)
    x = torch.randn(50, 4, 3, dtype=dtype)
    x[:, 2:] = torch.nan
    prior = Independent(Normal(torch.zeros(2, dtype=dtype), 1.0), 1)
    none = torch.full_like(x[0], torch.nan)
    to = Coordinates.fit(prior, theta, x, items=True)
    assert to.relative_distance(x).max() == pytest.approx(1)
    assert to.relative_distance(none) == to.relative_distance(none[:0]) == torch.inf
    x[0] = torch.nan
    assert Coordinates.fit(prior, theta, x, items=True).relative_distance(none) == 0


def two(distribution):
    return distribution.expand((2,))


KINDS = torch.distributions.Categorical(torch.ones(2))
BOXES = Uniform(torch.zeros(2, 2), torch.tensor([[1.0], [2.0]]))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Normal(0.0, 1.0), "events of one axis or more"),
        (two(Normal(0.0, 1.0)), "no batch shape"),
        (Independent(two(Binomial(5, torch.tensor(0.5))), 1), "continuous parameters"),
        (Independent(two(Poisson(1.0)), 1), "continuous parameters"),
        (Dirichlet(torch.ones(2)), "each by itself, got Simplex"),
        (MixtureSameFamily(KINDS, Independent(BOXES, 1)), "each by itself, got .*Interval"),
    ],
)
def test_parameters_are_numbers_each_with_a_range_of_its_own(prior, message):
    for use in (lambda: simulate(prior, None, 5), lambda: Coordinates.fit(prior, None, None)):
        with pytest.raises(ValueError, match=f"prior: expected .*{message}"):
            use()


@both
def test_a_mixture_s_parameters_are_those_of_its_components(dtype):
    means = torch.tensor([[0.0, 0.0], [3.0, 1.0]], dtype=dtype)
    prior = MixtureSameFamily(KINDS, Independent(Normal(means, 1.0), 1))
    theta, x = simulate(prior, lambda t: t + torch.randn_like(t), 500)
    to = Coordinates.fit(prior, theta, x)
    assert to.joint_events(theta, x).std(0).sub(1).abs().max() < 0.01
    positive = MixtureSameFamily(KINDS, Independent(LogNormal(means, 1.0), 1))
    theta, _ = simulate(positive, lambda t: t, 50)
    centred = Coordinates.fit(positive, theta, theta).joint_events(theta, theta)
    assert centred.isfinite().all()


def test_simulations_of_somebody_else_are_looked_at():
    prior, rng = uniform(torch.float32), np.random.default_rng(0)
    theta = rng.uniform(size=(50, 2))
    x = theta + rng.normal(size=(50, 2))
    for kind in (np.float32, np.float64):
        to = Coordinates.fit(prior, theta.astype(kind), x.astype(kind))
        assert to.mean.numpy().dtype == kind
    below = np.nextafter(np.zeros(2), -1)  # the least bound, with fewer digits
    Coordinates.fit(prior, np.vstack([theta, below]), np.vstack([x, below]))
    wrong = [
        (5 * theta, x, "parameters: expected draws of the prior, got [0-9]+ of 50 outside"),
        (theta[:, :1], x, r"parameters: expected shape \(\*batch, 2\)"),
        (theta[None], x, "parameters: expected one axis of simulations"),
        (theta, x[:, 0], "observations: expected shape"),
        (theta, x[:9], "observations: expected one for each of 50 parameters, got 9"),
    ]
    for parameters, observations, message in wrong:
        with pytest.raises(ValueError, match=message):
            Coordinates.fit(prior, parameters, observations)
    for parameters in (theta.astype(int), "abc", 1j * theta):
        with pytest.raises(TypeError, match="parameters: expected"):
            Coordinates.fit(prior, parameters, x)
