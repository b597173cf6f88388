"""The cosine transform: against SciPy, and its frequencies."""

import itertools
import math

import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.bases import DCT


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def transforms(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    spatial = draw(st.integers(1, min(len(shape), 2)))
    return DCT(shape, spatial)


def frequency(shape, spatial):
    """``f`` of every entry of an event, by the formula, in row-major order."""
    grids = torch.meshgrid(*(torch.arange(n).double() for n in shape), indexing="ij")
    square = [(math.pi * k / n) ** 2 for k, n in zip(grids, shape, strict=True)]
    return torch.stack(square[-spatial:]).sum(0).sqrt().flatten()


@settings(max_examples=40, deadline=None)
@given(dct=transforms(), seed=st.integers(0, 2**32 - 1))
def test_scipy_agrees(dct, seed):
    x = normal(2, *dct.event_shape, seed=seed)
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), norm="ortho", axes=tuple(dct.axes)))
    torch.testing.assert_close(dct(x), expected.flatten(1)[:, dct.order])
    torch.testing.assert_close(dct.inverse(dct(x)), x)


@settings(max_examples=40, deadline=None)
@given(dct=transforms())
def test_frequencies(dct):
    f = frequency(dct.event_shape, len(dct.axes))
    torch.testing.assert_close(dct.frequencies, f[dct.order])
    steps = dct.frequencies.diff()
    assert (steps >= 0).all()
    assert dct.frequencies[0] == 0
    # stable: where the frequency stays, the row-major position rises
    assert (dct.order.diff()[steps == 0] > 0).all()
    assert dct.order.sort().values.tolist() == list(range(dct.dim))


def test_frequencies_equal_by_pythagoras_are_equal():
    dct = DCT((6, 6))
    positions = {tuple(divmod(int(p), 6)): i for i, p in enumerate(dct.order)}
    assert dct.frequencies[positions[0, 5]] == dct.frequencies[positions[3, 4]]
    assert positions[0, 5] < positions[3, 4] < positions[4, 3] < positions[5, 0]


def test_heat_decays_by_frequency():
    n, t = 200, 0.7
    dct, x = DCT((n,)), normal(200)
    laplacian = -2 * torch.eye(n, dtype=torch.float64)
    laplacian += torch.eye(n, dtype=torch.float64).roll(1, 0).tril(-1)
    laplacian += torch.eye(n, dtype=torch.float64).roll(-1, 0).triu(1)
    laplacian[0, 0] = laplacian[-1, -1] = -1
    low = torch.where(dct.frequencies < 0.2, dct(x), 0.0)
    warm = torch.linalg.matrix_exp(t * laplacian) @ dct.inverse(low)
    # the lattice's eigenvalue 4 sin^2(f/2) is f^2 at low frequencies
    expected = dct.inverse((-(dct.frequencies**2) * t).exp() * low)
    torch.testing.assert_close(warm, expected, atol=1e-3, rtol=0)


def test_large_sizes_lose_no_digits():
    x = normal(4096)
    expected = torch.from_numpy(scipy.fft.dct(x.numpy(), norm="ortho"))
    torch.testing.assert_close(DCT((4096,))(x), expected, atol=2e-13, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(12,), (3, 8, 8), (6, 9), (2, 30)]),
    bands=st.integers(1, 8),
)
def test_bands_share_no_frequency(shape, bands):
    dct = DCT(shape, bands=bands)
    assert len(dct.blocks) == bands
    parts = [dct.frequencies[s] for s in dct.blocks.slices.values()]
    for low, high in itertools.pairwise(parts):
        assert low[-1] < high[0]
    widest = dct.frequencies.unique(return_counts=True)[1].max()
    for size in dct.blocks.sizes.values():
        assert abs(size - dct.dim / bands) <= widest


@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (2, 4, 6)])
def test_any_number_of_bands_up_to_the_frequencies(shape):
    different = len(DCT(shape).frequencies.unique())
    for bands in range(1, different + 1):
        slices = DCT(shape, bands=bands).blocks.slices.values()
        assert len(slices) == bands


def test_band_names():
    assert list(DCT((9,)).blocks.sizes.items()) == [("all", 9)]
    blocks = DCT((9,), bands=3).blocks.sizes
    assert list(blocks.items()) == [("band1", 3), ("band2", 3), ("band3", 3)]
    assert set(DCT((9,), bands=9).blocks.sizes.values()) == {1}


@pytest.mark.parametrize("bands", [0, 4])
def test_wrong_bands(bands):
    with pytest.raises(ValueError, match=rf"bands: expected 1 to 3 .*, got {bands}"):
        DCT((2, 2), bands=bands)


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="event_shape: expected"):
        DCT(shape)


def test_wrong_spatial():
    match = r"spatial: expected 1 \(signals\), 2 \(images\) or 3 \(volumes\), got 4"
    with pytest.raises(ValueError, match=match):
        DCT((2, 2, 2, 2), spatial=4)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (6, 6), (4, 8)])
def test_every_number_of_bands_ends_where_the_frequency_changes(shape):
    _, sizes = frequency(shape, len(shape)).round(decimals=9).unique(return_counts=True)
    ends = {*sizes.cumsum(0).tolist()}
    for bands in range(1, len(sizes) + 1):
        found = torch.tensor([*DCT(shape, len(shape), bands=bands).blocks.sizes.values()])
        assert len(found) == bands
        assert min(found) > 0
        assert ends >= {*found.cumsum(0).tolist()}
