"""Kernel ridge regression: what is left out, what is explained, and coordinates by it."""

import pytest
import torch
from torch.distributions import Independent, Uniform

from estimators.posterior_fit import fit_posterior
from scoresde.inference import Coordinates, simulate
from scoresde.inference.smooth import Smooth
from scoresde.training import Training
from solvers import ExponentialMultistep

both = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
NOISE = 0.002


def box(dtype):
    one = torch.ones(2, dtype=dtype)
    return Independent(Uniform(-one, one), 1)


def banana(theta):
    x = torch.stack([theta[:, 0], theta[:, 1] + 2 * theta[:, 0] ** 2], -1)
    return x + NOISE * torch.randn_like(x)


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@both
def test_left_out_rows_are_predicted_as_without_them(seeded, dtype):
    """By the normal equations less a row, on the same landmarks with the same ridge."""
    x = torch.linspace(-2, 2, 24, dtype=dtype).unsqueeze(1)
    y = (2 * x).sin() + 0.02 * torch.randn_like(x)
    found = Smooth.fit(x, y)
    kernel = (-((x.double() - found.landmarks.mT) ** 2) / 2 / found.width**2).exp()
    normal = torch.linalg.inv(found.root @ found.root.mT)
    fitted, leverage = found.with_leverage(x)
    left = (y.double() - fitted) / (1 - leverage)
    for i in (0, 7, 23):
        k = kernel[i : i + 1]
        others = kernel.mT @ y.double() - k.mT * y[i].double()
        alone = k @ torch.linalg.solve(normal - k.mT @ k, others)
        torch.testing.assert_close(left[i], y[i].double() - alone[0], rtol=1e-2, atol=1e-5)
        assert leverage[i] > 0.05  # or nothing has been tested


@both
def test_what_is_nearly_all_explained_is_kept_and_nothing_else(seeded, dtype):
    x = torch.randn(800, 2, dtype=dtype)
    curve, noise = x[:, :1].sin() * x[:, 1:], torch.randn(800, 1, dtype=dtype)
    found = Smooth.fit(x, torch.cat([curve, noise], 1))
    new = torch.randn(200, 2, dtype=dtype)
    wanted = new[:, :1].sin() * new[:, 1:]
    assert (found(new)[:, :1] - wanted).square().mean() < 1e-3 * wanted.square().mean()
    assert (found(new)[:, 1] == 0).all()
    assert (found.with_leverage(x)[1][:, 1] == 0).all()
    assert Smooth.fit(x, noise) is None
    assert Smooth.fit(x, curve + noise) is None


@both
def test_coordinates_are_as_narrow_as_what_is_left(seeded, dtype):
    prior = box(dtype)
    theta, x = simulate(prior, banana, 1000)
    to, linear = Coordinates.fit(prior, theta, x, smooth=True), Coordinates.fit(prior, theta, x)
    assert linear.smooth is None
    # errors of the first number come into the second, by 4 theta of mean square 16/3
    assert abs(to.std[1] / NOISE / (19 / 3) ** 0.5 - 1) < 0.15
    assert to.std[1] < linear.std[1] / 10
    new, seen = simulate(prior, banana, 1000)
    events = to.transform(seen).inv(new)
    for one in (events, to.joint.split(to.joint_events(theta, x))["parameter"]):
        torch.testing.assert_close(one.std(0), torch.ones(2, dtype=dtype), rtol=0.15, atol=0)
    torch.testing.assert_close(to.transform(seen)(events), new)
    observed = to.observation(seen)
    assert observed.shape == (1000, 4)
    assert observed.dtype == dtype
    assert to.relative_distance(seen).max() < 1.5


@both
def test_smooth_coordinates_are_kept_and_cast(seeded, dtype):
    prior = box(dtype)
    theta, x = simulate(prior, banana, 500)
    to = Coordinates.fit(prior, theta, x, smooth=True)
    again = Coordinates(prior, **to.state_dict())
    assert torch.equal(again.joint_events(theta, x), to.joint_events(theta, x))
    assert torch.equal(again.transform(x).inv(theta), to.transform(x).inv(theta))
    leverage = to.smooth.with_leverage(to.observation(x)[:, :2])[1].to(dtype)
    pairs = to.joint.split(to.joint_events(theta, x))["parameter"]
    torch.testing.assert_close(pairs, to.transform(x).inv(theta) / (1 - leverage))
    single = to.float()
    assert single.smooth.root.dtype == torch.float64
    left, wanted = (one.observation(x).double() for one in (single, again))
    torch.testing.assert_close(left, wanted, rtol=1e-3, atol=1e-3)


def test_kernels_of_simulations_are_found_once(seeded, monkeypatch):
    """They are most of what fitting takes, and all of what pairs do."""
    asked, features = [], Smooth.features
    monkeypatch.setattr(Smooth, "features", lambda s, x: asked.append(x.shape) or features(s, x))
    prior = box(torch.float32)
    theta, x = simulate(prior, banana, 500)
    to = Coordinates.fit(prior, theta, x, smooth=True)
    assert asked.count(x.shape) == 1
    to.joint_events(theta, x)
    assert asked.count(x.shape) == 2


@both
def test_posteriors_of_simulators_with_next_to_no_noise(seeded, dtype):
    """Before anything is learned: bent where the simulator bends, and no wider than its noise."""
    prior = box(dtype)
    theta, x = simulate(prior, banana, 1000)
    training, solver = Training(steps=2, batch_size=32), ExponentialMultistep(16)
    posterior = fit_posterior(prior, theta, x, training=training, solver=solver, progress=False)
    distribution = posterior(torch.tensor([0.5, 0.2], dtype=dtype))
    drawn = distribution.sample((200,))
    assert (drawn.mean(0) - torch.tensor([0.5, -0.3], dtype=dtype)).abs().max() < 0.005
    assert drawn.std(0).max() < 0.01
    density = distribution.log_prob(drawn)
    assert density.isfinite().all()
    # that of a normal distribution of such a width, on average
    wanted = -drawn.std(0).log().sum() - 1 - torch.tensor(2 * torch.pi).log()
    assert abs(density.mean() - wanted) < 0.15
