"""Modes, masses, far observations, and posteriors as other libraries want them."""

import sys
import types
import warnings

import numpy as np
import pyro
import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from estimators import Gaussian, Truncated
from scoresde import VP, DiagonalSDE
from scoresde.inference import (
    Coordinates,
    Posterior,
    SBIPosterior,
    guide,
    predict,
    simulate,
    to_arviz,
)
from solvers import ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def conjugate(dtype, prior=None):
    """``x = theta + e``, all standard normal: ``N(x / 2, 1/2)``."""
    zero, one = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    prior = prior or Independent(Normal(zero, one), 1)
    to = Coordinates(prior, zero, one, zero, torch.zeros(2, 2, dtype=dtype), one, zero)
    speeds = to.joint.per_block(observation=0.0, parameter=1.0)
    two = torch.eye(2, dtype=dtype)
    covariance = torch.cat([torch.cat([2 * two, two], 1), torch.cat([two, two], 1)])
    joint = Gaussian(DiagonalSDE(VP(), to.joint, speeds), torch.zeros(4, dtype=dtype), covariance)
    return Posterior(joint, to, ExponentialMultistep(16))


@both
def test_modes_of_a_batch(dtype):
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=dtype)
    torch.manual_seed(0)
    found = conjugate(dtype)(x).map(starts=30, steps=8)
    assert found.dtype == dtype
    torch.testing.assert_close(found, x / 2, rtol=0, atol=0.15)


@both
def test_densities_are_normalised_over_the_support(dtype):
    """Half of what the estimator has learned is outside: what is inside counts twice."""
    low = torch.tensor([0.0, -30.0], dtype=dtype)
    box = Independent(Uniform(low, torch.full((2,), 30.0, dtype=dtype)), 1)
    x = torch.zeros(2, dtype=dtype)
    inside, everywhere = conjugate(dtype, box)(x), conjugate(dtype)(x)
    assert float(inside.mass) == pytest.approx(0.5, abs=0.06)
    assert everywhere.mass == 1
    value = torch.tensor([[0.3, 0.2], [1.0, -1.0]], dtype=dtype)
    twice = everywhere.log_prob(value) - inside.mass.log()
    torch.testing.assert_close(inside.log_prob(value), twice)
    state = torch.get_rng_state()
    assert torch.equal(inside.expand([3]).mass, inside.mass.expand(3))
    conjugate(dtype, box)(x).log_prob(value)
    assert torch.equal(torch.get_rng_state(), state)


@both
def test_an_observation_far_from_the_simulations_is_warned_of(dtype):
    zero = torch.zeros(2, dtype=dtype)
    prior = Independent(Normal(zero, 1 + zero), 1)
    torch.manual_seed(0)
    theta, x = simulate(prior, lambda t: 5 + t.sum(1, keepdim=True) * torch.ones(1, 2), 1000)
    x = x + 0.01 * torch.randn_like(x)
    to = Coordinates.fit(prior, theta, x)
    far = to.relative_distance(x)
    assert (far.max(), far.shape) == (pytest.approx(1, rel=1e-4), (1000,))
    speeds = to.joint.per_block(observation=0.0, parameter=1.0)
    model = Truncated.from_coordinates(to, DiagonalSDE(VP(), to.joint, speeds))
    posterior = Posterior(model, to, ExponentialMultistep(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior(x)
    for wrong in ([50.0, 50.0], [5.0, 6.0]):  # by itself, and by how both hang together
        with pytest.warns(UserWarning, match="1 of 2 farther from the middle of the simulations"):
            posterior(torch.stack([x[0], torch.tensor(wrong, dtype=dtype)]))


def test_predictions_are_simulations_of_draws():
    learned, x = conjugate(torch.float32), torch.tensor([1.0, -2.0])
    again = predict(learned(x), lambda t: t + torch.randn_like(t), 4000)
    torch.testing.assert_close(again.mean(0), x / 2, rtol=0, atol=0.1)
    torch.testing.assert_close(again.var(0), torch.full((2,), 1.5), rtol=0, atol=0.15)
    with pytest.raises(ValueError, match="posterior: expected one of a single observation"):
        predict(learned(x.expand(3, 2)), lambda t: t, 5)


def test_a_guide_of_a_pyro_model():
    """Its weights are the evidence, whatever is drawn."""
    x = torch.tensor([0.5, -1.0])

    def model(seen):
        theta = pyro.sample("theta", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(theta, 1.0).to_event(1), obs=seen)

    draw = guide(conjugate(torch.float32), "theta")
    run = pyro.infer.Importance(model, draw, num_samples=5).run(x)
    weights = torch.tensor(run.log_weights)
    wanted = Independent(Normal(torch.zeros(2), 2**0.5), 1).log_prob(x)
    torch.testing.assert_close(weights, wanted.expand(5), rtol=0, atol=0.1)


def test_the_methods_of_sbi():
    learned = conjugate(torch.float32)
    posterior = SBIPosterior(learned)
    with pytest.raises(ValueError, match="x: expected an observation"):
        posterior.sample((3,))
    x = torch.tensor([[0.5, -1.0]])
    assert posterior.set_default_x(x).sample((3, 4), show_progress_bars=False).shape == (3, 4, 2)
    assert posterior.sample((3,), x=x.double().numpy()).dtype == torch.float32
    theta = torch.randn(3, 2)
    torch.testing.assert_close(posterior.log_prob(theta), learned(x[0]).log_prob(theta))
    several = x.expand(5, 2)
    assert posterior.sample_batched((3,), several).shape == (3, 5, 2)
    assert posterior.log_prob_batched(theta.unsqueeze(1).expand(3, 5, 2), several).shape == (3, 5)
    assert posterior.map(starts=5, steps=2).shape == (1, 2)
    with pytest.raises(ValueError, match="x: expected one observation"):
        posterior.sample((3,), x=several)


def before(posterior=None, *, log_likelihood=None):
    """As ArviZ to 0.23 has it: the first dictionary is one of variables."""
    return {name: np.asarray(value) for name, value in posterior.items()}


def after(data, *, name=None):
    """As ArviZ has it from 1 on: of groups."""
    return data["posterior"]


@pytest.mark.parametrize("from_dict", [before, after])
def test_samples_for_arviz(from_dict, monkeypatch):
    fake = types.SimpleNamespace(from_dict=from_dict)
    monkeypatch.setitem(sys.modules, "arviz", fake)
    samples = torch.randn(6, 2)
    found = to_arviz(samples, "theta", chains=2)["theta"]
    assert torch.equal(torch.from_numpy(found), samples.reshape(2, 3, 2))
    array = to_arviz(samples.double().numpy(), "theta", chains=2)["theta"]
    assert np.array_equal(array, found)
    with pytest.raises(ValueError, match="samples: expected finite numbers"):
        to_arviz(samples / 0)


def test_arviz_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        to_arviz(torch.zeros(2, 1))
