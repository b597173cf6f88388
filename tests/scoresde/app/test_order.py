"""Samples of one model in any order, from a file and the command line."""

import numpy as np
import pytest
import torch
from commands import config, edited, run

from scoresde.app.model import Model
from scoresde.app.sampling_task import sampling_task
from scoresde.sdes.fronts import along, front

NETWORKS = {
    "residual-mlp": ("depth = 1", "depth = 1\nnoise_levels = 64"),
    "unet": (
        'name = "residual-mlp"\nwidth = 16\ndepth = 1',
        'name = "unet"\nchannels = [8]\nblocks = 1\nnoise_levels = [4, 12, 48]',
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def folder(tmp_path_factory, request):
    """Bands of digits at times of their own, the finest of them delayed a little."""
    path = tmp_path_factory.mktemp("order")
    text = edited(
        config(path),
        ('name = "denoising"', 'name = "denoising"\ntimes = "blocks"'),
        NETWORKS[request.param],
        ('schedule = "log-linear"', 'schedule = "log-linear"\ndelays = [0.0, 0.0, 0.1]'),
    )
    result = run("train", text, "--output", path / "model")
    assert result.exit_code == 0, result.output
    return path / "model"


def sampled(folder, path, *arguments):
    result = run("sample", folder, "--count", 3, "--output", path / "x.npy", *arguments)
    assert result.exit_code == 0, result.output
    return torch.from_numpy(np.load(path / "x.npy"))


@pytest.mark.parametrize(
    ("order", "overlap", "ranks"),
    [("a2,d2,d1", None, [0, 1, 2]), ("d1, a2", 0.5, [1, 2, 0]), ("d2", 0.0, [1, 0, 1])],
)
def test_samples_are_those_of_the_clock_of_an_order(folder, tmp_path, order, overlap, ranks):
    more = [] if overlap is None else ["--overlap", overlap]
    x = sampled(folder, tmp_path, "--order", order, "--steps", 7, *more)
    assert not torch.allclose(x, sampled(folder, tmp_path, "--steps", 7))
    assert_clock(
        sampling_task(Model.load(folder), 3, 0, order=order, overlap=overlap), ranks, overlap
    )


def assert_clock(task, ranks, overlap):
    sde = task.estimator.sde
    wanted = front(ranks, overlap or 0.0, sde.eps / sde.T)
    torch.testing.assert_close(sde.clock.delays, wanted.delays)
    torch.testing.assert_close(sde.clock.speeds, wanted.speeds)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """A model of digits, every pixel of which is at a time of its own."""
    path = tmp_path_factory.mktemp("pixels")
    text = edited(
        config(path),
        ('name = "haar"\nlevels = 2', 'name = "identity"'),
        ('name = "denoising"', 'name = "denoising"\ntimes = "components"'),
        (NETWORKS["unet"][0], NETWORKS["unet"][1].replace("[4, 12, 48]", "64")),
    )
    result = run("train", text, "--output", path / "model")
    assert result.exit_code == 0, result.output
    return path / "model"


@pytest.mark.parametrize(("shape", "axis"), [("1x1x8", -2), ("1x8x1", -1)])
def test_pixels_are_drawn_in_patches(pixels, tmp_path, shape, axis):
    ranks = along((1, 8, 8), axis)
    assert_clock(sampling_task(Model.load(pixels), 3, 0, order=shape, overlap=0.3), ranks, 0.3)
    x = sampled(pixels, tmp_path, "--order", shape, "--overlap", 0.3, "--steps", 12)
    assert not torch.allclose(x, sampled(pixels, tmp_path, "--steps", 12))


def test_patches_that_are_none_are_refused(pixels, folder, tmp_path):
    for model, shape, message in (
        (pixels, "8x8", "--order: expected patches of events 1x8x8, with as many sizes, got 8x8"),
        (pixels, "1x0x8", "--order: expected patches"),
        (folder, "1x4x4", "--order: expected blocks, as components are no pixels, got 1x4x4"),
    ):
        result = run("sample", model, "--output", tmp_path / "x.npy", "--order", shape)
        assert (result.exit_code, message in result.output) == (1, True), result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "a2,d3"], "order: expected blocks, each once, of a2, d2, d1"),
        (["--order", "a2,a2"], "order: expected blocks, each once"),
        (["--order", "a2", "--overlap", 2], "overlap: expected"),
        (["--overlap", 0.5], "--overlap: expected an --order beside it, got 0.5"),
    ],
)
def test_orders_that_are_none_are_refused(folder, tmp_path, arguments, message):
    result = run("sample", folder, "--output", tmp_path / "x.npy", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "x.npy").exists()


def test_a_model_of_one_time_knows_one_order(tmp_path):
    assert run("train", config(tmp_path), "--output", tmp_path / "model").exit_code == 0
    result = run("sample", tmp_path / "model", "--order", "a2", "--output", tmp_path / "x.npy")
    assert result.exit_code == 1
    assert "times: expected independent ones in training" in result.output
