"""What a network may see of a prefix of the coefficients."""

import pytest
import torch

from scoresde import DCT, Haar, Identity, Packed, Wavelet
from scoresde.bases.views import VIEWS, view

BASES = [Haar((3, 8, 16), 2), Wavelet((3, 8, 16), 2, "db2"), Wavelet((16,), 3, "sym4")]
DTYPES = [torch.float32, torch.float64]


def prefixes(basis):
    return [basis.shape(level).numel() for level in range(basis.levels + 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("basis", BASES, ids=["haar", "db2", "sym4"])
def test_a_view_has_the_coefficients_of_its_prefix(basis, name, dtype):
    x = torch.randn(2, *basis.event_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    z = basis(x)
    for level, dim in enumerate(prefixes(basis)):
        seen = view(name)(basis, dim)
        torch.testing.assert_close(seen(seen.inverse(z[..., :dim])), z[..., :dim])
        assert list(seen.blocks.sizes.values()) == [*basis.blocks.prefix(dim).sizes.values()]
        space = [size >> level for size in basis.event_shape[-len(basis.axes) :]]
        halved = [size // 2 for size in space]
        last = level == basis.levels
        expected = {"coefficients": [dim], "events": space, "packed": space if last else halved}
        assert list(seen.event_shape[-len(expected[name]) :]) == expected[name]


def test_the_low_pass_that_is_seen_is_that_of_the_event():
    x = torch.randn(5, 3, 8, 16)
    haar = Haar((3, 8, 16), 2)
    low = view("events")(haar, 3 * 4 * 8).inverse(haar(x)[..., : 3 * 4 * 8])
    torch.testing.assert_close(low, 2 * torch.nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("basis", [Identity((4,)), DCT((4,)), Packed(Haar((4,), 1))])
def test_a_basis_of_one_resolution_is_its_own_prefix(basis):
    assert view("packed")(basis, 4) is view("events")(basis, 4) is basis
    with pytest.raises(ValueError, match="dim: expected 4, or a basis of several"):
        basis.prefix(2)


def test_what_is_no_low_pass_is_refused():
    with pytest.raises(ValueError, match="dim: expected one of 16, 4, got 8"):
        Haar((4, 4), 1).prefix(8)


def test_names():
    assert view(VIEWS["packed"]) is VIEWS["packed"]
    with pytest.raises(ValueError, match=r"view: .*'packed'"):
        view("pakced")
