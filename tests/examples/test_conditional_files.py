"""The paper's conditional models, from a folder of images to a folder of images."""

import numpy as np
import pytest
from commands import edited, run
from PIL import Image

from scoresde.data import Downsample, Edges, Mask, degraded, read_images

SIZE = 16
SMALL = (
    ("size = 64", f"size = {SIZE}"),
    ("channels = [64, 128, 256]", "channels = [8]"),
    ("blocks = 2", "blocks = 1\nattention = 0"),
    ("sigma_max = 111.0", "sigma_max = 28.0"),
    ("steps = 30000", "steps = 2\nmeasurements = 1\nmeasured_events = 1"),
    ("steps = 32", "steps = 3"),
)
GIVEN = {"super-resolution": Downsample(8), "inpainting": Mask(), "edges": Edges()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    numbers = np.random.default_rng(0)
    for i in range(6):
        shades = numbers.integers(256, size=(SIZE, SIZE, 3), dtype="u1")
        Image.fromarray(shades).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", GIVEN)
def test_from_images_to_images(name, images, tmp_path):
    path, given = tmp_path / "x.toml", tmp_path / "given"
    assert run("init", name, images, "--output", path).exit_code == 0
    result = run("train", edited(path, *SMALL), "--output", tmp_path / "model")
    assert result.exit_code == 0, result.output
    given.mkdir()
    for i, image in enumerate(degraded(read_images(images), GIVEN[name]).values[:2]):
        pixels = image.movedim(0, -1).squeeze(-1).numpy()
        Image.fromarray(pixels).save(given / f"{i}.png")
    out, picture = f"{tmp_path}/out/", tmp_path / "x.png"
    result = run("sample", tmp_path / "model", "--given", given, "--count", 3, "--output", out,
                 "--png", picture)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_images(out).values.shape == (6, 3, SIZE, SIZE)
    assert Image.open(picture).width > 100
