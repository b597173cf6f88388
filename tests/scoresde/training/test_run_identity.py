"""A run is its configuration and its data: what differs is refused by name."""

import attrs
import pytest
import torch
from runs import DATA, Stop, edited
from torch import nn
from torch.distributions import Normal

from estimators import ResidualMLP
from scoresde import VE, Cosine, DiagonalSDE, Joint, LogLinear
from scoresde.conditioning import slowed
from scoresde.training import Training

ONE = DATA.values[:1]
MODELS = {
    "schedule": ({"sde": lambda basis: DiagonalSDE(Cosine(), basis)}, "estimator.sde.schedule"),
    "eps": ({"sde": lambda basis: DiagonalSDE(LogLinear(eps=1e-2), basis)}, "estimator.sde.eps"),
    "speeds": ({"sde": lambda basis: DiagonalSDE(LogLinear(), basis, [1.0, 2.0])}, "clock.speeds"),
    "scale": ({"sde": lambda basis: DiagonalSDE(LogLinear(), basis, scale=2.0)}, "sde.scale"),
    "prior": (
        {"sde": lambda basis: DiagonalSDE(LogLinear(), basis, prior=Normal(ONE[0], 2.0))},
        "sde.prior",
    ),
    "parametrisation": ({"parametrization": "noise"}, "estimator.parametrization"),
    "weighting": ({"weighting": "likelihood"}, "estimator.weighting"),
    "own weighting": ({"weighting": lambda levels: levels.sigma}, "estimator.weighting"),
    "times": ({"times": "wide_arctan_log_snr"}, "estimator.draw_times.knots"),
    "times apart": ({"times": "components"}, "estimator.times"),
    "delays": (
        {"sde": lambda basis: DiagonalSDE(LogLinear(), basis, delays=[0.0, 0.5])},
        "clock.delays",
    ),
    "mean": ({"data_mean": 0.1}, "estimator.data_mean"),
    "deviation": ({"data_std": 1.4}, "estimator.data_std"),
    "dropout": ({"network": ResidualMLP((2,), 16, 1, dropout=0.2)}, r"body\.2\.p"),
    "width": ({"network": ResidualMLP((2,), 8, 1, dropout=0.1)}, "out_features"),
    "depth": ({"network": ResidualMLP((2,), 16, 2, dropout=0.1)}, r"network\.blocks\.1"),
}
DATASETS = {
    "one number": (DATA.values + torch.eye(128, 2) * 1e-6, {}, "data"),
    "order": (DATA.values.flip(0).contiguous(), {}, "data"),
    "fewer": (DATA.values[:-1], {}, "data"),
    "precision": (DATA.values.double(), {}, "data"),
    "held-out": (DATA.values, {"held_out": ONE}, "held_out"),
    "seed": (DATA.values, {"seed": 1}, "seed"),
}
SETTINGS = {
    "batch_size": 64,
    "lr": 2e-3,
    "warmup": 0.2,
    "weight_decay": 0.1,
    "clip": 2.0,
    "ema": 0.9,
    "capture": True,
    "measurements": 5,
    "snapshots": 3,
    "measured_events": 100,
    "precision": "bfloat16",
    "patience": 4,
    "accumulation": 2,
    "compile": True,
}
ELSEWHERE = {"steps", "workers", "channels_last"}
"""Which may grow, changes nothing, and is of images."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that was interrupted."""
    folder = tmp_path_factory.mktemp("begun")

    def stop(step):
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        Training(steps=6).fit(
            edited(), DATA, DATA, progress=False, folder=folder, save_every=1, on_step=stop
        )
    return folder


def refused(begun, name, estimator=None, data=DATA, training=None, **options):
    """The message of a run that is not taken up, and leaves what is there."""
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(ValueError, match=rf"folder: the run in .* is another one: .*{name}.*: exp"):
        (training or Training(steps=6)).fit(
            edited() if estimator is None else estimator,
            data,
            **{"held_out": DATA, "progress": False, "folder": begun, **options},
        )
    assert {path.name: path.read_bytes() for path in begun.iterdir()} == before


@pytest.mark.parametrize("edit", MODELS)
def test_a_run_of_another_model_is_refused_by_what_differs(begun, edit):
    options, name = MODELS[edit]
    refused(begun, name, edited(**options))


@pytest.mark.parametrize("edit", DATASETS)
def test_a_run_of_other_data_is_refused(begun, edit):
    data, options, name = DATASETS[edit]
    refused(begun, name, data=data, **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_of_other_settings_is_refused(begun, name):
    assert SETTINGS.keys() | ELSEWHERE == attrs.asdict(Training()).keys()
    refused(begun, rf"training\.{name}", training=Training(steps=6, **{name: SETTINGS[name]}))


def test_a_schedule_of_the_training_belongs_to_it(tmp_path):
    def fit(noise, sigma=50.0):
        joint = DiagonalSDE(VE(0.01, [50.0, sigma]), Joint(y=(1,), x=(1,)))
        sde = slowed(joint, ["y"], noise, updates=4)
        return Training(steps=6).fit(edited(lambda _: sde), DATA, progress=False, folder=tmp_path)

    assert fit(1.0).steps == fit(1.0).steps
    with pytest.raises(ValueError, match=r"clock\.speeds\.0: expected 0\.5.*, got 0\.6"):
        fit(2.0)
    # what it moves is no difference, its neighbour is
    with pytest.raises(ValueError, match=r"sigma_max\.1: expected 50\.0, got 60\.0"):
        fit(1.0, 60.0)


@attrs.frozen
class Listener:
    rate: float

    def __call__(self, update):
        pass


def test_what_is_called_before_updates_belongs_to_it(tmp_path):
    def fit(rate):
        run = {"progress": False, "folder": tmp_path, "on_step": Listener(rate)}
        return Training(steps=2).fit(edited(), DATA, **run)

    assert fit(1.0).steps == fit(1.0).steps
    with pytest.raises(ValueError, match=r"on_step\.rate: expected 1\.0, got 2\.0"):
        fit(2.0)


def test_the_same_object_goes_on(begun, tmp_path):
    """Though its weights, statistics and counters are no longer those of the start."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.norm = 0, nn.BatchNorm1d(2)

        def forward(self, x, level):
            self.calls += 1
            return self.norm(x)

    estimator = edited(network=Counting())
    for steps in (4, 4, 6):
        history = Training(steps=steps).fit(estimator, DATA, progress=False, folder=tmp_path)
        assert history.steps[-1] == steps
    assert estimator.network.calls > 6
