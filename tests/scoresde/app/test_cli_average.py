"""The width of an average, chosen after training, from the command line."""

import pytest
import torch
from commands import config, edited, run

from scoresde.app.model import Model
from scoresde.training.post_hoc import PostHocAverages


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average")
    path = edited(config(folder), ("steps = 3\n", "steps = 6\nsnapshots = 3\n"))
    result = run("train", path, "--output", folder / "model")
    assert result.exit_code == 0, result.output
    return folder


def test_the_best_width_is_kept(trained):
    result = run("average", trained / "model", "--output", trained / "best")
    assert result.exit_code == 0, result.output
    first, *lines, last = result.output.splitlines()
    assert first.startswith("as it was: loss ")
    losses = {line.split(":")[0]: float(line.split()[-1]) for line in lines}
    best = min(losses, key=losses.get)
    assert f": {best}" in last
    one = run("average", trained / "model", "--output", trained / "one", "--width", best.split()[1])
    assert one.exit_code == 0, one.output
    weights = [Model.load(trained / n).estimator.state_dict() for n in ("best", "one", "model")]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert not all(torch.equal(v, weights[2][k]) for k, v in weights[0].items())


@pytest.mark.parametrize(("loss", "said"), [(0.5, False), (2.0, True)])
def test_it_says_that_the_weights_were_better(trained, tmp_path, monkeypatch, loss, said):
    monkeypatch.setattr(PostHocAverages, "losses", lambda *_, **__: {None: 1.0, 0.1: loss})
    result = run("average", trained / "model", "--output", tmp_path / "x", "--width", 0.1)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].endswith("loss is lower" if said else ": width 0.1")


def test_what_cannot_be_is_refused(trained):
    path = trained / "model"
    for options, words in (
        (("--output", trained / "x", "--width", 0.9), "width: expected"),
        (("--output", path), "--output: expected a new folder"),
    ):
        result = run("average", path, *options)
        assert result.exit_code != 0
        assert words in result.output
    assert not (trained / "x").exists()
    run("average", path, "--output", trained / "second", "--width", 0.1)
    result = run("average", trained / "second", "--output", trained / "third")
    assert result.exit_code != 0
    assert "snapshots" in result.output
