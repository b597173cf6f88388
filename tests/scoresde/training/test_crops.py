"""Training cuts windows from images by a seed and a step, and measures those in the middle."""

import attrs
import pytest
import torch
from runs import same
from test_flips import Watching, interrupted, model, shared

from scoresde.data import Dataset, LazyArray
from scoresde.training import Training
from scoresde.training.run_identity import RunMismatch

# which event it is before the point, and behind it where the window is
IMAGES = torch.arange(30.0).reshape(-1, 1, 1, 1) + torch.arange(9.0) / 16
DATA = Dataset("tapes", IMAGES, crop=(1, 3))
MIDDLE = attrs.evolve(DATA, values=IMAGES[..., 3:6].contiguous(), crop=None)


def starts(x):
    """Where windows are; they are nothing else."""
    start = x[:, :1, :1, :1] % 1
    assert torch.equal(x, IMAGES[x[:, 0, 0, 0].long()][..., :3] + start)
    return (16 * start).flatten().long()


def test_windows_are_drawn_anew_at_every_step_and_measured_in_the_middle():
    watching = Watching()
    training = Training(steps=40, batch_size=12, measurements=2)
    training.fit(watching, DATA, DATA, progress=False)
    found = torch.stack([starts(x) for x in watching.trained])
    counts = found.flatten().bincount(minlength=7)
    assert len(counts) == 7
    assert ((counts - 480 / 7).abs() < 5 * (480 / 7) ** 0.5).all()
    assert len({tuple(row.tolist()) for row in found}) == 40
    assert watching.measured
    assert all((starts(x) == 3).all() for x in watching.measured)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (3, 2)])
def test_which_do_not_depend_on_how_a_batch_is_shared(lazy, processes, accumulation):
    stored = LazyArray(30, lambda rows: IMAGES[rows]) if lazy else IMAGES
    found = shared(attrs.evolve(DATA, values=stored, flip=True), processes, accumulation)
    assert torch.equal(found, shared(attrs.evolve(DATA, flip=True), 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_that_was_interrupted_is_the_same_bit_for_bit(tmp_path, dtype):
    assert same(*interrupted(DATA, MIDDLE, tmp_path, dtype))
    training = Training(steps=6, batch_size=12, measurements=2, ema=0.5)
    with pytest.raises(RunMismatch, match=r"data\.crop: expected \(1, 3\), got nothing"):
        training.fit(model(dtype), MIDDLE, MIDDLE, progress=False, folder=tmp_path)
