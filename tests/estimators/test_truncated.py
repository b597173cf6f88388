"""Gaussians between bounds, against integrals on a grid; and learning around what is known."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from estimators import Denoising, Gaussian, ResidualMLP, Truncated
from estimators.truncated import truncated_mean
from scoresde import EDM, VE, VP, DiagonalSDE, Identity, Joint, condition, log_prob
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


def cumulants(mean, std, low, high):
    """The first three of a Gaussian between bounds, the first from its place of largest density.

    By Simpson's rule in float64, of a density that is written from that place on: no digits are
    lost where the mean is far away.
    """
    place = min(max(mean, low), high)
    slope = abs(place - mean) / std
    reach = 80 / (slope + (slope**2 + 80) ** 0.5) * std
    y = torch.linspace(max(low - place, -reach), min(high - place, reach), 4001)
    weight = (-y / std * (y / std / 2 + (place - mean) / std)).exp()
    weight = weight * torch.tensor([1.0, *[4.0, 2.0] * 1999, 4.0, 1.0])
    weight = weight / weight.sum()
    first = (weight * y).sum()
    second, third = ((weight * (y - first) ** k).sum() for k in (2, 3))
    return place, first, second, third


scales = st.builds(lambda sign, power: sign * 10**power, st.sampled_from([-1, 1]), st.floats(-3, 7))
every_precision = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@every_precision
@settings(max_examples=300)
@given(
    mean=scales,
    std=st.floats(-6, 6),
    low=st.one_of(st.floats(-2, 2), st.just(-1e30)),
    width=st.one_of(st.floats(-5, 3), st.just(30.0)),
)
def test_values_and_derivatives_are_cumulants_wherever_bounds_are(dtype, mean, std, low, width):
    """``m``, ``dm/dmean = var/std^2`` and ``d^2m/dmean^2 = k_3/std^4``; all of them finite."""
    high = low + 10**width if low > -1e30 else min(10**width, 1e30)
    given_ = torch.tensor([mean, 10**std, low, high]).float()
    if given_[2] == given_[3]:  # a width that float32 cannot tell from none
        return
    place, first, second, third = cumulants(*given_.tolist())
    mean, std, low, high = given_.to(dtype).requires_grad_().unbind()
    found = truncated_mean(mean, std, low, high)
    (slope,) = torch.autograd.grad(found, mean, create_graph=True)
    everything = torch.autograd.grad(slope, [mean, std, low, high])
    assert all(torch.isfinite(v) for v in (found, slope, *everything))
    rtol, eps = (3e-6, 2e-7) if dtype == torch.float32 else (1e-8, 3e-16)
    width = second.sqrt()  # of what is left between the bounds: units of all three
    unit = float(std.detach())
    assert abs(found.double() - place - first) < rtol * width + eps * abs(place)
    assert abs(slope.double() * unit**2 - second) < rtol * width**2
    assert abs(everything[0].double() * unit**4 - third) < 10 * rtol * width**3


@every_precision
@pytest.mark.parametrize("t", [0.002, 0.1, 1.0, 40.0, 80.0, 2000.0])
@pytest.mark.parametrize("width", [1e-3, 1e-6])
def test_narrow_bounds_are_seen_to_a_hundred_thousandth_of_their_width(dtype, t, width):
    """Far narrower than the Gaussian: a flat density, tilted by the state."""
    sde = DiagonalSDE(EDM(sigma_max=2000.0), Identity((1,)))
    model = Truncated(sde, 0.0, width)
    states = torch.tensor([-1e3, -40.0, -0.3, 0.0, 2e-4, 1.0, 70.0, 1e4], dtype=dtype)
    found = model.denoise(states.unsqueeze(-1), t)
    t = float(torch.tensor(t, dtype=dtype))
    variance = 1 / (1 + 1 / t**2)
    for state, mean in zip(states.tolist(), found.squeeze(-1).tolist(), strict=True):
        center = state * variance / t**2
        place, first, *_ = cumulants(center, variance**0.5, 0.0, float(model.high))
        assert abs(mean - place - float(first)) < 1e-5 * width, state


@every_precision
def test_numbers_too_far_to_be_squared(dtype):
    mean = torch.tensor([-1e30, -1e25, 1e19, 1e30], dtype=dtype, requires_grad=True)
    std = torch.tensor([1e-12, 1.0, 1e-3, 1e8], dtype=dtype, requires_grad=True)
    found = truncated_mean(mean, std, mean.new_zeros(4), mean.new_ones(4))
    slopes = torch.autograd.grad(found.sum(), [mean, std])
    torch.testing.assert_close(found.detach(), torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=dtype))
    assert all(torch.isfinite(v).all() for v in slopes)


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
    distribution = torch.distributions.Normal(0.3, 0.8)
    mass = distribution.cdf(torch.tensor(0.5)) - distribution.cdf(torch.tensor(-1.0))
    wanted = distribution.log_prob(x).squeeze(-1) - mass.log()
    torch.testing.assert_close(log_prob(model, x).value, wanted, rtol=0, atol=4e-3)


def regression(sde):
    slope = torch.zeros(3, 3)
    slope[:2, 2] = torch.tensor([1.5, -0.5])
    far = torch.inf
    return Truncated(sde, [-far, -far, -2.0], [far, far, 1.0], std=[1, 1, 1.25], slope=slope)


def test_a_regression_between_bounds_is_the_posterior_of_its_gaussian_likelihood():
    joint = Joint(y=(2,), x=(1,))
    sde = DiagonalSDE(VP(), joint, joint.per_block(y=0, x=1))
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
    sde = DiagonalSDE(VP(), joint, joint.per_block(y=1.0, x=0.7))
    slope, v = torch.tensor([[0.0, 1.5], [0.0, 0.0]]), 1.3**2
    far = torch.inf
    model = Truncated(sde, [-far, -2.0], [far, 1.0], [0.0, 0.2], std=[1.0, 1.3], slope=slope)
    alpha, sigma = (c.expand(2) for c in sde.kernel(torch.tensor([t])))
    for state in torch.tensor([[0.3, -0.4], [2.0, 1.0], [-1.5, 2.5]]):
        y, w = torch.linspace(-6, 6, 601).unsqueeze(-1), 3 * (torch.arange(400) + 0.5) / 400 - 2
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
    clean = DiagonalSDE(VP(), joint, joint.per_block(y=0, x=1))
    z = torch.randn(5, 3)
    times = torch.tensor([0.0, 0.0, 0.6]).expand(5, 3)
    torch.testing.assert_close(model.denoise(z, times), regression(clean).denoise(z, 0.6))
    # clean components are what they are
    torch.testing.assert_close(model.denoise(z, 0 * times)[:, :2], z[:, :2])


def around(sde, **settings):
    torch.manual_seed(0)
    return Denoising(sde, ResidualMLP((1,), 16, 1), **settings)


def test_an_untrained_network_is_its_baseline():
    sde = DiagonalSDE(VP(), Identity((1,)))
    known = Truncated(sde, -1.0, 2.0)
    model, z = around(sde, baseline=known), torch.randn(6, 1)
    torch.testing.assert_close(model.denoise(z, 0.5), known.denoise(z, 0.5))
    model.network.output_layer[1].bias.data.fill_(0.7)
    alpha, sigma = sde.kernel(torch.tensor([0.5]))
    wanted = known.denoise(z, 0.5) + 0.7 * sigma / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(model.denoise(z, 0.5), wanted)
    ts = torch.tensor([0.9, 0.5, 0.1])
    for t, denoiser in zip(ts, model.denoisers(sde.at(ts.unsqueeze(-1), z)), strict=True):
        torch.testing.assert_close(denoiser(z), model.denoise(z, float(t)))


def test_learning_around_the_best_linear_guess_is_learning():
    sde = DiagonalSDE(VE(), Identity((1,)))
    scales = {"data_mean": 0.4, "data_std": 2.0}
    plain = around(sde, **scales)
    known = around(
        sde, **scales, baseline=Gaussian(sde, torch.tensor([0.4]), torch.tensor([[4.0]]))
    )
    for model in (plain, known):
        torch.nn.init.normal_(model.network.output_layer[1].weight, generator=torch.Generator())
    x = torch.randn(32, 1)
    losses = [m.loss(x, generator=torch.Generator().manual_seed(1)) for m in (plain, known)]
    torch.testing.assert_close(*losses)


def test_what_is_left_is_learned():
    """Two peaks between bounds, around one flat distribution."""
    sde = DiagonalSDE(VP(), Identity((1,)))
    peaks = torch.where(torch.rand(4000, 1) < 0.5, 0.2, 0.8) + 0.05 * torch.randn(4000, 1)
    model = around(sde, baseline=Truncated(sde, 0.0, 1.0, std=100.0), data_mean=0.5, data_std=0.3)
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
    sde = DiagonalSDE(VP(), joint, joint.per_block(y=0, x=1))
    known = condition(regression(sde), y=torch.tensor([[0.3, 0.1], [2.0, 0.0]]))
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
        (lambda: around(SDE, baseline=7), TypeError, "baseline: expected a.* ScoreEstimator"),
        (
            lambda: around(SDE, baseline=Truncated(DiagonalSDE(VP(), Identity((2,))), 0.0, 1.0)),
            ValueError,
            "baseline: expected an estimator with this very SDE",
        ),
    ],
)
def test_bad_bounds(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
