"""Pictures while a model is trained, drawn as it is sampled."""

import numpy as np
import pytest
import torch
from commands import edited, run
from PIL import Image
from test_sampling_task import FILE, HALVES, pictures

from scoresde.app.model import Model
from scoresde.app.parts import data_of
from scoresde.app.previews import previews
from scoresde.conditioning import condition
from scoresde.data.events import events
from scoresde.training.distributed import SINGLE_PROCESS

WHOLE = '[data.parts]\ny = { name = "downsample", factor = 4 }\nx = "whole"'


def trained(folder, data, name="cmde"):
    (folder / "config.toml").write_text(FILE.format(data=data, name=name, options=""))
    flags = ("--output", folder / "model", "--pictures", folder / "looks")
    return run("train", folder / "config.toml", *flags)


@pytest.mark.parametrize("name", ["cde", "cmde"])
def test_samples_stand_beside_what_they_are_given(name, tmp_path):
    source = pictures(tmp_path / "images", count=20)
    result = trained(tmp_path, f'source = "{source}"\n{WHOLE}', name)
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "looks").iterdir()
    assert path.name == "00000002.png"
    assert Image.open(path).width > Image.open(path).height


def test_they_are_those_of_the_models_own_solver(tmp_path, monkeypatch):
    """Given the first events that are held out, whose parts come first in every row."""
    assert trained(tmp_path, HALVES).exit_code == 0
    model, drawn = Model.load(tmp_path / "model"), []
    train, held_out = data_of(model.settings)
    look = previews(model, tmp_path / "again", SINGLE_PROCESS, train, held_out)
    monkeypatch.setattr("scoresde.app.plots.save", lambda figure, path: None)
    monkeypatch.setattr(
        "scoresde.app.plots.image_grid", lambda panels, columns=8: drawn.append(panels)
    )
    look(2, model.estimator, None)
    ((title, rows),) = drawn[-1].items()
    assert title == "y given, and samples"
    halves = events(held_out, torch.Generator().manual_seed(0), torch.arange(8))[:, :32]
    known = halves.reshape(8, 1, 8, 4)
    given = condition(model.estimator, clean=False, y=known.repeat_interleave(8, 0))
    x = model.solver.sample(given, (64,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        rows, torch.cat([known.unsqueeze(1), x.unflatten(0, (8, 8))], 1).flatten(0, 1)
    )


def test_parts_that_are_not_given_are_drawn_side_by_side(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(FILE.format(data=HALVES, name="denoising", options=""))
    edited(path, ("[estimator.networks]", "[estimator.network]"))
    result = run("train", path, "--output", tmp_path / "model", "--pictures", tmp_path / "looks")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "looks").iterdir())) == 1


def test_what_are_no_images_is_refused_before_the_training(tmp_path):
    rows = np.random.default_rng(0).normal(size=(30, 3))
    text = "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "table.csv").write_text(f"a,b,c\n{text}\n")
    result = trained(
        tmp_path, f'source = "{tmp_path}/table.csv"\n[data.parts]\nx = ["c", "a"]\ny = ["b"]'
    )
    assert "pictures: expected events that are images" in result.output
    assert not (tmp_path / "looks").exists()
