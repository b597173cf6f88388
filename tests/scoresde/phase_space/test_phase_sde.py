"""Diffusion in phase space: marginals, solvers and training, exact for Gaussian data."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from estimators import Denoising, Gaussian, GaussianMixture, ResidualMLP
from scoresde import (
    CLD,
    EDM,
    HOLD,
    PSLD,
    VP,
    DiagonalSDE,
    Dynamics,
    Identity,
    Joint,
    Noise,
    PhaseSDE,
    ProbabilityFlow,
    Quadrature,
    ReverseSDE,
    ScoreEstimator,
    bound,
    condition,
    log_prob,
)
from scoresde.sampling.grid import GRIDS
from scoresde.testing import Impulses, convergence_order, moments, standard_normal
from solvers import (
    DDIM,
    Adaptive,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialRungeKutta,
    Heun,
    Langevin,
)

KINDS = {"cld": CLD, "psld": PSLD, "hold": HOLD}
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=torch.float64)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request):
    return request.param


def made(kind, schedule=None, **options):
    basis = Identity((2,), {"a": 1, "b": 1})
    options = {"speeds": [1.0, 0.7], "scale": [1.0, 0.8], **options}
    return kind(VP(0.3, 9.0, eps=0.1) if schedule is None else schedule, basis, **options)


def gaussian(sde):
    return Gaussian(sde, MEAN, COVARIANCE)


def marginal(sde, t):
    """Of the state, by hand: ``(a_i a_j C_ij) + L L^T``."""
    at = sde.at(torch.tensor([[t]], dtype=torch.float64), torch.empty(sde.dim).double())
    alpha, sigma = (at.cast(v) for v in at.kernel)
    alpha = alpha[0].expand(sde.dim)
    root = (sigma[0] * torch.eye(sde.dim, dtype=torch.float64)).mT
    data = COVARIANCE.repeat(sde.copies, sde.copies) * alpha[:, None] * alpha
    return MultivariateNormal(alpha * MEAN.repeat(sde.copies), data + root @ root.mT)


def error(sde, solver, eta, steps):
    """Of mean and covariance of what a solver makes of the exact distribution at the last time."""
    start, end, reverse = (
        marginal(sde, sde.T),
        marginal(sde, sde.eps),
        ReverseSDE(gaussian(sde), eta),
    )
    ts = -GRIDS["uniform_time"](sde, steps)

    def run(rows, noise):
        y = noise.draw(start, torch.empty(rows, sde.dim, dtype=torch.float64))
        return solver.integrate(reverse, y, ts, noise)

    mean, covariance = moments(run, sde.dim * (1 + 2 * steps * (eta > 0)))
    return float((covariance - end.covariance_matrix).norm() + (mean - end.mean).norm())


def test_a_state_has_copies_and_estimators_see_one(kind):
    sde, model = made(kind), gaussian(made(kind))
    assert sde.dim == 2 * sde.copies == 2 * len(sde.dynamics.g2)
    assert model.denoise(torch.zeros(3, 2), 0.5).shape == (3, 2)
    x = DDIM(3).sample(model, (4,), dtype=torch.float32)
    assert x.shape == (4, 2)
    assert x.dtype == torch.float32


def test_what_is_seen_of_data_is_the_diagonal_diffusion(kind):
    """Levels, losses, bounds and answers are those of the SDE without velocities, bit for bit."""
    sde, plain = made(kind), made(DiagonalSDE)
    t = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    for found, wanted in zip(sde.kernel(t), plain.kernel(t), strict=True):
        assert torch.equal(found, wanted)
    models = [Denoising(v, ResidualMLP((2,), 8, 1)) for v in (sde, plain)]
    models[1].load_state_dict(
        {k: v for k, v in models[0].state_dict().items() if k in models[1].state_dict()}
    )
    x = standard_normal(5, 2).float()
    for function in (lambda m, g: m.loss(x, generator=g), lambda m, g: bound(m, x, generator=g)):
        a, b = (function(m, torch.Generator().manual_seed(0)) for m in models)
        assert torch.equal(a, b)


def test_the_kernel_is_that_of_the_forward_equation(kind):
    """Two exact steps are one, and a draw of the kernel: mean and covariance."""
    sde, like = made(kind), torch.eye(2 * made(kind).copies, dtype=torch.float64)
    at = sde.at(torch.tensor([[0.15], [0.5], [1.0]], dtype=torch.float64), like)
    step = at[:2].propagator(at[1:])
    for i, (a, b) in enumerate(((0.15, 0.5), (0.5, 1.0))):
        start, end = marginal(sde, a), marginal(sde, b)
        decay, noise = ((v * like).mT for v in (step.decay[i], step.noise_std[i]))
        covariance = decay @ start.covariance_matrix @ decay.mT + noise @ noise.mT
        torch.testing.assert_close(decay @ start.mean, end.mean, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(covariance, end.covariance_matrix, rtol=1e-7, atol=1e-9)


def test_scores_are_those_of_the_joint_distribution(kind):
    """Of positions and velocities: the gradient of their log-density."""
    sde = made(kind)
    y = standard_normal(4, sde.dim).requires_grad_()
    for t in (0.3, 0.8):
        (wanted,) = torch.autograd.grad(marginal(sde, t).log_prob(y).sum(), y)
        score = sde.score(gaussian(sde), y, t)
        torch.testing.assert_close(score, wanted, rtol=1e-6, atol=1e-8)


def test_what_is_appended_is_distributed_as_the_prior(kind):
    """``N(a m, S)``, and with the data's width ``N(a m, a a^T std^2 + S)``: draws and density."""
    for std in (0.0, [0.5, 1.5]):
        sde = made(kind, mean=MEAN, std=std)
        at = sde.at(torch.ones(1, 1, dtype=torch.float64), torch.empty(sde.dim).double())
        alpha, sigma = (at.cast(v)[0] for v in at.kernel)
        root = (sigma * torch.eye(sde.dim, dtype=torch.float64)).mT
        wide = torch.diag(torch.as_tensor(std).double().expand(2).square())
        wide = wide.repeat(sde.copies, sde.copies) * alpha[:, None] * alpha
        known = MultivariateNormal(alpha * MEAN.repeat(sde.copies), root @ root.mT + wide)
        mean, covariance = moments(
            lambda rows, noise, sde=sde: sde.append(
                torch.empty(rows, 0, dtype=torch.float64), sde.stages()[0], noise
            )
        )
        torch.testing.assert_close(mean, known.mean)
        torch.testing.assert_close(covariance, known.covariance_matrix)
        y = standard_normal(3, sde.dim)
        rest, density = sde.marginalise(y, sde.stages()[0], 0)
        torch.testing.assert_close(density, known.log_prob(y))
        assert rest.shape == (3, 0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_are_kept_by_every_eta(kind, eta):
    order = {"order": 3} if eta == 0 else {"order": 2}
    found = error(made(kind), ExponentialMultistep(**order), eta, 80)
    assert found < (1e-2 if eta else 2e-4)


SOLVERS = [
    (DDIM(), 0.0, 1),
    (DDIM(), 1.0, 1),
    (ExponentialMultistep(order=2), 0.0, 2),
    (ExponentialMultistep(order=2), 1.0, 2),
    (ExponentialMultistep(order=3), 0.0, 3),
    (ExponentialMultistep(order=3, corrected=False), 0.0, 3),
    (ExponentialRungeKutta(), 0.0, 3),
    (Heun(), 0.0, 2),
    (EulerMaruyama(), 1.0, 1),
]
ORDERS = [(CLD, *solver) for solver in SOLVERS] + [
    (kind, *solver) for kind in (PSLD, HOLD) for solver in SOLVERS[3:5]
]


@pytest.mark.parametrize(("kind", "solver", "eta", "order"), ORDERS)
def test_solvers_have_their_orders(kind, solver, eta, order):
    counts = (24, 48) if isinstance(solver, ExponentialRungeKutta) else (48, 96)
    errors = [error(made(kind), solver, eta, count) for count in counts]
    assert convergence_order(counts, errors) > order - 0.4, errors


def test_a_point_mass_is_reached_in_one_step(kind):
    """Exponential solvers are exact on the linear part, whatever it mixes."""
    sde = made(kind)
    model = Gaussian(sde, MEAN, torch.zeros(2, 2))
    for eta in (0.0, 1.0):
        end = marginal(sde, sde.eps)
        reverse = ReverseSDE(model, eta)
        at = sde.at(torch.tensor([[sde.T], [sde.eps]]).double(), torch.empty(sde.dim).double())
        mean = at.cast(at.kernel.alpha)[0] * MEAN.repeat(sde.copies)
        ts = torch.tensor([-sde.T, -sde.eps]).double()
        y = DDIM().integrate(reverse, mean[None], ts, Impulses())
        torch.testing.assert_close(y[0], end.mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        ExponentialMultistep(24),
        ExponentialMultistep(30, eta=1.0, final_denoise=True),
        ExponentialMultistep(20, corrector=Langevin()),
        ExponentialRungeKutta(12, churn=0.1),
    ],
    ids=["ode", "sde", "corrected", "churned"],
)
def test_samples_are_distributed_as_data(kind, solver):
    dtype = torch.float64 if kind is PSLD else torch.float32
    sde = kind(VP(), Identity((2,)), speeds=[1.0, 0.8], mean=MEAN)
    x = solver.sample(
        gaussian(sde), (2000,), generator=torch.Generator().manual_seed(0), dtype=dtype
    ).double()
    assert (x.mean(0) - MEAN).abs().max() < 0.1
    assert (x.mT.cov() - COVARIANCE).abs().max() < 0.15


def test_adaptive_steps_go_where_many_steps_go():
    sde = made(CLD)
    reverse, y = ReverseSDE(gaussian(sde), 0.0), marginal(sde, sde.T).sample((3,))
    ends = torch.tensor([-sde.T, -sde.eps], dtype=torch.float64)
    many = -GRIDS["log_snr"](sde, 150)
    found = Adaptive(rtol=1e-5, atol=1e-5).integrate(reverse, y, ends, Noise())
    wanted = ExponentialMultistep().integrate(reverse, y, many, Noise())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_what_was_trained_without_velocities_is_sampled_with_them(kind):
    """And other schedules, that preserve no variance, are none the less met."""
    plain = DiagonalSDE(EDM(0.01, 20.0), Identity((2,)))
    sde = kind(EDM(0.01, 20.0), Identity((2,)))
    mixture = ([0.4, 0.6], [[-2.0, 0.0], [2.0, 1.0]], [0.2 * torch.eye(2)] * 2)
    known, model = GaussianMixture(plain, *mixture), GaussianMixture(sde, *mixture)
    x = ExponentialMultistep(30).sample(model, (4000,), generator=torch.Generator().manual_seed(0))
    right = float((x[:, 0] > 0).float().mean())
    assert abs(right - 0.6) < 0.04
    z = torch.ones(1, 2)
    assert torch.equal(model.denoise(z, 0.5), known.denoise(z, 0.5))


def test_training_reaches_the_exact_score():
    """Denoising score matching of what is seen: the score of the whole state is learned."""
    torch.manual_seed(0)
    sde = made(CLD, scale=1.0, speeds=1.0)
    model = Denoising(sde, ResidualMLP((2,), 32, 1), data_mean=MEAN, data_std=[0.7, 1.1])
    x = MultivariateNormal(MEAN, COVARIANCE).sample((4096,)).float()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(100):
        optimiser.zero_grad()
        model.loss(x[(64 * step) % 4096 :][:256]).backward()
        optimiser.step()
    y = marginal(sde, 0.5).sample((200,)).float()
    score, known = (sde.score(m, y, 0.5).detach() for m in (model, gaussian(sde)))
    lost = (score - known).square().mean() / known.square().mean()
    untrained = Denoising(sde, ResidualMLP((2,), 32, 1), data_mean=MEAN, data_std=[0.7, 1.1])
    first = (sde.score(untrained, y, 0.5).detach() - known).square().mean()
    assert lost < 0.01
    assert lost * known.square().mean() < 0.5 * first


def test_a_delayed_component_stands_still(kind):
    """Clocks and delays are a block's own, of positions and velocities alike."""
    sde = made(kind, speeds=[1.0, 2.0], delays=[0.0, 0.5])
    y = torch.ones(1, sde.dim, dtype=torch.float64)
    early, late = (
        sde.f(torch.tensor(t).double(), y).unflatten(-1, (sde.copies, 2)) for t in (0.3, 0.7)
    )
    assert (early[..., 1] == 0).all()
    assert early[..., 0].abs().sum() > 0
    assert (late.abs().sum(-2) > 0).all()
    assert error(sde, ExponentialMultistep(order=2), 0.0, 120) < 0.02


def test_conditionals_are_those_of_what_is_seen(kind):
    """What is held is no matter of velocities: conditionals are as without them."""
    found, wanted = (
        ExponentialMultistep(8).sample(
            condition(GaussianMixture(sde, [1.0], [MEAN], [COVARIANCE]), clean=True, y=MEAN[:1]),
            (5,),
            generator=torch.Generator().manual_seed(0),
        )
        for sde in (v(VP(), Joint(y=(1,), x=(1,))) for v in (kind, DiagonalSDE))
    )
    assert torch.equal(found, wanted)


def test_drift_and_diffusion_are_those_of_the_marginals(kind):
    """``m' = A m`` and ``C' = A C + C A^T + g^2``, with clocks and units of every component."""
    sde, h = made(kind), 1e-5
    for t in (0.35, 0.6):
        before, now, after = (marginal(sde, t + shift) for shift in (-h, 0.0, h))
        time, one = torch.tensor(t).double(), torch.eye(sde.dim).double()
        drift, noise = sde.f(time, one).mT, sde.g(time, one[0]).square().diag()
        mean = (after.mean - before.mean) / (2 * h)
        torch.testing.assert_close(mean, drift @ now.mean, rtol=1e-5, atol=1e-6)
        covariance = (after.covariance_matrix - before.covariance_matrix) / (2 * h)
        flow = drift @ now.covariance_matrix
        torch.testing.assert_close(covariance, flow + flow.mT + noise, rtol=1e-5, atol=1e-6)


class Told(ScoreEstimator):
    """Knows what it is told."""

    def denoise(self, z, t, condition=None):
        return condition.expand_as(z)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_conditions_reach_the_estimator(kind, eta):
    point = torch.tensor([[3.0, -1.0], [0.5, 0.0]]).double()
    model = Told(made(kind, EDM(), scale=1.0, speeds=1.0))
    seed = torch.Generator().manual_seed(0)
    found = DDIM(20, eta=eta).sample(
        model, (2,), condition=point, generator=seed, dtype=point.dtype
    )
    torch.testing.assert_close(found, point, rtol=0, atol=0.05)


def test_the_flow_carries_the_joint_density(kind):
    """``log p(x, v) - log q(v | x)`` to the digits of the solver, of pairs by both methods."""
    dtype = torch.float64 if kind is CLD else torch.float32
    sde = made(kind, VP(0.1, 60.0, eps=0.05))
    model, x = gaussian(sde), standard_normal(3, 2).to(dtype)
    flow = sde.likelihood_flow(ProbabilityFlow(model))
    drawn: list = []

    class Kept(Noise):
        def __call__(self, like):
            drawn.append(super().__call__(like))
            return drawn[-1]

    for method in (Quadrature(60), *([ExponentialMultistep(160)] if kind is CLD else [])):
        drawn.clear()
        value = log_prob(model, x, method, generator=Kept(torch.Generator().manual_seed(0)))
        xi = drawn[0].double()
        at = sde.at(torch.tensor([[sde.eps]]).double(), torch.empty(sde.dim).double())
        eye = torch.eye(sde.dim, dtype=torch.float64)
        alpha, sigma = (at.cast(v)[0] for v in at.kernel)
        mean, root = alpha.expand(sde.dim), (sigma * eye).mT
        # given x, any x_0 as likely as any other
        share = mean[2:] / mean[:2].repeat(sde.copies - 1)
        rest = root[2:] - share[:, None] * root[:2].repeat(sde.copies - 1, 1)
        beside = MultivariateNormal(torch.zeros(sde.dim - 2).double(), rest @ rest.mT)
        v = share * x.double().repeat(1, sde.copies - 1)
        v = v + xi @ _ordered_root(beside.covariance_matrix, sde.copies - 1).mT
        q = beside.log_prob(v - share * x.double().repeat(1, sde.copies - 1))
        wanted = marginal(sde, sde.eps).log_prob(torch.cat([x.double(), v], -1)) - q
        torch.testing.assert_close(value.value.double(), wanted, rtol=0, atol=3e-3)
        assert "bound" in value.estimate
    assert flow.stochastic is False


def test_the_flow_drifts_as_its_steps_go(kind):
    """Slope and response are the derivatives of decay and gain, whatever clocks and units."""
    sde = made(kind, VP(0.1, 60.0, eps=0.05))
    flow = sde.likelihood_flow(ProbabilityFlow(gaussian(sde)))
    t, h = torch.tensor([0.2, 0.5, 0.9]).double().unsqueeze(-1), 1e-5
    like = torch.empty(sde.dim).double()
    at, before, after = (flow.at(moment, like) for moment in (t, t - h, t + h))
    step = before.propagator(after)
    for rate, change in ((at.slope, step.decay - 1), (at.response, step.gain)):
        rate, change = at.blocks.broadcastable(rate, change / (2 * h))
        torch.testing.assert_close(change, rate.expand_as(change), rtol=1e-3, atol=1e-6)


def test_polynomials_over_a_step_of_the_flow_are_those_over_its_halves(kind):
    """All four moments, of every component."""
    sde = made(kind, VP(0.1, 60.0, eps=0.05))
    flow = sde.likelihood_flow(ProbabilityFlow(gaussian(sde)))
    like = torch.empty(sde.dim).double()
    at = [flow.at(torch.tensor([[t]]).double(), like) for t in (0.2, 0.45, 0.6)]
    first, last, whole = (at[i].propagator(at[j]) for i, j in ((0, 1), (1, 2), (0, 2)))

    def moments_of(step):
        known = (step.gain, *(step.gain * v for v in (step.first, step.second, step.third)))
        return [at[0].blocks.expand(v) for v in known]

    early, late, wanted = map(moments_of, (first, last, whole))
    decay, share = (at[0].blocks.expand(v) for v in (last.decay, first.h / whole.h))
    for power, moment in enumerate(wanted):
        parts = [
            math.comb(power, k) * share ** (power - k) * (1 - share) ** k * late[k]
            for k in range(power + 1)
        ]
        found = decay * share**power * early[power] + sum(parts)
        torch.testing.assert_close(found, moment, rtol=1e-6, atol=1e-7)


def _ordered_root(covariance, copies):
    """Its Cholesky factor, component by component."""
    n = len(covariance) // copies
    root = torch.zeros_like(covariance)
    for i in range(n):
        rows = torch.arange(copies) * n + i
        root[rows[:, None], rows] = torch.linalg.cholesky(covariance[rows[:, None], rows])
    return root


def test_densities_are_bounds_and_tighten(kind):
    """One draw is below on average; many, weighted by importance, are the density of positions."""
    sde = made(kind, VP(0.1, 60.0, eps=0.05))
    x = torch.tensor([[0.3, 0.2], [2.0, -1.0]], dtype=torch.float64)
    at_end = marginal(sde, sde.eps)
    known = MultivariateNormal(at_end.mean[:2], at_end.covariance_matrix[:2, :2]).log_prob(x)
    many = x.expand(600, -1, -1)
    found = log_prob(
        gaussian(sde), many, ExponentialMultistep(60), generator=torch.Generator().manual_seed(0)
    ).value
    error = found.std(0) / 600**0.5
    assert (found.mean(0) < known + 4 * error).all()
    together = found.logsumexp(0) - math.log(600)
    torch.testing.assert_close(together, known, rtol=0, atol=0.2)


def test_states_of_another_width_are_refused():
    sde = CLD(VP(), Identity((3,)))
    with pytest.raises(ValueError, match=r"^z: expected states \(\*batch, 6\)"):
        sde.f(torch.tensor(0.5), torch.zeros(1, 5))
    with pytest.raises(TypeError, match=r"^dynamics: expected"):
        PhaseSDE(VP(), Identity((3,)), "cld")


def test_kernels_of_nodes_are_those_of_their_steps(kind, monkeypatch):
    """They are found for all times at once, however many nodes a solver has."""
    model, calls, kernel = gaussian(made(kind)), [], Dynamics.kernel
    monkeypatch.setattr(Dynamics, "kernel", lambda *s: calls.append(s) or kernel(*s))
    counts = []
    for solver in (DDIM(4), Heun(9)):
        before = len(calls)
        solver.sample(model, (3,))
        counts.append(len(calls) - before)
    assert counts[0] == counts[1] > 0
