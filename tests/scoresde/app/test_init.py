"""Files to start from."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image

from scoresde.app import config
from scoresde.app.facts import facts_of
from scoresde.app.init import example, examples, next_steps
from scoresde.app.model import Model
from scoresde.app.parts import data_of
from scoresde.data.events import Batches

ROOT = Path(__file__).parents[3]
IN_PIXELS = "conditional"  # parts of its own images


def test_they_are_the_examples_of_the_project():
    assert {path.name for path in examples().values()} == {
        path.name for path in (ROOT / "examples").glob("*.toml")
    }
    assert {"images", "table", "multiscale", "conditional", "super-resolution"} < examples().keys()


@pytest.mark.parametrize("name", sorted(examples().keys() - {IN_PIXELS}))
def test_a_file_as_it_is_written(name, tmp_path, monkeypatch):
    """With the user's data and the path of the file in it, and nothing else changed."""
    monkeypatch.chdir(tmp_path)
    Path("my data/x.csv").mkdir(parents=True)  # a model is in a folder; others look at no data yet
    result = run("init", name, "my data/x.csv", "--output", "new.toml")
    assert result.exit_code == 0, result.output
    settings, own = config.read("new.toml"), config.read(examples()[name])
    section, key = ("estimator", "folder") if name == "pretrained" else ("data", "source")
    assert settings[section].pop(key) == "my data/x.csv"
    own[section].pop(key)
    own["data"].pop("columns", None)
    assert settings == own
    steps = next_steps(Path("new.toml").read_text())
    assert "scoresde train new.toml --output model" in [step[:38] for step in steps]
    for step in steps:
        assert step in result.output
    os.remove("new.toml")
    assert run("init", name).exit_code == 0
    assert config.read(f"{name}.toml") == config.read(examples()[name])


def test_parts_in_pixels_are_of_no_other_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = "SOURCE: expected none, .*edges, inpainting, super-resolution take one.*, got photos/"
    result = run("init", IN_PIXELS, "photos/")
    assert result.exit_code == 1
    assert re.search(wanted, result.output), result.output
    assert not Path(f"{IN_PIXELS}.toml").exists()
    assert run("init", IN_PIXELS).exit_code == 0
    assert config.read(f"{IN_PIXELS}.toml") == config.read(examples()[IN_PIXELS])


@pytest.mark.parametrize(("shape", "taken"), [((6, 2), True), ((6, 1, 4, 4), False)])
def test_a_table_is_one(tmp_path, shape, taken):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
    result = run("init", "table", tmp_path / "x.npy", "--output", tmp_path / "new.toml")
    assert (result.exit_code == 0) == taken == (tmp_path / "new.toml").exists()
    assert taken or "init table: SOURCE: expected a table" in result.output


def test_of_several_arrays_the_file_has_to_name_one(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones((6, 2)), b=np.ones((6, 1, 4, 4)))
    result = run("init", "table", tmp_path / "x.npz", "--output", tmp_path / "new.toml")
    assert result.exit_code == 0, result.output
    assert "init table: SOURCE: key: expected one of a, b, got None; [data] is to" in result.output


def test_what_is_there_is_kept(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("mine")
    result = run("init", "table", "--output", path)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: --output: expected a new file, {path} exists")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel"], "init: no example 'tabel'; did you mean 'table' or 'labels'? Available"),
        (["table", "--output", "none/x.toml"], "No such file or directory"),
        (["table", "--output", ""], "expected a path, got an empty one"),
        (["pretrained", "nowhere"], "SOURCE: expected a folder that is there, got nowhere"),
    ],
)
def test_errors(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("init", *arguments)
    assert result.exit_code
    assert message in result.output


@pytest.mark.parametrize("source", ['a "b" \\c', "é\u2028x", "\\1"])
def test_any_name_of_a_source(source):
    text = example("images", source)
    assert config.tomllib.loads(text)["data"]["source"] == source


def smooth(folder, count=40):
    """Photographs whose colours change slowly, as those are that cameras have stored as JPEG."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        grey = draw.uniform(50, 205, (16, 16, 1))
        tint = draw.normal(0, 10, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
        shades = (grey + tint + draw.normal(0, 1, (16, 16, 3))).clip(0, 255)
        Image.fromarray(shades.astype("u1")).save(folder / f"{i}.png")
    return folder


def test_images_are_within_the_noise_of_their_file(tmp_path):
    """Fine bands of colour are faint: a new user is not warned of what a file was written for."""
    text = example("images", str(smooth(tmp_path / "photos")))
    settings = config.tomllib.loads(text.replace("size = 32", "size = 16"))
    settings["estimator"]["networks"] = {"name": "residual-mlp", "width": 8, "depth": 1}
    data = data_of(settings)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Model.build(settings, facts_of(data), Batches(data))
    std = torch.tensor(model.facts["data_std"])
    assert float(std.min()) < 0.0175  # which is lost in noise of 1/150
