"""What may be captured: nothing that the host draws, which a graph would repeat."""

import random

import numpy as np
import pytest
import torch

from scoresde.internals.captured import expect_no_host_numbers

DRAWS = {
    "Python's": random.random,
    "numpy's": np.random.rand,
    "torch's of the CPU": lambda: torch.rand(1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_numbers_of_the_host_are_refused_by_name(name):
    with (
        pytest.raises(
            RuntimeError, match=f"^walk: expected one .* got one that draws from {name}$"
        ),
        expect_no_host_numbers("walk: expected one"),
    ):
        DRAWS[name]()


def test_generators_of_ones_own_are_not():
    with expect_no_host_numbers("walk: expected one"):
        torch.rand(1, generator=torch.Generator())
        np.random.default_rng(0).random()
