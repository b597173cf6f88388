"""Models from configurations: what a run is of is in them, and threads do not meet."""

import copy
import threading

import attrs
import numpy as np
import pytest
import torch
from torch import nn

from scoresde.app.model import Model
from scoresde.training import checkpoint
from scoresde.training.state import TrainingState


def parameters(model):
    return nn.utils.parameters_to_vector(model.estimator.parameters())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for seed, name in enumerate("ab"):
        values = np.random.default_rng(seed).normal(size=(60, 2)).astype("f4")
        np.save(folder / f"{name}.npy", values)
    np.save(folder / "copy.npy", np.load(folder / "a.npy"))
    return folder


@pytest.fixture
def settings(files):
    return {
        "data": {"source": str(files / "a.npy"), "held_out": 0.2, "seed": 3},
        "sde": {
            "name": "diagonal",
            "schedule": {"name": "vp", "beta_max": 20.0},
            "basis": "identity",
        },
        "estimator": {
            "name": "denoising",
            "parametrization": "preconditioned",
            "weighting": "prediction",
            "times": "log_snr",
            "network": {"name": "residual-mlp", "width": 8, "depth": 1, "dropout": 0.1},
        },
        "solver": {"name": "ddim", "steps": 4},
        "training": {"steps": 6, "batch_size": 8, "seed": 0},
    }


@pytest.fixture
def begun(settings, tmp_path, monkeypatch):
    """A run that was interrupted before its fourth update."""
    update = TrainingState.update

    def interrupted(self, *arguments):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Model.train(settings, progress=False, folder=tmp_path / "run")
    return tmp_path / "run"


def edited(settings, path, value):
    changed = copy.deepcopy(settings)
    *tables, key = path.split(".")
    table = changed
    for name in tables:
        table = table[name]
    table[key] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.held_out", 0.3),
        ("data.seed", 4),
        ("sde.schedule.beta_max", 10.0),
        ("sde.schedule.eps", 1e-2),
        ("sde.speeds", [1.0, 2.0]),
        ("sde.basis", "dct"),
        ("estimator.parametrization", "noise"),
        ("estimator.weighting", "likelihood"),
        ("estimator.times", "wide_arctan_log_snr"),
        ("estimator.observe", "components"),
        ("estimator.network.dropout", 0.2),
        ("estimator.network.width", 16),
        ("training.seed", 1),
        ("training.lr", 2e-3),
        ("training.steps", 5),
        ("training.precision", "bfloat16"),
    ],
)
def test_an_edited_entry_is_named_and_nothing_goes_on(settings, begun, path, value):
    named = path.replace(".", r"\.")
    said = rf"^folder: the run in \S* is another one: {named}(\.name)?: expected [^;]*, got "
    with pytest.raises(ValueError, match=said):
        Model.train(edited(settings, path, value), progress=False, folder=begun)
    assert checkpoint.load(begun)[1]["step"] == 3


def test_another_source_is_named(settings, files, begun):
    changed = edited(settings, "data.source", str(files / "b.npy"))
    with pytest.raises(
        ValueError, match=r"data\.source: expected \S*a\.npy, got \S*b\.npy; data: "
    ):
        Model.train(changed, progress=False, folder=begun)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.source", "copy.npy"),  # the same data in another place
        ("data.lazy", True),
        ("solver.steps", 8),
        ("training.save_every", 2),
        ("training.lr", 1e-3),  # what it is anyway, as the following
        ("sde.schedule.beta_min", 0.1),
        ("sde.scale", "data_std"),
        ("sde.basis", {"name": "identity"}),
        ("estimator.network.event_shape", "event_shape"),
    ],
)
def test_what_does_not_change_the_run_may_be_edited(settings, files, begun, path, value):
    value = str(files / value) if path == "data.source" else value
    changed = edited(settings, path, value)
    found = Model.train(changed, progress=False, folder=begun)
    assert torch.equal(parameters(found), parameters(Model.train(settings, progress=False)))
    assert found.settings == changed


def test_more_steps_extend(settings, begun):
    found = Model.train(edited(settings, "training.steps", 9), progress=False, folder=begun)
    assert found.history.steps[-1] == 9


def test_settings_of_a_preset_are_those_it_names(settings):
    from scoresde.app.sections import training_of

    by_name, fit = training_of({"training": "images"})
    changed, _ = training_of({"training": {"preset": "images", "steps": 3, "seed": 1}})
    assert (by_name.lr, by_name.batch_size, fit["seed"]) == (2e-3, 32, 0)
    assert changed == attrs.evolve(by_name, steps=3)
    for wrong in ("sounds", {"preset": 7}):
        with pytest.raises(ValueError, match=r"training\.preset: expected one of 'images'"):
            training_of({"training": wrong})
    settings["training"] = {"preset": "images", "steps": 1, "batch_size": 4}
    assert Model.train(settings, progress=False).history.seconds > 0


def test_training_leaves_the_global_generators_alone(settings):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(parameters(Model.train(settings, progress=False)))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*found)
    other = Model.train(edited(settings, "training.seed", 1), progress=False)
    assert not torch.equal(found[0], parameters(other))


def in_threads(count, work):
    errors = []

    def run(i):
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_load_without_meeting(settings, tmp_path):
    """Models of several sizes, whose parameters are counted."""
    models = {}
    for width in (4, 64):
        changed = edited(settings, "estimator.network.width", width)
        models[width] = Model.train(changed, progress=False)
        models[width].save(tmp_path / str(width))

    def load(i):
        width = (4, 64)[i % 2]
        for _ in range(3):
            found = Model.load(tmp_path / str(width))
            assert torch.equal(parameters(found), parameters(models[width]))

    in_threads(8, load)


def test_threads_train_without_meeting(settings):
    wanted = parameters(Model.train(settings, progress=False))
    found = {}

    def train(i):
        found[i] = parameters(Model.train(settings, progress=False))

    in_threads(4, train)
    assert all(torch.equal(found[i], wanted) for i in range(4))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda network: torch.compile(network, backend="eager")],
    ids=["parallel", "compiled"],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_wrapped_model_is_saved_as_it_is_loaded(settings, tmp_path, wrap, whole):
    model = Model.train(settings, progress=False)
    wanted = parameters(model)
    if whole:
        model.estimator = wrap(model.estimator)
    else:
        model.estimator.network = wrap(model.estimator.network)
    model.save(tmp_path)
    found = Model.load(tmp_path)
    assert torch.equal(parameters(found), wanted)
    assert not any("_orig_mod" in name or "module" in name for name in found.estimator.state_dict())


def test_loading_draws_nothing_from_the_global_generator(settings, tmp_path):
    Model.train(settings, progress=False).save(tmp_path)
    before = torch.get_rng_state()
    Model.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
