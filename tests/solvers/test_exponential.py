"""The weights of exponential multistep solvers, one by one."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.integrate import quad

from scoresde import SDE, VP, DiagonalSDE, Identity, Noise
from scoresde.sde import Propagator
from solvers import ExponentialMultistep
from solvers.exponential import _Past, moments

pytestmark = pytest.mark.usefixtures("float64")


@example(1.2)
@example(-1.2)
@given(x=st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1e-9, 0.2999, 0.3001, -0.3001])))
def test_moments_of_an_exponential_weight(x):
    found = moments(torch.tensor(x))
    mass = quad(lambda v: math.exp(x * (v - 1)), 0, 1)[0]
    for power, value in enumerate(found, start=1):
        wanted = quad(lambda v: v**power * math.exp(x * (v - 1)), 0, 1)[0] / mass  # noqa: B023
        assert float(value) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_keep_their_digits(dtype):
    x = torch.cat([torch.linspace(-8, 8, 999), torch.logspace(-9, 0, 99)])
    for found, wanted in zip(moments(x.to(dtype)), moments(x), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


class Polynomial(SDE):
    """``y' = F(t) - k y``, component by component, with ``F`` a polynomial in own time."""

    def __init__(self, coefficients, damping, pace):
        super().__init__((len(pace),))
        self.coefficients, self.damping, self.pace = coefficients, damping, pace

    def f(self, t, y):
        raise NotImplementedError

    g = f

    def forcing(self, t, y):
        u = t * self.pace
        return sum(c * u**i for i, c in enumerate(self.coefficients)).expand_as(y)

    def propagator(self, t, s, like):
        h, k = (s - t) * self.pace, self.damping
        gain = h if k == 0 else -torch.expm1(-k * h) / k
        return Propagator((-k * h).exp(), gain, h, k * h, None)

    def exact(self, start, end):
        """``int F(u) e^(-k (end - u)) du`` over each component's own time."""
        parts = []
        for p in self.pace.tolist():

            def integrand(u, stop=end * p):
                force = sum(float(c) * u**i for i, c in enumerate(self.coefficients))
                return force * math.exp(-self.damping * (stop - u))

            parts.append(quad(integrand, start * p, end * p, epsabs=1e-13)[0])
        return torch.tensor(parts)


@pytest.mark.parametrize("damping", [0.0, 0.7, -0.4])
@pytest.mark.parametrize(
    ("order", "corrected"), [(1, False), (2, False), (2, True), (3, False), (3, True)]
)
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
    decay = sde.propagator(ts[-2:-1], ts[-1:], states[-1]).decay
    # a state is corrected within the step after it
    shift = states[-1] - decay * (states[-2] if not corrected else corrected_state(solver, sde, ts))
    fade = 1e-9 if order < 3 else 2e-3 * damping**2
    close = {"rtol": 1e-9, "atol": fade * max(map(abs, coefficients)) + 1e-12}
    torch.testing.assert_close(shift[0], sde.exact(float(ts[-2]), float(ts[-1])), **close)


def corrected_state(solver, sde, ts):
    """The second last state, as the last step has seen it."""
    *_, (_, memory) = solver.walk(sde, torch.zeros(1, 3), ts, Noise())
    return memory.base / sde.propagator(ts[-2:-1], ts[-1:], memory.base).decay


@pytest.mark.parametrize("order", [2, 3])
def test_steps_remember_those_of_the_stage_before(order):
    """A walk in two parts has the weights of the whole."""
    sde, y = DiagonalSDE(VP(), Identity((2,)), [1.0, 0.7]), torch.zeros(1, 2)
    solver = ExponentialMultistep(order=order)
    ts = torch.tensor([0.9, 0.8, 0.72, 0.64, 0.55]).unsqueeze(-1)
    ahead = sde.marginal_propagator(ts[:-1], ts[1:], y, 0.5)
    smooth = torch.zeros(4, dtype=torch.bool)
    whole = list(solver.weights(ahead, smooth, y, None))
    first = Propagator(*(v[:2] for v in ahead))
    *_, before = solver.weights(first, smooth[:2], y, None)
    memory = _Past([], before.lengths, y, [])
    rest = solver.weights(Propagator(*(v[2:] for v in ahead)), smooth[2:], y, memory)
    for one, other in zip(whole[2:], rest, strict=True):
        for kind in ("opening", "closing", "lengths"):
            for a, b in zip(getattr(one, kind), getattr(other, kind), strict=True):
                torch.testing.assert_close(a, b)


def test_a_component_that_stood_still_starts_anew():
    """No weight of its past is used, nor is anything infinite."""
    sde = DiagonalSDE(VP(), Identity((2,)), [1.0, 3.0])
    ts = torch.tensor([1.0, 0.8, 0.6, 1 / 3, 0.25]).unsqueeze(-1)
    y = torch.zeros(1, 2)
    ahead = sde.marginal_propagator(ts[:-1], ts[1:], y, 0.0)
    kinks = torch.tensor([False, False, False, True])
    for order in (2, 3):
        rows = list(ExponentialMultistep(order=order).weights(ahead, kinks, y, None))
        opening = torch.stack([torch.stack(list(row.opening)) for row in rows])
        closing = torch.stack([torch.stack(list(row.closing)) for row in rows])
        assert torch.isfinite(opening).all()
        assert torch.isfinite(closing).all()
        torch.testing.assert_close(opening.sum(1), ahead.gain)
        torch.testing.assert_close(closing.sum(1), ahead.gain)
        assert (opening[-1, 1:, 1] == 0).all()
        assert (opening[-1, 1:, 0] != 0).any()


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
