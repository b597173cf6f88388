"""Every SDE, every kind of estimator and every solver together: means and covariances."""

import pytest
import torch
from exact_moments import events, extrapolate, marginal, sample_moments, with_true_prior
from models import ADAPTIVE, SOLVERS, ExactDenoising, OrnsteinUhlenbeck, ScoreOnly
from strategies import gaussian, mixture, rotation
from torch.distributions import MultivariateNormal

from estimators import GaussianMixture
from scoresde import (
    EDM,
    PCA,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Haar,
    Identity,
    LogLinear,
    RectifiedFlow,
    SubVP,
)

pytestmark = pytest.mark.usefixtures("float64")

EPS = 0.01
BUILD = {
    "VP": lambda: VP(eps=EPS),
    "SubVP": lambda: SubVP(eps=EPS),
    "VE": lambda: VE(0.1, 3.0, eps=EPS),
    "Cosine": lambda: Cosine(-8.0, eps=EPS),
    "LogLinear": lambda: LogLinear(7.0, -7.0, eps=EPS),
    "EDM": lambda: EDM(0.05, 5.0),
    "RectifiedFlow": lambda: RectifiedFlow(0.99, eps=EPS),
}
SHAPES = {
    "uniform": lambda schedule: DiagonalSDE(schedule, Identity((2,))),
    "non-uniform": lambda schedule: DiagonalSDE(schedule, Haar((2,), 1), [1.0, 1.7], [1.0, 0.6]),
    "slow": lambda schedule: DiagonalSDE(schedule, PCA(rotation(2, 1)), [1.0, 0.6]),
}


class Stranger(OrnsteinUhlenbeck):
    """A linear SDE known by its drift and diffusion only."""

    def __init__(self, sde):
        super().__init__(basis=sde.basis, T=sde.T, eps=sde.eps)
        self.inner = sde

    def f(self, t, y):
        return self.inner.f(t, y)

    def g(self, t, y):
        return self.inner.g(t, y)

    def breakpoints(self):
        return self.inner.breakpoints()


def stranger(exact):
    sde = Stranger(exact.sde)
    sde.prior = exact.sde.prior
    return ScoreOnly(sde, exact.score)


def as_mixture(exact):
    """The same Gaussian, as two components that are equal."""
    twin = GaussianMixture.__new__(GaussianMixture)
    twin.__dict__ = {**exact.__dict__}
    twin._buffers = {
        "log_weights": torch.tensor([0.3, 0.7]).log(),
        "means": exact.means.repeat(2, 1),
        "covariances": exact.covariances.repeat(2, 1, 1),
    }
    return twin


ESTIMATORS = {
    "gaussian": lambda exact: exact,
    "gaussian-mixture": as_mixture,
    "denoising": lambda exact: ExactDenoising(exact, data_std=0.7),
    "score only": lambda exact: ScoreOnly(exact.sde, exact.score),
    "score only, no kernel": stranger,
}
WITH_KERNEL = [name for name in ESTIMATORS if name != "score only, no kernel"]
# steps for the ODE and for the SDE: as many as explicit methods need to be stable, or fewer
ENOUGH = (48, 48)
STEPS = {
    "adaptive": (24, None),
    "ddim": (24, 40),
    "exponential-multistep": (12, 20),
    "exponential-runge-kutta": (8, None),
    "heun": (16, 24),
    "sra": (16, 32),
    "torchdiffeq": (1, None),
}
PAIRS = [
    (name, eta)
    for name, solver in SOLVERS.items()
    for eta in ((0.0,) if solver.weak_order is None else (0.0, 1.0))
]


def agree(found, truth, tolerance):
    """Means in units of the standard deviation, covariances in relative norm."""
    (mean, covariance), (true_mean, true_covariance) = found, truth
    unit = true_covariance.diagonal().sqrt()
    assert ((mean - true_mean) / unit).abs().max() < tolerance
    assert (covariance - true_covariance).norm() < tolerance * true_covariance.norm()


every_solver = pytest.mark.parametrize("solver", PAIRS, ids=str)
every_schedule = pytest.mark.parametrize("schedule", BUILD)


@pytest.mark.covering(1)
@every_schedule
@pytest.mark.parametrize(
    "kind", [("gaussian", "uniform"), *((e, "non-uniform") for e in WITH_KERNEL)], ids="-".join
)
@every_solver
def test_samples_have_the_datas_moments(solver, kind, schedule):  # invariants 14, 15
    """Exact moments of the samples, extrapolated in the steps at the order declared."""
    samples_have_the_datas_moments(solver, kind, schedule)


@pytest.mark.covering(1)
@every_schedule
@every_solver
def test_so_they_have_where_drift_and_diffusion_are_all_that_is_known(solver, schedule):
    """As every solver integrates them, and a score: no step is exact then."""
    samples_have_the_datas_moments(solver, ("score only, no kernel", "non-uniform"), schedule)


def samples_have_the_datas_moments(solver, kind, schedule):
    (name, eta), (estimator, shape) = solver, kind
    exact = with_true_prior(gaussian(SHAPES[shape](BUILD[schedule]()), 11))
    model = ESTIMATORS[estimator](exact)
    steps, order = STEPS.get(name, ENOUGH)[eta > 0], declared(name, eta)
    if estimator == "score only, no kernel":
        # exponential solvers are explicit then, and take the noise of a step at its start
        order = min(order, 2) if eta == 0 or name == "heun" else 1
        steps = max(96 if name == "exponential-multistep" else 48 if order == 1 else 32, steps)
    grid = SOLVERS[name]().grid  # of an SDE that says how noisy its states are

    def run(n):
        return sample_moments(
            SOLVERS[name](n, eta=eta, grid=lambda sde, k: grid(exact.sde, k)), model
        )

    # how many steps adaptive solvers take does not depend on how many they are given
    found = run(steps) if name in ADAPTIVE else extrapolate(run, steps, order)
    agree(found, events(exact, marginal(exact, exact.sde.eps)), 0.03)


def declared(name, eta):
    solver = SOLVERS[name]()
    return solver.weak_order if eta else solver.order


@pytest.mark.covering(1)
@pytest.mark.parametrize("shape", SHAPES)
@every_solver
def test_samples_of_a_mixture_have_its_moments(solver, shape):  # invariants 14, 15
    name, eta = solver
    model = mixture(SHAPES[shape](VP(eps=EPS)), 4, 2)
    sde = model.sde
    sde.prior = model.marginal(torch.tensor([sde.T]))
    count = 2000
    solver = SOLVERS[name](60, eta=eta)
    x = solver.sample(model, (count,), generator=torch.Generator().manual_seed(0))
    distribution = model.marginal(torch.tensor([sde.eps]))
    truth = events(model, MultivariateNormal(distribution.mean, _covariance(distribution)))
    # five standard errors and the error of a first-order solver
    agree((x.mean(0), x.mT.cov()), truth, 5 * (2 / count) ** 0.5 + 0.08)


def _covariance(distribution):
    weights, parts = distribution.mixture_distribution.probs, distribution.component_distribution
    gap = parts.mean - distribution.mean
    within = (weights[:, None, None] * parts.covariance_matrix).sum(0)
    return within + torch.einsum("k,ki,kj->ij", weights, gap, gap)


@pytest.mark.covering(1)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_marginals_do_not_depend_on_the_amount_of_noise(eta, shape):  # invariant 15
    """At every time on the way, by a second-order solver."""
    exact = with_true_prior(gaussian(SHAPES[shape](VP(eps=EPS)), 5))
    sde = exact.sde
    times = SOLVERS["heun"](90).times(sde)
    for end in (0.6, 0.2, EPS):
        grid = torch.cat([times[times > end], torch.tensor([end])])
        solver = SOLVERS["heun"](eta=eta, grid=lambda sde, steps, grid=grid: grid)
        found = sample_moments(solver, exact)
        agree(found, events(exact, marginal(exact, end)), 0.03)
