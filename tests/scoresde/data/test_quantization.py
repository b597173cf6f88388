"""Levels to densities and back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import bits_per_dim, dequantize, quantize


def seeded(seed):
    return torch.Generator().manual_seed(seed)


BINS = st.integers(2, 2**16)


@given(bins=BINS, seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_quantize_inverts_dequantize(bins, seed):
    values = torch.randint(bins, (20_000,), generator=seeded(seed))
    x = dequantize(values, bins, seeded(seed))
    assert x.abs().max() <= 1
    assert torch.equal(quantize(x, bins), values)


@given(bins=BINS)
@settings(deadline=None)
@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_cells_survive_rounding(bins, u):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u))
        values = torch.arange(bins)
        assert torch.equal(quantize(dequantize(values, bins), bins), values)


@pytest.mark.parametrize("bins", [2, 17, 256])
def test_dequantized_values_are_uniform_on_their_cells(bins):
    values = torch.arange(bins).repeat(100_000 // bins)
    x = dequantize(values.to(torch.int32), bins, seeded(0)).double()
    u = (x + 1) * bins / 2 - values
    assert torch.equal(dequantize(values, bins, seeded(0)), x.float())
    # Kolmogorov-Smirnov, at about 1 in 10^5.
    grid = torch.linspace(0, 1, len(u), dtype=torch.float64)
    assert (u.sort().values - grid).abs().max() < 2.5 / math.sqrt(len(u))


def test_quantize_clamps_and_checks():
    x = torch.tensor([-math.inf, -1.0, 0.0, 1.0, math.inf])
    assert quantize(x, 256).tolist() == [0, 0, 128, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        quantize(torch.tensor([math.nan]), 256)
    with pytest.raises(TypeError, match="floating"):
        quantize(torch.tensor([1]), 256)
    for call in (quantize, dequantize):
        with pytest.raises(ValueError, match="bins"):
            call(x, 1)


@given(bins=BINS, dim=st.integers(1, 4096))
@settings(deadline=None)
def test_a_uniform_density_costs_log2_levels(bins, dim):
    log_prob = torch.full((2,), -dim * math.log(2), dtype=torch.float64)
    bits = bits_per_dim(log_prob, dim, bins)
    assert bits.tolist() == pytest.approx([math.log2(bins)] * 2)


@pytest.mark.parametrize("bins", [2, 5, 16])
def test_bits_bound_the_cost_of_the_levels(bins):
    """For a density that is constant on cells the bound is the entropy itself."""
    p = torch.rand(bins, generator=seeded(1)).double().softmax(0)
    values = torch.multinomial(p, 200_000, replacement=True, generator=seeded(2))
    x = dequantize(values, bins, seeded(3))
    log_prob = (p * bins / 2).log()[quantize(x, bins)]
    entropy = -(p * p.log2()).sum().item()
    assert bits_per_dim(log_prob, 1, bins).mean().item() == pytest.approx(entropy, abs=5e-3)


def test_bits_check_their_arguments():
    for dim, bins in ((0, 256), (3, 1)):
        with pytest.raises(ValueError, match="dim" if dim == 0 else "bins"):
            bits_per_dim(torch.zeros(2), dim, bins)
