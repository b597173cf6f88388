"""Components that are frozen, clean or standing still; steps of no length; point masses."""

import pytest
import readings
import torch
from exact_moments import marginal, push, sample_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SOLVERS, ExactDenoising, ScoreOnly
from strategies import (
    every_schedule,
    gaussian,
    per_schedule,
    random_covariance,
    schedules,
    sdes,
    states,
)

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import VE, VP, DiagonalSDE, Identity, Noise, ReverseSDE, ScoreEstimator
from scoresde.objectives.parametrization import PARAMETRIZATIONS
from scoresde.objectives.weighting import WEIGHTINGS
from solvers import DDIM, ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

EXPONENTIAL = ["ddim", "exponential-multistep"]
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver().weak_order is not None]
ALL = [(n, e) for n, s in SOLVERS.items() for e in ((0.0,) if s.weak_order is None else (0.0, 1.0))]
each_run = pytest.mark.parametrize(("name", "eta"), ALL)


class PointMass(ScoreEstimator):
    """Data that are always the same."""

    def __init__(self, sde, where):
        super().__init__(sde)
        self.where = where

    def denoise(self, z, t, condition=None):
        return self.where.expand_as(z)


def frozen(schedule=None):
    """``x`` diffuses, ``y`` stays clean."""
    basis = Identity((3,), {"x": 2, "y": 1})
    return DiagonalSDE(VP(eps=0.01) if schedule is None else schedule, basis, [1.0, 0.0])


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("steps", [1, 2, 7])
@per_schedule(3)
@given(data=st.data())
def test_a_point_mass_is_reached_in_any_number_of_steps(kind, data, name, steps):  # invariant 40
    """Exactly its diffusion down to ``eps``: mean ``alpha x``, deviation ``sigma``."""
    basis = Identity((3,), {"x": 2, "y": 1})
    speeds = [1.0, data.draw(st.floats(0.5, 2.0))]
    sde = DiagonalSDE(data.draw(schedules(kind)), basis, speeds, [1.0, 0.5])
    model = PointMass(sde, torch.tensor([1.0, -2.0, 0.5]))
    alpha, sigma = (v.expand(3) for v in sde.kernel(torch.tensor([sde.T])))
    sde.prior = torch.distributions.MultivariateNormal(alpha * model.where, torch.diag(sigma**2))
    eta = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    mean, covariance = sample_moments(SOLVERS[name](steps, eta=eta), model)
    alpha, sigma = (v.expand(3) for v in sde.kernel(torch.tensor([sde.eps])))
    torch.testing.assert_close(mean, alpha * model.where, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(covariance.diagonal(), sigma**2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", EXPONENTIAL)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_linear_part_is_exact(name, steps):  # invariant 40
    """Diffusing forward there is nothing else: one step is a draw of the kernel."""
    sde = DiagonalSDE(VP(), Identity((3,)), [1.0, 0.5, 2.0], [1.0, 0.5, 2.0])
    model = gaussian(sde, 3)
    ts = torch.linspace(0.1, 0.9, steps + 1)
    mean, covariance = push(SOLVERS[name](), sde, marginal(model, 0.1), ts)
    end = marginal(model, 0.9)
    torch.testing.assert_close(mean, end.mean)
    torch.testing.assert_close(covariance, end.covariance_matrix)


@each_run
def test_a_frozen_component_stays_and_the_others_sample_their_conditional(name, eta):
    """The joint prior holds ``y`` at its data; the samples have the data's joint distribution."""
    model = gaussian(frozen(), 4)
    sde = model.sde
    sde.prior = marginal(model, sde.T)
    found = sample_moments(SOLVERS[name](60, eta=eta), model)
    truth = marginal(model, sde.eps)
    torch.testing.assert_close(found[0], truth.mean, rtol=0.1, atol=0.05)
    error = (found[1] - truth.covariance_matrix).norm() / truth.covariance_matrix.norm()
    assert error < 0.1
    # y itself to the last digit
    torch.testing.assert_close(found[1][2, 2], model.covariances[0][2, 2], rtol=1e-9, atol=0)


@every_schedule
@given(data=st.data())
def test_frozen_components_are_finite_everywhere(kind, data):
    sde = frozen(data.draw(schedules(kind)))
    model = gaussian(sde, data.draw(st.integers(0, 99)))
    told = ScoreOnly(sde, model.score)
    wrapped = ExactDenoising(model)
    z = data.draw(states(sde))
    for t in (sde.eps, 0.5 * sde.T, sde.T):
        time = torch.tensor([t])
        alpha, sigma = sde.kernel(time)
        assert alpha[2] == 1
        assert sigma[2] == 0
        for answer in (model, told, wrapped):
            torch.testing.assert_close(answer.denoise(z, t)[:, 2], z[:, 2])
        torch.testing.assert_close(wrapped.score(z, t)[:, 2], torch.zeros(3))
        moving = (answer.score(z, t)[:, :2] for answer in (wrapped, model))
        torch.testing.assert_close(*moving, rtol=1e-6, atol=1e-6)
        for value in readings.rates(sde, time):
            assert value[2] == 0
        for value in (
            *readings.bridge(sde, torch.tensor([sde.eps]), time),
            readings.level(sde, time),
        ):
            assert torch.isfinite(value).all()
        reverse = ReverseSDE(wrapped, 1.0)
        drift = reverse.f(torch.tensor(-t), z)
        assert torch.isfinite(drift).all()
        assert (drift[:, 2] == 0).all()
        assert (reverse.g(torch.tensor(-t), z)[:, 2] == 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("form", PARAMETRIZATIONS)
def test_losses_with_frozen_components_are_finite_and_can_be_trained_on(form, weighting):
    sde = frozen()
    model = Denoising(
        sde, ResidualMLP((3,), width=8, depth=1), parametrization=form, weighting=weighting
    )
    loss = model.loss(torch.randn(16, 3), generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad(loss, list(model.network.output_layer[1].parameters()))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(s).all() for s in slopes)


@pytest.mark.parametrize("question", ["denoise", "score"])
def test_gradients_through_frozen_components_are_finite(question):
    model = Denoising(frozen(), ResidualMLP((3,), width=8, depth=1))
    z = torch.randn(4, 3, requires_grad=True)
    answer = getattr(model, question)(z, 0.5)
    (slope,) = torch.autograd.grad(answer.square().sum(), z)
    assert torch.isfinite(slope).all()


@each_run
def test_gradients_through_samples_are_finite(name, eta):
    """With a frozen component, and one whose clock stops on the way."""
    sde = DiagonalSDE(VP(0.1, 6.0, eps=0.05), Identity((3,)), [1.0, 2.0, 0.0])
    model = Denoising(sde, ResidualMLP((3,), width=8, depth=1))
    x = SOLVERS[name](12, eta=eta).rsample(model, (3,))
    slopes = torch.autograd.grad(x.square().sum(), list(model.network.output_layer[1].parameters()))
    assert all(torch.isfinite(s).all() and s.abs().max() > 0 for s in slopes)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_no_time_changes_nothing(name, eta):
    """A step so short that the log-SNR does not change."""
    model = gaussian(DiagonalSDE(VP(), Identity((3,))), 2)
    z = torch.randn(2, 3)
    ts = torch.tensor([-0.5, -0.5 + 1e-13, -0.5 + 2e-13])
    end = SOLVERS[name]().integrate(ReverseSDE(model, eta), z, ts, Noise())
    torch.testing.assert_close(end, z, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", [DDIM, ExponentialMultistep])
def test_stepping_to_time_zero_gives_clean_data(solver, eta):
    """``sigma_s = 0``: the last step returns the denoised mean."""
    model = gaussian(DiagonalSDE(VP(), Identity((3,)), [1.0, 2.0, 0.5]), 2)
    reverse, z = ReverseSDE(model, eta), torch.randn(2, 3)
    end = solver().integrate(reverse, z, torch.tensor([-0.3, 0.0]), Noise())
    torch.testing.assert_close(end, model.denoise(z, 0.3))
    end = solver().integrate(reverse, z, torch.tensor([-0.3, -0.2, 0.0]), Noise())
    assert torch.isfinite(end).all()


@settings(max_examples=10)
@given(data=st.data(), eta=st.sampled_from([0.0, 0.7, 1.0]))
def test_a_stopped_component_waits_as_noise(data, eta):
    """While a clock stands at its end, a reverse step leaves the component's distribution alone."""
    sde = DiagonalSDE(data.draw(schedules("VP")), Identity((2,)), [1.0, 4.0])
    z = data.draw(st.just(torch.randn(2, 2)))
    step = readings.reverse_propagator(sde, torch.tensor([0.9]), torch.tensor([0.5]), z, eta)
    assert step.decay[1] == 1
    assert step.gain[1] == 0
    assert step.h[1] == 0
    assert step.noise_std is None or step.noise_std[1] == 0
    assert step.h[0] > 0


@settings(max_examples=10)
@given(data=st.data())
def test_equal_components_take_equal_steps(data):
    """The propagators of any SDE, from the kernel and the half-log-SNR increment."""
    sde = data.draw(sdes())
    z, eta = data.draw(states(sde)), data.draw(st.sampled_from([0.0, 0.5, 1.0, 1.5]))
    ts = torch.tensor([0.8, 0.4]) * sde.T
    step = readings.reverse_propagator(sde, ts[:1], ts[1:], z, eta)
    s_t, (a_s, s_s) = sde.kernel(ts[:1]).sigma, sde.kernel(ts[1:])
    h = (readings.log_snr(sde, ts[1:]) - readings.log_snr(sde, ts[:1])) / 2

    def close(found, wanted):
        n = sde.basis.dim
        torch.testing.assert_close(found.expand(n), wanted.expand(n), rtol=1e-6, atol=1e-9)

    close(step.h, h)
    close(step.damping, (1 + eta**2) * step.h)
    close(step.decay, s_s / s_t * (-(eta**2) * h).exp())
    close(step.gain, a_s * -torch.expm1(-(1 + eta**2) * h))
    if eta:
        close(step.noise_std, s_s * (-torch.expm1(-2 * eta**2 * h)).sqrt())
    else:
        assert step.noise_std is None


@pytest.mark.parametrize("name", STOCHASTIC)
def test_singular_data_are_sampled(name):
    """A covariance without full rank: the noise left at ``eps`` is all there is across it."""
    covariance = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    sde = DiagonalSDE(VE(0.05, 5.0, eps=0.02), Identity((2,)))
    model = Gaussian(sde, torch.zeros(2), covariance)
    sde.prior = marginal(model, sde.T)
    found = sample_moments(SOLVERS[name](120, eta=1.0), model)[1]
    truth = marginal(model, sde.eps).covariance_matrix
    across = torch.tensor([1.0, -1.0]) / 2**0.5
    torch.testing.assert_close(across @ found @ across, across @ truth @ across, rtol=0.25, atol=0)


def test_samples_and_densities_of_spread_data_agree_in_one_dimension_more():
    """Adding an independent component changes nothing for the others."""
    g = torch.Generator().manual_seed(3)
    covariance = random_covariance(2, g)
    small = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.ones(2), covariance)
    padded = torch.block_diag(covariance, torch.tensor([[0.3]]))
    large = Gaussian(DiagonalSDE(VP(), Identity((3,))), torch.ones(3), padded)
    for eta in (0.0, 1.0):
        a, b = (sample_moments(DDIM(10, eta=eta), m) for m in (small, large))
        torch.testing.assert_close(a[0], b[0][:2])
        torch.testing.assert_close(a[1], b[1][:2, :2])
