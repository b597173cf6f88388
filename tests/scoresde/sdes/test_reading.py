import pytest
import torch

from scoresde import VP, DiagonalSDE, Identity, LogLinear
from scoresde.sdes.reading import Reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("schedule", [VP(), LogLinear()], ids=["VP", "LogLinear"])
def test_some_of_some_of_the_times_are_those(schedule, dtype):
    sde = DiagonalSDE(schedule, Identity((3,), {"a": 1, "b": 2}), [1.0, 2.0], [1.0, 3.0])
    t = torch.tensor([[0.1], [0.3], [0.6], [1.0]], dtype=dtype)
    names = ("alpha", "sigma", "f", "g2", "log_snr", "noise_levels", "noise_level")
    for dim in (1, 3):
        like = torch.empty(2, dim, dtype=dtype)
        some, alone = sde.at(t, like)[1:][[0, 2]], sde.at(t[[1, 3]], like)
        for name in names:
            assert torch.equal(getattr(some, name), getattr(alone, name))


def test_rates_are_found_once_and_only_where_they_are_asked_for():
    calls = []

    def rates():
        calls.append(1)
        return torch.arange(3.0), torch.arange(3.0) ** 2, torch.arange(3.0) - 1

    reading = Reading(*torch.zeros(3, 3), rates)
    assert not calls
    assert reading.f.tolist() == [0.0, 1.0, 2.0]
    assert reading.g2.tolist() == [0.0, 1.0, 4.0]
    assert reading.f_by_g2.tolist() == [-1.0, 0.0, 1.0]
    assert len(calls) == 1


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_times_one_by_one_are_as_they_were_given(batch):
    """Every sample's own; that of all of them as a number."""
    sde, like = DiagonalSDE(VP(), Identity((3,))), torch.empty(batch, 3)
    t = torch.linspace(0.1, 1, 2 * batch).reshape(2, batch, 1)
    for found, given in zip(sde.at(t, like).times, t, strict=True):
        assert found.shape == (() if batch == 1 else (batch, 1))
        assert torch.equal(found.reshape(batch, 1), given)
