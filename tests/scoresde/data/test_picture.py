"""How images of any size become events of one."""

import io

import numpy as np
import pytest
from PIL import Image

from scoresde.data import load
from scoresde.data.picture import RESIZED, Picture


def bands(width, height):
    """Red at the left, green in the middle half, blue at the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 4, 0] = pixels[:, width // 4 : -width // 4, 1] = 200
    pixels[:, -width // 4 :, 2] = 200
    return Image.fromarray(pixels)


def colours(values):
    """Of the middle row: which of the channels is bright, None where none is."""
    row = values[:, values.shape[1] // 2].astype(int)
    return [int(pixel.argmax()) if pixel.max() > 100 else None for pixel in row.T]


@pytest.mark.parametrize(
    ("resize", "row"),
    [("crop", [1] * 8), ("stretch", [0, 0, 1, 1, 1, 1, 2, 2]), ("pad", [0, 0, 1, 1, 1, 1, 2, 2])],
)
def test_what_becomes_of_a_wide_image(resize, row):
    values = Picture(size=8, resize=resize).of("mine", bands(48, 24))
    assert values.shape == (3, 8, 8)
    assert colours(values) == row
    dark = values.max((0, 2)) == 0
    assert dark.tolist() == [resize == "pad" and i in (0, 1, 6, 7) for i in range(8)]


def test_what_becomes_of_a_high_image():
    turned = bands(48, 24).transpose(Image.Transpose.ROTATE_270)
    for resize in RESIZED:
        wide = Picture(size=8, resize=resize).of("mine", bands(48, 24))
        high = Picture(size=8, resize=resize).of("mine", turned)
        assert np.abs(np.rot90(wide, -1, (1, 2)).astype(int) - high).max() <= 1


@pytest.mark.parametrize("resize", RESIZED)
def test_height_and_width(resize):
    """A size of the image's own shape: all of it is there, whatever the policy."""
    values = Picture(size=(6, 12), resize=resize).of("mine", bands(48, 24))
    assert values.shape == (3, 6, 12)
    assert colours(values) == [0] * 3 + [1] * 6 + [2] * 3


@pytest.mark.parametrize(
    ("mode", "background", "shade"),
    [("RGB", None, [0, 0, 0]), ("RGB", (10, 20, 30), [10, 20, 30]), ("L", (0, 100, 0), [59])],
)
def test_the_background_fills_up(mode, background, shade):
    values = Picture(mode, 8, "pad", background).of("mine", bands(48, 24))
    assert values[:, 0].T.tolist() == [shade] * 8


def test_a_line_does_not_vanish():
    assert Picture(size=8, resize="pad").of("mine", Image.new("L", (900, 1), 255)).max() == 255


@pytest.mark.parametrize("resize", RESIZED)
@pytest.mark.parametrize("shape", [(400, 300), (300, 400)])
def test_large_photographs_are_decoded_at_a_fraction(monkeypatch, resize, shape):
    """And hardly differ from what is decoded whole."""
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    content = io.BytesIO()
    smooth.resize(shape, Image.Resampling.BICUBIC).save(content, "JPEG", quality=95)
    decoded = []
    fit = RESIZED[resize]
    monkeypatch.setitem(
        RESIZED, resize, lambda image, *a: decoded.append(image.size) or fit(image, *a)
    )
    fast = Picture(size=32, resize=resize).read("mine", content, 10**6)
    monkeypatch.setattr(Image.Image, "draft", lambda *_: None)
    with Image.open(content) as image:
        monkeypatch.setattr(type(image), "draft", lambda *_: None)
        whole = Picture(size=32, resize=resize).of("mine", image)
    assert decoded == [tuple(-(-side // 4) for side in shape), shape]
    assert np.abs(fast.astype(int) - whole).max() <= 6


def test_a_small_photograph_is_decoded_whole():
    content, picture = io.BytesIO(), Picture(size=32)
    bands(89, 109).save(content, "JPEG")
    with Image.open(content) as image:
        picture.of("mine", image)
        assert image.size == (89, 109)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": 8, "resize": "fit"},
            "resize: expected one of 'crop', 'stretch', 'pad', got 'fit'",
        ),
        ({"size": [8]}, r"size: expected a side, or height and width, got \[8\]"),
        ({"size": [8, 8, 3]}, "size: expected a side, or height and width"),
        ({"size": [8, 0]}, "size: expected a whole number of at least 1, got 0"),
        ({"size": "8"}, "size: expected a whole number of at least 1, got '8'"),
        ({"size": 8.0}, "size: expected a whole number of at least 1, got 8.0"),
    ],
)
def test_sizes_and_policies_that_are_none(tmp_path, options, message):
    bands(12, 8).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        load(tmp_path, **options)


def test_images_of_many_sizes(tmp_path):
    for i, shape in enumerate([(12, 8), (8, 12), (89, 109), (4, 4)]):
        bands(*shape).save(tmp_path / f"{i}.png")
    assert load(tmp_path, size=[4, 6], resize="stretch").values.shape == (4, 3, 4, 6)
