"""Scores of SDEs without a kernel: objectives and networks against laws in closed form."""

import math

import pytest
import torch
from models import OrnsteinUhlenbeck
from torch import nn
from torch.distributions import Gamma, LogNormal, Normal

from estimators import Denoising, Gaussian, ResidualMLP, SlicedScoreMatching, TransitionMatching
from estimators.kernel_free import transition, walk
from scoresde import SDE as AnySDE
from scoresde import (
    VP,
    CoxIngersollRoss,
    DiagonalSDE,
    GeometricBrownian,
    Haar,
    Identity,
    Noise,
)
from solvers import EulerMaruyama

DOUBLE = torch.float64
METHODS = [TransitionMatching, SlicedScoreMatching]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Mixed:
    """Data of two Gamma laws with one shape, that stay so: their scales return to the level's."""

    sde = CoxIngersollRoss((1,), volatility=0.5, T=3.0)
    shape, scales = 8.0, torch.tensor([0.03, 0.15], dtype=DOUBLE)
    mean, std = 0.72, 0.55

    @classmethod
    def draw(cls, count, dtype=DOUBLE):
        scale = cls.scales[torch.rand(count, 1, generator=seeded(3)).gt(0.5).long()]
        torch.manual_seed(4)
        return (scale * Gamma(torch.tensor(cls.shape), 1.0).sample((count, 1))).to(dtype)

    @classmethod
    def log_density(cls, y, t):
        left = torch.as_tensor(-t).exp()
        rates = 1 / (0.125 * (1 - left) + cls.scales * left)  # volatility^2 / (2 rate)
        return (0.5 * Gamma(cls.shape, rates).log_prob(y).exp()).sum(-1).log()


class LogNormals:
    """``log y`` is normal throughout."""

    sde = GeometricBrownian((1,), growth=0.3, volatility=0.6, data_mean=1.38, data_std=0.74, T=1.0)
    mean, std = 1.38, 0.74

    @classmethod
    def draw(cls, count, dtype=DOUBLE):
        return torch.exp(0.2 + 0.5 * torch.randn(count, 1, generator=seeded(3), dtype=dtype))

    @classmethod
    def log_density(cls, y, t):
        t = torch.as_tensor(t)
        distribution = LogNormal(0.2 + (0.3 - 0.18) * t, (0.25 + 0.36 * t).sqrt())
        return distribution.log_prob(y).squeeze(-1)


class Normals:
    """Of the process of Ornstein and Uhlenbeck, known by drift and diffusion only."""

    sde = OrnsteinUhlenbeck((1,), T=2.0)
    mean, std = 1.0, 0.5

    @classmethod
    def draw(cls, count, dtype=DOUBLE):
        return 1 + 0.5 * torch.randn(count, 1, generator=seeded(3), dtype=dtype)

    @classmethod
    def log_density(cls, y, t):
        left = torch.as_tensor(-2 * t).exp()
        return Normal(left.sqrt(), (1 - 0.75 * left).sqrt()).log_prob(y).squeeze(-1)


def true_score(case, y, t):
    t = torch.as_tensor(t, dtype=y.dtype).reshape(-1, 1)
    rows = torch.func.vmap(torch.func.grad(case.log_density))(y, t.expand(len(y), 1))
    return rows.to(y)


class Silent(nn.Module):
    def forward(self, x, level):
        return torch.zeros_like(x)


def around(case, method, **options):
    """A model whose score is the true one and ``theta sin``, at one time."""

    class Around(method):
        def score(self, z, t, condition=None):
            return true_score(case, z, t) + self.theta * (2 * z).sin()

    at, late = options.pop("at", 0.7), 1 + 1e-9

    def moment(sde, steps):
        return torch.linspace(at * late, at, steps + 1, dtype=DOUBLE)

    units = {"data_mean": case.mean, "data_std": case.std}
    model = Around(case.sde, Silent(), times=moment, **units, **options)
    model.theta = torch.zeros((), dtype=DOUBLE, requires_grad=True)
    return model


CASES = [Mixed, LogNormals, Normals]


@pytest.mark.covering(2)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_objective_is_the_squared_error_of_the_score(case, method, dtype):
    """Of a true score with something added: flat around it, and more by the square beyond."""
    model, x = around(case, method), case.draw(40_000, dtype)
    loss = model.losses(x, generator=seeded())
    slopes = torch.stack(
        [torch.autograd.grad(v.mean(), model.theta, retain_graph=True)[0] for v in loss.split(2000)]
    )
    spread = slopes.std() / len(slopes) ** 0.5
    y = model.simulate(x, torch.full((len(x), 1), 0.7, dtype=dtype), seeded(1))
    square = float((model.noise_std(y, 0.7) * (2 * y).sin()).square().mean())
    assert abs(slopes.mean()) < 4 * spread + 0.02 * square
    assert spread < 0.15 * square
    with torch.no_grad():
        model.theta.fill_(0.5)
        more = (model.losses(x, generator=seeded()) - loss).mean() - 0.5 * slopes.mean()
    torch.testing.assert_close(float(more), 0.25 * square, rtol=0.06, atol=0)


def score_of_a_step(case, y, t, d):
    """Of what a step of Euler's of length ``d`` makes of the true distribution, by quadrature."""
    before = torch.linspace(1e-3, 12, 20_001, dtype=DOUBLE).unsqueeze(-1)
    at = case.sde.at(torch.tensor([[t - d], [t]], dtype=DOUBLE), before)
    mean, deviation = transition(at, before)
    weight = case.log_density(before, t - d).exp()

    def log_density(y):
        return (weight * Normal(mean, deviation).log_prob(y).squeeze(-1).exp()).sum().log()

    return torch.func.vmap(torch.func.grad(log_density), chunk_size=8)(y)


@pytest.mark.parametrize("case", [Mixed, LogNormals])
def test_the_bias_is_of_the_order_of_the_step(case):
    y = torch.linspace(0.4, 2.0, 24, dtype=DOUBLE).unsqueeze(-1)
    truth = true_score(case, y, 0.7)
    errors = [
        float((score_of_a_step(case, y, 0.7, d) - truth).square().mean().sqrt())
        for d in (0.14, 0.07, 0.007)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.12 * errors[1]
    assert errors[2] < 0.01 * float(truth.square().mean().sqrt())


@pytest.mark.parametrize("case", CASES)
def test_the_control_variate_takes_variance_out_and_nothing_in(case):
    def losses(**options):
        model = around(case, TransitionMatching, **options)
        with torch.no_grad():
            model.theta.fill_(0.2)
            return model.losses(case.draw(20_000), generator=seeded())

    long, short = ({"step": step} for step in (1e-2, 1e-4))
    plain, fine = losses(**long, control_variate=False), losses(**short, control_variate=False)
    better, best = losses(**long), losses(**short)
    error = (plain - better).std() / len(plain) ** 0.5
    assert abs((plain - better).mean()) < 4 * error
    assert better.var() < 0.2 * plain.var()
    assert fine.var() > 30 * plain.var()  # as 1/d
    assert best.var() < 2 * better.var()


def weak_errors(sde, start, mean, steps):
    """Of the first two moments at time 1, from a point."""
    z = torch.full((200_000, 1), start, dtype=DOUBLE)
    ts = torch.linspace(0, 1, steps + 1, dtype=DOUBLE).unsqueeze(-1)
    *_, end = walk(sde.at(ts, z), z, Noise(seeded()))
    return abs(end.mean() - mean[0]), abs(end.square().mean() - mean[1])


@pytest.mark.parametrize(
    ("sde", "moments"),
    [
        # e^mu and e^(2 mu + s^2); 1 + e^-1 and its square with volatility^2 (e^-t - e^-2t + ...)
        (GeometricBrownian((1,), growth=0.5, volatility=0.5), (0.5, 1.25)),
        (CoxIngersollRoss((1,), volatility=0.5), None),
    ],
    ids=["geometric", "root"],
)
def test_paths_have_the_moments_of_the_process(sde, moments):
    """To the second order: two steps do what Euler's need many for."""
    e = torch.tensor(-1.0, dtype=DOUBLE).exp()
    if moments is None:
        mean = 1 + e
        wanted = mean, mean**2 + 0.25 * (2 * (e - e**2) + (1 - e) ** 2 / 2)
    else:
        wanted = tuple(
            torch.tensor(v, dtype=DOUBLE).exp() * 2 ** (i + 1) for i, v in enumerate(moments)
        )
    first, second = weak_errors(sde, 2.0, wanted, 4)
    assert first < 0.01 * wanted[0]
    assert second < 0.02 * wanted[1]


@pytest.mark.parametrize("kind", [GeometricBrownian, CoxIngersollRoss])
def test_times_are_those_that_were_asked_for(kind):
    sde = kind((1,), T=1.7, eps=0.02)
    assert (sde.T, sde.eps) == (1.7, 0.02)


def test_priors_have_the_moments_that_states_come_to():
    """Of geometric Brownian motion at ``T``, and of a root process for ever: ``L_t m = 0``."""
    growth, volatility, T = -0.3, torch.tensor([0.4, 0.9], dtype=DOUBLE), 1.7
    mean, std = torch.tensor([2.0, 5.0], dtype=DOUBLE), torch.tensor([0.5, 3.0], dtype=DOUBLE)
    sde = GeometricBrownian((2,), growth, volatility, data_mean=mean, data_std=std, T=T)
    wanted = mean * math.exp(growth * T)
    second = (mean**2 + std**2) * ((2 * growth + volatility**2) * T).exp()
    torch.testing.assert_close(sde.prior.mean, wanted)
    torch.testing.assert_close(sde.prior.variance, second - wanted**2)
    rate, level = 0.7, torch.tensor([2.0, 5.0], dtype=DOUBLE)
    prior = CoxIngersollRoss((2,), rate, level, volatility).prior
    torch.testing.assert_close(prior.mean, level)
    torch.testing.assert_close(prior.variance, volatility**2 * level / (2 * rate))


def test_below_the_floor_a_root_is_that_of_the_floor():
    sde = CoxIngersollRoss((2,), level=[4.0, 100.0], volatility=0.5)
    y = torch.tensor([[0.0, -1.0], [5e-4, 0.02]], dtype=DOUBLE)
    floor = 0.5 * torch.tensor([4e-4, 1e-2], dtype=DOUBLE).sqrt()
    torch.testing.assert_close(sde.g(torch.tensor(0.0), y)[0], floor)
    torch.testing.assert_close(sde.g(torch.tensor(0.0), y)[1], 0.5 * y[1].sqrt())


def test_a_linear_equation_is_simulated_exactly():
    sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 0.5])
    model = TransitionMatching(sde, Silent(), steps=7)
    assert model.steps == 1
    x = torch.full((200_000, 2), 2.0, dtype=DOUBLE)
    z = model.simulate(x, torch.full((len(x), 1), 0.4, dtype=DOUBLE), seeded())
    alpha, sigma = (v[0] for v in sde.kernel(torch.full((1, 1), 0.4, dtype=DOUBLE)))
    torch.testing.assert_close(z.mean(0), 2 * alpha, rtol=0, atol=0.01)
    torch.testing.assert_close(z.std(0), sigma, rtol=0.01, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_network_the_score_is_that_of_a_gaussian(method):
    """Or, where noise is a root, of a Gamma density: to the error of the paths that say moments."""
    sde = DiagonalSDE(VP(), Identity((2,)))
    model = method(sde, Silent(), data_mean=[1.0, -1.0], data_std=[0.5, 2.0])
    exact = Gaussian(sde, torch.tensor([1.0, -1.0]), torch.tensor([[0.25, 0], [0, 4.0]]))
    y, t = torch.randn(50, 2, generator=seeded()), torch.linspace(0.01, 1, 50)
    error, scale = (model.score(y, t) - exact.score(y, t)).abs(), exact.score(y, t).abs()
    assert (error < 0.1 * scale + 0.2).all()
    gamma = method(
        CoxIngersollRoss((1,), volatility=0.5), Silent(), data_mean=1.0, data_std=8**-0.5
    )
    y = torch.linspace(0.2, 3, 50).unsqueeze(-1)
    torch.testing.assert_close(gamma.score(y, 1.0), 7 / y - 8, rtol=0.1, atol=0.1)


TRAINED = [(TransitionMatching, Mixed), (SlicedScoreMatching, LogNormals)]


@pytest.mark.parametrize(("method", "case"), TRAINED)
def test_a_network_recovers_the_score(method, case):
    torch.manual_seed(0)
    units = {"data_mean": case.mean, "data_std": case.std}
    model = method(case.sde, ResidualMLP((1,), 32, 1), steps=4, **units)
    x, solver = case.draw(50_000, torch.float32), EulerMaruyama(40, eta=1.0, grid="root_time")
    t = case.sde.T * torch.rand(4000, 1, generator=seeded(5)).clamp(min=0.1) ** 2
    y = model.simulate(x[:4000], t, seeded(6))
    wanted = model.noise_std(y, t) * true_score(case, y, t)

    @torch.no_grad()
    def error():
        found = model.noise_std(y, t) * model.score(y, t)
        return float((found - wanted).square().mean() / wanted.square().mean())

    before, updates = error(), 160
    optimizer = torch.optim.Adam(model.parameters())
    for i in range(updates):
        optimizer.param_groups[0]["lr"] = 8e-3 * (1 - i / updates)
        optimizer.zero_grad()
        rows = torch.randint(len(x), (256,), generator=seeded(i))
        model.loss(x[rows], generator=seeded(i)).backward()
        optimizer.step()
    after = error()
    assert after < 0.5 * before
    assert after < 0.1
    with torch.no_grad():
        drawn = solver.sample(model, (2000,), generator=seeded())
    assert abs(drawn.mean() - x.mean()) < 0.1 * x.std()
    assert abs(drawn.std() / x.std() - 1) < 0.25


def test_paths_end_where_the_last_step_begins(monkeypatch):
    model = TransitionMatching(OrnsteinUhlenbeck((2,)), Silent(), step=0.1)
    times = []
    monkeypatch.setattr(model, "simulate", lambda z, t, noise: times.append(t) or z)
    t = torch.tensor([[0.5], [0.2]], dtype=DOUBLE)
    model.objective(torch.ones(2, 2, dtype=DOUBLE), t, None, Noise(seeded()))
    torch.testing.assert_close(times, [0.9 * t])


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_divergences_are_averaged_over_probes(dtype):
    """Of a score that is linear in every component by itself each probe says all of it."""
    x = torch.randn(6, 2, dtype=dtype, generator=seeded())
    one, three = (
        SlicedScoreMatching(OrnsteinUhlenbeck((2,)), Silent(), probes=probes)
        .to(dtype)
        .losses(x, generator=seeded())
        for probes in (1, 3)
    )
    torch.testing.assert_close(one, three)


@pytest.mark.parametrize("method", METHODS)
def test_conditions_reach_the_network(method):
    network = ResidualMLP((1,), 8, 1, condition_dim=2)
    nn.init.ones_(network.output_layer[1].weight)
    model = method(Normals.sde, network)
    x, c = torch.randn(5, 1), torch.randn(5, 2)
    one, same, other = (model.loss(x, v, generator=seeded()) for v in (c, c, -c))
    assert torch.equal(one, same)
    assert one != other
    with pytest.raises(ValueError, match="condition"):
        model.loss(x)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_what_stands_still_has_no_score(method, dtype):
    sde = DiagonalSDE(VP(), Identity((2,), {"y": 1, "x": 1}), [0.0, 1.0])
    network = ResidualMLP((2,), 8, 1)
    nn.init.ones_(network.output_layer[1].weight)
    model = method(sde, network).to(dtype)
    z = torch.randn(6, 2, dtype=dtype)
    score = model.score(z, 0.5)
    assert torch.equal(score[:, 0], torch.zeros(6, dtype=dtype))
    losses = model.objective(z, torch.full((6, 1), 0.5, dtype=dtype), None, Noise(seeded()))
    torch.testing.assert_close(losses[:, 0], torch.zeros(6, dtype=dtype), rtol=0, atol=1e-5)
    assert losses[:, 1].isfinite().all()


class Roots(AnySDE):
    """Of which states below 0 are no numbers."""

    def f(self, t, y):
        return torch.zeros_like(y)

    def g(self, t, y):
        return y.sqrt()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TransitionMatching(Normals.sde, 3), "network: expected"),
        (lambda: TransitionMatching(Normals.sde, Silent(), step=1.0), "step: .*between 0 and 1"),
        (lambda: TransitionMatching(Normals.sde, Silent(), step=0.0), "step: .*between 0 and 1"),
        (lambda: TransitionMatching(Normals.sde, Silent(), step=float("nan")), "step: "),
        (lambda: TransitionMatching(Normals.sde, Silent(), steps=0), "steps: "),
        (lambda: TransitionMatching(Normals.sde, Silent(), control_variate=2), "control_variate"),
        (lambda: SlicedScoreMatching(Normals.sde, Silent(), probes=0), "probes"),
        (lambda: SlicedScoreMatching(Normals.sde, Silent(), data_std=0.0), "data_std: .*positive"),
        (lambda: SlicedScoreMatching(Normals.sde, Silent(), data_mean=[1.0, 2.0]), "data_mean: "),
        (lambda: SlicedScoreMatching(Normals.sde, Silent(), data_mean=float("inf")), "data_mean: "),
        (lambda: TransitionMatching(Roots((1,)), Silent()), "sde: .*numbers"),
        (
            lambda: TransitionMatching(
                DiagonalSDE(VP(), Haar((1, 4, 4), levels=1), drop=[1.0, 0.5]), Silent()
            ),
            "sde: .*drops no",
        ),
        (lambda: CoxIngersollRoss((1,), rate=0.0), "rate: .*positive"),
        (lambda: CoxIngersollRoss((2,), level=[1.0, 1.0, 1.0]), "level: "),
        (lambda: GeometricBrownian((1,), data_mean=-1.0), "data_mean: .*positive"),
        (lambda: GeometricBrownian((2,), growth=[1.0, 1.0, 1.0]), r"^growth: "),
        (lambda: GeometricBrownian((2,), data_std=[1.0, 1.0, 1.0]), r"^data_std: "),
        (lambda: GeometricBrownian((1,), volatility=1e200), "T: .*moments are numbers"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises((TypeError, ValueError), match=words):
        build()


def test_times_are_those_of_all_components():
    model = TransitionMatching(OrnsteinUhlenbeck((2,)), Silent())
    with pytest.raises(ValueError, match="t: expected one time for all"):
        model.score(torch.zeros(3, 2), torch.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="at least one event"):
        model.loss(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="x: "):
        model.losses(torch.zeros(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_networks_are_asked_in_their_basis_and_precision(method, dtype):
    seen = []

    class Listening(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=DOUBLE))

        def forward(self, x, noise_level):
            seen.append((x, noise_level))
            return self.weight * x

    model = method(OrnsteinUhlenbeck((4,)), Listening(), network_basis=Haar((4,), 1))
    z = torch.randn(3, 4, dtype=dtype)
    assert model.score(z, 0.5).dtype == dtype
    plain = method(OrnsteinUhlenbeck((4,)), Listening())
    plain.score(z, 0.5)
    (x, noise_level), (standard, _) = seen
    assert x.dtype == noise_level.dtype == DOUBLE
    torch.testing.assert_close(x, Haar((4,), 1).inverse(standard))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_data_where_the_sde_has_no_states_are_refused(method, dtype):
    for sde, wrong in ((CoxIngersollRoss((1,)), -1.0), (GeometricBrownian((1,)), 0.0)):
        for value in (wrong, math.nan):
            model = method(sde, ResidualMLP((1,), 8, 1).to(dtype))
            with pytest.raises(ValueError, match="x: expected data in the support of the prior"):
                model.loss(torch.tensor([[1.0], [value]], dtype=dtype))


def test_what_has_no_kernel_has_no_denoising():
    with pytest.raises(TypeError, match="sde: expected a DiagonalSDE"):
        Denoising(CoxIngersollRoss((1,)), ResidualMLP((1,), 8, 1))
    with pytest.raises(ValueError, match="times: unknown name 'components'"):
        TransitionMatching(CoxIngersollRoss((1,)), ResidualMLP((1,), 8, 1), times="components")
