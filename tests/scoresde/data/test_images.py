"""Folders of images."""

import numpy as np
import pytest
from PIL import Image

from scoresde.data import load, read_images


def paint(path, size=(6, 4), mode="RGB"):
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_a_folder_of_images(tmp_path):
    second, first = paint(tmp_path / "b1.png"), paint(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_text("not an image")
    data = load(tmp_path)
    assert (data.name, data.levels, data.values.shape) == (tmp_path.name, 256, (2, 3, 4, 6))
    assert np.array_equal(data.values.numpy(), np.stack([first, second]).transpose(0, 3, 1, 2))
    assert load(tmp_path, mode="L").values.shape == (2, 1, 4, 6)


def test_images_are_cropped_at_the_centre_and_resized(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    paint(tmp_path / "b.png", size=(9, 9))
    values = load(tmp_path, size=2).values
    assert values.shape == (2, 3, 2, 2)
    assert (values[0].float() - 200).abs().max() < 20, "the black sides must be cut off"


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA", "CMYK"])
def test_modes_are_converted(tmp_path, mode):
    paint(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), mode=mode)
    assert load(tmp_path).values.shape == (1, 3, 4, 6)


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(ValueError, match="a folder with images in it"):
        load(tmp_path)
    paint(tmp_path / "a.png")
    for options in ({"mode": "CMYK"}, {"size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(tmp_path, **options)
    paint(tmp_path / "b.png", size=(6, 5))
    paint(tmp_path / "c.png", size=(7, 5))
    with pytest.raises(ValueError, match=r"b\.png: expected the size of a\.png \(3, 4, 6\)"):
        load(tmp_path)
    Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(tmp_path / "aa.png")
    with pytest.raises(ValueError, match=r"aa\.png: .*8 bits per channel, got I"):
        load(tmp_path)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_images(tmp_path / "absent")


def test_images_that_would_fill_the_memory(tmp_path, monkeypatch):
    paint(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused = pytest.raises(ValueError, match=r"a\.png: .*at most 20 pixels.* got 24")
    with refused, pytest.warns(Image.DecompressionBombWarning):
        load(tmp_path)
