"""Small matrices that multiply states as numbers do."""

import pytest
import torch

from scoresde import Blocks
from scoresde.phase_space.mixing import Mixing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 2, 5], ids=["one", "blocks", "components"])
def test_products_are_those_of_dense_matrices(width, dtype):
    generator = torch.Generator().manual_seed(0)
    blocks = Blocks({"a": 2, "b": 3})
    matrices = torch.randn(3, 3, width, dtype=dtype, generator=generator)
    each = {1: [0] * 5, 2: [0, 0, 1, 1, 1], 5: [0, 1, 2, 3, 4]}[width]
    dense = torch.zeros(15, 15, dtype=dtype)
    for p in range(3):
        for q in range(3):
            for i, entry in enumerate(each):
                dense[5 * p + i, 5 * q + i] = matrices[p, q, entry]
    base, y = (torch.randn(4, 15, dtype=dtype, generator=generator) for _ in range(2))
    mixing, wanted = Mixing(matrices, blocks), y @ dense.mT
    torch.testing.assert_close(mixing * y, wanted)
    torch.testing.assert_close((2.5 * mixing) * y, 2.5 * wanted)
    torch.testing.assert_close(torch.addcmul(base, mixing, y), base + wanted)
    torch.testing.assert_close(base.clone().addcmul_(mixing, y), base + wanted)
