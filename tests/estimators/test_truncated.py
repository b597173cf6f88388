"""Gaussians between bounds, against integrals on a grid; and learning around what is known."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from estimators import Denoising, Gaussian, ResidualMLP, Truncated
from estimators.truncated import truncated_mean
from scoresde import EDM, VE, VP, DiagonalSDE, Identity, Joint, log_prob
from scoresde.data import Dataset
from scoresde.training import Training
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

numbers = st.floats(-40, 40)


def integrated(log_density, low, high):
    """The mean of a density on an interval, by the trapezoidal rule where the density is."""
    x = torch.linspace(low, high, 4001)
    log = log_density(x)
    seen = x[log > log.max() - 60]
    step = (high - low) / 4000
    x = torch.linspace(max(low, seen[0] - step), min(high, seen[-1] + step), 200_001)
    log = log_density(x)
    weight = (log - log.max()).exp()
    return float(torch.trapezoid(weight * x, x) / torch.trapezoid(weight, x))


@given(mean=numbers, std=st.floats(0.02, 50), low=numbers, width=st.floats(0.01, 30))
def test_the_mean_between_bounds_is_the_integral(mean, std, low, width):
    found = truncated_mean(*torch.tensor([mean, std, low, low + width]))
    wanted = integrated(lambda x: -(((x - mean) / std) ** 2) / 2, low, low + width)
    assert abs(found - wanted) < 1e-6 * width + 1e-4 * min(width, std)
    mirrored = truncated_mean(*torch.tensor([-mean, std, -low - width, -low]))
    torch.testing.assert_close(-mirrored, found)


@pytest.mark.parametrize("mean", [-1e6, -40.0, 0.0, 0.3, 1.0, 38.0, 1e6])
@pytest.mark.parametrize("std", [1e-9, 1e-3, 1.0, 1e6])
def test_no_bound_is_too_far_and_no_gradient_lost(mean, std):
    mean = torch.tensor(mean, requires_grad=True)
    found = truncated_mean(mean, torch.tensor(std), torch.tensor(0.0), torch.tensor(1.0))
    (slope,) = torch.autograd.grad(found, mean)
    assert 0 <= found <= 1
    assert -1e-3 <= slope <= 1 + 1e-3  # var(x) / std^2, less digits lost far away


@given(data=st.data())
def test_the_denoised_mean_is_the_integral(data):
    sde = DiagonalSDE(VP(), Identity((2,)), [1.0, 0.5])
    low, mean = (torch.tensor(data.draw(st.lists(st.floats(-3, 3), min_size=2, max_size=2)))
                 for _ in range(2))  # fmt: skip
    high = low + data.draw(st.floats(0.1, 6))
    std = data.draw(st.floats(0.1, 4))
    model = Truncated(sde, low, high, mean, std)
    z, t = 2 * torch.randn(2), torch.tensor([data.draw(st.floats(0.05, 1.0))])
    alpha, sigma = sde.kernel(t)
    found = model.denoise(z, float(t))
    for i in range(2):

        def posterior(x, i=i):
            return -(((x - mean[i]) / std) ** 2 + ((z[i] - alpha[i] * x) / sigma[i]) ** 2) / 2

        wanted = integrated(posterior, float(low[i]), float(high[i]))
        assert abs(found[i] - wanted) < 1e-5


def test_without_bounds_it_is_a_gaussian():
    sde = DiagonalSDE(VE(), Identity((3,)))
    mean, std = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0])
    z, t = 5 * torch.randn(4, 3), torch.tensor([[0.1], [0.5], [0.8], [1.0]])
    found = Truncated(sde, -torch.inf, torch.inf, mean, std).denoise(z, t)
    torch.testing.assert_close(found, Gaussian(sde, mean, std.diag() ** 2).denoise(z, t))
    lopsided = Truncated(sde, 0.0, torch.inf, mean, std).denoise(z, t)
    assert (lopsided > 0).all()


def test_single_precision_is_as_good_as_the_state():
    sde = DiagonalSDE(EDM(), Identity((1,)))
    model = Truncated(sde, -1.0, 2.0, 0.5, 3.0)
    z = torch.linspace(-5, 5, 101).unsqueeze(-1)
    for t in (0.01, 1.0, 50.0):
        found = model.denoise(z.float(), t)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), model.denoise(z, t), rtol=0, atol=1e-6)


def test_the_density_is_that_of_the_truncated_gaussian():
    sde = DiagonalSDE(EDM(sigma_min=1e-3), Identity((1,)))
    model = Truncated(sde, -1.0, 0.5, 0.3, 0.8)
    x = torch.tensor([[-0.8], [-0.2], [0.0], [0.4]])
    law = torch.distributions.Normal(0.3, 0.8)
    mass = law.cdf(torch.tensor(0.5)) - law.cdf(torch.tensor(-1.0))
    wanted = law.log_prob(x).squeeze(-1) - mass.log()
    torch.testing.assert_close(log_prob(model, x).value, wanted, rtol=0, atol=4e-3)


def regression(sde):
    slope = torch.zeros(3, 3)
    slope[:2, 2] = torch.tensor([1.5, -0.5])
    far = torch.inf
    return Truncated(sde, [-far, -far, -2.0], [far, far, 1.0], std=[1, 1, 1.25], slope=slope)


def test_a_regression_between_bounds_is_the_posterior_of_its_gaussian_likelihood():
    joint = Joint(y=(2,), x=(1,))
    sde = DiagonalSDE(VP(), joint, joint.spread(y=0, x=1))
    y, z, t = torch.tensor([0.7, -1.2]), torch.tensor([0.4]), torch.tensor([0.3])
    found = regression(sde).denoise(joint.join(y=y, x=z), float(t))
    torch.testing.assert_close(found[:2], y)  # clean
    k, v = float(1.5 * y[0] - 0.5 * y[1]), 1.25**2
    alpha, sigma = (c.expand(3)[2] for c in sde.kernel(t))

    def posterior(w):
        return k * w - w**2 / v / 2 - ((z - alpha * (w - k)) / sigma) ** 2 / 2

    assert abs(float(found[2]) - (integrated(posterior, -2.0, 1.0) - k)) < 1e-5


@pytest.mark.parametrize("t", [0.02, 0.2, 0.5, 0.9])
def test_one_bounded_component_beside_diffused_ones_is_exact(t):
    """A joint Gaussian, given that one linear function of it is between bounds."""
    joint = Joint(y=(1,), x=(1,))
    sde = DiagonalSDE(VP(), joint, joint.spread(y=1.0, x=0.7))
    slope, v = torch.tensor([[0.0, 1.5], [0.0, 0.0]]), 1.3**2
    far = torch.inf
    model = Truncated(sde, [-far, -2.0], [far, 1.0], [0.0, 0.2], std=[1.0, 1.3], slope=slope)
    alpha, sigma = (c.expand(2) for c in sde.kernel(torch.tensor([t])))
    for state in torch.tensor([[0.3, -0.4], [2.0, 1.0], [-1.5, 2.5]]):
        y, w = torch.linspace(-6, 6, 3001).unsqueeze(-1), torch.linspace(-2, 1, 2001)
        x, k = w - 1.5 * y, 1.5 * y
        log = -(y**2) / 2 - (w - v * k - 0.2) ** 2 / v / 2
        log = log - ((state[0] - alpha[0] * y) / sigma[0]) ** 2 / 2
        log = log - ((state[1] - alpha[1] * x) / sigma[1]) ** 2 / 2
        weight = (log - log.max()).exp()
        wanted = (weight * x).sum() / weight.sum()
        assert abs(model.denoise(state, t)[1] - wanted) < 2e-3


def test_what_is_not_bounded_is_linear():
    joint = Joint(y=(2,), x=(1,))
    sde = DiagonalSDE(VP(), joint)
    z = 2 * torch.randn(50, 3)
    linear = Gaussian(sde, torch.zeros(3), torch.eye(3)).denoise(z, 0.4)
    torch.testing.assert_close(regression(sde).denoise(z, 0.4)[:, :2], linear[:, :2])


def test_components_at_times_of_their_own():
    joint = Joint(y=(2,), x=(1,))
    model = regression(DiagonalSDE(VP(), joint))
    held = DiagonalSDE(VP(), joint, joint.spread(y=0, x=1))
    z = torch.randn(5, 3)
    times = torch.tensor([0.0, 0.0, 0.6]).expand(5, 3)
    torch.testing.assert_close(model.denoise(z, times), regression(held).denoise(z, 0.6))
    # clean components are what they are
    torch.testing.assert_close(model.denoise(z, 0 * times)[:, :2], z[:, :2])


def around(sde, **settings):
    torch.manual_seed(0)
    return Denoising(sde, ResidualMLP((1,), 16, 1), **settings)


def test_an_untrained_network_is_what_it_learns_around():
    sde = DiagonalSDE(VP(), Identity((1,)))
    known = Truncated(sde, -1.0, 2.0)
    model, z = around(sde, around=known), torch.randn(6, 1)
    torch.testing.assert_close(model.denoise(z, 0.5), known.denoise(z, 0.5))
    model.network.leave[1].bias.data.fill_(0.7)
    alpha, sigma = sde.kernel(torch.tensor([0.5]))
    wanted = known.denoise(z, 0.5) + 0.7 * sigma / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(model.denoise(z, 0.5), wanted)
    ts = torch.tensor([0.9, 0.5, 0.1])
    for t, denoiser in zip(ts, model.denoisers(ts, z), strict=True):
        torch.testing.assert_close(denoiser(z), model.denoise(z, float(t)))


def test_learning_around_the_best_linear_guess_is_learning():
    sde = DiagonalSDE(VE(), Identity((1,)))
    scales = {"data_mean": 0.4, "data_std": 2.0}
    plain = around(sde, **scales)
    known = around(sde, **scales, around=Gaussian(sde, torch.tensor([0.4]), torch.tensor([[4.0]])))
    for model in (plain, known):
        torch.nn.init.normal_(model.network.leave[1].weight, generator=torch.Generator())
    x = torch.randn(32, 1)
    losses = [m.loss(x, generator=torch.Generator().manual_seed(1)) for m in (plain, known)]
    torch.testing.assert_close(*losses)


def test_what_is_left_is_learned():
    """Two peaks between bounds, around one flat law."""
    sde = DiagonalSDE(VP(), Identity((1,)))
    peaks = torch.where(torch.rand(4000, 1) < 0.5, 0.2, 0.8) + 0.05 * torch.randn(4000, 1)
    model = around(sde, around=Truncated(sde, 0.0, 1.0, std=100.0), data_mean=0.5, data_std=0.3)
    Training(steps=500, lr=1e-2, batch_size=256, ema=0.98).fit(
        model, Dataset("peaks", peaks.clamp(0, 1)), progress=False
    )
    copied = copy.deepcopy(model)
    copied.load_state_dict(model.state_dict())
    samples = ExponentialMultistep(30).sample(copied, (2000,))
    assert ((samples < -0.01) | (samples > 1.01)).double().mean() < 0.01
    assert abs(((samples < 0.35) | (samples > 0.65)).double().mean() - 1) < 0.05
    assert abs(samples.std() - 0.304) < 0.02


def test_what_is_observed_is_pinned():
    joint = Joint(y=(2,), x=(1,))
    sde = DiagonalSDE(VP(), joint, joint.spread(y=0, x=1))
    known = regression(sde).condition(y=torch.tensor([[0.3, 0.1], [2.0, 0.0]]))
    samples = ExponentialMultistep(40).sample(known, (4000, 2)).squeeze(-1)
    k = torch.tensor([0.4, 3.0])
    low, high = -2.0 - k, 1.0 - k
    assert ((samples < high + 0.02) & (samples > low - 0.02)).double().mean() > 0.99
    for i, drift in enumerate(k.tolist()):
        w = torch.linspace(-2, 1, 10_001)
        weight = (drift * w - w**2 / 1.25**2 / 2).exp()
        wanted = float((weight * w).sum() / weight.sum()) - drift
        assert abs(samples[:, i].mean() - wanted) < 0.04


SDE = DiagonalSDE(VP(), Identity((2,)))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: Truncated(SDE, 1.0, 1.0), ValueError, "low: expected below high"),
        (lambda: Truncated(SDE, [0.0, 0.0, 0.0], 1.0), ValueError, "low: expected a last axis"),
        (lambda: Truncated(SDE, float("nan"), 1.0), ValueError, "low: expected finite"),
        (lambda: Truncated(SDE, 0.0, 1.0, mean=torch.inf), ValueError, "mean: expected finite"),
        (lambda: Truncated(SDE, 0.0, 1.0, std=torch.inf), ValueError, "std: expected finite"),
        (lambda: Truncated(SDE, 0.0, 1.0, std=0.0), ValueError, "std: expected positive"),
        (lambda: Truncated(SDE, 0.0, 1.0, slope=torch.zeros(2)), ValueError, r"slope: .*\(2, 2\)"),
        (lambda: around(SDE, around=7), TypeError, "around: expected a.* ScoreEstimator"),
        (
            lambda: around(SDE, around=Truncated(DiagonalSDE(VP(), Identity((2,))), 0.0, 1.0)),
            ValueError,
            "around: expected an estimator with this very SDE",
        ),
    ],
)
def test_bad_bounds(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
