"""torchsde and torchdiffeq run on our equations as they are, and ours on theirs."""

import copy

import pytest
import readings
import torch
import torchdiffeq
import torchsde
from exact_moments import marginal
from models import SOLVERS, GeometricBrownianMotion, ScoreOnly, SquareRoot
from strategies import gaussian, mixture
from torch.distributions import Independent, LogNormal

from estimators import Denoising, ResidualMLP
from scoresde import (
    EDM,
    VE,
    VP,
    Cosine,
    DiagonalSDE,
    Identity,
    Learned,
    LogLinear,
    Noise,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    SubVP,
)
from scoresde.sampling.grid import GRIDS
from solvers import EulerMaruyama, TorchDiffEq, TorchSDE
from solvers import torchsde as torchsde_solver

pytestmark = pytest.mark.usefixtures("float64")


def bed():
    return DiagonalSDE(VP(0.3, 6.0, eps=0.1), Identity((2,)), [1.0, 0.6], [1.0, 0.7])


def brownian(start, end, rows, n):
    return torchsde.BrownianInterval(
        start,
        end,
        size=(rows, n),
        entropy=0,
        dtype=torch.double,
        levy_area_approximation="space-time",
    )


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_sdeint_diffuses_as_the_kernel(method):
    sde, count = bed(), 4000
    z = torch.tensor([[1.0, -2.0]]).expand(count, 2)
    bm = brownian(0.0, 1.0, count, 2)
    end = torchsde.sdeint(sde, z, torch.tensor([0.0, 1.0]), bm=bm, method=method, dt=0.02)[-1]
    alpha, sigma = sde.kernel(torch.tensor([1.0]))
    error = sigma / count**0.5
    assert ((end.mean(0) - alpha * z[0]).abs() < 5 * error + 0.02).all()
    assert ((end.var(0) / sigma**2 - 1).abs() < 5 * (2 / count) ** 0.5 + 0.03).all()


def test_sdeint_runs_back_to_the_data():
    model = gaussian(bed(), 3)
    sde, count = model.sde, 4000
    top, bottom = marginal(model, sde.T), marginal(model, sde.eps)
    z = top.sample((count,))
    ts = torch.tensor([-sde.T, -sde.eps])
    bm = brownian(-sde.T, -sde.eps, count, 2)
    end = torchsde.sdeint(ReverseSDE(model), z, ts, bm=bm, method="euler", dt=0.01)[-1]
    assert ((end.mean(0) - bottom.mean).abs() / bottom.stddev).max() < 5 / count**0.5 + 0.03
    error = (end.mT.cov() - bottom.covariance_matrix).norm() / bottom.covariance_matrix.norm()
    assert error < 5 * (2 / count) ** 0.5 + 0.03


def test_odeint_runs_the_flow_both_ways():
    model = mixture(bed(), 3)
    sde = model.sde
    flow = ProbabilityFlow(model)
    z = model.marginal(torch.tensor([sde.eps])).sample((8,))
    up = torch.tensor([sde.eps, sde.T])
    top = torchdiffeq.odeint(flow, z, up, rtol=1e-8, atol=1e-8)[-1]
    # one-dimensional mass is not moved past itself: a rank is a rank
    back = torchdiffeq.odeint(flow, top, up.flip(0), rtol=1e-8, atol=1e-8)[-1]
    torch.testing.assert_close(back, z, rtol=1e-6, atol=1e-6)
    ours = TorchDiffEq(method="dopri8", rtol=1e-10, atol=1e-10)
    reverse = ours.integrate(ReverseSDE(model, 0.0), top, -up.flip(0), Noise())
    torch.testing.assert_close(reverse, z, rtol=1e-6, atol=1e-6)


def test_the_flow_of_a_gaussian_is_known():
    """In one dimension it keeps every value at its number of standard deviations."""
    model = gaussian(DiagonalSDE(VP(0.3, 6.0, eps=0.1), Identity((1,))), 3)
    top, bottom = (marginal(model, t) for t in (1.0, 0.1))
    q = torch.linspace(-3, 3, 7)[:, None]
    ts = torch.tensor([0.1, 1.0])
    flow = ProbabilityFlow(model)
    end = torchdiffeq.odeint(flow, bottom.mean + q * bottom.stddev, ts, rtol=1e-9, atol=1e-9)[-1]
    torch.testing.assert_close(end, top.mean + q * top.stddev, rtol=1e-6, atol=1e-6)


def test_torchsde_is_our_euler_on_the_same_noise():
    """Step by step the same numbers, on a grid of unequal steps."""
    model = mixture(bed(), 3)
    reverse, z = ReverseSDE(model), torch.randn(5, 2)
    ts = -GRIDS["log_snr"](model.sde, 20)
    ends = [
        solver.integrate(reverse, z, ts, Noise(torch.Generator().manual_seed(0)))
        for solver in (TorchSDE(), EulerMaruyama(), TorchSDE(method="milstein"))
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    assert torch.isfinite(ends[2]).all()


@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_milstein_and_srk_beat_euler_where_noise_depends_on_the_state(method):
    """Strong errors against the solution of geometric Brownian motion on the same path."""
    sde, count = GeometricBrownianMotion((1,)), 500
    steps = {n: torch.randn(n, count, 1, generator=torch.Generator().manual_seed(1)) for n in (64,)}

    class Given(Noise):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def __call__(self, like):
            self.calls += 1
            # srk asks twice a step: for the increment, then for its integral
            per = 2 if method == "srk" else 1
            i, second = divmod(self.calls - 1, per)
            if second:
                return torch.randn(like.shape, generator=torch.Generator().manual_seed(i))
            return steps[64][i]

    ts = torch.linspace(0, 1, 65)
    y = torch.ones(count, 1)
    end = TorchSDE(method=method).integrate(sde, y, ts, Given())
    w = steps[64].sum(0) / 8
    truth = torch.exp((sde.mu - sde.s**2 / 2) + sde.s * w)
    error = (end - truth).abs().mean()
    assert error < {"euler": 0.04, "milstein": 0.008, "srk": 0.002}[method]


def test_a_users_sde_runs_under_sdeint():
    sde, count = GeometricBrownianMotion((1,)), 4000
    y = torch.exp(sde.mean + sde.std * torch.randn(count, 1))
    bm = brownian(0.0, 1.0, count, 1)
    end = torchsde.sdeint(sde, y, torch.tensor([0.0, 1.0]), bm=bm, method="milstein", dt=0.01)[-1]
    mean, variance = sde.log_moments(torch.tensor(1.0))
    assert (end.log().mean() - mean).abs() < 5 * (variance / count) ** 0.5 + 0.01
    assert (end.log().var() / variance - 1).abs() < 5 * (2 / count) ** 0.5 + 0.02


def lognormal(sde, t):
    mean, variance = sde.log_moments(torch.tensor(t))
    return LogNormal(mean.expand(1), variance.sqrt().expand(1))


ODE = list(SOLVERS)
STOCHASTIC = [name for name, solver in SOLVERS.items() if solver().weak_order is not None]


@pytest.mark.parametrize("name", ODE)
def test_the_flow_of_geometric_brownian_motion_keeps_quantiles(name):
    """Deterministic: needs the divergence of ``g^2``."""
    sde = GeometricBrownianMotion((1,), eps=0.0)
    model = ScoreOnly(sde, sde.true_score)
    q = torch.linspace(0.02, 0.98, 9)[:, None]
    ts = torch.linspace(-1, 0, 101)
    start, truth = lognormal(sde, 1.0).icdf(q), lognormal(sde, 0.0).icdf(q)
    found = SOLVERS[name]().integrate(ReverseSDE(model, 0.0), start, ts, Noise())
    torch.testing.assert_close(found, truth, rtol=1e-2, atol=0)


@pytest.mark.covering(1)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_geometric_brownian_motion_is_reversed(name, eta):
    sde = GeometricBrownianMotion((1,), eps=0.0)
    sde.prior = Independent(lognormal(sde, 1.0), 1)
    model = ScoreOnly(sde, sde.true_score)
    count = 8000
    solver = SOLVERS[name](100, eta=eta)
    x = solver.sample(model, (count,), generator=torch.Generator().manual_seed(0)).log()
    assert (x.mean() - sde.mean).abs() < 5 * sde.std / count**0.5 + 0.01
    assert (x.var() / sde.std**2 - 1).abs() < 5 * (2 / count) ** 0.5 + 0.03


@pytest.mark.covering(1)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_square_root_process_is_reversed(name, eta):
    """In equilibrium: running back leaves the Gamma distribution alone."""
    sde = SquareRoot((1,), eps=0.0)
    gamma = torch.distributions.Gamma(torch.tensor([sde.shape]), torch.tensor([sde.rate]))
    sde.prior = Independent(gamma, 1)
    model = ScoreOnly(sde, sde.true_score)
    count = 8000
    x = SOLVERS[name](100, eta=eta).sample(
        model, (count,), generator=torch.Generator().manual_seed(0)
    )
    assert ((x.mean() - gamma.mean).abs() < 5 * gamma.stddev / count**0.5 + 0.01).all()
    kurtosis = 3 + 6 / sde.shape
    allowed = 5 * ((kurtosis - 1) / count) ** 0.5 + 0.02
    assert ((x.var() / gamma.variance - 1).abs() < allowed).all()


def test_torchdiffeq_refuses_noise():
    model = gaussian(bed())
    with pytest.raises(ValueError, match="eta: expected 0"):
        TorchDiffEq(eta=1.0).sample(model, (2,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("below", [2.0, 0.5])
def test_torchdiffeq_explains_why_it_gave_up(below, dtype):
    """At once where the field is NaN from the start, and where it becomes so."""
    asked = []

    def score(z, t):
        asked.append(t)
        rows = torch.arange(len(z), device=z.device).unsqueeze(-1)
        bad = (rows == 1) & (torch.arange(2) == 1) & (t < below)
        return torch.where(bad, torch.nan, -z)

    said = (
        rf"NaN or infinite at time -{1 if below > 1 else '0.[1-4]'}.*, of sample 1 in component 1"
    )
    with pytest.raises(FloatingPointError, match=said):
        TorchDiffEq().sample(ScoreOnly(bed(), score), (3,), dtype=dtype)
    assert len(asked) == 1 or below < 1


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("method", ["euler", "milstein", "srk"])
def test_torchsde_takes_states_of_any_batch_shape(method, shape):
    model = gaussian(bed())
    assert TorchSDE(5, eta=1.0, method=method).sample(model, shape).shape == (*shape, 2)


def test_time_integrals_of_the_noise_have_the_moments_of_brownian_motion():
    """``Var U = h^3/3`` and ``Cov(W, U) = h^2/2`` for ``U = int_a^b (W_s - W_a) ds``."""
    sde = DiagonalSDE(VP(), Identity((1,)))
    state = torch.zeros(40_000, 1)
    steps = torchsde_solver._UnitSteps(sde, torch.tensor([0.1, 0.9]), state)
    torch.manual_seed(0)
    increments = torchsde_solver._Increments(steps, Noise(), state)
    w, u = increments(torch.tensor(0.0), torch.tensor(0.8), return_U=True)
    found = torch.cov(torch.cat([w, u], -1).mT)
    wanted = torch.tensor([[0.8, 0.8**2 / 2], [0.8**2 / 2, 0.8**3 / 3]])
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0.03, atol=0)


def test_adaptive_methods_are_told_where_rates_jump(monkeypatch):
    seen = {}

    def odeint(field, y, times, **options):
        seen.update(options)
        return y.unsqueeze(0)

    monkeypatch.setattr(torchdiffeq, "odeint", odeint)
    model = gaussian(DiagonalSDE(VP(), Identity((2,)), [1.0, 2.0]), 0)
    TorchDiffEq().sample(model, (1,))
    torch.testing.assert_close(seen["options"]["jump_t"], torch.tensor([-0.5]))


def network(sde, dtype):
    """With weights of some size."""
    model = Denoising(sde, ResidualMLP((2,), 8, 1)).to(dtype)
    for p in model.network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


LEARNT = {
    "VP": lambda: DiagonalSDE(VP(), Identity((2,))),
    "learned": lambda: DiagonalSDE(Learned(), Identity((2,))),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def slopes(integrate, model, y):
    """Of every parameter, and of the start."""
    y = y.clone().requires_grad_()
    end = integrate(y)
    return torch.autograd.grad((end**2).sum(), [y, *model.parameters()])


@pytest.mark.covering(1)
@DTYPES
@pytest.mark.parametrize("case", LEARNT)
def test_adjoints_of_the_flow_give_every_parameter_its_gradient(case, dtype):
    model = network(LEARNT[case](), dtype)
    flow, y = ProbabilityFlow(model), torch.tensor([[0.5, -0.3]], dtype=dtype)
    tolerance, share = (1e-5, 5e-2) if dtype == torch.float32 else (1e-7, 1e-4)

    def run(odeint):
        ts = torch.tensor([0.3, 0.6], dtype=dtype)
        return lambda y: odeint(flow, y, ts, rtol=tolerance, atol=tolerance)[-1]

    plain, adjoint = (
        slopes(run(odeint), model, y) for odeint in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint)
    )
    largest = max(float(v.abs().max()) for v in plain)
    for found, wanted in zip(adjoint, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=share * largest)


@pytest.mark.covering(1)
@DTYPES
@pytest.mark.parametrize("case", LEARNT)
def test_adjoints_of_the_reverse_equation_give_every_parameter_its_gradient(case, dtype):
    """To the order of their own steps: the adjoint walks back along its own path."""
    model = network(LEARNT[case](), dtype)
    reverse, y = ReverseSDE(model), torch.tensor([[0.5, -0.3]], dtype=dtype)
    ts = torch.tensor([-0.5, -0.3], dtype=dtype)

    def run(sdeint, dt):
        def integrate(y):
            bm = torchsde.BrownianInterval(-0.5, -0.3, size=(1, 2), entropy=0, dtype=dtype)
            return sdeint(reverse, y, ts, bm=bm, dt=dt, method="euler")[-1]

        return integrate

    errors = []
    for dt in (1e-2, 2.5e-3):
        both = [slopes(run(f, dt), model, y) for f in (torchsde.sdeint, torchsde.sdeint_adjoint)]
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(*both, strict=True)])
    assert max(errors[1]) < 0.05
    assert sum(errors[1]) < 0.5 * sum(errors[0])


def test_a_flow_holds_its_estimator_once():
    """And so its SDE; casting and modes reach them."""
    model = network(LEARNT["learned"](), torch.float32)
    for flow in (ProbabilityFlow(model), ReverseSDE(model)):
        assert {id(p) for p in flow.parameters()} == {id(p) for p in model.parameters()}
        assert len(list(flow.parameters())) == len(list(model.parameters()))
        flow.eval()
        assert not model.network.training
        flow.double().train()
        assert next(model.network.parameters()).dtype == torch.float64
        other = copy.deepcopy(flow)
        other.load_state_dict(flow.state_dict())
        assert other.sde is other.estimator.sde is not model.sde
    assert not any(name.startswith("estimator") for name in model.state_dict())


@pytest.mark.parametrize("build", [ReverseSDE, ProbabilityFlow])
def test_what_is_no_estimator_is_refused(build):
    with pytest.raises(TypeError, match="estimator: expected a ScoreEstimator"):
        build(torch.nn.Linear(2, 2))


SCHEDULES = [VP, SubVP, VE, Cosine, LogLinear, Learned, EDM, RectifiedFlow]


@pytest.mark.covering(1)
@DTYPES
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_odeint_runs_with_its_defaults(schedule, dtype):
    """Adaptive methods look past the ends of time."""
    sde = DiagonalSDE(schedule(), Identity((2,)))
    model = mixture(sde, 3, 2)
    flow, ts = ProbabilityFlow(model), torch.tensor([sde.T, sde.eps], dtype=dtype)
    z = torch.tensor([[0.5, -0.3]], dtype=dtype)
    start = z * sde.kernel(ts[:1]).sigma
    down = torchdiffeq.odeint(flow, start, ts)[-1]
    up = torchdiffeq.odeint(flow, down, ts.flip(0))[-1]
    torch.testing.assert_close(up, start, rtol=1e-2, atol=1e-3 * float(start.abs().max()))
    if dtype == torch.float64:
        again = torchdiffeq.odeint(ReverseSDE(model, 0.0), start, -ts)[-1]
        torch.testing.assert_close(again, down, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_odeint_runs_on_a_networks_flow_in_single_precision():
    """By its defaults, which ask for more digits than there are."""
    model = network(bed(), torch.float32)
    flow, start = ProbabilityFlow(model), torch.tensor([[0.5, -0.3]], dtype=torch.float32)
    ts = torch.tensor([1.0, 0.5], dtype=torch.float32)
    there = torchdiffeq.odeint(flow, start, ts)[-1]
    back = torchdiffeq.odeint(flow, there, ts.flip(0))[-1]
    torch.testing.assert_close(back, start, rtol=1e-2, atol=1e-3)


@pytest.mark.covering(1)
@DTYPES
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_odeint_of_the_forward_equation_is_the_signals_factor(schedule, dtype):
    sde, z = DiagonalSDE(schedule(), Identity((2,))), torch.tensor([[0.5, -0.3]], dtype=dtype)
    for first in (0.0, sde.eps):
        ts = torch.tensor([first, sde.T], dtype=dtype)
        found = torchdiffeq.odeint(sde, z, ts)[-1]
        factor = readings.transition(sde, torch.tensor([first]), torch.tensor([sde.T])).alpha.to(
            dtype
        )
        torch.testing.assert_close(found, factor * z, rtol=1e-3, atol=1e-5)
    assert torch.isfinite(torchdiffeq.odeint(sde, found, ts.flip(0))[-1]).all()


@pytest.mark.parametrize("t", [1.5, -0.1, float("nan")])
def test_times_out_of_range_are_refused(t):
    sde = bed()
    model, z = gaussian(sde), torch.zeros(2, 2)
    for time in (t, torch.tensor(t), torch.tensor([0.5, t]), torch.tensor([0.5, t]).float()):
        uses = [
            lambda time=time: model.denoise(z, time),
            lambda time=time: model.score(z, time),
            lambda time=time: network(sde, torch.float64).noise(z, time),
            lambda time=time: sde.diffuse(z, time, z),
        ]
        if isinstance(time, torch.Tensor):
            uses += [
                lambda time=time: sde.f(time, z),
                lambda time=time: sde.g(time, z),
                lambda time=time: ProbabilityFlow(model).f(time, z),
                lambda time=time: ReverseSDE(model).f(-time, z),
            ]
        for use in uses:
            with pytest.raises(ValueError, match="t: expected"):
                use()


def test_times_are_checked_as_far_as_rounding_goes():
    sde = DiagonalSDE(RectifiedFlow(T=0.999), Identity((2,)))
    for t in (torch.tensor(0.999), torch.tensor(0.999).float(), torch.tensor(0), torch.empty(0)):
        sde.time(t, torch.zeros(len(t) if t.ndim else 2, 2))
    model, z = gaussian(sde), torch.zeros(2)
    ts = torch.tensor([0.2, 0.5])
    mapped = torch.func.vmap(lambda t: model.denoise(z, t))(ts)
    torch.testing.assert_close(mapped, model.denoise(z.expand(2, 2), ts))
