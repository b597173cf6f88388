"""The weights of exponential multistep solvers, one by one."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from estimators import Gaussian
from scoresde import VP, Cosine, DiagonalSDE, Identity, LogLinear, Noise, ReverseSDE
from scoresde.equation import Coefficients, Equation, Field
from scoresde.propagator import Propagator
from scoresde.propagator import exponential_moments as moments
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")


@example(1.2)
@example(-1.2)
@example(0.2999)
@example(-0.2999)
@given(x=st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1e-9, 0.2999, 0.3001, -0.3001])))
def test_moments_of_an_exponential_weight(x):
    """Series and closed form meet at .3, where the last terms of the series count."""
    exact, damping = {"epsabs": 1e-14, "epsrel": 1e-12}, torch.tensor(x)
    step = Propagator(damping, damping, damping, damping, None)
    mass = quad(lambda v: math.exp(x * (v - 1)), 0, 1, **exact)[0]
    for power, value in enumerate([*moments(damping), step.cubic], start=1):
        wanted = quad(lambda v: v**power * math.exp(x * (v - 1)), 0, 1, **exact)[0] / mass  # noqa: B023
        assert float(value) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_keep_their_digits(dtype):
    x = torch.cat([torch.linspace(-8, 8, 999), torch.logspace(-9, 0, 99)])
    for found, wanted in zip(moments(x.to(dtype)), moments(x), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    found, wanted = (Propagator(v, v, v, v, None).cubic for v in (x.to(dtype), x))
    torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=0)


class Polynomial(Equation):
    """``y' = F(t) - k y``, component by component, with ``F`` a polynomial in own time."""

    def __init__(self, coefficients, damping, pace):
        super().__init__(Identity((len(pace),)), 1.0, 0.0)
        self.coefficients, self.damping, self.pace = coefficients, damping, pace

    def f(self, t, y):
        raise NotImplementedError

    g = f

    def at(self, t, like):
        return PolynomialCoefficients(self, t, like)

    def exact(self, start, end):
        """``int F(u) e^(-k (end - u)) du`` over each component's own time."""
        parts = []
        for p in self.pace.tolist():

            def integrand(u, stop=end * p):
                force = sum(float(c) * u**i for i, c in enumerate(self.coefficients))
                return force * math.exp(-self.damping * (stop - u))

            parts.append(quad(integrand, start * p, end * p, epsabs=1e-13)[0])
        return torch.tensor(parts)


class PolynomialCoefficients(Coefficients):
    """Of a `Polynomial`."""

    def __init__(self, equation, t, like):
        super().__init__(t, like, equation.layout(like.shape[-1]))
        self.equation = equation

    def __getitem__(self, index):
        return PolynomialCoefficients(self.equation, self.t[index], self.like)

    @property
    def noise_level(self):
        return self.t.mean(-1)

    def propagator(self, end):
        h, k = (end.t - self.t) * self.equation.pace, self.equation.damping
        gain = h if k == 0 else -torch.expm1(-k * h) / k
        return Propagator((-k * h).exp(), gain, h, k * h, None)

    def fields(self):
        for u in self.t * self.equation.pace:
            value = sum(c * u**i for i, c in enumerate(self.equation.coefficients))
            yield Field(value.expand_as, None, None, None)


def decay(equation, ts, like):
    """Of the last step."""
    at = equation.at(ts[-2:].unsqueeze(-1), like)
    return at[:1].propagator(at[1:]).decay[0]


@pytest.mark.parametrize("damping", [0.0, 0.7, -0.4])
@pytest.mark.parametrize(
    ("order", "corrected"), [(1, False), (2, False), (2, True), (3, False), (3, True)]
)
@settings(max_examples=8)
@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    widths=st.lists(st.floats(0.06, 0.11), min_size=6, max_size=6),
)
def test_polynomial_forcings_are_integrated_exactly(
    order, corrected, damping, coefficients, widths
):
    """Of one degree less than the order, over steps of any lengths that do not differ much.

    Steps are short, so that nothing fades; the start, of lower order, is not looked at.
    """
    sde = Polynomial(torch.tensor(coefficients[:order]), damping, torch.tensor([1.0, 2.0, 0.5]))
    ts = torch.tensor([0.0, *widths]).cumsum(0)
    solver = ExponentialMultistep(order=order, corrected=corrected)
    states = [torch.zeros(1, 3), *solver.path(sde, torch.zeros(1, 3), ts, Noise())]
    # a state is corrected within the step after it
    before = states[-2] if not corrected else corrected_state(solver, sde, ts)
    shift = states[-1] - decay(sde, ts, before) * before
    fade = 1e-9 if order < 3 else 2e-3 * damping**2
    close = {"rtol": 1e-9, "atol": fade * max(map(abs, coefficients)) + 1e-12}
    torch.testing.assert_close(shift[0], sde.exact(float(ts[-2]), float(ts[-1])), **close)


def corrected_state(solver, sde, ts):
    """The second last state, with what the last step corrects of it."""
    *_, (y, memory) = solver.walk(sde, torch.zeros(1, 3), ts[:-1], Noise())
    (field,) = sde.at(ts[-2:-1].unsqueeze(-1), y).fields()
    forcings = [field.forcing(y), *memory.forcings]
    return y + sum(w * v for w, v in zip(memory.weights.correction, forcings, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("order", "corrected"), [(1, False), (2, False), (3, False), (3, True)])
def test_what_is_done_to_a_state_between_steps_stays_done(order, corrected, dtype):
    """As by a Langevin corrector: an end that is corrected for its own error keeps it."""
    sde = Polynomial(torch.tensor([0.3, -0.2]), 0.5, torch.tensor([1.0, 2.0, 0.5]))
    ts = torch.tensor([0.0, 0.1, 0.2, 0.31, 0.4, 0.5])
    solver, moved = (
        ExponentialMultistep(order=order, corrected=corrected),
        torch.ones(1, 3).to(dtype),
    )

    def end(place):
        y, memory = torch.zeros(1, 3, dtype=dtype), None
        for i in range(len(ts) - 1):
            if i == place:
                y = y + moved
            *_, (y, memory) = solver.walk(sde, y, ts[i : i + 2], Noise(), memory)
        return y

    for place in range(1, 5):
        rest = (-0.5 * (ts[-1] - ts[place]) * sde.pace).exp().to(dtype)
        torch.testing.assert_close(end(place) - end(None), (rest * moved))


@pytest.mark.parametrize("order", [2, 3])
def test_steps_remember_those_of_the_stage_before(order):
    """A walk in two parts has the weights of the whole."""
    equation, y = reverse([1.0, 0.7], 0.5), torch.zeros(1, 2)
    solver = ExponentialMultistep(order=order)
    ts = torch.tensor([-0.9, -0.8, -0.72, -0.64, -0.55])
    whole = list(solver.prepare(equation, ts, y))
    *_, (_, memory) = solver.walk(equation, y, ts[:3], Noise())
    rest = list(solver.prepare(equation, ts[2:], y, memory))
    for one, other in zip(whole[2:], rest, strict=True):
        for kind in ("terms", "lengths", "correction"):
            pairs = zip(getattr(one.weights, kind), getattr(other.weights, kind), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def reverse(speeds, eta):
    sde = DiagonalSDE(VP(), Identity((2,)), speeds)
    return ReverseSDE(Gaussian(sde, torch.zeros(2), torch.eye(2)), eta)


def test_a_component_that_stood_still_starts_anew():
    """No weight of its past is used, nor is anything infinite."""
    ts, equation = torch.tensor([-1.0, -0.8, -0.6, -1 / 3, -0.25]), reverse([1.0, 3.0], 0.0)
    for order in (2, 3):
        steps = list(ExponentialMultistep(order=order).prepare(equation, ts, torch.zeros(1, 2)))
        terms = torch.stack([torch.stack(list(step.weights.terms)) for step in steps])
        gain = torch.stack([step.gain for step in steps])
        assert torch.isfinite(terms).all()
        torch.testing.assert_close(terms.sum(1), gain)  # corrections are differences of forcings
        assert (terms[-1, 1:, 1] == 0).all()
        assert (terms[-1, 1:, 0] != 0).any()


def test_the_third_order_is_corrected_unless_told_otherwise():
    assert ExponentialMultistep() == ExponentialMultistep(order=3, corrected=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_have_derivatives_however_long_a_step_is(dtype):
    """``dv_1/dx = v_2 - v_1^2``; steps to clean data are infinitely long."""
    x = torch.tensor([-1e4, -100.0, -2.0, 0.1, 3.0, 100.0, 1e30, torch.inf], dtype=dtype)
    x.requires_grad_()
    first, second = moments(x)
    (slope,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(slope, (second - first**2).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("damping", "before", "step", "used"),
    [
        (0.1, 0.3, 0.3, 0.3),
        (0.1, 0.02, 0.3, 0.15),  # half of a short step at least
        (2.0, 0.5, 0.4, 0.5),  # a long one: all of it, times its damping over 0.5 until then
        (1.0, 0.1, 0.3, 0.6 * 0.3),
        (2.0, 0.4, 2.0, 2.0),
        (2.0, 2.0, 2.0, 2.0),
        (2.0, 3.0, 2.0, 3.0),
    ],
)
def test_a_slope_is_not_taken_from_a_step_much_shorter(damping, before, step, used, dtype):
    """It is ``v_1 h`` over the step before, or over as much as the longer step allows."""
    sde = Polynomial(torch.zeros(1), damping, torch.ones(2))
    ts = torch.tensor([0.0, before, before + step])
    solver = ExponentialMultistep(order=2, corrected=False)
    *_, last = solver.prepare(sde, ts, torch.zeros(1, 2, dtype=dtype))
    first, _ = moments(torch.tensor(damping * step))
    slope = (first * step / used).expand(2)
    gain = -math.expm1(-damping * step) / damping
    for found, wanted in zip(last.weights.terms, (1 + slope, -slope), strict=True):
        torch.testing.assert_close(found, (gain * wanted).to(dtype))


@pytest.mark.parametrize("schedule", [VP(), LogLinear(), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("corrected", [True, False])
def test_long_steps_make_little_of_curvature(schedule, corrected):
    """What three forcings say of it holds between them."""
    sde = DiagonalSDE(schedule, Identity((2,)))
    model = Gaussian(sde, torch.tensor([0.5, -1.0]), torch.diag(torch.tensor([0.3, 1.5])))

    def samples(steps, **options):
        generator = torch.Generator().manual_seed(0)
        solver = ExponentialMultistep(steps, **options)
        return solver.sample(model, (64,), generator=generator, dtype=torch.float64)

    exact = samples(200)
    for steps in (3, 4, 6):
        errors = [
            (samples(steps, **options) - exact).square().mean()
            for options in ({"order": 3, "corrected": corrected}, {"order": 2})
        ]
        assert errors[0] < 3 * errors[1]
