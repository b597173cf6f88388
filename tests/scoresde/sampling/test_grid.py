import pytest
import readings
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import per_schedule, sdes, uniform_sdes

from estimators import Denoising, ResidualMLP
from scoresde import EDM, VP, DiagonalSDE, Identity
from scoresde.sampling import grid as grids
from scoresde.sampling.grid import GRIDS
from solvers import DDIM

pytestmark = pytest.mark.usefixtures("float64")

every_grid = pytest.mark.parametrize("name", GRIDS)


@every_grid
@per_schedule(4)
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
    breakpoints = sde.breakpoints()
    for steps in (len(breakpoints) + 1, len(breakpoints) + 3):
        assert set(breakpoints) <= set(grids.grid(name)(sde, steps).tolist())


COORDINATES = {
    "uniform_time": lambda sde, t: t.squeeze(-1),
    "root_time": lambda sde, t: t.squeeze(-1).sqrt(),
    "log_snr": lambda sde, t: readings.level(sde, t),
    "karras": lambda sde, t: (readings.level(sde, t) / 7).exp(),
    "arctan_log_snr": lambda sde, t: ((readings.level(sde, t) + 0.75) / 2).arctan(),
    "wide_arctan_log_snr": lambda sde, t: ((readings.level(sde, t) + 1) / 3).arctan(),
    "log_normal": lambda sde, t: ((readings.level(sde, t) + 1.2) / 1.2 / 2**0.5).erf(),
}


@every_grid
@given(sde=uniform_sdes(), steps=st.integers(3, 20))
def test_steps_are_equal_in_the_grids_coordinate(name, sde, steps):
    times = grids.grid(name)(sde, steps)
    value = COORDINATES[name](sde, times.unsqueeze(-1))
    span = value[0] - value[-1]
    torch.testing.assert_close(value.diff() * steps / span, -torch.ones(steps), rtol=0, atol=1e-3)


sde = DiagonalSDE(VP(), Identity((2,)))


def test_a_function_of_ones_own_passes_through():
    def mine(sde, steps):
        return torch.tensor([1.0, 0.5, 0.1])

    assert grids.grid(mine) is mine


@pytest.mark.parametrize("kind", [list, tuple])
def test_times_that_are_known_are_a_grid(kind):
    known = kind([1.0, 0.3, 0.01])
    solver = DDIM(2, grid=known)
    assert solver.times(sde).tolist() == [1.0, 0.3, 0.01]
    assert solver == DDIM(2, grid=(1.0, 0.3, 0.01)) != DDIM(2, grid=(1.0, 0.2, 0.01))
    with pytest.raises(ValueError, match="steps: expected 2, as many as lie between the times"):
        DDIM(3, grid=known).times(sde)
    with pytest.raises(TypeError, match="grid: expected a number or a list of numbers"):
        DDIM(3, grid=kind("ab"))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'log_snr'"):
        grids.grid("log_snt")


@pytest.mark.parametrize(
    "times", [[1.0], [0.1, 1.0], [1.0, 1.0, 0.1], [2.0, 0.1], [1.0, -0.1], [[1.0, 0.1]]]
)
def test_times_that_do_not_decrease_within_the_range_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        grids.check(sde, torch.tensor(times))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_may_be_all_of_the_range(dtype):
    found = grids.check(sde, torch.tensor([1.0, 0.5, 0.0], dtype=dtype))
    assert found.dtype == torch.float64
    assert found.tolist() == [1.0, 0.5, 0.0]


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps"):
        grids.log_snr(sde, 0)


@given(data=st.data())
def test_fractions_divide_a_step_by_noise_level(data):
    sde = data.draw(uniform_sdes())
    times = grids.log_snr(sde, 6).flip(0)
    parts = grids.fractions(sde, times[:-1], times[1:], (0.25, 0.5))
    levels = [readings.level(sde, t.unsqueeze(-1)) for t in (times[:-1], *parts, times[1:])]
    span = levels[-1] - levels[0]
    for level, part in zip(levels[1:3], (0.25, 0.5), strict=True):
        torch.testing.assert_close(
            (level - levels[0]) / span, torch.full((6,), part), rtol=0, atol=0.02
        )


@given(
    sde=st.one_of(uniform_sdes(), st.just(DiagonalSDE(EDM(), Identity((2,))))),
    more=st.floats(0.05, 0.5),
    share=st.sampled_from([0.0, 0.3]),
)
def test_a_higher_level_is_met_where_times_are_small_beside_the_last(sde, more, share):
    t = torch.tensor(sde.eps + share * (sde.T - sde.eps))
    found = grids.time_at_level(sde, t, more, sde.T)
    top = float(readings.level(sde, torch.tensor([[sde.T]])))
    wanted = min(float(readings.level(sde, t.reshape(1, 1))) + more, top)
    met = float(readings.level(sde, found.reshape(1, 1)))
    assert met == pytest.approx(wanted, abs=0.02 * more)


def test_times_have_the_same_digits_whatever_the_default_dtype():
    sde = DiagonalSDE(VP(), Identity((2,)), [1.0, 2.0])
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)

    def found():
        times = [grid(sde, 5) for grid in GRIDS.values()]
        return [
            *times,
            *grids.fractions(sde, t[:1], t[1:], (0.4,)),
            grids.time_at_level(sde, t[0], 1, 1),
        ]

    wide = found()
    torch.set_default_dtype(torch.float32)
    try:
        narrow = found()
    finally:
        torch.set_default_dtype(torch.float64)
    for a, b in zip(wide, narrow, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrong", [float, 3, None])
def test_what_is_neither_a_name_nor_a_function(wrong):
    with pytest.raises(TypeError, match=r"^grid: expected a name or a function, got"):
        DDIM(3, grid=wrong)


@pytest.mark.parametrize("wrong", [len, lambda sde: torch.ones(2)])
def test_what_does_not_take_an_sde_and_steps(wrong):
    sde, network = DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 4, 1)
    with pytest.raises(TypeError, match=r"^grid: expected a function \(sde, steps\), got"):
        DDIM(3, grid=wrong)
    with pytest.raises(TypeError, match=r"^times: expected a function \(sde, steps\), got"):
        Denoising(sde, network, times=wrong)
