"""Posteriors of simulators, against closed forms."""

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

from estimators import Denoising, Gaussian, PartNetwork, ResidualMLP, Truncated
from scoresde import VP, DiagonalSDE, Joint, LogLinear
from scoresde.data import Dataset
from scoresde.inference import Coordinates, Posterior, PosteriorDistribution, predict, simulate
from scoresde.training import Training
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

SOLVER = ExponentialMultistep(40)


def standard(n=2):
    return Independent(Normal(torch.zeros(n), torch.ones(n)), 1)


def exact(prior, observation=0.0, **settings):
    """``x = A u + e`` with ``u`` standard normal: an exact joint estimator, and that of ``u``."""
    A = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
    spread = A @ A.mT + 0.25 * torch.eye(3)
    joint = torch.cat([torch.cat([spread, A], 1), torch.cat([A.mT, torch.eye(2)], 1)])
    none, one = torch.zeros(2), torch.ones(2)
    same = Coordinates(prior, torch.zeros(3), torch.ones(3), none, torch.zeros(3, 2), one, none)
    sde = DiagonalSDE(VP(), same.joint, same.joint.per_block(observation=observation, parameter=1))
    gain = A.mT @ torch.linalg.inv(spread)
    posterior = Posterior(Gaussian(sde, torch.zeros(5), joint), same, SOLVER, **settings)
    return posterior, lambda x: MultivariateNormal(x @ gain.mT, torch.eye(2) - gain @ A)


def test_the_posterior_of_every_observation():
    posterior, distribution = exact(standard())
    x = torch.randn(4, 3)
    found = posterior(x)
    assert (found.batch_shape, found.event_shape) == ((4,), (2,))
    samples = found.sample((4000,))
    torch.testing.assert_close(samples.mean(0), distribution(x).mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples.std(0), distribution(x).stddev, rtol=0.06, atol=0)
    torch.testing.assert_close(
        found.log_prob(samples[:3]), distribution(x).log_prob(samples[:3]), rtol=0, atol=0.04
    )


def test_observations_that_diffuse_may_be_held():
    posterior, distribution = exact(standard(), observation=1.0, clean=True)
    x, u = torch.tensor([[0.5, -1.0, 0.3], [2.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.1], [1.0, 0.3]])
    torch.testing.assert_close(
        posterior(x).log_prob(u), distribution(x).log_prob(u), rtol=0, atol=0.04
    )


def test_bounded_parameters_keep_their_support_and_the_density_its_jacobian():
    prior = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    posterior, distribution = exact(prior)
    x = torch.tensor([0.5, -1.0, 0.3])
    samples = posterior(x).sample((500,))
    assert (samples > 0).all()
    wanted = distribution(x).log_prob(samples.log()) - samples.log().sum(-1)
    torch.testing.assert_close(posterior(x).log_prob(samples), wanted, rtol=0, atol=0.04)


def test_simulations_are_pairs():
    prior = standard()
    theta, x = simulate(prior, lambda t: torch.cat([t, t[:, :1]], 1), 2500, batch_size=1000)
    assert theta.shape == (2500, 2)
    assert torch.equal(x, torch.cat([theta, theta[:, :1]], 1))
    assert theta.unique(dim=0).shape == theta.shape


def test_simulators_get_a_thousand_at_a_time_and_show_progress_if_asked(capsys):
    counts = []

    def simulator(theta):
        counts.append(len(theta))
        return theta

    simulate(standard(), simulator, 2500)
    assert counts == [1000, 1000, 500]
    assert capsys.readouterr().err == ""
    simulate(standard(), simulator, 2500, progress=True)
    said = capsys.readouterr().err
    assert "simulating: 100%" in said
    assert "2500/2500" in said


def test_failed_simulations_are_left_out():
    def failing(theta):
        return torch.where(theta > 1, torch.nan, theta)

    theta, x = simulate(standard(1), failing, 1000)
    assert 800 < len(theta) < 900
    assert torch.equal(theta, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pair_is_left_out_for_one_number_that_is_not_finite(dtype):
    """As long as no more than half of them are."""
    drawn = []

    def failing(share):
        def simulator(theta):
            drawn.append(theta)
            bad = torch.arange(len(theta)) % 10 < share
            return torch.stack([theta[:, 0], torch.where(bad, torch.inf, theta[:, 0])], 1)

        return simulator

    zero = torch.zeros(1, dtype=dtype)
    theta, x = simulate(Independent(Normal(zero, zero + 1), 1), failing(4), 30, batch_size=20)
    assert [len(part) for part in drawn] == [20, 10]
    kept = torch.cat(drawn)[torch.arange(30) % 10 >= 4]
    assert torch.equal(theta, kept)
    assert torch.equal(x, torch.cat([kept, kept], 1))
    with pytest.raises(ValueError, match="60% that are not"):
        simulate(Independent(Normal(zero, zero + 1), 1), failing(6), 10)


def test_the_border_of_a_half_bounded_support_has_no_density():
    """Its events are infinite in one component, whatever the others are."""
    prior = Independent(Exponential(torch.ones(2)), 1)
    posterior, distribution = exact(prior)
    x = torch.tensor([0.5, -1.0, 0.3])
    value = torch.tensor([[0.0, 1.0], [2.0, 0.7], [0.0, 0.0]])
    found = posterior(x).log_prob(value)
    wanted = distribution(x).log_prob(value[1].log()) - value[1].log().sum()
    torch.testing.assert_close(found[1], wanted, rtol=0, atol=0.04)
    assert found[[0, 2]].tolist() == [-torch.inf, -torch.inf]


def box(low, high):
    return Independent(Uniform(torch.tensor(low), torch.tensor(high)), 1)


def joint_sde(to):
    return DiagonalSDE(LogLinear(), to.joint, to.joint.per_block(observation=0.0, parameter=1.0))


def noisy(theta):
    """Two numbers say each parameter, with noise; one says nothing."""
    seen = torch.cat([3 * theta, theta[:, :1] - theta[:, 1:], torch.zeros(len(theta), 1)], 1)
    return seen + 0.3 * torch.randn(seen.shape)


def test_coordinates_are_what_a_regression_leaves():
    prior = box([-1.0, 2.0], [1.0, 5.0])
    theta, x = simulate(prior, noisy, 5000)
    to = Coordinates.fit(prior, theta, x)
    events = to.joint.split(to.joint_events(theta, x))
    residual, seen = events["parameter"], events["observation"]
    for values in (residual, seen):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]))
        torch.testing.assert_close(values.std(0), torch.ones(values.shape[1]))
    assert (residual.mT @ seen / len(theta)).abs().max() < 1e-8
    torch.testing.assert_close(to.transform(x)(residual), theta)
    wanted = torch.linalg.lstsq(torch.cat([x, torch.ones(5000, 1)], 1), theta)
    left = (theta - torch.cat([x, torch.ones(5000, 1)], 1) @ wanted.solution).var(0)
    torch.testing.assert_close(to.std**2, left)
    torch.testing.assert_close(to.explained, 1 - left / theta.var(0))
    low, high = to.bounds
    torch.testing.assert_close(low * to.std + to.mean, torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(high * to.std + to.mean, torch.tensor([1.0, 5.0]))
    one = to.transform(x[7])  # one observation, many parameters
    torch.testing.assert_close(one(one.inv(theta)), theta)
    jacobian = one.log_abs_det_jacobian(one.inv(theta), theta)
    torch.testing.assert_close(jacobian, to.std.log().sum().expand(5000))


def test_coordinates_of_any_shape_and_support():
    positive = Independent(LogNormal(torch.zeros(2, 1), 0.5 * torch.ones(2, 1)), 2)
    theta, x = simulate(positive, lambda t: (t.log() + 0.1 * torch.randn(t.shape)).mT, 2000)
    to = Coordinates.fit(positive, theta, x)
    residual = to.joint.split(to.joint_events(theta, x))["parameter"]
    assert residual.shape == (2000, 2, 1)
    assert (to.explained > 0.9).all()
    assert to.bounds[0].isinf().all()
    torch.testing.assert_close(to.transform(x)(residual), theta)
    # nothing is known of a Gaussian but the regression
    model, z = Truncated.from_coordinates(to, joint_sde(to)), torch.randn(3, 4)
    linear = Gaussian(model.sde, torch.zeros(4), torch.eye(4))
    torch.testing.assert_close(model.denoise(z, 0.5), linear.denoise(z, 0.5))


def test_coordinates_are_a_module():
    prior = box([-1.0, 2.0], [1.0, 5.0])
    to = Coordinates.fit(prior, *simulate(prior, noisy, 500), ranks=True)
    other = Coordinates.fit(prior, *simulate(prior, noisy, 500), ranks=True)
    theta, x = simulate(prior, noisy, 10)
    assert not torch.equal(to.joint_events(theta, x), other.joint_events(theta, x))
    other.load_state_dict(to.state_dict())
    torch.testing.assert_close(to.joint_events(theta, x), other.joint_events(theta, x))
    single = other.float().joint_events(theta.float(), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), to.joint_events(theta, x), rtol=1e-4, atol=1e-4)


def test_normal_scores_come_beside_what_has_long_tails():
    prior = standard(2)
    theta, x = simulate(
        prior, lambda t: (3 * t[:, :1] + torch.zeros(1, 2)).exp().unsqueeze(1), 4000
    )
    to = Coordinates.fit(prior, theta, x, ranks=True)
    assert to.joint.shapes == {"observation": (4,), "parameter": (2,)}
    seen = to.observation(x)
    torch.testing.assert_close(seen[:, :2], Coordinates.fit(prior, theta, x).observation(x)[:, 0])
    # a monotone function of a Gaussian: its normal score is the Gaussian, but for the extremes
    torch.testing.assert_close(seen[:, 2], seen[:, 3])
    middle = theta[:, 0].abs() < 2
    order = theta[:, 0].argsort().argsort()
    torch.testing.assert_close(seen[:, 2], torch.special.ndtri((order + 1) / 4001))
    assert (seen[:, 2] - theta[:, 0])[middle].abs().max() < 0.2
    assert to.explained[0] > 0.99 > 0.5 > Coordinates.fit(prior, theta, x).explained[0]
    torch.testing.assert_close(
        to.transform(x)(to.joint.split(to.joint_events(theta, x))["parameter"]), theta
    )
    assert to.observation(torch.full((2, 3, 1, 2), 1e9)).shape == (2, 3, 4)
    assert to.observation(torch.full((1, 2), 1e9)).isfinite().all()
    tied = Coordinates.fit(prior, theta, (x > 1).double(), ranks=True).observation((x > 1).double())
    assert len(tied[:, 2].unique()) == 2
    assert abs(tied[:, 2].mean()) < 0.02
    posterior = Posterior(
        Truncated.from_coordinates(to, joint_sde(to)), to, ExponentialMultistep(8)
    )
    assert posterior(x[:3]).sample((5,)).shape == (5, 3, 2)


def test_numbers_that_repeat_each_other_or_never_change():
    theta = torch.rand(500, 1)
    x = torch.cat([theta, theta, torch.full((500, 1), 7.0)], 1) + torch.tensor([0.0, 1.0, 0.0])
    to = Coordinates.fit(box([0.0], [1.0]), theta, x)
    events = to.joint_events(theta, x)
    assert events.isfinite().all()
    torch.testing.assert_close(to.transform(x)(to.joint.split(events)["parameter"]), theta)


def test_uniform_parameters_seen_through_noise_need_no_network():
    """The regression between bounds is their posterior, wherever the observation is."""
    prior = box([-1.0, 0.0], [1.0, 4.0])
    theta, x = simulate(prior, lambda t: t + 0.4 * torch.randn(t.shape), 40_000)
    to = Coordinates.fit(prior, theta, x)
    posterior = Posterior(
        Truncated.from_coordinates(to, joint_sde(to)), to, ExponentialMultistep(40)
    )
    seen = torch.tensor([[0.0, 2.0], [1.3, 0.1], [-0.9, 4.5]])
    distribution, low, high = posterior(seen), torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])
    samples = distribution.sample((4000,))
    assert ((samples >= low) & (samples <= high)).all()
    normal = Normal(seen, 0.4)
    mass = normal.cdf(high) - normal.cdf(low)
    pull = normal.log_prob(low).exp() - normal.log_prob(high).exp()
    torch.testing.assert_close(samples.mean(0), seen + 0.4**2 * pull / mass, rtol=0, atol=0.025)
    inside = torch.tensor([[[0.1, 1.7]], [[0.8, 0.3]], [[-0.6, 3.9]]]).squeeze(1)
    wanted = (normal.log_prob(inside) - mass.log()).sum(-1)
    torch.testing.assert_close(distribution.log_prob(inside), wanted, rtol=0, atol=0.1)
    outside = posterior(seen)
    outside._validate_args = False
    assert outside.log_prob(torch.tensor([0.0, 5.0])).tolist() == 3 * [-torch.inf]


def test_posteriors_are_distributions():
    prior = box([-1.0], [1.0])
    theta, x = simulate(prior, lambda t: t + 0.4 * torch.randn(t.shape), 1000)
    to = Coordinates.fit(prior, theta, x)
    posterior = Posterior(
        Truncated.from_coordinates(to, joint_sde(to)), to, ExponentialMultistep(8)
    )
    one = posterior(torch.tensor([0.3]))
    assert (one.batch_shape, one.event_shape) == ((), (1,))
    assert one.sample().shape == (1,)
    many = one.expand([2, 3])
    assert many.sample((5,)).shape == (5, 2, 3, 1)
    value = torch.tensor([0.2])
    torch.testing.assert_close(many.log_prob(value), one.log_prob(value).expand(2, 3))
    # of a class of one's own, that makes the object itself
    own = type(one).__new__(type(one))
    assert one.expand([2, 3], _instance=own) is own
    assert not many.sample((5,)).requires_grad
    with pytest.raises(ValueError, match="support"):
        one.log_prob(torch.tensor([1.5]))
    unchecked = PosteriorDistribution(posterior, torch.tensor([0.3]), validate_args=False)
    for distribution in (unchecked, unchecked.expand([2])):
        outside = distribution.log_prob(torch.tensor([1.5]))
        assert torch.equal(outside, torch.full(distribution.batch_shape, -torch.inf))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_samples_outside_are_drawn_again_for_their_own_observation():
    prior = box([-1.0], [1.0])
    none, one = torch.zeros(1), torch.ones(1)
    to = Coordinates(prior, none, one, none, torch.full((1, 1), 0.5), one, none)
    # half of the observation is in the coordinates, half in the distribution
    model = Gaussian(joint_sde(to), torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.25]]))
    seen = torch.tensor([[-2.0], [0.0], [2.0]])  # parameters N(seen, 1), of which much is outside
    samples = Posterior(model, to, ExponentialMultistep(20))(seen).sample((4000,))
    assert samples.abs().max() <= 1
    normal = Normal(seen, 1.0)
    mass = normal.cdf(one) - normal.cdf(-one)
    mean = seen + (normal.log_prob(-one).exp() - normal.log_prob(one).exp()) / mass
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.03)


def test_samples_that_cannot_be_inside():
    prior = box([-1.0], [1.0])
    none, one = torch.zeros(1), torch.ones(1)
    same = Coordinates(prior, none, one, none, torch.zeros(1, 1), one, none)
    sde = joint_sde(same)
    model = Gaussian(sde, torch.tensor([0.0, 50.0]), torch.eye(2))
    with pytest.warns(RuntimeWarning, match="3 of 3 samples stay outside the prior's support"):
        samples = Posterior(model, same, ExponentialMultistep(2))(torch.zeros(1)).sample((3,))
    assert samples.tolist() == 3 * [[1.0]]


def widely_bounded(dtype):
    """Of uniform parameters from -1 to 1: ``N(x, 1)``, as was learned without the bounds."""
    none, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    prior = Independent(Uniform(-one, one), 1)
    to = Coordinates(prior, none, one, none, one.unsqueeze(0), one, none)
    model = Gaussian(joint_sde(to), torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    return Posterior(model, to, ExponentialMultistep(8))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_densities_integrate_to_one_where_little_is_inside(dtype):
    seen = torch.tensor([[0.0], [-2.8], [3.1], [-3.2]], dtype=dtype)
    posteriors, normal = widely_bounded(dtype)(seen), Normal(seen.squeeze(-1), 1.0)
    mass = normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0))
    assert posteriors.mass.dtype == dtype
    torch.testing.assert_close(posteriors.mass / mass, torch.ones_like(mass), rtol=0, atol=0.15)
    grid = (torch.arange(20, dtype=dtype) + 0.5) / 10 - 1
    total = posteriors.log_prob(grid.reshape(-1, 1, 1)).exp().mean(0) * 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=0.2)


def test_a_mass_that_is_not_known_is_warned_of():
    few = "mass: 2 of 3 .* down to .* of 32000 samples"
    with pytest.warns(UserWarning, match=few):
        found = widely_bounded(torch.float64)(torch.tensor([[0.0], [4.2], [40.0]])).mass
    assert found[2] == 1 / 32_000  # none is inside


def test_a_trained_posterior():
    prior = box([-2.0], [2.0])
    theta, x = simulate(prior, lambda t: t.sign() * t**2 + 0.3 * torch.randn_like(t), 4000)
    to = Coordinates.fit(prior, theta, x)
    sde = joint_sde(to)
    network = PartNetwork(to.joint, "parameter", ResidualMLP((1,), 32, 2, condition_dim=1))
    model = Denoising(sde, network, baseline=Truncated.from_coordinates(to, sde))
    training = Training(steps=300, batch_size=256, lr=5e-3, ema=0.98)
    training.fit(model, Dataset("pairs", to.joint_events(theta, x)), progress=False)
    posterior = Posterior(model, to, ExponentialMultistep(20))(torch.tensor([3.7]))
    grid = torch.linspace(-1.999, 1.999, 800).unsqueeze(-1)
    weight = Normal(grid.sign() * grid**2, 0.3).log_prob(torch.tensor(3.7)).exp()
    mean = (weight * grid).sum() / weight.sum()
    std = ((weight * grid**2).sum() / weight.sum() - mean**2).sqrt()
    samples = posterior.sample((4000,))
    assert abs(samples.mean() - mean) < 0.5 * std
    assert abs(samples.std() / std - 1) < 0.4  # trained for a moment
    mass = posterior.log_prob(grid).exp().sum() * 3.998 / 799
    assert 0.85 < mass < 1.03  # the rest is outside


def test_what_a_part_network_says_of_the_others_is_nothing():
    joint = Joint(observation=(3,), parameter=(2,))

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
        (lambda: simulate(standard(), lambda t: t.sum(1), 10), "simulator: expected numbers"),
        (lambda: simulate(standard(), lambda t: t, 0), "count: expected a whole number"),
        (lambda: simulate(standard(), lambda t: t, 9, batch_size=0), "batch_size: expected"),
        (lambda: exact(standard())[0](torch.zeros(4)), "observation: expected shape"),
        (
            lambda: Coordinates.fit(standard(1), torch.zeros(9, 1), torch.randn(9, 1)),
            r"parameters: .* 'parameter\[0\]'",
        ),
        (
            lambda: Coordinates.fit(standard(1), torch.randn(9, 1), torch.randn(9, 8)),
            "observations: expected more simulations than the 8 predictors",
        ),
        (
            lambda: Coordinates.fit(standard(1), torch.randn(9, 1), torch.randn(8, 1)),
            "observations: expected one for each of 9 parameters, got 8",
        ),
        (
            lambda: Coordinates.fit(standard(1), torch.randn(9, 1), torch.full((9, 1), torch.nan)),
            "observations: expected",
        ),
    ],
)
def test_bad_inference(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_is_drawn_where_nothing_is_asked_for(dtype):
    posterior, _ = exact(standard())
    posterior.coordinates.to(dtype)
    assert posterior(torch.zeros(3, dtype=dtype)).sample((0,)).shape == (0, 2)
    none = posterior(torch.zeros(0, 3, dtype=dtype)).sample((4,))
    assert (none.shape, none.dtype) == ((4, 0, 2), dtype)
    fitted = Coordinates.fit(standard(), torch.randn(50, 2), torch.randn(50, 3)).to(dtype)
    assert fitted.relative_distance(torch.zeros(0, 3, dtype=dtype)).shape == (0,)
    assert fitted.relative_distance(torch.zeros(5, 3, dtype=dtype)).shape == (5,)


def test_as_many_observations_as_parameters_are_no_slip(recwarn):
    posterior, _ = exact(standard())
    assert posterior(torch.zeros(2, 3)).sample((3,)).shape == (3, 2, 2)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("observation", "error", "said"),
    [
        (None, TypeError, "observation: expected a number or a list of numbers, got None"),
        ("abc", TypeError, "observation: expected a number or a list of numbers, got 'abc'"),
        (torch.zeros(3, dtype=torch.complex64), ValueError, "observation: expected real numbers"),
        (torch.tensor([0.0, torch.nan, 1.0]), ValueError, "observation: expected finite numbers"),
    ],
)
def test_what_is_no_observation(observation, error, said):
    posterior, _ = exact(standard())
    with pytest.raises(error, match=said):
        posterior(observation)


def test_counts_that_are_none():
    distribution = exact(standard())[0](torch.zeros(3))
    for call, name in [
        (lambda: distribution.map(1), "starts"),
        (lambda: distribution.map(5, -1), "steps"),
        (lambda: predict(distribution, standard().log_prob, 0), "count"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
            call()
