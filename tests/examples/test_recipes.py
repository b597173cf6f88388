"""Recipes of anisotropic noise and of learned paths: the special cases that each must recover."""

import exact_moments
import learned_bands
import pytest
import readings
import spectral_noise
import torch
import variance_aware_drift
from torch import nn

from estimators import Denoising, Gaussian, GaussianMixture, ResidualMLP
from scoresde import DCT, VP, DiagonalSDE, Identity, Learned, Wavelet, bound
from solvers import ExponentialMultistep

FEW = ExponentialMultistep(5, order=2, grid="uniform_time")
SHAPE = (1, 4, 4)


def data(dtype=torch.float64, count=400):
    """Correlated events whose mean is not 0 and whose fine frequencies are weak."""
    g = torch.Generator().manual_seed(3)
    dct = DCT(SHAPE)
    mixed = torch.randn(16, 16, generator=g, dtype=torch.float64) / 8 + torch.eye(16)
    z = torch.randn(count, 16, generator=g, dtype=torch.float64) @ mixed
    return (0.3 + dct.inverse(z / (1 + dct.frequencies) ** 2)).to(dtype)


def every_frequency():
    return DCT(SHAPE, bands=len(DCT(SHAPE).frequencies.unique()))


def kernel(sde, dtype, times=(1e-3, 0.1, 0.5, 1.0)):
    return sde.kernel(torch.tensor(times, dtype=dtype).unsqueeze(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", [every_frequency(), Wavelet(SHAPE, 2, "db1")], ids=repr)
def test_equal_snr_is_the_same_of_all_blocks(basis, dtype):
    x = data(dtype)
    alpha, sigma = (v.expand(4, 16) for v in kernel(spectral_noise.equal_snr(basis, x), dtype))
    variances = basis(x.double()).var(0, correction=0)
    variances = basis.blocks.expand(basis.blocks.mean(variances)).to(dtype)
    snr = alpha**2 * variances / sigma**2
    torch.testing.assert_close(snr, snr[:, :1].expand_as(snr), rtol=1e-5, atol=0)
    plain, noise = VP()(torch.tensor([[1e-3], [0.1], [0.5], [1.0]], dtype=dtype))
    torch.testing.assert_close(snr[:, :1], (plain / noise) ** 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_power_law_of_exponent_0_is_white(dtype):
    white = kernel(spectral_noise.power_law(DCT(SHAPE), 0.0), dtype)
    plain = kernel(DiagonalSDE(VP(), DCT(SHAPE)), dtype)
    for found, wanted in zip(white, plain, strict=True):
        torch.testing.assert_close(found, wanted.expand_as(found))


@pytest.mark.parametrize("exponent", [-1.0, 0.5])
def test_noise_is_a_power_of_the_frequency_with_the_power_of_white_noise(exponent):
    sde = spectral_noise.power_law(DCT(SHAPE), exponent, floor=0.4)
    sigma = sde.kernel(torch.tensor([0.3]).double()).sigma
    part = DCT(SHAPE).frequencies / DCT(SHAPE).frequencies[-1]
    ratio = (sigma / sigma[-1]).log() / part.clamp(min=0.4).log()
    torch.testing.assert_close(ratio[part < 0.99], torch.full_like(ratio[part < 0.99], exponent))
    white = VP().sigma(torch.tensor([0.3]).double()) ** 2
    torch.testing.assert_close(sigma.square().mean(), white[0])


def test_a_band_lets_its_own_frequencies_pass():
    sde = spectral_noise.band_pass(DCT(SHAPE), 0.3, 0.7, floor=0.05)
    sigma = sde.kernel(torch.tensor([0.3]).double()).sigma
    part = DCT(SHAPE).frequencies / DCT(SHAPE).frequencies[-1]
    inside = (part >= 0.3) & (part <= 0.7)
    assert 0 < inside.sum() < 16
    torch.testing.assert_close(sigma[inside], sigma[inside][:1].expand(int(inside.sum())))
    torch.testing.assert_close(sigma[~inside], 0.05 * sigma[inside][0].expand(int((~inside).sum())))


def test_drift_without_variances_is_that_of_uniform_diffusion():
    x = data()
    sde = variance_aware_drift.variance_aware_drift(x, power=0.0)
    plain = DiagonalSDE(VP(), sde.basis, scale=float(sde.basis.variances.max().sqrt()))
    for found, wanted in zip(*(kernel(v, torch.float64) for v in (sde, plain)), strict=True):
        torch.testing.assert_close(found, wanted.expand_as(found))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_drift_falls_with_the_variance_under_noise_that_is_the_same_everywhere(power):
    sde = variance_aware_drift.variance_aware_drift(data(), power, floor=1e-6)
    f, g2 = readings.rates(sde, torch.tensor([0.4]).double())
    beta = -2 * VP().rates(torch.tensor([0.4]).double())[0]
    v = sde.basis.variances
    torch.testing.assert_close(f, -beta / 2 * (v[0] / v) ** power)
    torch.testing.assert_close(g2, (v[0] * beta).expand(16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussian_data_keep_their_distribution_under_drift_of_power_1(dtype):
    x = data()
    sde = variance_aware_drift.variance_aware_drift(x, floor=1e-6)
    model = Gaussian(sde, x.mean(0), x.flatten(1).mT.cov(correction=0))
    for t in (1e-3, 0.2, 1.0):
        distribution = model.marginal(torch.tensor([t], dtype=dtype)).component_distribution
        found = distribution.covariance_matrix.squeeze()
        torch.testing.assert_close(
            found, torch.diag(sde.basis.variances).to(dtype), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("basis", [DCT(SHAPE, bands=2), Wavelet(SHAPE, 1, "db2")], ids=repr)
def test_two_subspaces_have_a_path_each_between_the_same_ends(basis):
    sde = learned_bands.learned_bands(basis, data(), 0.01, 80.0)
    with torch.no_grad():
        sde.schedule.weight[:, 1] += torch.linspace(-2, 2, len(sde.schedule.weight))
    alpha, sigma = sde.kernel(torch.linspace(sde.eps, 1, 30).double().unsqueeze(-1))
    unit = sigma / alpha / sde.blocks.expand(sde.scale)
    unit = unit[:, [0, -1]]  # of a component of either
    assert (unit.diff(dim=0) > 0).all()
    torch.testing.assert_close(unit[[0, -1]], torch.tensor([[0.01], [80.0]]).double().expand(2, 2))
    assert ((unit[:, 0] / unit[:, 1])[1:-1] - 1).abs().max() > 0.5


def test_paths_that_are_alike_are_one():
    basis = DCT(SHAPE, bands=3)
    sde = learned_bands.learned_bands(basis, data())
    ends = sde.schedule.log_snr_max, sde.schedule.log_snr_min
    shared = DiagonalSDE(Learned(1, 8, *ends), basis, scale=sde.scale)
    for found, wanted in zip(*(kernel(v, torch.float64) for v in (sde, shared)), strict=True):
        torch.testing.assert_close(found, wanted.expand_as(found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_of_few_steps_is_that_of_their_exact_distribution(dtype):
    basis, x = DCT(SHAPE, bands=3), data()
    sde, solver = (
        learned_bands.learned_bands(basis, x),
        ExponentialMultistep(5, order=2, grid="uniform_time"),
    )
    variances = basis(x).var(0).to(dtype)
    found = learned_bands.few_steps_error(sde, variances, solver)
    components = basis.inverse(torch.eye(16).double()).reshape(16, 16)
    covariance = components.mT @ torch.diag(variances.double()) @ components
    centred = DiagonalSDE(sde.schedule, basis, scale=sde.scale)
    model = Gaussian(centred, torch.zeros(SHAPE), covariance)
    with torch.no_grad():
        _, sampled = exact_moments.moments(lambda rows, noise: solver.rsample(
            model, (rows,), generator=noise, dtype=torch.float64))  # fmt: skip
    in_basis = components @ sampled @ components.mT
    gap = (in_basis.diagonal().sqrt() - variances.double().sqrt()).square().sum()
    torch.testing.assert_close(
        found.double().detach(), gap / variances.double().sum(), rtol=1e-4, atol=0
    )


def test_paths_learned_for_few_steps_miss_less_with_them():
    basis, x = Wavelet(SHAPE, 2, "db1"), data()
    sde, solver = (
        learned_bands.learned_bands(basis, x),
        ExponentialMultistep(5, order=2, grid="uniform_time"),
    )
    variances = basis(x).var(0)
    before, after = (
        learned_bands.by_quality(
            sde, lambda: learned_bands.few_steps_error(sde, variances, solver), steps
        )
        for steps in (1, 15)
    )
    assert after < before / 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_paths_through_knots(dtype):
    """From noise at the step before which they start; straight lines, of which rates are slopes."""
    schedule = learned_bands.Knots(4, [0, 2], 8.0, -4.0)
    assert schedule.width == 2
    knots = torch.linspace(1, schedule.eps, 5).to(dtype).unsqueeze(-1)
    at = schedule.log_snr(knots)
    # beyond ten or so levels are drawn together
    torch.testing.assert_close(
        at[:, 0], torch.tensor([-4.0, -1, 2, 5, 8]).to(dtype), rtol=0.01, atol=0
    )
    torch.testing.assert_close(at[2:, 1], torch.tensor([-4.0, 2, 8]).to(dtype), rtol=0.01, atol=0)
    with torch.no_grad():
        schedule.falls[1, 0] += 1
    t = torch.tensor([0.3, 0.6, 0.9]).double().unsqueeze(-1).requires_grad_()
    alpha, sigma = schedule.log_alpha(t).exp(), schedule.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(sigma))
    f, _ = schedule.rates(t)
    for path in range(2):
        (slope,) = torch.autograd.grad(schedule.log_alpha(t)[:, path].sum(), t)
        torch.testing.assert_close(f[:, path], slope[:, 0])


def staged():
    """Two scales, of which the fine one enters after two of three steps."""
    basis, x = Wavelet(SHAPE, 1, "db1"), data()
    mean, std = basis.moments(x)
    schedule = learned_bands.Knots(3, [0, 2])
    times = torch.linspace(1, schedule.eps, 4).double().tolist()
    known = {"scale": std, "std": std, "mean": mean, "drop": [times[0], times[2]]}
    return DiagonalSDE(schedule, basis, **known), x, ExponentialMultistep(3, order=2, grid=times)


def test_the_error_on_whole_events_is_the_distance_of_distributions():
    sde, x, solver = staged()
    covariance = x.flatten(1).mT.cov()
    found = learned_bands.whole_error(sde, covariance, solver)
    model = Gaussian(sde, x.mean(0), covariance)
    with torch.no_grad():
        _, sampled = exact_moments.moments(lambda rows, noise: solver.rsample(
            model, (rows,), generator=noise, dtype=torch.float64))  # fmt: skip
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    shared = torch.linalg.eigvalsh(root @ sampled @ root).clamp(min=0).sqrt().sum()
    wanted = (covariance.trace() + sampled.trace() - 2 * shared) / covariance.trace()
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-6, atol=1e-12)
    # its gradient is the derivative, though rotations are held
    top = sde.schedule.top
    (slope,) = torch.autograd.grad(found, top)
    with torch.no_grad():
        ends = []
        for turn in (1e-4, -2e-4):
            top[0, 1] += turn
            ends.append(learned_bands.whole_error(sde, covariance, solver))
    torch.testing.assert_close(slope[0, 1], (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-9)


def test_paths_are_learned_on_whole_events():
    sde, x, solver = staged()
    covariance = x.flatten(1).mT.cov()
    before, after = (
        learned_bands.by_quality(
            sde, lambda: learned_bands.whole_error(sde, covariance, solver), steps
        )
        for steps in (1, 10)
    )
    assert after < before / 3


def network():
    torch.manual_seed(0)
    return ResidualMLP(SHAPE, width=16, depth=1)


def test_the_bound_trains_paths_and_network_together():
    x, basis = data(torch.float32, 64), Wavelet(SHAPE, 2, "db1")
    sde = learned_bands.learned_bands(basis, x)
    model = Denoising(sde, network())
    first = sde.schedule.weight.detach().clone()
    before = learned_bands.by_bound(model, x, steps=1, draws=8)
    after = learned_bands.by_bound(model, x, steps=12, draws=8)
    assert after < before
    moved = (sde.schedule.weight.softmax(0) - first.softmax(0)).abs()
    assert moved.max() > 0.01
    assert ((moved[:, 0] - moved[:, 1]).abs() > 1e-4).any()  # a path for each


CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double()
SPREAD = torch.stack([torch.eye(2).double() * 0.2, torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()])
WEIGHTS = torch.tensor([0.3, 0.7]).double()


class Known(nn.Module):
    """An encoder whose answers are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits(x).to(x)


def parts():
    """A Gaussian for every context, on paths that differ."""
    models = []
    for k in range(2):
        schedule = Learned(2, 4)
        with torch.no_grad():
            schedule.weight += torch.randn(5, 2, generator=torch.Generator().manual_seed(k)) / 3
        sde = DiagonalSDE(schedule, Identity((2,), {"a": 1, "b": 1}))
        models.append(Gaussian(sde, CENTRES[k], SPREAD[k]))
    return models


def mixture():
    sde = parts()[0].sde
    return GaussianMixture(sde, WEIGHTS, CENTRES, SPREAD).marginal(torch.tensor([sde.eps]).double())


def joint(x):
    """``log p(k) + log p(x | k)``, ``(batch, 2)``."""
    each = torch.distributions.MultivariateNormal(CENTRES, SPREAD)
    return WEIGHTS.log() + each.log_prob(x.double().unsqueeze(-2))


def contexts(logits):
    found = learned_bands.Contexts(parts(), Known(logits))
    with torch.no_grad():
        found.prior.copy_(WEIGHTS.log())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contexts_that_are_the_parts_of_a_mixture_have_its_density(dtype):
    x = (CENTRES[[0, 1, 1]] + torch.tensor([[0.1, -0.3], [0.2, 0.0], [-0.9, -0.4]])).to(dtype)
    truth = joint(x)
    exact = contexts(joint).bound(x, torch.Generator().manual_seed(0), draws=6000)
    torch.testing.assert_close(exact.detach().double(), -truth.logsumexp(-1), rtol=0, atol=0.1)
    # an encoder that knows nothing pays its divergence from the posterior
    known_nothing = contexts(lambda x: torch.zeros(len(x), 2))
    blind = known_nothing.bound(x, torch.Generator().manual_seed(0), draws=6000)
    posterior = truth.log_softmax(-1)
    divergence = (-0.6931471805599453 - posterior).mean(-1)
    torch.testing.assert_close((blind - exact).detach().double(), divergence, rtol=0, atol=0.1)


def test_one_context_is_none():
    model, x = parts()[0], torch.randn(4, 2, dtype=torch.float64)
    alone = learned_bands.Contexts([model], Known(lambda x: torch.zeros(len(x), 1)))
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.equal(alone.bound(x, one), bound(model, x, generator=other))


def test_contexts_come_as_often_as_their_prior_says_and_networks_are_told():
    heard = []

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ResidualMLP((2,), width=8, depth=1)

        def forward(self, x, level, condition):
            heard.append(condition.clone())
            return self.inner(x, level) + 0 * condition.unsqueeze(-1)

    shared = Told()
    models = [Denoising(part.sde, shared) for part in parts()]
    found = learned_bands.Contexts(models, Known(lambda x: torch.zeros(len(x), 2)), told=True)
    with torch.no_grad():
        found.prior.copy_(WEIGHTS.log())
    found.bound(torch.zeros(3, 2)).sum().backward()
    assert {int(k) for told in heard for k in told} == {0, 1}
    assert all(len(told.unique()) == 1 for told in heard)
    assert all(part.sde.schedule.weight.grad.abs().max() > 0 for part in models)
    sample = contexts(joint).sample
    x = sample(ExponentialMultistep(12), 2000, torch.Generator().manual_seed(0))
    assert x.shape == (2000, 2)
    assert abs(float(x[:, 0].mean()) - float(WEIGHTS @ CENTRES[:, 0])) < 0.1


@pytest.mark.parametrize("recipe", [spectral_noise, variance_aware_drift, learned_bands])
def test_main_reports(recipe, capsys):
    recipe.main()
    assert "error of the mean" in capsys.readouterr().out
