import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import sdes

from estimators import Denoising, ResidualMLP
from scoresde import VP, DiagonalSDE, Identity
from scoresde.objectives.time_distribution import TimeDistribution
from scoresde.sampling import grid as grids
from scoresde.sampling.grid import GRIDS
from scoresde.testing import DeviceCalls


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", GRIDS)
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


KNOTS = torch.tensor([1.0, 0.6, 0.25, 0.2], dtype=torch.float64)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@every_dtype
def test_numbers_of_any_shape_pick_an_interval_each(dtype):
    """Also 1, to which uniform numbers may have been rounded."""
    u = torch.tensor([[0.0, 1 / 6, 1 / 3], [0.5, 5 / 6, 1.0]], dtype=dtype)
    t, density = TimeDistribution(KNOTS)(u)
    assert t.dtype == density.dtype == dtype
    wanted = torch.tensor([[0.2, 0.225, 0.25], [0.425, 0.8, 1.0]], dtype=dtype)
    torch.testing.assert_close(t, wanted)
    widths = torch.tensor([[0.05, 0.05, 0.35], [0.35, 0.4, 0.4]], dtype=dtype)
    torch.testing.assert_close(density, 1 / (3 * widths))


@every_dtype
def test_the_grid_goes_to_a_device_once(dtype):
    draw, u = TimeDistribution(KNOTS), torch.rand(5, dtype=dtype, device="meta")
    counts = []
    for _ in range(3):
        with DeviceCalls() as calls:
            t, density = draw(u)
        counts.append(calls.queued.total())
        assert (t.device, density.device, t.dtype) == (u.device, u.device, dtype)
        assert not calls.reads
        assert not calls.copies
    assert counts == [1, 0, 0]


@pytest.mark.parametrize("wrong", [None, [1.0], [0.1, 1.0]])
def test_a_grid_of_ones_own_says_decreasing_times(wrong):
    sde = DiagonalSDE(VP(), Identity((2,)))
    given = wrong if wrong is None else torch.tensor(wrong)
    with pytest.raises((TypeError, ValueError), match=r"^times: expected"):
        Denoising(sde, ResidualMLP((2,), 4, 1), times=lambda sde, steps: given)
