"""From a configuration to objects, and to a model that is saved and loaded."""

import datetime
import json
import math

import attrs
import numpy as np
import pytest
import torch

from scoresde import PCA, VP, Cosine, DiagonalSDE, Haar, Identity, Learned, log_prob
from scoresde.app.config import SUPPLIED, ConfigError, build, call_factory, read, with_defaults
from scoresde.app.model import Model
from scoresde.plugins import UnknownPlugin
from scoresde.training import Training, checkpoint
from scoresde.training.checkpoint import CheckpointError
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


def test_clocks_are_delayed_as_the_file_says(tmp_path):
    """And so they are in what is saved, and sampled."""
    Model.train(changed("sde.delays", [0.0, 0.2, 0.5]), progress=False).save(tmp_path)
    model = Model.load(tmp_path)
    assert model.estimator.sde.clock.delays.tolist() == [0.0, 0.2, 0.5]
    assert model.solver.sample(model.estimator, (2,)).isfinite().all()


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
    state, content = checkpoint.load(tmp_path)
    content["settings"]["estimator"]["network"]["width"] = 8
    checkpoint.save(tmp_path, state, content)
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
    state, content = checkpoint.load(tmp_path)
    content["settings"]["estimator"]["network"][key] = value
    checkpoint.save(tmp_path, state, content)
    with pytest.raises(CheckpointError, match=r"expected tensors of at most \d+ numbers in all"):
        Model.load(tmp_path)


def test_a_checkpoint_imports_nothing_unless_allowed(model, tmp_path):
    model.save(tmp_path / "model")
    state, content = checkpoint.load(tmp_path / "model")
    content["settings"]["solver"]["name"] = "solvers:DDIM"
    checkpoint.save(tmp_path / "model", state, content)
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
        (
            "solver",
            {"name": "torchdiffeq", "eta": 1.0},
            ConfigError,
            "solver: eta: expected 0 .*ODEs",
        ),
        (
            "solver.final_denoise",
            "yes",
            ConfigError,
            "solver: final_denoise: expected one of False, ",
        ),
        (
            "solver.corrector",
            "langevin",
            ConfigError,
            "solver: corrector: expected a Callable, got 'l",
        ),
        ("sde.prior", "normal", ConfigError, "sde: prior: expected a Distribution, got 'normal'"),
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
        ("training.epochs", 3, ConfigError, r"training\.epochs: unknown; write steps \(an epoch"),
        ("training.presett", "x", ConfigError, r"presett: unknown; did you mean 'preset'"),
        ("training.stepz", 3, ConfigError, r"training\.stepz: unknown; did you mean 'steps'.*seed"),
        ("training.steps", 2.5, ConfigError, "training: steps: .*whole number .*2.5"),
        (
            "training.lr",
            "0.002",
            ConfigError,
            "training: lr: expected a finite number .*, got '0.002'",
        ),
        ("training.seed", 1.5, ValueError, r"training\.seed: expected a whole number"),
        ("training.save_every", 0, ValueError, r"training\.save_every: expected a whole number"),
        ("training.lr", 1e300, ConfigError, r"training: lr: .* from 0 to 1e\+30, got 1e\+300"),
        ("training", 5, ConfigError, r"training: expected a table, \[training\] in a file, got 5"),
        ("training.steps", -3, ConfigError, "training: steps: .*whole number"),
        ("data.source", None, ConfigError, r"data\.source: expected a data set"),
        ("data.source", "digts", FileNotFoundError, "did you mean 'digits'"),
        ("data.source", "", ConfigError, r"data\.source: expected a data set, .* got ''"),
        ("data", {"source": "patches", "size": 8.5}, ValueError, "size: expected a whole number"),
        (
            "data",
            {"source": "patches", "stride": "a"},
            ValueError,
            "stride: expected a whole number",
        ),
        ("data.source", 3, ConfigError, r"data\.source: expected a data set, .* got 3"),
        ("data.stride", 3, ConfigError, r"data\.stride: unknown.*held_out"),
        ("data.held_out", 2.0, ValueError, r"data\.held_out: expected a share .* got 2\.0"),
        (
            "data.held_out",
            "0.1",
            ValueError,
            r"data\.held_out: expected a finite number, got '0.1'",
        ),
        ("data.seed", 1.5, ValueError, r"data\.seed: expected a whole number .*1\.5"),
        ("data.seed", 2**64, ValueError, r"data\.seed: expected a whole number of at most"),
        (
            "data",
            "digits",
            ConfigError,
            r"data: expected a table, \[data\] in a file, got 'digits'",
        ),
        (
            "sde.since",
            datetime.date(2020, 1, 1),
            ConfigError,
            r"sde\.since: expected a finite .*2020",
        ),
        ("solver.eta", math.inf, ConfigError, r"solver\.eta: expected a finite number, .* got inf"),
        ("sde.speeds", [1.0, math.nan], ConfigError, r"sde\.speeds\[1\]: .* got nan"),
        ("sde.delays", [0.0, 0.2, 1.0], ConfigError, "sde: delays: expected from 0 to below 1"),
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
        with pytest.raises(ConfigError, match=r"not a TOML file|at most 4096 characters"):
            read(path)


@pytest.mark.parametrize("basis", ["identity", "pca"])
def test_a_learned_schedule_is_not_given_the_components_of_a_basis(tmp_path, basis):
    settings = changed("sde", {"name": "diagonal", "schedule": {"name": "learned"}, "basis": basis})
    model = Model.train(settings, progress=False)
    assert isinstance(model.estimator.sde.schedule, Learned)
    assert model.estimator.sde.schedule.weight.shape[-1] == 1
    model.save(tmp_path)
    x = torch.zeros(2, 1, 8, 8)
    densities = [log_prob(m.estimator, x, m.solver) for m in (model, Model.load(tmp_path))]
    assert torch.equal(densities[0].value, densities[1].value)


KNOWN = {
    "event_shape": (3,),
    "data_mean": torch.arange(3.0),
    "data_std": torch.arange(1.0, 4.0),
    "data_components": torch.eye(3),
    "sde": DiagonalSDE(VP(), Identity((3,))),
}


def arguments(**taken):
    """What was given to a factory."""
    return taken


class Whatever(VP):
    """A schedule that takes every name that is known, and means something else by it."""

    def __init__(
        self,
        components=1,
        event_shape="mine",
        data_mean="mine",
        data_std="mine",
        data_components="mine",
        scale="mine",
        mode="mine",
    ):
        super().__init__()
        self.taken = [event_shape, data_mean, data_std, data_components, scale, mode]
        self.count = components


class Declares(Whatever):
    supplied = {"components": "data_components", "mode": "nothing that is known"}  # noqa: RUF012


class Method(Whatever):
    def supplied(self):
        """Called what a declaration is called."""


@pytest.mark.parametrize("own", [Whatever, Method])
def test_nothing_is_supplied_because_names_agree(own):
    path = f"{own.__module__}:{own.__name__}"
    schedule = build({"name": path, "mode": "sde"}, "schedule", KNOWN, imports=True)
    assert schedule.count == 1
    assert schedule.taken == [*["mine"] * 5, "sde"]


def test_what_is_declared_is_supplied_unless_the_file_says_otherwise():
    path = f"{Declares.__module__}:Declares"
    schedule = build(path, "schedule", KNOWN, imports=True)
    assert schedule.count is KNOWN["data_components"]
    assert schedule.taken == ["mine"] * 6
    assert build({"name": path, "components": 4}, "schedule", KNOWN, imports=True).count == 4


def test_a_string_stands_for_what_was_measured():
    path = f"{Whatever.__module__}:Whatever"
    table = {"name": path, "scale": "data_std", "mode": "data_components"}
    schedule = build(table, "schedule", KNOWN, imports=True)
    assert schedule.taken[-2:] == [KNOWN["data_std"], KNOWN["data_components"]]


def test_what_a_group_is_supplied_with():
    basis = build("identity", "basis", KNOWN)
    assert basis.event_shape == (3,)
    assert isinstance(build("pca", "basis", KNOWN), PCA)
    table = {"name": "diagonal", "schedule": "vp", "basis": "identity"}
    sde = build(table, "sde", KNOWN)
    assert torch.equal(sde.scale, KNOWN["data_std"].double())
    assert torch.equal(sde.mean, KNOWN["data_mean"].double())
    del table["basis"]
    with pytest.raises(ConfigError, match=r"sde\.basis: expected a value"):
        build(table, "sde", KNOWN)
    assert SUPPLIED["schedules"] == SUPPLIED["solvers"] == ()


class Exits:
    def __init__(self):
        raise SystemExit(0)


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


class Fails:
    def __init__(self):
        raise Mute


def nothing():
    """Returns no solver."""


def the_class():
    return DDIM


def misses():
    raise KeyError("weights")


def misses_a_file():
    raise FileNotFoundError(2, "No such file", "weights.pt")


def runs_out():
    raise MemoryError


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("solver", "nothing", "nothing': expected a Solver, got None"),
        ("solver", "the_class", "the_class': expected a Solver, got <class 'sol"),
        ("schedule", "the_class", "the_class': expected a Schedule, got <class"),
        ("basis", "Whatever", "Whatever': expected a Basis, got Whatever"),
        ("sde", "Whatever", "Whatever': expected an? SDE, got Whatever"),
        ("estimator", "arguments", "arguments': expected a ScoreEstimator, got {}"),
        ("network", "arguments", "arguments': expected a Module, got {}"),
        ("solver", "Exits", r":Exits failed: SystemExit: 0"),
        ("solver", "Fails", r":Fails failed: Mute"),
        ("solver", "misses", ":misses failed: KeyError: 'weights'"),
        ("solver", "misses_a_file", "failed: FileNotFoundError: .*weights.pt"),
        ("solver", "runs_out", "failed: MemoryError"),
        ("solver", "KNOWN", "expected something that can be called"),
    ],
)
def test_plugins_that_misbehave_are_named(key, name, message):
    path = f"{__name__}:{name}"
    with pytest.raises(ConfigError, match=rf"^{key}: .*{message}"):
        build(path, key, KNOWN, imports=True)


def test_what_does_not_say_what_it_takes():
    with pytest.raises(ConfigError, match=r"network: .*does not say what arguments"):
        build("builtins:dict", "network", KNOWN, imports=True)


def test_ctrl_c_in_a_factory_stops():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_factory(interrupted, {}, "solver")


class NoGrid(DDIM):
    def times(self, sde):
        raise AttributeError("grid")


@pytest.mark.parametrize(("key", "name"), [("solver", "nothing"), ("solver", "NoGrid")])
def test_a_solver_that_cannot_be_used_is_found_before_training(monkeypatch, key, name):
    monkeypatch.setattr(
        "scoresde.app.sections.Training.fit", lambda *_, **__: pytest.fail("trained")
    )
    with pytest.raises(ConfigError, match=f"^{key}: "):
        Model.train(changed(key, f"{__name__}:{name}"), progress=False, imports=True)


def test_a_basis_that_the_sde_does_not_take():
    settings = changed("sde", {"name": f"{__name__}:OwnSDE", "basis": "identity"})
    with pytest.raises(ConfigError, match=r"sde\.basis: unknown"):
        Model.train(settings, progress=False, imports=True)


class OwnSDE(DiagonalSDE):
    def __init__(self):
        super().__init__(VP(), Identity((1, 8, 8)))


def test_every_option_of_a_training_can_be_set(monkeypatch):
    seen = {}
    fit = Training.fit

    def spy(self, *args, **options):
        seen.update(options, training=self)
        return fit(self, *args, **options)

    monkeypatch.setattr("scoresde.app.sections.Training.fit", spy)
    own = {field.name: field.default for field in attrs.fields(Training)}
    own |= {"steps": 2, "batch_size": 4, "patience": 7}
    Model.train(changed("training", {**own, "seed": 5, "save_every": 2}), progress=False)
    assert seen["training"] == Training(**own)
    assert (seen["seed"], seen["save_every"]) == (5, 2)


def test_paths_are_remembered_as_strings(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 1, 8, 8)))
    settings = changed("data", {"source": str(tmp_path / "x.npy")})
    settings["data"]["source"] = tmp_path / "x.npy"
    model = Model.train(settings, progress=False)
    model.save(tmp_path / "model")
    assert Model.load(tmp_path / "model").settings["data"]["source"] == str(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "table",
    [
        {"name": "diagonal", "schedule": "vp", "basis": "identity"},
        {"name": "diagonal", "schedule": {"name": "vp", "beta_max": 20}, "basis": "identity"},
        {"name": "diagonal", "schedule": "vp", "basis": {"name": "identity"}, "scale": "data_std"},
    ],
)
def test_tables_that_say_the_same_are_the_same_with_defaults(table):
    full = with_defaults(table, "sde")
    assert full == with_defaults(full, "sde")
    assert full["schedule"] == {"name": "vp", "beta_min": 0.1, "beta_max": 20.0, "eps": 0.001}
    assert full["basis"] == {"name": "identity", "blocks": None, "event_shape": "event_shape"}
    assert (full["scale"], full["mean"]) == ("data_std", "data_mean")
    other = {**table, "schedule": {"name": "vp", "beta_max": 10.0}}
    assert with_defaults(other, "sde") != full


STAGED = {
    **SETTINGS,
    "sde": {**SETTINGS["sde"], "speeds": [1.0, 1.25, 2.0], "drop": [1.0, 0.8, 0.5]},
    "estimator": {
        "name": "multi-scale",
        "network_bases": "packed",
        "networks": {"name": "residual-mlp", "width": 8, "depth": 1},
    },
}


@pytest.mark.parametrize("several", [False, True])
def test_a_network_is_made_for_every_stage(several, tmp_path):
    settings = json.loads(json.dumps(STAGED))
    table = settings["estimator"]["networks"]
    if several:
        settings["estimator"]["networks"] = [{**table, "width": width} for width in (4, 6, 8)]
    model = Model.train(settings, progress=False)
    stages = model.estimator.stages
    shapes = [tuple(stage.network_basis.event_shape) for stage in stages]
    assert shapes == [(1, 2, 2), (4, 2, 2), (4, 4, 4)]
    widths = [stage.network.input_layer.out_features for stage in stages]
    assert widths == ([4, 6, 8] if several else [8, 8, 8])
    x = model.solver.sample(model.estimator, (2,), generator=torch.Generator().manual_seed(0))
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    again = loaded.solver.sample(loaded.estimator, (2,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, again)


def test_an_argument_of_one_of_several_networks_is_named():
    settings = json.loads(json.dumps(STAGED))
    settings["estimator"]["networks"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"estimator.networks.widht: unknown; did you"):
        Model.train(settings, progress=False)


def test_networks_have_defaults_too():
    for networks in ("residual-mlp", {"name": "residual-mlp", "depth": 4}):
        table = {"name": "multi-scale", "networks": networks}
        assert with_defaults(table, "estimator")["networks"]["depth"] == 4
    table = {"name": "multi-scale", "networks": ["residual-mlp"]}
    assert with_defaults(table, "estimator")["networks"][0]["width"] == 256
