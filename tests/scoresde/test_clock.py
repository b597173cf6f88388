import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from scoresde import Clock

pytestmark = pytest.mark.usefixtures("float64")

speeds = st.lists(st.floats(0.1, 5).map(lambda v: round(v, 3)), min_size=1, max_size=4)


@given(speeds, st.floats(0, 1))
def test_a_clock_runs_at_its_speed_and_stops_at_one(speeds, u):
    tau = Clock(speeds)(torch.tensor([u]))
    torch.testing.assert_close(tau, torch.tensor([min(1.0, s * u) for s in speeds]))


@given(speeds, st.floats(0.01, 0.99))
def test_the_rate_is_the_derivative_of_the_reading(speeds, u):
    assume(all(abs(s * u - 1) > 1e-3 for s in speeds))
    clock, t = Clock(speeds), torch.tensor([u])
    slope = torch.func.jvp(clock, (t,), (torch.ones(1),))[1]
    torch.testing.assert_close(clock.rate(t).expand_as(slope), slope)


@given(speeds)
def test_breakpoints_are_the_kinks(speeds):
    clock = Clock(speeds)
    kinks = clock.breakpoints()
    assert kinks == sorted({1 / s for s in speeds if s > 1})
    for kink in kinks:
        before, after = (clock.rate(torch.tensor([kink * (1 + e)])) for e in (-1e-6, 1e-6))
        assert (before != after).any()


def test_a_clock_runs_until_the_moment_it_stops():
    assert torch.equal(Clock([2.0, 1.0]).rate(torch.tensor([0.5])), torch.tensor([2.0, 1.0]))


def test_readings_have_the_dtype_of_times():
    clock, u = Clock([2.0, 1.0]), torch.tensor([0.3], dtype=torch.float32)
    assert clock(u).dtype == clock.rate(u).dtype == torch.float32


def test_a_clock_of_speed_zero_never_runs():
    clock = Clock([0.0, 1.0])
    u = torch.linspace(0, 1, 5).unsqueeze(-1)
    assert torch.equal(clock(u)[:, 0], torch.zeros(5))
    assert torch.equal(clock.rate(u)[:, 0], torch.zeros(5))
    assert clock.breakpoints() == []


@pytest.mark.parametrize("bad", [-1.0, [1.0, -0.1], float("nan"), float("inf"), []])
def test_impossible_speeds_are_refused(bad):
    with pytest.raises(ValueError, match="speeds"):
        Clock(bad)
