"""Multi-scale and conditional at once, from a file: super-resolution, and classes."""

import json

import pytest
import torch
from commands import edited, run
from test_sampling_task import FILE, pictures

from scoresde.app.model import Model
from scoresde.data import read_images

PARTS = 'source = "{folder}"\n[data.parts]\ny = {{ name = "downsample", factor = 4 }}\nx = "whole"'
BASIS = '[sde.basis]\nname = "joint"\n[sde.basis.bases.x]\nname = "haar"\nlevels = 1\n'


def super_resolution(folder, name, options=""):
    data = PARTS.format(folder=pictures(folder / "images", 12))
    path = folder / "config.toml"
    path.write_text(FILE.format(data=data, name=name, options=options))
    drop = "scale = 1.0\ndrop = [1.0, 1.0, 0.5]\n"
    edited(path, ('basis = "joint"\nscale = 1.0\n', drop), ("steps = 3", "steps = 4"))
    return edited(path, ("[estimator]", BASIS + "[estimator]"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("cde", ""), ("cmde", "noise = 0.5\nshares = [1.0, 0.5]"), ("vs-cmde", "updates = 2")],
)
def test_super_resolution(name, options, tmp_path):
    """From a folder to a folder; what is fine is not there in the first stage, and y always is."""
    path, model = super_resolution(tmp_path, name, options), tmp_path / "model"
    looks = ("--pictures", tmp_path / "looks")
    result = run("train", path, "--output", model, *looks)
    assert result.exit_code == 0, result.output
    stages = Model.load(model).estimator.stages
    assert [stage.stage.dim for stage in stages] == [12 + 48, 12 + 192]
    small = pictures(tmp_path / "small", 2, size=2)
    flags = ("--given", small, "--count", 3, "--output", f"{tmp_path}/new/")
    result = run("sample", model, *flags)
    assert result.exit_code == 0, result.output
    assert read_images(tmp_path / "new").values.shape == (6, 3, 8, 8)
    if name == "cde":
        result = run("evaluate", model, "--data", tmp_path / "images", "--count", 2, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.output[result.output.index("{") :])
        assert torch.tensor(report["bits_per_dim"]).isfinite()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("drop = [1.0, 1.0, 0.5]", "drop = [1.0, 0.7, 0.5]", "of the last part, 'x', alone"),
        ("drop = [1.0, 1.0, 0.5]", "drop = [1.0, 0.5]", "sde: drop: expected 3 times"),
    ],
)
def test_a_file_that_is_wrong(old, new, message, tmp_path):
    path = edited(super_resolution(tmp_path, "cde"), (old, new))
    result = run("train", path, "--output", tmp_path / "model")
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1], result.output
