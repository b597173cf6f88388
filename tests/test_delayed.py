"""Diffusions whose components start late: nothing that is asked of an SDE is asked otherwise."""

import pytest
import torch
from exact_moments import marginal, sample_moments, with_true_prior
from models import SOLVERS
from strategies import SCHEDULES, gaussian, mixture

from estimators import Guidance, MultiScale, ResidualMLP
from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    LogLinear,
    Quadrature,
    RectifiedFlow,
    SubVP,
    bound,
    condition,
    log_prob,
)
from scoresde.planning import OptimisedGrid
from scoresde.planning.independent_gaussian import IndependentGaussian, UnitNoise
from scoresde.sampling.grid import fractions
from scoresde.sdes.fronts import front
from solvers import DDIM, ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")

BLOCKS = {"a": 1, "b": 2}
KINDS = {
    "VP": VP,
    "SubVP": SubVP,
    "VE": lambda: VE(0.01, 20.0),
    "Cosine": Cosine,
    "LogLinear": LogLinear,
    "EDM": EDM,
    "RectifiedFlow": RectifiedFlow,
}
every_schedule = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def delayed(kind="VP", **options):
    """The first block starts in the middle, and is finished while the second diffuses still."""
    options = {"speeds": [2.0, 1.25], "delays": [0.5, 0.1], **options}
    return DiagonalSDE(KINDS[kind](), Identity((3,), BLOCKS), **options)


def test_every_kind_of_schedule_is_asked():
    assert {*KINDS} == {*SCHEDULES}


@every_schedule
def test_before_its_start_a_component_is_what_all_are_at_the_first_time(kind):
    """So that the data whose density is asked for are those of an SDE without delays."""
    sde, plain = delayed(kind), DiagonalSDE(KINDS[kind](), Identity((3,), BLOCKS))
    eps = torch.tensor([sde.eps])
    for t in (sde.eps, 0.1 * sde.T, 0.5 * sde.T):
        alpha, sigma = sde.kernel(torch.tensor([t]))
        assert float(alpha[0]) == pytest.approx(float(plain.kernel(eps).alpha), rel=1e-12)
        assert float(sigma[0]) == pytest.approx(float(plain.kernel(eps).sigma), rel=1e-12)
        f, g = sde.f(torch.tensor(t), torch.ones(3)), sde.g(torch.tensor(t), torch.ones(3))
        assert f[0] == g[0] == 0
    assert sde.kernel(torch.zeros(1)).sigma.eq(0).all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((k, torch.float64) for k in KINDS), ("VP", torch.float32)]
)
def test_densities_of_a_gaussian_are_exact(kind, dtype):  # inv. 17
    model = with_true_prior(gaussian(delayed(kind), 2))
    x = marginal(model, model.sde.eps).sample((5,))
    found = log_prob(model.to(dtype), x.to(dtype), Quadrature(90)).value
    assert found.dtype == dtype
    # where a block starts signal is 1e4 times noise, of which float32 has four digits
    wanted, allowed = marginal(model, model.sde.eps).log_prob(x), 2e-3
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("kind", ["LogLinear", "VE"])
def test_bounds_of_exact_scores_are_tight(kind):  # inv. 26
    model = gaussian(delayed(kind), 2)
    model = gaussian(delayed(kind, mean=model.means[0]), 2)
    x = marginal(model, model.sde.eps).sample((30,))
    noise = torch.Generator().manual_seed(0)
    values = bound(model, x.repeat(300, 1), generator=noise, draws=4).reshape(300, 30)
    error = float(values.std() / values.numel() ** 0.5)
    gap = float(values.mean() + marginal(model, model.sde.eps).log_prob(x).mean())
    assert error < 0.05
    assert abs(gap) < 0.02 + 4 * error


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["exponential-multistep", "heun"])
def test_marginals_do_not_depend_on_the_noise_of_the_way_back(name, eta):  # inv. 15
    model = with_true_prior(gaussian(delayed("LogLinear"), 2))
    mean, covariance = sample_moments(SOLVERS[name](60, eta=eta), model)
    end = marginal(model, model.sde.eps)
    torch.testing.assert_close(mean, end.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(covariance, end.covariance_matrix, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["adaptive", "torchsde", "torchdiffeq"])
def test_adapters_follow_clocks_that_start(name):
    """In float32: what they meet there are times that are rounded."""
    model = with_true_prior(mixture(delayed(), 2))
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    options = {"dtype": torch.float32, "generator": seeds}
    steps = {"adaptive": 20, "torchsde": 200, "torchdiffeq": 100}[name]
    found = SOLVERS[name](steps).sample(model, (4,), **options).double()
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    wanted = ExponentialMultistep(100).sample(model, (4,), generator=seeds, dtype=torch.float32)
    torch.testing.assert_close(found, wanted.double(), rtol=0, atol=0.05)


def test_prepared_samplers_draw_what_others_do():
    model, seed = gaussian(delayed()), torch.Generator().manual_seed
    solver = DDIM(12, eta=1.0)
    prepared = solver.compiled(model, (4,))
    assert torch.equal(prepared(seed(1)), solver.sample(model, (4,), generator=seed(1)))


@every_dtype
def test_conditionals_of_delayed_diffusions_are_exact(dtype):
    """What is observed is clean from the first, whatever its delay."""
    joint = Joint(y=(1,), x=(2,))
    sde = DiagonalSDE(LogLinear(12.0, -12.0), joint, [2.0, 1.25], delays=[0.5, 0.1])
    model, y = gaussian(sde, 2), torch.tensor([0.7])
    posterior = condition(model, clean=True, y=y)
    m, c = model.means[0], model.covariances[0]
    gain = c[1:, :1] / c[0, 0]
    mean, covariance = m[1:] + gain @ (y - m[:1]), c[1:, 1:] - gain @ c[:1, 1:]
    truth = torch.distributions.MultivariateNormal(mean, covariance)
    x = truth.sample((4,))
    found = log_prob(posterior.to(dtype), x.to(dtype), Quadrature(60)).value
    torch.testing.assert_close(found.double(), truth.log_prob(x), rtol=0, atol=5e-3)


def test_guidance_of_delayed_diffusions_is_exact():
    """Of Gaussian data: also of an observation of what is finished already."""
    model = gaussian(delayed("LogLinear"), 2)
    weights, y, s = torch.tensor([[1.0, -0.5, 0.3]]), torch.tensor([0.4]), 0.3
    guided = Guidance(model, lambda x: x @ weights.mT, y, s)
    m, c = model.means[0], model.covariances[0]
    gain = c @ weights.mT / (weights @ c @ weights.mT + s**2)
    mean, covariance = sample_moments(ExponentialMultistep(100), guided)
    torch.testing.assert_close(mean, m + gain @ (y - weights @ m), rtol=0, atol=0.02)
    torch.testing.assert_close(covariance, c - gain @ weights @ c, rtol=0, atol=0.03)


def bands(**options):
    """Coarse first, without overlap: fine bands enter when the coarse one is finished."""
    schedule, basis = LogLinear(12.0, -12.0), Haar((4,), 1)
    clock = front([0, 1], first=schedule.eps)
    return DiagonalSDE(schedule, basis, clock, drop=[1.0, float(1 / clock.speeds)], **options)


def test_bands_enter_when_coarser_ones_are_finished():
    sde = bands()
    assert len(sde.breakpoints()) == 1
    first, second = sde.stages()
    assert (first.dim, second.dim, first.end) == (2, 4, second.start)
    at = sde.at(torch.tensor([[0.9], [0.3]]))
    assert (at.g2 > 0).tolist() == [[True, False], [False, True]]
    model = gaussian(sde, 2)
    mean, covariance = sample_moments(ExponentialMultistep(60), model)
    torch.testing.assert_close(model.sde.basis(mean), model.means[0], rtol=0, atol=0.02)
    u = sde.basis(torch.eye(4)).mT
    torch.testing.assert_close(u @ covariance @ u.mT, model.covariances[0], rtol=0, atol=0.03)
    x = sde.basis.inverse(marginal(model, sde.eps).sample((4,)))
    wanted = marginal(model, sde.eps).log_prob(sde.basis(x))
    torch.testing.assert_close(log_prob(model, x, Quadrature(90)).value, wanted, rtol=0, atol=0.02)


def test_networks_of_stages_are_trained_on_bands_that_start_late():
    sde = bands()
    model = MultiScale(sde, [ResidualMLP((n,), 8, 1) for n in (2, 4)])
    loss = model.loss(torch.randn(6, 4))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert ExponentialMultistep(6).sample(model, (3,)).isfinite().all()


def test_steps_in_which_nothing_moves_are_divided_by_time():
    sde = delayed(speeds=3.0, delays=[2 / 3, 0.0])
    start, end = torch.tensor([0.6]), torch.tensor([0.4])
    (third,) = fractions(sde, start, end, (1 / 3,))
    torch.testing.assert_close(third, start - 0.2 / 3)


def test_grids_are_tuned_between_starts_and_stops():
    sde, variances = delayed(), torch.tensor([1.0, 0.5, 0.1])
    model, errors = IndependentGaussian(sde, variances), []
    tuned = OptimisedGrid(variances, DDIM())(sde, 10)
    for kink in sde.breakpoints():
        assert (tuned - kink).abs().min() < 1e-12
    for grid in (lambda *_: tuned, "arctan_log_snr"):
        spread = DDIM(10, grid=grid).sample(model, generator=UnitNoise())
        errors.append((spread - variances.sqrt()).square().sum())
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"delays": [0.1, 0.2, 0.3, 0.4]}, "delays"),
        ({"delays": [0.1, 1.0]}, "delays"),
        ({"speeds": front([0, 1]), "delays": [0.1, 0.2]}, "delays: expected none beside a Clock"),
        ({"speeds": 1.0, "delays": [0.1] * 4}, "delays"),
    ],
)
def test_delays_that_do_not_fit_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        delayed(**options)
