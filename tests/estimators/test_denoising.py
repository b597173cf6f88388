"""Training objectives, mostly without sampling.

Losses of an affine denoiser are quadratic in clean data and noise, so an average over points
with the right mean and covariance is the expectation.
"""

import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import ExactDenoising
from numpy.polynomial.hermite_e import hermegauss
from strategies import gaussian, mixture, mixtures, sdes, states, times
from torch import nn

from estimators import Denoising, ResidualMLP, measure
from scoresde import PCA, VE, VP, DiagonalSDE, Haar, Identity, LogLinear, Noise
from scoresde.objectives.parametrization import PARAMETRIZATIONS
from scoresde.objectives.weighting import WEIGHTINGS
from scoresde.sampling.grid import GRIDS

pytestmark = pytest.mark.usefixtures("float64")

every_form = pytest.mark.parametrize("form", PARAMETRIZATIONS)
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


class Affine(nn.Module):
    """A network that a test may set to any affine map."""

    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, n)

    def forward(self, x, level, condition=None):
        return self.linear(x.flatten(1)).reshape(x.shape)


class Recorder(nn.Module):
    def forward(self, x, level, condition=None):
        self.x, self.level, self.condition = x, level, condition
        return torch.zeros_like(x)


def points(mean, covariance):
    """Pairs of clean data and noise, ``(2 (2n), n)`` each, with the moments of the true ones."""
    n = len(mean)
    sides = torch.cat([torch.eye(2 * n), -torch.eye(2 * n)]) * (2 * n) ** 0.5
    return mean + sides[:, :n] @ torch.linalg.cholesky(covariance).mT, sides[:, n:]


class Designed(Noise):
    """The times' uniform number first, then the noise of `points`."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def __call__(self, like):
        return torch.zeros_like(like) if like.shape[-1] == 1 != self.noise.shape[-1] else self.noise


def expected_losses(model, exact, moments):
    """The expectation of `losses` at each of the times, averaged over ``(time, density)``."""
    clean, noise = points(exact.means[0], exact.covariances[0])
    t, density = moments
    copies = len(clean)
    model.draw_times = lambda u: tuple(
        v.repeat_interleave(copies).unsqueeze(-1) for v in (t, density)
    )
    x = model.sde.basis.inverse(clean.repeat(len(t), 1))
    losses = model.losses(x, generator=Designed(noise.repeat(len(t), 1)))
    return losses.reshape(len(t), copies).mean(-1)


def bed(kind="VP", **kwargs):
    schedule = {"VP": VP, "VE": lambda: VE(0.01, 5.0), "LogLinear": LogLinear}[kind]()
    basis = Identity((3,), {"a": 1, "b": 2})
    return gaussian(DiagonalSDE(schedule, basis, **kwargs), 7)


CASES = {
    "uniform": {},
    "non-uniform": {"speeds": [1.0, 1.6], "scale": [1.0, 0.6]},
}


def solve(exact, model, t):
    """Weights of an affine network with which ``model`` denoises exactly at ``t``."""
    probe = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    teacher = ExactDenoising(
        exact,
        parametrization=model.parametrization,
        data_std=model.data_std,
        data_mean=model.data_mean,
    )
    times = torch.tensor([t])
    alpha, sigma = exact.sde.kernel(times, 3)
    std, mean = (exact.sde.blocks.expand(v) for v in (model.data_std, model.data_mean))
    scale = ((alpha * std) ** 2 + sigma**2).sqrt()
    teacher.denoise(probe * scale + alpha * mean, t)
    answers = teacher.network.answer(probe)
    with torch.no_grad():
        model.network.linear.bias.copy_(answers[0])
        model.network.linear.weight.copy_((answers[1:] - answers[0]).mT)


@pytest.mark.covering(2)
@every_form
@every_weighting
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("t", [0.05, 0.5])
def test_the_minimiser_does_not_depend_on_the_weighting(weighting, form, case, t):  # invariant 24
    exact = bed(**CASES[case])
    model = Denoising(
        exact.sde,
        Affine(3),
        parametrization=form,
        weighting=weighting,
        data_mean=[0.3, -0.2],
        data_std=[0.5, 1.5],
    )
    solve(exact, model, t)
    moments = torch.tensor([t]), torch.ones(1)
    z = torch.randn(4, 3)
    torch.testing.assert_close(model.denoise(z, t), exact.denoise(z, t))

    best = expected_losses(model, exact, moments).sum()
    slopes = torch.autograd.grad(best, list(model.network.parameters()))
    for slope in slopes:
        torch.testing.assert_close(
            slope / best.detach(), torch.zeros_like(slope), atol=1e-8, rtol=0
        )
    for parameter in model.network.parameters():
        for sign in (0.1, -0.1):
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter += sign * torch.randn_like(parameter)
                assert expected_losses(model, exact, moments).sum() > best
                parameter.copy_(kept)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_denoising_differs_from_explicit_score_matching_by_a_constant(weighting, t):  # inv. 25
    """``E w (z_0 - D)^2 - E w (D* - D)^2`` is the same for any two networks (Vincent 2011)."""
    sde = DiagonalSDE(VP(), Identity((1,)), speeds=0.8)
    exact = mixture(sde, 2, components=2)
    nodes, mass = (torch.from_numpy(v) for v in hermegauss(60))
    mass = mass / mass.sum()
    probabilities = exact.log_weights.exp()[:, None, None] * mass[:, None] * mass
    clean = exact.means[:, None] + exact.covariances[..., 0].sqrt()[:, None] * nodes[:, None]
    clean, noise = (v.expand(2, 60, 60).reshape(-1, 1) for v in (clean.reshape(2, 60, 1), nodes))
    gaps = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = ResidualMLP((1,), width=16, depth=1)
        nn.init.normal_(network.output_layer[1].weight, std=0.3)
        model = Denoising(sde, network, weighting=weighting)
        times = torch.full((len(clean), 1), t)
        model.draw_times = lambda u, times=times: (times, torch.ones_like(times))
        weights = []

        def recorded(levels, rule=model.weighting, weights=weights):
            weights.append(rule(levels))
            return weights[-1]

        losses = model.losses(clean, generator=Designed(noise), weighting=recorded)
        alpha, sigma = sde.kernel(torch.tensor([t]))
        z = alpha * clean + sigma * noise
        explicit = (weights[0] * (exact.denoise(z, t) - model.denoise(z, t)) ** 2).squeeze(-1)
        denoising, matched = (
            float((probabilities.flatten() * v).sum()) for v in (losses, explicit)
        )
        assert matched > 1e-3 * denoising
        gaps.append(denoising - matched)
    assert gaps[0] == pytest.approx(gaps[1], rel=2e-5)


@every_weighting
@pytest.mark.parametrize("case", CASES)
def test_the_exact_denoiser_pays_the_posterior_variance(weighting, case):
    exact = bed(**CASES[case])
    model = ExactDenoising(exact, weighting=weighting, parametrization="noise")
    t = torch.tensor([0.3])
    alpha, sigma = (v.expand(3) for v in exact.sde.kernel(t))
    g2 = readings.rates(exact.sde, t)[1].expand(3)
    c = exact.covariances[0]
    total = alpha[:, None] * c * alpha + torch.diag(sigma**2)
    posterior = c - c * alpha @ torch.linalg.solve(total, alpha[:, None] * c)
    snr = alpha**2 / sigma**2
    weights = {
        "likelihood": snr * g2 / sigma**2 / 2,
        "noise": snr,
        "score": snr / sigma**2,
        "denoised": torch.ones(3),
        "prediction": snr,
        "balanced": snr.sqrt() / (sigma / alpha).mean(),
    }
    found = expected_losses(model, exact, (t, torch.ones(1)))
    truth = (weights[weighting] * posterior.diagonal()).sum().reshape(1)
    torch.testing.assert_close(found, truth, rtol=1e-8, atol=0)


def information(exact, t):
    """Mutual information of clean and diffused data: half its slope is the loss (I-MMSE)."""
    alpha, sigma = (v.expand(3) for v in exact.sde.kernel(torch.tensor([t])))
    root = alpha / sigma
    return torch.logdet(torch.eye(3) + root[:, None] * exact.covariances[0] * root) / 2


@pytest.mark.covering(1)
@pytest.mark.parametrize("density", GRIDS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["VP", "VE", "LogLinear"])
def test_the_likelihood_loss_is_the_bounds_integral(kind, case, density):
    """In nats, whatever the density of times and the path of the schedules."""
    exact = bed(kind, **CASES[case])
    model = ExactDenoising(exact, weighting="likelihood", times=density)
    # the fewer of its times are where a long interval ends, the more are needed
    count = {"log_snr": 512, "karras": 2048, "log_normal": 2**15}.get(density, 8192)
    moments = model.draw_times((torch.arange(count) + 0.5) / count)
    found = expected_losses(model, exact, moments).mean()
    truth = information(exact, exact.sde.eps) - information(exact, exact.sde.T)
    torch.testing.assert_close(found, truth, rtol=5e-3, atol=0)


@pytest.mark.parametrize("density", GRIDS)
def test_losses_of_random_times_and_noise_are_unbiased(density):
    exact = bed("VP", **CASES["non-uniform"])
    exact.sde.schedule.eps = exact.sde.eps = 0.02
    model = ExactDenoising(exact, weighting="likelihood", times=density)
    g = torch.Generator().manual_seed(3)
    x = (
        exact.means[0]
        + torch.randn(20000, 3, generator=g) @ torch.linalg.cholesky(exact.covariances[0]).mT
    )
    losses = model.losses(x, generator=g)
    truth = information(exact, exact.sde.eps) - information(exact, exact.sde.T)
    assert (losses.mean() - truth).abs() < 5 * losses.std() / len(x) ** 0.5
    assert losses.std() / len(x) ** 0.5 < 0.05 * truth


@every_form
@given(data=st.data())
def test_every_parametrisation_gives_the_same_denoiser(form, data):
    """A network that predicts exactly what it is asked for: sign and scale of each."""
    sde = data.draw(sdes())
    exact = data.draw(mixtures(sde))
    z = data.draw(states(sde))
    t = torch.cat(data.draw(times(sde, 3)))
    model = ExactDenoising(exact, parametrization=form, data_mean=0.4, data_std=0.7)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(model.denoise(z, t), exact.denoise(z, t), **close)
    sigma = sde.kernel(t.unsqueeze(-1)).sigma
    torch.testing.assert_close(sigma * model.score(z, t), sigma * exact.score(z, t), **close)


def test_a_network_that_predicts_noise_is_a_score_with_its_sign_and_scale():
    """Read as a score itself, it would be off by ``-sigma``."""

    class Constant(nn.Module):
        def forward(self, x, level):
            return torch.full_like(x, 0.7)

    sde = DiagonalSDE(VE(0.01, 5.0), Identity((2,)))
    model = Denoising(sde, Constant(), parametrization="noise")
    z = torch.randn(3, 2)
    for t in (0.2, 0.9):
        sigma = sde.kernel(torch.tensor([t])).sigma
        torch.testing.assert_close(model.noise(z, t), torch.full_like(z, 0.7))
        torch.testing.assert_close(model.score(z, t), (-0.7 / sigma).expand_as(z))


@pytest.mark.parametrize("kind", ["VP", "VE", "LogLinear"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_the_network_sees_unit_variance(kind, case, t):
    """Per block, for data with the moments that the model was told."""
    exact = bed(kind, **CASES[case])
    clean, noise = points(exact.means[0], exact.covariances[0])
    model = Denoising(exact.sde, Recorder(), **measure(exact.sde, exact.sde.basis.inverse(clean)))
    model.denoise(exact.sde.diffuse(clean, t, noise), t)
    seen = model.network.x
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), rtol=0, atol=1e-9)
    variance = exact.sde.blocks.mean((seen**2).mean(0))
    torch.testing.assert_close(variance, torch.ones(2))


def test_the_network_sees_events_and_levels():
    sde = DiagonalSDE(VP(), Haar((1, 2, 2), 1))
    model = Denoising(sde, Recorder())
    x, t = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    model.denoise(sde.basis(x), t, condition="given")
    seen = model.network
    torch.testing.assert_close(seen.x, x)  # a variance-preserving input keeps its scale
    torch.testing.assert_close(seen.level, -sde.schedule.log_snr(t) / 8)
    assert seen.condition == "given"
    model.denoise(sde.basis(x).float(), t)
    assert seen.level.dtype == torch.float32
    model.denoise(sde.basis(x).expand(2, 3, 4), t.expand(2, 3))
    assert seen.x.shape == (6, 1, 2, 2)


@given(data=st.data())
def test_data_are_measured_per_block_or_column(data):
    sde = data.draw(sdes())
    x = 3 + 2 * torch.randn(50, *sde.basis.event_shape)
    found, z = measure(sde, x), sde.basis(x)
    torch.testing.assert_close(found["data_mean"], z.mean(0))
    variance = ((z - z.mean(0)) ** 2).mean(0)
    vectors = isinstance(sde.basis, (Identity, PCA)) and len(sde.basis.event_shape) == 1
    wanted = variance if vectors else sde.blocks.mean(variance)
    torch.testing.assert_close(found["data_std"] ** 2, wanted)


def test_training_lowers_the_loss_to_the_exact_one():
    exact = bed("VP", **CASES["non-uniform"])
    model = Denoising(exact.sde, Affine(3), weighting="prediction", data_std=1.0)
    g = torch.Generator().manual_seed(0)
    x = (
        exact.means[0]
        + torch.randn(4096, 3, generator=g) @ torch.linalg.cholesky(exact.covariances[0]).mT
    )
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.loss(x, generator=g)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_loss():
    model = Denoising(bed().sde, ResidualMLP((3,), width=8, depth=1))
    x = torch.randn(8, 3)

    def run(seed):
        return model.losses(x, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_the_loss_is_the_mean_per_component():
    model = Denoising(bed().sde, ResidualMLP((3,), width=8, depth=1))
    x = torch.randn(8, 3)
    losses = model.losses(x, generator=torch.Generator().manual_seed(0))
    loss = model.loss(x, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, losses.sum() / (8 * 3))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"parametrization": "nois"}, "parametrization"),
        ({"weighting": "nois"}, "weighting"),
        ({"times": "logsnr"}, "times"),
        ({"data_std": 0.0}, "data_std"),
        ({"data_std": [1.0, 1.0, 1.0, 1.0]}, "data_std"),
    ],
)
def test_impossible_settings_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        Denoising(bed().sde, Affine(3), **arguments)


def test_a_network_of_the_wrong_shape_is_refused():
    class Short(nn.Module):
        def forward(self, x, level):
            return x[:, :2]

    with pytest.raises(ValueError, match="network: expected an output of shape"):
        Denoising(bed().sde, Short()).denoise(torch.zeros(2, 3), 0.5)


class Taking(torch.nn.Module):
    """Called with one, two or three arguments."""

    def forward(self, x):
        """One."""
        return x


class TakingTwo(Taking):
    def forward(self, x, level, condition=None):
        """Two, or three."""
        return x


class TakingThree(Taking):
    def forward(self, x, level, condition):
        """Three."""
        return x


def test_networks_that_cannot_be_called_are_refused_at_once():
    sde = DiagonalSDE(VP(), Identity((2,)))
    with pytest.raises(
        TypeError, match=r"network: .* network\(x, noise_level\), got Taking\.forward\(x\)"
    ):
        Denoising(sde, Taking())
    for network in (
        TakingTwo(),
        TakingThree(),
        torch.nn.DataParallel(TakingTwo()),
        TakingTwo().forward,
    ):
        Denoising(sde, network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_weighting
def test_what_is_said_of_clean_components_does_not_count(weighting, dtype):
    class Off(Denoising):
        def denoise(self, z, t, condition=None):
            return z + torch.tensor([self.off, 0.0]).to(z)

    sde = DiagonalSDE(VP(), Identity((2,), {"still": 1, "moving": 1}), [0.0, 1.0])
    model, losses = Off(sde, Recorder(), weighting=weighting).to(dtype), []
    x = torch.randn(6, 2, dtype=dtype)
    for model.off in (0.0, 3.0):
        losses.append(model.losses(x, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*losses)
    assert (losses[0] > 0).all()
