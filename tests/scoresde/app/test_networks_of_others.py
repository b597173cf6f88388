"""Networks of other libraries, named in a file: from the built-in digits to samples."""

import re

import numpy as np
import pytest
import torch
from commands import run
from torch import nn

from scoresde.app.config import build

FILE = """
[data]
source = "digits"
[sde]
name = "diagonal"
schedule = "cosine"
basis = "identity"
[estimator]
name = "denoising"
[estimator.network]
{network}
[solver]
name = "ddim"
steps = 2
[training]
steps = 2
batch_size = 4
"""

NAMED = 'name = "diffusers-unet"\nchannels = [8, 16]\nblocks = 1'
ADAPTED = """
name = "estimators:NetworkAdapter"
[estimator.network.network]
name = "test_networks_of_others:Modulated"
channels = 2
width = 4
[estimator.network.embed]
name = "test_networks_of_others:Embed"
width = 4
"""


class Layer(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.inside = nn.Conv2d(1, channels, 3, padding=1)
        self.out, self.told = nn.Conv2d(channels, 1, 1), nn.Linear(width, channels)

    def forward(self, x, mod):
        return self.out(self.inside(x) + self.told(mod)[..., None, None])


class Modulated(nn.Module):
    """Hands on what it does not know, as networks of azula do."""

    def __init__(self, channels, **options):
        super().__init__()
        self.layer = Layer(channels, **options)

    def forward(self, x, mod):
        return self.layer(x, mod)


class Embed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(1, width)

    def forward(self, noise_level):
        return self.layer(noise_level.unsqueeze(-1)).cos()


@pytest.mark.parametrize("network", [NAMED, ADAPTED], ids=["by name", "by its import path"])
def test_they_are_trained_and_sampled(tmp_path, network):
    path, allowed = tmp_path / "theirs.toml", ["--allow-imports"] if ":" in network else []
    path.write_text(FILE.format(network=network))
    result = run("train", path, "--output", tmp_path / "model", *allowed)
    assert result.exit_code == 0, result.output
    out = tmp_path / "x.npy"
    result = run("sample", tmp_path / "model", "--count", 3, "--output", out, *allowed)
    assert result.exit_code == 0, result.output
    assert np.load(out).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width = 4\n[", "widht = 4\n[", "TypeError|widht"),
        ("channels = 2", "channel = 2", "network.channels: expected a value, got none"),
        ('name = "test_networks_of_others:Embed"\nwidth = 4', "width = 4", "embed.name: expected"),
    ],
)
def test_what_is_wrong_is_said_by_its_place(tmp_path, old, new, message):
    path = tmp_path / "theirs.toml"
    path.write_text(FILE.format(network=ADAPTED.replace(old, new)))
    result = run("train", path, "--output", tmp_path / "model", "--allow-imports")
    assert result.exit_code == 1
    assert "estimator.network." in result.output
    assert "Traceback" not in result.output
    assert re.search(message, result.output), result.output


def test_the_embedding_learns():
    """It is a part of the network, and its weights are the model's."""
    table = {
        "name": "estimators:NetworkAdapter",
        "network": {"name": f"{__name__}:Modulated", "channels": 2, "width": 4},
        "embed": {"name": f"{__name__}:Embed", "width": 4},
    }
    network = build(table, "estimator.network", {"event_shape": [1, 8, 8]}, imports=True)
    network(torch.ones(2, 1, 8, 8), torch.zeros(2)).sum().backward()
    assert all(p.grad is not None for p in network.embed.parameters())
