"""SDEs without a kernel, from a file to a file."""

import numpy as np
import pytest
from commands import run

from scoresde.app.model import Model

FILE = """
estimator = {{ name = "{estimator}", network = {{ name = "residual-mlp", width = 16, depth = 1 }} }}
[sde]
name = "{sde}"
{options}
[data]
source = "{source}"
[solver]
name = "euler-maruyama"
steps = 20
eta = 1.0
grid = "root_time"
[training]
steps = {steps}
batch_size = 64
lr = 5e-3
"""
SDES = {
    "cox-ingersoll-ross": "level = [3.0, 0.02]\nvolatility = [0.9, 0.07]",
    "geometric-brownian": "volatility = 0.4\nT = 1.0",
}


@pytest.mark.covering(1)
@pytest.mark.parametrize("estimator", ["transition-matching", "sliced"])
@pytest.mark.parametrize("sde", SDES)
def test_columns_keep_their_units_and_their_sign(estimator, sde, tmp_path):
    """Means and deviations are measured, though the file says nothing of them."""
    rng = np.random.default_rng(0)
    x = np.array([3.0, 0.02]) * rng.gamma(16, 1 / 16, (400, 2))
    np.save(tmp_path / "x.npy", x.astype(np.float32))

    def train(steps):
        path = tmp_path / "a.toml"
        names = {"estimator": estimator, "sde": sde, "options": SDES[sde]}
        path.write_text(FILE.format(**names, source=tmp_path / "x.npy", steps=steps))
        result = run("train", path, "--output", tmp_path / "model")
        assert result.exit_code == 0, result.output

    train(20)
    train(30)  # goes on from there
    model = Model.load(tmp_path / "model")
    assert model.facts["data_mean"] == pytest.approx([3.0, 0.02], rel=0.1)
    result = run("sample", tmp_path / "model", "--count", 300, "--output", tmp_path / "s.npy")
    assert result.exit_code == 0, result.output
    s = np.load(tmp_path / "s.npy")
    assert (s > 0).all()
    assert np.abs(s.mean(0) / x.mean(0) - 1).max() < 0.15
    assert np.abs(s.std(0) / x.std(0) - 1).max() < 0.4
    result = run("evaluate", tmp_path / "model", "--count", 3)
    assert result.exit_code == 0, result.output
