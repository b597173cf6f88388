"""Moments of data of which values are missing: those of what is known."""

import numpy as np
import pytest
import torch

from estimators import measure
from scoresde import DCT, VP, DiagonalSDE, Identity, Joint

NAN = torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "basis", [Identity((3,)), Joint(a=(1,), b=(2,))], ids=["identity", "joint"]
)
@pytest.mark.parametrize("size", [7, 100])
def test_moments_are_those_of_the_known_values(dtype, basis, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 3, generator=generator, dtype=dtype) * torch.tensor([1, 1e3, 1e-3]).to(
        dtype
    )
    x = x + torch.tensor([3.0, 0.0, -1.0]).to(dtype)
    x[torch.rand(100, 3, generator=generator) < 0.4] = NAN
    mean, std = basis.moments(x.split(size), missing=True)
    wanted = x.double().numpy()
    np.testing.assert_allclose(mean.numpy(), np.nanmean(wanted, 0), rtol=1e-9)
    np.testing.assert_allclose(std.numpy(), np.nanstd(wanted, 0), rtol=1e-9)


def test_one_known_value_is_the_mean():
    mean, _ = Identity((2,)).moments(torch.tensor([[1.0, NAN], [2.0, 7.0]]), missing=True)
    assert mean.tolist() == [1.5, 7.0]


def test_they_are_measured_for_an_sde():
    x = torch.tensor([[0.0, NAN], [NAN, 0.5], [2.0, 1.5]])
    found = measure(DiagonalSDE(VP(), Identity((2,))), x, missing=True)
    assert {k: v.tolist() for k, v in found.items()} == {"data_mean": [1, 1], "data_std": [1, 0.5]}


@pytest.mark.parametrize(
    "basis", [Identity((2,)), Joint(a=(1,), b=(1,))], ids=["identity", "joint"]
)
def test_where_nothing_is_missing_they_are_all_the_same(basis):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(basis.moments(x, missing=True), basis.moments(x))


@pytest.mark.parametrize(
    ("basis", "rows", "message"),
    [
        (
            Identity((2,)),
            [[1.0, NAN], [2.0, NAN]],
            r"data: expected values of 'all\[1\]', got none",
        ),
        (Identity((2,)), [[1.0, torch.inf], [2.0, NAN]], "data: expected finite numbers"),
        (DCT((2,)), [[1.0, NAN], [2.0, 1.0]], "data: expected events that are vectors"),
        (Identity((1, 2)), [[[1.0, NAN]], [[2.0, 1.0]]], "data: expected events that are vectors"),
    ],
)
def test_what_has_no_moments(basis, rows, message):
    with pytest.raises(ValueError, match=message):
        basis.moments(torch.tensor(rows), missing=True)


def test_missing_values_are_not_expected_by_themselves():
    with pytest.raises(ValueError, match="data: expected finite numbers"):
        Identity((2,)).moments(torch.tensor([[1.0, NAN], [2.0, 1.0]]))
