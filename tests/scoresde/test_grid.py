import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import every_schedule, sdes, uniform_sdes

from scoresde import VP, DiagonalSDE, Identity
from scoresde import grid as grids
from scoresde.grid import GRIDS, TimeDistribution

pytestmark = pytest.mark.usefixtures("float64")

every_grid = pytest.mark.parametrize("name", GRIDS)


@every_grid
@every_schedule
@given(data=st.data(), steps=st.integers(1, 40))
def test_a_grid_decreases_from_end_to_start_in_the_steps_asked_for(kind, name, data, steps):
    sde = data.draw(sdes(kind))
    times = grids.grid(name)(sde, steps)
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert times[0] == sde.T
    assert times[-1] == sde.eps
    assert (times.diff() < 0).all()


@every_grid
@given(data=st.data())
def test_every_breakpoint_is_a_time_of_the_grid(name, data):
    sde = data.draw(sdes())
    kinks = sde.breakpoints()
    assert set(kinks) <= set(grids.grid(name)(sde, len(kinks) + 3).tolist())


COORDINATES = {
    "uniform_time": lambda sde, t: t.squeeze(-1),
    "log_snr": lambda sde, t: sde.level(t),
    "karras": lambda sde, t: (sde.level(t) / 7).exp(),
    "central": lambda sde, t: ((sde.level(t) + 0.75) / 2).arctan(),
}


@every_grid
@given(sde=uniform_sdes(), steps=st.integers(3, 20))
def test_steps_are_equal_in_the_grids_coordinate(name, sde, steps):
    times = grids.grid(name)(sde, steps)
    value = COORDINATES[name](sde, times.unsqueeze(-1))
    span = value[0] - value[-1]
    torch.testing.assert_close(value.diff() * steps / span, -torch.ones(steps), rtol=0, atol=1e-3)


@every_grid
@given(data=st.data())
def test_random_times_have_the_density_they_report(name, data):
    """``dt/du = 1/density``, and the quantile function runs through the whole range."""
    sde = data.draw(sdes())
    draw = TimeDistribution(grids.grid(name)(sde, 16))
    u = (torch.arange(160) + 0.5) / 160
    (t, density), (slope, _) = torch.func.jvp(draw, (u,), (torch.ones_like(u),))
    torch.testing.assert_close(slope, 1 / density, rtol=1e-9, atol=0)
    assert (t.diff() > 0).all()
    assert draw(torch.zeros(1))[0] == sde.eps
    assert draw(torch.ones(1))[0] == pytest.approx(sde.T)
    # the mean of 1/density over the drawn times is the length of the range
    torch.testing.assert_close((1 / density).mean(), torch.tensor(sde.T - sde.eps))


sde = DiagonalSDE(VP(), Identity((2,)))


def test_a_function_of_ones_own_passes_through():
    def mine(sde, steps):
        return torch.tensor([1.0, 0.5, 0.1])

    assert grids.grid(mine) is mine


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'log_snr'"):
        grids.grid("log_snt")


@pytest.mark.parametrize(
    "times", [[1.0], [0.1, 1.0], [1.0, 1.0, 0.1], [2.0, 0.1], [1.0, -0.1], [[1.0, 0.1]]]
)
def test_times_that_do_not_decrease_within_the_range_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        grids.check(sde, torch.tensor(times))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps"):
        grids.log_snr(sde, 0)
