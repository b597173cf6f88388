"""The demo and the ten lines run and leave what they promise."""

import json
import runpy
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from forks import forked
from PIL import Image

from scoresde.app.config import read
from scoresde.app.model import Model

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name, *arguments):
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def run(name, *arguments):
    done = forked(script, name, *arguments)
    assert done.returncode == 0, done.stderr


def test_demo(tmp_path):
    run("digits.py", "--quick", "--output", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    real, uniform, multi_scale, halves = report["models"]
    for row in (uniform, multi_scale):
        assert 2 < row["bits_per_dim"] < 9
        assert row.keys() - halves.keys() == real.keys() - {"name"} | {
            "bits_per_dim",
            "bits_per_dim_stderr",
        }
    ratio = uniform["seconds_sample"] / multi_scale["seconds_sample"]
    assert report["sampling_time_ratio"] == pytest.approx(ratio)
    assert real["frechet_distance"] < uniform["frechet_distance"]
    assert 0 <= halves["completed_as_the_true_digit"] <= 1
    assert min(Image.open(tmp_path / "digits.png").size) > 200


@pytest.mark.parametrize("name", ["digits.toml", "labels.toml", "multiscale.toml"])
def test_files(name, tmp_path):
    """As they are, but for the time they take."""
    settings = read(EXAMPLES / name)
    settings["training"] |= {"steps": 2, "measurements": 1}
    if "plan" in settings:
        settings["plan"]["cost"] = 2.0
    model = Model.train(settings, progress=False)
    assert model.solver.sample(model.estimator, (2,)).shape == (2, 1, 8, 8)


def test_a_file_of_images(tmp_path):
    """From a folder of photographs to a folder of pictures, by the commands of the README."""
    for i in range(12):
        shades = np.random.default_rng(i).integers(256, size=(40, 36, 3), dtype="u1")
        Image.fromarray(shades).save(tmp_path / f"{i}.png")
    path = tmp_path / "images.toml"
    assert commands.run("init", "images", tmp_path, "--output", path).exit_code == 0
    commands.edited(
        path,
        ("steps = 1200", "steps = 2\nmeasured_events = 1"),
        ("= 32\n", "= 4\n"),
        ("= 24\n\n[tr", "= 4\n\n[tr"),
    )
    trained = commands.run("train", path, "--output", tmp_path / "model")
    assert trained.exit_code == 0, trained.output
    sampled = commands.run("sample", tmp_path / "model", "--count", 3, "--output", f"{tmp_path}/s/")
    assert sampled.exit_code == 0, sampled.output
    sizes = [Image.open(path).size for path in sorted((tmp_path / "s").iterdir())]
    assert sizes == [(32, 32)] * 3


def test_ten_lines():
    run("ten_lines.py")
