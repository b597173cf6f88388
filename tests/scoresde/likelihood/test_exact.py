import math
import warnings

import pytest
import torch
from exact_moments import marginal, with_true_prior
from hypothesis import given, settings
from hypothesis import strategies as st
from models import OrnsteinUhlenbeck, ScoreOnly
from strategies import gaussian, mixture, per_schedule, random_covariance, rotation, sdes
from torch.distributions import Independent, Normal

from estimators import Denoising, Gaussian, ResidualMLP
from scoresde import (
    CLD,
    EDM,
    PCA,
    VE,
    VP,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Hutchinson,
    Identity,
    Learned,
    LogLinear,
    Noise,
    Quadrature,
    RectifiedFlow,
    log_prob,
)
from scoresde.internals.derivatives import vjp
from scoresde.likelihood import DensityFlow, HutchPlusPlus
from scoresde.reverse import ProbabilityFlow, ReverseSDE
from solvers import DDIM, Adaptive, ExponentialMultistep, Heun, TorchDiffEq

pytestmark = pytest.mark.usefixtures("float64")

PRECISE = TorchDiffEq(rtol=1e-6, atol=1e-6)
SOLVERS = {
    "Quadrature": Quadrature(60),
    "Adaptive": Adaptive(rtol=1e-4, atol=1e-4),
    "ExponentialMultistep": ExponentialMultistep(steps=100),
    "Heun": Heun(steps=160),
    "TorchDiffEq": TorchDiffEq(rtol=1e-5, atol=1e-5),
}
UNIFORM_OR_NOT = {
    "uniform": lambda: DiagonalSDE(VP(), Identity((3,))),
    "non-uniform": lambda: DiagonalSDE(
        VP(), Identity((3,), {"a": 1, "b": 2}), [1.0, 1.7], [1.0, 0.5]
    ),
    "slow": lambda: DiagonalSDE(VE(0.01, 10.0), Haar((4,), 1), [1.0, 0.6]),
    "log-linear": lambda: DiagonalSDE(LogLinear(), Identity((2,)), [1.0, 2.0]),
}
either = pytest.mark.parametrize("case", UNIFORM_OR_NOT)


def marginals(model, events):
    """Closed-form log-densities at ``eps``."""
    t = torch.tensor([model.sde.eps])
    return model.marginal(t).log_prob(model.sde.basis(events))


def data(model, count=4, seed=0):
    torch.manual_seed(seed)
    return model.sde.basis.inverse(model.marginal(torch.tensor([model.sde.eps])).sample((count,)))


@pytest.mark.covering(1)
@either
@pytest.mark.parametrize("solver", SOLVERS)
def test_gaussian_likelihood_is_exact(solver, case):  # invariant 17
    model = with_true_prior(gaussian(UNIFORM_OR_NOT[case](), 5))
    x = data(model)
    found = log_prob(model, x, SOLVERS[solver], errors=False)
    truth = marginal(model, model.sde.eps).log_prob(model.sde.basis(x))
    assert ((found.value - truth).abs() / model.sde.basis.dim).max() < 1e-3
    assert torch.equal(found.standard_error, torch.zeros(len(x)))


@pytest.mark.covering(1)
@pytest.mark.parametrize("solver", SOLVERS)
@either
def test_mixture_likelihood_is_exact(solver, case):  # invariant 18
    model = mixture(UNIFORM_OR_NOT[case](), 5)
    model.sde.prior = model.marginal(torch.tensor([model.sde.T]))
    x = data(model)
    found = log_prob(model, x, SOLVERS[solver], errors=False).value
    assert ((found - marginals(model, x)).abs() / model.sde.basis.dim).max() < 1e-3


@per_schedule(1)
@given(rand=st.data())
def test_likelihood_is_exact_under_every_schedule(kind, rand):  # invariants 17, 18
    model = mixture(rand.draw(sdes(kind)), rand.draw(st.integers(0, 99)), 2)
    model.sde.prior = model.marginal(torch.tensor([model.sde.T]))
    x = data(model, 2)
    found = log_prob(model, x, TorchDiffEq(rtol=1e-6, atol=1e-6), errors=False).value
    assert ((found - marginals(model, x)).abs() / model.sde.basis.dim).max() < 1e-3


def test_the_density_integrates_to_one():  # invariant 19
    model = mixture(DiagonalSDE(VP(), Identity((2,)), [1.0, 1.5]), 4)
    axis = torch.linspace(-8, 8, 65)
    x = torch.cartesian_prod(axis, axis)
    density = log_prob(model, x, ExponentialMultistep(steps=100), errors=False).value.exp()
    assert float(density.sum()) * 0.25**2 == pytest.approx(1, abs=5e-3)


@either
def test_there_and_back_is_the_identity(case):  # invariant 16
    model = mixture(UNIFORM_OR_NOT[case](), 6)
    sde = model.sde
    z = sde.basis(data(model, 8))
    ts = torch.tensor([sde.eps, sde.T])
    top = PRECISE.integrate(ProbabilityFlow(model), z, ts, Noise())
    assert (top - z).abs().max() > 0.1
    back = PRECISE.integrate(ReverseSDE(model, 0.0), top, -ts.flip(0), Noise())
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 99))
@settings(max_examples=3)
def test_a_basis_leaves_the_likelihood_and_turns_the_score(seed):  # invariant 22
    u = rotation(3, seed)
    model = gaussian(DiagonalSDE(VP(), Identity((3,))), seed)
    turned = Gaussian(DiagonalSDE(VP(), PCA(u)), model.means[0], model.covariances[0])
    x, t = torch.randn(4, 3), torch.tensor(0.3)
    torch.testing.assert_close(turned.score(x @ u.mT, t) @ u, model.score(x, t))
    solver = ExponentialMultistep(steps=20)
    a, b = (log_prob(m, x, solver, errors=False).value for m in (model, turned))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def diagonal(sde):
    """A Gaussian whose components are independent in the SDE's basis."""
    covariance = torch.diag(torch.tensor([0.3, 1.0, 2.0])[: sde.basis.dim])
    return Gaussian(sde, torch.zeros(sde.basis.event_shape), covariance)


def test_random_probes_are_exact_for_diagonal_jacobians():  # invariant 20
    model = diagonal(UNIFORM_OR_NOT["non-uniform"]())
    x, solver = torch.randn(4, 3), ExponentialMultistep(steps=20)
    exact = log_prob(model, x, solver).value
    random = log_prob(model, x, solver, trace=Hutchinson(2))
    torch.testing.assert_close(random.value, exact, rtol=1e-10, atol=1e-10)
    assert random.standard_error.max() < 1e-10


def test_random_probes_are_unbiased_and_know_their_error():  # invariant 20
    model = gaussian(UNIFORM_OR_NOT["non-uniform"](), 3)
    x, solver = torch.randn(3, 3), ExponentialMultistep(steps=10)
    exact = log_prob(model, x, solver, errors=False).value
    trace = Hutchinson(1000)
    random = log_prob(model, x, solver, trace=trace, generator=torch.Generator().manual_seed(1))
    error = random.standard_error
    assert (error > 1e-4).all()
    assert ((random.value - exact).abs() < 5 * error).all()
    # the truth is one of 2^3 sign vectors: the error by enumeration
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    values = torch.stack([_with_probe(model, x, solver, v) for v in signs])
    torch.testing.assert_close(values.mean(0), exact, rtol=1e-9, atol=1e-9)
    expected = values.std(0, correction=0) / 1000**0.5
    torch.testing.assert_close(error, expected, rtol=0.15, atol=0)


def _with_probe(model, x, solver, probe):
    class Fixed(Hutchinson):
        def draw(self, z, noise):
            return probe.expand(1, *z.shape)

    return log_prob(model, x, solver, trace=Fixed(1), errors=False).value


def test_deflated_probes_are_unbiased():  # invariant 20
    """By enumeration of all signs, entry by entry, of a matrix that is not symmetric."""
    matrix, trace = torch.randn(3, 3), HutchPlusPlus(1, 1)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 6).reshape(64, 2, 3)
    found = torch.stack(
        [trace(lambda v: v @ matrix, torch.zeros(3), pair) for pair in signs]
    ).squeeze(1)
    torch.testing.assert_close(found.mean(0), matrix.diagonal())


def test_deflated_probes_are_exact_for_multiples_of_the_identity():
    z, trace = torch.zeros(2, 5), HutchPlusPlus(2, 2)
    found = trace(lambda v: 0.7 * v, z, trace.draw(z, Noise()))
    torch.testing.assert_close(found, torch.full((2, 2, 5), 0.7))


def test_deflated_probes_are_exact_if_they_span_everything():
    jacobian, z = torch.randn(4, 4), torch.zeros(2, 4)
    trace = HutchPlusPlus(probes=2, rank=4)
    found = trace(lambda v: v @ jacobian, z, trace.draw(z, Noise()))
    torch.testing.assert_close(found, jacobian.diagonal().expand(2, 2, 4), rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="rank"):
        HutchPlusPlus(rank=5).draw(z, Noise())


def test_deflation_pays_where_few_directions_matter():
    u = rotation(40, 3)
    matrix = u[:, :3] @ torch.diag(torch.tensor([5.0, 4.0, 3.0])) @ u[:, :3].mT + torch.eye(40)
    z = torch.zeros(2000, 40)

    def spread(trace):
        found = trace(lambda v: v @ matrix, z, trace.draw(z, Noise())).sum(-1)
        assert float(found.mean()) == pytest.approx(float(matrix.trace()), abs=0.2)
        return float(found.mean(-1).std())

    # of as many products
    assert spread(HutchPlusPlus(4, 4)) < 0.7 * spread(Hutchinson(12))


def test_deflated_densities_know_their_error():
    model = gaussian(UNIFORM_OR_NOT["non-uniform"](), 3)
    x = torch.randn(200, 3)
    exact = log_prob(model, x, Quadrature(12)).value
    found = log_prob(model, x, Quadrature(12), trace=HutchPlusPlus(8, 1))
    score = (found.value - exact) / found.standard_error
    assert 0.7 < float(score.std()) < 1.5
    assert abs(float(score.mean())) < 0.4


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_the_exact_trace_is_the_jacobians_diagonal(chunk):
    matrix, z = torch.randn(3, 3), torch.randn(4, 3)
    trace = ExactTrace(chunk)
    found = trace(lambda v: v @ matrix, z, trace.draw(z, Noise()))
    torch.testing.assert_close(found, matrix.diagonal().expand(4, 1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(2), HutchPlusPlus(2, 1)], ids=repr)
def test_the_trace_of_an_event_does_not_depend_on_the_others(trace, dtype):
    matrix, z = torch.randn(3, 3, dtype=dtype), torch.randn(4, 3, dtype=dtype)
    probes = trace.draw(z, Noise())

    def found(rows):
        _, pull_back = vjp(lambda z: torch.tanh(z @ matrix) * z, z[rows])
        return trace(pull_back, z[rows], trace.select(probes, rows))

    together = found(torch.arange(4))
    assert together.dtype == dtype
    for i in range(4):
        torch.testing.assert_close(found(torch.tensor([i])), together[i : i + 1])


@pytest.mark.parametrize("trace", [Hutchinson(3), HutchPlusPlus(3, 1)])
def test_the_standard_error_is_that_of_a_mean(trace):
    """Of every event, from few estimates: their variance is the unbiased one."""
    found = trace.standard_error(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([(7 / 3) ** 0.5, 0.0]))


def test_one_probe_has_no_standard_error():
    model = diagonal(UNIFORM_OR_NOT["uniform"]())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="std")
        found = log_prob(model, torch.randn(2, 3), DDIM(3), trace=Hutchinson(1))
    assert found.standard_error.isnan().all()


def test_the_gradient_of_the_density_is_the_score():
    model = gaussian(UNIFORM_OR_NOT["non-uniform"](), 3)
    with_true_prior(model)
    x = data(model).requires_grad_()
    density = log_prob(model, x, ExponentialMultistep(steps=150), errors=False).value
    (slope,) = torch.autograd.grad(density.sum(), x)
    score = model.score(x.detach(), torch.tensor(model.sde.eps))
    torch.testing.assert_close(slope, score, rtol=5e-3, atol=5e-3)


def test_a_users_sde_has_likelihoods_too():
    """An Ornstein-Uhlenbeck process that is known by its drift, diffusion and score only."""
    mean, variance = torch.tensor([1.0, -0.5]), torch.tensor([0.3, 2.0])

    def distribution(t):
        decay = math.exp(-t)
        return Normal(mean * decay, (1 + (variance - 1) * decay**2).sqrt())

    sde = OrnsteinUhlenbeck((2,), prior=Independent(distribution(1.0), 1), eps=0.0)
    model = ScoreOnly(
        sde, lambda z, t: (distribution(float(t)).mean - z) / distribution(float(t)).variance
    )
    x = torch.randn(5, 2)
    for solver in (
        Quadrature(40),
        Heun(100),
        ExponentialMultistep(100),
        TorchDiffEq(method="rk4", steps=25),
    ):
        found = log_prob(model, x, solver, errors=False).value
        torch.testing.assert_close(
            found, distribution(0.0).log_prob(x).sum(-1), rtol=1e-3, atol=1e-3
        )


def test_evaluations_are_counted():
    model = diagonal(UNIFORM_OR_NOT["uniform"]())
    x = torch.randn(2, 3)
    assert log_prob(model, x, DDIM(7), errors=False).evaluations == 7
    assert log_prob(model, x, DDIM(7)).evaluations == 7 + 5
    assert log_prob(model, x, Quadrature(7, tolerance=None)).evaluations == 8
    assert log_prob(model, x, Quadrature(7, tolerance=0)).evaluations == 8 + 2 * 4
    assert log_prob(model, x).evaluations == 31
    assert log_prob(model, x, Heun(7), errors=False).evaluations == 14


def test_the_same_seed_gives_the_same_estimate():
    model = gaussian(UNIFORM_OR_NOT["uniform"](), 3)
    x = torch.randn(2, 3)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return log_prob(model, x, DDIM(3), trace=Hutchinson(2), generator=generator).value

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_events_must_be_finite(bad):
    model = diagonal(UNIFORM_OR_NOT["uniform"]())
    with pytest.raises(ValueError, match="x: expected"):
        log_prob(model, torch.tensor([[0.0, bad, 0.0]]), DDIM(3))


@pytest.mark.parametrize("method", [Quadrature(3), DDIM(3)])
def test_who_finds_no_density_is_named(method):
    model = ScoreOnly(DiagonalSDE(VP(), Identity((2,))), lambda z, t: z * torch.nan)
    wanted = f"log_prob: expected finite numbers from {type(method).__name__}"
    with pytest.raises(ValueError, match=wanted):
        log_prob(model, torch.zeros(1, 2), method)
    found = log_prob(model, torch.zeros(1, 2), method, checked=False)
    assert found.value.isnan().all()
    assert found.estimate == f"probability flow, {ExactTrace()!r}, {method!r}"


def test_the_flow_carries_the_divergence_of_its_velocity():
    model = mixture(UNIFORM_OR_NOT["non-uniform"](), 3)
    flow = ProbabilityFlow(model)
    z, t = torch.randn(2, 3), torch.tensor(0.4)
    density = DensityFlow(flow, ExactTrace(), ExactTrace().draw(z, Noise()))
    rate = density.f(t, density.start(z))
    for i in range(2):
        jacobian = torch.func.jacrev(lambda y: flow.f(t, y.unsqueeze(0))[0])(z[i])
        torch.testing.assert_close(rate[i, 3:], jacobian.diagonal())
    torch.testing.assert_close(rate[:, :3], flow.f(t, z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow(0.9), CLD], ids=["EDM", "RF", "CLD"])
def test_forcings_of_integrals_go_on_where_a_clock_stops(schedule, dtype):
    """Where its component stands still as up to there: who ends a step may look at the next."""
    clock = {"basis": Identity((2,), {"a": 1, "b": 1}), "speeds": [1.0, 2.0]}
    sde = CLD(VE(), **clock) if schedule is CLD else DiagonalSDE(schedule, **clock)
    flow = sde.likelihood_flow(ProbabilityFlow(gaussian(sde, 0).to(dtype)))
    probes = ExactTrace().draw(torch.zeros(1, flow.dim, dtype=dtype), Noise())
    density = DensityFlow(flow, ExactTrace(), probes)
    y = density.start(torch.linspace(0.5, 1, flow.dim, dtype=dtype).unsqueeze(0))
    at = density.at(sde.T / 2 * torch.tensor([[1 - 1e-9], [1 + 1e-9]]), y)
    before, after = (field.forcing(y) for field in at.fields())
    torch.testing.assert_close(after, before)
    assert after[..., flow.dim :].abs().min() > 0.01


@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(3)])
@pytest.mark.parametrize("method", [Quadrature(4), DDIM(4)])
def test_a_batch_may_have_any_shape(method, trace):
    model = diagonal(UNIFORM_OR_NOT["non-uniform"]())
    x = torch.randn(2, 3, 3)
    found = log_prob(model, x, method, trace=trace)
    flat = log_prob(model, x.flatten(0, 1), method, trace=trace)
    torch.testing.assert_close(found.value, flat.value.reshape(2, 3))
    torch.testing.assert_close(found.standard_error, flat.standard_error.reshape(2, 3))


def test_a_shape_that_is_not_the_events_is_refused():
    model = Gaussian(
        DiagonalSDE(VP(), Identity((2, 2))),
        torch.zeros(2, 2),
        random_covariance(4, torch.Generator()),
    )
    with pytest.raises(ValueError, match="x: expected shape"):
        log_prob(model, torch.zeros(3, 4), DDIM(3))


@pytest.mark.parametrize("method", [Quadrature(5), ExponentialMultistep(5)])
def test_frugal_gradients_are_the_same(method):
    sde = DiagonalSDE(Learned(3), Identity((3,), dict.fromkeys("abc", 1)))
    model = Denoising(sde, ResidualMLP((3,), 16, 1, condition_dim=2))
    for p in model.network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, condition = torch.randn(2, 3), torch.randn(2, 2)
    inputs = [x.requires_grad_(), condition.requires_grad_(), *model.parameters()]
    slopes = []
    for checkpointing in (False, True):
        value = log_prob(model, x, method, condition=condition, checkpointing=checkpointing).value
        slopes.append(torch.autograd.grad(value.sum(), inputs, allow_unused=True))
    assert sum(s is not None for s in slopes[0]) == len(inputs)
    for plain, again in zip(*slopes, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_have_second_derivatives(dtype):
    """Of a Gaussian: minus the inverse covariance, here that after the first instant."""
    sde = DiagonalSDE(VP(eps=0.05), Identity((2,)))
    model = Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
    x = torch.tensor([0.4, -0.2], dtype=dtype)

    def density(x):
        return log_prob(model, x.unsqueeze(0), Quadrature(40)).value[0]

    found = torch.autograd.functional.hessian(density, x)
    distribution = model.marginal(torch.tensor([sde.eps]))
    wanted = torch.autograd.functional.hessian(
        lambda x: distribution.log_prob(x.unsqueeze(0))[0], x.double()
    )
    torch.testing.assert_close(found.double(), wanted, rtol=2e-3, atol=2e-3)


def test_a_flow_with_its_integrals_has_no_noise():
    flow = ProbabilityFlow(diagonal(UNIFORM_OR_NOT["non-uniform"]()))
    z, t = torch.randn(2, 3), torch.tensor(0.4)
    density = DensityFlow(flow, ExactTrace(), ExactTrace().draw(z, Noise()))
    y = density.start(z)
    assert not density.stochastic
    for diffusion in (density.g(t, y), density.field(t, y).diffusion(y)):
        assert torch.equal(diffusion, torch.zeros_like(y))


def test_integrals_are_means_over_a_step_without_decay():
    """Of ``v``, its square and its cube, which goes from 0 to 1: no part of them is forgotten."""
    model = gaussian(DiagonalSDE(VP(), Identity((2,))), 0)
    probes = ExactTrace().draw(torch.zeros(1, 2), Noise())
    density = DensityFlow(ProbabilityFlow(model), ExactTrace(), probes)
    at = density.at(torch.tensor([[0.8], [0.3]]), torch.zeros(1, 4))
    step = at[:1].propagator(at[1:])
    assert step.decay[..., 1:].tolist() == [[1]]  # a value for the state, one for its integrals
    for power, mean in enumerate((*step.moments, step.cubic), 1):
        torch.testing.assert_close(mean[..., 1:], torch.full_like(mean[..., 1:], 1 / (power + 1)))
        assert (mean[..., :1] != mean[..., 1:]).all()
