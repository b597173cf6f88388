"""The variational bound: unbiased, of low variance, and what a schedule's path does to it."""

import itertools
import math

import numpy as np
import pytest
import readings
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.legendre import leggauss
from strategies import gaussian, mixture
from torch.distributions import Normal, kl_divergence

from estimators import Gaussian
from scoresde import (
    VP,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    Learned,
    LogLinear,
    Quadrature,
    Schedule,
    ScoreEstimator,
    bound,
    condition,
    log_prob,
)
from scoresde.equation import align
from scoresde.estimator import DirectScoreEstimator
from scoresde.likelihood import importance
from scoresde.likelihood.variational import prior_loss, reconstruction
from scoresde.sampling.grid import grid

pytestmark = pytest.mark.usefixtures("float64")

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
WRONG = torch.tensor([[0.8, -0.5], [-0.5, 0.9]], dtype=torch.float64)


def path(components, seed, **ends):
    torch.manual_seed(seed)
    schedule = Learned(components, 4, **{"log_snr_max": 6.0, "log_snr_min": -6.0, **ends})
    with torch.no_grad():
        schedule.weight.add_(1.5 * torch.randn_like(schedule.weight))
    return schedule


def gains(sde, t, model, mixing):
    """``K`` of the denoiser ``D = K z_t`` that is exact for ``N(0, model)`` if ``mixing`` is 1."""
    alpha, sigma = (v.expand(*v.shape[:-1], 2) for v in sde.kernel(t))
    scaled = alpha.unsqueeze(-1) * model
    spread = scaled * alpha.unsqueeze(-2) + torch.diag_embed(sigma**2)
    exact = torch.linalg.solve(spread, scaled).mT
    return exact * (mixing + (1 - mixing) * torch.eye(2)), alpha, sigma


def expected(sde, model, mixing=1.0):
    """Of the bound's diffusion part, for data ``N(0, C)``.

    ``E (z - D)^2`` is the diagonal of ``(1 - K A) C (1 - K A)^T + K S K^T``.
    """
    u, w = (torch.tensor(v).unsqueeze(-1) for v in leggauss(200))
    t = sde.eps + (sde.T - sde.eps) * (u + 1) / 2
    gain, alpha, sigma = gains(sde, t, model, mixing)
    rest = torch.eye(2) - gain * alpha.unsqueeze(-2)
    error = rest @ COVARIANCE @ rest.mT + gain * sigma.unsqueeze(-2) ** 2 @ gain.mT
    fall = (alpha / sigma) ** 2 * readings.rates(sde, t)[1] / sigma**2
    return (w * (sde.T - sde.eps) / 4 * fall * error.diagonal(dim1=-2, dim2=-1)).sum()


def wrong(sde):
    """The exact denoiser of other data."""
    return Gaussian(sde, torch.zeros(2), WRONG)


class Timid(ScoreEstimator):
    """The exact denoiser of no data at all: it mixes components less than it should."""

    def denoise(self, z, t, condition=None):
        gain = gains(self.sde, self.sde.time(t, z), WRONG, SHARE)[0]
        return (gain @ z.unsqueeze(-1)).squeeze(-1)


SHARE = 0.3


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("times", ["log_snr", "uniform_time", "tuned"])
@pytest.mark.parametrize("moments", [None, (torch.tensor([0.3, -0.2]), torch.tensor([0.5, 2.0]))])
def test_the_bound_is_unbiased(times, moments, draws):  # invariant 26
    """Whatever times are drawn, and whatever moments the control has: of a wrong model, too."""
    sde = DiagonalSDE(path(2, 1), Identity((2,), {"a": 1, "b": 1}), scale=[1.0, 0.6])
    model = Timid(sde)
    x = torch.randn(20000, 2) @ torch.linalg.cholesky(COVARIANCE).mT
    if times == "tuned":
        times = importance(model, x[:50], moments=moments)
    found = bound(model, x, times=times, moments=moments, draws=draws)
    ends = prior_loss(sde, x) + reconstruction(sde)
    truth = float(expected(sde, WRONG, SHARE).detach())
    gap = (found - ends).detach() - truth
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / len(x) ** 0.5
    assert abs(float(gap.mean())) < 0.02 * truth


def test_the_bound_holds_and_is_tight_for_exact_scores():  # invariant 26
    model = mixture(DiagonalSDE(LogLinear(9.0, -9.0), Identity((3,)), [1.0, 0.9, 0.8]), 4)
    distribution = model.marginal(torch.tensor([model.sde.eps]))
    x = distribution.sample((30,))
    values = bound(model, x.repeat(300, 1), draws=4).reshape(300, 30)
    error = float(values.std() / values.numel() ** 0.5)
    gap = float(values.mean() + distribution.log_prob(x).mean())
    assert -5 * error < gap < 0.1 + 5 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_enters_costs_every_event_the_divergence_of_its_blocks(dtype):
    """Each from noise around the mean that is known, at the time at which it enters."""
    basis = Haar((1, 2, 2), 1)
    sde = DiagonalSDE(LogLinear(1.0, -1.0), basis, drop=[1.0, 0.4], scale=[1.0, 0.7], mean=[2, -3])
    x = torch.tensor([[0.1, 0.2, -3.0, 1.0], [5.0, -1.0, 0.0, 2.0]]).reshape(2, 1, 2, 2)
    z, truth = basis(x), torch.zeros(2)
    for block, t, mean in zip(basis.blocks.slices.values(), sde.drop, (2.0, -3.0), strict=True):
        alpha, sigma = (v.expand(4)[block] for v in sde.kernel(torch.tensor([t])))
        posterior, prior = Normal(alpha * z[:, block], sigma), Normal(alpha * mean, sigma)
        truth = truth + kl_divergence(posterior, prior).sum(-1)
    torch.testing.assert_close(prior_loss(sde, x.to(dtype)), truth.to(dtype))


def test_starting_late_costs_the_entropy_of_what_is_left():
    sde = DiagonalSDE(VP(eps=0.4), Identity((2,)), [1.0, 0.8], scale=[1.0, 0.6])
    alpha, sigma = sde.kernel(torch.tensor([0.4]))
    torch.testing.assert_close(reconstruction(sde), Normal(0.0, sigma / alpha).entropy().sum())


def test_conditions_go_with_their_events():
    """Whatever their shape, and however many draws there are."""
    sde = DiagonalSDE(VP(), Identity((2,)))
    heard = []

    class Told(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            heard.append(condition)
            return condition.flatten(1).sum(1, keepdim=True).expand_as(z)

    x, condition = torch.randn(3, 2), torch.randn(3, 1, 2)
    bound(Told(sde), x, condition=condition, draws=2)
    assert torch.equal(heard[0], torch.cat([condition, condition]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("drop", [None, [1.0, 0.5]])
def test_every_event_has_a_bound_of_its_own(drop, draws, dtype):
    """Nothing is left to chance if times fall as the signal does and what is denoised is told."""
    sde = DiagonalSDE(LogLinear(1.0, -1.0), Haar((2,), 1), drop=drop, scale=[1.0, 0.7])

    class Told(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            return condition[:, : z.shape[-1]]

    def falling(sde, steps):
        """Equal steps of ``SNR = e^(1 - 2 t)`` in every stage."""
        edges = [stage.start for stage in sde.stages()] + [sde.eps]
        snr = [
            torch.linspace(math.exp(1 - 2 * a), math.exp(1 - 2 * b), steps // len(edges))
            for a, b in itertools.pairwise(edges)
        ]
        times = torch.cat([snr[0], *(part[1:] for part in snr[1:])]).log().sub(1).div(-2)
        return times.clamp(sde.eps, sde.T)

    x = torch.tensor([[0.1, 0.2], [3.0, -1.0], [-20.0, 4.0], [0.5, 7.0]], dtype=dtype)
    told = torch.tensor([[1.0, -1.0], [0.0, 2.0], [5.0, 0.0], [-3.0, 0.5]], dtype=dtype)
    # of a control without variance the denoised mean is constant, too
    found = bound(Told(sde), x, condition=told, draws=draws, times=falling, moments=(0.3, 0.0))
    z, truth = sde.basis(x), prior_loss(sde, x) + reconstruction(sde)
    for stage in sde.stages():
        ends = torch.tensor([[stage.start], [stage.end]])
        start, end = readings.log_snr(sde, ends, stage.dim).exp()
        truth = truth + ((end - start) / 2 * (z - told)[:, : stage.dim] ** 2).sum(-1)
    torch.testing.assert_close(found, truth.to(dtype), rtol=1e-2, atol=1e-2)


def test_tuned_times_have_the_density_they_should():
    """Four fifths in proportion to an integrand that is known, one fifth as ``log_snr``."""
    sde = DiagonalSDE(VP(), Haar((2,), 1), [1.0, 2.0], drop=[1.0, 0.5])

    class Told(ScoreEstimator):
        """Events differ by what they are told, at some times more than at others."""

        def denoise(self, z, t, condition=None):
            return (0.3 + t.reshape(-1, 1) * torch.arange(len(z)).unsqueeze(-1)).expand_as(z)

    x = torch.randn(5, 2)
    z = sde.basis(x)
    # of a control without variance the denoised mean is constant, too
    times = importance(Told(sde), x, moments=(-0.5, 0.0))(sde, 2000)
    base = grid("log_snr")(sde, 64)
    for stage, part in zip(sde.stages(), (times[:1001], times[1000:]), strict=True):
        knots = base[(base <= stage.start + 1e-9) & (base >= stage.end - 1e-9)]
        assert part[0] == knots[0]
        assert part[-1] == knots[-1]
        middles = ((knots[1:] + knots[:-1]) / 2).unsqueeze(-1)
        alpha, sigma = sde.kernel(middles, stage.dim)
        weight = (alpha / sigma) ** 2 * readings.rates(sde, middles, stage.dim)[1] / sigma**2 / 2
        told = 0.3 + torch.arange(5).unsqueeze(-1) * middles.unsqueeze(1)
        error = (z[:, : stage.dim] - told) ** 2 - (z[:, : stage.dim] + 0.5) ** 2
        size = (weight.unsqueeze(1) * error).sum(-1).square().mean(-1).sqrt()
        share = size * -knots.diff()
        share = 0.8 * share / share.sum() + 0.2 / len(share)
        mass = torch.cat([torch.zeros(1), share.cumsum(0)])
        found = np.interp(-knots, -part, np.linspace(0, 1, len(part)))
        torch.testing.assert_close(torch.from_numpy(found), mass, rtol=0, atol=2e-3)


def test_independent_gaussians_leave_nothing_to_chance():
    """With the right moments the bound is a closed form, event by event."""
    std = torch.tensor([0.5, 2.0, 1.0])
    sde = DiagonalSDE(VP(), Identity((3,), {"a": 1, "b": 2}), [1.0, 0.8])
    model = Gaussian(sde, torch.tensor([0.3, 0.0, -1.0]), torch.diag(std**2))
    x = torch.randn(5, 3)
    moments = (torch.tensor([0.3, 0.0, -1.0]), std)
    one, other = (bound(model, x, moments=moments) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    # the error of the best linear denoiser, over the fall of the signal
    u, w = (torch.tensor(v).unsqueeze(-1) for v in leggauss(400))
    t = sde.eps * (sde.T / sde.eps) ** ((u + 1) / 2)
    alpha, sigma = (v.unsqueeze(1) for v in sde.kernel(t))
    fall = (alpha / sigma) ** 2 * readings.rates(sde, t)[1].unsqueeze(1) / sigma**2
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    error = (1 - gain * alpha) ** 2 * (x - moments[0]) ** 2 + (gain * sigma) ** 2
    integral = (w * t * math.log(sde.T / sde.eps) / 4 * (fall * error).sum(-1)).sum(0)
    torch.testing.assert_close(one, integral + prior_loss(sde, x) + reconstruction(sde))
    assert (one - bound(model, x)).abs().max() > 0.1


def test_the_bound_runs_in_stages():
    sde = DiagonalSDE(LogLinear(), Haar((1, 2, 2), 1), [1.0, 2.0], drop=[1.0, 0.5])
    model = gaussian(sde, 3)
    x = model.sde.basis.inverse(model.marginal(torch.tensor([sde.eps])).sample((4,)))
    for times in ("log_snr", importance(model, x)):
        values = bound(model, x.repeat(2000, 1, 1, 1), times=times).reshape(2000, 4).mean(0)
        found = log_prob(model, x, Quadrature(40)).value
        assert float((values + found).mean()) == pytest.approx(0, abs=0.15)


def test_moments_and_tuned_times_lower_the_variance():
    sde = DiagonalSDE(LogLinear(12.0, -8.0), Identity((3,), dict.fromkeys("abc", 1)))
    model = mixture(sde, 4)
    x = model.marginal(torch.tensor([sde.eps])).sample((4000,))
    plain = bound(model, x, times="uniform_time", moments=(0.0, 1e3)).std()
    moments = (x.mean(0), x.std(0))
    controlled = bound(model, x, times="uniform_time", moments=moments).std()
    tuned = bound(model, x, moments=moments, times=importance(model, x[:200], moments=moments))
    assert controlled < 0.9 * plain
    assert tuned.std() < 0.9 * controlled


@given(seed=st.integers(0, 20))
@settings(max_examples=4)
def test_a_shared_path_leaves_the_bound(seed):  # invariant 46
    one, other = (
        DiagonalSDE(path(1, s), Identity((2,), {"a": 1, "b": 1})) for s in (seed, seed + 100)
    )
    values = [expected(sde, WRONG, SHARE) for sde in (one, other)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 20))
@settings(max_examples=4)
def test_paths_per_component_change_the_bound_of_denoisers_of_no_data(seed):  # invariant 46
    """By I-MMSE the integrand is a gradient if there are data of which the denoiser is exact."""
    sdes = [DiagonalSDE(path(2, s), Identity((2,), {"a": 1, "b": 1})) for s in (seed, seed + 100)]
    for covariance in (COVARIANCE, WRONG):
        torch.testing.assert_close(*(expected(s, covariance) for s in sdes), rtol=1e-6, atol=1e-6)
    values = [expected(s, WRONG, SHARE).detach() for s in sdes]
    assert float((values[0] - values[1]).abs()) > 1e-3


def test_the_gradient_of_a_learned_schedule():  # invariant 45
    sde = DiagonalSDE(path(2, 5), Identity((2,), {"a": 1, "b": 1}))
    model, x = Timid(sde), torch.randn(50, 2)
    parameters = list(sde.schedule.parameters())

    def value():
        generator = torch.Generator().manual_seed(0)
        return bound(model, x, generator=generator, times="uniform_time").mean()

    slopes = torch.autograd.grad(value(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        flat, h = parameter.data.view(-1), 1e-5
        for i, exact in enumerate(slope.flatten().tolist()):
            flat[i] += h
            up = value().item()
            flat[i] -= 2 * h
            down = value().item()
            flat[i] += h
            assert exact == pytest.approx((up - down) / (2 * h), rel=1e-4, abs=1e-6)
    # on average it is that of the expectation, also where times follow the schedule
    mean = torch.autograd.grad(expected(sde, WRONG, SHARE), parameters)
    x = torch.randn(100000, 2) @ torch.linalg.cholesky(COVARIANCE).mT
    found = torch.autograd.grad(bound(model, x, draws=10).mean(), parameters)
    scale = max(float(m.abs().max()) for m in mean)
    for a, b in zip(found, mean, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.25 * scale)


def test_a_learned_schedule_tightens_the_bound():
    sde = DiagonalSDE(path(2, 7), Identity((2,), {"a": 1, "b": 1}))
    optimizer = torch.optim.Adam(sde.schedule.parameters(), lr=0.1)
    before = expected(sde, WRONG, SHARE).item()
    for _ in range(15):
        optimizer.zero_grad()
        value = expected(sde, WRONG, SHARE)
        value.backward()
        optimizer.step()
    assert value.item() < before - 0.01


def test_learned_ends_learn():
    high = torch.nn.Parameter(torch.tensor(6.0))
    sde = DiagonalSDE(Learned(log_snr_max=high), Identity((2,)))
    bound(wrong(sde), torch.randn(9, 2)).mean().backward()
    assert high.grad.abs() > 0


def test_other_sdes_and_draws_are_refused():
    sde = DiagonalSDE(VP(), Identity((2,)))
    with pytest.raises(ValueError, match="draws"):
        bound(wrong(sde), torch.zeros(3, 2), draws=0)

    class Zero(DirectScoreEstimator):
        def score(self, z, t, condition=None):
            return -z

    from models import OrnsteinUhlenbeck

    with pytest.raises(TypeError, match="DiagonalSDE"):
        bound(Zero(OrnsteinUhlenbeck((2,))), torch.zeros(3, 2))


@pytest.mark.parametrize("ask", [bound, importance])
@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        ([0.0, 0.0], TypeError, "x: expected a torch.Tensor, got list"),
        (torch.zeros(2, 2).to_sparse(), TypeError, "x: expected a dense tensor, got torch.sparse"),
        (torch.tensor([[0.0, torch.inf]]), ValueError, "x: expected finite numbers"),
    ],
)
def test_what_is_no_data_is_refused(ask, x, kind, message):
    model = wrong(DiagonalSDE(VP(), Identity((2,))))
    with pytest.raises(kind, match=message):
        ask(model, x)
    with pytest.raises(TypeError, match="estimator: expected a ScoreEstimator"):
        ask((2,), torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_are_tuned_to_events_that_know_something_of_their_own(dtype):
    """The same for all of them, it is as if it was said once."""
    sde = DiagonalSDE(LogLinear(), Joint(y=(1,), x=(1,)), [0.0, 1.0])
    model = Gaussian(sde, torch.zeros(2, dtype=dtype), COVARIANCE.to(dtype))
    x = torch.randn(2, 3, 1, dtype=dtype)
    seed = torch.Generator().manual_seed
    once, each = (
        importance(condition(model, y=y), x, generator=seed(0))(sde, 50)
        for y in (torch.ones(1, dtype=dtype), torch.ones(2, 3, 1, dtype=dtype))
    )
    torch.testing.assert_close(each, once)


def test_times_are_not_tuned_to_what_is_no_number():
    class Late(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            return torch.where(align(t, z) < 0.1, torch.nan, z)

    with pytest.raises(ValueError, match="importance: expected finite numbers from the estimator"):
        importance(Late(DiagonalSDE(VP(), Identity((2,)))), torch.zeros(3, 2))


@pytest.mark.parametrize("name", ["log_snr", "wide_arctan_log_snr", "karras"])
def test_grids_of_a_path_that_has_diverged_are_refused(name):
    schedule = Learned()
    torch.nn.init.constant_(schedule.weight, torch.nan)
    sde = DiagonalSDE(schedule, Identity((2,)))
    with pytest.raises(ValueError, match=r"grid: expected an SDE whose noise levels are numbers"):
        grid(name)(sde, 8)


def test_grids_to_endless_noise_are_refused():
    class Endless(Schedule):
        def log_alpha(self, t):
            return torch.zeros_like(t)

        def sigma(self, t):
            return t / (self.T - t)

    with pytest.raises(ValueError, match=r"grid: expected an SDE whose noise levels are numbers"):
        grid("log_snr")(DiagonalSDE(Endless(), Identity((2,))), 8)
