"""From a configuration to objects, and to a model that is saved and loaded."""

import json

import numpy as np
import pytest
import torch

from scoresde import Cosine, DiagonalSDE, Haar
from scoresde.checkpoint import CheckpointError
from scoresde.config import ConfigError, build, read
from scoresde.model import Model
from scoresde.plugins import UnknownPlugin
from solvers import DDIM

SETTINGS = {
    "data": {"source": "digits", "held_out": 0.2, "seed": 3},
    "sde": {
        "name": "diagonal",
        "schedule": "cosine",
        "basis": {"name": "haar", "levels": 2},
        "speeds": [1.0, 1.5, 2.0],
        "scale": "data_std",
    },
    "estimator": {
        "name": "denoising",
        "network": {"name": "residual-mlp", "width": 16, "depth": 1},
    },
    "solver": {"name": "ddim", "steps": 4},
    "training": {"steps": 3, "batch_size": 8},
}


def changed(path, value):
    """The settings with one entry set, or removed if the value is None."""
    settings = json.loads(json.dumps(SETTINGS))
    *tables, key = path.split(".")
    table = settings
    for name in tables:
        table = table[name]
    if value is None:
        del table[key]
    else:
        table[key] = value
    return settings


@pytest.fixture(scope="module")
def model():
    return Model.train(SETTINGS, progress=False)


def test_parts_are_what_the_file_says(model):
    sde = model.estimator.sde
    assert isinstance(sde, DiagonalSDE)
    assert isinstance(sde.schedule, Cosine)
    assert isinstance(sde.basis, Haar)
    assert sde.clock.speeds.tolist() == [1.0, 1.5, 2.0]
    assert sde.scale.tolist() == model.facts["data_std"]
    assert torch.equal(model.estimator.data_std, sde.scale)
    assert model.solver == DDIM(4)


def test_saved_and_loaded_models_sample_alike(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")

    def samples(m):
        generator = torch.Generator().manual_seed(0)
        return m.solver.sample(m.estimator, (3,), generator=generator)

    assert torch.equal(samples(loaded), samples(model))
    assert not loaded.estimator.training


def test_fitted_bases_are_saved(tmp_path):
    settings = changed("sde.basis", {"name": "pca"})
    settings["sde"] |= {"speeds": 1.0, "scale": 1.0}
    model = Model.train(settings, progress=False)
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    assert torch.equal(loaded.estimator.sde.basis.components, model.estimator.sde.basis.components)
    assert not torch.equal(
        loaded.estimator.sde.basis.components, torch.eye(64, dtype=torch.float64)
    )


def test_weights_of_another_model_are_refused(model, tmp_path):
    model.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"width": 16', '"width": 8'))
    with pytest.raises(CheckpointError, match="do not fit"):
        Model.load(tmp_path)


def test_own_objects_by_import_path():
    table = {"name": "solvers:DDIM", "steps": 7}
    assert build(table, "solver", {}, imports=True) == DDIM(7)
    with pytest.raises(UnknownPlugin, match=r"'solvers:DDIM' is an import path.*--allow-imports"):
        build(table, "solver", {})


def test_own_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3)).astype("f4"))
    settings = {
        "data": {"source": str(tmp_path / "x.npy")},
        "sde": {"name": "diagonal", "schedule": {"name": "vp"}, "basis": "identity"},
        "estimator": {"name": "denoising", "network": "residual-mlp"},
        "solver": "heun",
        "training": {"steps": 2},
    }
    model = Model.train(settings, progress=False)
    assert model.solver.sample(model.estimator, (2,)).shape == (2, 3)


@pytest.mark.parametrize(("key", "value"), [("width", 10**5), ("depth", 10**9)])
def test_a_model_takes_no_more_memory_than_its_weights(model, tmp_path, key, value):
    model.save(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["config"]["settings"]["estimator"]["network"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"expected at most .* parameters"):
        Model.load(tmp_path)


def test_a_checkpoint_imports_nothing_unless_allowed(model, tmp_path):
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"ddim"', '"solvers:DDIM"'))
    with pytest.raises(UnknownPlugin, match="import path"):
        Model.load(tmp_path / "model")
    assert Model.load(tmp_path / "model", imports=True).solver == model.solver


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        ("solver.stepz", 3, ConfigError, r"solver\.stepz: unknown; did you mean 'steps'"),
        ("solver.name", "dim", UnknownPlugin, "did you mean 'ddim'"),
        ("solver.name", None, ConfigError, r"solver\.name: expected a name"),
        ("solver.steps", 0, ConfigError, "solver: steps: expected a whole number of at least 1"),
        ("solver.steps", "many", ConfigError, "solver: steps: .*'many'"),
        ("solver", None, ConfigError, "solver: expected a table"),
        ("solver", 3, ConfigError, "solver: expected a name or a table with one, got 3"),
        ("solver.name", ["ddim"], ConfigError, r"solver\.name: expected a name, got \['ddim'\]"),
        ("solvr", {}, ConfigError, "solvr: unknown; did you mean 'solver'"),
        ("sde.basis.levels", None, ConfigError, r"sde\.basis\.levels: expected a value"),
        ("sde.basis.levels", 9, ConfigError, r"sde\.basis: levels: .*2\*\*9"),
        ("sde.speeds", [1.0, 2.0], ConfigError, "sde: speeds: .*got 2"),
        ("sde.schedule", "cosin", UnknownPlugin, "did you mean 'cosine'"),
        ("sde.schedule", None, ConfigError, r"sde\.schedule: expected a value"),
        ("estimator.network.name", "os:system", UnknownPlugin, "import path"),
        ("estimator.weighting", "likely", ConfigError, "estimator: weighting: unknown name"),
        ("training.epochs", 3, ConfigError, "training: .*epochs"),
        ("training.steps", -3, ConfigError, "training: steps: .*whole number"),
        ("data.source", None, ConfigError, r"data\.source: expected a data set"),
        ("data.source", "digts", FileNotFoundError, "did you mean 'digits'"),
        ("data.stride", 3, ConfigError, "data: .*stride"),
        ("data.held_out", 2.0, ValueError, "fraction"),
    ],
)
def test_clear_error(path, value, error, message):
    with pytest.raises(error, match=message):
        Model.train(changed(path, value), progress=False)


def test_what_is_not_toml(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        read(path)
    for content in (b"\xff\xfe\x00", b"a = " + b"[" * 5000, b"a = " + b"1" * 5000):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not a TOML file"):
            read(path)
