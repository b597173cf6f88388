"""Stages of a file's multi-scale model: how many events of a batch each is trained on."""

import numpy as np
import pytest
from commands import run

STAGED = """
[data]
source = "{source}"
[sde]
name = "diagonal"
schedule = "cosine"
speeds = [1.0, 2.0]
drop = [1.0, 0.5]
[sde.basis]
name = "haar"
levels = 1
[estimator]
name = "multi-scale"
shares = {shares}
[estimator.networks]
name = "residual-mlp"
width = 8
depth = 1
[solver]
name = "exponential-multistep"
steps = 4
[training]
steps = {steps}
batch_size = 8
measurements = 1
"""


@pytest.fixture
def train(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((20, 1, 4, 4)))

    def trained(shares, steps):
        path = tmp_path / "staged.toml"
        path.write_text(STAGED.format(source=tmp_path / "x.npy", shares=shares, steps=steps))
        return run("train", path, "--output", tmp_path / "model")

    return trained


def test_a_batch_size_for_every_stage_is_part_of_a_run(train):
    assert train([1.0, 0.5], 2).exit_code == 0
    other = train([1.0, 0.25], 4)
    assert other.exit_code != 0
    assert "estimator.shares: expected [1.0, 0.5], got [1.0, 0.25]" in other.output


@pytest.mark.parametrize("shares", ["[1.0]", "[1.0, 1.5]", '[1.0, "half"]'])
def test_shares_that_are_none_are_named(train, shares):
    result = train(shares, 2)
    assert result.exit_code != 0
    assert "shares: expected" in result.output
    assert "Traceback" not in result.output
