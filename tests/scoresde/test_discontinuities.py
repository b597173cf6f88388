"""Steps that end where rates jump."""

import pytest
import torch

from scoresde.discontinuities import TimeWarp

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
