from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import GeometricBrownianMotion, ScoreOnly
from strategies import gaussian, mixture, sdes

from estimators import Gaussian, GaussianMixture
from scoresde import (
    EDM,
    VP,
    Cosine,
    DiagonalSDE,
    ExactTrace,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    LogLinear,
    Quadrature,
    log_prob,
)
from scoresde.blocks import Blocks
from scoresde.conditioning import condition
from scoresde.equation import Coefficients, Field
from scoresde.likelihood import quadrature
from scoresde.likelihood.quadrature import averages
from scoresde.propagator import Propagator
from scoresde.reverse import ProbabilityFlow
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")
FINE = Quadrature(200, tolerance=None)


def steps(lengths, damping):
    h = torch.tensor(lengths).unsqueeze(-1)
    return Propagator(torch.ones_like(h), h, h, damping * h, None)


@given(
    lengths=st.lists(st.floats(0.2, 2), min_size=3, max_size=6),
    damping=st.floats(-2, 2),
    powers=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    until=st.none() | st.floats(0.1, 0.9),
)
def test_averages_are_those_of_cubics(lengths, damping, powers, until):
    ahead = steps(lengths, damping)
    place = np.cumsum([0.0, *lengths])
    polynomial = np.polynomial.Polynomial(powers)
    part = None if until is None else steps([h * until for h in lengths], damping)
    found = averages(ahead, 4, part)(torch.tensor(polynomial(place)).unsqueeze(-1))[:, 0]
    for k, h in enumerate(lengths):
        damping_h, h = damping * h, h * (until or 1)
        u, w = np.polynomial.legendre.leggauss(40)
        w = w * np.exp(damping_h * (until or 1) * (u + 1) / 2)
        truth = (w * polynomial(place[k] + h * (u + 1) / 2)).sum() / w.sum()
        assert float(found[k]) == pytest.approx(truth, rel=1e-8, abs=1e-8)


def test_the_path_looks_back_only():
    weights, nodes = averages(steps([0.3, 0.5, 0.4], 1.0), 2)
    assert nodes.tolist() == [[0, 0], [1, 0], [2, 1]]
    torch.testing.assert_close(weights[..., 0].sum(1), torch.ones(3))
    assert float(weights[0, 0]) == pytest.approx(1)
    assert (weights[1:, 1] < 0).all()


@given(rand=st.data())
@settings(max_examples=15)
def test_rates_by_length_are_gains_of_short_steps(rand):
    """Also of what starts to move, or stops: rates jump, and lengths and gains do not."""
    sde = rand.draw(sdes())
    model, like = gaussian(sde, 3), torch.empty(sde.dim)
    knots = [sde.eps, *sde.breakpoints(), sde.T]
    ts = torch.linspace(*knots[:2], 6, dtype=torch.float64).unsqueeze(-1)
    # short beside the time itself, too, by whose inverse things change where clean data are near
    at = ProbabilityFlow(model).at(torch.cat([ts[:-1], ts[:-1] * (1 + 1e-6)]), like)
    ahead = at[:5].propagator(at[5:])
    rates = at.slope_by_length, at.response_by_length
    known = at.blocks.broadcastable(ahead.h, ahead.decay.log(), ahead.gain, *rates)
    h, growth, gain, *found = (at.blocks.expand(v).expand(-1, sde.dim) for v in known)
    moving = h.abs() > 1e-8
    for gained, rate in zip((growth, gain), found, strict=True):
        torch.testing.assert_close((gained / h)[moving], rate[:5][moving], rtol=1e-3, atol=1e-6)


def score_of(model, z, t):
    at = ProbabilityFlow(model).at(t.reshape(1, 1, 1), z)
    forcing = next(at.fields()).forcing(z)
    return at.score(z.unsqueeze(0), forcing.unsqueeze(0))[0]


@given(rand=st.data())
@settings(max_examples=15)
def test_the_forcing_tells_the_score(rand):
    sde = rand.draw(sdes())
    model, z = gaussian(sde, 3), torch.randn(4, sde.basis.dim)
    t = torch.tensor(0.4 * sde.T)
    torch.testing.assert_close(score_of(model, z, t), model.score(z, t), rtol=1e-6, atol=1e-8)


def test_the_forcing_tells_the_score_where_noise_depends_on_the_state():
    sde = GeometricBrownianMotion((2,))
    model = ScoreOnly(sde, lambda z, t: -z.sin())
    z = torch.rand(3, 2) + 0.5
    torch.testing.assert_close(score_of(model, z, torch.tensor(0.4)), -z.sin())


@pytest.mark.parametrize("speeds", [[1.0] * 8, [1.0, 1.3] * 4, [1.0] * 4 + [2.0] * 4])
def test_a_path_that_misses_the_flow_is_corrected(speeds):
    schedule = VP() if max(speeds) < 2 else LogLinear()
    model = mixture(DiagonalSDE(schedule, Identity((8,)), speeds), 5, 3)
    model.sde.prior = model.marginal(torch.tensor([model.sde.T]))
    distribution = model.marginal(torch.tensor([model.sde.eps]))
    x = distribution.sample((16,))

    def error(method):
        return float((log_prob(model, x, method).value - distribution.log_prob(x)).abs().mean() / 8)

    fine = error(Quadrature(40))
    assert fine < 2e-3
    # a path of second order alone would gain a factor of 4
    assert error(Quadrature(20)) / fine > 8
    assert error(ExponentialMultistep(40)) > 3 * fine


def test_the_limit_is_the_flows_density_for_any_field():
    """Also where the score is the gradient of nothing."""
    sde = DiagonalSDE(VP(), Identity((2,)))
    exact = Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
    turn = torch.tensor([[0.0, 0.2], [-0.2, 0.0]])
    model = ScoreOnly(sde, lambda z, t: exact.score(z, t) + z @ turn)
    x = torch.randn(5, 2)
    truth = log_prob(model, x, ExponentialMultistep(400), errors=False).value
    errors = [(log_prob(model, x, Quadrature(k)).value - truth).abs().mean() for k in (20, 80)]
    assert errors[1] < min(0.02, errors[0] / 8)


@pytest.mark.covering(1)
@pytest.mark.parametrize(
    "sde",
    [
        lambda: DiagonalSDE(VP(), Identity((1, 2, 2)), [1.0, 0.9, 0.8, 0.7]),
        lambda: DiagonalSDE(LogLinear(5.0, -5.0), Haar((1, 2, 2), levels=1), [1.0, 2.0]),
        lambda: DiagonalSDE(
            LogLinear(5.0, -5.0), Haar((1, 2, 2), levels=1), [1.0, 2.0], drop=[1.0, 0.5]
        ),
    ],
)
@pytest.mark.parametrize("trace", [ExactTrace(), Hutchinson(3)])
def test_events_in_doubt_get_more_nodes(sde, trace):
    model = gaussian(sde(), 3)
    x = torch.randn(2, 4, 1, 2, 2, requires_grad=True)

    def found(steps, tolerance, x=x):
        seed = torch.Generator().manual_seed(0)
        return log_prob(
            model, x, Quadrature(steps, tolerance=tolerance), trace=trace, generator=seed
        )

    plain, better, truth = found(16, None), found(16, 0.0), found(100, None)
    errors, left = ((v.value - truth.value).abs().mean() for v in (plain, better))
    assert left < errors / 2
    assert 25 < better.evaluations < 36
    assert not better.standard_error.eq(plain.standard_error).all() or trace.estimates == 1
    # and so do their gradients
    direction = torch.randn(x.shape)
    (slope,) = torch.autograd.grad(better.value.sum(), x)
    up, down = (found(16, 0.0, x.detach() + h * direction).value.sum() for h in (1e-5, -1e-5))
    torch.testing.assert_close((slope * direction).sum(), (up - down) / 2e-5, rtol=1e-5, atol=1e-6)


def test_events_in_doubt_keep_their_conditions():
    joint = Joint(y=(2,), x=(2,))
    model = gaussian(DiagonalSDE(VP(), joint), 3)
    x, y = torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    posterior = condition(model, clean=True, y=y)
    found, truth = (log_prob(posterior, x, q).value for q in (Quadrature(20, tolerance=0), FINE))
    torch.testing.assert_close(found, truth, rtol=0, atol=2e-3)


def test_events_near_the_border_of_modes_are_those_in_doubt():
    sde = DiagonalSDE(VP(), Identity((2,)))
    covariance = 0.01 * torch.eye(2).expand(3, 2, 2)
    model = GaussianMixture(sde, torch.ones(3), torch.randn(3, 2), covariance)
    model.sde.prior = model.marginal(torch.tensor([sde.T]))
    distribution = model.marginal(torch.tensor([sde.eps]))
    x = distribution.sample((400,))
    plain, better = (log_prob(model, x, Quadrature(24, tolerance=t)) for t in (None, 0.07))
    errors, left = ((found.value - distribution.log_prob(x)).abs() / 2 for found in (plain, better))
    assert plain.evaluations == 25
    assert 25 < better.evaluations < 30
    assert left.max() < errors.max() / 4
    # an event's density is its own affair
    same = (plain.value == better.value).nonzero().flatten()
    assert len(same) > 320
    alone = log_prob(model, x[same[:1]], Quadrature(24)).value
    torch.testing.assert_close(alone, plain.value[same[:1]])


def test_float32_is_enough():
    model = mixture(DiagonalSDE(VP(), Identity((4,)), [1.0, 1.2, 1.4, 1.6]), 5, 2)
    x = torch.randn(4, 4)
    wide, narrow = (log_prob(model, x.to(dtype)).value for dtype in (torch.float64, torch.float32))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=2e-3)


def test_steps_are_checked():
    with pytest.raises(ValueError, match="steps"):
        Quadrature(0)
    for tolerance in (-1.0, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="tolerance"):
            Quadrature(tolerance=tolerance)


def between(schedule, distance, variance, dim=2):
    """Two modes, with the exact prior."""
    sde = DiagonalSDE(schedule, Identity((dim,)))
    means = distance * torch.stack([-torch.ones(dim), torch.ones(dim)])
    model = GaussianMixture(sde, [0.5, 0.5], means, [variance * torch.eye(dim)] * 2)
    model.sde.prior = model.marginal(torch.tensor([sde.T]))
    return model, model.marginal(torch.tensor([sde.eps]))


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [None, 0.07])
@pytest.mark.parametrize("width", [0.0, 1.0, 10.0], ids="events {}".format)
@pytest.mark.parametrize(
    "case",
    [
        (VP, 1.0, 0.25, 2),
        (VP, 1.0, 0.01, 2),
        (Cosine, 2.0, 0.04, 2),
        (EDM, 3.0, 0.01, 2),
        (VP, 1.0, 0.25, 8),
    ],
)
def test_the_error_of_every_event_is_told(case, width, tolerance, dtype):
    """Within the factor that the class states, whether events are data or far from both modes."""
    schedule, distance, variance, dim = case
    model, distribution = between(schedule(), distance, variance, dim)
    x = width * torch.randn(100, dim) if width else distribution.sample((100,))
    found = log_prob(model, x.to(dtype), Quadrature(30, tolerance=tolerance))
    assert found.error.dtype == dtype
    error = (found.value - distribution.log_prob(x.to(dtype).double())).abs()
    rounding = 1e-5 * found.value.abs() if dtype == torch.float32 else 0.0
    assert (error <= 2.5 * found.error + rounding + 2e-3).all()


def test_errors_are_small_where_data_are():
    """And those who are told of one get more nodes only if it is large."""
    model, distribution = between(VP(), 1.0, 0.25)
    found = log_prob(model, distribution.sample((100,)), Quadrature(30))
    assert found.evaluations == 31
    assert found.error.max() < 0.05
    far = log_prob(model, 10 * torch.randn(100, 2), Quadrature(30))
    assert far.error.max() > 0.1
    finer = log_prob(model, 10 * torch.randn(100, 2), Quadrature(120))
    assert finer.error.max() < far.error.max() / 3


@pytest.mark.parametrize("damping", [-0.31, -0.29, 1e-3, 0.29, 0.31, 3.0])
def test_the_mean_of_cubes_to_all_digits(damping):
    """By a series near 0, which has as many terms as count."""
    u, w = np.polynomial.legendre.leggauss(40)
    w = w * np.exp(damping * (u + 1) / 2)
    truth = (w * ((u + 1) / 2) ** 3).sum() / w.sum()
    assert float(steps([1.0], damping).cubic) == pytest.approx(truth, rel=1e-12, abs=0)


def test_errors_of_stages_add_up():
    basis = Haar((1, 2, 2), levels=1)
    sde = DiagonalSDE(LogLinear(5.0, -5.0), basis, [1.0, 2.0], drop=[1.0, 0.5])
    model, x = gaussian(sde, 3), torch.randn(2, 4, 1, 2, 2)
    found = log_prob(model, x, Quadrature(16, tolerance=None))
    truth = log_prob(model, x, FINE).value
    assert found.error.shape == (2, 4)
    assert ((found.value - truth).abs() <= 2.5 * found.error + 1e-3).all()


class Clockwork:
    """A density of which everything is given: ``dz/dt = F(t)``, ``F`` a cubic per component.

    Of the trace and of the score, too, nothing but cubics.
    """

    cubics = ([0.3, -1.0, 0.8, 1.5], [-0.6, 0.4, -1.2, 2.0])
    probes = torch.zeros((), dtype=torch.float64)

    def __init__(self):
        self.flow = self

    def at(self, t, like):
        return ClockworkCoefficients(self, t, like)

    def all(self, t, integrated=0):
        found = [np.polynomial.Polynomial(c).integ(integrated)(t.numpy()) for c in self.cubics]
        return torch.cat([torch.from_numpy(values) for values in found], -1)

    def select(self, rows, batch):
        return self

    def evaluate(self, forcing, z):
        found = forcing(z)
        return found, 2 * found.unsqueeze(-2)

    def nodes(self, t, missed):
        """Of two events, one on the flow, and one that leaves it by so much at every step."""
        t = t.reshape(-1, 1, 1).expand(-1, 2, -1)
        off = torch.cat([torch.zeros(1), missed.cumsum(0)]).reshape(-1, 1, 1)
        z = self.all(t, 1) + off * torch.tensor([0.0, 1.0]).reshape(1, 2, 1)
        seen = self.evaluate(lambda z: self.all(t).expand_as(z), z)
        return quadrature._Nodes(self.at(t, z[0, 0]), z, seen[0], seen[0].flip(-1), seen[1])


class ClockworkCoefficients(Coefficients):
    def __init__(self, clockwork, t, like):
        super().__init__(t, like, Blocks({"all": like.shape[-1]}))
        self.clockwork = clockwork

    def __getitem__(self, index):
        return ClockworkCoefficients(self.clockwork, self.t[index], self.like)

    @property
    def noise_level(self):
        return self.t.squeeze(-1)

    def propagator(self, end):
        h = end.t - self.t
        return Propagator(torch.ones_like(h), h, h, torch.zeros_like(h), None)

    def fields(self):
        for t in self.t:
            forcing = partial(lambda t, z: self.clockwork.all(t).expand_as(z), t)
            yield Field(forcing, None, forcing, None)

    @property
    def response_by_length(self):
        return torch.ones_like(self.t)

    def score(self, z, forcing):
        return forcing.flip(-1)


def test_integrals_along_a_path_are_those_of_cubics():
    """Step by step, and what misses the flow is counted once, at the scores met there."""
    field, t = Clockwork(), torch.tensor([0.0, 0.4, 1.1, 1.6, 2.2])
    missed = torch.tensor([0.1, -0.3, 0.2, 0.5])
    found = quadrature._integrate(field.nodes(t, missed))
    off = missed.reshape(-1, 1, 1) * torch.tensor([0.0, 1.0]).reshape(1, 2, 1)
    torch.testing.assert_close(found.missed, off.expand_as(found.missed))
    whole = field.all(t.unsqueeze(-1), 1).diff(dim=0).sum(-1).unsqueeze(-1)
    work = off.squeeze(-1) * whole / t.diff().unsqueeze(-1)
    torch.testing.assert_close(found.values.squeeze(-1), 2 * whole - work)


def test_nodes_between_others_are_on_the_path():
    field, t = Clockwork(), torch.tensor([0.0, 0.4, 1.1, 1.6, 2.2])
    missed = torch.tensor([0.1, -0.3, 0.2, 0.5])
    few = quadrature._refine(field, field.nodes(t, missed), 4, 2)
    middle = (t[1:] + t[:-1]) / 2
    wanted = field.nodes(torch.cat([t, middle]).sort().values, missed.repeat_interleave(2) / 2)
    torch.testing.assert_close(few.at.t, wanted.at.t)
    for name, values in zip(few._fields[1:], few[1:], strict=True):
        torch.testing.assert_close(values, getattr(wanted, name), msg=name)


def test_every_event_is_refined_where_its_own_error_is():
    field, t = Clockwork(), torch.linspace(0, 1, 9)
    nodes = field.nodes(t, torch.zeros(8))
    diagonal = torch.zeros_like(nodes.diagonal)
    diagonal[1, 0], diagonal[7, 1] = 1.0, 1.0
    few = quadrature._refine(field, nodes._replace(diagonal=diagonal), 3, 2)
    new = [sorted({*few.at.t[:, i, 0].tolist()} - {*t.tolist()}) for i in (0, 1)]
    assert [len(times) for times in new] == [3, 3]
    assert new[0][-1] < 0.5 < new[1][0]


def test_the_error_told_is_twice_what_parabolas_would_change():
    """Of all steps, the halved ones included, event by event."""
    model, _ = between(VP(), 1.0, 0.01)
    x = torch.tensor([[0.1, 0.0], [1.0, 1.1], [3.0, -2.0]])
    told = {
        tolerance: log_prob(model, x, Quadrature(12, tolerance=tolerance)).error
        for tolerance in (None, 0.0)
    }
    seen = []
    original = quadrature._error_estimates

    def estimates(nodes, steps):
        seen.append(original(nodes, steps))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quadrature, "_error_estimates", estimates)
        log_prob(model, x, Quadrature(12, tolerance=0.0))
    torch.testing.assert_close(told[None], 2 * seen[0].sum(0))
    torch.testing.assert_close(told[0.0], 2 * seen[-1].sum(0))
