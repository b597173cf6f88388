"""Levels to densities and back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import bits_per_dim, dequantize, quantize


def seeded(seed):
    return torch.Generator().manual_seed(seed)


LEVELS = st.integers(2, 2**16)


@given(levels=LEVELS, seed=st.integers(0, 2**32))
@settings(deadline=None)
def test_quantize_inverts_dequantize(levels, seed):
    values = torch.randint(levels, (20_000,), generator=seeded(seed))
    x = dequantize(values, levels, seeded(seed))
    assert x.abs().max() <= 1
    assert torch.equal(quantize(x, levels), values)


@given(levels=LEVELS)
@settings(deadline=None)
@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_cells_survive_rounding(levels, u):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, u))
        values = torch.arange(levels)
        assert torch.equal(quantize(dequantize(values, levels), levels), values)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantized_values_are_uniform_on_their_cells(levels):
    values = torch.arange(levels).repeat(100_000 // levels)
    x = dequantize(values.to(torch.int32), levels, seeded(0)).double()
    u = (x + 1) * levels / 2 - values
    assert torch.equal(dequantize(values, levels, seeded(0)), x.float())
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
        with pytest.raises(ValueError, match="levels"):
            call(x, 1)


@given(levels=LEVELS, dim=st.integers(1, 4096))
@settings(deadline=None)
def test_a_uniform_density_costs_log2_levels(levels, dim):
    log_prob = torch.full((2,), -dim * math.log(2), dtype=torch.float64)
    bits = bits_per_dim(log_prob, dim, levels)
    assert bits.tolist() == pytest.approx([math.log2(levels)] * 2)


@pytest.mark.parametrize("levels", [2, 5, 16])
def test_bits_bound_the_cost_of_the_levels(levels):
    """For a density that is constant on cells the bound is the entropy itself."""
    p = torch.rand(levels, generator=seeded(1)).double().softmax(0)
    values = torch.multinomial(p, 200_000, replacement=True, generator=seeded(2))
    x = dequantize(values, levels, seeded(3))
    log_prob = (p * levels / 2).log()[quantize(x, levels)]
    entropy = -(p * p.log2()).sum().item()
    assert bits_per_dim(log_prob, 1, levels).mean().item() == pytest.approx(entropy, abs=5e-3)


def test_bits_check_their_arguments():
    for dim, levels in ((0, 256), (3, 1)):
        with pytest.raises(ValueError, match="dim" if dim == 0 else "levels"):
            bits_per_dim(torch.zeros(2), dim, levels)
