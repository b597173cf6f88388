"""Data sets: checked, split."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.data import Dataset, digits, split


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_values_must_fit_levels():
    with pytest.raises(TypeError, match="expected integers"):
        Dataset("x", torch.zeros(2, 3), levels=4)
    with pytest.raises(TypeError, match="floating-point"):
        Dataset("x", torch.zeros(2, 3, dtype=torch.int64))
    assert repr(digits()) == (
        "Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, levels=17)"
    )


@given(
    count=st.integers(2, 200),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_split_is_a_partition(count, fraction, seed):
    data = Dataset("x", torch.arange(count)[:, None], levels=count)
    train, held_out = split(data, fraction, seed)
    both = torch.cat([train.values, held_out.values]).flatten()
    assert both.sort().values.tolist() == list(range(count))
    assert abs(len(train.values) - fraction * count) <= 1
    assert min(len(train.values), len(held_out.values)) > 0
    assert train.levels == held_out.levels == count
    again, _ = split(data, fraction, seeded(seed))
    assert torch.equal(again.values, train.values)


def test_split_is_shuffled_and_checked():
    data = Dataset("x", torch.arange(100)[:, None], levels=100)
    train, _ = split(data, 0.5)
    assert train.values.flatten().tolist() != list(range(50))
    assert not torch.equal(train.values, split(data, 0.5, seed=1)[0].values)
    for fraction in (0, 1, -0.5, 2, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            split(data, fraction)
    with pytest.raises(ValueError, match="two events"):
        split(Dataset("x", torch.zeros(1, 2)), 0.5)
