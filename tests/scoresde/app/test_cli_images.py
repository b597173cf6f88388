"""From a zip file of images of many sizes to a folder of images, by the command line."""

import json
import zipfile

import numpy as np
import pytest
from commands import config, edited, run
from PIL import Image

OPTIONS = 'size = [9, 12]\ncrop = 8\nresize = "pad"\nbackground = 255\nflip = true\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained model, and what it was trained on."""
    folder, numbers = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for i in range(60):
            height, width = numbers.integers(6, 30, 2)
            pixels = numbers.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photo.png")
            archive.write(folder / "photo.png", f"photos/{i}.png")
    path = config(folder, folder / "photos.zip", OPTIONS)
    pictures = folder / "pictures"
    result = run("train", path, "--output", folder / "model", "--pictures", pictures)
    assert result.exit_code == 0, result.output
    return folder


def test_samples_are_images(folder, tmp_path):
    result = run("sample", folder / "model", "--count", 3, "--output", f"{tmp_path}/new/")
    assert result.exit_code == 0, result.output
    images = [Image.open(path) for path in sorted((tmp_path / "new").iterdir())]
    assert [(image.mode, image.size) for image in images] == [("RGB", (8, 8))] * 3


def test_pictures_are_in_colour(folder):
    found = sorted((folder / "pictures").iterdir())
    assert [path.name for path in found] == ["00000001.png", "00000002.png", "00000003.png"]
    pixels = np.asarray(Image.open(found[-1]).convert("RGB")).astype(int)
    assert np.abs(pixels[..., 0] - pixels[..., 2]).max() > 50


def test_samples_are_compared(folder):
    command = ("evaluate", folder / "model", "--frechet", "--features", "pixels", "--json")
    result = run(*command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.output[result.output.index("{") :])
    assert report["count"] == 6
    assert report["frechet"] > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flip = true", "flip = false", "data.flip: expected True, got False"),
        ('resize = "pad"', 'resize = "crop"', "data.resize: expected pad, got crop"),
        ('resize = "pad"', 'resize = "fit"', "resize: expected one of 'crop', 'stretch', 'pad'"),
        ("crop = 8", "crop = 4", "data.crop: expected 8, got 4"),
        ("crop = 8", "crop = 10", "crop: expected images (channels, height, width) of (10, 10)"),
        ("crop = 8", "crop = 0", "crop: expected a whole number of at least 1, got 0"),
        ("flip = true", "flip = 1", "flip: expected one of False, True, got 1"),
        ("flip = true", "flop = true", "data.flop: unknown"),
    ],
)
def test_a_run_with_other_options_is_another_one(folder, tmp_path, old, new, message):
    config(tmp_path, folder / "photos.zip", OPTIONS)
    path = edited(tmp_path / "config.toml", (old, new))
    result = run("train", path, "--output", folder / "model")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
