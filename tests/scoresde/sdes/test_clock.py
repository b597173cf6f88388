import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from scoresde import VP, Clock, DiagonalSDE, Identity

pytestmark = pytest.mark.usefixtures("float64")

speeds = st.lists(st.floats(0.1, 5).map(lambda v: round(v, 3)), min_size=1, max_size=4)
FIRST = 0.01
"""The first time of an SDE."""


@st.composite
def clocks(draw):
    """Some delayed, some not, some that never run; and a time."""
    pairs = st.tuples(st.sampled_from([0.0, 0.4, 1.0, 1.7, 3.0]), st.sampled_from([0.0, 0.2, 0.5]))
    pairs = draw(st.lists(pairs, min_size=1, max_size=4))
    return *map(list, zip(*pairs, strict=True)), draw(st.floats(0, 1))


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


@given(clocks())
def test_a_delayed_clock_waits_at_the_first_time(drawn):
    speeds, delays, u = drawn
    tau = Clock(speeds, delays)(torch.tensor([u]), FIRST)
    for found, s, d in zip(tau.tolist(), speeds, delays, strict=True):
        waits = min(s * u, s * FIRST, FIRST)
        assert found == pytest.approx(min(max(s * (u - d), waits), 1.0), abs=1e-15)


@given(clocks())
def test_the_rate_of_a_delayed_clock_is_the_derivative_of_its_reading(drawn):
    speeds, delays, u = drawn
    clock, t = Clock(speeds, delays), torch.tensor([u])
    breakpoints = [*clock.breakpoints(FIRST), *(FIRST / max(s, 1.0) for s in speeds), 1.0]
    assume(u > 1e-3)
    assume(all(abs(u - breakpoint) > 1e-6 for breakpoint in breakpoints))
    slope = torch.func.jvp(lambda t: clock(t, FIRST), (t,), (torch.ones(1),))[1]
    rate = clock.rate(t, FIRST).expand_as(slope)
    torch.testing.assert_close(rate, slope)


@given(clocks())
def test_breakpoints_of_delayed_clocks_are_all_their_kinks(drawn):
    speeds, delays, _ = drawn
    clock = Clock(speeds, delays)
    breakpoints = clock.breakpoints(FIRST)
    assert breakpoints == sorted(breakpoints)
    edges = torch.tensor([FIRST, *breakpoints, 1.0]).unsqueeze(-1)
    inside = torch.linspace(0.01, 0.99, 7).reshape(-1, 1, 1) * edges.diff(dim=0) + edges[:-1]
    rates = clock.rate(inside, FIRST)
    assert (rates == rates[:1]).all()
    for before, after in zip(rates[0], rates[0, 1:], strict=False):
        assert (before != after).any()


class Operations(TorchDispatchMode):
    """What torch is asked for."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@given(speeds, st.floats(0, 1))
def test_no_delay_changes_nothing(speeds, u):
    """To the last bit, in what is saved, and in what is computed."""
    t = torch.tensor([u])
    plain, clocks = Clock(speeds), [Clock(speeds, 0.0), Clock(speeds, [0.0] * len(speeds))]
    for clock in clocks:
        for ask in (lambda c: c(t, FIRST), lambda c: c.rate(t, FIRST)):
            asked = []
            for one in (plain, clock):
                with Operations() as seen:
                    value = ask(one)
                asked.append((value, seen.names))
            (wanted, names), (found, others) = asked
            assert torch.equal(found, wanted)
            assert names == others
        assert len(names) < 5
        assert clock.breakpoints(FIRST) == plain.breakpoints()
        assert clock.state_dict().keys() == plain.state_dict().keys() == {"speeds"}
    # beside clocks that are delayed, too
    both = Clock([*speeds, 2.0], [*[0.0] * len(speeds), 0.3])
    for ask in (lambda c: c(t, FIRST), lambda c: c.rate(t, FIRST)):
        assert torch.equal(ask(both)[: len(speeds)], ask(plain))


@given(speeds)
def test_breakpoints_are_the_kinks(speeds):
    clock = Clock(speeds)
    breakpoints = clock.breakpoints()
    assert breakpoints == sorted({1 / s for s in speeds if s > 1})
    for breakpoint in breakpoints:
        before, after = (clock.rate(torch.tensor([breakpoint * (1 + e)])) for e in (-1e-6, 1e-6))
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


@pytest.mark.parametrize("bad", [-0.1, 1.0, [0.0, 1.5], float("nan"), float("inf"), []])
def test_impossible_delays_are_refused(bad):
    with pytest.raises(ValueError, match="delays"):
        Clock([1.0, 2.0], bad)


def test_speeds_are_those_of_every_event():
    with pytest.raises(ValueError, match=r"^speeds: expected one axis at most"):
        DiagonalSDE(VP(), Identity((2,)), torch.ones(3, 2))


def test_as_many_delays_as_speeds():
    with pytest.raises(ValueError, match="delays: expected one, or as many as speeds: 2, got 3"):
        Clock([1.0, 2.0], [0.1, 0.2, 0.3])
    assert Clock(2.0, [0.1, 0.2, 0.3])(torch.tensor([0.4])).shape == (3,)


def test_learned_delays_have_gradients():
    delays = torch.nn.Parameter(torch.zeros(2))
    Clock(1.0, delays)(torch.tensor([0.5]), FIRST).sum().backward()
    assert delays.grad.tolist() == [-1.0, -1.0]
