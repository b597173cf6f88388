"""What is measured together."""

import torch

from scoresde import PCA, Identity


def test_columns_are_measured_one_by_one():
    x = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 1e5]) + 7
    mean, std = Identity((3,)).moments(x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(std, x.std(0, correction=0))


def test_columns_of_blocks_are_columns():
    basis = Identity((4,), {"a": 3, "b": 1})
    assert [*basis.groups.sizes] == ["a[0]", "a[1]", "a[2]", "b"]
    x = torch.randn(100, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert basis.moments(x)[1].shape == (4,)
    assert PCA(torch.eye(4), blocks={"a": 3, "b": 1}).moments(x)[1].shape == (4,)


def test_what_is_no_vector_is_measured_per_block():
    x = torch.randn(100, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert Identity((1, 2, 2)).moments(x.reshape(-1, 1, 2, 2))[1].shape == (1,)
    assert Identity((2, 2)).moments(x.reshape(-1, 2, 2))[1].shape == (1,)
    assert Identity((2, 2), {"a": 3, "b": 1}).moments(x.reshape(-1, 2, 2))[1].shape == (2,)
    assert PCA(torch.eye(4), (2, 2)).moments(x.reshape(-1, 2, 2))[1].shape == (1,)
