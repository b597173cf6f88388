"""Moments of vectors: each component in its own unit."""

import torch

from scoresde import Identity


def test_columns_are_measured_one_by_one():
    x = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 1e5]) + 7
    mean, std = Identity((3,)).moments(x)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(std[1:], x.std(0, correction=0)[1:])


def test_small_is_not_constant():
    """1e-4 is, of itself, as good a deviation as 1."""
    x = torch.randn(100, 2, dtype=torch.float64) * torch.tensor([1e-4, 1.0])
    torch.testing.assert_close(Identity((2,)).moments(x)[1], x.std(0, correction=0))


def test_constant_columns_get_a_share_of_the_largest():
    x = torch.stack([torch.full((100,), 2020.1), 5 * torch.randn(100)], 1)
    std = Identity((2,)).moments(x)[1]
    torch.testing.assert_close(std[0], 1e-3 * std[1])


def test_constant_blocks_get_a_share_of_the_largest():
    x = torch.cat([torch.full((100, 2), 3.0), 500 * torch.randn(100, 1)], 1)
    std = Identity((3,), {"a": 2, "b": 1}).moments(x)[1]
    torch.testing.assert_close(std[0], 1e-3 * std[1])


def test_what_is_no_single_vector_is_measured_per_block():
    x = torch.randn(100, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert Identity((4,), {"a": 3, "b": 1}).moments(x)[1].shape == (2,)
    assert Identity((1, 2, 2)).moments(x.reshape(-1, 1, 2, 2))[1].shape == (1,)
    assert Identity((2, 2)).moments(x.reshape(-1, 2, 2))[1].shape == (1,)
