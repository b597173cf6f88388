"""Steps that end where rates jump."""

import pytest
import torch

from scoresde import VP, DiagonalSDE, Identity
from scoresde.sampling.discontinuities import TimeWarp, at_discontinuity, one_sided

pytestmark = pytest.mark.usefixtures("float64")


def test_progress_runs_along_a_grid_and_keeps_off_kinks():
    times = torch.tensor([-1.0, -0.5, -0.4])
    track = TimeWarp(times, (False, True), 1e-7)
    found = track(torch.tensor([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(
        found, torch.tensor([-1.0, -0.75, -0.5, -0.4 - 6.4e-7]), rtol=0, atol=1e-9
    )
    assert found[-1] < -0.4
    start = TimeWarp(times, (True, False), 1e-7)(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(start, torch.tensor([-1.0 + 1.6e-6, -0.4]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_keep_off_a_jump_by_some_roundings(dtype):
    """By more than one, which arithmetic may lose, and by no more than a few of them."""
    rounding, ts = torch.finfo(dtype).eps, torch.tensor([0.1, 0.5, 1.0])
    starts, ends = one_sided(ts, torch.tensor([False, True, False]), rounding)
    assert starts[0] == 0.1
    assert ends[1] == 1.0
    for gap in (starts[1] - 0.5, 0.5 - ends[0]):
        assert 8 * rounding / 2 < gap < 32 * rounding / 2


def test_only_times_that_are_a_jump_but_for_rounding_are_at_it():
    """Others are taken as they are, however close."""
    sde = DiagonalSDE(VP(), Identity((2,), {"a": 1, "b": 1}), [1.0, 2.0])
    near = 0.5 * (1 + torch.tensor([-1e-7, -1e-15, 0.0, 1e-15, 1e-7]))
    assert at_discontinuity(sde, near).tolist() == [False, True, True, True, False]
