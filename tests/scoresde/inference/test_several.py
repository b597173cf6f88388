"""Several observations of a simulator: priors' scores, and conjugate posteriors."""

import pytest
import torch
from torch.distributions import (
    Exponential,
    Independent,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

from estimators import Gaussian, Truncated
from scoresde import EDM, VP, DiagonalSDE, Identity, Joint
from scoresde.conditioning import Composition, Particles, slowed
from scoresde.inference import (
    Coordinates,
    PartEstimator,
    Posterior,
    PosteriorEstimator,
    PriorEstimator,
    SeveralObservations,
    simulate,
)
from solvers import ExponentialMultistep

DTYPES = [torch.float32, torch.float64]
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SOLVER = ExponentialMultistep(16)


def box(low, high, dtype=torch.float32):
    return Independent(Uniform(torch.tensor(low, dtype=dtype), torch.tensor(high, dtype=dtype)), 1)


def same(prior, std=None, mean=None):
    """Coordinates without an observation."""
    zero = torch.zeros(prior.event_shape.numel())
    std = zero + 1 if std is None else std
    none = torch.zeros(1)
    return Coordinates(
        prior, none, none + 1, zero if mean is None else mean, torch.zeros(1, len(zero)), std, zero
    )


def sde(n, schedule=None):
    return DiagonalSDE(schedule or EDM(), Identity((n,)))


TIMES = (0.0, 0.002, 0.1, 1.0, 30.0)


@both
def test_the_score_of_uniform_parameters(dtype):
    prior = box([-1.0, 0.0], [1.0, 4.0])
    to = same(prior, torch.tensor([0.5, 2.0]), torch.tensor([0.1, 1.0]))
    known, low, high = PriorEstimator(to, sde(2)), *to.bounds
    exact = Truncated(known.sde, low, high, std=1e6)
    z = torch.tensor([[-40.0, 0.1], [0.3, 0.3], [2.2, -0.5], [-0.5, 1e4]], dtype=dtype)
    accuracy = 2e-4 if dtype == torch.float32 else 1e-6
    for t in TIMES:
        found = known.denoise(z, t)
        assert found.dtype == dtype
        torch.testing.assert_close(found, exact.denoise(z, t), rtol=accuracy, atol=accuracy)


@both
@pytest.mark.parametrize("kind", ["independent", "logarithm", "correlated"])
def test_the_score_of_normal_parameters(kind, dtype):
    mean, std = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])
    covariance = torch.diag(std**2)
    prior = Independent(Normal(mean, std), 1)
    if kind == "logarithm":
        prior = Independent(LogNormal(mean, std), 1)
    elif kind == "correlated":
        covariance = covariance + torch.tensor([[0.0, 0.6], [0.6, 0.0]])
        prior = MultivariateNormal(mean, covariance)
    scale = torch.tensor([0.7, 1.5])
    known = PriorEstimator(same(prior, scale, mean + 0.1), sde(2))
    correlation = covariance / (scale * scale.unsqueeze(-1))
    # the range in which there is a prior is in units of its deviation, of about 1 here
    exact = Gaussian(known.sde, -0.1 / scale, correlation)
    z = torch.tensor([[-4.0, 0.1], [0.3, 0.3], [2.2, -0.5]], dtype=dtype)
    accuracy = 2e-4 if dtype == torch.float32 else 1e-7
    for t in TIMES:
        torch.testing.assert_close(
            known.denoise(z, t), exact.denoise(z, t), rtol=accuracy, atol=accuracy
        )


def test_the_score_of_any_independent_parameters():
    """By a sum over a fine grid."""
    prior = Independent(Exponential(torch.ones(1, dtype=torch.float64)), 1)
    known = PriorEstimator(same(prior), sde(1))
    u = torch.linspace(-30, 8, 20_001, dtype=torch.float64)
    for t in TIMES[1:]:
        for z in (-3.0, 0.5, 2.0):
            weight = (u - u.exp() - (z - u) ** 2 / 2 / t**2).softmax(0)
            found = known.denoise(torch.tensor([[z]], dtype=torch.float64), t)
            if t > 0.01:  # the grid's spacing
                torch.testing.assert_close(found[0, 0], (weight * u).sum(), rtol=1e-3, atol=2e-3)


def test_priors_of_other_kinds_are_refused():
    mixed = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)), Independent(Normal(torch.zeros(2, 1), 1), 1)
    )
    with pytest.raises(TypeError, match="prior: expected independent parameters"):
        PriorEstimator(same(mixed), sde(1))


@both
@pytest.mark.parametrize("clean", [True, False])
def test_parameters_alone_are_what_the_joint_estimator_says(clean, dtype):
    joint = Joint(y=(2,), x=(3,))
    scale, std = joint.per_block(y=2.0, x=0.5), joint.per_block(y=0.1, x=0.3)
    whole = DiagonalSDE(VP(), joint, scale=scale, std=std)
    whole = whole if clean else slowed(whole, ["y"], 0.0)
    spread = torch.eye(5) + 0.3
    model = Gaussian(whole, torch.arange(5.0), spread)
    part, y = PartEstimator(model, "x", clean), torch.randn(4, 2, dtype=dtype)
    gain = spread[2:, :2] @ torch.linalg.inv(spread[:2, :2])
    z, t = torch.randn(4, 3, dtype=dtype), torch.rand(4, dtype=dtype)
    assert part.sde.basis.event_shape == (3,)
    assert part.sde.std.tolist() == [0.3] * 3
    for i in range(4):
        mean = torch.arange(2.0, 5) + gain @ (y[i].float() - torch.arange(2.0))
        exact = Gaussian(part.sde, mean, spread[2:, 2:] - gain @ spread[:2, 2:])
        for times in (t, 0.4):
            wanted = exact.denoise(
                z[i : i + 1], times if isinstance(times, float) else t[i : i + 1]
            )
            found = part.denoise(z, times, y)[i : i + 1]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    given = PosteriorEstimator(part, y, torch.ones(4, 3, dtype=dtype))
    alpha = part.sde.kernel(torch.tensor([0.4])).alpha.to(dtype)
    torch.testing.assert_close(
        given.denoise(z + alpha, 0.4), part.denoise(z, 0.4, y) + 1, rtol=1e-4, atol=1e-4
    )
    rows = torch.tensor([3, 0])
    some = given.select(rows, (4,))
    torch.testing.assert_close(some.denoise(z[rows], 0.4), given.denoise(z, 0.4)[rows])


def test_parameters_alone_of_observations_that_diffuse():
    model = Gaussian(DiagonalSDE(VP(), Joint(y=(1,), x=(1,))), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="parts that do not diffuse"):
        PartEstimator(model, "x")
    with pytest.raises(TypeError, match="joint events"):
        PartEstimator(Gaussian(sde(1), torch.zeros(1), torch.eye(1)), "x")


def linear(dtype, simulations=2000):
    """``x = theta + e`` of standard normal ``theta``, by a regression alone: nearly exact."""
    prior = Independent(Normal(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)), 1)
    torch.manual_seed(0)
    theta = torch.randn(simulations, 2, dtype=dtype)
    to = Coordinates.fit(prior, theta, theta + torch.randn_like(theta))
    slope = torch.eye(2, dtype=dtype) * to.observation_std / 2
    to = Coordinates(
        prior,
        0 * to.mean,
        to.observation_std,
        0 * to.mean,
        slope,
        0.5**0.5 + 0 * to.std,
        to.explained,
    )
    speeds = to.joint.per_block(observation=0.0, parameter=1.0)
    return Truncated.from_coordinates(to, DiagonalSDE(VP(), to.joint, speeds)), to


@pytest.mark.covering(2)
@both
@pytest.mark.parametrize("method", ["samples", "jacobian", Particles(200, moves=1)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_conjugate_posteriors_of_several_observations(count, method, dtype):
    model, to = linear(dtype)
    posterior = SeveralObservations(model, to, SOLVER, method=method, count=1000)
    x = torch.tensor([1.0, -0.5], dtype=dtype) + torch.randn(count, 2, dtype=dtype)
    found = posterior(x)
    assert (found.batch_shape, found.event_shape) == ((), (2,))
    drawn, std = found.sample((800,)), (1 + count) ** -0.5
    assert drawn.dtype == dtype
    torch.testing.assert_close(
        (drawn.mean(0) - x.sum(0) / (1 + count)) / std,
        torch.zeros(2, dtype=dtype),
        rtol=0,
        atol=0.2,
    )
    torch.testing.assert_close(drawn.std(0) / std, torch.ones(2, dtype=dtype), rtol=0, atol=0.12)
    distribution = Independent(Normal(x.sum(0) / (1 + count), std), 1)
    if method == "samples":
        torch.testing.assert_close(
            found.log_prob(drawn[:9]), distribution.log_prob(drawn[:9]), rtol=0, atol=0.3
        )


def test_a_batch_of_sets_of_observations():
    model, to = linear(torch.float32)
    posterior = SeveralObservations(model, to, SOLVER, method="jacobian")
    x = torch.tensor([[[1.0, 0.0]] * 3, [[-1.0, 2.0]] * 3])
    found = posterior(x)
    drawn = found.sample((600,))
    assert drawn.shape == (600, 2, 2)
    torch.testing.assert_close(drawn.mean(0), 0.75 * x[:, 0], rtol=0, atol=0.1)
    assert found.expand([3, 2]).sample((5,)).shape == (5, 3, 2, 2)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bounds_are_kept_for_several_observations():
    """Uniform parameters seen through noise: a truncated Gaussian, as narrow as there is seen."""
    prior = box([-1.0], [1.0])
    to = same(prior, torch.full((1,), 0.4))
    to.explained = torch.full((1,), 1 - 0.4**2 * 3)
    model = Truncated(sde(1, VP()), *to.bounds, std=1.0)  # what is left: N(0, 1) between bounds
    x = torch.tensor([[1.0], [1.3], [0.5], [1.2]])
    given = [Truncated(model.sde, *to.bounds, mean=(y / 0.4).tolist(), std=1.0) for y in x]
    drawn = ExponentialMultistep(40).sample(
        Composition(given, PriorEstimator(to, model.sde)), (1000,), generator=torch.manual_seed(0)
    )
    theta = to.without_observation(drawn)
    grid = torch.linspace(-1, 1, 4001)
    weight = (-((x - grid) ** 2).sum(0) / 2 / 0.16).softmax(0)
    mean = (weight * grid).sum()
    std = ((weight * grid**2).sum() - mean**2).sqrt()
    assert (theta <= 1).float().mean() > 0.97
    assert abs(theta.mean() - mean) < 0.2 * std
    assert abs(theta.std() / std - 1) < 0.2


def test_samples_outside_are_drawn_again_from_their_own_set():
    prior = box([-1.0], [1.0])
    theta, x = simulate(prior, lambda t: t + 0.4 * torch.randn_like(t), 4000)
    to = Coordinates.fit(prior, theta, x)
    speeds = to.joint.per_block(observation=0.0, parameter=1.0)
    model = Truncated.from_coordinates(to, DiagonalSDE(VP(), to.joint, speeds))
    posterior = SeveralObservations(model, to, SOLVER)
    seen = torch.tensor([[[1.3], [1.1], [0.8]], [[-0.2], [0.4], [0.1]]])
    drawn = posterior(seen).sample((2000,))
    assert drawn.abs().max() <= 1
    grid = torch.linspace(-1, 1, 4001)
    weight = (-((seen - grid) ** 2).sum(1) / 2 / 0.16).softmax(-1)
    torch.testing.assert_close(drawn.mean(0)[:, 0], (weight * grid).sum(-1), rtol=0, atol=0.06)


def test_one_observation_of_several_is_the_posterior_of_one():
    model, to = linear(torch.float64)
    x = torch.tensor([[0.7, -1.2]], dtype=torch.float64)
    several = SeveralObservations(model, to, SOLVER, method="jacobian")(x)
    value = torch.randn(5, 2, dtype=torch.float64)
    wanted = Posterior(model, to, SOLVER)(x[0]).log_prob(value)
    torch.testing.assert_close(several.log_prob(value), wanted, rtol=0, atol=0.04)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda p: p(torch.zeros(2)), "observation: expected several observations"),
        (lambda p: p(torch.zeros(0, 2)), "observation: expected several observations"),
        (lambda p: p(torch.zeros(4, 3)), "observation: expected shape"),
        (lambda p: type(p)(p.estimator, p.coordinates, SOLVER, method="no"), "method"),
        (lambda p: type(p)(p.estimator, p.coordinates, SOLVER, count=1), "count"),
    ],
)
def test_bad_several(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(SeveralObservations(*linear(torch.float32), SOLVER))


def test_bounds_that_particles_meet_are_kept():
    """Densities, too: uniform parameters seen through noise, near a bound."""
    prior = box([-1.0], [1.0])
    theta, x = simulate(prior, lambda t: t + 0.4 * torch.randn_like(t), 4000)
    to = Coordinates.fit(prior, theta, x)
    speeds = to.joint.per_block(observation=0.0, parameter=1.0)
    model = Truncated.from_coordinates(to, DiagonalSDE(VP(), to.joint, speeds))
    seen = torch.tensor([[1.3], [1.1], [0.8]])
    found = SeveralObservations(model, to, SOLVER)(seen)
    grid = torch.linspace(-1, 1, 801)
    density = found.log_prob(grid.unsqueeze(-1)).exp()
    weight = (-((seen - grid) ** 2).sum(0) / 2 / 0.16).softmax(-1)
    assert abs(torch.trapezoid(density, grid) - 1) < 0.1
    inner = grid.abs() < 0.95
    exact = weight / (grid[1] - grid[0])
    assert (density - exact)[inner].abs().max() < 0.15 * exact.max()
    with pytest.raises(NotImplementedError, match="no derivatives"):
        found.base.rsample()
