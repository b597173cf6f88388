"""What is most likely not meant is done, and said."""

import re
import warnings

import numpy as np
import pytest
import torch

from estimators import Gaussian
from scoresde import DCT, VP, DiagonalSDE, Haar, Identity, Joint, Packed, ScoreDistribution
from scoresde.app.model import Model
from solvers import DDIM


def said(make):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make()
    return " | ".join(str(one.message) for one in found)


def gaussian(*shape):
    basis = Identity(shape)
    return Gaussian(DiagonalSDE(VP(), basis), torch.zeros(shape), torch.eye(basis.dim))


@pytest.mark.parametrize(
    ("event", "shape", "instead"),
    [
        ((3, 8, 8), (4, 3, 8, 8), "(4,)"),
        ((3, 8, 8), (3, 8, 8), "()"),
        ((2, 4), (2, 5, 2, 4), "(2, 5)"),
        ((2,), (100, 2), "(100,)"),
    ],
)
def test_shapes_of_results_in_the_place_of_samples(event, shape, instead):
    model = gaussian(*event)
    count = int(np.prod(shape))
    wanted = re.escape(f"{shape} are {count} samples of shape {event} each")
    for draw in (DDIM(1).sample, DDIM(1).rsample):
        with pytest.warns(UserWarning, match=rf"sample_shape: {wanted}.*give {re.escape(instead)}"):
            assert draw(model, shape).shape == (*shape, *event)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4), (8, 8), (4, 3, 8)])
def test_shapes_of_samples_are_no_mistake(shape):
    assert not said(lambda: DDIM(1).sample(gaussian(3, 8, 8), shape))
    assert not said(lambda: ScoreDistribution(gaussian(3, 8, 8), DDIM(1)).sample(shape))
    assert not said(lambda: DDIM(1).sample(gaussian(1), (5, 1)))
    assert not said(lambda: DDIM(1).sample(gaussian(2), (2,)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity((16, 16, 3)),
        lambda: DCT((8, 12, 4)),
        lambda: Joint(y=(2,), x=(32, 24, 1)),
    ],
)
def test_channels_that_come_last_are_named(make):
    assert re.search(r"event_shape: .* channels last; .* numpy.moveaxis", said(make))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Identity((3, 16, 16)),
        lambda: Identity((1, 28, 28)),
        lambda: Packed(Haar((3, 16, 16), 2)),
        lambda: Haar((3, 4, 4), 1),
        lambda: Identity((16, 16)),
        lambda: Identity((5, 5, 5)),
    ],
)
def test_other_events_are_not(make):
    assert not said(make)


def settings(path, **sde):
    return {
        "data": {"source": str(path)},
        "sde": {"name": "diagonal", "schedule": "vp", "basis": "identity", **sde},
        "estimator": {
            "name": "denoising",
            "network": {"name": "residual-mlp", "width": 16, "depth": 1},
        },
        "solver": {"name": "exponential-multistep", "steps": 20},
        "training": {"steps": 60, "batch_size": 64, "lr": 0.002},
    }


def test_images_with_channels_last_by_configuration(tmp_path):
    np.save(
        tmp_path / "x.npy", np.random.default_rng(0).integers(256, size=(20, 16, 16, 3), dtype="u1")
    )
    found = said(lambda: Model.train(settings(tmp_path / "x.npy"), progress=False))
    assert "(16, 16, 3) looks like an image with its channels last" in found


@pytest.mark.covering(1)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("schedule", ["vp", "cosine", "edm", "ve"])
@pytest.mark.parametrize(
    "data",
    [((2, 4), 1000.0, 0.0), ((1, 4, 4), 30.0, 127.0), ((3,), 1e4, -2e5), ((2, 4), 1e-3, 0.0)],
    ids=["signals", "levels", "columns", "narrow"],
)
def test_noise_is_in_units_of_the_data_by_configuration(tmp_path, data, schedule, dtype):
    """Whatever the shape of an event: no schedule is out of range."""
    shape, std, mean = data
    x = mean + std * np.random.default_rng(0).standard_normal((400, *shape))
    np.save(tmp_path / "x.npy", x.astype(dtype))
    torch.manual_seed(0)
    made = []

    def train():
        table = settings(tmp_path / "x.npy", schedule=schedule)
        made.append(Model.train(table, progress=False))

    assert not said(train)
    sde = made[0].estimator.sde
    found = made[0].solver.sample(made[0].estimator, (500,))
    assert sde.scale.flatten().tolist() == pytest.approx([std] * sde.scale.numel(), rel=0.2)
    assert float(found.std(0).mean()) == pytest.approx(std, rel=0.2)
    assert float(found.mean()) == pytest.approx(mean, abs=0.2 * std)


def test_scales_that_a_configuration_names_are_kept_and_looked_at(tmp_path):
    np.save(tmp_path / "x.npy", 1000 * np.random.default_rng(0).standard_normal((400, 2, 4)))
    table = settings(tmp_path / "x.npy", scale=1.0)
    found = said(lambda: Model.train(table, progress=False))
    assert "data of 'all' are not lost in noise at the last time" in found


@pytest.mark.parametrize("schedule", ["vp", "cosine", "edm", "rectified-flow"])
def test_constant_columns_come_back_as_the_constant(tmp_path, schedule):
    """From a table, through a file of settings, a folder and back."""
    rng = np.random.default_rng(0)
    rows = [(1, f"{v:.2f}", 0, -2.5) for v in 5e4 + 2e4 * rng.standard_normal(400)]
    lines = "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "x.csv").write_text("one,income,zero,half\n" + lines + "\n")
    table = settings(tmp_path / "x.csv", schedule=schedule)
    table["data"]["continuous"] = True
    torch.manual_seed(0)
    Model.train(table, progress=False).save(tmp_path / "model")
    model = Model.load(tmp_path / "model")
    x = model.solver.sample(model.estimator, (500,))
    for column, value in ((0, 1.0), (2, 0.0), (3, -2.5)):
        assert (x[:, column] - value).abs().max() < 5e-3 * max(1, abs(value))
    assert float(x[:, 1].std()) == pytest.approx(2e4, rel=0.2)
    assert model.solver.sample(model.estimator, (2,)).shape == (2, 4)
