"""Training mirrors images by a seed and a step, and measures them as they are."""

import attrs
import pytest
import torch
from runs import Stop, same

from estimators import Denoising, ResidualMLP
from scoresde import DiagonalSDE, Identity, LogLinear, ScoreEstimator
from scoresde.data import Dataset, LazyArray
from scoresde.testing import DeviceCalls
from scoresde.training import Training
from scoresde.training.batch_loss import BatchLoss
from scoresde.training.batches import TrainingBatches
from scoresde.training.distributed import SINGLE_PROCESS, SingleProcess
from scoresde.training.run_identity import RunMismatch

COUNT = 30
# which event it is stands in the middle, which way round it is at the sides
VALUES = torch.arange(float(COUNT)).reshape(-1, 1, 1, 1) + torch.tensor([-0.25, 0.0, 0.25])
DATA = Dataset("arrows", VALUES, flip=True)
PLAIN = attrs.evolve(DATA, flip=False)


class Watching(ScoreEstimator):
    """Remembers the events that it is trained on, and those that it is measured by."""

    def __init__(self):
        super().__init__(DiagonalSDE(LogLinear(), Identity((1, 1, 3))))
        self.weight, self.trained, self.measured = torch.nn.Parameter(torch.ones(())), [], []

    def denoise(self, z, t, condition=None):
        return z

    def loss(self, x, condition=None, generator=None):
        (self.trained if torch.is_grad_enabled() else self.measured).append(x.clone())
        return self.weight.square() + x.mean() * 0


def watched(data=DATA, steps=6, seed=0, **options):
    model, training = Watching(), Training(steps=steps, batch_size=12, measurements=2, **options)
    training.fit(model, data, PLAIN, progress=False, seed=seed)
    return model


def turned(x):
    """Whether events are mirrored; they are nothing else."""
    found = x[:, 0, 0, 0] > x[:, 0, 0, 1]
    assert torch.equal(
        torch.where(found[:, None, None, None], x.flip(-1), x), VALUES[x[:, 0, 0, 1].long()]
    )
    return found


def test_half_of_the_time_anew_at_every_step():
    model = watched(steps=40)
    shares = torch.stack([turned(x) for x in model.trained])
    assert 0.43 < shares.float().mean() < 0.57
    assert len({tuple(row.tolist()) for row in shares}) == 40
    per_event = torch.zeros(COUNT, 2)
    for x, row in zip(model.trained, shares, strict=True):
        per_event.index_put_((x[:, 0, 0, 1].long(), row.long()), torch.ones(()), accumulate=True)
    assert (per_event > 0).all(), "every event was seen both ways round"


def test_without_it_nothing_is_mirrored_and_the_rest_is_as_it_was():
    model = watched(PLAIN)
    assert not any(turned(x).any() for x in model.trained)
    middles = [[x[:, 0, 0, 1] for x in run.trained] for run in (model, watched())]
    assert all(torch.equal(a, b) for a, b in zip(*middles, strict=True))


def test_what_is_held_out_is_measured_as_it_is():
    """Even where it says that training may mirror it."""
    model = Watching()
    Training(steps=4, batch_size=12, measurements=2).fit(model, DATA, DATA, progress=False)
    assert len(model.measured) > 0
    assert not any(turned(x).any() for x in model.measured)


def shared(data, processes, accumulation):
    """The events of a first batch, by processes and parts that are put together again."""
    found = torch.empty(12, *data.event_shape)
    for index in range(processes):
        model, own = Watching(), SingleProcess(num_processes=processes, process_index=index)
        training = Training(steps=1, batch_size=12, accumulation=accumulation)
        loss = BatchLoss.new(training, model, 0, attrs.evolve(own, num_processes=processes))
        object.__setattr__(loss, "_shared", _Alone(model))
        batches = TrainingBatches(data, training, 0, own, torch.device("cpu"))
        loss.gradients(batches, 0, lambda value: value)
        for part, x in enumerate(model.trained):
            found[index::processes][part::accumulation] = x
    return found


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("processes", "accumulation"), [(1, 3), (2, 1), (3, 2)])
def test_which_does_not_depend_on_how_a_batch_is_shared(lazy, processes, accumulation):
    stored = LazyArray(COUNT, lambda rows: VALUES[rows]) if lazy else VALUES
    data = Dataset("arrows", stored, flip=True)
    assert torch.equal(shared(data, processes, accumulation), watched(steps=1).trained[0])


class _Alone(torch.nn.Module):
    """An estimator's loss, of a process that waits for no other."""

    def __init__(self, estimator):
        super().__init__()
        self.averaged = estimator.loss

    def alone(self, _):
        return torch.enable_grad()


def model(dtype=torch.float32):
    torch.manual_seed(0)
    network = ResidualMLP((1, 1, 3), width=8, depth=1)
    return Denoising(DiagonalSDE(LogLinear(), Identity((1, 1, 3))), network, data_std=9.0).to(dtype)


def interrupted(train, held_out, folder, dtype):
    """A run, and one that ended after four of its six steps and was resumed."""
    training = Training(steps=6, batch_size=12, measurements=2, ema=0.5)

    def fitted(stop=None, **options):
        def on_step(step):
            if step == stop:
                raise Stop

        estimator = model(dtype)
        try:
            history = training.fit(
                estimator, train, held_out, progress=False, on_step=on_step, **options
            )
        except Stop:
            return None
        return estimator, attrs.evolve(history, seconds=0.0)

    fitted(4, folder=folder, save_every=2)
    resumed = fitted(folder=folder, save_every=2)
    return fitted(), resumed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_that_was_interrupted_is_the_same_bit_for_bit(tmp_path, dtype):
    assert same(*interrupted(DATA, PLAIN, tmp_path, dtype))


def test_a_run_with_it_is_another_one(tmp_path):
    training = Training(steps=2, batch_size=12)
    training.fit(model(), DATA, progress=False, folder=tmp_path)
    with pytest.raises(RunMismatch, match=r"data\.flip: expected True, got nothing"):
        training.fit(model(), PLAIN, progress=False, folder=tmp_path)


def test_a_device_is_not_waited_for():
    """It is asked for the same reads and copies as without."""
    counts = []
    crops = Dataset("arrows", VALUES.repeat(1, 1, 1, 2), flip=True, crop=(1, 3))
    for data in (PLAIN, DATA, crops):
        estimator = model().to("meta")
        training = Training(steps=1, batch_size=12)
        loss = BatchLoss.new(training, estimator, 0, SINGLE_PROCESS)
        batches = TrainingBatches(data, training, 0, SINGLE_PROCESS, torch.device("meta"))
        with DeviceCalls() as calls:
            loss.gradients(batches, 0, lambda value: value)
        counts.append((calls.reads, calls.copies))
    assert counts[0] == counts[1] == counts[2]
