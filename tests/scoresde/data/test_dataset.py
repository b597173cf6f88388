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
        Dataset("x", torch.zeros(2, 3), bins=4)
    with pytest.raises(TypeError, match="floating-point"):
        Dataset("x", torch.zeros(2, 3, dtype=torch.int64))
    assert repr(digits()) == (
        "Dataset(name='digits', values=(1797, 1, 8, 8) of torch.uint8, bins=17)"
    )


@given(
    count=st.integers(2, 200),
    fraction=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_split_is_a_partition(count, fraction, seed):
    data = Dataset("x", torch.arange(count)[:, None], bins=count)
    train, held_out = split(data, fraction, seed)
    both = torch.cat([train.values, held_out.values]).flatten()
    assert both.sort().values.tolist() == list(range(count))
    assert abs(len(train.values) - fraction * count) <= 1
    assert min(len(train.values), len(held_out.values)) > 0
    assert train.bins == held_out.bins == count
    again, _ = split(data, fraction, seeded(seed))
    assert torch.equal(again.values, train.values)


def test_split_is_shuffled_and_checked():
    data = Dataset("x", torch.arange(100)[:, None], bins=100)
    train, _ = split(data, 0.5)
    assert train.values.flatten().tolist() != list(range(50))
    assert not torch.equal(train.values, split(data, 0.5, seed=1)[0].values)
    for fraction in (0, 1, -0.5, 2, math.nan):
        with pytest.raises(ValueError, match="fraction"):
            split(data, fraction)
    with pytest.raises(ValueError, match="two events"):
        split(Dataset("x", torch.zeros(1, 2)), 0.5)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_missing_values_are_allowed_on_request(dtype):
    values = torch.tensor([[1, NAN], [NAN, 2]], dtype=dtype)
    with pytest.raises(ValueError, match=r"x: expected finite numbers \(missing= .*\), got 2 NaN"):
        Dataset("x", values)
    data = Dataset("x", values, missing=True)
    assert data.read(slice(None)).isnan().tolist() == [[False, True], [True, False]]
    assert all(part.missing for part in split(data, 0.5))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1, NAN], [NAN, NAN]], {"missing": True}, "a value in every event, got 1 without any"),
        ([[1, NAN], [INF, 1]], {"missing": True}, "x: expected finite numbers, got 1"),
        ([[1, 2]], {"columns": ("a",)}, r"columns: expected 2 different names, got 1"),
        ([[1, 2]], {"columns": ("a", "a")}, r"columns: expected 2 different names, got 1"),
        ([[[1], [2]]], {"columns": ("a", "b")}, "columns: expected"),
    ],
)
def test_data_sets_that_will_not_do(values, options, message):
    with pytest.raises(ValueError, match=message):
        Dataset("x", torch.tensor(values, dtype=torch.float32), **options)


def test_integers_cannot_be_missing():
    with pytest.raises(ValueError, match="missing: expected False for integers"):
        Dataset("x", torch.tensor([[1, 2]]), bins=3, missing=True)


def test_parts_of_a_table_have_its_columns():
    data = Dataset("x", torch.zeros(4, 2), columns=("a", "b"))
    assert [part.columns for part in split(data, 0.5)] == [("a", "b")] * 2
