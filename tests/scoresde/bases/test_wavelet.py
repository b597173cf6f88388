"""Wavelets: orthonormal, blind to polynomials, and not shifted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde import Haar, Packed, Wavelet
from scoresde.bases.wavelet import filter_matrix, filter_of

NAMES = ["db1", "db2", "db4", "sym5", "coif2", "db10"]
DTYPES = [torch.float32, torch.float64]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def wavelets(draw):
    spatial, levels = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    sizes = [draw(st.integers(1, 2)) * 2**levels for _ in range(spatial)]
    channels = draw(st.sampled_from([(), (2,)]))
    return Wavelet((*channels, *sizes), levels, draw(st.sampled_from(NAMES)), spatial)


@settings(max_examples=40, deadline=None)
@given(basis=wavelets(), level=st.integers(0, 2))
def test_a_pyramid_is_orthonormal_and_its_prefix_one_of_lower_resolution(basis, level):
    """Filters may be longer than the event."""
    level = min(level, basis.levels)
    matrix = basis(torch.eye(basis.dim, dtype=torch.float64).reshape(-1, *basis.event_shape))
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(basis.dim).double())
    coarse, x = basis.coarse(level), normal(3, *basis.event_shape)
    prefix = basis(x)[..., : coarse.dim]
    low = coarse.inverse(prefix)
    assert low.shape[1:] == basis.shape(level)
    torch.testing.assert_close(coarse(low), prefix)
    finer = basis.coarse(max(level - 1, 0))
    again = Wavelet(finer.event_shape, min(level, 1), basis.wavelet, len(basis.axes))
    torch.testing.assert_close(again(finer.inverse(basis(x)[..., : finer.dim]))[..., : coarse.dim],
                               coarse.flatten(low))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", [1, 2, 4, 7])
def test_details_of_polynomials_vanish(order, dtype):
    """Of degree below the number of vanishing moments, where they do not wrap around."""
    basis, u = Wavelet((64,), 1, f"db{order}"), torch.linspace(-1, 1, 64, dtype=torch.float64)
    x = torch.stack([u**k for k in range(order + 1)]).to(dtype)
    inner = basis(x)[:, basis.blocks.slices["d1"]][:, order:-order]
    # far outside of the polynomials' own values, as far inside of what is not blind to them
    assert inner[:-1].abs().max() < 30 * torch.finfo(dtype).eps
    assert inner[-1].abs().max() > 1e3 * 30 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("name", NAMES)
def test_what_is_small_is_where_it_was(name):
    """The middle of a bump, to half a pixel of the low pass; all of its axes."""
    basis = Wavelet((32, 64), 2, name)
    rows, columns = torch.arange(32.0).double(), torch.arange(64.0).double()
    bump = torch.outer((-(((rows - 12) / 4) ** 2)).exp(), (-(((columns - 37) / 4) ** 2)).exp())
    low = basis.coarse(2).inverse(basis(bump)[: basis.coarse(2).dim])
    for axis, middle in ((0, 12), (1, 37)):
        place = torch.arange(low.shape[axis]).double()
        found = (low.sum(1 - axis) * place).sum() / low.sum()
        assert abs(4 * found + 1.5 - middle) < 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_haar_is_the_shortest(spatial, dtype):
    x = normal(3, 2, 4, 8, 4).to(dtype)
    shape = x.shape[1:] if spatial == 3 else x.shape[2:]
    haar, db1 = Haar(shape, 2, spatial), Wavelet(shape, 2, "db1", spatial)
    assert torch.equal(haar(x), db1(x))
    assert isinstance(haar.coarse(1), Haar)
    assert torch.equal(haar.inverse(haar(x)), db1.inverse(db1(x)))


def test_the_pairs_of_haar_are_those_of_its_filter():
    """The fast path against the matrices that other filters have."""
    x = normal(5, 8)
    torch.testing.assert_close(Haar((8,), 1)(x), x @ filter_matrix(filter_of("db1"), 8).mT)


def test_volumes():
    haar = Haar((1, 2, 2, 2), 1, spatial=3)
    z = haar(torch.arange(8.0).reshape(1, 2, 2, 2))
    root = 2**0.5
    # low; differences along the last axis 1, the middle 2, the first 4; none of differences
    assert [round(v, 4) for v in z.tolist()] == [
        round(v, 4) for v in (28 / (2 * root), -2 / root, -4 / root, 0, -8 / root, 0, 0, 0)
    ]
    assert haar.blocks.sizes == {"a1": 1, "d1": 7}


@pytest.mark.parametrize("name", ["db2", "db4"])
def test_packed_coefficients_are_those_of_the_pyramid(name):
    basis = Wavelet((3, 8, 16), 2, name)
    packed, x = Packed(basis), normal(2, 3, 8, 16)
    seen = packed.inverse(basis(x))
    assert seen.shape == (2, 12, 4, 8)
    torch.testing.assert_close(packed(seen), basis(x))
    torch.testing.assert_close(
        seen[:, :3], Wavelet((3, 8, 16), 1, name)(x)[:, :96].reshape(2, 3, 4, 8)
    )


@pytest.mark.parametrize("name", ["dmey", "bior2.2", "db99", "morl", ""])
def test_what_is_no_orthogonal_wavelet_is_refused(name):
    with pytest.raises(ValueError, match="wavelet: expected an orthogonal one: db1 to db38"):
        Wavelet((8, 8), 1, name)
    with pytest.raises(TypeError, match="wavelet"):
        Wavelet((8, 8), 1, 4)


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match=r"levels: expected spatial sizes divisible by 2\*\*1"):
        Wavelet((8, 7), 1, "db4")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_colour_channels_are_brightness_and_differences(dtype):
    basis = Wavelet((3, 8, 8), 2, "db2", colour=True)
    plain, turned = Wavelet((3, 8, 8), 2, "db2"), normal(5, 3, 8, 8).to(dtype)
    red, green, blue = turned.unbind(1)
    by_hand = [
        (red + green + blue) / 3**0.5,
        (red - blue) / 2**0.5,
        (red - 2 * green + blue) / 6**0.5,
    ]
    torch.testing.assert_close(basis(turned), plain(torch.stack(by_hand, 1)))
    torch.testing.assert_close(basis.inverse(basis(turned)), turned)
    coarse = basis.coarse(1)
    low = coarse.inverse(basis(turned)[:, : coarse.dim])
    torch.testing.assert_close(low, plain.coarse(1).inverse(plain(turned)[:, : coarse.dim]))


def test_with_colour_every_channel_and_orientation_is_measured_by_itself():
    basis = Wavelet((3, 8, 8), 1, "db1", colour=True)
    wanted = torch.arange(1.0, 13.0).double()
    z = normal(4000, 12, 16) * wanted[:, None]
    mean, std = basis.moments(basis.inverse(z.flatten(1)))
    assert std.shape == mean.shape == (192,)
    torch.testing.assert_close(
        std.reshape(12, 16), wanted[:, None].expand(12, 16), rtol=0.02, atol=0
    )
    grey = torch.randn(50, 1, 8, 8).expand(-1, 3, -1, -1).double()
    assert basis(grey).reshape(50, 4, 3, 16)[:, :, 1:].abs().max() < 1e-12


def test_colour_is_of_one_axis_of_channels():
    with pytest.raises(ValueError, match=r"event_shape: expected \(channels, \*space\)"):
        Wavelet((8, 8), 1, colour=True)
    with pytest.raises(ValueError, match="colour"):
        Wavelet((3, 8, 8), 1, colour="yes")
