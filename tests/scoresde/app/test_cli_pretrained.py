"""A model that somebody else has trained: sampled, evaluated and trained on from a file."""

import json

import numpy as np
import pytest
import torch
from commands import edited, run
from PIL import Image
from torch import nn

from scoresde.app.model import Model, loaded
from scoresde.training import checkpoint


class Theirs(nn.Module):
    """As a network of that library is called."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, sample, timestep, class_labels=None):
        told = 0.0 if class_labels is None else class_labels.reshape(-1, 1, 1, 1) / 4
        return (self.layer(sample) + told,)


@pytest.fixture(autouse=True)
def _theirs(monkeypatch):
    monkeypatch.setattr("estimators.pretrained._unet", lambda folder, about: Theirs().eval())


@pytest.fixture
def folder(tmp_path):
    """Their folder, images like theirs, and a file of both."""
    about = {"sample_size": 8, "in_channels": 3, "num_class_embeds": 3}
    files = {
        "unet/config.json": about,
        "scheduler/scheduler_config.json": {"beta_schedule": "linear"},
    }
    for name, content in files.items():
        (tmp_path / "theirs" / name).parent.mkdir(parents=True)
        (tmp_path / "theirs" / name).write_text(json.dumps(content))
    shades = np.random.default_rng(0)
    for i in range(9):
        kind = tmp_path / "images" / str(i % 3)
        kind.mkdir(parents=True, exist_ok=True)
        pixels = shades.integers(256, size=(8, 8, 3), dtype="u1")
        Image.fromarray(pixels).save(kind / f"{i}.png")
    path = tmp_path / "theirs.toml"
    assert run("init", "pretrained", tmp_path / "theirs", "--output", path).exit_code == 0
    source = f'source = "{tmp_path}/images"\nlabels = true'
    edited(path, ('source = "images"', source), ("steps = 24", "steps = 4"),
           ("steps = 10000\nbatch_size = 64", "steps = 2\nbatch_size = 4"))  # fmt: skip
    return tmp_path


def test_a_file_to_a_folder_of_images(folder):
    out = folder / "new"
    flags = ("--label", 2, "--label", 0, "--count", 4, "--output", f"{out}/")
    result = run("sample", folder / "theirs.toml", *flags)
    assert result.exit_code == 0, result.output
    found = {
        kind.name: [Image.open(path).size for path in kind.iterdir()] for kind in out.iterdir()
    }
    assert found == {"0": [(8, 8)] * 2, "2": [(8, 8)] * 2}
    assert run("cite", folder / "theirs.toml").exit_code == 0


def test_samples_are_those_of_python(folder):
    from estimators import from_diffusers

    out = folder / "x.npy"
    result = run("sample", folder / "theirs.toml", "--label", 1, "--count", 2, "--seed", 5,
                 "--output", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    model, solver = from_diffusers(folder / "theirs"), loaded(folder / "theirs.toml").solver
    told, generator = torch.tensor([1, 1]), torch.Generator().manual_seed(5)
    x = solver.sample(model, (2,), condition=told, generator=generator)
    shades = ((x + 1) / 2 * 256).floor().clamp(0, 255).numpy()
    assert np.array_equal(np.load(out), shades)


def test_data_are_evaluated(folder):
    for flags in ([], ["--data", folder / "images"], ["--frechet", "--features", "pixels"]):
        count = [] if "--frechet" in flags else ["--count", 2]
        data = ["--data", folder / "images"] if "--frechet" in flags else []
        result = run("evaluate", folder / "theirs.toml", "--json", *flags, *count, *data)
        assert result.exit_code == 0, result.output
        report = json.loads(result.output[result.output.index("{") :])
        assert np.isfinite(report["frechet" if "--frechet" in flags else "bits_per_dim"])


def test_it_is_trained_on(folder):
    path, out = folder / "theirs.toml", folder / "model"
    result = run("train", path, "--output", out)
    assert result.exit_code == 0, result.output
    model, before = Model.load(out), Theirs().layer.weight
    after = model.estimator.network.network.layer.weight
    assert 0 < (after - before).abs().max() < 1e-3
    assert checkpoint.load(out)[1]["facts"]["classes"] == ["0", "1", "2"]
    assert "over, at step 2" in run("train", path, "--output", out).output
    result = run("sample", out, "--label", 1, "--count", 2, "--output", f"{folder}/after/")
    assert result.exit_code == 0, result.output


def test_guidance(folder):
    """A wrapper in the file, of a label that stands for none."""
    wrapped = ('[estimator]\nname = "diffusers"',
               '[estimator]\nname = "classifier-free"\nnull_condition = 2\n[estimator.estimator]\n'
               'name = "diffusers"')  # fmt: skip
    edited(folder / "theirs.toml", wrapped)
    found = []
    for scale in (1, 3):
        flags = ("--label", 0, "--guidance", scale, "--count", 2, "--output", folder / "x.npy")
        result = run("sample", folder / "theirs.toml", *flags)
        assert result.exit_code == 0, result.output
        found.append(np.load(folder / "x.npy"))
    assert not np.array_equal(*found)


def test_images_of_another_size_are_named(folder):
    source = f'source = "{folder}/images"'
    path = edited(folder / "theirs.toml", (source, f"{source}\nsize = [6, 8]"))
    known = "(size = [8, 8] resizes them), got (3, 6, 8)"
    result = run("train", path, "--output", folder / "model")
    assert "data: expected images (3, 8, 8), which the estimator was trained on" in result.output
    assert known in result.output.splitlines()[-1]
    for flags in ((), ("--frechet", "--features", "pixels")):
        result = run("evaluate", path, "--data", folder / "images", *flags)
        assert f"data: expected images (3, 8, 8), as trained on {known}" in result.output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("theirs\"", "nowhere\"", "estimator: "),
        ("[solver]", '[sde]\nname = "diagonal"\n[solver]', "sde: expected none, as the estimator"),
        ("steps = 4\n", "[plan]\ncost = 3.0\n", "plan: expected one that was made"),
        ('name = "diffusers"', 'name = "denoising"\nnetwork = "unet"', "sde: expected a table"),
        ('name = "diffusers"', 'name = "diffusers"\nfolders = 1', "estimator"),
        ('[estimator]\nname = "diffusers"', "[estimator]", "estimator.name: expected a name"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong(old, new, message, folder):
    result = run("sample", edited(folder / "theirs.toml", (old, new)))
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1], result.output
    assert "Traceback" not in result.output


def test_what_is_no_model(folder, tmp_path):
    from commands import config

    result = run("sample", folder / "theirs")
    assert f"has a file: scoresde init pretrained {folder}/theirs)" in result.output
    result = run("sample", config(tmp_path))
    assert "estimator: expected one that is trained already" in result.output
    assert run("sample", tmp_path / "none.toml").exit_code == 1
