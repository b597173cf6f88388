"""Diffusion with velocities beside data, from a file to a file."""

import json
import math

import numpy as np
import pytest
import torch
from commands import edited, run

from scoresde.app.model import Model
from scoresde.training import checkpoint

FILE = """
[data]
source = "SOURCE"
[sde]
name = "NAME"
schedule = "log-linear"
basis = "identity"
OPTIONS
[estimator]
name = "denoising"
network = { name = "residual-mlp", width = 16, depth = 1 }
[solver]
name = "exponential-multistep"
steps = 12
[training]
steps = 20
batch_size = 64
lr = 5e-3
"""
MEAN, STD = np.array([0.5, 0.01]), np.array([1.0, 0.3])
SDES = {
    "cld": ("friction = 2.0", [[0.0, 1.0], [-1.0, -2.0]]),
    "psld": ("friction = 2.25\nleak = 0.25", [[-0.125, 0.5], [-0.5, -1.125]]),
    "hold": (
        "gamma = 0.1",
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 8**0.5], [0.0, -(8**0.5), -(27**0.5)]],
    ),
}


def model_file(folder, name, *edits):
    x = MEAN + STD * np.random.default_rng(0).standard_normal((400, 2))
    np.save(folder / "x.npy", x.astype(np.float32))
    path = folder / "model.toml"
    path.write_text(FILE)
    source, (options, _) = str(folder / "x.npy"), SDES[name]
    return edited(path, ("SOURCE", source), ("NAME", name), ("OPTIONS", options), *edits)


def done(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", SDES)
def test_what_a_file_says_is_trained_drawn_and_measured(name, tmp_path):
    path, folder = model_file(tmp_path, name), tmp_path / "model"
    done("train", path, "--output", folder)
    estimator = Model.load(folder).estimator
    drift = torch.tensor(SDES[name][1], dtype=torch.float64)
    torch.testing.assert_close(estimator.sde.dynamics.drift, drift)
    for eta in (0.0, 1.0):
        output = tmp_path / f"{eta}.npy"
        options = ("--count", 300, "--seed", 0, "--eta", eta)
        done("sample", folder, *options, "--output", output)
        x = np.load(output)  # of positions alone
        assert x.shape == (300, 2)
        assert np.abs((x.mean(0) - MEAN) / STD).max() < 0.25
        assert np.abs(x.std(0) / STD - 1).max() < 0.25
    figures = json.loads(done("evaluate", folder, "--steps", 60, "--json"))
    assert abs(figures["nats"] + 1 + math.log(2 * math.pi) + np.log(STD).sum()) < 0.5
    assert figures["solver_error"] < 0.7
    rough = run("evaluate", folder, "--solver", "heun", "--steps", 3, "--json")
    assert "log_prob: expected errors below 0.71 nats" in rough.stderr
    assert json.loads(rough.stdout)["solver_error"] > 5


@pytest.mark.parametrize("name", ["psld"])
def test_a_training_interrupted_goes_on_as_if_it_had_not_been(name, tmp_path):
    for folder, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        path = model_file(tmp_path, name, ("steps = 20", f"steps = {steps}"))
        done("train", path, "--output", tmp_path / folder)
    whole, parts = (checkpoint.load(tmp_path / name)[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("cld", "friction = 0", "friction"),
        ("psld", "friction = 2.25\nleak = 2.25", "leak: expected other than the friction"),
        ("hold", "gamma = -1.0", "gamma"),
        ("hold", "friction = 1.0", "friction"),
        ("cld", "drop = 0.5", "drop"),
    ],
)
def test_what_it_cannot_be_is_said_in_a_sentence(name, option, said, tmp_path):
    path = model_file(tmp_path, name, (SDES[name][0], option))
    result = run("train", path, "--output", tmp_path / "m")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "m").exists()
