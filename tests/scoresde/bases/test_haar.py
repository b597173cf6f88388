"""The Haar pyramid: by hand, and prefix by prefix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoresde.bases import Haar


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def lowpass(x):
    """2x2 sums over 2: the low-resolution image, written as an average."""
    return 2 * torch.nn.functional.avg_pool2d(x, 2)


@st.composite
def images(draw):
    levels = draw(st.integers(0, 3))
    sizes = [draw(st.integers(1, 3)) * 2**levels for _ in range(2)]
    channels = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    return Haar((*channels, *sizes), levels, spatial=2)


def test_one_block_by_hand():
    z = Haar((2, 2), levels=1)(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    # sum, left - right, top - bottom, diagonal - antidiagonal; all over 2
    assert z.tolist() == [5.5, -1.5, -2.5, 0.5]


def test_a_signal_by_hand():
    z = Haar((4,), levels=2)(torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64))
    root = 2**-0.5
    expected = torch.tensor([11 / 2, -5 / 2, -root, -2 * root], dtype=torch.float64)
    torch.testing.assert_close(z, expected)


def test_blocks_are_coarse_first():
    haar = Haar((3, 8, 16), levels=2)
    assert list(haar.blocks.sizes.items()) == [("a2", 24), ("d2", 72), ("d1", 288)]
    haar = Haar((2, 8), levels=3, spatial=1)
    assert list(haar.blocks.sizes.items()) == [("a3", 2), ("d3", 2), ("d2", 4), ("d1", 8)]


def test_published_groups_at_128():
    haar = Haar((3, 128, 128), levels=3)
    sizes = [3 * 16 * 16, 9 * 16 * 16, 9 * 32 * 32, 9 * 64 * 64]
    assert list(haar.blocks.sizes.values()) == sizes


def test_details_by_orientation_then_channel_then_position():
    haar = Haar((2, 4, 4), levels=1)
    x = torch.zeros(2, 4, 4, dtype=torch.float64)
    x[1, 2:, :2] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    detail = haar(x)[haar.blocks.slices["d1"]].reshape(3, 2, 2, 2)
    assert detail.nonzero().tolist() == [[0, 1, 1, 0]]
    assert detail[0, 1, 1, 0] == 2


def test_a_constant_image_doubles_per_level():
    for levels in range(4):
        haar = Haar((8, 8), levels)
        z = haar(torch.ones(8, 8))
        approximation = haar.blocks.slices[f"a{levels}"]
        assert (z[approximation] == 2.0**levels).all()
        assert z.count_nonzero() == 64 // 4**levels


@settings(max_examples=40, deadline=None)
@given(haar=images(), level=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_a_prefix_is_the_pyramid_of_the_low_pass(haar, level, seed):
    level = min(level, haar.levels)
    x = normal(2, *haar.event_shape, seed=seed)
    low = x.reshape(2, -1, *x.shape[-2:])
    for _ in range(level):
        low = lowpass(low)
    coarse = haar.coarse(level)
    low = low.reshape(2, *coarse.event_shape)
    prefix = haar(x)[..., : coarse.dim]
    torch.testing.assert_close(coarse(low), prefix)
    torch.testing.assert_close(coarse.inverse(prefix), low)


def test_blocks_of_a_coarse_basis_are_the_first_blocks():
    haar = Haar((3, 8, 8), levels=3)
    for level in range(4):
        coarse = haar.coarse(level)
        kept = 4 - level
        assert list(coarse.blocks.sizes.values()) == list(haar.blocks.sizes.values())[:kept]
        assert coarse.levels == haar.levels - level
        assert coarse.event_shape == haar.shape(level) == (3, 8 >> level, 8 >> level)


def test_coarse_signals():
    haar = Haar((2, 8), levels=2, spatial=1)
    x = normal(5, 2, 8)
    low = (x[..., ::2] + x[..., 1::2]) / 2**0.5
    coarse = haar.coarse(1)
    torch.testing.assert_close(coarse(low), haar(x)[..., : coarse.dim])


def test_exact_in_floating_point_for_images():
    haar = Haar((8, 8), levels=3)
    x = torch.randint(-8, 8, (4, 8, 8), generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(haar.inverse(haar(x)), x)


@pytest.mark.parametrize(
    ("shape", "levels", "spatial", "match"),
    [
        ((6, 8), 2, None, r"levels: .*divisible by 2\*\*2, got \(6, 8\)"),
        ((3, 7), 1, 1, r"levels: .*divisible by 2\*\*1, got \(7,\)"),
        ((4,), -1, None, "levels: expected a whole number of at least 0, got -1"),
        ((4,), 1, 2, "event_shape: expected 2 axes or more"),
        ((4,), 1, 0, r"spatial: expected 1 \(signals\), 2 \(images\) or 3 \(volumes\), got 0"),
        (
            (4, 4, 4, 4),
            1,
            4,
            r"spatial: expected 1 \(signals\), 2 \(images\) or 3 \(volumes\), got 4",
        ),
        ((0, 4), 1, None, "event_shape: expected"),
        ((), 1, None, "event_shape: expected"),
    ],
)
def test_wrong_arguments(shape, levels, spatial, match):
    with pytest.raises(ValueError, match=match):
        Haar(shape, levels, spatial)


def test_no_coarser_than_the_levels():
    with pytest.raises(ValueError, match="level: expected 0 to 1, got 2"):
        Haar((4, 4), levels=1).coarse(2)
