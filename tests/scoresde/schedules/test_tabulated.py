"""A log-SNR through the steps of a discrete model."""

import pytest
import torch

from scoresde import Tabulated

DDPM = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
KNOTS = [7.0, 3.0, 2.0, -1.0, -4.0, -9.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_have_the_noise_that_they_are_given(dtype):
    schedule = Tabulated.of(DDPM)
    t = torch.arange(1, 1001, dtype=dtype) / 1000
    digits = 1e-12 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(schedule.alpha(t) ** 2, DDPM.to(dtype), rtol=digits, atol=0)
    torch.testing.assert_close(schedule.sigma(t) ** 2, (1 - DDPM).to(dtype), rtol=digits, atol=0)
    assert (schedule.eps, schedule.T) == (0.001, 1.0)


def test_the_log_snr_falls_smoothly_between_steps():
    schedule = Tabulated(KNOTS)
    t = torch.linspace(schedule.eps, 1, 5001, dtype=torch.float64)
    snr = schedule.log_snr(t)
    assert (snr.diff() < 0).all()
    slope = snr.diff() * 5000 / (1 - schedule.eps)
    # the second derivative is bounded: neither steps nor kinks
    assert slope.diff().abs().max() < 0.3
    middle = (t[1:] + t[:-1]) / 2
    _, g2 = schedule.rates(middle)
    torch.testing.assert_close(-g2 / schedule.sigma(middle) ** 2, slope, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_noise_level_is_that_of_a_step(dtype):
    schedule = Tabulated.of(DDPM)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    levels = (schedule.log_snr(t) / -2).to(dtype)
    assert torch.equal(schedule.step(levels), torch.arange(1000).to(dtype))
    between = (levels[10:12].mean().reshape(1), levels[:1] - 3, levels[-1:] + 3)
    found = [float(schedule.step(v)) for v in between]
    assert found == pytest.approx([10.5, 0.0, 999.0], abs=1e-2)


def test_tables_that_are_none():
    for bad in ([1.0], [1.0, 2.0], [1.0, 1.0], [1.0, float("-inf")]):
        with pytest.raises(ValueError, match="log_snr"):
            Tabulated(bad)
    with pytest.raises(ValueError, match="alphas_cumprod: expected numbers between 0 and 1"):
        Tabulated.of(torch.tensor([0.9, 0.0]))
